"""certjob db prune: what is done and old goes, and no night afterwards does anything else than it would have done."""

import json
import random
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest
from psycopg import sql

from certjob import database
from certjob.database import Connection, retention
from certjob.database.retention import Pruning, parse_age, prune
from certjob.errors import ConfigurationError, DatabaseUnavailableError, StoppedBySignalError
from certjob.night import reconcile as reconciling
from certjob.outbox.retry import RetryPolicy
from certjob.review import plan
from certjob.stopping import StopFlag
from tests.conftest import Certjob, database_of
from tests.support.command_line import run_in_process
from tests.support.facts import Facts
from tests.support.intents import queue_wish
from tests.support.nights import CollectingChannel, FlakyPortal, NoProgress, delivery, night
from tests.support.waiting import until, waits_for_a_lock

TODAY = datetime.now(ZoneInfo("Europe/Oslo")).date()
"""Old is what the database's own clock says is old, so these tests happen today."""
LONG_AGO = "now() - interval '4 years'"
NOTHING = dict.fromkeys(("sync_failures", "portal_events", "transitions", "reminders", "digests", "job_runs"), 0)


def pruned(connection: Connection, age: str = "3y", *, dry_run: bool = False, stop: StopFlag | None = None) -> Pruning:
    """Prune today; what a dry run says beforehand is what happens then."""
    return prune(
        connection, parse_age(age), today=TODAY, zone=ZoneInfo("Europe/Oslo"), dry_run=dry_run, stop=stop or StopFlag()
    )


def rows_gone(connection: Connection, age: str = "3y") -> dict[str, int]:
    """What went, by kind, without the kinds of which nothing went; a dry run has said the same before."""
    said = pruned(connection, age, dry_run=True)
    done = pruned(connection, age)
    assert done.rows == said.rows
    return {name: number for name, number in done.rows.items() if number}


@pytest.fixture
def mentor_id(facts: Facts) -> object:
    return facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=400))


class TestAge:
    """--older-than, as people write it."""

    @pytest.mark.parametrize(
        ("text", "interval"),
        [
            ("3y", "3 years"),
            ("18m", "18 months"),
            ("26w", "26 weeks"),
            ("400d", "400 days"),
            ("1Y6m", "1 year 6 months"),
        ],
    )
    def test_an_age_is_calendar_time(self, connection: Connection, text: str, interval: str) -> None:
        """Three years are three years, whatever lies between; at the end of a shorter month, its last day."""
        expected = connection.execute(
            "SELECT (now() AT TIME ZONE 'Europe/Oslo' - %s::interval)::date", (interval,)
        ).fetchone()

        assert (pruned(connection, text, dry_run=True).before.date(),) == expected

    @pytest.mark.parametrize("text", ["", "3", "three years", "-3y", "3y2", "1d1y", "3.5y", "99999d9y"])
    def test_what_is_no_age_is_refused_with_an_example(self, text: str) -> None:
        """Not guessed at: it deletes."""
        with pytest.raises(ConfigurationError, match="give one such as 3y"):
            parse_age(text)

    @pytest.mark.parametrize("text", ["0d", "89d", "2m", "12w"])
    def test_less_than_90_days_is_refused(self, connection: Connection, text: str) -> None:
        """A reminder may still be due, and a mail about it would go out twice."""
        with pytest.raises(ConfigurationError, match="at least 90 days"):
            pruned(connection, text, dry_run=True)

    def test_an_age_before_the_calendar_is_refused(self, connection: Connection) -> None:
        """With a sentence, not an overflow."""
        with pytest.raises(ConfigurationError, match="before the calendar"):
            pruned(connection, "999y9999m9999w99999d")

    def test_two_clocks_that_disagree_are_refused(self, connection: Connection) -> None:
        """One of them is wrong by years, and with it what is old."""
        with pytest.raises(ConfigurationError, match="correct the clock that is wrong"):
            prune(
                connection,
                parse_age("3y"),
                today=TODAY + timedelta(days=2000),
                zone=ZoneInfo("UTC"),
                dry_run=False,
                stop=StopFlag(),
            )


