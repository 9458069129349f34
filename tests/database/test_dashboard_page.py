"""docs/dashboard.md is held to the database: what it tells an app to read, hear and call is there, for coordinators."""

import re
import subprocess
from contextlib import nullcontext
from pathlib import Path

import psycopg
import pytest
from deno import find_deno_bin

from certjob import database
from tests.support.app_rows import DENIED, READABLE, Organisation
from tests.support.edge_function import deno_environment
from tests.support.supabase import acting, logged_in

PAGE = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


def table_under(heading: str) -> list[str]:
    """The first column of the table with this heading."""
    rows = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, flags=re.MULTILINE)
    assert rows is not None
    return re.findall(r"^\| `([^`]+)` \|", rows[1], flags=re.MULTILINE)


def columns_of(connection: database.Connection, statement: str, *parameters: object) -> list[str]:
    cursor = connection.execute(statement.encode(), parameters)
    return [column.name for column in cursor.description or ()]


def test_the_columns_of_the_view_and_of_the_answer_are_those_of_the_page(
    api: database.Connection, ours: Organisation
) -> None:
    """All of them, in their order."""
    with logged_in(api, ours.coordinator):
        assert columns_of(api, "SELECT * FROM portal_alerts") == table_under("column")
        assert columns_of(api, "SELECT * FROM request_portal_resync(%s)", ours.mentor) == table_under("it answers")


@pytest.mark.usefixtures("theirs")
def test_each_statement_answers_a_coordinator_for_the_own_organisation(
    api: database.Connection, owner: database.Connection, ours: Organisation
) -> None:
    """One row each, although there are two."""
    owner.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
        " SELECT id, 'certification_expired', 'certjob' FROM mentors;"
        "UPDATE cert_notification_log SET status = 'failed';"
        "UPDATE certificates SET expires_on = current_date + 30, status = 'expiring'"
    )
    statements = [statement for block in blocks("sql") for statement in block.split(";") if statement.strip()]

    with logged_in(api, ours.coordinator):
        found = {statement: api.execute(statement.encode()).fetchall() for statement in statements}

    assert {statement: rows[0][0] for statement, rows in found.items() if len(rows) == 1} == dict.fromkeys(
        statements, "hlf-1"
    )


def test_what_the_code_names_exists(api: database.Connection, ours: Organisation) -> None:
    """Tables with their columns, the function with its parameter, a published table."""
    published = api.execute("SELECT tablename FROM pg_publication_tables WHERE pubname = 'supabase_realtime'")
    heard = {row[0] for row in published.fetchall()}
    for code in (*blocks("js"), *blocks("dart")):
        for table in re.findall(r"\bfrom\(['\"](\w+)['\"]\)", code):
            assert table in READABLE
            (columns,) = re.findall(r"select\(['\"]([^'\"]+)['\"]", code)
            order = ", ".join(re.findall(r"order\(['\"](\w+)['\"]", code))
            with logged_in(api, ours.coordinator):
                found = columns_of(api, f"SELECT {columns} FROM {table} ORDER BY {order}")
            assert found == columns.split(", ")
        assert set(re.findall(r"table: ['\"](\w+)['\"]", code)) <= heard
        for function, parameter in re.findall(r"rpc\(['\"](\w+)['\"], (?:params: )?\{ ?'?(\w+)", code):
            with logged_in(api, ours.coordinator):
                api.execute(f"SELECT * FROM {function}({parameter} => %s)".encode(), (ours.mentor,))


def test_the_javascript_can_be_parsed(tmp_path: Path) -> None:
    """By Deno, which formats what it understands."""
    command = [find_deno_bin(), "fmt", "--ext", "js", "-"]
    for code in blocks("js"):
        formatted = subprocess.run(
            command, input=code.encode(), capture_output=True, check=False, env=deno_environment(tmp_path)
        )
        assert formatted.returncode == 0, formatted.stderr


def test_the_refusals_have_the_codes_of_the_page(
    api: database.Connection, owner: database.Connection, ours: Organisation, theirs: Organisation
) -> None:
    """Another organisation's mentor; no portal; a review that is still to come."""

    def refusal(mentor_id: object) -> str | None:
        with pytest.raises(psycopg.Error) as raised, logged_in(api, ours.coordinator):
            api.execute("SELECT * FROM request_portal_resync(%s)", (mentor_id,))
        return raised.value.sqlstate

    not_theirs = refusal(theirs.mentor)
    owner.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'somebody'")
    owner.execute("UPDATE certificates SET issued_on = '2020-01-01', expires_on = '2021-01-01'")
    undecided = refusal(ours.mentor)
    owner.execute("UPDATE organisations SET portal = NULL")
    without_portal = refusal(ours.mentor)

    assert [not_theirs, without_portal, undecided] == table_under("SQLSTATE")


def test_nobody_else_gets_anything(api: database.Connection, ours: Organisation) -> None:
    """A logged-in user who is no coordinator sees nothing; without a login everything is refused."""
    for name in table_under("object"):
        calls = name == "request_portal_resync"
        statement = f"SELECT * FROM {name}" + (f"('{ours.mentor}')" if calls else "")
        for role, claims in (("authenticated", {"sub": "6b1f1c9e-0000-4000-8000-000000000000"}), ("anon", {})):
            with pytest.raises(DENIED) if calls or role == "anon" else nullcontext(), acting(api, role, **claims):
                assert api.execute(statement.encode()).fetchall() == []
