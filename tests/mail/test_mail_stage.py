"""The mail stage: one message at a time, each settled before the next, and a failure is known to be whose it is."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob.database import Connection, statements
from certjob.domain.addresses import parse_sender
from certjob.errors import (
    ChannelDownError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
    StoppedBySignalError,
)
from certjob.mail import stage as mail_stage
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.messages import NightTemplates, Templates
from certjob.mail.reminder_mail import QueuedReminder, ReminderMail
from certjob.mail.stage import retry_delay_seconds
from certjob.stopping import StopFlag
from tests.support.channels import BlockingStage, reminder_mail
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, message_ids, review, run_out
from tests.support.nights import CollectingChannel
from tests.support.smtp_server import HOST, Fault, Mailbox, real_server, scripted_server

STATUSES = "SELECT status, count(*) FROM cert_notification_log GROUP BY status ORDER BY status"
UNTOUCHED = (
    "SELECT count(*) FROM cert_notification_log"
    " WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL AND next_attempt_at <= now() AND NOT maybe_sent"
)
REFUSED, DEFERRED, UNKNOWN = RecipientRefusedError("550 no"), RecipientDeferredError("450"), OutcomeUnknownError("cut")
DOWN = ChannelDownError("gone")


class Mails:
    """Reminders that wait, and stages that send them."""

    def __init__(self, connection: Connection, facts: Facts) -> None:
        self.connection = connection
        self.facts = facts
        self.counts = mail_stage.MailCounts()
        self.sent: list[OutgoingMessage] = []

    def queue(self, count: int) -> list[UUID]:
        """So many mentors with a reminder each, in the order of delivery: m0@example.org, m1@example.org, …"""
        organisation = self.facts.organisation("nhf", portal=None)
        for _ in range(count):
            self.facts.certified_mentor(organisation, TODAY + timedelta(days=5))
        review(self.connection)
        mentors = [row[0] for row in self.rows("SELECT mentor_id FROM cert_notification_log ORDER BY id")]
        self.connection.execute(
            "UPDATE mentors SET email = 'm' || n - 1 || '@example.org'"
            " FROM unnest(%s::uuid[]) WITH ORDINALITY AS m (mentor_id, n) WHERE id = mentor_id",
            (mentors,),
        )
        return mentors  # type: ignore[return-value]

    def send(
        self,
        *outcomes: Exception | None,
        on_send: Callable[[OutgoingMessage], None] | None = None,
        **options: Any,
    ) -> str | None:
        """Run a stage whose channel does so with its first messages, then takes all; return why it stopped."""
        left = iter(outcomes)

        def fail(_message: OutgoingMessage) -> None:
            if (error := next(left, None)) is not None:
                raise error

        channel = CollectingChannel(on_send=on_send or fail)
        self.sent = channel.sent
        return self.run(channel, **options)

    def send_to(self, port: int) -> str | None:
        """The same by SMTP."""
        return self.run(SmtpChannel(HOST, port=port, sender=parse_sender("certjob@mentors.example")))

    def run(
        self, channel: Channel, *, stop: StopFlag | None = None, deadline_seconds: float = 60, **options: Any
    ) -> str | None:
        stage = BlockingStage(self.connection, reminder_mail(self.connection, **options), channel, stop=stop)
        stopped = stage.run(deadline_seconds=deadline_seconds)
        self.counts = stage.counts
        return None if stopped is None else f"{stopped.code}: {stopped.reason}"

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        return self.facts.rows(statement, *parameters)


@pytest.fixture
def mails(connection: Connection, facts: Facts) -> Mails:
    return Mails(connection, facts)


# When all is well


class ObservingMailbox(Mailbox):
    """Looks into the database while a message comes in."""

    def __init__(self, observer: Connection) -> None:
        super().__init__()
        self.observer = observer
        self.sent_before: list[int] = []

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:  # noqa: N802 - aiosmtpd's
        rows = self.observer.execute("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'").fetchall()
        self.sent_before.append(rows[0][0])
        return await super().handle_DATA(server, session, envelope)


def test_each_is_settled_before_the_next_is_sent(mails: Mails, other: Connection) -> None:
    """Whatever happens at a message, at most one may come twice. Each is for one recipient, its id from its row."""
    mails.queue(3)
    mailbox = ObservingMailbox(other)
    with real_server(mailbox) as server:
        assert mails.send_to(server.port) is None

    assert mailbox.sent_before == [0, 1, 2]
    assert mails.counts.sent == 3
    assert (
        mails.rows("SELECT status, attempts, sent_at IS NOT NULL, claim_token FROM cert_notification_log")
        == [("sent", 1, True, None)] * 3
    )
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [[f"m{n}@example.org"] for n in range(3)]
    for envelope, row in zip(
        mailbox.envelopes, mails.rows("SELECT id FROM cert_notification_log ORDER BY id"), strict=True
    ):
        assert f"Message-ID: <certjob-reminder-{row[0]}-0@mentors.example>".encode() in envelope.content


def test_nothing_due_sends_nothing(mails: Mails) -> None:
    """And opens no connection."""
    assert mails.send(AssertionError()) is None


# An unknown outcome: the connection broke after the message was handed over


def test_it_is_repeated_with_the_same_id_and_says_so(mails: Mails) -> None:
    """Pending with a delay and maybe sent; the others go on, and two in a row are no reason to stop."""
    mails.queue(2)
    with scripted_server({"END": Fault.CUT}) as server:
        assert mails.send_to(server.port) is None
        first = server.bodies.copy()

    assert (
        mails.rows(
            "SELECT status, maybe_sent, failure_code, attempts, claim_token,"
            " next_attempt_at > now() + interval '14 min' FROM cert_notification_log"
        )
        == [("pending", True, "maybe_arrived", 1, None, True)] * 2
    )
    make_due(mails.facts, "cert_notification_log")
    mails.send()
    assert all(key.encode() in body for key, body in zip(message_ids(mails.sent), first, strict=True))
    assert all(message.repeat and "Har du allerede fått denne påminnelsen?" in message.text for message in mails.sent)


def test_three_in_a_row_stop_the_stage(mails: Mails) -> None:
    """A server that breaks off every time would make a duplicate of every message. A deferral is a sign of life."""
    mails.queue(11)

    stopped = mails.send(UNKNOWN, UNKNOWN, DEFERRED, UNKNOWN, UNKNOWN, None, UNKNOWN, UNKNOWN, UNKNOWN)

    assert stopped == "unknown: the outcome of 3 messages in a row is unknown (last: cut); the rest waits"
    assert mails.rows(UNTOUCHED) == [(2,)]
    assert mails.rows("SELECT count(*) FROM cert_notification_log WHERE maybe_sent AND status = 'pending'") == [(7,)]


# Refused: 5xx to RCPT or DATA is this recipient's, for good


def test_a_refused_one_is_failed_and_the_others_go_on(mails: Mails) -> None:
    """With the server's word, without the address."""
    mails.queue(3)

    class Picky(Mailbox):
        async def handle_RCPT(  # noqa: N802 - aiosmtpd's
            self, server: object, session: object, envelope: Any, address: str, options: object
        ) -> str:
            if address.startswith("m1@"):
                return f"550 5.1.1 {address} is unknown"
            envelope.rcpt_tos.append(address)
            return "250 fine"

    mailbox = Picky()
    with real_server(mailbox) as server:
        assert mails.send_to(server.port) is None

    assert (mails.counts.sent, mails.counts.failed) == (2, 1)
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["m0@example.org"], ["m2@example.org"]]
    assert mails.rows("SELECT status, attempts, last_error, failure_code FROM cert_notification_log ORDER BY id")[
        1
    ] == (
        "failed",
        1,
        "the mail server refused the recipient (550 5.1.1 <recipient> is unknown)",
        "address_refused",
    )


