"""The portal stage over real HTTP: when it goes on, when it stops, and that nobody is called twice at once."""

import asyncio
import dataclasses
import threading
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, Outcome, StoppedBySignalError, TransientPortalError
from certjob.outbox.claims import Answer, Lease, StageStop
from certjob.portal import push, rate
from certjob.portal import stage as portal_stage
from certjob.portal.push import PortalEvent, PortalTarget, Push
from certjob.portal.rate import RateLimiter
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import Facts
from tests.support.intents import DisturbedPortal, backlog, claim, queue_wish, run_out
from tests.support.nights import CollectingChannel, in_background, night, quick_policy
from tests.support.portal_answers import Behaviour, PortalRequest, delay, error, hang, ok
from tests.support.portal_server import PortalServer
from tests.support.stages import RunnableStage
from tests.support.waiting import until

DEAD = error(500, "dynamics_unavailable")
UNTOUCHED = "SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL"
FAILURES = "SELECT kind, count(*) FROM dynamics_sync_failures GROUP BY kind ORDER BY kind"
STATUSES = "SELECT status, count(*) FROM portal_sync_events GROUP BY status ORDER BY status"


@dataclass
class Scene:
    """A database, a portal, and stages that are run on both."""

    connection: Connection
    facts: Facts
    portal: PortalServer
    counts: PortalCounts = dataclasses.field(default_factory=PortalCounts)

    def backlog(self, count: int, *, visible: bool = False) -> list[UUID]:
        return backlog(self.facts, count, visible=visible)

    def rows(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        return self.facts.rows(statement, *parameters)

    def run(self, target: PortalTarget | None = None, *, seconds: float = 60, **options: Any) -> StageStop | None:
        """Run a stage to its end, with one slot unless told otherwise."""
        stage = RunnableStage(self.connection, target or self.portal, **({"concurrency": 1} | options))
        self.counts = stage.counts
        return stage.run(deadline_seconds=seconds)

    def run_until_signal(self, stop: StopFlag, target: PortalTarget | None = None, **options: Any) -> None:
        with pytest.raises(StoppedBySignalError):
            self.run(target, stop=stop, seconds=3600, **options)

    @property
    def called(self) -> list[UUID | None]:
        return [request.contact_id for request in self.portal.requests]


@pytest.fixture
def scene(connection: Connection, facts: Facts, portal: PortalServer) -> Scene:
    return Scene(connection, facts, portal)


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a Retry-After of more than 0.2 s a long one, instead of more than 20 s."""
    for module in (push, rate):
        monkeypatch.setattr(module, "LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS", 0.2)


def code_of(stopped: StageStop | None) -> str | None:
    return None if stopped is None else stopped.code


def waits(seconds: float) -> Behaviour:
    return error(429, "throttled", retry_after=str(seconds))


def test_a_backlog_of_several_claims_is_delivered_by_all_slots(scene: Scene) -> None:
    contacts = scene.backlog(60)
    scene.portal.default = delay(0.02)

    assert scene.run(concurrency=4) is None

    assert sorted(map(str, scene.called)) == sorted(map(str, contacts))
    assert scene.portal.visible == dict.fromkeys(contacts, False)
    assert scene.rows(STATUSES) == [("delivered", 60)]
    assert scene.counts.delivered == 60
    assert (scene.portal.peak_in_flight, scene.portal.overlaps) == (4, [])
    assert scene.portal.connections_made < 10  # each may be replaced when it was idle for long


def test_nothing_to_do_makes_no_client_and_is_no_early_end(scene: Scene) -> None:
    def refuse() -> AbstractAsyncContextManager[PortalTarget]:
        raise AssertionError

    assert scene.run(DisturbedPortal(), make_target=refuse) is None
    assert scene.run(DisturbedPortal(), make_target=refuse, seconds=0) is None


def test_untried_hides_go_first_then_untried_shows_retried_hides_retried_shows(scene: Scene) -> None:
    """The attempt of a process that died is taken back: its hide keeps its place."""
    expected: list[UUID] = []
    for visible, attempts in ((True, 2), (False, 3), (True, 0), (False, 0)):
        expected[:0] = scene.backlog(1, visible=visible)
        scene.connection.execute(
            "UPDATE portal_sync_events SET attempts = %s WHERE mentor_id IN"
            " (SELECT id FROM mentors WHERE dynamics_contact_id = ANY (%s))",
            (attempts, expected[:1]),
        )
    assert [event.contact_id for event in claim(scene.connection)] == expected
    run_out(scene.facts)

    scene.run()

    assert scene.called == expected
    assert scene.rows("SELECT attempts FROM portal_sync_events ORDER BY id") == [(3,), (4,), (1,), (1,)]


def test_what_fails_for_a_while_is_delivered_and_repeats_never_overlap(scene: Scene) -> None:
    contacts = scene.backlog(20)
    scene.portal._decide = lambda request: (
        ok() if len(scene.portal.requests_for(request.contact_id or uuid4())) == 3 else DEAD
    )

    assert scene.run(concurrency=4) is None

    assert scene.portal.visible == dict.fromkeys(contacts, False)
    assert scene.portal.overlaps == []
    assert scene.rows(FAILURES) == []


class TestBreaker:
    """A dead endpoint is not asked 300 times."""

    @pytest.mark.parametrize(("concurrency", "attempts"), [(1, 3), (16, 5)])
    def test_it_gets_a_hundred_requests_at_most(self, scene: Scene, concurrency: int, attempts: int) -> None:
        """Then the stage stops; what was not tried is as it was, and every hide is an alert."""
        scene.backlog(150)
        scene.portal.default = DEAD

        stopped = scene.run(concurrency=concurrency, policy=quick_policy(max_attempts=attempts))

        failed = scene.counts.failed
        assert code_of(stopped) == "breaker"
        assert str(stopped).startswith("portal: 5 pushes in a row failed (last: the portal answered 500 dynamics_unav")
        assert str(stopped).endswith("the rest stays pending")
        assert len(scene.portal.requests) <= 100
        assert 5 <= failed <= 4 + concurrency
        assert scene.rows(UNTOUCHED) == [(150 - failed,)]
        later = "attempts = 1 AND next_attempt_at > now() + interval '14 min'"
        assert scene.rows(f"SELECT count(*) FROM portal_sync_events WHERE {later}") == [(failed,)]
        assert scene.rows(FAILURES) == [("stage", 150 - failed), ("transient", failed)]

    @pytest.mark.parametrize("between", [ok(), error(404, "contact_not_found")], ids=["success", "refusal"])
    def test_a_sign_of_life_begins_the_count_anew(self, scene: Scene, between: Behaviour) -> None:
        """Four failures, an answer, four failures: these contacts fail, the endpoint lives."""
        contacts = scene.backlog(9)
        scene.portal._decide = lambda request: between if request.contact_id == contacts[4] else DEAD

        assert scene.run() is None

        assert scene.rows("SELECT count(*) FROM dynamics_sync_failures WHERE kind = 'transient'") == [(8,)]

    def test_what_fails_again_and_again_does_not_keep_the_others_from_their_turn(self, scene: Scene) -> None:
        """Hides that never succeed go last; the shows would wait behind them for ever."""
        hopeless = scene.backlog(20)
        scene.connection.execute("UPDATE portal_sync_events SET attempts = 3")
        shows = scene.backlog(20, visible=True)
        scene.portal._decide = lambda request: DEAD if request.contact_id in hopeless else ok()

        assert code_of(scene.run()) == "breaker"

        assert scene.portal.visible == dict.fromkeys(shows, True)
        assert len(set(scene.called) & set(hopeless)) == 5

    def test_mentors_without_a_contact_are_no_sign_of_life(self, scene: Scene) -> None:
        """No call was made for them, so a dead endpoint stays dead."""
        contacts = scene.backlog(40)
        without = "UPDATE mentors SET dynamics_contact_id = NULL WHERE dynamics_contact_id = ANY (%s)"
        scene.connection.execute(without, (contacts[::2],))
        scene.portal.default = DEAD

        assert code_of(scene.run()) == "breaker"

        assert len(scene.portal.requests) == 15

    def test_a_portal_that_dies_in_full_flight_gets_few_calls_more(self, scene: Scene) -> None:
        """What was claimed and not begun goes back, uncounted."""
        scene.backlog(80)
        scene.portal._decide = lambda request: ok() if request.number <= 40 else error(503, "dynamics_unavailable")

        assert code_of(scene.run(concurrency=4)) == "breaker"

        assert scene.counts.delivered == 40
        assert len(scene.portal.requests) <= 40 + 3 * (5 + 4)
        assert scene.rows(UNTOUCHED) == [(40 - scene.counts.failed,)]
        assert scene.rows("SELECT count(*) FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(0,)]


class TestStageErrors:
    """What concerns everybody stops the stage at once and blocks nobody."""

    def test_nobody_is_blocked_no_attempt_is_counted_and_the_next_run_delivers(self, scene: Scene) -> None:
        """One call per slot at most; all events are as they were, and hides are alerts until they are delivered."""
        scene.backlog(30)
        scene.backlog(3, visible=True)
        scene.portal.default = error(401, "unauthorized")

        stopped = scene.run(concurrency=4)

        assert code_of(stopped) == "refused:401"
        assert "; check CERTJOB_PORTAL_KEY" in str(stopped)
        assert len(scene.portal.requests) <= 4
        assert scene.rows(UNTOUCHED) == [(33,)]
        by_kind = "SELECT DISTINCT visible, kind, attempts FROM dynamics_sync_failures"
        assert scene.rows(by_kind) == [(False, "stage", 0)]
        alerts = "SELECT count(*), min(sentence), bool_and(error LIKE '%%401 unauthorized%%') FROM portal_alerts"
        assert scene.rows(alerts) == [(30, "Dynamics sync pending — mentor may still be visible on portal", True)]
        assert (scene.counts.failed, scene.counts.news, scene.counts.lost) == (0, 0, 0)

        scene.portal.default = ok()
        assert scene.run() is None
        assert scene.rows(STATUSES) == [("delivered", 33)]
        assert scene.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
        assert scene.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]

    def test_what_was_on_its_way_is_settled(self, scene: Scene) -> None:
        contacts = scene.backlog(10)
        scene.portal._decide = lambda request: (
            delay(0.3) if request.contact_id == contacts[0] else error(401, "unauthorized")
        )

        assert code_of(scene.run(concurrency=2)) == "refused:401"

        assert scene.portal.visible == {contacts[0]: False}
        assert scene.rows(STATUSES) == [("delivered", 1), ("pending", 9)]
        assert scene.rows(FAILURES) == [("stage", 9)]


class TestShortRetryAfter:
    """Up to 20 s: slept in the round, while all others hold, too."""

    def test_the_others_hold(self, scene: Scene) -> None:
        scene.backlog(8)
        scene.portal.then(waits(1), delay(0.3))  # the second call is on its way when the first is told to wait

        assert scene.run(concurrency=2) is None

        first, _, *later = scene.portal.requests
        assert len(later) == 7
        assert min(request.arrived_seconds for request in later) - first.arrived_seconds >= 1.0

    def test_the_wait_is_kept_after_the_last_attempt_too(self, scene: Scene) -> None:
        scene.backlog(2)
        scene.portal.then(waits(0.5))

        scene.run(policy=quick_policy(max_attempts=1))

        first, second = scene.portal.requests
        assert second.arrived_seconds - first.arrived_seconds >= 0.5
        assert scene.rows(FAILURES) == [("transient", 1)]


@pytest.mark.usefixtures("short_patience")
class TestLongRetryAfter:
    """Longer: the event is released to that time, and the stage sleeps or stops."""

    def test_the_stage_sleeps_and_goes_on(self, scene: Scene) -> None:
        """No call in between, no failure row, no round counted; in the end everything is delivered."""
        scene.backlog(10)
        scene.portal.then(waits(0.4))

        assert scene.run() is None

        first, second, *_ = scene.portal.requests
        assert second.arrived_seconds - first.arrived_seconds >= 0.4
        assert len(scene.portal.requests) == 11
        assert scene.rows("SELECT DISTINCT status, attempts FROM portal_sync_events") == [("delivered", 1)]
        assert scene.rows(FAILURES) == []

    def test_no_lease_is_held_meanwhile(self, scene: Scene, other: Connection) -> None:
        """What was claimed and not begun is free for others; the event itself is due when the portal said."""
        scene.backlog(10)
        scene.portal.then(waits(60))
        stop = StopFlag()

        with in_background(lambda: scene.run_until_signal(stop)):
            until(lambda: len(scene.portal.requests) == 1)
            until(lambda: Facts(other).rows(UNTOUCHED) == [(10,)])
            stop.set()

        later = "next_attempt_at - now() > interval '50 s' AND last_error LIKE '%%throttled%%'"
        assert scene.rows(f"SELECT count(*) FILTER (WHERE {later}), count(*) FROM portal_sync_events") == [(1, 10)]
        assert len(scene.portal.requests) == 1

    def test_a_repeat_on_its_way_gives_way(self, scene: Scene) -> None:
        """Another event between two attempts is released, not failed: nobody waits under a lease."""
        first, second = scene.backlog(2)
        told_to_wait = threading.Event()

        def decide(request: PortalRequest) -> Behaviour:
            if len(scene.portal.requests_for(second)) == 1 and request.contact_id == second:
                told_to_wait.set()
                return waits(0.6)
            if len(scene.portal.requests_for(first)) == 1 and request.contact_id == first:
                return lambda exchange: (told_to_wait.wait(20), delay(0.1, DEAD)(exchange))[1]
            return ok()

        scene.portal._decide = decide

        assert scene.run(concurrency=2) is None

        assert scene.called[2:].count(first) == 1
        assert scene.portal.requests[2].arrived_seconds - scene.portal.requests[1].arrived_seconds >= 0.55
        assert scene.rows("SELECT status, attempts FROM portal_sync_events") == [("delivered", 1)] * 2
        assert scene.rows(FAILURES) == []

    @pytest.mark.parametrize(("seconds", "deadline"), [(601, 7200), (60, 30)], ids=["10 minutes", "deadline"])
    def test_it_stops_when_the_wait_is_too_long(self, scene: Scene, seconds: int, deadline: float) -> None:
        """With the reason; the event waits for that time, and no round is counted."""
        scene.backlog(10)
        scene.portal.default = waits(seconds)

        stopped = scene.run(seconds=deadline)

        assert code_of(stopped) == "retry_after"
        assert f"the portal asked to wait {seconds} s" in str(stopped)
        assert len(scene.portal.requests) == 1
        assert scene.rows(UNTOUCHED) == [(10,)]
        due = "SELECT round(extract(epoch FROM max(next_attempt_at) - now()) / 10) FROM portal_sync_events"
        assert scene.rows(due) == [(seconds // 10,)]
        assert scene.rows(FAILURES) == [("stage", 10)]
        assert scene.counts.failed == 0

    def test_the_breaker_does_not_count_it(self, scene: Scene) -> None:
        scene.backlog(3)
        scene.portal.then(*[waits(0.25)] * 6)

        assert scene.run(concurrency=3) is None

        assert scene.rows(STATUSES) == [("delivered", 3)]
        assert scene.rows(FAILURES) == []

    def test_a_settle_that_takes_long_does_not_end_the_wait_too_early(self, scene: Scene) -> None:
        """The wait in the row begins with the settle; a stage that looks before its end would find nothing and end."""

        class SlowService(PortalSyncService):
            def settle(self, push: Push, counts: PortalCounts, *, lock_timeout_ms: int | None = None) -> Answer:
                time.sleep(0.4)  # a busy server; longer than the portal asked to wait
                return super().settle(push, counts, lock_timeout_ms=lock_timeout_ms)

        scene.backlog(1)
        scene.portal.then(waits(0.25))

        assert scene.run(service=SlowService(scene.connection, run_id=uuid4())) is None

        assert scene.rows(STATUSES) == [("delivered", 1)]

    def test_one_call_feels_its_way_then_all_slots_are_used(self, scene: Scene) -> None:
        scene.backlog(12)

        def decide(request: PortalRequest) -> Behaviour:
            if request.number == 5:
                scene.portal.peak_in_flight = 0
            return waits(0.3) if request.number <= 4 else delay(0.2)

        scene.portal._decide = decide

        assert scene.run(concurrency=4) is None

        feeling, after = scene.portal.requests[4:6]
        assert after.arrived_seconds - feeling.arrived_seconds >= 0.2
        assert scene.portal.peak_in_flight == 4

    def test_a_portal_that_says_nothing_else_is_left_alone(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is asked once after each wait, and not for ever."""
        monkeypatch.setattr(portal_stage, "MOST_FAILED_CALLS", 8)
        scene.backlog(20)
        scene.portal.default = waits(0.25)

        assert code_of(scene.run(concurrency=2)) == "breaker"

        assert 3 <= len(scene.portal.requests) <= 8
        assert scene.rows(UNTOUCHED) == [(20,)]


class TestDeadline:
    """The time for deliveries is over."""

    def test_what_is_on_its_way_ends_and_the_rest_is_released(self, scene: Scene) -> None:
        scene.backlog(50)
        scene.portal.default = delay(0.2)

        stopped = scene.run(concurrency=2, seconds=0.5)

        begun = len(scene.portal.requests)
        assert code_of(stopped) == "deadline"
        assert 2 <= begun < 50
        assert scene.rows(STATUSES) == [("delivered", begun), ("pending", 50 - begun)]
        assert scene.rows(UNTOUCHED) == [(50 - begun,)]
        assert scene.rows(FAILURES) == [("stage", 50 - begun)]

    def test_a_retry_is_not_begun_after_it(self, scene: Scene) -> None:
        """A round that it cuts short is not counted as failed."""
        scene.backlog(1)
        scene.portal.default = delay(0.4, DEAD)

        assert code_of(scene.run(seconds=0.2)) == "deadline"

        assert len(scene.portal.requests) == 1
        assert scene.rows(UNTOUCHED) == [(1,)]

    def test_a_last_call_that_ends_after_it_is_no_early_end(self, scene: Scene) -> None:
        scene.backlog(2)
        scene.portal.default = delay(0.4)

        assert scene.run(concurrency=2, seconds=0.2) is None

        assert scene.rows(STATUSES) == [("delivered", 2)]


class SleepyService(PortalSyncService):
    """Claims as ever, but the machine goes to sleep for some seconds when told to."""

    slept_seconds = 0.0
    claims = 0
    sleeps_after_claim = 0

    def claim(self, limit: int) -> list[tuple[PortalEvent, Lease]]:
        slept_before = self.slept_seconds
        claimed = super().claim(limit)
        self.claims += len(claimed)
        if self.claims == self.sleeps_after_claim:
            self.slept_seconds += 200.0
        return [(event, self._sleepy(lease, slept_before)) for event, lease in claimed]

    def _sleepy(self, lease: Lease, slept_before: float) -> Lease:
        return dataclasses.replace(lease, clock=lambda: lease.clock() + self.slept_seconds - slept_before)


class TestLease:
    """No call is begun that could outlast its lease."""

    def test_a_lease_that_is_too_short_from_the_start_stops_the_stage(self, scene: Scene) -> None:
        """Released and not called, and not claimed over and over again."""
        scene.backlog(5)
        short = PortalSyncService(scene.connection, run_id=uuid4(), lease_seconds=100)

        assert code_of(scene.run(service=short)) == "lease"

        assert scene.portal.requests == []
        assert scene.rows(UNTOUCHED) == [(5,)]

    def test_what_does_not_fit_any_more_is_released(self, scene: Scene) -> None:
        """The laptop was closed just after a claim: nobody is called under that lease."""
        scene.backlog(6)
        sleepy = SleepyService(scene.connection, run_id=uuid4())
        sleepy.sleeps_after_claim = 4
        double = DisturbedPortal()

        assert code_of(scene.run(double, service=sleepy)) == "lease"

        assert len(double.calls) == 3
        assert scene.rows(UNTOUCHED) == [(3,)]

    def test_a_repeat_that_does_not_fit_any_more_is_not_made(self, scene: Scene) -> None:
        """The round ends with the calls that were made."""
        scene.backlog(1)
        sleepy = SleepyService(scene.connection, run_id=uuid4())

        def close_the_lid(_number: int) -> None:
            sleepy.slept_seconds = 280.0
            message = "reset"
            raise TransientPortalError(message)

        double = DisturbedPortal(close_the_lid)

        scene.run(double, service=sleepy)

        assert len(double.calls) == 1
        assert scene.rows("SELECT kind, attempts FROM dynamics_sync_failures") == [("transient", 1)]


def test_without_a_url_events_stay_and_hides_are_alerts(scene: Scene) -> None:
    """One line says so; without events nobody misses it."""
    assert night(scene.connection).outcome == "ok"
    scene.backlog(2)
    scene.backlog(1, visible=True)

    report = night(scene.connection, channel=CollectingChannel())

    assert list(map(str, report.stopped)) == ["portal: CERTJOB_PORTAL_URL is not set; 3 pushes stay pending"]
    assert report.outcome == "attention"
    assert scene.rows(UNTOUCHED) == [(3,)]
    assert scene.rows(FAILURES) == [("stage", 2)]


class TestSharing:
    """Several runs at once share the work."""

    def test_wishes_that_change_all_the_time_end_right(
        self, scene: Scene, other: Connection, database_url: str
    ) -> None:
        """Two runs deliver while a third session changes its mind: never two calls at once, and the last wish wins."""
        contacts = scene.backlog(5)
        mentors: dict[UUID, UUID] = dict(scene.rows("SELECT dynamics_contact_id, id FROM mentors"))  # type: ignore[arg-type]
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
                RunnableStage(session, scene.portal, concurrency=2).run(deadline_seconds=60)

        with in_background(change_minds) as changing, in_background(lambda: deliver(other)):
            deliver(scene.connection)

        assert scene.portal.overlaps == []
        assert scene.portal.visible == wanted
        for contact in contacts:
            keys = [tuple(map(int, str(r.idempotency_key).split("-"))) for r in scene.portal.requests_for(contact)]
            assert keys == sorted(set(keys)), "an older wish after a newer one, or one wish twice"


class TestStop:
    """SIGTERM in the middle of the stage."""

    def test_what_ends_is_settled_and_the_rest_released(self, scene: Scene) -> None:
        scene.backlog(20)
        scene.portal.default = hang(ok())
        stop = StopFlag()

        with in_background(lambda: scene.run_until_signal(stop, concurrency=3)):
            scene.portal.wait_until(lambda: len(scene.portal.requests) == 3)
            stop.set()
            scene.portal.release()

        assert len(scene.portal.requests) == scene.counts.delivered == 3
        assert scene.rows(STATUSES) == [("delivered", 3), ("pending", 17)]
        assert scene.rows(UNTOUCHED) == [(17,)]
        assert scene.rows(FAILURES) == []

    def test_a_call_that_does_not_end_keeps_its_lease(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nobody calls for it beside that call; the grace counts from the signal, not from the stage's next look."""
        monkeypatch.setattr(portal_stage, "GRACE_SECONDS", 0.2)
        monkeypatch.setattr(portal_stage, "LOOK_AGAIN_SECONDS", 3600.0)
        scene.backlog(5)
        scene.portal.default = hang(ok())
        stop = StopFlag()
        began = time.monotonic()

        with in_background(lambda: scene.run_until_signal(stop)):
            scene.portal.wait_until(lambda: len(scene.portal.requests) == 1)
            stop.set()

        assert time.monotonic() - began < 10
        assert scene.rows(UNTOUCHED) == [(4,)]
        leased = "claim_token IS NOT NULL AND next_attempt_at > now()"
        assert scene.rows(f"SELECT attempts FROM portal_sync_events WHERE {leased}") == [(1,)]

    def test_a_wait_between_two_attempts_is_cut_short(self, scene: Scene) -> None:
        """And the round is not counted."""
        scene.backlog(2)
        scene.portal.default = waits(15)
        stop = StopFlag()
        began = time.monotonic()

        with in_background(lambda: scene.run_until_signal(stop, concurrency=2)):
            scene.portal.wait_until(lambda: len(scene.portal.requests) >= 1)
            stop.set()

        assert time.monotonic() - began < 10
        assert scene.rows(UNTOUCHED) == [(2,)]

    def test_before_the_start_nothing_is_claimed(self, scene: Scene) -> None:
        scene.backlog(2)
        stop = StopFlag()
        stop.set()

        scene.run_until_signal(stop)

        assert scene.portal.requests == []
        assert scene.rows(UNTOUCHED) == [(2,)]


class TestStale:
    """Nothing is claimed long before its turn: it may not be wanted any more when that comes."""

    def test_a_newer_hide_goes_instead_of_the_older_show(self, scene: Scene, other: Connection) -> None:
        last = scene.backlog(3, visible=True)[-1]
        ((mentor,),) = scene.rows("SELECT id FROM mentors WHERE dynamics_contact_id = %s", last)

        def hide_the_last(number: int) -> None:
            if number == 1:
                queue_wish(other, UUID(str(mentor)), visible=False)

        portal = DisturbedPortal(hide_the_last)

        scene.run(portal)

        assert [visible for contact, visible, _ in portal.calls if contact == last] == [False]
        assert scene.rows(STATUSES) == [("delivered", 3)]

    def test_no_call_is_made_once_the_portal_is_gone(self, scene: Scene, other: Connection) -> None:
        """The stage does not wait for the review that withdraws."""
        scene.backlog(3)
        portal = DisturbedPortal(lambda _number: other.execute("UPDATE organisations SET portal = NULL"))  # type: ignore[arg-type]

        assert scene.run(portal) is None

        assert len(portal.calls) == 1


class TestCrash:
    """An error that nobody foresaw."""

    def test_the_other_answers_are_settled_and_the_rest_released(self, scene: Scene) -> None:
        """The outcome of the broken call is unknown, so it keeps its lease; the hides are alerts."""
        scene.backlog(10)
        both_begun = threading.Barrier(2, timeout=20)

        def break_down(number: int) -> None:
            if number <= 2:
                both_begun.wait()
            if number == 1:
                message = "a bug"
                raise LookupError(message)

        double = DisturbedPortal(break_down)

        with pytest.raises(LookupError, match="a bug"):
            scene.run(double, concurrency=2)

        done = len(double.calls) - 1
        assert done >= 1
        assert scene.counts.delivered == done
        assert scene.rows(STATUSES) == [("delivered", done), ("pending", 10 - done)]
        assert scene.rows(UNTOUCHED) == [(9 - done,)]
        assert scene.rows("SELECT attempts FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(1,)]
        assert scene.rows(FAILURES) == [("stage", 10 - done)]

    def test_a_task_that_is_cancelled_keeps_its_lease(self, scene: Scene) -> None:
        """Nobody knows how far its call has come; the others go on, however late the loop comes to them."""
        scene.backlog(6)

        class StruckLoop(DisturbedPortal):
            async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
                await super().update_portal_visibility(contact_id, visible=visible, idempotency_key=idempotency_key)
                if idempotency_key == "2-1":
                    raise asyncio.CancelledError
                time.sleep(0.05)

        portal = StruckLoop()

        assert scene.run(portal, concurrency=2) is None

        assert scene.counts.delivered == len(portal.calls) - 1 == 5
        by_status = "SELECT status, claim_token IS NULL, count(*) FROM portal_sync_events GROUP BY 1, 2 ORDER BY 1"
        assert scene.rows(by_status) == [("delivered", True, 5), ("pending", False, 1)]

    def test_a_client_that_cannot_be_made_leaves_everything_as_it_was(self, scene: Scene) -> None:
        scene.backlog(10)
        began = time.monotonic()

        def refuse() -> AbstractAsyncContextManager[PortalTarget]:
            message = "no such file: the certificates"
            raise ConfigurationError(message)

        with pytest.raises(ConfigurationError, match="no such file"):
            scene.run(DisturbedPortal(), concurrency=4, make_target=refuse)

        assert time.monotonic() - began < 5
        assert scene.rows(UNTOUCHED) == [(10,)]

    def test_a_settle_that_breaks_leaves_no_hide_without_a_row(self, scene: Scene) -> None:
        scene.backlog(5)
        scene.connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$;"
            "CREATE TRIGGER refuse BEFORE INSERT ON dynamics_sync_failures"
            " FOR EACH ROW WHEN (NEW.kind = 'transient') EXECUTE FUNCTION refuse()"
        )
        scene.portal.default = DEAD

        assert night(scene.connection, portal=scene.portal, channel=CollectingChannel()).outcome is Outcome.FAILED

        assert scene.rows(FAILURES) == [("stage", 5)]


class Rate(RateLimiter):
    """A rate whose time passes only while somebody waits for a turn."""

    def __init__(self, *, calls_per_second: float) -> None:
        self.now = 1000.0
        super().__init__(calls_per_second=calls_per_second, clock=lambda: self.now)

    def turns(self, number: int) -> list[float]:
        """When the next calls begin, if each begins as soon as it may."""
        moments = []
        for _ in range(number):
            self.now += max(self.seconds_left(), 0.0)
            self.begin()
            moments.append(round(self.now - 1000.0, 6))
        return moments


def test_calls_are_spread_and_idle_time_is_not_saved_up() -> None:
    """Being late once is made up for; without a rate nobody waits."""
    limiter = Rate(calls_per_second=10)
    assert limiter.turns(5) == [0.0, 0.0, 0.1, 0.2, 0.3]
    limiter.now += 60
    assert limiter.turns(12)[-1] == pytest.approx(61.3)
    assert set(Rate(calls_per_second=0).turns(100)) == {0.0}


def test_a_short_hold_is_waited_for_and_a_long_one_is_not() -> None:
    """A caller gives its event back instead of waiting under its lease."""
    limiter = Rate(calls_per_second=0)
    limiter.hold(15)
    limiter.hold(1)
    assert not limiter.is_held
    assert limiter.turns(1) == [15.0]
    halt = asyncio.Event()
    assert asyncio.run(limiter.wait(halt))
    limiter.hold(21)
    assert not asyncio.run(limiter.wait(halt))
    limiter.now += 30
    halt.set()
    assert not asyncio.run(limiter.wait(halt))
