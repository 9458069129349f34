"""Apply under real concurrency: nobody deadlocks, no fact is lost, one bad mentor never stops the night."""

import signal
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from certjob import database
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError, TooManyBrokenMentorsError
from certjob.facts import reading
from certjob.review import certification
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag
from tests.benchmarks.night import compare_states
from tests.benchmarks.population import run_script, set_based_night, today
from tests.conftest import Certjob, database_of
from tests.support.command_line import started
from tests.support.facts import TODAY, Facts
from tests.support.nights import in_background, night
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]
YESTERDAY = TODAY - timedelta(days=1)


def service(
    connection: Connection,
    *,
    stop: StopFlag | None = None,
    wait_for_locks_seconds: float = 0.5,
    chunk_size: int = 1_000,
    on_progress: Callable[[int], None] | None = None,
    allow_mass_change: bool = False,
) -> CertificationManagementService:
    run_id = uuid4()
    guard = MassChangeGuard(connection, today=TODAY, allow_mass_change=allow_mass_change)
    guard.examine(None)
    return CertificationManagementService(
        connection,
        today=TODAY,
        run_id=run_id,
        guard=guard,
        stop=stop or StopFlag(),
        on_progress=on_progress,
        wait_for_locks_seconds=wait_for_locks_seconds,
        chunk_size=chunk_size,
    )


def refuse(connection: Connection, table: str, column: str, *, when: str = "true") -> None:
    """Let the database refuse every change of a column, or some."""
    connection.execute(
        b"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        b" RAISE EXCEPTION 'this one is broken'; END $$"
    )
    trigger = f"CREATE TRIGGER refuse BEFORE UPDATE OF {column} ON {table} FOR EACH ROW WHEN ({when})"
    connection.execute(f"{trigger} EXECUTE FUNCTION refuse()".encode())


def due(facts: Facts) -> list[object]:
    return [row[0] for row in facts.rows("SELECT id FROM mentors WHERE review_on <= %s", TODAY)]


def test_state_audit_and_intents_are_committed_together(connection: Connection, facts: Facts) -> None:
    """One transaction per chunk: when its last statement fails, nothing of it is there."""
    mentor_id = facts.certified_mentor(facts.organisation(), YESTERDAY)
    refuse(connection, "mentors", "review_on")

    counts = service(connection).apply_due()

    assert list(counts.broken) == [mentor_id]
    for table in ("certificate_transitions", "mentor_pauses", "cert_notification_log", "portal_sync_events"):
        assert facts.rows(f"SELECT count(*) FROM {table}") == [(0,)], table
    assert facts.rows("SELECT status FROM certificates") == [("recorded",)]


def test_one_broken_mentor_is_named_and_the_others_are_reviewed(connection: Connection, facts: Facts) -> None:
    """Isolated, named with the reason, still due; the night needs attention."""
    organisation = facts.organisation(portal=None)
    mentors = [facts.certified_mentor(organisation, TODAY + timedelta(days=5)) for _ in range(5)]
    refuse(connection, "certificates", "status", when=f"NEW.mentor_id = '{mentors[2]}'")

    report = night(connection, deliver=False)

    assert report.review is not None
    assert report.review.reviewed == 4
    assert report.review.broken == {mentors[2]: "RaiseException: this one is broken"}
    assert due(facts) == [mentors[2]]
    assert report.outcome == "attention"
    assert str(mentors[2]) in report.reasons[0]
    stored = "SELECT mentor_id, reason FROM review_problems"
    facts.organisation("nhf", portal=None)
    night(connection, deliver=False, organisation="nhf")  # looks at nobody of ours
    assert facts.rows(stored) == [(mentors[2], "RaiseException: this one is broken")]
    connection.execute("DROP TRIGGER refuse ON certificates")
    night(connection, deliver=False)
    assert facts.rows(stored) == []


