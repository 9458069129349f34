"""The mail server: takes each reminder, reads what it says of itself, and fails or is struck at any phase."""

import contextlib
import email
import email.policy
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import EmailMessage
from typing import Self

from tests.chaos.faults import MailTrouble, MailWord, Manner, Phase, Spot, When
from tests.chaos.strikes import Strike
from tests.support.smtp_server import HOST, server_tls

REPEAT_LINE = "You may already have received this reminder"
USER, PASSWORD = "post", "blåbær-9"
_LONGEST_SILENCE_SECONDS = 60.0
_GARBAGE = b"\x16\x03\x01 what is this?\r\n"

_GOOD = {
    Phase.CONNECT: b"220 chaos ESMTP\r\n",
    Phase.EHLO: b"250-chaos\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250 8BITMIME\r\n",
    Phase.STARTTLS: b"220 go on\r\n",
    Phase.LOGIN: b"235 welcome\r\n",
    Phase.MAIL: b"250 sender fine\r\n",
    Phase.RCPT: b"250 recipient fine\r\n",
    Phase.DATA: b"354 go on\r\n",
    Phase.DOT: b"451 not now\r\n",
    Phase.REPLY: b"250 taken\r\n",
    Phase.QUIT: b"221 bye\r\n",
}
"""What is answered in each phase; at the dot only a message that is not taken is answered."""
_COMMANDS = {str(phase): phase for phase in Phase if phase.isupper()} | {"AUTH": Phase.LOGIN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """One reminder that the server took."""

    to: str
    message_id: str
    says_repeat: bool

    def __str__(self) -> str:
        return f"{self.to} {self.message_id}{' (repeat)' if self.says_repeat else ''}"


class Postbox(socketserver.ThreadingTCPServer):
    """Listens on loopback; a context manager."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((HOST, 0), _Session)
        self.taken: list[Taken] = []
        self.hit: list[MailTrouble] = []
        """What went wrong since ``begin``."""
        self.steps = 0
        """Phases that sessions came to, in all."""
        self._script: list[MailWord] = []
        self._strike: Strike | None = None
        self._lock = threading.Lock()
        self.port: int = self.server_address[1]

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Self]:
        """A running server."""
        with cls() as postbox:
            threading.Thread(target=postbox.serve_forever, args=(0.05,), daemon=True).start()
            try:
                yield postbox
            finally:
                postbox.shutdown()

    def begin(self, script: Sequence[MailWord], strike: Strike | None) -> None:
        """Play this script to what comes now, then be healthy."""
        with self._lock:
            self._script = list(script)
            self._strike = strike
            self.hit = []

    def come_to(self, phase: Phase) -> Manner | None:
        """Note one more step of a session; return what goes wrong in it."""
        with self._lock:
            self.steps += 1
            trouble = self._script[0] if self._script else None
            if trouble is not None and trouble.phase is phase:
                self.hit.append(trouble)
                del self._script[0]
                return trouble.manner
            if phase is Phase.REPLY and self._script and trouble is None:
                del self._script[0]  # a message for which all was to be well
            return None

    def strike_at(self, spot: Spot) -> Strike | None:
        """Return the strike if this is its place."""
        strike = self._strike
        return strike if strike is not None and strike.chooses(spot) else None


class _OverError(Exception):
    """The session is over."""


class _Session(socketserver.StreamRequestHandler):
    """One connection, to its end."""

    server: Postbox
    connection: socket.socket
    disable_nagle_algorithm = True

    def handle(self) -> None:
        self._to = ""
        with contextlib.suppress(OSError, _OverError):
            self._talk()

    def finish(self) -> None:
        self.rfile.close()
        self.connection.close()

    def _talk(self) -> None:
        self._answer(Phase.CONNECT)
        while line := self.rfile.readline():  # it is another file once TLS has begun
            word = line.split()[0].decode("latin-1").upper() if line.split() else ""
            phase = _COMMANDS.get(word)
            if phase is None:
                self.connection.sendall(b"500 what?\r\n")
                continue
            if phase is Phase.RCPT:
                self._to = line.decode().partition("<")[2].partition(">")[0]
            if not self._answer(phase):
                continue
            match phase:
                case Phase.STARTTLS:
                    self._secure()
                case Phase.DATA:
                    self._take_message()
                case Phase.QUIT:
                    return

    def _answer(self, phase: Phase) -> bool:
        """Come to a phase and answer in it; whether all was well."""
        if (strike := self.server.strike_at(Spot.STEP)) is not None:
            strike.at(When.BEFORE)
        manner = self.server.come_to(phase)
        self._send(phase, manner)
        return manner in {None, Manner.SURPLUS}

    def _send(self, phase: Phase, manner: Manner | None) -> None:
        good = _GOOD[phase]
        match manner:
            case Manner.DROP | Manner.HANG:
                self._fall_silent(manner)
            case Manner.GARBAGE:
                self.connection.sendall(_GARBAGE)
            case Manner.SURPLUS:
                self.connection.sendall(good + (b"250 and again\r\n" if phase is Phase.DOT else good))
            case Manner.LATER:
                self.connection.sendall(b"450 later\r\n")
            case Manner.CLOSING:
                self.connection.sendall(b"421 closing\r\n")
                raise _OverError
            case _:
                self.connection.sendall(good)

    def _fall_silent(self, manner: Manner) -> None:
        """Cut the connection, or say nothing until the other side goes."""
        if manner is Manner.DROP:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.settimeout(_LONGEST_SILENCE_SECONDS)
            while self.rfile.read1():
                pass
        raise _OverError

    def _secure(self) -> None:
        match self.server.come_to(Phase.HANDSHAKE):
            case Manner.DROP | Manner.HANG as manner:
                self._fall_silent(manner)
            case Manner.GARBAGE:
                self.connection.sendall(_GARBAGE)
                raise _OverError
            case _:
                pass
        self.rfile.close()
        self.connection = server_tls().wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")

    def _take_message(self) -> None:
        if (strike := self.server.strike_at(Spot.STEP)) is not None:
            strike.at(When.BEFORE)
        match self.server.come_to(Phase.BODY):
            case Manner.DROP | Manner.HANG as manner:
                self._fall_silent(manner)
            case Manner.GARBAGE:
                self.connection.sendall(_GARBAGE)
            case _:
                pass
        lines: list[bytes] = []
        while (line := self.rfile.readline()) != b".\r\n":
            if not line:
                raise _OverError
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        self._end_message(_read(b"".join(lines), to=self._to))

    def _end_message(self, message: Taken) -> None:
        strike = self.server.strike_at(Spot.MAIL)
        if strike is not None:
            strike.at(When.BEFORE, about=message.message_id)
        if (manner := self.server.come_to(Phase.DOT)) is not None:
            self._send(Phase.DOT, manner)
            return
        manner = self.server.come_to(Phase.REPLY)
        self.server.taken.append(message)
        if strike is not None:
            strike.at(When.AFTER, about=message.message_id)
        self._send(Phase.REPLY, manner)


def _read(data: bytes, *, to: str) -> Taken:
    message = email.message_from_bytes(data, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    body = message.get_body(("plain",))
    text = body.get_content() if body is not None else ""
    return Taken(to=to, message_id=str(message["Message-ID"]).strip(), says_repeat=REPEAT_LINE in text)
