"""The six requirements that certjob exists for, with a real PostgreSQL and real HTTP."""

from uuid import UUID

import pytest

from certjob.errors import DynamicsSyncException, TransientPortalError
from tests.support.facts import TODAY
from tests.support.portal_answers import error, ok, reset
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
FAILURES = "SELECT visible, kind, attempts, resolved_at IS NOT NULL AS is_resolved FROM dynamics_sync_failures"


@pytest.fixture
def expired_mentor(scene: Scene) -> UUID:
    """A mentor of HLF with a certificate that expired yesterday."""
    return scene.expired(contact_id=CONTACT, member_no="M1042")


def test_mentor_is_hidden_after_expiry_and_shown_after_renewal(scene: Scene, expired_mentor: UUID) -> None:
    """Requirements 1 and 2: one call with visible=False after the expiry, one with visible=True after the renewal."""
    expired = scene.night(scene.portal)
    scene.facts.certificate(expired_mentor, NEXT_YEAR, issued_on=TODAY)
    renewed = scene.night(scene.portal)

    pushed = [(request.contact_id, request.visible) for request in scene.portal.requests]
    assert pushed == [(CONTACT, False), (CONTACT, True)]
    assert expired.to_document()["portal"]["delivered"] == 1
    assert renewed.to_document()["mentors"]["reinstated"] == 1


@pytest.mark.parametrize("failures", [0, 1, 2], ids=["no_failure", "one_failure", "two_failures"])
def test_push_succeeds_within_three_attempts(scene: Scene, expired_mentor: UUID, failures: int) -> None:
    """Requirement 3: all attempts have the same idempotency key, and a success leaves no failure row."""
    scene.portal.then(*[reset(), error(500, "dynamics_unavailable")][:failures], ok())

    report = scene.night(scene.portal)

    ((event_id,),) = scene.rows("SELECT id FROM portal_sync_events")
    assert [request.idempotency_key for request in scene.portal.requests] == [f"{event_id}-1"] * (failures + 1)
    assert scene.rows(FAILURES) == []
    assert (scene.portal.visible, report.outcome) == ({CONTACT: False}, "ok")


def test_failed_push_is_recorded_after_three_attempts(scene: Scene, expired_mentor: UUID) -> None:
    """Requirement 3: the row stays open until a push succeeds, here that of a resync."""
    scene.portal.default = error(503, "dynamics_unavailable")

    report = scene.night(scene.portal)

    assert (len(scene.portal.requests), report.outcome) == (3, "attention")
    assert scene.rows(FAILURES) == [(False, "transient", 3, False)]
    scene.portal.default = ok()
    assert scene.resync(expired_mentor, scene.portal).error is None
    assert scene.rows(FAILURES) == [(False, "transient", 3, True)]
    assert scene.portal.visible == {CONTACT: False}


def test_failed_push_keeps_the_expiry_and_the_pause(scene: Scene, expired_mentor: UUID) -> None:
    """Requirement 4: certjob's own state is never rolled back because the portal failed."""
    scene.portal.default = error(503, "dynamics_unavailable")

    scene.night(scene.portal)

    assert scene.rows("SELECT status FROM certificates") == [("expired",)]
    assert scene.rows("SELECT reason FROM mentor_pauses WHERE lifted_at IS NULL") == [("certification_expired",)]
    assert scene.rows("SELECT portal_visible FROM mentors") == [(False,)]
    assert scene.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 1)]


def test_run_counts_a_failed_push_and_resync_ends_in_dynamics_sync_exception(
    scene: Scene, expired_mentor: UUID
) -> None:
    """Requirement 5: a run goes on with other mentors. The error of a resync names mentor, event, calls and cause."""
    scene.portal.default = error(503, "dynamics_unavailable")

    document = scene.night(scene.portal).to_document()
    ended = scene.resync(expired_mentor, scene.portal).error

    ((event_id,),) = scene.rows("SELECT id FROM portal_sync_events")
    assert (document["outcome"], document["portal"]["failed"]) == ("attention", 1)
    assert isinstance(ended, DynamicsSyncException)
    assert (ended.mentor_id, ended.event_id, ended.attempts, ended.exit_code) == (expired_mentor, event_id, 3, 3)
    assert isinstance(ended.cause, TransientPortalError)
    assert "M1042" in str(ended)
    assert scene.rows(FAILURES) == [(False, "transient", 6, False)]


def test_organisation_without_a_portal_gets_no_event_and_no_call(scene: Scene) -> None:
    """Requirement 6: the mentor is paused as usual, and neither a run nor a resync calls the portal."""
    elsewhere = scene.facts.organisation("nhf", portal=None)
    mentor = scene.facts.certified_mentor(elsewhere, YESTERDAY, contact_id=CONTACT)

    report = scene.night(scene.portal)
    result = scene.resync(mentor, scene.portal)

    assert scene.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
    assert (scene.portal.requests, result.error) == ([], None)
    assert report.to_document()["mentors"]["paused"] == 1
