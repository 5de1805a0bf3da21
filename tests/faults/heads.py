"""D: until the head of an answer has come."""

import asyncio
import gzip
from email.utils import formatdate
from time import monotonic, time

from tests.faults.case import case
from tests.faults.house import At
from tests.faults.places import Spot
from tests.harness.client import Pair
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Step,
    answer,
    chunk,
    event,
    hang,
    head,
    raw,
)
from tests.test_relay import MALFORMED

OK = b'{"ok":true}'
ONCE = Spot(extra="retry = { attempts = 1 }")
TIGHT = Spot(extra='timeout = { first_byte = "300ms", idle = "300ms" }')
OURS = {401, *range(300, 304), *range(305, 400)}
KINDS: dict[str, tuple[Pair, bytes]] = {
    "JSON": (JSON, b'{"error":{"message":"x"}}'),
    "HTML": ((b"Content-Type", b"text/html"), b"<h1>no</h1>"),
    "empty": (JSON, b""),
    "8 MB": ((b"Content-Type", b"text/plain"), b"x" * 8_000_000),
}


@case("D01", spots=ONCE, forms=KINDS)
async def statuses(at: At, what: tuple[Pair, bytes]) -> None:
    """Whatever an upstream answers is relayed byte for byte, whichever its status."""
    kind, body = what
    every = 1 if kind is JSON and body else 9
    for status in [200, 403, 500] if len(body) > 100 else range(200, 600, every):
        if status in OURS or status in (204, 304):
            continue
        at["A"].will(answer(status, body, [kind]))
        got = await at.call()
        assert (got.status, got.body, got.value(b"content-type")) == (status, body, kind[1])


@case("D02", spots=ONCE, forms={"401": 401, "403": 403})
async def echoed_key(at: At, status: int) -> None:
    """That our credential is refused is our matter, by 401 or by 403; what it quotes goes no further."""
    secret = at["A"].secrets[0]
    at["A"].will(answer(status, f'{{"error":"Incorrect API key provided: {secret}"}}'.encode()))
    got = await at.call()
    assert (got.status, got.code) == (502, "upstream_auth")
    await at.record()
    assert at.has("credential_refused")


def _http_date(seconds: float) -> bytes:
    return formatdate(time() + seconds, usegmt=True).encode()


WAITS: dict[str, tuple[list[Pair], int]] = {
    "1": ([(b"Retry-After", b"1")], 2),
    "30": ([(b"Retry-After", b"30")], 1),
    "3600": ([(b"Retry-After", b"3600")], 1),
    "a date": ([(b"Retry-After", b"<DATE>")], 1),
    "-1": ([(b"Retry-After", b"-1")], 1),
    "nan": ([(b"Retry-After", b"nan")], 1),
    "inf": ([(b"Retry-After", b"inf")], 1),
    "20 digits": ([(b"Retry-After", b"9" * 20)], 1),
    "300 ms": ([(b"retry-after-ms", b"300")], 2),
    "absent": ([], 1),
}


@case("D03", forms=WAITS)
async def too_many(at: At, what: tuple[list[Pair], int]) -> None:
    """A 429 is asked again once if it asks for a short wait, else it is relayed at once, hints and all."""
    headers, sends = what
    headers = [(name, value.replace(b"<DATE>", _http_date(100))) for name, value in headers]
    at["A"].will(answer(429, b"{}", [JSON, *headers]))
    at.sends = sends
    begun = monotonic()
    got = await at.call()
    assert (got.status, at["A"].sends) == (429, sends)
    assert [pair for pair in got.headers if pair in headers] == headers
    assert (monotonic() - begun < 0.9) == (sends == 1 or headers[0][0] == b"retry-after-ms")


@case("D04", spots={"A": TIGHT, "B": Spot()}, route='fallback = "@-B/@"')
async def silent(at: At) -> None:
    """No answer in time: 504, the upstream is left within a second, and nobody else is asked."""
    at["A"].will(hang())
    got = await at.call()
    assert (got.status, got.code, got.value(b"x-should-retry")) == (
        504,
        "upstream_timeout",
        b"false",
    )
    await at["A"].idle(1)
    assert at["B"].heard == []
    assert (await at.record())["attempts"][0]["maybe_billed"]


