"""How streams end, and what is put into them: comments between events, one error event, nothing else."""

import asyncio
import itertools
import re
import time
from collections.abc import Sequence

import orjson
import pytest

from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    event,
    head,
    stream,
)

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
COMMENT = b": keepalive\n"
GZIP: Pair = (b"Content-Encoding", b"gzip")
SILENCE = 0.35
"""Long enough for some comments, where one is put in after 100 ms."""


def named(kind: str, **data: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind} | data))


STREAMS: dict[str, tuple[str, list[bytes], bytes]] = {
    "chat": (
        CHAT,
        [
            event(b'{"id":"c","choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}'),
            event('{"id":"c","choices":[{"delta":{"content":"Grüße"}}]}'.encode()),
            event(b'{"id":"c","choices":[{"delta":{"content":" \\"error\\": {"}}]}'),
        ],
        event(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}') + DONE,
    ),
    "messages": (
        MESSAGES,
        [
            named("message_start", message={"id": "m", "usage": {"input_tokens": 3}}),
            named("content_block_delta", delta={"type": "text_delta", "text": "Hi"}),
            b": a comment\n" + named("ping"),
        ],
        named("message_stop"),
    ),
    "responses": (
        RESPONSES,
        [
            named("response.created", response={"id": "r", "error": None}),
            named("response.output_text.delta", delta="Hi"),
            named("response.output_text.done", text="Hi"),
        ],
        named("response.completed", response={"id": "r"}),
    ),
}


def to(upstream: Upstream, *route: str, up: str = "") -> str:
    """Write a routes file that leads every model to *upstream*; *route* are lines of the route."""
    lines = "\n".join(route)
    return f"""
[upstreams.up]
base_url = "{upstream.url}"
credential = "sk-upstream-secret"
{up}
[routes."*"]
upstream = "up"
model = "*"
{lines}
"""


KEEPALIVE = 'keepalive = "100ms"'


def parts(*steps: bytes | float | asyncio.Event, then: str = "keep") -> Step:
    """Send bytes, wait for a time or an event, in turn. *then*: keep, close, reset or hang."""

    async def step(conn: Conn, request: Received) -> None:
        for one in steps:
            if isinstance(one, bytes):
                await conn.send(one)
            elif isinstance(one, asyncio.Event):
                await one.wait()
            else:
                await asyncio.sleep(one)
        if then == "hang":
            await conn.left(30)
        elif then == "reset":
            conn.reset()
        conn.keep = then == "keep"

    return step


async def next_chunk(client: Client) -> bytes:
    async with asyncio.timeout(10):
        size = int(await client.reader.readuntil(b"\r\n"), 16)
        return (await client.reader.readexactly(size + 2))[:-2]


async def begun(client: Client, path: str = CHAT, headers: Sequence[Pair] = ()) -> bytes:
    """Ask for a stream; return the head of the answer."""
    await client.send(request(chat(stream=True), path, headers))
    async with asyncio.timeout(10):
        return await client.reader.readuntil(b"\r\n\r\n")


async def ask(proxy: Proxy, path: str = CHAT) -> Answer:
    return await call(proxy.port, chat(stream=True), path)


def is_comments(piece: bytes) -> bool:
    return re.fullmatch(b"(?:" + re.escape(COMMENT) + b")+", piece) is not None


# Comments into silence


@pytest.mark.parametrize("dialect", STREAMS)
async def test_between_events(upstream: Upstream, dialect: str) -> None:
    """A silent stream gets comments, each a chunk of its own, between its events and never in one."""
    path, (first, second, third), end = STREAMS[dialect]
    upstream.will(
        parts(
            head(200, [SSE, CHUNKED]),
            SILENCE,
            chunk(first),
            SILENCE,
            chunk(second[:9]),
            SILENCE,
            chunk(second[9:-1]),
            SILENCE,
            chunk(second[-1:] + third[:-1]),
            SILENCE,
            chunk(third[-1:]),
            SILENCE,
            chunk(end) + b"0\r\n\r\n",
        )
    )
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        got = await ask(proxy, path)
        record = await proxy.record()
    assert got.whole
    pieces = [second[:9], second[9:-1], second[-1:] + third[:-1], third[-1:], end]
    marks = [chunk_ for chunk_ in got.chunks if not is_comments(chunk_)]
    assert marks == [first, *pieces]
    runs = [[*run] for is_ours, run in itertools.groupby(got.chunks, is_comments) if is_ours]
    assert [got.chunks.index(mark) - len(runs[0]) for mark in marks[:1]] == [0]  # before the first
    assert len(runs) == 3  # and behind the first, and behind the third
    assert all(2 <= len(run) <= 4 and set(run) == {COMMENT} for run in runs), runs
    assert got.chunks[got.chunks.index(third[-1:]) + 1] == COMMENT
    assert record["outcome"] == "ok"
    assert record["bytes_out"] == len(got.body)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
