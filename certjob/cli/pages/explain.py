"""The page of `certjob explain`."""

from collections.abc import Callable, Iterator
from datetime import date, datetime, tzinfo
from functools import partial

from certjob.cli.pages import alerts
from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.plain import WARNING_STYLE
from certjob.domain.explanations import day_words, moment_words, number, reason_words, threshold_words
from certjob.domain.models import OWN_PAUSE_REASON, Status
from certjob.reports.explain import HELD_BACK, ExplainedCertificate, Explanation, Next, Pause
from certjob.reports.logged_reminders import LoggedReminder

_Moment = Callable[[datetime], str]
_item = partial(PageLine, bullet="- ", indent=2)
_detail = partial(PageLine, indent=4)


def show_explanation(output: Output, explained: Explanation, *, zone: tzinfo) -> None:
    """Print the page, with times in ``zone``."""
    output.show_lines(page_lines(explained, zone=zone))


def page_lines(explained: Explanation, *, zone: tzinfo) -> Iterator[PageLine]:
    """Yield the lines of the page."""
    person, today, coming = explained.mentor, explained.today, explained.next

    def moment(at: datetime) -> str:
        return moment_words(at.astimezone(zone), today)

    name = person.member_no if person.full_name is None else f"{person.full_name} ({person.member_no})"
    yield PageLine(text=f"{name}, {person.organisation_name}", style="bold")
    yield PageLine(text=f"{_activity(explained, zone=zone)} {_certification(explained)}")
    for warning in _warnings(explained):
        yield PageLine(text=warning, bullet="warning: ", bullet_style=WARNING_STYLE)
    yield PageLine(text="")
    yield PageLine(head="Next: ", text=_next_words(coming) if coming else "no change, unless the data changes.")
    if explained.alerts:
        yield PageLine(text="")
        for part in alerts.page_parts(explained.alerts, now=explained.now.astimezone(zone)):
            yield from part.lines
    for heading, lines in (
        ("Certificates", _certificate_lines(explained)),
        ("Pauses", _pause_lines(explained, moment)),
        ("Reminders", _reminder_lines(explained, moment)),
        ("Portal", _portal_lines(explained, moment)),
    ):
        for place, line in enumerate(lines):
            if not place:
                yield from (PageLine(text=""), PageLine(text=heading, style="bold"))
            yield line


def _next_words(coming: Next) -> str:
    """Return a sentence about the changes, and one about those that a guard holds back."""
    made = [text for text in coming.what if not text.startswith(HELD_BACK)]
    held = [text.removeprefix(HELD_BACK) for text in coming.what if text.startswith(HELD_BACK)]
    words = [f"{coming.when}: {'; '.join(made)}."] if made else []
    if held:
        words.append(f"{'Held back' if made else f'{coming.when}, held back'} by a guard: {'; '.join(held)}.")
    return " ".join(words)


def _activity(explained: Explanation, *, zone: tzinfo) -> str:
    if explained.mentor.left_at is not None:
        return f"Left on {day_words(explained.mentor.left_at.astimezone(zone).date(), explained.today)}."
    reasons = sorted(reason_words(pause.reason) for pause in explained.pauses if pause.lifted_at is None)
    return f"Paused: {', '.join(reasons)}." if reasons else "Active: not paused."


def _certification(explained: Explanation) -> str:
    why = "; ".join(explained.certified_because)
    if not explained.without_certificate:
        return f"{'Certified' if explained.certified else 'Not certified'}: {why}."
    hidden = " They are hidden on the portal." if explained.portal and explained.portal.has_portal else ""
    kinds = f" ({why})" if why else ""
    return f"Has never had a certificate that counts{kinds}, so certjob does not pause or remind them.{hidden}"


def _warnings(explained: Explanation) -> Iterator[str]:
    """Yield the reasons why the date of the next change is doubtful, and the held changes."""
    last, today = explained.last_run_on, explained.today
    if last is None:
        yield "There has been no nightly run yet; the date below assumes `certjob run` every night."
    elif last > today:
        yield (
            f"certjob rejects a run today, because an earlier run had the date {day_words(last, today)}. Correct the "
            "clock or use --accept-date; then the date below is right."
        )
    elif (today - last).days > 1:
        yield f"The last run was on {day_words(last, today)}; the date below assumes `certjob run` every night."
    for held in explained.held:
        yield f"A guard holds changes back: {held}"


def _certificate_lines(explained: Explanation) -> Iterator[PageLine]:
    if not explained.certificates:
        yield _item(text="none")
    for each in explained.certificates:
        optional = ", optional" if each.optional else ""
        span = f"{_whole_date(each.issued_on)} to {_whole_date(each.expires_on)}"
        yield _item(head=f"{each.kind}{optional}, {span}: {each.status}", text="")
        yield _detail(text=each.because + _stored(each, today=explained.today))


