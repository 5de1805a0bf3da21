"""The hot path: identify → read → match → open → relay. Read this file to know what Trunkline does.

`Forward.handle` is the road of one exchange, in order, in plain calls. It begins after the head
was read (`edge`) and ends before the settling (`edge` again): whatever is raised here is told to
the caller there, and whatever happened is written to the log there.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from proxy.admission import Gate
from proxy.body import BodyError, Found, find_model, splice
from proxy.config import Snapshot
from proxy.connection import Connection
from proxy.errors import (
    INVALID_JSON,
    INVALID_KEY,
    INVALID_MODEL,
    MODEL_NOT_ALLOWED,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    UNSUPPORTED_ENCODING,
    UPSTREAM_AUTH,
    UPSTREAM_PROTOCOL,
    UPSTREAM_TIMEOUT,
    ProxyError,
    UpstreamFailure,
    printable,
)
from proxy.exchange import Attempt, Exchange
from proxy.keys import Key
from proxy.outbound import Addressed, address, head, without_keys
from proxy.relay import Downstream, Relay
from proxy.routes import Route
from proxy.surfaces import Surface
from proxy.transport import Transport


class Inbound(Downstream, Protocol):
    """The client's side of one exchange, as `edge` provides it."""

    async def read(self, exchange: Exchange, limit: int, gate: Gate) -> bytes:
        """Return the whole request body, whose bytes are then held in *gate*."""

    @property
    def keep_alive(self) -> bool:
        """Return whether the client's connection may be used again after this answer."""


