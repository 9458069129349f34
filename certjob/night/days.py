"""Whether the day that a run goes by can be believed: a wrong one pauses, hides and mails."""

from datetime import date, tzinfo

from certjob import database
from certjob.database import Connection
from certjob.errors import ClocksDisagreeError, ConfigurationError
from certjob.outbox.claims import StageStop
from certjob.review.guards import refuse_earlier_date


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
    except ClocksDisagreeError as error:
        return StageStop(stage="mail", code="clocks_disagree", reason=f"{error}; until then no mail is sent")
    except ConfigurationError as error:
        return StageStop(stage="mail", code="earlier_date", reason=f"{error}; until then no mail is sent")
    return None
