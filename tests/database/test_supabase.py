"""certjob in a Supabase project: the app's roles, excess rights that `check` finds, and Realtime."""

from collections.abc import Iterator

import pytest

from certjob import database
from certjob.database import Connection, migrations
from tests.conftest import Certjob
from tests.support import supabase
from tests.support.app_rows import DENIED, Organisation, furnish
from tests.support.supabase import CUSTOM_SCHEMA_GUIDE, acting


@pytest.fixture(params=[True, False], ids=["before 30 October 2026", "after"])
def project(request: pytest.FixtureRequest, empty_database_url: str) -> Iterator[Connection]:
    """The owner's connection to a migrated project with the default privileges of that time."""
    with database.connect(empty_database_url) as owner:
        supabase.set_up(owner, default_privileges=request.param)
        migrations.migrate(owner)
        owner.execute("SET search_path = certjob, public")
        yield owner


def test_service_role_writes_facts_and_reads_alerts(project: Connection) -> None:
    """It may use the upserts of supabase-js, but it cannot write derived columns."""
    with acting(project, "service_role"):
        project.execute("INSERT INTO organisations (slug, name, portal) VALUES ('hlf', 'HLF', 'dynamics')")
        for name in ("Kari", "Kari Nordmann"):
            project.execute(
                "INSERT INTO mentors (id, organisation_id, member_no, full_name)"
                " SELECT 'aaaaaaaa-0000-4000-8000-000000000000', id, 'M1', %s FROM organisations"
                " ON CONFLICT (id) DO UPDATE SET organisation_id = excluded.organisation_id,"
                " member_no = excluded.member_no, full_name = excluded.full_name",
                (name,),
            )
        project.execute(
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
            " SELECT id, 'likeperson', '2025-01-01', '2027-01-01' FROM mentors"
        )
        project.execute("INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'leave', 'app' FROM mentors")
        project.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'app'")
        assert project.execute("SELECT FROM alerts").rowcount == 0
        assert project.execute("SELECT full_name FROM mentors").fetchall() == [("Kari Nordmann",)]
    for derived in (
        "mentors SET review_on = 'infinity'",
        "mentors SET portal_visible = true",
        "certificates SET status = 'valid'",
    ):
        with pytest.raises(DENIED), acting(project, "service_role"):
            project.execute(f"UPDATE {derived}".encode())


def test_coordinators_see_their_organisation_and_visitors_nothing(project: Connection) -> None:
    """The result does not depend on Supabase's default privileges."""
    ours, theirs = (furnish(project, slug, api=project) for slug in ("hlf", "nhf"))

    assert ours.asks("SELECT id FROM mentors") == [(ours.mentor,)]
    assert theirs.asks("SELECT mentor_id FROM open_pushes") == [(theirs.mentor,)]
    for asked in ("SELECT FROM certjob.mentors", "SELECT certjob.request_portal_resync(gen_random_uuid())"):
        with pytest.raises(DENIED), acting(project, "anon"):
            project.execute(asked.encode())


EXCESS = {
    "authenticated: INSERT on alerts": None,
    "anon: SELECT on mentors": "GRANT SELECT ON mentors TO anon",
    "authenticated: UPDATE on mentors": "GRANT UPDATE (review_on) ON mentors TO authenticated",
    "authenticated: SELECT on job_runs": "GRANT SELECT (id) ON job_runs TO authenticated",
    "authenticated: EXECUTE on prune": "GRANT EXECUTE ON FUNCTION prune TO authenticated",
    "everyone: EXECUTE on pause_changed": "GRANT EXECUTE ON FUNCTION certjob_private.pause_changed TO PUBLIC",
    "anon: USAGE on the schema certjob": "GRANT USAGE ON SCHEMA certjob TO anon",
    "authenticated: CREATE on the schema certjob": "GRANT CREATE ON SCHEMA certjob TO authenticated",
    "anon: USAGE on portal_sync_events_id_seq": "GRANT USAGE ON SEQUENCE portal_sync_events_id_seq TO anon",
}


def test_check_lists_each_excess_right_until_the_next_migrate(owner: Connection) -> None:
    """`db migrate` revokes all of them."""

    def found() -> set[str]:
        return {f"{role}: {what} on {name}" for role, what, name in database.fetch(owner, "list_excess_rights")}

    assert found() == set()
    for excess, grant in EXCESS.items():
        owner.execute((grant or CUSTOM_SCHEMA_GUIDE).encode())
        assert excess in found(), grant
        assert grant is None or found() == {excess}
        migrations.migrate(owner)
        assert found() == set()


def test_check_fails_after_the_grants_of_supabases_guide(here: Certjob, owner: Connection, supabase_url: str) -> None:
    """The printed next step repairs the rights."""
    owner.execute(CUSTOM_SCHEMA_GUIDE.encode())

    failed = here("check", "-q", CERTJOB_DATABASE_URL=supabase_url)
    migrated = here("db", "migrate", CERTJOB_DATABASE_URL=supabase_url)
    mended = here("check", "-q", CERTJOB_DATABASE_URL=supabase_url)

    assert failed.returncode == 2
    assert "roles of the app may do more than certjob grants: anon: DELETE on" in failed.stdout
    assert "as the tables' owner, run `certjob db migrate`" in failed.stdout
    assert (migrated.returncode, "rights" in mended.stdout) == (0, False)


def test_realtime_sends_only_unresolved_failures_to_their_coordinators(
    owner: Connection, ours: Organisation, theirs: Organisation
) -> None:
    """Realtime reads a changed row with the rights of each listener. A DELETE, which all receive, has only the key."""
    published = "SELECT schemaname, tablename FROM pg_publication_tables"
    assert owner.execute(published.encode()).fetchall() == [("certjob", "dynamics_sync_failures")]
    sent_of_a_deleted_row = "SELECT relreplident::text FROM pg_class WHERE relname = 'dynamics_sync_failures'"
    assert owner.execute(sent_of_a_deleted_row.encode()).fetchall() == [("d",)]  # the primary key
    ((key,),) = ours.facts.rows("SELECT id FROM dynamics_sync_failures WHERE mentor_id = %s", ours.mentor)
    read = "SELECT id FROM certjob.dynamics_sync_failures WHERE id = %(key)s"

    def readers() -> dict[str, int]:
        with acting(ours.api, "service_role"):
            server = ours.api.execute(read.encode(), {"key": key}).rowcount
        return {"ours": len(ours.asks(read, key=key)), "theirs": len(theirs.asks(read, key=key)), "server": server}

    assert readers() == {"ours": 1, "theirs": 0, "server": 1}
    with pytest.raises(DENIED), acting(ours.api, "anon"):
        ours.api.execute(read.encode(), {"key": key})
    owner.execute("UPDATE dynamics_sync_failures SET resolved_at = now()")
    assert readers() == {"ours": 0, "theirs": 0, "server": 1}
