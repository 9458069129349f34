"""From earlier schemas, with a programme's data in it, to the newest: nothing is lost, and a night runs."""

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from certjob import database
from certjob.database import migrations
from tests.conftest import Certjob
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

ALL = migrations.migrations()
LAST = ALL[-2].version
EARLIER = [1, *range(2, LAST, 4), LAST]
"""Rows of the second schema, the first with intents, pass through all later ones: not each has to be begun from."""


@pytest.fixture
def old(request: pytest.FixtureRequest, empty_database_url: str, tmp_path: Path) -> Iterator[Facts]:
    """A database as the certjob of that version left it; ``request.param`` is the version."""
    folder = tmp_path / "earlier"
    folder.mkdir()
    for migration in ALL[: request.param]:
        assert migration.path is not None
        shutil.copy(migration.path, folder)
    with database.connect(empty_database_url) as connection:
        migrations.migrate(connection, folder)
        yield Facts(connection)


INTENTS_OF_THEN = (
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
)


def live_with(facts: Facts, *, has_intents: bool) -> dict[str, UUID]:
    """Data of all kinds that this schema can hold: the usual ones, and those that are just being worked on."""
    hlf = facts.organisation()
    facts.organisation("other", portal=None, thresholds=(), optional_kinds=("first-aid",))
    facts.insert("coordinators", organisation_id=hlf, full_name="Ola", email="ola@hlf.example")
    days = {"valid": 300, "reminded": 20, "expired": -3, "ill": 200, "hiding": 250}
    people = {name: facts.certified_mentor(hlf, TODAY + timedelta(days=left)) for name, left in days.items()}
    facts.pause(people["ill"])
    for statement in INTENTS_OF_THEN if has_intents else ():
        facts.connection.execute(statement.encode(), people)
    return people


RENAMED = {("coordinator_digests", "told"): "reported", ("coordinator_digests", "told_on"): "reported_on"}
"""What a later migration calls a column."""


def contents(facts: Facts) -> dict[str, list[dict[str, object]]]:
    """Every row of every table, by the table's name."""
    names = [str(name) for (name,) in facts.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    return {
        name: [json.loads(str(row[0])) for row in facts.rows(f"SELECT to_jsonb(t)::text FROM {name} AS t")]
        for name in names
    }


@pytest.mark.parametrize("old", EARLIER, indirect=True)
def test_every_row_survives_and_a_night_runs(old: Facts) -> None:
    """Whatever was sent is not sent again, what was open goes out, what is due is done; a changed fact is noticed."""
    version = len(old.rows("SELECT FROM certjob_migrations"))
    has_intents = version != 1
    people = live_with(old, has_intents=has_intents)
    before = contents(old)

    applied = migrations.migrate(old.connection)

    assert [each.version for each in applied] == [each.version for each in ALL[version:]]
    migrations.require_current(old.connection)
    after = contents(old)
    for table, rows in before.items():
        for row in rows:
            known = {RENAMED.get((table, name), name): value for name, value in row.items()}
            assert any(known.items() <= new.items() for new in after[table]), (table, row)
        assert len(after[table]) == len(rows) + (len(applied) if table == "certjob_migrations" else 0)

    old.connection.execute("UPDATE mentors SET review_on = '-infinity'")
    old.connection.execute("UPDATE portal_sync_events SET next_attempt_at = now() WHERE status = 'pending'")
    portal, channel = FlakyPortal(), CollectingChannel()
    report, again = (night(old.connection, portal=portal, channel=channel).to_document() for _ in range(2))

    assert report["mentors"]["reviewed"] == len(people)
    assert report["problems"] == report["held"] == report["stopped"] == []
    assert old.rows("SELECT mentor_id FROM mentor_pauses WHERE actor = 'certjob'") == [(people["expired"],)]
    mailed = [message.to for message in channel.sent if "hlf.example" not in message.to]
    assert len(mailed) == (1 if has_intents else 2)
    assert old.rows("SELECT FROM portal_sync_events WHERE status = 'pending'") == []
    contacts = {row[0]: row[1] for row in old.rows("SELECT id, dynamics_contact_id FROM mentors")}
    shown = {"expired": False, "ill": False} | ({"hiding": True} if has_intents else {})
    assert portal.visible == {contacts[people[name]]: visible for name, visible in shown.items()}
    assert old.rows("SELECT FROM dynamics_sync_failures WHERE resolved_at IS NULL") == []
    assert (again["mentors"]["reviewed"], again["reminders"]["queued"], again["portal"]["queued"]) == (0, 0, 0)

    old.connection.execute("UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s", (people["valid"],))
    assert night(old.connection, portal=portal, channel=channel).to_document()["mentors"]["paused"] == 1, "not noticed"


COMMANDS = (
    "run|run --dry-run|deliver|resync M1|alerts|explain M1|list|forecast|preview M1|organisation list"
    "|organisation set hlf|load people.csv|db prune --older-than 3y"
)


@pytest.mark.parametrize("old", [LAST], indirect=True)
def test_every_command_refuses_a_schema_that_is_not_its_own(
    here: Certjob, old: Facts, empty_database_url: str, tmp_path: Path
) -> None:
    """Older: it says which command to run; newer: what to install. In one line."""
    (tmp_path / "people.csv").write_text("organisation,member_no,kind,issued_on,expires_on\n")
    tomorrow = "INSERT INTO certjob_migrations (version, name, sha256) VALUES (9001, 'tomorrow', 'x')"

    for change, commands, says in (
        ("SELECT", COMMANDS, "(1 pending); run `certjob db migrate`"),
        (tomorrow, "run|deliver|db migrate|db status", "(migration 9001_tomorrow); install the newer certjob"),
    ):
        old.connection.execute(change.encode())
        before = contents(old)
        for command in commands.split("|"):
            result = here(*command.split(), CERTJOB_DATABASE_URL=empty_database_url)
            assert (result.returncode, result.stderr.count("\n"), says in result.stderr) == (2, 1, True), result
        assert contents(old) == before
