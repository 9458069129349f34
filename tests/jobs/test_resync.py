"""Resync of one mentor, now: whatever the retry time says, and whoever else is at work on it."""

import time
from uuid import UUID, uuid4

import pytest

from certjob import database
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
from certjob.portal.sync import PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.nights import FlakyPortal, claim, delivery, review
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
EVENT = "SELECT visible, version, status FROM portal_sync_events"
FAILURES = "SELECT kind, attempts FROM dynamics_sync_failures"
DOWN, REFUSED = TransientPortalError("503"), PermanentPortalError("404 contact_not_found")


@pytest.fixture
def expired(scene: Scene) -> UUID:
    """A mentor of HLF whose certificate was in force until yesterday."""
    return scene.expired(contact_id=CONTACT, member_no="M1042")


def test_it_shows_before_and_after_and_pushes_even_if_nothing_changed(scene: Scene, expired: UUID) -> None:
    """Somebody may have changed the portal by hand. Another mentor's wish is older, as due, and left alone."""
    portal, somebody = FlakyPortal(), scene.mentor()
    scene.wish(somebody, visible=False)

    first, second = (scene.resync(expired, portal) for _ in range(2))

    before, after, paused = first.before, first.after, ["certification_expired"]
    assert (before.member_no, before.has_portal) == ("M1042", True)
    assert (before.desired, before.pauses, before.acknowledged, before.open_push) == (True, [], None, None)
    assert before.certificates == ["likeperson recorded until 2026-03-09"]
    assert (after.desired, after.pauses, after.acknowledged, after.open_push) == (False, paused, False, None)
    assert after.certificates == ["likeperson expired until 2026-03-09"]
    assert (first.error, second.error) == (None, None)
    assert [(contact, visible) for contact, visible, _ in portal.calls] == [(CONTACT, False)] * 2
    assert len({key for _, _, key in portal.calls}) == 2
    assert scene.rows("SELECT attempts FROM portal_sync_events WHERE mentor_id = %s", somebody) == [(0,)]


def test_with_and_without_a_portal_reminders_are_queued_and_not_sent(scene: Scene) -> None:
    for slug, portal in (("nhf", None), ("lhl", "dynamics")):
        mentor = scene.facts.certified_mentor(scene.facts.organisation(slug, portal=portal), YESTERDAY)

        result = scene.resync(mentor, delivery=delivery(portal=FlakyPortal(), channel=scene.channel))

        assert (result.error, scene.channel.sent, result.report.outcome) == (None, [], "ok")
        assert result.after.pauses == ["certification_expired"]
        assert result.report.to_document()["reminders"]["queued"] == 1


def test_it_reopens_what_was_refused(scene: Scene, expired: UUID) -> None:
    """What waits for its retry time is told in test_mission.py."""
    scene.night(FlakyPortal(failures=1, error=lambda: REFUSED))
    portal = FlakyPortal()

    result = scene.resync(expired, portal)

    assert (result.before.open_push, result.error) == ("blocked", None)
    assert portal.visible == {CONTACT: False}
    assert scene.rows(EVENT) == [(False, 2, "delivered")]
    assert scene.rows("SELECT attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures") == [(1, True)]


def test_without_an_address_of_the_portal_the_push_stays_queued_and_is_an_alert(scene: Scene, expired: UUID) -> None:
    result = scene.resync(expired)

    (stop,) = result.report.stopped
    assert str(stop) == "portal: CERTJOB_PORTAL_URL is not set; the pushes stay pending"
    assert result.report.outcome == "attention"
    assert scene.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 0)]
    assert scene.rows(FAILURES) == [("stage", 0)]


THROTTLED = TransientPortalError("429 throttled", retry_after_seconds=120)  # a long wait is not slept


