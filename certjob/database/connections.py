"""Connections to PostgreSQL: opened with care, and able to outlast a restart of the server."""

import logging
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg

from certjob.database.connection_errors import explain_refusal
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from certjob.stopping import StopFlag

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

CONTENTION = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)
"""Somebody else holds a row; the same transaction can succeed a moment later."""

LOST_SESSION = ("08", "57P", "25P03", "25P04")
"""How the SQLSTATE of a session begins that is over: a broken connection, a server that goes down, its time-outs for an
idle and for a long transaction."""

RESTART_PATIENCE_SECONDS = 90.0
"""How long a run waits for a database that went away: a restart with recovery, a failover."""
MOST_RESTARTS = 5
"""After more restarts in one run, the run itself may be what brings the server down."""
_POLL_SECONDS = 0.5
CONNECT_SECONDS = 10
"""How long a server may take to open a session, and one that was away to answer in a new one."""
LONGEST_SILENCE_SECONDS = 660.0
"""The longest wait for one answer: longer than any statement may take."""
NO_ANSWER = "the database does not answer any more"
RUN_AGAIN = "what was committed is kept, run it again"


class Connection(psycopg.Connection[Any]):
    """A connection that can be opened anew in place, so that whoever holds it goes on with it.

    It knows how deep in transactions it is: work can only be repeated where nothing is half done.
    """

    url = ""
    stop: StopFlag | None = None
    """What ends the wait for a server that went away; None: it is not waited for."""
    restarts = 0
    given_up: str | None = None
    """Why this connection will not be opened anew; None: it may be."""
    depth = 0
    asked_at: float | None = None
    """When the trip to the server began that has not ended yet, on the monotonic clock."""

    def wait(self, *arguments: Any, **named: Any) -> Any:
        """Make one trip to the server. Raises DatabaseUnavailableError when it was hung up on; see ``_watch``."""
        self.asked_at = time.monotonic()
        try:
            return super().wait(*arguments, **named)
        except psycopg.OperationalError as error:
            if self.given_up is not None:
                raise DatabaseUnavailableError(self.given_up, next_step=RUN_AGAIN) from error
            raise
        finally:
            self.asked_at = None

    @contextmanager
    def transaction(self, *arguments: Any, **named: Any) -> Iterator[psycopg.Transaction]:
        """Open a transaction, or a savepoint inside one. certjob's settings come with ``database.transaction``."""
        self.depth += 1
        try:
            with super().transaction(*arguments, **named) as transaction:
                yield transaction
        finally:
            self.depth -= 1


def connect(url: str) -> Connection:
    """Open an autocommit connection that never prepares statements and notices a dead network.

    Raises ConfigurationError when the URL, user, password or database name is wrong, DatabaseUnavailableError when the
    server cannot be reached. Neither text holds the URL.
    """
    _refuse_unencoded(url)
    try:
        connection = Connection.connect(
            url,
            application_name="certjob",
            client_encoding="utf8",
            connect_timeout=CONNECT_SECONDS,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
        )
    except psycopg.ProgrammingError:
        message = "CERTJOB_DATABASE_URL is not a valid PostgreSQL URL"
        raise ConfigurationError(message, next_step="expected postgresql://user:password@host:port/database") from None
    except psycopg.OperationalError as error:
        raise explain_refusal(error) from None
    connection.url = url
    _set_up(connection)
    return connection


def _set_up(connection: Connection) -> None:
    """Make a new session certjob's; nothing of this goes over the network."""
    connection.autocommit = True
    connection.prepare_threshold = None
    connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED


