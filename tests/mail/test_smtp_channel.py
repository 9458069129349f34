"""A message by SMTP arrives once, or an error says whose fault it is, in bounded time."""

import asyncio
import email
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from email.message import EmailMessage
from email.policy import default
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
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
from certjob.mail.channels.smtp import SmtpChannel, tls_is_required
from certjob.outbox.loop import run_alone
from tests.support.channels import BlockingChannel, blocking
from tests.support.mails import MESSAGE
from tests.support.smtp_outcomes import show_tls
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


def channel_to(port: int, *, host: str = HOST, **options: Any) -> AbstractContextManager[BlockingChannel]:
    """A channel whose limits end a test that hangs; a test of a limit gives its own."""
    limits = {"connect_seconds": 20.0, "envelope_seconds": 20.0, "answer_seconds": 30.0}
    sender = parse_sender("Hørsel, HLF <post@hlf.example>")
    return blocking(SmtpChannel(host, port=port, sender=sender, **(limits | options)))


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
    """STARTTLS without encryption, so that a scripted server can go on talking."""
    show_tls(monkeypatch)


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


def test_the_wire_holds_plain_ascii_lines(server: RealServer, mailbox: Mailbox) -> None:
    """No 8-bit byte and no line longer than RFC 5322 allows, whatever the message holds."""
    with channel_to(server.port) as channel:
        channel.send(replace(MESSAGE, text="å" * 5000, subject="Påminnelse " * 40, idempotency_key="k" * 150))

    (envelope,) = mailbox.envelopes
    assert envelope.content.isascii()
    assert max(len(line) for line in envelope.content.split(b"\r\n")) <= 998
    assert b"\n" not in envelope.content.replace(b"\r\n", b"")
    assert parsed(envelope)["Message-ID"] == f"<certjob-{'k' * 150}@hlf.example>"


def test_a_line_end_of_its_own_cannot_smuggle_a_second_message(server: RealServer, mailbox: Mailbox) -> None:
    """A dot between bare line ends is text, not the end of the message (SMTP smuggling)."""
    smuggled = "Hei\n.\nMAIL FROM:<x@example.org>\r.\rRCPT TO:<y@example.org>\r\n.\r\nDATA\n"

    with channel_to(server.port) as channel:
        channel.send(replace(MESSAGE, text=smuggled))

    assert len(mailbox.envelopes) == 1
    text, _ = parsed(mailbox.envelopes[0]).iter_parts()
    assert text.get_content().splitlines() == smuggled.splitlines()


def test_a_connection_is_kept_and_renewed(server: RealServer, mailbox: Mailbox) -> None:
    """Two messages per connection: three connections for five."""
    with channel_to(server.port, messages_per_connection=2) as channel:
        for _ in range(5):
            channel.send(MESSAGE)

    sessions = [id(session) for session in mailbox.sessions]
    assert [sessions.count(session) for session in dict.fromkeys(sessions)] == [2, 2, 1]


def test_the_limit_for_one_message_is_well_within_the_lease_of_mail() -> None:
    """A minute to say goodbye and connect, one for the envelope, and the ten that RFC 5321 grants for the answer."""
    channel = SmtpChannel("mail.hlf.example", port=587, sender=parse_sender("post@hlf.example"))

    assert channel.worst_case_seconds == 725


# Addresses


def test_an_international_domain_goes_out_as_dns_knows_it(server: RealServer, mailbox: Mailbox) -> None:
    """The part after the @ needs nothing of the server."""
    with channel_to(server.port) as channel:
        channel.send(replace(MESSAGE, to="kari@blåbær.example"))

    assert mailbox.envelopes[0].rcpt_tos == ["kari@xn--blbr-roah.example"]


def test_an_international_local_part_uses_smtputf8(server: RealServer, mailbox: Mailbox) -> None:
    """The part before the @ goes as it is, to a server that knows RFC 6531."""
    with channel_to(server.port) as channel:
        channel.send(replace(MESSAGE, to="pål@example.org"))
        channel.send(MESSAGE)

    assert [envelope.rcpt_tos[0] for envelope in mailbox.envelopes] == ["pål@example.org", MESSAGE.to]
    assert mailbox.envelopes[0].smtp_utf8
    assert not mailbox.envelopes[1].smtp_utf8


