"""The rights of each role on every table, view, sequence and function. A new object needs an entry here."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, migrations
from tests.database import supabase
from tests.database.everything import assert_every_command_works
from tests.database.supabase import DENIED, furnish
from tests.support.facts import Facts

WORKER, COORDINATOR, SERVER = "certjob_worker", "authenticated", "service_role"

READ_BY_COORDINATORS = (
    "acknowledgements alerts all_alerts cert_notification_log certificate_transitions certificates coordinators"
    " dynamics_sync_failures mentor_pauses mentors open_pushes organisations portal_holds still_due"
    " portal_sync_events held_names held_alerts never_reviewed_alerts push_alerts reminder_alerts"
)
"""Relations that coordinators may read. The worker may read all."""

WRITTEN_BY_COORDINATORS = {
    ("mentors", "UPDATE"): "dynamics_contact_id email full_name left_at locale",
    ("certificates", "INSERT"): "expires_on id issued_on kind mentor_id revoked_at",
    ("certificates", "UPDATE"): "expires_on issued_on kind mentor_id revoked_at",
    ("mentor_pauses", "INSERT"): "actor id mentor_id paused_at reason",
    ("mentor_pauses", "UPDATE"): "lifted_at lifted_by",
}
"""Columns that coordinators may write."""

FACTS = {"organisations", "coordinators", "mentors", "certificates", "mentor_pauses"}
DELETED_BY_WORKER = (
    "acknowledgements coordinators cert_notification_log certificate_transitions coordinator_digests guard_counts"
    " dynamics_sync_failures job_runs portal_holds portal_sync_events still_due"
    " portal_unknown_contacts loaded_rows mentors certificates"
)

CALLABLE = {
    "confirm_hidden": [COORDINATOR],
    "contact_is_taken": [WORKER, SERVER, COORDINATOR],
    "current_alerts": [WORKER, SERVER],
    "days_on_portal": [WORKER],
    "exposures": [WORKER],
    "facts": [WORKER],
    "is_listed": [WORKER, SERVER, COORDINATOR],
    "no_full_run_alert": [WORKER, SERVER],
    "settle_by_hand": [WORKER],
    "unhidden_mentors": [WORKER, SERVER],
    "must_be_hidden": [WORKER, SERVER, COORDINATOR],
    "coordinator_organisation_id": [COORDINATOR],
    "has_mailed": [WORKER],
    "same_mails": [WORKER],
    "prune": [WORKER],
    "request_portal_resync": [COORDINATOR],
    "user_id": [COORDINATOR],
    "waits_for_a_person": [WORKER],
}
"""Functions that someone other than their owner may call."""

INLINED = {
    "current_alerts",
    "days_on_portal",
    "exposures",
    "must_be_hidden",
    "no_full_run_alert",
    "same_mails",
    "unhidden_mentors",
}
"""Functions without a search_path, because it would prevent that the planner inlines them. They name each schema."""

NEEDED_BY_COORDINATORS = {
    "confirm_hidden",
    "contact_is_taken",
    "coordinator_organisation_id",
    "is_listed",
    "request_portal_resync",
}
"""Functions that coordinators call with the rights of the owner; docs/samples/advisor.md gives the reasons."""

_RELATIONS = """
SELECT c.relname, c.relkind::text, c.relrowsecurity, coalesce(c.reloptions, '{}') @> '{security_invoker=true}',
    EXISTS (SELECT FROM pg_policies AS p WHERE p.schemaname = n.nspname AND p.tablename = c.relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname NOT IN ('auth', 'information_schema') AND n.nspname !~ '^pg_' AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_GRANTS = """
SELECT c.relname, acl.grantee::regrole::text, acl.privilege_type, string_agg(acl.name, ' ' ORDER BY acl.name)
FROM pg_class AS c
CROSS JOIN LATERAL (
    SELECT a.*, NULL FROM aclexplode(c.relacl) AS a
    UNION ALL
    SELECT a.*, t.attname FROM pg_attribute AS t, aclexplode(t.attacl) AS a WHERE t.attrelid = c.oid
) AS acl (grantor, grantee, privilege_type, is_grantable, name)
WHERE c.relnamespace IN ('certjob'::regnamespace, 'certjob_private'::regnamespace) AND acl.grantee <> c.relowner
GROUP BY 1, 2, 3
"""
_FUNCTIONS = """
SELECT p.proname, p.prosecdef, p.prorettype = 'trigger'::regtype,
    coalesce(p.proconfig, '{}') && ARRAY['search_path=pg_catalog, pg_temp'],
    ARRAY(
        SELECT acl.grantee::regrole::text FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
        WHERE acl.grantee <> p.proowner
    )
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('auth', 'information_schema') AND n.nspname !~ '^pg_'
"""


def granted(owner: Connection) -> dict[tuple[str, str, str], str | None]:
    """Return the columns of each grant by table, role and right; None: the whole table."""
    return {(table, role, what): names for table, role, what, names in owner.execute(_GRANTS).fetchall()}


def test_each_role_has_only_the_listed_rights(owner: Connection) -> None:
    """A coordinator writes no derived column, the app's server only facts; the worker deletes only finished rows."""
    grants = granted(owner)

    assert {role for _, role, _ in grants} == {WORKER, COORDINATOR, SERVER}
    assert {table for table, role, what in grants if (role, what) == (COORDINATOR, "SELECT")} == {
        *READ_BY_COORDINATORS.split()
    }
    assert grants["acknowledgements", COORDINATOR, "SELECT"] == "acknowledged_at alert_id until"
    written = {(table, what): grants[table, role, what] for table, role, what in grants if role == COORDINATOR}
    assert {key: columns for key, columns in written.items() if key[1] != "SELECT"} == WRITTEN_BY_COORDINATORS
    assert {table for table, role, what in grants if role == SERVER and what != "SELECT"} == FACTS
    assert {table for table, role, what in grants if (role, what) == (WORKER, "DELETE")} == {*DELETED_BY_WORKER.split()}
    whole_rows = {key[:2] for key, columns in grants.items() if key[2] in ("INSERT", "UPDATE") and not columns}
    assert {key for key in whole_rows if key[0] in FACTS} == {("organisations", SERVER), ("coordinators", SERVER)}
    by_server = [columns or "" for (_, role, what), columns in grants.items() if role == SERVER and what != "SELECT"]
    derived = {"portal_visible", "certified_until", "review_on", "status"}
    assert not derived & {*" ".join(by_server).split()}, "the app could exclude a mentor from all reviews"


def test_tables_have_row_level_security_and_views_their_readers_rights(owner: Connection) -> None:
    """Materialised views and foreign tables are not allowed, because they cannot have policies.

    A policy for PUBLIC would be evaluated for each role, and apply to roles that someone creates later.
    """
    open_to_all = [
        name
        for name, kind, is_secured, is_invoker, has_policy in owner.execute(_RELATIONS).fetchall()
        if not (is_secured and has_policy if kind == "r" else is_invoker and kind == "v")
    ]

    assert open_to_all == []
    policies = owner.execute("SELECT tablename, policyname, roles::text[] FROM pg_policies").fetchall()
    assert {role for _, _, roles in policies for role in roles} == {WORKER, COORDINATOR}
    assert all(len(roles) == 1 for _, _, roles in policies)


def test_functions_have_a_safe_search_path_and_listed_callers(owner: Connection) -> None:
    """Triggers run as their owner, because row-level security hides rows from the caller."""
    functions = owner.execute(_FUNCTIONS).fetchall()

    assert [name for name, is_definer, is_trigger, _, _ in functions if is_trigger and not is_definer] == []
    assert {name for name, _, _, has_safe_path, _ in functions if not has_safe_path} == INLINED
    callable_as_owner = {name for name, is_definer, _, _, callers in functions if is_definer and COORDINATOR in callers}
    assert callable_as_owner == NEEDED_BY_COORDINATORS
    assert {name: callers for name, _, _, _, callers in functions if callers} == CALLABLE


# Every command works as certjob_worker, other statements do not; and how roles are created.


SETTINGS = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "Pacific/Kiritimati",
    "row_security": "off",
    "array_nulls": "off",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "client_encoding": "LATIN1",
}
"""Settings of a database that change the meaning of statements or results."""


