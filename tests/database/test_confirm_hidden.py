"""confirm_hidden, by which coordinators say that they have hidden a contact of their own organisation by hand."""

from contextlib import nullcontext

import psycopg
import pytest

from tests.conftest import Certjob
from tests.database.supabase import DENIED, Organisation, acting

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
