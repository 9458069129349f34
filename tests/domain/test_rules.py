"""The rules of ``docs/rules.md``, in the order of that page.

Days count from today: the last day of ``ends(-1)`` was yesterday, and ``ends(60, begins=1)`` begins tomorrow. Unless a
test says otherwise, the mentor is visible on the portal and has no open pause.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

import pytest

from certjob.domain import rules
from certjob.domain.models import NOT_CERTIFIED, Certificate, Decision, PauseChange, Reminder, Status
from tests.support.facts import TODAY
from tests.support.people import DEFAULT_THRESHOLDS, certificate, mentor, organisation, own_pause, pause

YEAR = 365
REVOKED, UPCOMING, RENEWED = Status.REVOKED, Status.UPCOMING, Status.RENEWED
VALID, EXPIRING, EXPIRED = Status.VALID, Status.EXPIRING, Status.EXPIRED
ILLNESS, OWN_PAUSE = pause("illness"), own_pause()


def day(number: int) -> date:
    return TODAY + timedelta(days=number)


def ends(days: int, *, begins: int = -800, kind: str = "likeperson", revoked: bool = False) -> Certificate:
    """Return a certificate with this last and this first day."""
    return certificate(day(days), issued_on=day(begins), kind=kind, revoked=revoked)


def decide(*certificates: Certificate, thresholds: Sequence[int] = DEFAULT_THRESHOLDS, **facts: Any) -> Decision:
    """Return today's decision about a mentor of an organisation in which the kind "optional" is optional."""
    hlf = organisation(thresholds=thresholds, optional_kinds=["optional"])
    return rules.decide(mentor(*certificates, **{"organisation": hlf} | facts), TODAY)


# Certificates


def statuses(*certificates: Certificate, thresholds: Sequence[int] = DEFAULT_THRESHOLDS) -> list[Status]:
    """Return today's status of each of these certificates of one mentor."""
    holder = mentor(*certificates, organisation=organisation(thresholds=thresholds))
    return list(rules.statuses(holder, TODAY).values())


def test_revoked_certificate_is_revoked_whatever_its_dates() -> None:
    assert statuses(ends(YEAR, begins=1, revoked=True)) == [REVOKED]
    assert statuses(ends(-1, revoked=True)) == [REVOKED]


def test_certificate_is_in_force_from_its_first_to_its_last_day() -> None:
    assert statuses(ends(YEAR, begins=1)) == [UPCOMING]
    assert statuses(ends(YEAR, begins=0)) == [VALID]
    assert statuses(ends(0)) == [EXPIRING]
    assert statuses(ends(-1)) == [EXPIRED]


def test_certificate_is_expiring_from_the_largest_threshold() -> None:
    """Without a threshold before the last day, no certificate is expiring."""
    assert statuses(ends(61)) == [VALID]
    assert statuses(ends(60)) == [EXPIRING]
    assert statuses(ends(45), thresholds=[-1, 45, 7]) == [EXPIRING]
    assert statuses(ends(0), thresholds=[-7]) == [VALID]
    assert statuses(ends(0), thresholds=[]) == [VALID]


def test_certificate_is_renewed_once_a_later_one_has_begun() -> None:
    """The later one has the same kind, and no one has revoked it."""
    assert statuses(ends(-1), ends(YEAR, begins=0)) == [RENEWED, VALID]
    assert statuses(ends(-1), ends(YEAR, begins=1)) == [EXPIRED, UPCOMING]
    assert statuses(ends(-1), ends(YEAR, kind="first_aid")) == [EXPIRED, VALID]
    assert statuses(ends(YEAR), ends(800, begins=-1, revoked=True)) == [VALID, REVOKED]


def test_later_certificate_is_the_one_that_ends_or_begins_later() -> None:
    """The first day decides only between equal last days."""
    assert statuses(ends(YEAR, begins=-9), ends(0, begins=-8)) == [VALID, RENEWED]
    assert statuses(ends(YEAR, begins=-9), ends(YEAR, begins=-8)) == [RENEWED, VALID]


def test_only_a_changed_status_is_stored() -> None:
    """The certificates of a mentor who has left change as well."""
    unchanged = certificate(day(YEAR), status=VALID)
    ended = certificate(day(-1), status=EXPIRING, kind="first_aid")

    (change,) = decide(unchanged, ended, left=True).transitions

    assert (change.certificate_id, change.from_status, change.to_status) == (ended.id, EXPIRING, EXPIRED)


# Pauses


def test_mentor_is_paused_on_the_day_after_the_last_day() -> None:
    assert decide(ends(0)).pause is None
    assert decide(ends(-1)).pause is PauseChange.OPEN
    assert decide(ends(-1), pauses=[OWN_PAUSE]).pause is None


