"""The page of `certjob alerts`, the most harmful first. ``now`` has the time zone of the printed times."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Final

from certjob.cli.terminal.lines import PageLine, PagePart, wrap
from certjob.cli.terminal.output import Output
from certjob.domain.alert_kinds import WORDS, Kind, count_in_words
from certjob.domain.causes import HELD_REASONS
from certjob.domain.explanations import day_words, moment_words, number
from certjob.errors import Cause
from certjob.reports.alerts import Alert, HeldMentor

MOST_ROWS: Final = 20
"""Alerts of one cause on a page. --json has all of them."""
MOST_HELD: Final = 50
"""Mentors of one hold on a page. --json has all of them."""
_LINES_BELOW: Final = 2
"""Lines that the shell prints below a page."""
NO_ALERTS: Final = "All clear: nothing needs attention."


def show_alerts(
    output: Output,
    alerts: Sequence[Alert],
    *,
    now: datetime,
    acknowledged: int = 0,
    held: Sequence[HeldMentor] = (),
) -> None:
    """Print the page on a terminal, otherwise one line per alert; then the number of acknowledged alerts.

    ``held`` has the mentors of the holds, in each hold the most harmful change first.
    """
    by_alert = {alert_id: list(mentors) for alert_id, mentors in groupby(held, key=attrgetter("alert_id"))}
    parts = list(page_parts(alerts, now=now, held=by_alert)) or [PagePart(lines=[PageLine(text=NO_ALERTS)])]
    if output.on_terminal:
        texts = list(wrap(output.out, (line for part in parts for line in part.lines)))
        if len(texts) > output.out.height - _LINES_BELOW:  # the first lines have scrolled away
            short = (PageLine(text=count_in_words(kind, len(each)), bullet="- ") for kind, each in _sections(alerts))
            texts += wrap(output.out, [PageLine(text=""), PageLine(text="In short:", style="bold"), *short])
        output.show_texts(texts)
    else:
        for line in (line for part in parts for line in part.plain):
            output.result(line)
    if acknowledged:
        output.text(f"{acknowledged:,} acknowledged; see `certjob alerts --acknowledged`")


def page_parts(
    alerts: Sequence[Alert], *, now: datetime, held: Mapping[str, Sequence[HeldMentor]] | None = None
) -> Iterator[PagePart]:
    """Yield the headings, causes and alerts. In each group of alerts with one cause, the oldest comes first.

    No plain line changes only because time passes.
    """
    for place, (kind, section) in enumerate(_sections(alerts)):
        lines = [PageLine(text=_heading(kind, section), style="bold")]
        if count := sum(alert.cause != Cause.LATER_DAY_ON_PORTAL for alert in section):  # these may be visible for now
            lines.append(PageLine(text=WORDS[kind].meaning.format(mentors=number(count, "mentor"))))
        yield PagePart(lines=[PageLine(text=""), *lines] if place else lines)
        for group in _groups(section):
            yield from _group(group, now=now)
            for alert in group:
                yield from _held_parts((held or {}).get(alert.alert_id, ()))


def _sections(alerts: Sequence[Alert]) -> list[tuple[Kind, list[Alert]]]:
    return [(kind, list(same)) for kind, same in groupby(alerts, key=attrgetter("kind"))]


def _groups(section: Sequence[Alert]) -> list[list[Alert]]:
    """Return the alerts of each cause, in the order in which the causes first appear."""
    groups: dict[tuple[str, str | None], list[Alert]] = {}
    for alert in section:
        groups.setdefault((alert.advice.why, alert.error if alert.advice.is_for_all else None), []).append(alert)
    return list(groups.values())


def _heading(kind: Kind, section: Sequence[Alert]) -> str:
    """Return the sentence of the dashboard for open pushes, otherwise the number of alerts of this kind."""
    is_push = kind in (Kind.MAY_BE_VISIBLE, Kind.MAY_BE_HIDDEN)
    return section[0].sentence if is_push else count_in_words(kind, len(section))


def _group(group: Sequence[Alert], *, now: datetime) -> Iterator[PagePart]:
    """Yield the cause, the next step and the mentors; the technical reason once if it is the same for all.

    A cause that is the same for everyone has a plain line, and is left out of the lines of its alerts.
    """
    advice, what_to_do = group[0].advice, _do(group, now=now)
    why = f"{advice.why} ({len(group):,})" if len(group) > 1 else advice.why
    cause = [PageLine(text=""), PageLine(text=why, style="bold", indent=2)]
    for_all = ": ".join(filter(None, [advice.why.removesuffix("."), _technical_reason(group[0])]))
    yield PagePart(
        lines=[*cause, PageLine(head="What to do: ", text=what_to_do, indent=2)],
        plain=[f"{for_all}; what to do: {what_to_do}".removesuffix(".")] if advice.is_for_all else [],
    )
    is_same = len({alert.error for alert in group}) == 1
    for place, alert in enumerate(group):
        lines = [] if place >= MOST_ROWS else _alert_lines(alert, now=now, with_reason=not is_same)
        yield PagePart(lines=lines, plain=[_plain_line(alert, now=now)])
    more = f"… and {len(group) - MOST_ROWS:,} more; `certjob alerts --json` lists all"
    lines = [PageLine(text=more, indent=4)] if len(group) > MOST_ROWS else []
    yield PagePart(lines=[*lines, *(_technical(group, now=now, indent=4) if is_same else ())])


def _held_parts(mentors: Sequence[HeldMentor]) -> Iterator[PagePart]:
    """Yield a paragraph for each reason, and a plain line for each mentor of a hold."""
    for reason, group in groupby(mentors[:MOST_HELD], key=lambda each: HELD_REASONS.get(each.reason, each.reason)):
        same = [(each, each.full_name if each.full_name != each.member_no else "") for each in group]
        names = ", ".join(f"{name} ({each.member_no})" if name else each.member_no for each, name in same)
        about = [(each.alert_id, ", ".join(filter(None, [each.member_no, name]))) for each, name in same]
        yield PagePart(
            lines=[PageLine(text=f"{reason}: {names}", bullet="- ", indent=4)],
            plain=[f"Held back: {alert_id}, {who}: {reason}" for alert_id, who in about],
        )
    if len(mentors) > MOST_HELD:
        more = f"… and more; `certjob alerts --json` lists all mentors of {mentors[0].alert_id}"
        yield PagePart(lines=[PageLine(text=more, indent=4)], plain=[more])


def _alert_lines(alert: Alert, *, now: datetime, with_reason: bool) -> list[PageLine]:
    """Return the lines of one alert on a terminal."""
    since, day = alert.since.astimezone(now.tzinfo), alert.day
    about = (
        _about(alert, f"{day.day} {day:%b} {day.year:04}" if day else "")
        .removeprefix("certificate ")
        .removesuffix(", which has no portal")
    )
    if not about:
        year = "" if since.year == now.year else f" {since.year:04}"
        about = f"since {since:%H:%M}" if since.date() == now.date() else f"since {since.day} {since:%b}{year}"
    who = alert.full_name or ("" if alert.kind is Kind.UNKNOWN_CONTACTS else alert.organisation) or ""
    row = f"{', '.join(filter(None, [who, about]))}  {alert.alert_id}"
    lines = [PageLine(text=row, bullet="- ", indent=4)]
    if acknowledged := _acknowledged(alert):
        lines.append(PageLine(text=acknowledged, indent=6))
    return [*lines, *(_technical([alert], now=now, indent=6) if with_reason else ())]


def _plain_line(alert: Alert, *, now: datetime) -> str:
    """Return the line of one alert for programs and logs."""
    since = f"since {alert.since.astimezone(now.tzinfo):%Y-%m-%d %H:%M}"
    calls = number(alert.calls, "call") if alert.calls else ""
    day = f"{alert.day.day} {alert.day:%B} {alert.day.year:04}" if alert.day else ""
    parts = [_who(alert), _about(alert, day), since, calls, _acknowledged(alert)]
    line, advice = f"{alert.sentence}: {', '.join(filter(None, parts))}", alert.advice
    if not advice.is_for_all:
        line += f": {(_technical_reason(alert) or advice.why).removesuffix('.')}"
    if not (advice.is_for_all or advice.is_tried_automatically):
        line += f"; what to do: {_do([alert], now=now).removesuffix('.')}"
    return line


def _technical(group: Sequence[Alert], *, now: datetime, indent: int) -> Iterator[PageLine]:
    """Yield the technical reason, and the time of the last failure."""
    if reason := _technical_reason(group[0]):
        failed_at = max((alert.last_failed_at for alert in group if alert.last_failed_at), default=None)
        head = f"Last failure {moment_words(failed_at.astimezone(now.tzinfo), now.date())}" if failed_at else "Reason"
        yield PageLine(text=f"{head}: {reason}", indent=indent)


def _technical_reason(alert: Alert) -> str | None:
    return None if alert.advice.says_all else alert.error


def _do(group: Sequence[Alert], *, now: datetime) -> str:
    """Return the next step, with the command for the first alert, and the time of the first retry."""
    at = min((alert.next_attempt_at for alert in group if alert.next_attempt_at), default=now)
    return group[0].what_to_do(next_try=next_try(at, now=now), others=len(group) > 1)


def _who(alert: Alert) -> str:
    """Return the alert's id, which has the organisation and the member number, and the name."""
    return alert.alert_id + (f", {alert.full_name}" if alert.full_name not in (None, alert.member_no) else "")


