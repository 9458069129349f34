"""Days, and a command without a database."""

from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.conftest import Certjob
from tests.support.command_line import Finished, run_in_process

LONG_AGO = date(2025, 1, 1)
SOON = date.today() + timedelta(days=5)  # noqa: DTZ011 - due for the reminder of 7 days, around midnight too
VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"


@pytest.fixture
def environment(environment: dict[str, str], delivery_settings: dict[str, str]) -> dict[str, str]:
    """The settings of a database, a portal over real HTTP, and a Maildir."""
    return environment | delivery_settings


@pytest.fixture
def anywhere(bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Run the command in this process, without a database."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=bare_environment | settings, folder=tmp_path)

    return run
