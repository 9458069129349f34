"""Each rejected connection gives an error with the message of the server or libpq, and a next step."""

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from certjob.database import connections
from certjob.database.connection_errors import explain_rejection
from certjob.errors import CertjobError
from tests.support.command_line import SECRET

REJECTED = "the database rejected the connection: "
NOT_NOW = "the database accepts no connection: "
OUT_OF_REACH = "the database cannot be reached: "
NEXT_STEPS = {
    REJECTED: "correct CERTJOB_DATABASE_URL, or grant this user the missing right on the server",
    NOT_NOW: "wait a minute; if the error remains, read the log of the server or the pooler",
    OUT_OF_REACH: "check the host and port in CERTJOB_DATABASE_URL, and that the server is running",
}


def assert_said(error: CertjobError, meaning: str, quoted: str) -> None:
    """Check meaning, message, next step and exit code of an error of one line."""
    said = str(error)
    assert said.startswith(meaning), said
    assert said.endswith(f"{quoted}; {NEXT_STEPS[meaning]}"), said
    assert "\n" not in said
    assert error.exit_code == (2 if meaning == REJECTED else 1)
    assert SECRET not in said


def test_rejection_of_a_real_server_has_a_next_step(database_url: str) -> None:
    """A wrong setting exits with 2. The password is not printed."""
    no_host = f"postgresql://certjob:{SECRET}/certjob"  # libpq reads the password as the port
    for url, meaning, quoted in (
        (make_conninfo(database_url, dbname="nonesuch"), REJECTED, 'database "nonesuch" does not exist'),
        (make_conninfo(database_url, user="certjob_worker"), REJECTED, "is not permitted to log in"),
        (make_conninfo(database_url, options="-c nonesuch=1"), REJECTED, 'parameter "nonesuch"'),
        (make_conninfo(database_url, target_session_attrs="standby"), NOT_NOW, "standby mode"),
        (make_conninfo(database_url, sslmode=SECRET), REJECTED, "invalid sslmode value"),
        (no_host, REJECTED, "Servname not supported for ai_socktype"),
        (make_conninfo(database_url, host="127.0.0.1", port=1), OUT_OF_REACH, "Connection refused"),
    ):
        with pytest.raises(CertjobError) as caught:
            connections.connect(url)
        assert_said(caught.value, meaning, quoted)


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ('password authentication failed for user "u"', REJECTED),
        ('permission denied for database "d"', REJECTED),
        ("SSL error: certificate verify failed", REJECTED),
        ("Tenant or user not found", REJECTED),  # Supavisor
        ("the database system is starting up", NOT_NOW),
        ("pgbouncer cannot connect to server", NOT_NOW),
        ("server login has been failing, cached error: password authentication failed", NOT_NOW),
        ("sorry, too many clients already", NOT_NOW),
        ("session is read-only", NOT_NOW),
    ],
)
def test_rejection_is_recognised_by_its_message(message: str, meaning: str) -> None:
    """The messages are those of PostgreSQL, libpq, PgBouncer and Supavisor."""
    failed = 'connection failed: connection to server at "10.0.0.2", port 5432 failed: '

    for before in ("FATAL:  ", ""):
        error = explain_rejection(psycopg.OperationalError(f"{failed}{before}{message}\nDETAIL:  More."))
        assert_said(error, meaning, message)


@pytest.mark.parametrize(
    ("message", "meaning", "quoted"),
    [
        (
            'FATAL:  could not write to file "pg_wal/xlogtemp.1": No space left on device',
            NOT_NOW,
            "No space left on device",
        ),
        ("Network is unreachable\nIs the server running on that host", OUT_OF_REACH, "Network is unreachable"),
    ],
    ids=["full disk", "no server"],
)
def test_host_and_port_are_doubted_only_if_no_server_has_answered(message: str, meaning: str, quoted: str) -> None:
    error = psycopg.OperationalError(f'connection to server at "10.0.0.2", port 5432 failed: {message}')

    assert_said(explain_rejection(error), meaning, quoted)
