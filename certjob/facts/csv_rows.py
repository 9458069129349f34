"""CSV as strangers write it: one record at a time, in flat memory, whatever the file holds."""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from certjob.errors import InputError

LINE_LIMIT = 262_144
"""Characters in a line, and in a record of several lines; longer ones belong to no list of certificates."""

RECORD_LINES_LIMIT = 200
"""Lines that a quoted cell may run over; a quote still open then was never meant to be one."""

CELLS_LIMIT = 1_000

BLANK_LINES_LIMIT = 1_000_000
"""One after the other; few spreadsheets have as many rows."""

DELIMITERS = (",", ";", "\t")

_WORKBOOK = b"PK\x03\x04"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of the file."""

    line: int
    """Where it begins: the first line of the file is 1. A quoted line break begins a new line, not a new record."""
    cells: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokenRecord:
    """A line that no record could be read from; reading goes on with the next line."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    text: str


class _TooLongError(Exception):
    """A quote is still open after as much text as one record may hold."""


@contextmanager
def open_csv(path: Path) -> Iterator["CsvReader"]:
    """Open a CSV file (UTF-8, with or without a byte order mark; lines may end in LF, CRLF or CR alone).

    Raises InputError, also while records are read, when the file cannot be read or holds something else than text.
    """
    try:
        with path.open("rb") as raw:
            head = raw.peek(4)[:4]
            if head.startswith(_UTF_16):
                message = f"{path}: the file is UTF-16; save it as 'CSV UTF-8' and load it again"
                raise InputError(message)
            if head.startswith(_WORKBOOK):
                message = f"{path}: the file is a workbook, not a CSV; save it as 'CSV UTF-8' and load that"
                raise InputError(message)
            # newline="" keeps line ends as they are, so that quoted ones survive, and still ends a line at a lone CR.
            with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                yield CsvReader(_Lines(stream, path=path), path=path)
    except OSError as error:
        message = (
            f"{path}: cannot be read ({error.strerror or type(error).__name__}); check the path and its permissions"
        )
        raise InputError(message) from error


class CsvReader:
    """The header of an open file, then its records."""

    def __init__(self, lines: "_Lines", *, path: Path) -> None:
        self._lines = lines
        self._path = path
        self._delimiter = ","

    def read_header(self, *, score: Callable[[Sequence[str]], int]) -> list[str]:
        """Return the column names: the first line that is not blank.

        The delimiter is the one under which the names score highest, the one with most names among equals; a first
        line ``sep=;``, as spreadsheets write it, names it. Raises InputError when there is no such line.
        """
        first = self._lines.take_filled()
        if first is not None and first.text[:4].lower() == "sep=" and first.text[4:5] in DELIMITERS:
            candidates: tuple[str, ...] = (first.text[4],)
            first = self._lines.take_filled()
        else:
            candidates = DELIMITERS
        if first is None:
            message = f"{self._path}: the file is empty; the first line must hold the column names"
            raise InputError(message)
        self._delimiter = max(candidates, key=lambda delimiter: _rank(first.text, delimiter, score))
        header = self._record(first)
        if isinstance(header, BrokenRecord):
            message = f"{self._path}: line {header.line} should hold the column names, but {header.reason}"
            raise InputError(message)
        if len(header.cells) > CELLS_LIMIT:
            message = (
                f"{self._path}: the first line has {len(header.cells):,} columns, more than {CELLS_LIMIT:,}; "
                "this is no list of certificates"
            )
            raise InputError(message)
        return [" ".join(cell.split()) for cell in header.cells]

    def __iter__(self) -> Iterator[Record | BrokenRecord]:
        """Yield every record; those without any text in them are left out."""
        while (line := self._lines.take_filled()) is not None:
            record = self._record(line)
            if isinstance(record, BrokenRecord) or any(cell and not cell.isspace() for cell in record.cells):
                yield record

    def _record(self, first: _Line) -> Record | BrokenRecord:
        if '"' not in first.text:
            return Record(line=first.number, cells=first.text.rstrip("\r\n").split(self._delimiter))
        taken: list[_Line] = []
        try:
            # The parser asks for another line only while a quote is open.
            reader = csv.reader(self._feed(first, taken), delimiter=self._delimiter, strict=True, skipinitialspace=True)
            return Record(line=first.number, cells=next(reader))
        except _TooLongError:
            reason = "a quote that opens here is never closed"
        except csv.Error:
            reason = (
                "text follows a closing quote, or a quote that opens here is never closed; "
                "a quote inside a quoted cell is written twice"
            )
        # A stray quote costs its own line, never the rows after it.
        self._lines.give_back(taken[1:])
        return BrokenRecord(line=first.number, reason=reason)

    def _feed(self, first: _Line, taken: list[_Line]) -> Iterator[str]:
        size = 0
        for line in chain([first], iter(self._lines.take, None)):
            taken.append(line)
            size += len(line.text)
            if size > LINE_LIMIT or len(taken) > RECORD_LINES_LIMIT:
                raise _TooLongError
            yield line.text


class _Lines:
    """The physical lines of a file with their numbers; lines can be given back."""

    def __init__(self, stream: io.TextIOWrapper, *, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._number = 0
        self._returned: deque[_Line] = deque()

    def take(self) -> _Line | None:
        """Return the next line, None at the end; never more than LINE_LIMIT characters are in memory."""
        if self._returned:
            return self._returned.popleft()
        text = self._stream.readline(LINE_LIMIT + 1)
        if not text:
            return None
        self._number += 1
        self._refuse_what_is_no_text(text)
        return _Line(self._number, text)

    def take_filled(self) -> _Line | None:
        """Return the next line that is not blank."""
        for _ in range(BLANK_LINES_LIMIT):
            line = self.take()
            if line is None or not line.text.isspace():
                return line
        message = f"{self._path}: line {self._number} is the {BLANK_LINES_LIMIT:,}th blank line in a row; cut them off"
        raise InputError(message)

    def give_back(self, lines: Sequence[_Line]) -> None:
        """Let the next ``take`` return these lines again."""
        self._returned.extendleft(reversed(lines))

    def _refuse_what_is_no_text(self, text: str) -> None:
        place = f"{self._path}: line {self._number}"
        if "\0" in text:
            message = (
                f"{place} holds a NUL character, so this is no text; save the file as 'CSV UTF-8' and load it again"
            )
            raise InputError(message)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:  # surrogateescape marks every byte that is not UTF-8
                message = f"{place} is not UTF-8; save the file as 'CSV UTF-8' and load it again"
                raise InputError(message) from error
        if len(text) > LINE_LIMIT:
            message = f"{place} is longer than {LINE_LIMIT:,} characters; this is no list of certificates"
            raise InputError(message)


def _rank(text: str, delimiter: str, score: Callable[[Sequence[str]], int]) -> tuple[int, int]:
    try:
        cells = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a cell too large
        return (0, 0)
    return (score([" ".join(cell.split()) for cell in cells]), len(cells))
