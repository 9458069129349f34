"""A portal and a mail server that answer at once, or after so many milliseconds, and cost next to nothing.

``servers.py portal DELAY_MS [FILE]`` echoes what is wanted of each contact, and lists the contacts of the file, one
in a line and in order, 5,000 a page; ``servers.py mail`` takes every message. Each prints its port, and ends with its
standard input.
"""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = 5000


class Server(asyncio.Protocol):
    """One connection: whole requests in, answers out."""

    delay_seconds = 0.0
    visible: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        while answer := self.take():
            if self.delay_seconds:
                asyncio.get_running_loop().call_later(self.delay_seconds, self.transport.write, answer)
            else:
                self.transport.write(answer)

    def take(self) -> bytes:
        """Answer the first request and forget it; nothing while it has not come whole."""
        raise NotImplementedError


class Portal(Server):
    def take(self) -> bytes:
        head, found, rest = self.data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if not found or len(rest) < length:
            return b""
        self.data = rest[length:]
        wanted = self._page(head) if head.startswith(b"GET") else json.loads(rest[:length])
        body = json.dumps(wanted).encode()
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    def _page(self, head: bytes) -> dict[str, Any]:
        after = re.search(rb"after=(\d+)", head)
        start = int(after[1]) if after else 0
        following = start + PAGE
        is_last = following >= len(self.visible)
        return {"visible": self.visible[start:following], "next": None if is_last else str(following)}


class Sink(Server):
    """One session, without TLS and login."""

    in_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(b"220 sink\r\n")

    def take(self) -> bytes:
        line, found, rest = self.data.partition(b"\r\n.\r\n" if self.in_body else b"\r\n")
        if not found:
            return b""
        self.data = rest
        if self.in_body:
            self.in_body = False
            return b"250 taken\r\n"
        self.in_body = line[:4].upper() == b"DATA"
        return b"354 go on\r\n" if self.in_body else b"221 bye\r\n" if line[:4].upper() == b"QUIT" else b"250 ok\r\n"


async def serve(kind: str, delay_ms: str = "0", file: str = "") -> None:
    """Answer until standard input ends."""
    Server.delay_seconds = float(delay_ms) / 1000
    Server.visible = tuple(Path(file).read_text().split()) if file else ()
    loop = asyncio.get_running_loop()
    server = await loop.create_server({"portal": Portal, "mail": Sink}[kind], "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
