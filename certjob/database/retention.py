"""Retention: what is done, old, and never read again may go; nothing open, nothing that a later night still asks for.

What each statement leaves, and why, stands above it in ``sql/queries/database/retention.sql``.
"""

import re
from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, tzinfo
from uuid import UUID

from certjob import database
from certjob.database.connections import Connection
from certjob.database.statements import persist
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from certjob.stopping import StopFlag

LEAST_DAYS = 90
"""Nothing younger goes, whatever is asked for: more than any reminder can be late, any lease or any wait."""
PAGE_ROWS = 2_000
"""So many rows are looked at in one transaction."""
_LOCK_TIMEOUT_MS = 500
"""Less than PostgreSQL's deadlock_timeout: whoever deletes mentors meanwhile, in their own order, is not the victim."""
_TRIES = 100

_AGE = re.compile(r"(?:([0-9]{1,3})y)?(?:([0-9]{1,4})m)?(?:([0-9]{1,4})w)?(?:([0-9]{1,5})d)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """A time span in calendar units, as people write it in a rule about retention."""

    months: int
    days: int

    def before(self, now: datetime) -> datetime:
        """Return the moment so long before now; at the end of a shorter month, its last day.

        >>> from datetime import UTC
        >>> Age(months=36, days=0).before(datetime(2028, 2, 29, 3, tzinfo=UTC)).isoformat()
        '2025-02-28T03:00:00+00:00'
        """
        month = now.year * 12 + now.month - 1 - self.months
        year, month = divmod(month, 12)
        last_day = monthrange(max(year, 1), month + 1)[1]
        moved = date(year, month + 1, min(now.day, last_day)).toordinal() - self.days
        return datetime.combine(date.fromordinal(moved), now.timetz())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """One kind of row that grows with every night."""

    name: str
    """In the report."""
    count: str
    delete: str
    first_key: int | UUID = 0
    """Below every key."""


_TABLES = (
    # Failures before the events that they are about.
    _Table(name="sync_failures", count="count_old_sync_failures", delete="delete_old_sync_failures"),
    _Table(name="portal_events", count="count_old_portal_events", delete="delete_old_portal_events"),
    _Table(name="transitions", count="count_old_transitions", delete="delete_old_transitions"),
    _Table(name="reminders", count="count_old_reminders", delete="delete_old_reminders"),
    _Table(name="digests", count="count_old_digests", delete="delete_old_digests"),
    _Table(name="job_runs", count="count_old_job_runs", delete="delete_old_job_runs", first_key=UUID(int=0)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What was deleted, or would be."""

    before: datetime
    """What ended before this moment."""
    rows: dict[str, int]
    """By kind."""


def parse_age(text: str) -> Age:
    """Return the age in a text such as ``3y``, ``18m``, ``26w``, ``400d`` or ``1y6m``. Raises ConfigurationError.

    >>> parse_age("1y6m"), parse_age("26w")
    (Age(months=18, days=0), Age(months=0, days=182))
    """
    match = _AGE.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        message = f"--older-than {text[:40]!r} is no age; give one such as 3y, 18m (months), 26w or 400d"
        raise ConfigurationError(message)
    years, months, weeks, days = (int(part or 0) for part in match.groups())
    return Age(months=years * 12 + months, days=weeks * 7 + days)


def prune(
    connection: Connection,
    age: Age,
    *,
    today: date,
    zone: tzinfo,
    dry_run: bool,
    stop: StopFlag,
    on_progress: Callable[[int], None] | None = None,
) -> Pruning:
    """Delete what is done and older than this, page by page, each committed; with ``dry_run`` only count it.

    Raises ConfigurationError for an age of less than 90 days, and when the two clocks do not agree on the day: with a
    clock that is wrong by years, the memory of mails that are still due would go. StoppedBySignalError between pages.
    """
    now = database.clock(connection).astimezone(zone)
    if abs((now.date() - today).days) > 1:
        message = f"today would be {today}, but the database says {now.date()}; correct the clock that is wrong"
        raise ConfigurationError(message)
    before = _limit(age, now)
    parameters: dict[str, object] = {"before": before, "before_on": before.date()}
    if dry_run:
        with database.read_only_snapshot(connection):
            parameters["kept"] = _kept_runs(connection)
            rows = {table.name: database.fetch_value(connection, table.count, parameters) for table in _TABLES}
        return Pruning(before=before, rows=rows)
    parameters["kept"] = _kept_runs(connection)
    rows = {}
    for table in _TABLES:
        rows[table.name] = 0
        after: int | UUID | None = table.first_key
        while after is not None:
            after, deleted = _delete_page(
                connection, table, parameters | {"after": after, "limit": PAGE_ROWS}, stop=stop
            )
            rows[table.name] += deleted
            if on_progress:
                on_progress(sum(rows.values()))
    return Pruning(before=before, rows=rows)


def _limit(age: Age, now: datetime) -> datetime:
    try:
        before = age.before(now)
    except (ValueError, OverflowError):
        message = "--older-than goes back before the calendar; give an age such as 3y"
        raise ConfigurationError(message) from None
    if (now.date() - before.date()).days < LEAST_DAYS:
        message = (
            f"--older-than must be at least {LEAST_DAYS} days: what is younger may still be asked for "
            "(was this reminder sent, what did the portal confirm)"
        )
        raise ConfigurationError(message)
    return before


def _kept_runs(connection: Connection) -> list[UUID]:
    """The runs that stay, however old; more than one for each kind of run, but never many."""
    return [row[0] for row in database.fetch(connection, "find_kept_job_runs")]


def _delete_page(
    connection: Connection, table: _Table, parameters: dict[str, object], *, stop: StopFlag
) -> tuple[int | UUID | None, int]:
    """Return the last key that was looked at, None at the end of the table, and how many rows went."""

    def delete() -> tuple[int | UUID | None, int]:
        stop.check()
        after, deleted = database.fetch(connection, table.delete, parameters)[0]
        return after, deleted

    try:
        return persist(connection, delete, lock_timeout_ms=_LOCK_TIMEOUT_MS, tries=_TRIES)
    except database.CONTENTION as error:
        kind = table.name.replace("_", " ")
        message = f"old {kind} are held by another session; what was deleted stays so, run it again when that one ends"
        raise DatabaseUnavailableError(message) from error
