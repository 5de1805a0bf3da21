"""How many exchanges, and how many bytes of bodies, are let in at once; and that all are let out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from proxy.admission import Admission, Gate
from proxy.errors import OVERLOADED, ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers
from tests.harness.client import Client, call, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import (
    DONE,
    Step,
    Upstream,
    answer,
    close,
    event,
    hang,
    raw,
    stream,
)
from tests.test_errors import assert_authored

RETRY = {b"Retry-After": b"1"}


@asynccontextmanager
async def limited(
    upstream: Upstream, server: str, more: str = ""
) -> AsyncIterator[tuple[Proxy, Gate]]:
    """Serve with the limits that *server* sets, and *more*; at the end, everything must have been let out."""
    toml = f"""
        [server]
        {server}
        [routes."*"]
        base_url = "{upstream.url}"
        timeout = {{ first_byte = "200ms", idle = "200ms" }}
        [routes."patient/*"]
        base_url = "{upstream.url}"
        {more}
        """
    async with serving(toml) as proxy:
        assert proxy.running is not None
        gate = proxy.running.gate
        yield proxy, gate
        async with asyncio.timeout(2):
            await gate.empty.wait()
        assert (gate.inflight, gate.held) == (0, 0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for *condition*."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def received(upstream: Upstream, count: int) -> None:
    """Wait until *upstream* has received *count* requests."""
    await until(lambda: len(upstream.requests) == count)


# The gate itself


async def test_inflight() -> None:
    """As many get in as may, and one more for each that has left."""
    gate = Gate(2, 10)
    assert gate.empty.is_set()
    gate.enter()
    gate.enter()
    with pytest.raises(ProxyError) as caught:
        gate.enter()
    assert caught.value.kind.code == "overloaded"
    assert gate.inflight == 2
    gate.leave()
    gate.enter()
    gate.leave()
    assert not gate.empty.is_set()
    gate.leave()
    assert gate.empty.is_set()


async def test_held() -> None:
    """Exactly as many bytes are held as may be; what has no room takes none; all are given back."""
    gate = Gate(2, 10)
    admission = Admission(gate)
    first, second = admission.admit(exchange()), admission.admit(exchange())
    async with first, second:
        first.hold(4)
        second.hold(6)
        with pytest.raises(ProxyError) as caught:
            first.hold(1)
        assert (caught.value.kind.code, gate.held) == ("overloaded", 10)
        second.drop()
        first.hold(5)
        assert gate.held == 9
    assert (gate.inflight, gate.held) == (0, 0)


# Further limits


def exchange() -> Exchange:
    """Return an exchange of which nothing is known."""
    return Exchange("req_1", "main", "POST", "/", "", Headers(), False, None, 0.0)


class Noting:
    """A limit that notes what it is asked in *notes*, by its *name*; *refuses* at one step, *waits* at each."""

    def __init__(
        self, notes: list[str], name: str, refuses: str = "", waits: asyncio.Event | None = None
    ) -> None:
        self.notes = notes
        self.name = name
        self.refuses = refuses
        self.waits = waits

    def enter(self, exchange: Exchange) -> Awaitable[None] | None:
        """Note that *exchange* wants in, and whose it is."""
        assert exchange.read is None
        return self._step("enter")

    def reserve(self, exchange: Exchange) -> Awaitable[None] | None:
        """Note that *exchange* would go on, and where."""
        assert exchange.route is not None
        return self._step("reserve")

    def settle(self, exchange: Exchange) -> None:
        """Note that *exchange* is over, and how."""
        self.notes.append(f"{self.name} settle {exchange.outcome or exchange.error}")

    def _step(self, step: str) -> Awaitable[None] | None:
        self.notes.append(f"{self.name} {step}")
        if self.waits is not None:
            return self._wait(step)
        self._refuse(step)
        return None

    async def _wait(self, step: str) -> None:
        assert self.waits is not None
        await self.waits.wait()
        self._refuse(step)

    def _refuse(self, step: str) -> None:
        if step == self.refuses:
            raise ProxyError(OVERLOADED, "Not now.", headers=(("Retry-After", "1"),))


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("refuses", "status", "noted"),
    [
        ("", 200, ["a enter", "b enter", "a reserve", "b reserve", "a settle ok", "b settle ok"]),
        ("enter", 503, ["a enter", "b enter", "a settle None"]),
        ("reserve", 503, ["a enter", "b enter", "a reserve", "b reserve",
                          "a settle None", "b settle None"]),
    ],
)  # fmt: skip
async def test_limits(
    upstream: Upstream, refuses: str, status: int, noted: list[str], waits: bool
) -> None:
    """Each limit is asked before the body is read, and where it is known where to; it may let wait; who was
    let in is settled, once, and nobody else.
    """
    notes: list[str] = []
    event = asyncio.Event() if waits else None
    upstream.will(answer())
    async with limited(upstream, "max_inflight = 2") as (proxy, gate):
        assert proxy.running is not None
        limits = [Noting(notes, "a", waits=event), Noting(notes, "b", refuses, event)]
        proxy.running._admission.limits = limits
        asking = asyncio.ensure_future(call(proxy.port, chat()))
        if event is not None:
            await until(lambda: bool(notes))
            assert gate.inflight == 0  # who waits is not in flight
            event.set()
        got = await asking
        assert got.status == status
        assert notes == noted


async def test_who_leaves_while_waiting(upstream: Upstream) -> None:
    """A client that leaves while it is let wait gives up its place, and takes nothing with it."""
    notes: list[str] = []
    async with limited(upstream, "max_inflight = 2") as (proxy, gate):
        assert proxy.running is not None
        waiting = Noting(notes, "b", waits=asyncio.Event())
        proxy.running._admission.limits = [Noting(notes, "a"), waiting]
        client = await Client.connect(proxy.port)
        await client.send(request(chat()))
        await until(lambda: "b enter" in notes)
        client.close()
        record = await proxy.record()
        assert (record["outcome"], gate.inflight) == ("client_gone", 0)
        assert notes[:2] == ["a enter", "b enter"]
        assert [note for note in notes if "settle" in note] == ["a settle None"]
        assert not upstream.requests


class Queue:
    """A limit that lets *places* in at a time where they go on, and the others wait in turn."""

    def __init__(self, places: int) -> None:
        self.free = asyncio.Semaphore(places)
        self.waiting = 0
        self.inside: set[Exchange] = set()

    def enter(self, exchange: Exchange) -> None:
        """Let *exchange* in: that it is read costs nothing here."""

    def reserve(self, exchange: Exchange) -> Awaitable[None] | None:
        """Let *exchange* wait for its turn, where it has none yet."""
        return self._wait(exchange)

    def settle(self, exchange: Exchange) -> None:
        """Take back the place of *exchange*, if it had one."""
        if exchange in self.inside:
            self.inside.remove(exchange)
            self.free.release()

    async def _wait(self, exchange: Exchange) -> None:
        self.waiting += 1
        try:
            await self.free.acquire()
        finally:
            self.waiting -= 1
        self.inside.add(exchange)


async def test_who_waits_to_go_on(upstream: Upstream) -> None:
    """Who waits where it is known where to is not in flight, but its bytes are held; who leaves meanwhile
    takes neither, and who stays goes on in turn.
    """
    body = chat("patient/m")
    async with limited(upstream, "max_inflight = 2") as (proxy, gate):
        assert proxy.running is not None
        queue = Queue(1)
        proxy.running._admission.limits = [queue]
        upstream.will(hang())
        first = await Client.connect(proxy.port)
        await first.send(request(body))
        await received(upstream, 1)
        leaves = await Client.connect(proxy.port)
        await leaves.send(request(body))
        await until(lambda: queue.waiting == 1)
        assert (gate.inflight, gate.held) == (1, 2 * len(body))
        leaves.close()
        await until(lambda: queue.waiting == 0)
        assert (gate.inflight, gate.held) == (1, len(body))
        async with await Client.connect(proxy.port) as stays:
            await stays.send(request(body))
            await until(lambda: queue.waiting == 1)
            upstream.will(answer())
            first.close()
            assert (await stays.answer()).status == 200
        await until(lambda: (gate.inflight, gate.held, len(queue.inside)) == (0, 0, 0))


async def test_a_hook_is_let_in_once(upstream: Upstream) -> None:
    """A hook's message, and what is asked for it, are one exchange, which each limit lets in once."""
    notes: list[str] = []
    upstream.will(answer(body=b'{"choices":[{"message":{"content":"yes"}}]}'))
    hook = '[hooks.ask]\nroute = "patient/m"'
    async with limited(upstream, "max_inflight = 1", hook) as (proxy, gate):
        assert proxy.running is not None
        proxy.running._admission.limits = [Noting(notes, "a")]
        got = await call(proxy.port, b'{"text":"?"}', "/hooks/ask")
        assert (got.status, got.json()["text"]) == (200, "yes")
        assert notes == ["a enter", "a reserve", "a settle ok"]
        assert (gate.inflight, gate.held) == (0, 0)


