"""The client's side of the wire: our own RequestHandler, and the limits on heads and bodies.

aiohttp parses; everything it would answer, log or wait for by itself is replaced, because it
echoes header values, speaks text/plain, waits for ever, and stops noticing that a client has left.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD, EmptyStreamReader, StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler, RequestPayloadError, _ErrInfo

from proxy.admission import Admitted
from proxy.client.heads import Head, Heads
from proxy.errors import (
    BAD_REQUEST,
    HEADERS_TOO_LARGE,
    OVERLOADED,
    REQUEST_TIMEOUT,
    REQUEST_TOO_LARGE,
    URI_TOO_LONG,
    ProxyError,
)
from proxy.exchange import Exchange
from proxy.headers import find
from proxy.model.body import Body
from proxy.wire.coding import Unpacker
from proxy.wire.descriptors import Descriptors
from proxy.wire.outbox import Outbox, Outgoing
from proxy.wire.peers import Watch, has_left, has_said, watch
from proxy.wire.ports import Flow

LINE_BYTES = 16 * 1024
FIELD_BYTES = 32 * 1024
HEAD_BYTES = 128 * 1024
HEAD_FIELDS = 128
HEAD_SECONDS = 10.0
BODY_IDLE_SECONDS = 30.0
STRANGER_SECONDS = 75.0
"""Close a connection that is idle for this long if its client has not shown that it may ask."""
NEW_SECONDS = 2.0
"""Let who has connected begin to ask for this long before it gives way to others."""
SPARE_SECONDS = 1.0
"""Wait this long for the head of a client that we can only send away."""
LINGER_SECONDS = 5.0
GIVE_UP_SECONDS = 30.0
"""Abort a closing connection whose client has not taken the rest after this long."""
READ_BYTES = 64 * 1024
PAUSED_SECONDS = 0.5
"""Look this often whether a client that is held back has left."""
GO_ON_SECONDS = 0.01
"""Try again this soon to hand on a connection."""
PIPELINED_BYTES = 64 * 1024
"""Keep this much of what a client sends behind a running exchange; drop all of a longer one."""


class BrokenBody(Exception):
    """The rest of a body is not HTTP."""


class Whole(EmptyStreamReader):
    """A body that came in whole, together with its head."""

    __slots__ = ("_body",)

    def __init__(self, body: bytes) -> None:
        self._body = body

    def read_nowait(self, n: int = -1) -> bytes:
        """Return what was not read yet."""
        body, self._body = self._body, b""
        return body


class Request:
    """A request's head and body as they come in, and the way back to its client. *length* is how long the
    body is said to be, None where only its end will tell.

    Takes the place of aiohttp's request, of which it is the part that a `RequestHandler` needs.
    """

    __slots__ = ("_expects", "_payload", "_protocol", "head", "length")

    def __init__(
        self,
        head: Head,
        payload: StreamReader,
        length: int | None,
        protocol: "Handler",
    ) -> None:
        self.head = head
        self.length = length
        self._payload = payload
        self._protocol = protocol
        self._expects = False

    # What forward and relay need

    @property
    def transport(self) -> Outgoing | None:
        """Return the client's transport, None once the client is gone."""
        return cast(Outgoing | None, self._protocol.transport)

    @transport.setter
    def transport(self, transport: Outgoing | None) -> None:
        raise AttributeError("the protocol owns its transport")

    @property
    def flow(self) -> Flow | None:
        """Return what listens to whether the client keeps up."""
        return self._protocol.flow

    @flow.setter
    def flow(self, flow: Flow | None) -> None:
        self._protocol.flow = flow

    @property
    def writing_paused(self) -> bool:
        """Return whether the client takes no more for now."""
        return self._protocol.writing_paused

    @property
    def peername(self) -> object:
        """Return the client's address."""
        return self._protocol.peername

    @property
    def sockname(self) -> object:
        """Return the address that the client has connected to."""
        return self._protocol.sockname

    @property
    def keep_alive(self) -> bool:
        """Return whether the client's connection may be used again after this answer."""
        return not self.head.last and self._protocol.reusable

    async def read(
        self, exchange: Exchange, limit: int, admitted: Admitted, unpacker: Unpacker | None = None
    ) -> Body:
        """Return the whole body, as *unpacker* has it, for whose bytes *admitted* has room then.

        Raises `ProxyError` for a body over *limit* bytes, one that stalls, one that is not framed
        as HTTP, one that does not unpack, and one for which there is no room.
        """
        announced = self.length or 0
        if announced > limit:
            raise _too_large(limit)
        if unpacker is not None:
            return await self._unpacked(exchange, limit, admitted, unpacker)
        if self._payload.is_eof():
            body: Body = self._protocol.take(self._payload)
            admitted.hold(len(body))
        else:
            admitted.check(announced)
            self._continue()
            body = bytearray()  # not pieces to be joined, which would hold it twice
            while piece := await self._piece():
                if len(body) + len(piece) > limit:
                    raise _too_large(limit)
                admitted.hold(len(piece))
                body += piece
        exchange.bytes_in = len(body)
        self._protocol.watch()
        return body

    async def _unpacked(
        self, exchange: Exchange, limit: int, admitted: Admitted, unpacker: Unpacker
    ) -> Body:
        """Do what `read` does with a body that comes packed: nothing of it is held but its plain text."""
        body = bytearray()
        self._continue()
        while packed := await self._piece():
            exchange.bytes_in += len(packed)
            if exchange.bytes_in > limit:
                raise _too_large(limit)
            for piece in unpacker.feed(packed):
                if len(body) + len(piece) > limit:
                    raise _too_large(limit)
                admitted.hold(len(piece))
                body += piece
                await asyncio.sleep(0)  # to unpack takes time, and others have theirs
        unpacker.end()
        self._protocol.watch()
        return body

    async def receive(self, exchange: Exchange) -> bytes:
        """Return the next piece of the body as it comes, nothing at its end. Raises `ProxyError`."""
        self._continue()
        piece = await self._piece()
        exchange.bytes_in += len(piece)
        if not piece:
            self._protocol.watch()
        return piece

    def tunnel(self, take: Callable[[bytes], None]) -> None:
        """Hand to *take* what the client sends from now on, and at once what it has sent early."""
        self._protocol.tunnel(take)

    def complete(self) -> bool:
        """Return whether the whole body has come in."""
        return self._payload.is_eof()

    @property
    def leaving(self) -> bool:
        """Return whether the proxy is leaving."""
        return self._protocol.leaving

    def vouch(self) -> None:
        """Note that the client may ask what it has asked."""
        self._protocol.known = True

    def expect_continue(self) -> None:
        """Note that the client waits for a word before it sends its body."""
        self._expects = True

    @property
    def waiting(self) -> bool:
        """Return whether the client still waits for a word before it sends its body."""
        return self._expects and not self._payload.is_eof()

    def _continue(self) -> None:
        transport = self._protocol.transport
        if self._expects and transport is not None:
            self._expects = False
            transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def _piece(self) -> bytes:
        try:
            async with asyncio.timeout(BODY_IDLE_SECONDS):
                return await self._any()
        except (RequestPayloadError, BrokenBody):
            self._payload.feed_eof()  # nothing is left to pass over
            raise ProxyError(BAD_REQUEST, "The request's body is not valid HTTP.") from None
        except TimeoutError:
            message = "The request's body did not arrive in time."
            raise ProxyError(REQUEST_TIMEOUT, message) from None
        except ConnectionError:
            raise asyncio.CancelledError from None  # which is on its way: the client is gone

    # What aiohttp needs

    def plain(self) -> web.BaseRequest:
        """Return what aiohttp's own answers take for a request."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        writer = StreamWriter(self._protocol, loop)
        return web.BaseRequest(self.head.message, self._payload, self._protocol, writer, task, loop)

    def _cancel(self, error: BaseException) -> None:
        self._payload.set_exception(error)

    async def pass_over(self) -> bool:
        """Read the rest of the body, which nobody wants, for a while; return whether it is over."""
        await asyncio.sleep(0)  # who was reading it, and was told to stop, is out of the way then
        with suppress(TimeoutError, RequestPayloadError, BrokenBody):
            async with asyncio.timeout(LINGER_SECONDS):
                while not self._payload.is_eof():
                    await self._any()
        return self._payload.is_eof()

    async def _any(self) -> bytes:
        """Return what there is of the body, as soon as there is any.

        `readany` does not see what broke a body in the very moment in which a chunk had ended.
        """
        payload = self._payload
        while not payload.is_eof() and not payload._buffer:
            if (error := payload.exception()) is not None:
                raise error
            await payload._wait("any")
        return payload.read_nowait()


Onward = Callable[..., bool]
"""Hands a connection on to another process: its descriptor, and whether it is *known* that its client may
ask. Returns whether that could be done.
"""


class Answering(Protocol):
    """What a connection's requests are answered by."""

    @property
    def leaving(self) -> bool:
        """Return whether no connection may be used for another request."""

    @property
    def keepalive_idle(self) -> float:
        """Return how many seconds a connection may be idle."""

    @property
    def onward(self) -> Onward | None:
        """Return how another process gets each connection as soon as nothing is asked on it, if it is to."""

    def handle(self, request: Request) -> Awaitable[bool]:
        """Answer one request, whatever it is; return whether another one may follow."""

    def malformed(self, request: Request, error: ProxyError) -> None:
        """Answer what could not be parsed as a request."""

    def refuse(self, request: Request, error: ProxyError) -> None:
        """Answer a request that nobody looks at with *error*."""