async def test_between_events_of_any_line_end(upstream: Upstream, end: bytes) -> None:
    """However its lines end, a stream gets comments where an event has ended, which stay apart from it."""
    first = STREAMS["chat"][1][0].replace(b"\n", end)
    half = first[: -len(end)]  # without the empty line
    last = DONE.replace(b"\n", end)
    seen = asyncio.Event()
    upstream.will(
        parts(head(200, [SSE, CHUNKED]) + chunk(half), SILENCE, chunk(end), seen, chunk(last))
    )
    async with (
        serving(to(upstream, KEEPALIVE)) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await begun(client)
        assert await next_chunk(client) == half
        assert await next_chunk(client) == end
        assert await next_chunk(client) == COMMENT
        seen.set()
        while (piece := await next_chunk(client)) == COMMENT:
            pass
        assert piece == last


async def test_never_between_cr_and_lf(upstream: Upstream) -> None:
    """Behind a CR that may be half of a line end nothing is put in, though it has ended an event."""
    first = STREAMS["chat"][1][0].replace(b"\n", b"\r\n")
    upstream.will(
        parts(
            head(200, [SSE, CHUNKED]) + chunk(first[:-1]),
            SILENCE,
            chunk(first[-1:]),
            SILENCE,
            chunk(DONE) + b"0\r\n\r\n",
        )
    )
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        got = await ask(proxy)
    assert got.chunks[:3] == [first[:-1], first[-1:], COMMENT]
    assert got.body.replace(COMMENT, b"") == first + DONE


NATIVE = "/v1beta/models/m:streamGenerateContent?alt=sse"


@pytest.mark.parametrize(
    ("path", "comment"),
    [
        (CHAT, COMMENT),
        (MESSAGES, COMMENT),
        (RESPONSES, COMMENT),
        ("/v1/rerank", COMMENT),
        (NATIVE, COMMENT + b"\n"),
    ],
)
async def test_line_ends_of_comments(upstream: Upstream, path: str, comment: bytes) -> None:
    """A comment has one line end, as an empty line behind it is an event to some decoders; on Google's own
    paths it has two, as its decoder takes whatever stands before an empty line for one thing.
    """
    piece = b'data: {"candidates":[]}\r\n\r\n'
    upstream.will(parts(head(200, [SSE, CHUNKED]) + chunk(piece), SILENCE, b"0\r\n\r\n"))
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        got = await ask(proxy, path)
    ours = {one for one in got.chunks[1:] if b"keepalive" in one}
    assert ours == {comment}


async def test_none_unless_said(proxy: Proxy, upstream: Upstream) -> None:
    """Nothing is put into a stream, unless the file says so."""
    upstream.will(parts(head(200, [SSE, CHUNKED]), SILENCE, chunk(DONE) + b"0\r\n\r\n"))
    assert (await ask(proxy)).body == DONE


async def test_a_default_for_all(upstream: Upstream) -> None:
    """What the defaults say holds where a route says nothing."""
    upstream.will(parts(head(200, [SSE, CHUNKED]), SILENCE, chunk(DONE) + b"0\r\n\r\n"))
    for more, count in (("", 2), ('keepalive = "30s"', 0)):
        toml = f"[defaults]\n{KEEPALIVE}\n" + to(upstream, more)
        async with serving(toml) as proxy:
            got = await ask(proxy)
            assert got.body.endswith(DONE)
            assert got.body.count(COMMENT) >= count
            assert (COMMENT in got.body) is bool(count)


async def test_a_lively_stream_gets_none(upstream: Upstream) -> None:
    """Where something comes often enough nothing is put in."""
    upstream.will(stream(*[event(b"%d" % n) for n in range(20)], DONE, pause=0.02))
    async with serving(to(upstream, 'keepalive = "1s"')) as proxy:
        assert COMMENT not in (await ask(proxy)).body


@pytest.mark.parametrize("dialect", STREAMS)
async def test_none_after_the_marker(upstream: Upstream, dialect: str) -> None:
    """Behind the marker of its end nothing is put into a stream."""
    path, events, end = STREAMS[dialect]
    upstream.will(parts(head(200, [SSE, CHUNKED]), chunk(events[0] + end), SILENCE, b"0\r\n\r\n"))
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        got = await ask(proxy, path)
        assert (got.body, got.whole) == (events[0] + end, True)


PLAIN: dict[str, tuple[int, list[Pair]]] = {
    "json": (200, [JSON]),
    "no type": (200, []),
    "encoded": (200, [SSE, GZIP]),
    "an error": (404, [SSE]),
    "lines of json": (200, [(b"Content-Type", b"application/x-ndjson")]),
}


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("form", PLAIN)
async def test_only_into_streams(upstream: Upstream, form: str, framing: str) -> None:
    """What is no stream of events, or cannot be read, stays as it is, its length too."""
    code, headers = PLAIN[form]
    body = b"\x1f\x8b\n\nhalf"
    if framing == "length":
        length = (b"Content-Length", b"%d" % len(body))
        step = parts(head(code, [*headers, length]) + body[:4], SILENCE, body[4:])
    else:
        step = parts(
            head(code, [*headers, CHUNKED]) + chunk(body[:4]),
            SILENCE,
            chunk(body[4:]) + b"0\r\n\r\n",
        )
    upstream.will(step)
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        got = await ask(proxy)
        assert (got.status, got.body, got.whole) == (code, body, True)
        said = got.value(b"content-length")
        assert said == (b"%d" % len(body) if framing == "length" else None)


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
async def test_a_length_gives_way(upstream: Upstream, path: str) -> None:
    """A stream with a length loses it, because something may have to be put in; else it keeps it where
    nothing may.
    """
    body = event(b"1") + DONE
    length = (b"Content-Length", b"%d" % len(body))
    upstream.will(parts(head(200, [SSE, length]), SILENCE, body))
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        got = await ask(proxy, path)
        assert got.whole
        assert got.value(b"content-length") is None
        assert got.body.replace(COMMENT, b"") == body
        assert got.body.startswith(COMMENT)
    async with serving(to(upstream)) as proxy:
        got = await ask(proxy, path)
        assert got.body == body
        assert (got.value(b"content-length") is None) is (path == CHAT)


async def test_http_1_0(upstream: Upstream) -> None:
    """A client of HTTP/1.0 gets its comments without chunks, and sees the end in the close."""
    events = STREAMS["chat"][1]
    upstream.will(
        parts(head(200, [SSE, CHUNKED]) + chunk(events[0]), SILENCE, chunk(DONE) + b"0\r\n\r\n")
    )
    async with (
        serving(to(upstream, KEEPALIVE)) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(chat(stream=True), version="1.0"))
        raw = await client.closed(5)
    begun_, _, body = raw.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in begun_.lower()
    assert body.replace(COMMENT, b"") == events[0] + DONE
    assert body.count(COMMENT) >= 2
    assert body.startswith(events[0] + COMMENT)
    assert body.endswith(COMMENT + DONE)


async def test_comments_are_no_life(upstream: Upstream) -> None:
    """Our comments do not keep an upstream from being found silent."""
    events = STREAMS["chat"][1]
    upstream.will(parts(head(200, [SSE, CHUNKED]) + chunk(events[0]), then="hang"))
    async with serving(to(upstream, KEEPALIVE, 'timeout = { idle = "450ms" }')) as proxy:
        before = time.monotonic()
        got = await ask(proxy)
        assert 0.4 <= time.monotonic() - before < 1.5
        assert got.body.startswith(events[0] + COMMENT)
        assert 2 <= got.body.count(COMMENT) <= 4
        assert b'"code":"upstream_idle_timeout"' in got.chunks[-1]
        assert not got.whole
        assert (await proxy.record())["outcome"] == "timeout"


async def test_a_cut_behind_comments(upstream: Upstream) -> None:
    """A stream that breaks after comments of ours is told as any other, and needs no empty line."""
    events, broken = STREAMS["chat"][1], asyncio.Event()
    upstream.will(parts(head(200, [SSE, CHUNKED]) + chunk(events[0]), broken, then="close"))
    async with (
        serving(to(upstream, KEEPALIVE)) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await begun(client)
        assert await next_chunk(client) == events[0]
        assert await next_chunk(client) == COMMENT
        broken.set()
        while (piece := await next_chunk(client)) == COMMENT:
            pass
        assert piece.startswith(b'data: {"error":')
        assert await client.closed() == b""


async def test_the_client_may_leave_during_comments(upstream: Upstream) -> None:
    """A client that leaves while we put comments in is seen to leave, and no timer goes on."""
    upstream.will(parts(head(200, [SSE, CHUNKED]) + chunk(event(b"1")), then="hang"))
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await begun(client)
            assert await next_chunk(client) == event(b"1")
            assert await next_chunk(client) == COMMENT
        async with asyncio.timeout(1):
            await upstream.connections[0].gone.wait()
        assert (await proxy.record())["outcome"] == "client_gone"
        await asyncio.sleep(0.25)


async def test_many_silent_streams(upstream: Upstream) -> None:
    """A hundred silent streams get their comments, each its own."""
    go = asyncio.Event()
    upstream.will(parts(head(200, [SSE, CHUNKED]), go, chunk(DONE) + b"0\r\n\r\n"))
    quiet = asyncio.Barrier(100)

    async def listen() -> None:
        async with await Client.connect(proxy.port) as client:
            await begun(client)
            assert await next_chunk(client) == COMMENT
            await quiet.wait()
            go.set()
            while (piece := await next_chunk(client)) == COMMENT:
                pass
            assert piece == DONE
            assert await next_chunk(client) == b""

    async with serving(to(upstream, KEEPALIVE)) as proxy:
        await asyncio.gather(*(listen() for _ in range(100)))


# An error inside a 200


FAILURES: dict[str, tuple[str, bytes]] = {
    "chat": (CHAT, event(b'{"error":{"message":"overloaded","code":502}}')),
    "chat, beside choices": (
        CHAT,
        event(b'{"id":"x","error":{"code":"server_error"},"choices":[{"finish_reason":"error"}]}'),
    ),
    "chat, vllm": (CHAT, event(b'{"object":"error","message":"x","code":500}')),
    "chat, spaced": (CHAT, event(b'{ "error" : { "message" : "x" } }')),
    "chat, crlf": (CHAT, b'data: {"error":{"message":"x"}}\r\n\r\n'),
    "chat, a text": (CHAT, event(b'{"error":"Input validation error","error_type":"validation"}')),
    "chat, a list": (CHAT, event(b'[{"error":{"code":503,"message":"x"}}]')),
    "chat, a field": (CHAT, b'error: {"detail":"x","error":{"message":"x"}}\n\n'),
    "chat, named": (CHAT, b'event: error\ndata: {"error":{"message":"x"},"status_code":400}\n\n'),
    "messages": (MESSAGES, named("error", error={"type": "overloaded_error", "message": "x"})),
    "messages, no name": (MESSAGES, event(b'{"type":"error","error":{"type":"api_error"}}')),
    "responses, no name": (RESPONSES, event(b'{"type":"error","code":"x","message":"x"}')),
    "responses": (RESPONSES, named("error", code="server_error", message="x", param=None)),
    "responses, failed": (
        RESPONSES,
        named("response.failed", response={"error": {"code": "server_error"}}),
    ),
}


@pytest.mark.parametrize("end", ["clean", "cut", "reset"])
@pytest.mark.parametrize("form", FAILURES)
async def test_an_error_event(proxy: Proxy, upstream: Upstream, form: str, end: str) -> None:
    """An upstream that says, in a stream, that it has failed is taken at its word: nothing is added,
    the end is an end, and the log knows.
    """
    path, failure = FAILURES[form]
    first = STREAMS[form.split(",")[0]][1][0]
    upstream.will(stream(first, failure, end=end))
    got = await ask(proxy, path)
    assert (got.status, got.body) == (200, first + failure)
    assert got.whole
    record = await proxy.record()
    assert (record["outcome"], record["error"]) == ("upstream_error", "upstream_error_event")
    attempt = record["attempts"][0]
    assert (record["status"], attempt["error"]) == (200, "upstream_error_event")
    assert attempt["maybe_billed"] is True


async def test_an_error_event_in_crumbs(proxy: Proxy, upstream: Upstream) -> None:
    """However an error event is split, it is one."""
    path, failure = FAILURES["messages"]
    upstream.will(stream(*[failure[n : n + 1] for n in range(len(failure))], end="cut"))
    got = await ask(proxy, path)
    assert (got.body, got.whole) == (failure, True)
    assert (await proxy.record())["error"] == "upstream_error_event"


async def test_an_error_event_and_silence(upstream: Upstream) -> None:
    """Whatever happens behind an error event, there is no second one."""
    path, failure = FAILURES["chat"]
    upstream.will(stream(failure, end="hang"))
    async with serving(to(upstream, 'timeout = { idle = "200ms" }')) as proxy:
        got = await ask(proxy, path)
        assert (got.body, got.whole) == (failure, True)
        assert (await proxy.record())["error"] == "upstream_error_event"


@pytest.mark.parametrize("form", FAILURES)
async def test_nothing_but_an_error_event(proxy: Proxy, upstream: Upstream, form: str) -> None:
    """Where an error is all that was streamed nothing was billed, comments or not."""
    path, failure = FAILURES[form]
    upstream.will(stream(b": processing\n\n", failure, DONE))
    got = await ask(proxy, path)
    assert (got.body, got.whole) == (b": processing\n\n" + failure + DONE, True)
    attempt = (await proxy.record())["attempts"][0]
    assert (attempt["error"], attempt["maybe_billed"]) == ("upstream_error_event", False)


async def test_error_events_are_no_failures_of_ours() -> None:
    """An upstream that answers, though with error events, is not taken for broken."""
    async with Upstream() as a, Upstream() as b:
        a.will(stream(FAILURES["chat"][1]))
        toml = f'[upstreams.b]\nbase_url = "{b.url}"\n' + to(a, 'fallback = ["b/m"]')
        async with serving(toml) as proxy:
            for _ in range(12):
                assert (await ask(proxy)).body == FAILURES["chat"][1]
    assert (len(a.requests), b.requests) == (12, [])


NO_FAILURES: dict[str, tuple[str, bytes]] = {
    "in a text": (CHAT, event(b'{"choices":[{"delta":{"content":"{\\"error\\":{\\"a\\":1}}"}}]}')),
    "null": (CHAT, event(b'{"error":null,"choices":[]}')),
    "a tool's": (
        RESPONSES,
        named(
            "response.output_item.done",
            item={"type": "mcp_call", "error": {"type": "mcp_tool_execution_error"}},
        ),
    ),
    "a part's": (
        MESSAGES,
        named("content_block_start", content_block={"type": "x", "error": {"code": 1}}),
    ),
    "a comment": (CHAT, b': event: error {"error":{}}\n\n'),
    "the name of another field": (CHAT, b"id: event: error\ndata: {}\n\n"),
}


@pytest.mark.parametrize("form", NO_FAILURES)
async def test_no_error_event(proxy: Proxy, upstream: Upstream, form: str) -> None:
    """What only speaks of an error is none: the exchange went well, and a cut behind it is told."""
    path, piece = NO_FAILURES[form]
    upstream.will(stream(piece, end="cut"))
    got = await ask(proxy, path)
    assert got.body.startswith(piece)
    assert not got.whole
    assert len(got.body) > len(piece)
    record = await proxy.record()
    assert (record["outcome"], record["error"]) == ("upstream_cut", "upstream_disconnected")
    end = next(end for at, _, end in STREAMS.values() if at == path)
    upstream.will(stream(piece, end))
    assert (await ask(proxy, path)).body == piece + end
    assert (await proxy.record(2))["outcome"] == "ok"


# Cuts


def told(path: str, rest: bytes, request_id: str) -> str:
    """Return the code, or for Anthropic the type, that the one error event *rest* says."""
    if path == CHAT:
        match = re.fullmatch(rb"data: (\{[^\n]+\})\n\n", rest)
        assert match, rest
        error = orjson.loads(match[1])["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["code"])
    match = re.fullmatch(rb"event: error\ndata: (\{[^\n]+\})\n\n", rest)
    assert match, rest
    said = orjson.loads(match[1])
    assert said["type"] == "error"
    if path == MESSAGES:
        assert said["request_id"] == request_id
        return str(said["error"]["type"])
    return str(said["code"])


def identity(begun_: bytes) -> str:
    """Return the id of the exchange whose answer began so."""
    match = re.search(rb"x-trunkline-id: (\S+)\r\n", begun_)
    assert match
    return match[1].decode()


def _is_between(prefix: bytes) -> bool:
    return not prefix or re.search(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)$", prefix) is not None


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("dialect", STREAMS)
async def test_cut_at_every_byte(
    proxy: Proxy, upstream: Upstream, dialect: str, line_end: bytes, end: str
) -> None:
    """Wherever a stream is cut its beginning is exact; then, between two events, one error event of the
    caller's dialect, in the middle of one nothing, and a transfer that is visibly unfinished.
    """
    path, events, _ = STREAMS[dialect]
    whole = b"".join(events).replace(b"\n", line_end)
    lengths = range(0, len(whole) + 1, 1 if line_end == b"\n" and end == "close" else 5)
    gate = asyncio.Semaphore(8)

    seen = {length: asyncio.Event() for length in lengths}

    async def step(conn: Conn, request: Received) -> None:
        length = int(request.value(b"x-length") or 0)
        await conn.send(head(200, [SSE, CHUNKED]) + (chunk(whole[:length]) if length else b""))
        await seen[length].wait()  # only then: a reset may overtake what was sent before it
        if end == "reset":
            conn.reset()
        conn.keep = False

    async def cut(length: int) -> None:
        prefix = whole[:length]
        async with gate, await Client.connect(proxy.port) as client:
            got = await begun(client, path, [(b"x-length", b"%d" % length)])
            body = b""
            while len(body) < length:
                body += await next_chunk(client)
            assert body == prefix
            seen[length].set()
            rest = await client.closed(10)
        if not _is_between(prefix):
            assert rest == b"", prefix
            return
        size, _, last = rest.partition(b"\r\n")
        assert len(last) == int(size, 16) + 2  # one chunk, and none of no size
        last = last[:-2]
        code = told(path, last, identity(got))
        assert code == ("api_error" if path == MESSAGES else "upstream_disconnected")

    upstream.will(step)
    results = await asyncio.gather(*map(cut, lengths), return_exceptions=True)
    for result in results:
        if result is not None:
            raise result
    record = await proxy.record(len(lengths), 10)
    assert (record["outcome"], record["status"]) == ("upstream_cut", 200)
    assert record["attempts"][0]["maybe_billed"] is True


ENDINGS = {
    "cut": ("upstream_disconnected", "upstream_cut"),
    "clean": ("upstream_incomplete", "upstream_cut"),
    "hang": ("upstream_idle_timeout", "timeout"),
    "shutdown": ("proxy_shutdown", "shutdown"),
}


@pytest.mark.parametrize("open_", [False, True])
@pytest.mark.parametrize("end", ENDINGS)
@pytest.mark.parametrize("dialect", STREAMS)
async def test_endings(upstream: Upstream, dialect: str, end: str, open_: bool) -> None:
    """Each way in which a stream does not end has its own code, in the caller's dialect, once; in the
    middle of an event nothing is said, and only the log has it.
    """
    path, events, _ = STREAMS[dialect]
    prefix = b"".join(events)[: -9 if open_ else None]
    upstream.will(stream(prefix, end="hang" if end == "shutdown" else end))
    async with serving(to(upstream, 'timeout = { idle = "300ms" }')) as proxy:
        async with await Client.connect(proxy.port) as client:
            got = await begun(client, path)
            assert await next_chunk(client) == prefix
            if end == "shutdown":
                assert proxy.running is not None
                await proxy.running.drain(0.01)
            last = b"" if open_ else await next_chunk(client)
            assert await client.closed() == b""
        code, outcome = ENDINGS[end]
        if path == MESSAGES:
            code_told = "overloaded_error" if end == "shutdown" else "api_error"
        else:
            code_told = code
        assert open_ or told(path, last, identity(got)) == code_told
        record = await proxy.record()
        assert (record["outcome"], record["error"]) == (outcome, code)
        assert len(upstream.requests) == 1


async def test_after_a_cut_the_proxy_is_well(proxy: Proxy, upstream: Upstream) -> None:
    """An exchange that broke leaves nothing behind that the next one could stumble over."""
    upstream.will(stream(event(b"1"), end="cut"), answer())
    assert not (await ask(proxy)).whole
    assert (await call(proxy.port, chat())).body == b'{"ok":true}'
    assert proxy.running is not None
    assert len(proxy.running._transport._open) == 1
