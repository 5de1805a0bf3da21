"""G: what is tried again, where, and who rests."""

import asyncio
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

from tests.faults.case import alone, apart, case
from tests.faults.house import At
from tests.faults.places import Spot
from tests.faults.scenarios import HELLO, WHOLE, cut
from tests.faults.tls import certified
from tests.harness.upstream import JSON, Conn, Received, answer, close, raw

OK = b'{"ok":true}'
BOTH = {"A": Spot(), "B": Spot()}
NEXT = 'fallback = "@-B/@"'


@alone("G01")
async def refused_once() -> None:
    """A connection that is broken off before anything was sent is made anew; what goes up is the same."""
    import tempfile
    from pathlib import Path

    from tests.faults.tls import AUTHORITY

    count = 0
    bodies: list[bytes] = []
    context = certified()()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        if count % 2:
            writer.transport.abort()
            return
        # Not `start_tls`: it loses what the client has said before it is called.
        came, goes = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(came, goes, server_side=True)

        async def done(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    writer.write(goes.read())
                    data = await reader.read(2**16)
                    assert data, "the proxy has left"
                    came.write(data)

        await done(tls.do_handshake)
        request = b""
        while b"\r\n\r\n" not in request:
            request += await done(lambda: tls.read(2**16))
        head, _, body = request.partition(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(body) < size:
            body += await done(lambda: tls.read(2**16))
        bodies.append(body)
        tls.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        writer.write(goes.read())
        await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory() as directory:
        ca = Path(directory, "ca.pem")
        AUTHORITY.cert_pem.write_to_path(ca)
        async with apart(Spot("bare tls", 'ca = "<CA>"', serve=serve), ca=ca) as at:
            body = at.body(text="x" * 100_000)
            at.nonces.clear()  # this upstream writes nothing down
            got = await at.call(body)
            assert (got.status, got.body) == (200, b"{}")
            assert bodies == [body]
            first, second = (await at.record())["attempts"]
            assert (first["error"], first["phase"]) == ("upstream_tls", "unsent")
            assert second["status"] == 200
            at.nonces.clear()


@case("G02")
async def dead_in_the_pool(at: At) -> None:
    """A kept connection that was closed meanwhile is replaced unseen."""
    assert (await at.call()).body == OK
    conn = at["A"].connections[-1]
    conn.writer.close()
    await conn.gone.wait()
    assert (await at.call()).body == OK


@case("G03")
async def dies_under_the_request(at: At) -> None:
    """A kept connection that dies under a request is replaced once: the same bytes again, and once only."""
    at.sends = 2
    at["A"].will(answer(), close(), answer())
    assert (await at.call()).body == OK
    assert (await at.call()).body == OK
    attempts = (await at.record())["attempts"]
    assert [attempt["status"] for attempt in attempts] == [None, 200]
    assert at["A"].heard[1].request.body == at["A"].heard[2].request.body


@case("G04")
async def closes_after_each(at: At) -> None:
    """An upstream that promises to stay and closes after each answer is never noticed."""

    async def step(conn: Conn, seen: Received) -> None:
        await answer()(conn, seen)
        conn.keep = False

    at["A"].will(step)
    at.sends = 2
    caller = await at.connect()
    for _ in range(300):
        await caller.send(at.request())
        assert (await caller.answer()).body == OK


@case("G05", spots={"A": Spot(), "B": Spot()})
async def no_storm(at: At) -> None:
    """An upstream that says 503 for ever is not asked much more often than callers ask."""
    at["A"].will(answer(503, b"{}"))
    at.sends = 2
    callers = [at.call() for _ in range(100)]
    got = await asyncio.gather(*callers)
    assert {one.status for one in got} == {503}
    assert at["A"].sends <= 100 * 1.2 + 3


@case("G06")
async def the_sdk_retries(at: At) -> None:
    """What its SDK asks for again already is not asked for twice by us, too."""
    at["A"].will(answer(503, b"{}"))
    got = await at.call(headers=[(b"x-stainless-retry-count", b"1")])
    assert (got.status, at["A"].sends) == (503, 1)


@case("G07", spots=BOTH, route=NEXT, forms={"1": b"1", "30": b"30"})
async def too_many(at: At, wait: bytes) -> None:
    """A 429 sends us to the fallback at once."""
    at["A"].will(answer(429, b"{}", [JSON, (b"Retry-After", wait)]))
    at.sends = 2
    begun = monotonic()
    assert (await at.call()).body == OK
    assert monotonic() - begun < 0.8


@case("G08")
async def never_again(at: At) -> None:
    """A 500 is not asked for again, and its hint is the caller's."""
    at["A"].will(answer(500, b"{}", [JSON, (b"x-should-retry", b"false")]))
    got = await at.call()
    assert (got.status, got.value(b"x-should-retry"), at["A"].sends) == (500, b"false", 1)


@case("G09", spots={"A": Spot(credentials=2)})
async def keys_in_turn(at: At) -> None:
    """A credential that is limited rests, while its sibling works."""
    one = at["A"].secrets[0].encode()

    async def step(conn: Conn, seen: Received) -> None:
        if one in seen.head:
            await answer(429, b"{}", [JSON, (b"Retry-After", b"30")])(conn, seen)
        else:
            await answer()(conn, seen)

    at["A"].will(step)
    at.sends = 2
    for _ in range(10):
        assert (await at.call()).body == OK
    assert sum(one in heard.request.head for heard in at["A"].heard) == 1


@alone("G10", long=True)
async def heals() -> None:
    """After five failures in a row an upstream rests; then one request tries it, and two close the breaker."""
    async with apart({"A": Spot(), "B": Spot()}, 'fallback = "B/m"', settles=False) as at:
        at["A"].will(raw(b"garbage\r\n\r\n"))
        for _ in range(5):
            assert (await at.call()).status == 502
        at["A"].will(answer())
        before = at["A"].sends
        for _ in range(10):
            assert (await at.call()).status == 200
        assert at["A"].sends == before
        await asyncio.sleep(30.5)
        got = await asyncio.gather(*(at.call() for _ in range(10)))
        assert {one.status for one in got} == {200}
        assert at["A"].sends == before + 1
        for _ in range(3):
            assert (await at.call()).status == 200
        assert at["A"].sends == before + 4


@case("G11", spots={"A": Spot(extra="retry = { attempts = 1 }"), "B": Spot(extra="retry = { attempts = 1 }")}, route=NEXT)  # fmt: skip
async def everything_rests(at: At) -> None:
    """Where everything rests, one request at a time is let through; the others are told when to come back."""
    for name in "AB":
        at[name].will(raw(b"garbage\r\n\r\n"))
    for _ in range(10):
        assert (await at.call()).status in (502, 503)
    go = asyncio.Event()

    async def slow(conn: Conn, seen: Received) -> None:
        await go.wait()
        await answer()(conn, seen)

    for name in "AB":
        at[name].will(slow)
    sent = at["A"].sends + at["B"].sends
    if at["B"].sends == 0:
        return  # B was never asked: what is not HTTP is final, and A alone has failed
    first = asyncio.create_task(at.call())
    async with asyncio.timeout(5):
        while at["A"].sends + at["B"].sends == sent:
            await asyncio.sleep(0.01)
    got = await at.call()
    go.set()
    assert (await first).status == 200
    assert (got.status, got.code) == (503, "upstream_unavailable")
    assert int(got.value(b"retry-after") or b"0") > 0


@case("G12", spots=BOTH, route=NEXT)
async def one_answers_headers(at: At) -> None:
    """Of an answer that is passed over nothing is left: not a header, not a byte."""
    at["A"].will(answer(503, b"canary", [JSON, (b"X-A", b"canary"), (b"x-request-id", b"canary")]))
    at["B"].will(answer(200, OK, [JSON, (b"x-request-id", b"second")]))
    at.sends = 2
    got = await at.call()
    assert (got.body, got.value(b"x-request-id")) == (OK, b"second")
    assert b"canary" not in got.raw
    record = await at.record()
    assert [attempt["status"] for attempt in record["attempts"]] == [503, 200]
    assert record["request_id"].encode() == got.value(b"x-trunkline-id")


@case("G13", spots=BOTH, route=NEXT)
async def credential_refused(at: At) -> None:
    """A refused credential rests, its operator is told, and its caller is served by another."""
    at["A"].will(answer(401, b"no"))
    at.sends = 2
    for _ in range(5):
        assert (await at.call()).body == OK
    assert at["A"].sends == 1
    await at.record()
    assert at.has("credential_refused")


async def _half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1000)
    writer.transport.abort()


@case("G15", spots=Spot("bare", serve=_half, name="127.0.0.1"), more='[unrouted]\n"files" = "@-A"')
async def unrouted(at: At) -> None:
    """What is passed on as it comes is never sent twice."""
    caller = await at.connect()
    body = b"x" * 3_000_000
    await caller.send(at.request(body, path="/v1/files"))
    got = await caller.answer()
    assert got.code == "upstream_disconnected"
    assert len((await at.record())["attempts"]) == 1


@case("G16", spots=BOTH, route=NEXT)
async def no_splice(at: At) -> None:
    """A stream that is cut in the middle is not gone on with elsewhere."""
    at["A"].will(cut(WHOLE, len(HELLO)))
    got = await at.call(stream=True)
    assert b"upstream_disconnected" in got.body
    assert not got.whole
    assert at["B"].heard == []


@case("G17", spots=BOTH, route='fallback = "@-B/@", timeout = { total = "400ms" }')
async def deadline(at: At) -> None:
    """One time holds over all attempts and waits."""
    at["A"].will(answer(408, b"{}"))

    async def never(conn: Conn, seen: Received) -> None:
        await conn.left(30)
        conn.keep = False

    at["B"].will(never)
    at.sends = 2
    begun = monotonic()
    got = await at.call()
    assert got.status in (504, 408)
    assert monotonic() - begun < 2


@case("G18")
async def told_patience(at: At) -> None:
    """An SDK that says how long it waits has our answer before it gives up."""

    async def never(conn: Conn, seen: Received) -> None:
        await conn.left(30)
        conn.keep = False

    at["A"].will(never)
    begun = monotonic()
    got = await at.call(headers=[(b"x-stainless-read-timeout", b"1")])
    assert got.status == 504
    assert monotonic() - begun < 1
