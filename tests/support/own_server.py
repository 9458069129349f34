"""The tests' own PostgreSQL servers: their data directories, and a server that a test may stop."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from psycopg import conninfo, sql

from certjob import database
from certjob.database import Connection, embedded, migrations
from tests.support.waiting import until

MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's file system in memory, which every user may write
NEEDED_BYTES = 3 * 2**30
"""Several times the use of one run."""
TEMPLATE = "migrated"


def data_parent() -> Path:
    """Return where data directories go: in memory if there is space, because each test copies some 400 files."""
    has_space = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= NEEDED_BYTES
    return MEMORY if has_space else Path(tempfile.gettempdir())


@contextmanager
def data_folder(purpose: str) -> Iterator[Path]:
    """Yield a folder for servers, which is deleted at the end.

    It is not one of pytest's: PostgreSQL is another user if the tests run as root, and each start of pytest closes
    root's folders. The path is short, because the path of a Unix socket has at most about 100 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"certjob-{purpose}-", dir=data_parent()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leave_on_sigterm() -> None:
    """Let SIGTERM end this process through its context managers, so that its servers end as well."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))


class Cluster:
    """A PostgreSQL server that may be stopped, and databases that are copies of a template; a context manager."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """The unprivileged user of root's PostgreSQL must be able to reach ``folder``. By default fsync is off."""
        self.folder = folder
        self._settings = settings or {"fsync": "off", "full_page_writes": "off"}
        self._server: embedded.EmbeddedServer | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.start()
        with self.connect("postgres") as admin:
            for name, value in self._settings.items():
                admin.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            admin.execute("SELECT pg_reload_conf()")
        self.make(TEMPLATE, "template0")
        with database.connect(self.url(TEMPLATE)) as connection:
            migrations.migrate(connection)
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the server unless it runs."""
        self._server = embedded.start(self.folder / "postgresql")

    def stop(self) -> None:
        """Stop the server with ``immediate``: it ends every session, and recovers at the next start."""
        pid_file = self.folder / "postgresql" / "postmaster.pid"
        with contextlib.suppress(FileNotFoundError):
            os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGQUIT)
        until(lambda: not pid_file.exists())
        if self._server is not None:
            self._server.leave()
            self._server = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def make(self, name: str, template: str) -> None:
        """Copy a database, file by file, because the other strategy writes every page to the log."""
        self._administer("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)

    @contextmanager
    def fresh_database(self, name: str, *, template: str = TEMPLATE) -> Iterator[str]:
        """Yield the URL of a copy, which is dropped at the end."""
        self.make(name, template)
        self._administer("ALTER DATABASE {} SET search_path = certjob, public", name)
        try:
            yield self.url(name)
        finally:
            self._administer("DROP DATABASE {} WITH (FORCE)", name)

    def _administer(self, statement: str, *names: str) -> None:
        with self.connect("postgres") as admin:
            admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def connect(self, name: str) -> Connection:
        """Open a session, which does not survive a restart."""
        return Connection.connect(self.url(name), autocommit=True)

    def url(self, name: str) -> str:
        """Return the superuser's URL of a database, which stays the same after a restart."""
        return conninfo.make_conninfo(embedded.url(self.folder / "postgresql"), dbname=name)
