"""A proxy in front of the proxy that shows it under a path of its own, as many an operator does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

PREFIX = "/team/llm"


@asynccontextmanager
async def below(port: int) -> AsyncIterator[str]:
    """Show what listens on *port* below `PREFIX`; yield the address it then has."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        method, path, rest = head.split(b" ", 2)
        if not path.startswith(PREFIX.encode() + b"/"):
            writer.write(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            writer.close()
            return
        line, _, fields = rest.partition(b"\r\n")
        path = path.removeprefix(PREFIX.encode())
        there, here = await asyncio.open_connection("127.0.0.1", port)
        here.write(b"%b %b %b\r\nConnection: close\r\n%b" % (method, path, line, _closing(fields)))
        await asyncio.gather(pipe(reader, here), pipe(there, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{PREFIX}"


def _closing(fields: bytes) -> bytes:
    """Leave out what the browser says of its own connection: one request each is enough here."""
    lines = fields.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(b"connection:"))
