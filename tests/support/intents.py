"""Intents and what becomes of them: wishes for the portal, claims, reviews, time that passes."""

from datetime import date
from uuid import UUID, uuid4

from certjob.database import Connection
from certjob.portal.push import PortalEvent
from certjob.portal.sync import PortalSyncService
from certjob.review.certification import CertificationManagementService
from certjob.review.guards import MassChangeGuard
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING


def claim(connection: Connection, *, limit: int = 100) -> list[PortalEvent]:
    """Claim what is due, as another run would."""
    return [event for event, _ in PortalSyncService(connection, run_id=uuid4()).claim(limit, today=TODAY)]


def backlog(facts: Facts, count: int, *, visible: bool = False) -> list[UUID]:
    """So many new mentors of a new organisation with a wish each; their contact ids, in the order of delivery."""
    organisation = facts.organisation(f"hlf-{uuid4().hex[:8]}")
    contacts = [uuid4() for _ in range(count)]
    facts.connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, email, dynamics_contact_id, portal_visible, review_on)"
        " SELECT %s, 'B' || n, 'b' || n || '@example.org', contact, %s, '9999-12-31'"
        " FROM unnest(%s::uuid[]) WITH ORDINALITY AS c (contact, n)",
        (organisation, visible, contacts),
    )
    facts.connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, %s FROM mentors"
        " WHERE organisation_id = %s ORDER BY array_position(%s::uuid[], dynamics_contact_id)",
        (visible, organisation, contacts),
    )
    return contacts


def review(connection: Connection, today: date = TODAY) -> None:
    """Review whoever is due, as the first half of a night does; nothing is delivered."""
    guard = MassChangeGuard(connection, today=today, allow=EVERYTHING)
    CertificationManagementService(connection, today=today, run_id=uuid4(), guard=guard, stop=StopFlag()).apply_due()


def make_due(facts: Facts, table: str = "portal_sync_events") -> None:
    """Let the time until the next round pass."""
    facts.connection.execute(f"UPDATE {table} SET next_attempt_at = now() WHERE status = 'pending'".encode())


def run_out(facts: Facts, table: str = "portal_sync_events") -> None:
    """Let every lease run out."""
    facts.connection.execute(
        f"UPDATE {table} SET next_attempt_at = now() - interval '1 second' WHERE claim_token IS NOT NULL".encode()
    )
