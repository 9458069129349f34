"""The life of a push: queued, claimed, settled, and an alert while it is open."""

from itertools import groupby
from uuid import uuid4

import pytest

from certjob.errors import Outcome, StageEnd
from certjob.outbox.claims import Answer
from certjob.portal.sync import PortalCounts
from tests.support.facts import TODAY, Facts
from tests.support.nights import review
from tests.support.portal_answers import Behaviour, during, error, ok
from tests.support.scene import NEXT_YEAR, Scene

DOWN, REJECTED = error(503, "dynamics_unavailable"), error(404, "contact_not_found")
FAILED = "the portal answered 503 dynamics_unavailable (as the test wishes)"

EVENT = "SELECT visible, version, status, attempts FROM portal_sync_events"
STATUS = "SELECT status FROM portal_sync_events ORDER BY id"
MINUTES = "SELECT round(extract(epoch FROM next_attempt_at - now()) / 60) FROM portal_sync_events ORDER BY id"
WHOLE_ROWS = "SELECT row_to_json(e)::text FROM portal_sync_events e ORDER BY id"
FAILURE = "SELECT kind, attempts, error, resolved_at IS NOT NULL FROM dynamics_sync_failures ORDER BY id"


def test_new_value_replaces_the_open_one(scene: Scene) -> None:
    """It is due at once, with version 2, no attempts and no error."""
    mentor = scene.hidden()
    scene.push(DOWN)

    scene.queue(mentor, visible=True)

    assert scene.rows(EVENT) == [(True, 2, "pending", 0)]
    assert scene.rows("SELECT last_error FROM portal_sync_events") == [(None,)]
    assert len(scene.claim()) == 1


def test_push_queued_during_a_call_waits_for_its_end(scene: Scene) -> None:
    """The success of the call resolves no failure, because the mentor's newest hide is not yet delivered."""
    mentor = scene.hidden()
    scene.push(DOWN)
    scene.make_due()
    (event,) = scene.claim()
    scene.queue(mentor, visible=False)
    assert scene.claim() == []

    assert scene.push(event=event) is Answer.RAISED

    assert scene.rows(EVENT) == [(False, 2, "pending", 0)]
    assert scene.rows(FAILURE) == [("transient", 3, FAILED, False)]
    assert scene.rows("SELECT member_no, kind FROM alerts") == [("M1042", "may_be_visible")]
    assert len(scene.claim()) == 1


def test_settle_after_the_lease_changes_nothing(scene: Scene) -> None:
    """Another process may have taken over."""
    mentor = scene.hidden()
    (event,) = scene.claim()
    scene.expire_leases()
    scene.queue(mentor, visible=True)

    assert scene.push(REJECTED, event=event) is Answer.LOST

    assert scene.counts == PortalCounts(lost=1)
    assert (scene.rows(EVENT), scene.rows(FAILURE)) == ([(True, 2, "pending", 0)], [])


def test_settle_of_a_locked_row_leaves_the_event_to_its_lease(scene: Scene) -> None:
    """It waits half a second. The failure row belongs to the same transaction: without it, the event is not settled."""
    scene.hidden()
    scene.push(DOWN)
    scene.make_due()
    (event,) = scene.claim()
    before = scene.rows(WHOLE_ROWS)

    for locked in ("portal_sync_events", "dynamics_sync_failures"):
        scene.app.execute(f"SELECT FROM {locked} FOR UPDATE".encode())
        assert scene.push(event=event) is Answer.HELD
        scene.app.rollback()

    assert (scene.rows(WHOLE_ROWS), scene.rows(FAILURE)) == (before, [("transient", 3, FAILED, False)])
    assert scene.push(event=event) is Answer.SETTLED
    assert scene.rows(FAILURE) == [("transient", 3, FAILED, True)]


