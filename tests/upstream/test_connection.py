"""One connection to an upstream, by itself; what it does under an exchange is in `test_transport`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UPSTREAM_PROTOCOL, ProxyError, UpstreamFailure
from proxy.exchange import Attempt
from proxy.routes import Timeouts
from proxy.upstream.arrival import Arrival, Parser
from proxy.upstream.connection import UNTAKEN_BYTES, Connection
from proxy.wire.outbox import Outbox
from tests.harness.upstream import CHUNKED, SSE, chunk, head


async def test_nothing_of_a_closed_one() -> None:
    """A connection that was closed hands on nothing more, and is not used again."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, connection = await loop.create_connection(
        lambda: Connection(loop, loop.time, Outbox(loop)), sock=ours
    )
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
    _, connection = await loop.create_connection(
        lambda: Connection(loop, loop.time, Outbox(loop)), sock=ours
    )
    with theirs:
        answer = b"HTTP/1.1 " + status + b" Bond\r\nContent-Length: 0\r\n\r\n"
        asking = connection.ask([b"x"], Timeouts(), Attempt("up", 0.0))
        loop.call_later(0.01, theirs.send, answer)
        with pytest.raises(UpstreamFailure) as caught:
            async with asyncio.timeout(2):
                await asking
        assert caught.value.kind is UPSTREAM_PROTOCOL


# Bodies


class Taken:
    """Takes an answer, and keeps what it was told."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = False
        self.error: ProxyError | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def size(self) -> int:
        return len(self.body)

    def data(self, data: bytes) -> None:
        self.pieces.append(data)

    def end(self) -> None:
        self.ended = True

    def broke(self, error: ProxyError) -> None:
        self.error = error


class Wire(asyncio.Transport):
    """A transport without a network: what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def is_closing(self) -> bool:
        return "abort" in self.told

    def pause_reading(self) -> None:
        self.told.append("pause")

    def resume_reading(self) -> None:
        self.told.append("resume")

    def abort(self) -> None:
        self.told.append("abort")


def asked() -> Connection:
    """Return a connection that waits for an answer, and for nothing else."""
    loop = asyncio.new_event_loop()
    connection = Connection(loop, loop.time, Outbox(loop))
    connection.arrival = Arrival(connection, Parser())
    loop.close()
    return connection


def answered(reads: Iterable[bytes], *, late: bool = False) -> tuple[Connection, Taken, Wire]:
    """Have an answer arrive in *reads*; its body is taken when its head is there, or *late*."""
    connection, sink, wire = asked(), Taken(), Wire()
    connection.connection_made(wire)
    attached = False
    for read in reads:
        connection.data_received(read)
        if connection.status and not late and not attached:
            attached = True
            connection.attach(sink)
    if not attached:
        connection.attach(sink)
    return connection, sink, wire


HEAD = head(200, [SSE, CHUNKED])
LAST = b"0\r\n\r\n"


@given(st.lists(st.binary(min_size=1), max_size=5), st.sets(st.integers(1, 400)), st.booleans())
def test_whenever_it_is_taken(bodies: list[bytes], places: set[int], late: bool) -> None:
    """A body is the same whenever it is taken."""
    sent = HEAD + b"".join(map(chunk, bodies)) + LAST
    edges = [0, *sorted({place for place in places if place < len(sent)}), len(sent)]
    reads = [sent[begin:end] for begin, end in pairwise(edges)]
    connection, sink, _ = answered(reads, late=late)
    assert (connection.status, connection.reason) == (200, b"OK")
    assert connection.headers == (SSE, CHUNKED)
    assert sink.body == b"".join(bodies)
    assert sink.ended
    assert sink.error is None
    assert connection.reusable()


@pytest.mark.parametrize("late", [False, True])
def test_what_comes_behind_an_answer(late: bool) -> None:
    """What comes behind a whole answer reaches nobody, and ends the connection."""
    connection, sink, wire = answered([HEAD + chunk(b"one") + LAST + HEAD], late=late)
    assert (sink.pieces, sink.ended) == ([b"one"], True)
    assert not connection.reusable()
    connection.data_received(b"canary")
    assert wire.told == ["abort"]
    assert (sink.pieces, sink.error) == ([b"one"], None)


def test_broken_before_it_is_taken() -> None:
    """An answer that breaks while nobody takes it ends the connection, and is told when somebody does."""
    connection, sink, wire = answered([HEAD, chunk(b"good"), b"zz\r\n"], late=True)
    assert wire.told == ["abort"]
    assert (sink.pieces, sink.ended) == ([b"good"], False)
    assert sink.error is not None
    assert not connection.reusable()


