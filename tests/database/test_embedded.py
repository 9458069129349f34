"""The embedded PostgreSQL: its directory, its users, and its end."""

import getpass
import os
import pwd
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from certjob.database import embedded
from certjob.errors import ConfigurationError
from tests.support.own_server import data_parent

IS_ROOT = os.geteuid() == 0

USE_THE_SERVER = """
import sys
from pathlib import Path
from certjob.database import embedded
with embedded.server(Path(sys.argv[1])):
    print("connected", flush=True)
    sys.stdin.readline()
"""
"""A program that uses the server of a folder until it reads a line."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, because of the socket."""
    with tempfile.TemporaryDirectory(prefix="certjob-test-", dir=data_parent()) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def other_process(directory: Path) -> subprocess.Popen[str]:
    """Return another process that uses the server of this directory, once it has connected."""
    command = [sys.executable, "-c", USE_THE_SERVER, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


def test_server_does_not_start_if_others_could_reach_it(folder: Path) -> None:
    """The data directory must belong to this user, and only this user may enter it."""
    data = folder / "certjob/postgresql"
    data.mkdir(parents=True)
    for mode in (0o750, 0o701, 0o777):
        data.chmod(mode)
        with pytest.raises(ConfigurationError, match=r"only its owner can enter|may be written by others"):
            embedded.start(data)
    data.chmod(0o700)
    if IS_ROOT:  # only root can give a folder away
        os.chown(data, 65534, 65534)
        with pytest.raises(ConfigurationError, match=f"{data} belongs to another user"):
            embedded.start(data)
    assert not (data / "postmaster.pid").exists()


def test_server_is_private_and_ends_with_its_last_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other users cannot list root's folders. A killed process does not prevent the end. Data remain."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    data = embedded.data_directory()

    with embedded.database_url("embedded") as url:
        assert stat.S_IMODE(home.stat().st_mode) == (0o711 if IS_ROOT else 0o700)
        assert stat.S_IMODE(data.stat().st_mode) == 0o700
        assert pwd.getpwuid(data.stat().st_uid).pw_name == ("pgserver" if IS_ROOT else getpass.getuser())
        assert (data.parent / ".postgresql.lock").exists()  # in /tmp it would belong to another user
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE visits ()")
        other = other_process(data)
    assert (data / "postmaster.pid").exists()
    other.communicate("enough\n", timeout=60)
    assert not (data / "postmaster.pid").exists()

    killed = other_process(data)
    killed.kill()
    killed.communicate(timeout=60)
    with embedded.server(data) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT FROM visits").fetchall() == []
    assert not (data / "postmaster.pid").exists()


def test_a_server_that_does_not_stop_is_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It keeps running, and the next command uses it."""
    data = folder / "postgresql"
    started = embedded.start(data)
    broken = folder / "programs"
    broken.mkdir()
    (broken / "pg_ctl").symlink_to("/bin/false")

    replace(started, programs=broken).leave()

    assert caplog.messages == [
        f"the embedded PostgreSQL in {data} did not stop (CalledProcessError); the next command uses it"
    ]
    with embedded.server(data) as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert not (data / "postmaster.pid").exists()
