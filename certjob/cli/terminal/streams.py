"""Standard output and standard error of the command."""

import errno
import io
import os
import sys
from typing import Any


class _Stream(io.FileIO):
    """A stream whose reader may end first, as in ``certjob alerts | head``. The command continues normally."""

    def write(self, data: Any) -> int:
        """Write to the reader, if it still reads."""
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == _STDERR:
                _lost.append(error)
            elif error.errno not in _NO_READER:
                raise
            return len(data)


_NO_READER = (errno.EPIPE, errno.EIO)
"""A closed pipe, and a closed terminal, for example after a dropped connection."""
_STDERR = 2
_lost: list[OSError] = []
"""Errors of writes to standard error."""


def stderr_is_complete() -> bool:
    """Return whether every line on standard error was written. ``main`` replaces a closed stream by /dev/null."""
    sys.stderr.flush()
    return not _lost and getattr(sys.stderr, "name", "") != os.devnull


def forgiving(stream: Any) -> io.TextIOWrapper:
    """Return a stream that works if the reader ends early, or if its encoding does not have every letter."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def discard_results() -> None:
    """Discard the rest of stdout after a failed write, because the error line comes next."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
