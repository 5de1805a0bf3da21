"""One connection to an upstream, and the answer that is arriving on it.

A `Connection` carries one request at a time and hands the answer on as it arrives, from
`data_received` to the relay in one call. The traps of the parser are all met here: it has no mode
for answers without end (a close ends them), it reports 1xx as whole answers, it takes bytes after
a body for the next answer, and it knows keep-alive only inside its own callback. It appends the
chunks of a body to a list by itself, as a call of ours for each would cost more than they do. After
a 101 there is no parser any more: bytes are bytes, in both directions.
"""

import asyncio
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import cast

import httptools

from proxy.body import Piece
from proxy.errors import (
    STREAM_DISCONNECTED,
    STREAM_TIMEOUT,
    UPSTREAM_DISCONNECTED,
    UPSTREAM_PROTOCOL,
    UPSTREAM_TIMEOUT,
    UPSTREAM_TLS,
    Fault,
    Kind,
    ProxyError,
    UpstreamFailure,
)
from proxy.exchange import Attempt
from proxy.headers import Headers, Pair
from proxy.outbox import CLOSED, Outbox, Outgoing
from proxy.peers import Stall, linger
from proxy.ports import Flow, Sink
from proxy.routes import Timeouts

STALE_SECONDS = 0.5
UNTAKEN_BYTES = 256 * 1024
"""How much of a body may have arrived before somebody takes it."""
HEAD_BYTES = 256 * 1024
JOINED_BYTES = 64 * 1024
BODILESS = frozenset({204, 304})
"""Answers that end with their head (RFC 9110 sections 15.3.5 and 15.4.5)."""


_NO_HEADERS = Headers()
_REFUSAL = re.compile(r"ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)")
"""The alerts (RFC 8446 section 6) of a server that does not take the client's certificate."""
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f]")


@dataclass(frozen=True, slots=True)
class Upload:
    """A request body that is sent as it comes: *read* returns the next piece, nothing at its end, and
    raises `ProxyError` where it breaks; the pieces may have to go out *chunked*.
    """

    read: Callable[[], Awaitable[bytes]]
    chunked: bool


def refusal(error: BaseException | None) -> str:
    """Return in what words *error*, of TLS, says that an upstream wants another certificate of us, or one at
    all; nothing where it is another one. No such upstream has read a byte of a request.
    """
    said = (error.reason or "") if isinstance(error, ssl.SSLError) else ""
    return said.lower().replace("_", " ") if _REFUSAL.search(said) else ""


def not_let_in(reason: str) -> UpstreamFailure:
    """Return how an attempt failed at an upstream that refuses us; *reason* is for its operator."""
    message = "The upstream asks for a client certificate, and does not take what it was shown."
    return UpstreamFailure(UPSTREAM_TLS, message, Fault.CERTIFICATE, reason=reason)


