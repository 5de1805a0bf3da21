"""Leaving in order: nothing new is taken, what runs may finish, and what may not is told so."""

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from time import monotonic

import aiohttp
import pytest

from proxy.config import Snapshot
from proxy.process import lifecycle
from tests.harness.client import Client, call, chat, request
from tests.harness.proxy import Proxy, process, serving
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
    hang,
    head,
)

HELLO = event(b'{"choices":[{"index":0,"delta":{"content":"hello"}}]}')
BYE = event(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}')


def toml(upstream: Upstream, drain: str = "20s", lame_duck: str = "0s") -> str:
    return f"""
[server]
drain = "{drain}"
lame_duck = "{lame_duck}"
[routes]
"*" = {{ base_url = "{upstream.url}" }}
"""


class Paused:
    """An answer that has begun, and ends when it is *released*."""

    def __init__(self, *, stream: bool = True) -> None:
        self.begun = asyncio.Event()
        self.released = asyncio.Event()
        self._stream = stream

    async def __call__(self, conn: Conn, received: Received) -> None:
        if self._stream:
            await conn.send(head(200, [SSE, CHUNKED]) + chunk(HELLO))
        self.begun.set()
        await self.released.wait()
        if self._stream:
            await conn.send(chunk(BYE) + chunk(DONE) + b"0\r\n\r\n")
        else:
            await answer(200, b'{"late":true}')(conn, received)


async def gone(proxy: Proxy, seconds: float) -> float:
    """Wait for the process to end, in order; return how long that took."""
    assert proxy.process is not None
    started = monotonic()
    async with asyncio.timeout(seconds):
        assert await proxy.process.wait() == 0
    return monotonic() - started


async def refuses(proxy: Proxy) -> None:
    """Assert that nobody listens any more."""
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(proxy.port)


