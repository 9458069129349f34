"""The dry run: it reads only, and what it says is what the night does."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest

from certjob import database
from certjob.cli.pages.night import show_plan
from certjob.cli.terminal.output import Output
from certjob.database import Connection
from tests.support.facts import TODAY, Facts
from tests.support.nights import FlakyPortal, night
from tests.support.programmes import everything, random_programme


@pytest.mark.parametrize("seed", range(3))
def test_the_plan_is_what_the_night_does(connection: Connection, facts: Facts, seed: int) -> None:
    """On random data: the plan's transitions, pauses, reminders and pushes are those found in the database after."""
    random_programme(facts, seed=seed)
    read = found_changes(facts)
    plan = night(connection, dry_run=True, allow_mass_change=True).to_document()

    report = night(connection, deliver=False, allow_mass_change=True)

    done = report.to_document()
    for part in ("mentors", "certificates"):
        assert plan[part] == done[part]
    assert plan["reminders"]["queued"] == done["reminders"]["queued"]
    assert plan["portal"]["queued"] == done["portal"]["queued"]
    assert planned_changes(plan["changes"]) == read()


def planned_changes(changes: list[dict[str, object]]) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter()
    for change in changes:
        mentor = str(change["mentor_id"])
        for item in change["transitions"]:  # type: ignore[attr-defined]
            found["transition", item["certificate_id"], item["from"], item["to"]] += 1
        if change["pause"]:
            found["pause", mentor, str(change["pause"])] += 1
        for item in change["reminders"]:  # type: ignore[attr-defined]
            found["reminder", mentor, item["certificate_id"], str(item["threshold_days"]), item["expires_on"]] += 1
        if change["portal"] is not None:
            found["portal", mentor, str(change["portal"])] += 1
    return found


def found_changes(facts: Facts) -> Callable[[], Counter[tuple[str, ...]]]:
    """Return what tells the changes since now, from the tables alone."""
    statements = {
        "transition": "SELECT 'transition', certificate_id::text, from_status, to_status, id::text"
        " FROM certificate_transitions",
        "open": "SELECT 'pause', mentor_id::text, 'open', id::text FROM mentor_pauses WHERE actor = 'certjob'",
        "lift": "SELECT 'pause', mentor_id::text, 'lift', id::text FROM mentor_pauses WHERE lifted_by = 'certjob'",
        "reminder": "SELECT 'reminder', mentor_id::text, cert_id::text, threshold_days::text, expires_on::text,"
        " id || ' ' || jsonb_array_length(history) FROM cert_notification_log",
        "portal": "SELECT 'portal', mentor_id::text, initcap(visible::text), id || ' ' || version"
        " FROM portal_sync_events",
    }

    def rows() -> set[tuple[str, ...]]:
        return {tuple(map(str, row)) for statement in statements.values() for row in facts.rows(statement)}

    before = rows()
    return lambda: Counter(row[:-1] for row in rows() - before)


def test_the_dry_run_works_on_a_read_only_connection_and_touches_nothing(
    connection: Connection, facts: Facts, database_url: str
) -> None:
    """default_transaction_read_only=on: every table is as before, and no call is made."""
    random_programme(facts, seed=99, mentors=40)
    before = everything(facts)
    double = FlakyPortal()
    read_only = psycopg.conninfo.make_conninfo(database_url, options="-c default_transaction_read_only=on")

    with database.connect(read_only) as own:
        report = night(own, dry_run=True, portal=double, allow_mass_change=True)

    assert report.changes
    assert everything(facts) == before
    assert double.calls == []


def test_the_plan_says_which_reminder_can_reach_nobody(
    connection: Connection, facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is queued, as the night queues it, and fails there: better to enter the address before."""
    organisation = facts.organisation()
    for number, email in (("M1", None), ("M2", " "), ("M3", "m3@example.org")):
        facts.certified_mentor(organisation, TODAY + timedelta(days=7), member_no=number, email=email)

    report = night(connection, dry_run=True)
    show_plan(Output(quiet=False), report)

    changes = report.to_document()["changes"]
    assert {change["member_no"]: change["reminders"][0]["has_address"] for change in changes} == {
        "M1": False,
        "M2": False,
        "M3": True,
    }
    lines = capsys.readouterr().out.splitlines()
    assert "reminder: 7 days before (no e-mail address)" in lines[0]
    assert "no e-mail address" not in lines[2]


def test_the_dry_run_waits_for_nobody(connection: Connection, facts: Facts, app: psycopg.Connection[object]) -> None:
    """It takes no lock: mentors and certificates held by others are planned all the same."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
    app.execute("SELECT 1 FROM mentors WHERE id = %s FOR UPDATE", (mentor_id,))
    app.execute("SELECT 1 FROM certificates FOR UPDATE")

    report = night(connection, dry_run=True)

    assert [change.decision.mentor_id for change in report.changes] == [mentor_id]


def test_a_plan_for_another_day_names_who_is_due_by_then(connection: Connection, facts: Facts) -> None:
    """--as-of a later day: the state of that day, in one step."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=20))
    night(connection, deliver=False)

    now = night(connection, TODAY, dry_run=True)
    later = night(connection, TODAY + timedelta(days=21), dry_run=True)

    assert now.changes == []
    assert [str(change.decision.pause) for change in later.changes] == ["open"]
    assert later.changes[0].decision.mentor_id == mentor_id


def test_the_plan_says_what_the_guards_would_hold(connection: Connection, facts: Facts) -> None:
    """The same line as the night's, and none of the held changes."""
    organisation = facts.organisation(portal=None)
    for _ in range(30):
        facts.certified_mentor(organisation, TODAY - timedelta(days=1))

    plan = night(connection, dry_run=True)

    assert plan.changes == []
    assert plan.held == night(connection, deliver=False).held
    assert plan.outcome == "attention"
