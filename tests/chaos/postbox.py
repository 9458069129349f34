"""The mail server: takes each reminder, reads what it says of itself, and fails or is struck at any phase."""

import email
import email.policy
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage

from tests.chaos.faults import MailTrouble, MailWord, Manner, Phase, Spot, When
from tests.chaos.strikes import Strike
from tests.support.smtp_server import Answer, Fault, ScriptedServer, server_tls

REPEAT_LINE = "You may already have received this reminder"
USER, PASSWORD = "post", "blåbær-9"
_OFFERS = b"250-chaos\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME"
_PHASES = {"GREETING": Phase.CONNECT, "AUTH": Phase.LOGIN, "BODY": Phase.BODY}
_PHASES |= {str(phase): phase for phase in Phase if phase.isupper()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One reminder that the server took."""

    to: str
    message_id: str
    says_repeat: bool

    def __str__(self) -> str:
        return f"{self.to} {self.message_id}{' (repeat)' if self.says_repeat else ''}"


class Postbox(ScriptedServer):
    """Plays a script of troubles; a context manager."""

    def __init__(self) -> None:
        super().__init__({"EHLO": _OFFERS})
        self.taken: list[Taken] = []
        self.hit: list[MailTrouble] = []
        """What went wrong since ``begin``."""
        self.steps = 0
        """Phases that sessions came to, in all."""
        self._script: list[MailWord] = []
        self._strike: Strike | None = None
        self._lock = threading.Lock()

    def begin(self, script: Sequence[MailWord], strike: Strike | None) -> None:
        """Play this script to what comes now, then be healthy."""
        with self._lock:
            self._script = list(script)
            self._strike = strike
            self.hit = []

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
        message = _read(body, to=to)
        strike = self._strike_at(Spot.MAIL)
        if strike is not None:
            strike.at(When.BEFORE)
        trouble = self._come_to(Phase.DOT, None)
        if trouble is not None:
            return trouble
        answer = self._come_to(Phase.REPLY, super().answer("END"))
        self.taken.append(message)
        if strike is not None:
            strike.at(When.AFTER)
        return answer

    def _strike_at(self, spot: Spot) -> Strike | None:
        strike = self._strike
        return strike if strike is not None and strike.chooses(spot) else None

    def _come_to(self, phase: Phase, good: Answer) -> Answer:
        """Note one more step of a session; return what is said there."""
        if (strike := self._strike_at(Spot.STEP)) is not None:
            strike.at(When.BEFORE)
        with self._lock:
            self.steps += 1
            trouble = self._script[0] if self._script else None
            if trouble is not None and trouble.phase is phase:
                self.hit.append(trouble)
                del self._script[0]
                return _spoilt(trouble.manner, good or b"451 not now")
            if phase is Phase.REPLY and self._script and trouble is None:
                del self._script[0]  # a message for which all was to be well
        return good


def _spoilt(manner: Manner, good: Answer) -> Answer:
    match manner:
        case Manner.DROP:
            return Fault.CUT
        case Manner.HANG:
            return Fault.HANG
        case Manner.GARBAGE:
            return b"\x16\x03\x01 what is this?"
        case Manner.SURPLUS:
            assert isinstance(good, bytes)
            return good + b"\r\n250 and again"
        case Manner.LATER:
            return b"450 later"
        case Manner.CLOSING:
            return b"421 closing"


def _read(data: bytes, *, to: str) -> Taken:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    body = message.get_body(("plain",))
    text = body.get_content() if body is not None else ""
    return Taken(to=to, message_id=str(message["Message-ID"]).strip(), says_repeat=REPEAT_LINE in text)
