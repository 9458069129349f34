"""Retention: what is done, old, and never read again may go; nothing open, nothing that a later run still asks for.

What each statement leaves, and why, stands above it in ``sql/queries/database/retention.sql``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
from psycopg import sql

from certjob import database
from certjob.database.connections import Connection
from certjob.database.statements import persist
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from certjob.stopping import StopFlag

LEAST_DAYS = 90
"""Nothing younger is ever deleted: it is longer than any lease and any wait, and than a reminder can be late."""
PAGE_ROWS = 2_000
"""Rows that are looked at in one transaction."""
_LOCK_TIMEOUT_MS = 500
"""Less than PostgreSQL's deadlock_timeout: whoever deletes mentors meanwhile, in their own order, is not the victim."""
_TRIES = 100

_AGE = re.compile(r"(?:([0-9]{1,3})y)?(?:([0-9]{1,4})m)?(?:([0-9]{1,4})w)?(?:([0-9]{1,5})d)?")

_COUNTS = {
    # Failures before the events that they are about.
    "sync_failures": "count_old_sync_failures",
    "portal_events": "count_old_portal_events",
    "transitions": "count_old_transitions",
    "reminders": "count_old_reminders",
    "digests": "count_old_digests",
    "job_runs": "count_old_job_runs",
}
"""What grows with every run, by its name in the report."""

# Around the condition of a count: what is counted is what goes. It is asked of the row itself, so that a row which
# somebody changes meanwhile is asked again.
_DELETE_PAGE = """
    WITH page AS MATERIALIZED (
        SELECT id FROM {table} WHERE {after} IS NULL OR id > {after} ORDER BY id LIMIT %(limit)s
    ), gone AS (
        DELETE FROM {table} AS r USING page WHERE r.id = page.id AND ({condition}) RETURNING r.id
    )
    SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM gone)
"""
_COUNT = re.compile(r"SELECT count\(\*\)\s+FROM (\w+) AS r\s+WHERE (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What was deleted, or would be."""

    before: datetime
    """What ended before this moment."""
    rows: dict[str, int]
    """By kind."""


def parse_age(text: str) -> str:
    """Return the PostgreSQL interval for an age such as ``3y``, ``18m`` (months), ``26w``, ``400d`` or ``1y6m``.

    Raises ConfigurationError.

    >>> parse_age("1y6m"), parse_age("26w")
    ('1 years 6 months', '26 weeks')
    """
    match = _AGE.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        message = f"--older-than {text[:40]!r} is not an age"
        raise ConfigurationError(message, next_step="give one such as 3y, 18m (months), 26w or 400d")
    units = zip(match.groups(), ("years", "months", "weeks", "days"), strict=True)
    return " ".join(f"{number} {unit}" for number, unit in units if number)


def prune(
    connection: Connection,
    age: str,
    *,
    today: date,
    zone: ZoneInfo,
    dry_run: bool,
    stop: StopFlag,
    on_progress: Callable[[int], None] | None = None,
) -> Pruning:
    """Delete what is done and older than this interval, page by page, each committed; with ``dry_run`` only count it.

    Raises ConfigurationError for an age of less than 90 days, and when the two clocks do not agree on the day: with a
    clock that is wrong by years, the memory of mails that are still due would go. StoppedBySignalError between pages.
    """
    before = _limit(connection, age, today=today, zone=zone)
    parameters: dict[str, object] = {"before": before, "before_on": before.date()}
    if dry_run:
        with database.read_only_snapshot(connection):
            parameters["kept"] = _kept_runs(connection)
            rows = {kind: database.fetch_value(connection, count, parameters) for kind, count in _COUNTS.items()}
        return Pruning(before=before, rows=rows)
    parameters["kept"] = _kept_runs(connection)
    rows = dict.fromkeys(_COUNTS, 0)
    for kind, count in _COUNTS.items():
        page = parameters | {"after": None, "limit": PAGE_ROWS}
        while True:
            page["after"], deleted = _delete_page(connection, kind, count, page, stop=stop)
            rows[kind] += deleted
            if on_progress:
                on_progress(sum(rows.values()))
            if page["after"] is None:
                break
    return Pruning(before=before, rows=rows)


def _limit(connection: Connection, age: str, *, today: date, zone: ZoneInfo) -> datetime:
    """Return the moment before which something must have ended, in the time zone."""
    try:
        ((now, before),) = database.fetch(connection, "find_limit_of_age", {"age": age, "zone": zone.key})
    except psycopg.DataError:
        message = "--older-than goes back before the calendar"
        raise ConfigurationError(message, next_step="give an age such as 3y") from None
    now, limit = now.astimezone(zone), datetime.fromtimestamp(before.timestamp(), zone)
    if abs((now.date() - today).days) > 1:
        message = f"today would be {today}, but the database says {now.date()}"
        raise ConfigurationError(message, next_step="correct the clock that is wrong")
    if (now.date() - limit.date()).days < LEAST_DAYS:
        message = (
            f"--older-than must be at least {LEAST_DAYS} days: what is younger may still be asked for "
            "(was this reminder sent, what did the portal confirm)"
        )
        raise ConfigurationError(message)
    return limit


def _kept_runs(connection: Connection) -> list[UUID]:
    """The runs that stay, however old; more than one for each kind of run, but never many."""
    return [row[0] for row in database.fetch(connection, "find_kept_job_runs")]


def _delete_page(
    connection: Connection, kind: str, count: str, parameters: dict[str, object], *, stop: StopFlag
) -> tuple[Any, int]:
    """Return the last key that was looked at, None at the end of the table, and how many rows went."""
    found = _COUNT.fullmatch(database.query(count).decode().strip())
    assert found  # noqa: S101 - each of the six is of this form
    table, condition = found.groups()
    key = "uuid" if kind == "job_runs" else "bigint"
    statement = sql.SQL(_DELETE_PAGE).format(
        table=sql.Identifier(table),
        condition=sql.SQL(condition),
        after=sql.SQL(f"%(after)s::{key}"),
    )

    def delete() -> tuple[Any, int]:
        stop.check()
        after, deleted = connection.execute(statement, parameters).fetchall()[0]
        return after, deleted

    try:
        return persist(connection, delete, lock_timeout_ms=_LOCK_TIMEOUT_MS, tries=_TRIES)
    except database.CONTENTION as error:
        what = kind.replace("_", " ")
        message = f"old {what} are locked by another session"
        raise DatabaseUnavailableError(
            message, next_step="what was deleted stays so, run it again when that one ends"
        ) from error
