"""Open work: what waits in the three outboxes, read in one way for reports and status."""

from dataclasses import dataclass
from datetime import datetime

from certjob import database
from certjob.database import Connection

MAIL_KINDS = ("reminders", "digests")
KINDS = ("portal_hides", "portal_shows", *MAIL_KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWork:
    """What waits of one kind. ``open`` is the sum of the next four."""

    open: int = 0
    due: int = 0
    """The next run takes it."""
    waiting: int = 0
    """It failed, and is tried again at a later time."""
    in_flight: int = 0
    """A run is working on it."""
    blocked: int = 0
    """Somebody has to correct something."""
    older_than_hour: int = 0
    older_than_day: int = 0
    oldest_at: datetime | None = None

    @property
    def pending(self) -> int:
        """What certjob does without anybody's help."""
        return self.open - self.blocked


NO_WORK = dict.fromkeys(KINDS, OpenWork())


def read_open_work(connection: Connection) -> dict[str, OpenWork]:
    """Return what waits, by kind; each of ``KINDS`` has its entry."""
    rows = {row.pop("what"): row for row in database.fetch(connection, "read_open_work", into=dict)}
    return {kind: OpenWork(**rows.get(kind, {})) for kind in KINDS}
