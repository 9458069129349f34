"""Resync of one mentor, now: whatever the retry time says, and whoever else is at work on it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import (
    ConfigurationError,
    DynamicsSyncException,
    MentorBusyError,
    Outcome,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    StoppedBySignalError,
    TransientPortalError,
    UnknownMentorError,
)
from certjob.facts import lookup
from certjob.night import resync
from certjob.night.deliveries import Delivery
from certjob.night.resync import Resync, ResyncTimes
from certjob.portal.push import PortalTarget
from certjob.portal.sync import PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import DisturbedPortal, claim, queue_wish, review, run_out
from tests.support.nights import CollectingChannel, FlakyPortal, delivery, in_background, night
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

YESTERDAY = TODAY - timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)
CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
SHORT = ResyncTimes(lock=0.6, flight=0.6)

EVENT = "SELECT visible, version, status FROM portal_sync_events ORDER BY id DESC LIMIT 1"


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The connection of another run."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def expired(facts: Facts) -> UUID:
    """A mentor of HLF whose certificate was in force until yesterday."""
    return facts.certified_mentor(facts.organisation(), YESTERDAY, contact_id=CONTACT, member_no="M1042")


def resynced(
    connection: Connection,
    mentor_id: UUID,
    portal: PortalTarget | None = None,
    *,
    ways_out: Delivery | None = None,
    times: ResyncTimes = SHORT,
    stop: StopFlag | None = None,
) -> Resync:
    return resync.resync(
        connection,
        mentor_id,
        today=TODAY,
        delivery=ways_out or delivery(portal=portal),
        stop=stop or StopFlag(),
        times=times,
    )


@contextmanager
def resync_under_way(connection: Connection, mentor_id: UUID, portal: PortalTarget) -> Iterator[list[Resync]]:
    """A resync beside the block, which waits for others as long as it takes; its result is there after the block."""
    results: list[Resync] = []
    times = ResyncTimes(lock=30, flight=30)
    with in_background(lambda: results.append(resynced(connection, mentor_id, portal, times=times))):
        yield results


class TestPush:
    """What a coordinator asked for happens now."""

    def test_it_shows_before_and_after(self, connection: Connection, expired: UUID) -> None:
        """The state of the mentor, of the wish, and of what the portal confirmed."""
        result = resynced(connection, expired, FlakyPortal())

        assert result.error is None
        before, after = result.before, result.after
        assert (before.member_no, before.has_portal) == ("M1042", True)
        assert (before.desired, before.pauses, before.acknowledged, before.open_push) == (True, [], None, None)
        assert before.certificates == ["likeperson recorded until 2026-03-09"]
        paused = ["certification_expired"]
        assert (after.desired, after.pauses, after.acknowledged, after.open_push) == (False, paused, False, None)
        assert after.certificates == ["likeperson expired until 2026-03-09"]

    def test_it_pushes_even_if_nothing_changed_and_nobody_else(
        self, connection: Connection, facts: Facts, expired: UUID
    ) -> None:
        """Somebody changed the portal by hand. Another mentor's wish is older, and as due."""
        portal = FlakyPortal()
        night(connection, portal=portal)
        somebody = facts.mentor(facts.organisation("other"))
        queue_wish(connection, somebody, visible=False)

        result = resynced(connection, expired, portal)

        assert result.error is None
        assert [(contact, visible) for contact, visible, _ in portal.calls] == [(CONTACT, False)] * 2
        assert len({key for _, _, key in portal.calls}) == 2
        assert facts.rows(EVENT) == [(False, 1, "delivered")]
        assert facts.rows("SELECT attempts FROM portal_sync_events WHERE mentor_id = %s", somebody) == [(0,)]

    def test_reminders_are_queued_and_not_sent(self, connection: Connection, facts: Facts) -> None:
        mentor_id = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=5))
        channel = CollectingChannel()

        result = resynced(connection, mentor_id, ways_out=delivery(portal=FlakyPortal(), channel=channel))

        assert channel.sent == []
        assert result.report.to_document()["reminders"] == {"queued": 1, "pending": 1}

    @pytest.mark.parametrize(
        ("error", "status", "resolved"),
        [(TransientPortalError("503"), "pending", 3), (PermanentPortalError("404 contact_not_found"), "blocked", 1)],
    )
    def test_it_waits_for_no_retry_time_and_reopens_what_was_refused(
        self,
        connection: Connection,
        facts: Facts,
        expired: UUID,
        error: PortalCallError,
        status: str,
        resolved: int,
    ) -> None:
        night(connection, portal=FlakyPortal(failures=3, error=lambda: error))
        portal = FlakyPortal()

        result = resynced(connection, expired, portal)

        assert result.before.open_push == status
        assert result.error is None
        assert portal.visible == {CONTACT: False}
        assert facts.rows("SELECT visible, version, status FROM portal_sync_events") == [(False, 2, "delivered")]
        failures = "SELECT attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures"
        assert facts.rows(failures) == [(resolved, True)]

    def test_without_a_portal_the_review_is_applied(self, connection: Connection, facts: Facts) -> None:
        """No event, no call, no error."""
        mentor_id = facts.certified_mentor(facts.organisation("nhf", portal=None), YESTERDAY)
        portal = FlakyPortal()

        result = resynced(connection, mentor_id, portal)

        assert result.error is None
        assert portal.calls == []
        assert result.after.pauses == ["certification_expired"]
        assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
        assert result.report.outcome is Outcome.OK

    def test_without_an_address_of_the_portal_the_push_stays_queued(
        self, connection: Connection, facts: Facts, expired: UUID
    ) -> None:
        """And is an alert."""
        result = resynced(connection, expired)

        stopped = ["portal: CERTJOB_PORTAL_URL is not set; the push stays pending"]
        assert list(map(str, result.report.stopped)) == stopped
        assert result.report.outcome is Outcome.ATTENTION
        assert facts.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 0)]
        assert facts.rows("SELECT kind FROM dynamics_sync_failures") == [("stage",)]

    def test_a_mentor_who_is_gone_is_unknown(self, connection: Connection) -> None:
        """Deleted between the look-up and the resync."""
        with pytest.raises(UnknownMentorError, match="does not exist any more"):
            resynced(connection, uuid4(), FlakyPortal())

    def test_a_day_before_the_last_night_is_refused(self, connection: Connection, expired: UUID) -> None:
        """A clock that went back must not bring anybody back."""
        night(connection, TODAY + timedelta(days=1), portal=FlakyPortal())
        portal = FlakyPortal()

        with pytest.raises(ConfigurationError, match="allow-earlier-date"):
            resynced(connection, expired, portal)

        assert portal.calls == []


