"""SMTP: a message arrives once, or an error tells in time whether it concerns this message or all."""

import email
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from email.policy import default
from typing import Any

import pytest
from pydantic import SecretStr

from certjob.errors import (
    Cause,
    ChannelDownError,
    MailRejectedError,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRejectedError,
)
from certjob.mail.channels import smtp
from certjob.mail.channels.server_text import Subject
from tests.mail.channels import smtp_channel
from tests.mail.written import MESSAGE
from tests.support.blocking import Blocking
from tests.support.smtp_server import HOST, Mailbox, ScriptedServer, ServerFault, client_tls, real_server, server_tls
from tests.support.waiting import until

LOGIN: dict[str, Any] = {"user": "post", "password": SecretStr("blåbær-9"), "tls": client_tls()}

Answers = dict[str, bytes | ServerFault]
"""Answers of a scripted server by stage of the session."""


def channel_to(port: int, **options: Any) -> Blocking:
    """Return a channel with timeouts that end a hanging test."""
    return Blocking(
        smtp_channel(port, **{"connect_seconds": 20, "envelope_seconds": 20, "answer_seconds": 30} | options)
    )


@contextmanager
def talk(answers: Answers | None = None, **options: Any) -> Iterator[tuple[ScriptedServer, Blocking]]:
    with ScriptedServer(answers) as server, channel_to(server.port, **options) as channel:
        yield server, channel


def offering(mechanisms: bytes, **answers: bytes) -> Answers:
    """Return the answers of a server with STARTTLS and these login mechanisms."""
    return {"EHLO": b"250-test\r\n250-STARTTLS\r\n250 AUTH " + mechanisms, **answers}


@contextmanager
def in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 5


