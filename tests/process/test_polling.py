"""How all workers are, whichever of them is asked."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from time import monotonic

from tests.conftest import routes_to
from tests.harness.client import Client, call, chat, request
from tests.harness.upstream import (
    Upstream,
)
from tests.harness.workers import (
    pids,
    status,
    to,
    workers,
)
from tests.process.test_lifecycle import (
    Paused,
)


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
