"""Pass an opened answer on to the client, byte for byte, as it arrives.

From here on nothing is tried again. Bytes go from the upstream's `data_received` to the client's
transport in one call; nothing is held back to an event's end, and taps only read. What the client
cannot take stops the upstream from sending more. When an answer breaks, the client is told in its
dialect, where that is possible, and the transfer is left visibly unfinished: a cut stream must
never look finished.
"""

import asyncio
from collections.abc import Callable, Sequence

from proxy import sse
from proxy.client.relayed import head
from proxy.dialects import Ending, shape_of
from proxy.errors import (
    CLIENT_STALLED,
    STREAM_DISCONNECTED,
    STREAM_ERROR,
    STREAM_IDLE,
    STREAM_INCOMPLETE,
    STREAM_TIMEOUT,
    ProxyError,
    Shape,
    is_good,
    outcome_of,
    render_event,
)
from proxy.exchange import Attempt, Exchange
from proxy.headers import Headers, has_model, is_plain, is_stream
from proxy.model.echo import Echo
from proxy.routes import Timeouts
from proxy.upstream.connection import Connection
from proxy.wire.peers import Stall
from proxy.wire.ports import Downstream, Tap, together

GRACE_SECONDS = 2.0
"""End a finished stream for the client once its upstream has left it open for this long."""

_LENGTH = b"content-length"
_COMMENT = b": keepalive\n"
"""With one line end: where an empty line follows, some decoders take the two for an event without data."""
_COMMENT_ALONE = b": keepalive\n\n"
"""For Google's decoder, which takes what stands before an empty line for one thing."""


