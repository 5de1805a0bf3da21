"""A: from the client to the proxy, framing and limits."""

import asyncio
import gzip
import re
import socket
from typing import Any

from tests.faults.case import alone, apart, case
from tests.faults.house import At
from tests.faults.places import Spot
from tests.harness.client import Pair, request
from tests.harness.upstream import DONE, answer, chunk, event, hang, stream
from tests.test_smuggling import AMBIGUOUS, KEY_TEXT

OK = b'{"ok":true}'


async def _refused(at: At, text: bytes, status: int = 400, lines: int = 1) -> None:
    """Send *text* as it is, and expect a refusal of it."""
    at.lines += lines
    caller = await at.connect()
    await caller.send(text)
    got = await caller.answer()
    assert got.status == status, got.raw
    await caller.closed(8)


@case("A04", forms={kind: kind for kind in ("length", "coding", "chunk", "head")})
async def ambiguous(at: At, kind: str) -> None:
    """Ambiguous framing is refused; what stands behind it is not dispatched."""
    for name, text in AMBIGUOUS.items():
        if name.startswith(kind):
            own = text.replace(KEY_TEXT.encode(), at.key[1][7:])
            await _refused(at, own + request(at.body(), headers=[at.key]))
    assert at["A"].heard == []


@case("A05")
async def extensions_and_trailers(at: At) -> None:
    """Chunk extensions and trailers go no further; the length that goes up is exact."""
    body = at.body()
    pieces = b"".join(
        b"%x;a=%b\r\n%b\r\n" % (len(part), b"b" * 1000, part)
        for part in (body[at_ : at_ + 9] for at_ in range(0, len(body), 9))
    )
    trailers = b"".join(b"X-T-%d: y\r\n" % n for n in range(100))
    caller = await at.connect()
    headers = [(b"Transfer-Encoding", b"chunked")]
    await caller.send(at.request(pieces + b"0\r\n" + trailers + b"\r\n", headers, length=False))
    assert (await caller.answer()).body == OK
    (heard,) = at["A"].heard
    assert heard.request.body == body
    assert heard.request.values(b"content-length") == [b"%d" % len(body)]
    assert b"x-t-" not in heard.request.head.lower()


@case("A06", forms={"bad key": (b"Bearer no", 401), "good key": (b"", 200), "unknown": (b"", 417)})
async def expectations(at: At, what: tuple[bytes, int]) -> None:
    """Nobody is asked to go on whose key is wrong; an expectation goes no further."""
    key, status = what
    caller = await at.connect()
    body = at.body()
    expects = b"1000-continue" if status == 417 else b"100-continue"
    headers: list[Pair] = [(b"Expect", expects), (b"Authorization", key) if key else at.key]
    at.lines += 1
    text = request(body, headers=headers)
    await caller.send(text[: -len(body)])
    if status == 200:
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await caller.send(body)
    got = await caller.answer()
    assert got.status == status
    assert b"100 Continue" not in got.raw
    assert all(heard.request.value(b"expect") is None for heard in at["A"].heard)


LONG: dict[str, tuple[list[Pair], int]] = {
    "8 KiB": ([(b"X-Long", b"x" * 8191)], 200),
    "33 KiB": ([(b"X-Long", b"x" * 33_000)], 431),
    "130 KiB": ([(b"X-%d" % n, b"x" * 26_000) for n in range(6)], 431),
    "129 headers": ([(b"X-%d" % n, b"x") for n in range(129)], 431),
    "key": ([(b"Authorization", b"Bearer canary" + b"x" * 33_000)], 431),
}


@case("A08", forms=LONG)
async def long_heads(at: At, what: tuple[list[Pair], int]) -> None:
    """A head over the limits is refused in JSON, and nothing of it is quoted or logged."""
    headers, status = what
    caller = await at.connect()
    await caller.send(at.request(headers=headers))
    got = await caller.answer()
    assert got.status == status
    assert b"canary" not in got.raw
    assert b"canary" not in at.house.proxy.log.read_bytes()


TARGETS = {
    "17 KiB": ("/v1/chat/completions?" + "x" * 17_000, 414),
    "*": ("*", 400),
    "authority": ("localhost:80", 400),
    "//evil": ("//evil.example/v1/chat/completions", 404),
    "..": ("/v1/../x", 400),
    "%2e%2e": ("/v1/%2e%2e/x", 400),
    "%00": ("/v1/responses/%00", 400),
    "absolute": ("http://evil.example/v1/chat/completions", 400),
    "backslash": ("/v1\\chat", 400),
    "scanner": ("/.env", 404),
}


