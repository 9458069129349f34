"""CertificationReminderService: queues one reminder per mentor and threshold, and only while it is due.

Reminders are queued in the transaction of the review that finds them due. Before one is sent, ``reminder_mail`` applies
the rules again to the current facts.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import persist
from certjob.domain import rules
from certjob.domain.models import Decision, Reminder
from certjob.facts import reading


class CertificationReminderService:
    """Queues reminders; the mail stage sends them."""

    def __init__(self, connection: database.Connection, *, run_id: UUID) -> None:
        self._connection = connection
        self._run_id = run_id

    def queue(self, decisions: Iterable[Decision], *, held: Collection[tuple[UUID, Reminder]] = ()) -> tuple[int, int]:
        """Queue new due reminders in the caller's transaction; return the numbers of pending and held ones.

        ``held`` has the (mentor, reminder) that wait for a permission. A more urgent reminder supersedes older unsent
        ones about the same certificate. If a certificate is deleted and entered again, earlier mails about it count for
        the new one.
        """
        due = _due(decisions)
        if not due:
            return 0, 0
        adopt_reminders(self._connection, due)
        about = _arrays(due) | {"run_id": self._run_id, "held": [each in held for each in due]}
        ((pending, held_back),) = database.fetch(self._connection, "queue_reminders", about)
        return pending, held_back


def cancel_outdated_reminders(connection: database.Connection, mentor_ids: Sequence[UUID], *, today: date) -> None:
    """Cancel failed and held reminders that no longer apply, in the caller's transaction, because no one has to act."""
    stopped = database.fetch(connection, "read_stopped_reminders", {"mentor_ids": list(mentor_ids)})
    if not stopped:
        return
    mentors = reading.read(connection, list({row[1] for row in stopped}), lock=False).mentors
    reasons: dict[int, str] = {}
    for mentor in mentors:
        for row_id, mentor_id, cert_id, threshold_days, expires_on in stopped:
            reminder = Reminder(cert_id=cert_id, threshold_days=threshold_days, expires_on=expires_on)
            reason = rules.cancel_reason(reminder, mentor, today) if mentor_id == mentor.id else None
            if reason is not None:
                reasons[row_id] = reason
    columns = {"ids": list(reasons), "reasons": list(reasons.values())}
    database.execute(connection, "cancel_stopped_reminders", columns)


def find_held_reminders(connection: database.Connection, organisation_id: UUID) -> list[UUID]:
    """Return the mentors of an organisation with held reminders."""
    return [row[0] for row in database.fetch(connection, "find_held_reminders", {"organisation_id": organisation_id})]


def release_reminders(connection: database.Connection, organisation: str, *, allow: int) -> None:
    """Make the held reminders of an organisation pending in the caller's transaction, of at most ``allow`` mentors."""
    database.execute(connection, "release_reminders", {"slug": organisation, "allow": allow})


def reopen_reminders(connection: database.Connection, mentor_id: UUID | None = None) -> int:
    """Make undelivered reminders of all due, or those of one mentor and the held ones, as a person asked; commit.

    Returns their number.
    """
    row = {"mentor_id": mentor_id}
    return persist(connection, lambda: database.execute(connection, "reopen_reminders", row))


def adopt_reminders(connection: database.Connection, due: Sequence[tuple[UUID, Reminder]]) -> None:
    """Move rows of certificates that were deleted to those that were entered again, for (mentor, reminder)."""
    database.execute(connection, "adopt_reminders", _arrays(due))


def find_new_reminders(connection: database.Connection, decisions: Iterable[Decision]) -> list[tuple[UUID, Reminder]]:
    """Return (mentor, reminder) of the reminders that ``queue`` would queue, without queueing them."""
    due = _due(decisions)
    new = set(database.fetch(connection, "find_new_reminders", _arrays(due))) if due else set()
    return [each for each in due if (each[0], each[1].threshold_days, each[1].cert_id) in new]


def find_without_address(connection: database.Connection, mentor_ids: Iterable[UUID]) -> set[UUID]:
    """Return the mentors without an address."""
    return {row[0] for row in database.fetch(connection, "find_without_address", {"ids": list(mentor_ids)})}


def _due(decisions: Iterable[Decision]) -> list[tuple[UUID, Reminder]]:
    return [(decision.mentor_id, reminder) for decision in decisions for reminder in decision.reminders]


def _arrays(due: Sequence[tuple[UUID, Reminder]]) -> dict[str, object]:
    return {
        "mentor_ids": [mentor_id for mentor_id, _ in due],
        "thresholds": [reminder.threshold_days for _, reminder in due],
        "cert_ids": [reminder.cert_id for _, reminder in due],
        "expiries": [reminder.expires_on for _, reminder in due],
    }
