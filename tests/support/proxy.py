"""A proxy in front of PostgreSQL, which forwards bytes until a test or a subclass stops them."""

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

    def __init__(self, database_url: str) -> None:
        super().__init__()
        self.is_silent = threading.Event()
        """When set, nothing passes, and every connection stays open, also a new one."""
        given = conninfo.conninfo_to_dict(database_url)
        host, port = str(given.get("host", "127.0.0.1")), int(given.get("port") or 5432)
        self._address = f"{host}/.s.PGSQL.{port}" if host[0] == "/" else (host, port)
        here = {"host": "127.0.0.1", "port": self.port, "sslmode": "disable", "gssencmode": "disable"}
        self.url = conninfo.make_conninfo(database_url, **here)  # type: ignore[arg-type]

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
        if not self.is_silent.is_set():
            server = socket.socket(socket.AF_UNIX if isinstance(self._address, str) else socket.AF_INET)
            self.keep(server)
            self._run_to_the_end(self._connect, Link(client, server))

    def _connect(self, link: Link) -> None:
        link.server.connect(self._address)
        self.start(self._run_to_the_end, self.answer, link)
        self.forward(link)

    def _run_to_the_end(self, work: Callable[[Link], None], link: Link) -> None:
        with contextlib.suppress(OSError):
            work(link)
        if not self.is_silent.is_set():
            link.close()
