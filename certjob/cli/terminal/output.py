"""Output for people: tables and progress on a terminal, otherwise plain lines.

Results go to stdout, messages and logs to stderr. Plain lines are not wrapped, cut or coloured.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from certjob.cli.terminal.lines import PageLine, wrap
from certjob.cli.terminal.logs import logs_steps, writes_json
from certjob.cli.terminal.plain import print_result
from certjob.cli.terminal.tables import lay_out
from certjob.redaction import harmless
from certjob.stopping import StopFlag

_BAR = 8
"""Cells. On 80 columns this leaves space for the ^C that a terminal echoes."""


class Output:
    """Prints results on stdout, and messages on stderr if that is a terminal."""

    def __init__(self, *, quiet: bool, stop: StopFlag | None = None) -> None:
        """The progress shows that the command is stopping once ``stop`` is set."""
        self._stop = stop or StopFlag()
        self.on_terminal = sys.stdout.isatty()
        """Whether results are tables and pages, instead of plain lines."""
        self.interactive = sys.stderr.isatty() and not quiet and not writes_json()
        """Whether a person is watching. Then certjob prints successes, too. JSON logs are for programs."""
        self.out = Console(
            highlight=False, emoji=False, force_terminal=self.on_terminal, soft_wrap=not self.on_terminal
        )
        self.err = Console(highlight=False, emoji=False, force_terminal=self.interactive, stderr=True)

    def line(self, text: str) -> None:
        """Print a line if a person is watching."""
        if self.interactive:
            self.err.print(Text(harmless(text)))

    def result(self, text: str) -> None:
        """Print a line of the result without wrapping it."""
        print_result(harmless(text))

    def text(self, text: str) -> None:
        """Print a line of a text, wrapped between words on a terminal."""
        self.show_lines([PageLine(text=text)])

    def show_lines(self, lines: Iterable[PageLine]) -> None:
        """Print the lines of a page, wrapped between words on a terminal."""
        if self.on_terminal:
            self.show_texts(wrap(self.out, lines))
            return
        for line in lines:
            self.result(f"{' ' * line.indent}{line.bullet}{line.head}{line.text}".rstrip())

    def show_texts(self, texts: Iterable[Text]) -> None:
        """Print wrapped lines."""
        for text in texts:
            self.out.print(text, soft_wrap=True)

    def show_table(
        self, headings: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", header: bool = True
    ) -> None:
        """Print a table. ``lay_out`` describes the headings. An empty cell is None or ``""``."""
        cells = [["" if cell is None else harmless(cell) for cell in row] for row in rows]
        if title:
            self.out.print(Text(title, style="bold"))
        self.show_texts(lay_out(self.out, headings, cells, header=header))

    def show_rows(
        self,
        headings: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        plain: Iterable[str] | None = None,
        title: str = "",
    ) -> None:
        """Print a table on a terminal, otherwise the plain lines or, without them, tab-separated lines."""
        if self.on_terminal:
            self.show_table(headings, rows, title=title)
            return
        for line in plain if plain is not None else ():
            self.result(line)
        for row in rows if plain is None else ():
            print_result("\t".join("" if cell is None else harmless(cell) for cell in row))

    def gap(self) -> None:
        """Print an empty line on a terminal."""
        if self.on_terminal:
            self.out.print()

    def progress(self) -> "Phases":
        """Show progress in a ``with`` block, on a terminal without the log lines of -v."""
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
    """A spinner that disappears when its phase ends."""

    def render(self, task: Task) -> RenderableType:
        """Return the current frame."""
        return " " if task.stop_time is not None else super().render(task)


class _DoneColumn(ProgressColumn):
    """The number done, the total and the remaining time if known, and whether the command is stopping."""

    def __init__(self, stop: StopFlag) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._stop = stop

    def render(self, task: Task) -> Text:
        """Return the column's text."""
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
    """One line for each phase of a command. A phase ends when the next one begins."""

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
