"""The forecast as people and programs read it: a table on a terminal, CSV off it, one JSON document."""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Final

from rich.text import Text

from certjob.cli.documents import left_out
from certjob.cli.terminal.csv_output import print_csv
from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output, new_table
from certjob.reports.forecast import MEASURES, Forecast

LONGEST_BAR: Final = 16
"""Cells; the table has room for it on 80 columns."""


def show_forecast(output: Output, forecast: Forecast, *, organisation: str | None) -> None:
    """Print a table on a terminal, CSV off it."""
    if not output.on_terminal:
        print_forecast_csv(forecast)
        return
    whose = f" for {organisation}" if organisation else ""
    days = (forecast.until - forecast.today).days + 1
    nights = "the coming night" if days == 1 else f"the next {days:,} nights"
    if not any(forecast.total.values()):
        output.result(f"Nothing in {nights}{whose}.")
        return
    output.out.print(Text(f"{nights[:1].upper()}{nights[1:]}{whose}, if nobody renews", style="bold"))
    headings = (f">{measure.capitalize()}" for measure in MEASURES)
    table = new_table("Week", "Days", *headings, "")
    bars = _bars([week.counts["expiries"] for week in forecast.weeks], encoding=output.out.encoding)
    for week, bar in zip(forecast.weeks, bars, strict=True):
        cells = (Text(f"{count:,}", style="" if count else "dim") for count in week.counts.values())
        table.add_row(week.name[5:], _days(week.starts_on, week.ends_on), *cells, Text(bar, style="cyan"))
    table.add_row("Total", "", *(f"{count:,}" for count in forecast.total.values()), "", style="bold")
    output.show_table(table)
    narrowed = f" --organisation {organisation}" if organisation else ""
    hints = []
    if forecast.total["expiries"] > forecast.expired_already:
        command = f"certjob list --status valid --status expiring --within {days - 2}{narrowed}"
        hints.append(f"Whose certificates: `{command}`")
    if forecast.expired_already:
        command = f"certjob list --status expired{narrowed}"
        hints.append(f"Expired already, recorded tonight: {forecast.expired_already:,}; see `{command}`")
    output.show_lines(PageLine(text=hint, style="dim") for hint in hints)


def print_forecast_csv(forecast: Forecast) -> None:
    """Print one row per week."""
    header = ("week", "starts_on", "ends_on", *MEASURES)
    print_csv(header, ((week.name, week.starts_on, week.ends_on, *week.counts.values()) for week in forecast.weeks))


def to_document(forecast: Forecast, *, organisation: str | None) -> dict[str, object]:
    """Return the JSON document."""
    return left_out(forecast.broken) | {
        "today": forecast.today,
        "until": forecast.until,
        "organisation": organisation,
        "weeks": [
            {"week": week.name, "starts_on": week.starts_on, "ends_on": week.ends_on} | week.counts
            for week in forecast.weeks
        ],
        "total": forecast.total,
    }


def _bars(counts: Sequence[int], *, encoding: str | None) -> Iterator[str]:
    """Yield a bar for each count; thin ones, so that rows stay apart. Something is never drawn as nothing."""
    sign = "━" if (encoding or "").lower().startswith("utf") else "="
    most = max(counts, default=0)
    for count in counts:
        yield sign * max(1, round(LONGEST_BAR * count / most)) if count else ""


def _days(first: date, last: date) -> str:
    """Return the days of a week: ``9–15 Mar``, ``30 Mar – 5 Apr``, ``10 Mar``."""
    if first == last:
        return f"{first.day} {first:%b}"
    if first.month == last.month:
        return f"{first.day}–{last.day} {last:%b}"
    return f"{first.day} {first:%b} – {last.day} {last:%b}"
