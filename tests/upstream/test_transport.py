"""Connections to upstreams: made, kept, replaced, and left."""

import asyncio
import base64
import os
import re
import shutil
import socket
import ssl
import sys
import tempfile
import threading
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from proxy.errors import ProxyError
from proxy.exchange import Attempt
from proxy.routes import Timeouts
from proxy.upstream import connection as wire
from proxy.upstream import transport
from proxy.wire.outbox import Outbox
from tests.conftest import routes_to
from tests.harness.client import Answer, Client, call, chat, request
from tests.harness.proxy import Proxy, process, serving
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
    close,
    event,
    hang,
    head,
    raw,
    reset,
    stream,
)

OK = b'{"ok":true}'
LENGTH = (b"Content-Length", b"%d" % len(OK))


def to(url: str, extra: str = "") -> str:
    """Write a routes file that leads every model to *url*."""
    return f"""
[upstreams.up]
base_url = "{url}"
credential = "sk-upstream-secret"
{extra}
[routes]
"*" = {{ upstream = "up", model = "*" }}
"""


def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def blackhole() -> Iterator[int]:
    """Listen on a port whose queue is full: who connects there waits."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for sock in waiting:
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


@asynccontextmanager
async def accepting(serve: Callable[[socket.socket, int], Awaitable[None]]) -> AsyncIterator[int]:
    """Listen on a port; *serve* gets each connection, hardly buffered, and its number."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def one(sock: socket.socket, number: int) -> None:
        with sock, suppress(ConnectionError):
            await serve(sock, number)

    async def accept() -> None:
        number = 0
        while True:
            sock, _ = await loop.sock_accept(listener)
            tasks.add(asyncio.create_task(one(sock, number)))
            number += 1

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        listener.setblocking(False)
        tasks.add(asyncio.create_task(accept()))
        try:
            yield listener.getsockname()[1]
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for r in results if isinstance(r, Exception)] == []


async def read_request(sock: socket.socket) -> bytes:
    """Read one request whole, head and body; less, if the other side ends it."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    end = None
    while end is None or len(data) < end:
        piece = await loop.sock_recv(sock, 2**16)
        if not piece:
            break
        data += piece
        if end is None and b"\r\n\r\n" in data:
            start = data.index(b"\r\n\r\n") + 4
            length = bytes(data[:start]).lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            end = start + int(length)
    return bytes(data)


async def ask(proxy: Proxy, client: Client, body: bytes | None = None) -> Answer:
    await client.send(request(body or chat()))
    return await client.answer()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Assert that what stands inside takes no longer."""
    before = time.monotonic()
    yield
    assert time.monotonic() - before < seconds


# The pool


async def test_reuse(proxy: Proxy, upstream: Upstream) -> None:
    """One connection serves one request after the other, whoever asks and however they are framed."""
    upstream.will(answer(), stream(DONE), answer(204, b""), answer(500))
    for _ in range(4):
        await call(proxy.port, chat())
    await call(proxy.port, chat())
    assert len(upstream.connections) == 1


async def test_at_one_time(proxy: Proxy, upstream: Upstream) -> None:
    """A connection carries one request at a time; those of a crowd are kept for the next one."""
    together = asyncio.Barrier(5)

    async def step(conn: Conn, request: Received) -> None:
        await together.wait()
        await answer()(conn, request)

    upstream.will(step)
    for _ in range(2):
        await asyncio.gather(*(call(proxy.port, chat()) for _ in range(5)))
    assert len(upstream.connections) == 5


async def test_upstreams_share_nothing(upstream: Upstream) -> None:
    """Two upstreams have no connection in common, though they be one place."""
    toml = f"""
[upstreams.a]
base_url = "{upstream.url}"
[upstreams.b]
base_url = "{upstream.url}"
[routes]
"a" = {{ upstream = "a" }}
"b" = {{ upstream = "b" }}
"""
    async with serving(toml) as proxy:
        for model in "abab":
            assert (await call(proxy.port, chat(model))).status == 200
    assert [(r.connection) for r in upstream.requests] == [0, 1, 0, 1]


ENDED: dict[str, Step] = {
    "Connection: close": answer(headers=[JSON, (b"connection", b"CLOSE")]),
    "HTTP/1.0": raw(head(200, [JSON, LENGTH], version=b"1.0") + OK, then="keep"),
    "close-delimited": raw(head(200, [JSON]) + OK),
}


@pytest.mark.parametrize("form", ENDED)
async def test_not_kept(proxy: Proxy, upstream: Upstream, form: str) -> None:
    """A connection that its answer ends is left, and not used again."""
    upstream.will(ENDED[form])
    for number in range(2):
        assert (await call(proxy.port, chat())).body == OK
        async with asyncio.timeout(1):
            await upstream.connections[number].gone.wait()
    assert len(upstream.connections) == 2


CANARY = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncanary"
SURPLUS = {
    "a second answer": head(200, [JSON, LENGTH]) + OK + CANARY,
    "a length too short": head(200, [JSON, LENGTH]) + OK + b"canary",
    "a length of none": head(200, [JSON, (b"Content-Length", b"0")]) + b"canary",
    "one byte": head(200, [JSON, LENGTH]) + OK + b"x",
    "behind chunks": head(200, [JSON, CHUNKED]) + chunk(OK) + b"0\r\n\r\n" + b"canary",
    "204 with a body": head(204, [(b"Content-Length", b"6")]) + b"canary",
    "304 with a body": head(304, [(b"Content-Length", b"6")]) + b"canary",
}


@pytest.mark.parametrize("form", SURPLUS)
async def test_surplus(proxy: Proxy, upstream: Upstream, form: str) -> None:
    """What an upstream sends behind its answer reaches nobody, and ends the connection."""
    upstream.will(raw(SURPLUS[form], then="hang"), answer(body=b"next"))
    async with await Client.connect(proxy.port) as client:
        first = await ask(proxy, client)
        assert first.whole
        assert first.body in (OK, b"")
        async with asyncio.timeout(1):
            await upstream.connections[0].gone.wait()
        second = await ask(proxy, client)
        assert (second.status, second.body) == (200, b"next")
        assert b"canary" not in first.raw + second.raw
    assert len(upstream.connections) == 2


async def test_an_answer_that_nobody_asked_for(proxy: Proxy, upstream: Upstream) -> None:
    """What comes on an idle connection reaches nobody, and ends the connection."""
    upstream.will(answer(), answer(body=b"next"))
    async with await Client.connect(proxy.port) as client:
        assert (await ask(proxy, client)).body == OK
        await upstream.connections[0].send(CANARY)
        async with asyncio.timeout(1):
            await upstream.connections[0].gone.wait()
        assert (await ask(proxy, client)).body == b"next"
    assert [r.connection for r in upstream.requests] == [0, 1]