class TestPortalEvents:
    """Confirmations, withdrawals, failures."""

    @staticmethod
    def event(
        facts: Facts, mentor_id: object, *, visible: bool = False, status: str = "delivered", at: str = LONG_AGO
    ) -> int:
        row = facts.connection.execute(
            "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at, delivered_at)"
            f" VALUES (%s, %s, %s, {at}, {at}, CASE WHEN %s = 'delivered' THEN {at} END) RETURNING id".encode(),
            (mentor_id, visible, status, status),
        ).fetchone()
        assert row is not None
        return int(str(row[0]))

    def test_the_last_confirmation_of_either_value_stays(self, facts: Facts, mentor_id: object) -> None:
        """`reconcile` shows only whom certjob has shown before, and `explain` tells what the portal confirmed."""
        ages = ("6 years", "5 years", "4 years")
        ids = [
            self.event(facts, mentor_id, visible=visible, at=f"now() - interval '{age}'")
            for age in ages
            for visible in (True, False)
        ]

        gone = rows_gone(facts.connection)

        assert gone == {"portal_events": 4}
        assert facts.rows("SELECT id FROM portal_sync_events ORDER BY id") == [(ids[4],), (ids[5],)]
        assert rows_gone(facts.connection) == {}

    def test_old_ones_go_while_a_younger_one_tells_the_same(self, facts: Facts, mentor_id: object) -> None:
        """The usual case: pushed again after a hand edit."""
        self.event(facts, mentor_id, visible=True)
        self.event(facts, mentor_id, visible=True, at="now() - interval '1 week'")

        assert rows_gone(facts.connection) == {"portal_events": 1}

    @pytest.mark.parametrize("status", ["pending", "blocked"])
    def test_an_open_event_never_goes(self, facts: Facts, mentor_id: object, status: str) -> None:
        """However long it has waited: it is somebody who may still be visible."""
        self.event(facts, mentor_id, status=status)

        assert rows_gone(facts.connection) == {}

    def test_withdrawn_ones_go_but_not_while_a_call_may_be_in_flight(self, facts: Facts, mentor_id: object) -> None:
        """The lease keeps the next call for that contact away."""
        self.event(facts, mentor_id, status="withdrawn")
        flying = self.event(facts, mentor_id, status="withdrawn")
        facts.connection.execute(
            "UPDATE portal_sync_events"
            " SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval '1 minute' WHERE id = %s",
            (flying,),
        )

        assert rows_gone(facts.connection) == {"portal_events": 1}
        assert facts.rows("SELECT id FROM portal_sync_events") == [(flying,)]

    def test_resolved_failures_go_and_unresolved_ones_stay_with_their_event(
        self, facts: Facts, mentor_id: object
    ) -> None:
        """Whatever became of the event."""
        first, second, third = (self.event(facts, mentor_id) for _ in range(3))
        statement = (
            "INSERT INTO dynamics_sync_failures"
            " (mentor_id, event_id, visible, kind, error, last_failed_at, resolved_at)"
            f" VALUES (%s, %s, false, 'transient', 'reset', {LONG_AGO}, %s)"
        ).encode()
        long_ago = datetime.now(UTC) - timedelta(days=1400)
        facts.connection.execute(statement, (mentor_id, first, long_ago))
        facts.connection.execute(statement, (mentor_id, second, None))

        gone = rows_gone(facts.connection)

        assert gone == {"sync_failures": 1, "portal_events": 1}
        assert facts.rows("SELECT id FROM portal_sync_events ORDER BY id") == [(second,), (third,)]
        assert facts.rows("SELECT event_id, resolved_at FROM dynamics_sync_failures") == [(second, None)]

    def test_a_failure_that_was_resolved_yesterday_stays(self, facts: Facts, mentor_id: object) -> None:
        """It is its end that counts."""
        facts.connection.execute(
            "INSERT INTO dynamics_sync_failures"
            " (mentor_id, visible, kind, error, created_at, last_failed_at, resolved_at)"
            f" VALUES (%s, false, 'transient', 'reset', {LONG_AGO}, {LONG_AGO}, now() - interval '1 day')".encode(),
            (mentor_id,),
        )

        assert rows_gone(facts.connection) == {}


