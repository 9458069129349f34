"""The examples for cron, systemd and Kubernetes start the same jobs, and the watch reports a missing run."""

import email
import email.policy
import os
import re
import shutil
import subprocess
from datetime import date, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
import yaml

from tests.conftest import Certjob, installed_command
from tests.support.docs import ROOT, read, read_section
from tests.support.facts import Facts
from tests.support.waiting import until

CRON = Path("/usr/sbin/cron")
SENDMAIL = Path("/usr/sbin/sendmail")

_PAM = """\
auth sufficient pam_permit.so
account sufficient pam_permit.so
session required pam_env.so
session sufficient pam_permit.so
"""


def reason_to_skip() -> str | None:
    """Return why the daemon cannot run here, or None."""
    if not Path("/etc/debian_version").exists() or not CRON.exists():
        return "Debian's cron is not installed (apt-get install cron)"
    if not SENDMAIL.exists():
        return f"there is no {SENDMAIL} for the test's own to stand in for (apt-get install exim4)"
    if os.geteuid() != 0:
        return "cron runs jobs only as root, and this is another user"
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "this root may make no mount namespace (a container without SYS_ADMIN)"


class CronDaemon:
    """The daemon, to be started shortly before a full minute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._users: list[str] = []
        # The jobs run at a full minute, at least four seconds from now.
        self.minute = (datetime.now().astimezone() + timedelta(seconds=64)).replace(second=0, microsecond=0)
        for name in ("spool/crontabs", "cron.d", "run", "mail"):
            (folder / name).mkdir(parents=True)
        (folder / "crontab").touch()
        (folder / "pam").write_text(_PAM)
        (folder / "sendmail").write_text(f'#!/bin/sh\nexec cat > "{folder}/mail/$$"\n')
        (folder / "sendmail").chmod(0o755)
        shutil.copy(CRON, folder / "daemon")  # its name differs from that of the machine's daemon

    def install(self, user: str, crontab: str) -> Path:
        """Add a user, who is root, with this crontab; return their home folder."""
        home = self.folder / "home" / user
        home.mkdir(parents=True)
        table = self.folder / "spool" / "crontabs" / user
        table.write_text(crontab)
        table.chmod(0o600)
        self._users.append(f"{user}:x:0:0::{home}:/bin/sh\n")
        return home

    def run_the_minute(self) -> None:
        """Run the daemon until the jobs of the minute have ended."""
        (self.folder / "passwd").write_text(Path("/etc/passwd").read_text() + "".join(self._users))
        bound = {"spool": "/var/spool/cron", "cron.d": "/etc/cron.d", "crontab": "/etc/crontab"}
        bound |= {"passwd": "/etc/passwd", "pam": "/etc/pam.d/cron"}
        bound |= {"sendmail": str(SENDMAIL.resolve()), "run": str(Path("/var/run").resolve())}
        binds = " && ".join(f"mount --bind '{self.folder / ours}' {theirs}" for ours, theirs in bound.items())
        command = ["unshare", "--mount", "--propagation", "private"]
        command += ["sh", "-c", f"{binds} && exec '{self.folder}/daemon' -f"]
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=path) as process:
            try:
                self._wait_for_the_minute(process)
            finally:
                process.terminate()

    def _wait_for_the_minute(self, process: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def alive() -> bool:
            assert process.poll() is None, "the daemon has ended"
            return True

        # Before it is the daemon, the process is the shell that mounts.
        until(lambda: alive() and Path(f"/proc/{process.pid}/exe").readlink().name == "daemon")
        seconds = (self.minute - datetime.now().astimezone()).total_seconds()
        until(lambda: alive() and children.read_text().split(), seconds=max(seconds, 0) + 10)
        until(lambda: alive() and not children.read_text().split(), seconds=60)

    def mails(self, user: str) -> list[EmailMessage]:
        """Return cron's mails about this user's jobs."""
        paths = sorted((self.folder / "mail").iterdir())
        found = [email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in paths]
        return [mail for mail in found if mail["Subject"].startswith(f"Cron <{user}@")]


def move_jobs(crontab: str, commands: str, *, to: datetime, folder: Path) -> str:
    """Move the matching jobs to that minute and the others by half a day, and certjob to this folder."""

    def move(job: re.Match[str]) -> str:
        when = to if re.fullmatch(commands, job[2]) else to + timedelta(hours=12)
        return f"{when.minute} {when.hour} * * *    {job[1].replace('/opt/certjob/bin', str(folder))}"

    return re.sub(r"^(?:[\d*/,-]+\s+){5}(.*/certjob (.+) --env-file .*)$", move, crontab, flags=re.MULTILINE)


EXAMPLE = read("crontab.example")
UNITS = ROOT / "docs/examples/systemd"
SERVICE = (UNITS / "certjob@.service").read_text()


@pytest.mark.parametrize(
    ("command", "cron", "calendar", "minutes"),
    [
        ("run", "10 3,4,5 * * *", "*-*-* 03,04,05:10:00 Europe/Oslo", 55),
        ("deliver", "*/15 * * * *", "*:0/15", 14),
        ("reconcile", "40 4,5 * * *", "*-*-* 04,05:40:00 Europe/Oslo", 30),
    ],
)
def test_job_has_one_time_and_one_limit_in_every_scheduler(
    command: str, cron: str, calendar: str, minutes: int
) -> None:
    """cron, systemd and Kubernetes start it at the same time, and stop it if its database hangs behind a proxy.

    Kubernetes starts no second pod and no retry, because exit code 3 asks a person to act.
    """
    times = r"\s+".join(map(re.escape, cron.split()))
    assert re.search(rf"^{times}\s.* timeout -k 30 {minutes}m \S+/certjob {command} ", EXAMPLE, re.MULTILINE)

    timer = (UNITS / f"certjob@{command}.timer").read_text()
    limit = SERVICE if command == "run" else (UNITS / f"certjob@{command}.service.d/limit.conf").read_text()
    assert f"OnCalendar={calendar}\n" in timer
    assert "Persistent=true\n" in timer, "it makes up for a time when the machine was off"
    assert f"TimeoutStartSec={minutes}min\n" in limit

    documents = yaml.safe_load_all(read("docs/examples/kubernetes.yaml"))
    (spec,) = (each["spec"] for each in documents if each["metadata"]["name"] == f"certjob-{command}")
    job = spec["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    assert (spec["schedule"], spec["timeZone"]) == (cron, "Europe/Oslo")
    assert job["activeDeadlineSeconds"] == minutes * 60
    assert (spec["concurrencyPolicy"], job["backoffLimit"], pod["restartPolicy"]) == ("Forbid", 0, "Never")
    assert pod["containers"][0]["args"] == [command]


def test_schedulers_find_certjob_where_the_install_page_puts_it() -> None:
    assert "python3 -m venv /opt/certjob\n" in read_section("docs/install.md", "On your own server")
    assert {*re.findall(r"([^\s=]+)/bin/certjob", EXAMPLE + SERVICE)} == {"/opt/certjob"}
    assert not re.search(r"^[^#\n]*/certjob.*%", EXAMPLE, re.MULTILINE), "cron breaks the line at a %"


@pytest.mark.real_cron
def test_cron_mails_only_about_a_job_that_fails(
    delivery_settings: dict[str, str], database_url: str, facts: Facts, tmp_path: Path
) -> None:
    """crontab.example for three users: one is fine, one has an unreachable database, and one has no settings file."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    facts.certified_mentor(facts.organisation(), date(2026, 1, 1))
    urls = {"nightly": database_url, "down": "postgresql://certjob@127.0.0.1:1/certjob", "forgot": None}
    cron = CronDaemon(tmp_path / "cron")
    for user, url in urls.items():
        crontab = move_jobs(EXAMPLE, "run|deliver", to=cron.minute, folder=installed_command().parent)
        home = cron.install(user, crontab)
        if url is not None:
            settings = {"CERTJOB_DATABASE_URL": url} | delivery_settings
            (home / "certjob.env").touch(mode=0o600)
            (home / "certjob.env").write_text("".join(f"{name}='{value}'\n" for name, value in settings.items()))
    cron.run_the_minute()

    assert [mail.as_string() for mail in cron.mails("nightly")] == []
    runs = facts.rows("SELECT command, outcome FROM job_runs ORDER BY command")
    assert runs == [("deliver", "ok"), ("run", "ok")]
    assert facts.rows("SELECT status, visible FROM portal_sync_events") == [("delivered", False)]
    for user, said in (
        ("down", r"certjob (run|deliver): the database cannot be reached: .*; check the host and port .*"),
        ("forgot", r"certjob (run|deliver): the settings file \S+/certjob\.env cannot be read: No such file .*"),
    ):
        mails = cron.mails(user)
        assert [mail["To"] for mail in mails] == ["drift@example.org"] * 2
        for mail in mails:
            assert re.fullmatch(said, mail.get_content().strip()), mail.get_content()


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (apt-get install systemd)")
    shutil.copytree(UNITS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "certjob@.service").write_text(SERVICE.replace("/opt/certjob/bin/certjob", str(installed_command())))
    for timer in [*tmp_path.glob("*.timer")]:
        timer.with_suffix(".service").symlink_to("certjob@.service")

    files = [*tmp_path.glob("certjob@?*.timer"), *tmp_path.glob("certjob@?*.service")]
    environment = {"PATH": "/usr/bin:/bin", "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    verify = ["systemd-analyze", "verify", "--man=no", *map(str, files)]
    verified = subprocess.run(verify, capture_output=True, text=True, check=False, env=environment)

    assert (len(files), verified.returncode, verified.stderr) == (6, 0, "")


def test_watch_reports_an_overdue_run(facts: Facts, here: Certjob) -> None:
    """Not counted: a run of one organisation, a failed run, and a run with an end in the future (a wrong clock)."""
    watch = read("docs/examples/watch.sql")
    assert facts.rows(watch) == [("certjob has never finished a full run",)]
    facts.organisation(portal=None)

    assert here("run").returncode == 0
    assert facts.rows(watch) == []

    facts.connection.execute("UPDATE job_runs SET finished_at = now() - interval '27 hours'")
    here("run", "--organisation", "hlf")
    facts.connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version, finished_at, outcome)"
        " VALUES (gen_random_uuid(), 'run', current_date, 'host', '1', now(), 'failed'),"
        " (gen_random_uuid(), 'run', current_date, 'host', '1', now() + interval '1 hour', 'ok')"
    )
    ((problem,),) = facts.rows(watch)
    assert str(problem).startswith("the last full run of certjob that did its work ended at 20")
