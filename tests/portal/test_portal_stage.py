"""The portal stage over real HTTP: when it goes on, when it stops, and that nobody is called twice at once."""

import asyncio
import threading
import time
from contextlib import AbstractAsyncContextManager
from uuid import UUID, uuid4

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, Outcome, TransientPortalError
from certjob.outbox.claims import Answer, Lease
from certjob.portal import push, rate
from certjob.portal import stage as portal_stage
from certjob.portal.push import PortalEvent, PortalTarget, Push, PushOutcome
from certjob.portal.rate import RateLimiter
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import Facts
from tests.support.intents import DisturbedPortal, queue_wish
from tests.support.nights import delivery, in_background, night, quick_policy
from tests.support.portal_answers import Behaviour, PortalRequest, delay, error, hang, ok
from tests.support.stages import PortalScene, push_once

DEAD = error(500, "dynamics_unavailable")
UNTOUCHED = "SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL"
FAILURES = "SELECT kind, count(*) FROM dynamics_sync_failures GROUP BY kind ORDER BY kind"
STATUSES = "SELECT status, count(*) FROM portal_sync_events GROUP BY status ORDER BY status"
ONCE = "SELECT DISTINCT status, attempts FROM portal_sync_events"


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a Retry-After of more than 0.2 s a long one, instead of more than 20 s."""
    for module in (push, rate):
        monkeypatch.setattr(module, "LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS", 0.2)


def waits(seconds: float) -> Behaviour:
    return error(429, "throttled", retry_after=str(seconds))


def seconds_between(scene: PortalScene, first: int, second: int) -> float:
    """From one request's arrival to another's, by their numbers."""
    return scene.portal.requests[second - 1].arrived_seconds - scene.portal.requests[first - 1].arrived_seconds


def test_all_slots_deliver_a_backlog_and_repeats_never_overlap(scene: PortalScene) -> None:
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


def test_untried_hides_go_first_then_untried_shows_retried_hides_retried_shows(scene: PortalScene) -> None:
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
def test_a_dead_endpoint_gets_a_hundred_requests_at_most(scene: PortalScene, concurrency: int, attempts: int) -> None:
    """Then the stage stops; what was not tried is as it was, and every hide is an alert."""
    scene.backlog(150)
    scene.portal.default = DEAD

    assert scene.run_stage(concurrency=concurrency, policy=quick_policy(max_attempts=attempts)) == "breaker"

    failed = scene.counts.failed
    assert scene.said.startswith("portal: 5 pushes in a row failed (last: the portal answered 500 dynamics_unav")
    assert scene.said.endswith("the rest stays pending")
    assert len(scene.portal.requests) <= 100
    assert 5 <= failed <= 4 + concurrency
    assert scene.rows(UNTOUCHED) == [(150 - failed,)]
    later = "attempts = 1 AND next_attempt_at > now() + interval '14 min'"
    assert scene.rows(f"SELECT count(*) FROM portal_sync_events WHERE {later}") == [(failed,)]
    assert scene.rows(FAILURES) == [("stage", 150 - failed), ("transient", failed)]


@pytest.mark.parametrize("between", [ok(), error(404, "contact_not_found")], ids=["success", "refusal"])
def test_a_sign_of_life_begins_the_breakers_count_anew(scene: PortalScene, between: Behaviour) -> None:
    """Four failures, an answer, four failures: these contacts fail, the endpoint lives."""
    contacts = scene.backlog(9)
    scene.portal.decide = lambda request: between if request.contact_id == contacts[4] else DEAD

    assert scene.run_stage() is None

    assert ("transient", 8) in scene.rows(FAILURES)


def test_what_fails_again_and_again_does_not_keep_the_others_from_their_turn(scene: PortalScene) -> None:
    """Hides that never succeed go last, and end the stage; a mentor without a contact is no sign of life."""
    hopeless = scene.backlog(80)
    without = "UPDATE mentors SET dynamics_contact_id = NULL WHERE dynamics_contact_id = ANY (%s)"
    scene.run_sql(without, hopeless[::2])
    scene.run_sql("UPDATE portal_sync_events SET attempts = 3")
    shows = scene.backlog(20, visible=True)
    scene.portal.decide = lambda request: ok() if request.contact_id in shows else DEAD

    assert scene.run_stage(concurrency=4) == "breaker"

    assert scene.portal.visible == dict.fromkeys(shows, True)
    assert 20 + 3 * 5 <= len(scene.portal.requests) <= 20 + 3 * (5 + 4)
    given_back = "status = 'pending' AND attempts = 3 AND claim_token IS NULL"
    assert scene.rows(f"SELECT count(*) FROM portal_sync_events WHERE {given_back}") == [(80 - scene.counts.failed,)]


def test_what_concerns_everybody_blocks_nobody_and_the_next_run_delivers(scene: PortalScene) -> None:
    """One call per slot at most, and what was on its way is settled; hides are alerts until they are delivered."""
    first, *_ = scene.backlog(30)
    scene.backlog(3, visible=True)
    no_key = error(401, "unauthorized")
    scene.portal.decide = lambda request: delay(0.3) if request.contact_id == first else no_key

    assert scene.run_stage(concurrency=4) == "refused:401"

    assert "; check CERTJOB_PORTAL_KEY" in scene.said
    assert len(scene.portal.requests) <= 4
    assert scene.portal.visible == {first: False}
    assert (scene.rows(UNTOUCHED), scene.rows(STATUSES)) == ([(32,)], [("delivered", 1), ("pending", 32)])
    by_kind = "SELECT DISTINCT visible, kind, attempts FROM dynamics_sync_failures"
    assert scene.rows(by_kind) == [(False, "stage", 0)]
    alerts = "SELECT count(*), min(sentence), bool_and(error LIKE '%%401 unauthorized%%') FROM portal_alerts"
    assert scene.rows(alerts) == [(29, "Dynamics sync pending — mentor may still be visible on portal", True)]
    assert scene.counts == PortalCounts(delivered=1)

    scene.portal.decide = None
    assert scene.run_stage() is None
    assert scene.rows(STATUSES) == [("delivered", 33)]
    assert scene.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
    assert scene.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]


@pytest.mark.parametrize(("attempts", "failures"), [(3, []), (1, [("transient", 1)])])
def test_a_short_wait_is_slept_in_the_round_while_the_others_hold(
    scene: PortalScene, attempts: int, failures: list[tuple[str, int]]
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

    def test_the_stage_sleeps_then_one_call_feels_its_way_and_all_slots_are_used(self, scene: PortalScene) -> None:
        """No call in between, no lease held, no failure row, no round counted, and the breaker counts nothing."""
        scene.backlog(12)
        leases: list[object] = []

        def decide(request: PortalRequest) -> Behaviour:
            if request.number == 5:
                leases.extend(Facts(scene.other).rows("SELECT FROM portal_sync_events WHERE claim_token IS NOT NULL"))
            if request.number == 7:
                scene.portal.peak_in_flight = 0
            return waits(0.3) if request.number <= 6 else delay(0.2)

        scene.portal.decide = decide

        assert scene.run_stage(concurrency=4) is None

        assert all(seconds_between(scene, told, told + 1) >= 0.3 for told in (4, 5, 6))
        assert seconds_between(scene, 7, 8) >= 0.2
        assert len(leases) == 1  # that of the call itself
        assert (len(scene.portal.requests), scene.portal.peak_in_flight) == (18, 4)
        assert (scene.rows(ONCE), scene.rows(FAILURES)) == ([("delivered", 1)], [])

    def test_a_repeat_on_its_way_gives_way(self, scene: PortalScene) -> None:
        """Another event between two attempts is released, not failed: nobody waits under a lease."""
        first, _ = scene.backlog(2)
        told_to_wait = threading.Event()

        def decide(request: PortalRequest) -> Behaviour:
            if len(scene.portal.requests_for(request.contact_id)) > 1:
                return ok()
            if request.contact_id == first:
                return lambda exchange: (told_to_wait.wait(20), delay(0.1, DEAD)(exchange))[1]
            told_to_wait.set()
            return waits(0.6)

        scene.portal.decide = decide

        assert scene.run_stage(concurrency=2) is None

        assert len(scene.portal.requests_for(first)) == 2
        assert seconds_between(scene, 2, 3) >= 0.55
        assert (scene.rows(ONCE), scene.rows(FAILURES)) == ([("delivered", 1)], [])

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
        scene: PortalScene,
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

    def test_a_settle_that_takes_long_does_not_end_the_wait_too_early(self, scene: PortalScene) -> None:
        """The wait in the row begins with the settle; a stage that looks before its end would find nothing and end."""

        class SlowService(PortalSyncService):
            def settle(self, push: Push, counts: PortalCounts, *, lock_timeout_ms: int | None = None) -> Answer:
                time.sleep(0.4)  # a busy server; longer than the portal asked to wait
                return super().settle(push, counts, lock_timeout_ms=lock_timeout_ms)

        scene.backlog(1)
        scene.portal.then(waits(0.25))

        assert scene.run_stage(service=SlowService(scene.connection, run_id=uuid4())) is None

        assert scene.rows(STATUSES) == [("delivered", 1)]


@pytest.mark.parametrize(
    ("count", "behaviour", "seconds", "code", "least", "most"),
    [
        pytest.param(50, delay(0.2), 0.5, "deadline", 2, 49, id="what is on its way ends, the rest is released"),
        pytest.param(2, delay(0.4), 0.2, None, 2, 2, id="a last call that ends after it is no early end"),
        pytest.param(1, delay(0.4, DEAD), 0.2, "deadline", 0, 0, id="a repeat is not begun after it, nor counted"),
    ],
)
def test_the_deadline(
    scene: PortalScene, count: int, behaviour: Behaviour, seconds: float, code: str | None, least: int, most: int
) -> None:
    scene.backlog(count)
    scene.portal.default = behaviour

    assert scene.run_stage(concurrency=2, seconds=seconds) == code

    done = scene.counts.delivered
    assert least <= done <= most
    assert len(scene.portal.requests) == max(done, 1)
    assert scene.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'delivered'") == [(done,)]
    assert scene.rows(UNTOUCHED) == [(count - done,)]
    assert scene.rows(FAILURES) == ([("stage", count - done)] if code else [])


def test_no_call_is_begun_that_could_outlast_its_lease(scene: PortalScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that is too short, a laptop closed after a claim, or before a repeat: released, and not claimed again."""
    scene.backlog(6)
    double, slept_seconds, clock = DisturbedPortal(), [0.0], time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda which: clock(which) + sum(slept_seconds))
    short = PortalSyncService(scene.connection, run_id=uuid4(), lease_seconds=100)
    assert scene.run_stage(double, service=short) == "lease"
    assert (double.calls, scene.rows(UNTOUCHED)) == ([], [(6,)])

    class ClosedLid(PortalSyncService):
        def claim(self, limit: int) -> list[tuple[PortalEvent, Lease]]:
            claimed = super().claim(limit)
            slept_seconds.append(200.0 if len(double.calls) == 3 else 0.0)
            return claimed

    assert scene.run_stage(double, service=ClosedLid(scene.connection, run_id=uuid4())) == "lease"
    assert (len(double.calls), scene.rows(UNTOUCHED)) == (3, [(3,)])

    def close_the_lid(_number: int) -> Exception:
        slept_seconds.append(280.0)
        return TransientPortalError("reset")

    assert scene.run_stage(DisturbedPortal(close_the_lid)) is None
    assert (
        scene.rows("SELECT kind, attempts FROM dynamics_sync_failures WHERE kind <> 'stage'") == [("transient", 1)] * 3
    )
    scene.make_due()
    (event,) = scene.claim(1)  # stopped between the look at the whole claim and its own call
    assert push_once(event, double, lease_seconds=100).outcome is PushOutcome.NOT_TRIED
    assert len(double.calls) == 3


