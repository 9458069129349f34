"""The coming nights and the explanations agree with the rules."""

from datetime import date, timedelta

import pytest
from hypothesis import given

from certjob.domain import explanations, projection, rules
from certjob.domain.models import Decision, Mentor, Reminder, Status
from certjob.domain.projection import coming_runs
from tests.domain.strategies import any_day, days, mentors, thoroughly
from tests.support.facts import TODAY
from tests.support.people import certificate, expiring_in, mentor, organisation

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
