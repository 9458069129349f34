"""What comes next for one mentor, and when: what nights will do, and what is queued already."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime
from typing import Any

from certjob import reasons, rules
from certjob.mail import parse_address
from certjob.models import PauseChange
from certjob.outlook import ComingNight
from certjob.story import LoggedReminder, Step, Story


def coming_steps(story: Story) -> list[Step]:
    """Return everything that will happen if no fact changes, in the order of its days."""
    steps: list[Step] = []
    for night in story.nights:
        steps += _night_steps(story, night)
    withdraws = story.review_is_due and not story.mentor.organisation.has_portal and not story.held
    if withdraws and story.portal.status is not None:
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


def _night_steps(story: Story, night: ComingNight) -> Iterator[Step]:
    """Tell what one night does, in the order in which it does it."""
    today, day, decision = story.today, night.day, night.decision
    held = story.held if day == today else None
    held_reminders = (held or story.held_reminders) if day == today else None
    if held or (held_reminders and night.reminders):
        yield Step(on=day, kind="guard", text=f"a run holds something back: {held or held_reminders}")

    def step(kind: str, text: str, *, by: str | None = held, **what: Any) -> Step:
        return Step(on=day, kind=kind, text=f"held back: {text}" if by else text, held=bool(by), **what)

    certificates = {certificate.id: certificate for certificate in story.mentor.certificates}
    for change in decision.transitions:
        text = reasons.transition_words(change, certificates[change.certificate_id], today)
        yield step("status", text, certificate_id=change.certificate_id)
    if decision.pause is not None:
        yield step("pause" if decision.pause is PauseChange.OPEN else "resume", reasons.pause_words(decision.pause))
    if decision.push:
        verb = "show" if decision.visible else "hide"
        yield step(verb, f"the portal is asked to {verb} the mentor{_without_contact(story)}")
    problem = address_problem(story.person.email)
    for reminder in night.reminders:
        text = reasons.reminder_words(reminder, today) + (f", but {problem}" if problem else "")
        yield step(
            "reminder",
            text,
            by=held_reminders,
            certificate_id=reminder.cert_id,
            threshold_days=reminder.threshold_days,
        )


def _delivery_steps(story: Story) -> Iterator[Step]:
    """Tell what is queued already and goes out by itself, unless tonight's review overtakes it."""
    tonight = story.nights[0] if story.is_stale and not story.held else None
    portal = story.portal
    overtaken = tonight is not None and tonight.decision.push
    if portal.status == "pending" and portal.next_attempt_at and story.mentor.organisation.has_portal and not overtaken:
        verb = "show" if portal.visible else "hide"
        text = f"the portal is asked {'again ' if portal.rounds else ''}to {verb} the mentor{_without_contact(story)}"
        if portal.is_claimed:
            text = f"the portal is being asked to {verb} the mentor"
        yield _delivery(story, portal.next_attempt_at, kind="push", text=text, is_claimed=bool(portal.is_claimed))
    new = tonight.reminders if tonight is not None and not story.held_reminders else ()
    for row in story.reminders:
        overtaken = any(each.cert_id == row.cert_id and each.threshold_days < row.threshold_days for each in new)
        if row.status == "pending" and not overtaken:
            step = _delivery(story, row.next_attempt_at, kind="mail", text="", is_claimed=row.is_claimed)
            text = _mail_words(story, row, step.on)
            yield replace(step, text=text, certificate_id=row.cert_id, threshold_days=row.threshold_days)


def _mail_words(story: Story, row: LoggedReminder, day: date) -> str:
    words = f"the queued {reasons.reminder_words(row.reminder, story.today)}"
    cancelled = rules.cancel_reason(row.reminder, story.mentor, day)
    problem = address_problem(story.person.email)
    if row.is_claimed:
        return f"{words} is being sent"
    if cancelled is not None:
        return f"{words} is cancelled: {cancelled}"
    return f"{words} fails: {problem}" if problem else f"{words} is sent"


def _without_contact(story: Story) -> str:
    return "" if story.person.contact_id is not None else ", but there is no contact id"


def _delivery(story: Story, due_at: datetime, *, kind: str, text: str, is_claimed: bool) -> Step:
    """A step at the time of its next attempt; today, without a time, if that has come or it is in work."""
    if is_claimed or due_at <= story.person.now:
        return Step(on=story.today, kind=kind, text=text)
    at = due_at.astimezone(story.zone)
    return Step(on=max(at.date(), story.today), at=at, kind=kind, text=text)
