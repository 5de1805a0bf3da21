"""A worker as its supervisor sees it: what it asks for first, and what it does when told."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.process.channel import Channel, Gone
from proxy.process.lifecycle import GARBAGE
from proxy.process.worker import Seat
from tests.harness.client import Client, Pair, chat, request
from tests.harness.upstream import Upstream, answer
from tests.process.test_lifecycle import Paused


class Told:
    """A worker, and what it has asked its supervisor."""

    channel: Channel
    process: asyncio.subprocess.Process
    doors: socket.socket

    def __init__(self, source: str) -> None:
        self.source = source
        self.asked: list[str] = []
        self.ready = asyncio.Event()

    async def answer(self, name: str, value: Any) -> Any:
        self.asked.append(name)
        if name == "source":
            return {"content": self.source, "variables": {"TOKEN": "sk-variable"}, "keyed": False}
        if name == "ready":
            self.ready.set()
        return None


@asynccontextmanager
async def worker(
    source: str, tmp_path: Path, program: tuple[str, ...] = ("-m", "proxy")
) -> AsyncIterator[Told]:
    """Start a worker that serves *source*, and is its supervisor's only one."""
    pairs = [
        socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    ]
    (words, their_words), (doors, their_doors) = pairs
    told = Told(source)
    words.setblocking(False)
    told.channel = await Channel.open(words, told.answer)
    seat = Seat(7, their_words.fileno(), their_doors.fileno(), 1024)
    command = ("-W", "error", *program, "serve", "-c", "nowhere.toml")
    with (tmp_path / "log").open("wb") as log, (tmp_path / "errors").open("wb") as errors:
        told.process = await asyncio.create_subprocess_exec(
            sys.executable, *command, "--seat", str(seat),
            stdout=log, stderr=errors, pass_fds=(seat.channel, seat.doors),
        )  # fmt: skip
    their_words.close()
    their_doors.close()
    told.doors = doors
    try:
        yield told
        async with asyncio.timeout(20):
            assert await told.process.wait() == 0
        assert (tmp_path / "errors").read_text() == ""
    finally:
        if told.process.returncode is None:
            told.process.kill()
            await told.process.wait()
        await told.channel.close()
        doors.close()


SOURCE = """
[upstreams.up]
base_url = "{}"
credential = "${{TOKEN}}"
[routes]
"*" = {{ upstream = "up", model = "*" }}
"""


async def hand(told: Told) -> Client:
    """Hand a connection over; return its other end."""
    ours, theirs = socket.socketpair()
    socket.send_fds(told.doors, [b"127.0.0.1:8080"], [theirs.fileno()])
    theirs.close()
    ours.setblocking(False)
    return Client(*await asyncio.open_connection(sock=ours))


async def test_life(upstream: Upstream, tmp_path: Path) -> None:
    """It serves what it is told, to whom it is handed, with the variables that it is told; and leaves when
    it is told, having answered who has come before.
    """
    async with worker(SOURCE.format(upstream.url), tmp_path) as told:
        async with asyncio.timeout(20):
            await told.ready.wait()
        assert told.asked == ["source", "ready"]
        async with await hand(told) as client:
            await client.send(request(chat()))
            assert (await client.answer()).status == 200
            assert told.doors.recv(10) == b"\1"
        assert (b"Authorization", b"Bearer sk-variable") in upstream.requests[0].headers
        facts = await told.channel.ask("status")
        assert [one["name"] for one in facts["channels"]] == ["up"]
        await told.channel.ask("drain")


HERE = b"127.0.0.1:8080"
KEY = [(b"Authorization", b"Bearer sk-team-0123456789")]


def given_back(told: Told) -> tuple[bytes, socket.socket]:
    """Wait for a connection that is given back; return it, and what is said of it."""
    told.doors.settimeout(10)
    while True:
        said, fds, _, _ = socket.recv_fds(told.doors, 512, 1)
        if fds:
            return said, socket.socket(fileno=fds[0])


async def goes_on(client: Client, sock: socket.socket) -> None:
    """Assert that *sock* is the other end of *client*, of which nothing is missing."""
    with sock:
        sock.settimeout(10)
        await client.send(b"GET /next")
        assert await asyncio.to_thread(sock.recv, 100) == b"GET /next"
        sock.sendall(b"from another one")
        assert await client.reader.readexactly(16) == b"from another one"


async def test_handed_on(upstream: Upstream, tmp_path: Path) -> None:
    """When another one takes its place, it gives back each connection on which nothing is asked, as it
    stands, with a word on whether its client may ask.
    """
    source = SOURCE.format(upstream.url) + '[keys]\nteam = "sk-team-0123456789"\n'
    async with worker(source, tmp_path) as told:
        async with asyncio.timeout(20):
            await told.ready.wait()
        async with await hand(told) as client:
            await told.channel.ask("hand_on")
            said, sock = await asyncio.to_thread(given_back, told)
            assert said == HERE
            await goes_on(client, sock)


