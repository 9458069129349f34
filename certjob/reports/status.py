"""`certjob status`: whether the nightly runs work, the backlog, and the coming reviews."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.alert_kinds import Kind, summarize
from certjob.domain.explanations import duration_words, number
from certjob.outbox.open_work import OpenWork, read_open_work
from certjob.page import GAP, Line, Table
from certjob.reports.exposure import Exposure, read_exposure
from certjob.review.attention import read_attention

RUNS_PER_COMMAND = 5
COMING_DAYS = 14
EXPOSURE_DAYS = 30
_MOST_RUNS = 7
"""Runs on a terminal."""
_BACKLOG = {"backlog": "Backlog", "open": "Open", "due": "Due", "waiting": "Later", "in_flight": "Busy"}
_BACKLOG |= {"blocked": "Blocked", "oldest_at": "Oldest"}
_RUNS = {"started_at": "Started", "command": "Command", "organisation": "Org", "outcome": "Outcome"}
_RUNS |= {"took": "Took", "host": "Host", "why": "Why"}

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
    hidden_by_hand: Sequence[dict[str, Any]]
    """Hides that someone has made by hand, and that no later reading has confirmed."""
    exposure: Exposure

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


def read_status(connection: Connection, *, today: date, zone: tzinfo = UTC, max_age: timedelta) -> SystemStatus:
    """Return the status. Reads one snapshot, also on a read-only server."""
    with database.read_only_snapshot(connection):
        backlog = read_open_work(connection)
        good_runs = database.fetch(connection, "read_last_good_run", into=GoodRun)
        attention = read_attention(connection, today=today)
        without_certificate = database.fetch(connection, "find_without_certificate")
        days = [today + timedelta(days=number) for number in range(COMING_DAYS)]
        until = {"today": today, "until": today + timedelta(days=COMING_DAYS)}
        reviews = dict(database.fetch(connection, "count_coming_reviews", until))
        limits = {"silence": SILENCE, "limit": RUNS_PER_COMMAND}
        now = database.clock(connection)
        month = now - timedelta(days=EXPOSURE_DAYS)
        return SystemStatus(
            now=now,
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
            hidden_by_hand=database.fetch(connection, "list_hidden_by_hand", into=dict),
            exposure=read_exposure(connection, since=month, today=today, zone=str(zone)),
        )


def why_attention(status: SystemStatus, *, zone: tzinfo) -> str | None:
    """Return why the command exits with 3, or None."""
    summary = summarize({kind: number for kind, number in status.alerts.items() if kind != Kind.NO_FULL_RUN})
    alerts = f"{summary}; see `certjob alerts`" if summary else ""
    stale = status.overdue or (_why_stale(status, zone=zone) if status.stale else "")
    return ". Also ".join(filter(None, [stale, alerts])) or None


def _why_stale(status: SystemStatus, *, zone: tzinfo) -> str:
    good = status.last_good_run
    if good is None:
        return "no nightly run has finished yet; run `certjob run`, and check that cron does so"
    age, limit = duration_words(good.age_seconds), duration_words(status.max_age_seconds)
    return (
        f"the last good run ended {age} ago ({_moment(good.finished_at, zone)}), more than {limit}; "
        "see how the last runs ended, whether cron runs, and `certjob check`"
    )


def status_page(status: SystemStatus, *, zone: tzinfo) -> Iterator[Line | Table]:
    """Yield the last good run, the backlog, the last runs, and other facts."""
    good = status.last_good_run
    when = f"{_moment(good.finished_at, zone)}, {duration_words(good.age_seconds)} ago" if good else "never"
    yield from (Line(when, head="last good run: "), GAP)
    yield Table([{"backlog": kind} | asdict(work) for kind, work in status.backlog.items()], _BACKLOG)
    yield GAP
    yield from (Table(_run_rows(status.runs), _RUNS, most=_MOST_RUNS), GAP)
    for name, text in _figures(status, zone):
        yield Line(text, head=f"{name}: ")


def _run_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return running and failed runs and the last of each command before the others, so that no screen omits them."""
    newest = {run.command: run for run in reversed(runs)}
    chosen = sorted(runs, key=lambda run: run.outcome in ("ok", "attention") and newest[run.command] is not run)
    words = ((run, duration_words(run.duration_seconds), "; ".join(run.lines)) for run in chosen)
    return [asdict(run) | {"took": took, "why": why} for run, took, why in words]


def _figures(status: SystemStatus, zone: tzinfo) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each fact below the tables."""
    tonight, coming = status.coming[0].mentors, sum(night.mentors for night in status.coming)
    yield "mentors to review", f"{tonight:,} today, {coming:,} within {len(status.coming)} days"
    if status.without_certificate:
        mentors, names = number(status.without_certificate, "active mentor"), list(status.first_without_certificate)
        more = ["…"] if status.without_certificate > len(names) else []
        yield "without a certificate", f"{mentors}, hidden on every portal: {', '.join(names + more)}"
    for hidden in status.hidden_by_hand:
        yield "hidden by hand", f"{hidden['mentor']}, confirmed by {hidden['by']}, not read since"
    if status.exposure.mentors:
        yield "exposure", f"{status.exposure.words} (last {EXPOSURE_DAYS} days)"
    if status.acknowledged:
        yield "acknowledged", f"{number(status.acknowledged, 'alert')}; see `certjob alerts --acknowledged`"


def _moment(at: datetime, zone: tzinfo) -> str:
    return f"{at.astimezone(zone):%Y-%m-%d %H:%M}"