def test_an_international_local_part_is_refused_without_smtputf8(mailbox: Mailbox) -> None:
    """It is this recipient's trouble: everybody else's mail goes on."""
    with (
        real_server(mailbox, enable_SMTPUTF8=False) as server,
        channel_to(server.port) as channel,
    ):
        with pytest.raises(RecipientRefusedError, match="beyond ASCII"):
            channel.send(replace(MESSAGE, to="pål@example.org"))
        channel.send(MESSAGE)

    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"to": "kari"},
        {"to": "kari@example.org\r\nBcc: ola@example.org"},
        {"to": "Kari <kari@example.org>"},
        {"to": ""},
        {"subject": "Hei\r\nBcc: ola@example.org"},
        {"subject": "Hei\nHei"},
        {"text": "\udc80"},
    ],
)
def test_a_message_that_cannot_be_built_is_refused(broken: dict[str, str]) -> None:
    """A bad row, not a crash; no server is asked, and the text repeats nothing of it."""
    with scripted_server() as server, channel_to(server.port) as channel:
        with pytest.raises(RecipientRefusedError) as caught:
            channel.send(replace(MESSAGE, **broken))  # type: ignore[arg-type]

        assert server.connections == 0
    assert "example" not in str(caught.value)


# Answers, stage by stage


@pytest.mark.parametrize("stage", ["RCPT", "DATA", "END"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"550", RecipientRefusedError),
        (b"450", RecipientDeferredError),
        (b"421", ChannelDownError),
        (b"530", ChannelDownError),
    ],
)
def test_a_refusal_is_the_recipients_or_everybodys(stage: str, code: bytes, expected: type[NotifyError]) -> None:
    """4xx and 5xx to RCPT, DATA or the body are about this message; 421 and a missing login are about all."""
    with (
        scripted_server({stage: code + b" 5.7.1 not today"}) as server,
        channel_to(server.port) as channel,
        pytest.raises(NotifyError, match=rf"{code.decode()} 5\.7\.1 not today") as caught,
    ):
        channel.send(MESSAGE)

    assert type(caught.value) is expected


@pytest.mark.parametrize("stage", ["GREETING", "MAIL"])
@pytest.mark.parametrize("code", [b"421", b"450", b"550"])
def test_a_refused_client_or_sender_is_everybodys(stage: str, code: bytes) -> None:
    """Nothing that is said before the recipient is named can be about the recipient."""
    with (
        scripted_server({stage: code + b" go away"}) as server,
        channel_to(server.port) as channel,
        pytest.raises(ChannelDownError, match="go away"),
    ):
        channel.send(MESSAGE)


def test_a_server_that_knows_no_greeting_is_everybodys() -> None:
    """Its answer to EHLO is an error."""
    with (
        scripted_server({"EHLO": b"421 closing"}) as server,
        channel_to(server.port) as channel,
        pytest.raises(ChannelDownError, match="421 closing"),
    ):
        channel.send(MESSAGE)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("GREETING", ChannelDownError),
        ("MAIL", ChannelDownError),
        ("RCPT", ChannelDownError),
        ("DATA", ChannelDownError),
        ("END", OutcomeUnknownError),
    ],
)
@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request", b"333 what is this"])
def test_an_answer_that_is_no_smtp_blames_no_recipient(stage: str, answer: bytes, expected: type[NotifyError]) -> None:
    """After the final dot it leaves the outcome open, before it means another kind of server."""
    with (
        scripted_server({stage: answer}) as server,
        channel_to(server.port) as channel,
        pytest.raises(expected),
    ):
        channel.send(MESSAGE)


@pytest.mark.parametrize("stage", ["RCPT", "DATA", "END"])
def test_the_channel_goes_on_after_a_refusal(stage: str) -> None:
    """The next message gets a new connection: nothing more is said, or heard, on the old one."""
    with scripted_server({stage: b"550 no"}) as server, channel_to(server.port) as channel:
        with pytest.raises(RecipientRefusedError):
            channel.send(MESSAGE)
        del server.answers[stage]
        channel.send(MESSAGE)

        assert server.connections == 2
        assert "QUIT" not in server.commands