@pytest.mark.parametrize(("attempts_before", "minutes"), [(0, 15), (3, 120)])
def test_five_in_a_row_are_the_servers_fault(mails: Mails, attempts_before: int, minutes: int) -> None:
    """The five are pending again, tried less and less often; the next run begins with the others."""
    mentors = mails.queue(7)
    mails.connection.execute(
        "UPDATE cert_notification_log SET attempts = %s WHERE mentor_id = ANY (%s)", (attempts_before, mentors[:5])
    )
    mails.connection.execute("UPDATE cert_notification_log SET next_attempt_at = now() WHERE attempts > 0")

    def refuse_the_dead(message: OutgoingMessage) -> None:
        if message.mentor_id in mentors[:5]:
            text = "554 relay access denied"
            raise RecipientRefusedError(text)

    stopped = mails.send(on_send=refuse_the_dead)

    assert stopped is not None
    assert stopped.startswith("refused: 5 messages in a row were refused (last: 554 relay access denied)")
    assert (mails.counts.failed, len(mails.sent)) == (0, 2 if attempts_before else 0)
    assert mails.rows(
        "SELECT attempts, count(*) FROM cert_notification_log WHERE status = 'pending' AND next_attempt_at - now()"
        " BETWEEN make_interval(mins => %s, secs => -30) AND make_interval(mins => %s) GROUP BY attempts",
        minutes,
        minutes,
    ) == [(attempts_before + 1, 5)]
    make_due(mails.facts, "cert_notification_log")
    mails.send(on_send=refuse_the_dead)
    assert mails.rows(STATUSES) == [("pending", 5), ("sent", 2)]


