"""Where reports come from: a Maildir, an mbox, one message in a file or on standard input."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from certjob.errors import InputError

_CHUNK_OCTETS = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One message as it was found."""

    data: bytes
    """Of a message that is too large, one octet more than the limit."""
    done: Callable[[], object] = lambda: None
    """Tells its place that it was read, so that nobody reads it again."""


def read_mails(path: Path, *, limit: int) -> Iterator[Mail]:
    """Yield the messages of a Maildir that are new, or those of a file. Raises InputError where there is none."""
    try:
        if path.is_dir():
            yield from _read_maildir(path, limit=limit)
            return
        with path.open("rb") as file:
            yield from read_file(file, limit=limit)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise InputError(message, next_step="name a Maildir, an mbox, or the file of one report") from error


def read_file(file: BinaryIO, *, limit: int) -> Iterator[Mail]:
    """Yield the messages of an mbox, or the one message that a file holds; nothing of an empty one."""
    data = bytearray()
    is_line_begun = False
    while line := file.readline(_CHUNK_OCTETS):
        if line.startswith(b"From ") and not is_line_begun and data:
            yield Mail(data=bytes(data))
            data.clear()
        data += line[: limit + 1 - len(data)]
        is_line_begun = not line.endswith(b"\n")
    if data:
        yield Mail(data=bytes(data))


def _read_maildir(folder: Path, *, limit: int) -> Iterator[Mail]:
    new, cur = folder / "new", folder / "cur"
    if not (new.is_dir() and cur.is_dir()):
        message = f"{folder} is not a Maildir: it has no new and cur in it"
        raise InputError(message, next_step="name the folder that has")
    failed: list[OSError] = []
    for name in sorted(entry.name for entry in new.iterdir() if entry.is_file() and not entry.is_symlink()):
        try:
            with (new / name).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError:  # another process reads the folder, too
            continue
        except OSError as error:
            failed.append(error)
            continue
        yield Mail(data=data, done=partial(_move, new / name, cur / f"{name.partition(':')[0]}:2,S", failed))
    if failed:  # the others were read
        message = f"{failed[0].filename} cannot be read and moved to cur: {failed[0].strerror}"
        raise InputError(
            message, next_step=f"let the user that runs this command read and write in {folder}"
        ) from failed[0]


def _move(source: Path, target: Path, failed: list[OSError]) -> None:
    try:
        source.rename(target)
    except FileNotFoundError:
        return  # another reader of the mailbox has moved it
    except OSError as error:
        failed.append(error)
