"""The portal's other side: applies an effect once by its key, keeps each contact's order, plays a seeded script."""

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from uuid import UUID

from tests.chaos.faults import ACTING, Spot, When, Word
from tests.chaos.strikes import Strike
from tests.support import portal_answers as answers
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, answer, error

_KEY = re.compile(r"([0-9]+)-([0-9]+)")
_SLOW_SECONDS = 0.15
_DRIP_EVERY_SECONDS = 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request, and what was done with it."""

    contact_id: UUID
    visible: bool
    event_id: int
    version: int
    word: str

    @property
    def order(self) -> tuple[int, int]:
        """The idempotency key, in two numbers: a newer wish has a higher one."""
        return self.event_id, self.version

    def __str__(self) -> str:
        value = "show" if self.visible else "hide"
        return f"{self.event_id}-{self.version} {str(self.contact_id)[-4:]} {value}  {self.word}"


@dataclass(kw_only=True)
class Receiver:
    """What the portal shows, how it came to that, and what was wrong with it."""

    known: set[UUID] = field(default_factory=set)
    """Contacts that exist; any other is answered with contact_not_found."""
    values: dict[UUID, bool] = field(default_factory=dict)
    """What the portal shows; a contact that was never set is shown."""
    received: list[Received] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Breaches of the contract that are seen here: an old value after a newer one, a key used for two values."""

    def __post_init__(self) -> None:
        self._applied: dict[UUID, tuple[int, int]] = {}
        self._keys: dict[tuple[int, int], tuple[UUID, bool]] = {}
        self._script: list[Word] = []
        self._strike: Strike | None = None
        self._working = 0
        self._lock = threading.Lock()

    def begin(self, script: Sequence[Word], strike: Strike | None) -> None:
        """Play this script to what comes now, then be healthy."""
        with self._lock:
            self._script = list(script)
            self._strike = strike

    @property
    def is_idle(self) -> bool:
        """Whether no request is being worked on, not even one whose caller is dead."""
        return self._working == 0

    def behaviour(self, request: PortalRequest) -> Behaviour:
        """The script of a PortalServer."""
        if request.method == "GET":
            return self._list
        with self._lock:
            word = self._script.pop(0) if self._script else Word.OK
            strike = self._strike
            chosen = strike is not None and strike.chooses(Spot.REQUEST)
            received = self._note(request, word)
            self._working += 1
        return partial(self._behave, received=received, word=word, strike=strike if chosen else None)

    def _list(self, exchange: Exchange) -> None:
        """Everything that is shown, on one page."""
        shown = [str(each) for each in sorted(self.known) if self.values.get(each, True)]
        answer(200, {"visible": shown, "next": None})(exchange)

    def _note(self, request: PortalRequest, word: Word) -> Received | None:
        match = _KEY.fullmatch(request.idempotency_key or "")
        if match is None or request.contact_id is None or request.visible is None:
            self.complaints.append(f"request {request.number} breaks the contract: {request.body!r} {request.headers}")
            return None
        one = Received(
            contact_id=request.contact_id,
            visible=request.visible,
            event_id=int(match[1]),
            version=int(match[2]),
            word=word if request.contact_id in self.known else f"{word} (unknown contact)",
        )
        self.received.append(one)
        if one.order < self._applied.get(one.contact_id, (0, 0)):
            self.complaints.append(f"an old value came after a newer one was applied: {one}")
        if self._keys.setdefault(one.order, (one.contact_id, one.visible)) != (one.contact_id, one.visible):
            self.complaints.append(f"a key was used for two values: {one}")
        return one

    def _behave(self, exchange: Exchange, *, received: Received | None, word: Word, strike: Strike | None) -> None:
        try:
            if strike is not None:
                strike.at(When.BEFORE)
            if exchange.request.contact_id not in self.known and word in ACTING:
                error(404, "contact_not_found")(exchange)
                return
            if word is Word.SLOW:
                exchange.pause(_SLOW_SECONDS)
            if word in ACTING and received is not None:
                self._apply(received)
            if strike is not None:
                strike.at(When.AFTER)
            _ANSWERS[word](exchange)
            if strike is not None:
                strike.at(When.ANSWERED)
        finally:
            with self._lock:
                self._working -= 1

    def _apply(self, one: Received) -> None:
        with self._lock:
            last = self._applied.get(one.contact_id, (0, 0))
            if one.order < last:
                self.complaints.append(f"an old value was applied after a newer one: {one} after {last}")
            if one.order != last:  # a key seen before changes nothing
                self._applied[one.contact_id] = one.order
                self.values[one.contact_id] = one.visible


def _drip(exchange: Exchange) -> None:
    """The right answer, byte by byte."""
    visible = b"true" if exchange.request.visible else b"false"
    whole = b'{"contact_id": "%s", "visible": %s}' % (str(exchange.request.contact_id).encode(), visible)
    data = answers.http_answer(200, whole)
    for position in range(len(data)):
        exchange.pause(_DRIP_EVERY_SECONDS)
        exchange.send(data[position : position + 1], last=position == len(data) - 1)


def _throttled_until(exchange: Exchange) -> None:
    """The moment counts from when it is asked, so the answer is made then."""
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)
    error(429, "throttled", retry_after=moment)(exchange)


_ANSWERS: dict[Word, Behaviour] = {
    **dict.fromkeys((Word.OK, Word.SLOW), answers.ok()),
    **dict.fromkeys((Word.RESET, Word.RESET_AFTER_ACTING), answers.reset()),
    **dict.fromkeys((Word.NO_JSON, Word.NO_JSON_AFTER_ACTING), answer(200, b'{"contact_id": ')),
    Word.CUT: answers.cut(applied=False),
    Word.ERROR: error(502, "dynamics_unavailable"),
    Word.ERROR_AFTER_ACTING: error(500, "internal"),
    Word.THROTTLED_SECONDS: error(429, "throttled", retry_after="1"),
    Word.THROTTLED_DATE: _throttled_until,
    Word.THROTTLED_LONG: error(429, "throttled", retry_after="900"),
    Word.DRIP: _drip,
    Word.HANG: answers.hang(),
    Word.TOO_LARGE: error(413, "too_large"),
    Word.REDIRECT: answers.redirect("https://elsewhere.example/"),
    Word.HTML_OK: answers.html(200),
    Word.HTML_ERROR: answers.html(502),
    Word.WRONG_KEY: error(401, "unauthorized"),
}
"""The answers alone: what is done and what is struck comes before. (``ok`` sets the server's own record as well,
which nobody reads here, for it knows no keys.)"""
