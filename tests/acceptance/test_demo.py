"""The demo's story: a bad night, a recovery and a repair."""

import re
import runpy
from typing import Any

import pytest

from tests.support.command_line import run_in_process
from tests.support.docs import ROOT


def test_demo_shows_a_bad_night_a_recovery_and_a_repair(
    empty_database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands run in this process and on the tests' server, which takes a tenth of the time."""
    codes: dict[str, int] = {}
    errors: list[str] = []

    def run(story: Any, arguments: str) -> None:
        environment = story.environment | {"CERTJOB_DATABASE_URL": empty_database_url}
        result = run_in_process(*arguments.split(), environment=environment, folder=story.folder)
        codes[arguments] = max(result.returncode, codes.get(arguments, 0))
        errors.append(result.stderr)

    demo = runpy.run_path(str(ROOT / "demo/demo.py"))
    demo["Demo"].certjob = run
    assert demo["main"]() == 0

    assert {command for command, code in codes.items() if code != 0} == {"run", "alerts"}
    assert {"run --dry-run", "alerts --retry-all", "explain M1001", "reconcile"} <= codes.keys()
    why = "the portal did not answer or could not make the change"
    assert f"certjob run: 3 mentors may still be visible on the portal: {why}; see `certjob alerts`\n" in errors
    shown = capsys.readouterr().out
    differences = re.findall(r"(\d shown wrongly, \d hidden wrongly)", shown)
    assert differences == [
        "0 shown wrongly, 0 hidden wrongly",
        "3 shown wrongly, 0 hidden wrongly",
        "0 shown wrongly, 0 hidden wrongly",
        "0 shown wrongly, 0 hidden wrongly",
        "1 shown wrongly, 1 hidden wrongly",
        "0 shown wrongly, 0 hidden wrongly",
    ]
    assert re.findall(r"the portal (shows|hides) M1002", shown) == ["shows", "hides"]
    assert "| Subject: Your certificate expires on " in shown
