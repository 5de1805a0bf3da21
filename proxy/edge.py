"""The client's side of the wire: our own RequestHandler, the limits on heads and bodies, and the frame
around every exchange: it is opened here, whatever fails is told to the caller here, and here it is
settled, once.

aiohttp parses; everything it would answer, log or wait for by itself is replaced, because it
echoes header values, speaks text/plain, waits for ever, and stops noticing that a client has left.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from proxy.admission import Gate
from proxy.dialects import shape_of
from proxy.errors import (
    BAD_REQUEST,
    CLIENT_GONE,
    EXPECTATION_FAILED,
    HEADERS_TOO_LARGE,
    INTERNAL,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    ORIGIN_NOT_ALLOWED,
    REQUEST_TIMEOUT,
    REQUEST_TOO_LARGE,
    SHUTDOWN,
    URI_TOO_LONG,
    ProxyError,
    render,
)
from proxy.exchange import Exchange, Ids
from proxy.headers import find
from proxy.relay import Flow
from proxy.sinks import Log
from proxy.surfaces import Located, Surface, host_name, is_unsafe

LINE_BYTES = 16 * 1024
FIELD_BYTES = 32 * 1024
HEAD_BYTES = 128 * 1024
HEAD_FIELDS = 128
HEAD_SECONDS = 10.0
BODY_IDLE_SECONDS = 30.0
KEEPALIVE_SECONDS = 75.0
LINGER_SECONDS = 5.0
GIVE_UP_SECONDS = 30.0
READ_BYTES = 64 * 1024
PIPELINED_BYTES = 64 * 1024
"""How much of what a client sends behind a running exchange is kept for later."""
_LAST_CHUNK = b"\r\n0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers at a path: the *methods* it knows, and *handle*, which writes the answer and
    returns whether the client's connection may be used again.

    An *always_open* one answers whatever the request's Host, and is logged at debug level.
    """

    methods: tuple[str, ...]
    handle: Callable[[Exchange, "Request"], Awaitable[bool]]
    always_open: bool = False


Find = Callable[[str], tuple[Endpoint, Located | None] | None]
"""Returns what answers at a raw path, and what the path means, or None."""


class Sent:
    """Stands in for a response that has been written already: aiohttp is to add nothing to it."""

    __slots__ = ("keep_alive",)

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, request: object) -> None:
        """Do nothing: the head is out."""

    async def write_eof(self) -> None:
        """Do nothing: the body is out, as far as it will ever be."""


class Request:
    """A request's head and body as they come in, and the way back to its client.

    Takes the place of aiohttp's request, of which it is the part that a `RequestHandler` needs.
    """

    __slots__ = ("_expects", "_payload", "_protocol", "_task", "message")

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: "Handler",
        writer: object,
        task: "asyncio.Task[None]",
    ) -> None:
        self.message = message
        self._payload = payload
        self._protocol = protocol
        self._task = task
        self._expects = False

    # What forward and relay need

    @property
    def transport(self) -> asyncio.Transport | None:
        """Return the client's transport, None once the client is gone."""
        return self._protocol.transport

    @transport.setter
    def transport(self, transport: asyncio.Transport | None) -> None:
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
    def keep_alive(self) -> bool:
        """Return whether the client's connection may be used again after this answer."""
        return not self.message.should_close and not self.http10 and self._protocol.reusable

    async def read(self, exchange: Exchange, limit: int, gate: Gate) -> bytes:
        """Return the whole body, whose bytes are then held in *gate*.

        Raises `ProxyError` for a body over *limit* bytes, one that stalls, one that is not framed
        as HTTP, and one for which there is no room.
        """
        length = find(exchange.headers, b"content-length")
        announced = int(length) if length is not None else 0
        if announced > limit:
            raise _too_large(limit)
        held = announced
        gate.hold(held)
        try:
            if self._payload.is_eof():
                body = self._payload.read_nowait()
            else:
                self._continue()
                pieces = []
                count = 0
                while piece := await self._piece():
                    count += len(piece)
                    if count > limit:
                        raise _too_large(limit)
                    if count > held:
                        gate.hold(count - held)
                        held = count
                    pieces.append(piece)
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        except BaseException:
            gate.drop(held)
            raise
        gate.drop(held - len(body))
        exchange.bytes_in = len(body)
        self._protocol.watch()
        return body

    def complete(self) -> bool:
        """Return whether the whole body has come in."""
        return self._payload.is_eof()

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
                return await self._payload.readany()
        except TimeoutError:
            message = "The request's body did not arrive in time."
            raise ProxyError(REQUEST_TIMEOUT, message) from None
        except RequestPayloadError:
            self._payload.feed_eof()  # nothing is left for aiohttp to pass over
            raise ProxyError(BAD_REQUEST, "The request's body is not valid HTTP.") from None
        except ConnectionError:
            raise asyncio.CancelledError from None  # which is on its way: the client is gone

    # What aiohttp's RequestHandler needs

    @property
    def http10(self) -> bool:
        """Return whether the client speaks HTTP/1.0."""
        return tuple(self.message.version) < (1, 1)

    def _cancel(self, error: BaseException) -> None:
        self._payload.set_exception(error)

    def _finish(self) -> None:
        """Do nothing: no form, no file, nothing to clean up."""


