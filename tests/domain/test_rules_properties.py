"""What is true of the rules whatever the facts: properties that hypothesis tries to break."""

from dataclasses import replace
from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from certjob.domain import rules
from certjob.domain.models import NOT_CERTIFIED, OWN_PAUSE_REASON, Mentor, PauseChange, Reminder, Status
from tests.support.people import apply_decision
from tests.support.strategies import days, mentors, ordinarily, thoroughly


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


def is_certified(person: Mentor, today: date) -> bool:
    """Read from the dates alone: some kind that counts is in force, and none that counts has lapsed."""
    counting = [row for row in person.certificates if row.kind not in person.organisation.optional_kinds]
    in_force = any(not row.revoked and row.issued_on <= today <= row.expires_on for row in counting)
    return in_force and not kinds_lacking(person, today)


@thoroughly
@given(mentors(), days)
def test_certified_until_equals_a_walk_day_by_day(person: Mentor, today: date) -> None:
    """The interval rule needs no walk; each day up to the last one is certified, and the next one is not."""
    last_day = rules.certified_until(person, today)

    walk = today
    while is_certified(person, walk):
        walk += timedelta(days=1)
    assert last_day == (walk - timedelta(days=1) if walk > today else NOT_CERTIFIED)


@ordinarily
@given(mentors(), days, st.integers(0, 30))
def test_certified_until_depends_on_the_certificates_alone(person: Mentor, today: date, days_later: int) -> None:
    """Pauses, thresholds and leaving do not change it, and a later day gives the same answer up to the last one."""
    last_day = rules.certified_until(person, today)

    rulebook = replace(person.organisation, reminder_thresholds=(), has_portal=not person.organisation.has_portal)
    other = replace(person, organisation=rulebook, left=not person.left, open_pauses=(), portal_visible=None)
    assert rules.certified_until(other, today) == last_day
    if last_day > NOT_CERTIFIED:
        later = min(last_day, today + timedelta(days=days_later))
        assert rules.certified_until(person, later) == last_day


@ordinarily
@given(mentors(), days, st.integers(0, 400))
def test_neither_a_second_run_nor_a_skipped_night_changes_anything(
    person: Mentor, first_night: date, days_later: int
) -> None:
    """Only reminders that the log knows already come again; those of the skipped nights do not come."""
    first = rules.decide(person, first_night)
    second = rules.decide(apply_decision(person, first), first_night)
    assert (second.transitions, second.pause, second.push) == ((), None, False)
    assert (second.reminders, second.review_on, second.visible) == (first.reminders, first.review_on, first.visible)

    last_night = first_night + timedelta(days=days_later)
    both = run(run(person, first_night), last_night)
    last_alone = run(person, last_night)
    assert state(both) == state(last_alone)
    assert rules.decide(both, last_night).reminders == rules.decide(last_alone, last_night).reminders


@ordinarily
@given(mentors(), days, st.randoms(use_true_random=False))
def test_a_decision_is_right_by_the_dates_alone(person: Mentor, today: date, random: object) -> None:
    """The rules in plain words, read from the facts in another way."""
    decision = rules.decide(person, today)
    after = apply_decision(person, decision)
    lacking = kinds_lacking(person, today)
    own = [[each.reason for each in mentor.open_pauses].count(OWN_PAUSE_REASON) for mentor in (person, after)]
    others = [[p for p in mentor.open_pauses if p.reason != OWN_PAUSE_REASON] for mentor in (person, after)]

    # Only certjob's own pause is ever opened, lifted or named, and only if it is there to change.
    assert others[0] == others[1]
    assert decision.own_pause_id not in [each.id for each in others[0]]
    assert decision.pause is not (PauseChange.OPEN if own[0] else PauseChange.LIFT)
    assert own[1] == (own[0] if person.left else bool(lacking))
    # Visible = certified, no open pause and not left.
    certified = is_certified(person, today)
    assert decision.visible is (certified and not after.open_pauses and not person.left)
    # Pushed is what differs from the last value wanted (None: nobody knows), and nothing without a portal. A volunteer
    # who has neither a contact nor a certificate is on no portal.
    differs = person.organisation.has_portal and person.portal_visible is not decision.visible
    on_no_portal = person.portal_visible and not person.has_contact and not lacking and not certified
    assert decision.push is (differs and not on_no_portal)
    assert not (person.organisation.has_portal and person.has_contact and not certified and after.portal_visible)
    # Of a kind one row counts at most, and nothing stays unseen.
    counting = [c.kind for c in after.certificates if c.status in (Status.VALID, Status.EXPIRING, Status.EXPIRED)]
    assert len(counting) == len(set(counting))
    assert all(row.status is not Status.RECORDED for row in after.certificates)
    # A certificate has one reminder at most, and none if a later row follows it without a gap.
    about = [reminder.cert_id for reminder in decision.reminders]
    assert len(about) == len(set(about))
    assert not set(about) & {
        row.id
        for row in person.certificates
        for other in person.certificates
        if other.kind == row.kind
        and not other.revoked
        and (other.expires_on, other.issued_on) > (row.expires_on, row.issued_on)
        and other.issued_on <= row.expires_on + timedelta(days=1)
    }
    # Whoever has left hears nothing, is hidden, and keeps the pauses.
    left = rules.decide(replace(person, left=True), today)
    assert (left.reminders, left.pause, left.visible) == ((), None, False)
    # No statement needs an ORDER BY for the rules' sake.
    rows, pauses = list(person.certificates), list(person.open_pauses)
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(pauses)  # type: ignore[attr-defined]
    assert rules.decide(replace(person, certificates=tuple(rows), open_pauses=tuple(pauses)), today) == decision


@ordinarily
@given(mentors(), days, st.integers(-20, 90))
def test_what_is_asked_about_one_row_is_what_is_decided_about_all(person: Mentor, today: date, threshold: int) -> None:
    """One pass over the rows of a kind, and one rule for both ends of the queue.

    Nothing queued is cancelled on the same facts, nothing else is sent.
    """
    statuses, due = rules.statuses(person, today), rules.decide(person, today).reminders

    for row in person.certificates:
        assert statuses[row.id] is rules.status_of(row, person, today)
        found = [each.threshold_days for each in due if each.cert_id == row.id]
        one = rules.due_threshold(row, person, today)
        assert found == ([] if one is None else [one])
        if statuses[row.id] not in (Status.REVOKED, Status.UPCOMING):
            is_replaced = rules.replacement(row, person, today) is not None
            assert is_replaced is (statuses[row.id] is Status.RENEWED)
        for days_ in {threshold, *person.organisation.reminder_thresholds}:
            reminder = Reminder(cert_id=row.id, threshold_days=days_, expires_on=row.expires_on)
            assert (rules.cancel_reason(reminder, person, today) is None) == (reminder in due)
