"""``python -m tests.benchmarks``: one table, and the same as JSON; exits 1 if a bar was missed."""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import deliveries, night, plans
from tests.benchmarks.bench_server import Bench, advised_shared_buffers, bench_server, is_in_memory
from tests.benchmarks.figures import Figure, table
from tests.chaos.workers import leave_on_sigterm

PARTS: dict[str, Callable[[Bench], list[Figure]]] = {
    "start-up": night.run_start_up,
    "quiet": night.run_nothing_due,
    "night": night.run_due,
    "pushes": deliveries.run_pushes,
    "procrastinate": deliveries.run_procrastinate,
    "mails": deliveries.run_mails,
    "reconcile": deliveries.run_reconcile,
    "plans": plans.run,  # last: it runs certjob in this process, whose memory a child's peak then counts in
}


def main() -> int:
    """Run what was asked for; return the exit code."""
    leave_on_sigterm()
    asked = _parse()
    began = time.monotonic()
    place = asked.folder or ("/var/tmp" if is_in_memory(Path(tempfile.gettempdir())) else None)  # noqa: S108
    folder = Path(tempfile.mkdtemp(prefix="certjob-bench-", dir=place))
    folder.chmod(0o755)  # root's PostgreSQL is another user
    figures: list[Figure] = []

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        with bench_server(folder / "server", shared_buffers=asked.shared_buffers) as server:
            bench = Bench(
                server=server,
                folder=folder,
                rounds=asked.rounds,
                mentors=asked.mentors,
                shares=asked.share or (1, 100),
                pushes=asked.pushes,
                say=say,
            )
            for name in asked.only or PARTS:
                figures += PARTS[name](bench)
            document = {
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "python": platform.python_version(),
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
                "mentors": bench.mentors,
                "rounds": bench.rounds,
                "server": server.settings,
                "figures": [figure.to_document() for figure in figures],
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    asked.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    print(table(figures))
    print(f"\n{time.monotonic() - began:.0f} s; the same with every round's figures in {asked.json}")
    return 1 if any(figure.is_met is False for figure in figures) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", choices=list(PARTS), help="only this part; repeatable")
    add("--mentors", type=int, default=1_000_000, help="the largest population (%(default)s)")
    add("--share", type=int, action="append", help="per cent of the mentors who are due; repeatable (1, 100)")
    add("--pushes", type=int, default=2_000, help="to a portal at once; half as many mails (%(default)s)")
    add(
        "--shared-buffers",
        default=advised_shared_buffers(),
        help="of the server, for both sides; default: a quarter of the memory, at most 4 GB (%(default)s)",
    )
    add("--rounds", type=int, default=3, help="of everything (%(default)s)")
    add("--json", type=Path, default=Path("benchmarks.json"), help="where to write it (%(default)s)")
    add("--folder", type=Path, help="where the database is made; default: the temporary directory, or /var/tmp")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("make bench: broken off; its server and its folder are gone")
