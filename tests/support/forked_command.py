"""The installed command without the half second of its imports: a process that has made them forks for each run.

What runs is a process of its own, with its own arguments, environment, folder, terminal and signals. Only the
interpreter's start is shared. Where that start is what a test is about, or the environment changes it (``LANG``,
``PYTHONPATH``, ``LD_PRELOAD``, …), the command is started in the ordinary way.

This file is a script, too: the process that forks.
"""

import atexit
import contextlib
import fcntl
import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import IO, Any

_MOST_BYTES = 1 << 20
"""Of one request: arguments and environment."""
_WIDTH = 12
"""Of a number in the status pipe: the process id, and at the end the exit code."""
_OWN_START = ("LANG", "LC_", "LD_", "PYTHON", "FORCE_COLOR", "PY_COLORS", "TERMINAL_WIDTH", "TYPER_", "_TYPER_")
"""What the interpreter, or a library that is imported, reads only once."""


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether the command would start in this environment as it does in cron's."""
    return sys.platform == "linux" and not any(name.startswith(_OWN_START) for name in environment)


class ForkedCommand:
    """A running command; what tests use of ``subprocess.Popen``."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: str | os.PathLike[str],
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        new_session: bool = False,
        alterations: Mapping[str, Any] | None = None,
    ) -> None:
        """``stdin`` and the others are file descriptors, the caller's to close; without: nothing to read, pipes."""
        self.args = ["certjob", *arguments]
        self.returncode: int | None = None
        self._status, status = os.pipe()
        weakref.finalize(self, os.close, self._status)
        self._reading = threading.Lock()
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "folder": os.fspath(folder),
            "new_session": new_session,
            "alterations": alterations,
        }
        opened = [status]
        self.stdout, self.stderr = None, None
        if stdin is None:
            opened.append(stdin := os.open(os.devnull, os.O_RDONLY))
        if stdout is None:
            self.stdout, stdout = _pipe(opened)
        if stderr is None:
            self.stderr, stderr = _pipe(opened)
        try:
            socket.send_fds(_server(), [json.dumps(request).encode()], [stdin, stdout, stderr, status])
        finally:
            for descriptor in opened:
                os.close(descriptor)
        self.pid = int(os.read(self._status, _WIDTH))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code, negative after a signal. Raises subprocess.TimeoutExpired.

        Several threads may wait: the pipe stays readable for those who come too late for the number.
        """
        if self.returncode is None:
            status = select.poll()
            status.register(self._status, select.POLLIN)
            if not status.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            with self._reading:
                if self.returncode is None:
                    self.returncode = int(os.read(self._status, _WIDTH) or -signal.SIGKILL)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its code is on the way
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "ForkedCommand":
        return self

    def __exit__(self, *_error: object) -> None:
        self.wait()
        for stream in (self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def _pipe(opened: list[int]) -> tuple[IO[str], int]:
    reading, writing = os.pipe()
    opened.append(writing)
    return os.fdopen(reading), writing


@functools.cache
def _server() -> socket.socket:
    """Start the process that forks, with cron's environment, once for each process of tests."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = subprocess.Popen(
        [sys.executable, "-P", __file__, str(its.fileno())],
        env={"PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        pass_fds=[its.fileno()],
        start_new_session=True,
    )
    its.close()

    def end() -> None:
        ours.close()  # it ends when nobody can ask any more
        process.wait(10)

    atexit.register(end)
    return ours


def _import_all() -> None:
    import certjob

    for module in pkgutil.walk_packages(certjob.__path__, "certjob."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("rich.live", "rich.progress", "rich.table", "jinja2.sandbox", "babel.dates", "encodings.idna"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a child copies no page only because the collector has looked at it


def _serve(control: socket.socket) -> dict[str, Any]:
    """Fork for each request, and tell of each end; returns in the child, with what it is to run."""
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for ready, _ in selector.select():
                if ready.data is not None:
                    child, status = ready.data
                    _tell(status, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                    selector.unregister(ready.fd)
                    os.close(ready.fd)
                    os.close(status)
                    continue
                message, descriptors, _flags, _address = socket.recv_fds(control, _MOST_BYTES, 4)
                if not message:
                    os._exit(0)
                child = os.fork()
                if child:
                    *streams, status = descriptors
                    for stream in streams:
                        os.close(stream)
                    selector.register(os.pidfd_open(child), selectors.EVENT_READ, data=(child, status))
                    _tell(status, child)
                    continue
                for number, stream in enumerate(descriptors[:3]):
                    os.dup2(stream, number)
                others = [number for key in selector.get_map().values() if key.data for number in (key.fd, key.data[1])]
                for descriptor in (*descriptors, *others):
                    os.close(descriptor)
                control.close()
                request: dict[str, Any] = json.loads(message)
                return request


def _tell(status: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(status, f"{number:{_WIDTH}}".encode())


def _become(request: Mapping[str, Any]) -> None:
    """Be the command that was asked for."""
    if request["new_session"]:
        os.setsid()
        if os.isatty(0):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its line can be dropped
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr or stream.isatty())  # type: ignore[union-attr]
    sys.argv = [os.path.join(os.path.dirname(sys.executable), "certjob"), *request["arguments"]]  # noqa: PTH118, PTH120
    if request["alterations"] is not None:
        from tests.support.processes import run_altered

        run_altered(request["alterations"])
    from certjob.cli.entry import main

    main()


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup make test` has it ignored, and certjob would respect that
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _import_all()
        ordered = _serve(asked)
    _become(ordered)
