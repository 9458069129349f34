"""`certjob db prune` deletes old finished rows, except those that a later run or a page reads."""

import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from certjob.database import Connection
from certjob.database.retention import parse_age, prune
from certjob.errors import ConfigurationError
from certjob.review.days import looks_at_everybody
from certjob.stopping import StopFlag
from tests.support.command_line import today
from tests.support.facts import Facts

NOW = datetime.now(UTC)
"""These tests happen today, because the database's clock decides about age."""
DAY = timedelta(days=1)
LONG_AGO = NOW - 4 * 365 * DAY
THREE_YEARS_AGO = NOW.date().replace(year=NOW.year - 3, day=min(NOW.day, 28 if NOW.month == 2 else 31))


def pruned(connection: Connection, age: str = "3y") -> int:
    """Delete old finished rows; return their number."""
    return prune(connection, parse_age(age), zone=ZoneInfo("Europe/Oslo"), stop=StopFlag(), row_limit=3)


@pytest.fixture
def mentor(facts: Facts) -> UUID:
    return facts.certified_mentor(facts.organisation(), today() + 400 * DAY)


def add_push(facts: Facts, mentor: UUID, label: str, *, status: str = "delivered", **more: object) -> str:
    """Insert a push of long ago."""
    times = {"wanted_at": LONG_AGO, "next_attempt_at": LONG_AGO}
    if status == "delivered":
        times["delivered_at"] = LONG_AGO
    values = {"visible": False, "status": status, "last_error": label} | times | more
    return facts.insert("portal_sync_events", mentor_id=mentor, **values)


def assert_goes(facts: Facts, labels: str) -> None:
    """Check that the rows whose text is "goes" are deleted, and those with "stays" are not."""
    before = [row[0] for row in facts.rows(f"SELECT {labels}")]

    deleted = pruned(facts.connection)

    assert [row[0] for row in facts.rows(f"SELECT {labels}")] == ["stays"] * before.count("stays")
    assert deleted == before.count("goes")


def test_invalid_or_short_age_is_rejected(connection: Connection) -> None:
    """With less than 90 days, a mail could be sent twice."""
    for age, says in (("three years", "give one such as 3y"), ("3.5y", "give one such as 3y"), ("89d", "90 days")):
        with pytest.raises(ConfigurationError, match=says):
            pruned(connection, age)
    assert pruned(connection, "90d") == 0


def test_last_delivery_of_each_value_and_open_pushes_stay(facts: Facts, mentor: UUID) -> None:
    """`reconcile` and `explain` read the last deliveries."""
    for visible in (True, False):
        add_push(facts, mentor, "goes", visible=visible, delivered_at=LONG_AGO - DAY)
        add_push(facts, mentor, "stays", visible=visible)
    recent, pending, blocked, withdrawn = (facts.mentor(facts.organisation(slug)) for slug in "abcd")
    add_push(facts, recent, "goes")
    add_push(facts, recent, "stays", delivered_at=NOW)
    add_push(facts, pending, "stays", status="pending")
    add_push(facts, blocked, "stays", status="blocked")
    # A withdrawn hide is an alert until a later push. The second one may still be in flight.
    add_push(facts, withdrawn, "goes", status="withdrawn")
    add_push(facts, withdrawn, "stays", status="withdrawn", next_attempt_at=NOW + DAY)
    add_push(facts, withdrawn, "stays", status="withdrawn")

    assert_goes(facts, "last_error FROM portal_sync_events")


def test_resolved_failures_go_and_unresolved_ones_stay(facts: Facts, mentor: UUID) -> None:
    """An unresolved failure keeps its event. The age counts from the end of the failure."""
    failure = {"mentor_id": mentor, "visible": False, "kind": "transient", "last_failed_at": LONG_AGO}
    over, open_event = add_push(facts, mentor, "goes"), add_push(facts, mentor, "stays")
    add_push(facts, mentor, "stays")
    facts.insert("dynamics_sync_failures", error="stays", event_id=open_event, **failure)
    facts.insert("dynamics_sync_failures", error="stays", resolved_at=NOW - DAY, **failure)
    facts.insert("dynamics_sync_failures", error="goes", event_id=over, resolved_at=LONG_AGO, **failure)

    both = "SELECT error AS said FROM dynamics_sync_failures UNION ALL SELECT last_error FROM portal_sync_events"
    assert_goes(facts, f"said FROM ({both}) AS rows")


