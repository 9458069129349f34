"""A file's own form: which of its columns is which of ours, and each of its rows as facts or as problems."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from certjob.errors import InputError
from certjob.facts import cells
from certjob.facts.cells import DEFAULT_DATE_FORMATS, shown
from certjob.facts.csv_rows import CsvFile, Record

IDENTITY = ("organisation", "member_no")
MENTOR = ("full_name", "email", "locale", "dynamics_contact_id", "left_on")
CERTIFICATE = ("kind", "issued_on", "expires_on")
COLUMNS = (*IDENTITY, *CERTIFICATE, *MENTOR, "revoked_on")

WHOLE_LINE = "(line)"
"""The column of a problem of the line itself."""

NEVER = "9999-12-31"
"""The end date of a certificate that does not end."""

_DATES = ("issued_on", "expires_on", "revoked_on", "left_on")
_LEFT_OUT = ("full_name", "email", "locale", "dynamics_contact_id")
"""What costs only its own cell when it is bad: a renewal does not wait for an address."""
_LONG_AGO = "1950-01-01"
_FAR_AHEAD = timedelta(days=15 * 365 + 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to read a file that was not made for certjob."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column to the header it has in the file."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Our column to the one value it has in every row; a column of that name in the file is not read."""
    date_formats: Sequence[str] = DEFAULT_DATE_FORMATS
    """strptime forms; the first one that fits a text counts. The default ones are read to the letter."""
    strict: bool = False
    """Load all rows or none."""
    today: date = date.max
    """A revocation or a departure counts at once, so one after this day is refused."""


class Cost(StrEnum):
    """What a problem costs."""

    ROW = "row"
    """The row is not loaded."""
    CELL = "cell"
    """The row is loaded, and the cell left out as if it were empty."""
    NOTHING = "nothing"
    """It is loaded as it is: a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a row. What is printed of it has no name and no address in it."""

    line: int
    """The line of the file on which the row begins; the first one is 1."""
    column: str
    """The column as the file calls it, ours for a constant, WHOLE_LINE when it is the line itself."""
    reason: str
    """The same words for the same mistake, so that they can be counted."""
    value: str = ""
    """The date that is wrong, where it is one."""
    cost: Cost = Cost.ROW
    text: str = field(default="", compare=False, repr=False)
    """The row as it stands in the file."""


class RosterRow(NamedTuple):
    """One valid row, or all valid rows about one certificate.

    Dates and ids are ISO texts; None where the file says nothing. The order is that of ``copy_load_rows``. In a file of
    mentors alone there is no certificate: all that belongs to it is None.
    """

    organisation: str
    """Its id."""
    member_no: str
    full_name: str | None = None
    email: str | None = None
    locale: str | None = None
    dynamics_contact_id: str | None = None
    left_on: str | None = None
    kind: str | None = None
    issued_on: str | None = None
    expires_on: str | None = None
    revoked_on: str | None = None
    line: int = 0
    text: str = ""


Parse = Callable[[str], str]
"""From the trimmed text of a cell to the value; raises ValueError with the reason."""


class _Column(NamedTuple):
    name: str
    place: int
    parse: Parse


