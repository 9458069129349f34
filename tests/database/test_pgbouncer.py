"""All commands through PgBouncer in transaction mode, where each transaction may get another session."""

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from certjob import database
from certjob.database import Connection, migrations
from certjob.errors import CertjobError
from certjob.facts import reading
from certjob.jobs.report import RunReport
from tests.database.everything import assert_every_command_works
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night
from tests.support.own_server import Cluster, data_folder
from tests.support.portal_server import PortalServer
from tests.support.waiting import until

pytestmark = pytest.mark.real_pgbouncer

PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")

_SETTINGS = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
min_pool_size = 3
server_round_robin = 1
server_login_retry = 0.1
{drop_to}
"""
"""Three sessions in turn, because a leaked setting would be visible to the next transaction."""


@contextmanager
def pgbouncer(server_url: str) -> Iterator[str]:
    """Run a PgBouncer in front of this server and yield a URL without a database."""
    if PGBOUNCER is None:
        pytest.skip("PgBouncer is not installed (apt-get install pgbouncer)")
    server = psycopg.conninfo.conninfo_to_dict(server_url)
    host = Path(str(server["host"]))  # the owner of the folder may use the socket
    owner = pwd.getpwuid(host.stat().st_uid).pw_name if host.is_absolute() else "nobody"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = _SETTINGS.format(
        host=host,
        port=server.get("port", 5432),
        user=server.get("user", getpass.getuser()),
        listen_port=port,
        drop_to=f"user = {owner}" if os.geteuid() == 0 else "",
    )

    def answers() -> bool:
        assert process.poll() is None, "PgBouncer ended by itself"
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    with data_folder("pgbouncer") as folder:
        (folder / "pgbouncer.ini").write_text(settings)
        command = [PGBOUNCER, "-q", str(folder / "pgbouncer.ini")]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                until(answers)
                yield f"postgresql://user@127.0.0.1:{port}/"
            finally:
                process.kill()  # it would wait for its clients after SIGTERM


def works(url: str) -> bool:
    """Return whether the pooler has a session for a statement."""
    with suppress(CertjobError, psycopg.Error), database.connect(url) as connection:
        connection.execute("SELECT 1")
        return True
    return False


def test_all_commands_work_through_pgbouncer(
    server_url: str, empty_database_url: str, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """No setting, lock or temporary table remains in a session."""
    name, seen = str(psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]), set()
    with pgbouncer(server_url) as pooler, database.connect(pooler + name) as connection:
        assert migrations.migrate(connection)

        assert_every_command_works(
            pooler + name, facts=Facts(connection), environment=bare_environment, folder=tmp_path
        )

        for _ in range(12):
            row = connection.execute(
                "SELECT pg_backend_pid(), current_setting('lock_timeout'), current_setting('search_path'),"
                " (SELECT count(*) FROM pg_prepared_statements), to_regclass('pg_temp.load_mentors') IS NULL,"
                " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
            ).fetchone()
            assert row is not None
            seen.add(row[0])
            assert row[1:] == ("0", "certjob, public", 0, True, 0)
    assert len(seen) > 1, "the pooler gave every transaction the same session"


def test_restart_behind_pgbouncer_is_survived_by_the_next_start(
    monkeypatch: pytest.MonkeyPatch, portal: PortalServer
) -> None:
    """The server stops in the middle of a chunk, while the pooler continues to accept connections."""
    read = reading.read
    with data_folder("pooled") as folder, Cluster(folder) as cluster, cluster.fresh_database("pooled") as url:
        with database.connect(url) as connection:
            facts = Facts(connection)
            organisation = facts.organisation()
            for _ in range(4):
                facts.certified_mentor(organisation, TODAY - timedelta(days=1))
        starting = threading.Timer(0.3, cluster.start)

        def read_and_strike(connection: Connection, ids: Any, *, lock: bool) -> Any:
            monkeypatch.setattr(reading, "read", read)
            cluster.stop()
            starting.start()
            return read(connection, ids, lock=lock)

        monkeypatch.setattr(reading, "read", read_and_strike)
        with pgbouncer(url) as pooler:

            def job() -> RunReport:
                with database.connect(f"{pooler}pooled") as session:
                    return night(session, portal=portal, channel=CollectingChannel())

            with pytest.raises(psycopg.OperationalError):
                job()
            starting.join()
            until(lambda: works(f"{pooler}pooled"))  # the pooler rejects sessions for a moment
            report = job()

        assert report.to_document()["outcome"] == "ok"
        assert len(portal.pushes) == 4
        with database.connect(url) as connection:
            assert Facts(connection).rows("SELECT DISTINCT status FROM cert_notification_log") == [("sent",)]