def _refuse_unencoded(url: str) -> None:
    """Refuse a URL whose password was not percent-encoded: libpq would take a piece of it for the host and print it."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        return
    authority, _, path = rest.partition("/")
    parameters = path.partition("?")[2]
    if "@" in path.removesuffix(parameters) or "@" in authority.partition("@")[2] or re.search("[?#].*@", authority):
        message = "CERTJOB_DATABASE_URL: a sign in the user or the password is not percent-encoded"
        raise ConfigurationError(message, next_step="write @ : / # ? and % as %40 %3A %2F %23 %3F and %25 there")


def _open_and_ask(url: str) -> Connection:
    """Open a connection on which the server answers: a pooler accepts one although the server behind it is away."""
    connection = connect(url)
    hang_up_when_silent(connection, seconds=CONNECT_SECONDS)
    try:
        connection.execute("SELECT 1")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_again(lost: Connection, *, patience_seconds: float = 60.0) -> Connection:
    """Open a new connection to the server of a lost one, once the server answers. Raises as ``connect`` does."""
    give_up_at = time.monotonic() + patience_seconds
    while True:
        try:
            connection = connect(lost.url)
            try:
                connection.execute("SELECT 1")  # a pooler accepts a connection although its server is away
            except psycopg.OperationalError as error:
                connection.close()
                raise explain_refusal(error) from None
        except DatabaseUnavailableError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_POLL_SECONDS)
        else:
            return connection


def outlast_restarts(connection: Connection, *, stop: StopFlag) -> None:
    """Let ``repeated`` wait for the server on this connection, until the stop flag is set."""
    connection.stop = stop


def hang_up_when_silent(connection: Connection, *, seconds: float | None = None) -> None:
    """Let no trip to the server take longer than LONGEST_SILENCE_SECONDS, or than this.

    A server can stall behind a proxy that keeps the connection: no time-out of the network's own comes then.
    """
    arguments = (weakref.ref(connection), seconds or LONGEST_SILENCE_SECONDS)
    threading.Thread(target=_watch, args=arguments, name="silence", daemon=True).start()


def _watch(watched: "weakref.ref[Connection]", seconds: float) -> None:
    while (connection := watched()) is not None and connection.given_up is None:
        asked_at = connection.asked_at
        if asked_at is not None and time.monotonic() - asked_at > seconds:
            hang_up(connection)
        del connection
        time.sleep(seconds / 100)


def repeated(connection: Connection, work: Callable[[], Result]) -> Result:
    """Do work that begins and ends outside any transaction; once more when the server went away and came back.

    Whether the commit it was in the middle of has happened, nobody knows: work must bear to be done twice, as a chunk
    that decides anew, or a settle that names its token. Raises DatabaseUnavailableError when the server stays away.
    """
    if connection.given_up is not None:  # what tidies up after it must not hide the reason
        raise DatabaseUnavailableError(connection.given_up, next_step=RUN_AGAIN)
    while True:
        try:
            return work()
        except psycopg.Error as error:
            if connection.stop is None or connection.depth or not is_gone(connection, error):
                raise
            _wait_for_server(connection, error, stop=connection.stop)


def hang_up(connection: Connection) -> None:
    """Shut the connection's socket down under whoever waits on it, in any thread, for good: it is not opened anew.

    A proxy may keep a connection open for hours whose server is long gone, and cancelling goes through the same proxy.
    """
    connection.given_up = NO_ANSWER
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as same:
        same.shutdown(socket.SHUT_RDWR)


def is_gone(connection: Connection, error: psycopg.Error) -> bool:
    """Return whether the error ended the session, not only a statement."""
    return connection.closed or (error.sqlstate or "").startswith(LOST_SESSION)


def _wait_for_server(connection: Connection, error: psycopg.Error, *, stop: StopFlag) -> None:
    """Open the connection anew, in place. Raises DatabaseUnavailableError, or StoppedBySignalError after a signal."""
    if connection.given_up is not None:
        raise DatabaseUnavailableError(connection.given_up, next_step=RUN_AGAIN) from error
    cause = error.diag.message_primary or " ".join(str(error).split())
    connection.close()
    connection.restarts += 1
    if connection.restarts > MOST_RESTARTS:
        connection.given_up = (
            f"the database went away {MOST_RESTARTS} times and more in one run: {cause}, see the server's log"
        )
        raise DatabaseUnavailableError(connection.given_up, next_step=RUN_AGAIN) from error
    patience_seconds = RESTART_PATIENCE_SECONDS
    about = {"event": "database_lost"}
    logger.info("the database went away (%s); waiting up to %.0f s for it", cause, patience_seconds, extra=about)
    give_up_at = time.monotonic() + patience_seconds
    stop.check()
    while True:
        try:
            fresh = _open_and_ask(connection.url)
            break
        except (DatabaseUnavailableError, psycopg.OperationalError) as refused:
            if time.monotonic() >= give_up_at:
                connection.given_up = (
                    f"the database went away ({cause}) and was not back after {patience_seconds:.0f} s"
                )
                raise DatabaseUnavailableError(connection.given_up, next_step=RUN_AGAIN) from refused
            stop.sleep(_POLL_SECONDS)
    dead = connection.pgconn
    # The whole state is made anew: a BEGIN that met the end of the session leaves psycopg's count of transactions at 1.
    Connection.__init__(connection, fresh.pgconn)
    fresh.pgconn = dead  # and goes with it
    _set_up(connection)
    logger.info("the database is back", extra={"event": "database_back"})
