"""``python -m tests.chaos``: the matrix and random seeds on several workers, a summary; exits 1 after a complaint."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from queue import SimpleQueue

from tests.chaos.plans import FIRST_RANDOM_SEED, Command, Plan, matrix, plan_for, struck_night
from tests.chaos.play import Play, perform
from tests.support.own_server import Cluster, data_folder, leave_on_sigterm


def main() -> int:
    """Run what was asked for; return the exit code."""
    leave_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=560, help="how many, the matrix first (%(default)s)")
    parser.add_argument("--seed", type=int, action="append", help="only this one; repeatable")
    parser.add_argument("--first-seed", type=int, default=FIRST_RANDOM_SEED, help="of the random ones (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="workers, each with a PostgreSQL of its own (%(default)s)")
    parser.add_argument("--no-matrix", action="store_true", help="random seeds only")
    asked = parser.parse_args()
    if asked.first_seed < FIRST_RANDOM_SEED:
        parser.error(f"seeds below {FIRST_RANDOM_SEED} are the matrix's")
    with data_folder("chaos") as folder, ExitStack() as stack:
        clusters: SimpleQueue[Cluster] = SimpleQueue()
        for number in range(asked.jobs):
            clusters.put(stack.enter_context(Cluster(folder / f"worker-{number}")))
        return _run(asked, clusters)


def _run(asked: argparse.Namespace, clusters: SimpleQueue[Cluster]) -> int:
    began = time.monotonic()

    def carry_out(plan: Plan) -> Play:
        cluster = clusters.get()
        home = cluster.folder / "home"
        home.mkdir(exist_ok=True)
        try:
            return perform(plan, cluster=cluster, folder=home)
        finally:
            clusters.put(cluster)

    needs_matrix = min(asked.seed or [0]) < FIRST_RANDOM_SEED and not asked.no_matrix
    places = _measured(carry_out(struck_night(Command(attempts=1), seed=0))) if needs_matrix else []
    random_seeds = range(asked.first_seed, asked.first_seed + max(asked.runs - len(places), 0))
    seeds = asked.seed or [*range(min(len(places), asked.runs)), *random_seeds]
    outcomes: list[Play] = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        runs = [pool.submit(carry_out, plan_for(seed, matrix=places)) for seed in seeds]
        try:
            for run in as_completed(runs):
                outcomes.append(run.result())
                if outcomes[-1].complaints:
                    print(outcomes[-1], flush=True)
                elif len(outcomes) % 20 == 0:
                    print(f"{len(outcomes)} of {len(seeds)} runs, {time.monotonic() - began:.0f} s", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)  # asked to stop: what is under way comes to its end
    return _summarize(outcomes, seconds=time.monotonic() - began)


def _measured(outcome: Play) -> list[Command]:
    """The matrix of the standard night, which was run without a fault, to know all its places."""
    if outcome.complaints:
        print(f"without any fault: {outcome}")
        raise SystemExit(1)
    places = outcome.nights[1]  # the second command of the plan is the one to be struck
    print(
        f"the standard night by its places: {', '.join(f'{spot} {number}' for spot, number in places.items())}; "
        "it is killed at each of them, and its mail server fails in every way at every phase"
    )
    return matrix(places)


def _summarize(outcomes: Sequence[Play], *, seconds: float) -> int:
    tried = Counter(label for outcome in outcomes for label, _ in outcome.tried)
    reached = Counter(label for outcome in outcomes for label, is_reached in outcome.tried if is_reached)
    for label, count in sorted(tried.items()):
        print(f"{label:<{max(map(len, tried))}}  {reached[label]:>4} of {count}")
    bad = [outcome.plan.seed for outcome in outcomes if outcome.complaints]
    places = len([outcome for outcome in outcomes if outcome.plan.seed < FIRST_RANDOM_SEED])
    said = f"complaints about the seeds {bad}" if bad else "no complaints"
    print(f"{len(outcomes)} runs in {seconds:.0f} s, {places} of them places of the matrix; {said}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
