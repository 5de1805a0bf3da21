"""What is tried again, and where: the table of docs/failure.md, row by row, as the upstreams see it."""

import asyncio
import contextlib
import gc
import gzip
import itertools
import os
import random
import re
import socket
import ssl
import time
import weakref
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme

from proxy import dialects
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.model.body import find_model
from proxy.upstream import breaker, connection
from proxy.upstream.asked import Asked
from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    close,
    event,
    hang,
    head,
    raw,
    reset,
    stream,
)

OK = b'{"ok":true}'
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
CANARY: Pair = (b"Authorization", b"Bearer sk-client-canary")
BIG = 8_000_000
"""More than the buffers of two sockets hold."""


def table(name: str, url: str, *more: str, credential: str | None = None) -> str:
    """Write the table of the upstream *name* at *url*; its credential is `sk-` and its name."""
    lines = [f"[upstreams.{name}]", f'base_url = "{url}"']
    own = f'"sk-{name}"'
    return "\n".join([*lines, f"credential = {credential or own}", *more, ""])


def tables(**upstreams: Upstream) -> str:
    """Write the tables of scripted *upstreams*."""
    return "".join(table(name, upstream.url) for name, upstream in upstreams.items())


def calm(proxy: Proxy, chance: Callable[[], float] = lambda: 0.0) -> None:
    """Let every wait be as short as it may be, and chance be what a test says."""
    assert proxy.running is not None
    proxy.running._opener.chance = chance


def connections(proxy: Proxy) -> int:
    """Return how many connections to upstreams are open."""
    assert proxy.running is not None
    return len(proxy.running._transport._open)


async def idle(proxy: Proxy) -> None:
    """Wait until no attempt is counted any more, nor any retry, and nothing is held."""
    assert proxy.running is not None
    running = proxy.running
    loads = running._opener.scores._loads.values()
    await until(lambda: all((load.active, load.retrying) == (0, 0) for load in loads), 2)
    await until(lambda: running.gate.inflight == running.gate.held == 0, 2)


def tried(record: dict[str, Any]) -> list[str]:
    """Return the upstreams that were tried, in order."""
    return [attempt["upstream"] for attempt in record["attempts"]]


@contextmanager
def within(seconds: float, least: float = 0.0) -> Iterator[None]:
    """Assert that what stands inside takes no longer, and not less than *least*."""
    before = time.monotonic()
    yield
    assert least <= time.monotonic() - before < seconds


async def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until something is *true*."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.005)


def closed_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


NOBODY = "http://127.0.0.1:1/v1"
"""Where nobody listens, nor ever will."""


# The ways in which an upstream fails. Each is a place, which keeps what it received whole.


@dataclass
class Place:
    """An upstream that fails in one way: where it is, what its table says more, what it *got* whole."""

    url: str
    got: Callable[[], list[bytes]]
    more: str = ""


@dataclass
class Room:
    """What a place may need of the test it stands in."""

    tmp: Path
    patch: pytest.MonkeyPatch


Fault = Callable[[Room], AbstractAsyncContextManager[Place]]


def scripted(
    *steps: Step, more: str = "", tls: Callable[[Room], ssl.SSLContext] | None = None
) -> Fault:
    """An upstream that follows a script."""

    @asynccontextmanager
    async def place(room: Room) -> AsyncIterator[Place]:
        async with Upstream(tls(room) if tls else None) as upstream:
            upstream.will(*steps)
            url, also = upstream.url, more
            if tls is not None:
                AUTHORITY.cert_pem.write_to_path(room.tmp / "ca.pem")
                url = f"https://localhost:{upstream.port}/v1"
                also = f'ca = "{room.tmp / "ca.pem"}"'
            yield Place(url, lambda: [r.head + r.body for r in upstream.requests], also)

    return place


Serve = Callable[[socket.socket, int], Awaitable[None]]


def accepting(serve: Serve, scheme: str = "http", more: str = "") -> Fault:
    """A port where *serve* gets each connection, hardly buffered, and its number."""

    @asynccontextmanager
    async def place(room: Room) -> AsyncIterator[Place]:
        loop, tasks, got = asyncio.get_running_loop(), set[asyncio.Task[None]](), list[bytes]()

        async def one(sock: socket.socket, number: int) -> None:
            with sock, suppress(ConnectionError):
                await serve(sock, number)
                received = await whole_request(sock)
                got.append(received)
                await loop.sock_sendall(sock, head(200, [JSON, (b"Content-Length", b"11")]) + OK)

        async def accept() -> None:
            for number in itertools.count():
                sock, _ = await loop.sock_accept(listener)
                tasks.add(asyncio.create_task(one(sock, number)))

        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            listener.bind(("127.0.0.1", 0))
            listener.listen(16)
            listener.setblocking(False)
            tasks.add(asyncio.create_task(accept()))
            host = "localhost" if scheme == "https" else "127.0.0.1"
            try:
                port = listener.getsockname()[1]
                yield Place(f"{scheme}://{host}:{port}/v1", lambda: got, more)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return place


async def whole_request(sock: socket.socket) -> bytes:
    """Read one request whole. Raises `ConnectionError` if the other side ends it."""
    loop = asyncio.get_running_loop()
    data, end = bytearray(), None
    while end is None or len(data) < end:
        piece = await loop.sock_recv(sock, 2**18)
        if not piece:
            raise ConnectionError
        data += piece
        if end is None and b"\r\n\r\n" in data:
            start = data.index(b"\r\n\r\n") + 4
            length = bytes(data[:start]).lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            end = start + int(length)
    return bytes(data)


async def until_left(sock: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sock, 2**16):
        pass
    raise ConnectionError


def dying(deaths: int) -> Serve:
    """The first *deaths* connections die when a little of the request has come."""

    async def serve(sock: socket.socket, number: int) -> None:
        if number < deaths:
            await asyncio.get_running_loop().sock_recv(sock, 1000)
            raise ConnectionError  # closed with bytes unread: reset

    return serve


async def deaf(sock: socket.socket, number: int) -> None:
    """The request is never read."""
    await asyncio.sleep(30)


async def breaks_off(sock: socket.socket, number: int) -> None:
    """The handshake is answered with an end."""
    await asyncio.get_running_loop().sock_recv(sock, 2**16)
    raise ConnectionError


async def speaks_http(sock: socket.socket, number: int) -> None:
    """The handshake is answered by somebody who speaks no TLS."""
    loop = asyncio.get_running_loop()
    await loop.sock_recv(sock, 2**16)
    await loop.sock_sendall(sock, b"HTTP/1.1 400 Bad Request\r\n\r\n")
    raise ConnectionError


async def says_nothing(sock: socket.socket, number: int) -> None:
    """The handshake is not answered."""
    await until_left(sock)


@asynccontextmanager
async def refused(room: Room) -> AsyncIterator[Place]:
    """Nobody listens."""
    yield Place(f"http://127.0.0.1:{closed_port()}/v1", list)


