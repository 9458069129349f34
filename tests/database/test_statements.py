"""Every statement has one name, one owner and a reason, is used, and is given what it asks for."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import pytest

from certjob import database
from certjob.database import statements
from certjob.outbox.claims import Settlement

Function = ast.FunctionDef | ast.AsyncFunctionDef

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


VERBS = ("lock_due", "claim", "lock", "settle", "hold", "reopen_refused")
"""What the outbox, and a queue of mail, do to a table."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One place that runs a statement."""

    statement: str
    parameters: ast.expr
    function: Function
    """The outermost one around it."""

    @property
    def asked(self) -> set[str]:
        """Return the statement's parameters."""
        return ASKED[self.statement]


def uses_in(path: Path) -> Iterator[Use]:
    """Yield where a statement's name has its parameters behind it: ``fetch(connection, name, parameters)``."""
    tree = ast.parse(path.read_text())
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for function in (node for body in bodies for node in body if isinstance(node, Function)):
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            for named, parameters in pairwise(call.args):
                choices = [named.body, named.orelse] if isinstance(named, ast.IfExp) else [named]
                for choice in choices:
                    name = choice.args[0] if isinstance(choice, ast.Call) and choice.args else choice  # query(name)
                    if isinstance(name, ast.Constant) and name.value in OWNERS:
                        yield Use(statement=str(name.value), parameters=parameters, function=function)


def keys_of(parameters: ast.expr, function: Function) -> set[str] | None:
    """Return the keys of a dictionary that is written in the call or before it in the function; None: it is not."""
    if isinstance(parameters, ast.Dict):
        parts = [
            {str(key.value)} if isinstance(key, ast.Constant) else None if key else keys_of(value, function)
            for key, value in zip(parameters.keys, parameters.values, strict=True)
        ]
    elif isinstance(parameters, ast.BinOp):
        parts = [keys_of(parameters.left, function), keys_of(parameters.right, function)]
    elif isinstance(parameters, ast.Name):
        parts = [keys_of(value, function) for value in values_of(parameters.id, function)] or [None]
    else:
        parts = [None]
    return None if None in parts else set().union(*(part for part in parts if part))


def values_of(name: str, function: Function) -> Iterator[ast.expr]:
    """Yield what a function assigns to a variable, ``name["key"] = …`` as a dictionary with that key."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id == name:
                    yield node.value
                elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == name:
                    yield ast.Dict(keys=[target.slice], values=[node.value])


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


def test_each_call_gives_what_the_statement_asks_for() -> None:
    """A missing parameter is an error at three in the morning; one too many is a mistake that nobody notices."""
    wrong: list[str] = []
    for path in CERTJOB.rglob("*.py"):
        uses = list(uses_in(path))
        for use in uses:
            given = keys_of(use.parameters, use.function)
            if given is None:
                continue
            sharing = [use] if isinstance(use.parameters, ast.Dict) else [u for u in uses if u.function is use.function]
            unasked = given - set().union(*(each.asked for each in sharing))
            if use.asked - given or unasked:
                wrong.append(f"{path.name}: {use.statement} lacks {use.asked - given}, has {unasked} for nothing")

    assert wrong == []


def test_parameters_that_are_put_together_elsewhere_have_the_names_of_the_statement() -> None:
    """Where a statement's parameters do not stand beside its name, their names at least stand in the same file."""
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
