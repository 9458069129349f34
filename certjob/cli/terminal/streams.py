"""Standard output and standard error as certjob writes to them."""

import errno
import io
import os
import sys
from typing import Any


class _Stream(io.FileIO):
    """A stream whose reader may go away, as in ``certjob alerts | head``: the command ends as if somebody had read."""

    def write(self, data: Any) -> int:
        """Write to the reader, if there is one."""
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == _STDERR:
                _lost.append(error)
            elif error.errno not in _NOBODY_READS:
                raise
            return len(data)


_NOBODY_READS = (errno.EPIPE, errno.EIO)
"""The pipe is closed; the terminal is gone, as after a dropped connection."""
_STDERR = 2
_lost: list[OSError] = []
"""Why something could not be written to standard error; no one can be told."""


def stderr_is_complete() -> bool:
    """Return whether everything that was printed to standard error could be written."""
    sys.stderr.flush()
    return not _lost


def forgiving(stream: Any) -> io.TextIOWrapper:
    """Return the same stream for every sort of reader: one that leaves early, and one that cannot show a name."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def discard_results() -> None:
    """Let everything else that goes to stdout go nowhere: the disk is full, and the command has to say so."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
