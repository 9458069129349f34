"""Random histories of the programme, against the oracle of docs/rules.md; exit with 1 after a finding.

python -m tests.chaos.slips --histories 2000        # two processes, 25 histories of each seed
python -m tests.chaos.slips --seed 7                # one seed again, with its shortest failing history
"""

import argparse
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from hypothesis import HealthCheck, Phase, seed, settings, stateful

from tests.conftest import make_template
from tests.database import supabase
from tests.jobs.test_slips_machine import SlipsMachine
from tests.support.own_server import Cluster, data_folder, leave_on_sigterm

PROCESSES = 2
EACH = 25


def search(number: int, *, is_shrunk: bool) -> str:
    """Return the finding of a seed, or an empty text."""
    phases = [Phase.generate, *([Phase.shrink] if is_shrunk else [])]
    some = settings(
        max_examples=EACH,
        stateful_step_count=15,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    with data_folder("slips") as folder, Cluster(folder / "server") as cluster:
        for template in make_template(cluster.url("postgres"), "slips", before=supabase.set_up):

            def new_machine(url: str = cluster.url("postgres"), template: str = template) -> SlipsMachine:
                return SlipsMachine(url, template)

            try:
                stateful.run_state_machine_as_test(seed(number)(new_machine), settings=some)  # type: ignore[arg-type]
            except Exception as error:  # noqa: BLE001 - any error is a finding
                return "".join(traceback.format_exception(error, limit=-1))
    return ""


def main() -> int:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.slips", description=__doc__)
    parser.add_argument("--histories", type=int, default=200, help="number of histories (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (%(default)s)")
    parser.add_argument("--seed", type=int, action="append", help="only this one, with a short history; repeatable")
    asked = parser.parse_args()
    seeds = asked.seed or range(asked.first, asked.first + -(-asked.histories // EACH))
    bad = list[int]()
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("forkserver")) as pool:
        found = [(number, pool.submit(search, number, is_shrunk=bool(asked.seed))) for number in seeds]
        for number, future in found:
            finding = future.result()
            bad += [number] if finding else []
            print(f"seed {number}: {finding or 'no finding'}", flush=True)
    print(f"findings of the seeds {bad}" if bad else f"no finding in {len(seeds) * EACH} histories")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
