"""Mail servers on loopback: aiosmtpd, and a server with scripted answers."""

import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.support.listener import Listener

CERTIFICATE = Path(__file__).parent / "certificates" / "localhost.pem"
"""Self-signed, for localhost and 127.0.0.1, valid until 2120."""

HOST = "127.0.0.1"


def server_tls() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    return context


def client_tls() -> ssl.SSLContext:
    """Return a context that verifies certificates and trusts CERTIFICATE."""
    return ssl.create_default_context(cafile=CERTIFICATE)


class Mailbox:
    """The messages and logins of a real server."""

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


class _RealServer(Controller):  # type: ignore[misc]
    def __init__(self, mailbox: Mailbox, **options: Any) -> None:
        self._listening = socket.create_server((HOST, 0))
        super().__init__(mailbox, hostname=HOST, port=self._listening.getsockname()[1], **options)

    def _create_server(self) -> Any:
        return self.loop.create_server(self._factory_invoker, sock=self._listening, ssl=self.ssl_context)


@contextmanager
def real_server(mailbox: Mailbox, **options: Any) -> Iterator[Controller]:
    """Run aiosmtpd with these options on a free port."""
    server = _RealServer(mailbox, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


ServerFault = Enum("ServerFault", ["CUT", "HANG", "DRIP", "FLOOD"])
"""A server that closes the connection, sends no answer, single bytes, or a reply without an end."""

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

Answer = bytes | ServerFault | None
"""None: send no answer, and go on."""


class ScriptedServer(Listener):
    """Gives these answers, and GOOD_ANSWERS at the other stages of a session.

    The stages are the commands, GREETING, BODY (before it reads the body) and END (after the final dot).
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None) -> None:
        super().__init__()
        self.answers: Mapping[str, Answer] = dict(answers or {})
        self.commands: list[str] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.hangs_up = False
        """Whether the server closes each connection after a message."""
        self.closed = 0
        """Closed connections."""
        self._stop = threading.Event()
        # A small buffer makes an unread body block its sender.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    def answer(self, stage: str) -> Answer:
        """Return the answer at a stage."""
        return self.answers.get(stage, None if stage == "BODY" else GOOD_ANSWERS.get(stage, b"500 what?"))

    def end_message(self, body: bytes, *, to: str) -> Answer:
        """Return the answer to a complete message."""
        self.bodies.append(body)
        return self.answer("END")

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        super().__exit__(*error)

    def serve(self, client: socket.socket) -> None:
        self.connections += 1
        client.settimeout(60)
        lines, to = client.makefile("rb"), ""
        try:
            goes_on = self._say(client, self.answer("GREETING"))
            while goes_on and (line := lines.readline()):
                self.commands.append(line.decode("latin-1").rstrip("\r\n"))
                stage = self.commands[-1].partition(" ")[0].upper()
                if stage == "RCPT":
                    to = line.decode("latin-1").partition("<")[2].partition(">")[0]
                answer = self.answer(stage)
                goes_on = self._say(client, answer) and stage != "QUIT"
                if stage == "STARTTLS" and answer == GOOD_ANSWERS[stage]:
                    lines.close()
                    client = server_tls().wrap_socket(client, server_side=True)
                    lines = client.makefile("rb")
                if stage == "DATA" and isinstance(answer, bytes) and answer.startswith(b"354"):
                    goes_on = self._say(client, self.answer("BODY"))
                    body = _read_body(lines) if goes_on else None
                    goes_on = body is not None and self._say(client, self.end_message(body, to=to))
                    goes_on = goes_on and not self.hangs_up
        finally:
            lines.close()
            client.close()
            self.closed += 1

    def _say(self, connection: socket.socket, answer: Answer) -> bool:
        """Send an answer; return whether the session goes on."""
        match answer:
            case bytes():
                connection.sendall(answer + b"\r\n")
            case ServerFault.HANG:
                self._stop.wait(10)
            case ServerFault.DRIP:
                while not self._stop.wait(0.02):
                    connection.sendall(b"2")
            case ServerFault.FLOOD:
                while not self._stop.is_set():
                    connection.sendall(b"250-more\r\n" * 100)
        return not isinstance(answer, ServerFault)


def _read_body(lines: Iterable[bytes]) -> bytes | None:
    """Return the lines before the final dot, or None without one."""
    body = list[bytes]()
    for line in lines:
        if line == b".\r\n":
            return b"".join(body)
        body.append(line)
    return None