@pytest.mark.parametrize(("key", "status"), [((), 401), (KEY, 200)], ids=["stranger", "known"])
async def test_handed_on_behind_an_answer(
    upstream: Upstream, tmp_path: Path, key: list[Pair], status: int
) -> None:
    """A connection that was used is given back too, and one on which a request has begun to come, in its
    head or its body, behind the answer to it.
    """
    source = SOURCE.format(upstream.url) + '[keys]\nteam = "sk-team-0123456789"\n'
    whole = request(chat(), headers=key)
    async with worker(source, tmp_path) as told, AsyncExitStack() as stack:
        async with asyncio.timeout(20):
            await told.ready.wait()
        clients = [await stack.enter_async_context(await hand(told)) for _ in "abcd"]
        for client, sent in zip(clients, (0, 20, len(whole) - 10, len(whole)), strict=True):
            for _ in range(2):
                await client.send(whole)
                assert (await client.answer()).status == status
            await client.send(whole[:sent])
        assert (await clients[3].answer()).status == status  # so the others were read, too
        await told.channel.ask("hand_on")
        for client in (clients[1], clients[2]):
            await client.send(whole[-10:] if client is clients[2] else whole[20:])
            got = await client.answer()
            assert (got.status, got.value(b"connection")) == (status, None)
        back = [await asyncio.to_thread(given_back, told) for _ in clients]
        assert {said for said, _ in back} == {HERE + b"\0" if key else HERE}
        for _, sock in back:
            sock.sendall(b"from another one")
            sock.close()
        for client in clients:
            assert await client.reader.readexactly(16) == b"from another one"


async def test_handed_on_behind_a_stream(upstream: Upstream, tmp_path: Path) -> None:
    """What was sent while a stream ran is served where it was read; then the connection is given back."""
    paused = Paused()
    upstream.will(paused, answer())
    async with worker(SOURCE.format(upstream.url), tmp_path) as told:
        async with asyncio.timeout(20):
            await told.ready.wait()
        async with await hand(told) as client:
            await client.send(request(chat(stream=True)))
            await paused.begun.wait()
            await told.channel.ask("hand_on")
            await client.send(request(chat()))
            await asyncio.sleep(0.1)
            paused.released.set()
            assert (await client.answer()).whole
            assert (await client.answer()).status == 200
            _, sock = await asyncio.to_thread(given_back, told)
            await goes_on(client, sock)


async def test_reload(upstream: Upstream, tmp_path: Path) -> None:
    """It says what stands against another file, and serves on; one that is good it serves."""
    async with worker(SOURCE.format(upstream.url), tmp_path) as told:
        await told.ready.wait()
        bad = {"content": "[routes]\nx = 'nowhere/y'", "variables": {}, "keyed": False}
        (problem,) = await told.channel.ask("reload", bad)
        assert problem.startswith("routes.x")
        good = SOURCE.format(upstream.url).partition("[routes]")[0] + '[routes]\na = "up/x"'
        told_good = {"content": good, "variables": {"TOKEN": "x"}, "keyed": False}
        assert await told.channel.ask("reload", told_good) == []
        async with await hand(told) as client:
            await client.send(request(chat("b")))
            assert (await client.answer()).status == 404
        await told.channel.ask("end")


AND_TELL = """
import atexit, gc, sys
from proxy.cli import main
atexit.register(lambda: print(gc.get_threshold(), gc.get_freeze_count() > 10_000))
sys.exit(main())
"""


async def test_garbage(upstream: Upstream, tmp_path: Path) -> None:
    """It looks for garbage no more often than one process does, and not among what stays."""
    async with worker(SOURCE.format(upstream.url), tmp_path, ("-c", AND_TELL)) as told:
        await told.ready.wait()
        await told.channel.ask("end")
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"{GARBAGE} True"


async def test_signals(upstream: Upstream, tmp_path: Path) -> None:
    """Signals that are its supervisor's business do nothing to it."""
    async with worker(SOURCE.format(upstream.url), tmp_path) as told:
        await told.ready.wait()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
            told.process.send_signal(number)
        async with await hand(told) as client:
            await client.send(request(chat()))
            assert (await client.answer()).status == 200
        await told.channel.ask("end")


async def test_alone(upstream: Upstream, tmp_path: Path) -> None:
    """Once its supervisor is gone, it leaves."""
    async with worker(SOURCE.format(upstream.url), tmp_path) as told:
        await told.ready.wait()
        await told.channel.close()


async def test_never_began(tmp_path: Path) -> None:
    """Where the supervisor is gone before it has begun, it ends without a word."""
    async with worker("", tmp_path) as told:
        await told.channel.close()
        with pytest.raises(Gone):
            await told.channel.ask("status")
