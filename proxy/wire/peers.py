"""What the kernel knows of the peer of a transport, though nothing of it is read or said.

Of every kind of socket, TCP, unix, with or without TLS; what a transport has none for is not known.
"""

import asyncio
import fcntl
import select
import socket
import struct
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

_KEEP_IDLE = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
_KEEP_INTERVAL = getattr(socket, "TCP_KEEPINTVL", None)
_KEEP_COUNT = getattr(socket, "TCP_KEEPCNT", None)
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)
"""Options of TCP, None where the machine has them not."""
PROBES = 4
_LEFT = select.POLLHUP | getattr(select, "POLLRDHUP", 0)
"""What `poll` says of a peer that sends no more; where it cannot, at least of one that is gone."""


class Stall:
    """Watches that the peer of *transport* takes at least a byte every *seconds*, until `stop`;
    where it does not, calls *late*.
    """

    __slots__ = ("_late", "_left", "_loop", "_seconds", "_timer", "_transport")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        seconds: float,
        late: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._transport = transport
        self._seconds = seconds
        self._late = late
        self._left = outstanding(transport)
        self._timer = loop.call_later(seconds, self._check)

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _check(self) -> None:
        left = outstanding(self._transport)
        if left < self._left:
            self._left = left
            self._timer = self._loop.call_later(self._seconds, self._check)
        else:
            self._late()


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


def has_left(transport: asyncio.Transport) -> bool:
    """Return whether the peer of *transport* has closed the connection, half of it, or reset it, though
    nothing of it is read.
    """
    sock = transport.get_extra_info("socket")
    poll = select.poll()
    try:
        poll.register(sock, _LEFT)
    except (TypeError, ValueError):  # there is no socket, or no longer
        return False
    return any(event & _LEFT for _, event in poll.poll(0))


def has_said(transport: asyncio.Transport) -> bool:
    """Return whether the peer of *transport* has sent something that was not read yet."""
    waiting = bytearray(4)
    sock = transport.get_extra_info("socket")
    try:
        fcntl.ioctl(sock.fileno(), termios.FIONREAD, waiting)
    except (OSError, AttributeError):
        return False
    return any(waiting)


@dataclass(frozen=True, slots=True)
class Watch:
    """How soon a peer is taken for gone that is not heard of any more: after *seconds*. It is asked whether it
    is there when six tenths of them have passed, then after each further tenth (RFC 1122 section 4.2.3.6).

    What it does not acknowledge in that time ends the connection too (RFC 5482), but not before *write*
    seconds, None for never: Linux counts a peer that is there, and takes nothing, by the same clock.
    """

    seconds: float
    write: float | None

    def options(self) -> list[tuple[int, int, int]]:
        """Return the options of a socket: level, option and value."""
        wait = 0 if self.write is None else max(self.seconds, self.write)
        wanted = (
            (_KEEP_IDLE, max(1, round(self.seconds * 0.6))),
            (_KEEP_INTERVAL, max(1, round(self.seconds * 0.1))),
            (_KEEP_COUNT, PROBES),
            (_USER_TIMEOUT, min(round(wait * 1000), 2**31 - 1)),
        )
        keep = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return [keep, *((socket.IPPROTO_TCP, one, to) for one, to in wanted if one is not None)]


def watch(transport: asyncio.BaseTransport, how: Watch) -> None:
    """Have the kernel watch whether the peer of *transport* is there, if TCP is spoken with it."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with suppress(OSError, ValueError):  # it has left already
        own = socket.socket(sock.family, socket.SOCK_STREAM, 0, sock.fileno())
        try:
            for option in how.options():
                own.setsockopt(*option)
        finally:
            own.detach()


def linger(transport: asyncio.Transport) -> None:
    """Make closing *transport* reset the connection, whatever is still unsent."""
    sock = transport.get_extra_info("socket")
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
