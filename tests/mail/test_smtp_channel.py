"""A message by SMTP arrives once, or an error says whose fault it is, in bounded time."""

import asyncio
import email
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from email.policy import default
from typing import Any

import pytest
from aiosmtplib import SMTPResponse, SMTPResponseException
from aiosmtplib.protocol import SMTPProtocol
from pydantic import SecretStr

from certjob.domain.addresses import parse_address
from certjob.errors import NotifyError
from certjob.mail.channels import smtp
from certjob.outbox.calls import run_alone
from tests.mail.conftest import EVERYBODYS, LATER, NEVER, UNKNOWN
from tests.support.channels import Blocking, smtp_channel
from tests.support.mails import MESSAGE
from tests.support.smtp_server import (
    GOOD_ANSWERS,
    HOST,
    Fault,
    Mailbox,
    ScriptedServer,
    client_tls,
    real_server,
    server_tls,
)
from tests.support.waiting import until

LOGIN: dict[str, Any] = {"user": "post", "password": SecretStr("blåbær-9"), "tls": client_tls()}

Answers = dict[str, bytes | Fault]


def channel_to(port: int, **options: Any) -> Blocking:
    """A channel whose limits end a test that hangs; a test of a limit gives its own."""
    return Blocking(
        smtp_channel(port, **{"connect_seconds": 20, "envelope_seconds": 20, "answer_seconds": 30} | options)
    )


@contextmanager
def talk(answers: Answers | None = None, **options: Any) -> Iterator[tuple[ScriptedServer, Blocking]]:
    """A server that answers so, and a channel to it."""
    with ScriptedServer(answers) as server, channel_to(server.port, **options) as channel:
        yield server, channel


def offering(mechanisms: bytes, **answers: bytes) -> Answers:
    return {"EHLO": b"250-test\r\n250-STARTTLS\r\n250 AUTH " + mechanisms, **answers}


@contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 5


@pytest.fixture
def nothing_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat this machine's address as one far away."""
    monkeypatch.setattr(smtp, "LOOPBACK_HOSTS", frozenset())


@pytest.fixture
def tls_for_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """STARTTLS changes nothing but what both sides believe, so that a scripted server can go on talking."""

    async def start_tls(self: SMTPProtocol, *_: object, **__: object) -> SMTPResponse:
        response = await self.execute_command(b"STARTTLS")
        if response.code != 220:
            raise SMTPResponseException(response.code, response.message)
        self._buffer.clear()
        return response

    monkeypatch.setattr(SMTPProtocol, "start_tls", start_tls)


def test_messages_arrive_whole_over_a_connection_that_is_renewed() -> None:
    """No dot between bare line ends smuggles in a second one. Letters before the @ need SMTPUTF8 (RFC 6531)."""
    smuggled = "Hei\n.\nMAIL FROM:<x@example.org>\r.\rRCPT TO:<y@example.org>\r\n.\r\nDATA\n"
    mailbox = Mailbox()
    with real_server(mailbox) as server, channel_to(server.port, messages_per_connection=2) as channel:
        for to in (MESSAGE.to, "kari@blåbær.example", "pål@example.org"):
            channel.send(replace(MESSAGE, to=to))
        channel.send(replace(MESSAGE, text=smuggled))
        channel.send(MESSAGE)

    sessions = [id(session) for session in mailbox.sessions]
    assert [sessions.count(session) for session in dict.fromkeys(sessions)] == [2, 2, 1]
    assert [(envelope.mail_from, envelope.rcpt_tos, envelope.smtp_utf8) for envelope in mailbox.envelopes[:3]] == [
        ("post@hlf.example", ["kari.nordmann@example.org"], False),
        ("post@hlf.example", ["kari@xn--blbr-roah.example"], False),
        ("post@hlf.example", ["pål@example.org"], True),
    ]
    whole, _, _, odd, _ = (email.message_from_bytes(each.content, policy=default) for each in mailbox.envelopes)
    assert (whole["From"], whole["Subject"]) == ('"Hørsel, HLF" <post@hlf.example>', MESSAGE.subject)
    parts = [part.get_content().splitlines() for part in (*whole.iter_parts(), *odd.iter_parts())]
    assert parts[:3] == [text.splitlines() for text in (MESSAGE.text, MESSAGE.html, smuggled)]
    assert b"\n" not in mailbox.envelopes[3].content.replace(b"\r\n", b"")