@pytest.mark.parametrize(
    ("error", "calls", "words", "event", "failure"),
    [
        (DOWN, 3, "after 3 calls: 503", ("pending", 1, 15), ("transient", 3)),
        (REFUSED, 1, "then run the same command again", ("blocked", 1, 0), ("permanent", 1)),
        (PortalStageError("401"), 1, "no push can succeed: 401", ("pending", 0, 0), ("stage", 0)),
        (THROTTLED, 1, "429 throttled", ("pending", 0, 2), ("stage", 0)),
    ],
    ids=str,
)
def test_the_error_of_a_failed_push_is_handed_to_the_caller(
    scene: Scene,
    expired: UUID,
    error: PortalCallError,
    calls: int,
    words: str,
    event: tuple[str, int, int],
    failure: tuple[str, int],
) -> None:
    """The state is kept, the event stays open, the run needs attention."""
    portal = FlakyPortal(failures=99, error=lambda: error)

    result = scene.resync(expired, portal)

    assert isinstance(result.error, DynamicsSyncException)
    assert (len(portal.calls), words in str(result.error)) == (calls, True)
    if event[2]:  # a time without its zone is read in another one
        assert str(result.error).endswith(f"; it is tried again at {result.after.next_try_at:%Y-%m-%d %H:%M} UTC")
    assert (result.after.pauses, result.after.open_push) == (["certification_expired"], event[0])
    minutes = "round(extract(epoch FROM next_attempt_at - now()) / 60)"
    assert scene.rows(f"SELECT status, attempts, greatest({minutes}, 0) FROM portal_sync_events") == [event]
    assert scene.rows(FAILURES) == [failure]
    assert scene.rows("SELECT command, outcome FROM job_runs") == [("resync", "attention")]


def test_a_signal_cuts_the_tries_short(scene: Scene, expired: UUID) -> None:
    """The round is not counted; the run was stopped, the portal is not blamed."""
    stop = StopFlag()

    def fail(_number: int) -> PortalCallError:
        stop.set()
        return TransientPortalError("reset")

    portal = FlakyPortal(fail)

    with pytest.raises(StoppedBySignalError):
        scene.resync(expired, portal, stop=stop)

    assert len(portal.calls) == 1
    assert scene.rows("SELECT status, attempts, claim_token FROM portal_sync_events") == [("pending", 0, None)]
    assert scene.rows("SELECT outcome FROM job_runs") == [("failed",)]


def test_an_idle_transaction_does_not_hold_it_for_ever(scene: Scene, expired: UUID) -> None:
    """A bounded wait, then a clear error; nothing was changed, and no deadlock."""
    for table in ("mentors", "certificates"):
        scene.app.execute(f"SELECT 1 FROM {table} FOR NO KEY UPDATE".encode())
        began = time.monotonic()

        with pytest.raises(MentorBusyError, match=f"{expired} is locked by another session"):
            scene.resync(expired, FlakyPortal(), lock_wait_seconds=0.3)

        assert time.monotonic() - began < 10
        scene.app.rollback()

    assert scene.rows(EVENT) == []
    assert scene.rows("SELECT status FROM certificates") == [("recorded",)]
    assert scene.resync(expired, FlakyPortal()).error is None


def test_the_app_goes_on_meanwhile(scene: Scene, expired: UUID) -> None:
    """It has locked the certificate and now needs the mentor, whom the resync locks: no deadlock."""
    scene.app.execute("SELECT 1 FROM certificates FOR NO KEY UPDATE")
    portal = FlakyPortal()

    with scene.resync_under_way(expired, portal) as results:
        until(lambda: scene.app.execute("SELECT id FROM job_runs").fetchall())
        scene.app.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
        scene.app.commit()

    assert (results[0].error, results[0].after.pauses) == (None, [])
    assert portal.visible == {CONTACT: True}


def test_a_call_of_another_run_that_does_not_end_is_not_waited_for_for_ever(scene: Scene, expired: UUID) -> None:
    """The version is raised, so the other run pushes the new value next; that run may have died, so it is an alert."""
    scene.wish(scene.mentor(), visible=False)
    review(scene.connection)
    ((theirs, _),) = PortalSyncService(scene.other, run_id=uuid4()).claim_mentor(expired, today=TODAY)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = %s", expired)
    portal = FlakyPortal()

    result = scene.resync(expired, portal, flight_wait_seconds=0.1)

    assert isinstance(result.error, MentorBusyError)
    assert "kept this push claimed for 0.1 s; the new value is queued: that run pushes it next" in str(result.error)
    assert "first `certjob run` or `certjob deliver` after 5 minutes" in str(result.error)
    assert (portal.calls, result.report.outcome) == ([], "attention")
    event = "SELECT version, claim_token FROM portal_sync_events WHERE mentor_id = %s"
    assert scene.rows(event, expired) == [(theirs.version + 1, theirs.claim_token)]
    assert scene.rows("SELECT mentor_id, kind FROM dynamics_sync_failures") == [(expired, "stage")]


