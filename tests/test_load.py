"""Many at once: nothing grows, nothing is lost, and who behaves badly costs nobody else anything.

The proxy is a process of its own, as it is in production; upstream and clients are in this one.
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from time import monotonic
from typing import cast

import pytest

from tests.harness.client import Client, call, chat
from tests.harness.client import request as written
from tests.harness.figures import descriptors, peak, percentile, resident, show, slope
from tests.harness.load import BEAT_SECONDS, Plan, Taken, Taker, Tellers
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import DONE, JSON, head

SOON_SECONDS = 3.0
"""How soon an upstream must see that the client has left: a second, on a machine that does nothing else."""


def toml(tellers: Tellers, patience: str = "60s") -> str:
    return f"""
[server]
max_inflight = 100_000
[upstreams.up]
base_url = "{tellers.url}"
credential = "sk-upstream-0000000000000000"
timeout = {{ first_byte = "{patience}", idle = "{patience}" }}
[routes]
"*" = "up/m"
"""


def pid_of(proxy: Proxy) -> int:
    assert proxy.process is not None
    return proxy.process.pid


async def back_to(proxy: Proxy, before: int, seconds: float = 10.0) -> int:
    """Wait until the proxy has no more than *before* descriptors; return how many it has."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while descriptors(pid_of(proxy)) > before:
                await asyncio.sleep(0.05)
    now = descriptors(pid_of(proxy))
    assert now <= before
    return now


# Faults

ENDS: dict[str, tuple[str, str | None, int]] = {
    "whole": ("ok", None, 200),
    "cut": ("upstream_cut", "upstream_disconnected", 200),
    "reset": ("upstream_cut", "upstream_disconnected", 200),
    "short": ("upstream_cut", "upstream_incomplete", 200),
    "silent": ("timeout", "upstream_idle_timeout", 200),
    "failed": ("upstream_error", "upstream_error_event", 200),
    "leave": ("client_gone", "client_gone", 200),
    "refuse": ("upstream_error", "upstream_disconnected", 502),
    "garbage": ("upstream_error", "upstream_protocol", 502),
    "late": ("timeout", "upstream_timeout", 504),
    "500": ("upstream_error", None, 500),
    "429": ("upstream_error", None, 429),
}
"""How the record of an exchange must say that it ended, by what its plan was: outcome, error, status."""
FAULTS = [kind for kind in ENDS if kind != "whole"]


def check(plan: Plan, got: Taken) -> None:
    """Check that the client has seen what *plan* says, and that nothing of it was altered."""
    _, error, status = ENDS[plan.kind]
    assert got.status == status, (plan, got)
    if plan.kind in ("whole", "failed"):
        assert got.whole
        assert got.content.startswith(plan.story())
        assert got.content.endswith(DONE)
    elif plan.kind == "leave":
        assert not got.whole
        assert Plan("", 10_000, plan.number).story().startswith(got.content)
    elif status == 200:
        assert error is not None
        assert not got.whole
        story, mark, last = got.content.rpartition(b'data: {"error":')
        if mark:
            assert error.encode() in last
        else:
            story = last  # half an event stays open, and nothing is said behind it
        assert bool(mark) == (not story or story.endswith(b"\n\n")), (plan, got)
        assert Plan("", plan.pieces + 1, plan.number).story().startswith(story), plan
    else:
        assert got.whole
        assert (b'"code":"%b"' % error.encode() if error else b"{}") in got.content