class _Full:
    """Answers in the place of *answering* where there is no descriptor for an exchange."""

    leaving = True
    onward = None
    keepalive_idle = HEAD_SECONDS

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self.malformed = answering.malformed
        self.refuse = answering.refuse

    async def handle(self, request: Request) -> bool:
        """Send its client away; no other request may follow."""
        self._answering.refuse(request, _full())
        return False


class Handler(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_answering",
        "_behind",
        "_deaf",
        "_due",
        "_given",
        "_head_bytes",
        "_head_timer",
        "_heads",
        "_incoming",
        "_lookout",
        "_outbox",
        "_surplus",
        "_take",
        "flow",
        "idle_since",
        "is_new",
        "known",
    )

    def __init__(
        self,
        manager: web.Server,
        answering: Answering,
        heads: Heads,
        outbox: Outbox,
        loop: asyncio.AbstractEventLoop,
        *,
        known: bool = False,
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=min(STRANGER_SECONDS, answering.keepalive_idle),
            access_log=cast(Any, None),
            max_line_size=LINE_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=HEAD_FIELDS,
            lingering_time=LINGER_SECONDS,
            read_bufsize=READ_BYTES,
            auto_decompress=False,
        )
        self._answering = answering
        self._heads = heads
        self._outbox = outbox
        self._given = 0  # so many bytes has the parser had since it last stood between two requests
        self._due: int | None = 0  # and after so many it does again; None: that will never be known
        self.flow: Flow | None = None
        self.known = known  # a request of this client was one that it may make
        self.idle_since = 0.0  # where it is idle
        self.is_new = True  # nothing has been asked yet
        self._behind = bytearray()
        self._deaf = False  # nothing more of this connection is a request
        self._incoming: StreamReader = EMPTY_PAYLOAD  # the body of the request that came last
        self._surplus = False  # whether the packet with it held the beginning of another head
        self._take: Callable[[bytes], None] | None = None
        self._lookout: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def leaving(self) -> bool:
        """Return whether the proxy is leaving."""
        return self._answering.leaving

    @property
    def reusable(self) -> bool:
        """Return whether another request may follow on this connection."""
        return not self._deaf and not self.leaving

    def data_received(self, data: bytes) -> None:
        """Take *data* for what it is at this point: a body's, a head's, or too early.

        Reading goes on in any case, because a connection that is not read does not tell that the
        client has left. What comes behind an exchange that is running is kept for later, up to a
        bound; beyond it nothing of this connection is a request any more.
        """
        if self._take is not None:
            self._take(data)
            return
        if self._deaf:
            return
        request = cast(Request | None, self._current_request)
        if request is not None:
            early = request.complete()
        else:  # a request may be queued whose handling has not begun
            early = bool(self._messages) and self._incoming.is_eof()
        if data and (early or self._behind):
            self._behind += data
            if len(self._behind) > PIPELINED_BYTES:
                self._behind.clear()
                self._deaf = True
        elif not self._incoming.is_eof():
            self._take_body(data)
        else:
            self._take_head(data)

    def _take_body(self, data: bytes) -> None:
        incoming, known = self._incoming, len(self._messages)
        self._given += len(data)
        super().data_received(data)
        if len(self._messages) > known:
            message, self._incoming = self._messages[-1]
            if isinstance(message, _ErrInfo) and not incoming.is_eof():
                incoming.set_exception(BrokenBody())  # else it would be waited for
        if incoming.is_eof():
            self._surplus = self._incoming.is_eof() and _has_surplus(data, self._incoming)
            if self._surplus and self._current_request is None and not self._messages:
                self._await_head()

    def _take_head(self, data: bytes) -> None:
        begins = self._given == self._due
        if begins:
            found = self._heads.find(data)
            if found is not None and not self._force_close and not self._close:
                head, body = found
                request = Request(head, Whole(body), len(body), self)
                self._messages.append((cast(Any, request), EMPTY_PAYLOAD))
                self._wake()
                return
            self._given = 0
        self._parse_head(data, begins=begins)

    def _parse_head(self, data: bytes, *, begins: bool) -> None:
        """Have *data* parsed, with which a head *begins*, or goes on, that did not come before."""
        known = len(self._messages)
        self._head_bytes += len(data)
        self._given += len(data)
        self._due = None
        super().data_received(data)
        if len(self._messages) == known:
            if self._head_timer is not None or data.strip(b"\r\n"):  # empty lines begin none
                self._await_head()
            return
        self._stop_head_timer()
        if self._head_bytes > HEAD_BYTES and _longest([*self._messages][known:]) > HEAD_BYTES:
            self._messages.clear()
            self._refuse_head(431)
        self._head_bytes = 0
        message, self._incoming = self._messages[-1]
        if begins and len(self._messages) == known + 1 and isinstance(message, RawRequestMessage):
            head, self._due = self._heads.learn(data, message)
            request = Request(head, self._incoming, _length(message), self)
            self._messages[-1] = cast(Any, request), self._incoming
        self._surplus = self._incoming.is_eof() and _has_surplus(data, self._incoming)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(Outgoing(cast(asyncio.Transport, transport), self._outbox))
        if isinstance(self._answering, _Full):
            self._head_timer = self._loop.call_later(SPARE_SECONDS, self._refuse_head, 503)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        if self._lookout is not None:
            self._lookout.cancel()
        super().connection_lost(exc)
        self._incoming = EMPTY_PAYLOAD  # which knows us: nothing is left for the garbage collector

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.flow is not None:
            self.flow.pause_writing()

    def pause_reading(self) -> None:
        super().pause_reading()
        if self._lookout is None:
            self._lookout = self._loop.call_later(PAUSED_SECONDS, self._look_for_end)

    def _look_for_end(self) -> None:
        """Ask the kernel whether the client is there: who does not read is not told."""
        self._lookout = None
        if self.transport is None or not self._reading_paused:
            return
        if has_left(self.transport):
            self.transport.abort()
        else:
            self._lookout = self._loop.call_later(PAUSED_SECONDS, self._look_for_end)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.flow is not None:
            self.flow.resume_writing()

    def take(self, payload: StreamReader) -> bytes:
        """Return the whole of *payload*, which is complete."""
        if self._reading_paused or isinstance(payload, EmptyStreamReader):
            return payload.read_nowait()
        # What it would do beyond this is to wake a parser that is not asleep.
        pieces = payload._buffer
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return body

    def watch(self) -> None:
        """Go on reading, though the parser may have enough: to see the client leave."""
        if self._reading_paused or self._buffer_paused:
            self._resume_transport_reading()

    def tunnel(self, take: Callable[[bytes], None]) -> None:
        """Hand to *take* whatever comes from now on, and what has come already behind the head."""
        if self._deaf and self.transport is not None:
            # It has said more than is kept before it had its answer, and some of that is lost.
            self.transport.abort()
            return
        early = self._message_tail + bytes(self._behind)
        self._message_tail = b""
        self._behind.clear()
        self._take = take
        self._deaf = True  # for everything else: no request will follow
        if early:
            take(early)

    @property
    def idle(self) -> bool:
        """Return whether nothing is asked, and nothing has been read of what may be asked next."""
        waiter = self._waiter
        if waiter is None or waiter.done() or self._messages or self._behind or self._deaf:
            return False
        if self._head_timer is not None:
            return False
        if self._due is not None:
            return self._given == self._due
        return not self._surplus and self._incoming.is_eof()

    @property
    def can_spare(self) -> bool:
        """Return whether nobody should miss the connection: idle, and not one whose client has only just
        come, and is about to ask.
        """
        return self.idle and not (self.is_new and self._loop.time() - self.idle_since < NEW_SECONDS)

    def give_way(self) -> bool:
        """Close, being idle; return whether that was done: not where a request is on its way."""
        if self.transport is None or has_said(self.transport):
            return False
        self.force_close()
        return True

    def go_on(self) -> None:
        """Hand the connection on to another process, if one is to have it and nothing is asked on it; else
        that happens when it is so.

        Nothing waits in here, so nothing can be read between looking and handing on: what comes from
        then on stays in the kernel, for the other process.
        """
        onward, transport = self._answering.onward, self.transport
        if onward is None or transport is None or not self.idle:
            return
        cast(Outgoing, transport).send()
        sock = transport.get_extra_info("socket")
        if transport.get_write_buffer_size() or not onward(sock.fileno(), known=self.known):
            self._loop.call_later(GO_ON_SECONDS, self.go_on)
        else:
            transport.abort()  # which ends what we have of it, and not the connection

    def retire(self) -> None:
        """Take no further request: close at once where none is running, else after its answer."""
        request = cast(Request | None, self._current_request)
        if request is None and not self._messages:
            self.force_close()
        elif request is None or request.complete():
            self.close()  # not while a body comes in: aiohttp would drop the rest of it

    def expel(self) -> None:
        """End what is running, now; its caller is told, where a head is not out yet."""
        if self._current_request is not None and self._task_handler is not None:
            self._task_handler.cancel()

    async def start(self) -> None:
        """Answer one request after the other, until no further one may follow.

        Takes the place of aiohttp's, which makes a task, a writer and a response of each request.
        Whoever ends the connection, or what runs on it, cancels the task that this is.
        """
        try:
            keep_alive = True
            while keep_alive and not self._force_close and not self._close:
                keep_alive = await self._serve(*await self._next())
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it
            self.log_exception("Unhandled exception", exc_info=error)
        finally:
            self._task_handler = None
            self.force_close()

    async def _serve(
        self, message: Request | RawRequestMessage | _ErrInfo, payload: StreamReader
    ) -> bool:
        """Answer one request; return whether another one may follow."""
        if isinstance(message, Request):
            request = message
            keep_alive = await self._answer(request)
        elif isinstance(message, RawRequestMessage):
            request = Request(Head(message), payload, _length(message), self)
            keep_alive = await self._answer(request)
        else:
            request, keep_alive = Request(Head(ERROR), payload, 0, self), False
            self._answering.malformed(request, _malformed(message))
            self._deaf = True  # what still comes must not reset the connection under the answer
            message.exc.__traceback__ = None  # it leads to frames that lead back to it
        if self._deaf:
            await self._say_the_end()
        elif not self._messages and (self._behind or self._surplus):
            self._take_early()
        if not request.complete() and not self._force_close:
            keep_alive &= await request.pass_over()
        return keep_alive and not self._deaf

    async def _say_the_end(self) -> None:
        """Let a client close that still sends: if we did, the connection would be reset, and the last bytes of
        our answer lost with it.
        """
        if self.transport is not None:
            if self.transport.can_write_eof():
                self.transport.write_eof()
            await asyncio.sleep(1.0)

    def _take_early(self) -> None:
        """Take what has come behind the request that was just answered."""
        behind, self._behind = bytes(self._behind), bytearray()
        self.data_received(behind)  # which also wakes the parser, where it has kept something
        if self._surplus and not self._messages:
            self._await_head()

    async def _next(self) -> tuple[Request | RawRequestMessage | _ErrInfo, StreamReader]:
        """Return the next request, or what came in its place, and its body."""
        if not self._messages:
            self._keepalive = True
            self.idle_since = self._loop.time()
            patience = self._answering.keepalive_idle
            if not self.known:
                patience = min(patience, STRANGER_SECONDS)
            self._next_keepalive_close_time = ends = self.idle_since + patience
            if self._keepalive_handle is None:
                self._keepalive_handle = self._loop.call_at(ends, self._process_keepalive)
            self._waiter = self._loop.create_future()
            if self._answering.onward is not None:
                self._loop.call_soon(self.go_on)
            try:
                await self._waiter
            finally:
                self._waiter = None
        message, payload = self._messages.popleft()
        self.is_new = False
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return message, payload

    async def _answer(self, request: Request) -> bool:
        self._request_in_progress = True
        self._current_request = cast(web.BaseRequest, request)
        try:
            if request.complete():
                self.watch()
            elif self._behind:
                behind, self._behind = bytes(self._behind), bytearray()
                self._take_body(behind)
            return await self._answering.handle(request)
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)

    def force_close(self) -> None:
        """Close, but not at the mercy of a client that never takes its last bytes."""
        transport = self.transport
        super().force_close()
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(1.0, _give_up_on, transport, self._loop)

    def _await_head(self) -> None:
        if self._head_bytes > HEAD_BYTES:
            self._refuse_head(431)
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_SECONDS, self._refuse_head, 408)

    def _refuse_head(self, status: int) -> None:
        self._stop_head_timer()
        self._messages.append((_ErrInfo(status, TimeoutError(), ""), EMPTY_PAYLOAD))
        self._wake()

    def _wake(self) -> None:
        """Have the request taken that waits in `_messages`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Server(web.Server):
    """Makes a `Handler` for each connection of one surface."""

    def __init__(self, answering: Answering, descriptors: Descriptors) -> None:
        super().__init__(
            cast(Any, answering.handle),
            handler_cancellation=True,
        )
        self.descriptors = descriptors
        self._answering = answering
        self._heads = Heads()
        self._outbox = Outbox(asyncio.get_running_loop())
        self._watch: Watch | None = None

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if self._watch is not None:
            watch(transport, self._watch)

    def watch(self, how: Watch | None) -> None:
        """Watch so from now on whether clients are there, those who are connected already too."""
        if how == self._watch:
            return
        self._watch = how
        for handler in self.handlers:
            if how is not None and handler.transport is not None:
                watch(handler.transport, how)

    @property
    def handlers(self) -> list[Handler]:
        """Return the handlers of all open connections."""
        return cast(list[Handler], self.connections)

    @property
    def transports(self) -> list[asyncio.Transport]:
        """Return all connections until they are lost: a handler lets go of its own when that begins to close,
        which lasts until the client has taken the rest, and under TLS has said so.
        """
        return [*self._connections.values()]

    def forget(self) -> None:
        """Find out anew about every request: something else answers here from now on."""
        self._heads.forget()

    def __call__(self, *, known: bool = False, spare: bool = False) -> RequestHandler:
        """Make the handler of a new connection; it is *known* that its client may ask. From a *spare* one
        whoever has come is sent away.

        aiohttp's own would discard every option if one of them were wrong, with a warning.
        """
        answering = _Full(self._answering) if spare else self._answering
        loop = asyncio.get_running_loop()
        return Handler(self, answering, self._heads, self._outbox, loop, known=known)


def _give_up_on(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
    """Abort *transport*, which is closing, if its client has not taken the rest after a while."""
    if transport.get_write_buffer_size():
        loop.call_later(GIVE_UP_SECONDS, transport.abort)


def _longest(messages: Iterable[tuple[Any, StreamReader]]) -> int:
    """Return how long the longest head of *messages* was, in bytes."""
    return max((_size(one) for one, _ in messages if isinstance(one, RawRequestMessage)), default=0)


def _size(message: RawRequestMessage) -> int:
    fields = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return len(message.path) + fields


def _length(message: RawRequestMessage) -> int | None:
    """Return how long the body behind *message* is said to be, None where only its end will tell."""
    if message.chunked:
        return None
    length = find(message.raw_headers, b"content-length") or b""
    return int(length.lstrip(b"0") or 0)  # the parser takes more noughts than `int`


def _has_surplus(data: bytes, payload: StreamReader) -> bool:
    """Return whether *data*, with which *payload* became complete, goes on behind it."""
    if data.endswith(b"\r\n\r\n"):  # a head without a body, or a last chunk
        return False
    rest = data.rstrip(b"\r\n")
    pieces = () if payload is EMPTY_PAYLOAD else payload._buffer
    return bool(rest) and not (pieces and rest.endswith(pieces[-1].rstrip(b"\r\n")))


def _too_large(limit: int) -> ProxyError:
    return ProxyError(REQUEST_TOO_LARGE, f"The request's body is over the limit of {limit} bytes.")


def _full() -> ProxyError:
    message = "The proxy has no room for another connection."
    return ProxyError(OVERLOADED, message, headers=(("Retry-After", "1"),), close=True)


def _malformed(info: _ErrInfo) -> ProxyError:
    """Say what is wrong with a head, without a byte of it: it may hold a key."""
    if info.status == 503:
        return _full()
    if info.status == 408:
        return ProxyError(REQUEST_TIMEOUT, "The request's head did not arrive in time.")
    if isinstance(info.exc, LineTooLong):
        if info.exc.args[1] == LINE_BYTES:
            return ProxyError(URI_TOO_LONG, f"The request's target is over {LINE_BYTES} bytes.")
        return ProxyError(HEADERS_TOO_LARGE, f"A header is over {FIELD_BYTES} bytes.")
    if info.status == 431 or info.message == "Too many headers received":
        return ProxyError(HEADERS_TOO_LARGE, "The request's head is too large.")
    return ProxyError(BAD_REQUEST, "The request is not valid HTTP/1.1.")
