"""Messages into a Maildir folder on this machine, for the demo and for rehearsals."""

import mailbox
import os
from pathlib import Path

from certjob import files
from certjob.domain.addresses import MailAddress
from certjob.errors import ChannelDownError
from certjob.mail.message import OutgoingMessage, compose

FOLDERS = ("cur", "new", "tmp")


class MaildirChannel:
    """A folder in which each message becomes one file under ``new``; mail programs can read it."""

    worst_case_seconds = 30.0
    """A file is written in milliseconds; this is for a disk far away."""

    def __init__(self, folder: Path, *, sender: MailAddress) -> None:
        """Prepare; the folder is made by the first ``send``."""
        self._folder = folder
        self._sender = sender

    async def send(self, message: OutgoingMessage) -> None:
        """Put one message into the folder, whole or not at all; see ``Channel.send``."""
        _, data = compose(message, sender=self._sender)
        try:
            for part in FOLDERS:  # mailbox makes a whole Maildir or nothing, and no folder above it
                (self._folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
                self._require_ours(self._folder / part)
            mailbox.Maildir(self._folder, create=False).add(data)
        except (OSError, mailbox.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            text = f"the Maildir folder cannot be written: {reason}"
            raise ChannelDownError(text, next_step="correct CERTJOB_NOTIFY_URL") from error

    async def probe(self) -> str:
        """Look whether a message could be written, without making the folder. Raises ChannelDownError."""
        there = self._folder
        while not there.exists() and there != there.parent:  # the first message makes what is missing
            there = there.parent
        for folder in (there, *(there / part for part in FOLDERS if there == self._folder)):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                message = "the Maildir folder cannot be written by this user"
                raise ChannelDownError(message, next_step="correct CERTJOB_NOTIFY_URL or its rights")
        for part in FOLDERS:
            self._require_ours(self._folder / part)
        return "the Maildir folder can be written"

    def _require_ours(self, folder: Path) -> None:
        """Reject a folder of another user, who could read the messages."""
        if folder.exists() and (why := files.why_untrusted(folder, writers=files.OTHERS)):
            message = f"the Maildir folder is not used, because {why}"
            raise ChannelDownError(message, next_step="correct CERTJOB_NOTIFY_URL or its owner and rights")

    async def close(self) -> None:
        """Nothing is held open; see ``Channel.close``."""
