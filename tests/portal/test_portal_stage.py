"""The portal stage over real HTTP: when it goes on, when it stops, and that nobody is called twice at once."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.errors import Outcome, TransientPortalError
from certjob.portal import push, rate
from certjob.portal import stage as portal_stage
from certjob.portal.push import PushOutcome
from certjob.portal.rate import RateLimiter
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.nights import FlakyPortal, delivery, in_background, night, quick_policy
from tests.support.portal_answers import Behaviour, PortalRequest, delay, error, hang, ok
from tests.support.scene import Scene, push_once

DEAD, REFUSED = error(500, "dynamics_unavailable"), error(404, "contact_not_found")
UNTOUCHED = "SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL"
FAILURES = "SELECT kind, count(*) FROM dynamics_sync_failures GROUP BY kind ORDER BY kind"
STATUSES = "SELECT status, count(*) FROM portal_sync_events GROUP BY status ORDER BY status"


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a Retry-After of more than 0.2 s a long one, instead of more than 20 s."""
    for module in (push, rate):
        monkeypatch.setattr(module, "LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS", 0.2)


def waits(seconds: float) -> Behaviour:
    return error(429, "throttled", retry_after=str(seconds))


def seconds_between(scene: Scene, first: int, second: int) -> float:
    """From one request's arrival to another's, by their numbers."""
    return scene.portal.requests[second - 1].arrived_seconds - scene.portal.requests[first - 1].arrived_seconds


def nothing() -> None: ...


def disturbed(
    scene: Scene, method: str, *, before: Callable[[], object] = nothing, after: Callable[[], object] = nothing
) -> PortalSyncService:
    """The service, with something that happens around each call of a method."""
    service = PortalSyncService(scene.connection, run_id=uuid4())
    real = getattr(service, method)

    def call(*arguments: Any, **named: Any) -> Any:
        before()
        result = real(*arguments, **named)
        after()
        return result

    setattr(service, method, call)
    return service


def test_all_slots_deliver_a_backlog_and_repeats_never_overlap(scene: Scene) -> None:
    """Each call fails twice; nothing to do is no early end."""
    assert scene.run_stage() is scene.run_stage(seconds=0) is None
    contacts = scene.backlog(30)
    calls_of = scene.portal.requests_for
    scene.portal.decide = lambda request: delay(0.02, ok() if len(calls_of(request.contact_id)) == 3 else DEAD)

    assert scene.run_stage(concurrency=4) is None

    assert all(len(calls_of(contact)) == 3 for contact in contacts)
    assert scene.portal.visible == dict.fromkeys(contacts, False)
    assert (scene.rows(STATUSES), scene.rows(FAILURES)) == ([("delivered", 30)], [])
    assert scene.counts == PortalCounts(delivered=30)
    assert (scene.portal.peak_in_flight, scene.portal.overlaps) == (4, [])
    assert scene.portal.connections_made < 10  # each may be replaced when it was idle for long


def test_untried_hides_go_first_then_untried_shows_retried_hides_retried_shows(scene: Scene) -> None:
    """The attempt of a process that died is taken back: its hide keeps its place."""
    expected: list[UUID] = []
    for visible, attempts in ((True, 2), (False, 3), (True, 0), (False, 0)):
        expected[:0] = scene.backlog(1, visible=visible)
        scene.run_sql("UPDATE portal_sync_events SET attempts = %s WHERE id = %s", attempts, len(expected))
    assert [event.contact_id for event in scene.claim()] == expected
    scene.run_out()

    scene.run_stage()

    assert [request.contact_id for request in scene.portal.requests] == expected
    assert scene.rows("SELECT attempts FROM portal_sync_events ORDER BY id") == [(3,), (4,), (1,), (1,)]


