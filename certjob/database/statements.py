"""Transactions, and the statements of ``sql/queries`` by their names."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import RowFactory, class_row, scalar_row, tuple_row

from certjob.database.connections import CONTENTION, Connection

Row = TypeVar("Row")
Result = TypeVar("Result")

STATEMENT_TIMEOUT = "10min"
"""A chunk's slowest statement takes a second; one that reviews a million mentors anew takes a minute."""

_OWN_SETTINGS = {
    "datestyle": "ISO, DMY",  # psycopg reads times in no other one
    "intervalstyle": "postgres",  # nor intervals
    "timezone": "UTC",  # statements turn times into days
    "row_security": "on",  # off, a policy is an error
    "client_min_messages": "notice",  # above it, what a migration leaves to the operator would go unsaid
    "array_nulls": "on",  # off, a NULL in a list is a word
    "search_path": "certjob, pg_temp",  # the statements name no schema
}
"""What certjob's statements rely on, and a role, a database or a server may have set otherwise.

Set in each transaction: a pooler would leak a plain SET to others, and some refuse a parameter of the start.
"""


def sql_directory() -> Path:
    """Return the folder with ``migrations`` and ``queries``: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "sql"
    return inside if inside.is_dir() else package.parent / "sql"


@contextmanager
def transaction(
    connection: Connection,
    *,
    lock_timeout_ms: int | None = None,
    by_index: bool = False,
    force_rollback: bool = False,
) -> Iterator[None]:
    """Open a transaction, or a savepoint inside one; its settings are local to it (a pooler would leak a plain SET).

    With a lock timeout no statement takes for ever, either, unless somebody has set another limit for this user.

    ``by_index`` is for the few rows of one chunk or claim in tables of any size: no statement may read a whole table
    for them, nor collect a whole line and sort it for the first ones. Left to itself the planner does so up to some
    200,000 rows, and whenever a table has grown since it was analysed: each chunk of a night then costs what exists.

    Up to PostgreSQL 17 a plan that has to sort or scan nevertheless costs ten billion there, so that each one would be
    compiled (jit): 200 ms for a claim of 2 ms.
    """
    settings = dict(_OWN_SETTINGS) if connection.info.transaction_status is TransactionStatus.IDLE else {}
    if lock_timeout_ms is not None:
        settings |= {"lock_timeout": str(lock_timeout_ms), "statement_timeout": STATEMENT_TIMEOUT}
    if by_index:
        settings |= dict.fromkeys(("enable_seqscan", "enable_sort", "jit"), "off")
    with connection.transaction(force_rollback=force_rollback):
        if settings:
            connection.execute(_set_locally(tuple(settings.items())))
        yield


@cache
def _set_locally(settings: tuple[tuple[str, str], ...]) -> bytes:
    """Return one trip for all of them; a limit that somebody has set for this user stays.

    A SET costs the server half of what a call of set_config does, which is parsed and planned as a query.
    """
    commands = {name: f"SET LOCAL {name} = '{value}'" for name, value in settings}
    if "search_path" in commands:  # a list: quoted, it would be one name
        commands["search_path"] = f"SET LOCAL search_path = {dict(settings)['search_path']}"
    if "statement_timeout" in commands:
        call = f"set_config('statement_timeout', '{dict(settings)['statement_timeout']}', true)"
        commands["statement_timeout"] = f"SELECT CASE current_setting('statement_timeout') WHEN '0' THEN {call} END"
    return "; ".join(commands.values()).encode()


@contextmanager
def read_only_snapshot(connection: Connection) -> Iterator[None]:
    """Open a transaction that sees one moment and can write nothing; works on a read-only server too."""
    isolation_level, read_only = connection.isolation_level, connection.read_only
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
    try:
        with transaction(connection):
            yield
    finally:
        if not connection.closed:
            connection.isolation_level, connection.read_only = isolation_level, read_only


@cache
def all_statements() -> Mapping[str, bytes]:
    """Return every statement of ``sql/queries/<package>/<topic>.sql`` by the name above it: ``-- name: verb_noun``.

    Comment lines are left out, because a ``%`` in one would count as a placeholder.
    """
    found: dict[str, bytes] = {}
    for path in sorted((sql_directory() / "queries").glob("*/*.sql")):
        _, *sections = re.split(rb"^-- name: (\w+)$", path.read_bytes(), flags=re.MULTILINE)
        for name, text in zip(sections[::2], sections[1::2], strict=True):
            lines = (line for line in text.strip().splitlines() if not line.lstrip().startswith(b"--"))
            found[name.decode()] = b"\n".join(lines)
    return found


def query(name: str) -> bytes:
    """Return the statement with this name."""
    return all_statements()[name]


def _run(
    connection: Connection,
    name: str,
    parameters: Mapping[str, object] | None,
    take: Callable[[psycopg.Cursor[Any]], Result],
    *,
    row_factory: RowFactory[Any] = tuple_row,
) -> Result:
    """Run a statement by name and return what ``take`` takes from its cursor.

    Outside any transaction it gets one of its own: only in a transaction do certjob's settings hold.
    """
    alone = connection.info.transaction_status is TransactionStatus.IDLE
    with transaction(connection) if alone else nullcontext(), connection.cursor(row_factory=row_factory) as cursor:
        return take(cursor.execute(query(name), parameters))


def execute(connection: Connection, name: str, parameters: Mapping[str, object] | None = None) -> int:
    """Run a statement by name and return the number of rows it touched."""
    return _run(connection, name, parameters, lambda cursor: cursor.rowcount)


@overload
def fetch(
    connection: Connection, name: str, parameters: Mapping[str, object] | None = None
) -> list[tuple[Any, ...]]: ...


@overload
def fetch(
    connection: Connection, name: str, parameters: Mapping[str, object] | None = None, *, into: type[Row]
) -> list[Row]: ...


def fetch(
    connection: Connection,
    name: str,
    parameters: Mapping[str, object] | None = None,
    *,
    into: type[Any] | None = None,
) -> list[Any]:
    """Run a statement by name and return all its rows, as tuples or as instances of ``into``."""
    factory: RowFactory[Any] = tuple_row if into is None else class_row(into)
    return _run(connection, name, parameters, lambda cursor: cursor.fetchall(), row_factory=factory)


def fetch_value(connection: Connection, name: str, parameters: Mapping[str, object] | None = None) -> Any:
    """Run a statement by name and return the first column of its first row, None without a row."""
    return _run(connection, name, parameters, lambda cursor: cursor.fetchone(), row_factory=scalar_row)


def clock(connection: Connection) -> datetime:
    """Return the database's own time, which its rows carry; this machine's may differ."""
    now: datetime = fetch_value(connection, "read_clock")
    return now


_WRITE_TRIES = 5

_WRITE_LOCK_TIMEOUT_MS = 10_000


def persist(
    connection: Connection,
    write: Callable[[], Result],
    *,
    lock_timeout_ms: int | None = None,
    tries: int = _WRITE_TRIES,
) -> Result:
    """Run ``write`` in a transaction, and again when another session's locks are in its way: that one ends."""

    def write_once() -> Result:
        with transaction(connection, lock_timeout_ms=lock_timeout_ms or _WRITE_LOCK_TIMEOUT_MS):
            return write()

    for _ in range(tries - 1):
        with suppress(*CONTENTION):
            return write_once()
    return write_once()
