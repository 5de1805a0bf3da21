"""A proxy, its vendors and its callers in one virtual time, and a small model of what must hold.

The proxy is the one that `serve` makes in production, but for the clocks. `World` is driven step by
step; after each, `check` compares what vendors and callers have seen, and `finish` what is left when
everything is over.
"""

import asyncio
import os
import re
import socket
import tempfile
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar, cast
from unittest.mock import patch

import orjson

from proxy import server, transport
from proxy.config import load
from proxy.forward import Forward
from proxy.frame import Frame
from proxy.opening import Opener
from proxy.transport import Transport
from tests.fuzz.loop import VirtualLoop
from tests.harness.upstream import chunk, head

T = TypeVar("T")

MOMENT = 0.001
"""What one step takes, unless it says otherwise."""
EVER = 2_000.0
"""By then everything is over, whatever nobody does: longer than all that may wait for each other."""
FIRST_BYTE, IDLE, WRITE, DEADLINE = 30.0, 20.0, 10.0, 100.0
STALE, GRACE, LEAVING = 0.5, 2.0, 1.0
COMMENT = b": keepalive\n\n"


@dataclass(frozen=True)
class Plan:
    """A routes file: what it allows, whose *secrets* go where, and which vendors a route leads to."""

    attempts: int = 3
    stale: bool = True
    failover_5xx: bool = True
    ambiguous: bool = False
    keepalive: bool = False
    peek: bool = False
    policy: str = "ordered"
    secrets: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"one": ("a-1", "a-2"), "two": ("b-1",), "free": ("c-1",)}
    )
    routes: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "solo": ("two",),
            "chain": ("one", "two"),
            "cheap": ("free", "two"),
            "any": ("one", "free", "two"),
        }
    )

    def toml(self, places: Mapping[str, str]) -> str:
        """Write the file, of which the vendors are at *places*."""

        def said(value: bool) -> str:
            return str(value).lower()

        lines = [
            "[defaults]",
            f'timeout = {{ connect = "5s", first_byte = "{FIRST_BYTE:.0f}s",'
            f' idle = "{IDLE:.0f}s", write = "{WRITE:.0f}s" }}',
            f'retry = {{ attempts = {self.attempts}, deadline = "{DEADLINE:.0f}s",'
            f" stale = {said(self.stale)}, failover_5xx = {said(self.failover_5xx)},"
            f" ambiguous = {said(self.ambiguous)} }}",
        ]
        if self.keepalive:
            lines.append('keepalive = "7s"')
        for name, secrets in self.secrets.items():
            lines += [
                f"[upstreams.{name}]",
                f'base_url = "{places[name]}"',
                f"credential = {orjson.dumps(secrets).decode()}",
                f"billed = {said(name != 'free')}",
            ]
        lines += ["[unrouted]", '"files" = "two"', "[routes]"]
        for route, (first, *others) in self.routes.items():
            back = ", ".join(f'"{name}/x"' for name in others)
            where = f'upstream = "{first}", model = "*", fallback = [{back}]'
            if route == "any":
                targets = ", ".join(f'{{ to = "{name}/x" }}' for name in (first, *others))
                where = f'targets = [{targets}], policy = "{self.policy}"'
            lines.append(f'"{route}/*" = {{ {where}, peek = {said(self.peek)} }}')
        return "\n".join(lines)


PLANS = (
    Plan(),
    Plan(
        attempts=2,
        stale=False,
        failover_5xx=False,
        keepalive=True,
        peek=True,
        routes={
            "solo": ("one",),
            "chain": ("two", "one"),
            "cheap": ("free",),
            "any": ("one", "two"),
        },
    ),
    Plan(
        attempts=5,
        ambiguous=True,
        policy="least-busy",
        secrets={"one": ("a-2", "a-3"), "two": ("b-2",), "free": ("c-1",)},
    ),
)


# What vendors say


@dataclass(frozen=True)
class Kind:
    """What is asked: the *path*, and how a stream of that dialect speaks, ends, and says that it fails."""

    path: str
    routed: bool = True
    word: bytes = b""
    mark: bytes = b""
    early: bytes = b""
    failure: bytes = b""


_FAILED = b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}'
KINDS = {
    "chat": Kind(
        "/v1/chat/completions",
        word=b'data: {"choices":[{"delta":{"content":"%d"},"finish_reason":null}]}\n\n',
        mark=b"data: [DONE]\n\n",
        early=b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n',
        failure=b"data: " + _FAILED + b"\n\n",
    ),
    "messages": Kind(
        "/v1/messages",
        word=b'event: content_block_delta\ndata: {"delta":{"text":"%d"}}\n\n',
        mark=b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        failure=b"event: error\ndata: " + _FAILED + b"\n\n",
    ),
    "responses": Kind(
        "/v1/responses",
        word=b'event: response.output_text.delta\ndata: {"delta":"%d"}\n\n',
        mark=b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
        failure=b"event: error\ndata: " + _FAILED + b"\n\n",
    ),
    "file": Kind("/v1/files/", routed=False),
    "upload": Kind("/v1/files/", routed=False),
}
AGAIN = (408, 429, 503, 529)
BROKEN = (500, 502, 504, 520)
STATUSES = (200, 204, 304, 400, 401, 404, *AGAIN, *BROKEN, 302)


