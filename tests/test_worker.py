"""A worker as its supervisor sees it: what it asks for first, and what it does when told."""

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.channel import Channel, Gone
from proxy.lifecycle import GARBAGE
from proxy.worker import Seat
from tests.harness.client import Client, chat, request
from tests.harness.upstream import Upstream


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
            return {"content": self.source, "variables": {"TOKEN": "sk-variable"}}
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
    seat = Seat(7, their_words.fileno(), their_doors.fileno())
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
        async with await hand(told) as client:
            await told.channel.ask("drain", 5.0)
            closed = None
            while closed is None:
                await client.send(request(chat()))
                got = await client.answer()
                assert got.status == 200
                closed = got.value(b"connection")
            assert closed == b"close"


async def test_reload(upstream: Upstream, tmp_path: Path) -> None:
    """It says what stands against another file, and serves on; one that is good it serves."""
    async with worker(SOURCE.format(upstream.url), tmp_path) as told:
        await told.ready.wait()
        bad = {"content": "[routes]\nx = 'nowhere/y'", "variables": {}}
        (problem,) = await told.channel.ask("reload", bad)
        assert problem.startswith("routes.x")
        good = SOURCE.format(upstream.url).partition("[routes]")[0] + '[routes]\na = "up/x"'
        told_good = {"content": good, "variables": {"TOKEN": "x"}}
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
