"""The demo as a newcomer runs it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.docs import ROOT
from tests.support.own_server import data_folder
from tests.support.waiting import until

DEMO = [sys.executable, str(ROOT / "demo" / "demo.py")]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield the demo's TMPDIR."""
    with data_folder("demo") as folder:
        yield folder


def test_demo_shows_a_bad_night_a_recovery_and_a_repair(bare_environment: dict[str, str], folder: Path) -> None:
    """The exit codes and the comparisons with the portal tell the story."""
    environment = bare_environment | {"TMPDIR": str(folder)}

    shown = subprocess.run(DEMO, env=environment, capture_output=True, text=True, check=False)

    assert (shown.returncode, shown.stderr.splitlines()) == (
        0,
        [
            "certjob load: the next run will pause 1 of this file's mentors and bring back 0",
            "certjob load: the next run will pause 3 of this file's mentors and bring back 0",
            "certjob run: 3 mentors may still be visible on the portal; see `certjob alerts`",
        ],
    )
    commands = re.findall(r"^\$ certjob (.*)\n(?:(?!\$ ).*\n)*?exit code: (\d)$", shown.stdout, re.MULTILINE)
    assert [command for command, code in commands if code != "0"] == ["run", "alerts"]
    assert {"run --dry-run", "alerts --retry-all", "explain M1001", "reconcile"} <= {command for command, _ in commands}
    assert shown.stdout.count("Dynamics sync pending — mentor may still be visible on portal") == 3
    differences = re.findall(r"(\d) shown wrongly, (\d) hidden wrongly", shown.stdout)
    assert [*map("".join, differences)] == ["00", "30", "00", "00", "11", "00"]
    assert re.findall(r"the portal (shows|hides) M1002", shown.stdout) == ["shows", "hides"]
    assert "| Subject: Your certificate expires on " in shown.stdout
    assert [*folder.iterdir()] == []


def test_ctrl_c_ends_the_demo_and_leaves_nothing_behind(bare_environment: dict[str, str], folder: Path) -> None:
    """The terminal sends the signal to the demo, the running command and PostgreSQL."""
    environment = bare_environment | {"TMPDIR": str(folder)}
    with subprocess.Popen(DEMO, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        until(lambda: [*folder.glob("certjob-demo-*/mail/new/*")], seconds=60)
        os.killpg(process.pid, signal.SIGINT)
        printed, _ = process.communicate(timeout=60)

    assert (process.returncode, printed.splitlines()[-1]) == (
        1,
        "Stopped. The temporary database and its files are deleted.",
    )
    assert [*folder.iterdir()] == []
    processes = subprocess.run(["ps", "-axwwo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(folder) not in processes
