"""Delivery reports (RFC 3464): a mail that came back becomes an alert, and is sent again once the address is corrected.

A report is only believed where it returns the Message-ID of a mail of ours and names the address that this mail's
recipient still has. Delays, reports about other mails and forged ones change nothing.
"""

import email
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from enum import StrEnum
from functools import partial

from certjob import database
from certjob.database import Connection, persist
from certjob.domain.addresses import parse_address
from certjob.mail.channels.server_text import readable
from certjob.mail.reminder_mail import reminder_key

logger = logging.getLogger(__name__)

LARGEST_REPORT_OCTETS = 1_000_000
"""A mail of ours has a tenth of that, and a report returns it at most once."""

_OUR_MESSAGE_ID = re.compile(
    r"<certjob-(?:(?P<key>reminder-(?P<reminder>[0-9]{1,18})-[0-9a-f]{8})"
    r"|digest-(?P<digest>[0-9]{1,18})-[0-9]{1,9}-[0-9a-f]{8})@[^<>@\s]+>"
)
_RETURNED = frozenset({"message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers"})
_GLOBAL_STATUS = re.compile(rb"(?i)message/global-delivery-status")
"""The same with addresses in UTF-8 (RFC 6533); the standard library knows only the older name."""


class Verdict(StrEnum):
    """What a report was."""

    BOUNCED = "bounced"
    """A mail of ours came back, and its row says so now."""
    NOT_FAILED = "not_failed"
    """A delay, or a delivery that succeeded."""
    NOT_OURS = "not_ours"
    """About no mail of ours, another address, or one that is known to have failed."""
    UNREADABLE = "unreadable"
    """No report by RFC 3464, broken, or larger than a report can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report says, as far as it is of use."""

    message_id: str
    """That of the mail it is about; empty without one."""
    failed: Sequence[tuple[str, str]]
    """Each address of a recipient whose delivery failed, the original one first, and ``<status> <diagnostic>``."""


def take_report(connection: Connection, data: bytes) -> Verdict:
    """Read one report and note in the row of its mail that it came back; committed on return."""
    report = parse_report(data)
    if report is None:
        return Verdict.UNREADABLE
    if not report.failed:
        return Verdict.NOT_FAILED
    about = _OUR_MESSAGE_ID.fullmatch(report.message_id)
    if about is None:
        return Verdict.NOT_OURS
    note = _note_reminder if about["reminder"] else _note_digest
    noted = persist(connection, partial(note, connection, about, report.failed))
    logger.debug("a report about %s", about[0], extra={"event": "report_read", "noted": noted})
    return Verdict.BOUNCED if noted else Verdict.NOT_OURS


def parse_report(data: bytes) -> Report | None:
    """Return what a report says; None if it is none by RFC 3464, or too large."""
    if len(data) > LARGEST_REPORT_OCTETS:
        return None
    try:
        mail = email.message_from_bytes(_GLOBAL_STATUS.sub(b"message/delivery-status", data))
        parts = next(_parts(part) for part in mail.walk() if part.get_content_type() == "multipart/report")
        blocks = _parts(next(part for part in parts if part.get_content_type() == "message/delivery-status"))
        recipients = [block for block in blocks if _field(block, "Final-Recipient")]
        if not recipients:
            return None
        failed = [
            each for block in recipients if _field(block, "Action").lower() == "failed" for each in _failed(block)
        ]
        return Report(message_id=_returned_id(parts), failed=failed)
    except Exception:  # noqa: BLE001 - a stranger's bytes make the library raise what they like
        return None


def _parts(part: Message) -> list[Message]:
    payload = part.get_payload()
    return [each for each in payload if isinstance(each, Message)] if isinstance(payload, list) else []


def _field(block: Message, name: str) -> str:
    """Return a field in one line, its letters as they came; empty without one."""
    value = next((str(value) for key, value in block.raw_items() if key.lower() == name.lower()), "")
    return " ".join(value.encode("utf-8", "surrogateescape").decode("utf-8", "replace").split())


def _failed(block: Message) -> Iterator[tuple[str, str]]:
    diagnostic = _field(block, "Diagnostic-Code")
    why = f"{_field(block, 'Status')} {diagnostic.partition(';')[2] or diagnostic}"
    for name in ("Original-Recipient", "Final-Recipient"):
        yield _field(block, name).partition(";")[2].strip(" <>"), " ".join(why.split())


def _returned_id(parts: Sequence[Message]) -> str:
    """Return the Message-ID of the returned mail, or of its headers; empty without one."""
    for part in parts:
        if part.get_content_type() in _RETURNED:
            inner = _parts(part)
            if not inner:
                content = part.get_payload(decode=True)
                inner = [email.message_from_bytes(content if isinstance(content, bytes) else b"")]
            return _field(inner[0], "Message-ID")
    return ""


def _note_reminder(connection: Connection, about: re.Match[str], failed: Sequence[tuple[str, str]]) -> bool:
    row: dict[str, object] = {"id": int(about["reminder"])}
    error = _error(database.fetch_value(connection, "hold_reminders", row), failed)
    if error is None:
        return False
    ((mentor_id, threshold_days, expires_on),) = database.fetch(connection, "read_returned_reminder", row)
    key = reminder_key(
        int(about["reminder"]), mentor_id=mentor_id, threshold_days=threshold_days, expires_on=expires_on
    )
    if key != about["key"]:  # about another last day, or from before a restore
        return False
    return bool(database.execute(connection, "bounce_reminder", row | {"error": error}))


def _note_digest(connection: Connection, about: re.Match[str], failed: Sequence[tuple[str, str]]) -> bool:
    row: dict[str, object] = {"id": int(about["digest"])}
    error = _error(database.fetch_value(connection, "hold_digests", row), failed)
    if error is None:
        return False
    database.execute(connection, "supersede_open_digest", row)
    return bool(database.execute(connection, "bounce_digest", row | {"error": error}))


def _error(address: str | None, failed: Sequence[tuple[str, str]]) -> str | None:
    """Return what the row is to say; None if none of these is its recipient's address as it is now."""
    for said, why in failed:
        with suppress(ValueError):  # one of the two is not an address
            known = parse_address(address or "")
            if parse_address(said).specification.casefold() == known.specification.casefold():
                return f"the mail came back ({readable(why, recipient=known)})"
    return None
