"""Request smuggling: whatever two readers could take for two things is taken for nothing at all, in both
directions.

A request that is ambiguous gets 400 and the end of its connection, however it is cut into packets; the
one behind it is never seen by an upstream. An answer that is ambiguous never reaches the next request.
"""

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from proxy.cli import main
from proxy.process import lifecycle
from tests.harness.client import Answer, Client, Pair, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Upstream,
    answer,
    chunk,
    event,
    head,
    raw,
    stream,
)

KEY_TEXT = "sk-team-0123456789"
KEY: Pair = (b"Authorization", b"Bearer " + KEY_TEXT.encode())
PATH = "/v1/chat/completions"
HOST = b"Host: localhost"
LENGTH = b"Content-Length: 2"
SMUGGLED = request(chat(text="smuggled"), headers=[KEY])
"""What stands behind each ambiguous request: with a key, so that only its framing keeps it out."""


def lines(
    *texts: bytes, body: bytes = b"", first: bytes = b"POST /v1/chat/completions HTTP/1.1"
) -> bytes:
    """Return a request with a key whose head has these lines as they are."""
    return b"\r\n".join([first, b"%b: %b" % KEY, *texts]) + b"\r\n\r\n" + body


def sized(length: bytes, body: bytes = b"{}") -> bytes:
    """Return a request whose Content-Length line is *length*."""
    return lines(HOST, length, body=body)


def coded(*codings: bytes, body: bytes = b"0\r\n\r\n") -> bytes:
    """Return a request with these Transfer-Encoding lines."""
    return lines(HOST, *codings, body=body)


def chunks(body: bytes) -> bytes:
    """Return a chunked request whose body is *body* as it is."""
    return coded(b"Transfer-Encoding: chunked", body=body)


def started(first: bytes, *texts: bytes, body: bytes = b"") -> bytes:
    """Return a request that begins with the line *first*."""
    return lines(*(texts or (HOST,)), first=first, body=body)


