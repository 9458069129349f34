"""Claims, leases and settles between two sessions."""

import psycopg
import pytest

from certjob.outbox import claims
from certjob.outbox.claims import RELEASED, Answer, Outbox, Settlement
from certjob.portal.push import PortalEvent
from tests.support.facts import TODAY
from tests.support.nights import in_background
from tests.support.scene import Scene
from tests.support.waiting import until, waits_for_a_lock

DELIVERED = Settlement(status="delivered")
NO_DAY: dict[str, object] = {"confirmed_until": None}
WHOLE_ROWS = "SELECT row_to_json(e)::text FROM portal_sync_events e ORDER BY id"


@pytest.fixture
def outbox(scene: Scene) -> Outbox[PortalEvent]:
    """An outbox with one portal event in it."""
    scene.backlog(1)
    return Outbox(
        connection=scene.connection,
        item=PortalEvent,
        claim_statement="claim_portal_events",
        settle_statement="settle_portal_events",
        lease_seconds=120,
    )


def test_claim_is_committed_and_reserves_the_row_for_the_lease(scene: Scene) -> None:
    """The lease of a push is 300 seconds. After it, the row is due again and gets another token."""
    scene.backlog(1)

    (event,) = scene.claim()

    assert scene.connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
    leased = "next_attempt_at BETWEEN now() + interval '290 s' AND now() + interval '300 s'"
    seen = scene.app.execute(f"SELECT claim_token, attempts, {leased} FROM portal_sync_events".encode()).fetchone()
    assert seen == (event.claim_token, 1, True)
    assert (event.attempts, scene.claim()) == (1, [])
    scene.expire_leases()
    (again,) = scene.claim()
    assert (again.id, again.attempts) == (event.id, 2)
    assert again.claim_token != event.claim_token


def test_settle_without_the_token_changes_no_row(outbox: Outbox[PortalEvent], scene: Scene) -> None:
    """Another process may have taken over or deleted the row."""
    (event,) = scene.claim()
    scene.expire_leases()
    (taken_over,) = scene.claim()
    before = scene.rows(WHOLE_ROWS)
    assert outbox.settle(event, DELIVERED, **NO_DAY) is Answer.LOST
    assert scene.rows(WHOLE_ROWS) == before

    assert outbox.settle(taken_over, DELIVERED, **NO_DAY) is Answer.SETTLED
    settled = "SELECT status, claim_token, delivered_at IS NOT NULL FROM portal_sync_events"
    assert scene.rows(settled) == [("delivered", None, True)]
    assert outbox.settle(taken_over, DELIVERED, **NO_DAY) is Answer.LOST
    scene.run_sql("DELETE FROM portal_sync_events")
    assert outbox.settle(taken_over, DELIVERED, **NO_DAY) is Answer.LOST


def test_settle_waits_for_a_short_lock(outbox: Outbox[PortalEvent], scene: Scene) -> None:
    """A released row is due at once, and its attempt does not count."""
    (event,) = scene.claim()
    scene.app.execute("SELECT 1 FROM portal_sync_events FOR NO KEY UPDATE")
    answers: list[Answer] = []

    with in_background(lambda: answers.append(outbox.settle(event, RELEASED, **NO_DAY))):
        until(lambda: waits_for_a_lock(scene.other, scene.connection))
        scene.app.commit()

    assert answers == [Answer.SETTLED]
    released = "SELECT status, attempts, claim_token, next_attempt_at <= now() FROM portal_sync_events"
    assert scene.rows(released) == [("pending", 0, None, True)]


def test_lease_begins_before_the_claim_is_sent(outbox: Outbox[PortalEvent], monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that takes 100 of the 120 seconds leaves less than 20, because the server may have claimed at once."""
    clock = iter([50.0, 150.0])
    monkeypatch.setattr(claims, "lease_clock", lambda: next(clock))

    (event,) = outbox.claim("lock_due_portal_events", {"limit": 1, "today": TODAY})

    assert event.lease.claimed_at == 50.0
    assert not event.lease.fits(20)
