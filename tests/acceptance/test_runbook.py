"""The runbook's statements do what it says, and the lines that it explains are lines that certjob says."""

import ast
import re
from datetime import timedelta

import psycopg

from certjob.database import Connection
from tests.support.command_line import today
from tests.support.docs import ROOT, read
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

PAGE = read("docs/runbook.md")
SOURCES = "\n".join(path.read_text() for path in ROOT.glob("[cs]*/**/*") if path.suffix in {".py", ".sql", ".ts"})
THEY_SAY_WHY = "night/report night/deliveries night/reconcile night/resync portal/stage portal/comparison mail/stage"


def statement(beginning: str) -> bytes:
    """The statement of the runbook that begins so, as it stands there."""
    (found,) = re.findall(rf"^    ({beginning}.+?;)$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found).encode()


def test_after_a_restore_nobody_is_mailed_about_what_was_mailed_before(facts: Facts, connection: Connection) -> None:
    """The backup is older than the last night: its mails are not in it."""
    day = today()
    organisation = facts.organisation()
    for days in (29, 6, -2, 30):  # three were due yesterday, and the last one is today
        facts.certified_mentor(organisation, day + timedelta(days=days))
    channel, later, portal = CollectingChannel(), CollectingChannel(), FlakyPortal()
    night(connection, day, deliver=False)
    assert facts.rows("SELECT count(*) FROM cert_notification_log WHERE status = 'pending'") == [(4,)]

    connection.execute(statement("UPDATE cert_notification_log\n"))
    night(connection, day, portal=portal, channel=channel)
    connection.execute("UPDATE mentors SET review_on = '-infinity'")
    night(connection, day, portal=portal, channel=channel)
    assert list(portal.visible.values()) == [False]
    night(connection, day + timedelta(days=16), portal=portal, channel=later)

    assert (len(channel.sent), len(later.sent)) == (1, 3)


def test_the_statement_about_open_transactions_finds_a_forgotten_one(
    facts: Facts, connection: Connection, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """Even where nobody waits for it, since a review skips what is locked."""
    facts.certified_mentor(facts.organisation(), today())
    app.execute("UPDATE mentors SET locale = 'nn'")

    found = connection.execute(statement("SELECT pid, usename")).fetchall()

    assert [(row[0], row[3]) for row in found] == [(app.info.backend_pid, "idle in transaction")]


def quoted_lines() -> list[str]:
    """What the tables of the runbook say that one sees, without what differs."""
    rows = [row.split(" | ")[0] for row in PAGE.splitlines() if row.startswith("| ")]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row)]
    parts = [part.strip(" ,.") for text in quoted for part in re.split("…|: ", text)]
    return sorted({re.sub(r"^[0-9]+ ", "", part) for part in parts if len(part) > 3})


def said_by_runs() -> set[str]:
    """Every reason that a run can give for its exit code 3, by its fixed words, the longest piece of each."""
    found = set[str]()
    for name in THEY_SAY_WHY.split():
        for node in ast.walk(ast.parse((ROOT / "certjob" / f"{name}.py").read_text())):
            match node:
                case (
                    ast.Call(func=ast.Name(id="_counted"), args=[_, _, ast.Constant() as value, *_])
                    | ast.Assign(targets=[ast.Name(id="reason")], value=ast.JoinedStr() | ast.Constant() as value)
                    | ast.Call(func=ast.Attribute(attr="_end"), args=[_, ast.JoinedStr() | ast.Constant() as value, *_])
                    | ast.keyword(arg="reason", value=ast.JoinedStr() | ast.Constant() as value)
                ):
                    pieces = [str(piece.value) for piece in ast.walk(value) if isinstance(piece, ast.Constant)]
                    found.add(max(pieces, key=len, default="").strip(" ;:,.("))
    return {piece for piece in found if len(piece) > 9}


def test_a_line_that_the_runbook_explains_is_one_that_certjob_says() -> None:
    """A text that was changed in the code only is noticed here."""
    said = re.sub(r'"\s*\n\s*f?"', "", SOURCES)

    assert [text for text in quoted_lines() if text not in said] == []


def test_a_line_that_a_run_says_is_one_that_the_runbook_explains() -> None:
    """In its tables, or in an example; a new reason needs an answer at three in the morning."""
    explained = [*quoted_lines(), *(line for line in PAGE.splitlines() if line.startswith("    "))]
    explained = [line for line in explained if len(line) > 9]
    reasons = said_by_runs()

    assert len(reasons) > 9
    assert [text for text in reasons if not any(line in text or text in line for line in explained)] == []
