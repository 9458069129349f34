"""The whole job as its users meet it: the installed command, a file from strangers, real servers on loopback."""

import csv
import json
import subprocess
from collections import Counter
from datetime import timedelta
from mailbox import Maildir
from pathlib import Path
from uuid import UUID

from tests.conftest import Certjob, installed_command
from tests.support.command_line import today
from tests.support.docs import read_examples, read_section
from tests.support.facts import Facts
from tests.support.portal_server import PortalServer

HEADER = "organisation;member_no;full_name;email;dynamics_contact_id;kind;issued_on;expires_on"


def people(number: int) -> tuple[bytes, Counter[str]]:
    """A file about so many mentors as people send it, and how many of its rows have which mess."""
    lines, messes = [HEADER], Counter[str]()
    names = ["Kari Nordmann", "Øystein Åsen", "Nguyễn Thị Hà", "علي حسن", "Ola «Ola» [bold]", '"Two\nlines"', "李小龍"]
    for index in range(number):
        # Most are in force for long; a few expired lately, fewer than the guard's tenth.
        days = {1: -5, 5: 3, 6: 20, 7: 45}.get(index % 50, 700)
        expires_on = today() + timedelta(days=days)
        row = [
            "hlf" if index % 2 else "nhf",
            f"M{index:05}",
            names[index % len(names)],
            f"m{index}@example.org",
            str(UUID(int=index + 1)),
            '"likeperson"' if index % 7 else "likeperson",
            f"{expires_on - timedelta(days=730):%d.%m.%Y}",
            expires_on.isoformat(),
        ]
        match index % 199:
            case 1:
                row[7] = "31.02.2026"
                messes["bad date"] += 1
            case 2:
                row[0] = "nobody"
                messes["unknown organisation"] += 1
            case 3:
                lines += [";".join(row), "", ";;;;;;;"]
                messes["repeated"] += 1
        lines.append(";".join(row))
    return b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n", messes


def test_hundreds_of_mentors_from_a_messy_file_to_a_quiet_second_night(
    certjob: Certjob, tmp_path: Path, facts: Facts
) -> None:
    """organisation set, load, dry run, run: the plan's numbers are the night's, and a second run does nothing."""
    written, messes = people(600)
    file = tmp_path / "people.csv"
    file.write_bytes(written)
    maildir = tmp_path / "mail"
    bad = messes["bad date"] + messes["unknown organisation"]
    with PortalServer() as portal:
        settings = {
            "CERTJOB_PORTAL_URL": portal.url,
            "CERTJOB_PORTAL_KEY": portal.key,
            "CERTJOB_NOTIFY_URL": f"maildir:{maildir}",
        }
        for slug, has_portal in (("hlf", "dynamics"), ("nhf", "none")):
            assert certjob("organisation", "set", slug, "--portal", has_portal).returncode == 0

        load = certjob("load", str(file), "--json", "--rejects", str(tmp_path / "rejects.csv"))
        plan = certjob("run", "--dry-run", "--json", **settings)
        night = certjob("run", "--json", **settings)
        again = certjob("run", "--json", **settings)
        once_more = certjob("load", str(file), "--json")

    loaded = json.loads(load.stdout)
    assert load.returncode == 3
    assert (loaded["rejected"], loaded["repeated"]) == (bad, messes["repeated"])
    assert loaded["certificates_added"] == 600 - bad
    with (tmp_path / "rejects.csv").open(encoding="utf-8-sig", newline="") as rejects:
        assert len(list(csv.reader(rejects, delimiter=";"))) == bad + 1
    planned, done, second = (json.loads(command.stdout) for command in (plan, night, again))
    assert (plan.returncode, night.returncode, again.returncode) == (0, 0, 0), night.stderr
    for part in ("mentors", "certificates"):
        assert planned[part] == done[part]
    assert planned["reminders"]["queued"] == done["reminders"]["queued"] == done["reminders"]["sent"]
    assert planned["portal"]["queued"] == done["portal"]["queued"] == done["portal"]["delivered"] > 0
    assert done["mentors"]["reviewed"] == 600 - bad
    assert len(Maildir(maildir)) == done["reminders"]["sent"]
    assert list(portal.visible.values()) == [False] * done["portal"]["delivered"]
    assert second["mentors"]["reviewed"] == second["reminders"]["sent"] == second["portal"]["delivered"] == 0
    assert json.loads(once_more.stdout)["unchanged"] == 600 - bad
    assert facts.rows("SELECT count(*) FROM mentors WHERE review_on <= %s", today()) == [(0,)]


def test_the_five_minute_tour_of_the_readme(
    bare_environment: dict[str, str], tmp_path: Path, database_url: str
) -> None:
    """The commands of the tour, word by word, in a shell; only the database is the test's."""
    tour = read_section("README.md", "Five minutes")
    set_up = tour.partition("    $ ")[0]
    commands = [example.command for example in read_examples(tour)]
    script = "\n".join([line[4:] for line in set_up.splitlines() if line.startswith("    ")] + commands)
    script = script.replace('"$PWD/.venv/bin:$PATH"', f'"{installed_command().parent}:$PATH"')
    script = script.replace("CERTJOB_DATABASE_URL=embedded", f"CERTJOB_DATABASE_URL='{database_url}'")

    ended = subprocess.run(
        ["/bin/sh", "-c", script], env=bare_environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 3, ended.stderr
    assert "hlf M1001: certificates: expired; pause: open" in ended.stdout
    assert "Dynamics sync pending — mentor may still be visible on portal" in ended.stdout
    assert "Traceback" not in ended.stderr
