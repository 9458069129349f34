"""The SQL statements of docs/runbook.md, and those that it links, work."""

import re
from datetime import timedelta

import psycopg

from certjob.database import Connection
from tests.support.command_line import today
from tests.support.docs import read
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, night
from tests.support.portal_server import PortalServer

PAGE = read("docs/runbook.md")
WRONG_CLOCK = read("docs/examples/wrong_clock.sql").encode()


def statement(beginning: str) -> bytes:
    """Return the statement of the page with this beginning."""
    (found,) = re.findall(rf"^    ({beginning}.+?;)$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found).encode()


def test_no_reminder_is_sent_twice_after_a_restore(facts: Facts, connection: Connection, portal: PortalServer) -> None:
    """The backup does not contain the last night, which sent three of the four reminders."""
    day = today()
    organisation = facts.organisation()
    for days in (29, 6, -2, 30):
        facts.certified_mentor(organisation, day + timedelta(days=days))
    channel, later = CollectingChannel(), CollectingChannel()
    night(connection, day, deliver=False)
    connection.execute(statement("UPDATE certjob.cert_notification_log\n"))
    night(connection, day, portal=portal, channel=channel)
    connection.execute("UPDATE mentors SET review_on = '-infinity'")
    night(connection, day, portal=portal, channel=channel)
    assert list(portal.visible.values()) == [False]
    night(connection, day + timedelta(days=16), portal=portal, channel=later)

    assert (len(channel.sent), len(later.sent)) == (1, 3)


def test_owner_and_job_find_the_blocking_session(
    facts: Facts, database_url: str, worker_url: str, app: psycopg.Connection[tuple[object, ...]]
) -> None:
    """A forgotten transaction is found although no one waits for it."""
    facts.certified_mentor(facts.organisation(), today())
    app.execute("UPDATE mentors SET locale = 'nn'")

    for url in (database_url, worker_url):
        with psycopg.connect(url) as connection:
            found = connection.execute(statement("SELECT pid, usename")).fetchall()
        assert [row[0] for row in found] == [app.info.backend_pid]


def test_work_of_a_wrong_clock_is_due_again(facts: Facts, connection: Connection, portal: PortalServer) -> None:
    """The clock was a year ahead when a run queued a push, a reminder and a digest."""
    organisation = facts.organisation()
    facts.insert("coordinators", organisation_id=organisation, email="berit@example.org")
    facts.certified_mentor(organisation, today() - timedelta(days=1))
    night(connection, today())
    for table, since in (
        ("portal_sync_events", "wanted_at"),
        ("cert_notification_log", "queued_at"),
        ("coordinator_digests", "queued_at"),
    ):
        year = "now() + interval '1 year'"
        connection.execute(f"UPDATE {table} SET next_attempt_at = {year}, {since} = {year}".encode())
    connection.execute(
        "UPDATE job_runs SET started_at = now() + interval '1 year', finished_at = now() + interval '1 year'"
    )

    connection.execute(WRONG_CLOCK)

    channel = CollectingChannel()
    night(connection, today(), portal=portal, channel=channel)
    assert list(portal.visible.values()) == [False]
    assert sorted(message.kind for message in channel.sent) == ["digest", "reminder"]
    assert facts.rows("SELECT count(*) FROM job_runs WHERE finished_at > now()") == [(0,)]


def test_statements_name_the_schema(connection: Connection) -> None:
    """Otherwise a session of an app could change the app's own table of mentors."""
    connection.execute("SET search_path = pg_catalog")
    queries = [statement(each) for each in ("UPDATE certjob.cert_notification_log\n", "SELECT pid")]
    typed = [each.encode() for each in re.findall("`((?:UPDATE|DELETE FROM) [^`]*)`", PAGE)]

    for each in (WRONG_CLOCK, *queries, *typed):
        plan = connection.execute(b"EXPLAIN " + each.replace("'…'".encode(), b"gen_random_uuid()"))
        assert plan.fetchone(), each
