"""certjob in a Supabase project: the rights of the app's server, and excess rights that `db migrate` revokes."""

import psycopg
import pytest

from certjob.database import Connection, migrations
from tests.database.supabase import DENIED, Organisation, acting


def test_service_role_writes_facts_and_reads_alerts(api: Connection) -> None:
    """It may use the upserts of supabase-js."""
    upsert = (
        "INSERT INTO mentors (id, organisation_id, member_no, full_name)"
        " SELECT 'aaaaaaaa-0000-4000-8000-000000000000', id, 'M1', 'Kari' FROM organisations"
        " ON CONFLICT (id) DO UPDATE SET organisation_id = excluded.organisation_id,"
        " member_no = excluded.member_no, full_name = excluded.full_name"
    )
    with acting(api, "service_role"):
        api.execute("INSERT INTO organisations (slug, name, portal) VALUES ('hlf', 'HLF', 'dynamics')")
        for _ in range(2):
            api.execute(upsert)
        api.execute(
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
            " SELECT id, 'likeperson', '2025-01-01', '2027-01-01' FROM mentors"
        )
        api.execute("INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'leave', 'app' FROM mentors")
        api.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'app'")
        assert api.execute("SELECT FROM alerts").rowcount == 0
        assert api.execute("SELECT member_no, full_name FROM mentors").fetchall() == [("M1", "Kari")]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'other', 'certjob' FROM mentors",
        "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'certjob' WHERE actor = 'app'",
        "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'app' WHERE actor = 'certjob'",
        "DELETE FROM mentor_pauses WHERE actor = 'certjob'",
    ],
    ids=["opens as certjob", "lifts as certjob", "lifts certjob's", "deletes certjob's"],
)
def test_service_role_cannot_change_pauses_of_certjob(ours: Organisation, statement: str) -> None:
    """They store kinds whose certificates may be gone, and no review follows a change that certjob has signed."""
    ours.facts.pause(ours.mentor, reason="certification_expired", actor="certjob")
    ours.facts.pause(ours.mentor, reason="holiday", actor="app")
    before = ours.facts.rows("SELECT * FROM mentor_pauses ORDER BY id")

    with pytest.raises(DENIED, match="only the job opens, lifts and deletes"), acting(ours.api, "service_role"):
        ours.api.execute(statement.encode())

    assert ours.facts.rows("SELECT * FROM mentor_pauses ORDER BY id") == before


UNCONFIRMED_HIDES = {
    "open": "UPDATE portal_sync_events SET status = 'pending'",
    "blocked": "UPDATE portal_sync_events SET status = 'blocked'",
    "withdrawn": "UPDATE organisations SET portal = NULL; UPDATE portal_sync_events SET status = 'withdrawn'",
    "contact removed": "UPDATE portal_sync_events SET claim_contact_id = m.dynamics_contact_id, status = 'blocked'"
    " FROM mentors AS m; UPDATE mentors SET dynamics_contact_id = NULL; UPDATE mentors SET portal_visible = false",
}


@pytest.fixture(params=UNCONFIRMED_HIDES)
def unconfirmed(ours: Organisation, request: pytest.FixtureRequest) -> Organisation:
    """An organisation with one mentor, who has a hide that the portal has not confirmed, and an alert about it."""
    ours.facts.connection.execute(
        "UPDATE cert_notification_log SET status = 'sent'; DELETE FROM dynamics_sync_failures;"
        " UPDATE portal_sync_events SET wanted_at = '2026-03-01'; UPDATE mentors SET portal_visible = false"
    )
    ours.facts.connection.execute(UNCONFIRMED_HIDES[request.param].encode())
    ours.facts.connection.execute("UPDATE mentors SET left_at = now()")
    return ours


def delete_as_app(ours: Organisation) -> None:
    with acting(ours.api, "service_role"):
        ours.api.execute("DELETE FROM mentors WHERE id = %s", (ours.mentor,))


def test_mentor_with_an_unconfirmed_hide_is_not_deleted(unconfirmed: Organisation) -> None:
    """The alert would end with the row, and no one would notice that the person stays visible."""
    with pytest.raises(psycopg.errors.RestrictViolation, match="a hide is not confirmed") as rejected:
        delete_as_app(unconfirmed)

    hint = rejected.value.diag.message_hint or ""
    assert hint.startswith(f"set left_at and run `certjob resync {unconfirmed.mentor}`")
    assert "add --hidden-by-hand, then delete" in hint


