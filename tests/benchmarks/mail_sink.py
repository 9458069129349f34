"""A mail server that takes everything at once: prints its port, and ends with its standard input."""

import asyncio
import sys


class Sink(asyncio.Protocol):
    """One session, without TLS and login, on loopback."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._data = b""
        self._in_body = False
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            line, found, rest = self._data.partition(b"\r\n.\r\n" if self._in_body else b"\r\n")
            if not found:
                return
            self._data = rest
            if self._in_body:
                self._in_body = False
                self._transport.write(b"250 taken\r\n")
                continue
            verb = line[:4].upper()
            self._in_body = verb == b"DATA"
            self._transport.write(
                b"354 go on\r\n" if self._in_body else b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n"
            )


async def serve() -> None:
    """Take mail until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Sink, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())
