"""A server with durable commits, databases with many mentors, and processes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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

    def template(self, *, mentors: int, due_percent: int) -> str:
        """Return the name of a kept database in which so many mentors are due for the first time, and no others."""
        name = f"template_{mentors}_{due_percent}"
        with self.connect("postgres") as admin:
            if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                return name
        if due_percent == 100:
            self.cluster.make(name, TEMPLATE)
            with self.connect(name) as connection:
                populate(connection, mentors)
            return name
        self.cluster.make(name, self.template(mentors=mentors, due_percent=0 if due_percent else 100))
        with self.connect(name) as connection:
            if due_percent:
                run_script(connection, "forget.sql", percent=due_percent)
            else:  # run a night for everyone, and deliver everything
                set_based_night(connection)
                connection.execute("UPDATE cert_notification_log SET status = 'sent', sent_at = now()")
                connection.execute("UPDATE portal_sync_events SET status = 'delivered', delivered_at = now()")
            connection.execute("VACUUM FULL ANALYZE")  # removes old row versions
        return name


def run_script(connection: Connection, name: str, **parameters: object) -> None:
    """Run the statements of a file one by one, with literal values."""
    text = "\n".join(line for line in (SQL / name).read_text().splitlines() if not line.startswith("--"))
    with psycopg.ClientCursor(connection) as cursor:
        for statement in text.split(";\n"):
            if statement.strip():
                cursor.execute(statement.encode(), parameters or None)


def populate(connection: Connection, mentors: int) -> None:
    run_script(connection, "population.sql", mentors=mentors, today=today())
    connection.execute("VACUUM ANALYZE")


def set_based_night(connection: Connection) -> None:
    """Run one night for all due mentors in one transaction."""
    run_id = uuid4()
    job_run = "INSERT INTO job_runs (id, command, as_of, host, version) VALUES (%s, 'run', %s, 'bench', 'set-based')"
    connection.execute(job_run, (run_id, today()))
    with connection.transaction():
        connection.execute("SET LOCAL work_mem = '128MB'")
        run_script(connection, "set_based_night.sql", run_id=run_id, today=today())


@contextmanager
def durable_cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a server with durable commits, and a quarter of the memory for shared_buffers, as its manual advises.

    A million mentors do not fit into the default of 128 MB. Then nearly every step would read and write a page.
    """
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    buffers = {"shared_buffers": f"{min(max(memory_mb // 4, 128), 4_096)}MB"}
    # No checkpoint starts during a measurement, because each copy of a template makes one before.
    with Cluster(folder, max_wal_size="8GB", checkpoint_timeout="1h", **buffers) as cluster:
        cluster.restart()  # shared_buffers needs it
        yield cluster
