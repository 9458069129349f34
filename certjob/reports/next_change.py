"""The next change of one mentor: by a run, or by a delivery of queued work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Final

from certjob.database import Connection
from certjob.domain import explanations, rules
from certjob.domain.explanations import day_words, distance_words
from certjob.domain.models import Mentor, PauseChange
from certjob.domain.projection import ComingRun, coming_runs
from certjob.mail.reminders import find_new_reminders
from certjob.reports.logged_reminders import LoggedReminder
from certjob.review.days import looks_at_everybody
from certjob.review.guards import MassChangeGuard


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPush:
    """A push that the portal has not confirmed yet."""

    visible: bool
    status: str
    rounds: int
    is_claimed: bool
    next_attempt_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The next run or delivery with a change, if no fact changes."""

    on: date
    at: datetime | None
    """The time of a retry, or None for the run of that day or the next delivery."""
    when: str
    what: Sequence[str]


HELD_BACK: Final = "held back: "
"""The beginning of the text about a change that a guard holds back."""
_TODAY = "today, when `certjob run` runs"
_Held = tuple[str | None, str | None]
"""Why a run today holds the changes of this mentor, and the new reminders."""
_NOTHING_HELD: _Held = (None, None)


def find_next(
    connection: Connection,
    mentor: Mentor,
    *,
    today: date,
    now: datetime,
    review_on: date | None,
    has_portal: bool,
    push: OpenPush | None,
    reminders: Sequence[LoggedReminder],
) -> tuple[Next | None, list[str]]:
    """Return the next change, and a line for each hold that a run today has for this mentor.

    ``review_on`` is the day of the next review, or None. Times are in the zone of ``now``.
    """
    everybody, held = looks_at_everybody(connection, today), _NOTHING_HELD
    first = today if everybody else review_on
    run = _find_next_run(connection, mentor, today=today, first=first)
    occasions = []
    if run is not None:
        when = _TODAY
        if run.day == today:
            held = _ask_guard(connection, mentor, today=today, everybody=everybody)
        else:
            when = f"on {day_words(run.day, today)}, {distance_words(run.day, today)}"
        what = list(_run_words(run, mentor=mentor, today=today, held=held))
        occasions.append(Next(on=run.day, at=None, when=when, what=what))
    if first == today and push and not has_portal and not held[0]:
        what = ["the queued push is withdrawn, because the organisation has no portal"]
        occasions.append(Next(on=today, at=None, when=_TODAY, what=what))
    if not any(each.on == today for each in occasions):  # a run today replaces or delivers the queued work
        occasions += _find_deliveries(mentor, push if has_portal else None, reminders, today=today, now=now)
    return _first(occasions), list(dict.fromkeys(filter(None, held)))


def _ask_guard(connection: Connection, mentor: Mentor, *, today: date, everybody: bool) -> _Held:
    guard = MassChangeGuard(connection, today=today, everybody=everybody)
    guard.examine(mentor.organisation.id)
    decision = rules.decide(replace(mentor, due_by_calendar=mentor.due_by_calendar and not everybody), today)
    new, hold = find_new_reminders(connection, [decision]), guard.held.get(mentor.organisation.id)
    line = hold.line if hold else None
    return line if guard.hold_of(decision) else None, line if guard.held_reminders_of(decision, new) else None


def _find_next_run(connection: Connection, mentor: Mentor, *, today: date, first: date | None) -> ComingRun | None:
    """Return the first run with a change, without the reminders that are in the log already."""
    runs = list(coming_runs(mentor, first=first)) if first else []
    decisions = [replace(run.decision, reminders=run.reminders) for run in runs]
    new = {reminder for _, reminder in find_new_reminders(connection, decisions)}
    told = (replace(run, reminders=tuple(reminder for reminder in run.reminders if reminder in new)) for run in runs)
    return next((run for run in told if run.does_something), None)


def _run_words(run: ComingRun, *, mentor: Mentor, today: date, held: _Held) -> Iterator[str]:
    """Yield the changes of a run, in its order."""
    certificates, decision = {certificate.id: certificate for certificate in mentor.certificates}, run.decision
    changes = [
        explanations.transition_words(change, certificates[change.certificate_id], today)
        for change in decision.transitions
    ]
    if decision.pause is not None:
        changes.append("certjob pauses the mentor" if decision.pause is PauseChange.OPEN else "certjob lifts its pause")
    if decision.new_last_day:
        changes.append(f"the portal gets the new last day, {day_words(decision.certified_until, today)}")
    elif decision.push:
        changes.append(f"the portal is asked to {'show' if decision.visible else 'hide'} the mentor")
    for text in changes:
        yield f"{HELD_BACK}{text}" if held[0] else text
    for reminder in run.reminders:
        text = explanations.reminder_name(reminder, today)
        yield f"{HELD_BACK}{text}" if any(held) else text


def _find_deliveries(
    mentor: Mentor, push: OpenPush | None, reminders: Sequence[LoggedReminder], *, today: date, now: datetime
) -> Iterator[Next]:
    """Yield the delivery of the open push and of the queued reminders."""

    def delivery(row: OpenPush | LoggedReminder, text: str) -> Next:
        at = row.next_attempt_at.astimezone(now.tzinfo)
        if row.is_claimed or at <= now:
            when = "today, with the next `certjob run` or `certjob deliver`"
            return Next(on=today, at=None, when=when, what=[text])
        on = max(at.date(), today)
        day = "today" if on == today else f"on {day_words(on, today)}"
        return Next(on=on, at=at, when=f"{day}, at {at:%H:%M} or soon after", what=[text])

    if push is not None and push.status == "pending":
        again, verb = " again" if push.rounds else "", "show" if push.visible else "hide"
        yield delivery(push, f"the portal is asked{again} to {verb} the mentor")
    for row in reminders:
        if row.status == "pending":
            queued = delivery(row, f"the queued {explanations.reminder_name(row.reminder, today)}")
            cancelled = rules.cancel_reason(row.reminder, mentor, queued.on)
            outcome = f"is cancelled: {cancelled}" if cancelled else "is sent"
            yield replace(queued, what=[f"{queued.what[0]} {outcome}"])


def _first(occasions: Sequence[Next]) -> Next | None:
    """Return the first occasion, with the changes of all that happen at the same time."""
    if not occasions:
        return None
    first = min(occasions, key=lambda each: (each.on, each.at.timestamp() if each.at else 0))
    together = (each.what for each in occasions if (each.on, each.at) == (first.on, first.at))
    return replace(first, what=[text for what in together for text in what])
