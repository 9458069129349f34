"""Fixtures of the commands that only read."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from certjob import database
from tests.support import command_line


@pytest.fixture
def read_only(database_url: str) -> Iterator[database.Connection]:
    """A read-only connection."""
    options = "-c default_transaction_read_only=on"
    with database.connect(psycopg.conninfo.make_conninfo(database_url, options=options)) as connection:
        yield connection


@pytest.fixture
def on_terminal(environment: dict[str, str], tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run the command on a pseudo-terminal; keyword arguments are settings."""

    def run(*arguments: str, columns: int = 100, **settings: str) -> tuple[int, str]:
        return command_line.on_terminal(arguments, environment=environment | settings, folder=tmp_path, columns=columns)

    return run
