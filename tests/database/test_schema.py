"""The schema on a real PostgreSQL: defaults, triggers, constraints, deletion of mentors, and the view of alerts."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.database.supabase import furnish
from tests.support.facts import TODAY, Facts
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[Any, ...]]


def execute(connection: psycopg.Connection[Any], statement: str) -> None:
    connection.execute(statement.encode())


def due(facts: Facts) -> list[object]:
    """Return the numbers of the mentors that the next run reviews."""
    return [row[0] for row in facts.rows("SELECT member_no FROM mentors WHERE review_on = '-infinity' ORDER BY 1")]


def due_after(facts: Facts, statement: str) -> list[object]:
    """Return the numbers of the due mentors after a statement, which is rolled back."""
    with facts.connection.transaction(force_rollback=True):
        execute(facts.connection, statement)
        return due(facts)


@pytest.fixture
def reviewed(facts: Facts) -> Facts:
    """Two reviewed mentors: M1 has a certificate, an open pause of each kind and a lifted one. M2 has none of them."""
    organisation = facts.organisation()
    facts.organisation("elsewhere", portal=None)
    first = facts.mentor(organisation, member_no="M1")
    facts.mentor(organisation, member_no="M2")
    facts.certificate(first, TODAY)
    facts.pause(first, reason="illness", actor="anna")
    facts.pause(first, reason="certification_expired", actor="certjob")
    facts.insert("mentor_pauses", mentor_id=first, reason="holiday", actor="anna", lifted_at=TODAY, lifted_by="anna")
    execute(facts.connection, "UPDATE mentors SET review_on = '2030-01-01', portal_visible = false")
    return facts


CHANGES_OF_M1 = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
    " SELECT mentor_id, 'first_aid', issued_on, expires_on FROM certificates",
    "UPDATE certificates SET kind = 'first_aid'",
    "UPDATE certificates SET issued_on = '2024-01-02'",
    "UPDATE certificates SET expires_on = '2027-01-01'",
    "UPDATE certificates SET revoked_at = now()",
    "UPDATE certificates SET id = gen_random_uuid()",
    "DELETE FROM certificates",
    "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT mentor_id, 'leave', 'anna' FROM certificates",
    "UPDATE mentor_pauses SET lifted_at = now() WHERE reason = 'illness'",
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE reason = 'certification_expired'",
    "UPDATE mentor_pauses SET lifted_at = NULL, lifted_by = NULL WHERE reason = 'holiday'",
    "UPDATE mentor_pauses SET reason = 'injury' WHERE reason = 'illness'",
    "DELETE FROM mentor_pauses WHERE reason = 'illness'",
    "DELETE FROM mentor_pauses WHERE reason = 'certification_expired'",
    "UPDATE mentors SET left_at = now() WHERE member_no = 'M1'",
    "UPDATE mentors SET email = NULL WHERE member_no = 'M1'",
    "UPDATE mentors SET dynamics_contact_id = NULL WHERE member_no = 'M1'",
    "UPDATE mentors AS m SET organisation_id = o.id FROM organisations AS o"
    " WHERE o.slug = 'elsewhere' AND m.member_no = 'M1'",
)
CHANGES_OF_BOTH = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
    " SELECT id, 'first_aid', '2025-01-01', '2027-01-01' FROM mentors",
    "UPDATE certificates SET mentor_id = (SELECT id FROM mentors WHERE member_no = 'M2')",
    "UPDATE mentor_pauses SET mentor_id = (SELECT id FROM mentors WHERE member_no = 'M2') WHERE reason = 'illness'",
    "UPDATE organisations SET reminder_thresholds = '{10}' WHERE slug = 'hlf'",
    "UPDATE organisations SET optional_kinds = '{first_aid}' WHERE slug = 'hlf'",
    "UPDATE organisations SET portal = NULL WHERE slug = 'hlf'",
    "TRUNCATE certificates",
    "TRUNCATE mentor_pauses",
)


def test_changed_fact_makes_exactly_its_mentors_due(reviewed: Facts) -> None:
    """The writer may be the app, an import or a person."""
    for statement in CHANGES_OF_M1:
        assert due_after(reviewed, statement) == ["M1"], statement
    for statement in CHANGES_OF_BOTH:
        assert due_after(reviewed, statement) == ["M1", "M2"], statement


OTHER_CHANGES = (
    # What certjob writes itself.
    "UPDATE certificates SET status = 'expired'",
    "UPDATE mentors SET portal_visible = true, certified_until = '2026-03-10'",
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob' WHERE reason = 'certification_expired'",
    "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT id, 'certification_expired', 'certjob' FROM mentors WHERE member_no = 'M2'",
    # The same values again, as an import writes them.
    "UPDATE certificates SET mentor_id = mentor_id, kind = kind, issued_on = issued_on, expires_on = expires_on",
    "UPDATE mentor_pauses SET reason = reason, lifted_at = lifted_at",
    "UPDATE mentors SET left_at = left_at, email = email, dynamics_contact_id = dynamics_contact_id",
    "UPDATE organisations SET reminder_thresholds = reminder_thresholds, portal = portal",
    # Facts on which no decision depends.
    "DELETE FROM mentor_pauses WHERE reason = 'holiday'",
    "UPDATE mentors SET full_name = 'Ola', member_no = 'M9' WHERE member_no = 'M1'",
    "UPDATE organisations SET name = 'New', contact_phone = '22 00 00 00'",
    "UPDATE organisations SET reminder_thresholds = '{10}' WHERE slug = 'elsewhere'",
)


def test_other_changes_make_no_one_due(reviewed: Facts) -> None:
    """Otherwise every run would review everyone again."""
    for statement in OTHER_CHANGES:
        assert due_after(reviewed, statement) == [], statement


def test_changed_contact_or_portal_makes_the_shown_value_unknown(reviewed: Facts) -> None:
    """The next review pushes the value again. A mentor without a contact has no value on a portal."""
    unknown = "SELECT member_no FROM mentors WHERE portal_visible IS NULL ORDER BY 1"

    execute(reviewed.connection, "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE member_no = 'M1'")
    assert reviewed.rows(unknown) == [("M1",)]

    execute(reviewed.connection, "UPDATE mentors SET dynamics_contact_id = NULL WHERE member_no = 'M1'")
    execute(reviewed.connection, "UPDATE mentors SET portal_visible = false")
    execute(reviewed.connection, "UPDATE organisations SET portal = NULL WHERE slug = 'hlf'")
    assert reviewed.rows(unknown) == [("M2",)]


def test_corrected_address_makes_failed_mails_due(facts: Facts) -> None:
    """Sent, replaced and cancelled mails stay as they are, and so do those of other people."""
    ours, theirs = (furnish(facts.connection, slug, api=facts.connection) for slug in ("hlf", "nhf"))
    reminder = {"cert_id": uuid4(), "expires_on": TODAY, "attempts": 3}
    for status, days in (("sent", 60), ("superseded", 30), ("cancelled", 14)):
        facts.insert("cert_notification_log", mentor_id=ours.mentor, status=status, threshold_days=days, **reminder)
    failed = "status = 'failed', attempts = 3, next_attempt_at = now() + interval '6 hours'"
    for table in ("cert_notification_log", "coordinator_digests"):
        execute(facts.connection, f"UPDATE {table} SET {failed} WHERE status = 'pending'")
    retried = "WHERE status = 'pending' AND attempts = 0 AND next_attempt_at <= now()"

    facts.rows("UPDATE mentors SET email = 'right@example.org' WHERE id = %s RETURNING 1", ours.mentor)
    facts.rows("UPDATE coordinators SET email = 'r@example.org' WHERE id = %s RETURNING 1", ours.coordinator)

    assert facts.rows(f"SELECT mentor_id FROM cert_notification_log {retried}") == [(ours.mentor,)]
    assert facts.rows(f"SELECT coordinator_id FROM coordinator_digests {retried}") == [(ours.coordinator,)]
    assert facts.rows("SELECT mentor_id FROM cert_notification_log WHERE status = 'failed'") == [(theirs.mentor,)]


def test_fact_written_during_a_review_makes_the_mentor_due(reviewed: Facts, app: App) -> None:
    """The app waits for certjob's lock and then overwrites its review day."""
    certjob = reviewed.connection
    with psycopg.connect(certjob.info.dsn, autocommit=True) as observer:
        for statement in (
            "UPDATE certificates SET expires_on = '2027-01-01'",
            "UPDATE mentor_pauses SET lifted_at = now() WHERE reason = 'illness'",
            "UPDATE mentors SET left_at = now() WHERE member_no = 'M1'",
            "UPDATE organisations SET optional_kinds = '{first_aid}'",
            "DELETE FROM certificates",
        ):
            execute(certjob, "UPDATE mentors SET review_on = '-infinity'")
            with ThreadPoolExecutor(1) as background:
                with certjob.transaction():
                    execute(certjob, "UPDATE mentors SET review_on = '2030-01-01'")
                    written = background.submit(execute, app, statement)
                    until(lambda: waits_for_a_lock(observer, app))
                written.result(20)
            app.commit()

            assert "M1" in due(reviewed), statement


