"""Plan the next run, for a dry run and for a file that is loaded."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.domain.models import Effect, Reminder
from certjob.jobs.report import RunReport
from certjob.mail.reminders import find_new_reminders, find_without_address
from certjob.outbox.open_work import read_open_work
from certjob.review import plan
from certjob.review.days import looks_at_everybody
from certjob.review.guards import MassChangeGuard
from certjob.review.plan import PlannedChange, ReviewCounts


def plan_next_run(connection: Connection, *, today: date, organisation_id: UUID | None = None) -> RunReport:
    """Return the plan of a run of everyone, or of one organisation, with the guards of a run without --allow."""
    report = RunReport(today=today, dry_run=True)
    plan_run(connection, report, organisation_id=organisation_id)
    return report


def plan_run(
    connection: Connection,
    report: RunReport,
    *,
    organisation_id: UUID | None = None,
    allow: Mapping[str, int] = Counter(),
    everybody: bool = False,
    on_progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Fill the report of a dry run from one read-only snapshot, without locks and calls."""
    today, counts, held = report.today, ReviewCounts(), 0
    with database.read_only_snapshot(connection):
        everybody = everybody or looks_at_everybody(connection, today)
        guard = MassChangeGuard(connection, today=today, allow=allow, everybody=everybody)
        guard.examine(organisation_id)
        for decisions, broken in plan.due_decisions(
            connection, today=today, organisation_id=organisation_id, everybody=everybody
        ):
            counts.broken |= broken
            found = find_new_reminders(connection, decisions)
            new: dict[UUID, list[Reminder]] = defaultdict(list)
            for mentor_id, reminder in found:
                new[mentor_id].append(reminder)
            unreachable, all_new = find_without_address(connection, new), set(found)
            counts.add([decision for decision in decisions if guard.hold_of(decision) is None])
            for decision in decisions:
                held_because = None
                if guard.hold_of(decision) is not None:
                    held_because = decision.surprise.effect
                elif guard.held_reminders_of(decision, all_new):
                    held_because = Effect.REMINDER
                change = PlannedChange(
                    decision=decision,
                    new_reminders=tuple(new[decision.mentor_id]),
                    has_address=decision.mentor_id not in unreachable,
                    held_because=held_because,
                )
                counts.held_back += change.is_held
                held += held_because is not None
                if held_because:
                    counts.reminders_held_back += len(change.new_reminders)
                else:
                    counts.reminders_queued += len(change.new_reminders)
                if held_because or decision.transitions or decision.pause or decision.push or change.new_reminders:
                    report.changes.append(change)
            on_progress(counts.reviewed)
        report.review = counts
        report.held = [hold.line for hold in guard.held.values()]
        report.held_before = sum(hold.mentors for hold in guard.held.values()) - held
        report.open_work = read_open_work(connection)