@pytest.mark.parametrize(
    "echo",
    [
        b"550 5.1.1 <kari.nordmann@example.org>: Recipient address rejected",
        b"550-5.1.1 KARI.NORDMANN@example.org\r\n550 5.1.1 is unknown",
        b"550 no mailbox here for Kari.Nordmann",
        b"550 see https://mail.example/why?rcpt=kari.nordmann%40example.org",
        b"550 <bounce+kari.nordmann=example.org@hlf.example> refused",
        b"550 forwarded to knordmann@work.example and refused",
    ],
)
def test_no_error_names_the_recipient(echo: bytes) -> None:
    """Servers echo addresses; logs and the database must not hold them."""
    with (
        scripted_server({"RCPT": echo}) as server,
        channel_to(server.port) as channel,
        pytest.raises(RecipientRefusedError) as caught,
    ):
        channel.send(MESSAGE)

    assert "nordmann" not in str(caught.value).lower()
    assert "550" in str(caught.value)


def test_an_error_is_one_short_line() -> None:
    """A server may say pages; what is kept is readable and fits a table."""
    with (
        scripted_server({"RCPT": b"550-" + b"very " * 500 + b"\r\n550 \x1b[31mno\x00\xff"}) as server,
        channel_to(server.port) as channel,
        pytest.raises(RecipientRefusedError) as caught,
    ):
        channel.send(MESSAGE)

    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


# Connections that break


@pytest.mark.parametrize("stage", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
def test_a_cut_before_the_message_is_everybodys(stage: str) -> None:
    """Until the server has answered 354 to DATA the message was surely not accepted."""
    with (
        scripted_server({stage: Fault.CUT}) as server,
        channel_to(server.port) as channel,
        pytest.raises(ChannelDownError),
    ):
        channel.send(MESSAGE)


@pytest.mark.parametrize("stage", ["BODY", "END"])
def test_a_cut_after_354_leaves_the_outcome_unknown(stage: str) -> None:
    """The server had the message, or may have had it: it may have kept it."""
    with (
        scripted_server({stage: Fault.CUT}) as server,
        channel_to(server.port) as channel,
        pytest.raises(OutcomeUnknownError, match="may have arrived"),
    ):
        channel.send(MESSAGE)


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP, Fault.FLOOD])
def test_no_answer_to_the_final_dot_leaves_the_outcome_unknown_in_time(fault: Fault) -> None:
    """The answer's own limit holds, even against a server that keeps sending."""
    with scripted_server({"END": fault}) as server, channel_to(server.port, answer_seconds=0.3) as channel:
        started = time.monotonic()
        with pytest.raises(OutcomeUnknownError):
            channel.send(MESSAGE)

        assert time.monotonic() - started < 5


