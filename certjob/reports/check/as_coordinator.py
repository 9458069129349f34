"""What one coordinator sees and may do in the app, tried on the real database as PostgREST would; nothing stays."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import Connection
from certjob.domain.explanations import number
from certjob.domain.models import Organisation
from certjob.facts import reading
from certjob.reports.check.findings import Finding, fail, ok, skip, warn

LOCK_TIMEOUT_MS = 500
STATEMENT_TIMEOUT_MS = 20_000
"""Enough to count the mentors of a large organisation."""

NAME, STRANGERS, DERIVED, RESYNC = "coordinator", "other organisations", "certjob's columns", "coordinator's resync"

_SET_UP_ANEW = "as the owner, run `SELECT certjob_private.set_up_roles()` and drop grants and policies that others made"


def check_as(connection: Connection, user_id: UUID) -> Iterator[Finding]:
    """Yield what the app's user with this id sees and may do. All of it is rolled back."""
    with database.transaction(connection, force_rollback=True):
        connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(LOCK_TIMEOUT_MS),))
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(STATEMENT_TIMEOUT_MS),))
        because = _why_not(connection, user_id)
        if because is not None:
            yield skip(NAME, because)
            return
        organisation_id = database.fetch_value(connection, "find_coordinator", {"user_id": user_id})
        organisation = reading.organisations(connection, [organisation_id]).get(organisation_id)
        asked = _Asked(connection, user_id=user_id, organisation=organisation)
        for name, question in (
            (NAME, asked.what_is_seen),
            (STRANGERS, asked.strangers),
            (DERIVED, asked.derived_columns),
            (RESYNC, asked.resync),
        ):
            yield _answer(connection, name, question)


def _why_not(connection: Connection, user_id: UUID) -> str | None:
    """Return why this database or this login cannot tell; None: it can."""
    is_supabase, is_read_only = database.fetch(connection, "describe_app_roles")[0]
    if not is_supabase:
        return "this database is not Supabase's: it has no role authenticated, or no function auth.uid()"
    if is_read_only:
        return "the server is read-only"
    try:
        with _acting(connection, user_id):
            return None
    except psycopg.errors.InsufficientPrivilege:
        return "this login may not take the role authenticated; use the owner's, on Supabase postgres"


@contextmanager
def _acting(connection: Connection, user_id: UUID) -> Iterator[None]:
    """Be the app's user, as PostgREST is for one request, and then no longer."""
    with database.transaction(connection, force_rollback=True):
        connection.execute("SET LOCAL ROLE authenticated")
        claims = json.dumps({"sub": str(user_id), "role": "authenticated", "aud": "authenticated"})
        connection.execute("SELECT set_config('request.jwt.claims', %s, true)", (claims,))
        yield


def _answer(connection: Connection, name: str, question: Callable[[], Finding]) -> Finding:
    """Ask in a savepoint, which is rolled back; what takes too long is not waited for."""
    try:
        with database.transaction(connection, force_rollback=True):
            return question()
    except psycopg.errors.LockNotAvailable:
        return skip(name, "another session holds what it needs")
    except psycopg.errors.InsufficientPrivilege as error:
        return fail(name, f"is refused what the app reads: {error.diag.message_primary}", next_step=_SET_UP_ANEW)
    except psycopg.errors.QueryCanceled:
        return skip(name, f"it took more than {STATEMENT_TIMEOUT_MS // 1000} s")


class _Asked:
    """The questions, each with its finding."""

    def __init__(self, connection: Connection, *, user_id: UUID, organisation: Organisation | None) -> None:
        self._connection = connection
        self._user_id = user_id
        self._organisation = organisation

    def what_is_seen(self) -> Finding:
        with _acting(self._connection, self._user_id):
            organisations, mentors, alerts = database.fetch(self._connection, "count_what_is_seen")[0]
        own = [self._organisation.slug] if self._organisation else []
        if organisations != own:
            message = f"sees the organisations [{', '.join(organisations)}] in place of [{', '.join(own)}]"
            return fail(NAME, message, next_step=_SET_UP_ANEW)
        if not own:
            step = f"if they are one: `certjob organisation set SLUG --coordinator '{self._user_id} Name <mail>'`"
            return warn(NAME, "no coordinator has this id, so the app shows nothing", next_step=step)
        seen = f"{number(mentors, 'mentor')} and {number(alerts, 'alert')} of the portal"
        return ok(NAME, f"sees {own[0]} with {seen}")

    def strangers(self) -> Finding:
        own_id = self._organisation.id if self._organisation else None
        ids = [row[0] for row in database.fetch(self._connection, "list_strangers", {"organisation_id": own_id})]
        if not ids:
            return ok(STRANGERS, "there are no mentors of another organisation")
        with _acting(self._connection, self._user_id):
            theirs = {"ids": ids, "organisation_id": own_id}
            tables = [row[0] for row in database.fetch(self._connection, "list_tables_with_strangers", theirs)]
        if tables:
            return fail(STRANGERS, f"sees rows of theirs in {', '.join(tables)}", next_step=_SET_UP_ANEW)
        return ok(STRANGERS, f"sees no row of theirs (asked for {number(len(ids), 'mentor')})")

    def derived_columns(self) -> Finding:
        with _acting(self._connection, self._user_id):
            allowed = [row[0] for row in database.fetch(self._connection, "list_rights_of_certjob")]
        if allowed:
            return fail(DERIVED, f"may {', '.join(allowed)}", next_step=_SET_UP_ANEW)
        return ok(DERIVED, "may not be written")

    def resync(self) -> Finding:
        organisation = self._organisation
        if organisation is None:
            return ok(RESYNC, "is not theirs to ask for")
        if not organisation.has_portal:
            return ok(RESYNC, f"{organisation.slug} has no portal, so there is nothing to ask for")
        mentor_id = database.fetch_value(self._connection, "take_portal_mentor", {"organisation_id": organisation.id})
        if mentor_id is None:
            return skip(RESYNC, f"no mentor of {organisation.slug} with a contact ID is free right now")
        try:
            with _acting(self._connection, self._user_id):
                database.fetch(self._connection, "try_portal_resync", {"mentor_id": mentor_id})
        except psycopg.errors.InsufficientPrivilege:
            return fail(RESYNC, "request_portal_resync is refused", next_step=_SET_UP_ANEW)
        except psycopg.errors.RaiseException:  # rightly: nobody knows yet what to push
            return skip(RESYNC, f"all mentors of {organisation.slug} wait for a review; run `certjob run` first")
        return ok(RESYNC, f"request_portal_resync works (tried for {mentor_id}, and taken back)")
