"""What a start costs: the help."""

from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import certjob, python
from tests.benchmarks.figures import Bar, Figure, Limit, in_turns, seconds

HELP_BAR_SECONDS = 0.4
_BARE_HELP = "import typer"


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
        )
    ]
