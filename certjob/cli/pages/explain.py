"""One mentor's story as a page: what is so today and why, what was sent, what comes next; on a terminal or off it."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from itertools import groupby
from typing import Any, Final

from certjob.cli.pages.alert_sections import next_try
from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output
from certjob.domain import explanations, rules
from certjob.domain.alert_reasons import AlertReason, why_message_waits, why_push_waits
from certjob.domain.explanations import day_words, distance_words, number, reason_words, threshold_words
from certjob.domain.models import OWN_PAUSE_REASON, Status
from certjob.reports.explain.history import MentorHistory, Pause
from certjob.reports.explain.reader import address_problem
from certjob.reports.logged_reminders import LoggedReminder
from certjob.reports.open_pushes import OpenPush, resync_command

MOST_COMING_DAYS: Final = 12
"""How many of the coming days a page on a terminal has; --json and a pipe have all of them."""

_STYLES: Final = {Status.EXPIRED: "red", Status.REVOKED: "red", Status.EXPIRING: "bold"}


def show_story(output: Output, story: MentorHistory) -> None:
    """Print the page; off a terminal it has all of the coming days."""
    output.show_lines(page_lines(story, most_days=MOST_COMING_DAYS if output.on_terminal else None))


def page_lines(story: MentorHistory, *, most_days: int | None = None) -> Iterator[PageLine]:
    """Yield the page, with ``most_days`` of the coming days at most."""
    person = story.person
    name = person.member_no if person.full_name is None else f"{person.full_name} ({person.member_no})"
    yield PageLine(text=f"{name}, {person.organisation_name}", style="bold")
    yield PageLine(text=" ".join(_summary(story)))
    for warning in _warnings(story):
        yield PageLine(text=warning, style="bold magenta")
    coming = _by_occasion(story)
    yield PageLine(text="")
    if not coming:
        yield PageLine(head="Next: ", text="nothing, as long as no fact changes.")
    for when, what in coming[:1]:
        yield PageLine(head="Next: ", text=f"{when}: {what}.")
    yield from _section("Certificates", _certificate_lines(story))
    yield from _section("Pauses", _pause_lines(story))
    yield from _section("Reminders", _reminder_lines(story))
    yield from _section("Portal", portal_lines(story))
    later = coming[1:] if most_days is None else coming[1:most_days]
    yield from _section("After that, if no fact changes", _later_lines(later, left=len(coming) - 1 - len(later)))


def _summary(story: MentorHistory) -> Iterator[str]:
    mentor, today = story.mentor, story.today
    if story.person.left_at is not None:
        yield f"Has left, on {day_words(story.person.left_at.astimezone(story.zone).date(), story.today)}."
    elif mentor.open_pauses:
        yield f"Paused: {', '.join(sorted(reason_words(pause.reason) for pause in mentor.open_pauses))}."
    else:
        yield "Active: no pause is open."
    lapsed = rules.lapsed_certificates(mentor, today)
    why = "; ".join(explanations.why_certified(mentor, today))
    if lapsed:
        yield f"Not certified: {why}."
    elif rules.holds_nothing(mentor, today):
        said = f" ({why})" if why else ""
        yield f"Holds no certificate that counts{said}, so certjob does not watch this mentor and never pauses them."
    else:
        yield f"Certified: {why}."


def _warnings(story: MentorHistory) -> Iterator[str]:
    """Yield what makes the dates of the page doubtful."""
    last, today = story.last_night, story.today
    if last is None:
        yield "There has been no nightly run yet; the dates below need `certjob run` every night."
    elif last > today:
        day = day_words(last, today)
        yield (
            f"A run today is refused, because the last nightly run was for {day}; what follows holds once the clock is "
            "corrected, or with --allow-earlier-date."
        )
    elif (today - last).days > 1:
        day = day_words(last, today)
        yield f"The last nightly run was for {day}; the dates below need `certjob run` every night."
    if story.is_stale:
        yield "The stored state is not today's: a run today changes it."


def _section(heading: str, lines: Iterator[PageLine]) -> Iterator[PageLine]:
    """A heading and what stands under it; nothing at all without a line."""
    for place, line in enumerate(lines):
        if not place:
            yield PageLine(text="")
            yield PageLine(text=heading, style="bold")
        yield line


def _item(text: str, *, head: str = "", style: str = "") -> PageLine:
    return PageLine(text=text, head=head, style=style, bullet="- ", indent=2)


def _certificate_lines(story: MentorHistory) -> Iterator[PageLine]:
    mentor, today = story.mentor, story.today
    if not mentor.certificates:
        yield _item("none")
    for certificate in sorted(mentor.certificates, key=lambda c: (c.kind, c.issued_on, c.expires_on)):
        status, noted_on = rules.status_of(certificate, mentor, today), story.notes[certificate.id].noted_on
        why = explanations.why_status(certificate, mentor, today, revoked_on=story.revoked_on(certificate.id))
        if certificate.status is Status.RECORDED:
            why += "; not stored yet, a run today stores it"
        elif certificate.status is not status:
            why += f"; stored as {certificate.status} so far, a run today stores it"
        elif noted_on:
            why += f"; stored on {day_words(noted_on, today)}"
        optional = ", optional" if certificate.kind in mentor.organisation.optional_kinds else ""
        span = f"{_whole_date(certificate.issued_on)} to {_whole_date(certificate.expires_on)}"
        head = f"{certificate.kind}{optional}, {span}: {status}"
        yield _item("", head=head, style=_STYLES.get(status, ""))
        yield PageLine(text=why, indent=4)


def _pause_lines(story: MentorHistory) -> Iterator[PageLine]:
    if not any(pause.lifted_at is None for pause in story.pauses):
        yield _item("none is open")
    for pause in story.pauses:
        since = f"by {pause.actor} since {story.moment(pause.paused_at)}"
        if pause.lifted_at is None:
            yield _item(f", {since}", head=reason_words(pause.reason))
            yield PageLine(text=_what_lifts(story, pause), indent=4)
        else:
            by = f" by {pause.lifted_by}" if pause.lifted_by else ""
            text = f"earlier: {reason_words(pause.reason)}, {since}, lifted {story.moment(pause.lifted_at)}{by}"
            yield _item(text, style="dim")


def _what_lifts(story: MentorHistory, pause: Pause) -> str:
    if pause.reason != OWN_PAUSE_REASON:
        return "certjob never lifts it; a coordinator does, in the app"
    if story.mentor.left:
        return "it stays as it is while the mentor has left"
    lapsed = sorted({certificate.kind for certificate in rules.lapsed_certificates(story.mentor, story.today)})
    if not lapsed:
        return "every kind that counts is in force: a run today lifts it"
    missing = f"{', '.join(lapsed)} {'is' if len(lapsed) == 1 else 'are'} in force again"
    return f"certjob lifts it once {missing}; if a person lifts it before that, certjob opens it again"


def _reminder_lines(story: MentorHistory) -> Iterator[PageLine]:
    certificates = {certificate.id: certificate for certificate in story.mentor.certificates}
    for row in story.reminders:
        certificate = certificates.get(row.certificate_id)
        what = certificate.kind if certificate else "a certificate that is gone"
        which = f"{what} until {day_words(row.expires_on, story.today)}, {threshold_words(row.threshold_days)}"
        yield _item(f"{which}: {_what_became(story, row)}", style="red" if row.status == "failed" else "")
        for earlier in row.earlier:
            yield PageLine(text=_earlier_cycle(story, earlier), indent=4, style="dim")
    for certificate in sorted(certificates.values(), key=lambda c: (c.kind, c.expires_on)):
        none = explanations.why_no_reminder(certificate, story.mentor, story.today)
        if none is not None:
            text = f"{certificate.kind} until {day_words(certificate.expires_on, story.today)}: none comes, {none}"
            yield _item(text)
    yield from _reminders_to_come(story)
    problem = address_problem(story.person.email)
    if problem:
        text = f"{problem}: nothing can be sent; enter one in the app, and what failed is sent automatically"
        yield _item(text, style="red")


def _reminders_to_come(story: MentorHistory) -> Iterator[PageLine]:
    """One line per certificate with all that nights will queue about it."""
    today = story.today
    for certificate in story.mentor.certificates:
        days = [
            f"{threshold_words(step.threshold_days or 0)} ({'held back' if step.held else day_words(step.on, today)})"
            for step in story.steps
            if step.kind == "reminder" and step.certificate_id == certificate.id
        ]
        if days:
            which = f"{certificate.kind} until {day_words(certificate.expires_on, today)}"
            yield _item(f"{which}, to come: {', '.join(days)}")


def _what_became(story: MentorHistory, row: LoggedReminder) -> str:
    again = ", perhaps twice" if row.maybe_sent else ""
    if row.status == "sent":
        return f"sent {story.moment(row.sent_at)}{again}" if row.sent_at else f"sent{again}"
    if row.status == "failed":
        reason = why_message_waits(row.code)
        error = "" if reason is AlertReason.NO_ADDRESS or not row.error else f" ({row.error})"
        return f"not delivered. {reason.why()}{error} What to do: {reason.advise().rstrip('.')}"
    if row.status == "pending":
        tries = (
            f", tried {row.attempts} times so far"
            if row.attempts > 1
            else ", tried once so far"
            if row.attempts
            else ""
        )
        error = f" ({row.error})" if row.error and row.attempts else ""  # without a try: what has been corrected since
        return f"queued {story.moment(row.queued_at)}{tries}{error}"
    if row.status == "superseded":
        return "never sent: a more urgent one took its place"
    return f"cancelled: {row.error or 'it was no longer right'}"


def _earlier_cycle(story: MentorHistory, earlier: Mapping[str, Any]) -> str:
    """An entry of the history: the same reminder about another last day, or sent again after it was cancelled."""
    about = day_words(date.fromisoformat(earlier["expires_on"]), story.today)
    sent_at = earlier.get("sent_at")
    when = f" {story.moment(datetime.fromisoformat(sent_at))}" if sent_at else ""
    return f"before that, about {about}: {earlier.get('status', 'unknown')}{when}"


def _later_lines(later: Sequence[tuple[str, str]], *, left: int) -> Iterator[PageLine]:
    for when, what in later:
        yield _item(what, head=f"{when}: ")
    if left > 0:
        yield PageLine(text=f"… and {left:,} more; --json has all of them", indent=2)


def _by_occasion(story: MentorHistory) -> list[tuple[str, str]]:
    """What comes, one occasion each: a night, or a delivery at its time."""
    occasions = []
    for (day, at, by_night), steps in groupby(story.steps, key=lambda step: (step.on, step.at, step.is_of_night)):
        said = f"on {day_words(day, story.today)}"
        if by_night:
            when = (
                "today, when `certjob run` runs"
                if day == story.today
                else f"{said}, {distance_words(day, story.today)}"
            )
        elif at is None:
            when = "today, with the next `certjob run` or `certjob deliver`"
        else:
            when = f"{'today' if day == story.today else said}, at {at:%H:%M} or soon after"
        occasions.append((when, "; ".join(step.text for step in steps)))
    return occasions


def _whole_date(day: date) -> str:
    return f"{day.day} {day:%B} {day.year:04}"


def portal_lines(story: MentorHistory) -> Iterator[PageLine]:
    """Yield the lines of the section; nothing where there is no portal and never was."""
    portal, person = story.portal, story.person
    has_portal = story.mentor.organisation.has_portal
    if not has_portal and portal.confirmed is None and story.push is None:
        return
    if not has_portal:
        yield _item(f"{person.slug} no longer has a portal: nothing is pushed")
    elif person.wanted is None:
        yield _item("wanted: not known (the contact ID or the portal has changed); the next run pushes what is right")
    else:
        yield _item(f"wanted: {_shown(person.wanted)}")
    if portal.confirmed_at is None:
        yield _item("the portal has confirmed nothing yet")
    else:
        yield _item(f"the portal last confirmed: {_shown(bool(portal.confirmed))}, {story.moment(portal.confirmed_at)}")
    if has_portal and portal.read_at is not None and portal.was_shown is not None:
        saw = "visible" if portal.was_shown else "not visible"
        yield _item(f"the portal was last read {story.moment(portal.read_at)}: the mentor was {saw}")
    if has_portal and person.contact_id is None:
        yield _item("there is no contact ID: nothing can be pushed; add it in the app", style="red")
    if story.push is not None:
        yield from _open_push(story, story.push)
    if portal.resolved_failures:
        failures = number(portal.resolved_failures, "earlier failure")
        yield _item(f"{failures}, {'all ' if portal.resolved_failures > 1 else ''}resolved", style="dim")


def _open_push(story: MentorHistory, push: OpenPush) -> Iterator[PageLine]:
    verb, may_be = ("show", "hidden") if push.visible else ("hide", "visible")
    text = f"waiting since {story.moment(push.wanted_at)} for the portal to {verb} this mentor; may still be {may_be}"
    yield _item(text, style="magenta" if push.visible else "red")
    reason = why_push_waits(push)
    if reason is AlertReason.UNTRIED:
        yield PageLine(text="It goes out with the next `certjob run` or `certjob deliver`.", indent=4)
    else:
        yield PageLine(text=reason.why(), indent=4)
        resync = resync_command(push.member_no, push.organisation)
        when = next_try(push.next_attempt_at, now=story.person.now.astimezone(story.zone))
        yield PageLine(head="What to do: ", text=reason.advise(resync=resync, next_try=when), indent=4)
    if push.error:
        calls = f", {number(push.calls, 'call')} so far" if push.calls else ""
        when = f" {story.moment(push.last_failed_at)}" if push.last_failed_at else ""
        yield PageLine(text=f"Last failure{when}{calls}: {push.error}", indent=4, style="dim")


def _shown(visible: bool) -> str:
    return "shown" if visible else "hidden"
