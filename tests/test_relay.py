"""What passes through the relay, and how an answer ends."""

import asyncio
import gzip
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy import forward, headers, relay
from tests.conftest import routes_to
from tests.harness.client import Answer, Client, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Pair,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    event,
    head,
    raw,
    stream,
)

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
EVENTS = [event(b'{"choices":[{"delta":{"content":"%d"}}]}' % n) for n in range(3)]
FINISH = event(b'{"choices":[{"delta":{},"finish_reason":"stop"}]}')
USAGE = event(b'{"choices":[],"usage":{"total_tokens":3}}')
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
COMPLETED = b'event: response.completed\ndata: {"type":"response.completed"}\n\n'
GZIP: Pair = (b"Content-Encoding", b"gzip")


def in_parts(*parts: bytes | asyncio.Event, then: str = "keep") -> Step:
    """Send *parts* one by one; before the next one, wait for each event among them."""

    async def step(conn: Conn, request: Received) -> None:
        for part in parts:
            if isinstance(part, bytes):
                await conn.send(part)
            else:
                await part.wait()
        if then == "reset":
            conn.reset()
        elif then == "hang":
            await conn.left(30)
        conn.keep = then == "keep"

    return step


@asynccontextmanager
async def asking(
    proxy: Proxy, path: str = CHAT, headers: Sequence[Pair] = ()
) -> AsyncIterator[tuple[Client, bytes]]:
    """Send a request, and give the connection and the head of the answer, once it is there."""
    async with await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True), path, headers))
        async with asyncio.timeout(10):
            yield client, await client.reader.readuntil(b"\r\n\r\n")


async def next_chunk(client: Client) -> bytes:
    async with asyncio.timeout(10):
        size = int(await client.reader.readuntil(b"\r\n"), 16)
        return (await client.reader.readexactly(size + 2))[:-2]


async def left(upstream: Upstream) -> None:
    """Wait until the proxy has left the upstream's first connection: it has a second to do so."""
    async with asyncio.timeout(1):
        await upstream.connections[0].gone.wait()


def error_event(data: bytes) -> Any:
    """Return what a chat error event says, after making sure that it is exactly one event."""
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    return orjson.loads(data[6:])["error"]


# What passes


async def test_plain_answer(proxy: Proxy, upstream: Upstream) -> None:
    """A plain answer arrives byte for byte, and one line says so."""
    upstream.will(answer(201, b'{"a":1}', reason=b"Made It"))
    got = await call(proxy.port, chat())
    assert got.head.startswith(b"HTTP/1.1 201 Made It\r\n")
    assert got.body == b'{"a":1}'
    record = await proxy.record()
    assert record["outcome"] == "ok"
    assert record["bytes_out"] == 7
    assert upstream.requests[0].body == chat()
    assert upstream.requests[0].value(b"authorization") == b"Bearer sk-upstream-secret"


async def test_stream(proxy: Proxy, upstream: Upstream) -> None:
    """A stream arrives event by event, and ends where the upstream ended it."""
    upstream.will(stream(event(b'{"x":1}'), event(b'{"x":2}'), DONE, pause=0.02))
    got = await call(proxy.port, chat(stream=True))
    assert got.chunks == [event(b'{"x":1}'), event(b'{"x":2}'), DONE]
    assert got.whole
    assert upstream.requests[0].value(b"accept-encoding") == b"identity"


@pytest.mark.parametrize("kind", [SSE, JSON, (b"Content-Type", b"application/x-ndjson")])
async def test_at_once(proxy: Proxy, upstream: Upstream, kind: Pair) -> None:
    """The head arrives before the first event was sent, and each event before the next one was."""
    seen = [asyncio.Event() for _ in EVENTS]
    parts: list[bytes | asyncio.Event] = [head(200, [kind, CHUNKED])]
    for one, data in zip(seen, EVENTS, strict=True):
        parts += [one, chunk(data)]
    last = asyncio.Event()
    upstream.will(in_parts(*parts, last, chunk(DONE) + b"0\r\n\r\n"))
    async with asking(proxy) as (client, _):
        for one, data in zip(seen, EVENTS, strict=True):
            one.set()
            assert await next_chunk(client) == data
        last.set()
        assert await next_chunk(client) == DONE
        assert await next_chunk(client) == b""


async def test_nothing_waits_for_the_end_of_an_event(proxy: Proxy, upstream: Upstream) -> None:
    """Half an event, half a line, half a character: whatever arrives is passed on."""
    text = "data: é\n\n".encode()
    seen = [asyncio.Event() for _ in text]
    parts: list[bytes | asyncio.Event] = [head(200, [SSE, CHUNKED])]
    for index, one in enumerate(seen):
        parts += [chunk(text[index : index + 1]), one]
    upstream.will(in_parts(*parts, chunk(DONE) + b"0\r\n\r\n"))
    async with asking(proxy) as (client, _):
        for index, one in enumerate(seen):
            assert await next_chunk(client) == text[index : index + 1]
            one.set()
        assert await next_chunk(client) == DONE


async def test_length_at_once(proxy: Proxy, upstream: Upstream) -> None:
    """An answer with a length is passed on as it comes, too, and keeps its length."""
    seen = asyncio.Event()
    upstream.will(
        in_parts(head(200, [JSON, (b"Content-Length", b"10")]) + b"12345", seen, b"67890")
    )
    async with asking(proxy) as (client, first):
        assert b"\r\nContent-Length: 10\r\n" in first
        assert await client.reader.readexactly(5) == b"12345"
        seen.set()
        assert await client.reader.readexactly(5) == b"67890"


async def test_close_delimited(proxy: Proxy, upstream: Upstream) -> None:
    """An answer that its connection's end ends is complete, and the client's connection stays."""
    upstream.will(raw(head(200, [JSON]) + b'{"a":1}'), answer())
    async with await Client.connect(proxy.port) as client:
        for body in (b'{"a":1}', b'{"ok":true}'):
            await client.send(request(chat()))
            got = await client.answer()
            assert (got.body, got.whole) == (body, True)
    assert len(upstream.connections) == 2


async def test_http_1_0_upstream(proxy: Proxy, upstream: Upstream) -> None:
    """An upstream of old is relayed in the HTTP of today."""
    upstream.will(raw(head(200, [JSON], version=b"1.0") + b"{}"))
    got = await call(proxy.port, chat())
    assert got.head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert (got.body, got.whole) == (b"{}", True)


