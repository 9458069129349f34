"""``sql/schema.sql``: what the migrations make, read back from a server's catalogue and put into an order for readers.

``make schema`` writes it. A new table or view has to be given a line in ``TOPICS``.
"""

import re
import textwrap
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from psycopg.rows import namedtuple_row

from certjob import database
from certjob.database import embedded, migrations
from tests.support import supabase
from tests.support.own_server import data_folder

FILE = database.sql_directory() / "schema.sql"

HEADER = """\
-- The schema as the migrations make it, for reading: no program runs this file. `make schema` writes it anew; a test
-- compares it with the migrations.
--
-- This is a database on Supabase. Elsewhere the role authenticated and the publication do not exist. The owner of a
-- table and Supabase's service_role may do everything; any other role has only the rights of the GRANTs below.
"""

TOPICS = {
    "Facts: the app, an import or a person writes them. certjob writes the columns that are called derived": {
        "organisations": "the member organisations, each with its portal and its rules for reminders",
        "coordinators": "whoever looks after an organisation's mentors, and gets its digest",
        "mentors": "the volunteers",
        "certificates": "what a mentor holds or has held: kind, first and last day; status is derived",
        "mentor_pauses": "who may not meet people, from when to when; those with the actor certjob are derived",
    },
    "What certjob decided": {
        "certificate_transitions": "the audit: every change of a certificate's status",
        "job_runs": "the ledger of runs: every run has one row, whatever became of it",
    },
    "The portal": {
        "portal_sync_events": "the visibility to push: one open row per mentor at most, the newest value",
        "dynamics_sync_failures": "pushes that failed: at most one row per mentor that no later success has resolved",
        "portal_last_reading": "what `certjob reconcile` saw last: one row",
        "portal_unknown_contacts": "who is shown and is no mentor: until they are gone, or accepted",
        "portal_alerts": "the pushes that coordinators must know of, for `certjob alerts` and the app's dashboard",
    },
    "Mail": {
        "cert_notification_log": "the reminders: one row per mentor, threshold and certificate",
        "coordinator_digests": "the coordinators' daily mails: one row per coordinator and day",
    },
    "What needs attention": {
        "held_reviews": "what the guards hold back for an organisation, until a run no longer holds it",
        "review_problems": "mentors whom a run could not review, until one does",
        "attention": "one row for each thing that needs attention, for every command that reports any of it",
    },
    "The schema's own": {
        "certjob_migrations": "which migrations are applied",
    },
}
"""The tables and views in the order of the page, each with what it holds."""

SET_UP = re.compile(r"certjob_private\.(set_up_|ensure_)")
"""Functions that make the rights; the page shows what they have made."""

BREAKS = re.compile(r" (?=REFERENCING |FOR EACH |WHEN |EXECUTE )")
"""Where the definition of a trigger goes on on a line of its own."""

WIDTH = 118

_RELATIONS = """
    SELECT oid, relname AS name, relkind::text AS kind, relrowsecurity AS secured,
        array_to_string(reloptions, ', ') AS options, pg_get_viewdef(oid, true) AS definition
    FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('i', 'S')
"""
_COLUMNS = """
    SELECT a.attname AS name, a.attnotnull AS required, a.attidentity::text AS identity,
        replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz') AS type,
        a.attgenerated::text AS generated, pg_get_expr(d.adbin, d.adrelid, true) AS value,
        col_description(a.attrelid, a.attnum) AS comment
    FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_CONSTRAINTS = """
    SELECT conname AS name, pg_get_constraintdef(oid, true) AS definition FROM pg_constraint
    WHERE conrelid = %s AND contype IN ('p', 'u', 'f', 'c', 'x')
    ORDER BY array_position('{p,u,f,c,x}', contype::text), conname
"""
_INDEXES = """
    SELECT pg_get_indexdef(i.indexrelid) AS definition
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
    WHERE i.indrelid = %s
        AND NOT EXISTS (SELECT FROM pg_constraint AS o WHERE o.conindid = i.indexrelid AND o.contype <> 'f')
    ORDER BY c.relname
"""
_TRIGGERS = """
    SELECT pg_get_triggerdef(oid, true) AS definition, tgfoid AS function
    FROM pg_trigger WHERE tgrelid = %s AND NOT tgisinternal ORDER BY tgname
"""
_POLICIES = """
    SELECT polname AS name, CASE WHEN NOT polpermissive THEN 'AS RESTRICTIVE' END AS kind,
        '{"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}'::jsonb ->> polcmd::text AS command,
        ARRAY(
            SELECT CASE role WHEN 0 THEN 'PUBLIC' ELSE role::regrole::text END FROM unnest(polroles) AS role
        ) AS roles,
        pg_get_expr(polqual, polrelid, true) AS visible, pg_get_expr(polwithcheck, polrelid, true) AS written
    FROM pg_policy WHERE polrelid = %s ORDER BY polname
