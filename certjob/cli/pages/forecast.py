"""The forecast as people and programs read it: bars on a terminal, one whole line per week off it, CSV, JSON."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

from rich.cells import cell_len
from rich.text import Text

from certjob.cli.terminal.csv_output import print_csv
from certjob.cli.terminal.output import Output
from certjob.views.forecast import Forecast, Week


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Something that is counted by week."""

    name: str
    singular: str
    colour: str
    of: Callable[[Week], int]


MEASURES: Final = (
    Measure(name="expiries", singular="expiry", colour="red", of=lambda week: week.expiries),
    Measure(name="reminders", singular="reminder", colour="cyan", of=lambda week: week.reminders),
    Measure(name="pauses", singular="pause", colour="yellow", of=lambda week: week.pauses),
    Measure(name="hides", singular="hide", colour="magenta", of=lambda week: week.hides),
)

LONGEST_BAR: Final = 24
"""Cells; a wider terminal makes it no easier to read."""

_SHORTEST_BAR: Final = 3
_GAP: Final = 2
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"


def show_forecast(output: Output, forecast: Forecast, *, organisation: str | None) -> None:
    """Print bars on a terminal, no wider than it; off it one line per week, with everything in it."""
    if not output.on_terminal:
        for week in forecast.weeks:
            output.result(_plain(week))
        return
    whose = f" for {organisation}" if organisation else ""
    days = (forecast.until - forecast.today).days + 1
    number = "The coming night" if days == 1 else f"The coming {days:,} nights"
    output.out.print(Text(f"{number}{whose}, if nobody renews", style="bold"))
    blocks = (output.out.encoding or "").lower().startswith("utf")
    for line in chart_lines(forecast.weeks, width=output.out.width, blocks=blocks):
        output.out.print(line, soft_wrap=True)
    narrowed = f" --organisation {organisation}" if organisation else ""
    hint = Text(f"Who they are: `certjob list --status expiring{narrowed}`", style="dim")
    output.out.print(hint, soft_wrap=True)


def print_forecast_csv(forecast: Forecast) -> None:
    """Print one row per week."""
    header = ("week", "starts_on", "ends_on", *(measure.name for measure in MEASURES))
    print_csv(header, ((week.name, week.starts_on, week.ends_on, *_counts(week)) for week in forecast.weeks))


def to_document(forecast: Forecast, *, organisation: str | None) -> dict[str, object]:
    """Return the JSON document."""
    return {
        "outcome": "attention" if forecast.problems else "ok",
        "today": forecast.today,
        "until": forecast.until,
        "organisation": organisation,
        "weeks": [
            {"week": week.name, "starts_on": week.starts_on, "ends_on": week.ends_on}
            | {measure.name: measure.of(week) for measure in MEASURES}
            for week in forecast.weeks
        ],
        "total": {measure.name: sum(map(measure.of, forecast.weeks)) for measure in MEASURES},
        "problems": [{"mentor_id": problem.mentor_id, "reason": problem.reason} for problem in forecast.problems],
    }


def chart_lines(weeks: Sequence[Week], *, width: int, blocks: bool = True) -> Iterator[Text]:
    """Yield the chart: a line of headings, one line per week, the totals; none wider than ``width`` if it can be.

    Each measure has a scale of its own, or the reminders would leave no room for the pauses. What is zero all the time
    (hides, where there is no portal) is left out; ``blocks`` says whether the terminal can show eighths of a cell.
    """
    measures = [measure for measure in MEASURES if measure.name == "expiries" or any(map(measure.of, weeks))]
    labels = [_label(week) for week in weeks]
    label_width = max(map(cell_len, (*labels, "in all")))
    bar_width, number_widths = _widths(weeks, measures, room=width - label_width)
    measures = measures[: len(number_widths)]
    most = [max(map(measure.of, weeks)) for measure in measures]

    def line(label: str, cells: Sequence[Text], *, style: str = "") -> Text:
        text = Text(label + " " * (label_width - cell_len(label)), style=style)
        for cell in cells:
            text.append(" " * _GAP).append_text(cell)
        text.rstrip()
        return text

    beside = " " * (1 + bar_width) if bar_width else ""
    headings = [
        Text(each.name.rjust(number_width) + beside[max(len(each.name) - number_width, 0) :], style=each.colour)
        for each, number_width in zip(measures, number_widths, strict=True)
    ]
    yield line("", headings, style="bold")
    for label, week in zip(labels, weeks, strict=True):
        cells = []
        for measure, number_width, largest in zip(measures, number_widths, most, strict=True):
            count = measure.of(week)
            cell = Text(f"{count:>{number_width},}", style="" if count else "dim")
            if bar_width:
                cell.append(" ").append(bar(count, most=largest, width=bar_width, blocks=blocks), style=measure.colour)
            cells.append(cell)
        yield line(label, cells)
    totals = [
        Text(f"{sum(map(each.of, weeks)):>{number_width},}" + beside)
        for each, number_width in zip(measures, number_widths, strict=True)
    ]
    yield line("in all", totals, style="bold")


def bar(count: int, *, most: int, width: int, blocks: bool = True) -> str:
    """Return a bar of so many cells for the most there is; something is never drawn as nothing.

    >>> bar(1, most=1000, width=8).strip(), bar(4, most=8, width=2), bar(3, most=3, width=4, blocks=False)
    ('▏', '█ ', '####')
    """
    if not count or not most:
        return " " * width
    if not blocks:
        return ("#" * max(1, round(width * count / most))).ljust(width)
    eighths = max(1, math.floor(8 * width * count / most))
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _widths(weeks: Sequence[Week], measures: Sequence[Measure], *, room: int) -> tuple[int, list[int]]:
    """Return how long the bars are, 0 where there is no room for any, and how wide the numbers of each measure.

    Measures for which there is no room at all, the last ones first, get no width.
    """
    digits = [max(5, len(f"{sum(map(measure.of, weeks)):,}")) for measure in measures]
    longest = (room - sum(digits)) // len(measures) - _GAP - 1
    if longest >= _SHORTEST_BAR:
        return min(longest, LONGEST_BAR), digits
    alone = [max(width, len(measure.name)) for width, measure in zip(digits, measures, strict=True)]
    while len(alone) > 1 and sum(alone) + _GAP * len(alone) > room:
        alone.pop()
    return 0, alone


def _label(week: Week) -> str:
    return f"{week.name[5:]} {_days(week.starts_on, week.ends_on)}"


def _days(first: date, last: date) -> str:
    """Return the days of a week: ``9–15 Mar``, ``30 Mar – 5 Apr``, ``10 Mar``."""
    if first == last:
        return f"{first.day} {first:%b}"
    if first.month == last.month:
        return f"{first.day}–{last.day} {last:%b}"
    return f"{first.day} {first:%b} – {last.day} {last:%b}"


def _plain(week: Week) -> str:
    counts = [(measure, measure.of(week)) for measure in MEASURES]
    said = ", ".join(f"{count} {measure.singular if count == 1 else measure.name}" for measure, count in counts)
    return f"{week.name} {week.starts_on} to {week.ends_on}: {said}"


def _counts(week: Week) -> tuple[int, ...]:
    return tuple(measure.of(week) for measure in MEASURES)
