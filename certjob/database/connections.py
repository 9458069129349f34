"""Open connections to PostgreSQL, and replace a lost one."""

import re
import time
from typing import Any

import psycopg

from certjob.database.connection_errors import explain_rejection
from certjob.errors import ConfigurationError, DatabaseUnavailableError

CONTENTION = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
"""Another session has locked a row. The same transaction can succeed later."""

LOST_SESSION = ("08", "57P", "25P03", "25P04")
"""SQLSTATE prefixes of an ended session: broken connection, server shutdown, timeout of a session or transaction."""

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0


class Connection(psycopg.Connection[Any]):
    """A connection that knows its URL."""

    url = ""


def connect(url: str) -> Connection:
    """Open an autocommit connection that never prepares statements and detects a dead network.

    Raises ConfigurationError if the URL, user, password or database name is wrong, and DatabaseUnavailableError if the
    server cannot be reached. Neither text contains the URL.
    """
    _reject_unencoded(url)
    try:
        connection = Connection.connect(
            url,
            application_name="certjob",
            client_encoding="utf8",
            connect_timeout=10,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
        )
    except psycopg.ProgrammingError:
        message = "CERTJOB_DATABASE_URL is not a valid PostgreSQL URL"
        raise ConfigurationError(message, next_step="expected postgresql://user:password@host:port/database") from None
    except psycopg.OperationalError as error:
        raise explain_rejection(error) from None
    connection.url = url
    connection.autocommit = True
    connection.prepare_threshold = None
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    return connection


def _reject_unencoded(url: str) -> None:
    """Reject a URL with an unencoded password, because libpq would print a part of it as the host."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        return
    authority, _, path = rest.partition("/")
    parameters = path.partition("?")[2]
    if "@" in path.removesuffix(parameters) or "@" in authority.partition("@")[2] or re.search("[?#].*@", authority):
        message = "CERTJOB_DATABASE_URL: a character in the user or the password is not percent-encoded"
        raise ConfigurationError(message, next_step="write @ : / # ? and % as %40 %3A %2F %23 %3F and %25 there")


def connect_again(lost: Connection) -> Connection:
    """Replace a lost connection as soon as the server answers, within a minute. Raises as ``connect`` does."""
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            connection = connect(lost.url)
            try:
                connection.execute("SELECT 1")  # a pooler accepts connections even without its server
            except psycopg.OperationalError as error:
                connection.close()
                raise explain_rejection(error) from None
        except DatabaseUnavailableError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return connection


def is_lost(error: Exception) -> bool:
    """Return whether the error ended the session, not only a statement."""
    default = "08000" if isinstance(error, psycopg.OperationalError) else ""
    return isinstance(error, psycopg.Error) and (error.sqlstate or default).startswith(LOST_SESSION)
