"""One connection to an upstream: its socket, what is written to it, and who waits for an answer.

A `Connection` carries one request at a time. Each has an `Arrival` of its own, which is fed what is
read, and hands the answer on as it comes, from `data_received` to the relay.
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

from proxy.errors import (
    STREAM_TIMEOUT,
    UPSTREAM_DISCONNECTED,
    UPSTREAM_TIMEOUT,
    UPSTREAM_TLS,
    Fault,
    ProxyError,
    UpstreamFailure,
)
from proxy.exchange import Attempt
from proxy.headers import Headers
from proxy.model.body import Piece
from proxy.routes import Timeouts
from proxy.upstream.arrival import BODY, TUNNEL, Arrival, Parser
from proxy.wire.outbox import CLOSED, Outbox, Outgoing
from proxy.wire.peers import Stall, linger
from proxy.wire.ports import Flow, Sink

STALE_SECONDS = 0.5
"""Take a request as not read if its connection, a used one, is closed within this of sending it."""
UNTAKEN_BYTES = 256 * 1024
"""Stop the upstream once this much of a body has come that nobody has taken."""
JOINED_BYTES = 64 * 1024
"""Copy the pieces of a request into one write up to this much."""

_UNANSWERED = "The upstream closed the connection before it answered."
_REFUSAL = re.compile(r"ALERT_.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)")
"""The alerts (RFC 8446 section 6) of a server that does not take the client's certificate."""


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
    """One connection to an upstream: *used* so many times, and now by *arrival*, or by nobody.

    Whose it is says *upstream*. It asks, is told of the head, and holds what comes of the body until
    a sink is attached.
    """

    __slots__ = (
        "_blocked",
        "_clock",
        "_drained",
        "_enough",
        "_fin",
        "_full",
        "_held",
        "_late_at",
        "_outbox",
        "_parser",
        "_pump",
        "_rings_at",
        "_sent",
        "_sent_at",
        "_stall",
        "_timeouts",
        "_timer",
        "_untaken",
        "_waiter",
        "arrival",
        "born",
        "flow",
        "headers",
        "idle_since",
        "leaving",
        "loop",
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
        self._parser = Parser()
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.born = self.idle_since = clock()
        self.upstream = ""
        self.used = 0
        self.arrival: Arrival | None = None
        self.leaving = False  # its last words are still on their way
        self._fin = False  # the upstream has said that it ends
        # Of the answer, until somebody takes it
        self.status = 0
        self.reason = b""
        self.headers = Headers()
        self._waiter: asyncio.Future[None] | None = None
        self._enough: Callable[[bytes], bool] | None = None
        self._held: list[bytes] = []
        self._untaken = 0  # so many bytes are held
        self._full = False  # nothing is read, because nobody takes it
        self._late_at = inf
        self._timer: asyncio.TimerHandle | None = None
        self._rings_at = 0.0
        # Of what is written
        self.flow: Flow | None = None
        self._timeouts = Timeouts()
        self._sent_at = 0.0
        self._blocked = False  # the transport holds bytes that nobody takes
        self._stall: Stall | None = None
        self._pump: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._sent = False  # all of an upload has gone out

    def __repr__(self) -> str:
        said = self.doing
        if said == "idle":
            said += f", {self.used} answer{'s' if self.used > 1 else ''}"
        elif said not in ("new", "closed"):
            said = f"{_ordinal(self.used)} answer, {self.arrival}"
        return f"<Connection to {self.upstream}: {said}>"

    @property
    def doing(self) -> str:
        """Return, in a word, what it does: `new`, `idle`, `closed`, or how far the answer has come."""
        if self.transport.is_closing():
            return "closed"
        if self.arrival is None:
            return "idle" if self.used else "new"
        return self.arrival.state.value

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
        if self.transport.is_closing():
            raise UpstreamFailure(UPSTREAM_DISCONNECTED, _UNANSWERED, Fault.DEAD)
        self.arrival = Arrival(self, self._parser, upgrade=upgrade)
        self._timeouts = timeouts
        self._held.clear()
        self._untaken = 0
        self._pump = None
        self._waiter = self.loop.create_future()
        self._sent_at = self._clock()
        self.used += 1
        attempt.phase = "sent"
        if sum(map(len, pieces)) <= JOINED_BYTES:
            self.transport.write(b"".join(pieces))  # cheaper than one by one
        else:
            self.transport.writelines(pieces)
        if upload is not None:
            self._await_first_byte(self._sent_at, None, until)
            self._sent = False
            self._pump = self.loop.create_task(self._send(upload, patience, until))
        else:
            self._await_first_byte(self._sent_at, patience, until)
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
        return self._blocked or (self._pump is not None and not self._sent)

    def _await_first_byte(self, now: float, patience: float | None, until: float) -> None:
        if self._waiter is None:
            return
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
                if self._blocked:
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
            self._fail(error)
            self.transport.abort()
        else:
            self._sent = True
            self._await_first_byte(self._clock(), patience, until)

    async def peek(self, enough: Callable[[bytes], bool], limit: int, seconds: float) -> bytes:
        """Return how the body of the answer begins, without taking it away: when *enough* says so of
        it, when it is complete, or broken, or *limit* bytes long, or after *seconds*.
        """
        self._late_at = inf
        self._waiter = self.loop.create_future()
        timer = self.loop.call_later(seconds, self._wake)
        self._enough = lambda body: len(body) >= limit or enough(body)
        try:
            if self._answer.over or self._enough(b"".join(self._held)):
                self._wake()
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = self._enough = None
        return b"".join(self._held)

    def attach(self, sink: Sink) -> None:
        """Hand the body to *sink*: at once what has arrived already, then the rest as it comes."""
        answer = self.arrival
        assert answer is not None
        answer.sink = sink
        if self._full:
            self.resume()
        if held := self._held:
            body = held[0] if len(held) == 1 else b"".join(held)
            held.clear()
            sink.data(body)
        if answer.state is not BODY:
            answer.tell()

    def pause(self) -> None:
        """Take nothing more from the upstream for now."""
        self._full = False  # from now on it is for others to say when to go on
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        """Go on taking from the upstream."""
        self._full = False
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send *data* through the tunnel that this connection has become."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def reusable(self) -> bool:
        """Return whether another request may be sent here."""
        arrival = self.arrival
        return (
            arrival is not None
            and arrival.reusable
            and not self._blocked
            and (self._pump is None or self._sent)
            and not self.transport.is_closing()
        )

    def rest(self, now: float) -> None:
        """Be idle from *now* on, until it is asked again."""
        self.arrival = None
        self.idle_since = now

    def close(self) -> None:
        """End the connection at once; nothing is delivered any more."""
        if self.arrival is not None:
            self.arrival.abandon()
        self._cut()

    def hang_up(self, seconds: float) -> None:
        """End the tunnel when the upstream has taken what was sent through it, or after *seconds*."""
        self._answer.abandon()
        self._quiet()
        if not self.transport.is_closing():
            self.transport.close()
            self.leaving = True
            self.loop.call_later(seconds, self.transport.abort)

    def _cut(self) -> None:
        self._quiet()
        if not self.transport.is_closing():
            if self._blocked:
                # The end would stand in line behind what the upstream does not take: jump it.
                linger(self.transport)
            self.transport.abort()

    def _quiet(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
        if self._pump is not None:
            self._pump.cancel()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = Outgoing(cast(asyncio.Transport, transport), self._outbox)

    def data_received(self, data: bytes) -> None:
        arrival = self.arrival
        if arrival is None or not arrival.feed(data):
            # Nobody asked: a second answer, or an answer to nothing. It must reach nobody.
            self._cut()

    def eof_received(self) -> bool:
        self._fin = True  # under TLS this is close_notify; a bare FIN there is a cut
        return False  # close; connection_lost says the rest

    def connection_lost(self, exc: Exception | None) -> None:
        arrival = self.arrival
        if arrival is not None and exc is not None and (self._pump is not None or self._blocked):
            self._read_rest(arrival)
        self._quiet()
        self._parser.close()
        self.transport = CLOSED
        if arrival is not None and not arrival.over:
            arrival.close(self._lost(exc), clean=self._fin and exc is None)

    def _read_rest(self, arrival: Arrival) -> None:
        """Read what the kernel still has: an upstream that answers early, and closes while we send,
        resets the connection, and what it has said is then seen by nobody.
        """
        if self.transport.get_extra_info("ssl_object") is not None:
            return  # what the kernel has is not plain
        sock = self.transport.get_extra_info("socket")
        with suppress(OSError, AttributeError):
            while not arrival.over and (data := os.read(sock.fileno(), 65536)):
                arrival.feed(data)

    def pause_writing(self) -> None:
        self._blocked = True
        if self._timeouts.write is not None:
            self._stall = Stall(self.loop, self.transport, self._timeouts.write, self._not_taken)
        if self.flow is not None:
            self.flow.pause_writing()

    def resume_writing(self) -> None:
        self._blocked = False
        if self._stall is not None:
            self._stall.stop()
            self._stall = None
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        if self.flow is not None:
            self.flow.resume_writing()

    # Asker: until somebody takes the answer

    @property
    def size(self) -> int:
        """Return how many bytes of the body are held."""
        return self._untaken

    def head(self, status: int, reason: bytes, headers: Headers) -> None:
        """Take the head, and go on where it is waited for."""
        self.status, self.reason, self.headers = status, reason, headers
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def data(self, data: bytes) -> None:
        """Hold *data*; where too much of a body waits, nothing is read for now."""
        self._held.append(data)
        self._untaken += len(data)
        if self._enough is not None and self._enough(b"".join(self._held)):
            self._wake()
        if self._untaken > UNTAKEN_BYTES and not self._full and not self._answer.over:
            self._full = True
            if not self.transport.is_closing():
                self.transport.pause_reading()

    def end(self) -> None:
        """Go on: there is no more of it."""
        if self._full:
            self.resume()  # else it would go into the pool, and never be heard again
        if self._enough is not None:
            self._wake()

    def broke(self, error: ProxyError) -> None:
        """Raise *error* where the head is waited for; else it is told to who takes the body."""
        waiter = self._waiter
        if self._enough is None and waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self._wake()
        self.transport.abort()

    # Inside

    @property
    def _answer(self) -> Arrival:
        assert self.arrival is not None  # else nobody has asked
        return self.arrival

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: ProxyError) -> None:
        if self.arrival is not None:
            self.arrival.fail(error)

    def _lost(self, exc: Exception | None) -> UpstreamFailure:
        """Say how the connection died under a request, and whether that proves it unexecuted.

        A server that closes an idle connection just as we write to it has not read the request:
        that is taken to be so within half a second on a used connection, and never on a fresh one.
        """
        if self.used == 1 and (said := refusal(exc)):
            return not_let_in(said)  # TLS 1.3 lets us ask before it tells
        fault = Fault.AMBIGUOUS
        if self._answer.head_size == 0:
            raced = self.used > 1 and self._clock() - self._sent_at <= STALE_SECONDS
            fault = Fault.DEAD if self._unsent else Fault.STALE if raced else fault
        return UpstreamFailure(UPSTREAM_DISCONNECTED, _UNANSWERED, fault)

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
        elif self._answer.state is TUNNEL:
            self._fail(ProxyError(STREAM_TIMEOUT, "The upstream takes no more."))


def _ordinal(number: int) -> str:
    """Return *number* as in the 1st, 2nd, 3rd and 4th."""
    last = 0 if number % 100 in (11, 12, 13) else number % 10
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(last, 'th') }"