class Handler(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_chunked",
        "_deaf",
        "_edge",
        "_head_bytes",
        "_head_timer",
        "_held",
        "_incoming",
        "_surplus",
        "_tail",
        "flow",
    )

    def __init__(self, manager: web.Server, edge: "Edge", loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=KEEPALIVE_SECONDS,
            access_log=cast(Any, None),
            max_line_size=LINE_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=HEAD_FIELDS,
            lingering_time=LINGER_SECONDS,
            read_bufsize=READ_BYTES,
            auto_decompress=False,
        )
        self._edge = edge
        self.flow: Flow | None = None
        self._held = bytearray()
        self._deaf = False  # nothing more of this connection is a request
        self._chunked = False
        self._tail = b""
        self._incoming: StreamReader = EMPTY_PAYLOAD  # the body of the request that came last
        self._surplus = False  # whether the packet with it held the beginning of another head
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def reusable(self) -> bool:
        """Return whether another request may follow on this connection."""
        return not self._deaf and not self._edge.gate.draining

    def data_received(self, data: bytes) -> None:
        """Take *data* for what it is at this point: a body's, a head's, or too early.

        Reading goes on in any case, because a connection that is not read does not tell that the
        client has left. What comes behind an exchange that is running is kept for later, up to a
        bound; beyond it nothing of this connection is a request any more.
        """
        if self._deaf:
            return
        request = cast(Request | None, self._current_request)
        if request is not None:
            early = request.complete()
        else:  # a request may be queued whose handling has not begun
            early = bool(self._messages) and self._incoming.is_eof()
        if data and (early or self._held):
            self._held += data
            if len(self._held) > PIPELINED_BYTES:
                self._held.clear()
                self._deaf = True
        elif not self._incoming.is_eof():
            self._take_body(data)
        else:
            self._take_head(data)

    def _take_body(self, data: bytes) -> None:
        incoming, known = self._incoming, len(self._messages)
        super().data_received(data)
        self._tail = (self._tail + data)[-len(_LAST_CHUNK) :]
        if len(self._messages) > known:
            message, self._incoming = self._messages[-1]
            if isinstance(message, _ErrInfo) and not incoming.is_eof():
                # Else it would be waited for: by our `read`, or by aiohttp, which passes over the
                # body of a request that is answered already, and logs any other exception.
                reading = self._current_request is not None
                incoming.set_exception(RequestPayloadError() if reading else TimeoutError())
        if incoming.is_eof():
            self._end_body(data, behind=len(self._messages) > known)
            if self._surplus and self._current_request is None and not self._messages:
                self._await_head()

    def _take_head(self, data: bytes) -> None:
        known = len(self._messages)
        self._head_bytes += len(data)
        super().data_received(data)
        if len(self._messages) == known:
            if self._head_timer is not None or data.strip(b"\r\n"):  # empty lines begin none
                self._await_head()
            return
        self._stop_head_timer()
        self._tail = data[-len(_LAST_CHUNK) :]
        self._chunked = False
        for message, _ in tuple(self._messages)[known:]:
            if isinstance(message, RawRequestMessage):
                self._chunked = self._chunked or bool(message.chunked)
                if self._head_bytes > HEAD_BYTES and _size(message) > HEAD_BYTES:
                    self._messages.clear()
                    self._refuse_head(431)
                    break
        self._head_bytes = 0
        self._incoming = self._messages[-1][1]
        behind = len(self._messages) - known > 1
        if behind or self._incoming.is_eof():
            self._end_body(data, behind=behind)

    def _end_body(self, data: bytes, *, behind: bool) -> None:
        """Note what came behind the body that *data* has completed, a whole head perhaps."""
        self._surplus = self._incoming.is_eof() and _has_surplus(data, self._incoming)
        if self._chunked and (behind or self._tail != _LAST_CHUNK):
            # Trailers, or more behind the last chunk. aiohttp's parser makes the last trailer of a
            # request a header of the next one on the connection: there must be no next one.
            self._deaf = True

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.flow is not None:
            self.flow.pause_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.flow is not None:
            self.flow.resume_writing()

    def watch(self) -> None:
        """Go on reading, though the parser may have enough: to see the client leave."""
        if self._reading_paused or self._buffer_paused:
            self._resume_transport_reading()

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

    async def _handle_request(
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        if cast(Request, request).complete():
            self.watch()
        elif self._held:
            held, self._held = bytes(self._held), bytearray()
            self._take_body(held)
        result = await super()._handle_request(request, start_time, request_handler)
        if self._deaf:
            cast(Sent, result[0]).keep_alive = False
        if self._deaf and self.transport is not None:
            # Closing while the client still sends would reset the connection, and take the last
            # bytes of our answer with it: say that we are done, and let the client close.
            if self.transport.can_write_eof():
                self.transport.write_eof()
            await asyncio.sleep(1.0)
        elif not self._messages:
            held, self._held = bytes(self._held), bytearray()
            self.data_received(held)  # which also wakes the parser, where it has kept something
            if self._surplus and not self._messages:
                self._await_head()
        if not cast(Sent, result[0]).keep_alive:
            self._see_off()
        return result

    def force_close(self) -> None:
        """Close, but not at the mercy of a client that never takes its last bytes."""
        self._see_off()
        super().force_close()

    def _see_off(self) -> None:
        transport = self.transport
        if transport is not None and transport.get_write_buffer_size():
            self._loop.call_later(1.0, _give_up_on, transport, self._loop)

    def _make_error_handler(
        self, err_info: _ErrInfo
    ) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        async def handler(request: web.BaseRequest) -> web.StreamResponse:
            sent = self._edge.malformed(cast(Any, request), _malformed(err_info))
            return cast(web.StreamResponse, sent)

        return handler

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Say nothing: `Edge` has answered and logged whatever there was to say."""
        return cast(web.StreamResponse, Sent(keep_alive=False))

    def _await_head(self) -> None:
        if self._head_bytes > HEAD_BYTES:
            self._refuse_head(431)
        elif self._head_timer is None:
            self._head_timer = self._loop.call_later(HEAD_SECONDS, self._refuse_head, 408)

    def _refuse_head(self, status: int) -> None:
        self._stop_head_timer()
        self._messages.append((_ErrInfo(status, TimeoutError(), ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Edge:
    """One surface's side of the wire, for all its connections."""

    def __init__(
        self,
        surface: Surface,
        find: Find,
        gate: Gate,
        log: Log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_id = Ids()
        self.surface = surface
        self.gate = gate
        self._find = find
        self._log = log
        self._clock = clock

    async def handle(self, request: Request) -> Sent:
        """Answer one request, whatever it is, and leave one record of it."""
        exchange = self._begin(request)
        try:
            endpoint = self._endpoint(exchange, request)
            keep_alive = await endpoint.handle(exchange, request)
        except ProxyError as error:
            keep_alive = self._refuse(exchange, request, error)
        except asyncio.CancelledError:
            self._cancelled(exchange, request)
            raise
        except Exception:  # noqa: BLE001 - the one place where nothing may escape
            self._log.events.exception("internal_error", request_id=exchange.id)
            internal = ProxyError(INTERNAL, "Something went wrong inside the proxy.", close=True)
            keep_alive = self._refuse(exchange, request, internal)
        finally:
            self._settle(exchange)
        return Sent(keep_alive)

    def malformed(self, request: Request, error: ProxyError) -> Sent:
        """Answer what could not be parsed as a request."""
        exchange = self._begin(request)
        exchange.method = exchange.path = ""
        self._refuse(exchange, request, error)
        self._settle(exchange)
        return Sent(keep_alive=False)

    def _begin(self, request: Request) -> Exchange:
        message = request.message
        path, _, query = message.path.partition("?")
        peer = request._protocol.peername
        return Exchange(
            id=self._new_id(),
            surface=self.surface.name,
            method=message.method,
            path=path,
            query=query,
            headers=tuple(message.raw_headers),
            http10=request.http10,
            client_ip=peer[0] if isinstance(peer, tuple) else None,
            received=self._clock(),
        )

    def _endpoint(self, exchange: Exchange, request: Request) -> Endpoint:
        """Find what answers, by the head alone. Raises `ProxyError` for what nobody may ask."""
        self._check_form(exchange, request)
        expect = None if exchange.http10 else find(exchange.headers, b"expect")
        if expect is not None:
            request.expect_continue()
        found = self._find(exchange.path)
        if found is None:
            raise ProxyError(NOT_FOUND, "There is nothing at this path.")
        endpoint, located = found
        if located is not None:
            exchange.dialect = located.dialect
            exchange.suffix = located.suffix
        exchange.quiet = endpoint.always_open
        if self.surface.auth == "none" and not endpoint.always_open:
            self._check_origin(exchange, request)
        if exchange.method not in endpoint.methods:
            allowed = ", ".join(endpoint.methods)
            message = f"This path takes {allowed}."
            raise ProxyError(METHOD_NOT_ALLOWED, message, headers=(("Allow", allowed),))
        if expect is not None and expect.lower() != b"100-continue":
            raise ProxyError(EXPECTATION_FAILED, "The only expectation met is 100-continue.")
        return endpoint

    def _check_form(self, exchange: Exchange, request: Request) -> None:
        """Refuse what the parser lets through and two readers could take for two things."""
        message = request.message
        host = find(exchange.headers, b"host")
        if host is None:
            name = "" if exchange.http10 else None
        else:
            name = host_name(host.decode("latin-1"))
        if name is None:
            raise ProxyError(BAD_REQUEST, "The Host header is not valid.")
        if tuple(message.version) not in ((1, 1), (1, 0)):
            raise ProxyError(BAD_REQUEST, "The request is not HTTP/1.1.")
        if message.upgrade or message.method == "CONNECT":
            raise ProxyError(BAD_REQUEST, "Upgrade and CONNECT are not supported.")
        if exchange.http10 and message.chunked:
            raise ProxyError(BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding.")
        coding = find(exchange.headers, b"transfer-encoding")
        if coding is not None and coding.lower() != b"chunked":
            raise ProxyError(BAD_REQUEST, "The only transfer coding is chunked.")
        if not exchange.path.startswith("/"):
            scheme, slashes, rest = exchange.path.partition("://")
            authority, slash, path = rest.partition("/")
            authority = authority.lower()
            ours = host is not None and authority == host.decode("latin-1").lower()
            exchange.path = ""  # it may hold a password, and goes into the log
            if scheme.lower() not in ("http", "https") or not slashes or not ours:
                raise ProxyError(BAD_REQUEST, "The request's target is not valid here.")
            exchange.path = slash + path
        if is_unsafe(exchange.path) or "#" in message.path:
            raise ProxyError(BAD_REQUEST, "The request's path is not valid.")

    def _check_origin(self, exchange: Exchange, request: Request) -> None:
        """Refuse what a web page could make a browser send to a surface that asks for no key."""
        local = request._protocol.sockname
        address = local[0] if isinstance(local, tuple) else ""
        host = (find(exchange.headers, b"host") or b"").decode("latin-1")
        origin = find(exchange.headers, b"origin")
        hosts = [host] if host else []
        if origin is not None:
            hosts.append(origin.decode("latin-1").partition("://")[2])
        for name in hosts:
            if not self.surface.admits_host(name, address):
                message = "This proxy asks for no key, and answers only to its own names."
                raise ProxyError(ORIGIN_NOT_ALLOWED, message)

    def _refuse(self, exchange: Exchange, request: Request, error: ProxyError) -> bool:
        """Tell the caller about *error*; return whether the connection may be used again."""
        exchange.error = error.kind.code
        exchange.outcome = error.kind.outcome
        transport = request.transport
        if exchange.relayed is not None:
            return False  # a head is out: all that can be said is that it stays unfinished
        exchange.status = error.kind.status
        error.close = error.close or not request.keep_alive or request.waiting
        if transport is not None:
            shape = exchange.dialect.shape if exchange.dialect else shape_of(exchange.path)
            body = exchange.method != "HEAD"
            transport.write(render(error, shape, exchange.id, body=body))
        return not error.close

    def _cancelled(self, exchange: Exchange, request: Request) -> None:
        """Note why nobody will finish *exchange*: its client has left, or we are leaving."""
        if request.transport is not None and self.gate.draining:
            self._refuse(exchange, request, ProxyError(SHUTDOWN, "The proxy is shutting down."))
        elif exchange.error is None:
            if exchange.attempts and exchange.attempts[-1].error is None:
                exchange.attempts[-1].error = CLIENT_GONE.code
            exchange.outcome = CLIENT_GONE.outcome
            exchange.error = CLIENT_GONE.code
            if exchange.status is None:
                exchange.status = CLIENT_GONE.status

    def _settle(self, exchange: Exchange) -> None:
        """Write the record. Nothing here waits, so no cancellation can come between."""
        self._log.line(exchange.record(self._clock()), quiet=exchange.quiet)


class Server(web.Server):
    """Makes a `Handler` for each connection of one surface."""

    def __init__(self, edge: Edge) -> None:
        super().__init__(
            cast(Any, edge.handle), request_factory=cast(Any, Request), handler_cancellation=True
        )
        self._edge = edge

    @property
    def handlers(self) -> list[Handler]:
        """Return the handlers of all open connections."""
        return cast(list[Handler], self.connections)

    def __call__(self) -> RequestHandler:
        """Make the handler of a new connection.

        aiohttp's own would discard every option if one of them were wrong, with a warning.
        """
        return Handler(self, self._edge, asyncio.get_running_loop())


def respond(
    exchange: Exchange, request: Request, body: bytes, content_type: str = "application/json"
) -> bool:
    """Write an answer of our own, 200; return whether the connection may be used again."""
    keep_alive = request.keep_alive and not request.waiting
    exchange.status = 200
    exchange.outcome = "ok"
    exchange.bytes_out = len(body)
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"x-trunkline-id: {exchange.id}\r\nx-request-id: {exchange.id}\r\n"
        f"request-id: {exchange.id}\r\n"
    ).encode("ascii")
    head += b"\r\n" if keep_alive else b"Connection: close\r\n\r\n"
    if request.transport is not None:
        request.transport.write(head if exchange.method == "HEAD" else head + body)
    return keep_alive


def _give_up_on(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
    """Abort *transport*, which is closing, if its client has not taken the rest after a while."""
    if transport.get_write_buffer_size():
        loop.call_later(GIVE_UP_SECONDS, transport.abort)


def _size(message: RawRequestMessage) -> int:
    """Return how long the head of *message* was, in bytes."""
    fields = sum(len(name) + len(value) + 4 for name, value in message.raw_headers)
    return len(message.path) + fields


def _has_surplus(data: bytes, payload: StreamReader) -> bool:
    """Return whether *data*, with which *payload* became complete, goes on behind it."""
    if data.endswith(b"\r\n\r\n"):  # a head without a body, or a last chunk
        return False
    rest = data.rstrip(b"\r\n")
    pieces = () if payload is EMPTY_PAYLOAD else payload._buffer
    return bool(rest) and not (pieces and rest.endswith(pieces[-1].rstrip(b"\r\n")))


def _too_large(limit: int) -> ProxyError:
    return ProxyError(REQUEST_TOO_LARGE, f"The request's body is over the limit of {limit} bytes.")


def _malformed(info: _ErrInfo) -> ProxyError:
    """Say what is wrong with a head, without a byte of it: it may hold a key."""
    if info.status == 408:
        return ProxyError(REQUEST_TIMEOUT, "The request's head did not arrive in time.")
    if isinstance(info.exc, LineTooLong):
        if info.exc.args[1] == LINE_BYTES:
            return ProxyError(URI_TOO_LONG, f"The request's target is over {LINE_BYTES} bytes.")
        return ProxyError(HEADERS_TOO_LARGE, f"A header is over {FIELD_BYTES} bytes.")
    if info.status == 431 or info.message == "Too many headers received":
        return ProxyError(HEADERS_TOO_LARGE, "The request's head is too large.")
    return ProxyError(BAD_REQUEST, "The request is not valid HTTP/1.1.")
