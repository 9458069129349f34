"""The rule table of the programme, a line at a time. Days are counted from today: -1 ended yesterday."""

from collections.abc import Sequence
from datetime import date, timedelta

import pytest

from certjob.domain import rules
from certjob.domain.models import Certificate, OpenPause, PauseChange, Reminder, Status
from tests.support.facts import TODAY
from tests.support.people import DEFAULT_THRESHOLDS as ALL
from tests.support.people import certificate, mentor, organisation, own_pause, pause

YEAR = 365


def day(number: int) -> date:
    return TODAY + timedelta(days=number)


def row(ends: int, begins: int = -800, *, kind: str = "likeperson", revoked: bool = False) -> Certificate:
    return certificate(day(ends), issued_on=day(begins), kind=kind, revoked=revoked)


R, U, V = Status.REVOKED, Status.UPCOMING, Status.VALID
EXPIRING, EXPIRED, RENEWED = Status.EXPIRING, Status.EXPIRED, Status.RENEWED

STATUSES: dict[str, tuple[list[Certificate], int, list[Status]]] = {
    "revoked, whatever the dates say": ([row(ends, revoked=True) for ends in (YEAR, -1, 9)], 0, [R] * 3),
    "upcoming until the day it starts": ([row(YEAR, 1)], 0, [U]),
    "the first day is in force": ([row(YEAR, 1)], 1, [V]),
    "renewed comes before expired": ([row(-1), row(YEAR, 0)], 0, [RENEWED, V]),
    "not renewed before the later one starts": ([row(-1), row(YEAR, 1)], 0, [EXPIRED, U]),
    "renewed once it has started": ([row(-1), row(YEAR, 1)], 1, [RENEWED, V]),
    "a revoked one renews nothing": ([row(YEAR), row(2 * YEAR, -1, revoked=True)], 0, [V, R]),
    "another kind renews nothing": ([row(-1), row(YEAR, kind="first_aid")], 0, [EXPIRED, V]),
    "of one expiry the later issued one counts": ([row(YEAR, -9), row(YEAR, -8)], 0, [RENEWED, V]),
    "issued later and ending earlier is the renewed one": ([row(YEAR, -9), row(0, -8)], 0, [V, RENEWED]),
    "the expiry day itself is in force": ([row(0)], 0, [EXPIRING]),
    "expired begins on the day after": ([row(0)], 1, [EXPIRED]),
    "valid beyond the largest threshold": ([row(61)], 0, [V]),
    "expiring from the largest threshold on": ([row(60)], 0, [EXPIRING]),
}


@pytest.mark.parametrize(("rows", "on", "expected"), STATUSES.values(), ids=STATUSES)
def test_the_status_is_that_of_the_first_rule_that_matches(
    rows: list[Certificate], on: int, expected: list[Status]
) -> None:
    decision = rules.decide(mentor(*rows), day(on))

    decided = {change.certificate_id: change.to_status for change in decision.transitions}
    assert [decided[each.id] for each in rows] == expected


def test_the_largest_threshold_decides_what_is_expiring() -> None:
    """In whatever order they stand; without one before the expiry nothing is ever expiring."""
    for thresholds, expected in (((-1, 45, 7, 45), EXPIRING), ((44, 7), V), ((), V), ((-1,), V), ((-30, -7), V)):
        (change,) = rules.decide(mentor(row(45), organisation=organisation(thresholds=thresholds)), TODAY).transitions
        assert change.to_status is expected


def test_a_transition_is_a_change_and_names_where_the_certificate_came_from() -> None:
    """Those of mentors who left move, too: the record stays true for everybody."""
    known = certificate(day(YEAR), status=Status.VALID)
    ended = certificate(day(-1), status=Status.EXPIRING, kind="first_aid")

    (change,) = rules.decide(mentor(known, ended, left=True), TODAY).transitions

    assert (change.certificate_id, change.from_status, change.to_status) == (ended.id, EXPIRING, EXPIRED)


OPEN, LIFT = PauseChange.OPEN, PauseChange.LIFT
ILL = pause("illness")
MINE = own_pause()
IN_FORCE, ENDED = row(YEAR), row(-1)

PAUSES: dict[str, tuple[list[Certificate], list[OpenPause], PauseChange | None]] = {
    "the last day": ([row(0)], [], None),
    "ended yesterday": ([ENDED], [], OPEN),
    "revoked before it began: held": ([row(YEAR, 1, revoked=True)], [], OPEN),
    "nothing but an upcoming one": ([row(YEAR, 1)], [], None),
    "one kind of two ended": ([IN_FORCE, row(-1, kind="first_aid")], [], OPEN),
    "only an optional kind held, and ended": ([row(-1, kind="optional")], [], None),
    "an optional kind in force certifies nobody": ([ENDED, row(YEAR, kind="optional")], [], OPEN),
    "renewed, beside another pause": ([ENDED, row(YEAR, 0)], [ILL, MINE], LIFT),
    "another pause does not stand in for the own one": ([ENDED], [ILL], OPEN),
}


