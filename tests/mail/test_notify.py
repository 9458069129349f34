"""The channel that the settings ask for, and the two that are not mail servers."""

import json
import mailbox
import socket
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from certjob.domain.addresses import parse_sender
from certjob.errors import (
    ChannelDownError,
    ConfigurationError,
    NotifyError,
    OutcomeUnknownError,
    RecipientDeferredError,
    RecipientRefusedError,
)
from certjob.mail.channels.maildir import MaildirChannel
from certjob.mail.channels.notify import open_channel
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.channels.webhook import WebhookChannel
from certjob.mail.message import Channel, OutgoingMessage
from certjob.settings import Settings
from tests.support.channels import BlockingChannel, blocking
from tests.support.facts import TODAY
from tests.support.portal_answers import drip
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import HOST, Mailbox, real_server

MESSAGE = OutgoingMessage(
    to="kari.nordmann@example.org",
    subject="Sertifikatet går ut om 14 dager",
    text="Hei, Kari!\n",
    html="<h1>Hei, Kari!</h1>\n",
    idempotency_key="reminder-4711-0",
    locale="nb",
    kind="reminder",
    mentor_id=UUID("0b6c0000-0000-4000-8000-000000000001"),
    threshold_days=14,
    expires_on=TODAY,
    repeat=True,
)

SENDER = parse_sender("HLF <post@hlf.example>")

# The settings


def settings(url: str | None, **others: Any) -> Settings:
    """Settings with a channel; no file and no variable of the machine has a say in them."""
    return Settings(database_url=SecretStr("embedded"), notify_url=SecretStr(url) if url else None, **others)


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither an .env file nor variables."""
    monkeypatch.chdir(tmp_path)
    for name in ("NOTIFY_USER", "NOTIFY_PASSWORD", "MAIL_FROM"):
        monkeypatch.delenv(f"CERTJOB_{name}", raising=False)


def test_without_a_url_there_is_no_channel() -> None:
    """The mail stage then does not run."""
    assert open_channel(settings(None)) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.hlf.example", SmtpChannel),
        ("smtps://mail.hlf.example:4650", SmtpChannel),
        ("maildir:/var/mail/rehearsal", MaildirChannel),
        ("https://hooks.hlf.example/push", WebhookChannel),
        ("http://127.0.0.1:8080/push", WebhookChannel),
    ],
)
def test_the_scheme_chooses_the_channel(url: str, expected: type[object]) -> None:
    """Opening one talks to nobody yet."""
    channel = open_channel(settings(url, mail_from="post@hlf.example"))

    assert channel is not None
    assert type(channel) is expected


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("smtp://mail.hlf.example", 587),
        ("smtp://mail.hlf.example:2525", 2525),
        ("smtp://localhost", 25),
        ("smtp://[::1]", 25),
        ("smtps://mail.hlf.example", 465),
        ("smtps://localhost", 465),
    ],
)
def test_the_usual_ports(monkeypatch: pytest.MonkeyPatch, url: str, port: int) -> None:
    """Submission wants 587, implicit TLS 465, the mail server of this machine 25."""
    opened: list[int] = []
    monkeypatch.setattr("certjob.mail.channels.smtp.SmtpChannel.__init__", lambda *_, port, **__: opened.append(port))

    open_channel(settings(url, mail_from="post@hlf.example"))

    assert opened == [port]


def test_a_channel_from_settings_sends() -> None:
    """From the variables to a real mail server."""
    received = Mailbox()
    with real_server(received) as server:
        channel = open_channel(settings(f"smtp://{HOST}:{server.port}", mail_from="HLF <post@hlf.example>"))
        assert channel is not None
        with blocking(channel) as used:
            used.send(MESSAGE)

    assert received.envelopes[0].mail_from == "post@hlf.example"


@pytest.mark.parametrize(
    ("url", "others", "variable"),
    [
        ("smtp://mail.hlf.example", {"mail_from": "HLF"}, "CERTJOB_MAIL_FROM"),
        ("maildir:/var/mail", {"mail_from": "a@hlf.example, b@hlf.example"}, "CERTJOB_MAIL_FROM"),
        ("smtp://mail.hlf.example", {"mail_from": "a@b.example", "notify_user": "u"}, "CERTJOB_NOTIFY_PASSWORD"),
        ("smtp://mail.hlf.example", {"mail_from": "a@b.example", "notify_password": SecretStr("s3cret")}, "_USER"),
        ("maildir://var/mail", {}, "one slash"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(url: str, others: dict[str, Any], variable: str) -> None:
    """Before anything is sent, by the name of the variable, without its value."""
    with pytest.raises(ConfigurationError, match=variable) as caught:
        open_channel(settings(url, **others))

    assert "hlf" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_every_channel_ends_within_the_lease_of_mail(tmp_path: Path) -> None:
    """A message that cannot end before its lease of 15 minutes would never be begun."""
    channels: list[Channel] = [
        SmtpChannel("mail.hlf.example", port=587, sender=SENDER),
        MaildirChannel(tmp_path, sender=SENDER),
        WebhookChannel("https://hooks.hlf.example/push"),
    ]

    assert [channel.worst_case_seconds for channel in channels] == [725, 30, 30]


# The Maildir


@pytest.mark.parametrize("mode", [0o777, 0o707])
def test_a_maildir_in_which_others_can_put_a_folder_of_theirs_is_not_used(tmp_path: Path, mode: int) -> None:
    """They would read every message; a folder with the sticky bit above it, such as /tmp, will do."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    channel = MaildirChannel(tmp_path / "shared" / "mail", sender=SENDER)

    with blocking(channel) as blocked:
        for attempt in (blocked.probe, lambda: blocked.send(MESSAGE)):
            with pytest.raises(ChannelDownError, match="shared may be written by others"):
                attempt()
        (tmp_path / "shared").chmod(0o1777)
        blocked.send(MESSAGE)

    assert len(mailbox.Maildir(tmp_path / "shared" / "mail", create=False)) == 1


