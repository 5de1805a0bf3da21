"""The composition root: everything is built here once, and wired here.

`serve` is the one way to start, for the command line and for tests: what differs between the two
is only who tells it to stop. `Running.apply` is how another snapshot takes the place of the first.
"""

import asyncio
import heapq
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

from proxy import endpoints
from proxy.admission import Admission, Gate
from proxy.asking import Asking
from proxy.children import Children
from proxy.client.edge import Onward, Request, Server
from proxy.client.frame import Frame
from proxy.client.listening import CannotListen, Listener, context_of, listen, share
from proxy.config import Live, Refresher, Snapshot
from proxy.endpoints import docs, health, hooks, kept, llm, models, status, system
from proxy.errors import SHUTDOWN, ProxyError
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.relay import Relay
from proxy.routes import Route
from proxy.sinks import LineWriter, Log
from proxy.surfaces import Address, Surface, Tls
from proxy.tunnel import Tunnel
from proxy.upstream.balance import Scores
from proxy.upstream.opening import Opener
from proxy.upstream.sandbox import Sandbox
from proxy.upstream.transport import Transport
from proxy.wire.descriptors import Descriptors
from proxy.wire.peers import Watch

__all__ = ["CannotListen", "Running", "open_log", "serve"]

Listen = Callable[[Server, Address, Tls | None], Awaitable[Listener]]
"""How an address is listened on. Raises `CannotListen`."""

Give = Callable[..., bool]
"""Gives a connection that has come to an address to another process; see `Onward`."""

LAST_WORDS_SECONDS = 0.5
FIRST_VALUES_SECONDS = 10.0
"""Wait this long, before we listen, for credentials that a command prints."""


class Face:
    """What answers at one address: the *frame* of the snapshot that holds when a request comes."""

    def __init__(self, frame: Frame, keepalive_idle: float) -> None:
        self.frame = frame
        self.keepalive_idle = keepalive_idle
        self.left = False
        self.onward: Onward | None = None

    @property
    def leaving(self) -> bool:
        """Return whether no connection may be used for another request."""
        gate = self.frame.gate
        return self.left or gate.leaving or gate.draining

    def handle(self, request: Request) -> Awaitable[bool]:
        """Answer one request, to its end, as the present snapshot says; see `Frame.handle`."""
        return self.frame.handle(request)

    def malformed(self, request: Request, error: ProxyError) -> None:
        """Answer what could not be parsed as a request."""
        self.frame.malformed(request, error)

    def refuse(self, request: Request, error: ProxyError) -> None:
        """Answer a request that nobody looks at with *error*."""
        self.frame.refuse(request, error)