def test_what_became_of_one_of_the_five_meanwhile_stands(mails: Mails, other: Connection) -> None:
    """A more urgent reminder superseded it between its refusal and the fifth."""
    mentors = mails.queue(5)

    def refuse(message: OutgoingMessage) -> None:
        if message.mentor_id == mentors[4]:
            other.execute("UPDATE cert_notification_log SET status = 'superseded' WHERE mentor_id = %s", (mentors[0],))
        text = "550"
        raise RecipientRefusedError(text)

    assert mails.send(on_send=refuse) is not None
    assert mails.rows(STATUSES) == [("pending", 4), ("superseded", 1)]


@pytest.mark.parametrize("between", [None, DEFERRED], ids=["a success", "a deferral"])
def test_a_sign_of_life_begins_the_count_anew(mails: Mails, between: Exception | None) -> None:
    """Four, another answer, four: these are eight wrong addresses."""
    mails.queue(9)

    assert mails.send(*[REFUSED] * 4, between, *[REFUSED] * 4) is None
    assert mails.rows("SELECT count(*) FROM cert_notification_log WHERE status = 'failed'") == [(8,)]


def test_addresses_that_are_none_are_nobodys_fault(mails: Mails) -> None:
    """No server was asked: a bad import does not stop the mail of everybody else."""
    mails.queue(8)
    mails.connection.execute("UPDATE mentors SET email = 'nowhere' WHERE email < 'm6'")

    assert mails.send() is None

    assert [message.to for message in mails.sent] == ["m6@example.org", "m7@example.org"]
    assert mails.rows(STATUSES) == [("failed", 6), ("sent", 2)]


# Deferred: 4xx to RCPT or DATA is this recipient's, for now


def test_a_deferred_one_is_tried_again_later_and_many_do_not_stop_the_stage(mails: Mails) -> None:
    """A server that greylists everybody is in order. Pending, surely not sent, nothing counted."""
    mails.queue(6)
    mails.connection.execute("UPDATE cert_notification_log SET attempts = 1")
    with scripted_server({"RCPT": b"450 greylisted"}) as server:
        assert mails.send_to(server.port) is None

    assert (mails.counts.sent, mails.counts.failed, mails.counts.lost) == (0, 0, 0)
    assert mails.rows(
        "SELECT status, attempts, maybe_sent, claim_token, last_error, failure_code, next_attempt_at - now()"
        " BETWEEN interval '29 min' AND interval '30 min', count(*) FROM cert_notification_log GROUP BY 1,2,3,4,5,6,7"
    ) == [("pending", 2, False, None, "the mail server put the recipient off (450 greylisted)", "deferred", True, 6)]


def test_the_delay_doubles_up_to_six_hours() -> None:
    minutes = [retry_delay_seconds(attempts) / 60 for attempts in (1, 2, 3, 5, 6, 99)]

    assert minutes == [15, 30, 60, 240, 360, 360]


# Down: connection, TLS, login, sender and 421 concern everybody


