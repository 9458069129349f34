"""PauseManagementService opens and lifts certjob's own pauses. It changes no other pause."""

from collections.abc import Sequence
from uuid import UUID

from certjob import database
from certjob.domain.models import Decision, PauseChange


class PauseManagementService:
    """Writes the pauses of decisions in the caller's transaction."""

    def __init__(self, connection: database.Connection) -> None:
        self._connection = connection

    def apply(self, decisions: Sequence[Decision]) -> None:
        """Open and lift certjob's pauses of these mentors. The caller has locked the mentors."""
        opened: list[UUID] = [d.mentor_id for d in decisions if d.pause is PauseChange.OPEN]
        lifted = [d.own_pause_id for d in decisions if d.pause is PauseChange.LIFT]
        if opened:
            database.execute(self._connection, "open_pauses", {"mentor_ids": opened})
        if lifted:
            database.execute(self._connection, "lift_pauses", {"ids": lifted})