def test_mentor_is_paused_when_any_held_kind_ends() -> None:
    """An optional kind pauses no one, and does not replace a kind that counts."""
    assert decide(ends(YEAR), ends(-1, kind="first_aid")).pause is PauseChange.OPEN
    assert decide(ends(YEAR), ends(-1, kind="optional")).pause is None
    assert decide(ends(-1), ends(YEAR, kind="optional")).pause is PauseChange.OPEN


def test_mentor_who_never_held_a_certificate_is_not_paused() -> None:
    """A revoked certificate was held."""
    assert decide().pause is None
    assert decide(ends(YEAR, begins=1)).pause is None
    assert decide(ends(YEAR, begins=1, revoked=True)).pause is PauseChange.OPEN


def test_renewal_lifts_only_certjobs_own_pause() -> None:
    renewed = decide(ends(-1), ends(YEAR, begins=0), pauses=[ILLNESS, OWN_PAUSE])

    assert (renewed.pause, renewed.own_pause_id) == (PauseChange.LIFT, OWN_PAUSE.id)
    assert decide(ends(YEAR), pauses=[ILLNESS]).pause is None
    assert decide(ends(-1), pauses=[ILLNESS]).pause is PauseChange.OPEN


def test_pause_is_because_of_the_last_certificate_of_each_lapsed_kind() -> None:
    """It is a revoked one only if all are revoked."""
    ended, revoked = ends(-1), ends(YEAR, kind="first_aid", revoked=True)
    person = mentor(ends(-9), ended, ends(YEAR, revoked=True), revoked, ends(YEAR, kind="driver"))

    assert rules.lapsed_certificates(person, TODAY) == [revoked, ended]


def test_pauses_of_a_mentor_who_has_left_do_not_change() -> None:
    assert decide(ends(-1), left=True).pause is None
    assert decide(ends(YEAR), left=True, pauses=[OWN_PAUSE]).pause is None


def test_active_mentor_who_never_held_a_certificate_is_counted() -> None:
    """No pause reports this mentor, so the run does."""
    assert decide(ends(YEAR, begins=1)).without_certificate
    assert decide(ends(-1, kind="optional")).without_certificate
    assert not decide(ends(YEAR, begins=0)).without_certificate
    assert not decide(pauses=[ILLNESS]).without_certificate
    assert not decide(left=True).without_certificate


# The portal


def test_mentor_is_visible_while_certified_and_active() -> None:
    """A pause that this review lifts is no obstacle."""
    assert decide(ends(0)).visible
    assert not decide(ends(-1)).visible
    assert not decide().visible
    assert not decide(ends(YEAR), ends(-1, kind="first_aid")).visible
    assert decide(ends(YEAR), ends(-1, kind="optional")).visible
    assert not decide(ends(YEAR, kind="optional")).visible

    assert decide(ends(YEAR), pauses=[OWN_PAUSE]).visible
    assert not decide(ends(YEAR), pauses=[ILLNESS]).visible
    assert not decide(ends(YEAR), left=True).visible


def test_mentor_who_was_never_on_the_portal_is_not_pushed() -> None:
    """If the last review found the mentor certified, the portal may still show the contact that someone removed."""
    assert decide(has_contact=True).push
    assert not decide(has_contact=False).push
    assert not decide(has_contact=False, certified_until=NOT_CERTIFIED).push
    assert decide(has_contact=False, certified_until=day(30)).push


def test_new_last_day_of_a_visible_mentor_is_pushed() -> None:
    assert decide(ends(YEAR), certified_until=day(30)).new_last_day
    assert decide(ends(YEAR), certified_until=day(800)).new_last_day
    assert decide(ends(YEAR), certified_until=day(30)).push
    assert not decide(ends(YEAR), certified_until=day(YEAR)).push


def test_last_day_is_not_pushed_if_the_portal_does_not_need_it() -> None:
    """At the first review, `certjob reconcile` sends it. The portal accepts days until 2099."""
    assert not decide(ends(YEAR), certified_until=None).new_last_day
    assert not decide(ends(YEAR), certified_until=day(30), portal_visible=False).new_last_day
    assert not decide(ends(YEAR), certified_until=day(30), pauses=[ILLNESS]).new_last_day
    assert not decide(ends(YEAR), certified_until=day(30), has_contact=False).new_last_day
    assert not decide(ends(YEAR), certified_until=day(30), organisation=organisation(has_portal=False)).push
    assert not decide(certificate(date.max), certified_until=date(2150, 1, 1)).new_last_day


# Reminders


