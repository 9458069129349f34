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
    """A cron line with everything set: the database, a portal over real HTTP, a Maildir."""
    return environment | ways_out


@pytest.fixture
def anywhere(bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Like ``here``, without a database, unless one is named."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=bare_environment | settings, folder=tmp_path)

    return run


def alert(full_name: str = "Kari Nordmann", *, days: float = 2, **changes: Any) -> Alert:
    """A mentor who may still be visible, since so long before that morning: Dynamics does not know the contact."""
    member_no = changes.get("member_no", "M1001")
    kind = Kind(changes.get("kind", Kind.MAY_BE_VISIBLE))
    who = {"alert_id": f"hlf:{kind}:{member_no}", "member_no": member_no, "full_name": full_name, "organisation": "hlf"}
    ids = {"mentor_id": UUID(int=7), "organisation_id": UUID(int=1), "row_id": 1}
    times = {"since": MORNING - timedelta(days=days), "last_failed_at": MORNING, "next_attempt_at": MORNING}
    why = {
        "sentence": VISIBLE,
        "cause": "contact_not_found",
        "error": "404",
        "state": "stopped",
        "calls": 1,
    }
    unused = dict.fromkeys(("number", "day", "acknowledged_until", "acknowledged_because"))
    values: dict[str, Any] = {"kind": kind, **who, **ids, **times, **why, **unused}
    return Alert(**values | changes)