def _stored(each: ExplainedCertificate, *, today: date) -> str:
    if each.stored_status == Status.RECORDED:
        return "; not stored yet, a run today stores it"
    if each.stored_status != each.status:
        return f"; stored as {each.stored_status} so far, a run today stores it"
    return f"; stored on {day_words(each.stored_on, today)}" if each.stored_on else ""


def _pause_lines(explained: Explanation, moment: _Moment) -> Iterator[PageLine]:
    if all(pause.lifted_at for pause in explained.pauses):
        yield _item(text="no open pauses")
    for pause in explained.pauses:
        reason, since = reason_words(pause.reason), f"by {pause.actor} since {moment(pause.paused_at)}"
        if pause.lifted_at is None:
            yield _item(head=reason, text=f", {since}")
            yield _detail(text=_lifted_when(pause, has_left=explained.mentor.left_at is not None))
        else:
            by = f" by {pause.lifted_by}" if pause.lifted_by else ""
            yield _item(text=f"earlier: {reason}, {since}, lifted {moment(pause.lifted_at)}{by}")


def _lifted_when(pause: Pause, *, has_left: bool) -> str:
    if pause.reason != OWN_PAUSE_REASON:
        return "certjob never lifts it; a coordinator does, in the app, or `certjob unpause`"
    if has_left:
        return "it stays as it is while the mentor has left"
    return "certjob lifts it once the mentor is certified; if a person lifts it before that, certjob opens it again"


def _reminder_lines(explained: Explanation, moment: _Moment) -> Iterator[PageLine]:
    kinds, today = {each.id: each.kind for each in explained.certificates}, explained.today
    for row in explained.reminders:
        kind = kinds.get(row.certificate_id, "a deleted certificate")
        which = f"{kind} until {day_words(row.expires_on, today)}, {threshold_words(row.threshold_days)}"
        yield _item(text=f"{which}: {_outcome(row, moment)}")
    for each in explained.certificates:
        if each.no_reminder_because is not None:
            until = day_words(each.expires_on, today)
            yield _item(text=f"{each.kind} until {until}: no reminder, because {each.no_reminder_because}")
    if explained.mentor.email is None:
        where = "in the app or with `certjob load`"
        yield _item(text=f"the mentor has no e-mail address, so certjob sends no mail; enter one {where}")


def _outcome(row: LoggedReminder, moment: _Moment) -> str:
    match row.status:
        case "sent":
            when = f" {moment(row.sent_at)}" if row.sent_at else ""
            return f"sent{when}{', perhaps twice' if row.maybe_sent else ''}"
        case "failed":
            return f"not delivered ({row.error})"
        case "pending" if row.is_claimed:
            return "being sent"
        case "pending":
            tried = f", tried {number(row.attempts, 'time')} so far" if row.attempts else ""
            error = f" ({row.error})" if row.error and row.attempts else ""  # without attempts, it was corrected
            return f"queued {moment(row.queued_at)}{tried}{error}"
        case "superseded":
            return "never sent: a more urgent one took its place"
    return f"cancelled: {row.error or 'it no longer applied'}"


def _whole_date(day: date) -> str:
    return f"{day.day} {day:%B} {day.year:04}"


def _portal_lines(explained: Explanation, moment: _Moment) -> Iterator[PageLine]:
    portal, shown = explained.portal, {True: "shown", False: "hidden"}
    if portal is None:
        return
    if not portal.has_portal:
        yield _item(text=f"{explained.mentor.organisation} has lost its portal, so certjob makes no pushes")
    elif portal.wanted is None:
        yield _item(text="wanted: unknown (the contact ID or the portal has changed); the next run pushes it")
    elif portal.visible_until is not None:
        yield _item(text=f"wanted: visible until {day_words(portal.visible_until, explained.today)}")
    else:
        yield _item(text=f"wanted: {shown[portal.wanted]}")
    if portal.confirmed is None or portal.confirmed_at is None:
        yield _item(text="the portal has not confirmed a push yet")
    else:
        yield _item(text=f"the portal last confirmed: {shown[portal.confirmed]}, {moment(portal.confirmed_at)}")
    if portal.has_portal and portal.read_at is not None and portal.was_shown is not None:
        saw = "visible" if portal.was_shown else "not visible"
        yield _item(text=f"the portal was last read {moment(portal.read_at)}: the mentor was {saw}")
    if portal.has_portal and explained.mentor.dynamics_contact_id is None:
        yield _item(
            text="the mentor has no contact ID, so certjob makes no pushes; add it in the app or with `certjob load`"
        )
    if portal.resolved_failures:
        yield _item(text=f"{number(portal.resolved_failures, 'earlier failure')}, resolved")
