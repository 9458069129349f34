"""Two organisations with one row in every table, to be looked at as their coordinators."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg

from certjob.database import Connection
from tests.support.facts import TODAY, Facts
from tests.support.supabase import logged_in

DENIED = psycopg.errors.InsufficientPrivilege
"""SQLSTATE 42501: PostgREST answers 403 to it."""

_READABLE = (
    "organisations coordinators mentors certificates mentor_pauses certificate_transitions cert_notification_log"
    " portal_sync_events dynamics_sync_failures alerts"
)
READABLE = tuple(_READABLE.split())


@dataclass(frozen=True)
class Organisation:
    """One organisation with one of everything."""

    facts: Facts
    """The owner's of the tables, from whom nothing is hidden."""
    api: Connection
    """Where the app's requests are served."""
    id: UUID
    coordinator: UUID
    mentor: UUID

    def asks(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        """Ask as the coordinator; ``%(mentor)s`` is the mentor unless another is given, ``%(me)s`` the coordinator."""
        values = {"me": str(self.coordinator), "mentor": self.mentor} | values
        with logged_in(self.api, self.coordinator):
            cursor = self.api.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []


def furnish(owner: Connection, slug: str, *, api: Connection) -> Organisation:
    """Write one row into every table, for one organisation."""
    facts, coordinator = Facts(owner), uuid4()
    organisation = facts.organisation(slug)
    mentor = facts.mentor(organisation, member_no=f"{slug}-1")
    facts.certificate(mentor, TODAY)
    facts.pause(mentor, reason="illness", actor="somebody")
    failed = {"visible": False, "kind": "transient", "error": "down"}
    about = {"threshold_days": 7, "cert_id": uuid4(), "expires_on": TODAY}
    became = {"certificate_id": uuid4(), "from_status": "valid", "to_status": "expired", "as_of": TODAY}
    facts.insert("coordinators", id=coordinator, organisation_id=organisation, email="eva@example.org")
    facts.insert("certificate_transitions", mentor_id=mentor, **became)
    facts.insert("cert_notification_log", mentor_id=mentor, **about)
    facts.insert("portal_sync_events", mentor_id=mentor, visible=False)
    facts.insert("dynamics_sync_failures", mentor_id=mentor, **failed)
    facts.insert("coordinator_digests", coordinator_id=coordinator, digest_on=TODAY)
    return Organisation(facts=facts, api=api, id=organisation, coordinator=coordinator, mentor=mentor)
