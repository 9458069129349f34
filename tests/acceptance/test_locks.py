"""The lock file for production."""

import subprocess
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.docs import read


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
    lines = read("requirements.lock").replace("\\\n", "").splitlines()
    locked = [canonicalize_name(Requirement(line.split(" ")[0]).name) for line in lines]

    command = [sys.executable, "-I", "-c", program, "certjob", *locked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
