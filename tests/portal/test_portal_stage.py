"""The portal stage over real HTTP: when it goes on, when it stops, and that nobody is called twice at once."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob.errors import Outcome, PortalStageError, TransientPortalError
from certjob.outbox import calls as outside
from certjob.portal.push import PushOutcome
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.support.nights import FlakyPortal, delivery, in_background, night, quick_policy
from tests.support.portal_answers import Behaviour, delay, error, hang, ok
from tests.support.scene import Scene, push_once

DEAD, REFUSED = error(500, "dynamics_unavailable"), error(404, "contact_not_found")
UNTOUCHED = "SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL"
FAILURES = "SELECT kind, count(*) FROM dynamics_sync_failures GROUP BY kind ORDER BY kind"
STATUSES = "SELECT status, count(*) FROM portal_sync_events GROUP BY status ORDER BY status"


IMPATIENT = replace(quick_policy(), longest_retry_after_seconds=0.2)
"""A Retry-After of more than 0.2 s is a long one, instead of more than 20 s."""


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


def test_a_backlog_is_delivered_a_few_at_a_time_and_nothing_overlaps(scene: Scene) -> None:
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


def test_moves_of_the_last_day_are_pushed_last(scene: Scene) -> None:
    """A renewed mentor stays visible meanwhile, so everyone else comes first."""
    move, show, tried_show = (scene.backlog(1, visible=True)[0] for _ in range(3))
    scene.run_sql("UPDATE portal_sync_events SET moved_from = '2026-06-01' WHERE id = 1")
    scene.run_sql("UPDATE portal_sync_events SET attempts = 2 WHERE id = 3")

    scene.run_stage()

    assert [request.contact_id for request in scene.portal.requests] == [show, tried_show, move]


@pytest.mark.parametrize(("concurrency", "attempts"), [(1, 3), (4, 3)])
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
    """One call; hides are alerts until they are delivered."""
    first, *_ = scene.backlog(30)
    scene.backlog(3, visible=True)
    scene.portal.decide = lambda request: ok() if request.contact_id == first else error(401, "unauthorized")

    assert scene.run_stage() == "key_refused"

    assert "; check CERTJOB_PORTAL_KEY" in scene.said
    assert len(scene.portal.requests) == 2
    assert (scene.counts, scene.portal.visible) == (PortalCounts(delivered=1), {first: False})
    assert (scene.rows(UNTOUCHED), scene.rows(STATUSES)) == ([(32,)], [("delivered", 1), ("pending", 32)])
    alerts = "SELECT calls, count(*) FROM open_pushes WHERE NOT visible AND error LIKE '%%401 unauth%%' GROUP BY 1"
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
    scene.portal.then(waits(0.6))

    assert scene.run_stage(policy=quick_policy(max_attempts=attempts)) is None

    assert len(scene.portal.requests) == (9 if attempts == 3 else 8)
    assert seconds_between(scene, 1, 2) >= 0.6
    assert scene.rows(FAILURES) == failures


class TestLongRetryAfter:
    """Longer: the event is released to that time, and the stage sleeps or stops."""

    def test_the_stage_sleeps_and_goes_on(self, scene: Scene) -> None:
        """No call in between, no lease held, no failure row, no round counted, and the breaker counts nothing."""
        scene.backlog(8)
        scene.portal.then(*[waits(0.3)] * 6)

        assert scene.run_stage(policy=IMPATIENT) is None

        assert all(seconds_between(scene, told, told + 1) >= 0.3 for told in range(1, 7))
        assert len(scene.portal.requests) == 14
        assert scene.rows("SELECT DISTINCT status, attempts FROM portal_sync_events") == [("delivered", 1)]
        assert scene.rows(FAILURES) == []

    @pytest.mark.parametrize(
        ("seconds", "deadline", "calls"),
        [
            pytest.param(601, 7200, 1, id="more than 10 minutes"),
            pytest.param(60, 30, 1, id="longer than there is time"),
            pytest.param(0.25, 1, 4, id="again and again: it is asked once after each wait"),
        ],
    )
    def test_it_stops_when_the_wait_is_too_long(
        self, scene: Scene, seconds: float, deadline: float, calls: int
    ) -> None:
        """With the reason; the event waits for that time, and no round is counted."""
        scene.backlog(10)
        scene.portal.default = waits(seconds)

        assert scene.run_stage(seconds=deadline, policy=IMPATIENT) == "retry_after"

        assert f"the portal asked to wait {seconds:,.0f} s" in scene.said
        assert 1 <= len(scene.portal.requests) <= calls
        due = "SELECT max(extract(epoch FROM next_attempt_at - now())) FROM portal_sync_events"
        assert seconds - 5 < float(scene.rows(due)[0][0]) <= seconds
        assert (scene.rows(UNTOUCHED), scene.rows(FAILURES)) == ([(10,)], [("stage", 10)])
        assert scene.counts.failed == 0

    def test_a_settle_that_takes_long_does_not_end_the_wait_too_early(self, scene: Scene) -> None:
        """The wait in the row begins with the settle; a stage that looks before its end would find nothing and end."""
        scene.backlog(1)
        scene.portal.then(waits(0.25))
        busy = disturbed(scene, "settle", before=lambda: time.sleep(0.4))  # longer than the portal asked to wait

        assert scene.run_stage(service=busy, policy=IMPATIENT) is None

        assert scene.rows(STATUSES) == [("delivered", 1)]


@pytest.mark.parametrize(
    ("count", "behaviour", "seconds", "code", "least", "most"),
    [
        pytest.param(50, delay(0.3), 1.5, "deadline", 2, 49, id="what is on its way ends, the rest is released"),
        pytest.param(1, delay(1.8), 1.5, None, 1, 1, id="a last call that ends after it is no early end"),
    ],
)
def test_the_deadline(
    scene: Scene, count: int, behaviour: Behaviour, seconds: float, code: str | None, least: int, most: int
) -> None:
    scene.backlog(count)
    scene.portal.default = behaviour

    assert scene.run_stage(seconds=seconds) == code

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
    ("behaviour", "delivered", "leased"),
    [
        pytest.param(hang(ok()), 3, 0, id="what ends is settled"),
        pytest.param(hang(), 0, 3, id="what does not end in time keeps its lease"),
        pytest.param(waits(15), 0, 0, id="a wait between two attempts is cut short and the round not counted"),
    ],
)
def test_a_signal_ends_the_stage_and_the_rest_is_released(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, behaviour: Behaviour, delivered: int, leased: int
) -> None:
    """After a signal nothing is claimed."""
    monkeypatch.setattr(outside, "GRACE_SECONDS", 1.2 if leased else 60)
    scene.backlog(20)
    scene.portal.default = behaviour
    stop, began = StopFlag(), time.monotonic()

    with in_background(lambda: scene.run_until_signal(stop, concurrency=3)):
        scene.portal.wait_until(lambda: len(scene.portal.requests) == 3)
        stop.set()
        if delivered:
            scene.portal.release()
    assert time.monotonic() - began < 14
    assert scene.counts == PortalCounts(delivered=delivered)
    scene.run_until_signal(stop)

    assert len(scene.portal.requests) == 3
    assert scene.rows(UNTOUCHED) == [(20 - delivered - leased,)]
    held = "attempts = 1 AND claim_token IS NOT NULL AND next_attempt_at > now()"
    assert scene.rows(f"SELECT count(*) FROM portal_sync_events WHERE {held}") == [(leased,)]
    assert scene.rows(FAILURES) == []


def test_what_ends_within_the_grace_is_settled_although_another_hangs(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one: the answers of two are not lost with the third."""
    monkeypatch.setattr(outside, "GRACE_SECONDS", 2.5)
    hanging, *_ = scene.backlog(20)
    scene.portal.decide = lambda request: hang() if request.contact_id == hanging else delay(0.5)
    stop = StopFlag()

    with in_background(lambda: scene.run_until_signal(stop, concurrency=3)):
        scene.portal.wait_until(lambda: len(scene.portal.requests) == 3)
        stop.set()

    assert scene.counts == PortalCounts(delivered=2)
    assert scene.rows("SELECT count(*) FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(1,)]
    assert scene.rows(UNTOUCHED) == [(17,)]


def test_a_slow_call_holds_up_no_other(scene: Scene) -> None:
    """Its slot alone; what has ended is settled meanwhile."""
    slow, *others = scene.backlog(13)
    scene.portal.decide = lambda request: delay(3.0 if request.contact_id == slow else 0.02)
    seen: list[int] = []

    assert scene.run_stage(concurrency=4, on_progress=seen.append) is None

    assert scene.portal.requests[-1].arrived_seconds - scene.portal.requests[0].arrived_seconds < 2.5
    assert (seen, len(others)) == (list(range(1, 14)), 12)


def test_what_was_claimed_while_a_signal_came_is_not_begun(scene: Scene) -> None:
    scene.backlog(3)
    stop = StopFlag()

    scene.run_until_signal(stop, service=disturbed(scene, "claim", before=stop.set))

    assert (scene.portal.requests, scene.rows(UNTOUCHED)) == ([], [(3,)])


def test_a_bug_ends_the_stage_and_leaves_one_call_in_doubt(scene: Scene) -> None:
    """The outcome of the broken call is unknown, so it keeps its lease; the hides are alerts."""
    scene.backlog(10)
    double = FlakyPortal(lambda number: LookupError("a bug") if number == 2 else None)

    report = night(scene.connection, ways_out=delivery(portal=double, concurrency=3))

    assert (report.outcome, report.portal.delivered) == (Outcome.FAILED, 2)
    assert scene.rows(STATUSES) == [("delivered", 2), ("pending", 8)]
    assert scene.rows(UNTOUCHED) == [(7,)]
    assert scene.rows("SELECT attempts FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(1,)]
    assert scene.rows(FAILURES) == [("stage", 8)]


def test_a_settle_that_breaks_leaves_no_hide_unseen(scene: Scene) -> None:
    scene.backlog(5)
    scene.portal.default = DEAD
    scene.run_sql("ALTER TABLE dynamics_sync_failures ADD CONSTRAINT refuse CHECK (kind <> 'transient')")

    assert scene.night(scene.portal).outcome is Outcome.FAILED

    assert scene.rows(FAILURES) == [("stage", 5)]


def test_stage_end_that_is_not_recorded_leaves_no_call_unsettled(scene: Scene) -> None:
    """The calls in flight are settled although the reason of the early end cannot be stored."""
    scene.backlog(5)
    scene.run_sql("ALTER TABLE dynamics_sync_failures ADD CONSTRAINT refuse CHECK (kind <> 'stage')")
    refused = PortalStageError("a wrong key")
    first_is_refused = FlakyPortal(lambda number: refused if number == 1 else time.sleep(0.5))

    report = night(scene.connection, ways_out=delivery(portal=first_is_refused, concurrency=3))

    assert report.outcome is Outcome.FAILED
    assert scene.rows("SELECT count(*) FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(0,)]


def test_lost_database_is_raised_although_its_url_has_become_wrong(scene: Scene) -> None:
    """Then the job starts again, and the command says what is wrong with the URL."""
    scene.backlog(1)
    scene.connection.url = psycopg.conninfo.make_conninfo(scene.connection.url, dbname="renamed")

    def lose_database(_number: int) -> None:
        scene.app.execute("SELECT pg_terminate_backend(%s)", (scene.connection.info.backend_pid,))

    with pytest.raises(psycopg.errors.AdminShutdown):
        scene.run_stage(FlakyPortal(lose_database))