@asynccontextmanager
async def blackhole(room: Room) -> AsyncIterator[Place]:
    """The queue of the port is full: who connects there waits."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        try:
            port = listener.getsockname()[1]
            yield Place(f"http://127.0.0.1:{port}/v1", list, 'timeout = { connect = "100ms" }')
        finally:
            for sock in waiting:
                sock.close()


def unnamed(code: int) -> Fault:
    """A name that the resolver does not know, for the reason *code*."""

    @asynccontextmanager
    async def place(room: Room) -> AsyncIterator[Place]:
        real = socket.getaddrinfo

        def getaddrinfo(host: str, *args: Any, **kwargs: Any) -> Any:
            if host == "upstream.test":
                raise socket.gaierror(code, "as the test says")
            return real(host, *args, **kwargs)

        room.patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield Place("http://upstream.test/v1", list)

    return place


AUTHORITY = trustme.CA()
PAST = datetime.now(UTC) - timedelta(days=2)


def certified(
    authority: trustme.CA, begins: datetime | None = None, ends: datetime | None = None
) -> Callable[[Room], ssl.SSLContext]:
    def tls(room: Room) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate = authority.issue_cert("localhost", not_before=begins, not_after=ends)
        certificate.configure_cert(context)
        return context

    return tls


assert connection.STALE_SECONDS == 0.5  # which is too long for tests: `dies_later` shortens it


def late_death(seconds: float) -> Step:
    """The connection dies instead of an answer, but not at once."""

    async def step(conn: Conn, request: Received) -> None:
        await asyncio.sleep(seconds)
        conn.keep = False

    return step


def dies_later(room: Room) -> AbstractAsyncContextManager[Place]:
    """A used connection dies when the upstream has been at work for a while."""
    room.patch.setattr(connection, "STALE_SECONDS", 0.1)
    return scripted(answer(), late_death(0.25), close())(room)


FAILED: list[Pair] = [JSON, (b"x-failed", b"yes")]
"""The headers of an answer that is not the one to be had."""


def status(code: int, *headers: Pair, body: bytes = b'{"error":{"code":"theirs"}}') -> Step:
    return answer(code, body, [*FAILED, *headers], b"Theirs")


def error_event(code: object) -> bytes:
    return event(orjson.dumps({"error": {"message": "theirs", "code": code}}))


# The table


@dataclass(frozen=True)
class Row:
    """One row of the table, in the words of docs/failure.md.

    *same* is how often the same upstream is asked again, *next* when the next one is, *preferred*
    that it is the first choice, *sibling* that another credential counts as one. *heals*: asked
    again, the upstream answers. *phase*, *billed* are what the log says of each attempt, *seen*
    what the client gets when all was tried: a status, and a code where the error is ours.
    """

    place: Fault
    phase: str
    seen: tuple[int, str]
    same: int = 0
    next: str = "no"
    preferred: bool = False
    sibling: bool = False
    heals: bool = False
    billed: bool = False
    sent: bool = True
    warm: bool = False
    size: int = 0
    streams: bool = False
    route: str = ""
    counts: bool = False
    rests: bool = False


UNSENT: dict[str, Any] = {"phase": "unsent", "sent": False, "counts": True}
NEVER_SENT: dict[str, Any] = {**UNSENT, "same": 2, "next": "yes", "preferred": True}
SENT: dict[str, Any] = {"phase": "sent", "billed": True, "counts": True}
BUSY: dict[str, Any] = {"phase": "answered", "same": 1, "next": "yes", "preferred": True}
SPENT: dict[str, Any] = {"phase": "answered", "next": "yes", "preferred": True, "sibling": True}
REFUSED: dict[str, Any] = {"phase": "answered", "next": "yes", "sibling": True, "rests": True}
LOST = (502, "upstream_disconnected")
UNREAD: dict[str, Any] = {"size": BIG, "phase": "unsent", "sent": False}
WRITE = 'timeout = { write = "200ms" }'
FIRST_BYTE = 'timeout = { first_byte = "150ms" }'
CONNECT = 'timeout = { connect = "100ms" }'
TOO_LONG = b'{"error":{"message":"too long","code":"context_length_exceeded"}}'

TABLE: dict[str, Row] = {
    "refused": Row(refused, seen=(502, "upstream_connect"), **NEVER_SENT),
    "no answer to connect": Row(blackhole, seen=(502, "upstream_connect"), **NEVER_SENT),
    "name server busy": Row(unnamed(socket.EAI_AGAIN), seen=(502, "upstream_dns"), **NEVER_SENT),
    "no such host": Row(
        unnamed(socket.EAI_NONAME), seen=(502, "upstream_dns"), next="yes", **UNSENT
    ),
    "handshake broken off": Row(
        accepting(breaks_off, "https"), seen=(502, "upstream_tls"), **NEVER_SENT
    ),
    "no TLS there": Row(accepting(speaks_http, "https"), seen=(502, "upstream_tls"), **NEVER_SENT),
    "handshake hangs": Row(
        accepting(says_nothing, "https", CONNECT), seen=(502, "upstream_connect"), **NEVER_SENT
    ),
    "another's certificate": Row(
        scripted(answer(), tls=certified(trustme.CA())),
        seen=(502, "upstream_tls"),
        next="yes",
        **UNSENT,
    ),
    "expired certificate": Row(
        scripted(
            answer(),
            tls=certified(AUTHORITY, PAST - timedelta(days=1), PAST),
        ),
        seen=(502, "upstream_tls"),
        next="yes",
        **UNSENT,
    ),
    "takes no byte": Row(
        accepting(deaf, more=WRITE),
        seen=(504, "upstream_timeout"),
        next="yes",
        counts=True,
        **UNREAD,
    ),
    "died with some unsent": Row(accepting(dying(9)), seen=LOST, same=1, next="yes", **UNREAD),
    "died so once": Row(accepting(dying(1)), seen=LOST, same=1, next="yes", heals=True, **UNREAD),
    "stale, closed": Row(
        scripted(answer(), close(), answer()),
        phase="sent",
        seen=LOST,
        same=1,
        heals=True,
        billed=True,
        warm=True,
    ),
    "stale, reset": Row(
        scripted(answer(), reset(), answer()),
        phase="sent",
        seen=LOST,
        same=1,
        heals=True,
        billed=True,
        warm=True,
    ),
    "stale, then dead again": Row(
        scripted(answer(), close()), seen=LOST, same=1, next="free", warm=True, **SENT
    ),
    "a fresh one closed": Row(scripted(close()), seen=LOST, next="free", **SENT),
    "a fresh one reset": Row(scripted(reset()), seen=LOST, next="free", **SENT),
    "a used one died later": Row(dies_later, seen=LOST, next="free", warm=True, **SENT),
    "head cut": Row(scripted(raw(b"HTTP/1.1 200 O")), seen=LOST, next="free", **SENT),
    "no answer in time": Row(
        scripted(hang(), more=FIRST_BYTE), seen=(504, "upstream_timeout"), next="free", **SENT
    ),
    "not HTTP": Row(scripted(raw(b"220 smtp.test\r\n")), seen=(502, "upstream_protocol"), **SENT),
    "1xx only": Row(scripted(raw(head(103))), seen=(502, "upstream_protocol"), **SENT),
    "two lengths": Row(
        scripted(raw(head(200, [(b"Content-Length", b"1"), (b"Content-Length", b"2")]) + b"xy")),
        seen=(502, "upstream_protocol"),
        **SENT,
    ),
    "redirect": Row(
        scripted(status(307, (b"Location", b"http://127.0.0.1:1/"))),
        phase="answered",
        seen=(502, "upstream_protocol"),
    ),
    "400": Row(scripted(status(400)), phase="streaming", seen=(400, "")),
    "400, context too long": Row(
        scripted(status(400, body=TOO_LONG)),
        phase="answered",
        seen=(400, ""),
        next="yes",
        route="on_context_length = true",
    ),
    "401": Row(scripted(status(401)), seen=(502, "upstream_auth"), **REFUSED),
    "402": Row(scripted(status(402)), seen=(402, ""), **{**SPENT, "preferred": False}, rests=True),
    "403": Row(scripted(status(403)), phase="streaming", seen=(403, "")),
    "404": Row(scripted(status(404)), phase="streaming", seen=(404, "")),
    "408": Row(scripted(status(408)), seen=(408, ""), **BUSY),
    "429": Row(scripted(status(429)), seen=(429, ""), rests=True, **SPENT),
    "429, wait 0": Row(
        scripted(status(429, (b"Retry-After", b"0"))), seen=(429, ""), same=1, **SPENT
    ),
    "429, wait 30": Row(
        scripted(status(429, (b"Retry-After", b"30"))), seen=(429, ""), rests=True, **SPENT
    ),
    "500": Row(scripted(status(500)), phase="answered", seen=(500, ""), next="5xx", billed=True),
    "500, do not retry": Row(
        scripted(status(500, (b"x-should-retry", b"false"))),
        phase="answered",
        seen=(500, ""),
        billed=True,
    ),
    "501": Row(scripted(status(501)), phase="streaming", seen=(501, "")),
    "502": Row(scripted(status(502)), phase="answered", seen=(502, ""), next="5xx", billed=True),
    "503": Row(scripted(status(503)), seen=(503, ""), **BUSY),
    "503, once": Row(scripted(status(503), answer()), seen=(503, ""), heals=True, **BUSY),
    "503, wait 30": Row(
        scripted(status(503, (b"Retry-After", b"30"))), seen=(503, ""), **{**BUSY, "same": 0}
    ),
    "503, do not retry": Row(
        scripted(status(503, (b"x-should-retry", b"false"))),
        seen=(503, ""),
        **{**BUSY, "same": 0},
    ),
    "504": Row(scripted(status(504)), phase="answered", seen=(504, ""), next="5xx", billed=True),
    "524": Row(scripted(status(524)), phase="answered", seen=(524, ""), next="5xx", billed=True),
    "526": Row(scripted(status(526)), phase="answered", seen=(526, ""), next="yes"),
    "529": Row(scripted(status(529)), seen=(529, ""), **BUSY),
    "200, then 429 inside": Row(
        scripted(stream(error_event(429), headers=[SSE, FAILED[1]])),
        seen=(200, ""),
        route="peek = true",
        streams=True,
        rests=True,
        **SPENT,
    ),
    "200, then 500 inside": Row(
        scripted(stream(error_event("server_error"), headers=[SSE, FAILED[1]])),
        phase="answered",
        seen=(200, ""),
        next="5xx",
        billed=True,
        route="peek = true",
        streams=True,
    ),
    "200, then 503 inside": Row(
        scripted(stream(error_event(503), headers=[SSE, FAILED[1]])),
        seen=(200, ""),
        route="peek = true",
        streams=True,
        **BUSY,
    ),
    "200, error not looked for": Row(
        scripted(stream(error_event(503))), phase="streaming", seen=(200, ""), streams=True
    ),
    "a stream cut": Row(
        scripted(stream(event(b'{"choices":[]}'), end="cut")),
        phase="streaming",
        seen=(200, "cut"),
        billed=True,
        streams=True,
        counts=True,
    ),
    "an answer cut": Row(
        scripted(raw(head(200, [JSON, (b"Content-Length", b"9")]) + b"half")),
        phase="streaming",
        seen=(200, "cut"),
        billed=True,
        counts=True,
    ),
}

VARIANTS = {
    "alone": "",
    "next": "",
    "unbilled": "billed = false",
    "ambiguous": "retry = { ambiguous = true }",
    "no 5xx": "retry = { failover_5xx = false }",
    "not stale": "retry = { stale = false }",
    "once": "retry = { attempts = 1 }",
    "nowhere": "retry = { next = false }",
    "two keys": "",
}


def expected(row: Row, variant: str) -> tuple[int, int]:
    """Return how often the failing upstream is tried, and how often the one behind it."""
    behind = variant not in ("alone", "two keys")
    goes = (
        variant != "nowhere"
        and {
            "yes": True,
            "free": variant in ("unbilled", "ambiguous"),
            "5xx": variant not in ("no 5xx", "once"),  # it may have been billed
            "no": False,
        }[row.next]
    )
    if variant == "once":
        return 1, int(goes and "peek" not in row.route)  # what had begun may have been billed
    if variant == "not stale" and row.warm and row.same:
        return 1, 0
    if variant == "two keys" and row.sibling:
        return 3 if row.same else 2, 0  # one credential, its sibling, and that one again
    if behind and goes and (row.preferred or not row.same):
        return 1, 1
    if row.heals:
        return 2, 0
    return 1 + row.same, int(behind and goes)


@pytest.fixture(scope="session")
def matrix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str, str, str, str], None]]:
    """Take note of what upstreams received; whoever has the last cell prints all of them, once."""
    alone = not hasattr(request.config, "workerinput")
    place = tmp_path_factory.getbasetemp()
    place = place if alone else place.parent  # which the workers of one run have in common
    cells = place / "sends"

    def note(failure: str, phase: str, variant: str, cell: str) -> None:
        with cells.open("a") as file:
            file.write(orjson.dumps([failure, phase, variant, cell]).decode() + "\n")

    yield note
    lines = (
        [orjson.loads(line) for line in cells.read_text().splitlines()] if cells.exists() else []
    )
    found = {(failure, variant): (phase, cell) for failure, phase, variant, cell in lines}
    if not alone and len({failure for failure, _ in found}) < len(TABLE) + 1:
        return
    try:
        (place / "printed").touch(exist_ok=False)
    except FileExistsError:
        return
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        os.write(2, _drawn(found).encode())


def _drawn(found: dict[tuple[str, str], tuple[str, str]]) -> str:
    """Draw the matrix: a line for each failure, several statuses of the same kind in one."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for failure in dict.fromkeys(failure for failure, _ in found):
        cells = tuple(found.get((failure, variant), ("", "-"))[1] for variant in VARIANTS)
        phase = next(
            found[failure, variant][0] for variant in VARIANTS if (failure, variant) in found
        )
        key = (phase, *cells) if failure.startswith("status ") else (phase, *cells, failure)
        kinds.setdefault(key, []).append(failure.removeprefix("status "))
    lines = [
        "",
        "Requests received whole (/ tries, if more): by the upstream that fails + by the next one",
    ]
    lines.append(f"{'failure':27}{'phase':10}" + "".join(f"{name:>10}" for name in VARIANTS))
    for key, failures in kinds.items():
        name = failures[0] if len(failures) == 1 else _ranges([int(one) for one in failures])
        cells = key[1 : 1 + len(VARIANTS)]
        if len(name) > 26:
            lines.append(name)
            name = ""
        lines.append(f"{name:27}{key[0]:10}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join([*lines, ""])


def _ranges(numbers: list[int]) -> str:
    numbers.sort()
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "statuses " + " ".join(f"{a[0]}-{a[-1]}" if len(a) > 1 else str(a[0]) for a in runs)


@pytest.mark.parametrize("failure", TABLE)
async def test_table(
    failure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    matrix: Callable[[str, str, str, str], None],
) -> None:
    """What fails is tried again as often, and there, as the table says; the log and the client agree."""
    row = TABLE[failure]
    several = asyncio.Semaphore(2 if row.size else len(VARIANTS))

    async def one(variant: str) -> None:
        (tmp_path / variant).mkdir()
        async with several:
            try:
                sends = await _try(failure, row, variant, Room(tmp_path / variant, monkeypatch))
            except BaseException as error:
                error.add_note(f"in the variant {variant!r}")
                raise
        matrix(failure, row.phase, variant, sends)

    results = await asyncio.gather(*map(one, VARIANTS), return_exceptions=True)
    for result in results:
        if result is not None:
            raise result


async def _try(failure: str, row: Row, variant: str, room: Room) -> str:
    """Let *row* happen once, and hold everybody's view of it against the table; return the sends."""
    keys = '["sk-a", "sk-a-2"]' if variant == "two keys" else None
    behind = variant not in ("alone", "two keys")
    async with row.place(room) as place, Upstream() as b:
        b.will(answer(body=b"from b", headers=[JSON, (b"x-from", b"b")]))
        toml = table("a", place.url, place.more, VARIANTS[variant], credential=keys)
        toml += table("b", b.url) + '[routes.m]\nupstream = "a"\nmodel = "a-model"\n' + row.route
        toml += '\nfallback = ["b/b-model"]' if behind else ""
        async with serving(toml) as proxy:
            calm(proxy)
            if row.warm:
                assert (await call(proxy.port, chat("m", "warm"), headers=[CANARY])).body == OK
            nonce = f"nonce-{random.getrandbits(64):x}-"
            body = chat("m", nonce + "x" * row.size, stream=row.streams)
            got = await call(proxy.port, body, headers=[CANARY])
            record = await proxy.record(1 + row.warm)
            alarms = [line["event"] for line in proxy.lines() if line["event"] != "exchange"]
            await idle(proxy)
            assert connections(proxy) <= 2
    tries, more = expected(row, variant)
    received = [one for one in place.got() if nonce.encode() in one]
    beyond = [r.head + r.body for r in b.requests if nonce.encode() in r.body]
    healed = row.heals and (tries, more) == (2, 0)
    # What the upstreams saw
    assert (tried(record), len(beyond)) == (["a"] * tries + ["b"] * more, more)
    assert len(received) == (tries if row.sent else int(healed))
    assert all(b"sk-b" not in one for one in place.got())
    assert all(b"sk-a" not in one for one in beyond)
    assert not any(b"sk-client" in one for one in place.got() + beyond)
    # What the log says
    attempts = record["attempts"]
    ours = attempts[: tries - healed]
    last = not more and not healed
    for number, attempt in enumerate(ours, 1):
        relayed = last and number == len(ours) and row.phase == "answered" and not row.seen[1]
        assert attempt["phase"] == ("streaming" if relayed else row.phase), attempt
        assert attempt["maybe_billed"] is (row.billed and not relayed), attempt
    assert [one["maybe_billed"] for one in attempts[tries - healed :]] == [False] * (more + healed)
    assert (failure.endswith("certificate")) is ("upstream_certificate" in alarms)
    assert (failure == "401") is ("credential_refused" in alarms)
    # What the client sees
    assert len(got.values(b"x-trunkline-id")) == 1
    assert got.value(b"x-trunkline-id") == record["request_id"].encode()
    assert b"sk-" not in got.raw
    if more or healed:
        assert (got.status, got.body) == (200, OK if healed else b"from b")
        assert (got.value(b"x-from"), got.value(b"x-failed")) == (b"b" if more else None, None)
        assert (record["outcome"], record["error"]) == ("ok", None)
        assert record["upstream_model"] == ("b-model" if more else "a-model")
    elif row.seen[1] == "cut":
        assert (got.status, got.whole, record["outcome"]) == (200, False, "upstream_cut")
    elif row.seen[1]:
        assert (got.status, got.code) == row.seen
        assert record["error"] == row.seen[1]
        unsafe = row.billed or row.seen[1] in ("upstream_protocol", "upstream_auth")
        unsafe = unsafe or row.seen[0] == 504
        assert got.value(b"x-should-retry") == (b"false" if unsafe else None)
        assert b"theirs" not in got.raw.lower()
    else:
        assert (got.status, got.whole) == (row.seen[0], True)
        assert b"theirs" in got.body or b"too long" in got.body
    whole = f"{len(received)}" if len(received) == tries else f"{len(received)}/{tries}"
    return f"{whole}+{len(beyond)}"


def rules(code: int) -> Row:
    """Return the row of an answer whose status is *code*."""
    if code == 401:
        return Row(refused, seen=(502, "upstream_auth"), **REFUSED)
    if code == 402:
        return Row(refused, seen=(code, ""), **{**SPENT, "preferred": False})
    if code in (525, 526, 530):
        return Row(refused, phase="answered", seen=(code, ""), next="yes")
    if code == 429:
        return Row(refused, seen=(429, ""), **SPENT)
    if code in (408, 503, 529):
        return Row(refused, seen=(code, ""), **BUSY)
    if code in (500, 502, 504) or 520 <= code <= 524:
        return Row(refused, phase="answered", seen=(code, ""), next="5xx")
    return Row(refused, phase="streaming", seen=(code, ""))


@pytest.mark.parametrize("variant", VARIANTS)
async def test_every_status(variant: str, matrix: Callable[[str, str, str, str], None]) -> None:
    """Of all statuses, those that the table names are tried again, and no other."""
    behind = variant not in ("alone", "two keys")
    keys = '["sk-a", "sk-a-2"]' if variant == "two keys" else None

    async def step(conn: Conn, request: Received) -> None:
        code = int(request.target.split("/")[1])
        await answer(code, b"body of %d" % code, FAILED, b"Own Reason")(conn, request)

    async with Upstream() as a, Upstream() as b:
        a.will(step)
        b.will(answer(body=b"from b"))
        toml = table("b", b.url)
        for code in range(400, 532):
            url = f"http://{a.authority}/{code}/v1"
            toml += table(f"a{code}", url, VARIANTS[variant], credential=keys)
            toml += f'[routes.m{code}]\nupstream = "a{code}"\nmodel = "m"\n'
            toml += 'fallback = ["b/m"]\n' if behind else ""
        async with serving(toml) as proxy:
            calm(proxy)
            room = asyncio.Semaphore(3)  # as many retries as there is room for in any case

            async def ask(code: int) -> Answer:
                async with room:
                    return await call(proxy.port, chat(f"m{code}", f"nonce-{code}-"))

            answers = await asyncio.gather(*map(ask, range(400, 532)))
    received = Counter(r.target.split("/")[1] for r in a.requests)
    beyond = Counter(r.body.split(b"nonce-")[1][:3].decode() for r in b.requests)
    for code, got in zip(range(400, 532), answers, strict=True):
        row = rules(code)
        tries, more = expected(row, variant)
        assert (received[str(code)], beyond[str(code)]) == (tries, more), code
        assert len(got.values(b"x-trunkline-id")) == 1
        if more:
            assert (got.status, got.body, got.value(b"x-failed")) == (200, b"from b", None)
        elif code == 401:
            assert (got.status, got.code) == row.seen
        else:
            assert got.head.startswith(b"HTTP/1.1 %d Own Reason\r\nContent-Type: app" % code)
            assert (got.body, got.value(b"x-failed")) == (b"body of %d" % code, b"yes")
        matrix(f"status {code}", "answered", variant, f"{tries}+{more}")


@pytest.mark.parametrize(
    "failure",
    [  # a used connection is not to be had six times in a row
        pytest.param(name, marks=[pytest.mark.long] if row.size else [])
        for name, row in TABLE.items()
        if not row.warm
    ],
)
async def test_who_counts(failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five failures of an upstream open its breaker, a refusal or a limit lets its credential rest;
    what is the caller's fault does neither.
    """
    row = TABLE[failure]
    async with row.place(Room(tmp_path, monkeypatch)) as place, Upstream() as b:
        toml = table("a", place.url, place.more) + table("b", b.url)
        toml += f'[routes.m]\nupstream = "a"\nfallback = ["b/m"]\n{row.route}'
        body = chat("m", "x" * row.size, stream=row.streams)
        async with serving(toml) as proxy:
            calm(proxy)
            for _ in range(5):
                await call(proxy.port, body)
            got = await call(proxy.port, body)
            await proxy.record(6)
            first = [tried(record)[0] for record in proxy.records()]
    if row.rests:
        assert first == ["a"] + ["b"] * 5
    else:
        assert first == ["a"] * 5 + ["b" if row.counts else "a"]
    assert got.status == 200 or not (row.counts or row.rests)


async def test_a_used_connection_that_dies_does_not_count(upstream: Upstream) -> None:
    """Connections that were stale say nothing against their upstream."""
    toml = tables(a=upstream) + table("b", NOBODY)
    toml += '[routes.m]\nupstream = "a"\nfallback = ["b/m"]\n'
    upstream.will(*[answer(), close()] * 8, answer())
    async with serving(toml) as proxy:
        for _ in range(8):
            assert (await call(proxy.port, chat("m"))).status == 200
        await proxy.record(8)
        assert [set(tried(record)) for record in proxy.records()] == [{"a"}] * 8


# How long an answer asks to wait


def moment(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def iso(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


FORMS: dict[str, tuple[int, Callable[[], list[tuple[str, str]]], float, float]] = {
    "seconds": (503, lambda: [("Retry-After", "1")], 1.0, 1.0),
    "a fraction": (529, lambda: [("retry-after", "0.4")], 0.4, 0.4),
    "milliseconds": (503, lambda: [("retry-after-ms", "400")], 0.4, 0.4),
    "milliseconds first": (
        408,
        lambda: [("Retry-After", "30"), ("retry-after-ms", "300")],
        0.3,
        0.3,
    ),
    "a limit": (429, lambda: [("Retry-After", "1")], 1.0, 1.0),
    "a date": (503, lambda: [("Retry-After", moment(2))], 0.9, 2.0),
    "a Go duration": (429, lambda: [("x-ratelimit-reset-requests", "450ms")], 0.45, 0.45),
    "what is used up": (
        429,
        lambda: [
            ("x-ratelimit-remaining-requests", "9"),
            ("x-ratelimit-reset-requests", "1m30s"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "0.5s"),
        ],
        0.5,
        0.5,
    ),
    "an epoch": (
        503,
        lambda: [("x-ratelimit-reset", f"{time.time() + 1:.3f}")],
        0.8,
        1.0,
    ),
    "an ISO date": (
        429,
        lambda: [("anthropic-ratelimit-requests-reset", iso(1))],
        0.8,
        1.0,
    ),
}


async def test_waits() -> None:
    """In whatever form an answer asks to wait, it is asked again no earlier, and soon after."""

    async def one(form: str) -> None:
        code, headers, least, most = FORMS[form]
        async with Upstream() as a:
            pairs = [(name.encode(), value.encode()) for name, value in headers()]
            a.will(status(code, *pairs), answer())
            toml = tables(a=a) + '[routes]\nm = "a/m"'
            async with serving(toml) as proxy:
                before = time.monotonic()
                got = await call(proxy.port, chat("m"))
                seconds = time.monotonic() - before
                assert got.status == 200, form
                assert least - 0.02 <= seconds < most + 1.5, (form, seconds)
                assert len(a.requests) == 2

    await asyncio.gather(*map(one, FORMS))


async def test_the_wait_is_a_floor() -> None:
    """What an answer asks for is waited for where chance would have had us wait less, and no more
    where it would have had us wait longer than we must.
    """
    async with Upstream() as a, serving(tables(a=a) + '[routes]\nm = "a/m"') as proxy:
        for chance, asked, least, most in ((0.0, b"300", 0.3, 0.6), (0.99, b"10", 0.4, 1.0)):
            calm(proxy, lambda chance=chance: chance)  # type: ignore[misc]
            a.will(status(503, (b"retry-after-ms", asked)), answer())
            with within(most + 0.5, least):
                assert (await call(proxy.port, chat("m"))).status == 200


@pytest.mark.parametrize(("code", "asked"), [(503, b"30"), (429, b"30"), (429, b"3"), (529, b"11")])
async def test_too_long_to_wait(proxy: Proxy, upstream: Upstream, code: int, asked: bytes) -> None:
    """An answer that asks for more than we wait is relayed at once, headers and all."""
    limits: list[Pair] = [
        (b"Retry-After", asked),
        (b"X-RateLimit-Remaining", b"0"),
        (b"x-should-retry", b"true"),
    ]
    upstream.will(answer(code, b"slow down", [JSON, *limits]))
    with within(1):
        got = await call(proxy.port, chat())
    assert (got.status, got.body) == (code, b"slow down")
    assert [pair for pair in got.headers if pair in limits] == limits
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("count", "sends"), [(b"0", 2), (b"1", 1), (b"2", 1)])
async def test_who_asks_again_already(
    proxy: Proxy, upstream: Upstream, count: bytes, sends: int
) -> None:
    """What an SDK sends again already is not sent again to the same upstream when it is busy."""
    calm(proxy)
    upstream.will(status(503))
    got = await call(proxy.port, chat(), headers=[(b"x-stainless-retry-count", count)])
    assert (got.status, len(upstream.requests)) == (503, sends)


async def test_who_asks_again_already_elsewhere() -> None:
    """What an SDK sends again already goes on to another upstream, and to one that was not reached."""
    again = [(b"x-stainless-retry-count", b"1")]
    async with Upstream() as a, Upstream() as b:
        a.will(status(503))
        toml = tables(a=a, b=b) + table("c", NOBODY)
        toml += '[routes]\nc = "c/m"\nm = { upstream = "a", fallback = ["b/m"] }'
        async with serving(toml) as proxy:
            calm(proxy)
            assert (await call(proxy.port, chat("m"), headers=again)).status == 200
            assert tried(await proxy.record(1)) == ["a", "b"]
            assert (await call(proxy.port, chat("c"), headers=again)).status == 502
            assert tried(await proxy.record(2)) == ["c"] * 3


# How long we take


PATIENCE = [b"x-stainless-read-timeout", b"X-Stainless-Timeout"]
"""How SDKs say for how long they wait: from when all was sent, and from before."""


@pytest.mark.parametrize("name", PATIENCE)
@pytest.mark.parametrize(("told", "least", "most"), [(b"0.6", 0.55, 0.6), (b"2", 1.9, 2.0)])
async def test_before_the_sdk_gives_up(
    proxy: Proxy, upstream: Upstream, name: bytes, told: bytes, least: float, most: float
) -> None:
    """An SDK that says how long it waits has our answer shortly before, and the upstream is left."""
    upstream.will(hang())
    with within(most, least - 0.02):
        got = await call(proxy.port, chat(), headers=[(name, told)])
    assert (got.status, got.code) == (504, "upstream_timeout")
    assert got.value(b"x-should-retry") == b"false"
    async with asyncio.timeout(1):
        await upstream.connections[0].gone.wait()


@pytest.mark.parametrize("name", PATIENCE)
@pytest.mark.parametrize(
    "told", [b"", b"soon", b"-1", b"1e-9", b"1.2.3", b"NaN", b"0x1", b"0", b"0.0", b".", b"1" * 99]
)
async def test_nonsense_about_giving_up(
    proxy: Proxy, upstream: Upstream, name: bytes, told: bytes
) -> None:
    """What is no number of seconds says nothing, and neither does 0."""
    upstream.will(answer())
    got = await call(proxy.port, chat(), headers=[(name, told)])
    assert got.status == 200


async def test_the_earlier_patience_counts(proxy: Proxy, upstream: Upstream) -> None:
    """Of two ways in which an SDK says how long it waits the shorter one holds."""
    upstream.will(hang())
    for told in ((b"60", b"0.4"), (b"0.4", b"60"), (b"0", b"0.4"), (b"0.4", b"0")):
        with within(0.9, 0.3):
            got = await call(
                proxy.port, chat(), headers=[*zip(PATIENCE, told, strict=True)], seconds=3
            )
        assert (got.status, got.code) == (504, "upstream_timeout")


async def slowly(
    port: int, body: bytes, seconds: float, *headers: Pair, path: str = CHAT
) -> Answer:
    """Send a request whose body takes so many *seconds* to go up; return the answer."""
    async with await Client.connect(port) as client:
        whole = request(body, path=path, headers=[*headers])
        await client.send(whole[: -len(body) // 2])
        await asyncio.sleep(seconds)
        await client.send(whole[-len(body) // 2 :])
        return await client.answer()


async def waiting(conn: Conn, seen: Received) -> None:
    await asyncio.sleep(0.3)
    await answer()(conn, seen)


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
@pytest.mark.parametrize(("name", "code"), [(PATIENCE[0], 200), (PATIENCE[1], 504)])
async def test_patience_begins(path: str, name: bytes, code: int) -> None:
    """What an SDK waits for the answer it counts from when all was sent, so we do; what it waits in all, from
    when it began to send: of bodies that are held, and of those that are passed on as they come.
    """
    async with Upstream() as a:
        toml = tables(a=a) + '[routes]\n"*" = "a/*"\n[unrouted]\nfiles = "a"'
        async with serving(toml) as proxy:
            a.will(waiting)
            got = await slowly(proxy.port, chat(), 0.5, (name, b"0.7"), path=path)
            assert got.status == code
            assert a.requests[0].body.endswith(b"}")


async def test_the_deadline_spares_who_runs() -> None:
    """`retry.deadline` is for further attempts: the one that runs has the time that `first_byte` says."""
    async with Upstream() as a, Upstream() as b:
        a.will(waiting, waiting, status(503))
        toml = tables(a=a, b=b) + '[routes.m]\nupstream = "a"\nfallback = ["b/m"]\n'
        async with serving(toml + 'retry = { deadline = "100ms" }') as proxy:
            calm(proxy)
            assert (await call(proxy.port, chat("m"))).status == 200
            assert (await slowly(proxy.port, chat("m"), 0.3)).status == 200
            assert (await slowly(proxy.port, chat("m"), 0.3)).status == 200
            await proxy.record(3)
            assert [tried(one) for one in proxy.records()] == [["a"], ["a"], ["a", "b"]]


async def test_the_deadline_is_the_end_of_trying() -> None:
    """Nothing is begun any more when `retry.deadline` is over, though there is a place left."""

    async def late(conn: Conn, seen: Received) -> None:
        await asyncio.sleep(0.3)
        await status(503)(conn, seen)

    async with Upstream() as a, Upstream() as b:
        a.will(late)
        toml = tables(a=a, b=b) + '[routes.m]\nupstream = "a"\nfallback = ["b/m"]\n'
        async with serving(toml + 'retry = { deadline = "100ms" }') as proxy:
            assert (await call(proxy.port, chat("m"))).status == 503
            assert tried(await proxy.record()) == ["a"]


async def test_haste_is_not_the_upstreams_fault() -> None:
    """Callers who do not wait for long harm themselves: nobody else's upstream is taken for broken."""

    async def slow(conn: Conn, request: Received) -> None:
        await asyncio.sleep(0.3)
        await answer()(conn, request)

    async with Upstream() as a, Upstream() as b, serving(chain(a, b)) as proxy:
        a.will(slow)
        hasty = [(b"x-stainless-read-timeout", b"0.2")]
        for _ in range(6):
            assert (await call(proxy.port, chat("m"), headers=hasty)).status == 504
        assert (await call(proxy.port, chat("m"))).status == 200
        assert (len(a.requests), b.requests) == (7, [])


async def test_haste_in_connecting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that takes longer to be reached than a hasty caller waits is not taken for broken."""
    hasty = [(b"x-stainless-read-timeout", b"0.2")]
    async with blackhole(Room(tmp_path, monkeypatch)) as a, Upstream() as b:
        toml = table("a", a.url, 'timeout = { connect = "400ms" }') + table("b", b.url)
        async with serving(toml + '[routes]\nm = { upstream = "a", fallback = ["b/m"] }') as proxy:
            for _ in range(6):
                assert (await call(proxy.port, chat("m"), headers=hasty)).status in (502, 504)
            assert (await call(proxy.port, chat("m"))).status == 200
            assert tried(await proxy.record(7)) == ["a", "b"]


async def test_what_is_left_of_the_time_is_no_measure() -> None:
    """An upstream that was asked when there was hardly any time left is not taken for broken."""
    async with Upstream() as a, Upstream() as b, Upstream() as c:
        a.will(hang())
        b.will(hang())
        toml = (
            tables(a=a, b=b, c=c)
            + """
[routes.m]
upstream = "a"
fallback = ["b/m"]
retry = { ambiguous = true }
timeout = { first_byte = "150ms", total = "250ms" }
[routes.n]
upstream = "b"
fallback = ["c/m"]
"""
        )
        async with serving(toml) as proxy:
            for _ in range(5):
                assert (await call(proxy.port, chat("m"))).status == 504
            b.will(answer())
            assert (await call(proxy.port, chat("n"))).status == 200
    assert c.requests == []


async def test_total_over_all_attempts() -> None:
    """However many upstreams are tried, the caller waits no longer than the route says in all."""
    limit = 'retry = { ambiguous = true }\ntimeout = { total = "400ms", first_byte = "250ms" }'
    async with Upstream() as a, Upstream() as b:
        a.will(hang())
        b.will(hang())
        toml = tables(a=a, b=b) + f'[routes.m]\nupstream = "a"\nfallback = ["b/m"]\n{limit}'
        async with serving(toml) as proxy:
            with within(3.0, 0.38):
                assert (await call(proxy.port, chat("m"))).code == "upstream_timeout"
            record = await proxy.record()
            assert (tried(record), record["outcome"]) == (["a", "b"], "timeout")
            await until(lambda: connections(proxy) == 0, 1)


@pytest.mark.parametrize(
    "limit", ['retry = { deadline = "500ms" }', 'timeout = { total = "500ms" }']
)
async def test_no_wait_beyond_the_deadline(upstream: Upstream, limit: str) -> None:
    """An answer is relayed at once, where waiting as it asks would take longer than there is time."""
    upstream.will(status(503, (b"Retry-After", b"1")))
    async with serving(tables(a=upstream) + f'[routes.m]\nupstream = "a"\n{limit}') as proxy:
        with within(0.4):
            assert (await call(proxy.port, chat("m"))).status == 503
    assert len(upstream.requests) == 1


async def test_never_more_than_the_table_says() -> None:
    """Many attempts allowed are no reason to ask more often than is any use."""
    toml = table("a", NOBODY) + '[routes.m]\nupstream = "a"\nretry = { attempts = 10 }'
    async with serving(toml) as proxy:
        calm(proxy)
        assert (await call(proxy.port, chat("m"))).status == 502
        assert tried(await proxy.record()) == ["a"] * 3


# Where else


def chain(*upstreams: Upstream) -> str:
    """Write a route `m` that falls back from one of *upstreams*, a, b, c …, to the next."""
    toml, names = "", "abcdefg"[: len(upstreams)]
    for name, upstream in zip(names, upstreams, strict=True):
        toml += table(name, upstream.url)
    places = ", ".join(f'"{name}/model-{name}"' for name in names[1:])
    return toml + f'[routes.m]\nupstream = "a"\nmodel = "model-a"\nfallback = [{places}]\n'


@pytest.mark.parametrize("attempts", [1, 2, 3])
async def test_in_order(attempts: int) -> None:
    """Fallbacks are tried in their order, all of them that refuse for nothing, whatever `attempts` there may
    be; the last answer counts.
    """
    async with Upstream() as a, Upstream() as b, Upstream() as c:
        for number, one in enumerate((a, b, c)):
            one.will(status(503, (b"x-which", b"%d" % number), body=b"body %d" % number))
        toml = chain(a, b, c) + f"retry = {{ attempts = {attempts} }}"
        again = int(attempts > 1)  # who is the last is asked once more
        async with serving(toml) as proxy:
            calm(proxy)
            got = await call(proxy.port, chat("m"))
            assert [len(one.requests) for one in (a, b, c)] == [1, 1, 1 + again]
            assert (got.body, got.values(b"x-which")) == (b"body 2", [b"2"])
            assert tried(await proxy.record()) == ["a", "b", "c", "c"][: 3 + again]
    models = [orjson.loads(one.requests[0].body)["model"] for one in (a, b, c)]
    assert models == ["model-a", "model-b", "model-c"]


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize(
    "step", [*(status(code) for code in (401, 402, 408, 429, 503, 525, 526, 529, 530)), None]
)
async def test_what_refuses_for_nothing_never_bars_the_way(
    step: Step | None, attempts: int
) -> None:
    """Three credentials that are refused, two more upstreams that are down, and one that is well: it is
    always reached, at the first request as at the tenth.
    """
    async with AsyncExitStack() as stack:
        ups = [await stack.enter_async_context(Upstream()) for _ in range(4)]
        for one in ups[:3]:
            one.will(step or answer())
        places = [one.url for one in ups] if step else [NOBODY] * 3 + [ups[3].url]
        keys = '["sk-1", "sk-2", "sk-3"]'
        toml = table("a", places[0], credential=keys)
        toml += "".join(table(n, url) for n, url in zip("bcd", places[1:], strict=True))
        toml += '[routes.m]\nupstream = "a"\nfallback = ["b/m", "c/m", "d/m"]\n'
        async with serving(toml + f"retry = {{ attempts = {attempts} }}") as proxy:
            calm(proxy)
            for _ in range(10):
                assert (await call(proxy.port, chat("m"))).status == 200
            await proxy.record(10)
            for record in proxy.records():
                assert not any(one["maybe_billed"] for one in record["attempts"])


async def test_a_place_is_asked_once() -> None:
    """A place to which two ways lead is asked once on the way forward: the same credential of the same
    upstream for the same model.
    """
    async with Upstream() as a, Upstream() as b:
        a.will(status(529, (b"x-should-retry", b"false")))
        b.will(status(503, (b"x-should-retry", b"false")))
        toml = tables(a=a, b=b)
        toml += """
[routes.m]
upstream = "a"
model = "x"
fallback = ["b/x", "a/x", "other", "a/y", "b/x"]
[routes]
other = "b/x"
"""
        async with serving(toml) as proxy:
            calm(proxy)
            assert (await call(proxy.port, chat("m"))).status == 529
            assert tried(await proxy.record()) == ["a", "b", "a"]
        assert [orjson.loads(one.body)["model"] for one in a.requests] == ["x", "y"]


@pytest.mark.parametrize("attempts", [1, 2, 3, 4])
@pytest.mark.parametrize("how", ["ambiguous", "unbilled", "peek"])
async def test_no_more_bills_than_attempts(how: str, attempts: int) -> None:
    """Where the operator lets what may have been billed lead on, no more than `attempts` places may bill it."""
    async with AsyncExitStack() as stack:
        ups = [await stack.enter_async_context(Upstream()) for _ in range(5)]
        for one in ups:
            one.will(stream(error_event(503)) if how == "peek" else close())
        more = "billed = false" if how == "unbilled" else ""
        toml = "".join(table(n, one.url, more) for n, one in zip("abcde", ups, strict=True))
        toml += '[routes.m]\nupstream = "a"\nfallback = ["b/m", "c/m", "d/m", "e/m"]\n'
        toml += (
            f"retry = {{ attempts = {attempts}, ambiguous = {str(how == 'ambiguous').lower()} }}"
        )
        async with serving(toml + ("\npeek = true" if how == "peek" else "")) as proxy:
            calm(proxy)
            await call(proxy.port, chat("m", stream=True))
            assert tried(await proxy.record()) == ["a", "b", "c", "d", "e"][:attempts]
        assert [len(one.requests) for one in ups] == [1] * attempts + [0] * (5 - attempts)


async def test_what_the_operator_names_leads_on() -> None:
    """`retry.also` names further statuses that lead on, of the upstream whose table says so; one that has not
    what is asked for, and only that, bars the way however few `attempts` there may be.
    """
    async with Upstream() as a, Upstream() as b, Upstream() as c:
        a.will(status(404))
        toml = table("a", a.url, "retry = { also = [404, 410, 424], attempts = 1 }")
        toml += tables(b=b, c=c)
        toml += '[routes]\nm = { upstream = "a", fallback = ["b/m", "c/m"] }\n'
        async with serving(toml) as proxy:
            b.will(answer(), status(404))
            assert (await call(proxy.port, chat("m"))).status == 200
            assert tried(await proxy.record(1)) == ["a", "b"]
            assert (await call(proxy.port, chat("m"))).status == 404  # b's, which names none
            assert tried(await proxy.record(2)) == ["a", "b"]
            a.will(status(424))  # which may have been billed
            assert (await call(proxy.port, chat("m"))).status == 424
            assert tried(await proxy.record(3)) == ["a"]
            a.will(status(418))
            assert (await call(proxy.port, chat("m"))).status == 418
    assert c.requests == []


REGION = b'{"error":{"code":"unsupported_country_region_territory","message":"Not here."}}'
MODERATION = b'{"error":{"code":403,"message":"Your input was flagged by moderation."}}'


@pytest.mark.parametrize("coding", [b"", b"gzip"])
@pytest.mark.parametrize(
    ("body", "through", "road"),
    [(REGION, False, "aab"), (MODERATION, False, "a"), (REGION, True, "a")],
)
async def test_which_403_leads_on(body: bytes, through: bool, road: str, coding: bytes) -> None:
    """A 403 that is known to be of the account, its region or its permissions leads on, to the next credential
    and upstream; every other one is relayed, and where the caller's own credential goes up each one is.
    """
    headers: list[Pair] = [JSON, (b"Content-Encoding", coding)] if coding else [JSON]
    sent = gzip.compress(body) if coding else body
    async with Upstream() as a, Upstream() as b:
        a.will(answer(403, sent, headers))
        toml = table("a", a.url, "passthrough = true", credential='["sk-1", "sk-2"]')
        toml += table("b", b.url, "passthrough = true")
        toml += f"""
[[surface]]
listen = "127.0.0.1:0"
auth = "{"passthrough" if through else "none"}"
[routes.m]
upstream = "a"
fallback = ["b/m"]
"""
        async with serving(toml, listen=None) as proxy:
            got = await call(proxy.port, chat("m"), headers=[CANARY])
            assert "".join(tried(await proxy.record())) == road
    assert (got.status, got.body) == ((200, OK) if road == "aab" else (403, sent))


async def test_after_a_408_comes_a_fresh_connection() -> None:
    """A 408 on a kept connection may be the connection's fault: what follows there is a fresh one, though
    others are kept.
    """
    async with Upstream() as a, serving(tables(a=a) + '[routes]\nm = "a/m"') as proxy:
        calm(proxy)
        a.will(waiting)
        await asyncio.gather(*(call(proxy.port, chat("m")) for _ in range(3)))
        assert len(a.connections) == 3

        async def step(conn: Conn, seen: Received) -> None:
            await (answer() if conn.index == 3 else status(408))(conn, seen)

        a.will(step)
        assert (await call(proxy.port, chat("m"))).status == 200
        assert len(a.connections) == 4
        assert tried(await proxy.record(4)) == ["a", "a"]


async def test_to_another_route() -> None:
    """A fallback may be a route, with all its targets and its own fallbacks, under their own names."""
    async with Upstream() as a, Upstream() as b, Upstream() as c, Upstream() as d:
        ups = (a, b, c, d)
        for one in ups:
            one.will(status(503))
        toml = (
            tables(a=a, b=b, c=c, d=d)
            + """
[routes.m]
upstream = "a"
fallback = "other"
retry = { attempts = 10 }
[routes.other]
targets = ["b/bee", "c/sea"]
fallback = ["last"]
[routes]
last = "d/dee"
"""
        )
        async with serving(toml) as proxy:
            calm(proxy)
            assert (await call(proxy.port, chat("m"))).status == 503
            assert tried(await proxy.record()) == ["a", "b", "c", "d", "d"]
    models = [orjson.loads(one.requests[0].body)["model"] for one in ups]
    assert models == ["m", "bee", "sea", "dee"]


async def test_once_on_a_5xx() -> None:
    """A 500 is answered by another upstream once: the third is not asked, whoever fails how."""
    async with Upstream() as a, Upstream() as b, Upstream() as c:
        a.will(status(500))
        b.will(status(502, body=b"of b"))
        async with serving(chain(a, b, c)) as proxy:
            got = await call(proxy.port, chat("m"))
            assert (got.status, got.body, len(c.requests)) == (502, b"of b", 0)
            first, second = (await proxy.record())["attempts"]
            assert (first["status"], first["maybe_billed"]) == (500, True)
            assert (second["status"], second["maybe_billed"]) == (502, False)


async def test_another_dialect_is_passed_over() -> None:
    """A target that does not speak what the request does is passed over, in either place."""
    async with Upstream() as a, Upstream() as b, Upstream() as c:
        a.will(status(503))
        toml = table("a", a.url, 'speaks = ["chat", "messages"]')
        toml += table("b", b.url, 'speaks = ["messages"]') + table("c", c.url)
        toml += '[routes]\nm = { upstream = "a", fallback = ["b/m", "c/m"] }\n'
        toml += 'n = { upstream = "b", fallback = ["a/m", "c/m"] }\n'
        async with serving(toml) as proxy:
            assert (await call(proxy.port, chat("m"))).status == 200
            assert tried(await proxy.record(1)) == ["a", "c"]
            assert (await call(proxy.port, chat("n"))).status == 200
            assert tried(await proxy.record(2)) == ["a", "c"]
            assert (await call(proxy.port, chat("m"), MESSAGES)).status == 200
            assert tried(await proxy.record(3)) == ["a", "b"]


async def test_dormant_ones_are_passed_over() -> None:
    """What lacks its variable is passed over; where all lack theirs, the caller is told which."""
    async with Upstream() as a, Upstream() as c:
        a.will(status(503))
        toml = (
            tables(a=a, c=c)
            + """
[routes]
m = { upstream = "a", fallback = ["groq/x", "c/m"] }
n = { upstream = "groq", fallback = ["c/m"] }
o = { upstream = "groq", fallback = ["mistral/x"] }
"""
        )
        async with serving(toml) as proxy:
            for number, (model, names) in enumerate({"m": ["a", "c"], "n": ["c"]}.items(), 1):
                assert (await call(proxy.port, chat(model))).status == 200
                assert tried(await proxy.record(number)) == names
            got = await call(proxy.port, chat("o"))
            assert (got.status, got.code) == (503, "not_configured")
            assert "GROQ_API_KEY" in got.json()["error"]["message"]
            assert tried(await proxy.record(3)) == []


@pytest.mark.parametrize("code", [401, 429, 500, 503])
@pytest.mark.parametrize("first", ["answers", "refuses"])
async def test_a_callers_own_credential_goes_nowhere_else(code: int, first: str) -> None:
    """What a caller presents for itself is for the first target only, whatever happens there."""
    async with Upstream() as a, Upstream() as b:
        a.will(status(code))
        url = a.url if first == "answers" else NOBODY
        toml = table("a", url, "passthrough = true", credential='["sk-a", "sk-a-2"]')
        toml += table("b", b.url, "passthrough = true", "billed = false")
        toml += """
[[surface]]
name = "through"
listen = "127.0.0.1:0"
auth = "passthrough"
[routes.m]
targets = ["a/m", "b/m"]
policy = "weighted"
fallback = ["b/n"]
retry = { ambiguous = true }
"""
        async with serving(toml, listen=None) as proxy:
            calm(proxy)
            for _ in range(3):
                got = await call(proxy.port, chat("m"), headers=[CANARY])
                assert got.status == (code if first == "answers" else 502)
    assert b.connections == []
    assert {r.value(b"authorization") for r in a.requests} <= {CANARY[1]}


@pytest.mark.parametrize("step", [close(), status(500)], ids=["lost", "500"])
async def test_no_way_back(step: Step) -> None:
    """An upstream that may have executed a request has it no second time by way of another one."""
    async with Upstream() as a:
        a.will(step)
        toml = table("a", a.url, credential='["sk-a", "sk-a-2"]') + table("b", NOBODY)
        toml += """
[routes.m]
upstream = "a"
fallback = ["b/m"]
retry = { ambiguous = true }
"""
        async with serving(toml) as proxy:
            calm(proxy)
            await call(proxy.port, chat("m"))
            assert tried(await proxy.record()) == ["a", "b", "b", "b"]
        assert len(a.requests) == 1


# Policies


async def test_weighted() -> None:
    """Targets are tried as often as their weights say, and each one catches what another drops."""
    async with Upstream() as a, Upstream() as b:
        toml = (
            tables(a=a, b=b)
            + """
[routes.m]
targets = [{ to = "a/m", weight = 3 }, "b/m"]
policy = "weighted"
"""
        )
        async with serving(toml) as proxy:
            calm(proxy, random.Random(7).random)
            async with await Client.connect(proxy.port) as client:
                for _ in range(200):
                    await client.send(request(chat("m")))
                    assert (await client.answer()).status == 200
                counts = (len(a.requests), len(b.requests))
                assert 130 <= counts[0] <= 170
                a.will(status(503))
                for _ in range(10):
                    await client.send(request(chat("m")))
                    assert (await client.answer()).status == 200


async def test_sticky() -> None:
    """Who says the same in the sticky header goes to the same target, whoever else comes and goes."""
    async with Upstream() as a, Upstream() as b, Upstream() as c:
        ups = (a, b, c)
        toml = (
            tables(a=a, b=b, c=c)
            + """
[routes.m]
targets = ["a/m", "b/m", "c/m"]
policy = "weighted"
sticky = "X-Session-Id"
"""
        )
        async with serving(toml) as proxy, await Client.connect(proxy.port) as client:

            async def ask(session: int) -> int:
                before = [len(one.requests) for one in ups]
                await client.send(request(chat("m"), headers=[(b"x-session-ID", b"%d" % session)]))
                assert (await client.answer()).status == 200
                return [len(one.requests) - n for one, n in zip(ups, before, strict=True)].index(1)

            places = [await ask(session) for session in range(40)]
            assert set(places) == {0, 1, 2}
            assert [await ask(session) for session in range(40)] == places
            a.will(status(503))

            async def moved(session: int) -> int:
                await client.send(request(chat("m"), headers=[(b"x-session-id", b"%d" % session)]))
                await client.answer()
                record = (await proxy.record(81 + session - first))["attempts"]
                return "abc".index(record[-1]["upstream"])

            first = places.index(0)
            assert await moved(first) in (1, 2)


async def test_least_busy() -> None:
    """The target that does least for us is tried first."""
    async with Upstream() as a, Upstream() as b:
        b.will(hang())
        toml = (
            tables(a=a, b=b)
            + """
[routes]
busy = "b/m"
[routes.m]
targets = ["b/m", "a/m"]
policy = "least-busy"
"""
        )
        async with serving(toml) as proxy:
            waiting = asyncio.create_task(call(proxy.port, chat("busy")))
            await until(lambda: b.requests)
            for _ in range(5):
                assert (await call(proxy.port, chat("m"))).status == 200
            assert (len(a.requests), len(b.requests)) == (5, 1)
            waiting.cancel()
            await until(lambda: b.connections[0].gone.is_set())
            b.will(answer())
            assert (await call(proxy.port, chat("m"))).status == 200
            assert (len(a.requests), len(b.requests)) == (5, 2)


async def test_fastest() -> None:
    """Whoever began to answer soonest, lately, is tried first, once each has been tried."""

    async def slow(conn: Conn, request: Received) -> None:
        await asyncio.sleep(0.15)
        await answer()(conn, request)

    async with Upstream() as a, Upstream() as b:
        a.will(slow)
        toml = tables(a=a, b=b)
        toml += '[routes.m]\ntargets = ["a/m", "b/m"]\npolicy = "fastest"'
        async with serving(toml) as proxy:
            for _ in range(8):
                assert (await call(proxy.port, chat("m"))).status == 200
    assert (len(a.requests), len(b.requests)) == (1, 7)


# Several credentials


TWO = '["sk-one", "sk-two"]'


def keys_seen(upstream: Upstream) -> list[str]:
    """Return which credentials *upstream* was shown, in order."""
    values = [r.value(b"authorization") or b"" for r in upstream.requests]
    return [value.decode().removeprefix("Bearer sk-") for value in values]


async def test_credentials_take_turns(upstream: Upstream) -> None:
    """Of several credentials the one that was used longest ago is presented."""
    toml = table("a", upstream.url, credential='["sk-one", "sk-two", "sk-three"]')
    async with serving(toml + '[routes]\nm = "a/m"') as proxy:
        for _ in range(6):
            assert (await call(proxy.port, chat("m"))).status == 200
    assert keys_seen(upstream) == ["one", "two", "three"] * 2


def refusing(key: bytes, *steps: Step) -> Step:
    """The credential *key* is answered with *steps* in turn, any other one well."""
    turn = iter(steps)

    async def step(conn: Conn, request: Received) -> None:
        mine = key in (request.value(b"authorization") or b"")
        await (next(turn, steps[-1]) if mine else answer())(conn, request)

    return step


async def test_a_limited_credential_rests(upstream: Upstream) -> None:
    """A credential that has reached its limit rests as long as it is told to; its sibling works."""
    toml = table("a", upstream.url, credential=TWO)
    upstream.will(refusing(b"sk-one", status(429, (b"retry-after-ms", b"700")), answer()))
    async with serving(toml + '[routes]\nm = "a/m"') as proxy:
        for _ in range(4):
            got = await call(proxy.port, chat("m"))
            assert (got.status, got.value(b"x-failed")) == (200, None)
        assert keys_seen(upstream) == ["one", "two", "two", "two", "two"]
        assert [a["status"] for a in (await proxy.record(4))["attempts"]] == [200]
        first = proxy.records()[0]["attempts"]
        assert [(a["status"], a["maybe_billed"]) for a in first] == [(429, False), (200, False)]
        await asyncio.sleep(0.8)
        await call(proxy.port, chat("m"))
        assert keys_seen(upstream)[-1] == "one"


async def test_a_refused_credential_rests(upstream: Upstream) -> None:
    """A credential that is refused rests, and the log names it; no caller notices."""
    toml = table("a", upstream.url, credential='["${ONE}", "${TWO}"]')
    upstream.will(refusing(b"sk-one", status(401)))
    env = {"ONE": "sk-one", "TWO": "sk-two"}
    async with serving(toml + '[routes]\nm = "a/m"', env) as proxy:
        for _ in range(3):
            assert (await call(proxy.port, chat("m"))).status == 200
        assert keys_seen(upstream) == ["one", "two", "two", "two"]
        await proxy.record(3)
        (alarm,) = [line for line in proxy.lines() if line["event"] == "credential_refused"]
        assert alarm["upstream"] == "a"
        assert "ONE" in alarm["source"]
        assert b"sk-one" not in proxy.log.read_bytes()


async def test_all_credentials_are_refused(upstream: Upstream) -> None:
    """Where every credential is refused the caller learns that it is not its own key, and no more."""
    toml = table("a", upstream.url, credential=TWO)
    upstream.will(status(401, body=b"Incorrect API key provided: sk-one"))
    async with serving(toml + '[routes]\nm = "a/m"') as proxy:
        for number in (1, 2):
            got = await call(proxy.port, chat("m"))
            assert (got.status, got.code) == (502, "upstream_auth")
            assert b"sk-" not in got.raw
            assert b"Incorrect" not in got.raw
            record = await proxy.record(number)
            assert [a["status"] for a in record["attempts"]][:1] == [401]
        assert sorted(set(keys_seen(upstream))) == ["one", "two"]
        assert connections(proxy) <= 1


DEAD: dict[str, tuple[int, bytes]] = {
    "xai": (400, b'{"code":"invalid-argument","error":"Incorrect API key provided: sk-one."}'),
    "gemini": (
        400,
        b'{"error":{"code":400,"message":"sk-one","details":[{"reason":"API_KEY_INVALID"}]}}',
    ),
    "bedrock": (403, b'{"message":"The security token included in the request is invalid."}'),
}
PACKED: dict[str, tuple[list[Pair], Callable[[bytes], bytes]]] = {
    "plain": ([], bytes),
    "none": ([(b"Content-Encoding", b"none")], bytes),
    "gzip": ([(b"Content-Encoding", b"gzip")], gzip.compress),
    "deflate": ([(b"Content-Encoding", b"deflate")], zlib.compress),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("vendor", DEAD)
async def test_a_dead_credential_in_other_shapes(
    vendor: str, packed: str, upstream: Upstream
) -> None:
    """A dead credential that comes as 400 or 403, packed or not, rests as one that comes as 401 does;
    where there is no other, the caller learns that it is not its own key, and no more.
    """
    code, body = DEAD[vendor]
    headers, pack = PACKED[packed]
    dead = answer(code, pack(body), [JSON, *headers])
    upstream.will(refusing(b"sk-one", dead))
    toml = table("a", upstream.url, credential=TWO) + '[routes]\nm = "a/m"'
    async with serving(toml) as proxy:
        for _ in range(3):
            assert (await call(proxy.port, chat("m"))).status == 200
        assert keys_seen(upstream) == ["one", "two", "two", "two"]
        record = await proxy.record(3)
        assert len(proxy.events("credential_refused")) == 1
        assert [a["status"] for a in proxy.records()[0]["attempts"]] == [code, 200]
        assert not any(a["maybe_billed"] for a in record["attempts"])
        upstream.will(dead)
        got = await call(proxy.port, chat("m"))
        assert (got.status, got.code) == (502, "upstream_auth")
        assert got.value(b"x-should-retry") == b"false"
        assert pack(body) not in got.raw
        assert b"sk-" not in got.raw


@pytest.mark.parametrize("vendor", DEAD)
async def test_a_dead_credential_of_a_caller(vendor: str, upstream: Upstream) -> None:
    """Where the caller's own credential goes up, it is the caller's to know that it is dead."""
    code, body = DEAD[vendor]
    upstream.will(answer(code, body))
    toml = table("a", upstream.url, "passthrough = true", credential=TWO) + '[routes]\nm = "a/m"\n'
    toml += '[[surface]]\nname = "through"\nlisten = "127.0.0.1:0"\nauth = "passthrough"\n'
    async with serving(toml, listen=None) as proxy:
        got = await call(proxy.port, chat("m"), headers=[CANARY])
        assert (got.status, got.body, len(upstream.requests)) == (code, body, 1)


@pytest.mark.parametrize("vendor", DEAD)
async def test_a_dead_credential_where_no_model_is(vendor: str, upstream: Upstream) -> None:
    """By way of `[unrouted]`, too, and where an upload cannot be sent again, nothing of it is shown."""
    code, body = DEAD[vendor]
    upstream.will(refusing(b"sk-one", answer(code, body)))
    toml = (
        table("a", upstream.url, credential=TWO) + '[routes]\nm = "a/m"\n[unrouted]\nfiles = "a"\n'
    )
    async with serving(toml) as proxy:
        got = await call(proxy.port, b"x" * 1000, **UPLOAD)
        assert (got.status, got.code) == (502, "upstream_auth")
        assert (await call(proxy.port, b"x" * 1000, **UPLOAD)).status == 200
        assert keys_seen(upstream) == ["one", "two"]


async def test_a_403_that_is_no_credentials(upstream: Upstream) -> None:
    """A 403 that refuses what was asked is the caller's to see, and no credential's fault."""
    body = b'{"error":{"message":"Your input was flagged.","code":403}}'
    upstream.will(answer(403, body))
    toml = table("a", upstream.url, credential=TWO) + '[routes]\nm = "a/m"'
    async with serving(toml) as proxy:
        got = await call(proxy.port, chat("m"))
        assert (got.status, got.body, len(upstream.requests)) == (403, body, 1)


FIELD = b'{"error":{"message":"invalid api key: Extra inputs are not permitted"}}'
MODEL = b'{"error":{"message":"invalid api key is not a valid model ID","code":400}}'
MINE: dict[str, tuple[int, bytes, bytes]] = {
    "a field": (400, FIELD, b'{"model":"m","Invalid API key":1}'),
    "a field, escaped": (400, FIELD, b'{"model":"m","\\u0069nvalid api key":1}'),
    "a model": (400, MODEL, chat("invalid api key")),
    "a model that is not ours": (403, b'{"error":{"code":"model_not_found"}}', chat("m")),
    "more than we can pay": (402, b'{"message":"This request requires more credits"}', chat("m")),
}
"""What callers can bring a vendor to say: the status, what it says, and the request that did it."""


@pytest.mark.parametrize("how", MINE)
async def test_a_caller_lets_no_credential_rest(how: str, upstream: Upstream) -> None:
    """What a caller can make a vendor say leads on, and lets no credential rest, that others need."""
    code, body, request = MINE[how]
    upstream.will(refusing(b"sk-one", answer(code, body), answer()))
    toml = table("a", upstream.url, credential=TWO) + '[routes]\n"*" = "a/*"'
    async with serving(toml) as proxy:
        assert (await call(proxy.port, request)).status == 200
        assert keys_seen(upstream) == ["one", "two"]
        assert (await call(proxy.port, chat("m"))).status == 200
        assert keys_seen(upstream)[2:] == ["one"]
        await proxy.record(2)
        assert proxy.events("credential_refused") == []


@pytest.mark.parametrize("code", [402, 429])
async def test_a_callers_own_limit_lets_nothing_rest(code: int, upstream: Upstream) -> None:
    """Where the caller's own credential goes up, its limit says nothing of ours."""
    toml = table("a", upstream.url, "passthrough = true", credential=TWO) + '[routes]\nm = "a/m"\n'
    ours = closed_port()
    for auth, port in (("passthrough", 0), ("none", ours)):
        toml += f'[[surface]]\nname = "{auth}"\nlisten = "127.0.0.1:{port}"\nauth = "{auth}"\n'
    upstream.will(status(code, (b"Retry-After", b"30")), answer())
    async with serving(toml, listen=None) as proxy:
        assert (await call(proxy.port, chat("m"), headers=[CANARY])).status == code
        for _ in range(2):
            assert (await call(ours, chat("m"))).status == 200
        seen = sorted(request.value(b"authorization") or b"" for request in upstream.requests[1:])
        assert seen == [b"Bearer sk-one", b"Bearer sk-two"]


# Who rests


async def test_an_open_breaker() -> None:
    """Whose breaker is open is not connected to; then one is let through, and two successes close it."""
    async with Upstream() as a, Upstream() as b, serving(chain(a, b)) as proxy:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(breaker, "OPEN_SECONDS", 0.3)
            a.will(close())
            count = 0

            async def ask() -> list[str]:
                nonlocal count
                count += 1
                await call(proxy.port, chat("m"))
                return tried(await proxy.record(count))

            for _ in range(5):
                assert await ask() == ["a"]
            opened = time.monotonic()
            assert len(a.connections) == 5
            assert await ask() == ["b"]
            assert len(a.connections) == 5
            # One is let through when its time is over, and one only
            await asyncio.sleep(max(0.0, opened + 0.35 - time.monotonic()))
            seen = asyncio.Event()

            async def hold(conn: Conn, request: Received) -> None:
                await seen.wait()
                await answer()(conn, request)

            a.will(hold, answer())
            probe = asyncio.create_task(call(proxy.port, chat("m")))
            await until(lambda: len(a.connections) == 6)
            for _ in range(3):
                assert (await call(proxy.port, chat("m"))).status == 200
            assert len(a.connections) == 6
            seen.set()
            assert (await probe).status == 200
            count += 4
            # One more success, and a single failure does no harm any more
            assert await ask() == ["a"]
            a.will(close())
            await ask()
            a.will(answer())
            assert await ask() == ["a"]


async def test_a_probe_that_fails() -> None:
    """A probe that fails opens the breaker again, for twice as long."""
    async with Upstream() as a, Upstream() as b, serving(chain(a, b)) as proxy:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(breaker, "OPEN_SECONDS", 0.3)
            a.will(close())
            for _ in range(5):
                await call(proxy.port, chat("m"))
            await asyncio.sleep(0.35)
            assert (await call(proxy.port, chat("m"))).status == 502
            failed = time.monotonic()
            assert len(a.connections) == 6
            a.will(answer())
            while len(a.connections) == 6:
                assert (await call(proxy.port, chat("m"))).status == 200
                await asyncio.sleep(0.02)
            assert 0.55 <= time.monotonic() - failed < 1.5


async def test_a_probe_is_not_ended_by_another() -> None:
    """While a probe is on its way none other is made, though what began before it comes to its end."""
    async with Upstream() as a, Upstream() as b, serving(chain(a, b)) as proxy:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(breaker, "OPEN_SECONDS", 0.2)
            go = asyncio.Event()

            async def long(conn: Conn, request: Received) -> None:
                await conn.send(head(200, [SSE, CHUNKED]))
                await go.wait()
                await conn.send(chunk(DONE) + b"0\r\n\r\n")

            a.will(long, *[close()] * 5, hang())
            old = asyncio.create_task(call(proxy.port, chat("m", stream=True)))
            await until(lambda: a.requests)
            for _ in range(5):
                assert (await call(proxy.port, chat("m"))).status == 502
            await asyncio.sleep(0.25)
            probe = asyncio.create_task(call(proxy.port, chat("m")))
            await until(lambda: len(a.requests) == 7)
            go.set()
            assert (await old).whole
            for _ in range(3):
                call_ = call(proxy.port, chat("m"), seconds=2)
                assert (await call_).status == 200
            assert (len(a.requests), len(b.requests)) == (7, 3)
            probe.cancel()
            await until(lambda: a.connections[-1].gone.is_set())


async def test_half_of_twenty() -> None:
    """When half of twenty answers are 5xx the upstream rests, and not before; 4xx never count."""
    async with Upstream() as a, Upstream() as b, serving(chain(a, b)) as proxy:
        a.will(*[status(400)] * 10, *[status(501)] * 10)
        for _ in range(20):
            assert (await call(proxy.port, chat("m"))).status in (400, 501)
        assert b.requests == []
        assert (await call(proxy.port, chat("m"))).status == 200
        assert (len(a.requests), len(b.requests)) == (20, 1)


async def test_many_4xx() -> None:
    """However often callers are wrong, their upstream is not to blame."""
    async with Upstream() as a, Upstream() as b:
        a.will(status(404))
        async with serving(chain(a, b)) as proxy:
            for _ in range(40):
                assert (await call(proxy.port, chat("m"))).status == 404
    assert b.requests == []


async def test_a_route_with_one_upstream_is_never_dark() -> None:
    """The only upstream is tried whatever its breaker says; but not for a second, if it refused."""
    port = closed_port()
    toml = table("a", f"http://127.0.0.1:{port}/v1") + '[routes]\nm = "a/m"'
    async with serving(toml) as proxy:
        calm(proxy)
        for number in (1, 2):
            await call(proxy.port, chat("m"))
            assert tried(await proxy.record(number)) == ["a"] * 3
        refused_at = time.monotonic()
        with within(0.3):
            got = await call(proxy.port, chat("m"))
        assert (got.status, got.code) == (502, "upstream_connect")
        assert got.value(b"retry-after") == b"1"
        assert tried(await proxy.record(3)) == []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head(200, [JSON, (b"Content-Length", b"11")]) + OK)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", port):
            await asyncio.sleep(max(0.0, refused_at + 1.05 - time.monotonic()))
            assert (await call(proxy.port, chat("m"))).body == OK


async def test_a_busy_single_upstream_is_never_dark(proxy: Proxy, upstream: Upstream) -> None:
    """The only upstream is asked however often it has answered with an error."""
    upstream.will(status(500))
    for _ in range(30):
        assert (await call(proxy.port, chat())).status == 500
    upstream.will(close())
    for _ in range(10):
        assert (await call(proxy.port, chat())).status == 502
    upstream.will(answer())
    assert (await call(proxy.port, chat())).status == 200


async def test_all_rest() -> None:
    """Where all rest one request is let through, and the others are told how long to wait."""
    async with Upstream() as a, Upstream() as b:
        a.will(close())
        b.will(close())
        toml = chain(a, b) + "retry = { ambiguous = true }"
        async with serving(toml) as proxy:
            for _ in range(5):
                assert (await call(proxy.port, chat("m"))).status == 502
            assert (len(a.connections), len(b.connections)) == (5, 5)
            a.will(hang())
            one = asyncio.create_task(call(proxy.port, chat("m")))
            await until(lambda: len(a.connections) == 6)  # which failed longest ago
            for _ in range(5):
                got = await call(proxy.port, chat("m"))
                assert (got.status, got.code) == (503, "upstream_unavailable")
                assert 25 <= int(got.value(b"retry-after") or 0) <= 30
            assert (len(a.connections), len(b.connections)) == (6, 5)
            record = await proxy.record(10, under_way=1)
            assert (record["attempts"], record["outcome"]) == ([], "upstream_error")
            one.cancel()
            await until(lambda: a.connections[5].gone.is_set())
            a.will(answer())
            assert (await call(proxy.port, chat("m"))).status == 200


@pytest.mark.parametrize("code", [503, 529])
async def test_retry_budget(proxy: Proxy, upstream: Upstream, code: int) -> None:
    """A crowd at an upstream that is always busy makes it hardly busier."""
    arrived = 0

    async def step(conn: Conn, request: Received) -> None:
        nonlocal arrived
        arrived += 1
        await until(lambda: arrived >= 100)
        await status(code)(conn, request)

    upstream.will(step)
    answers = await asyncio.gather(*(call(proxy.port, chat()) for _ in range(100)))
    assert {got.status for got in answers} == {code}
    assert 100 < len(upstream.requests) <= 123
    await idle(proxy)


async def test_retry_budget_elsewhere() -> None:
    """A crowd whose upstream fails does not run over the next one, which is in trouble itself."""
    async with Upstream() as a, Upstream() as b:
        a.will(status(503))
        b.will(status(503))
        async with serving(chain(a, b)) as proxy:
            answers = await asyncio.gather(*(call(proxy.port, chat("m")) for _ in range(100)))
            assert {got.status for got in answers} == {503}
    # A failure at `a` becomes at most one more send, at `a` or at `b`, and one again there.
    assert len(a.requests) + len(b.requests) <= 300
    assert len(a.requests) <= 123


# A 400 that is not the last word


LONG: dict[str, bytes] = {
    "openai": orjson.dumps(
        {
            "error": {
                "message": "This model's maximum context length is 8192 tokens.",
                "type": "invalid_request_error",
                "param": "messages",
                "code": "context_length_exceeded",
            }
        }
    ),
    "anthropic": orjson.dumps(
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "prompt is too long: 213462 tokens > 200000 maximum",
            },
        }
    ),
    "vllm": b'{"object":"error","message":"This model\'s maximum context length is 4096 tokens","code":400}',
    "cohere": b'{"error_type":"TOO_MANY_TOKENS","message":"too many tokens: over by 9."}',
    "bedrock": b'{"message":"Input is too long for requested model."}',
}
OTHER = orjson.dumps({"error": {"message": "messages is missing", "code": "invalid_value"}})


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("switch", ["on_context_length = true", ""])
@pytest.mark.parametrize("form", [*LONG, "other"])
async def test_context_length(form: str, switch: str, packed: str) -> None:
    """Where the route says so, and only there, a context too long for one goes on to the next."""
    headers, pack = PACKED[packed]
    body = pack(LONG.get(form, OTHER))
    path = MESSAGES if form == "anthropic" else CHAT
    async with Upstream() as a, Upstream() as b:
        a.will(answer(400, body, [JSON, *headers], b"Bad Request"))
        async with serving(chain(a, b) + switch) as proxy:
            got = await call(proxy.port, chat("m"), path)
            goes_on = bool(switch) and form in LONG
            assert (got.status, len(b.requests)) == ((200, 1) if goes_on else (400, 0))
            assert got.body == (OK if goes_on else body)
            assert len(a.requests) == 1
            b.will(answer(400, body))
            last = await call(proxy.port, chat("m"), path)
            assert (last.status, last.body) == (400, body)