@pytest.mark.parametrize("size", [100, 10_000, UNTAKEN_BYTES])
def test_untaken(size: int) -> None:
    """Nothing more is read when too much of a body waits for who takes it, whatever its chunks."""
    piece = chunk(b"x" * size)
    reads = UNTAKEN_BYTES // size
    _, sink, wire = answered([HEAD, *[piece] * reads], late=True)
    assert wire.told == []
    _, sink, wire = answered([HEAD, *[piece] * (reads + 1)], late=True)
    assert wire.told == ["pause", "resume"]
    assert len(sink.body) == size * (reads + 1)


def test_untaken_but_complete() -> None:
    """An answer that has arrived as a whole stops nothing, however long it is."""
    connection, _, wire = answered(
        [HEAD + chunk(b"x" * 2 * UNTAKEN_BYTES) + b"0\r\n\r\n"], late=True
    )
    assert wire.told == []
    assert connection.reusable()


def test_untaken_and_not_heard_again() -> None:
    """A connection that was held back reads again once its answer is whole, taken or not."""
    connection, wire = asked(), Wire()
    connection.connection_made(wire)
    for read in (HEAD, chunk(b"x" * 2 * UNTAKEN_BYTES), b"0\r\n\r\n"):
        connection.data_received(read)
    assert wire.told == ["pause", "resume"]
    assert connection.reusable()


@asynccontextmanager
async def fresh() -> AsyncIterator[tuple[Connection, socket.socket]]:
    """Connect to an upstream that says what it is told to."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _, connection = await loop.create_connection(
        lambda: Connection(loop, loop.time, Outbox(loop)), sock=ours
    )
    with theirs:
        yield connection, theirs
        connection.close()
        await asyncio.sleep(0.01)


async def test_a_body_that_nobody_takes() -> None:
    """An upstream is held back until its answer is taken, and then all of it arrives."""
    loop = asyncio.get_running_loop()
    async with fresh() as (connection, theirs):
        asking = loop.create_task(connection.ask([b"x"], Timeouts(), Attempt("up", 0.0)))
        assert await loop.sock_recv(theirs, 1) == b"x"
        body = chunk(b"x" * 999) * 20_000
        sent = loop.create_task(loop.sock_sendall(theirs, HEAD + body + b"0\r\n\r\n"))
        await asking
        await asyncio.wait([sent], timeout=0.3)
        assert not sent.done()
        sink = Taken()
        connection.attach(sink)
        async with asyncio.timeout(10):
            await sent
            while not sink.ended:
                await asyncio.sleep(0.005)
        assert len(sink.body) == 999 * 20_000
        assert connection.reusable()


async def test_an_answer_that_nobody_takes() -> None:
    """What nobody took of one answer is no part of the next one."""
    loop = asyncio.get_running_loop()
    async with fresh() as (connection, theirs):
        for body in (b"first", b"second"):
            asking = loop.create_task(connection.ask([b"x"], Timeouts(), Attempt("up", 0.0)))
            assert await loop.sock_recv(theirs, 1) == b"x"
            await loop.sock_sendall(theirs, HEAD + chunk(body) + b"0\r\n\r\n")
            await asking
            assert connection.reusable()
        sink = Taken()
        connection.attach(sink)
        assert sink.pieces == [b"second"]


# In words


async def test_in_words() -> None:
    """A connection says in English whose it is, and what it does."""
    loop = asyncio.get_running_loop()
    async with fresh() as (connection, theirs):
        connection.upstream = "openai"
        assert repr(connection) == "<Connection to openai: new>"
        for count, words in enumerate(["1st", "2nd", "3rd", "4th"], start=1):
            asking = loop.create_task(connection.ask([b"x"], Timeouts(), Attempt("up", 0.0)))
            assert await loop.sock_recv(theirs, 1) == b"x"
            assert repr(connection) == f"<Connection to openai: {words} answer, head, 0 B>"
            body = chunk(b"x" * 19_999)
            await loop.sock_sendall(theirs, HEAD + body)
            await asking
            sink = Taken()
            connection.attach(sink)
            async with asyncio.timeout(2):
                while len(sink.body) < 19_999:
                    await asyncio.sleep(0)
            assert repr(connection) == f"<Connection to openai: {words} answer, body, 20 kB>"
            await loop.sock_sendall(theirs, LAST)
            async with asyncio.timeout(2):
                while not sink.ended:
                    await asyncio.sleep(0)
            assert repr(connection) == f"<Connection to openai: {words} answer, whole>"
            connection.rest(loop.time())
            plural = "s" if count > 1 else ""
            assert repr(connection) == f"<Connection to openai: idle, {count} answer{plural}>"
        connection.close()
        assert repr(connection) == "<Connection to openai: closed>"


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (12, "12th"), (21, "21st"), (113, "113th")],
)
def test_ordinals(number: int, words: str) -> None:
    """Numbers are counted as English counts them."""
    connection = asked()
    connection.connection_made(Wire())
    connection.used = number
    assert f": {words} answer," in repr(connection)
