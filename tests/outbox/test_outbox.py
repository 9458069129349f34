"""Claim, lease, settle: what holds between two sessions, whatever becomes of either."""

from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, statements
from certjob.mail.reminder_mail import QueuedReminder
from certjob.outbox import claims
from certjob.outbox.claims import RELEASED, Answer, Outbox, Settlement
from certjob.portal.push import PortalEvent
from tests.support.facts import TODAY, Facts
from tests.support.intents import backlog, run_out
from tests.support.nights import in_background
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

DELIVERED = Settlement(status="delivered")
SENT = Settlement(status="sent")
STATE = "SELECT status, attempts, claim_token, next_attempt_at <= now() FROM portal_sync_events ORDER BY id"
WHOLE_ROWS = "SELECT row_to_json(e)::text FROM portal_sync_events e ORDER BY id"


class PortalOutbox(Outbox[PortalEvent]):
    """An outbox of portal events that claims what is due."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, table="portal_events", item=PortalEvent, lease_seconds=120)

    def claim_due(self, *, limit: int = 100) -> list[PortalEvent]:
        return self.claim("lock_due_portal_events", {"limit": limit})[0]


@pytest.fixture
def mine(connection: Connection, facts: Facts) -> PortalOutbox:
    """An outbox with one portal event in it."""
    backlog(facts, 1)
    return PortalOutbox(connection)


@pytest.fixture
def reminders(connection: Connection, facts: Facts) -> tuple[Outbox[QueuedReminder], QueuedReminder]:
    """An outbox with one reminder, which may have been sent before, and is claimed."""
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, maybe_sent)"
        " VALUES (%s, 30, %s, %s, true)",
        (facts.mentor(facts.organisation()), uuid4(), TODAY),
    )
    outbox = Outbox(connection, table="reminders", item=QueuedReminder, lease_seconds=900)
    ((reminder,), _) = outbox.claim("lock_due_reminders", {"today": TODAY})
    return outbox, reminder


def test_a_claim_is_committed_and_holds_the_row_for_the_length_of_the_lease(
    mine: PortalOutbox, connection: Connection, facts: Facts, app: App
) -> None:
    """Another session sees it at once; the row is due again when the lease runs out, under another token."""
    (event,) = mine.claim_due()

    assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
    leased = "next_attempt_at BETWEEN now() + interval '110 s' AND now() + interval '120 s'"
    row = app.execute(f"SELECT claim_token, attempts, {leased} FROM portal_sync_events".encode()).fetchone()
    assert row == (event.claim_token, 1, True)
    assert event.attempts == 1
    assert mine.claim_due() == []
    run_out(facts)
    (again,) = mine.claim_due()
    assert (again.id, again.attempts) == (event.id, 2)
    assert again.claim_token != event.claim_token


class TestSettle:
    """A settle names its token and the version that it was claimed with."""

    @pytest.mark.parametrize("settlement", [DELIVERED, RELEASED], ids=["settled", "released"])
    def test_without_the_token_nothing_is_written(
        self, mine: PortalOutbox, facts: Facts, settlement: Settlement
    ) -> None:
        """Somebody took over after the lease: the row is as the other one left it. So with a row that is gone."""
        (event,) = mine.claim_due()
        run_out(facts)
        (taken_over,) = mine.claim_due()
        before = facts.rows(WHOLE_ROWS)
        assert mine.settle(event, settlement) is Answer.LOST
        assert facts.rows(WHOLE_ROWS) == before

        assert mine.settle(taken_over, DELIVERED) is Answer.SETTLED
        settled = "SELECT status, claim_token, delivered_at IS NOT NULL FROM portal_sync_events"
        assert facts.rows(settled) == [("delivered", None, True)]
        assert mine.settle(taken_over, settlement) is Answer.LOST
        facts.connection.execute("DELETE FROM portal_sync_events")
        assert mine.settle(event, settlement) is Answer.LOST

    def test_what_was_not_begun_is_released_as_it_was(
        self, mine: PortalOutbox, reminders: tuple[Outbox[QueuedReminder], QueuedReminder], facts: Facts
    ) -> None:
        """Due now, the attempt not counted; a message that may have arrived is still said to be a repeat."""
        (event,) = mine.claim_due()
        outbox, reminder = reminders

        assert mine.settle(event, RELEASED) is outbox.settle(reminder, RELEASED) is Answer.SETTLED

        assert facts.rows(STATE) == [("pending", 0, None, True)]
        assert facts.rows("SELECT status, attempts, maybe_sent FROM cert_notification_log") == [("pending", 0, True)]

    def test_what_is_written_along_is_in_the_same_transaction_and_does_not_insist(
        self, mine: PortalOutbox, connection: Connection, facts: Facts, app: App
    ) -> None:
        """When it fails, or the app holds the row or what goes with it, the row keeps its token and its lease."""
        (event,) = mine.claim_due()
        before = facts.rows(WHOLE_ROWS)

        def write(answer: Answer) -> None:
            assert answer is Answer.SETTLED
            connection.execute("UPDATE mentors SET locale = 'en'")

        def fail(answer: Answer) -> None:
            write(answer)
            raise LookupError

        with pytest.raises(LookupError):
            mine.settle(event, DELIVERED, then=fail)
        for held in ("mentors", "portal_sync_events"):
            app.execute(f"SELECT 1 FROM {held} FOR UPDATE".encode())
            assert mine.settle(event, DELIVERED, then=write, lock_timeout_ms=20) is Answer.HELD
            app.rollback()

        assert (facts.rows(WHOLE_ROWS), facts.rows("SELECT locale FROM mentors")) == (before, [("nb",)])
        assert mine.settle(event, DELIVERED, then=write, lock_timeout_ms=20) is Answer.SETTLED
        assert facts.rows("SELECT locale FROM mentors") == [("en",)]

    def test_without_one_it_waits_for_a_short_lock_and_gives_up_on_an_endless_one(
        self,
        reminders: tuple[Outbox[QueuedReminder], QueuedReminder],
        connection: Connection,
        app: App,
        database_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The row keeps its lease then; the next claim after it repeats it."""
        outbox, reminder = reminders
        app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")
        with monkeypatch.context() as patch:
            patch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 20)
            with pytest.raises(psycopg.errors.LockNotAvailable):
                outbox.settle(reminder, SENT)
        answers: list[Answer] = []

        with (
            database.connect(database_url) as observer,
            in_background(lambda: answers.append(outbox.settle(reminder, SENT))),
        ):
            until(lambda: waits_for_a_lock(observer, connection))
            app.commit()

        assert answers == [Answer.SETTLED]


def test_a_lease_is_counted_from_before_the_claim_was_sent(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow claim shortens it: the database may have started the lease at once. Its clock never goes back."""
    backlog(facts, 1)
    moments, clock = iter([50.0, 150.0]), claims.lease_clock
    monkeypatch.setattr(claims, "lease_clock", lambda: next(moments))

    _, lease = PortalOutbox(connection).claim("lock_due_portal_events", {"limit": 1})

    assert lease.claimed_at == 50.0
    assert not lease.fits(20)
    earlier = clock()
    assert clock() >= earlier > 0