async def test_an_answer_before_the_request_is_up(upstream: Upstream) -> None:
    """An upstream that refuses a big request before it has read it is heard, and its connection left."""

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_recv(sock, 1000)
        await loop.sock_sendall(sock, head(413, [JSON, LENGTH]) + OK)
        while await loop.sock_recv(sock, 2**16):
            pass

    async with accepting(serve) as port, serving(to(f"http://127.0.0.1:{port}/v1")) as proxy:
        got = await call(proxy.port, chat(text="x" * 5_000_000))
        assert (got.status, got.body) == (413, OK)
        assert proxy.running is not None
        assert repr(proxy.running._transport) == "<Transport: 0 busy, 0 idle>"


async def test_idle_limit(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that nobody uses is closed, sooner than servers commonly do it themselves."""
    assert transport.IDLE_SECONDS <= 30
    monkeypatch.setattr(transport, "IDLE_SECONDS", 0.1)
    upstream.will(answer())
    await call(proxy.port, chat())
    async with asyncio.timeout(2):
        await upstream.connections[0].gone.wait()
    assert (await call(proxy.port, chat())).status == 200
    assert len(upstream.connections) == 2
    assert proxy.running is not None
    assert len(proxy.running._transport._open) == 1


async def test_age_limit(proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy a connection is, a time comes when it is replaced: names may have moved."""
    assert transport.MAX_AGE_SECONDS <= 600
    upstream.will(answer())
    await call(proxy.port, chat())
    monkeypatch.setattr(transport, "MAX_AGE_SECONDS", 0.0)
    for _ in range(2):
        await call(proxy.port, chat())
    assert [r.connection for r in upstream.requests] == [0, 0, 1]


# Connections that were dead


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_closed_while_idle(proxy: Proxy, upstream: Upstream, how: str) -> None:
    """A kept connection that its upstream has closed meanwhile is replaced unseen."""
    upstream.will(answer())
    await call(proxy.port, chat())
    conn = upstream.connections[0]
    if how == "reset":
        conn.reset()
    else:
        conn.writer.close()
    await conn.gone.wait()
    assert (await call(proxy.port, chat())).status == 200
    assert [r.connection for r in upstream.requests] == [0, 1]
    assert (await proxy.record(2))["outcome"] == "ok"


@pytest.mark.parametrize("death", [close, reset])
async def test_closed_on_arrival(
    proxy: Proxy, upstream: Upstream, death: Callable[[], Step]
) -> None:
    """A kept connection that dies under a request is replaced once, and the log says so."""
    upstream.will(answer(), death(), answer(body=b"second"))
    await call(proxy.port, chat())
    body = chat(text="the same")
    got = await call(proxy.port, body)
    assert (got.status, got.body) == (200, b"second")
    assert [r.connection for r in upstream.requests] == [0, 0, 1]
    assert upstream.requests[1].body == upstream.requests[2].body == body
    assert upstream.requests[1].head == upstream.requests[2].head
    record = await proxy.record(2)
    assert record["outcome"] == "ok"
    first, second = record["attempts"]
    assert (first["phase"], first["error"]) == ("sent", "upstream_disconnected")
    assert (second["error"], second["status"]) == (None, 200)


async def test_the_replacement_dies_too(proxy: Proxy, upstream: Upstream) -> None:
    """There is one replacement, and no more."""
    upstream.will(answer(), close())
    await call(proxy.port, chat())
    got = await call(proxy.port, chat())
    assert (got.status, got.code) == (502, "upstream_disconnected")
    assert got.value(b"x-should-retry") == b"false"
    assert len(upstream.requests) == 3
    assert len((await proxy.record(2))["attempts"]) == 2


async def test_the_replacement_is_fresh(proxy: Proxy, upstream: Upstream) -> None:
    """A dead connection is replaced by a new one, not by another that was kept."""
    together = asyncio.Barrier(2)

    async def step(conn: Conn, request: Received) -> None:
        await together.wait()
        await answer()(conn, request)

    upstream.will(step, step, close(), answer())
    await asyncio.gather(*(call(proxy.port, chat()) for _ in range(2)))
    assert (await call(proxy.port, chat())).status == 200
    assert upstream.requests[-1].connection == 2


@pytest.mark.parametrize("death", [close, reset])
async def test_a_fresh_connection_dies(
    proxy: Proxy, upstream: Upstream, death: Callable[[], Step]
) -> None:
    """A request that went up whole on a fresh connection is not sent again: it may be billed."""
    upstream.will(death())
    got = await call(proxy.port, chat())
    assert (got.status, got.code) == (502, "upstream_disconnected")
    assert got.value(b"x-should-retry") == b"false"
    assert len(upstream.requests) == 1
    (attempt,) = (await proxy.record())["attempts"]
    assert (attempt["phase"], attempt["maybe_billed"]) == ("sent", True)


async def test_a_kept_connection_dies_later(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that a kept connection carried for a while is not sent again: it was at work."""
    assert wire.STALE_SECONDS == 0.5
    monkeypatch.setattr(wire, "STALE_SECONDS", 0.05)

    async def late(conn: Conn, request: Received) -> None:
        await asyncio.sleep(0.1)
        conn.keep = False

    upstream.will(answer(), late)
    await call(proxy.port, chat())
    got = await call(proxy.port, chat())
    assert (got.status, got.code) == (502, "upstream_disconnected")
    assert got.value(b"x-should-retry") == b"false"
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\n", head(103)])
async def test_a_kept_connection_dies_in_its_answer(
    proxy: Proxy, upstream: Upstream, begun: bytes
) -> None:
    """A request whose answer had begun, were it with a byte, is not sent again."""
    upstream.will(answer(), raw(begun))
    await call(proxy.port, chat())
    got = await call(proxy.port, chat())
    assert got.status == 502
    assert got.value(b"x-should-retry") == b"false"
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("deaths", [1, 2])
async def test_died_in_the_upload(deaths: int) -> None:
    """A request that could not be sent whole is sent once more: nobody can have executed it."""
    body = chat(text="0123456789" * 500_000)
    seen: list[bytes] = []

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        if number < deaths:
            seen.append(await loop.sock_recv(sock, 1000))
            return
        seen.append(await read_request(sock))
        await loop.sock_sendall(sock, head(200, [JSON, LENGTH]) + OK)

    async with accepting(serve) as port, serving(to(f"http://127.0.0.1:{port}/v1")) as proxy:
        got = await call(proxy.port, body)
        record = await proxy.record()
        assert len(seen) == 2
        assert record["attempts"][0]["phase"] == "unsent"
        assert record["attempts"][0]["maybe_billed"] is False
        if deaths == 1:
            assert got.body == OK
            sent = seen[1].partition(b"\r\n\r\n")[2]
            assert sha256(sent).digest() == sha256(body).digest()
        else:
            assert (got.status, got.code) == (502, "upstream_disconnected")
            assert got.value(b"x-should-retry") != b"false"


async def test_a_thousand_dead_connections(proxy: Proxy, upstream: Upstream) -> None:
    """An upstream that closes after each answer, without a word of it, is not noticed once."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [JSON, LENGTH]) + OK)
        conn.keep = False

    upstream.will(step)
    async with await Client.connect(proxy.port) as client:
        for _ in range(1000):
            assert (await ask(proxy, client)).status == 200
    assert proxy.running is not None
    assert len(proxy.running._transport._open) <= 1


# Connecting


async def test_refused() -> None:
    """Where nobody listens, the caller learns so at once, and may try again."""
    port = closed_port()
    async with serving(to(f"http://127.0.0.1:{port}/v1")) as proxy:
        with within(1):
            got = await call(proxy.port, chat())
        assert (got.status, got.code) == (502, "upstream_connect")
        assert got.value(b"x-should-retry") != b"false"
        assert b"127.0.0.1" not in got.raw
        record = await proxy.record()
        assert (record["outcome"], record["error"]) == ("upstream_error", "upstream_connect")
        tries = [(attempt["phase"], attempt["maybe_billed"]) for attempt in record["attempts"]]
        assert tries == [("unsent", False)] * 3
        assert record["attempts"][0]["reason"] == f"127.0.0.1:{port}: connection refused"


async def test_no_answer_to_connect() -> None:
    """Where nobody answers, `timeout.connect` is how long the caller waits."""
    with blackhole() as port:
        toml = to(f"http://127.0.0.1:{port}/v1", 'timeout = { connect = "200ms" }')
        async with serving(toml) as proxy:
            with within(5):
                got = await call(proxy.port, chat())
            assert (got.status, got.code) == (502, "upstream_connect")
            attempt = (await proxy.record())["attempts"][0]
            assert attempt["phase"] == "unsent"
            assert re.fullmatch(
                rf"127\.0\.0\.1:{port}: no connection within 0\.[0-9]+ s", attempt["reason"]
            )


async def test_no_such_name() -> None:
    """A name that does not exist is told apart from a place that does not answer."""
    async with serving(to("http://does-not-exist.invalid/v1")) as proxy:
        got = await call(proxy.port, chat())
        assert (got.status, got.code) == (502, "upstream_dns")
        assert got.value(b"x-should-retry") != b"false"
        assert b"does-not-exist" not in got.raw
        attempt = (await proxy.record())["attempts"][0]
        assert attempt["phase"] == "unsent"
        assert attempt["reason"].startswith("does-not-exist.invalid:80: ")


async def test_ipv6() -> None:
    """An upstream may be an IPv6 address."""
    async with Upstream(host="::1") as upstream, serving(routes_to(upstream)) as proxy:
        assert (await call(proxy.port, chat())).status == 200
        assert upstream.requests[0].value(b"host") == b"[::1]:%d" % upstream.port


class Names:
    """Stands in for the system's resolver: *places* maps a host to (address, port) pairs.

    *asked* are the look-ups that reached it; a host in *slow* waits until its event is set.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[tuple[str, int]]] = {}
        self.slow: dict[str, threading.Event] = {}
        self.asked: list[str] = []

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        if host not in self.places:
            return real_getaddrinfo(host, port, *_, **__)
        self.asked.append(host)
        if host in self.slow:
            self.slow[host].wait(10)
        kind = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [
            (socket.AF_INET6 if ":" in place[0] else socket.AF_INET, *kind, place)
            for place in self.places[host]
        ]


real_getaddrinfo = socket.getaddrinfo


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    for slow in names.slow.values():
        slow.set()


async def test_a_dead_first_address(names: Names, upstream: Upstream) -> None:
    """A name whose first address is dead or refuses is reached at the next one, quickly."""
    with blackhole() as port:
        for dead in (("127.0.0.1", port), ("127.0.0.1", closed_port()), ("::1", closed_port())):
            names.places["up.test"] = [dead, ("127.0.0.1", upstream.port)]
            async with serving(to("http://up.test/v1")) as proxy:
                with within(1):
                    assert (await call(proxy.port, chat())).status == 200


async def test_all_addresses_are_dead(names: Names) -> None:
    """A name of which no address answers is refused like one address that does not."""
    names.places["up.test"] = [("127.0.0.1", closed_port()), ("127.0.0.1", closed_port())]
    async with serving(to("http://up.test/v1")) as proxy:
        with within(1):
            assert (await call(proxy.port, chat())).code == "upstream_connect"


async def test_names_are_remembered(
    names: Names, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name is looked up once in a while, not once a connection."""
    assert transport.DNS_SECONDS <= 60
    names.places["up.test"] = [("127.0.0.1", upstream.port)]
    upstream.will(answer(close=True, headers=[(b"Connection", b"close")]))
    async with serving(to("http://up.test/v1")) as proxy:
        for _ in range(5):
            await call(proxy.port, chat())
        assert len(upstream.connections) == 5
        assert names.asked == ["up.test"]
        monkeypatch.setattr(transport, "DNS_SECONDS", 0.0)
        for _ in range(2):
            await call(proxy.port, chat())
        assert len(names.asked) == 3


async def test_names_are_forgotten(names: Names, upstream: Upstream) -> None:
    """A name at whose addresses nobody answers is looked up anew, and so is one that had none."""
    names.places["up.test"] = [("127.0.0.1", closed_port())]
    async with serving(to("http://up.test/v1", "retry = { attempts = 1 }")) as proxy:
        assert (await call(proxy.port, chat())).code == "upstream_connect"
        names.places["up.test"] = [("127.0.0.1", upstream.port)]
        assert (await call(proxy.port, chat())).status == 200
        assert len(names.asked) == 2


async def test_one_look_up_for_all(names: Names, upstream: Upstream) -> None:
    """Requests for one name at one time wait for one look-up of it."""
    names.places["up.test"] = [("127.0.0.1", upstream.port)]
    names.slow["up.test"] = threading.Event()
    async with serving(to("http://up.test/v1")) as proxy:
        calls = [asyncio.create_task(call(proxy.port, chat())) for _ in range(10)]
        assert proxy.running is not None
        async with asyncio.timeout(5):
            while proxy.running.gate.inflight < 10:
                await asyncio.sleep(0.005)
        names.slow["up.test"].set()
        assert [got.status for got in await asyncio.gather(*calls)] == [200] * 10
        assert names.asked == ["up.test"]


async def test_a_slow_look_up(names: Names, upstream: Upstream) -> None:
    """A look-up that hangs delays nobody but those who need that name, and them for a while."""
    for name in ("slow.test", "fast.test"):
        names.places[name] = [("127.0.0.1", upstream.port)]
    names.slow["slow.test"] = threading.Event()
    toml = """
[upstreams.slow]
base_url = "http://slow.test/v1"
timeout = { connect = "500ms" }
[upstreams.fast]
base_url = "http://fast.test/v1"
[routes]
"slow" = { upstream = "slow" }
"fast" = { upstream = "fast" }
"""
    async with serving(toml) as proxy:
        slow = asyncio.create_task(call(proxy.port, chat("slow")))
        async with asyncio.timeout(5):
            while not names.asked:
                await asyncio.sleep(0.005)
        with within(0.4):
            assert (await call(proxy.port, chat("fast"))).status == 200
        assert not slow.done()
        assert (await slow).code in ("upstream_connect", "upstream_dns")
        names.slow["slow.test"].set()
        assert (await call(proxy.port, chat("slow"))).status == 200


# TLS


AUTHORITY = trustme.CA()


@pytest.fixture
def ca(tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(file)
    return f'ca = "{file}"'


def context(
    authority: trustme.CA,
    *names: str,
    begins: datetime | None = None,
    ends: datetime | None = None,
) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, not_before=begins, not_after=ends).configure_cert(tls)
    return tls


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_tls(ca: str, host: str) -> None:
    """An upstream whose certificate the table's authority has signed is reached by that name."""
    tls = context(AUTHORITY, "localhost", "127.0.0.1")
    asked: list[str | None] = []
    tls.sni_callback = lambda _, name, __: asked.append(name)
    async with Upstream(tls) as upstream:
        body = chat(text="x" * 3_000_000)
        upstream.will(answer(body=body))
        async with serving(to(f"https://{host}:{upstream.port}/v1", ca)) as proxy:
            for _ in range(2):
                got = await call(proxy.port, body)
                assert (got.status, got.body == body) == (200, True)
        assert upstream.requests[1].body == body
        assert upstream.requests[0].value(b"host") == f"{host}:{upstream.port}".encode()
        assert len(upstream.connections) == 1
        assert asked == ["localhost" if host == "localhost" else None]


@pytest.mark.parametrize("how", ["cut", "reset", "hang"])
async def test_tls_streams(ca: str, how: str) -> None:
    """What holds of streams holds of encrypted ones."""
    async with Upstream(context(AUTHORITY, "localhost")) as upstream:
        toml = to(f"https://localhost:{upstream.port}/v1", ca + '\ntimeout = { idle = "300ms" }')
        async with serving(toml) as proxy:
            upstream.will(stream(event(b"1"), event(b"2"), end=how))
            got = await call(proxy.port, chat(stream=True))
            assert got.body.startswith(event(b"1") + event(b"2") + b'data: {"error"')
            assert not got.whole
            async with asyncio.timeout(2):
                await upstream.connections[0].gone.wait()


@pytest.mark.parametrize("said", [True, False])
async def test_tls_ends_with_a_word(ca: str, said: bool) -> None:
    """An answer that a close ends is whole only if TLS says so: anybody can forge a bare FIN."""

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [JSON]) + b'{"half":')
        conn.keep = False
        if not said:
            await asyncio.sleep(0.05)
            sock = conn.writer.get_extra_info("socket")
            with socket.socket(fileno=os.dup(sock.fileno())) as bare:
                bare.shutdown(socket.SHUT_WR)
            await conn.left()

    async with (
        Upstream(context(AUTHORITY, "localhost")) as upstream,
        serving(to(f"https://localhost:{upstream.port}/v1", ca)) as proxy,
    ):
        upstream.will(step)
        got = await call(proxy.port, chat())
        assert (got.body, got.whole) == (b'{"half":', said)
        assert (await proxy.record())["outcome"] == ("ok" if said else "upstream_cut")


