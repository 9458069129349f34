"""The whole job: the installed command, a messy file, and real servers on loopback."""

import json
from datetime import timedelta
from mailbox import Maildir
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

HEADER = "organisation;member_no;full_name;email;dynamics_contact_id;kind;issued_on;expires_on"
NAMES = ["Kari Nordmann", "Øystein Åsen", "Nguyễn Thị Hà", "علي حسن", "Ola «Ola» [bold]", '"Two\nlines"', "李小龍"]
PEOPLE, BAD, REPEATED = 298, 4, 2


def people() -> bytes:
    """Return a file of mentors with two wrong dates, two unknown organisations and two repeated rows."""
    lines = [HEADER]
    for index in range(PEOPLE):
        # Most certificates end in years. A few have expired, but too few for the guard to hold them.
        expires_on = today() + timedelta(days={1: -5, 5: 3, 6: 20, 7: 45}.get(index % 50, 700))
        issued_on = f"{expires_on - timedelta(days=730):%d.%m.%Y}"
        mess = index % 149
        kind = '"likeperson"' if index % 7 else "likeperson"
        who = "nobody" if mess == 2 else "hlf" if index % 2 else "nhf"
        person = f"{who};M{index:05};{NAMES[index % len(NAMES)]};m{index}@example.org;{UUID(int=index + 1)}"
        row = f"{person};{kind};{issued_on};{'31.02.2026' if mess == 1 else expires_on.isoformat()}"
        lines += [row, "", ";;;;;;;", row] if mess == 3 else [row]
    return b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n"


def test_first_run_does_its_plan_and_the_second_run_nothing(
    certjob: Certjob, delivery_settings: dict[str, str], facts: Facts, portal: PortalServer, tmp_path: Path
) -> None:
    """organisation set, load, dry run, two runs, and the same file again."""
    (tmp_path / "people.csv").write_bytes(people())

    def run(line: str, code: int = 0) -> Any:
        finished = certjob(*line.split(), "--json", **delivery_settings)
        assert finished.returncode == code, finished.stderr
        return json.loads(finished.stdout)

    run("organisation set hlf --portal dynamics")
    run("organisation set nhf --portal none")
    loaded = run("load people.csv", 3)
    planned, done, second = run("run --dry-run"), run("run"), run("run")
    once_more = run("load people.csv", 3)

    assert (loaded["rows"], loaded["skipped"], loaded["certificates_added"]) == (PEOPLE + REPEATED, BAD, PEOPLE - BAD)
    assert once_more["certificates_added"] == once_more["certificates_changed"] == once_more["mentors_changed"] == 0
    assert (planned["mentors"], planned["certificates"]) == (done["mentors"], done["certificates"])
    assert planned["reminders"]["queued"] == done["reminders"]["sent"] == len(Maildir(tmp_path / "mail")) > 0
    assert planned["portal"]["queued"] == done["portal"]["delivered"] == len(portal.visible) > 0
    certified = facts.rows("SELECT dynamics_contact_id FROM mentors WHERE portal_visible")
    assert {contact for contact, visible in portal.visible.items() if visible} == {row[0] for row in certified}
    assert done["mentors"]["reviewed"] == PEOPLE - BAD
    assert second["mentors"]["reviewed"] == second["reminders"]["sent"] == second["portal"]["delivered"] == 0
    assert facts.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", today()) == [(0,)]
