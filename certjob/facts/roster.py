"""Read mentors and certificates from a CSV file, and report every problem by line and column.

If several lines name a mentor, the last value of each column counts, unless the lines are about two people. A second
load of the same file changes no row.
"""

import codecs
import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from certjob.errors import InputError
from certjob.facts import cells
from certjob.redaction import from_spreadsheet

SIZE_LIMIT = 50_000_000
"""Maximum size of a file in bytes, enough for half a million rows."""

IDENTITY = ("organisation", "member_no")
CERTIFICATE = ("kind", "issued_on", "expires_on")
MENTOR = ("full_name", "email", "locale", "dynamics_contact_id", "left_on")
COLUMNS = (*IDENTITY, *CERTIFICATE, "revoked_on", *MENTOR)
OF_LIST = ("status", "days_left", "pauses", "left", "mentor_id", "certificate_id")
"""The other columns of `certjob list --csv`. Of these only ``mentor_id`` is read."""

NEVER = date(9999, 12, 31)
"""The last day of a certificate that never expires."""

MentorKey = tuple[UUID, str]
"""The organisation's id and the member number."""
Values = dict[str, Any]
Readers = Mapping[str, Callable[[str], object]]
Wrong = tuple[str, str, bool]
"""A column, a reason, and whether it is only a warning."""

_READERS: Readers = {
    "organisation": str,
    "member_no": cells.read_key,
    "kind": cells.read_key,
    **dict.fromkeys(("issued_on", "expires_on", "revoked_on", "left_on"), cells.read_date),
    "full_name": cells.read_name,
    "email": cells.read_email,
    "locale": cells.read_locale,
    "dynamics_contact_id": cells.read_contact_id,
}
_DATES = ("issued_on", "expires_on", "revoked_on", "left_on")
_LONG_AGO = date(1950, 1, 1)
_FAR_AHEAD = timedelta(days=15 * 365 + 4)
_CONTRADICTIONS = {
    "dynamics_contact_id": "another line of this member number has another contact ID",
    "full_name": "another line of this member number has another name and another address",
    "expires_on": "another line of this certificate has another last day",
}
"""Why certjob rejects two lines, by the column that they are reported with."""
_CELL_LINES_LIMIT = 50
"""Maximum lines of a quoted cell, because a stray quote would otherwise consume the rest of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A problem in a file. The reason does not quote the row."""

    line: int
    """Counted from 1."""
    mentor: MentorKey | None = None
    """None if the line does not show its mentor."""
    column: str
    """``line`` for a problem of the whole line."""
    reason: str
    is_warning: bool = False
    """The value itself is no reason to skip the mentor."""
    loaded: bool = False
    """Whether the mentor was loaded nevertheless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """The mentors without a bad line, their certificates, and all problems of the file."""

    rows: int
    skipped: int
    """Bad rows, and the other rows of their mentors."""
    mentors: Mapping[MentorKey, Values]
    """Values by column; ``line``: the last line with a contact ID, or else the first line; ``rows``: their number."""
    certificates: Mapping[tuple[MentorKey, str, date], tuple[date, date | None, int]]
    """``expires_on``, ``revoked_on`` and the first line, by mentor, ``kind`` and ``issued_on``."""
    kinds: Mapping[tuple[MentorKey, str], int]
    """The first line by mentor and kind."""
    problems: Sequence[Problem]


def read_roster(content: bytes, *, organisation_ids: Mapping[str, UUID], today: date) -> Roster:
    """Read the bytes of a file. Raises InputError if it is not a CSV file in UTF-8, or lacks a column."""
    records = _split(_decode(content))
    names = [text.lower() for text in next(records, (1, [], ""))[1]]
    required = _required_columns(names)
    readers: Readers = {**_READERS, "organisation": partial(cells.read_organisation, ids=organisation_ids)}
    is_list = {*OF_LIST} <= {*names}
    if is_list:
        readers = {**readers, "mentor_id": UUID}
    known = (*COLUMNS, *OF_LIST) if is_list else COLUMNS
    unknown = ", ".join(repr(name[:40]) for name in names if name and name not in known)
    problems = [Problem(line=1, column="line", reason=f"not read: {unknown[:200]}", is_warning=True)] if unknown else []
    mentors: dict[MentorKey, Values] = {}
    certificates: dict[tuple[MentorKey, str, date], tuple[date, date | None, int]] = {}
    rows: Counter[MentorKey | None] = Counter()
    kinds: dict[tuple[MentorKey, str], int] = {}
    bad: set[MentorKey | None] = set()
    for line, texts, damage in records:
        readable = {name: text for name, text in zip(names, texts, strict=False) if name in IDENTITY or not damage}
        values: Values = {}
        wrong = [("line", damage, False)] if damage else []
        has_certificate = not is_list or any(readable.get(name) for name in CERTIFICATE)
        wrong += _read_row(values, readable, required if has_certificate else IDENTITY, readers)
        wrong += _check_dates(values, today)
        key = (values["organisation"], values["member_no"]) if values.keys() >= {*IDENTITY} else None
        problems += [
            Problem(line=line, mentor=key, column=name, reason=why, is_warning=warns) for name, why, warns in wrong
        ]
        rows[key] += 1
        if key is None or not all(warns for *_, warns in wrong):
            bad.add(key)
            continue
        mentor = mentors.setdefault(key, {"line": line, "rows": 0, "people": []})
        mentor["rows"] += 1
        earlier_dates = certificates.get((key, values.get("kind", ""), values.get("issued_on", date.min)))
        for earlier, column in _contradictions(mentor, earlier_dates, values, line):
            bad.add(key)
            reason = _CONTRADICTIONS[column]
            problems += [Problem(line=each, mentor=key, column=column, reason=reason) for each in (earlier, line)]
        mentor |= {name: values[name] for name in (*MENTOR, "mentor_id") if name in values}
        if "dynamics_contact_id" in values:
            mentor["line"] = line
        if "kind" in values:
            certificate = (key, values["kind"], values["issued_on"])
            kinds.setdefault((key, values["kind"]), line)
            _, revoked_on, first = earlier_dates or (None, None, line)
            certificates[certificate] = (values["expires_on"], values.get("revoked_on", revoked_on), first)
    return Roster(
        rows=rows.total(),
        skipped=sum(rows[key] for key in bad),
        mentors={key: mentor for key, mentor in mentors.items() if key not in bad},
        certificates={key: dates for key, dates in certificates.items() if key[0] not in bad},
        kinds={key: line for key, line in kinds.items() if key[0] not in bad},
        problems=list(dict.fromkeys(problems)),
    )


def _contradictions(
    mentor: Values, known: tuple[date, date | None, int] | None, values: Values, line: int
) -> Iterator[tuple[int, str]]:
    """Yield the earlier lines that contradict this one, and the column."""
    contact_id = mentor.get("dynamics_contact_id")
    if contact_id is not None and values.get("dynamics_contact_id", contact_id) != contact_id:
        yield mentor["line"], "dynamics_contact_id"
    if known is not None and values["expires_on"] != known[0]:
        yield known[2], "expires_on"
    if {"full_name", "email"} <= values.keys():
        name, address = values["full_name"].casefold(), values["email"].casefold()
        people = mentor["people"]
        for earlier, *other in people:
            if name != other[0] and address != other[1]:
                yield earlier, "full_name"
        # Two different ones are enough: people without a contradiction all have one name, or all have one address.
        if len(people) < 2 and all([name, address] != other for _, *other in people):
            people.append((line, name, address))


def _decode(content: bytes) -> str:
    if len(content) > SIZE_LIMIT:
        message = f"the file is larger than {SIZE_LIMIT:,} bytes"
        raise InputError(message, next_step="load it in parts")
    content = content.removeprefix(codecs.BOM_UTF8)
    bad_at = content.find(b"\0")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        bad_at = error.start
    if bad_at >= 0:
        message = f"line {len(content[: bad_at + 1].splitlines())} is not text in UTF-8"
        raise InputError(message, next_step="save the file as 'CSV UTF-8' and load it again")
    return text


def _split(text: str) -> Iterator[tuple[int, list[str], str]]:
    """Yield line number, cells and problem of each row that is not blank."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    delimiter = max(",;\t", key=next(filter(str.strip, lines), "").count)
    number = width = 0
    while number < len(lines):
        line = number + 1
        feed = (f"{each}\n" for each in lines[number : number + _CELL_LINES_LIMIT])
        reader = csv.reader(feed, delimiter=delimiter, skipinitialspace=True, strict=True)
        try:
            texts = [from_spreadsheet(each.strip()) for each in next(reader)]
        except csv.Error:  # a stray quote spoils only its own line
            number += 1
            yield line, [], "cannot be read: a quote is not closed, or text follows a quoted cell"
            continue
        number += reader.line_num
        width = width or len(texts)
        fits = len(texts) >= width and not any(texts[width:])
        if any(texts):
            yield line, texts, "" if fits else f"{len(texts):,} cells, but the header has {width:,}"


