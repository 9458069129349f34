"""A host that takes pings, as healthchecks.io does; it remembers them, and misbehaves as told."""

import json
import re
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

SECRET_PATH = "planted-Hemmelighet-7-uuid"
"""Whoever knows it can ping: no output may hold it."""


class Ping(NamedTuple):
    """One ping as it arrived: ``fail``, or nothing for success."""

    what: str
    run_id: str
    body: Any


class PingHost(NamedTuple):
    """The host's address and what it got."""

    url: str
    pings: list[Ping]

    @property
    def told(self) -> list[str]:
        return [ping.what for ping in self.pings]


@contextmanager
def ping_host(answers: Sequence[int | None] = (), *, tls: ssl.SSLContext | None = None) -> Iterator[PingHost]:
    """A running host. ``answers`` are the statuses of the first answers, then 200; None: none until the test ends."""
    statuses, over, pings = iter(answers), threading.Event(), list[Ping]()

    def take(request: Request) -> Response:
        what = request.path.removeprefix(f"/{SECRET_PATH}").strip("/")
        pings.append(Ping(what, request.args["rid"], json.loads(request.data)))
        status = next(statuses, 200)
        if status is None:
            over.wait(30)
        return Response(status=status)

    with HTTPServer(ssl_context=tls, threaded=True) as server:
        server.expect_request(re.compile("/")).respond_with_handler(take)
        yield PingHost(server.url_for(f"/{SECRET_PATH}"), pings)
        over.set()
