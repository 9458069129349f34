"""Who has which certificate: one row each, with the status that the rules give it today, whatever was stored last.

Read through a cursor, so that a million rows take no more memory than a thousand.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final
from uuid import UUID

from psycopg.rows import class_row

from certjob import database
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Certificate, Mentor, Organisation, Status
from certjob.facts import reading

SHOWN_STATUSES: Final = tuple(status for status in Status if status is not Status.RECORDED)
"""What a certificate can be today: the rules leave nothing merely recorded."""

_ROWS_AT_ONCE: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What is asked for; everything given must hold."""

    statuses: frozenset[Status] = frozenset()
    """Empty: any."""
    within_days: int | None = None
    """The last day is at most so many days away, ahead or past."""
    organisation_id: UUID | None = None
    with_left: bool = False
    """Mentors who have left, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCertificate:
    """One row of the list."""

    organisation: str
    """The slug."""
    member_no: str
    full_name: str | None
    kind: str
    status: Status
    """Today's, by the rules."""
    issued_on: date
    expires_on: date
    days_left: int
    """Until the last day in force; negative after it."""
    pauses: tuple[str, ...]
    """The reasons of the mentor's open pauses, as they are in the database now; empty: not paused."""
    left: bool
    mentor_id: UUID
    certificate_id: UUID


def list_certificates(
    connection: Connection, *, today: date, wanted: Filter, on_broken: Callable[[UUID], None] = lambda _: None
) -> Generator[ListedCertificate, None, None]:
    """Yield the certificates that are asked for, whose last day comes first; writes nothing, takes no lock.

    All rows are of one moment. The cursor is closed when the iterator is. ``on_broken`` is told of each mentor who is
    left out, because of more certificates or open pauses than certjob reads.
    """
    with database.read_only_snapshot(connection):
        organisations = reading.organisations(
            connection, None if wanted.organisation_id is None else [wanted.organisation_id]
        )
        where = {"organisation_id": wanted.organisation_id}
        crowded = [row[0] for row in database.fetch(connection, "find_crowded_mentors", where)]
        for mentor_id in crowded:
            on_broken(mentor_id)
        fewest, most = _bounds(wanted, organisations.values())
        parameters = {
            "today": today,
            "organisation_id": wanted.organisation_id,
            "with_left": wanted.with_left,
            "fewest_days_left": fewest,
            "most_days_left": most,
            "crowded": crowded,
        }
        with connection.cursor(name="list_certificates", row_factory=class_row(_Row)) as cursor:
            cursor.itersize = _ROWS_AT_ONCE
            for row in cursor.execute(database.query("list_certificates"), parameters):
                listed = row.listed(organisations[row.organisation_id], today)
                if not wanted.statuses or listed.status in wanted.statuses:
                    yield listed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of ``list_certificates``."""

    id: UUID
    mentor_id: UUID
    organisation_id: UUID
    member_no: str
    full_name: str | None
    left: bool
    kind: str
    issued_on: date
    expires_on: date
    revoked: bool
    pauses: Sequence[str]
    siblings: Sequence[Sequence[Any]] | None

    def listed(self, organisation: Organisation, today: date) -> ListedCertificate:
        """Ask the rules for the status."""
        certificate = Certificate(
            id=self.id, kind=self.kind, issued_on=self.issued_on, expires_on=self.expires_on, revoked=self.revoked
        )
        siblings = tuple(
            Certificate(
                id=UUID(row_id),
                kind=self.kind,
                issued_on=date.fromisoformat(issued_on),
                expires_on=date.fromisoformat(expires_on),
                revoked=revoked,
            )
            for row_id, issued_on, expires_on, revoked in self.siblings or ()
        )
        mentor = Mentor(
            id=self.mentor_id,
            member_no=self.member_no,
            organisation=organisation,
            left=self.left,
            portal_visible=None,
            certificates=(certificate, *siblings),
            open_pauses=(),
        )
        return ListedCertificate(
            organisation=organisation.slug,
            member_no=self.member_no,
            full_name=self.full_name,
            kind=self.kind,
            status=rules.status_of(certificate, siblings, mentor, today),
            issued_on=self.issued_on,
            expires_on=self.expires_on,
            days_left=(self.expires_on - today).days,
            pauses=tuple(self.pauses),
            left=self.left,
            mentor_id=self.mentor_id,
            certificate_id=self.id,
        )


def _bounds(wanted: Filter, organisations: Iterable[Organisation]) -> tuple[int | None, int | None]:
    """Return the fewest and the most days left of what can be asked for; None: no bound."""
    thresholds = [threshold for each in organisations for threshold in each.reminder_thresholds]
    largest = max(thresholds, default=None)
    fewest: int | None = None
    most: int | None = None
    if wanted.statuses:
        bounds = [rules.days_left_bounds(status, largest_threshold=largest) for status in wanted.statuses]
        lower, upper = [low for low, _ in bounds], [high for _, high in bounds]
        fewest = None if None in lower else min(low for low in lower if low is not None)
        most = None if None in upper else max(high for high in upper if high is not None)
    if wanted.within_days is not None:
        fewest = max(-wanted.within_days, fewest if fewest is not None else -wanted.within_days)
        most = min(wanted.within_days, most if most is not None else wanted.within_days)
    return fewest, most
