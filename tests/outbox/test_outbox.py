"""Claim, lease, settle: what holds between two sessions, whatever becomes of either."""

from uuid import uuid4

import psycopg
import pytest

from certjob.database import Connection, statements
from certjob.mail.reminder_mail import QueuedReminder
from certjob.outbox import claims
from certjob.outbox.claims import RELEASED, Answer, Outbox, Settlement
from certjob.portal.push import PortalEvent
from tests.support.facts import TODAY
from tests.support.nights import in_background
from tests.support.scene import Scene
from tests.support.waiting import until, waits_for_a_lock

DELIVERED = Settlement(status="delivered")
WHOLE_ROWS = "SELECT row_to_json(e)::text FROM portal_sync_events e ORDER BY id"


class PortalOutbox(Outbox[PortalEvent]):
    """An outbox of portal events that claims what is due."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection=connection, table="portal_events", item=PortalEvent, lease_seconds=120)

    def claim_due(self) -> list[PortalEvent]:
        return self.claim("lock_due_portal_events", {"limit": 100, "today": TODAY})[0]


@pytest.fixture
def mine(scene: Scene) -> PortalOutbox:
    """An outbox with one portal event in it."""
    scene.backlog(1)
    return PortalOutbox(scene.connection)


def test_a_claim_is_committed_and_holds_the_row_for_the_length_of_the_lease(mine: PortalOutbox, scene: Scene) -> None:
    """Another session sees it at once; the row is due again when the lease runs out, under another token."""
    (event,) = mine.claim_due()

    assert scene.connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
    leased = "next_attempt_at BETWEEN now() + interval '110 s' AND now() + interval '120 s'"
    seen = scene.app.execute(f"SELECT claim_token, attempts, {leased} FROM portal_sync_events".encode()).fetchone()
    assert seen == (event.claim_token, 1, True)
    assert (event.attempts, mine.claim_due()) == (1, [])
    scene.run_out()
    (again,) = mine.claim_due()
    assert (again.id, again.attempts) == (event.id, 2)
    assert again.claim_token != event.claim_token


@pytest.mark.parametrize("settlement", [DELIVERED, RELEASED], ids=["settled", "released"])
def test_without_the_token_nothing_is_written(mine: PortalOutbox, scene: Scene, settlement: Settlement) -> None:
    """Somebody took over after the lease: the row is as the other one left it. So with a row that is gone."""
    (event,) = mine.claim_due()
    scene.run_out()
    (taken_over,) = mine.claim_due()
    before = scene.rows(WHOLE_ROWS)
    assert mine.settle(event, settlement) is Answer.LOST
    assert scene.rows(WHOLE_ROWS) == before

    assert mine.settle(taken_over, DELIVERED) is Answer.SETTLED
    settled = "SELECT status, claim_token, delivered_at IS NOT NULL FROM portal_sync_events"
    assert scene.rows(settled) == [("delivered", None, True)]
    assert mine.settle(taken_over, settlement) is Answer.LOST
    scene.run_sql("DELETE FROM portal_sync_events")
    assert mine.settle(event, settlement) is Answer.LOST


def test_what_is_written_along_is_in_the_same_transaction_and_does_not_insist(mine: PortalOutbox, scene: Scene) -> None:
    """When it fails, or the app holds the row or what goes with it, the row keeps its token and its lease."""
    (event,) = mine.claim_due()
    before = scene.rows(WHOLE_ROWS)

    def write(answer: Answer) -> None:
        assert answer is Answer.SETTLED
        scene.run_sql("UPDATE mentors SET locale = 'en'")

    def fail(answer: Answer) -> None:
        write(answer)
        raise LookupError

    with pytest.raises(LookupError):
        mine.settle(event, DELIVERED, then=fail)
    for held in ("mentors", "portal_sync_events"):
        scene.app.execute(f"SELECT 1 FROM {held} FOR UPDATE".encode())
        assert mine.settle(event, DELIVERED, then=write, lock_timeout_ms=20) is Answer.HELD
        scene.app.rollback()

    assert (scene.rows(WHOLE_ROWS), scene.rows("SELECT locale FROM mentors")) == (before, [("nb",)])
    assert mine.settle(event, DELIVERED, then=write, lock_timeout_ms=20) is Answer.SETTLED
    assert scene.rows("SELECT locale FROM mentors") == [("en",)]


def test_without_a_limit_a_settle_waits_for_a_short_lock_and_gives_up_on_an_endless_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row keeps its lease then; the next claim after it repeats it.

    What was not begun is released as it was: a message that may have arrived is still said to be a repeat.
    """
    about = {"threshold_days": 30, "cert_id": uuid4(), "expires_on": TODAY, "maybe_sent": True}
    scene.facts.insert("cert_notification_log", mentor_id=scene.mentor(), **about)
    outbox = Outbox(connection=scene.connection, table="reminders", item=QueuedReminder, lease_seconds=900)
    ((reminder,), _) = outbox.claim("lock_due_reminders", {"today": TODAY})
    scene.app.execute("SELECT 1 FROM cert_notification_log FOR NO KEY UPDATE")
    with monkeypatch.context() as patch:
        patch.setattr(statements, "_WRITE_LOCK_TIMEOUT_MS", 20)
        with pytest.raises(psycopg.errors.LockNotAvailable):
            outbox.settle(reminder, RELEASED)
    answers: list[Answer] = []

    with in_background(lambda: answers.append(outbox.settle(reminder, RELEASED))):
        until(lambda: waits_for_a_lock(scene.other, scene.connection))
        scene.app.commit()

    assert answers == [Answer.SETTLED]
    released = "SELECT status, attempts, claim_token, next_attempt_at <= now(), maybe_sent FROM cert_notification_log"
    assert scene.rows(released) == [("pending", 0, None, True, True)]


def test_a_lease_is_counted_from_before_the_claim_was_sent(mine: PortalOutbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow claim shortens it: the database may have started the lease at once. Its clock never goes back."""
    moments, clock = iter([50.0, 150.0]), claims.lease_clock
    monkeypatch.setattr(claims, "lease_clock", lambda: next(moments))

    _, lease = mine.claim("lock_due_portal_events", {"limit": 1, "today": TODAY})

    assert lease.claimed_at == 50.0
    assert not lease.fits(20)
    earlier = clock()
    assert clock() >= earlier > 0
