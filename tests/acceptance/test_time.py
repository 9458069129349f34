"""CERTJOB_TIME_ZONE decides which day it is, and the database decides all other times.

freezegun freezes the clock of the whole command, but not the clock of the database.
"""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time

from tests.support.command_line import run_in_process
from tests.support.facts import Facts
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer

Night = Callable[..., Any]


@pytest.fixture
def night(environment: dict[str, str], tmp_path: Path) -> Night:
    """Run a night at a moment in UTC; return its document."""

    def night(moment: str, *arguments: str, **settings: str) -> Any:
        zone = ZoneInfo(settings.get("CERTJOB_TIME_ZONE", "Europe/Oslo"))
        today = datetime.fromisoformat(moment).replace(tzinfo=UTC).astimezone(zone).date()
        words = ("run", "--json", "--accept-date", str(today), *arguments)
        with freeze_time(moment):
            return json.loads(run_in_process(*words, environment=environment | settings, folder=tmp_path).stdout)

    return night


@pytest.mark.parametrize(
    ("moment", "today"),
    [  # midnight in Oslo is 23:00 UTC in winter and 22:00 UTC in summer; summer time begins on 29 March
        ("2026-01-15 22:59:59", date(2026, 1, 15)),
        ("2026-03-28 23:00", date(2026, 3, 29)),
        ("2026-03-29 21:59:59", date(2026, 3, 29)),
    ],
)
def test_certificate_is_in_force_to_the_end_of_its_last_day_in_oslo(
    night: Night, facts: Facts, moment: str, today: date
) -> None:
    organisation_id = facts.organisation(portal=None)
    for days in (-1, 0, 1):
        facts.certified_mentor(organisation_id, today + timedelta(days=days))

    document = night(moment)

    assert (document["today"], document["mentors"]["paused"]) == (today.isoformat(), 1)
    statuses = facts.rows("SELECT status FROM certificates ORDER BY expires_on")
    assert statuses == [("expired",), ("expiring",), ("expiring",)]
    assert facts.rows("SELECT as_of FROM certificate_transitions UNION SELECT as_of FROM job_runs") == [(today,)]


def test_day_is_that_of_the_configured_time_zone(night: Night) -> None:
    assert night("2026-01-15 23:30", CERTJOB_TIME_ZONE="UTC")["today"] == "2026-01-15"
    assert night("2026-01-15 12:00", CERTJOB_TIME_ZONE="Pacific/Kiritimati")["today"] == "2026-01-16"


TIMES = (
    *("job_runs.started_at", "job_runs.last_seen_at", "job_runs.finished_at", "mentor_pauses.paused_at"),
    *("certificate_transitions.at", "portal_sync_events.wanted_at", "dynamics_sync_failures.created_at"),
    *("dynamics_sync_failures.last_failed_at", "cert_notification_log.queued_at", "cert_notification_log.sent_at"),
)


def test_only_the_date_comes_from_the_clock_of_the_machine(night: Night, facts: Facts, portal: PortalServer) -> None:
    """A night thirty years ahead, with a push that fails and a reminder that is sent."""
    organisation_id = facts.organisation()
    facts.certified_mentor(organisation_id, date(2055, 1, 1), member_no="hidden")
    facts.certified_mentor(organisation_id, date(2056, 3, 1), member_no="reminded")
    portal.default = error(404, "contact_not_found")

    document = night("2056-02-24 12:00")

    assert document["today"] == "2056-02-24"
    assert (document["portal"]["blocked"], document["reminders"]["sent"]) == (1, 1)
    for table, column in (name.split(".") for name in TIMES):
        rows = facts.rows(f"SELECT DISTINCT {column} BETWEEN now() - interval '1 hour' AND now() FROM {table}")
        assert rows == [(True,)], (table, column)
    later = facts.rows("SELECT max(next_attempt_at) < now() + interval '1 day' FROM portal_sync_events")
    assert later == [(True,)]
