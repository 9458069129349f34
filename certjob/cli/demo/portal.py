"""A local stand-in of the portal's Edge Function: the same contract, with cold starts, throttling and outages."""

import hmac
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID, uuid4

RETRY_AFTER_SECONDS: Final = 1
LONGEST_BODY_BYTES: Final = 10_000


@dataclass(slots=True)
class Night:
    """What the function went through since it fell asleep."""

    slowest_seconds: float = 0.0
    """The longest time that one call took, a cold start included."""
    answers: Counter[int] = field(default_factory=Counter)
    """How often each HTTP status was the answer to a push."""


class DemoPortal:
    """The function and the portal behind it, on this machine; a context manager. May be looked at and told at any time.

    Every contact that it knows is visible at first.
    """

    def __init__(self, contacts: Iterable[UUID], *, cold_start_seconds: float = 0.8) -> None:
        self.key = secrets.token_urlsafe(16)
        self.visible = dict.fromkeys(contacts, True)
        """What visitors of the portal see."""
        self.confirmed: Counter[str] = Counter()
        """How often each Idempotency-Key was answered with 200."""
        self.night = Night()
        self.is_down = False
        """The outage switch: Dynamics cannot be reached."""
        self._cold_start_seconds = cold_start_seconds
        self._throttled_push = 0
        self._asleep = True
        self._waking = threading.Lock()
        self._lock = threading.Lock()
        self._server = _Server(self)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/functions/v1/hlf-dynamics-sync"

    @property
    def repeated(self) -> int:
        """How many pushes were confirmed more than once."""
        return sum(times > 1 for times in self.confirmed.values())

    def fall_asleep(self, *, throttled_push: int = 0) -> None:
        """Begin a new night: the next call wakes the function; the push of this number is asked to wait (0: none)."""
        with self._lock:
            self.night = Night()
            self._asleep = True
            self._throttled_push = throttled_push

    def wake(self) -> None:
        """Return when the function is up: at once, or after its cold start, for which all calls wait."""
        with self._waking:
            if self._asleep:
                time.sleep(self._cold_start_seconds)
                self._asleep = False

    def push(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> "Answer":
        """Do what one authorized and well-formed call asks for, or refuse as things stand tonight."""
        with self._lock:
            answer = self._push(contact_id, visible=visible)
            self.night.answers[answer.status] += 1
            if answer.status == 200:
                self.confirmed[idempotency_key] += 1
            return answer

    def _push(self, contact_id: UUID, *, visible: bool) -> "Answer":
        if self.is_down:
            return refusal(502, "dynamics_unavailable", "Dynamics does not answer")
        if self.night.answers.total() + 1 == self._throttled_push:
            return refusal(429, "throttled", "too many requests", retry_after_seconds=RETRY_AFTER_SECONDS)
        if contact_id not in self.visible:
            return refusal(404, "contact_not_found", "no such contact")
        self.visible[contact_id] = visible
        return Answer(status=200, content={"contact_id": str(contact_id), "visible": visible})

    def note_duration(self, seconds: float) -> None:
        """Note how long one call took."""
        with self._lock:
            self.night.slowest_seconds = max(self.night.slowest_seconds, seconds)

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="demo-portal", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An HTTP answer with a JSON body."""

    status: int
    content: dict[str, Any]
    retry_after_seconds: int | None = None


def refusal(status: int, code: str, message: str, *, retry_after_seconds: int | None = None) -> Answer:
    """Return an answer with the contract's error envelope."""
    content = {"error": {"code": code, "message": message}}
    return Answer(status=status, content=content, retry_after_seconds=retry_after_seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, portal: DemoPortal) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.portal = portal


class _Handler(BaseHTTPRequestHandler):
    """Speaks the contract: looks at the key first, then at the method, then at the body."""

    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60.0

    def do_GET(self) -> None:
        """Answer `certjob check`: the function is there and takes the key."""
        if self._is_authorized():
            self.server.portal.wake()
            self._send(Answer(status=200, content={"ok": True}))

    def do_POST(self) -> None:
        """Push one value."""
        portal = self.server.portal
        began_at = time.monotonic()
        if self._is_authorized():
            portal.wake()
            self._send(self._push(portal))
            portal.note_duration(time.monotonic() - began_at)

    def _refuse_method(self) -> None:
        if self._is_authorized():
            self.close_connection = True  # the body, if any, stays unread
            self._send(refusal(405, "method_not_allowed", "POST a value, or GET to look whether the function is there"))

    do_PUT = do_PATCH = do_DELETE = _refuse_method  # noqa: N815 - http.server's names

    def _push(self, portal: DemoPortal) -> Answer:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= LONGEST_BODY_BYTES:
            self.close_connection = True
            return refusal(413, "too_large", f"at most {LONGEST_BODY_BYTES} bytes, their number in Content-Length")
        try:
            content = json.loads(self.rfile.read(length))
            contact_id, visible = UUID(content["contact_id"]), content["visible"]
        except (ValueError, TypeError, KeyError, AttributeError):
            contact_id, visible = None, None
        if contact_id is None or not isinstance(visible, bool):
            return refusal(400, "invalid_request", 'expected {"contact_id": "<uuid>", "visible": true or false}')
        return portal.push(contact_id, visible=visible, idempotency_key=self.headers.get("Idempotency-Key", ""))

    def _is_authorized(self) -> bool:
        """Compare the key, in constant time; answer with 401 when it is wrong."""
        given = self.headers.get("Authorization", "").encode()
        if hmac.compare_digest(given, f"Bearer {self.server.portal.key}".encode()):
            return True
        self.close_connection = True
        self._send(refusal(401, "unauthorized", "the key is missing or wrong"))
        return False

    def _send(self, answer: Answer) -> None:
        body = json.dumps(answer.content).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Correlation-Id", str(uuid4()))
        if answer.retry_after_seconds is not None:
            self.send_header("Retry-After", str(answer.retry_after_seconds))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the demo tells its story itself."""
