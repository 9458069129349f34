"""Each mentor is reminded once per threshold and last day, and only while it is still true."""

from datetime import date, timedelta
from uuid import UUID

import psycopg
import pytest

from certjob.errors import RecipientDeferredError
from certjob.mail import steps
from certjob.mail.message import OutgoingMessage
from certjob.mail.reminder_mail import QueuedReminder
from certjob.mail.stage import MailCounts
from certjob.outbox.claims import Answer, Settlement
from certjob.reports.alerts import read_alerts
from tests.conftest import Certjob
from tests.mail.channels import reminder_mail
from tests.mail.conftest import REJECTED, Mailing, day
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts

App = psycopg.Connection[tuple[object, ...]]

REVOKE = "UPDATE certificates SET revoked_at = now()"
RESTORE = "UPDATE certificates SET revoked_at = NULL"


@pytest.fixture
def kari(mailing: Mailing) -> UUID:
    """A mentor with 25 days left on the certificate, so the 30-day reminder is due."""
    return mailing.certified("Kari", until=25, email="kari@example.org")


def claim(mailing: Mailing) -> QueuedReminder:
    reminder = steps.claim(reminder_mail(mailing.connection))
    assert reminder is not None
    return reminder


def log(mailing: Mailing, columns: str = "threshold_days, status") -> list[tuple[object, ...]]:
    return mailing.rows(f"SELECT {columns} FROM cert_notification_log ORDER BY threshold_days DESC, id")


def review(mailing: Mailing, number: int = 0) -> None:
    """Review all mentors, also those that are not due."""
    mailing.execute("UPDATE mentors SET review_on = '-infinity'")
    mailing.review(number)


def move(mailing: Mailing, days_left: int) -> None:
    """Change the last day in place, as the app does."""
    mailing.execute("UPDATE certificates SET expires_on = %s", day(days_left))


@pytest.mark.parametrize("status", ["pending", "sent", "failed"])
def test_same_date_is_queued_once(mailing: Mailing, kari: UUID, status: str) -> None:
    """Another kind has its own reminder."""
    review(mailing)
    mailing.execute("UPDATE cert_notification_log SET status = %s", status)
    review(mailing)
    assert log(mailing) == [(30, status)]

    mailing.facts.certificate(kari, day(25), kind="first-aid")
    review(mailing)

    assert log(mailing) == [(30, status), (30, "pending")]


@pytest.mark.usefixtures("kari")
def test_date_moved_back_and_forth_is_mailed_once_per_date(mailing: Mailing) -> None:
    """A dry run announces the same mails."""
    mailed: list[date | None] = []
    for days_left in (25, 26, 25, 26, 25):
        move(mailing, days_left)
        mailing.mails(dry_run=True)
        planned = mailing.report.to_document()["reminders"]["queued"]
        mails = mailing.mails()
        assert len(mails) == planned
        mailed += [mail.expires_on for mail in mails]

    assert mailed == [day(25), day(26)]


def test_mail_about_a_deleted_certificate_counts_for_its_date(mailing: Mailing, kari: UUID) -> None:
    """The certificate that replaces it may get this date later."""
    mailing.mails()
    mailing.execute("DELETE FROM certificates")
    mailing.facts.certificate(kari, day(24))
    mailing.mails()

    for days_left in (25, 26):
        move(mailing, days_left)
        mailing.mails()

    assert [mail.expires_on for mail in mailing.channel.sent] == [day(25), day(24), day(26)]


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize("dies", [False, True], ids=["not tried", "died after the mail"])
def test_restored_certificate_brings_back_the_reminder(mailing: Mailing, *, dies: bool) -> None:
    """It is a repeat if a process died after it sent the mail."""
    mailing.review()
    if dies:
        claim(mailing)
        mailing.expire_leases()
    mailing.execute(REVOKE)
    assert mailing.mails() == []
    assert log(mailing) == [(30, "cancelled")]
    mailing.execute(RESTORE)

    assert [mail.repeat for mail in mailing.mails()] == [dies]