SECOND_DIGEST = "INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, '2026-03-11' FROM coordinators"
SECOND_ROWS = (
    "INSERT INTO portal_sync_events (mentor_id, visible, status) SELECT id, true, 'blocked' FROM mentors",
    "UPDATE portal_sync_events SET status = 'blocked';"
    "INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, true FROM mentors",
    "UPDATE cert_notification_log SET status = 'sent';"
    "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
    " SELECT mentor_id, threshold_days, cert_id, expires_on + 365 FROM cert_notification_log",
    SECOND_DIGEST,
    f"UPDATE coordinator_digests SET status = 'failed'; {SECOND_DIGEST}",
    f"UPDATE coordinator_digests SET status = 'cancelled'; {SECOND_DIGEST}",
    "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error) SELECT id, true, 'stage', 'x' FROM mentors",
    "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT mentor_id, reason, 'anna' FROM mentor_pauses",
)


def test_second_open_row_is_rejected(facts: Facts) -> None:
    """One push, one digest, one failure and one pause are open at a time, and each reminder is queued once."""
    furnish(facts.connection, "hlf", api=facts.connection)

    for statement in SECOND_ROWS:
        with pytest.raises(psycopg.errors.UniqueViolation), facts.connection.transaction():
            execute(facts.connection, statement)


