"""PostgreSQL servers of the tests' own: where their data lies, and one that asks for a password."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from certjob.database import embedded
from tests.support.waiting import until

MEMORY = Path("/dev/shm")  # noqa: S108 - Linux's file system in memory, which everybody may use
ROOM_BYTES = 3 * 2**30
"""What a run's servers use at most, several times over; a container's /dev/shm may have no more than 64 MB."""


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


@contextmanager
def guarded_login(*, password: str) -> Iterator[str]:
    """The URL, still without a password, of a login that needs this one, on a server of its own."""
    with (
        data_folder("guarded") as folder,
        embedded.server(folder / "postgresql") as url,
        psycopg.connect(url, autocommit=True) as admin,
    ):
        admin.execute(sql.SQL("CREATE ROLE guarded LOGIN PASSWORD {}").format(sql.Literal(password)))
        rules = folder / "postgresql" / "pg_hba.conf"
        rules.write_text("local all guarded scram-sha-256\n" + rules.read_text())
        admin.execute("SELECT pg_reload_conf()")
        guarded = psycopg.conninfo.make_conninfo(url, user="guarded")
        until(lambda: _asks_for_a_password(guarded), seconds=60)  # the server reads its rules anew when it comes to it
        yield guarded


def _asks_for_a_password(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError as error:
        return error.pgconn is not None and error.pgconn.needs_password
    return False
