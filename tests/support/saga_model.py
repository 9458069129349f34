"""The programme's rules once more, in plain words: from the facts alone to what must be true once everything is calm.

Written from the design's section 2 and not from ``certjob.rules``, so that a mistake there is not repeated here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from uuid import UUID


@dataclass(kw_only=True)
class Organisation:
    """What an organisation decides for its mentors."""

    id: UUID
    has_portal: bool
    thresholds: Sequence[int]
    optional_kinds: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class Certificate:
    """A certificate as a person entered it."""

    kind: str
    issued_on: date
    expires_on: date
    revoked: bool = False

    @property
    def rank(self) -> tuple[date, date]:
        """Of two certificates of one kind, the one with the higher rank counts."""
        return self.expires_on, self.issued_on


@dataclass(kw_only=True)
class Mentor:
    """A mentor and everything people have noted about them."""

    id: UUID
    organisation: Organisation
    contact_id: UUID | None
    certificates: dict[UUID, Certificate] = field(default_factory=dict)
    pauses: set[str] = field(default_factory=set)
    """Reasons of other people's open pauses."""
    left: bool = False
    paused_when_left: bool = False
    """Whether certjob's own pause was open when the mentor left: then it stays as it was."""

    @property
    def on_portal(self) -> bool:
        """Whether the portal has a contact of this mentor that certjob answers for."""
        return self.organisation.has_portal and self.contact_id is not None

    def same_kind(self, certificate: Certificate) -> list[Certificate]:
        """All rows of that kind, revoked ones left out."""
        return [row for row in self.certificates.values() if row.kind == certificate.kind and not row.revoked]

    def status(self, certificate: Certificate, today: date) -> str:
        """The status this certificate must have."""
        if certificate.revoked:
            return "revoked"
        if certificate.issued_on > today:
            return "upcoming"
        begun = [row for row in self.same_kind(certificate) if row.issued_on <= today]
        if certificate.rank < max(row.rank for row in begun):
            return "renewed"
        if certificate.expires_on < today:
            return "expired"
        first_notice = max(self.organisation.thresholds, default=None)
        if first_notice is not None and certificate.expires_on - timedelta(days=first_notice) <= today:
            return "expiring"
        return "valid"

    def is_certified(self, today: date) -> bool:
        """Whether every kind that was ever held, and counts, is covered today."""
        counting = [row for row in self.certificates.values() if row.kind not in self.organisation.optional_kinds]
        held = {row.kind for row in counting if row.revoked or row.issued_on <= today}
        covered = {row.kind for row in counting if not row.revoked and row.issued_on <= today <= row.expires_on}
        return held <= covered

    def is_paused_by_certjob(self, today: date) -> bool:
        """Whether certjob's own pause must be open."""
        return self.paused_when_left if self.left else not self.is_certified(today)

    def is_active(self, today: date) -> bool:
        """Whether the mentor may meet people, and so whether the portal shows them."""
        return not self.left and not self.pauses and not self.is_paused_by_certjob(today)


@dataclass(kw_only=True)
class Model:
    """Everybody, and the day."""

    today: date
    organisations: list[Organisation] = field(default_factory=list)
    mentors: list[Mentor] = field(default_factory=list)

    def portal_values(self) -> dict[UUID, bool]:
        """What the portal must show for each contact that certjob answers for."""
        return {
            mentor.contact_id: mentor.is_active(self.today)
            for mentor in self.mentors
            if mentor.contact_id is not None and mentor.on_portal
        }
