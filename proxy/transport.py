"""Connections to upstreams: made, kept, replaced. The only module that knows the client side of HTTP.

A `Connection` carries one request at a time and hands the answer on as it arrives, from
`data_received` to the relay in one call. What goes wrong here is raised as ours. The traps of the
parser are all met in `Connection`: it has no mode for answers without end (a close ends them), it
reports 1xx as whole answers, and it takes bytes after a body for the next one.
"""

import asyncio
import fcntl
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit

import httptools
from aiohappyeyeballs import start_connection

from proxy.errors import (
    STREAM_DISCONNECTED,
    UPSTREAM_CONNECT,
    UPSTREAM_DISCONNECTED,
    UPSTREAM_DNS,
    UPSTREAM_PROTOCOL,
    UPSTREAM_TIMEOUT,
    UPSTREAM_TLS,
    Kind,
    ProxyError,
    UpstreamFailure,
)
from proxy.exchange import Attempt
from proxy.headers import Pair, find
from proxy.outbound import proxy_authorization
from proxy.routes import Origin, Timeouts

T = TypeVar("T")
Dial = Callable[[], Awaitable[socket.socket]]
"""Makes a connected socket to an upstream that is not found by address: the sandbox."""

IDLE_SECONDS = 15.0
"""How long an unused connection is kept: less than servers commonly do, so that they seldom win the race."""
MAX_AGE_SECONDS = 300.0
"""How old a connection may get, so that a change of DNS is followed however busy it is."""
STALE_SECONDS = 0.5
DNS_SECONDS = 10.0
LOOKUPS = 16
HEAD_BYTES = 256 * 1024
HAPPY_EYEBALLS_SECONDS = 0.25

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
        return False  # close; connection_lost says the rest

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if not self.busy or self._complete:
            return
        if self._until_close and exc is None and self._failure is None:
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


