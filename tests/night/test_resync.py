"""Resync of one mentor, now: whatever the retry time says, and whoever else is at work on it."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
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
def observer(database_url: str) -> Iterator[Connection]:
    """A session that only looks."""
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
        assert (after.desired, after.pauses, after.acknowledged, after.open_push) == (
            False,
            ["certification_expired"],
            False,
            None,
        )
        assert after.certificates == ["likeperson expired until 2026-03-09"]

    def test_it_pushes_even_if_nothing_changed(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """Somebody changed the portal by hand: the wanted value is written again."""
        portal = FlakyPortal()
        night(connection, portal=portal)

        result = resynced(connection, expired, portal)

        assert result.error is None
        assert [visible for _, visible, _ in portal.calls] == [False, False]
        assert len({key for _, _, key in portal.calls}) == 2
        assert facts.rows(EVENT) == [(False, 1, "delivered")]

    def test_reminders_are_queued_and_not_sent(self, connection: Connection, facts: Facts) -> None:
        """The night sends them."""
        mentor_id = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=5))
        channel = CollectingChannel()

        result = resynced(connection, mentor_id, ways_out=delivery(portal=FlakyPortal(), channel=channel))

        assert channel.sent == []
        assert result.report.to_document()["reminders"] == {"queued": 1, "pending": 1}

    def test_it_pushes_nobody_else(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """Another mentor's wish is older, and as due."""
        somebody = facts.mentor(facts.organisation("other"))
        queue_wish(connection, somebody, visible=False)
        portal = FlakyPortal()

        resynced(connection, expired, portal)

        assert portal.visible == {CONTACT: False}
        assert facts.rows("SELECT attempts FROM portal_sync_events WHERE mentor_id = %s", somebody) == [(0,)]

    def test_it_does_not_wait_for_the_retry_time(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """The event failed a minute ago and is due in a quarter of an hour."""
        night(connection, portal=FlakyPortal(failures=3))
        portal = FlakyPortal()

        result = resynced(connection, expired, portal)

        assert result.error is None
        assert portal.visible == {CONTACT: False}
        assert facts.rows("SELECT attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures") == [(3, True)]
        assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(1,)]

    def test_a_blocked_event_is_reopened(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """After somebody corrected what was refused."""
        night(connection, portal=FlakyPortal(failures=1, error=lambda: PermanentPortalError("404 contact_not_found")))
        assert facts.rows(EVENT) == [(False, 1, "blocked")]

        result = resynced(connection, expired, FlakyPortal())

        assert result.before.open_push == "blocked"
        assert result.error is None
        assert facts.rows(EVENT) == [(False, 2, "delivered")]

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

        assert [str(line) for line in result.report.stopped] == [
            "portal: CERTJOB_PORTAL_URL is not set; the push stays pending"
        ]
        assert result.report.outcome is Outcome.ATTENTION
        assert facts.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 0)]
        assert facts.rows("SELECT kind FROM dynamics_sync_failures") == [("stage",)]