class TestReminders:
    """The memory that a mail went out."""

    LIMIT = (
        TODAY.replace(year=TODAY.year - 3, day=28)
        if (TODAY.month, TODAY.day) == (2, 29)
        else TODAY.replace(year=TODAY.year - 3)
    )

    @staticmethod
    def reminder(
        facts: Facts,
        mentor_id: object,
        expires_on: date,
        *,
        threshold: int = 30,
        status: str = "sent",
        history: tuple[date, ...] = (),
        sent_at: str = LONG_AGO,
    ) -> None:
        cycles = json.dumps([{"expires_on": day.isoformat(), "status": "sent"} for day in history])
        facts.connection.execute(
            "INSERT INTO cert_notification_log"
            " (mentor_id, threshold_days, cert_id, expires_on, status, queued_at, sent_at, next_attempt_at, history)"
            f" VALUES (%s, %s, %s, %s, %s, {LONG_AGO}, {sent_at}, {LONG_AGO}, %s)".encode(),
            (mentor_id, threshold, uuid4(), expires_on, status, cycles),
        )

    @pytest.mark.parametrize("status", ["sent", "cancelled", "superseded"])
    def test_those_about_a_date_that_is_long_past_go(self, facts: Facts, mentor_id: object, status: str) -> None:
        """No certificate of that date can ever be reminded of again."""
        self.reminder(facts, mentor_id, self.LIMIT - timedelta(days=1), status=status)

        assert rows_gone(facts.connection) == {"reminders": 1}

    @pytest.mark.parametrize("status", ["pending", "failed"])
    def test_open_and_failed_ones_never_go(self, facts: Facts, mentor_id: object, status: str) -> None:
        """Nobody has read them."""
        self.reminder(facts, mentor_id, self.LIMIT - timedelta(days=1000), status=status)

        assert rows_gone(facts.connection) == {}

    @pytest.mark.parametrize("days", [0, 1, 3000])
    def test_one_that_was_sent_long_ago_about_a_later_date_stays(
        self, facts: Facts, mentor_id: object, days: int
    ) -> None:
        """A threshold of ten years is mailed about ten years before; forgotten, the mail would go out again."""
        self.reminder(facts, mentor_id, self.LIMIT + timedelta(days=days), threshold=3650)

        assert rows_gone(facts.connection) == {}

    def test_one_that_has_an_earlier_cycle_about_a_later_date_stays(self, facts: Facts, mentor_id: object) -> None:
        """A mistyped date that was mailed about: corrected back to it, nobody is mailed twice."""
        self.reminder(facts, mentor_id, self.LIMIT - timedelta(days=9), history=(TODAY + timedelta(days=99),))
        self.reminder(facts, mentor_id, self.LIMIT - timedelta(days=9), history=(self.LIMIT - timedelta(days=8),))

        assert rows_gone(facts.connection) == {"reminders": 1}

    @pytest.mark.parametrize(("threshold", "stays"), [(-1, 0), (-500, 1)])
    def test_one_after_the_expiry_stays_as_long_as_it_can_be_due(
        self, facts: Facts, mentor_id: object, threshold: int, stays: int
    ) -> None:
        """Minus 500 is due until 514 days after the date."""
        self.reminder(facts, mentor_id, self.LIMIT - timedelta(days=400), threshold=threshold)

        assert rows_gone(facts.connection) == ({} if stays else {"reminders": 1})

    def test_one_that_was_sent_lately_stays(self, facts: Facts, mentor_id: object) -> None:
        """An import from long ago was mailed about last week."""
        self.reminder(facts, mentor_id, self.LIMIT - timedelta(days=900), sent_at="now() - interval '7 days'")

        assert rows_gone(facts.connection) == {}