async def test_context_length_of_a_streamed_400() -> None:
    """A 400 whose body comes slowly is waited for a moment, and then relayed whole."""

    async def slow(conn: Conn, request: Received) -> None:
        length = (b"Content-Length", b"%d" % len(LONG["openai"]))
        await conn.send(head(400, [JSON, length]) + LONG["openai"][:20])
        await asyncio.sleep(0.8)
        await conn.send(LONG["openai"][20:])

    async with Upstream() as a, Upstream() as b:
        a.will(slow)
        async with serving(chain(a, b) + "on_context_length = true") as proxy:
            got = await call(proxy.port, chat("m"))
            assert (got.status, got.body, b.requests) == (400, LONG["openai"], [])


# A 200 that is none


def named(kind: str, **data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(data))


GOES_ON: dict[str, tuple[str, bytes]] = {
    "openai, no code": (
        CHAT,
        event(b'{"error":{"message":"The server had an error","type":"server_error","code":null}}'),
    ),
    "openai, int": (CHAT, event(b'{"error":{"message":"x","code":503}}')),
    "openai, str": (CHAT, event(b'{"error":{"message":"x","code":"502"}}')),
    "openai, limit": (
        CHAT,
        event(b'{"error":{"message":"x","type":"tokens","code":"rate_limit_exceeded"}}'),
    ),
    "spaces": (CHAT, event(b'{ "error" : { "message" : "x", "code" : 529 } }')),
    "vllm": (
        CHAT,
        event(b'{"object":"error","message":"x","type":"InternalServerError","code":500}'),
    ),
    "vllm, new": (
        CHAT,
        event(b'{"error":{"message":"x","type":"InternalServerError","code":500}}'),
    ),
    "gemini": (
        CHAT,
        event(b'{"error":{"code":429,"message":"x","status":"RESOURCE_EXHAUSTED"}}'),
    ),
    "behind comments": (
        CHAT,
        b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\n\n" + error_event(502),
    ),
    "behind an empty line": (CHAT, b"\n" + error_event(502)),
    "crlf": (CHAT, error_event(502).replace(b"\n", b"\r\n")),
    "anthropic": (
        MESSAGES,
        named("error", type="error", error={"type": "overloaded_error", "message": "Overloaded"}),
    ),
    "anthropic, api": (
        MESSAGES,
        named("error", type="error", error={"type": "api_error", "message": "x"}),
    ),
    "responses": (
        RESPONSES,
        named("error", type="error", code="server_is_overloaded", message="x", param=None),
    ),
    "responses, limit": (
        RESPONSES,
        named("error", type="error", code="rate_limit_exceeded", message="x", param=None),
    ),
    "responses, failed": (
        RESPONSES,
        named("response.failed", response={"error": {"code": "server_error", "message": "x"}}),
    ),
}
STAYS: dict[str, tuple[str, bytes]] = {
    "openai, 400": (CHAT, event(b'{"error":{"message":"x","code":400}}')),
    "openai, 404": (CHAT, event(b'{"error":{"message":"x","code":"404"}}')),
    "openai, the caller's": (
        CHAT,
        event(b'{"error":{"message":"x","type":"invalid_request_error","code":"invalid_value"}}'),
    ),
    "vllm, 400": (
        CHAT,
        event(b'{"object":"error","message":"x","type":"BadRequestError","param":null,"code":400}'),
    ),
    "anthropic, the caller's": (
        MESSAGES,
        named("error", type="error", error={"type": "invalid_request_error", "message": "x"}),
    ),
    "responses, the caller's": (
        RESPONSES,
        named("error", type="error", code="invalid_prompt", message="x", param=None),
    ),
    "a chunk": (CHAT, event(b'{"choices":[{"delta":{"content":"\\"error\\":{}"}}]}')),
    "no error": (CHAT, event(b'{"error":null,"choices":[]}')),
    "no event": (CHAT, b""),
}


