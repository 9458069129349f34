"""The mail stage: one message at a time, each settled before the next, and a failure is known to be whose it is."""

import time
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ChannelDownError, StoppedBySignalError
from certjob.mail.message import OutgoingMessage
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import Answer, Settlement
from certjob.outbox.retry import seconds_to_next_round
from certjob.stopping import StopFlag
from tests.mail.conftest import CUT, DOWN, PUT_OFF, REFUSED, Scene, day
from tests.support.channels import reminder_mail, smtp_channel
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, run_out
from tests.support.smtp_server import Fault, Mailbox, ScriptedServer, real_server


def queue(scene: Scene, count: int) -> None:
    """So many mentors with a reminder each, in the order of delivery: m0@example.org, m1@example.org, …"""
    for number in range(count):
        mentor = {"id": UUID(int=number + 1), "full_name": "Kari Nordmann", "email": f"m{number}@example.org"}
        scene.facts.insert("mentors", organisation_id=scene.home, member_no=f"M{number}", **mentor)
        scene.facts.certificate(UUID(int=number + 1), day(5))
    scene.review()


def statuses(scene: Scene) -> dict[object, object]:
    """How many there are of each; of those pending how many are as they were before any run claimed them."""
    rows = scene.rows(
        "SELECT CASE WHEN status = 'pending' AND attempts = 0 AND claim_token IS NULL AND NOT maybe_sent"
        " AND next_attempt_at <= now() THEN 'untouched' ELSE status END, count(*) FROM cert_notification_log GROUP BY 1"
    )
    return {status: count for status, count in rows}  # noqa: C416 - dict() wants pairs


def log(scene: Scene, columns: str) -> list[tuple[object, ...]]:
    return scene.rows(f"SELECT {columns} FROM cert_notification_log ORDER BY id")


def names(scene: Scene) -> list[str]:
    """To whom the last stage sent."""
    return [message.to.partition("@")[0] for message in scene.sent]


def test_each_is_settled_before_the_next_is_sent(scene: Scene, other: Connection) -> None:
    """Whatever happens at a message, at most one may come twice. Each is for one recipient, its id from its row."""

    class ObservingMailbox(Mailbox):
        async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
            sent = other.execute("SELECT id FROM cert_notification_log WHERE status = 'sent'").fetchall()
            assert len(sent) == len(self.envelopes)
            return await super().handle_DATA(server, session, envelope)

    queue(scene, 3)
    mailbox = ObservingMailbox()
    with real_server(mailbox) as server:
        assert scene.stage(channel=smtp_channel(server.port)) is None

    assert log(scene, "status, sent_at IS NOT NULL") == [("sent", True)] * 3
    assert [each.rcpt_tos for each in mailbox.envelopes] == [[f"m{number}@example.org"] for number in range(3)]
    for envelope, (row_id,) in zip(mailbox.envelopes, log(scene, "id"), strict=True):
        assert f"Message-ID: <certjob-reminder-{row_id}-".encode() in envelope.content


def test_an_unknown_outcome_is_repeated_with_the_same_id_and_says_so(scene: Scene) -> None:
    """The connection broke after the message: it is put off, the others go on, and two are no reason to stop."""
    queue(scene, 2)
    with ScriptedServer({"END": Fault.CUT}) as server:
        assert scene.stage(channel=smtp_channel(server.port)) is None

    assert log(scene, "status, maybe_sent") == [("pending", True)] * 2
    scene.make_due()
    scene.stage()
    for message, first in zip(scene.sent, server.bodies, strict=True):
        assert f"-{message.idempotency_key}@".encode() in first
        assert message.repeat
        assert "Du har kanskje fått denne påminnelsen før." in message.text


@pytest.mark.parametrize("outcome", [None, CUT], ids=["sent", "unknown"])
def test_outcome_is_stored_although_the_session_ended(
    scene: Scene, database_url: str, other: Connection, outcome: Exception | None
) -> None:
    """The stage ends with the database's error, and the mail that was in flight is not forgotten."""
    queue(scene, 2)

    def end_the_session(_message: OutgoingMessage) -> Exception | None:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [lost.info.backend_pid])
        return outcome

    channel = CollectingChannel(on_send=end_the_session)
    with database.connect(database_url) as lost, pytest.raises(psycopg.OperationalError):
        scene.stage(queue=reminder_mail(lost), channel=channel)

    first, second = (("pending", True) if outcome else ("sent", False)), ("pending", False)
    assert log(scene, "status, maybe_sent") == [first, second]
    assert log(scene, "claim_token, attempts") == [(None, 1), (None, 0)]


