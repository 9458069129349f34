"""A long review on two connections: the next chunk is read while this one is written, and nothing else changes."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.errors import DatabaseUnavailableError, StoppedBySignalError
from certjob.facts import reading
from certjob.mail.reminders import CertificationReminderService
from certjob.portal.sync import PortalSyncService
from certjob.review import certification
from certjob.review.certification import CertificationManagementService
from certjob.review.decision_writer import DecisionWriter, Written
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag
from tests.benchmarks.night import compare_states
from tests.benchmarks.population import run_script, set_based_night, today
from tests.conftest import Certjob, database_of
from tests.support.command_line import started
from tests.support.facts import TODAY, Facts
from tests.support.waiting import until

CHUNK = 5
Connect = Callable[[], Connection]


@pytest.fixture
def connect(database_url: str) -> Iterator[Connect]:
    """Opens further connections, as the command does; at the end of a test none is left open."""
    opened: list[Connection] = []

    def another() -> Connection:
        opened.append(database.connect(database_url))
        return opened[-1]

    yield another
    assert all(connection.closed for connection in opened)


def service(
    connection: Connection,
    connect: Connect | None,
    *,
    stop: StopFlag | None = None,
    allow_mass_change: bool = True,
    on_progress: Callable[[int], None] | None = None,
) -> CertificationManagementService:
    run_id = uuid4()
    reminders = CertificationReminderService(connection, run_id=run_id)
    return CertificationManagementService(
        connection,
        today=TODAY,
        run_id=run_id,
        guard=MassChangeGuard(connection, today=TODAY, reminders=reminders, allow_mass_change=allow_mass_change),
        reminders=reminders,
        portal=PortalSyncService(connection, run_id=run_id),
        stop=stop or StopFlag(),
        connect=connect,
        on_progress=on_progress,
        wait_for_locks_seconds=0.5,
        chunk_size=CHUNK,
    )


def expired_mentors(facts: Facts, number: int) -> list[UUID]:
    organisation = facts.organisation()
    return [facts.certified_mentor(organisation, TODAY - timedelta(days=1)) for _ in range(number)]


def count(facts: Facts, statement: str) -> object:
    return facts.rows(statement)[0][0]


def test_the_next_chunk_is_read_while_this_one_is_written(
    connection: Connection, facts: Facts, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third chunk's writing waits until the fourth one is read, on another connection; everybody is done once."""
    mentors = expired_mentors(facts, 6 * CHUNK)
    reads: list[Connection] = []
    met: list[Connection] = []
    changed = threading.Condition()
    real_read, real_write = reading.read, DecisionWriter.write

    def read(own: Connection, ids: Sequence[UUID], *, lock: bool) -> reading.FactsRead:
        found = real_read(own, ids, lock=lock)
        with changed:
            reads.append(own)
            changed.notify_all()
        return found

    def write(writer: DecisionWriter, decisions: Sequence[Decision]) -> Written:
        with changed:
            if len(reads) == 3:
                assert changed.wait_for(lambda: len(reads) == 4, 10), "nobody read ahead"
                met.extend(reads[2:4])
        return real_write(writer, decisions)

    monkeypatch.setattr(reading, "read", read)
    monkeypatch.setattr(DecisionWriter, "write", write)

    counts = service(connection, connect).apply_due()

    assert len(met) == 2
    assert met[0] is not met[1]
    assert counts.reviewed == counts.paused == len(mentors)
    assert count(facts, "SELECT count(*) FROM certificate_transitions") == len(mentors)
    assert count(facts, "SELECT count(*) FROM mentor_pauses") == len(mentors)


def test_a_short_review_opens_no_second_connection(connection: Connection, facts: Facts) -> None:
    """Most nights are less than one chunk, and a pooler has few connections to give."""
    expired_mentors(facts, CHUNK - 1)

    def refuse() -> Connection:
        raise AssertionError

    assert service(connection, refuse).apply_due().reviewed == CHUNK - 1


