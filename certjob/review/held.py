"""Store the holds of guards for alerts and digests."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from uuid import UUID

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.holds import Hold
from certjob.domain.models import Effect


def store_hold(connection: Connection, hold: Hold, *, today: date, run_id: UUID) -> bool:
    """Store the hold in the caller's transaction. Return whether no earlier run has stored it."""
    stored = {name: value for name, value in asdict(hold).items() if name != "organisation"}
    return bool(database.fetch_value(connection, "store_held_review", stored | {"today": today, "run_id": run_id}))


def store_held_mentors(connection: Connection, mentors: Mapping[tuple[UUID, str], Effect]) -> None:
    """Store held mentors, by mentor and kind, in the caller's transaction."""
    database.execute(connection, "store_held_mentors", mentor_columns(mentors))


def mentor_columns(mentors: Mapping[tuple[UUID, str], Effect]) -> dict[str, list[object]]:
    """Return the columns of held mentors."""
    return {
        "ids": [mentor_id for mentor_id, _ in mentors],
        "kinds": [kind for _, kind in mentors],
        "reasons": list(mentors.values()),
    }


def store_portal_holds(connection: Connection, holds: Sequence[Hold], *, today: date, run_id: UUID) -> None:
    """Store the held shows of a complete reading of the portal, and delete those of earlier readings."""

    def store() -> None:
        database.execute(connection, "forget_portal_holds", {"held": [hold.organisation_id for hold in holds]})
        for hold in holds:
            store_hold(connection, hold, today=today, run_id=run_id)

    persist(connection, store)
