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
ROOT = Path(__file__).parents[2]


class Finished(NamedTuple):
    """A process that has ended."""

    seconds: float
    peak_mb: float
    document: dict[str, Any]
    """Its output, if that is JSON."""


def run(command: Sequence[str | Path], *, settings: Mapping[str, str] | None = None) -> Finished:
    """Run a program with these settings only. Raises RuntimeError if it does not exit with 0."""
    environment = {"HOME": tempfile.gettempdir(), "PATH": "/usr/bin:/bin", **(settings or {})}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:  # pipes would need a reader
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors}
        began = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), env=environment, cwd=tempfile.gettempdir(), **streams)
        _, status, usage = os.wait4(process.pid, 0)  # with the memory of this child
        took = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        said, complained = output.read().decode(), errors.read().decode()
    if process.returncode:
        message = f"{' '.join(map(str, command[:3]))} ended with {process.returncode}: {complained or said}"
        raise RuntimeError(message)
    return Finished(took, usage.ru_maxrss / 1024, json.loads(said) if said.startswith("{") else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The server, and the sizes of the command line."""

    cluster: Cluster
    folder: Path
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
    def copy(self, template: str = TEMPLATE, name: str = "bench_copy") -> Iterator[str]:
        """Copy a database and write it to disk; yield the name of the copy."""
        with self.cluster.fresh_database(name, template=template):
            with self.connect(name) as connection:
                connection.execute("CHECKPOINT")
            yield name

    def certjob(self, *arguments: str, name: str = "", settings: Mapping[str, str] | None = None) -> Finished:
        """Run the installed command on this database."""
        where = {"CERTJOB_DATABASE_URL": self.cluster.url(name)} if name else {}
        return run([installed_command(), *arguments], settings={**where, **(settings or {})})

    def review(self, name: str, *options: str) -> Finished:
        """Run a night without deliveries on this database, as a process."""
        command = [sys.executable, "-m", "tests.benchmarks.review", self.cluster.url(name), *options]
        return run(command, settings={"PYTHONPATH": str(ROOT)})

    def kept(self, name: str, template: str) -> Connection | None:
        """Create a database that lasts as long as the server; return a connection to it, or None if it exists."""
        with self.connect("postgres") as admin:
            if admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                return None
        self.cluster.make(name, template)
        return self.connect(name)

    @contextmanager
    def populated(self, *, mentors: int, due_percent: int) -> Iterator[str]:
        """Yield a template in which so many mentors are due for the first time, and no others."""
        facts, settled = f"bench_facts_{mentors}", f"bench_settled_{mentors}"
        if (new := self.kept(facts, TEMPLATE)) is not None:
            with new:
                populate(new, mentors)
        if due_percent == 100:
            yield facts
            return
        if (new := self.kept(settled, facts)) is not None:
            with new:  # run a night for everyone, and deliver everything
                set_based_night(new)
                new.execute("UPDATE cert_notification_log SET status = 'sent', sent_at = now()")
                new.execute("UPDATE portal_sync_events SET status = 'delivered', delivered_at = now()")
                _leave_no_trace(new)
        if due_percent == 0:
            yield settled
            return
        with self.copy(settled, "bench_template") as name:
            with self.connect(name) as connection:
                run_script(connection, "forget.sql", percent=due_percent)
                _leave_no_trace(connection)
            yield name


def _leave_no_trace(connection: Connection) -> None:
    """Remove old row versions."""
    tables = "mentors, certificates, mentor_pauses, certificate_transitions, cert_notification_log, portal_sync_events"
    connection.execute(f"VACUUM FULL {tables}".encode())
    connection.execute("VACUUM ANALYZE")


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
