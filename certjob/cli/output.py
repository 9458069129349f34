"""The output of a command: its page, its JSON document, CSV, the lines on stderr, and progress.

Results go to stdout, messages and logs to stderr. Lines in a pipe are not wrapped, cut or coloured.
"""

import csv
import errno
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, tzinfo
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from certjob.cli.logs import logs_steps, traceback_lines
from certjob.page import GAP, Line, Page, Table
from certjob.redaction import harmless, printed_line, spreadsheet_text, without_secrets

ERROR_STYLE: Final = "bold #ffffff on #af0000"
WARNING_STYLE: Final = "#000000 on #ffd75f"
"""Each style has a background, so it is readable on every palette (contrast 7.9 and 15)."""

_LEVELS: Final = {
    "failed": ("error: ", ERROR_STYLE),
    "attention": ("warning: ", WARNING_STYLE),
    "warning": ("warning: ", WARNING_STYLE),
    "note": ("", ""),
}
_UNSEEN: Final = re.compile(
    "[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)
"""Invisible characters and terminal commands that json.dumps does not escape."""
_COMMAND: Final = re.compile("`[^`]*`")
_GLUE: Final = "\ue000"
"""Replaces a space in a command, which must not be broken. ``harmless`` removes it from other texts."""
_LEAST_WIDTH: Final = 60
"""A narrower terminal breaks the lines, because Rich would cut the columns."""
_LONGEST_WORD: Final = 70
"""A longer word may be broken."""


class Output:
    """Prints results on stdout, and messages on stderr if that is a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.on_terminal = sys.stdout.isatty()
        """Whether results are wrapped and in columns."""
        self.interactive = sys.stderr.isatty() and not quiet
        """Whether a person is watching. Then certjob prints successes, too."""
        self.out = Console(highlight=False, emoji=False, markup=False)
        self.out.width = max(self.out.width, _LEAST_WIDTH)
        self.err = Console(highlight=False, emoji=False, markup=False, stderr=True, force_terminal=self.interactive)

    def show(self, page: Page, *, zone: tzinfo | None = None, csv: bool = False) -> None:
        """Print a page, with times in ``zone``; with ``csv`` only its rows, also on a terminal."""
        on_terminal, keys = self.on_terminal and not csv, None
        for part in page:
            if isinstance(part, str):
                print(part)  # noqa: T201
            elif isinstance(part, Table) and on_terminal:
                _draw(self.out, part, zone=zone)
            elif isinstance(part, Table):
                keys = _print_rows(part, after=keys, zone=zone, csv_only=csv)
            elif on_terminal:
                for line in wrap(self.out, part):
                    self.out.print(line, soft_wrap=True)
            elif part != GAP and not csv:
                print(harmless(f"{part.indent}{part.head}{part.text}".rstrip()))  # noqa: T201

    def success(self, text: str) -> None:
        """Print a line if a person is watching."""
        if self.interactive:
            self.err.print(harmless(text))

    def progress(self) -> "Phases":
        """Show progress in a ``with`` block, on a terminal without the log lines of -v."""
        return Phases(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(8),  # on 80 columns this leaves space for the ^C that a terminal echoes
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.err,
            disable=not self.err.is_terminal or logs_steps(),
            transient=True,
        )


def _draw(console: Console, table: Table, *, zone: tzinfo | None) -> None:
    """Print the columns of a table. Numbers, days and words are whole, and texts are wrapped."""
    rows = list(itertools.islice(table.rows, table.most))
    drawn = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    used = [key for key in table.shown if not rows or any(row[key] not in (None, "") for row in rows)]
    for key in used:
        cells = [row[key] for row in rows if row[key] is not None]
        is_number = all(isinstance(cell, int) for cell in cells)
        is_whole = is_number or all(isinstance(cell, date) or _is_word(str(cell)) for cell in cells)
        drawn.add_column(table.shown[key], justify="right" if is_number else "left", no_wrap=is_whole, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_cell(row[key], zone=zone)) for key in used))  # a str could be markup
    console.print(drawn)
    count = len(rows) if table.count is None and len(rows) < table.most else table.count or len(list(table.rows))
    if count > len(rows):
        console.print(f"… and {count - len(rows):,} more; --json lists all of them")


def _is_word(text: str) -> bool:
    return " " not in text and len(text) <= _LONGEST_WORD


def _cell(value: object, *, zone: tzinfo | None) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case datetime():
            return f"{value.astimezone(zone):%Y-%m-%d %H:%M}"
    return harmless(value)


def _print_rows(table: Table, *, after: Sequence[str] | None, zone: tzinfo | None, csv_only: bool) -> Sequence[str]:
    """Print rows as CSV, with a header unless the rows before had the same columns. Return the columns.

    With ``csv_only`` it is a file for spreadsheets: RFC 4180, UTF-8, and whole times.
    """
    if csv_only and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", newline="")
    writer = csv.writer(sys.stdout, lineterminator="\r\n" if csv_only else "\n")
    keys = table.keys or list(table.shown)
    if keys != after:
        writer.writerow(keys)
    for row in table.rows:
        writer.writerow([_csv_cell(row[key], zone=None if csv_only else zone) for key in keys])
    return keys


def _csv_cell(value: object, *, zone: tzinfo | None) -> object:
    """Return a value of which no spreadsheet computes a formula."""
    match value:
        case list() | tuple():
            return spreadsheet_text("; ".join(value))
        case str():
            return spreadsheet_text(value)
        case bool():
            return _cell(value, zone=zone)
        case datetime() if zone is not None:
            return _cell(value, zone=zone)
    return value


def wrap(console: Console, line: Line) -> Iterator[Text]:
    """Yield the lines of a paragraph, one column narrower, because some letters are wider than Rich assumes."""
    text = _COMMAND.sub(lambda match: match[0].replace(" ", _GLUE), harmless(line.text))
    whole = Text.assemble((harmless(line.head), "bold"), text, style=line.style)
    width = max(console.width - 1 - len(line.indent), 1)
    for number, piece in enumerate(whole.wrap(console, width, overflow="fold") or [Text()]):
        piece.plain = piece.plain.replace(_GLUE, " ")
        piece.rstrip()
        yield Text.assemble(" " * len(line.indent) if number else line.indent, piece)


def print_json(document: Mapping[str, object]) -> None:
    """Print a command's document without characters that control a terminal. Times are UTC, dates ISO, ids texts.

    A value that is an iterator is printed as a list, entry by entry, because it may not fit into memory.
    """
    for place, (key, value) in enumerate(document.items()):
        print("," if place else "{", f"\n  {json.dumps(key)}: ", sep="", end="")  # noqa: T201
        for piece in _json_pieces(value):
            print(piece, end="")  # noqa: T201
    print("\n}")  # noqa: T201


def _json_pieces(value: object) -> Iterator[str]:
    if not isinstance(value, Iterator):
        yield _to_json(value, indent="  ")
        return
    count = 0
    for count, entry in enumerate(value, start=1):
        yield f"{'[' if count == 1 else ','}\n    {_to_json(entry, indent='    ')}"
    yield "\n  ]" if count else "[]"


def _to_json(value: object, *, indent: str) -> str:
    """Return a value as JSON whose lines after the first are indented."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_as_json).replace("\n", f"\n{indent}")
    return _UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)


