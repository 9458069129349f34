"""What needs attention, described once for the page and for the plain lines: sections, groups of one cause, rows.

``now`` is in the zone in which times are shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Final, Literal, TypeVar

from certjob.domain.causes import NO_MAIL_AT_ALL, Advice, advise_on_message, advise_on_push
from certjob.domain.explanations import day_words, number
from certjob.reports.alerts import (
    Alerts,
    FailedDigest,
    FailedReminder,
    HeldAlert,
    ReviewProblem,
    UnknownContact,
    WaitingMail,
)
from certjob.reports.open_pushes import OpenPush, resync_command

_NO_CHANGE: Final = "certjob changes nothing for this organisation until somebody decides."
_IMPORT: Final = (
    "check the clock and the last import. If the import was wrong, correct it and run `certjob run`. If the changes "
    "are right, run `{}`."
)
_HELD: Final = {
    "pauses": ("nothing was applied to {}", f"Too many would be paused at once: {_NO_CHANGE}", _IMPORT),
    "returns": ("nothing was applied to {}", f"Too many would be brought back at once: {_NO_CHANGE}", _IMPORT),
    "reminders": (
        "no reminder is sent to {}",
        "Too many reminders at once: none of them is sent until somebody decides. Everything else goes on.",
        _IMPORT,
    ),
    "portal": (
        "the portal does not show {}",
        "Too many would be shown on the portal at once: none of them is shown until somebody decides.",
        "look at the portal. If these mentors are visible there, correct the function's settings. If they are really "
        "hidden, run `{}`.",
    ),
}
"""By what is held: the heading, what it means, and what to do."""

_ACCEPT: Final = "hide it in Dynamics, or `certjob reconcile --accept {} --because TEXT`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One alert."""

    who: str
    about: str = ""
    since: datetime | None = None
    error: str | None = None
    """The technical reason."""
    failed_at: datetime | None = None
    calls: int = 0
    do: str = ""
    """What to do about this one alone; empty: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What has one cause, and needs one thing to be done."""

    why: str
    do: str = ""
    """What to do."""
    rows: Sequence[Row] = ()
    """Empty: the group itself is one alert."""
    noun: str = "mentor"
    """What each row is."""
    since: datetime | None = None
    details: Sequence[str] = ()
    """What explains a group that is one alert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One sort of harm."""

    label: str
    """What a plain line begins with."""
    heading: str
    sentence: str = ""
    """The design's words, which people and programs look for."""
    meaning: str
    groups: Sequence[Group]
    colour: str = ""


AboutMentor = ReviewProblem | OpenPush | FailedReminder

T = TypeVar("T")
Failed = TypeVar("Failed", FailedReminder, FailedDigest)


def describe(alerts: Alerts, *, now: datetime) -> list[Section]:
    """Return the sections, the most harmful first: what is held, who could not be reviewed, the portal, the mail."""
    hides = [push for push in alerts.pushes if not push.visible]
    shows = [push for push in alerts.pushes if push.visible]
    sections = [
        *map(_held, alerts.held),
        _never_reviewed(alerts.never_reviewed),
        _pushes(
            hides,
            heading=f"{number(len(hides), 'mentor')} may STILL BE VISIBLE on the portal, and must not be",
            meaning="They are paused or have left, but the portal has not confirmed that it hides them: people may "
            "still find them there. If it cannot wait, hide them by hand in Dynamics.",
            colour="red",
            now=now,
        ),
        _reading(alerts, now=now),
        _pushes(
            shows,
            heading=f"{number(len(shows), 'mentor')} may STILL BE HIDDEN on the portal",
            meaning="They may meet people again, but the portal has not confirmed that it shows them.",
            colour="yellow",
            now=now,
        ),
        _messages(
            alerts.failed_reminders,
            "reminder",
            label="Reminder not delivered",
            row=lambda each: Row(who=_who(each), about=f"certificate until {_whole(each.expires_on)}"),
            meaning="The mail about their certificate has not reached these mentors.",
        ),
        _messages(
            alerts.failed_digests,
            "digest",
            label="Digest not delivered",
            row=lambda each: Row(who=f"{each.full_name} ({each.organisation})", about=f"of {_whole(each.digest_on)}"),
            meaning="These coordinators do not hear what happens to their mentors.",
        ),
        _waiting_mail(alerts.waiting_mail),
    ]
    return [section for section in sections if section.groups]


def _never_reviewed(problems: Sequence[ReviewProblem]) -> Section:
    groups = []
    for error, same in _grouped(problems, lambda problem: problem.error):
        do = "end what is in the way, then {}."
        rows = [Row(who=_who(each), since=each.since, do=do.format(_resync([each]))) for each in same]
        groups.append(Group(why=error, do=do.format(_resync(same)), rows=rows))
    return Section(
        label="Not reviewed",
        heading=f"{number(len(problems), 'mentor')} could not be reviewed",
        meaning="certjob does not know whether they are certified. They may be shown although they must not be.",
        colour="red",
        groups=groups,
    )


def _messages(
    failed: Sequence[Failed],
    noun: Literal["reminder", "digest"],
    *,
    label: str,
    row: Callable[[Failed], Row],
    meaning: str,
) -> Section:
    groups = []
    for advice, same in _grouped(failed, lambda each: advise_on_message(each.code)):
        do = advice.advise(message=noun)
        rows = [replace(row(each), error=None if advice.says_all else each.error, do=do) for each in same]
        groups.append(Group(why=advice.why, do=do, noun=noun, rows=rows))
    return Section(
        label=label,
        heading=f"{number(len(failed), noun)} not delivered",
        meaning=meaning,
        groups=groups,
    )


