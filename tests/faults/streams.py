"""E: in the middle of a stream."""

import asyncio
import gzip
import random
import zlib
from time import monotonic

from tests.faults.case import case
from tests.faults.house import ENDINGS, At
from tests.faults.places import Spot
from tests.faults.scenarios import FRAMES, HELLO, STOP, WHOLE, Held, cut, endless, events
from tests.harness.client import Pair
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    answer,
    chunk,
    event,
    head,
    raw,
)

BASIC = HELLO + STOP + DONE
IDLE = Spot(extra='timeout = { idle = "300ms" }')


@case("E01", forms={f"{frame} {how}": (frame, how) for frame in FRAMES for how in ("fin", "rst")})
async def cuts(at: At, what: tuple[str, str]) -> None:
    """Wherever a stream is cut, the caller has what came, is told so between two events, and cannot take it for
    a whole.
    """
    frame, how = what
    finished = BASIC.index(b"[DONE]") + 6
    every = range(len(BASIC)) if what == ("chunked", "fin") else range(0, len(BASIC), 9)

    async def one(after: int) -> None:
        got = await at.call(at.body(stream=True))
        assert BASIC[:after] == got.body[:after] or not after
        finishes = STOP in BASIC[:after] or after >= finished
        if frame == "close" and how == "fin":
            assert got.whole == finishes
        assert got.whole <= finishes
        if not finishes:
            between = not after or BASIC[:after].endswith(b"\n\n")
            assert any(code.encode() in got.body for code in ENDINGS) or not between
            assert got.body == BASIC[:after] or between
            assert (await at.record())["outcome"] == "upstream_cut"

    for after in every:
        at["A"].will(cut(BASIC, after, how=how, frame=frame))
        await one(after)


ENDS: dict[str, tuple[str, bytes, bytes]] = {
    "chat": ("/v1/chat/completions", HELLO, b"upstream_incomplete"),
    "messages": ("/v1/messages", b"event: message_start\ndata: {}\n\n", b"event: error"),
    "responses": ("/v1/responses", b"event: response.created\ndata: {}\n\n", b"event: error"),
}


@case("E03", forms=ENDS)
async def incomplete(at: At, what: tuple[str, bytes, bytes]) -> None:
    """A stream that ends in order, but without its marker, was cut, and is told so in its dialect."""
    path, begins, told = what
    at["A"].will(events(begins))
    got = await at.call(at.body(stream=True), path=path)
    assert got.body.startswith(begins)
    assert told in got.body[len(begins) :]
    assert not got.whole
    assert (await at.record())["error"] == "upstream_incomplete"


@case("E03b", spots=Spot(extra='terminal = "none"'))
async def never_complete(at: At) -> None:
    """Where an upstream is said to send no marker, its end is an end."""
    at["A"].will(events(HELLO))
    got = await at.call(stream=True)
    assert (got.body, got.whole) == (HELLO, True)


CORPUS: dict[str, bytes] = {
    "CRLF": BASIC.replace(b"\n", b"\r\n"),
    "CR": BASIC.replace(b"\n", b"\r"),
    "mixed": HELLO.replace(b"\n", b"\r\n") + STOP.replace(b"\n", b"\r") + DONE,
    "BOM": b"\xef\xbb\xbf" + BASIC,
    "comments": b": hello\n\n:\n" + HELLO + b": x\ndata: 1\n\n" + DONE,
    "fields": b"id: 1\nretry: 5\nevent: x\ndata: 1\ndata: 2\nfoo\n\n" + DONE,
    "NUL": b"data: \0\nid: \0\n\n" + DONE,
    "empty lines": b"\n\n\n\n" + HELLO + b"\n\n\n" + DONE + b"\n\n",
    "no blank": b"data:1\n\ndata:[DONE]\n\n",
    "64 KB": event(b"x" * 65_000) + DONE,
    "16 MB": event(b"x" * 16_000_000) + DONE,
    "not UTF-8": event(b"\xff\xfe\x80") + DONE,
}


@case("E05", forms=CORPUS)
async def corpus(at: At, data: bytes) -> None:
    """However an event stream is written, it passes as it is written."""
    at["A"].will(events(data))
    got = await at.call(stream=True)
    assert (got.body == data, got.whole) == (True, True)


