"""The dry run: it only reads, and the next run does exactly what it has planned."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from certjob import database
from certjob.cli.pages.jobs import show_report
from certjob.cli.terminal.output import Output
from certjob.jobs import runs
from tests.support.facts import TODAY
from tests.support.nights import EVERYTHING, delivery, new_job
from tests.support.programmes import everything, random_programme
from tests.support.scene import Scene

CHANGES = """
    SELECT certificate_id::text, from_status, to_status, id::text FROM certificate_transitions
    UNION ALL SELECT mentor_id::text, 'open', '', id::text FROM mentor_pauses WHERE actor = 'certjob'
    UNION ALL SELECT mentor_id::text, 'lift', '', id::text FROM mentor_pauses WHERE lifted_by = 'certjob'
    UNION ALL SELECT cert_id::text, threshold_days::text, expires_on::text, id || ' ' || jsonb_array_length(history)
        FROM cert_notification_log
    UNION ALL SELECT mentor_id::text, initcap(visible::text), '', id || ' ' || version FROM portal_sync_events"""
"""All changes that runs have made. The last column is different for each."""


def planned_changes(changes: list[dict[str, Any]]) -> Counter[tuple[str, ...]]:
    """Return the entries of ``changes`` in a plan as rows of ``CHANGES``, without the last column."""
    planned: list[tuple[str, ...]] = []
    for change in changes:
        mentor = change["mentor_id"]
        planned += [(each["certificate_id"], each["from"], each["to"]) for each in change["transitions"]]
        planned += [(mentor, change["pause"], "")] if change["pause"] else []
        reminders = change["reminders"]
        planned += [(each["certificate_id"], str(each["threshold_days"]), each["expires_on"]) for each in reminders]
        planned += [] if change["portal"] is None else [(mentor, str(change["portal"]), "")]
    return Counter(planned)


@pytest.mark.parametrize("seed", range(3))
def test_plan_is_what_the_run_does(scene: Scene, seed: int) -> None:
    """On random data: transitions, pauses, reminders and pushes."""
    random_programme(scene.facts, seed=seed)
    before = set(scene.rows(CHANGES))

    plan = scene.night(dry_run=True, allow=EVERYTHING).to_document()
    done = scene.night(deliver=False, allow=EVERYTHING).to_document()

    for part in ("mentors", "certificates"):
        assert plan[part] == done[part]
    for part in ("reminders", "portal"):
        assert plan[part]["queued"] == done[part]["queued"]
    assert planned_changes(plan["changes"]) == Counter(row[:-1] for row in set(scene.rows(CHANGES)) - before)


def test_dry_run_takes_no_lock_writes_nothing_and_calls_no_one(scene: Scene, database_url: str) -> None:
    """It works on a read-only connection while others hold all mentors and certificates."""
    random_programme(scene.facts, seed=99, mentors=40)
    before = everything(scene.facts)
    for table in ("mentors", "certificates"):
        scene.app.execute(f"SELECT 1 FROM {table} FOR UPDATE".encode())
    read_only = psycopg.conninfo.make_conninfo(database_url, options="-c default_transaction_read_only=on")

    with database.connect(read_only) as own:
        report = scene.night(scene.portal, connection=own, dry_run=True, allow=EVERYTHING)

    assert report.changes
    assert (everything(scene.facts), scene.portal.requests) == (before, [])


def test_plan_names_reminders_without_an_address(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """The run would queue them, and they would fail."""
    organisation = scene.facts.organisation()
    for number, email in (("M1", None), ("M2", " "), ("M3", "m3@example.org")):
        scene.facts.certified_mentor(organisation, TODAY + timedelta(days=7), member_no=number, email=email)

    report = scene.night(dry_run=True)
    show_report(Output(quiet=False), report, find_names=lambda _ids: {})

    changes = report.to_document()["changes"]
    assert [change["reminders"][0]["has_address"] for change in changes] == [False, False, True]
    lines = capsys.readouterr().out.splitlines()
    assert "reminder: 7 d before, no address" in lines[0]
    assert "no address" not in lines[2]


def test_plan_for_a_later_day_has_the_mentors_due_by_then(scene: Scene) -> None:
    """`--as-of` gives the state of that day in one step."""
    scene.certified(TODAY + timedelta(days=20))
    scene.night(deliver=False)

    now, later = (scene.night(today=TODAY + timedelta(days=days), dry_run=True) for days in (0, 21))

    assert now.changes == []
    assert [change.decision.pause for change in later.changes] == ["open"]


def test_plan_marks_held_changes(scene: Scene) -> None:
    """It has the same line about the hold as the run."""
    for _ in range(30):
        scene.expired()

    plan = scene.night(dry_run=True)

    assert ({change.is_held for change in plan.changes}, plan.outcome) == ({True}, "attention")
    assert plan.held == scene.night(deliver=False).held


def test_plan_shows_its_progress(scene: Scene) -> None:
    """A large programme takes a minute."""
    scene.certified(TODAY)
    shown: list[tuple[str, int]] = []

    class Shown:
        def phase(self, name: str, *, count: Callable[[], int] | None = None) -> Callable[[int], None]:
            return lambda done: shown.append((name, done))

    job = replace(new_job(scene.connection, ways_out=delivery()), progress=Shown())
    runs.run(job, accept_date=TODAY, dry_run=True)

    assert shown == [("Reviewing mentors", 1)]
