"""Run the matrix and random seeds on several PostgreSQL servers, print a summary, and exit with 1 after a complaint."""

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from tests.chaos.plans import FIRST_RANDOM_SEED, Command, Plan, matrix, plan_for, standard_night
from tests.chaos.run import ChaosRun, carry_out
from tests.support.own_server import Cluster, data_folder, leave_on_sigterm


def main() -> int:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=560, help="number of runs, the matrix first (%(default)s)")
    parser.add_argument("--seed", type=int, action="append", help="only this one; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="number of PostgreSQL servers (%(default)s)")
    asked = parser.parse_args()
    with data_folder("chaos") as folder, ExitStack() as stack:
        clusters: SimpleQueue[Cluster] = SimpleQueue()
        for number in range(asked.jobs):
            clusters.put(stack.enter_context(Cluster(folder / f"worker-{number}")))
        return _run(asked, clusters)


def _run(asked: argparse.Namespace, clusters: SimpleQueue[Cluster]) -> int:
    began = time.monotonic()

    def run(plan: Plan) -> ChaosRun:
        cluster = clusters.get()
        (cluster.folder / "home").mkdir(exist_ok=True)
        try:
            return carry_out(plan, cluster=cluster, folder=cluster.folder / "home")
        finally:
            clusters.put(cluster)

    commands: list[Command] = []
    if min(asked.seed or [0]) < FIRST_RANDOM_SEED:
        healthy = run(standard_night(Command(attempts=1), seed=0))
        print(f"the places of the standard night: {dict(healthy.places[1])}")
        commands = matrix(healthy.places[1])
    seeds = asked.seed or [*range(len(commands)), *range(FIRST_RANDOM_SEED, FIRST_RANDOM_SEED + asked.runs)]
    runs: list[ChaosRun] = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for each in pool.map(run, [plan_for(seed, matrix=commands) for seed in seeds[: asked.runs]]):
            runs.append(each)
            if each.complaints or len(runs) % 20 == 0:
                print(each if each.complaints else f"{len(runs)} runs, {time.monotonic() - began:.0f} s", flush=True)
    tried = Counter(label for run in runs for label, _ in run.tried)
    reached = Counter(label for run in runs for label, is_reached in run.tried if is_reached)
    for label, count in sorted(tried.items()):
        print(f"{label:<{max(map(len, tried))}}  {reached[label]:>4} of {count}")
    bad = [run.plan.seed for run in runs if run.complaints]
    print(f"{len(runs)} runs in {time.monotonic() - began:.0f} s; complaints about the seeds {bad}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
