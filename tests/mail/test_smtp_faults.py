"""Everything that can go wrong with a mail server, stage by stage: whose fault it is; and nobody is mailed twice."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from certjob.database import Connection
from certjob.errors import ChannelDownError, RecipientRefusedError
from certjob.mail import stage as mail_stage
from certjob.outbox.retry import constant
from tests.support.channels import blocking
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
    show_tls,
    smtp_channel,
    text_of,
)
from tests.support.smtp_server import (
    Fault,
    Mailbox,
    client_tls,
    real_server,
    scripted_server,
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
    ("BODY", Fault.CUT, UNKNOWN),
    ("END", Fault.CUT, UNKNOWN),
    ("END", Fault.DRIP, UNKNOWN),
    ("END", b"HTTP/1.1 400 Bad Request", UNKNOWN),
]


PHASES = {
    "MAIL": "envelope_seconds",
    "RCPT": "envelope_seconds",
    "DATA": "envelope_seconds",
    "END": "answer_seconds",
}
"""Which limit ends a stage; what comes before belongs to connecting."""


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries without the seconds between them."""
    monkeypatch.setattr(mail_stage, "exponential", lambda **_: constant(seconds=0))


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
    show_tls(monkeypatch)  # the script stays readable
    queue_two(facts)
    # Each only where it is what ends the test: on a busy machine a good answer takes its time, too.
    limits = {PHASES.get(stage, "connect_seconds"): 0.2} if answer is Fault.DRIP else {}
    answers = {"EHLO": OFFER, stage: answer}
    login = {"user": "post", "password": SecretStr("x"), "tls": client_tls()}

    with scripted_server(answers) as server:
        stopped = run_stage(connection, smtp_channel(server.port, **login, **limits))
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
        assert run_stage(connection, smtp_channel(server.port, **login)) is None

    messages = [message_of(body) for body in server.bodies]
    assert len({message["Message-ID"] for message in messages}) == len(messages) == 2
    assert [REPEAT_LINE in text_of(message) for message in messages] == [fault is UNKNOWN] * 2
    assert facts.rows("SELECT DISTINCT status FROM cert_notification_log") == [("sent",)]


# Slow servers


@pytest.mark.parametrize("stage", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "END"])
def test_a_slow_server_gets_its_message_once(stage: str) -> None:
    """An answer that comes late, and within its limit, is an answer."""
    with scripted_server({stage: Fault.SLOW}) as server, channel_to(server.port) as channel:
        channel.send(MESSAGE)

    assert (len(server.bodies), server.connections) == (1, 1)


def test_the_answer_to_the_final_dot_may_take_longer_than_any_step() -> None:
    """RFC 5321 grants it ten minutes, and cutting it off early makes duplicates."""
    with (
        scripted_server({"END": Fault.SLOW}) as server,
        blocking(smtp_channel(server.port, connect_seconds=1.5, envelope_seconds=1.5, answer_seconds=30)) as channel,
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
        run_stage(connection, smtp_channel(server.port))
        assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [ROWS[fault][:3]] * 2

        mailbox.stage = ""
        make_good(facts)
        assert run_stage(connection, smtp_channel(server.port)) is None

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
