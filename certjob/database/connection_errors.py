"""What a refused connection means, and the next step; always with the words of the server, the pooler or libpq.

A refusal has no SQLSTATE when it comes from libpq, so it is known by its text. Sources: PostgreSQL's ``postinit.c``,
``auth.c`` and ``fe-connect.c``, PgBouncer's ``client.c`` and ``objects.c``, Supabase's Supavisor.
"""

import re
from typing import Final

import psycopg

from certjob.errors import ConfigurationError, DatabaseUnavailableError

REFUSED: Final = "the database refused the connection"
"""A wrong setting (exit 2); the others may pass by themselves (exit 1)."""
NOT_NOW: Final = "the database takes no connections right now"
FULL: Final = "the database takes no more connections"
OUT_OF_REACH: Final = "the database cannot be reached"

_URL: Final = "CERTJOB_DATABASE_URL"

_REFUSALS: Final = (
    # A pooler's words about the server behind it may quote that server's, so they come first.
    (
        NOT_NOW,
        r"server login (has been )?fail|cannot connect to server|client_login_timeout|db_termination"
        r"|starting up|shutting down|shut down|in recovery mode|terminating connection"
        r"|not (currently |yet )?accepting connections|is disabled|does not allow connections",
        "wait a minute; if it stays so, see whether the server runs and this database is open (ALLOW_CONNECTIONS),"
        " and its log, or the pooler's",
    ),
    (
        FULL,
        r"too many (connections|clients)|remaining connection slots|no more connections|[Mm]ax ?[Cc]lient"
        r"|query_wait_timeout|check out (a )?process",
        "all of its connections are in use; end some of them or raise its limit, then run it again",
    ),
    (
        OUT_OF_REACH,
        "read-only|read/write mode|standby mode",
        f"no host in {_URL} is what its target_session_attrs asks for; correct one of them, or wait for the failover",
    ),
    (
        REFUSED,
        r"SSL (connection is )?required|requires? (an )?SSL|does not support SSL|connection is insecure"
        r"|certificate|sslrootcert",
        f"give sslmode=verify-full and sslrootcert in {_URL}, and the host by the name in the server's certificate",
    ),
    (
        REFUSED,
        "[Tt]enant|unsupported startup parameter",
        f"correct {_URL}: a pooler passes no options on, and to Supabase's the user is postgres.PROJECT",
    ),
    (
        REFUSED,
        r"authentication failed|auth failed|SASL|no password|no such (user|database)|login rejected|does not exist"
        r"|not permitted to log in|permission denied|invalid database|pg_hba\.conf",
        f"correct the user, the password or the database in {_URL}, or grant this user on the server what is missing",
    ),
    (
        REFUSED,
        r"invalid [\w ]*(value|option|number)|parameter \"|definition of service|channel binding"
        r"|authentication method requirement|Servname not supported",
        f"correct the port and the options in {_URL}",
    ),
)
"""What it means, a regular expression that its text fits, and the next step. The first that fits counts."""

_OTHERWISE: Final = (OUT_OF_REACH, "", f"check the host and port in {_URL} and whether the server runs")

_NO_CONNECTION: Final = re.compile("^(08|28|3D|53300)")
"""SQLSTATEs of a session that never was; a pooler says so only when the first statement comes."""

_LONGEST: Final = 1_000
"""Characters that are looked at: what answers there need not be a database, and may say anything."""

_Refusal = ConfigurationError | DatabaseUnavailableError


def explain_refusal(error: psycopg.OperationalError) -> _Refusal:
    """Return the error of a connection that was not made; its text has no URL in it."""
    text = " ".join(str(error).split()) or "no answer"
    return _explain(text) or _to_error(*_OTHERWISE, text)


def explain_late_refusal(error: psycopg.OperationalError) -> _Refusal | None:
    """Return the same for an error of a statement, if it is a pooler's refusal that came late; else None."""
    return _explain(error.diag.message_primary or "") if _NO_CONNECTION.match(error.sqlstate or "") else None


def _explain(text: str) -> _Refusal | None:
    said = _cause(text)
    return next((_to_error(*refusal, text) for refusal in _REFUSALS if re.search(refusal[1], said)), None)


def _to_error(what: str, _signs: str, advice: str, text: str) -> _Refusal:
    kind = ConfigurationError if what == REFUSED else DatabaseUnavailableError
    return kind(f"{what}: {_cause(text)}", next_step=advice)


def _cause(text: str) -> str:
    """The server's words of its last try, or libpq's, without what they repeat and what follows them."""
    said = text.rpartition("FATAL: ")[2].strip()[:_LONGEST]
    said = re.sub("^connection (failed|is bad): ", "", said)
    # Of postgresql://user:password/database, which has no host, libpq takes the password for the port, and quotes it.
    said = re.sub(r'(invalid [\w ]*(?:value|number)):? "[^"]*"', r"\1", said)
    return re.split(r" (?:DETAIL|HINT): | Is the server running | Either provide the file", said)[0].rstrip(".")
