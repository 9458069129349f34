"""What the guards hold back, as it is stored: ``alerts`` and digests tell of it until it is over."""

from collections.abc import Sequence
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.holds import Hold

MOST_IDS = 50
"""The ids of at most this many held mentors are stored."""


def store_hold(connection: Connection, hold: Hold, *, today: date, run_id: UUID) -> None:
    """Write it down, inside the caller's transaction."""
    stored = {
        "organisation_id": hold.organisation_id,
        "what": hold.what,
        "today": today,
        "reason": hold.reason,
        "mentors": hold.mentors,
        "ended_by_calendar": hold.ended_by_calendar,
        "facts_changed": hold.facts_changed,
        "may_be_shown": hold.may_be_shown,
        "mentor_ids": list(hold.mentor_ids[:MOST_IDS]),
        "run_id": run_id,
    }
    database.execute(connection, "store_held_review", stored)


def store_portal_holds(connection: Connection, holds: Sequence[Hold], *, today: date, run_id: UUID) -> None:
    """Write down whose shows a reading of the portal holds; what an earlier one held and this one does not is over."""

    def store() -> None:
        database.execute(connection, "forget_portal_holds", {"held": [hold.organisation_id for hold in holds]})
        for hold in holds:
            store_hold(connection, hold, today=today, run_id=run_id)

    persist(connection, store)
