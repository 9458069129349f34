"""A portal that answers at once, or after so many milliseconds, and costs next to nothing.

``answering.py DELAY_MS [FILE]`` prints its port, echoes what is wanted of each contact until its standard input ends,
and prints how many it answered. It lists the contacts of the file, one in a line and in order, 5,000 a page.
"""

import asyncio
import json
import re
import sys
from pathlib import Path

PAGE = 5000


class Portal(asyncio.Protocol):
    """One connection: whole requests in, the contract's answer out."""

    answered = 0
    """By all connections together."""
    visible: tuple[str, ...] = ()

    def __init__(self, delay_seconds: float) -> None:
        self._delay_seconds = delay_seconds
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if len(rest) < length:
                return
            self._data = rest[length:]
            Portal.answered += 1
            body = json.dumps(self._page(head) if head.startswith(b"GET") else _echo(rest[:length])).encode()
            answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
                len(body),
                body,
            )
            if self._delay_seconds:
                asyncio.get_running_loop().call_later(self._delay_seconds, self._transport.write, answer)
            else:
                self._transport.write(answer)

    def _page(self, head: bytes) -> dict[str, object]:
        after = re.search(rb"after=(\d+)", head)
        start = int(after[1]) if after else 0
        following = start + PAGE
        return {
            "visible": self.visible[start:following],
            "next": str(following) if following < len(self.visible) else None,
        }


def _echo(body: bytes) -> dict[str, object]:
    wanted = json.loads(body)
    return {"contact_id": wanted["contact_id"], "visible": wanted["visible"]}


async def serve(delay_seconds: float) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Portal(delay_seconds), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()
    print(Portal.answered, flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        Portal.visible = tuple(Path(sys.argv[2]).read_text().split())
    asyncio.run(serve(float(sys.argv[1]) / 1000))
