"""Connections to upstreams: found, made, kept, replaced.

Connections are never shared between upstreams. What goes wrong on the way to one (DNS, connect,
TLS, an egress proxy) is raised as ours, and always means that nothing was sent.
"""

import asyncio
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from math import inf
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from aiohappyeyeballs import start_connection

from proxy.errors import (
    OVERLOADED,
    UPSTREAM_CONNECT,
    UPSTREAM_DNS,
    UPSTREAM_TLS,
    Fault,
    ProxyError,
    UpstreamFailure,
    printable,
)
from proxy.exchange import Attempt
from proxy.model.body import Piece
from proxy.outbound import proxy_authorization
from proxy.routes import Origin, Timeouts
from proxy.upstream.arrival import HEAD_BYTES
from proxy.upstream.connection import Connection, Upload, not_let_in, refusal
from proxy.wire.descriptors import MOMENT_SECONDS, Descriptors
from proxy.wire.outbox import Outbox
from proxy.wire.peers import Watch, watch

T = TypeVar("T")
Dial = Callable[[], Awaitable[socket.socket]]
"""Makes a connected socket to an upstream that is not found by address: the sandbox."""

IDLE_SECONDS = 15.0
"""Close a connection that was unused for this long: less than servers commonly do, so that they seldom win the race."""
MAX_AGE_SECONDS = 300.0
"""Use no connection that is older than this, so that a change of DNS is followed however busy it is."""
DNS_SECONDS = 10.0
LOOKUPS = 16
"""Look up this many names at once."""
LEAVING_SECONDS = 2.0
"""Count a connection as open for this long while its last words are on their way."""
HAPPY_EYEBALLS_SECONDS = 0.25


