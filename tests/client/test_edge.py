"""The client's side of the wire: what is refused there, and what a client may do to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import pytest

from proxy.client import edge
from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    DONE,
    SSE,
    Conn,
    Received,
    Upstream,
    answer,
    chunk,
    event,
    hang,
    head,
    stream,
)
from tests.test_errors import BEARER, INVALID, assert_authored

SECRET = b"sk-team-0123456789"
KEY: Pair = (b"Authorization", b"Bearer " + SECRET)
CHUNKED: Pair = (b"Transfer-Encoding", b"chunked")
GOOD = request(chat(), headers=[KEY])
HEALTH = request(path="/health", method="GET")


def keyed(upstream: Upstream) -> str:
    """Return a routes file with a key and small limits."""
    return f"""
        [server]
        max_body = "1MiB"
        [upstreams.up]
        base_url = "{upstream.url}"
        credential = "sk-upstream-secret"
        [routes]
        "*" = {{ upstream = "up", model = "*" }}
        [keys]
        team = "{SECRET.decode()}"
        """


@pytest.fixture
async def guarded(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy that wants a key."""
    async with serving(keyed(upstream)) as running:
        yield running


def in_chunks(body: bytes, size: int) -> bytes:
    """Return *body* as chunks of *size* bytes each."""
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(map(chunk, pieces)) + b"0\r\n\r\n"


def text_of(size: int) -> bytes:
    """Return a chat of exactly *size* bytes."""
    return chat(text="x" * (size - len(chat(text=""))))


async def assert_refused(
    client: Client, status: int = 400, code: str = "bad_request", seconds: float = 5.0
) -> Answer:
    """Expect one refusal of the head's form, and then the end of the connection."""
    got = await client.answer(seconds=seconds)
    retry = {b"x-should-retry": b"false"} if status == 408 else {}
    assert_authored(got, status, INVALID, code, headers=retry, closes=True)
    assert await client.closed() == b""
    return got


async def until(upstream: Upstream, count: int = 1, seconds: float = 5.0) -> None:
    """Wait until *upstream* has received *count* requests."""
    async with asyncio.timeout(seconds):
        while len(upstream.requests) < count:
            await asyncio.sleep(0.005)


# Bodies: how large, how framed, how encoded


async def test_large_body(proxy: Proxy, upstream: Upstream) -> None:
    """A body of five megabytes passes: the server's library would stop at one."""
    body = text_of(5_000_000)
    assert (await call(proxy.port, body)).status == 200
    assert upstream.requests[0].body == body
    assert (await proxy.record())["bytes_in"] == 5_000_000


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_largest_body(guarded: Proxy, upstream: Upstream, framing: str) -> None:
    """A body of exactly `max_body` passes, whichever way it is framed."""
    body = text_of(2**20)
    if framing == "length":
        sent = request(body, headers=[KEY])
    else:
        sent = request(in_chunks(body, 70_000), headers=[KEY, CHUNKED], length=False)
    async with await Client.connect(guarded.port) as client:
        await client.send(sent)
        assert (await client.answer()).status == 200
    assert [seen.body for seen in upstream.requests] == [body]
    assert upstream.requests[0].value(b"content-length") == b"%d" % len(body)
    assert upstream.requests[0].value(b"transfer-encoding") is None


@pytest.mark.parametrize("length", [b"1048577", b"9" * 18])
async def test_too_large_body_is_refused_unread(
    guarded: Proxy, upstream: Upstream, length: bytes
) -> None:
    """A body that is announced as too large is refused before a byte of it was sent."""
    headers = [KEY, (b"Content-Length", length)]
    async with await Client.connect(guarded.port) as client:
        await client.send(request(headers=headers, length=False))
        got = await client.answer(seconds=2)
        assert_authored(got, 413, INVALID, "request_too_large", closes=True)
    assert upstream.requests == []


async def test_too_large_body_that_is_sent_all_the_same(guarded: Proxy, upstream: Upstream) -> None:
    """A client that sends first and reads then still gets to read why its body was refused."""
    async with await Client.connect(guarded.port) as client:
        await client.send(request(b"x" * 8_000_000, headers=[KEY]))
        await assert_refused(client, 413, "request_too_large")
    assert upstream.requests == []


async def test_too_large_body_in_chunks(guarded: Proxy, upstream: Upstream) -> None:
    """A body that turns out to be too large is refused at the first byte too many."""
    body = in_chunks(text_of(2**20 + 1), 65536).removesuffix(b"0\r\n\r\n")  # and it never ends
    async with await Client.connect(guarded.port) as client:
        await client.send(request(body, headers=[KEY, CHUNKED], length=False))
        got = await client.answer(seconds=2)
        assert_authored(got, 413, INVALID, "request_too_large", closes=True)
    assert upstream.requests == []
    assert guarded.running is not None
    assert guarded.running.gate.held == 0


async def test_tiny_chunks(guarded: Proxy, upstream: Upstream) -> None:
    """A body in a hundred thousand chunks of a byte passes, and quickly."""
    body = text_of(100_000)
    async with await Client.connect(guarded.port) as client:
        await client.send(request(in_chunks(body, 1), headers=[KEY, CHUNKED], length=False))
        assert (await client.answer(seconds=5)).status == 200
    assert upstream.requests[0].body == body


async def test_chunk_extensions_and_trailers(guarded: Proxy, upstream: Upstream) -> None:
    """What a chunked body has beside its data ends at the proxy; a trailer becomes no header, not
    even the next request's, as it would in the parser: the connection takes no other request.
    """
    body = b"%x;a=b;c\r\n%b\r\n0\r\nX-Trailer: v\r\n\r\n" % (
        len(chat()),
        chat(),
    )
    async with await Client.connect(guarded.port) as client:
        await client.send(request(body, headers=[KEY, CHUNKED], length=False) + GOOD)
        got = await client.answer()
        assert (got.status, got.value(b"connection")) == (200, b"close")
        assert await client.closed() == b""
    assert len(upstream.requests) == 1
    assert upstream.requests[0].body == chat()
    assert upstream.requests[0].value(b"x-trailer") is None


