"""Reading one mentor's whole story: the facts, what the rules make of them today, what was sent, and what comes next.

All of one moment, without a lock. What comes next is what the nights will do: the same rules, the same guards.
"""

from dataclasses import replace
from datetime import date, tzinfo
from uuid import UUID, uuid4

from certjob import database, facts
from certjob.database import Connection
from certjob.errors import UnknownMentorError
from certjob.guards import MassChangeGuard
from certjob.job_runs import looks_at_everybody
from certjob.models import Mentor
from certjob.outlook import ComingNight, coming_nights
from certjob.reminders import CertificationReminderService
from certjob.story import CertificateNote, LoggedReminder, Pause, Person, Portal, Story
from certjob.story_steps import coming_steps


def read_story(connection: Connection, mentor_id: UUID, *, today: date, zone: tzinfo) -> Story:
    """Return a mentor's story as of ``today``; times are told in ``zone``. Raises UnknownMentorError."""
    with database.read_only_snapshot(connection):
        parameters = {"mentor_id": mentor_id, "today": today}
        people = database.fetch(connection, "read_mentor_story", parameters, into=Person)
        mentors = facts.read(connection, [mentor_id], lock=False).mentors
        if not people or not mentors:
            message = f"mentor {mentor_id} does not exist any more"
            raise UnknownMentorError(message)
        person, mentor = people[0], mentors[0]
        notes = database.fetch(connection, "read_certificate_notes", parameters, into=CertificateNote)
        reminders = database.fetch(connection, "read_reminder_story", parameters, into=LoggedReminder)
        portal = database.fetch(connection, "read_portal_story", parameters, into=Portal)[0]
        everybody = looks_at_everybody(connection, today)
        nights = _read_nights(connection, person, mentor, today=today, everybody=everybody)
        held = held_reminders = None
        if nights and nights[0].day == today:
            held, held_reminders = _ask_guard(connection, person, today=today, everybody=everybody)
        story = Story(
            today=today,
            zone=zone,
            person=person,
            mentor=mentor,
            notes={note.id: note for note in notes},
            pauses=database.fetch(connection, "read_pause_history", parameters, into=Pause),
            reminders=reminders,
            portal=portal,
            nights=nights,
            held=held,
            held_reminders=held_reminders,
            review_is_due=person.review_is_due or everybody,
            last_night=database.fetch_value(connection, "read_last_run_date"),
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
    service = CertificationReminderService(connection, run_id=uuid4())  # it is only asked what is new
    due = [replace(night.decision, reminders=night.reminders) for night in nights]
    new = {reminder for _, reminder in service.find_new(due)}
    told = (
        replace(night, reminders=tuple(reminder for reminder in night.reminders if reminder in new)) for night in nights
    )
    return [night for night in told if night.does_something]


def _ask_guard(
    connection: Connection, person: Person, *, today: date, everybody: bool
) -> tuple[str | None, str | None]:
    """Return why a night would hold back everything, or the reminders, of the mentor's organisation."""
    guard = MassChangeGuard(
        connection,
        today=today,
        reminders=CertificationReminderService(connection, run_id=uuid4()),
        allow_mass_change=False,
        everybody=everybody,
    )
    guard.examine(person.organisation_id)
    return guard.held.get(person.organisation_id), guard.held_reminders.get(person.organisation_id)