@case("A09", forms=TARGETS)
async def targets(at: At, what: tuple[str, int]) -> None:
    """Only a known path is ever sent on, and none moves the destination."""
    caller = await at.connect()
    await caller.send(at.request(path=what[0]))
    assert (await caller.answer()).status == what[1]
    assert at["A"].heard == []


@case("A10", forms={"plain": False, "stream": True})
async def http10(at: At, streams: bool) -> None:
    """A client of HTTP/1.0 gets no chunks: a length, or an end by closing."""
    at["A"].will(stream(event(b"1"), DONE) if streams else answer())
    for headers in ([], [(b"Connection", b"keep-alive")]):
        caller = await at.connect()
        await caller.send(at.request(at.body(stream=streams), headers, version="1.0"))
        got = await caller.answer()
        assert got.body == (event(b"1") + DONE if streams else OK)
        assert got.value(b"transfer-encoding") is None


@case("A12")
async def pipelined(at: At) -> None:
    """Fifty requests in one row, the first a slow one, are answered in order, one at a time."""

    async def echo(conn: Any, seen: Any) -> None:
        await asyncio.sleep(0.2 if len(at["A"].heard) == 1 else 0)
        assert at["A"].busy == 1
        await answer(body=seen.body)(conn, seen)

    at["A"].will(echo)
    bodies = [at.body() for _ in range(50)]
    caller = await at.connect()
    await caller.send(b"".join(at.request(body) for body in bodies))
    for body in bodies:
        assert (await caller.answer()).body == body


WEBSOCKET: list[Pair] = [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
H2C: list[Pair] = [
    (b"Connection", b"Upgrade, HTTP2-Settings"),
    (b"Upgrade", b"h2c"),
    (b"HTTP2-Settings", b"AAMAAABkAAQAAP__"),
]


@case("A13", forms={kind: kind for kind in ("websocket", "probe", "h2c", "PRI", "TLS")})
async def upgrades(at: At, kind: str) -> None:
    """No other protocol is spoken here: what offers one is served without (h2c), sent elsewhere (a
    WebSocket) or refused, and what would be its first bytes is no request.
    """
    inner = request(at.body(), headers=[at.key])
    if kind == "websocket":
        await _refused(at, request(inner, headers=[at.key, *WEBSOCKET]))
    elif kind == "probe":
        text = request(path="/v1/responses", headers=WEBSOCKET, method="GET")
        await _refused(at, text + inner, 426)
    elif kind == "PRI":
        await _refused(at, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9) + inner)
    elif kind == "TLS":
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x11" * 64
        await _refused(at, hello + b"\r\n\r\n" + inner)
    else:
        body = at.body()
        caller = await at.connect()
        await caller.send(at.request(body, H2C) + inner)
        assert (await caller.answer()).body == OK
        assert await caller.closed() == b""
        (heard,) = at["A"].heard
        assert heard.request.body == body
        assert heard.request.value(b"http2-settings") is None
        return
    assert at["A"].heard == []


BOMB = gzip.compress(bytes(50 * 2**20), mtime=0)
PACKED: dict[str, tuple[bytes, bytes | None, int]] = {
    "gzip": (b"gzip", None, 200),
    "bomb": (b"gzip", BOMB, 413),
    "many": (b"gzip", gzip.compress(b"{}", mtime=0) * 100_000, 400),
    "plain": (b"gzip", b"{}", 400),
    "plain zstd": (b"zstd", b"{}", 400),
    "br": (b"br", b"{}", 415),
    "twice": (b"gzip, gzip", b"{}", 415),
}


@case("A14", forms=PACKED)
async def encoded(at: At, what: tuple[bytes, bytes | None, int]) -> None:
    """A packed body goes up plain; a bomb, a second member and what only says so are refused."""
    coding, sent, status = what
    body = at.body()
    caller = await at.connect()
    packed = gzip.compress(body) if sent is None else sent
    await caller.send(at.request(packed, [(b"Content-Encoding", coding)]))
    got = await caller.answer(seconds=5)
    assert got.status == status
    heard = [one.request for one in at["A"].heard]
    assert [one.body for one in heard] == ([body] if status == 200 else [])
    assert all(one.value(b"content-encoding") is None for one in heard)


