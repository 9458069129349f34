"""The rules of ``docs/rules.md``, one example a line. Days are counted from today: ``ends(-1)`` ended yesterday."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest

from certjob.domain import rules
from certjob.domain.models import NOT_CERTIFIED, Certificate, PauseChange, Reminder, Status
from tests.support.facts import TODAY
from tests.support.people import DEFAULT_THRESHOLDS, certificate, mentor, organisation, own_pause, pause

YEAR = 365
OPTIONAL = organisation(optional_kinds=["optional"])
ILLNESS, OWN_PAUSE = pause("illness"), own_pause()


def day(number: int) -> date:
    return TODAY + timedelta(days=number)


def ends(days: int, *, begins: int = -800, kind: str = "likeperson", revoked: bool = False) -> Certificate:
    """A certificate with this last and this first day."""
    return certificate(day(days), issued_on=day(begins), kind=kind, revoked=revoked)


class Case:
    """A mentor with these certificates, and the answer of a rule."""

    def __init__(self, *certificates: Certificate, expected: Any, **facts: Any) -> None:
        self.mentor = mentor(*certificates, **{"organisation": OPTIONAL} | facts)
        self.expected = expected


class Queued(Case):
    """A mentor with a queued reminder about the first certificate, and why it is cancelled."""

    def __init__(self, *certificates: Certificate, threshold: int = 7, last_day: int = 7, **case: Any) -> None:
        super().__init__(*certificates, **case)
        about = certificates[0].id
        self.reminder = Reminder(cert_id=about, threshold_days=threshold, expires_on=day(last_day))


def table(**cases: Case) -> pytest.MarkDecorator:
    """A test for each line; its name is the id."""
    return pytest.mark.parametrize("case", cases.values(), ids=[name.replace("_", " ") for name in cases])


REVOKED, UPCOMING, VALID = Status.REVOKED, Status.UPCOMING, Status.VALID
EXPIRING, EXPIRED, RENEWED = Status.EXPIRING, Status.EXPIRED, Status.RENEWED


@table(
    revoked_before_it_begins=Case(ends(YEAR, begins=1, revoked=True), expected=[REVOKED]),
    revoked_after_its_last_day=Case(ends(-1, revoked=True), expected=[REVOKED]),
    before_its_first_day=Case(ends(YEAR, begins=1), expected=[UPCOMING]),
    on_its_first_day=Case(ends(YEAR, begins=0), expected=[VALID]),
    a_later_one_has_begun=Case(ends(-1), ends(YEAR, begins=0), expected=[RENEWED, VALID]),
    a_later_one_has_not_begun=Case(ends(-1), ends(YEAR, begins=1), expected=[EXPIRED, UPCOMING]),
    a_later_one_is_revoked=Case(ends(YEAR), ends(800, begins=-1, revoked=True), expected=[VALID, REVOKED]),
    a_later_one_is_of_another_kind=Case(ends(-1), ends(YEAR, kind="first_aid"), expected=[EXPIRED, VALID]),
    same_last_day=Case(ends(YEAR, begins=-9), ends(YEAR, begins=-8), expected=[RENEWED, VALID]),
    earlier_last_day=Case(ends(YEAR, begins=-9), ends(0, begins=-8), expected=[VALID, RENEWED]),
    on_its_last_day=Case(ends(0), expected=[EXPIRING]),
    after_its_last_day=Case(ends(-1), expected=[EXPIRED]),
    before_the_largest_threshold=Case(ends(61), expected=[VALID]),
    at_the_largest_threshold=Case(ends(60), expected=[EXPIRING]),
    thresholds_in_any_order=Case(ends(45), organisation=organisation(thresholds=[-1, 45, 7]), expected=[EXPIRING]),
    no_thresholds=Case(ends(0), organisation=organisation(thresholds=[]), expected=[VALID]),
    thresholds_after_the_last_day_only=Case(ends(0), organisation=organisation(thresholds=[-7]), expected=[VALID]),
)
def test_certificate_has_the_first_status_that_applies(case: Case) -> None:
    decision = rules.decide(case.mentor, TODAY)

    decided = {change.certificate_id: change.to_status for change in decision.transitions}
    assert [decided[each.id] for each in case.mentor.certificates] == case.expected


def test_transition_has_the_old_and_the_new_status() -> None:
    """An unchanged certificate has none. The certificates of a mentor who has left change as well."""
    unchanged = certificate(day(YEAR), status=VALID)
    ended = certificate(day(-1), status=EXPIRING, kind="first_aid")

    (change,) = rules.decide(mentor(unchanged, ended, left=True), TODAY).transitions

    assert (change.certificate_id, change.from_status, change.to_status) == (ended.id, EXPIRING, EXPIRED)


@table(
    on_the_last_day=Case(ends(0), expected=None),
    after_the_last_day=Case(ends(-1), expected=PauseChange.OPEN),
    revoked_before_it_begins=Case(ends(YEAR, begins=1, revoked=True), expected=PauseChange.OPEN),
    never_held_a_certificate=Case(ends(YEAR, begins=1), expected=None),
    one_of_two_kinds_ended=Case(ends(YEAR), ends(-1, kind="first_aid"), expected=PauseChange.OPEN),
    optional_kind_ended=Case(ends(-1, kind="optional"), expected=None),
    optional_kind_does_not_certify=Case(ends(-1), ends(YEAR, kind="optional"), expected=PauseChange.OPEN),
    a_person_has_paused_the_mentor=Case(ends(-1), pauses=[ILLNESS], expected=PauseChange.OPEN),
    already_paused=Case(ends(-1), pauses=[OWN_PAUSE], expected=None),
    renewed=Case(ends(-1), ends(YEAR, begins=0), pauses=[ILLNESS, OWN_PAUSE], expected=PauseChange.LIFT),
    expired_after_leaving=Case(ends(-1), left=True, expected=None),
    renewed_after_leaving=Case(ends(YEAR), left=True, pauses=[OWN_PAUSE], expected=None),
)
def test_certjob_pauses_while_a_held_kind_is_not_in_force(case: Case) -> None:
    """It lifts only its own pause, and changes none of a mentor who has left."""
    decision = rules.decide(case.mentor, TODAY)

    own_pause_id = OWN_PAUSE.id if OWN_PAUSE in case.mentor.open_pauses else None
    assert (decision.pause, decision.own_pause_id) == (case.expected, own_pause_id)


@table(
    on_the_last_day=Case(ends(0), expected=True),
    after_the_last_day=Case(ends(-1), expected=False),
    renewed=Case(ends(-1), ends(YEAR, begins=0), pauses=[OWN_PAUSE], expected=True),
    one_of_two_kinds_ended=Case(ends(YEAR), ends(-1, kind="first_aid"), expected=False),
    optional_kind_ended=Case(ends(YEAR), ends(-1, kind="optional"), expected=True),
    optional_kind_does_not_certify=Case(ends(YEAR, kind="optional"), expected=False),
    never_held_a_certificate=Case(expected=False),
    a_person_has_paused_the_mentor=Case(ends(YEAR), pauses=[ILLNESS], expected=False),
    the_mentor_has_left=Case(ends(YEAR), left=True, expected=False),
)
def test_mentor_is_visible_while_certified_and_active(case: Case) -> None:
    assert rules.decide(case.mentor, TODAY).visible is case.expected


@table(
    with_a_contact=Case(expected=True),
    without_a_contact=Case(has_contact=False, expected=False),
    reviewed_without_a_contact=Case(has_contact=False, certified_until=NOT_CERTIFIED, expected=False),
    contact_removed_from_a_certified_mentor=Case(has_contact=False, certified_until=day(30), expected=True),
)
def test_mentor_without_certificates_is_hidden_if_ever_shown(case: Case) -> None:
    """The portal may still show the old contact of a mentor who was certified at the last review."""
    assert rules.decide(case.mentor, TODAY).push is case.expected


@table(
    no_certificate=Case(expected=True),
    not_begun=Case(ends(YEAR, begins=1), expected=True),
    optional_kind=Case(ends(-1, kind="optional"), expected=True),
    begun_today=Case(ends(YEAR, begins=0), expected=False),
    ended=Case(ends(-1), expected=False),
    paused=Case(pauses=[ILLNESS], expected=False),
    left=Case(left=True, expected=False),
)
def test_active_mentor_who_never_held_a_kind_is_counted(case: Case) -> None:
    """No pause reports this mentor, so the run does."""
    assert rules.decide(case.mentor, TODAY).without_certificate is case.expected


@pytest.mark.parametrize(
    ("thresholds", "days_left"),
    [
        pytest.param(
            DEFAULT_THRESHOLDS,
            {60: range(31, 61), 30: range(15, 31), 14: range(8, 15), 7: range(2, 8), 1: range(2), -1: range(-15, 0)},
            id="usual thresholds",
        ),
        pytest.param((30, 7, 0), {30: range(8, 31), 7: range(1, 8), 0: range(1)}, id="on the last day"),
        pytest.param((-1, -10), {-1: range(-9, 0), -10: range(-24, -9)}, id="after the last day only"),
        pytest.param((), {}, id="no thresholds"),
    ],
)
def test_smallest_threshold_reached_is_due(thresholds: Sequence[int], days_left: dict[int, range]) -> None:
    """A missed week leads to one message. A reminder after the last day is at most 14 days late."""
    for days in (-2500, -400, *range(-60, 70)):
        decision = rules.decide(mentor(ends(days), organisation=organisation(thresholds=thresholds)), TODAY)

        due = [each.threshold_days for each in decision.reminders]
        assert due == [threshold for threshold, due_days in days_left.items() if days in due_days], days


@table(
    continued_on_the_next_day=Case(ends(7), ends(YEAR, begins=8), expected=[None, None]),
    continued_after_a_gap=Case(ends(7), ends(YEAR, begins=9), expected=[7, None]),
    continued_by_a_revoked_one=Case(ends(7), ends(YEAR, begins=1, revoked=True), expected=[7, None]),
    continued_by_one_that_ends_earlier=Case(ends(7), ends(3, begins=0), expected=[7, None]),
    renewed_long_ago=Case(ends(-200), ends(30, begins=-199), expected=[None, 30]),
    not_begun=Case(ends(7, begins=1), expected=[None]),
    two_kinds=Case(ends(7), ends(30, kind="optional"), expected=[7, 30]),
    shorter_than_the_threshold=Case(ends(5, begins=0), expected=[7]),
    paused=Case(ends(7), pauses=[ILLNESS, OWN_PAUSE], expected=[7]),
    left=Case(ends(7), left=True, expected=[None]),
)
def test_reminder_is_due_unless_a_certificate_is_continued(case: Case) -> None:
    decision = rules.decide(case.mentor, TODAY)

    assert set(decision.reminders) == {
        Reminder(cert_id=each.id, threshold_days=threshold, expires_on=each.expires_on)
        for each, threshold in zip(case.mentor.certificates, case.expected, strict=True)
        if threshold is not None
    }


@table(
    still_due=Queued(ends(7), expected=None),
    still_the_smallest_threshold=Queued(ends(2), last_day=2, expected=None),
    still_due_while_paused=Queued(ends(7), pauses=[ILLNESS], expected=None),
    two_weeks_late=Queued(ends(-15), threshold=-1, last_day=-15, expected=None),
    three_weeks_late=Queued(ends(-22), threshold=-1, last_day=-22, expected="too late"),
    one_day_too_late=Queued(ends(-16), threshold=-1, last_day=-16, expected="too late"),
    after_the_last_day=Queued(ends(-1), last_day=-1, organisation=organisation(thresholds=[7]), expected="too late"),
    smaller_threshold_reached=Queued(ends(7), threshold=14, expected="too late"),
    left=Queued(ends(7, revoked=True), left=True, expected="left"),
    revoked=Queued(ends(300, revoked=True), expected="revoked"),
    extended=Queued(ends(300), expected="extended"),
    shortened=Queued(ends(3), expected="shortened"),
    renewed_today=Queued(ends(7), ends(YEAR, begins=0), expected="renewed"),
    continued_on_the_next_day=Queued(ends(7), ends(YEAR, begins=8), expected="renewed"),
    continued_after_a_gap=Queued(ends(7), ends(YEAR, begins=9), expected=None),
    threshold_not_reached=Queued(ends(10), last_day=10, expected="not due"),
    no_threshold_reached=Queued(ends(90), threshold=60, last_day=90, expected="not due"),
    threshold_removed=Queued(
        ends(45), threshold=60, last_day=45, organisation=organisation(thresholds=[30]), expected="not due"
    ),
    first_day_moved_into_the_future=Queued(ends(7, begins=1), expected="not due"),
)
def test_queued_reminder_that_does_not_apply_is_cancelled(case: Queued) -> None:
    assert rules.cancel_reason(case.reminder, case.mentor, TODAY) == case.expected


def test_reminder_about_a_deleted_certificate_is_cancelled() -> None:
    """Even if the mentor has left as well."""
    deleted = Queued(ends(7), expected="deleted").reminder

    assert rules.cancel_reason(deleted, mentor(ends(7), left=True), TODAY) == "deleted"


@table(
    next_threshold=Case(ends(60), expected=30),
    no_reminder_of_a_continued_one=Case(ends(45), ends(YEAR, begins=46), expected=46),
    no_reminder_after_leaving=Case(ends(50), left=True, expected=51),
    earliest_of_all_kinds=Case(ends(100), ends(65, kind="first_aid"), expected=5),
    revoked_and_long_expired=Case(ends(YEAR, revoked=True), ends(-500, kind="first_aid"), expected=None),
)
def test_next_review_is_on_the_next_day_with_a_change(case: Case) -> None:
    """test_projection shows that no day is missing."""
    review_on = rules.decide(case.mentor, TODAY).review_on

    assert review_on == (None if case.expected is None else day(case.expected))


LONG_THRESHOLD = organisation(thresholds=[3650])
FOREVER, ANCIENT = certificate(date.max), certificate(date(1, 1, 2), issued_on=date(1, 1, 1))


@table(
    forever=Case(FOREVER, organisation=LONG_THRESHOLD, expected=date.max - timedelta(days=3650)),
    forever_without_thresholds=Case(FOREVER, organisation=organisation(thresholds=[]), expected=None),
    first_days_of_the_calendar=Case(ANCIENT, organisation=LONG_THRESHOLD, expected=None),
)
def test_end_of_the_calendar_does_not_overflow(case: Case) -> None:
    """9999-12-31 is used for "never"."""
    assert rules.decide(case.mentor, TODAY).review_on == case.expected


@pytest.mark.parametrize(("certified", "limit"), [(0, 20), (209, 20), (210, 21), (1000, 100)])
def test_guard_allows_twenty_changes_or_a_tenth(certified: int, limit: int) -> None:
    assert rules.mass_change_limit(certified) == limit


@table(
    renewed=Case(ends(YEAR), certified_until=day(30), expected=day(30)),
    corrected_to_an_earlier_day=Case(ends(YEAR), certified_until=day(800), expected=day(800)),
    unchanged=Case(ends(YEAR), certified_until=day(YEAR), expected=None),
    first_review=Case(ends(YEAR), certified_until=None, expected=None),
    hidden=Case(ends(YEAR), certified_until=day(30), portal_visible=False, expected=None),
    paused=Case(ends(YEAR), certified_until=day(30), pauses=[ILLNESS], expected=None),
    without_a_contact=Case(ends(YEAR), certified_until=day(30), has_contact=False, expected=None),
    without_a_portal=Case(
        ends(YEAR), certified_until=day(30), organisation=organisation(has_portal=False), expected=None
    ),
    after_the_last_day_of_the_portal=Case(FOREVER, certified_until=date(2150, 1, 1), expected=None),
)
def test_visible_mentor_is_pushed_if_the_last_day_moves(case: Case) -> None:
    decision = rules.decide(case.mentor, TODAY)

    assert decision.moved_from == case.expected
    assert decision.push or not decision.moved_from
