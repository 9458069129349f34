"""What is true of the rules whatever the facts: properties that hypothesis tries to break."""

from dataclasses import replace
from datetime import date, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from certjob.domain import rules
from certjob.domain.models import OWN_PAUSE_REASON, Mentor, PauseChange, Reminder, Status
from tests.support.people import apply_decision
from tests.support.strategies import any_day, days, mentors, ordinarily, thoroughly

LONG = 1_000
"""Days; longer than any certificate of these examples lasts."""


def run(person: Mentor, today: date) -> Mentor:
    """One night for one mentor."""
    return apply_decision(person, rules.decide(person, today))


def state(person: Mentor) -> tuple[object, ...]:
    """What the mentor's state consists of: statuses, the own pause, the portal."""
    return (
        [row.status for row in person.certificates],
        any(each.reason == OWN_PAUSE_REASON for each in person.open_pauses),
        person.portal_visible,
    )


def kinds_lacking(person: Mentor, today: date) -> set[str]:
    """The kinds that were held and are not in force, read from the dates alone, optional ones left out."""
    counting = [row for row in person.certificates if row.kind not in person.organisation.optional_kinds]
    held = {row.kind for row in counting if row.revoked or row.issued_on <= today}
    in_force = {row.kind for row in counting if not row.revoked and row.issued_on <= today <= row.expires_on}
    return held - in_force


@ordinarily
@given(mentors(), days)
def test_a_second_run_of_the_same_day_changes_nothing(person: Mentor, today: date) -> None:
    """Only reminders that the log knows already come again."""
    first = rules.decide(person, today)

    second = rules.decide(apply_decision(person, first), today)

    assert (second.transitions, second.pause, second.push) == ((), None, False)
    assert second.reminders == first.reminders
    assert second.review_on == first.review_on
    assert second.visible is first.visible


@ordinarily
@given(mentors(), days, st.integers(0, 400))
def test_a_skipped_night_changes_nothing_in_the_end(person: Mentor, first_night: date, days_later: int) -> None:
    """Except for the reminders of the skipped nights: those of the last night are the same."""
    last_night = first_night + timedelta(days=days_later)

    both = run(run(person, first_night), last_night)
    last_alone = run(person, last_night)

    assert state(both) == state(last_alone)
    assert rules.decide(both, last_night).reminders == rules.decide(last_alone, last_night).reminders