CAP = 24 * 2**20


@case("A15", forms={"cap": 0, "one more": 1, "one more in chunks": -1, "20 MB": -2})
async def large(at: At, what: int) -> None:
    """A body up to the cap passes; over it, it is refused, early where its length says so."""
    size = {0: CAP, 1: CAP + 1, -1: CAP + 1, -2: 20_000_000}[what]
    body = at.body(text="x")
    body = body.replace(b'x"}]', b"x" * (size - len(body) + 1) + b'"}]')
    assert len(body) == size
    caller = await at.connect()
    if what == 1:
        await caller.send(at.request(body)[: -len(body)])
    elif what == -1:
        headers = [(b"Transfer-Encoding", b"chunked")]
        await caller.send(at.request(chunk(body) + b"0\r\n\r\n", headers, length=False))
    else:
        await caller.send(at.request(body))
    got = await caller.answer()
    assert got.status == (413 if abs(what) == 1 else 200)
    if got.status == 200:
        assert at["A"].heard[0].request.body == body
    await asyncio.sleep(0)


@case("A16", long=True)
async def slow(at: At) -> None:
    """Heads that dribble are given up after 10 s, and disturb nobody meanwhile."""
    callers = [await at.connect() for _ in range(100)]
    for _ in range(13):
        for caller in callers:
            if not caller.writer.transport.is_closing():
                caller.writer.write(b"X")
        assert (await at.call()).status == 200
        await asyncio.sleep(0.9)
    at.lines += len(callers)
    for caller in callers:
        assert (await caller.answer()).status == 408


@case("A17")
async def half_close(at: At) -> None:
    """A client that closes its half behind its request counts as gone, or is served: never does it hang."""
    caller = await at.connect()
    await caller.send(at.request())
    caller.writer.write_eof()
    got = await caller.answer(seconds=5)
    assert got.raw == b"" or got.body == OK
    assert (await at.record())["outcome"] in ("client_gone", "ok")


MODELS: dict[str, tuple[Any, int]] = {
    "0": (0, 400),
    "list": ([], 400),
    "object": ({"__proto__": 1}, 400),
    "true": (True, 400),
    "empty": ("", 400),
    "1 MB": ("x" * 1_000_000, 404),
    "line end": ("a\nb", 404),
    "NUL": ("a\0b", 404),
    "from right to left": ("\u202ea", 404),
    "blank behind": ("A19 ", 404),
    "another case": ("a19", 404),
    "up": ("../A19", 404),
    "prefix": ("A1", 404),
    "longer": ("A19x", 404),
    "__proto__": ("__proto__", 404),
}


@case("A19", forms=MODELS)
async def models(at: At, what: tuple[Any, int]) -> None:
    """A model that is none is refused, cut and made safe in the message and the log."""
    got = await at.call(at.body(model=what[0]) if what[0] else at.body().replace(b'"A19"', re.sub(rb"\s", b"", repr(what[0]).encode()).replace(b"'", b'"')))  # fmt: skip
    assert got.status == what[1]
    if got.body:
        assert len(got.json()["error"]["message"]) < 600
    assert len(orjson_line(at, await at.record())) < 3000
    assert at["A"].heard == []


def orjson_line(at: At, record: dict[str, Any]) -> str:
    return str(record)


@case("A20", forms={"true": True, "text": "true", "1": 1, "null": None, "missing": ...})
async def stream_flags(at: At, flag: Any) -> None:
    """What the body says of streaming goes up untouched; what comes back decides how it is relayed."""
    fields = {} if flag is ... else {"stream": flag, "stream_options": {"include_usage": [1]}}
    at["A"].will(stream(event(b"1"), DONE))
    body = at.body(**fields)
    got = await at.call(body)
    assert at["A"].heard[0].request.body == body
    assert got.body == event(b"1") + DONE
    at["A"].will(answer())
    assert (await at.call(**fields)).value(b"content-length") == b"11"


