"""`certjob status` for people: tables on a terminal, one line per fact off it."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta, tzinfo

from rich.table import Table
from rich.text import Text

from certjob.cli.terminal.lines import PageLine, keep_words_whole, unbroken
from certjob.cli.terminal.output import Output, clean
from certjob.cli.terminal.plain import harmless
from certjob.outbox.open_work import OpenWork
from certjob.views.status import Run, SystemStatus

_OUTCOMES = {"ok": "green", "attention": "yellow", "failed": "bold red", "died": "bold red", "running": "cyan"}
_SORTS = {"portal_hides": "hides", "portal_shows": "shows", "reminders": "reminders", "digests": "digests"}
_LONGEST_BAR = 40
_BESIDE_A_BAR = 36


def show_status(output: Output, status: SystemStatus, *, zone: tzinfo) -> None:
    """Print everything: tables on a terminal, off it one line per fact."""
    page = _Page(output, status, zone)
    if output.on_terminal:
        page.show()
    else:
        for line in page.lines():
            output.result(line)


def closing_line(status: SystemStatus, *, zone: tzinfo) -> str | None:
    """Return why the command exits with 3; None when the nights run."""
    if not status.stale:
        return None
    good = status.last_good_run
    if good is None:
        return "no night has come to its end yet; run `certjob run`, and see whether cron does"
    at = f"{good.finished_at.astimezone(zone):%Y-%m-%d %H:%M}"
    return (
        f"the last good night ended {duration_words(good.age)} ago ({at}), more than {duration_words(status.max_age)}; "
        "see how the last runs ended, whether cron runs, and `certjob check`"
    )


class _Page:
    """What is shown, in its order."""

    def __init__(self, output: Output, status: SystemStatus, zone: tzinfo) -> None:
        self._output = output
        self._status = status
        self._zone = zone

    def show(self) -> None:
        """Print the tables, or lines where the terminal is too narrow for their words."""
        self._fact("Last good night", self._last_good(), style="red" if self._status.stale else "green")
        runs = [self._run_cells(run) for run in self._status.runs]
        headings: tuple[str, ...] = ("Started", "Command", "Took", "Outcome", "Host")
        self._table("Last runs", headings, runs, lines=map(self._run_line, self._status.runs))
        headings = ("What waits", "Open", "Due", "Later", "Busy", "Blocked", ">1 h", ">1 d", "Oldest")
        rows = [self._work_cells(name, work) for name, work in self._status.open_work.items()]
        lines = (self._work_line(name, work) for name, work in self._status.open_work.items())
        self._table("", headings, rows, numbers=range(1, 8), lines=lines)
        coming = list(self._coming_cells())
        lines = (f"{day}: {number}" for day, number, _ in coming)
        self._table("Mentors to review", ("Night", "Mentors", ""), coming, numbers=range(1, 2), lines=lines)
        self._output.out.print()
        for name, text in self._figures():
            self._fact(name, text)

    def lines(self) -> Iterator[str]:
        """Yield the same without tables; what is nothing is left out."""
        yield f"last good night: {self._last_good()}"
        for run in self._status.runs:
            yield f"run: {self._run_line(run)}"
        for name, work in self._status.open_work.items():
            yield f"waiting {self._work_line(name, work)}"
        for day, number in self._status.coming.items():
            yield f"to review on {day}: {number:,}"
        for name, text in self._figures():
            yield f"{name[:1].lower()}{name[1:]}: {text}"

    def _run_line(self, run: Run) -> str:
        started, command, took, outcome, host = self._run_cells(run)
        return f"{started}, {command}, {outcome}, took {took}, on {host}"

    def _work_line(self, name: str, work: OpenWork) -> str:
        words = ("due", "later", "busy", "blocked")
        numbers = (work.due, work.waiting, work.in_flight, work.blocked)
        parts = ", ".join(f"{number:,} {word}" for number, word in zip(numbers, words, strict=True) if number)
        since = f" ({parts}), the oldest since {self._moment(work.oldest_at)}" if work.oldest_at else ""
        return f"{_SORTS[name]}: {work.open:,}{since}"

    def _fact(self, name: str, text: str, *, style: str = "") -> None:
        self._output.show_lines([PageLine(head=f"{name}: ", text=unbroken(harmless(text)), style=style)])

    def _table(
        self,
        title: str,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        numbers: range = range(0),
        lines: Iterable[str],
    ) -> None:
        """Print a table, its lines instead where it has no room; without a title its first heading is one."""
        self._output.out.print()
        if title:
            self._output.out.print(Text(title if rows else f"{title}: none", style="bold"))
        if not rows:
            return
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for number, heading in enumerate(headings):
            table.add_column(heading, justify="right" if number in numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell, style=_OUTCOMES[cell]) if cell in _OUTCOMES else clean(cell) for cell in row))
        if keep_words_whole(self._output.out, table):
            self._output.out.print(table)
            return
        if not title:
            self._output.out.print(Text(headings[0], style="bold"))
        self._output.show_lines(PageLine(text=harmless(line), bullet="- ") for line in lines)

    def _last_good(self) -> str:
        good = self._status.last_good_run
        return f"{self._moment(good.finished_at)}, {duration_words(good.age)} ago" if good else "never"

    def _run_cells(self, run: Run) -> tuple[str, str, str, str, str]:
        command = run.command if run.organisation is None else f"{run.command} --organisation {run.organisation}"
        return (self._moment(run.started_at), command, duration_words(run.took), run.outcome, harmless(run.host))

    def _work_cells(self, name: str, work: OpenWork) -> tuple[str, ...]:
        numbers = (
            work.open,
            work.due,
            work.waiting,
            work.in_flight,
            work.blocked,
            work.older_than_hour,
            work.older_than_day,
        )
        return (
            _SORTS[name],
            *(f"{number:,}" for number in numbers),
            self._moment(work.oldest_at) if work.oldest_at else "",
        )

    def _coming_cells(self) -> Iterator[tuple[str, str, str]]:
        most = max(self._status.coming.values())
        longest = max(min(self._output.out.width - _BESIDE_A_BAR, _LONGEST_BAR), 1)
        block = "█" if (self._output.out.encoding or "").lower().startswith("utf") else "#"
        for day, number in self._status.coming.items():
            length = max(1, round(longest * number / most)) if number else 0
            yield (f"{day} {'today' if day == self._status.today else f'{day:%a}'}", f"{number:,}", block * length)

    def _figures(self) -> Iterator[tuple[str, str]]:
        status, failure = self._status, self._status.oldest_failure
        yield "Unresolved failures", f"{failure.unresolved:,}; see `certjob alerts`" if failure else "0"
        if failure is not None:
            what = "shown" if failure.visible else "hidden"
            since = self._moment(failure.created_at)
            who = f"{failure.member_no} of {failure.organisation} to be {what}"
            yield "Oldest failure", f"since {since}, {who}: {failure.error}"
        for name, failed in (
            ("Failed reminders", status.failed_reminders),
            ("Failed digests", status.failed_digests),
        ):
            yield name, f"{failed:,}; see `certjob alerts`" if failed else "0"
        if status.mail_waits_until is not None:
            yield "Mail waits until", f"{self._moment(status.mail_waits_until)} (CERTJOB_MAIL_HOURS)"
        yield "Active mentors without any certificate", f"{status.without_certificate:,}"

    def _moment(self, at: datetime) -> str:
        return f"{at.astimezone(self._zone):%Y-%m-%d %H:%M}"


def duration_words(elapsed: timedelta) -> str:
    """Return how long something took, in its two largest units.

    >>> duration_words(timedelta(hours=26)), duration_words(timedelta(seconds=3.21)), duration_words(timedelta(days=9))
    ('1 d 2 h', '3.2 s', '9 d')
    """
    seconds = elapsed.total_seconds()
    if seconds < 60:
        return f"{seconds:.1f} s"
    parts: list[tuple[int, str]] = []
    rest = int(seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)
