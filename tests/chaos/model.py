"""The wanted end state, worked out from the facts alone and in the plainest way: no rule of certjob is asked."""

from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob.database import Connection

THRESHOLDS = (60, 30, 14, 7, 1, -1)
LATEST_DAYS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate as the app wrote it."""

    id: UUID
    issued_on: date
    expires_on: date
    revoked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One mentor's facts."""

    id: UUID
    member_no: str
    email: str
    has_portal: bool
    contact_id: UUID | None
    left: bool
    others_pause: bool
    """A pause of somebody else is open."""
    certificates: tuple[Certificate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A reminder that should be received, whoever sends it."""

    mentor_id: UUID
    cert_id: UUID
    threshold_days: int
    expires_on: date


def read_people(connection: Connection) -> list[Person]:
    """Read the facts; nothing that certjob writes."""
    rows = connection.execute(
        "SELECT m.id, m.member_no, m.email, o.portal IS NOT NULL, m.dynamics_contact_id, m.left_at IS NOT NULL,"
        " EXISTS (SELECT FROM mentor_pauses AS p"
        "     WHERE p.mentor_id = m.id AND p.actor <> 'certjob' AND p.lifted_at IS NULL),"
        " ARRAY(SELECT ROW(c.id::text, c.issued_on::text, c.expires_on::text, c.revoked_at IS NOT NULL)"
        "     FROM certificates AS c WHERE c.mentor_id = m.id ORDER BY c.id)"
        " FROM mentors AS m JOIN organisations AS o ON o.id = m.organisation_id ORDER BY m.member_no"
    ).fetchall()
    return [
        Person(
            id=row[0],
            member_no=row[1],
            email=row[2],
            has_portal=row[3],
            contact_id=row[4],
            left=row[5],
            others_pause=row[6],
            certificates=tuple(
                Certificate(
                    id=UUID(cert_id),
                    issued_on=date.fromisoformat(issued_on),
                    expires_on=date.fromisoformat(expires_on),
                    revoked=revoked in (True, "t"),
                )
                for cert_id, issued_on, expires_on, revoked in row[7]
            ),
        )
        for row in rows
    ]


def is_certified(person: Person, today: date) -> bool:
    """Whether something is in force, or nothing was ever held. (Everybody here has one kind of certificate.)"""
    held = [c for c in person.certificates if c.revoked or c.issued_on <= today]
    return not held or any(not c.revoked and c.expires_on >= today for c in held)


def is_visible(person: Person, today: date) -> bool:
    """Whether the portal should show this mentor."""
    return not person.left and not person.others_pause and is_certified(person, today)


def due_reminders(person: Person, today: date) -> set[Due]:
    """What this mentor must have been reminded of by the end of today."""
    if person.left:
        return set()
    due = set()
    standing = [c for c in person.certificates if not c.revoked]
    for one in standing:
        later = [c for c in standing if (c.expires_on, c.issued_on) > (one.expires_on, one.issued_on)]
        continued = any((c.issued_on - one.expires_on).days <= 1 or c.issued_on <= today for c in later)
        days_left = (one.expires_on - today).days
        reached = [threshold for threshold in THRESHOLDS if days_left <= threshold]
        if one.issued_on > today or continued or not reached:
            continue
        threshold = min(reached)
        if days_left >= 0 if threshold >= 0 else threshold - days_left <= LATEST_DAYS:
            due.add(Due(mentor_id=person.id, cert_id=one.id, threshold_days=threshold, expires_on=one.expires_on))
    return due
