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


def test_each_lock_holds_what_is_needed_and_nothing_else() -> None:
    """No test tool, no PostgreSQL and no compiler reach production; what is tested there is what is installed."""
    running, extras = PROJECT["dependencies"], PROJECT["optional-dependencies"]
    everything = [*running, *extras["embedded"], *extras["dev"]]

    assert set(pins(RUNNING)) == needed(running, python="3.11")
    assert set(pins(EVERYTHING)) == needed(everything, python="3.11")
    assert pins(RUNNING).items() <= pins(EVERYTHING).items()


@pytest.mark.parametrize("lock", [RUNNING, EVERYTHING])
def test_each_locked_package_has_a_version_hashes_and_the_extras_that_others_ask_for(lock: str) -> None:
    """Whatever mirror serves it; with an extra missing, Python 3.11's pip refuses the lock at the next release."""
    locked = {name: Requirement(line.split(" ")[0]) for name, line in pins(lock).items()}
    wanted = {
        (canonicalize_name(asked.name), extra)
        for name in locked
        for asked in map(Requirement, importlib.metadata.requires(name) or ())
        if asked.marker is None or asked.marker.evaluate({"extra": ""})
        for extra in asked.extras
    }

    for name, line in pins(lock).items():
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z,]+\])?==[^ ]+( +--hash=sha256:[0-9a-f]{64})+", line), name
    assert {(name, extra) for name, extra in wanted if extra not in locked[name].extras} == set()


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
