"""Pushes to the portal that are still open: those that are alerts, or one mentor's."""

import shlex
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.causes import PushState


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPush(PushState):
    """A push that waits, and all that a person has to know in order to act."""

    event_id: int
    mentor_id: UUID
    organisation_id: UUID
    organisation: str
    """The slug."""
    member_no: str
    full_name: str
    """The member number where there is no name."""
    visible: bool
    """What the portal should show."""
    sentence: str | None
    """The design's words for it; the dashboard shows the same. None: it is not an alert yet."""
    error: str | None
    """The technical reason."""
    calls: int
    """Calls made to the portal for it."""
    wanted_at: datetime
    failing_since: datetime | None
    last_failed_at: datetime | None
    next_attempt_at: datetime


def read_open_pushes(connection: Connection, *, mentor_id: UUID | None = None) -> list[OpenPush]:
    """Return those that are alerts, hides first, then oldest first; or the one of a mentor, alert or not."""
    return database.fetch(connection, "read_open_pushes", {"mentor_id": mentor_id}, into=OpenPush)


def resync_command(member_no: str, organisation: str) -> str:
    """Return the command that pushes one mentor now, in backquotes; two organisations may have the same number."""
    return f"`certjob resync {shlex.quote(member_no)} --organisation {organisation}`"
