"""What coordinators must know, as a page on a terminal and as plain lines off it: the most harmful first."""

import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import partial
from typing import Final, TypeVar

from certjob.cli.terminal.lines import PageLine, glued, unbroken
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.plain import harmless
from certjob.domain.alert_reasons import AlertReason, why_message_waits, why_push_waits
from certjob.views.alerts import (
    Alerts,
    FailedDigest,
    FailedReminder,
    HeldAlert,
    PushAlert,
    ReviewProblem,
    UnknownContact,
    WaitingMail,
)

MOST_ROWS: Final = 20
"""A page names so many mentors of those who share a cause; --json has all of them."""
MOST_CONTACTS: Final = 5
"""A page names so many contacts that are no mentor's."""
NOTHING: Final = "All clear: nothing needs attention."

_SOON: Final = "soon"

AnyAlert = TypeVar("AnyAlert", PushAlert, FailedReminder, FailedDigest, ReviewProblem)

_HELD: Final = {
    "pauses": "Too many would be paused at once: certjob changes nothing for this organisation until somebody decides.",
    "returns": "Too many would be brought back at once: certjob changes nothing for this organisation until somebody "
    "decides.",
    "reminders": "Too many reminders at once: none of them is sent until somebody decides. Everything else goes on.",
    "portal": "Too many would be shown on the portal at once: none of them is shown until somebody decides.",
}


def show_alerts(output: Output, alerts: Alerts, *, zone: tzinfo, now: datetime) -> None:
    """Print the page on a terminal, one whole line per alert off it; times in ``zone``."""
    if not output.on_terminal:
        for line in plain_lines(alerts, zone=zone):
            output.result(line)
        return
    if not len(alerts):
        output.out.print(NOTHING)
    output.show_lines(page_lines(alerts, zone=zone, now=now))


def plain_lines(alerts: Alerts, *, zone: tzinfo) -> Iterator[str]:
    """Yield one line per alert with everything in it, for programs and logs."""
    for held in alerts.held:
        yield harmless(
            f"Held: {held.organisation}: {held.reason}; since {held.since.astimezone(zone):%Y-%m-%d %H:%M}; "
            f"{'; '.join(_held_counts(held))}{_shown_names(held)}; to let it through: {held.command}"
        )
    for problem in alerts.never_reviewed:
        yield harmless(
            f"Not reviewed: {problem.full_name} ({problem.member_no}, {problem.mentor_id}), "
            f"since {problem.since.astimezone(zone):%Y-%m-%d %H:%M}: {problem.error}"
        )
    for push in alerts.pushes:
        error = f": {push.error}" if push.error else ""
        yield harmless(
            f"{push.sentence}: {push.full_name} ({push.member_no}, {push.mentor_id}), "
            f"wanted since {push.wanted_at.astimezone(zone):%Y-%m-%d %H:%M}, {_number(push.calls, 'call')}{error}"
        )
    yield from map(harmless, portal_lines(alerts, zone=zone))
    for reminder in alerts.reminders:
        yield harmless(
            f"Reminder not delivered: {reminder.full_name} ({reminder.member_no}, {reminder.mentor_id}), "
            f"certificate until {reminder.expires_on}: {reminder.error}; correct the e-mail address"
        )
    for digest in alerts.digests:
        yield harmless(
            f"Digest not delivered: {digest.full_name} (coordinator {digest.coordinator_id}), "
            f"of {digest.digest_on}: {digest.error}; correct the e-mail address"
        )
    for waiting in alerts.waiting_mail:
        yield harmless(
            f"Mail waits: {_number(waiting.number, waiting.what.removesuffix('s'))}, the oldest since "
            f"{waiting.since.astimezone(zone):%Y-%m-%d %H:%M}{f': {waiting.error}' if waiting.error else ''}; "
            "run `certjob check`, then `certjob deliver`"
        )