# Vendors


@dataclass(eq=False)
class Call:
    """A request as a vendor sees it, and what it has said to it. *place* is which one it is on its line."""

    id: int
    line: "Line"
    place: int
    ask: "Ask"
    secret: str
    at: float
    length: int | None
    stream: bool
    received: int = 0
    whole_at: float | None = None
    status: int | None = None
    interim: bool = False
    deaf: bool = False
    framing: str = ""
    room: int = 0
    todo: bytes = b""
    words: int = 0
    sent: bytearray = field(default_factory=bytearray)
    marked_at: float | None = None
    finished: bool = False
    cut_at: float | None = None
    spoilt: bool = False

    @property
    def vendor(self) -> "Vendor":
        return self.line.vendor

    @property
    def raced(self) -> bool:
        """Return whether its line, used before, was closed so soon that nobody can have read it."""
        return self.place > 0 and self.cut_at is not None and self.cut_at - self.at <= STALE

    @property
    def lost(self) -> bool:
        """Return whether it may be billed, without anybody having its answer."""
        return self.whole_at is not None and self.status is None and self.vendor.name != "free"

    def lost_to(self, plan: Plan) -> bool:
        """Return whether its vendor may have executed it, and is not to be asked again."""
        unanswered = self.whole_at is not None and self.status is None
        return self.status in BROKEN or (unanswered and not (plan.stale and self.raced))

    @property
    def waits(self) -> bool:
        """Return whether nothing has been answered yet, and something can be."""
        return self.line.open and self.status is None and not self.spoilt

    @property
    def speaks(self) -> bool:
        """Return whether an answer has begun, and can go on."""
        return self.line.open and self.status is not None and not self.finished

    @property
    def checked(self) -> bool:
        """Return whether its end without a marker is a cut."""
        return self.stream and self.status == 200 and self.ask.kind.routed

    def events(self) -> list[bytes]:
        """Return the whole events that were sent."""
        return [event + b"\n\n" for event in bytes(self.sent).split(b"\n\n")[:-1]]

    @property
    def over(self) -> bool:
        """Return whether the marker was sent after which nothing can follow."""
        return self.checked and self.ask.kind.mark in self.events()

    @property
    def ended(self) -> bool:
        """Return whether an end now is an end."""
        events, kind = self.events(), self.ask.kind
        early = bool(kind.early) and bool(events) and events[-1] == kind.early
        done = kind.mark == b"data: [DONE]\n\n" and (b"\n" + self.sent).endswith(b"\ndata: [DONE]")
        return self.over or early or done or self.failed

    @property
    def failed(self) -> bool:
        """Return whether it was said, inside a 200, that it has failed."""
        return self.stream and self.ask.kind.failure in self.events()


class Wire(socket.socket):
    """The proxy's end of a connection to a vendor, which a vendor can reset.

    It is no TCP: what is written on a pair of sockets is there to be read when the call returns, and
    the kernel, which knows no virtual time, has no say in what happens when.
    """

    broken = False

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(size, flags)
        if not data and self.broken:
            raise ConnectionResetError
        return data


class Line(asyncio.Protocol):
    """A vendor's end of a connection, of which the proxy has the *far* one."""

    def __init__(self, vendor: "Vendor", far: Wire) -> None:
        self.vendor = vendor
        self.world = vendor.world
        self.open = True
        self.lost = False
        self.deaf = False
        self.calls: list[Call] = []
        self._far = far
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.vendor.lines.append(self)
        if self.vendor.manner == "slams":
            self.cut("reset")
        elif self.vendor.manner == "deaf":
            self.deaf = True
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open, self.lost = False, True

    def data_received(self, data: bytes) -> None:
        self._unread += data
        while self._unread and self._take():
            pass

    def _take(self) -> bool:
        call = self.calls[-1] if self.calls else None
        if call is not None and call.whole_at is None:
            return self._body(call)
        top, found, rest = self._unread.partition(b"\r\n\r\n")
        if not found:
            return False
        if call is not None and not call.finished:
            self.world.wrong.append("a second request came before the first was answered")
        self._unread = rest
        lines = top.split(b"\r\n")[1:]
        headers = {
            name.lower(): value for name, _, value in (one.partition(b": ") for one in lines)
        }
        self.calls.append(self.world.called(self, headers))
        return self._body(self.calls[-1])

    def _body(self, call: Call) -> bool:
        if call.length is None:
            end = self._unread.find(b"0\r\n\r\n")
            if end < 0:
                return False
            self._unread = self._unread[end + 5 :]
        else:
            taken = self._unread[: call.length - call.received]
            call.received += len(taken)
            self._unread = self._unread[len(taken) :]
            if call.received < call.length:
                return False
        call.whole_at = self.world.now
        return True

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def cut(self, how: str) -> None:
        """Leave, with a FIN or a reset."""
        self.open = False
        for call in self.calls[-1:]:
            if not call.finished:
                call.cut_at = self.world.now
        if how == "fin":
            self.transport.close()
            return
        self._far.broken = True
        self.transport.abort()