class TestAuditDigestsAndRuns:
    """What else grows with every night."""

    def test_of_an_existing_certificate_the_last_time_it_came_into_its_present_status_stays(self, facts: Facts) -> None:
        """`explain` says since when it is what it is; of a deleted one nothing stays."""
        mentor = facts.mentor(facts.organisation())
        certificate = facts.certificate(mentor, TODAY)
        facts.connection.execute("UPDATE certificates SET status = 'valid'")
        statement = (
            "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of, at)"
            f" VALUES (%s, %s, 'recorded', %s, current_date - 1400, {LONG_AGO}) RETURNING id"
        ).encode()
        for cert_id in (certificate, uuid4()):
            for status in ("valid", "expiring", "valid", "expiring"):
                facts.connection.execute(statement, (cert_id, mentor, status))

        assert rows_gone(facts.connection) == {"transitions": 7}
        assert facts.rows("SELECT certificate_id, to_status FROM certificate_transitions ORDER BY id") == [
            (certificate, "valid")
        ]

    @pytest.mark.parametrize("open_one", ["failed", "pending", "cancelled"])
    def test_of_each_coordinator_the_last_sent_digest_stays(self, facts: Facts, open_one: str) -> None:
        """The next one begins where it ended; without it, it would tell of the last seven days only."""
        organisation = facts.organisation()
        for name in ("kari", "ola"):
            facts.connection.execute(
                "INSERT INTO coordinators (organisation_id, email) VALUES (%s, %s)",
                (organisation, f"{name}@hlf.example"),
            )
        facts.connection.execute(
            "INSERT INTO coordinator_digests"
            " (coordinator_id, digest_on, status, queued_at, sent_at, next_attempt_at, covers_until)"
            " SELECT c.id, current_date - n, s, now() - n * interval '1 day', now() - n * interval '1 day',"
            " now() - n * interval '1 day', now() - n * interval '1 day'"
            " FROM coordinators AS c,"
            " (VALUES (1500, 'sent'), (1498, 'sent'), (1497, %s), (1495, 'superseded')) AS d (n, s)",
            (open_one,),
        )

        assert rows_gone(facts.connection) == {"digests": 4 + 2 * (open_one == "cancelled")}
        left = facts.rows("SELECT status, count(*) FROM coordinator_digests WHERE status <> 'sent' GROUP BY 1")
        assert left == ([] if open_one == "cancelled" else [(open_one, 2)])
        sent = facts.rows("SELECT current_date - digest_on FROM coordinator_digests WHERE status = 'sent'")
        assert sent == [(1498,), (1498,)]

    def test_the_digest_that_was_sent_last_stays_also_when_a_later_day_has_another(self, facts: Facts) -> None:
        """What it told is what the coordinator knows."""
        facts.connection.execute(
            "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@hlf.example')", (facts.organisation(),)
        )
        facts.connection.execute(
            "INSERT INTO coordinator_digests (coordinator_id, digest_on, status, queued_at, sent_at, next_attempt_at,"
            " covers_until, sent_number)"
            f" SELECT c.id, current_date - n, 'sent', {LONG_AGO}, {LONG_AGO}, {LONG_AGO}, {LONG_AGO}, number"
            " FROM coordinators AS c, (VALUES (1500, 1), (1499, 3), (1498, 2)) AS d (n, number)".encode()
        )

        assert rows_gone(facts.connection) == {"digests": 1}
        assert facts.rows("SELECT sent_number FROM coordinator_digests ORDER BY 1") == [(2,), (3,)]

    @staticmethod
    def job_run(
        connection: Connection,
        *,
        days_ago: int,
        command: str = "run",
        outcome: str | None = "ok",
        organisation: str | None = None,
        as_of: date | None = None,
    ) -> object:
        run_id = uuid4()
        at = datetime.now(UTC) - timedelta(days=days_ago)
        connection.execute(
            "INSERT INTO job_runs"
            " (id, command, as_of, organisation, host, version, started_at, last_seen_at, finished_at, outcome)"
            " VALUES (%s, %s, %s, %s, 'h', '1', %s, %s, %s, %s)",
            (run_id, command, as_of or at.date(), organisation, at, at, at if outcome else None, outcome),
        )
        return run_id

    def test_of_each_kind_of_run_and_each_end_the_last_one_stays(self, facts: Facts) -> None:
        """What the guard against a clock that went back reads, what status reads, and why a stage stopped."""
        kept = set()
        for command, organisation in (("run", None), ("run", "hlf"), ("deliver", None)):
            for outcome in ("ok", "failed"):
                for days_ago in (1600, 1500, 1400):
                    run_id = self.job_run(
                        facts.connection, days_ago=days_ago, command=command, outcome=outcome, organisation=organisation
                    )
                kept.add((run_id,))

        assert rows_gone(facts.connection) == {"job_runs": 12}
        assert set(facts.rows("SELECT id FROM job_runs")) == kept

    def test_a_run_that_died_long_ago_goes_and_one_that_may_still_run_stays(self, facts: Facts) -> None:
        """Nothing has been seen of the one for years."""
        self.job_run(facts.connection, days_ago=1500, outcome=None)
        running = self.job_run(facts.connection, days_ago=1, outcome=None)

        assert rows_gone(facts.connection) == {"job_runs": 1}
        assert facts.rows("SELECT id FROM job_runs") == [(running,)]

    def test_the_memory_of_a_wrong_clock_and_of_what_made_good_for_it_stays(self, connection: Connection) -> None:
        """Otherwise nights would look at everybody again, or not at all."""
        for healed in (False, True):
            connection.execute("TRUNCATE job_runs")
            for days_ago in (1600, 1550):
                self.job_run(connection, days_ago=days_ago)
            self.job_run(connection, days_ago=1500, as_of=TODAY + timedelta(days=3000))
            if healed:
                self.job_run(connection, days_ago=1450)
                self.job_run(connection, days_ago=1400, outcome="attention")
            before = plan.looks_at_everybody(connection, TODAY)

            assert rows_gone(connection)
            assert plan.looks_at_everybody(connection, TODAY) is before is not healed


