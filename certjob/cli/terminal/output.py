"""What people see: tables and progress on a terminal, plain lines off it.

Results go to stdout, messages and logs to stderr. Off a terminal nothing is wrapped, cut or coloured.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column, Table
from rich.text import Text

from certjob.cli.terminal.lines import PageLine, keep_words_whole, wrap
from certjob.cli.terminal.logs import logs_steps, writes_json
from certjob.cli.terminal.plain import print_result
from certjob.redaction import harmless
from certjob.stopping import StopFlag

_BAR = 8
"""Cells; a longer one would leave no room on 80 columns for the ^C that a terminal echoes."""


def clean(text: object) -> str:
    """Return text from the database as one harmless line in which Rich finds no markup."""
    return escape(harmless(text))


class Output:
    """Where a command prints: results to stdout, messages to stderr if somebody watches."""

    def __init__(self, *, quiet: bool, stop: StopFlag | None = None) -> None:
        """``stop`` is set when a signal came: the work in hand may take some seconds to end."""
        self._stop = stop or StopFlag()
        self.on_terminal = sys.stdout.isatty()
        """Whether results are for a person's eyes: tables then, plain lines otherwise."""
        self.interactive = sys.stderr.isatty() and not quiet and not writes_json()
        """A person is watching: print what happened even if all went well. JSON is for programs."""
        self.out = Console(
            highlight=False, emoji=False, force_terminal=self.on_terminal, soft_wrap=not self.on_terminal
        )
        self.err = Console(highlight=False, emoji=False, force_terminal=self.interactive, stderr=True)

    def line(self, text: str) -> None:
        """Print a line for a person who watches; nothing off a terminal or with -q."""
        if self.interactive:
            self.err.print(clean(text))

    def result(self, text: str) -> None:
        """Print a line that was asked for, whole."""
        print_result(harmless(text))

    def text(self, text: str) -> None:
        """Print a line of a text: wrapped between words on a terminal, whole off it."""
        self.show_lines([PageLine(text=text)])

    def show_lines(self, lines: Iterable[PageLine]) -> None:
        """Print the lines of a page: wrapped between words on a terminal, whole off it."""
        if self.on_terminal:
            self.show_texts(wrap(self.out, lines))
            return
        for line in lines:
            self.result(f"{' ' * line.indent}{line.bullet}{line.head}{line.text}".rstrip())

    def show_texts(self, texts: Iterable[Text]) -> None:
        """Print the lines of a terminal as they are."""
        for text in texts:
            self.out.print(text, soft_wrap=True)

    def show_table(self, table: Table) -> None:
        """Print a table on a terminal, no word of it broken where the terminal has the room."""
        keep_words_whole(self.out, table)
        if table.title is not None:
            self.out.print(Text(str(table.title), style="bold"))
            table.title = None
        self.out.print(table)

    def progress(self) -> "Phases":
        """Show progress in a ``with`` block; nothing off a terminal, nor where -v logs each phase on it."""
        return Phases(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(_BAR),
            TimeElapsedColumn(),
            _DoneColumn(self._stop),
            console=self.err,
            disable=not self.err.is_terminal or logs_steps(),
            transient=True,
        )


class _DoneColumn(ProgressColumn):
    """How many are done; of how many, and how long the rest takes, where that is known; that it is being stopped."""

    def __init__(self, stop: StopFlag) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._stop = stop

    def render(self, task: Task) -> Text:
        """Return the number."""
        total = f" of {task.total:,.0f}" if task.total is not None else ""
        rest = ""
        if self._stop.is_set():
            rest = ", stopping"
        elif total and task.time_remaining is not None:
            rest = f", about {timedelta(seconds=int(task.time_remaining))} left"
        return Text(f"{task.completed:,.0f}{total}{rest}")


class Phases(Progress):
    """One line per phase of a run."""

    def phase(self, name: str) -> Callable[..., None]:
        """Begin a phase; a night does not know its length before, so that an empty one pays for no count.

        What it returns takes the number done, and the total once that is known.
        """
        task = self.add_task(name, total=None)

        def advance(done: int, total: int | None = None) -> None:
            self.update(task, completed=done, total=total)

        return advance


def new_table(*headings: str, title: str | None = None) -> Table:
    """Return an empty table in the one style that all have; a heading that begins with ``>`` is over numbers."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), title=title)
    for heading in headings:
        number = heading.startswith(">")
        table.add_column(heading.removeprefix(">"), justify="right" if number else "left", overflow="fold")
    return table


def show_rows(output: Output, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on a terminal, tab-separated lines off it."""
    if not output.on_terminal:
        for row in rows:
            print_result("\t".join(harmless(cell) for cell in row))
        return
    table = new_table(*headings)
    for row in rows:
        table.add_row(*map(clean, row))
    output.show_table(table)
