"""Claim, lease, settle: what holds between two sessions, whatever becomes of either."""

from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements
from certjob.mail.reminder_mail import QueuedReminder
from certjob.outbox import claims
from certjob.outbox.claims import RELEASED, Answer, Lease, Outbox, Settlement
from certjob.portal.push import PortalEvent
from tests.support.facts import TODAY, Facts
from tests.support.intents import backlog, queue_wish, run_out
from tests.support.nights import in_background
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]
Rows = list[tuple[object, ...]]

STATE = "SELECT status, attempts, claim_token, next_attempt_at <= now() FROM portal_sync_events ORDER BY id"


class PortalOutbox(Outbox[PortalEvent]):
    """An outbox of portal events that claims what is due."""

    def __init__(
        self, connection: Connection, *, lease_seconds: float = 300.0, clock: Callable[[], float] = claims.lease_clock
    ) -> None:
        super().__init__(connection, table="portal_events", item=PortalEvent, lease_seconds=lease_seconds, clock=clock)

    def claim_due(self, *, limit: int = 100) -> tuple[list[PortalEvent], Lease]:
        return self.claim("lock_due_portal_events", {"limit": limit})


DELIVERED = Settlement(status="delivered")
SENT = Settlement(status="sent")
EVERY_REMINDER: dict[str, object] = {"limit": 100, "today": TODAY}


@pytest.fixture
def mine(connection: Connection, facts: Facts) -> PortalOutbox:
    """An outbox with one portal event in it."""
    backlog(facts, 1)
    return PortalOutbox(connection)


@pytest.fixture
def reminders(connection: Connection, facts: Facts) -> Outbox[QueuedReminder]:
    """An outbox with one reminder in it, which may have been sent before."""
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, maybe_sent)"
        " VALUES (%s, 30, %s, %s, true)",
        (facts.mentor(facts.organisation()), uuid4(), TODAY),
    )
    return Outbox(connection, table="reminders", item=QueuedReminder, lease_seconds=900)


def whole_rows(facts: Facts) -> Rows:
    return facts.rows("SELECT row_to_json(e)::text FROM portal_sync_events e ORDER BY id")


class TestClaim:
    """A claim is committed before anything is sent."""

    def test_it_is_committed_and_holds_the_row_for_the_length_of_the_lease(
        self, connection: Connection, facts: Facts, app: App
    ) -> None:
        """Another session sees it at once; the row is due again when the lease runs out, and not before."""
        backlog(facts, 1)

        ((event,), _) = PortalOutbox(connection, lease_seconds=120).claim_due()

        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        leased = "next_attempt_at BETWEEN now() + interval '110 s' AND now() + interval '120 s'"
        row = app.execute(f"SELECT claim_token, attempts, {leased} FROM portal_sync_events".encode()).fetchone()
        assert row == (event.claim_token, 1, True)
        assert event.attempts == 1
        assert PortalOutbox(connection).claim_due()[0] == []

    def test_each_claim_has_a_token_of_its_own(self, mine: PortalOutbox, facts: Facts) -> None:
        """Also when it takes over a row whose lease ran out; the attempt is counted again."""
        ((first,), _) = mine.claim_due()
        run_out(facts)

        ((second,), _) = mine.claim_due()

        assert first.id == second.id
        assert first.claim_token != second.claim_token
        assert second.attempts == 2

    @pytest.mark.parametrize("status", ["blocked", "delivered", "withdrawn"])
    def test_only_pending_rows_that_are_due_are_claimed(
        self, connection: Connection, facts: Facts, status: str
    ) -> None:
        """No more of them than was asked for; the rest is untouched."""
        backlog(facts, 5)
        connection.execute("UPDATE portal_sync_events SET status = %s WHERE id = 1", (status,))
        connection.execute("UPDATE portal_sync_events SET next_attempt_at = now() + interval '1 minute' WHERE id = 2")

        events, _ = PortalOutbox(connection).claim_due(limit=2)

        assert [event.id for event in events] == [3, 4]
        untouched = "SELECT id FROM portal_sync_events WHERE claim_token IS NULL AND attempts = 0 ORDER BY id"
        assert facts.rows(untouched) == [(1,), (2,), (5,)]

    def test_rows_that_another_session_is_claiming_are_left_to_it(
        self, connection: Connection, facts: Facts, app: App
    ) -> None:
        """It does not wait for them."""
        backlog(facts, 4)
        app.execute("SELECT id FROM portal_sync_events ORDER BY id LIMIT 3 FOR NO KEY UPDATE")

        events, _ = PortalOutbox(connection).claim_due()

        assert [event.id for event in events] == [4]

    def test_two_sessions_share_a_backlog_without_sharing_a_row(
        self, connection: Connection, facts: Facts, database_url: str
    ) -> None:
        """Both claim as fast as they can; every row is claimed by exactly one of them."""
        backlog(facts, 200)
        taken: list[int] = []

        def claim_all(session: Connection) -> None:
            while events := PortalOutbox(session).claim_due(limit=3)[0]:
                taken.extend(event.id for event in events)

        with database.connect(database_url) as other, in_background(lambda: claim_all(other)):
            claim_all(connection)

        assert sorted(taken) == list(range(1, 201))