class _Stream(io.FileIO):
    """A stream that may be lost: the reader ended first, as in ``certjob alerts | head``, or stderr is on a full disk.

    The command continues, because its work is more important.
    """

    def write(self, data: Any) -> int:
        """Write the data, if someone can still read it."""
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == _STDERR:
                _lost.append(error)
            elif error.errno not in (errno.EPIPE, errno.EIO):  # a closed pipe, and a closed terminal
                raise
            return len(data)


_STDERR: Final = 2
_lost: list[OSError] = []
"""Errors of writes to standard error."""


def stderr_is_complete() -> bool:
    """Return whether every line on standard error was written. ``main`` replaces a closed stream by /dev/null."""
    sys.stderr.flush()
    return not _lost and getattr(sys.stderr, "name", "") != os.devnull


def forgiving(stream: Any) -> io.TextIOWrapper:
    """Return a stream that may be lost, and that writes letters that its encoding does not have as escapes."""
    raw, by_line = _Stream(stream.fileno(), "w", closefd=False), stream.line_buffering or stream.write_through
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding=stream.encoding, errors="backslashreplace", line_buffering=by_line)


def discard_results() -> None:
    """Discard the rest of stdout after a failed write."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def say(command: str, message: str, *, level: str, error: BaseException | None = None) -> None:
    """Print one line on stderr, and the traceback of ``error``.

    ``level`` is ``failed``, ``attention``, ``warning`` or ``note``.
    """
    word, style = _LEVELS[level]
    line = without_secrets(printed_line(message))
    if sys.stderr.isatty():
        console = Console(stderr=True, highlight=False, emoji=False, markup=False)
        text = Text.assemble("\r", command, ": ", (word, style), line)  # \r overwrites an echoed ^C
        console.print(text, soft_wrap=True)
    else:
        print(f"{command}: {'warning: ' if level == 'warning' else ''}{line}", file=sys.stderr)  # noqa: T201
    for each in traceback_lines(error) if error is not None else ():
        print(each, file=sys.stderr)  # noqa: T201


class Phases(Progress):
    """One line for each phase of a command. A phase ends when the next one begins."""

    def phase(self, name: str, *, count: Callable[[], int] | None = None) -> Callable[[int], None]:
        """Begin a phase and return the function that takes the number done.

        ``count`` returns the total. It is called only on a terminal, because counting costs time.
        """
        for task in self.tasks:
            self.update(task.id, total=task.completed)
        phase = self.add_task(name, total=count() if count is not None and not self.disable else None)

        def advance(done: int) -> None:
            self.update(phase, completed=done)

        return advance
