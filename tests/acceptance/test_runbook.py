"""What docs/runbook.md says: its SQL statements, and how a person gets their data and is erased."""

import json
import re
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.jobs import runs
from certjob.mail.message import OutgoingMessage
from tests.conftest import Certjob, fresh_database
from tests.support.command_line import Finished, today
from tests.support.docs import read
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, delivery, new_job, night
from tests.support.portal_server import PortalServer

PAGE = read("docs/runbook.md")
WRONG_CLOCK = read("docs/examples/wrong_clock.sql").encode()


def statement(beginning: str) -> bytes:
    """Return the statement of the page with this beginning."""
    (found,) = re.findall(rf"^    ({beginning}.+?;)$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found).encode()


@pytest.mark.parametrize("is_mailed", [False, True], ids=["before the run of today", "after the run of today"])
def test_restore_sends_no_mail_twice_and_loses_none(server_url: str, database_url: str, *, is_mailed: bool) -> None:
    """The lost database of two days sent the same mails as the restored one, which follows the page, sends or skips."""
    days = {number: today() + timedelta(days=number) for number in range(-2, 2)}
    expected, after = CollectingChannel(), CollectingChannel()
    with database.connect(database_url) as lost:
        facts = Facts(lost)
        hlf = facts.organisation(portal=None)
        for address in ("eva@example.org", "per@example.org"):
            facts.insert("coordinators", organisation_id=hlf, email=address)
        for number in (-2, -1, 0, 1, *range(27, 33)):
            facts.certified_mentor(hlf, days[0] + timedelta(days=number))
        night(lost, days[-2], channel=CollectingChannel())
    backup = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    for url in fresh_database(server_url, str(backup)):
        with database.connect(database_url) as lost, database.connect(url) as restored:
            night(lost, days[-1], channel=expected)
            before = list(expected.sent)
            night(lost, days[0], channel=expected)
            before = list(expected.sent) if is_mailed else before
            night(lost, days[1], channel=expected)

            night(restored, days[0])
            restored.execute(statement("UPDATE certjob.cert_notification_log\n"))
            if is_mailed:
                runs.deliver(new_job(restored, days[0], ways_out=delivery(channel=CollectingChannel())))
            night(restored, days[0], channel=after)
            night(restored, days[1], channel=after)

    def sent(kind: str, mails: list[OutgoingMessage]) -> list[tuple[str, str]]:
        return sorted((mail.to, mail.subject) for mail in mails if mail.kind == kind)

    reminders, digests = sent("reminder", before + after.sent), sent("digest", before + after.sent)
    number = len(sent("reminder", after.sent))
    assert (number, reminders) == (2 if is_mailed else 5, sent("reminder", expected.sent))
    if is_mailed:
        assert digests == sent("digest", expected.sent)
    else:  # the digest of today repeats the news since the backup
        assert [to for to, _ in digests] == ["eva@example.org"] * 3 + ["per@example.org"] * 3


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


NAME, ADDRESS = "Åse Ødegård", "ase@oedegaard.example"


def test_a_person_gets_their_data_and_is_erased(
    certjob: Certjob, delivery_settings: dict[str, str], facts: Facts, portal: PortalServer
) -> None:
    """`explain --json` prints everything. After left_at, a resync and a DELETE no table names the person."""
    organisation, contact_id = facts.organisation(), uuid4()
    facts.insert("coordinators", organisation_id=organisation, email="ola@hlf.example")
    mentor_id = facts.mentor(organisation, member_no="M4711", full_name=NAME, email=ADDRESS, contact_id=contact_id)
    facts.certificate(mentor_id, today() + timedelta(days=7))
    facts.pause(mentor_id, reason="illness", actor="eva")

    def run(*words: str) -> Finished:
        result = certjob(*words, **delivery_settings)
        assert result.returncode == 0, result
        return result

    run("run")
    exported = json.loads(run("explain", "M4711", "--json").stdout)
    facts.connection.execute("UPDATE mentors SET left_at = now() WHERE id = %s", (mentor_id,))
    run("resync", "M4711")
    facts.connection.execute("DELETE FROM mentors WHERE id = %s", (mentor_id,))
    run("run")

    assert (exported["mentor"]["full_name"], exported["mentor"]["email"]) == (NAME, ADDRESS)
    assert all(exported[part] for part in ("certificates", "pauses", "reminders", "portal"))
    assert portal.visible == {contact_id: False}
    for (table,) in facts.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'certjob'"):
        words = "|".join([NAME, ADDRESS, "M4711", str(mentor_id)])
        assert facts.rows(f"SELECT FROM {table} AS t WHERE t::text ~ %s", words) == [], table
