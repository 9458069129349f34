"""The mission's own tests: what certjob exists for, on a real PostgreSQL."""

from collections.abc import Iterator
from datetime import date, timedelta
from uuid import UUID

import pytest

from certjob.database import Connection
from certjob.errors import DynamicsSyncException, PermanentPortalError, TransientPortalError
from certjob.night import resync
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import claim
from tests.support.nights import CollectingChannel, FlakyPortal, delivery, night, quick_policy
from tests.support.portal_answers import error, hang, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.stages import push_once

CONTACT = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
YESTERDAY = TODAY - timedelta(days=1)


@pytest.fixture
def expired_mentor(facts: Facts) -> UUID:
    """A mentor of HLF whose certificate was in force until yesterday."""
    return facts.certified_mentor(facts.organisation("hlf"), YESTERDAY, contact_id=CONTACT, member_no="M1042")


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    """The Edge Function's stand-in, over real HTTP."""
    with PortalServer() as server:
        yield server


def state_of(facts: Facts, mentor_id: UUID) -> list[tuple[object, ...]]:
    """Certificate status and open pauses."""
    return facts.rows(
        "SELECT c.status, (SELECT array_agg(reason) FROM mentor_pauses p WHERE p.mentor_id = c.mentor_id"
        " AND lifted_at IS NULL) FROM certificates c WHERE mentor_id = %s",
        mentor_id,
    )


def failures_of(facts: Facts, mentor_id: UUID) -> list[tuple[object, ...]]:
    return facts.rows(
        "SELECT visible, kind, attempts, resolved_at IS NOT NULL FROM dynamics_sync_failures WHERE mentor_id = %s"
        " ORDER BY id",
        mentor_id,
    )


def test_1_an_expiry_hides_the_mentor_on_the_portal(connection: Connection, expired_mentor: UUID) -> None:
    """update_portal_visibility(…, visible=False) is called on an expiry."""
    double = FlakyPortal()

    report = night(connection, portal=double)

    assert [(contact, visible) for contact, visible, _ in double.calls] == [(CONTACT, False)]
    assert report.portal is not None
    assert report.portal.delivered == 1


def test_2_a_valid_renewal_shows_the_mentor_again(connection: Connection, facts: Facts, expired_mentor: UUID) -> None:
    """visible=True is pushed when a renewal brings the mentor back."""
    double = FlakyPortal()
    night(connection, portal=double)
    facts.certificate(expired_mentor, TODAY + timedelta(days=700), issued_on=TODAY)

    report = night(connection, portal=double)

    assert [visible for _, visible, _ in double.calls] == [False, True]
    assert report.review is not None
    assert report.review.resumed == 1


def test_3_after_three_failed_attempts_a_failure_row_is_kept(
    connection: Connection, facts: Facts, expired_mentor: UUID
) -> None:
    """Up to 3 attempts, then a row in dynamics_sync_failures and a pending event."""
    double = FlakyPortal(failures=99)

    night(connection, portal=double)

    assert len(double.calls) == 3
    assert failures_of(facts, expired_mentor) == [(False, "transient", 3, False)]
    assert facts.rows("SELECT status, attempts FROM portal_sync_events") == [("pending", 1)]


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_3_fewer_failures_than_attempts_end_in_success(
    connection: Connection, facts: Facts, expired_mentor: UUID, failures: int
) -> None:
    """One call more than it failed, and no failure row."""
    double = FlakyPortal(failures=failures)

    report = night(connection, portal=double)

    assert len(double.calls) == failures + 1
    assert failures_of(facts, expired_mentor) == []
    assert double.visible == {CONTACT: False}
    assert {key for _, _, key in double.calls} == {f"{event_id(facts)}-1"}
    assert report.portal is not None
    assert report.portal.delivered == 1


def event_id(facts: Facts) -> object:
    return facts.rows("SELECT id FROM portal_sync_events")[0][0]


def test_4_our_state_is_not_rolled_back_when_all_retries_fail(
    connection: Connection, facts: Facts, expired_mentor: UUID
) -> None:
    """Expired and paused in our database, whatever the portal did."""
    night(connection, portal=FlakyPortal(failures=99))

    assert state_of(facts, expired_mentor) == [("expired", ["certification_expired"])]
    assert facts.rows("SELECT portal_visible FROM mentors") == [(False,)]


def test_5_the_service_raises_after_exhaustion(connection: Connection, expired_mentor: UUID) -> None:
    """DynamicsSyncException names mentor, event, attempts and cause."""
    night(connection, deliver=False)
    (event,) = claim(connection)

    error = push_once(event, FlakyPortal(failures=99)).error

    assert isinstance(error, DynamicsSyncException)
    assert error.mentor_id == expired_mentor
    assert error.event_id == event.id
    assert error.attempts == 3
    assert isinstance(error.cause, TransientPortalError)
    assert "M1042" in str(error)


