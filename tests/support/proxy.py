"""A proxy on loopback: it carries bytes both ways, and a test or a subclass decides where that ends."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self

from psycopg import conninfo


class Link:
    """One connection to the proxy, and the proxy's own to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.is_over = threading.Event()

    def close(self) -> None:
        _close(self.client)
        _close(self.server)
        self.is_over.set()


class Proxy:
    """Listens from the beginning to the end of its block; where one side of a connection is gone, so is the other."""

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        """``dial`` makes a connection to the server, or raises OSError."""
        self.is_silent = threading.Event()
        """Once it is set nothing passes in either direction, and every connection stays open, a new one, too."""
        self._dial = dial
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def forward(self, link: Link) -> None:
        """Carry what the client says, to its end."""
        self.carry(link.client, link.server)

    def answer(self, link: Link) -> None:
        """Carry what the server says, to its end."""
        self.carry(link.server, link.client)

    def carry(self, source: socket.socket, target: socket.socket, *, stall_at: bytes | None = None) -> None:
        while data := source.recv(65536):
            if stall_at is not None and stall_at in data:
                self.is_silent.set()
            if self.is_silent.is_set():
                return
            target.sendall(data)

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            _close(each)
        for thread in self._threads:
            thread.join(30)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(client)
                if not self.is_silent.is_set():
                    self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            server = self._dial()
        except OSError:
            _close(client)
            return
        self._sockets.append(server)
        link = Link(client, server)
        self._start(self._until_the_end, self.answer, link)
        self._until_the_end(self.forward, link)

    def _until_the_end(self, work: Callable[[Link], None], link: Link) -> None:
        with contextlib.suppress(OSError):
            work(link)
        if not self.is_silent.is_set():
            link.close()


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def dial(database_url: str) -> socket.socket:
    """A bare connection to a PostgreSQL. Raises OSError while it is down."""
    parameters = conninfo.conninfo_to_dict(database_url)
    host, port = str(parameters.get("host", "127.0.0.1")), int(parameters.get("port") or 5432)
    if not host.startswith("/"):
        return socket.create_connection((host, port))
    server = socket.socket(socket.AF_UNIX)
    try:
        server.connect(f"{host}/.s.PGSQL.{port}")
    except OSError:
        server.close()
        raise
    return server


class StallingProxy(Proxy):
    """In front of PostgreSQL: it can fall silent, as some do in a failover."""

    def __init__(self, database_url: str, *, at: bytes | None = None) -> None:
        """``at`` is the part of a statement before which it stalls."""
        super().__init__(lambda: dial(database_url))
        self._at = at
        where = {"host": "127.0.0.1", "port": self.port, "sslmode": "disable", "gssencmode": "disable"}
        self.url = conninfo.make_conninfo(database_url, **where)  # type: ignore[arg-type]

    def forward(self, link: Link) -> None:
        self.carry(link.client, link.server, stall_at=self._at)