@pytest.mark.parametrize(("rows", "pauses", "expected"), PAUSES.values(), ids=PAUSES)
def test_the_own_pause_is_open_exactly_while_a_kind_that_was_held_is_not_in_force(
    rows: list[Certificate], pauses: list[OpenPause], expected: PauseChange | None
) -> None:
    """The row to close is the one that is open; while the mentor has left, pauses stay as they are."""
    optional = organisation(optional_kinds=["optional"])

    decision = rules.decide(mentor(*rows, pauses=pauses, organisation=optional), TODAY)

    assert (decision.pause, decision.own_pause_id) == (expected, MINE.id if MINE in pauses else None)
    assert rules.decide(mentor(*rows, pauses=pauses, organisation=optional, left=True), TODAY).pause is None


def test_who_is_active_and_has_held_nothing_that_counts_is_watched_by_nobody() -> None:
    """And counted; somebody paused or gone needs no watching."""
    optional = organisation(optional_kinds=["optional"])
    unwatched = [mentor(), mentor(row(YEAR, 1)), mentor(row(-1, kind="optional"), organisation=optional)]
    others = [mentor(pauses=[ILL]), mentor(left=True), mentor(IN_FORCE), mentor(ENDED), mentor(row(YEAR, 0))]

    watched = [not rules.decide(person, TODAY).without_certificate for person in unwatched + others]
    assert watched == [False] * 3 + [True] * 5
    assert [rules.holds_nothing(person, TODAY) for person in unwatched + others] == [True] * 5 + [False] * 3


def due(*rows: Certificate, thresholds: Sequence[int] = ALL, **person: object) -> list[int]:
    """The thresholds of the reminders that are due today."""
    decision = rules.decide(mentor(*rows, organisation=organisation(thresholds=thresholds), **person), TODAY)  # type: ignore[arg-type]
    return [reminder.threshold_days for reminder in decision.reminders]


@pytest.mark.parametrize(
    ("thresholds", "days"),
    [
        (ALL, {60: range(31, 61), 30: range(15, 31), 14: range(8, 15), 7: range(2, 8)}
        | {1: range(2), -1: range(-15, 0)}),
        ((30, 7, 0), {30: range(8, 31), 7: range(1, 8), 0: range(1)}),
        ((-1, -10, -40), {-1: range(-9, 0), -10: range(-24, -9), -40: range(-54, -39)}),
        ([-7], {-7: range(-21, -6)}),
        ((), {}),
    ],
    ids=str,
)  # fmt: skip
def test_the_nearest_threshold_reached_is_due(thresholds: Sequence[int], days: dict[int, range]) -> None:
    """A missed week or a late import sends one message, not five; after the expiry at most 14 days late."""
    for left in (-2500, -400, *range(-60, 70)):
        expected = [threshold for threshold, when in days.items() if left in when]
        assert due(row(left), thresholds=thresholds) == expected, left


REMINDED: dict[str, tuple[list[Certificate], list[int]]] = {
    "continued on the next day": ([row(7), row(YEAR, 8)], []),
    "continued with a gap of one day": ([row(7), row(YEAR, 9)], [7]),
    "a revoked row continues nothing": ([row(7), row(YEAR, 1, revoked=True)], [7]),
    "a row that ends earlier continues nothing": ([row(7), row(3, 0)], [7]),
    "the new one when its own time comes": ([row(-200), row(30, -199)], [30]),
    "upcoming": ([row(7, 1)], []),
    "each kind, an optional one, too": ([row(7), row(30, kind="optional")], [7, 30]),
    "shorter than its thresholds": ([row(5, 0)], [7]),
}


@pytest.mark.parametrize(("rows", "expected"), REMINDED.values(), ids=REMINDED)
def test_what_is_continued_without_a_gap_reminds_nobody(rows: list[Certificate], expected: list[int]) -> None:
    """Nor does what has not begun or was revoked; whoever has left is told nothing, whoever is paused is."""
    optional = organisation(optional_kinds=["optional"])
    for pauses, left in (([], False), ([ILL, MINE], False), ([], True)):
        reminders = rules.decide(mentor(*rows, organisation=optional, pauses=pauses, left=left), TODAY).reminders
        assert sorted(each.threshold_days for each in reminders) == ([] if left else expected)
        about = {each.id: each.expires_on for each in rows}
        assert all(each.expires_on == about[each.cert_id] for each in reminders)


CANCELLED: dict[str, tuple[list[Certificate], int, int, Sequence[int], str | None]] = {
    "still due": ([row(7)], 7, 7, ALL, None),
    "still the nearest": ([row(2)], 7, 2, ALL, None),
    "14 days late": ([row(-15)], -1, -15, ALL, None),
    "revoked": ([row(7, revoked=True)], 7, 7, ALL, "revoked"),
    "extended": ([row(300)], 7, 7, ALL, "extended"),
    "shortened": ([row(3)], 7, 7, ALL, "shortened"),
    "renewed by one that has begun": ([row(7), row(YEAR, 0)], 7, 7, ALL, "renewed"),
    "renewed without a gap": ([row(7), row(YEAR, 8)], 7, 7, ALL, "renewed"),
    "renewed with a gap": ([row(7), row(YEAR, 9)], 7, 7, ALL, None),
    "overtaken by a more urgent one": ([row(7)], 14, 7, ALL, "too late"),
    "after the last day": ([row(-1)], 7, -1, [7], "too late"),
    "three weeks after": ([row(-16)], -1, -16, ALL, "too late"),
    "its day has not come": ([row(10)], 7, 10, ALL, "not due"),
    "its threshold has not come": ([row(90)], 60, 90, ALL, "not due"),
    "its threshold is no more": ([row(45)], 60, 45, [30], "not due"),
    "moved into the future": ([row(7, 1)], 7, 7, ALL, "not due"),
}


