"""A PostgreSQL of one's own that may be stopped with ``immediate``, with a fresh database for each run."""

import atexit
import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psycopg

from certjob import database
from certjob.database import Connection, embedded, migrations
from tests.support.waiting import until

TEMPLATE = "chaos_template"
OWN_NAME = "chaos"
"""How the harness's own sessions call themselves; all others are certjob's."""


class Cluster:
    """The server, from start to end; a context manager."""

    def __init__(self, folder: Path) -> None:
        """``folder`` must be reachable for the unprivileged user that root's PostgreSQL becomes."""
        self.folder = folder
        self._handle: Any = None

    def __enter__(self) -> Self:
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.start()
        with self.connect("postgres") as admin:
            # A killed server keeps what the system has; only a power cut does not.
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("ALTER SYSTEM SET full_page_writes = off")
            admin.execute("SELECT pg_reload_conf()")
            admin.execute(f"CREATE DATABASE {TEMPLATE}".encode())
        with database.connect(self.url(TEMPLATE)) as connection:
            migrations.migrate(connection)
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start it, if it does not run."""
        self._handle = embedded.start(self.folder / "postgresql")
        atexit.unregister(self._handle._cleanup)  # it would make the folder anew; this class stops its server itself

    def stop(self) -> None:
        """Stop it with ``immediate``: no checkpoint, every session broken, recovery at the next start."""
        pid_file = self.folder / "postgresql" / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError):  # stopped already
            os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGQUIT)
        until(lambda: not pid_file.exists())

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextmanager
    def fresh_database(self, name: str) -> Iterator[None]:
        """A migrated database of this name."""
        with self.connect("postgres") as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} STRATEGY FILE_COPY".encode())
        try:
            yield
        finally:
            with self.connect("postgres") as admin:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def connect(self, name: str) -> Connection:
        """A session of the harness; none outlives a restart, so they are short."""
        return Connection.connect(
            self.url(name),
            autocommit=True,
            prepare_threshold=None,
            application_name=OWN_NAME,
            options="-c statement_timeout=30s -c lock_timeout=20s",
        )

    def wait_until_idle(self, name: str) -> None:
        """Wait until the sessions of dead processes are gone, with the locks and transactions they had."""

        def is_idle() -> bool:
            with contextlib.suppress(psycopg.OperationalError), self.connect(name) as admin:
                return not admin.execute(_FOREIGN_SESSIONS.encode(), (OWN_NAME,)).fetchall()
            return False

        until(is_idle)

    def url(self, name: str) -> str:
        """Where a database of it is; another one after a restart it is not."""
        return psycopg.conninfo.make_conninfo(self._handle.get_uri(), dbname=name)


_FOREIGN_SESSIONS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> %s
"""
