"""Databases full of mentors, made in SQL: facts alone, or with nights behind them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

from certjob.database import Connection
from tests.benchmarks.bench_server import BenchServer
from tests.support import command_line

SQL = Path(__file__).parent / "sql"
today = command_line.today

_DELIVERED = b"""
    UPDATE cert_notification_log SET status = 'sent', sent_at = now() WHERE status = 'pending';
    UPDATE portal_sync_events SET status = 'delivered', delivered_at = now() WHERE status = 'pending';
"""


def run_script(connection: Connection, name: str, **parameters: object) -> None:
    """Run the statements of a file one by one, with the values written into them, as a hand would have it."""
    text = "\n".join(line for line in (SQL / name).read_text().splitlines() if not line.startswith("--"))
    with psycopg.ClientCursor(connection) as cursor:
        for statement in text.split(";\n"):
            if statement.strip():
                cursor.execute(statement.encode(), parameters or None)


def set_based_night(connection: Connection) -> None:
    """One night for everybody who is due, in one transaction, after a line in the ledger, as certjob's has one."""
    run = {"run_id": uuid4(), "today": today()}
    connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version)"
        " VALUES (%(run_id)s, 'run', %(today)s, 'bench', 'set-based SQL')",
        run,
    )
    with connection.transaction():
        connection.execute("SET LOCAL work_mem = '128MB'")
        run_script(connection, "set_based_night.sql", **run)


def populate(connection: Connection, mentors: int) -> None:
    run_script(connection, "population.sql", mentors=mentors, today=today())
    connection.execute("VACUUM ANALYZE")


@contextmanager
def populated(server: BenchServer, *, mentors: int, due_percent: int) -> Iterator[str]:
    """A database in which so many of the mentors are due, whom certjob has not seen yet, and all others are settled.

    Yields its name; it is to be copied. What several parts of the bench begin from is made once for all of them.
    """
    facts = server.kept(f"bench_facts_{mentors}", lambda connection: populate(connection, mentors))
    if due_percent == 100:
        yield facts
        return
    settled = server.kept(f"bench_settled_{mentors}", _settle, template=facts)
    if due_percent == 0:
        yield settled
        return
    with server.copy(settled, "bench_template") as name:
        with server.connect(name) as connection:
            run_script(connection, "forget.sql", percent=due_percent)
            _leave_no_trace(connection)
        yield name


def _settle(connection: Connection) -> None:
    """Let a night be over for everybody, with everything delivered."""
    set_based_night(connection)
    connection.execute(_DELIVERED)
    _leave_no_trace(connection)


def _leave_no_trace(connection: Connection) -> None:
    """Tables as if they had never been anything else."""
    connection.execute(
        "VACUUM FULL mentors, certificates, mentor_pauses, certificate_transitions, cert_notification_log,"
        " portal_sync_events"
    )
    connection.execute("VACUUM ANALYZE")
