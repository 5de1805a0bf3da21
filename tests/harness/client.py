"""A client that hides nothing: it writes the bytes it is given and keeps the bytes it gets."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

Pair = tuple[bytes, bytes]


@dataclass
class Answer:
    """One answer. *whole* is whether its framing was completed; *raw* is everything that came."""

    raw: bytes
    head: bytes
    body: bytes
    whole: bool
    chunks: list[bytes]

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

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

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> Any:
        return self.json()["error"]["code"]


class Client:
    """One connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1") -> "Client":
        reader, writer = await asyncio.open_connection(host, port, limit=2**24)
        return cls(reader, writer)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.writer.transport.abort()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head_only: bool = False, seconds: float = 20.0) -> Answer:
        """Read one answer, to its end or to the end of the connection."""
        async with asyncio.timeout(seconds):
            return await self._answer(head_only)

    async def _answer(self, head_only: bool) -> Answer:
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            return Answer(error.partial, error.partial, b"", False, [])
        if head.startswith(b"HTTP/1.1 100"):
            rest = await self._answer(head_only)
            rest.raw = head + rest.raw
            return rest
        answer = Answer(head, head, b"", True, [])
        if head_only or answer.status in (204, 304):
            return answer
        try:
            await self._body(answer)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            partial = getattr(error, "partial", b"")
            answer.raw += partial
            if not answer.value(b"transfer-encoding"):
                answer.body += partial
            answer.whole = False
        return answer

    async def _body(self, answer: Answer) -> None:
        length = answer.value(b"content-length")
        if answer.value(b"transfer-encoding") is not None:
            assert length is None
            while True:
                line = await self.reader.readuntil(b"\r\n")
                answer.raw += line
                size = int(line, 16)
                data = await self.reader.readexactly(size + 2)
                answer.raw += data
                assert data.endswith(b"\r\n")
                if size == 0:
                    return
                answer.chunks.append(data[:-2])
                answer.body += data[:-2]
        elif length is not None:
            answer.body = await self.reader.readexactly(int(length))
            answer.raw += answer.body
        else:
            answer.body = await self.reader.read()
            answer.raw += answer.body

    async def closed(self, seconds: float = 5.0) -> bytes:
        """Wait until the proxy closes; return what still came."""
        async with asyncio.timeout(seconds):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


def request(
    body: bytes = b"",
    path: str = "/v1/chat/completions",
    headers: Sequence[Pair] = (),
    method: str = "POST",
    version: str = "1.1",
    host: bytes | None = b"localhost",
    length: bool = True,
) -> bytes:
    """Write a request."""
    lines = [f"{method} {path} HTTP/{version}".encode("latin-1")]
    if host is not None:
        lines.append(b"Host: " + host)
    lines += [b"%b: %b" % pair for pair in headers]
    if length and (body or method == "POST"):
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chat(model: str | None = "m", text: str = "hello", **fields: Any) -> bytes:
    """Write the body of a chat."""
    body: dict[str, Any] = {} if model is None else {"model": model}
    return orjson.dumps(body | {"messages": [{"role": "user", "content": text}]} | fields)


async def call(port: int, *args: Any, seconds: float = 20.0, **kwargs: Any) -> Answer:
    """Send one `request(…)` on a connection of its own and return the answer."""
    async with await Client.connect(port) as client:
        await client.send(request(*args, **kwargs))
        head_only = kwargs.get("method") == "HEAD"
        return await client.answer(head_only=head_only, seconds=seconds)
