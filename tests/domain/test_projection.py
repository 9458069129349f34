"""What the coming nights will do, and the reasons in words: held to the rules, night after night."""

from datetime import date, timedelta

from hypothesis import given

from certjob.domain import explanations, rules
from certjob.domain.models import IN_FORCE, Mentor, Reminder
from certjob.domain.projection import ComingNight, coming_nights
from tests.support.facts import TODAY
from tests.support.people import apply_decision, certificate, expiring_in, mentor, organisation
from tests.support.strategies import any_day, days, mentors, ordinarily, thoroughly

Night = tuple[date, object, object, bool | None, frozenset[Reminder]]


def every_night(person: Mentor, *, first: date, nights: int) -> list[Night]:
    """What is done on each of so many days, by a run every night that looks at the mentor whatever the date."""
    done: list[Night] = []
    known: set[Reminder] = set()
    for day in (first + timedelta(days=number) for number in range(nights)):
        decision = rules.decide(person, day)
        person = apply_decision(person, decision)
        new = frozenset(decision.reminders) - known
        known |= new
        if decision.transitions or decision.pause or decision.push or new:
            done.append((day, decision.transitions, decision.pause, decision.visible if decision.push else None, new))
    return done


def told(night: ComingNight) -> Night:
    made = night.decision
    return night.day, made.transitions, made.pause, made.visible if made.push else None, frozenset(night.reminders)


@thoroughly
@given(mentors(), days)
def test_what_is_told_beforehand_is_what_the_nights_do(person: Mentor, today: date) -> None:
    """Every change and every reminder of 600 nights, on its date, in its order; and after them nothing happens.

    So whoever is looked at only on their review days has the same state as if looked at every day. And as long as the
    facts stay, nobody hears "in 30 days" after "in 7 days".
    """
    nights = list(coming_nights(person, first=today, until=today + timedelta(days=599)))

    assert [told(night) for night in nights if night.does_something] == every_night(person, first=today, nights=600)
    for row in person.certificates:
        heard = [each.threshold_days for night in nights for each in night.reminders if each.cert_id == row.id]
        assert heard == sorted(heard, reverse=True)
    to_the_end = [told(night) for night in coming_nights(person, first=today)]
    assert to_the_end == [told(night) for night in coming_nights(person, first=today, until=today + timedelta(2_000))]


@ordinarily
@given(mentors(any_day), any_day)
def test_no_date_of_the_calendar_breaks_it(person: Mentor, today: date) -> None:
    """From 0001-01-01 to 9999-12-31 the nights follow each other and end, and each can be told in words."""
    nights = list(coming_nights(person, first=today))

    assert [night.day for night in nights] == sorted({night.day for night in nights})
    assert nights[0].decision.review_on is None or nights[0].decision.review_on > today
    for row in person.certificates:
        assert explanations.why_status(row, person, today)
        assert explanations.day_words(row.expires_on, today)
    assert list(explanations.why_certified(person, today)) or not person.certificates


@ordinarily
@given(mentors(), days)
def test_what_is_said_of_reminders_and_kinds_is_so(person: Mentor, today: date) -> None:
    """Where it is said why no reminder comes, none comes; every kind is said to be in force or not, and until when."""
    nights = list(coming_nights(person, first=today))
    for row in person.certificates:
        if explanations.why_no_reminder(row, person, today):
            assert not any(reminder.cert_id == row.id for night in nights for reminder in night.reminders)
        following = rules.continuation(row, person)
        assert following is None or following.issued_on <= row.expires_on + timedelta(days=1)

    said = list(explanations.why_certified(person, today))
    kinds = sorted({row.kind for row in person.certificates})
    assert len(said) == len(kinds)
    for kind, text in zip(kinds, said, strict=True):
        rows = [row for row in person.certificates if row.kind == kind]
        in_force = [row for row in rows if rules.status_of(row, person, today) in IN_FORCE]
        assert text.startswith(f"{kind} is in force until") is bool(in_force)
        if in_force:
            assert explanations.day_words(max(row.expires_on for row in in_force), today) in text
        assert ("optional" in text) is (kind in person.organisation.optional_kinds)


def test_the_rule_behind_a_status_is_said_with_its_dates() -> None:
    """The last day, how far away it is, and the threshold that it is compared with; what ends or replaces it."""
    for days_left, thresholds, text in (
        (46, (60, 30), "its last day is 25 April, in 46 days, inside the largest reminder threshold, 60 days"),
        (61, (60, 30), "its last day is 10 May, in 61 days, beyond the largest reminder threshold, 60 days"),
        (0, (60,), "its last day is 10 March, today, inside the largest reminder threshold, 60 days"),
        (1, (1,), "its last day is 11 March, in 1 day, inside the largest reminder threshold, 1 day"),
        (400, (), "its last day is 14 April 2027, in 400 days; hlf has no reminder thresholds, so nothing counts as"),
        (-5, (60,), "its last day was 5 March, 5 days ago"),
    ):
        row = expiring_in(days_left)
        person = mentor(row, organisation=organisation(thresholds=thresholds))
        assert explanations.why_status(row, person, TODAY).startswith(text)

    old = certificate(TODAY + timedelta(days=20), issued_on=date(2025, 1, 1))
    new = certificate(date(2028, 1, 31), issued_on=date(2026, 2, 1))
    coming = certificate(date(2029, 1, 31), issued_on=date(2026, 4, 1), kind="first_aid")
    person = mentor(old, new, coming)
    replaced = "the later one of its kind, 1 February to 31 January 2028, counts instead"
    assert explanations.why_status(old, person, TODAY) == replaced
    assert explanations.why_status(coming, person, TODAY) == "it begins on 1 April, in 22 days"
