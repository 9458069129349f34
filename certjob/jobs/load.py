"""Load a file, and say what the next run will do with everyone."""

from dataclasses import dataclass
from datetime import date

from certjob.database import Connection
from certjob.facts import loading
from certjob.facts.loading import LoadReport
from certjob.jobs.report import RunReport
from certjob.jobs.runs import plan_next_run


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The result of a load, and the plan of the next run."""

    report: LoadReport
    next_run: RunReport
    """Of all due mentors with the facts after the load, and with the guards of a run without --allow."""


def load(
    connection: Connection,
    content: bytes,
    *,
    today: date,
    dry_run: bool = False,
    exact: bool = False,
    most_changes: int | None = None,
) -> Loaded:
    """Load a file as ``loading.load_file`` does. A dry run plans before it takes the load back."""
    plans: list[RunReport] = []

    def plan() -> None:
        plans.append(plan_next_run(connection, today=today))

    report = loading.load_file(
        connection,
        content,
        today=today,
        dry_run=dry_run,
        exact=exact,
        most_changes=most_changes,
        before_rollback=plan,
    )
    if not dry_run:
        plan()
    return Loaded(report=report, next_run=plans[-1])