def portal_lines(alerts: Alerts, *, zone: tzinfo) -> Iterator[str]:
    """Yield what the last reading of the portal left for people to do, one line each."""
    for both in alerts.contradictory:
        yield (
            f"Wanted both visible and hidden: contact {both.contact_id}, visible for {', '.join(both.visible_for)}, "
            f"hidden for {', '.join(both.hidden_for)}; certjob keeps it hidden until they agree"
        )
    for unknown in alerts.unknown_contacts[:MOST_CONTACTS]:
        yield (
            f"On the portal, and no mentor's: contact {unknown.contact_id}{_owner(unknown)}, since "
            f"{unknown.since.astimezone(zone):%Y-%m-%d %H:%M}; hide it in Dynamics, or `certjob reconcile --accept "
            f"{unknown.contact_id} --because TEXT`"
        )
    more = len(alerts.unknown_contacts) - MOST_CONTACTS
    if more > 0:
        yield f"On the portal, and no mentor's: {more:,} more; `certjob alerts --json` lists all"
    for reading in alerts.portal_not_read:
        yield (
            f"The portal was last read {reading.read_at.astimezone(zone):%Y-%m-%d %H:%M}; run `certjob reconcile`, and "
            "see why cron does not"
        )


def _owner(unknown: UnknownContact) -> str:
    if unknown.mentor_id is None:
        return ""
    return f" of {unknown.full_name} ({unknown.member_no}, {unknown.organisation}, which has no portal)"


def page_lines(alerts: Alerts, *, zone: tzinfo, now: datetime, most_rows: int = MOST_ROWS) -> list[PageLine]:
    """Return the page, the most harmful first: what is held, who could not be reviewed, the portal, the mail.

    Who shares a cause stands under it, whoever has waited longest first; the first ``most_rows`` of them are named.
    """
    page = _Page(alerts, zone=zone, now=now, most_rows=most_rows)
    hides = [push for push in alerts.pushes if not push.visible]
    shows = [push for push in alerts.pushes if push.visible]
    reviews = [*page.held(alerts.held), *page.never_reviewed(alerts.never_reviewed)]
    messages = [
        *page.reminders(alerts.reminders),
        *page.digests(alerts.digests),
        *page.waiting_mail(alerts.waiting_mail),
    ]
    lines = [*reviews, *page.pushes(hides), *page.reading(alerts), *page.pushes(shows), *messages]
    return lines[1:]  # each section begins with an empty line


