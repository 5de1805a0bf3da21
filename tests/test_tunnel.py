"""A WebSocket through the proxy: who may open one, that not a byte of it changes, and how it ends."""

import asyncio
import random
import signal
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trustme
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.typing import Subprotocol
from websockets.utils import accept_key

from proxy import forward
from proxy.tunnel import Tunnel
from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    JSON,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    close,
    hang,
    head,
    raw,
    reset,
)

REALTIME = "/v1/realtime?model=rt"
KEY = "tl-CANARY-of-the-client"
TOKEN = f"openai-insecure-api-key.{KEY}"
OURS = b"Bearer sk-upstream-secret"
NONCE = b"dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE: tuple[Pair, ...] = (
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", NONCE),
)
SIGNED: Pair = (b"Authorization", b"Bearer " + KEY.encode())
RESTARTS = b"\x88\x02\x03\xf4"
MIB = 2**20


def to(url: str, *, server: str = "", up: str = "", keys: bool = True, more: str = "") -> str:
    """Write a routes file whose model `rt` leads to *url*, under another name."""
    return f"""
[server]
{server}
[upstreams.up]
base_url = "{url}"
credential = "sk-upstream-secret"
{up}
[routes]
"rt" = "up/gpt-realtime"
"same" = "up/same"
"same/*" = {{ upstream = "up", model = "same/*" }}
{more}
{
        f'''[keys]
team = "{KEY}"
other = {{ secret = "tl-another-key", models = ["nothing"] }}
'''
        if keys
        else ""
    }
"""


# A library on both sides


@dataclass
class Vendor:
    """A real WebSocket server, and what it saw."""

    url: str
    opened: list[ServerConnection] = field(default_factory=list)
    ended: list[ServerConnection] = field(default_factory=list)

    def header(self, name: str) -> list[str]:
        """Return what the last handshake said in the header *name*."""
        request = self.opened[-1].request
        assert request is not None
        return request.headers.get_all(name)

    @property
    def path(self) -> str:
        request = self.opened[-1].request
        assert request is not None
        return request.path

    async def over(self, count: int = 1, seconds: float = 5.0) -> ServerConnection:
        """Wait until *count* connections have ended; return the last one."""
        async with asyncio.timeout(seconds):
            while len(self.ended) < count:
                await asyncio.sleep(0.005)
        return self.ended[-1]


Talk = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@asynccontextmanager
async def vendor(talk: Talk = echo, **options: Any) -> AsyncIterator[Vendor]:
    """Serve WebSockets with the `websockets` library."""

    async def handle(connection: ServerConnection) -> None:
        made.opened.append(connection)
        try:
            await talk(connection)
            await connection.close()
        finally:
            await connection.wait_closed()
            made.ended.append(connection)

    scheme = "https" if "ssl" in options else "http"
    made = Vendor("")
    server: Server
    async with serve(handle, "127.0.0.1", 0, **{"max_size": None, **options}) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        made.url = f"{scheme}://127.0.0.1:{port}/v1"
        yield made


@asynccontextmanager
async def between(
    talk: Talk = echo, server: str = "", up: str = "", more: str = "", **options: Any
) -> AsyncIterator[tuple[Vendor, Proxy]]:
    """Serve WebSockets, and the proxy in front of them."""
    async with AsyncExitStack() as stack:
        theirs = await stack.enter_async_context(vendor(talk, **options))
        toml = to(theirs.url, server=server, up=up, more=more)
        yield theirs, await stack.enter_async_context(serving(toml))


def dial(proxy: Proxy, path: str = REALTIME, key: str | None = KEY, **options: Any) -> connect:
    """Connect with the `websockets` library."""
    shown = {} if key is None else {"additional_headers": {"Authorization": f"Bearer {key}"}}
    url = f"ws://127.0.0.1:{proxy.port}{path}"
    return connect(url, **{"proxy": None, "max_size": None, **shown, **options})


async def closed(connection: ClientConnection, seconds: float = 5.0) -> ConnectionClosed:
    """Wait for the end of *connection*; return what the library says of it."""
    async with asyncio.timeout(seconds):
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                await connection.recv()
    return caught.value


# Bare sockets on both sides


def handshake(path: str = REALTIME, headers: Sequence[Pair] = (SIGNED,), **options: Any) -> bytes:
    """Write the beginning of a WebSocket."""
    return request(path=path, headers=[*UPGRADE, *headers], **{"method": "GET", **options})


def frame(data: bytes, opcode: Opcode = Opcode.BINARY, *, mask: bool = True) -> bytes:
    return Frame(opcode, data).serialize(mask=mask)


def agreed(request: Received, *pairs: Pair) -> bytes:
    """Write the 101 that answers *request*."""
    key = (request.value(b"sec-websocket-key") or b"").decode()
    accept = (b"Sec-WebSocket-Accept", accept_key(key).encode())
    switch = ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"))
    return head(101, [*switch, accept, *pairs], b"Switching Protocols")


def session(talk: Callable[[Conn], Awaitable[None]], first: bytes = b"") -> Step:
    """Agree to a WebSocket, with *first* in the same packet, and *talk*."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(agreed(request) + first)
        conn.keep = False
        await talk(conn)

    return step


async def listen(conn: Conn) -> None:
    """Take whatever comes, until the proxy leaves."""
    await conn.left(30)


@dataclass
class Heard:
    """All that an upstream has received in its session."""

    data: bytearray = field(default_factory=bytearray)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, conn: Conn) -> None:
        try:
            while piece := await conn.reader.read(2**18):
                self.data += piece
        finally:
            self.over.set()

    async def all(self, count: int, seconds: float = 10.0) -> bytes:
        """Wait for *count* bytes; return all there are."""
        async with asyncio.timeout(seconds):
            while len(self.data) < count:
                await asyncio.sleep(0.005)
        return bytes(self.data)


@asynccontextmanager
async def opened(proxy: Proxy, sent: bytes | None = None) -> AsyncIterator[Client]:
    """Open a WebSocket on a bare socket; what follows the 101 is still to be read."""
    async with await Client.connect(proxy.port) as client:
        await client.send(handshake() if sent is None else sent)
        async with asyncio.timeout(10):
            first = await client.reader.readuntil(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 101 "), first
        yield client


def leave(client: Client, how: str) -> None:
    """Close *client* without a Close: with a FIN, or with a RST."""
    if how == "RST":
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    else:
        client.writer.close()


async def refused(proxy: Proxy, *args: Any, **kwargs: Any) -> Answer:
    """Send a handshake that comes to nothing; return the answer."""
    async with await Client.connect(proxy.port) as client:
        await client.send(handshake(*args, **kwargs))
        return await client.answer(seconds=5)


@pytest.fixture
async def front(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy whose model `rt` leads to the scripted upstream."""
    async with serving(to(upstream.url)) as proxy:
        yield proxy


# Where it leads


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("model=rt", "model=gpt-realtime"),
        ("a=%2F&model=rt&b=1+2&c", "a=%2F&model=gpt-realtime&b=1+2&c"),
        ("model=%72t", "model=gpt-realtime"),
        ("%6dodel=rt", "model=gpt-realtime"),
        ("model=s%61me&x=1", "model=s%61me&x=1"),
        ("model=same%2Fa", "model=same%2Fa"),
        ("model=same/a%20b", "model=same/a%20b"),
    ],
)
async def test_model(asked: str, sent: str) -> None:
    """The model in the query is matched like any, and spliced there; the rest of it stays as it is."""
    async with between() as (theirs, proxy):
        async with dial(proxy, f"/v1/realtime?{asked}"):
            pass
        assert theirs.path == f"/v1/realtime?{sent}"
        record = await proxy.record()
    assert record["upstream_model"] == ("gpt-realtime" if "gpt" in sent else record["model"])


