"""`certjob status`: whether the nights run, what waits and since when, what comes, and what failed first."""

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from random import Random
from signal import SIGKILL
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
from tests.support.command_line import Finished, on_terminal, run_in_process, started, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import NoProgress, night
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer

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


def document(result: Finished) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


# Whether the nights run.


def test_before_the_first_night_it_is_stale(here: Certjob, facts: Facts) -> None:
    """Exit 3, with what to do."""
    result = here()

    assert result.returncode == 3
    assert result.stderr == (
        "certjob status: no night has come to its end yet; run `certjob run`, and see whether cron does\n"
    )
    assert result.stdout.startswith("last good night: never\n")
    assert document(here("--json"))["last_good_run"] is None


def test_after_a_night_it_is_not(here: Certjob, connection: Connection, facts: Facts) -> None:
    """A real one, with an alert: it came to its end, and somebody has to look."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    report = night(connection)

    result = here("--json")

    found = document(result)
    assert result.returncode == 3
    assert result.stderr == ("certjob status: 1 mentor may still be visible on the portal; see `certjob alerts`\n")
    assert (found["outcome"], found["stale"]) == ("attention", False)
    assert found["alerts"]["may_be_visible"] == 1
    assert found["last_good_run"]["run_id"] == str(report.run_id)
    assert [(run["command"], run["outcome"]) for run in found["runs"]] == [("run", "attention")]
    assert (found["backlog"]["portal_hides"]["open"], found["unresolved_failures"]) == (1, 1)


@pytest.mark.parametrize(
    ("ago", "arguments", "code"),
    [
        (timedelta(hours=25, minutes=59), [], 0),
        (timedelta(hours=26, minutes=1), [], 3),
        (timedelta(hours=26, minutes=1), ["--max-age", "40h"], 0),
        (timedelta(minutes=3), ["--max-age", "2m"], 3),
    ],
)
def test_an_old_night_is_stale(here: Certjob, ran: Ran, ago: timedelta, arguments: list[str], code: int) -> None:
    """26 hours unless told otherwise; the line says since when."""
    ran(ago)

    result = here(*arguments, "-q")

    assert (result.returncode, result.stdout) == (code, "")
    assert ("the last good night ended " in result.stderr) is (code == 3)


@pytest.mark.parametrize(
    "run",
    [
        {"outcome": "failed"},
        {"outcome": None},
        {"organisation": "hlf"},
        {"command": "deliver"},
        {"command": "alerts"},
    ],
)
def test_only_whole_nights_that_ended_count(here: Certjob, ran: Ran, run: dict[str, Any]) -> None:
    """Not a failed one, not one organisation's, no delivery."""
    ran(2 * DAY)
    ran(**run)

    assert here("-q").returncode == 3


def test_a_run_that_died_shows_as_died(here: Certjob, ran: Ran) -> None:
    """It has not finished and says nothing any more; one that was heard of lately still runs."""
    ran(5 * DAY)
    alive = ran(outcome=None, silent_for=timedelta(minutes=29))
    dead = ran(outcome=None, silent_for=timedelta(minutes=31))

    found = document(here("--json"))

    outcomes = {run["run_id"]: (run["outcome"], run["finished_at"]) for run in found["runs"]}
    assert outcomes[str(alive)] == ("running", None)
    assert outcomes[str(dead)] == ("died", None)


def test_how_long_a_run_has_been_running_is_counted_up_to_now(certjob: Certjob, ran: Ran) -> None:
    """Also when it was last heard of a while ago; of one that died, up to its last sign of life."""
    ran(outcome=None, ago=timedelta(minutes=10), silent_for=timedelta(minutes=11))
    ran(outcome=None, ago=timedelta(hours=2), silent_for=timedelta(hours=1), command="deliver")

    page, whole = certjob("status"), certjob("status", "--json")

    durations = {run["outcome"]: run["duration_seconds"] for run in document(whole)["runs"]}
    assert 690 <= durations["running"] < 800
    assert 3690 <= durations["died"] < 3700
    assert ", running, for 11 min " in page.stdout
    assert ", died, after 1 h 1 min, on night-1\n" in page.stdout