async def test_http_1_0_client(proxy: Proxy, upstream: Upstream) -> None:
    """A client of old gets no chunks: the end of the connection is the end of the answer."""
    upstream.will(stream(*EVENTS, DONE))
    async with await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True), version="1.0"))
        got = await client.answer()
        assert got.value(b"transfer-encoding") is None
        assert got.body == b"".join([*EVENTS, DONE])


@pytest.mark.parametrize("length", [[], [(b"Content-Length", b"0")], [(b"Content-Length", b"9")]])
@pytest.mark.parametrize("status", [204, 304])
async def test_no_body(proxy: Proxy, upstream: Upstream, status: int, length: list[Pair]) -> None:
    """An answer that has no body ends with its head, whatever length it speaks of."""
    upstream.will(raw(head(status, length), then="keep"), answer())
    async with await Client.connect(proxy.port) as client:
        await client.send(request(chat()))
        got = await client.answer()
        assert got.status == status
        assert got.values(b"content-length") == [value for _, value in length]
        assert got.value(b"transfer-encoding") is None
        await client.send(request(chat()))
        assert (await client.answer()).body == b'{"ok":true}'


@pytest.mark.parametrize("kind", [SSE, JSON])
async def test_a_nominated_length(proxy: Proxy, upstream: Upstream, kind: Pair) -> None:
    """An answer whose length `Connection` names away is still framed, and the next one is its own."""
    length: Pair = (b"Content-Length", b"%d" % len(DONE))
    nominated: Pair = (b"Connection", b"content-length")
    upstream.will(raw(head(200, [kind, nominated, length]) + DONE, then="keep"), answer())
    async with await Client.connect(proxy.port) as client:
        await client.send(request(chat()))
        got = await client.answer(seconds=5)
        assert (got.body, got.whole) == (DONE, True)
        await client.send(request(chat()))
        assert (await client.answer(seconds=5)).body == b'{"ok":true}'


BIG = b"0123456789abcdef" * (20 * 2**16)  # 20 MiB


@pytest.mark.parametrize("form", ["length", "chunks", "close"])
async def test_big_answer(proxy: Proxy, upstream: Upstream, form: str) -> None:
    """Twenty megabytes come down as they were."""
    if form == "length":
        upstream.will(answer(body=BIG))
    elif form == "chunks":
        upstream.will(stream(*[BIG[:100_000]] * 40, BIG[:1], headers=[JSON]))
    else:
        upstream.will(raw(head(200, [JSON]) + BIG))
    got = await call(proxy.port, chat())
    expected = BIG[:100_000] * 40 + BIG[:1] if form == "chunks" else BIG
    assert got.whole
    assert got.body == expected


async def test_big_request(proxy: Proxy, upstream: Upstream) -> None:
    """Twenty megabytes go up as they were."""
    body = chat(text=BIG.decode())
    assert (await call(proxy.port, body)).status == 200
    assert sha256(upstream.requests[0].body).digest() == sha256(body).digest()


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def test_a_slow_client_stops_the_upstream(upstream: Upstream) -> None:
    """What a client does not take stays with the upstream, not in the proxy's memory."""
    piece, total = BIG[: 2**20], 96
    sent = 0

    async def step(conn: Conn, request: Received) -> None:
        nonlocal sent
        await conn.send(head(200, [JSON, (b"Content-Length", b"%d" % (total * len(piece)))]))
        for _ in range(total):
            await conn.send(piece)
            sent += 1

    async with process(routes_to(upstream)) as proxy:
        assert proxy.process is not None
        await call(proxy.port, chat())
        upstream.will(step)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        with sock:
            await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
            before = _resident_bytes(proxy.process.pid)
            await loop.sock_sendall(sock, request(chat()))
            last = -1
            while sent != last:  # until nothing moves any more
                last = sent
                await asyncio.sleep(0.3)
            assert 0 < sent < total // 2
            assert _resident_bytes(proxy.process.pid) - before < 8 * 2**20
            digest, count = sha256(), 0
            data = await loop.sock_recv(sock, 2**20)
            data = data.partition(b"\r\n\r\n")[2]
            while True:
                digest.update(data)
                count += len(data)
                if count == total * len(piece):
                    break
                data = await loop.sock_recv(sock, 2**20)
                assert data
        expected = sha256()
        for _ in range(total):
            expected.update(piece)
        assert digest.digest() == expected.digest()
        assert (await proxy.record(2))["outcome"] == "ok"


async def test_crumbs_and_lumps(proxy: Proxy, upstream: Upstream) -> None:
    """A stream in single bytes and one in a single write of many megabytes are the same stream."""
    crumbs = event(b"x" * 3000) + DONE
    lump = event(BIG[: 10 * 2**20]) + DONE

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]))
        for at in range(len(crumbs)):
            conn.writer.write(chunk(crumbs[at : at + 1]))
            await asyncio.sleep(0)
        await conn.send(b"0\r\n\r\n")

    upstream.will(step, stream(lump))
    for expected in (crumbs, lump):
        got = await call(proxy.port, chat(stream=True))
        assert got.whole
        assert got.body == expected


async def test_streams_do_not_mix(proxy: Proxy, upstream: Upstream) -> None:
    """Of many streams at one time, each has its own events, all of them, in their order."""

    async def step(conn: Conn, request: Received) -> None:
        name = orjson.loads(request.body)["messages"][0]["content"]
        pieces = [event(b"%b %d" % (name.encode(), number)) for number in range(30)]
        await stream(*pieces, DONE, pause=0.001)(conn, request)

    upstream.will(step)

    async def one(number: int) -> None:
        name = f"stream-{number}"
        for _ in range(2):
            got = await call(proxy.port, chat(text=name, stream=True))
            assert got.whole
            assert got.body == b"".join(event(f"{name} {n}".encode()) for n in range(30)) + DONE

    await asyncio.gather(*(one(number) for number in range(40)))


async def test_comments_pass(proxy: Proxy, upstream: Upstream) -> None:
    """An upstream's own comments are passed on when they come, like everything else."""
    seen = asyncio.Event()
    comment = b": OPENROUTER PROCESSING\n\n"
    upstream.will(
        in_parts(head(200, [SSE, CHUNKED]) + chunk(comment), seen, chunk(DONE) + b"0\r\n\r\n")
    )
    async with asking(proxy) as (client, _):
        assert await next_chunk(client) == comment
        seen.set()
        assert await next_chunk(client) == DONE


