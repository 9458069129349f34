"""What coordinators see and change through the app: their own organisation's facts, and nothing derived.

On a database of Supabase's shape, through its real roles, as PostgREST would ask.
"""

from pathlib import Path
from typing import Any

import psycopg
import pytest

from certjob.database import Connection
from tests.support.app_rows import CERTJOBS_OWN, DENIED, READABLE, Organisation, count
from tests.support.command_line import run_in_process
from tests.support.facts import Facts
from tests.support.supabase import acting, logged_in

STRANGER = "6f1f6a2e-3c0b-4b0a-9d55-0d5a6a3c9b11"
"""A user of the app who coordinates nothing."""

NOTHING = dict.fromkeys(READABLE, 0)

CERTIFICATE = (
    "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%({})s, 'x', '2026-03-01', '2028-03-01')"
)
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%({})s, '{}', {})"
LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = {}"

ALLOWED = {
    "a new certificate": CERTIFICATE.format("mentor"),
    "a certificate's dates": "UPDATE certificates SET issued_on = '2020-01-01', expires_on = '2028-04-01'",
    "a certificate's kind": "UPDATE certificates SET kind = 'y', mentor_id = mentor_id",
    "a revocation": "UPDATE certificates SET revoked_at = now()",
    "a mentor's name, address, language, contact and leaving": "UPDATE mentors SET full_name = 'Kari',"
    " email = 'k@example.org', locale = 'nn', left_at = now(), dynamics_contact_id = gen_random_uuid()",
    "a pause in their own name": PAUSE.format("mentor", "leave", "%(me)s"),
    "a pause with the day on which it began": "INSERT INTO mentor_pauses (id, mentor_id, reason, actor, paused_at)"
    " VALUES (gen_random_uuid(), %(mentor)s, 'leave', %(me)s, '2026-03-01')",
    "a colleague's pause lifted in their own name": LIFT.format("%(me)s"),
}
"""What changes one row, that of the own organisation."""

REFUSED = {
    "a certificate's status": "UPDATE certificates SET status = 'valid'",
    "a mentor's portal value": "UPDATE mentors SET portal_visible = true",
    "a mentor's review": "UPDATE mentors SET review_on = 'infinity'",
    "a mentor's organisation": "UPDATE mentors SET organisation_id = %(other)s",
    "a certificate gone": "DELETE FROM certificates",
    "the organisation's rules": "UPDATE organisations SET reminder_thresholds = '{}'",
    "a second coordinator": "INSERT INTO coordinators (organisation_id, email) VALUES (%(organisation)s, 'x@y.z')",
    "a pause in certjob's name": PAUSE.format("mentor", "certification_expired", "'certjob'"),
    "a pause with certjob's reason": PAUSE.format("mentor", "certification_expired", "%(me)s"),
    "a pause in a colleague's name": PAUSE.format("mentor", "leave", "'somebody'"),
    "a pause lifted in a colleague's name": LIFT.format("'somebody'"),
    "a pause lifted in nobody's name": "UPDATE mentor_pauses SET lifted_at = now()",
    "an event": "UPDATE portal_sync_events SET visible = true",
    "everything": "TRUNCATE mentors CASCADE",
    "the policies": "ALTER TABLE mentors DISABLE ROW LEVEL SECURITY",
    "a policy's function": "SELECT certjob_private.coordinator_organisation_id()",
    "the roles' set-up": "SELECT certjob_private.set_up_roles()",
    "a sequence": "SELECT setval('portal_sync_events_id_seq', 1)",
    "another's certificate": CERTIFICATE.format("other_mentor"),
    "a certificate given to another's mentor": "UPDATE certificates SET mentor_id = %(other_mentor)s",
    "another's pause": PAUSE.format("other_mentor", "leave", "%(me)s"),
    **{f"a look at {table}": f"SELECT FROM {table}" for table in CERTJOBS_OWN},
}
"""42501; each right is in test_grants.py."""

IN_VAIN = {
    "another's name": "UPDATE mentors SET full_name = 'x' WHERE id = %(other_mentor)s",
    "another's certificate": "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(other_mentor)s",
    "another's pause": LIFT.format("%(me)s") + " WHERE mentor_id = %(other_mentor)s",
    "certjob's own pause": LIFT.format("%(me)s") + " WHERE reason = 'certification_expired'",
    "a pause that is over": "UPDATE mentor_pauses SET lifted_by = %(me)s WHERE reason = 'over'",
}
"""No row, as if there were none."""


