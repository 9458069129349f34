"""Claim, lease, settle: what holds between two sessions, whatever becomes of either."""

from collections.abc import Callable, Iterator
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


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection


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


def whole_rows(facts: Facts) -> Rows:
    return facts.rows("SELECT row_to_json(e)::text FROM portal_sync_events e ORDER BY id")


class TestClaim:
    """A claim is committed before anything is sent."""

    def test_another_session_sees_it_at_once(self, connection: Connection, facts: Facts, other: Connection) -> None:
        """No transaction is open when the caller gets the rows."""
        backlog(facts, 1)

        events, _ = PortalOutbox(connection).claim_due()

        assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
        row = other.execute("SELECT claim_token, attempts FROM portal_sync_events").fetchone()
        assert row == (events[0].claim_token, 1)
        assert events[0].attempts == 1

    def test_it_holds_the_row_for_the_length_of_the_lease(self, connection: Connection, facts: Facts) -> None:
        """The row is due again when the lease runs out, and not before."""
        backlog(facts, 1)

        PortalOutbox(connection, lease_seconds=120).claim_due()

        assert facts.rows(
            "SELECT next_attempt_at BETWEEN now() + interval '110 s' AND now() + interval '120 s'"
            " FROM portal_sync_events"
        ) == [(True,)]
        assert PortalOutbox(connection).claim_due()[0] == []

    def test_each_claim_has_a_token_of_its_own(self, connection: Connection, facts: Facts) -> None:
        """Also when it takes over a row whose lease ran out; the attempt is counted again."""
        backlog(facts, 1)
        first, _ = PortalOutbox(connection).claim_due()
        run_out(facts)

        second, _ = PortalOutbox(connection).claim_due()

        assert first[0].id == second[0].id
        assert first[0].claim_token != second[0].claim_token
        assert second[0].attempts == 2

    def test_it_takes_no_more_than_it_was_asked_for(self, connection: Connection, facts: Facts) -> None:
        """The rest is untouched."""
        backlog(facts, 5)

        events, _ = PortalOutbox(connection).claim_due(limit=2)

        assert len(events) == 2
        assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE claim_token IS NULL AND attempts = 0") == [
            (3,)
        ]

    @pytest.mark.parametrize("status", ["blocked", "delivered", "withdrawn"])
    def test_only_pending_rows_are_claimed(self, connection: Connection, facts: Facts, status: str) -> None:
        """And only when they are due."""
        backlog(facts, 2)
        first, second = (row[0] for row in facts.rows("SELECT id FROM portal_sync_events"))
        connection.execute("UPDATE portal_sync_events SET status = %s WHERE id = %s", (status, first))
        connection.execute(
            "UPDATE portal_sync_events SET next_attempt_at = now() + interval '1 minute' WHERE id = %s", (second,)
        )

        assert PortalOutbox(connection).claim_due()[0] == []

    def test_rows_that_another_session_is_claiming_are_left_to_it(
        self, connection: Connection, facts: Facts, app: App
    ) -> None:
        """It does not wait for them."""
        backlog(facts, 4)
        app.execute("SELECT id FROM portal_sync_events ORDER BY id LIMIT 3 FOR NO KEY UPDATE")

        events, _ = PortalOutbox(connection).claim_due()

        assert [event.id for event in events] == [facts.rows("SELECT max(id) FROM portal_sync_events")[0][0]]

    def test_two_sessions_share_a_backlog_without_sharing_a_row(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """Both claim as fast as they can; every row is claimed by exactly one of them."""
        backlog(facts, 400)
        mine: list[int] = []
        theirs: list[int] = []

        def claim_all(session: Connection, taken: list[int]) -> None:
            while events := PortalOutbox(session).claim_due(limit=3)[0]:
                taken.extend(event.id for event in events)

        with in_background(lambda: claim_all(other, theirs)):
            claim_all(connection, mine)

        assert len(mine) + len(theirs) == 400
        assert set(mine).isdisjoint(theirs)


class TestSettle:
    """A settle names its token and gets one of three answers."""

    def test_without_the_token_nothing_is_written(self, connection: Connection, facts: Facts) -> None:
        """Somebody took over after the lease: the row is as the other one left it."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()
        run_out(facts)
        PortalOutbox(connection).claim_due()
        before = whole_rows(facts)

        assert mine.settle(events[0], DELIVERED) is Answer.LOST

        assert whole_rows(facts) == before

    def test_a_row_that_is_gone_is_lost(self, connection: Connection, facts: Facts) -> None:
        """Its mentor was deleted meanwhile."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()
        connection.execute("UPDATE portal_sync_events SET status = 'withdrawn', claim_token = NULL")
        connection.execute("DELETE FROM portal_sync_events")

        assert mine.settle(events[0], DELIVERED) is Answer.LOST

    def test_a_settle_is_lost_the_second_time(self, connection: Connection, facts: Facts) -> None:
        """The token is used up."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()
        mine.settle(events[0], DELIVERED)

        assert mine.settle(events[0], DELIVERED) is Answer.LOST

    def test_an_unchanged_row_takes_the_new_status(self, connection: Connection, facts: Facts) -> None:
        """Token gone, times written."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()

        assert mine.settle(events[0], DELIVERED) is Answer.SETTLED

        assert facts.rows("SELECT status, claim_token, delivered_at IS NOT NULL FROM portal_sync_events") == [
            ("delivered", None, True)
        ]

    def test_a_row_raised_meanwhile_is_pending_and_due_now(self, connection: Connection, facts: Facts) -> None:
        """Whatever the call brought: the newer value is still to be delivered, and is nobody's any more."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()
        queue_wish(connection, events[0].mentor_id, visible=True)

        settlement = Settlement(status="delivered", delay_seconds=900, error="an old story")
        assert mine.settle(events[0], settlement) is Answer.RAISED

        assert facts.rows(STATE) == [("pending", 0, None, True)]
        assert facts.rows("SELECT visible, delivered_at, last_error FROM portal_sync_events") == [(True, None, None)]

    def test_what_is_written_along_is_in_the_same_transaction(self, connection: Connection, facts: Facts) -> None:
        """When it fails, the row keeps its token and its lease."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()
        before = whole_rows(facts)

        def fail(answer: Answer) -> None:
            assert answer is Answer.SETTLED
            message = "no"
            raise RuntimeError(message)

        with pytest.raises(RuntimeError, match="no"):
            mine.settle(events[0], DELIVERED, then=fail)

        assert whole_rows(facts) == before


class TestRelease:
    """What was claimed and not begun goes back as it was."""

    def test_it_is_due_now_and_the_attempt_is_not_counted(self, connection: Connection, facts: Facts) -> None:
        """Another run may take it at once."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()

        assert mine.settle(events[0], RELEASED) is Answer.SETTLED

        assert facts.rows(STATE) == [("pending", 0, None, True)]

    def test_a_lost_one_is_left_alone(self, connection: Connection, facts: Facts) -> None:
        """The other run's claim stands."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        events, _ = mine.claim_due()
        run_out(facts)
        PortalOutbox(connection).claim_due()
        before = whole_rows(facts)

        assert mine.settle(events[0], RELEASED) is Answer.LOST
        assert whole_rows(facts) == before


class TestWithALockTimeout:
    """A settle meets another session that holds its row: the app corrects a contact, and takes its time."""

    def test_it_does_not_insist(self, connection: Connection, facts: Facts, app: App) -> None:
        """The row keeps its token and its lease, what goes with it is not written either; it can be settled later."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
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

    def test_what_goes_with_it_may_be_held_as_well(self, connection: Connection, facts: Facts, app: App) -> None:
        """Then the whole is taken back."""
        backlog(facts, 1)
        mine = PortalOutbox(connection)
        ((event,), _) = mine.claim_due()
        before = whole_rows(facts)
        app.execute("SELECT 1 FROM mentors FOR UPDATE")

        def lock_the_mentor(_answer: Answer) -> None:
            connection.execute("SELECT 1 FROM mentors FOR UPDATE")

        assert mine.settle(event, DELIVERED, then=lock_the_mentor, lock_timeout_ms=20) is Answer.HELD
        assert whole_rows(facts) == before


class TestWaiting:
    """A settle of reminders meets a short transaction over the same row."""

    def test_it_gives_up_when_a_lock_is_never_released(
        self, connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The rows keep their lease; the next claim after it repeats them."""
        monkeypatch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 20)
        mine = reminder_outbox(connection, facts)
        (reminder,), _ = mine.claim("lock_due_reminders", EVERY_REMINDER)
        app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")

        with pytest.raises(psycopg.errors.LockNotAvailable):
            mine.settle(reminder, SENT)

        app.rollback()
        assert mine.settle(reminder, SENT) is Answer.SETTLED

    def test_it_waits_for_a_short_one(self, connection: Connection, facts: Facts, other: Connection, app: App) -> None:
        """And then it is settled."""
        mine = reminder_outbox(connection, facts)
        (reminder,), _ = mine.claim("lock_due_reminders", EVERY_REMINDER)
        app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")
        answers: list[Answer] = []

        with in_background(lambda: answers.append(mine.settle(reminder, SENT))):
            until(lambda: waits_for_a_lock(other, connection))
            app.commit()

        assert answers == [Answer.SETTLED]


