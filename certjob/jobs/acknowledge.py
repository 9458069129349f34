"""Acknowledge an alert: mute it in lists, exit codes and digests until a date."""

import os
from datetime import date, timedelta

from certjob import database
from certjob.database import Connection, persist
from certjob.errors import UsageError
from certjob.redaction import printed_line

LONGEST_DAYS = 31
_LONGEST_NAME = 196
"""Characters. With ``cli:`` before it, a pause has room for 200."""

_WITHOUT_END = {"hide_by_hand", "unknown_contact"}
"""Causes that certjob cannot end. Their acknowledgement may last until the alert ends."""


def acknowledge(connection: Connection, alert_id: str, *, because: str, until: date | None, today: date) -> str:
    """Acknowledge an alert with its present fingerprint, and commit; return the user's name on this machine.

    Raises UsageError for an unknown alert, an empty reason, or a day outside the limits.
    """
    if not because.strip():
        message = "--because is required"
        raise UsageError(message, next_step="say why no one has to act now")
    found = database.fetch(connection, "read_alert_cause", {"today": today, "alert_id": alert_id})
    if not found:
        message = f"no alert has the id {alert_id[:300]!r}"
        raise UsageError(message, next_step="`certjob alerts` prints the ids")
    last = today + timedelta(days=LONGEST_DAYS)
    if until is None and found[0][0] not in _WITHOUT_END:
        message = "--until is missing"
        raise UsageError(message, next_step=f"give a day up to {last}")
    if until is not None and not today <= until <= last:
        message = f"--until {until} must be between {today} and {last}"
        raise UsageError(message, next_step="acknowledge the alert again when that day is over")
    who = user_name()
    parameters = {"today": today, "alert_id": alert_id, "until": until, "because": because.strip()[:1000], "who": who}
    persist(connection, lambda: database.execute(connection, "acknowledge_alert", parameters))
    return who


def user_name() -> str:
    """Return the name of the person at this machine, also under sudo, as far as the schema has room for it."""
    names = (printed_line(os.environ.get(name, "")) for name in ("SUDO_USER", "LOGNAME", "USER"))
    return next(filter(None, names), f"user {os.geteuid()}")[:_LONGEST_NAME]
