"""Write the decisions of a chunk in the caller's transaction: statuses, audit, pauses and intents."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Decision
from certjob.mail.reminders import CertificationReminderService, cancel_outdated_reminders
from certjob.portal.sync import PortalSyncService, Wish
from certjob.review.guards import Admitted
from certjob.review.pauses import PauseManagementService


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The result of one transaction, counted after its commit."""

    admitted: Admitted
    queued: int = 0
    """Queued reminders."""
    held: int = 0
    """Held new reminders."""
    has_new_holds: bool = False
    """Whether a mentor or a reminder is held that no earlier transaction has held."""


def write_decisions(connection: Connection, admitted: Admitted, *, today: date, run_id: UUID) -> Written:
    """Write decisions about mentors that the transaction has locked, with the rows of mentors last."""
    decisions, has_new_holds = admitted.decisions, False
    if admitted.held:
        rows: dict[str, object] = {
            "ids": [each.mentor_id for each in admitted.held],
            "reasons": [each.effect for each in admitted.held],
            "after_gap": [each.after_gap for each in admitted.held],
            "certified_until": [each.certified_until for each in admitted.held],
            "today": today,
        }
        has_new_holds = any(is_new for (is_new,) in database.fetch(connection, "store_held_mentors", rows))
    if not decisions:
        return Written(admitted=admitted, has_new_holds=has_new_holds)
    portal = PortalSyncService(connection, run_id=run_id)
    _write_certificates(connection, decisions, today=today, run_id=run_id)
    PauseManagementService(connection).apply(decisions)
    reminders = CertificationReminderService(connection, run_id=run_id)
    queued, held = reminders.queue([d for d in decisions if d.reminders], held=admitted.held_reminders)
    cancel_outdated_reminders(connection, [d.mentor_id for d in decisions], today=today)
    portal.queue([Wish.of(d) for d in decisions if d.push])
    without_portal = [d for d in decisions if not d.organisation.has_portal]
    hidden = [d.mentor_id for d in without_portal if not d.visible]
    withdrawn = portal.withdraw([d.mentor_id for d in without_portal], hidden=hidden, today=today)
    columns: dict[str, object] = {
        "ids": [d.mentor_id for d in decisions],
        "certified_until": [d.certified_until for d in decisions],
        "seen": [None if d.seen is None else json.dumps(d.seen) for d in decisions],
        "review_dates": [d.review_on for d in decisions],
        "push": [d.push for d in decisions],
        "visible": [d.visible for d in decisions],
        "without_certificate": [d.without_certificate for d in decisions],
        "withdrawn": [d.mentor_id in withdrawn for d in decisions],
    }
    database.execute(connection, "update_mentors", columns)
    return Written(admitted=admitted, queued=queued, held=held, has_new_holds=has_new_holds or held > 0)


def _write_certificates(connection: Connection, decisions: Sequence[Decision], *, today: date, run_id: UUID) -> None:
    changes = [(d.mentor_id, change) for d in decisions for change in d.transitions]
    if changes:
        columns: dict[str, object] = {
            "certificate_ids": [change.certificate_id for _, change in changes],
            "mentor_ids": [mentor_id for mentor_id, _ in changes],
            "from_statuses": [change.from_status for _, change in changes],
            "to_statuses": [change.to_status for _, change in changes],
            "today": today,
            "run_id": run_id,
        }
        database.execute(connection, "change_statuses", columns)