def test_a_server_that_stops_reading_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be sent in time is thrown away: after the time-out no byte of it may follow."""
    big = (parse_address(MESSAGE.to), b"x" * 16_000_000)  # more than a socket takes while nobody reads
    monkeypatch.setattr(smtp, "compose", lambda *_, **__: big)
    with scripted_server({"BODY": Fault.HANG}) as server, channel_to(server.port, answer_seconds=0.5) as channel:
        started = time.monotonic()
        with pytest.raises(OutcomeUnknownError):
            channel.send(MESSAGE)

        assert time.monotonic() - started < 5
    assert server.bodies == []


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP, Fault.FLOOD])
@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        ("GREETING", "connect_seconds"),
        ("EHLO", "connect_seconds"),
        ("MAIL", "envelope_seconds"),
        ("RCPT", "envelope_seconds"),
        ("DATA", "envelope_seconds"),
    ],
)
def test_each_phase_ends_in_time(stage: str, limit: str, fault: Fault) -> None:
    """A server that is silent, drips bytes or never ends a reply holds nobody longer than the phase has."""
    with scripted_server({stage: fault}) as server, channel_to(server.port, **dict[str, Any]({limit: 0.3})) as channel:
        started = time.monotonic()
        with pytest.raises(ChannelDownError):
            channel.send(MESSAGE)

        assert time.monotonic() - started < 5


def test_a_handshake_ends_in_time() -> None:
    """TLS with a server that never answers it."""
    with (
        scripted_server({"GREETING": Fault.HANG}) as server,
        channel_to(server.port, connect_seconds=0.2, implicit_tls=True, tls=client_tls()) as channel,
    ):
        started = time.monotonic()
        with pytest.raises(ChannelDownError, match="did not answer in time"):
            channel.send(MESSAGE)

        assert time.monotonic() - started < 5


def test_a_name_lookup_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's lookup knows no limit; the phase does, and the end of the loop does not wait for it either."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(10) and [])
    channel = SmtpChannel("mail.example", port=25, sender=parse_sender("post@hlf.example"), connect_seconds=0.2)

    started = time.monotonic()
    with pytest.raises(ChannelDownError, match="did not answer in time"):
        run_alone(channel.send(MESSAGE))

    assert time.monotonic() - started < 5
    answered.set()


@pytest.mark.parametrize("surplus", [b"250 taken", b"421 4.4.2 timeout exceeded", b"552 5.3.4 too big"])
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
def test_an_answer_too_many_ends_the_connection_before_the_message(stage: str, surplus: bytes) -> None:
    """All later answers would be taken for each other's: one of them could say that a refused message was accepted."""
    good = GOOD_ANSWERS[stage] + b"\r\n" + surplus
    with scripted_server({stage: good}) as server, channel_to(server.port) as channel:
        with pytest.raises(ChannelDownError):
            channel.send(MESSAGE)
        del server.answers[stage]
        channel.send(MESSAGE)

        assert (len(server.bodies), server.connections) == (1, 2)


def test_an_answer_too_many_after_the_message_is_not_heard_by_the_next_one() -> None:
    """The message was accepted; the connection is not used again."""
    with scripted_server({"END": b"250 taken\r\n250 and again"}) as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)
        channel.send(MESSAGE)

        assert (len(server.bodies), server.connections) == (2, 2)


def test_any_2xx_to_the_message_is_success() -> None:
    """A server that will try its best (252) has the message, too."""
    with scripted_server({"END": b"252 will do"}) as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)
        channel.send(MESSAGE)

        assert (len(server.bodies), server.connections) == (2, 1)


@pytest.mark.parametrize("answer", [b"421 closing", b"552 too big", b"garbage", b"333 what"])
def test_a_connection_on_which_a_message_failed_is_not_used_again(answer: bytes) -> None:
    """Whatever the answer to the message was, if it was no success."""
    with scripted_server({"END": answer}) as server, channel_to(server.port) as channel:
        with pytest.raises(NotifyError):
            channel.send(MESSAGE)
        del server.answers["END"]
        channel.send(MESSAGE)

        assert server.connections == 2
        assert "QUIT" not in server.commands


def test_a_host_without_an_address_is_everybodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing mistake in the URL, or no network."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    with (
        channel_to(25, host="mail.example") as channel,
        pytest.raises(ChannelDownError, match=r"not known; check CERTJOB_NOTIFY_URL"),
    ):
        channel.send(MESSAGE)


def test_a_host_name_that_cannot_be_one_is_everybodys() -> None:
    """A label longer than DNS allows, which the system's lookup answers with another kind of error."""
    with (
        channel_to(25, host="ø" * 70 + ".example") as channel,
        pytest.raises(ChannelDownError, match="the name is malformed"),
    ):
        channel.send(MESSAGE)


def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch, server: RealServer, mailbox: Mailbox) -> None:
    """A host with a dead first address is still reached."""
    with socket.create_server((HOST, 0)) as unused:
        dead_port = unused.getsockname()[1]
    addresses = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, port)) for port in (dead_port, server.port)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)

    with channel_to(25, host="localhost") as channel:
        channel.send(MESSAGE)

    assert len(mailbox.envelopes) == 1


