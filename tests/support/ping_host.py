"""A server that records pings, as healthchecks.io does, and answers as a test chooses."""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

SECRET_PATH = "planted-Hemmelighet-7-uuid"
"""Anyone who knows it can ping, so no output may contain it."""


class Ping(NamedTuple):
    """A ping as it arrived."""

    what: str
    """``fail``, or empty for success."""
    run_id: str
    body: Any


class PingHost(NamedTuple):
    """The address of the server, and its pings."""

    url: str
    pings: list[Ping]

    @property
    def told(self) -> list[str]:
        return [ping.what for ping in self.pings]


@contextmanager
def ping_host(answers: Sequence[int | None] = ()) -> Iterator[PingHost]:
    """Run the server. ``answers`` are the first statuses, then 200; None: no answer until the end of the block."""
    statuses, over, pings = iter(answers), threading.Event(), list[Ping]()

    def take(request: Request) -> Response:
        what = request.path.removeprefix(f"/{SECRET_PATH}").strip("/")
        pings.append(Ping(what, request.args["rid"], json.loads(request.data)))
        status = next(statuses, 200)
        if status is None:
            over.wait(30)
        return Response(status=status)

    with HTTPServer(threaded=True) as server:
        server.expect_request(re.compile("/")).respond_with_handler(take)
        yield PingHost(server.url_for(f"/{SECRET_PATH}"), pings)
        over.set()
