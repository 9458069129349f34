"""Apply the pending migrations of the schema in order, in one transaction."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import psycopg

from certjob import database
from certjob.database.connections import CONTENTION, Connection
from certjob.database.statements import sql_directory
from certjob.errors import ConfigurationError, DatabaseUnavailableError, SchemaError, UsageError

logger = logging.getLogger(__name__)

LOCK_KEY = 0x63657274  # "cert": one migration at a time in one database
_LOCK_WAIT_SECONDS = 60
_POLL_SECONDS = 0.2
_TABLE_LOCK_TIMEOUT = "10s"
READ_LOCK_TIMEOUT_MS = 30_000
"""How long a command waits at its start for a table that another session is altering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """A file of ``sql/migrations``, or a row of the ledger; a row alone has no path."""

    version: int
    name: str
    sha256: str
    path: Path | None = None
    applied_at: datetime | None = None


def migrations(directory: Path | None = None) -> list[Migration]:
    """Return the migrations of this version of certjob, in order."""
    found = []
    for path in sorted((directory or sql_directory() / "migrations").glob("[0-9]*.sql")):
        number, _, name = path.stem.partition("_")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found.append(Migration(version=int(number), name=name, sha256=digest, path=path))
    return found


def status(connection: Connection, directory: Path | None = None) -> list[Migration]:
    """Return all migrations with the time of their application (None: pending).

    Raises SchemaError if an applied file was edited or the schema is newer than this certjob, and ConfigurationError if
    this database user cannot see certjob's tables.
    """
    try:
        with database.transaction(connection):
            applied = _visible_ledger(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        said = error.diag.message_primary
        message = f"the database user may not read certjob's tables ({said})"
        raise ConfigurationError(message, next_step=how_to_get_rights(connection)) from error
    return _compare(migrations(directory), applied)


def require_current(connection: Connection) -> None:
    """Raise SchemaError unless exactly the migrations of this certjob are applied.

    Raises DatabaseUnavailableError if another session has locked a table, because the error of a later statement would
    not name the table and the session.
    """
    try:
        with database.transaction(connection, lock_timeout_ms=READ_LOCK_TIMEOUT_MS):
            pending = [migration for migration in status(connection) if migration.applied_at is None]
            if not pending:
                connection.execute(database.query("lock_tables_to_read"))
    except psycopg.errors.InsufficientPrivilege:
        return  # this user may read only some tables; the command's own statements decide
    except CONTENTION as error:
        raise _locked_table(connection) from error
    if pending:
        message = f"the database schema is not migrated ({len(pending)} pending)"
        raise SchemaError(message, next_step="run `certjob db migrate`")


def _locked_table(connection: Connection) -> DatabaseUnavailableError:
    found = database.fetch(connection, "find_locked_table")
    table, process = found[0] if found else ("of certjob", None)
    holder = f"process {process}" if process is not None else "a prepared transaction, or one that has just ended"
    return DatabaseUnavailableError(
        f"the table {table} is locked by another session ({holder}) and cannot be read",
        next_step="end that session and run the command again",
    )


def migrate(
    connection: Connection, directory: Path | None = None, *, warn: Callable[[str], object] = logger.warning
) -> list[Migration]:
    """Apply the pending migrations, set the rights, and return the applied migrations.

    Safe to repeat, to run concurrently, and to kill. ``warn`` receives steps that need an operator with more rights.

    Raises SchemaError for an edited file or a newer schema, and ConfigurationError for missing rights or an encoding
    that cannot store every name.
    """
    (encoding,) = connection.execute("SHOW server_encoding").fetchone() or ("unknown",)
    if encoding != "UTF8":
        message = f"the database's encoding is {encoding}"
        raise ConfigurationError(message, next_step="create a database with ENCODING 'UTF8' TEMPLATE template0")

    def pass_on(notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            warn(notice.message_primary or "")

    connection.add_notice_handler(pass_on)
    try:
        with _locked(connection):
            _prepare(connection)
            known = _compare(migrations(directory), _ledger(connection))
            pending = [migration for migration in known if migration.applied_at is None]
            for migration in pending:
                _apply(connection, migration)
            database.execute(connection, "set_up_rights")
            return pending
    except psycopg.errors.InsufficientPrivilege as error:
        message = f"the database user may not change the schema ({error.diag.message_primary})"
        step = f"migrate as its owner; for a new schema, GRANT CREATE ON DATABASE {connection.info.dbname} to this user"
        raise ConfigurationError(message, next_step=step) from error
    except psycopg.errors.ReadOnlySqlTransaction as error:
        message = "the database is read-only"
        raise DatabaseUnavailableError(message, next_step="migrate on the primary") from error
    except CONTENTION as error:
        message = "a table is in use by another session"
        raise DatabaseUnavailableError(message, next_step="end it, or run `certjob db migrate` again later") from error
    finally:
        connection.remove_notice_handler(pass_on)


def script(*, after: int = 0) -> str:
    """Return the migrations after this version as one SQL file, for tools that apply files themselves.

    It also creates the worker's role and the ledger, fills the ledger, and sets the rights. So `certjob db migrate`
    finds the schema up to date. It opens no transaction, because these tools do.

    Raises UsageError if there is no such version.
    """
    known = migrations()
    if not 0 <= after <= known[-1].version:
        message = f"there is no migration {after}"
        raise UsageError(message, next_step=f"the newest one is {known[-1].version}")
    parts = [
        "-- certjob's schema, written by `certjob db migrate --sql`. Do not edit it: the ledger has its checksums."
    ]
    if not after:
        parts += [f"{database.query(name).decode().rstrip()};" for name in ("create_worker_role", "create_ledger")]
    for migration in known[after:]:
        text = migration.path.read_text(encoding="utf-8") if migration.path else ""
        row = f"({migration.version}, '{migration.name}', '{migration.sha256}');"
        parts += [
            f"-- {migration.version:04d}_{migration.name}\n\n{text.rstrip()}",
            f"INSERT INTO certjob.migrations (version, name, sha256) VALUES {row}",  # noqa: S608 - not from outside
        ]
    return "\n\n".join([*parts, f"{database.query('set_up_rights').decode().rstrip()};"])


def _compare(known: list[Migration], applied: dict[int, Migration]) -> list[Migration]:
    known_versions = {migration.version for migration in known}
    ahead = [row for version, row in sorted(applied.items()) if version not in known_versions]
    if ahead:
        message = f"the database schema is newer than this certjob (migration {ahead[-1].version:04d}_{ahead[-1].name})"
        raise SchemaError(message, next_step="install the newer certjob")
    result = []
    for migration in known:
        row = applied.get(migration.version)
        if row is not None and row.sha256 != migration.sha256:
            message = f"migration {migration.version:04d}_{migration.name} was edited after it was applied"
            step = "restore the file, or install the version of certjob that wrote it; put changes in a new migration"
            raise SchemaError(message, next_step=step)
        result.append(replace(migration, applied_at=row.applied_at if row else None))
    return result


@contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """Open a transaction that holds the migration lock.

    The lock is polled, because waiting inside pg_advisory_lock deadlocks with CREATE INDEX CONCURRENTLY in another
    session. It belongs to the transaction, because a transaction-mode pooler does not keep session locks.
    """
    give_up_at = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        with database.transaction(connection):
            row = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", (LOCK_KEY,)).fetchone()
            if row and row[0]:
                connection.execute("SELECT set_config('lock_timeout', %s, true)", (_TABLE_LOCK_TIMEOUT,))
                yield
                return
        if time.monotonic() > give_up_at:
            message = "another `certjob db migrate` is running"
            raise DatabaseUnavailableError(message, next_step="wait until it has finished, then try again")
        time.sleep(_POLL_SECONDS)


def _prepare(connection: Connection) -> None:
    """Create the worker's role, the schemas and the ledger, which every migration needs."""
    try:
        database.execute(connection, "create_worker_role")
    except psycopg.errors.InsufficientPrivilege as error:
        message = "the role certjob_worker does not exist, and the database user may not create roles"
        step = "as an administrator, run `CREATE ROLE certjob_worker NOLOGIN`; then run `certjob db migrate` again"
        raise ConfigurationError(message, next_step=step) from error
    database.execute(connection, "create_ledger")


def _visible_ledger(connection: Connection) -> dict[int, Migration]:
    """Return the applied migrations. Raises ConfigurationError if row-level security hides the tables."""
    exists, filtered = database.fetch(connection, "find_ledger")[0]
    if not exists:
        return {}
    applied = _ledger(connection)
    if filtered and not applied:
        message = "row-level security hides certjob's tables from the database user"
        raise ConfigurationError(message, next_step=how_to_get_rights(connection))
    return applied


def how_to_get_rights(connection: Connection) -> str:
    """Return the next step for a database user who cannot read certjob's tables or their rows."""
    if database.fetch_value(connection, "is_worker"):
        return "as the tables' owner, run `certjob db migrate`"
    return f"GRANT certjob_worker TO {connection.info.user}, or connect as the tables' owner"


def _ledger(connection: Connection) -> dict[int, Migration]:
    rows = database.fetch(connection, "list_applied_migrations", into=Migration)
    return {migration.version: migration for migration in rows}


def _apply(connection: Connection, migration: Migration) -> None:
    if migration.path is None:
        return
    try:
        connection.execute(migration.path.read_bytes())
    except psycopg.errors.DuplicateTable as error:
        message = f"migration {migration.version:04d}_{migration.name} failed: {error.diag.message_primary}"
        raise SchemaError(
            message, next_step="the schema certjob is for certjob's tables only; rename the other schema"
        ) from error
    values = {"version": migration.version, "name": migration.name, "sha256": migration.sha256}
    database.execute(connection, "insert_migration", values)