EVERY_REMINDER: dict[str, object] = {"limit": 100, "today": TODAY}


def reminder_outbox(connection: Connection, facts: Facts) -> Outbox[QueuedReminder]:
    """An outbox with one reminder in it."""
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, maybe_sent)"
        " VALUES (%s, 30, %s, %s, true)",
        (facts.mentor(facts.organisation()), uuid4(), TODAY),
    )
    return Outbox(connection, table="reminders", item=QueuedReminder, lease_seconds=900)


class TestLease:
    """Nothing is started that cannot end inside its lease."""

    @pytest.mark.parametrize(
        ("passed_seconds", "worst_case_seconds", "fits"),
        [(0, 130, True), (169.9, 130, True), (170, 130, False), (200, 130, False), (299, 0.5, True), (301, 0, False)],
    )
    def test_the_worst_case_must_fit_into_what_is_left(
        self, passed_seconds: float, worst_case_seconds: float, fits: bool
    ) -> None:
        """Counted from before the claim was sent."""
        lease = Lease(claimed_at=1_000, seconds=300, clock=lambda: 1_000 + passed_seconds)

        assert lease.fits(worst_case_seconds) is fits

    def test_it_is_counted_from_before_the_claim_was_sent(self, connection: Connection, facts: Facts) -> None:
        """A slow claim shortens it: the database may have started the lease at once."""
        backlog(facts, 1)
        moments = iter([50.0, 250.0])
        mine = PortalOutbox(connection, clock=lambda: next(moments))

        _, lease = mine.claim_due()

        assert lease.claimed_at == 50.0
        assert not lease.fits(130)

    def test_its_clock_goes_on_while_the_machine_sleeps(self) -> None:
        """Where the system has such a clock; it never goes back."""
        earlier = claims.lease_clock()

        assert claims.lease_clock() >= earlier > 0


def test_a_released_reminder_keeps_what_is_known_about_it(connection: Connection, facts: Facts) -> None:
    """A message that may have arrived is still said to be a repeat."""
    mine = reminder_outbox(connection, facts)

    (reminder,), _ = mine.claim("lock_due_reminders", EVERY_REMINDER)

    mine.settle(reminder, RELEASED)

    assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [("pending", 0, True)]
