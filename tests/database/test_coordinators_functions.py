"""The functions that coordinators call: request_portal_resync, and confirm_hidden after a hide by hand."""

from contextlib import nullcontext
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.conftest import Certjob
from tests.database.supabase import DENIED, Organisation, acting

REQUEST = "SELECT event_version, visible, in_flight FROM certjob.request_portal_resync(%(mentor)s)"


def open_push(ours: Organisation, mentor_id: UUID) -> tuple[object, ...]:
    """Return version, status, value, attempts, and whether the open push is due."""
    (push,) = ours.facts.rows(
        "SELECT version, status, visible, attempts, next_attempt_at <= now() FROM portal_sync_events"
        " WHERE mentor_id = %s AND status IN ('pending', 'blocked')",
        mentor_id,
    )
    return push


def test_open_push_becomes_due_and_keeps_its_attempts_and_age(ours: Organisation) -> None:
    """A retried push stays behind those that were not tried, because many requests must not delay others."""
    ours.facts.connection.execute(
        "UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events SET status = 'blocked', attempts = 3,"
        " next_attempt_at = now() + interval '6 hours', wanted_at = '2026-03-01'"
    )

    assert ours.asks(REQUEST) == [(2, False, False)]
    assert ours.asks(REQUEST) == [(3, False, False)]

    assert open_push(ours, ours.mentor) == (3, "pending", False, 3, True)
    assert ours.facts.rows("SELECT wanted_at < '2026-03-02' FROM portal_sync_events") == [(True,)]


def test_supabase_can_name_the_columns_of_the_answer(ours: Organisation) -> None:
    """Its generated types have the columns of a table, and `Record<string, unknown>` for OUT parameters."""
    (about,) = ours.facts.rows(
        "SELECT proretset, 't' = ANY (proargmodes), 'o' = ANY (proargmodes) FROM pg_proc"
        " WHERE oid = 'certjob.request_portal_resync'::regproc"
    )

    assert about == (True, True, False)


def test_call_in_flight_keeps_its_lease(ours: Organisation) -> None:
    """Its settle finds the raised version, and makes the push due at once. An expired lease does not count."""
    claim = "UPDATE portal_sync_events SET claim_token = gen_random_uuid(), next_attempt_at = now() + interval"
    ours.facts.connection.execute(f"{claim} '5 minutes'".encode())
    assert ours.asks(REQUEST) == [(2, False, True)]
    assert open_push(ours, ours.mentor) == (2, "pending", False, 0, False)

    ours.facts.connection.execute(f"{claim} '-1 minute'".encode())
    assert ours.asks(REQUEST) == [(3, False, False)]
    assert open_push(ours, ours.mentor) == (3, "pending", False, 0, True)


def test_stored_value_is_queued_without_an_open_push(ours: Organisation) -> None:
    """It counts as tried, because it must not go before the retried hides of others."""
    mentor = ours.facts.mentor(ours.id)
    ours.facts.connection.execute("UPDATE mentors SET portal_visible = true")

    assert ours.asks(REQUEST, mentor=mentor) == [(1, True, False)]
    assert open_push(ours, mentor) == (1, "pending", True, 1, True)


def test_view_shows_the_request_and_for_which_alerts_it_helps(ours: Organisation) -> None:
    """A retry helps if the portal was down or has rejected the change. After the request there is only waiting."""
    ours.facts.connection.execute(
        "UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events SET attempts = 3;"
        " UPDATE dynamics_sync_failures SET attempts = 3"
    )
    shown = "SELECT cause, state, action FROM alerts WHERE kind = 'may_be_visible'"

    for code, status, state, action in (
        ("portal_down", "pending", "waiting", "retry"),
        ("change_refused", "blocked", "stopped", "check_contact"),
        ("contact_not_found", "blocked", "stopped", "correct_contact_id"),
        ("portal_stopped", "pending", "waiting", "tell_operator"),
    ):
        ours.facts.connection.execute(
            f"UPDATE dynamics_sync_failures SET failure_code = '{code}'; UPDATE portal_sync_events"
            f" SET status = '{status}', next_attempt_at = now() + interval '3 hours'".encode()
        )
        assert ours.asks(shown) == [(code, state, action)]

        ours.asks(REQUEST)

        after = "wait" if code in ("portal_down", "change_refused") else action
        assert ours.asks(shown) == [(code, "due", after)]


def test_nothing_to_push_is_an_error(ours: Organisation) -> None:
    """Without a stored value and without an open push, only a review can decide."""
    mentor = ours.facts.mentor(ours.id)
    for change, said in (
        ("UPDATE mentors SET portal_visible = NULL", "waits for a review"),
        ("UPDATE mentors SET dynamics_contact_id = NULL", "has no contact ID"),
        ("UPDATE organisations SET portal = NULL", "HLF has no portal"),
    ):
        ours.facts.connection.execute(change.encode())
        with pytest.raises(psycopg.errors.RaiseException, match=said):
            ours.asks(REQUEST, mentor=mentor)


