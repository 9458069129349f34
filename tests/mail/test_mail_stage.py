"""The mail stage: one message at a time, each settled before the next, and a failure is known to be whose it is."""

import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.database import Connection
from certjob.errors import ChannelDownError, RecipientDeferredError, StoppedBySignalError
from certjob.mail.message import OutgoingMessage
from certjob.mail.messages.templates import Templates
from certjob.mail.reminder_mail import ReminderMail
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import Answer, Settlement
from certjob.outbox.retry import seconds_to_next_round
from certjob.stopping import StopFlag
from tests.mail.conftest import CUT, DOWN, REFUSED, Scene, day
from tests.support.channels import reminder_mail, smtp_channel
from tests.support.facts import Facts
from tests.support.intents import run_out
from tests.support.smtp_server import Fault, Mailbox, real_server, scripted_server

DEFERRED = RecipientDeferredError("450 greylisted")


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

    assert scene.counts == MailCounts(sent=3)
    assert log(scene, "status, attempts, sent_at IS NOT NULL, claim_token") == [("sent", 1, True, None)] * 3
    assert [each.rcpt_tos for each in mailbox.envelopes] == [[f"m{number}@example.org"] for number in range(3)]
    for envelope, (row_id,) in zip(mailbox.envelopes, log(scene, "id"), strict=True):
        assert f"Message-ID: <certjob-reminder-{row_id}-0@hlf.example>".encode() in envelope.content


def test_an_unknown_outcome_is_repeated_with_the_same_id_and_says_so(scene: Scene) -> None:
    """The connection broke after the message: it is put off, the others go on, and two are no reason to stop."""
    queue(scene, 2)
    with scripted_server({"END": Fault.CUT}) as server:
        assert scene.stage(channel=smtp_channel(server.port)) is None

    row = "status, maybe_sent, failure_code, attempts, claim_token, next_attempt_at > now() + interval '14 min'"
    assert log(scene, row) == [("pending", True, "maybe_arrived", 1, None, True)] * 2
    scene.make_due()
    scene.stage()
    for message, first in zip(scene.sent, server.bodies, strict=True):
        assert f"-{message.idempotency_key}@".encode() in first
        assert message.repeat
        assert "Har du allerede fått denne påminnelsen?" in message.text


def test_three_unknown_outcomes_in_a_row_stop_the_stage(scene: Scene) -> None:
    """A server that breaks off every time would make a duplicate of every message. A deferral is a sign of life."""
    queue(scene, 11)

    stopped = scene.stage(CUT, CUT, DEFERRED, CUT, CUT, None, CUT, CUT, CUT)

    assert stopped == "unknown: the outcome of 3 messages in a row is unknown (last: cut); the rest waits"
    assert statuses(scene) == {"untouched": 2, "sent": 1, "pending": 8}
    assert scene.rows("SELECT count(*) FROM cert_notification_log WHERE maybe_sent") == [(7,)]


def test_a_refused_or_impossible_address_is_failed_and_the_others_go_on(scene: Scene) -> None:
    """A sign of life between them makes eight wrong addresses; of a bad import no server is even asked."""
    queue(scene, 17)
    scene.execute("UPDATE mentors SET email = 'nowhere' WHERE email IN ('m0@example.org', 'm1@example.org')")

    assert scene.stage(*[REFUSED] * 4, None, *[REFUSED] * 4, DEFERRED, *[REFUSED] * 4) is None

    assert (scene.counts, names(scene)) == (MailCounts(sent=2, failed=14), ["m6", "m16"])
    row = log(scene, "status, attempts, last_error, failure_code")[2]
    assert row == ("failed", 1, "550 no such user", "message_refused")


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
        stopped = scene.stage(on_send=refuse_five)
        assert stopped is not None
        assert stopped.startswith("refused: 5 messages in a row were refused (last: 550 no such user); they and ")
        assert (scene.counts.failed, names(scene)) == (0, sent)
        assert scene.rows(delayed, minutes, minutes) == [(attempts, 5)]
        scene.make_due()
    assert scene.stage(on_send=supersede_the_first) is not None
    assert statuses(scene) == {"pending": 4, "superseded": 1, "sent": 2}


