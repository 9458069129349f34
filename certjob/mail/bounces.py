"""Delivery reports (RFC 3464): a mail that came back is an alert, and is sent again.

A report counts only if it returns the Message-ID of a mail by certjob and names the current address of its recipient.
Delays, reports about other mails and forged reports are ignored.
"""

import email
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from email.message import Message
from enum import StrEnum
from functools import partial
from hmac import compare_digest

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.addresses import parse_address
from certjob.mail.channels.server_text import Subject, readable, subject_of
from certjob.mail.digests import digest_key
from certjob.mail.reminder_mail import reminder_key
from certjob.mail.steps import read_secret

logger = logging.getLogger(__name__)

LARGEST_REPORT_OCTETS = 1_000_000
"""A mail by certjob has at most a tenth of that, and a report returns it at most once."""

_OUR_MESSAGE_ID = re.compile(
    r"<certjob-(?:(?P<key>reminder-(?P<reminder>[0-9]{1,18})-[0-9a-f]{16})"
    r"|(?P<digest_key>digest-(?P<digest>[0-9]{1,18})-(?P<attempt>[0-9]{1,9})-[0-9a-f]{16}))@[^<>@\s]+>"
)
_RETURNED = frozenset({"message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers"})
_GLOBAL_STATUS = re.compile(rb"(?i)message/global-delivery-status")
"""A status with addresses in UTF-8 (RFC 6533). The standard library parses only message/delivery-status."""


class ReportResult(StrEnum):
    """The result of reading a report."""

    BOUNCED = "bounced"
    """A mail by certjob came back. Its row has failed now, or is due in a day."""
    NOT_FAILED = "not_failed"
    """A delay or a successful delivery."""
    NOT_OURS = "not_ours"
    """About another mail, another address, or a mail that is known to have failed."""
    UNREADABLE = "unreadable"
    """Broken, too large, or not a report by RFC 3464."""


def take_report(connection: Connection, data: bytes) -> ReportResult:
    """Read one report, mark its mail as failed, and commit."""
    if (report := _parse(data)) is None:
        return ReportResult.UNREADABLE
    message_id, failures = report
    if not failures:
        return ReportResult.NOT_FAILED
    about = _OUR_MESSAGE_ID.fullmatch(message_id)
    if about is None:
        return ReportResult.NOT_OURS
    bounced = persist(connection, partial(_mark_bounced, connection, about, failures))
    logger.debug("a report about %s", about[0], extra={"noted": bounced})
    return ReportResult.BOUNCED if bounced else ReportResult.NOT_OURS


def _parse(data: bytes) -> tuple[str, Sequence[tuple[str, str]]] | None:
    """Return the Message-ID of the returned mail and the failures, or None if the data is not a readable report.

    A failure is an address, original addresses first, and ``<status> <diagnostic>``.
    """
    if len(data) > LARGEST_REPORT_OCTETS:
        return None
    try:
        mail = email.message_from_bytes(_GLOBAL_STATUS.sub(b"message/delivery-status", data))
        parts = next(_parts(part) for part in mail.walk() if part.get_content_type() == "multipart/report")
        blocks = _parts(next(part for part in parts if part.get_content_type() == "message/delivery-status"))
        recipients = [block for block in blocks if _field(block, "Final-Recipient")]
        failed = [block for block in recipients if _field(block, "Action").lower() == "failed"]
        failures = [failure for block in failed for failure in _failures(block)]
        return (_returned_id(parts), failures) if recipients else None
    except Exception:  # noqa: BLE001 - the library raises any error for hostile input
        return None


def _parts(part: Message) -> list[Message]:
    payload = part.get_payload()
    return [each for each in payload if isinstance(each, Message)] if isinstance(payload, list) else []


def _field(block: Message, name: str) -> str:
    """Return a field on one line, decoded as UTF-8, or ""."""
    value = next((str(value) for key, value in block.raw_items() if key.lower() == name.lower()), "")
    return " ".join(value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").split())


def _failures(block: Message) -> Iterator[tuple[str, str]]:
    diagnostic = _field(block, "Diagnostic-Code")
    why = f"{_field(block, 'Status')} {diagnostic.partition(';')[2] or diagnostic}"
    for name in ("Original-Recipient", "Final-Recipient"):
        yield _field(block, name).partition(";")[2].strip(" <>"), " ".join(why.split())


def _returned_id(parts: Sequence[Message]) -> str:
    """Return the Message-ID of the returned mail, or of its returned headers, or ""."""
    for part in parts:
        if part.get_content_type() in _RETURNED:
            content = part.get_payload(decode=True)
            headers = content if isinstance(content, bytes) else b""
            return _field(next(iter(_parts(part)), email.message_from_bytes(headers)), "Message-ID")
    return ""


def _mark_bounced(connection: Connection, about: re.Match[str], failures: Sequence[tuple[str, str]]) -> bool:
    """Mark the mail as failed if the address is wrong, otherwise as due in a day; return whether it was."""
    is_digest = about["digest"] is not None
    row: dict[str, object] = {"id": int(about["digest"] if is_digest else about["reminder"])}
    lock = "lock_digest_and_coordinator" if is_digest else "lock_reminded_mentor"
    error = _error(database.fetch_value(connection, lock, row) or "", failures)
    if error is None or not _is_current(connection, about, row):
        return False
    if is_digest:
        database.execute(connection, "supersede_open_digest", row)
    bounce = row | {"error": error, "is_address": subject_of(error) is Subject.ADDRESS}
    return bool(database.execute(connection, "bounce_digest" if is_digest else "bounce_reminder", bounce))


def _is_current(connection: Connection, about: re.Match[str], row: dict[str, object]) -> bool:
    """Return whether the key is that of the row: not forged, not about another last day, not before a restore."""
    secret = read_secret(connection)
    if about["digest"] is not None:
        ((coordinator_id, digest_on),) = database.fetch(connection, "read_returned_digest", row)
        whose = {"coordinator_id": coordinator_id, "digest_on": digest_on}
        key = digest_key(int(about["digest"]), int(about["attempt"]), secret=secret, **whose)
        return compare_digest(key, about["digest_key"])
    ((mentor_id, threshold_days, expires_on),) = database.fetch(connection, "read_returned_reminder", row)
    about_it = {"mentor_id": mentor_id, "threshold_days": threshold_days, "expires_on": expires_on}
    return compare_digest(reminder_key(int(about["reminder"]), secret=secret, **about_it), about["key"])


def _error(address: str, failures: Sequence[tuple[str, str]]) -> str | None:
    """Return the error for the row, or None if no failure is about the recipient's current address."""
    for failed, why in failures:
        with suppress(ValueError):  # one of the two is not an address
            known = parse_address(address)
            if parse_address(failed).specification.casefold() == known.specification.casefold():
                return f"the mail came back ({readable(why, recipient=known)})"
    return None
