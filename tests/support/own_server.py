"""The tests' own PostgreSQL servers: where their data lies, and one that may be stopped hard."""

import atexit
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from psycopg import conninfo, sql

from certjob import database
from certjob.database import Connection, embedded, migrations
from tests.support.waiting import until

MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's file system in memory, which everybody may use
ROOM_BYTES = 3 * 2**30
"""What a run's servers use at most, several times over; a container's /dev/shm may have no more than 64 MB."""
TEMPLATE = "migrated"
OWN_NAME = "harness"
"""How the sessions of ``Cluster.connect`` call themselves; all others are certjob's."""


def data_parent() -> Path:
    """Where to put data directories: in memory, where there is room; else the system's temporary folder.

    Every test has a database of its own, a copy of some 400 files, which costs seven times as much on a disk.
    """
    return MEMORY if _has_room(MEMORY) else Path(tempfile.gettempdir())


def _has_room(memory: Path) -> bool:
    try:
        system = os.statvfs(memory)
        available = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line)
    except (OSError, StopIteration):  # another system
        return False
    return min(system.f_bavail * system.f_frsize, int(available.split()[1]) * 1024) >= ROOM_BYTES


@contextmanager
def data_folder(purpose: str) -> Iterator[Path]:
    """A folder for servers; it is gone afterwards.

    Never one of pytest's: as root the server is another user, and whenever some other pytest starts on the machine it
    closes all that root's pytests have. The path is short: a Unix socket's may have some 100 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"certjob-{purpose}-", dir=data_parent()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def leave_on_sigterm() -> None:
    """Let SIGTERM end this process through its context managers, so that its servers end, too."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))


class Cluster:
    """A PostgreSQL that may be stopped with ``immediate``, and databases that are copies; a context manager."""

    def __init__(self, folder: Path, **settings: str) -> None:
        """``folder`` must be reachable for the unprivileged user that root's PostgreSQL becomes.

        Without settings no commit waits for a disk: what the system has outlives a killed server, if not a power cut.
        """
        self.folder = folder
        self._settings = settings or {"fsync": "off", "full_page_writes": "off"}
        self._handle: Any = None

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

    def make(self, name: str, template: str) -> None:
        """A copy of a database; by file, which the other strategy writes to the log, page by page."""
        self._administer("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)

    @contextmanager
    def fresh_database(self, name: str, *, template: str = TEMPLATE) -> Iterator[str]:
        """The URL of a copy, which is dropped at the end; of a migrated one without rows, if no other is named."""
        self.make(name, template)
        self._administer("ALTER DATABASE {} SET search_path = certjob, public", name)
        try:
            yield self.url(name)
        finally:
            self._administer("DROP DATABASE {} WITH (FORCE)", name)

    def _administer(self, statement: str, *names: str) -> None:
        with self.connect("postgres", statement_timeout="1h") as admin:
            admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def connect(self, name: str, *, statement_timeout: str = "30s") -> Connection:
        """A session of the harness; none outlives a restart, so they are short."""
        options = f"-c statement_timeout={statement_timeout} -c lock_timeout=20s"
        named: dict[str, Any] = {"application_name": OWN_NAME, "options": options}
        return Connection.connect(self.url(name), autocommit=True, prepare_threshold=None, **named)

    def url(self, name: str) -> str:
        """Where a database of it is, also after a restart; as the superuser."""
        return conninfo.make_conninfo(self._handle.get_uri(), dbname=name)
