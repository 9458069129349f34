"""`certjob status`: whether the nights run, what waits and since when, what comes, and what failed first."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.facts.reading import read as read_facts
from certjob.night import job_runs
from certjob.night.report import RunReport
from certjob.outbox.open_work import OpenWork, read_open_work
from certjob.views.status import read_status
from tests.conftest import Certjob
from tests.support.command_line import Finished, on_terminal, run_in_process, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import NoProgress, night

LONG_AGO = date(2025, 1, 1)
DAY = timedelta(days=1)


@pytest.fixture
def here(bare_environment: dict[str, str], database_url: str, tmp_path: Path) -> Certjob:
    """`certjob status` in this process."""

    def run(*arguments: str, **settings: str) -> Finished:
        environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url} | settings
        return run_in_process("status", *arguments, environment=environment, folder=tmp_path)

    return run


Ran = Callable[..., UUID]


@pytest.fixture
def ran(connection: Connection) -> Ran:
    """Write a run's line, as old as told."""

    def write(
        ago: timedelta = timedelta(hours=1),
        *,
        command: str = "run",
        outcome: str | None = "ok",
        organisation: str | None = None,
        silent_for: timedelta | None = None,
        host: str = "night-1",
    ) -> UUID:
        run_id = uuid4()
        connection.execute(
            "INSERT INTO job_runs (id, command, as_of, organisation, host, version, outcome,"
            " started_at, last_seen_at, finished_at) VALUES (%(id)s, %(command)s, current_date, %(organisation)s,"
            " %(host)s, '0.1.0', %(outcome)s, now() - %(ago)s - interval '90 seconds',"
            " now() - coalesce(%(silent)s, %(ago)s),"
            " CASE WHEN %(outcome)s::text IS NULL THEN NULL ELSE now() - %(ago)s END)",
            {
                "id": run_id,
                "command": command,
                "organisation": organisation,
                "host": host,
                "outcome": outcome,
                "ago": ago,
                "silent": silent_for,
            },
        )
        return run_id

    return write