class Connection(asyncio.Protocol):
    """One connection to an upstream, and the answer that is arriving on it."""

    __slots__ = (
        "_clock",
        "_complete",
        "_counted",
        "_drained",
        "_enough",
        "_failure",
        "_fields",
        "_fin",
        "_full",
        "_head_bytes",
        "_in_head",
        "_interim",
        "_interims",
        "_kept",
        "_late_at",
        "_outbox",
        "_parser",
        "_paused",
        "_pieces",
        "_pump",
        "_raw",
        "_rings_at",
        "_sent",
        "_sent_at",
        "_sink",
        "_stall",
        "_surplus",
        "_timeouts",
        "_timer",
        "_untaken",
        "_until_close",
        "_upgrade",
        "_uploading",
        "_waiter",
        "born",
        "busy",
        "flow",
        "headers",
        "idle_since",
        "leaving",
        "loop",
        "on_body",
        "reason",
        "status",
        "transport",
        "upstream",
        "used",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], outbox: Outbox
    ) -> None:
        self.loop = loop
        self._clock = clock
        self._outbox = outbox
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append  # a callback as the others below, but C calls C
        self._parser = httptools.HttpResponseParser(self)
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.born = self.idle_since = clock()
        self.upstream = ""  # whose connection it is
        self.used = 0
        self.busy = False
        self.leaving = False  # its last words are still on their way
        self.flow: Flow | None = None
        self._uploading = False  # the transport holds bytes of a request that nobody takes
        self._drained: asyncio.Future[None] | None = None
        self._stall: Stall | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        self._begin(Timeouts())

    def _begin(self, timeouts: Timeouts) -> None:
        self.status = 0
        self.reason = b""
        self.headers = _NO_HEADERS
        self._fields: list[Pair] = []
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
        self._pieces.clear()
        self._counted = 0  # so many of the pieces are in `_untaken`
        self._untaken = 0
        self._full = False  # nothing is read, because nobody takes it
        self._paused = False  # nothing is read, because who takes it has enough
        self._failure: ProxyError | None = None
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._enough: Callable[[bytes], bool] | None = None
        self._late_at = inf
        self._sent_at = 0.0
        self._sent = False  # all of an upload has gone out
        self._pump: asyncio.Task[None] | None = None
        self._upgrade = False
        self._raw = False

    # What forward and relay do with it

    async def ask(
        self,
        pieces: Sequence[Piece],
        timeouts: Timeouts,
        attempt: Attempt,
        patience: float | None = None,
        upload: Upload | None = None,
        *,
        until: float = inf,
        upgrade: bool = False,
    ) -> None:
        """Send a request, given as *pieces*, and wait for the head of its answer: for *patience*
        seconds from when all was sent, and not longer than *until*, in loop time.

        An *upload* follows the pieces as it comes, and may go on when the answer has begun. With
        *upgrade* the answer may be a 101, after which the connection is a tunnel. Raises
        `ProxyError`, mostly an `UpstreamFailure`; the connection is closed then, as it is on
        cancellation.
        """
        self.busy = True
        self._begin(timeouts)
        if self.transport.is_closing():
            raise self._dead("unsent")
        self._waiter = self.loop.create_future()
        self._sent_at = self._clock()
        self._upgrade = upgrade
        self.used += 1
        attempt.phase = "sent"
        if sum(map(len, pieces)) <= JOINED_BYTES:
            self.transport.write(b"".join(pieces))  # cheaper than one by one
        else:
            self.transport.writelines(pieces)
        if upload is not None:
            self._await_first_byte(None, until)
            self._pump = self.loop.create_task(self._send(upload, patience, until))
        else:
            self._await_first_byte(patience, until)
        try:
            await self._waiter
        except (ProxyError, asyncio.CancelledError) as error:
            if self._unsent or (isinstance(error, UpstreamFailure) and error.fault.unsent):
                attempt.phase = "unsent"
            self.close()
            raise
        finally:
            self._waiter = None
        attempt.phase = "answered"
        attempt.status = self.status

    @property
    def _unsent(self) -> bool:
        """Return whether part of the request has not gone out."""
        return self._uploading or (self._pump is not None and not self._sent)

    def _await_first_byte(self, patience: float | None, until: float) -> None:
        if self._waiter is None:
            return
        now = self._clock()
        late_at = self._late_at = until if patience is None else min(now + patience, until)
        if late_at == inf:
            return
        if self._timer is not None:
            if self._rings_at <= late_at:
                return  # armed once, and looked at when it rings: most requests cost no timer
            self._timer.cancel()
        self._set_timer(max(0.0, late_at - now))

    def _set_timer(self, seconds: float) -> None:
        self._rings_at = self._clock() + seconds
        self._timer = self.loop.call_later(seconds, self._check_late)

    async def _send(self, upload: Upload, patience: float | None, until: float) -> None:
        """Send the body of a request as it comes, and no faster than it is taken."""
        try:
            while piece := await upload.read():
                if self._uploading:
                    self._drained = self.loop.create_future()
                    await self._drained
                if self.transport.is_closing():
                    return
                if upload.chunked:
                    piece = b"%x\r\n%b\r\n" % (len(piece), piece)
                self.transport.write(piece)
            if upload.chunked and not self.transport.is_closing():
                self.transport.write(b"0\r\n\r\n")
        except ProxyError as error:  # the client's doing
            if self._failure is None:
                self._failure = error
            self._deliver()
            self.transport.abort()
        else:
            self._sent = True
            self._await_first_byte(patience, until)

    async def peek(self, enough: Callable[[bytes], bool], limit: int, seconds: float) -> bytes:
        """Return how the body of the answer begins, without taking it away: when *enough* says so of
        it, when it is complete, or broken, or *limit* bytes long, or after *seconds*.
        """
        self._late_at = inf
        self._waiter = self.loop.create_future()
        timer = self.loop.call_later(seconds, self._seen)
        self._enough = lambda body: len(body) >= limit or enough(body)
        try:
            self._deliver()
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = self._enough = None
        return b"".join(self._pieces)

    def _seen(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def attach(self, sink: Sink) -> None:
        """Hand the body to *sink*: at once what has arrived already, then the rest as it comes."""
        self._sink = sink
        if self._full and not self._paused:
            self.resume()
        self._full = False
        self._deliver()

    def pause(self) -> None:
        """Take nothing more from the upstream for now."""
        self._paused = True
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Go on taking from the upstream."""
        self._paused = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send *data* through the tunnel that this connection has become."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """End the connection at once; nothing is delivered any more."""
        self._sink = None
        self._surplus = True
        self._quiet()
        if not self.transport.is_closing():
            if self._uploading:
                # The end would stand in line behind what the upstream does not take: jump it.
                linger(self.transport)
            self.transport.abort()

    def hang_up(self, seconds: float) -> None:
        """End the tunnel when the upstream has taken what was sent through it, or after *seconds*."""
        self._sink = None
        self._quiet()
        if not self.transport.is_closing():
            self.transport.close()
            self.leaving = True
            self.loop.call_later(seconds, self.transport.abort)

    def _quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
        if self._pump is not None:
            self._pump.cancel()

    def reusable(self) -> bool:
        """Return whether another request may be sent here."""
        return (
            self._complete
            and not self._surplus
            and not self._until_close
            and not self._unsent
            and not self.transport.is_closing()
            and self._kept
        )

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = Outgoing(cast(asyncio.Transport, transport), self._outbox)

    def data_received(self, data: bytes) -> None:
        if self._raw:
            self._pieces.append(data)
            self._deliver()
            return
        if not self.busy or self._complete:
            # Nobody asked: a second answer, or an answer to nothing. It must reach nobody.
            self._surplus = True
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as switched:
            if not self._raw:
                self._fail(UPSTREAM_PROTOCOL, "switched to another protocol")
            elif rest := data[switched.args[0] :]:
                self._pieces.append(rest)
        except httptools.HttpParserError:
            self._surplus = True
            if not self._complete:
                self._fail(UPSTREAM_PROTOCOL, "sent an answer that is not HTTP")
        if self._sink is None:
            self._bound(len(data))
        self._deliver()

    def eof_received(self) -> bool:
        self._fin = True  # under TLS this is close_notify; a bare FIN there is a cut
        return False  # close; connection_lost says the rest

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and (self._pump is not None or self._uploading):
            self._read_rest()
        self._quiet()
        del self._parser  # which knows us: nothing is left to find for the garbage collector
        self.transport = CLOSED
        if not self.busy or self._complete:
            return
        if (self._until_close or self._raw) and self._fin and exc is None and self._failure is None:
            self._complete = True
        elif self._interims:
            self._fail(UPSTREAM_PROTOCOL, "announced an answer and sent none")
        elif self.used == 1 and not self.status and not self._failure and (said := refusal(exc)):
            self._failure = not_let_in(said)  # TLS 1.3 lets us ask before it tells
        else:
            self._fail(UPSTREAM_DISCONNECTED, "closed the connection")
        self._deliver()

    def _read_rest(self) -> None:
        """Read what the kernel still has: an upstream that answers early, and closes while we send,
        resets the connection, and what it has said is then seen by nobody.
        """
        if self.transport.get_extra_info("ssl_object") is not None:
            return  # what the kernel has is not plain
        sock = self.transport.get_extra_info("socket")
        with suppress(OSError, AttributeError):
            while not self._complete and (data := os.read(sock.fileno(), 65536)):
                self.data_received(data)

    def pause_writing(self) -> None:
        self._uploading = True
        if self._timeouts.write is not None:
            self._stall = Stall(self.loop, self.transport, self._timeouts.write, self._not_taken)
        if self.flow is not None:
            self.flow.pause_writing()

    def resume_writing(self) -> None:
        self._uploading = False
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.flow is not None:
            self.flow.resume_writing()

    # httptools; a name is fixed by the library

    def on_message_begin(self) -> None:
        if self._complete:
            # A second answer: nothing of it may be taken for the body of the first.
            raise httptools.HttpParserError("surplus")
        self._in_head = True
        self.reason = b""
        self._fields = []

    def on_status(self, status: bytes) -> None:
        if self._in_head:
            self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # after it, these are trailers, which are not passed on
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if not self._in_head:
            return
        self._in_head = False
        status = self._parser.get_status_code()
        self._interim = 100 <= status < 200
        self._interims = self._interim
        self.headers = headers = Headers(self._fields)
        asked = self._upgrade and headers.first.get(b"upgrade", b"").lower() == b"websocket"
        if status == 101 and asked and self._parser.should_upgrade():
            self._interim = self._interims = False
            self._raw = True
            self.status = status
        elif status == 101 or self._parser.get_http_version() not in ("1.1", "1.0"):
            self._fail(UPSTREAM_PROTOCOL, "switched to another protocol")
        elif not self._interim:
            self._frame(status)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif self._failure is None and not self._raw:
            self._complete = True
            if self._full and not self._paused:
                self.resume()  # else it would go into the pool, and never be heard again
            self._kept = bool(self._parser.should_keep_alive())  # true of this answer only now

    # Inside

    def _frame(self, status: int) -> None:
        """Decide what ends the body (RFC 9112 section 6.3)."""
        codings = self.headers.every(b"transfer-encoding")
        if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
            self._fail(UPSTREAM_PROTOCOL, "used a transfer coding that is not known")
            return
        if status < 200 or _CONTROL.search(self.reason):
            self._fail(UPSTREAM_PROTOCOL, "sent a status that there is not")
            return
        self.status = status
        framed = codings or b"content-length" in self.headers.first or status in BODILESS
        self._until_close = not framed

    def _bound(self, size: int) -> None:
        """Count *size* bytes that came while nobody takes them: a head may not be too long, and where
        too much of a body waits, nothing is read for now.
        """
        if self.status == 0:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES:
                self._fail(UPSTREAM_PROTOCOL, "sent too long a head")
            return
        self._untaken += sum(map(len, self._pieces[self._counted :]))
        self._counted = len(self._pieces)
        if self._untaken > UNTAKEN_BYTES and not self._full and not self._complete:
            self._full = True
            if not self.transport.is_closing():
                self.transport.pause_reading()

    def _deliver(self) -> None:
        """Hand on what has arrived: the head to who waits for it, the body to who takes it."""
        sink = self._sink
        if sink is None:
            waiter = self._waiter
            if waiter is None or waiter.done():
                return
            failure = self._failure
            if self._enough is not None:
                if self._complete or failure is not None or self._enough(b"".join(self._pieces)):
                    waiter.set_result(None)
                return
            if failure is not None and (isinstance(failure, UpstreamFailure) or not self.status):
                waiter.set_exception(failure)
            elif self.status:
                waiter.set_result(None)
            return
        if pieces := self._pieces:
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            sink.data(body)
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
        waiting = self._waiter is not None and not self._waiter.done() and self._enough is None
        if self.status and (not waiting or kind is UPSTREAM_DISCONNECTED):
            self._failure = ProxyError(
                STREAM_DISCONNECTED, f"{message} before its answer was complete."
            )
        elif kind is UPSTREAM_DISCONNECTED:
            self._failure = self._dead("unsent" if self._unsent else "sent")
        else:
            self._failure = UpstreamFailure(kind, f"{message}.", Fault.MALFORMED)
        if not self.transport.is_closing():
            self.transport.abort()

    def _dead(self, phase: str) -> UpstreamFailure:
        """Say that the connection died under a request, and whether that proves it unexecuted.

        A server that closes an idle connection just as we write to it has not read the request:
        that is taken to be so within half a second on a used connection, and never on a fresh one.
        """
        raced = self.used > 1 and self._clock() - self._sent_at <= STALE_SECONDS
        fault = Fault.AMBIGUOUS
        if self._head_bytes == 0 and phase == "unsent":
            fault = Fault.DEAD
        elif self._head_bytes == 0 and raced:
            fault = Fault.STALE
        message = "The upstream closed the connection before it answered."
        return UpstreamFailure(UPSTREAM_DISCONNECTED, message, fault)

    def _check_late(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done() or self._late_at == inf:
            return
        left = self._late_at - self._clock()
        if left > 0:
            self._set_timer(left)
        else:
            message = "The upstream did not begin to answer in time."
            self._waiter.set_exception(UpstreamFailure(UPSTREAM_TIMEOUT, message, Fault.LATE))

    def _not_taken(self) -> None:
        """Say that the upstream has not taken a byte of what was sent to it for too long."""
        message = "The upstream stopped taking the request."
        if self._waiter is not None and not self._waiter.done():
            failure = UpstreamFailure(UPSTREAM_TIMEOUT, message, Fault.NOWHERE)
            self._waiter.set_exception(failure)
        elif self._raw and self._failure is None:
            self._failure = ProxyError(STREAM_TIMEOUT, "The upstream takes no more.")
            self._deliver()
