"""`certjob status`: whether the nightly runs work, the backlog, and the coming reviews."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.outbox.open_work import MAIL_KINDS, OpenWork, read_open_work
from certjob.review.attention import read_attention

RUNS_PER_COMMAND = 5
COMING_DAYS = 14
EXPOSURE_DAYS = 30

SILENCE = timedelta(minutes=30)
"""An unfinished run that has not reported for so long has died. The longest legitimate silences are 12 minutes, for an
answer of the mail server, and 10 minutes, for a Retry-After of the portal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A row of ``job_runs``."""

    run_id: UUID
    command: str
    organisation: str | None
    """None: all."""
    host: str
    version: str
    as_of: date
    started_at: datetime
    last_seen_at: datetime
    finished_at: datetime | None
    outcome: str
    """``ok``, ``attention``, ``failed``, ``running`` or ``died``."""
    lines: Sequence[str]
    """The reasons of a failure, or the alerts."""
    duration_seconds: float
    """Up to its end, up to now, or up to its last report before it died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodRun:
    """The last completed run over all organisations."""

    run_id: UUID
    finished_at: datetime
    age_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewDay:
    """The number of mentors due for review on a day."""

    on: date
    mentors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """How long someone was, or may have been, visible who must not be, in the last EXPOSURE_DAYS days."""

    mentors: int
    open: int
    """Exposures that last."""
    seconds: int
    """In all, in these days."""
    longest_seconds: int | None
    longest: str | None
    """The mentor of the longest one, such as ``hlf M1003``."""
    cause: str | None
    """The last failure of that mentor's push, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """The content of `certjob status`. docs/json.md describes the fields."""

    now: datetime
    """The time of the database server."""
    today: date
    max_age_seconds: int
    last_good_run: GoodRun | None
    runs: Sequence[Run]
    """The newest first."""
    backlog: dict[str, OpenWork]
    coming: Sequence[ReviewDay]
    """Today first, with all overdue mentors."""
    alerts: dict[str, int]
    """The number of alerts by kind, without acknowledged ones."""
    acknowledged: int
    overdue: str
    """The alert that no full run has finished for 26 hours, or empty."""
    without_certificate: int
    """The number of active mentors who have never had a certificate that counts."""
    first_without_certificate: Sequence[str]
    """At most five of them, for example ``hlf M1042``."""
    exposure: Exposure
    mail_waits_until: datetime | None
    """When queued mail can be sent by CERTJOB_MAIL_HOURS, or None if no mail waits for that."""

    @property
    def exit_code(self) -> int:
        """3 if the last good run is too old or there are alerts, otherwise 0."""
        return 3 if self.stale or any(self.alerts.values()) else 0

    @property
    def stale(self) -> bool:
        """Whether the last good run is too old, or there is none."""
        return self.last_good_run is None or self.last_good_run.age_seconds > self.max_age_seconds

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {"outcome": "attention" if self.exit_code else "ok", "stale": self.stale} | asdict(self)


def read_status(
    connection: Connection,
    *,
    today: date,
    zone: tzinfo = UTC,
    max_age: timedelta,
    mail_waits_until: datetime | None = None,
) -> SystemStatus:
    """Return the status. Reads one snapshot, also on a read-only server.

    ``mail_waits_until`` is the next beginning of CERTJOB_MAIL_HOURS, or None during these hours.
    """
    with database.read_only_snapshot(connection):
        backlog = read_open_work(connection)
        good_runs = database.fetch(connection, "read_last_good_run", into=GoodRun)
        attention = read_attention(connection, today=today)
        optional_kinds = [row[0] for row in database.fetch(connection, "list_optional_kinds")]
        without_certificate = database.fetch(
            connection, "find_without_certificate", {"today": today, "optional_kinds": optional_kinds}
        )
        days = [today + timedelta(days=number) for number in range(COMING_DAYS)]
        until = {"today": today, "until": today + timedelta(days=COMING_DAYS)}
        reviews = dict(database.fetch(connection, "count_coming_reviews", until))
        limits = {"silence": SILENCE, "limit": RUNS_PER_COMMAND}
        exposures = {"days": EXPOSURE_DAYS, "today": today, "zone": str(zone)}
        return SystemStatus(
            now=database.clock(connection),
            today=today,
            max_age_seconds=int(max_age.total_seconds()),
            last_good_run=good_runs[0] if good_runs else None,
            runs=database.fetch(connection, "list_last_runs", limits, into=Run),
            backlog=backlog,
            coming=[ReviewDay(on=day, mentors=reviews.get(day, 0)) for day in days],
            alerts=attention.numbers,
            acknowledged=attention.acknowledged,
            overdue=attention.overdue,
            without_certificate=without_certificate[0][1] if without_certificate else 0,
            first_without_certificate=[name for name, _ in without_certificate],
            exposure=database.fetch(connection, "read_exposure", exposures, into=Exposure)[0],
            mail_waits_until=mail_waits_until if any(backlog[kind].pending for kind in MAIL_KINDS) else None,
        )
