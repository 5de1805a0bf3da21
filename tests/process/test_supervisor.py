"""Several workers under one process, which accepts, reads the file, and heeds signals for all of them."""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from tests.harness.client import Answer, Client, call, chat, request
from tests.harness.proxy import Proxy, process
from tests.harness.upstream import (
    CHUNKED,
    SSE,
    Conn,
    Received,
    Upstream,
    answer,
    chunk,
    head,
)
from tests.harness.workers import (
    STRICT,
    alive,
    children,
    pids,
    status,
    to,
    until,
    workers,
)
from tests.process.test_lifecycle import (
    BYE,
    HELLO,
    LEAVING,
    OK,
    Paused,
    get,
    gone,
    refuses,
    toml,
    unfinished,
)


async def test_told_to_stop_while_one_is_replaced(upstream: Upstream) -> None:
    """Told to stop while a worker still hands on what it has, all of them leave in order."""
    paused = Paused()
    upstream.will(paused)
    async with workers(toml(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True)))
        await paused.begun.wait()
        proxy.tell(signal.SIGUSR2)
        await proxy.event("worker_started", count=3, seconds=30)
        await proxy.event("draining")
        proxy.tell()
        await refused(proxy)
        paused.released.set()
        assert (await client.answer()).whole
        assert await gone(proxy, 20) < 10


async def refused(proxy: Proxy) -> None:
    """Wait until nobody listens any more."""

    async def closed() -> bool:
        with suppress(ConnectionRefusedError):
            (await Client.connect(proxy.port)).close()
            return False
        return True

    await until(closed)


@pytest.mark.parametrize("count", [2, 3])
async def test_balance(upstream: Upstream, count: int) -> None:
    """All workers get as many connections, however many come at once; one that the machine holds up for a
    moment, a few less.
    """
    async with workers(to(upstream.url), count) as proxy, AsyncExitStack() as stack:
        before = [one["connections"] for one in (await status(proxy))["workers"]]
        opening = (Client.connect(proxy.port) for _ in range(60))
        for client in await asyncio.gather(*opening):
            await stack.enter_async_context(client)
        await asyncio.gather(*(call(proxy.port, chat()) for _ in range(30)))
        after = [one["connections"] for one in (await status(proxy))["workers"]]
        shares = [now - then for then, now in zip(before, after, strict=True)]
        assert sum(shares) in (91, 90)
        assert max(shares) - min(shares) <= 9


async def test_reload_of_addresses(upstream: Upstream, tmp_path: Path) -> None:
    """A reload may change where is listened: the new address is served by all workers, the old one by
    nobody; what runs goes on.
    """
    paused = Paused()
    upstream.will(paused, answer())
    old, new = tmp_path / "old", tmp_path / "new"
    listen = 'listen = ["127.0.0.1:0", "unix:{}"]'
    text = to(upstream.url, listen.format(old))
    async with workers(text, listen=None) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True)))
        await paused.begun.wait()
        assert (await ask_unix(old)).status == 200
        line = await proxy.reload(to(upstream.url, listen.format(new)))
        assert line["event"] == "reloaded"
        assert line["listen"] == [f"127.0.0.1:{proxy.port}", f"unix:{new}"]
        assert not old.exists()
        for _ in range(4):
            assert (await ask_unix(new)).status == 200
            assert (await call(proxy.port, chat())).status == 200
        paused.released.set()
        assert (await client.answer()).whole


async def ask_unix(path: Path) -> Answer:
    async with Client(*await asyncio.open_unix_connection(str(path))) as client:
        await client.send(request(chat()))
        return await client.answer()


async def test_bad_reload(upstream: Upstream) -> None:
    """A file that cannot be used changes nothing, is told once, and not even a worker that begins later
    reads it.
    """
    async with workers(to(upstream.url)) as proxy:
        line = await proxy.reload("[routes]\nx = 'nowhere/y'\n")
        assert line["event"] == "reload_failed"
        assert "routes.x" in line["problems"][0]
        os.kill(pids(proxy)[0], signal.SIGKILL)
        await proxy.event("worker_started", count=3, seconds=20)
        assert [(await call(proxy.port, chat())).status for _ in range(4)] == [200] * 4
        line = await proxy.reload(to(upstream.url, "workers = 0"))
        assert line["event"] == "reload_failed"
        assert len(proxy.events("reload_failed")) == 2
        line = await proxy.reload(
            to(upstream.url) + '"only" = "x/y"\n[upstreams.x]\nbase_url="http://127.0.0.1:9"'
        )
        assert (line["event"], line["routes"]) == ("reloaded", 2)
        for _ in range(4):
            assert (await call(proxy.port, chat("only"))).status == 502


