"""Limits for rows per mentor and for the length of texts, and rows that exceed them."""

from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.facts import reading
from certjob.facts.loading import load_file
from tests.conftest import Certjob
from tests.database.supabase import furnish
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.nights import night


def add_certificates(connection: Connection, mentor: UUID, number: int, *, kind: str = "likeperson") -> None:
    connection.execute(
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " SELECT %s, %s, date '1900-01-01' + n, date '2030-01-01' FROM generate_series(1, %s) AS n",
        (mentor, kind, number),
    )


def add_pauses(connection: Connection, mentor: UUID, number: int, *, reason: str = "reason") -> None:
    connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT %s, %s || n, 'anna' FROM generate_series(1, %s) n",
        (mentor, reason, number),
    )


def test_mentor_has_at_most_200_certificates(facts: Facts) -> None:
    """An INSERT and a certificate that is moved to another mentor are both checked."""
    connection, organisation = facts.connection, facts.organisation()
    mentor, other = facts.mentor(organisation), facts.mentor(organisation)
    add_certificates(connection, mentor, 199)
    add_certificates(connection, other, 2, kind="first_aid")

    with pytest.raises(psycopg.errors.CheckViolation, match="more than 200 certificates"):
        add_certificates(connection, mentor, 2, kind="first_aid")
    with pytest.raises(psycopg.errors.CheckViolation, match="more than 200 certificates"):
        connection.execute("UPDATE certificates SET mentor_id = %s WHERE kind = 'first_aid'", (mentor,))

    add_certificates(connection, mentor, 1, kind="the last one")


def test_load_skips_a_mentor_with_too_many_certificates(facts: Facts) -> None:
    """The problem names the limit, and the others are loaded."""
    facts.organisation()
    crowded = [f"hlf,M1,likeperson,{TODAY - timedelta(days=number)},2030-01-01" for number in range(201)]
    rows = ["organisation,member_no,kind,issued_on,expires_on", *crowded, "hlf,M2,likeperson,2024-01-01,2030-01-01"]

    report = load_file(facts.connection, "\n".join(rows).encode(), today=TODAY)

    assert [problem.reason for problem in report.problems] == ["the mentor would have more than 200 certificates"]
    assert facts.rows("SELECT member_no FROM mentors") == [("M2",)]


def test_mentor_has_at_most_200_open_pauses_besides_certjobs(facts: Facts) -> None:
    """Otherwise 200 pauses would prevent certjob from pausing."""
    mentor = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
    add_pauses(facts.connection, mentor, 200)
    with pytest.raises(psycopg.errors.CheckViolation, match="more than 200 open pauses"):
        facts.pause(mentor, reason="one more")

    night(facts.connection)

    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE actor = 'certjob'") == [(1,)]


def test_mentor_with_too_many_rows_is_named_and_others_are_reviewed(here: Certjob, facts: Facts) -> None:
    """Triggers that did not fire, as in a restore, let them in. A later run reviews the mentor."""
    connection, organisation = facts.connection, facts.organisation()
    crowded = facts.mentor(organisation, member_no="M-crowded")
    facts.certified_mentor(organisation, today() - timedelta(days=1), member_no="M-other")
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        add_certificates(connection, crowded, 2_000)

    reviewed = here("run")

    assert reviewed.returncode == 3
    assert (
        f"1 mentor could not be processed: {crowded} (more than 200 certificates; delete some of them)"
        in reviewed.stderr
    )
    paused = "SELECT m.member_no FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id"
    assert facts.rows(paused) == [("M-other",)]
    connection.execute("DELETE FROM certificates WHERE mentor_id = %s AND issued_on > '1900-02-01'", (crowded,))
    assert "could not be processed" not in here("run").stderr


