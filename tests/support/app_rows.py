"""Two organisations with one row in every table, to be looked at as their coordinators."""

from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg

from certjob import database
from tests.support.facts import TODAY, Facts

DENIED = psycopg.errors.InsufficientPrivilege
"""SQLSTATE 42501: PostgREST answers 403 to it."""

_READABLE = (
    "organisations coordinators mentors certificates mentor_pauses certificate_transitions cert_notification_log"
    " portal_sync_events dynamics_sync_failures portal_alerts"
)
READABLE = tuple(_READABLE.split())


@dataclass(frozen=True)
class Organisation:
    """One organisation with one of everything."""

    id: UUID
    coordinator: UUID
    mentor: UUID


def furnish(owner: database.Connection, slug: str) -> Organisation:
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
    return Organisation(id=organisation, coordinator=coordinator, mentor=mentor)


def count(connection: database.Connection, table: str) -> int:
    """The rows that whoever asks can see."""
    row = connection.execute(f"SELECT count(*) FROM (SELECT * FROM public.{table}) AS seen".encode()).fetchone()
    assert row is not None
    return int(row[0])
