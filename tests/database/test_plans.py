"""The plans of the statements that a night runs on tables of any size: what is touched is what is due."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from typing import Any
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection
from certjob.outbox.claims import Settlement
from certjob.portal.sync import PortalSyncService
from tests.benchmarks.population import run_script, today
from tests.support.channels import reminder_mail
from tests.support.facts import TODAY, Facts
from tests.support.nights import night

SCAN = re.compile(r"Seq Scan on (\w+)")

CHUNK_STATEMENTS = {
    "lock_due_mentors",
    "read_mentors",
    "read_organisations",
    "lock_certificates",
    "lock_open_pauses",
    "update_certificate_statuses",
    "insert_transitions",
    "open_pauses",
    "queue_reminders",
    "supersede_reminders",
    "queue_portal_events",
    "withdraw_portal_events",
    "update_mentors",
}
"""What apply runs for each chunk."""


def test_the_first_night_of_a_young_database_reads_no_whole_table(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never analysed, and growing while it runs: of 3,000 mentors each chunk locks a thousand and reads its own."""
    run_script(connection, "population.sql", mentors=3_000, today=today())
    plans: dict[str, str] = {}
    locked: list[float] = []

    def note(own: Connection, name: str, parameters: Mapping[str, object] | None = None) -> None:
        plans[name] = plans.get(name, "") + plan_of(own, name, parameters)
        if name == "lock_due_mentors":
            locked.append(rows_touched(own, name, parameters or {}))

    for function in ("fetch", "execute", "fetch_value"):
        real = getattr(database, function)

        def explained(own: Connection, name: str, *rest: Any, _real: Any = real, **named: Any) -> Any:
            note(own, name, *rest)
            return _real(own, name, *rest, **named)

        monkeypatch.setattr(database, function, explained)

    report = night(connection, today(), deliver=False, allow_mass_change=True)

    assert report.review is not None
    assert report.review.reviewed == 3_000
    assert plans.keys() >= CHUNK_STATEMENTS
    assert {name: tables for name in CHUNK_STATEMENTS if (tables := SCAN.findall(plans[name]))} == {}
    assert len(locked) >= 3
    assert max(locked) <= 3 * 1_000, locked


SETTLED = """
    INSERT INTO portal_sync_events (mentor_id, visible, status, attempts, next_attempt_at, wanted_at, delivered_at)
    SELECT m.id, night % 2 = 0, 'delivered', 1, at, at, at
    FROM (SELECT id FROM mentors ORDER BY member_no LIMIT 100) AS m
    CROSS JOIN generate_series(1, 365) AS night
    CROSS JOIN LATERAL (SELECT now() - night * interval '1 day') AS times (at);
    INSERT INTO cert_notification_log (
        mentor_id, threshold_days, cert_id, expires_on, status, attempts, next_attempt_at, queued_at, sent_at
    )
    SELECT m.id, 30, gen_random_uuid(), date '2026-01-01' - night, 'sent', 1, at, at, at
    FROM (SELECT id FROM mentors ORDER BY member_no LIMIT 100) AS m
    CROSS JOIN generate_series(1, 365) AS night
    CROSS JOIN LATERAL (SELECT now() - night * interval '1 day') AS times (at);
"""
"""365 nights of 100 pushes and 100 reminders each, all settled."""

OPEN = """
    INSERT INTO portal_sync_events (mentor_id, visible)
    SELECT id, false FROM mentors WHERE dynamics_contact_id IS NOT NULL ORDER BY id LIMIT 150;
    INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)
    SELECT mentor_id, 7, id, expires_on FROM certificates ORDER BY id LIMIT 150;
"""


TOKEN = UUID(int=7)


def settled(row_id: int, *, status: str) -> dict[str, object]:
    """What a settle is given."""
    return {"id": row_id, "token": TOKEN, "version": 1} | asdict(Settlement(status=status))


def claim(connection: Connection, outbox: str) -> dict[str, object]:
    """Claim a hundred by the statements; return what the settle of the first is given, too."""
    locked = database.fetch(connection, f"lock_due_{outbox}", {"limit": 100, "today": today()})
    named = {
        "ids": [row[0] for row in locked],
        "contacts": [row[-1] for row in locked],
        "token": TOKEN,
        "lease_seconds": 300.0,
    }
    database.fetch(connection, f"claim_{outbox}", named)
    return named | settled(locked[0][0], status="sent" if outbox == "reminders" else "delivered")


