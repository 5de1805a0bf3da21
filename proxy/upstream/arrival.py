"""One answer, as it arrives (sans I/O): bytes in, calls on who asked and on who takes it out.

The traps of the parser are all met here: it has no mode for answers without end (a close ends
them), it reports 1xx as whole answers, it takes bytes after a body for the next answer, and it
knows keep-alive only inside its own callback. It appends the chunks of a body to a list by itself,
as a call of ours for each would cost more than they do. After a 101 there is no parser any more:
bytes are bytes, in both directions.
"""

import re
from enum import Enum
from typing import Protocol, cast

import httptools

from proxy.errors import (
    STREAM_DISCONNECTED,
    UPSTREAM_PROTOCOL,
    Fault,
    ProxyError,
    UpstreamFailure,
)
from proxy.headers import Headers, Pair
from proxy.wire.ports import Sink

HEAD_BYTES = 256 * 1024
"""Refuse an answer whose head is longer than this."""
BODILESS = frozenset({204, 304})
"""End an answer of these statuses with its head (RFC 9110 sections 15.3.5 and 15.4.5)."""

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f]")


class State(Enum):
    """How far an answer has come: to its head, its body, its end in one way or the other; or it has
    become a tunnel.
    """

    HEAD = "head"
    BODY = "body"
    WHOLE = "whole"
    BROKEN = "broken"
    TUNNEL = "tunnel"


# By names of their own, which are found several times faster than those of an enumeration.
HEAD, BODY, WHOLE, BROKEN, TUNNEL = State


class Asker(Sink, Protocol):
    """Who asked: is told of the head, and takes the body until somebody else does."""

    def head(self, status: int, reason: bytes, headers: Headers) -> None:
        """The head is there: not that of a 1xx, but for a 101 that was asked for."""