@case("E06", forms={"crumbs": 1, "pieces": 0, "a lump": -1})
async def pieces(at: At, what: int) -> None:
    """In crumbs or in a lump, the bytes are the same."""
    data = event(b"y" * (1500 if what == 1 else 100_000)) * (1 if what >= 0 else 100) + DONE
    rng = random.Random(7)

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]))
        place = 0
        while place < len(data):
            size = {1: 1, 0: rng.randint(1, 3000), -1: len(data)}[what]
            await conn.send(chunk(data[place : place + size]))
            place += size
        await conn.send(b"0\r\n\r\n")

    at["A"].will(step)
    got = await at.call(stream=True)
    assert (got.body == data, got.whole) == (True, True)


@case("E07", forms={"1 MiB": 2**20, "20 MiB": 20 * 2**20})
async def long_lines(at: At, size: int) -> None:
    """A line of any length passes."""
    data = event(b"z" * size) + DONE
    at["A"].will(events(*(data[place : place + 65_536] for place in range(0, len(data), 65_536))))
    got = await at.call(stream=True)
    assert (got.body == data, got.whole) == (True, True)


@case("E08")
async def split_marker(at: At) -> None:
    """A marker that comes in two packets is the marker; two events in one are two."""
    for place in range(1, len(DONE)):
        at["A"].will(events(HELLO + HELLO, DONE[:place], DONE[place:], end="cut"))
        got = await at.call(stream=True)
        assert (got.body, got.whole) == (HELLO + HELLO + DONE, True)


@case("E09", route='keepalive = "100ms"')
async def comments(at: At) -> None:
    """Comments pass; ours come in silence only, and between events only."""
    half = HELLO[:20]
    at["A"].will(events(b": theirs\n\n", half, HELLO[20:] + DONE, pause=0.35))
    got = await at.call(stream=True)
    assert got.whole
    assert got.body.count(b": keepalive\n") in (2, 3, 4)
    assert got.body.replace(b": keepalive\n", b"") == b": theirs\n\n" + HELLO + DONE
    assert half + b": keepalive" not in got.body


@case("E10", spots=IDLE)
async def idle(at: At) -> None:
    """A stream that falls silent is ended, its caller told, and its upstream left."""
    at["A"].will(events(HELLO, end="none"))
    got = await at.call(stream=True)
    assert b"upstream_idle_timeout" in got.body
    assert not got.whole
    await at["A"].idle(1)


@case("E11", spots=IDLE)
async def dribble(at: At) -> None:
    """A stream that dribbles is not silent."""
    at["A"].will(events(*(bytes([byte]) for byte in HELLO[:9]), HELLO[9:] + DONE, pause=0.1))
    got = await at.call(stream=True)
    assert (got.body, got.whole) == (HELLO + DONE, True)


ERRORS: dict[str, bytes] = {
    "OpenAI": event(b'{"error":{"message":"no","type":"server_error","code":null}}'),
    "Anthropic": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}\n\n',
    "vLLM": event(b'{"object":"error","message":"no","code":500}'),
}


@case("E13", forms=ERRORS)
async def error_events(at: At, data: bytes) -> None:
    """An error inside a 200 is relayed as it is, and called by its name in the log."""
    at["A"].will(events(data))
    got = await at.call(stream=True)
    assert got.body == data
    record = await at.record()
    assert (record["error"], record["outcome"]) == ("upstream_error_event", "upstream_error")


@case(
    "E13b", spots={"A": Spot(), "B": Spot()}, route='fallback = "@-B/@", peek = true', forms=ERRORS
)
async def peeked(at: At, data: bytes) -> None:
    """With `peek` a stream that begins with an error has not begun: the fallback is asked."""
    at["A"].will(events(data))
    at["B"].will(events(WHOLE))
    at.sends = 2
    got = await at.call(stream=True)
    assert got.body in (WHOLE, data)
    assert (got.body == WHOLE) == (at["B"].sends == 1)


@case("E15", forms={"data": True, "silence": False})
async def after_the_marker(at: At, data: bool) -> None:
    """Behind the marker nothing counts: the client has its end within two seconds, whatever comes."""
    at["A"].will(events(HELLO + DONE, *([HELLO] * 3 if data else []), end="none"))
    begun = monotonic()
    got = await at.call(stream=True)
    assert got.whole
    assert got.body.startswith(HELLO + DONE)
    assert monotonic() - begun < 3.5
    await at["A"].idle(1)


