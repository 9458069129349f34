"""Check the date of a run. On a wrong date it would pause, hide and mail people by mistake."""

from datetime import date, tzinfo
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, StageEnd
from certjob.outbox.claims import StageStop


def last_run_date(connection: Connection) -> date | None:
    """Return the date of the last finished full run."""
    last: date | None = database.fetch_value(connection, "read_last_run_date")
    return last


def reject_earlier_date(connection: Connection, today: date) -> None:
    """Raise ConfigurationError after a full run on a later date, even an unfinished one."""
    later: date | None = database.fetch_value(connection, "find_later_full_run", {"today": today})
    if later is not None:
        message = f"the date is {today}, but an earlier run used {later}"
        raise ConfigurationError(
            message,
            next_step=f"correct the clock, or if {today} is right, `certjob run --accept-date {today}`",
        )


def reject_wrong_day(connection: Connection, today: date, *, zone: tzinfo, accept_date: date | None) -> None:
    """Raise ClocksDisagreeError or, before the day of an earlier full run, ConfigurationError.

    With ``accept_date``, a person has confirmed the date. Raises ConfigurationError if it is not today.
    """
    if accept_date is None:
        database.read_clocks(connection).require_same_day(zone)
        reject_earlier_date(connection, today)
    elif accept_date != today:
        message = f"--accept-date is {accept_date}, but this machine's date is {today}"
        raise ConfigurationError(message, next_step="correct the clock of this machine, or give its date")


def why_wrong_day(connection: Connection, today: date, *, zone: tzinfo, accept_date: date | None) -> StageStop | None:
    """Return why only hides may be sent today, or None. Raises ConfigurationError if ``accept_date`` is not today."""
    try:
        reject_wrong_day(connection, today, zone=zone, accept_date=accept_date)
    except ConfigurationError as error:
        if accept_date is not None:
            raise
        reason = f"{error}; until then no mail is sent and no mentor is shown on the portal"
        return StageStop(stage="mail", code=StageEnd.CLOCKS_DISAGREE, reason=reason)
    return None


def looks_at_everybody(connection: Connection, today: date) -> bool:
    """Return whether a full run must review every mentor, because an earlier run had a wrong, later date.

    That run stored wrong days of the next review. The first full run on the right date corrects them.
    """
    return bool(database.fetch_value(connection, "find_later_run", {"today": today}))


def make_everybody_due(connection: Connection, organisation_id: UUID | None) -> None:
    """Make every mentor of one organisation, or of all, due in the caller's transaction."""
    database.execute(connection, "review_everybody", {"organisation_id": organisation_id})
