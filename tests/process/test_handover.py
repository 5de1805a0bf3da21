"""Connections on their way from who accepts them to who serves them: none is lost, none is served twice."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress

import pytest

from proxy.client.listening import CannotListen
from proxy.process import handover
from proxy.process.handover import ADDRESS_BYTES, Dealer, Recipient
from proxy.surfaces import Address
from proxy.wire.descriptors import Descriptors

HERE = Address("127.0.0.1", 0)


class There:
    """The other side of a recipient, which does what it is told to do: *take*, or not."""

    def __init__(self, dealer: Dealer, *, serves: bool = True) -> None:
        ours, self.sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.recipient: Recipient = dealer.recipient(ours)
        if serves:
            dealer.admit(self.recipient)
        self.has: list[socket.socket] = []

    def take(self, *, room: bool = True, say: bool = True) -> list[bytes]:
        """Take what is there; return the addresses at which it came."""
        addresses: list[bytes] = []
        while True:
            try:
                address, fds, _, _ = socket.recv_fds(self.sock, ADDRESS_BYTES, 1)
            except BlockingIOError:
                return addresses
            addresses.append(address)
            kept = [socket.socket(fileno=fd) for fd in fds]
            if room:
                self.has += kept
            else:
                for one in kept:
                    one.close()
            if say:
                self.sock.send(bytes([room]))

    def close(self) -> None:
        for one in (*self.has, self.sock):
            one.close()


@pytest.fixture
async def dealer() -> AsyncIterator[Dealer]:
    dealer = Dealer(asyncio.get_running_loop(), Descriptors(print))
    dealer.add(dealer.bind([HERE]))
    yield dealer
    dealer.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def there(dealer: Dealer, stack: ExitStack, *, serves: bool = True) -> There:
    one = There(dealer, serves=serves)
    stack.callback(one.close)
    return one


def connect(dealer: Dealer, stack: ExitStack, count: int = 1) -> list[socket.socket]:
    place = ("127.0.0.1", dealer.address(HERE).port)
    return [stack.enter_context(socket.create_connection(place)) for _ in range(count)]


async def turn() -> None:
    """Let the loop see what has come."""
    for _ in range(10):
        await asyncio.sleep(0.005)


async def test_in_turn(dealer: Dealer, stack: ExitStack) -> None:
    """Each gets the same number, with the address that was connected to."""
    several = [there(dealer, stack) for _ in range(3)]
    connect(dealer, stack, 9)
    await turn()
    assert [one.take() for one in several] == [[b"127.0.0.1:0"] * 3] * 3
    await turn()
    assert [one.recipient.connections for one in several] == [3, 3, 3]


async def test_nobody_there(dealer: Dealer, stack: ExitStack) -> None:
    """While nobody serves, who connects waits, and is served by who comes first."""
    connect(dealer, stack, 5)
    await turn()
    late = there(dealer, stack, serves=False)
    await turn()
    assert late.take() == []
    dealer.admit(late.recipient)
    await turn()
    assert len(late.take()) == 5


async def test_dead(dealer: Dealer, stack: ExitStack) -> None:
    """What somebody has not taken when it dies goes to another one; what it has taken does not."""
    dying = there(dealer, stack)
    (first,) = connect(dealer, stack)
    await turn()
    assert len(dying.take()) == 1
    (second,) = connect(dealer, stack)
    await turn()
    assert len(dying.take(say=False)) == 1
    connect(dealer, stack)
    await turn()
    heir = there(dealer, stack)
    dying.close()
    dealer.dismiss(dying.recipient)
    await turn()
    assert len(heir.take()) == 2
    assert first.recv(1) == b""
    second.sendall(b"?")
    assert heir.has[0].recv(1) == b"?"


async def test_no_room(dealer: Dealer, stack: ExitStack) -> None:
    """Who has no descriptor left for a connection sends it back: somebody else gets it."""
    poor, rich = there(dealer, stack), there(dealer, stack)
    clients = connect(dealer, stack, 2)
    await turn()
    assert len(poor.take(room=False)) == 1
    await turn()
    assert (len(rich.take()), poor.take()) == (2, [])
    for client in clients:
        client.sendall(b"?")
    assert [one.recv(1) for one in rich.has] == [b"?", b"?"]
    assert poor.recipient.connections == 0


async def test_nobody_has_room(
    dealer: Dealer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no descriptor left, and is the only one, is asked again after a moment, and not at once."""
    monkeypatch.setattr(handover, "PAUSE_SECONDS", 0.5)
    poor = there(dealer, stack)
    connect(dealer, stack)
    await turn()
    assert len(poor.take(room=False)) == 1
    await turn()
    assert poor.take() == []
    async with asyncio.timeout(10):
        while not poor.take():
            await turn()


