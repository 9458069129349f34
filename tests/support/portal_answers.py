"""Behaviours of the ``PortalServer``: good answers, bad answers and broken connections."""

import json
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

if TYPE_CHECKING:
    from tests.support.portal_server import PortalServer


@dataclass(kw_only=True)
class PortalRequest:
    """A request as it arrived. Each value of its body is None if the body does not have it."""

    number: int
    """1, 2, … in the order of arrival."""
    method: str
    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    arrived_seconds: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.json: dict[str, Any] = json.loads(self.body or "{}")
        self.contact_id = UUID(self.json["contact_id"]) if "contact_id" in self.json else None
        self.visible: bool | None = self.json.get("visible")
        self.visible_until: str | None = self.json.get("visible_until")

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("idempotency-key")

    @property
    def order(self) -> tuple[int, int]:
        """The event and its version. Raises ValueError for another key."""
        event, version = map(int, (self.idempotency_key or "").split("-"))
        return event, version


@dataclass(eq=False)
class Exchange:
    """A request, and the connection to answer it on."""

    portal: "PortalServer"
    connection: socket.socket
    request: PortalRequest
    answered: bool = False
    """Set before the last byte of the answer, because the caller may call again afterwards."""

    def apply(self) -> None:
        """Store what the request asks for."""
        if self.request.contact_id is not None and self.request.visible is not None:
            self.portal.visible[self.request.contact_id] = self.request.visible
            if self.portal.until is not None:
                self.portal.until[self.request.contact_id] = self.request.visible_until

    def send(self, data: bytes, *, last: bool = True) -> None:
        self.answered = self.answered or last
        self.connection.sendall(data)

    def pause(self, seconds: float) -> None:
        """Wait, but not for a caller that has gone or a server that ends."""
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0 and not self.portal.closing.wait(min(left, 0.02)):
            if self.is_given_up:
                raise ConnectionError

    @property
    def is_given_up(self) -> bool:
        """Whether the caller has closed its end."""
        try:
            readable, _, _ = select.select([self.connection], [], [], 0)
            return bool(readable) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    def close(self, *, reset: bool = False) -> None:
        """Close the connection; with ``reset`` the other side gets ECONNRESET."""
        self.answered = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # close() would wait for the thread that reads the next request


Behaviour = Callable[[Exchange], None]
"""Answers one request."""


def http_answer(status: int, body: bytes, **headers: str) -> bytes:
    """Return the bytes of an HTTP/1.1 answer."""
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def answer(status: int, body: Any = b"", *, headers: Mapping[str, str] | None = None) -> Behaviour:
    """Answer with these bytes, or with this value as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()

    def behave(exchange: Exchange) -> None:
        correlation = {"X-Correlation-Id": f"test-{exchange.request.number}"}
        exchange.send(http_answer(status, data, **(correlation | dict(headers or {}))))

    return behave


def confirm(exchange: Exchange) -> None:
    """Confirm the request without applying it."""
    request, dates = exchange.request, exchange.portal.until is not None
    values = {"contact_id": str(request.contact_id), "visible": request.visible}
    answer(200, values | {"visible_until": request.visible_until if dates else None, "dates": dates})(exchange)


def ok(*, page_size: int = 5000) -> Behaviour:
    """Apply and confirm, or send a page of the visible contacts. The cursor of a page is its last contact."""

    def behave(exchange: Exchange) -> None:
        portal, query = exchange.portal, parse_qs(urlsplit(exchange.request.path).query)
        until, dates = portal.until or {}, portal.until is not None
        if exchange.request.method == "POST":
            exchange.apply()
            confirm(exchange)
        elif not query:
            answer(200, {"ok": True, "dates": dates})(exchange)
        else:
            after = query.get("after", [""])[0]
            ids = sorted(str(each) for each, shown in list(portal.visible.items()) if shown and each.hex > after)
            cursor = UUID(ids[page_size - 1]).hex if len(ids) > page_size else None
            contacts = [{"contact_id": each, "visible_until": until.get(UUID(each))} for each in ids[:page_size]]
            secret = {"secret_until": portal.secret_until} if portal.secret_until else {}
            answer(200, {"contacts": contacts, "next": cursor, "dates": dates} | secret)(exchange)

    return behave


def error(status: int, code: str, *, message: str = "as the test wishes", retry_after: str | None = None) -> Behaviour:
    """Answer with an error of the Edge Function."""
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return answer(status, {"error": {"code": code, "message": message}}, headers=headers)


def html(status: int = 200) -> Behaviour:
    """Answer with a web page, as a gateway does after a failed deployment."""
    return answer(status, b"<!doctype html><p>Nothing here", headers={"Content-Type": "text/html"})


def raw(data: bytes, *, applied: bool = False, reset: bool = False) -> Behaviour:
    """Answer with these bytes and close; with ``applied``, apply the request first."""

    def behave(exchange: Exchange) -> None:
        if applied:
            exchange.apply()
        exchange.send(data)
        exchange.close(reset=reset)

    return behave


def reset(*, applied: bool = False) -> Behaviour:
    """Reset the connection instead of an answer."""
    return raw(b"", applied=applied, reset=True)


def cut(*, applied: bool = True) -> Behaviour:
    """Apply the request, and close the connection within the body of the answer."""
    return raw(http_answer(200, b'{"contact_id": "', **{"Content-Length": "80"}), applied=applied)


def drip(*, part: str = "body", every_seconds: float = 0.05) -> Behaviour:
    """Apply the request, and send ``headers`` or a ``body`` without an end, byte by byte."""
    beginning = b"HTTP/1.1 200 OK\r\n" + (b"X-Filler: " if part == "headers" else b"Content-Length: 99999\r\n\r\n")

    def behave(exchange: Exchange) -> None:
        exchange.apply()
        exchange.send(beginning, last=False)
        while not exchange.portal.closing.is_set():
            exchange.pause(every_seconds)
            exchange.send(b".", last=False)

    return behave


def hang(then: Behaviour | None = None, *, applied: bool = False) -> Behaviour:
    """Wait for ``portal.release()``; ``then`` behave (default: close without an answer)."""

    def behave(exchange: Exchange) -> None:
        if applied:
            exchange.apply()
        while not (exchange.portal.released.is_set() or exchange.portal.closing.is_set()):
            exchange.pause(0.01)
        (raw(b"") if then is None or exchange.portal.closing.is_set() else then)(exchange)

    return behave


def during(act: Callable[[], object], then: Behaviour | None = None) -> Behaviour:
    """Do something while the caller waits, ``then`` behave (default: ``ok()``)."""

    def behave(exchange: Exchange) -> None:
        act()
        (then or ok())(exchange)

    return behave


def delay(seconds: float, then: Behaviour | None = None) -> Behaviour:
    """Wait, ``then`` behave (default: ``ok()``)."""

    def behave(exchange: Exchange) -> None:
        exchange.pause(seconds)
        (then or ok())(exchange)

    return behave