class Crowd:
    """Clients that stream one answer after the other, one in 20 of which goes wrong."""

    def __init__(self, port: int, longest: int) -> None:
        self.over = False
        self.done: dict[str, Plan] = {}
        self._port = port
        self._longest = longest
        self._random = Random(20)

    async def one(self) -> None:
        """Be one client, until all is over."""
        random = self._random
        taker: Taker | None = None
        while not self.over:
            if taker is None or taker.lost:
                taker = await Taker.connect(self._port)
            kind = random.choice(FAULTS) if random.random() < 0.05 else "whole"
            pieces = random.randrange(self._longest // 10, self._longest)
            plan = Plan.make(kind, 100_000 if kind == "leave" else pieces)
            leaving = None
            if kind == "leave":
                after = BEAT_SECONDS * (pieces + 10)
                leaving = asyncio.get_running_loop().call_later(after, taker.transport.abort)
            got = await taker.take(plan)
            if leaving is not None:
                leaving.cancel()
            check(plan, got)
            assert got.id not in self.done
            self.done[got.id] = plan
            if not got.whole or b"\r\nConnection: close" in got.head:
                taker.transport.abort()
                taker = None
        if taker is not None:
            taker.transport.abort()


async def watch(
    pid: int, seconds: float
) -> tuple[list[tuple[float, float]], list[tuple[float, int]]]:
    """Look at the process *pid* for a while: return its memory in MB and its descriptors, by time."""
    memory, files = [], []
    until = monotonic() + seconds
    while (now := monotonic()) < until:
        memory.append((now, resident(pid)))
        files.append((now, descriptors(pid)))
        await asyncio.sleep(0.1)
    return memory, files


@pytest.mark.parametrize(
    ("streams", "warm", "seconds", "steepest"),
    [
        pytest.param(100, 2, 10, 6.0, id="short"),
        pytest.param(
            500, 20, 60, 0.5, id="long", marks=[pytest.mark.long, pytest.mark.timeout(240)]
        ),
        pytest.param(
            500, 30, 600, 0.5, id="soak", marks=[pytest.mark.long, pytest.mark.timeout(900)]
        ),
    ],
)
async def test_streams_with_faults(
    request: pytest.FixtureRequest, streams: int, warm: float, seconds: float, steepest: float
) -> None:
    """Of streams of which one in 20 goes wrong each ends as it must, by its own record; memory and
    descriptors stay as they are.
    """
    async with Tellers() as tellers, process(toml(tellers, "3s"), python=()) as proxy:
        pid = pid_of(proxy)
        idle = descriptors(pid)
        crowd = Crowd(proxy.port, longest=60 if streams == 100 else 200)
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(crowd.one())
            await asyncio.sleep(warm)
            told, begun = tellers.told, monotonic()
            memory, files = await watch(pid, seconds)
            rate = (tellers.told - told) / (monotonic() - begun)
            crowd.over = True
        await proxy.record(len(crowd.done), seconds=20)
        records = {record["request_id"]: record for record in proxy.records()}
        assert records.keys() == crowd.done.keys()
        for name, plan in crowd.done.items():
            record = records[name]
            assert (record["outcome"], record["error"], record["status"]) == ENDS[plan.kind], record
            # Only what died on a used connection, before a byte, is asked for again.
            assert tellers.begun[plan.number] == len(record["attempts"])
            assert len(record["attempts"]) <= (2 if plan.kind == "refuse" else 1), record
        tellers.leave()
        left = await back_to(proxy, idle)
        faults = Counter(plan.kind for plan in crowd.done.values() if plan.kind != "whole")
        steep = slope(memory) * 60
        show(
            request,
            f"{streams} streams, {rate:.0f} events/s, {seconds:.0f} s: {len(crowd.done)} exchanges, "
            f"{faults.total()} of them with faults ({', '.join(f'{n} {k}' for k, n in faults.items())}), "
            "each with its outcome and its one line",
        )
        few, many = min(files, key=lambda one: one[1])[1], max(files, key=lambda one: one[1])[1]
        rising = slope([(at, float(number)) for at, number in files]) * 60
        show(
            request,
            f"  RSS {memory[0][1]:.1f} → {memory[-1][1]:.1f} MB, {steep:+.2f} MB/min; descriptors "
            f"{few} to {many}, {rising:+.1f}/min, {idle} before, {left} after",
        )
        assert rate > 0.3 * streams / BEAT_SECONDS, "the machine is too slow to tell"
        assert steep < steepest
        assert many <= idle + 2 * streams + 20


# Short requests


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(0.0, id="short"),
        pytest.param(180.0, id="long", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
async def test_short_requests(request: pytest.FixtureRequest, seconds: float) -> None:
    """Of short requests, however many, each is answered and has its line; memory stays as it is, but for
    the lines that wait for a slow disk: 20,000 of 600 bytes.
    """
    number = 100_000 if seconds else 8_000
    async with Tellers() as tellers, process(toml(tellers), python=()) as proxy:
        pid = pid_of(proxy)
        sent = 0

        async def client(todo: Iterator[int]) -> None:
            nonlocal sent
            taker = await Taker.connect(proxy.port)
            for _ in todo:
                got = await taker.take(Plan.make("200", 0))
                assert (got.status, got.content) == (200, b"{}")
                sent += 1
            taker.transport.abort()

        async def some() -> tuple[float, float]:
            """Send so many of them; return when all lines are written, and what is in use then."""
            todo = iter(range(number))
            async with asyncio.TaskGroup() as group:
                for _ in range(32):
                    group.create_task(client(todo))
            await logged(proxy, sent)
            return monotonic(), resident(pid)

        begun = monotonic()
        points = [await some(), await some()]
        while monotonic() - begun < seconds:
            points.append(await some())
        (_, before), (_, after), steep = points[0], points[-1], slope(points) * 60
        show(
            request,
            f"{sent} short requests in {points[-1][0] - begun:.0f} s: RSS {before:.1f} MB after the first "
            f"{number}, {after:.1f} MB after all, {steep:+.2f} MB/min",
        )
        assert after - before < 12.0
        assert not seconds or steep < 0.5


async def logged(proxy: Proxy, lines: int) -> None:
    """Wait until so many exchanges stand in the log, without reading them each time."""
    async with asyncio.timeout(60):
        while proxy.log.read_bytes().count(b'"event":"exchange"') < lines:
            await asyncio.sleep(0.1)


# Large bodies


class Counting(asyncio.Protocol):
    """The upstream's side of a connection that takes large bodies, and keeps nothing of them."""

    def __init__(self, whole: "asyncio.Queue[Counting]") -> None:
        self._whole = whole
        self._head = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._left:
            self._head += data
            top, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._left = int(top.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        self._left -= len(data)
        if not self._left:
            self._head = b""
            self._whole.put_nowait(self)

    def answer(self) -> None:
        """Answer, at last."""
        self.transport.write(head(200, [JSON, (b"Content-Length", b"2")]) + b"{}")


LARGE = 20_000_000


@pytest.mark.parametrize("number", [10, pytest.param(50, marks=pytest.mark.long)])
async def test_large_bodies(request: pytest.FixtureRequest, number: int) -> None:
    """Large bodies that are asked for anew where an answer fails are held meanwhile, and once."""
    loop = asyncio.get_running_loop()
    whole: asyncio.Queue[Counting] = asyncio.Queue()
    server = await loop.create_server(lambda: Counting(whole), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    config = f"""
[upstreams.up]
base_url = "{url}"
[routes]
"*" = "up/another-name"
"""
    sent = written(chat("m", "x" * LARGE))

    async with server, process(config, python=()) as proxy:
        assert (await call(proxy.port, method="GET", path="/health")).status == 200
        before = resident(pid_of(proxy))

        async def client() -> None:
            async with await Client.connect(proxy.port) as one:
                await one.send(sent)
                assert (await one.answer(seconds=50)).body == b"{}"

        async with asyncio.TaskGroup() as group:
            for _ in range(number):
                group.create_task(client())
            async with asyncio.timeout(50):
                waiting = [await whole.get() for _ in range(number)]
            held = (resident(pid_of(proxy)) - before) / number
            for connection in waiting:
                connection.answer()
        most = (peak(pid_of(proxy)) - before) / number
        await proxy.record(number, seconds=20)
        show(
            request,
            f"{number} bodies of {LARGE / 1e6:.0f} MB at once: {held:.1f} MB held for each, "
            f"{most:.1f} MB at most",
        )
        assert most < 1.5 * LARGE / 1e6


# Clients that leave


async def abort(port: int, random: Random, left: dict[int, float]) -> None:
    """Ask for a stream, and leave at some moment or other."""
    plan = Plan.make(random.choice(["whole", "late"]), 10_000)
    sent = plan.request()
    taker = await Taker.connect(port)
    if random.random() < 0.3:  # in the middle of the head, or of the body
        sent = sent[: random.randrange(len(sent))]
    taker.transport.write(sent)
    if random.random() < 0.8:
        await asyncio.sleep(random.random() * 0.15)
    assert not taker.lost
    left[plan.number] = monotonic()
    taker.transport.abort()


async def aborted(port: int, number: int) -> dict[int, float]:
    """Abort *number* calls, some at a time; return when the client of each left."""
    random = Random(number)
    left: dict[int, float] = {}
    todo = iter(range(number))

    async def some() -> None:
        for _ in todo:
            await abort(port, random, left)

    async with asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(some())
    return left


async def seen(tellers: Tellers, left: dict[int, float]) -> float:
    """Wait until the upstream has seen all of them leave that it knew of; return the longest that took."""
    async with asyncio.timeout(20):
        while any(slot for slot in tellers.slots) or tellers.open:
            await asyncio.sleep(0.02)
    assert tellers.begun.keys() == tellers.lost.keys()
    return max((tellers.lost[number] - left[number] for number in tellers.lost), default=0.0)


@pytest.mark.parametrize(
    "number", [1_000, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(240)])]
)
async def test_aborted_calls(request: pytest.FixtureRequest, number: int) -> None:
    """Clients that leave, at whatever moment, are followed by the upstream's connection within a second,
    and leave no descriptor behind.
    """
    async with Tellers() as tellers, process(toml(tellers), python=()) as proxy:
        idle = descriptors(pid_of(proxy))
        await seen(tellers, await aborted(proxy.port, 100))
        memory = resident(pid_of(proxy))
        tellers.begun.clear()
        tellers.lost.clear()
        longest = await seen(tellers, await aborted(proxy.port, number))
        now = await back_to(proxy, idle)
        records = proxy.records()
        assert {record["outcome"] for record in records} == {"client_gone"}
        assert len(records) >= len(tellers.begun)
        show(
            request,
            f"{number} aborted calls, {len(tellers.begun)} known to the upstream, which saw each leave within "
            f"{longest * 1000:.0f} ms; descriptors {idle} before, {now} after; "
            f"RSS {memory:.1f} → {resident(pid_of(proxy)):.1f} MB",
        )
        assert longest < SOON_SECONDS


@pytest.mark.parametrize("number", [300, pytest.param(3_000, marks=pytest.mark.long)])
async def test_aborted_calls_leave_no_task(number: int) -> None:
    """Of a call that was aborted no task goes on, and nothing is held."""
    async with Tellers() as tellers, serving(toml(tellers)) as proxy:
        assert proxy.running is not None
        before = len(asyncio.all_tasks())
        longest = await seen(tellers, await aborted(proxy.port, number))
        async with asyncio.timeout(20):
            while len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0.01)
        gate = proxy.running.gate
        assert (gate.inflight, gate.held) == (0, 0)
        assert not proxy.running._relays
        assert not proxy.running._transport._open
        loads = proxy.running._opener.scores._loads.values()
        assert [(load.active, load.retrying) for load in loads] == [(0, 0)]
        assert longest < SOON_SECONDS


# Clients that do not read


async def delays(readers: list[Taker], seconds: float) -> list[float]:
    """Return how late every event came that *readers* got within the next *seconds*."""
    for reader in readers:
        reader.delays = []
    await asyncio.sleep(seconds)
    found = [delay for reader in readers for delay in reader.delays or ()]
    for reader in readers:
        reader.delays = None
    return found


async def deaf(port: int) -> socket.socket:
    """Ask for a flood, and never read a byte of it."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    # Segments as on a real network: for those of the loopback the kernel itself would hold megabytes.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
    await loop.sock_connect(sock, ("127.0.0.1", port))
    await loop.sock_sendall(sock, Plan.make("flood", 0).request())
    return sock


@pytest.mark.parametrize(
    "seconds", [2, pytest.param(20, marks=[pytest.mark.long, pytest.mark.timeout(240)])]
)
async def test_clients_that_do_not_read(request: pytest.FixtureRequest, seconds: float) -> None:
    """200 clients that take nothing do not slow 50 that do, and cost little memory each."""
    async with Tellers() as tellers, process(toml(tellers), python=()) as proxy:
        pid = pid_of(proxy)
        readers = [await Taker.connect(proxy.port) for _ in range(50)]
        for reader in readers:
            reader.transport.write(Plan.make("timed", 100_000).request())
        await asyncio.sleep(1)
        alone = await delays(readers, seconds)
        base = resident(pid)
        deaf_ones = [await deaf(proxy.port) for _ in range(200)]
        try:
            async with asyncio.timeout(40):
                while len(tellers.begun) < 250:
                    await asyncio.sleep(0.02)
                await tellers.settled()
            among = await delays(readers, seconds)
            each = (resident(pid) - base) / len(deaf_ones)
            for sock in deaf_ones:
                sock.close()
            async with asyncio.timeout(10):
                while len(tellers.open) > 50:
                    await asyncio.sleep(0.02)
            again = await delays(readers, 1)
            assert not any(reader.lost for reader in readers)
            before, beside, after = (percentile(one, 99) * 1000 for one in (alone, among, again))
            show(
                request,
                f"50 readers: p99 {before:.1f} ms alone, {beside:.1f} ms beside 200 that do not read, "
                f"{after:.1f} ms when these have left; {each:.2f} MB each",
            )
            assert len(among) > 0.3 * len(readers) * seconds / BEAT_SECONDS
            assert beside < 5 * max(before, after) + 100
            assert each <= 0.6
        finally:
            for sock in deaf_ones:
                sock.close()
            for reader in readers:
                reader.transport.abort()
        await proxy.record(250)
        assert {record["outcome"] for record in proxy.records()} == {"client_gone"}
