"""request_portal_resync, the app's "try again now" for coordinators of the mentor's organisation."""

from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.conftest import Certjob
from tests.database.supabase import DENIED, Organisation, acting
from tests.support.command_line import today
from tests.support.portal_server import PortalServer

REQUEST = "SELECT event_version, visible, in_flight FROM certjob.request_portal_resync(%(mentor)s)"
CONTACT = uuid4()


def request(ours: Organisation, mentor_id: UUID | None = None) -> tuple[object, ...]:
    """Request as our coordinator; return version, value and whether a call is in flight."""
    (answer,) = ours.asks(REQUEST, mentor=mentor_id or ours.mentor)
    return answer


def events(ours: Organisation, mentor_id: UUID) -> list[tuple[object, ...]]:
    """Return version, status, value, attempts, is due, is claimed, and last error of the open event."""
    return ours.facts.rows(
        "SELECT version, status, visible, attempts, next_attempt_at <= now(), claim_token IS NOT NULL, last_error"
        " FROM portal_sync_events WHERE mentor_id = %s AND status IN ('pending', 'blocked')",
        mentor_id,
    )


def test_requested_push_is_delivered_by_the_next_deliver(
    certjob: Certjob, supabase_url: str, portal: PortalServer, ways_out: dict[str, str], ours: Organisation
) -> None:
    """Repeated requests keep attempts and age of the push. A call in flight keeps its lease."""
    owner = ours.facts.connection
    owner.execute(
        "UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events SET status = 'blocked', attempts = 3,"
        " next_attempt_at = now() + interval '6 hours', last_error = 'down', wanted_at = '2026-03-01';"
        "DELETE FROM coordinator_digests; DELETE FROM cert_notification_log"
    )
    assert [request(ours) for _ in range(3)] == [(version, False, False) for version in (2, 3, 4)]
    assert events(ours, ours.mentor) == [(4, "pending", False, 3, True, False, "down")]
    assert ours.facts.rows("SELECT wanted_at < '2026-03-02' FROM portal_sync_events") == [(True,)]

    as_worker = psycopg.conninfo.make_conninfo(supabase_url, options="-c role=certjob_worker")
    result = certjob("deliver", CERTJOB_DATABASE_URL=as_worker, **ways_out)

    assert result.returncode == 0, result
    assert list(portal.visible.items()) == [(*ours.facts.rows("SELECT dynamics_contact_id FROM mentors")[0], False)]
    assert events(ours, ours.mentor) == []
    assert request(ours) == (1, False, False), "the portal was edited manually"
    assert events(ours, ours.mentor) == [(1, "pending", False, 1, True, False, None)]
    # A call in flight keeps its lease. Its settle finds the raised version, and makes the event due at once.
    owner.execute("UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + '5 min'")
    assert request(ours) == (2, False, True)
    assert [event[4:6] for event in events(ours, ours.mentor)] == [(False, True)]


@pytest.mark.parametrize("stored", [True, False])
def test_stored_value_is_queued(ours: Organisation, stored: bool) -> None:
    """It counts as tried, because it must not go before the retried hides of others."""
    mentor = ours.facts.mentor(ours.id)
    ours.facts.connection.execute("UPDATE mentors SET portal_visible = %s WHERE id = %s", (stored, mentor))

    assert request(ours, mentor) == (1, stored, False)
    assert events(ours, mentor) == [(1, "pending", stored, 1, True, False, None)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param("UPDATE mentors SET portal_visible = NULL", "waits for a review", id="new contact ID"),
        pytest.param("UPDATE organisations SET portal = NULL", "HLF has no portal", id="no portal"),
    ],
)
def test_nothing_to_push_is_an_error(ours: Organisation, change: str, said: str) -> None:
    """Without a stored value and without an open push, only a review can decide."""
    mentor = ours.facts.mentor(ours.id)
    ours.facts.connection.execute(change.encode())

    with pytest.raises(psycopg.errors.RaiseException, match=said):
        request(ours, mentor)

    assert events(ours, mentor) == []


PAUSED = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'ill', 'eva')"
REVOKED = "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(mentor)s"
LEFT = "UPDATE mentors SET left_at = now() WHERE id = %(mentor)s"


@pytest.mark.parametrize("change", [PAUSED, REVOKED, LEFT], ids=["paused", "revoked", "left"])
def test_requested_show_of_a_changed_mentor_becomes_a_hide(
    certjob: Certjob,
    supabase_url: str,
    portal: PortalServer,
    ways_out: dict[str, str],
    ours: Organisation,
    change: str,
) -> None:
    """`deliver` reviews the mentor before it pushes."""
    ours.facts.connection.execute("DELETE FROM portal_sync_events")
    mentor = ours.facts.certified_mentor(ours.id, today() + timedelta(days=300), contact_id=CONTACT)
    ours.facts.connection.execute(change.encode(), {"mentor": mentor})
    request(ours, mentor)

    certjob("deliver", CERTJOB_DATABASE_URL=supabase_url, **ways_out | {"CERTJOB_NOTIFY_URL": ""})

    assert portal.visible == {CONTACT: False}


def test_repeated_requests_keep_the_attempts(ours: Organisation) -> None:
    """A retried push stays behind those that were not tried, and keeps the length of its next delay."""
    ours.facts.connection.execute("UPDATE portal_sync_events SET attempts = 3, next_attempt_at = now() + '6 hours'")

    for _ in range(3):
        request(ours)

    assert [event[3:5] for event in events(ours, ours.mentor)] == [(3, True)]


def test_only_coordinators_of_the_organisation_may_request(ours: Organisation, theirs: Organisation) -> None:
    """Others get the error of an unknown mentor. Temporary tables, forged claims and old tokens do not help."""
    ours.api.execute("SET search_path = pg_temp, certjob")
    for table in ("mentors", "organisations", "coordinators", "portal_sync_events", "mentor_pauses"):
        ours.asks(f"CREATE TABLE pg_temp.{table} AS SELECT * FROM certjob.{table}")
    ours.asks("UPDATE pg_temp.mentors SET id = %(mentor)s", mentor=theirs.mentor)
    said = set()
    for mentor in (theirs.mentor, uuid4(), None):
        with pytest.raises(DENIED) as denied:
            ours.asks(REQUEST, mentor=mentor)
        said.add(str(denied.value))

    assert len(said) == 1
    assert [event[0] for event in events(ours, theirs.mentor)] == [1]
    assert request(ours)[0] == 2
    for role in ("anon", "service_role", "certjob_worker"):
        refused = pytest.raises(DENIED, match=r"permission denied for (function|schema)")
        with refused, acting(ours.api, role, sub=ours.coordinator):
            ours.api.execute(REQUEST.encode(), {"mentor": ours.mentor})
    with pytest.raises(DENIED), acting(ours.api, "authenticated"):
        ours.api.execute(REQUEST.encode(), {"mentor": ours.mentor})
    ours.facts.connection.execute("DELETE FROM coordinators")
    with pytest.raises(DENIED):
        request(ours)