def run_document(here: Certjob, *arguments: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(here(*arguments, "--json").stdout)
    return parsed


# Whether the nights run.


def test_before_the_first_night_it_is_stale_and_after_one_it_is_not(
    here: Certjob, connection: Connection, facts: Facts
) -> None:
    """Exit 3, with what to do; the night that came to its end has an alert, and somebody has to look."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    before = here()
    assert (before.returncode, before.stdout.partition("\n")[0]) == (3, "last good night: never")
    assert before.stderr == (
        "certjob status: no night has come to its end yet; run `certjob run`, and see whether cron does\n"
    )
    assert run_document(here)["last_good_run"] is None

    report = night(connection)
    after, found = here(), run_document(here)

    alert = "certjob status: 1 mentor may still be visible on the portal; see `certjob alerts`\n"
    assert (after.returncode, after.stderr) == (3, alert)
    assert (found["outcome"], found["stale"]) == ("attention", False)
    assert found["alerts"]["may_be_visible"] == 1
    assert found["last_good_run"]["run_id"] == str(report.run_id)
    assert [(run["command"], run["outcome"]) for run in found["runs"]] == [("run", "attention")]
    assert (found["backlog"]["portal_hides"]["open"], found["unresolved_failures"]) == (1, 1)


def test_an_old_night_is_stale(here: Certjob, ran: Ran, connection: Connection) -> None:
    """26 hours unless told otherwise; only whole nights that ended count, and none that ended in the future."""
    cases: list[tuple[timedelta, list[str], int]] = [
        (timedelta(hours=25, minutes=59), [], 0),
        (timedelta(hours=26, minutes=1), [], 3),
        (timedelta(hours=26, minutes=1), ["--max-age", "40h"], 0),
        (timedelta(minutes=3), ["--max-age", "2m"], 3),
    ]
    for ago, arguments, code in cases:
        connection.execute("DELETE FROM job_runs")
        ran(ago)
        result = here(*arguments, "-q")
        assert (result.returncode, result.stdout) == (code, ""), ago
        assert ("the last good night ended " in result.stderr) is (code == 3)

    connection.execute("DELETE FROM job_runs")
    ran(outcome="failed")
    ran(outcome=None)
    ran(organisation="hlf")
    ran(command="deliver")
    ran(-20 * DAY)
    assert here().stdout.startswith("last good night: never\n")
    ran(2 * DAY)
    older = here("-q")
    assert older.returncode == 3
    assert "the last good night ended 2 d ago" in older.stderr


def test_a_run_that_died_shows_as_died(here: Certjob, ran: Ran) -> None:
    """It says nothing any more; one that was heard of lately still runs, and is counted up to now."""
    ran(5 * DAY)
    ran(timedelta(minutes=10), outcome=None, silent_for=timedelta(minutes=29))
    ran(timedelta(hours=2), outcome=None, silent_for=timedelta(minutes=31), command="deliver")

    page, runs = here().stdout, {run["outcome"]: run for run in run_document(here)["runs"]}

    assert runs["running"]["finished_at"] is runs["died"]["finished_at"] is None
    assert 690 <= runs["running"]["duration_seconds"] < 800
    assert 5430 <= runs["died"]["duration_seconds"] < 5470
    assert ", running, for 11 min " in page
    assert ", died, after 1 h 30 min, on night-1\n" in page


def test_a_long_run_says_now_and_then_that_it_is_alive(
    connection: Connection, app: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most once a minute, never inside a transaction; a database that is gone does not end the beating."""
    report = RunReport(command="run", today=TODAY)
    clock = time.monotonic()

    def seen_at() -> Any:
        return app.execute("SELECT last_seen_at FROM job_runs WHERE id = %s", (report.run_id,)).fetchall()

    app.autocommit = True
    with suppress(ZeroDivisionError), job_runs.recorded(connection, report, progress=NoProgress()) as beating:
        first = seen_at()
        advance = beating.phase("Reviewing mentors")
        advance(1)
        too_soon = seen_at()
        monkeypatch.setattr("certjob.night.job_runs.time.monotonic", lambda: clock + job_runs.BEAT_SECONDS + 1)
        with connection.transaction():
            advance(2)
        inside = seen_at()
        advance(3)
        later = seen_at()
        app.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
        monkeypatch.setattr("certjob.night.job_runs.time.monotonic", lambda: clock + 3 * job_runs.BEAT_SECONDS)
        advance(4)
        raise ZeroDivisionError  # the beat was survived, or this would be the database's error

    assert first == too_soon == inside
    assert later > first


def test_no_run_pushes_one_that_matters_off_the_page(here: Certjob, ran: Ran) -> None:
    """Five of each command, the newest first, and of a week the last that failed or died; the ledger has the others."""
    died_earlier, died = (ran(timedelta(days=days), outcome=None) for days in (3, 2))
    failed = ran(timedelta(days=6), outcome="failed")
    failed_long_ago = ran(timedelta(days=8), outcome="failed", command="deliver")
    for hours in range(1, 9):
        ran(timedelta(hours=hours))
        ran(timedelta(hours=hours), command="deliver")

    runs = run_document(here)["runs"]

    shown = {run["run_id"]: run["outcome"] for run in runs}
    assert (shown.pop(str(died)), shown.pop(str(failed))) == ("died", "failed")
    assert not shown.keys() & {str(died_earlier), str(failed_long_ago)}
    assert list(shown.values()) == ["ok"] * 10
    assert sorted(run["command"] for run in runs if run["outcome"] == "ok") == ["deliver"] * 5 + ["run"] * 5
    assert [run["started_at"] for run in runs] == sorted((run["started_at"] for run in runs), reverse=True)
    assert {run["duration_seconds"] for run in runs if run["outcome"] == "ok"} == {90.0}


# What waits.


def test_what_waits_is_told_by_age_and_state(connection: Connection, facts: Facts) -> None:
    """Due, later, in a run's hands, blocked."""
    organisation = facts.organisation()

    def event(status: str, next_attempt: str, wanted: str, *, visible: bool = False, claimed: bool = False) -> None:
        connection.execute(
            "INSERT INTO portal_sync_events (mentor_id, visible, status, next_attempt_at, wanted_at, claim_token)"
            " VALUES (%s, %s, %s, now() + %s::interval, now() - %s::interval, %s)",
            (facts.mentor(organisation), visible, status, next_attempt, wanted, uuid4() if claimed else None),
        )

    event("pending", "-1 minute", "1 minute")
    event("pending", "-30 hours", "2 hours")
    event("pending", "1 hour", "3 days")
    event("pending", "3 minutes", "1 minute", claimed=True)
    event("pending", "-3 minutes", "1 minute", claimed=True)
    event("blocked", "-1 day", "2 days")
    event("delivered", "-1 day", "9 days")
    event("pending", "-1 minute", "1 minute", visible=True)

    found = read_open_work(connection)

    hides = found["portal_hides"]
    assert (hides.open, hides.due, hides.waiting, hides.in_flight, hides.blocked) == (6, 3, 1, 1, 1)
    assert (hides.older_than_hour, hides.older_than_day) == (3, 2)
    assert hides.oldest_at is not None
    assert timedelta(days=3) <= datetime.now(UTC) - hides.oldest_at < timedelta(days=3, minutes=5)
    assert (found["portal_shows"].open, found["portal_shows"].due) == (1, 1)
    assert found["reminders"] == found["digests"] == OpenWork()


def test_reminders_and_digests_wait_too(connection: Connection, facts: Facts) -> None:
    """Only those that are pending."""
    organisation = facts.organisation()
    mentor = facts.mentor(organisation)
    for number, status in enumerate(("pending", "pending", "sent", "failed")):
        connection.execute(
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status,"
            " next_attempt_at, queued_at) VALUES (%s, %s, gen_random_uuid(), current_date, %s,"
            " now() + %s * interval '1 hour', now() - interval '2 hours')",
            (mentor, 30 + number, status, number),
        )
    digest(facts, organisation, "pending")

    found = read_open_work(connection)

    reminders, digests = found["reminders"], found["digests"]
    assert (reminders.open, reminders.due, reminders.waiting, reminders.older_than_hour) == (2, 1, 1, 2)
    assert (digests.open, digests.due) == (1, 1)


def digest(facts: Facts, organisation: UUID, *statuses: str) -> None:
    """A coordinator's digests of the last days, the first one of today."""
    facts.connection.execute(
        "WITH c AS (INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org') RETURNING id)"
        " INSERT INTO coordinator_digests (coordinator_id, digest_on, status)"
        " SELECT c.id, current_date - number::integer, status"
        " FROM c, unnest(%s::text[]) WITH ORDINALITY AS s (status, number)",
        (organisation, list(statuses)),
    )


# What comes, and what failed.


def read(connection: Connection) -> Any:
    return read_status(connection, today=TODAY, max_age=DAY)


def test_the_coming_nights_have_their_numbers(connection: Connection, facts: Facts) -> None:
    """Fourteen, today's with whoever is overdue; a mentor for whom nothing will happen is in none."""
    organisation = facts.organisation()
    days = ["-infinity", "2026-03-01", "2026-03-10", "2026-03-11", "2026-03-23", "2026-03-24", "infinity"]
    for day in days:
        mentor = facts.mentor(organisation)
        connection.execute("UPDATE mentors SET review_on = %s::date WHERE id = %s", (day, mentor))

    coming = read(connection).coming

    assert [night.on for night in coming] == [TODAY + number * DAY for number in range(14)]
    assert {night.on: night.mentors for night in coming if night.mentors} == {
        date(2026, 3, 10): 3,
        date(2026, 3, 11): 1,
        date(2026, 3, 23): 1,
    }


def test_the_coming_nights_cost_what_is_due(connection: Connection) -> None:
    """One range of the index that the night itself walks; on a million mentors that is milliseconds."""
    parameters = {"today": TODAY, "until": TODAY + 14 * DAY}
    with connection.transaction():
        connection.execute("SET LOCAL enable_seqscan = off")
        statement = b"EXPLAIN " + database.query("count_coming_reviews")
        plan = "\n".join(str(row[0]) for row in connection.execute(statement, parameters).fetchall())

    assert "mentors_review_on_id_idx" in plan
    assert "Index Cond: (review_on < " in plan


def test_what_failed_is_what_alerts_show(here: Certjob, ran: Ran, connection: Connection, facts: Facts) -> None:
    """The failure that lasts longest, by member number; reminders until 14 days past their day; digests."""
    ran()
    organisation = facts.organisation()
    digest(facts, organisation, "failed", "sent", "superseded")
    page, found = here(), run_document(here)
    assert (page.returncode, page.stderr) == (3, "certjob status: 1 digest was not delivered; see `certjob alerts`\n")
    assert found["alerts"]["failed_digests"] == 1 == len(database.fetch(connection, "read_failed_digests"))

    mentor = facts.mentor(organisation)
    for number, days in enumerate((0, 20)):
        connection.execute(
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, queued_at)"
            " VALUES (%s, 0, gen_random_uuid(), current_date - %s::integer, 'failed', now() - interval '30 days')",
            (mentor, days + number),
        )
    assert run_document(here)["alerts"]["failed_reminders"] == 1
    assert here().stderr.startswith("certjob status: 1 reminder was not delivered")

    for days, resolved in ((9, True), (3, False), (1, False)):
        connection.execute(
            "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, attempts, error, created_at, resolved_at)"
            " VALUES (%s, false, 'transient', 3, %s, now() - %s * interval '1 day', CASE WHEN %s THEN now() END)",
            (facts.mentor(organisation, member_no=f"M{days}"), f"error {days}", days, resolved),
        )
    page, found = here(), run_document(here)
    assert (found["unresolved_failures"], found["oldest_failure"]["member_no"]) == (2, "M3")
    assert found["oldest_failure"]["error"] == "error 3"
    assert "M3 of hlf to be hidden; see `certjob alerts`\n" in page.stdout
    assert "Nordmann" not in page.stdout