NOT_THESE: Answers = {"EHLO": b"250-test\r\n250 SMTPUTF8", "MAIL": b"550 5.6.7 not these"}


@pytest.mark.parametrize(
    ("answers", "fields", "said"),
    [
        ({}, {"to": "pål@example.org"}, "beyond ASCII"),
        (NOT_THESE, {"to": "pål@example.org"}, r"550 5\.6\.7 not these"),
        ({}, {"to": "kari@example.org\r\nBcc: ola@example.org"}, "is not an address"),
        ({}, {"subject": "Hei\r\nBcc: ola@example.org"}, "cannot be written"),
        ({}, {"text": "\udc80"}, "cannot be written"),
    ],
)
def test_what_cannot_be_written_or_passed_on_is_refused(answers: Answers, fields: dict[str, Any], said: str) -> None:
    """A bad row, or letters that this server does not know: the text repeats nothing, and everybody's mail goes on."""
    with talk(answers) as (server, channel):
        with pytest.raises(NEVER, match=said) as caught:
            channel.send(replace(MESSAGE, **fields))
        server.answers = {}
        channel.send(MESSAGE)

        assert ("example" in str(caught.value), len(server.bodies)) == (False, 1)


BEFORE_THE_RECIPIENT = ("GREETING", "EHLO", "STARTTLS", "AUTH", "MAIL")
BEFORE_354 = (*BEFORE_THE_RECIPIENT, "RCPT", "DATA")
NO_SMTP = b"HTTP/1.1 400 Bad Request"

TABLE = [
    *((stage, answer, EVERYBODYS) for stage in BEFORE_THE_RECIPIENT for answer in (b"450 no", b"550 no")),
    *((stage, answer, EVERYBODYS) for stage in ("RCPT", "DATA", "END") for answer in (b"421 closing", b"530 log in")),
    *((stage, b"450 not now", LATER) for stage in ("RCPT", "DATA", "END")),
    *((stage, b"550 KARI.Nordmann@example.org?", NEVER) for stage in ("RCPT", "DATA", "END")),
    *((stage, answer, EVERYBODYS) for stage in ("GREETING", "RCPT", "DATA") for answer in (NO_SMTP, b"333 what")),
    *((stage, fault, EVERYBODYS) for stage in BEFORE_354 for fault in (Fault.CUT, Fault.DRIP)),
    *((stage, Fault.HANG, EVERYBODYS) for stage in ("GREETING", "DATA")),
    ("DATA", Fault.FLOOD, EVERYBODYS),
    ("BODY", Fault.CUT, UNKNOWN),
    *(("END", answer, UNKNOWN) for answer in (NO_SMTP, b"333 what", Fault.CUT, Fault.HANG, Fault.DRIP, Fault.FLOOD)),
]
LIMITS = {"MAIL": "envelope_seconds", "RCPT": "envelope_seconds", "DATA": "envelope_seconds", "END": "answer_seconds"}
"""What ends a stage; what comes before belongs to connecting."""


@pytest.mark.usefixtures("tls_for_show")
@pytest.mark.parametrize(("stage", "answer", "whose"), TABLE)
def test_a_failure_is_the_recipients_or_everybodys_and_ends_in_time(
    stage: str, answer: bytes | Fault, whose: type[NotifyError]
) -> None:
    """Until 354 a message was surely not taken, after it only an answer tells. The connection is not used again."""
    waits = not isinstance(answer, bytes) and answer is not Fault.CUT
    limits: dict[str, Any] = {LIMITS.get(stage, "connect_seconds"): 0.2} if waits else {}
    with talk(offering(b"PLAIN") | {stage: answer}, **LOGIN, **limits) as (server, channel):
        with in_time(), pytest.raises(NotifyError) as caught:
            channel.send(MESSAGE)

        said = str(caught.value)
        assert type(caught.value) is whose
        assert "may have arrived" in said or whose is not UNKNOWN
        if isinstance(answer, bytes) and stage != "EHLO" and answer[:3] in (b"421", b"450", b"550", b"530"):
            assert answer.decode().replace("KARI.Nordmann@example.org", "<recipient>") in said
        if not waits:
            server.answers = offering(b"PLAIN")
            channel.send(MESSAGE)
            assert (server.connections, "QUIT" in server.commands) == (2, False)


