"""Proxies on loopback. They forward bytes both ways, until a test or a subclass stops them."""

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

from psycopg import conninfo

from tests.support.listener import Listener, close


@dataclass(frozen=True, eq=False)
class Link:
    """A connection to the proxy, and the proxy's own connection to the server for it."""

    client: socket.socket
    server: socket.socket

    def close(self) -> None:
        close(self.client)
        close(self.server)


class Proxy(Listener):
    """When one side of a connection ends, it ends the other."""

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        """``dial`` connects to the server, or raises OSError."""
        super().__init__()
        self.is_silent = threading.Event()
        """When set, nothing passes, and every connection stays open, also a new one."""
        self._dial = dial

    def forward(self, link: Link) -> None:
        """Carry the client's bytes until it ends."""
        self.carry(link.client, link.server)

    def answer(self, link: Link) -> None:
        """Carry the server's bytes until it ends."""
        self.carry(link.server, link.client)

    def carry(self, source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            if self.is_silent.is_set():
                return
            target.sendall(data)

    def serve(self, client: socket.socket) -> None:
        if self.is_silent.is_set():
            return
        try:
            server = self._dial()
        except OSError:
            close(client)
            return
        self.keep(server)
        link = Link(client, server)
        self.start(self._run_to_the_end, self.answer, link)
        self._run_to_the_end(self.forward, link)

    def _run_to_the_end(self, work: Callable[[Link], None], link: Link) -> None:
        with contextlib.suppress(OSError):
            work(link)
        if not self.is_silent.is_set():
            link.close()


class StallingProxy(Proxy):
    """In front of PostgreSQL: it can go silent, as some proxies do in a failover."""

    def __init__(self, database_url: str) -> None:
        parameters = conninfo.conninfo_to_dict(database_url)
        host, port = str(parameters.get("host", "127.0.0.1")), int(parameters.get("port") or 5432)
        super().__init__(lambda: _dial_unix(host, port) if host[0] == "/" else socket.create_connection((host, port)))
        here = {"host": "127.0.0.1", "port": self.port, "sslmode": "disable", "gssencmode": "disable"}
        self.url = conninfo.make_conninfo(database_url, **here)  # type: ignore[arg-type]


def _dial_unix(folder: str, port: int) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(f"{folder}/.s.PGSQL.{port}")
    except OSError:
        server.close()
        raise
    return server
