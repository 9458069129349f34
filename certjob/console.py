"""What people see: tables and progress on a terminal, plain lines off it.

Results go to stdout, talk goes to stderr. Off a terminal nothing is wrapped, cut or coloured.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from certjob.logs import logs_steps, writes_json
from certjob.models import PauseChange, Status
from certjob.plain import harmless, print_attention, print_error, print_json, print_result
from certjob.report import PlannedChange, RunReport
from certjob.resync import MentorState
from certjob.terminal_page import PageLine, wrap
from certjob.terminal_table import keep_words_whole

__all__ = [
    "Talk",
    "TerminalProgress",
    "clean",
    "print_attention",
    "print_error",
    "print_json",
    "show_plan",
    "show_resync",
    "show_rows",
    "show_totals",
]

MOST_PLANNED_ROWS = 50
"""A plan on a terminal shows so many mentors; --json has all of them."""


def clean(text: object) -> str:
    """Return text from the database as one harmless line in which Rich finds no markup."""
    return escape(harmless(text))


class Talk:
    """Where a command says things, and whether it says them at all."""

    def __init__(self, *, quiet: bool) -> None:
        self.on_terminal = sys.stdout.isatty()
        """Whether results are for a person's eyes: tables then, plain lines otherwise."""
        self.chatty = sys.stderr.isatty() and not quiet and not writes_json()
        """A person is watching: say what happened also when all went well. JSON is for programs."""
        self.out = Console(
            highlight=False, emoji=False, force_terminal=self.on_terminal, soft_wrap=not self.on_terminal
        )
        self.err = Console(highlight=False, emoji=False, force_terminal=self.chatty, stderr=True)

    def line(self, text: str) -> None:
        """Say something to whoever watches."""
        if self.chatty:
            self.err.print(clean(text))

    def result(self, text: str) -> None:
        """Print a line that was asked for, whole."""
        print_result(harmless(text))

    def show_lines(self, lines: Iterable[PageLine]) -> None:
        """Print lines on a terminal, wrapped between words."""
        for text in wrap(self.out, lines):
            self.out.print(text, soft_wrap=True)

    @contextmanager
    def progress(self) -> Iterator["TerminalProgress"]:
        """Show progress while the block runs; nothing off a terminal, nor where -v logs each phase on it."""
        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            _DoneColumn(),
            TimeElapsedColumn(),
            console=self.err,
            disable=not self.chatty or logs_steps(),
            transient=True,
        ) as progress:
            yield TerminalProgress(progress)


class _DoneColumn(ProgressColumn):
    """How many are done; of how many, where that is known."""

    def render(self, task: Task) -> Text:
        """Return the number."""
        return Text(f"{task.completed:,.0f}" + (f" of {task.total:,.0f}" if task.total is not None else ""))


class TerminalProgress:
    """One line per phase of a run."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def phase(self, name: str, *, total: int | None = None) -> Callable[[int], None]:
        """Begin a phase; a night does not know its length before, so that an empty one pays for no count."""
        task: TaskID = self._progress.add_task(name, total=total)

        def advance(done: int) -> None:
            self._progress.update(task, completed=done)

        return advance


def show_plan(talk: Talk, report: RunReport) -> None:
    """Print what a run would do, mentor by mentor, and the totals."""
    if not talk.on_terminal:
        for change in report.changes:
            talk.result(_planned_line(change))
    elif report.changes:
        _show_changes(talk, report.changes[:MOST_PLANNED_ROWS], today=report.today)
        if len(report.changes) > MOST_PLANNED_ROWS:
            talk.result(f"… and {len(report.changes) - MOST_PLANNED_ROWS:,} more; --json lists all of them")
    show_totals(talk, report)


def _show_changes(talk: Talk, changes: Sequence[PlannedChange], *, today: date) -> None:
    """Print a table, a line for each mentor where the terminal is too narrow for it."""
    table = Table(title=f"What `certjob run` would do on {today}", title_justify="left", expand=False)
    for heading in ("Mentor", "Organisation", "Certificates", "Pause", "Reminder", "Portal"):
        table.add_column(heading, overflow="fold")
    for change in changes:
        table.add_row(*(clean(cell) for cell in _planned_cells(change)))
    if keep_words_whole(talk.out, table):
        talk.out.print(table)
        return
    talk.show_lines([PageLine(head=str(table.title), text=""), *(_planned_page_line(change) for change in changes)])


def show_totals(talk: Talk, report: RunReport) -> None:
    """Print a run's figures as a small table, or as one line off a terminal."""
    rows = list(_totals(report))
    if not talk.on_terminal:
        talk.result("; ".join(f"{name}: {figures}" for name, figures in rows))
        return
    what = "Plan" if report.dry_run else "Night" if report.command == "run" else "Delivery"
    title = f"{what} of {report.today}"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column()
    for name, figures in rows:
        table.add_row(name, figures)
    if keep_words_whole(talk.out, table):
        talk.out.print(table)
    else:
        talk.show_lines([PageLine(head=title, text=""), *(PageLine(text=": ".join(row), indent=2) for row in rows)])