@pytest.mark.parametrize("seed", [1])
def test_those_without_a_certificate_are_counted_from_few_mentors_and_not_one_is_missed(
    connection: Connection, facts: Facts, seed: int
) -> None:
    """Random mentors, after a night, on days around it, and when facts have changed since: as the rules say of each.

    A night counts the same.
    """
    random = Random(seed)
    organisations = [
        facts.organisation("hlf", optional_kinds=["firstaid"]),
        facts.organisation("rk", portal=None, thresholds=[]),
    ]
    mentors = [_random_mentor(facts, random, random.choice(organisations)) for _ in range(100)]
    days = [TODAY + timedelta(days=number) for number in (-40, 0, 1, 40, 400)]

    before = [_both_counts(connection, day, mentors) for day in days]
    report = night(connection, allow_mass_change=True)
    reviewed = [_both_counts(connection, day, mentors) for day in days]
    mentors += [_random_mentor(facts, random, random.choice(organisations)) for _ in range(20)]
    connection.execute("UPDATE certificates SET issued_on = issued_on + 30 WHERE id > %s", (UUID(int=1 << 127),))
    changed = [_both_counts(connection, day, mentors) for day in days]

    assert report.review is not None
    assert report.review.without_certificate == before[1][0]
    for status, rules_say in [*before, *reviewed, *changed]:
        assert status == rules_say
    assert len({rules_say for _, rules_say in [*before, *reviewed, *changed]}) > 5


