"""A local stand-in of the portal's Edge Function: pushes and a list, with cold starts, throttling and outages."""

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from uuid import UUID

RETRY_AFTER_SECONDS = 1

Answer = tuple[int, dict[str, Any]]
"""The HTTP status and the document."""


class DemoPortal:
    """The function and the portal behind it, on this machine; a context manager. Its fields may be read at any time."""

    def __init__(self, contacts: Iterable[UUID], *, cold_start_seconds: float = 0.8) -> None:
        self.key = secrets.token_urlsafe(16)
        self.visible = dict.fromkeys(contacts, True)
        """What visitors of the portal see; everybody at first."""
        self.confirmed: Counter[str] = Counter()
        """How often each Idempotency-Key was answered with 200."""
        self.answers: Counter[int] = Counter()
        """How often each HTTP status was the answer to a push, since the function fell asleep."""
        self.slowest_seconds = 0.0
        """The longest call since then, a cold start included."""
        self.is_down = False
        """The outage switch: Dynamics cannot be reached."""
        self._cold_start_seconds = cold_start_seconds
        self._asleep = True
        self._throttled_push = 0
        self._waking = threading.Lock()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: _Handler(self, *given))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/functions/v1/hlf-dynamics-sync"

    def fall_asleep(self, *, throttled_push: int = 0) -> None:
        """Begin a new night: the next call wakes the function; the push of this number is asked to wait (0: none)."""
        with self._lock:
            self._asleep, self._throttled_push = True, throttled_push
            self.answers, self.slowest_seconds = Counter(), 0.0

    def answer(self, authorization: str | None, idempotency_key: str, body: bytes) -> Answer:
        """Do what one call asks for, or refuse it as things stand tonight."""
        began_at = time.monotonic()
        if not secrets.compare_digest((authorization or "").encode(), f"Bearer {self.key}".encode()):
            return _refusal(401, "unauthorized", "the key is missing or wrong")
        with self._waking:  # all calls wait for the cold start
            time.sleep(self._cold_start_seconds if self._asleep else 0)
            self._asleep = False
        with self._lock:
            status, document = self._push(json.loads(body))
            self.answers[status] += 1
            self.confirmed[idempotency_key] += status == 200
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began_at)
        return status, document

    def list_visible(self, authorization: str | None) -> Answer:
        """Return what the portal shows, all of it on one page."""
        if not secrets.compare_digest((authorization or "").encode(), f"Bearer {self.key}".encode()):
            return _refusal(401, "unauthorized", "the key is missing or wrong")
        with self._lock:
            return 200, {"visible": [str(each) for each, shown in self.visible.items() if shown], "next": None}

    def _push(self, wish: dict[str, Any]) -> Answer:
        contact_id, visible = UUID(wish["contact_id"]), wish["visible"]
        if self.is_down:
            return _refusal(502, "dynamics_unavailable", "Dynamics does not answer")
        if self.answers.total() + 1 == self._throttled_push:
            return _refusal(429, "throttled", "too many requests")
        if contact_id not in self.visible:
            return _refusal(404, "contact_not_found", "no such contact")
        self.visible[contact_id] = visible
        return 200, {"contact_id": str(contact_id), "visible": visible}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="demo-portal", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _refusal(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60.0

    def __init__(self, portal: DemoPortal, *given: Any) -> None:
        self._portal = portal
        super().__init__(*given)

    def do_POST(self) -> None:
        """Push one value."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("Idempotency-Key", "")
        self._send(*self._portal.answer(self.headers.get("Authorization"), key, body))

    def do_GET(self) -> None:
        """List what is visible."""
        self._send(*self._portal.list_visible(self.headers.get("Authorization")))

    def _send(self, status: int, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", str(RETRY_AFTER_SECONDS))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the demo tells its story itself."""
