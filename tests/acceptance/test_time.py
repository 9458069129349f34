"""Which day it is: the calendar of CERTJOB_TIME_ZONE, read once at the command's edge, and from nowhere else.

The clock is frozen around the whole command; only ``today`` may come from it. Leases, retry times and the ledger are
the database's, which nobody freezes.
"""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from freezegun import freeze_time

import certjob.cli.commands.runs  # loaded before the clock is frozen, like all that it brings
import certjob.cli.terminal.output
import certjob.mail.channels.notify
import certjob.night.nightly
import certjob.night.resync  # noqa: F401
from tests.support.command_line import Finished, run_in_process
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url}


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer() as server:
        yield server


class Clock:
    """Runs a command at a moment given in UTC."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder

    def at(self, moment: str, *arguments: str, **settings: str) -> Finished:
        with freeze_time(moment):
            arguments = (*arguments, "--ignore-database-clock")
            return run_in_process(*arguments, environment=self._environment | settings, folder=self._folder)

    def night(self, moment: str, **settings: str) -> Any:
        """The document of a night that delivers nothing."""
        return json.loads(self.at(moment, "run", "--no-deliver", "--json", **settings).stdout)


@pytest.fixture
def clock(environment: dict[str, str], tmp_path: Path) -> Clock:
    return Clock(environment, tmp_path)


OSLO = [
    # winter: midnight is 23:00 UTC; summer: 22:00
    ("2026-01-15 22:59:59", date(2026, 1, 15)),
    ("2026-12-31 23:00", date(2027, 1, 1)),
    ("2026-07-15 21:59:59", date(2026, 7, 15)),
    ("2026-07-15 22:00", date(2026, 7, 16)),
    # 29 March has 23 hours: it begins by winter time and ends by summer time
    ("2026-03-28 22:59:59", date(2026, 3, 28)),
    ("2026-03-28 23:00", date(2026, 3, 29)),
    ("2026-03-29 21:59:59", date(2026, 3, 29)),
    ("2026-03-29 22:00", date(2026, 3, 30)),
    # 25 October has 25: the hour from 2 to 3 comes twice
    ("2026-10-24 22:00", date(2026, 10, 25)),
    ("2026-10-25 22:59:59", date(2026, 10, 25)),
    ("2026-10-25 23:00", date(2026, 10, 26)),
    ("2028-02-28 23:00", date(2028, 2, 29)),
]


@pytest.mark.parametrize(("moment", "today"), OSLO, ids=[moment for moment, _ in OSLO])
def test_a_certificate_is_in_force_to_the_end_of_its_day_in_oslo(
    clock: Clock, facts: Facts, moment: str, today: date
) -> None:
    """Yesterday's is expired, today's is not, whatever the day is in UTC."""
    organisation_id = facts.organisation(portal=None)
    for days, member_no in ((-1, "yesterday"), (0, "today"), (1, "tomorrow")):
        facts.certified_mentor(organisation_id, today + timedelta(days=days), member_no=member_no)

    document = clock.night(moment)

    assert document["today"] == today.isoformat()
    assert (document["certificates"]["expired"], document["certificates"]["expiring"]) == (1, 2)
    assert document["mentors"]["paused"] == 1
    assert statuses(facts) == {"yesterday": "expired", "today": "expiring", "tomorrow": "expiring"}
    assert facts.rows("SELECT DISTINCT as_of FROM certificate_transitions") == [(today,)]
    assert facts.rows("SELECT as_of FROM job_runs") == [(today,)]


def statuses(facts: Facts) -> dict[object, object]:
    return dict(facts.rows("SELECT member_no, status FROM mentors JOIN certificates ON mentor_id = mentors.id"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("zone", "moment", "today"),
    [("UTC", "2026-01-15 23:30", "2026-01-15"), ("Pacific/Kiritimati", "2026-01-15 12:00", "2026-01-16")],
)
def test_the_day_is_that_of_the_zone_that_is_set(clock: Clock, zone: str, moment: str, today: str) -> None:
    """Not of Oslo, where it is another one."""
    assert clock.night(moment, CERTJOB_TIME_ZONE=zone)["today"] == today


def test_the_hour_that_comes_twice_is_the_same_night(clock: Clock, facts: Facts) -> None:
    """Two runs at 02:30 of 25 October, an hour apart: the second finds nothing to do, and nobody is reminded twice."""
    facts.certified_mentor(facts.organisation(portal=None), date(2026, 10, 26))

    first, second = clock.night("2026-10-25 00:30"), clock.night("2026-10-25 01:30")

    assert (first["reminders"]["queued"], second["reminders"]["queued"]) == (1, 0)
    assert (first["mentors"]["reviewed"], second["mentors"]["reviewed"]) == (1, 0)


def test_days_to_the_expiry_are_calendar_days_across_the_change(clock: Clock, facts: Facts) -> None:
    """Seven days to 4 April, counted on 28 March: 167 hours are a week, too."""
    facts.certified_mentor(facts.organisation(portal=None, thresholds=(7,)), date(2026, 4, 4))

    before, on_the_day = clock.night("2026-03-27 22:59"), clock.night("2026-03-27 23:00")

    assert (before["today"], before["reminders"]["queued"]) == ("2026-03-27", 0)
    assert (on_the_day["today"], on_the_day["reminders"]["queued"]) == ("2026-03-28", 1)


def test_a_clock_that_went_back_over_midnight_is_refused(clock: Clock) -> None:
    """An hour earlier may be a day earlier."""
    assert clock.at("2026-01-15 23:00", "run", "--no-deliver").returncode == 0

    refused = clock.at("2026-01-15 22:00", "run", "--no-deliver")

    assert refused.returncode == 2
    assert "today would be 2026-01-15, but the last night was run for 2026-01-16" in refused.stderr


def test_only_today_comes_from_the_machines_clock(
    clock: Clock, facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """A night with a push that fails and a mail that goes out, thirty years ahead: every time is the database's."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, date(2055, 1, 1), member_no="hidden")
    facts.certified_mentor(organisation_id, date(2056, 3, 1), member_no="reminded")
    portal.default = error(404, "contact_not_found")
    settings = {
        "CERTJOB_PORTAL_URL": portal.url,
        "CERTJOB_PORTAL_KEY": portal.key,
        "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}",
    }

    result = clock.at("2056-02-24 12:00", "run", "--json", **settings)

    document = json.loads(result.stdout)
    assert document["today"] == "2056-02-24"
    assert (document["portal"]["blocked"], document["reminders"]["sent"]) == (1, 1)
    times = [
        ("job_runs", "started_at"),
        ("job_runs", "last_seen_at"),
        ("job_runs", "finished_at"),
        ("mentor_pauses", "paused_at"),
        ("certificate_transitions", "at"),
        ("portal_sync_events", "wanted_at"),
        ("dynamics_sync_failures", "created_at"),
        ("dynamics_sync_failures", "last_failed_at"),
        ("cert_notification_log", "queued_at"),
        ("cert_notification_log", "sent_at"),
    ]
    for table, column in times:
        rows = facts.rows(f"SELECT DISTINCT {column} BETWEEN now() - interval '1 hour' AND now() FROM {table}")
        assert rows == [(True,)], (table, column)
    later = facts.rows("SELECT max(next_attempt_at) < now() + interval '1 day' FROM portal_sync_events")
    assert later == [(True,)]


@pytest.mark.parametrize("day", ["0001-01-01", "1999-12-31", "9999-12-31"])
def test_a_plan_for_any_day_of_the_calendar_can_be_made(clock: Clock, facts: Facts, day: str) -> None:
    """The first and the last day that a date can be, too."""
    facts.certified_mentor(facts.organisation(portal=None), date(2026, 3, 11))

    result = clock.at("2026-03-10 12:00", "run", "--dry-run", "--as-of", day, "--json", "--allow-earlier-date")

    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["today"] == day
