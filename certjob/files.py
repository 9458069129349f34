"""The check that no one else could have written a file."""

import os
import stat
from collections.abc import Set
from pathlib import Path
from typing import Final

OTHERS: Final = stat.S_IWOTH
GROUP_AND_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def why_untrusted(path: Path, *, owners: Set[int] = frozenset(), writers: int = GROUP_AND_OTHERS) -> str | None:
    """Return why someone else could have written a file or folder, as a clause, or None. Raises OSError.

    It must belong to this user, to root or to one of ``owners`` (user ids), and may not have the permissions
    ``writers``. The folders above it are not checked.
    """
    status = path.stat()
    if status.st_uid not in {0, os.geteuid()} | owners:
        return f"{path} belongs to another user (id {status.st_uid})"
    if status.st_mode & writers:
        return f"{path} may be written by others than its owner (mode {stat.S_IMODE(status.st_mode):03o})"
    return None