FIELDS: dict[str, tuple[list[Pair], int]] = {
    "obs-text": ([(b"X-A", b"\x85\xff")], 200),
    "underscore": ([(b"x_a", b"b")], 200),
    "100 of a name": ([(b"X-A", b"b")] * 100, 200),
    "0x01": ([(b"X-A", b"\x01")], 400),
    "0x1f": ([(b"X-A", b"\x1f")], 400),
    "0x7f": ([(b"X-A", b"\x7f")], 400),
}


@case("A21", forms=FIELDS)
async def odd_fields(at: At, what: tuple[list[Pair], int]) -> None:
    """Odd header values pass as they are, or are refused; a line is left either way."""
    caller = await at.connect()
    await caller.send(at.request(headers=what[0]))
    assert (await caller.answer()).status == what[1]
    if what[1] == 200:
        heard = at["A"].heard[0].request
        assert [pair for pair in heard.headers if pair in what[0]] == what[0]


@case("A22")
async def multipart(at: At) -> None:
    """A form passes byte for byte, in time that grows with its size, whatever looks like a boundary."""
    boundary = b"----" + b"-" * 60
    nonce = at.nonce()
    filler = (b"\r\n----" + b"-" * 59) * 100_000
    body = (
        b'--%b\r\nContent-Disposition: form-data; name="model"\r\n\r\nA22\r\n--%b\r\n'
        b'Content-Disposition: form-data; name="file"; filename="%b"\r\n\r\n%b\r\n--%b--\r\n'
    ) % (boundary, boundary, nonce, filler, boundary)
    kind = b"multipart/form-data; boundary=" + boundary
    caller = await at.connect()
    path = "/v1/audio/transcriptions"
    await caller.send(at.request(body, [(b"Content-Type", kind)], path=path))
    got = await caller.answer(seconds=5)
    assert got.status == 200
    assert at["A"].heard[0].request.body == body


HOSTS: dict[str, tuple[list[bytes], int]] = {
    "none": ([], 400),
    "two": ([b"a", b"b"], 400),
    "x/?": ([b"x/?"], 400),
    "x/#": ([b"x/#"], 400),
    "IPv6": ([b"[::1]:9"], 200),
    "wrong port": ([b"localhost:1"], 200),
}


@case("A23", forms=HOSTS)
async def hosts(at: At, what: tuple[list[bytes], int]) -> None:
    """A Host that is none is refused; it never has a say in who may ask, or where that goes."""
    caller = await at.connect()
    named = [(b"Host", host) for host in what[0]]
    await caller.send(at.request(headers=named, host=None))
    assert (await caller.answer()).status == what[1]
    at.lines += 1
    caller = await at.connect()
    await caller.send(request(at.body(), headers=named, host=None))
    assert (await caller.answer()).status == (401 if what[1] == 200 else 400)


@case("A24")
async def hop_by_hop(at: At) -> None:
    """What is for this hop goes no further, and what `Connection` names cannot take our own away."""
    headers = [
        (b"Connection", b"authorization, x-api-key, host, content-length, x-mine"),
        (b"Connection", b""),
        (b"X-Mine", b"1"),
        (b"TE", b"trailers, gzip"),
        (b"Proxy-Authorization", b"Basic eDp5"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Keep-Alive", b"timeout=5"),
    ]
    assert (await at.call(headers=headers)).body == OK
    seen = at["A"].heard[0].request
    names = {name.lower() for name, _ in seen.headers}
    assert not names & {b"te", b"proxy-authorization", b"proxy-connection", b"keep-alive", b"x-mine", b"connection"}  # fmt: skip
    assert seen.value(b"authorization") == b"Bearer " + at["A"].secrets[0].encode()
    assert seen.value(b"host") == at["A"].authority.encode()


@alone("A16b")
async def idle_connections() -> None:
    """Connections that say nothing cost nobody else anything, and end with the proxy."""
    async with apart(Spot()) as at:
        socks = [socket.create_connection(("127.0.0.1", at.port)) for _ in range(200)]
        try:
            at["A"].will(answer())
            assert (await at.call()).status == 200
        finally:
            for sock in socks:
                sock.close()


@case("A01")
async def slow_body(at: At) -> None:
    """A client that has not sent its body to the end keeps nobody: the upstream is not asked."""
    at["A"].will(hang())
    caller = await at.connect()
    text = at.request()
    await caller.send(text[:-5])
    assert (await at.call(model="A24")).status in (200, 404)
    assert at["A"].connections == []
    caller.close()
    assert (await at.record())["outcome"] == "client_gone"