"""
_GRANTS = """
    SELECT grantee, string_agg(privilege || columns, ', ' ORDER BY number, privilege) AS privileges
    FROM (
        SELECT g.privilege, CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE g.grantee::regrole::text END,
            CASE WHEN bool_and(g.number > 0)
                THEN ' (' || string_agg(g.column, ', ' ORDER BY g.number) || ')' ELSE '' END,
            array_position('{SELECT,INSERT,UPDATE,DELETE}', g.privilege)
        FROM pg_class AS c
        CROSS JOIN LATERAL (
            SELECT a.privilege_type, a.grantee, NULL, 0 FROM aclexplode(c.relacl) AS a
            UNION ALL
            SELECT a.privilege_type, a.grantee, t.attname, t.attnum
            FROM pg_attribute AS t CROSS JOIN LATERAL aclexplode(t.attacl) AS a WHERE t.attrelid = c.oid
        ) AS g (privilege, grantee, "column", number)
        WHERE c.oid = %s AND g.grantee NOT IN (c.relowner, coalesce(to_regrole('service_role'), 0))
        GROUP BY g.privilege, g.grantee
    ) AS granted (privilege, grantee, columns, number)
    GROUP BY grantee ORDER BY grantee COLLATE "C"
"""
_FUNCTIONS = """
    SELECT p.oid, format('%s.%I', n.nspname, p.proname) AS name, pg_get_functiondef(p.oid) AS definition,
        obj_description(p.oid) AS comment, p.oid::regprocedure::text AS signature,
        ARRAY(
            SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
            FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
            WHERE a.grantee NOT IN (p.proowner, coalesce(to_regrole('service_role'), 0))
                AND (a.grantee <> 0 OR n.nspname = 'public')
        ) AS callers
    FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
    WHERE n.nspname IN ('public', 'certjob_private') ORDER BY n.nspname, p.proname, p.oid