@pytest.fixture
def nothing_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat this machine as a remote server."""
    monkeypatch.setattr(smtp, "LOOPBACK_HOSTS", frozenset())


def test_messages_arrive_whole_and_the_connection_is_renewed() -> None:
    """Each carries two here. Bare line ends do not begin another message. ``pål@`` needs SMTPUTF8 (RFC 6531)."""
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


NOT_THESE: Answers = {"EHLO": b"250-test\r\n250 SMTPUTF8", "MAIL": b"550 5.6.7 not these"}


@pytest.mark.parametrize(
    ("answers", "fields", "said"),
    [
        ({}, {"to": "pål@example.org"}, "non-ASCII"),
        (NOT_THESE, {"to": "pål@example.org"}, r"550 5\.6\.7 not these"),
        ({}, {"to": "kari@example.org,ola@example.org"}, "is not an address"),
        ({}, {"subject": "Hei\r\nBcc: ola@example.org"}, "cannot be written"),
        ({}, {"text": "\udc80"}, "cannot be written"),
    ],
    ids=["no SMTPUTF8", "server rejects letters", "two addresses", "line end in a header", "half a character"],
)
def test_message_that_cannot_be_written_concerns_only_itself(
    answers: Answers, fields: dict[str, Any], said: str
) -> None:
    """The error does not repeat the address, and the next message is sent."""
    with talk(answers) as (server, channel):
        with pytest.raises(RecipientRejectedError, match=said) as caught:
            channel.send(replace(MESSAGE, **fields))
        server.answers = {}
        channel.send(MESSAGE)

        assert "example" not in str(caught.value)
        assert len(server.bodies) == 1


NO_SMTP = b"HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize(
    ("stage", "answer", "expected"),
    [
        ("GREETING", b"550 no", ChannelDownError),
        ("GREETING", ServerFault.CUT, ChannelDownError),
        ("MAIL", b"550 no", ChannelDownError),
        *((stage, b"421 closing", ChannelDownError) for stage in ("RCPT", "DATA", "END")),
        *((stage, b"450 not now", RecipientDeferredError) for stage in ("RCPT", "DATA", "END")),
        *((stage, b"550 no KARI.Nordmann@example.org", MailRejectedError) for stage in ("RCPT", "DATA", "END")),
        ("RCPT", b"530 log in", ChannelDownError),
        ("RCPT", NO_SMTP, ChannelDownError),
        ("DATA", ServerFault.CUT, ChannelDownError),
        ("BODY", ServerFault.CUT, OutcomeUnknownError),
        ("END", ServerFault.CUT, OutcomeUnknownError),
        ("END", NO_SMTP, OutcomeUnknownError),
        ("END", b"333 what", OutcomeUnknownError),
    ],
)
def test_failure_concerns_one_message_or_all(
    stage: str, answer: bytes | ServerFault, expected: type[Exception]
) -> None:
    """Before 354 no message was accepted; after it only an answer is certain. The connection is not used again."""
    with talk({stage: answer}) as (server, channel):
        with pytest.raises(expected) as caught:
            channel.send(MESSAGE)
        server.answers = {}
        channel.send(MESSAGE)

        said = str(caught.value)
        assert type(caught.value) is expected
        assert ("may have arrived" in said) == (expected is OutcomeUnknownError)
        assert ("550 no <recipient>" in said) == (expected is MailRejectedError)
        assert (server.connections, "QUIT" in server.commands) == (2, False)


@pytest.mark.parametrize("stage", ["RCPT", "DATA", "END"])
@pytest.mark.parametrize(
    ("subject", "answer"),
    [
        # RFC 3463, 3.2 and 3.3, with the words of Postfix, Google, Exchange Online, Yahoo and Barracuda
        (Subject.ADDRESS, b"550 5.1.1 <kari@example.org>: Recipient address rejected: User unknown"),
        (Subject.ADDRESS, b"550-5.1.1 The email account that you tried to reach does not exist.\r\n550 5.1.1 Try"),
        (Subject.ADDRESS, b"550 cuda_nsu 5.1.1 <kari@example.org> Recipient address rejected: User unknown"),
        (Subject.ADDRESS, b"550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup"),
        (Subject.ADDRESS, b"556 5.1.10 Recipient address has a null MX"),  # RFC 7505
        (Subject.ADDRESS, b"550 5.2.1 The email account that you tried to reach is inactive."),
        *((Subject.ADDRESS, f"550 5.{code} no".encode()) for code in ("1.0", "1.2", "1.3", "1.4", "1.5", "1.6", "2.0")),
        (Subject.ADDRESS, b"550 5.6.7 non-ASCII addresses not permitted for that recipient"),  # RFC 6531
        (Subject.ADDRESS, b"550 5.1.1 no such user, ask 5.2.2.1 or 5.7.1"),
        (Subject.FULL_MAILBOX, b"552 5.2.2 mailbox full"),
        (Subject.FULL_MAILBOX, b"552-5.2.2 The recipient's inbox is out of storage space\r\n552 5.2.2 Please"),
        (Subject.FULL_MAILBOX, b"552 storage allocation exceeded"),  # RFC 5321, 4.2.2
        (Subject.UNCLEAR, b"550 Unrouteable address"),  # Exim
        (Subject.UNCLEAR, b"550 relay not permitted"),  # Exim
        (Subject.UNCLEAR, b"550 No such user (kari@example.org)"),
        (Subject.UNCLEAR, b"551 User not local"),
        (Subject.UNCLEAR, b"553 mailbox name not allowed, see 5.1"),
        (Subject.UNCLEAR, b"550 5.0.0 no"),
        *((Subject.SERVER, f"550 5.{code} no".encode()) for code in ("1.7", "1.8", "1.9", "2.3", "2.4", "3.0", "5.0")),
        (Subject.SERVER, b"550 5.4.1 Recipient address rejected: Access denied. [AM4.eurprd05.prod.outlook.com]"),
        (Subject.SERVER, b"550 5.7.1 Service unavailable, client host [192.0.2.1] blocked using Spamhaus"),
        (Subject.SERVER, b"550-5.7.26 Your email has been blocked because the sender is\r\n550 5.7.26 -"),
        (Subject.SERVER, b"554 5.7.1 <kari@example.org>: Relay access denied"),  # Postfix
        (Subject.SERVER, b"552 5.3.4 message too big"),
        (Subject.SERVER, b"554 delivery error: This user doesn't have a yahoo.com account"),
        (Subject.SERVER, b"501 malformed"),
    ],
    ids=str,
)
def test_only_a_rejection_of_the_address_fails_a_mail(stage: str, subject: Subject, answer: bytes) -> None:
    """A full mailbox is not a wrong address, and everything else may be the server's fault."""
    expected = {Subject.ADDRESS: RecipientRejectedError, Subject.FULL_MAILBOX: RecipientDeferredError}
    with talk({stage: answer}) as (_, channel), pytest.raises(NotifyError) as caught:
        channel.send(MESSAGE)

    assert type(caught.value) is expected.get(subject, MailRejectedError)
    assert getattr(caught.value, "may_be_address", None) in (None, subject is Subject.UNCLEAR)
    assert (caught.value.code is Cause.WRONG_ADDRESS) == (subject is Subject.ADDRESS)