def _end(path: str) -> bytes:
    return {
        CHAT: DONE,
        MESSAGES: named("message_stop", type="message_stop"),
        RESPONSES: named("response.completed", type="response.completed"),
    }[path]


@pytest.mark.parametrize("form", [*GOES_ON, *STAYS])
async def test_peek(form: str) -> None:
    """A stream that begins with an upstream's error, however packed, is another's; any other passes."""
    path, first = GOES_ON.get(form) or STAYS[form]
    good = event(b'{"choices":[]}') + _end(path)
    whole = [first, _end(path)]
    split = [first[:9], first[9:-1], first[-1:] + _end(path)]
    async with Upstream() as a, Upstream() as b, serving(chain(a, b) + "peek = true") as proxy:
        calm(proxy)
        b.will(stream(good))
        for pieces in (whole, split):
            a.will(stream(*[piece for piece in pieces if piece], pause=0.03))
            a.requests.clear()
            b.requests.clear()
            got = await call(proxy.port, chat("m", stream=True), path)
            assert (got.status, got.whole) == (200, True)
            elsewhere = form in GOES_ON
            assert got.body == (good if elsewhere else first + _end(path))
            assert (len(a.requests), len(b.requests)) == (1, int(elsewhere))
            assert proxy.running is not None
            for target in proxy.running.snapshot.routes.routes[0].targets():
                for choice in proxy.running._opener.scores.choices(target):
                    choice.health.resting_until = 0.0  # else a limit lets it rest


