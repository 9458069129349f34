"""Apply under real concurrency: nobody deadlocks, no fact is lost, one bad mentor never stops the night."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.facts import reading
from certjob.review import certification
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.nights import night
from tests.support.programmes import everything
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]
YESTERDAY, IN_5_DAYS = TODAY - timedelta(days=1), TODAY + timedelta(days=5)
STATUSES = "SELECT status FROM certificates ORDER BY issued_on"
OPEN_PAUSES = "SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL"
RENEW = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) SELECT id, 'likeperson', %s, %s FROM mentors"
NEXT_YEARS = (TODAY, TODAY + timedelta(days=700))


def service(connection: Connection, **options: Any) -> CertificationManagementService:
    guard = MassChangeGuard(connection, today=TODAY, allow_mass_change=False)
    given = {"stop": StopFlag()} | options
    return CertificationManagementService(connection, today=TODAY, run_id=uuid4(), guard=guard, **given)


def refuse(connection: Connection, table: str, column: str, *, when: str = "true") -> None:
    """Let the database refuse every change of a column, or some."""
    connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'this one is broken'; END $$"
    )
    trigger = f"CREATE TRIGGER refuse BEFORE UPDATE OF {column} ON {table} FOR EACH ROW WHEN ({when})"
    connection.execute(f"{trigger} EXECUTE FUNCTION refuse()".encode())


def due(facts: Facts) -> list[object]:
    return [row[0] for row in facts.rows("SELECT id FROM mentors WHERE review_on <= %s ORDER BY id", TODAY)]


def test_state_audit_and_intents_are_committed_together(connection: Connection, facts: Facts) -> None:
    """One transaction per chunk: when its last statement fails, nothing of it is there."""
    mentor_id = facts.certified_mentor(facts.organisation(), YESTERDAY)
    refuse(connection, "mentors", "review_on")

    counts = service(connection).apply_due()

    assert list(counts.broken) == [mentor_id]
    for table in ("certificate_transitions", "mentor_pauses", "cert_notification_log", "portal_sync_events"):
        assert facts.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert facts.rows(STATUSES) == [("recorded",)]


def test_one_broken_mentor_is_named_and_the_others_are_reviewed(connection: Connection, facts: Facts) -> None:
    """It stays due, and is written down until a run that would review it does so."""
    organisation = facts.organisation(portal=None)
    mentors = [facts.certified_mentor(organisation, IN_5_DAYS) for _ in range(5)]
    refuse(connection, "certificates", "status", when=f"NEW.mentor_id = '{mentors[2]}'")

    report = night(connection, deliver=False)

    broken = {mentors[2]: "RaiseException: this one is broken"}
    assert report.review is not None
    assert (report.review.reviewed, report.review.broken) == (4, broken)
    assert due(facts) == [mentors[2]]
    assert report.outcome == "attention"
    assert str(mentors[2]) in report.reasons[0]
    stored = "SELECT mentor_id, reason FROM review_problems"
    facts.organisation("nhf", portal=None)
    night(connection, deliver=False, organisation="nhf")  # reviews nobody of ours
    assert facts.rows(stored) == list(broken.items())
    connection.execute("DROP TRIGGER refuse ON certificates")
    night(connection, deliver=False)
    assert facts.rows(stored) == []


@pytest.mark.parametrize(
    "lock",
    [
        pytest.param("SELECT FROM certificates WHERE mentor_id = %s FOR UPDATE", id="a certificate"),
        pytest.param("SELECT FROM mentors WHERE id = %s FOR UPDATE", id="the mentor"),
        pytest.param(  # the upsert waits for it until lock_timeout; the chunk is done again mentor by mentor
            "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
            " SELECT mentor_id, 7, id, expires_on FROM certificates WHERE mentor_id = %s",
            id="the reminder",
        ),
    ],
)
def test_whom_an_idle_transaction_of_the_app_holds_is_skipped_and_named(
    facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    """After a bounded wait. So is one whose facts keep changing; the others are reviewed."""
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0.5)
    organisation = facts.organisation(portal=None)
    locked, changing, _ = (facts.certified_mentor(organisation, IN_5_DAYS) for _ in range(3))
    app.execute(lock.encode(), (locked,))
    touched: list[int] = []

    def touch(_done: int) -> None:
        touched.append(1)
        left = "UPDATE mentors SET left_at = now() + random() * interval '1 day' WHERE id = %s"
        facts.connection.execute(left, (changing,))

    counts = service(facts.connection, on_progress=touch).apply_due()

    assert len(touched) > 2
    assert counts.skipped == due(facts) == sorted([locked, changing])


def test_a_mentor_whose_lock_ends_in_time_is_reviewed(connection: Connection, facts: Facts, app: App) -> None:
    """The wait at the end looks again and again, and sleeps between."""
    facts.certified_mentor(facts.organisation(portal=None), YESTERDAY)
    app.execute("SELECT FROM mentors FOR UPDATE")

    class Waiting(StopFlag):
        def sleep(self, seconds: float) -> None:
            app.rollback()

    counts = service(connection, stop=Waiting()).apply_due()

    assert (counts.reviewed, counts.skipped) == (1, [])


@pytest.fixture
def around_first_read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Let something happen before or after the facts are read first; how many mentors each reading left out."""

    def arrange(when: str, happening: Callable[[], object]) -> list[int]:
        left_out: list[int] = []

        def read(*arguments: Any, **options: Any) -> reading.FactsRead:
            if when == "before" and not left_out:
                happening()
            facts_read = real_read(*arguments, **options)
            left_out.append(len(arguments[1]) - len(facts_read.mentors))
            if when == "after" and len(left_out) == 1:
                happening()
            return facts_read

        real_read = reading.read
        monkeypatch.setattr(reading, "read", read)
        return left_out

    return arrange


