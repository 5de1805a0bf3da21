"""The whole, wired: surfaces side by side, the order in which a server ends, and what is left of it."""

import asyncio
import gc
import os
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import orjson
import pytest
import trustme

from proxy.config import load
from proxy.server import serve
from tests.harness.client import Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    event,
    hang,
    head,
    raw,
    stream,
)
from tests.test_errors import assert_authored

SANDBOX = '[routes]\n"*" = { upstream = "sandbox" }\n'
HEALTH = request(path="/health", method="GET")
KEY: list[Pair] = [(b"apikey", b"sk-team-0123456789")]


async def ask(path: str, sent: bytes = HEALTH) -> bytes:
    """Ask the server at the unix socket *path* and return the first line of its answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(sent)
        async with asyncio.timeout(5):
            return (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0]
    finally:
        writer.transport.abort()


# Surfaces


async def test_surfaces(upstream: Upstream, tmp_path: Path) -> None:
    """Each surface has its own address, paths, auth and view of the routes."""
    toml = f"""
        [[surface]]
        name = "team"
        listen = ["127.0.0.1:0", "[::1]:0"]
        base_paths = ["/api/v1"]
        accept = ["apikey"]
        routes = ["a", "b/*"]
        endpoints = ["chat/completions"]
        [[surface]]
        name = "mine"
        listen = "unix:{tmp_path}/s"
        auth = "none"
        models = "hidden"
        [upstreams.up]
        base_url = "{upstream.url}"
        [routes]
        "a" = "up/a"
        "b/*" = {{ upstream = "up" }}
        "c" = "up/c"
        [keys]
        team = "sk-team-0123456789"
        """
    async with serving(toml, listen=None) as proxy:
        assert proxy.running is not None
        four, six = proxy.running.addresses["team"]
        chats, lists = "/api/v1/chat/completions", "/api/v1/models"
        for port, host in ((four.port, "127.0.0.1"), (six.port, "::1")):
            async with await Client.connect(port, host) as client:
                for sent, status in [
                    (request(chat("a"), chats, KEY), 200),
                    (request(chat("b/x"), chats, KEY), 200),
                    (request(chat("c"), chats, KEY), 404),
                    (request(chat("a"), "/v1/chat/completions", KEY), 404),
                    (request(chat("a"), "/chat/completions", KEY), 404),
                    (request(chat("a"), "/api/v1/embeddings", KEY), 404),
                    (request(chat("a"), chats), 401),
                    (request(path=lists, method="GET", headers=KEY), 200),
                ]:
                    await client.send(sent)
                    assert (await client.answer()).status == status
        path = f"{tmp_path}/s"
        assert (await ask(path, request(chat("c")))).startswith(b"HTTP/1.1 200 ")
        assert (await ask(path, request(chat("c"), host=b"x.example"))).startswith(b"HTTP/1.1 403 ")
        assert (await ask(path, request(path="/v1/models", method="GET"))).startswith(
            b"HTTP/1.1 404 "
        )
        await proxy.record(19)
        assert {record["surface"] for record in proxy.records()} == {"team", "mine"}


# Nothing is left


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_is_left(upstream: Upstream) -> None:
    """When a server has ended its tasks, threads and files are gone, whatever was going on."""
    toml = f'[routes]\n"*" = {{ base_url = "{upstream.url}" }}\n"s" = "sandbox/echo"\n'
    tasks, files = len(asyncio.all_tasks()), open_files()
    clients = []
    upstream.will(answer(), stream(event(b"{}"), end="hang"), hang())
    async with serving(toml) as proxy:
        for sent in (
            request(chat()),
            request(chat(stream=True)),
            request(chat()),
            request(chat())[:-1],
            request(chat("s")),
            request(chat())[:30],
            b"",
        ):
            client = await Client.connect(proxy.port)
            clients.append(client)
            await client.send(sent)
            await asyncio.sleep(0.05)
    for client in clients:
        await client.closed()
        client.close()
    for conn in upstream.connections:
        async with asyncio.timeout(5):
            await conn.gone.wait()
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > tasks or open_files() > files:
            await asyncio.sleep(0.01)


# Leaving


@contextmanager
def gone(port: int) -> Iterator[None]:
    """Expect nobody to listen on *port* afterwards."""
    yield
    with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(("127.0.0.1", port))


async def inflight(proxy: Proxy, count: int) -> None:
    """Wait until *count* exchanges are in flight."""
    assert proxy.running is not None
    async with asyncio.timeout(5):
        while proxy.running.gate.inflight != count:
            await asyncio.sleep(0.005)


async def test_drain(upstream: Upstream) -> None:
    """While a server leaves, what is running finishes and nothing new begins."""
    go = asyncio.Event()

    async def step(conn: Conn, seen: Received) -> None:
        streams = b'"stream":true' in seen.body
        if streams:
            await conn.send(head(headers=[SSE, CHUNKED]) + chunk(event(b"{}")))
        await go.wait()
        await (conn.send(chunk(DONE) + b"0\r\n\r\n") if streams else answer()(conn, seen))

    upstream.will(step)
    toml = f'[routes]\n"*" = {{ base_url = "{upstream.url}" }}\n'
    async with (
        serving(toml) as proxy,
        await Client.connect(proxy.port) as idle,
        await Client.connect(proxy.port) as half,
        await Client.connect(proxy.port) as streaming,
        await Client.connect(proxy.port) as waiting,
        await Client.connect(proxy.port) as sending,
    ):
        await idle.send(HEALTH)
        assert (await idle.answer()).status == 200
        await half.send(request(chat())[:40])
        await streaming.send(request(chat(stream=True)))
        await streaming.reader.readuntil(b"{}\n\n\r\n")
        await waiting.send(request(chat()))
        await sending.send(request(chat())[:-5])
        await inflight(proxy, 3)
        assert proxy.running is not None
        with gone(proxy.port):
            draining = asyncio.create_task(proxy.running.drain(10))
            assert await idle.closed() == b""
            assert await half.closed() == b""
            await sending.send(request(chat())[-5:])
            go.set()
            assert await streaming.closed() == chunk(DONE) + b"0\r\n\r\n"
            for client in (waiting, sending):
                got = await client.answer()
                assert (got.status, got.body) == (200, b'{"ok":true}')
                assert got.value(b"connection") == b"close"
                assert await client.closed() == b""
            async with asyncio.timeout(2):
                await draining
        await proxy.record(3)
        assert {record["outcome"] for record in proxy.records()} == {"ok"}


LAST = {
    "/v1/chat/completions": b'data: {"error":{',
    "/v1/messages": b"event: error\ndata: ",
    "/v1/responses": b"event: error\ndata: ",
}


async def test_drain_ends(upstream: Upstream) -> None:
    """What has not finished in time is ended, and each caller is told so in its own dialect."""
    upstream.will(stream(event(b'{"x":1}'), end="hang"))
    toml = f'[routes]\n"*" = {{ base_url = "{upstream.url}" }}\n'
    async with serving(toml) as proxy:
        clients = {path: await Client.connect(proxy.port) for path in LAST}
        for path, client in clients.items():
            await client.send(request(chat(stream=True), path))
            await client.reader.readuntil(b"}\n\n\r\n")
        upstream.will(hang())
        async with (
            await Client.connect(proxy.port) as waiting,
            await Client.connect(proxy.port) as sending,
        ):
            await waiting.send(request(chat()))
            await sending.send(request(chat())[:-5])
            await inflight(proxy, 5)
            assert proxy.running is not None
            async with asyncio.timeout(3):
                await proxy.running.drain(0.1)
            for client in (waiting, sending):
                got = await client.answer()
                # What was sent may have run, and been billed: it is not to be tried again.
                hint = {b"x-should-retry": b"false"} if client is waiting else {}
                kind, code = "server_error", "proxy_shutdown"
                assert_authored(got, 503, kind, code, headers=hint, closes=True)
        for path, client in clients.items():
            last = await client.closed()
            size, _, text = last.partition(b"\r\n")
            assert int(size, 16) == len(text) - 2  # one chunk, and not the one that ends it all
            assert text.startswith(LAST[path])
            told = orjson.loads(text.partition(b"data: ")[2])
            assert "shutting down" in (told.get("error") or told)["message"]
            client.close()
        await proxy.record(5)
        for record in proxy.records():
            assert (record["outcome"], record["error"]) == ("shutdown", "proxy_shutdown")
        assert proxy.running.gate.inflight == 0
    for conn in upstream.connections:
        async with asyncio.timeout(5):
            await conn.gone.wait()


async def test_terminated(upstream: Upstream) -> None:
    """A process that is told to stop finishes what is running, and ends in order."""
    upstream.will(stream(event(b"{}"), event(b"{}"), DONE, pause=0.2))
    toml = f'[routes]\n"*" = {{ base_url = "{upstream.url}" }}\n'
    async with process(toml) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True)))
        await client.reader.readuntil(b"{}\n\n")
        assert proxy.process is not None
        proxy.process.terminate()
        assert (await client.closed()).endswith(chunk(DONE) + b"0\r\n\r\n")
        async with asyncio.timeout(5):
            assert await proxy.process.wait() == 0
        assert (await proxy.record())["outcome"] == "ok"


async def test_told_twice(upstream: Upstream) -> None:
    """A process that is told twice does not wait."""
    upstream.will(hang())
    toml = f'[routes]\n"*" = {{ base_url = "{upstream.url}" }}\n'
    async with process(toml) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat()))
        async with asyncio.timeout(5):
            while not upstream.requests:
                await asyncio.sleep(0.01)
        assert proxy.process is not None
        proxy.process.terminate()
        async with asyncio.timeout(5):
            while not any(line["event"] == "draining" for line in proxy.lines()):
                await asyncio.sleep(0.01)
        proxy.process.terminate()
        got = await client.answer(seconds=3)
        assert (got.status, got.code) == (503, "proxy_shutdown")
        async with asyncio.timeout(5):
            assert await proxy.process.wait() == 0


@pytest.mark.parametrize("times", [1, 2])
async def test_tls_clients_that_say_nothing(tmp_path: Path, times: int) -> None:
    """Who does not answer the end of TLS, or never comes to its beginning, holds no server up, whether it is
    told to leave or to end, and nothing of it is open when its loop is closed.
    """
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "crt"))
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    tls = f'tls = {{ certificate = "{tmp_path}/crt", key = "{tmp_path}/key" }}'
    text = f'[server]\nlisten = "127.0.0.1:0"\n{tls}\n{SANDBOX}'
    with ExitStack() as stack:
        async with process(text, listen=None) as proxy:
            assert proxy.process is not None

            def connect() -> socket.socket:
                return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 5))

            def secure() -> ssl.SSLSocket:
                wrapped = trusting.wrap_socket(connect(), server_hostname="127.0.0.1")
                return stack.enter_context(wrapped)

            idle = [await asyncio.to_thread(secure) for _ in range(3)]
            for said in (b"", b"\x16\x03\x01\x02\x00"):
                connect().sendall(said)
            await asyncio.sleep(0.2)  # the server knows of all of them
            late: list[socket.socket] = []
            for _ in range(times):
                proxy.process.terminate()
                late += [connect() for _ in range(3)] if times == 1 else []
                await asyncio.sleep(0.01)
            async with asyncio.timeout(8):  # less than a handshake may take, or the end of one
                assert await proxy.process.wait() == 0
        assert all(one.recv(1) == b"" for one in idle)


# Starting


async def test_parser_is_the_strict_one(tmp_path: Path) -> None:
    """On the library's lenient parser the proxy does not start, and says why in one line."""
    file = tmp_path / "routes.toml"
    file.write_text(SANDBOX)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "proxy", "serve", "-c", str(file), "--listen", "127.0.0.1:0"),
        stderr=asyncio.subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path.cwd()),
            "AIOHTTP_NO_EXTENSIONS": "1",
        },
    )
    async with asyncio.timeout(20):
        _, written = await child.communicate()
    assert child.returncode == 1
    assert written.count(b"\n") == 1
    assert b"parser" in written


