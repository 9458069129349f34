"""Where reports come from: a Maildir, an mbox, one message in a file or on standard input."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from certjob.errors import InputError

_CHUNK_OCTETS = 64 * 1024


def read_mails(path: Path, *, limit: int) -> Iterator[bytes]:
    """Yield the messages of a Maildir that are new, or those of a file; of one too large an octet more than ``limit``.

    A Maildir's message moves to ``cur`` when the next one is asked for. Raises InputError for what cannot be read.
    """
    try:
        if path.is_dir():
            yield from _read_maildir(path, limit=limit)
            return
        with path.open("rb") as file:
            yield from read_file(file, limit=limit)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise InputError(message, next_step="name a Maildir, an mbox, or the file of one report") from error


def read_file(file: BinaryIO, *, limit: int) -> Iterator[bytes]:
    """Yield the messages of an mbox, or the one message that a file holds; nothing of an empty one."""
    data = bytearray()
    is_line_begun = False
    while line := file.readline(_CHUNK_OCTETS):
        if line.startswith(b"From ") and not is_line_begun and data:
            yield bytes(data)
            data.clear()
        data += line[: limit + 1 - len(data)]
        is_line_begun = not line.endswith(b"\n")
    if data:
        yield bytes(data)


def _read_maildir(folder: Path, *, limit: int) -> Iterator[bytes]:
    new, cur = folder / "new", folder / "cur"
    if not (new.is_dir() and cur.is_dir()):
        message = f"{folder} is not a Maildir: it has no new and cur in it"
        raise InputError(message, next_step="name the folder that has")
    failed: OSError | None = None
    for name in sorted(entry.name for entry in new.iterdir() if entry.is_file() and not entry.is_symlink()):
        try:
            with (new / name).open("rb") as file:
                data = file.read(limit + 1)
            yield data
            (new / name).rename(cur / f"{name.partition(':')[0]}:2,S")
        except FileNotFoundError:
            continue  # another process reads the folder, too
        except OSError as error:
            failed = failed or error
    if failed is not None:  # the others were read
        message = f"{failed.filename} cannot be read and moved to cur: {failed.strerror}"
        raise InputError(
            message, next_step=f"let the user that runs this command read and write in {folder}"
        ) from failed
