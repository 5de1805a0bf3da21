"""The vendors: what arrives there, and what they say to it. They do what they are told."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import orjson

from proxy.wire.peers import has_left
from tests.fuzz.kinds import BODILESS, BROKEN, Kind
from tests.fuzz.plan import STALE, Plan
from tests.harness.upstream import CHUNKED, DONE, JSON, SSE, Pair, chunk, head

ROOM = 400
"""How long an answer is that says its length."""


@dataclass(eq=False)
class Call:
    """A request as a vendor sees it, and what it has said to it; on its *line* it came *behind* another.

    *late*: it was read only a while after it had come.
    """

    id: int
    line: "Line"
    behind: "Call | None"
    kind: Kind
    stream: bool
    secret: str
    at: float
    late: bool
    whole_at: float | None = None
    announced: bool = False
    spoilt: bool = False
    status: int | None = None
    hints: Mapping[bytes, bytes] = field(default_factory=dict)
    last: bool = False
    framing: str = ""
    room: int = ROOM
    todo: bytes = b""
    sent: bytearray = field(default_factory=bytearray)
    spoke_at: float = 0.0
    marked_at: float | None = None
    finished: bool = False
    cut_at: float | None = None

    def __repr__(self) -> str:
        end = "finished" if self.finished else "cut" if self.cut_at else "open"
        said = f"{self.status}, {len(self.sent)} bytes, {end}"
        return f"<call {self.id}: {self.kind.path} at {self.vendor.name}, answered {said}>"

    @property
    def vendor(self) -> "Vendor":
        return self.line.vendor

    # What has become of it

    @property
    def runs(self) -> bool:
        """Whether its vendor still works on it."""
        return self.line.open and not self.finished

    @property
    def waits(self) -> bool:
        """Whether an answer can begin."""
        return self.runs and self.status is None and not self.spoilt

    @property
    def speaks(self) -> bool:
        """Whether an answer has begun, and can go on."""
        return self.runs and self.status is not None

    @property
    def raced(self) -> bool:
        """Whether its line, used before, was closed so soon that nobody can have read it."""
        soon = self.cut_at is not None and self.cut_at - self.at <= STALE
        return soon and self.behind is not None

    @property
    def unanswered(self) -> bool:
        """Whether all of it was heard, and nothing said."""
        return self.whole_at is not None and self.status is None

    @property
    def billed(self) -> bool:
        """Whether it may be billed, without anybody having its answer."""
        return self.unanswered and self.vendor.name != "free"

    def lost_to(self, plan: Plan) -> bool:
        """Whether its vendor may have executed it, and is not to be asked again."""
        return self.status in BROKEN or (self.unanswered and not (plan.stale and self.raced))

    @property
    def checked(self) -> bool:
        """Whether its end without a marker is a cut."""
        return self.stream and self.status == 200

    def events(self) -> list[bytes]:
        """Return the whole events that were sent."""
        return [event + b"\n\n" for event in bytes(self.sent).split(b"\n\n")[:-1]]

    @property
    def over(self) -> bool:
        """Whether the marker was sent after which nothing can follow."""
        return self.checked and self.kind.mark in self.events()

    @property
    def failed(self) -> bool:
        """Whether it was said, inside a 200, that it has failed."""
        return self.stream and self.kind.failure in self.events()

    @property
    def complete(self) -> bool:
        """Whether an end now is an end, or was one."""
        if not self.checked or (self.framing == "length" and self.finished):
            return self.finished
        early = bool(self.kind.early) and self.events()[-1:] == [self.kind.early]
        done = self.kind.mark == DONE and (b"\n" + self.sent).endswith(b"\n" + DONE.rstrip())
        return self.over or self.failed or early or done

    # What can be said to it

    def announce(self) -> None:
        """Say that an answer will come."""
        self.announced = True
        self.line.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")

    def spoil(self, data: bytes) -> None:
        """Answer with what is no answer."""
        self.spoilt = True
        self.line.write(data)

    def answer(
        self,
        status: int = 200,
        *,
        framing: str = "chunked",
        hints: Sequence[Pair] = (),
        last: bool = False,
        size: int = 0,
    ) -> None:
        """Begin an answer; one that is no 200 is whole at once, with a body of more than *size* bytes."""
        self.status, self.hints, self.last = status, dict(hints), last
        self.spoke_at = self.vendor.clock()
        headers = [(b"X-Call", b"%d" % self.id), *hints]
        if last:
            headers.append((b"Connection", b"close"))
        if status == 200:
            self.framing = framing
            length = (b"Content-Length", b"%d" % ROOM)
            framed = {"chunked": [CHUNKED], "length": [length], "close": []}[framing]
            self.line.write(head(200, [*headers, SSE if self.stream else JSON, *framed]))
            return
        if status not in BODILESS:
            error = {"message": "no" + "!" * size, "code": None, "type": "x"}
            self.sent += orjson.dumps({"error": error})
            headers += [JSON, (b"Content-Length", b"%d" % len(self.sent))]
        self.line.write(head(status, headers) + self.sent)
        self._finish(leave=last)

    def say(self, what: str = "word", size: int | None = None, big: int = 0) -> None:
        """Send *size* bytes of an event, which may be one that began earlier, or all that is left of it;
        of what is no stream, something. It is a *big* one, if that is how many bytes it has.
        """
        if not self.todo:
            text = b"1" * big or b"%d" % len(self.sent)
            self.todo = self.kind.event(what, text) if self.stream else text
        data = self.todo[:size]
        self.todo = self.todo[len(data) :]
        if self.framing == "length":
            data = data[: self.room]
        self._send(data)
        if self.over and self.marked_at is None:
            self.marked_at = self.vendor.clock()
        if self.framing == "length" and not self.room:
            self._finish()

    def end(self) -> None:
        """Complete the answer's framing."""
        if self.framing == "chunked":
            self.line.write(b"0\r\n\r\n")
        elif self.framing == "length":
            self._send(b" " * self.room)
        self._finish(leave=self.framing == "close")

    def _send(self, data: bytes) -> None:
        self.sent += data
        self.room -= len(data)
        if data:
            self.spoke_at = self.vendor.clock()
            self.line.write(chunk(data) if self.framing == "chunked" else data)

    def _finish(self, *, leave: bool = False) -> None:
        self.finished = True
        if leave or self.whole_at is None:
            self.line.cut("fin")

    def cut(self, how: str) -> None:
        """Break off, which is the end of an answer that says none."""
        self.line.cut(how)
        if self.framing == "close" and how == "fin":
            self.finished = True


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


