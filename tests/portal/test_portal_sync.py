"""The saga of portal visibility: what is queued, pushed, settled and shown, whatever comes in between."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import (
    DynamicsSyncException,
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
from tests.support.intents import DisturbedPortal, backlog, make_due, queue_wish, review, run_out
from tests.support.nights import (
    CollectingChannel,
    FlakyPortal,
    NoProgress,
    delivery,
    in_background,
    night,
)
from tests.support.stages import push_once
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

YESTERDAY = TODAY - timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)

EVENT = (
    "SELECT visible, version, status, attempts, claim_token IS NULL, next_attempt_at <= now() FROM portal_sync_events"
)
LONG_WAIT = (
    "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    " AND clock_timestamp() - query_start > interval '700 ms'"
)
FAILURE = "SELECT kind, attempts, error, resolved_at IS NOT NULL FROM dynamics_sync_failures ORDER BY id"


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    """A mentor of HLF without anything queued."""
    return facts.mentor(facts.organisation(), member_no="M1042")


def service(connection: Connection) -> PortalSyncService:
    return PortalSyncService(connection, run_id=uuid4())


def claim_one(connection: Connection) -> PortalEvent:
    ((event, _),) = service(connection).claim(100)
    return event


def deliver(connection: Connection, portal: FlakyPortal | DisturbedPortal, *, concurrency: int = 1) -> RunReport:
    """The delivery half alone, as cron starts it between the nights."""
    return nightly.deliver(
        connection,
        today=TODAY,
        delivery=delivery(portal=portal, concurrency=concurrency),
        stop=StopFlag(),
        progress=NoProgress(),
    )


def push(connection: Connection, event: PortalEvent, error: PortalCallError | None = None) -> PortalCounts:
    """Make one round for a claimed event, in which every call fails with the error, and settle it."""
    portal = FlakyPortal(failures=99 if error else 0, error=lambda: error or TransientPortalError("never"))
    counts = PortalCounts()
    service(connection).settle(push_once(event, portal), counts)
    return counts


class TestCoalescing:
    """There is at most one open event per mentor; a new wish replaces it."""

    def test_a_first_wish_is_an_event(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """Due now."""
        queue_wish(connection, mentor, visible=False)

        assert facts.rows(EVENT) == [(False, 1, "pending", 0, True, True)]

    def test_a_wish_is_part_of_the_callers_transaction(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        """Rolled back with the state it follows from."""
        with connection.transaction(force_rollback=True):
            service(connection).queue([(mentor, False)])

        assert facts.rows(EVENT) == []

    def test_a_new_wish_replaces_a_free_one(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """One row, a version more."""
        queue_wish(connection, mentor, visible=False)

        queue_wish(connection, mentor, visible=True)

        assert facts.rows(EVENT) == [(True, 2, "pending", 0, True, True)]

    def test_a_new_wish_does_not_wait_for_the_retry_of_the_old_one(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        """Rounds begin anew, and the old error is not the new wish's."""
        queue_wish(connection, mentor, visible=False)
        push(connection, claim_one(connection), TransientPortalError("reset"))

        queue_wish(connection, mentor, visible=True)

        assert facts.rows(EVENT) == [(True, 2, "pending", 0, True, True)]
        assert facts.rows("SELECT last_error FROM portal_sync_events") == [(None,)]

    def test_a_live_lease_is_kept(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """Token and time stay, so that no second call starts beside the first."""
        queue_wish(connection, mentor, visible=False)
        event = claim_one(connection)
        before = facts.rows("SELECT claim_token, next_attempt_at FROM portal_sync_events")

        queue_wish(connection, mentor, visible=True)

        assert facts.rows("SELECT claim_token, next_attempt_at FROM portal_sync_events") == before
        assert before[0][0] == event.claim_token
        assert facts.rows("SELECT visible, version, attempts FROM portal_sync_events") == [(True, 2, 0)]
        assert service(connection).claim(100) == []

    def test_a_lease_that_ran_out_is_not_kept(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """Whoever had it is gone or has lost it."""
        queue_wish(connection, mentor, visible=False)
        claim_one(connection)
        run_out(facts)

        queue_wish(connection, mentor, visible=True)

        assert facts.rows(EVENT) == [(True, 2, "pending", 0, True, True)]

    def test_a_blocked_event_is_reopened(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """Its failure stays visible until a push succeeds."""
        queue_wish(connection, mentor, visible=False)
        push(connection, claim_one(connection), PermanentPortalError("404 contact_not_found"))

        queue_wish(connection, mentor, visible=False)

        assert facts.rows(EVENT) == [(False, 2, "pending", 0, True, True)]
        assert facts.rows(FAILURE) == [("permanent", 1, "404 contact_not_found", False)]

    @pytest.mark.parametrize("end", ["delivered", "withdrawn"])
    def test_after_the_end_of_one_event_comes_another(
        self, connection: Connection, facts: Facts, mentor: UUID, end: str
    ) -> None:
        """What is over stays as it was."""
        queue_wish(connection, mentor, visible=False)
        connection.execute("UPDATE portal_sync_events SET status = %s", (end,))

        queue_wish(connection, mentor, visible=True)

        assert facts.rows("SELECT visible, version, status FROM portal_sync_events ORDER BY id") == [
            (False, 1, end),
            (True, 1, "pending"),
        ]


class TestOrder:
    """Untried hides, untried shows, retried hides, retried shows."""

    @pytest.fixture
    def queued(self, connection: Connection, facts: Facts) -> list[UUID]:
        """Four mentors whose events were queued in the wrong order; their ids in the right one."""
        organisation = facts.organisation()
        mentors = [facts.mentor(organisation) for _ in range(4)]
        for mentor_id, (visible, attempts) in zip(mentors, [(True, 2), (False, 3), (True, 0), (False, 0)], strict=True):
            connection.execute(
                "INSERT INTO portal_sync_events (mentor_id, visible, attempts) VALUES (%s, %s, %s)",
                (mentor_id, visible, attempts),
            )
        return mentors[::-1]

    def test_one_claim_is_in_that_order(self, connection: Connection, queued: list[UUID]) -> None:
        """As the stage takes them."""
        assert [event.mentor_id for event, _ in service(connection).claim(100)] == queued

    def test_claims_are_in_that_order(self, connection: Connection, queued: list[UUID]) -> None:
        """The database gives the most harmful first."""
        assert [service(connection).claim(1)[0][0].mentor_id for _ in queued] == queued

    def test_calls_are_in_that_order(self, connection: Connection, facts: Facts, queued: list[UUID]) -> None:
        """So that nobody uncertified waits for somebody who comes back."""
        portal = FlakyPortal()

        deliver(connection, portal)

        contacts = {row[0]: row[1] for row in facts.rows("SELECT id, dynamics_contact_id FROM mentors")}
        assert [contact for contact, _, _ in portal.calls] == [contacts[mentor_id] for mentor_id in queued]


class TestOppositeWish:
    """A newer wish comes while a call is on its way."""

    @pytest.fixture
    def expired(self, facts: Facts) -> UUID:
        return facts.certified_mentor(facts.organisation(), YESTERDAY)

    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_it_is_pushed_next_in_the_same_run(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID, concurrency: int
    ) -> None:
        """Never at once, never the older value last; each wish has its own key."""

        def renew(number: int) -> None:
            if number == 1:
                Facts(other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
                review(other)

        portal = DisturbedPortal(renew)

        report = night(connection, ways_out=delivery(portal=portal, concurrency=concurrency))

        event_id = facts.rows("SELECT id FROM portal_sync_events")[0][0]
        assert portal.values == [False, True]
        assert [key for _, _, key in portal.calls] == [f"{event_id}-1", f"{event_id}-2"]
        assert portal.overlaps == []
        assert facts.rows(EVENT) == [(True, 2, "delivered", 1, True, True)]
        assert report.portal is not None
        assert (report.portal.delivered, report.portal.lost) == (1, 0)

    def test_another_run_does_not_push_it_meanwhile(
        self, connection: Connection, other: Connection, expired: UUID
    ) -> None:
        """The lease of the call in flight stands: guarantee one."""
        another = FlakyPortal()

        def renew_and_deliver(number: int) -> None:
            if number == 1:
                Facts(other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
                review(other)
                deliver(other, another)

        portal = DisturbedPortal(renew_and_deliver)

        night(connection, portal=portal)

        assert another.calls == []
        assert portal.values == [False, True]

    def test_many_changes_of_mind_end_with_the_last(
        self, connection: Connection, other: Connection, mentor: UUID
    ) -> None:
        """Wishes between two calls are not pushed at all."""
        queue_wish(connection, mentor, visible=False)

        def change(number: int) -> None:
            if number <= 3:
                queue_wish(other, mentor, visible=number % 2 == 0)
                queue_wish(other, mentor, visible=number % 2 == 1)

        portal = DisturbedPortal(change)

        deliver(connection, portal)

        assert portal.values == [False, True, False, True]
        assert list(portal.visible.values()) == [True]

    @pytest.mark.parametrize(
        "error",
        [TransientPortalError("reset"), PermanentPortalError("404 contact_not_found")],
        ids=["transient", "refused"],
    )
    def test_the_failure_of_the_older_wish_is_nobodys(
        self, connection: Connection, facts: Facts, other: Connection, mentor: UUID, error: PortalCallError
    ) -> None:
        """Neither blocked, nor put off, nor an alert: the newer wish has not been tried yet."""
        queue_wish(connection, mentor, visible=False)

        def change(number: int) -> None:
            if number == 1:
                queue_wish(other, mentor, visible=True)
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
        push(connection, claim_one(connection), TransientPortalError("reset"))
        make_due(facts)
        event = claim_one(connection)
        queue_wish(connection, mentor, visible=False)

        push(connection, event)

        assert facts.rows(FAILURE) == [("transient", 3, "reset", False)]
        assert facts.rows("SELECT visible, sentence FROM portal_alerts") == [
            (False, "Dynamics sync pending — mentor may still be visible on portal")
        ]


class TestFailures:
    """What could not be pushed is kept, counted and shown, until it is."""

    def test_rounds_add_up_in_one_row(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """3 calls, then 6; the time of the last failure moves, the time of the first does not."""
        queue_wish(connection, mentor, visible=False)
        push(connection, claim_one(connection), TransientPortalError("reset"))
        first = facts.rows("SELECT id, created_at, last_failed_at FROM dynamics_sync_failures")[0]
        make_due(facts)

        push(connection, claim_one(connection), TransientPortalError("503 dynamics_unavailable"))

        assert facts.rows(FAILURE) == [("transient", 6, "503 dynamics_unavailable", False)]
        second = facts.rows("SELECT id, created_at, last_failed_at FROM dynamics_sync_failures")[0]
        assert second[:2] == first[:2]
        assert second[2] > first[2]  # type: ignore[operator]
        assert facts.rows("SELECT attempts FROM portal_sync_events") == [(2,)]

    def test_the_next_success_resolves_it(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """By UPDATE; the delivered event has no error any more."""
        queue_wish(connection, mentor, visible=False)
        push(connection, claim_one(connection), TransientPortalError("reset"))
        make_due(facts)

        counts = push(connection, claim_one(connection))

        assert counts.delivered == 1
        assert facts.rows(FAILURE) == [("transient", 3, "reset", True)]
        assert facts.rows("SELECT status, last_error FROM portal_sync_events") == [("delivered", None)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]

    def test_a_later_failure_is_a_row_of_its_own(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """What is resolved stays resolved."""
        queue_wish(connection, mentor, visible=False)
        push(connection, claim_one(connection), TransientPortalError("reset"))
        make_due(facts)
        push(connection, claim_one(connection))
        queue_wish(connection, mentor, visible=True)

        push(connection, claim_one(connection), TransientPortalError("again"))

        assert facts.rows(FAILURE) == [("transient", 3, "reset", True), ("transient", 3, "again", False)]
        resolved_at = facts.rows("SELECT resolved_at FROM dynamics_sync_failures ORDER BY id")[0]
        make_due(facts)
        push(connection, claim_one(connection))
        assert facts.rows("SELECT resolved_at FROM dynamics_sync_failures ORDER BY id")[0] == resolved_at

    def test_the_correlation_id_is_kept(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """The last one, to be looked up in the function's log; and the event it was about."""
        queue_wish(connection, mentor, visible=False)
        event = claim_one(connection)

        push(connection, event, TransientPortalError("500", correlation_id="abc-1"))

        assert facts.rows("SELECT event_id, visible, correlation_id FROM dynamics_sync_failures") == [
            (event.id, False, "abc-1")
        ]

    @pytest.mark.parametrize(
        ("rounds", "minutes"), [(1, 15), (2, 30), (3, 60), (4, 120), (5, 240), (6, 360), (7, 360), (40, 360)]
    )
    def test_the_delay_doubles_up_to_six_hours(
        self, connection: Connection, facts: Facts, mentor: UUID, rounds: int, minutes: int
    ) -> None:
        """15 min × 2^(rounds − 1); until then nobody claims it."""
        queue_wish(connection, mentor, visible=False)
        connection.execute("UPDATE portal_sync_events SET attempts = %s", (rounds - 1,))

        push(connection, claim_one(connection), TransientPortalError("reset"))

        assert round_delay_seconds(rounds) == minutes * 60
        assert facts.rows(
            "SELECT attempts, next_attempt_at - now() BETWEEN make_interval(mins => %s, secs => -30)"
            " AND make_interval(mins => %s) FROM portal_sync_events",
            minutes,
            minutes,
        ) == [(rounds, True)]
        assert service(connection).claim(100) == []

    def test_a_lost_lease_writes_nothing(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """Neither a failure nor a delay: the other run's outcome counts. It is reported."""
        queue_wish(connection, mentor, visible=False)
        event = claim_one(connection)
        run_out(facts)
        theirs = claim_one(connection)

        counts = push(connection, event, TransientPortalError("reset"))

        assert (counts.lost, counts.failed) == (1, 0)
        assert facts.rows("SELECT claim_token, attempts FROM portal_sync_events") == [(theirs.claim_token, 2)]
        assert facts.rows(FAILURE) == []


class TestHeld:
    """The app keeps a row locked, for as long as it likes."""

    def test_a_failure_whose_mentor_is_held_gets_its_row_a_try_later(
        self, connection: Connection, facts: Facts, app: App, mentor: UUID
    ) -> None:
        """The event is settled at once; that it failed is counted."""
        queue_wish(connection, mentor, visible=False)
        app.execute("SELECT FROM mentors WHERE id = %s FOR UPDATE", (mentor,))

        report = deliver(connection, FlakyPortal(failures=99))

        assert report.outcome is Outcome.ATTENTION
        assert report.portal is not None
        assert report.portal.failed == 1
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

        assert report.portal is not None
        assert report.portal.delivered == 1
        assert facts.rows("SELECT status, claim_token IS NULL FROM portal_sync_events ORDER BY id") == [
            ("pending", False),
            ("delivered", True),
        ]
        app.rollback()
        run_out(facts)
        deliver(other, portal)
        assert [contact for contact, _, _ in portal.calls] == [held, free, held]
        assert portal.calls[0] == portal.calls[2]
        assert facts.rows("SELECT DISTINCT status FROM portal_sync_events") == [("delivered",)]

    def test_a_newer_wish_waits_for_that_lease_too(
        self, connection: Connection, facts: Facts, app: App, mentor: UUID
    ) -> None:
        """Nobody knows that the call has ended."""
        queue_wish(connection, mentor, visible=False)
        event = claim_one(connection)
        app.execute("SELECT FROM portal_sync_events FOR UPDATE")
        assert service(connection).settle(push_once(event, FlakyPortal()), PortalCounts()) is Answer.HELD
        app.rollback()

        queue_wish(connection, mentor, visible=True)

        assert service(connection).claim(100) == []
        run_out(facts)
        assert claim_one(connection).visible


class TestUnknownOutcome:
    """A call that may be acted on minutes later must not have the last word."""

    UNKNOWN = TransientPortalError("504 outcome_unknown", code=FailureCode.OUTCOME_UNKNOWN)

    @pytest.fixture
    def shown_perhaps(self, connection: Connection, mentor: UUID) -> UUID:
        """A mentor whose show may still be under way in Dynamics, and who is to be hidden now."""
        queue_wish(connection, mentor, visible=True)
        push(connection, claim_one(connection), self.UNKNOWN)
        queue_wish(connection, mentor, visible=False)
        return mentor

    def test_the_opposite_value_is_confirmed_and_pushed_once_more(
        self, connection: Connection, facts: Facts, shown_perhaps: UUID
    ) -> None:
        """In five minutes, under another key; it counts as delivered, and is no alert."""
        first = claim_one(connection)

        counts = push(connection, first)

        assert counts.delivered == 1
        assert facts.rows(EVENT) == [(False, first.version + 1, "pending", 0, True, False)]
        assert facts.rows(
            "SELECT next_attempt_at - now() BETWEEN interval '290 s' AND interval '5 min' FROM portal_sync_events"
        ) == [(True,)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
        make_due(facts)
        assert claim_one(connection).idempotency_key != first.idempotency_key

    def test_it_ends_with_a_push_after_a_quarter_of_an_hour(
        self, connection: Connection, facts: Facts, shown_perhaps: UUID
    ) -> None:
        """By then nothing can land any more, whatever was confirmed in between."""
        for _ in range(2):
            push(connection, claim_one(connection))
            make_due(facts)
        connection.execute("UPDATE portal_sync_events SET unknown_shown_at = now() - interval '16 minutes'")

        push(connection, claim_one(connection))

        assert facts.rows("SELECT status FROM portal_sync_events") == [("delivered",)]

    def test_it_is_noted_although_a_review_holds_the_event_meanwhile(
        self, connection: Connection, other: Connection, facts: Facts, app: App, mentor: UUID
    ) -> None:
        """That review wants the opposite; left to its lease, the show would be forgotten."""
        queue_wish(connection, mentor, visible=True)
        event = claim_one(connection)
        app.execute("SELECT FROM portal_sync_events FOR UPDATE")

        with in_background(lambda: push(other, event, self.UNKNOWN)):
            until(lambda: facts.rows(LONG_WAIT))
            app.rollback()

        assert facts.rows("SELECT unknown_shown_at IS NOT NULL FROM portal_sync_events") == [(True,)]

    def test_the_same_value_needs_no_repeat(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """A late show after a show changes nothing."""
        queue_wish(connection, mentor, visible=True)
        push(connection, claim_one(connection), self.UNKNOWN)
        make_due(facts)

        push(connection, claim_one(connection))

        assert facts.rows("SELECT status FROM portal_sync_events") == [("delivered",)]

    def test_it_concerns_the_contact_whatever_was_confirmed_meanwhile(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        """The repeat of the show succeeded, its event is over; the hide that comes next is a new one."""
        queue_wish(connection, mentor, visible=True)
        portal = FlakyPortal(failures=1, error=lambda: self.UNKNOWN)
        service(connection).settle(push_once(claim_one(connection), portal), PortalCounts())
        assert facts.rows("SELECT status FROM portal_sync_events") == [("delivered",)]
        queue_wish(connection, mentor, visible=False)

        push(connection, claim_one(connection))

        assert facts.rows("SELECT visible, version, status FROM portal_sync_events ORDER BY id") == [
            (True, 1, "delivered"),
            (False, 2, "pending"),
        ]

    def test_a_newer_wish_during_the_call_comes_first(
        self, connection: Connection, facts: Facts, shown_perhaps: UUID
    ) -> None:
        """It is due now, with a version of its own, and nothing was confirmed for it."""
        event = claim_one(connection)
        queue_wish(connection, shown_perhaps, visible=True)

        counts = push(connection, event)

        assert counts.delivered == 0
        assert facts.rows(EVENT) == [(True, event.version + 1, "pending", 0, True, True)]


class TestNoContact:
    """A mentor whom the portal cannot know."""

    def test_it_is_blocked_without_a_call(self, connection: Connection, facts: Facts) -> None:
        """A permanent failure of no attempt, and an alert."""
        facts.certified_mentor(facts.organisation(), YESTERDAY, contact_id=None)
        portal = FlakyPortal()

        report = night(connection, portal=portal, channel=CollectingChannel())

        assert portal.calls == []
        assert facts.rows(EVENT)[0][:3] == (False, 1, "blocked")
        assert facts.rows(FAILURE) == [("permanent", 0, "no dynamics_contact_id", False)]
        assert facts.rows("SELECT error, attempts FROM portal_alerts") == [("no dynamics_contact_id", 0)]
        assert report.outcome == "attention"

    def test_it_stays_blocked_until_somebody_acts(self, connection: Connection, facts: Facts) -> None:
        """The next nights do not try again, but say so."""
        facts.certified_mentor(facts.organisation(), YESTERDAY, contact_id=None)
        night(connection, portal=FlakyPortal())

        report = night(connection, portal=FlakyPortal(), channel=CollectingChannel())

        assert facts.rows("SELECT attempts FROM portal_sync_events") == [(1,)]
        assert report.portal_blocked == 1
        assert report.outcome == "attention"

    def test_a_corrected_contact_is_pushed_the_next_night(self, connection: Connection, facts: Facts) -> None:
        """The failure is resolved."""
        mentor_id = facts.certified_mentor(facts.organisation(), YESTERDAY, contact_id=None)
        night(connection, portal=FlakyPortal())
        contact = uuid4()
        connection.execute("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", (contact, mentor_id))
        portal = FlakyPortal()

        report = night(connection, portal=portal, channel=CollectingChannel())

        assert portal.visible == {contact: False}
        assert facts.rows(FAILURE) == [("permanent", 0, "no dynamics_contact_id", True)]
        assert report.outcome == "ok"


class TestPortalLost:
    """An organisation leaves the portal while pushes are open."""

    @pytest.fixture(params=["pending", "blocked"])
    def open_push(self, request: pytest.FixtureRequest, connection: Connection, facts: Facts) -> str:
        """A hide that failed, and its status."""
        status: str = request.param
        error = {"pending": TransientPortalError, "blocked": PermanentPortalError}[status]
        facts.certified_mentor(facts.organisation(), YESTERDAY)
        night(connection, portal=FlakyPortal(failures=99, error=lambda: error("no")))
        assert facts.rows("SELECT status FROM portal_sync_events") == [(status,)]
        return status

    def test_until_the_review_they_are_left_alone(self, connection: Connection, facts: Facts) -> None:
        """Claimed and given back they would be due again at once, all day long."""
        backlog(facts, 2)
        connection.execute("UPDATE organisations SET portal = NULL")

        assert service(connection).claim(100) == []

    def test_the_review_withdraws_them(self, connection: Connection, facts: Facts, open_push: str) -> None:
        """Resolved, no alert, no call."""
        connection.execute("UPDATE organisations SET portal = NULL")
        portal = FlakyPortal()

        report = night(connection, portal=portal, channel=CollectingChannel())

        assert portal.calls == []
        assert facts.rows("SELECT status, claim_token FROM portal_sync_events") == [("withdrawn", None)]
        assert facts.rows("SELECT resolved_at IS NOT NULL FROM dynamics_sync_failures") == [(True,)]
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
        assert report.outcome == "ok"

    def test_the_claim_leaves_it_to_the_review(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """Without a review in between: no call, nothing counted; the next night withdraws it."""
        queue_wish(connection, mentor, visible=False)
        push(connection, claim_one(connection), TransientPortalError("reset"))
        make_due(facts)
        connection.execute("UPDATE organisations SET portal = NULL")
        portal = FlakyPortal()

        report = deliver(connection, portal)

        assert portal.calls == []
        assert facts.rows("SELECT status, claim_token, attempts FROM portal_sync_events") == [("pending", None, 1)]
        assert report.portal is not None
        assert (report.portal.delivered, report.portal.lost, report.outcome) == (0, 0, "ok")
        night(connection, portal=portal)
        assert facts.rows("SELECT status FROM portal_sync_events") == [("withdrawn",)]
        assert facts.rows(FAILURE) == [("transient", 3, "reset", True)]

    def test_withdrawn_in_the_middle_of_the_call_is_no_lost_lease(
        self, connection: Connection, facts: Facts, other: Connection, mentor: UUID
    ) -> None:
        """Nobody took over: the portal is not wanted any more, and the run needs nobody."""
        queue_wish(connection, mentor, visible=False)

        def lose_the_portal(_number: int) -> None:
            other.execute("UPDATE organisations SET portal = NULL")
            review(other)

        report = deliver(connection, DisturbedPortal(lose_the_portal))

        assert facts.rows("SELECT status FROM portal_sync_events") == [("withdrawn",)]
        assert report.portal is not None
        assert (report.portal.lost, report.portal.delivered, report.outcome) == (0, 0, Outcome.OK)

    def test_a_hide_that_was_withdrawn_is_wanted_again_when_the_mentor_returns(
        self, connection: Connection, facts: Facts, open_push: str
    ) -> None:
        """Moved to an organisation without a portal and back: the portal may still show the mentor, so it is told."""
        elsewhere = facts.organisation("nhf", portal=None)
        home = facts.rows("SELECT organisation_id FROM mentors")[0][0]
        connection.execute("UPDATE mentors SET organisation_id = %s", (elsewhere,))
        night(connection)
        assert facts.rows("SELECT status FROM portal_sync_events") == [("withdrawn",)]
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


class TestPushEvent:
    """One round for one event."""

    def pushed(
        self, portal: FlakyPortal, *, contact_id: UUID | None = None, attempts: int = 1
    ) -> DynamicsSyncException:
        event = PortalEvent(
            id=4711,
            mentor_id=uuid4(),
            member_no="M1042",
            visible=False,
            version=2,
            attempts=attempts,
            claim_token=uuid4(),
            contact_id=contact_id or uuid4(),
            has_portal=True,
        )
        error = push_once(event, portal).error
        assert error is not None
        return error

    def test_every_repeat_has_the_same_key(self) -> None:
        """``<event id>-<version>``."""
        portal = FlakyPortal(failures=99)

        self.pushed(portal)

        assert [key for _, _, key in portal.calls] == ["4711-2"] * 3

    def test_the_exception_says_when_it_is_tried_again(self) -> None:
        """After the delay of its round."""
        error = self.pushed(FlakyPortal(failures=99), attempts=2)

        assert error.retry_at is not None
        assert timedelta(minutes=29) < error.retry_at - datetime.now(UTC) <= timedelta(minutes=30)
        assert "M1042" in str(error)
        assert "after 3 calls" in str(error)
        assert "connection reset" in str(error)

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (
                lambda: PermanentPortalError("404 contact_not_found"),
                "correct dynamics_contact_id, then `certjob resync M1042`",
            ),
            (lambda: PortalStageError("401 unauthorized"), "portal cannot be pushed to: 401 unauthorized"),
            (lambda: TransientPortalError("429 throttled", retry_after_seconds=21), "after 1 call: 429 throttled"),
        ],
        ids=["refused", "out of order", "long Retry-After"],
    )
    def test_what_a_repeat_cannot_mend_is_not_repeated(self, make: Callable[[], PortalCallError], says: str) -> None:
        """One call, and the next step."""
        portal = FlakyPortal(failures=99, error=make)

        error = self.pushed(portal)

        assert len(portal.calls) == error.attempts == 1
        assert says in str(error)

    def test_an_unforeseen_error_is_not_disguised(self) -> None:
        """A bug is no portal trouble."""

        def broken(_number: int) -> None:
            message = "a bug"
            raise LookupError(message)

        event = PortalEvent(
            id=1,
            mentor_id=uuid4(),
            member_no="M1",
            visible=False,
            version=1,
            attempts=1,
            claim_token=uuid4(),
            contact_id=uuid4(),
            has_portal=True,
        )

        with pytest.raises(LookupError, match="a bug"):
            push_once(event, DisturbedPortal(broken))


class TestStageEnd:
    """When a stage ends early, no open hide waits unseen."""

    def test_every_open_hide_gets_a_row(self, connection: Connection, facts: Facts) -> None:
        """Shows do not; a later end adds no row, but its reason is the one to read."""
        backlog(facts, 2)
        backlog(facts, 1, visible=True)

        service(connection).record_stage_end("portal: 401 unauthorized", code=FailureCode.PORTAL_KEY_REFUSED)
        service(connection).record_stage_end("portal: something else", code=FailureCode.BREAKER)

        assert (
            facts.rows("SELECT visible, kind, attempts, error FROM dynamics_sync_failures")
            == [(False, "stage", 0, "portal: something else")] * 2
        )

    def test_a_failure_that_is_there_already_is_left_alone(
        self, connection: Connection, facts: Facts, mentor: UUID
    ) -> None:
        """It says more."""
        queue_wish(connection, mentor, visible=False)
        push(connection, claim_one(connection), TransientPortalError("reset"))

        service(connection).record_stage_end("portal: deadline", code=FailureCode.DEADLINE)

        assert facts.rows(FAILURE) == [("transient", 3, "reset", False)]

    def test_the_calls_of_later_rounds_add_up_on_it(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """From a stage's row to the mentor's own."""
        queue_wish(connection, mentor, visible=False)
        service(connection).record_stage_end("portal: deadline", code=FailureCode.DEADLINE)

        push(connection, claim_one(connection), TransientPortalError("reset"))

        assert facts.rows(FAILURE) == [("transient", 3, "reset", False)]

    def test_without_a_portal_there_is_nothing_to_see(self, connection: Connection, facts: Facts, mentor: UUID) -> None:
        """The event is about to be withdrawn."""
        queue_wish(connection, mentor, visible=False)
        connection.execute("UPDATE organisations SET portal = NULL")

        service(connection).record_stage_end("portal: deadline", code=FailureCode.DEADLINE)

        assert facts.rows(FAILURE) == []

    def test_no_row_outlives_a_delivery_that_is_just_being_settled(
        self, connection: Connection, facts: Facts, app: App, mentor: UUID
    ) -> None:
        """Another run has pushed the event and not committed yet; it could not resolve a row made beside it."""
        queue_wish(connection, mentor, visible=False)
        app.execute("UPDATE portal_sync_events SET status = 'delivered', delivered_at = now()")

        service(connection).record_stage_end("portal: deadline", code=FailureCode.DEADLINE)
        app.commit()

        assert facts.rows(FAILURE) == []

    def test_a_locked_mentor_holds_nothing_up(self, connection: Connection, facts: Facts, app: App) -> None:
        """The app holds one row for as long as it likes; the others get theirs."""
        backlog(facts, 3)
        app.execute("SELECT 1 FROM mentors LIMIT 1 FOR UPDATE")

        service(connection).record_stage_end("portal: deadline", code=FailureCode.DEADLINE)

        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(2,)]


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
            mentor_id = facts.mentor(organisation, member_no=f"M{number}")
            connection.execute(
                "INSERT INTO portal_sync_events (mentor_id, visible, wanted_at)"
                " VALUES (%s, %s, now() - make_interval(mins => %s))",
                (mentor_id, visible, minutes),
            )

        assert facts.rows("SELECT member_no, sentence FROM portal_alerts") == [
            ("M2", "Dynamics sync pending — mentor may still be visible on portal"),
            ("M1", "Dynamics sync pending — mentor may still be visible on portal"),
            ("M0", "Dynamics sync pending — mentor may still be hidden on portal"),
        ]
