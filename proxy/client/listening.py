"""Listen on an address: TCP, or a unix socket that is ours alone."""

import asyncio
import errno
import fcntl
import os
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from proxy.client.edge import HEAD_SECONDS, Server
from proxy.config.certificates import Unfit, load_chain
from proxy.surfaces import Address, Tls
from proxy.wire.descriptors import Descriptors

UNIX_BYTES = 107
"""Refuse a path of a unix socket that is longer than this (unix(7))."""
BACKLOG = 1024
PAUSE_SECONDS = 0.5
"""Let nobody in for this long after there was no room for another connection."""


class CannotListen(Exception):
    """An address cannot be listened on; the message says which, and why."""


@dataclass
class Listener:
    """What listens on an *address*, the one with the port that it really has."""

    address: Address
    server: Server
    _reception: "Reception"
    _bound: "Bound | None" = None

    @property
    def secure(self) -> bool:
        """Return whether TLS is spoken here."""
        return self._reception.context is not None

    @property
    def greeting(self) -> bool:
        """Return whether somebody is about to be let in: whose TLS handshake is under way."""
        return self._reception.greeting

    def renew(self, context: ssl.SSLContext | None) -> None:
        """Speak TLS by *context*, if any, with whoever connects from now on."""
        self._reception.context = context

    def close(self) -> None:
        """Listen no longer; connections that are open stay so."""
        self._reception.close()
        if self._bound is not None:
            self._bound.release()


@dataclass
class Bound:
    """A socket bound to *address*, the one with the port that it really has; a unix socket under its
    *lock*.
    """

    address: Address
    sock: socket.socket
    _lock: IO[str] | None = None

    def close(self) -> None:
        """Be bound no longer."""
        self.sock.close()
        self.release()

    def release(self) -> None:
        """Leave the path of a unix socket to others; who listens has closed the socket itself."""
        if self._lock is not None:
            with suppress(FileNotFoundError):
                Path(self.address.path).unlink()
            self._lock.close()
            self._lock = None


async def listen(server: Server, address: Address, tls: Tls | None = None) -> Listener:
    """Listen on *address*, with the certificate of *tls* if there is one. Raises `CannotListen`."""
    context = None if tls is None else context_of(tls)
    bound = bind(address)
    try:
        bound.sock.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise _cannot_listen(address, error) from None
    reception = _OwnReception(asyncio.get_running_loop(), server, bound.sock, context)
    return Listener(bound.address, server, reception, bound)


def bind(address: Address) -> Bound:
    """Bind a socket to *address*. Raises `CannotListen`."""
    try:
        if address.path:
            sock, lock = _unix_socket(address)
            return Bound(address, sock, lock)
        sock = _tcp_socket(address)
        return Bound(Address(address.host, sock.getsockname()[1]), sock)
    except (OSError, UnicodeError) as error:
        raise _cannot_listen(address, error) from None


def _cannot_listen(address: Address, error: OSError | UnicodeError) -> CannotListen:
    # A resolver's error has a number below zero and a text; a UnicodeError is a host that none is.
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, UnicodeError):
        reason = "not a host name"
    return CannotListen(f"cannot listen on {address}: {reason.lower()}")