def show_resync(talk: Talk, before: MentorState, after: MentorState) -> None:
    """Print one mentor's state before and after."""
    for when, state in (("before: ", before), ("after:  ", after)):
        if talk.on_terminal:
            talk.show_lines([PageLine(bullet=when, text=harmless(_state_line(state)))])
        else:
            talk.result(f"{when}{_state_line(state)}")


def show_rows(talk: Talk, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on a terminal, tab-separated lines off it."""
    if not talk.on_terminal:
        for row in rows:
            print_result("\t".join(harmless(cell) for cell in row))
        return
    records = list(rows)
    table = Table()
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for record in records:
        table.add_row(*(clean(cell) for cell in record))
    if keep_words_whole(talk.out, table):
        talk.out.print(table)
    else:
        talk.show_lines(_record_lines(headings, records))


def _record_lines(headings: Sequence[str], records: Iterable[Sequence[object]]) -> Iterator[PageLine]:
    """Yield the rows of a table that has no room: the first cell, and under it the others with their headings."""
    for record in records:
        yield PageLine(head=harmless(record[0]), text="")
        for heading, cell in zip(headings[1:], record[1:], strict=True):
            if cell != "":
                yield PageLine(text=f"{heading}: {harmless(cell)}", indent=2)


def _planned_cells(change: PlannedChange) -> tuple[str, ...]:
    decision = change.decision
    transitions = ", ".join(
        f"{transition.from_status} → {transition.to_status}"
        if transition.from_status is not Status.RECORDED
        else str(transition.to_status)
        for transition in decision.transitions
    )
    pause = {PauseChange.OPEN: "pause", PauseChange.LIFT: "lift", None: ""}[decision.pause]
    reminders = ", ".join(_threshold_words(reminder.threshold_days) for reminder in change.new_reminders)
    if reminders and not change.has_address:
        reminders += " (no e-mail address)"
    portal = ("show" if decision.visible else "hide") if decision.push else ""
    return (decision.member_no, decision.organisation.slug, transitions, pause, reminders, portal)


def _planned_line(change: PlannedChange) -> str:
    member_no, organisation, transitions, pause, reminders, portal = _planned_cells(change)
    parts = [
        f"certificates: {transitions}" if transitions else "",
        f"pause: {pause}" if pause else "",
        f"reminder: {reminders}" if reminders else "",
        f"portal: {portal}" if portal else "",
    ]
    return f"{organisation} {member_no}: " + "; ".join(part for part in parts if part)


def _planned_page_line(change: PlannedChange) -> PageLine:
    return PageLine(text=harmless(_planned_line(change)), bullet="- ")


def _threshold_words(days: int) -> str:
    if days == 0:
        return "on the day"
    return f"{days} d before" if days > 0 else f"{-days} d after"


def _totals(report: RunReport) -> Iterator[tuple[str, str]]:
    document = report.to_document()
    for part in ("mentors", "certificates", "reminders", "portal", "digests"):
        figures = document.get(part, {})
        said = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in figures.items() if value)
        if said or (figures and part != "digests"):  # most nights have none, and no plan has any
            yield part, said or "nothing"


def _state_line(state: MentorState) -> str:
    words = {True: "visible", False: "hidden", None: "unknown"}
    portal = (
        f"portal wanted {words[state.wanted]}, confirmed {words[state.acknowledged]}"
        + (f", push {state.open_push}" if state.open_push else "")
        if state.has_portal
        else "no portal"
    )
    return (
        f"{state.member_no}: {', '.join(state.certificates) or 'no certificate'}; "
        f"{'paused: ' + ', '.join(state.pauses) if state.pauses else 'not paused'}; {portal}"
    )
