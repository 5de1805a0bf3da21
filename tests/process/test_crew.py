"""Whatever becomes of one of several workers, nobody is refused, nobody else is cut, and soon another one stands
in its place.
"""

import asyncio
import os
import signal
import ssl
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from proxy.process.worker import STACKS
from tests.harness.client import Answer, Client, call, chat, request
from tests.harness.load import Plan, Taken, Taker, Tellers
from tests.harness.upstream import (
    Upstream,
)
from tests.harness.workers import (
    alive,
    both_have,
    pids,
    secured,
    status,
    to,
    until,
    workers,
)
from tests.process.test_lifecycle import (
    Paused,
    toml,
)

EVERY_SECONDS = 0.005
"""Between two requests: 200 a second."""
MOST = 400
"""More are not asked at once: a machine that is too slow for that many would fall behind for good."""


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