class _Nobody:
    """Asks no more, and takes nothing."""

    size = 0

    def head(self, status: int, reason: bytes, headers: Headers) -> None:
        pass

    def data(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def broke(self, error: ProxyError) -> None:
        pass


_NOBODY = _Nobody()


class Parser:
    """httptools' parser, for all answers of one connection: to make one costs more than it is worth.

    It keeps the head that is arriving, and tells *arrival*, the answer that is waited for.
    """

    __slots__ = (
        "_fields",
        "arrival",
        "headers",
        "http",
        "on_body",
        "pieces",
        "reason",
        "status",
    )

    def __init__(self) -> None:
        self.arrival = cast("Arrival", None)
        self.pieces: list[bytes] = []
        self.on_body = self.pieces.append  # a callback as the others below, but C calls C
        self.status = 0  # of the last head, which may be a 1xx
        self.reason = b""
        self.headers = Headers()
        self._fields: list[Pair] | None = None  # of the head that is arriving
        self.http = httptools.HttpResponseParser(self)

    def close(self) -> None:
        """Let go of what knows us: nothing is left to find for the garbage collector."""
        del self.http, self.arrival

    # httptools; a name is fixed by the library

    def on_message_begin(self) -> None:
        if self.arrival.state is not HEAD:
            # A second answer: nothing of it may be taken for the body of the first.
            raise httptools.HttpParserError("surplus")
        self.reason = b""
        self._fields = []

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._fields is not None:  # after the head, these are trailers, which are not passed on
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self._fields is not None:
            self.status = self.http.get_status_code()
            self.headers, self._fields = Headers(self._fields), None
            self.arrival.begin()

    def on_message_complete(self) -> None:
        self.arrival.complete()


class Arrival:
    """One answer to *asker*, fed through *parser*; with *upgrade* it may be a 101 of a WebSocket.

    *sink* takes the body; *head_size* counts the bytes of what has come until the head was there; *reusable*:
    the answer is whole, and another one may follow it.
    """

    __slots__ = (
        "_asker",
        "_closed",
        "_http",
        "_parser",
        "_pieces",
        "_upgrade",
        "error",
        "head_size",
        "reusable",
        "sink",
        "state",
    )

    def __init__(self, asker: Asker, parser: Parser, *, upgrade: bool = False) -> None:
        self._asker: Asker = asker
        self._parser = parser
        self._http = parser.http
        self._pieces = parser.pieces
        self._upgrade = upgrade
        self._closed = False  # it ends when its connection does
        self.sink: Sink = asker
        self.state = HEAD
        self.head_size = 0
        self.reusable = False
        self.error: ProxyError | None = None
        parser.arrival = self
        parser.status = 0

    def __repr__(self) -> str:
        return f"<Arrival: {self}>"

    def __str__(self) -> str:
        if self.over:
            return self.state.value
        size = self.head_size if self.state is HEAD else self.sink.size
        said = f"{size} B" if size < 1000 else f"{size / 1000:.0f} kB"
        return f"{self.state.value}, {said}"

    @property
    def over(self) -> bool:
        """Return whether nothing more belongs to it."""
        return self.state is WHOLE or self.state is BROKEN

    def feed(self, data: bytes) -> bool:
        """Take the next *data*; return whether it may have been of this answer, which was not over then."""
        state = self.state
        if state is BODY:  # an event, as nearly all are
            try:
                self._http.feed_data(data)
            except httptools.HttpParserError:
                self._break("sent an answer that is not HTTP", BODY)
        elif state is TUNNEL:
            self.sink.data(data)
            return True
        elif state is not HEAD:
            return False
        elif not self._feed_head(data):
            return True
        pieces = self._pieces
        if len(pieces) == 1:
            self.sink.data(pieces.pop())
        elif pieces:
            body = b"".join(pieces)
            pieces.clear()
            self.sink.data(body)
        if self.state is not BODY:
            self.tell()
        return True

    def close(self, unanswered: ProxyError, *, clean: bool) -> None:
        """Take note that the connection is lost, *clean* if the upstream had ended it in order: where the
        answer has not begun, *unanswered* says what that means.
        """
        if clean and self._closed and not self.over:
            self.state = WHOLE
            self.tell()
        elif self.state is not HEAD:
            self.fail(_cut("closed the connection"))
        elif 100 <= self._parser.status < 200:
            self.fail(_malformed("announced an answer and sent none"))
        else:
            self.fail(unanswered)

    def fail(self, error: ProxyError) -> None:
        """Break the answer off because of *error*; the first reason is the one that counts."""
        if not self.over:
            self.state, self.error = BROKEN, error
            self.tell()

    def abandon(self) -> None:
        """Tell nobody any more: who took it has left."""
        self.sink = self._asker = _NOBODY
        if not self.over:
            self.state, self.error = BROKEN, _cut("was left")

    def tell(self) -> None:
        """Tell who takes the body that it is over, if it is."""
        sink = self.sink
        if self.state is WHOLE:
            self.sink = self._asker
            sink.end()
        elif self.error is not None:
            self.sink = self._asker
            sink.broke(self.error)

    # What the parser tells

    def begin(self) -> None:
        """Take the head that the parser has, and decide what ends the body (RFC 9112 section 6.3)."""
        parser = self._parser
        status, first = parser.status, parser.headers.first
        if status == 101 or parser.http.get_http_version() not in ("1.1", "1.0"):
            asked = self._upgrade and first.get(b"upgrade", b"").lower() == b"websocket"
            if status == 101 and asked and parser.http.should_upgrade():
                self.state, self._closed = TUNNEL, True
            else:
                self._break("switched to another protocol", HEAD)
            return
        if 100 <= status < 200:
            return
        codings = parser.headers.every(b"transfer-encoding")
        if codings and [coding.strip().lower() for coding in codings] != [b"chunked"]:
            self._break("used a transfer coding that is not known", HEAD)
        elif status < 200 or _CONTROL.search(parser.reason):
            self._break("sent a status that there is not", HEAD)
        else:
            self.state = BODY
            self._closed = not (codings or b"content-length" in first or status in BODILESS)

    def complete(self) -> None:
        """Take note that the body is complete, or that what went before was a 1xx."""
        if self.state is BODY:
            self.state = WHOLE
            self.reusable = (
                not self._closed and self._http.should_keep_alive()
            )  # true of it only now

    # Inside

    def _feed_head(self, data: bytes) -> bool:
        """Take *data*, in which the head may end, and tell who asked of it; return whether it is there, and can be
        believed.
        """
        self.head_size += len(data)
        parser = self._parser
        try:
            parser.http.feed_data(data)
        except httptools.HttpParserUpgrade as switched:
            if rest := data[switched.args[0] :]:
                self._pieces.append(rest)
        except httptools.HttpParserError:
            self._break("sent an answer that is not HTTP", HEAD)
        if self.state is HEAD:
            if self.head_size <= HEAD_BYTES:
                return False
            self._break("sent too long a head", HEAD)
        if self.state is BROKEN:
            self.tell()
            return False
        self._asker.head(parser.status, parser.reason, parser.headers)
        return True

    def _break(self, what: str, before: State) -> None:
        """Take note of what is no answer, in a read *before* which the answer had come so far: who was told of
        no head hears that there is none. Behind a whole answer it only says that none may follow.
        """
        self.reusable = False
        if not self.over:
            self.state = BROKEN
            self.error = _malformed(what) if before is HEAD else _cut(what)


def _malformed(what: str) -> UpstreamFailure:
    return UpstreamFailure(UPSTREAM_PROTOCOL, f"The upstream {what}.", Fault.MALFORMED)


def _cut(what: str) -> ProxyError:
    message = f"The upstream {what} before its answer was complete."
    return ProxyError(STREAM_DISCONNECTED, message)