class TestSettle:
    """A settle names its token and the version that it was claimed with."""

    @pytest.mark.parametrize("settlement", [DELIVERED, RELEASED], ids=["settled", "released"])
    def test_without_the_token_nothing_is_written(
        self, mine: PortalOutbox, facts: Facts, settlement: Settlement
    ) -> None:
        """Somebody took over after the lease: the row is as the other one left it. So with a row that is gone."""
        ((event,), _) = mine.claim_due()
        run_out(facts)
        mine.claim_due()
        before = whole_rows(facts)

        assert mine.settle(event, settlement) is Answer.LOST

        assert whole_rows(facts) == before
        facts.connection.execute("UPDATE portal_sync_events SET status = 'withdrawn', claim_token = NULL")
        facts.connection.execute("DELETE FROM portal_sync_events")
        assert mine.settle(event, settlement) is Answer.LOST

    def test_an_unchanged_row_takes_the_new_status_once(self, mine: PortalOutbox, facts: Facts) -> None:
        """Token gone, times written."""
        ((event,), _) = mine.claim_due()

        assert [mine.settle(event, DELIVERED) for _ in range(2)] == [Answer.SETTLED, Answer.LOST]

        settled = "SELECT status, claim_token, delivered_at IS NOT NULL FROM portal_sync_events"
        assert facts.rows(settled) == [("delivered", None, True)]

    def test_a_row_raised_meanwhile_is_pending_and_due_now(
        self, mine: PortalOutbox, connection: Connection, facts: Facts
    ) -> None:
        """Whatever the call brought: the newer value is still to be delivered, and is nobody's any more."""
        ((event,), _) = mine.claim_due()
        queue_wish(connection, event.mentor_id, visible=True)

        settlement = Settlement(status="delivered", delay_seconds=900, error="an old story")
        assert mine.settle(event, settlement) is Answer.RAISED

        assert facts.rows(STATE) == [("pending", 0, None, True)]
        assert facts.rows("SELECT visible, delivered_at, last_error FROM portal_sync_events") == [(True, None, None)]

    def test_what_is_written_along_is_in_the_same_transaction(self, mine: PortalOutbox, facts: Facts) -> None:
        """When it fails, the row keeps its token and its lease."""
        ((event,), _) = mine.claim_due()
        before = whole_rows(facts)

        def fail(answer: Answer) -> None:
            assert answer is Answer.SETTLED
            message = "no"
            raise RuntimeError(message)

        with pytest.raises(RuntimeError, match="no"):
            mine.settle(event, DELIVERED, then=fail)

        assert whole_rows(facts) == before

    def test_what_was_not_begun_is_released_as_it_was(
        self, mine: PortalOutbox, reminders: Outbox[QueuedReminder], facts: Facts
    ) -> None:
        """Due now, the attempt not counted; a message that may have arrived is still said to be a repeat."""
        ((event,), _) = mine.claim_due()
        ((reminder,), _) = reminders.claim("lock_due_reminders", EVERY_REMINDER)

        assert mine.settle(event, RELEASED) is Answer.SETTLED
        assert reminders.settle(reminder, RELEASED) is Answer.SETTLED

        assert facts.rows(STATE) == [("pending", 0, None, True)]
        assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [("pending", 0, True)]