# Too many exchanges


async def test_max_inflight(upstream: Upstream) -> None:
    """One exchange too many is told to come back, on a connection that it may come back on."""
    async with limited(upstream, "max_inflight = 2") as (proxy, _):
        upstream.will(hang())
        first = await Client.connect(proxy.port)
        second = await Client.connect(proxy.port)
        for client in (first, second):
            await client.send(request(chat("patient/m")))
        await received(upstream, 2)
        upstream.will(answer())
        async with await Client.connect(proxy.port) as third:
            for path in ("/v1/chat/completions", "/v1/messages"):
                await third.send(request(chat(), path))
                got = await third.answer()
                if path == "/v1/messages":
                    assert got.status == 503
                    assert got.json()["error"]["type"] == "overloaded_error"
                else:
                    assert_authored(got, 503, "server_error", "overloaded", headers=RETRY)
            # What carries no model is answered all the same.
            for path in ("/health", "/v1/models"):
                assert (await call(proxy.port, path=path, method="GET")).status == 200
            first.close()
            await until(lambda: proxy.running is not None and proxy.running.gate.inflight == 1)
            await third.send(request(chat()))
            assert (await third.answer()).status == 200
        second.close()
        await upstream.connections[1].gone.wait()
    assert len(upstream.requests) == 3


