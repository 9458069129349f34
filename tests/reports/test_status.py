"""`certjob status`: whether the nightly runs work, the backlog, and the coming reviews."""

import json
import time
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection
from certjob.domain import rules
from certjob.facts.reading import read as read_facts
from certjob.jobs import job_runs
from certjob.jobs.report import RunReport
from certjob.outbox.open_work import read_open_work
from certjob.reports.status import read_status, status_page
from tests.conftest import Certjob
from tests.support.command_line import on_terminal, terminal, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import delivery, new_job, night, review
from tests.support.programmes import random_programme

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=number) for number in (1, 60, 3600, 86_400))


def ran(facts: Facts, ago: timedelta = HOUR, *, silent_for: timedelta | None = None, **row: Any) -> str:
    """Record a run of 90 seconds that ended so long ago; return its id."""
    now = datetime.now(UTC)
    row = {"command": "run", "outcome": "ok", "host": "night-1", "version": "0.1.0", "as_of": now.date()} | row
    row |= {"started_at": now - ago - 90 * SECOND, "last_seen_at": now - (silent_for or ago)}
    return facts.insert("job_runs", id=uuid4(), finished_at=now - ago if row["outcome"] else None, **row)


def test_status_is_stale_until_the_first_full_run(here: Certjob, facts: Facts) -> None:
    """A completed run with an alert is a good run, but the exit code is 3."""
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    before = here("status")
    assert (before.returncode, before.stdout.partition("\n")[0]) == (3, "last good run: never")
    assert before.stderr.startswith("certjob status: no nightly run has finished yet; run `certjob run`, and check")

    report = night(facts.connection)
    after, found = here("status"), json.loads(here("status", "--json").stdout)

    alert = "certjob status: 1 mentor may still be visible on the portal; see `certjob alerts`\n"
    assert (after.returncode, after.stderr) == (3, alert)
    assert (found["outcome"], found["stale"], found["alerts"]["may_be_visible"]) == ("attention", False, 1)
    assert found["last_good_run"]["run_id"] == str(report.run_id)


def test_status_is_stale_if_the_last_full_run_is_old(here: Certjob, facts: Facts) -> None:
    """After 26 hours by default. Failed, unfinished, partial and future runs do not count."""
    ran(facts, outcome="failed")
    ran(facts, outcome=None)
    ran(facts, organisation="hlf")
    ran(facts, command="deliver")
    ran(facts, -20 * DAY)
    assert here("status").stdout.startswith("last good run: never\n")

    for ago, arguments, code, said in (
        (26 * HOUR + MINUTE, ["--max-age", "40h"], 3, "No full run since "),
        (26 * HOUR - MINUTE, [], 0, ""),
        (3 * MINUTE, ["--max-age", "2m"], 3, "the last good run ended "),
    ):
        ran(facts, ago)
        result = here("status", "-q", *arguments)
        assert (result.returncode, result.stdout, said in result.stderr) == (code, "", True)


def test_status_has_the_last_five_runs_of_each_command(here: Certjob, facts: Facts) -> None:
    """And the last run that failed, and the last that died, of the last seven days. A silent run has died."""
    died_earlier, died = (ran(facts, days * DAY, outcome=None) for days in (3, 2))
    failed = ran(facts, 6 * DAY, outcome="failed")
    failed_long_ago = ran(facts, 8 * DAY, outcome="failed", command="deliver")
    for hours in range(2, 9):
        ran(facts, hours * HOUR)
        ran(facts, hours * HOUR, command="deliver")
    running = ran(facts, 10 * MINUTE, outcome=None, silent_for=29 * MINUTE, command="resync")
    silent = ran(facts, 2 * HOUR, outcome=None, silent_for=31 * MINUTE, command="reconcile")

    runs = json.loads(here("status", "--json").stdout)["runs"]

    shown = {run["run_id"]: run for run in runs}
    outcomes = [shown.pop(run_id)["outcome"] for run_id in (died, failed, running, silent)]
    assert outcomes == ["died", "failed", "running", "died"]
    assert not shown.keys() & {died_earlier, failed_long_ago}
    assert sorted(run["command"] for run in shown.values()) == ["deliver"] * 5 + ["run"] * 5
    assert {(run["outcome"], run["duration_seconds"]) for run in shown.values()} == {("ok", 90.0)}
    assert [run["started_at"] for run in runs] == sorted((run["started_at"] for run in runs), reverse=True)


def test_terminal_shows_failed_runs_although_others_are_newer(connection: Connection, facts: Facts) -> None:
    """It has seven runs, and a delivery runs every 15 minutes. The last run of each command is there, too."""
    ran(facts, 9 * HOUR, outcome="failed", host="night-9")
    for minutes in range(10, 80, 10):
        ran(facts, minutes * MINUTE)
        ran(facts, minutes * MINUTE + 8 * HOUR, command="deliver")
    output, shown = terminal(120)

    output.show(status_page(read_status(connection, today=TODAY, max_age=DAY), zone=UTC), zone=UTC)

    rows = [line.split()[2:] for line in shown.getvalue().splitlines() if "night-" in line]
    assert len(rows) == 7
    assert {(command, outcome, row[-1]) for command, outcome, *row in rows} == {
        ("run", "ok", "night-1"),
        ("run", "failed", "night-9"),
        ("deliver", "ok", "night-1"),
    }