@ordinarily
@given(mentors(), days, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(person: Mentor, today: date, random: object) -> None:
    """No statement needs an ORDER BY for the rules' sake."""
    rows, pauses = list(person.certificates), list(person.open_pauses)
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(pauses)  # type: ignore[attr-defined]
    shuffled = replace(person, certificates=tuple(rows), open_pauses=tuple(pauses))

    assert rules.decide(shuffled, today) == rules.decide(person, today)


@ordinarily
@given(mentors(), days)
def test_a_pause_of_somebody_else_is_never_lifted_or_changed(person: Mentor, today: date) -> None:
    """Only the row with certjob's own reason is ever named."""
    others = [each for each in person.open_pauses if each.reason != OWN_PAUSE_REASON]

    decision = rules.decide(person, today)

    assert [p for p in apply_decision(person, decision).open_pauses if p.reason != OWN_PAUSE_REASON] == others
    assert decision.own_pause_id not in [each.id for each in others]


@ordinarily
@given(mentors(), days)
def test_the_own_pause_is_open_exactly_while_a_kind_that_was_held_is_not_in_force(person: Mentor, today: date) -> None:
    """The rule in plain words; while the mentor has left it stays as it was."""
    before = any(each.reason == OWN_PAUSE_REASON for each in person.open_pauses)

    after = any(each.reason == OWN_PAUSE_REASON for each in run(person, today).open_pauses)

    assert after == (before if person.left else bool(kinds_lacking(person, today)))


@ordinarily
@given(mentors(), days)
def test_somebody_without_a_certificate_in_force_is_never_left_visible(person: Mentor, today: date) -> None:
    """The first harm to avoid: with a portal, who lacks a kind they held is wanted hidden."""
    after = run(person, today)

    if person.organisation.has_portal and kinds_lacking(person, today):
        assert after.portal_visible is False


@ordinarily
@given(mentors(), days)
def test_the_portal_is_wanted_as_active_and_pushed_only_where_there_is_one(person: Mentor, today: date) -> None:
    """Visible = no open pause and not left, after the decision."""
    decision = rules.decide(person, today)

    after = apply_decision(person, decision)

    assert decision.visible is (not after.open_pauses and not person.left)
    if person.organisation.has_portal:
        assert after.portal_visible is decision.visible
    else:
        assert not decision.push


@ordinarily
@given(mentors(), days)
def test_at_most_one_row_of_a_kind_counts(person: Mentor, today: date) -> None:
    """All others are revoked, upcoming or renewed."""
    counting = [
        row.kind
        for row in run(person, today).certificates
        if row.status in (Status.VALID, Status.EXPIRING, Status.EXPIRED)
    ]

    assert len(counting) == len(set(counting))


@ordinarily
@given(mentors(), days)
def test_no_certificate_stays_merely_recorded(person: Mentor, today: date) -> None:
    """A review leaves nothing unseen."""
    assert all(row.status is not Status.RECORDED for row in run(person, today).certificates)


@ordinarily
@given(mentors(), days)
def test_a_certificate_has_at_most_one_reminder_a_day(person: Mentor, today: date) -> None:
    """The most urgent one only."""
    about = [reminder.cert_id for reminder in rules.decide(person, today).reminders]

    assert len(about) == len(set(about))


@ordinarily
@given(mentors(), days)
def test_a_certificate_continued_without_a_gap_is_never_reminded_about(person: Mentor, today: date) -> None:
    """Whether the successor has begun or not."""
    rows = person.certificates
    continued = {
        row.id
        for row in rows
        for other in rows
        if other.kind == row.kind
        and not other.revoked
        and (other.expires_on, other.issued_on) > (row.expires_on, row.issued_on)
        and other.issued_on <= row.expires_on + timedelta(days=1)
    }

    assert not continued & {reminder.cert_id for reminder in rules.decide(person, today).reminders}


@ordinarily
@given(mentors(), days)
def test_a_mentor_who_left_hears_nothing_and_keeps_the_pauses(person: Mentor, today: date) -> None:
    """They are hidden, and the record of their certificates goes on."""
    decision = rules.decide(replace(person, left=True), today)

    assert decision.reminders == ()
    assert decision.pause is None
    assert not decision.visible


@ordinarily
@given(mentors(), days, st.integers(-20, 90))
def test_a_reminder_is_kept_before_sending_exactly_if_it_would_be_queued_today(
    person: Mentor, today: date, threshold: int
) -> None:
    """One rule for both ends of the queue: nothing queued is cancelled on the same facts, nothing else is sent."""
    due = rules.decide(person, today).reminders

    for row in person.certificates:
        for days_ in {threshold, *person.organisation.reminder_thresholds}:
            reminder = Reminder(cert_id=row.id, threshold_days=days_, expires_on=row.expires_on)
            assert (rules.cancel_reason(reminder, person, today) is None) == (reminder in due)


@ordinarily
@given(mentors(any_day), any_day)
def test_no_date_of_the_calendar_breaks_the_rules(person: Mentor, today: date) -> None:
    """From 0001-01-01 to 9999-12-31; the next day to look lies in the future."""
    decision = rules.decide(person, today)

    assert decision.review_on is None or decision.review_on > today


@thoroughly
@given(mentors(), days)
def test_review_on_never_lies_later_than_the_next_change(person: Mentor, today: date) -> None:
    """Whoever is looked at only on their review days has the same state on every day as if looked at every day."""
    decision = rules.decide(person, today)
    person = apply_decision(person, decision)
    known = set(decision.reminders)

    for day in (today + timedelta(days=n) for n in range(1, LONG + 1)):
        if decision.review_on is not None and day >= decision.review_on:
            decision = rules.decide(person, day)
            person = apply_decision(person, decision)
            known.update(decision.reminders)
        else:
            missed = rules.decide(person, day)
            assert (missed.transitions, missed.pause, missed.push) == ((), None, False)
            assert known.issuperset(missed.reminders)
            assert missed.without_certificate == decision.without_certificate


@thoroughly
@given(mentors(), days)
def test_reminders_only_become_more_urgent(person: Mentor, today: date) -> None:
    """As long as the facts stay, nobody hears "in 30 days" after "in 7 days"."""
    last: dict[UUID, int] = {}

    for day in (today + timedelta(days=n) for n in range(LONG)):
        for reminder in rules.decide(person, day).reminders:
            assert reminder.threshold_days <= last.get(reminder.cert_id, reminder.threshold_days)
            last[reminder.cert_id] = reminder.threshold_days


@ordinarily
@given(mentors(), days)
def test_a_pause_is_only_changed_when_it_is_there_to_change(person: Mentor, today: date) -> None:
    """Opened only if none of certjob's is open, lifted only if one is."""
    open_before = any(each.reason == OWN_PAUSE_REASON for each in person.open_pauses)

    change = rules.decide(person, today).pause

    assert change is not (PauseChange.OPEN if open_before else PauseChange.LIFT)


@ordinarily
@given(mentors(), days)
def test_all_rows_at_once_are_what_each_is_alone(person: Mentor, today: date) -> None:
    """One pass over the rows of a kind gives each the status and the threshold that looking at all others gives it."""
    statuses, decision = rules.statuses(person, today), rules.decide(person, today)

    for row in person.certificates:
        siblings = [other for other in person.certificates if other.kind == row.kind]
        assert statuses[row.id] is rules.status_of(row, siblings, person, today)
        due = [each.threshold_days for each in decision.reminders if each.cert_id == row.id]
        threshold = rules.due_threshold(row, person, today)
        assert due == ([] if threshold is None else [threshold])