def test_one_that_slept_past_its_lease_does_not_repeat_its_call(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run has pushed a newer value meanwhile; that it lost its lease is no failed push."""
    mentor = scene.certified()
    read_clock, asleep_seconds = time.clock_gettime, [0.0]
    monkeypatch.setattr(time, "clock_gettime", lambda clock: read_clock(clock) + asleep_seconds[0])

    def sleep_and_be_overtaken(number: int) -> PortalCallError | None:
        if number > 1:
            return None
        asleep_seconds[0] = 1000.0
        scene.run_out()
        scene.run_sql("UPDATE mentors SET left_at = now()")
        assert scene.resync(mentor, portal, connection=scene.other).error is None
        return TransientPortalError("connection reset")

    portal = FlakyPortal(sleep_and_be_overtaken)
    with database.connect(scene.connection.info.dsn) as sleeper:
        result = scene.resync(mentor, portal, connection=sleeper)

    assert (portal.values, result.error) == ([True, False], None)


@pytest.mark.parametrize("becomes", ["delivered", "blocked", "withdrawn", "left to the next review"])
def test_what_another_run_does_with_its_claim_meanwhile_is_what_counts(
    scene: Scene, expired: UUID, becomes: str
) -> None:
    """Delivered or withdrawn there needs no push; refused there it is tried, and the caller gets the reason."""
    review(scene.connection)
    (event,) = claim(scene.other)
    portal = FlakyPortal(failures=9, error=lambda: REFUSED)

    with scene.resync_under_way(expired, portal) as results:
        until(lambda: Facts(scene.other).rows(EVENT) == [(False, 2, "pending")])
        if becomes in ("withdrawn", "left to the next review"):
            scene.other.execute("UPDATE organisations SET portal = NULL")
            if becomes == "withdrawn":
                review(scene.other)
        else:
            settle = "UPDATE portal_sync_events SET status = %s, claim_token = NULL WHERE claim_token = %s"
            scene.other.execute(settle, (becomes, event.claim_token))

    if becomes == "blocked":
        assert "404 contact_not_found" in str(results[0].error)
        assert results[0].after.open_push == "blocked"
    else:
        assert (results[0].error, portal.calls) == (None, [])


def test_lease_that_is_over_is_taken_over(scene: Scene, expired: UUID) -> None:
    """The other run is gone."""
    scene.wish(expired, visible=False)
    claim(scene.other)
    scene.run_sql("UPDATE portal_sync_events SET next_attempt_at = now() - interval '1 second'")
    portal = FlakyPortal()

    assert scene.resync(expired, portal).error is None
    assert portal.visible == {CONTACT: False}


def test_a_wish_during_its_own_call_is_pushed_by_it_too(scene: Scene, expired: UUID) -> None:
    """The mentor is renewed while the resync hides them: it ends with the newer value."""

    def renew(number: int) -> None:
        if number == 1:
            Facts(scene.other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
            review(scene.other)

    portal = FlakyPortal(renew)

    result = scene.resync(expired, portal)

    assert portal.values == [False, True]
    assert (result.error, result.after.acknowledged) == (None, True)


def test_a_number_an_address_or_an_id_finds_its_mentor(scene: Scene, expired: UUID) -> None:
    """In either case. A contact id is no mentor's id, nothing is a pattern, and a mentor can be deleted meanwhile."""
    for name in ("M1042", "m1042@example.org", "M1042@Example.ORG", str(expired), str(expired).upper()):
        assert lookup.find_mentor(scene.connection, name, organisation=None) == expired
    for name in ("M9999", "%", str(CONTACT)):
        with pytest.raises(UnknownMentorError, match=repr(name)):
            lookup.find_mentor(scene.connection, name, organisation=None)
    with pytest.raises(UnknownMentorError, match="has been deleted"):
        scene.resync(uuid4(), FlakyPortal())


def test_a_mentor_without_a_contact_id_was_not_refused_by_the_portal(scene: Scene) -> None:
    """Nobody was asked: nothing is to be looked up in Dynamics."""
    mentor = scene.expired(member_no="M1", contact_id=None)

    error = str(scene.resync(mentor, FlakyPortal()).error)

    assert error.startswith(f"mentor M1 ({mentor}) cannot be pushed: no contact ID; add the contact ID in the app")
