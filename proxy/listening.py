"""Listen on an address: TCP, or a unix socket that is ours alone."""

import asyncio
import errno
import fcntl
import os
import socket
import ssl
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from proxy.edge import HEAD_SECONDS, Server
from proxy.surfaces import Address, Tls

BACKLOG = 1024
PAUSE_SECONDS = 0.5
"""How long nobody is let in after there was no room for another connection."""


class CannotListen(Exception):
    """An address cannot be listened on; the message says which, and why."""


class _Listening(Protocol):
    def close(self) -> None:
        """Listen no longer."""


@dataclass
class Listener:
    """What listens on an *address*, the one with the port that it really has."""

    address: Address
    server: Server
    _listening: _Listening
    _lock: IO[str] | None = None

    @property
    def secure(self) -> bool:
        """Return whether TLS is spoken here."""
        return isinstance(self._listening, _Reception)

    def renew(self, context: ssl.SSLContext) -> None:
        """Speak TLS by *context* with whoever connects from now on."""
        assert isinstance(self._listening, _Reception)
        self._listening.context = context

    def close(self) -> None:
        """Listen no longer; connections that are open stay so."""
        self._listening.close()
        if self._lock is not None:
            with suppress(FileNotFoundError):
                Path(self.address.path).unlink()
            self._lock.close()
            self._lock = None


async def listen(server: Server, address: Address, tls: Tls | None = None) -> Listener:
    """Listen on *address*, with the certificate of *tls* if there is one. Raises `CannotListen`."""
    try:
        context = None if tls is None else context_of(tls)
        if address.path:
            sock, lock = _unix_socket(address.path)
            listening = await _serve(server, sock, context, unix=True)
            return Listener(address, server, listening, lock)
        sock = _tcp_socket(address)
        there = Address(address.host, sock.getsockname()[1])
        listening = await _serve(server, sock, context, unix=False)
        return Listener(there, server, listening)
    except (OSError, UnicodeError) as error:
        # A resolver's error has a number below zero and a text; a UnicodeError is a host that none is.
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeError):
            reason = "not a host name"
        raise CannotListen(f"cannot listen on {address}: {reason.lower()}") from None


async def _serve(
    server: Server, sock: socket.socket, context: ssl.SSLContext | None, *, unix: bool
) -> _Listening:
    loop = asyncio.get_running_loop()
    if context is not None:
        sock.listen(BACKLOG)
        return _Reception(loop, server, sock, context)
    if unix:
        return await loop.create_unix_server(server, sock=sock, backlog=BACKLOG)
    return await loop.create_server(server, sock=sock, backlog=BACKLOG)


class _Reception:
    """Takes connections, and hands them over when their TLS handshake is done.

    The loop's own server does not tell which handshakes are under way, and one that never ends would
    keep the process from ending.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Server,
        sock: socket.socket,
        context: ssl.SSLContext,
    ) -> None:
        self._loop = loop
        self._server = server
        self._sock = sock
        self.context = context
        self._greeting: set[asyncio.Task[None]] = set()
        self._open()

    def close(self) -> None:
        """Take no further connection, and end the handshakes that are under way."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for task in self._greeting:
            task.cancel()

    def _open(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no room for another one, for now
                self._loop.remove_reader(self._sock.fileno())
                self._loop.call_later(PAUSE_SECONDS, self._open)
                return
            connection.setblocking(False)
            greeting = self._greet(connection)
            task = self._loop.create_task(greeting)  # `close` ends it, should it last so long
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):  # of TLS and of time, too: whoever it was, has left
            await self._loop.connect_accepted_socket(
                self._server, connection, ssl=self.context, ssl_handshake_timeout=HEAD_SECONDS
            )


def context_of(tls: Tls) -> ssl.SSLContext:
    """Return what speaks TLS with the certificate of *tls*. Raises `CannotListen`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(tls.certificate, tls.key, password="")  # else it would be asked for
    except OSError:  # ssl.SSLError among them
        raise CannotListen(f"cannot use the certificate {tls.certificate}, or its key") from None
    context.set_alpn_protocols(["http/1.1"])
    return context


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


def _unix_socket(path: str) -> tuple[socket.socket, IO[str]]:
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
    return sock, lock


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
