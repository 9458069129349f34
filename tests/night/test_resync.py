"""Resync of one mentor, now: whatever the retry time says, and whoever else is at work on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import (
    DynamicsSyncException,
    MentorBusyError,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    StoppedBySignalError,
    TransientPortalError,
    UnknownMentorError,
)
from certjob.facts import lookup
from certjob.night import resync
from certjob.night.resync import Resync
from certjob.portal.push import PortalTarget
from certjob.portal.sync import PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import DisturbedPortal, claim, queue_wish, review, run_out
from tests.support.nights import CollectingChannel, FlakyPortal, delivery, in_background, night
from tests.support.waiting import until

App = psycopg.Connection[tuple[object, ...]]
YESTERDAY, NEXT_YEAR = TODAY - timedelta(days=1), TODAY + timedelta(days=365)
CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
PATIENT = {"lock_wait_seconds": 30.0, "flight_wait_seconds": 30.0}
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


def resynced(connection: Connection, mentor_id: UUID, portal: PortalTarget | None = None, **options: Any) -> Resync:
    given: dict[str, Any] = {"delivery": delivery(portal=portal), "stop": StopFlag()} | PATIENT | options
    return resync.resync(connection, mentor_id, today=TODAY, **given)


@contextmanager
def resync_under_way(connection: Connection, mentor_id: UUID, portal: PortalTarget) -> Iterator[list[Resync]]:
    """A resync beside the block, which waits for others as long as it takes; its result is there after the block."""
    results: list[Resync] = []
    with in_background(lambda: results.append(resynced(connection, mentor_id, portal))):
        yield results


def test_it_shows_before_and_after_and_pushes_even_if_nothing_changed(facts: Facts, expired: UUID) -> None:
    """Somebody may have changed the portal by hand. Another mentor's wish is older, as due, and left alone."""
    portal = FlakyPortal()
    somebody = facts.mentor(facts.organisation("other"))
    queue_wish(facts.connection, somebody, visible=False)

    first, second = (resynced(facts.connection, expired, portal) for _ in range(2))

    before, after = first.before, first.after
    assert (before.member_no, before.has_portal) == ("M1042", True)
    assert (before.desired, before.pauses, before.acknowledged, before.open_push) == (True, [], None, None)
    assert before.certificates == ["likeperson recorded until 2026-03-09"]
    paused = ["certification_expired"]
    assert (after.desired, after.pauses, after.acknowledged, after.open_push) == (False, paused, False, None)
    assert after.certificates == ["likeperson expired until 2026-03-09"]
    assert (first.error, second.error) == (None, None)
    assert [(contact, visible) for contact, visible, _ in portal.calls] == [(CONTACT, False)] * 2
    assert len({key for _, _, key in portal.calls}) == 2
    assert facts.rows("SELECT attempts FROM portal_sync_events WHERE mentor_id = %s", somebody) == [(0,)]


def test_without_a_portal_the_review_is_applied_and_reminders_are_queued_and_not_sent(facts: Facts) -> None:
    mentor_id = facts.certified_mentor(facts.organisation("nhf", portal=None), YESTERDAY)
    channel = CollectingChannel()

    result = resynced(facts.connection, mentor_id, delivery=delivery(portal=FlakyPortal(), channel=channel))

    assert (result.error, channel.sent) == (None, [])
    assert result.after.pauses == ["certification_expired"]
    assert result.report.to_document()["reminders"] == {"queued": 1, "pending": 1}
    assert result.report.outcome == "ok"


@pytest.mark.parametrize(
    ("error", "status", "resolved"),
    [(TransientPortalError("503"), "pending", 3), (PermanentPortalError("404 contact_not_found"), "blocked", 1)],
)
def test_it_waits_for_no_retry_time_and_reopens_what_was_refused(
    connection: Connection, facts: Facts, expired: UUID, error: PortalCallError, status: str, resolved: int
) -> None:
    night(connection, portal=FlakyPortal(failures=3, error=lambda: error))
    portal = FlakyPortal()

    result = resynced(connection, expired, portal)

    assert (result.before.open_push, result.error) == (status, None)
    assert portal.visible == {CONTACT: False}
    assert facts.rows("SELECT visible, version, status FROM portal_sync_events") == [(False, 2, "delivered")]
    failures = "SELECT attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures"
    assert facts.rows(failures) == [(resolved, True)]


