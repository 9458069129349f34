"""Somebody's roster: which of its columns is which of ours, and each of its rows as facts or as a reason why not."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from certjob.errors import InputError
from certjob.facts import cells
from certjob.facts.cells import DEFAULT_DATE_FORMATS, shown
from certjob.facts.csv_rows import BrokenRecord, Record

REQUIRED = ("organisation", "member_no", "kind", "issued_on", "expires_on")
OPTIONAL = ("full_name", "email", "locale", "dynamics_contact_id", "revoked_on")

WHOLE_LINE = "(line)"
"""What a rejected row names as its column when the line itself is broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to read a file that was not made for certjob."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """Our column to the header it has in the file."""
    constants: Mapping[str, str] = field(default_factory=dict)
    """Our column to the one value it has in every row; a column of that name in the file is not read."""
    date_formats: tuple[str, ...] = DEFAULT_DATE_FORMATS
    """strptime forms; the first one that fits a text counts. The default ones are read to the letter."""
    strict: bool = False
    """Load all rows or none."""
    today: date | None = None
    """A revocation counts at once, so one that lies after this day is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row that is not loaded. Holds no name and no address: it goes into logs."""

    line: int
    """The line of the file on which the row begins; the first one is 1."""
    column: str
    """The column as the file calls it, ours for a constant, WHOLE_LINE when the line itself is broken."""
    reason: str


class RosterRow(NamedTuple):
    """One valid row, or all valid rows about one certificate: the mentor, the certificate, the line.

    Dates and ids are ISO texts; None where the file says nothing. The order is that of ``copy_load_rows.sql``.
    """

    organisation_id: str
    member_no: str
    full_name: str | None
    email: str | None
    locale: str | None
    dynamics_contact_id: str | None
    kind: str
    issued_on: str
    expires_on: str
    revoked_on: str | None
    line: int


Parse = Callable[[str], str]
"""From the trimmed text of a cell to the value; raises ValueError with the reason."""


class _Column(NamedTuple):
    name: str
    place: int
    label: str
    parse: Parse
    required: bool


class Roster:
    """The columns of one file, ready to turn its records into rows."""

    def __init__(
        self,
        header: Sequence[str],
        *,
        columns: Sequence[_Column],
        constants: Mapping[str, str],
        latest_revocation: str,
    ) -> None:
        self._latest_revocation = latest_revocation
        self._width = len(header)
        self._columns = columns
        self._constants = constants
        self._labels = {name: name for name in constants} | {column.name: column.label for column in columns}

    def read(self, record: Record | BrokenRecord) -> RosterRow | RejectedRow:
        """Return the facts of a record, or what is wrong with it: the first bad cell."""
        if isinstance(record, BrokenRecord):
            return RejectedRow(line=record.line, column=WHOLE_LINE, reason=record.reason)
        texts = record.cells
        if len(texts) != self._width and (
            len(texts) < self._width or any(text.strip() for text in texts[self._width :])
        ):
            reason = f"{len(texts):,} cells where the header has {self._width:,}"
            return RejectedRow(line=record.line, column=WHOLE_LINE, reason=reason)
        values: dict[str, str] = dict(self._constants)
        for column in self._columns:
            text = texts[column.place].strip()
            if text:
                try:
                    values[column.name] = column.parse(text)
                except ValueError as error:
                    return RejectedRow(line=record.line, column=column.label, reason=str(error))
            elif column.required:
                return RejectedRow(line=record.line, column=column.label, reason="is empty")
        if values["expires_on"] < values["issued_on"]:
            reason = f"ends before it begins: {values['issued_on']} to {values['expires_on']}"
            return RejectedRow(line=record.line, column=self._labels["expires_on"], reason=reason)
        if values.get("revoked_on", "") > self._latest_revocation:
            reason = (
                f"lies in the future ({values['revoked_on']}), but a revocation counts at once; load it on that day"
            )
            return RejectedRow(line=record.line, column=self._labels["revoked_on"], reason=reason)
        return RosterRow(
            values["organisation"],
            values["member_no"],
            values.get("full_name"),
            values.get("email"),
            values.get("locale"),
            values.get("dynamics_contact_id"),
            values["kind"],
            values["issued_on"],
            values["expires_on"],
            values.get("revoked_on"),
            record.line,
        )


class RosterForm:
    """The options and the known organisations, checked before the file is opened."""

    def __init__(self, options: LoadOptions, *, organisation_ids: Mapping[str, str]) -> None:
        """Raise InputError when an option is wrong."""
        for name in [*options.columns, *options.constants]:
            if name not in REQUIRED + OPTIONAL:
                message = f"there is no column '{shown(name)}' to fill; there are {', '.join(REQUIRED + OPTIONAL)}"
                raise InputError(message)
        twice = sorted(set(options.columns) & set(options.constants))
        if twice:
            message = f"column {twice[0]} is given twice, by --column and by --set; leave one of them out"
            raise InputError(message)
        self._latest_revocation = (options.today or date.max).isoformat()
        self._formats = options.date_formats or DEFAULT_DATE_FORMATS
        for form in self._formats:
            if not cells.is_date_format(form):
                message = f"--date-format '{shown(form)}' must name day, month and year, such as %d/%m/%Y or %m/%d/%Y"
                raise InputError(message)
        # The same few thousand days come again and again.
        self._read_date = lru_cache(maxsize=16_384)(partial(cells.read_date, formats=self._formats))
        self._parsers: dict[str, Parse] = {
            "organisation": partial(cells.read_organisation, ids=organisation_ids),
            "member_no": cells.read_key,
            "kind": cells.read_key,
            "issued_on": self._read_date,
            "expires_on": self._read_date,
            "revoked_on": self._read_date,
            "full_name": cells.read_name,
            "email": cells.read_email,
            "locale": cells.read_locale,
            "dynamics_contact_id": cells.read_contact_id,
        }
        self._headers = {name: options.columns.get(name, name) for name in REQUIRED + OPTIONAL}
        self._mapped = frozenset(options.columns)
        self._constants = {name: self._constant(name, text) for name, text in options.constants.items()}

    def score(self, header: Sequence[str]) -> int:
        """Return how many of our columns these names have."""
        return len({_folded(name) for name in header} & {_folded(name) for name in self._headers.values()})

    def fit(self, header: Sequence[str], *, path: Path) -> Roster:
        """Return the roster with these column names, which are found whatever their case.

        Raises InputError when a required or mapped column is missing, or one that is read is there twice.
        """
        places: dict[str, list[int]] = {}
        for index, name in enumerate(header):
            places.setdefault(_folded(name), []).append(index)
        columns: list[_Column] = []
        missing: list[str] = []
        for name, wanted in self._headers.items():
            found = places.get(_folded(wanted), [])
            if name in self._constants:
                continue
            if len(found) > 1:
                message = f"{path}: column '{shown(wanted)}' is there {len(found)} times; rename or remove the others"
                raise InputError(message)
            if found:
                label = shown(header[found[0]])
                columns.append(_Column(name, found[0], label, self._parsers[name], name in REQUIRED))
            elif name in REQUIRED or name in self._mapped:
                missing.append(name)
        if missing:
            raise InputError(self._missing_message(missing, header, path=path))
        return Roster(header, columns=columns, constants=self._constants, latest_revocation=self._latest_revocation)

    def _missing_message(self, missing: Sequence[str], header: Sequence[str], *, path: Path) -> str:
        if any("@" in cell or self._is_date(cell) for cell in header):
            return f"{path}: the first line looks like a row, not like column names; add a first line with the names"
        names = ", ".join(
            f"{name} (as '{shown(self._headers[name])}')" if name in self._mapped else name for name in missing
        )
        found = ", ".join(shown(cell) for cell in header[:30] if cell) or "no names"
        unmapped = next((name for name in missing if name not in self._mapped), missing[0])
        return (
            f"{path}: no column {names}; the file has {found}; name it with --column {unmapped}='Their header' "
            f"or give every row one value with --set {unmapped}=…"
        )

    def _is_date(self, text: str) -> bool:
        try:
            self._read_date(text)
        except ValueError:
            return False
        return True

    def _constant(self, name: str, text: str) -> str:
        stripped = text.strip()
        try:
            if not stripped:
                message = "is empty"
                raise ValueError(message)
            return self._parsers[name](stripped)
        except ValueError as error:
            message = f"--set {name}: {error}"
            raise InputError(message) from error


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()
