"""Connections on their way from the process that accepts them to one of those that serve them.

A `Dealer` accepts, and hands each connection over as a descriptor: to the next in turn, so that all
get as many. It keeps its own until the other side, `Doors`, says that it is taken: what somebody who
dies has not taken goes to somebody else. Who leaves gives connections back on which nothing is asked;
they are dealt out as others are. Nobody here looks into a connection.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from proxy.client.edge import Server
from proxy.client.listening import (
    BACKLOG,
    PAUSE_SECONDS,
    Acceptor,
    Bound,
    Listener,
    Reception,
    bind,
    context_of,
)
from proxy.surfaces import Address, Tls
from proxy.wire.descriptors import Descriptors

UNDER_WAY = 64
"""Send a recipient no more while this many connections are on their way to it."""
LATE_SECONDS = 0.1
"""Prefer others to a recipient that has not taken a connection within this."""
TOGETHER = 16
"""Take this many connections at once."""
MOST_WAITING = 64
"""Take no connection back while this many wait to be dealt out."""
ADDRESS_BYTES = 512
KNOWN = b"\0"
"""Stands behind the address of a connection whose client has shown that it may ask."""
_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

Sent = tuple[bytes, socket.socket]
"""A connection, behind the address that it has come to."""
Listening = dict[Address, tuple[Bound, Acceptor]]


class Recipient:
    """Who may be handed connections, over *sock*, while it *serves*. *told* is called whenever it has
    said something.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        told: Callable[["Recipient"], None],
    ) -> None:
        self.serves = False
        self.turn = 0
        self.connections = 0
        """How many it has taken so far."""
        self._loop = loop
        self._sock = sock
        self._told = told
        self._full = False
        self._heard = False
        self._under_way: deque[tuple[bytes, socket.socket, float]] = deque()
        sock.setblocking(False)
        self.hear()

    @property
    def has_room(self) -> bool:
        """Return whether a connection may be handed to it, now."""
        return self.serves and not self._full and len(self._under_way) < UNDER_WAY

    def is_late(self, now: float) -> bool:
        """Return whether it does not take what is handed to it."""
        return bool(self._under_way) and now - self._under_way[0][2] > LATE_SECONDS

    def hand(self, sent: Sent, now: float) -> bool:
        """Hand a connection to it; return whether that could be done."""
        address, connection = sent
        try:
            socket.send_fds(self._sock, [address], [connection.fileno()])
        except OSError:  # it is dead, or takes nothing
            self._pause()
            return False
        self._under_way.append((address, connection, now))
        return True

    def hear(self) -> None:
        """Hear what it says, if that is not so already."""
        if not self._heard:
            self._heard = True
            self._loop.add_reader(self._sock.fileno(), self._told, self)

    def ignore(self) -> None:
        """Let it wait with what it has to say."""
        if self._heard:
            self._heard = False
            self._loop.remove_reader(self._sock.fileno())

    def returned(self) -> list[Sent]:
        """Forget the connections that it has taken; return those for which it had no room, and some of
        those that it gives back: none only where there are no more of them.
        """
        refused: list[Sent] = []
        given: list[Sent] = []
        with suppress(OSError):  # that was all, for now or for ever
            while len(given) < TOGETHER:
                said, fds, _, _ = socket.recv_fds(self._sock, ADDRESS_BYTES, 1, _CLOEXEC)
                if not said:
                    break
                if said[0] > 1:  # an address, which is text
                    given += [(said, socket.socket(fileno=fd)) for fd in fds]
                    continue
                self._full = False
                for taken in said:
                    address, connection, _ = self._under_way.popleft()
                    if taken:
                        self.connections += 1
                        connection.close()
                    else:
                        refused.append((address, connection))
        if refused:
            self._pause()
        return refused + given

    def _pause(self) -> None:
        """Have nothing handed to it for a moment."""
        self._full = True
        self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._full = False
        self._told(self)

    def close(self) -> list[Sent]:
        """Hand nothing to it any more; return what it has not taken."""
        self.serves = False
        self.ignore()
        returned: list[Sent] = []
        while more := self.returned():
            returned += more
        self._sock.close()
        left = [(address, connection) for address, connection, _ in self._under_way]
        self._under_way.clear()
        return returned + left


