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

    Yields its name; it is to be copied.
    """
    with server.fresh("bench_template") as name:
        with server.connect(name) as connection:
            run_script(connection, "population.sql", mentors=mentors, today=today())
            connection.execute("VACUUM ANALYZE")
            if due_percent < 100:
                settle_all_but(connection, due_percent=due_percent)
        yield name


def settle_all_but(connection: Connection, *, due_percent: int) -> None:
    """Let a night be over for everybody but these, with everything delivered."""
    chosen = b"substr(member_no, 2)::integer %% 100 < %s"
    connection.execute(b"UPDATE mentors SET review_on = 'infinity' WHERE " + chosen, (due_percent,))
    set_based_night(connection)
    connection.execute(_DELIVERED.encode())
    connection.execute(b"UPDATE mentors SET review_on = '-infinity' WHERE " + chosen, (due_percent,))
    connection.execute("VACUUM FULL mentors")  # no trace of how the bench made them
    connection.execute("VACUUM FULL certificates")
    connection.execute("VACUUM ANALYZE")
