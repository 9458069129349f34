"""What the coming nights will do if nobody renews: expiries, reminders, pauses and hides, week by week.

Only mentors whose next review lies within the time asked for are read; the rules say the rest, mentor by mentor.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final
from uuid import UUID, uuid4

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision, Mentor, PauseChange, Reminder, Status
from certjob.domain.projection import coming_nights
from certjob.facts import reading
from certjob.mail.reminders import CertificationReminderService
from certjob.review.days import looks_at_everybody
from certjob.review.plan import CHUNK_SIZE, why_broken

MEASURES: Final = ("expiries", "reminders", "pauses", "hides")
"""What is counted: certificates that expire (the night after their last day stores it), reminders that become due for
the first time, mentors whom certjob pauses, mentors whom the portal is asked to hide."""

_Days = dict[str, Counter[date]]
"""Counts by day, for each measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Week:
    """What the nights of one ISO week will do, as far as it lies within the time asked for."""

    name: str
    """Such as ``2026-W11``."""
    starts_on: date
    ends_on: date
    counts: dict[str, int]
    """By measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The coming nights, today's included."""

    today: date
    until: date
    """The last night, included."""
    weeks: tuple[Week, ...]
    broken: Mapping[UUID, str]
    """Mentors whose data break a rule; they are left out."""

    @property
    def total(self) -> dict[str, int]:
        """The counts of all weeks, by measure."""
        return {measure: sum(week.counts[measure] for week in self.weeks) for measure in MEASURES}


def make_forecast(
    connection: Connection,
    *,
    today: date,
    days: int,
    organisation_id: UUID | None,
    on_progress: Callable[[int], None] | None = None,
) -> Forecast:
    """Return what the nights of so many days will do, today's first, if no fact changes and every night runs.

    Reads one moment, writes nothing, takes no lock; works on a read-only connection. What the guards would hold back is
    counted as if somebody let it through.
    """
    until = date.fromordinal(min(today.toordinal() + days - 1, date.max.toordinal()))
    counts: _Days = {measure: Counter() for measure in MEASURES}
    broken: dict[UUID, str] = {}
    done = 0
    with database.read_only_snapshot(connection):
        reminders = CertificationReminderService(connection, run_id=uuid4())  # it is only asked what is new
        for chunk, unread in _read_reviewed(connection, today=today, until=until, organisation_id=organisation_id):
            broken |= unread | _count(chunk, until=until, counts=counts, reminders=reminders)
            done += len(chunk)
            if on_progress:
                on_progress(done)
    return Forecast(today=today, until=until, weeks=tuple(_weeks(counts, today, until)), broken=broken)


def _read_reviewed(
    connection: Connection, *, today: date, until: date, organisation_id: UUID | None
) -> Iterator[tuple[list[tuple[Mentor, date]], dict[UUID, str]]]:
    """Yield the mentors who are reviewed by then, in chunks, each with the first day of it; and the broken ones."""
    everybody = looks_at_everybody(connection, today)
    after_review, after_id = reading.BEFORE_EVERY_MENTOR
    while True:
        rows = database.fetch(
            connection,
            "read_coming_reviews",
            {
                "today": today,
                "until": until,
                "everybody": everybody,
                "after_review": after_review,
                "after_id": after_id,
                "organisation_id": organisation_id,
                "limit": CHUNK_SIZE,
            },
        )
        if not rows:
            return
        after_id, after_review = rows[-1][:2]
        first = {row[0]: row[2] for row in rows}
        read = reading.read(connection, list(first), lock=False)
        yield [(mentor, first[mentor.id]) for mentor in read.mentors], read.broken


def _count(
    chunk: Iterable[tuple[Mentor, date]], *, until: date, counts: _Days, reminders: CertificationReminderService
) -> dict[UUID, str]:
    """Count what the nights do to a chunk; return the mentors whose data break a rule."""
    broken: dict[UUID, str] = {}
    due: dict[tuple[UUID, Reminder], date] = {}
    decisions: list[Decision] = []
    for mentor, first in chunk:
        try:
            nights = list(coming_nights(mentor, first=first, until=until))
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are counted and the mentor is named
            broken[mentor.id] = why_broken(error)
            continue
        for night in nights:
            decision, day = night.decision, night.day
            expired = sum(change.to_status is Status.EXPIRED for change in decision.transitions)
            if expired:
                counts["expiries"][day] += expired
            if decision.pause is PauseChange.OPEN:
                counts["pauses"][day] += 1
            if decision.push and not decision.visible:
                counts["hides"][day] += 1
            if night.reminders:
                due.update(((mentor.id, reminder), day) for reminder in night.reminders)
                decisions.append(replace(decision, reminders=night.reminders))
    for key in reminders.find_new(decisions):
        counts["reminders"][due[key]] += 1
    return broken


def _weeks(counts: _Days, today: date, until: date) -> Iterator[Week]:
    """Yield every week, those in which nothing happens too; the first and the last may be short."""
    starts_on = today
    while True:
        ends_on = min(date.fromordinal(min(_sunday(starts_on), date.max.toordinal())), until)
        days = [starts_on + timedelta(days=number) for number in range((ends_on - starts_on).days + 1)]
        year, number, _ = starts_on.isocalendar()
        yield Week(
            name=f"{year}-W{number:02}",
            starts_on=starts_on,
            ends_on=ends_on,
            counts={measure: sum(by_day[day] for day in days) for measure, by_day in counts.items()},
        )
        if ends_on == until:
            return
        starts_on = ends_on + timedelta(days=1)


def _sunday(day: date) -> int:
    return day.toordinal() + 7 - day.isoweekday()