async def test_refused_exchanges_are_logged(upstream: Upstream) -> None:
    """Who was not let in leaves a line that says so."""
    async with limited(upstream, "max_inflight = 1") as (proxy, _):
        upstream.will(hang())
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat()))
            await received(upstream, 1)
            await call(proxy.port, chat())
            record = await proxy.record(under_way=1)
            assert (record["status"], record["outcome"]) == (503, "refused")
            assert (record["error"], record["attempts"]) == ("overloaded", [])


BROKEN: list[tuple[str, Callable[[], Step], bool]] = [
    ("answer", answer, False),
    ("stream", lambda: stream(event(b"{}"), DONE), True),
    ("cut", lambda: stream(event(b"{}"), end="cut"), True),
    ("idle", lambda: stream(event(b"{}"), end="hang"), True),
    ("closed", close, False),
    ("late", hang, False),
    ("not HTTP", lambda: raw(b"nonsense\r\n\r\n"), False),
    ("401", lambda: answer(401), False),
    ("redirect", lambda: answer(302), False),
    ("500", lambda: answer(500), False),
]


@pytest.mark.parametrize(("step", "streams"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
async def test_let_out(upstream: Upstream, step: Callable[[], Step], streams: bool) -> None:
    """However an exchange ends, its place and its bytes are free when its answer is out."""
    async with limited(upstream, "max_inflight = 1\nmax_held = 200") as (proxy, _):
        for _ in range(3):
            upstream.will(step())
            await call(proxy.port, chat(stream=streams))
            await until(lambda: proxy.running is not None and not proxy.running.gate.inflight)
        upstream.will(answer())
        assert (await call(proxy.port, chat())).status == 200


REFUSED = {
    "not JSON": request(b"x" * 150),
    "unknown": request(b'{"model":1}' + b" " * 100),
    "encoded": request(b"x" * 150, headers=[(b"Content-Encoding", b"br")]),
    "broken": request(b"zz\r\n", headers=[(b"Transfer-Encoding", b"chunked")], length=False),
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=list(REFUSED))
async def test_refused_are_let_out(upstream: Upstream, sent: bytes) -> None:
    """A request that is refused takes no place with it."""
    async with limited(upstream, "max_inflight = 1\nmax_held = 200") as (proxy, _):
        for _ in range(3):
            async with await Client.connect(proxy.port) as client:
                await client.send(sent)
                assert (await client.answer()).status in (400, 415)
        assert (await call(proxy.port, chat())).status == 200


@pytest.mark.parametrize("where", ["body", "wait", "stream"])
async def test_left_are_let_out(upstream: Upstream, where: str) -> None:
    """A client that leaves takes no place with it, wherever its exchange was."""
    async with limited(upstream, "max_inflight = 1\nmax_held = 200") as (proxy, gate):
        for number in range(3):
            upstream.will(hang() if where == "wait" else stream(event(b"{}"), end="hang"))
            async with await Client.connect(proxy.port) as client:
                sent = request(chat("patient/m", stream=True))
                await client.send(sent[:-1] if where == "body" else sent)
                await until(lambda: gate.inflight == 1)
                if where != "body":
                    await received(upstream, number + 1)
                if where == "stream":
                    await client.reader.readuntil(b"{}\n\n")
            await until(lambda: gate.inflight == 0)
        upstream.will(answer())
        assert (await call(proxy.port, chat())).status == 200


# Too many bytes


async def test_max_held(upstream: Upstream) -> None:
    """A body for which there is no room is refused before it is read, until there is room."""
    body = chat("patient/m", text="x" * 600)
    async with limited(upstream, "max_held = 1000") as (proxy, gate):
        upstream.will(hang())
        async with await Client.connect(proxy.port) as first:
            await first.send(request(body))
            await received(upstream, 1)
            assert gate.held == len(body)
            async with await Client.connect(proxy.port) as second:
                await second.send(request(body)[: -len(body)])
                got = await second.answer(seconds=2)
                assert_authored(got, 503, "server_error", "overloaded", headers=RETRY, closes=True)
            upstream.will(answer())
            assert (await call(proxy.port, chat())).status == 200
        await until(lambda: gate.held == 0)
        assert (await call(proxy.port, body)).status == 200


async def test_max_held_in_chunks(upstream: Upstream) -> None:
    """A body without a length is counted as it comes in."""
    async with limited(upstream, "max_held = 1000") as (proxy, gate):
        chunked = [(b"Transfer-Encoding", b"chunked")]
        async with await Client.connect(proxy.port) as client:
            head = request(headers=chunked, length=False)
            await client.send(head + b"258\r\n" + b"x" * 600 + b"\r\n")
            await until(lambda: gate.held == 600)
            await client.send(b"258\r\n" + b"x" * 600 + b"\r\n")
            got = await client.answer(seconds=2)
            assert_authored(got, 503, "server_error", "overloaded", headers=RETRY, closes=True)
        await until(lambda: gate.held == 0)


async def test_body_is_let_go_before_the_answer(upstream: Upstream) -> None:
    """While an answer passes its request's body is no longer held."""
    upstream.will(stream(event(b"{}"), end="hang"))
    async with (
        limited(upstream, "max_held = 1000") as (proxy, gate),
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(chat("patient/m", text="x" * 600, stream=True)))
        await client.reader.readuntil(b"{}\n\n")
        assert (gate.inflight, gate.held) == (1, 0)
        client.close()


# Draining


async def test_draining(upstream: Upstream) -> None:
    """While the proxy is leaving nothing new is let in, and the connection ends with the refusal."""
    async with limited(upstream, "") as (proxy, gate):
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat()))
            assert (await client.answer()).status == 200
            gate.draining = True
            await client.send(request(chat()))
            got = await client.answer()
            assert_authored(got, 503, "server_error", "draining", headers=RETRY, closes=True)
            assert await client.closed() == b""
        record = await proxy.record(2)
        assert (record["outcome"], record["error"]) == ("refused", "draining")
    assert len(upstream.requests) == 1


async def test_announcing_takes_no_room(upstream: Upstream) -> None:
    """A head that announces a large body keeps nobody else out until the body comes."""
    async with limited(upstream, "max_held = 1000") as (proxy, gate):
        head = request(chat("patient/m", text="x" * 600))[:-500]
        async with await Client.connect(proxy.port) as first:
            await first.send(head)
            async with await Client.connect(proxy.port) as second:
                await second.send(head)
                await until(lambda: gate.inflight == 2)
                assert (await call(proxy.port, chat())).status == 200
        await until(lambda: (gate.inflight, gate.held) == (0, 0))