@pytest.mark.parametrize(("concurrency", "attempts"), [(1, 3), (16, 5)])
def test_a_dead_endpoint_gets_a_hundred_requests_at_most(scene: Scene, concurrency: int, attempts: int) -> None:
    """Then the stage stops; what was not tried is as it was, and every hide is an alert."""
    scene.backlog(150)
    scene.portal.default = DEAD

    assert scene.run_stage(concurrency=concurrency, policy=quick_policy(max_attempts=attempts)) == "breaker"

    failed = scene.counts.failed
    assert scene.said.startswith("portal: 5 pushes in a row failed (last: the portal answered 500 dynamics_unav")
    assert len(scene.portal.requests) <= 100
    assert 5 <= failed <= 4 + concurrency
    assert scene.rows(UNTOUCHED) == [(150 - failed,)]
    later = "attempts = 1 AND next_attempt_at > now() + interval '14 min'"
    assert scene.rows(f"SELECT count(*) FROM portal_sync_events WHERE {later}") == [(failed,)]
    assert scene.rows(FAILURES) == [("stage", 150 - failed), ("transient", failed)]


@pytest.mark.parametrize(("between", "code", "failed"), [(ok(), None, 8), (REFUSED, None, 8), (None, "breaker", 5)])
def test_a_sign_of_life_begins_the_breakers_count_anew(
    scene: Scene, between: Behaviour | None, code: str | None, failed: int
) -> None:
    """Four failures, an answer, four failures: the endpoint lives. A mentor without a contact is no answer."""
    contacts = scene.backlog(9)
    scene.portal.decide = lambda request: between if between and request.contact_id == contacts[4] else DEAD
    if between is None:
        scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL WHERE dynamics_contact_id = %s", contacts[4])
        scene.run_sql("UPDATE portal_sync_events SET attempts = 1 WHERE id > 5")  # the fifth keeps its turn

    assert scene.run_stage() == code

    assert ("transient", failed) in scene.rows(FAILURES)


def test_what_concerns_everybody_blocks_nobody_and_the_next_run_delivers(scene: Scene) -> None:
    """One call per slot at most, and what was on its way is settled; hides are alerts until they are delivered."""
    first, *_ = scene.backlog(30)
    scene.backlog(3, visible=True)
    scene.portal.decide = lambda request: delay(0.3) if request.contact_id == first else error(401, "unauthorized")

    assert scene.run_stage(concurrency=4) == "refused:401"

    assert "; check CERTJOB_PORTAL_KEY" in scene.said
    assert len(scene.portal.requests) <= 4
    assert (scene.counts, scene.portal.visible) == (PortalCounts(delivered=1), {first: False})
    assert (scene.rows(UNTOUCHED), scene.rows(STATUSES)) == ([(32,)], [("delivered", 1), ("pending", 32)])
    alerts = "SELECT attempts, count(*) FROM portal_alerts WHERE NOT visible AND error LIKE '%%401 unauth%%' GROUP BY 1"
    assert scene.rows(alerts) == [(0, 29)]

    scene.portal.decide = None
    assert scene.run_stage() is None
    assert scene.rows(STATUSES) == [("delivered", 33)]
    assert scene.rows("SELECT FROM dynamics_sync_failures WHERE resolved_at IS NULL") == []


@pytest.mark.parametrize(("attempts", "failures"), [(3, []), (1, [("transient", 1)])])
def test_a_short_wait_is_slept_in_the_round_while_the_others_hold(
    scene: Scene, attempts: int, failures: list[tuple[str, int]]
) -> None:
    """Up to 20 s; after the last attempt, too."""
    scene.backlog(8)
    scene.portal.then(waits(0.6), delay(0.3))  # the second call is on its way when the first is told to wait

    assert scene.run_stage(concurrency=2, policy=quick_policy(max_attempts=attempts)) is None

    assert len(scene.portal.requests) == (9 if attempts == 3 else 8)
    assert seconds_between(scene, 1, 3) >= 0.6
    assert scene.rows(FAILURES) == failures


