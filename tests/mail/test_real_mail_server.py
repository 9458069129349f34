"""Mail through Debian's Exim. Without Exim the tests are skipped."""

import email
import email.policy
import json
from collections.abc import Iterator
from dataclasses import replace
from email.message import EmailMessage
from typing import Any

import pytest
from pydantic import SecretStr

from tests.conftest import Certjob
from tests.mail.channels import smtp_channel
from tests.mail.conftest import Mailing
from tests.mail.exim import LOGIN, MISSING, PROGRAM, Exim, running_exim
from tests.mail.written import MESSAGE
from tests.support.blocking import Blocking
from tests.support.command_line import today
from tests.support.facts import TODAY
from tests.support.smtp_server import client_tls

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
