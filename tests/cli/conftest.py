"""Days, a command without a database, and alerts."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.reports.alerts import Alert
from certjob.review.attention import Kind
from tests.conftest import Certjob
from tests.support.command_line import Finished, run_in_process

LONG_AGO = date(2025, 1, 1)
SOON = date.today() + timedelta(days=5)  # noqa: DTZ011 - due for the reminder of 7 days, around midnight too
MORNING = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
"""Eight in Oslo."""
VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"


@pytest.fixture
def environment(environment: dict[str, str], ways_out: dict[str, str]) -> dict[str, str]:
    """Return the settings of a database, a portal over real HTTP, and a Maildir."""
    return environment | ways_out


@pytest.fixture
def anywhere(bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Return ``here`` without a database."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=bare_environment | settings, folder=tmp_path)

    return run


def alert(full_name: str = "Kari Nordmann", *, days: float = 2, **changes: Any) -> Alert:
    """Return an alert that is so many days old: a mentor may still be visible, because Dynamics has no contact."""
    member_no, kind = changes.get("member_no", "M1001"), Kind(changes.get("kind", Kind.MAY_BE_VISIBLE))
    values: dict[str, Any] = dict.fromkeys(("number", "day", "acknowledged_until", "acknowledged_because"))
    values |= {"alert_id": f"hlf:{kind}:{member_no}", "member_no": member_no, "full_name": full_name, "kind": kind}
    values |= {"organisation": "hlf", "mentor_id": UUID(int=7), "organisation_id": UUID(int=1), "row_id": 1}
    values |= {"since": MORNING - timedelta(days=days), "last_failed_at": MORNING, "next_attempt_at": MORNING}
    values |= {"sentence": VISIBLE, "cause": "contact_not_found", "error": "404", "state": "stopped", "calls": 1}
    return Alert(**values | changes)
