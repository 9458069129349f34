"""``certjob resync``: one mentor is reviewed and pushed now, also while others work on the mentor."""

from uuid import UUID, uuid4

import pytest

from certjob.errors import DynamicsSyncException, MentorBusyError
from certjob.jobs import resync
from certjob.jobs.resync import Resync
from certjob.portal.sync import PortalSyncService
from tests.support.facts import TODAY, Facts
from tests.support.nights import claim, in_background, review
from tests.support.portal_answers import during, error
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene
from tests.support.waiting import until

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
EVENT = "SELECT visible, version, status FROM portal_sync_events"
NOT_FOUND = error(404, "contact_not_found")


@pytest.fixture
def expired(scene: Scene) -> UUID:
    """A mentor of HLF with a certificate that expired yesterday."""
    return scene.expired(contact_id=CONTACT, member_no="M1042")


def test_resync_returns_the_state_before_and_after(scene: Scene, expired: UUID) -> None:
    """The page of the command shows both."""
    result = scene.resync(expired, scene.portal)

    before, after = result.before, result.after
    assert (before.desired, before.pauses, before.acknowledged, before.open_push) == (True, [], None, None)
    assert before.certificates == ["likeperson recorded until 2026-03-09"]
    assert (after.desired, after.acknowledged, after.open_push) == (False, False, None)
    assert after.pauses == ["certification_expired"]
    assert after.certificates == ["likeperson expired on 2026-03-09"]


def test_resync_pushes_this_mentor_even_if_unchanged(scene: Scene, expired: UUID) -> None:
    """Someone may have edited the portal. The older push of another mentor is left alone."""
    other = scene.mentor()
    scene.queue(other, visible=False)

    for _ in range(2):
        assert scene.resync(expired, scene.portal).error is None

    assert [(push.contact_id, push.visible) for push in scene.portal.pushes] == [(CONTACT, False)] * 2
    assert len({push.idempotency_key for push in scene.portal.pushes}) == 2
    assert scene.rows("SELECT attempts FROM portal_sync_events WHERE mentor_id = %s", other) == [(0,)]


def test_resync_queues_reminders_and_sends_no_mail(scene: Scene) -> None:
    """The next run or delivery sends them."""
    mentor = scene.facts.certified_mentor(scene.facts.organisation(), YESTERDAY)

    result = scene.resync(mentor, scene.portal, channel=scene.channel)

    assert (result.error, scene.channel.sent, result.report.outcome) == (None, [], "ok")
    assert result.report.to_document()["reminders"]["queued"] == 1


def test_resync_pushes_again_after_a_rejection(scene: Scene, expired: UUID) -> None:
    """Its failure is resolved."""
    scene.portal.then(NOT_FOUND)
    scene.night(scene.portal)

    result = scene.resync(expired, scene.portal)

    assert (result.before.open_push, result.error, scene.portal.visible) == ("blocked", None, {CONTACT: False})
    assert scene.rows(EVENT) == [(False, 2, "delivered")]
    assert scene.rows("SELECT attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures") == [(1, True)]


def test_wrong_key_is_returned_as_an_error(scene: Scene, expired: UUID) -> None:
    """The pause stays, the push stays open without a counted attempt, and the run needs attention."""
    scene.portal.then(error(401, "unauthorized"))

    result = scene.resync(expired, scene.portal)

    assert isinstance(result.error, DynamicsSyncException)
    assert "the portal answered 401" in str(result.error)
    assert result.after.pauses == ["certification_expired"]
    assert scene.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 0)]
    assert scene.rows("SELECT kind, attempts FROM dynamics_sync_failures") == [("stage", 0)]
    assert scene.rows("SELECT command, outcome FROM job_runs") == [("resync", "attention")]


def test_locked_mentor_ends_the_resync_after_a_while(
    scene: Scene, expired: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The app holds a transaction open. The mentor is not changed, and can be reviewed after its end."""
    monkeypatch.setattr(resync, "LOCK_WAIT_SECONDS", 0.1)
    scene.app.execute("SELECT 1 FROM mentors FOR NO KEY UPDATE")

    with pytest.raises(MentorBusyError, match=f"{expired} is locked by another session"):
        scene.resync(expired, scene.portal)

    assert (scene.rows(EVENT), scene.rows("SELECT status FROM certificates")) == ([], [("recorded",)])
    scene.app.rollback()
    assert scene.resync(expired, scene.portal).error is None


def test_app_is_not_blocked_by_a_waiting_resync(scene: Scene, expired: UUID) -> None:
    """The app has locked the certificate and now needs the mentor, whom the resync locks: no deadlock."""
    scene.app.execute("SELECT 1 FROM certificates FOR NO KEY UPDATE")
    results = list[Resync]()

    with in_background(lambda: results.append(scene.resync(expired, scene.portal))):
        until(lambda: scene.app.execute("SELECT id FROM job_runs").fetchall())
        scene.app.execute("UPDATE certificates SET expires_on = %s", (NEXT_YEAR,))
        scene.app.commit()

    assert (results[0].error, results[0].after.pauses, scene.portal.visible) == (None, [], {CONTACT: True})


def test_push_in_flight_ends_the_resync_after_a_while(
    scene: Scene, expired: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is raised, so the other run pushes the new value next. It may have died: this mentor is an alert."""
    monkeypatch.setattr(resync, "FLIGHT_WAIT_SECONDS", 0.1)
    scene.backlog(1)
    review(scene.connection)
    (theirs,) = PortalSyncService(scene.other, run_id=uuid4()).claim_mentor(expired, today=TODAY)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = %s", expired)

    result = scene.resync(expired, scene.portal)

    assert isinstance(result.error, MentorBusyError)
    assert "kept this push claimed for 0.1 s; the new value is queued: that run pushes it next" in str(result.error)
    assert (scene.portal.pushes, result.report.outcome) == ([], "attention")
    event = "SELECT version, claim_token FROM portal_sync_events WHERE mentor_id = %s"
    assert scene.rows(event, expired) == [(theirs.version + 1, theirs.claim_token)]
    assert scene.rows("SELECT mentor_id, kind FROM dynamics_sync_failures") == [(expired, "stage")]


@pytest.mark.parametrize("becomes", ["delivered", "blocked"])
def test_resync_waits_for_a_push_in_flight(scene: Scene, expired: UUID, becomes: str) -> None:
    """A delivered push needs no call. A rejected one is tried, and the caller gets the reason."""
    review(scene.connection)
    (event,) = claim(scene.other)
    scene.portal.default, results = NOT_FOUND, list[Resync]()

    with in_background(lambda: results.append(scene.resync(expired, scene.portal))):
        until(lambda: Facts(scene.other).rows(EVENT) == [(False, 2, "pending")])
        settle = "UPDATE portal_sync_events SET status = %s, claim_token = NULL WHERE claim_token = %s"
        scene.other.execute(settle, (becomes, event.claim_token))

    if becomes == "delivered":
        assert (results[0].error, scene.portal.pushes) == (None, [])
    else:
        assert "404 contact_not_found" in str(results[0].error)
        assert results[0].after.open_push == "blocked"


def test_value_queued_during_the_call_is_pushed_too(scene: Scene, expired: UUID) -> None:
    """The mentor is renewed while the resync hides them."""

    def renew() -> None:
        Facts(scene.other).certificate(expired, NEXT_YEAR, issued_on=TODAY)
        review(scene.other)

    scene.portal.then(during(renew))

    result = scene.resync(expired, scene.portal)

    assert (scene.portal.values, result.error, result.after.acknowledged) == ([False, True], None, True)