@case("D05", forms={name: name for name in ("garbage", "SSH", "HTTP/2", "HTTP/2 frames", "HTTP/0.9", "TLS", "a request")})  # fmt: skip
async def no_http(at: At, form: str) -> None:
    """What is not HTTP is the upstream's fault, not the caller's."""
    at["A"].will(raw(MALFORMED[form]))
    got = await at.call()
    assert (got.status, got.code) == (502, "upstream_protocol")


@case("D06", forms={name: name for name in MALFORMED if name not in ("garbage", "SSH", "HTTP/2", "HTTP/2 frames", "HTTP/0.9", "TLS", "a request")})  # fmt: skip
async def malformed(at: At, form: str) -> None:
    """An answer that could be read in two ways is read in none."""
    at["A"].will(raw(MALFORMED[form]))
    got = await at.call()
    assert (got.status, got.code) == (502, "upstream_protocol")


@case("D06b")
async def long_but_legal(at: At) -> None:
    """Nine kilobytes of a header, and two hundred headers, are legal, and pass."""
    many = [(b"X-%d" % number, b"y") for number in range(200)]
    at["A"].will(answer(headers=[JSON, (b"X-Long", b"x" * 9000), *many]))
    got = await at.call()
    assert got.body == OK
    assert got.value(b"x-long") == b"x" * 9000


INTERIM: dict[str, tuple[bytes, int]] = {
    "100": (head(100), 200),
    "102": (head(102), 200),
    "50 of 103": (head(103, [(b"Link", b"<x>")]) * 50, 200),
    "103 only": (head(103), 502),
    "101": (head(101, [(b"Upgrade", b"x"), (b"Connection", b"Upgrade")]), 502),
}


@case("D07", forms=INTERIM)
async def interim(at: At, what: tuple[bytes, int]) -> None:
    """Interim answers are waited through, and not passed on; an end with nothing else is none."""
    data, status = what
    more = head(200, [JSON, (b"Content-Length", b"%d" % len(OK))]) + OK if status == 200 else b""
    at["A"].will(raw(data + more))
    got = await at.call()
    assert got.status == status
    assert got.value(b"link") is None


SURPLUS: dict[str, bytes] = {
    "204": head(204) + b"canary",
    "204 with a length": head(204, [(b"Content-Length", b"6")]) + b"canary",
    "304": head(304) + b"canary",
    "200 of nothing": head(200, [(b"Content-Length", b"0")]) + b"canary",
    "behind a length": head(200, [(b"Content-Length", b"2")]) + b"{}canary",
}


@case("D08", forms=SURPLUS)
async def surplus(at: At, data: bytes) -> None:
    """What comes behind an answer reaches nobody, and its connection is not used again."""
    at["A"].will(raw(data, then="hang"), answer())
    first = await at.call()
    assert b"canary" not in first.raw
    assert (await at.call()).body == OK
    one, other = at["A"].heard
    assert one.request.connection != other.request.connection


@case("D10", forms={"asked for": True, "not asked for": False})
async def encoded(at: At, asked: bool) -> None:
    """An encoded answer stays as it is, with its header; on streams nothing but identity is asked for."""
    body = gzip.compress(OK)
    at["A"].will(answer(body=body, headers=[JSON, (b"Content-Encoding", b"gzip")]))
    headers: list[Pair] = [(b"Accept-Encoding", b"gzip")] if asked else []
    got = await at.call(headers=headers)
    assert (got.body, got.value(b"content-encoding")) == (body, b"gzip")
    assert at["A"].heard[0].request.values(b"accept-encoding") == [value for _, value in headers]
    await at.call(headers=headers, stream=True)
    assert at["A"].heard[1].request.value(b"accept-encoding") in (
        b"identity",
        None if not asked else b"identity",
    )


@case("D11")
async def framing(at: At) -> None:
    """A length is kept where the bytes are the upstream's alone; never are there two framings."""
    at["A"].will(answer())
    got = await at.call()
    assert (got.values(b"content-length"), got.values(b"transfer-encoding")) == ([b"11"], [])
    data = event(b"1") + DONE
    at["A"].will(answer(body=data, headers=[SSE]))
    got = await at.call(stream=True)
    assert (got.values(b"content-length"), got.values(b"transfer-encoding")) == ([], [b"chunked"])