def _about(alert: Alert, day: str) -> str:
    """Return the certificate, digest or mentor of the alert, with its day in words."""
    match alert.kind:
        case Kind.FAILED_REMINDERS | Kind.WAITING_REMINDERS:
            return f"certificate until {day}"
        case Kind.FAILED_DIGESTS | Kind.WAITING_DIGESTS:
            return f"of {day}"
        case Kind.UNKNOWN_CONTACTS if alert.mentor_id:
            return f"{alert.member_no} of {alert.organisation}, which has no portal"
        case Kind.MAY_BE_VISIBLE if alert.day:
            return f"on the portal until {day}"
    return ""


def _acknowledged(alert: Alert) -> str:
    if alert.acknowledged_because is None:
        return ""
    until = f" until {alert.acknowledged_until}" if alert.acknowledged_until else ""
    return f"acknowledged{until}: {alert.acknowledged_because}"


def next_try(at: datetime, *, now: datetime) -> str:
    """Return the time of the automatic retry, as the end of a sentence."""
    if at <= now:
        return "when `certjob deliver` runs next, normally every 15 minutes"
    local = at.astimezone(now.tzinfo)
    on = "" if local.date() == now.date() else f"on {day_words(local.date(), now.date())} "
    return f"{on}at {local:%H:%M}, or soon after"
