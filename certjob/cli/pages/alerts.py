"""The page of `certjob alerts` on a terminal, and plain lines off it: the most harmful first."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from certjob.cli.pages.alert_sections import Group, Row, Section, describe, moment, number
from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.output import Output
from certjob.cli.terminal.plain import harmless
from certjob.views.alerts import Alerts

MOST_ROWS: Final = 20
"""A page names so many mentors of those who share a cause; --json has all of them."""
_LINES_BELOW: Final = 2
"""The shell's, below a page."""
NOTHING: Final = "All clear: nothing needs attention."


def show_alerts(output: Output, alerts: Alerts, *, zone: tzinfo, now: datetime) -> None:
    """Print the page on a terminal, one whole line per alert off it; times in ``zone``."""
    if not output.on_terminal:
        for line in plain_lines(alerts, zone=zone, now=now):
            output.result(line)
        return
    if not len(alerts):
        output.out.print(NOTHING)
    texts = list(wrap(output.out, page_lines(alerts, zone=zone, now=now)))
    if len(texts) > output.out.height - _LINES_BELOW:  # what is worst has scrolled away
        texts += wrap(output.out, [PageLine(text=""), *_headings(alerts, zone=zone, now=now)])
    output.show_texts(texts)


def _headings(alerts: Alerts, *, zone: tzinfo, now: datetime) -> Iterator[PageLine]:
    for section in describe(alerts, zone=zone, now=now):
        yield PageLine(text=section.heading, style=f"bold {section.colour}")


def plain_lines(alerts: Alerts, *, zone: tzinfo, now: datetime) -> Iterator[str]:
    """Yield one line per alert with everything in it, for programs and logs; none changes because time passes."""
    for section in describe(alerts, zone=zone, now=now):
        for group in section.groups:
            for said, do in _said(group, zone):
                yield harmless(f"{section.label}: {said}" + (f"; what to do: {do.rstrip('.')}" if do else ""))


def _said(group: Group, zone: tzinfo) -> Iterator[tuple[str, str]]:
    """Yield each alert of a group, and what to do about it."""

    def since(at: datetime | None) -> str:
        return f"since {at.astimezone(zone):%Y-%m-%d %H:%M}" if at else ""

    if group.is_one:
        said = ", ".join(filter(None, [group.why, since(group.since)]))
        yield "; ".join([said, *(row.who for row in group.rows)]), group.do
        return
    for row in group.rows:
        calls = number(row.calls, "call") if row.calls else ""
        said = ", ".join(filter(None, [row.who, row.about, since(row.since), calls]))
        yield f"{said}: {(row.error or group.why).rstrip('.')}", "" if group.is_automatic else row.do or group.do


def page_lines(alerts: Alerts, *, zone: tzinfo, now: datetime) -> list[PageLine]:
    """Return the page. Of those who share a cause whoever has waited longest is named first."""
    page = _Page(zone=zone, now=now)
    lines = [line for section in describe(alerts, zone=zone, now=now) for line in page.section(section)]
    return lines[1:]  # each section begins with an empty line


class _Page:
    """Turns the description into the lines of a terminal."""

    def __init__(self, *, zone: tzinfo, now: datetime) -> None:
        self._zone = zone
        self._now = now.astimezone(UTC)  # hours that passed: Python ignores a change of the clocks within one zone

    def section(self, section: Section) -> Iterator[PageLine]:
        """Yield its heading, what it means, and its groups."""
        yield PageLine(text="")
        yield PageLine(text=section.heading, style=f"bold {section.colour}")
        if section.sentence:
            yield PageLine(text=section.sentence, style=section.colour)
        yield PageLine(text=section.meaning)
        for group in section.groups:
            yield PageLine(text="")
            yield from self._group(group)

    def _group(self, group: Group) -> Iterator[PageLine]:
        """Why, what to do, who; the technical reason once if it is the same for all."""
        several = len(group.rows) > 1 and not group.is_one
        why = f"{group.why} ({number(len(group.rows), group.noun)})" if several else group.why
        yield PageLine(text=why + self._since(group.since, ", "), style="bold", indent=2, alerts=group.is_one)
        if group.do:
            yield PageLine(head="What to do: ", text=group.do, indent=2)
        same = len({row.error for row in group.rows}) == 1
        for row in group.rows[:MOST_ROWS]:
            text = f": {row.about}" if row.about else self._since(row.since, ": ")
            text += f"; next try {row.next_try.partition(',')[0]}" if row.next_try else ""
            yield PageLine(head=row.who, text=text, bullet="- ", indent=4, alerts=0 if group.is_one else row.stands_for)
            if row.error and not same:
                yield self._reason([row], indent=6)
        left = len(group.rows) - MOST_ROWS
        if left > 0:
            yield PageLine(text=f"… and {left:,} more; `certjob alerts --json` lists all", indent=4, alerts=left)
        if same and group.rows[0].error:
            yield self._reason(group.rows, indent=4)

    def _reason(self, rows: Sequence[Row], *, indent: int) -> PageLine:
        """The technical reason, and when it was last so."""
        said = "Reason"
        if failed_at := max((row.failed_at for row in rows if row.failed_at is not None), default=None):
            so_far = f", {number(rows[0].calls, 'call')} so far" if rows[0].calls and len(rows) == 1 else ""
            said = f"{'Last try' if rows[0].calls else 'Noted'} {self._moment(failed_at)}{so_far}"
        return PageLine(text=f"{said}: {rows[0].error}", style="dim", indent=indent)

    def _since(self, at: datetime | None, before: str) -> str:
        return f"{before}since {self._moment(at)}, {_duration(self._now - at)}" if at else ""

    def _moment(self, at: datetime) -> str:
        return moment(at, zone=self._zone, now=self._now)


def _duration(elapsed: timedelta) -> str:
    """Return how long something has lasted, in its largest unit, rounded down.

    >>> _duration(timedelta(hours=47)), _duration(timedelta(seconds=-3))
    ('1 day', 'just now')
    """
    for unit, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1))):
        if elapsed >= length:
            return number(elapsed // length, unit)
    return "just now"
