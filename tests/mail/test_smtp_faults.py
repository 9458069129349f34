"""Everything that can go wrong with a mail server, stage by stage: whose fault it is; and nobody is mailed twice."""

import select
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from certjob.database import Connection
from certjob.errors import ChannelDownError, NotifyError, RecipientDeferredError, RecipientRefusedError
from certjob.mail import stage as mail_stage
from certjob.mail.channels.smtp_connection import SmtpConnection
from certjob.outbox.retry import constant
from tests.support.facts import Facts
from tests.support.mails import MESSAGE
from tests.support.smtp_outcomes import (
    EVERYBODY,
    LATER,
    NEVER,
    REPEAT_LINE,
    ROWS,
    UNKNOWN,
    channel_to,
    make_good,
    message_of,
    queue_two,
    run_stage,
    text_of,
)
from tests.support.smtp_server import (
    Fault,
    Mailbox,
    ScriptedServer,
    client_tls,
    real_server,
    scripted_server,
    server_tls,
)

OFFER = b"250-test\r\n250-STARTTLS\r\n250 AUTH PLAIN"

BEFORE_THE_RECIPIENT = ("GREETING", "EHLO", "STARTTLS", "AUTH", "MAIL")

TABLE = [
    *((stage, answer, EVERYBODY) for stage in BEFORE_THE_RECIPIENT for answer in (b"421 no", b"450 no", b"550 no")),
    *((stage, b"421 closing", EVERYBODY) for stage in ("RCPT", "DATA", "END")),
    *((stage, b"450 not now", LATER) for stage in ("RCPT", "DATA", "END")),
    *((stage, b"550 never", NEVER) for stage in ("RCPT", "DATA", "END")),
    *(
        (stage, fault, EVERYBODY)
        for stage in (*BEFORE_THE_RECIPIENT, "RCPT", "DATA")
        for fault in (Fault.CUT, Fault.DRIP)
    ),
    ("END", Fault.CUT, UNKNOWN),
    ("END", Fault.DRIP, UNKNOWN),
    ("END", b"HTTP/1.1 400 Bad Request", UNKNOWN),
]


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries without the seconds between them."""
    monkeypatch.setattr(mail_stage, "exponential", lambda **_: constant(seconds=0))


@pytest.fixture
def nothing_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat this machine's address as one far away."""
    monkeypatch.setattr("certjob.mail.channels.smtp.LOOPBACK_HOSTS", frozenset())


@pytest.mark.parametrize(("stage", "answer", "fault"), TABLE)
def test_each_fault_has_its_owner_and_each_mentor_one_message(
    connection: Connection,
    facts: Facts,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    answer: bytes | Fault,
    fault: str,
) -> None:
    """The rows say whose fault it was; once the server is mended each mentor gets the reminder, a repeat says so."""
    monkeypatch.setattr(
        SmtpConnection, "_wrap", lambda _, plain, **__: plain
    )  # TLS for show: the script stays readable
    queue_two(facts)
    # Each only where it is what ends the test: on a busy machine a good answer takes its time, too.
    limits = {"answer_seconds" if stage == "END" else "step_seconds": 0.2} if answer is Fault.DRIP else {}
    answers = {"EHLO": OFFER, stage: answer} | ({"HELO": answer} if stage == "EHLO" else {})
    login = {"user": "post", "password": SecretStr("x"), "tls": client_tls()}

    with scripted_server(answers) as server:
        with channel_to(server.port, **login, **limits) as channel:
            stopped = run_stage(connection, channel)
        assert (stopped is not None) == (fault is EVERYBODY)
        assert server.connections == (3 if fault is EVERYBODY else 2)
        assert (
            facts.rows(
                "SELECT status, attempts, maybe_sent,"
                " next_attempt_at <= now() AND claim_token IS NULL AND status = 'pending' FROM cert_notification_log"
            )
            == [ROWS[fault]] * 2
        )

        server.answers = {"EHLO": OFFER}
        server.bodies.clear()
        make_good(facts)
        with channel_to(server.port, **login) as channel:
            assert run_stage(connection, channel) is None

    messages = [message_of(body) for body in server.bodies]
    assert len({message["Message-ID"] for message in messages}) == len(messages) == 2
    assert [REPEAT_LINE in text_of(message) for message in messages] == [fault is UNKNOWN] * 2
    assert facts.rows("SELECT DISTINCT status FROM cert_notification_log") == [("sent",)]


# Around the final dot


def after_the_body(monkeypatch: pytest.MonkeyPatch, wait: Callable[[SmtpConnection], None]) -> None:
    """Let something happen between the last byte of the body and the dot."""
    send_body = SmtpConnection.send_body

    def send_and_wait(connection: SmtpConnection, data: bytes) -> None:
        send_body(connection, data)
        wait(connection)

    monkeypatch.setattr(SmtpConnection, "send_body", send_and_wait)


def until_readable(connection: SmtpConnection) -> None:
    assert connection.sock is not None
    assert select.select([connection.sock], [], [], 10)[0], "the server has done nothing"


def dots(server: ScriptedServer) -> int:
    return server.commands.count(".") + len(server.bodies)


