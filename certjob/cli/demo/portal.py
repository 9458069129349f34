"""A local stand-in of the portal's Edge Function: pushes and a list, with cold starts, throttling and outages."""

import json
import threading
import time
from collections import Counter
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from uuid import UUID

COLD_START_SECONDS = 0.8
RETRY_AFTER_SECONDS = 1


class DemoPortal:
    """The function and the portal behind it, on this machine; a context manager. Its fields may be read at any time."""

    def __init__(self, contacts: set[UUID]) -> None:
        self.visible = contacts
        """Whom visitors of the portal see; everybody at first."""
        self.confirmed: Counter[str] = Counter()
        """How often each Idempotency-Key was answered with 200."""
        self.answers: Counter[int] = Counter()
        """How often each HTTP status was the answer to a push, since the function fell asleep."""
        self.is_down = False
        """The outage switch: Dynamics cannot be reached."""
        self._is_asleep = True
        self._throttled_push = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/functions/v1/hlf-dynamics-sync"

    def fall_asleep(self, *, throttled_push: int = 0) -> None:
        """Begin a new night: the next call wakes the function; the push of this number is asked to wait (0: none)."""
        with self._lock:
            self._is_asleep, self._throttled_push, self.answers = True, throttled_push, Counter()

    def push(self, contact_id: UUID, *, visible: bool, key: str) -> tuple[int, dict[str, Any]]:
        """Show or hide a contact as things stand tonight; return the HTTP status and the document."""
        with self._lock:  # all calls wait for the cold start
            time.sleep(COLD_START_SECONDS if self._is_asleep else 0)
            self._is_asleep = False
            status, document = 200, {"contact_id": str(contact_id), "visible": visible}
            if self.is_down:
                status, document = 502, _error("dynamics_unavailable", "Dynamics does not answer")
            elif self.answers.total() + 1 == self._throttled_push:
                status, document = 429, _error("throttled", "too many requests")
            else:
                self.confirmed[key] += 1
                (self.visible.add if visible else self.visible.discard)(contact_id)
            self.answers[status] += 1
            return status, document

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="demo-portal", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, portal: DemoPortal, *given: Any) -> None:
        self._portal = portal
        super().__init__(*given)

    def do_POST(self) -> None:
        """Push one value."""
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        self._send(*self._portal.push(UUID(wish["contact_id"]), visible=wish["visible"], key=key))

    def do_GET(self) -> None:
        """List what is visible, all of it on one page."""
        self._send(200, {"visible": [str(contact_id) for contact_id in self._portal.visible], "next": None})

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
