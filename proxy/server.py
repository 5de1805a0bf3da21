"""The composition root: everything is built here once, and wired here.

`serve` is the one way to start, for the command line and for tests: what differs between the two
is only who tells it to stop.
"""

import asyncio
import errno
import fcntl
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from proxy import endpoints
from proxy.admission import Gate
from proxy.config import Refresher, Snapshot
from proxy.edge import Server
from proxy.endpoints import health, kept, llm, models
from proxy.errors import SHUTDOWN, ProxyError
from proxy.forward import Forward
from proxy.frame import Frame
from proxy.sandbox import Sandbox
from proxy.sinks import LineWriter, Log
from proxy.surfaces import Address
from proxy.transport import Transport

BACKLOG = 1024
LAST_WORDS_SECONDS = 0.5
FIRST_VALUES_SECONDS = 10.0
"""How long we wait, before we listen, for credentials that a command prints."""


class CannotListen(Exception):
    """An address cannot be listened on; the message says which, and why."""


class Closer(Protocol):
    """What gives a resource back."""

    def close(self) -> None:
        """Give it back."""


@dataclass
class Running:
    """A proxy that serves. *addresses* are where it really listens, by surface name."""

    snapshot: Snapshot
    log: Log
    gate: Gate
    addresses: dict[str, list[Address]]
    _forward: Forward
    _listeners: list[asyncio.Server]
    _servers: list[Server]

    async def drain(self, seconds: float | None) -> None:
        """Take nothing new; let what is running finish for *seconds*; then end it, and say so."""
        self.gate.draining = True
        for listener in self._listeners:
            listener.close()
        for server in self._servers:
            for handler in server.handlers:
                handler.retire()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.gate.empty.wait()
                await _written(self._clients())
        await self.end()

    def _clients(self) -> list[asyncio.Transport]:
        """Return the connections of all clients."""
        handlers = (handler for server in self._servers for handler in server.handlers)
        return [handler.transport for handler in handlers if handler.transport is not None]

    async def end(self) -> None:
        """End what is still running, and say so to its callers, if they listen."""
        self.gate.draining = True
        clients = self._clients()
        self._forward.shut(ProxyError(SHUTDOWN, "The proxy is shutting down."))
        await asyncio.sleep(0)  # the relays' tasks see that they have ended
        for server in self._servers:
            for handler in server.handlers:
                handler.expel()
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self.gate.empty.wait()
                await _written(clients)
        for client in clients:
            client.abort()  # who has not taken the rest by now never will
        await asyncio.sleep(0)  # the loop closes what was aborted


async def _written(clients: list[asyncio.Transport]) -> None:
    """Wait until *clients* have taken all that was written to them."""
    left = clients
    while left:
        await asyncio.sleep(0.01)
        left = [client for client in left if client.get_write_buffer_size()]


@asynccontextmanager
async def serve(snapshot: Snapshot, log_fd: int = 1) -> AsyncIterator[Running]:
    """Serve *snapshot* for as long as the context lasts. Raises `CannotListen`."""
    writer = LineWriter(log_fd)
    console = snapshot.settings.log_format == "console" or (
        snapshot.settings.log_format == "auto" and os.isatty(log_fd)
    )
    log = Log(writer, console=console, level=snapshot.settings.log_level)
    sandbox = Sandbox()
    transport = Transport({"sandbox": sandbox.connect})
    gate = Gate(snapshot.settings.max_inflight, snapshot.settings.max_held)
    forward = Forward(snapshot, transport, gate)
    running = Running(snapshot, log, gate, {}, forward, [], [])
    refresher = Refresher(snapshot.live, partial(_tell, asyncio.get_running_loop(), log))
    closers: list[Closer] = [refresher]
    refresher.start()
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_VALUES_SECONDS):
                while not refresher.tried:  # noqa: ASYNC110 - its threads know no loop
                    await asyncio.sleep(0.02)
        for surface in snapshot.surfaces:
            find = endpoints.table(
                surface,
                snapshot.unrouted,
                llm=llm.endpoint(forward, surface),
                realtime=llm.realtime(forward, surface),
                models=models.endpoint(forward, surface, snapshot),
                kept=partial(kept.endpoint, forward, surface),
                probe=health.endpoint(),
                fixed={"/health": health.endpoint()},
            )
            server = Server(Frame(surface, find, gate, log))
            running._servers.append(server)
            bound = running.addresses.setdefault(surface.name, [])
            for address in surface.listen:
                listener, actual = await _listen(server, address, closers)
                running._listeners.append(listener)
                bound.append(actual)
        yield running
    finally:
        for listener in running._listeners:
            listener.close()
        await running.end()
        for server in running._servers:
            await server.shutdown(0.5)
        await transport.close()
        await sandbox.close()
        for closer in closers:
            closer.close()
        writer.close()


def _tell(loop: asyncio.AbstractEventLoop, log: Log, what: str, source: str, why: str) -> None:
    """Log, from another thread, what became of the secret from *source*."""
    level = log.events.warning if what == "credential_kept" else log.events.info
    with suppress(RuntimeError):  # the loop is closed, and the log with it
        loop.call_soon_threadsafe(partial(level, what, source=source, reason=why or None))


async def _listen(
    server: Server, address: Address, closers: list[Closer]
) -> tuple[asyncio.Server, Address]:
    """Listen on *address*; return the listener, and the address with the port it really has."""
    loop = asyncio.get_running_loop()
    try:
        if address.path:
            sock = _unix_socket(address.path, closers)
            return await loop.create_unix_server(server, sock=sock, backlog=BACKLOG), address
        sock = _tcp_socket(address)
        listener = await loop.create_server(server, sock=sock, backlog=BACKLOG)
        return listener, Address(address.host, sock.getsockname()[1])
    except (OSError, UnicodeError) as error:
        # A resolver's error has a number below zero and a text; a UnicodeError is a host that none is.
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeError):
            reason = "not a host name"
        raise CannotListen(f"cannot listen on {address}: {reason.lower()}") from None


def _tcp_socket(address: Address) -> socket.socket:
    infos = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, place = infos[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _unix_socket(path: str, closers: list[Closer]) -> socket.socket:
    """Bind a unix socket that only we may use: under a lock, since binding means to unlink first,
    and the socket of a live server must not be taken from it.
    """
    lock = Path(path + ".lock").open("w")  # noqa: SIM115 - held as long as we listen
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(Path(path).stat().st_mode):
                raise FileExistsError(errno.EEXIST, "file exists")
            _leave_alive(path)
            Path(path).unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            sock.bind(path)
        except BaseException:
            sock.close()
            raise
        finally:
            os.umask(before)
        sock.setblocking(False)
    except BlockingIOError:
        lock.close()
        raise OSError(errno.EADDRINUSE, "address already in use") from None
    except BaseException:
        lock.close()
        raise
    closers.append(_UnixSocket(path, lock))
    return sock


def _leave_alive(path: str) -> None:
    """Raise `OSError` if somebody listens at *path*, whose socket is then not ours to take."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return
        except BlockingIOError:
            pass  # its backlog is full, so there is one
    raise OSError(errno.EADDRINUSE, "address already in use")


@dataclass
class _UnixSocket:
    path: str
    lock: IO[str]

    def close(self) -> None:
        with suppress(FileNotFoundError):
            Path(self.path).unlink()
        self.lock.close()
