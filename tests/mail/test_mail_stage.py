"""The mail stage: one message at a time, each settled before the next, and a failure is known to be whose it is."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.database import Connection
from certjob.errors import (
    ChannelDownError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
    StoppedBySignalError,
)
from certjob.mail.message import Channel, OutgoingMessage
from certjob.mail.messages.templates import Templates
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import Answer, Settlement
from certjob.outbox.retry import seconds_to_next_round
from certjob.stopping import StopFlag
from tests.support.channels import BlockingStage, reminder_mail, smtp_channel
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, message_ids, review, run_out
from tests.support.nights import CollectingChannel
from tests.support.smtp_server import Fault, Mailbox, real_server, scripted_server

REFUSED, DEFERRED = RecipientRefusedError("550 no"), RecipientDeferredError("450 greylisted")
UNKNOWN, DOWN = OutcomeUnknownError("cut"), ChannelDownError("gone")
SHORT_LEASE = "down: a message can take longer than its lease, or this process stood still; the rest stays pending"


class Mails:
    """Reminders that wait, and stages that send them."""

    def __init__(self, connection: Connection, facts: Facts) -> None:
        self.connection = connection
        self.facts = facts
        self.counts = MailCounts()
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
        channel: Channel | None = None,
        stop: StopFlag | None = None,
        deadline_seconds: float = 60,
        **options: Any,
    ) -> str | None:
        """Run a stage whose channel does so with its first messages, then takes all; return why it stopped."""
        left = iter(outcomes)

        def fail(_message: OutgoingMessage) -> None:
            if (error := next(left, None)) is not None:
                raise error

        taking = CollectingChannel(on_send=on_send or fail)
        queue = reminder_mail(self.connection, **options)
        stage = BlockingStage(self.connection, queue, channel or taking, stop=stop)
        stopped = stage.run(deadline_seconds=deadline_seconds)
        self.counts, self.sent = stage.counts, taking.sent
        return None if stopped is None else f"{stopped.code}: {stopped.reason}"

    def make_due(self) -> None:
        make_due(self.facts, "cert_notification_log")

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        return self.facts.rows(statement, *parameters)

    @property
    def statuses(self) -> dict[object, object]:
        """How many there are of each; of those pending how many are as they were before any run claimed them."""
        rows = self.rows(
            "SELECT CASE WHEN status = 'pending' AND attempts = 0 AND claim_token IS NULL AND NOT maybe_sent"
            " AND next_attempt_at <= now() THEN 'untouched' ELSE status END, count(*)"
            " FROM cert_notification_log GROUP BY 1"
        )
        return {status: count for status, count in rows}  # noqa: C416 - dict() wants pairs


@pytest.fixture
def mails(connection: Connection, facts: Facts) -> Mails:
    return Mails(connection, facts)


def test_each_is_settled_before_the_next_is_sent(mails: Mails, other: Connection) -> None:
    """Whatever happens at a message, at most one may come twice. Each is for one recipient, its id from its row."""

    class ObservingMailbox(Mailbox):
        async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
            sent = other.execute("SELECT id FROM cert_notification_log WHERE status = 'sent'").fetchall()
            assert len(sent) == len(self.envelopes)
            return await super().handle_DATA(server, session, envelope)

    mails.queue(3)
    mailbox = ObservingMailbox()
    with real_server(mailbox) as server:
        assert mails.send(channel=smtp_channel(server.port)) is None

    assert mails.counts.sent == 3
    rows = mails.rows(
        "SELECT id, status, attempts, sent_at IS NOT NULL, claim_token FROM cert_notification_log ORDER BY id"
    )
    assert [row[1:] for row in rows] == [("sent", 1, True, None)] * 3
    for number, (envelope, row) in enumerate(zip(mailbox.envelopes, rows, strict=True)):
        assert envelope.rcpt_tos == [f"m{number}@example.org"]
        assert f"Message-ID: <certjob-reminder-{row[0]}-0@hlf.example>".encode() in envelope.content
    assert mails.send(AssertionError()) is None, "nothing is due"


def test_an_unknown_outcome_is_repeated_with_the_same_id_and_says_so(mails: Mails) -> None:
    """The connection broke after the message: it is put off, the others go on, and two are no reason to stop."""
    mails.queue(2)
    with scripted_server({"END": Fault.CUT}) as server:
        assert mails.send(channel=smtp_channel(server.port)) is None
        first = server.bodies.copy()

    row = "status, maybe_sent, failure_code, attempts, claim_token, next_attempt_at > now() + interval '14 min'"
    assert (
        mails.rows(f"SELECT {row} FROM cert_notification_log")
        == [("pending", True, "maybe_arrived", 1, None, True)] * 2
    )
    mails.make_due()
    mails.send()
    assert all(key.encode() in body for key, body in zip(message_ids(mails.sent), first, strict=True))
    assert all(message.repeat and "Har du allerede fått denne påminnelsen?" in message.text for message in mails.sent)


def test_three_unknown_outcomes_in_a_row_stop_the_stage(mails: Mails) -> None:
    """A server that breaks off every time would make a duplicate of every message. A deferral is a sign of life."""
    mails.queue(11)

    stopped = mails.send(UNKNOWN, UNKNOWN, DEFERRED, UNKNOWN, UNKNOWN, None, UNKNOWN, UNKNOWN, UNKNOWN)

    assert stopped == "unknown: the outcome of 3 messages in a row is unknown (last: cut); the rest waits"
    assert mails.statuses == {"untouched": 2, "sent": 1, "pending": 8}
    assert mails.rows("SELECT count(*) FROM cert_notification_log WHERE maybe_sent") == [(7,)]


def test_a_refused_or_impossible_address_is_failed_and_the_others_go_on(mails: Mails) -> None:
    """A sign of life between them makes eight wrong addresses; of a bad import no server is even asked."""
    mails.queue(17)
    mails.connection.execute("UPDATE mentors SET email = 'nowhere' WHERE email IN ('m0@example.org', 'm1@example.org')")

    assert mails.send(*[REFUSED] * 4, None, *[REFUSED] * 4, DEFERRED, *[REFUSED] * 4) is None

    assert (mails.counts.sent, mails.counts.failed) == (2, 14)
    assert [message.to for message in mails.sent] == ["m6@example.org", "m16@example.org"]
    row = mails.rows("SELECT status, attempts, last_error, failure_code FROM cert_notification_log ORDER BY id")[2]
    assert row == ("failed", 1, "550 no", "message_refused")


def test_five_refused_in_a_row_are_the_servers_fault(mails: Mails, other: Connection) -> None:
    """Pending again, tried less and less often, after the others; but for one that became something else meanwhile."""
    dead = mails.queue(7)[:5]

    def refuse_the_dead(message: OutgoingMessage) -> None:
        if message.mentor_id in dead:
            raise REFUSED

    def supersede_the_first(message: OutgoingMessage) -> None:
        if message.mentor_id == dead[4]:
            other.execute("UPDATE cert_notification_log SET status = 'superseded' WHERE mentor_id = %s", (dead[0],))
        raise REFUSED

    delayed = (
        "SELECT attempts, count(*) FROM cert_notification_log WHERE status = 'pending' AND next_attempt_at - now()"
        " BETWEEN make_interval(mins => %s, secs => -30) AND make_interval(mins => %s) GROUP BY attempts"
    )
    for attempts, minutes, sent in ((1, 15, 0), (2, 30, 2)):
        stopped = mails.send(on_send=refuse_the_dead)
        assert stopped == "refused: 5 messages in a row were refused (last: 550 no); they and the rest stay pending"
        assert (mails.counts.failed, len(mails.sent)) == (0, sent)
        assert mails.rows(delayed, minutes, minutes) == [(attempts, 5)]
        mails.make_due()
    assert mails.send(on_send=supersede_the_first) is not None
    assert mails.statuses == {"pending": 4, "superseded": 1, "sent": 2}


def test_a_deferred_one_is_tried_again_later_and_many_do_not_stop_the_stage(mails: Mails) -> None:
    """A server that greylists everybody is in order. Pending, surely not sent, nothing counted; the delay doubles."""
    mails.queue(6)
    mails.connection.execute("UPDATE cert_notification_log SET attempts = 1")

    assert mails.send(*[DEFERRED] * 6) is None

    assert mails.counts == MailCounts()
    assert mails.rows(
        "SELECT status, attempts, maybe_sent, claim_token, last_error, failure_code, next_attempt_at - now()"
        " BETWEEN interval '29 min' AND interval '30 min', count(*) FROM cert_notification_log GROUP BY 1,2,3,4,5,6,7"
    ) == [("pending", 2, False, None, "450 greylisted", "deferred", True, 6)]
    assert [seconds_to_next_round(attempts) / 60 for attempts in (1, 2, 3, 5, 6, 99)] == [15, 30, 60, 240, 360, 360]


@pytest.mark.parametrize("answers", [{"GREETING": Fault.CUT}, {"RCPT": b"421 closing"}], ids=["cut", "closing"])
def test_a_server_that_is_down_is_tried_three_times_then_the_stage_stops(
    mails: Mails, answers: dict[str, bytes | Fault]
) -> None:
    """Nobody is failed, no attempt is counted; the next run delivers without a word of a repeat."""
    mails.queue(2)
    with scripted_server(answers) as server:
        stopped = mails.send(channel=smtp_channel(server.port))
        assert server.connections == 3

    assert stopped is not None
    assert stopped.startswith("down: ")
    assert stopped.endswith("; the rest stays pending")
    assert mails.statuses == {"untouched": 2}
    assert mails.send() is None
    assert [message.repeat for message in mails.sent] == [False] * 2


def test_a_hiccup_stops_nothing_and_a_message_that_makes_the_server_hang_up_does_not_hold_up_the_others(
    mails: Mails,
) -> None:
    """What was sent before stays sent, once; it is put behind them: the next stage begins with somebody else."""
    mails.queue(5)

    assert mails.send(DOWN, DOWN, None, None, DOWN, DOWN, DOWN) == "down: gone; the rest stays pending"

    assert [message.to for message in mails.sent] == ["m0@example.org", "m1@example.org"]
    assert mails.statuses == {"untouched": 3, "sent": 2}

    def hang_up(message: OutgoingMessage) -> None:
        if message.to == "m3@example.org":
            raise DOWN

    for sent in ([], ["m4@example.org", "m2@example.org"]):
        mails.send(on_send=hang_up)
        assert [message.to for message in mails.sent] == sent


def test_a_webhook_that_says_when_to_come_back_is_asked_then_and_at_the_deadline_the_rest_is_released(
    mails: Mails,
) -> None:
    """Three times at most."""
    mails.queue(2)
    error = ChannelDownError("the webhook cannot take messages now (503)", retry_after_seconds=0.05)
    began = time.monotonic()

    assert mails.send(error, error, error) is not None

    assert time.monotonic() - began >= 0.1
    assert mails.statuses == {"untouched": 2}
    assert mails.send(deadline_seconds=0) == "deadline: the time for deliveries is over; the rest stays pending"
    assert mails.statuses == {"untouched": 2}


@pytest.mark.parametrize(("error", "sent"), [(None, 1), (DOWN, 0)], ids=["sent", "down"])
def test_a_signal_ends_it_between_two_messages(mails: Mails, error: Exception | None, sent: int) -> None:
    """What was sent is settled, the rest as it was. It cuts the tries short, and the mail server is not blamed."""
    mails.queue(3)
    stop = StopFlag()

    def set_and_fail(_message: OutgoingMessage) -> None:
        assert not stop.is_set(), "a second try"
        stop.set()
        if error is not None:
            raise error

    with pytest.raises(StoppedBySignalError):
        mails.send(on_send=set_and_fail, stop=stop)

    assert mails.statuses == {"untouched": 3 - sent} | ({"sent": sent} if sent else {})


def test_an_unforeseen_error_leaves_one_message_in_doubt(mails: Mails) -> None:
    """It keeps its lease, and the repeat will say so; the rest is untouched."""
    mails.queue(3)

    with pytest.raises(LookupError):
        mails.send(None, LookupError("a bug"))

    assert mails.statuses == {"sent": 1, "pending": 1, "untouched": 1}
    run_out(mails.facts, "cert_notification_log")
    mails.send()
    assert sorted(message.repeat for message in mails.sent) == [False, True]


def test_no_try_is_begun_that_could_outlast_the_lease(mails: Mails, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first one nor, after a first that took long, a second: released, not sent, not claimed over again."""
    mails.queue(2)
    channel, tries = CollectingChannel(), []

    def time_out(message: OutgoingMessage) -> None:
        tries.append(message)
        channel.worst_case_seconds = 1000.0
        raise DOWN

    channel.on_send = time_out
    for lease_seconds in (0.5, 900.0):
        monkeypatch.setattr(ReminderMail, "lease_seconds", lease_seconds)
        assert mails.send(channel=channel) == SHORT_LEASE
        assert mails.statuses == {"untouched": 2}
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

    assert mails.counts == MailCounts(lost=1)
    taken_over = ("pending", 2, True, True)
    row = "SELECT status, attempts, claim_token IS NOT NULL, maybe_sent FROM cert_notification_log"
    assert mails.rows(row) == [taken_over]


