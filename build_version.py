"""The version of a build; hatchling calls ``build_version`` (see pyproject.toml)."""

import subprocess
from pathlib import Path

RELEASE = "1.0.0"


def build_version() -> str:
    """Return the release, and the commit unless it has the tag of the release or this is no checkout.

    Without the commit, pip would skip a wheel whose version is installed.
    """
    checkout = Path(__file__).parent
    command = ["git", "-c", f"safe.directory={checkout}", "describe", "--always", "--abbrev=12", "--dirty=.dirty"]
    try:
        if not (checkout / ".git").exists():
            return RELEASE
        tag = ["--exact-match", "--tags", f"--match=v{RELEASE}"]
        tagged = subprocess.run([*command, *tag], cwd=checkout, text=True, capture_output=True, check=False)  # noqa: S603
        if tagged.stdout.strip() == f"v{RELEASE}":
            return RELEASE
        commit = subprocess.check_output([*command, "--exclude=*"], cwd=checkout, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit
        return RELEASE
    return f"{RELEASE}+{commit.strip()}"
