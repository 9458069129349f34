"""A stand-in for Supabase's database, and organisations in it with one row in every table.

``acting`` does what PostgREST does for each request: it sets the role and the claims of a checked token.
"""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from certjob.database import Connection
from tests.support.facts import TODAY, Facts

_ROLES = {"anon": "NOLOGIN", "authenticated": "NOLOGIN", "service_role": "NOLOGIN BYPASSRLS"}

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


def set_up(connection: Connection) -> None:
    """Give a database Supabase's shape. The roles belong to the whole server: another test may be faster."""
    for name, options in _ROLES.items():
        with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
            connection.execute(sql.SQL("CREATE ROLE {} " + options).format(sql.Identifier(name)))
    connection.execute(_SET_UP)


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


DENIED = psycopg.errors.InsufficientPrivilege
"""SQLSTATE 42501: PostgREST answers 403 to it."""


@dataclass(frozen=True)
class Organisation:
    """An organisation with one row of every kind."""

    facts: Facts
    """Facts by the owner of the tables, who sees every row."""
    api: Connection
    """The connection of the app's requests."""
    id: UUID
    coordinator: UUID
    mentor: UUID

    def asks(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        """Ask as the coordinator; ``%(mentor)s`` is the mentor unless another is given, ``%(me)s`` the coordinator."""
        values = {"me": str(self.coordinator), "mentor": self.mentor} | values
        with logged_in(self.api, self.coordinator):
            cursor = self.api.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []


def furnish(owner: Connection, slug: str, *, api: Connection) -> Organisation:
    """Write one row into every table, for one organisation."""
    facts, coordinator = Facts(owner), uuid4()
    organisation = facts.organisation(slug)
    mentor = facts.mentor(organisation, member_no=f"{slug}-1")
    facts.certificate(mentor, TODAY)
    facts.pause(mentor, reason="illness", actor="somebody")
    failed = {"visible": False, "kind": "transient", "error": "down"}
    about = {"threshold_days": 7, "cert_id": uuid4(), "expires_on": TODAY}
    became = {"certificate_id": uuid4(), "from_status": "valid", "to_status": "expired", "as_of": TODAY}
    facts.insert("coordinators", id=coordinator, organisation_id=organisation, email="eva@example.org")
    facts.insert("certificate_transitions", mentor_id=mentor, **became)
    facts.insert("cert_notification_log", mentor_id=mentor, **about)
    facts.insert("portal_sync_events", mentor_id=mentor, visible=False)
    facts.insert("dynamics_sync_failures", mentor_id=mentor, **failed)
    facts.insert("coordinator_digests", coordinator_id=coordinator, digest_on=TODAY)
    return Organisation(facts=facts, api=api, id=organisation, coordinator=coordinator, mentor=mentor)
