"""The portal stage over real HTTP: when it continues, when it ends, and which pushes remain for the next run."""

import time
from collections import Counter
from dataclasses import replace
from datetime import date
from unittest import mock
from uuid import uuid4

import psycopg
import pytest

from certjob.errors import Outcome, StoppedBySignalError
from certjob.outbox import calls
from certjob.outbox.retry import RetryPolicy
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY
from tests.support.nights import in_background, pushes, quick_policy
from tests.support.portal_answers import Behaviour, PortalRequest, delay, during, error, hang, ok
from tests.support.scene import Scene

DEAD, REJECTED = error(500, "dynamics_unavailable"), error(404, "contact_not_found")
UNTOUCHED = "SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL"
CLAIMED = "SELECT count(*) FROM portal_sync_events WHERE claim_token IS NOT NULL AND next_attempt_at > now()"
FAILURES = "SELECT kind, count(*) FROM dynamics_sync_failures GROUP BY kind ORDER BY kind"
STATUSES = "SELECT status, count(*) FROM portal_sync_events GROUP BY status ORDER BY status"

IMPATIENT = replace(quick_policy(), longest_retry_after_seconds=0.2)
"""A Retry-After of more than 0.2 s is a long one, instead of more than 20 s."""


def test_backlog_is_delivered_a_few_calls_at_a_time(scene: Scene) -> None:
    """Each call fails twice. No two calls of a contact overlap."""
    contacts, requests = scene.backlog(12), scene.portal.requests
    scene.portal.decide = lambda request: delay(
        0.02, ok() if sum(each.contact_id == request.contact_id for each in requests) == 3 else DEAD
    )

    assert scene.run_stage(concurrency=4) is None

    assert Counter(request.contact_id for request in requests) == dict.fromkeys(contacts, 3)
    assert scene.portal.visible == dict.fromkeys(contacts, False)
    assert (scene.counts, scene.rows(STATUSES)) == (PortalCounts(delivered=12), [("delivered", 12)])
    assert (scene.portal.peak_in_flight, scene.portal.overlaps) == (4, [])


def test_pushes_go_out_in_the_order_of_urgency(scene: Scene) -> None:
    """Untried hides, untried shows, retried hides, retried shows, moves of the last day."""
    (move,), (retried_show,), (show,) = (scene.backlog(1, visible=True) for _ in range(3))
    (retried_hide,), (hide,) = (scene.backlog(1) for _ in range(2))
    attempted = "UPDATE portal_sync_events SET attempts = 2 FROM mentors AS m WHERE m.id = mentor_id"
    scene.run_sql(f"{attempted} AND dynamics_contact_id = ANY (%s)", [retried_show, retried_hide])
    scene.run_sql("UPDATE portal_sync_events SET sure_until = '2026-06-01' WHERE id = 1")

    scene.run_stage()

    expected = [hide, show, retried_hide, retried_show, move]
    assert [request.contact_id for request in scene.portal.requests] == expected


def test_claim_of_a_dead_process_is_no_attempt(scene: Scene) -> None:
    """The event keeps its place in the order."""
    scene.backlog(1)
    scene.claim()
    scene.expire_leases()

    scene.run_stage()

    assert scene.rows("SELECT status, attempts FROM portal_sync_events") == [("delivered", 1)]


def test_dead_portal_ends_the_stage(scene: Scene) -> None:
    """Five pushes in a row have failed. The other events are not touched, and every hide is an alert."""
    scene.backlog(20)
    scene.portal.default = DEAD

    assert scene.run_stage(concurrency=4) == "breaker"

    failed = scene.counts.failed
    assert scene.said.startswith("portal: 5 pushes in a row failed (last: the portal answered 500 dynamics_unav")
    assert 5 <= failed <= 8
    assert scene.rows(UNTOUCHED) == [(20 - failed,)]
    later = "attempts = 1 AND next_attempt_at > now() + interval '14 min'"
    assert scene.rows(f"SELECT count(*) FROM portal_sync_events WHERE {later}") == [(failed,)]
    assert scene.rows(FAILURES) == [("stage", 20 - failed), ("transient", failed)]


@pytest.mark.parametrize("fifth", [ok(), REJECTED], ids=["delivered", "rejected"])
def test_answer_of_the_portal_resets_the_count_of_failures(scene: Scene, fifth: Behaviour) -> None:
    """Four pushes fail, the fifth is answered, four fail."""
    contacts = scene.backlog(9)
    scene.portal.decide = lambda request: fifth if request.contact_id == contacts[4] else DEAD

    assert scene.run_stage() is None

    assert ("transient", 8) in scene.rows(FAILURES)


