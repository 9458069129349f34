"""Where the data of the tests' own PostgreSQL servers lies."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