@pytest.mark.parametrize("answer", [ok(), DOWN, REJECTED], ids=["delivered", "failed", "rejected"])
def test_opposite_value_during_a_call_is_pushed_next(scene: Scene, answer: Behaviour) -> None:
    """The same run pushes it, with another key. A failure of the old value is not recorded."""
    expired = scene.expired()

    def renew() -> None:
        Facts(scene.other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
        review(scene.other)

    scene.portal.decide = lambda request: (
        ok() if request.visible else during(renew, answer) if request.number == 1 else answer
    )

    report = scene.night(scene.portal)

    calls = [(push.visible, push.idempotency_key) for push in scene.portal.pushes]
    assert [call for call, _repeats in groupby(calls)] == [(False, "1-1"), (True, "1-2")]
    assert scene.rows(EVENT) == [(True, 2, "delivered", 1)]
    assert (report.outcome, report.portal, scene.rows(FAILURE)) == (Outcome.OK, PortalCounts(delivered=1), [])


def test_failed_rounds_are_one_failure_until_a_push_succeeds(scene: Scene) -> None:
    """Each round has 3 calls, and each wait is twice as long."""
    scene.hidden()
    scene.push(DOWN)
    assert (scene.rows(MINUTES), scene.claim()) == ([(15,)], [])
    scene.make_due()
    scene.push(DOWN)
    assert scene.rows(MINUTES) == [(30,)]
    assert scene.rows(FAILURE) == [("transient", 6, FAILED, False)]
    row = "SELECT event_id, visible, correlation_id, last_failed_at > created_at FROM dynamics_sync_failures"
    assert scene.rows(row) == [(1, False, "test-6", True)]

    scene.make_due()
    scene.push()

    assert scene.rows(FAILURE) == [("transient", 6, FAILED, True)]
    assert scene.rows("SELECT kind FROM alerts") == []
    assert scene.rows("SELECT status, last_error FROM portal_sync_events") == [("delivered", None)]


def test_locked_event_keeps_its_lease(scene: Scene) -> None:
    """The other events are settled."""
    scene.backlog(2)

    lock = "SELECT FROM portal_sync_events ORDER BY id LIMIT 1 FOR UPDATE"
    scene.portal.then(during(lambda: scene.app.execute(lock)))

    assert scene.deliver(scene.portal).portal.delivered == 1

    settled = "SELECT status, claim_token IS NULL FROM portal_sync_events ORDER BY id"
    assert scene.rows(settled) == [("pending", False), ("delivered", True)]


def test_mentor_without_a_contact_is_blocked_until_someone_acts(scene: Scene) -> None:
    """It is an alert without a call. With a contact, the next night makes the push."""
    scene.expired(contact_id=None)
    report = scene.night(scene.portal)
    assert (scene.portal.pushes, scene.rows(STATUS)) == ([], [("blocked",)])
    assert scene.rows("SELECT error, calls FROM alerts") == [("no contact ID", 0)]
    assert (report.outcome, report.to_document()["portal"]["blocked"]) == ("attention", 1)

    contact = uuid4()
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s", contact)

    assert scene.night(scene.portal).outcome == "ok"
    assert scene.portal.visible == {contact: False}
    assert scene.rows(FAILURE) == [("permanent", 0, "no contact ID", True)]


def test_lost_portal_withdraws_open_pushes(scene: Scene) -> None:
    """The review in the next ``deliver`` does so, without a call. Someone must hide the mentor by hand."""
    scene.expired()
    scene.portal.then(REJECTED)
    scene.night(scene.portal)
    scene.run_sql("UPDATE organisations SET portal = NULL")

    assert scene.deliver(scene.portal).portal == PortalCounts()

    assert (len(scene.portal.pushes), scene.rows("SELECT cause FROM alerts")) == (1, [("hide_by_hand",)])
    assert scene.rows(STATUS) == [("withdrawn",)]
    assert scene.rows(FAILURE) == [
        ("permanent", 1, "the portal answered 404 contact_not_found (as the test wishes)", True)
    ]
    assert scene.rows("SELECT portal_visible FROM mentors") == [(None,)]


def test_withdrawn_hide_is_pushed_when_the_mentor_returns(scene: Scene) -> None:
    """The mentor has moved to an organisation without a portal, and is an alert there."""
    scene.expired()
    scene.portal.then(*[DOWN] * 3)
    scene.night(scene.portal)
    scene.run_sql("UPDATE mentors SET organisation_id = %s", scene.facts.organisation("nhf", portal=None))
    scene.night(scene.portal)
    assert scene.rows("SELECT alert_id, cause FROM alerts") == [("nhf:may_be_visible:M1001:1", "hide_by_hand")]

    scene.run_sql("UPDATE mentors SET organisation_id = %s", scene.hlf)

    assert scene.night(scene.portal).outcome == Outcome.OK
    assert scene.portal.values == [False] * 4


def test_mentor_who_moves_to_an_organisation_with_a_portal_is_shown(scene: Scene) -> None:
    """certjob does not know whether the portal shows the contact, so it pushes in any case."""
    scene.facts.certified_mentor(scene.facts.organisation("nhf", portal=None), NEXT_YEAR, contact_id=uuid4())
    scene.night(scene.portal)

    scene.run_sql("UPDATE mentors SET organisation_id = %s", scene.hlf)
    scene.night(scene.portal)

    assert scene.portal.values == [True]


def test_early_end_of_a_stage_is_the_reason_of_every_open_hide(scene: Scene) -> None:
    """Event 1 is of an organisation without a portal, and event 2 is a show. A later reason replaces an earlier one."""
    scene.hidden()
    scene.run_sql("UPDATE organisations SET portal = NULL")
    scene.backlog(1, visible=True)
    scene.backlog(1, visible=False)

    for reason in ("portal: 401 unauthorized", "portal: something else"):
        scene.service.record_stage_end(reason, end=StageEnd.DEADLINE)

    rows = scene.rows("SELECT event_id, visible, kind, attempts, error FROM dynamics_sync_failures")
    assert rows == [(3, False, "stage", 0, "portal: something else")]


def test_early_end_of_a_stage_does_not_replace_a_mentors_own_failure(scene: Scene) -> None:
    """The mentor's own failure replaces an earlier reason, and says more than a later deadline."""
    scene.hidden()
    scene.service.record_stage_end("portal: earlier", end=StageEnd.DEADLINE)
    scene.push(DOWN)

    scene.service.record_stage_end("portal: later", end=StageEnd.DEADLINE)

    assert scene.rows(FAILURE) == [("transient", 3, FAILED, False)]


@pytest.mark.parametrize(
    ("days_left", "answer", "is_alert"),
    [(7, DOWN, True), (8, DOWN, False), (8, REJECTED, True), (None, DOWN, False), (None, REJECTED, True)],
    ids=["a week", "eight days", "rejected", "no column", "no column, rejected"],
)
def test_later_last_day_is_an_alert_a_week_before_the_day_that_is_sure(
    scene: Scene, days_left: int | None, answer: Behaviour, is_alert: bool
) -> None:
    """Without a column, the mentor stays visible without the push. But a rejected contact may be gone."""
    scene.backlog(1, visible=True)
    scene.run_sql("UPDATE mentors SET certified_until = '2095-01-01'")
    sure_until = "coalesce(current_date + %s::integer, 'infinity')"
    scene.run_sql(
        f"UPDATE portal_sync_events SET sure_until = {sure_until}, shown_until = {sure_until}", *[days_left] * 2
    )

    scene.push(answer)

    assert scene.rows("SELECT kind FROM alerts") == [("may_be_hidden",)] * is_alert
