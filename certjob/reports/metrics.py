"""The metrics file: what Prometheus' node_exporter picks up from its textfile folder.

Everything in it is read from the database, so that `run` and `deliver`, on one machine or on several, write the same
file and none loses what the other wrote.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from certjob import __version__, database
from certjob.database import Connection
from certjob.errors import Outcome
from certjob.outbox.open_work import OpenWork, read_open_work
from certjob.review.attention import Attention, Kind, read_attention

_STATES = ("due", "waiting", "in_flight", "blocked")


@dataclass(frozen=True, slots=True, kw_only=True)
class _LastRun:
    """What ``job_runs`` says about one command; times are Unix seconds."""

    command: str
    finished_at: float
    duration_seconds: float
    outcome: str
    counts: dict[str, Any]
    succeeded_at: float | None


def read_metrics(connection: Connection, *, today: date) -> bytes:
    """Return the file's contents; nothing in them names a person."""
    with database.read_only_snapshot(connection):
        runs = database.fetch(connection, "read_run_metrics", into=_LastRun)
        open_work = read_open_work(connection)
        now = database.clock(connection)
        readings = database.fetch(connection, "read_last_portal_reading")
        unresolved_failures = database.fetch_value(connection, "count_unresolved_failures")
        attention = read_attention(connection, today=today)
    page = _Page()
    _describe_runs(page, runs)
    _describe_reading(page, readings)
    _describe_open_work(page, open_work, now_seconds=now.timestamp())
    unresolved = page.gauge("unresolved_failures", "Portal pushes that failed and have not succeeded since.")
    unresolved.set(unresolved_failures)
    _describe_attention(page, attention)
    page.gauge("info", "The certjob that wrote this file.", "version").labels(__version__).set(1)
    return generate_latest(page)


class _Page(CollectorRegistry):
    """The metrics of one file."""

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"certjob_{name}", text, labels, registry=self)


def _describe_attention(page: _Page, attention: Attention) -> None:
    numbers = attention.numbers
    alerts = page.gauge("alerts", "What certjob alerts shows, by kind.", "kind")
    for kind, number in numbers.items():
        alerts.labels(kind).set(number)
    mentors = page.gauge("held_mentors", "Mentors whom the guards hold back.", "organisation", "what")
    for each in attention.held:
        mentors.labels(each.organisation, each.what).set(each.mentors)
    waiting = page.gauge("waiting_mail", "Mails that have waited for more than a day.", "what")
    waiting.labels("reminders").set(numbers[Kind.WAITING_REMINDERS])
    waiting.labels("digests").set(numbers[Kind.WAITING_DIGESTS])
    failed = page.gauge("failed_reminders", "Reminders that could not be delivered and still matter.")
    failed.set(numbers[Kind.FAILED_REMINDERS])
    refused = page.gauge("failed_digests", "Coordinators whose daily mail was refused.")
    refused.set(numbers[Kind.FAILED_DIGESTS])


def _describe_runs(page: _Page, runs: Sequence[_LastRun]) -> None:
    ended = "When a run last came to its end, outcome ok or attention."
    success = page.gauge("last_success_timestamp_seconds", ended, "command")
    last = page.gauge("last_run_timestamp_seconds", "When a run last ended, whatever its outcome.", "command")
    duration = page.gauge("last_run_duration_seconds", "How long the last run took.", "command")
    outcome = page.gauge("last_run_outcome", "1 for the outcome of the last run.", "command", "outcome")
    items = page.gauge("last_run_items", "What the last run did, by outcome.", "command", "what", "outcome")
    for run in runs:
        if run.succeeded_at is not None:
            success.labels(run.command).set(run.succeeded_at)
        last.labels(run.command).set(run.finished_at)
        duration.labels(run.command).set(run.duration_seconds)
        for possible in Outcome:
            outcome.labels(run.command, possible).set(possible == run.outcome)
        for what, name, number in _items(run.counts):
            items.labels(run.command, what, name).set(number)


def _describe_reading(page: _Page, readings: Sequence[tuple[Any, ...]]) -> None:
    """What the portal showed when it was last read; nothing as long as it never was."""
    for read_at, differences in readings:
        when = page.gauge("portal_read_timestamp_seconds", "When what the portal shows was last read to its end.")
        when.set(read_at.timestamp())
        wrong = "What that reading found to be otherwise than certjob wants, before anything was corrected."
        found = page.gauge("portal_differences", wrong, "what")
        for what, number in differences.items():
            found.labels(what).set(number)


def _items(counts: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Yield the numbers of a run's document: ``("reminders", "sent", 12)``."""
    for what, figures in counts.items():
        if isinstance(figures, dict):
            for name, number in figures.items():
                if isinstance(number, int | float) and name != "pending":  # what is open is told below, as of now
                    yield what, name, number


def _describe_open_work(page: _Page, open_work: dict[str, OpenWork], *, now_seconds: float) -> None:
    items = page.gauge("backlog_items", "What waits, by state.", "what", "state")
    age = page.gauge("oldest_pending_age_seconds", "For how long the oldest has waited; 0: none.", "what")
    for what, waiting in open_work.items():
        for state in _STATES:
            items.labels(what, state).set(getattr(waiting, state))
        oldest_at = waiting.oldest_at
        age.labels(what).set(max(now_seconds - oldest_at.timestamp(), 0.0) if oldest_at else 0)