def test_a_cut_before_the_final_dot_is_a_certain_failure(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No server may accept a message that it does not have whole: nobody is told that theirs may be a repeat."""
    queue_two(facts)
    after_the_body(monkeypatch, until_readable)

    with scripted_server({"BODY": Fault.CUT}) as server, channel_to(server.port) as channel:
        stopped = run_stage(connection, channel)

    assert stopped is not None
    assert stopped.code == "down"
    assert dots(server) == 0
    assert facts.rows("SELECT DISTINCT attempts, maybe_sent FROM cert_notification_log") == [(0, False)]


def test_a_final_dot_that_could_not_be_sent_is_a_certain_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection broke at the very last moment: the dot never left this machine."""
    after_the_body(monkeypatch, until_readable)
    monkeypatch.setattr(SmtpConnection, "early_reply", lambda _: None)  # it looked in time, and the cut came after

    with (
        scripted_server({"BODY": Fault.CUT}) as server,
        channel_to(server.port) as channel,
        pytest.raises(ChannelDownError, match="before a message was handed over"),
    ):
        channel.send(MESSAGE)

    assert dots(server) == 0


@pytest.mark.parametrize(
    ("early", "expected"),
    [
        (b"421 4.4.2 timeout exceeded", ChannelDownError),
        (b"452 4.3.1 disk full", RecipientDeferredError),
        (b"552 5.3.4 too big", RecipientRefusedError),
        (b"250 taken", ChannelDownError),
    ],
)
def test_an_answer_before_the_final_dot_is_heard_and_the_dot_is_kept_back(
    early: bytes, expected: type[NotifyError]
) -> None:
    """A server that gives up in the middle has accepted nothing, whatever it says; then nothing may end the message."""
    with (
        scripted_server({"DATA": b"354 go on\r\n" + early}) as server,
        channel_to(server.port) as channel,
        pytest.raises(NotifyError) as caught,
    ):
        channel.send(MESSAGE)

    assert type(caught.value) is expected
    assert dots(server) == 0
    assert "QUIT" not in server.commands


@pytest.mark.usefixtures("nothing_is_loopback")
def test_looking_for_an_early_answer_disturbs_no_encrypted_session() -> None:
    """TLS has messages of its own, such as session tickets, that are none of SMTP's."""
    mailbox = Mailbox()
    with (
        real_server(mailbox, tls_context=server_tls(), require_starttls=True) as server,
        channel_to(server.port, tls=client_tls()) as channel,
    ):
        for _ in range(5):
            channel.send(MESSAGE)

    assert len(mailbox.envelopes) == 5


# Slow servers


@pytest.mark.parametrize("stage", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "END"])
def test_a_slow_server_gets_its_message_once(stage: str) -> None:
    """An answer that comes late, and within its limit, is an answer."""
    with scripted_server({stage: Fault.SLOW}) as server, channel_to(server.port, step_seconds=30) as channel:
        channel.send(MESSAGE)

    assert (len(server.bodies), server.connections) == (1, 1)


def test_the_answer_to_the_final_dot_may_take_longer_than_any_step() -> None:
    """RFC 5321 grants it ten minutes, and cutting it off early makes duplicates."""
    with (
        scripted_server({"END": Fault.SLOW}) as server,
        channel_to(server.port, step_seconds=1.5, prepare_seconds=1.5, answer_seconds=30) as channel,
    ):
        server.slow_seconds = 2.0
        channel.send(MESSAGE)

    assert len(server.bodies) == 1


# The same answers from a real server


class Refusing(Mailbox):
    """A real server that gives one answer of its own."""

    def __init__(self, stage: str, answer: str) -> None:
        super().__init__()
        self.stage = stage
        self.answer = answer

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's
        self, server: object, session: object, envelope: Any, address: str, options: list[str]
    ) -> str:
        del server, session, options
        if self.stage == "MAIL":
            return self.answer
        envelope.mail_from = address
        return "250 fine"

    async def handle_RCPT(  # noqa: N802
        self, server: object, session: object, envelope: Any, address: str, options: list[str]
    ) -> str:
        del server, session, options
        if self.stage == "RCPT":
            return self.answer
        envelope.rcpt_tos.append(address)
        return "250 fine"

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802
        if self.stage == "END":
            return self.answer
        return await super().handle_DATA(server, session, envelope)


@pytest.mark.parametrize(
    ("stage", "answer", "fault"),
    [
        (stage, f"{code} no", EVERYBODY if code == 421 or stage == "MAIL" else {450: LATER, 550: NEVER}[code])
        for stage in ("MAIL", "RCPT", "END")
        for code in (421, 450, 550)
    ],
)
def test_a_real_server_is_understood_the_same_way(
    connection: Connection, facts: Facts, stage: str, answer: str, fault: str
) -> None:
    """aiosmtpd, with its own pace and its own words around the answer."""
    queue_two(facts)
    mailbox = Refusing(stage, answer)

    with real_server(mailbox) as server:
        with channel_to(server.port) as channel:
            run_stage(connection, channel)
        assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [ROWS[fault][:3]] * 2

        mailbox.stage = ""
        make_good(facts)
        with channel_to(server.port) as channel:
            assert run_stage(connection, channel) is None

    assert len(mailbox.envelopes) == 2


def test_letters_that_a_server_cannot_pass_on_are_the_recipients_fault() -> None:
    """It refuses MAIL with SMTPUTF8: everybody else's mail goes on."""
    with (
        scripted_server({"EHLO": b"250-test\r\n250 SMTPUTF8", "MAIL": b"550 5.6.7 not with these letters"}) as server,
        channel_to(server.port) as channel,
    ):
        with pytest.raises(RecipientRefusedError, match=r"5\.6\.7"):
            channel.send(replace(MESSAGE, to="pål@example.org"))
        with pytest.raises(ChannelDownError, match="CERTJOB_MAIL_FROM"):
            channel.send(MESSAGE)