@pytest.mark.usefixtures("short_patience")
class TestLongRetryAfter:
    """Longer: the event is released to that time, and the stage sleeps or stops."""

    def test_the_stage_sleeps_then_one_call_feels_its_way_and_all_slots_are_used(self, scene: Scene) -> None:
        """No call in between, no lease held, no failure row, no round counted, and the breaker counts nothing."""
        scene.backlog(12)
        leases: list[object] = []

        def decide(request: PortalRequest) -> Behaviour:
            if request.number == 5:
                leases.extend(scene.other.execute("SELECT FROM portal_sync_events WHERE claim_token IS NOT NULL"))
            if request.number == 7:
                scene.portal.peak_in_flight = 0
            return waits(0.3) if request.number <= 6 else delay(0.2)

        scene.portal.decide = decide

        assert scene.run_stage(concurrency=4) is None

        assert all(seconds_between(scene, told, told + 1) >= 0.3 for told in (4, 5, 6))
        assert seconds_between(scene, 7, 8) >= 0.2
        assert len(leases) == 1  # that of the call itself
        assert (len(scene.portal.requests), scene.portal.peak_in_flight) == (18, 4)
        assert scene.rows("SELECT DISTINCT status, attempts FROM portal_sync_events") == [("delivered", 1)]
        assert scene.rows(FAILURES) == []

    def test_a_repeat_on_its_way_gives_way(self, scene: Scene) -> None:
        """Another event between two attempts is released, not failed: nobody waits under a lease."""
        first, _ = scene.backlog(2)
        told_to_wait = threading.Event()
        late = hang(delay(0.1, DEAD), until=told_to_wait)

        def decide(request: PortalRequest) -> Behaviour:
            if len(scene.portal.requests_for(request.contact_id)) > 1:
                return ok()
            if request.contact_id == first:
                return late
            told_to_wait.set()
            return waits(0.6)

        scene.portal.decide = decide

        assert scene.run_stage(concurrency=2) is None

        assert len(scene.portal.requests_for(first)) == 2
        assert seconds_between(scene, 2, 3) >= 0.55
        assert (scene.counts, scene.rows(FAILURES)) == (PortalCounts(delivered=2), [])

    @pytest.mark.parametrize(
        ("seconds", "deadline", "code", "calls"),
        [
            pytest.param(601, 7200, "retry_after", 1, id="more than 10 minutes"),
            pytest.param(60, 30, "retry_after", 1, id="longer than there is time"),
            pytest.param(0.25, 60, "breaker", 8, id="again and again: it is asked once after each wait"),
        ],
    )
    def test_it_stops_when_the_wait_is_too_long(
        self,
        scene: Scene,
        monkeypatch: pytest.MonkeyPatch,
        seconds: float,
        deadline: float,
        code: str,
        calls: int,
    ) -> None:
        """With the reason; the event waits for that time, and no round is counted."""
        monkeypatch.setattr(portal_stage, "MOST_WAITS", 8)
        scene.backlog(10)
        scene.portal.default = waits(seconds)

        assert scene.run_stage(seconds=deadline) == code

        assert f"the portal asked to wait {seconds} s" in scene.said or code == "breaker"
        assert max(1, calls - 5) <= len(scene.portal.requests) <= calls
        due = "SELECT max(extract(epoch FROM next_attempt_at - now())) FROM portal_sync_events"
        assert seconds - 5 < float(scene.rows(due)[0][0]) <= seconds
        assert (scene.rows(UNTOUCHED), scene.rows(FAILURES)) == ([(10,)], [("stage", 10)])
        assert scene.counts.failed == 0

    def test_a_settle_that_takes_long_does_not_end_the_wait_too_early(self, scene: Scene) -> None:
        """The wait in the row begins with the settle; a stage that looks before its end would find nothing and end."""
        scene.backlog(1)
        scene.portal.then(waits(0.25))
        busy = disturbed(scene, "settle", before=lambda: time.sleep(0.4))  # longer than the portal asked to wait

        assert scene.run_stage(service=busy) is None

        assert scene.rows(STATUSES) == [("delivered", 1)]


