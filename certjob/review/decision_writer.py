"""Write the decisions of a chunk in the caller's transaction: statuses, audit, pauses and intents."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.mail.reminders import CertificationReminderService, cancel_failed_reminders
from certjob.portal.sync import PortalSyncService, Wish
from certjob.review.guards import Admitted
from certjob.review.pauses import PauseManagementService


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The result of one transaction, counted after its commit."""

    decisions: Sequence[Decision]
    staying_due: frozenset[UUID] = frozenset()
    """Mentors with held changes or reminders."""
    queued: int = 0
    """Queued reminders."""


def write_decisions(connection: Connection, admitted: Admitted, *, today: date, run_id: UUID) -> Written:
    """Write decisions about mentors that the transaction has locked, with the rows of mentors last."""
    decisions, held = admitted.decisions, admitted.without_reminders
    if not decisions:
        return Written(decisions=(), staying_due=admitted.staying_due)
    portal = PortalSyncService(connection, run_id=run_id)
    _write_certificates(connection, decisions, staying_due=held, today=today, run_id=run_id)
    PauseManagementService(connection).apply(decisions)
    reminded = [d for d in decisions if d.reminders and d.mentor_id not in held]
    queued = CertificationReminderService(connection, today=today, run_id=run_id).queue(reminded)
    cancel_failed_reminders(connection, [d.mentor_id for d in decisions], today=today)
    pushed = [d for d in decisions if d.push]
    portal.queue([Wish.of(d) for d in pushed])
    withdrawn = portal.withdraw([d.mentor_id for d in decisions if not d.organisation.has_portal])
    columns = {
        "ids": [d.mentor_id for d in decisions],
        "certified_until": [d.certified_until for d in decisions],
        "review_dates": [d.review_on for d in decisions],
        "stays_due": [d.mentor_id in held for d in decisions],
        "push": [d.push for d in decisions],
        "visible": [d.visible for d in decisions],
        "withdrawn": [d.mentor_id in withdrawn for d in decisions],
    }
    database.execute(connection, "update_mentors", columns)
    return Written(decisions=decisions, staying_due=admitted.staying_due, queued=len(queued))


def _write_certificates(
    connection: Connection, decisions: Sequence[Decision], *, staying_due: Set[UUID], today: date, run_id: UUID
) -> None:
    changes = [(d.mentor_id, change) for d in decisions for change in d.transitions]
    seen = [cert_id for d in decisions if d.seen_ids and d.mentor_id not in staying_due for cert_id in d.seen_ids]
    if changes or seen:
        columns: dict[str, object] = {
            "ids": [*(change.certificate_id for _, change in changes), *seen],
            "statuses": [*(change.to_status for _, change in changes), *[None] * len(seen)],
            "stays_due": [*(mentor_id in staying_due for mentor_id, _ in changes), *[False] * len(seen)],
        }
        database.execute(connection, "update_certificates", columns)
    if changes:
        columns = {
            "certificate_ids": [change.certificate_id for _, change in changes],
            "mentor_ids": [mentor_id for mentor_id, _ in changes],
            "from_statuses": [change.from_status for _, change in changes],
            "to_statuses": [change.to_status for _, change in changes],
            "today": today,
            "run_id": run_id,
        }
        database.execute(connection, "insert_transitions", columns)
