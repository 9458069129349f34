"""From earlier schemas, with a programme's data in it, to the newest: nothing is lost, and a night runs."""

import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from certjob import database
from certjob.database import Connection, migrations
from tests.support.command_line import Finished, run_in_process
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

ALL = migrations.migrations()
INTENTS = 2
"""The first schema that has them."""
LAST = ALL[-2].version
EARLIER = [1, *range(INTENTS, LAST, 4), LAST]
"""Rows of the second schema pass through every later migration, so not each schema has to be begun from."""


@pytest.fixture
def old(request: pytest.FixtureRequest, empty_database_url: str, tmp_path: Path) -> Iterator[Connection]:
    """A database as the certjob of that version left it; ``request.param`` is the version."""
    folder = tmp_path / "earlier"
    folder.mkdir()
    for migration in ALL:
        if migration.version <= request.param and migration.path is not None:
            shutil.copy(migration.path, folder)
    with database.connect(empty_database_url) as connection:
        migrations.migrate(connection, folder)
        yield connection


def live_with(connection: Connection, version: int) -> dict[str, UUID]:
    """Data of all kinds that this schema can hold: the usual ones, and those that are just being worked on."""
    facts = Facts(connection)
    hlf = facts.organisation()
    facts.organisation("other", portal=None, thresholds=(), optional_kinds=("first-aid",))
    facts.insert("coordinators", organisation_id=hlf, full_name="Ola", email="ola@hlf.example")
    people = {
        "valid": facts.certified_mentor(hlf, TODAY + timedelta(days=300)),
        "reminded": facts.certified_mentor(hlf, TODAY + timedelta(days=20)),
        "expired": facts.certified_mentor(hlf, TODAY - timedelta(days=3)),
        "ill": facts.certified_mentor(hlf, TODAY + timedelta(days=200)),
        "hiding": facts.certified_mentor(hlf, TODAY + timedelta(days=250)),
    }
    facts.pause(people["ill"])
    if version < INTENTS:
        return people
    for statement in (
        "UPDATE mentors SET portal_visible = false WHERE id = %(hiding)s",
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, sent_at)"
        " SELECT mentor_id, 30, id, expires_on, 'sent', now() - interval '10 days'"
        " FROM certificates WHERE mentor_id = %(reminded)s",
        "INSERT INTO portal_sync_events (mentor_id, visible, attempts, claim_token, next_attempt_at)"
        " VALUES (%(hiding)s, false, 1, gen_random_uuid(), now() + interval '3 minutes')",
        "INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, attempts, error)"
        " SELECT mentor_id, id, false, 'transient', 3, 'connection reset' FROM portal_sync_events",
        "INSERT INTO portal_sync_events (mentor_id, visible, status, delivered_at)"
        " VALUES (%(valid)s, true, 'delivered', now())",
        "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)"
        " SELECT id, mentor_id, 'recorded', 'valid', '2026-02-08' FROM certificates",
        "INSERT INTO coordinator_digests (coordinator_id, digest_on, status, sent_at)"
        " SELECT id, '2026-03-09', 'sent', now() - interval '1 day' FROM coordinators",
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (gen_random_uuid(), 'run', '2026-03-09', 'host', '0.0.1', now(), 'ok')",
    ):
        connection.execute(statement.encode(), people)
    return people


RENAMED = {("coordinator_digests", "told"): "reported", ("coordinator_digests", "told_on"): "reported_on"}
"""What a later migration calls a column."""


def contents(connection: Connection) -> dict[str, list[dict[str, object]]]:
    """Every row of every table, by the table's name."""
    names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
    return {
        name: [json.loads(row[0]) for row in connection.execute(f"SELECT to_jsonb(t)::text FROM {name} AS t".encode())]
        for (name,) in names
    }


