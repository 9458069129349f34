"""A host that takes pings, as healthchecks.io does; it remembers them, and misbehaves as told."""

import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

SECRET_PATH = "planted-Hemmelighet-7-uuid"
"""Whoever knows it can ping: no output may hold it."""


class Ping(NamedTuple):
    """One ping as it arrived."""

    what: str
    """``start``, an exit code, or nothing for success."""
    run_id: str
    body: Any


@dataclass
class PingHost:
    """The host's address and what it got."""

    url: str
    pings: list[Ping] = field(default_factory=list)

    @property
    def told(self) -> list[str]:
        return [ping.what for ping in self.pings]


@contextmanager
def ping_host(answers: Sequence[int | None] = (), *, tls: ssl.SSLContext | None = None) -> Iterator[PingHost]:
    """A running host. ``answers`` are the statuses of the first answers, then 200; None: none until the test ends."""
    statuses, over = iter(answers), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            parts = urlsplit(self.path)
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            what = parts.path.removeprefix(f"/{SECRET_PATH}").strip("/")
            host.pings.append(Ping(what, parse_qs(parts.query)["rid"][0], body))
            status = next(statuses, 200)
            if status is None:
                over.wait(30)
                return
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    host = PingHost(f"{'https' if tls else 'http'}://localhost:{server.server_address[1]}/{SECRET_PATH}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield host
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
