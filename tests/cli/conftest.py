"""Days, a command without a database, and alerts."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.reports.open_pushes import OpenPush
from tests.conftest import Certjob
from tests.support.command_line import Finished, run_in_process

LONG_AGO = date(2025, 1, 1)
SOON = date.today() + timedelta(days=5)  # noqa: DTZ011 - due for the reminder of 7 days, around midnight too
MORNING = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
"""Eight in Oslo."""
VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"


@pytest.fixture
def environment(environment: dict[str, str], ways_out: dict[str, str]) -> dict[str, str]:
    """A cron line with everything set: the database, a portal over real HTTP, a Maildir."""
    return environment | ways_out


@pytest.fixture
def anywhere(bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Like ``here``, without a database, unless one is named."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=bare_environment | settings, folder=tmp_path)

    return run


def push(full_name: str = "Kari Nordmann", *, days: float = 2, **changes: Any) -> OpenPush:
    """A mentor who may still be visible, since so long before that morning: the portal does not know the contact."""
    times = dict.fromkeys(("failing_since", "last_failed_at", "next_attempt_at"), MORNING)
    who = {"event_id": 1, "mentor_id": UUID(int=7), "organisation_id": UUID(int=1), "organisation": "hlf"}
    what = {"visible": False, "sentence": VISIBLE, "wanted_at": MORNING - timedelta(days=days), "calls": 1, "rounds": 1}
    why = {"error": "404", "code": "contact_not_found", "failure_kind": "permanent", "status": "blocked"}
    flags = {"is_claimed": False, "has_contact_id": True, "has_new_contact_id": False}
    values: dict[str, Any] = {"member_no": "M1001", "full_name": full_name, **times, **who, **what, **why, **flags}
    return OpenPush(**values | changes)