async def get(proxy: Proxy, path: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask for *path* on a connection of its own."""
    got = await call(proxy.port, path=path, method=method)
    return got.status, got.body


OK, LEAVING = (200, b'{"status":"ok"}'), (503, b'{"status":"leaving"}')


# Idle


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle(upstream: Upstream, number: signal.Signals) -> None:
    """Told to stop with nothing to do, it leaves at once with exit status 0, however long `drain` is."""
    async with process(toml(upstream, "none")) as proxy:
        fresh, used = [await Client.connect(proxy.port) for _ in range(2)]
        async with fresh, used:
            await used.send(request(chat()))
            assert (await used.answer()).status == 200
            proxy.tell(number)
            assert await used.closed() == b""
            assert await fresh.closed() == b""
            assert await gone(proxy, 10) < 3
        events = [line["event"] for line in proxy.lines()]
        assert events == ["ready", "exchange", "draining", "stopped"]


async def test_unread_log(upstream: Upstream) -> None:
    """What was logged last is still written when the process leaves."""
    async with process(toml(upstream)) as proxy:
        for _ in range(20):
            assert (await call(proxy.port, chat())).status == 200
        proxy.tell()
        await gone(proxy, 10)
        assert len(proxy.records()) == 20


# Busy


async def test_running_stream_finishes(upstream: Upstream) -> None:
    """A stream that runs goes on to its own end; meanwhile nobody new is let in."""
    paused = Paused()
    upstream.will(paused)
    async with process(toml(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=True)))
            await paused.begun.wait()
            proxy.tell()
            await proxy.event("draining")
            await refuses(proxy)
            paused.released.set()
            got = await client.answer()
            assert got.body == HELLO + BYE + DONE
            assert got.whole
            assert await client.closed() == b""
        assert await gone(proxy, 10) < 3
        (record,) = proxy.records()
        assert (record["outcome"], record["error"]) == ("ok", None)


async def test_running_plain_request_finishes(upstream: Upstream) -> None:
    """An answer that has not begun when the proxy is told to stop arrives whole, and is the last one."""
    paused = Paused(stream=False)
    upstream.will(paused)
    async with process(toml(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat()))
            await paused.begun.wait()
            proxy.tell()
            await proxy.event("draining")
            await refuses(proxy)
            paused.released.set()
            got = await client.answer()
            assert (got.status, got.body, got.whole) == (200, b'{"late":true}', True)
            assert got.value(b"connection") == b"close"
            assert await client.closed() == b""
        assert await gone(proxy, 10) < 3


async def test_upload_finishes(upstream: Upstream) -> None:
    """A request whose body is still on its way when the proxy is told to stop is served."""
    body = chat(text="x" * 100_000)
    async with process(toml(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            whole = request(body)
            await client.send(whole[:-50_000])
            async with await Client.connect(proxy.port) as other:
                await other.send(request(chat()))  # once this is answered, the other one is known
                assert (await other.answer()).status == 200
            proxy.tell()
            await proxy.event("draining")
            await client.send(whole[-50_000:])
            got = await client.answer()
            assert got.status == 200
            assert upstream.requests[-1].body == body
        assert await gone(proxy, 10) < 3


async def test_pipelined_request_is_not_served(upstream: Upstream) -> None:
    """What is sent behind a running exchange after the word to stop is not begun."""
    paused = Paused()
    upstream.will(paused, answer())
    async with process(toml(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=True)))
            await paused.begun.wait()
            proxy.tell()
            await proxy.event("draining")
            await client.send(request(chat("second")))
            paused.released.set()
            assert (await client.answer()).whole
            rest = await client.closed()
            assert rest == b"" or rest.startswith(b"HTTP/1.1 503 ")
        await gone(proxy, 10)
    assert len(upstream.requests) == 1


# Lame duck


async def test_probes(upstream: Upstream) -> None:
    """Who looks after processes, and who sends them requests, are told that all is well: whatever key is
    asked for, and whatever name they ask by; and the log is not full of it.
    """
    keys = '[keys]\nteam = "sk-team-0123456789"\n'
    async with serving(toml(upstream) + keys) as proxy:
        for path in ("/health", "/livez", "/readyz"):
            assert await get(proxy, path) == OK
            assert await get(proxy, path, "HEAD") == (200, b"")
            got = await call(proxy.port, path=path, method="POST")
            assert (got.status, got.value(b"allow")) == (405, b"GET, HEAD")
            got = await call(proxy.port, path=path, method="GET", host=b"10.0.0.7:8080")
            assert got.status == 200
        assert (await call(proxy.port, chat())).status == 401
        await proxy.record()


async def test_order_of_leaving(upstream: Upstream) -> None:
    """First it says that it leaves, and goes on as before, but that each answer is the last one of its
    connection; then it listens no longer, and closes what is idle; what runs finishes; then it is gone.
    """
    paused, plain = Paused(), Paused(stream=False)
    upstream.will(paused, answer(), answer(), plain)
    async with process(toml(upstream, lame_duck="2s")) as proxy, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await Client.connect(proxy.port)) for _ in "abcd"
        ]
        streaming, used, fresh, waiting = clients
        await streaming.send(request(chat(stream=True)))
        await paused.begun.wait()
        assert await get(proxy, "/readyz") == OK
        told = monotonic()
        proxy.tell()
        async with asyncio.timeout(1.9):
            while await get(proxy, "/readyz") != LEAVING:
                pass
        assert await get(proxy, "/readyz", "HEAD") == (503, b"")
        for sent in (
            request(path="/livez", method="GET"),
            request(path="/readyz", method="GET"),
            request(path="/status", method="GET"),
            request(path="/nothing", method="GET"),
            request(chat(None)[:-1]),
        ):
            async with await Client.connect(proxy.port) as client:
                await client.send(sent)
                assert (await client.answer()).value(b"connection") == b"close"
                assert await client.closed() == b""
        assert await get(proxy, "/livez") == OK
        assert await get(proxy, "/health") == OK
        assert (await call(proxy.port, chat())).status == 200
        await used.send(request(chat()))
        got = await used.answer()
        assert (got.status, got.value(b"connection")) == (200, b"close")
        await waiting.send(request(chat()))
        await plain.begun.wait()
        assert monotonic() - told < 2, "too slow to tell"
        assert await used.closed() == b""
        assert await fresh.closed() == b""
        assert monotonic() - told >= 2
        await refuses(proxy)
        plain.released.set()
        got = await waiting.answer()
        assert (got.body, got.value(b"connection")) == (b'{"late":true}', b"close")
        assert await waiting.closed() == b""
        paused.released.set()
        got = await streaming.answer()
        assert (got.body, got.whole) == (HELLO + BYE + DONE, True)
        assert await gone(proxy, 10) < 3
        outcomes = [record["outcome"] for record in proxy.records()]
        assert (outcomes.count("ok"), outcomes.count("client_error")) == (5, 2)
        events = [line["event"] for line in proxy.lines() if line["event"] != "exchange"]
        assert events == ["ready", "draining", "stopped"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_told_twice_as_a_lame_duck(upstream: Upstream, second: signal.Signals) -> None:
    """Told a second time while it still lets everybody in, it ends at once, whatever is running."""
    upstream.will(_stream)
    async with (
        process(toml(upstream, lame_duck="60s")) as proxy,
        await Client.connect(proxy.port) as client,
        await Client.connect(proxy.port) as idle,
    ):
        await client.send(request(chat(stream=True)))
        await begun(client)
        proxy.tell()
        await proxy.event("draining")
        assert await get(proxy, "/readyz") == LEAVING
        proxy.tell(second)
        assert await gone(proxy, 10) < 3
        unfinished(await client.closed())
        assert await idle.closed() == b""
        assert [record["outcome"] for record in proxy.records()] == ["shutdown"]


# Out of time


async def _stream(conn: Conn, received: Received) -> None:
    await conn.send(head(200, [SSE, CHUNKED]) + chunk(HELLO))
    await conn.left(30)
    conn.keep = False


async def _plain(conn: Conn, received: Received) -> None:
    await conn.send(head(200, [JSON, CHUNKED]) + chunk(b'{"half":'))
    await conn.left(30)
    conn.keep = False


async def begun(client: Client) -> None:
    """Wait until an answer has begun to come."""
    async with asyncio.timeout(10):
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


def unfinished(rest: bytes) -> None:
    """Assert that *rest* is a stream that was cut, and that says so."""
    assert rest.startswith(chunk(HELLO))
    assert b'"code":"proxy_shutdown"' in rest
    assert b"[DONE]" not in rest
    assert not rest.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
async def test_drain_is_over(upstream: Upstream, stream: bool) -> None:
    """What still runs when `drain` is over is told `proxy_shutdown`, and its transfer stays unfinished."""
    upstream.will(_stream if stream else _plain)
    async with process(toml(upstream, "300ms")) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=stream)))
            await begun(client)
            proxy.tell()
            rest = await client.closed()
            if stream:
                unfinished(rest)
            else:
                assert rest == chunk(b'{"half":')
        assert await gone(proxy, 10) < 4
        (record,) = proxy.records()
        assert record["outcome"] == "shutdown"
        assert record["error"] == "proxy_shutdown"
        assert record["status"] == 200
    async with asyncio.timeout(5):
        await upstream.connections[0].gone.wait()


async def test_drain_is_over_before_an_answer(upstream: Upstream) -> None:
    """Who has no byte of an answer yet when `drain` is over gets an error that says why."""
    upstream.will(hang())
    async with process(toml(upstream, "300ms")) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat()))
            async with asyncio.timeout(10):
                while not upstream.requests:
                    await asyncio.sleep(0.01)
            proxy.tell()
            got = await client.answer()
            assert got.status == 503
            assert got.code == "proxy_shutdown"
            assert got.whole
        assert await gone(proxy, 10) < 4
        (record,) = proxy.records()
        assert (record["outcome"], record["error"]) == ("shutdown", "proxy_shutdown")


@pytest.mark.parametrize("drain", ["none", "60s"])
async def test_second_signal(upstream: Upstream, drain: str) -> None:
    """Told a second time, it waits no longer: the stream stays unfinished, and the exit status is 0."""
    upstream.will(_stream)
    async with process(toml(upstream, drain)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=True)))
            await begun(client)
            proxy.tell()
            await proxy.event("draining")
            proxy.tell()
            assert await gone(proxy, 10) < 3
            unfinished(await client.closed())
        (record,) = proxy.records()
        assert (record["outcome"], record["error"]) == ("shutdown", "proxy_shutdown")


async def test_client_that_does_not_read(upstream: Upstream) -> None:
    """A client that takes nothing holds nobody up beyond `drain`."""

    async def flood(conn: Conn, received: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]))
        while True:
            await conn.send(chunk(HELLO * 1000))

    upstream.will(flood)
    async with (
        process(toml(upstream, "200ms")) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # uvloop has it
        await client.send(request(chat(stream=True)))
        async with asyncio.timeout(10):
            while not upstream.requests:
                await asyncio.sleep(0.01)
        proxy.tell()
        assert await gone(proxy, 10) < 5


# Starting


@pytest.mark.parametrize("version", ["3.14.4", "3.13.99", "2.0"])
def test_old_aiohttp(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """It does not start on an aiohttp that is known to be unsafe."""
    monkeypatch.setattr(aiohttp, "__version__", version)
    with pytest.raises(lifecycle.CannotStart, match=f"aiohttp {version} is too old"):
        lifecycle.check_parser()


@pytest.mark.parametrize("version", ["3.14.5", "3.15.0", "3.15.0a1", "4.0.0.dev1"])
def test_newer_aiohttp(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """It starts on the oldest aiohttp that is known to be safe, and on all that came later."""
    monkeypatch.setattr(aiohttp, "__version__", version)
    lifecycle.check_parser()


async def test_ready_line(upstream: Upstream) -> None:
    """The first line of the log says what is served, from which file, and where."""
    async with process(toml(upstream)) as proxy:
        (line,) = proxy.lines()
        assert line["event"] == "ready"
        assert line["level"] == "info"
        assert line["file"].endswith("routes.toml")
        assert len(line["digest"]) == 12
        assert line["listen"] == [f"127.0.0.1:{proxy.port}"]
        assert (line["routes"], line["keys"]) == (1, 0)


async def test_reading_that_hangs(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that hangs under a reload says `reload_failed` in time, and the next reload works."""
    monkeypatch.setattr(lifecycle, "READ_SECONDS", 0.3)
    hung = threading.Event()
    async with serving(toml(upstream)) as proxy:
        running = proxy.running
        assert running is not None
        outcomes: list[Callable[[], Snapshot]] = [hang_for(hung), lambda: running.snapshot]
        reload = partial(lifecycle._reload, running, lambda _: outcomes.pop(0)(), running.snapshot)
        try:
            await reload()
            failed = await proxy.event("reload_failed")
            assert failed["problems"] == ["the file was not read within 0.3 s"]
            assert (await call(proxy.port, chat())).status == 200
            await reload()
            await proxy.event("reloaded")
        finally:
            hung.set()


def hang_for(event: threading.Event) -> Callable[[], Snapshot]:
    """Return what reads nothing until *event* is set."""

    def read() -> Snapshot:
        event.wait(20)
        raise OSError("too late")

    return read