class Transport:
    """The pool: idle connections by origin, and how new ones are made.

    *dials* maps the scheme of an upstream that has no address to what connects to it.
    """

    def __init__(
        self,
        dials: Mapping[str, Dial],
        descriptors: Descriptors,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dials = dials
        self._descriptors = descriptors
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._outbox = Outbox(self._loop)
        self._resolver = Resolver(clock)
        self._contexts: dict[tuple[str | None, tuple[str, str] | None], ssl.SSLContext] = {}
        self._idle: dict[tuple[str, Origin], list[Connection]] = {}
        self._open: set[Connection] = set()
        self._watches: Mapping[str, Watch] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        idle = sum(map(len, self._idle.values()))
        return f"<Transport: {len(self._open) - idle} busy, {idle} idle>"

    def doing(self) -> dict[str, Counter[str]]:
        """Return, by the names of upstreams, how many connections do what."""
        found: dict[str, Counter[str]] = {}
        for connection in self._open:
            found.setdefault(connection.upstream, Counter())[connection.doing] += 1
        return found

    async def open(
        self,
        upstream: str,
        origin: Origin,
        pieces: Sequence[Piece],
        timeouts: Timeouts,
        attempt: Attempt,
        upload: Upload | None = None,
        *,
        until: float = inf,
        patience: float | None = None,
        fresh: bool = False,
        upgrade: bool = False,
    ) -> Connection:
        """Send a request to *origin* and return the connection on which its answer has begun.

        Whatever *timeouts* allow, that may take no longer than *until*, in loop time, nor longer than
        *patience*, in seconds from when all was sent. Connections are never shared between
        upstreams. With *fresh*, none that was used before is taken. Raises `UpstreamFailure`,
        what reading the *upload* raises, or `ProxyError` where we lack what a connection takes.
        """
        key = (upstream, origin)
        connection = None if fresh else self._take(key)
        if connection is None:
            seconds = None if until == inf else until - self._clock()
            connection = await self._reach(origin, least(timeouts.connect, seconds))
            connection.upstream = upstream
            if upstream in self._watches:
                watch(connection.transport, self._watches[upstream])
            self._open.add(connection)
        patience = least(timeouts.first_byte, patience)
        try:
            await connection.ask(
                pieces, timeouts, attempt, patience, upload, until=until, upgrade=upgrade
            )
        except BaseException:
            self._open.discard(connection)
            raise
        if connection.status == 407 and origin.proxy is not None and origin.scheme == "http":
            self.drop(connection)
            attempt.phase = "unsent"  # the proxy has passed nothing on
            through = _authority(*_next_hop(origin))
            raise _proxy_refused(f"{through} wants another user or password: 407", b"407")
        return connection

    def release(self, upstream: str, origin: Origin, connection: Connection) -> None:
        """Take *connection* back after its answer: keep it if it can be used again."""
        now = self._clock()
        if connection.reusable() and now - connection.born < MAX_AGE_SECONDS:
            connection.rest(now)
            self._idle.setdefault((upstream, origin), []).append(connection)
            if self._sweeper is None:
                self._sweeper = self._loop.call_later(IDLE_SECONDS, self._sweep)
        else:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close *connection*, whose answer nobody takes."""
        connection.close()
        if connection.leaving:
            self._loop.call_later(LEAVING_SECONDS, self._open.discard, connection)
        else:
            self._open.discard(connection)

    def renew(self) -> None:
        """Read certificates anew for connections to come: their files may have changed."""
        self._contexts.clear()

    def watch(self, watches: Mapping[str, Watch]) -> None:
        """Watch, by the names of upstreams, whether they are there: on connections that are open as on those to
        come.
        """
        before, self._watches = self._watches, watches
        for connection in self._open:
            how = watches.get(connection.upstream)
            if how is not None and how != before.get(connection.upstream):
                watch(connection.transport, how)

    async def close(self) -> None:
        """Close every connection."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in tuple(self._open):
            connection.close()
            connection.transport.abort()
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

    def give_way(self, count: int) -> int:
        """Close up to *count* connections that nobody uses, the one first that has not been used for
        longest; return how many.
        """
        idle = [(one, key) for key, stack in self._idle.items() for one in stack]
        idle.sort(key=lambda pair: pair[0].idle_since)
        for connection, key in idle[:count]:
            self._idle[key].remove(connection)
            self.drop(connection)
        return len(idle[:count])

    async def _reach(self, origin: Origin, seconds: float | None) -> Connection:
        """Make a new connection, for which others give way that are idle, where descriptors are short.

        Raises what `_connect` does, and `ProxyError` where they have run out.
        """
        try:
            return await self._connect(origin, seconds)
        except (UpstreamFailure, OSError) as error:
            if not self._descriptors.lacked(error):
                raise
        self.renew()  # what was read meanwhile may not be all there is
        try:
            if self._descriptors.make_room():
                await asyncio.sleep(MOMENT_SECONDS)
                return await self._connect(origin, seconds)
        except (UpstreamFailure, OSError) as error:
            if not self._descriptors.lacked(error):
                raise
        self._descriptors.miss("too many connections")
        message = "The proxy has no room for another connection."
        raise ProxyError(OVERLOADED, message, headers=(("Retry-After", "1"),))

    async def _connect(self, origin: Origin, seconds: float | None) -> Connection:
        """Make a new connection. Raises `UpstreamFailure`: nothing was sent in any case."""
        awaited = f"{_authority(*_next_hop(origin))}: no connection"
        try:
            async with asyncio.timeout(seconds):
                sock = await self._socket(origin)
                if self._descriptors.is_short(sock.fileno()):
                    self._descriptors.make_room()
                awaited = f"{_authority(origin.host, origin.port)}: no TLS handshake"
                try:
                    if origin.scheme == "https":
                        return await self._secure(origin, sock)
                    return await self._wrap(sock)
                except BaseException:
                    sock.close()
                    raise
        except TimeoutError:
            raise UpstreamFailure(
                UPSTREAM_CONNECT,
                "The upstream could not be reached: it did not answer in time.",
                Fault.UNSENT,
                reason=f"{awaited} within {seconds:g} s",
            ) from None

    async def _socket(self, origin: Origin) -> socket.socket:
        dial = self._dials.get(origin.scheme)
        if dial is not None:
            return await dial()
        host, port = _next_hop(origin)
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
                UPSTREAM_CONNECT,
                f"The upstream could not be reached: {reason}.",
                Fault.UNSENT,
                reason=f"{_authority(host, port)}: {_said(error)}",
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
        place = _authority(origin.host, origin.port)
        through = f"{_authority(*_next_hop(origin))}: the way to {place}"
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
            raise UpstreamFailure(
                UPSTREAM_CONNECT,
                "The egress proxy broke off.",
                Fault.UNSENT,
                reason=f"{through}: {_said(error)}",
            ) from error
        said = answer.split(b"\r\n", 1)[0]
        status = said.partition(b" ")[2]
        if status[:1] != b"2":
            raise _proxy_refused(
                f"{through} is refused: {printable(said.decode('latin-1'))}", status
            )

    async def _secure(self, origin: Origin, sock: socket.socket) -> Connection:
        place = _authority(origin.host, origin.port)
        try:
            files = origin.ca, origin.certificate
            context = self._contexts.get(files)
            if context is None:
                context = self._contexts[files] = await in_thread(lambda: context_of(*files))
            return await self._wrap(sock, ssl=context, server_hostname=origin.host)
        except ssl.SSLCertVerificationError as error:
            raise UpstreamFailure(
                UPSTREAM_TLS,
                "The upstream's certificate is not valid.",
                Fault.CERTIFICATE,
                reason=f"{place}: {_why_not_valid(error, origin)}",
            ) from error
        except OSError as error:  # ssl.SSLError among them
            if said := refusal(error):
                raise not_let_in(f"{place}: {said}") from error
            raise UpstreamFailure(
                UPSTREAM_TLS,
                "No secure connection to the upstream could be made.",
                Fault.UNSENT,
                reason=f"{place}: {_said(error)}",
            ) from error

    async def _wrap(self, sock: socket.socket, **tls: Any) -> Connection:
        _, connection = await self._loop.create_connection(
            lambda: Connection(self._loop, self._clock, self._outbox), sock=sock, **tls
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
            asked.add_done_callback(lambda done: self._answered(key, done))
        try:
            addresses = await asyncio.shield(asked)
        except (OSError, UnicodeError) as error:
            busy = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
            fault = Fault.UNSENT if busy else Fault.NOWHERE
            raise UpstreamFailure(
                UPSTREAM_DNS,
                "The upstream's host name could not be resolved.",
                fault,
                reason=f"{_authority(host, port)}: {_said(error)}",
            ) from error
        self._known[key] = (self._clock(), addresses)
        return addresses

    def _answered(self, key: tuple[str, int], done: "asyncio.Future[list[Any]]") -> None:
        """Take note that a look-up is over, though all who asked for it may have left meanwhile."""
        self._asked.pop(key, None)
        if not done.cancelled():
            done.exception()  # else asyncio says that nobody has seen it

    def forget(self, host: str, port: int) -> None:
        """Look *host* up anew next time: nobody answered at the addresses we have."""
        self._known.pop((host, port), None)

    async def _ask(self, host: str, port: int) -> list[Any]:
        async with self._room:
            return await in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


async def in_thread(call: Callable[[], T]) -> T:
    """Return what *call* returns, from a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
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
            loop.call_soon_threadsafe(deliver, result, error)

    threading.Thread(target=run, name="transport", daemon=True).start()
    return await future


def least(one: float | None, other: float | None) -> float | None:
    """Return the shorter of two times, in seconds; None is for ever."""
    if one is None or other is None:
        return other if one is None else one
    return max(0.0, min(one, other))


def context_of(ca: str | None, certificate: tuple[str, str] | None) -> ssl.SSLContext:
    """Return what speaks TLS to an upstream that the certificates in *ca* vouch for, and shows it the
    *certificate* and key in two files. Raises `OSError`.
    """
    context = ssl.create_default_context(cafile=ca)
    if ca is not None:  # what curl takes: private authorities seldom heed the profile of RFC 5280,
        # on which Python insists from 3.13 on, and the file may hold no more than the certificate itself
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        context.load_cert_chain(*certificate, password="")  # else it would be asked for
    return context


def _proxy_refused(reason: str, status: bytes) -> UpstreamFailure:
    """Say that an egress proxy has answered *status*: a 4xx is what it would answer again."""
    fault = Fault.NOWHERE if status[:1] == b"4" else Fault.UNSENT
    message = "The egress proxy refused to connect."
    return UpstreamFailure(UPSTREAM_CONNECT, message, fault, reason=reason)


# What an operator is told


def _next_hop(origin: Origin) -> tuple[str, int]:
    """Return the host and port that is connected to: the egress proxy's, where there is one."""
    if origin.proxy is None:
        return origin.host, origin.port
    parts = urlsplit(origin.proxy)
    return parts.hostname or "", parts.port or 80


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_CERTIFICATE = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "is signed by an unknown CA, whose own is self-signed",
    20: "is signed by an unknown CA",
    21: "is signed by an unknown CA",
    62: "is for another name",
    64: "is for another address",
}
"""Says what is wrong with a certificate, by OpenSSL's number (x509_vfy.h)."""
_PROFILE = range(78, 94)
"""Blames RFC 5280: OpenSSL finds these only where it is strict."""


def _why_not_valid(error: ssl.SSLCertVerificationError, origin: Origin) -> str:
    """Say what is wrong with the certificate of *origin*."""
    known = _CERTIFICATE.get(error.verify_code)
    if known is not None:
        return f"the certificate {known}"
    text = printable(error.verify_message or "cannot be verified")
    if error.verify_code in _PROFILE and origin.ca is None:
        return (
            f"the certificate breaks the profile of RFC 5280 ({text}), on which Python insists from "
            "3.13 on where the upstream has no `ca`"
        )
    return f"the certificate is not valid: {text}"


def _said(error: Exception) -> str:
    """Return what the machine says of *error*, without the addresses that it has tried."""
    if isinstance(error, ssl.SSLError):
        return printable((error.reason or error.strerror or "TLS failed").lower().replace("_", " "))
    if isinstance(error, socket.gaierror):
        return (error.strerror or "not found").lower()
    if isinstance(error, OSError):
        numbers = [one.errno for one in _each(error) if one.errno]
        return ", ".join(dict.fromkeys(map(os.strerror, numbers))).lower() or "connection lost"
    return "is not a host name"


def _refused(error: OSError) -> bool:
    return any(isinstance(one, ConnectionRefusedError) for one in _each(error))


def _each(error: OSError) -> list[OSError]:
    """Return what went wrong at each of the addresses that were tried."""
    inner = getattr(error, "exceptions", (error,))
    return [one for one in inner if isinstance(one, OSError)]