async def test_sandbox_needs_nothing(tmp_path: Path) -> None:
    """The shipped upstream answers through the same road as any other, on whatever fd the log is."""
    file = tmp_path / "routes.toml"
    file.write_text(SANDBOX)
    with (tmp_path / "log").open("wb") as log:
        snapshot = load(file, {}, listen="127.0.0.1:0")
        async with serve(snapshot, log.fileno()) as running:
            port = running.addresses["main"][0].port
            assert (await call(port, chat("sandbox/echo"))).status == 200
    record = orjson.loads((tmp_path / "log").read_bytes())
    assert (record["upstream"], record["attempts"][0]["phase"]) == ("sandbox", "streaming")


# What is left for the garbage collector


async def _cut(conn: Conn, seen: Received) -> None:
    await conn.send(head(200, [SSE, CHUNKED]) + chunk(event(b'{"x":1}')))
    conn.reset()


async def _half(conn: Conn, seen: Received) -> None:
    await conn.send(head(200, [SSE, CHUNKED]) + chunk(event(b'{"x":1}')))
    await conn.left()


GOOD = request(chat(stream=True))
LEFT: dict[str, tuple[Step, bytes]] = {
    "a stream": (stream(event(b'{"x":1}'), DONE), GOOD),
    "the last on its connection": (answer(), request(chat(), headers=[(b"Connection", b"close")])),
    "a stream cut": (_cut, GOOD),
    "a client that leaves": (_half, GOOD),
    "an answer that is asked for again": (answer(500), GOOD),
    "an upstream that hangs up": (raw(b""), GOOD),
    "a credential that is refused": (answer(401), GOOD),
    "a redirect": (answer(302), GOOD),
    "an answer that is not HTTP": (raw(b"nonsense\r\n\r\n"), GOOD),
    "a refusal": (answer(), request(b"{")),
    "what is not there": (answer(), request(path="/nowhere", method="GET")),
    "what is not HTTP": (answer(), b"nonsense\r\n\r\n"),
    "a body that breaks off": (answer(), request(chat())[:-5]),
}


@pytest.mark.parametrize("kind", LEFT)
async def test_nothing_is_left_to_collect(upstream: Upstream, kind: str) -> None:
    """Of an exchange, whatever comes of it, and of its connections, no object of ours is left that only
    the garbage collector would find: a body of 20 MB could hang on it.
    """
    step, sent = LEFT[kind]
    upstream.will(step)
    toml = f'[routes]\n"m" = {{ base_url = "{upstream.url}", retry = {{ attempts = 2 }} }}\n'

    async def one(port: int) -> None:
        async with await Client.connect(port) as client:
            await client.send(sent)
            if step is _half:
                await client.reader.readuntil(b"\r\n\r\n")
            elif not kind.startswith("a body"):
                await client.answer()

    async with serving(toml) as proxy:
        await one(proxy.port)
        await asyncio.sleep(0.1)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(5):
                await one(proxy.port)
            await asyncio.sleep(0.2)
            gc.collect()
            left = Counter(
                type(one).__qualname__ for one in gc.garbage if "proxy." in type(one).__module__
            )
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left
