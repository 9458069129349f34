"""What every mail waits for before the next one goes: its settle, committed."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements
from certjob.errors import OutcomeUnknownError, RecipientDeferredError
from certjob.mail.reminder_mail import QueuedReminder, ReminderMail
from tests.support.channels import reminder_mail
from tests.support.facts import TODAY, Facts

ROW = """
    SELECT status, attempts, round(extract(epoch FROM next_attempt_at - now()) / 100), claim_token, sent_at IS NULL,
        maybe_sent, last_error, failure_code
    FROM cert_notification_log WHERE id = %s
"""
App = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def queue(connection: Connection) -> ReminderMail:
    return reminder_mail(connection)


@pytest.fixture
def reminder(facts: Facts, connection: Connection, queue: ReminderMail) -> QueuedReminder:
    """A claimed one, tried before."""
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, attempts, last_error)"
        " VALUES (%s, 30, %s, %s, 1, 'earlier')",
        (facts.mentor(facts.organisation()), uuid4(), TODAY),
    )
    reminder, _ = queue.claim()
    assert reminder is not None
    return reminder


@pytest.mark.parametrize(
    ("outcome", "row"),
    [
        ({"status": "sent"}, ("sent", 2, 0, None, False, False, None, None)),
        (
            {"status": "pending", "delay_seconds": 900.0, "error": RecipientDeferredError("450 mailbox full")},
            ("pending", 2, 9, None, True, False, "450 mailbox full", "deferred"),
        ),
        (
            {"status": "pending", "delay_seconds": 900.0, "error": OutcomeUnknownError("cut"), "maybe_sent": True},
            ("pending", 2, 9, None, True, True, "cut", "maybe_arrived"),
        ),
    ],
    ids=["sent", "deferred", "unknown"],
)
def test_it_writes_what_became_of_it_and_another_session_sees_it_at_once(
    other: Connection, queue: ReminderMail, reminder: QueuedReminder, outcome: dict[str, Any], row: tuple[object, ...]
) -> None:
    """Committed on return."""
    assert queue.settle(reminder, **outcome)

    assert other.execute(ROW, (reminder.id,)).fetchone() == row


def test_without_the_token_nothing_is_written(
    connection: Connection, queue: ReminderMail, reminder: QueuedReminder
) -> None:
    """Another run took it over after the lease: the row is that run's."""
    connection.execute("UPDATE cert_notification_log SET claim_token = gen_random_uuid()")
    before = connection.execute(ROW, (reminder.id,)).fetchone()

    assert not queue.settle(reminder, "sent")
    assert connection.execute(ROW, (reminder.id,)).fetchone() == before


def test_it_insists_on_a_lock_and_not_for_ever(
    connection: Connection,
    queue: ReminderMail,
    reminder: QueuedReminder,
    app: App,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reminder keeps its lease, the session is as it was, and once the lock is gone the same settle succeeds."""
    monkeypatch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 20)
    app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")

    with pytest.raises(psycopg.errors.LockNotAvailable):
        queue.settle(reminder, "sent")

    app.rollback()
    limits = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    assert connection.execute(limits).fetchone() == ("0", "0")
    assert queue.settle(reminder, "sent")


AT_COMMIT = """
    CREATE FUNCTION fails_at_commit() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not serialize' USING ERRCODE = 'serialization_failure'; END $$;
    CREATE CONSTRAINT TRIGGER fails_at_commit AFTER UPDATE ON cert_notification_log
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fails_at_commit();
"""


def test_a_commit_that_fails_is_tried_again_and_leaves_the_session_as_it_was(
    connection: Connection, queue: ReminderMail, reminder: QueuedReminder
) -> None:
    """A trigger of somebody's, a standby: not every error comes with the statement."""
    connection.execute(AT_COMMIT)

    with pytest.raises(psycopg.errors.SerializationFailure):
        queue.settle(reminder, "sent")

    connection.execute("DROP TRIGGER fails_at_commit ON cert_notification_log")
    assert queue.settle(reminder, "sent")
