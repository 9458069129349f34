"""What a database server whose clock was wrong has written does not wait until its time comes."""

from collections.abc import Mapping
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, FlakyPortal, night

A_YEAR = "interval '1 year'"


@pytest.mark.parametrize("claimed", [False, True], ids=["put off", "claimed"])
def test_what_was_put_off_or_claimed_for_a_year_goes_out_with_the_next_run(
    connection: Connection, facts: Facts, app: psycopg.Connection[object], claimed: bool
) -> None:
    """A push, a reminder, a digest. After a lease, whose owner is long gone, the mails say that they may be repeats.

    A row that is locked waits for the run after that.
    """
    hlf = facts.organisation()
    connection.execute("INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'berit@example.org')", (hlf,))
    facts.certified_mentor(hlf, TODAY - timedelta(days=1))
    night(connection)
    for table in ("portal_sync_events", "cert_notification_log", "coordinator_digests"):
        since = "wanted_at" if table == "portal_sync_events" else "queued_at"
        connection.execute(
            f"UPDATE {table} SET next_attempt_at = now() + {A_YEAR}, {since} = now() + {A_YEAR},"
            f" claim_token = CASE WHEN %s THEN gen_random_uuid() END".encode(),
            (claimed,),
        )
    portal, channel = FlakyPortal(), CollectingChannel()

    app.execute("SELECT FROM portal_sync_events FOR UPDATE")
    night(connection, portal=portal)
    assert portal.visible == {}
    app.rollback()
    night(connection, deliver=False)
    ((wanted_at, now),) = facts.rows("SELECT wanted_at, now() FROM portal_alerts")
    assert wanted_at <= now  # type: ignore[operator]
    for table in ("cert_notification_log", "coordinator_digests"):  # in a year they would be mail that waits
        assert facts.rows(f"SELECT queued_at <= now() FROM {table}") == [(True,)]
    night(connection, portal=portal, channel=channel)

    assert list(portal.visible.values()) == [False]
    sent = sorted((message.kind, message.repeat) for message in channel.sent)
    assert sent == [("digest", claimed), ("reminder", claimed)]


def test_a_call_in_flight_for_a_mentor_whose_organisation_lost_its_portal_blocks_the_contact_no_longer(
    connection: Connection, facts: Facts
) -> None:
    """Its push was withdrawn under way. A mentor of another organisation has the same contact, and is hidden now."""
    nhf, contact_id = facts.organisation("nhf"), uuid4()
    facts.certified_mentor(nhf, TODAY - timedelta(days=1), contact_id=contact_id)
    night(connection, deliver=False)
    connection.execute("UPDATE organisations SET portal = NULL")
    night(connection, deliver=False)
    connection.execute(
        f"UPDATE portal_sync_events SET next_attempt_at = now() + {A_YEAR}, claim_token = gen_random_uuid(),"
        f" claim_contact_id = %s WHERE status = 'withdrawn'".encode(),
        (contact_id,),
    )
    facts.certified_mentor(facts.organisation("hlf"), TODAY - timedelta(days=1), contact_id=contact_id)
    portal = FlakyPortal()

    night(connection, portal=portal)

    assert facts.rows("SELECT status FROM portal_sync_events ORDER BY id") == [("withdrawn",), ("delivered",)]
    assert portal.visible == {contact_id: False}


def test_a_night_of_next_year_is_forgiven_once(connection: Connection, facts: Facts) -> None:
    """Both clocks were a year ahead, as on one machine: after --allow-earlier-date the nights go on without it."""
    facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=300))
    night(connection, TODAY + timedelta(days=365))
    times = ", ".join(f"{name} = {name} + {A_YEAR}" for name in ("started_at", "last_seen_at", "finished_at"))
    connection.execute(f"UPDATE job_runs SET {times}".encode())
    with pytest.raises(ConfigurationError, match="--allow-earlier-date"):
        night(connection)

    healing = night(connection, allow_earlier_date=True)
    after = night(connection)

    assert [each.to_document()["mentors"]["reviewed"] for each in (healing, after)] == [1, 0]
    assert facts.rows("SELECT count(*) FROM job_runs WHERE finished_at > now()") == [(0,)]


def test_a_session_that_is_ended_meanwhile_is_opened_anew(
    database_url: str, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that restarts just when a run begins does not end the run."""
    usual = database.execute
    ended: list[int] = []

    def execute(session: Connection, name: str, parameters: Mapping[str, object] | None = None) -> int:
        if name == "heal_wrong_clock" and not ended:
            ended.append(session.info.backend_pid)
            facts.rows("SELECT pg_terminate_backend(%s, 10000)", *ended)
        return usual(session, name, parameters)

    monkeypatch.setattr(database, "execute", execute)
    facts.certified_mentor(facts.organisation(portal=None), TODAY - timedelta(days=1))
    with database.connect(database_url) as connection:
        database.outlast_restarts(connection, stop=StopFlag())

        report = night(connection)

        assert connection.info.backend_pid not in ended

    assert len(ended) == 1
    assert report.to_document()["mentors"]["paused"] == 1
