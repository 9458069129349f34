"""What a start costs: the help, and the imports behind it."""

import re
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import PYTHON, certjob, python, start
from tests.benchmarks.figures import Bar, Figure, Limit, in_turns, seconds
from tests.conftest import installed_command

HELP_BAR_SECONDS = 0.4
_BARE_HELP = "import typer"
_SHOWN_IMPORTS = 6


def run(bench: Bench) -> list[Figure]:
    """Three times as many rounds, because each takes no time."""
    bench.say("certjob --help")
    certjob("--help")
    ratio = in_turns(lambda: certjob("--help").seconds, lambda: python(_BARE_HELP).seconds, rounds=3 * bench.rounds)
    return [
        Figure(
            part="start-up",
            name="certjob --help",
            ours=seconds(ratio.ours),
            reference=f"{seconds(ratio.reference)}, import typer",
            ratio=ratio,
            limits=[Limit(value=ratio.ours, unit="s", bar=(Bar.AT_MOST, HELP_BAR_SECONDS))],
            notes=_imports_line(_imports("--help")),
        )
    ]


def _imports(*arguments: str, database_url: str = "") -> dict[str, float]:
    """Milliseconds of importing each package, by itself and what only it brought along, most expensive first."""
    command: list[str | Path] = [PYTHON, "-X", "importtime", installed_command(), *arguments]
    said = start(command, database_url=database_url).finish().stderr
    costs: dict[str, float] = {}
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", said, flags=re.MULTILINE):
        package = name.partition(".")[0]
        costs[package] = costs.get(package, 0.0) + int(own) / 1000
    return dict(sorted(costs.items(), key=lambda cost: -cost[1]))


def _imports_line(costs: dict[str, float]) -> str:
    dearest = [f"{name} {cost:.0f}" for name, cost in list(costs.items())[:_SHOWN_IMPORTS]]
    return f"imports {sum(costs.values()):.0f} ms: {', '.join(dearest)}"
