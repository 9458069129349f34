"""A message by SMTP arrives once, or an error says whose fault it is, in bounded time."""

import asyncio
import email
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from email.message import EmailMessage
from email.policy import default
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from aiosmtplib import SMTPResponse, SMTPResponseException
from aiosmtplib.protocol import SMTPProtocol
from pydantic import SecretStr

from certjob.domain.addresses import parse_address, parse_sender
from certjob.errors import (
    ChannelDownError,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
)
from certjob.mail.channels import smtp
from certjob.mail.channels.smtp import SmtpChannel
from certjob.outbox.loop import run_alone
from tests.support.channels import BlockingChannel, blocking
from tests.support.mails import MESSAGE
from tests.support.smtp_server import (
    GOOD_ANSWERS,
    HOST,
    Fault,
    Mailbox,
    RealServer,
    ScriptedServer,
    client_tls,
    real_server,
    scripted_server,
    server_tls,
)
from tests.support.waiting import until

PAAL = replace(MESSAGE, to="pål@example.org")
"""Somebody whose address only a server with SMTPUTF8 can take."""
LOGIN: dict[str, Any] = {"user": "post", "password": SecretStr("blåbær-9"), "tls": client_tls()}


def channel_to(port: int, *, host: str = HOST, **options: Any) -> AbstractContextManager[BlockingChannel]:
    """A channel whose limits end a test that hangs; a test of a limit gives its own."""
    limits = {"connect_seconds": 20.0, "envelope_seconds": 20.0, "answer_seconds": 30.0}
    sender = parse_sender("Hørsel, HLF <post@hlf.example>")
    return blocking(SmtpChannel(host, port=port, sender=sender, **(limits | options)))


def offering(mechanisms: bytes, **answers: bytes) -> dict[str, bytes | Fault]:
    return {"EHLO": b"250-test\r\n250-STARTTLS\r\n250 AUTH " + mechanisms, **answers}


@pytest.fixture
def mailbox() -> Mailbox:
    """What the real server takes."""
    return Mailbox()


@pytest.fixture
def server(mailbox: Mailbox) -> Iterator[RealServer]:
    """A real server without TLS."""
    with real_server(mailbox) as server:
        yield server


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


def parsed(envelope: Any) -> EmailMessage:
    message = email.message_from_bytes(envelope.content, policy=default)
    assert isinstance(message, EmailMessage)
    return message


# What arrives


def test_a_message_arrives_whole(server: RealServer, mailbox: Mailbox) -> None:
    """Headers as the design wants them, and both parts unchanged, lines with a dot included."""
    with channel_to(server.port) as channel:
        channel.send(MESSAGE)

    (envelope,) = mailbox.envelopes
    received = parsed(envelope)
    assert (envelope.mail_from, envelope.rcpt_tos) == ("post@hlf.example", ["kari.nordmann@example.org"])
    assert received["From"] == '"Hørsel, HLF" <post@hlf.example>'
    assert received["To"] == "kari.nordmann@example.org"
    assert received["Subject"] == MESSAGE.subject
    assert received["Message-ID"] == "<certjob-reminder-4711-0@hlf.example>"
    assert received["Auto-Submitted"] == "auto-generated"
    assert abs(parsedate_to_datetime(received["Date"]).timestamp() - time.time()) < 60
    assert received.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in received.iter_parts()] == ["text/plain", "text/html"]
    assert [part.get_content().replace("\r\n", "\n") for part in received.iter_parts()] == [MESSAGE.text, MESSAGE.html]


def test_a_line_end_of_its_own_cannot_smuggle_a_second_message(server: RealServer, mailbox: Mailbox) -> None:
    """A dot between bare line ends is text, not the end of the message (SMTP smuggling)."""
    smuggled = "Hei\n.\nMAIL FROM:<x@example.org>\r.\rRCPT TO:<y@example.org>\r\n.\r\nDATA\n"

    with channel_to(server.port) as channel:
        channel.send(replace(MESSAGE, text=smuggled))

    (envelope,) = mailbox.envelopes
    assert b"\n" not in envelope.content.replace(b"\r\n", b"")
    text, _ = parsed(envelope).iter_parts()
    assert text.get_content().splitlines() == smuggled.splitlines()


