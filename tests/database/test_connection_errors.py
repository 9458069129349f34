"""Every way in which a connection is refused ends in a line that says what it means and what to do."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from certjob.database import connections
from certjob.database.connection_errors import (
    FULL,
    NOT_NOW,
    OUT_OF_REACH,
    REFUSED,
    explain_late_refusal,
    explain_refusal,
)
from certjob.errors import CertjobError
from tests.conftest import database_of
from tests.support.command_line import SECRET


def refused(url: str) -> CertjobError:
    with pytest.raises(CertjobError) as caught:
        connections.connect(url)
    return caught.value


def assert_said(error: CertjobError, what: str, *phrases: str) -> None:
    """What it means, one line, a next step; a wrong setting is exit 2."""
    said = str(error)
    assert said.startswith(f"{what}: "), said
    assert "\n" not in said
    assert error.exit_code == (2 if what == REFUSED else 1)
    step = said.partition("; ")[2]
    assert all(phrase in step for phrase in phrases), said
    assert SECRET not in said


# By a real server.


@pytest.fixture
def people(server_url: str) -> Iterator[dict[str, str]]:
    """Names: a role that may not log in, one without connections, one with neither; a closed and a private database."""
    names = {key: f"certjob_{key}_{uuid4().hex[:8]}" for key in ("nologin", "limited", "anybody", "closed", "private")}

    def run(admin: psycopg.Connection[tuple[object, ...]], statement: str, key: str) -> None:
        admin.execute(sql.SQL(statement).format(sql.Identifier(names[key])))

    with psycopg.connect(server_url, autocommit=True) as admin:
        run(admin, "CREATE ROLE {} PASSWORD 'x'", "nologin")
        run(admin, "CREATE ROLE {} LOGIN CONNECTION LIMIT 0 PASSWORD 'x'", "limited")
        run(admin, "CREATE ROLE {} LOGIN PASSWORD 'x'", "anybody")
        run(admin, "CREATE DATABASE {} ALLOW_CONNECTIONS false", "closed")
        run(admin, "CREATE DATABASE {}", "private")
        run(admin, "REVOKE CONNECT ON DATABASE {} FROM PUBLIC", "private")
        try:
            yield names
        finally:
            for key in ("closed", "private"):
                run(admin, "DROP DATABASE {}", key)
            for key in ("nologin", "limited", "anybody"):
                run(admin, "DROP ROLE {}", key)


@pytest.mark.parametrize(
    ("parameters", "what", "phrases"),
    [
        ({"dbname": "closed"}, NOT_NOW, ["ALLOW_CONNECTIONS true"]),
        ({"dbname": "private", "user": "anybody"}, REFUSED, ["GRANT CONNECT ON DATABASE"]),
        ({"user": "nologin"}, REFUSED, ["ALTER ROLE … LOGIN"]),
        ({"user": "limited"}, FULL, ["raise its limit"]),
        ({"dbname": "nonesuch"}, REFUSED, ["correct the database name"]),
        ({"user": "nonesuch"}, REFUSED, ["correct the user"]),
        ({"options": "-c role=nonesuch"}, REFUSED, ["the role in its options"]),
        ({"options": "-c nonesuch=1"}, REFUSED, ["correct the port and the options"]),
        ({"user": "anybody", "options": "-c role=pg_monitor"}, REFUSED, ["GRANT that role"]),
        ({"target_session_attrs": "standby"}, OUT_OF_REACH, ["target_session_attrs"]),
        ({"sslmode": SECRET}, REFUSED, ["correct the port and the options"]),
        ({"service": SECRET[:3]}, REFUSED, ["correct the port and the options"]),
    ],
    ids=str,
)
def test_a_real_servers_refusal_has_its_own_next_step(
    server_url: str, people: dict[str, str], parameters: dict[str, str], what: str, phrases: list[str]
) -> None:
    """Each was "check the host and port", or the wrong setting, once."""
    given = {name: people.get(value, value) for name, value in parameters.items()}

    error = refused(psycopg.conninfo.make_conninfo(database_of(server_url, "postgres"), password="x", **given))

    assert_said(error, what, *phrases)


@pytest.mark.parametrize(
    ("answer", "sslmode", "what", "phrases"),
    [
        (b"N", "require", REFUSED, ["have TLS set up", "take sslmode out"]),
        (b"N", "verify-full", REFUSED, ["have TLS set up"]),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "require", OUT_OF_REACH, ["no PostgreSQL"]),
        (b"", "require", OUT_OF_REACH, ["check the host and port"]),
    ],
)
def test_a_server_without_tls_and_one_that_is_none(answer: bytes, sslmode: str, what: str, phrases: list[str]) -> None:
    """What it says to the question for TLS."""
    with answering(answer) as port:
        error = refused(f"postgresql://u:{SECRET}@127.0.0.1:{port}/x?sslmode={sslmode}")

    assert_said(error, what, *phrases)


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of something that says this to whoever comes, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.recv(1000)
                        client.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def test_a_password_that_stands_where_the_port_should_is_not_quoted() -> None:
    """A URL without its host: libpq takes what follows the colon for a port."""
    for host in ("certjob", "127.0.0.1"):
        assert_said(refused(f"postgresql://{host}:{quote(SECRET)}/certjob"), REFUSED, "correct the port")


# By their words: what this machine's servers do not do.


@pytest.mark.parametrize(
    ("words", "what", "phrase"),
    [
        ('FATAL:  password authentication failed for user "u"', REFUSED, "user or password"),
        ('FATAL:  Peer authentication failed for user "u"', REFUSED, "as the system user of that name"),
        ("FATAL:  connection requires a valid client certificate", REFUSED, "sslcert and sslkey"),
        (
            'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "u", database "d", no encryption',
            REFUSED,
            "let this machine in",
        ),
        ("FATAL:  connection is insecure (try using `sslmode=require`)", REFUSED, "add sslmode=verify-full"),
        ("FATAL:  SSL connection is required", REFUSED, "add sslmode=verify-full"),
        ("SSL error: certificate verify failed", REFUSED, "sslrootcert"),
        (
            'root certificate file "/root/.postgresql/root.crt" does not exist\nEither provide the file',
            REFUSED,
            "sslrootcert",
        ),
        ('server certificate for "a" does not match host name "b"', REFUSED, "by the name in the certificate"),
        ('FATAL:  cannot connect to invalid database "d"\nHINT:  Use DROP DATABASE', REFUSED, "restore it"),
        ("FATAL:  the database system is shutting down", NOT_NOW, "wait a minute"),
        ("FATAL:  terminating connection due to administrator command", NOT_NOW, "wait a minute"),
        ("FATAL:  sorry, too many clients already", FULL, "end some of them"),
        ('FATAL:  too many connections for database "d"', FULL, "end some of them"),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute", FULL, "end some"),
        (
            "connection to server failed: Network is unreachable\n\tIs the server running on that host",
            OUT_OF_REACH,
            "IPv6",
        ),
        ("connection timeout expired", OUT_OF_REACH, "firewalls"),
        ("failed to resolve host 'x': [Errno -3] Temporary failure in name resolution", OUT_OF_REACH, "DNS"),
        ("connection to server failed: session is read-only", OUT_OF_REACH, "target_session_attrs"),
        # PgBouncer.
        ("FATAL:  no such database: d", REFUSED, "correct the database name"),
        ("FATAL:  no such user: u", REFUSED, "correct user or password"),
        ("FATAL:  SASL authentication failed", REFUSED, "correct user or password"),
        ("FATAL:  SSL required", REFUSED, "add sslmode"),
        ("FATAL:  unsupported startup parameter: options", REFUSED, "does not pass them on"),
        ('FATAL:  database "d" is disabled', NOT_NOW, "closed it"),
        ("FATAL:  no more connections allowed (max_client_conn)", FULL, "raise its limit"),
        ("FATAL:  query_wait_timeout", FULL, "raise its limit"),
        ("FATAL:  pgbouncer cannot connect to server", NOT_NOW, "the pooler's log"),
        ("FATAL:  pooler is shut down", NOT_NOW, "wait a minute"),
        (
            "FATAL:  server login has been failing, cached error: password authentication failed (server_login_retry)",
            NOT_NOW,
            "the pooler's log",
        ),
        # Supavisor.
        ("FATAL:  Tenant or user not found", REFUSED, "postgres.PROJECT"),
        ("FATAL:  Max client connections reached", FULL, "raise its limit"),
        ("FATAL:  MaxClientsInSessionMode: max clients reached", FULL, "raise its limit"),
        ("FATAL:  Unable to check out process from the pool due to timeout", FULL, "raise its limit"),
    ],
)
def test_a_refusal_is_known_by_its_words(words: str, what: str, phrase: str) -> None:
    """PostgreSQL's, libpq's and the poolers'."""
    error = psycopg.OperationalError(
        f'connection failed: connection to server at "10.0.0.2", port 5432 failed: {words}'
    )

    assert_said(explain_refusal(error), what, phrase)
    assert "DETAIL" not in str(explain_refusal(error))
    assert "HINT" not in str(explain_refusal(error))


def test_words_that_nobody_knows_are_quoted_with_the_general_step() -> None:
    """Better than nothing, and never nothing."""
    assert_said(explain_refusal(psycopg.OperationalError("")), OUT_OF_REACH, "check the host and port")


def test_a_statement_that_failed_by_itself_is_no_refusal() -> None:
    """Only what says that there was no session is."""
    for error in (
        psycopg.errors.QueryCanceled("canceling statement due to statement timeout"),
        psycopg.errors.AdminShutdown("terminating connection due to administrator command"),
        psycopg.errors.DiskFull("could not extend file"),
    ):
        assert explain_late_refusal(error) is None
