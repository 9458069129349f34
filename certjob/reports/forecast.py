"""What the coming nights will do if nobody renews: expiries, reminders, pauses and hides, week by week.

Only mentors whose next review lies within the time asked for are read; the rules say the rest, mentor by mentor.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Final
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision, Mentor, PauseChange, Reminder, Status
from certjob.domain.projection import coming_nights
from certjob.facts import reading
from certjob.mail.reminders import find_new_reminders
from certjob.review.days import looks_at_everybody
from certjob.review.plan import why_broken

MEASURES: Final = ("expiries", "reminders", "pauses", "hides")
"""What is counted: certificates that expire (the night after their last day stores it), reminders that become due for
the first time, mentors whom certjob pauses, mentors whom the portal is asked to hide."""

_Days = dict[str, Counter[date]]
"""Counts by day, for each measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Week:
    """What the nights of one ISO week will do, as far as it lies within the time asked for."""

    week: str
    """Such as ``2026-W11``."""
    starts_on: date
    ends_on: date
    expiries: int
    reminders: int
    pauses: int
    hides: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The coming nights, today's included."""

    today: date
    until: date
    """The last night, included."""
    weeks: tuple[Week, ...]
    broken: Mapping[UUID, str]
    """Mentors whose data break a rule; they are left out."""


def make_forecast(
    connection: Connection,
    *,
    today: date,
    days: int,
    organisation_id: UUID | None,
    on_progress: Callable[[int], None],
) -> Forecast:
    """Return what the nights of so many days will do, today's first, if no fact changes and every night runs.

    Reads one moment, writes nothing, takes no lock; works on a read-only connection. What the guards would hold back is
    counted as if somebody let it through.
    """
    until = today + timedelta(days=days - 1)
    counts: _Days = {measure: Counter() for measure in MEASURES}
    broken: dict[UUID, str] = {}
    done = 0
    with database.read_only_snapshot(connection):
        due_by = None if looks_at_everybody(connection, today) else until
        for read in reading.read_due(connection, due_by=due_by, organisation_id=organisation_id):
            broken |= read.broken | _count(connection, read.mentors, today=today, until=until, counts=counts)
            done += len(read.mentors)
            on_progress(done)
    return Forecast(today=today, until=until, weeks=tuple(_weeks(counts, today, until)), broken=broken)


def _count(
    connection: Connection, mentors: Iterable[Mentor], *, today: date, until: date, counts: _Days
) -> dict[UUID, str]:
    """Count what the nights do to these mentors; return those whose data break a rule.

    For whoever is not due yet, today's night changes nothing: that is what ``review_on`` says.
    """
    broken: dict[UUID, str] = {}
    due: dict[tuple[UUID, Reminder], date] = {}
    decisions: list[Decision] = []
    for mentor in mentors:
        try:
            nights = list(coming_nights(mentor, first=today, until=until))
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
    for key in find_new_reminders(connection, decisions):
        counts["reminders"][due[key]] += 1
    return broken


def _weeks(counts: _Days, today: date, until: date) -> Iterator[Week]:
    """Yield every week, those in which nothing happens too; the first and the last may be short."""
    starts_on = today
    while starts_on <= until:
        ends_on = min(starts_on + timedelta(days=6 - starts_on.weekday()), until)
        days = [starts_on + timedelta(days=number) for number in range((ends_on - starts_on).days + 1)]
        year, number, _ = starts_on.isocalendar()
        yield Week(
            week=f"{year}-W{number:02}",
            starts_on=starts_on,
            ends_on=ends_on,
            **{measure: sum(by_day[day] for day in days) for measure, by_day in counts.items()},
        )
        starts_on = ends_on + timedelta(days=1)