@pytest.mark.parametrize(
    ("status", "becomes"),
    [("pending", "superseded"), ("failed", "superseded"), ("cancelled", "cancelled"), ("sent", "sent")],
)
def test_urgent_reminder_supersedes_unsent_ones(mailing: Mailing, kari: UUID, status: str, becomes: str) -> None:
    """Only those of its certificate."""
    mailing.facts.certificate(kari, day(50), kind="longer")
    mailing.review()
    mailing.execute("UPDATE cert_notification_log SET status = %s WHERE threshold_days = 30", status)

    review(mailing, 12)

    assert log(mailing) == [(60, "pending"), (30, becomes), (14, "pending")]


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize(("number", "begins", "threshold"), [(12, -100, 14), (1, 1, 30)])
def test_reminder_of_a_later_day_comes_on_its_day(mailing: Mailing, number: int, begins: int, threshold: int) -> None:
    """A slow job of an earlier day cancels it: the threshold is not reached, or the certificate has not begun."""
    mailing.execute("UPDATE certificates SET issued_on = %s", day(begins))
    mailing.review(number)
    mailing.stage()
    assert log(mailing) == [(threshold, "cancelled")]

    assert [mail.threshold_days for mail in mailing.mails(number)] == [threshold]


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize("attempts", [0, 1])
def test_job_of_the_day_before_leaves_a_new_reminder(mailing: Mailing, attempts: int) -> None:
    """A night that passes midnight runs beside one of the new day."""
    mailing.review(11)
    mailing.execute("UPDATE cert_notification_log SET attempts = %s WHERE threshold_days = 14", attempts)

    mailing.stage(number=10)

    assert (mailing.sent, log(mailing)) == ([], [(14, "pending")])


@pytest.mark.usefixtures("kari")
def test_urgent_reminder_leaves_a_claimed_one_to_its_claim(mailing: Mailing) -> None:
    """It supersedes it after the lease, and the late outcome of the claim has no effect."""
    mailing.review()
    claimed = claim(mailing)
    review(mailing, 12)
    assert log(mailing) == [(30, "pending"), (14, "pending")]

    mailing.expire_leases()
    review(mailing, 19)

    assert steps.settle(reminder_mail(mailing.connection), claimed, Settlement(status="sent")) is Answer.LOST
    assert log(mailing) == [(30, "superseded"), (14, "superseded"), (7, "pending")]


@pytest.mark.usefixtures("kari")
def test_claim_is_lost_if_the_date_is_changed(mailing: Mailing) -> None:
    """If the first date comes back, its mail is a repeat."""
    mail, sent = reminder_mail(mailing.connection), Settlement(status="sent")
    mailing.review()
    first = claim(mailing)

    move(mailing, 26)
    review(mailing)
    assert steps.settle(mail, first, sent) is Answer.LOST

    move(mailing, 25)
    review(mailing)
    second = claim(mailing)
    assert (second.maybe_sent, steps.settle(mail, second, sent)) == (True, Answer.SETTLED)


@pytest.mark.usefixtures("kari")
def test_extension_in_place_starts_a_new_reminder(mailing: Mailing) -> None:
    """It is not a repeat."""
    (first,) = mailing.mails()
    mailing.execute("UPDATE cert_notification_log SET attempts = 3, maybe_sent = true")
    move(mailing, 26)

    (second,) = mailing.mails()

    assert (second.expires_on, second.repeat) == (day(26), False)
    assert second.idempotency_key != first.idempotency_key
    assert log(mailing, "status, attempts") == [("sent", 1)]


