"""The mission's own tests: what certjob exists for, on a real PostgreSQL and over real HTTP."""

from datetime import timedelta
from uuid import UUID

import pytest

from certjob.database import Connection
from certjob.errors import DynamicsSyncException, TransientPortalError
from certjob.night import resync
from certjob.night.resync import Resync
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import claim
from tests.support.nights import CollectingChannel, FlakyPortal, delivery, night
from tests.support.portal_answers import error, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.stages import push_once

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
YESTERDAY = TODAY - timedelta(days=1)
DEAD = error(503, "dynamics_unavailable")
FAILURES = "SELECT visible, kind, attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures"


@pytest.fixture
def expired_mentor(facts: Facts) -> UUID:
    """A mentor of HLF whose certificate was in force until yesterday."""
    return facts.certified_mentor(facts.organisation("hlf"), YESTERDAY, contact_id=CONTACT, member_no="M1042")


def resynced(connection: Connection, mentor_id: UUID, portal: PortalServer | FlakyPortal) -> Resync:
    return resync.resync(connection, mentor_id, today=TODAY, delivery=delivery(portal=portal), stop=StopFlag())


def test_1_and_2_an_expiry_hides_and_a_renewal_shows(facts: Facts, expired_mentor: UUID, portal: PortalServer) -> None:
    """update_portal_visibility(…, visible=False) is called on an expiry, visible=True on a valid renewal."""
    expired = night(facts.connection, portal=portal)
    facts.certificate(expired_mentor, TODAY + timedelta(days=700), issued_on=TODAY)
    renewed = night(facts.connection, portal=portal)

    pushed = [(request.contact_id, request.visible) for request in portal.requests]
    assert pushed == [(CONTACT, False), (CONTACT, True)]
    assert expired.to_document()["portal"]["delivered"] == 1
    assert renewed.to_document()["mentors"]["resumed"] == 1


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_3_fewer_failures_than_attempts_end_in_success(
    connection: Connection, facts: Facts, expired_mentor: UUID, portal: PortalServer, failures: int
) -> None:
    """One call more than it failed, all with one key, and no failure row."""
    portal.then(*[reset(), error(500, "dynamics_unavailable")][:failures], ok())

    report = night(connection, portal=portal, channel=CollectingChannel())

    ((event_id,),) = facts.rows("SELECT id FROM portal_sync_events")
    assert [request.idempotency_key for request in portal.requests] == [f"{event_id}-1"] * (failures + 1)
    assert facts.rows(FAILURES) == []
    assert portal.visible == {CONTACT: False}
    assert report.outcome == "ok"


def test_3_and_4_after_three_attempts_a_failure_row_is_kept_and_our_state_not_rolled_back(
    connection: Connection, facts: Facts, expired_mentor: UUID, portal: PortalServer
) -> None:
    """Expired and paused in our database, whatever the portal did; a resync recovers."""
    portal.default = DEAD

    report = night(connection, portal=portal)

    assert (len(portal.requests), report.outcome) == (3, "attention")
    assert facts.rows(FAILURES) == [(False, "transient", 3, False)]
    assert facts.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 1)]
    assert facts.rows("SELECT status FROM certificates") == [("expired",)]
    assert facts.rows("SELECT reason FROM mentor_pauses WHERE lifted_at IS NULL") == [("certification_expired",)]
    assert facts.rows("SELECT portal_visible FROM mentors") == [(False,)]
    portal.default = ok()
    assert resynced(connection, expired_mentor, portal).error is None
    assert facts.rows(FAILURES) == [(False, "transient", 3, True)]
    assert portal.visible == {CONTACT: False}


def test_5_the_service_raises_after_exhaustion(connection: Connection, facts: Facts, expired_mentor: UUID) -> None:
    """DynamicsSyncException names mentor, event, attempts and cause; run collects it, a resync hands it on."""
    night(connection, deliver=False)
    (event,) = claim(connection)

    error = push_once(event, FlakyPortal(failures=99)).error

    assert isinstance(error, DynamicsSyncException)
    assert (error.mentor_id, error.event_id, error.attempts) == (expired_mentor, event.id, 3)
    assert isinstance(error.cause, TransientPortalError)
    assert "M1042" in str(error)
    connection.execute("UPDATE portal_sync_events SET claim_token = NULL, next_attempt_at = now()")
    collected = night(connection, portal=FlakyPortal(failures=99)).to_document()
    assert (collected["outcome"], collected["portal"]["failed"]) == ("attention", 1)
    handed_on = resynced(connection, expired_mentor, FlakyPortal(failures=99)).error
    assert isinstance(handed_on, DynamicsSyncException)
    assert handed_on.exit_code == 3
    assert facts.rows(FAILURES) == [(False, "transient", 6, False)]


def test_6_no_call_is_made_for_an_organisation_without_the_portal(facts: Facts, portal: PortalServer) -> None:
    """Paused like everybody, but neither event nor call; not by a resync either."""
    mentor_id = facts.certified_mentor(facts.organisation("nhf", portal=None), YESTERDAY, contact_id=CONTACT)

    report = night(facts.connection, portal=portal)
    result = resynced(facts.connection, mentor_id, portal)

    assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
    assert (portal.requests, result.error) == ([], None)
    assert report.to_document()["mentors"]["paused"] == 1
