"""`certjob status`: whether the nightly runs work, the backlog, and the coming reviews."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
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
from certjob.reports.status import read_status
from tests.conftest import Certjob
from tests.support.command_line import Finished, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, delivery, new_job, night, review
from tests.support.programmes import random_programme

SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=number) for number in (1, 60, 3600, 86_400))

OnTerminal = Callable[..., tuple[int, str]]


class Status:
    """The command, and runs of any age."""

    def __init__(self, facts: Facts, here: Certjob) -> None:
        self._facts, self._here = facts, here

    def __call__(self, *arguments: str) -> Finished:
        return self._here("status", *arguments)

    def document(self) -> Any:
        return json.loads(self("--json").stdout)

    def ran(self, ago: timedelta = HOUR, *, silent_for: timedelta | None = None, **row: Any) -> str:
        """Record a run of 90 seconds that ended so long ago; return its id."""
        now = datetime.now(UTC)
        row = {"command": "run", "outcome": "ok", "host": "night-1", "version": "0.1.0", "as_of": now.date()} | row
        row |= {"started_at": now - ago - 90 * SECOND, "last_seen_at": now - (silent_for or ago)}
        return self._facts.insert("job_runs", id=uuid4(), finished_at=now - ago if row["outcome"] else None, **row)


@pytest.fixture
def status(facts: Facts, here: Certjob) -> Status:
    return Status(facts, here)


def test_status_is_stale_until_the_first_full_run(status: Status, facts: Facts) -> None:
    """A completed run with an alert is a good run, but the exit code is 3."""
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    before = status()
    assert (before.returncode, before.stdout.partition("\n")[0]) == (3, "last good night: never")
    assert before.stderr.startswith(
        "certjob status: no nightly run has finished yet; run `certjob run`, and check that"
    )
    assert status.document()["last_good_run"] is None

    report = night(facts.connection)
    after, found = status(), status.document()

    alert = "certjob status: 1 mentor may still be visible on the portal; see `certjob alerts`\n"
    assert (after.returncode, after.stderr) == (3, alert)
    assert (found["outcome"], found["stale"], found["alerts"]["may_be_visible"]) == ("attention", False, 1)
    assert found["last_good_run"]["run_id"] == str(report.run_id)


def test_status_is_stale_if_the_last_full_run_is_old(status: Status) -> None:
    """After 26 hours by default. Failed, unfinished, partial and future runs do not count."""
    status.ran(outcome="failed")
    status.ran(outcome=None)
    status.ran(organisation="hlf")
    status.ran(command="deliver")
    status.ran(-20 * DAY)
    assert status().stdout.startswith("last good night: never\n")
    for ago, max_age, code, said in (
        (2 * DAY, [], 3, "No full run since "),
        (26 * HOUR + MINUTE, ["--max-age", "40h"], 3, "No full run since "),
        (26 * HOUR - MINUTE, [], 0, ""),
        (3 * MINUTE, ["--max-age", "2m"], 3, "the last good night ended "),
        (3 * MINUTE, ["--max-age", "soon"], 2, "'soon' is not a valid duration"),
    ):
        status.ran(ago)
        result = status("-q", *max_age)
        assert (result.returncode, result.stdout, bool(result.stderr)) == (code, "", bool(said)), ago
        assert said in result.stderr


def test_status_has_the_last_five_runs_of_each_command(status: Status) -> None:
    """And the last run that failed, and the last that died, of the last seven days."""
    died_earlier, died = (status.ran(days * DAY, outcome=None) for days in (3, 2))
    failed = status.ran(6 * DAY, outcome="failed")
    failed_long_ago = status.ran(8 * DAY, outcome="failed", command="deliver")
    for hours in range(2, 10):
        status.ran(hours * HOUR)
        status.ran(hours * HOUR, command="deliver")
    running = status.ran(10 * MINUTE, outcome=None, silent_for=29 * MINUTE, command="resync")
    silent = status.ran(2 * HOUR, outcome=None, silent_for=31 * MINUTE, command="reconcile")

    page, runs = status().stdout, status.document()["runs"]

    shown = {run["run_id"]: run for run in runs}
    assert [shown.pop(id_)["outcome"] for id_ in (died, failed)] == ["died", "failed"]
    assert not shown.keys() & {died_earlier, failed_long_ago}
    for run_id, outcome, seconds in ((running, "running", 690), (silent, "died", 5430)):
        run = shown.pop(run_id)
        assert (run["outcome"], run["finished_at"]) == (outcome, None)
        assert seconds <= run["duration_seconds"] < seconds + 60
    assert ", running, for 11 min " in page
    assert ", died, last seen after 1 h 30 min, on night-1\n" in page
    assert sorted(run["command"] for run in shown.values()) == ["deliver"] * 5 + ["run"] * 5
    assert {(run["outcome"], run["duration_seconds"]) for run in shown.values()} == {("ok", 90.0)}
    assert [run["started_at"] for run in runs] == sorted((run["started_at"] for run in runs), reverse=True)


def test_long_run_reports_that_it_is_alive(
    connection: Connection, app: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most every 15 seconds, and not inside a transaction. A lost database does not end the run."""
    job, clock = new_job(connection, ways_out=delivery()), time.monotonic()
    report = RunReport(command="run", today=TODAY, run_id=job.run_id)
    app.autocommit = True

    def seen_at(later: float) -> Any:
        monkeypatch.setattr("certjob.jobs.job_runs.time.monotonic", lambda: clock + later)
        advance(1)
        return app.execute("SELECT last_seen_at FROM job_runs WHERE id = %s", (report.run_id,)).fetchall()

    with suppress(ZeroDivisionError), job_runs.recorded(job, report) as beating:
        advance = beating.progress.phase("Reviewing mentors")
        start = seen_at(0)
        assert seen_at(job_runs.BEAT_SECONDS - 10) == start
        with connection.transaction():
            assert seen_at(job_runs.BEAT_SECONDS + 1) == start
        later = seen_at(job_runs.BEAT_SECONDS + 1)
        app.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        assert start < later == seen_at(3 * job_runs.BEAT_SECONDS)
        raise ZeroDivisionError  # otherwise the error of the database would be raised