@pytest.mark.parametrize(
    ("count", "behaviour", "seconds", "code", "least", "most"),
    [
        pytest.param(50, delay(0.3), 1.5, "deadline", 2, 49, id="what is on its way ends, the rest is released"),
        pytest.param(2, delay(1.8), 1.5, None, 2, 2, id="a last call that ends after it is no early end"),
        pytest.param(1, delay(1.8, DEAD), 1.5, "deadline", 0, 0, id="a repeat is not begun after it, nor counted"),
    ],
)
def test_the_deadline(
    scene: Scene, count: int, behaviour: Behaviour, seconds: float, code: str | None, least: int, most: int
) -> None:
    scene.backlog(count)
    scene.portal.default = behaviour

    assert scene.run_stage(concurrency=2, seconds=seconds) == code

    done = scene.counts.delivered
    assert least <= done <= most
    assert len(scene.portal.requests) == max(done, 1)
    assert (scene.rows(UNTOUCHED), len(scene.portal.visible)) == ([(count - done,)], done)
    assert scene.rows(FAILURES) == ([("stage", count - done)] if code else [])


def test_no_call_is_begun_that_could_outlast_its_lease(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is too short, a laptop closed after a claim, or before a repeat: released, and not claimed again."""
    scene.backlog(6)
    slept_seconds, clock = [0.0], time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + sum(slept_seconds))
    double = FlakyPortal()
    short = PortalSyncService(scene.connection, run_id=uuid4(), lease_seconds=100)
    assert scene.run_stage(double, service=short) == "lease"
    assert (double.calls, scene.rows(UNTOUCHED)) == ([], [(6,)])

    closed = disturbed(scene, "claim", after=lambda: slept_seconds.append(200.0 if len(double.calls) == 3 else 0.0))
    assert scene.run_stage(double, service=closed) == "lease"
    assert (len(double.calls), scene.rows(UNTOUCHED)) == (3, [(3,)])

    def close_the_lid(_number: int) -> Exception:
        slept_seconds.append(280.0)
        return TransientPortalError("reset")

    assert scene.run_stage(FlakyPortal(close_the_lid)) is None
    own = "SELECT attempts FROM dynamics_sync_failures WHERE kind = 'transient'"
    assert scene.rows(own) == [(1,)] * 3
    scene.make_due()
    (event,) = scene.claim(1)  # stopped between the look at the whole claim and its own call
    assert push_once(event, double, lease_seconds=100).outcome is PushOutcome.NOT_TRIED
    assert len(double.calls) == 3


@pytest.mark.parametrize(
    ("behaviour", "begun", "delivered", "leased"),
    [
        pytest.param(hang(ok()), 3, 3, 0, id="what ends is settled"),
        pytest.param(hang(), 3, 0, 3, id="what does not end in time keeps its lease"),
        pytest.param(waits(15), 1, 0, 0, id="a wait between two attempts is cut short and the round not counted"),
    ],
)
def test_a_signal_ends_the_stage_and_the_rest_is_released(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour, begun: int, delivered: int, leased: int
) -> None:
    """The grace counts from the signal, not from the stage's next look; after a signal nothing is claimed."""
    monkeypatch.setattr(portal_stage, "GRACE_SECONDS", 0.2 if leased else 60)
    monkeypatch.setattr(portal_stage, "LOOK_AGAIN_SECONDS", 3600.0)
    scene.backlog(20)
    scene.portal.default = behaviour
    stop, began = StopFlag(), time.monotonic()

    with in_background(lambda: scene.run_until_signal(stop, concurrency=3)):
        scene.portal.wait_until(lambda: len(scene.portal.requests) >= begun)
        stop.set()
        if delivered:
            scene.portal.release()
    assert time.monotonic() - began < 14
    assert scene.counts == PortalCounts(delivered=delivered)
    scene.run_until_signal(stop)

    assert len(scene.portal.requests) <= 3
    assert scene.rows(UNTOUCHED) == [(20 - delivered - leased,)]
    held = "attempts = 1 AND claim_token IS NOT NULL AND next_attempt_at > now()"
    assert scene.rows(f"SELECT count(*) FROM portal_sync_events WHERE {held}") == [(leased,)]
    assert scene.rows(FAILURES) == []


def test_what_was_claimed_while_a_signal_came_is_not_begun(scene: Scene) -> None:
    scene.backlog(3)
    stop = StopFlag()

    scene.run_until_signal(stop, service=disturbed(scene, "claim", before=stop.set))

    assert (scene.portal.requests, scene.rows(UNTOUCHED)) == ([], [(3,)])


def test_the_other_answers_are_settled_and_the_rest_released(scene: Scene) -> None:
    """The outcome of the broken call is unknown, so it keeps its lease; the hides are alerts."""
    scene.backlog(10)
    both_begun = threading.Barrier(2, timeout=20)

    def break_down(number: int) -> Exception | None:
        if number <= 2:
            both_begun.wait()
        return LookupError("a bug") if number == 1 else None

    double = FlakyPortal(break_down)

    report = night(scene.connection, ways_out=delivery(portal=double, concurrency=2))

    done = len(double.calls) - 1
    assert done >= 1
    assert (report.outcome, report.portal.delivered) == (Outcome.FAILED, done)
    assert scene.rows(STATUSES) == [("delivered", done), ("pending", 10 - done)]
    assert scene.rows(UNTOUCHED) == [(9 - done,)]
    assert scene.rows("SELECT attempts FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(1,)]
    assert scene.rows(FAILURES) == [("stage", 10 - done)]


def test_a_task_that_is_cancelled_keeps_its_lease(scene: Scene) -> None:
    """Nobody knows how far its call has come; the others go on, however late the loop comes to them."""
    scene.backlog(6)

    class StruckLoop(FlakyPortal):
        async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
            await super().update_portal_visibility(contact_id, visible=visible, idempotency_key=idempotency_key)
            if idempotency_key == "2-1":
                raise asyncio.CancelledError
            time.sleep(0.05)

    assert scene.run_stage(StruckLoop(), concurrency=2) is None

    assert scene.counts.delivered == 5
    by_status = "SELECT status, claim_token IS NULL, count(*) FROM portal_sync_events GROUP BY 1, 2 ORDER BY 1"
    assert scene.rows(by_status) == [("delivered", True, 5), ("pending", False, 1)]


def test_a_settle_that_breaks_leaves_no_hide_unseen(scene: Scene) -> None:
    scene.backlog(5)
    scene.portal.default = DEAD
    scene.run_sql("ALTER TABLE dynamics_sync_failures ADD CONSTRAINT refuse CHECK (kind <> 'transient')")

    assert scene.night(scene.portal).outcome is Outcome.FAILED

    assert scene.rows(FAILURES) == [("stage", 5)]


def test_calls_are_spread_and_idle_time_is_not_saved_up() -> None:
    """Being late once is made up for; without a rate nobody waits. A short hold is waited for and a long one is not."""
    now, halt = [1000.0], asyncio.Event()
    limited, free = (RateLimiter(calls_per_second=each, clock=lambda: now[0]) for each in (10, 0))

    def turns(limiter: RateLimiter, number: int) -> list[float]:
        """When the next calls begin, if each begins as soon as it may; time passes only while somebody waits."""
        moments = []
        for _ in range(number):
            now[0] += max(limiter.seconds_left(), 0.0)
            limiter.begin()
            moments.append(round(now[0] - 1000.0, 6))
        return moments

    assert turns(limited, 5) == [0.0, 0.0, 0.1, 0.2, 0.3]
    now[0] += 60
    assert turns(limited, 12)[-1] == turns(free, 100)[-1] == pytest.approx(61.3)
    free.hold(20)
    free.hold(1)
    assert not free.is_held
    assert turns(free, 1) == [pytest.approx(81.3)]
    assert asyncio.run(free.wait(halt))
    free.hold(21)
    assert not asyncio.run(free.wait(halt))
    now[0] += 30
    halt.set()
    assert not asyncio.run(free.wait(halt))
