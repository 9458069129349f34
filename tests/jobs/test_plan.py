"""The dry run: it only reads, and the next run makes exactly the planned changes."""

from collections import Counter
from datetime import timedelta

import psycopg

from certjob import database
from tests.support.facts import TODAY
from tests.support.nights import EVERYTHING
from tests.support.programmes import all_rows, changes_by_mentor, random_programme
from tests.support.scene import Scene


def test_plan_is_what_the_run_does(scene: Scene) -> None:
    """On random data. Each change is the mentor, the kind of change, and the new status of a certificate."""
    random_programme(scene.facts, seed=0)
    before = changes_by_mentor(scene.facts)

    plan = scene.night(dry_run=True, allow=EVERYTHING).to_document()
    done = scene.night(deliver=False, allow=EVERYTHING).to_document()

    for part in ("mentors", "certificates"):
        assert plan[part] == done[part]
    for part in ("reminders", "portal"):
        assert plan[part]["queued"] == done[part]["queued"]
    planned = Counter[tuple[str, str, str]]()
    for change in plan["changes"]:
        mentor = change["mentor_id"]
        planned.update((mentor, "status", transition["to"]) for transition in change["transitions"])
        planned.update((mentor, "reminder", "") for _ in change["reminders"])
        if change["pause"]:
            planned[mentor, {"open": "pause", "lift": "resume"}[change["pause"]], ""] += 1
        if change["portal"] is not None:
            planned[mentor, "show" if change["portal"] else "hide", ""] += 1
    after = changes_by_mentor(scene.facts)
    new = [(mentor, change) for mentor in after for change in after[mentor] - before[mentor]]
    assert planned == Counter((mentor, kind, status) for mentor, (kind, status, _row) in new)


def test_dry_run_takes_no_lock_writes_nothing_and_calls_no_one(scene: Scene, database_url: str) -> None:
    """It works on a read-only connection while others hold all mentors and certificates."""
    random_programme(scene.facts, seed=99, mentors=40)
    before = all_rows(scene.facts)
    for table in ("mentors", "certificates"):
        scene.app.execute(f"SELECT 1 FROM {table} FOR UPDATE".encode())
    read_only = psycopg.conninfo.make_conninfo(database_url, options="-c default_transaction_read_only=on")

    with database.connect(read_only) as own:
        report = scene.night(scene.portal, connection=own, dry_run=True, allow=EVERYTHING)

    assert report.changes
    assert (all_rows(scene.facts), scene.portal.requests) == (before, [])


def test_plan_names_reminders_without_an_address(scene: Scene) -> None:
    """The run would queue them, and they would fail."""
    organisation = scene.facts.organisation()
    for number, email in (("M1", None), ("M2", " "), ("M3", "m3@example.org")):
        scene.facts.certified_mentor(organisation, TODAY + timedelta(days=7), member_no=number, email=email)

    changes = scene.night(dry_run=True).to_document()["changes"]

    assert [change["reminders"][0]["has_address"] for change in changes] == [False, False, True]


def test_plan_for_a_later_day_has_the_mentors_due_by_then(scene: Scene) -> None:
    """`--as-of` gives the state of that day in one step."""
    scene.certified(TODAY + timedelta(days=20))
    scene.night(deliver=False)

    now, later = (scene.night(today=TODAY + timedelta(days=days), dry_run=True) for days in (0, 21))

    assert list(now.changes) == []
    assert [change.decision.pause for change in later.changes] == ["open"]