def reminders(*certificates: Certificate, **facts: Any) -> list[tuple[Certificate, int]]:
    """Return the certificates with a reminder that is due today, and its threshold."""
    due = {reminder.cert_id: reminder.threshold_days for reminder in decide(*certificates, **facts).reminders}
    return [(each, due[each.id]) for each in certificates if each.id in due]


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
        due = [threshold for _, threshold in reminders(ends(days), thresholds=thresholds)]

        assert due == [threshold for threshold, due_days in days_left.items() if days in due_days], days


def test_certificate_continued_without_a_gap_gets_no_reminder() -> None:
    """It is continued if a later one of its kind begins by the day after the last day."""
    ending = ends(7)

    assert reminders(ending, ends(YEAR, begins=8)) == []
    assert reminders(ending, ends(YEAR, begins=9)) == [(ending, 7)]
    assert reminders(ending, ends(YEAR, begins=1, revoked=True)) == [(ending, 7)]
    assert reminders(ending, ends(3, begins=0)) == [(ending, 7)]
    assert reminders(ending, ends(YEAR, begins=0, kind="first_aid")) == [(ending, 7)]


def test_each_certificate_in_force_has_its_own_reminder() -> None:
    """A pause does not stop it, because a paused mentor should renew as well. A departure does."""
    first, second = ends(7), ends(30, kind="optional")

    assert reminders(first, second) == [(first, 7), (second, 30)]
    assert reminders(first, pauses=[ILLNESS, OWN_PAUSE]) == [(first, 7)]
    assert reminders(first, left=True) == []
    assert reminders(ends(7, begins=1)) == []


def cancelled(*certificates: Certificate, threshold: int = 7, last_day: int = 7, **facts: Any) -> str | None:
    """Return why a queued reminder about the first certificate is not sent, or None."""
    queued = Reminder(cert_id=certificates[0].id, threshold_days=threshold, expires_on=day(last_day))
    return rules.cancel_reason(queued, mentor(*certificates, **facts), TODAY)


def test_queued_reminder_that_is_still_due_is_sent() -> None:
    assert cancelled(ends(7)) is None
    assert cancelled(ends(7), pauses=[ILLNESS]) is None
    assert cancelled(ends(7), ends(YEAR, begins=9)) is None


def test_queued_reminder_is_cancelled_after_its_time() -> None:
    """The time ends with the last day, with a smaller threshold, or 14 days after a threshold past the last day."""
    assert cancelled(ends(-15), threshold=-1, last_day=-15) is None
    assert cancelled(ends(-16), threshold=-1, last_day=-16) == "too late"
    assert cancelled(ends(-1), last_day=-1, organisation=organisation(thresholds=[7])) == "too late"
    assert cancelled(ends(7), threshold=14) == "too late"


def test_queued_reminder_is_cancelled_if_the_facts_have_changed() -> None:
    """Each reason is stored with the reminder."""
    assert cancelled(ends(7, revoked=True), left=True) == "left"
    assert cancelled(ends(300, revoked=True)) == "revoked"
    assert cancelled(ends(300)) == "extended"
    assert cancelled(ends(3)) == "shortened"
    assert cancelled(ends(7), ends(YEAR, begins=0)) == "renewed"
    assert cancelled(ends(7), ends(YEAR, begins=8)) == "renewed"
    deleted = Reminder(cert_id=ends(7).id, threshold_days=7, expires_on=day(7))
    assert rules.cancel_reason(deleted, mentor(left=True), TODAY) == "deleted"


def test_queued_reminder_is_cancelled_if_its_threshold_is_not_reached() -> None:
    """For example, the thresholds have changed, or the certificate begins later than before."""
    assert cancelled(ends(10), last_day=10) == "not due"
    assert cancelled(ends(90), threshold=60, last_day=90) == "not due"
    shorter = organisation(thresholds=[30])
    assert cancelled(ends(45), threshold=60, last_day=45, organisation=shorter) == "not due"
    assert cancelled(ends(7, begins=1)) == "not due"


# The next review, and the guards


def test_next_review_is_on_the_next_day_with_a_change() -> None:
    """test_rules_properties shows that no day is missing."""
    assert decide(ends(60)).review_on == day(30)
    assert decide(ends(45), ends(YEAR, begins=46)).review_on == day(46)
    assert decide(ends(50), left=True).review_on == day(51)
    assert decide(ends(100), ends(65, kind="first_aid")).review_on == day(5)
    assert decide(ends(YEAR, revoked=True), ends(-500, kind="first_aid")).review_on is None


def test_first_and_last_days_of_the_calendar_do_not_overflow() -> None:
    """9999-12-31 is used for "never"."""
    forever, ancient = certificate(date.max), certificate(date(1, 1, 2), issued_on=date(1, 1, 1))

    assert decide(forever, thresholds=[3650]).review_on == date.max - timedelta(days=3650)
    assert decide(forever, thresholds=[]).review_on is None
    assert decide(ancient, thresholds=[3650]).review_on is None
