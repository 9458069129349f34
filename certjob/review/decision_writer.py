"""Write the decisions of a chunk in the caller's transaction: statuses, audit, pauses and intents."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.mail.reminders import CertificationReminderService, cancel_failed_reminders
from certjob.portal.sync import PortalSyncService, Wish
from certjob.review.guards import MassChangeGuard
from certjob.review.pauses import PauseManagementService


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The result of one transaction, counted after its commit."""

    decisions: Sequence[Decision]
    staying_due: frozenset[UUID] = frozenset()
    queued_for: Sequence[UUID] = ()
    """The organisation of each queued reminder."""


def write_decisions(
    connection: Connection, decisions: Sequence[Decision], *, today: date, run_id: UUID, guard: MassChangeGuard
) -> Written:
    """Write decisions about mentors that the transaction has locked, with the rows of mentors last.

    New reminders that the guard holds are not written.
    """
    if not decisions:
        return Written(decisions=())
    portal = PortalSyncService(connection, run_id=run_id)
    _write_transitions(connection, decisions, today=today, run_id=run_id)
    PauseManagementService(connection).apply(decisions)
    held = guard.hold_reminders(decisions)
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
    organisations = {d.mentor_id: d.organisation.id for d in reminded}
    return Written(decisions=decisions, staying_due=held, queued_for=[organisations[mentor_id] for mentor_id in queued])


def _write_transitions(connection: Connection, decisions: Sequence[Decision], *, today: date, run_id: UUID) -> None:
    changes = [(d.mentor_id, change) for d in decisions for change in d.transitions]
    if not changes:
        return
    columns = {
        "certificate_ids": [change.certificate_id for _, change in changes],
        "mentor_ids": [mentor_id for mentor_id, _ in changes],
        "from_statuses": [change.from_status for _, change in changes],
        "to_statuses": [change.to_status for _, change in changes],
    }
    statuses = {"ids": columns["certificate_ids"], "statuses": columns["to_statuses"]}
    database.execute(connection, "update_certificate_statuses", statuses)
    database.execute(connection, "insert_transitions", columns | {"today": today, "run_id": run_id})