@pytest.mark.parametrize("event_", [b"data: " + b"x" * 200_000 + b"\n\n", event(b"1")])
async def test_peek_lets_pass(event_: bytes) -> None:
    """What is looked at passes byte for byte, however long its first event is."""
    async with Upstream() as a:
        a.will(stream(b": hello\n\n", event_, event(b"\xff\x00"), DONE))
        async with serving(chain(a) + "peek = true") as proxy:
            got = await call(proxy.port, chat("m", stream=True))
            assert got.body == b": hello\n\n" + event_ + event(b"\xff\x00") + DONE
            assert got.whole


async def test_peek_has_no_patience() -> None:
    """A stream whose first event takes its time is relayed after half a second, error or not."""

    async def slow(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]) + chunk(error_event(503)[:10]))
        await asyncio.sleep(1.0)
        await conn.send(chunk(error_event(503)[10:]) + b"0\r\n\r\n")

    async with Upstream() as a, Upstream() as b:
        a.will(slow)
        async with serving(chain(a, b) + "peek = true") as proxy:
            async with await Client.connect(proxy.port) as client:
                await client.send(request(chat("m", stream=True)))
                with within(0.95, 0.45):
                    await client.reader.readuntil(error_event(503)[:10])
                rest = await client.reader.readuntil(b"0\r\n\r\n")
                assert error_event(503)[10:] in rest
            record = await proxy.record()
            assert (tried(record), record["error"]) == (["a"], "upstream_error_event")