UPGRADE = (b"Connection: Upgrade", b"Upgrade: websocket")
H2C = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
INNER = request(chat(text="inner"), headers=[KEY])
LENGTHS = {
    "with +": b"Content-Length: +2",
    "with -": b"Content-Length: -2",
    "-0": b"Content-Length: -0",
    "0x2": b"Content-Length: 0x2",
    "hexadecimal": b"Content-Length: 2h",
    "2.0": b"Content-Length: 2.0",
    "2e0": b"Content-Length: 2e0",
    "1_0": b"Content-Length: 1_0",
    "2,2": b"Content-Length: 2,2",
    "2, 2": b"Content-Length: 2, 2",
    "2 2": b"Content-Length: 2 2",
    "2;2": b"Content-Length: 2;2",
    "empty": b"Content-Length:",
    "a blank": b"Content-Length: ",
    "quoted": b'Content-Length: "2"',
    "20 digits": b"Content-Length: " + b"9" * 20,
    "2^64 + 2": b"Content-Length: 18446744073709551618",
    "full-width digit": "Content-Length: ２".encode(),
    "arabic digit": "Content-Length: ٢".encode(),
    "vertical tab": b"Content-Length: \x0b2",
    "form feed": b"Content-Length: 2\x0c",
    "NUL behind": b"Content-Length: 2\x00",
    "folded": b"Content-Length:\r\n 2",
    "space before the colon": b"Content-Length : 2",
    "tab before the colon": b"Content-Length\t: 2",
    "control in the name": b"Content\x01-Length: 2",
    "NUL in the name": b"Content-Length\x00: 2",
    "same twice": b"Content-Length: 2\r\nContent-Length: 2",
    "same twice, other case": b"Content-Length: 2\r\ncontent-length: 2",
    "two": b"Content-Length: 2\r\nContent-Length: 0",
    "two, apart": b"Content-Length: 0\r\nX: y\r\nContent-Length: 2",
}
CODINGS = {
    "chunked, chunked": [b"Transfer-Encoding: chunked, chunked"],
    "chunked, identity": [b"Transfer-Encoding: chunked, identity"],
    "identity, chunked": [b"Transfer-Encoding: identity, chunked"],
    "gzip, chunked": [b"Transfer-Encoding: gzip, chunked"],
    "chunked, gzip": [b"Transfer-Encoding: chunked, gzip"],
    "a comma before": [b"Transfer-Encoding: ,chunked"],
    "a comma behind": [b"Transfer-Encoding: chunked,"],
    "xchunked": [b"Transfer-Encoding: xchunked"],
    "chunkedx": [b"Transfer-Encoding: chunkedx"],
    "x chunked": [b"Transfer-Encoding: x chunked"],
    "chunk": [b"Transfer-Encoding: chunk"],
    "identity": [b"Transfer-Encoding: identity"],
    "quoted": [b'Transfer-Encoding: "chunked"'],
    "a parameter": [b"Transfer-Encoding: chunked;a=b"],
    "empty": [b"Transfer-Encoding:"],
    "vertical tab before": [b"Transfer-Encoding: \x0bchunked"],
    "vertical tab behind": [b"Transfer-Encoding: chunked\x0b"],
    "form feed behind": [b"Transfer-Encoding: chunked\x0c"],
    "tab behind": [b"Transfer-Encoding: chunked\t"],
    "blanks around": [b"Transfer-Encoding:  \t chunked \t "],
    "NUL behind": [b"Transfer-Encoding: chunked\x00"],
    "bare CR behind": [b"Transfer-Encoding: chunked\r"],
    "NBSP before": [b"Transfer-Encoding: \xa0chunked"],
    "folded": [b"Transfer-Encoding:\r\n chunked"],
    "folded behind": [b"Transfer-Encoding: chunked\r\n , identity"],
    "folded with a tab": [b"Transfer-Encoding:\r\n\tchunked"],
    "space before the colon": [b"Transfer-Encoding : chunked"],
    "tab before the colon": [b"Transfer-Encoding\t: chunked"],
    "space before the name": [b"X: y\r\n Transfer-Encoding: chunked"],
    "bare LF before": [b"X: y\nTransfer-Encoding: chunked"],
    "bare CR before": [b"X: y\rTransfer-Encoding: chunked"],
    "twice": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    "twice, one unheard of": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: cow"],
    "twice, identity first": [b"Transfer-Encoding: identity", b"Transfer-Encoding: chunked"],
    "with a length": [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    "behind a length": [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
    "with a length of none": [b"Content-Length: 0", b"Transfer-Encoding: chunked"],
    "unheard of, with a length": [b"Content-Length: 5", b"Transfer-Encoding: xchunked"],
    "identity, with a length": [b"Content-Length: 5", b"Transfer-Encoding: identity"],
    "hidden in Connection": [
        b"Connection: Content-Length",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
    ],
}
BODIES = {
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "no hexadecimal": b"zz\r\n{}\r\n0\r\n\r\n",
    "0x": b"0x2\r\n{}\r\n0\r\n\r\n",
    "+": b"+2\r\n{}\r\n0\r\n\r\n",
    "-": b"-2\r\n{}\r\n0\r\n\r\n",
    "_": b"0_2\r\n{}\r\n0\r\n\r\n",
    "space before": b" 2\r\n{}\r\n0\r\n\r\n",
    "space behind": b"2 \r\n{}\r\n0\r\n\r\n",
    "tab behind": b"2\t\r\n{}\r\n0\r\n\r\n",
    "NUL behind": b"2\x00\r\n{}\r\n0\r\n\r\n",
    "h": b"2h\r\n{}\r\n0\r\n\r\n",
    "overflow of 64 bits": b"10000000000000002\r\n{}\r\n0\r\n\r\n",
    "bare LF behind the size": b"2\n{}\r\n0\r\n\r\n",
    "bare CR behind the size": b"2\r{}\r\n0\r\n\r\n",
    "bare LF behind the data": b"2\r\n{}\n0\r\n\r\n",
    "bare CR behind the data": b"2\r\n{}\r0\r\n\r\n",
    "nothing behind the data": b"2\r\n{}0\r\n\r\n",
    "more than it says": b"2\r\n{}xx\r\n0\r\n\r\n",
    "extension with bare LF": b"2;\nx\r\n{}\r\n0\r\n\r\n",
    "extension with bare CR": b"2;\rx\r\n{}\r\n0\r\n\r\n",
    "extension with CR and more": b"2;a\rb\r\n{}\r\n0\r\n\r\n",
    "extension in quotes with LF": b'2;a="\n"\r\n{}\r\n0\r\n\r\n',
    "last chunk with bare LF": b"2\r\n{}\r\n0\n\r\n",
    "end with bare LF": b"2\r\n{}\r\n0\r\n\n",
    "end with bare CR": b"2\r\n{}\r\n0\r\n\r\r\n",
    "trailer with bare LF": b"2\r\n{}\r\n0\r\nX: y\nZ: z\r\n\r\n",
    "trailer that is none": b"2\r\n{}\r\n0\r\nno colon\r\n\r\n",
    "trailer with a length": b"2\r\n{}\r\n0\r\nContent-Length: 5\r\n\r\n",
    "trailer with a coding": b"2\r\n{}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer folded": b"2\r\n{}\r\n0\r\n X: y\r\n\r\n",
}
HEADS = {
    # in which lines
    "bare LF": lines(HOST, LENGTH).replace(b"\r\n", b"\n") + b"{}",
    "bare LF, one": lines(HOST, b"X: y\nZ: z", LENGTH, body=b"{}"),
    "bare LF at the end": lines(HOST, LENGTH)[:-2] + b"\n{}",
    "bare CR": lines(HOST, LENGTH).replace(b"\r\n", b"\r") + b"{}",
    "bare CR, one": lines(HOST, b"X: y\rZ: z", LENGTH, body=b"{}"),
    "CR CR LF": lines(HOST, b"X: y\r", LENGTH, body=b"{}"),
    "LF CR": lines(HOST, b"X: y\n\rZ: z", LENGTH, body=b"{}"),
    "folded": lines(HOST, b"X: y\r\n z", LENGTH, body=b"{}"),
    "folded with a tab": lines(HOST, b"X: y\r\n\tz", LENGTH, body=b"{}"),
    "folded, nothing in it": lines(HOST, b"X: y\r\n ", LENGTH, body=b"{}"),
    "folded first line": started(b"POST /v1/chat/completions HTTP/1.1\r\n X: y", HOST, LENGTH, body=b"{}"),
    # which names and values
    "space before the colon": lines(HOST, b"X : y", LENGTH, body=b"{}"),
    "no colon": lines(HOST, b"X", LENGTH, body=b"{}"),
    "no name": lines(HOST, b": y", LENGTH, body=b"{}"),
    "space in a name": lines(HOST, b"X Y: z", LENGTH, body=b"{}"),
    "parentheses in a name": lines(HOST, b"X(Y): z", LENGTH, body=b"{}"),
    "obs-text in a name": lines(HOST, b"X\xe9: z", LENGTH, body=b"{}"),
    "NUL in a name": lines(HOST, b"X\x00: z", LENGTH, body=b"{}"),
    **{
        f"0x{byte:02x} in a value": lines(HOST, b"X: a%cb" % byte, LENGTH, body=b"{}")
        for byte in (0x00, 0x01, 0x08, 0x0B, 0x0C, 0x1B, 0x1F, 0x7F)
    },
    # what for
    "absolute, foreign authority": started(b"POST http://evil.example/v1/chat/completions HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "absolute, a user": started(b"POST http://localhost@evil.example/v1/chat/completions HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "absolute, foreign scheme": started(b"POST file://localhost/v1/chat/completions HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "authority": started(b"POST localhost:80 HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "*": started(b"POST * HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "OPTIONS *": started(b"OPTIONS * HTTP/1.1", HOST),
    "CONNECT": started(b"CONNECT localhost:80 HTTP/1.1", HOST),
    "CONNECT with a body": started(b"CONNECT localhost:80 HTTP/1.1", HOST, b"Content-Length: %d" % len(INNER), body=INNER),
    "CONNECT, a path": started(b"CONNECT /v1/chat/completions HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "upgrade with a body": lines(HOST, *UPGRADE, b"Content-Length: %d" % len(INNER), body=INNER),
    "upgrade in chunks": lines(HOST, *UPGRADE, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "upgrade without a body": lines(HOST, *UPGRADE),
    "upgrade to either": lines(HOST, UPGRADE[0], b"Upgrade: h2c, websocket", LENGTH, body=b"{}"),
    "upgrade twice": lines(HOST, *H2C, UPGRADE[1], b"Content-Length: %d" % len(INNER), body=INNER),
    "upgrade of a GET with a body": started(b"GET /v1/models HTTP/1.1", HOST, *UPGRADE, LENGTH, body=b"{}"),
    # in which protocol
    "PRI": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "HTTP/2.0": started(b"POST /v1/chat/completions HTTP/2.0", HOST, LENGTH, body=b"{}"),
    "HTTP/1.2": started(b"POST /v1/chat/completions HTTP/1.2", HOST, LENGTH, body=b"{}"),
    "HTTP/0.9": b"GET /v1/chat/completions\r\n\r\n",
    "HTTP/0.9, said": started(b"POST /v1/chat/completions HTTP/0.9", HOST, LENGTH, body=b"{}"),
    "HTTP/01.1": started(b"POST /v1/chat/completions HTTP/01.1", HOST, LENGTH, body=b"{}"),
    "HTTP/1": started(b"POST /v1/chat/completions HTTP/1", HOST, LENGTH, body=b"{}"),
    "HTTP/1.10": started(b"POST /v1/chat/completions HTTP/1.10", HOST, LENGTH, body=b"{}"),
    "http/1.1": started(b"POST /v1/chat/completions http/1.1", HOST, LENGTH, body=b"{}"),
    "HTTPS/1.1": started(b"POST /v1/chat/completions HTTPS/1.1", HOST, LENGTH, body=b"{}"),
    "something behind the version": started(b"POST /v1/chat/completions HTTP/1.1 x", HOST, LENGTH, body=b"{}"),
    "tab for a space": started(b"POST\t/v1/chat/completions HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "space first": started(b" POST /v1/chat/completions HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "method that is none": started(b"PO(ST /v1/chat/completions HTTP/1.1", HOST, LENGTH, body=b"{}"),
    "HTTP/1.0 in chunks": started(b"POST /v1/chat/completions HTTP/1.0", HOST, b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "HTTP/1.0 in chunks, kept": started(b"POST /v1/chat/completions HTTP/1.0", HOST, b"Connection: keep-alive", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    # to whom
    "no Host": lines(LENGTH, body=b"{}"),
    "empty Host": lines(b"Host:", LENGTH, body=b"{}"),
    "two Hosts": lines(HOST, HOST, LENGTH, body=b"{}"),
    "two other Hosts": lines(HOST, b"Host: evil.example", LENGTH, body=b"{}"),
    "two Hosts in one": lines(b"Host: localhost, evil.example", LENGTH, body=b"{}"),
    "Host with a path": lines(b"Host: localhost/x", LENGTH, body=b"{}"),
    "Host with a query": lines(b"Host: localhost?x", LENGTH, body=b"{}"),
    "Host with a fragment": lines(b"Host: localhost#x", LENGTH, body=b"{}"),
    "Host with a user": lines(b"Host: evil@localhost", LENGTH, body=b"{}"),
    "Host with a space": lines(b"Host: local host", LENGTH, body=b"{}"),
    "Host with a port that is none": lines(b"Host: localhost:80x", LENGTH, body=b"{}"),
    "Host folded": lines(b"Host:\r\n localhost", LENGTH, body=b"{}"),
    "Host with NUL": lines(b"Host: local\x00host", LENGTH, body=b"{}"),
}  # fmt: skip
AMBIGUOUS: dict[str, bytes] = {
    **{f"length: {name}": sized(line) for name, line in LENGTHS.items()},
    **{f"coding: {name}": coded(*found) for name, found in CODINGS.items()},
    **{f"chunk: {name}": chunks(body) for name, body in BODIES.items()},
    **{f"head: {name}": text for name, text in HEADS.items()},
}


def guarded(upstream: Upstream) -> str:
    """Return a routes file with one key and one upstream."""
    return f"""
        [upstreams.up]
        base_url = "{upstream.url}"
        credential = "sk-upstream-secret"
        [routes]
        "*" = {{ upstream = "up", model = "*" }}
        [keys]
        team = "{KEY_TEXT}"
        """


@pytest.fixture
async def gate(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy that wants a key."""
    async with serving(guarded(upstream)) as running:
        yield running


async def refused(port: int, packets: Iterable[bytes]) -> Answer:
    """Send *packets* and expect one refusal of what they hold, then the end of the connection."""
    async with await Client.connect(port) as client:
        for packet in packets:
            if client.writer.transport.is_closing():
                break
            await client.send(packet)
            await asyncio.sleep(0)  # else they would go out as one
        got = await client.answer(seconds=8)
        assert got.status == 400, got.raw
        assert got.whole
        assert got.code in ("bad_request", "invalid_json")
        assert got.value(b"connection") == b"close"
        assert await client.closed() == b""
        return got


def cuts(text: bytes) -> list[int]:
    """Return where to cut *text*: all around what ends lines, and here and there."""
    marks = [at for at, byte in enumerate(text) if byte in b"\r\n"]
    near = {at + by for at in marks[-6:] for by in (0, 1)}
    return sorted(at for at in near | set(range(1, len(text), 23)) if 0 < at < len(text))


@pytest.mark.parametrize("form", AMBIGUOUS)
async def test_ambiguous(gate: Proxy, upstream: Upstream, form: str) -> None:
    """What could be read in two ways is refused, and so is whatever stands behind it; nothing goes up."""
    text = AMBIGUOUS[form]
    await refused(gate.port, [text + SMUGGLED])
    await refused(gate.port, [text, SMUGGLED])
    assert upstream.requests == []
    records = gate.records()
    assert {(record["status"], record["outcome"]) for record in records} <= {(400, "client_error")}


@pytest.mark.parametrize("form", AMBIGUOUS)
async def test_ambiguous_in_pieces(gate: Proxy, upstream: Upstream, form: str) -> None:
    """However it is cut into packets, what is ambiguous stays so."""
    whole = AMBIGUOUS[form] + SMUGGLED
    for at in cuts(AMBIGUOUS[form]):
        await refused(gate.port, [whole[:at], whole[at:]])
    await refused(gate.port, [whole[at : at + 1] for at in range(len(whole))])
    assert upstream.requests == []


# What has one reading only


ONE = chat(text="one")
SIZE = b"%x" % len(ONE)
WHOLE = {
    "zeros before a length": sized(b"Content-Length: 00%d" % len(ONE), ONE),
    "tab before a length": sized(b"Content-Length:\t%d" % len(ONE), ONE),
    "blanks around a length": sized(b"Content-Length:  %d \t" % len(ONE), ONE),
    "CHUNKED": coded(b"TRANSFER-ENCODING: CHUNKED", body=chunk(ONE) + b"0\r\n\r\n"),
    "zeros before a chunk size": chunks(b"000" + chunk(ONE) + b"000\r\n\r\n"),
    "a hundred zeros before a chunk size": chunks(b"0" * 100 + chunk(ONE) + b"0\r\n\r\n"),
    "capitals in a chunk size": chunks(SIZE.upper() + b"\r\n" + ONE + b"\r\n0\r\n\r\n"),
    "extensions": chunks(SIZE + b';a=b;c="d;e"\r\n' + ONE + b"\r\n0;f\r\n\r\n"),
    "trailers": chunks(chunk(ONE) + b"0\r\nX-Trailer: y\r\nX-Other: z\r\n\r\n"),
    "absolute, ours": started(b"POST http://localhost/v1/chat/completions HTTP/1.1", HOST, b"Content-Length: %d" % len(ONE), body=ONE),
    "two spaces": started(b"POST  /v1/chat/completions HTTP/1.1", HOST, b"Content-Length: %d" % len(ONE), body=ONE),
    "empty lines before": b"\r\n\r\n" + sized(b"Content-Length: %d" % len(ONE), ONE),
    "empty value": lines(HOST, b"X:", b"Content-Length: %d" % len(ONE), body=ONE),
    "a request for a body": sized(b"Content-Length: %d" % len(INNER), INNER),
    "h2c": lines(HOST, *H2C, b"Content-Length: %d" % len(ONE), body=ONE),
    "h2c in chunks": lines(HOST, *H2C, b"Transfer-Encoding: chunked", body=chunk(ONE) + b"0\r\n\r\n"),
    "TLS/1.0": lines(HOST, H2C[0], b"Upgrade: TLS/1.0, h2c", b"Content-Length: %d" % len(ONE), body=ONE),
    "h2c, not in Connection": lines(HOST, H2C[1], b"Content-Length: %d" % len(ONE), body=ONE),
}  # fmt: skip


@pytest.mark.parametrize("form", WHOLE)
async def test_one_reading(gate: Proxy, upstream: Upstream, form: str) -> None:
    """What has one reading is read so, in one packet or many; the length that goes up is one, and ours."""
    text = WHOLE[form]
    for packets in ([text], [text[at : at + 1] for at in range(len(text))]):
        upstream.requests.clear()
        async with await Client.connect(gate.port) as client:
            for packet in packets:
                await client.send(packet)
                await asyncio.sleep(0)
            got = await client.answer()
        if form == "a request for a body":
            assert (got.status, got.code) == (400, "invalid_json")
            assert upstream.requests == []
            continue
        assert got.status == 200
        (seen,) = upstream.requests
        assert seen.body == ONE
        assert seen.values(b"content-length") == [b"%d" % len(ONE)]
        assert seen.values(b"transfer-encoding") == []
        assert seen.values(b"host") == [upstream.authority.encode()]


@pytest.mark.parametrize("form", [name for name in WHOLE if name != "a request for a body"])
async def test_one_reading_and_another(gate: Proxy, upstream: Upstream, form: str) -> None:
    """Behind a request with one reading the next one is another request, or the connection ends."""
    async with await Client.connect(gate.port) as client:
        await client.send(WHOLE[form] + request(chat(text="two"), headers=[KEY]))
        first = await client.answer()
        assert first.status == 200
        if first.value(b"connection") == b"close":
            assert await client.closed() == b""
            assert [seen.body for seen in upstream.requests] == [ONE]
        else:
            assert (await client.answer()).status == 200
            assert [seen.body for seen in upstream.requests] == [ONE, chat(text="two")]


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize(
    ("text", "status"),
    [
        (started(b"GET /v1/chat/completions HTTP/1.1", HOST, *UPGRADE), 426),
        (started(b"GET /v1/models HTTP/1.1", HOST, *UPGRADE), 404),
        (started(b"GET /v1/models HTTP/1.1", HOST, *H2C), 200),
        (lines(HOST, *H2C, b"Content-Length: %d" % len(INNER), body=INNER), 400),
    ],
    ids=["426", "404", "200", "400"],
)
async def test_behind_an_upgrade(
    gate: Proxy, upstream: Upstream, text: bytes, status: int, apart: bool
) -> None:
    """What stands behind an Upgrade that was not taken is no request, in the same packet or in others."""
    async with await Client.connect(gate.port) as client:
        for packet in [text, SMUGGLED] if apart else [text + SMUGGLED]:
            await client.send(packet)
            await asyncio.sleep(0)
        got = await client.answer()
        assert (got.status, got.whole) == (status, True)
        assert got.value(b"connection") == b"close"
        assert await client.closed() == b""
    await gate.record()
    assert upstream.requests == []
    assert len(gate.records()) == 1


@pytest.mark.parametrize(
    "text",
    [
        chunks(b"100000002\r\n{}\r\n0\r\n\r\n"),
        chunks(b"ffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
        sized(b"Content-Length: 60000000"),
    ],
    ids=["a chunk of 4 GiB", "a chunk of 16 EiB", "a length of 60 MB"],
)
async def test_more_to_come(gate: Proxy, upstream: Upstream, text: bytes) -> None:
    """What stands in a body that is not over is its body, however much it looks like a request."""
    async with await Client.connect(gate.port) as client:
        await client.send(text + SMUGGLED)
        with pytest.raises(TimeoutError):
            await client.answer(seconds=0.3)
    record = await gate.record()
    assert (record["outcome"], record["attempts"]) == ("client_gone", [])
    assert upstream.requests == []


async def test_more_than_there_is(gate: Proxy, upstream: Upstream) -> None:
    """A length over every limit is refused, and what stands behind it is no request."""
    async with await Client.connect(gate.port) as client:
        await client.send(sized(b"Content-Length: 9223372036854775808") + SMUGGLED)
        got = await client.answer()
        assert got.status in (400, 413)
        assert got.value(b"connection") == b"close"
        assert await client.closed(10) == b""
    assert upstream.requests == []


async def test_pipelined(gate: Proxy, upstream: Upstream) -> None:
    """Twenty requests of all kinds that were sent without waiting are answered in their order."""

    async def echo(conn: Conn, seen: Received) -> None:
        await asyncio.sleep(0.02 if len(upstream.requests) % 2 else 0.0)
        if b"stream" in seen.body:
            await stream(event(seen.body), DONE)(conn, seen)
        else:
            await answer(body=seen.body)(conn, seen)

    upstream.will(echo)
    kinds: list[tuple[bytes, int, bytes | None]] = []
    for number in range(4):
        plain, streamed = chat(text=f"plain {number}"), chat(text=f"s {number}", stream=True)
        kinds += [
            (request(plain, headers=[KEY]), 200, plain),
            (request(streamed, headers=[KEY]), 200, event(streamed) + DONE),
            (request(path="/health", method="GET"), 200, b'{"status":"ok"}'),
            (request(plain), 401, None),
            (request(path="/nowhere", method="GET", headers=[KEY]), 404, None),
        ]
    async with await Client.connect(gate.port) as client:
        await client.send(b"".join(sent for sent, _, _ in kinds))
        for _, status, body in kinds:
            got = await client.answer()
            assert got.status == status
            assert body is None or got.body == body
    assert len(kinds) == 20
    assert len(upstream.requests) == 8


# Answers


CANARY = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\ncanary"


def _sized(body: bytes, length: int, more: bytes = b"") -> bytes:
    return head(200, [JSON, (b"Content-Length", b"%d" % length)]) + body + more


ANSWERS: dict[str, Callable[[bytes], bytes]] = {
    "two answers": lambda n: _sized(n, len(n), CANARY),
    "two answers, the first in chunks": lambda n: head(200, [JSON, CHUNKED]) + chunk(n) + b"0\r\n\r\n" + CANARY,
    "two heads": lambda n: head(200, [JSON]) + CANARY,
    "two heads, the first with a length": lambda n: _sized(b"", 0, CANARY),
    "bytes behind": lambda n: _sized(n, len(n), b"canary"),
    "a line behind": lambda n: _sized(n, len(n), b"\r\n"),
    "a length too short": lambda n: _sized(n + b"canary", len(n)),
    "a length too long": lambda n: _sized(n, len(n) + 100),
    "a length too long, and an answer": lambda n: _sized(n, len(n) + 10, CANARY),
    "length and chunks": lambda n: head(200, [(b"Content-Length", b"%d" % len(n)), CHUNKED]) + n + CANARY,
    "chunks and length": lambda n: head(200, [CHUNKED, (b"Content-Length", b"5")]) + b"0\r\n\r\n" + CANARY,
    "two lengths": lambda n: head(200, [(b"Content-Length", b"%d" % len(n)), (b"Content-Length", b"0")]) + n + CANARY,
    "one length twice": lambda n: head(200, [(b"Content-Length", b"%d" % len(n))] * 2) + n + CANARY,
    "a list of lengths": lambda n: head(200, [(b"Content-Length", b"%d, 0" % len(n))]) + n + CANARY,
    "a signed length": lambda n: head(200, [(b"Content-Length", b"+%d" % len(n))]) + n + CANARY,
    "an unknown coding": lambda n: head(200, [(b"Transfer-Encoding", b"xchunked")]) + chunk(n) + b"0\r\n\r\n" + CANARY,
    "chunked twice": lambda n: head(200, [CHUNKED, CHUNKED]) + chunk(n) + b"0\r\n\r\n" + CANARY,
    "a chunk too long": lambda n: head(200, [JSON, CHUNKED]) + b"1\r\n" + n + b"\r\n0\r\n\r\n" + CANARY,
    "a chunk size that is none": lambda n: head(200, [JSON, CHUNKED]) + chunk(n) + b"zz\r\n" + CANARY,
    "chunks without end": lambda n: head(200, [JSON, CHUNKED]) + chunk(n) + CANARY,
    "trailers": lambda n: head(200, [JSON, CHUNKED]) + chunk(n) + b"0\r\nX-Canary: canary\r\n\r\n",
    "trailers and an answer": lambda n: head(200, [JSON, CHUNKED]) + chunk(n) + b"0\r\nX: y\r\n\r\n" + CANARY,
    "a flood of 103": lambda n: head(103, [(b"X-Canary", b"canary")]) * 300 + _sized(n, len(n)),
    "a flood of 100 without end": lambda n: head(100) * 20_000,
    "103, then two answers": lambda n: head(103, [(b"X-Canary", b"canary")]) + _sized(n, len(n), CANARY),
    "100 behind": lambda n: _sized(n, len(n), head(100)),
    "CR in a value": lambda n: b"HTTP/1.1 200 OK\r\nX: y\rX-Canary: canary\r\nContent-Length: 2\r\n\r\n{}",
    "LF in a value": lambda n: b"HTTP/1.1 200 OK\r\nX: y\n\nX-Canary: canary\r\nContent-Length: 2\r\n\r\n{}",
    "NUL in a value": lambda n: b"HTTP/1.1 200 OK\r\nX: y\0canary\r\nContent-Length: 2\r\n\r\n{}",
    "CR in the reason": lambda n: b"HTTP/1.1 200 OK\rX-Canary: canary\r\nContent-Length: 2\r\n\r\n{}",
    "NUL in the reason": lambda n: b"HTTP/1.1 200 O\0canary\r\nContent-Length: 2\r\n\r\n{}",
    "folded": lambda n: b"HTTP/1.1 200 OK\r\nX: y\r\n canary\r\nContent-Length: 2\r\n\r\n{}",
    "204 with a body": lambda n: head(204, [(b"Content-Length", b"6")]) + b"canary",
    "204 in chunks": lambda n: head(204, [CHUNKED]) + chunk(b"canary") + b"0\r\n\r\n",
    "304 with a body": lambda n: head(304, [(b"Content-Length", b"6")]) + b"canary",
    "304 and an answer": lambda n: head(304) + CANARY,
    "101": lambda n: head(101, [(b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")]) + b"canary",
    "a stream, and an answer": lambda n: head(200, [SSE, CHUNKED]) + chunk(event(n) + DONE) + b"0\r\n\r\n" + CANARY,
    "a cut stream, and an answer": lambda n: head(200, [SSE, CHUNKED]) + chunk(event(n)) + CANARY,
}  # fmt: skip


LIE = chat(text="nonce-0123456789abcdef lie")


@asynccontextmanager
async def impatient(upstream: Upstream) -> AsyncIterator[Proxy]:
    toml = guarded(upstream).replace(
        "[routes]", 'timeout = { first_byte = "2s", idle = "300ms" }\n[routes]'
    )
    async with serving(toml) as running:
        yield running


@pytest.mark.parametrize("form", ANSWERS)
async def test_answers(upstream: Upstream, form: str) -> None:
    """Whatever an upstream says behind, between or instead of answers reaches nobody's next request."""

    async def lie(conn: Conn, seen: Received) -> None:
        nonce = seen.body[seen.body.index(b"nonce-") :][:22]
        if b"lie" in seen.body:
            await conn.send(ANSWERS[form](nonce))
        else:
            await answer(body=nonce)(conn, seen)

    upstream.will(lie)
    async with impatient(upstream) as proxy:

        async def ask_often() -> None:
            async with await Client.connect(proxy.port) as client:
                for turn in range(8):
                    nonce = f"nonce-{secrets.token_hex(8)}"
                    lies = turn in (2, 5)
                    said = f"{nonce} lie" if lies else nonce
                    if client.reader.at_eof():
                        client = await Client.connect(proxy.port)
                    await client.send(request(chat(text=said), headers=[KEY]))
                    got = await client.answer()
                    shown = got.raw if not got.chunks else got.head + got.body
                    assert b"x-canary" not in shown.lower()
                    if not lies:
                        assert (got.status, got.body) == (200, nonce.encode()), got.raw
                    elif got.whole and got.status == 200:
                        assert b"nonce-" not in got.body.replace(nonce.encode(), b"")
                    if not got.whole or got.value(b"connection") == b"close":
                        client.close()
                        client = await Client.connect(proxy.port)
                client.close()

        await asyncio.gather(ask_often(), ask_often())
        await proxy.record(16)
        seen = [record["outcome"] for record in proxy.records() if record["bytes_in"] < len(LIE)]
        assert seen == ["ok"] * 12


CUT_OFF = [name for name in ANSWERS if name not in ("two heads", "a length too long, and an answer", "CR in a value", "LF in a value")]  # fmt: skip


@pytest.mark.parametrize("form", CUT_OFF)
async def test_canary(upstream: Upstream, form: str) -> None:
    """What stands outside the frame of an answer is not even shown to who asked for it."""
    nonce = b"nonce-0123456789abcdef"
    upstream.will(raw(ANSWERS[form](nonce), then="hang"))
    async with impatient(upstream) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat(), headers=[KEY]))
        got = await client.answer()
        assert b"canary" not in got.raw.lower()


@pytest.mark.parametrize("late", [0.0, 0.05])
async def test_answer_to_nobody(gate: Proxy, upstream: Upstream, late: float) -> None:
    """An answer that comes on an idle connection, sooner or later, is the answer to nothing."""

    async def twice(conn: Conn, seen: Received) -> None:
        await answer(body=seen.body)(conn, seen)
        await asyncio.sleep(late)
        await conn.send(CANARY)

    upstream.will(twice)
    async with await Client.connect(gate.port) as client:
        for number in range(8):
            body = chat(text=f"nonce {number}")
            await client.send(request(body, headers=[KEY]))
            got = await client.answer()
            assert (got.status, got.body) == (200, body)
            async with asyncio.timeout(5):
                await upstream.connections[-1].gone.wait()
    assert len(upstream.connections) == 8


# Where none of this would hold


def test_pure_python_parser_is_refused() -> None:
    """Without its C parser aiohttp lets two requests pass for one: then there is no start."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), "AIOHTTP_NO_EXTENSIONS": "1"}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "routes.toml")
        file.write_text('[server]\nlisten = "127.0.0.1:0"\n[routes]\n"m" = "sandbox/echo"\n')
        done = subprocess.run(
            [sys.executable, "-m", "proxy", "serve", "-c", str(file)],
            env=env, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert "C parser" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("version", ["3.14.4", "3.9.5", "3.13.99", "2.3.10"])
def test_old_aiohttp_is_refused(
    version: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Below the version that is known to be strict there is no start."""
    assert lifecycle.AIOHTTP_FLOOR >= (3, 14, 5)
    monkeypatch.setattr(aiohttp, "__version__", version)
    file = tmp_path / "routes.toml"
    file.write_text('[server]\nlisten = "127.0.0.1:0"\n[routes]\n"m" = "sandbox/echo"\n')
    assert main(["serve", "-c", str(file)]) == 1
    assert f"aiohttp {version} is too old" in capsys.readouterr().err
