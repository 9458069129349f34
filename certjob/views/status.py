"""`certjob status`: whether the nights run, what waits and for how long, and what the next two weeks will look at."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.outbox.open_work import MAIL_KINDS, OpenWork, read_open_work

RUNS_PER_COMMAND = 5
COMING_DAYS = 14


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

    @property
    def took(self) -> timedelta:
        """How long it took, or has been seen so far."""
        return max((self.finished_at or self.last_seen_at) - self.started_at, timedelta())


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodRun:
    """The last night over all organisations that came to its end."""

    run_id: UUID
    finished_at: datetime
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A push that failed and has not succeeded since."""

    mentor_id: UUID
    member_no: str
    organisation: str
    visible: bool
    kind: str
    attempts: int
    error: str
    created_at: datetime
    last_failed_at: datetime
    unresolved: int
    """How many there are, this one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """Everything `certjob status` tells."""

    now: datetime
    """By the database's clock."""
    today: date
    last_good_run: GoodRun | None
    max_age: timedelta
    runs: Sequence[Run]
    """The newest first."""
    open_work: dict[str, OpenWork]
    """``portal_hides``, ``portal_shows``, ``reminders``, ``digests``."""
    coming: dict[date, int]
    """How many mentors the nights of the next 14 days will look at, today's first."""
    oldest_failure: Failure | None
    failed_reminders: int
    failed_digests: int
    without_certificate: int
    mail_waits_until: datetime | None
    """When CERTJOB_MAIL_HOURS let it go; None: no mail waits for that."""

    @property
    def stale(self) -> bool:
        """Whether no night has come to its end for too long, or ever."""
        return self.last_good_run is None or self.last_good_run.age > self.max_age


def read_status(
    connection: Connection, *, today: date, max_age: timedelta, mail_waits_until: datetime | None = None
) -> SystemStatus:
    """Read it all as of one moment; writes nothing and works on a read-only server.

    ``mail_waits_until`` is when the next hours for mail begin; None: they last.
    """
    with database.read_only_snapshot(connection):
        open_work = read_open_work(connection)
        good_runs = database.fetch(connection, "read_last_good_run", into=GoodRun)
        failures = database.fetch(connection, "read_oldest_failure", into=Failure)
        return SystemStatus(
            now=database.clock(connection),
            today=today,
            last_good_run=good_runs[0] if good_runs else None,
            max_age=max_age,
            runs=database.fetch(
                connection, "list_last_runs", {"silence": SILENCE, "limit": RUNS_PER_COMMAND}, into=Run
            ),
            open_work=open_work,
            coming=_read_coming(connection, today),
            oldest_failure=failures[0] if failures else None,
            failed_reminders=database.fetch_value(connection, "count_failed_reminders", {"today": today}),
            failed_digests=database.fetch_value(connection, "count_failed_digests"),
            without_certificate=_count_without_certificate(connection, today),
            mail_waits_until=mail_waits_until if any(open_work[kind].pending for kind in MAIL_KINDS) else None,
        )


def _count_without_certificate(connection: Connection, today: date) -> int:
    optional_kinds = [row[0] for row in database.fetch(connection, "list_optional_kinds")]
    parameters = {"today": today, "optional_kinds": optional_kinds}
    return int(database.fetch_value(connection, "count_without_certificate", parameters))


def _read_coming(connection: Connection, today: date) -> dict[date, int]:
    until = today + timedelta(days=COMING_DAYS)
    counts = dict(database.fetch(connection, "count_coming_reviews", {"today": today, "until": until}))
    days = [today + timedelta(days=number) for number in range(COMING_DAYS)]
    return {day: counts.get(day, 0) for day in days}


def to_document(status: SystemStatus) -> dict[str, Any]:
    """Return the JSON document."""
    good, failure = status.last_good_run, status.oldest_failure
    return {
        "outcome": "attention" if status.stale else "ok",
        "now": status.now,
        "today": status.today,
        "stale": status.stale,
        "max_age_seconds": int(status.max_age.total_seconds()),
        "last_good_run": good
        and {
            "run_id": good.run_id,
            "finished_at": good.finished_at,
            "age_seconds": int(good.age.total_seconds()),
        },
        "runs": [asdict(run) | {"duration_seconds": round(run.took.total_seconds(), 3)} for run in status.runs],
        "backlog": {kind: asdict(waiting) for kind, waiting in status.open_work.items()},
        "coming": [{"on": day, "mentors": number} for day, number in status.coming.items()],
        "unresolved_failures": failure.unresolved if failure else 0,
        "oldest_failure": failure and {name: value for name, value in asdict(failure).items() if name != "unresolved"},
        "failed_reminders": status.failed_reminders,
        "failed_digests": status.failed_digests,
        "without_certificate": status.without_certificate,
        "mail_waits_until": status.mail_waits_until,
    }


SILENCE = timedelta(minutes=30)
"""A run that has not finished and says nothing for so long has died. The longest that one rightly says nothing is the
answer of a mail server, 12 minutes, and the portal's Retry-After, 10."""
