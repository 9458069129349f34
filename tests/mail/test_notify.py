"""The channel that the settings ask for, and the two that are not mail servers."""

import json
import mailbox
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from certjob.domain.addresses import parse_sender
from certjob.errors import ConfigurationError, NotifyError
from certjob.mail.channels.maildir import MaildirChannel
from certjob.mail.channels.notify import open_channel
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.channels.webhook import WebhookChannel
from certjob.mail.message import Channel
from certjob.settings import Settings
from tests.mail.conftest import EVERYBODYS, LATER, NEVER, UNKNOWN
from tests.support.channels import Blocking
from tests.support.mails import MESSAGE
from tests.support.portal_answers import Behaviour, answer, drip, hang, reset
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import HOST, Mailbox, real_server


def opened(url: str | None, **others: Any) -> Channel | None:
    """The channel of these settings, and of nothing that the machine has set."""
    notify_url = SecretStr(url) if url else None
    ours = {"mail_from": "HLF <post@hlf.example>", "notify_user": None, "notify_password": None}
    return open_channel(
        Settings(database_url=SecretStr("embedded"), notify_url=notify_url, _env_file=None, **ours | others)
    )


def test_the_scheme_says_which_channel_and_each_mail_server_has_its_usual_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Submission wants 587, implicit TLS 465, the mail server of this machine 25. No send outlasts a lease of mail."""
    assert opened(None) is None
    for url, kind, seconds in (
        ("http://127.0.0.1:8080/push", WebhookChannel, 30),
        ("https://h.example/push", WebhookChannel, 30),
        ("maildir:/x", MaildirChannel, 30),
        ("smtp://mail.hlf.example", SmtpChannel, 725),
    ):
        channel = opened(url)
        assert isinstance(channel, kind)
        assert channel.worst_case_seconds == seconds
    made: list[tuple[int, bool]] = []
    monkeypatch.setattr(SmtpChannel, "__init__", lambda *_, port, implicit_tls, **__: made.append((port, implicit_tls)))
    for server in (
        "smtp://a.example",
        "smtp://a.example:2525",
        "smtp://localhost",
        "smtp://[::1]",
        "smtps://localhost",
    ):
        opened(server)
    assert made == [(587, False), (2525, False), (25, False), (25, False), (465, True)]


def test_a_channel_from_settings_sends(tmp_path: Path) -> None:
    """Reports come back to the address that is set; the sender that people see stays. A Maildir needs no sender."""
    received = Mailbox()
    with real_server(received) as server:
        url = f"smtp://{HOST}:{server.port}"
        for channel in (
            opened(url),
            opened(url, bounce_address="bounces@hlf.example"),
            opened(f"maildir:{tmp_path}/my%20mail", mail_from=None),
        ):
            with Blocking(channel) as used:
                used.send(MESSAGE)

    assert [envelope.mail_from for envelope in received.envelopes] == ["post@hlf.example", "bounces@hlf.example"]
    assert all(b"From: HLF <post@hlf.example>" in envelope.content for envelope in received.envelopes)
    assert len(list((tmp_path / "my mail" / "new").iterdir())) == 1


@pytest.mark.parametrize(
    ("url", "others", "said"),
    [
        ("smtp://mail.hlf.example", {"mail_from": "HLF"}, "CERTJOB_MAIL_FROM"),
        ("maildir:/var/mail", {"mail_from": "a@hlf.example, b@hlf.example"}, "CERTJOB_MAIL_FROM"),
        ("smtp://mail.hlf.example", {"notify_user": "u"}, "CERTJOB_NOTIFY_PASSWORD"),
        ("smtp://mail.hlf.example", {"notify_password": SecretStr("s3cret")}, "CERTJOB_NOTIFY_USER"),
        ("maildir://var/mail", {}, "one slash"),
        ("smtp://mail.hlf.example", {"bounce_address": "pål@hlf.example"}, "CERTJOB_BOUNCE_ADDRESS has a character"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(url: str, others: dict[str, Any], said: str) -> None:
    """Before anything is sent, by the name of the variable, without its value."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        opened(url, **others)

    assert ("hlf" in str(caught.value), "s3cret" in str(caught.value)) == (False, False)


def maildir(folder: Path) -> Blocking:
    return Blocking(MaildirChannel(folder, sender=parse_sender("HLF <post@hlf.example>")))


def assert_both(channel: Blocking, refused: str) -> None:
    """Neither a look nor a message is taken."""
    with pytest.raises(EVERYBODYS, match=refused):
        channel.probe()
    with pytest.raises(EVERYBODYS, match=refused):
        channel.send(MESSAGE)