def test_wrong_key_ends_the_stage_and_blocks_no_one(scene: Scene) -> None:
    """No attempt is counted. The open hides are alerts with the correlation ID of the rejected call."""
    first, *_ = scene.backlog(30)
    scene.backlog(3, visible=True)
    scene.portal.decide = lambda request: ok() if request.contact_id == first else error(401, "unauthorized")

    assert scene.run_stage() == "key_refused"

    assert "; check CERTJOB_PORTAL_KEY" in scene.said
    assert len(scene.portal.requests) == 2
    assert (scene.counts, scene.portal.visible) == (PortalCounts(delivered=1), {first: False})
    assert (scene.rows(UNTOUCHED), scene.rows(STATUSES)) == ([(32,)], [("delivered", 1), ("pending", 32)])
    assert scene.rows(FAILURES) == [("stage", 29)]
    assert scene.rows("SELECT DISTINCT correlation_id FROM dynamics_sync_failures") == [("test-2",)]


@pytest.mark.parametrize(
    ("policy", "requests", "failures"),
    [
        pytest.param(quick_policy(), 4, [], id="before_another_attempt"),
        pytest.param(replace(quick_policy(), max_attempts=1), 3, [("transient", 1)], id="after_the_last_attempt"),
        pytest.param(IMPATIENT, 4, [], id="longer_than_a_round"),
    ],
)
def test_retry_after_delays_the_next_call(
    scene: Scene, policy: RetryPolicy, requests: int, failures: list[tuple[str, int]]
) -> None:
    """Also a call for another contact. A wait that is too long for a round is no failure and no attempt."""
    scene.backlog(3)
    scene.portal.then(error(429, "throttled", retry_after="0.3"))

    assert scene.run_stage(policy=policy) is None

    first, second, *_ = scene.portal.requests
    assert second.arrived_seconds - first.arrived_seconds >= 0.3
    assert len(scene.portal.requests) == requests
    assert scene.rows("SELECT DISTINCT attempts FROM portal_sync_events") == [(1,)]
    assert scene.rows(FAILURES) == failures


class Impatient(StopFlag):
    """Fails instead of a wait."""

    def sleep(self, seconds: float) -> None:
        raise TimeoutError(round(seconds))


@pytest.mark.parametrize(
    ("seconds", "deadline"),
    [pytest.param(601, 7200, id="more_than_10_minutes"), pytest.param(60, 30, id="beyond_the_deadline")],
)
def test_retry_after_that_is_too_long_ends_the_stage(scene: Scene, seconds: int, deadline: int) -> None:
    """The event is due after that time, and no attempt is counted."""
    scene.backlog(10)
    scene.portal.default = error(429, "throttled", retry_after=str(seconds))

    assert scene.run_stage(seconds=deadline, stop=Impatient()) == "retry_after"

    assert f"the portal asked to wait {seconds} s" in scene.said
    assert len(scene.portal.requests) == 1
    due = "SELECT max(extract(epoch FROM next_attempt_at - now())) FROM portal_sync_events"
    assert seconds - 5 < scene.rows(due)[0][0] <= seconds
    assert (scene.rows(UNTOUCHED), scene.rows(FAILURES)) == ([(10,)], [("stage", 10)])
    assert scene.counts.failed == 0


def test_stage_waits_if_the_portal_asks_for_ten_minutes(scene: Scene) -> None:
    scene.backlog(2)
    scene.portal.default = error(429, "throttled", retry_after="600")

    with pytest.raises(TimeoutError, match=r"^(599|600)$"):
        scene.run_stage(seconds=7200, stop=Impatient())


def test_deadline_ends_the_stage_after_the_calls_in_flight(scene: Scene) -> None:
    """The rest stays pending, and its hides are alerts."""
    scene.backlog(20)
    scene.portal.default = delay(0.3)

    assert scene.run_stage(seconds=0.5) == "deadline"

    delivered = scene.counts.delivered
    assert 1 <= delivered < 20
    assert (len(scene.portal.requests), len(scene.portal.visible)) == (delivered, delivered)
    assert (scene.rows(UNTOUCHED), scene.rows(FAILURES)) == ([(20 - delivered,)], [("stage", 20 - delivered)])


def test_no_call_starts_that_could_outlast_its_lease(scene: Scene) -> None:
    """A round can take longer than this lease."""
    scene.backlog(6)
    short = PortalSyncService(scene.connection, run_id=uuid4(), lease_seconds=100)

    assert scene.run_stage(service=short) == "lease"

    assert (scene.portal.requests, scene.rows(UNTOUCHED)) == ([], [(6,)])


