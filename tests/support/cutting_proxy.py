"""A cable between a mail client and its server that breaks where it is told to: before the final dot or after it."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from tests.support.smtp_server import HOST

END = b"\r\n.\r\n"

Place = Literal["before the final dot", "after the final dot"]


class CuttingProxy:
    """Forwards bytes both ways; the client's side of each connection ends at the place, the server's goes on."""

    def __init__(self, server_port: int, place: Place) -> None:
        self._server_port = server_port
        self._place = place
        self.cuts = 0
        self._listening = socket.create_server((HOST, 0))
        self.port: int = self._listening.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._listening.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection((HOST, self._server_port), timeout=20) as server:
            is_cut, is_answered = threading.Event(), threading.Event()

            def forward_answers() -> None:
                with contextlib.suppress(OSError):
                    while received := server.recv(65536):
                        if is_cut.is_set():
                            is_answered.set()
                        else:
                            client.sendall(received)

            answers = threading.Thread(target=forward_answers, daemon=True)
            answers.start()
            with contextlib.suppress(OSError):
                self._forward(client, server, is_cut)
            if is_cut.is_set():
                client.shutdown(socket.SHUT_RDWR)
                if self._place == "after the final dot":
                    is_answered.wait(20)  # the server takes the message, and its answer reaches nobody
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            answers.join(20)

    def _forward(self, client: socket.socket, server: socket.socket, is_cut: threading.Event) -> None:
        """Forward what the client says until the place has come, or it leaves."""
        before = b""
        while received := client.recv(65536):
            found = (before + received).find(END)
            if found >= 0:
                self.cuts += 1
                is_cut.set()
                length = found - len(before) + len(END if self._place == "after the final dot" else b"\r\n")
                server.sendall(received[: max(length, 0)])
                return
            server.sendall(received)
            before = (before + received)[-len(END) + 1 :]


@contextmanager
def cutting_proxy(server_port: int, place: Place) -> Iterator[CuttingProxy]:
    """A running one."""
    proxy = CuttingProxy(server_port, place)
    try:
        yield proxy
    finally:
        proxy.stop()
