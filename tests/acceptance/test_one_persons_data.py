"""docs/runbook.md: how a person gets their data, and how it is erased."""

import json
from datetime import timedelta
from uuid import uuid4

from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

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