@pytest.mark.parametrize("rest", [b"zz\r\n", chunk(b"data: {") + b"zz\r\n", chunk(b"data: {"), b""])
async def test_peek_at_what_breaks(rest: bytes) -> None:
    """A stream that breaks while it is looked at is told like any other that breaks."""

    async def breaking(conn: Conn, request: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]))
        await asyncio.sleep(0.05)
        await conn.send(rest)
        conn.keep = False

    async with Upstream() as a, Upstream() as b:
        a.will(breaking)
        async with serving(chain(a, b) + "peek = true") as proxy:
            got = await call(proxy.port, chat("m", stream=True))
            assert (got.status, got.whole, b.requests) == (200, False, [])
            half = (
                b"data: {" if b"data" in rest else b""
            )  # nothing is added behind half of an event
            assert got.body == half or (b'"code":"upstream_disconnected"' in got.body and not half)
            record = await proxy.record()
            assert (record["outcome"], record["error"]) == ("upstream_cut", "upstream_disconnected")


async def test_peek_only_at_what_can_be_read() -> None:
    """An answer that is no stream, or is encoded, passes as it is."""
    body = orjson.dumps({"error": {"message": "theirs", "code": 503}})
    async with Upstream() as a, Upstream() as b, serving(chain(a, b) + "peek = true") as proxy:
        a.will(answer(200, body))
        assert (await call(proxy.port, chat("m"))).body == body
        packed: Pair = (b"Content-Encoding", b"gzip")
        a.will(stream(b"\x1f\x8b" + error_event(503), headers=[SSE, packed]))
        got = await call(proxy.port, chat("m", stream=True))
        assert got.body == b"\x1f\x8b" + error_event(503)
    assert b.requests == []


