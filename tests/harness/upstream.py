"""An upstream on a real socket that does what a script says, and writes down what it saw."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

Pair = tuple[bytes, bytes]


@dataclass
class Received:
    """One request, byte for byte."""

    head: bytes
    body: bytes
    connection: int

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n", 1)[0]

    @property
    def target(self) -> str:
        return self.line.split(b" ")[1].decode("latin-1")

    @property
    def headers(self) -> list[Pair]:
        lines = self.head.rstrip(b"\r\n").split(b"\r\n")[1:]
        pairs = (line.split(b":", 1) for line in lines)
        return [(name, value.strip(b" ")) for name, value in pairs]

    def values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def value(self, name: bytes) -> bytes | None:
        found = self.values(name)
        return found[0] if found else None


@dataclass
class Conn:
    """One connection as the upstream sees it; *gone* is set when the proxy has left it."""

    index: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    keep: bool = True

    async def send(self, data: bytes) -> None:
        if self.writer.transport.is_closing():
            raise ConnectionResetError("the proxy has left")
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with RST, not FIN."""
        linger(self.writer.transport)
        self.writer.transport.abort()
        self.keep = False

    async def left(self, seconds: float = 5.0) -> None:
        """Wait until the proxy has closed this connection."""
        async with asyncio.timeout(seconds):
            while await self.reader.read(65536):
                pass


def linger(transport: asyncio.BaseTransport) -> None:
    """Make closing *transport* reset the connection."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


Step = Callable[[Conn, Received], Awaitable[None]]
"""One item of a script: answers one request."""


class Upstream:
    """A scripted upstream: `will(step, …)` says what it does, one step a request, the last one for ever.

    *requests* are all it received, *connections* all that were made to it. A script may be per
    connection or per request: `step(conn, request)` gets both.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.requests: list[Received] = []
        self.connections: list[Conn] = []
        self._script: list[Step] = [answer()]
        self._taken = 0
        self._tls = tls
        self._host = host
        self._tasks: set[asyncio.Task[None]] = set()
        self.errors: list[BaseException] = []

    def will(self, *steps: Step) -> None:
        self._script = list(steps)
        self._taken = 0

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def authority(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{self.authority}/v1"

    async def __aenter__(self) -> "Upstream":
        self._server = await asyncio.start_server(
            self._serve, self._host, 0, ssl=self._tls, limit=2**20
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for conn in self.connections:
            conn.writer.transport.abort()
        await asyncio.sleep(0)
        if kind is None and self.errors:
            raise self.errors[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        conn = Conn(len(self.connections), reader, writer)
        self.connections.append(conn)
        try:
            while conn.keep:
                request = await self._read(conn)
                if request is None:
                    break
                self.requests.append(request)
                step = self._script[min(self._taken, len(self._script) - 1)]
                self._taken += 1
                await step(conn, request)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            conn.gone.set()
            writer.close()
            self._tasks.discard(task)

    @staticmethod
    async def _read(conn: Conn) -> Received | None:
        head = b""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await conn.reader.readuntil(b"\r\n\r\n")
        if not head:
            return None
        request = Received(head, b"", conn.index)
        length = request.value(b"content-length")
        if length is not None:
            request.body = await conn.reader.readexactly(int(length))
        return request


def head(
    status: int = 200, headers: Sequence[Pair] = (), reason: bytes = b"OK", version: bytes = b"1.1"
) -> bytes:
    lines = [b"HTTP/%b %d %b" % (version, status, reason)]
    lines += [b"%b: %b" % pair for pair in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


JSON: Pair = (b"Content-Type", b"application/json")
SSE: Pair = (b"Content-Type", b"text/event-stream")
CHUNKED: Pair = (b"Transfer-Encoding", b"chunked")
DONE = b"data: [DONE]\n\n"


def answer(
    status: int = 200,
    body: bytes = b'{"ok":true}',
    headers: Sequence[Pair] = (JSON,),
    reason: bytes = b"OK",
    *,
    close: bool = False,
) -> Step:
    """A whole answer, with a Content-Length."""

    async def step(conn: Conn, request: Received) -> None:
        length = (b"Content-Length", b"%d" % len(body))
        await conn.send(head(status, [*headers, length], reason) + body)
        conn.keep = not close

    return step


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


def stream(
    *pieces: bytes,
    pause: float = 0.0,
    headers: Sequence[Pair] = (SSE,),
    status: int = 200,
    end: str = "clean",
) -> Step:
    """A chunked answer, a chunk a piece. *end*: clean, cut (FIN), reset (RST), or hang."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(status, [*headers, CHUNKED]))
        for piece in pieces:
            await conn.send(chunk(piece))
            if pause:
                await asyncio.sleep(pause)
        if end == "clean":
            await conn.send(b"0\r\n\r\n")
        elif end == "reset":
            await asyncio.sleep(0.05)
            conn.reset()
        elif end == "hang":
            await conn.left(30)
            conn.keep = False
        else:
            conn.keep = False

    return step


def raw(data: bytes, *, then: str = "close") -> Step:
    """These bytes, whatever they are. *then*: close, keep, hang, or reset."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(data)
        if then == "hang":
            await conn.left(30)
        elif then == "reset":
            await asyncio.sleep(0.05)
            conn.reset()
        conn.keep = then == "keep"

    return step


def hang() -> Step:
    """No answer, until the proxy leaves."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.left(30)
        conn.keep = False

    return step


def reset() -> Step:
    """The connection is reset instead of an answer."""

    async def step(conn: Conn, request: Received) -> None:
        conn.reset()

    return step


def close() -> Step:
    """The connection is closed instead of an answer."""

    async def step(conn: Conn, request: Received) -> None:
        conn.keep = False

    return step
