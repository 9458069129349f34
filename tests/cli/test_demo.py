"""The demo as a newcomer meets it: it tells a true story and leaves nothing behind."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, started
from tests.support.docs import read_examples, read_section
from tests.support.own_server import data_parent
from tests.support.waiting import until


@pytest.fixture
def temporary_folder() -> Iterator[Path]:
    """The demo's TMPDIR: a short path, since a Unix socket is made in it, and open to PostgreSQL's own user."""
    with tempfile.TemporaryDirectory(prefix="certjob-test-", dir=data_parent()) as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def programs_at(folder: Path) -> dict[int, str]:
    """Running programs that were told of this folder, by process id."""
    listed = subprocess.run(["ps", "-axwwo", "pid,args"], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=1) for line in listed.stdout.splitlines() if str(folder) in line]
    return {int(pid): arguments for pid, arguments in rows}


def numbers(pattern: str, text: str) -> list[int]:
    """All numbers that a pattern with one group finds."""
    return [int(number) for number in re.findall(pattern, text, re.MULTILINE)]


def test_it_shows_an_outage_and_its_recovery_in_figures_that_agree(certjob: Certjob, temporary_folder: Path) -> None:
    """One whole run, off a terminal."""
    shown = certjob("demo", TMPDIR=str(temporary_folder))

    assert shown.returncode == 0
    assert {line.partition(": ")[0] for line in shown.stderr.splitlines()} == {"certjob run"}
    told = shown.stdout
    # The outage's alerts, none after the recovery and at the end.
    assert told.count("Dynamics sync pending — mentor may still be visible on portal") == 6
    assert re.findall(r"^\$ certjob (\w+)", told, re.MULTILINE) == (
        "run run run alerts run alerts resync deliver alerts run run run reconcile run status".split()  # noqa: SIM905
    )
    assert numbers(r"^exit code: (\d)$", told) == [0, 0, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 3, 0]
    assert numbers(r"database disagree: (\d+) shown although paused", told) == [6, 1]
    assert re.search(r"failures on record: 6, resolved: 6\b", told)
    # The hand edit: one is shown and one hidden, and both are put right.
    assert "read: 1 page, " in told
    assert "differences: 1 shown wrongly, 1 hidden wrongly" in told
    # A reminder marked as sent is one message, whoever asks, also after two runs at once; so it is with the pushes.
    what = r"sent: (\d+), .*Maildir: (\d+), .*them: (\d+); .*confirmed: (\d+), .*them: (\d+)"
    ((marked, files, different, confirmed, different_pushes),) = re.findall(what, told)
    assert marked == files == different
    assert confirmed == different_pushes
    assert (int(marked) > 50, int(confirmed) > 20) == (True, True)
    # The renewal: one comes back, the other one's own pause is not certjob's to lift.
    assert re.search(r"after:  H\d+: .*; not paused; portal wanted visible, confirmed visible", told)
    assert re.search(r"after:  H\d+: .*; paused: illness; portal wanted hidden, confirmed hidden", told)
    assert re.search(r"\| Subject: Sertifikatet ditt går ut om 7 dager", told)
    (example,) = read_examples(read_section("docs/commands.md", "The demo"))
    assert example.matches(told)
    assert not list(temporary_folder.iterdir())
    assert not programs_at(temporary_folder)


@pytest.mark.parametrize("made", ["maildir/new/*", "postgresql/base"], ids=["in the middle", "while initdb hangs"])
def test_ctrl_c_ends_it_with_a_line_and_leaves_nothing_behind(
    bare_environment: dict[str, str], temporary_folder: Path, made: str
) -> None:
    """At once, however long PostgreSQL's own making takes; what initdb started lives on for a moment, and writes."""
    environment = bare_environment | {"TMPDIR": str(temporary_folder)}
    with started("demo", environment=environment, folder=temporary_folder, grace=60) as child:
        until(lambda: [*temporary_folder.glob(f"certjob-demo-*/{made}")], seconds=60)
        for pid, program in programs_at(temporary_folder).items():
            if "initdb" in program:
                os.kill(pid, signal.SIGSTOP)
        result = child.stop_within(60, signal.SIGINT)

    assert_one_line(result, "stopped by SIGINT; the throw-away database", code=1, command="certjob demo")
    assert not list(temporary_folder.iterdir())
    assert not programs_at(temporary_folder)
