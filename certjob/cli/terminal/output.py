"""What people see: tables and progress on a terminal, plain lines off it.

Results go to stdout, messages and logs to stderr. Off a terminal nothing is wrapped, cut or coloured.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.logs import logs_steps, writes_json
from certjob.cli.terminal.plain import print_result
from certjob.cli.terminal.tables import lay_out
from certjob.redaction import harmless
from certjob.stopping import StopFlag

_BAR = 8
"""Cells; a longer one would leave no room on 80 columns for the ^C that a terminal echoes."""


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
            self.err.print(Text(harmless(text)))

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

    def show_table(
        self, headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", header: bool = True
    ) -> None:
        """Print a table on a terminal; see ``lay_out`` for the headings. An empty cell is None or ``""``."""
        cells = [["" if cell is None else harmless(cell) for cell in row] for row in rows]
        if title:
            self.out.print(Text(title, style="bold"))
        self.show_texts(lay_out(self.out, headings, cells, header=header))

    def show_rows(self, headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a table on a terminal, tab-separated lines off it."""
        if self.on_terminal:
            self.show_table(headings, rows)
            return
        for row in rows:
            print_result("\t".join("" if cell is None else harmless(cell) for cell in row))

    def progress(self) -> "Phases":
        """Show progress in a ``with`` block; nothing off a terminal, nor where -v logs each phase on it."""
        return Phases(
            _RunningColumn(),
            TextColumn("{task.description}"),
            BarColumn(_BAR),
            TimeElapsedColumn(),
            _DoneColumn(self._stop),
            console=self.err,
            disable=not self.err.is_terminal or logs_steps(),
            transient=True,
        )


class _RunningColumn(SpinnerColumn):
    """A spinner that stands still once its phase has ended."""

    def render(self, task: Task) -> RenderableType:
        """Return the spinner's current picture."""
        return " " if task.stop_time is not None else super().render(task)


class _DoneColumn(ProgressColumn):
    """The number done, the total and the remaining time if they are known, and whether the command is stopping."""

    def __init__(self, stop: StopFlag) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._stop = stop

    def render(self, task: Task) -> Text:
        """Return the number."""
        total = f" of {task.total:,.0f}" if task.total is not None else ""
        rest = ""
        if task.stop_time is not None:
            total = total if task.completed != task.total else ""
        elif self._stop.is_set():
            rest = ", stopping"
        elif total and task.time_remaining is not None:
            rest = f", about {timedelta(seconds=int(task.time_remaining))} left"
        return Text(f"{task.completed:,.0f}{total}{rest}")


class Phases(Progress):
    """One line for each phase of a command. A phase ends when the next one begins, and its line then stands still."""

    def phase(self, name: str, *, count: Callable[[], int] | None = None) -> Callable[[int], None]:
        """Begin a phase and return the function that takes the number done.

        ``count`` returns the total. It is called only on a terminal, because counting costs time.
        """
        for task in self.tasks:
            if task.total is None:
                self.update(task.id, total=task.completed)
            self.stop_task(task.id)
        phase = self.add_task(name, total=count() if count is not None and not self.disable else None)

        def advance(done: int) -> None:
            self.update(phase, completed=done)

        return advance
