"""The portal stage over real HTTP: when it goes on, when it stops, and that nobody is called twice at once."""

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, Outcome, StoppedBySignalError, TransientPortalError
from certjob.night import nightly
from certjob.outbox.claims import Answer, Lease, StageStop
from certjob.portal import push, rate
from certjob.portal import stage as portal_stage
from certjob.portal.push import PortalEvent, PortalTarget, Push
from certjob.portal.rate import RateLimiter
from certjob.portal.sync import PortalCounts, PortalSyncService
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.facts import TODAY, Facts
from tests.support.intents import DisturbedPortal, backlog, queue_wish, run_out
from tests.support.nights import CollectingChannel, NoProgress, delivery, in_background, night, quick_policy
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, delay, error, hang, html, ok, redirect
from tests.support.portal_server import PortalServer
from tests.support.stages import RunnableStage
from tests.support.waiting import until

UNTOUCHED = "SELECT count(*) FROM portal_sync_events WHERE status = 'pending' AND attempts = 0 AND claim_token IS NULL"
FAILURES = "SELECT kind, count(*) FROM dynamics_sync_failures GROUP BY kind ORDER BY kind"
STATUSES = "SELECT status, count(*) FROM portal_sync_events GROUP BY status ORDER BY status"


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The Edge Function's stand-in."""
    with PortalServer() as server:
        yield server
        server.release()


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> float:
    """Make a Retry-After of more than 0.2 s a long one, instead of more than 20 s."""
    seconds = 0.2
    monkeypatch.setattr(push, "LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS", seconds)
    monkeypatch.setattr(rate, "LONGEST_RETRY_AFTER_SLEPT_IN_CALL_SECONDS", seconds)
    return seconds


def code_of(stopped: StageStop | None) -> str | None:
    return None if stopped is None else stopped.code


def stopped_by_signal(running: RunnableStage) -> None:
    with pytest.raises(StoppedBySignalError):
        running.run(deadline_seconds=3600)


def after(moment: threading.Event, then: Behaviour) -> Behaviour:
    """Wait for the moment and a little more, ``then`` behave."""

    def behave(exchange: Exchange) -> None:
        moment.wait(20)
        delay(0.1, then)(exchange)

    return behave


