"""Several workers: whatever becomes of one of them, nobody is refused, and nobody else is cut."""

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trustme

from proxy.worker import STACKS
from tests.conftest import routes_to
from tests.harness.client import Answer, Client, call, chat, request
from tests.harness.load import Plan, Taken, Taker, Tellers
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
from tests.test_lifecycle import (
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

EVERY_SECONDS = 0.005
"""Between two requests: 200 a second."""
MOST = 400
"""More are not asked at once: a machine that is too slow for that many would fall behind for good."""
STRICT = ("-W", "error")
"""Without `-X dev`, which complains of a busy machine: several processes begin here at once."""


def to(url: str, server: str = "") -> str:
    return f'[server]\n{server}\n[routes]\n"*" = {{ base_url = "{url}" }}\n'


@asynccontextmanager
async def workers(text: str, count: int = 2, **more: Any) -> AsyncIterator[Proxy]:
    async with process(text, further=("--workers", str(count)), python=STRICT, **more) as proxy:
        yield proxy


def pids(proxy: Proxy) -> dict[int, int]:
    """Return which process is which worker."""
    return {line["worker"]: line["pid"] for line in proxy.events("worker_started")}


async def status(proxy: Proxy) -> dict[str, Any]:
    got = await call(proxy.port, path="/status", method="GET")
    assert got.status == 200, got.raw
    found: dict[str, Any] = got.json()
    return found


async def until(true: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def both_have(proxy: Proxy, streams: int) -> dict[str, int]:
    """Wait until so many streams are running; return which worker has which."""
    found: dict[str, int] = {}

    async def running() -> bool:
        sessions = (await status(proxy))["sessions"]
        found.update({one["id"]: one["worker"] for one in sessions if one["bytes_out"]})
        return len(found) >= streams

    await until(running)
    return found


def secured(directory: Path) -> tuple[str, ssl.SSLContext]:
    """Return how a server speaks TLS, with files in *directory*, and what its clients trust."""
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    key, pem = directory / "key", directory / "pem"
    issued.private_key_pem.write_to_path(str(key))
    issued.cert_chain_pems[0].write_to_path(str(pem))
    context = ssl.create_default_context()
    ca.configure_trust(context)
    tls = f'tls = {{ certificate = "{pem}", key = "{key}" }}'
    return f'listen = "127.0.0.1:0"\n{tls}', context


# Under load


class Asking:
    """Asks 200 times a second, each time on a new connection, and a few clients on one that they keep.

    *failed* are the requests that came to nothing: when their connections began, and what became of them;
    *dropped* is how often a connection ended on which nothing was asked.
    """

    def __init__(self, port: int, keepers: int = 8) -> None:
        self.failed: list[tuple[float, str]] = []
        self.answered = self.dropped = self._asking = 0
        self._port = port
        self._keepers = keepers

    async def __aenter__(self) -> "Asking":
        self._over = False
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._group.create_task(self._ask())
        for _ in range(self._keepers):
            self._group.create_task(self._keep())
        return self

    async def __aexit__(self, *error: Any) -> None:
        self._over = True
        await self._group.__aexit__(*error)

    async def _ask(self) -> None:
        due = monotonic()
        while not self._over:
            if self._asking < MOST:
                self._group.create_task(self._one())
            due += EVERY_SECONDS
            await asyncio.sleep(due - monotonic())

    async def _one(self) -> None:
        began = monotonic()
        self._asking += 1
        try:
            taker = await Taker.connect(self._port)
            await self._take(taker, began)
            taker.transport.abort()
        except OSError as error:
            self.failed.append((began, repr(error)))
        finally:
            self._asking -= 1

    async def _take(self, taker: Taker, began: float) -> bool:
        """Ask once; return whether the connection may be used again."""
        taken = await taker.take(Plan.make("200", 0))
        if taken.whole and taken.status == 200:
            self.answered += 1
        else:
            self.failed.append((began, repr(taken)))
        return taken.whole and b"\r\nConnection: close\r\n" not in taken.head

    async def _keep(self) -> None:
        while not self._over:
            began = monotonic()
            taker = await Taker.connect(self._port)
            while not self._over:
                if taker.lost:
                    self.dropped += 1
                    break
                if not await self._take(taker, began):
                    break
                await asyncio.sleep(0.05)
            taker.transport.abort()


async def stream(port: int, plan: Plan) -> Taken:
    taker = await Taker.connect(port)
    taken = await taker.take(plan)
    taker.transport.abort()
    return taken


async def test_killed_worker() -> None:
    """A worker that is killed takes with it what it had, and nothing else: under load nobody is refused,
    no other answer is cut, and soon another worker stands in its place.
    """
    async with Tellers() as tellers, workers(to(tellers.url)) as proxy:
        plans = [Plan.make("whole", 20) for _ in range(100)]
        tellers.longer = True  # until one is killed, however slow the machine is
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(stream(proxy.port, plan)) for plan in plans]
            where = await both_have(proxy, 100)
            async with Asking(proxy.port) as asking:
                await asyncio.sleep(0.5)
                os.kill(pids(proxy)[0], signal.SIGKILL)
                killed = monotonic()
                await proxy.event("worker_ended")
                tellers.longer = False
                await proxy.event("worker_started", count=3, seconds=30)
                await asyncio.sleep(0.5)
        assert asking.answered > 100
        assert [one for one in asking.failed if one[0] >= killed] == []
        for plan, task in zip(plans, streams, strict=True):
            taken = task.result()
            if where[taken.id] == 1:
                assert (taken.whole, taken.content[: len(plan.story())]) == (True, plan.story())
            else:
                assert not taken.whole
        assert 30 <= sum(where.values()) <= 70
        (ended,) = proxy.events("worker_ended")
        assert (ended["worker"], ended["status"]) == (0, -9)


@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.long)])
@pytest.mark.timeout(600)
async def test_replaced_workers(times: int) -> None:
    """Workers are replaced one by one, under load, again and again: nothing is refused, nothing is cut."""
    async with Tellers() as tellers, workers(to(tellers.url)) as proxy:
        seen = set(pids(proxy).values())
        plans = []
        async with Asking(proxy.port) as asking, asyncio.TaskGroup() as group:
            for time in range(times):
                some = [Plan.make("whole", 20) for _ in range(20)]
                plans += [(plan, group.create_task(stream(proxy.port, plan))) for plan in some]
                proxy.tell(signal.SIGUSR2)
                await proxy.event("replaced", count=time + 1, seconds=60)
                seen |= set(pids(proxy).values())
        assert (asking.failed, asking.dropped) == ([], 0)
        assert asking.answered > 100 * times
        for plan, task in plans:
            taken = task.result()
            assert (taken.whole, taken.content[: len(plan.story())]) == (True, plan.story())
        assert len(seen) == 2 + 2 * times
        assert proxy.events("worker_ended", "worker_failed") == []
        assert sum(map(alive, seen)) == 2


