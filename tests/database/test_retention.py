"""certjob db prune: what is done and old goes; what a later night, or a page, still asks for stays."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, retention
from certjob.database.retention import Pruning, parse_age, prune
from certjob.errors import ConfigurationError, DatabaseUnavailableError, StoppedBySignalError
from certjob.review.days import looks_at_everybody
from certjob.stopping import StopFlag
from tests.support.command_line import Finished, assert_one_line, run_in_process, today
from tests.support.facts import Facts
from tests.support.waiting import until, waits_for_a_lock

OSLO = ZoneInfo("Europe/Oslo")
NOW = datetime.now(UTC)
"""Old is what the database's own clock says is old, so these tests happen today."""
DAY = timedelta(days=1)
LONG_AGO = NOW - 4 * 365 * DAY
NOTHING = dict.fromkeys(("sync_failures", "portal_events", "transitions", "reminders", "digests", "job_runs"), 0)


def limit() -> date:
    """The day three years ago."""
    day = today()
    return day.replace(year=day.year - 3, day=min(day.day, 28) if day.month == 2 else day.day)


def pruned(
    connection: Connection, age: str = "3y", *, on: date | None = None, dry_run: bool = False, **more: Any
) -> Pruning:
    more = {"stop": StopFlag()} | more
    return prune(connection, parse_age(age), today=on or today(), zone=OSLO, dry_run=dry_run, **more)


def rows_gone(connection: Connection, age: str = "3y") -> dict[str, int]:
    """What went, by kind, without the kinds of which nothing went; a dry run has said the same before."""
    said = pruned(connection, age, dry_run=True)
    done = pruned(connection, age)
    assert done.rows == said.rows
    return {name: number for name, number in done.rows.items() if number}


def add_event(facts: Facts, mentor: UUID, *, status: str = "delivered", at: datetime = LONG_AGO, **more: object) -> str:
    values = {"visible": False, "wanted_at": at, "next_attempt_at": at, "status": status} | more
    delivered_at = at if status == "delivered" else None
    return facts.insert("portal_sync_events", mentor_id=mentor, delivered_at=delivered_at, **values)


def add_reminder(facts: Facts, mentor: UUID, expires_on: date, *, history: date | None = None, **more: object) -> str:
    cycles = json.dumps([{"expires_on": history.isoformat(), "status": "sent"}] if history else [])
    values = {"threshold_days": 30, "status": "sent", "sent_at": LONG_AGO, "next_attempt_at": LONG_AGO} | more
    values |= {"expires_on": expires_on, "history": cycles, "cert_id": uuid4(), "queued_at": LONG_AGO}
    return facts.insert("cert_notification_log", mentor_id=mentor, **values)


def add_run(facts: Facts, days_ago: int, *, outcome: str | None = "ok", **more: object) -> str:
    at = NOW - days_ago * DAY
    values = {"command": "run", "as_of": at.date(), "finished_at": at if outcome else None, "outcome": outcome} | more
    return facts.insert("job_runs", id=uuid4(), host="h", version="1", started_at=at, last_seen_at=at, **values)


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    return facts.certified_mentor(facts.organisation(), today() + 400 * DAY)


def left(facts: Facts, table: str) -> set[object]:
    return {row[0] for row in facts.rows(f"SELECT id::text FROM {table}")}


def test_what_is_no_age_or_an_age_at_which_a_mail_could_go_out_twice_is_refused(connection: Connection) -> None:
    """Not guessed at: it deletes. Two clocks that disagree by years would make any age such a one."""
    for ages, says in (
        (",3,three years,-3y,3y2,1d1y,3.5y,99999d9y", "give one such as 3y"),
        ("0d,89d,2m,12w", "at least 90 days"),
        ("999y9999m9999w99999d", "before the calendar"),
    ):
        for age in ages.split(","):
            with pytest.raises(ConfigurationError, match=says):
                pruned(connection, age)
    with pytest.raises(ConfigurationError, match="correct the clock that is wrong"):
        pruned(connection, on=today() + 2000 * DAY)
    assert pruned(connection, "90d", on=today() + DAY).rows == NOTHING


