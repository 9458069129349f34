"""Count the open rows of the three outboxes, for reports and status."""

from dataclasses import dataclass
from datetime import datetime

from certjob import database
from certjob.database import Connection

PORTAL_KINDS = ("portal_hides", "portal_shows")
MAIL_KINDS = ("reminders", "digests")
KINDS = (*PORTAL_KINDS, *MAIL_KINDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWork:
    """The open rows of one kind. ``open`` is the sum of the next four numbers."""

    open: int = 0
    due: int = 0
    """Rows that the next run delivers."""
    waiting: int = 0
    """Failed rows that are retried later."""
    in_flight: int = 0
    """Rows that a run is delivering."""
    blocked: int = 0
    """Rows that wait for a correction by someone."""
    older_than_hour: int = 0
    older_than_day: int = 0
    oldest_at: datetime | None = None

    @property
    def pending(self) -> int:
        """Return the number of rows that certjob delivers without help."""
        return self.open - self.blocked


NO_WORK = dict.fromkeys(KINDS, OpenWork())


def read_open_work(connection: Connection) -> dict[str, OpenWork]:
    """Return the open work by kind, with an entry for each of ``KINDS``."""
    rows = {row.pop("what"): row for row in database.fetch(connection, "read_open_work", into=dict)}
    return {kind: OpenWork(**rows.get(kind, {})) for kind in KINDS}
