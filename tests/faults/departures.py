"""F: the client leaves."""

import asyncio
import socket
import struct
from time import monotonic

from tests.faults.case import case
from tests.faults.house import At, Caller
from tests.faults.places import Spot
from tests.faults.scenarios import HELLO, Held, after, endless, events
from tests.harness.upstream import DONE, JSON, answer, event, hang

WAYS = {"FIN": True, "RST": False}


def leave(caller: Caller, fin: bool) -> None:
    """Close with FIN, or with RST."""
    if not fin:
        sock = caller.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        caller.writer.transport.abort()
    else:
        caller.writer.close()


async def gone(at: At, *, paid: float = 1.5) -> None:
    """The log says who left, and the upstream's work ended within a second: its meter has stopped."""
    begun = monotonic()
    for place in at.places.values():
        await place.idle(3)
    assert monotonic() - begun < paid, "the upstream was paid for too long"
    record = await at.record()
    assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")


@case("F01", forms=WAYS)
async def in_its_body(at: At, fin: bool) -> None:
    """Who leaves in the middle of its own body costs nothing: the upstream is never asked."""
    caller = await at.connect()
    await caller.send(at.request(at.body(text="x" * 100_000))[:-50])
    await asyncio.sleep(0.05)
    leave(caller, fin)
    await gone(at)
    assert at["A"].connections == [] or at["A"].heard == []


@case("F02", spots=Spot("deaf", 'timeout = { connect = "20s" }'), forms=WAYS)
async def while_connecting(at: At, fin: bool) -> None:
    """Who leaves while its upstream is connected to takes the attempt along."""
    caller = await at.connect()
    await caller.send(at.request())
    await asyncio.sleep(0.1)
    leave(caller, fin)
    begun = monotonic()
    await gone(at)
    assert monotonic() - begun < 2
    (attempt,) = at.records()[-1]["attempts"]
    assert (attempt["phase"], attempt["maybe_billed"]) == ("unsent", False)


@case("F03", forms=WAYS)
async def before_the_answer(at: At, fin: bool) -> None:
    """Who leaves before the answer has begun stops the upstream's meter."""
    at["A"].will(hang())
    caller = await at.connect()
    await caller.send(at.request())
    async with asyncio.timeout(5):
        while not at["A"].busy:
            await asyncio.sleep(0.005)
    leave(caller, fin)
    await gone(at)
    assert at.records()[-1]["attempts"][0]["maybe_billed"]


@case("F04", forms=WAYS)
async def in_the_stream(at: At, fin: bool) -> None:
    """Who leaves in the middle of a stream stops it within a second, though it be silent."""
    held = Held()
    at["A"].will(held)
    caller = await at.connect()
    await caller.send(at.request(at.body(stream=True)))
    await caller.reader.readuntil(HELLO)
    leave(caller, fin)
    await gone(at)


@case("F05", forms=WAYS)
async def with_full_buffers(at: At, fin: bool) -> None:
    """Who leaves without having read what is there stops the upstream all the same."""
    at["A"].will(endless(event(b"x" * 60_000)))
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", at.port))
    sock.sendall(at.request(at.body(stream=True)))
    await asyncio.sleep(0.4)  # until nothing moves
    if not fin:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    await gone(at, paid=2.5)


@case("F06", forms=WAYS)
async def while_waiting(at: At, fin: bool) -> None:
    """Who leaves while we wait to ask again is asked for no more."""
    at["A"].will(answer(503, b"{}", [JSON, (b"Retry-After", b"1")]))
    caller = await at.connect()
    await caller.send(at.request())
    async with asyncio.timeout(5):
        while at["A"].sends < 1:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)
    leave(caller, fin)
    await gone(at)
    await asyncio.sleep(1.1)
    assert at["A"].sends == 1


@case("F07")
async def near_the_end(at: At) -> None:
    """Thirty clients that leave late in a long stream are each noted, and leave nothing."""
    piece = event(b"x" * 10_000)

    async def one() -> None:
        caller = await at.connect()
        await caller.send(at.request(at.body(stream=True)))
        await caller.reader.readexactly(len(piece) * 90)
        leave(caller, fin=False)

    at["A"].will(events(*[piece] * 100, end="none"))
    await asyncio.gather(*(one() for _ in range(30)))
    await at["A"].idle(5)
    await at.record()
    assert {record["outcome"] for record in at.records()} == {"client_gone"}


@case("F08")
async def by_the_hundred(at: At) -> None:
    """Three hundred departures, wherever they fall, leave no task and no descriptor."""
    at["A"].will(after(0.05, events(HELLO, end="none")))

    async def one(number: int) -> None:
        caller = await at.connect()
        await caller.send(at.request(at.body(stream=True)))
        await asyncio.sleep(number % 10 * 0.015)
        leave(caller, fin=number % 2 == 0)

    for _ in range(10):
        await asyncio.gather(*(one(number) for number in range(30)))
    await at["A"].idle(5)
    await at.record()
    assert {record["outcome"] for record in at.records()} == {"client_gone"}


@case("F09")
async def just_then(at: At) -> None:
    """Who leaves in the very moment that the answer begins leaves no answer open."""
    callers: list[Caller] = []

    async def step(conn, request):  # type: ignore[no-untyped-def]  # a step like any other
        leave(callers[-1], fin=False)
        await events(HELLO, end="none")(conn, request)

    at["A"].will(step)
    for _ in range(40):
        caller = await at.connect()
        callers.append(caller)
        await caller.send(at.request(at.body(stream=True)))
        async with asyncio.timeout(5):
            while len(at.records()) < at.lines:
                await asyncio.sleep(0.01)
    assert {record["outcome"] for record in at.records()} == {"client_gone"}


@case("F10")
async def after_the_end(at: At) -> None:
    """Who leaves with the marker in its hands has not broken off; the connection is kept."""
    at["A"].will(events(HELLO, DONE))
    for _ in range(5):
        caller = await at.connect()
        await caller.send(at.request(at.body(stream=True)))
        await caller.reader.readuntil(b"[DONE]\n\n")
        leave(caller, fin=True)
        assert (await at.record())["outcome"] == "ok"
    assert len({heard.request.connection for heard in at["A"].heard}) <= 2
