"""Many streams at once, told and taken at little cost: what each is to go through stands in its request,
and both ends know what must have come of it.
"""

import asyncio
import re
import ssl
from dataclasses import dataclass
from functools import partial
from itertools import count
from time import monotonic
from typing import cast

import orjson

from tests.harness.client import chat, request
from tests.harness.upstream import CHUNKED, DONE, JSON, SSE, chunk, event, head, linger

BEAT_SECONDS = 0.05
"""Between two events of a stream: 20 a second."""
SLOTS = 10
"""So many parts of a beat, that not all streams speak in the same moment."""

_HEAD = head(200, [SSE, CHUNKED])
_FLOOD = chunk(event(b'{"flood":"%b"}' % (b"x" * 65_000)))
_FAILED = event(b'{"error":{"message":"overloaded","type":"server_error","code":null}}')
_numbers = count()


@dataclass(frozen=True)
class Plan:
    """What becomes of one request: it goes well for *pieces* events, and then what *kind* says."""

    kind: str
    pieces: int
    number: int

    @classmethod
    def make(cls, kind: str, pieces: int) -> "Plan":
        return cls(kind, pieces, next(_numbers))

    def request(self) -> bytes:
        """Write the request."""
        return request(chat(text=f"{self.kind} {self.pieces} {self.number}", stream=True))

    def piece(self, number: int) -> bytes:
        """Write one event of the answer, none like another."""
        return event(
            b'{"of":%d,"n":%d,"choices":[{"delta":{"content":"tok"}}]}' % (self.number, number)
        )

    def story(self) -> bytes:
        """Write all events of the answer."""
        return b"".join(map(self.piece, range(self.pieces)))


def stamp() -> bytes:
    """Write an event that says when it was written."""
    return event(b'{"at":%.6f,"choices":[{"delta":{"content":"tok"}}]}' % monotonic())


_STAMP = re.compile(rb'"at":([0-9.]+),')