def plan_of(connection: Connection, name: str, parameters: Mapping[str, object] | None) -> str:
    """The plan of a statement by name, as text."""
    rows = connection.execute(b"EXPLAIN " + database.query(name), parameters).fetchall()
    return "\n".join(row[0] for row in rows)


def analysed_plan(connection: Connection, name: str, parameters: Mapping[str, object]) -> dict[str, Any]:
    """What one run of a statement has done; it is rolled back."""
    with connection.transaction(force_rollback=True):
        rows = connection.execute(
            b"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + database.query(name), parameters
        ).fetchall()
    plan: dict[str, Any] = rows[0][0][0]["Plan"]
    return plan


def touched_blocks(connection: Connection, name: str, parameters: Mapping[str, object]) -> int:
    """Blocks of 8 kB that one run of a statement touches."""
    plan = analysed_plan(connection, name, parameters)
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def rows_touched(connection: Connection, name: str, parameters: Mapping[str, object], *, table: str = "") -> float:
    """Rows that all nodes of one run of a statement have handled or thrown away, or those that read one table."""

    def handled(node: dict[str, Any]) -> float:
        thrown_away = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
        own: float = node["Actual Loops"] * (node["Actual Rows"] + thrown_away)
        below = sum(map(handled, node.get("Plans", ())))
        return below + (own if not table or node.get("Relation Name") == table else 0)

    return handled(analysed_plan(connection, name, parameters))


def test_a_year_of_settled_rows_slows_neither_a_claim_nor_a_settle(connection: Connection) -> None:
    """In tables that were never analysed, and that were: what is touched is the batch, and no whole table."""
    claims: dict[str, dict[str, object]] = {
        "lock_due_portal_events": {"limit": 100},
        "lock_due_reminders": {"limit": 100, "today": today()},
    }
    run_script(connection, "population.sql", mentors=2_000, today=today())
    connection.execute(OPEN.encode())
    young = {name: touched_blocks(connection, name, named) for name, named in claims.items()}
    connection.execute(SETTLED.encode())
    mentors = connection.execute("SELECT id FROM mentors ORDER BY id LIMIT 100").fetchall()

    for is_analysed in (False, True):
        if is_analysed:
            connection.execute("VACUUM ANALYZE")
        old = {name: touched_blocks(connection, name, named) for name, named in claims.items()}
        assert all(old[name] <= 2 * young[name] + 50 for name in claims), (is_analysed, young, old)
        for outbox, locks in (("portal_events", []), ("reminders", ["lock_reminders"])):
            with connection.transaction(force_rollback=True):
                named = claim(connection, outbox) | {"mentor_ids": [row[0] for row in mentors]}
                statements = [f"claim_{outbox}", *locks, f"settle_{outbox}", "resolve_sync_failures"]
                plans = {name: plan_of(connection, name, named) for name in statements}
                touched = {name: rows_touched(connection, name, named) for name in statements}
            scanned = {table for plan in plans.values() for table in SCAN.findall(plan)}
            assert scanned <= {"organisations", "dynamics_sync_failures"}, (is_analysed, plans)
            assert max(touched.values()) <= 20 * 100, (is_analysed, touched)


def test_a_claim_touches_its_batch_of_a_young_backlog(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """5,000 events and 10,000 reminders, all of them open: a hundred are read, not the line sorted for each hundred."""
    run_script(connection, "population.sql", mentors=5_000, today=today())
    connection.execute("UPDATE organisations SET portal = 'dynamics'")
    connection.execute("INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors")
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
        " SELECT mentor_id, 7, id, expires_on FROM certificates"
    )
    touched: dict[str, float] = {}
    real = database.fetch

    def fetch(own: Connection, name: str, parameters: Mapping[str, object], **named: Any) -> list[Any]:
        touched[name] = rows_touched(own, name, parameters)
        return real(own, name, parameters, **named)

    monkeypatch.setattr(database, "fetch", fetch)

    for is_analysed in (False, True):
        if is_analysed:
            connection.execute("VACUUM ANALYZE")
        with connection.transaction(force_rollback=True):
            events = PortalSyncService(connection, run_id=TOKEN).claim(100)
        with connection.transaction(force_rollback=True):
            reminder, _ = reminder_mail(connection, today=today()).claim()

        assert len(events) == 100
        assert reminder is not None
        names = {"lock_due_portal_events", "claim_portal_events", "lock_due_reminders", "claim_reminders"}
        assert touched.keys() == names
        assert max(touched.values()) <= 25 * 100, (is_analysed, touched)


