"""Listen on an address: TCP, or a unix socket that is ours alone."""

import asyncio
import errno
import fcntl
import os
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from proxy.edge import Server
from proxy.surfaces import Address

BACKLOG = 1024


class CannotListen(Exception):
    """An address cannot be listened on; the message says which, and why."""


@dataclass
class Listener:
    """What listens on an *address*, the one with the port that it really has."""

    address: Address
    server: Server
    _listening: asyncio.Server
    _lock: IO[str] | None = None

    def close(self) -> None:
        """Listen no longer; connections that are open stay so."""
        self._listening.close()
        if self._lock is not None:
            with suppress(FileNotFoundError):
                Path(self.address.path).unlink()
            self._lock.close()
            self._lock = None


async def listen(server: Server, address: Address) -> Listener:
    """Listen on *address*. Raises `CannotListen`."""
    loop = asyncio.get_running_loop()
    try:
        if address.path:
            sock, lock = _unix_socket(address.path)
            listening = await loop.create_unix_server(server, sock=sock, backlog=BACKLOG)
            return Listener(address, server, listening, lock)
        sock = _tcp_socket(address)
        listening = await loop.create_server(server, sock=sock, backlog=BACKLOG)
        return Listener(Address(address.host, sock.getsockname()[1]), server, listening)
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
