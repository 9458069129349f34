"""What nobody gets through the app's roles: 42501, or no row at all."""

import json

import psycopg
import pytest

from certjob import database
from tests.support.app_rows import CERTJOBS_OWN, DENIED, READABLE, Organisation, count
from tests.support.facts import Facts
from tests.support.supabase import acting, logged_in

STRANGER = "6f1f6a2e-3c0b-4b0a-9d55-0d5a6a3c9b11"
"""A user of the app who coordinates nothing."""
DENIED_CHANGES = {
    "a certificate's status": "UPDATE certificates SET status = 'valid'",
    "a new certificate's status": "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on, status)"
    " VALUES (%(mentor)s, 'x', '2026-03-01', '2028-03-01', 'valid')",
    "a certificate's id": "UPDATE certificates SET id = gen_random_uuid()",
    "a mentor's portal value": "UPDATE mentors SET portal_visible = true",
    "a mentor's review": "UPDATE mentors SET review_on = 'infinity'",
    "a mentor's number": "UPDATE mentors SET member_no = 'x'",
    "a mentor's organisation": "UPDATE mentors SET organisation_id = %(other)s",
    "a new mentor": "INSERT INTO mentors (organisation_id, member_no) VALUES (%(organisation)s, 'M9')",
    "a mentor gone": "DELETE FROM mentors",
    "a certificate gone": "DELETE FROM certificates",
    "a pause gone": "DELETE FROM mentor_pauses",
    "the organisation's rules": "UPDATE organisations SET reminder_thresholds = '{}'",
    "a second coordinator": "INSERT INTO coordinators (organisation_id, email) VALUES (%(organisation)s, 'x@y.z')",
    "a coordinator's organisation": "UPDATE coordinators SET organisation_id = %(other)s",
    "a pause in certjob's name": "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " VALUES (%(mentor)s, 'certification_expired', 'certjob')",
    "a pause with certjob's reason": "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " VALUES (%(mentor)s, 'certification_expired', %(me)s)",
    "a pause in a colleague's name": "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " VALUES (%(mentor)s, 'leave', 'somebody')",
    "a pause lifted in a colleague's name": "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'somebody'",
    "a pause lifted in nobody's name": "UPDATE mentor_pauses SET lifted_at = now()",
    "a pause's reason": "UPDATE mentor_pauses SET reason = 'x'",
    "a pause's signature": "UPDATE mentor_pauses SET actor = %(me)s",
    "the log": "UPDATE cert_notification_log SET status = 'sent'",
    "the audit": "UPDATE certificate_transitions SET to_status = 'valid'",
    "an event": "UPDATE portal_sync_events SET visible = true",
    "a new event": "INSERT INTO portal_sync_events (mentor_id, visible) VALUES (%(mentor)s, true)",
    "a failure": "UPDATE dynamics_sync_failures SET resolved_at = now()",
    "everything": "TRUNCATE mentors CASCADE",
    "the policies": "ALTER TABLE mentors DISABLE ROW LEVEL SECURITY",
    "a policy's function": "SELECT certjob_private.coordinator_organisation_id()",
    "the roles' set-up": "SELECT certjob_private.set_up_roles()",
    "a sequence": "SELECT setval('portal_sync_events_id_seq', 1)",
    "another's certificate": "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
    " VALUES (%(other_mentor)s, 'x', '2026-03-01', '2028-03-01')",
    "a certificate given to another's mentor": "UPDATE certificates SET mentor_id = %(other_mentor)s",
    "another's pause": "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " VALUES (%(other_mentor)s, 'leave', %(me)s)",
}

IN_VAIN = {
    "another's name": "UPDATE mentors SET full_name = 'x' WHERE id = %(other_mentor)s",
    "another's certificate": "UPDATE certificates SET revoked_at = now() WHERE mentor_id = %(other_mentor)s",
    "another's pause": "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %(me)s"
    " WHERE mentor_id = %(other_mentor)s",
    "certjob's own pause": "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = %(me)s"
    " WHERE reason = 'certification_expired'",
    "a pause that is over": "UPDATE mentor_pauses SET lifted_by = %(me)s WHERE reason = 'over'",
}


def parameters(ours: Organisation, theirs: Organisation) -> dict[str, object]:
    return {
        "me": str(ours.coordinator),
        "mentor": ours.mentor,
        "organisation": ours.id,
        "other": theirs.id,
        "other_mentor": theirs.mentor,
    }