def test_what_the_planner_is_kept_from_does_not_make_it_compile(connection: Connection) -> None:
    """Up to PostgreSQL 17 a plan that needs it nevertheless seems so dear that it is compiled, for 200 ms each time."""
    connection.execute("SET jit = on")

    with database.transaction(connection, by_index=True):
        inside = connection.execute("SHOW jit").fetchall()

    assert inside == [("off",)]
    assert connection.execute("SHOW jit").fetchall() == [("on",)]


def test_what_others_have_in_flight_does_not_slow_a_claim(connection: Connection) -> None:
    """A claim asks for each event whether its contact is in flight: one look at an index, not at all that is."""
    run_script(connection, "population.sql", mentors=3_000, today=today())
    connection.execute("UPDATE organisations SET portal = 'dynamics'")
    connection.execute("UPDATE mentors SET dynamics_contact_id = coalesce(dynamics_contact_id, gen_random_uuid())")
    connection.execute("INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors")
    connection.execute("VACUUM ANALYZE")  # at a moment at which nothing is in flight
    statements = ("lock_due_portal_events", "claim_portal_events")
    first = connection.execute(
        "SELECT e.id, m.dynamics_contact_id FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id"
        " ORDER BY e.id LIMIT 100"
    ).fetchall()
    ids, contacts = [row[0] for row in first], [row[1] for row in first]
    named: dict[str, object] = {"limit": 100, "ids": ids, "contacts": contacts}
    named |= {"token": TOKEN, "lease_seconds": 300.0}
    alone = {name: rows_touched(connection, name, named) for name in statements}
    connection.execute(
        "UPDATE portal_sync_events AS e SET claim_token = %s, claim_contact_id = m.dynamics_contact_id,"
        " attempts = 1, next_attempt_at = now() + interval '5 minutes'"
        " FROM mentors AS m WHERE m.id = e.mentor_id AND e.id IN (SELECT max(id) - n"
        " FROM portal_sync_events, generate_series(0, 999) AS n GROUP BY n)",
        (TOKEN,),
    )

    beside = {name: rows_touched(connection, name, named) for name in statements}

    for name in statements:
        assert beside[name] <= 1.2 * alone[name], (name, alone, beside)


def test_a_night_with_nothing_due_reads_what_is_due(connection: Connection) -> None:
    """20,000 mentors, none of them due: finding that out touches a few blocks of an index."""
    connection.execute("INSERT INTO organisations (slug, name) VALUES ('big', 'Big')")
    connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, review_on)"
        " SELECT o.id, 'M' || n, '2030-01-01' FROM organisations AS o, generate_series(1, 20000) AS n"
    )
    connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, delivered_at)"
        " SELECT id, false, 'delivered', now() FROM mentors"
    )
    connection.execute("VACUUM ANALYZE")
    named: dict[str, dict[str, object]] = {
        "lock_due_mentors": {
            "today": today(),
            "after_review": "-infinity",
            "after_id": UUID(int=0),
            "organisation_id": None,
            "held": [],
            "ids": None,
            "limit": 1_000,
        },
        "bound_mass_changes": {"today": today(), "due_by": today(), "organisation_id": None, "minimum": 20},
        "heal_wrong_clock": {},
        "find_due_mentors": {"today": today(), "organisation_id": None, "held": [], "done": []},
        "forget_held_reviews": {"organisation_id": None, "held": [], "whats": []},
        "forget_review_problems": {"organisation_id": None, "found": [], "held": []},
        "count_attention": {"today": today(), "new_since": "-infinity"},
    }

    touched = {name: touched_blocks(connection, name, parameters) for name, parameters in named.items()}

    assert max(touched.values()) <= 10, touched


