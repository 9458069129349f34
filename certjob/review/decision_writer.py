"""What the rules decided, written: status, audit, pauses and intents of one chunk, in the caller's transaction."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.mail.reminders import CertificationReminderService
from certjob.portal.sync import PortalSyncService
from certjob.review.guards import MassChangeGuard
from certjob.review.pauses import PauseManagementService


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one transaction wrote, to be counted once it is committed."""

    decisions: Sequence[Decision]
    staying_due: frozenset[UUID] = frozenset()
    queued_for: Sequence[UUID] = ()
    """The organisation of each queued reminder."""


class DecisionWriter:
    """Writes decisions about mentors whose rows the transaction has locked."""

    def __init__(self, connection: Connection, *, today: date, run_id: UUID, guard: MassChangeGuard) -> None:
        self._connection = connection
        self._today = today
        self._run_id = run_id
        self._guard = guard
        self._pauses = PauseManagementService(connection)
        self._reminders = CertificationReminderService(connection, run_id=run_id)
        self._portal = PortalSyncService(connection, run_id=run_id)

    def write(self, decisions: Sequence[Decision]) -> Written:
        """Write them, the mentors' rows last; only reminders may be held back by the guard."""
        if not decisions:
            return Written(decisions=())
        self._write_transitions(decisions)
        self._pauses.apply(decisions)
        held = self._guard.hold_reminders(decisions)
        queued = self._reminders.queue([d for d in decisions if d.reminders and d.mentor_id not in held])
        pushed = [d for d in decisions if d.push]
        moved_from = {d.mentor_id: d.moved_from for d in pushed if d.moved_from is not None}
        self._portal.queue([(d.mentor_id, d.visible) for d in pushed], moved_from=moved_from)
        withdrawn = self._portal.withdraw([d.mentor_id for d in decisions if not d.organisation.has_portal])
        database.execute(
            self._connection,
            "update_mentors",
            {
                "ids": [d.mentor_id for d in decisions],
                "certified_until": [d.certified_until for d in decisions],
                "review_dates": [d.review_on for d in decisions],
                "stays_due": [d.mentor_id in held for d in decisions],
                "push": [d.push for d in decisions],
                "visible": [d.visible for d in decisions],
                "withdrawn": [d.mentor_id in withdrawn for d in decisions],
            },
        )
        organisations = {d.mentor_id: d.organisation.id for d in decisions if d.reminders}
        return Written(
            decisions=decisions,
            staying_due=held,
            queued_for=[organisations[mentor_id] for mentor_id in queued],
        )

    def _write_transitions(self, decisions: Sequence[Decision]) -> None:
        changes = [(d.mentor_id, change) for d in decisions for change in d.transitions]
        if not changes:
            return
        certificate_ids = [change.certificate_id for _, change in changes]
        to_statuses = [change.to_status for _, change in changes]
        database.execute(
            self._connection, "update_certificate_statuses", {"ids": certificate_ids, "statuses": to_statuses}
        )
        database.execute(
            self._connection,
            "insert_transitions",
            {
                "certificate_ids": certificate_ids,
                "mentor_ids": [mentor_id for mentor_id, _ in changes],
                "from_statuses": [change.from_status for _, change in changes],
                "to_statuses": to_statuses,
                "today": self._today,
                "run_id": self._run_id,
            },
        )
