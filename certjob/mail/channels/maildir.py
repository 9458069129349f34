"""A channel that writes messages into a local Maildir folder, for the demo and for rehearsals."""

import mailbox
import os
from dataclasses import dataclass
from pathlib import Path

from certjob import files
from certjob.domain.addresses import MailAddress
from certjob.errors import ChannelDownError
from certjob.mail.message import OutgoingMessage, compose

FOLDERS = ("cur", "new", "tmp")


@dataclass
class MaildirChannel:
    """Writes each message as one file under ``new``, which mail programs can read."""

    worst_case_seconds = 30.0
    """For a slow network disk; a local disk takes milliseconds."""

    folder: Path
    sender: MailAddress

    async def send(self, message: OutgoingMessage) -> None:
        """Write the message completely or not at all; see ``Channel.send``. Creates missing folders."""
        _, data = compose(message, sender=self.sender)
        try:
            for part in FOLDERS:  # mailbox creates no folders above the Maildir
                (self.folder / part).mkdir(mode=0o700, parents=True, exist_ok=True)
            self._require_ours()
            mailbox.Maildir(self.folder, create=False).add(data)
        except (OSError, mailbox.Error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            text = f"the Maildir folder cannot be written: {reason}"
            raise ChannelDownError(text, next_step="correct CERTJOB_NOTIFY_URL") from error

    async def probe(self) -> str:
        """Check whether a message could be written; create no folder. Raises ChannelDownError."""
        there = self.folder
        while not there.exists() and there != there.parent:
            there = there.parent
        for folder in (there, *(there / part for part in FOLDERS if there == self.folder)):
            if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
                message = "the Maildir folder cannot be written by this user"
                raise ChannelDownError(message, next_step="correct CERTJOB_NOTIFY_URL or its rights")
        self._require_ours()
        return "the Maildir folder can be written"

    def _require_ours(self) -> None:
        """Reject a folder in which another user could read or replace messages."""
        for folder in (self.folder / part for part in FOLDERS):
            if folder.exists() and (why := files.why_untrusted(folder, writers=files.OTHERS)):
                message = f"the Maildir folder is not used, because {why}"
                raise ChannelDownError(message, next_step="correct CERTJOB_NOTIFY_URL or its owner and rights")

    async def close(self) -> None:
        """Return at once; see ``Channel.close``."""
