"""Mail through Debian's Exim. Without Exim the tests are skipped."""

import contextlib
import email
import email.policy
import json
import os
import pwd
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.conftest import Certjob
from tests.mail.channels import smtp_channel
from tests.mail.conftest import Mailing
from tests.mail.written import MESSAGE
from tests.support.blocking import Blocking
from tests.support.command_line import today
from tests.support.facts import TODAY
from tests.support.smtp_server import CERTIFICATE, HOST, client_tls
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


pytestmark = pytest.mark.real_mail_server

CREDENTIALS: dict[str, Any] = {"user": LOGIN[0], "password": SecretStr(LOGIN[1]), "tls": client_tls()}


@pytest.fixture(scope="module")
def server() -> Iterator[Exim]:
    """One server for all tests of a worker."""
    if not PROGRAM.exists():
        pytest.skip(MISSING)
    with running_exim() as server:
        yield server


def arrived(server: Exim, count: int) -> list[EmailMessage]:
    """Wait for so many messages, and return all messages in the Maildir by recipient."""
    messages = [email.message_from_bytes(data, policy=email.policy.default) for data in server.delivered(count)]
    return sorted(messages, key=lambda message: str(message["Envelope-to"]))


def test_messages_arrive_whole_after_a_login(server: Exim) -> None:
    """With lines that begin with a dot, and letters before the @. The connection is renewed."""
    with Blocking(smtp_channel(server.port, messages_per_connection=2, **CREDENTIALS)) as channel:
        channel.probe()  # without a message
        for to in (MESSAGE.to, "pål@example.org", "x@example.org"):
            channel.send(replace(MESSAGE, to=to))

    first, paal, _ = messages = arrived(server, 3)
    assert (first["Envelope-to"], paal["To"]) == (MESSAGE.to, "pål@example.org")
    assert (first["Subject"], first["Message-ID"]) == (MESSAGE.subject, "<certjob-reminder-4711-0@hlf.example>")
    assert [part.get_content() for part in first.iter_parts()] == [MESSAGE.text, MESSAGE.html]
    assert all("esmtpsa" in str(message["Received"]) for message in messages)  # s for TLS, a for login (RFC 3848)


def test_returned_mail_goes_to_the_corrected_address(server: Exim, here: Certjob, mailing: Mailing) -> None:
    """Exim accepts it, does not know the recipient, and reports this to the envelope sender.

    Its 5.0.0 does not say that the address is wrong. So certjob sends the mail again, and it is an alert after a day.
    """
    mailing.certified(until=(today() - TODAY).days + 5, email="unknown@example.org")
    settings = {
        "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{server.port}",
        "CERTJOB_MAIL_FROM": "post@example.org",
        "CERTJOB_BOUNCE_ADDRESS": "bounces@example.org",
    }
    assert here("run", **settings).returncode == 0
    (report,) = arrived(server, 1)

    read = here("bounces", "--json", given=bytes(report))

    assert report["Envelope-to"] == "bounces@example.org"
    assert json.loads(read.stdout)["report"] == "bounced", report
    assert here("alerts").returncode == 0
    earlier = "queued_at = now() - interval '26 hours', deferred_since = now() - interval '25 hours'"
    mailing.execute(f"UPDATE cert_notification_log SET {earlier}")
    alerts = here("alerts")
    assert alerts.returncode == 3
    assert "the mail came back (5.0.0)" in alerts.stdout
    mailing.execute("UPDATE mentors SET email = 'kari.n@example.org'")
    here("alerts", "--retry-all")  # otherwise in a day
    assert here("deliver", **settings).returncode == 0
    assert [message["Envelope-to"] for message in arrived(server, 1)] == ["kari.n@example.org"]