PAST = datetime.now(UTC) - timedelta(days=2)
BAD_TLS: dict[str, Callable[[], ssl.SSLContext]] = {
    "is signed by an unknown CA": lambda: context(trustme.CA(), "localhost"),
    "is for another name": lambda: context(AUTHORITY, "other.test"),
    "has expired": lambda: context(
        AUTHORITY, "localhost", begins=PAST - timedelta(days=2), ends=PAST
    ),
    "is not valid yet": lambda: context(AUTHORITY, "localhost", begins=PAST + timedelta(days=9)),
    "is self-signed": lambda: private("leaf"),
}


@pytest.mark.parametrize("why", BAD_TLS)
async def test_bad_tls(ca: str, why: str) -> None:
    """Without a certificate that holds for the name nothing is sent; the caller learns that it is the
    certificate, and the operator where, and what is wrong with it.
    """
    async with Upstream(BAD_TLS[why]()) as upstream:
        async with serving(to(f"https://localhost:{upstream.port}/v1", ca)) as proxy:
            got = await call(proxy.port, chat())
            assert (got.status, got.code) == (502, "upstream_tls")
            assert b"localhost" not in got.raw
            (attempt,) = (await proxy.record())["attempts"]
            assert attempt["phase"] == "unsent"
            assert attempt["reason"] == f"localhost:{upstream.port}: the certificate {why}"
            (event,) = proxy.events("upstream_certificate")
            assert (event["upstream"], event["reason"]) == ("up", attempt["reason"])
        assert all(b"sk-upstream" not in r.head for r in upstream.requests)


