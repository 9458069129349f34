"""The mission's own tests: what certjob exists for, on a real PostgreSQL and over real HTTP."""

from uuid import UUID

import pytest

from certjob.errors import DynamicsSyncException, TransientPortalError
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal
from tests.support.portal_answers import error, ok, reset
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene, push_once

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
FAILURES = "SELECT visible, kind, attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures"


@pytest.fixture
def expired_mentor(scene: Scene) -> UUID:
    """A mentor of HLF whose certificate was in force until yesterday."""
    return scene.expired(contact_id=CONTACT, member_no="M1042")


def test_1_and_2_an_expiry_hides_and_a_renewal_shows(scene: Scene, expired_mentor: UUID) -> None:
    """update_portal_visibility(…, visible=False) is called on an expiry, visible=True on a valid renewal."""
    expired = scene.night(scene.portal)
    scene.facts.certificate(expired_mentor, NEXT_YEAR, issued_on=TODAY)
    renewed = scene.night(scene.portal)

    pushed = [(request.contact_id, request.visible) for request in scene.portal.requests]
    assert pushed == [(CONTACT, False), (CONTACT, True)]
    assert expired.to_document()["portal"]["delivered"] == 1
    assert renewed.to_document()["mentors"]["resumed"] == 1


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_3_fewer_failures_than_attempts_end_in_success(scene: Scene, expired_mentor: UUID, failures: int) -> None:
    """One call more than it failed, all with one key, and no failure row."""
    scene.portal.then(*[reset(), error(500, "dynamics_unavailable")][:failures], ok())

    report = scene.night(scene.portal)

    ((event_id,),) = scene.rows("SELECT id FROM portal_sync_events")
    assert [request.idempotency_key for request in scene.portal.requests] == [f"{event_id}-1"] * (failures + 1)
    assert scene.rows(FAILURES) == []
    assert (scene.portal.visible, report.outcome) == ({CONTACT: False}, "ok")


def test_3_and_4_after_three_attempts_a_failure_row_is_kept_and_our_state_not_rolled_back(
    scene: Scene, expired_mentor: UUID
) -> None:
    """Expired and paused in our database, whatever the portal did; a resync recovers."""
    scene.portal.default = error(503, "dynamics_unavailable")

    report = scene.night(scene.portal)

    assert (len(scene.portal.requests), report.outcome) == (3, "attention")
    assert scene.rows(FAILURES) == [(False, "transient", 3, False)]
    assert scene.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 1)]
    assert scene.rows("SELECT status FROM certificates") == [("expired",)]
    assert scene.rows("SELECT reason FROM mentor_pauses WHERE lifted_at IS NULL") == [("certification_expired",)]
    assert scene.rows("SELECT portal_visible FROM mentors") == [(False,)]
    scene.portal.default = ok()
    assert scene.resync(expired_mentor, scene.portal).error is None
    assert scene.rows(FAILURES) == [(False, "transient", 3, True)]
    assert scene.portal.visible == {CONTACT: False}


def test_5_the_service_raises_after_exhaustion(scene: Scene, expired_mentor: UUID) -> None:
    """DynamicsSyncException names mentor, event, attempts and cause; run collects it, a resync hands it on."""
    scene.night(deliver=False)
    (event,) = scene.claim()

    error = push_once(event, FlakyPortal(failures=99)).error

    assert isinstance(error, DynamicsSyncException)
    assert (error.mentor_id, error.event_id, error.attempts) == (expired_mentor, event.id, 3)
    assert isinstance(error.cause, TransientPortalError)
    assert "M1042" in str(error)
    scene.run_out()
    collected = scene.night(FlakyPortal(failures=99)).to_document()
    assert (collected["outcome"], collected["portal"]["failed"]) == ("attention", 1)
    handed_on = scene.resync(expired_mentor, FlakyPortal(failures=99)).error
    assert isinstance(handed_on, DynamicsSyncException)
    assert handed_on.exit_code == 3
    assert scene.rows(FAILURES) == [(False, "transient", 6, False)]


def test_6_no_call_is_made_for_an_organisation_without_the_portal(scene: Scene) -> None:
    """Paused like everybody, but neither event nor call; not by a resync either."""
    elsewhere = scene.facts.organisation("nhf", portal=None)
    mentor = scene.facts.certified_mentor(elsewhere, YESTERDAY, contact_id=CONTACT)

    report = scene.night(scene.portal)
    result = scene.resync(mentor, scene.portal)

    assert scene.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
    assert (scene.portal.requests, result.error) == ([], None)
    assert report.to_document()["mentors"]["paused"] == 1
