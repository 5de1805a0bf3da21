"""One client request and its answer: the only way in which the eight steps talk to each other.

An `Exchange` is opened when a request's head has been read and settled exactly once, whatever
happened in between; what remains of it is a `Record`. Bodies and secrets never enter a record.
"""

import os
import time
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import msgspec

from proxy.cache import Cache
from proxy.dialects import Azure, Dialect
from proxy.errors import GRAVE, Kind, Outcome, printable
from proxy.headers import Headers, Pair
from proxy.keys import Key, KeyRing
from proxy.outbound import Signature, Written
from proxy.routes import Route, Upstream

WRITTEN_BYTES = 15 * 1024
"""Keep this much of the heads that one head becomes, for one target after the other."""
LEARNT_BYTES = WRITTEN_BYTES + 1024
"""Count this for what is known of a head, beside the head itself."""
QUERY_CHARS = 256
"""Remember a key with a query of up to this length."""

Phase = Literal["unsent", "sent", "answered", "streaming"]
"""How far an attempt got: from `sent` on, it may have been executed, and billed."""


class Ids:
    """Makes ids for exchanges: sortable by time, unique across processes, 30 characters."""

    def __init__(self) -> None:
        self._own = os.urandom(5).hex()
        self._count = count()
        self._at = 0
        self._start = ""  # of all ids of this millisecond

    def __call__(self) -> str:
        """Return a new id."""
        now = time.time_ns() // 1_000_000
        if now != self._at:
            self._at, self._start = now, f"req_{now:011x}{self._own}"
        return "%s%05x" % (self._start, next(self._count) % 2**20)  # noqa: UP031 - the fastest


class Attempt(msgspec.Struct, eq=False):  # made in C, for each request
    """One try at one upstream. Times are loop time, in seconds.

    *abandoned*: an answer came, and another upstream was asked all the same; this says whether it may
    have been billed. *broken*: its answer broke off, by the upstream's doing. *reason* says where
    nothing could be reached, and why. *spared*: all that was streamed of it was an error. *model* is
    what was sent for one, *credential* where the credential comes from: both None where there is none
    of ours. *vendor_code* and *vendor_type* are what its vendor calls the error in it.
    """

    upstream: str
    started: float
    model: str | None = None
    credential: str | None = None
    phase: Phase = "unsent"
    status: int | None = None
    error: str | None = None
    ended: float | None = None
    abandoned: bool | None = None
    broken: bool = False
    reason: str | None = None
    vendor_code: str | None = None
    vendor_type: str | None = None
    spared: bool = False

    @property
    def maybe_billed(self) -> bool:
        """Return whether the upstream may have executed it without the caller having its answer."""
        if self.abandoned is not None:
            return self.abandoned
        return self.error is not None and self.phase in ("sent", "streaming") and not self.spared


@dataclass(frozen=True, slots=True)
class Identified:
    """Whose a head is: *key*'s, as long as *keys* are in force, with *query*, of which *rest* remains."""

    keys: KeyRing
    query: str
    rest: str
    key: Key


class Entered:
    """Where a head leads, as its `frame` found it."""

    __slots__ = ()


class Learnt:
    """What was found out about a head, for when it comes again. Each slot says what makes it true, and who
    reads it looks whether that is so: *entered* the frame that has judged it, *identified* the keys in
    force, *written* the signature under which it went on.
    """

    __slots__ = ("entered", "identified", "written")

    def __init__(self) -> None:
        self.entered: Entered | None = None
        self.identified: Identified | None = None
        self.written: Cache[Signature, Written] = Cache(WRITTEN_BYTES)


