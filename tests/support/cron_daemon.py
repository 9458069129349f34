"""Debian's own cron daemon for a test, in a mount namespace where it sees only the test's crontabs and mails nobody.

The daemon is the installed one; its crontabs, user database, mail program and PID file are the test's, bound over the
machine's in a namespace of the daemon's own. Its PAM set-up is a short one: a container has no login uid.
"""

import email
import email.policy
import os
import re
import shutil
import subprocess
from collections.abc import Collection, Sequence
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


def missing() -> str | None:
    """Why the daemon cannot be run here, in a sentence; None if it can."""
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
        """``folder`` is the test's own, and does not exist."""
        self.folder = folder
        self._users: list[str] = []
        # cron looks at its table at each full minute; a few seconds are for the start.
        self.minute = (datetime.now().astimezone() + timedelta(seconds=4)).replace(second=0, microsecond=0)
        self.minute += timedelta(minutes=1)
        """When the jobs run, by the machine's own clock."""
        for name in ("spool/crontabs", "cron.d", "run", "mail"):
            (folder / name).mkdir(parents=True)
        (folder / "crontab").touch()
        (folder / "pam").write_text(_PAM)
        sendmail = folder / "sendmail"
        sendmail.write_text(f'#!/bin/sh\nexec cat > "{folder}/mail/$$"\n')
        sendmail.chmod(0o755)
        shutil.copy(CRON, folder / "daemon")  # so that it can be told from the machine's own

    def home(self, user: str) -> Path:
        """What $HOME is for this user's jobs."""
        return self.folder / "home" / user

    def install(self, user: str, crontab: str) -> None:
        """Make a user (root under another name) with a home and this crontab; before the start."""
        self.home(user).mkdir(parents=True)
        table = self.folder / "spool" / "crontabs" / user
        table.write_text(crontab)
        table.chmod(0o600)
        self._users.append(user)

    def run_the_minute(self) -> None:
        """Start it, and end it once the jobs of the minute have ended and their mails are handed over."""
        passwd = Path("/etc/passwd").read_text().splitlines()
        users = [line for line in passwd if line.split(":")[0] not in self._users]
        users += [f"{user}:x:0:0::{self.home(user)}:/bin/sh" for user in self._users]
        (self.folder / "passwd").write_text("\n".join([*users, ""]))
        bound = {
            "spool": "/var/spool/cron",
            "cron.d": "/etc/cron.d",
            "crontab": "/etc/crontab",
            "passwd": "/etc/passwd",
            "pam": "/etc/pam.d/cron",
            "sendmail": str(SENDMAIL.resolve()),
            "run": str(Path("/var/run").resolve()),
        }
        binds = " && ".join(f"mount --bind '{self.folder / ours}' {theirs}" for ours, theirs in bound.items())
        script = f"{binds} && exec '{self.folder}/daemon' -f"
        with subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        ) as process:
            try:
                self._wait_for_the_minute(process)
            finally:
                process.terminate()

    def _wait_for_the_minute(self, process: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def alive() -> bool:
            assert process.poll() is None, "the daemon ended by itself"
            return True

        # Before it becomes the daemon it is a shell, whose children bind all that.
        until(lambda: alive() and Path(f"/proc/{process.pid}/exe").readlink().name == "daemon")
        seconds = (self.minute - datetime.now().astimezone()).total_seconds()
        until(lambda: alive() and children.read_text().split(), seconds=max(seconds, 0) + 10)
        until(lambda: alive() and not children.read_text().split(), seconds=60)

    def mails(self, user: str) -> list[EmailMessage]:
        """What cron has mailed about this user's jobs."""
        paths = sorted((self.folder / "mail").iterdir())
        found = [email.message_from_bytes(path.read_bytes(), policy=email.policy.default) for path in paths]
        return [mail for mail in found if mail["Subject"].startswith(f"Cron <{user}@")]


def moved_to(minute: datetime, crontab: str, *, commands: Collection[str], folder: Path) -> str:
    """The crontab as it is installed here, those jobs at that minute and the others half a day later."""
    lines = []
    for line in crontab.splitlines():
        job = re.fullmatch(r"((?:[\d*/-]+\s+){5})(.*/certjob (.+) --env-file .*)", line)
        if job is None:
            lines.append(line)
            continue
        when = minute if job[3] in commands else minute + timedelta(hours=12)
        lines.append(f"{when.minute} {when.hour} * * *    {job[2].replace('/opt/certjob/bin', str(folder))}")
    return "\n".join([*lines, ""])


def jobs(crontab: str) -> Sequence[tuple[str, str]]:
    """(times, what certjob is told) of each job, those to uncomment too."""
    return re.findall(r"^(?:# )?((?:[\d*/-]+\s+){5}).*/certjob (.+) --env-file .*$", crontab, flags=re.MULTILINE)
