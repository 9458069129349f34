"""The demo's sample data: about 200 made-up mentors of two organisations, and what happens to some of them by day."""

import csv
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Final
from uuid import NAMESPACE_DNS, uuid5

from certjob.database import Connection
from certjob.facts import loading, organisations
from certjob.facts.roster import LoadOptions

HLF: Final = "hlf"
OTHER: Final = "nordlys"

RETURNING: Final = "H1001"
"""Expires on the first night, and renews."""
ILL: Final = "H1020"
"""The same, but a coordinator has paused this one for illness."""
WITHOUT_ADDRESS: Final = "H1036"
"""Cannot be written to until somebody enters an address."""

KIND: Final = "likeperson"
_OPTIONAL_KIND: Final = "kursleder"
VALIDITY: Final = timedelta(days=730)

_FIRST_NAMES: Final = (
    "Astrid Birk Cecilie Dagny Eivind Frøydis Gaute Hedda Iver Jorunn Ketil Liv Magne Nora Odd Pernille".split()  # noqa: SIM905
)
_LAST_NAMES: Final = (
    "Askeland Bjørkli Dalsbø Engvik Fjellheim Granmo Haugstad Isfjell Kvernmo Lyngås Myrvang Nesbakk Oppsal".split()  # noqa: SIM905
)

_DUE_SOON: Final[dict[str, tuple[tuple[int, int], ...]]] = {
    HLF: (
        *((0, 6), (1, 6), (2, 2), (3, 4)),  # expire between the first and the last night
        *((-100, 3), (-5, 1)),  # expired before certjob came
        *((8, 2), (9, 2), (11, 4), (15, 2), (31, 3), (61, 2), (63, 1), (64, 5)),  # are reminded on a night
    ),
    OTHER: ((0, 2), (1, 1), (3, 2), (-60, 2), (8, 1), (31, 2), (64, 3)),
}
"""Per organisation (days from the first night to the expiry, mentors); everybody else has time."""

_MENTORS: Final = {HLF: 140, OTHER: 60}
_FAR_OFF_DAYS: Final = 90
_STRIDE: Final = 37
"""Deals the days out, so that neighbours in a list expire on different ones; shares no factor with 140 or 60."""

Row = dict[str, str]


def make_people(first_night: date) -> list[Row]:
    """Return the rows of the CSV file: the same people every time, with dates relative to the first night."""
    rows = [row for slug in _MENTORS for row in _members(slug, first_night)]
    return rows + list(_further_certificates(rows, first_night))


def load_people(connection: Connection, rows: list[Row], *, folder: Path) -> loading.LoadReport:
    """Set up both organisations and load everybody from a CSV file, as `certjob load` does."""
    organisations.set_organisation(
        connection,
        HLF,
        portal="dynamics",
        optional_kinds=[_OPTIONAL_KIND],
        contact_email="likeperson@hlf.example.org",
        renewal_url="https://hlf.example.org/sertifikat",
    )
    organisations.set_organisation(
        connection, OTHER, name="Likepersonforbundet Nordlys", contact_email="post@nordlys.example.org"
    )
    path = folder / "mentors.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return loading.load(connection, path, options=LoadOptions(strict=True))


def _members(slug: str, first_night: date) -> Iterator[Row]:
    """One organisation's mentors with one certificate each, by member number."""
    soon = [days for days, mentors in _DUE_SOON[slug] for _ in range(mentors)]
    mentors = _MENTORS[slug]
    days = soon + [_FAR_OFF_DAYS + 4 * number for number in range(mentors - len(soon))]
    for number in range(mentors):
        member_no = f"{slug[0].upper()}{1001 + number}"
        everybody = number + (0 if slug == HLF else _MENTORS[HLF])
        last_name = _LAST_NAMES[(everybody * 7 + everybody // len(_LAST_NAMES)) % len(_LAST_NAMES)]
        expires_on = first_night + timedelta(days=days[number * _STRIDE % mentors])
        yield {
            "organisation": slug,
            "member_no": member_no,
            "full_name": f"{_FIRST_NAMES[everybody % len(_FIRST_NAMES)]} {last_name}",
            "email": "" if member_no == WITHOUT_ADDRESS else f"{member_no.lower()}@example.org",
            "locale": {8: "en", 4: "nn"}.get(number % 9, "nb"),
            "dynamics_contact_id": str(uuid5(NAMESPACE_DNS, f"{member_no}.example.org")) if slug == HLF else "",
            "kind": KIND,
            "issued_on": str(expires_on - VALIDITY),
            "expires_on": str(expires_on),
            "revoked_on": "",
        }


def _further_certificates(rows: list[Row], first_night: date) -> Iterator[Row]:
    """Second certificates: one renewed ahead of time, old ones long renewed, optional ones; and one is revoked."""
    expiring = [row for row in rows if row["expires_on"] == str(first_night)]
    yield _another(expiring[-1], issued_on=first_night + timedelta(days=1))
    far_off = [row for row in rows if row["expires_on"] > str(first_night + timedelta(days=_FAR_OFF_DAYS))]
    far_off[0]["revoked_on"] = str(first_night - timedelta(days=3))
    for row in far_off[1:13]:
        yield _another(row, issued_on=date.fromisoformat(row["issued_on"]) - VALIDITY - timedelta(days=1))
    for row in far_off[13:15]:
        yield _another(row, issued_on=first_night - VALIDITY) | {"kind": _OPTIONAL_KIND}


def _another(row: Row, *, issued_on: date) -> Row:
    """The same mentor's row with another certificate."""
    return row | {"issued_on": str(issued_on), "expires_on": str(issued_on + VALIDITY)}