def test_a_maildir_holds_the_message(tmp_path: Path) -> None:
    """The folder is made, mail programs can read it, and nothing is left half done."""
    folder = tmp_path / "rehearsal" / "mail"
    channel = MaildirChannel(folder, sender=SENDER)

    with blocking(channel) as used:
        used.send(MESSAGE)
        used.send(replace(MESSAGE, to="pål@blåbær.example"))

    received = sorted(mailbox.Maildir(folder, create=False), key=lambda message: str(message["To"]))
    assert len(received) == 2
    assert received[0]["To"] == "kari.nordmann@example.org"
    assert received[0]["Message-ID"] == "<certjob-reminder-4711-0@hlf.example>"
    assert received[0]["From"] == "HLF <post@hlf.example>"
    assert list((folder / "tmp").iterdir()) == []
    assert all(part.stat().st_mode & 0o077 == 0 for part in folder.iterdir()), "nobody else can look in"


def test_a_maildir_of_the_settings_needs_no_sender(tmp_path: Path) -> None:
    """A rehearsal is one variable; a blank in its path is written as in any URL."""
    channel = open_channel(settings(f"maildir:{tmp_path}/my%20mail"))
    assert channel is not None

    with blocking(channel) as used:
        used.send(MESSAGE)

    assert len(list((tmp_path / "my mail" / "new").iterdir())) == 1


def test_a_maildir_that_cannot_be_written_is_everybodys(tmp_path: Path) -> None:
    """Nothing can be delivered, whoever it is for."""
    (tmp_path / "file").touch()
    channel = MaildirChannel(tmp_path / "file", sender=SENDER)

    with (
        blocking(channel) as used,
        pytest.raises(ChannelDownError, match=r"cannot be written: .*correct CERTJOB_NOTIFY_URL"),
    ):
        used.send(MESSAGE)


def test_a_full_disk_leaves_no_half_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is there whole or not at all."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    channel = MaildirChannel(tmp_path, sender=SENDER)
    with monkeypatch.context() as patch, blocking(channel) as used:
        patch.setattr("mailbox.Maildir._dump_message", full)
        with pytest.raises(ChannelDownError, match="No space left"):
            used.send(MESSAGE)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_maildir_refuses_what_mail_cannot_carry(tmp_path: Path) -> None:
    """A rehearsal finds the bad rows."""
    with (
        blocking(MaildirChannel(tmp_path, sender=SENDER)) as channel,
        pytest.raises(RecipientRefusedError, match="is not an address"),
    ):
        channel.send(replace(MESSAGE, to="kari"))


# The webhook


def webhook(url: str, **options: Any) -> AbstractContextManager[BlockingChannel]:
    return blocking(WebhookChannel(url, **({"timeout_seconds": 5} | options)))


def test_a_webhook_gets_the_document_of_the_design(httpserver: HTTPServer) -> None:
    """Every field, the key, and the header by which a repeat is recognised."""
    httpserver.expect_request("/push", method="POST").respond_with_data(status=202)

    with webhook(httpserver.url_for("/push"), token=SecretStr("s3cret")) as channel:
        channel.send(MESSAGE)

    ((request, _),) = httpserver.log
    assert json.loads(request.get_data()) == {
        "kind": "reminder",
        "to": "kari.nordmann@example.org",
        "locale": "nb",
        "subject": MESSAGE.subject,
        "text": MESSAGE.text,
        "html": MESSAGE.html,
        "mentor_id": "0b6c0000-0000-4000-8000-000000000001",
        "threshold_days": 14,
        "expires_on": "2026-03-10",
        "repeat": True,
    }
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Authorization"] == "Bearer s3cret"
    assert request.headers["Idempotency-Key"] == "reminder-4711-0"


