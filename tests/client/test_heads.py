"""Heads that are known by their bytes: what is taken for a request is what the parser would take for it."""

import asyncio
import gc
import tracemalloc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256

import orjson
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.client.heads import HEADS_BYTES, KNOWN_BYTES, Head, Heads
from proxy.config import load
from proxy.exchange import WRITTEN_BYTES
from proxy.headers import NO_NAMES
from proxy.outbound import Addressed, Signature, Written
from proxy.routes import Base, Origin
from tests.harness.client import Client, Pair, chat, request
from tests.harness.proxy import serving
from tests.harness.upstream import Conn, Received, Upstream
from tests.harness.upstream import head as answer_head

SIGNED = Signature(0, b"", frozenset(), (), passthrough=False, tokens=True)
TO = Addressed(Base(Origin("http", "up.example", 80), ""), "/")
KEY: Pair = (b"Authorization", b"Bearer sk-team-0123456789")
OTHER: Pair = (b"Authorization", b"Bearer sk-other-012345678")
FIRST = b"POST /v1/chat/completions HTTP/1.1\r\n"


@contextmanager
def parser() -> Iterator[HttpRequestParser]:
    """A parser as aiohttp's server has one for a new connection."""
    loop = asyncio.new_event_loop()
    try:
        yield HttpRequestParser(
            BaseProtocol(loop),
            loop,
            64 * 1024,
            max_line_size=16 * 1024,
            max_field_size=32 * 1024,
            auto_decompress=False,
        )
    finally:
        loop.close()


def parse(data: bytes) -> tuple[RawRequestMessage, bytes] | None:
    """Return the one request that *data* is to the parser, with its body; None if it is not exactly one."""
    with parser() as one:
        try:
            messages, upgraded, _ = one.feed_data(data)
        except HttpProcessingError:
            return None
        if len(messages) != 1 or upgraded:
            return None
        message, payload = messages[0]
        assert isinstance(message, RawRequestMessage)
        if not payload.is_eof():
            return None
        body = b"" if payload is EMPTY_PAYLOAD else b"".join(payload._buffer)
        return message, body


def learnt(heads: Heads, data: bytes) -> tuple[Head, int | None]:
    """Have the request *data* learnt, as the parser reads it."""
    with parser() as one:
        messages, _, _ = one.feed_data(data)
    message = messages[0][0]
    assert isinstance(message, RawRequestMessage)
    return heads.learn(data, message)


@pytest.mark.parametrize(
    "name", [b"Content-Length", b"content-length", b"CONTENT-length"], ids=bytes.decode
)
def test_known_with_another_body(name: bytes) -> None:
    """A head is known again, whatever the length of the body, and however its name is written."""
    heads = Heads()
    line = b"%b: %%d\r\n" % name
    start = FIRST + b"Host: x\r\n" + line + b"X-A: 1\r\n\r\n"
    head, size = learnt(heads, start % 2 + b"{}")
    assert size == len(start % 2) + 2
    assert heads.find(start % 2 + b"{}") == (head, b"{}")
    assert heads.find(start % 11 + b"hello world") == (head, b"hello world")
    assert heads.find(start % 0) == (head, b"")


def test_known_without_a_body() -> None:
    """A head that says no length is known by all its bytes, and no body can stand behind it."""
    heads = Heads()
    data = b"GET /v1/models?a=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    head, size = learnt(heads, data)
    assert (head.method, head.path, head.query, size) == ("GET", "/v1/models", "a=1", len(data))
    assert heads.find(data) == (head, b"")
    assert heads.find(data + b"x") is None
    assert heads.find(data[:-1]) is None


def test_one_head_for_all() -> None:
    """Who learns a known head again has the head that was known, with all that was found out about it."""
    heads = Heads()
    first, _ = learnt(heads, request(b"{}"))
    again, _ = learnt(heads, request(b"other"))
    assert first is again


KNOWN = FIRST + b"Host: x\r\nContent-Length: 2\r\nX-A: 1\r\n\r\n{}"


