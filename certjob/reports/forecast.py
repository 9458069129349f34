"""The changes that the coming runs will make if no one renews, by week."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, Final
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision, Mentor, PauseChange, Reminder, Status
from certjob.domain.projection import coming_runs
from certjob.facts import reading
from certjob.mail.reminders import find_new_reminders
from certjob.page import Table
from certjob.review.days import looks_at_everybody
from certjob.review.plan import why_broken

MEASURES: Final = ("expiries", "reminders", "pauses", "hides")
"""Certificates that a run stores as expired, new reminders, pauses by certjob, and hides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The weeks from ``today`` to ``until``, both included."""

    today: date
    until: date
    weeks: Sequence[dict[str, Any]]
    """The ISO weeks, their days that belong to the forecast, and their changes."""
    broken: Mapping[UUID, str]
    """Mentors with invalid data, who are not counted, and the reasons."""

    def page(self) -> Iterator[Table]:
        """Yield one row for each week."""
        keys = ("week", "starts_on", "ends_on", *MEASURES)
        yield Table(self.weeks, {key: key.capitalize().replace("_", " ") for key in keys}, most=len(self.weeks))


def make_forecast(
    connection: Connection,
    *,
    today: date,
    days: int,
    organisation_id: UUID | None,
    on_progress: Callable[[int], None],
) -> Forecast:
    """Return the changes of the runs on so many days, if no fact changes, no run is missed and no guard holds a change.

    Reads only mentors with a review in these days, in one snapshot and without locks.
    """
    dates = [today + timedelta(days=number) for number in range(days)]
    counts: Counter[tuple[str, date]] = Counter()
    broken: dict[UUID, str] = {}
    done = 0
    with database.read_only_snapshot(connection):
        due_by = None if looks_at_everybody(connection, today) else dates[-1]
        for read in reading.read_due(connection, due_by=due_by, organisation_id=organisation_id):
            broken |= read.broken
            counts.update(_find_changes(connection, read.mentors, today=today, until=dates[-1], broken=broken))
            done += len(read.mentors)
            on_progress(done)
    weeks = [(week, list(some)) for week, some in itertools.groupby(dates, key=lambda day: f"{day:%G-W%V}")]
    return Forecast(
        today=today,
        until=dates[-1],
        weeks=[
            {"week": week, "starts_on": some[0], "ends_on": some[-1]}
            | {measure: sum(counts[measure, day] for day in some) for measure in MEASURES}
            for week, some in weeks
        ],
        broken=broken,
    )


def _find_changes(
    connection: Connection, mentors: Iterable[Mentor], *, today: date, until: date, broken: dict[UUID, str]
) -> Iterator[tuple[str, date]]:
    """Yield the measure and the day of each change. Add mentors with invalid data to ``broken``."""
    due: dict[tuple[UUID, Reminder], date] = {}
    decisions: list[Decision] = []
    for mentor in mentors:
        try:
            nights = list(coming_runs(mentor, first=today, until=until))
        except Exception as error:  # noqa: BLE001 - one mentor must not prevent the forecast
            broken[mentor.id] = why_broken(error)
            continue
        for night in nights:
            decision, day = night.decision, night.day
            yield from (("expiries", day) for each in decision.transitions if each.to_status is Status.EXPIRED)
            if decision.pause is PauseChange.OPEN:
                yield "pauses", day
            if decision.push and not decision.visible:
                yield "hides", day
            if night.reminders:
                due.update(((mentor.id, reminder), day) for reminder in night.reminders)
                decisions.append(replace(decision, reminders=night.reminders))
    for key in find_new_reminders(connection, decisions, today=today):
        yield "reminders", due[key]
