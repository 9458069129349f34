"""`certjob check --as UUID`: what a coordinator sees and may do, tried on a database of Supabase's shape."""

import json
from collections.abc import Callable
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from certjob import database
from tests.support.app_rows import Organisation
from tests.support.command_line import Finished, run_in_process

Check = Callable[..., dict[str, str]]
"""Runs the command as that user of the app and returns its findings about them, as ``verdict: message``."""

NAMES = ("coordinator", "other organisations", "certjob's columns", "coordinator's resync")


@pytest.fixture
def check_as(bare_environment: dict[str, str], supabase_url: str, tmp_path: Path) -> Check:
    def run(user_id: UUID, url: str = supabase_url) -> dict[str, str]:
        environment = bare_environment | {"CERTJOB_DATABASE_URL": url}
        result: Finished = run_in_process(
            "check", "--as", str(user_id), "--json", environment=environment, folder=tmp_path
        )
        checks = json.loads(result.stdout)["checks"]
        return {one["check"]: f"{one['verdict']}: {one['message']}" for one in checks if one["check"] in NAMES}

    return run


def rows(owner: database.Connection) -> list[tuple[object, ...]]:
    """What a resync changes."""
    return owner.execute(
        "SELECT m.portal_visible, m.review_on::text, e.version, e.status FROM mentors AS m"
        " JOIN portal_sync_events AS e ON e.mentor_id = m.id ORDER BY m.id"
    ).fetchall()


def test_a_coordinator_sees_the_own_organisation_and_may_ask_for_a_resync(
    check_as: Check, owner: database.Connection, ours: Organisation, theirs: Organisation
) -> None:
    """Four findings, all well; and nothing has changed."""
    owner.execute("UPDATE mentors SET portal_visible = false")
    before = rows(owner)

    assert check_as(ours.coordinator) == {
        "coordinator": "ok: sees hlf with 1 mentor and 1 alert of the portal",
        "other organisations": "ok: sees no row of theirs (asked for 1 mentor)",
        "certjob's columns": "ok: may not be written",
        "coordinator's resync": f"ok: request_portal_resync works (tried for {ours.mentor}, and taken back)",
    }
    assert rows(owner) == before


def test_whoever_is_no_coordinator_sees_nothing(check_as: Check, ours: Organisation) -> None:
    """With the command that would make them one."""
    found = check_as(uuid4())

    assert found["coordinator"] == "warn: no coordinator has this id, so the app shows nothing"
    assert found["other organisations"].startswith("ok: sees no row")


OTHERS, COLUMNS, RESYNC = NAMES[1:]


@pytest.mark.parametrize(
    ("mistake", "check", "finding"),
    [
        (
            "CREATE POLICY all_of_them ON mentors FOR SELECT TO authenticated USING (true)",
            OTHERS,
            "fail: sees rows of theirs in mentors",
        ),
        (
            "INSERT INTO held_reviews (organisation_id, what, as_of, reason, mentors)"
            " SELECT organisation_id, 'pauses', '2026-03-10', 'too many', 1 FROM mentors;"
            "INSERT INTO review_problems (mentor_id, reason, as_of) SELECT id, 'broken', '2026-03-10' FROM mentors;"
            "ALTER TABLE certificates DISABLE ROW LEVEL SECURITY;"
            "ALTER TABLE held_reviews DISABLE ROW LEVEL SECURITY;"
            "ALTER TABLE review_problems DISABLE ROW LEVEL SECURITY;"
            "ALTER TABLE coordinators DISABLE ROW LEVEL SECURITY",
            OTHERS,
            "fail: sees rows of theirs in certificates, review_problems, held_reviews, coordinators",
        ),
        (
            "REVOKE SELECT ON certificates FROM authenticated",
            OTHERS,
            "fail: is refused what the app reads: permission denied for table certificates",
        ),
        (
            "GRANT UPDATE ON mentors TO authenticated",
            COLUMNS,
            "fail: may write mentors.portal_visible, write mentors.review_on",
        ),
        ("GRANT SELECT ON job_runs TO authenticated", COLUMNS, "fail: may read job_runs"),
        (
            "REVOKE EXECUTE ON FUNCTION request_portal_resync(uuid) FROM authenticated",
            RESYNC,
            "fail: request_portal_resync is refused",
        ),
        (
            'DROP POLICY "coordinators read their own" ON organisations',
            NAMES[0],
            "fail: sees the organisations [] in place of [hlf]",
        ),
    ],
)
def test_what_was_opened_or_closed_by_hand_is_found(
    check_as: Check,
    owner: database.Connection,
    ours: Organisation,
    theirs: Organisation,
    mistake: str,
    check: str,
    finding: str,
) -> None:
    """The other three findings stay as they are."""
    owner.execute("UPDATE mentors SET portal_visible = false")
    owner.execute(mistake.encode())

    found = check_as(ours.coordinator)

    assert found[check].startswith(finding)
    assert [name for name in NAMES if not found[name].startswith("ok")] == [check]


def test_where_no_resync_can_be_tried_it_says_why(
    check_as: Check, owner: database.Connection, ours: Organisation
) -> None:
    """A mentor whom somebody holds is not waited for; whom a review waits for, rightly nobody may show."""
    with owner.transaction():
        owner.execute("SELECT FROM mentors FOR UPDATE")
        held = check_as(ours.coordinator)["coordinator's resync"]
    owner.execute("UPDATE portal_sync_events SET status = 'delivered'")
    owner.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'somebody'")
    owner.execute("UPDATE certificates SET expires_on = issued_on")

    assert held == "skip: not checked: no mentor of hlf with a contact ID is free right now"
    waits = check_as(ours.coordinator)["coordinator's resync"]
    assert waits.startswith("skip: not checked: all mentors of hlf wait for a review")


def test_the_jobs_own_login_cannot_tell(
    check_as: Check, supabase_url: str, server_url: str, ours: Organisation
) -> None:
    """It may not act for people, and should not be able to."""
    name = f"certjob_test_login_{uuid4().hex[:8]}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN IN ROLE certjob_worker".encode())
    try:
        found = check_as(ours.coordinator, psycopg.conninfo.make_conninfo(supabase_url, user=name))
    finally:
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(f"DROP ROLE {name}".encode())

    assert found == {
        "coordinator": "skip: not checked: this login may not take the role authenticated; "
        "use the owner's, on Supabase postgres"
    }


def test_a_plain_database_has_no_app(check_as: Check, database_url: str) -> None:
    """Said, instead of a row of failures."""
    found = check_as(uuid4(), database_url)

    assert list(found) == ["coordinator"]
    assert found["coordinator"].startswith("skip: not checked: this database is not Supabase's")
