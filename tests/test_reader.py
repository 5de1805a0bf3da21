"""An answer that we read ourselves: piece by piece, no faster than we take it, and never short."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from proxy.errors import STREAM_DISCONNECTED, STREAM_IDLE, ProxyError
from proxy.exchange import Attempt
from proxy.reader import WAITING_BYTES, Reader
from proxy.routes import Timeouts
from proxy.upstream.connection import Connection
from proxy.wire.outbox import Outbox

BIG = 64 * 2**20
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Peer:
    """The upstream's end of *connection*, whose answer has begun."""

    def __init__(self, connection: Connection, sock: socket.socket) -> None:
        self.connection = connection
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def gone(self) -> None:
        """Wait until our side has closed."""
        async with asyncio.timeout(2):
            try:
                while await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                    pass
            except ConnectionResetError:
                pass


class Kept:
    """Reads along, and keeps it."""

    def __init__(self) -> None:
        self.heard = b""

    def feed(self, data: bytes) -> None:
        self.heard += data


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A connection that has asked, and got a head that announces ten bytes."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    _, connection = await loop.create_connection(
        lambda: Connection(loop, loop.time, Outbox(loop)), sock=ours
    )
    with theirs:
        yield Peer(connection, theirs)
        connection.close()
        await asyncio.sleep(0.01)


async def begin(peer: Peer, length: int, idle: float | None = None) -> Reader:
    """Ask, and answer with a head that announces *length* bytes."""
    asking = asyncio.gather(peer.connection.ask([b"x"], Timeouts(), Attempt("up", 0.0)))
    assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b"x"
    await peer.send(HEAD % length)
    await asking
    return Reader(peer.connection, idle)


async def test_pieces(peer: Peer) -> None:
    """Pieces come as they are sent, and end with the answer; the connection can be used again."""
    reader = await begin(peer, 10)
    pieces = reader.pieces()
    async with asyncio.timeout(5):
        for piece in (b"12345", b"67890"):
            await peer.send(piece)
            assert await anext(pieces) == piece
        assert await anext(pieces, None) is None
    assert peer.connection.reusable()


async def test_taps(peer: Peer) -> None:
    """Each tap is fed what comes, as it comes."""
    reader = await begin(peer, 10)
    taps = [Kept(), Kept()]
    reader = Reader(peer.connection, None, taps=taps)
    async with asyncio.timeout(5):
        await peer.send(b"1234567890")
        assert b"".join([piece async for piece in reader.pieces()]) == b"1234567890"
    assert [tap.heard for tap in taps] == [b"1234567890"] * 2


@pytest.mark.parametrize("sent", [b"", b"1234567890"])
async def test_already_there(peer: Peer, sent: bytes) -> None:
    """What has come before anybody reads is not lost, and nothing is an answer too."""
    reader = await begin(peer, len(sent))
    await peer.send(sent)
    await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        assert b"".join([piece async for piece in reader.pieces()]) == sent
    assert peer.connection.reusable()


@pytest.mark.parametrize("sent", [b"", b"12345"])
async def test_cut(peer: Peer, sent: bytes) -> None:
    """What came before a cut is handed on; then the cut is told, and the connection is closed."""
    reader = await begin(peer, 10)
    await peer.send(sent)
    peer.sock.shutdown(socket.SHUT_WR)
    pieces, came = reader.pieces(), b""
    with pytest.raises(ProxyError) as caught:
        async with asyncio.timeout(5):
            while True:
                came += await anext(pieces)
    assert caught.value.kind is STREAM_DISCONNECTED
    assert came == sent
    assert not peer.connection.reusable()
    await peer.gone()


async def test_silence(peer: Peer) -> None:
    """An upstream that falls silent is told so, and left."""
    reader = await begin(peer, 10, idle=0.1)
    await peer.send(b"12345")
    pieces = reader.pieces()
    assert await anext(pieces) == b"12345"
    with pytest.raises(ProxyError) as caught:
        async with asyncio.timeout(5):
            await anext(pieces)
    assert caught.value.kind is STREAM_IDLE
    await peer.gone()


async def test_own_pause_is_no_silence(peer: Peer) -> None:
    """The time that we take over a piece is not the upstream's silence."""
    reader = await begin(peer, 10, idle=0.1)
    await peer.send(b"12345")
    pieces = reader.pieces()
    async with asyncio.timeout(5):
        assert await anext(pieces) == b"12345"
        await asyncio.sleep(0.2)
        await peer.send(b"67890")
        assert await anext(pieces) == b"67890"


async def test_not_taken(peer: Peer) -> None:
    """Where nobody takes the pieces the upstream is stopped; where somebody does, all of it comes."""
    reader = await begin(peer, BIG)
    pieces = reader.pieces()
    sending = asyncio.gather(peer.send(b"x" * BIG))
    first = await anext(pieces)
    await asyncio.sleep(0.2)
    assert not sending.done()
    assert reader._size <= WAITING_BYTES + 2**20  # one read may go over it
    came = len(first)
    async with asyncio.timeout(20):
        async for piece in pieces:
            came += len(piece)
        await sending
    assert came == BIG
    assert peer.connection.reusable()


async def test_end_while_paused(peer: Peer) -> None:
    """A connection whose answer ended while it was stopped hears again: it goes back to the pool."""
    reader = await begin(peer, WAITING_BYTES * 2)
    await peer.send(b"x" * (WAITING_BYTES + 1))
    pieces = reader.pieces()
    first = await anext(pieces)
    await peer.send(b"x" * (WAITING_BYTES - 1))
    came = len(first)
    async with asyncio.timeout(5):
        async for piece in pieces:
            came += len(piece)
    assert came == WAITING_BYTES * 2
    assert peer.connection.reusable()
    peer.sock.close()
    async with asyncio.timeout(2):
        while not peer.connection.transport.is_closing():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_left(peer: Peer, how: str) -> None:
    """A reader that is left before the end closes the upstream at once."""
    reader = await begin(peer, 10)
    await peer.send(b"12345")
    pieces = reader.pieces()
    assert await anext(pieces) == b"12345"
    if how == "close":
        await pieces.aclose()
    else:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(pieces)
    await peer.gone()