def test_when_every_mentor_breaks_the_night_fails_instead_of_listing_them(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many broken mentors are one cause, and the night must not look like a success; who they were is stored."""
    monkeypatch.setattr(certification, "MOST_BROKEN_MENTORS", 3)
    organisation = facts.organisation(portal=None)
    for _ in range(6):
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))
    refuse(connection, "certificates", "status")

    with pytest.raises(TooManyBrokenMentorsError, match="more than 3 mentors"):
        service(connection).apply_due()

    assert facts.rows("SELECT count(*) FROM review_problems") == [(4,)]


@pytest.mark.parametrize(
    "statement", ["SELECT FROM certificates WHERE mentor_id = %s", "SELECT FROM mentors WHERE id = %s"]
)
def test_an_idle_transaction_of_the_app_ends_in_skipped(
    connection: Connection, facts: Facts, app: App, statement: str
) -> None:
    """A certificate or a mentor locked by somebody is waited for a bounded time, then the mentor is skipped and named.

    So is one whose facts keep changing.
    """
    organisation = facts.organisation(portal=None)
    locked, changing = (facts.certified_mentor(organisation, TODAY + timedelta(days=5)) for _ in range(2))
    app.execute(f"{statement} FOR UPDATE".encode(), (locked,))
    touched: list[int] = []

    def touch(_done: int) -> None:
        touched.append(1)
        left = "UPDATE mentors SET left_at = now() + random() * interval '1 day' WHERE id = %s"
        connection.execute(left, (changing,))

    counts = service(connection, on_progress=touch).apply_due()

    assert len(touched) > 2
    assert counts.skipped == sorted([locked, changing])
    assert set(due(facts)) == {locked, changing}


def test_a_mentor_whose_lock_ends_in_time_is_reviewed(connection: Connection, facts: Facts, app: App) -> None:
    """The wait at the end picks up who was released meanwhile, with the facts that were committed."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), YESTERDAY)
    app.execute("UPDATE certificates SET expires_on = %s WHERE mentor_id = %s", (TODAY + timedelta(days=90), mentor_id))
    waiting = threading.Event()

    class Waiting(StopFlag):
        def sleep(self, seconds: float) -> None:
            waiting.set()
            super().sleep(0.01)

    reviewing = service(connection, stop=Waiting(), wait_for_locks_seconds=30)

    with in_background(reviewing.apply_due):
        assert waiting.wait(10)
        app.commit()

    assert reviewing.counts.skipped == []
    assert facts.rows("SELECT status FROM certificates") == [("valid",)]
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == [(0,)]


def at_first_read(
    monkeypatch: pytest.MonkeyPatch,
    *,
    before: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> list[int]:
    """Let something happen around the first reading of facts; how many mentors each reading had to leave out."""
    real_read = reading.read
    left_out: list[int] = []

    def read(own: Connection, ids: Sequence[UUID], *, lock: bool) -> reading.FactsRead:
        is_first = not left_out
        if is_first:
            before()
        facts_read = real_read(own, ids, lock=lock)
        left_out.append(len(facts_read.incomplete))
        if is_first:
            after()
        return facts_read

    monkeypatch.setattr(reading, "read", read)
    return left_out


def begin_to_wait(app: App, statement: str, *parameters: object) -> threading.Thread:
    """Let the app begin a statement that has to wait for us, and commit it then."""

    def run() -> None:
        app.execute(statement.encode(), parameters)
        app.commit()

    thread = threading.Thread(target=run)
    thread.start()
    with psycopg.connect(app.info.dsn, autocommit=True) as observer:
        until(lambda: waits_for_a_lock(observer, app))
    return thread


RENEW = "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%s, 'likeperson', %s, %s)"
NEXT_YEARS = (TODAY, TODAY + timedelta(days=700))


def test_the_app_can_update_a_certificate_while_apply_runs(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apply holds the mentor, the app holds the certificate and waits for the mentor: apply does not wait, so nobody
    deadlocks, and the extension is what the run ends with.
    """
    facts.certified_mentor(facts.organisation(portal=None), YESTERDAY)
    extend = "UPDATE certificates SET expires_on = %s"
    waiting: list[threading.Thread] = []
    until_spring = TODAY + timedelta(days=90)
    left_out = at_first_read(monkeypatch, before=lambda: waiting.append(begin_to_wait(app, extend, until_spring)))

    counts = service(connection, wait_for_locks_seconds=20).apply_due()
    waiting[0].join()

    assert left_out[0] == 1
    assert counts.skipped == []
    assert counts.reviewed == 1
    assert facts.rows("SELECT status FROM certificates") == [("valid",)]
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == [(0,)]


def test_a_renewal_committed_between_lock_and_read_is_seen(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The facts are read in a newer snapshot than the lock's: a renewal in between prevents the pause."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), YESTERDAY)

    def renew() -> None:
        app.execute("ALTER TABLE certificates DISABLE TRIGGER certificates_inserted")  # it would wait for us
        app.execute(RENEW, (mentor_id, *NEXT_YEARS))
        app.commit()

    at_first_read(monkeypatch, before=renew)

    service(connection).apply_due()

    assert facts.rows("SELECT status FROM certificates ORDER BY issued_on") == [("renewed",), ("valid",)]
    assert facts.rows("SELECT count(*) FROM mentor_pauses") == [(0,)]


def test_a_fact_that_comes_while_apply_holds_the_mentor_is_not_lost(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app's insert waits for the chunk to commit, then makes the mentor due again; a later pass sees it."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), YESTERDAY)
    waiting: list[threading.Thread] = []
    at_first_read(monkeypatch, after=lambda: waiting.append(begin_to_wait(app, RENEW, mentor_id, *NEXT_YEARS)))

    reviewing = service(connection, wait_for_locks_seconds=10)
    reviewing.apply_due()
    waiting[0].join()
    reviewing.apply_due()

    assert facts.rows("SELECT status FROM certificates ORDER BY issued_on") == [("renewed",), ("valid",)]
    assert facts.rows("SELECT lifted_at IS NOT NULL FROM mentor_pauses") == [(True,)]


def test_two_runs_at_once_share_the_mentors(connection: Connection, facts: Facts, database_url: str) -> None:
    """SKIP LOCKED shares the work: every mentor is reviewed once, each run did some, nobody is skipped."""
    organisation = facts.organisation(portal=None)
    mentors = [facts.certified_mentor(organisation, TODAY + timedelta(days=5)) for _ in range(60)]
    barrier = threading.Barrier(2)
    reviewed: list[int] = []

    def review() -> None:
        with database.connect(database_url) as own:
            met = threading.Event()

            def meet(_done: int) -> None:
                if not met.is_set():  # after the first chunk, wait until the other run has had one too
                    met.set()
                    barrier.wait(10)

            counts = service(own, chunk_size=5, wait_for_locks_seconds=10, on_progress=meet).apply_due()
            reviewed.append(counts.reviewed)

    with in_background(review), in_background(review):
        pass

    assert sum(reviewed) == len(mentors)
    assert min(reviewed) >= 5
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(len(mentors),)]
    assert facts.rows("SELECT count(*) FROM cert_notification_log") == [(len(mentors),)]
    assert due(facts) == []


def test_a_lock_wait_inside_a_chunk_is_redone_mentor_by_mentor(connection: Connection, facts: Facts, app: App) -> None:
    """Somebody holds a log row that the upsert needs: lock_timeout ends the wait, the others are done, nobody hangs."""
    organisation = facts.organisation(portal=None)
    mentors = [facts.certified_mentor(organisation, TODAY + timedelta(days=5)) for _ in range(4)]
    app.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
        " SELECT mentor_id, 7, id, expires_on FROM certificates WHERE mentor_id = %s",
        (mentors[1],),
    )

    counts = service(connection).apply_due()

    assert counts.reviewed == 3
    assert counts.skipped == [mentors[1]]


def test_a_table_that_stays_locked_ends_the_night_with_the_next_step(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can be reviewed; what is wrong and what to do are two fields of a JSON document."""
    facts.certified_mentor(facts.organisation(), TODAY)
    monkeypatch.setattr(certification, "WAIT_FOR_LOCKS_SECONDS", 0)
    with app.transaction():
        app.execute("LOCK TABLE mentors IN EXCLUSIVE MODE")

        with pytest.raises(DatabaseUnavailableError) as caught:
            service(connection).apply_due()

    assert caught.value.message == "the table mentors is locked by another session"
    assert caught.value.next_step == "end that session and run again"


def test_a_stop_flag_ends_the_review_between_chunks(connection: Connection, facts: Facts) -> None:
    """What is committed stays, the rest is still due."""
    organisation = facts.organisation(portal=None)
    for _ in range(6):
        facts.certified_mentor(organisation, TODAY + timedelta(days=5))
    stop = StopFlag()

    with pytest.raises(StoppedBySignalError):
        service(connection, stop=stop, chunk_size=2, on_progress=lambda _done: stop.set()).apply_due()

    assert len(due(facts)) == 4


def test_running_again_changes_nothing(connection: Connection, facts: Facts) -> None:
    """The second run of a day finds nobody due. Level-triggered: even if everybody is looked at, nothing new comes."""
    organisation = facts.organisation()
    for days in (-40, -1, 0, 3, 45, 400):
        facts.certified_mentor(organisation, TODAY + timedelta(days=days))
    night(connection, deliver=False)
    before = snapshot(facts)
    for reviewed in (0, 6):
        report = night(connection, deliver=False)

        assert report.to_document()["mentors"]["reviewed"] == reviewed
        assert snapshot(facts) == before
        connection.execute("UPDATE mentors SET review_on = '-infinity'")


def snapshot(facts: Facts) -> dict[str, list[tuple[object, ...]]]:
    """Everything that a run writes, but for job_runs."""
    return {
        "certificates": facts.rows("SELECT id, status FROM certificates ORDER BY id"),
        "mentors": facts.rows("SELECT id, portal_visible, review_on::text FROM mentors ORDER BY id"),
        "pauses": facts.rows("SELECT mentor_id, reason, lifted_at FROM mentor_pauses ORDER BY mentor_id, reason"),
        "transitions": facts.rows("SELECT certificate_id, to_status FROM certificate_transitions ORDER BY id"),
        "log": facts.rows("SELECT id, threshold_days, expires_on, status FROM cert_notification_log ORDER BY id"),
        "events": facts.rows("SELECT id, visible, version, status FROM portal_sync_events ORDER BY id"),
    }


def test_a_person_who_lifts_certjobs_pause_sees_it_reopened(connection: Connection, facts: Facts) -> None:
    """While the mentor is still not certified the pause comes back at the next review; illness is untouched."""
    mentor_id = facts.certified_mentor(facts.organisation(), YESTERDAY)
    illness = facts.pause(mentor_id)
    night(connection, deliver=False)
    connection.execute(
        "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE reason = 'certification_expired'"
    )

    night(connection, deliver=False)

    assert facts.rows("SELECT id FROM mentor_pauses WHERE lifted_at IS NULL AND reason = 'illness'") == [(illness,)]
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(2,)]


@pytest.mark.parametrize("table", ["mentors", "certificates"])
def test_a_table_that_is_locked_for_a_while_is_waited_for(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """A migration of the app's, or a dump: nobody is lost, nobody is done twice."""
    organisation = facts.organisation()
    for _ in range(6):
        facts.certified_mentor(organisation, YESTERDAY)
    monkeypatch.setattr(certification, "LOCK_TIMEOUT_MS", 50)
    app.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
    release = threading.Timer(0.4, app.rollback)
    release.start()

    counts = service(connection, chunk_size=2, wait_for_locks_seconds=20).apply_due()
    release.join()

    assert (counts.skipped, counts.broken) == ([], {})
    assert counts.paused == 6
    assert facts.rows("SELECT count(*) FROM certificate_transitions") == [(6,)]


def test_a_night_killed_in_the_middle_and_run_again_ends_where_it_would_have(
    server_url: str,
    database_url: str,
    connection: Connection,
    certjob: Certjob,
    bare_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """The state is then, row by row, that of SQL which did it in one go."""
    run_script(connection, "population.sql", mentors=6_000, today=today())
    connection.close()
    name = str(psycopg.conninfo.conninfo_to_dict(database_url)["dbname"])
    copy = f"{name}_copy"
    arguments = ("run", "--no-deliver", "--allow-mass-change", "--json")
    with psycopg.connect(server_url, autocommit=True) as admin:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        admin.execute(statement.format(sql.Identifier(copy), sql.Identifier(name)))
        environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}
        with (
            database.connect(database_url) as one,
            started(*arguments, environment=environment, folder=tmp_path) as child,
        ):

            def reviewed() -> int:
                done = one.execute("SELECT count(*) FROM mentors WHERE review_on > '-infinity'").fetchall()
                return int(done[0][0])

            until(lambda: reviewed() > 0, seconds=60)
            child.signal(signal.SIGKILL)
            child.finish()
            busy = b"SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'certjob'"
            until(lambda: admin.execute(busy, (name,)).fetchall() == [(1,)])
            assert 0 < reviewed() < 6_000

            certjob(*arguments)
            with database.connect(database_of(server_url, copy)) as other:
                set_based_night(other)

                assert compare_states(one, other) > 20_000
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(copy)))