INVALID = (
    "UPDATE certificates SET issued_on = '2026-03-11'",  # after its last day
    "UPDATE certificates SET expires_on = 'infinity'",
    "UPDATE certificates SET status = 'lapsed'",
    "UPDATE organisations SET slug = 'all'",
    "UPDATE organisations SET reminder_thresholds = '{7,null}'",
    "UPDATE organisations SET reminder_thresholds = '{3651}'",
    "UPDATE organisations SET reminder_thresholds = array(SELECT generate_series(1, 51))",
    "UPDATE mentors SET id = '00000000-0000-0000-0000-000000000000'",
    "UPDATE mentor_pauses SET reason = 'certification_expired'",  # the actor is not certjob
    "UPDATE mentor_pauses SET actor = 'certjob'",
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob'",
    "UPDATE mentor_pauses SET lifted_by = 'anna'",
)


def test_invalid_value_is_rejected_by_a_named_constraint(facts: Facts) -> None:
    """The app shows the name."""
    furnish(facts.connection, "hlf", api=facts.connection)

    for statement in INVALID:
        with pytest.raises(psycopg.errors.CheckViolation) as rejected:
            execute(facts.connection, statement)
        assert rejected.value.diag.constraint_name, statement


PLANNED_TIMES = {
    "paused_at": (
        "mentor_pauses",
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at) SELECT id, 'x', 'y', ",
    ),
    "lifted_at": (
        "mentor_pauses",
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, lifted_at) SELECT id, 'x', 'y', ",
    ),
    "left_at": ("mentors", "INSERT INTO mentors (organisation_id, member_no, left_at) SELECT organisation_id, 'new', "),
    "revoked_at": (
        "certificates",
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on, revoked_at)"
        " SELECT id, 'new', '2025-01-01', '2027-01-01', ",
    ),
}