class Roster:
    """The columns of one open file, which its options name, and its records as rows."""

    def __init__(self, file: CsvFile, options: LoadOptions, *, organisation_ids: Mapping[str, str]) -> None:
        """Read the header; column names are found whatever their case.

        A file with nothing of a certificate in it is one of mentors alone. Raises InputError when an option is wrong,
        a required or mapped column is missing, or one that is read is there twice.
        """
        _check(options)
        # The same few thousand days come again and again.
        self._read_date = lru_cache(maxsize=16_384)(partial(cells.read_date, formats=options.date_formats))
        self._parsers: dict[str, Parse] = dict.fromkeys(_DATES, self._read_date) | {
            "organisation": partial(cells.read_organisation, ids=organisation_ids),
            "member_no": cells.read_key,
            "kind": lru_cache(maxsize=1_024)(cells.read_key),
            "full_name": cells.read_name,
            "email": cells.read_email,
            "locale": cells.read_locale,
            "dynamics_contact_id": cells.read_contact_id,
        }
        self._today = options.today
        self._constants = {name: self._constant(name, text.strip()) for name, text in options.constants.items()}
        wanted = {name: _folded(options.columns.get(name, name)) for name in COLUMNS}
        self.header = file.read_header(score=lambda names: len({*wanted.values()} & {*map(_folded, names)}))
        """As it stands in the file."""
        names = [_folded(name) for name in self.header.cells]
        self._labels: dict[str, str] = {}
        self._columns: list[_Column] = []
        for name in (name for name in COLUMNS if name not in self._constants and wanted[name] in names):
            place = names.index(wanted[name])
            header = " ".join(self.header.cells[place].split())
            if names.count(wanted[name]) > 1:
                message = f"{file.path}: column '{shown(header)}' is there {names.count(wanted[name])} times"
                raise InputError(message, next_step="rename or remove the others")
            self._labels[name] = shown(header)
            self._columns.append(_Column(name, place, self._parsers[name]))
        given = {*self._labels, *self._constants, *options.columns}
        self.mentors_alone = given.isdisjoint((*CERTIFICATE, "revoked_on")) and not given.isdisjoint(MENTOR)
        self._required = IDENTITY if self.mentors_alone else (*IDENTITY, *CERTIFICATE)
        there = {*self._labels, *self._constants}
        missing = [name for name in COLUMNS if name in {*self._required, *options.columns} - there]
        if missing:
            raise self._missing(missing, options.columns, path=file.path)

    def label(self, name: str) -> str:
        """Return what the file calls a column of ours; one that it does not have is called as we call it."""
        return self._labels.get(name, name)

    def read(self, record: Record) -> tuple[RosterRow | None, list[Problem]]:
        """Return the facts of a record, None when it cannot be loaded, and all that is wrong with it."""
        problems: list[Problem] = []

        def note(name: str, reason: str, *, value: str = "", cost: Cost = Cost.ROW) -> None:
            column, line, text = self.label(name), record.line, record.text
            problems.append(Problem(line=line, column=column, reason=reason, value=value, cost=cost, text=text))

        texts, broken, width = record.cells, record.broken, len(self.header.cells)
        if not broken and (len(texts) < width or any(text.strip() for text in texts[width:])):
            broken = f"{len(texts):,} cells where the header has {width:,}"
        if broken:
            note(WHOLE_LINE, broken)
            return None, problems
        values: dict[str, str] = dict(self._constants)
        for name, place, parse in self._columns:
            text = texts[place].strip()
            if text:
                try:
                    values[name] = parse(text)
                except ValueError as error:
                    value = cells.shown_date(text) if name in _DATES else ""
                    note(name, str(error), value=value, cost=Cost.CELL if name in _LEFT_OUT else Cost.ROW)
            elif name in self._required:
                note(name, "empty")
        self._look_at_dates(values, note)
        if any(problem.cost is Cost.ROW for problem in problems):
            return None, [problem for problem in problems if problem.cost is Cost.ROW]
        return RosterRow(**values, line=record.line, text=record.text), problems

    def _look_at_dates(self, values: Mapping[str, str], note: Callable[..., None]) -> None:
        """Note each date that cannot be, or hardly."""
        issued_on, expires_on = values.get("issued_on", ""), values.get("expires_on")
        if expires_on is not None and expires_on < issued_on:
            note("expires_on", "ends before it begins", value=f"{issued_on} to {expires_on}")
        today = self._today.isoformat()
        for name in ("revoked_on", "left_on"):
            if values.get(name, "") > today:
                reason = "in the future, but it would count at once; load it on that day"
                note(name, reason, value=values[name])
        latest = (self._today + min(_FAR_AHEAD, date.max - self._today)).isoformat()
        for name in _DATES:
            day = values.get(name)
            if day is not None and day != NEVER and not _LONG_AGO <= day <= latest:
                reason = "before 1950 or more than 15 years ahead; loaded as it is, so correct it if it is a typo"
                note(name, reason, value=day, cost=Cost.NOTHING)

    def _missing(self, missing: Sequence[str], mapped: Mapping[str, str], *, path: Path) -> InputError:
        header = self.header.cells
        if any("@" in cell or self._is_date(cell) for cell in header):
            message = f"{path}: the first line looks like a row, not like column names"
            return InputError(message, next_step="add a first line with the names")
        names = ", ".join(f"{name} (as '{shown(mapped[name])}')" if name in mapped else name for name in missing)
        found = ", ".join(shown(" ".join(cell.split())) for cell in header[:30] if cell) or "no names"
        unmapped = next((name for name in missing if name not in mapped), missing[0])
        return InputError(
            f"{path}: no column {names}; the file has {found}",
            next_step=f"name it with --column {unmapped}='Their header' "
            f"or give every row one value with --set {unmapped}=…",
        )

    def _is_date(self, text: str) -> bool:
        try:
            return bool(self._read_date(text.strip()))
        except ValueError:
            return False

    def _constant(self, name: str, text: str) -> str:
        try:
            if text:
                return self._parsers[name](text)
        except ValueError as error:
            message = f"--set {name}: {error}"
            raise InputError(message) from error
        message = f"--set {name}: empty"
        raise InputError(message, next_step="give a value")


def _check(options: LoadOptions) -> None:
    for name in [*options.columns, *options.constants]:
        if name not in COLUMNS:
            message = f"there is no column '{shown(name)}' to fill"
            raise InputError(message, next_step=f"name one of {', '.join(COLUMNS)}")
        if name in options.columns and name in options.constants:
            message = f"column {name} is given twice, by --column and by --set"
            raise InputError(message, next_step="leave one of them out")
    for form in options.date_formats:
        if not cells.is_date_format(form):
            message = f"--date-format '{shown(form)}' must name day, month and year, such as %d/%m/%Y or %m/%d/%Y"
            raise InputError(message)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()