class TestDeleting:
    """In small pieces, beside whatever else goes on."""

    @staticmethod
    def many(connection: Connection, mentor_id: object, number: int) -> None:
        connection.execute(
            "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at, delivered_at)"
            f" SELECT %s, true, 'delivered', {LONG_AGO}, {LONG_AGO}, {LONG_AGO} + n * interval '1 second'"
            " FROM generate_series(0, %s) AS n".encode(),
            (mentor_id, number),
        )

    def test_a_signal_ends_it_between_two_pages_and_the_next_one_goes_on(
        self, connection: Connection, mentor_id: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was deleted is committed."""
        monkeypatch.setattr(retention, "PAGE_ROWS", 10)
        self.many(connection, mentor_id, 50)
        stop = StopFlag()

        with pytest.raises(StoppedBySignalError):
            prune(
                connection,
                parse_age("3y"),
                today=TODAY,
                zone=ZoneInfo("UTC"),
                dry_run=False,
                stop=stop,
                on_progress=lambda deleted: stop.set() if deleted >= 20 else None,
            )

        assert connection.execute("SELECT count(*) FROM portal_sync_events").fetchone() == (31,)
        assert rows_gone(connection) == {"portal_events": 30}

    def test_two_at_once_delete_everything_once(
        self, connection: Connection, mentor_id: object, database_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither takes what the other has left as the last one."""
        monkeypatch.setattr(retention, "PAGE_ROWS", 7)
        self.many(connection, mentor_id, 50)

        with database.connect(database_url) as other:
            done: list[Pruning] = []
            first = prune(
                connection,
                parse_age("3y"),
                today=TODAY,
                zone=ZoneInfo("UTC"),
                dry_run=False,
                stop=StopFlag(),
                on_progress=lambda _deleted: done.append(pruned(other)) if not done else None,
            )

        assert first.rows["portal_events"] + done[0].rows["portal_events"] == 50
        assert connection.execute("SELECT count(*) FROM portal_sync_events").fetchone() == (1,)

    def test_whoever_deletes_mentors_meanwhile_is_never_the_one_who_pays(
        self, facts: Facts, database_url: str, app: psycopg.Connection[tuple[object, ...]]
    ) -> None:
        """Two who lock the same old rows in different order: the one who gives way is this job, and it tries again."""
        organisation = facts.organisation(portal=None)
        first, second = facts.mentor(organisation), facts.mentor(organisation)
        for mentor_id in (first, second):
            self.many(facts.connection, mentor_id, 2)
        app.execute("DELETE FROM mentors WHERE id = %s", (second,))

        with database.connect(database_url) as other, ThreadPoolExecutor(1) as background:
            other.execute("SET deadlock_timeout = '1h'")  # as if it had waited for so long that it has looked already
            pruning = background.submit(pruned, other)
            until(lambda: waits_for_a_lock(facts.connection, other))
            app.execute("DELETE FROM mentors WHERE id = %s", (first,))
            app.commit()
            pruning.result()

        assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]

    def test_rows_that_somebody_keeps_are_said_and_what_went_stays_gone(
        self,
        facts: Facts,
        app: psycopg.Connection[tuple[object, ...]],
        mentor_id: object,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A transaction that somebody forgot; the next one goes on where this one stood."""
        monkeypatch.setattr(retention, "_TRIES", 1)
        monkeypatch.setattr(retention, "_LOCK_TIMEOUT_MS", 20)
        self.many(facts.connection, mentor_id, 5)
        TestReminders.reminder(facts, mentor_id, TestReminders.LIMIT - timedelta(days=1))
        app.execute("SELECT 1 FROM cert_notification_log FOR UPDATE")

        with pytest.raises(DatabaseUnavailableError, match="old reminders are locked by another session"):
            pruned(facts.connection)

        app.rollback()
        assert rows_gone(facts.connection) == {"reminders": 1}

    def test_a_dry_run_works_on_a_read_only_database(self, connection: Connection, mentor_id: object) -> None:
        """It deletes nothing, and cannot."""
        self.many(connection, mentor_id, 5)
        connection.execute("SET default_transaction_read_only = on")

        said = pruned(connection, dry_run=True)

        assert said.rows == NOTHING | {"portal_events": 5}

    def test_the_cron_jobs_own_role_may_do_it(self, connection: Connection, facts: Facts, mentor_id: object) -> None:
        """Not only the owner: the line in the crontab runs with the login of the night."""
        self.many(connection, mentor_id, 5)
        TestReminders.reminder(facts, mentor_id, TestReminders.LIMIT - timedelta(days=1))
        TestAuditDigestsAndRuns.job_run(connection, days_ago=1500)
        TestAuditDigestsAndRuns.job_run(connection, days_ago=1400)
        connection.execute("SET ROLE certjob_worker")

        assert rows_gone(connection) == {"portal_events": 5, "reminders": 1, "job_runs": 1}

    def test_an_empty_database_is_no_trouble(self, connection: Connection) -> None:
        """The first week of a new installation."""
        assert pruned(connection).rows == NOTHING


class TestCommand:
    """certjob db prune."""

    def test_it_says_nothing_on_success_and_a_dry_run_counts(
        self, certjob: Certjob, connection: Connection, mentor_id: object
    ) -> None:
        """The dry run was asked for figures; the job itself is cron's."""
        TestDeleting.many(connection, mentor_id, 5)

        dry_run = certjob("db", "prune", "--older-than", "3y", "--dry-run")
        result = certjob("db", "prune", "--older-than", "3y")

        assert (dry_run.returncode, dry_run.stderr) == (0, "")
        assert "portal events\t5\n" in dry_run.stdout
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
        assert connection.execute("SELECT count(*) FROM portal_sync_events").fetchone() == (1,)

    def test_json_has_the_limit_and_the_figures(
        self, database_url: str, bare_environment: dict[str, str], tmp_path: Path
    ) -> None:
        """`would_delete` for a dry run, so that nobody takes one for the other."""
        for options, key in (((), "deleted"), (("--dry-run",), "would_delete")):
            result = run_in_process(
                "db",
                "prune",
                "--older-than",
                "3y",
                "--json",
                *options,
                environment=bare_environment | {"CERTJOB_DATABASE_URL": database_url},
                folder=tmp_path,
            )
            document = json.loads(result.stdout)
            assert (result.returncode, document["outcome"], document[key]) == (0, "ok", NOTHING)
            assert document["dry_run"] is bool(options)
            limit = datetime.fromisoformat(document["before"])
            assert timedelta(days=1094) < datetime.now(UTC) - limit < timedelta(days=1098)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [((), "--older-than"), (("--older-than", "30d"), "at least 90 days"), (("--older-than", "old"), "not an age")],
    )
    def test_what_is_wrong_with_the_age_is_a_line_and_exit_2(
        self,
        database_url: str,
        bare_environment: dict[str, str],
        tmp_path: Path,
        arguments: tuple[str, ...],
        said: str,
    ) -> None:
        """Nothing has a default: it deletes."""
        result = run_in_process(
            "db",
            "prune",
            *arguments,
            environment=bare_environment | {"CERTJOB_DATABASE_URL": database_url},
            folder=tmp_path,
        )

        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith("certjob db prune: ")
        assert said in result.stderr


