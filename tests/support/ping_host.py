"""A host that takes pings, as healthchecks.io does; it remembers them, and misbehaves as told."""

import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

SECRET_PATH = "planted-Hemmelighet-7-uuid"
"""Whoever knows it can ping: no output may hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """One ping as it arrived."""

    method: str
    what: str
    """``start``, an exit code, or nothing for success."""
    run_id: str
    body: Any


@dataclass
class PingHost:
    """The host's address and what it got."""

    url: str = ""
    pings: list[Ping] = field(default_factory=list)
    answers: list[int | None] = field(default_factory=list)
    """Statuses of the next answers, then 200; None: no answer until the test ends."""
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def told(self) -> list[str]:
        return [ping.what for ping in self.pings]


@contextmanager
def ping_host(answers: Sequence[int | None] = (), *, tls: ssl.SSLContext | None = None) -> Iterator[PingHost]:
    """A running host."""
    host = PingHost(answers=list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            host.pings.append(
                Ping(
                    method=self.command,
                    what=parts.path.removeprefix(f"/{SECRET_PATH}").strip("/"),
                    run_id=parse_qs(parts.query)["rid"][0],
                    body=json.loads(body),
                )
            )
            status = host.answers.pop(0) if host.answers else 200
            if status is None:
                host.over.wait(30)
                return
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"OK")

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    host.url = f"{'https' if tls else 'http'}://localhost:{server.server_address[1]}/{SECRET_PATH}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        host.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
