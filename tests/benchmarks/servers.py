"""A fast portal and a fast mail server.

``servers.py portal DELAY_MS [FILE]`` confirms every push, and lists the contacts of the file, one per line and in
order, in pages of 5,000; ``servers.py mail`` takes every message. Each prints its port, and ends with its standard
input.
"""

import asyncio
import json
import re
import sys
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from pathlib import Path

PAGE = 5000


async def portal(reader: StreamReader, writer: StreamWriter, *, delay_ms: str, file: str = "") -> None:
    visible = Path(file).read_text().split() if file else []
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        answer = await reader.readexactly(length)
        if head.startswith(b"GET"):
            after = re.search(rb"after=(\d+)", head)
            start = int(after[1]) if after else 0
            is_last = start + PAGE >= len(visible)
            contacts = [{"contact_id": each, "visible_until": None} for each in visible[start : start + PAGE]]
            page = {"contacts": contacts, "next": None if is_last else str(start + PAGE), "dates": False}
            answer = json.dumps(page).encode()
        else:
            answer = json.dumps(json.loads(answer) | {"visible_until": None, "dates": False}).encode()
        await asyncio.sleep(float(delay_ms) / 1000)
        fields = b"content-type: application/json\r\ncontent-length: %d" % len(answer)
        writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (fields, answer))


async def mail(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(b"220 sink\r\n")
    while line := await reader.readline():
        verb = line[:4].upper()
        writer.write({b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n"))
        if verb == b"DATA":
            await reader.readuntil(b"\r\n.\r\n")
            writer.write(b"250 taken\r\n")


async def serve(kind: str, *arguments: str) -> None:
    """Answer until standard input ends."""

    async def talk(reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            if kind == "mail":
                await mail(reader, writer)
            else:
                await portal(reader, writer, **dict(zip(("delay_ms", "file"), arguments, strict=False)))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(*sys.argv[1:]))
