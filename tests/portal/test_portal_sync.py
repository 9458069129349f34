"""The saga of portal visibility: what is queued, pushed, settled and shown, whatever comes in between."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import (
    FailureCode,
    Outcome,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    TransientPortalError,
)
from certjob.night import nightly
from certjob.night.report import RunReport
from certjob.outbox.claims import Answer
from certjob.portal.push import PortalEvent, round_delay_seconds
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import DisturbedPortal, backlog, claim, make_due, queue_wish, review, run_out
from tests.support.nights import CollectingChannel, FlakyPortal, NoProgress, delivery, in_background, night
from tests.support.stages import push_once
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

YESTERDAY = TODAY - timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)
RESET = TransientPortalError("reset")
REFUSED = PermanentPortalError("404 contact_not_found")
UNKNOWN = TransientPortalError("504 outcome_unknown", code=FailureCode.OUTCOME_UNKNOWN)

EVENT = (
    "SELECT visible, version, status, attempts, claim_token IS NULL, next_attempt_at <= now() FROM portal_sync_events"
)
STATUS = "SELECT status FROM portal_sync_events"
FAILURE = "SELECT kind, attempts, error, resolved_at IS NOT NULL FROM dynamics_sync_failures ORDER BY id"
LONG_WAIT = (
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND clock_timestamp() - query_start > interval '700 ms'"
)


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    """A mentor of HLF without anything queued."""
    return facts.mentor(facts.organisation(), member_no="M1042")


@pytest.fixture
def hidden(connection: Connection, mentor: UUID) -> UUID:
    """The mentor, whom somebody wants hidden."""
    queue_wish(connection, mentor, visible=False)
    return mentor


def service(connection: Connection) -> PortalSyncService:
    return PortalSyncService(connection, run_id=uuid4())


def claim_one(connection: Connection) -> PortalEvent:
    (event,) = claim(connection)
    return event


def deliver(connection: Connection, portal: FlakyPortal | DisturbedPortal) -> RunReport:
    """The delivery half alone, as cron starts it between the nights."""
    ways_out = delivery(portal=portal)
    return nightly.deliver(connection, today=TODAY, delivery=ways_out, stop=StopFlag(), progress=NoProgress())


def push(connection: Connection, error: PortalCallError | None = None, *, event: PortalEvent | None = None) -> Answer:
    """Claim the only event and make one round, in which every call fails with the error, and settle it."""
    portal = FlakyPortal(failures=99 if error else 0, error=lambda: error or RESET)
    return service(connection).settle(push_once(event or claim_one(connection), portal), PortalCounts())


def end_stage(connection: Connection, reason: str = "portal: deadline") -> None:
    service(connection).record_stage_end(reason, code=FailureCode.DEADLINE)


class TestCoalescing:
    """There is at most one open event per mentor; a new wish replaces it."""

    def test_a_wish_is_part_of_the_callers_transaction(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        with connection.transaction(force_rollback=True):
            service(connection).queue([(mentor, False)])
        assert facts.rows(EVENT) == []

        queue_wish(connection, mentor, visible=False)
        assert facts.rows(EVENT) == [(False, 1, "pending", 0, True, True)]

    def test_a_new_wish_does_not_wait_for_the_retry_of_the_old_one(
        self, connection: Connection, facts: Facts, hidden: UUID
    ) -> None:
        """One row, a version more; rounds begin anew, and the old error is not the new wish's."""
        push(connection, RESET)

        queue_wish(connection, hidden, visible=True)

        assert facts.rows(EVENT) == [(True, 2, "pending", 0, True, True)]
        assert facts.rows("SELECT last_error FROM portal_sync_events") == [(None,)]

    def test_a_live_lease_is_kept_and_one_that_ran_out_is_not(
        self, connection: Connection, facts: Facts, hidden: UUID
    ) -> None:
        """Token and time stay, so that no second call starts beside the first."""
        event = claim_one(connection)
        lease = "SELECT claim_token, next_attempt_at FROM portal_sync_events"
        before = facts.rows(lease)

        queue_wish(connection, hidden, visible=True)

        assert facts.rows(lease) == before
        assert before[0][0] == event.claim_token
        assert facts.rows("SELECT visible, version, attempts FROM portal_sync_events") == [(True, 2, 0)]
        assert claim(connection) == []
        run_out(facts)
        queue_wish(connection, hidden, visible=False)
        assert facts.rows(EVENT) == [(False, 3, "pending", 0, True, True)]

    def test_a_blocked_event_is_reopened(self, connection: Connection, facts: Facts, hidden: UUID) -> None:
        """Its failure stays visible until a push succeeds."""
        push(connection, REFUSED)

        queue_wish(connection, hidden, visible=False)

        assert facts.rows(EVENT) == [(False, 2, "pending", 0, True, True)]
        assert facts.rows(FAILURE) == [("permanent", 1, "404 contact_not_found", False)]

    @pytest.mark.parametrize("end", ["delivered", "withdrawn"])
    def test_after_the_end_of_one_event_comes_another(
        self, connection: Connection, facts: Facts, hidden: UUID, end: str
    ) -> None:
        connection.execute("UPDATE portal_sync_events SET status = %s", (end,))

        queue_wish(connection, hidden, visible=True)

        events = "SELECT visible, version, status FROM portal_sync_events ORDER BY id"
        assert facts.rows(events) == [(False, 1, end), (True, 1, "pending")]


