"""Open the channel that the settings name."""

from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from certjob.domain.addresses import MailAddress, parse_sender
from certjob.errors import ConfigurationError
from certjob.mail.message import Channel, OutgoingMessage
from certjob.outbox.calls import run_alone
from certjob.settings import LOOPBACK_HOSTS, Settings

REHEARSAL_SENDER = "certjob@localhost"
"""The sender of messages in a Maildir if CERTJOB_MAIL_FROM is not set."""


def open_channel(settings: Settings) -> Channel | None:
    """Return the channel of CERTJOB_NOTIFY_URL, or None without one. It connects when it sends its first message.

    Raises ConfigurationError for wrong settings, and for those that contradict each other. Its text contains no value.
    """
    if settings.mail_problem is not None:
        raise settings.mail_problem
    if settings.notify_url is None:
        return None
    parts = urlsplit(settings.notify_url)
    if parts.scheme in ("smtp", "smtps"):
        return _open_smtp(parts, settings=settings)
    from certjob.mail.channels.maildir import MaildirChannel  # noqa: PLC0415

    if parts.netloc:
        message = "CERTJOB_NOTIFY_URL: maildir takes a path on this machine"
        raise ConfigurationError(message, next_step="write maildir:/path with one slash")
    sender = _sender("CERTJOB_MAIL_FROM", settings.mail_from or REHEARSAL_SENDER)
    return MaildirChannel(Path(unquote(parts.path)), sender=sender)


def send_alone(channel: Channel, message: OutgoingMessage) -> None:
    """Send one message in a new event loop, and close the channel. Raises as ``Channel.send`` does."""

    async def send() -> None:
        try:
            await channel.send(message)
        finally:
            await channel.close()

    run_alone(send())


def _open_smtp(parts: SplitResult, *, settings: Settings) -> Channel:
    """Return the channel. Default ports: 465 for ``smtps://``, 587 for ``smtp://``, 25 for ``smtp://`` on loopback."""
    from certjob.mail.channels.smtp import SmtpChannel  # noqa: PLC0415 - aiosmtplib, which no other channel needs

    if (settings.notify_user is None) != (settings.notify_password is None):
        message = "set both CERTJOB_NOTIFY_USER and CERTJOB_NOTIFY_PASSWORD, or neither for a server without a login"
        raise ConfigurationError(message)
    host = parts.hostname or ""
    implicit_tls = parts.scheme == "smtps"
    bounces = settings.bounce_address
    return SmtpChannel(
        host,
        port=parts.port or (465 if implicit_tls else 25 if host in LOOPBACK_HOSTS else 587),
        sender=_sender("CERTJOB_MAIL_FROM", settings.mail_from or ""),
        bounce_address=_sender("CERTJOB_BOUNCE_ADDRESS", bounces) if bounces else None,
        implicit_tls=implicit_tls,
        user=settings.notify_user,
        password=settings.notify_password,
    )


def _sender(variable: str, text: str) -> MailAddress:
    try:
        return parse_sender(text)
    except ValueError as error:
        message = f"{variable} {error}"
        raise ConfigurationError(message, next_step="give an address, or a name and <address>") from None
