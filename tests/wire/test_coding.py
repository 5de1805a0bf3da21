"""Packed request bodies: unpacked within bounds, and sent up plain."""

import asyncio
import gzip
import random
import sys
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.admission import Gate
from proxy.errors import ProxyError
from proxy.headers import Headers
from proxy.wire.coding import FREE_BYTES, PIECE_BYTES, RATIO, Unpacker, unpacker_of
from tests.harness.client import Client, call, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import Upstream, answer, chunk

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NOISE = random.Random(5)
TEXT = chat(text="A text like any other, which is packed well. " * 200, numbers=[*range(500)])
CLIENT = (b"Content-Encoding", b"gzip")


def raw_deflate(data: bytes) -> bytes:
    """Pack *data* as some do that say `deflate`: without zlib's head."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACK: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "gzip": (b"gzip", gzip.compress),
    "GZIP": (b"GZIP", gzip.compress),
    "x-gzip": (b"x-gzip", gzip.compress),
    "with identity": (b"identity , gzip", gzip.compress),
    "deflate": (b"deflate", zlib.compress),
    "raw deflate": (b"deflate", raw_deflate),
    "zstd": (b"zstd", zstd.compress),
}


def unpacked(coding: bytes, data: bytes, size: int = 2**20) -> bytes:
    """Unpack *data*, in pieces of *size*; each piece that comes out is small."""
    unpacker = unpacker_of(Headers([(b"content-encoding", coding)]))
    assert unpacker is not None
    told = b""
    for at in range(0, len(data), size):
        for piece in unpacker.feed(data[at : at + size]):
            assert 0 < len(piece) <= PIECE_BYTES
            told += piece
    unpacker.end()
    return told


@pytest.mark.parametrize("how", PACK.values(), ids=list(PACK))
@pytest.mark.parametrize("size", [1, 7, 2**20])
def test_unpacks(how: tuple[bytes, Callable[[bytes], bytes]], size: int) -> None:
    """What was packed comes out again, wherever the pieces break, and however long it is."""
    coding, pack = how
    texts = [b"{}", TEXT]
    if size > 7:
        texts += [TEXT * 50, NOISE.randbytes(300_000)]
    for text in texts:
        assert unpacked(coding, pack(text), size) == text


@pytest.mark.parametrize("how", PACK.values(), ids=list(PACK))
def test_broken(how: tuple[bytes, Callable[[bytes], bytes]]) -> None:
    """Cut anywhere, followed by anything, or changed at its beginning, it is no body."""
    coding, pack = how
    packed = pack(TEXT)
    wrong = [packed[:cut] for cut in (0, 1, 2, 5, len(packed) // 2, len(packed) - 1)]
    wrong += [packed + b"\0", packed + packed, b"\xff" * 3 + packed[3:]]
    for data in wrong:
        for size in (1, 2**20):
            with pytest.raises(ProxyError) as caught:
                unpacked(coding, data, size)
            assert caught.value.kind.status == 400


def test_no_coding() -> None:
    """Where none is said, or one that changes nothing, nothing is unpacked."""
    for value in (b"", b"identity", b"Identity, identity", b" , "):
        assert unpacker_of(Headers([(b"content-encoding", value)])) is None
    assert unpacker_of(Headers([(b"content-type", b"gzip")])) is None


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd"])
def test_ratio(coding: str) -> None:
    """A little may unpack to a mebibyte, whatever its ratio; beyond it to a hundred times its size."""
    pack = PACK[coding][1]
    assert unpacked(coding.encode(), pack(bytes(FREE_BYTES))) == bytes(FREE_BYTES)
    unpacker, bomb = Unpacker(coding), pack(bytes(20 * FREE_BYTES))
    told = 0
    with pytest.raises(ProxyError) as caught:
        for piece in unpacker.feed(bomb):
            told += len(piece)
    assert caught.value.kind.status == 413
    assert told <= max(FREE_BYTES, RATIO * len(bomb))
    text = b"".join(NOISE.randbytes(1000) + bytes(60_000) for _ in range(60))  # to a fiftieth
    assert unpacked(coding.encode(), pack(text)) == text


def test_window() -> None:
    """A stream of zstd that looks back over more than 8 MiB would need as much memory: it is refused."""
    text = NOISE.randbytes(100_000)
    for log, works in ((23, True), (24, False), (27, False)):
        options: dict[int, int] = {
            zstd.CompressionParameter.window_log: log,
            zstd.CompressionParameter.content_size_flag: 0,
        }
        packer = zstd.ZstdCompressor(options=options)
        packed = packer.compress(text[:10]) + packer.compress(text[10:]) + packer.flush()
        if works:
            assert unpacked(b"zstd", packed) == text
        else:
            with pytest.raises(ProxyError) as caught:
                unpacked(b"zstd", packed)
            assert caught.value.kind.status == 400


def test_without_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra a body in zstd is refused, and the message names what is missing."""
    for module in ("backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ProxyError) as caught:
        unpacker_of(Headers([(b"content-encoding", b"zstd")]))
    assert (caught.value.kind.status, caught.value.kind.code) == (415, "unsupported_encoding")
    assert "`zstd`" in caught.value.message
    assert unpacker_of(Headers([(b"content-encoding", b"gzip")])) is not None


# At the wire


def gate_of(proxy: Proxy) -> Gate:
    assert proxy.running is not None
    return proxy.running.gate


def routes(upstream: Upstream, server: str = "") -> str:
    return f"""
[server]
{server}
[upstreams.up]
base_url = "{upstream.url}"
[routes]
"m" = {{ upstream = "up", model = "real" }}
"same" = {{ upstream = "up" }}
[unrouted]
"files" = "up"
"""


@asynccontextmanager
async def unpacking(upstream: Upstream, server: str = "") -> AsyncIterator[Proxy]:
    upstream.will(answer())
    async with serving(routes(upstream, server)) as running:
        yield running


@pytest.mark.parametrize("how", PACK.values(), ids=list(PACK))
async def test_goes_up_plain(
    upstream: Upstream, how: tuple[bytes, Callable[[bytes], bytes]]
) -> None:
    """What goes up is the plain text with the model in its place, its length, and no coding."""
    coding, pack = how
    headers = [(b"X-Before", b"1"), (b"Content-Encoding", coding), (b"X-After", b"2")]
    async with unpacking(upstream) as proxy:
        for model in ("m", "m", "same"):
            body = chat(model, text="x" * 100_000)
            sent = body.replace(b'"m"', b'"real"')
            got = await call(proxy.port, pack(body), headers=headers)
            assert got.status == 200
            heard = upstream.requests[-1]
            assert heard.body == sent
            assert heard.values(b"content-length") == [b"%d" % len(sent)]
            assert heard.value(b"content-encoding") is None
            assert (heard.value(b"x-before"), heard.value(b"x-after")) == (b"1", b"2")


@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_comes_in_pieces(upstream: Upstream, framing: str) -> None:
    """Cut anywhere, with a length or in chunks, it is the same body; the connection goes on to be used."""
    body = chat(text="slowly " * 1000)
    packed = gzip.compress(body)
    cuts = [packed[at : at + 11] for at in range(0, len(packed), 11)]
    async with unpacking(upstream) as proxy, await Client.connect(proxy.port) as client:
        if framing == "length":
            text = request(packed, headers=[CLIENT])
            await client.send(text[: -len(packed)])
        else:
            headers = [CLIENT, (b"Transfer-Encoding", b"chunked")]
            await client.send(request(b"", headers=headers, length=False))
            cuts = [*map(chunk, cuts), b"0\r\n\r\n"]
        for cut in cuts:
            await client.send(cut)
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200
        assert upstream.requests[0].body == body.replace(b'"m"', b'"real"')
        assert gate_of(proxy).held == 0
        if framing == "length":
            await client.send(request(chat()))
            assert (await client.answer()).status == 200


WRONG: dict[str, tuple[bytes, bytes, int, str]] = {
    "cut": (b"gzip", gzip.compress(TEXT)[:-4], 400, "bad_request"),
    "trailing": (b"gzip", gzip.compress(TEXT) + b"x", 400, "bad_request"),
    "two members": (b"gzip", gzip.compress(TEXT) * 2, 400, "bad_request"),
    "not packed": (b"gzip", TEXT, 400, "bad_request"),
    "not packed, zstd": (b"zstd", TEXT, 400, "bad_request"),
    "empty": (b"deflate", b"", 400, "bad_request"),
    "not JSON": (b"gzip", gzip.compress(b"x"), 400, "invalid_json"),
    "over max_body": (b"gzip", gzip.compress(NOISE.randbytes(60_000).hex().encode()), 413, "request_too_large"),
    "bomb": (b"zstd", zstd.compress(bytes(10 * 2**20)), 413, "request_too_large"),
    "empty blocks": (b"gzip", gzip.compress(b"")[:10] + b"\0\0\0\xff\xff" * 30_000, 413, "request_too_large"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
async def test_refused(upstream: Upstream, wrong: tuple[bytes, bytes, int, str]) -> None:
    """What does not unpack, or to too much, is refused, and takes no room with it."""
    coding, body, status, code = wrong
    async with unpacking(upstream, 'max_body = "100KiB"') as proxy:
        got = await call(proxy.port, body, headers=[(b"Content-Encoding", coding)])
        assert (got.status, got.code) == (status, code), got.raw
        assert got.whole
        assert gate_of(proxy).held == gate_of(proxy).inflight == 0
        assert upstream.requests == []


async def test_counted_as_it_grows(upstream: Upstream) -> None:
    """What it unpacks to counts for `max_held` while it grows, and is let go with the request."""
    text = NOISE.randbytes(200_000).hex().encode()
    packed = gzip.compress(chat(text=text.decode()))
    async with unpacking(upstream, 'max_held = "300KiB"') as proxy:
        got = await call(proxy.port, packed, headers=[CLIENT])
        assert (got.status, got.code) == (503, "overloaded")
        assert gate_of(proxy).held == 0
        async with await Client.connect(proxy.port) as client:
            await client.send(request(packed, headers=[CLIENT])[: len(packed) // 2])
            async with asyncio.timeout(5):
                while gate_of(proxy).held < 100_000:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            while gate_of(proxy).held:
                await asyncio.sleep(0.01)
        assert upstream.requests == []


async def test_others_have_their_turn(upstream: Upstream) -> None:
    """While much is unpacked, others are answered."""
    text = "".join(NOISE.randbytes(1500).hex() * 10 for _ in range(700))
    packed = zlib.compress(chat(text=text))
    async with unpacking(upstream) as proxy:
        long = asyncio.gather(call(proxy.port, packed, headers=[(b"Content-Encoding", b"deflate")]))
        rounds = 0
        while not long.done():
            assert (await call(proxy.port, path="/health", method="GET")).status == 200
            rounds += 1
        assert (await long)[0].status == 200
        assert rounds > 5


async def test_by_path(upstream: Upstream) -> None:
    """Where no model is carried the body is not read, and passes packed, whatever it is packed in."""
    async with unpacking(upstream) as proxy:
        for coding, body in ((b"gzip", gzip.compress(TEXT)), (b"br", b"\x0b\x02\x80")):
            headers = [(b"Content-Encoding", coding)]
            got: Any = await call(proxy.port, body, "/v1/files", headers)
            assert got.status == 200
            heard = upstream.requests[-1]
            assert (heard.body, heard.value(b"content-encoding")) == (body, coding)
