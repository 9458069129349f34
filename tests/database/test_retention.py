"""`certjob db prune` deletes old finished rows, except those that a later run or a page reads."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.database.retention import parse_age, prune
from certjob.errors import ConfigurationError, StoppedBySignalError
from certjob.review.days import looks_at_everybody
from certjob.stopping import StopFlag
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, today
from tests.support.facts import Facts

OSLO = ZoneInfo("Europe/Oslo")
NOW = datetime.now(UTC)
"""These tests happen today, because the database's clock decides about age."""
DAY = timedelta(days=1)
LONG_AGO = NOW - 4 * 365 * DAY


def limit() -> date:
    """The day three years ago."""
    day = today()
    return day.replace(year=day.year - 3, day=min(day.day, 28) if day.month == 2 else day.day)


def pruned(connection: Connection, age: str = "3y", *, stop: StopFlag | None = None, **more: Any) -> int:
    return prune(connection, parse_age(age), zone=OSLO, stop=stop or StopFlag(), **more)


class Past:
    """A mentor with old rows, each marked with whether it stays."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.rows, self.connection = facts, facts.rows, facts.connection
        self.organisation = facts.organisation()
        self.mentor, self.another = (facts.certified_mentor(self.organisation, today() + 400 * DAY) for _ in range(2))
        self.ids: dict[str, dict[object, bool]] = {}

    def add(self, table: str, *, stays: bool, **values: object) -> str:
        row = self.facts.insert(table, **values)
        self.ids.setdefault(table, {})[row] = stays
        return row

    def event(
        self,
        *,
        stays: bool = False,
        mentor: UUID | None = None,
        status: str = "delivered",
        at: datetime = LONG_AGO,
        **more: object,
    ) -> str:
        values = {"visible": False, "wanted_at": at, "next_attempt_at": at, "status": status} | more
        values["delivered_at"] = at if status == "delivered" else None
        return self.add("portal_sync_events", stays=stays, mentor_id=mentor or self.mentor, **values)

    def reminder(self, expires_on: date, *, stays: bool, history: date | None = None, **more: object) -> None:
        cycles = json.dumps([{"expires_on": history.isoformat(), "status": "sent"}] if history else [])
        values = {"threshold_days": 30, "status": "sent", "sent_at": LONG_AGO, "next_attempt_at": LONG_AGO} | more
        values |= {"expires_on": expires_on, "history": cycles, "cert_id": uuid4(), "queued_at": LONG_AGO}
        self.add("cert_notification_log", stays=stays, mentor_id=self.mentor, **values)

    def run(self, days_ago: int, *, stays: bool = False, outcome: str | None = "ok", **more: object) -> None:
        at = NOW - days_ago * DAY
        values = {"command": "run", "as_of": at.date(), "finished_at": at if outcome else None, "outcome": outcome}
        values |= {"id": uuid4(), "host": "h", "version": "1", "started_at": at, "last_seen_at": at} | more
        self.add("job_runs", stays=stays, **values)

    def assert_goes(self) -> None:
        """Check that exactly the rows without ``stays`` are deleted, and none by a second prune."""
        deleted = pruned(self.connection)
        for table, ids in self.ids.items():
            found = {row[0] for row in self.rows(f"SELECT id::text FROM {table}")}
            assert found == {row for row, stays in ids.items() if stays}, table
        assert deleted == sum(not stays for ids in self.ids.values() for stays in ids.values())
        assert pruned(self.connection) == 0


@pytest.fixture
def past(facts: Facts) -> Past:
    return Past(facts)


def test_invalid_or_short_age_is_refused(connection: Connection) -> None:
    """With less than 90 days, a mail could be sent twice."""
    for ages, says in ((",3,three years,-3y,1y6m,3.5y,9999y", "give one such as 3y"), ("0d,89d,2m,12w", "90 days")):
        for age in ages.split(","):
            with pytest.raises(ConfigurationError, match=says):
                pruned(connection, age)
    assert pruned(connection, "90d") == 0


def test_last_delivery_of_each_value_and_open_events_stay(past: Past, facts: Facts) -> None:
    """`reconcile` and `explain` read the last deliveries."""
    pending, blocked, withdrawn = (facts.mentor(past.organisation) for _ in range(3))
    for visible in (True, False):
        for age in (6, 5):
            past.event(visible=visible, at=NOW - age * 365 * DAY)
        past.event(visible=visible, stays=True)
    past.event(mentor=past.another, visible=True)
    past.event(mentor=past.another, visible=True, at=NOW - 7 * DAY, stays=True)
    past.event(mentor=pending, status="pending", stays=True)
    past.event(mentor=blocked, status="blocked", stays=True)
    past.event(mentor=withdrawn, status="withdrawn")
    past.event(mentor=withdrawn, status="withdrawn", claim_token=uuid4(), next_attempt_at=NOW + DAY, stays=True)

    past.assert_goes()


def test_resolved_failures_go_and_unresolved_ones_stay_with_their_event(past: Past) -> None:
    """The age counts from the end of the failure."""
    first, second = past.event(), past.event(stays=True)
    past.event(stays=True)
    values = {"mentor_id": past.mentor, "visible": False, "kind": "transient", "error": "reset"}
    values |= {"created_at": LONG_AGO, "last_failed_at": LONG_AGO}
    for event, resolved_at in ((first, LONG_AGO), (second, None), (None, NOW - DAY)):
        stays = resolved_at != LONG_AGO
        past.add("dynamics_sync_failures", event_id=event, resolved_at=resolved_at, stays=stays, **values)

    past.assert_goes()


def test_reminders_about_old_dates_are_deleted(past: Past) -> None:
    """A reminder stays if its mail could be due again, also for dates of earlier cycles."""
    for status in ("sent", "cancelled", "superseded"):
        past.reminder(limit() - DAY, status=status, stays=False)
    past.reminder(limit() - 9 * DAY, history=limit() - 8 * DAY, stays=False)
    past.reminder(limit() - 400 * DAY, threshold_days=-1, stays=False)
    for status in ("pending", "failed"):
        past.reminder(limit() - 1000 * DAY, status=status, stays=True)
    past.reminder(limit(), threshold_days=3650, stays=True)
    # If the date is corrected back, the mail must not be sent twice.
    past.reminder(limit() - 9 * DAY, history=limit(), stays=True)
    past.reminder(limit() - 400 * DAY, threshold_days=-500, stays=True)  # still due long after the expiry
    past.reminder(limit() - 900 * DAY, sent_at=NOW - 7 * DAY, stays=True)

    past.assert_goes()


def test_last_transition_to_the_present_status_stays(past: Past) -> None:
    """`explain` shows its date. Transitions of deleted certificates are deleted, except those of later days."""
    certificate = past.rows("UPDATE certificates SET status = 'valid' WHERE mentor_id = %s RETURNING id", past.mentor)
    values = {"mentor_id": past.mentor, "from_status": "recorded", "as_of": LONG_AGO.date(), "at": LONG_AGO}
    for each, stays in ((certificate[0][0], True), (uuid4(), False)):
        for status, is_last in (("valid", False), ("expiring", False), ("valid", stays), ("expiring", False)):
            past.add("certificate_transitions", certificate_id=each, to_status=status, stays=is_last, **values)
    values |= {"certificate_id": uuid4(), "to_status": "valid", "as_of": today()}
    past.add("certificate_transitions", stays=True, **values)

    past.assert_goes()


Digests = list[tuple[int, str, int | None, bool, dict[str, object]]]
"""Day, status, number, whether it stays, and other columns."""


def test_last_sent_digest_and_open_digests_of_each_coordinator_stay(past: Past) -> None:
    """The next digest continues from it. The digest of the last day and the last sent one may differ."""
    old = dict.fromkeys(("queued_at", "sent_at", "next_attempt_at"), LONG_AGO)
    sent_by_number: Digests = [(1, "sent", 1, False, {}), (2, "sent", 3, True, {}), (3, "sent", 2, True, {})]
    table: dict[str, Digests] = {
        each: [*sent_by_number, (4, each, None, each in ("failed", "pending"), {})]
        for each in ("failed", "pending", "cancelled", "superseded")
    }
    table["without a number"] = [(1, "sent", None, True, {}), (2, "cancelled", None, False, {})]
    table["queued lately"] = [(1, "cancelled", None, True, {"queued_at": NOW})]
    table["of a late day"] = [(4 * 365, "cancelled", None, True, {})]
    for name, digests in table.items():
        coordinator = past.facts.insert("coordinators", organisation_id=past.organisation, email=f"{name}@hlf.example")
        for day, status, number, stays, more in digests:
            values = {"status": status, "sent_number": number, "coordinator_id": coordinator} | old | more
            past.add("coordinator_digests", stays=stays, digest_on=(LONG_AGO + day * DAY).date(), **values)

    past.assert_goes()


def test_last_run_of_each_command_and_outcome_stays(past: Past) -> None:
    """`status` and the guard against a wrong clock read them. A run with a future date stays."""
    past.run(1, command="load", outcome=None, stays=True)
    past.run(1700, outcome=None)
    past.run(1650, outcome=None, stays=True)
    past.run(1600, as_of=today() + DAY, stays=True)  # written with a wrong clock
    for command, organisation in (("run", None), ("run", "hlf"), ("deliver", None)):
        for outcome in ("ok", "failed"):
            past.run(1500, command=command, outcome=outcome, organisation=organisation)
            past.run(1400, command=command, outcome=outcome, organisation=organisation, stays=True)

    past.assert_goes()


@pytest.mark.parametrize("is_repaired", [False, True])
def test_records_of_a_wrong_clock_and_of_its_repair_stay(past: Past, is_repaired: bool) -> None:
    """Otherwise runs would review everyone again, or not at all."""
    for days_ago in (1600, 1550):
        past.run(days_ago)
    past.run(1500, as_of=today() + 3000 * DAY)
    if is_repaired:
        past.run(1450)
        past.run(1400, outcome="attention")
    before = looks_at_everybody(past.connection, today())

    assert pruned(past.connection) > 0
    assert looks_at_everybody(past.connection, today()) is before is not is_repaired


def test_prune_stops_between_batches_and_can_run_concurrently(past: Past, database_url: str) -> None:
    """Each batch is committed. Two concurrent prunes keep the last delivery."""
    events = [past.event(visible=True, at=LONG_AGO + n * DAY) for n in range(51)]
    stop = StopFlag()
    others: list[int] = []

    with pytest.raises(StoppedBySignalError):
        pruned(
            past.connection, stop=stop, row_limit=7, on_progress=lambda deleted: stop.set() if deleted >= 14 else None
        )
    assert past.rows("SELECT count(*) FROM portal_sync_events") == [(37,)]
    with database.connect(database_url) as other:
        first = pruned(
            past.connection, row_limit=7, on_progress=lambda _: others.append(pruned(other)) if not others else None
        )

    assert first + others[0] == 36
    assert past.rows("SELECT id::text FROM portal_sync_events") == [(events[-1],)]


def test_locked_row_stays_until_the_next_prune(past: Past, app: psycopg.Connection[Any]) -> None:
    """A concurrent deletion of mentors neither waits nor becomes the victim of a deadlock."""
    past.connection.execute("UPDATE mentors SET portal_visible = false")
    for mentor in (past.mentor, past.mentor, past.another, past.another):
        past.event(mentor=mentor)
    app.execute("DELETE FROM mentors WHERE id = %s", (past.another,))

    assert pruned(past.connection) == 1

    app.rollback()
    assert pruned(past.connection) == 1
    assert past.rows("SELECT count(*) FROM portal_sync_events") == [(2,)]


def test_db_prune_prints_nothing_on_success(here: Certjob, past: Past) -> None:
    """Errors name the option."""
    for _ in range(6):
        past.event()

    result = here("db", "prune", "--older-than", "3y")

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert past.rows("SELECT count(*) FROM portal_sync_events") == [(1,)]
    document = json.loads(here("db", "prune", "--older-than", "3y", "--json").stdout)
    assert document["deleted"] == 0
    assert_one_line(here("db", "prune"), "--older-than", code=2, command="certjob db prune")
    assert_one_line(here("db", "prune", "--older-than", "89d"), "90 days", code=2, command="certjob db prune")