def test_a_server_that_stops_reading_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be sent in time is thrown away: after the time-out no byte of it may follow."""
    big = (parse_address(MESSAGE.to), b"x" * 16_000_000)  # more than a socket takes while nobody reads
    monkeypatch.setattr(smtp, "compose", lambda *_, **__: big)
    with talk({"BODY": Fault.HANG}, answer_seconds=0.5) as (server, channel):
        with in_time(), pytest.raises(UNKNOWN):
            channel.send(MESSAGE)
        assert server.bodies == []


@pytest.mark.parametrize(
    ("stage", "answer", "taken", "connections"),
    [
        ("MAIL", GOOD_ANSWERS["MAIL"] + b"\r\n250 taken", 1, 2),
        ("RCPT", GOOD_ANSWERS["RCPT"] + b"\r\n421 4.4.2 timeout exceeded", 1, 2),
        ("DATA", GOOD_ANSWERS["DATA"] + b"\r\n552 5.3.4 too big", 1, 2),
        ("END", b"252 will do", 2, 1),
        ("END", b"250 taken\r\n250 and again", 2, 2),
    ],
)
def test_an_answer_too_many_ends_the_connection_and_any_2xx_to_the_message_is_success(
    stage: str, answer: bytes, taken: int, connections: int
) -> None:
    """All later answers would be taken for each other's: one of them could say that a refused message was accepted."""
    with talk({stage: answer}) as (server, channel):
        with nullcontext() if stage == "END" else pytest.raises(EVERYBODYS):
            channel.send(MESSAGE)
        server.answers = {}
        channel.send(MESSAGE)

        assert (len(server.bodies), server.connections) == (taken, connections)


