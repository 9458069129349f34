"""What a start costs: the help, a night on an empty database, and the imports behind both."""

import re
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import PYTHON, certjob, python, start
from tests.benchmarks.figures import Figure, in_turns, seconds
from tests.conftest import installed_command

HELP_BAR_SECONDS = 0.4
_BARE_HELP = "import typer"
_BARE_SESSION = """
import sys, psycopg
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("SELECT 1").fetchone()
"""
_SHOWN_IMPORTS = 6


def run(bench: Bench) -> list[Figure]:
    """Measure both starts; three times as many rounds, because each takes no time."""
    rounds = 3 * bench.rounds
    bench.say("certjob --help")
    certjob("--help")
    helped = in_turns(lambda: certjob("--help").seconds, lambda: python(_BARE_HELP).seconds, rounds=rounds)
    bench.say("an empty night")
    with bench.server.fresh("bench_empty") as name:
        url = bench.server.url(name)

        def night() -> float:
            return certjob("run", "--quiet", database_url=url).seconds

        night()
        empty = in_turns(night, lambda: python(_BARE_SESSION, url).seconds, rounds=rounds)
        night_imports = _imports("run", database_url=url)
    return [
        Figure(
            part="start-up",
            name="certjob --help",
            ours=seconds(helped.ours),
            reference=f"{seconds(helped.reference)}, import typer",
            ratio=helped,
            notes=_imports_line(_imports("--help"))
            + ("" if helped.ours < HELP_BAR_SECONDS else f"; MISSED {HELP_BAR_SECONDS:g} s"),
        ),
        Figure(
            part="start-up",
            name="certjob run, empty database",
            ours=seconds(empty.ours),
            reference=f"{seconds(empty.reference)}, psycopg SELECT 1",
            ratio=empty,
            notes=_imports_line(night_imports),
            detail={"imports_ms": night_imports},
        ),
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