def test_a_connection_is_kept_and_renewed(server: RealServer, mailbox: Mailbox) -> None:
    """Two messages per connection: three connections for five."""
    with channel_to(server.port, messages_per_connection=2) as channel:
        for _ in range(5):
            channel.send(MESSAGE)

    sessions = [id(session) for session in mailbox.sessions]
    assert [sessions.count(session) for session in dict.fromkeys(sessions)] == [2, 2, 1]


def test_addresses_beyond_ascii_go_out_as_dns_and_the_server_know_them(server: RealServer, mailbox: Mailbox) -> None:
    """The part after the @ needs nothing of the server; the part before it needs SMTPUTF8 (RFC 6531)."""
    with channel_to(server.port) as channel:
        for to in ("kari@blåbær.example", "pål@example.org", MESSAGE.to):
            channel.send(replace(MESSAGE, to=to))

    assert [(envelope.rcpt_tos[0], envelope.smtp_utf8) for envelope in mailbox.envelopes] == [
        ("kari@xn--blbr-roah.example", False),
        ("pål@example.org", True),
        (MESSAGE.to, False),
    ]


@pytest.mark.parametrize(
    ("answers", "said"),
    [({}, "beyond ASCII"), ({"EHLO": b"250-test\r\n250 SMTPUTF8", "MAIL": b"550 5.6.7 not these"}, r"5\.6\.7")],
)
def test_letters_that_a_server_cannot_pass_on_are_the_recipients_trouble(answers: dict[str, bytes], said: str) -> None:
    """Everybody else's mail goes on."""
    with scripted_server(answers) as server, channel_to(server.port) as channel:
        with pytest.raises(RecipientRefusedError, match=said):
            channel.send(PAAL)
        server.answers.clear()
        channel.send(MESSAGE)

        assert len(server.bodies) == 1


def test_a_message_that_cannot_be_built_is_refused() -> None:
    """A bad row, not a crash; no server is asked, and the text repeats nothing of it."""
    broken = (
        {"to": "Kari <kari@example.org>"},
        {"to": "kari@example.org\r\nBcc: ola@example.org"},
        {"subject": "Hei\r\nBcc: ola@example.org"},
        {"text": "\udc80"},
    )
    with scripted_server() as server, channel_to(server.port) as channel:
        for fields in broken:
            with pytest.raises(RecipientRefusedError) as caught:
                channel.send(replace(MESSAGE, **fields))  # type: ignore[arg-type]
            assert "example" not in str(caught.value)

        assert server.connections == 0


# Whose fault it is, stage by stage

EVERYBODYS, LATER, NEVER, UNKNOWN = ChannelDownError, RecipientDeferredError, RecipientRefusedError, OutcomeUnknownError
BEFORE_THE_RECIPIENT = ("GREETING", "EHLO", "STARTTLS", "AUTH", "MAIL")
BEFORE_354 = (*BEFORE_THE_RECIPIENT, "RCPT", "DATA")
NO_SMTP = b"HTTP/1.1 400 Bad Request"

