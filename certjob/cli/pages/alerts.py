"""The page of `certjob alerts` on a terminal, and plain lines off it: the most harmful first.

``now`` is in the zone in which times are shown.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from certjob.cli.pages.alert_sections import Group, Row, Section, describe, moment
from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.output import Output
from certjob.domain.explanations import number
from certjob.redaction import harmless
from certjob.reports.alerts import Alerts

MOST_ROWS: Final = 20
"""A page names so many of those who share a cause; --json has all of them."""
_LINES_BELOW: Final = 2
"""The shell's, below a page."""
NOTHING: Final = "All clear: nothing needs attention."


def show_alerts(output: Output, alerts: Alerts, *, now: datetime) -> None:
    """Print the page on a terminal, one whole line per alert off it."""
    if not output.on_terminal:
        for line in plain_lines(alerts, now=now):
            output.result(line)
        return
    if not alerts:
        output.out.print(NOTHING)
    texts = list(wrap(output.out, page_lines(alerts, now=now)))
    if len(texts) > output.out.height - _LINES_BELOW:  # what is worst has scrolled away
        texts += wrap(output.out, [PageLine(text=""), *map(_heading, describe(alerts, now=now))])
    output.show_texts(texts)


def plain_lines(alerts: Alerts, *, now: datetime) -> Iterator[str]:
    """Yield one line per alert with everything in it, for programs and logs; none changes because time passes."""

    def since(at: datetime | None) -> str:
        return f"since {at.astimezone(now.tzinfo):%Y-%m-%d %H:%M}" if at else ""

    for section in describe(alerts, now=now):
        for group in section.groups:
            if not group.rows:
                said = ", ".join(filter(None, [group.why, since(group.since)]))
                yield _plain_line(section, "; ".join([said, *group.details]), do=group.do)
            for row in group.rows:
                calls = number(row.calls, "call") if row.calls else ""
                said = ", ".join(filter(None, [row.who, row.about, since(row.since), calls]))
                yield _plain_line(section, f"{said}: {(row.error or group.why).rstrip('.')}", do=row.do)


def _plain_line(section: Section, said: str, *, do: str) -> str:
    return harmless(f"{section.label}: {said}" + (f"; what to do: {do.rstrip('.')}" if do else ""))


def page_lines(alerts: Alerts, *, now: datetime) -> list[PageLine]:
    """Return the page. Of those who share a cause whoever has waited longest is named first."""
    lines = [line for section in describe(alerts, now=now) for line in _section(section, now=now)]
    return lines[1:]  # each section begins with an empty line


def _heading(section: Section) -> PageLine:
    return PageLine(text=section.heading, style=f"bold {section.colour}")


def _section(section: Section, *, now: datetime) -> Iterator[PageLine]:
    yield PageLine(text="")
    yield _heading(section)
    if section.sentence:
        yield PageLine(text=section.sentence, style=section.colour)
    yield PageLine(text=section.meaning)
    for group in section.groups:
        yield PageLine(text="")
        yield from _group(group, now=now)


def _group(group: Group, *, now: datetime) -> Iterator[PageLine]:
    """Why, what to do, who; the technical reason once if it is the same for all."""
    why = f"{group.why} ({number(len(group.rows), group.noun)})" if len(group.rows) > 1 else group.why
    yield PageLine(text=why + _since(group.since, now, before=", "), style="bold", indent=2)
    if group.do:
        yield PageLine(head="What to do: ", text=group.do, indent=2)
    for detail in group.details:
        yield PageLine(head=detail, text="", bullet="- ", indent=4)
    is_same = len({row.error for row in group.rows}) == 1
    for row in group.rows[:MOST_ROWS]:
        text = f": {row.about}" if row.about else _since(row.since, now, before=": ")
        yield PageLine(head=row.who, text=text, bullet="- ", indent=4)
        if row.error and not is_same:
            yield _technical([row], now=now, indent=6)
    if len(group.rows) > MOST_ROWS:
        left = len(group.rows) - MOST_ROWS
        yield PageLine(text=f"… and {left:,} more; `certjob alerts --json` lists all", indent=4)
    if is_same and group.rows[0].error:
        yield _technical(group.rows, now=now, indent=4)


def _technical(rows: Sequence[Row], *, now: datetime, indent: int) -> PageLine:
    """The technical reason, and when it was last so."""
    failed_at = max((row.failed_at for row in rows if row.failed_at is not None), default=None)
    said = f"Last failure {moment(failed_at, now=now)}" if failed_at else "Reason"
    return PageLine(text=f"{said}: {rows[0].error}", style="dim", indent=indent)


def _since(at: datetime | None, now: datetime, *, before: str) -> str:
    if at is None:
        return ""
    elapsed = now.astimezone(UTC) - at.astimezone(UTC)  # within one zone Python ignores a change of the clocks
    return f"{before}since {moment(at, now=now)}, {_duration(elapsed)}"


def _duration(elapsed: timedelta) -> str:
    """Return how long something has lasted, in its largest unit, rounded down.

    >>> _duration(timedelta(hours=47)), _duration(timedelta(seconds=-3))
    ('1 day', 'just now')
    """
    for unit, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1)), ("minute", timedelta(minutes=1))):
        if elapsed >= length:
            return number(elapsed // length, unit)
    return "just now"
