"""Somebody's roster: which of its columns is which of ours, and each of its rows as facts or as a reason why not."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from certjob.csv_rows import BrokenRecord, Record
from certjob.errors import InputError
from certjob.organisations import LOCALES, is_address, is_slug

REQUIRED = ("organisation", "member_no", "kind", "issued_on", "expires_on")
OPTIONAL = ("full_name", "email", "locale", "dynamics_contact_id", "revoked_on")

DEFAULT_DATE_FORMATS = ("%Y-%m-%d", "%d.%m.%Y")

WHOLE_LINE = "(line)"
"""What a rejected row names as its column when the line itself is broken."""

KEY_LIMIT = 100
"""Characters in a member number or a kind."""

NAME_LIMIT = 200

_SHOWN_LIMIT = 40
_ISO_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_DOTTED_DATE = re.compile(r"([0-9]{1,2})\.([0-9]{1,2})\.([0-9]{4})")
_UUID = re.compile(r"\{?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\}?", re.IGNORECASE)
# Control characters, zero-width spaces and the characters that turn the direction of the text around them.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2060\u2066-\u2069\ufeff\ufff9-\ufffb]")
_SPACES = re.compile(r"[ \t\r\n]+")


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

    def __init__(self, header: Sequence[str], *, columns: Sequence[_Column], constants: Mapping[str, str]) -> None:
        self._width = len(header)
        self._columns = columns
        self._constants = constants
        self._labels = {name: name for name in constants} | {column.name: column.label for column in columns}

    def read(self, record: Record | BrokenRecord) -> RosterRow | RejectedRow:
        """Return the facts of a record, or what is wrong with it: the first bad cell."""
        if isinstance(record, BrokenRecord):
            return RejectedRow(line=record.line, column=WHOLE_LINE, reason=record.reason)
        cells = record.cells
        if len(cells) != self._width and (
            len(cells) < self._width or any(cell.strip() for cell in cells[self._width :])
        ):
            reason = f"{len(cells):,} cells where the header has {self._width:,}"
            return RejectedRow(line=record.line, column=WHOLE_LINE, reason=reason)
        values: dict[str, str] = dict(self._constants)
        for column in self._columns:
            text = cells[column.place].strip()
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
                message = f"there is no column {shown(name)!r} to fill; there are {', '.join(REQUIRED + OPTIONAL)}"
                raise InputError(message)
        twice = sorted(set(options.columns) & set(options.constants))
        if twice:
            message = f"column {twice[0]} is given twice, by --column and by --set; leave one of them out"
            raise InputError(message)
        self._formats = options.date_formats or DEFAULT_DATE_FORMATS
        for form in self._formats:
            _check_date_format(form)
        # The same few thousand days come again and again.
        self._read_date = lru_cache(maxsize=16_384)(partial(_iso_date, formats=self._formats))
        self._parsers: dict[str, Parse] = {
            "organisation": partial(_organisation, ids=organisation_ids),
            "member_no": partial(_clean, limit=KEY_LIMIT),
            "kind": partial(_clean, limit=KEY_LIMIT),
            "issued_on": self._read_date,
            "expires_on": self._read_date,
            "revoked_on": self._read_date,
            "full_name": _name,
            "email": _email,
            "locale": _locale,
            "dynamics_contact_id": _contact_id,
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
                message = f"{path}: column {shown(wanted)!r} is there {len(found)} times; rename or remove the others"
                raise InputError(message)
            if found:
                label = shown(header[found[0]])
                columns.append(_Column(name, found[0], label, self._parsers[name], name in REQUIRED))
            elif name in REQUIRED or name in self._mapped:
                missing.append(name)
        if missing:
            raise InputError(self._missing_message(missing, header, path=path))
        return Roster(header, columns=columns, constants=self._constants)

    def _missing_message(self, missing: Sequence[str], header: Sequence[str], *, path: Path) -> str:
        if any("@" in cell or self._is_date(cell) for cell in header):
            return f"{path}: the first line looks like a row, not like column names; add a first line with the names"
        names = ", ".join(
            f"{name} (as {shown(self._headers[name])!r})" if name in self._mapped else name for name in missing
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


def shown(text: str) -> str:
    """Return a text from a file, short and harmless enough for a message."""
    short = text if len(text) <= _SHOWN_LIMIT else text[:_SHOWN_LIMIT] + "…"
    return "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in short)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", " ".join(name.split())).casefold()


def _check_date_format(form: str) -> None:
    example = date(2021, 11, 25)
    try:
        fits = datetime.strptime(example.strftime(form), form).replace(tzinfo=UTC).date() == example
    except ValueError:
        fits = False
    if not fits:
        message = f"--date-format {shown(form)!r} must name day, month and year, such as %d/%m/%Y or %m/%d/%Y"
        raise InputError(message)


def _iso_date(text: str, *, formats: Sequence[str]) -> str:
    for form in formats:
        try:
            return _read_date(text, form).isoformat()
        except ValueError:
            continue
    forms = " or ".join({"%Y-%m-%d": "YYYY-MM-DD", "%d.%m.%Y": "DD.MM.YYYY"}.get(form, form) for form in formats)
    # In a shifted row this is somebody's name: only what has the digits of a date is repeated.
    subject = f"{shown(text)!r} is" if any(letter.isdigit() for letter in text) and "@" not in text else "is"
    message = f"{subject} no date of the form {forms}"
    raise ValueError(message)


def _read_date(text: str, form: str) -> date:
    """Return the date; the two default forms to the letter, without strptime's leniency."""
    if form == "%Y-%m-%d" and (match := _ISO_DATE.fullmatch(text)):
        return date(int(match[1]), int(match[2]), int(match[3]))
    if form == "%d.%m.%Y" and (match := _DOTTED_DATE.fullmatch(text)):
        return date(int(match[3]), int(match[2]), int(match[1]))
    if form in DEFAULT_DATE_FORMATS:
        message = "another form"
        raise ValueError(message)
    return datetime.strptime(text, form).replace(tzinfo=UTC).date()


def _clean(text: str, *, limit: int) -> str:
    if len(text) > limit:
        message = f"is longer than {limit} characters"
        raise ValueError(message)
    if text.isascii() and text.isprintable():
        return text
    composed = unicodedata.normalize("NFC", text)  # the same letters are the same bytes, whoever wrote them
    if _UNSEEN.search(composed):
        message = "holds a control character or an invisible one"
        raise ValueError(message)
    return composed


def _name(text: str) -> str:
    return _clean(_SPACES.sub(" ", text), limit=NAME_LIMIT)


def _email(text: str) -> str:
    if not is_address(text):
        message = "is no e-mail address"
        raise ValueError(message)
    return text


def _locale(text: str) -> str:
    if text.lower() not in LOCALES:
        message = f"is no locale; expected {', '.join(LOCALES)}"
        raise ValueError(message)
    return text.lower()


def _contact_id(text: str) -> str:
    match = _UUID.fullmatch(text)
    if match is None or not UUID(match[1]).int:
        message = "is no contact id (a UUID)"
        raise ValueError(message)
    return str(UUID(match[1]))


def _organisation(text: str, *, ids: Mapping[str, str]) -> str:
    found = ids.get(text.lower())
    if found is None:
        # In a shifted row this is anything; what could be a name is not repeated.
        slug = text.lower()
        message = (
            f"organisation {slug} does not exist; create it with `certjob organisation set {slug}`"
            if is_slug(slug)
            else "is no organisation's slug, such as hlf"
        )
        raise ValueError(message)
    return found