class Forward:
    """Carries exchanges to upstreams, for as long as one *snapshot* holds."""

    def __init__(
        self,
        snapshot: Snapshot,
        transport: Transport,
        gate: Gate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._transport = transport
        self._gate = gate
        self._clock = clock
        self._relays: set[Relay] = set()

    async def handle(self, exchange: Exchange, surface: Surface, inbound: Inbound) -> bool:
        """Answer *exchange* from an upstream of its route.

        Returns whether the client's connection may be used again. Raises `ProxyError` for all that
        goes wrong before the first byte of an answer.
        """
        exchange.key = self.identify(exchange, surface)
        _refuse_encoded(exchange)
        self._gate.enter()
        try:
            route, connection, attempt = await self._ask(exchange, surface, inbound)
            return await self._relay(exchange, route, connection, attempt, inbound)
        finally:
            self._gate.leave()

    async def _ask(
        self, exchange: Exchange, surface: Surface, inbound: Inbound
    ) -> tuple[Route, Connection, Attempt]:
        """Read, match and open. The body is let go when this returns, before the answer passes."""
        body = await inbound.read(exchange, self._snapshot.settings.max_body, self._gate)
        try:
            exchange.read = self._clock()
            found = _find(body)
            exchange.stream = found.stream
            route = self._match(exchange, surface, found)
            to, pieces = self._request(exchange, surface, route, found, body)
            connection, attempt = await self._open(exchange, route, to, pieces)
        finally:
            self._gate.drop(len(body))
        self._judge(exchange, surface, connection, attempt)
        return route, connection, attempt

    def shut(self, error: ProxyError) -> None:
        """End every answer that is still passing, because of *error*."""
        for relay in tuple(self._relays):
            relay.abort(error)

    # Identify

    def identify(self, exchange: Exchange, surface: Surface) -> Key | None:
        """Return the key that *exchange* presents, None where the surface asks for none.

        Any accepted header that holds a valid key is enough: clients send a second one out of habit.
        """
        if surface.auth != "keys":
            return None
        keys = self._snapshot.keys
        refusal: str | None = None
        for name, value in exchange.headers:
            name = name.lower()
            if name not in surface.accept:
                continue
            key = keys.find(_token(value) if name == b"authorization" else value)
            if key is None:
                refusal = refusal or "The API key is not valid."
            elif key.expired(datetime.now(UTC)):
                refusal = f'The key "{key.name}" has expired.'
            else:
                exchange.query = without_keys(exchange.query, keys)
                return key
        if refusal is None:
            wanted = " or ".join(_SHOWN.get(name, name.decode()) for name in surface.accept)
            refusal = f"No API key was given. Send one as {wanted}."
        raise ProxyError(INVALID_KEY, refusal)

    # Match

    def _match(self, exchange: Exchange, surface: Surface, found: Found) -> Route:
        """Find the route of the model asked for, and pin it to *exchange*."""
        key, routes = exchange.key, self._snapshot.routes
        asked = found.model
        if asked is None:
            if routes.match("default") is None or not surface.shows("default"):
                message = "The request names no model, and there is no default one."
                raise ProxyError(INVALID_MODEL, message, param="model")
            asked = "default"
        exchange.model = printable(asked)
        route = routes.match(asked) if surface.shows(asked) else None
        if route is None:
            raise ProxyError(MODEL_NOT_FOUND, self._not_found(asked, surface, key), param="model")
        if key is not None and not key.may_ask(asked):
            message = f'The key "{key.name}" may not use the model "{printable(asked)}".'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        if surface.auth == "passthrough" and not route.upstream.passthrough:
            message = f'The model "{printable(asked)}" does not take a caller\'s own credential.'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        exchange.route = route
        exchange.upstream = route.upstream
        exchange.model_sent = route.model_sent(asked)
        if route.upstream.missing is not None and surface.auth != "passthrough":
            message = (
                f'The model "{printable(asked)}" is not configured: the environment variable '
                f"{route.upstream.missing} is not set."
            )
            raise ProxyError(NOT_CONFIGURED, message)
        return route

    def _not_found(self, asked: str, surface: Surface, key: Key | None) -> str:
        def visible(name: str) -> bool:
            return surface.shows(name) and (key is None or key.may_ask(name))

        message = f'No route leads to the model "{printable(asked)}".'
        if surface.models == "hidden":
            return message
        near = self._snapshot.routes.nearest(asked, visible)
        if near:
            message += " Did you mean " + " or ".join(f'"{name}"' for name in near) + "?"
        return message + " See GET /v1/models."

    # Open

    def _request(
        self, exchange: Exchange, surface: Surface, route: Route, found: Found, body: bytes
    ) -> tuple[Addressed, list[bytes | memoryview]]:
        """Write the request that goes upstream: where to, and its pieces in order."""
        upstream, dialect, sent = route.upstream, exchange.dialect, exchange.model_sent
        assert dialect is not None
        assert sent is not None
        to = address(upstream, dialect, exchange.suffix, exchange.query)
        content = [body] if found.model == sent else splice(body, found, sent)
        first = head(
            exchange.method,
            to,
            upstream,
            dialect,
            exchange.headers,
            stream=exchange.stream,
            passthrough=surface.auth == "passthrough",
            length=sum(len(piece) for piece in content),
        )
        return to, [first, *content]

    async def _open(
        self,
        exchange: Exchange,
        route: Route,
        to: Addressed,
        pieces: list[bytes | memoryview],
    ) -> tuple[Connection, Attempt]:
        """Send the request until an answer begins: a second time only where the connection was dead."""
        total = route.timeouts.total
        if total is None:
            return await self._send(exchange, route, to, pieces)
        left = exchange.received + total - self._clock()
        message = "The answer did not begin in the time that this route allows in all."
        if left <= 0:
            raise ProxyError(UPSTREAM_TIMEOUT, message)
        try:
            async with asyncio.timeout(left):
                return await self._send(exchange, route, to, pieces)
        except TimeoutError:
            exchange.attempts[-1].error = UPSTREAM_TIMEOUT.code
            raise ProxyError(UPSTREAM_TIMEOUT, message) from None

    async def _send(
        self, exchange: Exchange, route: Route, to: Addressed, pieces: list[bytes | memoryview]
    ) -> tuple[Connection, Attempt]:
        fresh = False
        while True:
            started = self._clock()
            attempt = exchange.begin(route.upstream, started)
            try:
                connection = await self._transport.open(
                    route.upstream.name,
                    to.base.origin,
                    pieces,
                    route.timeouts,
                    attempt,
                    fresh=fresh,
                )
            except UpstreamFailure as failure:
                attempt.error = failure.kind.code
                if fresh or not failure.again:
                    raise
                fresh = True
            else:
                return connection, attempt
            finally:
                attempt.ended = self._clock()
                exchange.waited += attempt.ended - started

    def _judge(
        self, exchange: Exchange, surface: Surface, connection: Connection, attempt: Attempt
    ) -> None:
        """Refuse an answer that must not be relayed, whatever it says."""
        status = connection.status
        error = None
        if status == 401 and surface.auth != "passthrough":
            # Not the caller's key is meant but ours, and the body may quote it.
            error = ProxyError(UPSTREAM_AUTH, "The upstream refused the proxy's credential.")
        elif 300 <= status < 400 and status != 304:
            error = ProxyError(UPSTREAM_PROTOCOL, "The upstream redirected the request.")
        if error is not None:
            attempt.error = error.kind.code
            self._transport.drop(connection)
            raise error

    # Relay

    async def _relay(
        self,
        exchange: Exchange,
        route: Route,
        connection: Connection,
        attempt: Attempt,
        inbound: Inbound,
    ) -> bool:
        relay = Relay(
            exchange,
            attempt,
            connection,
            inbound,
            route.timeouts,
            self._clock,
            keep_alive=inbound.keep_alive,
        )
        self._relays.add(relay)
        try:
            await relay.run()
        finally:
            self._relays.discard(relay)
            attempt.ended = self._clock()
            assert exchange.upstream is not None
            base = exchange.upstream.base_of(exchange.suffix)
            self._transport.release(exchange.upstream.name, base.origin, connection)
        return relay.keep_alive


_SHOWN = {b"authorization": "`Authorization: Bearer …`"}


def _token(value: bytes) -> bytes:
    """Return the credentials of an `Authorization` header (RFC 9110 section 11.4), if Bearer."""
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else value


def _refuse_encoded(exchange: Exchange) -> None:
    for name, coding in exchange.headers:
        if name.lower() == b"content-encoding" and coding.lower() not in (b"", b"identity"):
            message = "Request bodies must not be compressed: send no Content-Encoding."
            raise ProxyError(UNSUPPORTED_ENCODING, message)


def _find(body: bytes) -> Found:
    try:
        return find_model(body)
    except BodyError as error:
        kind = INVALID_MODEL if error.field else INVALID_JSON
        message = error.message[0].upper() + error.message[1:] + "."
        raise ProxyError(kind, message, param=error.field or None) from None