"""
_PUBLISHED = "SELECT pubname AS publication, tablename AS name FROM pg_publication_tables ORDER BY 1, 2"


def render(connection: database.Connection) -> str:
    """Return the page for a migrated database of Supabase's shape."""
    with connection.transaction():
        connection.execute("SET LOCAL search_path = public")
        relations = {row.name: row for row in _rows(connection, _RELATIONS)}
        unknown = sorted(relations.keys() ^ {name for topic in TOPICS.values() for name in topic})
        if unknown:
            message = f"a table or view is new, or gone; correct TOPICS in {Path(__file__).name}: {', '.join(unknown)}"
            raise LookupError(message)
        functions = {row.oid: row for row in _rows(connection, _FUNCTIONS)}
        set_up = [functions.pop(oid).name for oid, row in list(functions.items()) if SET_UP.match(row.name)]
        parts = [HEADER, "CREATE SCHEMA certjob_private;"]
        for topic, described in TOPICS.items():
            parts.append(_heading(topic))
            called: dict[int, None] = {}
            for name, text in described.items():
                triggers = _rows(connection, _TRIGGERS, relations[name].oid)
                called |= dict.fromkeys(trigger.function for trigger in triggers)
                lines = [_comment(f"{name}: {text}."), *_relation(connection, relations[name])]
                parts.append("\n".join([*lines, *(_wrapped(*BREAKS.split(each.definition)) for each in triggers)]))
            parts += [_function(functions.pop(oid)) for oid in called if oid in functions]
        parts += [_heading("What the app calls, and what policies ask"), *map(_function, functions.values())]
        parts.append(_comment(f"These made the grants and policies above, see the migrations: {', '.join(set_up)}."))
        parts += [f"ALTER PUBLICATION {p.publication} ADD TABLE {p.name};" for p in _rows(connection, _PUBLISHED)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _rows(connection: database.Connection, query: str, *parameters: object) -> list[Any]:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        return cursor.execute(query.encode(), parameters or None).fetchall()


def _heading(text: str) -> str:
    return f"{'-' * WIDTH}\n-- {text}\n{'-' * WIDTH}"


def _comment(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{indent}-- ", subsequent_indent=f"{indent}-- ")


def _relation(connection: database.Connection, relation: Any) -> Iterator[str]:
    if relation.kind == "r":
        yield from _table(connection, relation)
    elif relation.kind == "v":
        options = f" WITH ({relation.options})" if relation.options else ""
        yield f"CREATE VIEW {relation.name}{options} AS"
        for line in _plain(relation.definition).splitlines():
            yield line if len(line) <= WIDTH else _fill(line.strip(), indent="  ")
    else:
        message = f"{relation.name} is neither a table nor a view: teach this page to show it"
        raise LookupError(message)
    if relation.secured:
        yield f"ALTER TABLE {relation.name} ENABLE ROW LEVEL SECURITY;"
    yield from _rights(connection, relation)


def _table(connection: database.Connection, table: Any) -> Iterator[str]:
    columns = _rows(connection, _COLUMNS, table.oid)
    constraints = _rows(connection, _CONSTRAINTS, table.oid)
    name_width = max(len(column.name) for column in columns)
    type_width = max(len(column.type) for column in columns)
    yield f"CREATE TABLE {table.name} ("
    for column in columns:
        if column.comment:
            yield _comment(column.comment, indent="    ")
        words = [column.name.ljust(name_width), column.type.ljust(type_width)]
        words += ["NOT NULL"] * column.required
        words += ["GENERATED ALWAYS AS IDENTITY"] * (column.identity == "a")
        if column.value is not None:
            computed = f"GENERATED ALWAYS AS ({column.value}) STORED"
            words.append(computed if column.generated else f"DEFAULT {column.value}")
        yield "    " + _plain(" ".join(words)).rstrip() + ","
    for number, constraint in enumerate(constraints, start=1):
        end = "," if number < len(constraints) else ""
        yield _wrapped(f"CONSTRAINT {constraint.name}", constraint.definition, indent="    ", end=end)
    yield ");"
    for index in _rows(connection, _INDEXES, table.oid):
        definition = index.definition.replace(" ON public.", " ON ").replace(" USING btree", "")
        yield _wrapped(*re.split(r" (?=WHERE )", definition))


def _rights(connection: database.Connection, relation: Any) -> Iterator[str]:
    for grant in _rows(connection, _GRANTS, relation.oid):
        yield _wrapped(f"GRANT {grant.privileges}", f"ON {relation.name} TO {grant.grantee}")
    for policy in _rows(connection, _POLICIES, relation.oid):
        clauses = [f'CREATE POLICY "{policy.name}" ON {relation.name}']
        clauses += [policy.kind] if policy.kind else []
        clauses.append(f"FOR {policy.command} TO {', '.join(sorted(policy.roles))}")
        clauses += [f"USING {_in_parentheses(policy.visible)}"] if policy.visible else []
        clauses += [f"WITH CHECK {_in_parentheses(policy.written)}"] if policy.written else []
        yield _wrapped(*clauses)


def _in_parentheses(expression: str) -> str:
    """Return the expression with one pair of parentheses around it."""
    depths = list(accumulate({"(": 1, ")": -1}.get(character, 0) for character in expression))
    return expression if 0 not in depths[:-1] else f"({expression})"


def _function(function: Any) -> str:
    definition = function.definition.strip().replace("CREATE OR REPLACE", "CREATE", 1)
    head, quoted, body = definition.partition("\nAS ")
    name, *properties = head.split("\n")
    lines = [_comment(function.comment)] if function.comment else []
    lines += [_wrapped(name, " ".join(properties), end="" if quoted else ";")]
    lines += [f"AS {body.replace('$function$', '$$')};"] if quoted else []
    lines += [f"GRANT EXECUTE ON FUNCTION {function.signature} TO {caller};" for caller in sorted(function.callers)]
    return "\n".join(lines)


def _wrapped(*clauses: str, indent: str = "", end: str = ";") -> str:
    """Return a statement on one line where there is room, else each clause on lines of its own."""
    plain = [_plain(" ".join(clause.split())) for clause in clauses]
    one_line = f"{indent}{' '.join(plain)}{end}"
    if len(one_line) <= WIDTH:
        return one_line
    plain[-1] += end
    wrapped = [_fill(clause, indent + "    " * min(number, 1)) for number, clause in enumerate(plain)]
    return "\n".join(wrapped)


def _fill(text: str, indent: str) -> str:
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.initial_indent, wrapper.subsequent_indent = indent, f"{indent}    "
    return wrapper.fill(text)


def _plain(text: str) -> str:
    """Leave out what PostgreSQL adds to what was written and no reader needs."""
    text = re.sub(r"('[^']*')::(?:text|date|integer|uuid|jsonb|integer\[\]|text\[\])(?!\[)", r"\1", text)
    text = re.sub(r" = ANY \(ARRAY\[([^]]*)\]\)", r" IN (\1)", text)
    text = re.sub(r"\(\( ?SELECT ([\w.]+\(\)) AS \w+\)\)", r"(SELECT \1)", text)
    return text.replace("( SELECT", "(SELECT")


def write() -> None:
    """Write the file anew, from an embedded server of its own."""
    with (
        data_folder("schema") as folder,
        embedded.server(folder / "postgresql") as url,
        database.connect(url) as connection,
    ):
        supabase.set_up(connection)
        migrations.migrate(connection)
        FILE.write_text(render(connection))


if __name__ == "__main__":
    write()
