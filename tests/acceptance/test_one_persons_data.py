"""What docs/runbook.md promises to a person who asks for their data, or to be erased, played through the command."""

import json
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from tests.conftest import Certjob
from tests.support.command_line import Finished, today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

NAME, ADDRESS = "Åse Ødegård", "ase@oedegaard.example"


def places(facts: Facts, *words: str) -> list[str]:
    """The tables in which one of these words stands anywhere."""
    tables = facts.rows(
        "SELECT table_name FROM information_schema.tables"
        " WHERE table_schema = 'public' AND table_type = 'BASE TABLE' ORDER BY table_name"
    )
    return [
        str(table)
        for (table,) in tables
        if facts.rows(f"SELECT FROM {table} AS t WHERE t::text ~ %s LIMIT 1", "|".join(words))
    ]


def test_a_person_gets_their_data_and_is_erased(certjob: Certjob, facts: Facts, tmp_path: Path) -> None:
    """explain --json has all; after left_at, a resync and a DELETE no table names the person, and the portal hides."""
    organisation_id = facts.organisation()
    facts.rows(
        "INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'ola@hlf.example') RETURNING id",
        organisation_id,
    )
    mentor_id = facts.mentor(organisation_id, member_no="M4711", full_name=NAME, email=ADDRESS)
    facts.certificate(mentor_id, today() + timedelta(days=7))
    facts.pause(mentor_id, reason="illness", actor="eva")
    with PortalServer() as portal:
        settings = {
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_PORTAL_KEY": portal.key,
            "CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'mail'}",
        }

        def run(*words: str) -> Finished:
            result = certjob(*words, **settings)
            assert result.returncode == 0, result
            return result

        run("run")
        exported = json.loads(run("explain", "M4711", "--json").stdout)
        assert (exported["mentor"]["full_name"], exported["mentor"]["email"]) == (NAME, ADDRESS)
        assert all(exported[part] for part in ("certificates", "pauses", "reminders", "portal"))

        facts.rows("UPDATE mentors SET left_at = now() WHERE id = %s RETURNING id", mentor_id)
        run("resync", "M4711")
        contact_id = UUID(str(facts.rows("SELECT dynamics_contact_id FROM mentors")[0][0]))
        facts.rows("DELETE FROM mentors WHERE id = %s RETURNING id", mentor_id)
        run("run")

    assert portal.visible[contact_id] is False
    assert places(facts, NAME, ADDRESS, "M4711", str(mentor_id)) == []
