"""certjob in a Supabase project: the app's roles, excess rights that `check` finds, and Realtime."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from certjob import database
from certjob.database import Connection, migrations
from tests.conftest import Certjob
from tests.database import supabase
from tests.database.supabase import CUSTOM_SCHEMA_GUIDE, DENIED, acting, furnish, logged_in
from tests.support.own_server import Cluster, data_folder


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
        return {row[0] for row in database.fetch(owner, "list_excess_rights")}

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


@pytest.fixture(scope="module")
def realtime() -> Iterator[Connection]:
    """The owner's connection to a project on a server with ``wal_level = logical``, as Realtime needs it."""
    with data_folder("realtime") as folder, Cluster(folder, wal_level="logical", fsync="off") as cluster:
        cluster.restart()
        cluster.make("realtime", "template0")
        with database.connect(cluster.url("realtime")) as owner:
            supabase.set_up(owner)
            migrations.migrate(owner)
            owner.execute("SET search_path = certjob")
            owner.execute("SELECT pg_create_logical_replication_slot('realtime', 'pgoutput')")
            yield owner
            owner.execute("SELECT pg_drop_replication_slot('realtime')")


def decoded(owner: Connection) -> list[tuple[str, str, list[str | None]]]:
    """Return the changes in the slot: operation, table and the columns of the row (None: null, or not sent)."""
    names: dict[int, str] = {}
    changes = []
    messages = (
        "SELECT data FROM pg_logical_slot_get_binary_changes("
        "'realtime', NULL, NULL, 'proto_version', '1', 'publication_names', 'supabase_realtime')"
    )
    for (data,) in owner.execute(messages.encode()).fetchall():
        kind, relation = chr(data[0]), int.from_bytes(data[1:5], "big")
        if kind == "R":
            names[relation] = ".".join(name.decode() for name in data[5:].split(b"\0", 2)[:2])
        if kind in "IUD":
            assert data[5:6] == (b"K" if kind == "D" else b"N"), "DELETE sends the key, INSERT and UPDATE the new row"
            columns: list[str | None] = []
            rest = data[8:]
            while rest:
                length = int.from_bytes(rest[1:5], "big") if rest[:1] == b"t" else -4
                columns.append(rest[5 : 5 + length].decode() if length >= 0 else None)
                rest = rest[5 + length :]
            changes.append((kind, names[relation], columns))
    return changes


def selected(connection: Connection, key: object, *listeners: AbstractContextManager[object]) -> list[int | None]:
    """Return the number of rows that each role selects by the key, as Realtime does before it sends; None: rejected."""
    found: list[int | None] = []
    for listener in listeners:
        try:
            with listener:
                found.append(
                    connection.execute("SELECT FROM certjob.dynamics_sync_failures WHERE id = %s", (key,)).rowcount
                )
        except DENIED:
            found.append(None)
    return found


def test_realtime_receives_failures_only_and_a_delete_only_the_key(realtime: Connection) -> None:
    """Realtime sends a DELETE to every subscriber, without a check of the row."""
    ours, theirs = (furnish(realtime, slug, api=realtime) for slug in ("hlf", "nhf"))
    ((key,),) = ours.facts.rows("SELECT id FROM dynamics_sync_failures WHERE mentor_id = %s", ours.mentor)

    def selected_by_each_role() -> list[int | None]:
        coordinators = (logged_in(realtime, organisation.coordinator) for organisation in (ours, theirs))
        return selected(realtime, key, *coordinators, acting(realtime, "service_role"), acting(realtime, "anon"))

    realtime.execute("UPDATE dynamics_sync_failures SET attempts = 2 WHERE id = %s", (key,))
    changes = decoded(realtime)
    assert {table for _, table, _ in changes} == {"certjob.dynamics_sync_failures"}
    assert [kind for kind, _, row in changes if row[0] == str(key)] == ["I", "U"]
    assert selected_by_each_role() == [1, 0, 1, None]

    realtime.execute("UPDATE dynamics_sync_failures SET resolved_at = now() WHERE id = %s", (key,))
    assert selected_by_each_role() == [0, 0, 1, None]
    realtime.execute("DELETE FROM dynamics_sync_failures WHERE id = %s", (key,))
    *_, (kind, _, row) = decoded(realtime)
    assert (kind, row[0], {*row[1:]}) == ("D", str(key), {None})
