"""A server with durable commits, databases with many mentors, and processes."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg

from certjob import database
from certjob.database import Connection
from tests.conftest import installed_command
from tests.support.command_line import today
from tests.support.own_server import TEMPLATE, Cluster

SQL = Path(__file__).parent / "sql"


class Measured(NamedTuple):
    """A command that has ended."""

    seconds: float
    document: dict[str, Any]
    """Its output, if that is JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The server, and the sizes of the command line."""

    cluster: Cluster
    rounds: int
    mentors: int
    shares: Sequence[int]
    """Due mentors in per cent."""
    pushes: int
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.0f} s] {text}", file=sys.stderr, flush=True)

    def connect(self, name: str) -> Connection:
        connection = database.connect(self.cluster.url(name))
        connection.execute("SET search_path = certjob, public, pg_temp")
        return connection

    @contextmanager
    def copy(self, template: str = TEMPLATE, name: str = "copy") -> Iterator[str]:
        """Copy a database and write it to disk; yield the name of the copy."""
        with self.cluster.fresh_database(name, template=template):
            with self.connect(name) as connection:
                connection.execute("CHECKPOINT")
            yield name

    def certjob(self, *arguments: str, name: str = "", settings: Mapping[str, str] | None = None) -> Measured:
        """Run the installed command on this database. Raises RuntimeError if it fails; an alert is no failure."""
        where = {"CERTJOB_DATABASE_URL": self.cluster.url(name)} if name else {}
        environment = {"HOME": tempfile.gettempdir(), "PATH": "/usr/bin:/bin", **where, **(settings or {})}
        command = [str(installed_command()), *arguments]
        began = time.perf_counter()
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        if ended.returncode not in (0, 3):
            raise RuntimeError(ended.stderr)
        return Measured(seconds, json.loads(ended.stdout) if "--json" in arguments else {})

    def template(self, *, mentors: int, due_percent: int, is_known: bool = True) -> str:
        """Return the name of a database in which so many mentors are due, because a certificate ended yesterday.

        With ``is_known``, a review has seen this certificate. The other mentors are reviewed, and no delivery is open.
        """
        name = f"template_{mentors}_{due_percent}_{is_known}"
        with self.connect("postgres") as admin:
            if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                return name
        self.cluster.make(name, TEMPLATE)
        with self.connect(name) as connection:
            populate(connection, mentors, due_percent=due_percent)
            if is_known:
                populate(connection, mentors, due_percent=due_percent, is_due=True)
            set_based_night(connection, today() - timedelta(days=1) if due_percent else today())
            run_script(connection, "deliver.sql", due=due_percent, today=today())
            if not is_known:
                populate(connection, mentors, due_percent=due_percent, is_due=True)
            connection.execute("VACUUM FULL ANALYZE")  # removes old row versions
        return name


def run_script(connection: Connection, name: str, **parameters: object) -> None:
    """Run the statements of a file one by one, with literal values."""
    text = "\n".join(line for line in (SQL / name).read_text().splitlines() if not line.startswith("--"))
    with psycopg.ClientCursor(connection) as cursor:
        for statement in text.split(";\n"):
            if statement.strip():
                cursor.execute(statement.encode(), parameters or None)


def populate(connection: Connection, mentors: int, *, due_percent: int = 0, is_due: bool = False) -> None:
    """Add the mentors with a certificate that ended yesterday, or the others."""
    run_script(connection, "population.sql", mentors=mentors, due=due_percent, is_due=is_due, today=today())
    connection.execute("VACUUM ANALYZE")


def set_based_night(connection: Connection, day: date) -> None:
    """Run one night for all due mentors in one transaction."""
    run_id = uuid4()
    job_run = (
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (%s, 'run', %s, 'bench', 'set-based', now(), 'ok')"
    )
    connection.execute(job_run, (run_id, day))
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        run_script(connection, "set_based_night.sql", run_id=run_id, today=day)


@contextmanager
def durable_cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a server with durable commits and PostgreSQL's default memory."""
    # No checkpoint starts during a measurement, because each copy of a template makes one before.
    with Cluster(folder, max_wal_size="8GB", checkpoint_timeout="1h") as cluster:
        yield cluster
