"""Draw mutants by a seed, run each against the tests of its room and the acceptance tests, and say which survive.

    python -m tests.mutants --seed 1 --number 200
    python -m tests.mutants --rooms mail outbox --number 30
    python -m tests.mutants --near                                # first; then its survivors again, with all
    python -m tests.mutants --again build/mutants/survivors.json  # only these; with --tests-of COMMIT by older tests

What is tested is the working tree. A mutant that no test notices is either one that changes nothing that anybody could
see, or a test that is missing.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
import venv
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from tests.mutants.places import ROOMS, Mutant, find
from tests.support.own_server import Cluster, data_folder, leave_on_sigterm

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "mutants"
LONGEST_SECONDS = 300.0
"""A mutant that makes the tests take longer counts as a survivor, to be looked at: it hangs, or the machine is busy."""

TESTS = {
    "domain": ("domain", "review", "mail", "reports"),
    "review": ("review", "jobs"),
    "outbox": ("outbox", "portal", "mail"),
    "portal": ("portal", "jobs"),
    "mail": ("mail",),
    "facts": ("facts", "review"),
    "triggers": ("database", "review", "mail", "portal"),
}
"""Where the tests of a room are, nearest first; the acceptance tests come after them."""
_LEFT_OUT = (
    "tests/acceptance/test_benchmarks.py",
    "tests/acceptance/test_docs.py",
)


class Copy:
    """A copy of the checkout with an environment of its own, to be broken."""

    def __init__(self, folder: Path, *, tests_of: str | None) -> None:
        self.folder = folder
        not_ours = shutil.ignore_patterns(".git", ".venv", "build", ".hypothesis", ".*_cache", "__pycache__")
        shutil.copytree(ROOT, folder, ignore=not_ours, dirs_exist_ok=True)
        if tests_of is not None:
            shutil.rmtree(folder / "tests")
            archive = subprocess.run(["git", "archive", tests_of, "tests"], cwd=ROOT, capture_output=True, check=True)
            subprocess.run(["tar", "x"], cwd=folder, input=archive.stdout, check=True)
        # The libraries are those of this environment; certjob is the copy's.
        environment = folder / ".venv"
        venv.create(environment, symlinks=True)
        ours, theirs = Path(sys.executable).parent, environment / "bin"
        libraries = next((environment / "lib").glob("python3*")) / "site-packages"
        shared = next((ours.parent / "lib").glob("python3*")) / "site-packages"
        (libraries / "mutants.pth").write_text(f"{folder}\n{shared}\n")
        for script in ours.iterdir():
            if script.name == "certjob":
                (theirs / script.name).write_text(script.read_text().replace(str(ours), str(theirs)))
                (theirs / script.name).chmod(0o755)
            elif not (theirs / script.name).exists():
                (theirs / script.name).symlink_to(script)

    def test(self, mutant: Mutant, url: str, *, near: bool) -> tuple[bool, str]:
        """Whether a test notices, and the first that does."""
        rooms = TESTS.get(mutant.room) or (Path(mutant.path).parts[2], "database", "jobs")  # a query's package
        tests = [f"tests/{room}" for room in dict.fromkeys((*rooms, *(() if near else ("acceptance",))))]
        quickly = "-m pytest -x -q -n 0 -p no:cacheprovider --no-header --tb=no"
        command = [str(self.folder / ".venv/bin/python"), *quickly.split()]
        command += ["-m", "not real_cron and not real_mail_server and not real_pgbouncer"]
        command += [f"--deselect={left_out}" for left_out in _LEFT_OUT]
        command += [each for each in tests if (self.folder / each).is_dir()]
        how: dict[str, Any] = {"cwd": self.folder, "env": os.environ | {"CERTJOB_TEST_DATABASE_URL": url}}
        file = self.folder / mutant.path
        whole = file.read_text()
        file.write_text(mutant.apply(whole))
        try:
            ended = subprocess.run(command, timeout=LONGEST_SECONDS, capture_output=True, text=True, check=False, **how)
        except subprocess.TimeoutExpired:
            return False, "it took too long"
        finally:
            file.write_text(whole)
        said = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return ended.returncode != 0, (said or [ended.stdout[-300:] + ended.stderr[-300:]])[0][:140]


def _mutants(asked: argparse.Namespace) -> list[Mutant]:
    """Those that are asked for again, or as many of each room, or all where there are fewer."""
    if asked.again:
        return [Mutant(**fields) for fields in json.loads(asked.again.read_text())]
    chance, found, drawn = random.Random(asked.seed), find(ROOT), list[Mutant]()
    for room in asked.rooms:
        drawn += chance.sample(found[room], min(len(found[room]), -(-asked.number // len(asked.rooms))))
    return drawn[: asked.number]


def main() -> int:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--near", action="store_true", help="Without the acceptance tests: four times as fast.")
    parser.add_argument("--again", type=Path, metavar="FILE", help="Only the survivors that are written there.")
    parser.add_argument("--tests-of", metavar="COMMIT", help="With this commit's tests instead of today's.")
    asked = parser.parse_args()
    mutants, copies = _mutants(asked), SimpleQueue[Copy]()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(stack.enter_context(data_folder("mutants")) / "server"))
        for _ in range(asked.jobs):
            folder = Path(
                stack.enter_context(TemporaryDirectory(prefix="copy-", dir=FOLDER, ignore_cleanup_errors=True))
            )
            copies.put(Copy(folder, tests_of=asked.tests_of))

        def is_caught(mutant: Mutant) -> bool:
            copy, began = copies.get(), time.monotonic()
            try:
                noticed, by = copy.test(mutant, cluster.url("postgres"), near=asked.near)
            finally:
                copies.put(copy)
            word, what = "caught" if noticed else "SURVIVES", mutant.describe((ROOT / mutant.path).read_text())
            print(f"{word} {time.monotonic() - began:4.0f} s {what}\n    {by}", flush=True)
            return noticed

        with ThreadPoolExecutor(asked.jobs) as pool:
            caught = list(pool.map(is_caught, mutants))
    survivors = [mutant for mutant, noticed in zip(mutants, caught, strict=True) if not noticed]
    drawn, survived = (Counter(mutant.room for mutant in some) for some in (mutants, survivors))
    for room, number in [*drawn.items(), ("in all", len(mutants))]:
        left = survived[room] if room in drawn else len(survivors)
        print(f"{room:10} {number:4} drawn {number - left:4} caught")
    kept = FOLDER / "survivors.json"
    kept.write_text(json.dumps([asdict(mutant) for mutant in survivors], indent=1))
    print(f"Survivors: {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