OUTCOMES = {".": None, "R": REFUSED, "L": PUT_OFF, "C": CUT, "D": DOWN}
"""Sent, refused, later, cut off after the message, down."""


@pytest.mark.parametrize(
    ("messages", "outcomes", "stopped", "became"),
    [
        (
            11,
            "CCLCC.CCC",
            "outcomes_unknown: the outcome of 3 messages in a row",
            {"untouched": 2, "sent": 1, "pending": 8},
        ),
        (16, "RRRR.RRRRLRRRR", None, {"sent": 3, "failed": 12, "pending": 1}),
        (7, "RRRRR", "all_refused: 5 messages in a row were refused (last: ", {"untouched": 2, "pending": 5}),
        (6, "LLLLLL", None, {"pending": 6}),
        (5, "DD..DDD", "channel_down: gone; the rest stays pending", {"untouched": 3, "sent": 2}),
    ],
    ids=["unknown", "a sign of life between them", "refused", "a server that greylists everybody", "down"],
)
def test_a_row_of_failures_of_one_kind_ends_the_stage(
    scene: Scene, messages: int, outcomes: str, stopped: str | None, became: dict[str, int]
) -> None:
    """Three tries of a server that is down. What surely was not sent is as it was, of five refusals none is failed."""
    queue(scene, messages)

    why = scene.stage(*(OUTCOMES[each] for each in outcomes))

    assert (why or "").startswith(stopped or "")
    assert (why is None, statuses(scene)) == (stopped is None, became)
    assert scene.counts == MailCounts(sent=became.get("sent", 0), failed=became.get("failed", 0))


def test_each_outcome_is_written_down(scene: Scene) -> None:
    """The delay doubles with each try. Of an address that is none no server is even asked."""
    queue(scene, 5)
    scene.execute("UPDATE mentors SET email = 'nowhere' WHERE email = 'm0@example.org'")
    scene.execute("UPDATE cert_notification_log SET attempts = 1 WHERE mentor_id = %s", UUID(int=4))  # so it comes last

    scene.stage(*(OUTCOMES[each] for each in ".RCL"))

    row = "status, attempts, maybe_sent, last_error, failure_code, claim_token"
    put_off = "ceil(extract(epoch FROM next_attempt_at - now()) / 60) = 15 * attempts"
    assert log(scene, f"{row}, {put_off}")[1:] == [
        ("sent", 1, False, None, None, None, False),
        ("failed", 1, False, "550 no such user", "mail_stopped", None, False),
        ("pending", 2, False, "450 greylisted", "mail_delayed", None, True),
        ("pending", 1, True, "cut", "mail_delayed", None, True),
    ]
    assert log(scene, "status, attempts, failure_code")[0] == ("failed", 0, "wrong_address")
    assert [seconds_to_next_round(attempts) / 60 for attempts in (1, 2, 3, 5, 6, 99)] == [15, 30, 60, 240, 360, 360]


def test_five_refused_in_a_row_are_the_servers_fault(scene: Scene, other: Connection) -> None:
    """Pending again, tried less and less often, after the others; but for one that became something else meanwhile."""
    queue(scene, 7)

    def refuse_five(message: OutgoingMessage) -> None:
        if message.to < "m5":
            raise REFUSED

    def supersede_the_first(message: OutgoingMessage) -> None:
        if message.to == "m4@example.org":
            other.execute("UPDATE cert_notification_log SET status = 'superseded' WHERE mentor_id = %s", (UUID(int=1),))
        raise REFUSED

    delayed = (
        "SELECT attempts, count(*) FROM cert_notification_log WHERE status = 'pending' AND next_attempt_at - now()"
        " BETWEEN make_interval(mins => %s, secs => -30) AND make_interval(mins => %s) GROUP BY attempts"
    )
    for attempts, minutes, sent in ((1, 15, []), (2, 30, ["m5", "m6"])):
        scene.stage(on_send=refuse_five)
        assert names(scene) == sent
        assert scene.rows(delayed, minutes, minutes) == [(attempts, 5)]
        scene.make_due()
    assert scene.stage(on_send=supersede_the_first) is not None
    assert statuses(scene) == {"pending": 4, "superseded": 1, "sent": 2}


