"""The format of log lines, and the configuration of ``logging``."""

import logging
import time
import traceback
from collections.abc import Iterator
from typing import Any

from certjob.redaction import without_people, without_secrets

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Formats a line with the time in UTC, the level, the sentence, and the ids and numbers in ``extra``."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        about = ", ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        if about:
            record = logging.makeLogRecord(vars(record) | {"msg": f"{record.getMessage()} ({about})", "args": ()})
        return without_secrets(super().format(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's
        """Return the traceback, without the rows that database errors quote."""
        return "\n".join(traceback_lines(ei[1]))


def traceback_lines(error: BaseException) -> Iterator[str]:
    """Yield the places where an error and its causes were raised.

    The DETAIL of a database error is left out, and addresses in texts, because they are data about people.
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from traceback_lines(cause)
        yield "which led to:"
    for frame in traceback.format_tb(error.__traceback__):
        yield from frame.rstrip("\n").splitlines()
    text = getattr(getattr(error, "diag", None), "message_primary", None) or str(error)
    yield f"{type(error).__qualname__}: {without_people(' '.join(text.split()))}"


def logs_steps() -> bool:
    """Return whether certjob logs each step, not only warnings."""
    return logging.getLogger("certjob").isEnabledFor(logging.INFO)


def set_up_logs(*, verbose: bool) -> None:
    """Write warnings and errors to stderr, or every line with ``verbose``."""
    handler = logging.StreamHandler()
    handler.setFormatter(TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    # psycopg warns of a statement that a signal interrupted. certjob's last line reports the signal.
    for name, level in (("certjob", logging.DEBUG if verbose else logging.WARNING), ("psycopg", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