class Vendor:
    """An upstream that does what it is told. Its *manner* is "well", or else it "refuses" whoever
    comes, is "away" and does not answer, "slams" the door, or is "deaf" and takes not a byte.
    """

    def __init__(self, world: "World", name: str, port: int) -> None:
        self.world = world
        self.name = name
        self.port = port
        self.lines: list[Line] = []
        self.manner = "well"

    @property
    def url(self) -> str:
        return f"http://127.0.0.2:{self.port}/v1"

    async def meet(self) -> socket.socket:
        """Take a connection; return the far end of it."""
        loop = asyncio.get_running_loop()
        if self.manner == "refuses":
            raise ConnectionRefusedError
        if self.manner == "away":
            await loop.create_future()
        near, far = socket.socketpair()
        wire = Wire(fileno=far.detach())
        for one in (near, wire):
            one.setblocking(False)
        await loop.create_connection(partial(Line, self, wire), sock=near)
        return wire

    def behave(self, manner: str) -> None:
        """Be so from now on."""
        self.manner = manner
        lines = [line for line in self.lines if line.open]
        if manner == "deaf":
            for line in lines:
                line.deaf = True
                line.transport.pause_reading()
            return
        deaf = [line for line in lines if line.deaf]
        for line in deaf:
            line.transport.resume_reading()
        self.world.settle()  # what was sent meanwhile is read now
        for line in deaf:
            line.deaf = False


# Callers


class Caller(asyncio.Protocol):
    """A client's connection."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.closed = False
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.raw += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True


@dataclass(frozen=True)
class Reading:
    """What there is of one answer. *whole*: its framing was completed; *rest* is what came behind it."""

    status: int | None = None
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False
    rest: bytes = b""


def read(raw: bytes) -> Reading:
    """Read an answer, by the letter (RFC 9112)."""
    top, found, rest = raw.partition(b"\r\n\r\n")
    if not found:
        return Reading()
    line, *fields = top.split(b"\r\n")
    headers = {name.lower(): value for name, _, value in (one.partition(b": ") for one in fields)}
    status = int(line.split(b" ")[1])
    if status in (204, 304):
        return Reading(status, headers, whole=True, rest=rest)
    if b"content-length" in headers:
        size = int(headers[b"content-length"])
        return Reading(status, headers, rest[:size], len(rest) >= size, rest[size:])
    assert headers[b"transfer-encoding"] == b"chunked"
    body = bytearray()
    while True:
        size_line, found, after = rest.partition(b"\r\n")
        size = int(size_line, 16) if found else 0
        if not found or len(after) < size + 2:
            return Reading(status, headers, bytes(body))
        assert after[size : size + 2] == b"\r\n"
        body += after[:size]
        rest = after[size + 2 :]
        if not size:
            return Reading(status, headers, bytes(body), whole=True, rest=rest)


@dataclass(eq=False)
class Ask:
    """A request as its caller sees it. *unheard*: the proxy took it no more."""

    tag: int
    kind: Kind
    route: str
    plan: Plan
    stream: bool
    caller: Caller
    at: float
    patience: float | None = None
    start: int = 0
    rest: bytes = b""
    unheard: bool = True
    gone_at: float | None = None
    was_over: bool = False
    was_paused: bool = False
    calls: list[Call] = field(default_factory=list)
    _read: tuple[int, Reading] = (-1, Reading())

    @property
    def reading(self) -> Reading:
        size = len(self.caller.raw)
        if self._read[0] != size:
            self._read = size, read(bytes(self.caller.raw[self.start :]))
        return self._read[1]

    @property
    def over(self) -> bool:
        """Return whether nothing more can come."""
        return self.unheard or self.gone_at is not None or self.caller.closed or self.reading.whole

    @property
    def left_by(self) -> float:
        """Return when nobody may work for a caller any more who has left."""
        return 0.0 if self.gone_at is None or self.was_over else self.gone_at + LEAVING

    @property
    def answering(self) -> Call | None:
        """Return the call whose answer it is that comes, None while none does, or one of the proxy's own."""
        number = self.reading.headers.get(b"x-call")
        if number is None:
            return None
        return next((call for call in self.calls if call.id == int(number)), None)


# The world


class Broken(AssertionError):
    """Something that must hold does not."""


