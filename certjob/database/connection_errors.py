"""What a refused connection means, and the next step: PostgreSQL's, libpq's and the poolers' own words, made ours.

A refusal has no SQLSTATE when it comes from libpq, so it is known by its text. Sources: PostgreSQL's ``postinit.c``,
``auth.c`` and ``fe-connect.c``, PgBouncer's ``client.c`` and ``objects.c``, Supabase's Supavisor.
"""

import re
from dataclasses import dataclass
from typing import Final

import psycopg

from certjob.errors import ConfigurationError, DatabaseUnavailableError

_URL: Final = "CERTJOB_DATABASE_URL"

REFUSED: Final = "the database refused the connection"
NOT_NOW: Final = "the database takes no connections just now"
FULL: Final = "the database takes no more connections"
OUT_OF_REACH: Final = "the database cannot be reached"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of refusal."""

    what: str
    """What it means; ``REFUSED`` is a wrong setting (exit 2), the others may pass by themselves (exit 1)."""
    signs: str
    """A regular expression that its text fits."""
    advice: str
    """The next step."""

    def to_error(self, text: str) -> ConfigurationError | DatabaseUnavailableError:
        """Return the error of a refusal with this text."""
        kind = ConfigurationError if self.what == REFUSED else DatabaseUnavailableError
        return kind(f"{self.what}: {_cause(text)}; {self.advice}")


_NEEDS_PASSWORD: Final = Refusal(REFUSED, "no password supplied", f"add the password to {_URL}")

_REFUSALS: Final = (
    # A pooler's words about the server behind it come first: they may quote that server's.
    Refusal(
        NOT_NOW,
        r"server login (has been )?fail|cannot connect to server|client_login_timeout|db_termination",
        "the pooler answers, but not the database behind it; see whether that runs, and the pooler's log",
    ),
    Refusal(
        REFUSED,
        "[Tt]enant",
        f"on Supabase's pooler the user is postgres.PROJECT and the host that of the project's region; correct {_URL}",
    ),
    Refusal(
        REFUSED,
        r"unsupported startup parameter",
        f"take the options out of {_URL}: this pooler does not pass them on",
    ),
    _NEEDS_PASSWORD,
    Refusal(
        REFUSED,
        "(Peer|Ident) authentication failed",
        f"run certjob as the system user of that name, or give a host and a password in {_URL}",
    ),
    Refusal(REFUSED, "client certificate|certificate authentication failed", f"give sslcert and sslkey in {_URL}"),
    Refusal(
        REFUSED,
        r"SSL (connection is )?required$|requires? (an )?SSL|connection is insecure",
        f"add sslmode=verify-full, or at least sslmode=require, to {_URL}",
    ),
    Refusal(
        REFUSED,
        r"pg_hba\.conf",
        f"correct user, database or sslmode in {_URL}, or have the server's pg_hba.conf let this machine in",
    ),
    Refusal(
        REFUSED,
        "is not permitted to log in",
        f"give the role that right (ALTER ROLE … LOGIN), or correct the user in {_URL}",
    ),
    Refusal(
        REFUSED,
        "permission denied to set role",
        f"GRANT that role to the user of {_URL}, or take it out of the options",
    ),
    Refusal(
        REFUSED,
        "permission denied for database",
        f"have its owner GRANT CONNECT ON DATABASE to this user, or correct the database name in {_URL}",
    ),
    Refusal(
        REFUSED, "invalid database", "it was being dropped; drop it for good, and restore it from a backup if need be"
    ),
    Refusal(
        NOT_NOW,
        r"database .* (is not currently accepting connections|is disabled|does not allow connections)"
        r"|database does not allow connections",
        f"somebody has closed it, as for a restore; ALTER DATABASE … ALLOW_CONNECTIONS true, or correct {_URL}",
    ),
    Refusal(
        REFUSED,
        "database .* does not exist|no such database",
        f"correct the database name in {_URL}",
    ),
    Refusal(REFUSED, "role .* does not exist", f"correct the user in {_URL}, or the role in its options"),
    Refusal(
        REFUSED,
        "authentication failed|auth failed|no such user|login rejected|SASL",
        f"correct user or password in {_URL}",
    ),
    Refusal(
        REFUSED,
        "server does not support SSL",
        f"have TLS set up on the server, or where the way to it is safe, take sslmode out of {_URL}",
    ),
    Refusal(
        REFUSED,
        "certificate|sslrootcert",
        f"in {_URL}, give the authority's certificate as sslrootcert, and the host by the name in the certificate",
    ),
    Refusal(
        REFUSED,
        r"invalid [\w ]*(value|option|number)|parameter \"|definition of service|channel binding"
        r"|authentication method requirement|Servname not supported",
        f"correct the port and the options in {_URL}",
    ),
    Refusal(
        NOT_NOW,
        r"starting up|shutting down|shut down|in recovery mode|not (yet )?accepting connections|terminating connection",
        "it is starting, stopping or recovering; wait a minute, and if it stays so, see the server's log",
    ),
    Refusal(
        FULL,
        r"too many (connections|clients)|remaining connection slots|no more connections|[Mm]ax ?[Cc]lient"
        r"|query_wait_timeout|check out (a )?process",
        "all of its connections are in use; end some of them or raise its limit, then run it again",
    ),
    Refusal(
        OUT_OF_REACH,
        "read-only|read/write mode|standby mode",
        f"no host in {_URL} is what its target_session_attrs asks for; correct one of them, or wait for the failover",
    ),
    Refusal(
        OUT_OF_REACH,
        "resolve host|translate host name",
        f"check the host in {_URL}, and whether this machine's DNS works",
    ),
    Refusal(
        OUT_OF_REACH,
        "[Nn]etwork is unreachable",
        f"this machine has no way there, perhaps for want of IPv6; give a host with IPv4 in {_URL}, as a pooler's",
    ),
    Refusal(
        OUT_OF_REACH,
        "timeout expired|timed out",
        f"check the host and port in {_URL}, whether the server runs (behind a pooler, too), and the firewalls",
    ),
    Refusal(
        OUT_OF_REACH,
        "invalid response|expected authentication request",
        f"something answers there that is no PostgreSQL; check the host and port in {_URL}",
    ),
)
"""The first that fits counts."""

_OTHERWISE: Final = Refusal(OUT_OF_REACH, "", f"check the host and port in {_URL} and whether the server runs")

_NO_CONNECTION: Final = re.compile("^(08|28|3D|53300)")
"""SQLSTATEs of a session that never was; a pooler says so only when the first statement comes."""


_LONGEST: Final = 1_000
"""Characters that are looked at: what answers there need not be a database, and may say anything."""


def explain_refusal(error: psycopg.OperationalError) -> ConfigurationError | DatabaseUnavailableError:
    """Return the error of a connection that was not made; its text has no URL in it."""
    text = " ".join(str(error).split()) or "no answer"
    if error.pgconn is not None and error.pgconn.needs_password:
        return _NEEDS_PASSWORD.to_error(text)
    return (_find(text) or _OTHERWISE).to_error(text)


def explain_late_refusal(error: psycopg.OperationalError) -> ConfigurationError | DatabaseUnavailableError | None:
    """Return the same for an error of a statement, if it is a pooler's refusal that came late; else None."""
    text = error.diag.message_primary or ""
    found = _find(text) if _NO_CONNECTION.match(error.sqlstate or "") else None
    return found.to_error(text) if found is not None else None


def _find(text: str) -> Refusal | None:
    said = _cause(text)
    return next((refusal for refusal in _REFUSALS if re.search(refusal.signs, said)), None)


def _cause(text: str) -> str:
    """The server's words of its last try, or libpq's, without what they repeat and what follows them."""
    said = text.rpartition("FATAL: ")[2].strip()[:_LONGEST]
    said = re.sub("^connection (failed|is bad): ", "", said)
    # Of postgresql://user:password/database, which has no host, libpq takes the password for the port, and quotes it.
    said = re.sub(r'(invalid [\w ]*(?:value|number)):? "[^"]*"', r"\1", said)
    return re.split(r" (?:DETAIL|HINT): | Is the server running | Either provide the file", said)[0].rstrip(".")
