"""The version of a build: pip skips a wheel if its version is already installed, so each commit has another."""

import runpy
import shutil
import subprocess
from pathlib import Path

from tests.support.docs import ROOT


def git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=Test", "-c", "user.email=test@example.org", *words]
    return subprocess.check_output(command, text=True).strip()


def commit(folder: Path) -> None:
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "-m", "first")


def build_version(folder: Path) -> str:
    """Return the version of a build from these sources, as hatchling asks for it."""
    return str(runpy.run_path(str(folder / "build_version.py"))["build_version"]())


def test_build_version_names_the_commit_of_the_checkout(tmp_path: Path) -> None:
    """Changes that are not committed are marked."""
    shutil.copy(ROOT / "build_version.py", tmp_path)
    commit(tmp_path)
    head = git(tmp_path, "rev-parse", "--short=12", "HEAD")

    assert build_version(tmp_path) == f"1.0.0+{head}"

    with (tmp_path / "build_version.py").open("a") as source:
        source.write("\n")
    assert build_version(tmp_path) == f"1.0.0+{head}.dirty"


def test_build_version_is_the_release_without_a_checkout(tmp_path: Path) -> None:
    """An unpacked archive has no commit, even inside another project's checkout."""
    archive = tmp_path / "archive"
    archive.mkdir()
    shutil.copy(ROOT / "build_version.py", archive)
    commit(tmp_path)

    assert build_version(archive) == "1.0.0"
