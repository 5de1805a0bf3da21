"""One connection to an upstream, by itself; what it does under an exchange is in `test_transport`."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from proxy.connection import Connection, linger, outstanding
from proxy.errors import UPSTREAM_PROTOCOL, UpstreamFailure
from proxy.exchange import Attempt
from proxy.routes import Timeouts


class Peer:
    """A connected pair: *transport* is ours, *sock* the other end, which reads when it is told to."""

    def __init__(self, transport: asyncio.Transport, sock: socket.socket) -> None:
        self.transport = transport
        self.sock = sock


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    with theirs:
        yield Peer(transport, theirs)
        transport.abort()
        await asyncio.sleep(0.01)


async def test_outstanding(peer: Peer) -> None:
    """What the peer has not taken is counted, in our buffer and in the kernel's, and shrinks."""
    assert outstanding(peer.transport) == 0
    peer.transport.write(b"x" * 20_000_000)
    await asyncio.sleep(0.05)
    before = outstanding(peer.transport)
    assert before > peer.transport.get_write_buffer_size() > 0
    loop = asyncio.get_running_loop()
    taken = 0
    while taken < 8_000_000:
        taken += len(await loop.sock_recv(peer.sock, 2**20))
    await asyncio.sleep(0.05)
    assert outstanding(peer.transport) < before


async def test_linger(peer: Peer) -> None:
    """A connection that lingers is reset, whatever stands in its queue: the peer knows at once."""
    peer.transport.write(b"x" * 20_000_000)
    await asyncio.sleep(0.05)
    linger(peer.transport)
    peer.transport.abort()
    await asyncio.sleep(0.05)
    state = struct.unpack("B", peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1))[0]
    assert state == 7  # TCP_CLOSE: by a reset, since nothing was read


async def test_nothing_of_a_closed_one() -> None:
    """A connection that was closed hands on nothing more, and is not used again."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, connection = await loop.create_connection(lambda: Connection(loop, loop.time), sock=ours)
    with theirs:
        connection.close()
        await asyncio.sleep(0.01)
        assert connection.transport.is_closing()
        assert not connection.reusable()
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("status", [b"000", b"007", b"099"])
async def test_no_such_status(status: bytes) -> None:
    """A status below 100 is no status, and is not waited behind."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, connection = await loop.create_connection(lambda: Connection(loop, loop.time), sock=ours)
    with theirs:
        answer = b"HTTP/1.1 " + status + b" Bond\r\nContent-Length: 0\r\n\r\n"
        asking = connection.ask([b"x"], Timeouts(), Attempt("up", 0.0))
        loop.call_later(0.01, theirs.send, answer)
        with pytest.raises(UpstreamFailure) as caught:
            async with asyncio.timeout(2):
                await asking
        assert caught.value.kind is UPSTREAM_PROTOCOL
