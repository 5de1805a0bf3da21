"""Questions and answers between two processes: each answer reaches who asked, and nobody waits for the dead."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from proxy.process.channel import Channel, Gone, NoAnswer


async def answer(name: str, value: Any) -> Any:
    if name == "later":
        await asyncio.sleep(value)
    elif name == "never":
        await asyncio.Event().wait()
    elif name == "wrong":
        raise ValueError(value)
    return [name, value]


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Channel, Channel]]:
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setblocking(False)
    one, other = await Channel.open(ours, answer), await Channel.open(theirs, answer)
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


async def test_both_sides_ask() -> None:
    """Either side asks, at any time, and gets the answer to its own question, in whatever order they come."""
    async with pair() as (one, other):
        asked = [one.ask("later", 0.2), one.ask("now", {"x": [1, None]}), other.ask("now", "ä\n")]
        assert await asyncio.gather(*asked) == [
            ["later", 0.2],
            ["now", {"x": [1, None]}],
            ["now", "ä\n"],
        ]


async def test_long_answer() -> None:
    """A line may be long."""
    async with pair() as (one, _):
        text = "x" * 5_000_000
        assert await one.ask("now", text) == ["now", text]


async def test_failed() -> None:
    """What goes wrong over there is told to who has asked, and ends nothing."""
    async with pair() as (one, _):
        with pytest.raises(NoAnswer, match=r"^ValueError: so it is$"):
            await one.ask("wrong", "so it is")
        assert await one.ask("now") == ["now", None]


async def test_no_answer() -> None:
    """Who does not answer in time is not waited for; its answer, should it come, disturbs nobody."""
    async with pair() as (one, _):
        with pytest.raises(TimeoutError):
            await one.ask("later", 0.1, seconds=0.02)
        assert await one.ask("later", 0.2) == ["later", 0.2]


async def test_gone() -> None:
    """Who asks somebody that is gone, or goes, is told so at once."""
    async with pair() as (one, other):
        asking = asyncio.get_running_loop().create_task(one.ask("never"))
        await one.ask("now")
        await other.close()
        with pytest.raises(Gone):
            await asking
        assert one.gone.is_set()
        with pytest.raises(Gone):
            await one.ask("now")