TYPES = (
    b"text/event-stream; charset=utf-8",
    b"",
    b"application/x-ndjson",
    b"application/json",
    b"text/plain",
)


@case("D12", forms={(kind or b"none").decode(): kind for kind in TYPES})
async def types(at: At, kind: bytes) -> None:
    """Whatever a stream calls itself, each of its pieces is passed on at once."""
    go = asyncio.Event()

    async def step(conn: Conn, request: Received) -> None:
        headers: list[Pair] = [(b"Content-Type", kind)] if kind else []
        await conn.send(head(200, [*headers, CHUNKED]) + chunk(event(b"1")))
        await go.wait()
        await conn.send(chunk(DONE) + b"0\r\n\r\n")

    at["A"].will(step)
    caller = await at.connect()
    await caller.send(at.request(at.body(stream=True)))
    async with asyncio.timeout(5):
        assert event(b"1") in await caller.reader.readuntil(event(b"1"))
    go.set()
    async with asyncio.timeout(5):
        await caller.reader.readuntil(b"0\r\n\r\n")


@case("D13", spots=TIGHT)
async def dribble(at: At) -> None:
    """A head that dribbles is late when its time is up, not when it stops."""

    async def step(conn: Conn, request: Received) -> None:
        for byte in head(200, [JSON]) * 10:
            await conn.send(bytes([byte]))
            await asyncio.sleep(0.02)

    at["A"].will(step)
    begun = monotonic()
    assert (await at.call()).code == "upstream_timeout"
    assert monotonic() - begun < 2


async def _early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    # Where kernels buffer much all 20 MB may be out by now; the connection would then be kept.
    writer.write(head(413, [JSON, (b"Content-Length", b"2"), (b"Connection", b"close")]) + b"{}")
    await writer.drain()
    while await reader.read(2**16):
        pass
    writer.close()


async def _early_rst(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.write(head(413, [JSON, (b"Content-Length", b"2")]) + b"{}")
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()


@case("D14", spots={"fin": Spot("bare", serve=_early, name="127.0.0.1"), "rst": Spot("bare", serve=_early_rst, name="127.0.0.1")}, routes='"@/fin" = { upstream = "@-fin" }\n"@/rst" = { upstream = "@-rst" }', forms={"fin": 413, "rst": 0})  # fmt: skip
async def early(at: At, status: int) -> None:
    """An answer that comes while 20 MB are on their way is relayed; a reset behind it may cost it."""
    body = at.body(model="D14/fin" if status else "D14/rst", text="x" * 20_000_000)
    at.nonces.clear()  # these upstreams write nothing down
    got = await at.call(body)
    assert got.status == 413 or (not status and got.code == "upstream_disconnected")
    at.nonces.clear()


SHORT: dict[str, Step] = {
    "length": raw(head(200, [JSON, (b"Content-Length", b"10")]) + b"12345"),
    "length, reset": raw(head(200, [JSON, (b"Content-Length", b"10")]) + b"12345", then="reset"),
    "chunks": raw(head(200, [JSON, CHUNKED]) + chunk(b"12345")),
    "half a chunk": raw(head(200, [JSON, CHUNKED]) + b"a\r\n12345"),
    "silence": raw(head(200, [JSON, (b"Content-Length", b"10")]) + b"12345", then="hang"),
}


@case("D16", spots=TIGHT, forms=SHORT)
async def short(at: At, step: Step) -> None:
    """A body that ends before its time is a broken transfer for the caller, too."""
    at["A"].will(step)
    got = await at.call()
    assert (got.status, got.body, got.whole) == (200, b"12345", False)
    assert (await at.record())["outcome"] in ("upstream_cut", "timeout")


@case("D09")
async def redirects(at: At) -> None:
    """A redirect is neither followed nor passed on."""
    trap = at.house.places["trap"]
    for status in (301, 302, 303, 307, 308):
        at["A"].will(answer(status, b"", [(b"Location", trap.url.encode())]))
        assert (await at.call()).code == "upstream_protocol"
    assert trap.heard == []