class TestDelivery:
    """When all is well."""

    def test_a_backlog_of_several_claims_is_delivered(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Each contact once, over a few connections, and the stage ends by itself."""
        contacts = backlog(facts, 250)
        running = RunnableStage(connection, portal)

        stopped = running.run(deadline_seconds=60)

        assert stopped is None
        assert sorted(r.contact_id for r in portal.requests if r.contact_id) == sorted(contacts)
        assert portal.visible == dict.fromkeys(contacts, False)
        assert facts.rows(STATUSES) == [("delivered", 250)]
        assert running.counts.delivered == 250
        assert portal.connections_made < 10  # each may be replaced when it was idle for long

    def test_nothing_to_do_makes_no_client(self, connection: Connection) -> None:
        """A night without events costs one look."""

        def refuse() -> AbstractAsyncContextManager[PortalTarget]:
            raise AssertionError

        assert RunnableStage(connection, DisturbedPortal(), make_target=refuse).run(deadline_seconds=60) is None

    def test_all_slots_are_used(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """So many calls at once and no more, and never two for one contact."""
        backlog(facts, 16)
        portal.default = delay(0.1)

        RunnableStage(connection, portal, concurrency=4).run(deadline_seconds=60)

        assert portal.peak_in_flight == 4
        assert portal.overlaps == []

    def test_one_slot_keeps_the_order(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Hides before shows."""
        shows = backlog(facts, 3, visible=True)
        hides = backlog(facts, 3)

        RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert [request.contact_id for request in portal.requests] == hides + shows

    def test_what_fails_for_a_while_is_delivered(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Retries of one contact never overlap, whatever the others do."""
        contacts = backlog(facts, 20)
        portal._decide = lambda request: (
            ok() if len(portal.requests_for(request.contact_id or uuid4())) == 3 else error(503, "dynamics_unavailable")
        )

        stopped = RunnableStage(connection, portal, concurrency=4).run(deadline_seconds=60)

        assert stopped is None
        assert portal.visible == dict.fromkeys(contacts, False)
        assert portal.overlaps == []
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]


class TestBreaker:
    """A dead endpoint is not asked 300 times."""

    @pytest.mark.parametrize(("concurrency", "attempts"), [(1, 3), (4, 3), (16, 3), (16, 5)])
    def test_it_gets_a_hundred_requests_at_most(
        self, connection: Connection, facts: Facts, portal: PortalServer, concurrency: int, attempts: int
    ) -> None:
        """Then the stage stops; what was not tried is as it was."""
        backlog(facts, 300)
        portal.default = error(500, "dynamics_unavailable")
        running = RunnableStage(connection, portal, concurrency=concurrency, policy=quick_policy(max_attempts=attempts))

        stopped = running.run(deadline_seconds=60)

        assert code_of(stopped) == "breaker"
        assert len(portal.requests) <= 100
        failed = running.counts.failed
        assert 5 <= failed <= 4 + concurrency
        assert facts.rows(UNTOUCHED) == [(300 - failed,)]
        assert facts.rows(
            "SELECT count(*) FROM portal_sync_events WHERE attempts = 1 AND next_attempt_at > now() + interval '14 min'"
        ) == [(failed,)]
        assert facts.rows(FAILURES) == [("stage", 300 - failed), ("transient", failed)]

    def test_a_refused_connection_is_as_dead(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Nobody listens any more."""
        backlog(facts, 20)
        portal.__exit__(None, None, None)

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        portal.__enter__()
        assert code_of(stopped) == "breaker"
        assert facts.rows(UNTOUCHED) == [(15,)]

    def test_the_line_says_what_happened(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """How many, the last reason, and what becomes of the rest."""
        backlog(facts, 6)
        portal.default = error(500, "dynamics_unavailable")

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert str(stopped).startswith("portal: 5 pushes in a row failed (last: the portal answered 500 dynamics_unav")
        assert str(stopped).endswith("the rest stays pending")

    @pytest.mark.parametrize(
        "between", [ok(), error(404, "contact_not_found")], ids=["a success", "a refusal by the function"]
    )
    def test_a_sign_of_life_begins_the_count_anew(
        self, connection: Connection, facts: Facts, portal: PortalServer, between: Behaviour
    ) -> None:
        """Four failures, an answer, four failures: these contacts fail, the endpoint lives."""
        contacts = backlog(facts, 9)
        portal._decide = lambda request: (
            between if request.contact_id == contacts[4] else error(500, "dynamics_unavailable")
        )

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert stopped is None
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures WHERE kind = 'transient'") == [(8,)]

    @pytest.mark.parametrize("concurrency", [1, 4])
    def test_what_fails_again_and_again_does_not_keep_the_others_from_their_turn(
        self, connection: Connection, facts: Facts, portal: PortalServer, concurrency: int
    ) -> None:
        """Hides that never succeed go last; the shows would wait behind them for ever."""
        hopeless = backlog(facts, 20)
        connection.execute("UPDATE portal_sync_events SET attempts = 3")
        shows = backlog(facts, 20, visible=True)
        portal._decide = lambda request: error(500, "dynamics_unavailable") if request.contact_id in hopeless else ok()

        stopped = RunnableStage(connection, portal, concurrency=concurrency).run(deadline_seconds=60)

        assert portal.visible == dict.fromkeys(shows, True)
        assert str(stopped).startswith("portal: 5 pushes in a row failed (last: the portal answered 500")
        assert len({r.contact_id for r in portal.requests} & set(hopeless)) < 5 + 2 * concurrency
        waiting = "SELECT count(*) FROM portal_sync_events WHERE attempts = 3 AND next_attempt_at <= now()"
        ((left,),) = facts.rows(waiting)
        assert 15 >= int(str(left)) > 15 - 2 * concurrency

    def test_on_the_second_morning_of_an_outage_the_untried_go_first(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Five of them show that the endpoint is dead still; of what failed before nobody is asked again."""
        backlog(facts, 20)
        connection.execute("UPDATE portal_sync_events SET attempts = 1")
        backlog(facts, 20, visible=True)
        portal.default = error(500, "dynamics_unavailable")

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert code_of(stopped) == "breaker"
        assert [request.visible for request in portal.requests] == [True] * 15

    def test_the_attempt_of_a_process_that_died_is_taken_back(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Nothing is known to be wrong with its event: a hide keeps its place before the shows."""
        shows = backlog(facts, 2, visible=True)
        (hide,) = backlog(facts, 1)
        ((event, _),) = PortalSyncService(connection, run_id=uuid4()).claim(1)
        assert event.contact_id == hide
        run_out(facts)

        RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert [request.contact_id for request in portal.requests] == [hide, *shows]
        assert facts.rows("SELECT DISTINCT attempts FROM portal_sync_events") == [(1,)]

    def test_mentors_without_a_contact_are_no_sign_of_life(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """No call was made for them, so a dead endpoint stays dead."""
        contacts = backlog(facts, 40)
        connection.execute(
            "UPDATE mentors SET dynamics_contact_id = NULL WHERE dynamics_contact_id = ANY (%s)", (contacts[::2],)
        )
        portal.default = error(500, "dynamics_unavailable")

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert code_of(stopped) == "breaker"
        assert len(portal.requests) == 15

    @pytest.mark.parametrize(("attempts", "concurrency"), [(3, 4), (5, 16)])
    def test_no_mixture_of_failures_makes_more_than_a_hundred_calls(
        self, connection: Connection, facts: Facts, short_patience: float, attempts: int, concurrency: int
    ) -> None:
        """Some ask to wait and some do not, so that neither counter alone ever gets far."""
        backlog(facts, 300)
        chance = random.Random(attempts)
        guard = threading.Lock()

        def fail(_number: int) -> None:
            with guard:
                asks = chance.random() < 0.3
            message = "503"
            raise TransientPortalError(message, retry_after_seconds=short_patience + 0.01 if asks else None)

        double = DisturbedPortal(fail)
        policy = dataclasses.replace(quick_policy(max_attempts=attempts), longest_retry_after_seconds=short_patience)

        stopped = RunnableStage(connection, double, concurrency=concurrency, policy=policy).run(deadline_seconds=60)

        assert code_of(stopped) == "breaker"
        assert 15 <= len(double.calls) <= 100
        assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(300,)]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_portal_that_dies_in_full_flight_gets_few_calls_more(
    connection: Connection, facts: Facts, portal: PortalServer, concurrency: int
) -> None:
    """After forty good answers everything fails at once; what was claimed and not begun goes back, uncounted."""
    backlog(facts, 120)
    portal._decide = lambda request: ok() if request.number <= 40 else error(503, "dynamics_unavailable")
    running = RunnableStage(connection, portal, concurrency=concurrency)

    stopped = running.run(deadline_seconds=60)

    assert code_of(stopped) == "breaker"
    assert running.counts.delivered == 40
    assert len(portal.requests) <= 40 + 3 * (5 + concurrency)
    assert facts.rows(UNTOUCHED) == [(80 - running.counts.failed,)]
    assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(0,)]


class TestStageErrors:
    """What concerns everybody stops the stage at once and blocks nobody."""

    @pytest.fixture(params=["401", "redirect", "html 404", "misconfigured"])
    def out_of_order(self, request: pytest.FixtureRequest, portal: PortalServer) -> str:
        """The portal answers everybody so; the words of the reason."""
        match request.param:
            case "401":
                portal.default = error(401, "unauthorized")
                return "401 unauthorized; check CERTJOB_PORTAL_KEY"
            case "redirect":
                portal.default = redirect("https://elsewhere.example/")
                return "302 Found, a redirect"
            case "html 404":
                portal.default = html(404)
                return "404 Not Found, but not by the function"
            case _:
                portal.default = error(500, "misconfigured")
                return "500 misconfigured; check the function's secrets"

    def test_nobody_is_blocked_and_no_attempt_is_counted(
        self, connection: Connection, facts: Facts, portal: PortalServer, out_of_order: str
    ) -> None:
        """One call per thread at most; all events are as they were, and hides are alerts."""
        backlog(facts, 30)
        backlog(facts, 3, visible=True)
        running = RunnableStage(connection, portal, concurrency=4)

        stopped = running.run(deadline_seconds=60)

        assert (code_of(stopped) or "").startswith("refused:")
        assert out_of_order in str(stopped)
        assert len(portal.requests) <= 4
        assert facts.rows(UNTOUCHED) == [(33,)]
        assert service_claims_all(connection) == 33
        assert facts.rows("SELECT DISTINCT visible, kind, attempts FROM dynamics_sync_failures") == [
            (False, "stage", 0)
        ]
        assert facts.rows(
            "SELECT count(*), min(sentence), bool_and(strpos(error, %s) > 0) FROM portal_alerts", out_of_order
        ) == [(30, "Dynamics sync pending — mentor may still be visible on portal", True)]
        assert (running.counts.failed, running.counts.news, running.counts.lost) == (0, 0, 0)

    def test_what_was_on_its_way_is_settled(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """A call that had begun before may still succeed, and then counts."""
        contacts = backlog(facts, 10)
        slow = ok()

        def decide(request: PortalRequest) -> Behaviour:
            return delay(0.3, slow) if request.contact_id == contacts[0] else error(401, "unauthorized")

        portal._decide = decide

        stopped = RunnableStage(connection, portal, concurrency=2).run(deadline_seconds=60)

        assert (code_of(stopped) or "").startswith("refused:")
        assert portal.visible == {contacts[0]: False}
        assert facts.rows(STATUSES) == [("delivered", 1), ("pending", 9)]
        assert facts.rows(FAILURES) == [("stage", 9)]

    def test_the_next_run_delivers_and_resolves(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Once the key is right, nothing is left of it."""
        backlog(facts, 3)
        portal.default = error(401, "unauthorized")
        RunnableStage(connection, portal).run(deadline_seconds=60)
        portal.default = ok()

        assert RunnableStage(connection, portal).run(deadline_seconds=60) is None

        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]


def service_claims_all(connection: Connection) -> int:
    """How many events another run could claim now."""
    return len(PortalSyncService(connection, run_id=uuid4()).claim(1000))


class TestShortRetryAfter:
    """Up to 20 s: slept in the round, while the other threads hold, too."""

    def test_the_other_threads_hold(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Nobody begins a call before the time is over."""
        backlog(facts, 8)
        # The second thread's call is on its way when the first one is told to wait.
        portal.then(error(429, "throttled", retry_after="1"), delay(0.3))

        stopped = RunnableStage(connection, portal, concurrency=2).run(deadline_seconds=60)

        first, _, *later = portal.requests
        assert stopped is None
        assert len(later) == 7
        assert min(request.arrived_seconds for request in later) - first.arrived_seconds >= 1.0

    def test_the_wait_is_kept_after_the_last_attempt_too(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The round is over, but the portal wants to be left alone by the next event as well."""
        backlog(facts, 2)
        portal.then(error(429, "throttled", retry_after="1"))

        RunnableStage(connection, portal, concurrency=1, policy=quick_policy(max_attempts=1)).run(deadline_seconds=60)

        first, second = portal.requests
        assert second.arrived_seconds - first.arrived_seconds >= 1.0
        assert facts.rows(FAILURES) == [("transient", 1)]


@pytest.mark.usefixtures("short_patience")
class TestLongRetryAfter:
    """Longer: the event is released to that time, and the stage sleeps or stops."""

    def test_the_stage_sleeps_and_goes_on(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """No call in between, no failure row, no round counted; in the end everything is delivered."""
        backlog(facts, 10)
        portal.then(error(503, "token_unavailable", retry_after="0.6"))

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        first, second, *_ = portal.requests
        assert stopped is None
        assert second.arrived_seconds - first.arrived_seconds >= 0.55
        assert len(portal.requests) == 11
        assert facts.rows("SELECT status, attempts, count(*) FROM portal_sync_events GROUP BY 1, 2") == [
            ("delivered", 1, 10)
        ]
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]

    def test_no_lease_is_held_meanwhile(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """What was claimed and not begun is free for others; the event itself is due when the portal said."""
        backlog(facts, 10)
        portal.then(error(503, "token_unavailable", retry_after="60"))
        stop = StopFlag()

        with in_background(lambda: stopped_by_signal(RunnableStage(connection, portal, concurrency=1, stop=stop))):
            until(lambda: len(portal.requests) == 1)
            with database.connect(connection.info.dsn) as observer:
                until(lambda: Facts(observer).rows(UNTOUCHED) == [(10,)])
                rows = Facts(observer).rows(
                    "SELECT next_attempt_at - now() > interval '50 s', strpos(last_error, 'token_unavailable') > 0"
                    " FROM portal_sync_events ORDER BY next_attempt_at DESC"
                )
            stop.set()

        assert rows[0] == (True, True)
        assert {row[0] for row in rows[1:]} == {False}
        assert len(portal.requests) == 1

    def test_a_repeat_on_its_way_gives_way(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Another thread's event between two attempts is released, not failed: nobody waits under a lease."""
        first, second = backlog(facts, 2)
        told_to_wait = threading.Event()

        def decide(request: PortalRequest) -> Behaviour:
            if len(portal.requests_for(second)) == 1 and request.contact_id == second:
                told_to_wait.set()
                return error(503, "token_unavailable", retry_after="0.6")
            if len(portal.requests_for(first)) == 1 and request.contact_id == first:
                return after(told_to_wait, error(500, "dynamics_unavailable"))
            return ok()

        portal._decide = decide

        stopped = RunnableStage(connection, portal, concurrency=2).run(deadline_seconds=60)

        assert stopped is None
        assert [request.contact_id for request in portal.requests[2:]].count(first) == 1
        assert portal.requests[2].arrived_seconds - portal.requests[1].arrived_seconds >= 0.55
        assert facts.rows("SELECT status, attempts FROM portal_sync_events") == [("delivered", 1)] * 2
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]

    @pytest.mark.parametrize(
        ("retry_after", "deadline_seconds"), [("601", 7200), ("60", 30)], ids=["over 10 minutes", "over the deadline"]
    )
    def test_it_stops_when_the_wait_is_too_long(
        self, connection: Connection, facts: Facts, portal: PortalServer, retry_after: str, deadline_seconds: float
    ) -> None:
        """With the reason; the event waits for that time, and no round is counted."""
        backlog(facts, 10)
        portal.default = error(429, "throttled", retry_after=retry_after)
        running = RunnableStage(connection, portal, concurrency=1)

        stopped = running.run(deadline_seconds=deadline_seconds)

        assert code_of(stopped) == "retry_after"
        assert f"the portal asked to wait {retry_after} s" in str(stopped)
        assert len(portal.requests) == 1
        assert facts.rows(UNTOUCHED) == [(10,)]
        assert facts.rows(
            "SELECT round(extract(epoch FROM max(next_attempt_at) - now()) / 10) FROM portal_sync_events"
        ) == [(round(int(retry_after) / 10),)]
        assert facts.rows(FAILURES) == [("stage", 10)]
        assert running.counts.failed == 0

    def test_the_breaker_does_not_count_it(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """Ten times in a row, and the stage is still there; one call at a time feels its way."""
        backlog(facts, 3)
        portal.then(*[error(429, "throttled", retry_after="0.25")] * 10)

        stopped = RunnableStage(connection, portal, concurrency=3).run(deadline_seconds=60)

        assert stopped is None
        assert facts.rows(STATUSES) == [("delivered", 3)]
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]

    def test_a_settle_that_takes_long_does_not_end_the_wait_too_early(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The wait in the row begins with the settle; a stage that looks before its end would find nothing and end."""

        class SlowService(PortalSyncService):
            def settle(self, push: Push, counts: PortalCounts, *, lock_timeout_ms: int | None = None) -> Answer:
                time.sleep(0.4)  # a busy server; longer than the portal asked to wait
                return super().settle(push, counts, lock_timeout_ms=lock_timeout_ms)

        backlog(facts, 1)
        portal.then(error(429, "throttled", retry_after="0.25"))
        service = SlowService(connection, run_id=uuid4())

        assert RunnableStage(connection, portal, concurrency=1, service=service).run(deadline_seconds=60) is None

        assert facts.rows(STATUSES) == [("delivered", 1)]

    def test_after_an_answer_all_slots_are_used(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """One call feels its way after each wait."""
        backlog(facts, 12)
        wait = error(429, "throttled", retry_after="0.25")
        portal.then(wait, ok(), wait, ok(), wait, ok(), wait)
        portal.default = delay(0.1)
        running = RunnableStage(connection, portal, concurrency=1)

        assert running.run(deadline_seconds=60) is None

        assert facts.rows(STATUSES) == [("delivered", 12)]
        backlog(facts, 8)
        portal.then(wait)
        RunnableStage(connection, portal, concurrency=4).run(deadline_seconds=60)
        assert portal.peak_in_flight == 4

    def test_a_portal_that_says_nothing_else_is_left_alone(
        self, connection: Connection, facts: Facts, portal: PortalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is asked once after each wait, and not for ever."""
        monkeypatch.setattr(portal_stage, "MOST_FAILED_CALLS", 12)
        backlog(facts, 50)
        portal.default = error(429, "throttled", retry_after="0.25")

        stopped = RunnableStage(connection, portal, concurrency=4).run(deadline_seconds=60)

        assert code_of(stopped) == "breaker"
        assert 4 <= len(portal.requests) <= 12
        assert facts.rows(UNTOUCHED) == [(50,)]


class TestDeadline:
    """The time for deliveries is over."""

    def test_what_is_on_its_way_ends_and_the_rest_is_released(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Hides become alerts."""
        backlog(facts, 50)
        portal.default = delay(0.2)

        stopped = RunnableStage(connection, portal, concurrency=2).run(deadline_seconds=0.5)

        begun = len(portal.requests)
        assert code_of(stopped) == "deadline"
        assert 2 <= begun < 50
        assert facts.rows(STATUSES) == [("delivered", begun), ("pending", 50 - begun)]
        assert facts.rows(UNTOUCHED) == [(50 - begun,)]
        assert facts.rows(FAILURES) == [("stage", 50 - begun)]

    def test_a_retry_is_not_begun_after_it(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """A round that it cuts short is not counted as failed."""
        backlog(facts, 1)
        portal.default = delay(0.4, error(500, "dynamics_unavailable"))

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=0.2)

        assert code_of(stopped) == "deadline"
        assert len(portal.requests) == 1
        assert facts.rows(UNTOUCHED) == [(1,)]

    def test_nothing_to_do_is_no_early_end(self, connection: Connection, facts: Facts, portal: PortalServer) -> None:
        """However little time there was, nothing is left undone."""
        assert RunnableStage(connection, portal).run(deadline_seconds=0) is None

    def test_a_last_call_that_ends_after_it_is_no_early_end(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """It has done everything."""
        backlog(facts, 2)
        portal.default = delay(0.4)

        stopped = RunnableStage(connection, portal, concurrency=2).run(deadline_seconds=0.2)

        assert stopped is None
        assert facts.rows(STATUSES) == [("delivered", 2)]


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

    def test_a_lease_that_is_too_short_from_the_start_stops_the_stage(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """Released and not called, and not claimed over and over again."""
        backlog(facts, 5)
        short = PortalSyncService(connection, run_id=uuid4(), lease_seconds=100)

        stopped = RunnableStage(connection, portal, service=short).run(deadline_seconds=60)

        assert code_of(stopped) == "lease"
        assert portal.requests == []
        assert facts.rows(UNTOUCHED) == [(5,)]

    def test_what_does_not_fit_any_more_is_released(self, connection: Connection, facts: Facts) -> None:
        """The laptop was closed just after a claim: nobody is called under that lease."""
        backlog(facts, 6)
        sleepy = SleepyService(connection, run_id=uuid4())
        sleepy.sleeps_after_claim = 4
        double = DisturbedPortal(lambda _number: None)

        stopped = RunnableStage(connection, double, concurrency=1, service=sleepy).run(deadline_seconds=60)

        assert code_of(stopped) == "lease"
        assert len(double.calls) == 3
        assert facts.rows(UNTOUCHED) == [(3,)]

    def test_a_repeat_that_does_not_fit_any_more_is_not_made(self, connection: Connection, facts: Facts) -> None:
        """The round ends with the calls that were made."""
        backlog(facts, 1)
        sleepy = SleepyService(connection, run_id=uuid4())

        def close_the_lid(_number: int) -> None:
            sleepy.slept_seconds = 280.0
            message = "reset"
            raise TransientPortalError(message)

        double = DisturbedPortal(close_the_lid)

        RunnableStage(connection, double, concurrency=1, service=sleepy).run(deadline_seconds=60)

        assert len(double.calls) == 1
        assert facts.rows("SELECT kind, attempts FROM dynamics_sync_failures") == [("transient", 1)]


class TestNoUrl:
    """CERTJOB_PORTAL_URL is not set."""

    def test_the_events_stay_and_the_hides_are_alerts(self, connection: Connection, facts: Facts) -> None:
        """One line says so."""
        backlog(facts, 2)
        backlog(facts, 1, visible=True)

        report = night(connection, channel=CollectingChannel())

        assert [str(line) for line in report.stopped] == [
            "portal: CERTJOB_PORTAL_URL is not set; 3 pushes stay pending"
        ]
        assert report.outcome == "attention"
        assert facts.rows(UNTOUCHED) == [(3,)]
        assert facts.rows(FAILURES) == [("stage", 2)]

    def test_without_events_nobody_misses_it(self, connection: Connection, facts: Facts) -> None:
        """An installation without a portal is no problem."""
        facts.organisation(portal=None)

        assert night(connection).outcome == "ok"


class TestSharing:
    """Several runs at once share the work."""

    def test_two_stages_share_a_backlog(
        self, connection: Connection, facts: Facts, other: Connection, portal: PortalServer
    ) -> None:
        """Every contact is called once; nobody's lease is lost."""
        contacts = backlog(facts, 150)
        portal.default = delay(0.005)
        mine, theirs = RunnableStage(connection, portal), RunnableStage(other, portal)

        with in_background(lambda: theirs.run(deadline_seconds=60)):
            mine.run(deadline_seconds=60)

        assert sorted(r.contact_id for r in portal.requests if r.contact_id) == sorted(contacts)
        assert portal.overlaps == []
        assert mine.counts.delivered + theirs.counts.delivered == 150
        assert mine.counts.lost + theirs.counts.lost == 0

    def test_two_processes_share_a_backlog(self, facts: Facts, portal: PortalServer, certjob: Certjob) -> None:
        """The installed command, twice at once."""
        contacts = backlog(facts, 150)
        portal.default = delay(0.01)

        def deliver(_number: int) -> int:
            return certjob(
                "deliver",
                CERTJOB_PORTAL_URL=portal.url,
                CERTJOB_PORTAL_KEY=portal.key,
                CERTJOB_NOTIFY_URL="maildir:/tmp",
            ).returncode

        with ThreadPoolExecutor(2) as pool:
            exit_codes = list(pool.map(deliver, range(2)))

        assert exit_codes == [0, 0]
        assert sorted(r.contact_id for r in portal.requests if r.contact_id) == sorted(contacts)
        assert portal.overlaps == []

    def test_wishes_that_change_all_the_time_end_right(
        self, connection: Connection, facts: Facts, other: Connection, portal: PortalServer, database_url: str
    ) -> None:
        """Two runs deliver while a third session changes its mind: never two calls at once, and the last wish wins."""
        contacts = backlog(facts, 5)
        mentors = {row[0]: row[1] for row in facts.rows("SELECT dynamics_contact_id, id FROM mentors")}
        portal.default = delay(0.01)
        wanted: dict[UUID, bool] = {}

        def change_minds() -> None:
            with database.connect(database_url) as app:
                for number in range(120):
                    contact = contacts[number % 5]
                    wanted[contact] = number % 3 == 0
                    mentor_id = mentors[contact]
                    assert isinstance(mentor_id, UUID)
                    queue_wish(app, mentor_id, visible=wanted[contact])

        def deliver(session: Connection) -> None:
            while changing.is_alive() or Facts(session).rows(
                "SELECT 1 FROM portal_sync_events WHERE status = 'pending'"
            ):
                RunnableStage(session, portal, concurrency=2).run(deadline_seconds=60)

        with in_background(change_minds) as changing, in_background(lambda: deliver(other)):
            deliver(connection)

        assert portal.overlaps == []
        assert portal.visible == wanted
        for contact in contacts:
            keys = [tuple(map(int, str(r.idempotency_key).split("-"))) for r in portal.requests_for(contact)]
            assert keys == sorted(set(keys)), "an older wish after a newer one, or one wish twice"


class TestStop:
    """SIGTERM in the middle of the stage."""

    def test_what_ends_is_settled_and_the_rest_released(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """The calls on their way end in time."""
        backlog(facts, 20)
        portal.default = hang(ok())
        stop = StopFlag()
        running = RunnableStage(connection, portal, concurrency=3, stop=stop)

        with in_background(lambda: stopped_by_signal(running)):
            portal.wait_until(lambda: len(portal.requests) == 3)
            stop.set()
            portal.release()

        assert len(portal.requests) == 3
        assert running.counts.delivered == 3
        assert facts.rows(STATUSES) == [("delivered", 3), ("pending", 17)]
        assert facts.rows(UNTOUCHED) == [(17,)]
        assert facts.rows("SELECT count(*) FROM dynamics_sync_failures") == [(0,)]

    def test_a_call_that_does_not_end_keeps_its_lease(
        self, connection: Connection, facts: Facts, portal: PortalServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody calls for it beside that call; the grace counts from the signal, not from the stage's next look."""
        monkeypatch.setattr(portal_stage, "GRACE_SECONDS", 0.2)
        monkeypatch.setattr(portal_stage, "LOOK_AGAIN_SECONDS", 3600.0)
        backlog(facts, 5)
        portal.default = hang(ok())
        stop = StopFlag()
        began = time.monotonic()
        running = RunnableStage(connection, portal, concurrency=1, stop=stop)

        with in_background(lambda: stopped_by_signal(running)):
            portal.wait_until(lambda: len(portal.requests) == 1)
            stop.set()

        assert time.monotonic() - began < 10
        assert facts.rows(UNTOUCHED) == [(4,)]
        assert facts.rows(
            "SELECT attempts FROM portal_sync_events WHERE claim_token IS NOT NULL AND next_attempt_at > now()"
        ) == [(1,)]

    def test_a_wait_between_two_attempts_is_cut_short(
        self, connection: Connection, facts: Facts, portal: PortalServer
    ) -> None:
        """And the round is not counted."""
        backlog(facts, 2)
        portal.default = error(429, "throttled", retry_after="15")
        stop = StopFlag()
        began = time.monotonic()

        with in_background(lambda: stopped_by_signal(RunnableStage(connection, portal, concurrency=2, stop=stop))):
            portal.wait_until(lambda: len(portal.requests) >= 1)
            stop.set()

        assert time.monotonic() - began < 10
        assert facts.rows(UNTOUCHED) == [(2,)]

    def test_before_the_start_nothing_is_claimed(self, connection: Connection, facts: Facts) -> None:
        """The signal came during the review."""
        backlog(facts, 2)
        stop = StopFlag()
        stop.set()
        double = DisturbedPortal()

        stopped_by_signal(RunnableStage(connection, double, stop=stop))

        assert double.calls == []
        assert facts.rows(UNTOUCHED) == [(2,)]


class TestStale:
    """Nothing is claimed long before its turn: it may not be wanted any more when that comes."""

    def test_a_newer_hide_goes_instead_of_the_older_show(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """The show that was claimed with it is never sent."""
        contacts = backlog(facts, 3, visible=True)
        (last,) = facts.rows("SELECT id FROM mentors WHERE dynamics_contact_id = %s", contacts[2])

        def hide_the_last(number: int) -> None:
            if number == 1:
                queue_wish(other, UUID(str(last[0])), visible=False)

        portal = DisturbedPortal(hide_the_last)

        RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert [visible for contact, visible, _ in portal.calls if contact == contacts[2]] == [False]
        assert facts.rows(STATUSES) == [("delivered", 3)]

    def test_no_call_is_made_once_the_portal_is_gone(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """The organisation left it during the first call; the stage does not wait for the review that withdraws."""
        backlog(facts, 3)

        def leave(number: int) -> None:
            if number == 1:
                other.execute("UPDATE organisations SET portal = NULL")

        portal = DisturbedPortal(leave)

        stopped = RunnableStage(connection, portal, concurrency=1).run(deadline_seconds=60)

        assert stopped is None
        assert len(portal.calls) == 1


class TestCrash:
    """An error that nobody foresaw, in one of the threads."""

    def test_the_other_answers_are_settled_and_the_rest_released(self, connection: Connection, facts: Facts) -> None:
        """The outcome of the broken call is unknown, so it keeps its lease; the hides are alerts."""
        backlog(facts, 10)
        both_begun = threading.Barrier(2, timeout=20)

        def break_down(number: int) -> None:
            if number <= 2:
                both_begun.wait()
            if number == 1:
                message = "a bug"
                raise LookupError(message)

        double = DisturbedPortal(break_down)
        running = RunnableStage(connection, double, concurrency=2)

        with pytest.raises(LookupError, match="a bug"):
            running.run(deadline_seconds=60)

        done = len(double.calls) - 1
        assert done >= 1
        assert running.counts.delivered == done
        assert facts.rows(STATUSES) == [("delivered", done), ("pending", 10 - done)]
        assert facts.rows(UNTOUCHED) == [(9 - done,)]
        assert facts.rows("SELECT attempts FROM portal_sync_events WHERE claim_token IS NOT NULL") == [(1,)]
        assert facts.rows(FAILURES) == [("stage", 10 - done)]

    def test_the_threads_end_also_when_the_database_is_gone(
        self, connection: Connection, facts: Facts, other: Connection
    ) -> None:
        """Each holds a connection to the portal."""
        backlog(facts, 3)
        backend = connection.info.backend_pid

        def kill(_number: int) -> None:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))

        with pytest.raises(psycopg.Error):
            RunnableStage(connection, DisturbedPortal(kill), concurrency=2).run(deadline_seconds=60)

        until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("portal-")])

    def test_a_task_that_is_cancelled_keeps_its_lease(self, connection: Connection, facts: Facts) -> None:
        """Nobody knows how far its call has come; the others go on, however late the loop comes to them."""
        backlog(facts, 6)

        class StruckLoop(DisturbedPortal):
            async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
                await super().update_portal_visibility(contact_id, visible=visible, idempotency_key=idempotency_key)
                if idempotency_key == "2-1":
                    raise asyncio.CancelledError
                time.sleep(0.1)

        portal = StruckLoop()
        running = RunnableStage(connection, portal, concurrency=2)

        assert running.run(deadline_seconds=60) is None

        assert running.counts.delivered == len(portal.calls) - 1 == 5
        by_status = "SELECT status, claim_token IS NULL, count(*) FROM portal_sync_events GROUP BY 1, 2 ORDER BY 1"
        assert facts.rows(by_status) == [
            ("delivered", True, 5),
            ("pending", False, 1),
        ]

    def test_a_client_that_cannot_be_made_leaves_everything_as_it_was(
        self, connection: Connection, facts: Facts
    ) -> None:
        """Nothing was begun, so nothing keeps a lease, and the stage ends at once."""
        backlog(facts, 10)
        began = time.monotonic()

        def refuse() -> AbstractAsyncContextManager[PortalTarget]:
            message = "no such file: the certificates"
            raise ConfigurationError(message)

        running = RunnableStage(connection, DisturbedPortal(), concurrency=4, make_target=refuse)

        with pytest.raises(ConfigurationError, match="no such file"):
            running.run(deadline_seconds=60)

        assert time.monotonic() - began < 5
        assert facts.rows(UNTOUCHED) == [(10,)]

    def test_the_mail_goes_out_all_the_same(self, connection: Connection, facts: Facts) -> None:
        """The run says failed, and which stage."""
        backlog(facts, 1)
        facts.certified_mentor(facts.organisation("nhf", portal=None), TODAY + timedelta(days=5))
        channel = CollectingChannel()

        def break_down(_number: int) -> None:
            message = "a bug"
            raise LookupError(message)

        report = night(connection, portal=DisturbedPortal(break_down), channel=channel)

        assert len(channel.sent) == 1
        assert report.outcome is Outcome.FAILED
        assert [(line.stage, line.code) for line in report.stopped] == [("portal", "crash")]
        assert facts.rows("SELECT outcome FROM job_runs") == [("failed",)]

    def test_a_settle_that_breaks_leaves_no_hide_without_a_row(self, connection: Connection, facts: Facts) -> None:
        """Whatever ended the stage, what is open is an alert."""
        backlog(facts, 5)
        facts.connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$;"
            "CREATE TRIGGER refuse BEFORE INSERT ON dynamics_sync_failures"
            " FOR EACH ROW WHEN (NEW.kind = 'transient') EXECUTE FUNCTION refuse()"
        )

        def fail(_number: int) -> None:
            message = "503"
            raise TransientPortalError(message)

        report = night(connection, portal=DisturbedPortal(fail), channel=CollectingChannel())

        assert report.outcome is Outcome.FAILED
        assert facts.rows(FAILURES) == [("stage", 5)]

    def test_it_is_said_every_time(self, connection: Connection, facts: Facts) -> None:
        """A background job keeps quiet about what it said before, but not about a crash."""
        backlog(facts, 1)

        def break_down(_number: int) -> None:
            message = "a bug"
            raise LookupError(message)

        for _ in range(2):
            report = nightly.deliver(
                connection,
                today=TODAY,
                delivery=delivery(portal=DisturbedPortal(break_down)),
                stop=StopFlag(),
                progress=NoProgress(),
            )
            facts.connection.execute("UPDATE portal_sync_events SET claim_token = NULL, next_attempt_at = now()")

            assert report.outcome is Outcome.FAILED
            assert any("LookupError" in reason for reason in report.reasons)
            assert "LookupError" in report.to_document()["error"]["message"]


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


class TestRate:
    """The rate of one process, and holding still."""

    def test_calls_are_spread(self) -> None:
        """Ten in a second at ten per second; being late once is made up for."""
        assert Rate(calls_per_second=10).turns(5) == [0.0, 0.0, 0.1, 0.2, 0.3]

    def test_idle_time_is_not_saved_up(self) -> None:
        """After a pause there is no burst of a minute's calls."""
        limiter = Rate(calls_per_second=10)
        limiter.turns(1)
        limiter.now += 60

        assert limiter.turns(12)[-1] == pytest.approx(61.0)

    def test_without_a_rate_nobody_waits(self) -> None:
        """0 = off."""
        assert set(Rate(calls_per_second=0).turns(100)) == {0.0}

    def test_a_short_hold_is_waited_for(self) -> None:
        """And a shorter one does not end it."""
        limiter = Rate(calls_per_second=0)
        limiter.hold(15)
        limiter.hold(1)

        assert not limiter.is_held
        assert limiter.turns(1) == [15.0]

    def test_a_repeat_gives_way_to_a_long_hold_and_to_the_end(self) -> None:
        """The caller gives its event back instead of waiting under its lease."""
        limiter = Rate(calls_per_second=0)
        halt = asyncio.Event()
        assert asyncio.run(limiter.wait(halt))
        limiter.hold(21)
        assert not asyncio.run(limiter.wait(halt))
        limiter.now += 30
        halt.set()
        assert not asyncio.run(limiter.wait(halt))