async def test_trailers_are_dropped(proxy: Proxy, upstream: Upstream) -> None:
    """What comes behind the last chunk reaches nobody, and spoils nothing."""
    trailed = b"0\r\nX-Trailer: 1\r\nSet-Cookie: a=b\r\n\r\n"
    upstream.will(
        raw(
            head(200, [JSON, CHUNKED, (b"Trailer", b"X-Trailer")]) + chunk(b"{}") + trailed,
            then="keep",
        )
    )
    async with await Client.connect(proxy.port) as client:
        for _ in range(2):
            await client.send(request(chat()))
            got = await client.answer()
            assert (got.body, got.whole) == (b"{}", True)
            assert b"railer" not in got.raw
    assert len(upstream.connections) == 1


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("status", [100, 102, 103])
async def test_interim_answers(proxy: Proxy, upstream: Upstream, status: int, count: int) -> None:
    """Interim answers are passed over, however many come before the real one."""
    interim = head(status, [(b"Link", b"</a>"), (b"X-Interim", b"1")], b"Wait") * count
    real = head(200, [JSON, (b"Content-Length", b"2")]) + b"{}"
    upstream.will(raw(interim + real, then="keep"), in_parts(interim, real))
    async with await Client.connect(proxy.port) as client:
        for _ in range(2):
            await client.send(request(chat()))
            got = await client.answer()
            assert got.raw.startswith(b"HTTP/1.1 200 OK\r\n")
            assert got.body == b"{}"
            assert b"X-Interim" not in got.raw
    assert len(upstream.connections) == 1


# The head


async def _headers(proxy: Proxy, upstream: Upstream, *pairs: Pair, body: bytes = DONE) -> Answer:
    upstream.will(raw(head(200, [*pairs, (b"Content-Length", b"%d" % len(body))]) + body))
    return await call(proxy.port, chat())


async def test_nothing_of_our_own(proxy: Proxy, upstream: Upstream) -> None:
    """To a bare answer nothing is added but its id; no date, no server, no type."""
    got = await _headers(proxy, upstream, body=b"{}")
    names = [name for name, _ in got.headers]
    assert names == [b"Content-Length", b"x-trunkline-id", b"x-request-id"]
    assert got.value(b"x-trunkline-id") == got.value(b"x-request-id")
    record = await proxy.record()
    assert got.value(b"x-trunkline-id") == record["request_id"].encode()
    assert record["upstream_request_id"] is None


@pytest.mark.parametrize("name", [b"x-request-id", b"X-Request-ID"])
async def test_their_request_id(proxy: Proxy, upstream: Upstream, name: bytes) -> None:
    """A vendor's own request id stays, and is in the log."""
    got = await _headers(proxy, upstream, (name, b"req-theirs"))
    assert got.values(b"x-request-id") == [b"req-theirs"]
    assert got.value(b"x-trunkline-id") not in (None, b"req-theirs")
    assert (await proxy.record())["upstream_request_id"] == "req-theirs"


async def test_their_other_request_id(proxy: Proxy, upstream: Upstream) -> None:
    """A vendor's id under another name stays beside ours, and is in the log."""
    got = await _headers(proxy, upstream, (b"request-id", b"req-theirs\xff"))
    assert got.values(b"request-id") == [b"req-theirs\xff"]
    assert got.value(b"x-request-id") == got.value(b"x-trunkline-id")
    assert (await proxy.record())["upstream_request_id"] == "req-theirs\xff"


@pytest.mark.parametrize("name", [b"Set-Cookie", b"set-cookie", b"Alt-Svc", b"ALT-SVC"])
async def test_dropped(proxy: Proxy, upstream: Upstream, name: bytes) -> None:
    """No cookie of an upstream's, and no way around the proxy, reaches a client."""
    got = await _headers(proxy, upstream, (name, b"x"), (b"A", b"1"), (name, b"y"))
    assert got.values(name) == []
    assert got.values(b"a") == [b"1"]


async def test_no_cookie_is_kept(proxy: Proxy, upstream: Upstream) -> None:
    """An upstream's cookie is not sent back to it with anybody's next request."""
    upstream.will(answer(headers=[JSON, (b"Set-Cookie", b"tenant=a; Path=/")]))
    for _ in range(2):
        await call(proxy.port, chat())
    assert upstream.requests[1].value(b"cookie") is None


async def test_headers_of_streams(proxy: Proxy, upstream: Upstream) -> None:
    """On a stream, buffering and caching are spoken against, the latter only where nobody has."""
    got = await _headers(proxy, upstream, SSE)
    assert got.values(b"x-accel-buffering") == [b"no"]
    assert got.values(b"cache-control") == [b"no-cache"]
    assert got.values(b"content-length") == []
    got = await _headers(proxy, upstream, SSE, (b"cache-CONTROL", b"private"))
    assert got.values(b"cache-control") == [b"private"]
    got = await _headers(proxy, upstream, JSON)
    assert got.values(b"x-accel-buffering") == []
    assert got.values(b"cache-control") == []


@pytest.mark.parametrize(
    "kind", [b"text/event-stream", b"Text/Event-Stream; charset=utf-8", b"text/event-stream ;x"]
)
async def test_what_a_stream_is(proxy: Proxy, upstream: Upstream, kind: bytes) -> None:
    """An answer is a stream by its type, whatever was asked for."""
    got = await _headers(proxy, upstream, (b"content-TYPE", kind))
    assert got.values(b"x-accel-buffering") == [b"no"]
    assert (await proxy.record())["stream"] is True


async def test_encoded_answers_stay_encoded(proxy: Proxy, upstream: Upstream) -> None:
    """No body is inflated: the coding, the length and the bytes stay what they were."""
    body = gzip.compress(b'{"a":1}' * 1000)
    got = await _headers(proxy, upstream, JSON, GZIP, body=body)
    assert got.values(b"content-encoding") == [b"gzip"]
    assert got.value(b"content-length") == b"%d" % len(body)
    assert got.body == body


# Statuses

NOT_RELAYED = {401, *range(300, 304), *range(305, 400)}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, b'{"error":{"message":"no","code":null}}'),
        ((b"Content-Type", b"text/html"), b"<html>\r\n502 Bad Gateway</html>\r\n"),
        ((b"X-No-Type", b""), b""),
    ],
)
async def test_every_status(upstream: Upstream, kind: Pair, body: bytes) -> None:
    """Whatever an upstream answers is relayed as it came, error or not, JSON or not."""
    once = routes_to(upstream, "retry = { attempts = 1 }")
    async with serving(once) as proxy, await Client.connect(proxy.port) as client:
        for status in sorted(set(range(200, 600)) - NOT_RELAYED):
            sent = b"" if status in (204, 304) else body
            upstream.will(answer(status, sent, [kind, (b"Retry-After", b"1")], b"As It Is"))
            await client.send(request(chat()))
            got = await client.answer()
            assert got.head.startswith(b"HTTP/1.1 %d As It Is\r\n%b: %b\r\n" % (status, *kind))
            assert got.value(b"retry-after") == b"1"
            assert got.body == sent
            assert len(upstream.requests) == 1
            upstream.requests.clear()
    assert len(upstream.connections) == 1