class Exchange(msgspec.Struct, eq=False):
    """One client request and its answer, from its head to its record.

    *received* is when the head was complete, *read* when the body was, *relayed* when the first byte
    of the answer went out; all in loop time. *learnt* is what was found out about this head when it
    came before, by those who did (see `heads`). *echo* is the name to put into the answer.
    *expired* is the name of a key whose time is over. *finished*: the client has the marker that ends its stream, so leaving now breaks nothing off.
    """

    id: str
    surface: str
    method: str
    path: str
    query: str
    headers: Headers
    http10: bool
    client_ip: str | None
    received: float

    learnt: Learnt = msgspec.field(default_factory=Learnt)
    dialect: Dialect | None = None
    suffix: str = ""
    azure: Azure | None = None
    key: Key | None = None
    expired: str | None = None
    model: str | None = None
    stream: bool = False
    echo: str | None = None
    added: tuple[Pair, ...] = ()
    cors: bool = False
    route: Route | None = None
    upstream: Upstream | None = None
    model_sent: str | None = None
    attempts: list[Attempt] = msgspec.field(default_factory=list)

    read: float | None = None
    relayed: float | None = None
    waited: float = 0.0
    status: int | None = None
    outcome: Outcome | None = None
    error: str | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    upstream_request_id: str | None = None
    quiet: bool = False
    finished: bool = False

    def __repr__(self) -> str:
        return (
            f"<Exchange {self.id}: {self.method} {self.status}>"  # a query and headers hold secrets
        )

    def begin(self, upstream: Upstream, now: float) -> Attempt:
        """Open the next attempt, at *upstream*."""
        attempt = Attempt(upstream.name, now, self.model_sent)
        self.attempts.append(attempt)
        return attempt

    def break_off(self, kind: Kind) -> bool:
        """Note that the last attempt, if any goes on, ends with *kind*; return whether anything was sent of it."""
        if not self.attempts:
            return False
        last = self.attempts[-1]
        last.error = last.error or kind.code
        return last.phase != "unsent"

    def record(self, now: float) -> dict[str, Any]:
        """Return the summary of the finished exchange, as its log line has it; the log puts in `ts`.

        `overhead_us` is the time that was ours: all but the waiting for the client's body, for a
        connection, for the upstream's head, and for the rest of the answer.
        """
        begun = self.read if self.read is not None else self.received
        until = self.relayed if self.relayed is not None else now
        sent = self.model_sent
        shown = None if sent is None else printable(sent)
        return {
            "ts": None,
            "level": "warning" if self.error in GRAVE else "debug" if self.quiet else "info",
            "event": "exchange",
            "request_id": self.id,
            "trace_id": None,
            "key": self.key.name if self.key else self.expired,
            "surface": self.surface,
            "route": self.route.name if self.route else None,
            "upstream": self.upstream.name if self.upstream else None,
            "model": self.model,
            "upstream_model": shown,
            "method": self.method,
            "path": printable(self.path, 1024),
            "status": self.status,
            "stream": self.stream,
            "outcome": self.outcome,
            "attempts": [
                {
                    "upstream": attempt.upstream,
                    "model": shown if attempt.model is sent else _shown(attempt.model),
                    "credential": attempt.credential,
                    "phase": attempt.phase,
                    "status": attempt.status,
                    "error": attempt.error,
                    "reason": attempt.reason,
                    "vendor_code": attempt.vendor_code,
                    "vendor_type": attempt.vendor_type,
                    "ms": _ms(attempt.started, attempt.ended or now),
                    "maybe_billed": attempt.maybe_billed,
                }
                for attempt in self.attempts
            ],
            "first_byte_ms": None if self.relayed is None else _ms(self.received, self.relayed),
            "total_ms": _ms(self.received, now),
            "overhead_us": max(0, int((until - begun - self.waited) * 1e6)),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "tokens_in": None,
            "tokens_out": None,
            "tokens_cached": None,
            "cost_usd": None,
            "finish_reason": None,
            "upstream_request_id": self.upstream_request_id,
            "client_ip": self.client_ip,
            "error": self.error,
        }


def _shown(model: str | None) -> str | None:
    return None if model is None else printable(model)


def _ms(start: float, end: float) -> float:
    return int((end - start) * 1e6) / 1000
