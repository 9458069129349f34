"""Connections, transactions, and the statements of ``sql/`` by their file names."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, overload

import psycopg
from psycopg.rows import RowFactory, class_row, scalar_row, tuple_row

from certjob.errors import ConfigurationError, DatabaseUnavailableError

Connection = psycopg.Connection[Any]

Row = TypeVar("Row")

CONTENTION = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
"""Somebody else holds a row; the same transaction can succeed a moment later."""


def sql_directory() -> Path:
    """Return the folder with ``migrations`` and ``queries``: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parent
    inside = package / "sql"
    return inside if inside.is_dir() else package.parent / "sql"


def connect(url: str) -> Connection:
    """Open an autocommit connection that never prepares statements and notices a dead network.

    Raises ConfigurationError when the URL, user, password or database name is wrong, DatabaseUnavailableError when the
    server cannot be reached. Neither text holds the URL.
    """
    _refuse_unencoded(url)
    try:
        connection = psycopg.connect(
            url,
            autocommit=True,
            prepare_threshold=None,
            application_name="certjob",
            client_encoding="utf8",
            connect_timeout=10,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
        )
    except psycopg.ProgrammingError:
        message = (
            "CERTJOB_DATABASE_URL is no valid PostgreSQL URL; expected postgresql://user:password@host:port/database"
        )
        raise ConfigurationError(message) from None
    except psycopg.OperationalError as error:
        raise _connection_error(error) from None
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def _refuse_unencoded(url: str) -> None:
    """Refuse a URL whose password was not percent-encoded: libpq would take a piece of it for the host and print it."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        return
    authority, _, path = rest.partition("/")
    parameters = path.partition("?")[2]
    if "@" in path.removesuffix(parameters) or "@" in authority.partition("@")[2] or re.search("[?#].*@", authority):
        message = "CERTJOB_DATABASE_URL: in the user and the password, write @ : / # ? and % percent-encoded (@ is %40)"
        raise ConfigurationError(message)


def _connection_error(error: psycopg.OperationalError) -> ConfigurationError | DatabaseUnavailableError:
    text = " ".join(str(error).split()) or "no answer"
    needs_password = error.pgconn is not None and error.pgconn.needs_password
    for sign, advice in (
        ("password authentication failed", "correct user or password in CERTJOB_DATABASE_URL"),
        ("no password supplied", "add the password to CERTJOB_DATABASE_URL"),
        ("pg_hba.conf", "correct user, database or sslmode in CERTJOB_DATABASE_URL"),
        ("authentication failed", "correct user or password in CERTJOB_DATABASE_URL"),
        ("role ", "correct the user in CERTJOB_DATABASE_URL"),
        ("database ", "correct the database name in CERTJOB_DATABASE_URL"),
    ):
        if f"FATAL: {sign}" in text or (sign in text and not sign.endswith(" ")) or needs_password:
            return ConfigurationError(f"the database refused the connection: {_cause(text)}; {advice}")
    advice = "check the host and port in CERTJOB_DATABASE_URL and whether the server runs"
    return DatabaseUnavailableError(f"the database cannot be reached: {_cause(text)}; {advice}")


def _cause(text: str) -> str:
    return text.partition("FATAL: ")[2].strip() or text.removeprefix("connection failed: ")


@contextmanager
def transaction(connection: Connection, *, lock_timeout_ms: int | None = None) -> Iterator[None]:
    """Open a transaction; with a lock timeout that is local to it (a pooler would leak a plain SET)."""
    with connection.transaction():
        if lock_timeout_ms is not None:
            connection.execute("SELECT set_config('lock_timeout', %s, true)", (str(lock_timeout_ms),))
        yield


@contextmanager
def read_only_snapshot(connection: Connection) -> Iterator[None]:
    """Open a transaction that sees one moment and can write nothing; works on a read-only server too."""
    isolation_level, read_only = connection.isolation_level, connection.read_only
    connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
    try:
        with connection.transaction():
            yield
    finally:
        if not connection.closed:
            connection.isolation_level, connection.read_only = isolation_level, read_only


@cache
def query(name: str) -> bytes:
    """Return the statement in ``sql/queries/<name>.sql`` without its comment lines.

    The comments go because a ``%`` in one would count as a placeholder.
    """
    text = (sql_directory() / "queries" / f"{name}.sql").read_bytes()
    return b"\n".join(line for line in text.splitlines() if not line.lstrip().startswith(b"--"))


def execute(connection: Connection, name: str, parameters: Mapping[str, object] | None = None) -> int:
    """Run a statement by name and return the number of rows it touched."""
    return connection.execute(query(name), parameters).rowcount


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
    with connection.cursor(row_factory=factory) as cursor:
        return cursor.execute(query(name), parameters).fetchall()


def fetch_value(connection: Connection, name: str, parameters: Mapping[str, object] | None = None) -> Any:
    """Run a statement by name and return the first column of its first row, None without a row."""
    with connection.cursor(row_factory=scalar_row) as cursor:
        return cursor.execute(query(name), parameters).fetchone()