@pytest.fixture
def login_url(database_url: str) -> Iterator[str]:
    """The URL of a login with the role certjob_worker, as in docs/database-roles.md."""
    name = f"certjob_cron_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database_url, autocommit=True) as admin:
        here = admin.info.dbname
        admin.execute(
            f"CREATE ROLE {name} LOGIN IN ROLE certjob_worker; REVOKE CONNECT ON DATABASE {here} FROM PUBLIC;"
            f"GRANT CONNECT ON DATABASE {here} TO {name}".encode()
        )
        yield psycopg.conninfo.make_conninfo(database_url, user=name)
        admin.execute(f"DROP OWNED BY {name}; DROP ROLE {name}".encode())


def test_every_command_works_as_worker_with_unusual_settings(
    bare_environment: dict[str, str], login_url: str, facts: Facts, tmp_path: Path
) -> None:
    """The commands insert, change and delete rows in every table."""
    for name, value in SETTINGS.items():
        facts.connection.execute(f"ALTER DATABASE {facts.connection.info.dbname} SET {name} = '{value}'".encode())

    assert_every_command_works(login_url, facts=facts, environment=bare_environment, folder=tmp_path)


def test_worker_cannot_do_more_than_certjob_does(login_url: str, facts: Facts) -> None:
    """This limits a stolen login. The role itself cannot log in."""
    rights = "SELECT rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = %s"
    assert facts.rows(rights, "certjob_worker") == [(False,) * 5]
    furnish(facts.connection, "hlf", api=facts.connection)
    facts.connection.execute("CREATE TABLE diary (secret text)")
    with database.connect(login_url) as worker:
        for statement in (
            "ALTER TABLE mentors DISABLE TRIGGER mentor_updated",
            "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE actor <> 'certjob'",
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'sick', 'anna' FROM mentors",
            "SELECT certjob_private.set_up_rights()",
            "SELECT secret FROM diary",
        ):
            with pytest.raises(DENIED):
                worker.execute(statement.encode())