@pytest.fixture
def values(ours: Organisation, theirs: Organisation) -> dict[str, Any]:
    """What statements name."""
    return {
        "me": str(ours.coordinator),
        "mentor": ours.mentor,
        "organisation": ours.id,
        "other": theirs.id,
        "other_mentor": theirs.mentor,
    }


def outcome(api: Connection, statement: str, values: dict[str, Any]) -> object:
    """How many rows a coordinator of ours touches with a statement, or the SQLSTATE; it is rolled back."""
    try:
        with api.transaction(force_rollback=True), logged_in(api, values["me"]):
            return api.execute(statement.encode(), values).rowcount
    except psycopg.Error as error:
        return error.sqlstate


def seen(api: Connection) -> dict[str, int]:
    return {table: count(api, table) for table in READABLE}


@pytest.fixture
def evil(owner: Connection) -> None:
    """A schema in which users may make what they like."""
    owner.execute("CREATE SCHEMA evil")
    owner.execute("GRANT ALL ON SCHEMA evil TO authenticated")


def test_a_coordinator_reads_whole_rows_of_the_own_organisation_only(
    api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
) -> None:
    """There are two rows in each table; each coordinator sees one. The app's server sees all: service_role."""
    assert seen(owner) == dict.fromkeys(READABLE, 2)

    for organisation in (ours, theirs):
        with logged_in(api, organisation.coordinator):
            assert seen(api) == dict.fromkeys(READABLE, 1)
            assert api.execute("SELECT organisation_id FROM portal_alerts").fetchall() == [(organisation.id,)]
    with acting(api, "service_role"):
        assert count(api, "mentors") == 2


def test_a_coordinator_hears_of_the_own_organisations_unresolved_failures_only(
    api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
) -> None:
    """Realtime asks for the changed row by its key, as each listener; what it gets, it tells."""
    by_key = "SELECT 1 FROM dynamics_sync_failures WHERE id = %s"
    keys = dict(owner.execute("SELECT mentor_id, id FROM dynamics_sync_failures").fetchall())

    with logged_in(api, ours.coordinator):
        own = api.execute(by_key, (keys[ours.mentor],)).fetchall()
        other = api.execute(by_key, (keys[theirs.mentor],)).fetchall()
    owner.execute("UPDATE dynamics_sync_failures SET resolved_at = now()")
    with logged_in(api, ours.coordinator):
        resolved = api.execute(by_key, (keys[ours.mentor],)).fetchall()

    assert (own, other, resolved) == ([(1,)], [], [])


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
    api: Connection, owner: Connection, ours: Organisation, values: dict[str, Any]
) -> None:
    Facts(owner).pause(ours.mentor, reason="certification_expired", actor="certjob")
    owner.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor, lifted_at, lifted_by)"
        " VALUES (%(mentor)s, 'over', 'somebody', now(), 'somebody')",
        values,
    )

    found = {name: outcome(api, statement, values) for name, statement in (ALLOWED | REFUSED | IN_VAIN).items()}

    assert found == dict.fromkeys(ALLOWED, 1) | dict.fromkeys(REFUSED, "42501") | dict.fromkeys(IN_VAIN, 0)


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


def test_anon_reads_and_writes_nothing(api: Connection, ours: Organisation) -> None:
    """Even with the claims of a coordinator: it is the role that counts."""
    statements = [f"SELECT FROM {table}" for table in READABLE + CERTJOBS_OWN]
    for table in sorted({*READABLE, *CERTJOBS_OWN} - {"portal_alerts"}):  # a view of several takes no writes
        statements += [f"DELETE FROM {table}", f"INSERT INTO {table} DEFAULT VALUES"]
    for statement in statements:
        with pytest.raises(DENIED), acting(api, "anon", sub=ours.coordinator):
            api.execute(statement.encode())


def test_a_forged_claim_opens_nothing(api: Connection, ours: Organisation) -> None:
    """Only `sub` counts, and PostgREST lets nobody write it: the others may say what they like."""
    for claims in (
        {},
        {"sub": None},
        {"sub": "00000000-0000-0000-0000-000000000000"},
        {"sub": STRANGER},
        {"sub": STRANGER, "role": "service_role"},
        {"sub": STRANGER, "app_metadata": {"organisation_id": str(ours.id)}},
        {"user_id": str(ours.coordinator)},
        {"email": "eva@example.org"},
    ):
        with acting(api, "authenticated", **claims):
            assert seen(api) == NOTHING, claims
        with pytest.raises(DENIED), acting(api, "authenticated", **claims):
            api.execute(CERTIFICATE.format("mentor").encode(), {"mentor": ours.mentor})
    for sub in ("", "' OR true --", "not-a-uuid", "*"):
        with pytest.raises(psycopg.errors.InvalidTextRepresentation), acting(api, "authenticated", sub=sub):
            count(api, "mentors")


