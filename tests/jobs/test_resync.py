"""``certjob resync``: one mentor is reviewed and pushed now, also while others work on the mentor."""

import time
from dataclasses import dataclass
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
from certjob.portal.sync import PortalSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.nights import FlakyPortal, claim, review
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
EVENT = "SELECT visible, version, status FROM portal_sync_events"
FAILURES = "SELECT kind, attempts FROM dynamics_sync_failures"
NOT_FOUND = PermanentPortalError("404 contact_not_found")


@pytest.fixture
def expired(scene: Scene) -> UUID:
    """A mentor of HLF with a certificate that expired yesterday."""
    return scene.expired(contact_id=CONTACT, member_no="M1042")


def test_resync_returns_the_state_before_and_after(scene: Scene, expired: UUID) -> None:
    """The page of the command shows both."""
    result = scene.resync(expired, FlakyPortal())

    before, after = result.before, result.after
    assert (before.member_no, before.has_portal) == ("M1042", True)
    assert (before.desired, before.pauses, before.acknowledged, before.open_push) == (True, [], None, None)
    assert before.certificates == ["likeperson recorded until 2026-03-09"]
    assert (after.desired, after.acknowledged, after.open_push) == (False, False, None)
    assert after.pauses == ["certification_expired"]
    assert after.certificates == ["likeperson expired until 2026-03-09"]


def test_resync_pushes_this_mentor_even_if_unchanged(scene: Scene, expired: UUID) -> None:
    """Someone may have edited the portal. The older push of another mentor is left alone."""
    portal, other = FlakyPortal(), scene.mentor()
    scene.wish(other, visible=False)

    for _ in range(2):
        assert scene.resync(expired, portal).error is None

    assert [(contact, visible) for contact, visible, _ in portal.calls] == [(CONTACT, False)] * 2
    assert len({key for _, _, key in portal.calls}) == 2
    assert scene.rows("SELECT attempts FROM portal_sync_events WHERE mentor_id = %s", other) == [(0,)]


@pytest.mark.parametrize("portal", [None, "dynamics"])
def test_resync_queues_reminders_and_sends_no_mail(scene: Scene, portal: str | None) -> None:
    """With and without a portal."""
    mentor = scene.facts.certified_mentor(scene.facts.organisation(portal=portal), YESTERDAY)

    result = scene.resync(mentor, FlakyPortal(), channel=scene.channel)

    assert (result.error, scene.channel.sent, result.report.outcome) == (None, [], "ok")
    assert result.after.pauses == ["certification_expired"]
    assert result.report.to_document()["reminders"]["queued"] == 1


def test_resync_pushes_again_after_a_refusal(scene: Scene, expired: UUID) -> None:
    """Its failure is resolved."""
    scene.night(FlakyPortal(failures=1, error=lambda: NOT_FOUND))
    portal = FlakyPortal()

    result = scene.resync(expired, portal)

    assert (result.before.open_push, result.error, portal.visible) == ("blocked", None, {CONTACT: False})
    assert scene.rows(EVENT) == [(False, 2, "delivered")]
    assert scene.rows("SELECT attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures") == [(1, True)]


def test_push_stays_queued_without_the_url_of_the_portal(scene: Scene, expired: UUID) -> None:
    """It is an alert."""
    result = scene.resync(expired)

    assert [*map(str, result.report.stopped)] == ["portal: CERTJOB_PORTAL_URL is not set; the pushes stay pending"]
    assert result.report.outcome == "attention"
    assert scene.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 0)]
    assert scene.rows(FAILURES) == [("stage", 0)]


@dataclass(frozen=True, kw_only=True)
class FailedPush:
    """An error of the portal, and its consequences. The end of a stage counts neither an attempt nor a call."""

    error: PortalCallError
    words: str
    kind: str = "stage"
    calls: int = 1
    minutes_to_next_try: int = 0


FAILED_PUSHES = {
    "temporary": FailedPush(
        error=TransientPortalError("503"), words="after 3 calls: 503", kind="transient", calls=3, minutes_to_next_try=15
    ),
    "unknown_contact": FailedPush(error=NOT_FOUND, words="then run the same command again", kind="permanent"),
    "refused_key": FailedPush(error=PortalStageError("401"), words=": 401"),
    "long_wait": FailedPush(
        error=TransientPortalError("429", retry_after_seconds=120), words=": 429", minutes_to_next_try=2
    ),
}


@pytest.mark.parametrize("case", FAILED_PUSHES.values(), ids=FAILED_PUSHES)
def test_failed_push_is_returned_as_an_error(scene: Scene, expired: UUID, case: FailedPush) -> None:
    """The pause stays, the push stays open, and the run needs attention. The error has the time of the next try."""
    portal = FlakyPortal(failures=99, error=lambda: case.error)

    result = scene.resync(expired, portal)

    assert isinstance(result.error, DynamicsSyncException)
    assert (len(portal.calls), case.words in str(result.error)) == (case.calls, True)
    if case.minutes_to_next_try:
        assert str(result.error).endswith(f"; it is tried again at {result.after.next_try_at:%Y-%m-%d %H:%M} UTC")
    status = "blocked" if case.kind == "permanent" else "pending"
    assert (result.after.pauses, result.after.open_push) == (["certification_expired"], status)
    minutes = "greatest(round(extract(epoch FROM next_attempt_at - now()) / 60), 0)"
    event = (status, int(case.kind != "stage"), case.minutes_to_next_try)
    assert scene.rows(f"SELECT status, attempts, {minutes} FROM portal_sync_events") == [event]
    assert scene.rows(FAILURES) == [(case.kind, 0 if case.kind == "stage" else case.calls)]
    assert scene.rows("SELECT command, outcome FROM job_runs") == [("resync", "attention")]


