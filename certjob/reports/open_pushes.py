"""One mentor's push to the portal that is still open."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from certjob import database
from certjob.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPush:
    """A push that waits, whether it is an alert yet or not."""

    event_id: int
    visible: bool
    """What the portal should show."""
    moves: bool
    """Only the last visible day moves: the portal shows the mentor until the day so far."""
    status: str
    """``pending`` or ``blocked``."""
    rounds: int
    """How often this value was tried; 0 after a newer value or a correction."""
    is_claimed: bool
    """A run is working on it."""
    cause: str
    """What the reader can do something about; see `certjob.domain.causes`."""
    error: str | None
    """The technical reason."""
    calls: int
    """Calls made to the portal for it."""
    wanted_at: datetime
    failing_since: datetime | None
    last_failed_at: datetime | None
    next_attempt_at: datetime


def read_open_push(connection: Connection, mentor_id: UUID) -> OpenPush | None:
    """Return a mentor's open push, or None."""
    found = database.fetch(connection, "read_open_push", {"mentor_id": mentor_id}, into=OpenPush)
    return found[0] if found else None
