"""The programme's rules once more, in plain words: from the facts alone to what must be true once everything is calm.

Written from the design's section 2 and not from ``certjob.rules``, so that a mistake there is not repeated here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from uuid import UUID

from certjob.database import Connection


@dataclass(kw_only=True)
class Organisation:
    """What an organisation decides for its mentors."""

    id: UUID
    has_portal: bool
    thresholds: Sequence[int]
    optional_kinds: Sequence[str] = ()


@dataclass(kw_only=True)
class Certificate:
    """A certificate as a person entered it."""

    kind: str
    issued_on: date
    expires_on: date
    revoked: bool = False

    def covers(self, today: date) -> bool:
        """Whether it is in force."""
        return not self.revoked and self.issued_on <= today <= self.expires_on

    @property
    def rank(self) -> tuple[date, date]:
        """Of two certificates of one kind, the one with the higher rank counts."""
        return self.expires_on, self.issued_on


@dataclass(kw_only=True)
class Mentor:
    """A mentor and everything people have noted about them."""

    id: UUID
    member_no: str
    email: str
    organisation: Organisation
    contact_id: UUID | None
    certificates: dict[UUID, Certificate] = field(default_factory=dict)
    pauses: set[str] = field(default_factory=set)
    """Reasons of other people's open pauses."""
    left: bool = False

    @property
    def has_portal(self) -> bool:
        return self.organisation.has_portal

    @property
    def on_portal(self) -> bool:
        """Whether the portal has a contact of this mentor that certjob answers for."""
        return self.has_portal and self.contact_id is not None

    def same_kind(self, certificate: Certificate) -> list[Certificate]:
        """All rows of that kind, revoked ones left out."""
        return [row for row in self.certificates.values() if row.kind == certificate.kind and not row.revoked]

    def status(self, certificate: Certificate, today: date) -> str:
        """The status this certificate must have."""
        if certificate.revoked:
            return "revoked"
        if certificate.issued_on > today:
            return "upcoming"
        if certificate.rank < max(row.rank for row in self.same_kind(certificate) if row.issued_on <= today):
            return "renewed"
        if certificate.expires_on < today:
            return "expired"
        first_notice = max(self.organisation.thresholds, default=None)
        if first_notice is not None and certificate.expires_on - timedelta(days=first_notice) <= today:
            return "expiring"
        return "valid"

    def is_certified(self, today: date) -> bool:
        """Whether every kind that was ever held, and counts, is covered today: if not, certjob's own pause is open."""
        counting = [row for row in self.certificates.values() if row.kind not in self.organisation.optional_kinds]
        held = {row.kind for row in counting if row.revoked or row.issued_on <= today}
        covered = {row.kind for row in counting if row.covers(today)}
        return held <= covered

    def is_active(self, today: date) -> bool:
        """Whether the mentor may meet people, and so whether the portal shows them."""
        return not self.left and not self.pauses and self.is_certified(today)

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


def due_reminders(mentor: Mentor, today: date) -> set[Due]:
    """What this mentor must have been reminded of by the end of today."""
    return {
        Due(mentor_id=mentor.id, cert_id=cert_id, threshold_days=threshold, expires_on=certificate.expires_on)
        for cert_id, certificate in mentor.certificates.items()
        if (threshold := mentor.due_threshold(certificate, today)) is not None
    }


def read_mentors(connection: Connection) -> dict[UUID, Mentor]:
    """Read the facts; nothing that certjob writes."""
    rows = connection.execute(
        "SELECT m.id, m.member_no, m.email, m.dynamics_contact_id, m.left_at IS NOT NULL,"
        " o.id, o.portal IS NOT NULL, o.reminder_thresholds, o.optional_kinds,"
        " ARRAY(SELECT reason FROM mentor_pauses WHERE mentor_id = m.id AND actor <> 'certjob' AND lifted_at IS NULL)"
        " FROM mentors AS m JOIN organisations AS o ON o.id = m.organisation_id ORDER BY m.member_no"
    ).fetchall()
    mentors = {
        row[0]: Mentor(
            id=row[0],
            member_no=row[1],
            email=row[2],
            contact_id=row[3],
            left=row[4],
            organisation=Organisation(id=row[5], has_portal=row[6], thresholds=row[7], optional_kinds=row[8]),
            pauses=set(row[9]),
        )
        for row in rows
    }
    certificates = "SELECT mentor_id, id, kind, issued_on, expires_on, revoked_at IS NOT NULL FROM certificates"
    for mentor_id, certificate_id, kind, issued_on, expires_on, revoked in connection.execute(certificates):
        mentors[mentor_id].certificates[certificate_id] = Certificate(
            kind=kind, issued_on=issued_on, expires_on=expires_on, revoked=revoked
        )
    return mentors