class Transport:
    """The pool: idle connections by origin, and how new ones are made.

    *dials* maps the scheme of an upstream that has no address to what connects to it.
    """

    def __init__(
        self, dials: Mapping[str, Dial], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dials = dials
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver(clock)
        self._contexts: dict[str | None, ssl.SSLContext] = {}
        self._idle: dict[tuple[str, Origin], list[Connection]] = {}
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(
        self,
        upstream: str,
        origin: Origin,
        pieces: Sequence[bytes | memoryview],
        timeouts: Timeouts,
        attempt: Attempt,
        *,
        fresh: bool = False,
    ) -> Connection:
        """Send a request to *origin* and return the connection on which its answer has begun.

        Connections are never shared between upstreams. With *fresh*, none that was used before is
        taken. Raises `UpstreamFailure`.
        """
        key = (upstream, origin)
        connection = None if fresh else self._take(key)
        attempt.reused = connection is not None
        if connection is None:
            connection = await self._connect(origin, timeouts.connect)
            self._open.add(connection)
        try:
            await connection.ask(pieces, timeouts, attempt)
        except BaseException:
            self._open.discard(connection)
            raise
        return connection

    def release(self, upstream: str, origin: Origin, connection: Connection) -> None:
        """Take *connection* back after its answer: keep it if it can be used again."""
        now = self._clock()
        if connection.reusable() and now - connection.born < MAX_AGE_SECONDS:
            connection.busy = False
            connection.idle_since = now
            self._idle.setdefault((upstream, origin), []).append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(IDLE_SECONDS, self._sweep)
        else:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close *connection*, whose answer nobody takes."""
        self._open.discard(connection)
        connection.close()

    async def close(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._open):
            connection.close()
        self._open.clear()
        self._idle.clear()

    def _take(self, key: tuple[str, Origin]) -> Connection | None:
        stack = self._idle.get(key)
        deadline = self._clock() - IDLE_SECONDS
        while stack:
            connection = stack.pop()
            if connection.idle_since > deadline and not connection.transport.is_closing():
                return connection
            self.drop(connection)
        return None

    def _sweep(self) -> None:
        """Close what nobody used for too long."""
        deadline = self._clock() - IDLE_SECONDS
        for key, stack in tuple(self._idle.items()):
            kept = []
            for connection in stack:
                if connection.idle_since > deadline and not connection.transport.is_closing():
                    kept.append(connection)
                else:
                    self.drop(connection)
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]
        self._sweeper = self._loop.call_later(IDLE_SECONDS, self._sweep) if self._idle else None

    async def _connect(self, origin: Origin, seconds: float | None) -> Connection:
        """Make a new connection. Raises `UpstreamFailure`: nothing was sent in any case."""
        try:
            async with asyncio.timeout(seconds):
                sock = await self._socket(origin)
                try:
                    if origin.scheme == "https":
                        return await self._secure(origin, sock)
                    return await self._wrap(sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise UpstreamFailure(
                UPSTREAM_CONNECT, "The upstream could not be reached: it did not answer in time."
            ) from None

    async def _socket(self, origin: Origin) -> socket.socket:
        dial = self._dials.get(origin.scheme)
        if dial is not None:
            return await dial()
        host, port = origin.host, origin.port
        if origin.proxy is not None:
            parts = urlsplit(origin.proxy)
            host, port = parts.hostname or "", parts.port or 80
        addresses = await self._resolver.resolve(host, port)
        try:
            sock = await start_connection(
                addresses,
                happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS,
                interleave=1,
                loop=self._loop,
            )
        except OSError as error:
            self._resolver.forget(host, port)
            reason = "it refused the connection" if _refused(error) else "no route leads there"
            raise UpstreamFailure(
                UPSTREAM_CONNECT, f"The upstream could not be reached: {reason}."
            ) from error
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if origin.proxy is not None and origin.scheme == "https":
            try:
                await self._tunnel(sock, origin)
            except BaseException:
                sock.close()
                raise
        return sock

    async def _tunnel(self, sock: socket.socket, origin: Origin) -> None:
        """Ask the proxy on *sock* for a way through to *origin* (RFC 9110 section 9.3.6)."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        place = f"{host}:{origin.port}"
        head = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{proxy_authorization(origin)}\r\n"
        answer = b""
        try:
            await self._loop.sock_sendall(sock, head.encode("ascii"))
            while b"\r\n\r\n" not in answer and len(answer) < HEAD_BYTES:
                # One byte at a time: what follows the head belongs to TLS.
                piece = await self._loop.sock_recv(sock, 1)
                if not piece:
                    break
                answer += piece
        except OSError as error:
            raise UpstreamFailure(UPSTREAM_CONNECT, "The egress proxy broke off.") from error
        status = answer.split(b"\r\n", 1)[0].split(b" ")
        if len(status) < 2 or status[1][:1] != b"2":
            raise UpstreamFailure(UPSTREAM_CONNECT, "The egress proxy refused to connect.")

    async def _secure(self, origin: Origin, sock: socket.socket) -> Connection:
        context = self._contexts.get(origin.ca)
        if context is None:
            context = await _in_thread(lambda: _context(origin.ca))
            self._contexts[origin.ca] = context
        try:
            return await self._wrap(sock, ssl=context, server_hostname=origin.host)
        except ssl.SSLCertVerificationError as error:
            raise UpstreamFailure(
                UPSTREAM_TLS, "The upstream's certificate is not valid."
            ) from error
        except OSError as error:  # ssl.SSLError among them
            raise UpstreamFailure(
                UPSTREAM_TLS, "No secure connection to the upstream could be made."
            ) from error

    async def _wrap(self, sock: socket.socket, **tls: Any) -> Connection:
        _, connection = await self._loop.create_connection(
            lambda: Connection(self._loop, self._clock), sock=sock, **tls
        )
        return connection


class Resolver:
    """Addresses of hosts, remembered briefly; look-ups of one host at one time are one look-up.

    Look-ups block, so they have threads of their own: a slow one delays nobody else's.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._room = asyncio.Semaphore(LOOKUPS)
        self._clock = clock
        self._known: dict[tuple[str, int], tuple[float, list[Any]]] = {}
        self._asked: dict[tuple[str, int], asyncio.Future[list[Any]]] = {}

    async def resolve(self, host: str, port: int) -> list[Any]:
        """Return the addresses of *host*, as getaddrinfo does. Raises `UpstreamFailure`."""
        try:
            family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
            return [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))]
        except ValueError:
            pass
        key = (host, port)
        known = self._known.get(key)
        if known is not None and self._clock() - known[0] < DNS_SECONDS:
            return known[1]
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = asyncio.ensure_future(self._ask(host, port))  # noqa: TID251
            asked.add_done_callback(lambda _: self._asked.pop(key, None))
        try:
            addresses = await asyncio.shield(asked)
        except (OSError, UnicodeError) as error:
            raise UpstreamFailure(
                UPSTREAM_DNS, "The upstream's host name could not be resolved."
            ) from error
        self._known[key] = (self._clock(), addresses)
        return addresses

    def forget(self, host: str, port: int) -> None:
        """Look *host* up anew next time: nobody answered at the addresses we have."""
        self._known.pop((host, port), None)

    async def _ask(self, host: str, port: int) -> list[Any]:
        async with self._room:
            return await _in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


async def _in_thread(call: Callable[[], T]) -> T:
    """Return what *call* returns, from a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as caught:  # noqa: BLE001 - it is raised where it is waited for
            error = caught
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="transport", daemon=True).start()
    return await future


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


def _context(ca: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _refused(error: OSError) -> bool:
    inner = getattr(error, "exceptions", (error,))
    return any(isinstance(one, ConnectionRefusedError) for one in inner)
