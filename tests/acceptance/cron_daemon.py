"""Debian's cron daemon in a mount namespace, where its crontabs, users, PAM file and mail program are the test's."""

import email
import email.policy
import os
import re
import shutil
import subprocess
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

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
