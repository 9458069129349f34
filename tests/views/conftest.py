"""The commands that only look, on the test's database and in this process."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob import database
from tests.conftest import Certjob
from tests.support.command_line import Finished, run_in_process


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url}


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Run a command; keyword arguments are settings."""

    def run(*arguments: str, **settings: str) -> Finished:
        return run_in_process(*arguments, environment=environment | settings, folder=tmp_path)

    return run


@pytest.fixture
def read_only(database_url: str) -> Iterator[database.Connection]:
    """A connection that can write nothing."""
    options = "-c default_transaction_read_only=on"
    with database.connect(psycopg.conninfo.make_conninfo(database_url, options=options)) as connection:
        yield connection
