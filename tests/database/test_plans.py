"""Named statements: their settings, and that they read only due rows, not whole tables."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements
from certjob.mail import steps
from certjob.outbox.claims import Settlement
from certjob.portal.sync import PortalSyncService
from tests.benchmarks.bench import run_script
from tests.mail.channels import reminder_mail
from tests.support.command_line import today
from tests.support.nights import EVERYTHING, night

TOKEN = UUID(int=7)
MENTORS = 1_200
"""More than a chunk."""
POPULATION: dict[str, object] = {"mentors": MENTORS, "due": 0, "is_due": False, "today": today()}

OPEN_AND_OLD_ROWS = """
    UPDATE organisations SET portal = 'dynamics';
    UPDATE mentors SET dynamics_contact_id = coalesce(dynamics_contact_id, gen_random_uuid());
    INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors;
    INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)
    SELECT mentor_id, 7, id, expires_on FROM certificates;
    INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, delivered_at)
    SELECT id, night % 2 = 0, 'delivered', now() - night * interval '1 day', now() - night * interval '1 day'
    FROM (SELECT id FROM mentors ORDER BY member_no LIMIT 50) AS m, generate_series(1, 200) AS night;
    INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)
    SELECT id, 30, gen_random_uuid(), date '2026-01-01' - night, 'sent'
    FROM (SELECT id FROM mentors ORDER BY member_no LIMIT 50) AS m, generate_series(1, 200) AS night;
