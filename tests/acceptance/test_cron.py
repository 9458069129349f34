"""The jobs as they are installed: crontab.example under Debian's own cron, and the same as systemd units."""

import re
import shutil
import subprocess
from datetime import UTC, date, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from certjob import database
from certjob.database import migrations
from tests.conftest import Certjob, installed_command
from tests.support.cron_daemon import CronDaemon, jobs, missing, moved_to
from tests.support.docs import read_section
from tests.support.facts import Facts
from tests.support.nights import FlakyPortal, night
from tests.support.portal_server import PortalServer

ROOT = Path(__file__).parents[2]
EXAMPLE = (ROOT / "crontab.example").read_text()
UNITS = ROOT / "docs/systemd"


def units() -> dict[str, str]:
    """The systemd files, by their paths below /etc/systemd/system."""
    return {str(path.relative_to(UNITS)): path.read_text() for path in UNITS.rglob("*") if path.is_file()}


class TestExample:
    """What is in it, before anybody installs it."""

    def test_it_has_the_night_the_deliveries_and_what_one_may_uncomment(self) -> None:
        """At these times."""
        assert [(times.split(), command) for times, command in jobs(EXAMPLE)] == [
            (["10", "3", "*", "*", "*"], "run"),
            (["*/15", "*", "*", "*", "*"], "deliver"),
            (["40", "4", "*", "*", "*"], "reconcile"),
            (["40", "6-22", "*", "*", "*"], "run"),
            (["20", "5", "1", "*", "*"], "db prune --older-than 3y"),
        ]

    def test_no_line_of_a_job_has_a_percent_sign(self) -> None:
        """cron makes a line break of it."""
        assert not any("%" in line for line in EXAMPLE.splitlines() if "bin/certjob" in line)


@pytest.mark.real_cron
def test_debians_cron_runs_the_example_silently_and_mails_a_line_about_trouble(
    database_url: str, empty_database_url: str, facts: Facts, tmp_path: Path
) -> None:
    """The example as it stands, its times moved to the next minute, in the environment that cron gives.

    For the first user all is well, so it is for the second, whose portal somebody has edited; the third one's database
    cannot be reached, and the fourth forgot the file with the settings. All in one minute, so that it takes no more.
    """
    why_not = missing()
    if why_not:
        pytest.skip(f"the crontab was not tried with a real cron: {why_not}")
    facts.certified_mentor(facts.organisation(), date(2026, 1, 1))
    with database.connect(empty_database_url) as their_database:
        migrations.migrate(their_database)
        people = Facts(their_database)
        hidden = people.certified_mentor(people.organisation(), date(2026, 1, 1), contact_id=(edited := uuid4()))
        night(their_database, datetime.now(UTC).date(), portal=FlakyPortal())
    nightly, rest = ("run", "deliver"), ("reconcile",)
    with PortalServer(visible={edited: True}) as portal, CronDaemon(tmp_path / "cron") as cron:
        ways_out = (
            f"CERTJOB_PORTAL_URL='{portal.url}'\nCERTJOB_PORTAL_KEY='{portal.key}'\n"
            f"CERTJOB_NOTIFY_URL='maildir:{tmp_path}/mail'\n"
        )
        for user, commands, url in (
            ("nightly", nightly, database_url),
            ("edited", rest, empty_database_url),
            ("down", nightly, "postgresql://certjob@127.0.0.1:1/certjob"),
            ("forgot", nightly, None),
        ):
            crontab = moved_to(cron.minute, EXAMPLE, commands=commands, folder=installed_command().parent)
            cron.install(user, crontab)
            if url is not None:
                settings = cron.home(user) / "certjob.env"
                settings.touch(mode=0o600)
                settings.write_text(f"CERTJOB_DATABASE_URL='{url}'\n{ways_out}")
        cron.start()
        cron.wait_for_the_minute()

        assert [mail.as_string() for user in ("nightly", "edited") for mail in cron.mails(user)] == []
        runs = facts.rows("SELECT command, outcome FROM job_runs ORDER BY command")
        assert runs == [("deliver", "ok"), ("run", "ok")]
        assert facts.rows("SELECT status, visible FROM portal_sync_events") == [("delivered", False)]
        with database.connect(empty_database_url) as their_database:
            assert Facts(their_database).rows(
                "SELECT status, count(*) FROM portal_sync_events WHERE mentor_id = %s GROUP BY 1", hidden
            ) == [("delivered", 2)]
        for user, said in (
            ("down", r"certjob (run|deliver): the database cannot be reached: .*; check the host and port .*"),
            ("forgot", r"certjob (run|deliver): the settings file \S+/certjob\.env cannot be read: No such file .*"),
        ):
            mails = cron.mails(user)
            assert [mail["To"] for mail in mails] == ["drift@example.org"] * 2
            for mail in mails:
                assert re.fullmatch(said, mail.get_content().strip()), mail.get_content()


