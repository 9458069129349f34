"""The runbook's examples are what an operator sees: each trouble is made, and the command is asked."""

import inspect
import re
import shlex
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest

from certjob.database import Connection
from tests.command_line import Finished, run_in_process
from tests.facts import Facts
from tests.nights import CollectingChannel, FlakyPortal, night
from tests.portal_answers import error
from tests.portal_server import PortalServer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SECTION = README.partition("\n## Runbook\n")[2].partition("\n## ")[0]
TODAY = datetime.now(ZoneInfo("Europe/Oslo")).date()
CONTACT = UUID("0b6c8f52-1f0e-4a55-9d0b-7c3c2b1a9e10")


def examples() -> dict[str, tuple[str, list[str]]]:
    """The command under each title and the lines that it prints; ``…`` stands for what differs or is left out."""
    found = {}
    for part in SECTION.split("\n### ")[1:]:
        for block in re.findall(r"^    \$ (.+\n(?:    .+\n)+)", part, flags=re.MULTILINE):
            command, *lines = block.splitlines()
            found[part.partition("\n")[0]] = command, [line[4:] for line in lines]
    return found


def matches(expected: list[str], printed: str) -> bool:
    pattern = "\n".join(".*".join(re.escape(part) for part in line.split("…")) for line in expected)
    return re.fullmatch(pattern, printed.strip(), flags=re.DOTALL) is not None


class Operator:
    """Somebody at a terminal that is none: what is printed is what cron would mail."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment = environment
        self.folder = folder

    def types(self, command: str, **settings: str) -> Finished:
        return run_in_process(*shlex.split(command)[1:], environment=self.environment | settings, folder=self.folder)


@pytest.fixture
def operator(database_url: str, bare_environment: dict[str, str], tmp_path: Path) -> Operator:
    ways_out = {"CERTJOB_DATABASE_URL": database_url, "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}"}
    return Operator(bare_environment | ways_out, tmp_path)


def expired_mentors(facts: Facts, number: int) -> None:
    organisation = facts.organisation()
    for _ in range(number):
        facts.certified_mentor(organisation, TODAY - timedelta(days=1))


def portal_is_down(facts: Facts, operator: Operator) -> Finished:
    expired_mentors(facts, 7)
    down = {"CERTJOB_PORTAL_URL": "http://127.0.0.1:1/", "CERTJOB_PORTAL_KEY": "k", "CERTJOB_PORTAL_ATTEMPTS": "1"}
    return operator.types("certjob run", **down)


def key_is_wrong(facts: Facts, operator: Operator) -> Finished:
    expired_mentors(facts, 2)
    with PortalServer() as portal:
        return operator.types("certjob run", CERTJOB_PORTAL_URL=portal.url, CERTJOB_PORTAL_KEY="old")


def contact_is_unknown(facts: Facts, operator: Operator) -> Finished:
    organisation = facts.organisation()
    mentor = facts.mentor(organisation, member_no="M1042", full_name="Kari Nordmann", contact_id=CONTACT)
    facts.certificate(mentor, TODAY - timedelta(days=1))
    with PortalServer(default=error(404, "contact_not_found")) as portal:
        operator.types("certjob run", CERTJOB_PORTAL_URL=portal.url, CERTJOB_PORTAL_KEY=portal.key)
        return operator.types("certjob alerts")


def portal_throttles(facts: Facts, operator: Operator) -> Finished:
    expired_mentors(facts, 2)
    with PortalServer(default=error(429, "throttled", retry_after="900")) as portal:
        return operator.types("certjob run", CERTJOB_PORTAL_URL=portal.url, CERTJOB_PORTAL_KEY=portal.key)


def import_is_wrong(facts: Facts, operator: Operator) -> Finished:
    expired_mentors(facts, 40)
    return operator.types("certjob run")


def clock_is_wrong(facts: Facts, operator: Operator) -> Finished:
    facts.connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (%s, 'run', %s, 'h', '1', now(), 'ok')",
        (uuid4(), TODAY + timedelta(days=30)),
    )
    return operator.types("certjob run")


def schema_is_old(facts: Facts, operator: Operator) -> Finished:
    facts.connection.execute(
        "DELETE FROM certjob_migrations WHERE version = (SELECT max(version) FROM certjob_migrations)"
    )
    return operator.types("certjob run")


def rows_are_old(facts: Facts, operator: Operator) -> Finished:
    mentor = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=300))
    facts.connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at, delivered_at)"
        " SELECT %s, true, 'delivered', t, t, t FROM generate_series(now() - interval '5 years',"
        " now() - interval '3 years 1 month', interval '1 week') AS t",
        (mentor,),
    )
    return operator.types("certjob db prune --older-than 3y --dry-run")


SCENES: dict[str, Callable[[Facts, Operator], Finished]] = {
    "The portal is down": portal_is_down,
    "The portal refuses the key": key_is_wrong,
    "The portal does not know a mentor": contact_is_unknown,
    "The portal asks to wait": portal_throttles,
    "Too many would change at once": import_is_wrong,
    "The clock is wrong": clock_is_wrong,
    "The schema is older or newer than certjob": schema_is_old,
    "The disk is full": rows_are_old,
}


def test_every_example_of_the_runbook_is_held_by_a_scene() -> None:
    """And every scene is in it."""
    assert examples().keys() == SCENES.keys()


@pytest.mark.parametrize("title", SCENES)
def test_the_runbook_shows_what_is_printed(title: str, facts: Facts, operator: Operator) -> None:
    """Under the trouble that it is about."""
    _, expected = examples()[title]

    result = SCENES[title](facts, operator)

    assert matches(expected, result.stdout + result.stderr), result.stdout + result.stderr


@pytest.mark.parametrize("title", SCENES)
def test_the_scene_ran_the_command_that_the_runbook_names(title: str) -> None:
    """Not another one that happens to print the same."""
    command, _ = examples()[title]

    assert f'"{command}"' in inspect.getsource(SCENES[title])


def test_after_a_restore_nobody_is_mailed_about_what_was_mailed_before(
    facts: Facts, connection: Connection, operator: Operator
) -> None:
    """The backup is older than the last night: its mails are not in it. The statement is the runbook's own."""
    organisation = facts.organisation()
    for days in (29, 6, -2, 30):  # three were due yesterday, and the last one is today
        facts.certified_mentor(organisation, TODAY + timedelta(days=days))
    (statement,) = re.findall(r"^    (UPDATE cert_notification_log\n.+?;)$", SECTION, flags=re.MULTILINE | re.DOTALL)
    operator.types("certjob run --no-deliver")
    assert facts.rows("SELECT count(*) FROM cert_notification_log WHERE status = 'pending'") == [(4,)]

    connection.execute(statement.encode())
    channel, portal = CollectingChannel(), FlakyPortal()
    night(connection, TODAY, portal=portal, channel=channel)
    facts.connection.execute("UPDATE mentors SET review_on = '-infinity'")
    night(connection, TODAY, portal=portal, channel=channel)

    assert len(channel.sent) == 1
    assert list(portal.visible.values()) == [False]
    later = CollectingChannel()
    night(connection, TODAY + timedelta(days=16), portal=portal, channel=later)
    assert len(later.sent) == 3


