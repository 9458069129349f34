"""The two lock files: for production, and for contributors."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.docs import ROOT

RUNNING, EVERYTHING = "requirements.lock", "requirements-dev.lock"


def pins(lock: str) -> dict[str, str]:
    """Return each line of a lock file by its package."""
    text = (ROOT / lock).read_text().replace("\\\n", "")
    return {canonicalize_name(Requirement(line.split(" ")[0]).name): line for line in text.splitlines()}


def needed(requirements: Iterable[str], *, python: str = "3.11") -> dict[str, set[str]]:
    """Return every package that these requirements install on this version of Python, with its extras."""
    found: dict[str, set[str]] = {}
    open_ends = [Requirement(text) for text in requirements]
    while open_ends:
        requirement = open_ends.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - found.setdefault(name, set()):
            found[name].add(extra)
            environment = {"extra": extra, "python_version": python, "python_full_version": f"{python}.0"}
            asked = map(Requirement, metadata.requires(name) or ())
            open_ends += [each for each in asked if each.marker is None or each.marker.evaluate(environment)]
    return found


def test_each_lock_has_the_needed_packages_and_no_other() -> None:
    """Each line has hashes and no index, so that any mirror serves it, and the extras that Python 3.11's pip needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    running, extras = project["dependencies"], project["optional-dependencies"]
    everything = [*running, *extras["embedded"], *extras["dev"]]

    for lock, requirements in ((RUNNING, running), (EVERYTHING, everything)):
        locked, wanted = pins(lock), needed(requirements)
        assert locked.keys() == wanted.keys()
        for name, line in locked.items():
            assert re.fullmatch(r"[a-z0-9-]+(\[[a-z,]+\])?==[^ ]+( +--hash=sha256:[0-9a-f]{64})+", line), name
            assert wanted[name] - {""} <= Requirement(line.split(" ")[0]).extras, name
    assert pins(RUNNING).items() <= pins(EVERYTHING).items()


def test_certjob_imports_only_packages_of_the_production_lock() -> None:
    """A process imports every module and finds no other package."""
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
