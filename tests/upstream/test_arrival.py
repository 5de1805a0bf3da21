"""One answer, without a connection: bytes in, and what is told of them out."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import (
    STREAM_DISCONNECTED,
    UPSTREAM_DISCONNECTED,
    UPSTREAM_PROTOCOL,
    Fault,
    ProxyError,
    UpstreamFailure,
)
from proxy.headers import Headers
from proxy.upstream.arrival import HEAD_BYTES, Arrival, Parser, State
from tests.harness.upstream import CHUNKED, SSE, Pair, chunk, head


class Recorder:
    """Asks, takes the answer, and keeps what it was told, in order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.status = 0
        self.reason = b""
        self.headers: Sequence[Pair] = ()
        self.pieces: list[bytes] = []
        self.error: ProxyError | None = None

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def size(self) -> int:
        return len(self.body)

    def head(self, status: int, reason: bytes, headers: Headers) -> None:
        self.told.append("head")
        self.status, self.reason, self.headers = status, reason, headers

    def data(self, data: bytes) -> None:
        assert data
        if self.told[-1] != "data":
            self.told.append("data")
        self.pieces.append(data)

    def end(self) -> None:
        self.told.append("end")

    def broke(self, error: ProxyError) -> None:
        self.told.append("broke")
        self.error = error


LOST = UpstreamFailure(UPSTREAM_DISCONNECTED, "It is gone.", Fault.AMBIGUOUS)


def read(
    reads: Iterable[bytes], *, upgrade: bool = False, parser: Parser | None = None
) -> tuple[Arrival, Recorder]:
    """Have an answer arrive in *reads*, as far as it is fed at all."""
    recorder = Recorder()
    arrival = Arrival(recorder, parser or Parser(), upgrade=upgrade)
    for data in reads:
        if not arrival.over:
            arrival.feed(data)
    return arrival, recorder


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return *data* in pieces, cut at *places*, of which those outside of it do not count."""
    edges = [0, *sorted({place for place in places if 0 < place < len(data)}), len(data)]
    return [data[begin:end] for begin, end in pairwise(edges)]


def ways(data: bytes) -> list[list[bytes]]:
    """Return *data* as a whole, byte by byte, and in all its halves."""
    halves = [cut(data, [place]) for place in range(1, len(data))]
    return [[data], cut(data, range(len(data))), *halves]


HEAD = head(200, [SSE, CHUNKED])
LAST = b"0\r\n\r\n"
PLAIN = head(200, [(b"Content-Length", b"5")]) + b"hello"
UPGRADED = head(101, [(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")])

# Heads


def test_a_head() -> None:
    """A head is the same wherever the network has cut it, and is told once, before all else."""
    for reads in ways(HEAD + chunk(b"hello") + LAST):
        _, recorder = read(reads)
        assert recorder.told == ["head", "data", "end"]
        assert (recorder.status, recorder.reason) == (200, b"OK")
        assert recorder.headers == (SSE, CHUNKED)


@pytest.mark.parametrize("before", [head(103), head(100) + head(103, [(b"Link", b"x")]), b"\r\n"])
def test_what_goes_before(before: bytes) -> None:
    """Interim answers are not told, nor is anything of them taken for the answer's."""
    for reads in ways(before + PLAIN):
        _, recorder = read(reads)
        assert recorder.told == ["head", "data", "end"]
        assert (recorder.status, recorder.body) == (200, b"hello")
        assert [name for name, _ in recorder.headers] == [b"Content-Length"]


BAD_HEADS = [
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.1 007 Bond\r\n\r\n",
    b"HTTP/1.1 200 O\x01K\r\n\r\n",
    head(200, [(b"Transfer-Encoding", b"gzip, chunked")]),
    UPGRADED,
    PLAIN[: PLAIN.index(b"\r\n\r\n")] + b"\r\nTransfer-Encoding: chunked\r\n\r\n",
]


@pytest.mark.parametrize("bad", BAD_HEADS)
def test_bad_heads(bad: bytes) -> None:
    """What is no head is told as a failure, which may be tried again elsewhere, and nothing is told of
    a body.
    """
    for reads in ways(bad):
        arrival, recorder = read(reads)
        assert recorder.told == ["broke"]
        assert isinstance(recorder.error, UpstreamFailure)
        assert (recorder.error.kind, recorder.error.fault) == (UPSTREAM_PROTOCOL, Fault.MALFORMED)
        assert (arrival.state, arrival.reusable) == (State.BROKEN, False)


def test_bad_with_its_head() -> None:
    """A body that is bad in the very read that the head came in spoils the head: it is never told."""
    _, recorder = read([HEAD + chunk(b"hello") + b"zz\r\n"])
    assert recorder.told == ["broke"]
    assert isinstance(recorder.error, UpstreamFailure)


