"""A proxy in front of PostgreSQL that can stop forwarding and keep every connection open, as some do in a failover."""

import contextlib
import socket
import threading
from typing import Self

from psycopg import conninfo


class StallingProxy:
    """Listens on loopback; a context manager."""

    def __init__(self, database_url: str, *, at: bytes | None = None) -> None:
        """``at`` is the part of a statement before which it stalls."""
        self._at = at
        self._server = conninfo.conninfo_to_dict(database_url)
        self._stalled = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.url = conninfo.make_conninfo(database_url, host=host, port=port, sslmode="disable", gssencmode="disable")

    def stall(self) -> None:
        """Forward nothing more, in either direction; new connections are accepted and get no answer."""
        self._stalled.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                if self._stalled.is_set():
                    continue
                server = self._dial()
                self._sockets.append(server)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _dial(self) -> socket.socket:
        host, port = str(self._server.get("host", "127.0.0.1")), int(self._server.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        server.connect(f"{host}/.s.PGSQL.{port}")
        return server

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while received := source.recv(65536):
                if self._at is not None and self._at in received:
                    self.stall()
                if self._stalled.is_set():
                    return
                sink.sendall(received)
            if not self._stalled.is_set():
                sink.shutdown(socket.SHUT_WR)