class TestLocks:
    """A settle meets another session that holds its row: the app corrects a contact, and takes its time."""

    def test_with_a_lock_timeout_it_does_not_insist(self, mine: PortalOutbox, facts: Facts, app: App) -> None:
        """The row keeps its token and its lease, what goes with it is not written either; it can be settled later."""
        ((event,), _) = mine.claim_due()
        before = whole_rows(facts)
        app.execute("SELECT 1 FROM portal_sync_events FOR NO KEY UPDATE")
        answers: list[Answer] = []

        assert mine.settle(event, DELIVERED, then=answers.append, lock_timeout_ms=20) is Answer.HELD

        assert answers == []
        assert whole_rows(facts) == before
        app.rollback()
        assert mine.settle(event, DELIVERED, then=answers.append, lock_timeout_ms=20) is Answer.SETTLED
        assert answers == [Answer.SETTLED]

    def test_what_goes_with_it_may_be_held_as_well(
        self, mine: PortalOutbox, connection: Connection, facts: Facts, app: App
    ) -> None:
        """Then the whole is taken back."""
        ((event,), _) = mine.claim_due()
        before = whole_rows(facts)
        app.execute("SELECT 1 FROM mentors FOR UPDATE")

        def lock_the_mentor(_answer: Answer) -> None:
            connection.execute("SELECT 1 FROM mentors FOR UPDATE")

        assert mine.settle(event, DELIVERED, then=lock_the_mentor, lock_timeout_ms=20) is Answer.HELD
        assert whole_rows(facts) == before

    def test_without_one_it_waits_for_a_short_lock_and_gives_up_on_an_endless_one(
        self,
        reminders: Outbox[QueuedReminder],
        connection: Connection,
        app: App,
        database_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The row keeps its lease then; the next claim after it repeats it."""
        ((reminder,), _) = reminders.claim("lock_due_reminders", EVERY_REMINDER)
        app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")
        with monkeypatch.context() as patch:
            patch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 20)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                reminders.settle(reminder, SENT)
        answers: list[Answer] = []

        with (
            database.connect(database_url) as observer,
            in_background(lambda: answers.append(reminders.settle(reminder, SENT))),
        ):
            until(lambda: waits_for_a_lock(observer, connection))
            app.commit()

        assert answers == [Answer.SETTLED]


class TestLease:
    """Nothing is started that cannot end inside its lease."""

    @pytest.mark.parametrize(
        ("passed_seconds", "worst_case_seconds", "fits"),
        [(0, 130, True), (169.9, 130, True), (170, 130, False), (301, 0, False)],
    )
    def test_the_worst_case_must_fit_into_what_is_left(
        self, passed_seconds: float, worst_case_seconds: float, fits: bool
    ) -> None:
        lease = Lease(claimed_at=1_000, seconds=300, clock=lambda: 1_000 + passed_seconds)

        assert lease.fits(worst_case_seconds) is fits

    def test_it_is_counted_from_before_the_claim_was_sent(self, connection: Connection, facts: Facts) -> None:
        """A slow claim shortens it: the database may have started the lease at once."""
        backlog(facts, 1)
        moments = iter([50.0, 250.0])

        _, lease = PortalOutbox(connection, clock=lambda: next(moments)).claim_due()

        assert lease.claimed_at == 50.0
        assert not lease.fits(130)

    def test_its_clock_never_goes_back(self) -> None:
        earlier = claims.lease_clock()

        assert claims.lease_clock() >= earlier > 0
