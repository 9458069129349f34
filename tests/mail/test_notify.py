"""The channel that the settings name, and the channels that are not mail servers."""

import mailbox
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from certjob.domain.addresses import parse_sender
from certjob.errors import (
    ChannelDownError,
    ConfigurationError,
)
from certjob.mail.channels.maildir import MaildirChannel
from certjob.mail.channels.notify import open_channel
from certjob.mail.channels.smtp import SmtpChannel
from certjob.mail.message import Channel
from certjob.settings import Settings
from tests.mail.written import MESSAGE
from tests.support.blocking import Blocking
from tests.support.smtp_server import HOST, Mailbox, real_server


def opened(url: str | None, **others: Any) -> Channel | None:
    """Return the channel of these settings, without those of the machine."""
    ours = {"mail_from": "HLF <post@hlf.example>", "notify_user": None, "notify_password": None}
    required: dict[str, Any] = {"database_url": SecretStr("embedded"), "notify_url": url}
    return open_channel(Settings(_env_file=None, **required | ours | others))


@pytest.mark.parametrize(
    ("url", "kind", "seconds"),
    [
        ("maildir:/x", MaildirChannel, 30),
        ("smtp://mail.hlf.example", SmtpChannel, 785),
        (None, type(None), None),
    ],
)
def test_scheme_names_the_channel(url: str, kind: type, seconds: int) -> None:
    """No send takes longer than the lease of a mail, 900 seconds."""
    channel = opened(url)
    assert isinstance(channel, kind)
    assert getattr(channel, "worst_case_seconds", None) == seconds


@pytest.mark.parametrize(
    ("url", "port"),
    [("smtp://a.example", 587), ("smtp://a.example:2525", 2525), ("smtp://localhost", 25), ("smtps://localhost", 465)],
)
def test_mail_server_has_the_usual_port(url: str, port: int) -> None:
    """587 for submission, 465 for implicit TLS, 25 on this machine."""
    channel = opened(url)
    assert isinstance(channel, SmtpChannel)
    assert (channel.port, channel.implicit_tls) == (port, port == 465)


def test_channel_of_the_settings_sends(tmp_path: Path) -> None:
    """CERTJOB_BOUNCE_ADDRESS changes only the envelope. A Maildir needs no sender."""
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
        ("smtp://h.example", {"mail_from": "HLF"}, "CERTJOB_MAIL_FROM"),
        ("smtp://h.example", {"notify_user": "u"}, "CERTJOB_NOTIFY_PASSWORD"),
        ("smtp://h.example", {"notify_password": SecretStr("s3cret")}, "CERTJOB_NOTIFY_USER"),
        ("smtp://h.example", {"bounce_address": "pål@h.example"}, "CERTJOB_BOUNCE_ADDRESS"),
        ("maildir://var/mail", {}, "one slash"),
    ],
)
def test_contradicting_settings_are_rejected(url: str, others: dict[str, Any], said: str) -> None:
    """The error names the variable without its value."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        opened(url, **others)

    assert not re.search("h.example|HLF|s3cret", str(caught.value))


def maildir(folder: Path) -> Blocking:
    return Blocking(MaildirChannel(folder, sender=parse_sender("HLF <post@hlf.example>")))


def test_only_the_owner_can_read_a_maildir(tmp_path: Path) -> None:
    """A folder that others may write is rejected, and new folders have no permissions for others."""
    folder = tmp_path / "mail"
    (folder / "new").mkdir(parents=True)
    (folder / "new").chmod(0o707)
    with maildir(folder) as channel:
        with pytest.raises(ChannelDownError, match="new may be written by others"):
            channel.probe()
        with pytest.raises(ChannelDownError, match="new may be written by others"):
            channel.send(MESSAGE)
        (folder / "new").chmod(0o700)
        channel.send(MESSAGE)

    (received,) = mailbox.Maildir(folder, create=False)
    assert (received["To"], received["From"]) == ("kari.nordmann@example.org", "HLF <post@hlf.example>")
    assert list((folder / "tmp").iterdir()) == []
    assert all(part.stat().st_mode & 0o077 == 0 for part in folder.iterdir())


@pytest.mark.parametrize("file", ["mail", "mail/new"])
def test_maildir_that_cannot_be_written_concerns_all_messages(tmp_path: Path, file: str) -> None:
    """A file is where a folder should be. The error names the setting."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with maildir(tmp_path / "mail") as channel:
        with pytest.raises(ChannelDownError, match=r"cannot be written.*correct CERTJOB_NOTIFY_URL"):
            channel.probe()
        with pytest.raises(ChannelDownError, match=r"cannot be written.*correct CERTJOB_NOTIFY_URL"):
            channel.send(MESSAGE)