TABLE = [
    *((stage, answer, EVERYBODYS) for stage in BEFORE_THE_RECIPIENT for answer in (b"450 no", b"550 no")),
    *((stage, answer, EVERYBODYS) for stage in ("RCPT", "DATA", "END") for answer in (b"421 closing", b"530 log in")),
    *((stage, b"450 not now", LATER) for stage in ("RCPT", "DATA", "END")),
    *((stage, b"550 never", NEVER) for stage in ("RCPT", "DATA", "END")),
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
    limits: dict[str, Any] = (
        {} if isinstance(answer, bytes) or answer is Fault.CUT else {LIMITS.get(stage, "connect_seconds"): 0.2}
    )
    with (
        scripted_server(offering(b"PLAIN") | {stage: answer}) as server,
        channel_to(server.port, **LOGIN, **limits) as channel,
    ):
        began = time.monotonic()
        with pytest.raises(NotifyError) as caught:
            channel.send(MESSAGE)
        assert time.monotonic() - began < 5

        assert type(caught.value) is whose
        assert "may have arrived" in str(caught.value) or whose is not UNKNOWN
        if isinstance(answer, bytes) and stage != "EHLO" and answer[:3] in (b"421", b"450", b"550", b"530"):
            assert answer.decode() in str(caught.value)
        server.answers = offering(b"PLAIN")
        if not limits:
            channel.send(MESSAGE)
            assert (server.connections, "QUIT" in server.commands) == (2, False)


def test_a_server_that_stops_reading_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be sent in time is thrown away: after the time-out no byte of it may follow."""
    big = (parse_address(MESSAGE.to), b"x" * 16_000_000)  # more than a socket takes while nobody reads
    monkeypatch.setattr(smtp, "compose", lambda *_, **__: big)
    with scripted_server({"BODY": Fault.HANG}) as server, channel_to(server.port, answer_seconds=0.5) as channel:
        began = time.monotonic()
        with pytest.raises(OutcomeUnknownError):
            channel.send(MESSAGE)

        assert time.monotonic() - began < 5
    assert server.bodies == []


@pytest.mark.parametrize(
    ("stage", "surplus"),
    [("MAIL", b"250 taken"), ("RCPT", b"421 4.4.2 timeout exceeded"), ("DATA", b"552 5.3.4 too big")],
)
def test_an_answer_too_many_ends_the_connection_before_the_message(stage: str, surplus: bytes) -> None:
    """All later answers would be taken for each other's: one of them could say that a refused message was accepted."""
    good = GOOD_ANSWERS[stage] + b"\r\n" + surplus
    with scripted_server({stage: good}) as server, channel_to(server.port) as channel:
        with pytest.raises(ChannelDownError):
            channel.send(MESSAGE)
        server.answers.clear()
        channel.send(MESSAGE)

        assert (len(server.bodies), server.connections) == (1, 2)


@pytest.mark.parametrize(("answer", "connections"), [(b"252 will do", 1), (b"250 taken\r\n250 and again", 2)])
def test_any_2xx_to_the_message_is_success_and_a_second_one_is_not_heard(answer: bytes, connections: int) -> None:
    with scripted_server({"END": answer}) as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)
        channel.send(MESSAGE)

        assert (len(server.bodies), server.connections) == (2, connections)