class TestFailedPush:
    """It did not work, and the caller hears why."""

    def test_exhausted_attempts_are_handed_to_the_caller(
        self, connection: Connection, facts: Facts, expired: UUID
    ) -> None:
        """The state is kept, the event stays open, the run needs attention."""
        result = resynced(connection, expired, FlakyPortal(failures=99))

        assert isinstance(result.error, DynamicsSyncException)
        assert result.error.attempts == 3
        assert result.after.pauses == ["certification_expired"]
        assert result.after.open_push == "pending"
        assert facts.rows("SELECT command, outcome FROM job_runs") == [("resync", "attention")]

    def test_a_stage_error_blocks_nobody(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """One call; the event is as it was, and an alert."""
        portal = FlakyPortal(failures=1, error=lambda: PortalStageError("401 unauthorized"))

        result = resynced(connection, expired, portal)

        assert len(portal.calls) == 1
        assert isinstance(result.error, DynamicsSyncException)
        assert "401 unauthorized" in str(result.error)
        assert facts.rows("SELECT status, attempts, claim_token FROM portal_sync_events") == [("pending", 0, None)]
        assert facts.rows(
            "SELECT kind, attempts, strpos(error, '401 unauthorized') > 0 FROM dynamics_sync_failures"
        ) == [("stage", 0, True)]
        assert facts.rows("SELECT outcome FROM job_runs") == [("attention",)]

    def test_a_long_retry_after_is_not_slept(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """The error has the time; the event is due then, and no round is counted."""
        portal = FlakyPortal(failures=9, error=lambda: TransientPortalError("429 throttled", retry_after_seconds=120))
        began = time.monotonic()

        result = resynced(connection, expired, portal)

        assert time.monotonic() - began < 30
        assert len(portal.calls) == 1
        assert isinstance(result.error, DynamicsSyncException)
        assert result.error.retry_at is not None
        assert timedelta(seconds=90) < result.error.retry_at - datetime.now(UTC) <= timedelta(seconds=120)
        assert f"{result.error.retry_at:%Y-%m-%d %H:%M}" in str(result.error)
        assert facts.rows(
            "SELECT status, attempts, claim_token, next_attempt_at > now() + interval '90 s' FROM portal_sync_events"
        ) == [("pending", 0, None, True)]
        assert facts.rows("SELECT outcome FROM job_runs") == [("attention",)]

    def test_a_refusal_is_permanent(self, connection: Connection, facts: Facts, expired: UUID) -> None:
        """Blocked, with the next step."""
        portal = FlakyPortal(failures=9, error=lambda: PermanentPortalError("404 contact_not_found"))

        result = resynced(connection, expired, portal)

        assert "correct dynamics_contact_id, then `certjob resync M1042`" in str(result.error)
        assert result.after.open_push == "blocked"
        assert facts.rows("SELECT kind, attempts FROM dynamics_sync_failures") == [("permanent", 1)]

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
        results: list[Resync] = []

        with in_background(
            lambda: results.append(resynced(connection, expired, portal, times=ResyncTimes(lock=30, flight=1)))
        ):
            until(lambda: waits_for_a_lock(other, connection))
            assert portal.calls == []
            app.commit()

        assert results[0].error is None
        assert portal.visible == {CONTACT: False}

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT 1 FROM mentors FOR NO KEY UPDATE",
            "UPDATE certificates SET expires_on = '2027-01-01'",
            "SELECT 1 FROM certificates FOR NO KEY UPDATE",
        ],
        ids=["mentor", "a changed fact", "fact row"],
    )
    def test_an_idle_transaction_does_not_hold_it_for_ever(
        self, connection: Connection, facts: Facts, app: App, expired: UUID, statement: str
    ) -> None:
        """A bounded wait, then a clear error; nothing was changed, and no deadlock."""
        app.execute(statement.encode())
        began = time.monotonic()

        with pytest.raises(MentorBusyError, match="is locked by another session") as caught:
            resynced(connection, expired, FlakyPortal())

        assert str(expired) in str(caught.value)
        assert time.monotonic() - began < 10
        app.rollback()
        assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
        assert facts.rows("SELECT status FROM certificates") == [("recorded",)]
        assert resynced(connection, expired, FlakyPortal()).error is None

    def test_the_app_goes_on_meanwhile(self, connection: Connection, app: App, facts: Facts, expired: UUID) -> None:
        """It has locked the certificate and now needs the mentor, whom the resync locks: no deadlock."""
        app.execute("SELECT 1 FROM certificates FOR NO KEY UPDATE")
        portal = FlakyPortal()
        results: list[Resync] = []

        with in_background(
            lambda: results.append(resynced(connection, expired, portal, times=ResyncTimes(lock=30, flight=1)))
        ):
            until(lambda: bool(facts_of_runs(app)))
            app.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
            app.commit()

        assert results[0].error is None
        assert results[0].after.pauses == []
        assert portal.visible == {CONTACT: True}


def facts_of_runs(app: App) -> list[tuple[object, ...]]:
    """The runs that have begun."""
    return app.execute("SELECT id FROM job_runs").fetchall()


