"""Each refused connection gives an error with its meaning and a next step."""

import re

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


# Messages that a test server does not produce.

WORDS = {
    (REFUSED, "the password"): """
        password authentication failed for user "u" | no such database: d | no such user: u
        no pg_hba.conf entry for host "10.0.0.1", user "u", database "d", no encryption
        cannot connect to invalid database "d" ¶ HINT:  Use DROP DATABASE | SASL authentication failed
        permission denied for database "d" ¶ DETAIL:  User does not have CONNECT privilege.""",
    (REFUSED, "sslmode=verify-full"): """
        connection requires a valid client certificate | connection is insecure (try using `sslmode=require`)
        SSL connection is required | SSL required | SSL error: certificate verify failed
        server does not support SSL, but SSL was required
        root certificate file "/root/.postgresql/root.crt" does not exist ¶ Either provide the file""",
    (REFUSED, "postgres.PROJECT"): """Tenant or user not found | unsupported startup parameter: options""",
    (NOT_NOW, "wait a minute"): """
        the database system is starting up | the database system is shutting down
        the database system is in recovery mode | database "d" is not currently accepting connections
        the database system is not yet accepting connections ¶ DETAIL:  Consistent recovery state is not reached.
        the database system is not accepting connections ¶ DETAIL:  Hot standby mode is disabled.
        terminating connection due to administrator command | database "d" is disabled
        pgbouncer cannot connect to server | pooler is shut down
        server login has been failing, cached error: password authentication failed (server_login_retry)""",
    (FULL, "raise its limit"): """
        sorry, too many clients already | too many connections for database "d" | too many connections for role "u"
        remaining connection slots are reserved for roles with the SUPERUSER attribute
        no more connections allowed (max_client_conn) | query_wait_timeout | Max client connections reached
        MaxClientsInSessionMode: max clients reached | Unable to check out process from the pool due to timeout""",
    (OUT_OF_REACH, "target_session_attrs"): """session is read-only""",
    (OUT_OF_REACH, "check the host and port"): """
        Network is unreachable ¶ Is the server running on that host | SSL SYSCALL error: EOF detected
        timeout expired | received invalid response to SSL negotiation: H
        failed to resolve host 'x': [Errno -3] Temporary failure in name resolution""",
}


def test_refusal_is_recognised_by_its_message() -> None:
    """The messages are those of PostgreSQL, libpq, PgBouncer and Supavisor. Others get the general next step."""
    failed = 'connection failed: connection to server at "10.0.0.2", port 5432 failed: '
    for (what, phrase), lines in WORDS.items():
        for words in re.split(r" \| |\n", lines.strip()):
            for before in ("FATAL:  ", ""):
                said = f"{before}{words.strip().replace(' ¶ ', chr(10))}"
                error = explain_refusal(psycopg.OperationalError(failed + said))
                assert_said(error, what, phrase)
                assert not {"DETAIL", "HINT", "Either"} & set(str(error).replace(":", "").split())
    assert_said(explain_refusal(psycopg.OperationalError("")), OUT_OF_REACH, "check the host and port")
