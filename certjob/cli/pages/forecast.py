"""The page of `certjob forecast`: one line for each week, with a bar for its expiries."""

from dataclasses import asdict
from typing import Final

from certjob.cli.documents import left_out
from certjob.cli.terminal.output import Output
from certjob.database import Connection
from certjob.reports.forecast import MEASURES, Forecast

LONGEST_BAR: Final = 9
"""Cells. With more, the table would not fit on 80 columns."""


def show_forecast(output: Output, forecast: Forecast) -> None:
    """Print a table on a terminal, with a bar for the expiries; otherwise tab-separated lines."""
    rows = [asdict(week) for week in forecast.weeks]
    if not output.on_terminal:
        output.show_rows((), ([*row.values()] for row in rows))
        return
    sign = "━" if output.out.encoding.startswith("utf") else "="
    most = max((week.expiries for week in forecast.weeks), default=0)
    digits = len(f"{most:,}")
    for row, week in zip(rows, forecast.weeks, strict=True):
        bar = sign * max(1, round(LONGEST_BAR * week.expiries / most)) if week.expiries else ""
        row["expiries"] = f"{week.expiries:>{digits},} {bar}".rstrip()
    names = ("week", "starts_on", "ends_on", *MEASURES[1:], MEASURES[0])
    headings = ("=Week", "=From", "=To", *(f">{measure.capitalize()}" for measure in MEASURES[1:]), "=Expiries")
    output.show_table(headings, ([row[name] for name in names] for row in rows))


def to_document(connection: Connection, forecast: Forecast, *, organisation: str | None) -> dict[str, object]:
    """Return the JSON document."""
    weeks = [asdict(week) for week in forecast.weeks]
    about = {"today": forecast.today, "until": forecast.until, "organisation": organisation, "weeks": weeks}
    return left_out(connection, forecast.broken) | about
