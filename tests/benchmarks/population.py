"""Databases full of mentors, made in SQL: facts alone, or with nights behind them."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg

from certjob.database import Connection
from tests.benchmarks.bench_server import BenchServer

SQL = Path(__file__).parent / "sql"
REFERENCE_RUN = UUID(int=1)
"""What the reference writes as its run."""

_DELIVERED = """
    UPDATE cert_notification_log SET status = 'sent', sent_at = now() WHERE status = 'pending';
    UPDATE portal_sync_events SET status = 'delivered', delivered_at = now() WHERE status = 'pending';
"""


def today() -> date:
    """The day that ``certjob run`` takes it to be."""
    return datetime.now(ZoneInfo("Europe/Oslo")).date()


def run_script(connection: Connection, name: str, **parameters: object) -> None:
    """Run the statements of a file one by one, with the values written into them, as a hand would have it."""
    text = "\n".join(line for line in (SQL / name).read_text().splitlines() if not line.startswith("--"))
    with psycopg.ClientCursor(connection) as cursor:
        for statement in text.split(";\n"):
            if statement.strip():
                cursor.execute(statement.encode(), parameters or None)


def set_based_night(connection: Connection) -> None:
    """One night for everybody who is due, in one transaction."""
    with connection.transaction():
        connection.execute("SET LOCAL work_mem = '128MB'")
        run_script(connection, "set_based_night.sql", today=today(), run_id=REFERENCE_RUN)


@contextmanager
def populated(server: BenchServer, *, mentors: int, due_percent: int) -> Iterator[str]:
    """A database in which so many of the mentors are due, whom certjob has not seen yet, and all others are settled.

    Yields its name; it is to be copied. What several parts of the bench begin from is made once for all of them.
    """
    facts = server.kept(f"bench_facts_{mentors}", lambda connection: _populate(connection, mentors))
    if due_percent == 100:
        yield facts
        return
    settled = server.kept(f"bench_settled_{mentors}", settle, template=facts)
    if due_percent == 0:
        yield settled
        return
    with server.copy(settled, "bench_template") as name:
        with server.connect(name) as connection:
            forget(connection, percent=due_percent)
        yield name


def _populate(connection: Connection, mentors: int) -> None:
    run_script(connection, "population.sql", mentors=mentors, today=today())
    connection.execute("VACUUM ANALYZE")


def settle(connection: Connection) -> None:
    """Let a night be over for everybody, with everything delivered."""
    set_based_night(connection)
    connection.execute(_DELIVERED.encode())
    _leave_no_trace(connection)


def forget(connection: Connection, *, percent: int) -> None:
    """Let certjob never have seen so many of the mentors, from the first to the last evenly."""
    run_script(connection, "forget.sql", percent=percent)
    _leave_no_trace(connection)


def _leave_no_trace(connection: Connection) -> None:
    """Tables as if they had never been anything else."""
    connection.execute(
        "VACUUM FULL mentors, certificates, mentor_pauses, certificate_transitions, cert_notification_log,"
        " portal_sync_events"
    )
    connection.execute("VACUUM ANALYZE")