@pytest.mark.parametrize("query", ["", "?a=1"])
async def test_default(query: str) -> None:
    """Who names no model is led to `default`, if there is one."""
    async with between(more='"default" = "up/gpt-usual"') as (theirs, proxy):
        async with dial(proxy, "/v1/realtime" + query):
            pass
        assert theirs.path == f"/v1/realtime{query}{'&' if query else '?'}model=gpt-usual"
        record = await proxy.record()
        assert (record["model"], record["route"]) == ("default", "default")


@pytest.mark.parametrize(
    "path", ["/realtime", "/api/v1/realtime", "/v1//realtime", "/v1/v1/realtime", "//v1/realtime"]
)
async def test_path(front: Proxy, upstream: Upstream, path: str) -> None:
    """A WebSocket is taken wherever the endpoint stands, and reaches the upstream's own path."""
    upstream.will(session(listen))
    async with opened(front, handshake(f"{path}?model=rt")):
        pass
    assert upstream.requests[0].target == "/v1/realtime?model=gpt-realtime"
    await front.record()


async def test_an_upstream_that_does_not_speak_it(upstream: Upstream) -> None:
    """Where the upstream is known to speak no realtime, that is said, and what it does speak."""
    async with serving(to(upstream.url, up='speaks = ["chat", "files"]')) as proxy:
        got = await refused(proxy)
        assert (got.status, got.code) == (404, "endpoint_not_supported")
        assert "chat, files" in got.json()["error"]["message"]
    assert upstream.connections == []


