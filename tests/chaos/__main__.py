"""Run the matrix and random seeds on two PostgreSQL servers, and exit with 1 after a complaint."""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from tests.chaos.plans import FIRST_RANDOM_SEED, Command, Plan, matrix, plan_for, standard_night
from tests.chaos.run import ChaosRun, carry_out
from tests.support.own_server import Cluster, data_folder, leave_on_sigterm

SERVERS = 2


def main() -> int:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=560, help="number of runs, the matrix first (%(default)s)")
    parser.add_argument("--seed", type=int, action="append", help="only this one; repeatable")
    asked = parser.parse_args()
    clusters: SimpleQueue[Cluster] = SimpleQueue()

    def run(plan: Plan) -> ChaosRun:
        cluster = clusters.get()
        try:
            return carry_out(plan, cluster)
        finally:
            clusters.put(cluster)

    bad = list[int]()
    with data_folder("chaos") as folder, ExitStack() as stack, ThreadPoolExecutor(SERVERS) as pool:
        for each in range(SERVERS):
            clusters.put(stack.enter_context(Cluster(folder / f"worker-{each}")))
        commands = matrix(run(standard_night(Command(attempts=1), seed=0)).places[1])
        seeds = asked.seed or [*range(len(commands)), *range(FIRST_RANDOM_SEED, FIRST_RANDOM_SEED + asked.runs)]
        plans = [plan_for(seed, matrix=commands) for seed in seeds[: asked.runs]]
        for done in pool.map(run, plans):
            bad += [done.plan.seed] if done.complaints else []
            print(done if done.complaints else f"seed {done.plan.seed} is fine", flush=True)
    print(f"complaints about the seeds {bad}" if bad else f"no complaints in {len(plans)} runs")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
