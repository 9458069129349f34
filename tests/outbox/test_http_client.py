"""HTTP calls against real sockets: deadlines, no cookies, no proxies, verified TLS."""

import ssl
import time
from typing import Any

import httpx
import pytest
from pytest_httpserver import HTTPServer

from certjob.outbox import http_client
from certjob.outbox.calls import run_alone
from certjob.outbox.http_client import HttpAnswer, HttpClient
from tests.support.portal_answers import answer, drip, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE


def calls(*urls: str, method: str = "GET", **named: Any) -> list[HttpAnswer]:
    """Return the answers to calls of one client, made one after the other."""

    async def call() -> list[HttpAnswer]:
        async with HttpClient() as one:
            return [await one.request(method, url, **named) for url in urls]

    return run_alone(call())


def get(portal: PortalServer, times: int = 1, **named: Any) -> list[HttpAnswer]:
    return calls(*[portal.url] * times, headers={"Authorization": f"Bearer {portal.key}"}, **named)


def test_answer_has_status_headers_and_limited_body(portal: PortalServer) -> None:
    """Every status is an answer. Cookies are not kept, and no compression is requested."""
    portal.then(answer(418, b"tea", headers={"X-Pot": "tea", "Set-Cookie": "session=1"}), answer(404, b"x" * 5_000_000))

    first, second = get(portal, 2, method="POST", json={"a": "å"}, max_body_bytes=1000)

    assert (first.status_code, first.body, first.headers["x-pot"]) == (418, b"tea", "tea")
    assert (second.status_code, second.body) == (404, b"x" * 1000)
    _, request = portal.requests
    assert (request.json, request.headers["content-type"]) == ({"a": "å"}, "application/json")
    assert (request.headers["accept-encoding"], request.headers.get("cookie")) == ("identity", None)


def test_request_is_never_sent_twice(portal: PortalServer) -> None:
    """Not even if it breaks a kept connection, here in the second call. The caller decides about a retry."""
    portal.then(ok(), reset())

    with pytest.raises(httpx.TransportError) as raised:
        get(portal, 2)

    assert not isinstance(raised.value, httpx.ConnectError | httpx.ConnectTimeout)
    assert len(portal.requests) == 2


def test_call_ends_by_its_deadline_although_bytes_arrive(portal: PortalServer) -> None:
    """The server sends the body of its answer byte by byte."""
    portal.then(drip(every_seconds=0.01))
    started = time.monotonic()

    with pytest.raises(httpx.ReadTimeout):
        get(portal, deadline_seconds=0.5)

    assert 0.45 <= time.monotonic() - started < 10


def test_proxies_of_the_environment_are_ignored(
    portal: PortalServer, port_of_nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would receive the key."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port_of_nobody}/")

    assert get(portal)[0].status_code == 200


def test_unreachable_server_is_an_error_in_the_words_of_the_system(port_of_nobody: int) -> None:
    with pytest.raises(httpx.ConnectError, match=r"^Connection refused$"):
        calls(f"http://127.0.0.1:{port_of_nobody}/")


def test_tls_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown certificate is a connection error, and the request is not sent."""
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_side.load_cert_chain(CERTIFICATE)
    with HTTPServer(host="localhost", ssl_context=server_side) as server:
        server.expect_request("/").respond_with_data("ok")
        monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
        http_client.verifying_context.cache_clear()
        assert calls(server.url_for("/"))[0].body == b"ok"

        monkeypatch.delenv("SSL_CERT_FILE")
        http_client.verifying_context.cache_clear()
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            calls(server.url_for("/"))
        assert len(server.log) == 1
