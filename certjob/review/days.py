"""Whether the day that a run goes by can be believed: a wrong one pauses, hides and mails."""

from datetime import date, tzinfo
from uuid import UUID

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError, StageEnd
from certjob.outbox.claims import StageStop


def last_run_date(connection: Connection) -> date | None:
    """Return the date of the last nightly run that came to its end; None: there was none."""
    last: date | None = database.fetch_value(connection, "read_last_run_date")
    return last


def refuse_earlier_date(connection: Connection, today: date) -> None:
    """Raise ConfigurationError after a full run on a later date, whether it ended or not."""
    later: date | None = database.fetch_value(connection, "find_later_full_run", {"today": today})
    if later is not None:
        message = f"today would be {today}, but the last night was run for {later}"
        raise ConfigurationError(
            message,
            next_step="correct the clock, or if the later date was the wrong one, `certjob run --allow-earlier-date`",
        )


def refuse_wrong_day(
    connection: Connection,
    today: date,
    *,
    zone: tzinfo,
    ignore_database_clock: bool,
    allow_earlier_date: bool = False,
) -> None:
    """Raise ClocksDisagreeError or, on a day before the last night's, ConfigurationError."""
    if not ignore_database_clock:
        database.read_clocks(connection).require_same_day(zone)
    if not allow_earlier_date:
        refuse_earlier_date(connection, today)


def why_no_mail(connection: Connection, today: date, *, zone: tzinfo, ignore_database_clock: bool) -> StageStop | None:
    """Return why no mail may go out today; None when it may. A push goes by no date, so pushing goes on."""
    try:
        refuse_wrong_day(connection, today, zone=zone, ignore_database_clock=ignore_database_clock)
    except ConfigurationError as error:
        return StageStop(stage="mail", code=StageEnd.CLOCKS_DISAGREE, reason=f"{error}; until then no mail is sent")
    return None


def looks_at_everybody(connection: Connection, today: date) -> bool:
    """Return whether a night on ``today`` must review every mentor, due or not.

    So it is after something ran on a later date, on a wrong clock: it noted when to look at each mentor again, and
    those days are wrong. The first full night on the right date corrects that.
    """
    return bool(database.fetch_value(connection, "find_later_run", {"today": today}))


def make_everybody_due(connection: Connection, organisation_id: UUID | None) -> None:
    """Make every mentor (of one organisation, or of all) due now, inside the caller's transaction."""
    database.execute(connection, "review_everybody", {"organisation_id": organisation_id})