def private(form: str, directory: Path | None = None) -> ssl.SSLContext:
    """Return what shows a certificate such as people make by hand: it is its own authority (`leaf`), or
    its authority says neither what it may do nor who has signed (`lax`). The file to trust goes into
    *directory*.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "private test")])
    leaf_key = key if form == "leaf" else ec.generate_private_key(ec.SECP256R1())

    def certificate(of: ec.EllipticCurvePrivateKey, subject: x509.Name) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    subject = name if form == "leaf" else x509.Name([])
    leaf = certificate(leaf_key, subject).add_extension(names, critical=False)
    root = certificate(key, name).add_extension(x509.BasicConstraints(True, None), critical=False)
    shown = leaf.sign(key, SHA256()).public_bytes(Encoding.PEM)
    trusted = shown if form == "leaf" else root.sign(key, SHA256()).public_bytes(Encoding.PEM)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as place:
        chain = Path(place, "chain.pem")
        secret = leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain.write_bytes(secret + shown)
        tls.load_cert_chain(chain)
    if directory is not None:
        (directory / "private.pem").write_bytes(trusted)
    return tls


@pytest.mark.parametrize("form", ["leaf", "lax"])
async def test_a_private_authority(tmp_path: Path, form: str) -> None:
    """What curl takes with a `ca` file, we take, on every Python: a certificate that is its own
    authority, and an authority that heeds no profile (from Python 3.13 on, the default is strict).
    """
    async with Upstream(private(form, tmp_path)) as upstream:
        file = tmp_path / "private.pem"
        url = f"https://localhost:{upstream.port}"
        async with serving(to(f"{url}/v1", f'ca = "{file}"')) as proxy:
            upstream.will(answer(), answer())
            assert (await call(proxy.port, chat())).status == 200
        curl = shutil.which("curl")
        if curl is not None:
            command = (curl, "-sS", "--noproxy", "*", "--cacert", str(file), f"{url}/v1/models")
            asked = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
            said = await asked.communicate()
            assert asked.returncode == 0, said


# Python is strict from there on. What nothing can install is not skipped: CI counts a skip as a failure.
if sys.version_info >= (3, 13):

    async def test_a_public_authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where no `ca` is named Python's profile holds, and a breach of it is told as one."""
        async with Upstream(private("lax", tmp_path)) as upstream:
            # which is OpenSSL's own place for them
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "private.pem"))
            async with serving(to(f"https://localhost:{upstream.port}/v1")) as proxy:
                assert (await call(proxy.port, chat())).code == "upstream_tls"
                reason = (await proxy.record())["attempts"][0]["reason"]
                assert "breaks the profile of RFC 5280 (" in reason