@case("E16", spots=Spot(extra='timeout = { write = "400ms" }'))
async def never_reads(at: At) -> None:
    """A client that takes nothing is given up, and so is its upstream."""
    at["A"].will(endless(event(b"x" * 60_000)))
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port, limit=2**12)
    writer.write(at.request(at.body(stream=True)))
    try:
        record = await at.record()
        assert (record["outcome"], record["error"]) == ("timeout", "client_stalled")
        await at["A"].idle(1)
    finally:
        writer.transport.abort()
        del reader


@case("E18")
async def early_requests(at: At) -> None:
    """What a client sends behind a running stream is answered after it."""
    held = Held()
    at["A"].will(held, answer())
    caller = await at.connect()
    await caller.send(at.request(at.body(stream=True)))
    await held.begun.wait()
    await caller.send(at.request() + at.request())
    held.released.set()
    assert (await caller.answer()).body == HELLO + STOP + DONE
    assert (await caller.answer()).body == b'{"ok":true}'
    assert (await caller.answer()).body == b'{"ok":true}'


@case("E19")
async def big_answer(at: At) -> None:
    """Twenty megabytes of JSON pass, without being gathered first."""
    go = asyncio.Event()
    body = b"x" * 20_000_000

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [JSON, (b"Content-Length", b"%d" % len(body))]) + body[:1000])
        await go.wait()
        await conn.send(body[1000:])

    at["A"].will(step)
    caller = await at.connect()
    await caller.send(at.request())
    async with asyncio.timeout(5):
        await caller.reader.readuntil(b"x" * 1000)
    go.set()
    async with asyncio.timeout(20):
        rest = await caller.reader.readexactly(len(body) - 1000)
    assert rest == body[1000:]


@case("E20")
async def head_first(at: At) -> None:
    """The head of a stream goes out before its first event has come, and says that nobody may buffer."""
    held = Held(first=b"", last=HELLO + DONE)
    at["A"].will(held)
    caller = await at.connect()
    await caller.send(at.request(at.body(stream=True)))
    async with asyncio.timeout(5):
        got = await caller.reader.readuntil(b"\r\n\r\n")
    assert b"\r\nX-Accel-Buffering: no\r\n" in got
    assert b"\r\nCache-Control: no-cache" in got
    held.released.set()
    async with asyncio.timeout(5):
        await caller.reader.readuntil(b"0\r\n\r\n")


@case("E21")
async def compressed(at: At) -> None:
    """A compressed stream passes in the pieces in which it was flushed."""
    packer = zlib.compressobj(wbits=31)
    parts = [
        packer.compress(HELLO) + packer.flush(zlib.Z_SYNC_FLUSH),
        packer.compress(DONE) + packer.flush(),
    ]
    at["A"].will(events(*parts, pause=0.1, headers=[(b"Content-Encoding", b"gzip")]))
    got = await at.call(stream=True)
    assert gzip.decompress(got.body) == HELLO + DONE
    assert got.chunks == parts


@case("E22")
async def together(at: At) -> None:
    """Fifty streams at once do not mix: no gap, no byte of another's."""

    async def step(conn: Conn, request: Received) -> None:
        mine = request.body[request.body.index(b"prompt-") :][:23]
        await conn.send(head(200, [SSE, CHUNKED]))
        for number in range(20):
            await conn.send(chunk(event(b"%b %d" % (mine, number))))
            await asyncio.sleep(0)
        await conn.send(chunk(DONE) + b"0\r\n\r\n")

    at["A"].will(step)

    async def one() -> None:
        body = at.body(stream=True)
        mine = body[body.index(b"prompt-") :][:23]
        got = await at.call(body)
        assert got.body == b"".join(event(b"%b %d" % (mine, n)) for n in range(20)) + DONE

    await asyncio.gather(*(one() for _ in range(50)))


@case("E23", forms={"length too long": 100, "length too short": -5})
async def wrong_length(at: At, by: int) -> None:
    """A stream whose length is wrong is cut short, or ends where it says."""
    headers: list[Pair] = [SSE, (b"Content-Length", b"%d" % (len(BASIC) + by))]
    at["A"].will(raw(head(200, headers) + BASIC))
    got = await at.call(stream=True)
    assert got.body[: len(BASIC) - 5] == BASIC[:-5]
