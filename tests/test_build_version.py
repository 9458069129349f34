"""The version of a build: pip skips a wheel if its version is already installed, so each commit has another."""

import runpy
import shutil
import subprocess
from pathlib import Path

from tests.support.docs import ROOT


def test_build_version_names_the_commit_of_the_checkout(tmp_path: Path) -> None:
    """Changes that are not committed are marked. The commit of the release, and an archive, have none."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=Test", "-c", "user.email=test@example.org", *words]
        return subprocess.check_output(command, text=True).strip()

    def build_version() -> str:
        """Return the version of a build from these sources, as hatchling asks for it."""
        return str(runpy.run_path(str(tmp_path / "build_version.py"))["build_version"]())

    shutil.copy(ROOT / "build_version.py", tmp_path)
    assert build_version() == "1.0.0"

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "--short=12", "HEAD")
    assert build_version() == f"1.0.0+{head}"
    git("tag", "v0.9.0")
    assert build_version() == f"1.0.0+{head}"
    git("tag", "v1.0.0")
    assert build_version() == "1.0.0"

    with (tmp_path / "build_version.py").open("a") as source:
        source.write("\n")
    assert build_version() == f"1.0.0+{head}.dirty"
