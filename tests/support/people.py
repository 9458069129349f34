"""Factories for the values that rules read, with defaults for everything a test does not care about."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from uuid import UUID, uuid4

from certjob.domain.models import (
    OWN_PAUSE_REASON,
    Certificate,
    Decision,
    Mentor,
    OpenPause,
    Organisation,
    PauseChange,
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
    """An organisation with a portal and the usual thresholds."""
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
    """A certificate that certjob has not seen yet."""
    return Certificate(
        id=uuid4(), kind=kind, issued_on=issued_on, expires_on=expires_on, revoked=revoked, status=status
    )


def expiring_in(days: int, *, kind: str = "likeperson", today: date = TODAY) -> Certificate:
    """A certificate whose last day is so many days after today (negative: before)."""
    return certificate(today + timedelta(days=days), kind=kind)


def pause(reason: str = "illness") -> OpenPause:
    """An open pause of somebody else."""
    return OpenPause(id=uuid4(), reason=reason)


def own_pause() -> OpenPause:
    """certjob's own open pause."""
    return OpenPause(id=uuid4(), reason=OWN_PAUSE_REASON)


def mentor(
    *certificates: Certificate,
    organisation: Organisation = organisation(),  # noqa: B008 - frozen
    pauses: Sequence[OpenPause] = (),
    left: bool = False,
    portal_visible: bool | None = True,
    has_contact: bool = True,
    certified_until: date | None = None,
    due_by_calendar: bool = False,
) -> Mentor:
    """A mentor with these certificates, shown on the portal and not paused."""
    return Mentor(
        id=UUID(int=2),
        member_no="M1001",
        organisation=organisation,
        left=left,
        portal_visible=portal_visible,
        has_contact=has_contact,
        certified_until=certified_until,
        due_by_calendar=due_by_calendar,
        certificates=certificates,
        open_pauses=tuple(pauses),
    )


def apply_decision(person: Mentor, decision: Decision) -> Mentor:
    """The mentor as the database holds them once the decision is committed."""
    statuses = {transition.certificate_id: transition.to_status for transition in decision.transitions}
    pauses = person.open_pauses
    if decision.pause is PauseChange.OPEN:
        pauses = (*pauses, own_pause())
    elif decision.pause is PauseChange.LIFT:
        pauses = tuple(each for each in pauses if each.id != decision.own_pause_id)
    return replace(
        person,
        certificates=tuple(replace(c, status=statuses.get(c.id, c.status)) for c in person.certificates),
        open_pauses=pauses,
        portal_visible=decision.visible if decision.push else person.portal_visible,
        certified_until=decision.certified_until,
        due_by_calendar=True,
    )
