"""The command as a fork of a process that has imported everything, which saves half a second.

The fork has its own arguments, environment, folder, session and signals. If the environment changes the start of the
interpreter (``LANG``, ``PYTHONPATH``, …), the command must start in the ordinary way.
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
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.popen_forkserver import Popen
from pathlib import Path
from typing import Any
from unittest import mock

import certjob

_OWN_START = ("LANG", "LC_", "LD_", "PYTHON", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH", "TYPER_", "_TYPER_")
"""Variables that the interpreter or an imported library reads only once."""
_LATE_IMPORTS = ("rich.live", "rich.progress", "rich.table", "jinja2.sandbox", "babel.dates", "encodings.idna")


def can_fork(environment: Mapping[str, str]) -> bool:
    """Return whether the environment leaves the start of the interpreter as it is."""
    return not any(name.startswith(_OWN_START) for name in environment)


class ForkedCommand:
    """A running command, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        streams: Sequence[int],
        alterations: Mapping[str, Any] | None,
    ) -> None:
        """``streams`` are file descriptors for stdin, stdout and stderr, which the caller closes."""
        self.args = ["certjob", *arguments]
        self.returncode: int | None = None
        self._reading = threading.Lock()
        passed = [connection.Connection(os.dup(stream)) for stream in streams]  # the child receives file descriptors
        request = (list(arguments), dict(environment), folder, alterations, passed)
        _start_server()
        # Process.start() would also wait for all other children.
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
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _start_server() -> None:
    ours = [module.name for module in pkgutil.walk_packages(certjob.__path__, "certjob.")]
    forkserver.set_forkserver_preload([__name__, *(name for name in ours if "__main__" not in name), *_LATE_IMPORTS])
    with mock.patch.dict(os.environ, {"PATH": "/usr/bin:/bin"}, clear=True):
        forkserver.ensure_running()


def _become(
    arguments: list[str],
    environment: dict[str, str],
    folder: Path,
    alterations: dict[str, Any] | None,
    streams: list[connection.Connection],
) -> None:
    """Run the command in this process, in a new session, whose terminal can send SIGHUP."""
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = os.fdopen(0)  # multiprocessing has replaced it
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if the tests run under nohup
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
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
