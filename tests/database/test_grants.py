"""Every table, view, sequence and function, and who may do what with it: a later migration must decide it, here too."""

from certjob import database

WORKER, COORDINATOR = "certjob_worker", "authenticated"

DECIDED: dict[str, dict[str, set[str]]] = {
    "organisations": {
        WORKER: {
            "SELECT",
            "INSERT(slug,name)",
            "UPDATE(name,portal,reminder_thresholds,optional_kinds,contact_email,contact_phone,renewal_url,sender)",
        },
        COORDINATOR: {"SELECT"},
    },
    "coordinators": {
        WORKER: {
            "SELECT",
            "DELETE",
            "INSERT(id,organisation_id,full_name,email,locale)",
            "UPDATE(id,full_name,email,locale)",
        },
        COORDINATOR: {"SELECT"},
    },
    "mentors": {
        WORKER: {
            "SELECT",
            "INSERT(organisation_id,member_no,full_name,email,locale,dynamics_contact_id,left_at)",
            "UPDATE(full_name,email,locale,dynamics_contact_id,left_at,portal_visible,review_on)",
        },
        COORDINATOR: {"SELECT", "UPDATE(full_name,email,locale,dynamics_contact_id,left_at)"},
    },
    "certificates": {
        WORKER: {
            "SELECT",
            "INSERT(mentor_id,kind,issued_on,expires_on,revoked_at)",
            "UPDATE(expires_on,revoked_at,status)",
        },
        COORDINATOR: {
            "SELECT",
            "INSERT(id,mentor_id,kind,issued_on,expires_on,revoked_at)",
            "UPDATE(mentor_id,kind,issued_on,expires_on,revoked_at)",
        },
    },
    "mentor_pauses": {
        WORKER: {"SELECT", "INSERT(mentor_id,reason,actor)", "UPDATE(lifted_at,lifted_by)"},
        COORDINATOR: {"SELECT", "INSERT(id,mentor_id,reason,actor,paused_at)", "UPDATE(lifted_at,lifted_by)"},
    },
    "certificate_transitions": {WORKER: {"SELECT", "INSERT", "DELETE"}, COORDINATOR: {"SELECT"}},
    "cert_notification_log": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}, COORDINATOR: {"SELECT"}},
    "portal_sync_events": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}, COORDINATOR: {"SELECT"}},
    "dynamics_sync_failures": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}, COORDINATOR: {"SELECT"}},
    "portal_alerts": {WORKER: {"SELECT"}, COORDINATOR: {"SELECT"}},
    "held_reviews": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}, COORDINATOR: {"SELECT"}},
    "review_problems": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}, COORDINATOR: {"SELECT"}},
    # Nothing for the app: the ledgers, and what is queued for coordinators' mailboxes.
    "coordinator_digests": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}},
    "attention": {WORKER: {"SELECT"}},
    "portal_last_reading": {WORKER: {"SELECT", "INSERT", "UPDATE"}},
    "portal_unknown_contacts": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}},
    "job_runs": {WORKER: {"SELECT", "INSERT", "UPDATE", "DELETE"}},
    "certjob_migrations": {WORKER: {"SELECT"}},
    # An identity column takes its next number without a right on the sequence.
    "certificate_transitions_id_seq": {},
    "cert_notification_log_id_seq": {},
    "portal_sync_events_id_seq": {},
    "dynamics_sync_failures_id_seq": {},
    "coordinator_digests_id_seq": {},
}
"""Each relation: who beside its owner and Supabase's service_role may do what. Whoever adds one decides here.

A table that the app or certjob uses also needs its policies, in a function set_up_….
"""

CALLABLE = {"coordinator_organisation_id()": {COORDINATOR}, "request_portal_resync(uuid)": {COORDINATOR}}
"""Each function that somebody beside its owner may call."""

_RELATIONS = """
SELECT c.relname, c.relkind, c.relrowsecurity, coalesce(c.reloptions, '{}') @> '{security_invoker=true}',
    EXISTS (SELECT FROM pg_policies AS p WHERE p.schemaname = n.nspname AND p.tablename = c.relname)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname NOT IN ('auth', 'information_schema') AND n.nspname !~ '^pg_'
    AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
"""

_GRANTS = """
WITH relation AS (
    SELECT oid, relname, relowner, relacl
    FROM pg_class
    WHERE relnamespace IN ('public'::regnamespace, 'certjob_private'::regnamespace)
), granted AS (
    SELECT r.relname, r.relowner, NULL AS attname, acl.privilege_type, acl.grantee
    FROM relation AS r CROSS JOIN LATERAL aclexplode(r.relacl) AS acl
    UNION ALL
    SELECT r.relname, r.relowner, a.attname, acl.privilege_type, acl.grantee
    FROM relation AS r JOIN pg_attribute AS a ON a.attrelid = r.oid CROSS JOIN LATERAL aclexplode(a.attacl) AS acl
)
SELECT relname, privilege_type, attname, CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
FROM granted
WHERE grantee <> relowner
"""