@pytest.mark.parametrize(
    ("when", "statement", "days", "left_out", "paused"),
    [
        pytest.param(
            "before", "UPDATE certificates SET issued_on = %s, expires_on = %s", NEXT_YEARS, 1, 0, id="changed"
        ),
        pytest.param("after", RENEW, NEXT_YEARS, 0, 1, id="renewed"),
    ],
)
def test_a_fact_that_comes_while_apply_holds_the_mentor_waits_and_is_not_lost(
    connection: Connection,
    facts: Facts,
    app: App,
    database_url: str,
    around_first_read: Callable[..., list[int]],
    when: str,
    statement: str,
    days: tuple[object, ...],
    left_out: int,
    paused: int,
) -> None:
    """The app waits for the mentor. Of what it holds itself, its certificate, apply waits for nothing: no deadlock."""
    facts.certified_mentor(facts.organisation(portal=None), YESTERDAY)

    def write() -> None:
        app.execute(statement.encode(), days)
        app.commit()

    writing = threading.Thread(target=write)

    def begin_to_wait() -> None:
        writing.start()
        with psycopg.connect(database_url, autocommit=True) as observer:
            until(lambda: waits_for_a_lock(observer, app))

    incomplete = around_first_read(when, begin_to_wait)
    reviewing = service(connection)
    reviewing.apply_due()
    writing.join()
    counts = reviewing.apply_due()

    assert (incomplete[0], counts.skipped, counts.paused) == (left_out, [], paused)
    assert facts.rows(STATUSES)[-1] == ("valid",)
    assert facts.rows(OPEN_PAUSES) == [(0,)]


def test_a_renewal_committed_between_lock_and_read_is_seen(
    connection: Connection, facts: Facts, app: App, around_first_read: Callable[..., list[int]]
) -> None:
    """The facts are read in a newer snapshot than the lock's."""
    facts.certified_mentor(facts.organisation(portal=None), YESTERDAY)

    def renew() -> None:
        app.execute("ALTER TABLE certificates DISABLE TRIGGER certificates_inserted")  # it would wait for us
        app.execute(RENEW.encode(), NEXT_YEARS)
        app.commit()

    around_first_read("before", renew)

    service(connection).apply_due()

    assert facts.rows(STATUSES) == [("renewed",), ("valid",)]
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == [(0,)]


@pytest.mark.parametrize("table", ["mentors", "certificates"])
def test_a_table_that_is_locked_for_a_while_is_waited_for(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """A migration of the app's, or a dump: nobody is lost, nobody is done twice."""
    organisation = facts.organisation()
    for _ in range(6):
        facts.certified_mentor(organisation, YESTERDAY)
    monkeypatch.setattr(certification, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)
    app.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
    release = threading.Timer(0.4, app.rollback)
    release.start()

    counts = service(connection).apply_due()
    release.join()

    assert (counts.skipped, counts.broken, counts.paused) == ([], {}, 6)
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(6,)]


def test_a_table_that_stays_locked_ends_the_night_with_the_next_step(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong and what to do are two fields of a JSON document."""
    facts.certified_mentor(facts.organisation(), TODAY)
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0)
    app.execute("LOCK TABLE mentors IN EXCLUSIVE MODE")

    with pytest.raises(DatabaseUnavailableError) as caught:
        service(connection).apply_due()

    assert caught.value.message == "the table mentors is locked by another session"
    assert caught.value.next_step == "end that session and run again"


def test_a_stop_flag_ends_the_review_between_chunks(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed stays, the rest is still due."""
    monkeypatch.setattr(certification, "CHUNK_SIZE", 2)
    organisation = facts.organisation(portal=None)
    for _ in range(6):
        facts.certified_mentor(organisation, IN_5_DAYS)
    stop = StopFlag()

    with pytest.raises(StoppedBySignalError):
        service(connection, stop=stop, on_progress=lambda _done: stop.set()).apply_due()

    assert len(due(facts)) == 4


def test_running_again_changes_nothing(connection: Connection, facts: Facts) -> None:
    """The second run of a day finds nobody due. Level-triggered: even if everybody is looked at, nothing new comes."""
    organisation = facts.organisation()
    for days in (-40, -1, 0, 3, 45, 400):
        facts.certified_mentor(organisation, TODAY + timedelta(days=days))
    night(connection, deliver=False)
    before = everything(facts) | {"job_runs": []}

    for reviewed in (0, 6):
        report = night(connection, deliver=False)

        assert report.to_document()["mentors"]["reviewed"] == reviewed
        assert everything(facts) | {"job_runs": []} == before
        connection.execute("UPDATE mentors SET review_on = '-infinity'")


def test_a_person_who_lifts_certjobs_pause_sees_it_reopened(connection: Connection, facts: Facts) -> None:
    """While the mentor is still not certified the pause comes back at the next review; illness is untouched."""
    mentor_id = facts.certified_mentor(facts.organisation(), YESTERDAY)
    illness = facts.pause(mentor_id)
    night(connection, deliver=False)
    lift = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE id <> %s"
    connection.execute(lift, (illness,))

    night(connection, deliver=False)

    assert facts.rows("SELECT id FROM mentor_pauses WHERE lifted_at IS NULL AND reason = 'illness'") == [(illness,)]
    assert facts.rows(OPEN_PAUSES) == [(2,)]