class Teller(asyncio.Protocol):
    """The upstream's side of one connection."""

    def __init__(self, tellers: "Tellers") -> None:
        self._tellers = tellers
        self._buffer = b""
        self._plan: Plan | None = None
        self._told = 0
        self._flooding = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._tellers.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._tellers.open.discard(self)
        if self._plan is not None:
            self._tellers.lost[self._plan.number] = monotonic()
        self._end()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        top, end, rest = self._buffer.partition(b"\r\n\r\n")
        length = int(top.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        if not end or len(rest) < length:
            return
        self._buffer = rest[length:]
        kind, pieces, number = orjson.loads(rest[:length])["messages"][0]["content"].split()
        self._begin(Plan(kind, int(pieces), int(number)))

    def _begin(self, plan: Plan) -> None:
        write = self.transport.write
        self._tellers.begun[plan.number] = self._tellers.begun.get(plan.number, 0) + 1
        if plan.kind == "late":
            self._plan = plan
        elif plan.kind == "refuse":
            self.transport.close()
        elif plan.kind == "garbage":
            write(b"\x15\x03\x01 this is not HTTP\r\n\r\n")
            self.transport.close()
        elif plan.kind.isdigit():
            write(head(int(plan.kind), [JSON, (b"Content-Length", b"2")]) + b"{}")
        else:
            self._plan, self._told = plan, 0
            write(_HEAD)
            if plan.kind == "flood":
                self._flooding = True
                self.resume_writing()
            else:
                self._tellers.slots[plan.number % SLOTS].add(self)

    def beat(self) -> None:
        """Tell the next piece, or how it ends."""
        plan, transport = self._plan, self.transport
        assert plan is not None
        if self._told < plan.pieces or self._tellers.longer:
            timed = plan.kind == "timed"
            transport.write(chunk(stamp() if timed else plan.piece(self._told)))
            self._told += 1
            self._tellers.told += not timed
            return
        if plan.kind == "silent":
            self._tellers.slots[plan.number % SLOTS].discard(self)
            return
        self._end()
        if plan.kind == "whole":
            transport.write(chunk(DONE) + b"0\r\n\r\n")
        elif plan.kind == "failed":
            transport.write(chunk(_FAILED) + chunk(DONE) + b"0\r\n\r\n")
        elif plan.kind == "short":
            transport.write(b"0\r\n\r\n")
        elif plan.kind == "cut":
            transport.write(chunk(plan.piece(self._told)[:20]))
            transport.close()
        elif plan.kind == "reset":
            linger(transport)
            transport.abort()

    def _end(self) -> None:
        if self._plan is not None:
            self._tellers.slots[self._plan.number % SLOTS].discard(self)
        self._plan = None
        self._flooding = False

    def pause_writing(self) -> None:
        self._flooding = False

    def resume_writing(self) -> None:
        if self._plan is not None and self._plan.kind == "flood":
            self._flooding = True
            while self._flooding and not self.transport.is_closing():
                self.transport.write(_FLOOD)
                self._tellers.told += 1


class Tellers:
    """The upstream: *begun* says how often each plan's request came, *lost* when it was broken off."""

    def __init__(self) -> None:
        self.open: set[Teller] = set()
        self.slots: list[set[Teller]] = [set() for _ in range(SLOTS)]
        self.begun: dict[int, int] = {}
        self.lost: dict[int, float] = {}
        self.told = 0
        self.longer = False
        """Whether streams go on past the end of their plan, until they no longer may."""
        self._over = False

    async def __aenter__(self) -> "Tellers":
        loop = asyncio.get_running_loop()
        make = partial(Teller, self)
        self._server = await loop.create_server(make, "127.0.0.1", 0, backlog=1024)
        self._beating = loop.create_task(self._beat())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self._over = True
        await self._beating
        self.leave()

    async def settled(self) -> None:
        """Wait until nobody has been told anything for a moment."""
        told = -1
        while told != self.told:
            told = self.told
            await asyncio.sleep(0.5)

    def leave(self) -> None:
        """Close every connection."""
        for teller in tuple(self.open):
            teller.transport.abort()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _beat(self) -> None:
        due = monotonic()
        while not self._over:
            for slot in self.slots:
                for teller in tuple(slot):
                    teller.beat()
                due = max(due + BEAT_SECONDS / SLOTS, monotonic() - BEAT_SECONDS)
                await asyncio.sleep(max(0.0, due - monotonic()))


@dataclass
class Taken:
    """What a client got: *whole* is whether the transfer was finished."""

    head: bytes
    content: bytes
    whole: bool

    @property
    def status(self) -> int:
        return int(self.head[9:12])

    @property
    def id(self) -> str:
        return self.head.partition(b"x-trunkline-id: ")[2].split(b"\r\n")[0].decode()


class Taker(asyncio.Protocol):
    """The client's side of one connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._done: asyncio.Future[bool] | None = None
        self.lost = False
        self.delays: list[float] | None = None
        """How late each event that says when it was written has come, in seconds, once this is a list."""

    @classmethod
    async def connect(cls, port: int, tls: ssl.SSLContext | None = None) -> "Taker":
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(cls, "127.0.0.1", port, ssl=tls))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._finish(whole=False)

    def data_received(self, data: bytes) -> None:
        if self.delays is not None:
            now = monotonic()
            self.delays += [now - float(at) for at in _STAMP.findall(data)]
        self._buffer += data
        if self._buffer.endswith(b"\r\n0\r\n\r\n"):
            self._finish(whole=True)
        elif b"\r\nContent-Length: " in self._buffer[:1000]:
            top, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if len(rest) >= int(top.partition(b"\r\nContent-Length: ")[2].split(b"\r\n")[0]):
                self._finish(whole=True)

    def _finish(self, *, whole: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(whole)

    async def take(self, plan: Plan) -> Taken:
        """Send the request of *plan*, and take all of its answer, or what there is of it."""
        self._buffer.clear()
        self._done = self._loop.create_future()
        self.transport.write(plan.request())
        async with asyncio.timeout(60):
            whole = await self._done
        top, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if b"\r\nTransfer-Encoding: chunked" in top:
            rest = dechunked(rest)
        return Taken(top + b"\r\n", rest, whole)


def dechunked(data: bytes) -> bytes:
    """Return what *data* holds in chunks, the last of which may be cut."""
    pieces = []
    at = 0
    while (end := data.find(b"\r\n", at)) > 0:
        size = int(data[at:end], 16)
        pieces.append(data[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(pieces)