def test_nobody_listening_is_everybodys() -> None:
    """The text names the setting."""
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]

    with channel_to(port) as channel, pytest.raises(ChannelDownError, match="refused; check CERTJOB_NOTIFY_URL"):
        channel.send(MESSAGE)


def test_a_kept_connection_that_died_is_replaced() -> None:
    """A server that hung up between two messages costs at most one try and no message."""
    with scripted_server() as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)
        server.answers["MAIL"] = Fault.CUT
        with pytest.raises(ChannelDownError):
            channel.send(MESSAGE)
        del server.answers["MAIL"]
        channel.send(MESSAGE)

        assert len(server.bodies) == 2


@pytest.mark.parametrize("stage", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "END"])
def test_a_cancelled_message_leaves_nothing_behind(stage: str) -> None:
    """After the grace of a signal a wait is cancelled, wherever it is: no later answer is taken for the next one's."""
    sender = parse_sender("post@hlf.example")

    async def cancel_one_and_send_another(server: ScriptedServer) -> None:
        channel = SmtpChannel(HOST, port=server.port, sender=sender)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await channel.send(MESSAGE)
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

        started = time.monotonic()
        channel.close()
        channel.close()

        assert time.monotonic() - started < 5


# TLS and login


@pytest.mark.parametrize(
    ("host", "login", "required"),
    [
        ("mail.hlf.example", False, True),
        ("mail.hlf.example", True, True),
        ("192.0.2.1", False, True),
        ("localhost", False, False),
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("localhost", True, True),
    ],
)
def test_only_this_machine_is_spoken_to_in_the_open(*, host: str, login: bool, required: bool) -> None:
    """And not even this machine hears a password that way."""
    assert tls_is_required(host, login=login) is required


@pytest.mark.usefixtures("nothing_is_loopback")
def test_a_far_server_without_starttls_gets_nothing() -> None:
    """A cable in between may have cut the offer out."""
    with scripted_server() as server, channel_to(server.port) as channel:
        with pytest.raises(ChannelDownError, match="offers no STARTTLS"):
            channel.send(MESSAGE)

        assert not any(command.startswith("MAIL") for command in server.commands)


@pytest.mark.usefixtures("nothing_is_loopback")
def test_a_refused_starttls_is_everybodys() -> None:
    """Offered, and then not to be had."""
    with (
        scripted_server({"EHLO": b"250-test\r\n250 STARTTLS", "STARTTLS": b"454 no certificate"}) as server,
        channel_to(server.port) as channel,
        pytest.raises(ChannelDownError, match=r"refused STARTTLS \(454 no certificate\)"),
    ):
        channel.send(MESSAGE)


@pytest.mark.usefixtures("nothing_is_loopback")
@pytest.mark.parametrize("fault", [Fault.HANG, Fault.DRIP])
def test_a_starttls_handshake_ends_in_time(fault: Fault) -> None:
    """The server agrees to TLS and then does something else."""
    with (
        scripted_server({"EHLO": b"250-test\r\n250 STARTTLS", "STARTTLS": fault}) as server,
        channel_to(server.port, connect_seconds=0.2) as channel,
    ):
        started = time.monotonic()
        with pytest.raises(ChannelDownError):
            channel.send(MESSAGE)

        assert time.monotonic() - started < 5


@pytest.mark.usefixtures("nothing_is_loopback")
def test_a_far_server_is_spoken_to_over_tls(mailbox: Mailbox) -> None:
    """STARTTLS with a certificate that is trusted."""
    with (
        real_server(mailbox, tls_context=server_tls(), require_starttls=True) as server,
        channel_to(server.port, tls=client_tls()) as channel,
    ):
        channel.send(MESSAGE)
        channel.send(MESSAGE)

    assert len(mailbox.envelopes) == 2
    assert mailbox.sessions[0].ssl is not None


@pytest.mark.usefixtures("nothing_is_loopback", "tls_for_show")
def test_what_was_said_before_tls_is_forgotten() -> None:
    """Plaintext that follows the answer to STARTTLS is somebody else's (RFC 3207)."""
    answers = {"EHLO": b"250-test\r\n250 STARTTLS", "STARTTLS": b"220 go on\r\n250-evil\r\n250 SMTPUTF8"}
    with scripted_server(answers) as server, channel_to(server.port) as channel:
        with pytest.raises(RecipientRefusedError, match="beyond ASCII"):
            channel.send(replace(MESSAGE, to="pål@example.org"))
        channel.send(MESSAGE)

        assert len([command for command in server.commands if command.startswith("EHLO")]) == 4