def test_a_second_connection_that_is_refused_is_not_missed(connection: Connection, facts: Facts) -> None:
    """The server's connections are used up: the review goes on with the one it has, and asks once."""
    expired_mentors(facts, 4 * CHUNK)
    asked: list[int] = []

    def refuse() -> Connection:
        asked.append(1)
        message = "too many connections"
        raise DatabaseUnavailableError(message)

    assert service(connection, refuse).apply_due().reviewed == 4 * CHUNK
    assert len(asked) == 1


@pytest.mark.parametrize("number", [7, 12, 17])
def test_a_broken_mentor_in_a_chunk_that_is_written_behind_is_isolated(
    connection: Connection, facts: Facts, connect: Connect, number: int
) -> None:
    """Its chunk is redone one by one, what was read ahead meanwhile is begun anew, nobody else suffers."""
    expired_mentors(facts, 5 * CHUNK)
    broken = facts.rows("SELECT id FROM mentors ORDER BY review_on, id")[number][0]
    connection.execute(
        b"CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'broken'; END $$;"
    )
    connection.execute(
        f"CREATE TRIGGER refuse BEFORE UPDATE OF status ON certificates FOR EACH ROW"
        f" WHEN (NEW.mentor_id = '{broken}') EXECUTE FUNCTION refuse()".encode()
    )

    counts = service(connection, connect).apply_due()

    assert counts.broken == {broken: "RaiseException: broken"}
    assert counts.reviewed == 5 * CHUNK - 1
    assert count(facts, "SELECT count(*) FROM mentor_pauses") == 5 * CHUNK - 1
    assert facts.rows("SELECT id FROM mentors WHERE review_on <= %s", TODAY) == [(broken,)]


def test_the_guard_counts_as_strictly_as_with_one_connection(
    connection: Connection, facts: Facts, connect: Connect
) -> None:
    """It is asked about a chunk only when the one before is counted: not one pause more than the limit."""
    expired_mentors(facts, 8 * CHUNK)

    counts = service(connection, connect, allow_mass_change=False).apply_due()

    assert counts.paused == 20  # the limit of so small an organisation
    assert count(facts, "SELECT count(*) FROM mentor_pauses") == 20


def test_a_signal_ends_it_between_chunks_and_what_is_counted_is_committed(
    connection: Connection, facts: Facts, connect: Connect
) -> None:
    """What was read ahead is let go, no transaction stays open."""
    expired_mentors(facts, 6 * CHUNK)
    stop = StopFlag()
    reviewing = service(
        connection, connect, stop=stop, on_progress=lambda done: stop.set() if done >= 3 * CHUNK else None
    )

    with pytest.raises(StoppedBySignalError):
        reviewing.apply_due()

    assert reviewing.counts.reviewed == 3 * CHUNK
    assert count(facts, "SELECT count(*) FROM mentors WHERE review_on > '2026-01-01'") == 3 * CHUNK
    assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


def end_session_of_write(number: int, monkeypatch: pytest.MonkeyPatch, *, admin_url: str) -> None:
    """Let the server end the session on which so many chunks have been written, before the last one is committed."""
    real_write = DecisionWriter.write
    calls: list[int] = []

    def write(writer: DecisionWriter, decisions: Sequence[Decision]) -> Written:
        calls.append(1)
        written = real_write(writer, decisions)
        if len(calls) == number:
            with psycopg.connect(admin_url, autocommit=True) as admin:
                admin.execute("SELECT pg_terminate_backend(%s)", (writer._connection.info.backend_pid,))
        return written

    monkeypatch.setattr(DecisionWriter, "write", write)