async def test_supervisor_is_killed(upstream: Upstream) -> None:
    """Workers without a supervisor finish what they have, and leave."""
    paused = Paused()
    upstream.will(paused)
    async with workers(to(upstream.url), check=False) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=True)))
            await paused.begun.wait()
            proxy.tell(signal.SIGKILL)
            assert proxy.process is not None
            await proxy.process.wait()
            await refuses(proxy)
            paused.released.set()
            got = await client.answer()
            assert (got.whole, got.body[: len(HELLO + BYE)]) == (True, HELLO + BYE)

        async def left() -> bool:
            return not any(map(alive, pids(proxy).values()))

        await until(left)


async def test_everybody_is_told_to_stop(upstream: Upstream) -> None:
    """A service manager that sends its signal to every process at once asks for no more than to one: what
    runs finishes.
    """
    paused = Paused()
    upstream.will(paused)
    async with workers(toml(upstream, lame_duck="2s")) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat(stream=True)))
            await paused.begun.wait()
            for pid in pids(proxy).values():
                os.kill(pid, signal.SIGTERM)
                os.kill(pid, signal.SIGHUP)
                os.kill(pid, signal.SIGINT)
            assert await get(proxy, "/readyz") == OK
            proxy.tell()
            await until(lambda: leaving(proxy))
            await proxy.event("draining", count=3, seconds=20)
            await refuses(proxy)
            paused.released.set()
            assert (await client.answer()).whole
        assert await gone(proxy, 20) < 15
        assert proxy.lines()[-1]["event"] == "stopped"


async def leaving(proxy: Proxy) -> bool:
    return await get(proxy, "/readyz") == LEAVING


async def test_told_twice(upstream: Upstream) -> None:
    """Told a second time, all workers end at once, and what ran says that it is unfinished."""

    async def for_ever(conn: Conn, received: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]) + chunk(HELLO))
        await conn.left(30)
        conn.keep = False

    upstream.will(for_ever)
    async with workers(toml(upstream, drain="none")) as proxy, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await Client.connect(proxy.port)) for _ in range(4)
        ]
        for client in clients:
            await client.send(request(chat(stream=True)))
            async with asyncio.timeout(10):
                await client.reader.readuntil(b"\r\n\r\n")
        proxy.tell()
        await proxy.event("draining", count=3)
        proxy.tell()
        assert await gone(proxy, 20) < 15
        for client in clients:
            unfinished(await client.closed())
        assert {one["outcome"] for one in proxy.records()} == {"shutdown"}


async def test_ready(upstream: Upstream) -> None:
    """Ready is told once, when all workers are; how many, a file may say too, and the command line rather,
    where the option may be cut short.
    """
    async with process(to(upstream.url, "workers = 3"), python=STRICT) as proxy:
        (ready,) = proxy.events("ready")
        assert ready["workers"] == 3
        assert sorted(pids(proxy)) == [0, 1, 2]
        assert proxy.lines()[3]["event"] == "ready"
    async with process(to(upstream.url, "workers = 3"), further=("--worker", "1")) as proxy:
        (ready,) = proxy.lines()
        assert "workers" not in ready


async def test_one_process_has_nobody_to_replace(upstream: Upstream) -> None:
    """Where there is one process, the signal that replaces workers does no harm."""
    async with process(to(upstream.url)) as proxy:
        proxy.tell(signal.SIGUSR2)
        await proxy.event("not_replaced")
        assert (await call(proxy.port, chat())).status == 200


async def test_taken_address(upstream: Upstream) -> None:
    """Where the address is taken, several workers say so in the one line that one process says."""
    async with workers(to(upstream.url)) as first:
        listen = f"127.0.0.1:{first.port}"
        with pytest.raises(AssertionError, match=f"^trunkline: cannot listen on {listen}"):
            async with workers(to(upstream.url), listen=listen):
                pass


@pytest.mark.parametrize("written", ["0", "257", "many", "-1", "2.5"])
async def test_no_number(upstream: Upstream, written: str) -> None:
    """What is no number of workers on the command line is wrong usage."""
    with pytest.raises(AssertionError, match="--workers: must be a number from 1 to 256"):
        async with process(to(upstream.url), further=(f"--workers={written}",)):
            pass


@pytest.mark.parametrize("after", [0.0, 0.3, 0.6])
async def test_told_to_stop_before_it_is_ready(
    upstream: Upstream, tmp_path: Path, after: float
) -> None:
    """Told to stop while its workers begin, it ends in order, and leaves no process behind."""
    file = tmp_path / "routes.toml"
    file.write_text(to(upstream.url, 'listen = "127.0.0.1:0"\nworkers = 2'))
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-X", "dev", "-W", "error", "-m", "proxy", "serve", "-c", str(file),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip

    async def begun() -> bool:
        return bool(children(child.pid))

    await until(begun)
    await asyncio.sleep(after)  # the workers are wherever they are by then
    some = children(child.pid)
    child.send_signal(signal.SIGTERM)
    async with asyncio.timeout(15):
        said, _ = await child.communicate()
    assert child.returncode == 0
    assert b"Traceback" not in said
    assert not any(map(alive, some))