def test_the_coordinators_row_counts_at_once_though_the_token_lives_on(
    api: Connection, owner: Connection, ours: Organisation, theirs: Organisation
) -> None:
    """Moved: the new organisation only. Deleted: nothing."""
    me = ours.coordinator
    owner.execute("UPDATE coordinators SET organisation_id = %s, email = 'm@x.org' WHERE id = %s", (theirs.id, me))
    with logged_in(api, me):
        moved = api.execute("SELECT id FROM mentors").fetchall()
    owner.execute("DELETE FROM coordinators WHERE id = %s", (me,))

    with logged_in(api, me):
        deleted = seen(api)
    with pytest.raises(DENIED), logged_in(api, me):
        api.execute(PAUSE.format("mentor", "leave", "%(me)s").encode(), {"mentor": ours.mentor, "me": str(me)})

    assert (moved, deleted) == ([(theirs.mentor,)], NOTHING)


@pytest.mark.usefixtures("evil")
class TestCoordinatorsWhoMayWriteSql:
    """Objects of their own, under the names of others."""

    def test_no_search_path_and_no_temporary_table_deceives_the_policies(
        self, api: Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """Earlier on the path: a table of coordinators, a function uid(), an operator."""
        with logged_in(api, STRANGER):
            for schema in ("evil", "pg_temp"):
                for table, key in (("coordinators", STRANGER), ("mentors", theirs.mentor)):
                    rows = f"SELECT '{key}'::uuid AS id, '{theirs.id}'::uuid AS organisation_id"
                    api.execute(f"CREATE TABLE {schema}.{table} AS {rows}".encode())
            body = f"SELECT '{ours.coordinator}'::uuid"
            api.execute(f"CREATE FUNCTION evil.uid() RETURNS uuid LANGUAGE sql AS $${body}$$".encode())
            api.execute("CREATE FUNCTION evil.same(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
            api.execute("CREATE OPERATOR evil.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = evil.same)")

        api.execute("SET search_path = evil, pg_temp, auth, public, pg_catalog")
        with logged_in(api, STRANGER):
            assert seen(api) == NOTHING
        with pytest.raises(DENIED), logged_in(api, STRANGER):
            api.execute("SELECT public.request_portal_resync(%s)", (theirs.mentor,))

    @pytest.mark.usefixtures("theirs")
    def test_a_function_in_a_condition_does_not_get_to_see_hidden_rows(
        self, api: Connection, ours: Organisation
    ) -> None:
        """A cheap function that tells what it is given is asked only about rows that the policy has let through."""
        told: list[str] = []
        api.add_notice_handler(lambda notice: told.append(notice.message_primary or ""))

        with logged_in(api, ours.coordinator):
            api.execute(
                "CREATE FUNCTION evil.tell(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001"
                " AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$"
            )
            api.execute("SELECT FROM mentors WHERE evil.tell(member_no)")
            api.execute("SELECT FROM portal_alerts WHERE evil.tell(member_no)")

        assert told == ["hlf-1", "hlf-1"]

    def test_temporary_types_of_usual_names_run_nothing_as_the_owner(self, api: Connection, ours: Organisation) -> None:
        """pg_temp is looked into first for types unless it is named, and a domain's check is code of the caller's."""
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
    me = str(ours.coordinator)
    with logged_in(api, ours.coordinator):
        api.execute("UPDATE mentor_pauses SET lifted_at = %s, lifted_by = %s", (time, me))
        api.execute("UPDATE mentors SET left_at = %s", (time,))
        api.execute("UPDATE certificates SET revoked_at = %s", (time,))
        api.execute(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at) VALUES (%s, 'leave', %s, %s)",
            (ours.mentor, me, time),
        )

    environment = {
        "CERTJOB_DATABASE_URL": psycopg.conninfo.make_conninfo(supabase_url, options="-c role=certjob_worker"),
        "CERTJOB_NOTIFY_URL": "maildir:mail",
        "CERTJOB_MAIL_FROM": "post@hlf.example",
    }
    story = run_in_process("explain", "hlf-1", environment=environment, folder=tmp_path)
    night = run_in_process("run", environment=environment, folder=tmp_path)

    assert (story.returncode, story.stderr) == (0, "")
    assert "Has left" in story.stdout
    assert night.returncode == 3, night  # the portal is not set up here
    assert owner.execute("SELECT status FROM certificates").fetchall() == [("revoked",)]
