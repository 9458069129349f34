"""`certjob alerts` as a process: a terminal, real signals, a database that restarts, what it refuses."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psycopg
import pytest
from rich.cells import cell_len

from certjob.cli.pages.alerts import NOTHING
from certjob.database import Connection
from tests.conftest import Certjob
from tests.support.command_line import Backends, Child, assert_one_line, on_terminal, started, without_escapes
from tests.support.facts import Facts
from tests.support.intents import backlog

VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"
AT_ONCE_SECONDS = 4.0

App = psycopg.Connection[tuple[object, ...]]
Start = Callable[..., AbstractContextManager[Child]]


@pytest.fixture
def start(bare_environment: dict[str, str], database_url: str, tmp_path: Path) -> Start:
    def run(*arguments: str, **settings: str) -> AbstractContextManager[Child]:
        environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url} | settings
        return started(*arguments, environment=environment, folder=tmp_path)

    return run


@pytest.fixture
def backends(connection: Connection, facts: Facts, app: App) -> Backends:
    del facts, app
    return Backends(connection)


def waiting_hide(facts: Facts) -> None:
    backlog(facts, 1)
    facts.connection.execute("UPDATE portal_sync_events SET wanted_at = now() - interval '2 hours'")


def test_the_page_on_a_terminal(
    bare_environment: dict[str, str], database_url: str, facts: Facts, tmp_path: Path
) -> None:
    """Exit 3; red for the harm that counts most; it fits, whatever is in a name."""
    waiting_hide(facts)
    facts.connection.execute("UPDATE mentors SET full_name = %s", ("[red]M[/red]\x1b[2J" + " Nordmann" * 20,))
    environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}

    code, shown = on_terminal(["alerts"], environment=environment, folder=tmp_path, columns=80)

    text = without_escapes(shown)
    assert code == 3
    assert f"\n{VISIBLE}\n" in text
    assert "`certjob resync B1 --organisation hlf" in text
    assert "[red]M[/red]" in text
    assert "\x1b[1;31m1 mentor may STILL BE VISIBLE on the portal" in shown
    assert all(cell_len(line) <= 80 for line in text.splitlines())


def test_ctrl_c_ends_a_watch_without_a_word(start: Start) -> None:
    """With the code of what was shown last."""
    with start("alerts", "--watch") as child:
        child.wait_for_output(NOTHING)
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGINT)

    assert (result.returncode, result.stderr, result.stdout) == (0, "", f"{NOTHING}\n")


def test_sigterm_ends_a_watch_with_a_line(start: Start) -> None:
    """Exit 1, as everywhere."""
    with start("alerts", "--watch") as child:
        child.wait_for_output(NOTHING)
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGTERM)

    assert_one_line(result, "stopped by SIGTERM", code=1, command="certjob alerts")


def test_ctrl_c_ends_a_look_that_waits_for_a_lock(start: Start, facts: Facts, app: App, backends: Backends) -> None:
    """At once; the server is told."""
    waiting_hide(facts)

    with start("alerts", "--watch") as child:
        child.wait_for_output(VISIBLE)
        app.execute("LOCK TABLE mentors")
        backends.wait_for_query("", waiting_for="Lock")
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGINT)

    assert (result.returncode, result.stderr) == (3, "")
    backends.wait_until_gone()


def test_a_watch_outlives_a_lost_connection(start: Start, facts: Facts, backends: Backends) -> None:
    """Said twice, and what changed meanwhile is shown."""
    with start("alerts", "--watch") as child:
        child.wait_for_output(NOTHING)
        backends.terminate()
        waiting_hide(facts)
        child.wait_for_output(VISIBLE)
        result = child.stop_within(AT_ONCE_SECONDS, signal.SIGINT)

    nothing, alert = result.stdout.splitlines()
    lost, back = result.stderr.splitlines()
    assert (result.returncode, nothing) == (3, NOTHING)
    assert alert.startswith(VISIBLE)
    assert lost.startswith("certjob alerts: the database does not answer: ")
    assert back == "certjob alerts: the database answers again"


def test_a_watch_is_no_document_and_retries_nothing(certjob: Certjob) -> None:
    """Usage, exit 2."""
    for other in ("--json", "--retry-all"):
        result = certjob("alerts", "--watch", other)

        assert result.returncode == 2
        assert "--watch works alone" in result.stderr