async def test_an_authority_is_one_upstreams_own(ca: str) -> None:
    """What one upstream's table trusts, another's does not, though they be one place."""
    async with Upstream(context(AUTHORITY, "localhost")) as upstream:
        url = f"https://localhost:{upstream.port}/v1"
        toml = f"""
[upstreams.a]
base_url = "{url}"
{ca}
[upstreams.b]
base_url = "{url}"
[routes]
"a" = {{ upstream = "a" }}
"b" = {{ upstream = "b" }}
"""
        async with serving(toml) as proxy:
            assert (await call(proxy.port, chat("a"))).status == 200
            assert (await call(proxy.port, chat("b"))).code == "upstream_tls"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (b"", "connection lost"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "handshake failure"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "wrong version number"),
        (b"canary", "wrong version number"),
    ],
)
async def test_a_handshake_that_breaks(ca: str, words: bytes, why: str) -> None:
    """A port that does not speak TLS, or breaks off, is told as what it is, and nothing was sent."""

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        hello = await loop.sock_recv(sock, 2**16)
        assert b"sk-upstream" not in hello
        await loop.sock_sendall(sock, words)

    async with accepting(serve) as port, serving(to(f"https://localhost:{port}/v1", ca)) as proxy:
        assert (await call(proxy.port, chat())).code == "upstream_tls"
        (attempt, *_) = (await proxy.record())["attempts"]
        assert attempt["phase"] == "unsent"
        assert attempt["reason"].startswith(f"localhost:{port}: ")
        assert attempt["reason"].endswith(why)


async def test_a_handshake_that_hangs(ca: str) -> None:
    """A handshake counts as connecting, and may take no longer."""
    left = asyncio.Event()

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        while await loop.sock_recv(sock, 2**16):
            pass
        left.set()

    async with accepting(serve) as port:
        toml = to(f"https://localhost:{port}/v1", ca + '\ntimeout = { connect = "200ms" }')
        async with serving(toml) as proxy:
            with within(1):
                assert (await call(proxy.port, chat())).code == "upstream_connect"
            async with asyncio.timeout(1):
                await left.wait()


# Egress proxies


class Egress:
    """An egress proxy: it connects its clients to *place*, whatever they name; *heads* are their words."""

    def __init__(
        self, place: int, verdict: bytes = b"HTTP/1.1 200 Go Ahead\r\nX: y\r\n\r\n"
    ) -> None:
        self.heads: list[bytes] = []
        self._place = place
        self._verdict = verdict
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Egress":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self._verdict)
            if b" 200 " in self._verdict:
                inner, outer = await asyncio.open_connection("127.0.0.1", self._place)
                await asyncio.gather(_pipe(reader, outer), _pipe(inner, writer))
        finally:
            writer.transport.abort()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("user", ["", "us%40er:p%3Ass%2F@"])
async def test_tunnel(ca: str, user: str) -> None:
    """To an encrypted upstream an egress proxy gives a way through, and sees nothing else."""
    async with (
        Upstream(context(AUTHORITY, "up.invalid")) as upstream,
        Egress(upstream.port) as egress,
    ):
        extra = f'proxy = "http://{user}127.0.0.1:{egress.port}"\n{ca}'
        async with serving(to("https://up.invalid/v1", extra)) as proxy:
            for _ in range(2):
                assert (await call(proxy.port, chat())).status == 200
        auth = base64.b64encode(b"us@er:p:ss/")
        line = b"Proxy-Authorization: Basic " + auth + b"\r\n" if user else b""
        assert egress.heads == [
            b"CONNECT up.invalid:443 HTTP/1.1\r\nHost: up.invalid:443\r\n" + line + b"\r\n"
        ]
        assert upstream.requests[0].line == b"POST /v1/chat/completions HTTP/1.1"
        assert upstream.requests[0].value(b"host") == b"up.invalid"
        assert upstream.requests[0].value(b"proxy-authorization") is None


VERDICTS = [
    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 6\r\n\r\ncanary",
    b"HTTP/1.1 503 canary\r\n\r\n",
    b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere.invalid/\r\n\r\n",
    b"SSH-2.0-canary\r\n\r\n",
    b"canary",
    b"",
]


@pytest.mark.parametrize("verdict", VERDICTS)
async def test_no_tunnel(ca: str, verdict: bytes) -> None:
    """An egress proxy that gives no way through is told like an upstream that cannot be reached; one that would
    say the same again, to whom it does not know say, is asked once.
    """
    async with Upstream() as upstream, Egress(upstream.port, verdict) as egress:
        extra = f'proxy = "http://user:secret@127.0.0.1:{egress.port}"\n{ca}'
        async with serving(to("https://up.invalid/v1", extra)) as proxy:
            got = await call(proxy.port, chat())
            assert (got.status, got.code) == (502, "upstream_connect")
            assert b"canary" not in got.raw
            assert (await proxy.record())["attempts"][0]["phase"] == "unsent"
            assert "secret" not in proxy.log.read_text()
        assert upstream.connections == []
        assert len(egress.heads) == (1 if b" 407 " in verdict else 3)


async def test_a_tunnel_to_somebody_else(ca: str) -> None:
    """A way through that leads elsewhere is found out by the certificate."""
    async with (
        Upstream(context(AUTHORITY, "other.invalid")) as upstream,
        Egress(upstream.port) as egress,
    ):
        extra = f'proxy = "http://127.0.0.1:{egress.port}"\n{ca}'
        async with serving(to("https://up.invalid/v1", extra)) as proxy:
            assert (await call(proxy.port, chat())).code == "upstream_tls"


async def test_an_egress_proxy_that_hangs(ca: str) -> None:
    """The way through an egress proxy counts as connecting, and may take no longer."""
    async with Upstream() as egress:
        egress.will(hang())
        extra = f'proxy = "http://{egress.authority}"\n{ca}\ntimeout = {{ connect = "200ms" }}'
        async with serving(to("https://up.invalid/v1", extra)) as proxy:
            with within(1):
                assert (await call(proxy.port, chat())).code == "upstream_connect"
            async with asyncio.timeout(1):
                await egress.connections[0].gone.wait()


@pytest.mark.parametrize("user", ["", "us%40er:p%3Ass%2F@"])
async def test_absolute_form(user: str) -> None:
    """To a plain upstream an egress proxy is asked for the whole URL, and shown its own credential."""
    async with Upstream() as egress:
        extra = f'proxy = "http://{user}{egress.authority}"'
        async with serving(to("http://up.invalid:8000/v1", extra)) as proxy:
            for _ in range(2):
                assert (await call(proxy.port, chat())).status == 200
        seen = egress.requests[0]
        assert seen.line == b"POST http://up.invalid:8000/v1/chat/completions HTTP/1.1"
        assert seen.values(b"host") == [b"up.invalid:8000"]
        auth = b"Basic " + base64.b64encode(b"us@er:p:ss/")
        assert seen.values(b"proxy-authorization") == ([auth] if user else [])
        assert len(egress.connections) == 1