@dataclass(eq=False)
class Line(asyncio.Protocol):
    """A vendor's end of a connection, of which the proxy has the *far* one; of the body that comes,
    so much is *missing*, None where only its end will tell.
    """

    vendor: "Vendor"
    far: Wire
    left: bool = False
    lost: bool = False
    deaf: bool = False
    calls: list[Call] = field(default_factory=list)
    unread: bytes = b""
    missing: int | None = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.vendor.lines.append(self)
        if self.vendor.manner == "slams":
            self.cut("reset")
        elif self.vendor.manner == "deaf":
            self.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self.left = self.lost = True

    @property
    def open(self) -> bool:
        """Whether both are there; one who is deaf is not told that the other has left."""
        return not self.left and not (self.deaf and has_left(self.transport))

    def stop(self) -> None:
        """Take not a byte."""
        self.deaf = True
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.unread += data
        while self.unread and self._take():
            pass

    def _take(self) -> bool:
        """Take the next request, as far as it is there; return whether it is whole."""
        if not self.calls or self.calls[-1].whole_at is not None:
            top, found, rest = self.unread.partition(b"\r\n\r\n")
            if not found:
                return False
            self.unread = rest
            pairs = (one.partition(b": ") for one in top.split(b"\r\n")[1:])
            headers = {name.lower(): value for name, _, value in pairs}
            chunked = b"transfer-encoding" in headers
            self.missing = None if chunked else int(headers.get(b"content-length", 0))
            self.calls.append(self.vendor.heard(self, headers))
        if self.missing is None:
            _, found, rest = self.unread.partition(b"0\r\n\r\n")
            self.missing, self.unread = (0, rest) if found else (None, self.unread)
        else:
            taken = self.unread[: self.missing]
            self.missing -= len(taken)
            self.unread = self.unread[len(taken) :]
        if self.missing == 0:
            self.calls[-1].whole_at = self.vendor.clock()
        return self.missing == 0

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def surplus(self) -> None:
        """Say something, though nothing is asked."""
        self.write(head(200, [(b"X-Call", b"999999"), (b"Content-Length", b"5")]) + b"wrong")

    def cut(self, how: str) -> None:
        """Leave, with a FIN or a reset."""
        self.left = True
        if self.calls and not self.calls[-1].finished:
            self.calls[-1].cut_at = self.vendor.clock()
        if how == "fin" or self.transport.get_write_buffer_size():
            self.transport.close()  # a reset would take what is unsent with it, nobody knows how much
        else:
            self.far.broken = True
            self.transport.abort()


@dataclass(eq=False)
class Vendor:
    """An upstream, which has *heard* each request whose head it has read.

    Its *manner* is "well", or else it "refuses" whoever comes, is "away" and does not answer, "slams"
    the door, or is "deaf" and takes not a byte.
    """

    name: str
    clock: Callable[[], float]
    heard: Callable[[Line, Mapping[bytes, bytes]], Call]
    manner: str = "well"
    lines: list[Line] = field(default_factory=list)

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