def test_open_work_is_counted_by_age_and_state(connection: Connection, facts: Facts) -> None:
    """Only pending reminders and digests are open."""
    organisation, now = facts.organisation(), datetime.now(UTC)

    def push(*, due_in: timedelta, age: timedelta, **more: object) -> None:
        values = {"visible": False, "next_attempt_at": now + due_in, "wanted_at": now - age} | more
        facts.insert("portal_sync_events", mentor_id=facts.mentor(organisation), **values)

    push(due_in=-MINUTE, age=MINUTE)
    push(due_in=-30 * HOUR, age=2 * HOUR)
    push(due_in=HOUR, age=3 * DAY)
    push(due_in=3 * MINUTE, age=MINUTE, claim_token=uuid4())
    push(due_in=-3 * MINUTE, age=MINUTE, claim_token=uuid4())  # its lease has expired
    push(due_in=-DAY, age=2 * DAY, status="blocked")
    push(due_in=-DAY, age=9 * DAY, status="delivered")
    push(due_in=-MINUTE, age=MINUTE, visible=True)
    coordinator = facts.insert("coordinators", organisation_id=organisation, email="k@example.org")
    facts.insert("coordinator_digests", coordinator_id=coordinator, digest_on=TODAY)
    for hours, state in enumerate(("pending", "pending", "sent", "failed")):
        about = {"mentor_id": facts.mentor(organisation), "threshold_days": 0, "cert_id": uuid4(), "expires_on": TODAY}
        times = {"queued_at": now - 2 * HOUR, "next_attempt_at": now + hours * HOUR - MINUTE}
        facts.insert("cert_notification_log", status=state, **about, **times)

    found = read_open_work(connection)

    hides, reminders = found["portal_hides"], found["reminders"]
    assert (hides.open, hides.due, hides.waiting, hides.in_flight, hides.blocked) == (6, 3, 1, 1, 1)
    assert (hides.older_than_hour, hides.older_than_day) == (3, 2)
    assert hides.oldest_at is not None
    assert 3 * DAY <= datetime.now(UTC) - hides.oldest_at < 3 * DAY + HOUR
    assert (reminders.open, reminders.due, reminders.waiting, reminders.older_than_hour) == (2, 1, 1, 2)
    assert [(found[kind].open, found[kind].due) for kind in ("portal_shows", "digests")] == [(1, 1), (1, 1)]


