"""Transactions, and named statements from ``sql/queries``."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
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

_WRITE_TRIES = 5
LOCK_TIMEOUT_MS = 10_000
"""The longest wait for a lock of another session, unless a transaction has another limit."""
STATEMENT_TIMEOUT = "10min"
"""The slowest statement of a chunk takes a second; one that marks a million mentors for review takes a minute."""

_OWN_SETTINGS = {
    "datestyle": "ISO, DMY",  # psycopg parses times only in this style
    "intervalstyle": "postgres",  # psycopg parses intervals only in this style
    "timezone": "UTC",  # statements convert times into dates
    "row_security": "on",  # with "off", a policy raises an error
    "client_min_messages": "notice",  # a migration warns the operator by notices
    "array_nulls": "on",  # with "off", NULL in an array literal is a text
    "search_path": "certjob, pg_temp",  # the statements name no schema
}
"""Settings that certjob's statements need, and that a role, database or server may define differently.

Each transaction sets them locally, because a pooler leaks a plain SET to other sessions, and some poolers reject
startup parameters.
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
    """Open a transaction with local settings, or a savepoint inside a transaction.

    ``lock_timeout_ms`` also limits each statement to STATEMENT_TIMEOUT, unless this user has another limit.

    ``by_index`` is for chunks and claims, which read few rows of large tables. It prevents sequential scans and full
    sorts, which the planner prefers up to about 200,000 rows and on tables that have grown since the last ANALYZE. It
    also disables jit: up to PostgreSQL 17 a plan that must sort or scan anyway gets so high a cost that the server
    compiles it, which takes 200 ms for a claim of 2 ms.
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
    """Return one script that sets all settings, and keeps a statement timeout that is set for this user.

    SET costs the server half as much as set_config, which it parses and plans as a query.
    """
    keep = "SELECT CASE current_setting('{0}') WHEN '0' THEN set_config('{0}', '{1}', true) END"
    special = {"search_path": "SET LOCAL {} = {}", "statement_timeout": keep}  # quoted, search_path would be one name
    commands = (special.get(name, "SET LOCAL {} = '{}'").format(name, value) for name, value in settings)
    return "; ".join(commands).encode()


@contextmanager
def read_only_snapshot(connection: Connection) -> Iterator[None]:
    """Open a read-only transaction with one snapshot. Works on a standby as well.

    Inside a transaction it only continues, so that a dry run can read what its transaction has written.
    """
    if connection.info.transaction_status is not TransactionStatus.IDLE:
        yield
        return
    isolation_level, read_only = connection.isolation_level, connection.read_only
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
    try:
        with transaction(connection, lock_timeout_ms=LOCK_TIMEOUT_MS):
            yield
    finally:
        if not connection.closed:
            connection.isolation_level, connection.read_only = isolation_level, read_only


@cache
def all_statements() -> Mapping[str, bytes]:
    """Return all statements of ``sql/queries/<package>/<topic>.sql`` by the name in ``-- name: verb_noun``.

    Comment lines are removed, because a ``%`` in one would count as a placeholder.
    """
    found: dict[str, bytes] = {}
    for path in sorted((sql_directory() / "queries").glob("*/*.sql")):
        _, *sections = re.split(rb"^-- name: (\w+)$", path.read_bytes(), flags=re.MULTILINE)
        for name, text in zip(sections[::2], sections[1::2], strict=True):
            lines = (line for line in text.strip().splitlines() if not line.lstrip().startswith(b"--"))
            if name.decode() in found:
                raise ValueError(path, "two statements have the same name", name)
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
    """Run a named statement and return the result of ``take``.

    Opens a transaction if there is none, because certjob's settings apply only inside one.
    """
    alone = connection.info.transaction_status is TransactionStatus.IDLE
    own = transaction(connection, lock_timeout_ms=LOCK_TIMEOUT_MS) if alone else nullcontext()
    with own, connection.cursor(row_factory=row_factory) as cursor:
        return take(cursor.execute(query(name), parameters))


def execute(connection: Connection, name: str, parameters: Mapping[str, object] | None = None) -> int:
    """Run a named statement and return the number of affected rows."""
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
    """Run a named statement and return all rows, as tuples or as instances of ``into``."""
    factory: RowFactory[Any] = tuple_row if into is None else class_row(into)
    return _run(connection, name, parameters, lambda cursor: cursor.fetchall(), row_factory=factory)


def stream(
    connection: Connection, name: str, parameters: Mapping[str, object] | None = None, *, into: type[Row]
) -> Iterator[Row]:
    """Run a named statement and yield its rows, a few at a time, in a transaction that ends with the last row."""
    alone = connection.info.transaction_status is TransactionStatus.IDLE
    own = transaction(connection, lock_timeout_ms=LOCK_TIMEOUT_MS) if alone else nullcontext()
    with own, connection.cursor(name="rows", row_factory=class_row(into)) as cursor:
        connection.execute("SET LOCAL jit = off")  # compiling a large statement takes longer than its first rows
        cursor.itersize = 1_000
        yield from cursor.execute(query(name), parameters)


def fetch_value(connection: Connection, name: str, parameters: Mapping[str, object] | None = None) -> Any:
    """Run a named statement and return the first column of its first row, or None without a row."""
    return _run(connection, name, parameters, lambda cursor: cursor.fetchone(), row_factory=scalar_row)


def clock(connection: Connection) -> datetime:
    """Return the time of the database server, which dates the rows."""
    now: datetime = fetch_value(connection, "read_clock")
    return now


def persist(
    connection: Connection,
    write: Callable[[], Result],
    *,
    lock_timeout_ms: int | None = None,
    by_index: bool = False,
    tries: int = _WRITE_TRIES,
) -> Result:
    """Run ``write`` in a transaction, and repeat it up to ``tries`` times if another session's locks prevent it."""
    while True:
        try:
            with transaction(connection, lock_timeout_ms=lock_timeout_ms or LOCK_TIMEOUT_MS, by_index=by_index):
                return write()
        except CONTENTION:
            tries -= 1
            if tries <= 0:
                raise