async def test_an_egress_proxy_that_does_not_know_us(upstream: Upstream) -> None:
    """A 407 of the egress proxy of a plain upstream is ours to mend, and not shown; it is asked once, and so
    is another upstream.
    """
    async with Upstream() as egress:
        challenge = (b"Proxy-Authenticate", b'Basic realm="canary"')
        egress.will(answer(407, b"canary", [JSON, challenge]))
        toml = to("http://up.invalid/v1", f'proxy = "http://us:er@{egress.authority}"')
        toml += f"""
other = {{ upstream = "up", fallback = ["well/m"] }}
[upstreams.well]
base_url = "{upstream.url}"
"""
        async with serving(toml) as proxy:
            got = await call(proxy.port, chat())
            assert (got.status, got.code) == (502, "upstream_connect")
            assert b"canary" not in got.raw
            [attempt] = (await proxy.record())["attempts"]
            assert (attempt["phase"], attempt["maybe_billed"]) == ("unsent", False)
            assert len(egress.requests) == 1
            assert (await call(proxy.port, chat("other"))).status == 200
        assert len(egress.requests) == 2


async def test_a_407_of_an_upstream_is_its_own(proxy: Proxy, upstream: Upstream) -> None:
    """Where there is no egress proxy, a 407 is an answer like any other."""
    upstream.will(answer(407, b"theirs"))
    got = await call(proxy.port, chat())
    assert (got.status, got.body, len(upstream.requests)) == (407, b"theirs", 1)


# Certificates that we show


class Demanding:
    """An upstream at `localhost` that serves those only whose certificate *trusted* has signed; *read* is what
    it has read of requests. In threads: the loops' own servers send no alert.
    """

    def __init__(self, version: ssl.TLSVersion, trusted: trustme.CA) -> None:
        self.read: list[bytes] = []
        self._tls = context(AUTHORITY, "localhost")
        self._tls.maximum_version = version
        self._tls.verify_mode = ssl.CERT_REQUIRED
        trusted.configure_trust(self._tls)

    def __enter__(self) -> "Demanding":
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://localhost:{self._sock.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._serve(self._sock.accept()[0])

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(5)
        with sock, suppress(OSError):
            tls = self._tls.wrap_socket(sock, server_side=True)
            self.read.append(tls.recv(65536))
            tls.sendall(head(200, [JSON, LENGTH, (b"Connection", b"close")]) + OK)
            tls.close()


def shown(authority: trustme.CA, directory: Path, name: str = "client") -> str:
    """Write a certificate and its key; return the line of a table that shows it."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    made = authority.issue_cert("trunkline@example.org")
    certificate.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return f'client_certificate = {{ certificate = "{certificate}", key = "{key}" }}'


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_certificate(ca: str, tmp_path: Path, version: ssl.TLSVersion) -> None:
    """An upstream that wants a certificate of us is shown the one in its table, and takes requests then."""
    with Demanding(version, AUTHORITY) as upstream:
        extra = f"{ca}\n{shown(AUTHORITY, tmp_path)}"
        async with serving(to(upstream.url, extra)) as proxy:
            for _ in range(2):
                assert (await call(proxy.port, chat())).status == 200
        assert len(upstream.read) == 2


@pytest.mark.parametrize("what", ["none", "another's"])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("where", [serving, process])
async def test_a_client_certificate_that_is_not_taken(
    ca: str, tmp_path: Path, upstream: Upstream, version: ssl.TLSVersion, what: str, where: Any
) -> None:
    """An upstream that does not get the certificate which it demands has read nothing: the caller is told of
    TLS, nothing is billed, nothing sent again there, though TLS 1.3 says so to what was sent already;
    another upstream is asked.
    """
    with Demanding(version, AUTHORITY) as demanding:
        extra = ca + ("" if what == "none" else "\n" + shown(trustme.CA(), tmp_path))
        toml = to(demanding.url, extra)
        toml += f"""
other = {{ upstream = "up", fallback = ["well/m"] }}
[upstreams.well]
base_url = "{upstream.url}"
"""
        async with where(toml) as proxy:
            got = await call(proxy.port, chat())
            assert (got.status, got.code) == (502, "upstream_tls")
            assert got.value(b"x-should-retry") is None
            attempts = (await proxy.record())["attempts"]
            for attempt in attempts:
                assert (attempt["phase"], attempt["error"]) == ("unsent", "upstream_tls")
                assert attempt["maybe_billed"] is False
            if version is ssl.TLSVersion.TLSv1_3:
                assert len(attempts) == 1
                assert "alert" in (await proxy.event("upstream_certificate"))["reason"]
            assert (await call(proxy.port, chat("other"))).status == 200
        assert demanding.read == []
        assert len(upstream.requests) == 1


async def test_a_client_certificate_is_read_anew(ca: str, tmp_path: Path) -> None:
    """A reload shows what the files hold by then; until then the old one is shown."""
    line = shown(trustme.CA(), tmp_path)
    with Demanding(ssl.TLSVersion.TLSv1_3, AUTHORITY) as upstream:
        toml = to(upstream.url, f"{ca}\n{line}")
        async with process(toml) as proxy:
            assert (await call(proxy.port, chat())).code == "upstream_tls"
            shown(AUTHORITY, tmp_path)
            assert (await call(proxy.port, chat())).code == "upstream_tls"
            assert (await proxy.reload())["event"] == "reloaded"
            assert (await call(proxy.port, chat())).status == 200


async def test_upstreams_show_their_own(ca: str, tmp_path: Path) -> None:
    """What one upstream's table shows, another's does not, though they be one place."""
    with Demanding(ssl.TLSVersion.TLSv1_3, AUTHORITY) as upstream:
        url = upstream.url
        toml = f"""
