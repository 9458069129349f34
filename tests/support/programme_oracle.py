"""Who must be visible and who must be reminded, written from docs/rules.md alone, without ``certjob.domain``.

Days are whole numbers. A mentor has the facts of the database, and of the oracle the kinds for which certjob has paused
the mentor.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

from tests.support.programme_world import World

FOREVER = 10**6


@dataclass(frozen=True, slots=True)
class Certificate:
    id: UUID
    kind: str
    is_revoked: bool
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A reminder: certificate kind, last day and threshold."""

    member_no: str
    kind: str
    last: int
    threshold: int


@dataclass(slots=True, kw_only=True)
class Mentor:
    id: UUID
    member_no: str
    organisation: str
    has_portal: bool
    thresholds: list[int]
    optional: list[str]
    contact: UUID | None
    address: str | None
    has_left: bool
    is_reviewed: bool
    """Whether a review has seen the present facts today."""
    is_in_app: bool
    """False if the mirror keeps a mentor whom the app has deleted."""
    certificates: list[Certificate] = field(default_factory=list)
    has_pause: bool = False
    """Whether a person has paused the mentor."""
    own_pause: UUID | None = None
    """The open pause of certjob."""
    lapsed: set[str] = field(default_factory=set)
    """The kinds that certjob's pause stores."""

    def kinds_in_force(self, day: int) -> set[str]:
        """Return the kinds that count with a certificate that is not revoked, has begun and has not ended."""
        return {
            each.kind
            for each in self.certificates
            if not each.is_revoked and each.first <= day <= each.last and each.kind not in self.optional
        }

    def kinds_without(self, day: int) -> set[str]:
        """Return the kinds that count and are had (one is not upcoming, or is revoked), but are not in force."""
        had = {each.kind for each in self.certificates if each.is_revoked or each.first <= day}
        return had - set(self.optional) - self.kinds_in_force(day)

    def is_certified(self, day: int) -> bool:
        return bool(self.kinds_in_force(day)) and not self.kinds_without(day)

    def certified_until(self, day: int) -> int:
        """Return the last day of the days from this one on which the mentor is certified."""
        changes = {each.first for each in self.certificates} | {each.last + 1 for each in self.certificates}
        return next((c - 1 for c in sorted(changes) if c > day and not self.is_certified(c)), FOREVER)

    def still_lapsed(self, day: int) -> set[str]:
        """Return the stored kinds that are neither in force nor optional."""
        return self.lapsed - self.kinds_in_force(day) - set(self.optional)

    def is_paused_by_certjob(self, day: int) -> bool:
        return bool(self.kinds_without(day) or self.still_lapsed(day))

    def must_be_active(self, day: int) -> bool:
        return not (self.has_left or self.has_pause or self.is_paused_by_certjob(day))

    def must_be_visible(self, day: int) -> bool:
        """Return whether the portal, or without one the app, must show the mentor."""
        return self.must_be_active(day) and (self.is_certified(day) or not self.has_portal)

    def reminders(self, day: int) -> Iterator[Due]:
        """Yield the reminders that are due."""
        for each in self.certificates:
            later = (
                other
                for other in self.certificates
                if other.kind == each.kind and not other.is_revoked and other.first <= max(each.last + 1, day)
                if (other.last, other.first) > (each.last, each.first)
            )
            left = each.last - day
            threshold = min((t for t in self.thresholds if t >= left), default=None)
            if self.has_left or each.is_revoked or each.first > day or any(later) or threshold is None:
                continue
            if (threshold >= 0 and left < 0) or threshold - left > (14 if threshold < 0 else FOREVER):
                continue
            yield Due(member_no=self.member_no, kind=each.kind, last=each.last, threshold=threshold)


def read_mentors(world: World, lapsed: dict[UUID, set[str]]) -> list[Mentor]:
    """Read the facts. ``lapsed`` has the kinds of each open pause of certjob."""
    mentors = {
        row[0]: Mentor(
            id=row[0],
            member_no=row[1].partition(" (")[0],  # the mirror changes the number of a deleted mentor
            organisation=row[2],
            has_portal=row[3],
            thresholds=row[4],
            optional=row[5],
            contact=row[6],
            address=row[7],
            has_left=row[8],
            is_reviewed=row[9],
            is_in_app=" (" not in row[1],
        )
        for row in world.rows(
            "SELECT m.id, m.member_no, o.slug, o.portal IS NOT NULL, o.reminder_thresholds, o.optional_kinds,"
            " m.dynamics_contact_id, m.email, m.left_at IS NOT NULL, m.review_on > current_date"
            " FROM mentors AS m JOIN organisations AS o ON o.id = m.organisation_id ORDER BY m.member_no"
        )
    }
    for mentor_id, pause, actor in world.rows("SELECT mentor_id, id, actor FROM mentor_pauses WHERE lifted_at IS NULL"):
        if actor == "certjob":
            mentors[mentor_id].own_pause = pause
        else:
            mentors[mentor_id].has_pause = True
    for mentor_id, certificate, kind, is_revoked, first, last in world.rows(
        "SELECT mentor_id, id, kind, revoked_at IS NOT NULL, issued_on, expires_on FROM certificates"
    ):
        days = world.day_of(first), world.day_of(last)
        mentors[mentor_id].certificates.append(Certificate(certificate, kind, is_revoked, *days))
    for each in mentors.values():
        each.lapsed = lapsed.get(each.id, set())
    return list(mentors.values())
