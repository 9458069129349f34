"""Draw mutants by a seed, run each against the tests of its room and the acceptance tests, and say which survive.

    python -m tests.mutants --seed 1 --number 200
    python -m tests.mutants --rooms mail outbox --number 30
    python -m tests.mutants --near                                # first; then its survivors again, with all
    python -m tests.mutants --again build/mutants/survivors.json  # only these

What is tested is the working tree: after `git checkout COMMIT -- tests`, today's code with that commit's tests.
A mutant that no test notices is either one that changes nothing that anybody could see, or a test that is missing.
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

import psycopg

from certjob.database import embedded
from tests.mutants.places import ROOMS, Mutant, find
from tests.support.own_server import data_folder, leave_on_sigterm

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "mutants"
LONGEST_SECONDS = 300.0
"""A mutant that makes the tests take longer is caught: it hangs."""

TESTS = {
    "domain": ("domain", "review", "mail", "views"),
    "review": ("review", "night"),
    "outbox": ("outbox", "portal", "mail"),
    "portal": ("portal", "night"),
    "mail": ("mail",),
    "facts": ("facts", "review"),
    "triggers": ("database", "review", "mail", "portal"),
}
"""Where the tests of a room are, nearest first; the acceptance tests come after them."""
_LEFT_OUT = (
    "tests/database/test_schema_page.py",  # compares the text of all migrations: catches everything, shows nothing
    "tests/acceptance/test_benchmarks.py",
    "tests/acceptance/test_docs.py",
)


def _tests_of(mutant: Mutant, *, near: bool) -> list[str]:
    rooms = TESTS.get(mutant.room) or (Path(mutant.path).parts[2], "database", "night")  # a query's package
    return [f"tests/{room}" for room in dict.fromkeys((*rooms, *(() if near else ("acceptance",))))]


class Copy:
    """A copy of the checkout with an environment of its own, to be broken."""

    def __init__(self, folder: Path, *, near: bool) -> None:
        self.folder = folder
        self._near = near
        shutil.rmtree(folder, ignore_errors=True)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listed.stdout.decode().split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self._make_environment()

    def _make_environment(self) -> None:
        """The libraries are those of this environment; certjob is the copy's."""
        environment = self.folder / ".venv"
        venv.create(environment, symlinks=True)
        ours = Path(sys.executable).parent
        libraries = next((environment / "lib").glob("python3*")) / "site-packages"
        theirs = next((ours.parent / "lib").glob("python3*")) / "site-packages"
        (libraries / "mutants.pth").write_text(f"{self.folder}\n{theirs}\n")
        self.python = environment / "bin" / "python"
        for script in ours.iterdir():
            target = environment / "bin" / script.name
            if script.name == "certjob":
                target.write_text(script.read_text().replace(str(ours), str(environment / "bin")))
                target.chmod(0o755)
            elif not target.exists():
                target.symlink_to(script)

    def test(self, mutant: Mutant, url: str) -> tuple[bool, str]:
        """Whether a test notices, and the first that does."""
        file = self.folder / mutant.path
        whole = file.read_text()
        file.write_text(mutant.apply(whole))
        command = [str(self.python), "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header"]
        command += ["-m", "not real_cron and not real_mail_server and not real_pgbouncer", "--tb=no"]
        command += [f"--deselect={left_out}" for left_out in _LEFT_OUT]
        tests = [tests for tests in _tests_of(mutant, near=self._near) if (self.folder / tests).is_dir()]
        environment = os.environ | {"CERTJOB_TEST_DATABASE_URL": url}
        try:
            ended = subprocess.run(
                [*command, *tests],
                cwd=self.folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LONGEST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return True, "it took too long"
        finally:
            file.write_text(whole)
        said = [line for line in ended.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return ended.returncode != 0, (said or [ended.stdout[-300:] + ended.stderr[-300:]])[0][:140]


def _draw(seed: int, number: int, rooms: Sequence[str]) -> list[Mutant]:
    """Draw as many from each room, or all where there are fewer."""
    chance = random.Random(seed)
    found = find(ROOT)
    drawn = []
    for room in rooms:
        drawn += chance.sample(found[room], min(len(found[room]), -(-number // len(rooms))))
    return drawn[:number]


class Measure:
    """Tests mutants side by side and keeps count."""

    def __init__(self, url: str, *, jobs: int, near: bool) -> None:
        self._url = url
        self._jobs = jobs
        self._copies: SimpleQueue[Copy] = SimpleQueue()
        for job in range(jobs):
            self._copies.put(Copy(FOLDER / f"copy-{os.getpid()}-{job}", near=near))
        self.drawn = Counter[str]()
        self.survivors: list[Mutant] = []

    def run(self, mutants: Sequence[Mutant]) -> None:
        try:
            with ThreadPoolExecutor(self._jobs) as pool:
                list(pool.map(self._test, mutants))
        finally:
            while not self._copies.empty():
                shutil.rmtree(self._copies.get().folder)

    def _test(self, mutant: Mutant) -> None:
        copy, began = self._copies.get(), time.monotonic()
        try:
            noticed, by = copy.test(mutant, self._url)
        finally:
            self._copies.put(copy)
        self.drawn[mutant.room] += 1
        if not noticed:
            self.survivors.append(mutant)
        word, seconds = "caught" if noticed else "SURVIVES", time.monotonic() - began
        what = mutant.describe((ROOT / mutant.path).read_text())
        print(f"{word} {seconds:4.0f} s {what}\n    {by}", flush=True)

    def print_table(self) -> None:
        survived = Counter(mutant.room for mutant in self.survivors)
        for room, number in self.drawn.items():
            print(f"{room:10} {number:4} drawn {number - survived[room]:4} caught")
        drawn = self.drawn.total()
        print(f"{'in all':10} {drawn:4} drawn {drawn - survived.total():4} caught")


def main() -> int:
    leave_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=ROOMS)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--near", action="store_true", help="Without the acceptance tests: four times as fast.")
    parser.add_argument("--again", type=Path, metavar="FILE", help="Only the survivors that are written there.")
    options = parser.parse_args()
    if options.again:
        mutants = [Mutant(**fields) for fields in json.loads(options.again.read_text())]
    else:
        mutants = _draw(options.seed, options.number, options.rooms)
    with data_folder("mutants") as folder, embedded.server(folder / "postgresql") as url:
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET fsync = off")
            admin.execute("SELECT pg_reload_conf()")
        measure = Measure(url, jobs=options.jobs, near=options.near)
        measure.run(mutants)
    kept = FOLDER / "survivors.json"
    kept.write_text(json.dumps([asdict(mutant) for mutant in measure.survivors], indent=1))
    measure.print_table()
    print(f"Survivors: {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