# The client leaves


async def test_gone_in_the_wait() -> None:
    """A client that leaves between two attempts is not asked for again."""
    async with Upstream() as a, Upstream() as b:
        a.will(status(503, (b"retry-after-ms", b"900")))
        async with serving(tables(a=a, b=b) + '[routes]\nm = "a/m"') as proxy:
            client = await Client.connect(proxy.port)
            await client.send(request(chat("m")))
            await until(lambda: a.requests)
            await asyncio.sleep(0.2)
            client.close()
            record = await proxy.record()
            assert (record["outcome"], record["status"]) == ("client_gone", 499)
            assert tried(record) == ["a"]
            await idle(proxy)
            await asyncio.sleep(2.0)
            assert len(a.requests) == 1


@pytest.mark.parametrize("where", ["connect", "head", "peek"])
async def test_gone_on_the_way(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that leaves during an attempt ends it within a second, and there is no other."""
    begun = head(200, [SSE, CHUNKED]) + chunk(b"data: {")
    step = {"head": hang(), "peek": raw(begun, then="hang")}.get(where)
    place = blackhole if step is None else scripted(step)
    async with place(Room(tmp_path, monkeypatch)) as a, Upstream() as b:
        toml = table("a", a.url) + table("b", b.url, "billed = false")
        toml += '[routes.m]\nupstream = "a"\nfallback = ["b/m"]\npeek = true\n'
        async with serving(toml) as proxy:
            assert proxy.running is not None
            gate = proxy.running.gate
            client = await Client.connect(proxy.port)
            await client.send(request(chat("m", stream=True)))
            await until(lambda: gate.inflight == 1 and (step is None or a.got()))
            await asyncio.sleep(0.1)
            client.close()
            await until(lambda: gate.inflight == 0 and connections(proxy) == 0, 1)
            await idle(proxy)
            record = await proxy.record()
            assert (record["outcome"], tried(record)) == ("client_gone", ["a"])
            await asyncio.sleep(0.3)
    assert b.connections == []


# What is left behind


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_failed_answer_frees_its_connection(proxy: Proxy, upstream: Upstream) -> None:
    """A failed answer that is complete leaves a connection that can be used again."""
    calm(proxy)
    upstream.will(*[status(503), answer()] * 5)
    for _ in range(5):
        assert (await call(proxy.port, chat())).status == 200
    assert (len(upstream.requests), len(upstream.connections)) == (10, 1)


@pytest.mark.parametrize("size", [200_000, 260_000, 262_145, 270_000, 300_000, 700_000])
async def test_a_failed_answer_of_any_size(proxy: Proxy, upstream: Upstream, size: int) -> None:
    """However long a failed answer is, the next one comes through, be it there or on a new connection,
    and so does the failed one itself where it is the last word.
    """
    body = os.urandom(1000) * (size // 1000) + b"x" * (size % 1000)
    waits = (b"retry-after-ms", b"150")
    upstream.will(status(503, waits, body=body), answer(), status(503, waits, body=body))
    assert (await call(proxy.port, chat())).body == OK
    got = await call(proxy.port, chat())
    assert (got.status, got.body == body, got.whole) == (503, True, True)
    upstream.will(answer())
    assert (await call(proxy.port, chat())).body == OK


@pytest.mark.parametrize(
    "rest",
    [
        head(503, [JSON, (b"Content-Length", b"100")]) + b"half",
        head(503, [JSON, CHUNKED]) + chunk(b"half"),
        head(503, [JSON]) + b"until it closes",
        head(503, [JSON, (b"Content-Length", b"20000000")]) + b"x" * 1_000_000,
    ],
)
async def test_a_failed_answer_that_is_not_complete(rest: bytes) -> None:
    """A failed answer that is still coming is left, with its connection, when another one is asked for."""
    async with Upstream() as a, Upstream() as b, serving(chain(a, b)) as proxy:
        await call(proxy.port, chat("m"))
        before = descriptors()
        for number in range(5):
            a.will(raw(rest, then="hang"))
            assert (await call(proxy.port, chat("m"))).status == 200
            async with asyncio.timeout(2):
                await a.connections[number].gone.wait()
        assert connections(proxy) == 1
        await until(lambda: descriptors() <= before, 2)


async def test_a_big_failed_answer() -> None:
    """Twenty megabytes of an error are relayed whole if they are the last word, else they are nobody's."""
    big = os.urandom(1000) * 20_000
    async with Upstream() as a, Upstream() as b:
        a.will(answer(503, big, FAILED))
        toml = chain(a, b) + '[routes.n]\nupstream = "a"'
        async with serving(toml) as proxy:
            calm(proxy)
            got = await call(proxy.port, chat("m"))
            assert (got.body, got.value(b"x-failed")) == (OK, None)
            got = await call(proxy.port, chat("n"))
            assert (got.status, got.body == big) == (503, True)
            assert len(a.requests) == 3


async def test_a_failed_answer_is_not_gathered() -> None:
    """While we wait, an upstream does not fill our memory with an error that has no end."""
    sent = 0

    async def endless(conn: Conn, request: Received) -> None:
        nonlocal sent
        await conn.send(head(503, [JSON, CHUNKED, (b"retry-after-ms", b"800")]))
        conn.keep = False
        while True:
            await conn.send(chunk(b"x" * 100_000))
            sent += 100_000

    async with Upstream() as a:
        a.will(endless, answer())
        async with serving(tables(a=a) + '[routes]\nm = "a/m"') as proxy:
            assert (await call(proxy.port, chat("m"))).status == 200
    assert sent < 20_000_000


async def test_one_answer_of_one(upstream: Upstream) -> None:
    """Nothing of a failed attempt is in the answer: neither headers nor ids, and there is one line of it."""
    async with Upstream() as b:
        upstream.will(
            answer(503, b"a" * 50, [JSON, (b"x-request-id", b"a-id"), (b"Retry-After", b"7")])
        )
        b.will(answer(200, OK, [JSON, (b"x-request-id", b"b-id"), (b"X-Own", b"1")]))
        async with serving(chain(upstream, b)) as proxy:
            got = await call(proxy.port, chat("m"))
            record = await proxy.record()
    names = [name.lower() for name, _ in got.headers]
    assert names == [
        b"content-type",
        b"x-request-id",
        b"x-own",
        b"content-length",
        b"x-trunkline-id",
    ]
    assert got.value(b"x-request-id") == b"b-id" == record["upstream_request_id"].encode()
    assert (record["status"], record["upstream"]) == (200, "b")


# What is passed on as it comes


UPLOAD: dict[str, Any] = {"path": "/v1/files", "headers": [(b"Content-Type", b"text/plain")]}


async def test_an_upload_that_was_not_begun() -> None:
    """An upload whose upstream was not reached is tried again: nothing of it has been read."""
    port, body = closed_port(), os.urandom(3_000_000)
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun = await reader.readuntil(b"\r\n\r\n")
        length = int(begun.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        received.append(await reader.readexactly(length))
        writer.write(head(200, [JSON, (b"Content-Length", b"11")]) + OK)
        await writer.drain()
        writer.close()

    toml = table("a", f"http://127.0.0.1:{port}/v1")
    toml += '[routes]\nm = "a/m"\n[unrouted]\nfiles = "a"\n'
    async with serving(toml) as proxy:
        calm(proxy)
        got = await call(proxy.port, body, **UPLOAD)
        assert (got.status, got.code) == (502, "upstream_connect")
        assert tried(await proxy.record()) == ["a"] * 3
        waits = iter([0.0, 0.9, 0.9])

        def chance() -> float:
            return next(waits, 0.9)

        calm(proxy, chance)
        server = None

        async def come_up() -> None:
            nonlocal server
            assert proxy.running is not None
            gate = proxy.running.gate
            await until(lambda: gate.inflight == 1)
            server = await asyncio.start_server(serve, "127.0.0.1", port)

        task = asyncio.create_task(come_up())
        got = await call(proxy.port, body, **UPLOAD)
        await task
        assert server is not None
        server.close()
        assert got.body == OK
        assert received == [body]
        assert len((await proxy.record(2))["attempts"]) > 1


@pytest.mark.parametrize("code", [401, 408, 429, 500, 503, 529])
async def test_an_upload_that_was_begun(upstream: Upstream, code: int) -> None:
    """An upload that has been read from cannot be sent again: its answer is relayed, whatever it is."""
    upstream.will(status(code, (b"Retry-After", b"0")))
    toml = table("a", upstream.url, "billed = false", credential=TWO)
    toml += '[routes]\nm = "a/m"\n[unrouted]\nfiles = "a"\n'
    async with serving(toml) as proxy:
        calm(proxy)
        got = await call(proxy.port, b"x" * 1000, **UPLOAD)
        assert got.status == (502 if code == 401 else code)
        assert tried(await proxy.record()) == ["a"]
        assert connections(proxy) <= 1
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("death", [close, reset])
async def test_an_upload_whose_connection_dies(
    upstream: Upstream, death: Callable[[], Step]
) -> None:
    """An upload is never sent on a used connection, and never twice."""
    upstream.will(answer(), death())
    toml = table("a", upstream.url, "billed = false")
    toml += '[routes]\nm = "a/m"\n[unrouted]\nfiles = "a"\n'
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat("m"))).status == 200
        got = await call(proxy.port, b"x" * 1000, **UPLOAD)
        assert (got.status, got.code) == LOST
    assert [r.connection for r in upstream.requests] == [0, 1]


