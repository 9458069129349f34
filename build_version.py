"""The version of a build; hatchling calls ``build_version`` (see pyproject.toml)."""

import subprocess
from pathlib import Path

RELEASE = "1.0.0"


def build_version() -> str:
    """Return the release, and the commit if this is a checkout: pip skips a wheel whose version is installed."""
    checkout = Path(__file__).parent
    command = ["git", "-c", f"safe.directory={checkout}", "describe", "--always", "--exclude=*", "--abbrev=12"]
    try:
        if not (checkout / ".git").exists():
            return RELEASE
        commit = subprocess.check_output([*command, "--dirty=.dirty"], cwd=checkout, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError):  # no git, or no commit
        return RELEASE
    return f"{RELEASE}+{commit.strip()}"
