"""`certjob status`: whether the nights run, what waits and for how long, and what the coming nights will look at."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.outbox.open_work import MAIL_KINDS, OpenWork, read_open_work
from certjob.review.attention import read_attention

RUNS_PER_COMMAND = 5
COMING_DAYS = 14

SILENCE = timedelta(minutes=30)
"""A run that has not finished and says nothing for so long has died. The longest that one rightly says nothing is the
answer of a mail server, 12 minutes, and the portal's Retry-After, 10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One line of ``job_runs``."""

    run_id: UUID
    command: str
    organisation: str | None
    """The only one that was reviewed; None = all."""
    host: str
    version: str
    as_of: date
    started_at: datetime
    last_seen_at: datetime
    finished_at: datetime | None
    outcome: str
    """``ok``, ``attention``, ``failed``, ``running``, or ``died``: it ended without a word."""
    lines: Sequence[str]
    """Why it failed, or what needs attention."""
    duration_seconds: float
    """How long it took, has been running up to now, or was heard of before it died."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodRun:
    """The last night over all organisations that came to its end; one that ends in the future is not good."""

    run_id: UUID
    finished_at: datetime
    age_seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComingNight:
    """How many mentors a night will look at."""

    on: date
    mentors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """Everything `certjob status` shows; the JSON document has it in this order."""

    now: datetime
    """By the database's clock."""
    today: date
    max_age_seconds: int
    last_good_run: GoodRun | None
    runs: Sequence[Run]
    """The newest first."""
    backlog: dict[str, OpenWork]
    """``portal_hides``, ``portal_shows``, ``reminders``, ``digests``."""
    coming: Sequence[ComingNight]
    """Today's first, with whoever is overdue."""
    alerts: dict[str, int]
    """How much `certjob alerts` shows of each kind."""
    acknowledged: int
    """How many alerts someone has acknowledged; they are counted nowhere else."""
    overdue: str
    """That no full run has finished for 26 hours, and what has ended since; empty if one has."""
    without_certificate: int
    """Active mentors who have never held a certificate that counts."""
    first_without_certificate: Sequence[str]
    """At most five of them, such as ``hlf M1042``."""
    mail_waits_until: datetime | None
    """When CERTJOB_MAIL_HOURS let it go; None: no mail waits for that."""

    @property
    def exit_code(self) -> int:
        """3 when no night has come to its end for too long, and while `certjob alerts` shows anything."""
        return 3 if self.stale or any(self.alerts.values()) else 0

    @property
    def stale(self) -> bool:
        """Whether no night has come to its end for too long, or ever."""
        return self.last_good_run is None or self.last_good_run.age_seconds > self.max_age_seconds


def read_status(
    connection: Connection,
    *,
    today: date,
    max_age: timedelta,
    mail_waits_until: datetime | None = None,
) -> SystemStatus:
    """Read it all as of one moment; writes nothing and works on a read-only server.

    ``mail_waits_until`` is when the next hours for mail begin; None: they last.
    """
    with database.read_only_snapshot(connection):
        open_work = read_open_work(connection)
        good_runs = database.fetch(connection, "read_last_good_run", into=GoodRun)
        runs = {"silence": SILENCE, "limit": RUNS_PER_COMMAND}
        attention = read_attention(connection, today=today)
        without_certificate, first_without_certificate = _find_without_certificate(connection, today)
        return SystemStatus(
            now=database.clock(connection),
            today=today,
            max_age_seconds=int(max_age.total_seconds()),
            last_good_run=good_runs[0] if good_runs else None,
            runs=database.fetch(connection, "list_last_runs", runs, into=Run),
            backlog=open_work,
            coming=_read_coming(connection, today),
            alerts=attention.numbers,
            acknowledged=attention.acknowledged,
            overdue=attention.overdue,
            without_certificate=without_certificate,
            first_without_certificate=first_without_certificate,
            mail_waits_until=mail_waits_until if any(open_work[kind].pending for kind in MAIL_KINDS) else None,
        )


def _find_without_certificate(connection: Connection, today: date) -> tuple[int, list[str]]:
    """Return how many there are, and the first of them."""
    optional_kinds = [row[0] for row in database.fetch(connection, "list_optional_kinds")]
    parameters = {"today": today, "optional_kinds": optional_kinds}
    rows = database.fetch(connection, "find_without_certificate", parameters)
    return (rows[0][1] if rows else 0), [row[0] for row in rows]


def _read_coming(connection: Connection, today: date) -> list[ComingNight]:
    parameters = {"today": today, "until": today + timedelta(days=COMING_DAYS)}
    counts = dict(database.fetch(connection, "count_coming_reviews", parameters))
    nights = (today + timedelta(days=number) for number in range(COMING_DAYS))
    return [ComingNight(on=night, mentors=counts.get(night, 0)) for night in nights]


def to_document(status: SystemStatus) -> dict[str, Any]:
    """Return the JSON document."""
    return {"outcome": "attention" if status.exit_code else "ok", "stale": status.stale} | asdict(status)
