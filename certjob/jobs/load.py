"""Load a file, and plan the next run."""

from datetime import date
from typing import Any

from certjob.database import Connection
from certjob.facts.loading import LoadReport, load_file
from certjob.jobs.report import RunReport
from certjob.jobs.runs import plan_next_run


def load(
    connection: Connection, content: bytes, *, today: date, dry_run: bool, **options: Any
) -> tuple[LoadReport, RunReport]:
    """Load a file as ``load_file`` does. Return the result, and the plan of the next run, also of a dry run.

    The plan has all due mentors with the facts after the load, and the guards of a run without --allow.
    """
    plans: list[RunReport] = []

    def plan() -> None:
        plans.append(plan_next_run(connection, today=today))

    report = load_file(connection, content, today=today, dry_run=dry_run, before_rollback=plan, **options)
    if not dry_run:
        plan()
    return report, plans[-1]