def test_a_template_that_breaks_on_one_mentor_gives_way_to_ours(mails: Mails, tmp_path: Path) -> None:
    """Everybody gets the message in time; the stage says at its end what broke, without naming anybody."""
    mails.queue(3)
    mails.connection.execute("UPDATE mentors SET full_name = 'Ola Hansen' WHERE email = 'm1@example.org'")
    (tmp_path / "reminder.nb.txt").write_text("Emne\n\n{{ {'Kari Nordmann': 'Kjære Kari'}[name] }}\n")
    templates = Templates(tmp_path)

    assert mails.send(templates=templates) is None

    assert [message.text.split()[0] for message in mails.sent] == ["Kjære", "Hei,", "Kjære"]
    problem = templates.problem()
    assert problem is not None
    assert (problem.code, "Hansen" in problem.reason) == ("template", False)
    assert "reminder.nb.txt line 3" in problem.reason
    assert "1 message was written with certjob's own template instead" in problem.reason


def test_a_settle_whose_commit_fails_is_tried_again(mails: Mails) -> None:
    """A trigger of somebody's, a standby: not every error comes with the statement. It fails the first time alone."""
    mails.queue(1)
    queue = reminder_mail(mails.connection)
    reminder, _ = queue.claim()
    assert reminder is not None
    mails.connection.execute("""
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

    assert queue.settle(reminder, Settlement(status="sent")) is Answer.SETTLED
