"""A server on loopback that answers each connection in a thread."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Self


class Listener:
    """Listens on a free port within its block, and then closes every connection."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._sockets = [self._listening]
        self._threads: list[threading.Thread] = []

    def serve(self, client: socket.socket) -> None:
        """Answer one connection. An OSError ends it."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            close(each)
        for thread in self._threads:
            thread.join(30)

    def start(self, work: Callable[..., None], *arguments: object) -> None:
        """Start a thread that an OSError ends."""

        def run() -> None:
            with contextlib.suppress(OSError):
                work(*arguments)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def keep(self, connection: socket.socket) -> None:
        """Close this connection at the end of the block."""
        self._sockets.append(connection)

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.keep(client)
            self.start(self.serve, client)


def close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