def test_reminders_stay_while_their_mail_could_be_due_again(facts: Facts, mentor: UUID) -> None:
    """If a date is corrected back, the mail must not be sent twice. Dates of earlier cycles count as well."""
    for label, days_before, changes in (
        ("goes", 1, {"status": "sent"}),
        ("goes", 1, {"status": "cancelled"}),
        ("goes", 1, {"status": "superseded"}),
        ("stays", 1000, {"status": "pending"}),
        ("stays", 1000, {"status": "failed"}),
        ("stays", 0, {}),
        ("stays", 1, {"sent_at": NOW - DAY}),
        ("goes", 400, {"threshold_days": -1}),
        ("stays", 400, {"threshold_days": -500}),  # due long after the expiry
        ("goes", 9, {"history": json.dumps([{"expires_on": f"{THREE_YEARS_AGO - 8 * DAY}", "status": "sent"}])}),
        ("stays", 9, {"history": json.dumps([{"expires_on": f"{THREE_YEARS_AGO + DAY}", "status": "sent"}])}),
    ):
        old = dict.fromkeys(("queued_at", "sent_at", "next_attempt_at"), LONG_AGO)
        about = {"cert_id": uuid4(), "threshold_days": 30, "expires_on": THREE_YEARS_AGO - days_before * DAY}
        values = {"mentor_id": mentor, "status": "sent", "last_error": label} | old | about | changes
        facts.insert("cert_notification_log", **values)

    assert_goes(facts, "last_error FROM cert_notification_log")


def test_last_transition_to_the_present_status_stays(facts: Facts, mentor: UUID) -> None:
    """`explain` shows its date. Transitions of deleted certificates go when they are old."""
    ((certificate,),) = facts.rows("UPDATE certificates SET status = 'valid' RETURNING id")
    for certificate_id, to_status, as_of, label in (
        (certificate, "valid", LONG_AGO, "goes"),
        (certificate, "expiring", LONG_AGO, "goes"),
        (certificate, "valid", LONG_AGO, "stays"),
        (certificate, "expiring", LONG_AGO, "goes"),
        (uuid4(), "valid", LONG_AGO, "goes"),
        (uuid4(), "valid", NOW, "stays"),
    ):
        change = {"certificate_id": certificate_id, "from_status": label, "to_status": to_status, "as_of": as_of}
        facts.insert("certificate_transitions", mentor_id=mentor, at=LONG_AGO, **change)

    assert_goes(facts, "from_status FROM certificate_transitions")


def test_last_sent_digest_and_open_digests_of_each_coordinator_stay(facts: Facts) -> None:
    """The next digest continues from it. The digest of the last day and the last sent one may differ."""
    organisation = facts.organisation()
    for status in ("pending", "failed", "cancelled"):
        coordinator = facts.insert("coordinators", organisation_id=organisation, email=f"{status}@hlf.example")
        for label, day, digest in (
            ("goes", 1, {"status": "sent", "sent_number": 1}),
            ("stays", 2, {"status": "sent", "sent_number": 3}),
            ("stays", 3, {"status": "sent", "sent_number": 2}),
            ("goes" if status == "cancelled" else "stays", 4, {"status": status}),
            ("goes", 5, {"status": "superseded"}),
            ("stays", 6, {"status": "superseded", "queued_at": NOW}),
            ("stays", 4 * 365, {"status": "superseded"}),
        ):
            old = dict.fromkeys(("queued_at", "sent_at", "next_attempt_at"), LONG_AGO)
            whose = {"coordinator_id": coordinator, "digest_on": LONG_AGO + day * DAY, "last_error": label}
            facts.insert("coordinator_digests", **whose | old | digest)

    assert_goes(facts, "last_error FROM coordinator_digests")


def add_run(facts: Facts, days_ago: int, label: str = "", **more: object) -> None:
    """Insert a run that finished well."""
    at = NOW - days_ago * DAY
    values = {"command": "run", "as_of": at, "finished_at": at, "outcome": "ok", "host": label, "version": "1"}
    times = {"started_at": at, "last_seen_at": at}
    facts.insert("job_runs", id=uuid4(), **values | times | more)


def test_last_run_of_each_command_organisation_and_outcome_stays(facts: Facts) -> None:
    """`status` and the guard against a wrong clock read them."""
    for different in ({}, {"organisation": "hlf"}, {"command": "deliver"}, {"outcome": "failed"}):
        add_run(facts, 1500, "goes", **different)
        add_run(facts, 1400, "stays", **different)
    for days_ago, label in ((1700, "goes"), (1, "stays")):
        add_run(facts, days_ago, label, command="load", outcome=None, finished_at=None)

    assert_goes(facts, "host FROM job_runs")


@pytest.mark.parametrize("is_repaired", [False, True])
def test_records_of_a_wrong_clock_and_of_its_repair_stay(facts: Facts, is_repaired: bool) -> None:
    """Otherwise runs would review everyone again, or not at all."""
    for days_ago in (1600, 1550):
        add_run(facts, days_ago)
    add_run(facts, 1500, as_of=today() + 3000 * DAY)
    if is_repaired:
        add_run(facts, 1450)
        add_run(facts, 1400, outcome="attention")
    before = looks_at_everybody(facts.connection, today())

    assert pruned(facts.connection) > 0
    after = looks_at_everybody(facts.connection, today())
    assert (before, after) == (not is_repaired, not is_repaired)
