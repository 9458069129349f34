"""The version of a build: pip skips a wheel if its version is already installed, so each commit has another."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
NEEDED = (
    "pyproject.toml",
    "build_readme.py",
    "build_version.py",
    "README.md",
    "LICENSE",
    "crontab.example",
    "certjob",
    "docs",
    "sql",
    "supabase",
)
GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Return a copy of the sources of a wheel, without the folder of git."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in NEEDED:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        copy(CHECKOUT / name, folder / name)
    return folder


def commit(folder: Path, message: str) -> str:
    """Commit everything and return the commit's abbreviated id."""
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--allow-empty", "-m", message]):
        subprocess.run([*GIT, *command], cwd=folder, check=True)
    return subprocess.check_output([*GIT, "rev-parse", "--short=12", "HEAD"], cwd=folder, text=True).strip()


def build(folder: Path) -> str:
    """Build a wheel and return its file name."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "dist"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    wheel.unlink()
    return wheel.name


def test_build_version_names_the_commit_of_the_checkout(sources: Path) -> None:
    """Two commits give two versions, and changes that are not committed are marked."""
    (sources / ".gitignore").write_text("dist/\n__pycache__/\n")
    for message in ("first", "second"):
        name = f"certjob-1.0.0+{commit(sources, message)}-py3-none-any.whl"
        assert build(sources) == name

    (sources / "README.md").write_text("changed")

    assert build(sources).endswith(".dirty-py3-none-any.whl")


def test_build_version_is_the_release_without_a_checkout(sources: Path) -> None:
    """An unpacked archive has no commit, even inside another project's checkout."""
    commit(sources.parent, "another project")

    assert build(sources) == "certjob-1.0.0-py3-none-any.whl"
