"""Debian's own cron daemon for a test, in a mount namespace where it sees only the test's crontabs and mails nobody.

    with CronDaemon(folder) as cron:
        cron.install("ola", crontab)
        cron.start()
        cron.wait_for_the_minute()
        assert cron.mails("ola") == []

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
from types import TracebackType
from typing import Self

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
    """The daemon, from its start, shortly before a full minute, to its end; a context manager."""

    def __init__(self, folder: Path) -> None:
        """``folder`` is empty, and the test's own."""
        self.folder = folder
        self._users: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        # cron looks at its table at each full minute; a few seconds are for the start.
        self.minute = (datetime.now().astimezone() + timedelta(seconds=4)).replace(second=0, microsecond=0)
        self.minute += timedelta(minutes=1)
        """When the jobs run, by the machine's own clock."""

    def __enter__(self) -> Self:
        for name in ("spool/crontabs", "cron.d", "run", "mail"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "crontab").touch()
        (self.folder / "pam").write_text(_PAM)
        sendmail = self.folder / "sendmail"
        sendmail.write_text(f'#!/bin/sh\nexec cat > "{self.folder}/mail/$$"\n')
        sendmail.chmod(0o755)
        shutil.copy(CRON, self.folder / "daemon")  # so that it can be told from the machine's own
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)

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

    def start(self) -> None:
        """Start it with what is installed; the jobs run at ``minute``."""
        others = [
            line for line in Path("/etc/passwd").read_text().splitlines() if line.split(":")[0] not in self._users
        ]
        ours = [f"{user}:x:0:0::{self.home(user)}:/bin/sh" for user in self._users]
        (self.folder / "passwd").write_text("\n".join([*others, *ours, ""]))
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
        self._process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                f"{binds} && exec '{self.folder}/daemon' -f",
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )

    def wait_for_the_minute(self) -> None:
        """Return once the jobs of the minute have begun and all of them have ended, with their mails handed over."""
        process = self._process
        assert process is not None
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
        found = []
        for path in sorted((self.folder / "mail").iterdir()):
            message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
            assert isinstance(message, EmailMessage)
            if message["Subject"].startswith(f"Cron <{user}@"):
                found.append(message)
        return found


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