class TestFailedPush:
    """It did not work, and the caller hears why."""

    @pytest.mark.parametrize(
        ("error", "calls", "words", "event", "failure"),
        [
            (TransientPortalError("503"), 3, "after 3 calls: 503", ("pending", 1, 15), ("transient", 3)),
            (PermanentPortalError("404"), 1, "then run the same command again", ("blocked", 1, 0), ("permanent", 1)),
            (PortalStageError("401"), 1, "portal cannot be pushed to: 401", ("pending", 0, 0), ("stage", 0)),
            (
                TransientPortalError("429 throttled", retry_after_seconds=120),
                1,
                "429 throttled; it is tried again at",
                ("pending", 0, 2),
                ("stage", 0),
            ),
        ],
        ids=["exhausted", "refused", "out of order", "a long Retry-After is not slept"],
    )
    def test_the_error_is_handed_to_the_caller(
        self,
        connection: Connection,
        facts: Facts,
        expired: UUID,
        error: PortalCallError,
        calls: int,
        words: str,
        event: tuple[object, ...],
        failure: tuple[object, ...],
    ) -> None:
        """The state is kept, the event stays open, the run needs attention."""
        portal = FlakyPortal(failures=99, error=lambda: error)

        result = resynced(connection, expired, portal)

        assert isinstance(result.error, DynamicsSyncException)
        assert len(portal.calls) == calls
        assert words in str(result.error)
        assert (result.error.retry_at is not None) is (event[2] != 0)
        if result.error.retry_at is not None:  # a time without its zone is read in another one
            assert str(result.error).endswith(f" {result.error.retry_at:%H:%M %Z}")
        assert result.after.pauses == ["certification_expired"]
        assert result.after.open_push == event[0]
        minutes = "round(extract(epoch FROM next_attempt_at - now()) / 60)"
        assert facts.rows(f"SELECT status, attempts, greatest({minutes}, 0) FROM portal_sync_events") == [event]
        assert facts.rows("SELECT kind, attempts FROM dynamics_sync_failures") == [failure]
        assert facts.rows("SELECT command, outcome FROM job_runs") == [("resync", "attention")]

    def test_a_signal_cuts_the_tries_short(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """The round is not counted; the run was stopped, the portal is not blamed."""
        stop = StopFlag()

        def fail(_number: int) -> None:
            stop.set()
            message = "reset"
            raise TransientPortalError(message)

        portal = DisturbedPortal(fail)

        with pytest.raises(StoppedBySignalError):
            resynced(connection, expired, portal, stop=stop)

        assert len(portal.calls) == 1
        assert facts.rows("SELECT status, attempts, claim_token FROM portal_sync_events") == [("pending", 0, None)]
        assert facts.rows("SELECT outcome FROM job_runs") == [("failed",)]


class TestLocks:
    """Somebody else holds the mentor or a fact about it."""

    def test_it_waits_for_a_locked_mentor(
        self, connection: Connection, other: Connection, app: App, expired: UUID
    ) -> None:
        """Until the other session commits."""
        app.execute("SELECT 1 FROM mentors FOR NO KEY UPDATE")
        portal = FlakyPortal()

        with resync_under_way(connection, expired, portal) as results:
            until(lambda: waits_for_a_lock(other, connection))
            assert portal.calls == []
            app.commit()

        assert results[0].error is None
        assert portal.visible == {CONTACT: False}

    @pytest.mark.parametrize("table", ["mentors", "certificates"])
    def test_an_idle_transaction_does_not_hold_it_for_ever(
        self, connection: Connection, facts: Facts, app: App, expired: UUID, table: str
    ) -> None:
        """A bounded wait, then a clear error; nothing was changed, and no deadlock."""
        app.execute(f"SELECT 1 FROM {table} FOR NO KEY UPDATE".encode())
        began = time.monotonic()

        with pytest.raises(MentorBusyError, match=f"{expired} is locked by another session"):
            resynced(connection, expired, FlakyPortal())

        assert time.monotonic() - began < 10
        app.rollback()
        assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
        assert facts.rows("SELECT status FROM certificates") == [("recorded",)]
        assert resynced(connection, expired, FlakyPortal()).error is None

    def test_the_app_goes_on_meanwhile(self, connection: Connection, app: App, expired: UUID) -> None:
        """It has locked the certificate and now needs the mentor, whom the resync locks: no deadlock."""
        app.execute("SELECT 1 FROM certificates FOR NO KEY UPDATE")
        portal = FlakyPortal()

        with resync_under_way(connection, expired, portal) as results:
            until(lambda: app.execute("SELECT id FROM job_runs").fetchall())
            app.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
            app.commit()

        assert results[0].error is None
        assert results[0].after.pauses == []
        assert portal.visible == {CONTACT: True}


class TestInFlight:
    """A push by another run is on its way."""

    def test_it_waits_for_the_call_and_pushes_the_newer_value(
        self, connection: Connection, facts: Facts, other: Connection, database_url: str, expired: UUID
    ) -> None:
        """Never beside it; the newer value is the last."""
        begun, go_on = threading.Event(), threading.Event()

        def hold(number: int) -> None:
            if number == 1:
                begun.set()
                assert go_on.wait(20)

        portal = DisturbedPortal(hold)

        with in_background(lambda: night(other, portal=portal)), database.connect(database_url) as observer:
            assert begun.wait(20)
            facts.certificate(expired, NEXT_YEAR, issued_on=TODAY)
            with resync_under_way(connection, expired, portal) as results:
                until(lambda: Facts(observer).rows(EVENT) != [(False, 1, "pending")])
                assert portal.values == [False]
                go_on.set()

        assert portal.overlaps == []
        assert portal.values[-1] is True
        assert portal.values.count(False) == 1
        assert results[0].error is None
        assert results[0].after.acknowledged is True

    def test_a_call_that_does_not_end_is_not_waited_for_for_ever(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID
    ) -> None:
        """The version is raised, so the other run carries the new value; that run may be gone, so it is an alert."""
        queue_wish(connection, facts.mentor(facts.organisation("other")), visible=False)
        review(connection)
        ((theirs, _),) = PortalSyncService(other, run_id=uuid4()).claim_mentor(expired)
        facts.connection.execute("UPDATE mentors SET left_at = now() WHERE id = %s", (expired,))
        portal = FlakyPortal()

        result = resynced(connection, expired, portal, times=ResyncTimes(flight=0.1))

        assert isinstance(result.error, MentorBusyError)
        assert str(result.error) == "a push by another run is in flight and will carry the new value"
        assert portal.calls == []
        event = "SELECT version, claim_token FROM portal_sync_events WHERE mentor_id = %s"
        assert facts.rows(event, expired) == [(theirs.version + 1, theirs.claim_token)]
        assert facts.rows("SELECT mentor_id, kind FROM dynamics_sync_failures") == [(expired, "stage")]
        assert facts.rows("SELECT outcome FROM job_runs") == [("attention",)]

    def test_one_that_slept_past_its_lease_does_not_repeat_its_call(
        self, connection: Connection, facts: Facts, other: Connection, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another run has pushed a newer value meanwhile; that it lost its lease is no failed push."""
        mentor = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=100))
        read_clock, asleep_seconds = time.clock_gettime, [0.0]
        monkeypatch.setattr(time, "clock_gettime", lambda clock: read_clock(clock) + asleep_seconds[0])

        def sleep_and_be_overtaken(number: int) -> None:
            if number > 1:
                return
            asleep_seconds[0] = 1000.0
            run_out(facts)
            facts.connection.execute("UPDATE mentors SET left_at = now()")
            assert resynced(other, mentor, portal).error is None
            message = "connection reset"
            raise TransientPortalError(message)

        portal = DisturbedPortal(sleep_and_be_overtaken)
        with database.connect(connection.info.dsn) as sleeper:
            result = resynced(sleeper, mentor, portal)

        assert portal.values == [True, False]
        assert result.error is None

    @pytest.mark.parametrize("becomes", ["delivered", "blocked", "withdrawn"])
    def test_what_the_other_run_does_with_it_meanwhile_is_what_counts(
        self, connection: Connection, other: Connection, expired: UUID, becomes: str
    ) -> None:
        """Delivered or withdrawn there needs no push; refused there it is tried, and the caller gets the reason."""
        review(connection)
        (event,) = claim(other)
        portal = FlakyPortal(failures=9, error=lambda: PermanentPortalError("404 contact_not_found"))

        with resync_under_way(connection, expired, portal) as results:
            until(lambda: Facts(other).rows(EVENT) == [(False, 2, "pending")])
            if becomes == "withdrawn":
                other.execute("UPDATE organisations SET portal = NULL")
                review(other)
            else:
                settle = "UPDATE portal_sync_events SET status = %s, claim_token = NULL WHERE claim_token = %s"
                other.execute(settle, (becomes, event.claim_token))

        if becomes == "blocked":
            assert "404 contact_not_found" in str(results[0].error)
            assert results[0].after.open_push == "blocked"
        else:
            assert results[0].error is None
            assert portal.calls == []

    @pytest.mark.parametrize("ends", ["- interval '1 second'", "+ interval '1 year'"])
    def test_a_lease_that_is_over_or_from_the_future_is_taken_over(
        self, connection: Connection, other: Connection, expired: UUID, ends: str
    ) -> None:
        """The other run is gone; or a server whose clock was wrong gave it."""
        queue_wish(connection, expired, visible=False)
        claim(other)
        connection.execute(f"UPDATE portal_sync_events SET next_attempt_at = now() {ends}".encode())
        portal = FlakyPortal()

        assert resynced(connection, expired, portal).error is None
        assert portal.visible == {CONTACT: False}

    def test_two_resyncs_at_once_end_with_the_right_value(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID
    ) -> None:
        """Each returns when the value is on the portal; no two calls at once."""
        night(connection, portal=FlakyPortal(failures=99))
        portal = DisturbedPortal(lambda _number: time.sleep(0.05))

        with resync_under_way(connection, expired, portal) as first, resync_under_way(other, expired, portal) as second:
            pass

        assert [first[0].error, second[0].error] == [None, None]
        assert portal.overlaps == []
        assert portal.visible == {CONTACT: False}
        assert facts.rows(EVENT)[0][2] == "delivered"
        assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]

    def test_a_wish_during_its_own_call_is_pushed_by_it_too(
        self, connection: Connection, other: Connection, expired: UUID
    ) -> None:
        """The mentor is renewed while the resync hides them: it ends with the newer value."""

        def renew(number: int) -> None:
            if number == 1:
                Facts(other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
                review(other)

        portal = DisturbedPortal(renew)

        result = resynced(connection, expired, portal)

        assert portal.values == [False, True]
        assert result.error is None
        assert result.after.acknowledged is True


class TestFindMentor:
    """Id, member number or e-mail address."""

    def test_a_name_finds_its_mentor(self, connection: Connection, expired: UUID) -> None:
        """An e-mail address or an id in either case. A contact id is no mentor's id, and nothing is a pattern."""
        for name in ("M1042", "m1042@example.org", "M1042@Example.ORG", str(expired), str(expired).upper()):
            assert lookup.find_mentor(connection, name, organisation=None) == expired
        for name in ("M9999", "%", str(CONTACT)):
            with pytest.raises(UnknownMentorError, match=repr(name)) as caught:
                lookup.find_mentor(connection, name, organisation=None)
            assert caught.value.exit_code == 2

    def test_an_ambiguous_name_is_an_error_with_the_candidates(
        self, connection: Connection, facts: Facts, expired: UUID
    ) -> None:
        """Member numbers and organisations, so that one can be chosen; an organisation narrows."""
        twin = facts.mentor(facts.organisation("nhf", portal=None), member_no="M1042")

        with pytest.raises(UnknownMentorError) as caught:
            lookup.find_mentor(connection, "M1042", organisation=None)

        for part in ("fits 2 mentors", "M1042 of hlf", "M1042 of nhf", "--organisation"):
            assert part in str(caught.value)
        assert lookup.find_mentor(connection, "M1042", organisation="hlf") == expired
        assert lookup.find_mentor(connection, "M1042", organisation="nhf") == twin
        with pytest.raises(ConfigurationError, match="no organisation 'nowhere'"):
            lookup.find_mentor(connection, "M1042", organisation="nowhere")
