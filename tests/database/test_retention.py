"""certjob db prune: what is done and old goes, and no night afterwards does anything else than it would have done."""

import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
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
from certjob.review.days import looks_at_everybody
from certjob.stopping import StopFlag
from tests.conftest import database_of
from tests.support.command_line import Finished, assert_one_line, run_in_process
from tests.support.facts import Facts
from tests.support.intents import queue_wish
from tests.support.nights import CollectingChannel, FlakyPortal, NoProgress, delivery, night
from tests.support.waiting import until, waits_for_a_lock

TODAY = datetime.now(ZoneInfo("Europe/Oslo")).date()
"""Old is what the database's own clock says is old, so these tests happen today."""
LONG_AGO = "now() - interval '4 years'"
NOTHING = dict.fromkeys(("sync_failures", "portal_events", "transitions", "reminders", "digests", "job_runs"), 0)


def pruned(
    connection: Connection,
    age: str = "3y",
    *,
    dry_run: bool = False,
    today: date = TODAY,
    stop: StopFlag | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Pruning:
    """Prune in Oslo."""
    zone, stop = ZoneInfo("Europe/Oslo"), stop or StopFlag()
    return prune(
        connection, parse_age(age), today=today, zone=zone, dry_run=dry_run, stop=stop, on_progress=on_progress
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

    def test_an_age_is_calendar_time(self, connection: Connection) -> None:
        """Three years are three years, whatever lies between; at the end of a shorter month, its last day."""
        for text, interval in {
            "3y": "3 years",
            "18m": "18 months",
            "26w": "26 weeks",
            "400d": "400 days",
            "1Y6m": "1 year 6 months",
            "90d": "90 days",
        }.items():
            expected = connection.execute(
                "SELECT (now() AT TIME ZONE 'Europe/Oslo' - %s::interval)::date", (interval,)
            ).fetchone()
            assert (pruned(connection, text, dry_run=True).before.date(),) == expected

    @pytest.mark.parametrize("text", ["", "3", "three years", "-3y", "3y2", "1d1y", "3.5y", "99999d9y"])
    def test_what_is_no_age_is_refused_with_an_example(self, text: str) -> None:
        """Not guessed at: it deletes."""
        with pytest.raises(ConfigurationError, match="give one such as 3y"):
            parse_age(text)

    def test_too_short_an_age_one_before_the_calendar_and_two_clocks_that_disagree_are_refused(
        self, connection: Connection
    ) -> None:
        """A reminder may still be due, and a mail about it would go out twice."""
        for text in ("0d", "89d", "2m", "12w"):
            with pytest.raises(ConfigurationError, match="at least 90 days"):
                pruned(connection, text, dry_run=True)
        with pytest.raises(ConfigurationError, match="before the calendar"):
            pruned(connection, "999y9999m9999w99999d")
        with pytest.raises(ConfigurationError, match="correct the clock that is wrong"):
            pruned(connection, today=TODAY + timedelta(days=2000))


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

    def test_the_last_confirmation_of_either_value_and_what_is_open_stays(self, facts: Facts) -> None:
        """`reconcile` shows only whom certjob has shown before, and `explain` tells what the portal confirmed."""
        organisation = facts.organisation()
        confirmed, pushed_again, pending, blocked, withdrawn = (facts.mentor(organisation) for _ in range(5))
        ids = [
            self.event(facts, confirmed, visible=visible, at=f"now() - interval '{age}'")
            for age in ("6 years", "5 years", "4 years")
            for visible in (True, False)
        ]
        self.event(facts, pushed_again, visible=True)
        kept = {*ids[4:], self.event(facts, pushed_again, visible=True, at="now() - interval '1 week'")}
        kept |= {self.event(facts, pending, status="pending"), self.event(facts, blocked, status="blocked")}
        self.event(facts, withdrawn, status="withdrawn")
        flying = self.event(facts, withdrawn, status="withdrawn")
        facts.connection.execute(
            "UPDATE portal_sync_events"
            " SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval '1 minute' WHERE id = %s",
            (flying,),
        )

        assert rows_gone(facts.connection) == {"portal_events": 6}
        assert {row[0] for row in facts.rows("SELECT id FROM portal_sync_events")} == kept | {flying}
        assert rows_gone(facts.connection) == {}

    def test_resolved_failures_go_and_unresolved_ones_stay_with_their_event(
        self, facts: Facts, mentor_id: object
    ) -> None:
        """Whatever became of the event; it is the end of a failure that counts."""
        first, second, third = (self.event(facts, mentor_id) for _ in range(3))
        for event, resolved in ((first, LONG_AGO), (second, "NULL"), (None, "now() - interval '1 day'")):
            facts.connection.execute(
                "INSERT INTO dynamics_sync_failures"
                " (mentor_id, event_id, visible, kind, error, created_at, last_failed_at, resolved_at)"
                f" VALUES (%s, %s, false, 'transient', 'reset', {LONG_AGO}, {LONG_AGO}, {resolved})".encode(),
                (mentor_id, event),
            )

        assert rows_gone(facts.connection) == {"sync_failures": 1, "portal_events": 1}
        assert facts.rows("SELECT id FROM portal_sync_events ORDER BY id") == [(second,), (third,)]
        assert facts.rows("SELECT event_id FROM dynamics_sync_failures ORDER BY id") == [(second,), (None,)]


LIMIT = TODAY.replace(year=TODAY.year - 3, day=min(TODAY.day, 28) if TODAY.month == 2 else TODAY.day)
"""The day three years ago."""


def add_reminder(
    facts: Facts,
    mentor_id: object,
    expires_on: date,
    *,
    threshold: int = 30,
    status: str = "sent",
    history: date | None = None,
    sent_at: str = LONG_AGO,
) -> object:
    cycles = json.dumps([{"expires_on": history.isoformat(), "status": "sent"}] if history else [])
    ((log_id,),) = facts.connection.execute(
        "INSERT INTO cert_notification_log"
        " (mentor_id, threshold_days, cert_id, expires_on, status, queued_at, sent_at, next_attempt_at, history)"
        f" VALUES (%s, %s, %s, %s, %s, {LONG_AGO}, {sent_at}, {LONG_AGO}, %s) RETURNING id".encode(),
        (mentor_id, threshold, uuid4(), expires_on, status, cycles),
    ).fetchall()
    return log_id


DAY = timedelta(days=1)
REMINDERS: dict[str, tuple[date, dict[str, object]]] = {
    "sent": (LIMIT - DAY, {}),
    "cancelled": (LIMIT - DAY, {"status": "cancelled"}),
    "superseded": (LIMIT - DAY, {"status": "superseded"}),
    "earlier cycle, as old": (LIMIT - 9 * DAY, {"history": LIMIT - 8 * DAY}),
    "after the expiry": (LIMIT - 400 * DAY, {"threshold": -1}),
    "kept: pending": (LIMIT - 1000 * DAY, {"status": "pending"}),
    "kept: failed": (LIMIT - 1000 * DAY, {"status": "failed"}),
    # A threshold of ten years is mailed about ten years before; forgotten, the mail would go out again.
    "kept: about the day of the limit": (LIMIT, {"threshold": 3650}),
    "kept: about a later day": (LIMIT + 3000 * DAY, {"threshold": 3650}),
    # A mistyped date that was mailed about: corrected back to it, nobody is mailed twice.
    "kept: an earlier cycle about a later date": (LIMIT - 9 * DAY, {"history": TODAY + 99 * DAY}),
    "kept: still due long after the expiry": (LIMIT - 400 * DAY, {"threshold": -500}),
    "kept: sent lately": (LIMIT - 900 * DAY, {"sent_at": "now() - interval '7 days'"}),
}


def test_reminders_about_a_date_that_is_long_past_go(facts: Facts, mentor_id: object) -> None:
    """No certificate of that date can ever be reminded of again; what nobody has read stays."""
    ids = {add_reminder(facts, mentor_id, day, **named): name for name, (day, named) in REMINDERS.items()}  # type: ignore[arg-type]

    assert rows_gone(facts.connection) == {"reminders": 5}
    left = {ids[row[0]] for row in facts.rows("SELECT id FROM cert_notification_log")}
    assert left == {name for name in REMINDERS if name.startswith("kept")}


def add_run(
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

    def test_of_each_coordinator_the_last_sent_digest_and_what_is_open_stays(self, facts: Facts) -> None:
        """The next one begins where it ended; the one sent last stays also when a later day has another."""
        organisation = facts.organisation()
        facts.connection.execute(
            "INSERT INTO coordinators (organisation_id, email)"
            " SELECT %s, name || '@hlf.example' FROM unnest('{failed,pending,cancelled,superseded}'::text[]) AS name",
            (organisation,),
        )
        facts.connection.execute(
            b"INSERT INTO coordinator_digests (coordinator_id, digest_on, status, queued_at, sent_at, next_attempt_at,"
            b" covers_until, sent_number)"
            b" SELECT c.id, current_date - n, coalesce(s, split_part(email, '@', 1)), at, at, at, at, number"
            b" FROM coordinators AS c,"
            b" (VALUES (1500, 'sent', 1), (1499, 'sent', 3), (1498, 'sent', 2), (1497, NULL, NULL)) AS d (n, s, number)"
            b" CROSS JOIN LATERAL (SELECT now() - interval '1490 days') AS times (at)"
        )

        assert rows_gone(facts.connection) == {"digests": 6}
        left = facts.rows("SELECT status, sent_number, count(*) FROM coordinator_digests GROUP BY 1, 2 ORDER BY 1, 2")
        assert left == [("failed", None, 1), ("pending", None, 1), ("sent", 2, 4), ("sent", 3, 4)]

    def test_of_each_kind_of_run_and_each_end_the_last_one_stays(self, facts: Facts) -> None:
        """What the guard against a clock that went back reads, what status reads, and why a stage stopped.

        A run that died long ago goes, one that may still run stays.
        """
        kept = {add_run(facts.connection, days_ago=1, command="load", outcome=None)}
        add_run(facts.connection, days_ago=1700, outcome=None)
        for command, organisation in (("run", None), ("run", "hlf"), ("deliver", None)):
            for outcome in ("ok", "failed"):
                *_, last = (
                    add_run(
                        facts.connection, days_ago=days_ago, command=command, outcome=outcome, organisation=organisation
                    )
                    for days_ago in (1600, 1500, 1400)
                )
                kept.add(last)

        assert rows_gone(facts.connection) == {"job_runs": 13}
        assert {row[0] for row in facts.rows("SELECT id FROM job_runs")} == kept

    def test_the_memory_of_a_wrong_clock_and_of_what_made_good_for_it_stays(self, connection: Connection) -> None:
        """Otherwise nights would look at everybody again, or not at all."""
        for healed in (False, True):
            connection.execute("TRUNCATE job_runs")
            for days_ago in (1600, 1550):
                add_run(connection, days_ago=days_ago)
            add_run(connection, days_ago=1500, as_of=TODAY + timedelta(days=3000))
            if healed:
                add_run(connection, days_ago=1450)
                add_run(connection, days_ago=1400, outcome="attention")
            before = looks_at_everybody(connection, TODAY)

            assert rows_gone(connection)
            assert looks_at_everybody(connection, TODAY) is before is not healed


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
            pruned(connection, stop=stop, on_progress=lambda deleted: stop.set() if deleted >= 20 else None)

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
            first = pruned(connection, on_progress=lambda _deleted: done.append(pruned(other)) if not done else None)

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
        add_reminder(facts, mentor_id, LIMIT - DAY)
        app.execute("SELECT 1 FROM cert_notification_log FOR UPDATE")

        with pytest.raises(DatabaseUnavailableError, match="old reminders are locked by another session"):
            pruned(facts.connection)

        app.rollback()
        assert rows_gone(facts.connection) == {"reminders": 1}


def test_the_command_says_nothing_on_success_and_a_dry_run_counts(
    connection: Connection, mentor_id: object, worker_url: str, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """The dry run was asked for figures; the job itself is cron's. JSON has the limit, and says which it was."""
    environment = bare_environment | {"CERTJOB_DATABASE_URL": worker_url}

    def certjob(*arguments: str) -> Finished:
        return run_in_process("db", "prune", *arguments, environment=environment, folder=tmp_path)

    TestDeleting.many(connection, mentor_id, 5)
    five = NOTHING | {"portal_events": 5}

    dry_run = certjob("--older-than", "3y", "--dry-run")
    assert (dry_run.returncode, dry_run.stderr) == (0, "")
    assert "portal events\t5\n" in dry_run.stdout
    document = json.loads(certjob("--older-than", "3y", "--dry-run", "--json").stdout)
    assert (document["outcome"], document["dry_run"], document["would_delete"]) == ("ok", True, five)
    limit = datetime.fromisoformat(document["before"])
    assert timedelta(days=1094) < datetime.now(UTC) - limit < timedelta(days=1098)
    result = certjob("--older-than", "3y")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert connection.execute("SELECT count(*) FROM portal_sync_events").fetchone() == (1,)
    document = json.loads(certjob("--older-than", "3y", "--json").stdout)
    assert (document["outcome"], document["dry_run"], document["deleted"]) == ("ok", False, NOTHING)
    for arguments, said in (
        ((), "--older-than"),
        (("--older-than", "30d"), "at least 90 days"),
        (("--older-than", "old"), "not an age"),
    ):
        assert_one_line(certjob(*arguments), said, code=2, command="certjob db prune")


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
        for _ in range(12):
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
            day += timedelta(days=dice.choice([20, 40, 60]))

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
        for days, move in ((0, 0), (0, 95), (0, -95), (30, -200), (400, 200)):
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

    @pytest.mark.parametrize("seed", range(3))
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