@pytest.mark.parametrize("column", PLANNED_TIMES)
def test_time_in_the_future_is_rejected_with_a_hint(facts: Facts, column: str) -> None:
    """It would take effect at once. The clock of the writer may be ahead by a little, and a value may be repeated."""
    furnish(facts.connection, "hlf", api=facts.connection)
    table, insert = PLANNED_TIMES[column]
    most = "1 hour" if table == "mentor_pauses" else "1 day"

    for statement in (f"UPDATE {table} SET {column} = ", insert):
        source = "" if statement.startswith("UPDATE") else " FROM mentors"
        with facts.connection.transaction(force_rollback=True):
            execute(facts.connection, f"{statement} now() + interval '{most}'{source}")
        with pytest.raises(psycopg.errors.CheckViolation) as rejected:
            execute(facts.connection, f"{statement} now() + interval '{most} 1 second'{source}")
        assert rejected.value.diag.message_hint == "enter it on that day"
        assert rejected.value.diag.constraint_name == f"certjob_{table}_{column}_future"

    with facts.connection.transaction():
        execute(facts.connection, "SET LOCAL session_replication_role = replica")
        execute(facts.connection, f"UPDATE {table} SET {column} = now() + interval '9 days'")
    execute(facts.connection, f"UPDATE {table} SET {column} = {column}")


LEFT = "UPDATE mentors SET left_at = now(), portal_visible = false;"
PUSH = "INSERT INTO portal_sync_events (mentor_id, visible, status) SELECT id, false, '{}' FROM mentors;"
REMINDER = (
    "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
    " SELECT id, 7, gen_random_uuid(), '2026-03-10', '{}' FROM mentors;"
)


def test_mentor_with_open_work_cannot_be_deleted(facts: Facts) -> None:
    """Open work is a push, a reminder, or a contact that may be visible. The hint says how to delete the mentor."""
    mentor = facts.certified_mentor(facts.organisation(), TODAY)

    for state in (
        LEFT + PUSH.format("pending"),
        LEFT + PUSH.format("blocked"),
        LEFT + REMINDER.format("pending"),
        "UPDATE mentors SET portal_visible = true",
        "UPDATE mentors SET portal_visible = NULL",
        # The portal may still show a contact that someone has removed.
        "UPDATE mentors SET dynamics_contact_id = NULL",
        PUSH.format("delivered") + "UPDATE mentors SET dynamics_contact_id = NULL, portal_visible = true",
        # No call has named the contact, because certjob assumed that the portal showed it.
        f"UPDATE mentors SET dynamics_contact_id = NULL; {LEFT} {PUSH.format('blocked')}",
    ):
        with facts.connection.transaction(force_rollback=True):
            execute(facts.connection, state)
            with pytest.raises(psycopg.errors.RestrictViolation, match=str(mentor)) as rejected:
                execute(facts.connection, "DELETE FROM mentors")
            assert "set left_at" in (rejected.value.diag.message_hint or "")


def test_mentor_without_open_work_is_deleted_with_all_rows(facts: Facts) -> None:
    """Sent mails stay under a pseudonym. Rows of others stay, and an organisation with mentors cannot be deleted."""
    ours, theirs = (furnish(facts.connection, slug, api=facts.connection) for slug in ("hlf", "nhf"))
    execute(
        facts.connection,
        "UPDATE cert_notification_log SET status = 'sent'; UPDATE portal_sync_events SET status = 'delivered'",
    )

    execute(facts.connection, f"{LEFT} DELETE FROM mentors WHERE id = '{ours.mentor}'")

    for table in (
        *("certificates", "mentor_pauses", "certificate_transitions"),
        *("portal_sync_events", "dynamics_sync_failures"),
    ):
        assert facts.rows(f"SELECT mentor_id FROM {table}") == [(theirs.mentor,)], table
    logged = {mentor_id for (mentor_id,) in facts.rows("SELECT mentor_id FROM cert_notification_log")}
    assert (len(logged), theirs.mentor in logged, ours.mentor in logged) == (2, True, False)
    with pytest.raises(psycopg.errors.IntegrityError):
        execute(facts.connection, "DELETE FROM organisations WHERE slug = 'nhf'")


