"""The two locks: what runs in production, and what a contributor has beside it."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNNING = "requirements.lock"
EVERYTHING = "requirements-dev.lock"


def pins(lock: str) -> dict[str, str]:
    """Each locked package with its version, extras and hashes, as the lock has them."""
    text = (ROOT / lock).read_text().replace("\\\n", "")
    return {canonicalize_name(Requirement(line.split(" ")[0]).name): line for line in text.splitlines()}


def needed(requirements: Iterable[str], *, python: str) -> set[str]:
    """Every package that these requirements bring on this version of Python, themselves included."""
    found: set[tuple[str, str]] = set()
    open_ends = [Requirement(text) for text in requirements]
    while open_ends:
        requirement = open_ends.pop()
        for extra in {"", *requirement.extras}:
            name = canonicalize_name(requirement.name)
            if (name, extra) in found:
                continue
            found.add((name, extra))
            environment = {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
            open_ends += [
                asked
                for asked in map(Requirement, importlib.metadata.requires(name) or ())
                if asked.marker is None or asked.marker.evaluate(environment)
            ]
    return {name for name, _ in found}


def test_the_running_lock_holds_what_certjob_needs_and_nothing_else() -> None:
    """No test tool, no PostgreSQL and no compiler reach the machine on which certjob runs."""
    assert set(pins(RUNNING)) == needed(PROJECT["dependencies"], python="3.11")


def test_the_other_lock_holds_what_the_tests_and_the_demo_need_too() -> None:
    """With the same versions and hashes of what runs: what is tested is what is installed."""
    extras = PROJECT["optional-dependencies"]
    requirements = [*PROJECT["dependencies"], *extras["embedded"], *extras["dev"]]

    assert set(pins(EVERYTHING)) == needed(requirements, python="3.11")
    assert pins(RUNNING).items() <= pins(EVERYTHING).items()


@pytest.mark.parametrize("lock", [RUNNING, EVERYTHING])
def test_every_locked_package_has_a_version_and_hashes_and_no_lock_names_an_index(lock: str) -> None:
    """Whatever mirror serves a package, it is the one that was tried."""
    for name, line in pins(lock).items():
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z,]+\])?==[^ ]+( +--hash=sha256:[0-9a-f]{64})+", line), name


@pytest.mark.parametrize("lock", [RUNNING, EVERYTHING])
def test_each_lock_names_every_extra_that_a_locked_package_asks_for(lock: str) -> None:
    """Else the pip that Python 3.11 ships refuses the lock on the day the package's next release appears."""
    locked = {name: Requirement(line.split(" ")[0]) for name, line in pins(lock).items()}

    missing = {
        (name, asked.name, extra)
        for name in locked
        for asked in map(Requirement, importlib.metadata.requires(name) or ())
        if asked.marker is None or asked.marker.evaluate({"extra": ""})
        for extra in asked.extras - locked[canonicalize_name(asked.name)].extras
    }

    assert not missing


def test_certjob_imports_where_only_the_running_lock_is_installed() -> None:
    """Every module, in a process that finds no other package."""
    program = """
import importlib, importlib.metadata, pkgutil, re, sys
installed = set(sys.argv[1:])

class OnlyTheLock:
    of = importlib.metadata.packages_distributions()
    def find_spec(self, name, path=None, target=None):
        owners = {re.sub("[-_.]+", "-", owner).lower() for owner in self.of.get(name.partition(".")[0], ())}
        if owners and not owners & installed:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, OnlyTheLock())
import certjob
for module in pkgutil.walk_packages(certjob.__path__, "certjob."):
    if module.name != "certjob.__main__":
        importlib.import_module(module.name)
"""
    command = [sys.executable, "-I", "-c", program, "certjob", *pins(RUNNING)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
