"""One connection to an upstream, and the answer that is arriving on it.

A `Connection` carries one request at a time and hands the answer on as it arrives, from
`data_received` to the relay in one call. The traps of the parser are all met here: it has no mode
for answers without end (a close ends them), it reports 1xx as whole answers, it takes bytes after
a body for the next answer, and it knows keep-alive only inside its own callback.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, cast

import httptools

from proxy.errors import (
    STREAM_DISCONNECTED,
    UPSTREAM_DISCONNECTED,
    UPSTREAM_PROTOCOL,
    UPSTREAM_TIMEOUT,
    Kind,
    ProxyError,
    UpstreamFailure,
)
from proxy.exchange import Attempt
from proxy.headers import Pair, find
from proxy.routes import Timeouts

STALE_SECONDS = 0.5
HEAD_BYTES = 256 * 1024
BODILESS = frozenset({204, 304})
"""Answers that end with their head (RFC 9110 sections 15.3.5 and 15.4.5)."""


class Sink(Protocol):
    """Where the body of an answer goes: to a relay."""

    def data(self, data: bytes) -> None:
        """Take the next piece, which is never empty."""

    def end(self) -> None:
        """The answer is complete."""

    def broke(self, error: ProxyError) -> None:
        """The answer will not be completed."""


class Connection(asyncio.Protocol):
    """One connection to an upstream, and the answer that is arriving on it."""

    __slots__ = (
        "_clock",
        "_complete",
        "_failure",
        "_fin",
        "_head_bytes",
        "_in_head",
        "_interim",
        "_interims",
        "_kept",
        "_loop",
        "_parser",
        "_pieces",
        "_sent_at",
        "_sink",
        "_stall",
        "_surplus",
        "_timeouts",
        "_until_close",
        "_uploading",
        "_waiter",
        "born",
        "busy",
        "headers",
        "idle_since",
        "reason",
        "status",
        "transport",
        "used",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float]) -> None:
        self._loop = loop
        self._clock = clock
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.born = self.idle_since = clock()
        self.used = 0
        self.busy = False
        self._uploading = False
        self._stall: asyncio.TimerHandle | None = None
        self._begin(Timeouts())

    def _begin(self, timeouts: Timeouts) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[Pair] = []
        self._timeouts = timeouts
        self._in_head = False
        self._fin = False
        self._interim = False
        self._interims = False
        self._complete = False
        self._kept = False
        self._until_close = False
        self._surplus = False
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self._failure: ProxyError | None = None
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sent_at = 0.0

    # What forward and relay do with it

    async def ask(
        self, pieces: Sequence[bytes | memoryview], timeouts: Timeouts, attempt: Attempt
    ) -> None:
        """Send a request, given as *pieces*, and wait for the head of its answer.

        Raises `UpstreamFailure`; the connection is closed then, as it is on cancellation.
        """
        self.busy = True
        self._begin(timeouts)
        if self.transport.is_closing():
            raise self._dead("unsent")
        self._waiter = self._loop.create_future()
        self._sent_at = self._clock()
        self.used += 1
        attempt.phase = "sent"
        self.transport.writelines(pieces)
        timer = None
        if timeouts.first_byte is not None:
            timer = self._loop.call_later(timeouts.first_byte, self._late)
        try:
            await self._waiter
        except UpstreamFailure:
            if self._uploading:
                attempt.phase = "unsent"
            self.close()
            raise
        except asyncio.CancelledError:
            if self._uploading:
                attempt.phase = "unsent"
            self.close()
            raise
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
        attempt.phase = "answered"
        attempt.status = self.status

    def attach(self, sink: Sink) -> None:
        """Hand the body to *sink*: at once what has arrived already, then the rest as it comes."""
        self._sink = sink
        self._deliver()

    def pause(self) -> None:
        """Take nothing more from the upstream for now."""
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Go on taking from the upstream."""
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def close(self) -> None:
        """End the connection at once; nothing is delivered any more."""
        self._sink = None
        self._surplus = True
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if not self.transport.is_closing():
            if self._uploading:
                # The end would stand in line behind what the upstream does not take: jump it.
                linger(self.transport)
            self.transport.abort()

    def reusable(self) -> bool:
        """Return whether another request may be sent here."""
        return (
            self._complete
            and not self._surplus
            and not self._until_close
            and not self._uploading
            and not self.transport.is_closing()
            and self._kept
        )

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self.busy or self._complete:
            # Nobody asked: a second answer, or an answer to nothing. It must reach nobody.
            self._surplus = True
            self.close()
            return
        if self.status == 0 or self._interim:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail(UPSTREAM_PROTOCOL, "switched to another protocol")
        except httptools.HttpParserError:
            self._surplus = True
            if not self._complete:
                self._fail(UPSTREAM_PROTOCOL, "sent an answer that is not HTTP")
        if self.status == 0 and self._head_bytes > HEAD_BYTES:
            self._fail(UPSTREAM_PROTOCOL, "sent too long a head")
        self._deliver()

    def eof_received(self) -> bool:
        self._fin = True  # under TLS this is close_notify; a bare FIN there is a cut
        return False  # close; connection_lost says the rest

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if not self.busy or self._complete:
            return
        if self._until_close and self._fin and exc is None and self._failure is None:
            self._complete = True
        elif self._interims:
            self._fail(UPSTREAM_PROTOCOL, "announced an answer and sent none")
        else:
            self._fail(UPSTREAM_DISCONNECTED, "closed the connection")
        self._deliver()

    def pause_writing(self) -> None:
        self._uploading = True
        if self._timeouts.write is not None:
            self._watch_upload(outstanding(self.transport), self._timeouts.write)

    def resume_writing(self) -> None:
        self._uploading = False
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # httptools; a name is fixed by the library

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True
            return
        self._in_head = True
        self.reason = b""
        self.headers = []

    def on_status(self, status: bytes) -> None:
        if self._in_head:
            self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # after it, these are trailers, which are not passed on
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._in_head:
            return
        self._in_head = False
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        self._interims = self._interim
        if status == 101 or self._parser.get_http_version() not in ("1.1", "1.0"):
            self._fail(UPSTREAM_PROTOCOL, "switched to another protocol")
        elif not self._interim:
            self._frame(status)

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif self._failure is None:
            self._complete = True
            self._kept = bool(self._parser.should_keep_alive())  # true of this answer only now

    # Inside

    def _frame(self, status: int) -> None:
        """Decide what ends the body (RFC 9112 section 6.3)."""
        codings = [value for name, value in self.headers if name.lower() == b"transfer-encoding"]
        if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
            self._fail(UPSTREAM_PROTOCOL, "used a transfer coding that is not known")
            return
        if status < 200 or any(byte < 32 and byte != 9 for byte in self.reason):
            self._fail(UPSTREAM_PROTOCOL, "sent a status that there is not")
            return
        length = find(self.headers, b"content-length")
        self.status = status
        self._until_close = not codings and length is None and status not in BODILESS

    def _deliver(self) -> None:
        """Hand on what has arrived: the head to who waits for it, the body to who takes it."""
        sink = self._sink
        if sink is None:
            waiter = self._waiter
            if waiter is None or waiter.done():
                return
            if isinstance(self._failure, UpstreamFailure):
                waiter.set_exception(self._failure)
            elif self.status:
                waiter.set_result(None)
            return
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            sink.data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._complete:
            self._sink = None
            sink.end()
        elif self._failure is not None:
            self._sink = None
            sink.broke(self._failure)

    def _fail(self, kind: Kind, what: str) -> None:
        """Note that the answer will not be completed; the first reason is the one that counts."""
        if self._failure is not None:
            return
        self._surplus = True
        message = f"The upstream {what}"
        waiting = self._waiter is not None and not self._waiter.done()
        if self.status and (not waiting or kind is UPSTREAM_DISCONNECTED):
            self._failure = ProxyError(
                STREAM_DISCONNECTED, f"{message} before its answer was complete."
            )
        elif kind is UPSTREAM_DISCONNECTED:
            self._failure = self._dead("unsent" if self._uploading else "sent")
        else:
            self._failure = UpstreamFailure(kind, f"{message}.", billed=True)
        if not self.transport.is_closing():
            self.transport.abort()

    def _dead(self, phase: str) -> UpstreamFailure:
        """Say that the connection died under a request, and whether that proves it unexecuted.

        A server that closes an idle connection just as we write to it has not read the request:
        that is taken to be so within half a second on a used connection, and never on a fresh one.
        """
        unsent = phase == "unsent"
        raced = self.used > 1 and self._clock() - self._sent_at <= STALE_SECONDS
        quiet = self._head_bytes == 0
        return UpstreamFailure(
            UPSTREAM_DISCONNECTED,
            "The upstream closed the connection before it answered.",
            again=quiet and (unsent or raced),
            billed=not unsent,
        )

    def _late(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            message = "The upstream did not begin to answer in time."
            self._waiter.set_exception(UpstreamFailure(UPSTREAM_TIMEOUT, message, billed=True))

    def _watch_upload(self, left: int, seconds: float) -> None:
        self._stall = self._loop.call_later(seconds, self._check_upload, left, seconds)

    def _check_upload(self, left: int, seconds: float) -> None:
        now_left = outstanding(self.transport)
        if now_left < left:
            self._watch_upload(now_left, seconds)
        elif self._waiter is not None and not self._waiter.done():
            message = "The upstream stopped taking the request."
            self._waiter.set_exception(UpstreamFailure(UPSTREAM_TIMEOUT, message))


def outstanding(transport: asyncio.Transport) -> int:
    """Return how many bytes written to *transport* its peer has not taken: here, and in the kernel.

    Only both together shrink whenever the peer takes a byte.
    """
    queued = bytearray(4)
    sock = transport.get_extra_info("socket")
    try:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, queued)
    except (OSError, AttributeError):
        return transport.get_write_buffer_size()
    return transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)


def linger(transport: asyncio.Transport) -> None:
    """Make closing *transport* reset the connection, whatever is still unsent."""
    sock = transport.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