def _random_mentor(facts: Facts, random: Random, organisation: UUID) -> UUID:
    """Up to three certificates of either kind, around today; perhaps revoked, perhaps paused, perhaps gone."""
    left_at = datetime(2026, 1, 1, tzinfo=UTC) if random.random() < 0.1 else None
    mentor = facts.mentor(organisation, left_at=left_at)
    for number in range(random.choice((0, 1, 1, 2, 3))):
        issued_on = TODAY + timedelta(days=3 * random.randint(-60, 30) + number)
        facts.certificate(
            mentor,
            random.choice((issued_on + timedelta(days=30), issued_on + timedelta(days=60), date.max)),
            kind=random.choice(("likeperson", "firstaid")),
            issued_on=issued_on,
            revoked_at=datetime(2026, 1, 1, tzinfo=UTC) if random.random() < 0.1 else None,
        )
    if random.random() < 0.1:
        facts.pause(mentor)
    return mentor


def _both_counts(connection: Connection, day: date, mentors: Sequence[UUID]) -> tuple[int, int]:
    """What `status` counts on a day, and for how many active mentors the rules say that they hold nothing."""
    read = read_facts(connection, mentors, lock=False).mentors
    holding_nothing = sum(rules.holds_nothing(m, day) and not m.left and not m.open_pauses for m in read)
    status = read_status(connection, today=day, max_age=DAY)
    return status.without_certificate, holding_nothing


