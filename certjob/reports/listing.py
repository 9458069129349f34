"""Who has which certificate: one row each, with the status that the rules give it today."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Mentor, Status
from certjob.facts import reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What is asked for; everything given must hold."""

    statuses: frozenset[Status] = frozenset()
    """Empty: any."""
    within_days: int | None = None
    """The last day is at most this many days away, before or after today."""
    organisation_id: UUID | None = None
    with_left: bool = False
    """Include mentors who have left."""
    without_contact_id: bool = False
    """Only mentors of an organisation with a portal who have no contact ID."""
    without_address: bool = False
    """Only mentors without an e-mail address."""
    without_certificate: bool = False
    """Only active mentors who hold no certificate that counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCertificate:
    """One row of the list."""

    organisation: str
    """The slug."""
    member_no: str
    full_name: str | None
    kind: str | None = None
    """None, as everything about the certificate: the mentor has none."""
    status: Status | None = None
    """Today's, by the rules."""
    issued_on: date | None = None
    expires_on: date | None = None
    days_left: int | None = None
    """Until the last day in force; negative after it."""
    pauses: tuple[str, ...]
    """The reasons of the mentor's open pauses, as stored; empty: not paused."""
    left: bool
    mentor_id: UUID
    certificate_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What was asked for, the earliest last day first; mentors without a certificate stand before them all."""

    rows: list[ListedCertificate]
    broken: dict[UUID, str]
    """Mentors who are left out, and why: they have more rows, or longer ones, than certjob reads."""


def list_certificates(connection: Connection, *, today: date, wanted: Filter) -> Listing:
    """Return the certificates that are asked for. All rows are of one moment; writes nothing, takes no lock."""
    rows: list[ListedCertificate] = []
    broken: dict[UUID, str] = {}
    with database.read_only_snapshot(connection):
        for names, read in _read_chunks(connection, today=today, wanted=wanted):
            broken |= read.broken
            for mentor in read.mentors:
                rows += _rows(mentor, names[mentor.id], today=today, wanted=wanted)
    rows.sort(key=lambda row: (row.expires_on or date.min, row.organisation, row.member_no, row.kind, row.issued_on))
    return Listing(rows=rows, broken=broken)


def _read_chunks(
    connection: Connection, *, today: date, wanted: Filter
) -> Iterator[tuple[dict[UUID, str | None], reading.FactsRead]]:
    """Yield mentors who may be asked for, in chunks: their names, and the facts."""
    within = wanted.within_days
    parameters = {
        "organisation_id": wanted.organisation_id,
        "with_left": wanted.with_left,
        "without_contact_id": wanted.without_contact_id,
        "without_address": wanted.without_address,
        "first_day": None if within is None else today - timedelta(days=within),
        "last_day": None if within is None else today + timedelta(days=within),
        "limit": reading.CHUNK_SIZE,
    }
    after = UUID(int=0)
    while found := database.fetch(connection, "find_mentors_to_list", parameters | {"after": after}):
        after = found[-1][0]
        names = dict(found)
        yield names, reading.read(connection, list(names), lock=False)


def _rows(mentor: Mentor, name: str | None, *, today: date, wanted: Filter) -> Iterator[ListedCertificate]:
    """Yield a mentor's certificates that are asked for; one row without any for a mentor who has none."""
    active = not (mentor.left or mentor.open_pauses)
    if wanted.without_certificate and not (active and rules.holds_nothing(mentor, today)):
        return
    statuses = rules.statuses(mentor, today)
    listed = partial(
        ListedCertificate,
        organisation=mentor.organisation.slug,
        member_no=mentor.member_no,
        full_name=name,
        pauses=tuple(sorted(pause.reason for pause in mentor.open_pauses)),
        left=mentor.left,
        mentor_id=mentor.id,
    )
    for certificate in mentor.certificates:
        days_left, status = (certificate.expires_on - today).days, statuses[certificate.id]
        if wanted.statuses and status not in wanted.statuses:
            continue
        if wanted.within_days is not None and abs(days_left) > wanted.within_days:
            continue
        yield listed(
            kind=certificate.kind,
            status=status,
            issued_on=certificate.issued_on,
            expires_on=certificate.expires_on,
            days_left=days_left,
            certificate_id=certificate.id,
        )
    asks_for_mentors = wanted.without_contact_id or wanted.without_address or wanted.without_certificate
    if not mentor.certificates and asks_for_mentors and not wanted.statuses and wanted.within_days is None:
        yield listed()