def test_only_coordinators_of_the_organisation_may_request(ours: Organisation, theirs: Organisation) -> None:
    """Others get the error of an unknown mentor. Temporary tables and forged claims do not help."""
    ours.api.execute("SET search_path = pg_temp, certjob")
    ours.asks("CREATE TABLE pg_temp.coordinators AS SELECT id FROM certjob.coordinators")
    said = set()
    for mentor in (theirs.mentor, uuid4(), None):
        with pytest.raises(DENIED) as denied:
            ours.asks(REQUEST, mentor=mentor)
        said.add(str(denied.value))

    assert len(said) == 1
    assert open_push(ours, theirs.mentor)[0] == 1
    for role in ("anon", "service_role", "certjob_worker"):
        rejected = pytest.raises(DENIED, match=r"permission denied for (function|schema)")
        with rejected, acting(ours.api, role, sub=ours.coordinator):
            ours.api.execute(REQUEST.encode(), {"mentor": ours.mentor})
    ours.facts.connection.execute("DELETE FROM coordinators")
    with pytest.raises(DENIED):
        ours.asks(REQUEST)


CONFIRM = "SELECT certjob.confirm_hidden(%(mentor)s, %(because)s)"
VISIBLE = "SELECT alert_id FROM certjob.alerts WHERE kind = 'may_be_visible'"


def confirm(organisation: Organisation, *, of: Organisation | None = None, because: str | None = "in Dynamics") -> None:
    """Confirm it as the coordinator."""
    organisation.asks(CONFIRM, mentor=(of or organisation).mentor, because=because)


def test_confirmed_hide_is_no_alert(ours: Organisation) -> None:
    """It is signed with the user."""
    assert len(ours.asks(VISIBLE)) == 1

    confirm(ours)

    assert ours.asks(VISIBLE) == []
    row = "SELECT hidden_because, hidden_by, delivered_at = now() FROM portal_sync_events WHERE NOT visible"
    assert [each[:2] for each in ours.facts.rows(row)] == [("in Dynamics", str(ours.coordinator))]
    assert ours.facts.rows("SELECT FROM dynamics_sync_failures WHERE resolved_at IS NULL") == []


def test_mentor_of_another_organisation_is_rejected(ours: Organisation, theirs: Organisation) -> None:
    with pytest.raises(DENIED, match="only a coordinator of the mentor's organisation"):
        confirm(ours, of=theirs)


@pytest.mark.parametrize("because", [None, "", "  ", "x" * 1001], ids=["none", "empty", "blank", "long"])
def test_reason_is_required(ours: Organisation, because: str | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="1 to 1,000 characters"):
        confirm(ours, because=because)


@pytest.mark.parametrize(
    ("push", "can_confirm"),
    [
        ("status = 'blocked'", True),
        ("status = 'withdrawn'", True),
        ("claim_token = gen_random_uuid(), next_attempt_at = now() - interval '1 minute'", True),
        ("claim_token = gen_random_uuid(), next_attempt_at = now() + interval '1 minute'", False),
        ("visible = true, wanted_until = current_date, shown_until = current_date + 9", False),
    ],
    ids=["open", "withdrawn", "call ended", "call under way", "earlier last day"],
)
def test_alert_says_whether_a_coordinator_can_confirm(ours: Organisation, push: str, can_confirm: bool) -> None:
    ours.facts.connection.execute("UPDATE mentors SET left_at = now(), dynamics_contact_id = NULL")
    ours.facts.connection.execute(f"UPDATE portal_sync_events SET {push}")

    assert ours.asks("SELECT can_confirm_hidden FROM certjob.alerts WHERE kind = 'may_be_visible'") == [(can_confirm,)]

    with nullcontext() if can_confirm else pytest.raises((psycopg.errors.ObjectInUse, psycopg.errors.NoDataFound)):
        confirm(ours)


@pytest.mark.parametrize("role", ["anon", "service_role", "authenticated"])
def test_others_cannot_confirm(ours: Organisation, role: str) -> None:
    """A visitor, the app's server, and a user who is no coordinator."""
    with pytest.raises(DENIED), acting(ours.api, role, sub=ours.mentor) as api:
        api.execute(CONFIRM, {"mentor": ours.mentor, "because": "no"})


def test_next_full_run_prints_it_once(ours: Organisation, supabase_url: str, here: Certjob) -> None:
    """The line has ids only, because a log has no data about people."""
    confirm(ours)

    first, second = (here("run", CERTJOB_DATABASE_URL=supabase_url) for _ in range(2))

    line = f"was hidden by hand, as user {ours.coordinator} said on "
    assert (first.stderr.count(line), second.stderr.count(line)) == (1, 0)
    assert "in Dynamics" not in first.stderr