SECRET = "sk-upstream-secret"


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_our_credential_is_refused(proxy: Proxy, upstream: Upstream, path: str) -> None:
    """A 401 is ours to mend: the client learns so, and not a byte of what the upstream said."""
    body = b'{"error":{"message":"Incorrect API key provided: %b"}}' % SECRET.encode()
    headers = [JSON, (b"WWW-Authenticate", b'Bearer realm="canary"'), (b"X-Canary", b"canary")]
    upstream.will(answer(401, body, headers, b"canary"))
    got = await call(proxy.port, chat(), path)
    assert got.status == 502
    assert got.json()["error"]["type"] == ("api_error" if path == MESSAGES else "upstream_error")
    assert got.value(b"x-should-retry") == b"false"
    assert SECRET.encode() not in got.raw
    assert b"canary" not in got.raw
    assert b"Incorrect" not in got.raw
    record = await proxy.record()
    assert (record["status"], record["error"]) == (502, "upstream_auth")
    assert record["attempts"][0]["status"] == 401
    assert SECRET not in proxy.log.read_text()


async def test_the_callers_credential_is_refused(upstream: Upstream) -> None:
    """Where the caller's own credential goes up, a 401 is the caller's, and comes down as it is."""
    toml = routes_to(upstream, "passthrough = true") + '[server]\nauth = "passthrough"\n'
    async with serving(toml) as proxy:
        upstream.will(answer(401, b"no", [(b"WWW-Authenticate", b"Bearer")], b"Nope"))
        own: Pair = (b"Authorization", b"Bearer own")
        got = await call(proxy.port, chat(), headers=[own])
        assert got.head.startswith(b"HTTP/1.1 401 Nope\r\nWWW-Authenticate: Bearer\r\n")
        assert got.body == b"no"
        assert upstream.requests[0].value(b"authorization") == b"Bearer own"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308, 399])
async def test_redirects(proxy: Proxy, upstream: Upstream, status: int) -> None:
    """A redirect is never followed, and never passed on."""
    async with Upstream() as elsewhere:
        location = (b"Location", elsewhere.url.encode())
        upstream.will(answer(status, b"canary", [JSON, location]))
        got = await call(proxy.port, chat())
        assert (got.status, got.code) == (502, "upstream_protocol")
        assert got.value(b"location") is None
        assert b"canary" not in got.raw
        assert elsewhere.connections == []
    assert len(upstream.requests) == 1


async def test_refused_answers_leave_nothing_behind(proxy: Proxy, upstream: Upstream) -> None:
    """Answers that are not relayed give their connections back, too."""
    assert proxy.running is not None
    transport = proxy.running._transport
    upstream.will(answer(401, b"x" * 100_000))
    for _ in range(20):
        assert (await call(proxy.port, chat())).code == "upstream_auth"
    assert repr(transport) in ("<Transport: 0 busy, 0 idle>", "<Transport: 0 busy, 1 idle>")


LENGTH: Pair = (b"Content-Length", b"2")
MALFORMED = {
    "garbage": b"\x00\x01\x02garbage\r\n\r\n",
    "text": b"hello world\n\n",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2 frames": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "HTTP/0.9": b"<html></html>",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "a request": b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
    "another version": b"HTTP/3.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "no status": b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\n{}",
    "a short status": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\n{}",
    "a long status": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\n{}",
    "length and chunks": head(200, [LENGTH, CHUNKED]) + b"0\r\n\r\n",
    "chunks and length": head(200, [CHUNKED, LENGTH]) + b"0\r\n\r\n",
    "two lengths": head(200, [LENGTH, (b"Content-Length", b"3")]) + b"{} ",
    "one length twice": head(200, [LENGTH, LENGTH]) + b"{}",
    "a list of lengths": head(200, [(b"Content-Length", b"2, 2")]) + b"{}",
    "a signed length": head(200, [(b"Content-Length", b"+2")]) + b"{}",
    "a negative length": head(200, [(b"Content-Length", b"-2")]) + b"{}",
    "a hexadecimal length": head(200, [(b"Content-Length", b"0x2")]) + b"{}",
    "an endless length": head(200, [(b"Content-Length", b"9" * 40)]) + b"{}",
    "an unknown coding": head(200, [(b"Transfer-Encoding", b"gzip")]) + b"{}",
    "two codings": head(200, [(b"Transfer-Encoding", b"gzip, chunked")]) + b"0\r\n\r\n",
    "chunked twice": head(200, [CHUNKED, CHUNKED]) + b"0\r\n\r\n",
    "chunked, hidden": head(200, [(b"Transfer-Encoding", b"xchunked")]) + b"0\r\n\r\n",
    "a folded header": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "a NUL": b"HTTP/1.1 200 OK\r\nA: b\x00c\r\nContent-Length: 2\r\n\r\n{}",
    "a bare CR": b"HTTP/1.1 200 OK\r\nA: b\rc: d\r\nContent-Length: 2\r\n\r\n{}",
    "a space before the colon": b"HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 2\r\n\r\n{}",
    "no colon": b"HTTP/1.1 200 OK\r\nA b\r\nContent-Length: 2\r\n\r\n{}",
    "no name": b"HTTP/1.1 200 OK\r\n: b\r\nContent-Length: 2\r\n\r\n{}",
    "a bad chunk size": head(200, [CHUNKED]) + b"zz\r\n{}\r\n0\r\n\r\n",
    "a signed chunk size": head(200, [CHUNKED]) + b"-2\r\n{}\r\n0\r\n\r\n",
    "an endless chunk size": head(200, [CHUNKED]) + b"f" * 40 + b"\r\n",
    "a long head": head(200, [(b"A", b"b" * 10**6), LENGTH]) + b"{}",
    "many headers": head(200, [(b"A", b"b" * 60)] * 20_000),
    "an upgrade": head(101, [(b"Upgrade", b"websocket"), (b"Connection", b"upgrade")]),
    "an upgrade nobody asked for": head(101, []),
    "interim answers only": head(103, [], b"Early Hints") * 3,
    "interim answers without end": head(103, [(b"A", b"b" * 1000)]) * 400,
}