"""
"""An open push and reminders for everyone, and those of 200 nights."""


Plan = dict[str, Any]


def run_of(connection: Connection, name: str, parameters: Mapping[str, object] | None) -> Plan:
    """Return the plan of an executed statement, which is rolled back."""
    explain = b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + database.query(name)
    with connection.transaction(force_rollback=True):
        plan: Plan = connection.execute(explain, parameters).fetchall()[0][0][0]["Plan"]
    return plan


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def scanned_tables(plan: Plan) -> set[str]:
    """Return the tables that a plan reads from the beginning to the end."""
    return {node["Relation Name"] for node in nodes(plan) if node["Node Type"] == "Seq Scan"}


def rows_touched(plan: Plan) -> float:
    """Return the number of rows that all nodes of a plan return or discard."""
    touched = 0.0
    for node in nodes(plan):
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
        touched += node["Actual Loops"] * (node["Actual Rows"] + removed)
    return touched


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Plan]]:
    """The plans of all executions of each named statement, from now on."""
    found: dict[str, list[Plan]] = {}
    real: Any = statements._run

    def run(own: Connection, name: str, parameters: Mapping[str, object] | None, *more: Any, **options: Any) -> Any:
        found.setdefault(name, []).append(run_of(own, name, parameters))
        return real(own, name, parameters, *more, **options)

    monkeypatch.setattr(statements, "_run", run)
    return found


def test_review_of_a_new_database_reads_no_whole_table(connection: Connection, plans: dict[str, list[Plan]]) -> None:
    """The tables have no statistics and grow during the run."""
    run_script(connection, "population.sql", **POPULATION)

    night(connection, today(), deliver=False, allow=EVERYTHING)

    for name in ("lock_due_mentors", "read_mentors", "open_pauses", "queue_portal_events", "update_mentors"):
        assert plans[name], name
        assert not any(map(scanned_tables, plans[name])), name
    assert (
        max(map(rows_touched, plans["queue_portal_events"])) <= 20 * MENTORS
    )  # a join of all mentors touches MENTORS²


def test_night_of_many_changes_reads_no_row_for_each_other_row(
    connection: Connection, plans: dict[str, list[Plan]]
) -> None:
    """The statistics say that no reminder or push is open, and the night adds one for nearly everyone."""
    run_script(connection, "population.sql", **POPULATION)
    connection.execute("UPDATE organisations SET portal = 'dynamics'")
    night(connection, today(), deliver=False, allow=EVERYTHING)
    connection.execute(
        "UPDATE cert_notification_log SET status = 'sent';"
        "UPDATE portal_sync_events SET status = 'delivered';"
        "UPDATE mentors SET dynamics_contact_id = gen_random_uuid();"
        "UPDATE certificates SET revoked_at = NULL, issued_on = current_date - 1000, expires_on = current_date + 7"
        " WHERE kind = 'likeperson' AND status IN ('valid', 'expiring', 'expired')"
    )
    connection.execute("VACUUM ANALYZE")
    plans.clear()

    night(connection, today(), deliver=False, allow=EVERYTHING)

    assert {"queue_reminders", "queue_portal_events"} <= plans.keys()
    for name, executions in plans.items():
        assert max(map(rows_touched, executions)) <= 50 * MENTORS, name


def test_claim_and_settle_read_only_their_batch(connection: Connection, plans: dict[str, list[Plan]]) -> None:
    """This does not depend on a backlog, old rows, or the age of the statistics."""
    run_script(connection, "population.sql", **POPULATION)
    mentors = [row[0] for row in connection.execute("SELECT id FROM mentors ORDER BY id LIMIT 50").fetchall()]

    for change in (OPEN_AND_OLD_ROWS, "VACUUM ANALYZE"):
        connection.execute(change.encode())
        plans.clear()
        with connection.transaction(force_rollback=True):
            events = PortalSyncService(connection, run_id=TOKEN).claim(50, today=today())
            reminder = steps.claim(reminder_mail(connection, today=today()))
            assert len(events) == 50
            assert reminder is not None
        with connection.transaction(force_rollback=True):
            database.execute(connection, "settle_portal_events", settled(events[0].id, status="delivered"))
            database.execute(connection, "settle_reminders", settled(events[0].id, status="sent"))
            database.execute(connection, "resolve_sync_failures", {"mentor_ids": mentors})

        assert {"claim_portal_events", "claim_reminders"} <= plans.keys()
        for name, executions in plans.items():
            assert max(map(rows_touched, executions)) <= 25 * 50, (change, name)


def settled(row_id: int, *, status: str) -> dict[str, object]:
    """Return the parameters of a settle."""
    return {"id": row_id, "token": TOKEN, "version": 1, "confirmed_until": None} | asdict(Settlement(status=status))


def test_run_without_due_mentors_reads_few_blocks(connection: Connection) -> None:
    """With thirty due mentors, the guards read only their rows."""
    connection.execute(
        "INSERT INTO organisations (slug, name) SELECT 'o' || n, 'O' FROM generate_series(1, 5) AS n;"
        "INSERT INTO mentors (organisation_id, member_no) SELECT o.id, 'M' || n"
        " FROM generate_series(1, 3000) AS n JOIN organisations AS o ON o.slug = 'o' || (n % 5 + 1);"
        "INSERT INTO portal_sync_events (mentor_id, visible, status, delivered_at)"
        " SELECT id, false, 'delivered', now() FROM mentors;"
        "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
        " SELECT id, 'certification_expired', 'certjob' FROM mentors WHERE right(member_no, 1) < '5';"
        "UPDATE mentors SET review_on = '2030-01-01';"
        "INSERT INTO portal_last_reading (read_at, visible, dates)"
        " SELECT now(), array_agg(gen_random_uuid()), true FROM generate_series(1, 10000)"
    )
    connection.execute("VACUUM ANALYZE")
    everybody: dict[str, object] = {"today": today(), "organisation_id": None, "held": []}
    guards: dict[str, object] = {"due_by": today(), "organisation_id": None, "minimum": 20}
    nobody_due: dict[str, dict[str, object]] = {
        "lock_due_mentors": everybody
        | {"after_review": "-infinity", "after_id": UUID(int=0), "ids": None, "limit": 1_000},
        "count_due_mentors": guards,
        "find_due_mentors": everybody | {"done": []},
        "read_attention": everybody,
    }
    for name, parameters in nobody_due.items():
        plan = run_of(connection, name, parameters)
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= 10, name

    connection.execute("UPDATE mentors SET review_on = '2025-01-01' WHERE member_no LIKE '%00'")
    connection.execute("VACUUM ANALYZE mentors")
    assert rows_touched(run_of(connection, "count_due_mentors", guards)) <= 10 * 30


def test_statements_always_run_with_certjobs_settings(connection: Connection, database_url: str) -> None:
    """They do so inside and outside a transaction. The session itself keeps its settings."""
    name = connection.info.dbname
    connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'".encode())
    with database.connect(database_url) as fresh:
        alone = database.clock(fresh)
        with database.read_only_snapshot(fresh):
            inside = database.clock(fresh)

        assert [moment.utcoffset() for moment in (alone, inside)] == [timedelta()] * 2
        assert fresh.execute("SELECT current_setting('timezone')").fetchone() == ("Asia/Tokyo",)


def test_no_statement_waits_forever_for_a_locked_table(
    connection: Connection, app: psycopg.Connection[tuple[object, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither alone nor in a snapshot: a delivery would hang without a message."""
    monkeypatch.setattr(statements, "LOCK_TIMEOUT_MS", 50)
    app.execute("LOCK TABLE portal_sync_events")

    with pytest.raises(psycopg.errors.LockNotAvailable):
        database.fetch(connection, "read_open_work")
    with pytest.raises(psycopg.errors.LockNotAvailable), database.read_only_snapshot(connection):
        database.fetch(connection, "read_open_work")