async def test_what_has_no_body_is_asked_again(upstream: Upstream) -> None:
    """A request without a body goes to the sibling credential like any other."""
    upstream.will(refusing(b"sk-one", status(429)))
    toml = table("a", upstream.url, credential=TWO)
    toml += '[routes]\nm = "a/m"\n[unrouted]\nfiles = "a"\n'
    async with serving(toml) as proxy:
        got = await call(proxy.port, path="/v1/files/file-1", method="GET")
        assert got.status == 200
    assert keys_seen(upstream) == ["one", "two"]


SWITCH: tuple[Pair, ...] = (
    (b"Connection", b"Upgrade"),
    (b"Upgrade", b"websocket"),
    (b"Sec-WebSocket-Version", b"13"),
    (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
)


@pytest.mark.parametrize("first", ["refused", "busy", "lost"])
async def test_a_websocket_elsewhere(first: str) -> None:
    """A WebSocket is opened where it can be: elsewhere, if one is not reached, or has no room; but not
    where the first may have opened it.
    """

    async def switch(conn: Conn, request: Received) -> None:
        await conn.send(head(101, SWITCH[:2], b"Switching Protocols"))
        await conn.send(b"\x81\x02hi")
        await conn.left(30)
        conn.keep = False

    async with Upstream() as a, Upstream() as b:
        a.will(status(503) if first == "busy" else close())
        b.will(switch)
        toml = table("a", NOBODY if first == "refused" else a.url) + table("b", b.url)
        toml += '[routes]\nm = { upstream = "a", model = "am", fallback = ["b/bm"] }'
        async with serving(toml) as proxy, await Client.connect(proxy.port) as client:
            get = request(path="/v1/realtime?model=m", method="GET", headers=[CANARY, *SWITCH])
            await client.send(get)
            async with asyncio.timeout(5):
                begun = await client.reader.readuntil(b"\r\n\r\n")
                if first == "lost":
                    assert begun.startswith(b"HTTP/1.1 502 ")
                    assert b.connections == []
                    return
                assert begun.startswith(b"HTTP/1.1 101 ")
                assert await client.reader.readexactly(4) == b"\x81\x02hi"
            client.close()
            await until(lambda: b.connections[0].gone.is_set())
            record = await proxy.record()
            assert (tried(record), record["status"]) == (["a", "b"], 101)
    assert b.requests[0].target == "/v1/realtime?model=bm"
    assert b.requests[0].value(b"authorization") == b"Bearer sk-b"


# Nobody hears of it


async def test_failures_are_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails, in whatever order, the process says so in its log and nowhere else."""
    deaths = [close(), reset(), raw(b"nonsense"), hang(), status(503), status(429), status(401)]
    deaths += [
        status(500),
        raw(head(503, [JSON, (b"Content-Length", b"9")]) + b"half", then="hang"),
    ]
    deaths += [stream(error_event(503)), stream(b"data: {", end="reset"), answer()]
    async with blackhole(Room(tmp_path, monkeypatch)) as nowhere, Upstream() as a, Upstream() as b:
        a.will(*deaths)
        b.will(status(503, (b"retry-after-ms", b"50")), stream(b"data: {", end="cut"), answer())
        toml = table("a", a.url) + table("b", b.url) + table("c", NOBODY)
        toml += table("d", nowhere.url, nowhere.more)
        toml += """
[defaults]
timeout = { first_byte = "200ms" }
retry = { ambiguous = true }
keepalive = "20ms"
[routes.m]
targets = ["a/m", "b/m"]
fallback = ["c/m", "d/m"]
peek = true
[routes]
c = { upstream = "c", fallback = ["d/m", "a/m"] }
d = { upstream = "d", fallback = ["b/m"] }
"""
        async with process(toml) as proxy:
            for number in range(16):
                body = chat("mmcd"[number % 4], stream=True)
                if number % 5 < 4:
                    await call(proxy.port, body)
                else:
                    async with await Client.connect(proxy.port) as client:
                        await client.send(request(body))
                        await asyncio.sleep(0.05)
            await proxy.record(16, 10)


# Nobody is billed twice


async def test_nothing_is_sent_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever mixture of failures befalls a crowd, no request is sent whole to two upstreams, or twice
    to one, unless the answer to the first was one that the table lets another try follow.
    """
    monkeypatch.setattr(breaker, "FAULTS", 10**6)
    monkeypatch.setattr(breaker, "ANSWERS", 10**6)
    dice = random.Random(11)
    fates: dict[str, list[str]] = {}
    ends: dict[str, Step] = {
        "ok": answer(),
        "close": close(),
        "reset": reset(),
        "503": status(503),
        "500": status(500),
        "429": status(429, (b"retry-after-ms", b"1")),
        "400": status(400),
        "garbage": raw(b"nonsense\r\n\r\n"),
        "cut": raw(head(200, [JSON, (b"Content-Length", b"9")]) + b"half"),
        "late": hang(),
    }

    def fateful() -> Step:
        used: set[int] = set()

        async def step(conn: Conn, request: Received) -> None:
            nonce = request.body.split(b"nonce-")[1].split(b"-")[0].decode()
            fate = dice.choice([*ends])
            again = conn.index in used
            used.add(conn.index)
            fates.setdefault(nonce, []).append(fate + (" on a used one" if again else ""))
            await ends[fate](conn, request)

        return step

    async with Upstream() as a, Upstream() as b, Upstream() as c:
        for one in (a, b, c):
            one.will(fateful())
        toml = chain(a, b, c) + 'timeout = { first_byte = "200ms" }'
        async with serving(toml) as proxy:
            calm(proxy)
            room = asyncio.Semaphore(10)

            async def ask(number: int) -> None:
                async with room:
                    await call(proxy.port, chat("m", f"nonce-{number}-"))

            await asyncio.gather(*map(ask, range(300)))
            await proxy.record(300, 10)
            await idle(proxy)
            records = proxy.records()
    assert sum(len(fate) for fate in fates.values()) > 300
    may_follow = re.compile("(503|500|429).*|(close|reset) on a used one")
    free = re.compile("(503|429|400).*")
    for fate in fates.values():
        assert sum(not free.fullmatch(one) for one in fate) <= 3, fate
        assert len(fate) <= 3 * 3
        assert all(may_follow.fullmatch(one) for one in fate[:-1]), fate
        assert sum(one.startswith("500") for one in fate[:-1]) <= 1, fate
    assert {record["outcome"] for record in records} <= {
        "ok",
        "upstream_error",
        "upstream_cut",
        "timeout",
        "client_error",
    }
    assert len({record["request_id"] for record in records}) == 300


async def test_an_error_does_not_lead_to_itself() -> None:
    """Who takes an error and lets it go has let go of all that hangs on it: a body, say."""
    body = chat("m")
    known: list[weakref.ref[ProxyError]] = []
    async with serving(table("a", NOBODY) + '[routes]\nm = "a/x"\n') as proxy:
        calm(proxy)
        assert proxy.running is not None
        route = proxy.running.snapshot.routes.match("m")
        assert route is not None
        now = time.monotonic()
        exchange = Exchange("x", "default", "POST", "/", "", Headers(), False, None, now)
        exchange.dialect, exchange.suffix = dialects.CHAT, "chat/completions"
        asked = Asked(exchange, route.groups, False, route, "m", find_model(body), body)
        gc.disable()
        try:
            await proxy.running._opener.open(asked)
        except ProxyError as error:
            known.append(weakref.ref(error))
        finally:
            gc.enable()
        assert [one() for one in known] == [None]
    assert [attempt.error for attempt in exchange.attempts] == ["upstream_connect"] * 3


async def test_haste_on_a_kept_connection(proxy: Proxy, upstream: Upstream) -> None:
    """On one connection each request has its own patience: neither the one before makes it shorter, nor
    longer.
    """

    async def slow(conn: Conn, received: Received) -> None:
        await asyncio.sleep(0.8)
        await answer()(conn, received)

    hasty = [(b"x-stainless-read-timeout", b"0.6")]
    upstream.will(answer(), slow, answer(), hang())
    assert (await call(proxy.port, chat(), headers=hasty)).status == 200
    assert (await call(proxy.port, chat())).status == 200
    assert (await call(proxy.port, chat())).status == 200
    with within(5):
        assert (await call(proxy.port, chat(), headers=hasty)).status == 504
    assert len(upstream.connections) == 1