_OURS = {
    "upstream_disconnected": "upstream_cut",
    "upstream_incomplete": "upstream_cut",
    "upstream_idle_timeout": "timeout",
    "proxy_shutdown": "shutdown",
}
_TAIL = {
    "/v1/chat/completions": re.compile(rb"data: (\{[^\n]*\})\n\n\Z"),
    "/v1/messages": re.compile(rb"event: error\ndata: (\{[^\n]*\})\n\n\Z"),
    "/v1/responses": re.compile(rb"event: error\ndata: (\{[^\n]*\})\n\n\Z"),
}


class World:
    """Everything, from the beginning under *plan* to `close`."""

    def __init__(self, plan: Plan = PLANS[0], seed: int = 0) -> None:
        self.broken = False
        self.wrong: list[str] = []
        self.plan = plan
        self.asks: list[Ask] = []
        self.calls: list[Call] = []
        self.drained: tuple[float, float] | None = None
        self._draining: asyncio.Task[None] | None = None
        self.loop = VirtualLoop()
        self._stack = ExitStack()
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._file, self._log = Path(directory, "routes.toml"), Path(directory, "log")
        self._socket = str(Path(directory, "s"))
        self._fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._stack.callback(os.close, self._fd)
        clock, random = self.loop.time, Random(seed)
        made = {
            "Transport": partial(Transport, clock=clock),
            "Forward": partial(Forward, clock=clock),
            "Frame": partial(Frame, clock=clock),
            "Opener": partial(
                Opener,
                clock=clock,
                wall=lambda: 1_750_000_000.0 + clock(),
                chance=random.random,
            ),
        }
        self._stack.enter_context(patch.multiple(server, **cast(Any, made)))
        self._stack.enter_context(patch.object(transport, "start_connection", self._dial))
        self.vendors = {
            name: Vendor(self, name, port) for port, name in enumerate(("one", "two", "free"), 1)
        }
        self._serving = server.serve(self._snapshot(plan), self._fd)
        self.running = self.run(self._serving.__aenter__())
        self.settle()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    @property
    def now(self) -> float:
        return self.loop.time()

    def must(self, holds: object, what: str) -> None:
        if not holds:
            self.broken = True
            raise Broken(what)

    def run(self, what: Awaitable[T]) -> T:
        async def main() -> T:
            return await what

        return self.loop.run_until_complete(main())

    async def _dial(self, addresses: Sequence[Any], **_: object) -> socket.socket:
        """Connect to a vendor: this stands in for the network."""
        port = addresses[0][4][1]
        return await next(one for one in self.vendors.values() if one.port == port).meet()

    def settle(self, seconds: float = MOMENT) -> None:
        """Let *seconds* pass, and everything happen that follows from what has."""
        self.run(asyncio.sleep(seconds))

    def _snapshot(self, plan: Plan) -> Any:
        places = {name: vendor.url for name, vendor in self.vendors.items()}
        self._file.write_text(plan.toml(places))
        return load(self._file, {}, listen=f"unix:{self._socket}")

    # What may happen: callers

    def ask(
        self,
        what: str = "chat",
        route: str = "chain",
        *,
        stream: bool = True,
        size: int = 0,
        late: bool = False,
        chunked: bool = False,
        reuse: bool = False,
        last: bool = False,
        patience: float | None = None,
    ) -> Ask:
        """Send a request; of a *late* one the body comes with `more`."""
        kind = KINDS[what]
        ask = Ask(len(self.asks), kind, route, self.plan, stream, Caller(), self.now, patience)
        self.asks.append(ask)
        caller = next(self._idle(), None) if reuse else None
        caller = caller or self._connect()
        if caller is None:
            return ask
        ask.unheard, ask.caller = False, caller
        ask.start = len(caller.raw)
        # Small: who is held back on a unix socket cannot be seen to leave, as on TCP.
        body = b"" if what == "file" else b"x" * min(size or 10, 50_000)
        path = kind.path + ("" if kind.routed else str(ask.tag))
        if kind.routed:
            fields = {"model": f"{route}/{ask.tag}", "stream": stream, "text": "x" * size}
            body = orjson.dumps(fields)
        lines = [f"{'GET' if what == 'file' else 'POST'} {path} HTTP/1.1", "Host: localhost"]
        lines.append(f"X-Tag: {ask.tag}")
        if last:
            lines.append("Connection: close")
        if patience is not None:
            lines.append(f"X-Stainless-Read-Timeout: {patience:g}")
        if what == "file":
            pieces = [b""]
        elif chunked:
            lines.append("Transfer-Encoding: chunked")
            half = len(body) // 2
            pieces = [chunk(body[:half]), chunk(body[half:]) + b"0\r\n\r\n"]
        else:
            lines.append(f"Content-Length: {len(body)}")
            pieces = [body[:5], body[5:]]
        data = "\r\n".join(lines).encode() + b"\r\n\r\n" + pieces[0]
        if late:
            ask.rest = b"".join(pieces[1:])
        else:
            data += b"".join(pieces[1:])
        caller.transport.write(data)
        self.settle()
        return ask

    def _connect(self) -> Caller | None:
        connect = self.loop.create_unix_connection(Caller, self._socket)
        try:
            _, caller = self.run(connect)
        except OSError:
            self.must(self.drained, "a connection was refused")
            return None
        self.must(not self.drained, "a connection was taken after the end")
        return caller

    def _idle(self) -> Iterator[Caller]:
        for ask in self.asks:
            caller = ask.caller
            last = [other for other in self.asks if other.caller is caller][-1]
            free = ask is last and not ask.unheard and not caller.closed and not ask.rest
            if free and ask.reading.whole and ask.gone_at is None:
                yield caller

    def more(self, ask: Ask) -> None:
        """Send the rest of a late body."""
        if not ask.caller.closed:
            ask.caller.transport.write(ask.rest)
        ask.rest = b""

    def leave(self, ask: Ask) -> None:
        """Let the caller go away."""
        ask.was_over = ask.over
        ask.gone_at = self.now
        ask.caller.transport.abort()

    def pause(self, ask: Ask) -> None:
        """Let the caller read nothing."""
        ask.caller.paused = ask.was_paused = True
        ask.caller.transport.pause_reading()

    def resume(self, ask: Ask) -> None:
        """Let the caller read again."""
        ask.caller.paused = False
        if not ask.caller.closed:
            ask.caller.transport.resume_reading()

    # What may happen: vendors

    def called(self, line: Line, headers: Mapping[bytes, bytes]) -> Call:
        """Take note of a request that has arrived at a vendor."""
        ask = self.asks[int(headers[b"x-tag"])]
        length = headers.get(b"content-length")
        call = Call(
            len(self.calls),
            line,
            len(line.calls),
            ask,
            headers[b"authorization"].removeprefix(b"Bearer ").decode(),
            self.now,
            None if b"transfer-encoding" in headers else int(length or 0),
            ask.stream and ask.kind.routed,
            deaf=line.deaf,
        )
        self.calls.append(call)
        ask.calls.append(call)
        try:
            self._check_call(ask, call)
        except Broken as error:  # raised by the next `check`: here the loop would swallow it
            self.wrong.append(str(error))
        return call

    def answer(
        self,
        call: Call,
        status: int = 200,
        *,
        framing: str = "chunked",
        hints: Sequence[tuple[bytes, bytes]] = (),
        last: bool = False,
        size: int = 0,
    ) -> None:
        """Begin an answer; one that is no 200 is whole at once, with a body of more than *size* bytes."""
        headers = [(b"X-Call", b"%d" % call.id), *hints]
        call.status = status
        if last:
            headers.append((b"Connection", b"close"))
        if status in (204, 304):
            call.line.write(head(status, headers))
            self._end(call, last)
        elif status != 200:
            body = orjson.dumps(
                {"error": {"message": "no" + "!" * size, "code": None, "type": "x"}}
            )
            headers += [
                (b"Content-Type", b"application/json"),
                (b"Content-Length", b"%d" % len(body)),
            ]
            call.sent += body
            call.line.write(head(status, headers) + body)
            self._end(call, last)
        else:
            kind = b"text/event-stream" if call.stream else b"application/json"
            headers.append((b"Content-Type", kind))
            call.framing = framing
            if framing == "chunked":
                headers.append((b"Transfer-Encoding", b"chunked"))
            elif framing == "length":
                call.room = 400
                headers.append((b"Content-Length", b"400"))
            call.line.write(head(status, headers))

    def _end(self, call: Call, last: bool) -> None:
        call.finished = True
        if last or call.whole_at is None:
            call.line.cut("fin")

    def say(self, call: Call, what: str = "word", size: int | None = None, big: int = 0) -> None:
        """Send *size* bytes of an event, which may be one that began earlier, or all that is left of it."""
        if not call.todo:
            kind, call.words = call.ask.kind, call.words + 1
            if not call.stream:
                call.todo = b"%d" % call.words
            elif what == "word":
                call.todo = kind.word % call.words
            else:
                call.todo = {"mark": kind.mark, "early": kind.early, "failure": kind.failure}[what]
        data = b"x" * big if big and not call.stream else call.todo[:size]
        if data == call.todo[: len(data)]:
            call.todo = call.todo[len(data) :]
        if call.framing == "length":
            data = data[: call.room]
            call.room -= len(data)
        call.sent += data
        if call.over and call.marked_at is None:
            call.marked_at = self.now
        if data:
            call.line.write(chunk(data) if call.framing == "chunked" else data)
        if call.framing == "length" and not call.room:
            self._end(call, last=False)

    def end(self, call: Call) -> None:
        """Complete the answer's framing."""
        if call.framing == "chunked":
            call.line.write(b"0\r\n\r\n")
        elif call.framing == "length":
            rest = b" " * call.room
            call.sent += rest
            call.line.write(rest)
        self._end(call, last=call.framing == "close")

    def spoil(self, call: Call, data: bytes) -> None:
        """Answer with what is no answer."""
        call.spoilt = True
        call.line.write(data)

    def surplus(self, line: Line) -> None:
        """Say something on a connection on which nothing was asked."""
        line.write(head(200, [(b"X-Call", b"999999"), (b"Content-Length", b"5")]) + b"wrong")

    # What may happen: the operator

    def reload(self, plan: Plan) -> None:
        """Serve *plan* from now on."""
        self.run(self.running.apply(self._snapshot(plan)))
        self.plan = plan

    def drain(self, seconds: float) -> None:
        """Begin to leave."""
        self.drained = self.now, seconds
        self._draining = self.loop.create_task(self.running.drain(seconds))

    # What must hold

    def _check_call(self, ask: Ask, call: Call) -> None:
        """Look whether this call may have been made, after all that came before it."""
        plan, before = ask.plan, ask.calls[:-1]
        allowed = plan.routes[ask.route] if ask.kind.routed else ("two",)
        vendor = call.vendor.name
        self.must(vendor in allowed, f"{ask.route} led to {vendor}")
        self.must(call.secret in plan.secrets[vendor], f"{vendor} was shown {call.secret}")
        self.must(len(ask.calls) <= plan.attempts, "more attempts than allowed")
        same = [one for one in before if one.status in BROKEN]
        self.must(len(same) <= 1, "failed over twice after a 5xx")
        if call.deaf:
            return  # it was sent at some time before
        self.must(ask.gone_at is None, "sent for a caller who has left")
        self.must(ask.reading.status is None, "sent again after an answer had begun")
        self.must(self.now - ask.at <= DEADLINE or ask.rest, "sent after the deadline")
        if before:
            self._check_again(ask, before[-1], call)

    def _check_again(self, ask: Ask, last: Call, call: Call) -> None:
        plan, elsewhere = ask.plan, call.vendor is not last.vendor
        lost = [one for one in ask.calls[:-1] if one.lost_to(plan)]
        self.must(call.vendor not in [one.vendor for one in lost], "sent twice to the same vendor")
        left = not last.line.open or last.finished or last.line.deaf
        self.must(left, "asked again while another still works on it")
        self.must(ask.kind.routed or ask.kind is KINDS["file"], "an upload was sent twice")
        status = last.status
        announced = last.interim and status is None and last.cut_at is not None
        self.must(not last.spoilt and not announced, "asked again after what was no answer")
        if status is None and last.whole_at is not None:
            stale = plan.stale and last.raced and not elsewhere and call.place == 0
            free = last.vendor.name == "free" or plan.ambiguous
            self.must(stale or (free and elsewhere), "sent twice, and may be billed twice")
        elif status == 200:
            self.must(plan.peek and last.failed and last.words == 1, "asked again after a 200")
        elif status == 401:
            self.must(
                (call.vendor, call.secret) != (last.vendor, last.secret), "the same 401 again"
            )
        elif status in BROKEN:
            self.must(elsewhere and plan.failover_5xx, "asked again after a 5xx")
        elif status is not None:
            self.must(status in AGAIN, f"asked again after {status}")

    def check(self) -> None:
        """Look at everything as it stands."""
        gate, pool = self.running.gate, self.running._transport
        self.must(not self.wrong, "; ".join(self.wrong))
        alive = [ask for ask in self.asks if not ask.over or self.now < ask.left_by]
        self.must(not self.loop.errors, f"an error nobody waited for: {self.loop.errors}")
        self.must(0 <= gate.inflight <= len(self.asks), f"inflight is {gate.inflight}")
        self.must(gate.held >= 0, f"held is {gate.held}")
        busy = [one for one in pool._open if one.busy and not one.transport.is_closing()]
        self.must(len(busy) <= gate.inflight, f"{len(busy)} busy for {gate.inflight} in flight")
        if not alive:
            self.must(gate.inflight == 0, f"{gate.inflight} in flight, and nobody waits")
        for one in self.running._opener.scores._loads.values():
            self.must(one.active >= 0 and one.retrying >= 0, f"a load is {one}")
            self.must(one.active <= gate.inflight, f"{one} with {gate.inflight} in flight")
        for ask in self.asks:
            if not ask.unheard:
                self._check_answer(ask)
                self._check_bill(ask)
        if self.drained is not None and self.now > sum(self.drained) + 1.0:
            over = all(ask.over or ask.caller.paused for ask in self.asks)
            self.must(over and gate.inflight == 0, "not all was over when it had to be")

    def _check_answer(self, ask: Ask) -> None:
        """Look at what the caller of *ask* has, and who still works for it."""
        following = [one for one in self.asks if one.caller is ask.caller and one.tag > ask.tag]
        reading = ask.reading
        if not following:
            self.must(not reading.rest, f"something was written behind an answer: {reading.rest!r}")
        if ask.gone_at is not None and self.now >= ask.left_by:
            open_ = [call for call in ask.calls if call.line.open and not call.finished]
            working = [call for call in open_ if not call.line.deaf]
            self.must(not working, "a vendor works for a caller who has left")
        if ask.patience is not None and not ask.over and not ask.was_paused and not ask.rest:
            late = reading.status is None and self.now - ask.at >= ask.patience
            self.must(not late, "an SDK gave up before it had an answer")
        call = ask.answering
        if b"x-call" in reading.headers:
            self.must(call is not None, "an answer came to whom it does not belong")
        if call is None:
            return
        self.must(reading.status == call.status, f"{call.status} became {reading.status}")
        prefix, ours = self._split(ask, call, reading.body)
        self.must(call.sent.startswith(prefix), "what was relayed is not what was sent")
        if ours is not None:
            self.must(not call.ended, "an error was added to an answer that had ended")
            self.must(not reading.whole, "a cut answer looks whole")
        if not ask.was_paused and ask.gone_at is None:
            self.must(prefix == call.sent, f"{len(call.sent) - len(prefix)} bytes were held back")
            if call.finished and (call.ended or not call.checked):
                self.must(reading.whole, "an answer that is complete does not look so")
            if call.marked_at is not None and self.now > call.marked_at + GRACE:
                self.must(reading.whole, "a stream that is over is not ended")

    def _check_bill(self, ask: Ask) -> None:
        """Look that what was asked of a vendor in full was not asked of another one."""
        lost = [call for call in ask.calls if call.lost and not call.raced]
        given = [call for call in ask.calls if call.status == 200 and not call.failed]
        if not ask.plan.ambiguous:
            self.must(len(lost) + len(given) <= 1, "billed twice")

    def _split(self, ask: Ask, call: Call, body: bytes) -> tuple[bytes, str | None]:
        """Take apart what the vendor sent, and the code of an error event of ours behind it."""
        if ask.plan.keepalive and call.checked:
            told = b""
            for part in body.split(COMMENT)[:-1]:
                told += part
                between = not told or told.endswith(b"\n\n")
                self.must(between, "a comment stands inside an event")
            body = body.replace(COMMENT, b"")
        tail = _TAIL[ask.kind.path].search(body) if call.checked else None
        if tail is None:
            return body, None
        said = orjson.loads(tail[1])
        code = said.get("code") or said.get("error", {}).get("code")
        if ask.kind.path == "/v1/messages" and "request_id" in said:
            code = next(iter(_OURS))  # Anthropic's errors have no code: any of them
        if code not in _OURS:
            return body, None
        prefix = body[: tail.start()]
        if not call.sent.startswith(prefix):  # an event was open, and is closed by an empty line
            self.must(prefix.endswith(b"\n\n"), "the error event does not stand by itself")
            prefix = prefix[:-2]
            self.must(not prefix.endswith(b"\n\n"), "an empty line too many")
        else:
            between = not prefix or prefix.endswith(b"\n\n")
            self.must(between, "the error event does not stand by itself")
        return prefix, code

    def finish(self) -> None:
        """Let everything come to its end, and look at what is left, and at the log."""
        for ask in self.asks:
            if not ask.unheard:
                self.resume(ask)
        self.settle()
        self.check()
        self.settle(EVER)
        for vendor in self.vendors.values():
            vendor.behave("well")
        self.check()
        for ask in self.asks:
            self.must(ask.over, f"request {ask.tag} never ended")
        gate, pool = self.running.gate, self.running._transport
        self.must((gate.inflight, gate.held) == (0, 0), f"left in the gate: {vars(gate)}")
        for one in self.running._opener.scores._loads.values():
            self.must((one.active, one.retrying) == (0, 0), f"left in a load: {one}")
        self.must(not pool._open, "a connection was left open")
        self.must(not pool._idle, "an idle connection was left open")
        self.must(not self.running._relays, "a relay was left")
        for vendor in self.vendors.values():
            self.must(not any(line.open for line in vendor.lines), "a vendor's line is still open")
        self.must(not asyncio.all_tasks(self.loop), f"left: {asyncio.all_tasks(self.loop)}")
        self._stop()
        self._check_log()

    def _stop(self) -> None:
        if self._serving is not None:
            serving, self._serving = self._serving, cast(Any, None)
            self.run(serving.__aexit__(None, None, None))

    def close(self) -> None:
        """Give everything back."""
        self._stop()
        for vendor in self.vendors.values():
            for line in vendor.lines:
                if not line.lost:
                    line.transport.abort()
        for ask in self.asks:
            if not ask.unheard and not ask.caller.closed:
                ask.caller.transport.abort()
        self.settle()
        if self._draining is not None:
            self._draining.cancel()
            self.settle()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        self._stack.close()

    # The log

    def _check_log(self) -> None:
        """Look for exactly one record of each request, that says what happened to it."""
        lines = [orjson.loads(line) for line in self._log.read_bytes().splitlines()]
        odd = [line for line in lines if line["event"] in ("internal_error", "loop_error")]
        self.must(not odd, f"an error of our own: {odd}")
        records: dict[int, dict[str, Any]] = {}
        nameless = []
        by_id = {
            ask.reading.headers.get(b"x-trunkline-id", b"").decode(): ask.tag for ask in self.asks
        }
        for line in lines:
            if line["event"] != "exchange":
                continue
            tag = by_id.get(line["request_id"])
            if tag is None and line["model"] is not None:
                tag = int(line["model"].partition("/")[2])
            if tag is None and line["path"].startswith("/v1/files/"):
                tag = int(line["path"].removeprefix("/v1/files/"))
            if tag is None:
                nameless.append(line)
                continue
            self.must(tag not in records, f"two records of request {tag}")
            records[tag] = line
        heard = [ask for ask in self.asks if not ask.unheard]
        unnamed = [ask for ask in heard if ask.tag not in records]
        self.must(len(nameless) == len(unnamed), f"{len(nameless)} records for {len(unnamed)}")
        self.must(len(records) + len(nameless) == len(heard), "a record too many")
        self.must(not any(ask.calls for ask in unnamed), "a request that was sent has no record")
        unread = {"client_error"} if any(ask.was_paused for ask in unnamed) else set()
        for line in nameless:
            self.must(not line["attempts"], "an attempt for nobody")
            self.must(line["outcome"] in {"client_gone", "shutdown"} | unread, f"nameless: {line}")
        for ask in heard:
            if ask.tag in records:
                self._check_record(ask, records[ask.tag])

    def _check_record(self, ask: Ask, record: dict[str, Any]) -> None:
        attempts, reading, call = record["attempts"], ask.reading, ask.answering
        told = f"request {ask.tag}, answered {reading.status}: {record}"
        self.must(len(attempts) <= ask.plan.attempts, f"too many attempts: {told}")
        reached = [one for one in attempts if one["phase"] != "unsent"]
        self.must(len(ask.calls) <= len(attempts), f"more calls than attempts: {told}")
        answered = sum(one.status is not None for one in ask.calls)
        self.must(len(reached) >= answered, f"more answers than were sent for: {told}")
        lost = [one for one in ask.calls if one.whole_at is not None and one.status is None]
        billed = sum(one["maybe_billed"] for one in attempts)
        self.must(billed >= len(lost), f"what may be billed is not said: {told}")
        outcome = record["outcome"]
        self.must(outcome in self._outcomes(ask, call), f"outcome: {told}")
        if reading.status is not None:
            self.must(record["status"] == reading.status, f"status: {told}")
        if call is None and reading.status is not None:
            self._check_ours(ask, reading, record, bool(lost))

    def _check_ours(self, ask: Ask, reading: Reading, record: dict[str, Any], lost: bool) -> None:
        """Look at an answer of the proxy's own."""
        if not reading.whole:
            self.must(ask.gone_at is not None, "an error of our own is cut")
            return
        error = orjson.loads(reading.body)["error"]
        told = f"{reading.headers} {error} {record}"
        if ask.kind.path != "/v1/messages":
            self.must(error["code"] == record["error"], f"not the error that is logged: {told}")
        if lost and record["attempts"][-1]["maybe_billed"]:
            hint = reading.headers.get(b"x-should-retry")
            self.must(hint == b"false", f"an SDK is led to pay twice: {told}")

    def _outcomes(self, ask: Ask, call: Call | None) -> set[str]:
        """Return how *ask* may be said to have ended."""
        reading = ask.reading
        draining = {"shutdown"} if self.drained else set()
        if ask.gone_at is not None and not ask.was_over:
            before = set()
            if (
                ask.was_paused or ask.kind is KINDS["upload"]
            ):  # the end may have come before, unread
                before = {*_OURS.values(), "ok", "refused", "upstream_error", "client_error"}
            if call is not None and call.failed:
                before |= {"upstream_error"}
            if call is not None and call.ended:
                before |= {"ok"}
            return {"client_gone", *before}
        if call is None:
            return {"refused", "upstream_error", "timeout", "client_error"} | draining
        if call.failed:
            return {"upstream_error"}
        if reading.whole or call.ended:
            status = call.status or 0
            if status < 400:
                return {"ok"} if reading.whole else {"ok", "timeout", *draining}
            bad = status >= 500 or status in (401, 403, 408, 429)
            return {"upstream_error" if bad else "client_error"}
        code = self._split(ask, call, reading.body)[1]
        if code is not None and ask.kind.path != "/v1/messages":
            return {_OURS[code]}
        return {"upstream_cut", "timeout"} | draining
