"""Each refused connection gives an error with its meaning and a next step."""

import psycopg
import pytest

from certjob.database import connections
from certjob.database.connection_errors import FULL, NOT_NOW, OUT_OF_REACH, REFUSED, explain_refusal
from certjob.errors import CertjobError
from tests.support.command_line import SECRET


def assert_said(error: CertjobError, what: str, phrase: str) -> None:
    """Check meaning, next step and exit code of an error of one line."""
    said = str(error)
    assert said.startswith(f"{what}: "), said
    assert "\n" not in said
    assert error.exit_code == (2 if what == REFUSED else 1)
    assert phrase in (error.next_step or ""), said
    assert SECRET not in said


def test_refusal_of_a_real_server_has_a_specific_next_step(database_url: str) -> None:
    """A wrong setting exits with 2. The password is not printed."""
    urls = {
        psycopg.conninfo.make_conninfo(database_url, password="x", **{name: value}): expected
        for name, value, *expected in (
            ("dbname", "nonesuch", REFUSED, "or the database"),
            ("user", "certjob_worker", REFUSED, "grant this user"),  # it cannot log in
            ("options", "-c role=nonesuch", REFUSED, "grant this user"),
            ("options", "-c nonesuch=1", REFUSED, "correct the port and the options"),
            ("target_session_attrs", "standby", OUT_OF_REACH, "target_session_attrs"),
            ("sslmode", SECRET, REFUSED, "correct the port and the options"),
            ("service", SECRET[:3], REFUSED, "correct the port and the options"),
        )
    }
    # Without a host, libpq reads the password as the port.
    urls[f"postgresql://certjob:{SECRET}/certjob"] = [REFUSED, "correct the port"]

    for url, (what, phrase) in urls.items():
        with pytest.raises(CertjobError) as caught:
            connections.connect(url)
        assert_said(caught.value, what, phrase)


@pytest.mark.parametrize(
    ("message", "meaning", "next_step"),
    [
        ('password authentication failed for user "u"', REFUSED, "the password"),
        ("no such database: d", REFUSED, "the password"),  # PgBouncer
        ('no pg_hba.conf entry for host "10.0.0.1", user "u", database "d"', REFUSED, "the password"),
        ('permission denied for database "d"\nDETAIL:  User does not have CONNECT.', REFUSED, "the password"),
        ("connection requires a valid client certificate", REFUSED, "sslmode=verify-full"),
        ("SSL error: certificate verify failed", REFUSED, "sslmode=verify-full"),
        ("server does not support SSL, but SSL was required", REFUSED, "sslmode=verify-full"),
        ("Tenant or user not found", REFUSED, "postgres.PROJECT"),  # Supavisor
        ("the database system is starting up", NOT_NOW, "wait a minute"),
        ("the database system is not accepting connections\nDETAIL:  Hot standby.", NOT_NOW, "wait a minute"),
        ("pgbouncer cannot connect to server", NOT_NOW, "wait a minute"),
        ("server login has been failing, cached error: password authentication failed", NOT_NOW, "wait a minute"),
        ("sorry, too many clients already", FULL, "raise its limit"),
        ("no more connections allowed (max_client_conn)", FULL, "raise its limit"),
        ("MaxClientsInSessionMode: max clients reached", FULL, "raise its limit"),
        ("session is read-only", OUT_OF_REACH, "target_session_attrs"),
        ("Network is unreachable\nIs the server running on that host", OUT_OF_REACH, "check the host and port"),
        ("timeout expired", OUT_OF_REACH, "check the host and port"),
        ("", OUT_OF_REACH, "check the host and port"),
    ],
)
def test_refusal_is_recognised_by_its_message(message: str, meaning: str, next_step: str) -> None:
    """The messages are those of PostgreSQL, libpq, PgBouncer and Supavisor."""
    failed = 'connection failed: connection to server at "10.0.0.2", port 5432 failed: '

    for before in ("FATAL:  ", ""):
        error = explain_refusal(psycopg.OperationalError(failed + before + message))
        assert_said(error, meaning, next_step)
        assert "DETAIL" not in str(error)
