"""Answers of our own, as clients see them: whole, and as streams of events."""

import asyncio

import pytest

from tests.harness.client import Client, request
from tests.harness.proxy import serving

TOML = '[routes]\n"*" = { upstream = "sandbox" }\n'
IDS = (b"x-trunkline-id", b"x-request-id", b"request-id")


async def test_whole() -> None:
    """An answer says its length and, three times, its id; HEAD is told the same without the body, and the
    connection goes on.
    """
    async with serving(TOML) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(path="/health", method="GET"))
        got = await client.answer()
        assert (got.status, got.body) == (200, b'{"status":"ok"}')
        assert got.value(b"content-length") == b"%d" % len(got.body)
        assert len({got.value(name) for name in IDS} - {None}) == 1
        await client.send(request(path="/health", method="HEAD"))
        same = await client.answer(head_only=True)
        assert [name for name, _ in same.headers] == [name for name, _ in got.headers]
        await client.send(request(path="/health", method="GET"))
        assert (await client.answer()).body == got.body


@pytest.mark.parametrize(
    ("version", "headers"),
    [("1.0", []), ("1.1", [(b"Connection", b"close")])],
    ids=["1.0", "close"],
)
async def test_last_one(version: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Where no other request may follow, the answer says so, and the connection ends behind it."""
    async with serving(TOML) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(path="/health", method="GET", version=version, headers=headers))
        got = await client.answer()
        assert (got.status, got.value(b"connection")) == (200, b"close")
        assert got.body == b'{"status":"ok"}'
        assert await client.closed() == b""


async def test_events() -> None:
    """A stream of events says what it is and its id, nothing of who wrote it, and is chunked; no other
    request may follow; it is in the log once its client has left.
    """
    async with serving(TOML) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(path="/status/events", method="GET"))
            head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
            first = await asyncio.wait_for(client.reader.readuntil(b"\n\n"), 5)
        names = [line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:-2]]
        assert b"text/event-stream" in head
        assert b"data: {" in first
        assert {*IDS, b"transfer-encoding"} <= set(names)
        assert head.count(b"onnection: ") == head.count(b"\r\nConnection: close\r\n") == 1
        assert not {b"server", b"date"} & set(names)
        line = await proxy.record()
        assert (line["path"], line["stream"], line["outcome"]) == (
            "/status/events",
            True,
            "client_gone",
        )
