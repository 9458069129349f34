"""The examples for cron, systemd and Kubernetes start the same jobs, and the watch reports a missing run."""

import re
import shutil
import subprocess
from datetime import date
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml

from tests.acceptance.cron_daemon import CronDaemon, jobs, missing, moved_to
from tests.conftest import Certjob, installed_command
from tests.support.command_line import commands
from tests.support.docs import ROOT, read, read_section
from tests.support.facts import Facts

EXAMPLE = read("crontab.example")
FOLDER = ROOT / "docs/examples/systemd"
UNITS = {path.name: path.read_text() for path in FOLDER.rglob("*") if path.is_file()}
SERVICE = UNITS["certjob@.service"]
ACTIVE = {
    "run": ("10 3,4,5 * * *", "*-*-* 03,04,05:10:00 Europe/Oslo"),
    "deliver": ("*/15 * * * *", "*:0/15"),
    "reconcile": ("40 4 * * *", "*-*-* 04:40:00 Europe/Oslo"),
}
"""The times of each job, as cron and systemd write them."""
JOBS = {
    job["metadata"]["name"].removeprefix("certjob-"): job
    for job in yaml.safe_load_all(read("docs/examples/kubernetes.yaml"))
}


def test_crontab_and_timers_start_the_same_jobs_at_the_same_times() -> None:
    """They find certjob where docs/install.md installs it. A timer makes up for a time when the machine was off."""
    assert [(" ".join(times.split()), command) for times, command in jobs(EXAMPLE)] == [
        *((cron, command) for command, (cron, _) in ACTIVE.items()),
        ("40 6-22 * * *", "run"),
        ("20 5 1 * *", "db prune --older-than 3y"),
    ]
    assert not any("%" in line for line in EXAMPLE.splitlines() if "bin/certjob" in line), "cron breaks the line there"
    for command, (_, calendar) in ACTIVE.items():
        timer = UNITS[f"certjob@{command}.timer"]
        assert ("Persistent=true" in timer, re.findall(r"^OnCalendar=(.+)$", timer, re.MULTILINE)) == (True, [calendar])
    assert sum(name.endswith(".timer") for name in UNITS) == len(ACTIVE)
    for line in ("Type=oneshot", "LoadCredential=", "ProtectSystem=strict", "NoNewPrivileges=true"):
        assert line in SERVICE
    assert "python3 -m venv /opt/certjob\n" in read_section("docs/install.md", "Going live")
    assert {*re.findall(r"([^\s=]+)/bin/certjob", EXAMPLE + "".join(UNITS.values()))} == {"/opt/certjob"}


def test_each_job_has_the_same_time_limit_in_every_scheduler() -> None:
    """Only a limit from outside ends a command whose database stalls behind a proxy."""
    limits = {command: f"docs/examples/systemd/certjob@{command}.service.d/limit.conf" for command in JOBS}
    limits["run"] = "docs/examples/systemd/certjob@.service"

    in_cron = re.findall(r"^[^#].* timeout -k 30 (\d+)m \S+/certjob (\w+) ", EXAMPLE, re.MULTILINE)
    in_systemd = {
        command: re.findall(r"^TimeoutStartSec=(\d+)min$", read(file), re.MULTILINE) for command, file in limits.items()
    }
    in_kubernetes = {
        command: job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] / 60 for command, job in JOBS.items()
    }

    assert in_kubernetes == {"run": 55, "deliver": 14, "reconcile": 30}
    assert in_systemd == {command: [f"{minutes:.0f}"] for command, minutes in in_kubernetes.items()}
    assert {command: [minutes] for minutes, command in in_cron} == in_systemd
    assert "TimeoutStopSec=30s" in SERVICE


@pytest.mark.parametrize("command", ACTIVE)
def test_kubernetes_starts_each_job_once_at_the_time_of_cron(command: str) -> None:
    """Kubernetes starts no second pod and no retry, because exit code 3 asks a person to act."""
    spec = JOBS[command]["spec"]
    job = spec["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]

    assert (spec["schedule"], ZoneInfo(spec["timeZone"]).key) == (ACTIVE[command][0], "Europe/Oslo")
    assert (spec["concurrencyPolicy"], job["backoffLimit"], pod["restartPolicy"]) == ("Forbid", 0, "Never")
    assert f"certjob {' '.join(container['args'])}" in commands()
    assert container["envFrom"] == [{"secretRef": {"name": "certjob"}}]


@pytest.mark.real_cron
def test_cron_mails_only_about_a_job_that_fails(
    ways_out: dict[str, str], database_url: str, facts: Facts, tmp_path: Path
) -> None:
    """crontab.example for three users: one is fine, one has an unreachable database, and one has no settings file."""
    why_not = missing()
    if why_not:
        pytest.skip(why_not)
    facts.certified_mentor(facts.organisation(), date(2026, 1, 1))
    urls = {"nightly": database_url, "down": "postgresql://certjob@127.0.0.1:1/certjob", "forgot": None}
    cron = CronDaemon(tmp_path / "cron")
    for user, url in urls.items():
        home = cron.install(user, moved_to(cron.minute, EXAMPLE, "run|deliver", folder=installed_command().parent))
        if url is not None:
            settings = {"CERTJOB_DATABASE_URL": url} | ways_out
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
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "certjob@.service").write_text(SERVICE.replace("/opt/certjob/bin/certjob", str(installed_command())))
    for command in ACTIVE:
        (tmp_path / f"certjob@{command}.service").symlink_to("certjob@.service")
    files = [f"{tmp_path}/certjob@{command}.{kind}" for command in ACTIVE for kind in ("service", "timer")]

    verify, path = ["systemd-analyze", "verify", "--man=no"], {"PATH": "/usr/bin:/bin"}
    environment = path | {"SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    verified = subprocess.run([*verify, *files], capture_output=True, text=True, check=False, env=environment)

    assert (verified.returncode, verified.stderr) == (0, "")


def test_watch_reports_an_overdue_run(facts: Facts, here: Certjob) -> None:
    """A run of one organisation and a failed run do not count."""
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
