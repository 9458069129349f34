"""What claiming and settling a backlog costs, in one process and in four."""

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import PYTHON
from tests.benchmarks.figures import Bar, Figure, in_turns, per_second
from tests.benchmarks.population import run_script, today

SPEED_BAR = 20_000
RATIO_BAR = 1.5
_ROOT = Path(__file__).parent.parent.parent

_BACKLOG = """
    UPDATE mentors SET dynamics_contact_id = coalesce(dynamics_contact_id, gen_random_uuid());
    UPDATE organisations SET portal = 'dynamics';
    INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors;
"""


def run(bench: Bench) -> list[Figure]:
    """One event for each mentor of a population of that size."""
    with bench.server.fresh("bench_backlog") as template:
        with bench.server.connect(template) as connection:
            run_script(connection, "population.sql", mentors=bench.backlog, today=today())
            connection.execute("ALTER TABLE organisations DISABLE TRIGGER USER")
            connection.execute(_BACKLOG.encode())
            connection.execute("VACUUM ANALYZE")
        return [_figure(bench, template, processes) for processes in (1, 4)]


def _figure(bench: Bench, template: str, processes: int) -> Figure:
    bench.say(f"a backlog of {bench.backlog:,} events, {processes} process(es)")

    def side(kind: str) -> float:
        with bench.server.copy(template) as name:
            return _settle_all(bench, name, kind=kind, processes=processes)

    ratio = in_turns(lambda: side("ours"), lambda: side("bare"), rounds=bench.rounds)
    speed = bench.backlog / ratio.ours
    return Figure(
        part="backlog",
        name=f"claim + settle of {bench.backlog:,}, {processes} process{'es' if processes > 1 else ''}",
        ours=per_second(bench.backlog, ratio.ours, "events"),
        reference=f"{per_second(bench.backlog, ratio.reference, 'events')}, the same statements",
        ratio=ratio,
        bar=(Bar.AT_MOST, RATIO_BAR),
        notes="each event settled once" + ("" if speed >= SPEED_BAR else f"; MISSED {SPEED_BAR:,}/s"),
    )


def _settle_all(bench: Bench, name: str, *, kind: str, processes: int) -> float:
    """Set the workers off together; seconds until the last one is done."""
    command = [str(PYTHON), "-m", "tests.benchmarks.outbox_worker", kind, bench.server.url(name)]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(processes)
        ]
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
        began = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        done = [int(worker.stdout.readline()) for worker in workers if worker.stdout is not None]
        took = time.perf_counter() - began
    if sum(done) != bench.backlog:
        message = f"{bench.backlog} events were to be settled, {done} were"
        raise RuntimeError(message)
    return took