@pytest.mark.parametrize("form", MALFORMED)
async def test_malformed(proxy: Proxy, upstream: Upstream, form: str) -> None:
    """What is not an answer in HTTP is the upstream's fault, told in a word, and asked for once."""
    upstream.will(raw(MALFORMED[form]))
    got = await call(proxy.port, chat())
    assert (got.status, got.code) == (502, "upstream_protocol")
    assert got.value(b"x-should-retry") == b"false"
    assert got.whole
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("form", ["garbage", "two lengths", "an upgrade"])
async def test_malformed_is_logged(proxy: Proxy, upstream: Upstream, form: str) -> None:
    """A request that was answered with nonsense may have been billed all the same."""
    upstream.will(raw(MALFORMED[form]))
    await call(proxy.port, chat())
    record = await proxy.record()
    assert (record["outcome"], record["status"]) == ("upstream_error", 502)
    assert record["attempts"][0]["phase"] == "sent"
    assert record["attempts"][0]["maybe_billed"] is True


# Answers that break


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_plain_answer_cut(proxy: Proxy, upstream: Upstream, framing: str, end: str) -> None:
    """A plain answer that breaks off is broken off, and nothing is put in its place."""
    start = head(200, [JSON, (b"Content-Length", b"10")]) + b"12345"
    if framing == "chunks":
        start = head(200, [JSON, CHUNKED]) + chunk(b"12345")
    upstream.will(raw(start, then=end))
    got = await call(proxy.port, chat())
    assert (got.status, got.body, got.whole) == (200, b"12345", False)
    record = await proxy.record()
    assert (record["outcome"], record["error"]) == ("upstream_cut", "upstream_disconnected")
    assert record["attempts"][0]["phase"] == "streaming"
    assert record["attempts"][0]["maybe_billed"] is True


async def test_chunks_gone_wrong(proxy: Proxy, upstream: Upstream) -> None:
    """A chunk that is none, behind good ones, ends the answer as a cut does."""
    seen = asyncio.Event()
    upstream.will(
        in_parts(head(200, [SSE, CHUNKED]) + chunk(EVENTS[0]), seen, b"zz\r\n", then="hang")
    )
    async with asking(proxy) as (client, _):
        assert await next_chunk(client) == EVENTS[0]
        seen.set()
        assert error_event(await next_chunk(client))["code"] == "upstream_disconnected"
        assert await client.closed() == b""
    await left(upstream)


async def _cut(
    proxy: Proxy, upstream: Upstream, prefix: bytes, end: str, path: str = CHAT
) -> tuple[bytes, bool]:
    """Let the upstream end its stream after *prefix*; return what the client got, and if it is whole."""
    seen = asyncio.Event()
    first = head(200, [SSE, CHUNKED]) + (chunk(prefix) if prefix else b"")
    upstream.will(in_parts(first, seen, then=end))
    async with asking(proxy, path, [(b"Connection", b"close")]) as (client, _):
        got = await client.reader.readuntil(prefix) if prefix else b""
        seen.set()  # only now: a reset may overtake what was sent before it
        got += await client.closed()
    body = b""
    while got:
        size, _, got = got.partition(b"\r\n")
        if size == b"0":
            assert got == b"\r\n"
            return body, True
        data, got = got[: int(size, 16)], got[int(size, 16) + 2 :]
        body += data
    return body, False


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_cut_at_every_byte(proxy: Proxy, upstream: Upstream, end: str) -> None:
    """Wherever a stream is cut, its beginning is exact, between two events an error event follows, and no end."""
    events = b"".join(EVENTS)
    boundaries = {len(b"".join(EVENTS[:n])) for n in range(4)}
    for length in range(len(events) + 1):
        body, whole = await _cut(proxy, upstream, events[:length], end)
        assert not whole
        assert body[:length] == events[:length]
        rest = body[length:]
        if length not in boundaries:
            assert rest == b""
            continue
        error = error_event(rest)
        assert error["code"] == "upstream_disconnected"
        assert error["type"] == "upstream_error"
        assert b"[DONE]" not in body
    record = await proxy.record(len(events) + 1)
    assert (record["outcome"], record["status"]) == ("upstream_cut", 200)
    assert record["attempts"][0]["maybe_billed"] is True


@pytest.mark.parametrize(
    ("framing", "end", "code"),
    [
        ([(b"Content-Length", b"5000")], "close", "upstream_disconnected"),
        ([(b"Content-Length", b"5000")], "reset", "upstream_disconnected"),
        ([], "close", "upstream_incomplete"),  # its end looks like any other
        ([], "reset", "upstream_disconnected"),
    ],
)
async def test_cut_without_chunks(
    proxy: Proxy, upstream: Upstream, framing: list[Pair], end: str, code: str
) -> None:
    """However a stream is framed by its upstream, its missing end is told."""
    seen = asyncio.Event()
    upstream.will(in_parts(head(200, [SSE, *framing]) + EVENTS[0], seen, then=end))
    async with asking(proxy) as (client, _):
        assert await next_chunk(client) == EVENTS[0]
        seen.set()
        assert error_event(await next_chunk(client))["code"] == code
        assert await client.closed() == b""


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"])
async def test_cut_between_odd_line_ends(
    proxy: Proxy, upstream: Upstream, line_end: bytes, end: str
) -> None:
    """A stream of other line ends is told between its events, too, without a blank line more."""
    prefix = EVENTS[0].replace(b"\n", line_end)
    body, whole = await _cut(proxy, upstream, prefix, end)
    assert not whole
    assert error_event(body.removeprefix(prefix))["code"] == "upstream_disconnected"


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize(
    ("path", "marker", "visible"),
    [
        (CHAT, DONE, b"data: [DONE]"),
        (CHAT, FINISH, FINISH),
        (MESSAGES, STOP, STOP),
        (RESPONSES, COMPLETED, COMPLETED),
    ],
)
async def test_cut_around_the_marker(
    proxy: Proxy, upstream: Upstream, path: str, marker: bytes, visible: bytes, end: str
) -> None:
    """Nothing is added once a client has seen the marker; before, its absence is told."""
    for length in range(len(marker) + 1):
        prefix = EVENTS[0] + marker[:length]
        body, whole = await _cut(proxy, upstream, prefix, end, path)
        assert body.startswith(prefix)
        finished = visible in prefix
        assert whole is finished, prefix
        assert (body != prefix) is (length == 0)  # in the middle of an event nothing is said


async def test_anthropic_error_event(proxy: Proxy, upstream: Upstream) -> None:
    """A broken stream of messages ends with the error event that Anthropic's SDKs raise."""
    ping = b"event: ping\ndata: {}\n\n"
    body, whole = await _cut(proxy, upstream, ping, "close", MESSAGES)
    assert not whole
    told = body.removeprefix(ping + b"event: error\ndata: ")
    assert told.endswith(b"}\n\n")
    error = orjson.loads(told)
    assert error["type"] == "error"
    assert error["error"]["type"] == "api_error"
    assert error["error"]["message"]
    assert error["request_id"] == (await proxy.record())["request_id"]