[upstreams.a]
base_url = "{url}"
{ca}
{shown(AUTHORITY, tmp_path)}
[upstreams.b]
base_url = "{url}"
{ca}
[routes]
a = {{ upstream = "a" }}
b = {{ upstream = "b" }}
"""
        async with serving(toml) as proxy:
            assert (await call(proxy.port, chat("a"))).status == 200
            assert (await call(proxy.port, chat("b"))).code == "upstream_tls"


async def test_the_environment_is_ignored(upstream: Upstream, tmp_path: Path) -> None:
    """No egress proxy and no credential is taken from the environment or from a netrc file."""
    (tmp_path / ".netrc").write_text("default login canary password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    async with Upstream() as trap:
        variables = [f"{name}_proxy" for name in ("http", "https", "all", "no")]
        env = dict.fromkeys(
            [*variables, *(v.upper() for v in variables)], f"http://{trap.authority}"
        )
        env |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
        async with process(routes_to(upstream), env) as proxy:
            assert (await call(proxy.port, chat())).status == 200
        assert trap.connections == []
    assert upstream.requests[0].values(b"authorization") == [b"Bearer sk-upstream-secret"]
    assert b"canary" not in upstream.requests[0].head


# Time


async def test_first_byte_late(upstream: Upstream) -> None:
    """An upstream that does not begin to answer in time is left, and not asked again by anybody."""
    async with serving(routes_to(upstream, 'timeout = { first_byte = "200ms" }')) as proxy:
        upstream.will(hang())
        with within(1):
            got = await call(proxy.port, chat())
        assert (got.status, got.code) == (504, "upstream_timeout")
        assert got.json()["error"]["type"] == "timeout_error"
        assert got.value(b"x-should-retry") == b"false"
        async with asyncio.timeout(1):
            await upstream.connections[0].gone.wait()
        assert len(upstream.requests) == 1
        record = await proxy.record()
        assert (record["outcome"], record["status"]) == ("timeout", 504)
        (attempt,) = record["attempts"]
        assert (attempt["phase"], attempt["maybe_billed"]) == ("sent", True)


@pytest.mark.parametrize("begun", [b"HTTP/1.1 200 OK\r\n", b""])
async def test_a_dribbled_head(upstream: Upstream, begun: bytes) -> None:
    """A head that comes in drops, or behind one interim answer after the other, wins no time."""
    drop = b"A: b\r\n" if begun else head(102)

    async def step(conn: Conn, request: Received) -> None:
        await conn.send(begun)
        while True:
            await conn.send(drop)
            await asyncio.sleep(0.03)

    async with serving(routes_to(upstream, 'timeout = { first_byte = "200ms" }')) as proxy:
        upstream.will(step)
        with within(1):
            got = await call(proxy.port, chat())
        assert (got.status, got.code) == (504, "upstream_timeout")
        async with asyncio.timeout(1):
            await upstream.connections[0].gone.wait()


async def test_a_late_first_event_is_not_a_late_first_byte(upstream: Upstream) -> None:
    """Once the head has come, it is not `first_byte` that judges."""
    async with serving(routes_to(upstream, 'timeout = { first_byte = "100ms" }')) as proxy:
        upstream.will(stream(b": wait\n\n", DONE, pause=0.3))
        assert (await call(proxy.port, chat(stream=True))).whole


BIG = chat(text="0123456789" * 2_000_000)


async def test_an_upstream_that_never_reads() -> None:
    """An upstream that takes nothing for too long is left; nobody can have executed the request."""
    left = asyncio.Event()

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_recv(sock, 1000)
        await closed_by_peer(sock)
        left.set()

    async with accepting(serve) as port:
        toml = to(f"http://127.0.0.1:{port}/v1", 'timeout = { write = "300ms" }')
        async with serving(toml) as proxy:
            with within(15):
                got = await call(proxy.port, BIG)
            assert (got.status, got.code) == (504, "upstream_timeout")
            async with asyncio.timeout(1):
                await left.wait()
            record = await proxy.record()
            assert record["outcome"] == "timeout"
            (attempt,) = record["attempts"]
            assert (attempt["phase"], attempt["maybe_billed"]) == ("unsent", False)


async def closed_by_peer(sock: socket.socket) -> None:
    """Wait until the other side has closed *sock*, without reading what it sent."""
    info = 0
    while info not in (7, 8):  # TCP_CLOSE, TCP_CLOSE_WAIT
        await asyncio.sleep(0.02)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO)


async def test_an_upstream_that_reads_slowly() -> None:
    """An upload may take many times as long as `write`, as long as it goes on."""

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(10):
            await loop.sock_recv(sock, 40_000)
            await asyncio.sleep(0.1)
        await read_request_rest(sock)
        await loop.sock_sendall(sock, head(200, [JSON, LENGTH]) + OK)

    async def read_request_rest(sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        tail = b""
        while not tail.endswith(b'"}]}'):
            data = await loop.sock_recv(sock, 2**20)
            assert data
            tail = (tail + data)[-10:]

    async with accepting(serve) as port:
        toml = to(f"http://127.0.0.1:{port}/v1", 'timeout = { write = "300ms" }')
        async with serving(toml) as proxy:
            assert (await call(proxy.port, BIG)).body == OK


async def test_total_before_the_first_byte(upstream: Upstream) -> None:
    """`total` bounds the wait for a first byte, too."""
    async with serving(routes_to(upstream, 'timeout = { total = "200ms" }')) as proxy:
        upstream.will(hang())
        with within(1):
            got = await call(proxy.port, chat())
        assert (got.status, got.code) == (504, "upstream_timeout")
        assert (await proxy.record())["outcome"] == "timeout"


async def test_total_spent_before_the_upstream(upstream: Upstream) -> None:
    """A request whose time was up before it could be sent is not sent, kept connection or not."""
    async with serving(routes_to(upstream, 'timeout = { total = "200ms" }')) as proxy:
        assert (await call(proxy.port, chat())).status == 200
        async with await Client.connect(proxy.port) as client:
            slow = request(chat())
            await client.send(slow[:-5])
            await asyncio.sleep(0.3)
            await client.send(slow[-5:])
            assert (await client.answer()).code == "upstream_timeout"
        record = await proxy.record(2)
        assert record["attempts"] == []
    assert len(upstream.requests) == 1


async def test_total_while_connecting() -> None:
    """`total` bounds the time it takes to connect, too."""
    with blackhole() as port:
        toml = to(f"http://127.0.0.1:{port}/v1", 'timeout = { total = "200ms" }')
        async with serving(toml) as proxy:
            with within(1):
                assert (await call(proxy.port, chat())).status in (502, 504)


async def test_total_of_two_attempts(upstream: Upstream) -> None:
    """`total` is one bound over all attempts, not one for each."""

    async def late(conn: Conn, request: Received) -> None:
        await asyncio.sleep(0.3)
        conn.keep = False

    async with serving(routes_to(upstream, 'timeout = { total = "400ms" }')) as proxy:
        upstream.will(answer(), late, hang())
        await call(proxy.port, chat())
        with within(0.65):
            assert (await call(proxy.port, chat())).code == "upstream_timeout"
        assert len(upstream.requests) == 3


# Departure


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@asynccontextmanager
async def leaving(proxy: Proxy, body: bytes = b"") -> AsyncIterator[None]:
    """Ask, and leave after what stands inside; then nothing of the request may be left within a second."""
    assert proxy.running is not None
    descriptors, tasks = _descriptors(), asyncio.all_tasks()
    client = await Client.connect(proxy.port)
    client.writer.write(request(body or chat()))
    async with asyncio.timeout(5):
        while proxy.running.gate.inflight == 0:
            await asyncio.sleep(0.005)
    yield
    client.close()
    async with asyncio.timeout(1):
        while proxy.running.gate.inflight or proxy.running._transport._open:
            await asyncio.sleep(0.005)
        # One may be opened for good by whoever is the first to connect.
        while _descriptors() > descriptors + 1 or asyncio.all_tasks() - tasks:
            await asyncio.sleep(0.005)
    record = await proxy.record()
    assert (record["outcome"], record["status"]) == ("client_gone", 499)
    assert proxy.running.gate.held == 0


async def test_gone_while_connecting() -> None:
    """A client that leaves while its upstream is being connected to takes the attempt with it."""
    with blackhole() as port:
        async with serving(to(f"http://127.0.0.1:{port}/v1")) as proxy:
            async with leaving(proxy):
                await asyncio.sleep(0.05)
            (attempt,) = (await proxy.record())["attempts"]
            assert (attempt["phase"], attempt["maybe_billed"]) == ("unsent", False)


async def test_gone_while_a_name_is_looked_up(names: Names, upstream: Upstream) -> None:
    """A client that leaves during a look-up leaves it to others, who may need it."""
    names.places["up.test"] = [("127.0.0.1", upstream.port)]
    names.slow["up.test"] = threading.Event()
    async with serving(to("http://up.test/v1")) as proxy:
        client = await Client.connect(proxy.port)
        await client.send(request(chat()))
        async with asyncio.timeout(5):
            while not names.asked:
                await asyncio.sleep(0.005)
        other = asyncio.create_task(call(proxy.port, chat()))
        client.close()
        assert (await proxy.record(under_way=1))["outcome"] == "client_gone"
        names.slow["up.test"].set()
        assert (await other).status == 200
        assert names.asked == ["up.test"]
    assert len(upstream.requests) == 1


async def test_gone_in_the_handshake(ca: str) -> None:
    """A client that leaves during a handshake ends it."""
    left = asyncio.Event()

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        while await loop.sock_recv(sock, 2**16):
            pass
        left.set()

    async with accepting(serve) as port, serving(to(f"https://localhost:{port}/v1", ca)) as proxy:
        client = await Client.connect(proxy.port)
        await client.send(request(chat()))
        assert proxy.running is not None
        async with asyncio.timeout(5):
            while proxy.running.gate.inflight == 0:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        client.close()
        async with asyncio.timeout(1):
            await left.wait()
        assert (await proxy.record())["outcome"] == "client_gone"


async def test_gone_during_the_upload() -> None:
    """A client that leaves while its request goes up stops it."""
    started, left = asyncio.Event(), asyncio.Event()

    async def serve(sock: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_recv(sock, 1000)
        started.set()
        await closed_by_peer(sock)
        left.set()

    async with accepting(serve) as port, serving(to(f"http://127.0.0.1:{port}/v1")) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(BIG))
            await started.wait()
        async with asyncio.timeout(1):
            await left.wait()
        record = await proxy.record()
        assert (record["outcome"], record["status"]) == ("client_gone", 499)
        assert proxy.running is not None
        assert repr(proxy.running._transport) == "<Transport: 0 busy, 0 idle>"
        assert proxy.running.gate.held == 0


async def test_gone_before_the_first_byte(proxy: Proxy, upstream: Upstream) -> None:
    """A client that leaves while its upstream thinks frees the upstream."""
    upstream.will(hang())
    async with leaving(proxy):
        while not upstream.requests:
            await asyncio.sleep(0.005)
    await upstream.connections[0].gone.wait()
    (attempt,) = (await proxy.record())["attempts"]
    assert (attempt["phase"], attempt["maybe_billed"]) == ("sent", True)


async def test_gone_by_the_hundred(upstream: Upstream) -> None:
    """Whatever three hundred clients were waiting for when they left, nothing is left of them."""
    with blackhole() as port:
        toml = f"""
