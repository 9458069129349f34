"""Values that the rules read: factories with defaults, and strategies for hypothesis."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from uuid import UUID, uuid4

from hypothesis import settings
from hypothesis import strategies as st

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


def expiring_in(days: int, *, kind: str = "likeperson", today: date = TODAY) -> Certificate:
    """Return a certificate that expires so many days after today (negative: before)."""
    return certificate(today + timedelta(days=days), kind=kind)


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
    due_by_calendar: bool = False,
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
        due_by_calendar=due_by_calendar,
        certificates=certificates,
        open_pauses=tuple(pauses),
    )


ordinarily = settings(max_examples=60, deadline=None, derandomize=True, database=None)
"""A fixed number of examples, which are the same on every machine."""

thoroughly = settings(ordinarily, max_examples=40)
"""For properties that check 600 days in each example."""

KINDS = ("likeperson", "first_aid", "driver")

days = st.dates(TODAY - timedelta(days=120), TODAY + timedelta(days=120))
any_day = st.dates()


@st.composite
def certificates(draw: st.DrawFn, dates: st.SearchStrategy[date] = days) -> tuple[Certificate, ...]:
    """Draw up to six certificates of one mentor, with unique pairs of kind and first day, as in the database."""
    keys = draw(st.lists(st.tuples(st.sampled_from(KINDS), dates), max_size=6, unique=True))
    rows = []
    for number, (kind, issued_on) in enumerate(keys, start=1):
        last_possible = min(date.max.toordinal(), issued_on.toordinal() + 300)
        expires_on = date.fromordinal(draw(st.integers(issued_on.toordinal(), last_possible)))
        rows.append(
            Certificate(
                id=UUID(int=number),
                kind=kind,
                issued_on=issued_on,
                expires_on=expires_on,
                revoked=draw(st.integers(0, 5)) == 0,
                status=draw(st.sampled_from(Status)),
            )
        )
    return tuple(rows)


open_pauses = st.lists(st.sampled_from([OWN_PAUSE_REASON, "illness", "leave"]), max_size=3, unique=True).map(
    lambda reasons: tuple(OpenPause(id=UUID(int=100 + n), reason=reason) for n, reason in enumerate(reasons))
)


@st.composite
def mentors(draw: st.DrawFn, dates: st.SearchStrategy[date] = days) -> Mentor:
    """Draw any mentor that the database can store."""
    return mentor(
        *draw(certificates(dates)),
        organisation=organisation(
            has_portal=draw(st.booleans()),
            thresholds=draw(st.lists(st.integers(-20, 90), max_size=6)),
            optional_kinds=draw(st.sets(st.sampled_from(KINDS), max_size=2)),
        ),
        pauses=draw(open_pauses),
        left=draw(st.integers(0, 5)) == 0,
        portal_visible=draw(st.sampled_from([True, False, None])),
        has_contact=draw(st.booleans()),
        certified_until=draw(st.none() | dates),
        due_by_calendar=draw(st.booleans()),
    )
