"""Every statement has one name and one owner, and is used."""

import ast
import re
from datetime import timedelta
from pathlib import Path

from certjob import database
from certjob.database import Connection

CERTJOB = Path(database.__file__).parents[1]
CODE = list(CERTJOB.rglob("*.py"))
TOPICS = {path: path.read_text() for path in (database.sql_directory() / "queries").glob("*/*.sql")}
NAMES = [
    (name, path.parent.name)
    for path, text in TOPICS.items()
    for name in re.findall(r"^-- name: (\w+)$", text, re.MULTILINE)
]
OWNERS = dict(NAMES)
"""The package of each statement."""
VERBS = ("lock_due", "claim", "settle", "hold", "reopen_refused")
"""What the outbox, and a queue of mail, do to a table."""


def named_in(path: Path) -> set[str]:
    """The statements that a file's code names, also by ``table="reminders"``: ``claim_reminders``."""
    code = path.read_text()
    nodes = ast.walk(ast.parse(code))
    names = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    names |= {f"{verb}_{table}" for table in re.findall(r"\btable=\"(\w+)\"", code) for verb in VERBS}
    return names & OWNERS.keys()


def test_every_statement_is_used_and_only_by_its_own_package() -> None:
    """Whoever needs another package's figure asks a function of that package."""
    packages = {(name, path.relative_to(CERTJOB).parts[0]) for path in CODE for name in named_in(path)}

    assert packages == set(OWNERS.items())
    assert OWNERS.keys() == database.all_statements().keys(), "a name is misspelt"
    assert len(NAMES) == len(OWNERS), "two statements have one name: a call of it could mean either"


def test_a_statement_alone_and_one_in_a_transaction_have_certjobs_settings(
    connection: Connection, database_url: str
) -> None:
    """In another time zone a day would be another day, and no command would say so. What others see is as it was."""
    name = connection.info.dbname
    connection.execute(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'".encode())
    with database.connect(database_url) as fresh:
        alone = database.clock(fresh)
        with database.read_only_snapshot(fresh):
            inside = database.clock(fresh)

        assert [moment.utcoffset() for moment in (alone, inside)] == [timedelta()] * 2
        assert fresh.execute("SELECT current_setting('timezone')").fetchone() == ("Asia/Tokyo",)
