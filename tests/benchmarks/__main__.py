"""Print one table, and exit with 1 if a target is missed."""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import deliveries, night
from tests.benchmarks.bench import Bench, durable_cluster
from tests.benchmarks.figures import Figure, table
from tests.support.own_server import leave_on_sigterm

PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "start-up": night.run_start_up,
    "quiet": night.run_nothing_due,
    "night": night.run_due,
    "pushes": deliveries.run_pushes,
    "mails": deliveries.run_mails,
}


def main() -> int:
    """Run the parts of the command line; return the exit code."""
    leave_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", choices=list(PARTS), help="only this part; repeatable")
    add("--mentors", type=int, default=1_000_000, help="the largest population (%(default)s)")
    add("--share", type=int, action="append", help="per cent of the mentors who are due; repeatable (5, 100)")
    add("--pushes", type=int, default=2_000, help="and half as many mails (%(default)s)")
    add("--rounds", type=int, default=3, help="of everything (%(default)s)")
    asked = parser.parse_args()
    sizes = {"rounds": asked.rounds, "mentors": asked.mentors, "pushes": asked.pushes}
    # Not /tmp, which is in memory on many systems, where a commit does not wait for a disk.
    with tempfile.TemporaryDirectory(prefix="certjob-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)  # root's PostgreSQL is another user
        with durable_cluster(folder / "server") as cluster:
            bench = Bench(cluster=cluster, shares=asked.share or (5, 100), **sizes)
            figures = [figure for part in asked.only or PARTS for figure in PARTS[part](bench)]
    print(table(figures))
    print(f"\n{time.monotonic() - bench.began:.0f} s")
    return 0 if all(figure.is_met for figure in figures) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("make bench: stopped; its server and its folder are deleted")