@pytest.mark.parametrize(
    ("stage", "is_reached"),
    [
        ("GREETING", lambda server: server.connections),
        ("RCPT", lambda server: any(command.startswith("RCPT") for command in server.commands)),
        ("END", lambda server: server.bodies),
    ],
)
def test_a_cancelled_message_leaves_nothing_behind(stage: str, is_reached: Callable[[ScriptedServer], object]) -> None:
    """After the grace of a signal a wait is cancelled, wherever it is: no later answer is taken for the next one's."""

    async def cancel_one_and_send_another(server: ScriptedServer) -> None:
        channel = smtp_channel(server.port)
        sending = asyncio.create_task(channel.send(MESSAGE))
        await asyncio.to_thread(until, lambda: is_reached(server))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        server.answers = {}
        await channel.send(replace(MESSAGE, subject="Another"))
        await channel.close()

    with ScriptedServer({stage: Fault.HANG}) as server:
        asyncio.run(cancel_one_and_send_another(server))

        assert server.connections == 2
        assert [b"Subject: Another" in body for body in server.bodies] == [False] * (stage == "END") + [True]


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP, Fault.CUT])
def test_goodbye_ends_in_time_and_raises_nothing(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a night nothing may be held up any more. A look, too, closes its connection."""
    monkeypatch.setattr(smtp, "QUIT_SECONDS", 0.2)
    with talk({"QUIT": fault, "NOOP": b"250 yes"}) as (server, channel):
        with in_time():
            channel.probe()
            channel.send(MESSAGE)
            channel.close()
            channel.close()
        assert server.commands.count("QUIT") == 2


def test_it_greets_with_a_name_that_servers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own, if it is a full one (RFC 5321, 4.1.4)."""
    for name, greeting in (
        ("vm-1.hlf.example", "vm-1.hlf.example"),
        ("vm-1", "[127.0.0.1]"),
        ("vm_1.x", "[127.0.0.1]"),
    ):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        with talk() as (server, channel):
            channel.send(MESSAGE)
        assert server.commands[0] == f"EHLO {greeting}"


def test_a_name_lookup_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's lookup knows no limit; the phase does, and the end of the loop does not wait for it either."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(10) and [])
    channel = smtp_channel(25, host="mail.example", connect_seconds=0.2)

    with in_time(), pytest.raises(EVERYBODYS, match="did not answer in time"):
        run_alone(channel.send(MESSAGE))

    answered.set()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("mail.example", r"not known; check CERTJOB_NOTIFY_URL"),
        ("ø" * 70 + ".example", "idna"),
        (HOST, r"refused; check CERTJOB_NOTIFY_URL"),
    ],
)
def test_a_host_that_cannot_be_reached_is_everybodys(
    monkeypatch: pytest.MonkeyPatch, port_of_nobody: int, host: str, said: str
) -> None:
    """A typing mistake in the URL, no network, or nobody who listens."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if host == "mail.example":
        monkeypatch.setattr(socket, "getaddrinfo", unknown)

    with channel_to(port_of_nobody, host=host) as channel, pytest.raises(EVERYBODYS, match=said):
        channel.send(MESSAGE)


ECHO = "535 post / blåbær-9 / AHBvc3QAYmzDpWLDpnItOQ== / YmzDpWLDpnItOQ== is wrong".encode()
NOT_NOW = r"cannot take the login now \(4.. "


@pytest.mark.usefixtures("nothing_is_loopback", "tls_for_show")
@pytest.mark.parametrize(
    ("answers", "login", "said"),
    [
        ({}, {}, "offers no STARTTLS, without which certjob sends neither mail nor password"),
        ({"EHLO": b"250-test\r\n250 AUTH PLAIN LOGIN"}, LOGIN, "offers no STARTTLS"),
        (offering(b"", STARTTLS=b"454 no certificate"), {}, "cannot be used: it answered 454 no cert"),
        (offering(b"PLAIN", AUTH=b"454 directory is down"), LOGIN, NOT_NOW),
        (offering(b"PLAIN", AUTH=b"421 closing"), LOGIN, NOT_NOW),
        (offering(b"PLAIN", AUTH=ECHO), LOGIN, "535 <secret> / <secret> / <secret> / <secret> is wrong"),
        (offering(b"XOAUTH2"), LOGIN, "no login that certjob knows"),
    ],
    ids=["no TLS", "no TLS for a login", "no certificate", "not now", "closing", "echoed", "another mechanism"],
)
def test_a_server_without_tls_or_a_login_that_works_gets_nothing(answers: Answers, login: Any, said: str) -> None:
    """A cable in between may have cut the offer out. What a server repeats stays secret, its own trouble is its own."""
    with talk(answers, **login) as (server, channel):
        with pytest.raises(EVERYBODYS, match=said):
            channel.send(MESSAGE)

        heard = {command.partition(" ")[0] for command in server.commands}
        assert ("AUTH" in heard, "MAIL" in heard) == ("AUTH" in answers, False)


@pytest.mark.usefixtures("tls_for_show")
def test_tls_is_begun_even_on_this_machine_for_a_login_and_what_was_said_before_it_is_forgotten() -> None:
    """Plaintext that follows the answer to STARTTLS is somebody else's (RFC 3207)."""
    with talk(offering(b"PLAIN", STARTTLS=b"220 go on\r\n250-evil\r\n250 SMTPUTF8"), **LOGIN) as (server, channel):
        with pytest.raises(NEVER, match="beyond ASCII"):
            channel.send(replace(MESSAGE, to="pål@example.org"))

        assert [command.partition(" ")[0] for command in server.commands] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]


STARTTLS = {"tls_context": server_tls(), "auth_required": True}


@pytest.mark.usefixtures("nothing_is_loopback")
@pytest.mark.parametrize(
    ("options", "implicit_tls"),
    [
        (STARTTLS, False),
        (STARTTLS | {"auth_exclude_mechanism": ["PLAIN"]}, False),
        ({"ssl_context": server_tls(), "auth_require_tls": False}, True),
    ],
    ids=["PLAIN", "LOGIN", "from the first byte"],
)
def test_a_far_server_is_spoken_to_over_tls_that_is_trusted(options: dict[str, Any], *, implicit_tls: bool) -> None:
    """A login may have letters beyond ASCII; a refused one says what to correct, and nobody reads the password."""
    mailbox = Mailbox()
    with real_server(mailbox, authenticator=mailbox.authenticate, **options) as server:

        def send(**login: Any) -> None:
            with channel_to(server.port, implicit_tls=implicit_tls, **login) as channel:
                channel.send(MESSAGE)
                channel.send(MESSAGE)

        send(**LOGIN)
        with pytest.raises(EVERYBODYS, match="certificate is not trusted"):
            send()
        refused = r"refused the login \(535 .*correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD$"
        with pytest.raises(EVERYBODYS, match=refused) as caught:
            send(**(LOGIN | {"password": SecretStr("hemmelig-7")}))

    assert (len(mailbox.envelopes), mailbox.logins) == (2, [("post", "blåbær-9"), ("post", "hemmelig-7")])
    assert "hemmelig" not in str(caught.value)
