"""Debian's Exim as a mail server for tests, in a temporary folder and on loopback. It delivers into a Maildir."""

import contextlib
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.smtp_server import CERTIFICATE, HOST
from tests.support.waiting import until

PROGRAM = Path("/usr/sbin/exim4")

MISSING = (
    f"the tests with a real mail server were skipped, because Exim is not installed ({PROGRAM}); "
    "on Debian, run `apt-get install exim4-daemon-light`"
)

LOGIN = ("post", "blåbær-9")

_CONFIGURATION = r"""
primary_hostname = mail.example
spool_directory = FOLDER/spool
log_file_path = FOLDER/log/%slog
pid_file_path = FOLDER/exim.pid
exim_user = USER
exim_group = GROUP
never_users =
keep_environment =
host_lookup =
rfc1413_query_timeout = 0s
chunking_advertise_hosts =
local_interfaces = 127.0.0.1
daemon_smtp_ports = PORT
daemon_startup_retries = 0
tls_certificate = FOLDER/certificate.pem
tls_advertise_hosts = *
auth_advertise_hosts = *
smtputf8_advertise_hosts = *
message_size_limit = 1M
smtp_accept_queue_per_connection = 0
smtp_accept_max = 0
deliver_drop_privilege = true
acl_smtp_mail = yes
acl_smtp_rcpt = yes
acl_smtp_data = yes

begin acl
yes:
  accept

begin routers
unknown:
  driver = redirect
  local_parts = unknown
  allow_fail
  data = :fail: 550 5.1.1 unknown recipient
known:
  driver = accept
  transport = folder

begin transports
folder:
  driver = appendfile
  directory = FOLDER/mail
  maildir_format
  envelope_to_add
  user = USER
  group = GROUP

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_advertise_condition = ${if def:tls_in_cipher}
  server_condition = ${if and{{eq{$auth2}{LOGIN_USER}}{eq{$auth3}{LOGIN_PASSWORD}}}}
  server_set_id = $auth2
"""


class Exim:
    """A server that accepts mail for all recipients, but returns mail for ``unknown`` to its envelope sender."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        for name in ("spool", "log", "mail/new", "mail/cur", "mail/tmp"):
            (folder / name).mkdir(parents=True)
        shutil.copy(CERTIFICATE, folder / "certificate.pem")
        # Exim cannot deliver as root, because it drops root for a configuration that is not the installed one.
        self.user = pwd.getpwnam("Debian-exim") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        if os.geteuid() == 0:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.user.pw_uid, self.user.pw_gid)
        # Exim's macros. A name that contains another one must come before it.
        macros = {"PORT": self.port, "FOLDER": folder, "LOGIN_USER": LOGIN[0], "LOGIN_PASSWORD": LOGIN[1]}
        macros |= {"USER": self.user.pw_uid, "GROUP": self.user.pw_gid}
        definitions = "".join(f"{name} = {value}\n" for name, value in macros.items())
        (folder / "exim.conf").write_text(definitions + _CONFIGURATION)

    def delivered(self, count: int) -> list[bytes]:
        """Wait until the Maildir has so many messages. Return and remove them."""
        new = self.folder / "mail" / "new"
        until(lambda: len([*new.iterdir()]) >= count, seconds=40)
        paths = sorted(new.iterdir())
        found = [path.read_bytes() for path in paths]
        for path in paths:
            path.unlink()
        return found

    def listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=5) as probe:
            return bool(probe.recv(100))
        return False


def _free_port() -> int:
    """Return a free port that outgoing connections do not use."""
    while True:
        port = random.randint(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            return port


@contextmanager
def running_exim() -> Iterator[Exim]:
    """Run a server. Its folder is not in that of pytest, which only root can read."""
    with tempfile.TemporaryDirectory(prefix="certjob-exim-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Exim(folder)
        command, user = [str(PROGRAM), "-C", str(folder / "exim.conf"), "-bdf"], server.user
        with subprocess.Popen(command, user=user.pw_uid, group=user.pw_gid) as process:
            try:
                until(server.listens, seconds=40)
                yield server
            finally:
                process.terminate()
