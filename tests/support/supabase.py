"""A stand-in for Supabase's database: its roles, auth.uid(), its default privileges, its publication.

What PostgREST does for each request, ``acting`` does: a role for the transaction, and the claims of a checked token.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import psycopg
from psycopg import sql

from certjob.database import Connection

ROLES = {"anon": "NOLOGIN", "authenticated": "NOLOGIN", "service_role": "NOLOGIN BYPASSRLS"}

_SET_UP = """
CREATE SCHEMA auth;
GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
-- As in supabase/auth.
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        nullif(current_setting('request.jwt.claim.sub', true), ''),
        (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
    )::uuid
$$;
CREATE PUBLICATION supabase_realtime;
"""

_DEFAULT_PRIVILEGES = """
-- Until 30 October 2026 Supabase granted everything on new objects in public to the app's roles.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON FUNCTIONS TO anon, authenticated, service_role;
"""


CUSTOM_SCHEMA_GUIDE = """
GRANT USAGE ON SCHEMA certjob TO anon, authenticated, service_role;
GRANT ALL ON ALL TABLES IN SCHEMA certjob TO anon, authenticated, service_role;
GRANT ALL ON ALL ROUTINES IN SCHEMA certjob TO anon, authenticated, service_role;
GRANT ALL ON ALL SEQUENCES IN SCHEMA certjob TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA certjob GRANT ALL ON TABLES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA certjob GRANT ALL ON ROUTINES TO anon, authenticated, service_role;
ALTER DEFAULT PRIVILEGES IN SCHEMA certjob GRANT ALL ON SEQUENCES TO anon, authenticated, service_role;
"""
"""What Supabase's guide "Using Custom Schemas" tells a team to run for a schema that the API serves."""


def create_roles(connection: Connection) -> None:
    """Make Supabase's roles, which belong to the whole server: another test may be faster."""
    for name, options in ROLES.items():
        with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            connection.execute(sql.SQL("CREATE ROLE {} " + options).format(sql.Identifier(name)))


def set_up(connection: Connection, *, default_privileges: bool = True) -> None:
    """Give a database Supabase's shape; ``default_privileges`` are those of projects before 30 October 2026."""
    create_roles(connection)
    connection.execute(_SET_UP)
    if default_privileges:
        connection.execute(_DEFAULT_PRIVILEGES)


@contextmanager
def acting(connection: Connection, role: str, /, **claims: Any) -> Iterator[Connection]:
    """Open a transaction as that role with these claims."""
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
        text = json.dumps({"role": role} | claims, default=str)
        connection.execute("SELECT set_config('request.jwt.claims', %s, true)", (text,))
        yield connection


def logged_in(connection: Connection, user_id: object) -> AbstractContextManager[Connection]:
    """Open a transaction as the app's user with this id."""
    return acting(connection, "authenticated", sub=user_id, aud="authenticated")
