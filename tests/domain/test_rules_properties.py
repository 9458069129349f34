"""Properties of the rules, for mentors and days that hypothesis chooses. The expected values come from the dates."""

from dataclasses import replace
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from certjob.domain import rules
from certjob.domain.models import NOT_CERTIFIED, OWN_PAUSE_REASON, Certificate, Mentor, PauseChange, Reminder, Status
from tests.support.people import apply_decision, days, mentors, ordinarily, thoroughly


def counting(person: Mentor) -> list[Certificate]:
    return [each for each in person.certificates if each.kind not in person.organisation.optional_kinds]


def lapsed_kinds(person: Mentor, today: date) -> set[str]:
    held = {each.kind for each in counting(person) if each.revoked or each.issued_on <= today}
    return held - kinds_in_force(person, today)


def kinds_in_force(person: Mentor, today: date) -> set[str]:
    return {each.kind for each in counting(person) if not each.revoked and each.issued_on <= today <= each.expires_on}


def is_certified(person: Mentor, today: date) -> bool:
    return bool(kinds_in_force(person, today)) and not lapsed_kinds(person, today)


def reviewed(person: Mentor, today: date) -> Mentor:
    return apply_decision(person, rules.decide(person, today))


@thoroughly
@given(mentors(), days)
def test_certified_until_is_the_last_certified_day(person: Mentor, today: date) -> None:
    day = today
    while is_certified(person, day):
        day += timedelta(days=1)

    assert rules.certified_until(person, today) == (day - timedelta(days=1) if day > today else NOT_CERTIFIED)


@ordinarily
@given(mentors(), days, st.integers(0, 30))
def test_certified_until_depends_on_certificates_alone(person: Mentor, today: date, days_later: int) -> None:
    """On a later certified day it is the same."""
    last_day = rules.certified_until(person, today)

    organisation = replace(person.organisation, reminder_thresholds=(), has_portal=not person.organisation.has_portal)
    other = replace(person, organisation=organisation, left=not person.left, open_pauses=(), portal_visible=None)
    later = min(last_day, today + timedelta(days=days_later)) if last_day > NOT_CERTIFIED else today
    assert rules.certified_until(other, later) == last_day


@ordinarily
@given(mentors(), days)
def test_second_review_of_a_day_changes_nothing(person: Mentor, today: date) -> None:
    """It finds the same reminders, and the log has them already."""
    first = rules.decide(person, today)

    second = rules.decide(apply_decision(person, first), today)

    assert (second.transitions, second.pause, second.push) == ((), None, False)
    assert (second.reminders, second.review_on, second.visible) == (first.reminders, first.review_on, first.visible)


@ordinarily
@given(mentors(), days, st.integers(0, 400))
def test_missed_night_changes_nothing(person: Mentor, first_night: date, days_later: int) -> None:
    last_night = first_night + timedelta(days=days_later)

    both, last_alone = reviewed(reviewed(person, first_night), last_night), reviewed(person, last_night)

    for each in (both, last_alone):
        reasons = sorted(pause.reason for pause in each.open_pauses)
        assert reasons == sorted(pause.reason for pause in last_alone.open_pauses)
        assert each.certificates == last_alone.certificates
        assert each.portal_visible == last_alone.portal_visible
        assert rules.decide(each, last_night).reminders == rules.decide(last_alone, last_night).reminders


@ordinarily
@given(mentors(), days)
def test_certjob_changes_only_its_own_pause(person: Mentor, today: date) -> None:
    decision = rules.decide(person, today)
    before, after = (
        [each.reason for each in found.open_pauses] for found in (person, apply_decision(person, decision))
    )

    is_open = OWN_PAUSE_REASON in before if person.left else bool(lapsed_kinds(person, today))
    others = [reason for reason in before if reason != OWN_PAUSE_REASON]
    assert sorted(after) == sorted([*others, *([OWN_PAUSE_REASON] * is_open)])
    assert decision.pause is not PauseChange.LIFT or OWN_PAUSE_REASON in before


@ordinarily
@given(mentors(), days)
def test_push_tells_the_portal_each_new_visibility(person: Mentor, today: date) -> None:
    """A mentor without a contact ID who was never certified is on no portal."""
    decision = rules.decide(person, today)
    after = apply_decision(person, decision)

    certified = is_certified(person, today)
    assert decision.visible is (certified and not after.open_pauses and not person.left)
    if not person.organisation.has_portal:
        assert not decision.push
    elif person.has_contact or certified or lapsed_kinds(person, today):
        assert after.portal_visible is decision.visible
    else:
        assert not (decision.push and person.portal_visible)


@ordinarily
@given(mentors(), days)
def test_one_certificate_of_a_kind_counts_at_most(person: Mentor, today: date) -> None:
    after = reviewed(person, today).certificates

    counts = [each.kind for each in after if each.status in (Status.VALID, Status.EXPIRING, Status.EXPIRED)]
    assert len(counts) == len(set(counts))
    assert all(each.status is not Status.RECORDED for each in after)


@ordinarily
@given(mentors(), days, st.randoms(use_true_random=False))
def test_order_of_the_rows_does_not_matter(person: Mentor, today: date, random: object) -> None:
    """So no statement needs an ORDER BY for the rules."""
    rows, pauses = list(person.certificates), list(person.open_pauses)
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(pauses)  # type: ignore[attr-defined]

    shuffled = replace(person, certificates=tuple(rows), open_pauses=tuple(pauses))
    assert rules.decide(shuffled, today) == rules.decide(person, today)


@ordinarily
@given(mentors(), days, st.integers(-20, 90))
def test_each_question_about_a_certificate_has_one_answer(person: Mentor, today: date, threshold: int) -> None:
    """A decision, a preview, an explanation and the mail stage agree. So no due reminder is cancelled."""
    due = rules.decide(person, today).reminders

    for row in person.certificates:
        expected = rules.due_threshold(row, person, today)
        assert [each.threshold_days for each in due if each.cert_id == row.id] == [expected] * (expected is not None)
        status = rules.status_of(row, person, today)
        if status not in (Status.REVOKED, Status.UPCOMING):
            assert (rules.replacement(row, person, today) is not None) is (status is Status.RENEWED)
        for days_before in {threshold, *person.organisation.reminder_thresholds}:
            reminder = Reminder(cert_id=row.id, threshold_days=days_before, expires_on=row.expires_on)
            assert (rules.cancel_reason(reminder, person, today) is None) == (reminder in due)
