"""The saga of portal visibility: what is queued, pushed, settled and shown, whatever comes in between."""

from uuid import uuid4

import pytest

from certjob import database
from certjob.errors import (
    Outcome,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    StageEnd,
    TransientPortalError,
)
from certjob.outbox.claims import Answer
from certjob.portal.sync import PortalCounts
from tests.support.facts import TODAY, Facts
from tests.support.nights import FlakyPortal, delivery, night, review
from tests.support.scene import NEXT_YEAR, Scene, push_once

RESET = TransientPortalError("reset")
REFUSED = PermanentPortalError("404 contact_not_found")

EVENT = (
    "SELECT visible, version, status, attempts, claim_token IS NULL, next_attempt_at <= now() FROM portal_sync_events"
)
STATUS = "SELECT status FROM portal_sync_events ORDER BY id"
WANTED = "SELECT wanted_at FROM portal_sync_events"
LEASE = "SELECT claim_token, next_attempt_at FROM portal_sync_events"
MINUTES = "SELECT round(extract(epoch FROM next_attempt_at - now()) / 60) FROM portal_sync_events ORDER BY id"
FAILURE = "SELECT kind, attempts, error, resolved_at IS NOT NULL FROM dynamics_sync_failures ORDER BY id"
ALERTS = "SELECT member_no, sentence FROM alerts"
MAY_BE_VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"


def test_a_new_wish_replaces_the_open_one(scene: Scene) -> None:
    """One row, a version more, its rounds begin anew and the old error is not its own; after its end, another row."""
    mentor = scene.hidden()
    scene.push(RESET)
    scene.wish(mentor, visible=True)
    assert scene.rows(EVENT) == [(True, 2, "pending", 0, True, True)]  # it does not wait for the old one's retry
    assert scene.rows("SELECT last_error FROM portal_sync_events") == [(None,)]

    (event,) = scene.claim()
    before = scene.rows(LEASE)
    scene.wish(mentor, visible=False)
    assert scene.rows(LEASE) == before  # a live lease is kept: no second call starts beside the first
    assert scene.claim() == []
    assert scene.push(event=event) is Answer.RAISED  # a success of the older wish resolves nothing
    assert scene.rows(EVENT) == [(False, 3, "pending", 0, True, True)]
    assert scene.rows(FAILURE) == [("transient", 3, "reset", False)]
    assert scene.rows(ALERTS) == [("M1042", MAY_BE_VISIBLE)]
    (event,) = scene.claim()
    scene.run_out()
    scene.wish(mentor, visible=True)
    assert (scene.push(REFUSED, event=event), scene.counts) == (Answer.LOST, PortalCounts(lost=1))  # it writes nothing
    assert scene.rows(EVENT) == [(True, 4, "pending", 0, True, True)]
    assert scene.rows(FAILURE) == [("transient", 3, "reset", False)]

    scene.push(REFUSED)
    since = scene.rows(WANTED)
    scene.wish(mentor, visible=True)
    assert scene.rows(WANTED) == since  # the same value again is not wanted later
    assert scene.rows(EVENT) == [(True, 5, "pending", 0, True, True)]
    assert scene.rows(FAILURE) == [("permanent", 4, "404 contact_not_found", False)]  # until a push succeeds

    scene.push()
    scene.wish(mentor, visible=False)
    scene.run_sql("UPDATE portal_sync_events SET status = 'withdrawn' WHERE status = 'pending'")
    scene.wish(mentor, visible=True)
    ends = [(5, "delivered"), (1, "withdrawn"), (1, "pending")]
    assert scene.rows("SELECT version, status FROM portal_sync_events ORDER BY id") == ends