class Dealer:
    """Listens on addresses, and deals out who connects. While nobody has room, nobody is accepted."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptors: Descriptors) -> None:
        self._loop = loop
        self._descriptors = descriptors
        self._listening: Listening = {}
        self._recipients: set[Recipient] = set()
        self._waiting: deque[Sent] = deque()
        self._turns = 0

    def address(self, address: Address) -> Address:
        """Return where it really listens for *address*: with the port that it has."""
        return self._listening[address][0].address

    @property
    def idle(self) -> bool:
        """Return whether nobody waits to be dealt out."""
        return not self._waiting

    def bind(self, addresses: Iterable[Address]) -> Listening:
        """Listen on those of *addresses* that are new; nobody is accepted there yet. Raises
        `CannotListen`.
        """
        opened: Listening = {}
        try:
            for address in addresses:
                if address not in self._listening:
                    bound = bind(address)
                    take = partial(self._take, str(address).encode())
                    acceptor = Acceptor(self._loop, bound.sock, take, self._descriptors)
                    opened[address] = bound, acceptor
                    bound.sock.listen(BACKLOG)
        except BaseException:
            release(opened)
            raise
        return opened

    def add(self, opened: Listening) -> None:
        """Accept at those of *opened* too, from now on."""
        self._listening |= opened
        self.deal()

    def remove(self, addresses: Iterable[Address]) -> Listening:
        """Accept only at *addresses* from now on; return the others, where who comes has to wait."""
        removed = {one: self._listening.pop(one) for one in {*self._listening} - {*addresses}}
        for _, acceptor in removed.values():
            acceptor.shut()
        return removed

    def leave(self) -> None:
        """Listen no longer; whoever has come by now is let in."""
        for _, acceptor in self._listening.values():
            acceptor.accept()
        release(self._listening)
        self._listening = {}

    def close(self) -> None:
        """Let go of everything."""
        release(self._listening)
        for recipient in [*self._recipients]:
            self.dismiss(recipient)
        for _, connection in self._waiting:
            connection.close()
        self._waiting.clear()

    def recipient(self, sock: socket.socket) -> Recipient:
        """Return who is reached over *sock*, among those to whom connections are dealt out."""
        recipient = Recipient(self._loop, sock, self._told)
        self._recipients.add(recipient)
        return recipient

    def admit(self, recipient: Recipient) -> None:
        """Deal out connections to *recipient* from now on."""
        recipient.serves = True
        self.deal()

    def dismiss(self, recipient: Recipient) -> None:
        """Deal out to others what *recipient*, who is dead, has not taken."""
        if recipient in self._recipients:
            self._recipients.discard(recipient)
            self._waiting.extend(recipient.close())
            self.deal()

    def deal(self) -> None:
        """Deal out those who wait; let others in as long as somebody has room."""
        now = self._loop.time()
        while self._waiting and (recipient := self._next(now)):
            if recipient.hand(self._waiting[0], now):
                self._waiting.popleft()
                self._turns += 1
                recipient.turn = self._turns
        for one in self._recipients:
            one.hear() if len(self._waiting) < MOST_WAITING else one.ignore()
        room = any(one.has_room for one in self._recipients)
        for _, acceptor in self._listening.values():
            acceptor.open() if room else acceptor.shut()

    def _next(self, now: float) -> Recipient | None:
        """Return whose turn it is, of those who have room."""
        return min(
            (one for one in self._recipients if one.has_room),
            key=lambda one: (one.is_late(now), one.turn),
            default=None,
        )

    def _take(self, address: bytes, connection: socket.socket) -> None:
        self._waiting.append((address, connection))
        self.deal()

    def _told(self, recipient: Recipient) -> None:
        self._waiting.extend(recipient.returned())
        self.deal()


def release(listening: Listening) -> None:
    """Listen no longer on what is in *listening*."""
    for bound, acceptor in listening.values():
        acceptor.close()
        bound.release()


class Doors:
    """Where connections come in that somebody else has accepted: over *sock*, one a message, which says
    at which address. The answer is a byte each, 1 for taken, before anything is read of it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._receptions: dict[bytes, Reception] = {}
        sock.setblocking(False)

    async def listen(self, server: Server, address: Address, tls: Tls | None = None) -> Listener:
        """Let in who has connected to *address*. Raises `CannotListen`."""
        context = None if tls is None else context_of(tls)
        door = _Door(self._loop, server, context, self._receptions, str(address).encode())
        return Listener(address, server, door)

    def open(self) -> None:
        """Take connections from now on."""
        self._loop.add_reader(self._sock.fileno(), self.take)

    def shut(self) -> None:
        """Take those that were handed over, and none any more."""
        self.take_all()
        self._loop.remove_reader(self._sock.fileno())

    def close(self) -> None:
        """Let go of the way to who hands over, who has been `shut` out."""
        self._sock.close()

    def give(self, address: Address, connection: int, *, known: bool) -> bool:
        """Give back the *connection*, a descriptor, that has come to *address*; return whether that could
        be done. From then on it is the other side's, whatever becomes of ours.
        """
        name = str(address).encode() + (KNOWN if known else b"")
        try:
            socket.send_fds(self._sock, [name], [connection])
        except OSError:  # it takes no more for now, or is dead
            return False
        return True

    def take_all(self) -> None:
        """Take all that were handed over."""
        while self.take():
            pass

    def take(self) -> int:
        """Take some of those that were handed over; return how many."""
        came: list[tuple[bytes, list[int]]] = []
        with suppress(OSError):  # no more of them, for now or for ever
            while len(came) < TOGETHER:
                address, fds, _, _ = socket.recv_fds(self._sock, ADDRESS_BYTES, 1, _CLOEXEC)
                came.append((address, fds))
        if came:
            with suppress(OSError):  # nobody is there any more
                self._sock.send(bytes(len(fds) for _, fds in came))
        for address, fds in came:
            for fd in fds:  # one; none, where no descriptor was left for it
                self._receive(address, socket.socket(fileno=fd))
        return len(came)

    def _receive(self, address: bytes, connection: socket.socket) -> None:
        connection.setblocking(False)
        reception = self._receptions.get(address.removesuffix(KNOWN))
        if reception is None:  # nobody is at home there any more
            connection.close()
        else:
            reception.take(connection, known=address.endswith(KNOWN))


class _Door(Reception):
    """What is handed over for the address *name*."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        server: Server,
        context: ssl.SSLContext | None,
        receptions: dict[bytes, Reception],
        name: bytes,
    ) -> None:
        super().__init__(loop, server, context)
        self._receptions = receptions
        self._name = name
        receptions[name] = self

    def close(self) -> None:
        if self._receptions.get(self._name) is self:
            del self._receptions[self._name]
        super().close()
