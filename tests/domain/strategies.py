"""Strategies for hypothesis: any mentor that the rules can meet."""

import os
from datetime import date, timedelta
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st

from certjob.domain.models import OWN_PAUSE_REASON, Certificate, Mentor, OpenPause, Status
from tests.support.facts import TODAY
from tests.support.people import mentor, organisation

is_random = "CERTJOB_RANDOM_EXAMPLES" in os.environ
ordinarily = settings(max_examples=60, deadline=None, derandomize=not is_random, database=None, print_blob=True)
"""A fixed number of examples, which are the same on every machine; `make chaos` draws others."""

thoroughly = settings(ordinarily, max_examples=40)
"""For properties that check 600 days in each example."""

KINDS = ("likeperson", "first_aid", "driver")

days = st.dates(TODAY - timedelta(days=120), TODAY + timedelta(days=120))
any_day = st.dates()


@st.composite
def certificates(draw: st.DrawFn, dates: st.SearchStrategy[date]) -> tuple[Certificate, ...]:
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
                unseen=draw(st.booleans()),
            )
        )
    return tuple(rows)


@st.composite
def open_pauses(draw: st.DrawFn) -> tuple[OpenPause, ...]:
    """Draw up to three pauses; certjob's own has lapsed kinds."""
    reasons = draw(st.lists(st.sampled_from([OWN_PAUSE_REASON, "illness", "leave"]), max_size=3, unique=True))
    return tuple(
        OpenPause(
            id=UUID(int=100 + number),
            reason=reason,
            lapsed_kinds=draw(st.frozensets(st.sampled_from(KINDS))) if reason == OWN_PAUSE_REASON else frozenset(),
        )
        for number, reason in enumerate(reasons)
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
        pauses=draw(open_pauses()),
        left=draw(st.integers(0, 5)) == 0,
        portal_visible=draw(st.sampled_from([True, False, None])),
        has_contact=draw(st.booleans()),
        certified_until=draw(st.none() | dates),
        decided_visible=draw(st.sampled_from([True, False, None])),
        due_by_calendar=draw(st.booleans()),
        contact_replaced=draw(st.booleans()),
    )
