"""Delete old finished rows that no later run reads. The database function ``certjob.prune`` selects them."""

import re
from collections.abc import Callable
from datetime import tzinfo
from functools import partial

import psycopg

from certjob import database
from certjob.database.clocks import read_clocks
from certjob.database.connections import Connection
from certjob.database.statements import persist
from certjob.errors import ConfigurationError
from certjob.stopping import StopFlag

_LOCK_TIMEOUT_MS = 500
"""Below PostgreSQL's deadlock_timeout, because a concurrent deletion of mentors takes precedence."""
_UNITS = {"y": "years", "m": "months", "w": "weeks", "d": "days"}


def parse_age(text: str) -> str:
    """Return the PostgreSQL interval for an age such as ``3y``, ``18m`` (months), ``26w`` or ``400d``.

    Raises ConfigurationError.
    """
    match = re.fullmatch("([0-9]{1,3})([ymwd])", text.strip().lower())
    if not match:
        message = f"--older-than {text[:40]!r} is not an age"
        raise ConfigurationError(message, next_step="give one such as 3y, 18m (months), 26w or 400d")
    return f"{match[1]} {_UNITS[match[2]]}"


def prune(
    connection: Connection,
    age: str,
    *,
    zone: tzinfo,
    stop: StopFlag,
    on_progress: Callable[[int], None] | None = None,
    row_limit: int = 2_000,
) -> int:
    """Delete finished rows older than this interval in committed batches, and return their number.

    Raises ConfigurationError for less than 90 days, StoppedBySignalError between two batches, and ClocksDisagreeError
    if the clocks show different days, because a wrong clock would delete the records of mails that are still due.
    """
    read_clocks(connection).require_same_day(zone)
    deleted, values = 0, {"age": age, "row_limit": row_limit}
    try:
        while batch := persist(
            connection,
            partial(database.fetch_value, connection, "prune_old_rows", values),
            lock_timeout_ms=_LOCK_TIMEOUT_MS,
        ):
            deleted += batch
            if on_progress:
                on_progress(deleted)
            stop.check()
    except psycopg.errors.InvalidParameterValue as error:
        message = f"--older-than must be at least 90 days: {error.diag.message_primary}"
        raise ConfigurationError(message) from error
    return deleted