async def test_late(dealer: Dealer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not take what it has been handed gets no more, as long as there is another one."""
    monkeypatch.setattr(handover, "LATE_SECONDS", 0.01)
    _, awake = there(dealer, stack), there(dealer, stack)
    connect(dealer, stack, 2)
    await turn()
    awake.take()
    await turn()
    connect(dealer, stack, 6)
    await turn()
    assert len(awake.take()) == 6


async def test_all_full(dealer: Dealer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """When everybody has as much on the way as may be, nobody else is accepted, until there is room."""
    monkeypatch.setattr(handover, "UNDER_WAY", 3)
    one = there(dealer, stack)
    connect(dealer, stack, 8)
    await turn()
    taken = len(one.take())
    assert taken == 3
    while taken < 8:
        await turn()
        more = len(one.take())
        assert 0 < more <= 3
        taken += more
    assert dealer.idle


async def test_given_back(dealer: Dealer, stack: ExitStack) -> None:
    """What somebody who leaves gives back goes to somebody else, with what was said of it; also what it has
    given back, or not taken yet, when it dies.
    """
    leaving, staying = there(dealer, stack), there(dealer, stack, serves=False)
    clients = connect(dealer, stack, 3)
    await turn()
    assert len(leaving.take()) == 3
    await turn()
    leaving.recipient.serves = False
    dealer.admit(staying.recipient)
    for number, connection in enumerate(leaving.has):
        if number == 2:
            leaving.sock.send(b"\1")  # it has taken another one meanwhile: the two may be mixed
            leaving.recipient._under_way.append((b"", socket.socket(), 0.0))
        socket.send_fds(leaving.sock, [b"127.0.0.1:0\0"], [connection.fileno()])
        connection.close()
        if number == 0:
            await turn()
            assert staying.take() == [b"127.0.0.1:0\0"]
    dealer.dismiss(leaving.recipient)
    await turn()
    assert staying.take() == [b"127.0.0.1:0\0"] * 2
    for client, connection in zip(clients, staying.has, strict=True):
        client.sendall(b"?")
        assert connection.recv(1) == b"?"


async def test_many_given_back(
    dealer: Dealer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more is taken back than can be dealt out: who gives waits, and none is lost."""
    monkeypatch.setattr(handover, "MOST_WAITING", 4)
    monkeypatch.setattr(handover, "TOGETHER", 2)
    leaving = there(dealer, stack, serves=False)
    pairs = [socket.socketpair() for _ in range(40)]
    for pair in pairs:
        for one in pair:
            stack.enter_context(one)
    left = deque(ours for ours, _ in pairs)

    def give() -> None:
        with suppress(BlockingIOError):
            while left:
                socket.send_fds(leaving.sock, [b"127.0.0.1:0"], [left[0].fileno()])
                left.popleft()

    for _ in range(5):
        give()
        await turn()
    assert 4 <= len(dealer._waiting) <= 6
    staying = there(dealer, stack)
    async with asyncio.timeout(10):
        while len(staying.has) < 40:
            give()
            await turn()
            staying.take()
    for (_, theirs), connection in zip(pairs, staying.has, strict=True):
        theirs.sendall(b"?")
        assert connection.recv(1) == b"?"


async def test_addresses_change(dealer: Dealer, stack: ExitStack) -> None:
    """Who connects to an address that is being left waits, and is served after all if it is not left."""
    one = there(dealer, stack)
    removed = dealer.remove([])
    place = ("127.0.0.1", removed[HERE][0].address.port)
    stack.enter_context(socket.create_connection(place))
    await turn()
    assert one.take() == []
    dealer.add(removed)
    await turn()
    assert len(one.take()) == 1
    handover.release(dealer.remove([]))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(place)


async def test_bind(dealer: Dealer) -> None:
    """All addresses are listened on, or none."""
    taken = Address("127.0.0.1", dealer.address(HERE).port)
    with pytest.raises(CannotListen, match="address already in use"):
        dealer.bind([Address("localhost", 0), taken])
    assert dealer.bind([HERE]) == {}


async def test_leave(dealer: Dealer, stack: ExitStack) -> None:
    """Who has connected before the doors close is still let in."""
    one = there(dealer, stack)
    connect(dealer, stack, 4)
    dealer.leave()
    await turn()
    assert len(one.take()) == 4