class Relay:
    """One answer on its way: from *upstream* to *client*, for *exchange*; *taps* read along, behind the one
    that knows a stream's end, which is asked after each piece.
    """

    __slots__ = (
        "_asked",
        "_attempt",
        "_begun",
        "_chunked",
        "_client",
        "_clock",
        "_comment",
        "_comment_after",
        "_done",
        "_echo",
        "_ended",
        "_exchange",
        "_feed",
        "_grace",
        "_grace_left",
        "_idle",
        "_last",
        "_loop",
        "_marker",
        "_out",
        "_paused",
        "_shape",
        "_spoke",
        "_stall",
        "_timeouts",
        "_total",
        "_unsure",
        "_upstream",
        "_wanted",
        "keep_alive",
    )

    def __init__(
        self,
        exchange: Exchange,
        attempt: Attempt,
        upstream: Connection,
        client: Downstream,
        timeouts: Timeouts,
        clock: Callable[[], float],
        *,
        keep_alive: bool,
        comment_after: float | None = None,
        echo: str | None = None,
        taps: Sequence[Tap] = (),
    ) -> None:
        transport = client.transport
        assert transport is not None  # else this task has been cancelled
        self._loop = upstream.loop
        self._clock = clock
        self._exchange = exchange
        self._attempt = attempt
        self._upstream = upstream
        self._client = client
        self._out = transport
        self._timeouts = timeouts
        self._shape: Shape = exchange.dialect.shape if exchange.dialect else "openai"
        self._marker: sse.Tap | None = None  # which knows an end of a stream: the first of all
        self._feed = together(taps) if taps else None
        self._unsure: bytes | None = None  # what has come of a stream that may be none
        self._wanted = exchange.stream
        self._begun = b""
        self._chunked = False
        self.keep_alive = keep_alive
        self._comment_after = comment_after
        self._asked = echo
        self._echo: Echo | None = None
        self._comment: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] | None = None
        self._ended = False
        self._paused = False
        self._last = 0.0
        self._spoke = 0.0  # when a comment of ours went out
        self._idle: asyncio.TimerHandle | None = None
        self._stall: Stall | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._grace_left: float | None = None  # so long, of the time in which it is heard
        self._total: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Relay the whole answer; return when nothing more will be written.

        On cancellation the upstream's connection is closed, which is what stops its work.
        """
        client = self._client
        client.flow = self
        try:
            self._begun = self._head()
            self._attempt.phase = "streaming"
            self._exchange.relayed = self._last = self._clock()
            if client.writing_paused:
                self.pause_writing()
            self._upstream.attach(self)  # what is there of the body goes out with the head
            if self._begun:
                self._write(b"")
            if not self._ended:
                self._watch()
                self._done = self._loop.create_future()
                await self._done
            if self._paused:  # all is written, and the client takes it slowly: `write` goes on
                self._done = self._loop.create_future()
                await self._done
        finally:
            client.flow = None
            for timer in (self._idle, self._grace, self._total, self._comment):
                if timer is not None:
                    timer.cancel()
            if self._stall is not None:
                self._stall.stop()
            if not self._ended:
                self._upstream.close()

    def abort(self, error: ProxyError) -> None:
        """End the answer here and now, because of *error*."""
        if not self._ended:
            self.broke(error)

    # Sink: what the upstream's connection calls

    @property
    def size(self) -> int:
        """Return how many bytes of the body have gone out."""
        return self._exchange.bytes_out

    def data(self, data: bytes) -> None:
        """Pass *data* on."""
        if self._out.is_closing():
            return
        self._last = self._clock()
        if self._unsure is not None:
            self._judge(data)
        echo = self._echo
        if echo is not None:
            if named := echo.feed(data):
                self._write(named)
        elif self._begun or not self._chunked:
            self._write(data)
        else:  # an event, as nearly all are
            self._exchange.bytes_out += len(data)
            self._out.pass_on(b"%x\r\n%b\r\n" % (len(data), data))
        marker = self._marker
        if marker is not None:
            marker.feed(data)
            self._exchange.finished = marker.finished
            if marker.failed and self._exchange.error is None:
                self._note_failure(marker)
            if marker.over and self._grace_left is None:
                self._grace_left = GRACE_SECONDS
                if not self._paused:
                    self._grace = self._loop.call_later(GRACE_SECONDS, self._finish)
        if self._feed is not None:
            self._feed(data)

    def end(self) -> None:
        """The upstream's answer is complete."""
        marker = self._marker
        if (
            marker is None
            or not marker.checked
            or marker.closes()
            or marker.foreign
            or self._has_length()
        ):
            self._finish()
        else:
            message = "The upstream ended its answer before it was finished."
            self._break(ProxyError(STREAM_INCOMPLETE, message))

    def broke(self, error: ProxyError) -> None:
        """The upstream's answer will not be completed."""
        if self._marker is not None and self._marker.closes():
            self._finish()
        else:
            self._break(error)

    # Flow: what the client's connection calls

    def pause_writing(self) -> None:
        """Stop the upstream, and give the client a while to go on taking."""
        self._paused = True
        if not self._ended:
            self._upstream.pause()
        if self._grace is not None:  # nobody hears it end meanwhile
            self._grace_left = max(0.0, self._grace.when() - self._loop.time())
            self._grace.cancel()
            self._grace = None
        if self._timeouts.write is not None:
            self._stall = Stall(self._loop, self._out, self._timeouts.write, self._not_taken)

    def resume_writing(self) -> None:
        """Let the upstream go on."""
        self._paused = False
        self._last = self._clock()
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
        if not self._ended:
            self._upstream.resume()
            if self._grace_left is not None:
                self._grace = self._loop.call_later(self._grace_left, self._finish)
        elif self._done is not None and not self._done.done():
            self._done.set_result(None)

    # Inside

    def _head(self) -> bytes:
        """Decide what the answer is, by its head, and return that as the client gets it."""
        exchange, upstream = self._exchange, self._upstream
        status = upstream.status
        exchange.status = status
        exchange.outcome = outcome_of(status)
        headers = upstream.headers
        reframe = False  # something of ours may have to be put in
        if is_stream(headers):
            exchange.stream = True
            self._unsure = b""
            plain = is_good(status) and is_plain(headers)
            self._marker = sse.Tap(self._ending() if plain else Ending.NONE)
            if not plain:
                self._comment_after = None
            reframe = self._marker.checked or self._comment_after is not None
        else:
            self._comment_after = None
        if self._asked is not None and self._may_name_model(status, headers):
            self._echo = Echo(self._asked, stream=self._marker is not None)
            reframe = True
        begun, self._chunked, self.keep_alive = head(
            exchange,
            status,
            upstream.reason,
            headers,
            stream=self._marker is not None,
            reframe=reframe,
            keep_alive=self.keep_alive,
        )
        return begun

    def _may_name_model(self, status: int, headers: Headers) -> bool:
        """Return whether the answer may name a model, in whose place the one stands that was asked for."""
        good = status == 200 if self._marker is None else is_good(status)
        return good and is_plain(headers) and has_model(headers)

    def _ending(self) -> Ending:
        """Return what must be seen before an end of this stream counts as finished."""
        dialect, upstream = self._exchange.dialect, self._exchange.upstream
        if dialect is None or upstream is None or upstream.terminal == "none":
            return Ending.NONE
        if upstream.terminal == "done" and dialect.ending is Ending.CHAT:
            return Ending.DONE
        return dialect.ending

    def _judge(self, data: bytes) -> None:
        """Decide whether this is the stream that its label says, now that *data* begins it, or goes on
        to: a plain answer is left as it is from here on, and ends as one.
        """
        begun = (self._unsure or b"") + data
        known = sse.begins(begun)
        if known is None:
            self._unsure = (
                begun[: len(sse.BOM)] if sse.BOM.startswith(begun[: len(sse.BOM)]) else b""
            )
            return
        self._unsure = None
        if not known:
            self._marker = None
            self._exchange.stream = self._wanted
            if self._asked is not None and self._echo is not None:
                self._write_rest()
                self._echo = Echo(self._asked, stream=False)

    def _has_length(self) -> bool:
        """Return whether the upstream said how long its answer would be, and kept to it."""
        first = self._upstream.headers.first
        return _LENGTH in first and b"transfer-encoding" not in first

    def _note_failure(self, marker: sse.Tap) -> None:
        """Take note that the upstream has said, in the middle of its answer, that it has failed."""
        self._exchange.error = self._attempt.error = STREAM_ERROR.code
        self._exchange.outcome = STREAM_ERROR.outcome
        self._attempt.spared = not marker.spoke

    def _write(self, data: bytes) -> None:
        self._exchange.bytes_out += len(data)
        begun = self._begun
        if self._chunked and data:
            data = b"%b%x\r\n%b\r\n" % (begun, len(data), data)
        elif begun:
            data = begun + data
        if begun:
            self._begun = b""
            self._out.write(data)
        else:
            self._out.pass_on(data)

    def _write_rest(self) -> None:
        """Write what was held back to put a name into it."""
        if self._echo is not None and (rest := self._echo.rest()):
            self._write(rest)

    def _finish(self) -> None:
        """End the answer as a complete one."""
        if self._ended:
            return  # the grace is over in the very moment that the upstream ended it
        if not self._out.is_closing():
            self._write_rest()
            if self._chunked:
                self._out.pass_on(self._begun + b"0\r\n\r\n")
            elif self._begun:
                self._out.write(self._begun)
            self._begun = b""
        self._close()

    def _break(self, error: ProxyError) -> None:
        """End the answer as an unfinished one: say why in an event, and leave the transfer open-ended.

        Where it broke off in the middle of an event, nothing is said: to close the half one would make
        an SDK stumble over its broken JSON, and to leave it open has it say that the connection broke,
        which is the truth. Only a client of HTTP/1.0 cannot see that, and hears of it all the same.
        """
        self._exchange.outcome = error.kind.outcome
        self._exchange.error = error.kind.code
        self._attempt.error = error.kind.code
        self._attempt.broken = error.kind in (STREAM_DISCONNECTED, STREAM_IDLE)
        self.keep_alive = False
        marker = self._marker
        if not self._out.is_closing():
            self._write_rest()
        if marker is not None and marker.checked and not self._out.is_closing():
            event = render_event(error, self._shape, self._exchange.id)
            if marker.between:
                self._write(event)
            elif not self._chunked:
                self._write(b"\n\n" + event)
        self._close()

    def _close(self) -> None:
        self._ended = True
        if not self._upstream.reusable():
            self._upstream.close()
        elif self._paused:
            self._upstream.resume()  # else it would go into the pool, and never be heard again
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    # Timers: armed once, and looked at again when they ring, so that an event costs no timer

    def _watch(self) -> None:
        if self._timeouts.idle is not None:
            self._idle = self._loop.call_later(self._timeouts.idle, self._check_idle)
        if self._comment_after is not None:
            self._comment = self._loop.call_later(self._comment_after, self._check_silence)
        if self._timeouts.total is not None:
            left = self._exchange.received + self._timeouts.total - self._clock()
            self._total = self._loop.call_later(max(0.0, left), self._overdue)

    def _check_silence(self) -> None:
        """Put a comment into a stream that has been silent for a while, if it stands between events."""
        assert self._comment_after is not None
        left = max(self._last, self._spoke) + self._comment_after - self._clock()
        if left <= 0:
            left = self._comment_after
            if self._may_comment():
                gemini = "gemini" in (self._shape, shape_of(self._exchange.path))
                self._write(_COMMENT_ALONE if gemini else _COMMENT)
                self._spoke = self._clock()
        self._comment = self._loop.call_later(left, self._check_silence)

    def _may_comment(self) -> bool:
        marker = self._marker
        if marker is None or marker.over or not marker.quiet:
            return False
        if self._unsure is not None and not self._wanted:  # it may be no stream
            return False
        return not self._paused and not self._out.is_closing()

    def _check_idle(self) -> None:
        limit = self._timeouts.idle
        assert limit is not None
        left = self._last + limit - self._clock()
        if self._paused:
            left = limit  # it is the client that is slow, and `write` that judges it
        if left > 0:
            self._idle = self._loop.call_later(left, self._check_idle)
        else:
            self.abort(
                ProxyError(STREAM_IDLE, "The upstream fell silent in the middle of its answer.")
            )

    def _overdue(self) -> None:
        self.abort(ProxyError(STREAM_TIMEOUT, "The answer took longer than this route allows."))

    def _not_taken(self) -> None:
        self._exchange.outcome = CLIENT_STALLED.outcome
        self._exchange.error = CLIENT_STALLED.code
        unsent = self._out.get_write_buffer_size()
        self._exchange.bytes_out = max(0, self._exchange.bytes_out - unsent)
        self._upstream.close()
        self._out.abort()  # its buffer is full of what nobody takes