ENCODINGS = [
    [b"br"],
    [b"BR"],
    [b"compress"],
    [b"unheard-of"],
    [b"gzip, gzip"],
    [b"gzip", b"zstd"],
    [b"gzip, br"],
    [b"identity", b"br"],
    [b"x-zstd"],
    [b"gzip;q=1"],
]


@pytest.mark.parametrize("codings", ENCODINGS, ids=lambda codings: b"+".join(codings).decode())
async def test_encoded_body(guarded: Proxy, upstream: Upstream, codings: list[bytes]) -> None:
    """A body in a coding that is not read here, or in several, is refused by its head."""
    headers = [KEY, *((b"Content-Encoding", coding) for coding in codings)]
    async with await Client.connect(guarded.port) as client:
        await client.send(request(b"\x1f\x8b" + b"x" * 500, headers=headers))
        told = {b"Accept-Encoding": b"gzip, deflate, zstd"}
        assert_authored(await client.answer(), 415, INVALID, "unsupported_encoding", headers=told)
        await client.send(GOOD)
        assert (await client.answer()).status == 200
    assert len(upstream.requests) == 1


# Refusing before the body has come


@pytest.mark.parametrize("size", [2_000, 400_000])
async def test_body_behind_a_refusal(guarded: Proxy, upstream: Upstream, size: int) -> None:
    """The body of a request that was refused by its head is passed over: the next request behind
    it gets its own answer.
    """
    refused = request(b"x" * size)
    async with await Client.connect(guarded.port) as client:
        for half in (refused[: size // 2], refused[size // 2 :] + GOOD):
            await client.send(half)
            await asyncio.sleep(0.05)
        kind = "authentication_error"
        assert_authored(await client.answer(), 401, kind, "invalid_api_key", headers=BEARER)
        assert (await client.answer()).status == 200
    assert len(upstream.requests) == 1


async def test_no_timeout_behind_a_refusal(guarded: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection whose last request was refused is idle, and not late with a head."""
    monkeypatch.setattr(edge, "HEAD_SECONDS", 0.2)
    refused = request(b"x" * 2_000)
    async with await Client.connect(guarded.port) as client:
        await client.send(refused[:1000])
        assert (await client.answer()).status == 401
        await client.send(refused[1000:])
        with pytest.raises(TimeoutError):
            await client.closed(0.6)
        await client.send(GOOD)
        assert (await client.answer()).status == 200


async def test_broken_body_behind_a_refusal(
    guarded: Proxy,
    upstream: Upstream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A refused request whose body then breaks is the end of the connection, and of nothing else."""
    monkeypatch.setattr(edge, "LINGER_SECONDS", 0.3)
    async with await Client.connect(guarded.port) as client:
        await client.send(request(b"2\r\n{}\r\n", headers=[CHUNKED], length=False))
        assert (await client.answer()).status == 401
        await client.send(b"zz\r\n" + GOOD)
        assert await client.closed() == b""
    assert upstream.requests == []
    assert caplog.records == []


# Expect


async def test_expect_continue(guarded: Proxy, upstream: Upstream) -> None:
    """A client that waits for a word gets it once its key is good; the word goes no further."""
    headers = [KEY, (b"Expect", b"100-Continue")]
    sent = request(chat(), headers=headers)
    async with await Client.connect(guarded.port) as client:
        for _ in range(2):
            await client.send(sent[: -len(chat())])
            word = await client.reader.readexactly(len(b"HTTP/1.1 100 Continue\r\n\r\n"))
            assert word == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(chat())
            got = await client.answer()
            assert got.status == 200
            assert got.raw.startswith(b"HTTP/1.1 200 ")
    assert upstream.requests[0].value(b"expect") is None


async def test_expect_with_the_body_at_once(guarded: Proxy) -> None:
    """A client that does not wait for the word does not get it: it might take it for an answer."""
    async with await Client.connect(guarded.port) as client:
        await client.send(request(chat(), headers=[KEY, (b"Expect", b"100-continue")]))
        assert (await client.answer()).raw.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("send", "length", "status"),
    [
        ({"headers": []}, 10, 401),
        ({"headers": [KEY, (b"Content-Encoding", b"br")]}, 10, 415),
        ({}, 2**20 + 1, 413),
        ({"path": "/nowhere"}, 10, 404),
        ({"method": "PUT"}, 10, 405),
        ({"path": "/v1/models", "method": "GET"}, 10, 200),
        ({"path": "/health", "method": "GET"}, 10, 200),
    ],
)
async def test_expect_answered(
    guarded: Proxy, send: dict[str, Any], length: int, status: int
) -> None:
    """Whoever waits for a word and gets an answer instead hears no `100`, and need not send the
    body; as nobody can know whether it will come all the same, nothing else can.
    """
    announced: list[Pair] = [(b"Expect", b"100-continue"), (b"Content-Length", b"%d" % length)]
    send = {**send, "headers": [*send.get("headers", [KEY]), *announced]}
    async with await Client.connect(guarded.port) as client:
        await client.send(request(length=False, **send))
        got = await client.answer(seconds=2)
        assert got.raw.startswith(b"HTTP/1.1 %d " % status)
        assert got.value(b"connection") == b"close"


@pytest.mark.parametrize(
    "expectation", [b"100-continue, 200-ok", b"101-switch", b"", b"100-continue-please"]
)
async def test_unknown_expectation(guarded: Proxy, upstream: Upstream, expectation: bytes) -> None:
    """An expectation that we do not know is not met, and that is said."""
    got = await call(guarded.port, chat(), headers=[KEY, (b"Expect", expectation)])
    assert_authored(got, 417, INVALID, "expectation_failed")
    assert upstream.requests == []


# HEAD, and HTTP/1.0


async def test_head_on_a_post_path(guarded: Proxy, upstream: Upstream) -> None:
    """HEAD is answered without a body, which would be taken for the next answer."""
    sent = request(method="HEAD", headers=[KEY]) + GOOD
    async with await Client.connect(guarded.port) as client:
        await client.send(sent)
        got = await client.answer(head_only=True)
        assert got.status == 405
        assert got.value(b"allow") == b"POST"
        assert int(got.value(b"content-length") or 0) > 0
        assert (await client.answer()).status == 200
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
async def test_head_is_get_without_the_body(guarded: Proxy, path: str) -> None:
    """HEAD says what GET would have said, and no more."""
    async with await Client.connect(guarded.port) as client:
        await client.send(request(path=path, method="HEAD", headers=[KEY]))
        got = await client.answer(head_only=True)
        await client.send(request(path=path, method="GET", headers=[KEY]))
        other = await client.answer()
        assert got.status == other.status == 200
        assert got.value(b"content-length") == b"%d" % len(other.body)


@pytest.mark.parametrize("connection", [[], [(b"Connection", b"keep-alive")]])
async def test_http10(guarded: Proxy, upstream: Upstream, connection: list[Pair]) -> None:
    """An HTTP/1.0 client gets a plain answer, and then the end of the connection."""
    async with await Client.connect(guarded.port) as client:
        await client.send(request(chat(), headers=[KEY, *connection], version="1.0", host=None))
        got = await client.answer()
        assert (got.status, got.body) == (200, b'{"ok":true}')
        assert got.value(b"connection") == b"close"
        assert await client.closed() == b""
    assert upstream.requests[0].line.endswith(b" HTTP/1.1")
    assert upstream.requests[0].value(b"host") == upstream.authority.encode()


@pytest.mark.parametrize("connection", [[], [(b"Connection", b"keep-alive")]])
async def test_http10_stream(guarded: Proxy, upstream: Upstream, connection: list[Pair]) -> None:
    """An HTTP/1.0 client gets a stream without chunks, ended by the end of the connection."""
    pieces = [event(b'{"x":1}'), event(b'{"x":2}'), DONE]
    upstream.will(stream(*pieces))
    async with await Client.connect(guarded.port) as client:
        headers = [KEY, *connection]
        await client.send(request(chat(stream=True), headers=headers, version="1.0"))
        got = await client.answer(seconds=5)
        assert got.value(b"transfer-encoding") is None
        assert got.value(b"content-length") is None
        assert got.value(b"connection") == b"close"
        assert got.body == b"".join(pieces)


async def test_connection_close(guarded: Proxy) -> None:
    """A client that asks for the connection to be closed is told that it will be, and it is."""
    async with await Client.connect(guarded.port) as client:
        await client.send(request(chat(), headers=[KEY, (b"Connection", b"close")]) + GOOD)
        got = await client.answer()
        assert got.value(b"connection") == b"close"
        assert await client.closed() == b""


# Heads that are not, or could be taken for two things


def lines(*texts: bytes) -> bytes:
    """Return a request for a chat whose head has these lines instead of well-formed ones."""
    return b"\r\n".join([b"POST /v1/chat/completions HTTP/1.1", *texts])


HOST, LENGTH = b"Host: localhost", b"Content-Length: 2"
UPGRADE: list[Pair] = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]


def chunked(body: bytes, coding: bytes = b"chunked") -> bytes:
    """Return a request whose body is *body* as it is, in *coding*."""
    return request(body, headers=[KEY, (b"Transfer-Encoding", coding)], length=False)


MALFORMED = {
    # what is asked for
    "absolute, foreign authority": request(
        chat(), "http://evil.example/v1/chat/completions", [KEY]
    ),
    "absolute, foreign port": request(chat(), "http://localhost:1/v1/chat/completions", [KEY]),
    "absolute, user": request(chat(), "http://x@localhost/v1/chat/completions", [KEY]),
    "absolute, ftp": request(chat(), "ftp://localhost/v1/chat/completions", [KEY]),
    "authority form": request(method="GET", path="localhost:80"),
    "CONNECT": request(method="CONNECT", path="localhost:80"),
    "CONNECT, origin form": request(chat(), headers=[KEY], method="CONNECT"),
    "OPTIONS *": request(method="OPTIONS", path="*"),
    "GET *": request(method="GET", path="*"),
    "no slash": request(chat(), "v1/chat/completions", [KEY]),
    "dot segment": request(chat(), "/v1/./chat/completions", [KEY]),
    "dot segments": request(chat(), "/v1/../v1/chat/completions", [KEY]),
    "dot segment at the end": request(chat(), "/v1/responses/..", [KEY]),
    "dot segments, encoded": request(chat(), "/v1/%2e%2E/v1/chat/completions", [KEY]),
    "dot segments, half encoded": request(chat(), "/v1/responses/.%2e/x", [KEY]),
    "dot segments, encoded slash": request(chat(), "/v1/responses/..%2fadmin", [KEY]),
    "dot segments, encoded slash before": request(chat(), "/v1/responses/x%2f..%2fadmin", [KEY]),
    "two slashes and a dot segment": request(chat(), "//v1//../v1/chat/completions", [KEY]),
    "backslash": request(chat(), "/v1/responses/..\\admin", [KEY]),
    "backslash, encoded": request(chat(), "/v1/responses/x%5cadmin", [KEY]),
    "NUL": request(chat(), "/v1/responses/\0", [KEY]),
    "NUL, encoded": request(chat(), "/v1/responses/%00", [KEY]),
    "fragment": request(chat(), "/v1/chat/completions#x", [KEY]),
    "space": request(chat(), "/v1/responses/a b", [KEY]),
    "obs-text": request(chat(), "/v1/responses/\xff", [KEY]),
    # to whom
    "no Host": request(chat(), headers=[KEY], host=None),
    "empty Host": request(chat(), headers=[KEY], host=b""),
    "two Hosts": request(chat(), headers=[KEY, (b"Host", b"localhost")]),
    "Host x/?": request(chat(), headers=[KEY], host=b"x/?"),
    "Host x/#": request(chat(), headers=[KEY], host=b"x/#"),
    "Host with a user": request(chat(), headers=[KEY], host=b"a@localhost"),
    "two Hosts in one": request(chat(), headers=[KEY], host=b"localhost, evil.example"),
    "Host with a path": request(chat(), headers=[KEY], host=b"localhost/v1"),
    "Host obs-text": request(chat(), headers=[KEY], host=b"l\xffcalhost"),
    # in another protocol
    "upgrade with a body": request(GOOD, headers=[KEY, *UPGRADE]),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "HTTP/2 in the clear": request(chat(), headers=[KEY], version="2.0"),
    "HTTP/1.2": request(chat(), headers=[KEY], version="1.2"),
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 64 + b"\r\n\r\n",
    "garbage": b"\0\0\0\0\r\n\r\n",
    "HTTP/1.0, chunked": request(
        chunk(chat()) + b"0\r\n\r\n", headers=[KEY, CHUNKED], version="1.0", length=False
    ),
    # how long
    "length and chunks": request(b"0\r\n\r\n", headers=[KEY, CHUNKED]),
    "chunks and length": lines(HOST, b"Transfer-Encoding: chunked", LENGTH, b"", b"0\r\n\r\n"),
    "two lengths": request(chat(), headers=[KEY, (b"Content-Length", b"%d" % len(chat()))]),
    "two other lengths": request(chat(), headers=[KEY, (b"Content-Length", b"1")]),
    "length with a sign": lines(HOST, b"Content-Length: +2", b"", b"{}"),
    "negative length": lines(HOST, b"Content-Length: -2", b"", b"{}"),
    "hexadecimal length": lines(HOST, b"Content-Length: 0x2", b"", b"{}"),
    "list of lengths": lines(HOST, b"Content-Length: 2, 2", b"", b"{}"),
    "no length": lines(HOST, b"Content-Length:", b"", b"{}"),
    "length of 20 digits": lines(HOST, b"Content-Length: " + b"9" * 20, b"", b"{}"),
    "not chunked at the end": chunked(b"0\r\n\r\n", b"chunked, identity"),
    "chunked in chunks": chunked(b"0\r\n\r\n", b"chunked, chunked"),
    "coding unheard of": chunked(b"0\r\n\r\n", b"xchunked"),
    "coding twice": request(b"0\r\n\r\n", headers=[KEY, CHUNKED, CHUNKED], length=False),
    "coding and length in one": chunked(chat(), b"identity"),
    "compressed in chunks": chunked(chunk(chat()) + b"0\r\n\r\n", b"gzip, chunked"),
    # in which lines
    "bare LF": b"POST /v1/chat/completions HTTP/1.1\nHost: localhost\nContent-Length: 2\n\n{}",
    "one bare LF": lines(HOST, b"X: y\nZ: z", LENGTH, b"", b"{}"),
    "bare CR": lines(HOST, b"X: y\rZ: z", LENGTH, b"", b"{}"),
    "folded": lines(HOST, b"X: y", b" z", LENGTH, b"", b"{}"),
    "folded at the start": lines(b" X: y", HOST, LENGTH, b"", b"{}"),
    "space before the colon": lines(HOST, b"Content-Length : 2", b"", b"{}"),
    "no colon": lines(HOST, b"nothing", LENGTH, b"", b"{}"),
    "no name": lines(HOST, b": nothing", LENGTH, b"", b"{}"),
    "name that is none": lines(HOST, b"X(y): z", LENGTH, b"", b"{}"),
    "NUL in a value": lines(HOST, b"X: a\0b", LENGTH, b"", b"{}"),
    "control in a value": lines(HOST, b"X: a\1b", LENGTH, b"", b"{}"),
    # in which chunks
    "chunk size that is none": chunked(b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunk size with a sign": chunked(b"+2\r\n{}\r\n0\r\n\r\n"),
    "negative chunk size": chunked(b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunk size with 0x": chunked(b"0x2\r\n{}\r\n0\r\n\r\n"),
    "chunk size and a space": chunked(b"2 \r\n{}\r\n0\r\n\r\n"),
    "chunk size of 17 digits": chunked(b"f" * 17 + b"\r\n{}\r\n0\r\n\r\n"),
    "chunk with bare LF": chunked(b"2\n{}\n0\n\n"),
    "extension with bare LF": chunked(b"2;\nxx\r\n{}\r\n0\r\n\r\n"),
    "extension with bare CR": chunked(b"2;\rxx\r\n{}\r\n0\r\n\r\n"),
    "chunk longer than it says": chunked(b"2\r\n{}xx\r\n0\r\n\r\n"),
    "chunk without its end": chunked(b"2\r\n{}0\r\n\r\n"),
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=list(MALFORMED))
async def test_malformed(guarded: Proxy, upstream: Upstream, sent: bytes) -> None:
    """What is not HTTP, or could be read in two ways, gets one answer and nothing goes upstream:
    neither it nor what stands behind it.
    """
    for behind in (b"", GOOD):
        async with await Client.connect(guarded.port) as client:
            await client.send(sent + behind)
            got = await assert_refused(client)
            assert b"sk-" not in got.raw
    assert upstream.requests == []


async def test_malformed_leaves_a_line(upstream: Upstream) -> None:
    """Nothing that a stranger sends is quoted in the log, is left out of it, or reaches stderr."""
    async with process(keyed(upstream)) as proxy:
        for sent in MALFORMED.values():
            async with await Client.connect(proxy.port) as client:
                await client.send(sent)
                await client.answer()
        await proxy.record(len(MALFORMED))
        assert {(r["status"], r["error"]) for r in proxy.records()} == {(400, "bad_request")}
        assert b"sk-" not in proxy.log.read_bytes()
    assert upstream.requests == []


async def test_malformed_byte_by_byte(guarded: Proxy, upstream: Upstream) -> None:
    """However a malformed request is cut into packets, it is refused all the same."""
    for name in ("length and chunks", "one bare LF", "folded", "two Hosts", "dot segments"):
        async with await Client.connect(guarded.port) as client:
            for at in range(0, len(MALFORMED[name]), 7):
                if client.writer.transport.is_closing():
                    break
                await client.send(MALFORMED[name][at : at + 7])
                await asyncio.sleep(0)
            await assert_refused(client)
    assert upstream.requests == []


@pytest.mark.parametrize(
    "target", ["http://localhost/v1/chat/completions", "HTTP://localhost/v1/chat/completions"]
)
async def test_absolute_form(guarded: Proxy, upstream: Upstream, target: str) -> None:
    """An absolute target with our own authority means its path; the scheme's case does not matter."""
    assert (await call(guarded.port, chat(), target, [KEY])).status == 200
    assert upstream.requests[0].target == "/v1/chat/completions"


@pytest.mark.parametrize("host", [b"LocalHost", b"127.0.0.1:80", b"[::1]:8080", b"any.example"])
async def test_host_does_not_matter_to_keys(
    guarded: Proxy, upstream: Upstream, host: bytes
) -> None:
    """Where a key is asked for any well-formed Host will do, and it goes no further."""
    assert (await call(guarded.port, chat(), headers=[KEY], host=host)).status == 200
    assert upstream.requests[0].value(b"host") == upstream.authority.encode()


# Long heads

CANARY = b"sk-canary-7f3a91c2"
LONG: dict[str, tuple[bytes, int, str]] = {
    "target": (request(chat(), f"/v1/chat/completions?key={CANARY.decode()}{'a' * 17_000}", [KEY]), 414, "uri_too_long"),
    "value": (request(chat(), headers=[KEY, (b"X-Long", CANARY * 2_000)]), 431, "headers_too_large"),
    "key": (request(chat(), headers=[(b"Authorization", b"Bearer " + CANARY * 2_000)]), 431, "headers_too_large"),
    "name": (request(chat(), headers=[KEY, (CANARY * 2_000, b"x")]), 431, "headers_too_large"),
    "129 headers": (request(chat(), headers=[KEY, *((b"x-%d" % n, CANARY) for n in range(126))]), 431, "headers_too_large"),
    "200 KB": (request(chat(), headers=[KEY, *((b"x-%d" % n, CANARY * 1_000) for n in range(12))]), 431, "headers_too_large"),
    "2 MB": (request(chat(), headers=[KEY, *((b"x-%d" % n, CANARY * 1_000) for n in range(120))]), 431, "headers_too_large"),
    "endless": (request(chat(), headers=[KEY, (b"X-Long", CANARY * 100_000)])[:1_000_000], 431, "headers_too_large"),
}  # fmt: skip


@pytest.mark.parametrize("packet", [1 << 30, 5_000], ids=["at once", "in packets"])
@pytest.mark.parametrize("name", LONG)
async def test_long_head(guarded: Proxy, upstream: Upstream, name: str, packet: int) -> None:
    """A head over its limits is refused, and no byte of it is in the answer or in the log."""
    sent, status, code = LONG[name]
    async with await Client.connect(guarded.port) as client:
        for at in range(0, len(sent), packet):
            if client.writer.transport.is_closing():
                break
            await client.send(sent[at : at + packet])
            await asyncio.sleep(0)
        got = await assert_refused(client, status, code)
        assert b"canary" not in got.raw
    assert upstream.requests == []


async def test_long_heads_leave_a_line(upstream: Upstream) -> None:
    """A head over its limits is logged, without a byte of it."""
    async with process(keyed(upstream)) as proxy:
        for sent, _, _ in LONG.values():
            async with await Client.connect(proxy.port) as client:
                await client.send(sent)
                await client.answer()
        await proxy.record(len(LONG))
        logged = [(record["status"], record["error"]) for record in proxy.records()]
        assert logged == [(status, code) for _, status, code in LONG.values()]
        assert b"canary" not in proxy.log.read_bytes()


async def test_head_within_the_limits(guarded: Proxy, upstream: Upstream) -> None:
    """A head close to its limits passes, and so do 128 headers."""
    extra: list[Pair] = [(b"x-%d" % n, b"y" * 600) for n in range(124)]
    headers = [KEY, (b"x-long", b"z" * 20_000), *extra]  # with Host and Content-Length: 128
    sent = request(chat(), "/v1/chat/completions?" + "a" * 15_000, headers)
    assert len(sent) < edge.HEAD_BYTES
    async with await Client.connect(guarded.port) as client:
        await client.send(sent)
        assert (await client.answer()).status == 200
    assert upstream.requests[0].value(b"x-long") == b"z" * 20_000


# Bodies that break while they are read


async def test_body_that_breaks(upstream: Upstream) -> None:
    """A body that breaks while it comes in is refused at once, and not when it would be overdue."""
    async with process(keyed(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(chunked(chunk(chat()[:10])))
            await asyncio.sleep(0.1)
            await client.send(b"zz\r\n" + GOOD)
            await assert_refused(client, seconds=3)
        record = await proxy.record()
        assert record["error"] == "bad_request"
        assert record["path"] == "/v1/chat/completions"
        assert upstream.requests == []


# Pipelining


async def test_pipelined(guarded: Proxy, upstream: Upstream) -> None:
    """Requests that were sent without waiting are answered one after the other, in their order."""

    async def echo(conn: Conn, seen: Received) -> None:
        await asyncio.sleep(0.01 if len(upstream.requests) % 3 else 0.0)
        await conn.send(head(headers=[(b"Content-Length", b"%d" % len(seen.body))]) + seen.body)

    upstream.will(echo)
    bodies = [chat(text=str(number)) for number in range(20)]
    async with await Client.connect(guarded.port) as client:
        await client.send(b"".join(request(body, headers=[KEY]) for body in bodies))
        assert [(await client.answer()).body for _ in bodies] == bodies
    assert len(upstream.connections) == 1
    await guarded.record(20)


async def test_pipelined_kinds(guarded: Proxy, upstream: Upstream) -> None:
    """Streams, refusals, HEAD and lists in one row keep their places."""
    upstream.will(stream(event(b'{"x":1}'), DONE), answer(body=b"plain"))
    parts = [
        request(chat(stream=True), headers=[KEY]),
        request(path="/nowhere", method="HEAD"),
        request(chat()),
        HEALTH,
        GOOD,
    ]
    async with await Client.connect(guarded.port) as client:
        await client.send(b"".join(parts))
        assert (await client.answer()).body == event(b'{"x":1}') + DONE
        assert (await client.answer(head_only=True)).status == 404
        assert (await client.answer()).status == 401
        assert (await client.answer()).body == b'{"status":"ok"}'
        assert (await client.answer()).body == b"plain"


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize(
    "behind",
    [
        GOOD * 60,
        request(b"x" * 4_000_000, headers=[KEY]),
        GOOD[:-1],
        request(b"x" * 4_000_000)[:-1],
    ],
    ids=["60 requests", "4 MB", "half a request", "half of 4 MB"],
)
async def test_client_leaves_with_more_behind(
    guarded: Proxy, upstream: Upstream, behind: bytes, at_once: bool
) -> None:
    """However much a client has sent behind a running exchange, its leaving is noticed at once."""
    upstream.will(hang())
    async with await Client.connect(guarded.port) as client:
        await client.send(GOOD + (behind if at_once else b""))
        await until(upstream)
        if not at_once:
            await client.send(behind)
    async with asyncio.timeout(1.5):
        await upstream.connections[0].gone.wait()
    record = await guarded.record()
    assert (record["outcome"], record["error"], record["status"]) == (
        "client_gone",
        "client_gone",
        499,
    )
    assert len(upstream.requests) == 1


async def test_memory_behind_an_exchange(guarded: Proxy, upstream: Upstream) -> None:
    """Of what is sent behind a running exchange only a little is kept."""
    upstream.will(hang())
    async with await Client.connect(guarded.port) as client:
        await client.send(GOOD)
        await until(upstream)
        await client.send(request(b"x" * 30_000_000, headers=[KEY]))
        assert guarded.running is not None
        (handler,) = next(iter(guarded.running._servers())).connections
        assert isinstance(handler, edge.Handler)
        assert len(handler._behind) <= edge.PIPELINED_BYTES
        assert handler._deaf


async def test_stream_is_whole_with_much_behind(guarded: Proxy, upstream: Upstream) -> None:
    """A client that sends too much behind a stream still gets all of it, and then the end."""
    pieces = [event(b'{"x":"%b"}' % (b"y" * 60_000)) for _ in range(20)] + [DONE]

    async def step(conn: Conn, seen: Received) -> None:
        await conn.send(head(headers=[SSE, CHUNKED]) + chunk(pieces[0]))
        await asyncio.sleep(0.1)
        for piece in pieces[1:]:
            await conn.send(chunk(piece))
        await conn.send(b"0\r\n\r\n")

    upstream.will(step)
    async with await Client.connect(guarded.port) as client:
        await client.send(request(chat(stream=True), headers=[KEY]))
        await until(upstream)
        sending = asyncio.create_task(client.send(request(b"x" * 3_000_000, headers=[KEY])))
        got = await client.answer()
        assert got.whole
        assert got.body == b"".join(pieces)
        assert await client.closed() == b""
        await asyncio.gather(sending, return_exceptions=True)
    record = await guarded.record()
    assert record["outcome"] == "ok"


async def test_nothing_is_read_out_of_the_middle(guarded: Proxy, upstream: Upstream) -> None:
    """What comes behind bytes that were thrown away is not a request, whatever it looks like."""
    gate = asyncio.Event()

    async def step(conn: Conn, seen: Received) -> None:
        await conn.send(head(headers=[SSE, CHUNKED]) + chunk(event(b'{"x":1}')))
        await gate.wait()
        await conn.send(chunk(DONE) + b"0\r\n\r\n")

    upstream.will(step, answer())
    async with await Client.connect(guarded.port) as client:
        await client.send(request(chat(stream=True), headers=[KEY]))
        await client.reader.readuntil(b"}\n\n\r\n")
        body = request(chat("smuggled"), headers=[KEY])
        await client.send(request(b"x" * 200_000 + body, headers=[KEY])[: -len(body)])
        assert guarded.running is not None
        (handler,) = next(iter(guarded.running._servers())).connections
        assert isinstance(handler, edge.Handler)
        async with asyncio.timeout(5):
            while not handler._deaf:
                await asyncio.sleep(0.01)
        gate.set()
        await client.reader.readuntil(b"\r\n0\r\n\r\n")
        await client.send(body)  # which is the rest of the body before it
        assert await client.closed() == b""
        async with asyncio.timeout(10):
            while handler.transport is not None:
                await asyncio.sleep(0.01)
    await guarded.record()
    assert len(upstream.requests) == 1


# Leaving


async def test_half_close(guarded: Proxy, upstream: Upstream) -> None:
    """A client that closes its own half of the connection counts as gone."""
    upstream.will(hang())
    async with await Client.connect(guarded.port) as client:
        await client.send(GOOD)
        await until(upstream)
        client.writer.write_eof()
        assert await client.closed(2) == b""
    async with asyncio.timeout(1.5):
        await upstream.connections[0].gone.wait()
    assert (await guarded.record())["outcome"] == "client_gone"


async def test_client_leaves_in_its_body(guarded: Proxy, upstream: Upstream) -> None:
    """A client that leaves before its body is complete has asked for nothing, and one line says so."""
    async with await Client.connect(guarded.port) as client:
        await client.send(GOOD[:-1])
        assert guarded.running is not None
        async with asyncio.timeout(5):
            while not guarded.running.gate.inflight:
                await asyncio.sleep(0.005)
    record = await guarded.record()
    assert (record["outcome"], record["attempts"]) == ("client_gone", [])
    assert (guarded.running.gate.inflight, guarded.running.gate.held) == (0, 0)
    assert upstream.requests == []


async def test_client_leaves_in_its_head(guarded: Proxy) -> None:
    """Half a head is no request: whoever leaves then leaves no line."""
    async with await Client.connect(guarded.port) as client:
        await client.send(GOOD[:40])
    await call(guarded.port, path="/nowhere", method="GET")
    assert (await guarded.record())["path"] == "/nowhere"


# Time


@pytest.mark.parametrize(
    "sent",
    [b"P", b"\r\nP", b"POST /v1/chat/completions HTTP/1.1\r\n", GOOD[:60], HEALTH + GOOD[:60]],
    ids=["a byte", "behind a line end", "a line", "a header", "the second head"],
)
async def test_slow_head(
    guarded: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A head that does not become complete is not waited for, however many bytes trickle in."""
    monkeypatch.setattr(edge, "HEAD_SECONDS", 0.3)
    async with await Client.connect(guarded.port) as client:
        await client.send(sent)
        if sent.startswith(HEALTH):
            assert (await client.answer()).status == 200

        async def trickle() -> None:
            while True:
                await asyncio.sleep(0.1)
                client.writer.write(b"x" if sent.startswith(b"POST") else b"")

        trickling = asyncio.create_task(trickle())
        try:
            await assert_refused(client, 408, "request_timeout", seconds=2)
        finally:
            trickling.cancel()
    assert upstream.requests == []


async def test_slow_head_behind_an_exchange(
    guarded: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a head that came while another request was running is not waited for either."""
    monkeypatch.setattr(edge, "HEAD_SECONDS", 0.2)
    go = asyncio.Event()

    async def step(conn: Conn, seen: Received) -> None:
        await go.wait()
        await answer()(conn, seen)

    upstream.will(step)
    async with await Client.connect(guarded.port) as client:
        await client.send(GOOD)
        await until(upstream)
        await client.send(GOOD[:60])
        await asyncio.sleep(0.3)
        go.set()
        assert (await client.answer()).status == 200
        await assert_refused(client, 408, "request_timeout", seconds=2)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_slow_head_behind_a_body(
    guarded: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, framing: str
) -> None:
    """Nor is half a head that came in one packet with the end of the body before it."""
    monkeypatch.setattr(edge, "HEAD_SECONDS", 0.2)
    sent = GOOD if framing == "length" else chunked(in_chunks(chat(), 20))
    async with await Client.connect(guarded.port) as client:
        await client.send(sent[:-5])
        await asyncio.sleep(0.05)
        await client.send(sent[-5:] + GOOD[:60])
        assert (await client.answer()).status == 200
        if framing == "length":
            await assert_refused(client, 408, "request_timeout", seconds=2)
        else:
            assert await client.closed() == b""
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "sent",
    [
        GOOD * 2,
        HEALTH * 3,
        GOOD + HEALTH,
        HEALTH + GOOD + b"\r\n",
        GOOD + b"\r\n" * 3,
    ],
    ids=["bodies", "none", "mixed", "line end", "line ends"],
)
async def test_no_timeout_behind_whole_requests(
    guarded: Proxy, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A connection whose requests were all whole, in whatever packets they came, is only idle."""
    monkeypatch.setattr(edge, "HEAD_SECONDS", 0.1)
    count = sent.count(b" HTTP/1.1\r\n")
    async with await Client.connect(guarded.port) as client:
        for at in (sent,), (sent[:-5], sent[-5:]):
            for packet in at:
                await client.send(packet)
                await asyncio.sleep(0.02)
            for _ in range(count):
                assert (await client.answer()).status == 200
            with pytest.raises(TimeoutError):
                await client.closed(0.3)


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_slow_body(
    guarded: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, framing: str
) -> None:
    """A body of which nothing comes for a while is not waited for."""
    monkeypatch.setattr(edge, "BODY_IDLE_SECONDS", 0.2)
    monkeypatch.setattr(edge, "LINGER_SECONDS", 0.2)
    sent = GOOD[:-1] if framing == "length" else chunked(chunk(chat()))
    async with await Client.connect(guarded.port) as client:
        await client.send(sent)
        await assert_refused(client, 408, "request_timeout", seconds=2)
    record = await guarded.record()
    assert (record["status"], record["error"]) == (408, "request_timeout")
    assert upstream.requests == []


async def test_steady_body(
    guarded: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body may be as slow as it likes, as long as it goes on."""
    monkeypatch.setattr(edge, "BODY_IDLE_SECONDS", 0.3)
    monkeypatch.setattr(edge, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(edge, "STRANGER_SECONDS", 0.3)
    async with await Client.connect(guarded.port) as client:
        body = chat()
        await client.send(GOOD[: -len(body)])
        for at in range(0, len(body), 10):
            await asyncio.sleep(0.1)
            await client.send(body[at : at + 10])
        assert (await client.answer()).status == 200
    assert upstream.requests[0].body == body


async def test_long_answer_outlives_every_timeout_of_ours(
    guarded: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the wait for an answer nor a stream is cut by what limits heads and idle connections."""
    for name in ("BODY_IDLE_SECONDS", "HEAD_SECONDS", "STRANGER_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(edge, name, 0.1)

    async def step(conn: Conn, seen: Received) -> None:
        await asyncio.sleep(0.4)
        await stream(event(b"{}"), DONE, pause=0.3)(conn, seen)

    upstream.will(step)
    async with await Client.connect(guarded.port) as client:
        await client.send(request(chat(stream=True), headers=[KEY]))
        got = await client.answer()
        assert got.whole
        assert got.body == event(b"{}") + DONE


STRANGE = request(chat(), headers=[(b"Authorization", b"Bearer sk-of-nobody-0123")])


@pytest.mark.parametrize("keys", [True, False], ids=["keys", "no keys"])
@pytest.mark.parametrize("idle", ["3s", "400ms"])
async def test_kept_connection(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, keys: bool, idle: str
) -> None:
    """A connection is kept for `keepalive_idle` behind each answer; for less, where its client has never
    shown that it may ask.
    """
    monkeypatch.setattr(edge, "STRANGER_SECONDS", 0.8)
    text = f"""
        [server]
        keepalive_idle = "{idle}"
        {"[keys]" if keys else ""}
        {'team = "sk-team-0123456789"' if keys else ""}
        [routes]
        "*" = {{ base_url = "{upstream.url}" }}
        """
    async with serving(text) as proxy, AsyncExitStack() as stack:
        kept: dict[str, float] = {}

        async def keep(name: str, *requests: bytes) -> None:
            client = await stack.enter_async_context(await Client.connect(proxy.port))
            for sent in requests:
                await client.send(sent)
                await client.answer()
            began = monotonic()
            assert await client.closed(10) == b""
            kept[name] = monotonic() - began

        await asyncio.gather(
            keep("never asked"),
            keep("stranger", STRANGE, HEALTH),
            keep("known", request(chat(), headers=[KEY])),
            keep("known before", request(chat(), headers=[KEY]), STRANGE),
        )
        long, short = (3.0, 0.8) if idle == "3s" else (0.4, 0.4)
        stranger = short if keys else long
        wanted = {"never asked": short, "stranger": stranger, "known": long, "known before": long}
        for name, seconds in wanted.items():  # from when it was answered, a little before we know
            assert seconds - 0.3 < kept[name] < seconds + 1.7, name


@pytest.mark.parametrize(
    "sent", [b"", HEALTH, STRANGE], ids=["never used", "a probe", "without a key"]
)
async def test_idle_connection(
    guarded: Proxy, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    """A connection on which nobody asks what may be asked is closed after a while, without a word."""
    monkeypatch.setattr(edge, "STRANGER_SECONDS", 0.2)
    async with await Client.connect(guarded.port) as client:
        if sent:
            await client.send(sent)
            assert (await client.answer()).status in (200, 401)
        assert await client.closed(2) == b""


async def test_limits_are_in_force(guarded: Proxy) -> None:
    """The parser holds every limit that was set: the library would drop all for one wrong name."""
    async with await Client.connect(guarded.port) as client:
        await client.send(HEALTH)
        await client.answer()
        assert guarded.running is not None
        (handler,) = next(iter(guarded.running._servers())).connections
        assert isinstance(handler, edge.Handler)
        assert handler.max_line_size == edge.LINE_BYTES
        assert handler.max_field_size == edge.FIELD_BYTES
        assert handler.max_headers == edge.HEAD_FIELDS
        assert handler.keepalive_timeout == edge.STRANGER_SECONDS
        assert next(iter(guarded.running._servers())).handler_cancellation
        assert not handler._logging_enabled


# Host and Origin, where no key is asked for


def opened(upstream: Upstream, extra: str = "") -> str:
    """Return a routes file without keys."""
    return f"""
        [server]
        {extra}
        [routes]
        "*" = {{ base_url = "{upstream.url}" }}
        """


def origin(text: bytes) -> list[Pair]:
    return [(b"Origin", text), (b"Content-Type", b"text/plain;charset=UTF-8")]


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        (b"evil.example", []),
        (b"evil.example:80", []),
        (b"localhost.evil.example", []),
        (b"127.0.0.1.evil.example", []),
        (b"192.0.2.1", []),
        (b"localhost", origin(b"http://evil.example")),
        (b"localhost", origin(b"https://evil.example:8080")),
        (b"localhost", origin(b"null")),
        (b"localhost", origin(b"")),
        (b"localhost", origin(b"chrome-extension://abcdefghijkl")),
        (b"localhost", origin(b"http://localhost.evil.example")),
        (b"localhost", origin(b"http://localhost, http://evil.example")),
        (b"evil.example", origin(b"http://evil.example")),
        (b"evil.example", origin(b"http://localhost")),
    ],
)
@pytest.mark.parametrize(
    ("path", "method"), [("/v1/chat/completions", "POST"), ("/v1/models", "GET")]
)
async def test_foreign_origin(
    upstream: Upstream, host: bytes, headers: list[Pair], path: str, method: str
) -> None:
    """A surface that asks for no key answers to nobody whom a web page could have sent."""
    async with serving(opened(upstream)) as proxy, await Client.connect(proxy.port) as client:
        # Not even the body is waited for.
        announced = [*headers, (b"Content-Length", b"10")]
        await client.send(
            request(path=path, method=method, headers=announced, host=host, length=False)
        )
        got = await client.answer(seconds=2)
        assert_authored(got, 403, "permission_error", "origin_not_allowed")
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        (b"localhost", []),
        (b"LOCALHOST:8080", []),
        (b"127.0.0.1", []),
        (b"127.8.9.1:1", []),
        (b"[::1]:18888", []),
        (b"gpu.corp.example", []),
        (b"GPU.corp.example:80", []),
        (b"localhost", origin(b"http://localhost")),
        (b"gpu.corp.example", origin(b"https://gpu.corp.example")),
    ],
)
async def test_own_origin(upstream: Upstream, host: bytes, headers: list[Pair]) -> None:
    """Loopback names and those in `hosts` are our own, whatever the port and the case."""
    toml = opened(upstream, 'hosts = ["gpu.corp.example"]')
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat(), headers=headers, host=host)).status == 200


async def test_listen_address_is_an_own_name(upstream: Upstream) -> None:
    """A request for the very address that it came in at is for us."""
    toml = opened(upstream, "open = true")
    async with serving(toml, listen="0.0.0.0:0") as proxy:
        assert (await call(proxy.port, chat(), host=b"127.0.0.1")).status == 200
        assert (await call(proxy.port, chat(), host=b"example.com")).status == 403


async def test_health_answers_any_host(upstream: Upstream) -> None:
    """A health check is answered whatever its Host and Origin."""
    async with serving(opened(upstream)) as proxy:
        headers = origin(b"http://evil.example")
        got = await call(
            proxy.port, path="/health", method="GET", host=b"x.example", headers=headers
        )
        assert (got.status, got.body) == (200, b'{"status":"ok"}')


async def test_origin_does_not_matter_to_keys(guarded: Proxy) -> None:
    """Where a key is asked for a browser is welcome: the key is what it must know."""
    got = await call(
        guarded.port, chat(), headers=[KEY, *origin(b"http://app.example")], host=b"x.example"
    )
    assert got.status == 200


@pytest.mark.parametrize("cut", [0, 30])
@pytest.mark.parametrize("behind", [GOOD, b""], ids=["more behind", "alone"])
async def test_trailers_behind_a_body(
    guarded: Proxy, upstream: Upstream, cut: int, behind: bytes
) -> None:
    """A chunked request that came in one packet with the end of the body before it is still the
    last on its connection: no request after it can be given its trailers.
    """
    body = b"%x\r\n%b\r\n0\r\nX-Evil: smuggled\r\n\r\n" % (len(chat()), chat())
    late = request(body, headers=[KEY, CHUNKED], length=False)
    async with await Client.connect(guarded.port) as client:
        if cut:
            await client.send(GOOD[:-cut])
            await asyncio.sleep(0.02)
        await client.send((GOOD[-cut:] if cut else GOOD) + late + behind)
        assert (await client.answer()).status == 200
        assert (await client.answer()).value(b"connection") == b"close"
        assert await client.closed() == b""
    assert len(upstream.requests) == 2
    assert all(seen.value(b"x-evil") is None for seen in upstream.requests)