REFUSED = {
    "two models": ("/v1/realtime?model=rt&model=same", SIGNED, 400, "invalid_model"),
    "one model twice": ("/v1/realtime?model=rt&model=rt", SIGNED, 400, "invalid_model"),
    "no model": ("/v1/realtime", SIGNED, 400, "invalid_model"),
    "not text": ("/v1/realtime?model=%ff", SIGNED, 400, "invalid_model"),
    "unknown": ("/v1/realtime?model=nowhere", SIGNED, 404, "model_not_found"),
    "not allowed": (REALTIME, (b"x-api-key", b"tl-another-key"), 403, "model_not_allowed"),
    "no key": (REALTIME, (b"X", b"x"), 401, "invalid_api_key"),
    "wrong key": (REALTIME, (b"Authorization", b"Bearer tl-wrong"), 401, "invalid_api_key"),
    "wrong subprotocol": (
        REALTIME,
        (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.tl-wrong"),
        401,
        "invalid_api_key",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
async def test_refused(front: Proxy, upstream: Upstream, why: str) -> None:
    """A handshake that may not pass gets the JSON of any refusal, and the upstream hears nothing."""
    path, shown, status, code = REFUSED[why]
    got = await refused(front, path, [shown])
    assert (got.status, got.code, got.whole) == (status, code, True)
    assert got.value(b"content-type") == b"application/json"
    assert got.value(b"connection") == b"close"
    assert (got.value(b"www-authenticate") is not None) is (status == 401)
    record = await front.record()
    assert (record["status"], record["error"]) == (status, code)
    assert upstream.connections == []


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "apikey"])
async def test_key_in_a_header(name: str) -> None:
    """A key is taken wherever one is, and ours stands in its place."""
    async with between() as (theirs, proxy):
        value = f"Bearer {KEY}" if name == "authorization" else KEY
        async with dial(proxy, additional_headers={name: value}) as connection:
            await connection.send("hello")
            assert await connection.recv() == "hello"
        assert theirs.header("authorization") == [OURS.decode()]
        assert theirs.header("x-api-key") == theirs.header("apikey") == []
        assert (await proxy.record())["key"] == "team"


def _choose(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return offered[-1] if offered else None


@pytest.mark.parametrize(
    ("offered", "passed"),
    [
        (["realtime", TOKEN, "openai-beta.realtime-v1"], ["realtime", "openai-beta.realtime-v1"]),
        ([TOKEN, "realtime"], ["realtime"]),
        (["realtime", TOKEN], ["realtime"]),
        ([TOKEN, "openai-insecure-api-key.tl-wrong", "b", "a"], ["b", "a"]),
        (["openai-insecure-api-key.tl-wrong", "a", TOKEN], ["a"]),
        ([TOKEN], []),
    ],
)
async def test_key_as_a_subprotocol(offered: list[str], passed: list[str]) -> None:
    """A key among the subprotocols is taken, and goes no further; the others do, in their order, and
    the upstream's choice comes back.
    """
    async with between(select_subprotocol=_choose) as (theirs, proxy):
        protocols = [Subprotocol(name) for name in offered]
        async with dial(proxy, key=None, subprotocols=protocols) as connection:
            await connection.send("hello")
            assert await connection.recv() == "hello"
            assert connection.subprotocol == (passed[-1] if passed else None)
        assert theirs.header("sec-websocket-protocol") == ([", ".join(passed)] if passed else [])
        assert theirs.header("authorization") == [OURS.decode()]
        assert (await proxy.record())["key"] == "team"


async def test_subprotocols_in_several_lines(front: Proxy, upstream: Upstream) -> None:
    """A key is found and taken out in whichever line of the header it stands."""
    upstream.will(session(listen))
    name = b"Sec-WebSocket-Protocol"
    shown = [(name, b"a"), (name, b"b ,%b,  c" % TOKEN.encode()), (name, TOKEN.encode())]
    async with opened(front, handshake(headers=shown)):
        pass
    assert upstream.requests[0].values(b"sec-websocket-protocol") == [b"a", b"b, c"]
    await front.record()


async def test_headers(front: Proxy, upstream: Upstream) -> None:
    """Of the handshake, the upstream gets what the client wrote but for what the edit list says."""
    upstream.will(session(listen))
    shown = [
        SIGNED,
        (b"x-api-key", b"tl-wrong"),
        (b"Sec-WebSocket-Protocol", TOKEN.encode() + b", realtime"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits, x-odd"),
        (b"OpenAI-Beta", b"realtime=v1"),
        (b"Origin", b"http://app.example"),
        (b"Cookie", b"session=" + KEY.encode()),
        (b"X-Forwarded-For", b"10.0.0.1"),
        (b"x-Own", b"1"),
    ]
    path = f"/v1/realtime?model=rt&key={KEY}"
    async with opened(front, handshake(path, shown)):
        pass
    seen = upstream.requests[0]
    assert seen.head == (
        b"GET /v1/realtime?model=gpt-realtime HTTP/1.1\r\n"
        b"Host: %b\r\n"
        b"Sec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: %b\r\n"
        b"Sec-WebSocket-Protocol: realtime\r\n"
        b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits, x-odd\r\n"
        b"OpenAI-Beta: realtime=v1\r\n"
        b"Origin: http://app.example\r\n"
        b"x-Own: 1\r\n"
        b"Authorization: %b\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\n\r\n" % (upstream.authority.encode(), NONCE, OURS)
    )
    assert KEY.encode() not in seen.head
    assert KEY.encode() not in front.log.read_bytes()
    await front.record()


async def test_the_answer(front: Proxy, upstream: Upstream) -> None:
    """The upstream's 101 comes back as it is, but for what the edit list says."""

    async def step(conn: Conn, request: Received) -> None:
        extra = [
            (b"Sec-WebSocket-Protocol", b"realtime"),
            (b"x-request-id", b"theirs"),
            (b"Set-Cookie", b"a=b"),
            (b"Keep-Alive", b"1"),
            (b"X-Odd", b"\xff 1"),
            (b"x-odd", b"2"),
        ]
        await conn.send(agreed(request, *extra))
        conn.keep = False

    upstream.will(step)
    async with await Client.connect(front.port) as client:
        await client.send(handshake())
        first = await client.closed()
    record = await front.record()
    assert first == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Sec-WebSocket-Accept: %b\r\n"
        b"Sec-WebSocket-Protocol: realtime\r\n"
        b"x-request-id: theirs\r\n"
        b"X-Odd: \xff 1\r\n"
        b"x-odd: 2\r\n"
        b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\n"
        b"x-trunkline-id: %b\r\n\r\n"
        % (accept_key(NONCE.decode()).encode(), record["request_id"].encode())
    )


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_compression(compression: str | None) -> None:
    """Whether messages are compressed is agreed between client and upstream, and works."""
    message = "to be compressed " * 10_000
    async with between() as (theirs, proxy):
        async with dial(proxy, compression=compression) as connection:
            for _ in range(3):
                await connection.send(message)
                assert await connection.recv() == message
            agreed_on = [one.name for one in connection.protocol.extensions]
        assert agreed_on == (["permessage-deflate"] if compression else [])
        assert [one.name for one in theirs.opened[0].protocol.extensions] == agreed_on
        record = await proxy.record()
        assert (record["bytes_in"] < len(message)) is (compression is not None)


async def test_tls(tmp_path: Path) -> None:
    """An upstream that speaks TLS is spoken to in TLS."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    async with between(up=f'ca = "{ca}"', ssl=context) as (theirs, proxy):
        async with dial(proxy) as connection:
            for size in (0, 70_000, 3 * MIB):
                await connection.send(bytes(size))
                assert await connection.recv() == bytes(size)
            await connection.close(4002, "enough")
        assert (await theirs.over()).close_code == 4002
        assert (await proxy.record())["outcome"] == "ok"


# That nothing changes


MESSAGES: dict[str, Any] = {
    "text": "Grüße, 世界",
    "no text": "",
    "one character": "x",
    "bytes": bytes(range(256)),
    "no bytes": b"",
    "one byte": b"\0",
    "125": b"a" * 125,
    "126": b"a" * 126,
    "64 KiB": b"a" * 65_536,
    "16 MiB": random.Random(1).randbytes(16 * MIB),
    "16 MiB of text": "ä€" * (16 * MIB // 5),
}


@pytest.mark.parametrize("kind", MESSAGES)
async def test_messages(kind: str) -> None:
    """A message arrives as it was sent, whatever its kind and length, in both directions."""
    async with between() as (_, proxy), dial(proxy, compression=None) as connection:
        for message in (MESSAGES[kind], "and the next one"):
            await connection.send(message)
            assert await connection.recv() == message


async def test_a_message_in_parts() -> None:
    """A message that is sent in parts arrives in the same parts, in both directions."""
    parts = ["to", "", " be", " or" * 30_000]
    seen: list[str] = []

    async def talk(connection: ServerConnection) -> None:
        seen.extend([str(part) async for part in connection.recv_streaming()])
        await connection.send(iter(parts))

    async with between(talk) as (_, proxy), dial(proxy, compression=None) as connection:
        await connection.send(iter(parts))
        assert [part async for part in connection.recv_streaming()] == [*parts, ""]
    assert seen == [*parts, ""]


async def test_pings() -> None:
    """Either side's pings are answered by the other side, and say what they said."""
    async with between(ping_interval=0.05, ping_timeout=1) as (theirs, proxy):
        async with dial(proxy, ping_interval=0.05, ping_timeout=1) as connection:
            async with asyncio.timeout(5):
                while not (connection.latency and theirs.opened[0].latency):
                    await asyncio.sleep(0.01)
                await (await connection.ping(b"from the client"))
                await (await theirs.opened[0].ping(b"from the upstream"))
        assert (await proxy.record())["outcome"] == "ok"


def chatter(seed: int, *, mask: bool) -> bytes:
    """Write frames of all kinds and lengths, with reserved bits, opcodes and payloads of all kinds."""
    dice = random.Random(seed)
    written = b""
    for _ in range(300):
        size = dice.choice([0, 1, 5, 125, 126, 127, 300, 4_000, 65_535, 65_536, 70_000])
        opcode = dice.choice([Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING, Opcode.PONG])
        if opcode in (Opcode.PING, Opcode.PONG):
            size = min(size, 125)
        data = bytearray(frame(dice.randbytes(size), opcode, mask=mask))
        data[0] ^= dice.choice([0, 0x80, 0x40, 0x30])  # the library would not write them all
        written += data
    return written


async def in_pieces(send: Callable[[bytes], Awaitable[None]], data: bytes, seed: int) -> None:
    dice = random.Random(seed)
    at = 0
    while at < len(data):
        size = dice.choice([1, 2, 3, 1_000, 65_536, 200_000])
        await send(data[at : at + size])
        at += size
        await asyncio.sleep(0)


async def test_byte_for_byte(front: Proxy, upstream: Upstream) -> None:
    """Both sides say a lot at the same time, and not a byte is added, lost or changed."""
    up, down = chatter(1, mask=True), chatter(2, mask=False)
    heard = Heard()

    async def talk(conn: Conn) -> None:
        await asyncio.gather(in_pieces(conn.send, down, 3), heard(conn))

    upstream.will(session(talk))
    async with opened(front) as client:
        async with asyncio.timeout(20):
            _, got = await asyncio.gather(
                in_pieces(client.send, up, 4), client.reader.readexactly(len(down))
            )
        assert got == down
        assert await heard.all(len(up)) == up
    record = await front.record()
    assert (record["bytes_in"], record["bytes_out"]) == (len(up), len(down))


class Kept:
    """Reads along, and keeps it."""

    def __init__(self) -> None:
        self.heard = b""

    def feed(self, data: bytes) -> None:
        self.heard += data


async def test_taps(front: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tap is fed all that the upstream says, and an end is still an end."""
    taps, down = [Kept(), Kept()], chatter(2, mask=False) + b"\x88\x02\x03\xe8"
    monkeypatch.setattr(forward, "Tunnel", partial(Tunnel, taps=taps))

    async def talk(conn: Conn) -> None:
        await in_pieces(conn.send, down, 3)

    upstream.will(session(talk))
    async with opened(front) as client:
        async with asyncio.timeout(20):
            assert await client.reader.readexactly(len(down)) == down
    assert [tap.heard for tap in taps] == [down] * 2
    assert (await front.record())["outcome"] == "ok"


async def test_what_follows_the_handshake_at_once(front: Proxy, upstream: Upstream) -> None:
    """What either side says in one packet with its handshake reaches the other."""
    heard = Heard()
    early, first = frame(b"early"), frame(b"first", mask=False)
    upstream.will(session(heard, first))
    async with opened(front, handshake() + early) as client:
        assert await client.reader.readexactly(len(first)) == first
        await client.send(early)
        assert await heard.all(2 * len(early)) == 2 * early


@pytest.mark.parametrize("size", [10, 50_000, 500_000, 3 * MIB])
async def test_what_a_client_says_too_early(front: Proxy, upstream: Upstream, size: int) -> None:
    """What a client says before it has its answer arrives whole, or the session ends: no hole is left."""
    heard, asked, go = Heard(), asyncio.Event(), asyncio.Event()

    async def step(conn: Conn, request: Received) -> None:
        asked.set()
        await go.wait()
        await session(heard)(conn, request)

    upstream.will(step)
    early = frame(random.Random(5).randbytes(size))
    last = frame(b"the last")
    async with await Client.connect(front.port) as client:
        await client.send(handshake() + early[: size // 4])
        async with asyncio.timeout(10):
            await asked.wait()
            client.writer.write(early[size // 4 : size // 2])
            await asyncio.sleep(0.1)
            client.writer.write(early[size // 2 :])
            await asyncio.sleep(0.1)
            go.set()
            with suppress(ConnectionError, asyncio.IncompleteReadError):  # it may be ended
                await client.reader.readuntil(b"\r\n\r\n")
                await client.send(last)
                client.writer.write_eof()
            await upstream.connections[0].gone.wait()
    assert (early + last).startswith(bytes(heard.data))
    if size <= 50_000:
        assert bytes(heard.data) == early + last


@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest.mark.parametrize(
    "extra", [(), ((b"Content-Length", b"5"),), ((b"Transfer-Encoding", b"chunked"),)]
)
async def test_an_odd_101(
    front: Proxy, upstream: Upstream, interim: bytes, extra: tuple[Pair, ...]
) -> None:
    """A 101 may follow an interim answer, and has no body, whatever length it speaks of."""
    first = frame(b"0123456789", mask=False)
    heard = Heard()

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(interim + agreed(request, *extra) + first)
        conn.keep = False
        await heard(conn)

    upstream.will(step)
    async with opened(front) as client:
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(len(first)) == first
        await client.send(frame(b"back"))
        await heard.all(len(frame(b"back")))


# One side is slow


def resident_bytes(proxy: Proxy) -> int:
    assert proxy.process is not None
    return int(Path(f"/proc/{proxy.process.pid}/statm").read_text().split()[1]) * 4096


async def settled(count: Callable[[], int]) -> None:
    """Wait until *count* does not change any more."""
    last = -1
    async with asyncio.timeout(15):
        while count() != last:
            last = count()
            await asyncio.sleep(0.3)


PIECE = bytes(range(256)) * (MIB // 256)
TOTAL = 64
LUMP = Frame(Opcode.BINARY, b"").serialize(mask=False)[:1] + b"\x7f" + (TOTAL * MIB).to_bytes(8)
"""The head of a frame of 64 MB."""


async def test_a_slow_client_stops_the_upstream(upstream: Upstream) -> None:
    """What a client does not take stays with the upstream, not in the proxy's memory."""
    sent = 0

    async def talk(conn: Conn) -> None:
        nonlocal sent
        for _ in range(TOTAL):
            await conn.send(PIECE)
            sent += 1
        await conn.send(frame(b"\x03\xe8", Opcode.CLOSE, mask=False))
        await conn.left(20)

    upstream.will(answer(), session(talk, LUMP))
    loop = asyncio.get_running_loop()
    async with process(to(upstream.url, more='"m" = "up/m"')) as proxy:
        await call(proxy.port, chat(), headers=[SIGNED])
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
            before = resident_bytes(proxy)
            await loop.sock_sendall(sock, handshake())
            await settled(lambda: sent)
            assert 0 < sent < TOTAL // 2
            assert resident_bytes(proxy) - before < 8 * MIB
            data = b""
            while b"\r\n\r\n" not in data:
                data += await loop.sock_recv(sock, MIB)
            data = data.partition(b"\r\n\r\n")[2]
            digest, left = sha256(), len(LUMP) + TOTAL * MIB + 4
            async with asyncio.timeout(20):
                while True:
                    digest.update(data)
                    left -= len(data)
                    if left == 0:
                        break
                    data = await loop.sock_recv(sock, MIB)
                    assert data
        close = frame(b"\x03\xe8", Opcode.CLOSE, mask=False)
        assert digest.digest() == sha256(LUMP + PIECE * TOTAL + close).digest()
        record = await proxy.record(2)
        assert (record["outcome"], record["bytes_out"]) == ("ok", len(LUMP) + TOTAL * MIB + 4)


async def test_a_slow_upstream_stops_the_client(upstream: Upstream) -> None:
    """What an upstream does not take stays with the client, not in the proxy's memory."""
    go, digest = asyncio.Event(), sha256()
    sent, left = 0, len(LUMP) + TOTAL * MIB

    async def talk(conn: Conn) -> None:
        nonlocal left
        await go.wait()
        while left:
            data = await conn.reader.read(MIB)
            assert data
            digest.update(data)
            left -= len(data)

    upstream.will(answer(), session(talk))
    async with process(to(upstream.url, more='"m" = "up/m"')) as proxy:
        await call(proxy.port, chat(), headers=[SIGNED])
        async with opened(proxy) as client:
            before = resident_bytes(proxy)

            async def send() -> None:
                nonlocal sent
                await client.send(LUMP)
                for _ in range(TOTAL):
                    await client.send(PIECE)
                    sent += 1

            async with asyncio.TaskGroup() as group:
                group.create_task(send())
                await settled(lambda: sent)
                assert 0 < sent < TOTAL // 2
                assert resident_bytes(proxy) - before < 8 * MIB
                go.set()
            async with asyncio.timeout(20):
                assert await client.reader.read() == b""
        assert digest.digest() == sha256(LUMP + PIECE * TOTAL).digest()
        record = await proxy.record(2)
        assert record["outcome"] == "upstream_cut"  # without a Close
        assert record["bytes_in"] == len(LUMP) + TOTAL * MIB


async def test_a_slow_client_is_not_silence(upstream: Upstream) -> None:
    """While the client does not keep up, it is `write` that judges, and not `idle`."""

    async def talk(conn: Conn) -> None:
        for _ in range(TOTAL // 4):
            await conn.send(PIECE)
        await conn.left(20)

    upstream.will(session(talk))
    up = 'timeout = { idle = "300ms", write = "10s" }'
    loop = asyncio.get_running_loop()
    async with serving(to(upstream.url, up=up)) as proxy:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
            await loop.sock_sendall(sock, handshake())
            await asyncio.sleep(0.9)  # for longer than `idle`, nothing moves
            assert proxy.records() == []
            count = 0
            async with asyncio.timeout(10):
                while count < (TOTAL // 4) * MIB:
                    data = await loop.sock_recv(sock, MIB)
                    assert data, count
                    count += len(data)
            record = await proxy.record()  # now it is silent
            assert (record["outcome"], record["error"]) == ("timeout", "upstream_idle_timeout")


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_who_takes_nothing(upstream: Upstream, who: str) -> None:
    """Who takes nothing for as long as `write` says is let go, and so is the other side."""

    async def talk(conn: Conn) -> None:
        if who == "client":
            while True:
                await conn.send(PIECE)
        else:
            await conn.gone.wait()

    upstream.will(session(talk))
    loop = asyncio.get_running_loop()
    up = 'timeout = { write = "500ms" }'
    async with serving(to(upstream.url, up=up)) as proxy:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
            await loop.sock_sendall(sock, handshake())
            async with asyncio.timeout(10):
                await loop.sock_recv(sock, 1000)  # the 101
                if who == "upstream":
                    with pytest.raises(OSError):
                        while True:
                            await loop.sock_sendall(sock, PIECE)
                record = await proxy.record()
            assert record["outcome"] == "timeout"
            assert record["error"] == ("client_stalled" if who == "client" else "upstream_timeout")
            if who == "client":
                async with asyncio.timeout(2):
                    await upstream.connections[0].gone.wait()


# How it ends


CLOSES = [(1000, ""), (1001, "going away"), (1011, "ä" * 61), (3000, "x" * 123), (4999, "")]


@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_client_closes(code: int, reason: str) -> None:
    """The upstream is told the client's code and reason, and the exchange has ended well."""
    async with between() as (theirs, proxy):
        async with dial(proxy) as connection:
            await connection.close(code, reason)
            assert connection.close_code == code
        seen = await theirs.over()
        assert (seen.close_code, seen.close_reason) == (code, reason)
        record = await proxy.record()
        assert (record["outcome"], record["error"]) == ("ok", None)


@pytest.mark.parametrize(("code", "reason"), CLOSES)
async def test_upstream_closes(code: int, reason: str) -> None:
    """The client is told the upstream's code and reason, and the exchange has ended well."""

    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        await connection.close(code, reason)

    async with between(talk) as (_, proxy):
        async with dial(proxy) as connection:
            await connection.send("close")
            told = (await closed(connection)).rcvd
        assert told is not None
        assert (told.code, told.reason) == (code, reason)
        record = await proxy.record()
        assert (record["outcome"], record["error"]) == ("ok", None)


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_a_close_without_a_code(front: Proxy, upstream: Upstream, who: str) -> None:
    """A Close that says nothing arrives as one that says nothing."""
    heard = Heard()
    theirs, ours = frame(b"", Opcode.CLOSE, mask=False), frame(b"", Opcode.CLOSE)

    async def talk(conn: Conn) -> None:
        if who == "upstream":
            await conn.send(theirs)
        await heard(conn)

    upstream.will(session(talk))
    async with opened(front) as client:
        if who == "upstream":
            assert await client.reader.readexactly(2) == theirs
        else:
            await client.send(ours)
            assert await heard.all(len(ours)) == ours
    assert (await front.record())["outcome"] == "ok"


async def test_one_line(front: Proxy, upstream: Upstream) -> None:
    """When a session ends, one line says where it led and how much was said."""
    said, heard = frame(b"a" * 100) + frame(b"", Opcode.CLOSE), frame(b"b" * 1000, mask=False)

    async def talk(conn: Conn) -> None:
        await conn.send(heard)
        await conn.left(20)

    upstream.will(session(talk))
    async with opened(front) as client:
        await client.reader.readexactly(len(heard))
        assert front.records() == []
        await client.send(said)
    record = await front.record()
    expected = {
        "status": 101,
        "outcome": "ok",
        "error": None,
        "stream": True,
        "method": "GET",
        "path": "/v1/realtime",
        "key": "team",
        "route": "rt",
        "model": "rt",
        "upstream": "up",
        "upstream_model": "gpt-realtime",
        "bytes_in": len(said),
        "bytes_out": len(heard),
    }
    assert {name: record[name] for name in expected} == expected
    (attempt,) = record["attempts"]
    assert (attempt["phase"], attempt["status"], attempt["error"]) == ("streaming", 101, None)
    assert record["first_byte_ms"] <= record["total_ms"]


@pytest.mark.parametrize("where", ["between frames", "inside a frame", "before a word"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_client_vanishes(front: Proxy, upstream: Upstream, how: str, where: str) -> None:
    """When the client leaves without a Close, the upstream's connection is closed within a second."""
    said = {"between frames": frame(b"hello"), "inside a frame": frame(b"hello")[:-2]}.get(where)
    heard = Heard()
    upstream.will(session(heard))
    async with opened(front) as client:
        if said:
            await client.send(said)
            await heard.all(len(said))
        leave(client, how)
        async with asyncio.timeout(1):
            await heard.over.wait()
    assert bytes(heard.data) == (said or b"")
    record = await front.record()
    assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
    assert (record["status"], record["bytes_in"]) == (101, len(said or b""))
    assert record["attempts"][0]["error"] == "client_gone"


@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_client_vanishes_before_its_answer(
    front: Proxy, upstream: Upstream, how: str
) -> None:
    """When the client leaves before the upstream has agreed, that connection is closed all the same."""
    asked = asyncio.Event()

    async def step(conn: Conn, request: Received) -> None:
        asked.set()
        await hang()(conn, request)

    upstream.will(step)
    async with await Client.connect(front.port) as client:
        await client.send(handshake())
        await asked.wait()
        leave(client, how)
        async with asyncio.timeout(1):
            await upstream.connections[0].gone.wait()
    record = await front.record()
    assert (record["outcome"], record["status"]) == ("client_gone", 499)
    assert record["attempts"][0]["phase"] == "sent"


async def test_the_clients_last_words(front: Proxy, upstream: Upstream) -> None:
    """What the client says just before it leaves still reaches an upstream that takes it."""
    heard = Heard()
    upstream.will(session(heard))
    last = frame(bytes(3 * MIB)) + frame(b"\x03\xe8", Opcode.CLOSE)
    async with opened(front) as client:
        await client.send(last)
        client.writer.write_eof()
        async with asyncio.timeout(5):
            await heard.over.wait()
    assert bytes(heard.data) == last
    assert (await front.record())["outcome"] == "ok"


@pytest.mark.parametrize("where", ["between frames", "inside a frame", "before a word"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_upstream_vanishes(front: Proxy, upstream: Upstream, how: str, where: str) -> None:
    """When the upstream leaves without a Close, so does the proxy, and it makes none up."""
    said = {"between frames": frame(b"hello", mask=False), "before a word": b""}.get(where)
    said = frame(b"hello", mask=False)[:-2] if said is None else said
    go = asyncio.Event()

    async def talk(conn: Conn) -> None:
        await conn.send(said)
        await go.wait()
        if how == "RST":
            conn.reset()

    upstream.will(session(talk))
    async with opened(front) as client:
        async with asyncio.timeout(5):
            assert await client.reader.readexactly(len(said)) == said
        go.set()
        assert await client.closed(1.0) == b""
    record = await front.record()
    assert (record["outcome"], record["error"]) == ("upstream_cut", "upstream_disconnected")
    assert record["attempts"][0]["error"] == "upstream_disconnected"


async def test_upstream_vanishes_at_once(front: Proxy, upstream: Upstream) -> None:
    """What an upstream says and leaves, all in one packet with its 101, still arrives."""
    first = frame(bytes(70_000), mask=False)

    async def nothing(_: Conn) -> None:
        """Leave."""

    upstream.will(session(nothing, first))
    async with opened(front) as client:
        assert await client.closed() == first
    assert (await front.record())["outcome"] == "upstream_cut"


@pytest.mark.parametrize("who", ["client", "upstream"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_gone_after_a_close(front: Proxy, upstream: Upstream, how: str, who: str) -> None:
    """Once one side has said Close, whoever hangs up breaks nothing off."""
    heard, last = Heard(), frame(b"\x03\xe8bye", Opcode.CLOSE, mask=False)

    async def talk(conn: Conn) -> None:
        if who == "upstream":
            await conn.send(last)
            if how == "RST":
                await conn.reader.read(1)
                conn.reset()
        else:
            await heard(conn)

    upstream.will(session(talk))
    async with opened(front) as client:
        if who == "upstream":
            assert await client.reader.readexactly(len(last)) == last
            await client.send(b"\x88")
            assert await client.closed() == b""
        else:
            await client.send(frame(b"\x03\xe8", Opcode.CLOSE))
            await heard.all(8)
            leave(client, how)
            async with asyncio.timeout(1):
                await heard.over.wait()
    assert (await front.record())["outcome"] == "ok"


@pytest.mark.parametrize(
    ("name", "code"), [("idle", "upstream_idle_timeout"), ("total", "upstream_timeout")]
)
async def test_timeouts(upstream: Upstream, name: str, code: str) -> None:
    """A session that is silent for too long, or lasts too long, is ended on both sides."""
    heard = Heard()

    async def talk(conn: Conn) -> None:
        if name == "total":  # it is not silent
            with pytest.raises(ConnectionError):
                while True:
                    await conn.send(frame(b"tick", mask=False))
                    await asyncio.sleep(0.02)
        else:
            await heard(conn)

    upstream.will(session(talk))
    async with serving(to(upstream.url, up=f'timeout = {{ {name} = "300ms" }}')) as proxy:
        async with opened(proxy) as client:
            await client.closed(3)
            async with asyncio.timeout(1):
                await upstream.connections[0].gone.wait()
        record = await proxy.record()
    assert (record["outcome"], record["error"], record["status"]) == ("timeout", code, 101)
    assert 250 <= record["total_ms"] < 2_000


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_not_idle(upstream: Upstream, who: str) -> None:
    """As long as one side speaks, a session is not idle."""
    heard = Heard()

    async def talk(conn: Conn) -> None:
        if who == "upstream":
            for _ in range(16):
                await conn.send(frame(b"tick", mask=False))
                await asyncio.sleep(0.08)
        await heard(conn)

    upstream.will(session(talk))
    async with serving(to(upstream.url, up='timeout = { idle = "800ms" }')) as proxy:
        async with opened(proxy) as client:
            for _ in range(16):
                if who == "client":
                    await client.send(frame(b"tick"))
                await asyncio.sleep(0.08)
            assert proxy.records() == []
            await client.send(frame(b"", Opcode.CLOSE))
        assert (await proxy.record())["outcome"] == "ok"


# The upstream does not agree


async def test_upstream_refuses_the_credential(front: Proxy, upstream: Upstream) -> None:
    """An upstream's 401 means our credential: 502, without a word of its body."""
    upstream.will(answer(401, b'{"error":"Incorrect key: sk-upstream-secret"}'))
    got = await refused(front)
    assert (got.status, got.code) == (502, "upstream_auth")
    assert b"sk-upstream" not in got.raw
    assert (await front.record())["error"] == "upstream_auth"


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "ok"),
        (400, "client_error"),
        (403, "upstream_error"),
        (404, "client_error"),
        (426, "client_error"),
        (429, "upstream_error"),
        (500, "upstream_error"),
        (503, "upstream_error"),
    ],
)
async def test_upstream_declines(upstream: Upstream, status: int, outcome: str) -> None:
    """Whatever else an upstream answers in place of a 101 is relayed as it came."""
    body = b'{"error":{"message":"no"}}'
    upstream.will(answer(status, body, [JSON, (b"Retry-After", b"7")], b"So It Is"))
    async with serving(to(upstream.url, up="retry = { attempts = 1 }")) as proxy:
        got = await refused(proxy)
        assert got.head.startswith(b"HTTP/1.1 %d So It Is\r\n" % status)
        assert (got.body, got.whole) == (body, True)
        assert got.value(b"retry-after") == b"7"
        record = await proxy.record()
        assert (record["status"], record["outcome"]) == (status, outcome)


async def test_upstream_declines_for_the_moment(front: Proxy, upstream: Upstream) -> None:
    """A handshake that is declined for the moment is sent once more, on a connection of its own."""
    upstream.will(answer(503, b"", [(b"Retry-After", b"0")]), answer(503, b"later", [JSON]))
    got = await refused(front)
    assert (got.status, got.body) == (503, b"later")
    assert [seen.connection for seen in upstream.requests] == [0, 1]
    assert [attempt["status"] for attempt in (await front.record())["attempts"]] == [503, 503]


UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\n"
BROKEN: dict[str, tuple[Step, int, str]] = {
    "redirect": (answer(307, b"", [(b"Location", b"http://x.example/")]), 502, "upstream_protocol"),
    "nothing of a WebSocket": (raw(UPGRADED + b"\r\n", then="hang"), 502, "upstream_protocol"),
    "no Connection": (
        raw(UPGRADED + b"Upgrade: websocket\r\n\r\n", then="hang"),
        502,
        "upstream_protocol",
    ),
    "no Upgrade": (
        raw(UPGRADED + b"Connection: Upgrade\r\n\r\n", then="hang"),
        502,
        "upstream_protocol",
    ),
    "another protocol": (
        raw(UPGRADED + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", then="hang"),
        502,
        "upstream_protocol",
    ),
    "not HTTP": (raw(b"\x81\x05hello\r\n\r\n"), 502, "upstream_protocol"),
    "half a head": (raw(UPGRADED + b"Upgrade: webso"), 502, "upstream_disconnected"),
    "closes": (close(), 502, "upstream_disconnected"),
    "resets": (reset(), 502, "upstream_disconnected"),
    "says nothing": (hang(), 504, "upstream_timeout"),
}


@pytest.mark.parametrize("why", BROKEN)
async def test_upstream_breaks_off(upstream: Upstream, why: str) -> None:
    """What an upstream does wrong before it has agreed is told as it is of any request, once."""
    step, status, code = BROKEN[why]
    upstream.will(step)
    async with serving(to(upstream.url, up='timeout = { first_byte = "300ms" }')) as proxy:
        got = await refused(proxy)
        assert (got.status, got.code) == (status, code)
        record = await proxy.record()
        assert (record["status"], record["error"]) == (status, code)
        async with asyncio.timeout(2):
            await upstream.connections[0].gone.wait()
    assert len(upstream.requests) == 1


async def test_upstream_is_not_there() -> None:
    """A handshake that leads to a closed port is told so."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        async with serving(to(url)) as proxy:
            got = await refused(proxy)
            assert (got.status, got.code) == (502, "upstream_connect")
            assert (await proxy.record())["attempts"][0]["phase"] == "unsent"


async def test_a_switch_nobody_asked_for(upstream: Upstream) -> None:
    """An upstream that answers a plain request with a 101 is not followed."""

    async def step(conn: Conn, request: Received) -> None:
        await session(listen, frame(b"surprise", mask=False))(conn, request)

    upstream.will(step)
    async with serving(to(upstream.url, more='"m" = "up/m"')) as proxy:
        got = await call(proxy.port, chat(), headers=[SIGNED])
        assert (got.status, got.code) == (502, "upstream_protocol")
        assert b"surprise" not in got.raw
        async with asyncio.timeout(2):
            await upstream.connections[0].gone.wait()


async def test_the_connection_is_its_own(upstream: Upstream) -> None:
    """A session has a connection of its own, which nobody uses before or after it."""
    heard = Heard()
    async with serving(to(upstream.url, more='"m" = "up/m"')) as proxy:
        await call(proxy.port, chat(), headers=[SIGNED])
        upstream.will(session(heard), answer())
        async with opened(proxy) as client:
            await client.send(frame(b"", Opcode.CLOSE))
            await heard.all(6)
        async with asyncio.timeout(2):
            await heard.over.wait()
        await call(proxy.port, chat(), headers=[SIGNED])
        assert [seen.connection for seen in upstream.requests] == [0, 1, 0]
        await proxy.record(3)


# What is not the beginning of a WebSocket


ODD: dict[str, tuple[bytes, int, str]] = {
    "plain GET": (request(path=REALTIME, method="GET", headers=[SIGNED]), 426, "upgrade_required"),
    "POST": (request(b"{}", REALTIME, [SIGNED]), 405, "method_not_allowed"),
    "HEAD": (request(path=REALTIME, method="HEAD", headers=[SIGNED]), 405, ""),
    "h2c": (
        request(
            path=REALTIME,
            method="GET",
            headers=[SIGNED, (b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c")],
        ),
        426,
        "upgrade_required",
    ),
    "another path, POST": (handshake("/v1/chat/completions", method="POST"), 400, "bad_request"),
    "the models": (handshake("/v1/models"), 404, "not_found"),
    "health": (handshake("/health"), 404, "not_found"),
    "nowhere": (handshake("/nowhere"), 404, "not_found"),
    "upgrade twice": (handshake(headers=[SIGNED, (b"Upgrade", b"websocket")]), 400, "bad_request"),
    "and another": (handshake(headers=[SIGNED, (b"Upgrade", b"h2c")]), 400, "bad_request"),
    "with POST": (handshake(method="POST"), 405, "method_not_allowed"),
    "with a body": (handshake(body=b"abc"), 400, "bad_request"),
    "with chunks": (
        handshake(headers=[SIGNED, (b"Transfer-Encoding", b"chunked")]) + b"3\r\nabc\r\n0\r\n\r\n",
        400,
        "bad_request",
    ),
}


@pytest.mark.parametrize("what", ODD)
async def test_no_websocket(front: Proxy, upstream: Upstream, what: str) -> None:
    """What does not begin a WebSocket where one is taken, or begins one elsewhere, is refused."""
    sent, status, code = ODD[what]
    async with await Client.connect(front.port) as client:
        await client.send(sent)
        got = await client.answer(head_only=what == "HEAD")
    assert got.status == status
    if code:
        assert got.code == code
    if status == 426:
        assert got.value(b"upgrade") == b"websocket"
    if status == 405:
        assert got.value(b"allow") == b"GET"
    assert (await front.record())["status"] == status
    assert upstream.connections == []


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/responses", "/api/v1/chat/completions", "/v1/messages", "/hooks/x"]
)
@pytest.mark.parametrize("offer", [b"websocket", b"WebSocket", b"h2c, websocket"])
@pytest.mark.parametrize("signed", [True, False])
async def test_where_a_post_is_taken(
    upstream: Upstream, path: str, offer: bytes, signed: bool
) -> None:
    """A WebSocket where a POST is taken is told so at once, with the Upgrade header that RFC 9110
    section 15.5.22 demands, before the key is looked at, and even where [unrouted] serves a GET.
    """
    more = '[unrouted]\n"responses" = "up"\n"*" = "up"'
    async with serving(to(upstream.url, more=more)) as proxy:
        headers = [(name, offer if name == b"Upgrade" else value) for name, value in UPGRADE]
        headers += [SIGNED] if signed else []
        async with await Client.connect(proxy.port) as client:
            await client.send(request(path=path, method="GET", headers=headers) + b"\x81\x00")
            got = await client.answer()
            assert await client.closed() == b""
        assert (got.status, got.whole) == (426, True)
        assert got.values(b"upgrade") == [b"HTTP/1.1"]
        assert got.values(b"connection") == [b"close"]
        told = got.json()["error"]
        assert "POST" in told["message"]
        assert ("code" in told) == (path != "/v1/messages")
        assert (await proxy.record())["status"] == 426
        assert upstream.connections == []


async def test_the_sdk_is_told_so(upstream: Upstream) -> None:
    """The SDK's `responses.connect()` learns at once, and from the status, that it is to send a POST."""
    async with serving(to(upstream.url)) as proxy:
        client = AsyncOpenAI(api_key=KEY, base_url=f"{proxy.url}/v1", max_retries=0)
        with pytest.raises(InvalidStatus) as caught:
            async with asyncio.timeout(2), client.responses.connect():
                pass
        await client.close()
    assert caught.value.response.status_code == 426
    assert upstream.connections == []


async def test_http_1_0(front: Proxy, upstream: Upstream) -> None:
    """HTTP/1.0 knows no upgrade (RFC 9110 section 7.8): there is no 101 for it."""
    got = await refused(front, version="1.0")
    assert got.status in (400, 426)
    assert upstream.connections == []


async def test_unrouted(upstream: Upstream) -> None:
    """A POST to this path goes where `[unrouted]` leads it, and a WebSocket still by its model."""
    more = '[unrouted]\n"realtime" = "up"'
    async with serving(to(upstream.url, more=more)) as proxy:
        got = await call(proxy.port, b"{}", "/v1/realtime/client_secrets", [SIGNED])
        assert (got.status, upstream.requests[-1].target) == (200, "/v1/realtime/client_secrets")
        got = await call(proxy.port, b"{}", "/v1/realtime?a=1", [SIGNED])
        assert (got.status, upstream.requests[-1].target) == (200, "/v1/realtime?a=1")
        got = await call(proxy.port, path=REALTIME, headers=[SIGNED], method="GET")
        assert got.status == 426
        upstream.will(session(listen))
        async with opened(proxy):
            pass
        assert upstream.requests[-1].target == "/v1/realtime?model=gpt-realtime"
        await proxy.record(4)


NO_MODEL = ["?intent=transcription", "?call_id=rtc_1", "", "?a=model&call_id"]


@pytest.mark.parametrize("query", NO_MODEL)
@pytest.mark.parametrize("prefix", ["realtime", "*"])
async def test_session_without_a_model(upstream: Upstream, query: str, prefix: str) -> None:
    """A session that names no model goes by path, with no model added, and passes like any other."""
    heard = Heard()
    upstream.will(session(heard))
    more = f'"default" = "up/x"\n[unrouted]\n"{prefix}" = "up"'
    async with serving(to(upstream.url, more=more)) as proxy:
        async with opened(proxy, handshake(f"/v1/realtime{query}")) as client:
            await client.send(frame(b"hello"))
            await heard.all(11)
            await client.send(frame(b"", Opcode.CLOSE))
        (seen,) = upstream.requests
        assert seen.target == f"/v1/realtime{query}"
        assert seen.value(b"authorization") == OURS
        assert seen.value(b"upgrade") == b"websocket"
        record = await proxy.record()
        assert (record["upstream"], record["model"], record["status"]) == ("up", None, 101)


@pytest.mark.parametrize("query", ["?intent=transcription", "?%63all_id=rtc_1"])
async def test_session_that_goes_nowhere(upstream: Upstream, query: str) -> None:
    """No model is added to a session of a kind that has none: without [unrouted] there is none."""
    async with serving(to(upstream.url, more='"default" = "up/x"')) as proxy:
        got = await refused(proxy, f"/v1/realtime{query}")
        assert (got.status, got.code) == (404, "not_found")
        assert upstream.connections == []


async def test_session_without_a_model_is_for_few(upstream: Upstream) -> None:
    """A key that is for some models only may not open a session that names none."""
    more = """
[unrouted]
"*" = "up"
[keys.narrow]
secret = "tl-narrow-0123456789"
models = ["rt"]
"""
    async with serving(to(upstream.url, keys=False, more=more)) as proxy:
        for path in ("/v1/realtime?intent=transcription", "/v1/listen?model=rt"):
            narrow = [(b"Authorization", b"Bearer tl-narrow-0123456789")]
            got = await refused(proxy, path, headers=narrow)
            assert (got.status, got.code) == (403, "model_not_allowed")
        assert upstream.connections == []


@pytest.mark.parametrize("query", ["deployment=rt", "model=x&deployment=rt", "model=rt"])
async def test_in_azures_way(upstream: Upstream, query: str) -> None:
    """Azure's SDK calls the model `deployment`; elsewhere its name is `model`, and there is no version."""
    upstream.will(session(listen))
    async with serving(to(upstream.url)) as proxy:
        async with opened(proxy, handshake(f"/openai/realtime?api-version=2024-10-01&{query}")):
            pass
        assert upstream.requests[0].target == "/v1/realtime?model=gpt-realtime"
        assert (await proxy.record())["model"] == "rt"


@pytest.mark.parametrize("token", [True, False])
async def test_other_paths(upstream: Upstream, token: bool) -> None:
    """A WebSocket at any other path of [unrouted] is relayed, its query untouched, with our credential."""
    heard = Heard()
    upstream.will(session(heard, first=b"\x82\x01!"))
    protocol = f"deepgram, {TOKEN}" if token else "deepgram"
    headers = [(b"Sec-WebSocket-Protocol", protocol.encode())] + ([] if token else [SIGNED])
    path = "/v1/listen?model=nova&encoding=linear16"
    async with serving(to(upstream.url, more='[unrouted]\n"listen" = "up"')) as proxy:
        async with opened(proxy, handshake(path, headers)) as client:
            assert await client.reader.readexactly(3) == b"\x82\x01!"
            await client.send(frame(b"hello"))
            await heard.all(11)
            await client.send(frame(b"", Opcode.CLOSE))
        (seen,) = upstream.requests
        assert seen.target == path
        assert seen.value(b"authorization") == OURS
        assert seen.value(b"sec-websocket-protocol") == b"deepgram"
        assert KEY.encode() not in seen.head
        record = await proxy.record()
        assert (record["path"], record["outcome"]) == ("/v1/listen", "ok")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_paths_with_a_body(upstream: Upstream, method: str) -> None:
    """What begins like a WebSocket and is none is refused there too: two could read it as two things."""
    async with serving(to(upstream.url, more='[unrouted]\n"listen" = "up"')) as proxy:
        for sent in (
            handshake("/v1/listen", method=method, body=b"abc"),
            handshake("/v1/listen", method=method),
            handshake("/v1/listen", body=b"abc"),
            handshake("/v1/listen", [SIGNED, (b"Upgrade", b"h2c")]),
        ):
            async with await Client.connect(proxy.port) as client:
                await client.send(sent)
                got = await client.answer(seconds=5)
            assert (got.status, got.code) == (400, "bad_request")
        assert upstream.connections == []


# Surfaces


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://evil.example", 403),
        (b"null", 403),
        (b"https://localhost.evil.example", 403),
        (b"http://localhost:3000", 101),
        (b"http://127.0.0.1", 101),
        (None, 101),
    ],
)
async def test_foreign_origin(upstream: Upstream, origin: bytes | None, status: int) -> None:
    """A surface that asks for no key lets no foreign web page open a WebSocket."""
    upstream.will(session(listen))
    shown: list[Pair] = [] if origin is None else [(b"Origin", origin)]
    async with serving(to(upstream.url, keys=False)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(handshake(headers=shown))
            async with asyncio.timeout(5):
                first = await client.reader.readuntil(b"\r\n\r\n")
        assert int(first.split(b" ")[1]) == status
        assert len(upstream.connections) == (status == 101)
        assert (await proxy.record())["error"] == (
            "client_gone" if status == 101 else "origin_not_allowed"
        )


async def test_passthrough(upstream: Upstream) -> None:
    """On a passthrough surface the caller's own credential goes up as it came, in either form."""
    upstream.will(session(listen))
    toml = to(upstream.url, server='auth = "passthrough"', up="passthrough = true", keys=False)
    async with serving(toml) as proxy:
        async with opened(proxy):
            pass
        shown = (b"Sec-WebSocket-Protocol", b"realtime, " + TOKEN.encode())
        async with opened(proxy, handshake(headers=[shown])):
            pass
        await proxy.record(2)
        upstream.will(answer(401, b'{"error":"yours"}'))
        got = await refused(proxy)
        assert (got.status, got.body) == (401, b'{"error":"yours"}')
    first, second, _ = upstream.requests
    assert first.values(b"authorization") == [SIGNED[1]]
    assert second.values(b"sec-websocket-protocol") == [shown[1]]
    assert b"sk-upstream-secret" not in first.head + second.head


async def test_passthrough_only_where_it_is_wanted(upstream: Upstream) -> None:
    """A caller's own credential goes to no upstream that does not say so."""
    async with serving(to(upstream.url, server='auth = "passthrough"', keys=False)) as proxy:
        got = await refused(proxy)
        assert (got.status, got.code) == (403, "model_not_allowed")
    assert upstream.connections == []


async def test_overloaded(upstream: Upstream) -> None:
    """A session counts as one of `max_inflight` for as long as it lasts."""
    upstream.will(session(listen))
    async with serving(to(upstream.url, server="max_inflight = 1")) as proxy:
        async with opened(proxy):
            got = await refused(proxy)
            assert (got.status, got.code) == (503, "overloaded")
        await proxy.record(2)
        async with opened(proxy):
            pass
        await proxy.record(3)


# Leaving, and what is left


async def test_sigterm() -> None:
    """What still talks when `drain` is over is told 1012, and the process leaves in order."""
    async with vendor() as theirs, process(to(theirs.url, server='drain = "300ms"')) as proxy:
        assert proxy.process is not None
        async with dial(proxy) as connection:
            await connection.send("hello")
            assert await connection.recv() == "hello"
            proxy.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            await connection.send("still there")
            assert await connection.recv() == "still there"
            told = (await closed(connection)).rcvd
            assert told is not None
            assert told.code == 1012
        await theirs.over()
        await proxy.process.wait()
        record = await proxy.record()
        assert (record["outcome"], record["status"]) == ("shutdown", 101)


async def test_sigterm_and_a_session_that_ends() -> None:
    """When the last session has ended, the process leaves, however long `drain` is."""
    async with vendor() as theirs, process(to(theirs.url, server='drain = "30s"')) as proxy:
        assert proxy.process is not None
        async with dial(proxy):
            proxy.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await proxy.process.wait()
        assert (await proxy.record())["outcome"] == "ok"


@pytest.mark.parametrize(
    "said",
    [
        frame(b"hello", mask=False)[:-2],
        frame(b"hello", mask=False)[:1],
        frame(b"\x03\xe8", Opcode.CLOSE, mask=False),
    ],
    ids=["inside a frame", "inside a head", "after a Close"],
)
async def test_shutdown_says_nothing_out_of_turn(upstream: Upstream, said: bytes) -> None:
    """Inside a frame of the upstream's, or after its Close, no Close of ours is put."""

    async def talk(conn: Conn) -> None:
        await conn.send(said)
        await conn.left(20)

    upstream.will(session(talk))
    async with serving(to(upstream.url)) as proxy:
        assert proxy.running is not None
        async with opened(proxy) as client:
            assert await client.reader.readexactly(len(said)) == said
            await proxy.running.drain(0.02)
            assert await client.closed() == b""
        outcome = (await proxy.record())["outcome"]
        assert outcome == ("ok" if said[:1] == b"\x88" else "shutdown")


@pytest.mark.parametrize("who", ["client", "upstream"])
async def test_shutdown_waits_for_nobody(upstream: Upstream, who: str) -> None:
    """Neither a client nor an upstream that takes nothing any more holds up a shutdown."""

    async def talk(conn: Conn) -> None:
        if who == "client":
            while True:
                await conn.send(PIECE)
        await conn.gone.wait()

    upstream.will(session(talk))
    loop = asyncio.get_running_loop()
    async with process(to(upstream.url, server='drain = "50ms"')) as proxy:
        assert proxy.process is not None
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", proxy.port))
            await loop.sock_sendall(sock, handshake())
            await loop.sock_recv(sock, 1000)  # the 101
            if who == "upstream":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.4):
                        while True:
                            await loop.sock_sendall(sock, PIECE)
            else:
                await asyncio.sleep(0.4)
            proxy.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(5):
                await proxy.process.wait()
        assert (await proxy.record())["outcome"] == "shutdown"


def descriptors(proxy: Proxy) -> int:
    assert proxy.process is not None
    return len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir()))


async def test_many() -> None:
    """Two hundred sessions at once do not mix, each leaves one line, and nothing else is left."""
    count = 200

    async def one(proxy: Proxy, number: int) -> None:
        async with dial(proxy, open_timeout=30) as connection:
            for turn in range(3):
                message = f"{number} {turn} " * (1 + number)
                await connection.send(message)
                assert await connection.recv() == message
            if number % 4 == 0:
                connection.transport.abort()

    async with vendor() as theirs, process(to(theirs.url)) as proxy:
        await one(proxy, 1)
        await theirs.over()
        await proxy.record()
        before = descriptors(proxy)
        async with asyncio.timeout(30):
            await asyncio.gather(*(one(proxy, number) for number in range(count)))
        await proxy.record(count + 1, seconds=10)
        outcomes = [record["outcome"] for record in proxy.records()]
        assert outcomes.count("client_gone") == count // 4
        assert outcomes.count("ok") == count * 3 // 4 + 1
        assert {record["status"] for record in proxy.records()} == {101}
        async with asyncio.timeout(5):
            while descriptors(proxy) > before:
                await asyncio.sleep(0.05)


async def test_nothing_is_left(upstream: Upstream) -> None:
    """When sessions have ended, in whatever way, no task and no connection of theirs is left."""
    heard = Heard()
    async with serving(to(upstream.url)) as proxy:
        assert proxy.running is not None
        before = asyncio.all_tasks()
        upstream.will(session(heard))
        for how in ("FIN", "RST"):
            async with opened(proxy) as client:
                leave(client, how)
        upstream.will(raw(UPGRADED + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
        async with opened(proxy) as client:
            await client.closed()
        upstream.will(answer(404, close=True))
        await refused(proxy)
        async with asyncio.timeout(5):
            while asyncio.all_tasks() - before or proxy.running.gate.inflight:
                await asyncio.sleep(0.02)
            for conn in upstream.connections[:3]:
                await conn.gone.wait()
        await proxy.record(4)


async def test_no_close_frame_of_its_own() -> None:
    """A client whose upstream is cut off learns it from its library as an abnormal end: 1006."""

    async def talk(connection: ServerConnection) -> None:
        await connection.recv()
        connection.transport.abort()

    async with between(talk) as (_, proxy):
        async with dial(proxy) as connection:
            await connection.send("go")
            error = await closed(connection)
        assert isinstance(error, ConnectionClosedError)
        assert error.rcvd is None
        assert (await proxy.record())["outcome"] == "upstream_cut"