@pytest.mark.parametrize(
    ("stage", "fault", "timeout", "expected"),
    [
        ("GREETING", ServerFault.HANG, "connect_seconds", ChannelDownError),
        ("EHLO", ServerFault.DRIP, "connect_seconds", ChannelDownError),
        ("RCPT", ServerFault.DRIP, "envelope_seconds", ChannelDownError),
        ("DATA", ServerFault.HANG, "envelope_seconds", ChannelDownError),
        ("END", ServerFault.HANG, "answer_seconds", OutcomeUnknownError),
        ("END", ServerFault.FLOOD, "answer_seconds", OutcomeUnknownError),
    ],
)
def test_slow_server_ends_the_attempt_in_time(
    stage: str, fault: ServerFault, timeout: str, expected: type[Exception]
) -> None:
    """Each part of a session has its own timeout, also for a server that sends single bytes or never stops."""
    with talk({stage: fault}, **{timeout: 0.2}) as (_, channel), in_time(), pytest.raises(expected):
        channel.send(MESSAGE)


@pytest.mark.parametrize(
    ("stage", "answer", "taken", "connections"),
    [
        ("MAIL", b"250 fine\r\n250 taken", 1, 2),
        ("END", b"250 taken\r\n250 and again", 2, 2),
        ("END", b"250 taken\r\n421 idle for too long", 2, 2),
        ("END", b"252 will do", 2, 1),
    ],
    ids=["two answers to MAIL", "two answers to the message", "a late 421", "one answer"],
)
def test_connection_ends_after_a_second_answer(stage: str, answer: bytes, taken: int, connections: int) -> None:
    """The next command would get the answer to this one. Any 2xx to the message is a success."""
    with talk({stage: answer}) as (server, channel):
        with nullcontext() if stage == "END" else pytest.raises(ChannelDownError):
            channel.send(MESSAGE)
        server.answers = {}
        channel.send(MESSAGE)

        assert (len(server.bodies), server.connections) == (taken, connections)


def test_server_that_has_hung_up_gets_the_next_message_over_a_new_connection() -> None:
    """certjob notices it at the next command. The message was not accepted before, so this is safe."""

    class HangsUp(ScriptedServer):
        def answer(self, stage: str) -> bytes | ServerFault | None:
            return (
                ServerFault.CUT
                if stage == "MAIL" and len(self.bodies) == 1 == self.connections
                else super().answer(stage)
            )

    with HangsUp() as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)
        channel.send(MESSAGE)

    assert (len(server.bodies), server.connections) == (2, 2)


@pytest.mark.parametrize("last", [b"250 taken", b"250 taken\r\n421 goodbye"], ids=["silently", "with a 421"])
def test_server_that_hangs_up_after_each_message_gets_all_messages(last: bytes) -> None:
    """The client knows of the end of the connection before the next command."""
    with talk({"END": last}) as (server, channel):
        server.hangs_up = True
        for _ in range(3):
            channel.send(MESSAGE)
            until(lambda: server.closed == server.connections)

    assert (len(server.bodies), server.connections) == (3, 3)