def test_the_guards_read_whom_they_ask_about(connection: Connection) -> None:
    """A hundred due, of 10,000 mentors half of whom are paused: not everybody's pauses."""
    connection.execute("INSERT INTO organisations (slug, name) VALUES ('big', 'Big')")
    connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, review_on)"
        " SELECT o.id, 'M' || n, CASE WHEN n % 100 = 0 THEN date '2025-01-01' ELSE date '2030-01-01' END"
        " FROM organisations AS o, generate_series(1, 10000) AS n"
    )
    connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
        " SELECT id, 'certification_expired', 'certjob' FROM mentors WHERE right(member_no, 1) < '5'"
    )
    connection.execute("UPDATE mentors SET review_on = '2030-01-01' WHERE review_on > '2026-01-01'")
    connection.execute("VACUUM ANALYZE")
    organisation_id = connection.execute("SELECT id FROM organisations").fetchall()[0][0]
    asked = {"today": today(), "due_by": today(), "organisation_id": organisation_id, "minimum": 20}

    assert rows_touched(connection, "bound_mass_changes", asked) <= 10 * 100


def test_a_mentor_is_looked_up_by_an_index(connection: Connection) -> None:
    """By the number or the id, whoever else is there; only an address is looked for among all."""
    connection.execute("INSERT INTO organisations (slug, name) SELECT 'o' || n, 'O' FROM generate_series(1, 5) AS n")
    connection.execute(
        "INSERT INTO mentors (organisation_id, member_no)"
        " SELECT o.id, 'M' || n"
        " FROM generate_series(1, 20000) AS n JOIN organisations AS o ON o.slug = 'o' || (n % 5 + 1)"
    )
    connection.execute("VACUUM ANALYZE mentors")
    ((mentor_id,),) = connection.execute("SELECT id::text FROM mentors WHERE member_no = 'M77'").fetchall()

    for name in ("M77", mentor_id, mentor_id.upper(), "nobody"):
        named = {"name": name, "organisation": None}
        found = database.fetch(connection, "find_mentors", named)
        assert [str(row[0]) for row in found] == ([] if name == "nobody" else [mentor_id])
        assert touched_blocks(connection, "find_mentors", named) <= 40, name


YEARS = """
    INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at, lifted_at, lifted_by)
    SELECT id, 'certification_expired', 'certjob', at, at + interval '1 day', 'certjob'
    FROM mentors CROSS JOIN generate_series(now() - interval '9 years', now(), interval '1 year') AS at;
    INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at)
    SELECT id, 'certification_expired', 'certjob', now() - interval '1 year' FROM mentors WHERE member_no LIKE '%7';
    INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)
    SELECT gen_random_uuid(), id, 'valid', 'expired', current_date FROM mentors CROSS JOIN generate_series(1, 10);
    INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, error, resolved_at)
    SELECT mentor_id, id, visible, 'transient', 'reset', delivered_at FROM portal_sync_events WHERE id % 10 = 0;
    UPDATE portal_sync_events SET corrects_portal = true WHERE id % 100 = 0;
    INSERT INTO portal_unknown_contacts (contact_id, first_seen_at, last_seen_at, gone_at)
    SELECT gen_random_uuid(), at, at, CASE WHEN n > 5 THEN at END
    FROM generate_series(1, 5000) AS n CROSS JOIN LATERAL (SELECT now() - n * interval '1 hour') AS t (at);
    INSERT INTO coordinators (organisation_id, email)
    SELECT id, n || '@example.org' FROM organisations CROSS JOIN generate_series(1, 5) AS n;
    INSERT INTO coordinator_digests (coordinator_id, digest_on, status, sent_number, sent_at, covers_until)
    SELECT id, current_date - n, 'sent', 1000 - n, at, at
    FROM coordinators CROSS JOIN generate_series(1, 1000) AS n
    CROSS JOIN LATERAL (SELECT now() - n * interval '1 day') AS t (at);
    INSERT INTO job_runs (id, command, as_of, host, version, started_at, finished_at, outcome)
    SELECT gen_random_uuid(), CASE WHEN n % 96 = 0 THEN 'run' ELSE 'deliver' END, at::date, 'host', '1', at, at, 'ok'
    FROM generate_series(1, 20000) AS n CROSS JOIN LATERAL (SELECT now() - n * interval '15 minutes') AS t (at);
"""
"""What else grows with the nights."""

