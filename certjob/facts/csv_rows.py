"""CSV as strangers write it: one record at a time, in flat memory, whatever the file holds."""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from certjob.errors import InputError

LINE_LIMIT = 262_144
"""Characters in a line, and in a record of several lines; a longer one is a broken record."""

RECORD_LINES_LIMIT = 200
"""Lines that a quoted cell may run over; a quote still open then was never meant to be one."""

DELIMITERS = (",", ";", "\t")

_WORKBOOK = b"PK\x03\x04"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_KEPT_OF_A_LONG_LINE = 200
_STRAY_QUOTE = (
    "a quote that opens here is never closed, or text follows a closing quote; "
    "a quote inside a quoted cell is written twice"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One row of the file."""

    line: int
    """Where it begins: the first line of the file is 1. A quoted line break begins a new line, not a new record."""
    text: str
    """As it stands in the file, with its line end."""
    cells: list[str]
    """Empty when the record is broken."""
    broken: str | None = None
    """Why no cells could be read; reading goes on with the next line."""


class _Line(NamedTuple):
    number: int
    text: str


@contextmanager
def open_csv(path: Path) -> Iterator["CsvFile"]:
    """Open a CSV file (UTF-8, with or without a byte order mark; lines may end in LF, CRLF or CR alone).

    Raises InputError, also while records are read, when the file cannot be read or holds something else than text.
    """
    try:
        with path.open("rb") as raw:
            head = raw.peek(4)[:4]
            if head.startswith(_UTF_16):
                message = f"{path}: the file is UTF-16"
                raise InputError(message, next_step="save it as 'CSV UTF-8' and load it again")
            if head.startswith(_WORKBOOK):
                message = f"{path}: the file is a workbook, not a CSV"
                raise InputError(message, next_step="save it as 'CSV UTF-8' and load that")
            # newline="" keeps line ends as they are, so that quoted ones survive, and still ends a line at a lone CR.
            with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
                yield CsvFile(stream, path=path)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror or type(error).__name__})"
        raise InputError(message, next_step="check the path and its permissions") from error


class CsvFile:
    """The header of an open file, then its records."""

    def __init__(self, stream: io.TextIOWrapper, *, path: Path) -> None:
        self.delimiter = ","
        self.path = path
        self._lines = _read_lines(stream, path)
        self._waiting: deque[_Line] = deque()
        """Lines that a stray quote took along."""

    def read_header(self, *, score: Callable[[Sequence[str]], int]) -> Record:
        """Return the record with the column names: the first line that is not blank.

        The delimiter is the one under which the names score highest, the one with most names among equals; a first
        line ``sep=;``, as spreadsheets write it, names it. Raises InputError when there is no such line.
        """
        candidates: Sequence[str] = DELIMITERS
        first = self._next_filled()
        if first and first.text[:4].lower() == "sep=" and first.text[4:5] in DELIMITERS:
            candidates = first.text[4]
            first = self._next_filled()
        if first is None:
            message = f"{self.path}: the file is empty"
            raise InputError(message, next_step="give one whose first line holds the column names")
        self.delimiter = max(candidates, key=lambda delimiter: _rank(first.text, delimiter, score))
        header = self._record(first)
        if header.broken:
            message = f"{self.path}: line {header.line} should hold the column names, but {header.broken}"
            raise InputError(message)
        return header

    def __iter__(self) -> Iterator[Record]:
        """Yield every record; those without any text in them are left out."""
        while (line := self._next_filled()) is not None:
            record = self._record(line)
            if record.broken or any(cell and not cell.isspace() for cell in record.cells):
                yield record

    def _next(self) -> _Line | None:
        return self._waiting.popleft() if self._waiting else next(self._lines, None)

    def _next_filled(self) -> _Line | None:
        while (line := self._next()) is not None and line.text.isspace():
            pass
        return line

    def _record(self, first: _Line) -> Record:
        line, text = first
        if len(text) > LINE_LIMIT:
            broken = f"the line is longer than {LINE_LIMIT:,} characters"
            return Record(line=line, text=text[:_KEPT_OF_A_LONG_LINE] + "…", cells=[], broken=broken)
        if '"' not in text:
            return Record(line=line, text=text, cells=text.rstrip("\r\n").split(self.delimiter))
        taken = [first]
        try:
            # The parser asks for another line only while a quote is open.
            reader = csv.reader(self._feed(taken), delimiter=self.delimiter, strict=True, skipinitialspace=True)
            cells = next(reader)
            return Record(line=line, text="".join(part.text for part in taken), cells=cells)
        except csv.Error:
            # A stray quote costs its own line, never the rows after it.
            self._waiting.extendleft(reversed(taken[1:]))
            return Record(line=line, text=text, cells=[], broken=_STRAY_QUOTE)

    def _feed(self, taken: list[_Line]) -> Iterator[str]:
        size = len(taken[0].text)
        yield taken[0].text
        while size <= LINE_LIMIT and len(taken) < RECORD_LINES_LIMIT and (line := self._next()):
            taken.append(line)
            size += len(line.text)
            yield line.text


def _read_lines(stream: io.TextIOWrapper, path: Path) -> Iterator[_Line]:
    """Yield the physical lines; of a line beyond LINE_LIMIT only the beginning, so that memory stays flat."""
    for number in count(1):
        text = piece = stream.readline(LINE_LIMIT + 1)
        if not text:
            return
        place = f"{path}: line {number}"
        _refuse_what_is_no_text(text, place)
        while len(piece) > LINE_LIMIT and piece[-1] not in "\r\n":
            piece = stream.readline(LINE_LIMIT + 1)
            _refuse_what_is_no_text(piece, place)
        yield _Line(number, text)


def _refuse_what_is_no_text(text: str, place: str) -> None:
    if "\0" in text:
        message = f"{place} has a NUL character, so this is not text"
        raise InputError(message, next_step="save the file as 'CSV UTF-8' and load it again")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # surrogateescape marks every byte that is not UTF-8
            message = f"{place} is not UTF-8"
            raise InputError(message, next_step="save the file as 'CSV UTF-8' and load it again") from error


def _rank(text: str, delimiter: str, score: Callable[[Sequence[str]], int]) -> tuple[int, int]:
    try:
        cells = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error:  # a cell too large
        return (0, 0)
    return (score(cells), len(cells))
