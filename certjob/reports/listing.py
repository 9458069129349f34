"""Certificates and their holders, with the status that the rules give today."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import date
from functools import partial
from typing import Any, Final
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.explanations import number, reason_words
from certjob.domain.models import OWN_PAUSE_REASON, Mentor, Status
from certjob.facts import reading
from certjob.page import Line, Table
from certjob.sorting import SortedRows

MOST_ROWS: Final = 200
"""Rows on a terminal. CSV and JSON have all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The conditions for a row. All must apply."""

    statuses: frozenset[Status] = frozenset()
    """Empty: any."""
    kinds: frozenset[str] = frozenset()
    """Empty: any."""
    from_on: date | None = None
    """The first of the last days to list. None: any."""
    to_on: date | None = None
    """The last of them. None: any."""
    organisation_id: UUID | None = None
    everyone: bool = False
    """Include mentors who have left or have no certificate."""
    without_contact_id: bool = False
    """Only mentors of an organisation with a portal who have no contact ID."""
    without_address: bool = False
    without_certificate: bool = False
    """Only active mentors without a certificate that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCertificate:
    """A certificate, or a mentor without one."""

    organisation: str
    """The slug."""
    member_no: str
    full_name: str | None
    kind: str | None = None
    status: Status | None = None
    issued_on: date | None = None
    expires_on: date | None = None
    days_left: int | None = None
    """Negative after the last day."""
    pauses: tuple[str, ...]
    """The stored reasons of the mentor's open pauses."""
    left: bool
    mentor_id: UUID
    certificate_id: UUID | None = None
    revoked_on: date | None = None
    email: str | None = None
    locale: str = "nb"
    dynamics_contact_id: UUID | None = None
    left_on: date | None = None
    """The day of departure in UTC, as `certjob load` reads it."""

    @property
    def state(self) -> str:
        """Return the status, and why the mentor is not active."""
        pauses = ("paused" if each == OWN_PAUSE_REASON else f"paused: {reason_words(each)}" for each in self.pauses)
        return ", ".join([str(self.status or "none"), *pauses, *(["has left"] if self.left else [])])


COLUMNS: Final = tuple(each.name for each in fields(ListedCertificate))
"""The columns of the CSV, and the keys of the JSON document."""
_SHOWN = {"expires_on": "Last day", "days_left": "Days", "state": "Status", "organisation": "Org"}
_SHOWN |= {"member_no": "No.", "full_name": "Name", "kind": "Kind"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The rows, mentors without a certificate first, then the earliest last day."""

    rows: SortedRows[ListedCertificate]
    broken: dict[UUID, str]
    """Reasons by mentor who exceeds a limit of the schema. They have no rows."""


def list_certificates(connection: Connection, *, today: date, wanted: Filter) -> Listing:
    """Return the certificates that fit. Reads one snapshot, without locks."""
    rows = SortedRows(_sort_key)
    broken: dict[UUID, str] = {}
    parameters = asdict(wanted) | {"today": today, "limit": reading.CHUNK_SIZE, "after": UUID(int=0)}
    with database.read_only_snapshot(connection):
        while found := database.fetch(connection, "find_mentors_to_list", parameters, into=dict):
            people = {row.pop("id"): row for row in found}
            parameters["after"] = [*people][-1]
            read = reading.read(connection, list(people), lock=False)
            broken |= read.broken
            revoked = dict(database.fetch(connection, "list_revoked_days", {"ids": list(people), "today": today}))
            for mentor in read.mentors:
                for row in _rows(mentor, people[mentor.id], revoked, today=today, wanted=wanted):
                    rows.append(row)
    return Listing(rows=rows, broken=broken)


def _sort_key(row: ListedCertificate) -> tuple[date, str, str, str | None, date | None]:
    return (row.expires_on or date.min, row.organisation, row.member_no, row.kind, row.issued_on)


def _rows(
    mentor: Mentor, person: Mapping[str, Any], revoked: Mapping[UUID, date], *, today: date, wanted: Filter
) -> Iterator[ListedCertificate]:
    active = not (mentor.left or mentor.open_pauses)
    if wanted.without_certificate and not (active and rules.has_had_no_kind(mentor, today)):
        return
    statuses = rules.statuses(mentor, today)
    listed = partial(
        ListedCertificate,
        organisation=mentor.organisation.slug,
        member_no=mentor.member_no,
        pauses=tuple(sorted(pause.reason for pause in mentor.open_pauses)),
        left=mentor.left,
        mentor_id=mentor.id,
        **person,
    )
    for certificate in mentor.certificates:
        days_left, status = (certificate.expires_on - today).days, statuses[certificate.id]
        if wanted.statuses and status not in wanted.statuses:
            continue
        if wanted.kinds and certificate.kind not in wanted.kinds:
            continue
        if not (wanted.from_on or date.min) <= certificate.expires_on <= (wanted.to_on or date.max):
            continue
        yield listed(
            kind=certificate.kind,
            status=status,
            issued_on=certificate.issued_on,
            expires_on=certificate.expires_on,
            days_left=days_left,
            certificate_id=certificate.id,
            revoked_on=revoked.get(certificate.id),
        )
    asks_for_mentors = (
        wanted.everyone or wanted.without_contact_id or wanted.without_address or wanted.without_certificate
    )
    asks_for_certificates = wanted.statuses or wanted.kinds or wanted.from_on or wanted.to_on
    if not mentor.certificates and asks_for_mentors and not asks_for_certificates:
        yield listed()


def list_page(rows: SortedRows[ListedCertificate]) -> Iterator[Line | Table]:
    """Yield a table of all rows."""
    documents = (asdict(row) | {"state": row.state} for row in rows)
    yield Table(documents, _SHOWN, keys=COLUMNS, most=MOST_ROWS, count=len(rows))
    yield Line(number(len(rows), "row"))
