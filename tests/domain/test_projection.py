"""The coming nights and the explanations agree with the rules."""

from datetime import date, timedelta

import pytest
from hypothesis import given

from certjob.domain import explanations, rules
from certjob.domain.models import IN_FORCE, Decision, Mentor, Reminder
from certjob.domain.projection import coming_nights
from tests.support.facts import TODAY
from tests.support.people import (
    any_day,
    apply_decision,
    certificate,
    days,
    expiring_in,
    mentor,
    mentors,
    ordinarily,
    organisation,
    thoroughly,
)

Night = tuple[date, object, object, bool | None, frozenset[Reminder]]


def night(day: date, decision: Decision, reminders: frozenset[Reminder]) -> Night | None:
    """What a night does, or None."""
    done = (decision.transitions, decision.pause, decision.visible if decision.push else None, reminders)
    return (day, *done) if decision.push or any(done) else None


def review_daily(person: Mentor, *, first: date, nights: int) -> list[Night | None]:
    """Review the mentor every day, due or not."""
    done, known = [], frozenset[Reminder]()
    for day in (first + timedelta(days=number) for number in range(nights)):
        decision = rules.decide(person, day)
        done.append(night(day, decision, frozenset(decision.reminders) - known))
        known |= frozenset(decision.reminders)
        person = apply_decision(person, decision)
    return done


@thoroughly
@given(mentors(), days)
def test_coming_nights_are_those_of_a_daily_review(person: Mentor, today: date) -> None:
    """So no day is missing in ``review_on``. Reminders come in the order of their thresholds."""
    nights = list(coming_nights(person, first=today))

    told = [night(each.day, each.decision, frozenset(each.reminders)) for each in nights]
    assert [each.does_something for each in nights] == [each is not None for each in told]
    daily = review_daily(person, first=today, nights=600)
    assert list(filter(None, told)) == list(filter(None, daily))
    soon = today + timedelta(days=100)
    assert list(coming_nights(person, first=today, until=soon)) == [each for each in nights if each.day <= soon]
    for row in person.certificates:
        thresholds = [each.threshold_days for each in sum((n.reminders for n in nights), ()) if each.cert_id == row.id]
        assert thresholds == sorted(thresholds, reverse=True)


@ordinarily
@given(mentors(any_day), any_day)
def test_every_date_of_the_calendar_has_coming_nights(person: Mentor, today: date) -> None:
    """From 0001-01-01 to 9999-12-31 they come in order and end, and explanations can state them."""
    nights = [each.day for each in coming_nights(person, first=today)]

    assert nights == sorted(set(nights))
    assert all(explanations.why_status(row, person, today) for row in person.certificates)
    assert list(explanations.why_certified(person, today)) or not person.certificates


@ordinarily
@given(mentors(), days)
def test_certificate_without_reminders_gets_none(person: Mentor, today: date) -> None:
    reminded = {reminder.cert_id for each in coming_nights(person, first=today) for reminder in each.reminders}

    for row in person.certificates:
        assert row.id not in reminded or explanations.why_no_reminder(row, person, today) is None


@ordinarily
@given(mentors(), days)
def test_each_kind_is_explained_with_its_last_day(person: Mentor, today: date) -> None:
    texts = list(explanations.why_certified(person, today))

    for kind, text in zip(sorted({row.kind for row in person.certificates}), texts, strict=True):
        rows = [row for row in person.certificates if row.kind == kind]
        last_days = [row.expires_on for row in rows if rules.status_of(row, person, today) in IN_FORCE]
        assert text.startswith(f"{kind} is in force until") is bool(last_days)
        assert not last_days or explanations.day_words(max(last_days), today) in text
        assert ("optional" in text) is (kind in person.organisation.optional_kinds)


@pytest.mark.parametrize(
    ("days_left", "thresholds", "text"),
    [
        (46, [60, 30], "its last day is 25 April, in 46 days, inside the largest reminder threshold, 60 days"),
        (61, [60, 30], "its last day is 10 May, in 61 days, beyond the largest reminder threshold, 60 days"),
        (1, [1], "its last day is 11 March, in 1 day, inside the largest reminder threshold, 1 day"),
        (0, [60], "its last day is 10 March, today, inside the largest reminder threshold, 60 days"),
        (
            400,
            [],
            "its last day is 14 April 2027, in 400 days; hlf has no reminder thresholds, so no certificate counts as",
        ),
        (-5, [60], "its last day was 5 March, 5 days ago"),
    ],
)
def test_status_is_explained_with_the_last_day(days_left: int, thresholds: list[int], text: str) -> None:
    row = expiring_in(days_left)

    person = mentor(row, organisation=organisation(thresholds=thresholds))
    assert explanations.why_status(row, person, TODAY).startswith(text)


def test_status_is_explained_with_the_later_certificate() -> None:
    old = certificate(TODAY + timedelta(days=20), issued_on=date(2025, 1, 1))
    new = certificate(date(2028, 1, 31), issued_on=date(2026, 2, 1))
    upcoming = certificate(date(2029, 1, 31), issued_on=date(2026, 4, 1), kind="first_aid")
    person = mentor(old, new, upcoming)

    replaced = "the later one of its kind, 1 February to 31 January 2028, counts instead"
    assert explanations.why_status(old, person, TODAY) == replaced
    assert explanations.why_status(upcoming, person, TODAY) == "it begins on 1 April, in 22 days"
