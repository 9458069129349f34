"""Releases: the version of a build, and the shell steps of the workflow, with a stand-in for GitHub's command."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.docs import ROOT

JOBS: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"))["jobs"]
GH = """#!/bin/sh -e
state=$GITHUB_STATE
case "$*" in
*--notes-from-tag*) git rev-parse ;;
esac
case "$2" in
view) test -e $state/release ;;
create) test ! -e $state/release; case "$*" in *--draft*) echo draft ;; *) echo public ;; esac > $state/release
    while [ "$1" != --notes-file ]; do shift; done; cp "$2" $state/notes ;;
upload) test -e $state/release; shift 4; mkdir -p $state/files; cp "$@" $state/files/ ;;
edit) test -e $state/files/sbom.cdx.json; echo public > $state/release ;;
esac
"""
"""Keeps one release in a folder. Like GitHub's, it needs a checkout for the notes of a tag, and creates one release."""


@pytest.fixture
def github(tmp_path: Path) -> Path:
    """The folder with the stand-in's release, the package index, and the command."""
    command = tmp_path / "bin/gh"
    command.parent.mkdir()
    command.write_text(GH)
    command.chmod(0o755)
    return tmp_path


def run(step: dict[str, Any], github: Path, folder: Path, **more: str) -> int:
    """Run a step as GitHub does, and return its exit code. The action that publishes writes to the index once."""
    environment = {"PATH": f"{github}/bin:{os.environ['PATH']}", "GITHUB_STATE": str(github), **more}
    script = step.get("run", "true")
    if "pypi-publish" in step.get("uses", ""):
        again = step["with"].get("skip-existing", False)
        script = (
            f"ls {step['with']['packages-dir']}; test ! -e {github}/index || {str(again).lower()}; touch {github}/index"
        )
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, check=False
    ).returncode


def publish(github: Path, attempt: int, *, steps: int) -> None:
    """Run the job's first steps in a new folder with the files of the build, without a checkout."""
    folder = github / f"attempt-{attempt}"
    (folder / "dist").mkdir(parents=True)
    for name in ("certjob-1.0.0-py3-none-any.whl", "requirements.lock", "sbom.cdx.json"):
        (folder / "dist" / name).touch()
    (folder / "notes.md").write_text("The first release.")
    for step in JOBS["publish"]["steps"][:steps]:
        assert run(step, github, folder, GITHUB_REF_NAME="v1.0.0") == 0, step


def test_release_can_be_published_again_after_each_step(github: Path) -> None:
    """The release becomes public after the package, with its files and notes."""
    count = len(JOBS["publish"]["steps"])

    for attempt, steps in enumerate((*range(1, count + 1), count)):
        publish(github, attempt, steps=steps)
        if (github / "release").exists():
            assert (github / "release").read_text() == "draft\n" or (github / "index").exists()

    assert (github / "release").read_text() == "public\n"
    assert (github / "index").exists()
    assert (github / "notes").read_text() == "The first release."
    assert len([*(github / "files").iterdir()]) == 3


@pytest.mark.parametrize(
    ("title", "notes"), [("1.0.0 (2027-03-01)", "\nSeveral\nlines\n\n"), ("1.0.0 (unreleased)", None), ("1.1.0", None)]
)
def test_notes_are_the_versions_part_of_the_changelog(github: Path, title: str, notes: str | None) -> None:
    """Without a date or without the version, the build fails before anything is published."""
    (github / "CHANGELOG.md").write_text(
        f"# Changelog\n\n## {title}\n\nSeveral\nlines\n\n## 0.9.0 (2026-03-01)\n\nOld\n"
    )
    (step,) = (each for each in JOBS["build"]["steps"] if "CHANGELOG.md" in each.get("run", ""))

    code = run(step, github, github, GITHUB_REF_NAME="v1.0.0")

    assert (code == 0) == (notes is not None)
    if notes:
        assert (github / "notes.md").read_text() == notes


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
