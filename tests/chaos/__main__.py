"""``python -m tests.chaos``: the matrix and random seeds on several workers, a summary; exits 1 after a complaint."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.one_run import Outcome, perform
from tests.chaos.plans import FIRST_RANDOM_SEED, Command, matrix, struck_night
from tests.chaos.workers import leave_on_sigterm, perform_all
from tests.support.own_server import data_folder

DEFAULT_RUNS = 560


def main() -> int:
    """Run what was asked for; return the exit code."""
    leave_on_sigterm()
    asked = _parse()
    with data_folder("chaos") as folder:
        return _run(asked, folder)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS, help="how many, the matrix first (%(default)s)")
    parser.add_argument("--seed", type=int, action="append", help="only this one; repeatable")
    parser.add_argument("--first-seed", type=int, default=FIRST_RANDOM_SEED, help="of the random ones (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="workers, each with a PostgreSQL of its own (%(default)s)")
    parser.add_argument("--no-matrix", action="store_true", help="random seeds only")
    asked = parser.parse_args()
    if asked.first_seed < FIRST_RANDOM_SEED:
        parser.error(f"seeds below {FIRST_RANDOM_SEED} are the matrix's")
    return asked


def _run(asked: argparse.Namespace, folder: Path) -> int:
    began = time.monotonic()
    places = _measure(folder / "measure") if _needs_matrix(asked) else []
    seeds = asked.seed or _seeds(asked, len(places))
    outcomes: list[Outcome] = []
    for outcome in perform_all(seeds, matrix=places, jobs=min(asked.jobs, len(seeds)), folder=folder):
        outcomes.append(outcome)
        if outcome.complaints:
            print(outcome, flush=True)
        elif len(outcomes) % 20 == 0:
            print(f"{len(outcomes)} of {len(seeds)} runs, {time.monotonic() - began:.0f} s", flush=True)
    return _summarize(outcomes, seeds, matrix=places, seconds=time.monotonic() - began)


def _needs_matrix(asked: argparse.Namespace) -> bool:
    return any(seed < FIRST_RANDOM_SEED for seed in asked.seed) if asked.seed else not asked.no_matrix


def _seeds(asked: argparse.Namespace, places: int) -> list[int]:
    random_ones = max(asked.runs - places, 0)
    return [*range(min(places, asked.runs)), *range(asked.first_seed, asked.first_seed + random_ones)]


def _measure(folder: Path) -> list[Command]:
    """Run the standard night once without a fault, to know all its places."""
    with Cluster(folder) as cluster:
        outcome = perform(struck_night(Command(attempts=1), seed=0), cluster=cluster, folder=folder)
    if outcome.complaints:
        print(f"without any fault: {outcome}")
        raise SystemExit(1)
    night = outcome.nights[1]  # the second command of the plan is the one to be struck
    print(
        f"the standard night has {', '.join(f'{number} {what}' for what, number in night.items())} of mail sessions; "
        "it is killed at each of them, and its mail server fails in every way at every phase"
    )
    return matrix(**night)


def _summarize(outcomes: Sequence[Outcome], seeds: Sequence[int], *, matrix: Sequence[Command], seconds: float) -> int:
    reached: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for outcome in outcomes:
        for label, struck in outcome.tried:
            tried[label] += 1
            reached[label] += struck
    width = max(map(len, tried))
    for label, count in sorted(tried.items()):
        print(f"{label:<{width}}  {reached[label]:>4} of {count}")
    bad = [outcome.plan.seed for outcome in outcomes if outcome.complaints]
    places = len([seed for seed in seeds if seed < FIRST_RANDOM_SEED])
    print(
        f"{len(outcomes)} runs in {seconds:.0f} s, {places} of them places of the matrix (it has {len(matrix)}); "
        + (f"complaints about the seeds {bad}" if bad else "no complaints")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