@dataclass
class Running:
    """A proxy that serves *snapshot*. *addresses* are where it really listens, by surface name; so many
    exchanges as *fits* are as many as there are descriptors for.
    """

    snapshot: Snapshot
    log: Log
    gate: Gate
    _transport: Transport
    _opener: Opener
    _descriptors: Descriptors
    _listen: Listen = listen
    _everywhere: status.Everywhere | None = None
    _relays: set[Relay | Tunnel] = field(default_factory=set)
    _sessions: set[Exchange] = field(default_factory=set)
    _started: float = field(default_factory=time.monotonic)
    children: Children = field(default_factory=Children)
    fits: int = 0
    _refresher: Refresher | None = None
    _listeners: dict[Address, tuple[Listener, Face]] = field(default_factory=dict)
    _left: list[Listener] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._admission = Admission(self.gate)

    @property
    def addresses(self) -> dict[str, list[Address]]:
        """Return where we really listen, by surface name."""
        found: dict[str, list[Address]] = {}
        for surface in self.snapshot.surfaces:
            for address in surface.listen:
                found.setdefault(surface.name, []).append(self._listeners[address][0].address)
        return found

    async def apply(self, snapshot: Snapshot) -> None:
        """Serve *snapshot* from now on: whole, or, where it cannot be listened to, not at all.

        What is in flight goes on as it began. Connections, scores and whatever else has not changed
        is kept. Raises `CannotListen`.
        """
        refresher = await self._refresh(snapshot)
        forward = Forward(snapshot, self._opener, self._admission, self._relays)
        frames = {
            surface.name: self._frame(surface, snapshot, forward) for surface in snapshot.surfaces
        }
        wanted = {address: surface for surface in snapshot.surfaces for address in surface.listen}
        opened: dict[Address, tuple[Listener, Face]] = {}
        renewed: dict[Address, ssl.SSLContext | None] = {}
        clients, upstreams = _watches(snapshot)
        with ExitStack() as undo:
            undo.callback(refresher.close)
            for address, surface in wanted.items():
                if address in self._listeners:
                    listener, _ = self._listeners[address]
                    renewed[address] = _kept(listener, address, surface.tls)
                else:
                    face = Face(frames[surface.name], snapshot.settings.keepalive_idle)
                    server = Server(face, self._descriptors)
                    server.watch(clients)
                    listener = await self._listen(server, address, surface.tls)
                    undo.callback(listener.close)
                    opened[address] = listener, face
            undo.pop_all()
        # From here on nothing waits, and nothing can fail.
        for address in self._listeners.keys() - wanted.keys():
            self._leave(address)
        for address, (listener, face) in self._listeners.items():
            face.frame = frames[wanted[address].name]
            face.keepalive_idle = snapshot.settings.keepalive_idle
            listener.server.forget()  # else what is not asked again would keep the old snapshot
            listener.renew(renewed[address])
            listener.server.watch(clients)
        self._listeners |= opened
        self.fits = self._descriptors.fitting(snapshot.settings.max_inflight)
        self.gate.max_inflight = min(snapshot.settings.max_inflight, self.fits)
        self.gate.max_held = snapshot.settings.max_held
        if self._refresher is not None:
            self._refresher.close()
        self._refresher = refresher
        self._transport.renew()
        self._transport.watch(upstreams)
        self._opener.scores.keep(chain.from_iterable(map(Route.targets, snapshot.routes.routes)))
        self.snapshot = snapshot

    async def _refresh(self, snapshot: Snapshot) -> Refresher:
        """Begin to keep the credentials of *snapshot* fresh, and wait for their first values."""
        if self._refresher is not None:
            self._refresher.hand_on(snapshot.live)
        tell = partial(_tell, asyncio.get_running_loop(), self.log)
        started = self._descriptors.restore
        refresher = Refresher(snapshot.live, tell, self.children, started)
        refresher.start()
        try:
            async with asyncio.timeout(FIRST_VALUES_SECONDS):
                while not refresher.tried:  # noqa: ASYNC110 - its threads know no loop
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pass  # what has no value yet says so to who needs it
        except BaseException:
            refresher.close()
            raise
        return refresher

    def _frame(self, surface: Surface, snapshot: Snapshot, forward: Forward) -> Frame:
        told = self._status(snapshot)
        find = endpoints.table(
            surface,
            snapshot.unrouted,
            llm=llm.endpoint(forward, surface),
            realtime=partial(llm.realtime, forward, surface),
            models=models.endpoint(forward, surface, snapshot),
            kept=partial(kept.endpoint, forward, surface),
            hooks=hooks.endpoint(Asking(self._opener, self._admission), surface, snapshot),
            root=docs.root(surface),
            fixed={
                "/health": health.endpoint(),
                "/livez": health.endpoint(),
                "/readyz": health.readiness(self.gate),
                "/status": status.endpoint(forward, surface, told, self._everywhere),
                "/status/events": status.events(forward, surface, told, self._everywhere),
                **{f"{base}/ping": system.ping() for base in (*surface.base_paths, "/v1") if base},
                **{f"{base}/time": system.time() for base in (*surface.base_paths, "/v1") if base},
                **(docs.endpoints(forward, surface, snapshot) if surface.docs else {}),
            },
        )
        sinks = [self.log.line]
        return Frame(surface, find, self.gate, self.log, sinks, self._sessions)

    def _status(self, snapshot: Snapshot) -> status.Status:
        scores, log = self._opener.scores, self.log
        return status.Status(
            snapshot,
            scores,
            self._sessions,
            self._started,
            lost=lambda: log.dropped,
            doing=self._transport.doing,
        )

    def facts(self) -> dict[str, Any]:
        """Return what the status is made of."""
        return self._status(self.snapshot).facts()

    def _leave(self, address: Address) -> None:
        """Listen no longer on *address*; what came in there is answered to its end."""
        listener, face = self._listeners.pop(address)
        listener.close()
        face.left = True
        self._left = [one for one in self._left if one.server.handlers or one.greeting] + [listener]
        for handler in listener.server.handlers:
            handler.retire()

    def _every(self) -> Iterable[Listener]:
        yield from (listener for listener, _ in self._listeners.values())
        yield from self._left

    def _servers(self) -> Iterable[Server]:
        yield from (listener.server for listener in self._every())

    def give_way(self, count: int) -> int:
        """Close up to *count* connections of clients on which nothing is asked, the one first that has been
        idle for longest; return how many.
        """
        idle = (one for server in self._servers() for one in server.handlers if one.can_spare)
        longest = heapq.nsmallest(count, idle, key=lambda handler: handler.idle_since)
        return sum(handler.give_way() for handler in longest)

    async def hand_on(self, give: Give, seconds: float | None) -> None:
        """Have *give* take each connection as soon as nothing is asked on it, until there is none any more,
        or *seconds* are over. A client who speaks TLS cannot change hands: it is told with its next
        answer that it has to connect anew.
        """
        for address, (listener, face) in self._listeners.items():
            if listener.secure:
                face.left = True
            else:
                face.onward = partial(give, address)
        for server in self._servers():
            for handler in server.handlers:
                handler.go_on()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._has_clients():  # noqa: ASYNC110 - of many things, none of which tells
                    await asyncio.sleep(0.02)
        idle = sum(handler.idle for server in self._servers() for handler in server.handlers)
        if idle:
            self.log.events.warning("idle_closed", connections=idle)

    def _has_clients(self) -> bool:
        return any(listener.greeting or listener.server.handlers for listener in self._every())

    async def drain(self, seconds: float | None) -> None:
        """Take nothing new; let what is running finish for *seconds*; then end it, and say so."""
        self.gate.draining = True
        for listener, face in self._listeners.values():
            listener.close()
            face.onward = None
        for server in self._servers():
            for handler in server.handlers:
                handler.retire()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gate.empty.wait()
                await _while(lambda: any(c.get_write_buffer_size() for c in self._clients()))
        await self.end()

    def _clients(self) -> list[asyncio.Transport]:
        """Return the connections of all clients."""
        return [transport for server in self._servers() for transport in server.transports]

    async def end(self) -> None:
        """End what is still running, and say so to its callers, if they listen. Nobody is connected then."""
        self.gate.draining = True
        error = ProxyError(SHUTDOWN, "The proxy is shutting down.")
        for relay in tuple(self._relays):
            relay.abort(error)
        await asyncio.sleep(0)  # the relays' tasks see that they have ended
        for server in self._servers():
            for handler in server.handlers:
                handler.expel()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self.gate.empty.wait()
                await _while(lambda: bool(self._sessions) or any(map(_takes, self._clients())))
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                while self._has_clients():
                    for client in self._clients():
                        client.abort()  # who has not taken the rest by now never will
                    await asyncio.sleep(0.01)  # the loop closes what was aborted

    async def close(self) -> None:
        """Give everything back."""
        for listener, _ in self._listeners.values():
            listener.close()
        await self.end()
        for server in self._servers():
            await server.shutdown(0.5)
        await self._transport.close()
        if self._refresher is not None:
            self._refresher.close()


