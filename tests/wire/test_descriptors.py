"""Descriptors: as many as may be had, and where they run short, a word to everybody, and no blame for others."""

import asyncio
import errno
import os
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.wire import descriptors
from proxy.wire.descriptors import RESERVE, Descriptors
from tests.harness.client import Answer, Client, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import CHUNKED, SSE, Conn, Received, Upstream, answer, chunk, head
from tests.harness.workers import secured
from tests.process.test_lifecycle import BYE, HELLO

LIMITED = """
import os, resource, sys
soft, hard, taken = {}, {}, {}
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
for _ in range(taken):
    os.open("/dev/null", os.O_RDONLY)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from proxy.cli import main
sys.argv[1:3] = []
sys.exit(main())
"""
"""Begins with so many descriptors allowed, and some of them taken."""
HALF = request(chat())[:20]


@asynccontextmanager
async def limited(
    toml: str, soft: int, hard: int, taken: int = 0, **more: Any
) -> AsyncIterator[Proxy]:
    program = LIMITED.format(soft, hard, taken)
    async with process(toml, python=("-W", "error", "-c", program), **more) as proxy:
        yield proxy


def to(upstream: Upstream, server: str = "") -> str:
    return (
        f'[server]\n{server}\n[upstreams.up]\nbase_url = "{upstream.url}"\n[routes]\n"*" = "up/*"\n'
    )


class Waiting:
    """Answers that have begun, and end when all are *released*."""

    def __init__(self) -> None:
        self.begun = 0
        self.released = asyncio.Event()

    async def __call__(self, conn: Conn, received: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]) + chunk(HELLO))
        self.begun += 1
        await self.released.wait()
        await conn.send(chunk(BYE) + b"0\r\n\r\n")


async def half_open(proxy: Proxy, stack: AsyncExitStack, count: int) -> list[Client]:
    """Open connections on which a request has begun to come."""
    clients = []
    for _ in range(count):
        client = await stack.enter_async_context(await Client.connect(proxy.port))
        await client.send(HALF)
        clients.append(client)
    return clients


def is_sent_away(got: Answer) -> bool:
    """Return whether *got* says, in full, that there is no room."""
    return (got.status, got.whole, got.code) == (503, True, "overloaded") and int(
        got.value(b"retry-after") or 0
    ) > 0


# What there is


async def test_raised(upstream: Upstream) -> None:
    """The soft limit is raised to what may be needed, as far as the hard one allows: more streams run at
    once than it would have let in, and the log says how many fit.
    """
    upstream.will(waiting := Waiting())
    async with limited(to(upstream), 128, 1024) as proxy:
        (ready,) = proxy.events("ready")
        assert 400 < ready["fits"] <= (1024 - RESERVE) // 2
        asked = [
            asyncio.create_task(call(proxy.port, chat(stream=True), seconds=60)) for _ in range(150)
        ]
        async with asyncio.timeout(30):
            while waiting.begun < 150:
                await asyncio.sleep(0.01)
        waiting.released.set()
        assert all(got.whole and got.status == 200 for got in await asyncio.gather(*asked))


