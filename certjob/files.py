"""Files in folders where others may write: replaced instead of overwritten, and trusted only if nobody else could
have written them."""

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Final


def replace(path: Path, contents: bytes, *, mode: int) -> None:
    """Put a file there in one step: whoever reads it gets the old one or the new one. Raises OSError.

    Its temporary file lies beside it under a name that nobody can foresee, so that no link can wait there.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # O_EXCL and O_NOFOLLOW, mode 0600
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(contents)
            file.flush()
            os.fsync(descriptor)
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def try_replacing(path: Path, *, size: int) -> None:
    """Write a file of ``size`` bytes beside it, and delete it. Raises OSError where ``replace`` would."""
    with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as file:
        file.write(bytes(size))
        file.flush()


OTHERS: Final = stat.S_IWOTH
GROUP_AND_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def why_untrusted(path: Path, *, owners: Set[int] = frozenset(), writers: int = GROUP_AND_OTHERS) -> str | None:
    """Return who else could have written what lies there, in a clause; None: only this user and root. Raises OSError.

    ``owners`` are ids of more users who may own it; ``writers`` are the rights that make it untrusted.

    Whoever may write into a folder can put another file in its place, and whoever owns a link can let it lead
    elsewhere: all that leads to the file is looked at. In a folder with the sticky bit (``/tmp``) each can only
    replace what is their own.
    """
    path.stat()  # links that lead round in a ring are an error here
    trusted = {0, os.geteuid()} | owners
    for place in _steps(path.absolute(), seen=set()):
        status = place.lstat()
        if status.st_uid not in trusted:
            return f"{place} belongs to another user (id {status.st_uid})"
        if stat.S_ISLNK(status.st_mode) or (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX):
            continue
        if status.st_mode & writers:
            return f"{place} may be written by others than its owner (mode {stat.S_IMODE(status.st_mode):03o})"
    return None


def _steps(path: Path, *, seen: set[Path]) -> Iterator[Path]:
    """Yield every folder and link that leads to a file, and the file."""
    for place in (*reversed(path.parents), path):
        if place not in seen:
            seen.add(place)
            yield place
            if place.is_symlink():
                yield from _steps(place.parent / place.readlink(), seen=seen)