@pytest.mark.parametrize(("error", "calls", "concurrency"), [(None, 1, 4), (RESET, 3, 1), (REFUSED, 1, 1)])
def test_an_opposite_wish_during_the_call_is_pushed_next_and_by_nobody_else(
    scene: Scene, error: PortalCallError | None, calls: int, concurrency: int
) -> None:
    """Never at once, never the older value last, each with its own key; the older one's failure is nobody's."""
    expired, another = scene.expired(), FlakyPortal()

    def renew_and_deliver(number: int) -> Exception | None:
        if number == 1:
            Facts(scene.other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
            review(scene.other)
            scene.deliver(another, scene.other)
        return None if portal.values[-1] else error

    portal = FlakyPortal(renew_and_deliver)

    report = night(scene.connection, ways_out=delivery(portal=portal, concurrency=concurrency))

    assert (another.calls, portal.overlaps) == ([], [])
    assert [call[1:] for call in portal.calls] == [(False, "1-1")] * calls + [(True, "1-2")]
    assert scene.rows(EVENT) == [(True, 2, "delivered", 1, True, True)]
    assert (report.outcome, report.portal, scene.rows(FAILURE)) == (Outcome.OK, PortalCounts(delivered=1), [])


def test_rounds_add_up_in_one_row_until_the_next_success_resolves_it(scene: Scene) -> None:
    """3 calls, then 6, each wait twice as long; the last answer's id is kept; a later failure is a row of its own."""
    hidden = scene.hidden()
    scene.push(RESET)
    assert (scene.rows(MINUTES), scene.claim()) == ([(15,)], [])
    scene.make_due()
    scene.push(TransientPortalError("503 dynamics_unavailable", correlation_id="abc-1"))
    whole = "SELECT id, event_id, visible, correlation_id, last_failed_at > created_at FROM dynamics_sync_failures"
    assert scene.rows(whole) == [(1, 1, False, "abc-1", True)]
    assert scene.rows(FAILURE) == [("transient", 6, "503 dynamics_unavailable", False)]
    assert (scene.rows(EVENT)[0][3], scene.rows(MINUTES)) == (2, [(30,)])

    scene.make_due()
    scene.push()
    resolved = ("transient", 6, "503 dynamics_unavailable", True)
    assert (scene.rows(FAILURE), scene.rows(ALERTS)) == ([resolved], [])
    assert scene.rows("SELECT status, last_error FROM portal_sync_events") == [("delivered", None)]

    resolved_at = "SELECT resolved_at FROM dynamics_sync_failures WHERE id = 1"
    before = scene.rows(resolved_at)
    scene.wish(hidden, visible=True)
    scene.push(TransientPortalError("again"))
    assert scene.rows(FAILURE) == [resolved, ("transient", 3, "again", False)]
    scene.make_due()
    scene.push()
    assert scene.rows(resolved_at) == before


def test_a_failure_whose_mentor_is_held_gets_its_row_a_try_later(scene: Scene) -> None:
    """The event is settled at once; that it failed is counted."""
    hidden = scene.hidden()
    scene.app.execute("SELECT FROM mentors WHERE id = %s FOR UPDATE", (hidden,))

    report = scene.deliver(FlakyPortal(failures=99))

    assert (report.outcome, report.portal.failed, scene.rows(FAILURE)) == (Outcome.ATTENTION, 1, [])
    assert scene.rows("SELECT status, claim_token FROM portal_sync_events") == [("pending", None)]
    scene.app.rollback()
    scene.make_due()
    scene.push(RESET)
    assert scene.rows(FAILURE) == [("transient", 3, "reset", False)]


def test_an_event_that_is_held_is_left_to_its_lease(scene: Scene) -> None:
    """The others are settled, nobody waits long, and the push is repeated under the same key."""
    held, free = scene.backlog(2)

    def hold(number: int) -> None:
        if number == 1:
            scene.app.execute("SELECT FROM portal_sync_events ORDER BY id LIMIT 1 FOR UPDATE")

    portal = FlakyPortal(hold)

    assert scene.deliver(portal).portal.delivered == 1

    settled = "SELECT status, claim_token IS NULL FROM portal_sync_events ORDER BY id"
    assert scene.rows(settled) == [("pending", False), ("delivered", True)]
    scene.app.rollback()
    scene.run_out()
    scene.deliver(portal, scene.other)
    assert [contact for contact, _, _ in portal.calls] == [held, free, held]
    assert portal.calls[0] == portal.calls[2]
    assert scene.rows(STATUS) == [("delivered",)] * 2


def test_a_mentor_without_a_contact_is_blocked_until_somebody_acts(scene: Scene) -> None:
    """No call, a permanent failure of no attempt, an alert every night; corrected, the next night pushes it."""
    scene.expired(contact_id=None)
    portal = FlakyPortal()
    for _ in range(2):
        report = scene.night(portal)

        assert (portal.calls, scene.rows(EVENT)[0][:4]) == ([], (False, 1, "blocked", 1))
        assert scene.rows(FAILURE) == [("permanent", 0, "no contact ID", False)]
        assert scene.rows("SELECT error, calls FROM alerts") == [("no contact ID", 0)]
        assert (report.outcome, report.to_document()["portal"]["blocked"]) == ("attention", 1)

    contact = uuid4()
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s", contact)
    assert scene.night(portal).outcome == "ok"
    assert portal.visible == {contact: False}
    assert scene.rows(FAILURE) == [("permanent", 0, "no contact ID", True)]


@pytest.mark.parametrize("error", [RESET, REFUSED], ids=["pending", "blocked"])
def test_lost_portal_withdraws_open_pushes(scene: Scene, error: PortalCallError) -> None:
    """The review in the next ``deliver`` does so, without a call. Someone must hide the mentor by hand."""
    scene.expired()
    scene.night(FlakyPortal(failures=99, error=lambda: error))
    scene.make_due()
    scene.run_sql("UPDATE organisations SET portal = NULL")
    portal = FlakyPortal()

    assert scene.deliver(portal).portal == PortalCounts()
    assert scene.night(portal).reasons == ["1 mentor may still be visible on the portal; see `certjob alerts`"]

    assert portal.calls == []
    assert scene.rows("SELECT cause FROM alerts") == [("hide_by_hand",)]
    assert scene.rows("SELECT status, claim_token FROM portal_sync_events") == [("withdrawn", None)]
    assert scene.rows("SELECT resolved_at IS NOT NULL FROM dynamics_sync_failures") == [(True,)]
    assert scene.rows("SELECT portal_visible FROM mentors") == [(None,)]


def test_withdrawn_in_the_middle_of_the_call_is_no_lost_lease(scene: Scene) -> None:
    """Nobody took over: the portal is not wanted any more, and the run needs nobody."""
    scene.hidden()

    def lose_the_portal(_number: int) -> None:
        scene.other.execute("UPDATE organisations SET portal = NULL")
        review(scene.other)

    report = scene.deliver(FlakyPortal(lose_the_portal))

    assert (report.outcome, report.portal, scene.rows(STATUS)) == (Outcome.OK, PortalCounts(), [("withdrawn",)])


def test_a_hide_that_was_withdrawn_needs_a_person_until_the_mentor_returns(scene: Scene) -> None:
    """Moved to an organisation without a portal and back: the portal of the first may go on showing them."""
    scene.expired()
    elsewhere = scene.facts.organisation("nhf", portal=None)
    scene.night(FlakyPortal(failures=99))
    scene.run_sql("UPDATE mentors SET organisation_id = %s", elsewhere)

    report = scene.night(FlakyPortal())

    assert (report.outcome, scene.rows(STATUS)) == (Outcome.ATTENTION, [("withdrawn",)])
    assert scene.rows("SELECT alert_id, cause FROM alerts") == [("nhf:may_be_visible:M1001", "hide_by_hand")]
    scene.run_sql("UPDATE mentors SET organisation_id = %s", scene.hlf)
    portal = FlakyPortal()
    assert scene.night(portal).outcome == Outcome.OK
    assert portal.values == [False]


@pytest.mark.parametrize(
    ("cause", "calls", "says"),
    [
        (RESET, 3, ("the push of mentor M1042", "after 3 calls: reset")),
        (TransientPortalError("429 throttled", retry_after_seconds=21), 1, ("after 1 call: 429 throttled",)),
        (PortalStageError("401 unauthorized"), 1, ("no push can succeed: 401 unauthorized",)),
        (REFUSED, 1, ("the portal rejected mentor M1042", "contact in Dynamics, then run the same command again")),
    ],
    ids=["transient", "long Retry-After", "out of order", "refused"],
)
def test_a_round_repeats_what_may_pass_under_one_key_and_says_what_is_next(
    scene: Scene, cause: PortalCallError, calls: int, says: tuple[str, ...]
) -> None:
    """What a repeat cannot mend is not repeated."""
    scene.wish(scene.hidden(), visible=False)
    portal = FlakyPortal(failures=99, error=lambda: cause)

    error = push_once(scene.claim()[0], portal).error

    assert [key for _, _, key in portal.calls] == ["1-2"] * calls
    assert error is not None
    assert error.attempts == calls
    assert all(words in str(error) for words in says)


def test_when_a_stage_ends_early_every_open_hide_gets_a_row(scene: Scene) -> None:
    """Shows do not, nor who has no portal; a later reason replaces it. What somebody holds is not waited for."""
    hidden = scene.hidden()
    scene.backlog(1, visible=True)
    scene.backlog(3)
    nowhere = "UPDATE organisations SET portal = NULL WHERE id = (SELECT organisation_id FROM mentors WHERE id = %s)"
    scene.run_sql(nowhere, hidden)
    scene.app.execute(
        "SELECT 1 FROM mentors WHERE id = (SELECT mentor_id FROM portal_sync_events WHERE id = 3) FOR UPDATE"
    )
    scene.app.execute("UPDATE portal_sync_events SET status = 'delivered', delivered_at = now() WHERE id = 4")

    for reason in ("portal: 401 unauthorized", "portal: something else"):
        scene.service.record_stage_end(reason, end=StageEnd.DEADLINE)

    scene.app.commit()  # a row made beside the delivery would outlive it
    rows = scene.rows("SELECT event_id, visible, kind, attempts, error FROM dynamics_sync_failures")
    assert rows == [(5, False, "stage", 0, "portal: something else")]
    scene.push(RESET, event=next(event for event in scene.claim() if event.id == 5))
    scene.service.record_stage_end("portal: later", end=StageEnd.DEADLINE)
    assert ("transient", 3, "reset", False) in scene.rows(FAILURE)  # the mentor's own failure says more


@pytest.mark.parametrize(("days", "is_alert"), [(8, False), (7, True), (-1, True)])
def test_move_of_the_last_day_is_an_alert_a_week_before_the_day_so_far(scene: Scene, days: int, is_alert: bool) -> None:
    """Until then the portal shows the mentor in any case, even if the push has failed."""
    scene.backlog(1, visible=True)
    scene.run_sql("UPDATE portal_sync_events SET moved_from = current_date + %s", days)
    scene.push(PermanentPortalError("unknown contact"))

    assert bool(scene.rows("SELECT FROM alerts WHERE kind = 'may_be_hidden'")) is is_alert


def test_hide_replaces_a_move_of_the_last_day(scene: Scene) -> None:
    """And a show that never arrived stays a show when its day moves."""
    mentor, other = scene.mentor(), scene.mentor()
    with database.transaction(scene.connection):
        scene.service.queue([(mentor, True)], moved_from={mentor: TODAY})
        scene.service.queue([(mentor, False), (other, True)])
        scene.service.queue([(other, True)], moved_from={other: TODAY})

    assert scene.rows("SELECT visible, moved_from FROM portal_sync_events ORDER BY id") == [(False, None), (True, None)]
