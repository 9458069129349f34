"""The other sides of certjob's wires, the portal and the mail server: each plays a seeded script, and may be struck."""

import email
import email.policy
import socket
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from tests.chaos.faults import ACTING, MailWord, Manner, Phase, Spot, When, Word
from tests.chaos.strikes import Strike
from tests.support import portal_answers as answers
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, error
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import Answer, Fault, ScriptedServer, server_tls

_SLOW_SECONDS = 0.15
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


class Receiver(PortalServer):
    """The portal, which applies an effect once by its key."""

    def __init__(self) -> None:
        super().__init__()
        self.decide = self._decide
        self.known: set[UUID] = set()
        """Contacts that exist; any other is answered with contact_not_found."""
        self.applied: dict[UUID | None, list[tuple[int, int]]] = defaultdict(list)
        """The wishes that were done, by contact, in order."""
        self.trail: list[str] = []
        self.begin()

    def begin(self, script: Sequence[Word] = (), strike: Strike | None = None) -> None:
        """Play this script to what comes now, then be healthy."""
        with self.changed:
            self._words, self._strike = list(script), strike or Strike()

    @property
    def pushes(self) -> list[PortalRequest]:
        return [request for request in self.requests if request.method == "POST"]

    def _decide(self, request: PortalRequest) -> Behaviour:
        if request.method == "GET":
            return answers.ok()
        word = self._words.pop(0) if self._words else Word.OK
        known = "" if request.contact_id in self.known else " (unknown contact)"
        value = "show" if request.visible else "hide"
        self.trail.append(f"{request.idempotency_key} {str(request.contact_id)[-4:]} {value}  {word}{known}")
        return partial(self._behave, word=word, strike=self._strike.if_here(Spot.REQUEST))

    def _behave(self, exchange: Exchange, *, word: Word, strike: Strike) -> None:
        strike.at(When.BEFORE)
        if exchange.request.contact_id not in self.known and word in ACTING:
            error(404, "contact_not_found")(exchange)
            return
        if word is Word.SLOW:
            exchange.pause(_SLOW_SECONDS)
        if word in ACTING:
            self._apply(exchange)
        strike.at(When.AFTER)
        _ANSWERS[word](exchange)
        strike.at(When.ANSWERED)

    def _apply(self, exchange: Exchange) -> None:
        with self.changed:
            done = self.applied[exchange.request.contact_id]
            if exchange.request.order not in done:  # a key seen before changes nothing
                done.append(exchange.request.order)
                exchange.apply()


REPEAT_LINE = "You may have received this reminder before"
USER, PASSWORD = "post", "blåbær-9"
_OFFERS = b"250-chaos\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME"
_PHASES = {"GREETING": Phase.CONNECT, "AUTH": Phase.LOGIN, "BODY": Phase.BODY}
_PHASES |= {str(phase): phase for phase in Phase if phase.isupper()}
_SPOILT: dict[Manner, Answer] = {
    Manner.DROP: Fault.CUT,
    Manner.HANG: Fault.HANG,
    Manner.GARBAGE: b"\x16\x03\x01 what is this?",
    Manner.LATER: b"450 later",
    Manner.CLOSING: b"421 closing",
}


class Taken(NamedTuple):
    """One reminder that the mail server took."""

    to: str
    message_id: str
    says_repeat: bool


class Postbox(ScriptedServer):
    """The mail server, which reads what each reminder says of itself."""

    def __init__(self) -> None:
        super().__init__({"EHLO": _OFFERS})
        self.taken: list[Taken] = []
        self._lock = threading.Lock()
        self.begin()

    def begin(self, script: Sequence[MailWord] = (), strike: Strike | None = None) -> None:
        """Play this script to what comes now, then be healthy."""
        with self._lock:
            self.script, self._strike = list(script), strike or Strike()

    def answer(self, stage: str) -> Answer:
        good, phase = super().answer(stage), _PHASES.get(stage)
        return good if phase is None else self._come_to(phase, good)

    def begin_tls(self, connection: socket.socket) -> socket.socket:
        trouble = self._come_to(Phase.HANDSHAKE, None)
        if trouble is None:
            return server_tls().wrap_socket(connection, server_side=True)
        self._say(connection, trouble)
        raise ConnectionError

    def end_message(self, body: bytes, *, to: str) -> Answer:
        strike = self._strike.if_here(Spot.MAIL)
        strike.at(When.BEFORE)
        trouble = self._come_to(Phase.DOT, None)
        if trouble is not None:
            return trouble
        answer = self._come_to(Phase.REPLY, super().answer("END"))
        message: Any = email.message_from_bytes(body, policy=email.policy.default)
        is_repeat = REPEAT_LINE in message.get_body(("plain",)).get_content()
        self.taken.append(Taken(to, str(message["Message-ID"]).strip(), is_repeat))
        strike.at(When.AFTER)
        return answer

    def _come_to(self, phase: Phase, good: Answer) -> Answer:
        """One more step of a session; return what is said there."""
        self._strike.if_here(Spot.STEP).at(When.BEFORE)
        with self._lock:
            trouble = self.script[0] if self.script else None
            if trouble is not None and trouble.phase is phase:
                del self.script[0]
                surplus = (good if isinstance(good, bytes) else b"451 not now") + b"\r\n250 and again"
                return _SPOILT.get(trouble.manner, surplus)
            if phase is Phase.REPLY and self.script and trouble is None:
                del self.script[0]  # a message for which all was to be well
        return good