def test_a_night_that_ended_in_the_future_is_no_good_one(certjob: Certjob, ran: Ran) -> None:
    """The database's clock was wrong then: for weeks nobody would notice that no night runs any more."""
    ran(-20 * DAY)

    alone, whole = certjob("status"), certjob("status", "--json")
    ran(2 * DAY)
    older = certjob("status")

    assert (alone.returncode, whole.returncode, older.returncode) == (3, 3, 3)
    assert alone.stdout.startswith("last good night: never\n")
    assert document(whole)["last_good_run"] is None
    assert "the last good night ended 2 d ago" in older.stderr


def test_a_night_that_was_killed_shows_as_died(
    here: Certjob, facts: Facts, bare_environment: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    """kill -9 in the middle of a push: nobody could write that it ended; half an hour later it is known."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    with PortalServer(default=hang()) as portal:
        settings = bare_environment | {
            "CERTJOB_DATABASE_URL": database_url,
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_PORTAL_KEY": portal.key,
        }
        with started("run", environment=settings, folder=tmp_path) as child:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            child.signal(SIGKILL)
            child.finish()

    at_first = document(here("--json"))
    facts.connection.execute(
        "UPDATE job_runs SET started_at = started_at - %s, last_seen_at = last_seen_at - %s", [DAY] * 2
    )
    later = here("--json")

    assert [run["outcome"] for run in at_first["runs"]] == ["running"]
    assert at_first["backlog"]["portal_hides"]["in_flight"] == 1
    assert [run["outcome"] for run in document(later)["runs"]] == ["died"]
    assert (later.returncode, document(later)["stale"]) == (3, True)


def test_a_long_run_says_now_and_then_that_it_is_alive(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its phases move last_seen_at, at most once a minute, and never inside a transaction."""
    report = RunReport(command="run", today=TODAY)

    def seen_at() -> datetime:
        row = connection.execute("SELECT last_seen_at FROM job_runs WHERE id = %s", (report.run_id,)).fetchone()
        assert row is not None
        return datetime.fromisoformat(str(row[0]))

    with job_runs.recorded(connection, report, progress=NoProgress()) as beating:
        first = seen_at()
        advance = beating.phase("Reviewing mentors")
        advance(1)
        too_soon = seen_at()
        clock = time.monotonic()
        monkeypatch.setattr("certjob.night.job_runs.time.monotonic", lambda: clock + job_runs.BEAT_SECONDS + 1)
        with connection.transaction():
            advance(2)
        inside = seen_at()
        advance(3)
        later = seen_at()

    assert first == too_soon == inside
    assert later > first


def test_a_database_that_is_gone_does_not_end_the_beating(
    connection: Connection, app: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's next own statement finds out and says so."""
    report = RunReport(command="run", today=TODAY)

    def work() -> None:
        with job_runs.recorded(connection, report) as beating:
            advance = beating.phase("Reviewing mentors")
            app.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
            clock = time.monotonic()
            monkeypatch.setattr("certjob.night.job_runs.time.monotonic", lambda: clock + job_runs.BEAT_SECONDS + 1)
            advance(1)
            message = "the beat was survived"
            raise ValueError(message)

    with pytest.raises(ValueError, match="the beat was survived"):
        work()


def test_deliveries_do_not_push_the_nights_off_the_page(here: Certjob, ran: Ran) -> None:
    """Five of each command, the newest first."""
    for number in range(20):
        ran(timedelta(minutes=15 * number), command="deliver")
    night_id = ran(timedelta(hours=9))

    runs = document(here("--json"))["runs"]

    assert [run["command"] for run in runs] == ["deliver"] * 5 + ["run"]
    assert runs[-1]["run_id"] == str(night_id)
    assert runs[-1]["duration_seconds"] == 90.0
    assert [run["started_at"] for run in runs] == sorted((run["started_at"] for run in runs), reverse=True)


def test_later_runs_do_not_push_one_that_failed_or_died_off_the_page(here: Certjob, ran: Ran) -> None:
    """The last of each in a week, where a night runs every hour; older ones are told by the ledger alone."""
    died_earlier, died = (ran(timedelta(days=days), outcome=None) for days in (3, 2))
    failed = ran(timedelta(days=6), outcome="failed")
    failed_long_ago = ran(timedelta(days=8), outcome="failed", command="deliver")
    for hours in range(1, 9):
        ran(timedelta(hours=hours))
        ran(timedelta(hours=hours), command="deliver")

    shown = {run["run_id"]: run["outcome"] for run in document(here("--json"))["runs"]}

    assert (shown.pop(str(died)), shown.pop(str(failed))) == ("died", "failed")
    assert not shown.keys() & {str(died_earlier), str(failed_long_ago)}
    assert list(shown.values()) == ["ok"] * 10


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
    coordinator = connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org') RETURNING id", (organisation,)
    ).fetchone()
    assert coordinator is not None
    connection.execute(
        "INSERT INTO coordinator_digests (coordinator_id, digest_on) VALUES (%s, current_date)", coordinator
    )

    found = read_open_work(connection)

    reminders, digests = found["reminders"], found["digests"]
    assert (reminders.open, reminders.due, reminders.waiting, reminders.older_than_hour) == (2, 1, 1, 2)
    assert (digests.open, digests.due) == (1, 1)


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


def test_the_failure_that_lasts_longest_is_named(here: Certjob, connection: Connection, facts: Facts) -> None:
    """By member number and organisation, never by name; resolved ones are over."""
    organisation = facts.organisation()
    for days, resolved in ((9, True), (3, False), (1, False)):
        connection.execute(
            "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, attempts, error, created_at, resolved_at)"
            " VALUES (%s, false, 'transient', 3, %s, now() - %s * interval '1 day', CASE WHEN %s THEN now() END)",
            (facts.mentor(organisation, member_no=f"M{days}"), f"error {days}", days, resolved),
        )

    found = document(here("--json"))
    page = here()

    assert found["unresolved_failures"] == 2
    assert found["oldest_failure"]["member_no"] == "M3"
    assert found["oldest_failure"]["error"] == "error 3"
    assert "M3 of hlf to be hidden; see `certjob alerts`\n" in page.stdout
    assert "Nordmann" not in page.stdout


def test_failed_reminders_are_those_that_alerts_show(here: Certjob, connection: Connection, facts: Facts) -> None:
    """Until 14 days past their day."""
    mentor = facts.mentor(facts.organisation())
    for number, days in enumerate((0, 20)):
        connection.execute(
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, queued_at)"
            " VALUES (%s, 0, gen_random_uuid(), current_date - %s::integer, 'failed', now() - interval '30 days')",
            (mentor, days + number),
        )

    assert document(here("--json"))["alerts"]["failed_reminders"] == 1
    assert here().stderr.endswith(". Also 1 reminder was not delivered; see `certjob alerts`\n")