class _Page:
    """Builds the sections of one page."""

    def __init__(self, alerts: Alerts, *, zone: tzinfo, now: datetime, most_rows: int) -> None:
        self._organisations = alerts.organisations if len(alerts.organisations) > 1 else {}
        self._zone = zone
        self._now = now.astimezone(UTC)  # hours that passed: Python ignores a change of the clocks within one zone
        self._most_rows = most_rows

    def held(self, held: Sequence[HeldAlert]) -> Iterator[PageLine]:
        """A section for each organisation for which the guards hold something back."""
        for each in held:
            heading = f"{harmless(each.name)} is held: nothing was applied to {_number(each.mentors, 'mentor')}"
            if each.what == "reminders":
                heading = f"{harmless(each.name)}: reminders to {_number(each.mentors, 'mentor')} are held"
            elif each.what == "portal":
                heading = f"{harmless(each.name)}: {_number(each.mentors, 'mentor')} are hidden on the portal"
            yield from self._heading(heading, _HELD[each.what], colour="red", alerts=1)
            yield PageLine(text="")
            yield PageLine(text=harmless(f"{each.reason}."), head="Why: ", indent=2)
            yield PageLine(
                text=f"{self._moment(each.since)}, {_duration(self._now - each.since)}", head="Since: ", indent=2
            )
            for count in _held_counts(each):
                yield PageLine(text=unbroken(f"{count}."), bullet="- ", indent=4)
            shown = [mentor for mentor in each.some if mentor.may_be_shown]
            for mentor in shown[: self._most_rows]:
                yield PageLine(text=harmless(f"{mentor.full_name} ({mentor.member_no})"), bullet="- ", indent=6)
            if shown and each.may_be_shown > self._most_rows:
                yield PageLine(text=f"… and {each.may_be_shown - len(shown[: self._most_rows]):,} more", indent=6)
            what_to_do = (
                "look at the portal. If these mentors are visible there, correct the function's settings. If they are "
                f"really hidden, run `{each.command}`."
                if each.what == "portal"
                else "check the clock and the last import. If the import was wrong, correct it and run "
                f"`certjob run`. If the changes are right, run `{each.command}`."
            )
            yield PageLine(text=unbroken(what_to_do), head="What to do: ", indent=2)

    def never_reviewed(self, problems: Sequence[ReviewProblem]) -> Iterator[PageLine]:
        """The section of the mentors whom no run could review."""
        if not problems:
            return
        meaning = "certjob does not know whether they are certified. They may be shown although they must not be."
        yield from self._heading(f"{_number(len(problems), 'mentor')} could not be reviewed", meaning, colour="red")
        groups: dict[str, list[ReviewProblem]] = {}
        for problem in problems:
            groups.setdefault(problem.error, []).append(problem)
        for error, group in groups.items():
            yield from self._group(
                group,
                nouns="mentors",
                why=harmless(error),
                what_to_do=f"end what is in the way, then {self._resync(group)}.",
                waits=lambda problem: f"since {self._moment(problem.since)}, {_duration(self._now - problem.since)}",
                noted=lambda _group: "",
            )

    def waiting_mail(self, waiting: Sequence[WaitingMail]) -> Iterator[PageLine]:
        """The section of the mail that has waited for more than a day."""
        if not waiting:
            return
        what = " and ".join(_number(each.number, each.what.removesuffix("s")) for each in waiting)
        verb = "has" if what.startswith("1 ") and len(waiting) == 1 else "have"
        meaning = "It has not gone out: the mail server does not take it, or `certjob deliver` does not run."
        yield from self._heading(
            f"{what} {verb} waited for more than a day", meaning, colour="yellow", alerts=len(waiting)
        )
        since = min(each.since for each in waiting)
        yield PageLine(text="")
        yield PageLine(text=f"{self._moment(since)}, {_duration(self._now - since)}", head="Since: ", indent=2)
        errors = dict.fromkeys(each.error for each in waiting if each.error)
        for error in errors:
            yield PageLine(text=harmless(error), head="The mail stage stopped: ", indent=2)
        what_to_do = "`certjob check` looks at the mail server; `certjob deliver` sends what waits."
        yield PageLine(text=unbroken(what_to_do), head="What to do: ", indent=2)

    def pushes(self, pushes: Sequence[PushAlert]) -> Iterator[PageLine]:
        """The section of those who should be hidden, or of those who should be shown."""
        if not pushes:
            return
        visible = pushes[0].visible
        number = _number(len(pushes), "mentor")
        if visible:
            colour = "yellow"
            heading = f"{number} may STILL BE HIDDEN on the portal"
            meaning = "They may meet people again, but the portal has not confirmed that it shows them."
        else:
            colour = "red"
            heading = f"{number} may STILL BE VISIBLE on the portal, and must not be"
            meaning = (
                "They are paused or have left, but the portal has not confirmed that it hides them: people may still "
                "find them there. If it cannot wait, hide them by hand in Dynamics."
            )
        yield from self._heading(heading, pushes[0].sentence, meaning, colour=colour)
        for reason, group in _by_reason(pushes, why_push_waits):
            tries = self._next_tries(group)
            with_next_try = reason.is_tried_automatically and len(tries) > 1
            yield from self._group(
                group,
                nouns="mentors",
                why=reason.why(),
                what_to_do=reason.advise(resync=self._resync(group), next_try=_together(tries)),
                waits=partial(self._push_waits, with_next_try=with_next_try),
                noted=self._noted,
            )

    def reading(self, alerts: Alerts) -> Iterator[PageLine]:
        """The section of what the last reading of the portal left for people to do."""
        lines = list(portal_lines(alerts, zone=self._zone))
        if not lines:
            return
        meaning = "certjob reads the portal every night and corrects what it may; this it leaves to you."
        yield from self._heading("The portal and certjob disagree", meaning, colour="yellow")
        yield PageLine(text="")
        for line in lines:
            yield PageLine(text=unbroken(harmless(line)), bullet="- ", indent=2, alerts=1)

    def reminders(self, reminders: Sequence[FailedReminder]) -> Iterator[PageLine]:
        """The section of the reminders that were not delivered."""
        if not reminders:
            return
        meaning = "The mail about their certificate has not reached these mentors."
        yield from self._heading(f"{_number(len(reminders), 'reminder')} not delivered", meaning)
        for reason, group in _by_reason(reminders, lambda reminder: why_message_waits(reminder.code)):
            yield from self._group(
                group,
                nouns="reminders",
                why=reason.why(),
                what_to_do=reason.advise(),
                waits=lambda reminder: f"certificate until {_day(reminder.expires_on)}",
                noted=lambda _group: "Reason",
            )

    def digests(self, digests: Sequence[FailedDigest]) -> Iterator[PageLine]:
        """The section of the coordinators whose daily mail was not delivered."""
        if not digests:
            return
        meaning = "These coordinators do not hear what happens to their mentors."
        yield from self._heading(f"{_number(len(digests), 'digest')} not delivered", meaning)
        for reason, group in _by_reason(digests, lambda digest: why_message_waits(digest.code)):
            yield from self._group(
                group,
                nouns="digests",
                why=reason.why(),
                what_to_do=reason.advise(message="digest"),
                waits=lambda digest: f"of {_day(digest.digest_on)}",
                noted=lambda _group: "Reason",
            )

    def _heading(self, heading: str, *more: str, colour: str = "", alerts: int = 0) -> Iterator[PageLine]:
        yield PageLine(text="")
        yield PageLine(text=heading, style=f"bold {colour}", alerts=alerts)
        *sentences, meaning = more
        yield from (PageLine(text=harmless(sentence), style=colour) for sentence in sentences)
        yield PageLine(text=meaning)

    def _group(
        self,
        group: Sequence[AnyAlert],
        *,
        nouns: str,
        why: str,
        what_to_do: str,
        waits: Callable[[AnyAlert], str],
        noted: Callable[[Sequence[AnyAlert]], str],
    ) -> Iterator[PageLine]:
        """One cause: why, what to do, who; the technical reason once if it is the same for all."""
        number = f" ({len(group):,} {nouns})" if len(group) > 1 else ""
        yield PageLine(text="")
        yield PageLine(text=f"{why}{number}", style="bold", indent=2)
        yield PageLine(text=unbroken(what_to_do), head="What to do: ", indent=2)
        same = len({alert.error for alert in group}) == 1
        for alert in group[: self._most_rows]:
            yield PageLine(text=f": {waits(alert)}", head=self._name(alert), bullet="- ", indent=4, alerts=1)
            if alert.error and not same:
                yield PageLine(text=f"{noted([alert])}: {harmless(alert.error)}", style="dim", indent=6)
        left = len(group) - self._most_rows
        if left > 0:
            more = unbroken(f"… and {left:,} more; `certjob alerts --json` lists all")
            yield PageLine(text=more, indent=4, alerts=left)
        if same and group[0].error and noted(group):
            yield PageLine(text=f"{noted(group)}: {harmless(group[0].error)}", style="dim", indent=4)

    def _push_waits(self, push: PushAlert, *, with_next_try: bool) -> str:
        since = f"since {self._moment(push.wanted_at)}, {_duration(self._now - push.wanted_at)}"
        return since + (f"; next try {self._next_tries([push]).pop()}" if with_next_try else "")

    def _name(self, alert: PushAlert | FailedReminder | FailedDigest | ReviewProblem) -> str:
        name = alert.full_name
        if not isinstance(alert, FailedDigest) and name != alert.member_no:
            name = f"{name} ({alert.member_no})"
        organisation = self._organisations.get(alert.organisation_id)
        return harmless(f"{name}, {organisation.name}" if organisation else name)

    def _resync(self, group: Sequence[PushAlert | ReviewProblem]) -> str:
        """The command to type; for several mentors that of the first."""
        organisation = self._organisations.get(group[0].organisation_id)
        command = f"certjob resync {shlex.quote(group[0].member_no)}"
        if organisation:  # two organisations may have the same member number
            command += f" --organisation {organisation.slug}"
        return f"`{harmless(command)}` and so on" if len(group) > 1 else f"`{harmless(command)}`"

    def _noted(self, group: Sequence[PushAlert]) -> str:
        """How the line of the technical reason begins: when it was last so."""
        failed_at = [push.last_failed_at for push in group if push.last_failed_at is not None]
        if not failed_at:
            return "Reason"
        if not group[0].calls:
            return f"Noted {self._moment(max(failed_at))}"
        so_far = f", {_number(group[0].calls, 'call')} so far" if len(group) == 1 else ""
        return f"Last try {self._moment(max(failed_at))}{so_far}"

    def _next_tries(self, group: Sequence[PushAlert]) -> set[str]:
        """When certjob tries them again by itself, as different as it reads."""
        now, today = self._now, self._now.astimezone(self._zone).date()
        minutes = {max(push.next_attempt_at, now).replace(second=0, microsecond=0) for push in group}
        tries = set()
        for minute in minutes:
            local = minute.astimezone(self._zone)
            day = "" if local.date() == today else f"on {_day(local.date(), today)} "
            tries.add(f"{day}at {local:%H:%M}" if minute > now else _SOON)
        return tries

    def _moment(self, at: datetime) -> str:
        local, today = at.astimezone(self._zone), self._now.astimezone(self._zone).date()
        day = "today" if local.date() == today else _day(local.date(), today)
        return glued(f"{day} {local:%H:%M}")