[upstreams.up]
base_url = "{upstream.url}"
[upstreams.hole]
base_url = "http://127.0.0.1:{port}/v1"
[routes]
"up" = {{ upstream = "up" }}
"hole" = {{ upstream = "hole" }}
"""
        upstream.will(hang())
        async with serving(toml) as proxy:
            assert proxy.running is not None
            descriptors, tasks = _descriptors(), asyncio.all_tasks()
            for _ in range(10):
                clients = [await Client.connect(proxy.port) for _ in range(30)]
                for index, client in enumerate(clients):
                    client.writer.write(request(chat("up" if index % 2 else "hole")))
                async with asyncio.timeout(5):
                    while proxy.running.gate.inflight < 30:
                        await asyncio.sleep(0.005)
                for client in clients:
                    client.close()
                async with asyncio.timeout(5):
                    while proxy.running.gate.inflight:
                        await asyncio.sleep(0.005)
            async with asyncio.timeout(5):
                while _descriptors() > descriptors or asyncio.all_tasks() - tasks:
                    await asyncio.sleep(0.01)
            assert repr(proxy.running._transport) == "<Transport: 0 busy, 0 idle>"
            await proxy.record(300)
            assert {record["outcome"] for record in proxy.records()} == {"client_gone"}


async def test_departures_are_silent(ca: str) -> None:
    """Nothing that fails on the way to an upstream leaves a warning or a traceback behind."""
    async with Upstream(context(AUTHORITY, "localhost")) as upstream, Upstream() as plain:
        with blackhole() as port:
            toml = f"""
[defaults]
timeout = {{ connect = "200ms", first_byte = "200ms" }}
[upstreams.tls]
base_url = "https://localhost:{upstream.port}/v1"
{ca}
[upstreams.untrusted]
base_url = "https://localhost:{upstream.port}/v1"
[upstreams.plain]
base_url = "https://localhost:{plain.port}/v1"
[upstreams.hole]
base_url = "http://127.0.0.1:{port}/v1"
[upstreams.refused]
base_url = "http://127.0.0.1:{closed_port()}/v1"
[upstreams.nowhere]
base_url = "http://does-not-exist.invalid/v1"
[routes]
"*" = {{ upstream = "tls", model = "*" }}
"""
            models = ["tls", "untrusted", "plain", "hole", "refused", "nowhere"]
            toml += "".join(f'"{m}" = {{ upstream = "{m}", model = "m" }}\n' for m in models)
            async with process(toml) as proxy:
                upstream.will(answer(), close(), hang())
                for model in [*models, "tls", "tls"]:
                    await call(proxy.port, chat(model))
                for model in models:
                    async with await Client.connect(proxy.port) as client:
                        await client.send(request(chat(model)))
                        await asyncio.sleep(0.02)
                await proxy.record(14)


SSE_HEAD = head(200, [SSE, CHUNKED])


class Taken:
    """Takes an answer, and keeps what it was told."""

    def __init__(self) -> None:
        self.body = b""
        self.ended = False
        self.error: ProxyError | None = None

    @property
    def size(self) -> int:
        return len(self.body)

    def data(self, data: bytes) -> None:
        self.body += data

    def end(self) -> None:
        self.ended = True

    def broke(self, error: ProxyError) -> None:
        self.error = error


@pytest.mark.parametrize("rest", [b"zz\r\n", b""])
async def test_a_break_before_anybody_listens(rest: bytes) -> None:
    """An answer that breaks behind its head, before its body is asked for, is a cut one."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        _, connection = await loop.create_connection(
            lambda: wire.Connection(loop, time.monotonic, Outbox(loop)), sock=ours
        )
        asked = connection.ask([b"POST / HTTP/1.1\r\n\r\n"], Timeouts(), Attempt("up", 0.0))
        await loop.sock_sendall(theirs, SSE_HEAD + chunk(b": one\n\n"))
        await asked
        await loop.sock_sendall(theirs, rest)
        if not rest:
            theirs.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(5):
            while not connection.transport.is_closing():
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.01)
        sink = Taken()
        connection.attach(sink)
        assert sink.body == b": one\n\n"
        assert not sink.ended
        assert sink.error is not None
        assert sink.error.kind.code == "upstream_disconnected"
        assert not connection.reusable()
        connection.close()
