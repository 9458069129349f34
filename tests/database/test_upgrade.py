"""From every earlier schema, with a programme's data in it, to the newest: nothing is lost, and a night runs."""

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from certjob import database
from certjob.database import Connection, migrations
from tests.support.command_line import run_in_process
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

ALL = migrations.migrations()
EARLIER = [each.version for each in ALL[:-1]]
INTENTS = 2
"""The first schema that has them."""


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
    connection.execute(
        "INSERT INTO coordinators (organisation_id, full_name, email) VALUES (%s, 'Ola', 'ola@hlf.example')", (hlf,)
    )
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
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, sent_at)"
        " SELECT mentor_id, 30, id, expires_on, 'sent', now() - interval '10 days'"
        " FROM certificates WHERE mentor_id = %s",
        (people["reminded"],),
    )
    connection.execute("UPDATE mentors SET portal_visible = false WHERE id = %s", (people["hiding"],))
    row = connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, attempts, claim_token, next_attempt_at)"
        " VALUES (%s, false, 1, %s, now() + interval '3 minutes') RETURNING id",
        (people["hiding"], uuid4()),
    ).fetchone()
    assert row is not None
    connection.execute(
        "INSERT INTO dynamics_sync_failures (mentor_id, event_id, visible, kind, attempts, error)"
        " VALUES (%s, %s, false, 'transient', 3, 'connection reset')",
        (people["hiding"], row[0]),
    )
    connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, delivered_at)"
        " VALUES (%s, true, 'delivered', now())",
        (people["valid"],),
    )
    connection.execute(
        "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)"
        " SELECT id, mentor_id, 'recorded', 'valid', %s FROM certificates",
        (TODAY - timedelta(days=30),),
    )
    connection.execute(
        "INSERT INTO coordinator_digests (coordinator_id, digest_on, status, sent_at)"
        " SELECT id, %s, 'sent', now() - interval '1 day' FROM coordinators",
        (TODAY - timedelta(days=1),),
    )
    connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (%s, 'run', %s, 'host', '0.0.1', now(), 'ok')",
        (uuid4(), TODAY - timedelta(days=1)),
    )
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


@pytest.mark.parametrize(("old", "version"), [(version, version) for version in EARLIER], indirect=["old"])
def test_every_row_survives_and_a_night_runs(old: Connection, version: int) -> None:
    """Whatever was sent is not sent again, what was open goes out, what is due is done; a changed fact is noticed."""
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
    "run",
    "run --dry-run",
    "deliver",
    "resync M1",
    "alerts",
    "explain M1",
    "list",
    "forecast",
    "preview M1",
    "organisation list",
    "organisation set hlf",
    "load people.csv",
    "db prune --older-than 3y",
)


@pytest.fixture
def environment(empty_database_url: str, bare_environment: dict[str, str]) -> dict[str, str]:
    return bare_environment | {"CERTJOB_DATABASE_URL": empty_database_url}


@pytest.mark.parametrize("old", [EARLIER[-1]], indirect=True)
def test_every_command_refuses_a_schema_that_is_not_its_own(
    old: Connection, environment: dict[str, str], tmp_path: Path
) -> None:
    """Older: it says which command to run; newer: what to install. One line, and nothing is touched."""
    (tmp_path / "people.csv").write_text("organisation,member_no,kind,issued_on,expires_on\n")

    def refused(command: str, phrase: str) -> None:
        result = run_in_process(*command.split(), environment=environment, folder=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result
        assert phrase in result.stderr

    before = contents(old)
    for command in COMMANDS:
        refused(command, "(1 pending); run `certjob db migrate`")
    assert contents(old) == before

    migrations.migrate(old)
    old.execute("INSERT INTO certjob_migrations (version, name, sha256) VALUES (9001, 'tomorrow', 'x')")
    before = contents(old)
    for command in (*COMMANDS, "db migrate", "db status"):
        refused(command, "newer than this certjob (migration 9001_tomorrow); install the newer certjob")
    assert contents(old) == before


@pytest.mark.parametrize("old", [1, EARLIER[-1]], indirect=True)
def test_the_command_upgrades_and_says_what_it_applied(
    old: Connection, environment: dict[str, str], tmp_path: Path
) -> None:
    """Silently without a terminal; --json has the names."""
    pending = [f"{each.version:04d}_{each.name}" for each in migrations.status(old) if each.applied_at is None]

    result = run_in_process("db", "migrate", "--json", environment=environment, folder=tmp_path)
    again = run_in_process("db", "migrate", environment=environment, folder=tmp_path)

    assert (result.returncode, json.loads(result.stdout)["applied"]) == (0, pending)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
