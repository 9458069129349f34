"""Workers that share the seeds, each a process with a PostgreSQL of its own."""

import atexit
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.chaos.cluster import Cluster
from tests.chaos.one_run import Outcome, perform
from tests.chaos.plans import Command, plan_for

_cluster: Cluster
"""A worker's own."""


def perform_all(seeds: Sequence[int], *, matrix: Sequence[Command], jobs: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcomes as they come. Raises BrokenProcessPool when a worker dies."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_begin, initargs=(folder,)) as pool:
        try:
            for each in as_completed([pool.submit(_perform, seed, matrix) for seed in seeds]):
                yield each.result()
        finally:
            pool.shutdown(cancel_futures=True)  # asked to stop: what is under way comes to its end


def _begin(folder: Path) -> None:
    global _cluster  # noqa: PLW0603 - how an initializer hands over what it made
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to the whole group, and the parent decides
    _cluster = Cluster(folder / f"worker-{os.getpid()}").__enter__()
    (_cluster.folder / "home").mkdir()
    atexit.register(_cluster.__exit__)


def _perform(seed: int, matrix: Sequence[Command]) -> Outcome:
    return perform(plan_for(seed, matrix=matrix), cluster=_cluster, folder=_cluster.folder / "home")


def leave_on_sigterm() -> None:
    """Let SIGTERM end this process through its context managers, so that its servers end, too."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
