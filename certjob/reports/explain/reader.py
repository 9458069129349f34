"""Reading one mentor's whole story: the facts, what the rules make of them today, what was sent, and what comes next.

All of one moment, without a lock. What comes next is what the nights will do: the same rules, the same guards.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime, tzinfo
from typing import Any
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import explanations, rules
from certjob.domain.addresses import parse_address
from certjob.domain.models import Mentor, PauseChange
from certjob.domain.projection import ComingNight, coming_nights
from certjob.errors import BrokenMentorError, UnknownMentorError
from certjob.facts import reading
from certjob.mail.reminders import find_new_reminders
from certjob.reports.explain.history import CertificateNote, MentorHistory, Pause, Person, Portal, Step
from certjob.reports.logged_reminders import LoggedReminder, read_logged_reminders
from certjob.reports.open_pushes import read_open_pushes
from certjob.review.days import last_run_date, looks_at_everybody
from certjob.review.guards import MassChangeGuard


def read_story(connection: Connection, mentor_id: UUID, *, today: date, zone: tzinfo) -> MentorHistory:
    """Return a mentor's story as of ``today``; times are told in ``zone``.

    Raises UnknownMentorError, and BrokenMentorError for one who is beyond the bounds of the schema.
    """
    with database.read_only_snapshot(connection):
        parameters = {"mentor_id": mentor_id, "today": today}
        people = database.fetch(connection, "read_mentor_story", parameters, into=Person)
        read = reading.read(connection, [mentor_id], lock=False)
        if mentor_id in read.broken:
            message = f"mentor {mentor_id} is broken: {read.broken[mentor_id]}"
            raise BrokenMentorError(message)
        if not people or not read.mentors:
            message = f"mentor {mentor_id} does not exist any more"
            raise UnknownMentorError(message)
        person, mentor = people[0], read.mentors[0]
        notes = database.fetch(connection, "read_certificate_notes", parameters, into=CertificateNote)
        pushes = read_open_pushes(connection, mentor_id=mentor_id)
        everybody = looks_at_everybody(connection, today)
        nights = _read_nights(connection, person, mentor, today=today, everybody=everybody)
        held = held_reminders = None
        if nights and nights[0].day == today:
            held, held_reminders = _ask_guard(connection, person, today=today, everybody=everybody)
        story = MentorHistory(
            today=today,
            zone=zone,
            person=person,
            mentor=mentor,
            notes={note.id: note for note in notes},
            pauses=database.fetch(connection, "read_pause_history", parameters, into=Pause),
            reminders=read_logged_reminders(connection, mentor_id),
            portal=database.fetch(connection, "read_portal_story", parameters, into=Portal)[0],
            push=pushes[0] if pushes else None,
            nights=nights,
            held=held,
            held_reminders=held_reminders,
            review_is_due=person.review_is_due or everybody,
            last_night=last_run_date(connection),
            steps=(),
        )
    return replace(story, steps=coming_steps(story))


def _read_nights(
    connection: Connection, person: Person, mentor: Mentor, *, today: date, everybody: bool
) -> list[ComingNight]:
    """Return the coming nights that do something for this mentor, to the last one."""
    first = today if everybody or person.review_is_due else person.review_on
    if first is None:
        return []
    nights = list(coming_nights(mentor, first=first))
    due = [replace(night.decision, reminders=night.reminders) for night in nights]
    new = {reminder for _, reminder in find_new_reminders(connection, due)}
    told = (
        replace(night, reminders=tuple(reminder for reminder in night.reminders if reminder in new)) for night in nights
    )
    return [night for night in told if night.does_something]


def _ask_guard(
    connection: Connection, person: Person, *, today: date, everybody: bool
) -> tuple[str | None, str | None]:
    """Return why a night would hold back everything, or the reminders, of the mentor's organisation."""
    guard = MassChangeGuard(connection, today=today, allow_mass_change=False, everybody=everybody)
    guard.examine(person.organisation_id)
    held = guard.held.get(person.organisation_id)
    reminders = guard.held_reminders.get(person.organisation_id)
    return held.line if held else None, reminders.line if reminders else None


