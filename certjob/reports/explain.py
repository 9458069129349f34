"""`certjob explain`: one mentor's facts, what the rules make of them today, and what happens next.

Everything is read in one snapshot, without a lock. The page and the JSON document show the same values.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, tzinfo
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import explanations, rules
from certjob.domain.models import Mentor, PauseChange, Status
from certjob.domain.projection import ComingNight, coming_nights
from certjob.errors import BrokenMentorError, UnknownMentorError
from certjob.facts import reading
from certjob.mail.reminders import find_new_reminders
from certjob.reports.alerts import Alert, read_alerts
from certjob.reports.logged_reminders import LoggedReminder, read_logged_reminders
from certjob.review.days import last_run_date, looks_at_everybody
from certjob.review.guards import REMINDERS, MassChangeGuard


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """The mentor: one row of ``read_explained_mentor``."""

    id: UUID
    member_no: str
    full_name: str | None
    email: str | None
    left_at: datetime | None
    dynamics_contact_id: UUID | None
    organisation: str
    organisation_name: str
    review_is_due: bool
    review_on: date | None
    """None: at once, or never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedCertificate:
    """A certificate, and what the rules make of it today."""

    id: UUID
    kind: str
    optional: bool
    issued_on: date
    expires_on: date
    days_left: int
    revoked_at: datetime | None
    status: Status
    because: str
    stored_status: Status
    stored_on: date | None
    """None: not yet, or longer ago than the audit is kept."""
    no_reminder_because: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """A pause, open or lifted: one row of ``read_pause_history``."""

    reason: str
    actor: str
    paused_at: datetime
    lifted_at: datetime | None
    lifted_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPush:
    """A push that is not confirmed yet: one row of ``read_open_push``."""

    visible: bool
    moves: bool
    """Only the last visible day moves."""
    status: str
    """``pending`` or ``blocked``."""
    rounds: int
    """How often this value was tried."""
    is_claimed: bool
    next_attempt_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Portal:
    """What the portal should show, what it confirmed and what it showed: one row of ``read_portal_history``."""

    has_portal: bool
    wanted: bool | None
    """None: unknown, so the next review pushes the right value."""
    visible_until: date | None
    """The last visible day, if the mentor should be visible and has been reviewed."""
    confirmed: bool | None
    confirmed_at: datetime | None
    read_at: datetime | None
    was_shown: bool | None
    """Whether it showed the contact then; None: not read, or the mentor has no contact."""
    resolved_failures: int
    push: OpenPush | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """The next thing that happens if no fact changes: one run, or one delivery."""

    on: date
    at: datetime | None
    """The time of a retry; None: that day's run, or the next delivery."""
    when: str
    what: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What is known of one mentor; the fields are the keys of ``certjob explain --json``."""

    today: date
    now: datetime
    """By the database's clock."""
    mentor: Person
    active: bool
    certified: bool
    without_certificate: bool
    certified_because: Sequence[str]
    last_run_on: date | None
    """The day of the last finished run over all organisations."""
    held: Sequence[str]
    """What the guards hold back for the organisation."""
    next: Next | None
    alerts: Sequence[Alert]
    """What `certjob alerts` shows of this mentor."""
    certificates: Sequence[ExplainedCertificate]
    pauses: Sequence[Pause]
    """Open ones first."""
    reminders: Sequence[LoggedReminder]
    portal: Portal | None
    """None: the organisation has no portal, and nothing was ever pushed."""

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document. It is also the copy of their data that a mentor may ask for."""
        return {"outcome": "ok"} | asdict(self) | {"alerts": [alert.to_document() for alert in self.alerts]}


def explain(connection: Connection, mentor_id: UUID, *, today: date, zone: tzinfo) -> Explanation:
    """Return what is known of a mentor; sentences have times in ``zone``.

    Raises UnknownMentorError, and BrokenMentorError for rows beyond the bounds of the schema.
    """
    parameters = {"mentor_id": mentor_id, "today": today}
    with database.read_only_snapshot(connection):
        people = database.fetch(connection, "read_explained_mentor", parameters, into=Person)
        read = reading.read(connection, [mentor_id], lock=False)
        if mentor_id in read.broken:
            message = f"mentor {mentor_id} is broken: {read.broken[mentor_id]}"
            raise BrokenMentorError(message)
        if not people or not read.mentors:
            message = f"mentor {mentor_id} does not exist any more"
            raise UnknownMentorError(message)
        person, mentor = people[0], read.mentors[0]
        now, reminders = database.clock(connection), read_logged_reminders(connection, mentor_id)
        portal = Portal(
            push=next(iter(database.fetch(connection, "read_open_push", parameters, into=OpenPush)), None),
            **database.fetch(connection, "read_portal_history", parameters, into=dict)[0],
        )
        everybody = looks_at_everybody(connection, today)
        first = today if everybody or person.review_is_due else person.review_on
        run = _find_next_run(connection, mentor, first=first)
        runs_today = run is not None and run.day == today
        held = _ask_guard(connection, mentor, today=today, everybody=everybody) if runs_today else (None, None)
        occasions = list(_deliveries(portal, reminders, mentor=mentor, today=today, now=now, zone=zone))
        what = list(_run_words(run, mentor=mentor, today=today, held=held)) if run else []
        if first == today and portal.push and not portal.has_portal and not held[0]:
            withdrawn = "the queued push is withdrawn, because the organisation has no portal"
            what = [*(what if runs_today else ()), withdrawn]
            runs_today = True
        if runs_today:  # it replaces or delivers what is queued
            occasions = [Next(on=today, at=None, when="today, when `certjob run` runs", what=what)]
        elif run:
            on = f"on {explanations.day_words(run.day, today)}, {explanations.distance_words(run.day, today)}"
            occasions.append(Next(on=run.day, at=None, when=on, what=what))
        return Explanation(
            today=today,
            now=now,
            mentor=person,
            active=not (mentor.left or mentor.open_pauses),
            certified=not (rules.lapsed_certificates(mentor, today) or rules.holds_nothing(mentor, today)),
            without_certificate=rules.holds_nothing(mentor, today),
            certified_because=list(explanations.why_certified(mentor, today)),
            last_run_on=last_run_date(connection),
            held=[line for line in held if line],
            next=_first(occasions),
            alerts=read_alerts(connection, today=today, mentor_id=mentor_id),
            certificates=list(_read_certificates(connection, mentor, today=today, zone=zone)),
            pauses=database.fetch(connection, "read_pause_history", parameters, into=Pause),
            reminders=reminders,
            portal=portal if portal.has_portal or portal.confirmed is not None or portal.push else None,
        )


def _read_certificates(
    connection: Connection, mentor: Mentor, *, today: date, zone: tzinfo
) -> Iterator[ExplainedCertificate]:
    rows = database.fetch(connection, "read_certificate_notes", {"mentor_id": mentor.id})
    notes = {certificate_id: (revoked_at, stored_on) for certificate_id, revoked_at, stored_on in rows}
    for certificate in sorted(mentor.certificates, key=lambda each: (each.kind, each.issued_on, each.expires_on)):
        revoked_at, stored_on = notes[certificate.id]
        revoked_on = revoked_at.astimezone(zone).date() if revoked_at else None
        yield ExplainedCertificate(
            id=certificate.id,
            kind=certificate.kind,
            optional=certificate.kind in mentor.organisation.optional_kinds,
            issued_on=certificate.issued_on,
            expires_on=certificate.expires_on,
            days_left=(certificate.expires_on - today).days,
            revoked_at=revoked_at,
            status=rules.status_of(certificate, mentor, today),
            because=explanations.why_status(certificate, mentor, today, revoked_on=revoked_on),
            stored_status=certificate.status,
            stored_on=stored_on,
            no_reminder_because=explanations.why_no_reminder(certificate, mentor, today),
        )


def _find_next_run(connection: Connection, mentor: Mentor, *, first: date | None) -> ComingNight | None:
    """Return the first run that does something for this mentor, with the reminders that the log does not have yet."""
    runs = list(coming_nights(mentor, first=first)) if first else []
    decisions = [replace(run.decision, reminders=run.reminders) for run in runs]
    new = {reminder for _, reminder in find_new_reminders(connection, decisions)}
    told = (replace(run, reminders=tuple(reminder for reminder in run.reminders if reminder in new)) for run in runs)
    return next((run for run in told if run.does_something), None)


_Held = tuple[str | None, str | None]
"""Why a run today holds back this mentor's change, or the organisation's reminders."""


def _ask_guard(connection: Connection, mentor: Mentor, *, today: date, everybody: bool) -> _Held:
    guard = MassChangeGuard(connection, today=today, everybody=everybody)
    guard.examine(mentor.organisation.id)
    held = guard.hold_of(rules.decide(mentor, today))
    reminders = guard.held.get((mentor.organisation.id, REMINDERS))
    return held.line if held else None, reminders.line if reminders else None


def _run_words(run: ComingNight, *, mentor: Mentor, today: date, held: _Held) -> Iterator[str]:
    """Yield what a run does, in its order."""
    certificates, decision = {certificate.id: certificate for certificate in mentor.certificates}, run.decision
    changes = [
        explanations.transition_words(change, certificates[change.certificate_id], today)
        for change in decision.transitions
    ]
    if decision.pause is not None:
        changes.append("certjob pauses the mentor" if decision.pause is PauseChange.OPEN else "certjob lifts its pause")
    if decision.moved_from is not None:
        changes.append(f"the portal gets the new last day, {explanations.day_words(decision.certified_until, today)}")
    elif decision.push:
        changes.append(f"the portal is asked to {'show' if decision.visible else 'hide'} the mentor")
    for text in changes:
        yield f"held back: {text}" if held[0] else text
    for reminder in run.reminders:
        text = explanations.reminder_words(reminder, today)
        yield f"held back: {text}" if any(held) else text


def _deliveries(
    portal: Portal, reminders: Sequence[LoggedReminder], *, mentor: Mentor, today: date, now: datetime, zone: tzinfo
) -> Iterator[Next]:
    """Yield the open push and the queued reminders, each at its time; today, without a time, if it is due."""

    def delivery(row: OpenPush | LoggedReminder, text: str) -> Next:
        at = row.next_attempt_at.astimezone(zone)
        if row.is_claimed or at <= now:
            when = "today, with the next `certjob run` or `certjob deliver`"
            return Next(on=today, at=None, when=when, what=[text])
        on = max(at.date(), today)
        day = "today" if on == today else f"on {explanations.day_words(on, today)}"
        return Next(on=on, at=at, when=f"{day}, at {at:%H:%M} or soon after", what=[text])

    if portal.has_portal and portal.push is not None and portal.push.status == "pending":
        again, verb = "again " if portal.push.rounds else "", "show" if portal.push.visible else "hide"
        text = f"the portal is asked {again}to {verb} the mentor"
        yield delivery(portal.push, f"the portal gets the new last day {again}".rstrip() if portal.push.moves else text)
    for row in reminders:
        if row.status == "pending":
            queued = delivery(row, f"the queued {explanations.reminder_words(row.reminder, today)}")
            cancelled = rules.cancel_reason(row.reminder, mentor, queued.on)
            outcome = f"is cancelled: {cancelled}" if cancelled else "is sent"
            yield replace(queued, what=[f"{queued.what[0]} {outcome}"])


def _first(occasions: Sequence[Next]) -> Next | None:
    """Return the first occasion with everything that happens on it."""
    if not occasions:
        return None
    first = min(occasions, key=lambda each: (each.on, each.at.timestamp() if each.at else 0))
    together = (each.what for each in occasions if (each.on, each.at) == (first.on, first.at))
    return replace(first, what=[text for what in together for text in what])
