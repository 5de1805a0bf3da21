"""Read an opened answer piece by piece: where it is for us, and not relayed to a client."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from proxy.errors import STREAM_IDLE, STREAM_TIMEOUT, ProxyError
from proxy.upstream.connection import Connection
from proxy.wire.ports import Tap, together

WAITING_BYTES = 256 * 1024
"""Stop the upstream while this much of its answer waits here."""


class Reader:
    """One answer, as `pieces`: silent for *idle* seconds at most, and complete within *total* from now;
    *taps* read along.
    """

    def __init__(
        self,
        upstream: Connection,
        idle: float | None,
        total: float | None = None,
        taps: Sequence[Tap] = (),
    ) -> None:
        self._upstream = upstream
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._ends = None if total is None else self._loop.time() + total
        self._feed = together(taps) if taps else None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._paused = False
        self._error: ProxyError | None = None
        self._news: asyncio.Future[None] | None = None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it comes, until it is complete. Raises `ProxyError` where it breaks."""
        self._upstream.attach(self)
        try:
            while True:
                while self._pieces:
                    piece = self._pieces.popleft()
                    self._size -= len(piece)
                    if self._paused and self._size < WAITING_BYTES // 2:
                        self._paused = False
                        self._upstream.resume()
                    yield piece
                if self._error is not None:
                    raise self._error
                if self._ended:
                    return
                await self._wait()
        finally:
            if not self._ended:
                self._upstream.close()

    async def _wait(self) -> None:
        self._news = self._loop.create_future()
        silent = None if self._idle is None else self._loop.time() + self._idle
        known = [moment for moment in (silent, self._ends) if moment is not None]
        try:
            async with asyncio.timeout_at(min(known, default=None)):
                await self._news
        except TimeoutError:
            if self._ends is not None and self._ends == min(known):
                message = "The answer took longer than this route allows."
                raise ProxyError(STREAM_TIMEOUT, message) from None
            message = "The upstream fell silent in the middle of its answer."
            raise ProxyError(STREAM_IDLE, message) from None

    # Sink: what the upstream's connection calls

    @property
    def size(self) -> int:
        """Return how many bytes wait here."""
        return self._size

    def data(self, data: bytes) -> None:
        """Take the next piece."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size > WAITING_BYTES and not self._paused:
            self._paused = True
            self._upstream.pause()
        self._wake()
        if self._feed is not None:
            self._feed(data)

    def end(self) -> None:
        """The answer is complete."""
        self._ended = True
        if self._paused:
            self._upstream.resume()  # else it would go into the pool, and never be heard again
        self._wake()

    def broke(self, error: ProxyError) -> None:
        """The answer will not be completed."""
        self._error = error
        self._upstream.close()
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)
