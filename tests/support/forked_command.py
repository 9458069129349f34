"""The installed command without the half second of its imports: multiprocessing's fork server has made them.

What runs is a process of its own, with its own arguments, environment, folder, session and signals. Only the
interpreter's start is shared. Where that start is what a test is about, or the environment changes it (``LANG``,
``PYTHONPATH``, ``LD_PRELOAD``, …), the command is started in the ordinary way.
"""

import contextlib
import fcntl
import functools
import multiprocessing
import os
import pkgutil
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver, reduction
from multiprocessing.popen_forkserver import Popen
from pathlib import Path
from typing import Any
from unittest import mock

import certjob

_OWN_START = ("LANG", "LC_", "LD_", "PYTHON", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH", "TYPER_", "_TYPER_")
"""What the interpreter, or a library that is imported, reads only once."""
_LATE_IMPORTS = ("rich.live", "rich.progress", "rich.table", "jinja2.sandbox", "babel.dates", "encodings.idna")


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether the command would start in this environment as it does in cron's."""
    return not any(name.startswith(_OWN_START) for name in environment)


class ForkedCommand:
    """A running command; what tests use of ``subprocess.Popen``."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        streams: Sequence[int],
        alterations: Mapping[str, Any] | None,
    ) -> None:
        """``streams`` are file descriptors for stdin, stdout and stderr, the caller's to close."""
        self.args = ["certjob", *arguments]
        self.returncode: int | None = None
        self._reading = threading.Lock()
        request = (list(arguments), dict(environment), folder, alterations, [*map(_Passed, streams)])
        _start_server()
        # Not by start(), which would look after all the others, too: here each is waited for by its own tests.
        self._process = Popen(multiprocessing.get_context("forkserver").Process(target=_become, args=request))
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code, negative after a signal; several threads may wait. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not connection.wait([self._process.sentinel], timeout):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self._reading:
                self.returncode = self._process.poll()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its code is on the way
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Passed:
    """A file descriptor on its way to the child."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _received, (reduction.DupFd(self.number),)


def _received(passed: Any) -> int:
    number: int = passed.detach()
    return number


@functools.cache
def _start_server() -> None:
    """With cron's environment, once for each process of tests."""
    ours = [module.name for module in pkgutil.walk_packages(certjob.__path__, "certjob.")]
    forkserver.set_forkserver_preload([__name__, *(name for name in ours if "__main__" not in name), *_LATE_IMPORTS])
    with mock.patch.dict(os.environ, {"PATH": "/usr/bin:/bin"}, clear=True):
        forkserver.ensure_running()


def _become(
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    alterations: dict[str, Any] | None,
    streams: list[int],
) -> None:
    """Be the command that was asked for, in a session of its own."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = os.fdopen(0)  # multiprocessing has put another one in its place
    os.setsid()
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its line can be dropped
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv = [str(Path(sys.executable).with_name("certjob")), *arguments]
    if alterations is not None:
        from tests.support.processes import run_altered

        run_altered(alterations)
    from certjob.cli.entry import main

    main()
