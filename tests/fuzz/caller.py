"""The callers: what they ask, and what they have of an answer."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

import orjson

from tests.fuzz.kinds import BODILESS, KINDS, Kind
from tests.fuzz.plan import BEGINS, IDLE, LEAVING, SLACK, WRITE, Plan
from tests.fuzz.vendor import Call
from tests.harness.upstream import chunk

UPLOAD_BYTES = 50_000
"""No more: who is held back on a unix socket cannot be seen to leave, as on TCP."""


class Caller(asyncio.Protocol):
    """A client's connection."""

    def __init__(self) -> None:
        self.raw = bytearray()
        self.latest = -1  # the tag of the last request on it
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
    if status in BODILESS:
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
    """A request as its caller sees it: the *tag*th, of a caller who has *patience* for so many seconds.

    *unheard*: the proxy took it no more. *rest* is what of it is to be sent later, *at* when the last of it
    was. *was_over*: all had come before the caller left.
    """

    tag: int
    kind: Kind
    route: str
    plan: Plan
    stream: bool
    patience: float | None
    clock: Callable[[], float]
    caller: Caller = field(default_factory=Caller)
    unheard: bool = True
    at: float = 0.0
    start: int = 0
    rest: bytes = b""
    gone_at: float | None = None
    was_over: bool = False
    paused_at: float | None = None
    calls: list[Call] = field(default_factory=list)
    _read: tuple[int, Reading] = (-1, Reading())

    def __repr__(self) -> str:
        reading = self.reading
        end = "whole" if reading.whole else "closed" if self.caller.closed else "open"
        gone = ", has left" if self.gone_at else ""
        what = f"ask {self.tag}: {self.kind.path} of {self.route}"
        has = f"{reading.status}, {len(reading.body)} bytes, {end}{gone}"
        return f"<{what}, has {has}; {self.calls}>"

    # What may happen

    def send(
        self, caller: Caller, *, size: int = 0, late: bool = False, chunked: bool, last: bool
    ) -> None:
        """Send it by way of *caller*; of a *late* one the body comes with `more`."""
        self.unheard, self.caller, self.at = False, caller, self.clock()
        self.start, caller.latest = len(caller.raw), self.tag
        kind, bare = self.kind, self.kind is KINDS["file"]
        path = kind.path + ("" if kind.routed else str(self.tag))
        lines = [f"{'GET' if bare else 'POST'} {path} HTTP/1.1", f"X-Tag: {self.tag}"]
        lines.append("Host: localhost")
        if last:
            lines.append("Connection: close")
        if self.patience is not None:
            lines.append(f"X-Stainless-Read-Timeout: {self.patience:g}")
        body = self._body(size)
        if bare:
            first, rest = b"", b""
        elif chunked:
            lines.append("Transfer-Encoding: chunked")
            half = len(body) // 2
            first, rest = chunk(body[:half]), chunk(body[half:]) + b"0\r\n\r\n"
        else:
            lines.append(f"Content-Length: {len(body)}")
            first, rest = body[:5], body[5:]
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        caller.transport.write(head + first + (b"" if late else rest))
        self.rest = rest if late else b""

    def _body(self, size: int) -> bytes:
        if not self.kind.routed:
            return b"x" * min(size or 10, UPLOAD_BYTES)
        model = f"{self.route}/{self.tag}"
        return orjson.dumps({"model": model, "stream": self.stream, "text": "x" * size})

    def more(self) -> None:
        """Send the rest of a late body."""
        if not self.caller.closed:
            self.caller.transport.write(self.rest)
        self.rest, self.at = b"", self.clock()

    def leave(self) -> None:
        """Let the caller go away."""
        self.was_over, self.gone_at = self.over, self.clock()
        self.caller.transport.abort()

    def pause(self) -> None:
        """Let the caller read nothing."""
        self.caller.paused, self.paused_at = True, self.clock()
        self.caller.transport.pause_reading()

    def resume(self) -> None:
        """Let the caller read again."""
        self.caller.paused = False
        if not self.caller.closed:
            self.caller.transport.resume_reading()

    # What has become of it

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
    def latest(self) -> bool:
        """Return whether nothing was asked behind it, on the same connection."""
        return self.caller.latest == self.tag

    @property
    def free(self) -> bool:
        """Return whether the caller could ask again, on the same connection."""
        there = self.gone_at is None and not self.unheard and not self.caller.closed
        return there and self.latest and self.reading.whole and not self.rest

    @property
    def listening(self) -> bool:
        """Return whether the caller takes what comes, and always has."""
        return not self.was_paused and self.gone_at is None

    @property
    def was_paused(self) -> bool:
        """Return whether the caller has ever taken nothing for a while."""
        return self.paused_at is not None

    @property
    def abandoned(self) -> bool:
        """Return whether nobody may work for it any more, as the caller has left."""
        if self.gone_at is None:
            return False
        return self.was_over or self.clock() >= self.gone_at + LEAVING

    @property
    def stuck(self) -> bool:
        """Return whether nobody may work for it any more, as the caller takes nothing."""
        if not self.caller.paused or self.paused_at is None:
            return False
        begun = bool(self.calls) and self.calls[-1].status == 200
        last = max(self.at, self.paused_at, *(call.spoke_at for call in self.calls))
        return self.clock() > last + IDLE + WRITE + SLACK + (0.0 if begun else BEGINS)

    @property
    def alive(self) -> bool:
        """Return whether somebody may work for it."""
        if self.gone_at is not None:
            return not self.abandoned
        return not self.over and not self.stuck

    @property
    def answering(self) -> Call | None:
        """Return the call whose answer it is that comes, None while none does, or one of the proxy's own."""
        number = self.reading.headers.get(b"x-call")
        if number is None:
            return None
        return next((call for call in self.calls if call.id == int(number)), None)
