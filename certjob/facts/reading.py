"""Read mentors with all facts that a decision needs: without locks for the plan, with locks for apply."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob import database
from certjob.domain.models import Certificate, Mentor, OpenPause, Organisation, Status
from certjob.domain.rules import seen_key

CHUNK_SIZE = 1_000
"""Number of mentors in one chunk."""

_STATUSES = {str(status): status for status in Status}

BEFORE_EVERY_MENTOR = ("-infinity", UUID(int=0))
"""A key (review_on, id) before that of any mentor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsRead:
    """Mentors with their facts."""

    mentors: list[Mentor]
    broken: dict[UUID, str]
    """Reasons by mentor who exceeds a limit of the schema; their certificates and pauses were not read."""


def read(connection: database.Connection, ids: Sequence[UUID], *, lock: bool) -> FactsRead:
    """Read these mentors in the given order, without those that do not exist.

    With ``lock``, certificates and open pauses are locked without waiting, and mentors with a row that another session
    has locked are left out. The caller must have locked the mentors in an earlier statement.
    """
    rows = {row[0]: row for row in database.fetch(connection, "read_mentors", {"ids": list(ids)})}
    by_id = organisations(connection, {row[2] for row in rows.values()})
    broken = {row[0]: row[-1] for row in rows.values() if row[-1] is not None}
    for mentor_id in broken:
        del rows[mentor_id]
    seen = {mentor_id: frozenset[str](row[9]) for mentor_id, row in rows.items()}
    certificates, locked = _read_certificates(connection, seen, lock=lock)
    pauses, also_locked = _read_pauses(connection, list(rows), lock=lock)
    for mentor_id in locked | also_locked:
        del rows[mentor_id]
    mentors = [
        Mentor(
            id=row[0],
            member_no=row[1],
            organisation=by_id[row[2]],
            left=row[3],
            portal_visible=row[4],
            has_contact=row[5],
            contact_replaced=row[6],
            certified_until=row[7],
            decided_visible=row[8],
            seen=seen[row[0]],
            due_by_calendar=row[10],
            certificates=tuple(certificates.get(row[0], ())),
            open_pauses=tuple(pauses.get(row[0], ())),
        )
        for row in map(rows.get, ids)
        if row is not None
    ]
    return FactsRead(mentors=mentors, broken=broken)


def _read_certificates(
    connection: database.Connection, seen: Mapping[UUID, frozenset[str]], *, lock: bool
) -> tuple[dict[UUID, list[Certificate]], set[UUID]]:
    """Return the certificates of these mentors, and the mentors with one that another session has locked."""
    certificates, locked = dict[UUID, list[Certificate]](), set[UUID]()
    statement = "lock_certificates" if lock else "read_certificates"
    for mentor_id, row_id, kind, issued_on, expires_on, revoked, status in database.fetch(
        connection, statement, {"ids": list(seen)}
    ):
        if row_id is None:
            locked.add(mentor_id)
            continue
        certificate = Certificate(
            id=row_id,
            kind=kind,
            issued_on=issued_on,
            expires_on=expires_on,
            revoked=revoked,
            status=_STATUSES[status],
            unseen=seen_key(kind, expires_on) not in seen[mentor_id],
        )
        certificates.setdefault(mentor_id, []).append(certificate)
    return certificates, locked


def _read_pauses(
    connection: database.Connection, ids: Sequence[UUID], *, lock: bool
) -> tuple[dict[UUID, list[OpenPause]], set[UUID]]:
    """Return the open pauses of these mentors, and the mentors with one that another session has locked."""
    pauses, locked = dict[UUID, list[OpenPause]](), set[UUID]()
    statement = "lock_open_pauses" if lock else "read_open_pauses"
    for mentor_id, row_id, reason, lapsed_kinds in database.fetch(connection, statement, {"ids": ids}):
        if row_id is None:
            locked.add(mentor_id)
        else:
            pause = OpenPause(id=row_id, reason=reason, lapsed_kinds=frozenset(lapsed_kinds))
            pauses.setdefault(mentor_id, []).append(pause)
    return pauses, locked


def read_due(
    connection: database.Connection, *, due_by: date | None, organisation_id: UUID | None
) -> Iterator[FactsRead]:
    """Yield the mentors due on ``due_by`` (None: all) in chunks, in the order of apply, without locks."""
    asked: dict[str, object] = {"due_by": due_by, "organisation_id": organisation_id, "limit": CHUNK_SIZE}
    after_review, after_id = BEFORE_EVERY_MENTOR
    while keys := database.fetch(
        connection, "read_due_mentors", asked | {"after_review": after_review, "after_id": after_id}
    ):
        after_id, after_review = keys[-1]
        yield read(connection, [mentor_id for mentor_id, _ in keys], lock=False)


def organisations(connection: database.Connection, ids: Iterable[UUID]) -> dict[UUID, Organisation]:
    """Return these organisations by id."""
    rows = database.fetch(connection, "read_organisations", {"ids": list(ids)})
    return {
        organisation_id: Organisation(
            id=organisation_id,
            slug=slug,
            has_portal=has_portal,
            reminder_thresholds=tuple(thresholds),
            optional_kinds=frozenset(optional_kinds),
        )
        for organisation_id, slug, has_portal, thresholds, optional_kinds in rows
    }
