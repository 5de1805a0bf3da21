"""The frame around every exchange: it is opened here, whatever fails is told to the caller here, and
here it is settled, once.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from sys import getsizeof

from proxy.admission import Gate
from proxy.cache import Cache
from proxy.client import ambiguity, browsers
from proxy.client.answers import respond
from proxy.client.edge import Request
from proxy.dialects import foreign, shape_of
from proxy.errors import (
    BAD_REQUEST,
    CLIENT_GONE,
    EXPECTATION_FAILED,
    INTERNAL,
    METHOD_NOT_ALLOWED,
    NOT_FOUND,
    SHUTDOWN,
    UPGRADE_REQUIRED,
    ProxyError,
    render,
)
from proxy.exchange import Entered, Exchange, Ids
from proxy.sinks import Log, RecordSink
from proxy.surfaces import Located, Surface


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What answers at a path: the *methods* it knows, and *handle*, which writes the answer and
    returns whether the client's connection may be used again.

    An *always_open* one answers whatever the request's Host, and is logged at debug level. One that
    *upgrades* takes WebSockets, and, if not *plain*, nothing else.
    """

    methods: tuple[str, ...]
    handle: Callable[[Exchange, Request], Awaitable[bool]]
    always_open: bool = False
    upgrades: bool = False
    plain: bool = True


Found = tuple[Endpoint, Located | None]
"""What answers, and where the path stands."""

PATHS_BYTES = 256 * 1024
"""Keep this much of what is known of paths, which are looked up before a key is asked for."""
PATH_CHARS = 512
"""Keep a path of up to this length."""

Find = Callable[[str, str], Found | None]
"""Returns what answers a method at a raw path, and where that path stands, or None."""


async def _answer_preflight(exchange: Exchange, request: Request) -> bool:
    return respond(exchange, request, b"")


PREFLIGHT = Endpoint(("OPTIONS",), _answer_preflight, always_open=True)
"""Answers a browser that asks whether a page may call (WHATWG Fetch section 4.8)."""


@dataclass(frozen=True, slots=True)
class _Entered(Entered):
    """That *frame* lets in what comes with this head to the address *sockname*, and what answers there."""

    frame: "Frame"
    sockname: object
    endpoint: Endpoint
    located: Located | None