@pytest.mark.parametrize("columns", [0, 5])
def test_status_is_whole_on_a_terminal_with_an_odd_width(
    columns: int, facts: Facts, environment: dict[str, str], tmp_path: Path
) -> None:
    """Some shells export COLUMNS=0."""
    ran(facts)

    _, text = on_terminal(["status"], environment=environment, folder=tmp_path, columns=columns)

    shown = without_escapes(text)
    for words in ("last good run: ", "Blocked", "portal_hides", "1 min 30 s", "night-1", "within 14 days"):
        assert words in shown


def test_long_run_reports_that_it_is_alive(
    connection: Connection, app: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most every 15 seconds, and not inside a transaction. A lost database does not end the run."""
    job, clock = new_job(connection, ways_out=delivery()), time.monotonic()
    report = RunReport(today=TODAY, run_id=job.run_id)
    app.autocommit = True

    def seen_at(later: float) -> Any:
        monkeypatch.setattr("certjob.jobs.job_runs.time.monotonic", lambda: clock + later)
        advance(1)
        return app.execute("SELECT last_seen_at FROM job_runs WHERE id = %s", (report.run_id,)).fetchall()

    with suppress(ZeroDivisionError), job_runs.recorded(job, report) as beating:
        advance = beating.phase("Reviewing mentors")
        start = seen_at(0)
        assert seen_at(14) == start
        with connection.transaction():
            assert seen_at(16) == start
        later = seen_at(16)
        app.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        assert start < later == seen_at(60)
        raise ZeroDivisionError  # otherwise the error of the database would be raised


def test_open_work_is_counted_by_age_and_state(connection: Connection, facts: Facts) -> None:
    """A push with an expired lease is due again."""
    organisation, now = facts.organisation(), datetime.now(UTC)
    for due_in, age, more in (
        (-MINUTE, MINUTE, {}),
        (-30 * HOUR, 2 * HOUR, {}),
        (HOUR, 3 * DAY, {}),
        (3 * MINUTE, MINUTE, {"claim_token": uuid4()}),
        (-3 * MINUTE, MINUTE, {"claim_token": uuid4()}),
        (-DAY, 2 * DAY, {"status": "blocked"}),
        (-DAY, 9 * DAY, {"status": "delivered"}),
        (-MINUTE, MINUTE, {"visible": True}),
    ):
        push = {"visible": False, "next_attempt_at": now + due_in, "wanted_at": now - age} | more
        facts.insert("portal_sync_events", mentor_id=facts.mentor(organisation), **push)
    for status in ("pending", "sent", "failed"):
        reminder = {"mentor_id": facts.mentor(organisation), "threshold_days": 0, "cert_id": uuid4()}
        facts.insert("cert_notification_log", status=status, expires_on=TODAY, queued_at=now - 2 * HOUR, **reminder)

    found = read_open_work(connection)

    hides = found["portal_hides"]
    assert (hides.open, hides.due, hides.waiting, hides.in_flight, hides.blocked) == (6, 3, 1, 1, 1)
    assert (hides.older_than_hour, hides.older_than_day) == (3, 2)
    assert hides.oldest_at is not None
    assert 3 * DAY <= datetime.now(UTC) - hides.oldest_at < 3 * DAY + HOUR
    assert [(found[kind].open, found[kind].due) for kind in ("portal_shows", "reminders")] == [(1, 1), (1, 1)]


def test_status_has_the_number_of_reviews_for_fourteen_days(connection: Connection, facts: Facts) -> None:
    """Overdue mentors count for today."""
    organisation = facts.organisation()
    for day in ("-infinity", "2026-03-01", "2026-03-10", "2026-03-11", "2026-03-23", "2026-03-24", "infinity"):
        mentor = facts.mentor(organisation)
        connection.execute("UPDATE mentors SET review_on = %s::date WHERE id = %s", (day, mentor))

    coming = read_status(connection, today=TODAY, max_age=DAY).coming

    assert [night.on for night in coming] == [TODAY + number * DAY for number in range(14)]
    assert {night.on.day: night.mentors for night in coming if night.mentors} == {10: 3, 11: 1, 23: 1}


def test_status_counts_mentors_without_a_certificate_as_reviewed(connection: Connection, facts: Facts) -> None:
    """On random data, on several days."""
    random_programme(facts, seed=3, mentors=60)
    ids = [row[0] for row in connection.execute("SELECT id FROM mentors")]
    mentors = read_facts(connection, ids, lock=False).mentors
    days = [TODAY + number * DAY for number in (-400, -40, 0, 1, 40)]

    counts = []
    for day in days:
        connection.execute("UPDATE mentors SET review_on = '-infinity'")
        review(connection, day)
        counts.append(read_status(connection, today=day, max_age=DAY).without_certificate)

    assert counts == [
        sum(rules.has_had_no_kind(each, day) and not each.left and not each.open_pauses for each in mentors)
        for day in days
    ]
    assert len(set(counts)) > 2
