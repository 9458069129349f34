"""SMTP servers for tests: a real one (aiosmtpd), and one that misbehaves exactly where it is told to."""

import contextlib
import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

CERTIFICATE = Path(__file__).parent / "certificates" / "localhost.pem"
"""For localhost and 127.0.0.1, signed by itself, valid until 2120."""

HOST = "127.0.0.1"


def server_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_tls() -> ssl.SSLContext:
    """The client's side, verifying as always, that trusts the tests' certificate."""
    return ssl.create_default_context(cafile=CERTIFICATE)


class Mailbox:
    """What a real server took."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []
        self.sessions: list[Any] = []
        self.logins: list[tuple[str, str]] = []

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        self.envelopes.append(envelope)
        self.sessions.append(session)
        return "250 taken"

    def authenticate(
        self, server: object, session: object, envelope: object, mechanism: str, login: LoginPassword
    ) -> AuthResult:
        self.logins.append((login.login.decode(), login.password.decode()))
        return AuthResult(success=self.logins[-1] == ("post", "blåbær-9"), handled=False)


class RealServer(Controller):  # type: ignore[misc]
    """aiosmtpd on a free port of this machine."""

    def __init__(self, mailbox: Mailbox, **options: Any) -> None:
        self._listening = socket.create_server((HOST, 0))
        super().__init__(mailbox, hostname=HOST, port=self._listening.getsockname()[1], **options)

    def _create_server(self) -> Any:
        return self.loop.create_server(self._factory_invoker, sock=self._listening, ssl=self.ssl_context)


@contextmanager
def real_server(mailbox: Mailbox, **options: Any) -> Iterator[RealServer]:
    """A running server; the options are aiosmtpd's."""
    server = RealServer(mailbox, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


Fault = Enum("Fault", ["CUT", "HANG", "DRIP", "FLOOD"])
"""Instead of an answer: close the connection, say nothing, send a byte now and then, or a reply that does not end."""

GOOD_ANSWERS: Mapping[str, bytes] = {
    "GREETING": b"220 test ESMTP",
    "EHLO": b"250 test",
    "HELO": b"250 test",
    "STARTTLS": b"220 go on",
    "AUTH": b"235 welcome",
    "MAIL": b"250 sender fine",
    "RCPT": b"250 recipient fine",
    "DATA": b"354 go on",
    "END": b"250 taken",
    "QUIT": b"221 bye",
}


class ScriptedServer:
    """Answers each stage of a session as a good server does, but for the stages it is given another answer for.

    The stages are the commands, GREETING, BODY (before the body is read) and END (after the final dot).
    """

    def __init__(self, answers: Mapping[str, bytes | Fault]) -> None:
        self.answers: dict[str, bytes | Fault] = dict(answers)
        self.commands: list[str] = []
        """Every line heard outside of bodies, of all connections."""
        self.bodies: list[bytes] = []
        self.connections = 0
        self._stop = threading.Event()
        self._listening = socket.create_server((HOST, 0))
        # Small, so that a body which is not read fills it and blocks its sender.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.port: int = self._listening.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def stop(self) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._stop.is_set():
                connection, _ = self._listening.accept()
                self.connections += 1
                self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            goes_on = self._answer(connection, "GREETING")
            while goes_on and (line := lines.readline()):
                self.commands.append(line.decode("latin-1").rstrip("\r\n"))
                stage = self.commands[-1].partition(" ")[0].upper()
                goes_on = self._answer(connection, stage) and stage != "QUIT"
                if goes_on and stage == "DATA" and "DATA" not in self.answers:
                    goes_on = self._take_body(connection, lines)

    def _take_body(self, connection: socket.socket, lines: Iterable[bytes]) -> bool:
        if "BODY" in self.answers and not self._answer(connection, "BODY"):
            return False
        body = list(itertools.takewhile(lambda line: line != b".\r\n", lines))
        self.bodies.append(b"".join(body))
        return self._answer(connection, "END")

    def _answer(self, connection: socket.socket, stage: str) -> bool:
        """Do what the stage asks for; whether the session goes on."""
        match self.answers.get(stage, GOOD_ANSWERS.get(stage, b"500 what?")):
            case bytes() as answer:
                connection.sendall(answer + b"\r\n")
                return True
            case Fault.HANG:
                self._stop.wait(10)
            case Fault.DRIP:
                while not self._stop.wait(0.02):
                    connection.sendall(b"2")
            case Fault.FLOOD:
                while not self._stop.is_set():
                    connection.sendall(b"250-more\r\n" * 100)
        return False


@contextmanager
def scripted_server(answers: Mapping[str, bytes | Fault] | None = None) -> Iterator[ScriptedServer]:
    """A running server that misbehaves as told."""
    server = ScriptedServer(answers or {})
    try:
        yield server
    finally:
        server.stop()
