"""Every way in which a connection is refused ends in a line that says what it means and what to do."""

import re
from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from certjob.database import connections
from certjob.database.connection_errors import FULL, NOT_NOW, OUT_OF_REACH, REFUSED, explain_refusal
from certjob.errors import CertjobError
from tests.conftest import database_of
from tests.support.command_line import SECRET


def assert_said(error: CertjobError, what: str, phrase: str) -> None:
    """What it means, one line, a next step; a wrong setting is exit 2."""
    said = str(error)
    assert said.startswith(f"{what}: "), said
    assert "\n" not in said
    assert error.exit_code == (2 if what == REFUSED else 1)
    assert phrase in (error.next_step or ""), said
    assert SECRET not in said


@pytest.fixture
def people(server_url: str) -> Iterator[dict[str, str]]:
    """Names: a role that may not log in, one without connections, one with neither; a closed and a private database."""
    names = {key: f"certjob_{key}_{uuid4().hex[:8]}" for key in ("nologin", "limited", "anybody", "closed", "private")}
    with psycopg.connect(server_url, autocommit=True) as admin:
        for statement in (
            "CREATE ROLE {nologin} PASSWORD 'x'",
            "CREATE ROLE {limited} LOGIN CONNECTION LIMIT 0 PASSWORD 'x'",
            "CREATE ROLE {anybody} LOGIN PASSWORD 'x'",
            "CREATE DATABASE {closed} ALLOW_CONNECTIONS false",
            "CREATE DATABASE {private}",
            "REVOKE CONNECT ON DATABASE {private} FROM PUBLIC",
        ):
            admin.execute(statement.format(**names).encode())
        yield names
        for statement in ("DATABASE {closed}", "DATABASE {private}", "ROLE {nologin}, {limited}, {anybody}"):
            admin.execute(f"DROP {statement}".format(**names).encode())


def test_a_real_servers_refusal_has_its_own_next_step(server_url: str, people: dict[str, str]) -> None:
    """Each was "check the host and port", or the wrong setting, once."""
    urls = {}
    for parameters, what, phrase in (
        ({"dbname": "closed"}, NOT_NOW, "ALLOW_CONNECTIONS"),
        ({"dbname": "private", "user": "anybody"}, REFUSED, "grant this user"),
        ({"user": "nologin"}, REFUSED, "grant this user"),
        ({"user": "limited"}, FULL, "raise its limit"),
        ({"dbname": "nonesuch"}, REFUSED, "or the database"),
        ({"options": "-c role=nonesuch"}, REFUSED, "grant this user"),
        ({"options": "-c nonesuch=1"}, REFUSED, "correct the port and the options"),
        ({"target_session_attrs": "standby"}, OUT_OF_REACH, "target_session_attrs"),
        ({"sslmode": SECRET}, REFUSED, "correct the port and the options"),
        ({"service": SECRET[:3]}, REFUSED, "correct the port and the options"),
    ):
        given = {name: people.get(value, value) for name, value in parameters.items()}
        url = psycopg.conninfo.make_conninfo(database_of(server_url, "postgres"), password="x", **given)
        urls[url] = what, phrase
    # Without its host: libpq takes the password, which follows a colon, for a port.
    urls[f"postgresql://certjob:{SECRET}/certjob"] = REFUSED, "correct the port"

    for url, (what, phrase) in urls.items():
        with pytest.raises(CertjobError) as caught:
            connections.connect(url)
        assert_said(caught.value, what, phrase)


# By their words: what this machine's servers do not do.

WORDS = {
    (REFUSED, "the password"): """
        password authentication failed for user "u" | no such database: d | no such user: u
        no pg_hba.conf entry for host "10.0.0.1", user "u", database "d", no encryption
        cannot connect to invalid database "d" ¶ HINT:  Use DROP DATABASE | SASL authentication failed""",
    (REFUSED, "sslmode=verify-full"): """
        connection requires a valid client certificate | connection is insecure (try using `sslmode=require`)
        SSL connection is required | SSL required | SSL error: certificate verify failed
        server does not support SSL, but SSL was required
        root certificate file "/root/.postgresql/root.crt" does not exist ¶ Either provide the file""",
    (REFUSED, "postgres.PROJECT"): """Tenant or user not found | unsupported startup parameter: options""",
    (NOT_NOW, "wait a minute"): """
        the database system is starting up | the database system is shutting down
        the database system is in recovery mode
        the database system is not yet accepting connections ¶ DETAIL:  Consistent recovery state is not reached.
        the database system is not accepting connections ¶ DETAIL:  Hot standby mode is disabled.
        terminating connection due to administrator command | database "d" is disabled
        pgbouncer cannot connect to server | pooler is shut down
        server login has been failing, cached error: password authentication failed (server_login_retry)""",
    (FULL, "raise its limit"): """
        sorry, too many clients already | too many connections for database "d"
        remaining connection slots are reserved for roles with the SUPERUSER attribute
        no more connections allowed (max_client_conn) | query_wait_timeout | Max client connections reached
        MaxClientsInSessionMode: max clients reached | Unable to check out process from the pool due to timeout""",
    (OUT_OF_REACH, "target_session_attrs"): """session is read-only""",
    (OUT_OF_REACH, "check the host and port"): """
        Network is unreachable ¶ Is the server running on that host | SSL SYSCALL error: EOF detected
        timeout expired | received invalid response to SSL negotiation: H
        failed to resolve host 'x': [Errno -3] Temporary failure in name resolution""",
}


def test_a_refusal_is_known_by_its_words() -> None:
    """PostgreSQL's, libpq's, PgBouncer's and Supavisor's; what nobody knows is quoted with the general step."""
    failed = 'connection failed: connection to server at "10.0.0.2", port 5432 failed: '
    for (what, phrase), lines in WORDS.items():
        for words in re.split(r" \| |\n", lines.strip()):
            for before in ("FATAL:  ", ""):
                said = f"{before}{words.strip().replace(' ¶ ', chr(10))}"
                error = explain_refusal(psycopg.OperationalError(failed + said))
                assert_said(error, what, phrase)
                assert not {"DETAIL", "HINT", "Either"} & set(str(error).replace(":", "").split())
    assert_said(explain_refusal(psycopg.OperationalError("")), OUT_OF_REACH, "check the host and port")