class Keeping:
    """Clients that keep their connection: each asks for answers of one of *lengths*, in events, and after
    a *pause* for the next one, on the same connection for as long as nobody says that it ends.

    *lost* are the requests that came to nothing, *told* counts the connections of which an answer said
    that they end, *broken* those that ended without a word while nothing was asked.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self.answered = self.told = self.broken = 0
        self.lost: list[Taken] = []
        self._port = port
        self._tls = tls
        self._over = False

    async def keep(self, lengths: Sequence[int], pause: float = 0.0) -> None:
        every = cycle(lengths)
        while not self._over:
            taker = await Taker.connect(self._port, self._tls)
            while not self._over:
                if taker.lost:
                    self.broken += 1
                    break
                pieces = next(every)
                if not await self._ask(taker, Plan.make("whole" if pieces else "200", pieces)):
                    break
                if pause:
                    await asyncio.sleep(pause)
            taker.transport.abort()

    async def _ask(self, taker: Taker, plan: Plan) -> bool:
        """Ask once; return whether the connection may be used again."""
        taken = await taker.take(plan)
        if not taken.whole or taken.status != 200 or plan.story() not in taken.content:
            self.lost.append(taken)
            return False
        self.answered += 1
        told = b"\r\nConnection: close\r\n" in taken.head
        self.told += told
        return not told

    def stop(self) -> None:
        self._over = True


@pytest.mark.parametrize(
    ("times", "longest"), [(2, 40), pytest.param(20, 140, marks=pytest.mark.long)]
)
@pytest.mark.timeout(900)
async def test_kept_connections(times: int, longest: int) -> None:
    """Workers are replaced again and again, and whoever keeps a connection notices nothing: not who asks
    again at once, behind a stream or not, nor who lets it lie for a while.
    """
    async with Tellers() as tellers, workers(to(tellers.url)) as proxy:
        keeping = Keeping(proxy.port)
        async with asyncio.TaskGroup() as group:
            for lengths in [(0,), (4,), (4, 0, 8), (0, longest)] * 5:
                group.create_task(keeping.keep(lengths))
            for pause in (0.1, 2.0, 9.0) * 5:
                group.create_task(keeping.keep((0,), pause))
            for time in range(times):
                proxy.tell(signal.SIGUSR2)
                await proxy.event("replaced", count=time + 1, seconds=90)
            keeping.stop()
        assert (keeping.lost, keeping.broken, keeping.told) == ([], 0, 0)
        assert keeping.answered > 100 * times
        assert proxy.events("idle_closed") == []


async def test_kept_connections_over_tls(tmp_path: Path) -> None:
    """Who speaks TLS, and asks before `drain` is over, is told with the answer to connect anew, and loses
    nothing; who has not asked by then is closed, and counted.
    """
    text, context = secured(tmp_path)
    async with Tellers() as tellers:
        text = to(tellers.url, f'{text}\ndrain = "4s"')
        async with workers(text, listen=None) as proxy:
            keeping = Keeping(proxy.port, context)
            silent = await Taker.connect(proxy.port, context)
            async with asyncio.TaskGroup() as group:
                for lengths in [(0,), (4,), (0, 20)] * 3:
                    group.create_task(keeping.keep(lengths))
                for pause in (0.1, 1.0) * 3:
                    group.create_task(keeping.keep((0,), pause))
                proxy.tell(signal.SIGUSR2)
                await proxy.event("replaced", seconds=90)
                keeping.stop()
            assert (keeping.lost, keeping.broken) == ([], 0)
            assert keeping.told > 0
            assert [one["connections"] for one in proxy.events("idle_closed")] == [1]
            assert silent.lost


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


# Balance


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


# Status


async def test_status_of_all(upstream: Upstream) -> None:
    """The status is that of all workers, whichever is asked: their sessions, their counts, and each of
    them.
    """
    paused = [Paused() for _ in range(4)]
    upstream.will(*paused)
    text = routes_to(upstream)
    async with workers(text) as proxy, AsyncExitStack() as stack:
        for one in paused:
            client = await stack.enter_async_context(await Client.connect(proxy.port))
            await client.send(request(chat(stream=True)))
            await one.begun.wait()
        for _ in range(2):
            found = await status(proxy)
            assert found["active_sessions"] == 4
            assert sorted(one["worker"] for one in found["sessions"]) == [0, 0, 1, 1]
            assert [one["in_flight"] for one in found["channels"]] == [4]
            assert [(one["worker"], one["state"]) for one in found["workers"]] == [
                (0, "ready"),
                (1, "ready"),
            ]
            assert {one["worker"]: one["pid"] for one in found["workers"]} == pids(proxy)
        for one in paused:
            one.released.set()


async def test_status_where_one_hangs(upstream: Upstream) -> None:
    """A worker that hangs is shown as silent, soon; the others go on, and get what comes."""
    async with workers(to(upstream.url)) as proxy:
        os.kill(pids(proxy)[1], signal.SIGSTOP)
        try:
            clients = [asyncio.create_task(call(proxy.port, chat())) for _ in range(2)]
            await asyncio.wait(clients, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0.2)
            for _ in range(5):
                assert (await call(proxy.port, chat(), seconds=5)).status == 200
            began = monotonic()
            found = await status(proxy)
            assert monotonic() - began < 10
            assert [one["state"] for one in found["workers"]] == ["ready", "silent"]
            async with await Client.connect(proxy.port) as client:
                await client.send(request(path="/status/events", method="GET"))
                async with asyncio.timeout(10):
                    assert b"200 OK" in await client.reader.readuntil(b"\r\n\r\n")
                    assert b'"silent"' in await client.reader.readuntil(b"\n\r\n")
        finally:
            os.kill(pids(proxy)[1], signal.SIGCONT)
        assert [one.status for one in await asyncio.gather(*clients)] == [200, 200]


async def test_one_that_hangs_is_ended(upstream: Upstream) -> None:
    """A worker that hangs for longer than it may is ended and replaced; whoever it was about to have is
    served by the others.
    """
    toml = to(upstream.url, 'worker_timeout = "1s"')
    async with workers(toml, check=False) as proxy:
        hanging = pids(proxy)[0]
        os.kill(hanging, signal.SIGSTOP)
        clients = [asyncio.create_task(call(proxy.port, chat(), seconds=30)) for _ in range(4)]
        told = await proxy.event("worker_hangs")
        assert (told["worker"], told["pid"], told["level"]) == (0, hanging, "error")
        await proxy.event("worker_ended")
        assert [one.status for one in await asyncio.gather(*clients)] == [200] * 4

        async def replaced() -> bool:
            return pids(proxy)[0] != hanging

        await until(replaced)
        assert [one["state"] for one in (await status(proxy))["workers"]] == ["ready"] * 2


async def test_one_that_hangs_says_where(upstream: Upstream) -> None:
    """A worker tells on its stderr what its threads do, when it is asked to, and goes on."""
    async with workers(to(upstream.url), check=False) as proxy:
        os.kill(pids(proxy)[0], STACKS)
        stderr = proxy.stderr
        assert stderr is not None

        async def said() -> bool:
            return "most recent call first" in stderr.read_text()

        await until(said)
        assert [one["state"] for one in (await status(proxy))["workers"]] == ["ready"] * 2
        assert [one.status for one in [await call(proxy.port, chat()) for _ in range(2)]] == [
            200
        ] * 2


async def test_one_that_has_just_begun_dies(upstream: Upstream) -> None:
    """A worker that dies is replaced, though the one before it, whose place it took, still finishes."""
    paused = Paused()
    upstream.will(paused)
    async with workers(toml(upstream), check=False) as proxy:
        client = asyncio.create_task(call(proxy.port, chat(stream=True), seconds=60))
        await paused.begun.wait()
        first = pids(proxy)
        ((_, number),) = (await both_have(proxy, 1)).items()
        proxy.tell(signal.SIGUSR2)

        async def replaced() -> bool:
            return pids(proxy)[number] != first[number]

        await until(replaced)
        second = pids(proxy)[number]
        os.kill(second, signal.SIGKILL)

        async def again() -> bool:
            return pids(proxy)[number] not in (first[number], second)

        await until(again)
        assert not client.done()
        paused.released.set()
        assert (await client).whole


# Reload


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


async def test_reload_where_one_hangs(upstream: Upstream) -> None:
    """A worker that hangs holds a reload up until it is ended; then the others serve the file, and so does
    the worker that takes its place.
    """
    toml = to(upstream.url, 'worker_timeout = "1s"')
    async with workers(toml, check=False) as proxy:
        os.kill(pids(proxy)[0], signal.SIGSTOP)
        proxy.write(toml + '[keys]\nteam = "sk-team-0123456789"\n')
        proxy.tell(signal.SIGHUP)
        await proxy.event("reloaded", seconds=20)
        await proxy.event("worker_started", count=3, seconds=40)
        assert [(await call(proxy.port, chat())).status for _ in range(4)] == [401] * 4


async def test_closed_stays_closed(upstream: Upstream) -> None:
    """That keys were in force is told to every worker: one that begins after the file has lost them, for a
    dead one or in another's place, is as closed as those that saw it happen.
    """
    toml = to(upstream.url)
    keys = '[keys]\nteam = "sk-team-0123456789"\n'

    async def told() -> set[int]:
        return {(await call(proxy.port, chat())).status for _ in range(6)}

    async with workers(toml + keys) as proxy:
        assert (await proxy.reload(toml))["keys"] == 0
        assert (await proxy.event("closed"))["surfaces"] == ["main"]
        assert await told() == {401}
        os.kill(pids(proxy)[0], signal.SIGKILL)
        await proxy.event("worker_started", count=3, seconds=30)
        assert await told() == {401}
        proxy.tell(signal.SIGUSR2)
        await proxy.event("replaced", seconds=60)
        assert await told() == {401}
        await proxy.reload(toml)
        assert await told() == {401}
        assert len(proxy.events("closed")) == 2


# Dying


async def test_worker_that_cannot_begin(upstream: Upstream, tmp_path: Path) -> None:
    """A worker that cannot be replaced is tried again, ever less often; the status says that nobody is
    there, the others serve, and TLS is no other than without workers.
    """
    server, context = secured(tmp_path)
    text, pem = to(upstream.url, server), tmp_path / "pem"

    async def answered(sent: bytes) -> Answer:
        streams = await asyncio.open_connection("127.0.0.1", proxy.port, ssl=context)
        async with Client(*streams) as client:
            await client.send(sent)
            return await client.answer()

    async def ask() -> int:
        return (await answered(request(chat()))).status

    async def nobody_there() -> bool:
        told = (await answered(request(path="/status", method="GET"))).json()["workers"]
        assert [one["worker"] for one in told] == [0, 1]
        return (told[0]["state"], told[0]["pid"]) == ("ended", None)

    async with workers(text, listen=None, check=False) as proxy:
        assert [await ask() for _ in range(4)] == [200] * 4
        pem.rename(tmp_path / "away")
        os.kill(pids(proxy)[0], signal.SIGKILL)
        await proxy.event("worker_failed", count=2, seconds=30)
        assert [await ask() for _ in range(4)] == [200] * 4
        await until(nobody_there)
        (tmp_path / "away").rename(pem)
        await proxy.event("worker_started", count=3, seconds=30)
        assert [await ask() for _ in range(4)] == [200] * 4
    assert proxy.process is not None
    assert proxy.process.returncode == 0


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


# Leaving


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


# Beginning


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


def children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(one) for thread in threads for one in thread.read_text().split()]