class TestOppositeWish:
    """A newer wish comes while a call is on its way."""

    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_it_is_pushed_next_in_the_same_run_and_by_nobody_else(
        self, connection: Connection, facts: Facts, other: Connection, concurrency: int
    ) -> None:
        """Never at once, never the older value last; each wish has its own key."""
        expired = facts.certified_mentor(facts.organisation(), YESTERDAY)
        another = FlakyPortal()

        def renew_and_deliver(number: int) -> None:
            if number == 1:
                Facts(other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
                review(other)
                deliver(other, another)

        portal = DisturbedPortal(renew_and_deliver)

        report = night(connection, ways_out=delivery(portal=portal, concurrency=concurrency))

        ((event_id,),) = facts.rows("SELECT id FROM portal_sync_events")
        assert another.calls == []
        assert portal.values == [False, True]
        assert [key for _, _, key in portal.calls] == [f"{event_id}-1", f"{event_id}-2"]
        assert portal.overlaps == []
        assert facts.rows(EVENT) == [(True, 2, "delivered", 1, True, True)]
        assert report.portal is not None
        assert (report.portal.delivered, report.portal.lost) == (1, 0)

    def test_many_changes_of_mind_end_with_the_last(
        self, connection: Connection, other: Connection, hidden: UUID
    ) -> None:
        """Wishes between two calls are not pushed at all."""

        def change(number: int) -> None:
            if number <= 3:
                queue_wish(other, hidden, visible=number % 2 == 0)
                queue_wish(other, hidden, visible=number % 2 == 1)

        portal = DisturbedPortal(change)

        deliver(connection, portal)

        assert portal.values == [False, True, False, True]
        assert list(portal.visible.values()) == [True]

    @pytest.mark.parametrize("error", [RESET, REFUSED], ids=["transient", "refused"])
    def test_the_failure_of_the_older_wish_is_nobodys(
        self, connection: Connection, facts: Facts, other: Connection, hidden: UUID, error: PortalCallError
    ) -> None:
        """Neither blocked, nor put off, nor an alert: the newer wish has not been tried yet."""

        def change(number: int) -> None:
            if number == 1:
                queue_wish(other, hidden, visible=True)
            if number <= 3 and portal.values[-1] is False:
                raise error

        portal = DisturbedPortal(change)

        report = deliver(connection, portal)

        assert portal.values[-1] is True
        assert facts.rows(EVENT)[0][:3] == (True, 2, "delivered")
        assert facts.rows(FAILURE) == []
        assert report.outcome == "ok"

    def test_a_success_of_the_older_wish_resolves_nothing(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        """The alert stays until the newer wish is on the portal."""
        queue_wish(connection, mentor, visible=True)
        push(connection, RESET)
        make_due(facts)
        event = claim_one(connection)
        queue_wish(connection, mentor, visible=False)

        assert push(connection, event=event) is Answer.RAISED

        assert facts.rows(FAILURE) == [("transient", 3, "reset", False)]
        alert = (False, "Dynamics sync pending — mentor may still be visible on portal")
        assert facts.rows("SELECT visible, sentence FROM portal_alerts") == [alert]


class TestFailures:
    """What could not be pushed is kept, counted and shown, until it is."""

    def test_rounds_add_up_in_one_row_until_the_next_success_resolves_it(
        self, connection: Connection, facts: Facts, hidden: UUID
    ) -> None:
        """3 calls, then 6; the last answer's id is kept; a later failure is a row of its own."""
        push(connection, RESET)
        times = "SELECT id, created_at, last_failed_at FROM dynamics_sync_failures"
        first = facts.rows(times)[0]
        make_due(facts)
        push(connection, TransientPortalError("503 dynamics_unavailable", correlation_id="abc-1"))
        assert facts.rows(FAILURE) == [("transient", 6, "503 dynamics_unavailable", False)]
        second = facts.rows(times)[0]
        assert second[:2] == first[:2]
        assert second[2] > first[2]  # type: ignore[operator]
        ((event, attempts),) = facts.rows("SELECT id, attempts FROM portal_sync_events")
        assert attempts == 2
        about = "SELECT event_id, visible, correlation_id FROM dynamics_sync_failures"
        assert facts.rows(about) == [(event, False, "abc-1")]

        make_due(facts)
        push(connection)
        resolved = ("transient", 6, "503 dynamics_unavailable", True)
        assert facts.rows(FAILURE) == [resolved]
        assert facts.rows("SELECT status, last_error FROM portal_sync_events") == [("delivered", None)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]

        resolved_at = "SELECT resolved_at FROM dynamics_sync_failures ORDER BY id LIMIT 1"
        before = facts.rows(resolved_at)
        queue_wish(connection, hidden, visible=True)
        push(connection, TransientPortalError("again"))
        assert facts.rows(FAILURE) == [resolved, ("transient", 3, "again", False)]
        make_due(facts)
        push(connection)
        assert facts.rows(resolved_at) == before

    @pytest.mark.parametrize(("rounds", "minutes"), [(1, 15), (2, 30), (5, 240), (6, 360), (40, 360)])
    def test_the_delay_doubles_up_to_six_hours(
        self, connection: Connection, facts: Facts, hidden: UUID, rounds: int, minutes: int
    ) -> None:
        connection.execute("UPDATE portal_sync_events SET attempts = %s", (rounds - 1,))

        push(connection, RESET)

        assert round_delay_seconds(rounds) == minutes * 60
        delay = "SELECT attempts, round(extract(epoch FROM next_attempt_at - now()) / 60) FROM portal_sync_events"
        assert facts.rows(delay) == [(rounds, minutes)]
        assert claim(connection) == []

    def test_a_lost_lease_writes_nothing(self, connection: Connection, facts: Facts, hidden: UUID) -> None:
        """Neither a failure nor a delay: the other run's outcome counts. It is reported."""
        event = claim_one(connection)
        run_out(facts)
        theirs = claim_one(connection)
        counts = PortalCounts()

        answer = service(connection).settle(push_once(event, FlakyPortal(failures=99)), counts)

        assert answer is Answer.LOST
        assert (counts.lost, counts.failed) == (1, 0)
        assert facts.rows("SELECT claim_token, attempts FROM portal_sync_events") == [(theirs.claim_token, 2)]
        assert facts.rows(FAILURE) == []


class TestHeld:
    """The app keeps a row locked, for as long as it likes."""

    def test_a_failure_whose_mentor_is_held_gets_its_row_a_try_later(
        self, connection: Connection, facts: Facts, app: App, hidden: UUID
    ) -> None:
        """The event is settled at once; that it failed is counted."""
        app.execute("SELECT FROM mentors WHERE id = %s FOR UPDATE", (hidden,))

        report = deliver(connection, FlakyPortal(failures=99))

        assert report.outcome is Outcome.ATTENTION
        assert report.to_document()["portal"]["failed"] == 1
        assert facts.rows("SELECT status, claim_token FROM portal_sync_events") == [("pending", None)]
        assert facts.rows(FAILURE) == []
        app.rollback()
        make_due(facts)
        deliver(connection, FlakyPortal(failures=99))
        assert facts.rows("SELECT kind, attempts FROM dynamics_sync_failures") == [("transient", 3)]

    def test_an_event_that_is_held_is_left_to_its_lease(
        self, connection: Connection, facts: Facts, other: Connection, app: App
    ) -> None:
        """The others are settled, nobody waits long, and the push is repeated under the same key."""
        held, free = backlog(facts, 2)

        def hold(number: int) -> None:
            if number == 1:
                app.execute("SELECT FROM portal_sync_events ORDER BY id LIMIT 1 FOR UPDATE")

        portal = DisturbedPortal(hold)

        report = deliver(connection, portal)

        assert report.to_document()["portal"]["delivered"] == 1
        settled = "SELECT status, claim_token IS NULL FROM portal_sync_events ORDER BY id"
        assert facts.rows(settled) == [("pending", False), ("delivered", True)]
        app.rollback()
        run_out(facts)
        deliver(other, portal)
        assert [contact for contact, _, _ in portal.calls] == [held, free, held]
        assert portal.calls[0] == portal.calls[2]
        assert facts.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]

    def test_a_newer_wish_waits_for_that_lease_too(
        self, connection: Connection, facts: Facts, app: App, hidden: UUID
    ) -> None:
        """Nobody knows that the call has ended."""
        event = claim_one(connection)
        app.execute("SELECT FROM portal_sync_events FOR UPDATE")
        assert push(connection, event=event) is Answer.HELD
        app.rollback()

        queue_wish(connection, hidden, visible=True)

        assert claim(connection) == []
        run_out(facts)
        assert claim_one(connection).visible


class TestUnknownOutcome:
    """A call that may be acted on minutes later must not have the last word."""

    @pytest.fixture
    def shown_perhaps(self, connection: Connection, mentor: UUID) -> UUID:
        """A mentor whose show may still be under way in Dynamics, and who is to be hidden now."""
        queue_wish(connection, mentor, visible=True)
        push(connection, UNKNOWN)
        queue_wish(connection, mentor, visible=False)
        return mentor

    def test_the_opposite_value_is_confirmed_and_pushed_once_more_until_nothing_can_land(
        self, connection: Connection, facts: Facts, shown_perhaps: UUID
    ) -> None:
        """In five minutes, under another key; it counts as delivered, and is no alert. A quarter of an hour ends it."""
        first = claim_one(connection)
        counts = PortalCounts()

        service(connection).settle(push_once(first, FlakyPortal()), counts)

        assert counts.delivered == 1
        assert facts.rows(EVENT) == [(False, first.version + 1, "pending", 0, True, False)]
        delay = "SELECT round(extract(epoch FROM next_attempt_at - now()) / 60) FROM portal_sync_events"
        assert facts.rows(delay) == [(5,)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
        make_due(facts)
        second = claim_one(connection)
        assert second.idempotency_key != first.idempotency_key
        push(connection, event=second)
        assert facts.rows(STATUS) == [("pending",)]
        make_due(facts)
        connection.execute("UPDATE portal_sync_events SET unknown_shown_at = now() - interval '16 minutes'")
        push(connection)
        assert facts.rows(STATUS) == [("delivered",)]

    def test_it_is_noted_although_a_review_holds_the_event_meanwhile(
        self, connection: Connection, other: Connection, facts: Facts, app: App, mentor: UUID
    ) -> None:
        """That review wants the opposite; left to its lease, the show would be forgotten."""
        queue_wish(connection, mentor, visible=True)
        event = claim_one(connection)
        app.execute("SELECT FROM portal_sync_events FOR UPDATE")

        with in_background(lambda: push(other, UNKNOWN, event=event)):
            until(lambda: facts.rows(LONG_WAIT))
            app.rollback()

        assert facts.rows("SELECT unknown_shown_at IS NOT NULL FROM portal_sync_events") == [(True,)]

    def test_the_same_value_needs_no_repeat(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        queue_wish(connection, mentor, visible=True)
        push(connection, UNKNOWN)
        make_due(facts)

        push(connection)

        assert facts.rows(STATUS) == [("delivered",)]

    def test_it_concerns_the_contact_whatever_was_confirmed_meanwhile(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        """The repeat of the show succeeded, its event is over; the hide that comes next is a new one."""
        queue_wish(connection, mentor, visible=True)
        portal = FlakyPortal(failures=1, error=lambda: UNKNOWN)
        service(connection).settle(push_once(claim_one(connection), portal), PortalCounts())
        assert facts.rows(STATUS) == [("delivered",)]
        queue_wish(connection, mentor, visible=False)

        push(connection)

        events = "SELECT visible, version, status FROM portal_sync_events ORDER BY id"
        assert facts.rows(events) == [(True, 1, "delivered"), (False, 2, "pending")]

    def test_a_newer_wish_during_the_call_comes_first(
        self, connection: Connection, facts: Facts, shown_perhaps: UUID
    ) -> None:
        """It is due now, with a version of its own, and nothing was confirmed for it."""
        event = claim_one(connection)
        queue_wish(connection, shown_perhaps, visible=True)

        assert push(connection, event=event) is Answer.RAISED

        assert facts.rows(EVENT) == [(True, event.version + 1, "pending", 0, True, True)]


def test_a_mentor_without_a_contact_is_blocked_until_somebody_acts(connection: Connection, facts: Facts) -> None:
    """No call, a permanent failure of no attempt, an alert every night; corrected, the next night pushes it."""
    mentor = facts.certified_mentor(facts.organisation(), YESTERDAY, contact_id=None)
    portal = FlakyPortal()
    for _ in range(2):
        report = night(connection, portal=portal, channel=CollectingChannel())

        assert portal.calls == []
        assert facts.rows(EVENT)[0][:4] == (False, 1, "blocked", 1)
        assert facts.rows(FAILURE) == [("permanent", 0, "no dynamics_contact_id", False)]
        assert facts.rows("SELECT error, attempts FROM portal_alerts") == [("no dynamics_contact_id", 0)]
        assert (report.outcome, report.portal_blocked) == ("attention", 1)

    contact = uuid4()
    connection.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (contact, mentor))
    report = night(connection, portal=portal, channel=CollectingChannel())
    assert portal.visible == {contact: False}
    assert facts.rows(FAILURE) == [("permanent", 0, "no dynamics_contact_id", True)]
    assert report.outcome == "ok"


class TestPortalLost:
    """An organisation leaves the portal while pushes are open."""

    @pytest.fixture(params=[RESET, REFUSED], ids=["pending", "blocked"])
    def open_push(self, request: pytest.FixtureRequest, connection: Connection, facts: Facts) -> None:
        """A hide that failed."""
        facts.certified_mentor(facts.organisation(), YESTERDAY)
        night(connection, portal=FlakyPortal(failures=99, error=lambda: request.param))

    @pytest.mark.usefixtures("open_push")
    def test_only_the_review_withdraws_them(self, connection: Connection, facts: Facts) -> None:
        """Resolved, no alert, no call; the job between the nights leaves them alone and counts nothing."""
        make_due(facts)
        connection.execute("UPDATE organisations SET portal = NULL")
        portal = FlakyPortal()
        before = facts.rows("SELECT status, attempts, claim_token FROM portal_sync_events")

        between = deliver(connection, portal)

        assert facts.rows("SELECT status, attempts, claim_token FROM portal_sync_events") == before
        assert between.portal == PortalCounts()
        report = night(connection, portal=portal, channel=CollectingChannel())
        assert portal.calls == []
        assert facts.rows("SELECT status, claim_token FROM portal_sync_events") == [("withdrawn", None)]
        assert facts.rows("SELECT resolved_at IS NOT NULL FROM dynamics_sync_failures") == [(True,)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
        assert facts.rows("SELECT portal_visible FROM mentors") == [(None,)]
        assert report.outcome == "ok"

    def test_withdrawn_in_the_middle_of_the_call_is_no_lost_lease(
        self, connection: Connection, facts: Facts, other: Connection, hidden: UUID
    ) -> None:
        """Nobody took over: the portal is not wanted any more, and the run needs nobody."""

        def lose_the_portal(_number: int) -> None:
            other.execute("UPDATE organisations SET portal = NULL")
            review(other)

        report = deliver(connection, DisturbedPortal(lose_the_portal))

        assert facts.rows(STATUS) == [("withdrawn",)]
        assert report.portal == PortalCounts()
        assert report.outcome is Outcome.OK

    @pytest.mark.usefixtures("open_push")
    def test_a_hide_that_was_withdrawn_is_wanted_again_when_the_mentor_returns(
        self, connection: Connection, facts: Facts
    ) -> None:
        """Moved to an organisation without a portal and back: the portal may still show the mentor, so it is told."""
        elsewhere = facts.organisation("nhf", portal=None)
        ((home,),) = facts.rows("SELECT organisation_id FROM mentors")
        connection.execute("UPDATE mentors SET organisation_id = %s", (elsewhere,))
        night(connection)
        assert facts.rows(STATUS) == [("withdrawn",)]
        connection.execute("UPDATE mentors SET organisation_id = %s", (home,))
        portal = FlakyPortal()

        night(connection, portal=portal)

        assert [visible for _, visible, _ in portal.calls] == [False]

    def test_withdrawing_locks_in_the_order_of_everybody_else(
        self, connection: Connection, facts: Facts, other: Connection, app: App
    ) -> None:
        """While it waits for the first mentor's event it holds none of the later ones."""
        backlog(facts, 30)
        mentors = [row[0] for row in facts.rows("SELECT mentor_id FROM portal_sync_events ORDER BY mentor_id DESC")]
        app.execute("SELECT 1 FROM portal_sync_events WHERE mentor_id = %s FOR NO KEY UPDATE", (mentors[-1],))

        def withdraw() -> None:
            with database.transaction(connection):
                service(connection).withdraw([mentor_id for mentor_id in mentors if isinstance(mentor_id, UUID)])

        with in_background(withdraw):
            until(lambda: waits_for_a_lock(other, connection))
            app.execute("SELECT 1 FROM portal_sync_events FOR NO KEY UPDATE NOWAIT")
            app.commit()

        assert facts.rows("SELECT DISTINCT status FROM portal_sync_events") == [("withdrawn",)]


EVENT_2 = PortalEvent(
    id=4711,
    mentor_id=uuid4(),
    member_no="M1042",
    visible=False,
    version=2,
    attempts=2,
    claim_token=uuid4(),
    contact_id=uuid4(),
    has_portal=True,
)


class TestRound:
    """One round for one event."""

    def test_every_repeat_has_the_same_key_and_the_error_says_when_it_is_tried_again(self) -> None:
        portal = FlakyPortal(failures=99)

        error = push_once(EVENT_2, portal).error

        assert [key for _, _, key in portal.calls] == ["4711-2"] * 3
        assert error is not None
        assert error.retry_at is not None
        assert timedelta(minutes=29) < error.retry_at - datetime.now(UTC) <= timedelta(minutes=30)
        assert all(part in str(error) for part in ("M1042", "after 3 calls", "connection reset"))

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (
                lambda: REFUSED,
                "check the contact ID in the app and the contact in Dynamics, then run the same command again",
            ),
            (lambda: PortalStageError("401 unauthorized"), "portal cannot be pushed to: 401 unauthorized"),
            (lambda: TransientPortalError("429 throttled", retry_after_seconds=21), "after 1 call: 429 throttled"),
        ],
        ids=["refused", "out of order", "long Retry-After"],
    )
    def test_what_a_repeat_cannot_mend_is_not_repeated(self, make: Callable[[], PortalCallError], says: str) -> None:
        """One call, and the next step."""
        portal = FlakyPortal(failures=99, error=make)

        error = push_once(EVENT_2, portal).error

        assert error is not None
        assert len(portal.calls) == error.attempts == 1
        assert says in str(error)

    def test_an_unforeseen_error_is_not_disguised(self) -> None:
        def broken(_number: int) -> None:
            message = "a bug"
            raise LookupError(message)

        with pytest.raises(LookupError, match="a bug"):
            push_once(EVENT_2, DisturbedPortal(broken))


class TestStageEnd:
    """When a stage ends early, no open hide waits unseen."""

    def test_every_open_hide_gets_a_row(self, connection: Connection, facts: Facts, app: App) -> None:
        """Shows do not; a later end adds no row, but gives its reason. A locked mentor holds nothing up."""
        backlog(facts, 3)
        backlog(facts, 1, visible=True)
        app.execute("SELECT 1 FROM mentors LIMIT 1 FOR UPDATE")

        end_stage(connection, "portal: 401 unauthorized")
        end_stage(connection, "portal: something else")

        rows = facts.rows("SELECT visible, kind, attempts, error FROM dynamics_sync_failures")
        assert rows == [(False, "stage", 0, "portal: something else")] * 2

    def test_the_mentors_own_failure_says_more(self, connection: Connection, facts: Facts, hidden: UUID) -> None:
        """It takes over a stage's row, and is left alone by a later one."""
        end_stage(connection)
        push(connection, RESET)
        end_stage(connection)

        assert facts.rows(FAILURE) == [("transient", 3, "reset", False)]

    def test_without_a_portal_there_is_nothing_to_see(self, connection: Connection, facts: Facts, hidden: UUID) -> None:
        connection.execute("UPDATE organisations SET portal = NULL")

        end_stage(connection)

        assert facts.rows(FAILURE) == []

    def test_no_row_outlives_a_delivery_that_is_just_being_settled(
        self, connection: Connection, facts: Facts, app: App, hidden: UUID
    ) -> None:
        """Another run has pushed the event and not committed yet; it could not resolve a row made beside it."""
        app.execute("UPDATE portal_sync_events SET status = 'delivered', delivered_at = now()")

        end_stage(connection)
        app.commit()

        assert facts.rows(FAILURE) == []


class TestAlerts:
    """The view that the command and the app read."""

    def test_a_wish_from_a_clock_that_was_ahead_is_shown_and_pushed(self, connection: Connection, facts: Facts) -> None:
        """The server's clock was wrong for a moment: nobody waits a year for it."""
        backlog(facts, 1)
        connection.execute(
            "UPDATE portal_sync_events SET wanted_at = now() + interval '1 y', next_attempt_at = now() + interval '1 y'"
        )
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(1,)]
        portal = FlakyPortal()

        deliver(connection, portal)

        assert len(portal.calls) == 1

    def test_what_waits_for_an_hour_is_shown(self, connection: Connection, facts: Facts) -> None:
        """With or without a failure; hides first, oldest first, each with its sentence."""
        organisation = facts.organisation()
        for number, (visible, minutes) in enumerate([(True, 90), (False, 61), (False, 62), (False, 59), (True, 59)]):
            connection.execute(
                "INSERT INTO portal_sync_events (mentor_id, visible, wanted_at)"
                " VALUES (%s, %s, now() - make_interval(mins => %s))",
                (facts.mentor(organisation, member_no=f"M{number}"), visible, minutes),
            )

        assert facts.rows("SELECT member_no, sentence FROM portal_alerts") == [
            ("M2", "Dynamics sync pending — mentor may still be visible on portal"),
            ("M1", "Dynamics sync pending — mentor may still be visible on portal"),
            ("M0", "Dynamics sync pending — mentor may still be hidden on portal"),
        ]