@pytest.mark.parametrize(
    "answers", [{"GREETING": Fault.CUT}, {"RCPT": b"421 closing"}], ids=["cut", "closing at the recipient"]
)
def test_three_tries_then_the_stage_stops(mails: Mails, answers: dict[str, bytes | Fault]) -> None:
    """Nobody is failed, no attempt is counted; the next run delivers without a word of a repeat."""
    mails.queue(2)
    with scripted_server(answers) as server:
        stopped = mails.send_to(server.port)
        assert server.connections == 3

    assert stopped is not None
    assert stopped.startswith("down: ")
    assert stopped.endswith("; the rest stays pending")
    assert mails.rows(UNTOUCHED) == [(2,)]
    assert mails.send() is None
    assert [message.repeat for message in mails.sent] == [False] * 2


def test_a_hiccup_stops_nothing_and_what_was_sent_before_stays_sent(mails: Mails) -> None:
    """Two failures, then the server takes it, once; later it is gone in the middle."""
    mails.queue(5)

    stopped = mails.send(DOWN, DOWN, None, None, DOWN, DOWN, DOWN)

    assert stopped == "down: gone; the rest stays pending"
    assert len(set(message_ids(mails.sent))) == len(mails.sent) == 2
    assert mails.rows(STATUSES) == [("pending", 3), ("sent", 2)]
    assert mails.rows(UNTOUCHED) == [(3,)]


def test_a_message_that_makes_the_server_hang_up_does_not_hold_up_the_others(mails: Mails) -> None:
    """It is put behind them: the next stage begins with somebody else."""
    mails.queue(3)

    def hang_up(message: OutgoingMessage) -> None:
        if message.to == "m0@example.org":
            raise DOWN

    mails.send(on_send=hang_up)
    assert mails.sent == []

    mails.send(on_send=hang_up)
    assert [message.to for message in mails.sent] == ["m1@example.org", "m2@example.org"]


def test_a_webhook_that_says_when_to_come_back_is_asked_then_and_three_times_at_most(mails: Mails) -> None:
    mails.queue(2)
    error = ChannelDownError("the webhook cannot take messages now (503)", retry_after_seconds=0.05)
    began = time.monotonic()

    assert mails.send(error, error, error) is not None

    assert time.monotonic() - began >= 0.1
    assert mails.rows(UNTOUCHED) == [(2,)]


# Deadline, signal, lease


def test_at_the_deadline_the_rest_is_released(mails: Mails) -> None:
    mails.queue(2)

    assert mails.send(deadline_seconds=0) == "deadline: the time for deliveries is over; the rest stays pending"
    assert mails.rows(UNTOUCHED) == [(2,)]


@pytest.mark.parametrize(("error", "sent"), [(None, 1), (DOWN, 0)], ids=["sent", "down"])
def test_a_signal_ends_it_between_two_messages(mails: Mails, error: Exception | None, sent: int) -> None:
    """What was sent is settled, the rest as it was. It cuts the tries short, and the mail server is not blamed."""
    mails.queue(3)
    stop = StopFlag()
    tries: list[str] = []

    def set_and_fail(message: OutgoingMessage) -> None:
        tries.append(message.to)
        stop.set()
        if error is not None:
            raise error

    with pytest.raises(StoppedBySignalError):
        mails.send(on_send=set_and_fail, stop=stop)

    assert len(tries) == 1
    assert mails.rows(UNTOUCHED) == [(3 - sent,)]
    assert mails.rows("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'") == [(sent,)]


def test_an_unforeseen_error_leaves_one_message_in_doubt(mails: Mails) -> None:
    """It keeps its lease, and the repeat will say so; the rest is untouched."""
    mails.queue(3)

    with pytest.raises(LookupError):
        mails.send(None, LookupError("a bug"))

    assert mails.rows(UNTOUCHED) == [(1,)]
    run_out(mails.facts, "cert_notification_log")
    mails.send()
    assert sorted(message.repeat for message in mails.sent) == [False, True]


