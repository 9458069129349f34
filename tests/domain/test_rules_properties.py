"""Properties of the rules and of the coming nights, for mentors and days that hypothesis chooses."""

import os
from dataclasses import replace
from datetime import date, timedelta
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from certjob.domain import explanations, projection, rules
from certjob.domain.models import (
    NOT_CERTIFIED,
    OWN_PAUSE_REASON,
    Certificate,
    Decision,
    Mentor,
    OpenPause,
    Reminder,
    Status,
)
from certjob.domain.projection import coming_runs
from tests.support.facts import TODAY
from tests.support.people import certificate, expiring_in, mentor, organisation

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


def counting(person: Mentor) -> list[Certificate]:
    return [each for each in person.certificates if each.kind not in person.organisation.optional_kinds]


def kinds_in_force(person: Mentor, today: date) -> set[str]:
    return {each.kind for each in counting(person) if not each.revoked and each.issued_on <= today <= each.expires_on}


def lapsed_kinds(person: Mentor, today: date) -> set[str]:
    held = {each.kind for each in counting(person) if each.revoked or each.issued_on <= today}
    return held - kinds_in_force(person, today)


def is_certified(person: Mentor, today: date) -> bool:
    return bool(kinds_in_force(person, today)) and not lapsed_kinds(person, today)


def reviewed(person: Mentor, today: date) -> Mentor:
    return projection.after(person, rules.decide(person, today))


def pause_reasons(person: Mentor) -> list[str]:
    return sorted(pause.reason for pause in person.open_pauses)


def with_gap(days: int) -> Mentor:
    """Return a mentor whose second certificate begins so many days after the last day of the first."""
    begins = TODAY + timedelta(days=30 + days)
    return mentor(expiring_in(30), certificate(begins + timedelta(days=300), issued_on=begins))


@thoroughly
@given(mentors(), days)
@example(with_gap(0), TODAY)
@example(with_gap(1), TODAY)
@example(with_gap(2), TODAY)
def test_certified_until_is_the_last_certified_day(person: Mentor, today: date) -> None:
    """It depends on the certificates alone, not on pauses, the portal or a departure."""
    day = today
    while is_certified(person, day):
        day += timedelta(days=1)
    last_day = day - timedelta(days=1) if day > today else NOT_CERTIFIED

    assert rules.certified_until(person, today) == last_day
    other = replace(person, left=not person.left, open_pauses=(), portal_visible=None)
    assert rules.certified_until(other, today) == last_day


@ordinarily
@given(mentors(), days)
def test_second_review_of_a_day_changes_nothing(person: Mentor, today: date) -> None:
    """It finds the same reminders, and the log has them already."""
    first = rules.decide(person, today)

    second = rules.decide(projection.after(person, first), today)

    assert (second.transitions, second.pause, second.push) == ((), None, False)
    assert (second.reminders, second.review_on, second.visible) == (first.reminders, first.review_on, first.visible)


@ordinarily
@given(mentors(), days, st.integers(0, 400))
def test_missed_night_changes_nothing(person: Mentor, first_night: date, days_later: int) -> None:
    last_night = first_night + timedelta(days=days_later)

    both = reviewed(reviewed(person, first_night), last_night)
    last_alone = reviewed(person, last_night)

    assert pause_reasons(both) == pause_reasons(last_alone)
    assert both.certificates == last_alone.certificates
    assert both.portal_visible == last_alone.portal_visible
    assert rules.decide(both, last_night).reminders == rules.decide(last_alone, last_night).reminders


@ordinarily
@given(mentors(), days, st.lists(st.integers(0, 400), min_size=3, max_size=3))
def test_mentor_who_is_due_by_the_calendar_has_only_foreseen_changes(
    person: Mentor, today: date, nights_missed: list[int]
) -> None:
    """So the guards count only mentors with a changed fact before they ask the rules."""
    decision = rules.decide(person, today)
    for missed in nights_missed:
        person = projection.after(person, decision)
        if decision.review_on is None or (date.max - decision.review_on).days < missed:
            return
        decision = rules.decide(person, decision.review_on + timedelta(days=missed))
        assert (decision.surprise.change, decision.surprise.reminders) == (None, ())


@ordinarily
@given(mentors(), days)
def test_certjob_changes_only_its_own_pause(person: Mentor, today: date) -> None:
    """It is open while a held or stored kind is not in force. It does not change after a departure."""
    stored = {kind for pause in person.open_pauses for kind in pause.lapsed_kinds}
    missing = lapsed_kinds(person, today) | stored - kinds_in_force(person, today) - person.organisation.optional_kinds
    is_open = OWN_PAUSE_REASON in pause_reasons(person) if person.left else bool(missing)
    others = [reason for reason in pause_reasons(person) if reason != OWN_PAUSE_REASON]

    assert pause_reasons(reviewed(person, today)) == sorted([*others, OWN_PAUSE_REASON] if is_open else others)


