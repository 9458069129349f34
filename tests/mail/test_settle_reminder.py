"""What every mail waits for before the next one goes: its settle, committed, in one round trip to the server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements
from certjob.mail.reminders import CertificationReminderService, QueuedReminder
from certjob.outbox.claims import Outbox, Settlement
from tests.support.facts import TODAY, Facts

OUTCOMES: list[dict[str, Any]] = [
    {"status": "sent"},
    {"status": "pending", "delay_seconds": 900.0, "error": "450 mailbox full"},
    {"status": "pending", "delay_seconds": 900.0, "error": "no answer", "maybe_sent": True},
    {"status": "pending", "uncount": True},
    {"status": "failed", "error": "550 unknown"},
]
ROW = """
    SELECT status, attempts, round(extract(epoch FROM next_attempt_at - now()) / 100), claim_token, sent_at IS NULL,
        maybe_sent, last_error
    FROM cert_notification_log WHERE id = %s
"""
App = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def service(connection: Connection) -> CertificationReminderService:
    return CertificationReminderService(connection, run_id=uuid4())


@pytest.fixture
def reminders(facts: Facts, connection: Connection, service: CertificationReminderService) -> list[QueuedReminder]:
    """Three claimed ones, tried before."""
    mentor_id = facts.mentor(facts.organisation())
    for threshold in (30, 14, 7):
        connection.execute(
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, attempts, last_error)"
            " VALUES (%s, %s, %s, %s, 1, 'earlier')",
            (mentor_id, threshold, uuid4(), TODAY),
        )
    return service.claim()[0]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=str)
def test_it_writes_what_a_settle_of_several_writes(
    connection: Connection,
    other: Connection,
    service: CertificationReminderService,
    reminders: list[QueuedReminder],
    outcome: dict[str, Any],
) -> None:
    """Two statements, one meaning; and another session sees it at once."""
    alone, first, second = reminders
    several: Outbox[QueuedReminder] = Outbox(
        connection,
        table="reminders",
        item=QueuedReminder,
        lease_seconds=900,
        columns=("ids", "tokens", "statuses", "delays", "uncounts", "errors", "codes", "maybe_sent"),
    )

    held = service.settle(alone, **outcome)
    several.settle([Settlement(id=each.id, token=each.claim_token, **outcome) for each in (first, second)])

    assert held
    rows = [other.execute(ROW, (each.id,)).fetchone() for each in reminders]
    assert rows[0] == rows[1] == rows[2]


def test_without_the_token_nothing_is_written(
    connection: Connection, service: CertificationReminderService, reminders: list[QueuedReminder]
) -> None:
    """Somebody took over after the lease: the row is theirs."""
    connection.execute("UPDATE cert_notification_log SET claim_token = gen_random_uuid()")
    before = connection.execute(ROW, (reminders[0].id,)).fetchone()

    assert not service.settle(reminders[0], "sent")
    assert connection.execute(ROW, (reminders[0].id,)).fetchone() == before


def test_it_is_one_round_trip(
    connection: Connection, service: CertificationReminderService, reminders: list[QueuedReminder], tmp_path: Path
) -> None:
    """A database a millisecond away would otherwise take four from every mail."""
    with (tmp_path / "trace").open("w+") as trace:
        connection.pgconn.trace(trace.fileno())
        service.settle(reminders[0], "sent")
        connection.pgconn.untrace()

        assert Path(trace.name).read_text().count("ReadyForQuery") == 1


def test_it_waits_for_a_lock_and_not_for_ever(
    connection: Connection,
    service: CertificationReminderService,
    reminders: list[QueuedReminder],
    app: App,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reminder keeps its lease, the session is as it was, and once the lock is gone the same settle succeeds."""
    monkeypatch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 20)
    app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")

    with pytest.raises(psycopg.errors.LockNotAvailable):
        service.settle(reminders[0], "sent")

    app.rollback()
    limits = "SELECT current_setting('lock_timeout'), current_setting('statement_timeout')"
    assert connection.execute(limits).fetchone() == ("0", "0")
    assert service.settle(reminders[0], "sent")


AT_COMMIT = """
    CREATE FUNCTION fails_at_commit() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'could not serialize' USING ERRCODE = 'serialization_failure'; END $$;
    CREATE CONSTRAINT TRIGGER fails_at_commit AFTER UPDATE ON cert_notification_log
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fails_at_commit();
"""


def test_a_commit_that_fails_is_tried_again_and_leaves_the_session_as_it_was(
    connection: Connection, service: CertificationReminderService, reminders: list[QueuedReminder]
) -> None:
    """A trigger of somebody's, a standby: not every error comes with the statement."""
    connection.execute(AT_COMMIT)

    with pytest.raises(psycopg.errors.SerializationFailure):
        service.settle(reminders[0], "sent")

    connection.execute("DROP TRIGGER fails_at_commit ON cert_notification_log")
    assert service.settle(reminders[0], "sent")


def test_it_is_read_committed_whatever_the_roles_default(
    connection: Connection, service: CertificationReminderService, reminders: list[QueuedReminder]
) -> None:
    """Serializable, it would fail for what others do to other rows."""
    connection.execute(
        "CREATE FUNCTION notes_isolation() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.last_error := current_setting('transaction_isolation'); RETURN NEW; END $$;"
        "CREATE TRIGGER notes_isolation BEFORE UPDATE ON cert_notification_log"
        " FOR EACH ROW EXECUTE FUNCTION notes_isolation()"
    )
    connection.execute("SET default_transaction_isolation = 'serializable'")

    service.settle(reminders[0], "sent")

    said = connection.execute("SELECT last_error FROM cert_notification_log WHERE id = %s", (reminders[0].id,))
    assert said.fetchone() == ("read committed",)
