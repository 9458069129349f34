"""`certjob status` for people: one screen of 24 lines on a terminal, one line per fact off it."""

from collections.abc import Iterator, Sequence
from datetime import datetime, tzinfo

from rich.text import Text

from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.output import Output, clean, new_table
from certjob.cli.terminal.plain import harmless
from certjob.outbox.open_work import OpenWork
from certjob.review.attention import summarize
from certjob.views.status import Run, SystemStatus

_OUTCOMES = {"ok": "green", "attention": "yellow", "failed": "bold red", "died": "bold red", "running": "cyan"}
_SORTS = {"portal_hides": "hides", "portal_shows": "shows", "reminders": "reminders", "digests": "digests"}
_STATES = ("open", "due", "later", "busy", "blocked")
_MOST_RUNS, _FEWEST_RUNS = 7, 3
"""On a terminal: as many as leave the first line on a screen of 24 lines, whatever is wrong."""
_OTHER_LINES = 13
"""The last good night, both tables without the runs, what parts them, and the shell's own line."""


def show_status(output: Output, status: SystemStatus, *, zone: tzinfo, every_night: bool) -> None:
    """Print everything; ``every_night`` has a line for each of the coming nights instead of one for all."""
    page = _Page(output, status, zone, every_night=every_night)
    if output.on_terminal:
        page.show()
    else:
        for line in page.lines():
            output.result(line)


def closing_line(status: SystemStatus, *, zone: tzinfo) -> str | None:
    """Return why the command exits with 3; None when the nights run and nothing needs attention."""
    summary = summarize(status.alerts)
    alerts = f"{summary}; see `certjob alerts`" if summary else None
    if not status.stale:
        return alerts
    return f"{_why_stale(status, zone=zone)}{f'. Also {alerts}' if alerts else ''}"


def _why_stale(status: SystemStatus, *, zone: tzinfo) -> str:
    good = status.last_good_run
    if good is None:
        return "no night has come to its end yet; run `certjob run`, and see whether cron does"
    at = f"{good.finished_at.astimezone(zone):%Y-%m-%d %H:%M}"
    return (
        f"the last good night ended {duration_words(good.age_seconds)} ago ({at}), more than "
        f"{duration_words(status.max_age_seconds)}; see how the last runs ended, whether cron runs, and `certjob check`"
    )


