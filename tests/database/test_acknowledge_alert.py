"""acknowledge_alert, by which coordinators acknowledge alerts about mentors of their own organisation."""

from datetime import date, timedelta

import psycopg
import pytest

from tests.conftest import Certjob
from tests.database.supabase import DENIED, Organisation, acting

ACKNOWLEDGE = "SELECT certjob.acknowledge_alert(%(alert)s, %(fingerprint)s, %(because)s, %(until)s)"
ALERTS = "SELECT alert_id, fingerprint FROM certjob.alerts WHERE kind = 'may_be_visible'"


def acknowledge(
    organisation: Organisation,
    alert: tuple[str, str],
    *,
    because: str | None = "Kari is ill",
    until: date | None = None,
    days: int = 7,
) -> None:
    """Acknowledge an alert as the coordinator."""
    last = until or date.today() + timedelta(days=days)  # noqa: DTZ011 - the database's date is checked below
    organisation.asks(ACKNOWLEDGE, alert=alert[0], fingerprint=alert[1], because=because, until=last)


def failing_hide(organisation: Organisation) -> tuple[str, str]:
    """Return the id and the fingerprint of the alert about the mentor's push."""
    (alert,) = organisation.asks(ALERTS)
    return alert[0], alert[1]


def test_acknowledged_alert_goes_and_returns_when_it_changes(ours: Organisation) -> None:
    """The acknowledgement is signed with the user. The same rule as for the command's."""
    alert = failing_hide(ours)

    acknowledge(ours, alert)

    assert ours.asks(ALERTS) == []
    row = "SELECT because, acknowledged_by, until - current_date FROM acknowledgements"
    assert ours.facts.rows(row) == [("Kari is ill", str(ours.coordinator), 7)]
    ours.facts.connection.execute("UPDATE dynamics_sync_failures SET failure_code = 'contact_not_found'")
    ((again, fingerprint),) = ours.asks(ALERTS)
    assert (again, fingerprint == alert[1]) == (alert[0], False)
    acknowledge(ours, (again, fingerprint), because="still ill")
    assert ours.asks(ALERTS) == []


def test_alert_that_the_user_has_not_seen_is_rejected(ours: Organisation, theirs: Organisation) -> None:
    """One with another fingerprint, one of another organisation, and one that does not exist: the same error."""
    alert, other = failing_hide(ours), failing_hide(theirs)

    for wrong in ((alert[0], "another"), other, ("hlf:may_be_visible:M9", alert[1])):
        with pytest.raises(psycopg.errors.RaiseException, match="over, or has changed"):
            acknowledge(ours, wrong)

    assert ours.facts.rows("SELECT FROM acknowledgements") == []


@pytest.mark.parametrize("days", [-1, 32])
def test_last_day_has_limits(ours: Organisation, days: int) -> None:
    """From today to 31 days ahead."""
    alert = failing_hide(ours)

    with pytest.raises(psycopg.errors.InvalidParameterValue, match="the last day must be from"):
        acknowledge(ours, alert, days=days)

    for allowed in (0, 31):
        acknowledge(ours, alert, days=allowed)
        ours.facts.connection.execute("DELETE FROM acknowledgements")


@pytest.mark.parametrize("because", [None, "", "  ", "x" * 1001], ids=["none", "empty", "blank", "long"])
def test_reason_is_required(ours: Organisation, because: str | None) -> None:
    """The operator reads it in `certjob alerts --acknowledged`."""
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="1 to 1,000 characters"):
        acknowledge(ours, failing_hide(ours), because=because)


def test_holds_and_missing_reviews_are_left_to_operators(ours: Organisation) -> None:
    """A coordinator cannot know whether sixty changes are right."""
    facts = ours.facts
    facts.insert("review_problems", mentor_id=ours.mentor, reason="locked", as_of=date(2099, 1, 1))
    held = {"what": "pauses", "as_of": date(2099, 1, 1), "reason": "many", "mentors": 60, "allow": 60}
    facts.insert("held_reviews", organisation_id=ours.id, **held)
    alerts = ours.asks("SELECT alert_id, fingerprint FROM certjob.alerts WHERE kind IN ('held', 'never_reviewed')")
    assert len(alerts) == 2

    for alert_id, fingerprint in alerts:
        with pytest.raises(DENIED, match="only an operator"):
            acknowledge(ours, (alert_id, fingerprint))


@pytest.mark.parametrize("role", ["anon", "service_role", "authenticated"])
def test_others_cannot_acknowledge(ours: Organisation, role: str) -> None:
    """A visitor, the app's server, and a user who is no coordinator."""
    alert_id, fingerprint = failing_hide(ours)
    values = {"alert": alert_id, "fingerprint": fingerprint, "because": "no", "until": date(2099, 1, 1)}

    with pytest.raises((DENIED, psycopg.errors.RaiseException)), acting(ours.api, role, sub=ours.mentor) as api:
        api.execute(ACKNOWLEDGE, values)

    assert ours.facts.rows("SELECT FROM acknowledgements") == []


def test_next_run_prints_it_once(ours: Organisation, supabase_url: str, here: Certjob) -> None:
    """The line has ids only, because a log has no data about people."""
    alert = failing_hide(ours)
    acknowledge(ours, alert)

    first, second = (here("run", CERTJOB_DATABASE_URL=supabase_url) for _ in range(2))

    line = f"certjob run: {alert[0]}: user {ours.coordinator} has acknowledged it until "
    assert (first.stderr.count(line), second.stderr.count("has acknowledged it")) == (1, 0)
    assert "Kari is ill" not in first.stderr