def test_5_a_resync_raises_it_and_run_collects_it(connection: Connection, facts: Facts, expired_mentor: UUID) -> None:
    """The night goes on and needs attention; the resync hands the exception to its caller."""
    report = night(connection, portal=FlakyPortal(failures=99))
    result = resync.resync(
        connection,
        expired_mentor,
        today=TODAY,
        delivery=delivery(portal=FlakyPortal(failures=99)),
        stop=StopFlag(),
    )

    assert report.outcome == "attention"
    assert report.portal is not None
    assert report.portal.failed == 1
    assert isinstance(result.error, DynamicsSyncException)
    assert result.error.exit_code == 3
    assert failures_of(facts, expired_mentor) == [(False, "transient", 6, False)]


def test_6_no_call_is_made_for_an_organisation_without_the_portal(connection: Connection, facts: Facts) -> None:
    """Paused and reminded like everybody, but neither event nor call; not by a resync either."""
    mentor_id = facts.certified_mentor(facts.organisation("nhf", portal=None), YESTERDAY, contact_id=CONTACT)
    double = FlakyPortal()

    report = night(connection, portal=double)
    result = resync.resync(
        connection,
        mentor_id,
        today=TODAY,
        delivery=delivery(portal=double),
        stop=StopFlag(),
    )

    assert double.calls == []
    assert facts.rows("SELECT count(*) FROM portal_sync_events") == [(0,)]
    assert report.review is not None
    assert report.review.paused == 1
    assert result.error is None


def test_a_refused_contact_is_blocked_at_once(connection: Connection, facts: Facts, expired_mentor: UUID) -> None:
    """A permanent error is not retried; the event is open, blocked and an alert until a resync succeeds."""
    refused = FlakyPortal(failures=1, error=lambda: PermanentPortalError("404 contact_not_found"))

    report = night(connection, portal=refused)

    assert len(refused.calls) == 1
    assert failures_of(facts, expired_mentor) == [(False, "permanent", 1, False)]
    assert report.portal_blocked == 1
    resync.resync(
        connection,
        expired_mentor,
        today=TODAY,
        delivery=delivery(portal=refused),
        stop=StopFlag(),
    )
    assert failures_of(facts, expired_mentor) == [(False, "permanent", 1, True)]
    assert facts.rows("SELECT count(*) FROM portal_alerts") == [(0,)]


# The same over real HTTP, with the failures of a real network.


def test_transient_http_failures_are_retried_with_the_same_key(
    connection: Connection, facts: Facts, expired_mentor: UUID, portal: PortalServer
) -> None:
    """A reset, a 500, then 200: three calls with one idempotency key, and the portal has the value."""
    portal.then(reset(), error(500, "dynamics_unavailable"), ok())

    report = night(connection, portal=portal, channel=CollectingChannel())

    assert len(portal.requests) == 3
    assert len({request.idempotency_key for request in portal.requests}) == 1
    assert portal.visible == {CONTACT: False}
    assert failures_of(facts, expired_mentor) == []
    assert report.outcome == "ok"


def test_a_retry_after_spaces_the_calls(connection: Connection, expired_mentor: UUID, portal: PortalServer) -> None:
    """429 with Retry-After: 1 is followed by the next call at least a second later."""
    portal.then(error(429, "throttled", retry_after="1"), ok())

    night(connection, portal=portal)

    first, second = portal.requests
    assert second.arrived_seconds - first.arrived_seconds >= 1.0
    assert portal.visible == {CONTACT: False}


def test_a_call_without_an_answer_ends_by_its_deadline(
    connection: Connection, facts: Facts, expired_mentor: UUID, portal: PortalServer
) -> None:
    """A server that never answers costs one call's deadline, then the next attempt succeeds."""
    from certjob.portal.hlf_dynamics import HLFDynamicsSyncService

    portal.then(hang(), ok())
    ways_out = delivery(portal=FlakyPortal())
    ways_out = type(ways_out)(
        make_target=lambda: HLFDynamicsSyncService(portal.url, portal.key, deadline_seconds=0.5),
        policy=quick_policy(),
        concurrency=1,
    )

    night(connection, ways_out=ways_out)

    first, second = portal.requests
    assert second.arrived_seconds - first.arrived_seconds >= 0.4  # the call's clock starts before the server's
    assert portal.visible == {CONTACT: False}
    assert failures_of(facts, expired_mentor) == []


def test_over_http_all_six_hold(
    connection: Connection, facts: Facts, expired_mentor: UUID, portal: PortalServer
) -> None:
    """Expiry, exhaustion, state kept, recovery by resync, renewal, and silence about the other organisation."""
    facts.certified_mentor(facts.organisation("nhf", portal=None), YESTERDAY)
    portal.default = error(503, "dynamics_unavailable")

    report = night(connection, portal=portal)

    assert len(portal.requests) == 3
    assert report.outcome == "attention"
    assert state_of(facts, expired_mentor) == [("expired", ["certification_expired"])]
    assert failures_of(facts, expired_mentor) == [(False, "transient", 3, False)]

    portal.default = ok()
    result = resync.resync(
        connection,
        expired_mentor,
        today=TODAY,
        delivery=delivery(portal=portal),
        stop=StopFlag(),
    )

    assert result.error is None
    assert failures_of(facts, expired_mentor) == [(False, "transient", 3, True)]
    facts.certificate(expired_mentor, date(2028, 3, 1), issued_on=TODAY)
    night(connection, portal=portal)
    assert portal.visible == {CONTACT: True}
    assert {request.contact_id for request in portal.requests} == {CONTACT}
