"""PauseManagementService opens and lifts certjob's own pauses. It changes no other pause."""

from collections.abc import Sequence

from certjob import database
from certjob.domain.models import Decision, PauseChange


class PauseManagementService:
    """Writes the pauses of decisions in the caller's transaction."""

    def __init__(self, connection: database.Connection) -> None:
        self._connection = connection

    def apply(self, decisions: Sequence[Decision]) -> None:
        """Open and lift certjob's pauses of these mentors. The caller has locked the mentors."""
        opened = {d.mentor_id: _kinds(d) for d in decisions if d.pause is PauseChange.OPEN}
        lapsed = {d.own_pause_id: _kinds(d) for d in decisions if d.lapsed_kinds is not None and d.own_pause_id}
        lifted = [d.own_pause_id for d in decisions if d.pause is PauseChange.LIFT]
        if opened:
            columns = {"mentor_ids": list(opened), "lapsed_kinds": list(opened.values())}
            database.execute(self._connection, "open_pauses", columns)
        if lapsed:
            columns = {"ids": list(lapsed), "lapsed_kinds": list(lapsed.values())}
            database.execute(self._connection, "update_lapsed_kinds", columns)
        if lifted:
            database.execute(self._connection, "lift_pauses", {"ids": lifted})


def _kinds(decision: Decision) -> str:
    """Return the lapsed kinds as the text of an array, because an array of arrays must be rectangular."""
    quoted = (each.replace("\\", r"\\").replace('"', r"\"") for each in sorted(decision.lapsed_kinds or ()))
    return "{" + ",".join(f'"{each}"' for each in quoted) + "}"