def test_a_kept_connection_that_died_is_replaced() -> None:
    """A server that hung up between two messages costs at most one try and no message."""
    with scripted_server() as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)
        server.answers["MAIL"] = Fault.CUT
        with pytest.raises(ChannelDownError):
            channel.send(MESSAGE)
        server.answers.clear()
        channel.send(MESSAGE)

        assert len(server.bodies) == 2


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
        channel = SmtpChannel(HOST, port=server.port, sender=parse_sender("post@hlf.example"))
        sending = asyncio.create_task(channel.send(MESSAGE))
        await asyncio.to_thread(until, lambda: is_reached(server))
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        server.answers.clear()
        await channel.send(replace(MESSAGE, subject="Another"))
        await channel.close()

    with scripted_server({stage: Fault.HANG}) as server:
        asyncio.run(cancel_one_and_send_another(server))

        assert server.connections == 2
        assert b"Subject: Another" in server.bodies[-1]
        assert len(server.bodies) == (2 if stage == "END" else 1)


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP, Fault.CUT])
def test_goodbye_ends_in_time_and_raises_nothing(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Closing is for the end of a night, when nothing may be held up any more."""
    monkeypatch.setattr(smtp, "QUIT_SECONDS", 0.2)
    with scripted_server({"QUIT": fault}) as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)

        began = time.monotonic()
        channel.close()
        channel.close()

        assert time.monotonic() - began < 5
        assert server.commands.count("QUIT") == 1


def test_no_error_names_the_recipient_or_runs_over_its_line() -> None:
    """Servers echo addresses, and may say pages; logs and the database must not hold them."""
    echoes = (
        b"550 5.1.1 <kari.nordmann@example.org>: Recipient address rejected",
        b"550-5.1.1 KARI.NORDMANN@example.org\r\n550 5.1.1 is unknown",
        b"550 no mailbox here for Kari.Nordmann",
        b"550 see https://mail.example/why?rcpt=kari.nordmann%40example.org",
        b"550 <bounce+kari.nordmann=example.org@hlf.example> refused",
        b"550 forwarded to knordmann@work.example and refused",
        b"550-" + b"very " * 500 + b"\r\n550 \x1b[31mno\x00\xff",
    )
    with scripted_server() as server, channel_to(server.port) as channel:
        for echo in echoes:
            server.answers["RCPT"] = echo
            with pytest.raises(RecipientRefusedError, match="550") as caught:
                channel.send(MESSAGE)
            assert "nordmann" not in str(caught.value).lower()
            assert str(caught.value).isprintable()
            assert len(str(caught.value)) < 400


# The way to the server


@pytest.mark.parametrize(
    ("name", "greeting"),
    [("vm-1.hlf.example", "vm-1.hlf.example"), ("vm-1", "[127.0.0.1]"), ("vm_1.example", "[127.0.0.1]")],
)
def test_it_greets_with_a_name_that_servers_take(monkeypatch: pytest.MonkeyPatch, name: str, greeting: str) -> None:
    """This machine's own, if it is a full one (RFC 5321, 4.1.4)."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    with scripted_server() as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)

    assert server.commands[0] == f"EHLO {greeting}"


def test_a_name_lookup_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's lookup knows no limit; the phase does, and the end of the loop does not wait for it either."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(10) and [])
    channel = SmtpChannel("mail.example", port=25, sender=parse_sender("post@hlf.example"), connect_seconds=0.2)

    began = time.monotonic()
    with pytest.raises(ChannelDownError, match="did not answer in time"):
        run_alone(channel.send(MESSAGE))

    assert time.monotonic() - began < 5
    answered.set()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("mail.example", r"not known; check CERTJOB_NOTIFY_URL"),
        ("ø" * 70 + ".example", "the name is malformed"),
        (HOST, r"refused; check CERTJOB_NOTIFY_URL"),
    ],
)
def test_a_host_that_cannot_be_reached_is_everybodys(monkeypatch: pytest.MonkeyPatch, host: str, said: str) -> None:
    """A typing mistake in the URL, no network, or nobody who listens."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if host == "mail.example":
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]

    with channel_to(port, host=host) as channel, pytest.raises(ChannelDownError, match=said):
        channel.send(MESSAGE)


# TLS and login


@pytest.mark.usefixtures("nothing_is_loopback")
@pytest.mark.parametrize(
    ("answers", "said"),
    [({}, "offers no STARTTLS"), (offering(b"", STARTTLS=b"454 no certificate"), r"refused STARTTLS \(454 no cert")],
)
def test_a_far_server_without_tls_gets_nothing(answers: dict[str, bytes | Fault], said: str) -> None:
    """A cable in between may have cut the offer out."""
    with scripted_server(answers) as server, channel_to(server.port) as channel:
        with pytest.raises(ChannelDownError, match=said):
            channel.send(MESSAGE)

        assert not any(command.startswith("MAIL") for command in server.commands)


@pytest.mark.usefixtures("nothing_is_loopback")
def test_a_far_server_is_spoken_to_over_tls(mailbox: Mailbox) -> None:
    """By STARTTLS, or from the first byte; with a certificate that is trusted, which there is no way not to check."""
    for implicit_tls, options in (
        (False, {"tls_context": server_tls(), "require_starttls": True}),
        (True, {"ssl_context": server_tls()}),
    ):
        with real_server(mailbox, **options) as server:
            with channel_to(server.port, implicit_tls=implicit_tls, tls=client_tls()) as channel:
                channel.send(MESSAGE)
            with (
                channel_to(server.port, implicit_tls=implicit_tls) as channel,
                pytest.raises(ChannelDownError, match="certificate is not trusted"),
            ):
                channel.send(MESSAGE)

    assert mailbox.sessions[0].ssl is not None
    assert len(mailbox.envelopes) == 2


@pytest.mark.usefixtures("nothing_is_loopback")
@pytest.mark.parametrize(("answers", "implicit_tls"), [({"GREETING": Fault.HANG}, True), (offering(b""), False)])
def test_a_handshake_ends_in_time(answers: dict[str, bytes | Fault], *, implicit_tls: bool) -> None:
    """A server that never answers it."""
    with (
        scripted_server(answers) as server,
        channel_to(server.port, connect_seconds=0.2, implicit_tls=implicit_tls, tls=client_tls()) as channel,
    ):
        server.answers["STARTTLS"] = b"220 go on"
        began = time.monotonic()
        with pytest.raises(ChannelDownError):
            channel.send(MESSAGE)

        assert time.monotonic() - began < 5


@pytest.mark.usefixtures("nothing_is_loopback", "tls_for_show")
def test_what_was_said_before_tls_is_forgotten() -> None:
    """Plaintext that follows the answer to STARTTLS is somebody else's (RFC 3207)."""
    answers = {"EHLO": b"250-test\r\n250 STARTTLS", "STARTTLS": b"220 go on\r\n250-evil\r\n250 SMTPUTF8"}
    with scripted_server(answers) as server, channel_to(server.port) as channel:
        with pytest.raises(RecipientRefusedError, match="beyond ASCII"):
            channel.send(PAAL)

        assert len([command for command in server.commands if command.startswith("EHLO")]) == 2