class Opposite:
    """A portal that shows exactly those whom certjob has hidden."""

    def __init__(self, connection: Connection) -> None:
        rows = connection.execute("SELECT dynamics_contact_id FROM mentors WHERE portal_visible IS FALSE").fetchall()
        self.visible = [contact_id for (contact_id,) in rows if contact_id is not None]

    async def read_visible_contacts(self, *, policy: RetryPolicy) -> AsyncIterator[list[UUID]]:
        yield self.visible


class TestNightsAfterwards:
    """The property that matters: whoever prunes and whoever does not have the same nights."""

    @staticmethod
    def let_it_be(connection: Connection, at: datetime, since: datetime) -> None:
        """Move what the last night wrote to that night's own time."""
        for table, columns in (
            ("mentor_pauses", ("paused_at", "lifted_at")),
            ("certificate_transitions", ("at",)),
            ("cert_notification_log", ("queued_at", "sent_at", "next_attempt_at")),
            ("portal_sync_events", ("wanted_at", "delivered_at", "next_attempt_at")),
            ("dynamics_sync_failures", ("created_at", "last_failed_at", "resolved_at")),
            ("coordinator_digests", ("queued_at", "sent_at", "next_attempt_at", "covers_until")),
            ("job_runs", ("started_at", "last_seen_at", "finished_at")),
        ):
            for column in columns:
                connection.execute(
                    f"UPDATE {table} SET {column} = %s WHERE {column} BETWEEN %s AND now() + '1 hour'".encode(),
                    (at, since),
                )

    def live(self, facts: Facts, seed: int) -> None:
        """Three years of a small programme until yesterday: renewals, lapses, corrections, troubles, departures."""
        dice = random.Random(seed)
        connection = facts.connection
        organisation = facts.organisation(thresholds=[(60, 30, -1), (400, 30, 7, -1, -200), (3650, 1)][seed % 3])
        connection.execute(
            "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@hlf.example')", (organisation,)
        )
        mentors = []
        for _ in range(15):
            mentor = facts.mentor(organisation)
            mentors.append(mentor)
            facts.certificate(
                mentor, TODAY - timedelta(days=dice.randrange(-700, 1000)), issued_on=TODAY - timedelta(days=3650)
            )
        day = TODAY - timedelta(days=3 * 365)
        since = datetime.now(UTC) - timedelta(hours=1)
        while day < TODAY:
            portal = FlakyPortal(failures=dice.choice([0, 0, 0, 4]))
            channel = CollectingChannel() if dice.random() < 0.9 else None
            night(connection, day, portal=portal, channel=channel, allow_mass_change=True)
            self.let_it_be(connection, datetime.combine(day, datetime.min.time(), UTC), since)
            for _ in range(3):
                self.change_something(facts, dice, dice.choice(mentors), day)
            day += timedelta(days=dice.choice([10, 30, 50]))

    @staticmethod
    def change_something(facts: Facts, dice: random.Random, mentor: object, day: date) -> None:
        """What the app, an import or a coordinator does between two nights."""
        connection = facts.connection
        what = dice.choice(["renew", "extend", "shorten", "leave", "return", "withdraw", "push", "nothing"])
        if what == "renew":
            connection.execute(
                "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%s, 'likeperson', %s, %s)"
                " ON CONFLICT DO NOTHING",
                (mentor, day, day + timedelta(days=dice.randrange(50, 730))),
            )
        elif what in ("extend", "shorten"):
            days = 300 if what == "extend" else -90
            connection.execute(
                "UPDATE certificates SET expires_on = greatest(expires_on + %s, issued_on) WHERE mentor_id = %s",
                (days, mentor),
            )
        elif what in ("leave", "return"):
            connection.execute(
                "UPDATE mentors SET left_at = %s WHERE id = %s", (day if what == "leave" else None, mentor)
            )
        elif what == "withdraw":
            connection.execute("UPDATE organisations SET portal = CASE WHEN portal IS NULL THEN 'dynamics' END")
        elif what == "push":
            queue_wish(connection, mentor, visible=dice.random() < 0.5)  # type: ignore[arg-type]

    @staticmethod
    def nights(connection: Connection) -> list[tuple[object, ...]]:
        """What the coming nights do, and what the outside gets of it.

        Everybody is looked at in each, as after a change of facts. Dates are moved and corrected back, and the portal
        shows the opposite of everything, since that is where what was forgotten would be missed.
        """
        done: list[tuple[object, ...]] = []
        for days, move in ((0, 0), (0, 95), (0, -95), (1, 0), (30, -200), (30, 200), (400, 0)):
            today, portal, channel = TODAY + timedelta(days=days), FlakyPortal(), CollectingChannel()
            connection.execute("UPDATE certificates SET expires_on = greatest(expires_on + %s, issued_on)", (move,))
            connection.execute("UPDATE mentors SET review_on = '-infinity'")
            report = night(connection, today, portal=portal, channel=channel, allow_mass_change=True)
            again = reconciling.reconcile(
                connection,
                options=reconciling.ReconcileOptions(ignore_database_clock=True, today=today, allow_mass_change=True),
                make_reader=lambda: nullcontext(Opposite(connection)),
                delivery=delivery(portal=portal, channel=channel),
                stop=StopFlag(),
                progress=NoProgress(),
            )
            done.append(
                (
                    sorted((message.to, message.subject, message.text) for message in channel.sent),
                    sorted((str(contact), visible) for contact, visible, _ in portal.calls),
                    *(
                        [document.get(part) for part in ("mentors", "certificates", "reminders", "portal", "digests")]
                        for document in (report.to_document(), again.to_document())
                    ),
                )
            )
        return done

    @pytest.fixture
    def twin(self, server_url: str, database_url: str) -> Iterator[str]:
        """The URL under which a copy of the test's database can be made."""
        name = f"certjob_twin_{uuid4().hex}"
        yield database_of(server_url, name)
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @pytest.mark.parametrize("seed", range(5))
    def test_whoever_prunes_has_the_same_nights_as_whoever_does_not(
        self, server_url: str, database_url: str, twin: str, seed: int
    ) -> None:
        """Three years, copied, pruned to 90 days; then both live on, and send the same to the same people."""
        with database.connect(database_url) as connection:
            self.live(Facts(connection), seed)
            names = (connection.info.dbname, psycopg.conninfo.conninfo_to_dict(twin)["dbname"])
        with psycopg.connect(server_url, autocommit=True) as admin:
            statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
            admin.execute(statement.format(sql.Identifier(str(names[1])), sql.Identifier(names[0])))

        with database.connect(twin) as kept, database.connect(database_url) as pruned_one:
            gone = rows_gone(pruned_one, "90d")
            expected = self.nights(kept)
            found = self.nights(pruned_one)

        assert gone.keys() >= {"portal_events", "transitions", "reminders", "job_runs"}, gone
        assert found == expected
