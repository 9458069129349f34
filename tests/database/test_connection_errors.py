"""Each rejected connection gives an error with its meaning and a next step."""

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from certjob.database import connections
from certjob.database.connection_errors import FULL, NOT_NOW, OUT_OF_REACH, REJECTED, explain_rejection
from certjob.errors import CertjobError
from tests.support.command_line import SECRET


def assert_said(error: CertjobError, what: str, phrase: str) -> None:
    """Check meaning, next step and exit code of an error of one line."""
    said = str(error)
    assert said.startswith(f"{what}: "), said
    assert "\n" not in said
    assert error.exit_code == (2 if what == REJECTED else 1)
    assert phrase in (error.next_step or ""), said
    assert SECRET not in said


def test_rejection_of_a_real_server_has_a_specific_next_step(database_url: str) -> None:
    """A wrong setting exits with 2. The password is not printed."""
    no_host = f"postgresql://certjob:{SECRET}/certjob"  # libpq reads the password as the port
    for url, meaning, next_step in (
        (make_conninfo(database_url, dbname="nonesuch"), REJECTED, "or the database"),
        (make_conninfo(database_url, user="certjob_worker"), REJECTED, "grant this user"),  # it cannot log in
        (make_conninfo(database_url, options="-c nonesuch=1"), REJECTED, "correct the port and the options"),
        (make_conninfo(database_url, target_session_attrs="standby"), OUT_OF_REACH, "target_session_attrs"),
        (make_conninfo(database_url, sslmode=SECRET), REJECTED, "correct the port and the options"),
        (no_host, REJECTED, "correct the port"),
    ):
        with pytest.raises(CertjobError) as caught:
            connections.connect(url)
        assert_said(caught.value, meaning, next_step)


@pytest.mark.parametrize(
    ("message", "meaning", "next_step"),
    [
        ('password authentication failed for user "u"', REJECTED, "the password"),
        ('permission denied for database "d"\nDETAIL:  User does not have CONNECT.', REJECTED, "the password"),
        ("SSL error: certificate verify failed", REJECTED, "sslmode=verify-full"),
        ("Tenant or user not found", REJECTED, "postgres.PROJECT"),  # Supavisor
        ("the database system is starting up", NOT_NOW, "wait a minute"),
        ("pgbouncer cannot connect to server", NOT_NOW, "wait a minute"),
        ("server login has been failing, cached error: password authentication failed", NOT_NOW, "wait a minute"),
        ("sorry, too many clients already", FULL, "raise its limit"),
        ("session is read-only", OUT_OF_REACH, "target_session_attrs"),
        ("Network is unreachable\nIs the server running on that host", OUT_OF_REACH, "check the host and port"),
    ],
)
def test_rejection_is_recognised_by_its_message(message: str, meaning: str, next_step: str) -> None:
    """The messages are those of PostgreSQL, libpq, PgBouncer and Supavisor."""
    failed = 'connection failed: connection to server at "10.0.0.2", port 5432 failed: '

    for before in ("FATAL:  ", ""):
        error = explain_rejection(psycopg.OperationalError(failed + before + message))
        assert_said(error, meaning, next_step)
        assert "DETAIL" not in str(error)