def test_a_second_connection_that_the_server_ends_is_opened_again(
    connection: Connection, facts: Facts, connect: Connect, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was being written on it is done again on the first one; everybody is done once."""
    expired_mentors(facts, 6 * CHUNK)
    end_session_of_write(3, monkeypatch, admin_url=database_url)
    opened: list[Connection] = []

    def noted() -> Connection:
        opened.append(connect())
        return opened[-1]

    counts = service(connection, noted).apply_due()

    assert len(opened) == 2
    assert counts.reviewed == counts.paused == 6 * CHUNK
    assert count(facts, "SELECT count(*) FROM certificate_transitions") == 6 * CHUNK


def test_a_first_connection_that_the_server_ends_ends_the_review(
    connection: Connection, facts: Facts, connect: Connect, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody waits for the server. Each chunk is there as a whole or not at all; a review after that goes on."""
    expired_mentors(facts, 6 * CHUNK)
    with monkeypatch.context() as patched:
        end_session_of_write(4, patched, admin_url=database_url)
        with database.connect(database_url) as own, pytest.raises(psycopg.OperationalError):
            service(own, connect).apply_due()

    assert count(facts, "SELECT count(*) FROM mentor_pauses") == 3 * CHUNK
    assert count(facts, "SELECT count(*) FROM certificate_transitions") == 3 * CHUNK
    assert service(connection, connect).apply_due().reviewed == 3 * CHUNK


def test_a_night_on_two_connections_outlasts_the_end_of_its_sessions(
    connection: Connection, facts: Facts, connect: Connect, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `certjob run` has it: the first connection is opened anew in place, the chunk decided again."""
    expired_mentors(facts, 6 * CHUNK)
    end_session_of_write(4, monkeypatch, admin_url=database_url)
    with database.connect(database_url) as own:
        database.outlast_restarts(own, stop=StopFlag())

        counts = service(own, connect).apply_due()

    assert counts.reviewed == counts.paused == 6 * CHUNK
    assert count(facts, "SELECT count(*) FROM certificate_transitions") == 6 * CHUNK


def test_a_table_locked_by_somebody_is_waited_for_on_both_connections(
    connection: Connection, facts: Facts, connect: Connect, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app's lock falls between two chunks; neither is lost, none done twice."""
    expired_mentors(facts, 4 * CHUNK)
    monkeypatch.setattr(certification, "LOCK_TIMEOUT_MS", 50)
    real_read = reading.read
    reads: list[int] = []
    blocker = psycopg.connect(database_url)
    released: list[threading.Timer] = []

    def read(own: Connection, ids: Sequence[UUID], *, lock: bool) -> reading.FactsRead:
        reads.append(1)
        if len(reads) == 3:  # this chunk holds its mentors; whoever comes next meets the lock on the pauses
            blocker.execute("LOCK TABLE mentor_pauses IN ACCESS EXCLUSIVE MODE")
            released.append(threading.Timer(0.3, blocker.rollback))
            released[0].start()
        return real_read(own, ids, lock=lock)

    monkeypatch.setattr(reading, "read", read)

    with blocker:
        counts = service(connection, connect).apply_due()
        released[0].join()

    assert counts.skipped == []
    assert counts.paused == 4 * CHUNK
    assert count(facts, "SELECT count(*) FROM certificate_transitions") == 4 * CHUNK


def test_a_night_killed_in_the_middle_and_run_again_ends_where_it_would_have(
    server_url: str,
    database_url: str,
    connection: Connection,
    certjob: Certjob,
    bare_environment: dict[str, str],
    tmp_path: Path,
) -> None:
    """kill -9 while both connections are busy; the state is then, row by row, that of SQL which did it in one go."""
    run_script(connection, "population.sql", mentors=6_000, today=today())
    connection.close()
    name = str(psycopg.conninfo.conninfo_to_dict(database_url)["dbname"])
    copy = f"{name}_copy"
    arguments = ("run", "--no-deliver", "--allow-mass-change", "--json")
    with psycopg.connect(server_url, autocommit=True) as admin:
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        admin.execute(statement.format(sql.Identifier(copy), sql.Identifier(name)))
        environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}
        with started(*arguments, environment=environment, folder=tmp_path) as child:
            busy = b"SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND application_name = 'certjob'"
            until(lambda: admin.execute(busy, (name,)).fetchall() == [(2,)], seconds=60)
            child.signal(signal.SIGKILL)
            child.finish()
        until(lambda: admin.execute(busy, (name,)).fetchall() == [(0,)])
        with database.connect(database_url) as one, database.connect(database_of(server_url, copy)) as other:
            done = one.execute("SELECT count(*) FROM mentors WHERE review_on > '-infinity'").fetchall()
            assert 0 < done[0][0] < 6_000

            certjob(*arguments)
            set_based_night(other)

            assert compare_states(one, other) > 20_000
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(copy)))