def test_without_an_address_of_the_portal_the_push_stays_queued_and_is_an_alert(facts: Facts, expired: UUID) -> None:
    result = resynced(facts.connection, expired)

    (stop,) = result.report.stopped
    assert str(stop) == "portal: CERTJOB_PORTAL_URL is not set; the pushes stay pending"
    assert result.report.outcome == "attention"
    assert facts.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 0)]
    assert facts.rows("SELECT kind FROM dynamics_sync_failures") == [("stage",)]


@pytest.mark.parametrize(
    ("error", "calls", "words", "event", "failure"),
    [
        (TransientPortalError("503"), 3, "after 3 calls: 503", ("pending", 1, 15), ("transient", 3)),
        (PermanentPortalError("404"), 1, "then run the same command again", ("blocked", 1, 0), ("permanent", 1)),
        (PortalStageError("401"), 1, "portal cannot be pushed to: 401", ("pending", 0, 0), ("stage", 0)),
        (
            TransientPortalError("429 throttled", retry_after_seconds=120),  # a long wait is not slept
            1,
            "429 throttled",
            ("pending", 0, 2),
            ("stage", 0),
        ),
    ],
)
def test_the_error_of_a_failed_push_is_handed_to_the_caller(
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
    if event[2]:  # a time without its zone is read in another one
        assert str(result.error).endswith(f"; it is tried again at {result.after.next_try_at:%Y-%m-%d %H:%M} UTC")
    assert (result.after.pauses, result.after.open_push) == (["certification_expired"], event[0])
    minutes = "round(extract(epoch FROM next_attempt_at - now()) / 60)"
    assert facts.rows(f"SELECT status, attempts, greatest({minutes}, 0) FROM portal_sync_events") == [event]
    assert facts.rows("SELECT kind, attempts FROM dynamics_sync_failures") == [failure]
    assert facts.rows("SELECT command, outcome FROM job_runs") == [("resync", "attention")]


def test_a_signal_cuts_the_tries_short(connection: Connection, facts: Facts, expired: UUID) -> None:
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


@pytest.mark.parametrize("table", ["mentors", "certificates"])
def test_an_idle_transaction_does_not_hold_it_for_ever(facts: Facts, app: App, expired: UUID, table: str) -> None:
    """A bounded wait, then a clear error; nothing was changed, and no deadlock."""
    app.execute(f"SELECT 1 FROM {table} FOR NO KEY UPDATE".encode())
    began = time.monotonic()

    with pytest.raises(MentorBusyError, match=f"{expired} is locked by another session"):
        resynced(facts.connection, expired, FlakyPortal(), lock_wait_seconds=0.6)

    assert time.monotonic() - began < 10
    app.rollback()
    assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
    assert facts.rows("SELECT status FROM certificates") == [("recorded",)]
    assert resynced(facts.connection, expired, FlakyPortal()).error is None


def test_the_app_goes_on_meanwhile(connection: Connection, app: App, expired: UUID) -> None:
    """It has locked the certificate and now needs the mentor, whom the resync locks: no deadlock."""
    app.execute("SELECT 1 FROM certificates FOR NO KEY UPDATE")
    portal = FlakyPortal()

    with resync_under_way(connection, expired, portal) as results:
        until(lambda: app.execute("SELECT id FROM job_runs").fetchall())
        app.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
        app.commit()

    assert (results[0].error, results[0].after.pauses) == (None, [])
    assert portal.visible == {CONTACT: True}


def test_a_call_of_another_run_that_does_not_end_is_not_waited_for_for_ever(
    connection: Connection, facts: Facts, other: Connection, expired: UUID
) -> None:
    """The version is raised, so the other run pushes the new value next; that run may have died, so it is an alert."""
    queue_wish(connection, facts.mentor(facts.organisation("other")), visible=False)
    review(connection)
    ((theirs, _),) = PortalSyncService(other, run_id=uuid4()).claim_mentor(expired)
    facts.connection.execute("UPDATE mentors SET left_at = now() WHERE id = %s", (expired,))
    portal = FlakyPortal()

    result = resynced(connection, expired, portal, flight_wait_seconds=0.1)

    assert isinstance(result.error, MentorBusyError)
    assert str(result.error) == (
        "another run has kept this push claimed for 0.1 s; the new value is queued: that run pushes it next, or, if "
        "that run has died, the first `certjob run` or `certjob deliver` after 5 minutes"
    )
    assert portal.calls == []
    event = "SELECT version, claim_token FROM portal_sync_events WHERE mentor_id = %s"
    assert facts.rows(event, expired) == [(theirs.version + 1, theirs.claim_token)]
    assert facts.rows("SELECT mentor_id, kind FROM dynamics_sync_failures") == [(expired, "stage")]
    assert facts.rows("SELECT outcome FROM job_runs") == [("attention",)]


def test_one_that_slept_past_its_lease_does_not_repeat_its_call(
    connection: Connection, facts: Facts, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run has pushed a newer value meanwhile; that it lost its lease is no failed push."""
    mentor = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=100))
    read_clock, asleep_seconds = time.clock_gettime, [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda clock: read_clock(clock) + asleep_seconds[0])

    def sleep_and_be_overtaken(number: int) -> None:
        if number == 1:
            asleep_seconds[0] = 1000.0
            run_out(facts)
            facts.connection.execute("UPDATE mentors SET left_at = now()")
            assert resynced(other, mentor, portal).error is None
            message = "connection reset"
            raise TransientPortalError(message)

    portal = DisturbedPortal(sleep_and_be_overtaken)
    with database.connect(connection.info.dsn) as sleeper:
        result = resynced(sleeper, mentor, portal)

    assert (portal.values, result.error) == ([True, False], None)


@pytest.mark.parametrize("becomes", ["delivered", "blocked", "withdrawn", "left to the next review"])
def test_what_another_run_does_with_its_claim_meanwhile_is_what_counts(
    connection: Connection, other: Connection, expired: UUID, becomes: str
) -> None:
    """Delivered or withdrawn there needs no push; refused there it is tried, and the caller gets the reason."""
    review(connection)
    (event,) = claim(other)
    portal = FlakyPortal(failures=9, error=lambda: PermanentPortalError("404 contact_not_found"))

    with resync_under_way(connection, expired, portal) as results:
        until(lambda: Facts(other).rows(EVENT) == [(False, 2, "pending")])
        if becomes in ("withdrawn", "left to the next review"):
            other.execute("UPDATE organisations SET portal = NULL")
            if becomes == "withdrawn":
                review(other)
        else:
            settle = "UPDATE portal_sync_events SET status = %s, claim_token = NULL WHERE claim_token = %s"
            other.execute(settle, (becomes, event.claim_token))

    if becomes == "blocked":
        assert "404 contact_not_found" in str(results[0].error)
        assert results[0].after.open_push == "blocked"
    else:
        assert (results[0].error, portal.calls) == (None, [])


@pytest.mark.parametrize("ends", ["- interval '1 second'", "+ interval '1 year'"])
def test_a_lease_that_is_over_or_from_the_future_is_taken_over(
    connection: Connection, other: Connection, expired: UUID, ends: str
) -> None:
    """The other run is gone; or a server whose clock was wrong gave it."""
    queue_wish(connection, expired, visible=False)
    claim(other)
    connection.execute(f"UPDATE portal_sync_events SET next_attempt_at = now() {ends}".encode())
    portal = FlakyPortal()

    assert resynced(connection, expired, portal).error is None
    assert portal.visible == {CONTACT: False}


def test_a_wish_during_its_own_call_is_pushed_by_it_too(
    connection: Connection, other: Connection, expired: UUID
) -> None:
    """The mentor is renewed while the resync hides them: it ends with the newer value."""

    def renew(number: int) -> None:
        if number == 1:
            Facts(other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
            review(other)

    portal = DisturbedPortal(renew)

    result = resynced(connection, expired, portal)

    assert portal.values == [False, True]
    assert (result.error, result.after.acknowledged) == (None, True)


def test_a_number_an_address_or_an_id_finds_its_mentor(connection: Connection, expired: UUID) -> None:
    """In either case. A contact id is no mentor's id, nothing is a pattern, and a mentor can be deleted meanwhile."""
    for name in ("M1042", "m1042@example.org", "M1042@Example.ORG", str(expired), str(expired).upper()):
        assert lookup.find_mentor(connection, name, organisation=None) == expired
    for name in ("M9999", "%", str(CONTACT)):
        with pytest.raises(UnknownMentorError, match=repr(name)):
            lookup.find_mentor(connection, name, organisation=None)
    with pytest.raises(UnknownMentorError, match="does not exist any more"):
        resynced(connection, uuid4(), FlakyPortal())


def test_a_mentor_without_a_contact_id_was_not_refused_by_the_portal(connection: Connection, facts: Facts) -> None:
    """Nobody was asked: nothing is to be looked up in Dynamics."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1), member_no="M1", contact_id=None)

    result = resynced(connection, mentor_id, FlakyPortal())

    assert str(result.error) == (
        f"mentor M1 ({mentor_id}) cannot be pushed: no contact ID; "
        "add the contact ID in the app, then run the same command again"
    )