def test_no_try_is_begun_that_could_outlast_the_lease(mails: Mails) -> None:
    """Neither the first one nor, after a first that took long, a second: released, not sent, not claimed over again."""
    mails.queue(2)
    channel, tries = CollectingChannel(), []

    def time_out(message: OutgoingMessage) -> None:
        tries.append(message)
        channel.worst_case_seconds = 1000.0
        raise DOWN

    channel.on_send = time_out
    for lease_seconds in (0.5, 900.0):
        stopped = mails.run(channel, lease_seconds=lease_seconds)

        assert stopped is not None
        assert stopped.startswith("down: a message can take longer than its lease")
        assert mails.rows(UNTOUCHED) == [(2,)]
    assert len(tries) == 1


@pytest.mark.parametrize("error", [None, DEFERRED, UNKNOWN, REFUSED], ids=["sent", "deferred", "unknown", "refused"])
def test_a_lease_that_is_lost_is_reported_and_nothing_is_written(
    mails: Mails, other: Connection, error: Exception | None
) -> None:
    """Somebody took the reminder over while its message was on its way: that claim stands."""
    mails.queue(1)

    def freeze(_message: OutgoingMessage) -> None:
        run_out(Facts(other), "cert_notification_log")
        reminder_mail(other).claim()
        if error is not None:
            raise error

    mails.send(on_send=freeze)

    assert (mails.counts.lost, mails.counts.sent, mails.counts.failed) == (1, 0, 0)
    assert mails.rows("SELECT status, attempts, claim_token IS NOT NULL, maybe_sent FROM cert_notification_log") == [
        ("pending", 2, True, True)
    ]


def test_a_template_that_breaks_on_one_mentor_gives_way_to_ours(mails: Mails, tmp_path: Path) -> None:
    """Everybody gets the message in time; the stage says at its end what broke, without naming anybody."""
    mails.queue(3)
    mails.connection.execute("UPDATE mentors SET full_name = 'Ola Hansen' WHERE email = 'm1@example.org'")
    (tmp_path / "reminder.nb.txt").write_text("Emne\n\n{{ {'Kari Nordmann': 'Kjære Kari'}[name] }}\n")
    templates = NightTemplates(lambda: Templates(tmp_path))

    assert mails.send(templates=templates) is None

    assert [message.text.split()[0] for message in mails.sent] == ["Kjære", "Hei,", "Kjære"]
    problem = templates.problem()
    assert problem is not None
    assert problem.code == "template"
    assert "reminder.nb.txt line 3" in problem.reason
    assert "1 message was written with certjob's own template instead" in problem.reason
    assert "Hansen" not in problem.reason


# What every mail waits for before the next one goes: its settle, committed


@pytest.fixture
def claimed(mails: Mails) -> tuple[ReminderMail, QueuedReminder]:
    mails.connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on) VALUES (%s, 30, %s, %s)",
        (mails.facts.mentor(mails.facts.organisation()), uuid4(), TODAY),
    )
    queue = reminder_mail(mails.connection)
    reminder, _ = queue.claim()
    assert reminder is not None
    return queue, reminder


def test_a_settle_insists_on_a_lock_and_not_for_ever(
    connection: Connection,
    claimed: tuple[ReminderMail, QueuedReminder],
    app: psycopg.Connection[tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reminder keeps its lease, the session is as it was, and once the lock is gone the same settle succeeds."""
    queue, reminder = claimed
    monkeypatch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 20)
    app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")

    with pytest.raises(psycopg.errors.LockNotAvailable):
        queue.settle(reminder)

    app.rollback()
    limits = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    assert connection.execute(limits).fetchone() == ("0", "0")
    assert queue.settle(reminder)


def test_a_settle_whose_commit_fails_is_tried_again(
    connection: Connection, claimed: tuple[ReminderMail, QueuedReminder]
) -> None:
    """A trigger of somebody's, a standby: not every error comes with the statement. It fails the first time alone."""
    queue, reminder = claimed
    connection.execute("""
        CREATE SEQUENCE commits;
        CREATE FUNCTION fails_at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF nextval('commits') = 1 THEN
                    RAISE EXCEPTION 'could not serialize' USING ERRCODE = 'serialization_failure';
                END IF;
                RETURN NULL;
            END $$;
        CREATE CONSTRAINT TRIGGER fails_at_commit AFTER UPDATE ON cert_notification_log
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fails_at_commit();
    """)

    assert queue.settle(reminder)