def test_reading_leaves_out_a_mentor_beyond_a_limit_with_the_reason(facts: Facts) -> None:
    """A mentor at the limit is read. Rows beyond a limit accept certjob's UPDATE of status."""
    connection, organisation = facts.connection, facts.organisation()
    within, kind, pauses, reason = (facts.mentor(organisation) for _ in range(4))
    add_certificates(connection, within, 200, kind="k" * 200)
    add_pauses(connection, within, 200)
    with connection.transaction():
        connection.execute("SET LOCAL session_replication_role = replica")
        add_certificates(connection, kind, 1, kind="k" * 201)
        add_pauses(connection, pauses, 201)
        add_pauses(connection, reason, 1, reason="r" * 200)

    with connection.transaction():
        read = reading.read(connection, [kind, pauses, reason, within], lock=True)

    assert read.broken == {
        kind: "a certificate kind of more than 200 characters; shorten it",
        pauses: "more than 200 open pauses; delete some of them",
        reason: "a pause reason of more than 200 characters; shorten it",
    }
    found = [(mentor.id, len(mentor.certificates), len(mentor.open_pauses)) for mentor in read.mentors]
    assert found == [(within, 200, 200)]
    assert connection.execute("UPDATE certificates SET status = 'valid'").rowcount == 201


def test_too_long_text_is_rejected_with_column_and_limit(facts: Facts) -> None:
    """The limit counts characters. The error of a CHECK would quote the row, which is personal data."""
    furnish(facts.connection, "hlf", api=facts.connection)

    for table, column, most in (
        ("certificates", "kind", 200),
        ("mentor_pauses", "reason", 200),
        ("mentors", "member_no", 200),
        ("mentors", "email", 1000),
        ("coordinators", "email", 1000),
        ("organisations", "name", 1000),
    ):
        update = f"UPDATE {table} SET {column} = %s RETURNING 1"
        facts.rows(update, "å" * most)
        says = f"^{table}.{column} is too long, at most {most:,} characters are allowed"
        with pytest.raises(psycopg.errors.StringDataRightTruncation, match=says):
            facts.rows(update, "å" * (most + 1))


def test_mentors_with_open_work_are_not_truncated(facts: Facts) -> None:
    """Each kind of open work alone prevents it. In an organisation without a portal no one is shown."""
    furnish(facts.connection, "hlf", api=facts.connection)
    reminder = "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
    for done in (
        "UPDATE mentors SET portal_visible = false; DELETE FROM cert_notification_log",
        "UPDATE portal_sync_events SET status = 'blocked'",
        f"DELETE FROM portal_sync_events; {reminder} SELECT mentor_id, 7, id, expires_on FROM certificates",
        "DELETE FROM cert_notification_log; UPDATE mentors SET portal_visible = true",
    ):
        with pytest.raises(psycopg.errors.RestrictViolation, match="may still be shown on the portal"):
            facts.connection.execute("TRUNCATE mentors CASCADE")
        facts.connection.execute(done.encode())
    with pytest.raises(psycopg.errors.RestrictViolation, match="may still be shown on the portal"):
        facts.connection.execute("TRUNCATE organisations CASCADE")

    facts.connection.execute("UPDATE organisations SET portal = NULL; TRUNCATE mentors CASCADE")

    assert facts.rows("SELECT id FROM mentors") == []


def test_truncated_push_is_queued_again(facts: Facts) -> None:
    """Without its push, the value on the portal is unknown."""
    facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
    night(facts.connection, deliver=False)

    facts.connection.execute("TRUNCATE portal_sync_events, dynamics_sync_failures")

    night(facts.connection, deliver=False)
    assert facts.rows("SELECT visible, status FROM portal_sync_events") == [(False, "pending")]


def test_run_everybody_finds_changes_without_triggers(here: Certjob, facts: Facts) -> None:
    """A restore or replication fires no triggers."""
    facts.certified_mentor(facts.organisation(portal=None), today() + timedelta(days=300))
    assert here("run").returncode == 0
    with facts.connection.transaction():
        facts.connection.execute("SET LOCAL session_replication_role = replica")
        facts.connection.execute("UPDATE certificates SET expires_on = current_date - 2")

    here("run")
    assert facts.rows("SELECT actor FROM mentor_pauses") == []
    here("run", "--everybody")
    assert facts.rows("SELECT actor FROM mentor_pauses") == [("certjob",)]