def test_wishes_that_change_all_the_time_end_right(scene: PortalScene, database_url: str) -> None:
    """Two runs deliver while a third session changes its mind: never two calls at once, and the last wish wins."""
    contacts = scene.backlog(5)
    mentors = dict(scene.rows("SELECT dynamics_contact_id, id FROM mentors"))
    scene.portal.default = delay(0.01)
    wanted: dict[UUID, bool] = {}

    def change_minds() -> None:
        with database.connect(database_url) as app:
            for number in range(80):
                contact = contacts[number % 5]
                wanted[contact] = number % 3 == 0
                queue_wish(app, mentors[contact], visible=wanted[contact])

    def deliver(session: Connection) -> None:
        pending = "SELECT 1 FROM portal_sync_events WHERE status = 'pending'"
        while changing.is_alive() or Facts(session).rows(pending):
            scene.run_stage(connection=session, concurrency=2)

    with in_background(change_minds) as changing, in_background(lambda: deliver(scene.other)):
        deliver(scene.connection)

    assert scene.portal.overlaps == []
    assert scene.portal.visible == wanted
    for contact in contacts:
        keys = [tuple(map(int, str(r.idempotency_key).split("-"))) for r in scene.portal.requests_for(contact)]
        assert keys == sorted(set(keys)), "an older wish after a newer one, or one wish twice"