@pytest.mark.parametrize(
    "data",
    [
        KNOWN[:-1],
        KNOWN + b"x",
        KNOWN + KNOWN,
        KNOWN.replace(b"X-A: 1", b"X-A: 2"),
        KNOWN.replace(b"X-A", b"x-a"),
        KNOWN.replace(b"POST", b"PUT"),
        KNOWN.replace(b": 2", b": 3"),
        KNOWN.replace(b": 2", b": 02"),
        KNOWN.replace(b": 2", b":  2"),
        KNOWN.replace(b": 2", b": +2"),
        KNOWN.replace(b": 2", b": 2 "),
        KNOWN.replace(b": 2", b": "),
        KNOWN.replace(b"X-A: 1", b"X-A: 1\r\nContent-Length: 2"),
        KNOWN.replace(b"X-A: 1", b"Transfer-Encoding: chunked"),
        KNOWN.replace(b"\r\n", b"\n"),
        b"\r\n" + KNOWN,
        b"\r\n\r\n",
        b"",
        b"{}",
    ],
    ids=repr,
)
def test_unknown(data: bytes) -> None:
    """What differs in anything but the number, or is not whole, is for the parser."""
    heads = Heads()
    learnt(heads, KNOWN)
    found = heads.find(data)
    assert found is None or (data == KNOWN.replace(b": 2", b": 02") and found[1] == b"{}")


@pytest.mark.parametrize(
    "data",
    [
        KNOWN.replace(b"HTTP/1.1", b"HTTP/1.0"),
        KNOWN.replace(b"X-A: 1", b"Connection: close"),
        KNOWN.replace(b"X-A: 1", b"Connection: Upgrade\r\nUpgrade: websocket"),
        KNOWN.replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2] + b"0\r\n\r\n",
        b"\r\n" + KNOWN,
        b"\r\n\r\n" + KNOWN,
        KNOWN.replace(b": 2", b": 2 "),
    ],
    ids=repr,
)
def test_not_learnt(data: bytes) -> None:
    """A head after which no request may follow, or whose bytes are not plainly what was parsed, is not
    kept, and how long it is not said.
    """
    heads = Heads()
    _, size = learnt(heads, data)
    assert size is None
    assert heads.find(data) is None
    assert heads.find(data.lstrip(b"\r\n")) is None
    assert heads.find(b"\r\n\r\n") is None


def test_too_long_a_head() -> None:
    """A head over the bound is not kept, though it is known how long it was."""
    heads = Heads()
    data = request(b"{}", headers=[(b"X-Long", b"x" * KNOWN_BYTES)])
    assert learnt(heads, data)[1] == len(data)
    assert heads.find(data) is None


@pytest.mark.parametrize(
    "headers",
    [[], [(b"X-Long", b"x" * 3600)], [(b"X-%d" % number, b"x") for number in range(100)]],
    ids=["short", "long", "many"],
)
def test_bound(headers: list[Pair]) -> None:
    """Whatever heads come, no more is held of them than the bound says, all that may be found out about
    them included; new ones are kept, and the oldest give way.
    """
    heads = Heads()
    first = request(b"{}", headers=[*headers, (b"X-N", b"first")])
    learnt(heads, first)
    tracemalloc.start()
    try:
        for number in range(800):
            data = request(
                b"{}" if number % 2 else b"", headers=[*headers, (b"X-N", b"%d" % number)]
            )
            head, _ = learnt(heads, data)
            for what in range(20):
                written = Written("", "", NO_NAMES, TO, bytes(1500))
                head.learnt.written.keep(replace(SIGNED, version=what), written, 1500)
            assert heads.find(data) is not None
            assert head.learnt.written.total <= WRITTEN_BYTES
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert heads.find(first) is None
    assert held <= 2 * HEADS_BYTES
    assert held >= HEADS_BYTES / 2  # else the bound would be one of another thing


LINES = [
    b"Host: x", b"Content-Length: 2", b"content-length: 0", b"Content-Length: 12", b"Content-Length:",
    b"Content-Length: 2 ", b"Content-Length:\t2", b"X-A: 1", b"X-A:  Content-Length: 2", b"Content-Length : 2",
    b"X-Content-Length: 2", b" folded", b"Transfer-Encoding: chunked", b"Connection: close", b"Expect: 100-continue",
    b"X-B: \xff", b"X: \nContent-Length: 2", b"",
]  # fmt: skip
STARTS = [b"POST / HTTP/1.1", b"GET /a?b HTTP/1.1", b"\r\nPOST / HTTP/1.1", b"POST / HTTP/1.0", b""]


