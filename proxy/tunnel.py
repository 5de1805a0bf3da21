"""Pass a WebSocket on, both ways, byte for byte, once the upstream has agreed to it.

What one side cannot take stops the other. Frames are only watched: to know whether an end is an end.
"""

import asyncio
from collections.abc import Callable, Sequence

from proxy.errors import (
    CLIENT_STALLED,
    SHUTDOWN,
    STREAM_DISCONNECTED,
    STREAM_IDLE,
    STREAM_TIMEOUT,
    ProxyError,
)
from proxy.exchange import Attempt, Exchange
from proxy.headers import find, inbound, lines
from proxy.routes import Timeouts
from proxy.upstream.connection import Connection
from proxy.wire.peers import Stall
from proxy.wire.ports import Caller, Tap, together
from proxy.wire.websocket import Frames

LAST_WORDS_SECONDS = 1.0
"""Give an upstream this long to take what the client said last."""
_RESTARTS = b"\x88\x02\x03\xf4"
"""Says 1012, service restart, in a Close frame (RFC 6455 section 7.4.2)."""


class Tunnel:
    """One WebSocket: between *upstream*, which has answered 101, and *client*, for *exchange*; *taps* read
    along what the upstream says, behind the one that knows an end.
    """

    keep_alive = False

    def __init__(
        self,
        exchange: Exchange,
        attempt: Attempt,
        upstream: Connection,
        client: Caller,
        timeouts: Timeouts,
        clock: Callable[[], float],
        taps: Sequence[Tap] = (),
    ) -> None:
        assert client.transport is not None  # else this task has been cancelled
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._exchange = exchange
        self._attempt = attempt
        self._upstream = upstream
        self._client = client
        self._out = client.transport
        self._timeouts = timeouts
        self._said = Frames()
        self._heard = Frames()
        self._feed = together([self._heard, *taps])
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._last = clock()
        self._stall: Stall | None = None
        self._paused = False
        self._reading = _Reading(self._out)
        self._idle: asyncio.TimerHandle | None = None
        self._total: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Pass on what both sides say; return when one of them has ended it.

        On cancellation, and whenever the client has left, the upstream's connection is closed.
        """
        try:
            self._begin()
            await self._done
        finally:
            self._client.flow = None
            self._upstream.flow = None
            for timer in (self._idle, self._total):
                if timer is not None:
                    timer.cancel()
            if self._stall is not None:
                self._stall.stop()
            self._upstream.hang_up(LAST_WORDS_SECONDS)

    def abort(self, error: ProxyError) -> None:
        """End both sides here and now, because of *error*."""
        if error.kind is SHUTDOWN and self._heard.between and not self._heard.closed:
            self._out.write(_RESTARTS)
        self.broke(error)

    # Sink: what the upstream says

    @property
    def size(self) -> int:
        """Return how many bytes the upstream has said."""
        return self._exchange.bytes_out

    def data(self, data: bytes) -> None:
        """Pass on what the upstream says."""
        self._last = self._clock()
        self._feed(data)
        self._note_close()
        if not self._out.is_closing():
            self._exchange.bytes_out += len(data)
            self._out.write(data)

    def end(self) -> None:
        """The upstream has closed its side."""
        if not self._exchange.finished:
            message = "The upstream closed the connection without a word."
            self.broke(ProxyError(STREAM_DISCONNECTED, message))
        elif not self._done.done():
            self._done.set_result(None)

    def broke(self, error: ProxyError) -> None:
        """The upstream will say no more."""
        if self._done.done():
            return
        if not self._exchange.finished:
            self._exchange.outcome = error.kind.outcome
            self._exchange.error = error.kind.code
            self._attempt.error = error.kind.code
        self._done.set_result(None)

    # What the client says

    def _take(self, data: bytes) -> None:
        self._last = self._clock()
        self._exchange.bytes_in += len(data)
        self._said.feed(data)
        self._note_close()
        self._upstream.write(data)

    # Flow of the client: it does not keep up

    def pause_writing(self) -> None:
        """Stop the upstream, and give the client a while to go on taking."""
        self._paused = True
        self._upstream.pause()
        if self._timeouts.write is not None:
            self._stall = Stall(self._loop, self._out, self._timeouts.write, self._not_taken)

    def resume_writing(self) -> None:
        """Let the upstream go on."""
        self._paused = False
        self._last = self._clock()
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
        self._upstream.resume()

    # Inside

    def _begin(self) -> None:
        exchange, upstream = self._exchange, self._upstream
        identity = exchange.id.encode("ascii")
        pairs = inbound(upstream.headers)
        pairs += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        pairs += [(b"x-trunkline-id", identity)]
        if find(pairs, b"x-request-id") is None:
            pairs.append((b"x-request-id", identity))
        reason = b" " + upstream.reason
        exchange.status = upstream.status
        exchange.outcome = "ok"
        exchange.stream = True
        exchange.relayed = self._clock()
        self._attempt.phase = "streaming"
        self._out.write(b"HTTP/1.1 101%b\r\n%b\r\n" % (reason, lines(pairs)))
        self._client.flow = self
        upstream.flow = self._reading
        if self._timeouts.idle is not None:
            self._idle = self._loop.call_later(self._timeouts.idle, self._check_idle)
        if self._timeouts.total is not None:
            left = exchange.received + self._timeouts.total - self._clock()
            self._total = self._loop.call_later(max(0.0, left), self._overdue)
        upstream.attach(self)
        self._client.tunnel(self._take)

    def _note_close(self) -> None:
        """Take note that one side has said Close: whoever hangs up now breaks nothing off."""
        if self._said.closed or self._heard.closed:
            self._exchange.finished = True

    def _check_idle(self) -> None:
        limit = self._timeouts.idle
        assert limit is not None
        left = self._last + limit - self._clock()
        if self._paused or self._reading.paused:
            left = limit  # one side is slow, and `write` judges it
        if left > 0:
            self._idle = self._loop.call_later(left, self._check_idle)
        else:
            self.abort(ProxyError(STREAM_IDLE, "Both sides fell silent."))

    def _overdue(self) -> None:
        self.abort(ProxyError(STREAM_TIMEOUT, "It took longer than this route allows."))

    def _not_taken(self) -> None:
        self.broke(ProxyError(CLIENT_STALLED, "The client takes no more."))
        self._out.abort()


class _Reading:
    """Flow of the upstream: while it does not keep up, the client is not read."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client
        self.paused = False

    def pause_writing(self) -> None:
        self.paused = True
        if not self._client.is_closing():
            self._client.pause_reading()

    def resume_writing(self) -> None:
        self.paused = False
        if not self._client.is_closing():
            self._client.resume_reading()