class Acceptor:
    """Accepts what connects to the listening *sock*, while it is open, and has it *take*n: not the loop,
    which closes without a word what it has accepted when *descriptors* run out.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        take: Callable[[socket.socket], None],
        descriptors: Descriptors,
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._take = take
        self._descriptors = descriptors
        self._is_open = False

    def open(self) -> None:
        """Accept from now on."""
        if not self._is_open and self._sock.fileno() >= 0:
            self._is_open = True
            self._loop.add_reader(self._sock.fileno(), self.accept)

    def shut(self) -> None:
        """Accept nobody for now: who connects has to wait."""
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._sock.fileno())

    def close(self) -> None:
        """Accept nobody any more."""
        self.shut()
        self._sock.close()

    def accept(self) -> None:
        """Accept all who wait."""
        for _ in range(BACKLOG):
            if not self._is_open:
                return
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no room for another one, for now
                self._descriptors.miss(str(error.strerror).lower())
                self._pause()
                return
            connection.setblocking(False)
            scarce = self._descriptors.is_scarce(connection.fileno())
            self._take(connection)
            if scarce:
                self._pause()

    def _pause(self) -> None:
        """Accept nobody for a moment: who connects waits."""
        if self._is_open:
            self.shut()
            self._loop.call_later(PAUSE_SECONDS, self.open)


class Reception:
    """Hands connections over to *server*, when their TLS handshake is done if *context* asks for one.

    The loop's own server does not tell which handshakes are under way, and one that never ends would
    keep the process from ending.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, server: Server, context: ssl.SSLContext | None
    ) -> None:
        self._loop = loop
        self._server = server
        self._descriptors = server.descriptors
        self.context = context
        self._greeted: dict[asyncio.Task[None], socket.socket] = {}

    @property
    def greeting(self) -> bool:
        """Return whether a handshake is under way."""
        return bool(self._greeted)

    def take(self, connection: socket.socket, *, known: bool = False) -> None:
        """Receive *connection*; it is *known* that its client may ask. Where there is no room for it, idle
        ones give way; where there are none, its client is told to come back.
        """
        spare = False
        if self._descriptors.is_short(connection.fileno()) and not self._descriptors.make_room():
            self._descriptors.miss("too many connections")
            spare = True
        greeting = self._greet(connection, partial(self._server, known=known, spare=spare))
        task = self._loop.create_task(greeting)  # `close` ends it, should it last so long
        self._greeted[task] = connection
        task.add_done_callback(self._greeted.pop)

    def close(self) -> None:
        """End the handshakes that are under way: they fail soon. To cancel one that has just begun would leave
        its connection open, which the loop has not told of it yet.
        """
        if self.context is not None:
            for connection in self._greeted.values():
                with suppress(OSError):  # it has ended by itself
                    connection.shutdown(socket.SHUT_RDWR)

    async def _greet(
        self, connection: socket.socket, protocol: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = None if self.context is None else HEAD_SECONDS
        with suppress(OSError):  # of TLS and of time, too: whoever it was, has left
            await self._loop.connect_accepted_socket(
                protocol, connection, ssl=self.context, ssl_handshake_timeout=seconds
            )


class _OwnReception(Reception):
    """One that accepts connections at *sock* itself."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Server,
        sock: socket.socket,
        context: ssl.SSLContext | None,
    ) -> None:
        super().__init__(loop, server, context)
        self._acceptor = Acceptor(loop, sock, self.take, server.descriptors)
        self._acceptor.open()

    def close(self) -> None:
        """Take no further connection, and end the handshakes that are under way."""
        if self.context is None:
            self._acceptor.accept()  # who has come by now is told so, and not reset
        self._acceptor.close()
        super().close()


def context_of(tls: Tls) -> ssl.SSLContext:
    """Return what speaks TLS with the certificate of *tls*. Raises `CannotListen`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        load_chain(context, tls.certificate, tls.key)
    except Unfit as unfit:
        raise CannotListen(f"cannot speak TLS: {unfit}") from None
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


def share(address: Address) -> None:
    """Let those connect to the unix socket at *address* who may, and nobody else. Raises `CannotListen`."""
    try:
        _share(address)
    except OSError as error:
        raise _cannot_listen(address, error) from None


def _share(address: Address) -> None:
    if address.gid is not None:
        try:
            os.chown(address.path, -1, address.gid)
        except PermissionError:
            message = "it may not be given to that group by this user"
            raise PermissionError(errno.EPERM, message) from None
    Path(address.path).chmod(address.mode)


def _unix_socket(address: Address) -> tuple[socket.socket, IO[str]]:
    """Bind a unix socket that only those may use who are meant to: under a lock, since binding means to
    unlink first, and the socket of a live server must not be taken from it.
    """
    path = address.path
    if len(os.fsencode(path)) > UNIX_BYTES:  # before a lock is left behind
        raise OSError(errno.ENAMETOOLONG, "AF_UNIX path too long")
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
        try:
            _share(address)
        except BaseException:
            sock.close()
            Path(path).unlink()
            raise
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
