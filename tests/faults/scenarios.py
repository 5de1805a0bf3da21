"""What a lying upstream does, beside what every scripted one can."""

import asyncio
from collections.abc import Sequence

from tests.harness.upstream import (
    CHUNKED,
    DONE,
    SSE,
    Conn,
    Pair,
    Received,
    Step,
    chunk,
    event,
    head,
)

HELLO = event(b'{"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}')
THERE = event(b'{"choices":[{"index":0,"delta":{"content":" there"},"finish_reason":null}]}')
STOP = event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')
WHOLE = HELLO + THERE + STOP + DONE
FRAMES = ("chunked", "length", "close")


def cut(
    body: bytes, after: int, *, how: str = "fin", frame: str = "chunked", pause: float = 0.0
) -> Step:
    """Send *body* up to *after* bytes, in *frame*, then close (`fin`), reset (`rst`), or end it `clean`ly."""

    async def step(conn: Conn, request: Received) -> None:
        headers: list[Pair] = [SSE]
        if frame == "chunked":
            headers.append(CHUNKED)
        elif frame == "length":
            headers.append((b"Content-Length", b"%d" % len(body)))
        part = body[:after]
        data = chunk(part) if frame == "chunked" and part else part
        await conn.send(head(200, headers) + data)
        if how == "rst":
            await asyncio.sleep(0.03)  # else it would overtake what was sent
            conn.reset()
        elif how == "clean":
            await conn.send(b"0\r\n\r\n")
            return
        conn.keep = False

    return step


def events(
    *pieces: bytes, pause: float = 0.0, end: str = "clean", headers: Sequence[Pair] = ()
) -> Step:
    """A stream of *pieces*, a pause between them. *end*: clean, none (it stays open), or cut."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED, *headers]))
        for number, piece in enumerate(pieces):
            if number and pause:
                await asyncio.sleep(pause)
            await conn.send(chunk(piece))
        if end == "clean":
            await conn.send(b"0\r\n\r\n")
        elif end == "none":
            await conn.left(30)
            conn.keep = False
        else:
            conn.keep = False

    return step


def endless(piece: bytes, pause: float = 0.0) -> Step:
    """A stream that goes on until we leave."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]))
        leaving = asyncio.ensure_future(conn.left(60))
        try:
            while not leaving.done():
                await conn.send(chunk(piece))
                await asyncio.sleep(pause)
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            conn.keep = False

    return step


def after(seconds: float, step: Step) -> Step:
    """Wait, then *step*; unless we leave before."""

    async def wait(conn: Conn, request: Received) -> None:
        leaving = asyncio.ensure_future(conn.left(60))
        done, _ = await asyncio.wait({leaving}, timeout=seconds)
        if done:
            conn.keep = False
            return
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        await step(conn, request)

    return wait


class Held:
    """An answer that has begun with *first* and goes on with *last* when it is *released*."""

    def __init__(self, first: bytes = HELLO, last: bytes = STOP + DONE) -> None:
        self.begun = asyncio.Event()
        self.released = asyncio.Event()
        self._first = first
        self._last = last

    async def __call__(self, conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]) + (chunk(self._first) if self._first else b""))
        self.begun.set()
        leaving = asyncio.ensure_future(conn.left(60))
        waiting = asyncio.ensure_future(self.released.wait())
        await asyncio.wait({leaving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (leaving, waiting):
            task.cancel()
        await asyncio.gather(leaving, waiting, return_exceptions=True)
        if not self.released.is_set():
            conn.keep = False
            return
        await conn.send(chunk(self._last) + b"0\r\n\r\n")
