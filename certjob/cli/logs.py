"""The formats of log lines, and the configuration of ``logging``."""

import json
import logging
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from certjob.redaction import without_people, without_secrets

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Formats a line with the time in UTC, the level, the sentence, and the ids and numbers in ``extra``."""

    converter = time.gmtime  # type: ignore[assignment]
    default_time_format = "%Y-%m-%d %H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text."""
        about = ", ".join(f"{key}={value}" for key, value in _extras(record).items() if key not in ("event", "command"))
        if about:
            record = logging.makeLogRecord(vars(record) | {"msg": f"{record.getMessage()} ({about})", "args": ()})
        return without_secrets(super().format(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's
        """Return the traceback, without the rows that database errors quote."""
        return "\n".join(traceback_lines(ei[1]))


class JsonFormatter(TextFormatter):
    """Formats a JSON object per line: time, level, run_id, event, message, and the ids and numbers in ``extra``.

    ``event`` is a stable name for searches, ``message`` a sentence. Neither names a person.
    """

    def __init__(self, *, run_id: UUID | None = None) -> None:
        super().__init__()
        self._run_id = run_id

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        extras = _extras(record)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **({"run_id": str(self._run_id)} if self._run_id else {}),
            "event": extras.pop("event", "log"),
            "message": record.getMessage(),
            **extras,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        line = {key: without_secrets(value) if isinstance(value, str) else value for key, value in line.items()}
        return json.dumps(line, ensure_ascii=False, default=str)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


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


def writes_json() -> bool:
    """Return whether certjob's log lines are JSON."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger("certjob").handlers)


def logs_steps() -> bool:
    """Return whether certjob logs each step, not only warnings."""
    return logging.getLogger("certjob").isEnabledFor(logging.INFO)


def log_configuration(*, verbose: bool, log_format: str, run_id: UUID | None = None) -> dict[str, Any]:
    """Return the logging configuration: warnings and errors on stderr, or every line with ``verbose``."""
    level = "DEBUG" if verbose else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"()": TextFormatter, "format": "%(asctime)s %(levelname)s %(message)s"},
            "json": {"()": JsonFormatter, "run_id": run_id},
        },
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": log_format}
        },
        "loggers": {
            "certjob": {"level": level, "handlers": ["stderr"], "propagate": False},
            # psycopg warns of a statement that a signal interrupted. certjob's last line reports the signal.
            "psycopg": {"level": "ERROR", "handlers": ["stderr"], "propagate": False},
        },
    }