def test_failed_digests_are_those_that_alerts_show(
    here: Certjob, ran: Ran, connection: Connection, facts: Facts
) -> None:
    """A number and where to look, and the exit code."""
    ran()
    coordinator = connection.execute(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org') RETURNING id",
        (facts.organisation(),),
    ).fetchone()
    assert coordinator is not None
    for number, status in enumerate(("failed", "sent", "superseded")):
        connection.execute(
            "INSERT INTO coordinator_digests (coordinator_id, digest_on, status) VALUES (%s, current_date - %s, %s)",
            (*coordinator, number, status),
        )

    page, whole = here(), here("--json")

    assert (page.returncode, page.stderr) == (3, "certjob status: 1 digest was not delivered; see `certjob alerts`\n")
    assert document(whole)["alerts"]["failed_digests"] == 1 == len(database.fetch(connection, "read_failed_digests"))


def test_those_without_a_certificate_are_the_nights_own_count(connection: Connection, facts: Facts) -> None:
    """Every way of having none: nothing, upcoming only, an optional kind only; and of having one, or not counting."""
    organisation = facts.organisation(optional_kinds=["firstaid"])
    facts.mentor(organisation)
    facts.certificate(facts.mentor(organisation), date(2027, 1, 1), issued_on=date(2026, 6, 1))
    facts.certificate(facts.mentor(organisation), date(2027, 1, 1), kind="firstaid")
    facts.certificate(facts.mentor(organisation), date(2027, 1, 1))
    facts.certificate(facts.mentor(organisation), LONG_AGO)
    revoked = facts.mentor(organisation)
    facts.certificate(
        revoked, date(2027, 1, 1), issued_on=date(2026, 6, 1), revoked_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    facts.pause(facts.mentor(organisation))
    facts.mentor(organisation, left_at=datetime(2026, 1, 1, tzinfo=UTC))

    report = night(connection)

    assert report.review is not None
    assert read(connection).without_certificate == report.review.without_certificate == 3


@pytest.mark.parametrize("seed", range(3))
def test_those_without_a_certificate_are_counted_from_few_mentors_and_not_one_is_missed(
    connection: Connection, facts: Facts, seed: int
) -> None:
    """Random mentors, after a night, on days around it, and when facts have changed since: as the rules say of each."""
    random = Random(seed)
    organisations = [
        facts.organisation("hlf", optional_kinds=["firstaid"]),
        facts.organisation("rk", portal=None, thresholds=[]),
    ]
    mentors = [_random_mentor(facts, random, random.choice(organisations)) for _ in range(150)]
    days = [TODAY + timedelta(days=number) for number in (-40, 0, 1, 40, 400)]

    before = [_both_counts(connection, day, mentors) for day in days]
    night(connection, allow_mass_change=True)
    reviewed = [_both_counts(connection, day, mentors) for day in days]
    mentors += [_random_mentor(facts, random, random.choice(organisations)) for _ in range(20)]
    connection.execute("UPDATE certificates SET issued_on = issued_on + 30 WHERE id > %s", (UUID(int=1 << 127),))
    changed = [_both_counts(connection, day, mentors) for day in days]

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


def test_the_document_has_its_keys(here: Certjob, ran: Ran) -> None:
    """In this order; times have their offset."""
    ran()

    found = document(here("--json"))

    assert list(found) == [
        "outcome",
        "stale",
        "now",
        "today",
        "max_age_seconds",
        "last_good_run",
        "runs",
        "backlog",
        "coming",
        "unresolved_failures",
        "oldest_failure",
        "alerts",
        "without_certificate",
        "mail_waits_until",
    ]
    assert list(found["backlog"]) == ["portal_hides", "portal_shows", "reminders", "digests"]
    assert datetime.fromisoformat(found["now"]).tzinfo is not None
    assert found["max_age_seconds"] == 26 * 3600
    assert len(found["coming"]) == 14
    assert set(found["coming"][0]) == {"on", "mentors"}


@pytest.mark.parametrize("columns", [80, 100])
def test_on_a_terminal_it_is_one_screen(
    ran: Ran, facts: Facts, bare_environment: dict[str, str], database_url: str, tmp_path: Path, columns: int
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

    _, shown = on_terminal(["status"], environment=environment, folder=tmp_path, columns=columns)
    _, plain = on_terminal(["status"], environment=environment | {"NO_COLOR": "1"}, folder=tmp_path, columns=columns)

    assert "\x1b[1;31mdied" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[1;31m" not in plain
    lines = without_escapes(shown).splitlines()
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
    assert len(document(here("--days", "3", "--json"))["coming"]) == 3


def test_it_works_on_a_read_only_database(here: Certjob, ran: Ran, connection: Connection) -> None:
    """A standby, where one may look without disturbing the night."""
    ran()
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only = on".encode())

    assert here().returncode == 0


def test_a_duration_that_is_none_is_refused(here: Certjob) -> None:
    """Like everywhere."""
    result = here("--max-age", "soon")

    assert result.returncode == 2
    assert "'soon' is not a valid duration" in result.stderr
