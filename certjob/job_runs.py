"""The ledger of runs: every run has its line in ``job_runs``, and the last night's date guards against a bad clock."""

import json
import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from uuid import UUID

import psycopg

from certjob import __version__, database
from certjob.database import Connection
from certjob.errors import ConfigurationError, DatabaseUnavailableError
from certjob.report import Outcome, RunReport

logger = logging.getLogger(__name__)

_LOCK_TIMEOUT_MS = 30_000


def refuse_earlier_date(connection: Connection, today: date) -> None:
    """Raise ConfigurationError when the clock says a day before the last finished night's."""
    last = database.fetch_value(connection, "read_last_run_date")
    if last is not None and today < last:
        message = (
            f"today would be {today}, but the last night was run for {last}; correct the clock, or if the later date "
            "was the wrong one, add --allow-earlier-date"
        )
        raise ConfigurationError(message)


def looks_at_everybody(connection: Connection, today: date) -> bool:
    """Return whether a night on ``today`` must review every mentor, due or not.

    So it is after something ran on a later date, on a wrong clock: it noted when to look at each mentor again, and
    those days are wrong. The first full night on the right date makes good for it.
    """
    return bool(database.fetch_value(connection, "find_later_run", {"today": today}))


@contextmanager
def recorded(
    connection: Connection, report: RunReport, *, organisation: str | None = None, organisation_id: UUID | None = None
) -> Iterator[None]:
    """Keep the run's line in ``job_runs``, whatever becomes of the run; finish the report on the way out.

    A night after one on a later date makes everybody due, in the transaction that writes its line.
    """
    identity = {
        "id": report.run_id,
        "command": report.command,
        "today": report.today,
        "organisation": organisation,
        "host": platform.node() or "unknown",
        "version": __version__,
    }
    try:
        with database.transaction(connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
            everybody = report.command == "run" and looks_at_everybody(connection, report.today)
            database.execute(connection, "start_job_run", identity)
            if everybody:
                database.execute(connection, "review_everybody", {"organisation_id": organisation_id})
    except database.CONTENTION as error:
        message = "after a night on a wrong date everybody must be reviewed, but another session holds some; run again"
        raise DatabaseUnavailableError(message) from error
    try:
        yield
    except BaseException:
        try:
            _record_end(connection, report, Outcome.FAILED)
        except psycopg.Error:  # the database is what failed
            logger.info("the end of run %s could not be recorded", report.run_id)
        raise
    _record_end(connection, report, report.outcome)


def _record_end(connection: Connection, report: RunReport, outcome: Outcome) -> None:
    report.finish()
    document = report.to_document()
    parts = ("mentors", "certificates", "reminders", "portal", "digests")
    counts = {part: document[part] for part in parts if part in document} | {"stop_codes": report.stop_codes}
    parameters = {"id": report.run_id, "outcome": outcome, "counts": json.dumps(counts)}
    database.execute(connection, "finish_job_run", parameters)