USES = {
    "mentors_review_on_id_idx": "lock_due_mentors",
    "mentor_pauses_mentor_id_idx": "read_pause_history",
    "mentor_pauses_own_paused_at_idx": "queue_digests",
    "mentor_pauses_own_lifted_at_idx": "queue_digests",
    "certificates_expires_on_idx": "queue_digests",
    "certificate_transitions_mentor_id_idx": "read_certificate_notes",
    "cert_notification_log_due_idx": "lock_due_reminders",
    "cert_notification_log_failed_idx": "read_failed_reminders",
    "portal_sync_events_due_idx": "lock_due_portal_events",
    "portal_sync_events_in_flight_idx": "lock_due_portal_events",
    "portal_sync_events_mentor_id_idx": "read_portal_story",
    "portal_sync_events_unknown_idx": "settle_portal_events",
    "dynamics_sync_failures_mentor_id_idx": "read_portal_story",
    "dynamics_sync_failures_event_id_idx": "",  # what the foreign key does when an old event is deleted
    "portal_sync_events_corrections_idx": "queue_digests",
    "portal_unknown_contacts_open_idx": "read_unknown_contacts",
    "coordinator_digests_due_idx": "lock_due_digests",
    "coordinator_digests_sent_idx": "queue_digests",
    "job_runs_as_of_idx": "find_later_run",
    "job_runs_finished_at_idx": "read_last_run_date",
}
"""Of each index that is there for speed alone, a statement that needs it."""


def test_every_index_is_needed_and_is_used(connection: Connection) -> None:
    """Each costs something in every write. What keeps a rule is not asked: it is unique."""
    run_script(connection, "population.sql", mentors=2_000, today=today())
    connection.execute((SETTLED.replace("365", "60").replace("LIMIT 100", "LIMIT 300") + YEARS).encode())
    connection.execute("VACUUM ANALYZE")
    ((mentor_id,),) = connection.execute("SELECT id FROM mentors WHERE member_no = 'M77'").fetchall()
    named: dict[str, object] = {
        "today": today(),
        "mentor_id": mentor_id,
        "after_review": "-infinity",
        "after_id": UUID(int=0),
        "organisation_id": None,
        "held": [],
        "ids": None,
        "limit": 100,
    }
    deleted = "EXPLAIN UPDATE dynamics_sync_failures SET event_id = NULL WHERE event_id = 7"

    plans = {
        name: plan_of(connection, name, settled(7, status="delivered") if name == "settle_portal_events" else named)
        for name in set(USES.values())
        if name
    }
    plans[""] = "\n".join(row[0] for row in connection.execute(deleted).fetchall())

    assert {index: name for index, name in USES.items() if f" {index} " not in plans[name]} == {}
    for_speed = connection.execute(
        "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
        " WHERE c.relnamespace = 'public'::regnamespace AND NOT i.indisunique"
    ).fetchall()
    assert {row[0] for row in for_speed} == USES.keys()


def test_digests_for_many_coordinators_read_no_mentor_to_whom_nothing_has_happened(
    connection: Connection, facts: Facts
) -> None:
    """3,000 mentors, 30 coordinators, one pause of today: what is looked at is that pause, once."""
    organisation = facts.organisation("hlf")
    connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, dynamics_contact_id)"
        " SELECT %s, 'M' || n, gen_random_uuid() FROM generate_series(1, 3000) AS n",
        (organisation,),
    )
    connection.execute(
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " SELECT id, 'likeperson', %s, %s FROM mentors",
        (date(2024, 1, 1), date(2028, 1, 1)),
    )
    connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
        " SELECT id, 'certification_expired', 'certjob' FROM mentors WHERE member_no = 'M7'"
    )
    connection.execute(
        "INSERT INTO coordinators (organisation_id, email)"
        " SELECT %s, 'c' || n || '@example.org' FROM generate_series(1, 30) AS n",
        (organisation,),
    )
    connection.execute("ANALYZE")

    assert rows_touched(connection, "queue_digests", {"today": TODAY, "organisation_id": None}, table="mentors") == 1
    database.execute(connection, "queue_digests", {"today": TODAY, "organisation_id": None})
    assert facts.rows("SELECT count(*) FROM coordinator_digests") == [(30,)]
