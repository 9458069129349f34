"""Turn a rejected connection into an error with the message of the server, the pooler or libpq, and a next step.

Errors of libpq have no SQLSTATE, so their text decides. Sources of the texts: PostgreSQL's ``postinit.c``, ``auth.c``
and ``fe-connect.c``, PgBouncer's ``client.c`` and ``objects.c``, Supabase's Supavisor.
"""

import re
from typing import Final

import psycopg

from certjob.errors import ConfigurationError, DatabaseUnavailableError

_URL: Final = "CERTJOB_DATABASE_URL"

_TEMPORARY: Final = re.compile(
    r"server login (has been )?fail|cannot connect to server|client_login_timeout|db_termination"
    r"|starting up|shutting down|shut down|in recovery mode|terminating connection|is disabled"
    r"|not (currently |yet )?accepting connections|does not allow connections"
    r"|too many (connections|clients)|remaining connection slots|no more connections|[Mm]ax ?[Cc]lient"
    r"|query_wait_timeout|check out (a )?process|read-only|read/write mode|standby mode"
)
"""Messages of a server or a pooler that may accept the same connection later, although they quote a setting."""

_WRONG_SETTING: Final = re.compile(
    r"SSL (connection is )?required|requires? (an )?SSL|does not support SSL|connection is insecure"
    r"|certificate|sslrootcert|[Tt]enant|unsupported startup parameter"
    r"|authentication failed|auth failed|SASL|no password|no such (user|database)|login rejected|does not exist"
    r"|not permitted to log in|permission denied|invalid database|pg_hba\.conf"
    r"|invalid [\w ]*(value|option|number)|parameter \"|definition of service|channel binding"
    r"|authentication method requirement|Servname not supported"
)
"""Messages about a wrong URL or a missing right, so the same connection is rejected again."""

_REJECTED_SESSION: Final = ("08", "28", "3D")
"""SQLSTATEs of a rejected session. A pooler sends them only in answer to the first statement."""

_LONGEST: Final = 1_000
"""Characters of the message that are read, because the other side may not be a database."""


def explain_rejection(error: psycopg.OperationalError) -> ConfigurationError | DatabaseUnavailableError:
    """Return the error for a rejected connection. Its text does not contain the URL."""
    text = " ".join(str(error).split()) or "no answer"
    wrong = _wrong_setting(text)
    if wrong is not None:
        return wrong
    cause = _cause(text)
    if "FATAL: " in text or _TEMPORARY.search(cause):
        step = "wait a minute; if the error remains, read the log of the server or the pooler"
        return DatabaseUnavailableError(f"the database accepts no connection: {cause}", next_step=step)
    step = f"check the host and port in {_URL}, and that the server is running"
    return DatabaseUnavailableError(f"the database cannot be reached: {cause}", next_step=step)


def explain_late_rejection(error: psycopg.OperationalError) -> ConfigurationError | None:
    """Return the error for a wrong setting that a pooler reported only for the first statement; otherwise None."""
    is_about_connection = (error.sqlstate or "").startswith(_REJECTED_SESSION)
    return _wrong_setting(error.diag.message_primary or "") if is_about_connection else None


def _wrong_setting(text: str) -> ConfigurationError | None:
    cause = _cause(text)
    if _TEMPORARY.search(cause) or not _WRONG_SETTING.search(cause):
        return None
    step = f"correct {_URL}, or grant this user the missing right on the server"
    return ConfigurationError(f"the database rejected the connection: {cause}", next_step=step)


def _cause(text: str) -> str:
    """Return the server's last message, or libpq's, without prefix, detail and hint."""
    said = text.rpartition("FATAL: ")[2].strip()[:_LONGEST]
    said = re.sub("^connection (failed|is bad): ", "", said)
    # In postgresql://user:password/database, libpq reads the password as the port, and quotes it.
    said = re.sub(r'(invalid [\w ]*(?:value|number)):? "[^"]*"', r"\1", said)
    return re.split(r" (?:DETAIL|HINT): | Is the server running | Either provide the file", said)[0].rstrip(".")
