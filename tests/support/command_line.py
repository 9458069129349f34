"""The command: in this process, as a process that a test can stop, and on a terminal."""

import contextlib
import io
import logging
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from signal import SIGTERM, Signals
from tempfile import TemporaryFile
from typing import Any
from unittest import mock
from zoneinfo import ZoneInfo

import typer
from rich.console import Console

from certjob.cli import entry
from certjob.cli.app import app
from certjob.cli.output import Output
from certjob.outbox import http_client
from certjob.stopping import StopFlag
from tests.conftest import installed_command
from tests.support.forked_command import ForkedCommand, can_fork
from tests.support.waiting import until

SECRET = "planted-Hemmelighet-7"
"""Part of every password and key of the tests; no output may contain it."""

WITHIN_SECONDS = 10.0
"""A signal ends certjob within this time."""

Finished = subprocess.CompletedProcess[str]

Process = subprocess.Popen[str] | ForkedCommand


def today() -> date:
    """Return the command's date."""
    return datetime.now(UTC).astimezone(ZoneInfo("Europe/Oslo")).date()


def all_commands(command: Any = None, name: str = "certjob") -> Iterator[tuple[str, Any]]:
    """Yield every command and every group with its full name."""
    command = command or typer.main.get_command(app)
    yield name, command
    for child_name, child in getattr(command, "commands", {}).items():
        yield from all_commands(child, f"{name} {child_name}")


def commands() -> dict[str, set[str]]:
    """Return the options of every command by its full name."""
    leaves = {name: command.params for name, command in all_commands() if not hasattr(command, "commands")}
    return {name: {opt for each in params for opt in each.opts if opt[0] == "-"} for name, params in leaves.items()}


def assert_one_line(result: Finished, *phrases: str, code: int, command: str = "certjob run") -> str:
    """Check that stderr is one line with the command and these phrases, without a traceback or a secret."""
    said = result.stderr
    assert (result.returncode, said.count("\n")) == (code, 1), result
    assert said.startswith(f"{command}: "), result
    for phrase in phrases:
        assert phrase in said, result
    assert_no_secret(result)
    return said


def assert_no_secret(result: Finished) -> None:
    for word in (SECRET, "Traceback"):
        assert word not in result.stdout + result.stderr, result


def run_in_process(*arguments: str, environment: Mapping[str, str], folder: Path, given: bytes = b"") -> Finished:
    """Run the command in this process, which takes a tenth of the time. ``given`` is its standard input."""
    out, err = io.StringIO(), io.StringIO()
    verifying: Any = http_client.verifying_context
    if "SSL_CERT_FILE" in environment:  # certjob creates one SSL context per process
        verifying = verifying.__wrapped__
    logger = logging.getLogger("certjob")
    kept = logger.handlers[:], logger.propagate, logger.level
    try:
        with (
            mock.patch.dict(os.environ, environment, clear=True),
            mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(given))),
            mock.patch.object(http_client, "verifying_context", verifying),
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = entry.run(arguments, stop=StopFlag())
    finally:
        logger.handlers[:], logger.propagate = kept[:2]
        logger.setLevel(kept[2])
    return Finished(arguments, code, out.getvalue(), err.getvalue())


class Child:
    """A running command that prints to files."""

    def __init__(self, process: Process, *, stdout: int, stderr: int) -> None:
        self.process = process
        self._stdout, self._stderr = stdout, stderr

    def wait_until_frozen(self) -> None:
        """Wait until SIGSTOP has stopped all of its threads."""
        threads = Path(f"/proc/{self.process.pid}/task")
        until(lambda: all(") T " in (thread / "stat").read_text() for thread in threads.iterdir()), seconds=60)

    def signal(self, number: Signals = SIGTERM) -> None:
        assert self.process.poll() is None, "it ended before the signal"
        self.process.send_signal(number)

    def finish(self, *, timeout_seconds: float = 60) -> Finished:
        """Wait for its end and return its output."""
        code = self.process.wait(timeout_seconds)
        return Finished(self.process.args, code, _content(self._stdout), _content(self._stderr))

    def stop_within(self, seconds: float = WITHIN_SECONDS, number: Signals = SIGTERM) -> Finished:
        """Send the signal, and check that the command ends within this time."""
        began = time.monotonic()
        self.signal(number)
        result = self.finish()
        took = time.monotonic() - began
        assert took <= seconds, f"it took {took:.1f} s"
        return result


def _content(file: int) -> str:
    """Return the content of a file whose offset belongs to the writer."""
    return os.pread(file, os.fstat(file).st_size, 0).decode()


@contextmanager
def started(
    *arguments: str,
    environment: Mapping[str, str],
    folder: Path,
    program: Sequence[str] = (),
    **more: Any,
) -> Iterator[Child]:
    """Start the command, or another ``program``, in the background; kill it at the end of the block.

    More named arguments are file descriptors for ``stdin``, ``stdout`` or ``stderr``, and the alterations of
    ``tests.support.processes``.
    """
    with Path(os.devnull).open("rb") as empty, TemporaryFile() as printed, TemporaryFile() as said:
        streams: dict[str, Any] = {"stdin": empty.fileno(), "stdout": printed.fileno(), "stderr": said.fileno()}
        streams |= {name: more.pop(name) for name in streams if name in more}
        if more or (not program and can_fork(environment)):
            how: dict[str, Any] = {"streams": [*streams.values()], "alterations": more or None}
            process: Process = ForkedCommand(arguments, environment=environment, folder=folder, **how)
        else:
            command = [*(program or [str(installed_command())]), *arguments]
            process = subprocess.Popen(command, env=dict(environment), cwd=folder, text=True, **streams)
        try:
            yield Child(process, stdout=printed.fileno(), stderr=said.fileno())
        finally:
            process.kill()
            process.wait()


def on_terminal(
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    columns: int = 100,
    program: Sequence[str] = (),
) -> tuple[int, str]:
    """Run the command, or another ``program``, on a pseudo-terminal; return its exit code and the text on it."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, columns))
    streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
    looks = {"TERM": "xterm-256color", "COLUMNS": str(columns)} | dict(environment)
    shown = bytearray()
    with started(*arguments, environment=looks, folder=folder, program=program, **streams) as child:
        os.close(slave)
        with contextlib.suppress(OSError):  # Linux reports the end of the last writer
            while select.select([master], [], [], 60)[0]:
                shown += os.read(master, 65536)
        code = child.finish().returncode
    os.close(master)
    return code, shown.decode().replace("\r\n", "\n")


_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>]")


def without_escapes(text: str) -> str:
    """Return the text without colours and other terminal sequences."""
    return _ESCAPE.sub("", text)


def terminal(columns: int) -> tuple[Output, io.StringIO]:
    """Return an output on a terminal of this size, without colours, and its text."""
    output, shown = Output(quiet=False), io.StringIO()
    output.on_terminal = True
    size: dict[str, Any] = {"width": columns, "height": 25, "_environ": {"TERM": "xterm"}}
    output.out = Console(file=shown, force_terminal=True, color_system=None, emoji=False, highlight=False, **size)
    return output, shown


def flat(text: str) -> str:
    """Return the text without line ends."""
    return " ".join(text.split())


def assert_in_order(text: str, *phrases: str) -> None:
    places = [text.find(phrase) for phrase in phrases]
    assert -1 not in places, (phrases[places.index(-1)], text)
    assert places == sorted(places), text