def coming_steps(story: MentorHistory) -> list[Step]:
    """Return everything that will happen if no fact changes, in the order of its days."""
    steps: list[Step] = []
    for night in story.nights:
        steps += _night_steps(story, night)
    withdraws = story.review_is_due and not story.mentor.organisation.has_portal and not story.held
    if withdraws and story.push is not None:
        text = "the push that is queued is withdrawn: the organisation has no portal"
        steps.append(Step(on=story.today, kind="withdraw", text=text))
    steps += _delivery_steps(story)
    steps.sort(key=lambda step: (step.on, step.at is not None, step.at or story.person.now))
    return steps


def address_problem(email: str | None) -> str | None:
    """Return why no mail can go to an address, or None."""
    if email is None:
        return "there is no e-mail address"
    try:
        parse_address(email)
    except ValueError as error:
        return f"the e-mail address {error}"
    return None


def _night_steps(story: MentorHistory, night: ComingNight) -> Iterator[Step]:
    """Yield what one night does, in its order."""
    today, day, decision = story.today, night.day, night.decision
    held = story.held if day == today else None
    held_reminders = (held or story.held_reminders) if day == today else None
    if held or (held_reminders and night.reminders):
        yield Step(on=day, kind="guard", text=f"a run holds something back: {held or held_reminders}")

    def step(kind: str, text: str, *, by: str | None = held, **what: Any) -> Step:
        return Step(on=day, kind=kind, text=f"held back: {text}" if by else text, held=bool(by), **what)

    certificates = {certificate.id: certificate for certificate in story.mentor.certificates}
    for change in decision.transitions:
        text = explanations.transition_words(change, certificates[change.certificate_id], today)
        yield step("status", text, certificate_id=change.certificate_id)
    if decision.pause is not None:
        yield step(
            "pause" if decision.pause is PauseChange.OPEN else "resume", explanations.pause_words(decision.pause)
        )
    if decision.push:
        verb = "show" if decision.visible else "hide"
        yield step(verb, f"the portal is asked to {verb} the mentor{_without_contact(story)}")
    problem = address_problem(story.person.email)
    for reminder in night.reminders:
        text = explanations.reminder_words(reminder, today) + (f", but {problem}" if problem else "")
        yield step(
            "reminder",
            text,
            by=held_reminders,
            certificate_id=reminder.cert_id,
            threshold_days=reminder.threshold_days,
        )


def _delivery_steps(story: MentorHistory) -> Iterator[Step]:
    """Yield what is queued already and goes out automatically, unless tonight's review replaces it."""
    tonight = story.nights[0] if story.is_stale and not story.held else None
    push = story.push
    overtaken = tonight is not None and tonight.decision.push
    if push is not None and push.status == "pending" and story.mentor.organisation.has_portal and not overtaken:
        verb = "show" if push.visible else "hide"
        text = f"the portal is asked {'again ' if push.rounds else ''}to {verb} the mentor{_without_contact(story)}"
        if push.is_claimed:
            text = f"the portal is being asked to {verb} the mentor"
        on, at = _when(story, push.next_attempt_at, is_claimed=push.is_claimed)
        yield Step(on=on, at=at, kind="push", text=text)
    new = tonight.reminders if tonight is not None and not story.held_reminders else ()
    for row in story.reminders:
        overtaken = any(each.cert_id == row.certificate_id and each.threshold_days < row.threshold_days for each in new)
        if row.status == "pending" and not overtaken:
            on, at = _when(story, row.next_attempt_at, is_claimed=row.is_claimed)
            yield Step(
                on=on,
                at=at,
                kind="mail",
                text=_mail_words(story, row, on),
                certificate_id=row.certificate_id,
                threshold_days=row.threshold_days,
            )


def _mail_words(story: MentorHistory, row: LoggedReminder, day: date) -> str:
    words = f"the queued {explanations.reminder_words(row.reminder, story.today)}"
    cancelled = rules.cancel_reason(row.reminder, story.mentor, day)
    problem = address_problem(story.person.email)
    if row.is_claimed:
        return f"{words} is being sent"
    if cancelled is not None:
        return f"{words} is cancelled: {cancelled}"
    return f"{words} fails: {problem}" if problem else f"{words} is sent"


def _without_contact(story: MentorHistory) -> str:
    return "" if story.person.contact_id is not None else ", but there is no contact ID"


def _when(story: MentorHistory, due_at: datetime, *, is_claimed: bool) -> tuple[date, datetime | None]:
    """Return day and time of the next attempt; today, without a time, if that has come or it is in work."""
    if is_claimed or due_at <= story.person.now:
        return story.today, None
    at = due_at.astimezone(story.zone)
    return max(at.date(), story.today), at