_FUNCTIONS = """
SELECT p.proname || '(' || oidvectortypes(p.proargtypes) || ')', p.prosecdef,
    coalesce(p.proconfig, '{}') && ARRAY['search_path=""', 'search_path=pg_catalog, pg_temp'],
    ARRAY(
        SELECT CASE WHEN acl.grantee = 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END
        FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS acl
        WHERE acl.grantee <> p.proowner
    )
FROM pg_proc AS p
JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('auth', 'information_schema') AND n.nspname !~ '^pg_'
"""


def grants(connection: database.Connection) -> dict[str, dict[str, set[str]]]:
    """What each role may do with each relation, written as in DECIDED; without the owner and service_role."""
    columns: dict[tuple[str, str, str], set[str]] = {}
    found: dict[str, dict[str, set[str]]] = {}
    for relation, privilege, column, role in connection.execute(_GRANTS).fetchall():
        if role == "service_role":
            continue
        of_role = found.setdefault(relation, {}).setdefault(role, set())
        if column is None:
            of_role.add(privilege)
        else:
            columns.setdefault((relation, role, privilege), set()).add(column)
    for (relation, role, privilege), names in columns.items():
        found[relation][role].add(f"{privilege}({','.join(sorted(names))})")
    return found


def _sorted_columns(privilege: str) -> str:
    name, _, columns = privilege.partition("(")
    return f"{name}({','.join(sorted(columns.rstrip(')').split(',')))})" if columns else name


def undecided(connection: database.Connection) -> list[str]:
    """What a migration left open, one sentence each."""
    found = grants(connection)
    problems = []
    relations = connection.execute(_RELATIONS).fetchall()
    for name, kind, has_security, is_invoker, has_policies in relations:
        if name not in DECIDED:
            problems.append(f"{name}: who may do what with it? Decide in DECIDED, and grant it in a migration")
        if kind in "rp" and not has_security:
            problems.append(f"{name}: has no row-level security; ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
        if kind in "rp" and not has_policies:
            problems.append(f"{name}: has no policy; add it to set_up_worker, and to set_up_app if coordinators see it")
        if kind == "v" and not is_invoker:
            problems.append(f"{name}: a view without security_invoker shows everybody everything")
        if kind in "mf":
            problems.append(f"{name}: row-level security does not reach materialised views and foreign tables")
        decided = {
            role: {_sorted_columns(privilege) for privilege in privileges}
            for role, privileges in DECIDED.get(name, {}).items()
        }
        if found.get(name, {}) != decided:
            problems.append(f"{name}: grants are {found.get(name, {})}, decided are {decided}")
    gone = DECIDED.keys() - {row[0] for row in relations}
    return problems + [f"{name}: is not there" for name in sorted(gone)] + _undecided_functions(connection)


def _undecided_functions(connection: database.Connection) -> list[str]:
    problems = []
    for name, is_definer, has_safe_path, callers in connection.execute(_FUNCTIONS).fetchall():
        if is_definer and not has_safe_path:
            problems.append(f"{name}: a definer function needs SET search_path = pg_catalog, pg_temp")
        if set(callers) != CALLABLE.get(name, set()):
            problems.append(f"{name}: may be called by {sorted(callers)}, decided are {CALLABLE.get(name, set())}")
    return problems


def test_every_table_view_sequence_and_function_is_decided_about(owner: database.Connection) -> None:
    """On a database that, as Supabase's does, opens whatever is new to everybody."""
    assert undecided(owner) == []


LATER = {
    "CREATE TABLE diary (secret text)": [
        "diary: who may do what",
        "diary: has no row-level security",
        "diary: has no policy",
        "diary: grants are",
    ],
    "CREATE TABLE diary (secret text); ALTER TABLE diary ENABLE ROW LEVEL SECURITY;"
    " CREATE POLICY all_of_it ON diary USING (true); REVOKE ALL ON diary FROM anon, authenticated": [
        "diary: who may do what"
    ],
    "CREATE VIEW diary AS SELECT id FROM mentors": [
        "diary: who may do what",
        "diary: a view without security_invoker",
        "diary: grants are",
    ],
    "ALTER TABLE mentors DISABLE ROW LEVEL SECURITY": ["mentors: has no row-level security"],
    "GRANT UPDATE (review_on) ON mentors TO authenticated": ["mentors: grants are"],
    "GRANT SELECT ON job_runs TO PUBLIC": ["job_runs: grants are"],
    "CREATE FUNCTION peek() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS 'SELECT count(*) FROM public.mentors'": [
        "peek(): a definer function needs",
        "peek(): may be called by",
    ],
    "CREATE SCHEMA app; CREATE TABLE app.diary (secret text)": [
        "diary: who may do what",
        "diary: has no row-level security",
        "diary: has no policy",
    ],
    "DROP VIEW attention": ["attention: is not there"],
}


def test_what_a_later_migration_leaves_open_is_noticed(owner: database.Connection) -> None:
    """This test would fail as well, with the sentence that says what to do."""
    for statements, beginnings in LATER.items():
        with owner.transaction(force_rollback=True):
            owner.execute(statements.encode())
            said = undecided(owner)
        assert len(said) == len(beginnings), said
        assert all(map(str.startswith, said, beginnings)), said
