"""Delivery reports as mail servers write them, by RFC 3464 and their documented forms; every name is an example."""

from pathlib import Path

_REPORTS = Path(__file__).parent / "reports"


def postfix(
    message_id: str, address: str, *, action: str = "failed", status: str = "5.1.1", returned: str = "message/rfc822"
) -> bytes:
    """Postfix returns the whole mail, or its headers where it is large."""
    return _report("postfix", message_id, address, action=action, status=status, returned=returned)


def exim(message_id: str, address: str) -> bytes:
    """Exim says no original recipient; it writes the address after the semicolon without a space."""
    return _report("exim", message_id, address)


def microsoft_365(message_id: str, address: str) -> bytes:
    """Exchange Online: pages for people first, diagnostics that go on over lines, all of it nested once more."""
    return _report("microsoft_365", message_id, address)


def in_utf8(message_id: str, address: str) -> bytes:
    """A report about an address with letters beyond ASCII (RFC 6533)."""
    report = postfix(message_id, address, returned="message/global").replace(b"rfc822;", b"utf-8;")
    return report.replace(b"message/delivery-status", b"message/global-delivery-status")


def _report(name: str, message_id: str, address: str, **details: str) -> bytes:
    text = (_REPORTS / f"{name}.eml").read_text().format(message_id=message_id, address=address, **details)
    return text.encode().replace(b"\n", b"\r\n")
