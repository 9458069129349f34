"""A database like Supabase's with two organisations, and sessions of the owner and the app."""

from collections.abc import Iterator

import pytest

from certjob import database
from tests.conftest import fresh_database
from tests.database.supabase import Organisation, furnish


@pytest.fixture
def supabase_url(server_url: str, supabase_template: str) -> Iterator[str]:
    """The URL of a fresh, migrated database like Supabase's, as the tables' owner."""
    yield from fresh_database(server_url, supabase_template)


@pytest.fixture
def owner(supabase_url: str) -> Iterator[database.Connection]:
    """The owner of certjob's tables on Supabase, who sees every row."""
    with database.connect(supabase_url) as connection:
        yield connection


@pytest.fixture
def api(supabase_url: str) -> Iterator[database.Connection]:
    """The connection of the app's requests, each with its role and claims, and without certjob's settings."""
    with database.Connection.connect(supabase_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def ours(owner: database.Connection, api: database.Connection) -> Organisation:
    """The coordinator's organisation."""
    return furnish(owner, "hlf", api=api)


@pytest.fixture
def theirs(owner: database.Connection, api: database.Connection) -> Organisation:
    """Another organisation."""
    return furnish(owner, "nhf", api=api)