def test_what_makes_a_server_hang_up_is_put_behind_the_others(scene: Scene) -> None:
    """Nobody is told of a repeat: it was surely not handed over."""
    queue(scene, 3)

    def hang_up(message: OutgoingMessage) -> None:
        if message.to == "m0@example.org":
            raise DOWN

    for sent in ([], ["m1", "m2"]):
        scene.stage(on_send=hang_up)
        assert names(scene) == sent
    assert not any(message.repeat for message in scene.sent)


def test_a_webhook_that_says_when_to_come_back_is_asked_then(scene: Scene) -> None:
    """Three times at most."""
    queue(scene, 2)
    busy = ChannelDownError("the webhook cannot take messages now (503)", retry_after_seconds=0.05)
    began = time.monotonic()

    assert scene.stage(busy, busy, busy) is not None

    assert time.monotonic() - began >= 0.1
    assert statuses(scene) == {"untouched": 2}
    assert scene.stage(seconds=0) == "deadline: the time for deliveries is over; the rest stays pending"
    assert statuses(scene) == {"untouched": 2}


@pytest.mark.parametrize("error", [None, DOWN], ids=["sent", "down"])
def test_a_signal_ends_it_between_two_messages(scene: Scene, error: Exception | None) -> None:
    """What was sent is settled, the rest as it was. It cuts the tries short, and the mail server is not blamed."""
    queue(scene, 3)
    stop, tries = StopFlag(), list[OutgoingMessage]()

    def set_and_fail(message: OutgoingMessage) -> None:
        tries.append(message)
        stop.set()
        if error is not None:
            raise error

    with pytest.raises(StoppedBySignalError):
        scene.stage(on_send=set_and_fail, stop=stop)

    assert len(tries) == 1
    assert statuses(scene) == ({"untouched": 3} if error else {"untouched": 2, "sent": 1})


def test_an_unforeseen_error_leaves_one_message_in_doubt(scene: Scene) -> None:
    """It keeps its lease, and the repeat will say so; the rest is untouched."""
    queue(scene, 3)

    with pytest.raises(LookupError):
        scene.stage(None, LookupError("a bug"))

    assert statuses(scene) == {"sent": 1, "pending": 1, "untouched": 1}
    scene.run_out()
    scene.stage()
    assert sorted(message.repeat for message in scene.sent) == [False, True]


def test_no_try_is_begun_that_could_outlast_the_lease(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the first one nor, after a first that took long, a second: released, not sent, not claimed over again."""
    queue(scene, 2)
    tries = []

    def time_out(message: OutgoingMessage) -> None:
        tries.append(message)
        monkeypatch.setattr(scene.channel, "worst_case_seconds", 1000.0)
        raise DOWN

    for lease_seconds in (0.5, 900.0):
        monkeypatch.setattr(ReminderMail, "lease_seconds", lease_seconds)
        stopped = scene.stage(on_send=time_out)
        assert str(stopped).startswith(
            "channel_down: a message can take longer than its lease, or this process stood still"
        )
        assert statuses(scene) == {"untouched": 2}
    assert len(tries) == 1


@pytest.mark.parametrize("outcome", list(".RLC"))
def test_a_lease_that_is_lost_is_reported_and_nothing_is_written(scene: Scene, other: Connection, outcome: str) -> None:
    """Somebody took the reminder over while its message was on its way: that claim stands."""
    queue(scene, 1)

    def freeze(_message: OutgoingMessage) -> None:
        run_out(Facts(other), "cert_notification_log")
        reminder_mail(other).claim()

    scene.stage(OUTCOMES[outcome], on_send=freeze)

    assert scene.counts == MailCounts(lost=1)
    assert log(scene, "status, attempts, claim_token IS NOT NULL, maybe_sent") == [("pending", 2, True, True)]


def test_a_settle_whose_commit_fails_is_tried_again(scene: Scene) -> None:
    """A trigger of somebody's, a standby: not every error comes with the statement. It fails the first time alone."""
    queue(scene, 1)
    mail = reminder_mail(scene.connection)
    reminder, _ = mail.claim()
    assert reminder is not None
    scene.execute("""
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

    assert mail.settle(reminder, Settlement(status="sent")) is Answer.SETTLED