# How it is shown.


def test_on_a_terminal_it_is_one_screen(
    ran: Ran, facts: Facts, bare_environment: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    """24 lines with the prompt, whatever has happened; what matters first; died in red; NO_COLOR takes the colour."""
    for hours in range(1, 9):
        for command in ("run", "deliver", "resync", "alerts"):
            ran(timedelta(hours=hours), command=command, host="night-1.drift.example.org")
    ran(outcome="failed")
    ran(outcome=None, silent_for=timedelta())
    ran(outcome=None, silent_for=DAY, host="[red]\x1b[2J")
    facts.connection.execute(
        "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, attempts, error)"
        " VALUES (%s, false, 'stage', 0, %s)",
        (facts.mentor(facts.organisation()), "x" * 200),
    )
    environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}

    _, shown = on_terminal(["status"], environment=environment, folder=tmp_path, columns=80)
    _, plain = on_terminal(["status"], environment=environment | {"NO_COLOR": "1"}, folder=tmp_path, columns=100)

    assert "\x1b[1;31mdied" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[1;31m" not in plain
    for text, columns in ((shown, 80), (plain, 100)):
        lines = without_escapes(text).splitlines()
        assert len(lines) <= 23
        assert max(map(len, lines)) <= columns
        assert lines[0].startswith("Last good night: ")
        assert {"deliver", "resync", "alerts", "failed", "died", "running"} <= {*"\n".join(lines).split()}


def test_the_coming_nights_are_listed_when_asked_for(here: Certjob, ran: Ran, facts: Facts) -> None:
    """Otherwise there is one line for all."""
    ran()
    facts.mentor(facts.organisation())

    assert "mentors to review: 1 today, 1 within 14 nights; see `certjob status --days 14`\n" in here().stdout
    listed = [line for line in here("--days", "3").stdout.splitlines() if line.startswith("to review on ")]
    assert [line.rpartition(": ")[2] for line in listed] == ["1", "0", "0"]
    assert len(run_document(here, "--days", "3")["coming"]) == 3


def test_it_works_on_a_read_only_database_and_refuses_what_is_no_duration(
    here: Certjob, ran: Ran, connection: Connection
) -> None:
    """A standby, where one may look without disturbing the night."""
    ran()
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only = on".encode())

    refused = here("--max-age", "soon")

    assert here().returncode == 0
    assert refused.returncode == 2
    assert "'soon' is not a valid duration" in refused.stderr
