"""Turn a rejected connection into an error with a next step and the message of the server, the pooler or libpq.

Errors of libpq have no SQLSTATE, so their text decides. Sources of the texts: PostgreSQL's ``postinit.c``, ``auth.c``
and ``fe-connect.c``, PgBouncer's ``client.c`` and ``objects.c``, Supabase's Supavisor.
"""

import re
from typing import Final

import psycopg

from certjob.errors import ConfigurationError, DatabaseUnavailableError

REJECTED: Final = "the database rejected the connection"
"""A wrong setting (exit 2). The other rejections may be temporary (exit 1)."""
NOT_NOW: Final = "the database takes no connections right now"
FULL: Final = "the database takes no more connections"
OUT_OF_REACH: Final = "the database cannot be reached"

_URL: Final = "CERTJOB_DATABASE_URL"

_REJECTIONS: Final = (
    # First, because a pooler may quote the message of the server behind it.
    (
        NOT_NOW,
        r"server login (has been )?fail|cannot connect to server|client_login_timeout|db_termination"
        r"|starting up|shutting down|shut down|in recovery mode|terminating connection"
        r"|not (currently |yet )?accepting connections|is disabled|does not allow connections",
        "wait a minute; if the error remains, read the log of the server or the pooler, and check that the database"
        " allows connections (ALLOW_CONNECTIONS)",
    ),
    (
        FULL,
        r"too many (connections|clients)|remaining connection slots|no more connections|[Mm]ax ?[Cc]lient"
        r"|query_wait_timeout|check out (a )?process",
        "all connections are in use; close some of them or raise its limit, then run the command again",
    ),
    (
        OUT_OF_REACH,
        "read-only|read/write mode|standby mode",
        f"no host in {_URL} matches its target_session_attrs; correct one of them, or wait for the failover",
    ),
    (
        REJECTED,
        r"SSL (connection is )?required|requires? (an )?SSL|does not support SSL|connection is insecure"
        r"|certificate|sslrootcert",
        f"set sslmode=verify-full and sslrootcert in {_URL}, and use the host name from the server's certificate",
    ),
    (
        REJECTED,
        "[Tt]enant|unsupported startup parameter",
        f"correct {_URL}: a pooler does not accept options, and Supabase's pooler needs the user postgres.PROJECT",
    ),
    (
        REJECTED,
        r"authentication failed|auth failed|SASL|no password|no such (user|database)|login rejected|does not exist"
        r"|not permitted to log in|permission denied|invalid database|pg_hba\.conf",
        f"correct the user, the password or the database in {_URL}, or grant this user the missing right on the server",
    ),
    (
        REJECTED,
        r"invalid [\w ]*(value|option|number)|parameter \"|definition of service|channel binding"
        r"|authentication method requirement|Servname not supported",
        f"correct the port and the options in {_URL}",
    ),
)
"""The meaning, a regular expression for the message, and the next step. The first match counts."""

_OTHERWISE: Final = (OUT_OF_REACH, "", f"check the host and port in {_URL}, and that the server is running")

_NO_CONNECTION: Final = re.compile("^(08|28|3D|53300)")
"""SQLSTATEs of a rejected session. A pooler sends them only in answer to the first statement."""

_LONGEST: Final = 1_000
"""Characters of the message that are read, because the other side may not be a database."""

_Rejection = ConfigurationError | DatabaseUnavailableError


def explain_rejection(error: psycopg.OperationalError) -> _Rejection:
    """Return the error for a rejected connection. Its text does not contain the URL."""
    text = " ".join(str(error).split()) or "no answer"
    return _explain(text) or _to_error(*_OTHERWISE, text)


def explain_late_rejection(error: psycopg.OperationalError) -> _Rejection | None:
    """Return the error for a statement that a pooler rejected because it has no connection; otherwise None."""
    return _explain(error.diag.message_primary or "") if _NO_CONNECTION.match(error.sqlstate or "") else None


def _explain(text: str) -> _Rejection | None:
    said = _cause(text)
    return next((_to_error(*rejection, text) for rejection in _REJECTIONS if re.search(rejection[1], said)), None)


def _to_error(what: str, _signs: str, advice: str, text: str) -> _Rejection:
    kind = ConfigurationError if what == REJECTED else DatabaseUnavailableError
    return kind(f"{what}: {_cause(text)}", next_step=advice)


def _cause(text: str) -> str:
    """Return the server's last message, or libpq's, without prefix, detail and hint."""
    said = text.rpartition("FATAL: ")[2].strip()[:_LONGEST]
    said = re.sub("^connection (failed|is bad): ", "", said)
    # In postgresql://user:password/database, libpq reads the password as the port, and quotes it.
    said = re.sub(r'(invalid [\w ]*(?:value|number)):? "[^"]*"', r"\1", said)
    return re.split(r" (?:DETAIL|HINT): | Is the server running | Either provide the file", said)[0].rstrip(".")
