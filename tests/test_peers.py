"""What the kernel knows of a peer: what it has not taken, and whether it has left; ends of a queue."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import pytest

from proxy.edge import Handler
from proxy.peers import Stall, has_left, linger, outstanding
from tests.harness.client import Client, request
from tests.harness.proxy import Proxy, serving
from tests.test_transport import blackhole

MUCH = b"x" * 20_000_000


@dataclass
class Peer:
    """A connected pair: *transport* is ours, *sock* the other end, which reads when it is told to."""

    transport: asyncio.Transport
    sock: socket.socket


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets of *kind*."""
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        return ours, listener.accept()[0]


@pytest.fixture(params=["tcp", "unix"])
async def peer(request: pytest.FixtureRequest) -> AsyncIterator[Peer]:
    ours, theirs = pair(request.param)
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    with theirs:
        yield Peer(transport, theirs)
        transport.abort()
        await asyncio.sleep(0.01)


async def take(peer: Peer, size: int) -> None:
    """Have the other end read *size* bytes or more."""
    loop = asyncio.get_running_loop()
    while size > 0:
        size -= len(await loop.sock_recv(peer.sock, 2**20))


async def until(true: Callable[[], bool]) -> None:
    """Wait for what must become *true*."""
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


# What is not taken


async def test_outstanding(peer: Peer) -> None:
    """What the peer has not taken is counted, in our buffer and in the kernel's, and shrinks."""
    assert outstanding(peer.transport) == 0
    peer.transport.write(MUCH)
    await asyncio.sleep(0.05)
    before = outstanding(peer.transport)
    assert before > peer.transport.get_write_buffer_size() > 0
    await take(peer, 8_000_000)
    await until(lambda: outstanding(peer.transport) < before)


class Socketless(asyncio.Transport):
    """A transport above something that is no socket."""

    def get_write_buffer_size(self) -> int:
        return 7


def test_without_a_socket() -> None:
    """Of what is no socket only our own buffer is known, and nothing is asked of a kernel."""
    assert outstanding(Socketless()) == 7
    assert not has_left(Socketless())
    linger(Socketless())


async def test_stall(peer: Peer) -> None:
    """A peer that takes a byte now and then is not late; one that takes none is, once."""
    peer.transport.write(MUCH)
    late = asyncio.Event()
    stall = Stall(asyncio.get_running_loop(), peer.transport, 0.3, late.set)
    for _ in range(8):
        await asyncio.sleep(0.1)
        await take(peer, 400_000)
    assert not late.is_set()
    async with asyncio.timeout(5):
        await late.wait()
    stall.stop()


async def test_stall_that_is_stopped(peer: Peer) -> None:
    """Who is watched no longer is never late."""
    peer.transport.write(MUCH)
    late = asyncio.Event()
    Stall(asyncio.get_running_loop(), peer.transport, 0.05, late.set).stop()
    await asyncio.sleep(0.2)
    assert not late.is_set()


# Ends


@pytest.mark.parametrize("unread", [b"", b"x" * 10_000], ids=["silent", "unread"])
@pytest.mark.parametrize("how", ["close", "half", "reset"])
async def test_has_left(peer: Peer, how: str, unread: bytes) -> None:
    """A peer that is gone, or says no more, is known to be, though nothing of it is read."""
    peer.transport.pause_reading()
    peer.sock.send(unread)
    assert not has_left(peer.transport)
    if how == "half":
        peer.sock.shutdown(socket.SHUT_WR)
    else:
        if how == "reset":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.sock.close()
    await until(lambda: has_left(peer.transport))


async def test_still_there(peer: Peer) -> None:
    """A peer that takes nothing, or to which we say no more, has not left."""
    peer.transport.pause_reading()
    peer.transport.write(MUCH)
    await asyncio.sleep(0.05)
    assert not has_left(peer.transport)
    await take(peer, len(MUCH))
    peer.transport.write_eof()
    assert await asyncio.get_running_loop().sock_recv(peer.sock, 1) == b""
    assert not has_left(peer.transport)


@contextmanager
def crowd(size: int) -> Iterator[None]:
    """Have *size* descriptors taken."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    if hard < size + 200:
        pytest.skip("so many descriptors may not be open here")
    setrlimit(RLIMIT_NOFILE, (max(soft, size + 200), hard))
    with ExitStack() as stack:
        stack.callback(setrlimit, RLIMIT_NOFILE, (soft, hard))
        while True:
            fd = os.dup(0)
            stack.callback(os.close, fd)
            if fd >= size:
                break
        yield


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_large_descriptor(kind: str) -> None:
    """A descriptor may have any number, unlike with `select`."""
    with crowd(1024):
        ours, theirs = pair(kind)
        assert ours.fileno() > 1024
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.pause_reading()
        with theirs:
            assert not has_left(transport)
        await until(lambda: has_left(transport))
        transport.abort()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("peer", ["tcp"], indirect=True)
async def test_linger(peer: Peer) -> None:
    """A connection that lingers is reset, whatever stands in its queue: the peer knows at once."""
    peer.transport.write(MUCH)
    await asyncio.sleep(0.05)
    linger(peer.transport)
    peer.transport.abort()
    await asyncio.sleep(0.05)
    state = peer.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    assert state == 7  # TCP_CLOSE: by a reset, since nothing was read


# Through the proxy


def deaf(port: int) -> str:
    """Return a routes file whose upstream, at *port*, accepts no connection."""
    return f"""
[upstreams.up]
base_url = "http://127.0.0.1:{port}/v1"
credential = "sk-upstream-secret"
timeout = {{ connect = "30s" }}
[routes]
"m" = "up/m"
[unrouted]
"*" = "up"
"""


async def caller(proxy: Proxy, path: Path | None) -> Client:
    """Connect to the unix socket at *path*, or to the port of *proxy*."""
    if path is None:
        return await Client.connect(proxy.port)
    return Client(*await asyncio.open_unix_connection(path))


@pytest.mark.parametrize("half", [False, True], ids=["close", "half"])
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_gone_while_held_back(kind: str, half: bool, tmp_path: Path) -> None:
    """A client that sends more than is taken while its upstream is connected to is seen to leave."""
    path = tmp_path / "s" if kind == "unix" else None
    listen = f"unix:{path}" if path else "127.0.0.1:0"
    with blackhole() as port:
        async with serving(deaf(port), listen=listen) as proxy:
            async with await caller(proxy, path) as client:
                client.writer.write(request(MUCH[:2_000_000], "/v1/files"))
                assert proxy.running is not None
                (server,) = proxy.running._servers()
                await until(lambda: any(one._reading_paused for one in server.connections))
                (handler,) = server.connections
                assert isinstance(handler, Handler)
                if half:
                    half_close(client)
                    await until(lambda: handler.transport is None)
            record = await proxy.record()
            assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
            (attempt,) = record["attempts"]
            assert (attempt["phase"], attempt["maybe_billed"]) == ("unsent", False)


def half_close(client: Client) -> None:
    """Say that no more comes, though the rest of what was written has not gone out."""
    with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as same:
        same.shutdown(socket.SHUT_WR)