def test_a_webhook_that_drips_its_answer_ends_in_time() -> None:
    """The deadline is that of the whole call; whether the message arrived is not known."""
    with PortalServer([drip(part="headers", every_seconds=0.05)]) as server:
        with webhook(server.url, token=SecretStr(server.key), timeout_seconds=0.5) as channel:
            began = time.monotonic()

            with pytest.raises(OutcomeUnknownError):
                channel.send(MESSAGE)

        assert time.monotonic() - began < 3


def test_a_webhook_without_a_key_gets_no_authorization(httpserver: HTTPServer) -> None:
    """Not even an empty one."""
    httpserver.expect_request("/push").respond_with_data()

    with webhook(httpserver.url_for("/push")) as channel:
        channel.send(MESSAGE)

    assert "Authorization" not in httpserver.log[0][0].headers


def test_no_proxy_of_the_machine_is_used(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten HTTP_PROXY must not read the messages."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    httpserver.expect_request("/push").respond_with_data()

    with webhook(httpserver.url_for("/push")) as channel:
        channel.send(MESSAGE)

    assert len(httpserver.log) == 1


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, RecipientRefusedError),
        (422, RecipientRefusedError),
        (408, RecipientDeferredError),
        (409, RecipientDeferredError),
        (425, RecipientDeferredError),
        (429, ChannelDownError),
        (500, ChannelDownError),
        (502, OutcomeUnknownError),
        (503, ChannelDownError),
        (504, OutcomeUnknownError),
        (520, OutcomeUnknownError),
        (524, OutcomeUnknownError),
        (301, ChannelDownError),
        (307, ChannelDownError),
        (401, ChannelDownError),
        (403, ChannelDownError),
        (404, ChannelDownError),
        (405, ChannelDownError),
        (413, ChannelDownError),
    ],
)
def test_a_status_says_whose_fault_it_is(httpserver: HTTPServer, status: int, expected: type[NotifyError]) -> None:
    """And nothing of the answer's body, which may repeat the message, gets into the text."""
    httpserver.expect_request("/push").respond_with_data("kari.nordmann", status=status, headers={"Location": "/other"})

    with webhook(httpserver.url_for("/push")) as channel, pytest.raises(NotifyError, match=str(status)) as caught:
        channel.send(MESSAGE)

    assert type(caught.value) is expected
    assert "kari" not in str(caught.value)
    assert [request.path for request, _ in httpserver.log] == ["/push"]


def test_a_webhook_that_nobody_serves_is_everybodys() -> None:
    """Surely not handed over."""
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]

    with (
        webhook(f"http://{HOST}:{port}/push") as channel,
        pytest.raises(ChannelDownError, match=r"cannot be reached: .*; check CERTJOB_NOTIFY_URL"),
    ):
        channel.send(MESSAGE)


def test_a_url_that_cannot_be_called_is_everybodys() -> None:
    """What only the HTTP client finds wrong."""
    with webhook("http://[::1/push") as channel, pytest.raises(ChannelDownError, match="CERTJOB_NOTIFY_URL"):
        channel.send(MESSAGE)


def test_a_webhook_that_does_not_answer_leaves_the_outcome_unknown(httpserver: HTTPServer) -> None:
    """It has the message, and may yet deliver it."""
    over = threading.Event()

    def late(_: Request) -> Response:
        over.wait(5)
        return Response()

    httpserver.expect_request("/push").respond_with_handler(late)

    with webhook(httpserver.url_for("/push"), timeout_seconds=0.2) as channel:
        with pytest.raises(OutcomeUnknownError, match="did not answer in time"):
            channel.send(MESSAGE)
        over.set()


def test_a_webhook_that_hangs_up_leaves_the_outcome_unknown() -> None:
    """A connection that is cut after the request says nothing about the message."""
    with socket.create_server((HOST, 0)) as listening:

        def hang_up() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65_536)

        server = threading.Thread(target=hang_up)
        server.start()
        with (
            webhook(f"http://{HOST}:{listening.getsockname()[1]}/push") as channel,
            pytest.raises(OutcomeUnknownError, match="may have arrived"),
        ):
            channel.send(MESSAGE)
        server.join()


def test_a_webhook_can_be_used_after_closing(httpserver: HTTPServer) -> None:
    """Closing lets go of connections, not of the channel."""
    httpserver.expect_request("/push").respond_with_data()

    with webhook(httpserver.url_for("/push")) as channel:
        channel.send(MESSAGE)
        channel.close()
        channel.send(MESSAGE)

    assert len(httpserver.log) == 2