async def test_not_raised_beyond_need(upstream: Upstream) -> None:
    """No more is taken than `max_inflight` can need: who looks after so many may be slow."""
    async with limited(to(upstream, "max_inflight = 10"), 128, 18_000) as proxy:
        assert proxy.process is not None
        limits = Path(f"/proc/{proxy.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3:5] == ["17428", "18000"]


async def test_workers(upstream: Upstream) -> None:
    """Of workers all is said together; what they start has the limit that there was before all of them."""
    command = '["sh", "-c", "echo sk-$(ulimit -Sn)"]'
    text = to(upstream).replace("[routes]", f"credential = {{ command = {command} }}\n[routes]")
    async with limited(text, 200, 1000, further=("--workers", "2"), check=False) as proxy:
        (ready,) = proxy.events("ready")
        assert 800 < ready["fits"] <= 1000 - RESERVE
        assert (await call(proxy.port, chat())).status == 200
        assert upstream.requests[-1].value(b"authorization") == b"Bearer sk-200"


# Too many exchanges


async def test_full(upstream: Upstream) -> None:
    """Where no more exchanges fit, the next is told to come back, and has a line in the log; none is cut,
    and no upstream gets the blame.
    """
    upstream.will(waiting := Waiting())
    async with limited(to(upstream), 256, 256) as proxy:
        (ready,) = proxy.events("ready")
        asked = [
            asyncio.create_task(call(proxy.port, chat(stream=True), seconds=60)) for _ in range(120)
        ]
        async with asyncio.timeout(30):
            while waiting.begun + sum(one.done() for one in asked) < 120:
                await asyncio.sleep(0.01)
        waiting.released.set()
        got = await asyncio.gather(*asked)
        assert Counter(one.status for one in got) == {200: ready["fits"], 503: 120 - ready["fits"]}
        assert all(one.whole for one in got)
        assert all(map(is_sent_away, [one for one in got if one.status == 503]))
        await proxy.record(120)
        told = (await call(proxy.port, path="/status", method="GET")).json()["channels"]
        assert [(one["state"], one["error_rate"]) for one in told] == [("ready", 0)]


async def test_own_lack(upstream: Upstream) -> None:
    """An exchange for which no descriptor is left on its way to the upstream is told to come back; that is
    no failure of the upstream's, however often it happens.
    """
    async with limited(to(upstream), 256, 256) as proxy, AsyncExitStack() as stack:
        body = chat(text="x" * 1000)
        clients = []
        for _ in range(80):  # no more than fit
            client = await stack.enter_async_context(await Client.connect(proxy.port))
            await client.send(request(body)[:-10])
            clients.append(client)
        await half_open(proxy, stack, 256 - RESERVE - 80 - 16)
        for client in clients:
            await client.send(body[-10:])
        got = [await client.answer() for client in clients]
        assert {one.status for one in got} == {200, 503}
        assert all(map(is_sent_away, [one for one in got if one.status == 503]))
        assert {one["error"] for one in proxy.records() if one["status"] == 503} == {"overloaded"}
        (event, *_) = proxy.events("out_of_descriptors")
        assert (event["level"], event["limit"]) == ("warning", 256)
        for client in clients:
            client.close()
        told = (await call(proxy.port, path="/status", method="GET")).json()["channels"]
        assert [(one["state"], one["error_rate"]) for one in told] == [("ready", 0)]


# Too many connections


async def test_idle_give_way(upstream: Upstream) -> None:
    """Connections on which nothing is asked give way to new ones, those first that have been idle for
    longest; nobody is sent away.
    """
    async with limited(to(upstream), 256, 256) as proxy, AsyncExitStack() as stack:
        clients: list[Client] = []
        for _ in range(400):
            client = await stack.enter_async_context(await Client.connect(proxy.port))
            await client.send(request(path="/health", method="GET"))
            assert (await client.answer()).status == 200
            clients.append(client)
        assert (await call(proxy.port, chat())).status == 200
        await asyncio.sleep(0.2)
        there = [not client.reader.at_eof() for client in clients]
        assert there == sorted(there)  # those that came last
        assert 100 < sum(there) < 256 - RESERVE
        await clients[-1].send(request(chat()))
        assert (await clients[-1].answer()).status == 200
        assert proxy.events("out_of_descriptors") == []


async def test_newcomers_do_not_give_way(upstream: Upstream) -> None:
    """In a burst, who has connected and not asked yet is not closed for who comes behind: that one is told.
    Those who go on saying nothing give way.
    """
    async with limited(to(upstream), 256, 256) as proxy, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await Client.connect(proxy.port)) for _ in range(200)
        ]
        statuses = []
        for client in clients[:5] + clients[-5:]:
            await client.send(request(path="/v1/chat/completions", method="GET"))
            statuses.append((await client.answer()).status)
        assert statuses == [405] * 5 + [503] * 5
        await asyncio.sleep(2.5)
        assert (await call(proxy.port, chat())).status == 200


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_no_room(upstream: Upstream, tls: bool, tmp_path: Path) -> None:
    """Where no connection can give way, whoever comes is let in from the reserve, told to come back, in the
    words of the API that was asked, and has a line in the log; the lack is told once a second.
    """
    server, context = secured(tmp_path) if tls else ("", None)
    listen = None if tls else "127.0.0.1:0"
    async with limited(to(upstream, server), 256, 256, listen=listen) as proxy:

        async def ask(path: str) -> Answer:
            streams = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
            async with Client(*streams) as client:
                await client.send(request(chat(), path))
                got = await client.answer()
                assert await client.closed() == b""
                return got

        async with AsyncExitStack() as stack:
            for _ in range(256 - RESERVE):
                streams = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
                await (await stack.enter_async_context(Client(*streams))).send(HALF)
            for _ in range(5):
                assert is_sent_away(await ask("/v1/chat/completions"))
                got = await ask("/v1/messages")
                assert (got.status, got.json()["error"]["type"]) == (503, "overloaded_error")
                assert got.value(b"connection") == b"close"
            silent = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
            async with Client(*silent) as client:  # who says nothing is told, too
                assert (await client.answer()).status == 503
        async with asyncio.timeout(5):
            while Counter(one["error"] for one in proxy.records())["overloaded"] < 11:
                await asyncio.sleep(0.02)
        assert 1 <= len(proxy.events("out_of_descriptors")) <= 6
        async with asyncio.timeout(10):
            while True:  # those who have left are soon no more
                streams = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
                async with Client(*streams) as client:
                    await client.send(request(chat()))
                    if (await client.answer()).status == 200:
                        break


# Many descriptors