def requests() -> st.SearchStrategy[bytes]:
    """Requests, and what is nearly one."""
    body = st.sampled_from([b"", b"{}", b"{}\r\n\r\n", b"0\r\n\r\n", b"hello world!"])
    return st.builds(
        lambda start, lines, end, body: start + b"\r\n" + b"".join(x + end for x in lines) + body,
        st.sampled_from(STARTS),
        st.lists(st.sampled_from(LINES), max_size=5).map(lambda lines: [*lines, b""]),
        st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"]),
        body,
    )


@settings(max_examples=1500, deadline=None)
@given(taught=st.lists(requests(), max_size=6), asked=requests())
def test_the_parser_would_say_the_same(taught: list[bytes], asked: bytes) -> None:
    """Whatever was learnt before: what is found is just what the parser finds in the same bytes, and
    nothing where it finds no request, or more than one.
    """
    heads = Heads()
    for data in taught:
        with parser() as one:
            try:
                messages, _, _ = one.feed_data(data)
            except HttpProcessingError:
                continue
        if len(messages) == 1 and isinstance(messages[0][0], RawRequestMessage):
            heads.learn(data, messages[0][0])
    found = heads.find(asked)
    if found is None:
        return
    parsed = parse(asked)
    assert parsed is not None
    head, body = found
    message, whole = parsed
    fresh = Head(message)
    assert body == whole
    for name in ("method", "path", "query", "http10", "chunked", "websocket", "last"):
        assert getattr(head, name) == getattr(fresh, name)
    mine, theirs = (
        list(zip(head.headers.names, head.headers, strict=True)),
        list(zip(fresh.headers.names, fresh.headers, strict=True)),
    )
    assert [x for x in mine if x[0] != b"content-length"] == [
        x for x in theirs if x[0] != b"content-length"
    ]
    assert [x[0] for x in mine] == [x[0] for x in theirs]


# Through the proxy


def keyed(upstream: Upstream, keys: str = 'team = "sk-team-0123456789"', model: str = "*") -> str:
    """Return a routes file with keys."""
    return f"""
        [upstreams.up]
        base_url = "{upstream.url}"
        credential = "sk-upstream-secret"
        [routes]
        "*" = {{ upstream = "up", model = "{model}" }}
        [keys]
        {keys}
        """


async def mirror(conn: Conn, seen: Received) -> None:
    """Answer with the body that came."""
    await conn.send(answer_head(headers=[(b"Content-Length", b"%d" % len(seen.body))]) + seen.body)


async def test_many_bodies(upstream: Upstream) -> None:
    """One head, and bodies of all sizes behind it, in one packet or in many: each arrives as it was sent."""
    upstream.will(mirror)
    sizes = [1, 9, 10, 99, 100_000, 3, 70_000, 70_000, 5, 200_000, 1]
    async with serving(keyed(upstream)) as proxy, await Client.connect(proxy.port) as client:
        for size in sizes:
            body = chat(text="x" * size)
            await client.send(request(body, headers=[KEY]))
            assert (await client.answer()).body == body
        await proxy.record(len(sizes))
    for seen, size in zip(upstream.requests, sizes, strict=True):
        assert seen.value(b"content-length") == b"%d" % len(chat(text="x" * size))


