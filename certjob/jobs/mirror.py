"""Copy the facts from an app's own tables, if docs/examples/mirror.sql is installed."""

import psycopg

from certjob import database
from certjob.database import Connection
from certjob.errors import StageEnd
from certjob.outbox.claims import StageStop

_LOCK_TIMEOUT_MS = 60_000
_MOST_PROBLEMS = 5
_WITHOUT_VALUES = frozenset(["0A", "21", "42", "53", "55", "57"])
"""SQLSTATE classes whose messages name objects of the database. Other messages may quote a value of the app."""


def copy_facts(connection: Connection) -> list[StageStop]:
    """Call ``certjob_mirror.sync()``; store and return the reason of a failure, or the facts that were not copied."""
    has_right_owner = database.fetch_value(connection, "find_mirror")
    if has_right_owner is None:
        return []
    stops = _copy(connection, has_right_owner=has_right_owner)
    copy = {"problem": stops[0].fault if stops else None}
    database.persist(connection, lambda: database.execute(connection, "note_copy", copy))
    return stops


def _copy(connection: Connection, *, has_right_owner: bool) -> list[StageStop]:
    if not has_right_owner:  # it would run with this user's rights
        return [_stop("it does not belong to the owner of the schema certjob; run mirror.sql as this owner")]
    try:
        with database.transaction(connection, lock_timeout_ms=_LOCK_TIMEOUT_MS):
            problems = database.fetch(connection, "copy_facts")
    except psycopg.Error as error:
        if database.is_lost(error):
            raise
        return [_stop(f"{_name(error)}; the facts of the app were not copied")]
    if not problems:
        return []
    listed = [": ".join(filter(None, [member or str(profile or ""), what])) for profile, member, what in problems]
    more = [f"and {len(listed) - _MOST_PROBLEMS:,} more"] if len(listed) > _MOST_PROBLEMS else []
    what = "some facts of the app were not copied"
    return [_stop("; ".join([what, *listed[:_MOST_PROBLEMS], *more]), everything="; ".join([what, *listed]))]


def _name(error: psycopg.Error) -> str:
    """Return the message and the SQLSTATE; without the message if it may quote a value of the app."""
    told = error.diag.message_primary if (error.sqlstate or "")[:2] in _WITHOUT_VALUES else None
    where = error.diag.column_name or error.diag.constraint_name
    return f"{told or ' in '.join(filter(None, [type(error).__name__, where]))} ({error.sqlstate})"


def _stop(reason: str, *, everything: str | None = None) -> StageStop:
    texts = {"reason": f"certjob_mirror.sync(): {reason}", "fault": f"certjob_mirror.sync(): {everything or reason}"}
    return StageStop(stage="mirror", code=StageEnd.NOT_COPIED, **texts)