class TestDenials:
    """42501, or no row at all."""

    @pytest.mark.parametrize("what", DENIED_CHANGES)
    def test_a_coordinator_may_not_change(
        self, what: str, api: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """What is derived, what is certjob's, what is another organisation's."""
        with pytest.raises(DENIED) as denied, logged_in(api, ours.coordinator):
            api.execute(DENIED_CHANGES[what].encode(), parameters(ours, theirs))

        assert denied.value.sqlstate == "42501"

    @pytest.mark.parametrize("what", IN_VAIN)
    def test_what_a_coordinator_does_not_see_stays_as_it_is(
        self,
        what: str,
        api: database.Connection,
        owner: database.Connection,
        ours: Organisation,
        theirs: Organisation,
    ) -> None:
        """Zero rows, as if there were none."""
        Facts(owner).pause(ours.mentor, reason="certification_expired", actor="certjob")
        owner.execute(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor, lifted_at, lifted_by)"
            " VALUES (%s, 'over', 'somebody', now(), 'somebody')",
            (ours.mentor,),
        )

        with logged_in(api, ours.coordinator):
            changed = api.execute(IN_VAIN[what].encode(), parameters(ours, theirs))

        assert changed.rowcount == 0

    @pytest.mark.parametrize("table", READABLE + CERTJOBS_OWN)
    def test_anon_reads_and_writes_nothing(self, table: str, api: database.Connection, ours: Organisation) -> None:
        """Even with the claims of a coordinator: it is the role that counts."""
        for statement in ("SELECT FROM {0}", "DELETE FROM {0}", "INSERT INTO {0} DEFAULT VALUES"):
            if table == "portal_alerts" and not statement.startswith("SELECT"):
                continue  # a view of several tables takes no writes from anybody
            with pytest.raises(DENIED), acting(api, "anon", sub=ours.coordinator):
                api.execute(statement.format(table).encode())

    @pytest.mark.parametrize(
        "claims",
        [
            {},
            {"sub": None},
            {"sub": "00000000-0000-0000-0000-000000000000"},
            {"sub": STRANGER},
            {"sub": STRANGER, "role": "service_role"},
            {"sub": STRANGER, "app_metadata": {"organisation_id": "{organisation}"}},
            {"user_id": "{coordinator}"},
            {"email": "eva@example.org"},
        ],
        ids=str,
    )
    def test_a_forged_claim_opens_nothing(
        self, claims: dict[str, object], api: database.Connection, ours: Organisation
    ) -> None:
        """Only `sub` counts, and PostgREST lets nobody write it: the others may say what they like."""
        text = json.dumps(claims).replace("{coordinator}", str(ours.coordinator))
        filled = json.loads(text.replace("{organisation}", str(ours.id)))
        with acting(api, "authenticated", **filled):
            assert {table: count(api, table) for table in READABLE} == dict.fromkeys(READABLE, 0)
        with pytest.raises(DENIED), acting(api, "authenticated", **filled):
            api.execute(
                "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
                " VALUES (%s, 'x', '2026-03-01', '2028-03-01')",
                (ours.mentor,),
            )

    @pytest.mark.parametrize("sub", ["", "' OR true --", "not-a-uuid", "*"])
    def test_a_user_id_that_is_none_ends_in_an_error(
        self, sub: str, api: database.Connection, ours: Organisation
    ) -> None:
        """Not in anybody's rows."""
        with pytest.raises(psycopg.errors.InvalidTextRepresentation), acting(api, "authenticated", sub=sub):
            count(api, "mentors")

    def test_a_deleted_coordinator_sees_nothing_any_more_though_the_token_lives_on(
        self, api: database.Connection, owner: database.Connection, ours: Organisation
    ) -> None:
        """A token lasts an hour; the row counts at once."""
        with logged_in(api, ours.coordinator):
            before = count(api, "mentors")
        owner.execute("DELETE FROM coordinators WHERE id = %s", (ours.coordinator,))

        with logged_in(api, ours.coordinator):
            after = {table: count(api, table) for table in READABLE}
        with pytest.raises(DENIED), logged_in(api, ours.coordinator):
            api.execute(
                "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%s, 'leave', %s)",
                (ours.mentor, str(ours.coordinator)),
            )

        assert before == 1
        assert after == dict.fromkeys(READABLE, 0)

    def test_a_coordinator_who_moved_sees_the_new_organisation_only(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """From one statement to the next."""
        owner.execute(
            "UPDATE coordinators SET organisation_id = %s, email = 'm@x.org' WHERE id = %s",
            (
                theirs.id,
                ours.coordinator,
            ),
        )

        with logged_in(api, ours.coordinator):
            seen = api.execute("SELECT id FROM mentors").fetchall()

        assert seen == [(theirs.mentor,)]

    def test_no_search_path_and_no_temporary_table_deceives_the_policies(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """Objects of the same names, earlier on the path: a table of coordinators, a function uid(), an operator."""
        owner.execute("CREATE SCHEMA evil")
        owner.execute("GRANT ALL ON SCHEMA evil TO authenticated")
        with logged_in(api, STRANGER):
            for schema in ("evil", "pg_temp"):
                api.execute(
                    f"CREATE TABLE {schema}.coordinators AS SELECT '{STRANGER}'::uuid AS id,"
                    f" '{theirs.id}'::uuid AS organisation_id".encode()
                )
                api.execute(
                    f"CREATE TABLE {schema}.mentors AS SELECT '{theirs.mentor}'::uuid AS id,"
                    f" '{theirs.id}'::uuid AS organisation_id".encode()
                )
            body = f"SELECT '{ours.coordinator}'::uuid"
            api.execute(f"CREATE FUNCTION evil.uid() RETURNS uuid LANGUAGE sql AS $${body}$$".encode())
            api.execute("CREATE FUNCTION evil.same(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
            api.execute("CREATE OPERATOR evil.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = evil.same)")

        api.execute("SET search_path = evil, pg_temp, auth, public, pg_catalog")
        with logged_in(api, STRANGER):
            seen = {table: count(api, table) for table in READABLE}
        with pytest.raises(DENIED), logged_in(api, STRANGER):
            api.execute("SELECT public.request_portal_resync(%s)", (theirs.mentor,))

        assert seen == dict.fromkeys(READABLE, 0)

    def test_a_function_in_a_condition_does_not_get_to_see_hidden_rows(
        self, api: database.Connection, owner: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """A cheap function that tells what it is given is asked only about rows that the policy has let through."""
        owner.execute("CREATE SCHEMA evil")
        owner.execute("GRANT ALL ON SCHEMA evil TO authenticated")
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

    def test_service_role_is_still_the_apps_server(
        self, api: database.Connection, ours: Organisation, theirs: Organisation
    ) -> None:
        """It bypasses the policies as on Supabase: its key belongs on no page and in no phone."""
        with acting(api, "service_role"):
            assert count(api, "mentors") == 2