def test_status_has_the_number_of_reviews_for_fourteen_days(status: Status, facts: Facts) -> None:
    """Overdue mentors count for today."""
    organisation = facts.organisation()
    for day in ("-infinity", "2026-03-01", "2026-03-10", "2026-03-11", "2026-03-23", "2026-03-24", "infinity"):
        mentor = facts.mentor(organisation)
        facts.connection.execute("UPDATE mentors SET review_on = %s::date WHERE id = %s", (day, mentor))

    coming = read_status(facts.connection, today=TODAY, max_age=DAY).coming

    assert [night.on for night in coming] == [TODAY + number * DAY for number in range(14)]
    assert {night.on.day: night.mentors for night in coming if night.mentors} == {10: 3, 11: 1, 23: 1}
    status.ran()
    assert "mentors to review: 6 today, 6 within 14 nights\n" in status().stdout


def test_status_counts_mentors_without_a_certificate_by_the_rules(connection: Connection, facts: Facts) -> None:
    """On random data, on several days, before and after a run."""
    random_programme(facts, seed=3, mentors=120)
    mentors = [row[0] for row in connection.execute("SELECT id FROM mentors")]

    def counts() -> list[int]:
        read = read_facts(connection, mentors, lock=False).mentors
        found = []
        for day in (TODAY + number * DAY for number in (-400, -40, 0, 1, 40)):
            found.append(read_status(connection, today=day, max_age=DAY).without_certificate)
            assert found[-1] == sum(rules.holds_nothing(m, day) and not m.left and not m.open_pauses for m in read)
        return found

    assert len(set(counts())) > 3
    connection.execute("UPDATE mentors SET review_on = '-infinity'")
    report = night(connection, allow=EVERYTHING)
    assert report.review is not None
    assert report.review.without_certificate == counts()[2]


def test_status_fits_on_one_screen(status: Status, facts: Facts, on_terminal: OnTerminal) -> None:
    """24 lines with the prompt, with the longest content. NO_COLOR removes the colour."""
    for hours in range(1, 9):
        for command in ("run", "deliver", "resync", "alerts"):
            status.ran(hours * HOUR, command=command, host="night-1.drift.example.org")
    status.ran(outcome="failed")
    status.ran(outcome=None, silent_for=MINUTE)
    status.ran(outcome=None, silent_for=DAY, host="[red]\x1b[2J")
    facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
    review(facts.connection)
    facts.connection.execute("INSERT INTO portal_unknown_contacts (contact_id) VALUES (gen_random_uuid())")

    for columns, settings, coloured in ((80, {"LINES": "24"}, True), (100, {"NO_COLOR": "1"}, False)):
        _, shown = on_terminal("status", columns=columns, **settings)
        assert ("mwarning:" in shown, "\x1b[2J" in shown) == (coloured, False)
        lines = without_escapes(shown).splitlines()
        assert (len(lines) <= 23, max(map(len, lines)) <= columns) == (True, True)
        assert lines[0].startswith("Last good night: ")
        hides = next(line.split() for line in lines if line.startswith("hides "))
        assert hides[1:6] == ["1", "1", "0", "0", "0"]
        assert {"deliver", "resync", "alerts", "failed", "died", "running"} <= {*"\n".join(lines).split()}
