"""Each mentor is reminded once per threshold, and only while it is still true."""

import threading
from collections.abc import Iterable, Iterator
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import RecipientDeferredError
from certjob.mail import reminder_mail as reminder_mail_module
from certjob.mail.message import OutgoingMessage
from certjob.mail.reminder_mail import QueuedReminder
from certjob.mail.reminders import CertificationReminderService, find_new_reminders
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import Settlement
from certjob.reports.alerts import read_alerts
from certjob.review.attention import Kind, read_attention
from tests.mail.conftest import REFUSED, Messages, Scene, day
from tests.support.channels import reminder_mail
from tests.support.facts import TODAY
from tests.support.nights import in_background
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def kari(scene: Scene) -> UUID:
    """A mentor whose certificate is in force for 25 days more: the 30-day reminder is due."""
    return scene.certified("Kari", until=25, email="kari@example.org")


@pytest.fixture(autouse=True)
def the_plan_counts_what_is_queued(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In every scene of this file ``find_new_reminders``, for plan and guards, says what the upsert then queues."""
    queue = CertificationReminderService.queue
    both: list[tuple[list[UUID], list[UUID]]] = []

    def look(self: CertificationReminderService, decisions: Iterable[Decision]) -> list[UUID]:
        decided = list(decisions)
        found = sorted(mentor_id for mentor_id, _ in find_new_reminders(self._connection, decided))
        queued = queue(self, decided)
        both.append((found, sorted(queued)))
        return queued

    monkeypatch.setattr(CertificationReminderService, "queue", look)
    yield
    assert [found for found, _ in both] == [queued for _, queued in both]


def claim(scene: Scene) -> QueuedReminder:
    reminder, _ = reminder_mail(scene.connection).claim()
    assert reminder is not None
    return reminder


def log(scene: Scene, columns: str) -> list[tuple[object, ...]]:
    return scene.rows(f"SELECT {columns} FROM cert_notification_log ORDER BY threshold_days DESC, id")


CHANGES = {
    "revoke": "UPDATE certificates SET revoked_at = now()",
    "restore": "UPDATE certificates SET revoked_at = NULL",
    "delete": "DELETE FROM certificates",
    "becomes sent": "UPDATE cert_notification_log SET status = 'sent'",
    "becomes failed": "UPDATE cert_notification_log SET status = 'failed'",
    "was tried": "UPDATE cert_notification_log SET attempts = 1 WHERE status = 'pending'",
}

STORIES = {
    "the same date again does nothing, whatever has become of it; another kind is another reminder": """
        review 0, review 0           |  | 30@25 pending
        becomes sent, review 0       |  | 30@25 sent
        becomes failed, review 0     |  | 30@25 failed
        enter first-aid 25, review 0 |  | 30@25 failed, 30@25 pending""",
    "a typo that is corrected loses no reminder": """
        review 0, move 10 |          | 30@25 superseded, 14@10 pending
        move 25, night 0  | 30@25 | 30@25 sent < superseded@25, 14@10 cancelled""",
    "each date is mailed about once, to and fro as often as one likes": """
        night 0, move 26, move 25, night 0 | 30@25 | 30@26 cancelled < sent@25
        move 26, night 0                   | 30@26 | 30@26 sent < cancelled@26 < sent@25
        move 25, night 0, move 26, night 0 |          | 30@26 sent < cancelled@26 < sent@25""",
    "also when its certificate is gone": """
        night 0, delete, enter likeperson 24, night 0 | 30@25, 30@24 | 30@25 sent, 30@24 sent
        move 25, night 0                              |                    | 30@25 sent, 30@24 sent
        move 26, night 0                              | 30@26           | 30@25 sent, 30@26 sent < sent@24""",
    "nor twice after a typo, when it is entered anew": """
        night 0, move 24, night 0            | 30@25, 30@24 | 30@24 sent < sent@25
        delete, enter likeperson 25, night 0 |                    | 30@24 sent < sent@25""",
    "a mail about another kind is another matter": """
        night 0, enter first-aid 24, night 0 | 30@25, 30@24 | 30@25 sent, 30@24 sent
        move 25, night 0                     | 30@25           | 30@25 sent, 30@25 sent < sent@24""",
    "one that is cancelled by a mistake comes back as the same message": """
        review 0, revoke, night 0 |          | 30@25 cancelled
        restore, night 0          | 30@25 | 30@25 sent < cancelled@25""",
    "and as a repeat if a process had died after the server had taken it": """
        review 0, claim, vanish, revoke, night 0 | claimed             | 30@25 cancelled?
        restore, night 0                         | 30@25 again | 30@25 sent? < cancelled@25?""",
    "a more urgent one supersedes an older unsent one about the same certificate": """
        enter longer 50, review 0, review 12 | | 60@50 pending, 30@25 superseded, 14@25 pending""",
    "and one that failed": """
        review 0, becomes failed, review 12 | | 30@25 superseded, 14@25 pending""",
    "but not one that is over": """
        review 0, revoke, stage 0, restore, review 12 | | 30@25 cancelled, 14@25 pending""",
    "nor one that was sent": """
        night 0, review 12 | 30@25 | 30@25 sent, 14@25 pending""",
    "a more urgent one leaves it to its claim, and supersedes it once its sender is gone": """
        review 0, claim, review 12  | claimed   | 30@25 pending, 14@25 pending
        vanish, review 19, settle 0 | lost | 30@25 superseded?, 14@25 superseded, 7@25 pending""",
    "a claim whose lease ran out or whose row was re-armed writes nothing": """
        review 0, claim, vanish, claim, settle 0 | claimed, claimed again, lost | 30@25 pending?
        move 26, settle 1                        | lost               | 30@26 pending < pending@25?
        move 25, claim, settle 2                 | claimed again, settled  | 30@25 sent? < pending@26 < pending@25?""",
    "one of a later day that is cancelled today comes on its day": """
        review 12, stage 0 |          | 14@25 cancelled
        night 12           | 14@25 | 14@25 sent < cancelled@25""",
    "so does one about a certificate that begins tomorrow": """
        begin 1, review 1, stage 0 |          | 30@25 cancelled
        night 1                    | 30@25 | 30@25 sent < cancelled@25""",
    "a night that goes on after midnight leaves to the new day what that has queued": """
        move 15, night 0, review 1, stage 0 | 30@15 | 30@15 sent, 14@15 pending
        was tried, stage 0                  |          | 30@15 sent, 14@15 pending
        stage 1                             | 14@15 | 30@15 sent, 14@15 sent""",
}
"""Steps, what comes of them, and the log: threshold@last day, status < earlier ones. ? = it may have been sent."""


def do(scene: Scene, step: str, claims: list[QueuedReminder]) -> str:
    """Do one step of a story; return what came of it: mails, a claim, the answer to a settle."""
    match step.split():
        case ["review", number]:
            scene.execute("UPDATE mentors SET review_on = '-infinity'")
            scene.review(int(number))
        case ["night" | "stage" as what, number]:
            before = len(scene.channel.sent)
            (scene.night if what == "night" else scene.stage)(number=int(number))
            return ", ".join(map(shown, scene.channel.sent[before:]))
        case ["move", number]:  # the last day in place, as the app does
            scene.execute("UPDATE certificates SET expires_on = %s", day(int(number)))
            scene.review()
        case ["begin", number]:
            scene.execute("UPDATE certificates SET issued_on = %s", day(int(number)))
        case ["enter", kind, number]:
            ((mentor,),) = scene.rows("SELECT id FROM mentors")
            scene.facts.certificate(mentor, day(int(number)), kind=kind)  # type: ignore[arg-type]
        case ["claim"]:
            claims.append(claim(scene))
            return f"claimed{' again' * claims[-1].maybe_sent}"
        case ["vanish"]:
            scene.run_out()
        case ["settle", number]:
            settlement = Settlement(status="sent")
            return reminder_mail(scene.connection).settle(claims[int(number)], settlement).value
        case _:
            scene.execute(CHANGES[step])
    return ""


def shown(message: OutgoingMessage) -> str:
    """Threshold and last day."""
    assert message.expires_on is not None
    return f"{message.threshold_days}@{(message.expires_on - TODAY).days}{' again' * message.repeat}"


def written(scene: Scene) -> str:
    """The log, as the stories write it."""
    rows = scene.rows(f"""
        SELECT concat(threshold_days, '@', expires_on - '{TODAY}', ' ', status, repeat('?', maybe_sent::int), (
            SELECT string_agg(
                concat(' < ', h ->> 'status', '@', (h ->> 'expires_on')::date - '{TODAY}',
                    repeat('?', (h ->> 'maybe_sent')::boolean::int)), '' ORDER BY n DESC)
            FROM jsonb_array_elements(history) WITH ORDINALITY AS earlier (h, n)))
        FROM cert_notification_log ORDER BY threshold_days DESC, id""")
    return ", ".join(str(row) for (row,) in rows)


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES)
def test_what_becomes_of_a_reminder(scene: Scene, story: str) -> None:
    claims: list[QueuedReminder] = []
    for line in story.strip().splitlines():
        steps, came, becomes = map(str.strip, line.split("|"))
        done = [do(scene, step, claims) for step in steps.split(", ")]
        assert (", ".join(filter(None, done)), written(scene)) == (came, becomes), steps


@pytest.mark.usefixtures("kari")
def test_an_extension_in_place_rearms_it(scene: Scene) -> None:
    """The earlier cycle goes to the history; the row is as new, and the message another one, by its last day."""
    (first,) = scene.night()
    scene.execute("UPDATE cert_notification_log SET attempts = 3, last_error = 'put off', maybe_sent = true")
    do(scene, "move 26", [])

    new = "status, attempts, last_error, sent_at, next_attempt_at <= now(), claim_token, maybe_sent"
    assert log(scene, new) == [("pending", 0, None, None, True, None, False)]
    assert written(scene) == "30@26 pending < sent@25?"
    assert log(scene, "history[0] ->> 'attempts', history[0] ->> 'last_error'") == [("3", "put off")]
    (second,) = scene.night()
    assert (second.expires_on, second.idempotency_key == first.idempotency_key) == (day(26), False)


def test_a_reminder_after_a_restore_has_a_key_of_its_own(scene: Scene, kari: UUID) -> None:
    """A webhook drops a key that it knows, and the restored sequence gives another mentor's reminder the same id."""
    (lost,) = scene.night()
    scene.execute("DELETE FROM mentors WHERE id = %s", kari)
    scene.execute("ALTER TABLE cert_notification_log ALTER COLUMN id RESTART")
    scene.certified("Ola", until=25)

    (sent,) = scene.night()

    assert lost.idempotency_key.rpartition("-")[0] == sent.idempotency_key.rpartition("-")[0]
    assert lost.idempotency_key != sent.idempotency_key


def test_untried_ones_come_first(scene: Scene, other: Connection) -> None:
    """What a server keeps refusing must not stand before the new ones. What another session holds is passed by."""
    for name in ("Kari", "Ola", "Pia", "Tor"):
        scene.certified(name, until=5)
    scene.review()
    first, second, third, fourth = (row[0] for row in log(scene, "id"))
    tried = "UPDATE cert_notification_log SET attempts = 2, next_attempt_at = now() - interval '1 day' WHERE id <= %s"
    scene.execute(tried, second)

    with other.transaction():
        other.execute("SELECT FROM cert_notification_log WHERE id = %s FOR UPDATE", (third,))
        assert [claim(scene).id for _ in range(2)] == [fourth, first]

    assert [claim(scene).id for _ in range(2)] == [third, second]


@pytest.mark.usefixtures("kari")
def test_what_is_not_true_any_more_is_cancelled_unless_somebody_just_changes_the_mentor(scene: Scene, app: App) -> None:
    """Then it waits for what comes of it, and holds up nobody else's mail. No attempt is counted."""
    scene.review()
    scene.execute("UPDATE certificates SET revoked_at = now()")
    app.execute("UPDATE mentors SET full_name = 'Kari Hansen'")
    scene.stage()
    assert scene.counts == MailCounts()
    assert log(scene, "status, attempts, claim_token, next_attempt_at > now()") == [("pending", 0, None, True)]
    app.rollback()
    scene.make_due()

    scene.stage()

    assert (scene.counts, scene.sent) == (MailCounts(cancelled=1), [])
    assert log(scene, "status, last_error, attempts, claim_token") == [("cancelled", "revoked", 0, None)]


def test_what_is_still_true_is_sent_with_the_facts_of_the_moment(scene: Scene, kari: UUID) -> None:
    """The address of now, not of the review; a mentor who is deleted between claim and message gets nothing."""
    scene.review()
    scene.execute("UPDATE mentors SET email = ' new@example.org ', full_name = 'Kari Hansen'")
    scene.stage()
    (message,) = scene.sent
    assert (message.to, message.mentor_id, "Kari Hansen" in message.text) == ("new@example.org", kari, True)
    do(scene, "move 26", [])
    scene.execute("ALTER TABLE mentors DISABLE TRIGGER mentor_deleted")
    reminder = claim(scene)
    scene.execute("DELETE FROM mentors")

    assert reminder_mail(scene.connection).draft(reminder) is None


@pytest.mark.parametrize(
    ("email", "reason", "code"), [("   ", "no address", "no_address"), ("kari@", "is not an address", "wrong_address")]
)
def test_a_corrected_address_sends_it_the_next_night(scene: Scene, email: str, reason: str, code: str) -> None:
    """Failed before, no attempt counted, counted once and shown; sent without a word of a repeat."""
    scene.certified(until=25, email=email)
    for number in range(2):
        assert scene.night(number) == []
        assert scene.report.to_document()["reminders"]["failed"] == 1 - number
        assert scene.report.reasons == ["1 reminder was not delivered; see `certjob alerts`"]
    ((error, *row),) = log(scene, "last_error, status, failure_code, attempts")
    assert (reason in str(error), row) == (True, ["failed", code, 0])
    scene.execute("UPDATE mentors SET email = 'kari@example.org'")

    assert [(message.to, message.repeat) for message in scene.night(2)] == [("kari@example.org", False)]
    assert log(scene, "status, attempts, last_error") == [("sent", 1, None)]


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize("committed", [True, False])
def test_an_address_that_is_corrected_during_the_refusal_is_tried(scene: Scene, app: App, committed: bool) -> None:
    """In the very second of the refusal, or committed after it, when neither sees the other: it is not lost."""
    scene.review()

    def refuse(message: OutgoingMessage) -> None:
        if message.to == "kari@example.org":
            app.execute("UPDATE mentors SET email = 'new@example.org'")
            if committed:
                app.commit()
            raise REFUSED

    scene.stage(on_send=refuse)
    assert scene.counts.failed == 0
    if not committed:
        app.commit()
        assert log(scene, "status, last_error") == [("pending", "550 no such user")]
        scene.make_due()
        scene.stage()

    assert [message.to for message in scene.sent] == ["new@example.org"]
    assert log(scene, "attempts") == [(1 if committed else 2,)]


@pytest.mark.usefixtures("kari")
def test_an_address_that_is_entered_while_its_lack_is_noted_is_used(
    scene: Scene, other: Connection, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mentor is held from the question to the answer: it is written after the failure, which its trigger finds."""
    scene.review()
    scene.execute("UPDATE mentors SET email = NULL")
    app.autocommit = True  # one who looks, at each look anew
    begun, read_recipient = threading.Event(), reminder_mail_module.read_recipient

    def look(connection: Connection, mentor_id: UUID) -> object:
        if not begun.is_set():
            begun.set()
            until(lambda: waits_for_a_lock(app, other))
        return read_recipient(connection, mentor_id)

    monkeypatch.setattr(reminder_mail_module, "read_recipient", look)
    with in_background(lambda: begun.wait(20) and other.execute("UPDATE mentors SET email = 'new@example.org'")):
        scene.stage()  # it may be in time for this one
    scene.stage()

    assert [message.to for message in scene.channel.sent] == ["new@example.org"]


def test_one_that_failed_is_shown_though_its_threshold_is_long_past(scene: Scene) -> None:
    """A first import queues late: the fourteen days of showing it count from then."""
    for number in (40, 5):
        scene.certified(until=number, email=None)

    scene.night()

    scene.execute("UPDATE cert_notification_log SET queued_at = %s", TODAY)
    assert [len(read_alerts(scene.connection, today=day(number))) for number in (0, 14, 15)] == [2, 2, 0]


@pytest.mark.usefixtures("kari")
def test_greylisted_reminder_is_no_alert_until_a_day_after_the_first_refusal(scene: Scene) -> None:
    """However long it was queued before: the mail server was down for two days, and greylists now."""
    scene.night()
    scene.execute(
        "UPDATE cert_notification_log SET status = 'pending', queued_at = now() - interval '2 days', sent_at = NULL,"
        " next_attempt_at = now()"
    )
    assert [alert.kind for alert in read_alerts(scene.connection, today=TODAY)] == ["waiting_reminders"]

    scene.night(fails=RecipientDeferredError("451 greylisted"))

    assert read_alerts(scene.connection, today=TODAY) == []
    scene.execute("UPDATE cert_notification_log SET deferred_since = deferred_since - interval '25 hours'")
    (alert,) = read_alerts(scene.connection, today=TODAY)
    assert (alert.kind, alert.cause, alert.error) == ("failed_reminders", "mail_delayed", "451 greylisted")


@pytest.mark.usefixtures("kari")
def test_one_that_is_put_off_for_a_day_is_told_to_people_once(scene: Scene) -> None:
    """Servers greylist: that passes. A full mailbox is in the alerts as long as it lasts, and in one digest."""
    full = RecipientDeferredError("the mail server put the recipient off (452 4.2.2 mailbox full)")
    scene.coordinator()

    def shown() -> list[str | None]:
        reminders = [alert for alert in read_alerts(scene.connection, today=TODAY) if alert.kind == "failed_reminders"]
        assert read_attention(scene.connection, today=TODAY).counts[Kind.FAILED_REMINDERS].number == len(reminders)
        return [reminder.error for reminder in reminders]

    assert (len(scene.pages(fails=full, kind="reminder")), shown()) == (1, [])
    scene.execute(
        "UPDATE cert_notification_log SET queued_at = queued_at - interval '25 hours',"
        " deferred_since = deferred_since - interval '25 hours'"
    )
    pages: Messages = []
    for number in range(1, 4):
        scene.make_due()
        pages += scene.pages(number, fails=full, kind="reminder")

    assert shown() == [str(full)]
    (page,) = pages
    assert "* Kari (M1001), gjelder sertifikatet" in page.text
    assert "Påminnelsen har kanskje ikke kommet fram. Vi prøver igjen automatisk." in page.text
    scene.make_due()
    assert [message.kind for message in scene.night(4)] == ["reminder"]
    assert shown() == []