@pytest.mark.parametrize("without", [[], ["PLAIN"]])
def test_a_login_works_with_letters_beyond_ascii(mailbox: Mailbox, without: list[str]) -> None:
    """By PLAIN, or LOGIN where that is all there is, over STARTTLS even on this machine."""
    options = {
        "tls_context": server_tls(),
        "authenticator": mailbox.authenticate,
        "auth_required": True,
        "auth_exclude_mechanism": without,
    }
    with real_server(mailbox, **options) as server, channel_to(server.port, **LOGIN) as channel:
        channel.send(MESSAGE)
        channel.send(MESSAGE)

    assert mailbox.logins == [("post", "blåbær-9")]
    assert len(mailbox.envelopes) == 2


def test_a_refused_login_says_what_to_correct(mailbox: Mailbox) -> None:
    """The operator reads the code and the two settings, and nobody reads the password."""
    with (
        real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server,
        channel_to(server.port, **(LOGIN | {"password": SecretStr("hemmelig-7")})) as channel,
        pytest.raises(ChannelDownError) as caught,
    ):
        channel.send(MESSAGE)

    assert str(caught.value).startswith("the mail server refused the login (535 ")
    assert str(caught.value).endswith("correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD")
    assert len(mailbox.logins) == 1
    assert "hemmelig" not in str(caught.value)


ECHO = "535 post / blåbær-9 / AHBvc3QAYmzDpWLDpnItOQ== / YmzDpWLDpnItOQ== is wrong".encode()


@pytest.mark.usefixtures("tls_for_show")
@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (offering(b"PLAIN", AUTH=b"454 directory is down"), r"cannot take the login now \(454 directory is down\)"),
        (offering(b"PLAIN", AUTH=b"421 closing"), r"cannot take the login now \(421 closing\)"),
        (offering(b"PLAIN", AUTH=ECHO), "535 <secret> / <secret> / <secret> / <secret> is wrong"),
        (offering(b"XOAUTH2"), "no login that certjob knows"),
        ({"EHLO": b"250-test\r\n250 AUTH PLAIN LOGIN"}, "never logs in without TLS"),
    ],
    ids=["not now", "closing", "echoed", "another mechanism", "without TLS"],
)
def test_a_login_that_does_not_work_is_everybodys(answers: dict[str, bytes | Fault], said: str) -> None:
    """A server's own trouble blames no password; what it repeats stays secret; nothing travels without TLS."""
    with scripted_server(answers) as server, channel_to(server.port, **LOGIN) as channel:
        with pytest.raises(ChannelDownError, match=said):
            channel.send(MESSAGE)

        assert any(command.startswith("AUTH") for command in server.commands) == ("AUTH" in answers)
