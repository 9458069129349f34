"""certjob in a Supabase project: the rights of the app's server, and excess rights that `check` finds."""

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, migrations
from tests.conftest import Certjob
from tests.database.supabase import CUSTOM_SCHEMA_GUIDE, DENIED, Organisation, acting


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
    assert "run `certjob acknowledge`, then delete" in hint


def test_mentor_with_an_unconfirmed_hide_is_deleted_if_someone_has_acknowledged_it(unconfirmed: Organisation) -> None:
    """So that a person can be erased. The acknowledgement must be about this alert, and not over."""
    owner = unconfirmed.facts.connection
    owner.execute(
        "INSERT INTO acknowledgements (alert_id, fingerprint, because, acknowledged_by)"
        " SELECT alert_id, fingerprint, 'hidden by hand', 'x' FROM all_alerts WHERE kind = 'may_be_visible'"
    )
    for state in ("fingerprint = 'x'", "until = current_date - 1", "ended_at = now()"):
        with owner.transaction(force_rollback=True):
            owner.execute(f"UPDATE acknowledgements SET {state}".encode())
            with pytest.raises(psycopg.errors.RestrictViolation), owner.transaction():
                owner.execute("DELETE FROM mentors")

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
    assert "authenticated: UPDATE on mentors" in str(database.fetch(owner, "list_excess_rights"))
    owner.execute("SELECT certjob_private.set_up_rights()")

    assert database.fetch(owner, "list_excess_rights") == []
    for statement in (change, enter, "UPDATE certificates SET revoked_at = now()"):
        with pytest.raises(DENIED):
            ours.asks(statement)
    ours.asks(pause)
    assert ours.asks(to_do) == [("correct_in_app",)]

    owner.execute("DROP SCHEMA certjob_mirror")
    migrations.migrate(owner)
    assert ours.asks(change) == [(1,)]


def test_each_excess_right_is_found_until_the_next_migrate(owner: Connection) -> None:
    """On tables, columns, functions and schemas. `db migrate` revokes all of them."""
    for grant, found in (
        ("GRANT SELECT ON mentors TO anon", "anon: SELECT on mentors"),
        ("GRANT UPDATE (review_on) ON mentors TO authenticated", "authenticated: UPDATE on mentors"),
        ("GRANT EXECUTE ON FUNCTION prune TO authenticated", "authenticated: EXECUTE on prune"),
        ("GRANT USAGE ON SCHEMA certjob TO anon", "anon: USAGE on the schema certjob"),
    ):
        owner.execute(grant.encode())
        assert [row[0] for row in database.fetch(owner, "list_excess_rights")] == [found]
        migrations.migrate(owner)
        assert database.fetch(owner, "list_excess_rights") == []


def test_migrate_revokes_the_grants_of_supabases_guide(
    here: Certjob, owner: Connection, ours: Organisation, supabase_url: str
) -> None:
    """With them a coordinator could exclude a mentor from all reviews, so `check` fails and names the next step."""
    never = "UPDATE mentors SET review_on = 'infinity' RETURNING review_on::text"
    owner.execute(CUSTOM_SCHEMA_GUIDE.encode())
    assert ours.asks(never) == [("infinity",)]

    failed = here("check", "-q", CERTJOB_DATABASE_URL=supabase_url)
    migrated = here("db", "migrate", CERTJOB_DATABASE_URL=supabase_url)
    owner.execute("CREATE TABLE certjob.later ()")
    mended = here("check", "-q", CERTJOB_DATABASE_URL=supabase_url)

    assert failed.returncode == 2
    assert "roles of the app may do more than certjob grants: anon: DELETE on" in failed.stdout
    assert "as the tables' owner, run `certjob db migrate`" in failed.stdout
    assert (migrated.returncode, "rights" in mended.stdout) == (0, False)
    with pytest.raises(DENIED):
        ours.asks(never)
