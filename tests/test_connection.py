"""One connection to an upstream, by itself; what it does under an exchange is in `test_transport`."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.connection import UNTAKEN_BYTES, Connection
from proxy.errors import UPSTREAM_PROTOCOL, ProxyError, UpstreamFailure
from proxy.exchange import Attempt
from proxy.outbox import Outbox
from proxy.routes import Timeouts
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
    connection.busy = True
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
SIZES = st.sampled_from(["{:x}", "{:X}", "{:04x}"])
EXTENSIONS = st.sampled_from(["", "", ";a", ";a=b", ';a="b;c"'])
BODIES = st.binary(min_size=1) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n"])
CHUNKS = st.tuples(SIZES, EXTENSIONS, BODIES)
BEFORE = st.sampled_from([b"", b"\r\n", head(103), head(100) + head(103)])
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nServer-Timing: x\r\n"])


def written(chunks: Sequence[tuple[str, str, bytes]], trailers: bytes = b"") -> bytes:
    """Return a whole chunked body."""
    lines = [(size.format(len(body)) + more).encode() for size, more, body in chunks]
    pairs = zip(lines, chunks, strict=True)
    coded = b"".join([b"%b\r\n%b\r\n" % (line, body) for line, (_, _, body) in pairs])
    return coded + b"0\r\n" + trailers + b"\r\n"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return *data* in pieces, cut at *places*, of which those outside of it do not count."""
    edges = [0, *sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


@given(BEFORE, st.lists(CHUNKS, max_size=5), TRAILERS, st.sets(st.integers(1, 400)), st.booleans())
@example(b"", [("{:x}", "", b"one"), ("{:x}", "", b"two")], b"A: b\r\n", set(range(400)), False)
def test_chunked(
    before: bytes,
    chunks: list[tuple[str, str, bytes]],
    trailers: bytes,
    places: set[int],
    late: bool,
) -> None:
    """A chunked body is the same wherever the network has cut it, and whenever it is taken."""
    reads = cut(before + HEAD + written(chunks, trailers), places)
    connection, sink, _ = answered(reads, late=late)
    assert (connection.status, connection.headers) == (200, (SSE, CHUNKED))
    assert sink.body == b"".join([body for _, _, body in chunks])
    assert sink.ended
    assert sink.error is None
    assert connection.reusable()


def test_one_read_is_one_piece() -> None:
    """However many chunks come in one read, they are handed on in one piece."""
    events = [b"data: %d\n\n" % number for number in range(103)]
    coded = b"".join(map(chunk, events))
    _, sink, _ = answered([HEAD, coded, b"0\r\n\r\n"])
    assert sink.pieces == [b"".join(events)]
    _, sink, _ = answered([HEAD, *map(chunk, events), b"0\r\n\r\n"])
    assert sink.pieces == events
    assert sink.ended


BAD = [
    b"zz\r\n",
    b"5\nhello",
    b" 5\r\nhello",
    b"5\r\nhello5\r\n",
    b"5 \r\n",
    b"-1\r\n",
    b"0\r\n:\r\n",
]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("cuts", [[], range(400)], ids=["at once", "bytes"])
def test_bad_chunks(bad: bytes, cuts: Sequence[int]) -> None:
    """What came before bad chunked coding is handed on, and nothing behind it."""
    sent = HEAD + chunk(b"good") + bad + b"\r\n" + chunk(b"canary")
    connection, sink, wire = answered(cut(sent, cuts))
    assert sink.body in (b"good", b"goodhello")
    assert not sink.ended
    assert sink.error is not None
    assert sink.error.kind.code == "upstream_disconnected"
    assert wire.told == ["abort"]
    assert not connection.reusable()


SECOND = [
    head(200, [(b"Content-Length", b"6")]) + b"canary",
    HEAD + chunk(b"canary") + b"0\r\n\r\n",
    head(101, [(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")]) + b"canary",
    head(103),
    b"H",
    b"canary",
]


@pytest.mark.parametrize("first", [HEAD + chunk(b"first") + b"0\r\n\r\n", head(204)])
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("late", [False, True])
def test_a_second_answer_in_one_read(first: bytes, second: bytes, late: bool) -> None:
    """Whatever stands behind a whole answer in the same read is not part of it, and ends the connection."""
    connection, sink, _ = answered([first + second], late=late)
    assert sink.body == (b"first" if first.startswith(HEAD) else b"")
    assert sink.ended
    assert sink.error is None
    assert connection.status in (200, 204)
    assert not connection.reusable()


@pytest.mark.parametrize("line", [b"Connection: close\r\n", b"connection: x, Close\r\n"])
def test_last_words(line: bytes) -> None:
    """A connection that its head, or a trailer, says will be closed is not used again."""
    body = chunk(b"x") + b"0\r\n"
    for sent in (HEAD[:-2] + line + b"\r\n" + body + b"\r\n", HEAD + body + line + b"\r\n"):
        connection, sink, _ = answered([sent])
        assert (sink.body, sink.ended) == (b"x", True)
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