async def test_pieces(upstream: Upstream) -> None:
    """However a known request is cut into packets, with another one behind it or not, it is itself."""
    upstream.will(mirror)
    body = chat()
    whole = request(body, headers=[KEY])
    count = 2
    async with serving(keyed(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(whole)
        assert (await client.answer()).body == body
        for at in [*range(1, 40, 7), *range(len(whole) - len(body) - 5, len(whole), 9)]:
            await client.send(whole[:at])
            await asyncio.sleep(0.01)  # so that it is a packet of its own
            await client.send(whole[at:] + whole)
            assert (await client.answer()).body == body
            assert (await client.answer()).body == body
            await client.send(whole)
            assert (await client.answer()).body == body
            count += 3
        await proxy.record(count - 1)


async def test_half_a_head_behind_a_body(upstream: Upstream) -> None:
    """The beginning of a head that came behind a body, and looks like its end, stays the beginning of the
    next request, though a known one seems to follow.
    """
    upstream.will(mirror)
    body = chat(text="A")
    first, whole = request(body, headers=[KEY]), request(body, headers=[KEY])
    half = FIRST + b"X-Half: " + body
    async with serving(keyed(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(first)
        assert (await client.answer()).body == body
        await client.send(first + half)
        assert (await client.answer()).body == body
        await client.send(whole)  # whose first line is now the rest of that header
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, body)
        await proxy.record(3)
    last = upstream.requests[-1]
    assert last.value(b"x-half") == body + FIRST.strip()


async def test_other_keys(upstream: Upstream) -> None:
    """Who a request is from is found out for each key, and a wrong one is refused every time."""
    upstream.will(mirror)
    keys = 'team = "sk-team-0123456789"\nother = "sk-other-012345678"'
    wrong = (b"Authorization", b"Bearer sk-wrong-012345678")
    async with serving(keyed(upstream, keys)) as proxy, await Client.connect(proxy.port) as client:
        for _ in range(3):
            for pair, status in ((KEY, 200), (OTHER, 200), (wrong, 401)):
                await client.send(request(chat(), headers=[pair]))
                assert (await client.answer()).status == status
        await proxy.record(9)
        assert [line["key"] for line in proxy.records()] == ["team", "other", None] * 3


@pytest.mark.parametrize("forgotten", [True, False])
async def test_reload(upstream: Upstream, forgotten: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a known head leads to is found out anew after a reload: its key, its route, its upstream; also
    where the head itself is not forgotten, since each thing learnt of it says what makes it true.
    """
    if not forgotten:
        monkeypatch.setattr(Heads, "forget", lambda heads: None)
    upstream.will(mirror)
    async with serving(keyed(upstream)) as proxy, await Client.connect(proxy.port) as client:

        async def send() -> int:
            await client.send(request(chat(), headers=[KEY]))
            return (await client.answer()).status

        async def apply(text: str) -> None:
            assert proxy.running is not None
            proxy.write(text)
            await proxy.running.apply(load(proxy.file, {}, listen="127.0.0.1:0"))

        assert [await send(), await send()] == [200, 200]
        await apply(keyed(upstream, model="changed").replace("sk-upstream-secret", "sk-new-secret"))
        assert [await send(), await send()] == [200, 200]
        last = upstream.requests[-1]
        assert last.value(b"authorization") == b"Bearer sk-new-secret"
        assert orjson.loads(last.body)["model"] == "changed"
        await apply(keyed(upstream, 'team = "sk-another-012345678"'))
        assert [await send(), await send()] == [401, 401]
        await apply(keyed(upstream))
        assert [await send(), await send()] == [200, 200]
        digest = sha256(b"sk-team-0123456789").hexdigest()
        over = f'[keys.team]\nhash = "sha256:{digest}"\nexpires = 2020-01-01'
        await apply(keyed(upstream, over).replace("[keys]", ""))
        assert [await send(), await send()] == [401, 401]
        await proxy.record(10)


async def test_reload_lets_go(upstream: Upstream) -> None:
    """What was found out about a head that does not come again does not keep an old snapshot."""
    async with serving(keyed(upstream)) as proxy, await Client.connect(proxy.port) as client:
        assert proxy.running is not None
        old = weakref.ref(next(iter(proxy.running._listeners.values()))[1].frame)
        for _ in range(2):
            await client.send(request(chat(), headers=[KEY]))
            assert (await client.answer()).status == 200
        await proxy.running.apply(load(proxy.file, {}, listen="127.0.0.1:0"))
        await client.send(request(chat(), headers=[KEY, (b"X-Other", b"1")]))
        assert (await client.answer()).status == 200
        gc.collect()
        assert old() is None


async def test_noughts(upstream: Upstream) -> None:
    """A length with more noughts before it than Python would read is the length that it is."""
    upstream.will(mirror)
    body = chat()
    noughts = request(body, headers=[KEY]).replace(b"Length: ", b"Length: " + 5000 * b"0")
    async with serving(keyed(upstream)) as proxy, await Client.connect(proxy.port) as client:
        for _ in range(2):
            await client.send(noughts)
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, body)
        await proxy.record(2)


async def test_without_keys(upstream: Upstream) -> None:
    """On a surface without keys a foreign Host is refused each time, and an own one never is."""
    upstream.will(mirror)
    text = keyed(upstream, "").replace("[keys]", "")
    async with serving(text) as proxy, await Client.connect(proxy.port) as client:
        for _ in range(3):
            for host, status in ((b"localhost", 200), (b"evil.example", 403)):
                await client.send(request(chat(), host=host))
                assert (await client.answer()).status == status