def test_mentor_is_deleted_if_someone_has_hidden_the_contact_by_hand(unconfirmed: Organisation) -> None:
    """So that a person can be erased."""
    unconfirmed.asks("SELECT certjob.confirm_hidden(%(mentor)s, 'erased')", mentor=unconfirmed.mentor)

    delete_as_app(unconfirmed)

    assert unconfirmed.facts.rows("SELECT FROM mentors") == []


@pytest.mark.parametrize("unconfirmed", ["contact removed"], indirect=True)
def test_mentor_is_deleted_if_another_mentor_has_the_contact_now(unconfirmed: Organisation) -> None:
    """Then the portal shows or hides it for the other mentor."""
    ((contact,),) = unconfirmed.facts.rows("SELECT claim_contact_id FROM portal_sync_events")
    unconfirmed.facts.mentor(unconfirmed.id, contact_id=str(contact))

    delete_as_app(unconfirmed)

    assert len(unconfirmed.facts.rows("SELECT FROM mentors")) == 1


def test_coordinators_write_no_facts_that_are_copied_from_an_app(ours: Organisation) -> None:
    """The next copy would undo it, and a wrong contact would be shown in between. They pause nevertheless."""
    owner = ours.facts.connection
    change = "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() RETURNING 1"
    enter = (
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        " VALUES (%(mentor)s, 'x', '2026-03-01', '2028-03-01')"
    )
    pause = "INSERT INTO mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'leave', %(me)s)"
    to_do = "SELECT action FROM alerts WHERE cause = 'contact_not_found'"
    owner.execute("UPDATE dynamics_sync_failures SET failure_code = 'contact_not_found'")
    owner.execute("UPDATE mentors SET portal_visible = false; UPDATE portal_sync_events SET attempts = 1")
    assert ours.asks(to_do) == [("correct_contact_id",)]

    owner.execute("CREATE SCHEMA certjob_mirror")
    owner.execute("SELECT certjob_private.set_up_rights()")

    for statement in (change, enter, "UPDATE certificates SET revoked_at = now()"):
        with pytest.raises(DENIED):
            ours.asks(statement)
    ours.asks(pause)
    assert ours.asks(to_do) == [("correct_in_app",)]

    owner.execute("DROP SCHEMA certjob_mirror")
    migrations.migrate(owner)
    assert ours.asks(change) == [(1,)]


def test_migrate_revokes_each_excess_right(owner: Connection) -> None:
    """On tables, columns, functions and schemas, as Supabase's guide "Using Custom Schemas" grants them."""
    may_never_review = "has_column_privilege('authenticated', 'certjob.mentors', 'review_on', 'UPDATE')"
    for grant, has in (
        ("GRANT ALL ON ALL TABLES IN SCHEMA certjob TO anon, authenticated, service_role", may_never_review),
        ("GRANT SELECT ON mentors TO anon", "has_table_privilege('anon', 'certjob.mentors', 'SELECT')"),
        ("GRANT UPDATE (review_on) ON mentors TO authenticated", may_never_review),
        (
            "GRANT EXECUTE ON FUNCTION prune TO PUBLIC",
            "has_function_privilege('anon', 'certjob.prune(timestamptz, integer)', 'EXECUTE')",
        ),
        ("GRANT USAGE ON SCHEMA certjob TO anon", "has_schema_privilege('anon', 'certjob', 'USAGE')"),
    ):
        owner.execute(grant.encode())
        assert owner.execute(f"SELECT {has}".encode()).fetchone() == (True,), grant
        migrations.migrate(owner)
        assert owner.execute(f"SELECT {has}".encode()).fetchone() == (False,), grant


def test_migrate_states_rights_and_policies_again(owner: Connection) -> None:
    """Without a right a run fails. Without the policy of the worker it would not see a mentor."""
    rights = "SELECT relname, relacl FROM pg_class WHERE relnamespace = 'certjob'::regnamespace ORDER BY 1"
    policies = "SELECT * FROM pg_policies WHERE schemaname = 'certjob' AND permissive = 'PERMISSIVE' ORDER BY 2, 3"
    before = [owner.execute(query.encode()).fetchall() for query in (rights, policies)]
    owner.execute("REVOKE ALL ON ALL TABLES IN SCHEMA certjob FROM certjob_worker, authenticated, service_role")
    owner.execute("DROP POLICY worker ON mentors; DROP POLICY reads_own ON mentors")

    migrations.migrate(owner)

    assert len(before[1]) > 20
    assert [owner.execute(query.encode()).fetchall() for query in (rights, policies)] == before