async def test_responses_error_event(proxy: Proxy, upstream: Upstream) -> None:
    """A broken stream of responses ends with an `error` event in their form."""
    body, whole = await _cut(proxy, upstream, b"event: x\ndata: {}\n\n", "close", RESPONSES)
    assert not whole
    told = body.removeprefix(b"event: x\ndata: {}\n\nevent: error\ndata: ")
    error = orjson.loads(told)
    assert (error["type"], error["code"]) == ("error", "upstream_disconnected")
    assert error["message"]


@pytest.mark.parametrize(
    ("path", "events"),
    [
        (CHAT, []),
        (CHAT, EVENTS),
        (CHAT, [*EVENTS, FINISH, event(b'{"choices":[{"index":1,"delta":{}}]}')]),
        ("/v1/completions", EVENTS),
        (MESSAGES, [*EVENTS, DONE]),
        (RESPONSES, [*EVENTS, DONE]),
        ("/v1/responses/compact", EVENTS),
    ],
)
async def test_incomplete(proxy: Proxy, upstream: Upstream, path: str, events: list[bytes]) -> None:
    """A stream that ends in good order, but without its marker, is told to be incomplete."""
    upstream.will(stream(*events))
    got = await call(proxy.port, chat(stream=True), path)
    assert not got.whole
    assert got.body.startswith(b"".join(events))
    last = got.body.removeprefix(b"".join(events))
    record = await proxy.record()
    assert (record["outcome"], record["error"]) == ("upstream_cut", "upstream_incomplete")
    assert (b"upstream_incomplete" in last) or path == MESSAGES
    assert last.count(b"data: ") == 1


@pytest.mark.parametrize(
    ("path", "events"),
    [
        (CHAT, [DONE]),
        (CHAT, [*EVENTS, FINISH]),
        (CHAT, [*EVENTS, FINISH, USAGE]),
        (CHAT, [*EVENTS, FINISH, USAGE, DONE]),
        (CHAT, [*EVENTS, b"data: [DONE]"]),
        (CHAT, [*EVENTS, b"data: [DONE]\r\n"]),
        ("/v1/completions", [FINISH]),
        (MESSAGES, [STOP]),
        (RESPONSES, [COMPLETED]),
        (RESPONSES, [COMPLETED.replace(b"completed", b"failed")]),
        ("/v1/responses/compact", [COMPLETED.replace(b"completed", b"incomplete")]),
        ("/v1/embeddings", EVENTS),
        ("/v1/rerank", []),
    ],
)
async def test_complete(proxy: Proxy, upstream: Upstream, path: str, events: list[bytes]) -> None:
    """A stream whose marker was seen, or whose endpoint has none, ends as the upstream ended it."""
    upstream.will(stream(*events))
    got = await call(proxy.port, chat(stream=True), path)
    assert got.whole
    assert got.body == b"".join(events)


@pytest.mark.parametrize(
    ("terminal", "events", "whole"),
    [
        ("none", EVENTS, True),
        ("none", [], True),
        ("done", [*EVENTS, FINISH], False),
        ("done", [*EVENTS, DONE], True),
        ("auto", [*EVENTS, FINISH], True),
    ],
)
async def test_terminal(
    upstream: Upstream, terminal: str, events: list[bytes], whole: bool
) -> None:
    """The upstream's table may say what must be seen before an end counts."""
    async with serving(routes_to(upstream, f'terminal = "{terminal}"')) as proxy:
        upstream.will(stream(*events))
        got = await call(proxy.port, chat(stream=True))
        assert got.whole is whole
        assert (got.body == b"".join(events)) is whole


@pytest.mark.parametrize("end", ["clean", "cut", "reset"])
@pytest.mark.parametrize(
    ("status", "headers", "terminal"),
    [
        (200, [SSE, GZIP], "auto"),
        (200, [SSE, (b"content-encoding", b"br")], "auto"),
        (500, [SSE], "auto"),
        (200, [(b"Content-Type", b"application/x-ndjson")], "auto"),
        (200, [JSON], "auto"),
        (200, [SSE], "none"),
    ],
)
async def test_unchecked(
    upstream: Upstream, status: int, headers: list[Pair], terminal: str, end: str
) -> None:
    """What is encoded, or no stream of events, is not looked into: a cut is a cut, an end an end."""
    async with serving(routes_to(upstream, f'terminal = "{terminal}"')) as proxy:
        upstream.will(stream(*EVENTS, headers=headers, status=status, end=end))
        got = await call(proxy.port, chat(stream=True))
        assert got.whole is (end == "clean")
        assert got.body == b"".join(EVENTS)


async def test_an_encoding_that_is_none(proxy: Proxy, upstream: Upstream) -> None:
    """A stream that says it is encoded as it is, is checked."""
    upstream.will(stream(*EVENTS, headers=[SSE, (b"Content-Encoding", b"identity")]))
    got = await call(proxy.port, chat(stream=True))
    assert not got.whole
    assert error_event(got.chunks[-1])["code"] == "upstream_incomplete"


# After the marker


def test_grace() -> None:
    """A finished stream is ended for the client two seconds later at the latest."""
    assert relay.GRACE_SECONDS == 2.0


MARKED = [(CHAT, DONE), (MESSAGES, STOP), (RESPONSES, COMPLETED)]


