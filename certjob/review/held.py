"""Store the shows that `certjob reconcile` holds, for alerts and digests."""

from collections.abc import Sequence

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.holds import Hold


def store_portal_holds(connection: Connection, holds: Sequence[Hold]) -> None:
    """Store the held shows of a complete reading of the portal, and delete those of earlier readings."""

    def store() -> None:
        database.execute(connection, "forget_portal_holds", {"held": [hold.organisation_id for hold in holds]})
        for hold in holds:
            row = {"organisation_id": hold.organisation_id, "mentors": hold.mentors}
            database.execute(connection, "store_portal_hold", row)

    persist(connection, store)