@pytest.mark.parametrize(("rows", "threshold", "about", "thresholds", "reason"), CANCELLED.values(), ids=CANCELLED)
def test_a_queued_reminder_is_cancelled_for_a_reason(
    rows: list[Certificate], threshold: int, about: int, thresholds: Sequence[int], reason: str | None
) -> None:
    """None while it is right, also for paused mentors. Deleted comes first, then left."""
    rule = organisation(thresholds=thresholds)
    reminder = Reminder(cert_id=rows[0].id, threshold_days=threshold, expires_on=day(about))
    for person, expected in (
        (mentor(*rows, organisation=rule), reason),
        (mentor(*rows, organisation=rule, pauses=[ILL]), reason),
        (mentor(*rows, organisation=rule, left=True), "left"),
        (mentor(*rows[1:], organisation=rule, left=True), "deleted"),
    ):
        assert rules.cancel_reason(reminder, person, TODAY) == expected


@pytest.mark.parametrize(
    ("rows", "left", "expected"),
    [
        pytest.param([row(60)], False, 30, id="the next threshold"),
        pytest.param([row(45), row(YEAR, 46)], False, 46, id="no reminders of a continued one"),
        pytest.param([row(50)], True, 51, id="no reminders of one who left"),
        pytest.param([row(100), row(65, kind="first_aid")], False, 5, id="the soonest of all kinds"),
        pytest.param([row(YEAR, revoked=True), row(-500, kind="first_aid")], False, None, id="revoked, and expired"),
    ],
)
def test_the_next_day_to_look_is_the_next_on_which_anything_can_change(
    rows: list[Certificate], left: bool, expected: int | None
) -> None:
    """None: only a new fact can; stored as infinity. That no day is missing, test_projection holds."""
    review_on = rules.decide(mentor(*rows, left=left), TODAY).review_on

    assert review_on == (None if expected is None else day(expected))


def test_the_ends_of_the_calendar_do_not_overflow() -> None:
    """9999-12-31 serves as "never"; somebody's import has year 1."""
    forever, ancient = certificate(date.max), certificate(date(1, 1, 2), issued_on=date(1, 1, 1))
    far_away = date.max - timedelta(days=3650)
    for each, thresholds, review_on in ((forever, [3650], far_away), (forever, [], None), (ancient, [3650], None)):
        person = mentor(each, organisation=organisation(thresholds=thresholds))
        assert rules.decide(person, TODAY).review_on == review_on


def test_more_than_twenty_changes_and_more_than_a_tenth_are_held() -> None:
    """A bad clock or a bad import; and more than 5,000 new reminders."""
    for active_mentors, limit in ((0, 20), (21, 20), (209, 20), (210, 21), (1000, 100)):
        assert rules.mass_change_limit(active_mentors) == limit
    assert rules.MASS_REMINDER_LIMIT == 5_000


MOVES: dict[str, tuple[dict[str, object], int | None, bool]] = {
    "a renewal moves the day": ({}, 30, True),
    "a correction to an earlier day moves it, too": ({}, 2 * YEAR, True),
    "the same day moves nothing": ({}, YEAR, False),
    "after the first review reconcile tells the day": ({}, None, False),
    "a hidden mentor is shown anyway": ({"portal_visible": False}, 30, False),
    "a paused mentor has no day": ({"pauses": [pause()]}, 30, False),
    "without a contact there is nothing to push": ({"has_contact": False}, 30, False),
    "without a portal there is nothing to push": ({"organisation": organisation(has_portal=False)}, 30, False),
}
"""What is known of a mentor who is certified for a year, and the last day that was wanted so far."""


@pytest.mark.parametrize(("known", "wanted", "moves"), MOVES.values(), ids=MOVES)
def test_visible_mentor_is_pushed_again_if_only_the_day_moves(
    known: dict[str, object], wanted: int | None, moves: bool
) -> None:
    so_far = None if wanted is None else day(wanted)

    decision = rules.decide(mentor(row(YEAR), certified_until=so_far, **known), TODAY)  # type: ignore[arg-type]

    assert (decision.moved_from, decision.moved_from is not None and decision.push) == (
        so_far if moves else None,
        moves,
    )


def test_days_after_2099_are_one_day_for_the_portal() -> None:
    """The filter of the portal's view does not reach further."""
    endless = certificate(date.max, issued_on=day(-1))

    decision = rules.decide(mentor(endless, certified_until=date(2150, 1, 1)), TODAY)

    assert (decision.certified_until, decision.push) == (date.max, False)