def _required_columns(names: Sequence[str]) -> Sequence[str]:
    """Return the columns that must not be empty. Raises InputError if one is not named, or named twice."""
    required = (*IDENTITY, *CERTIFICATE) if {*CERTIFICATE, "revoked_on"} & {*names} else IDENTITY
    if missing := [name for name in required if name not in names]:
        message = f"the header lacks the column {', '.join(missing)}"
        raise InputError(message, next_step=f"the columns are {', '.join(COLUMNS)}")
    if repeated := [name for name in COLUMNS if names.count(name) > 1]:
        message = f"the header names the column {', '.join(repeated)} twice"
        raise InputError(message, next_step="remove one of them")
    return required


def _read_row(values: Values, texts: Mapping[str, str], required: Sequence[str], readers: Readers) -> Iterator[Wrong]:
    """Add the values of all cells that are not empty, and yield the problems."""
    for name in readers:
        text = texts.get(name)
        try:
            if text:
                values[name] = readers[name](text)
            elif name in required and text is not None:
                yield name, "empty", False
        except ValueError as error:
            yield name, str(error), False


def _check_dates(values: Values, today: date) -> Iterator[Wrong]:
    """Yield the column, the reason and whether it is only a warning."""
    if values.get("expires_on", date.max) < values.get("issued_on", date.min):
        yield "expires_on", "ends before it begins", False
    for name in ("revoked_on", "left_on"):
        if values.get(name, today) > today:
            yield name, "in the future, but it would take effect now; load it on that day", False
    latest = today + min(_FAR_AHEAD, date.max - today)
    for name in _DATES:
        if name in values and values[name] != NEVER and not _LONG_AGO <= values[name] <= latest:
            yield name, "before 1950 or more than 15 years ahead; correct it if it is a typing error", True