def test_reminder_after_a_restore_has_its_own_key(mailing: Mailing, kari: UUID) -> None:
    """The restored sequence gives another mentor's reminder the same id."""
    (lost,) = mailing.mails()
    mailing.execute("DELETE FROM mentors WHERE id = %s", kari)
    mailing.execute("DELETE FROM cert_notification_log")
    mailing.execute("ALTER TABLE cert_notification_log ALTER COLUMN id RESTART")
    mailing.certified("Ola", until=25)

    (sent,) = mailing.mails()

    assert lost.idempotency_key.rpartition("-")[0] == sent.idempotency_key.rpartition("-")[0]
    assert lost.idempotency_key != sent.idempotency_key


@pytest.mark.usefixtures("kari")
def test_outdated_reminder_is_cancelled(mailing: Mailing, app: App) -> None:
    """It waits while another session has locked the mentor. Neither counts as an attempt."""
    mailing.review()
    mailing.execute(REVOKE)
    app.execute("UPDATE mentors SET full_name = 'Kari Hansen'")
    mailing.stage()
    assert mailing.counts == MailCounts()
    assert log(mailing, "status, attempts, claim_token, next_attempt_at > now()") == [("pending", 0, None, True)]
    app.rollback()
    mailing.make_due()

    mailing.stage()

    assert (mailing.counts, mailing.sent) == (MailCounts(cancelled=1), [])
    assert log(mailing, "status, last_error, attempts, claim_token") == [("cancelled", "revoked", 0, None)]


@pytest.mark.parametrize(
    ("email", "reason", "code"), [("   ", "no address", "no_address"), ("kari@", "is not an address", "wrong_address")]
)
def test_corrected_address_sends_the_reminder(mailing: Mailing, email: str, reason: str, code: str) -> None:
    """The failure is printed each day, without an attempt. The mail has the current name, and is no repeat."""
    mailing.certified(until=25, email=email)
    for number in range(2):
        assert mailing.mails(number) == []
        assert mailing.report.to_document()["reminders"]["failed"] == 1 - number
        assert mailing.report.reasons == ["1 reminder was not delivered; see `certjob alerts`"]
    ((error, *row),) = log(mailing, "last_error, status, failure_code, attempts")
    assert (reason in str(error), row) == (True, ["failed", code, 0])
    mailing.execute("UPDATE cert_notification_log SET queued_at = now() - interval '2 days'")
    mailing.execute("UPDATE mentors SET email = ' kari@example.org ', full_name = 'Kari Hansen'")
    assert read_alerts(mailing.connection, today=day(2)) == []

    (message,) = mailing.mails(2)
    assert (message.to, message.repeat, "Kari Hansen" in message.text) == ("kari@example.org", False, True)
    assert log(mailing, "status, attempts, last_error") == [("sent", 1, None)]


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize("committed", [True, False], ids=["committed before", "committed after"])
def test_address_corrected_during_a_rejection_is_tried(mailing: Mailing, app: App, committed: bool) -> None:
    """Also if the rejection is stored before the correction is committed."""
    mailing.review()

    def reject(message: OutgoingMessage) -> None:
        if message.to == "kari@example.org":
            app.execute("UPDATE mentors SET email = 'new@example.org'")
            if committed:
                app.commit()
            raise REJECTED

    mailing.stage(on_send=reject)
    assert mailing.counts.failed == 0
    if not committed:
        app.commit()
        assert log(mailing, "status, last_error") == [("pending", "550 no such user")]
        mailing.make_due()
        mailing.stage()

    assert [message.to for message in mailing.sent] == ["new@example.org"]
    assert log(mailing, "attempts") == [(1 if committed else 2,)]


def test_failed_reminder_is_an_alert_for_14_days_after_queueing(mailing: Mailing) -> None:
    """A first import queues reminders long after their threshold."""
    for number in (40, 5):
        mailing.certified(until=number, email=None)

    mailing.mails()

    mailing.execute("UPDATE cert_notification_log SET queued_at = %s", TODAY)
    assert [len(read_alerts(mailing.connection, today=day(number))) for number in (0, 14, 15)] == [2, 2, 0]


