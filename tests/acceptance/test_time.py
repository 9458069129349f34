"""CERTJOB_TIME_ZONE decides which day it is. freezegun freezes the clock of the whole command."""

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

RunAt = Callable[..., Any]


@pytest.fixture
def run_at(environment: dict[str, str], tmp_path: Path) -> RunAt:
    """Run certjob at a moment in UTC; return its document."""

    def run(moment: str, *arguments: str, **settings: str) -> Any:
        zone = ZoneInfo(settings.get("CERTJOB_TIME_ZONE", "Europe/Oslo"))
        today = datetime.fromisoformat(moment).replace(tzinfo=UTC).astimezone(zone).date()
        words = ("run", "--json", "--accept-date", str(today), *arguments)
        with freeze_time(moment):
            return json.loads(run_in_process(*words, environment=environment | settings, folder=tmp_path).stdout)

    return run


@pytest.mark.parametrize(
    ("moment", "today"),
    [  # midnight in Oslo is 23:00 UTC in winter and 22:00 UTC in summer; summer time begins on 29 March
        ("2026-01-15 22:59:59", date(2026, 1, 15)),
        ("2026-03-28 23:00", date(2026, 3, 29)),
        ("2026-03-29 21:59:59", date(2026, 3, 29)),
    ],
)
def test_certificate_is_in_force_to_the_end_of_its_last_day_in_oslo(
    run_at: RunAt, facts: Facts, moment: str, today: date
) -> None:
    organisation_id = facts.organisation(portal=None)
    for days in (-1, 0, 1):
        facts.certified_mentor(organisation_id, today + timedelta(days=days))

    document = run_at(moment)

    assert (document["today"], document["mentors"]["paused"]) == (today.isoformat(), 1)
    statuses = facts.rows("SELECT status FROM certificates ORDER BY expires_on")
    assert statuses == [("expired",), ("expiring",), ("expiring",)]
    assert facts.rows("SELECT as_of FROM certificate_transitions UNION SELECT as_of FROM job_runs") == [(today,)]


def test_day_is_that_of_the_configured_time_zone(run_at: RunAt) -> None:
    assert run_at("2026-01-15 23:30", CERTJOB_TIME_ZONE="UTC")["today"] == "2026-01-15"
    assert run_at("2026-01-15 12:00", CERTJOB_TIME_ZONE="Pacific/Kiritimati")["today"] == "2026-01-16"