def _kept(listener: Listener, address: Address, tls: Tls | None) -> ssl.SSLContext | None:
    """Have *listener* go on at *address*; return how it speaks *tls* from now on, whose files may hold another
    certificate by now. Raises `CannotListen`.
    """
    context = None if tls is None else context_of(tls)
    if listener.secure != (tls is not None):
        why = "TLS is turned on or off there, which takes a restart"
        raise CannotListen(f"cannot listen on {address}: {why}")
    if (address.mode, address.gid) != (listener.address.mode, listener.address.gid):
        share(address)
        listener.address = address
    return context


def _watches(snapshot: Snapshot) -> tuple[Watch | None, dict[str, Watch]]:
    """Return how it is watched whether clients are there, and whether upstreams are, by their names."""
    seconds, writes = snapshot.settings.peer_timeout, snapshot.writes()
    if seconds is None:
        return None, {}
    longest = None if None in writes.values() else max(filter(None, writes.values()), default=0.0)
    return Watch(seconds, longest), {name: Watch(seconds, one) for name, one in writes.items()}


async def _while(holds: Callable[[], bool]) -> None:
    while holds():  # noqa: ASYNC110 - of many things, none of which tells
        await asyncio.sleep(0.01)


def _takes(client: asyncio.Transport) -> bool:
    """Return whether *client* has something to take yet. One that is closing has it until it is lost: under
    TLS the buffer does not tell all, and the client has the last word.
    """
    return client.is_closing() or client.get_write_buffer_size() > 0


@asynccontextmanager
async def serve(
    snapshot: Snapshot,
    log_fd: int = 1,
    *,
    listen: Listen = listen,
    everywhere: status.Everywhere | None = None,
    soft_limit: int | None = None,
) -> AsyncIterator[Running]:
    """Serve *snapshot* for as long as the context lasts. Raises `CannotListen`.

    One of several workers is told how it is to *listen*, how to say how it is *everywhere*, and which
    *soft_limit* of descriptors those whom it starts are to have.
    """
    log, writer = open_log(snapshot, log_fd, shared=everywhere is not None)
    sandbox = Sandbox()
    descriptors = Descriptors(log.events.warning, soft_limit)
    transport = Transport({"sandbox": sandbox.connect}, descriptors)
    gate = Gate(snapshot.settings.max_inflight, snapshot.settings.max_held)
    opener = Opener(transport, Scores(), log.events.warning)
    running = Running(snapshot, log, gate, transport, opener, descriptors, listen, everywhere)
    descriptors.givers += [running.give_way, transport.give_way]
    try:
        await running.apply(snapshot)
        yield running
    finally:
        await running.close()
        await sandbox.close()
        writer.close()


def open_log(snapshot: Snapshot, fd: int, *, shared: bool) -> tuple[Log, LineWriter]:
    """Return the log that *snapshot* asks for, and what writes it to *fd*."""
    settings = snapshot.settings
    writer = LineWriter(fd, shared=shared)
    terminal = os.isatty(fd)
    console = settings.log_format == "console" or (settings.log_format == "auto" and terminal)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"  # no-color.org
    colours = terminal and not plain
    return Log(writer, console=console, level=settings.log_level, colours=colours), writer


def _tell(loop: asyncio.AbstractEventLoop, log: Log, what: str, live: Live, why: str) -> None:
    """Log, from another thread, what became of the secret *live*."""
    level = log.events.warning if what == "credential_kept" else log.events.info
    facts = {"upstream": live.upstream, "source": live.secret.source, "reason": why or None}
    with suppress(RuntimeError):  # the loop is closed, and the log with it
        loop.call_soon_threadsafe(partial(level, what, **facts))