def test_too_long_a_head() -> None:
    """A head that has no end is not read for ever."""
    line = b"A: " + b"b" * 1000 + b"\r\n"
    arrival, recorder = read([b"HTTP/1.1 200 OK\r\n", *[line] * (2 * HEAD_BYTES // len(line))])
    assert recorder.told == ["broke"]
    assert HEAD_BYTES < arrival.head_size <= HEAD_BYTES + len(line)


# Bodies

SIZES = st.sampled_from(["{:x}", "{:X}", "{:04x}"])
EXTENSIONS = st.sampled_from(["", "", ";a", ";a=b", ';a="b;c"'])
BODIES = st.binary(min_size=1) | st.sampled_from([b"\r\n", LAST, b"5\r\nhello\r\n"])
CHUNKS = st.tuples(SIZES, EXTENSIONS, BODIES)
BEFORE = st.sampled_from([b"", b"\r\n", head(103), head(100) + head(103)])
TRAILERS = st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nServer-Timing: x\r\n"])


def written(chunks: Sequence[tuple[str, str, bytes]], trailers: bytes = b"") -> bytes:
    """Return a whole chunked body."""
    lines = [(size.format(len(body)) + more).encode() for size, more, body in chunks]
    pairs = zip(lines, chunks, strict=True)
    coded = b"".join([b"%b\r\n%b\r\n" % (line, body) for line, (_, _, body) in pairs])
    return coded + b"0\r\n" + trailers + b"\r\n"


@given(BEFORE, st.lists(CHUNKS, max_size=5), TRAILERS, st.sets(st.integers(1, 400)))
@example(b"", [("{:x}", "", b"one"), ("{:x}", "", b"two")], b"A: b\r\n", set(range(400)))
def test_chunked(
    before: bytes, chunks: list[tuple[str, str, bytes]], trailers: bytes, places: set[int]
) -> None:
    """A chunked body is the same wherever the network has cut it; its trailers are not told."""
    sent = before + HEAD + written(chunks, trailers)
    arrival, recorder = read(cut(sent, places))
    assert (recorder.status, recorder.headers) == (200, (SSE, CHUNKED))
    assert recorder.body == b"".join([body for _, _, body in chunks])
    assert [what for what in recorder.told if what != "data"] == ["head", "end"]
    assert arrival.reusable


def test_one_read_is_one_piece() -> None:
    """However many chunks come in one read, they are handed on in one piece."""
    events = [b"data: %d\n\n" % number for number in range(103)]
    coded = b"".join(map(chunk, events))
    _, recorder = read([HEAD, coded, LAST])
    assert recorder.pieces == [b"".join(events)]
    _, recorder = read([HEAD, *map(chunk, events), LAST])
    assert recorder.pieces == events


@pytest.mark.parametrize(
    "bad",
    [
        b"zz\r\n",
        b"5\nhello",
        b" 5\r\nhello",
        b"5\r\nhello5\r\n",
        b"5 \r\n",
        b"-1\r\n",
        b"0\r\n:\r\n",
    ],
)
@pytest.mark.parametrize("cuts", [[], range(400)], ids=["at once", "bytes"])
def test_bad_chunks(bad: bytes, cuts: Sequence[int]) -> None:
    """What came before bad chunked coding is handed on, and nothing behind it."""
    arrival, recorder = read([HEAD, *cut(chunk(b"good") + bad + b"\r\n" + chunk(b"canary"), cuts)])
    assert recorder.body in (b"good", b"goodhello")
    assert recorder.told == ["head", "data", "broke"]
    assert recorder.error is not None
    assert recorder.error.kind is STREAM_DISCONNECTED
    assert not arrival.reusable


SECOND = [
    head(200, [(b"Content-Length", b"6")]) + b"canary",
    HEAD + chunk(b"canary") + LAST,
    UPGRADED + b"canary",
    head(103),
    b"H",
    b"canary",
]


@pytest.mark.parametrize("first", [HEAD + chunk(b"first") + LAST, head(204)])
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("upgrade", [False, True])
def test_a_second_answer_in_one_read(first: bytes, second: bytes, upgrade: bool) -> None:
    """Whatever stands behind a whole answer in the same read is not part of it, and none may follow it."""
    arrival, recorder = read([first + second], upgrade=upgrade)
    assert recorder.body == (b"first" if first.startswith(HEAD) else b"")
    assert recorder.told[-1] == "end"
    assert recorder.error is None
    assert recorder.status in (200, 204)
    assert (arrival.state, arrival.reusable) == (State.WHOLE, False)


@pytest.mark.parametrize("line", [b"Connection: close\r\n", b"connection: x, Close\r\n"])
def test_last_words(line: bytes) -> None:
    """Behind an answer whose head, or trailer, says that the connection will be closed none may follow."""
    body = chunk(b"x") + b"0\r\n"
    for sent in (HEAD[:-2] + line + b"\r\n" + body + b"\r\n", HEAD + body + line + b"\r\n"):
        arrival, recorder = read([sent])
        assert (recorder.body, recorder.told[-1]) == (b"x", "end")
        assert not arrival.reusable


def test_one_parser_for_many() -> None:
    """What one answer was is nothing to the next one, whose bytes come behind it."""
    parser = Parser()
    answers = (HEAD + chunk(b"one") + LAST, head(204), head(103) + PLAIN, head(304), PLAIN)
    for sent, status, body in zip(
        answers, (200, 204, 200, 304, 200), (b"one", b"", b"hello", b"", b"hello"), strict=True
    ):
        arrival, recorder = read([sent], parser=parser)
        assert (recorder.status, recorder.body, recorder.told[-1]) == (status, body, "end")
        assert arrival.reusable


# Ends of connections

ENDLESS = head(200, [SSE])


@pytest.mark.parametrize("clean", [True, False])
def test_an_end_that_only_a_close_tells(clean: bool) -> None:
    """An answer without length ends when its connection is closed in order; else it was cut."""
    arrival, recorder = read([ENDLESS + b"hello", b", you"])
    arrival.close(LOST, clean=clean)
    assert recorder.body == b"hello, you"
    assert recorder.told == ["head", "data", "end" if clean else "broke"]
    assert (recorder.error is None) is clean
    assert not arrival.reusable


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("sent", [HEAD + chunk(b"hello"), PLAIN[:-1]])
def test_a_cut(sent: bytes, clean: bool) -> None:
    """An answer that says where it ends is cut by any close before."""
    arrival, recorder = read([sent])
    arrival.close(LOST, clean=clean)
    assert recorder.told == ["head", "data", "broke"]
    assert recorder.error is not None
    assert recorder.error.kind is STREAM_DISCONNECTED


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("sent", [b"", HEAD[:-1], b"HTTP"])
def test_no_answer(sent: bytes, clean: bool) -> None:
    """Where no head has come, the connection says what its loss means."""
    arrival, recorder = read([sent] if sent else [])
    arrival.close(LOST, clean=clean)
    assert (recorder.told, recorder.error) == (["broke"], LOST)


def test_announced_and_not_sent() -> None:
    """An upstream that announces an answer and closes has answered, badly."""
    arrival, recorder = read([head(103)])
    arrival.close(LOST, clean=True)
    assert isinstance(recorder.error, UpstreamFailure)
    assert recorder.error.kind is UPSTREAM_PROTOCOL


def test_the_first_reason_counts() -> None:
    """What is over stays as it is, whatever else happens to it."""
    arrival, recorder = read([HEAD])
    arrival.fail(ProxyError(STREAM_DISCONNECTED, "First."))
    arrival.fail(LOST)
    arrival.close(LOST, clean=True)
    assert recorder.told == ["head", "broke"]
    assert str(recorder.error) == "First."
    arrival, recorder = read([PLAIN])
    arrival.fail(LOST)
    assert (recorder.told[-1], arrival.state) == ("end", State.WHOLE)


def test_abandoned() -> None:
    """Who has left is told nothing more."""
    arrival, recorder = read([HEAD, chunk(b"hello")])
    arrival.abandon()
    arrival.close(LOST, clean=True)
    assert recorder.told == ["head", "data"]
    assert not arrival.reusable


# Tunnels


def test_a_tunnel() -> None:
    """After a 101 that was asked for bytes are bytes, until the connection is closed."""
    for reads in ways(UPGRADED + b"\x81\x05hello\r\n\r\nHTTP/1.1 200 OK\r\n"):
        arrival, recorder = read(reads, upgrade=True)
        assert (recorder.status, arrival.state) == (101, State.TUNNEL)
        assert recorder.body == b"\x81\x05hello\r\n\r\nHTTP/1.1 200 OK\r\n"
        arrival.close(LOST, clean=True)
        assert recorder.told == ["head", "data", "end"]
        assert not arrival.reusable


def test_a_tunnel_that_is_cut() -> None:
    """A tunnel whose connection is lost without a word has broken."""
    arrival, recorder = read([UPGRADED], upgrade=True)
    arrival.close(LOST, clean=False)
    assert recorder.told == ["head", "broke"]


# In words


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "head, 0 B"),
        (head(103), f"head, {len(head(103))} B"),
        (ENDLESS + b"x" * 999, "body, 999 B"),
        (ENDLESS + b"x" * 20_000, "body, 20 kB"),
        (head(204), "whole"),
        (b"SSH\r\n", "broken"),
        (UPGRADED + b"hello", "tunnel, 5 B"),
    ],
)
def test_in_words(sent: bytes, words: str) -> None:
    """An answer says in English how far it has come."""
    arrival, _ = read([sent] if sent else [], upgrade=True)
    assert repr(arrival) == f"<Arrival: {words}>"