class Frame:
    """What all connections of one *surface* are answered by; *find* says what is at a path. Each of *sinks*
    is given the record of every exchange.
    """

    def __init__(
        self,
        surface: Surface,
        find: Find,
        gate: Gate,
        log: Log,
        sinks: Sequence[RecordSink],
        sessions: set[Exchange],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_id = Ids()
        self.surface = surface
        self.gate = gate
        self._find = find
        self._log = log
        self._sinks = sinks
        self._sessions = sessions
        self._clock = clock
        self._keyless = surface.auth != "keys"
        self._whereabouts = _whereabouts(surface)
        self._paths: Cache[tuple[str, str], Found] = Cache(PATHS_BYTES)  # what was found before

    async def handle(self, request: Request) -> bool:
        """Answer one request, whatever it is, and leave one record of it; return whether the client's
        connection may be used again.
        """
        exchange = self._begin(request)
        self._sessions.add(exchange)
        try:
            endpoint = self._endpoint(exchange, request)
            return await endpoint.handle(exchange, request)
        except ProxyError as error:
            error.__traceback__ = None  # it leads to frames that lead back to it
            return self._refuse(exchange, request, error)
        except asyncio.CancelledError:
            self._cancelled(exchange, request)
            raise
        except Exception:  # noqa: BLE001 - the one place where nothing may escape
            self._log.events.exception("internal_error", request_id=exchange.id)
            internal = ProxyError(INTERNAL, "Something went wrong inside the proxy.", close=True)
            return self._refuse(exchange, request, internal)
        finally:
            if exchange.key is not None or self._keyless:
                request.vouch()
            self._settle(exchange)

    def malformed(self, request: Request, error: ProxyError) -> None:
        """Answer what could not be parsed as a request."""
        exchange = self._begin(request)
        exchange.method = exchange.path = ""
        self._refuse(exchange, request, error)
        self._settle(exchange)

    def refuse(self, request: Request, error: ProxyError) -> None:
        """Answer a request that nobody looks at with *error*."""
        exchange = self._begin(request)
        self._refuse(exchange, request, error)
        self._settle(exchange)

    def _begin(self, request: Request) -> Exchange:
        head = request.head
        return Exchange(
            id=self._new_id(),
            surface=self.surface.name,
            method=head.method,
            path=head.path,
            query=head.query,
            headers=head.headers,
            http10=head.http10,
            client_ip=self.surface.client_ip(request.peername, head.headers),
            received=self._clock(),
            cors=bool(self.surface.cors),
            learnt=head.learnt,
        )

    def _endpoint(self, exchange: Exchange, request: Request) -> Endpoint:
        """Find what answers, by the head alone. Raises `ProxyError` for what nobody may ask."""
        known = exchange.learnt.entered
        if (
            not isinstance(known, _Entered)
            or known.frame is not self
            or known.sockname != request.sockname
        ):
            return self._check(exchange, request)
        _enter(exchange, known.endpoint, known.located)
        return known.endpoint

    def _check(self, exchange: Exchange, request: Request) -> Endpoint:
        """Do what `_endpoint` does with a head that was not seen before."""
        ambiguity.check(exchange, request.head, self._paths)
        expect = None if exchange.http10 else exchange.headers.first.get(b"expect")
        if expect is not None:
            request.expect_continue()
        origin = exchange.headers.first.get(b"origin")
        if origin is not None and self._is_preflight(exchange, origin):
            return PREFLIGHT
        endpoint, located = self._found(exchange, request)
        _enter(exchange, endpoint, located)
        if self.surface.auth == "none" and not endpoint.always_open:
            browsers.check_origin(exchange, self.surface, request.sockname)
        _check_taken(endpoint, exchange.method, expect, websocket=request.head.websocket)
        as_written = exchange.path is request.head.path  # and not taken out of an absolute form
        if expect is None and origin is None and as_written and len(exchange.path) <= PATH_CHARS:
            exchange.learnt.entered = _Entered(self, request.sockname, endpoint, located)
        return endpoint

    def _is_preflight(self, exchange: Exchange, origin: bytes) -> bool:
        """Tell the browser that a page of *origin* may call, if it may; return whether it asks no more."""
        if origin.decode("latin-1") not in self.surface.cors:
            return False
        exchange.added = browsers.allowing(origin, exchange.headers)
        return exchange.method == "OPTIONS"

    def _found(self, exchange: Exchange, request: Request) -> Found:
        """Return what is at the path of *exchange*. Raises `ProxyError` where that is nothing."""
        found = self._look_up(exchange.method, exchange.path)
        if request.head.websocket:
            self._check_websocket(exchange, request, found)
        if found is None:
            nothing = f"There is nothing at this path. {self._whereabouts}"
            raise ProxyError(NOT_FOUND, foreign(exchange.path) or nothing)
        return found

    def _look_up(self, method: str, path: str) -> Found | None:
        found = self._paths.get((method, path))
        if found is None:
            found = self._find(method, path)
            if found is not None and len(path) <= PATH_CHARS:
                self._paths.keep((method, path), found, 2 * getsizeof(path))
        return found

    def _check_websocket(self, exchange: Exchange, request: Request, found: Found | None) -> None:
        """Refuse a WebSocket where there is none, and what two readers could take for one and for none
        (RFC 6455 section 4.2.1). Any other Upgrade is nobody's business (RFC 9110 section 7.8).
        """
        method, path = exchange.method, exchange.path
        if method != "GET" and found is not None and method not in found[0].methods:
            return  # which is said first
        if method != "GET" or request.length != 0:
            raise ProxyError(BAD_REQUEST, "A WebSocket begins with a GET, without a body.")
        if self._takes_posts(path):
            wanted = (("Upgrade", "HTTP/1.1"),)  # RFC 9110 section 15.5.22
            message = "This path takes no WebSocket: send a POST."
            raise ProxyError(UPGRADE_REQUIRED, message, headers=wanted, close=True)
        if found is None or not found[0].upgrades:
            raise ProxyError(NOT_FOUND, "There is no WebSocket at this path.", close=True)
        if b",".join(exchange.headers.every(b"upgrade")).lower() != b"websocket":
            raise ProxyError(BAD_REQUEST, "The only upgrade is to a WebSocket, and nothing else.")

    def _takes_posts(self, path: str) -> bool:
        """Return whether a POST is what *path* is for, and no WebSocket."""
        posted = self._look_up("POST", path)
        return posted is not None and "POST" in posted[0].methods and not posted[0].upgrades

    def _refuse(self, exchange: Exchange, request: Request, error: ProxyError) -> bool:
        """Tell the caller about *error*; return whether the connection may be used again."""
        exchange.error = error.kind.code
        exchange.outcome = error.kind.outcome
        if exchange.relayed is not None:
            return False  # a head is out: all that can be said is that it stays unfinished
        exchange.status = error.kind.status
        error.close = error.close or not request.keep_alive or request.waiting
        if request.transport is not None:
            shape = exchange.dialect.shape if exchange.dialect else shape_of(exchange.path)
            body = exchange.method != "HEAD"
            name = self.surface.errors.get(error.kind.status)
            answer = render(error, shape, exchange.id, body=body, name=name, added=exchange.added)
            exchange.bytes_out = len(answer) - answer.index(b"\r\n\r\n") - 4
            request.transport.write(answer)
        return not error.close

    def _cancelled(self, exchange: Exchange, request: Request) -> None:
        """Note why nobody will finish *exchange*: its client has left, or we are leaving."""
        if request.transport is not None and self.gate.draining:
            retry = False if exchange.break_off(SHUTDOWN) else None
            error = ProxyError(SHUTDOWN, "The proxy is shutting down.", retry=retry)
            self._refuse(exchange, request, error)
        elif exchange.error is None and not exchange.finished:
            exchange.break_off(CLIENT_GONE)
            exchange.outcome = CLIENT_GONE.outcome
            exchange.error = CLIENT_GONE.code
            if exchange.status is None:
                exchange.status = CLIENT_GONE.status

    def _settle(self, exchange: Exchange) -> None:
        """Write the record. Nothing here waits, so no cancellation can come between."""
        self._sessions.discard(exchange)
        record = exchange.record(self._clock())
        for sink in self._sinks:
            sink(record)


def _whereabouts(surface: Surface) -> str:
    """Say where on *surface* there is something."""
    bases = [f'"{base}"' for base in reversed(surface.base_paths) if base]  # the shortest first
    if not bases:
        return "The endpoints stand at the root, as in /chat/completions."
    return f"The base {'path is' if len(bases) == 1 else 'paths are'} {' and '.join(bases)}."


def _check_taken(endpoint: Endpoint, method: str, expect: bytes | None, *, websocket: bool) -> None:
    """Refuse a *method* that *endpoint* does not take, what is no *websocket* where it takes nothing else, and
    what is *expect*ed beyond 100-continue. Raises `ProxyError`.
    """
    if method not in endpoint.methods:
        allowed = ", ".join(endpoint.methods)
        message = f"This path takes {allowed}."
        raise ProxyError(METHOD_NOT_ALLOWED, message, headers=(("Allow", allowed),))
    if not endpoint.plain and not websocket:
        wanted = (("Upgrade", "websocket"),)
        raise ProxyError(UPGRADE_REQUIRED, "This path takes a WebSocket.", headers=wanted)
    if expect is not None and expect.lower() != b"100-continue":
        raise ProxyError(EXPECTATION_FAILED, "The only expectation met is 100-continue.")


def _enter(exchange: Exchange, endpoint: Endpoint, located: Located | None) -> None:
    """Note where *exchange* has come in."""
    if located is not None:
        exchange.dialect = located.dialect
        exchange.suffix = located.suffix
        exchange.azure = located.azure
    exchange.quiet = endpoint.always_open