async def test_high_numbers(upstream: Upstream, tmp_path: Path) -> None:
    """Nothing that is called minds descriptors with numbers beyond what `select` takes: a surface with TLS,
    an upstream with TLS, a command for a credential, a file that changes, a reload.
    """
    ca = trustme.CA()
    pem, secret = tmp_path / "ca", tmp_path / "secret"
    ca.cert_pem.write_to_path(str(pem))
    secret.write_text("sk-first")
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(theirs)
    server, ours = secured(tmp_path)
    async with Upstream(theirs) as secure:
        text = f"""
            [server]
            {server}
            [upstreams.up]
            base_url = "{secure.url}"
            ca = "{pem}"
            credential = {{ command = ["sh", "-c", "echo sk-$(ulimit -Sn)"] }}
            [upstreams.file]
            base_url = "{upstream.url}"
            credential = "${{file:{secret}}}"
            [routes]
            "file" = "file/m"
            "*" = "up/*"
            """
        async with limited(text, 3000, 8192, 2000, listen=None) as proxy:

            async def ask(model: str) -> int:
                streams = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=ours)
                async with Client(*streams) as client:
                    await client.send(request(chat(model)))
                    return (await client.answer()).status

            assert await ask("m") == 200
            assert secure.requests[-1].value(b"authorization") == b"Bearer sk-3000"
            secret.write_text("sk-second")
            await proxy.event("credential_changed", count=2)
            assert (await proxy.reload())["event"] == "reloaded"
            assert await ask("file") == 200
            assert upstream.requests[-1].value(b"authorization") == b"Bearer sk-second"
            assert await ask("m") == 200
            assert proxy.process is not None
            assert len(list(Path(f"/proc/{proxy.process.pid}/fd").iterdir())) > 2000


# One by one


def made(**limits: int) -> tuple[Descriptors, list[dict[str, Any]], list[float]]:
    """Return some, with what they tell, and their clock."""
    told: list[dict[str, Any]] = []
    now = [100.0]
    found = Descriptors(lambda event, **facts: told.append(facts), None, lambda: now[0])
    found.limit = limits.get("limit", 1000)
    return found, told, now


def test_numbers() -> None:
    """A new descriptor says by its number how many there are."""
    found, *_ = made(limit=1000)
    assert [found.is_short(one) for one in (935, 936)] == [False, True]
    assert [found.is_scarce(one) for one in (967, 968)] == [False, True]


def test_who_gives_way() -> None:
    """Those give way who come first, many at a time, since what is closed is there only a moment later."""
    found, _, now = made()
    asked: list[tuple[str, int]] = []
    clients = [3, 0, 0]

    def give(who: str, left: list[int]) -> descriptors.Giver:
        def close(count: int) -> int:
            asked.append((who, count))
            return left.pop(0)

        return close

    found.givers += [give("clients", clients), give("upstreams", [1, 0])]
    assert [found.make_room() for _ in range(3)] == [True] * 3
    assert asked == [("clients", descriptors.BATCH)]
    assert found.make_room()
    assert [who for who, _ in asked[1:]] == ["clients", "upstreams"]
    assert not found.make_room()
    clients.append(5)
    assert found.make_room()
    assert not found.is_short(10)  # so those who gave way are closed, and what they left is in use
    clients += [0, 5]
    found.givers.pop()
    assert not found.make_room()
    assert found.make_room()
    now[0] += 1  # what has been closed then is in use by now
    clients.append(0)
    assert not found.make_room()


def test_told_once_a_second() -> None:
    """However many are sent away, the log says so once a second, and how many they were."""
    found, told, now = made()
    for _ in range(10):
        found.miss("too many open files")
    now[0] += 1
    found.miss("too many open files")
    assert [one["count"] for one in told] == [1, 10]
    assert told[0]["reason"] == "too many open files"


@pytest.mark.parametrize(
    ("number", "ours"),
    [
        (errno.EMFILE, True),
        (errno.ENFILE, True),
        (errno.ENOMEM, True),
        (errno.ECONNREFUSED, False),
        (errno.EADDRNOTAVAIL, False),
    ],
)
def test_whose_lack(number: int, ours: bool) -> None:
    """What is ours is told from what is an upstream's, also where one error has led to another."""
    found, *_ = made(limit=20_000)
    error = RuntimeError()
    error.__cause__ = OSError(number, "")
    assert found.lacked(error) is found.lacked(error.__cause__) is ours
    found.limit = 8  # there is no other descriptor now, whatever the error says
    assert found.lacked(error)


async def test_upstreams_give_way(upstream: Upstream) -> None:
    """A connection to an upstream that nobody uses can give way, as one of a client that asks nothing; one
    on which a request is waiting does not.
    """
    upstream.will(answer())
    async with serving(to(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat()))
        assert (await client.answer()).status == 200
        assert proxy.running is not None
        assert proxy.running._transport.give_way(5) == 1
        async with asyncio.timeout(5):
            await upstream.connections[0].gone.wait()
        assert proxy.running._transport.give_way(5) == 0
        os.write(client.writer.get_extra_info("socket").fileno(), request(chat()))
        assert proxy.running.give_way(5) == 0  # it is not read yet
        assert (await client.answer()).status == 200
        async with asyncio.timeout(5):
            while proxy.running.give_way(5) != 1:
                await asyncio.sleep(0.01)
        assert await client.closed() == b""