@pytest.mark.parametrize(
    ("behaviours", "delivered", "claimed"),
    [
        pytest.param([delay(0.2)] * 3, 3, 0, id="calls_that_end_are_settled"),
        pytest.param([hang(), delay(0.2), delay(0.2)], 2, 1, id="call_that_hangs_keeps_its_lease"),
        pytest.param([error(429, "throttled", retry_after="15")] * 3, 0, 0, id="waits_are_interrupted"),
    ],
)
def test_signal_ends_the_stage(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, behaviours: list[Behaviour], delivered: int, claimed: int
) -> None:
    """The stage claims no more events, and releases those without an outcome."""
    monkeypatch.setattr(calls, "GRACE_SECONDS", 1.6 if claimed else 60)
    scene.backlog(10)
    scene.portal.then(*behaviours)
    stop, began = StopFlag(), time.monotonic()

    def run() -> None:
        with pytest.raises(StoppedBySignalError):
            scene.run_stage(stop=stop, seconds=3600, concurrency=3)

    with in_background(run):
        scene.portal.wait_until(lambda: len(scene.portal.requests) == 3)
        stop.set()

    assert time.monotonic() - began < 14
    assert scene.counts == PortalCounts(delivered=delivered)
    assert len(scene.portal.requests) == 3
    assert (scene.rows(UNTOUCHED), scene.rows(CLAIMED)) == ([(10 - delivered - claimed,)], [(claimed,)])
    assert scene.rows(FAILURES) == []


def test_event_claimed_during_a_signal_is_released(scene: Scene) -> None:
    """The stage asks for the day before each claim."""
    scene.backlog(3)
    stop = StopFlag()

    def today() -> date:
        stop.set()
        return TODAY

    with pytest.raises(StoppedBySignalError):
        scene.run_stage(stop=stop, today=today)

    assert (scene.portal.requests, scene.rows(UNTOUCHED)) == ([], [(3,)])


def test_slow_call_delays_no_other(scene: Scene) -> None:
    """The other calls are settled while it lasts."""
    slow, *others = scene.backlog(13)
    scene.portal.decide = lambda request: hang(ok()) if request.contact_id == slow else ok()

    def release(delivered: int) -> None:
        if delivered == len(others):
            scene.portal.release()

    assert scene.run_stage(concurrency=4, on_progress=release) is None

    assert scene.counts == PortalCounts(delivered=13)


def test_unexpected_error_leaves_one_outcome_unknown(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """That event keeps its lease. The run has failed, and the hides are alerts."""
    scene.backlog(10)
    second_fails = mock.AsyncMock(side_effect=[False, LookupError("a bug"), False])
    monkeypatch.setattr(HLFDynamicsSyncService, "update_portal_visibility", second_fails)

    with pushes(concurrency=3):
        report = scene.night(scene.portal)

    assert (report.outcome, report.portal.delivered) == (Outcome.FAILED, 2)
    assert (scene.rows(UNTOUCHED), scene.rows(CLAIMED)) == ([(7,)], [(1,)])
    assert scene.rows(FAILURES) == [("stage", 8)]


def test_push_of_a_lost_database_connection_is_settled(scene: Scene) -> None:
    """This needs a new connection. The job ends."""
    scene.backlog(1)
    lose_connection = "SELECT pg_terminate_backend(%s)", (scene.connection.info.backend_pid,)
    scene.portal.then(during(lambda: scene.app.execute(*lose_connection)))

    with pytest.raises(psycopg.errors.AdminShutdown):
        scene.run_stage()

    assert scene.other.execute("SELECT status FROM portal_sync_events").fetchone() == ("delivered",)


def test_push_of_a_lost_database_connection_is_settled_after_a_signal(scene: Scene) -> None:
    """Another push gets no answer, so the signal ends the wait for it."""
    stuck, ended = scene.backlog(2)
    stop = StopFlag()

    def decide(request: PortalRequest) -> Behaviour:
        if request.contact_id == stuck:
            return hang(ok())
        scene.app.execute("SELECT pg_terminate_backend(%s)", (scene.connection.info.backend_pid,))
        return ok()

    def interrupt(_done: int) -> None:
        stop.set()
        stop.is_urgent = True

    scene.portal.decide = decide
    with pytest.raises(StoppedBySignalError):
        scene.run_stage(concurrency=2, stop=stop, on_progress=interrupt)

    statuses = scene.other.execute(
        "SELECT dynamics_contact_id, e.status FROM portal_sync_events AS e JOIN mentors AS m ON m.id = mentor_id"
    )
    assert dict(statuses) == {stuck: "pending", ended: "delivered"}
