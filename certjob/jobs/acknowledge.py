"""Acknowledge an alert, or say that a contact was hidden by hand."""

import os
from collections.abc import Sequence
from datetime import date, timedelta
from uuid import UUID

import psycopg

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.alert_kinds import A_MONTH, WORDS, Kind
from certjob.errors import UsageError
from certjob.redaction import printed_line

_LONGEST_NAME = 196
"""Characters. With ``cli:`` before it, a pause has room for 200."""


def acknowledge(connection: Connection, alert_id: str, *, because: str, until: date, today: date) -> str:
    """Acknowledge an alert until a day, and commit; return the user's name on this machine.

    Raises UsageError for an unknown alert, a kind that no one may mute, an empty reason, or a day outside the limits.
    """
    if not because.strip():
        message = "--because is required"
        raise UsageError(message, next_step="say why no one has to act now")
    found = database.fetch(connection, "read_alert_kind", {"today": today, "alert_id": alert_id})
    if not found:
        message = f"no alert has the id {alert_id[:300]!r}"
        raise UsageError(message, next_step="`certjob alerts` prints the ids")
    kind, was_shown = found[0]
    longest_days = A_MONTH if was_shown else WORDS[Kind(kind)].longest_days
    if not longest_days:
        message = f"no one can acknowledge {alert_id}, because someone may be visible who must not be"
        raise UsageError(message, next_step="`certjob alerts` says what to do")
    last = today + timedelta(days=longest_days)
    if not today <= until <= last:
        message = f"--until {until} must be between {today} and {last}"
        raise UsageError(message, next_step="acknowledge the alert again when that day is over")
    who = user_name()
    parameters = {"alert_id": alert_id, "until": until, "because": because.strip()[:1000], "who": who}
    persist(connection, lambda: database.execute(connection, "acknowledge_alert", parameters))
    return who


def confirm_hidden(connection: Connection, mentor_ids: Sequence[UUID], *, because: str) -> str:
    """Settle the last hides of mentors, because a person has hidden their contacts, and commit; return who that is.

    Raises UsageError with the database's reason: no hide is open, a call may be under way, or the reason is empty.
    """
    who = f"cli:{user_name()}"
    given = {"mentor_ids": list(mentor_ids), "because": because, "who": who}
    try:
        persist(connection, lambda: database.fetch(connection, "confirm_hidden", given))
    except (psycopg.errors.NoDataFound, psycopg.errors.ObjectInUse, psycopg.errors.InvalidParameterValue) as error:
        message = f"not stored: {error.diag.message_primary}"
        raise UsageError(message, next_step=error.diag.message_hint or "give it with --because") from None
    return who


def confirm_all_hidden(connection: Connection, slug: str, *, because: str) -> int:
    """Do this for every mentor of an organisation with an open or withdrawn hide; return their number."""
    found = [mentor_id for (mentor_id,) in database.fetch(connection, "list_open_hides", {"slug": slug})]
    if found:
        confirm_hidden(connection, found, because=because)
    return len(found)


def user_name() -> str:
    """Return the name of the person at this machine, also under sudo, as far as the schema has room for it."""
    names = (printed_line(os.environ.get(name, "")) for name in ("SUDO_USER", "LOGNAME", "USER"))
    return next(filter(None, names), f"user {os.geteuid()}")[:_LONGEST_NAME]
