"""A database of Supabase's shape, two organisations in it, and the sessions that ask."""

from collections.abc import Iterator

import pytest

from certjob import database
from tests.conftest import fresh_database, make_template
from tests.database import supabase
from tests.database.supabase import Organisation, furnish


@pytest.fixture(scope="session")
def supabase_template(server_url: str, worker_id: str) -> Iterator[str]:
    """The name of a migrated database with Supabase's roles, auth.uid() and publication."""
    yield from make_template(server_url, f"certjob_supabase_{worker_id}", before=supabase.set_up)


@pytest.fixture
def supabase_url(server_url: str, supabase_template: str) -> Iterator[str]:
    """The URL of a fresh, migrated database of Supabase's shape, as the tables' owner."""
    yield from fresh_database(server_url, supabase_template)


@pytest.fixture
def owner(supabase_url: str) -> Iterator[database.Connection]:
    """The owner of certjob's tables on Supabase, from whom nothing is hidden."""
    with database.connect(supabase_url) as connection:
        yield connection


@pytest.fixture
def api(supabase_url: str) -> Iterator[database.Connection]:
    """The connection on which the app's requests are served, each in a role and with claims of its own.

    Without certjob's own settings: a coordinator's session has what the coordinator sets.
    """
    with database.Connection.connect(supabase_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def ours(owner: database.Connection, api: database.Connection) -> Organisation:
    """The organisation whose coordinator asks."""
    return furnish(owner, "hlf", api=api)


@pytest.fixture
def theirs(owner: database.Connection, api: database.Connection) -> Organisation:
    """The organisation that is none of their business."""
    return furnish(owner, "nhf", api=api)
