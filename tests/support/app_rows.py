"""Two organisations with one row in every table, to be looked at as their coordinators."""

from dataclasses import dataclass
from uuid import UUID, uuid4

import psycopg

from certjob import database
from tests.support.facts import TODAY, Facts

DENIED = psycopg.errors.InsufficientPrivilege
"""SQLSTATE 42501: PostgREST answers 403 to it."""

READABLE = (
    "organisations",
    "coordinators",
    "mentors",
    "certificates",
    "mentor_pauses",
    "certificate_transitions",
    "cert_notification_log",
    "portal_sync_events",
    "dynamics_sync_failures",
    "portal_alerts",
)
CERTJOBS_OWN = ("coordinator_digests", "job_runs", "certjob_migrations")


@dataclass(frozen=True)
class Organisation:
    """One organisation with one of everything."""

    id: UUID
    coordinator: UUID
    mentor: UUID
    certificate: UUID
    pause: UUID


def furnish(owner: database.Connection, slug: str) -> Organisation:
    """Write one row into every table, for one organisation."""
    facts = Facts(owner)
    organisation_id, coordinator_id = facts.organisation(slug), uuid4()
    mentor_id = facts.mentor(organisation_id, member_no=f"{slug}-1")
    certificate_id = facts.certificate(mentor_id, TODAY)
    pause_id = facts.pause(mentor_id, reason="illness", actor="somebody")
    values = {"organisation": organisation_id, "coordinator": coordinator_id, "mentor": mentor_id}
    for statement in (
        "INSERT INTO coordinators (id, organisation_id, email)"
        " VALUES (%(coordinator)s, %(organisation)s, 'eva@example.org')",
        "INSERT INTO certificate_transitions (certificate_id, mentor_id, from_status, to_status, as_of)"
        " VALUES (gen_random_uuid(), %(mentor)s, 'valid', 'expired', '2026-03-10')",
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
        " VALUES (%(mentor)s, 7, gen_random_uuid(), '2026-03-10')",
        "INSERT INTO portal_sync_events (mentor_id, visible) VALUES (%(mentor)s, false)",
        "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error)"
        " VALUES (%(mentor)s, false, 'transient', 'down')",
        "INSERT INTO coordinator_digests (coordinator_id, digest_on) VALUES (%(coordinator)s, '2026-03-10')",
    ):
        owner.execute(statement.encode(), values)
    return Organisation(organisation_id, coordinator_id, mentor_id, certificate_id, pause_id)


def count(connection: database.Connection, table: str) -> int:
    """The rows that whoever asks can see."""
    row = connection.execute(f"SELECT count(*) FROM (SELECT * FROM public.{table}) AS seen".encode()).fetchone()
    assert row is not None
    return int(row[0])
