"""Delivery reports (RFC 3464) as mail servers write them."""

from pathlib import Path

_REPORTS = Path(__file__).parent / "reports"


def postfix(
    message_id: str, address: str, *, action: str = "failed", status: str = "5.1.1", returned: str = "message/rfc822"
) -> bytes:
    """Postfix returns the whole mail, or the headers of a large one."""
    return _report("postfix", message_id, address, action=action, status=status, returned=returned)


def exim(message_id: str, address: str) -> bytes:
    """Exim names no original recipient, and writes no space before the address."""
    return _report("exim", message_id, address)


def microsoft_365(message_id: str, address: str) -> bytes:
    """Return a report of Exchange Online. It begins with a page for people, then diagnostics and nested parts."""
    return _report("microsoft_365", message_id, address)


def in_utf8(message_id: str, address: str) -> bytes:
    """Return a report about an address with letters beyond ASCII (RFC 6533)."""
    report = postfix(message_id, address, returned="message/global").replace(b"rfc822;", b"utf-8;")
    return report.replace(b"message/delivery-status", b"message/global-delivery-status")


def _report(name: str, message_id: str, address: str, **details: str) -> bytes:
    text = (_REPORTS / f"{name}.eml").read_text().format(message_id=message_id, address=address, **details)
    return text.encode().replace(b"\n", b"\r\n")
