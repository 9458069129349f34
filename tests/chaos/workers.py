"""Workers that share the seeds, each a process with a PostgreSQL of its own."""

import multiprocessing
import queue
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from tests.chaos.cluster import Cluster
from tests.chaos.one_run import Outcome, perform
from tests.chaos.plans import Command, plan_for

_SPAWN = multiprocessing.get_context("spawn")


def perform_all(seeds: Sequence[int], *, matrix: Sequence[Command], jobs: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcomes as they come. Raises SystemExit when a worker dies."""
    tasks: Any = _SPAWN.Queue()
    answers: Any = _SPAWN.Queue()
    for seed in [*seeds, *[None] * jobs]:
        tasks.put(seed)
    workers = [
        _SPAWN.Process(target=_work, args=(tasks, answers, list(matrix), folder / f"worker-{number}"), daemon=True)
        for number in range(jobs)
    ]
    for worker in workers:
        worker.start()
    left = len(seeds)
    try:
        while left:
            try:
                yield answers.get(timeout=5)
                left -= 1
            except queue.Empty:
                if any(worker.exitcode not in (None, 0) for worker in workers):
                    print("a worker died")
                    raise SystemExit(1) from None
    finally:
        for worker in workers:
            if left:  # asked to stop, or one of them died
                worker.terminate()
            worker.join()


def _work(tasks: Any, answers: Any, matrix: list[Command], folder: Path) -> None:
    leave_on_sigterm()
    with Cluster(folder) as cluster:
        home = folder / "home"
        home.mkdir()
        while (seed := tasks.get()) is not None:
            answers.put(perform(plan_for(seed, matrix=matrix), cluster=cluster, folder=home))


def leave_on_sigterm() -> None:
    """Let SIGTERM end this process through its context managers, so that its servers end, too."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        sys.exit(1)

    signal.signal(signal.SIGTERM, leave)
