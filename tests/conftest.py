"""Fixtures of all tests: a database, the builder of facts, the command and the portal."""

import functools
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from certjob import database
from certjob.database import embedded, migrations
from tests.support.facts import Facts
from tests.support.own_server import data_parent

if TYPE_CHECKING:
    from tests.support.portal_server import PortalServer
    from tests.support.scene import Scene

SERVER_URL = "CERTJOB_TEST_DATABASE_URL"
"""A superuser's URL of the server; without it the tests start the embedded one."""


def pytest_configure(config: pytest.Config) -> None:
    """Create the user of the embedded server, if the tests run as root, because two workers must not do it at once."""
    if not hasattr(config, "workerinput"):
        embedded.server_user_id()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs /proc if there is none."""
    if item.get_closest_marker("proc") and not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")


@pytest.fixture(scope="session", autouse=True)
def quick_pushes() -> Iterator[None]:
    """Commands in the process of the tests push one mentor after the other, and repeat failed calls at once."""
    from tests.support.nights import pushes

    with pushes():
        yield


@pytest.fixture(scope="session")
def server_url(testrun_uid: str) -> Iterator[str]:
    """The test server of all workers: the first one starts it, and the last one stops it."""
    given = os.environ.get(SERVER_URL)
    if given:
        yield given
        administration(given).close()
        return
    folder = data_parent() / f"certjob-tests-{testrun_uid}"
    folder.mkdir(mode=0o755, exist_ok=True)
    with embedded.server(folder / "postgresql") as url:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("ALTER SYSTEM SET full_page_writes = off")
            admin.execute("ALTER SYSTEM SET file_copy_method = clone")  # a copy of a database takes half the time
            admin.execute("SELECT pg_reload_conf()")
        yield url
        administration(url).close()
    if not (folder / "postgresql" / "postmaster.pid").exists():
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def administration(server_url: str) -> psycopg.Connection[tuple[object, ...]]:
    """The session that creates and drops databases."""
    return psycopg.connect(server_url, autocommit=True)


@pytest.fixture(scope="session")
def template(server_url: str, worker_id: str) -> Iterator[str]:
    """The name of a migrated database, which each test copies."""
    yield from make_template(server_url, f"certjob_template_{worker_id}")


@pytest.fixture(scope="session")
def supabase_template(server_url: str, worker_id: str) -> Iterator[str]:
    """The name of a migrated database with Supabase's roles, auth.uid() and publication."""
    from tests.database import supabase

    yield from make_template(server_url, f"certjob_supabase_{worker_id}", before=supabase.set_up)


def make_template(
    server_url: str, name: str, *, before: Callable[[database.Connection], None] = lambda _connection: None
) -> Iterator[str]:
    for url in fresh_database(server_url, "template1", name):
        with database.connect(url) as connection:
            before(connection)
            migrations.migrate(connection)
        yield psycopg.conninfo.conninfo_to_dict(url)["dbname"]  # type: ignore[misc]


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    yield from fresh_database(server_url, template)


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """The URL of a fresh database without certjob's schema."""
    yield from fresh_database(server_url, "template0")


def fresh_database(server_url: str, template: str, name: str = "certjob_test") -> Iterator[str]:
    """Yield the URL of a copy of a database, which is dropped at the end."""
    name, admin = f"{name}_{uuid.uuid4().hex}", administration(server_url)
    # The other strategy writes every page to the log, which takes thirteen times as long.
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
    admin.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))
    admin.execute(sql.SQL("ALTER DATABASE {} SET search_path = certjob, public").format(sql.Identifier(name)))
    yield database_of(server_url, name)
    admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def database_of(url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    return psycopg.conninfo.make_conninfo(url, dbname=name)


@pytest.fixture
def connection(database_url: str) -> Iterator[database.Connection]:
    """certjob's connection to the test's database."""
    with database.connect(database_url) as connection:
        yield connection


@pytest.fixture
def app(database_url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """The app's session, without autocommit, so that a test can keep a transaction open."""
    with psycopg.connect(database_url) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def facts(connection: database.Connection) -> Facts:
    """The builder of facts."""
    return Facts(connection)


Certjob = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bare_environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of cron, without settings."""
    home = tmp_path / "home"
    home.mkdir()
    return {"HOME": str(home), "PATH": "/usr/bin:/bin", "LOGNAME": "certjob", "SHELL": "/bin/sh"}


@pytest.fixture
def worker_url(database_url: str) -> str:
    """The test's database as certjob_worker; the commands must set their own search path."""
    return psycopg.conninfo.make_conninfo(database_url, options="-c role=certjob_worker -c search_path=pg_catalog")


@pytest.fixture
def certjob(worker_url: str, bare_environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Run the command as a process; keyword arguments are its settings."""
    from tests.support.command_line import started

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = bare_environment | {"CERTJOB_DATABASE_URL": worker_url} | settings
        with started(*arguments, environment=environment, folder=tmp_path) as child:
            return child.finish(timeout_seconds=120)

    return run


@pytest.fixture
def port_of_nobody() -> Iterator[int]:
    """A port where no one listens; another test could use a closed port."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def portal() -> Iterator["PortalServer"]:
    """A portal that shows no one."""
    from tests.support.command_line import SECRET
    from tests.support.portal_server import PortalServer

    with PortalServer(key=SECRET) as server:
        yield server
        server.release()


@pytest.fixture
def scene(connection: database.Connection, request: pytest.FixtureRequest) -> Iterator["Scene"]:
    """See ``tests.support.scene``."""
    from tests.support.scene import Scene

    with ExitStack() as sessions:
        yield Scene(connection, lambda: request.getfixturevalue("portal"), sessions=sessions)


@pytest.fixture
def delivery_settings(portal: "PortalServer", tmp_path: Path) -> dict[str, str]:
    """The settings for the portal and for the Maildir ``mail``."""
    mail = {"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}", "CERTJOB_MAIL_FROM": "HLF <post@hlf.example>"}
    return portal.settings | mail


@pytest.fixture
def environment(bare_environment: dict[str, str], database_url: str) -> dict[str, str]:
    """The environment of a command on the test's database, as the owner of its tables."""
    return bare_environment | {"CERTJOB_DATABASE_URL": database_url}


@pytest.fixture
def here(environment: dict[str, str], tmp_path: Path) -> Certjob:
    """Run the command in this process and in ``environment``; the arguments are those of ``certjob``."""
    from tests.support.command_line import run_in_process

    def run(*arguments: str, given: bytes = b"", **settings: str) -> subprocess.CompletedProcess[str]:
        return run_in_process(*arguments, environment=environment | settings, folder=tmp_path, given=given)

    return run


def installed_command() -> Path:
    """Return the path of the installed command."""
    return Path(sys.executable).with_name("certjob")