def quoted_lines() -> list[str]:
    """What the table under the scenes says that one sees, without what differs."""
    table = SECTION.partition("### Lines, and what they mean")[2]
    quoted = [text for row in table.splitlines() for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    parts = [part.strip(" ,.") for text in quoted for part in re.split("…|: ", text)]
    return sorted({re.sub(r"^[0-9]+ ", "", part) for part in parts if len(part) > 3})


@pytest.mark.parametrize("text", quoted_lines())
def test_a_line_that_the_runbook_explains_is_one_that_certjob_says(text: str) -> None:
    """A text that was changed in the code only is noticed here."""
    sources = "\n".join(path.read_text() for path in ROOT.glob("[cs]*/**/*") if path.suffix in {".py", ".sql", ".ts"})

    assert text in re.sub(r'"\s*\n\s*f?"', "", sources)


def test_the_example_of_somebody_elses_file_can_be_loaded(facts: Facts, operator: Operator, tmp_path: Path) -> None:
    """The command as it stands, on a file with those headers."""
    facts.organisation("oxford")
    (command,) = re.findall(r"^    (certjob load licences\.csv (?:.*\\\n)+.*)$", README, flags=re.MULTILINE)
    (tmp_path / "licences.csv").write_text(
        "property_id,Licence Commenced,Licence Expires,kind\nP-17,31/01/2024,30/01/2029,HMO\n"
    )

    result = operator.types(command.replace("\\\n", " "))

    assert (result.returncode, result.stderr) == (0, "")
    assert facts.rows("SELECT issued_on::text, expires_on::text FROM certificates") == [("2024-01-31", "2029-01-30")]
