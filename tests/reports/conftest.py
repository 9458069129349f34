"""Fixtures of the commands that only read."""

from collections.abc import Iterator

import psycopg
import pytest

from certjob import database


@pytest.fixture
def read_only(database_url: str) -> Iterator[database.Connection]:
    """A read-only connection."""
    options = "-c default_transaction_read_only=on"
    with database.connect(psycopg.conninfo.make_conninfo(database_url, options=options)) as connection:
        yield connection