class TestUnits:
    """The systemd units under docs."""

    def test_certjob_is_installed_where_cron_and_systemd_look_for_it(self) -> None:
        """By the first step of "Going live"."""
        first_step = read_section("docs/install.md", "Going live").partition("2. **")[0]
        (folder,) = re.findall(r"python3 -m venv (\S+)", first_step)

        assert {*re.findall(r"([^\s=]+)/bin/certjob", EXAMPLE + "".join(units().values()))} == {folder}
        assert set(re.findall(r"(\S+)/bin/pip install", first_step)) == {folder}
        assert "~/certjob.env" in first_step
        assert "$HOME/certjob.env" in EXAMPLE

    def test_they_do_what_the_crontab_does_at_the_same_times(self) -> None:
        """One of them is not changed without the other."""
        when_each = {}
        for path, text in units().items():
            if path.endswith(".timer"):
                (when,) = re.findall(r"^OnCalendar=(.+)$", text, flags=re.MULTILINE)
                when_each[Path(path).stem] = when
        commands = {
            "certjob@run": "run",
            "certjob@deliver": "deliver",
            "certjob@reconcile": "reconcile",
        }
        template = units()["certjob@.service"]
        assert "ExecStart=/opt/certjob/bin/certjob %i --env-file %d/certjob.env" in template
        active = [(" ".join(times.split()), command) for times, command in jobs(EXAMPLE)][:3]
        as_calendar = {
            "10 3 * * *": "*-*-* 03:10:00 Europe/Oslo",
            "*/15 * * * *": "*:0/15",
            "40 4 * * *": "*-*-* 04:40:00 Europe/Oslo",
        }
        assert {commands[name]: when for name, when in when_each.items()} == {
            command: as_calendar[times] for times, command in active
        }

    def test_each_timer_makes_up_for_a_night_that_the_machine_was_off(self) -> None:
        """And each service ends, so that its exit status is seen."""
        found = units()
        timers = [text for path, text in found.items() if path.endswith(".timer")]
        assert len(timers) == 3
        assert all("Persistent=true" in text for text in timers)
        service = found["certjob@.service"]
        for line in ("Type=oneshot", "LoadCredential=", "ProtectSystem=strict", "NoNewPrivileges=true"):
            assert line in service

    def test_systemd_finds_nothing_wrong_with_them(self, tmp_path: Path) -> None:
        """`systemd-analyze verify`, and what it thinks of the hardening."""
        if shutil.which("systemd-analyze") is None:
            pytest.skip("the units were not verified: systemd-analyze is not installed (apt-get install systemd)")
        for path, text in units().items():
            file = tmp_path / path
            file.parent.mkdir(exist_ok=True)
            file.write_text(text.replace("/opt/certjob/bin/certjob", str(installed_command())))
        names = ["certjob@run", "certjob@deliver", "certjob@reconcile"]
        for name in names:
            (tmp_path / f"{name}.service").symlink_to("certjob@.service")

        verified = subprocess.run(
            [
                "systemd-analyze",
                "verify",
                "--man=no",
                *(f"{tmp_path}/{n}.{kind}" for n in names for kind in ("service", "timer")),
            ],
            capture_output=True,
            text=True,
            check=False,
            env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "PATH": "/usr/bin:/bin"},
        )

        assert (verified.returncode, verified.stderr) == (0, "")

    def test_the_line_of_the_service_reads_the_secrets_and_runs_certjob(
        self, certjob: Certjob, database_url: str, tmp_path: Path
    ) -> None:
        """As systemd would start it: the credential is a file of its own, in a folder that only this service sees."""
        (line,) = re.findall(r"^ExecStart=(.+)$", units()["certjob@.service"], flags=re.MULTILINE)
        (tmp_path / "certjob.env").write_text(f"CERTJOB_DATABASE_URL='{database_url}'\n")
        line = (
            line.replace("%d", str(tmp_path))
            .replace("%i", "db status")
            .replace("/opt/certjob/bin", str(installed_command().parent))
        )

        result = subprocess.run(
            ["/bin/sh", "-c", f"exec {line}"],
            env={"PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

        assert (result.returncode, result.stderr) == (0, ""), result
        assert "0001_facts" in result.stdout
