"""Every statement has one name, one owner and a reason, is used, and is given what it asks for."""

import ast
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

from certjob import database
from certjob.database import statements
from certjob.outbox.claims import Settlement

CERTJOB = Path(database.__file__).parents[1]
QUERIES = database.sql_directory() / "queries"

OWNERS = {
    name: path.parent.name
    for path in QUERIES.glob("*/*.sql")
    for name in re.findall(r"^-- name: (\w+)$", path.read_text(), re.MULTILINE)
}
"""The package of each statement."""


@cache
def strings_in(path: Path) -> set[str]:
    """Return the texts in a file's code, for the name of a statement may stand anywhere."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


VERBS = ("lock_due", "claim", "lock", "settle", "hold", "reopen_refused")
"""What the outbox, and a queue of mail, do to a table."""


@cache
def names_for_the_outbox(path: Path) -> set[str]:
    """Return the names that the outbox builds from ``table="reminders"``: ``claim_reminders``."""
    tables = {
        str(keyword.value.value)
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "table" and isinstance(keyword.value, ast.Constant)
    }
    return {f"{verb}_{table}" for table in tables for verb in VERBS}


def statements_named_in(path: Path) -> set[str]:
    """Return the statements that a file's code names."""
    return (strings_in(path) | names_for_the_outbox(path)) & OWNERS.keys()


ASKED = {name: set(re.findall(r"%\((\w+)\)", text.decode())) for name, text in database.all_statements().items()}
"""The parameters of each statement."""


def test_each_package_names_only_its_own_statements() -> None:
    """Whoever needs another package's figure asks a function of that package."""
    foreign = {
        f"{path.relative_to(CERTJOB)}: {name} of {OWNERS[name]}"
        for path in CERTJOB.rglob("*.py")
        for name in statements_named_in(path)
        if OWNERS[name] != path.relative_to(CERTJOB).parts[0]
    }

    assert foreign == set()


def test_every_statement_is_used() -> None:
    """No statement lies about that nobody calls."""
    assert OWNERS.keys() == set().union(*(statements_named_in(path) for path in CERTJOB.rglob("*.py")))


def test_every_statement_says_why() -> None:
    """A comment stands directly below the name."""
    texts = [path.read_text() for path in QUERIES.glob("*/*.sql")]
    headers = re.findall(r"^-- name: (\w+)\n(.*)$", "\n".join(texts), re.MULTILINE)

    assert [name for name, below in headers if not re.match(r"-- \S", below)] == []
    assert {name for name, _ in headers} == database.all_statements().keys()


def test_every_topic_begins_with_a_name() -> None:
    """What stands above the first name would be left out; a miswritten name would join the statement above it."""
    for path in QUERIES.glob("*/*.sql"):
        first, *others = re.findall(r"^ *-- *name\b.*$", path.read_text(), re.MULTILINE | re.IGNORECASE)
        assert path.read_text().startswith(first), path
        assert all(re.fullmatch(r"-- name: \w+", name) for name in (first, *others)), path


def test_what_a_statement_asks_for_is_named_where_the_statement_is() -> None:
    """A missing parameter is an error at three in the morning."""
    outbox = set().union(
        {field.name for field in fields(Settlement)},
        *(strings_in(path) for path in [*(CERTJOB / "outbox").glob("*.py"), CERTJOB / "mail" / "queue.py"]),
    )
    for path in CERTJOB.rglob("*.py"):
        strings = strings_in(path) | (outbox if names_for_the_outbox(path) else set())
        for name in statements_named_in(path):
            missing = ASKED[name] - strings
            assert not missing, f"{path.name} never names {missing} of {name}"


def test_two_statements_cannot_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of it could mean either."""
    for package in ("facts", "views"):
        (tmp_path / "queries" / package).mkdir(parents=True)
        (tmp_path / "queries" / package / "clocks.sql").write_text("-- name: read_time\n-- Why.\nSELECT now()\n")
    monkeypatch.setattr(statements, "sql_directory", lambda: tmp_path)
    uncached = statements.all_statements.__wrapped__

    with pytest.raises(ValueError, match=r"two statements have the name read_time, the second one is in .*views"):
        uncached()