def _held(held: HeldAlert) -> Section:
    heading, meaning, do = _HELD[held.what]
    names = [f"{mentor.full_name} ({mentor.member_no})" for mentor in held.some if mentor.may_be_shown][:5]
    more = f" and {held.may_be_shown - len(names):,} more" if held.may_be_shown > len(names) else ""
    shown = f"{held.may_be_shown:,} may be shown on the portal and must not be"
    counts = [
        f"{held.ended_by_calendar:,} {'were due' if held.what == 'reminders' else 'have ended'} by the calendar",
        f"{held.facts_changed:,} have facts that were changed since the last review",
        *([f"{shown}: {', '.join(names)}{more}" if names else shown] if held.may_be_shown else []),
    ]
    return Section(
        label=f"Held: {held.organisation}",
        heading=f"{held.name} is held: {heading.format(number(held.mentors, 'mentor'))}",
        meaning=meaning,
        colour="red",
        groups=[
            Group(
                why=held.reason,
                since=held.since,
                details=counts if held.what != "portal" else (),
                do=do.format(held.command),
            )
        ],
    )


def _pushes(pushes: Sequence[OpenPush], *, heading: str, meaning: str, colour: str, now: datetime) -> Section:
    groups = []
    for advice, same in _grouped(pushes, advise_on_push):
        first = min(push.next_attempt_at for push in same)
        do = advice.advise(resync=_resync(same), next_try=next_try(first, now=now))
        rows = [
            Row(
                who=_who(push),
                since=push.wanted_at,
                error=None if advice.says_all else push.error,
                failed_at=push.last_failed_at,
                calls=push.calls,
                do="" if advice.is_tried_automatically else advice.advise(resync=_resync([push])),
            )
            for push in same
        ]
        groups.append(Group(why=advice.why, do=do, rows=rows))
    sentence = pushes[0].sentence or "" if pushes else ""
    return Section(label=sentence, heading=heading, sentence=sentence, meaning=meaning, colour=colour, groups=groups)


def _reading(alerts: Alerts, *, now: datetime) -> Section:
    """What the last reading of the portal left for people to do."""
    groups = []
    if alerts.unknown_contacts:
        why = "Visible on the portal, but no mentor of an organisation with a portal has this contact."
        rows = list(map(_unknown, alerts.unknown_contacts))
        groups.append(Group(why=why, do=_ACCEPT.format("CONTACT"), noun="contact", rows=rows))
    for reading in alerts.portal_not_read:
        why = f"The portal was last read on {_whole(reading.read_at.astimezone(now.tzinfo).date())}"
        groups.append(Group(why=why, do="run `certjob reconcile`, and see why cron does not."))
    return Section(
        label="The portal and certjob disagree",
        heading="The portal and certjob disagree",
        meaning="certjob reads the portal every night and corrects what it may; this it leaves to you.",
        colour="yellow",
        groups=groups,
    )


def _unknown(contact: UnknownContact) -> Row:
    owner = ""
    if contact.mentor_id is not None:
        owner = f" of {contact.full_name} ({contact.member_no} of {contact.organisation}, which has no portal)"
    return Row(who=f"contact {contact.contact_id}{owner}", since=contact.since, do=_ACCEPT.format(contact.contact_id))


def _waiting_mail(mails: Sequence[WaitingMail]) -> Section:
    groups = [
        Group(
            why=f"{number(waiting.number, waiting.what.removesuffix('s'))}, the oldest",
            since=waiting.since,
            details=[f"the mail stage stopped: {waiting.error}"] if waiting.error else (),
            do=NO_MAIL_AT_ALL.action,
        )
        for waiting in mails
    ]
    return Section(
        label="Mail waits",
        heading="Mail has waited for more than a day",
        meaning="It has not gone out: the mail server does not take it, or `certjob deliver` does not run.",
        colour="yellow",
        groups=groups,
    )


def next_try(at: datetime, *, now: datetime) -> str:
    """Return when certjob tries again automatically, as the end of a sentence."""
    if at <= now:
        return "when `certjob deliver` runs next, normally every 15 minutes"
    local = at.astimezone(now.tzinfo)
    on = "" if local.date() == now.date() else f"on {_day(local.date(), now)} "
    return f"{on}at {local:%H:%M}, or soon after"


def moment(at: datetime, *, now: datetime) -> str:
    """Return a time of day with its day, as people write it."""
    local = at.astimezone(now.tzinfo)
    return f"{'today' if local.date() == now.date() else _day(local.date(), now)} {local:%H:%M}"


def _whole(day: date) -> str:
    """Return a date with its year, in whatever year the line is read."""
    return f"{day.day} {day:%B} {day.year:04}"


def _day(day: date, now: datetime) -> str:
    return day_words(day, now.date())


def _who(alert: AboutMentor) -> str:
    """Return a mentor as commands find one: the number, and of which organisation."""
    key = f"{alert.member_no} of {alert.organisation}"
    return key if alert.full_name == alert.member_no else f"{alert.full_name} ({key})"


def _resync(group: Sequence[AboutMentor]) -> str:
    """Return the command to type; for several mentors that of the first."""
    return resync_command(group[0].member_no, group[0].organisation) + (" and so on" if len(group) > 1 else "")


R = TypeVar("R", Advice, str)


def _grouped(alerts: Sequence[T], reason_of: Callable[[T], R]) -> list[tuple[R, list[T]]]:
    """Return those who share a reason together, in the order in which each reason first appears."""
    groups: dict[R, list[T]] = {}
    for alert in alerts:
        groups.setdefault(reason_of(alert), []).append(alert)
    return list(groups.items())