def test_missing_contact_id_is_not_reported_as_a_refusal(scene: Scene) -> None:
    """No call was made, so Dynamics needs no correction."""
    mentor = scene.expired(member_no="M1", contact_id=None)

    error = str(scene.resync(mentor, FlakyPortal()).error)

    assert error.startswith(f"mentor M1 ({mentor}) cannot be pushed: no contact ID; add the contact ID in the app")


def test_resync_pushes_nothing_for_a_new_mentor_without_a_contact(scene: Scene) -> None:
    """Without a contact ID and a certificate there is nothing to hide, and a blocked push would be a lasting alert."""
    mentor = scene.mentor(contact_id=None)

    resync = scene.resync(mentor, scene.portal)

    assert resync.error is None
    assert scene.rows("SELECT FROM portal_sync_events") == []


def test_signal_ends_the_retries(scene: Scene, expired: UUID) -> None:
    """The attempt is not counted."""
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


@pytest.mark.parametrize("table", ["mentors", "certificates"])
def test_locked_mentor_ends_the_resync_after_a_while(scene: Scene, expired: UUID, table: str) -> None:
    """The app holds a transaction open. The mentor is not changed, and can be reviewed after its end."""
    scene.app.execute(f"SELECT 1 FROM {table} FOR NO KEY UPDATE".encode())
    began = time.monotonic()

    with pytest.raises(MentorBusyError, match=f"{expired} is locked by another session"):
        scene.resync(expired, FlakyPortal(), lock_wait_seconds=0.3)

    assert time.monotonic() - began < 10
    assert (scene.rows(EVENT), scene.rows("SELECT status FROM certificates")) == ([], [("recorded",)])
    scene.app.rollback()
    assert scene.resync(expired, FlakyPortal()).error is None


def test_app_is_not_blocked_by_a_waiting_resync(scene: Scene, expired: UUID) -> None:
    """The app has locked the certificate and now needs the mentor, whom the resync locks: no deadlock."""
    scene.app.execute("SELECT 1 FROM certificates FOR NO KEY UPDATE")
    portal = FlakyPortal()

    with scene.resync_under_way(expired, portal) as results:
        until(lambda: scene.app.execute("SELECT id FROM job_runs").fetchall())
        scene.app.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
        scene.app.commit()

    assert (results[0].error, results[0].after.pauses, portal.visible) == (None, [], {CONTACT: True})


def test_push_in_flight_ends_the_resync_after_a_while(scene: Scene, expired: UUID) -> None:
    """The version is raised, so the other run pushes the new value next. It may have died, so there is an alert."""
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


def test_resync_asleep_past_its_lease_does_not_call_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run has pushed a newer value in the meantime. The lost lease is not a failed push."""
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


@pytest.mark.parametrize("becomes", ["delivered", "blocked", "withdrawn", "left_to_the_next_review"])
def test_result_of_the_run_with_the_claim_counts(scene: Scene, expired: UUID, becomes: str) -> None:
    """A delivered or withdrawn push needs no call. A refused one is tried, and the caller gets the reason."""
    review(scene.connection)
    (event,) = claim(scene.other)
    portal = FlakyPortal(failures=9, error=lambda: NOT_FOUND)

    with scene.resync_under_way(expired, portal) as results:
        until(lambda: Facts(scene.other).rows(EVENT) == [(False, 2, "pending")])
        if becomes in ("delivered", "blocked"):
            settle = "UPDATE portal_sync_events SET status = %s, claim_token = NULL WHERE claim_token = %s"
            scene.other.execute(settle, (becomes, event.claim_token))
        else:
            scene.other.execute("UPDATE organisations SET portal = NULL")
        if becomes == "withdrawn":
            review(scene.other)

    if becomes == "blocked":
        assert "404 contact_not_found" in str(results[0].error)
        assert results[0].after.open_push == "blocked"
    else:
        assert (results[0].error, portal.calls) == (None, [])


def test_expired_lease_is_taken_over(scene: Scene, expired: UUID) -> None:
    """The other run has died."""
    scene.wish(expired, visible=False)
    claim(scene.other)
    scene.run_out()
    portal = FlakyPortal()

    assert (scene.resync(expired, portal).error, portal.visible) == (None, {CONTACT: False})


def test_value_queued_during_the_call_is_pushed_too(scene: Scene, expired: UUID) -> None:
    """The mentor is renewed while the resync hides them."""

    def renew(number: int) -> None:
        if number == 1:
            Facts(scene.other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
            review(scene.other)

    portal = FlakyPortal(renew)

    result = scene.resync(expired, portal)

    assert (portal.values, result.error, result.after.acknowledged) == ([False, True], None, True)


def test_mentor_deleted_in_the_meantime_is_an_error(scene: Scene) -> None:
    """The command had found the mentor."""
    with pytest.raises(UnknownMentorError, match="has been deleted"):
        scene.resync(uuid4(), FlakyPortal())