def test_a_deferred_one_is_tried_again_later_and_many_do_not_stop_the_stage(scene: Scene) -> None:
    """A server that greylists everybody is in order. Pending, surely not sent, nothing counted; the delay doubles."""
    queue(scene, 6)
    scene.execute("UPDATE cert_notification_log SET attempts = 1")

    assert scene.stage(*[DEFERRED] * 6) is None

    assert scene.counts == MailCounts()
    row = "status, attempts, maybe_sent, claim_token, last_error, failure_code"
    put_off = "next_attempt_at - now() BETWEEN interval '29 min' AND interval '30 min'"
    expected = ("pending", 2, False, None, "450 greylisted", "deferred", True)
    assert log(scene, f"{row}, {put_off}") == [expected] * 6
    assert [seconds_to_next_round(attempts) / 60 for attempts in (1, 2, 3, 5, 6, 99)] == [15, 30, 60, 240, 360, 360]


def test_a_server_that_is_down_is_tried_three_times_then_the_stage_stops(scene: Scene) -> None:
    """What was sent stays sent, the rest is as it was. What makes a server hang up is put behind the others."""
    queue(scene, 5)

    assert scene.stage(DOWN, DOWN, None, None, DOWN, DOWN, DOWN) == "down: gone; the rest stays pending"

    assert (names(scene), statuses(scene)) == (["m0", "m1"], {"untouched": 3, "sent": 2})

    def hang_up(message: OutgoingMessage) -> None:
        if message.to == "m3@example.org":
            raise DOWN

    for sent in ([], ["m4", "m2"]):
        scene.stage(on_send=hang_up)
        assert names(scene) == sent
    assert not any(message.repeat for message in scene.sent)


def test_a_webhook_that_says_when_to_come_back_is_asked_then_and_at_the_deadline_the_rest_is_released(
    scene: Scene,
) -> None:
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
        assert str(stopped).startswith("down: a message can take longer than its lease, or this process stood still")
        assert statuses(scene) == {"untouched": 2}
    assert len(tries) == 1


@pytest.mark.parametrize("error", [None, DEFERRED, CUT, REFUSED], ids=["sent", "deferred", "unknown", "refused"])
def test_a_lease_that_is_lost_is_reported_and_nothing_is_written(
    scene: Scene, other: Connection, error: Exception | None
) -> None:
    """Somebody took the reminder over while its message was on its way: that claim stands."""
    queue(scene, 1)

    def freeze(_message: OutgoingMessage) -> None:
        run_out(Facts(other), "cert_notification_log")
        reminder_mail(other).claim()

    scene.stage(error, on_send=freeze)

    assert scene.counts == MailCounts(lost=1)
    assert log(scene, "status, attempts, claim_token IS NOT NULL, maybe_sent") == [("pending", 2, True, True)]


def test_a_template_that_breaks_on_one_mentor_gives_way_to_ours(scene: Scene, tmp_path: Path) -> None:
    """Everybody gets the message in time; the stage says at its end what broke, without naming anybody."""
    queue(scene, 3)
    scene.execute("UPDATE mentors SET full_name = 'Ola Hansen' WHERE email = 'm1@example.org'")
    (tmp_path / "reminder.nb.txt").write_text("Emne\n\n{{ {'Kari Nordmann': 'Kjære Kari'}[name] }}\n")
    templates = Templates(tmp_path)

    assert scene.stage(queue=reminder_mail(scene.connection, templates=templates)) is None

    assert [message.text.split()[0] for message in scene.sent] == ["Kjære", "Hei,", "Kjære"]
    problem = templates.problem()
    assert problem is not None
    assert (problem.code, "Hansen" in problem.reason) == ("template", False)
    assert "reminder.nb.txt line 3" in problem.reason
    assert "1 message was written with certjob's own template instead" in problem.reason


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
