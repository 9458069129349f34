"""What coordinators see and change through the app: their own organisation's facts, and nothing derived.

On a database of Supabase's shape, through its real roles, as PostgREST would ask. docs/dashboard.md is held to it.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import psycopg
import pytest
from deno import find_deno_bin

from certjob.database import Connection
from tests.support.app_rows import DENIED, READABLE, Organisation, count
from tests.support.command_line import run_in_process
from tests.support.docs import read
from tests.support.edge_function import deno_environment
from tests.support.facts import Facts
from tests.support.supabase import acting, logged_in

STRANGER = "6f1f6a2e-3c0b-4b0a-9d55-0d5a6a3c9b11"
"""A user of the app who coordinates nothing."""

CERTIFICATE = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%({})s, 'x', '2026-03-01', '2028-03-01')"
)
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%({})s, '{}', {})"
LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = {}"

ALLOWED = (
    CERTIFICATE.format("mentor"),
    "UPDATE certificates SET issued_on = '2020-01-01', expires_on = '2028-04-01', revoked_at = now(), kind = 'y',"
    " mentor_id = mentor_id",
    "UPDATE mentors SET full_name = 'Kari', email = 'k@example.org', locale = 'nn', left_at = now(),"
    " dynamics_contact_id = gen_random_uuid()",
    "INSERT INTO mentor_pauses (id, mentor_id, reason, actor, paused_at)"
    " VALUES (gen_random_uuid(), %(mentor)s, 'leave', %(me)s, '2026-03-01')",
    LIFT.format("%(me)s"),  # a colleague's pause, in their own name
)
"""What changes one row, that of the own organisation."""

REFUSED = (
    "UPDATE certificates SET status = 'valid'",
    "UPDATE mentors SET review_on = 'infinity'",
    "DELETE FROM certificates",
    PAUSE.format("mentor", "certification_expired", "'certjob'"),
    PAUSE.format("mentor", "certification_expired", "%(me)s"),
    PAUSE.format("mentor", "leave", "'somebody'"),
    LIFT.format("'somebody'"),
    "UPDATE mentor_pauses SET lifted_at = now()",
    "TRUNCATE mentors CASCADE",
    "SELECT certjob_private.coordinator_organisation_id()",
    CERTIFICATE.format("other_mentor"),
    "UPDATE certificates SET mentor_id = %(other_mentor)s",
    PAUSE.format("other_mentor", "leave", "%(me)s"),
)
"""42501, by a policy or, as a sample, for want of a right: each of these is in test_grants.py."""

IN_VAIN = (
    "UPDATE mentors SET full_name = 'x' WHERE id = %(other_mentor)s",
    "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(other_mentor)s",
    LIFT.format("%(me)s") + " WHERE mentor_id = %(other_mentor)s",
    LIFT.format("%(me)s") + " WHERE reason = 'certification_expired'",
    "UPDATE mentor_pauses SET lifted_by = %(me)s WHERE reason = 'over'",
)
"""No row, as if there were none."""


def seen(api: Connection) -> set[int]:
    """How many rows of the tables of facts and intents can be seen."""
    return {count(api, table) for table in READABLE}


def test_a_coordinator_reads_whole_rows_of_the_own_organisation_only(
    api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
) -> None:
    """There are two rows in each table; each coordinator sees one. The app's server sees all: service_role.

    Realtime asks for the changed row by its key, as each listener; what it gets, it tells: unresolved failures only.
    """
    assert seen(owner) == {2}
    with acting(api, "service_role"):
        assert count(api, "mentors") == 2
    heard = "SELECT mentor_id FROM dynamics_sync_failures WHERE id = ANY (%s)"
    keys = [row[0] for row in owner.execute("SELECT id FROM dynamics_sync_failures").fetchall()]

    for organisation in (ours, theirs):
        with logged_in(api, organisation.coordinator):
            assert seen(api) == {1}
            assert api.execute("SELECT organisation_id FROM portal_alerts").fetchall() == [(organisation.id,)]
            assert api.execute(heard, (keys,)).fetchall() == [(organisation.mentor,)]
    owner.execute("UPDATE dynamics_sync_failures SET resolved_at = now()")
    with logged_in(api, ours.coordinator):
        assert api.execute(heard, (keys,)).fetchall() == []


def test_a_policy_reads_the_coordinator_once_and_not_for_each_row(api: Connection, ours: Organisation) -> None:
    """(SELECT …) makes it a value that is found before the scan begins."""
    for table in READABLE:
        with logged_in(api, ours.coordinator):
            api.execute("SET LOCAL enable_seqscan = off")
            lines = [row[0] for row in api.execute(f"EXPLAIN (VERBOSE) SELECT * FROM {table}".encode()).fetchall()]

        filters = [line for line in lines if "Filter" in line or "Cond" in line]
        assert any("InitPlan" in line for line in lines), table
        assert not any("coordinator_organisation_id" in line for line in filters), table


def test_a_coordinator_changes_facts_of_the_own_organisation_and_nothing_else(
    api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
) -> None:
    Facts(owner).pause(ours.mentor, reason="certification_expired", actor="certjob")
    values: dict[str, Any] = {"me": str(ours.coordinator), "mentor": ours.mentor, "other_mentor": theirs.mentor}
    owner.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, lifted_at, lifted_by)"
        " VALUES (%(mentor)s, 'over', 'somebody', now(), 'somebody')",
        values,
    )
    expected = dict.fromkeys(ALLOWED, "1") | dict.fromkeys(REFUSED, "42501") | dict.fromkeys(IN_VAIN, "0")
    found: dict[str, str | None] = {}

    for statement in expected:
        try:
            with api.transaction(force_rollback=True), logged_in(api, values["me"]):
                found[statement] = str(api.execute(statement.encode(), values).rowcount)
        except psycopg.Error as error:
            found[statement] = error.sqlstate

    assert found == expected


def test_what_a_coordinator_changes_is_noticed_as_ever(api: Connection, owner: Connection, ours: Organisation) -> None:
    """The triggers see what the coordinator may not: the review is due, the push and the reminder are open again."""
    owner.execute("UPDATE mentors SET review_on = 'infinity'")
    owner.execute("UPDATE cert_notification_log SET status = 'failed'")
    owner.execute("UPDATE portal_sync_events SET status = 'blocked'")

    with logged_in(api, ours.coordinator):
        api.execute("UPDATE certificates SET expires_on = '2028-04-01'")
    assert owner.execute("SELECT review_on = '-infinity' FROM mentors").fetchall() == [(True,)]
    with logged_in(api, ours.coordinator):
        api.execute("UPDATE mentors SET email = 'k@example.org', dynamics_contact_id = gen_random_uuid()")
    assert owner.execute("SELECT status FROM cert_notification_log").fetchall() == [("pending",)]
    assert owner.execute("SELECT status FROM portal_sync_events").fetchall() == [("pending",)]


def test_no_forged_claim_opens_anything(api: Connection, ours: Organisation) -> None:
    """It is `sub` that counts, which PostgREST lets nobody write: the others may say what they like."""
    for claims in (
        {},
        {"sub": None},
        {"sub": STRANGER, "role": "service_role"},
        {"sub": STRANGER, "app_metadata": {"organisation_id": str(ours.id)}},
        {"user_id": str(ours.coordinator), "email": "eva@example.org"},
    ):
        with acting(api, "authenticated", **claims):
            assert seen(api) == {0}, claims
        with pytest.raises(DENIED), acting(api, "authenticated", **claims):
            api.execute(CERTIFICATE.format("mentor").encode(), {"mentor": ours.mentor})
    for sub in ("", "' OR true --", "*"):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation), acting(api, "authenticated", sub=sub):
            count(api, "mentors")


def test_the_coordinators_row_counts_at_once_though_the_token_lives_on(
    api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
) -> None:
    """Moved: the new organisation only. Deleted: nothing."""
    me = ours.coordinator
    owner.execute("UPDATE coordinators SET organisation_id = %s, email = 'm@x.org' WHERE id = %s", (theirs.id, me))
    with logged_in(api, me):
        assert api.execute("SELECT id FROM mentors").fetchall() == [(theirs.mentor,)]
    owner.execute("DELETE FROM coordinators WHERE id = %s", (me,))

    with logged_in(api, me):
        assert seen(api) == {0}
    with pytest.raises(DENIED), logged_in(api, me):
        api.execute(PAUSE.format("mentor", "leave", "%(me)s").encode(), {"mentor": ours.mentor, "me": str(me)})


def test_temporary_types_of_usual_names_run_nothing_as_the_owner(
    api: Connection, owner: Connection, ours: Organisation
) -> None:
    """pg_temp is looked into first for types unless it is named, and a domain's check is code of the caller's."""
    owner.execute("CREATE SCHEMA evil; GRANT ALL ON SCHEMA evil TO authenticated")
    ran_as: list[str] = []
    api.add_notice_handler(lambda notice: ran_as.append(notice.message_primary or ""))
    with logged_in(api, ours.coordinator):
        api.execute(
            "CREATE FUNCTION evil.tell(text) RETURNS boolean LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE NOTICE '%', current_user; RETURN true; END $$"
        )
        for name in ("uuid", "text", "date", "bool", "int4", "int8", "timestamptz"):
            check = "CHECK (evil.tell(VALUE::pg_catalog.text))"
            api.execute(f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.{name} {check}".encode())
        api.execute(
            "CREATE TYPE pg_temp.record AS (id pg_temp.uuid, left_at pg_temp.timestamptz,"
            " portal_visible pg_temp.bool, review_on pg_temp.date, portal pg_temp.text,"
            " organisation pg_temp.text, optional_kinds pg_catalog.text[])"
        )
        asked = api.execute("SELECT visible FROM public.request_portal_resync(%s)", (ours.mentor,)).fetchall()
        api.execute("UPDATE mentors SET email = 'new@example.org', dynamics_contact_id = gen_random_uuid()")
        api.execute("UPDATE certificates SET revoked_at = now()")
        api.execute(CERTIFICATE.format("mentor").encode(), {"mentor": ours.mentor})
        api.execute(LIFT.format("(SELECT auth.uid())::pg_catalog.text").encode())

    assert asked == [(False,)]
    assert set(ran_as) <= {"authenticated"}, "code of the caller's ran as somebody else"


@pytest.mark.parametrize("time", ["infinity", "0044-03-15 BC"])
def test_times_that_no_program_can_hold_stop_neither_a_night_nor_a_story(
    time: str, api: Connection, owner: Connection, ours: Organisation, supabase_url: str, tmp_path: Path
) -> None:
    """PostgreSQL takes them from the app: a pause until for ever, a mentor who never was."""
    values = {"time": time, "me": str(ours.coordinator), "mentor": ours.mentor}
    for statement in (
        "UPDATE mentor_pauses SET lifted_at = %(time)s, lifted_by = %(me)s",
        "UPDATE mentors SET left_at = %(time)s",
        "UPDATE certificates SET revoked_at = %(time)s",
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at) VALUES (%(mentor)s, 'x', %(me)s, %(time)s)",
    ):
        with logged_in(api, ours.coordinator):
            api.execute(statement.encode(), values)

    url = psycopg.conninfo.make_conninfo(supabase_url, options="-c role=certjob_worker")
    environment = {
        "CERTJOB_DATABASE_URL": url,
        "CERTJOB_NOTIFY_URL": "maildir:mail",
        "CERTJOB_MAIL_FROM": "a@b.example",
    }
    story = run_in_process("explain", "hlf-1", environment=environment, folder=tmp_path)
    night = run_in_process("run", environment=environment, folder=tmp_path)

    assert (story.returncode, story.stderr) == (0, "")
    assert "Has left" in story.stdout
    assert night.returncode == 3, night  # the portal is not set up here
    assert owner.execute("SELECT status FROM certificates").fetchall() == [("revoked",)]


class TestTheDashboardsPage:
    """docs/dashboard.md: what it tells an app to read, hear and call is there, for coordinators."""

    PAGE = read("docs/dashboard.md")

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", self.PAGE, flags=re.MULTILINE | re.DOTALL)

    def table_under(self, heading: str) -> list[str]:
        """The first column of the table with this heading."""
        rows = re.search(rf"^\| {heading} \|.*\n\|[-|]+\n((?:\|.*\n)+)", self.PAGE, flags=re.MULTILINE)
        assert rows is not None
        return re.findall(r"^\| `([^`]+)` \|", rows[1], flags=re.MULTILINE)

    @pytest.mark.usefixtures("theirs")
    def test_each_statement_answers_a_coordinator_for_the_own_organisation(
        self, api: Connection, owner: Connection, ours: Organisation
    ) -> None:
        """One row each, although there are two; the view and the function answer with all the columns of the page."""
        owner.execute(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
            " SELECT id, 'certification_expired', 'certjob' FROM mentors;"
            "UPDATE cert_notification_log SET status = 'failed';"
            "UPDATE certificates SET expires_on = current_date + 30, status = 'expiring'"
        )
        with logged_in(api, ours.coordinator):
            for statement in "".join(self.blocks("sql")).split(";")[:-1]:
                assert [row[0] for row in api.execute(statement.encode()).fetchall()] == ["hlf-1"], statement
            for statement, heading in (
                ("SELECT * FROM portal_alerts", "column"),
                (f"SELECT * FROM request_portal_resync('{ours.mentor}')", "it answers"),
            ):
                description = api.execute(statement.encode()).description or ()
                assert [column.name for column in description] == self.table_under(heading)

    def test_what_the_code_names_exists(self, api: Connection, ours: Organisation) -> None:
        """Tables with their columns, the function with its parameter, a published table."""
        published = api.execute("SELECT tablename FROM pg_publication_tables WHERE pubname = 'supabase_realtime'")
        heard = {row[0] for row in published.fetchall()}
        for code in (*self.blocks("js"), *self.blocks("dart")):
            asked = [
                f"SELECT {columns} FROM {table} ORDER BY {order}"
                for table, columns, order in re.findall(
                    r"\bfrom\(['\"](\w+)['\"]\)\s*\.select\(['\"]([^'\"]+)['\"].*?order\(['\"](\w+)['\"]",
                    code,
                    re.DOTALL,
                )
            ]
            calls = re.findall(r"rpc\(['\"](\w+)['\"], (?:params: )?\{ ?'?(\w+)", code)
            asked += [f"SELECT * FROM {function}({name} => '{ours.mentor}')" for function, name in calls]
            with logged_in(api, ours.coordinator):
                for statement in asked:
                    api.execute(statement.encode())
            assert len(asked) == code.count("from(") + code.count("rpc(")
            assert set(re.findall(r"table: ['\"](\w+)['\"]", code)) <= heard

    def test_the_javascript_can_be_parsed(self, tmp_path: Path) -> None:
        """By Deno, which formats what it understands."""
        code, environment = "\n".join(self.blocks("js")).encode(), deno_environment(tmp_path)
        subprocess.run(
            [find_deno_bin(), "fmt", "--ext", "js", "-"], input=code, capture_output=True, check=True, env=environment
        )

    def test_the_refusals_have_the_codes_of_the_page(
        self, api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """Another organisation's mentor; no portal; a review that is still to come."""
        codes = {}
        for what, change, mentor_id in (
            ("another's", "SELECT", theirs.mentor),
            ("undecided", "DELETE FROM mentor_pauses; UPDATE certificates SET expires_on = '2025-01-01'", ours.mentor),
            ("no portal", "UPDATE organisations SET portal = NULL", ours.mentor),
        ):
            owner.execute(change.encode())
            with pytest.raises(psycopg.Error) as raised, logged_in(api, ours.coordinator):
                api.execute("SELECT * FROM request_portal_resync(%s)", (mentor_id,))
            codes[what] = raised.value.sqlstate

        assert [codes["another's"], codes["no portal"], codes["undecided"]] == self.table_under("SQLSTATE")
