"""The portal's other side: applies an effect once by its key, keeps each contact's order, plays a seeded script."""

from collections.abc import Sequence
from functools import partial
from uuid import UUID

from tests.chaos.faults import ACTING, Spot, When, Word
from tests.chaos.strikes import Strike
from tests.support import portal_answers as answers
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, error
from tests.support.portal_server import PortalServer

_SLOW_SECONDS = 0.15


class Receiver(PortalServer):
    """What the portal shows, how it came to that, and what was wrong with it; a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self.decide = self._decide
        self.known: set[UUID] = set()
        """Contacts that exist; any other is answered with contact_not_found."""
        self.pushes: list[PortalRequest] = []
        self.applied: dict[UUID, tuple[int, int]] = {}
        """The newest wish that was done, by contact."""
        self.trail: list[str] = []
        self.complaints: list[str] = []
        """Breaches of the contract that are seen here: an old value after a newer one, a key used for two values."""
        self._keys: dict[tuple[int, int], tuple[UUID, bool]] = {}
        self._word_script: list[Word] = []
        self._strike: Strike | None = None

    def begin(self, script: Sequence[Word], strike: Strike | None) -> None:
        """Play this script to what comes now, then be healthy."""
        with self.changed:
            self._word_script = list(script)
            self._strike = strike

    def add(self, contact_id: UUID) -> None:
        """A contact that exists is shown until something else is asked for."""
        self.known.add(contact_id)
        self.visible.setdefault(contact_id, True)

    def _decide(self, request: PortalRequest) -> Behaviour:
        if request.method == "GET":
            return answers.ok()
        word = self._word_script.pop(0) if self._word_script else Word.OK
        strike = self._strike
        is_chosen = strike is not None and strike.chooses(Spot.REQUEST)
        known = "" if request.contact_id in self.known else " (unknown contact)"
        value = "show" if request.visible else "hide"
        self.trail.append(f"{request.idempotency_key} {str(request.contact_id)[-4:]} {value}  {word}{known}")
        try:
            self._note(request)
        except ValueError:
            self.complaints.append(f"request {request.number} breaks the contract: {request.body!r} {request.headers}")
            return error(400, "invalid_request")
        return partial(self._behave, word=word, strike=strike if is_chosen else None)

    def _note(self, request: PortalRequest) -> None:
        if request.contact_id is None or request.visible is None:
            raise ValueError
        self.pushes.append(request)
        if request.order < self.applied.get(request.contact_id, (0, 0)):
            self.complaints.append(f"an old value came after a newer one was applied: {self.trail[-1]}")
        wish = request.contact_id, request.visible
        if self._keys.setdefault(request.order, wish) != wish:
            self.complaints.append(f"a key was used for two values: {self.trail[-1]}")

    def _behave(self, exchange: Exchange, *, word: Word, strike: Strike | None) -> None:
        if strike is not None:
            strike.at(When.BEFORE)
        if exchange.request.contact_id not in self.known and word in ACTING:
            error(404, "contact_not_found")(exchange)
            return
        if word is Word.SLOW:
            exchange.pause(_SLOW_SECONDS)
        if word in ACTING:
            self._apply(exchange)
        if strike is not None:
            strike.at(When.AFTER)
        _ANSWERS[word](exchange)
        if strike is not None:
            strike.at(When.ANSWERED)

    def _apply(self, exchange: Exchange) -> None:
        request = exchange.request
        assert request.contact_id is not None
        with self.changed:
            last = self.applied.get(request.contact_id, (0, 0))
            if request.order < last:
                self.complaints.append(f"an old value was applied after a newer one: {request.order} after {last}")
            if request.order != last:  # a key seen before changes nothing
                self.applied[request.contact_id] = request.order
                exchange.apply()


_ANSWERS: dict[Word, Behaviour] = {
    **dict.fromkeys((Word.OK, Word.SLOW), answers.confirm),
    **dict.fromkeys((Word.RESET, Word.RESET_AFTER_ACTING), answers.reset()),
    Word.CUT: answers.cut(applied=False),
    Word.ERROR: error(502, "dynamics_unavailable"),
    Word.ERROR_AFTER_ACTING: error(500, "internal"),
    Word.THROTTLED_SECONDS: error(429, "throttled", retry_after="1"),
    Word.THROTTLED_LONG: error(429, "throttled", retry_after="900"),
    Word.HANG: answers.hang(),
    Word.WRONG_KEY: error(401, "unauthorized"),
}
"""The answers alone: what is done and what is struck comes before."""
