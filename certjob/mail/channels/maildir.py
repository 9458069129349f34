"""Messages into a Maildir folder on this machine, for the demo and for rehearsals."""

import contextlib
import os
import time
from pathlib import Path
from uuid import uuid4

from certjob.errors import ChannelDownError
from certjob.mail.message import MailAddress, OutgoingMessage, compose


class MaildirChannel:
    """A folder in which each message becomes one file under ``new``; mail programs can read it."""

    worst_case_seconds = 30.0
    """A file is written in milliseconds; this is for a disk far away."""

    def __init__(self, folder: Path, *, sender: MailAddress) -> None:
        """Prepare; the folder is made by the first ``send``."""
        self._folder = folder
        self._sender = sender

    def send(self, message: OutgoingMessage) -> None:
        """Put one message into the folder, whole or not at all; see ``Channel.send``."""
        encoded = compose(message, sender=self._sender, line_end="\n")
        name = f"{time.time_ns()}.{uuid4().hex}.certjob"
        try:
            for part in ("cur", "new", "tmp"):
                (self._folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(self._folder / "tmp" / name, data=encoded.data)
            (self._folder / "tmp" / name).rename(self._folder / "new" / name)
        except OSError as error:
            message_text = f"the Maildir folder cannot be written: {error.strerror}; correct CERTJOB_NOTIFY_URL"
            raise ChannelDownError(message_text) from error
        with contextlib.suppress(OSError):  # some file systems cannot; the message is there all the same
            _flush_folder(self._folder / "new")

    def probe(self) -> None:
        """Look whether a message could be written, without making the folder. Raises ChannelDownError."""
        there = self._folder
        while not there.exists() and there != there.parent:  # the first message makes what is missing
            there = there.parent
        for folder in (there, *(there / part for part in ("new", "tmp") if there == self._folder)):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                message = "the Maildir folder cannot be written by this user; correct CERTJOB_NOTIFY_URL or its rights"
                raise ChannelDownError(message)

    def close(self) -> None:
        """Nothing is held open; see ``Channel.close``."""


def _write(path: Path, *, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