class _Page:
    """What is shown, in its order: whether the nights run, what waits, the last runs, what comes."""

    def __init__(self, output: Output, status: SystemStatus, zone: tzinfo, *, every_night: bool) -> None:
        self._output = output
        self._status = status
        self._zone = zone
        self._every_night = every_night

    def show(self) -> None:
        """Print two tables between the lines that matter."""
        status = self._status
        self._fact("Last good night", self._last_good(), style="bold red" if status.stale else "")
        rows = [self._work_cells(name, work) for name, work in status.backlog.items()]
        self._table(("What waits", *map(str.capitalize, _STATES), "Oldest"), rows, numbers=range(1, 6))
        figures = [PageLine(head=f"{name}: ", text=text) for name, text in self._figures()]
        closing = [PageLine(text=f"certjob status: {line}") for line in [closing_line(status, zone=self._zone)] if line]
        below = len(list(wrap(self._output.out, [*figures, *closing])))
        most = max(_FEWEST_RUNS, min(_MOST_RUNS, self._output.out.height - _OTHER_LINES - below))
        runs = [self._run_cells(run) for run in _most_telling(status.runs, most=most)]
        self._table(("Last runs", "Command", "Outcome", "Took", "Host"), runs, styled=2)
        self._output.out.print()
        self._output.show_lines(figures)

    def lines(self) -> Iterator[str]:
        """Yield the same without tables, and with more of the last runs."""
        yield f"last good night: {self._last_good()}"
        for name, work in self._status.backlog.items():
            yield f"waiting {self._work_line(name, work)}"
        for run in self._status.runs:
            started, command, outcome, took, host = self._run_cells(run)
            yield f"run: {started}, {command}, {outcome}, {took}, on {host}"
        for name, text in self._figures():
            yield f"{name[:1].lower()}{name[1:]}: {text}"

    def _fact(self, name: str, text: str, *, style: str) -> None:
        self._output.show_lines([PageLine(head=f"{name}: ", text=text, style=style)])

    def _table(
        self, headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: range = range(0), styled: int = -1
    ) -> None:
        """Print a table; the cells of the column ``styled`` are outcomes, in their colours."""
        self._output.out.print()
        table = new_table(*(f">{heading}" if at in numbers else heading for at, heading in enumerate(headings)))
        for row in rows or [("none", *[""] * (len(headings) - 1))]:
            table.add_row(
                *(Text(cell, _OUTCOMES.get(cell, "")) if at == styled else clean(cell) for at, cell in enumerate(row))
            )
        self._output.show_table(table)

    def _last_good(self) -> str:
        good = self._status.last_good_run
        return f"{self._moment(good.finished_at)}, {duration_words(good.age_seconds)} ago" if good else "never"

    def _run_cells(self, run: Run) -> tuple[str, str, str, str, str]:
        command = run.command if run.organisation is None else f"{run.command} --organisation {run.organisation}"
        took = duration_words(run.duration_seconds)
        if run.outcome == "running":
            took = f"for {took} now"
        elif run.outcome == "died":
            took = f"after {took}"
        return (self._moment(run.started_at), command, run.outcome, took, harmless(run.host))

    def _work_cells(self, name: str, work: OpenWork) -> tuple[str, ...]:
        numbers = (work.open, work.due, work.waiting, work.in_flight, work.blocked)
        oldest = self._moment(work.oldest_at) if work.oldest_at else ""
        return (_SORTS[name], *(f"{number:,}" for number in numbers), oldest)

    def _work_line(self, name: str, work: OpenWork) -> str:
        numbers = (work.due, work.waiting, work.in_flight, work.blocked)
        parts = ", ".join(f"{number:,} {state}" for number, state in zip(numbers, _STATES[1:], strict=True) if number)
        since = f" ({parts}), the oldest since {self._moment(work.oldest_at)}" if work.oldest_at else ""
        return f"{_SORTS[name]}: {work.open:,}{since}"

    def _figures(self) -> Iterator[tuple[str, str]]:
        status, failure = self._status, self._status.oldest_failure
        if self._every_night:
            for night in status.coming:
                yield f"To review on {night.on:%a} {night.on}", f"{night.mentors:,}"
        else:
            tonight, coming = status.coming[0].mentors, sum(night.mentors for night in status.coming)
            nights = f"{len(status.coming)} nights"
            yield "Mentors to review", f"{tonight:,} today, {coming:,} within {nights}; see `certjob status --days 14`"
        if status.without_certificate:
            mentors = (
                "1 active mentor"
                if status.without_certificate == 1
                else f"{status.without_certificate:,} active mentors"
            )
            yield "Without any certificate", f"{mentors}, whom certjob does not watch"
        if failure is not None:
            who = f"{failure.member_no} of {failure.organisation} to be {'shown' if failure.visible else 'hidden'}"
            since = f"the oldest since {self._moment(failure.created_at)}, {who}"
            yield "Failed pushes", f"{status.unresolved_failures:,}, {since}; see `certjob alerts`"
        if status.mail_waits_until is not None:
            yield "Mail waits until", f"{self._moment(status.mail_waits_until)} (CERTJOB_MAIL_HOURS)"

    def _moment(self, at: datetime) -> str:
        return f"{at.astimezone(self._zone):%Y-%m-%d %H:%M}"


def _most_telling(runs: Sequence[Run], *, most: int) -> list[Run]:
    """Return as many as a screen has room for: first what runs now or ended badly, and the last of each command."""
    newest = {run.command: run for run in reversed(runs)}

    def is_telling(run: Run) -> bool:
        return run.outcome not in ("ok", "attention") or newest[run.command] is run

    chosen = sorted(runs, key=lambda run: not is_telling(run))[:most]
    return [run for run in runs if run in chosen]


def duration_words(seconds: float) -> str:
    """Return how long something took, in its two largest units.

    >>> duration_words(26 * 3600), duration_words(3.21), duration_words(0.2), duration_words(9 * 86_400)
    ('1 d 2 h', '3 s', 'under 1 s', '9 d')
    """
    if seconds < 1:
        return "under 1 s"
    parts: list[tuple[int, str]] = []
    rest = int(seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)