def test_mentor_who_is_not_on_the_portal_can_be_deleted(facts: Facts) -> None:
    """There was never a contact, or the organisation has no portal."""
    facts.mentor(facts.organisation(), contact_id=None)
    execute(facts.connection, "DELETE FROM mentors")

    facts.mentor(facts.organisation("without", portal=None))
    execute(facts.connection, "DELETE FROM mentors")

    assert facts.rows("SELECT FROM mentors") == []


def test_mentor_is_not_deleted_while_certjob_queues_a_push(facts: Facts, app: App) -> None:
    """The DELETE waits for the lock and then finds the new intent."""
    certjob, mentor = facts.connection, facts.mentor(facts.organisation())
    execute(certjob, "UPDATE mentors SET portal_visible = false")

    with psycopg.connect(certjob.info.dsn, autocommit=True) as observer, ThreadPoolExecutor(1) as background:
        with certjob.transaction():
            execute(certjob, "SELECT FROM mentors FOR NO KEY UPDATE")
            deletion = background.submit(execute, app, "DELETE FROM mentors")
            until(lambda: waits_for_a_lock(observer, app))
            facts.insert("portal_sync_events", mentor_id=mentor, visible=False)
        with pytest.raises(psycopg.errors.RestrictViolation, match="a hide is not confirmed"):
            deletion.result(20)


def test_reminders_and_audit_outlive_their_certificate(facts: Facts) -> None:
    """If the certificate returns, the mails are not sent twice."""
    furnish(facts.connection, "hlf", api=facts.connection)

    execute(facts.connection, "DELETE FROM certificates")

    assert len(facts.rows("SELECT id FROM cert_notification_log")) == 1
    assert len(facts.rows("SELECT id FROM certificate_transitions")) == 1


def test_push_is_an_alert_if_it_failed_or_is_an_hour_old(facts: Facts) -> None:
    """A time in the future counts as old, because a wrong clock wrote it. Without a name, the view has the number."""
    organisation, now = facts.organisation(), datetime.now(UTC)
    for number, visible, minutes_ago, status, failure in (
        ("blocked", False, 61, "blocked", None),
        ("delivered", False, 61, "delivered", None),
        ("failed", False, 1, "pending", "open"),
        ("fresh", False, 59, "pending", "resolved"),
        ("future", True, -61, "pending", None),
        ("old", False, 61, "pending", None),
        ("show", True, 61, "pending", None),
    ):
        mentor = facts.mentor(organisation, member_no=number, full_name=None)
        wanted_at = now - timedelta(minutes=minutes_ago)
        facts.insert("portal_sync_events", mentor_id=mentor, visible=visible, status=status, wanted_at=wanted_at)
        if failure is not None:
            row = {"kind": "transient", "error": "503", "resolved_at": now if failure == "resolved" else None}
            facts.insert("dynamics_sync_failures", mentor_id=mentor, visible=visible, **row)
    execute(facts.connection, "UPDATE mentors SET review_on = 'infinity'")  # a due show is not yet an alert

    hide, show = (f"Dynamics sync pending — mentor may still be {how} on portal" for how in ("visible", "hidden"))
    assert facts.rows("SELECT full_name, sentence, error FROM alerts ORDER BY 1") == [
        ("blocked", hide, None),
        ("failed", hide, "503"),
        ("future", show, None),
        ("old", hide, None),
        ("show", show, None),
    ]