def test_a_maildir_holds_the_message_for_no_other_eyes(tmp_path: Path) -> None:
    """A folder that others may write is refused; new folders are open to their owner alone."""
    folder = tmp_path / "mail"
    (folder / "new").mkdir(parents=True)
    (folder / "new").chmod(0o707)
    with maildir(folder) as channel:
        assert_both(channel, "new may be written by others")
        (folder / "new").chmod(0o700)
        channel.send(MESSAGE)
        with pytest.raises(NEVER, match="is not an address"):
            channel.send(replace(MESSAGE, to="kari"))

    (received,) = mailbox.Maildir(folder, create=False)
    assert (received["To"], received["From"]) == ("kari.nordmann@example.org", "HLF <post@hlf.example>")
    assert list((folder / "tmp").iterdir()) == []
    assert all(part.stat().st_mode & 0o077 == 0 for part in folder.iterdir()), "nobody else can look in"


def test_a_maildir_that_cannot_be_written_is_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in its place or in that of a part of it, a full disk: a message is there whole or not at all."""
    (tmp_path / "file").touch()
    (tmp_path / "new").touch()
    for folder in (tmp_path / "file", tmp_path):
        with maildir(folder) as channel:
            assert_both(channel, r"cannot be written.*correct CERTJOB_NOTIFY_URL")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mailbox.Maildir._dump_message", full)
    with maildir(tmp_path / "mail") as channel, pytest.raises(EVERYBODYS, match="No space left"):
        channel.send(MESSAGE)

    assert [path for path in (tmp_path / "mail").rglob("*") if path.is_file()] == []


def webhook(url: str, *, key: str = "s3cret", seconds: float = 5) -> Blocking:
    channel = WebhookChannel(url, token=SecretStr(key) if key else None)
    channel.worst_case_seconds = seconds
    return Blocking(channel)


def test_a_webhook_gets_the_document_of_the_design(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past a proxy of the machine. Without a key there is not even an empty one. It can be used after closing."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with PortalServer(key="s3cret", default=answer(202)) as server:
        with webhook(server.url) as channel:
            channel.send(replace(MESSAGE, repeat=True))
            channel.close()
            channel.send(MESSAGE)
        with webhook(server.url, key="") as channel, pytest.raises(EVERYBODYS, match="401"):
            channel.send(MESSAGE)

    request, _, keyless = server.requests
    assert json.loads(request.body) == {
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
    assert (request.method, request.idempotency_key) == ("POST", "reminder-4711-0")
    assert (request.headers["content-type"], request.headers["authorization"]) == ("application/json", "Bearer s3cret")
    assert "authorization" not in keyless.headers


WHOSE = {
    NEVER: (400, 422),
    LATER: (408, 409, 425),
    UNKNOWN: (500, 501, 502, 504, 520, 524),
    EVERYBODYS: (429, 503, 301, 307, 401, 403, 404, 413),
}


def test_a_status_says_whose_fault_it_is() -> None:
    """And nothing of the answer's body, which may repeat the message, gets into the text; nothing is followed."""
    with PortalServer() as server, webhook(server.url, key=server.key) as channel:
        for status, expected in ((status, error) for error, statuses in WHOSE.items() for status in statuses):
            server.default = answer(status, b"kari.nordmann", headers={"Location": "/other", "Retry-After": "7"})
            said = {301: "redirects", 401: "refused the key", 403: "refused the key", 404: "is not there"}
            with pytest.raises(NotifyError, match=f"{said.get(status, '')} .*{status}") as caught:
                channel.send(MESSAGE)
            assert type(caught.value) is expected, status
            assert "kari" not in str(caught.value)
            asked = getattr(caught.value, "retry_after_seconds", None)
            assert asked == (7 if status in (429, 503) else None)

    assert len({request.path for request in server.requests}) == 1


def test_a_webhook_that_cannot_be_called_is_everybodys(port_of_nobody: int) -> None:
    """Nobody serves it, or only the HTTP client finds the URL wrong: surely not handed over."""
    for url in (f"http://{HOST}:{port_of_nobody}/push", "http://[::1/push"):
        with webhook(url) as channel, pytest.raises(EVERYBODYS, match="CERTJOB_NOTIFY_URL"):
            channel.send(MESSAGE)


def test_a_503_without_retry_after_leaves_the_outcome_unknown() -> None:
    """A receiver that has handed the message on and then fails answers so, too."""
    with PortalServer() as server, webhook(server.url, key=server.key) as channel:
        server.default = answer(503)
        with pytest.raises(UNKNOWN, match="may have arrived"):
            channel.send(MESSAGE)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [(hang(), "did not answer in time"), (drip(part="headers"), "may have arrived"), (reset(), "may have arrived")],
    ids=["hangs", "drips", "hangs up"],
)
def test_a_webhook_that_does_not_answer_leaves_the_outcome_unknown(behaviour: Behaviour, said: str) -> None:
    """It may yet deliver the message. The deadline is that of the whole call."""
    with PortalServer([behaviour]) as server, webhook(server.url, key=server.key, seconds=0.5) as channel:
        began = time.monotonic()
        with pytest.raises(UNKNOWN, match=said):
            channel.send(MESSAGE)
        assert time.monotonic() - began < 3