class TestWhatGoes:
    """Of each kind what is done; what is open, and what a later run or a page still asks for, stays."""

    def test_the_last_confirmation_of_either_value_and_what_is_open_stays(self, facts: Facts) -> None:
        """`reconcile` shows only whom certjob has shown before, and `explain` tells what the portal confirmed."""
        organisation = facts.organisation()
        confirmed, pushed_again, pending, blocked, withdrawn = (facts.mentor(organisation) for _ in range(5))
        for age in (6, 5):
            for visible in (True, False):
                add_event(facts, confirmed, visible=visible, at=NOW - age * 365 * DAY)
        add_event(facts, pushed_again, visible=True)
        add_event(facts, withdrawn, status="withdrawn")
        kept = {
            *(add_event(facts, confirmed, visible=visible) for visible in (True, False)),
            add_event(facts, pushed_again, visible=True, at=NOW - 7 * DAY),
            add_event(facts, pending, status="pending"),
            add_event(facts, blocked, status="blocked"),
            add_event(facts, withdrawn, status="withdrawn", claim_token=uuid4(), next_attempt_at=NOW + DAY),
        }

        assert rows_gone(facts.connection) == {"portal_events": 6}
        assert left(facts, "portal_sync_events") == kept
        assert rows_gone(facts.connection) == {}

    def test_resolved_failures_go_and_unresolved_ones_stay_with_their_event(self, facts: Facts, mentor: UUID) -> None:
        """Whatever became of the event; it is the end of a failure that counts."""
        first, second, third = (add_event(facts, mentor) for _ in range(3))
        values = {"mentor_id": mentor, "visible": False, "kind": "transient", "error": "reset"}
        values |= {"created_at": LONG_AGO, "last_failed_at": LONG_AGO}
        for event, resolved_at in ((first, LONG_AGO), (second, None), (None, NOW - DAY)):
            facts.insert("dynamics_sync_failures", event_id=event, resolved_at=resolved_at, **values)

        assert rows_gone(facts.connection) == {"sync_failures": 1, "portal_events": 1}
        assert left(facts, "portal_sync_events") == {second, third}
        assert facts.rows("SELECT count(event_id), count(*) FROM dynamics_sync_failures") == [(1, 2)]

    def test_reminders_about_a_date_that_is_long_past_go(self, facts: Facts, mentor: UUID) -> None:
        """No certificate of that date can ever be reminded of again; what nobody has read stays."""
        for day, more in (
            *((limit() - DAY, {"status": status}) for status in ("sent", "cancelled", "superseded")),
            (limit() - 9 * DAY, {"history": limit() - 8 * DAY}),
            (limit() - 400 * DAY, {"threshold_days": -1}),
        ):
            add_reminder(facts, mentor, day, **more)  # type: ignore[arg-type]
        kept = {
            add_reminder(facts, mentor, limit() - 1000 * DAY, status="pending"),
            add_reminder(facts, mentor, limit() - 1000 * DAY, status="failed"),
            # A threshold of ten years is mailed about ten years before; forgotten, the mail would go out again.
            add_reminder(facts, mentor, limit(), threshold_days=3650),
            # A mistyped date that was mailed about: corrected back to it, nobody is mailed twice.
            add_reminder(facts, mentor, limit() - 9 * DAY, history=today() + 99 * DAY),
            add_reminder(facts, mentor, limit() - 9 * DAY, history=limit()),
            add_reminder(facts, mentor, limit() - 400 * DAY, threshold_days=-500),  # still due long after the expiry
            add_reminder(facts, mentor, limit() - 900 * DAY, sent_at=NOW - 7 * DAY),
        }

        assert rows_gone(facts.connection) == {"reminders": 5}
        assert left(facts, "cert_notification_log") == kept

    def test_of_an_existing_certificate_the_last_time_it_came_into_its_present_status_stays(
        self, facts: Facts, mentor: UUID
    ) -> None:
        """`explain` says since when it is what it is; of a deleted one nothing stays."""
        ((certificate,),) = facts.rows("UPDATE certificates SET status = 'valid' RETURNING id")
        values = {"mentor_id": mentor, "from_status": "recorded", "as_of": LONG_AGO.date(), "at": LONG_AGO}
        ids = [
            facts.insert("certificate_transitions", certificate_id=each, to_status=status, **values)
            for each in (certificate, uuid4())
            for status in ("valid", "expiring", "valid", "expiring")
        ]
        ids.append(  # a night on a wrong later date
            facts.insert(
                "certificate_transitions", certificate_id=uuid4(), to_status="valid", **values | {"as_of": today()}
            )
        )

        assert rows_gone(facts.connection) == {"transitions": 7}
        assert left(facts, "certificate_transitions") == {ids[2], ids[-1]}

    def test_of_each_coordinator_the_last_sent_digest_and_what_is_open_stays(self, facts: Facts) -> None:
        """The next one begins where it ended; the one sent last stays also when a later day has another."""
        organisation, kept, gone = facts.organisation(), set(), 0
        old = dict.fromkeys(("queued_at", "sent_at", "next_attempt_at", "covers_until"), LONG_AGO)
        young: dict[str, object] = {"queued_at": NOW}
        table: dict[str, list[tuple[int, str, int | None, bool, dict[str, object]]]] = {
            each: [
                (1, "sent", 1, False, {}),
                (2, "sent", 3, True, {}),
                (3, "sent", 2, True, {}),
                (4, each, None, stays, {}),
            ]
            for each, stays in (("failed", True), ("pending", True), ("cancelled", False), ("superseded", False))
        }
        table["without a number"] = [(1, "sent", None, True, {}), (2, "cancelled", None, False, {})]
        table["told further"] = [(1, "sent", 1, True, {"covers_until": LONG_AGO + DAY}), (2, "sent", 2, True, {})]
        table["queued lately"] = [(1, "cancelled", None, True, young)]
        table["of a late day"] = [(4 * 365, "cancelled", None, True, {})]
        for name, digests in table.items():
            coordinator = facts.insert("coordinators", organisation_id=organisation, email=f"{name}@hlf.example")
            for day, status, number, stays, more in digests:
                owner = {"coordinator_id": coordinator, "sent_number": number}
                digest_on = (LONG_AGO + day * DAY).date()
                values = owner | old | more
                each = facts.insert("coordinator_digests", digest_on=digest_on, status=status, **values)
                kept |= {each} if stays else set()
                gone += not stays

        assert rows_gone(facts.connection) == {"digests": gone}
        assert left(facts, "coordinator_digests") == kept

    def test_of_each_kind_of_run_and_each_end_the_last_one_stays(self, facts: Facts) -> None:
        """What the guard against a clock that went back reads, what status reads, and why a stage stopped.

        A run that died long ago goes, one that may still run stays.
        """
        kept = {add_run(facts, 1, command="load", outcome=None)}
        add_run(facts, 1700, outcome=None)
        kept.add(add_run(facts, 1600, as_of=today() + DAY))  # by a wrong clock
        for command, organisation in (("run", None), ("run", "hlf"), ("deliver", None)):
            for outcome in ("ok", "failed"):
                add_run(facts, 1500, command=command, outcome=outcome, organisation=organisation)
                kept.add(add_run(facts, 1400, command=command, outcome=outcome, organisation=organisation))

        assert rows_gone(facts.connection) == {"job_runs": 7}
        assert left(facts, "job_runs") == kept

    @pytest.mark.parametrize("is_healed", [False, True])
    def test_the_memory_of_a_wrong_clock_and_of_what_made_good_for_it_stays(
        self, facts: Facts, is_healed: bool
    ) -> None:
        """Otherwise nights would look at everybody again, or not at all."""
        for days_ago in (1600, 1550):
            add_run(facts, days_ago)
        add_run(facts, 1500, as_of=today() + 3000 * DAY)
        if is_healed:
            add_run(facts, 1450)
            add_run(facts, 1400, outcome="attention")
        before = looks_at_everybody(facts.connection, today())

        assert rows_gone(facts.connection)
        assert looks_at_everybody(facts.connection, today()) is before is not is_healed