@ordinarily
@given(mentors(), days)
def test_push_tells_the_portal_each_new_visibility(person: Mentor, today: date) -> None:
    """Without a contact ID, a mentor who was never certified is on no portal, and so needs no hide."""
    decision = rules.decide(person, today)
    after = projection.after(person, decision)

    certified = is_certified(person, today)
    was_certified = lapsed_kinds(person, today) or person.certified_until not in (None, NOT_CERTIFIED)
    assert decision.visible is (certified and not after.open_pauses and not person.left)
    if not person.organisation.has_portal:
        assert not decision.push
    elif person.has_contact or certified or was_certified:
        assert after.portal_visible is decision.visible
    elif person.portal_visible:
        assert not decision.push


@ordinarily
@given(mentors(), days)
def test_order_of_the_rows_does_not_matter(person: Mentor, today: date) -> None:
    """So no statement needs an ORDER BY for the rules."""
    turned = replace(person, certificates=person.certificates[::-1], open_pauses=person.open_pauses[::-1])

    assert rules.decide(turned, today) == rules.decide(person, today)


@ordinarily
@given(mentors(), days)
def test_each_question_about_a_certificate_has_one_answer(person: Mentor, today: date) -> None:
    """A decision, a preview, an explanation and the mail stage agree. So no due reminder is cancelled."""
    due = rules.decide(person, today).reminders
    thresholds = {reminder.cert_id: reminder.threshold_days for reminder in due}
    assert len(thresholds) == len(due)

    for row in person.certificates:
        assert thresholds.get(row.id) == rules.due_threshold(row, person, today)
        status = rules.status_of(row, person, today)
        if status not in (Status.REVOKED, Status.UPCOMING):
            assert (rules.replacement(row, person, today) is not None) is (status is Status.RENEWED)
        for days_before in person.organisation.reminder_thresholds:
            reminder = Reminder(cert_id=row.id, threshold_days=days_before, expires_on=row.expires_on)
            assert (rules.cancel_reason(reminder, person, today) is None) == (reminder in due)


# The coming nights and the explanations agree with the rules.


Work = tuple[date, object, object, bool | None, frozenset[Reminder]]


def work(day: date, decision: Decision, reminders: frozenset[Reminder]) -> Work | None:
    """Return the change that a night makes, or None."""
    done = (decision.transitions, decision.pause, decision.visible if decision.push else None, reminders)
    return (day, *done) if decision.push or any(done) else None


@thoroughly
@given(mentors(), days)
def test_coming_nights_are_those_of_a_daily_review(person: Mentor, today: date) -> None:
    """So no day is missing in ``review_on``."""
    nights = list(coming_runs(person, first=today))

    told = [work(each.day, each.decision, frozenset(each.reminders)) for each in nights]
    assert [each.does_something for each in nights] == [each is not None for each in told]

    daily, known = [], frozenset[Reminder]()
    for day in (today + timedelta(days=number) for number in range(600)):
        decision = rules.decide(person, day)
        daily.append(work(day, decision, frozenset(decision.reminders) - known))
        known |= frozenset(decision.reminders)
        person = projection.after(person, decision)
    assert list(filter(None, told)) == list(filter(None, daily))


def test_night_that_only_pauses_does_something() -> None:
    ended = certificate(TODAY - timedelta(days=1), status=Status.EXPIRED)
    person = mentor(ended, organisation=organisation(has_portal=False, thresholds=[]))

    (first, *_) = coming_runs(person, first=TODAY)

    assert first.does_something


@thoroughly
@given(mentors(any_day), any_day)
def test_every_date_of_the_calendar_has_coming_nights(person: Mentor, today: date) -> None:
    """From 0001-01-01 to 9999-12-31 they come in order and end, and explanations can state them."""
    nights = [each.day for each in coming_runs(person, first=today)]

    assert nights == sorted(set(nights))
    assert all(explanations.why_status(row, person, today) for row in person.certificates)
    assert list(explanations.why_certified(person, today)) or not person.certificates


@pytest.mark.parametrize(
    ("days_left", "text"),
    [
        (61, "its last day is 10 May, in 61 days, before the 60-day reminder period"),
        (60, "its last day is 9 May, in 60 days, within the 60-day reminder period"),
        (0, "its last day is 10 March, today, within the 60-day reminder period"),
        (-1, "its last day was 9 March, 1 day ago"),
    ],
)
def test_status_is_explained_with_the_last_day(days_left: int, text: str) -> None:
    row = expiring_in(days_left)

    assert explanations.why_status(row, mentor(row), TODAY) == text


def test_status_is_explained_with_the_later_certificate() -> None:
    old = certificate(TODAY + timedelta(days=20), issued_on=date(2025, 1, 1))
    new = certificate(date(2028, 1, 31), issued_on=date(2026, 2, 1))
    upcoming = certificate(date(2029, 1, 31), issued_on=date(2026, 4, 1), kind="first_aid")
    person = mentor(old, new, upcoming)

    replaced = "it was replaced by a later certificate (1 February to 31 January 2028)"
    assert explanations.why_status(old, person, TODAY) == replaced
    assert explanations.why_status(upcoming, person, TODAY) == "it begins on 1 April, in 22 days"
