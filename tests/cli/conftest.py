"""A cron line on the test's database, in this process; a portal for those who name it."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest

from tests.conftest import Certjob
from tests.support.command_line import SECRET, Finished, run_in_process
from tests.support.portal_server import PortalServer

LONG_AGO = date(2025, 1, 1)
SOON = date.today() + timedelta(days=5)  # noqa: DTZ011 - due for the reminder of 7 days, around midnight too


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer(key=SECRET) as server:
        yield server


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url}


@pytest.fixture
def ways_out(portal: PortalServer, tmp_path: Path) -> dict[str, str]:
    """The settings of a portal over real HTTP and of a Maildir."""
    mail = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}"}
    return {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": SECRET} | mail


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Like ``certjob``, but in this process; keyword arguments are settings."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=environment | settings, folder=tmp_path)

    return run


@pytest.fixture
def anywhere(bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """The same without a database, unless one is named."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=bare_environment | settings, folder=tmp_path)

    return run