@pytest.mark.parametrize("old", EARLIER, indirect=True)
def test_every_row_survives_and_a_night_runs(old: Connection) -> None:
    """Whatever was sent is not sent again, what was open goes out, what is due is done; a changed fact is noticed."""
    ((version,),) = old.execute("SELECT max(version) FROM certjob_migrations").fetchall()
    people = live_with(old, version)
    before = contents(old)

    applied = migrations.migrate(old)

    assert [each.version for each in applied] == [each.version for each in ALL[version:]]
    migrations.require_current(old)
    after = contents(old)
    for table, rows in before.items():
        for row in rows:
            known = {RENAMED.get((table, name), name): value for name, value in row.items()}
            assert any(known.items() <= new.items() for new in after[table]), (table, row)
        assert len(after[table]) == len(rows) + (len(applied) if table == "certjob_migrations" else 0)

    old.execute("UPDATE mentors SET review_on = '-infinity'")
    if version >= INTENTS:
        old.execute("UPDATE portal_sync_events SET next_attempt_at = now() WHERE status = 'pending'")
    portal, channel = FlakyPortal(), CollectingChannel()
    report = night(old, TODAY, portal=portal, channel=channel).to_document()
    again = night(old, TODAY, portal=portal, channel=channel).to_document()

    facts = Facts(old)
    assert report["mentors"]["reviewed"] == len(people)
    assert report["problems"] == report["held"] == report["stopped"] == []
    assert [row[0] for row in facts.rows("SELECT mentor_id FROM mentor_pauses WHERE actor = 'certjob'")] == [
        people["expired"]
    ]
    mailed = [message.to for message in channel.sent if "hlf.example" not in message.to]
    assert len(mailed) == (1 if version >= INTENTS else 2)
    assert facts.rows("SELECT count(*) FROM portal_sync_events WHERE status = 'pending'") == [(0,)]
    contacts = {row[0]: row[1] for row in facts.rows("SELECT id, dynamics_contact_id FROM mentors")}
    shown = {"expired": False, "ill": False} | ({"hiding": True} if version >= INTENTS else {})
    assert portal.visible == {contacts[people[name]]: visible for name, visible in shown.items()}
    assert facts.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]
    assert (again["mentors"]["reviewed"], again["reminders"]["queued"], again["portal"]["queued"]) == (0, 0, 0)

    old.execute("UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s", (people["valid"],))
    assert night(old, TODAY, portal=portal, channel=channel).to_document()["mentors"]["paused"] == 1, "not noticed"


COMMANDS = (
    "run|run --dry-run|deliver|resync M1|alerts|explain M1|list|forecast|preview M1|organisation list"
    "|organisation set hlf|load people.csv|db prune --older-than 3y"
)


@pytest.mark.parametrize("old", [LAST], indirect=True)
def test_every_command_refuses_a_schema_that_is_not_its_own_and_one_upgrades_it(
    old: Connection, empty_database_url: str, tmp_path: Path
) -> None:
    """Older: it says which command to run, and that one says what it applied; newer: what to install. In one line."""
    (tmp_path / "people.csv").write_text("organisation,member_no,kind,issued_on,expires_on\n")

    def certjob(command: str) -> Finished:
        environment = {"CERTJOB_DATABASE_URL": empty_database_url}
        return run_in_process(*command.split(), environment=environment, folder=tmp_path)

    def assert_refused(commands: Sequence[str], phrase: str) -> None:
        before = contents(old)
        for command in commands:
            result = certjob(command)
            assert (result.returncode, result.stderr.count("\n")) == (2, 1), result
            assert phrase in result.stderr
        assert contents(old) == before

    assert_refused(COMMANDS.split("|"), "(1 pending); run `certjob db migrate`")
    assert json.loads(certjob("db migrate --json").stdout)["applied"] == [f"{ALL[-1].version:04d}_{ALL[-1].name}"]
    again = certjob("db migrate")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    old.execute("INSERT INTO certjob_migrations (version, name, sha256) VALUES (9001, 'tomorrow', 'x')")
    newer = "newer than this certjob (migration 9001_tomorrow); install the newer certjob"
    assert_refused(("run", "deliver", "db migrate", "db status"), newer)