@pytest.mark.parametrize(
    ("behaviour", "begun", "delivered", "leased"),
    [
        pytest.param(hang(ok()), 3, 3, 0, id="what ends is settled"),
        pytest.param(hang(), 3, 0, 3, id="what does not end in time keeps its lease"),
        pytest.param(waits(15), 1, 0, 0, id="a wait between two attempts is cut short and the round not counted"),
    ],
)
def test_a_signal_ends_the_stage_and_the_rest_is_released(
    scene: PortalScene, monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour, begun: int, delivered: int, leased: int
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


def test_what_was_claimed_while_a_signal_came_is_not_begun(scene: PortalScene) -> None:
    scene.backlog(3)
    stop = StopFlag()

    class Interrupted(PortalSyncService):
        def claim(self, limit: int) -> list[tuple[PortalEvent, Lease]]:
            stop.set()
            return super().claim(limit)

    scene.run_until_signal(stop, service=Interrupted(scene.connection, run_id=uuid4()))

    assert (scene.portal.requests, scene.rows(UNTOUCHED)) == ([], [(3,)])


def test_nothing_is_claimed_long_before_its_turn(scene: PortalScene) -> None:
    """A newer hide goes instead of the older show; once the portal is gone, nobody is called."""
    shows = scene.backlog(3, visible=True)
    ((last,),) = scene.rows("SELECT id FROM mentors WHERE dynamics_contact_id = %s", shows[2])

    def disturb(number: int) -> None:
        if number == 1:
            queue_wish(scene.other, last, visible=False)
        else:
            scene.other.execute("UPDATE organisations SET portal = NULL")

    portal = DisturbedPortal(disturb)

    assert scene.run_stage(portal) is None

    assert [call[:2] for call in portal.calls] == [(shows[0], True), (shows[2], False)]


def test_the_other_answers_are_settled_and_the_rest_released(scene: PortalScene) -> None:
    """The outcome of the broken call is unknown, so it keeps its lease; the hides are alerts."""
    scene.backlog(10)
    both_begun = threading.Barrier(2, timeout=20)

    def break_down(number: int) -> Exception | None:
        if number <= 2:
            both_begun.wait()
        return LookupError("a bug") if number == 1 else None

    double = DisturbedPortal(break_down)

    report = night(scene.connection, ways_out=delivery(portal=double, concurrency=2))

    done = len(double.calls) - 1
    assert (report.outcome, report.portal.delivered) == (Outcome.FAILED, done)
    assert done >= 1
    assert scene.rows(STATUSES) == [("delivered", done), ("pending", 10 - done)]
    assert scene.rows(UNTOUCHED) == [(9 - done,)]
    assert scene.rows("SELECT attempts FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(1,)]
    assert scene.rows(FAILURES) == [("stage", 10 - done)]


def test_a_task_that_is_cancelled_keeps_its_lease(scene: PortalScene) -> None:
    """Nobody knows how far its call has come; the others go on, however late the loop comes to them."""
    scene.backlog(6)

    class StruckLoop(DisturbedPortal):
        async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
            await super().update_portal_visibility(contact_id, visible=visible, idempotency_key=idempotency_key)
            if idempotency_key == "2-1":
                raise asyncio.CancelledError
            time.sleep(0.05)

    assert scene.run_stage(StruckLoop(), concurrency=2) is None

    assert scene.counts.delivered == 5
    by_status = "SELECT status, claim_token IS NULL, count(*) FROM portal_sync_events GROUP BY 1, 2 ORDER BY 1"
    assert scene.rows(by_status) == [("delivered", True, 5), ("pending", False, 1)]


def test_a_client_that_cannot_be_made_or_a_settle_that_breaks_leaves_no_hide_unseen(scene: PortalScene) -> None:
    scene.backlog(5)
    scene.portal.default = DEAD
    error = ConfigurationError("no such file: the certificates")

    def refuse() -> AbstractAsyncContextManager[PortalTarget]:
        raise error

    with pytest.raises(ConfigurationError, match="no such file"):
        scene.run_stage(make_target=refuse, concurrency=4)
    assert scene.rows(UNTOUCHED) == [(5,)]
    scene.run_sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON dynamics_sync_failures"
        " FOR EACH ROW WHEN (NEW.kind = 'transient') EXECUTE FUNCTION refuse()"
    )

    assert scene.night(scene.portal).outcome is Outcome.FAILED

    assert scene.rows(FAILURES) == [("stage", 5)]


def turns(limiter: RateLimiter, now: list[float], number: int) -> list[float]:
    """When the next calls begin, if each begins as soon as it may; time passes only while somebody waits."""
    moments = []
    for _ in range(number):
        now[0] += max(limiter.seconds_left(), 0.0)
        limiter.begin()
        moments.append(round(now[0] - 1000.0, 6))
    return moments


def test_calls_are_spread_and_idle_time_is_not_saved_up() -> None:
    """Being late once is made up for; without a rate nobody waits."""
    now = [1000.0]
    limiter = RateLimiter(calls_per_second=10, clock=lambda: now[0])
    assert turns(limiter, now, 5) == [0.0, 0.0, 0.1, 0.2, 0.3]
    now[0] += 60
    assert turns(limiter, now, 12)[-1] == pytest.approx(61.3)
    assert turns(RateLimiter(calls_per_second=0, clock=lambda: now[0]), now, 100)[-1] == pytest.approx(61.3)


def test_a_short_hold_is_waited_for_and_a_long_one_is_not() -> None:
    """A caller gives its event back instead of waiting under its lease."""
    now, halt = [1000.0], asyncio.Event()
    limiter = RateLimiter(calls_per_second=0, clock=lambda: now[0])
    limiter.hold(20)
    limiter.hold(1)
    assert not limiter.is_held
    assert turns(limiter, now, 1) == [20.0]
    assert asyncio.run(limiter.wait(halt))
    limiter.hold(21)
    assert not asyncio.run(limiter.wait(halt))
    now[0] += 30
    halt.set()
    assert not asyncio.run(limiter.wait(halt))
