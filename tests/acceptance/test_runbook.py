"""The runbook's statements do what it says, and the lines that it explains are lines that certjob says."""

import ast
import re
import shlex
from datetime import datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg
import pytest

from certjob.database import Connection
from tests.support.command_line import Finished, run_in_process
from tests.support.docs import read
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

ROOT = Path(__file__).parents[2]
PAGE = read("docs/runbook.md")
TODAY = datetime.now(ZoneInfo("Europe/Oslo")).date()


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


def test_after_a_restore_nobody_is_mailed_about_what_was_mailed_before(facts: Facts, connection: Connection) -> None:
    """The backup is older than the last night: its mails are not in it. The statement is the runbook's own."""
    today = datetime.now(ZoneInfo("Europe/Oslo")).date()  # asked here, for whoever tests around midnight
    organisation = facts.organisation()
    for days in (29, 6, -2, 30):  # three were due yesterday, and the last one is today
        facts.certified_mentor(organisation, today + timedelta(days=days))
    (statement,) = re.findall(r"^    (UPDATE cert_notification_log\n.+?;)$", PAGE, flags=re.MULTILINE | re.DOTALL)
    night(connection, today, deliver=False)
    assert facts.rows("SELECT count(*) FROM cert_notification_log WHERE status = 'pending'") == [(4,)]

    connection.execute(statement.encode())
    channel, portal = CollectingChannel(), FlakyPortal()
    night(connection, today, portal=portal, channel=channel)
    facts.connection.execute("UPDATE mentors SET review_on = '-infinity'")
    night(connection, today, portal=portal, channel=channel)

    assert len(channel.sent) == 1
    assert list(portal.visible.values()) == [False]
    later = CollectingChannel()
    night(connection, today + timedelta(days=16), portal=portal, channel=later)
    assert len(later.sent) == 3


def test_the_statement_about_open_transactions_finds_a_forgotten_one(
    facts: Facts, connection: Connection, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Even where nobody waits for it, since a review skips what is locked. The statement is the runbook's own."""
    facts.certified_mentor(facts.organisation(), TODAY)
    app.execute("UPDATE mentors SET locale = 'nn'")
    (statement,) = re.findall(r"^    (SELECT pid, usename.+?;)$", PAGE, flags=re.MULTILINE | re.DOTALL)

    found = connection.execute(statement.encode()).fetchall()

    assert [(row[0], row[3]) for row in found] == [(app.info.backend_pid, "idle in transaction")]


def quoted_lines() -> list[str]:
    """What the tables of the runbook say that one sees, without what differs."""
    rows = [row.split(" | ")[0] for row in PAGE.splitlines() if row.startswith("| ")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    parts = [part.strip(" ,.") for text in quoted for part in re.split("…|: ", text)]
    return sorted({re.sub(r"^[0-9]+ ", "", part) for part in parts if len(part) > 3})


@pytest.mark.parametrize("text", quoted_lines())
def test_a_line_that_the_runbook_explains_is_one_that_certjob_says(text: str) -> None:
    """A text that was changed in the code only is noticed here."""
    sources = "\n".join(path.read_text() for path in ROOT.glob("[cs]*/**/*") if path.suffix in {".py", ".sql", ".ts"})

    assert text in re.sub(r'"\s*\n\s*f?"', "", sources)


THEY_SAY_WHY = (
    "night/report",
    "night/deliveries",
    "portal/stage",
    "portal/comparison",
    "night/reconcile",
    "mail/stage",
    "night/resync",
)


def said_by_runs() -> list[str]:
    """Every reason that a run can give for its exit code 3, by its fixed words, the longest piece of each."""
    found: set[str] = set()
    for name in THEY_SAY_WHY:
        for node in ast.walk(ast.parse((ROOT / "certjob" / f"{name}.py").read_text())):
            match node:
                case ast.Call(func=ast.Name(id="_counted"), args=[_, _, ast.Constant(value=str(plural)), *_]):
                    found.add(plural)
                case ast.Assign(targets=[ast.Name(id="reason")], value=ast.JoinedStr() | ast.Constant() as value):
                    found.add(_longest_piece(value))
                case ast.Call(func=ast.Attribute(attr="_end"), args=[_, ast.JoinedStr() | ast.Constant() as value, *_]):
                    found.add(_longest_piece(value))
                case ast.keyword(arg="reason", value=ast.JoinedStr() | ast.Constant() as value):
                    found.add(_longest_piece(value))
    return sorted(piece for piece in found if len(piece) > 9)


def _longest_piece(text: ast.expr) -> str:
    pieces = [node.value for node in ast.walk(text) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return max(pieces, key=len).strip(" ;:,.(")


@pytest.mark.parametrize("text", said_by_runs())
def test_a_line_that_a_run_says_is_one_that_the_runbook_explains(text: str) -> None:
    """In its tables, or in an example; a new reason needs an answer at three in the morning."""
    explained = [*quoted_lines(), *(line for line in PAGE.splitlines() if line.startswith("    "))]

    assert any(line in text or text in line for line in explained if len(line) > 9), text


def test_the_example_of_somebody_elses_file_can_be_loaded(facts: Facts, operator: Operator, tmp_path: Path) -> None:
    """The command as it stands, on a file with those headers."""
    facts.organisation("oxford")
    (command,) = re.findall(
        r"^    (certjob load licences\.csv (?:.*\\\n)+.*)$", read("docs/commands.md"), flags=re.MULTILINE
    )
    (tmp_path / "licences.csv").write_text(
        "property_id,Licence Commenced,Licence Expires,kind\nP-17,31/01/2024,30/01/2029,HMO\n"
    )

    result = operator.types(command.replace("\\\n", " "))

    assert (result.returncode, result.stderr) == (0, "")
    assert facts.rows("SELECT issued_on::text, expires_on::text FROM certificates") == [("2024-01-31", "2029-01-30")]
