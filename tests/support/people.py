"""Values that the rules read, with defaults."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from uuid import UUID, uuid4

from certjob.domain.models import (
    OWN_PAUSE_REASON,
    Certificate,
    Mentor,
    OpenPause,
    Organisation,
    Status,
)
from tests.support.facts import TODAY

DEFAULT_THRESHOLDS = (60, 30, 14, 7, 1, -1)


def organisation(
    *,
    slug: str = "hlf",
    has_portal: bool = True,
    thresholds: Sequence[int] = DEFAULT_THRESHOLDS,
    optional_kinds: Iterable[str] = (),
) -> Organisation:
    return Organisation(
        id=UUID(int=1),
        slug=slug,
        has_portal=has_portal,
        reminder_thresholds=tuple(thresholds),
        optional_kinds=frozenset(optional_kinds),
    )


def certificate(
    expires_on: date,
    *,
    issued_on: date = date(2024, 1, 1),
    kind: str = "likeperson",
    revoked: bool = False,
    status: Status = Status.RECORDED,
) -> Certificate:
    return Certificate(
        id=uuid4(), kind=kind, issued_on=issued_on, expires_on=expires_on, revoked=revoked, status=status
    )


def expiring_in(days: int) -> Certificate:
    """Return a certificate that expires so many days after TODAY (negative: before)."""
    return certificate(TODAY + timedelta(days=days))


def pause(reason: str = "illness") -> OpenPause:
    """Return an open pause by someone else."""
    return OpenPause(id=uuid4(), reason=reason)


def own_pause() -> OpenPause:
    """Return an open pause by certjob."""
    return OpenPause(id=uuid4(), reason=OWN_PAUSE_REASON)


def mentor(
    *certificates: Certificate,
    organisation: Organisation = organisation(),  # noqa: B008 - frozen
    pauses: Sequence[OpenPause] = (),
    left: bool = False,
    portal_visible: bool | None = True,
    has_contact: bool = True,
    certified_until: date | None = None,
    decided_visible: bool | None = None,
    due_by_calendar: bool = False,
    contact_replaced: bool = False,
) -> Mentor:
    """Return a mentor with these certificates, visible on the portal and not paused."""
    return Mentor(
        id=UUID(int=2),
        member_no="M1001",
        organisation=organisation,
        left=left,
        portal_visible=portal_visible,
        has_contact=has_contact,
        certified_until=certified_until,
        decided_visible=decided_visible,
        due_by_calendar=due_by_calendar,
        contact_replaced=contact_replaced,
        certificates=certificates,
        open_pauses=tuple(pauses),
    )