@pytest.mark.parametrize(("path", "marker"), MARKED)
async def test_an_upstream_that_does_not_end(
    proxy: Proxy, upstream: Upstream, path: str, marker: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished stream that its upstream leaves open is ended, and the upstream left."""
    monkeypatch.setattr(relay, "GRACE_SECONDS", 0.2)
    upstream.will(stream(EVENTS[0], marker, end="hang"), answer())
    async with await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True), path))
        got = await client.answer(seconds=5)
        assert (got.body, got.whole) == (EVENTS[0] + marker, True)
        await left(upstream)
        assert (await proxy.record())["outcome"] == "ok"
        await client.send(request(chat()))
        assert (await client.answer(seconds=5)).body == b'{"ok":true}'


async def test_grace_is_not_renewed(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an upstream says behind the marker passes, but buys it no time."""
    monkeypatch.setattr(relay, "GRACE_SECONDS", 0.3)
    upstream.will(stream(DONE, *[b": still here\n\n"] * 200, pause=0.02, end="hang"))
    got = await call(proxy.port, chat(stream=True), seconds=3)
    assert got.whole
    assert got.body.startswith(DONE + b": still here\n\n")
    await left(upstream)


async def test_no_grace_while_the_client_pauses(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind the marker reaches a client that has paused for longer than the grace: its upstream
    was not heard meanwhile.
    """
    monkeypatch.setattr(relay, "GRACE_SECONDS", 0.3)
    rest = b": " + BIG[: 12 * 2**20] + b"\n\n"
    upstream.will(stream(DONE, rest))
    sock = await _stalled(proxy.port)
    loop = asyncio.get_running_loop()
    got = bytearray()
    with sock:
        await asyncio.sleep(1.0)
        async with asyncio.timeout(30):
            while not got.endswith(b"\r\n0\r\n\r\n"):
                data = await loop.sock_recv(sock, 2**20)
                assert data
                got += data
    assert len(got) > len(rest)
    assert (await proxy.record(seconds=10))["outcome"] == "ok"


async def test_an_end_and_the_grace_at_one_time(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that ends just when its grace does is ended once."""
    monkeypatch.setattr(relay, "GRACE_SECONDS", 0.0)
    seen = asyncio.Event()
    upstream.will(in_parts(head(200, [SSE, CHUNKED]), seen, chunk(DONE) + b"0\r\n\r\n"), answer())
    async with asking(proxy) as (client, _):
        seen.set()
        assert await next_chunk(client) == DONE
        assert await next_chunk(client) == b""
        await client.send(request(chat()))
        assert (await client.answer(seconds=5)).head.startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("what", ["idle", "total", "reset", "shutdown"])
@pytest.mark.parametrize(("path", "marker"), [*MARKED, (CHAT, FINISH), (CHAT, FINISH + USAGE)])
async def test_nothing_after_the_marker(
    upstream: Upstream, path: str, marker: bytes, what: str
) -> None:
    """Whatever happens to a stream that has finished, nothing is added to it."""
    limits = {"idle": 'idle = "200ms"', "total": 'total = "200ms"'}.get(what, "")
    async with serving(routes_to(upstream, f"timeout = {{ {limits} }}")) as proxy:
        assert proxy.running is not None
        upstream.will(stream(marker, end="reset" if what == "reset" else "hang"))
        async with asking(proxy, path=path) as (client, _):
            assert await next_chunk(client) == marker
            if what == "shutdown":
                await proxy.running.drain(0.01)
            async with asyncio.timeout(5):
                assert await client.reader.readuntil(b"\r\n\r\n") == b"0\r\n\r\n"
        await left(upstream)
        if path == MESSAGES:
            record = await proxy.record()
            assert (record["outcome"], record["error"]) == ("ok", None)


# Time


async def test_idle_stream(upstream: Upstream) -> None:
    """A stream that falls silent is ended with an error event, and its upstream left."""
    async with serving(routes_to(upstream, 'timeout = { idle = "200ms" }')) as proxy:
        upstream.will(stream(EVENTS[0], EVENTS[1], end="hang"))
        got = await call(proxy.port, chat(stream=True), seconds=5)
        assert not got.whole
        told = got.body.removeprefix(EVENTS[0] + EVENTS[1])
        error = error_event(told)
        assert (error["type"], error["code"]) == ("timeout_error", "upstream_idle_timeout")
        await left(upstream)
        record = await proxy.record()
        assert (record["outcome"], record["error"]) == ("timeout", "upstream_idle_timeout")
        assert record["attempts"][0]["maybe_billed"] is True


@pytest.mark.parametrize("framing", [(b"Content-Length", b"100"), CHUNKED])
async def test_idle_plain_answer(upstream: Upstream, framing: Pair) -> None:
    """A plain answer that falls silent is broken off, and nothing is added to it."""
    async with serving(routes_to(upstream, 'timeout = { idle = "200ms" }')) as proxy:
        body = chunk(b"half") if framing == CHUNKED else b"half"
        upstream.will(raw(head(200, [JSON, framing]) + body, then="hang"))
        got = await call(proxy.port, chat(), seconds=5)
        assert (got.body, got.whole) == (b"half", False)
        await left(upstream)
        assert (await proxy.record())["outcome"] == "timeout"


async def test_steady_streams_are_not_idle(upstream: Upstream) -> None:
    """A stream may last many times the idle timeout, as long as something comes, were it a byte."""
    async with serving(
        routes_to(upstream, 'timeout = { idle = "250ms", first_byte = "250ms" }')
    ) as proxy:
        upstream.will(stream(*[b":"] * 20, b"\n\n", DONE, pause=0.06))
        got = await call(proxy.port, chat(stream=True))
        assert got.whole
        assert got.body == b":" * 20 + b"\n\n" + DONE


async def test_total(upstream: Upstream) -> None:
    """An answer may take no longer than its route allows in all, however busy it is."""
    async with serving(routes_to(upstream, 'timeout = { total = "400ms" }')) as proxy:
        upstream.will(stream(*[b": busy\n\n"] * 200, pause=0.03))
        got = await call(proxy.port, chat(stream=True), seconds=5)
        assert not got.whole
        error = error_event(got.chunks[-1])
        assert (error["type"], error["code"]) == ("timeout_error", "upstream_timeout")
        assert set(got.chunks[:-1]) == {b": busy\n\n"}
        await left(upstream)
        assert (await proxy.record())["outcome"] == "timeout"


async def _stalled(port: int) -> socket.socket:
    """Ask, and never read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, request(chat(stream=True)))
    return sock


@pytest.mark.parametrize("form", ["stream", "length"])
async def test_a_client_that_never_reads(upstream: Upstream, form: str) -> None:
    """A client that takes nothing for too long is given up, and so is its upstream."""
    async with serving(routes_to(upstream, 'timeout = { write = "300ms" }')) as proxy:
        if form == "stream":
            upstream.will(stream(*[event(BIG[:60_000])] * 500))
        else:
            upstream.will(answer(body=BIG * 2))
        sock = await _stalled(proxy.port)
        with sock:
            async with asyncio.timeout(10):
                while not upstream.connections:
                    await asyncio.sleep(0.01)
                await upstream.connections[0].gone.wait()
            record = await proxy.record(seconds=10)
            assert (record["outcome"], record["error"]) == ("timeout", "client_stalled")
            taken = 0  # what both kernels have, and it may read as yet
            sock.settimeout(5)
            with suppress(OSError):
                while piece := await asyncio.to_thread(sock.recv, 2**20):
                    taken += len(piece)
            assert taken / 2 < record["bytes_out"] <= taken < 8 * 2**20


async def test_a_client_that_reads_slowly(upstream: Upstream) -> None:
    """A client that takes a little now and then is never given up."""
    async with serving(
        routes_to(upstream, 'timeout = { write = "400ms", idle = "400ms" }')
    ) as proxy:
        body = BIG[: 12 * 2**20]
        upstream.will(answer(body=body))
        sock = await _stalled(proxy.port)
        loop = asyncio.get_running_loop()
        count = 0
        with sock:
            for _ in range(10):  # several times what either timeout allows
                await asyncio.sleep(0.1)
                count += len(await loop.sock_recv(sock, 40_000))
            while count < len(body):
                data = await loop.sock_recv(sock, 2**20)
                assert data
                count += len(data)
        assert (await proxy.record(seconds=10))["outcome"] == "ok"


# Departure


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


PHASES: dict[str, Callable[[], Step]] = {
    "before the first byte": lambda: in_parts(then="hang"),
    "after the head of a stream": lambda: in_parts(head(200, [SSE, CHUNKED]), then="hang"),
    "in the middle of a stream": lambda: stream(*EVENTS, end="hang"),
    "in the middle of a busy stream": lambda: stream(*EVENTS * 10_000, pause=0.01),
    "in the middle of a plain answer": lambda: raw(
        head(200, [JSON, (b"Content-Length", b"100")]) + b"half", then="hang"
    ),
    "after the marker": lambda: stream(DONE, end="hang"),
}


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("phase", PHASES)
async def test_client_gone(proxy: Proxy, upstream: Upstream, phase: str, end: str) -> None:
    """When a client leaves, its upstream is left within a second, and the log says why; behind the
    marker of its stream it has left nothing.
    """
    upstream.will(PHASES[phase]())
    before = asyncio.all_tasks()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(request(chat(stream=True)))
    if phase == "before the first byte":
        async with asyncio.timeout(5):
            while not upstream.requests:
                await asyncio.sleep(0.005)
    else:
        await reader.readuntil(b"\r\n\r\n")
        if phase != "after the head of a stream":
            await reader.read(1)
    if end == "close":
        writer.close()
    else:
        writer.transport.abort()
    await left(upstream)
    record = await proxy.record()
    gone = ("client_gone", "client_gone")
    assert (record["outcome"], record["error"]) == (("ok", None) if "marker" in phase else gone)
    assert record["status"] == (499 if phase == "before the first byte" else 200)
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() - before == set()


async def test_a_client_that_is_gone_while_it_does_not_read(
    proxy: Proxy, upstream: Upstream
) -> None:
    """That a client takes nothing does not hide that it has left."""
    upstream.will(answer(body=BIG * 2))
    sock = await _stalled(proxy.port)
    with sock:
        async with asyncio.timeout(5):
            while not upstream.requests:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.2)  # until all buffers are full
        assert not upstream.connections[0].gone.is_set()
    await left(upstream)
    assert (await proxy.record())["outcome"] == "client_gone"


async def test_many_clients_gone(proxy: Proxy, upstream: Upstream) -> None:
    """Three hundred clients that leave take everything with them that was opened for them."""
    upstream.will(stream(*EVENTS, end="hang"))
    await call_and_leave(proxy)
    await proxy.record(1)
    descriptors, tasks = _descriptors(), len(asyncio.all_tasks())
    for _ in range(10):
        await asyncio.gather(*(call_and_leave(proxy) for _ in range(30)))
    await proxy.record(301, seconds=10)
    async with asyncio.timeout(5):
        while _descriptors() > descriptors or len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.02)
    assert proxy.running is not None
    assert repr(proxy.running._transport) == "<Transport: 0 busy, 0 idle>"
    assert proxy.running.gate.inflight == 0
    assert proxy.running.gate.held == 0


async def call_and_leave(proxy: Proxy) -> None:
    async with asking(proxy) as (client, _):
        assert (await next_chunk(client)).startswith(EVENTS[0])


async def test_cuts_are_silent(upstream: Upstream) -> None:
    """Nothing that an upstream or a client breaks leaves a warning or a traceback behind."""
    async with process(routes_to(upstream, 'timeout = { idle = "200ms" }')) as proxy:
        for step in (
            stream(*EVENTS, end="cut"),
            stream(*EVENTS, end="reset"),
            stream(*EVENTS, end="hang"),
            stream(*EVENTS),
            raw(MALFORMED["garbage"]),
            raw(MALFORMED["a bad chunk size"]),
            raw(head(200, [JSON, (b"Content-Length", b"10")]) + b"1"),
            answer(401),
            answer(302),
        ):
            upstream.will(step)
            await call(proxy.port, chat(stream=True))
        upstream.will(stream(*EVENTS * 100, pause=0.01))
        for _ in range(5):
            await call_and_leave(proxy)
        await proxy.record(14)


async def test_media_types_of_upstreams(proxy: Proxy, upstream: Upstream) -> None:
    """Whatever an upstream calls its answers, only short names are kept, and a long one means the same."""
    before = headers._media_type.cache_info().currsize
    for number in range(300):
        tail = b"; x=%d%b" % (number, b"y" * 200)
        upstream.will(stream(DONE, headers=[(b"Content-Type", b"text/event-stream" + tail)]))
        got = await call(proxy.port, chat())
        assert got.value(b"x-accel-buffering") == b"no"  # as in every stream
    assert headers._media_type.cache_info().currsize <= before + 1


# Taps


class Kept:
    """Reads along, and keeps it."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self.heard.append(data)


PLAIN = b'{"object":"chat.completion","choices":[]}'


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "script",
    [
        stream(*EVENTS, FINISH, DONE),
        answer(body=PLAIN),
        stream(PLAIN),
        stream(*EVENTS, end="reset"),
    ],
    ids=["stream", "plain", "plain under a stream's label", "cut"],
)
async def test_taps(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, script: Step, count: int
) -> None:
    """Each tap is fed all that the upstream says, of streams and of plain answers, and changes nothing."""
    upstream.will(script, script)
    before = await call(proxy.port, chat(stream=True))
    taps = [Kept() for _ in range(count)]

    def made(*args: Any, **kwargs: Any) -> relay.Relay:
        return relay.Relay(*args, **{**kwargs, "taps": [*kwargs["taps"], *taps]})

    monkeypatch.setattr(forward, "Relay", made)
    got = await call(proxy.port, chat(stream=True))
    assert (got.status, got.whole) == (before.status, before.whole)
    heard = b"".join(taps[0].heard)
    assert heard
    assert got.body.startswith(heard)
    assert [b"".join(tap.heard) for tap in taps] == [heard] * count
    await proxy.record(2)
    assert len({record["outcome"] for record in proxy.records()}) == 1