def test_close_ends_in_time_and_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe closes its connection, too."""
    monkeypatch.setattr(smtp, "QUIT_SECONDS", 0.2)
    with talk({"QUIT": ServerFault.HANG, "NOOP": b"250 yes"}) as (server, channel):
        with in_time():
            channel.probe()
            channel.send(MESSAGE)
            channel.close()
            channel.close()
        assert server.commands.count("QUIT") == 2


@pytest.mark.parametrize(
    ("name", "greeting"),
    [("vm-1.x.example", "EHLO vm-1.x.example"), ("vm-1", "EHLO [127.0.0.1]"), ("vm_1.x", "EHLO [127.0.0.1]")],
)
def test_client_greets_with_a_full_name(monkeypatch: pytest.MonkeyPatch, name: str, greeting: str) -> None:
    """Without one it greets with its address (RFC 5321, 4.1.4)."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    with talk() as (server, channel):
        channel.send(MESSAGE)
    assert server.commands[0] == greeting


@pytest.mark.parametrize(("host", "said"), [(HOST, "refused; check CERTJOB_NOTIFY_URL"), ("ø" * 70, "idna")])
def test_unreachable_server_concerns_all_messages(port_of_nobody: int, host: str, said: str) -> None:
    """A closed port, or a name that DNS cannot have."""
    with channel_to(port_of_nobody, host=host) as channel, pytest.raises(ChannelDownError, match=said):
        channel.send(MESSAGE)


ECHO = "535 post / blåbær-9 / AHBvc3QAYmzDpWLDpnItOQ== / YmzDpWLDpnItOQ== is wrong".encode()


@pytest.mark.usefixtures("nothing_is_loopback")
@pytest.mark.parametrize(
    ("answers", "login", "said"),
    [
        ({}, {}, "offers no STARTTLS, without which certjob sends neither mail nor password"),
        (offering(b"", STARTTLS=b"454 no certificate"), {}, "cannot be used: it answered 454 no cert"),
        (offering(b"PLAIN", AUTH=b"454 directory is down"), LOGIN, r"cannot take the login now \(454 "),
        (offering(b"PLAIN", AUTH=ECHO), LOGIN, "535 <secret> / <secret> / <secret> / <secret> is wrong"),
        (offering(b"XOAUTH2"), LOGIN, "no login that certjob knows"),
    ],
    ids=["no TLS", "no certificate", "not now", "echoed", "other mechanism"],
)
def test_nothing_is_sent_without_tls_or_with_a_failed_login(answers: Answers, login: Any, said: str) -> None:
    """The error does not contain a password that the server repeats."""
    with ScriptedServer(answers) as server, channel_to(server.port, **login) as channel:
        with pytest.raises(ChannelDownError, match=said):
            channel.send(MESSAGE)

        heard = {command.partition(" ")[0] for command in server.commands}
        assert ("AUTH" in heard, "MAIL" in heard) == ("AUTH" in answers, False)


STARTTLS = {"tls_context": server_tls(), "auth_required": True}


@pytest.mark.usefixtures("nothing_is_loopback")
@pytest.mark.parametrize(
    ("options", "implicit_tls"),
    [
        (STARTTLS, False),
        (STARTTLS | {"auth_exclude_mechanism": ["PLAIN"]}, False),
        ({"ssl_context": server_tls(), "auth_require_tls": False}, True),
    ],
    ids=["STARTTLS and PLAIN", "STARTTLS and LOGIN", "implicit TLS"],
)
def test_remote_server_needs_a_trusted_certificate_and_takes_a_login(
    options: dict[str, Any], *, implicit_tls: bool
) -> None:
    """A password may have any letters. The error after a rejected login names the settings, but not the password."""
    mailbox = Mailbox()
    with real_server(mailbox, authenticator=mailbox.authenticate, **options) as server:

        def send(**login: Any) -> None:
            with channel_to(server.port, implicit_tls=implicit_tls, **login) as channel:
                channel.send(MESSAGE)
                channel.send(MESSAGE)

        send(**LOGIN)
        with pytest.raises(ChannelDownError, match="certificate is not trusted"):
            send()
        rejected = r"rejected the login \(535 .*correct CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD$"
        with pytest.raises(ChannelDownError, match=rejected) as caught:
            send(**(LOGIN | {"password": SecretStr("hemmelig-7")}))

    assert (len(mailbox.envelopes), mailbox.logins) == (2, [("post", "blåbær-9"), ("post", "hemmelig-7")])
    assert "hemmelig" not in str(caught.value)
