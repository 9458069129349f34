"""CertificationReminderService: each mentor is reminded once per threshold, and only while it is still true.

A reminder is queued by an upsert in the transaction of the state it follows from. Before it is sent, under the claim,
the rules are asked again on the facts of that moment (``reminder_mail``).
"""

from collections.abc import Iterable
from uuid import UUID

from certjob import database
from certjob.domain.models import Decision, Reminder


class CertificationReminderService:
    """Queues reminders; the mail stage sends them."""

    def __init__(self, connection: database.Connection, *, run_id: UUID) -> None:
        self._connection = connection
        self._run_id = run_id

    def queue(self, decisions: Iterable[Decision]) -> list[UUID]:
        """Queue the due reminders that are new, inside the caller's transaction; return the mentor of each.

        A more urgent one makes older unsent ones about the same certificate superseded; what was mailed about a
        certificate that was entered anew counts for the new one.
        """
        arrays = _arrays(decisions)
        if not arrays["mentor_ids"]:
            return []
        database.execute(self._connection, "adopt_reminders", arrays)
        queued = database.fetch(self._connection, "queue_reminders", arrays | {"run_id": self._run_id})
        if queued:
            database.execute(
                self._connection,
                "supersede_reminders",
                {
                    "mentor_ids": [row[0] for row in queued],
                    "thresholds": [row[1] for row in queued],
                    "cert_ids": [row[2] for row in queued],
                },
            )
        return [row[0] for row in queued]


def find_new_reminders(connection: database.Connection, decisions: Iterable[Decision]) -> list[tuple[UUID, Reminder]]:
    """Return (mentor, reminder) of those that would be queued; writes nothing."""
    decided = list(decisions)
    arrays = _arrays(decided)
    if not arrays["mentor_ids"]:
        return []
    new = set(database.fetch(connection, "find_new_reminders", arrays))
    return [
        (decision.mentor_id, reminder)
        for decision in decided
        for reminder in decision.reminders
        if (decision.mentor_id, reminder.threshold_days, reminder.cert_id) in new
    ]


def find_without_address(connection: database.Connection, mentor_ids: Iterable[UUID]) -> set[UUID]:
    """Return those of these mentors whom no reminder can reach."""
    return {row[0] for row in database.fetch(connection, "find_without_address", {"ids": list(mentor_ids)})}


def _arrays(decisions: Iterable[Decision]) -> dict[str, object]:
    due = [(decision.mentor_id, reminder) for decision in decisions for reminder in decision.reminders]
    return {
        "mentor_ids": [mentor_id for mentor_id, _ in due],
        "thresholds": [reminder.threshold_days for _, reminder in due],
        "cert_ids": [reminder.cert_id for _, reminder in due],
        "expiries": [reminder.expires_on for _, reminder in due],
    }