@pytest.mark.parametrize("implicit_tls", [True, False])
@pytest.mark.usefixtures("nothing_is_loopback")
def test_an_untrusted_certificate_is_everybodys(mailbox: Mailbox, *, implicit_tls: bool) -> None:
    """There is no way to skip the check."""
    options = {"ssl_context": server_tls()} if implicit_tls else {"tls_context": server_tls()}
    with (
        real_server(mailbox, **options) as server,
        channel_to(server.port, implicit_tls=implicit_tls) as channel,
        pytest.raises(ChannelDownError, match="certificate is not trusted"),
    ):
        channel.send(MESSAGE)


def test_smtps_is_tls_from_the_first_byte(mailbox: Mailbox) -> None:
    """Implicit TLS with a certificate that is trusted."""
    with (
        real_server(mailbox, ssl_context=server_tls()) as server,
        channel_to(server.port, implicit_tls=True, tls=client_tls()) as channel,
    ):
        channel.send(MESSAGE)

    assert len(mailbox.envelopes) == 1


def test_smtps_to_a_server_without_tls_is_everybodys() -> None:
    """The wrong scheme or port."""
    with (
        scripted_server() as server,
        channel_to(server.port, implicit_tls=True) as channel,
        pytest.raises(ChannelDownError, match=r"WRONG_VERSION_NUMBER|record layer"),
    ):
        channel.send(MESSAGE)


LOGIN: dict[str, Any] = {"user": "post", "password": SecretStr("blåbær-9"), "tls": client_tls()}


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


def offering(mechanisms: bytes, **answers: bytes) -> dict[str, bytes | Fault]:
    return {"EHLO": b"250-test\r\n250-STARTTLS\r\n250 AUTH " + mechanisms, **answers}


@pytest.mark.usefixtures("tls_for_show")
def test_a_login_that_cannot_be_checked_now_blames_no_password() -> None:
    """The server's own trouble, or its goodbye."""
    with (
        scripted_server(offering(b"PLAIN", AUTH=b"454 directory is down")) as server,
        channel_to(server.port, **LOGIN) as channel,
        pytest.raises(ChannelDownError, match=r"cannot take the login now \(454 directory is down\)"),
    ):
        channel.send(MESSAGE)


@pytest.mark.usefixtures("tls_for_show")
def test_an_echoed_login_stays_secret() -> None:
    """A server that repeats what it was sent, in clear or coded."""
    echo = "535 post / blåbær-9 / AHBvc3QAYmzDpWLDpnItOQ== / YmzDpWLDpnItOQ== is wrong".encode()
    with (
        scripted_server(offering(b"PLAIN", AUTH=echo)) as server,
        channel_to(server.port, **LOGIN) as channel,
        pytest.raises(ChannelDownError, match="535 <secret> / <secret> / <secret> / <secret> is wrong"),
    ):
        channel.send(MESSAGE)


@pytest.mark.usefixtures("tls_for_show")
def test_a_server_with_other_logins_only_is_everybodys() -> None:
    """certjob knows PLAIN and LOGIN."""
    with (
        scripted_server(offering(b"XOAUTH2")) as server,
        channel_to(server.port, **LOGIN) as channel,
        pytest.raises(ChannelDownError, match="no login that certjob knows"),
    ):
        channel.send(MESSAGE)


def test_no_password_travels_without_tls() -> None:
    """Not even to this machine: the server must offer STARTTLS."""
    with (
        scripted_server({"EHLO": b"250-test\r\n250 AUTH PLAIN LOGIN"}) as server,
        channel_to(server.port, **LOGIN) as channel,
    ):
        with pytest.raises(ChannelDownError, match="never logs in without TLS"):
            channel.send(MESSAGE)

        assert not any(command.startswith("AUTH") for command in server.commands)