class TestInFlight:
    """A push by another run is on its way."""

    def test_it_waits_for_the_call_and_pushes_the_newer_value(
        self, connection: Connection, facts: Facts, other: Connection, observer: Connection, expired: UUID
    ) -> None:
        """Never beside it; the newer value is the last."""
        begun, go_on = threading.Event(), threading.Event()
        calls: list[bool] = []

        def hold(number: int) -> None:
            calls.append(portal.values[number - 1])
            if number == 1:
                begun.set()
                assert go_on.wait(20)

        portal = DisturbedPortal(hold)
        results: list[Resync] = []

        with in_background(lambda: night(other, portal=portal)):
            assert begun.wait(20)
            facts.certificate(expired, NEXT_YEAR, issued_on=TODAY)
            with in_background(
                lambda: results.append(resynced(connection, expired, portal, times=ResyncTimes(lock=30, flight=30)))
            ):
                until(lambda: facts_of(observer, EVENT) != [(False, 1, "pending")])
                assert calls == [False]
                go_on.set()

        assert portal.overlaps == []
        assert portal.values[-1] is True
        assert portal.values.count(False) == 1
        assert results[0].error is None
        assert results[0].after.acknowledged is True

    def test_a_call_that_does_not_end_is_not_waited_for_for_ever(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID
    ) -> None:
        """The version is raised, so the other run carries the new value; the caller hears so."""
        review(connection)
        theirs = claim(other)
        facts.certificate(expired, NEXT_YEAR, issued_on=TODAY)
        portal = FlakyPortal()

        result = resynced(connection, expired, portal)

        assert isinstance(result.error, MentorBusyError)
        assert str(result.error) == "a push by another run is in flight and will carry the new value"
        assert portal.calls == []
        assert facts.rows("SELECT visible, claim_token FROM portal_sync_events") == [(True, theirs[0].claim_token)]
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

    def test_a_call_that_never_ends_leaves_an_alert(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID
    ) -> None:
        """The run that has the lease may be gone; only this mentor's hide is said to wait."""
        waiting = facts.mentor(facts.organisation("other"))
        queue_wish(connection, waiting, visible=False)
        review(connection)
        PortalSyncService(other, run_id=uuid4()).claim_mentor(expired)

        result = resynced(connection, expired, FlakyPortal(), times=ResyncTimes(flight=0.1))

        assert isinstance(result.error, MentorBusyError)
        assert facts.rows("SELECT mentor_id, kind FROM dynamics_sync_failures") == [(expired, "stage")]

    def test_what_the_other_run_delivered_is_not_pushed_again(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID
    ) -> None:
        """It took over the raised version and pushed it: that is what was asked for."""
        review(connection)
        theirs = PortalSyncService(other, run_id=uuid4())
        claimed = [event for event, _ in theirs.claim(100)]
        portal = FlakyPortal()
        results: list[Resync] = []

        with in_background(
            lambda: results.append(resynced(connection, expired, portal, times=ResyncTimes(lock=30, flight=30)))
        ):
            until(lambda: facts_of(other, EVENT) == [(False, 2, "pending")])
            other.execute(
                "UPDATE portal_sync_events SET status = 'delivered', delivered_at = now(), claim_token = NULL"
                " WHERE claim_token = %s",
                (claimed[0].claim_token,),
            )

        assert results[0].error is None
        assert portal.calls == []

    def test_what_the_other_run_was_refused_is_tried_and_explained(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID
    ) -> None:
        """The caller gets the portal's reason, not a minute's wait."""
        review(connection)
        claimed = claim(other)
        portal = FlakyPortal(failures=9, error=lambda: PermanentPortalError("404 contact_not_found"))
        results: list[Resync] = []

        with in_background(
            lambda: results.append(resynced(connection, expired, portal, times=ResyncTimes(lock=30, flight=30)))
        ):
            until(lambda: facts_of(other, EVENT) == [(False, 2, "pending")])
            other.execute(
                "UPDATE portal_sync_events SET status = 'blocked', claim_token = NULL WHERE claim_token = %s",
                (claimed[0].claim_token,),
            )

        assert isinstance(results[0].error, DynamicsSyncException)
        assert "404 contact_not_found" in str(results[0].error)
        assert results[0].after.open_push == "blocked"

    def test_a_lease_that_ran_out_is_taken_over(self, connection: Connection, other: Connection, expired: UUID) -> None:
        """The other run is gone."""
        review(connection)
        PortalSyncService(other, run_id=uuid4(), lease_seconds=0.0).claim(100)
        portal = FlakyPortal()

        assert resynced(connection, expired, portal).error is None
        assert portal.visible == {CONTACT: False}

    def test_a_lease_from_the_future_is_taken_over(
        self, connection: Connection, other: Connection, expired: UUID
    ) -> None:
        """A server whose clock was wrong gave it; whoever had it is long gone."""
        queue_wish(connection, expired, visible=False)
        claim(other)
        connection.execute("UPDATE portal_sync_events SET next_attempt_at = now() + interval '1 year'")
        portal = FlakyPortal()

        resynced(connection, expired, portal)

        assert portal.visible == {CONTACT: False}

    def test_two_resyncs_at_once_end_with_the_right_value(
        self, connection: Connection, facts: Facts, other: Connection, expired: UUID
    ) -> None:
        """Each returns when the value is on the portal; no two calls at once."""
        night(connection, portal=FlakyPortal(failures=99))
        both = threading.Barrier(2, timeout=20)
        portal = DisturbedPortal(lambda _number: time.sleep(0.05))
        results: list[Resync] = []

        def ask(session: Connection) -> None:
            both.wait()
            results.append(resynced(session, expired, portal, times=ResyncTimes(lock=30, flight=30)))

        with in_background(lambda: ask(other)):
            ask(connection)

        assert [result.error for result in results] == [None, None]
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

    def test_an_organisation_that_leaves_the_portal_meanwhile_needs_no_push(
        self, connection: Connection, other: Connection, expired: UUID, facts: Facts
    ) -> None:
        """The event is withdrawn by the other run's review: done, without a call."""
        review(connection)
        claim(other)
        portal = FlakyPortal()
        results: list[Resync] = []

        with in_background(
            lambda: results.append(resynced(connection, expired, portal, times=ResyncTimes(lock=30, flight=30)))
        ):
            until(lambda: facts_of(other, EVENT) == [(False, 2, "pending")])
            other.execute("UPDATE organisations SET portal = NULL")
            review(other)

        assert results[0].error is None
        assert portal.calls == []


