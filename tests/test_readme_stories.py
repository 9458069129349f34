"""The examples in the README are what the commands print: on the demo's people, at a fixed date."""

import itertools
import re
import shlex
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from freezegun import freeze_time

from certjob import demo_people
from certjob.database import Connection
from certjob.forecast import make_forecast
from certjob.forecast_page import show_forecast
from tests.command_line import run_in_process
from tests.nights import CollectingChannel, FlakyPortal, night
from tests.test_alerts_page import terminal

README = Path(__file__).parent.parent / "README.md"
FIRST_NIGHT = date(2026, 3, 8)
TODAY = FIRST_NIGHT + timedelta(days=2)
SECTION = "## One mentor, everybody, the coming nights"


def examples() -> Iterator[tuple[str, str]]:
    """Each command of the section and the output under it, in which ``…`` stands for lines that are left out."""
    section = README.read_text().partition(SECTION)[2].partition("\n## ")[0]
    for block in section.split("\n    $ ")[1:]:
        command, *rest = block.splitlines()
        lines = [line[4:].rstrip() for line in itertools.takewhile(lambda line: not line or line[:4] == "    ", rest)]
        yield command, "\n".join(lines).strip()


@pytest.fixture
def demo(connection: Connection, tmp_path: Path) -> Connection:
    """The demo's people after three nights, the last of which met a dead portal; times are what they would be."""
    people = demo_people.make_people(FIRST_NIGHT)
    demo_people.load_people(connection, people, folder=tmp_path)
    for number, failures in enumerate((0, 0, 99)):
        night(
            connection,
            FIRST_NIGHT + timedelta(days=number),
            portal=FlakyPortal(failures=failures),
            channel=CollectingChannel(),
        )
    connection.execute("UPDATE mentor_pauses SET paused_at = '2026-03-10 03:00+01'")
    connection.execute("UPDATE cert_notification_log SET sent_at = '2026-03-10 03:01+01'")
    connection.execute("UPDATE portal_sync_events SET wanted_at = '2026-03-10 03:00+01', next_attempt_at = now()")
    connection.execute("UPDATE portal_sync_events SET delivered_at = '2026-03-09 03:00+01' WHERE status = 'delivered'")
    connection.execute("UPDATE dynamics_sync_failures SET last_failed_at = '2026-03-10 03:00+01'")
    return connection


def test_the_examples_are_what_the_commands_print(
    demo: Connection, database_url: str, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """Line by line; an ellipsis alone on a line leaves out any number of them."""
    found = list(examples())

    assert {shlex.split(command)[1] for command, _ in found} == {"explain", "list", "forecast"}
    for command, expected in found:
        if command == "certjob forecast":
            talk, shown = terminal(80)
            show_forecast(talk, make_forecast(demo, today=TODAY, days=90, organisation_id=None), organisation=None)
            printed = shown.getvalue()
        else:
            with freeze_time("2026-03-10 08:00"):
                printed = run_in_process(
                    *shlex.split(command)[1:],
                    environment=bare_environment | {"CERTJOB_DATABASE_URL": database_url},
                    folder=tmp_path,
                ).stdout
        lines = [line.rstrip() for line in printed.splitlines()]
        pattern = "\n".join(".*" if line == "…" else re.escape(line) for line in expected.splitlines())
        assert re.fullmatch(pattern, "\n".join(lines).strip(), flags=re.DOTALL), printed
