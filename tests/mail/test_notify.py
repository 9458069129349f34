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
from certjob.mail.message import Channel
from certjob.settings import Settings
from tests.support.channels import BlockingChannel, blocking
from tests.support.mails import MESSAGE
from tests.support.portal_answers import drip
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import HOST, Mailbox, real_server

SENDER = parse_sender("HLF <post@hlf.example>")

# The settings


def settings(url: str | None, **others: Any) -> Settings:
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


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_web_address_is_a_webhook(scheme: str) -> None:
    """Opening one talks to nobody yet."""
    assert type(open_channel(settings(f"{scheme}://127.0.0.1:8080/push"))) is WebhookChannel


@pytest.mark.parametrize(
    ("url", "port", "implicit_tls"),
    [
        ("smtp://mail.hlf.example", 587, False),
        ("smtp://mail.hlf.example:2525", 2525, False),
        ("smtp://localhost", 25, False),
        ("smtp://[::1]", 25, False),
        ("smtps://localhost", 465, True),
    ],
)
def test_the_usual_ports(monkeypatch: pytest.MonkeyPatch, url: str, port: int, *, implicit_tls: bool) -> None:
    """Submission wants 587, implicit TLS 465, the mail server of this machine 25."""
    opened: list[object] = []
    monkeypatch.setattr(
        "certjob.mail.channels.smtp.SmtpChannel.__init__",
        lambda *_, port, implicit_tls, **__: opened.append((port, implicit_tls)),
    )

    open_channel(settings(url, mail_from="post@hlf.example"))

    assert opened == [(port, implicit_tls)]