@pytest.mark.usefixtures("kari")
def test_deferred_reminder_is_an_alert_a_day_after_the_first_rejection(mailing: Mailing) -> None:
    """It is in one digest, and an alert until the mail arrives."""
    full = RecipientDeferredError("the mail server deferred the recipient (452 4.2.2 mailbox full)")

    def defer(message: OutgoingMessage) -> Exception | None:
        return full if message.kind == "reminder" else None

    mailing.mails(on_send=defer)
    assert read_alerts(mailing.connection, today=TODAY) == []
    for column in ("queued_at", "deferred_since"):
        mailing.execute(f"UPDATE cert_notification_log SET {column} = {column} - interval '25 hours'")
    mailing.coordinator()
    digests = []
    for number in (1, 2):
        mailing.make_due()
        digests += mailing.digests(number, on_send=defer)

    (alert,) = read_alerts(mailing.connection, today=TODAY)
    assert (alert.kind, alert.cause, alert.error) == ("failed_reminders", "mail_delayed", str(full))
    (digest,) = digests
    assert "Påminnelsen har kanskje ikke kommet fram. Vi prøver igjen automatisk." in digest.text
    mailing.make_due()
    assert [message.kind for message in mailing.mails(3)] == ["reminder"]
    assert read_alerts(mailing.connection, today=TODAY) == []


@pytest.mark.parametrize("rewrite", [False, True], ids=["same certificate", "entered again every day"])
def test_changed_thresholds_repeat_no_mail(mailing: Mailing, kari: UUID, *, rewrite: bool) -> None:
    """The 60-day reminder would repeat the 30-day one. A dry run announces the same mails."""
    mailing.execute("UPDATE certificates SET expires_on = %s", day(30))
    mails = mailing.mails()
    mailing.execute("UPDATE organisations SET reminder_thresholds = '{60,28}'")

    for number in (1, 2, 3):
        if rewrite:
            mailing.execute("DELETE FROM certificates")
            mailing.facts.certificate(kari, day(30))
        mailing.mails(number, dry_run=True)
        planned = mailing.report.to_document()["reminders"]["queued"]
        mails += (sent := mailing.mails(number))
        assert len(sent) == planned

    assert [mail.threshold_days for mail in mails] == [30, 28]


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize(
    ("change", "sent"),
    [
        ("status = 'failed'", 1),
        ("attempted_on = '2026-01-01'", 1),
        ("attempted_on = '2026-03-12'", 0),
        ("attempted_on = '2026-03-11'", 0),
        ("threshold_days = 60, attempted_on = '2026-01-01'", 0),
    ],
    ids=["not sent", "sent before the threshold", "sent on a later day", "sent since", "sent with this threshold"],
)
def test_threshold_is_done_if_a_mail_has_said_the_same_since_its_day(mailing: Mailing, change: str, sent: int) -> None:
    """The 60-day threshold was reached on 3 February. A mail of a later day has also been sent, by a wrong clock."""
    mailing.mails()
    mailing.execute(f"UPDATE cert_notification_log SET {change}")

    mailing.execute("UPDATE organisations SET reminder_thresholds = '{60}'")

    assert len(mailing.mails(1)) == sent


@pytest.mark.parametrize("rewrite", [False, True], ids=["same certificates", "entered again"])
def test_mail_about_another_kind_with_the_same_last_day_does_not_count(
    mailing: Mailing, kari: UUID, *, rewrite: bool
) -> None:
    """Also if both certificates are deleted and entered again."""
    mailing.mails()
    mailing.execute("UPDATE organisations SET reminder_thresholds = '{60}'")
    if rewrite:
        mailing.execute("DELETE FROM certificates")
        mailing.facts.certificate(kari, day(25))
    mailing.facts.certificate(kari, day(25), kind="first-aid")

    assert ["first-aid" in mail.subject for mail in mailing.mails()] == [True]