class TestDeleting:
    """In small pieces, beside whatever else goes on."""

    @pytest.fixture(autouse=True)
    def small_pages(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "PAGE_ROWS", 7)
        monkeypatch.setattr(retention, "_LOCK_TIMEOUT_MS", 100)

    def test_a_signal_ends_it_between_two_pages_and_two_at_once_go_on_together(
        self, facts: Facts, mentor: UUID, database_url: str
    ) -> None:
        """What was deleted is committed; neither takes what the other has left as the last one."""
        events = [add_event(facts, mentor, visible=True, at=LONG_AGO + n * DAY) for n in range(51)]
        stop = StopFlag()
        done: list[Pruning] = []

        with pytest.raises(StoppedBySignalError):
            pruned(facts.connection, stop=stop, on_progress=lambda deleted: stop.set() if deleted >= 14 else None)
        assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(37,)]
        with database.connect(database_url) as other:
            first = pruned(facts.connection, on_progress=lambda _: done.append(pruned(other)) if not done else None)

        assert first.rows["portal_events"] + done[0].rows["portal_events"] == 36
        assert left(facts, "portal_sync_events") == {events[-1]}

    def test_whoever_deletes_mentors_meanwhile_is_never_the_one_who_pays(
        self, facts: Facts, database_url: str, app: psycopg.Connection[tuple[object, ...]]
    ) -> None:
        """Two who lock the same old rows in different order: the one who gives way is this job, and it tries again."""
        organisation = facts.organisation(portal=None)
        first, second = facts.mentor(organisation), facts.mentor(organisation)
        for mentor in (first, first, second, second):
            add_event(facts, mentor)
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
        self, facts: Facts, app: psycopg.Connection[Any], mentor: UUID, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A transaction that somebody forgot; the next one goes on where this one stood."""
        monkeypatch.setattr(retention, "_TRIES", 1)
        for _ in range(2):
            add_event(facts, mentor)
        add_reminder(facts, mentor, limit() - DAY)
        app.execute("SELECT 1 FROM cert_notification_log FOR UPDATE")

        with pytest.raises(DatabaseUnavailableError, match="old reminders are locked by another session"):
            pruned(facts.connection)

        app.rollback()
        assert rows_gone(facts.connection) == {"reminders": 1}


def test_the_command_says_nothing_on_success_and_a_dry_run_counts(
    facts: Facts, mentor: UUID, worker_url: str, tmp_path: Path
) -> None:
    """The dry run was asked for figures; the job itself is cron's. JSON has the limit, and says which it was."""
    for _ in range(6):
        add_event(facts, mentor)

    def certjob(*arguments: str) -> Finished:
        environment = {"CERTJOB_DATABASE_URL": worker_url}
        return run_in_process("db", "prune", *arguments, environment=environment, folder=tmp_path)

    dry_run = certjob("--older-than", "3y", "--dry-run")
    assert (dry_run.returncode, dry_run.stderr) == (0, "")
    assert "portal events\t5\n" in dry_run.stdout
    document = json.loads(certjob("--older-than", "3y", "--dry-run", "--json").stdout)
    found = (document["outcome"], document["dry_run"], document["would_delete"])
    assert found == ("ok", True, NOTHING | {"portal_events": 5})
    assert datetime.fromisoformat(document["before"]).astimezone(OSLO).date() == limit()
    result = certjob("--older-than", "3y")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(1,)]
    document = json.loads(certjob("--older-than", "3y", "--json").stdout)
    assert (document["outcome"], document["dry_run"], document["deleted"]) == ("ok", False, NOTHING)
    for arguments, said in (((), "--older-than"), (("--older-than", "30d"), "at least 90 days")):
        assert_one_line(certjob(*arguments), said, code=2, command="certjob db prune")