def test_a_channel_from_settings_sends(tmp_path: Path) -> None:
    """To a mail server; and to a Maildir, for which a rehearsal needs no sender, a blank written as in any URL."""
    received = Mailbox()
    with real_server(received) as server:
        smtp = open_channel(settings(f"smtp://{HOST}:{server.port}", mail_from="HLF <post@hlf.example>"))
        maildir = open_channel(settings(f"maildir:{tmp_path}/my%20mail"))
        for channel in (smtp, maildir):
            assert channel is not None
            with blocking(channel) as used:
                used.send(MESSAGE)

    assert received.envelopes[0].mail_from == "post@hlf.example"
    assert len(list((tmp_path / "my mail" / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("url", "others", "variable"),
    [
        ("smtp://mail.hlf.example", {"mail_from": "HLF"}, "CERTJOB_MAIL_FROM"),
        ("maildir:/var/mail", {"mail_from": "a@hlf.example, b@hlf.example"}, "CERTJOB_MAIL_FROM"),
        ("smtp://mail.hlf.example", {"mail_from": "a@b.example", "notify_user": "u"}, "CERTJOB_NOTIFY_PASSWORD"),
        ("smtp://mail.hlf.example", {"mail_from": "a@b.example", "notify_password": SecretStr("s3cret")}, "_USER"),
        ("maildir://var/mail", {}, "one slash"),
        (
            "smtp://mail.hlf.example",
            {"mail_from": "a@b.example", "bounce_address": "pål@hlf.example"},
            "BOUNCE_ADDRESS has letters beyond",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(url: str, others: dict[str, Any], variable: str) -> None:
    """Before anything is sent, by the name of the variable, without its value."""
    with pytest.raises(ConfigurationError, match=variable) as caught:
        open_channel(settings(url, **others))

    assert "hlf" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_every_channel_ends_within_the_lease_of_mail(tmp_path: Path) -> None:
    """A message that cannot end before its lease of 15 minutes would never be begun; RFC 5321 grants an answer ten."""
    channels: list[Channel] = [
        SmtpChannel("mail.hlf.example", port=587, sender=SENDER),
        MaildirChannel(tmp_path, sender=SENDER),
        WebhookChannel("https://hooks.hlf.example/push"),
    ]

    assert [channel.worst_case_seconds for channel in channels] == [725, 30, 30]


# The Maildir


def test_a_maildir_in_which_others_can_put_a_folder_of_theirs_is_not_used(tmp_path: Path) -> None:
    """They would read every message; a folder with the sticky bit above it, such as /tmp, will do."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o707)
    channel = MaildirChannel(tmp_path / "shared" / "mail", sender=SENDER)

    with blocking(channel) as blocked:
        for attempt in (blocked.probe, lambda: blocked.send(MESSAGE)):
            with pytest.raises(ChannelDownError, match="shared may be written by others"):
                attempt()
        (tmp_path / "shared").chmod(0o1777)
        blocked.send(MESSAGE)

    assert len(mailbox.Maildir(tmp_path / "shared" / "mail", create=False)) == 1


def test_a_maildir_holds_the_message(tmp_path: Path) -> None:
    """The folder is made, mail programs can read it, nothing is left half done; what mail cannot carry is refused."""
    folder = tmp_path / "rehearsal" / "mail"

    with blocking(MaildirChannel(folder, sender=SENDER)) as channel:
        channel.send(MESSAGE)
        with pytest.raises(RecipientRefusedError, match="is not an address"):
            channel.send(replace(MESSAGE, to="kari"))

    (received,) = mailbox.Maildir(folder, create=False)
    assert received["To"] == "kari.nordmann@example.org"
    assert received["Message-ID"] == "<certjob-reminder-4711-0@hlf.example>"
    assert received["From"] == "HLF <post@hlf.example>"
    assert list((folder / "tmp").iterdir()) == []
    assert all(part.stat().st_mode & 0o077 == 0 for part in folder.iterdir()), "nobody else can look in"


def test_a_maildir_that_cannot_be_written_is_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place, a full disk: a message is there whole or not at all."""
    (tmp_path / "file").touch()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with blocking(MaildirChannel(tmp_path / "file", sender=SENDER)) as channel:
        for attempt in (channel.probe, lambda: channel.send(MESSAGE)):
            with pytest.raises(ChannelDownError, match=r"cannot be written.*correct CERTJOB_NOTIFY_URL"):
                attempt()
    with monkeypatch.context() as patch, blocking(MaildirChannel(tmp_path / "mail", sender=SENDER)) as channel:
        patch.setattr("mailbox.Maildir._dump_message", full)
        with pytest.raises(ChannelDownError, match="No space left"):
            channel.send(MESSAGE)

    assert [path for path in (tmp_path / "mail").rglob("*") if path.is_file()] == []


# The webhook


def webhook(url: str, **options: Any) -> AbstractContextManager[BlockingChannel]:
    return blocking(WebhookChannel(url, **({"timeout_seconds": 5} | options)))


def test_a_webhook_gets_the_document_of_the_design(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field, the key, and the header by which a repeat is recognised; past a proxy of the machine."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    httpserver.expect_request("/push", method="POST").respond_with_data(status=202)

    with webhook(httpserver.url_for("/push"), token=SecretStr("s3cret")) as channel:
        channel.send(replace(MESSAGE, repeat=True))

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


def test_a_webhook_without_a_key_gets_no_authorization_and_can_be_used_after_closing(httpserver: HTTPServer) -> None:
    """Not even an empty one. Closing lets go of connections, not of the channel."""
    httpserver.expect_request("/push").respond_with_data()

    with webhook(httpserver.url_for("/push")) as channel:
        channel.send(MESSAGE)
        channel.close()
        channel.send(MESSAGE)

    assert ["Authorization" in request.headers for request, _ in httpserver.log] == [False, False]


WHOSE = {
    RecipientRefusedError: (400, 422),
    RecipientDeferredError: (408, 409, 425),
    OutcomeUnknownError: (502, 504, 520, 524),
    ChannelDownError: (429, 500, 503, 301, 307, 401, 403, 404, 413),
}


def test_a_status_says_whose_fault_it_is(httpserver: HTTPServer) -> None:
    """And nothing of the answer's body, which may repeat the message, gets into the text; nothing is followed."""
    answers = [(status, expected) for expected, statuses in WHOSE.items() for status in statuses]
    for status, _ in answers:
        httpserver.expect_ordered_request("/push").respond_with_data(
            "kari.nordmann", status=status, headers={"Location": "/other"}
        )

    with webhook(httpserver.url_for("/push")) as channel:
        for status, expected in answers:
            with pytest.raises(NotifyError, match=str(status)) as caught:
                channel.send(MESSAGE)
            assert type(caught.value) is expected, status
            assert "kari" not in str(caught.value)

    assert {request.path for request, _ in httpserver.log} == {"/push"}


def test_a_webhook_that_cannot_be_called_is_everybodys() -> None:
    """Nobody serves it, or only the HTTP client finds the URL wrong: surely not handed over."""
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]

    for url in (f"http://{HOST}:{port}/push", "http://[::1/push"):
        with webhook(url) as channel, pytest.raises(ChannelDownError, match="CERTJOB_NOTIFY_URL"):
            channel.send(MESSAGE)


def test_a_webhook_that_does_not_answer_leaves_the_outcome_unknown(httpserver: HTTPServer) -> None:
    """It may yet deliver the message. The deadline is that of the whole call, against one that drips, too."""
    over = threading.Event()

    def late(_: Request) -> Response:
        over.wait(5)
        return Response()

    httpserver.expect_request("/push").respond_with_handler(late)

    with webhook(httpserver.url_for("/push"), timeout_seconds=0.2) as channel:
        with pytest.raises(OutcomeUnknownError, match="did not answer in time"):
            channel.send(MESSAGE)
        over.set()
    with PortalServer([drip(part="headers", every_seconds=0.05)]) as server:
        with webhook(server.url, token=SecretStr(server.key), timeout_seconds=0.5) as channel:
            began = time.monotonic()
            with pytest.raises(OutcomeUnknownError):
                channel.send(MESSAGE)
        assert time.monotonic() - began < 3


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
