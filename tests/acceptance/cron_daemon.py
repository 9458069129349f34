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
from collections.abc import Sequence
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
        self.minute = (datetime.now().astimezone() + timedelta(seconds=64)).replace(second=0, microsecond=0)
        """When the jobs run, by the machine's own clock."""
        for name in ("spool/crontabs", "cron.d", "run", "mail"):
            (folder / name).mkdir(parents=True)
        (folder / "crontab").touch()
        (folder / "pam").write_text(_PAM)
        (folder / "sendmail").write_text(f'#!/bin/sh\nexec cat > "{folder}/mail/$$"\n')
        (folder / "sendmail").chmod(0o755)
        shutil.copy(CRON, folder / "daemon")  # so that it can be told from the machine's own

    def install(self, user: str, crontab: str) -> Path:
        """Make a user (root under another name) with this crontab, before the start; return $HOME of their jobs."""
        home = self.folder / "home" / user
        home.mkdir(parents=True)
        table = self.folder / "spool" / "crontabs" / user
        table.write_text(crontab)
        table.chmod(0o600)
        self._users.append(f"{user}:x:0:0::{home}:/bin/sh\n")
        return home

    def run_the_minute(self) -> None:
        """Start it, and end it once the jobs of the minute have ended and their mails are handed over."""
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


def moved_to(minute: datetime, crontab: str, commands: str, *, folder: Path) -> str:
    """The crontab as it is installed here, the jobs of this pattern at that minute and the others half a day later."""

    def move(job: re.Match[str]) -> str:
        when = minute if re.fullmatch(commands, job[2]) else minute + timedelta(hours=12)
        return f"{when.minute} {when.hour} * * *    {job[1].replace('/opt/certjob/bin', str(folder))}"

    return re.sub(r"^(?:[\d*/,-]+\s+){5}(.*/certjob (.+) --env-file .*)$", move, crontab, flags=re.MULTILINE)


def jobs(crontab: str) -> Sequence[tuple[str, str]]:
    """(times, what certjob is told) of each job, those to uncomment too."""
    return re.findall(r"^(?:# )?((?:[\d*/,-]+\s+){5}).*/certjob (.+) --env-file .*$", crontab, flags=re.MULTILINE)
