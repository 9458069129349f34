"""Every statement has one name, one owner and a reason, is used, and is given what it asks for."""

import ast
import re
from pathlib import Path

import pytest

from certjob import database
from certjob.database import statements

CERTJOB = Path(database.__file__).parents[1]
QUERIES = database.sql_directory() / "queries"

OWNERS = {
    name: path.parent.name
    for path in QUERIES.glob("*/*.sql")
    for name in re.findall(r"^-- name: (\w+)$", path.read_text(), re.MULTILINE)
}
"""The package of each statement."""


def strings_in(path: Path) -> set[str]:
    """Return the texts in a file's code, for the name of a statement may stand anywhere."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def names_of_the_outbox() -> set[str]:
    """Return the names that the outbox builds: ``claim_reminders`` for a table ``reminders``."""
    tables = {
        str(keyword.value.value)
        for path in CERTJOB.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "table" and isinstance(keyword.value, ast.Constant)
    }
    return {f"{verb}_{table}" for table in tables for verb in ("lock_due", "claim", "lock", "settle")}


def test_each_package_names_only_its_own_statements() -> None:
    """Whoever needs another package's figure asks a function of that package."""
    foreign = {
        f"{path.relative_to(CERTJOB)}: {name} of {OWNERS[name]}"
        for path in CERTJOB.rglob("*.py")
        for name in strings_in(path) & OWNERS.keys()
        if OWNERS[name] != path.relative_to(CERTJOB).parts[0]
    }

    assert foreign == set()


def test_every_statement_is_used() -> None:
    """No statement lies about that nobody calls."""
    named: set[str] = set().union(*(strings_in(path) for path in CERTJOB.rglob("*.py")))

    assert OWNERS.keys() - named - names_of_the_outbox() == set()


def test_every_statement_says_why() -> None:
    """A comment stands directly below the name."""
    headers = re.findall(
        r"^-- name: (\w+)\n(.*)$", "\n".join(p.read_text() for p in QUERIES.glob("*/*.sql")), re.MULTILINE
    )

    assert [name for name, below in headers if not re.match(r"-- \S", below)] == []
    assert {name for name, _ in headers} == OWNERS.keys() == database.all_statements().keys()


def test_two_statements_cannot_have_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of it could mean either."""
    for package in ("facts", "views"):
        (tmp_path / "queries" / package).mkdir(parents=True)
        (tmp_path / "queries" / package / "clocks.sql").write_text("-- name: read_time\n-- Why.\nSELECT now()\n")
    monkeypatch.setattr(statements, "sql_directory", lambda: tmp_path)
    uncached = statements.all_statements.__wrapped__

    with pytest.raises(ValueError, match=r"two statements have the name read_time, the second one is in .*views"):
        uncached()