def facts_of(session: Connection, statement: str) -> list[tuple[object, ...]]:
    return Facts(session).rows(statement)


class TestFindMentor:
    """Id, member number or e-mail address."""

    @pytest.mark.parametrize("name", ["M1042", "m1042@example.org", "M1042@Example.ORG"])
    def test_a_name_finds_its_mentor(self, connection: Connection, expired: UUID, name: str) -> None:
        """An e-mail address in either case."""
        assert lookup.find_mentor(connection, name, organisation=None) == expired

    @pytest.mark.parametrize("change", [str, lambda mentor_id: str(mentor_id).upper()], ids=["lower", "upper"])
    def test_an_id_finds_its_mentor(self, connection: Connection, expired: UUID, change: object) -> None:
        """A UUID in either case."""
        assert callable(change)

        assert lookup.find_mentor(connection, change(expired), organisation=None) == expired

    @pytest.mark.parametrize("name", ["M9999", "", "%", "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"])
    def test_an_unknown_name_is_an_error(self, connection: Connection, expired: UUID, name: str) -> None:
        """Exit 2; a contact id is no mentor's id, and nothing is a pattern."""
        with pytest.raises(UnknownMentorError) as caught:
            lookup.find_mentor(connection, name, organisation=None)

        assert caught.value.exit_code == 2
        assert repr(name) in str(caught.value)

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

    def test_an_organisation_that_does_not_have_the_mentor_finds_nobody(
        self, connection: Connection, expired: UUID
    ) -> None:
        """Nor does one that does not exist."""
        with pytest.raises(UnknownMentorError):
            lookup.find_mentor(connection, "M1042", organisation="nowhere")

    def test_a_mentor_who_is_gone_is_unknown(self, connection: Connection) -> None:
        """Deleted between the look-up and the resync."""
        with pytest.raises(UnknownMentorError, match="does not exist any more"):
            resynced(connection, uuid4(), FlakyPortal())


def test_a_day_before_the_last_night_is_refused(connection: Connection, facts: Facts, expired: UUID) -> None:
    """A clock that went back must not bring anybody back."""
    night(connection, TODAY + timedelta(days=1), portal=FlakyPortal())
    portal = FlakyPortal()

    with pytest.raises(ConfigurationError, match="allow-earlier-date"):
        resynced(connection, expired, portal)

    assert portal.calls == []