def test_worker_deletes_only_finished_rows(login_url: str, facts: Facts) -> None:
    """A mistake in retention cannot delete open rows."""
    furnish(facts.connection, "hlf", api=facts.connection)
    with database.connect(login_url) as worker:
        for table, opened, closed in (
            ("portal_sync_events", "status = 'blocked'", "status = 'delivered'"),
            ("cert_notification_log", "status = 'failed'", "status = 'sent'"),
            ("dynamics_sync_failures", "resolved_at = NULL", "resolved_at = now()"),
            ("coordinator_digests", "status = 'failed'", "status = 'sent'"),
        ):
            worker.execute(f"UPDATE {table} SET {opened}".encode())
            assert worker.execute(f"DELETE FROM {table}".encode()).rowcount == 0, table
            worker.execute(f"UPDATE {table} SET {closed}".encode())
            assert worker.execute(f"DELETE FROM {table}".encode()).rowcount == 1, table


def test_migrate_grants_to_supabases_roles_that_came_later(connection: database.Connection) -> None:
    """Without auth.uid(), certjob cannot identify the coordinator, so it grants no right."""
    supabase.set_up(connection)
    ours = furnish(connection, "hlf", api=connection)
    with pytest.raises(DENIED):
        ours.asks("SELECT id FROM certjob.mentors")

    assert migrations.migrate(connection) == []

    assert ours.asks("SELECT id FROM certjob.mentors") == [(ours.mentor,)]


def test_owner_of_the_database_can_migrate(server_url: str) -> None:
    """The owner is not a superuser, as on Supabase."""
    name = f"certjob_test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN".encode())
        admin.execute(f"CREATE DATABASE {name} OWNER {name} TEMPLATE template0".encode())
        try:
            with database.connect(psycopg.conninfo.make_conninfo(server_url, dbname=name, user=name)) as owner:
                assert migrations.migrate(owner) != []
                assert migrations.migrate(owner) == []
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
            admin.execute(f"DROP ROLE {name}".encode())