def _held_counts(held: HeldAlert) -> list[str]:
    """Return how many there are of each sort of those who are held."""
    due = "were due by the calendar" if held.what == "reminders" else "have ended by the calendar"
    if held.what == "portal":
        return [f"{held.mentors:,} are not visible on the portal and should be"]
    portal = [f"{held.may_be_shown:,} may be shown on the portal and must not be"] if held.may_be_shown else []
    return [
        f"{held.ended_by_calendar:,} {due}",
        f"{held.facts_changed:,} have facts that were changed since the last review",
        *portal,
    ]


def _shown_names(held: HeldAlert) -> str:
    """Return who may be shown on the portal, the first few."""
    names = [f"{mentor.full_name} ({mentor.member_no})" for mentor in held.some if mentor.may_be_shown][:5]
    more = f" and {held.may_be_shown - len(names):,} more" if held.may_be_shown > len(names) else ""
    return f": {', '.join(names)}{more}" if names else ""


def _by_reason(
    alerts: Iterable[AnyAlert], reason_of: Callable[[AnyAlert], AlertReason]
) -> Iterable[tuple[AlertReason, list[AnyAlert]]]:
    """Return those who share a reason together, in the order in which each reason first appears."""
    groups: dict[AlertReason, list[AnyAlert]] = {}
    for alert in alerts:
        groups.setdefault(reason_of(alert), []).append(alert)
    return groups.items()


def _together(tries: Collection[str]) -> str:
    """Say when certjob tries a group again; where that differs, each row says it."""
    if len(tries) > 1:
        return "at the time behind the name"
    if _SOON in tries:
        return "when `certjob deliver` runs next, normally every 15 minutes"
    return f"{next(iter(tries))}, or soon after"


def _day(day: date, today: date | None = None) -> str:
    """Return a date as people write it, without the year where it is today's."""
    return glued(f"{day.day} {day:%B}" + ("" if today and day.year == today.year else f" {day.year}"))


def _duration(elapsed: timedelta) -> str:
    """Return how long something has lasted, in its largest unit, rounded down.

    >>> _duration(timedelta(hours=47)), _duration(timedelta(seconds=-3))
    ('1\\ue000day', 'just now')
    """
    for unit, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1))):
        if elapsed >= length:
            return glued(_number(elapsed // length, unit))
    return "just now"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