@pytest.mark.usefixtures("kari")
def test_reminder_that_another_one_has_made_superfluous_is_cancelled(mailing: Mailing) -> None:
    """It was queued before the other one was sent."""
    mailing.mails()
    mailing.execute("UPDATE organisations SET reminder_thresholds = '{60}'")
    mailing.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
        " SELECT mentor_id, 60, cert_id, expires_on FROM cert_notification_log"
    )

    mailing.stage()

    assert mailing.sent == []
    assert log(mailing, "status, last_error") == [("cancelled", "mailed already"), ("sent", None)]


@pytest.mark.parametrize("how", ["deleted and entered again", "new id"])
def test_reminder_of_a_certificate_with_another_id_is_sent(mailing: Mailing, kari: UUID, how: str) -> None:
    """Between the review and the mail, an app may write all certificates again. The next review repeats no mail."""
    mailing.review()
    if how == "new id":
        mailing.execute("UPDATE certificates SET id = gen_random_uuid()")
    else:
        mailing.execute("DELETE FROM certificates")
        mailing.facts.certificate(kari, day(25), issued_on=date(2025, 1, 1))

    mailing.stage()

    assert [message.threshold_days for message in mailing.sent] == [30]
    assert mailing.mails(1) == []


def test_reminder_of_a_certificate_that_was_entered_again_with_another_day_is_cancelled(
    mailing: Mailing, kari: UUID
) -> None:
    """The next review queues the reminder of the new day."""
    mailing.review()
    mailing.execute("DELETE FROM certificates")
    mailing.facts.certificate(kari, day(26))

    mailing.stage()

    assert log(mailing, "status, last_error") == [("cancelled", "deleted")]
    assert [message.expires_on for message in mailing.mails()] == [day(26)]


OUTDATED = {
    "left": ("UPDATE mentors SET left_at = now()", "left"),
    "revoked": (REVOKE, "revoked"),
    "deleted": ("DELETE FROM certificates", "deleted"),
    "extended": ("UPDATE certificates SET expires_on = expires_on + 100", "extended"),
    "renewed": (
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " SELECT mentor_id, kind, '2026-03-01', '2028-03-01' FROM certificates",
        "renewed",
    ),
}


@pytest.mark.usefixtures("kari")
@pytest.mark.parametrize(("change", "reason"), OUTDATED.values(), ids=OUTDATED)
def test_failed_reminder_that_no_longer_applies_is_cancelled_by_the_review(
    mailing: Mailing, change: str, reason: str
) -> None:
    """No one has to correct an address for it, so the alert ends. A review for another reason leaves it failed."""
    mailing.mails(on_send=lambda _message: REJECTED)
    mailing.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    mailing.review(1)
    assert log(mailing, "status, last_error") == [("failed", "550 no such user")]
    assert [alert.kind for alert in read_alerts(mailing.connection, today=TODAY)] == ["failed_reminders"]

    mailing.execute(change)
    mailing.review(1)

    assert log(mailing, "status, last_error, failure_code") == [("cancelled", reason, None)]
    assert read_alerts(mailing.connection, today=TODAY) == []


def test_resync_makes_failed_reminders_due(here: Certjob, facts: Facts) -> None:
    """The rejection may have been the mail server's fault."""
    expires_on = today() + timedelta(days=5)
    facts.certified_mentor(facts.organisation(portal=None), expires_on, member_no="M1", email="nowhere")
    here("run", CERTJOB_MAIL_FROM="certjob@example.org", CERTJOB_NOTIFY_URL="smtp://127.0.0.1:1")
    status = "SELECT status, attempts, next_attempt_at <= now() FROM cert_notification_log"
    assert facts.rows(status) == [("failed", 0, True)]

    assert here("resync", "M1").returncode == 0

    assert facts.rows(status) == [("pending", 0, True)]
