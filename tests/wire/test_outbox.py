"""Writes that go out together: in their order, whole, and none later than the round ends."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from proxy.wire.outbox import ALONE, LARGE_BYTES, MOST, Outbox, Outgoing


class End(asyncio.Protocol):
    """Our end of a connection, behind an *outbox*; *paused* and *lost* are what it was told."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.out: Outgoing = cast(Outgoing, None)
        self.paused = False
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.out = Outgoing(cast(asyncio.Transport, transport), self._outbox)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


@asynccontextmanager
async def connected(outbox: Outbox) -> AsyncIterator[tuple[End, socket.socket]]:
    """A connection: our end, and the socket at the other one, which does not wait."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, end = await loop.create_connection(lambda: End(outbox), sock=ours)
    with theirs:
        yield end, theirs
        end.out.abort()
        async with asyncio.timeout(5):
            await end.lost.wait()


def there(sock: socket.socket) -> bytes:
    """Return what has arrived at *sock* by now."""
    try:
        return sock.recv(1_000_000)
    except BlockingIOError:
        return b""


async def round_over() -> None:
    """Wait until what was ready has run."""
    for _ in range(3):
        await asyncio.sleep(0)


@pytest.fixture
async def outbox() -> Outbox:
    """An outbox that has found out nothing yet."""
    return Outbox(asyncio.get_running_loop())


async def test_held_until_the_round_ends(outbox: Outbox) -> None:
    """What several connections write within one round goes out at its end, each in its order."""
    async with connected(outbox) as (one, first), connected(outbox) as (two, second):
        one.out.write(b"a")
        two.out.write(b"x")
        one.out.write(b"b")
        assert one.out.get_write_buffer_size() == 2
        assert (there(first), there(second)) == (b"", b"")
        await round_over()
        assert (there(first), there(second)) == (b"ab", b"x")
        assert one.out.get_write_buffer_size() == 0


async def test_large_and_long(outbox: Outbox) -> None:
    """What is large is not held, and comes behind what is."""
    large = b"x" * LARGE_BYTES
    async with connected(outbox) as (end, peer):
        end.out.write(large)
        assert there(peer) == large
        end.out.write(b"small")
        end.out.write(large)
        end.out.write(b"last")
        assert there(peer) == b""
        await round_over()
        assert there(peer) == b"small" + large + b"last"


async def test_bytes_that_may_change(outbox: Outbox) -> None:
    """What its owner may change after the write is sent as it was at the write."""
    data = bytearray(b"now")
    async with connected(outbox) as (end, peer):
        end.out.write(data)
        data[:] = b"now changed"
        await round_over()
        assert there(peer) == b"now"
        end.out.write(b"held ")
        data = bytearray(b"now")
        end.out.write(data)
        data[:] = b"xxx"
        await round_over()
        assert there(peer) == b"held now"


async def test_lines_behind_what_is_held(outbox: Outbox) -> None:
    """Pieces that are written together go out at once, behind what was written before."""
    async with connected(outbox) as (end, peer):
        end.out.write(b"a")
        end.out.writelines([b"b", bytearray(b"c"), memoryview(b"d")])
        assert there(peer) == b"abcd"
        await round_over()
        assert there(peer) == b""


async def test_pass_on(outbox: Outbox) -> None:
    """What is passed on goes at once, but never before what is held."""
    async with connected(outbox) as (end, peer):
        end.out.pass_on(b"1")
        assert there(peer) == b"1"
        end.out.write(b"2")
        end.out.pass_on(b"3")
        assert there(peer) == b""
        await round_over()
        assert there(peer) == b"23"


async def test_no_more_than_a_few(outbox: Outbox) -> None:
    """A round of many connections does not hold up the first of them until its end."""
    async with connected(outbox) as (last, peer):
        ends = [await _pair(outbox) for _ in range(MOST - 1)]
        for end, _ in ends:
            end.out.write(b"x")
        assert [there(sock) for _, sock in ends] == [b""] * len(ends)
        last.out.write(b"y")
        assert [there(sock) for _, sock in ends] == [b"x"] * len(ends)
        assert there(peer) == b"y"
        await round_over()
        for end, sock in ends:
            end.out.abort()
            sock.close()
        await asyncio.gather(*(end.lost.wait() for end, _ in ends))


async def test_a_round_that_was_sent_in_parts_had_company(outbox: Outbox) -> None:
    """Who is left over when a crowd has been sent is not alone: the next round is held again."""
    async with connected(outbox) as (last, peer):
        ends = [await _pair(outbox) for _ in range(MOST)]
        for end, _ in ends:
            end.out.write(b"x")
        last.out.write(b"y")  # one more than go out early
        await round_over()
        assert there(peer) == b"y"
        last.out.write(b"z")
        assert there(peer) == b""
        await round_over()
        assert there(peer) == b"z"
        for end, sock in ends:
            end.out.abort()
            sock.close()
        await asyncio.gather(*(end.lost.wait() for end, _ in ends))


async def _pair(outbox: Outbox) -> tuple[End, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    _, end = await loop.create_connection(lambda: End(outbox), sock=ours)
    return end, theirs


async def test_who_is_alone_does_not_wait(outbox: Outbox) -> None:
    """Where no other connection writes in the same round, writes go out at once, but for a look now and
    then whether one does; with company they are held again.
    """
    async with connected(outbox) as (one, first), connected(outbox) as (two, second):
        at_once = 0
        for _ in range(4 * ALONE):
            one.out.write(b"x")
            at_once += there(first) == b"x"
            await round_over()
            there(first)
        assert at_once > 3 * ALONE
        held = 0
        for _ in range(4 * ALONE):
            one.out.write(b"x")
            two.out.write(b"y")
            early = there(first), there(second)
            held += early == (b"", b"")
            await round_over()
            late = there(first), there(second)
            assert (early[0] + late[0], early[1] + late[1]) == (b"x", b"y")
        assert held > 2 * ALONE


async def test_close_and_eof(outbox: Outbox) -> None:
    """An end, of both directions or of one, comes behind what was written before it."""
    for how in ("close", "write_eof"):
        async with connected(outbox) as (end, peer):
            end.out.write(b"last words")
            getattr(end.out, how)()
            await round_over()
            assert there(peer) == b"last words"
            assert peer.recv(1) == b""


async def test_abort(outbox: Outbox) -> None:
    """What is held when a connection is aborted is not sent."""
    async with connected(outbox) as (end, peer):
        end.out.write(b"never")
        end.out.abort()
        await asyncio.wait_for(end.lost.wait(), 5)
        assert there(peer) == b""


async def test_peer_that_has_left(outbox: Outbox) -> None:
    """What is held for a peer that has gone disappears, and others get theirs."""
    async with connected(outbox) as (one, first), connected(outbox) as (two, second):
        first.close()
        await asyncio.wait_for(one.lost.wait(), 5)
        one.out.write(b"x")
        two.out.write(b"y")
        one.out.pass_on(b"z")
        await round_over()
        assert there(second) == b"y"


async def test_peer_that_does_not_read(outbox: Outbox) -> None:
    """Who does not read is noticed: the protocol is told to pause, and to go on."""
    async with connected(outbox) as (end, peer):
        written = 0
        async with asyncio.timeout(10):
            while not end.paused:
                end.out.write(b"x" * (LARGE_BYTES - 1))
                written += LARGE_BYTES - 1
                await round_over()
            got = 0
            while end.paused or got < written:
                got += len(there(peer))
                await asyncio.sleep(0)
        assert got == written


async def test_the_rest_is_as_it_is(outbox: Outbox) -> None:
    """Everything else of a transport is its own."""
    async with connected(outbox) as (end, _):
        out = end.out
        assert out.get_protocol() is end
        assert out.get_extra_info("socket").fileno() >= 0
        assert out.get_extra_info("nothing", 1) == 1
        assert out.can_write_eof()
        out.set_write_buffer_limits(high=1000, low=10)
        assert out.get_write_buffer_limits() == (10, 1000)
        out.pause_reading()
        assert not out.is_reading()
        out.resume_reading()
        assert out.is_reading()
        assert not out.is_closing()
        out.close()
        assert out.is_closing()


async def test_after_the_end(outbox: Outbox) -> None:
    """Who writes behind the end is told so at once, and holds up nobody else."""
    async with connected(outbox) as (one, _), connected(outbox) as (two, second):
        one.out.write_eof()
        with pytest.raises(RuntimeError, match="write_eof"):
            one.out.write(b"late")
        two.out.write(b"answer")
        await round_over()
        assert there(second) == b"answer"
