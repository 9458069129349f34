"""What claiming and settling a backlog costs, in one process and in four.

How many a second depends on the machine first: so the events are also written as often, and committed as durably, by
two bare UPDATEs by their keys which ask for nothing. No claim and settle of these tables can be faster than that.
"""

import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import PYTHON
from tests.benchmarks.figures import Bar, Figure, in_turns, per_second
from tests.benchmarks.population import run_script, today

SPEED_BAR = 20_000
REFERENCES = {"bare": ("the same statements", 1.5), "least": ("the least writes, nothing asked", 2.0)}
"""What the other side does, and how many times its time ours may take."""
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
        return [_figure(bench, template, processes, against) for processes in (1, 4) for against in REFERENCES]


def _figure(bench: Bench, template: str, processes: int, against: str) -> Figure:
    words, most = REFERENCES[against]
    bench.say(f"a backlog of {bench.backlog:,} events, {processes} process(es), against {words}")

    def side(kind: str) -> float:
        with bench.server.copy(template) as name:
            return _settle_all(bench, name, kind=kind, processes=processes)

    ratio = in_turns(lambda: side("ours"), lambda: side(against), rounds=bench.rounds)
    speed, fastest = bench.backlog / ratio.ours, bench.backlog / ratio.reference
    notes = "each event settled once"
    if speed < SPEED_BAR:
        notes += f"; MISSED {SPEED_BAR:,}/s"
        if against == "least" and fastest < SPEED_BAR:
            notes += ", which the least writes miss on this machine, too"
    return Figure(
        part="backlog",
        name=f"claim + settle of {bench.backlog:,}, {processes} process{'es' if processes > 1 else ''}",
        ours=per_second(bench.backlog, ratio.ours, "events"),
        reference=f"{per_second(bench.backlog, ratio.reference, 'events')}, {words}",
        ratio=ratio,
        bar=(Bar.AT_MOST, most),
        notes=notes,
    )


def _settle_all(bench: Bench, name: str, *, kind: str, processes: int) -> float:
    """Set the workers off together; seconds until the last one is done."""
    command = [str(PYTHON), "-m", "tests.benchmarks.outbox_worker", kind, bench.server.url(name)]
    numbers = [[str(number), str(processes)] for number in range(processes)]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(command + own, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for own in numbers
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
