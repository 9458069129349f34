"""The mentors as the facts in the database have them; what must become of them, ``tests.support.saga_model`` knows."""

from dataclasses import dataclass
from datetime import date, timedelta
from uuid import UUID

from certjob.database import Connection
from tests.support.saga_model import Certificate, Mentor, Organisation


@dataclass(kw_only=True)
class Person(Mentor):
    """One mentor's facts."""

    member_no: str
    email: str

    @property
    def has_portal(self) -> bool:
        return self.organisation.has_portal

    def due_threshold(self, certificate: Certificate, today: date) -> int | None:
        """The one reminder about this certificate that is right to send today."""
        if self.left or self.status(certificate, today) not in ("valid", "expiring", "expired"):
            return None
        begins_by = certificate.expires_on + timedelta(days=1)
        if any(row.rank > certificate.rank and row.issued_on <= begins_by for row in self.same_kind(certificate)):
            return None
        for threshold in sorted(self.organisation.thresholds):
            due_on = certificate.expires_on - timedelta(days=threshold)
            if today >= due_on:
                last_day = certificate.expires_on if threshold >= 0 else due_on + timedelta(days=14)
                return threshold if today <= last_day else None
        return None


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
        "SELECT m.id, m.member_no, m.email, m.dynamics_contact_id, m.left_at IS NOT NULL,"
        " o.id, o.portal IS NOT NULL, o.reminder_thresholds,"
        " ARRAY(SELECT reason FROM mentor_pauses WHERE mentor_id = m.id AND actor <> 'certjob' AND lifted_at IS NULL),"
        " ARRAY(SELECT jsonb_build_array(id, kind, issued_on, expires_on, revoked_at IS NOT NULL)"
        "     FROM certificates WHERE mentor_id = m.id ORDER BY id)"
        " FROM mentors AS m JOIN organisations AS o ON o.id = m.organisation_id ORDER BY m.member_no"
    ).fetchall()
    return [
        Person(
            id=row[0],
            member_no=row[1],
            email=row[2],
            contact_id=row[3],
            left=row[4],
            organisation=Organisation(id=row[5], has_portal=row[6], thresholds=row[7]),
            pauses=set(row[8]),
            certificates={
                UUID(cert_id): Certificate(
                    kind=kind,
                    issued_on=date.fromisoformat(issued_on),
                    expires_on=date.fromisoformat(expires_on),
                    revoked=revoked,
                )
                for cert_id, kind, issued_on, expires_on, revoked in row[9]
            },
        )
        for row in rows
    ]


def due_reminders(person: Person, today: date) -> set[Due]:
    """What this mentor must have been reminded of by the end of today."""
    return {
        Due(mentor_id=person.id, cert_id=cert_id, threshold_days=threshold, expires_on=certificate.expires_on)
        for cert_id, certificate in person.certificates.items()
        if (threshold := person.due_threshold(certificate, today)) is not None
    }
