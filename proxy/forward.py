"""The hot path: identify → read → match → open → relay. Read this file to know what Trunkline does.

`Forward.handle` is the road of one exchange, in order, in plain calls. It begins after the head
was read (`edge`) and ends before the settling (`edge` again): whatever is raised here is told to
the caller there, and whatever happened is written to the log there. `carry` is the same road for
what carries no model, and whose body is never held; `converse` for a WebSocket.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Protocol

from proxy.admission import Gate
from proxy.body import BodyError, Found, find_model, splice
from proxy.config import Snapshot
from proxy.connection import Connection, Upload
from proxy.dialects import GEMINI, MODELS, REALTIME, Dialect, family, shape_of
from proxy.errors import (
    ENDPOINT_NOT_SUPPORTED,
    INVALID_JSON,
    INVALID_KEY,
    INVALID_MODEL,
    MODEL_NOT_ALLOWED,
    MODEL_NOT_FOUND,
    NOT_CONFIGURED,
    NOT_FOUND,
    UNSUPPORTED_ENCODING,
    UPSTREAM_AUTH,
    UPSTREAM_PROTOCOL,
    UPSTREAM_TIMEOUT,
    ProxyError,
    UpstreamFailure,
    printable,
)
from proxy.exchange import Attempt, Exchange
from proxy.form import boundary_of
from proxy.form import find_model as find_in_form
from proxy.headers import find
from proxy.keys import Key
from proxy.outbound import (
    CHUNKED,
    WEBSOCKET,
    Addressed,
    address,
    head,
    keys_in,
    length,
    tokens_of,
    without_keys,
)
from proxy.relay import Downstream, Relay
from proxy.routes import Route, Timeouts, Upstream
from proxy.surfaces import Surface
from proxy.target import model_in_path, model_in_query, path_for, query_for, streams
from proxy.transport import Transport
from proxy.tunnel import Caller, Tunnel

Pieces = Sequence[bytes | memoryview]


class Inbound(Downstream, Caller, Protocol):
    """The client's side of one exchange, as `edge` provides it."""

    async def read(self, exchange: Exchange, limit: int, gate: Gate) -> bytes:
        """Return the whole request body, whose bytes are then held in *gate*."""

    async def receive(self, exchange: Exchange) -> bytes:
        """Return the next piece of the request body as it comes, nothing at its end."""

    @property
    def length(self) -> int | None:
        """Return how long the request body is said to be, None where only its end will tell."""

    def complete(self) -> bool:
        """Return whether the whole request body has come in."""

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
        self._relays: set[Relay | Tunnel] = set()

    async def handle(self, exchange: Exchange, surface: Surface, inbound: Inbound) -> bool:
        """Answer *exchange* from an upstream of its route.

        Returns whether the client's connection may be used again. Raises `ProxyError` for all that
        goes wrong before the first byte of an answer.
        """
        exchange.key = self.identify(exchange, surface)
        _refuse_encoded(exchange)
        self._gate.enter()
        try:
            route, to, connection, attempt = await self._ask(exchange, surface, inbound)
            return await self._relay(exchange, route.timeouts, to, connection, attempt, inbound)
        finally:
            self._gate.leave()

    async def _ask(
        self, exchange: Exchange, surface: Surface, inbound: Inbound
    ) -> tuple[Route, Addressed, Connection, Attempt]:
        """Read, match and open. The body is let go when this returns, before the answer passes."""
        body = await inbound.read(exchange, self._snapshot.settings.max_body, self._gate)
        try:
            exchange.read = self._clock()
            found = _find(exchange, body)
            exchange.stream = found.stream
            route = self._match(exchange, surface, found.model)
            to, pieces = self._request(exchange, surface, route.upstream, found, body)
            connection, attempt = await self._open(
                exchange, route.upstream, route.timeouts, to, pieces
            )
        finally:
            self._gate.drop(len(body))
        self._judge(exchange, surface, to, connection, attempt)
        return route, to, connection, attempt

    async def carry(
        self, exchange: Exchange, surface: Surface, inbound: Inbound, upstream: Upstream | None
    ) -> bool:
        """Answer *exchange*, which carries no model, from *upstream*; its body is passed on as it
        comes, whatever its size and form. Returns and raises what `handle` does.
        """
        exchange.dialect = dialect = family(exchange.suffix)
        exchange.key = self.identify(exchange, surface)
        upstream = _may_use(exchange, surface, upstream)
        exchange.upstream = upstream
        exchange.stream = "stream=true" in exchange.query.split("&")
        self._check_configured(exchange, surface, dialect, upstream, upstream.name)
        size = inbound.length
        if size is None:
            framing = CHUNKED
        else:  # a GET says nothing of a body that it does not have
            announced = find(exchange.headers, b"content-length") is not None
            framing = length(size) if announced else b""
        to, first = self._head(exchange, surface, upstream, exchange.suffix, framing)
        upload = None
        if size != 0:
            upload = Upload(lambda: inbound.receive(exchange), chunked=size is None)
        self._gate.enter()
        try:
            exchange.read = self._clock()
            connection, attempt = await self._open(
                exchange, upstream, upstream.timeouts, to, [first], upload
            )
            self._judge(exchange, surface, to, connection, attempt)
            return await self._relay(exchange, upstream.timeouts, to, connection, attempt, inbound)
        finally:
            self._gate.leave()

    async def converse(self, exchange: Exchange, surface: Surface, inbound: Inbound) -> bool:
        """Answer *exchange*, the beginning of a WebSocket, from an upstream of its route."""
        exchange.key = self.identify(exchange, surface)
        self._gate.enter()
        try:
            found = _find(exchange, b"")
            route = self._match(exchange, surface, found.model)
            to, pieces = self._request(exchange, surface, route.upstream, found, b"")
            connection, attempt = await self._open(
                exchange, route.upstream, route.timeouts, to, pieces, upgrade=True
            )
            self._judge(exchange, surface, to, connection, attempt)
            if connection.status != 101:
                return await self._relay(exchange, route.timeouts, to, connection, attempt, inbound)
            tunnel = Tunnel(exchange, attempt, connection, inbound, route.timeouts, self._clock)
            await self._pass(tunnel, to, exchange, connection, attempt)
            return False
        finally:
            self._gate.leave()

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
        for presented in _presented(exchange, surface):
            key = keys.find(presented)
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

    def _match(self, exchange: Exchange, surface: Surface, asked: str | None) -> Route:
        """Find the route of the model *asked* for, and pin it to *exchange*."""
        key, routes = exchange.key, self._snapshot.routes
        if asked is None:
            if routes.match("default") is None or not surface.shows("default"):
                message = "The request names no model, and there is no default one."
                raise ProxyError(INVALID_MODEL, message, param="model")
            asked = "default"
        shown = exchange.model = printable(asked)
        route = routes.match(asked) if surface.shows(asked) else None
        if route is None:
            raise ProxyError(MODEL_NOT_FOUND, self._not_found(asked, surface, key), param="model")
        if key is not None and not key.may_ask(asked):
            message = f'The key "{key.name}" may not use the model "{shown}".'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        upstream, dialect = route.upstream, exchange.dialect
        assert dialect is not None
        if surface.auth == "passthrough" and not upstream.passthrough:
            message = f'The model "{shown}" does not take a caller\'s own credential.'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        exchange.route = route
        exchange.upstream = upstream
        exchange.model_sent = route.model_sent(asked)
        if not upstream.speaks(dialect):
            raise ProxyError(ENDPOINT_NOT_SUPPORTED, not_supported(shown, upstream, dialect))
        self._check_configured(exchange, surface, dialect, upstream, shown)
        return route

    def _check_configured(
        self,
        exchange: Exchange,
        surface: Surface,
        dialect: Dialect,
        upstream: Upstream,
        what: str,
    ) -> None:
        """Refuse what leads to an *upstream* that still lacks something; *what* leads there."""
        passthrough = surface.auth == "passthrough"
        variable = upstream.lacks(passthrough=passthrough)
        if variable is not None:
            message = f'"{what}" is not configured: the environment variable {variable} is not set.'
            raise ProxyError(NOT_CONFIGURED, message)
        credential = None if passthrough else upstream.credential_for(dialect)
        if credential is not None and not credential.secret.known:
            message = f'"{what}" is not configured yet: {credential.secret.source} has not given a credential.'
            raise ProxyError(NOT_CONFIGURED, message, headers=(("Retry-After", "2"),))

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
        self, exchange: Exchange, surface: Surface, upstream: Upstream, found: Found, body: bytes
    ) -> tuple[Addressed, Pieces]:
        """Write the request that goes upstream: where to, and its pieces in order."""
        dialect, sent = exchange.dialect, exchange.model_sent
        assert dialect is not None
        assert sent is not None
        suffix = exchange.suffix
        content: list[bytes | memoryview] = [body]
        if found.model == sent:
            pass  # not a byte changes
        elif dialect.carries == "path":
            try:
                suffix = path_for(suffix, sent)
            except BodyError as error:
                raise _refusal(error) from None
        elif dialect.carries == "query":
            exchange.query = query_for(exchange.query, sent)
        else:
            content = splice(body, found, sent)
        framing = WEBSOCKET
        if dialect is not REALTIME:
            framing = length(sum(len(piece) for piece in content))
        to, first = self._head(exchange, surface, upstream, suffix, framing)
        return to, [first, *content]

    def _head(
        self, exchange: Exchange, surface: Surface, upstream: Upstream, suffix: str, framing: bytes
    ) -> tuple[Addressed, bytes]:
        dialect = exchange.dialect
        assert dialect is not None
        to = address(upstream, dialect, suffix, exchange.query)
        first = head(
            exchange.method,
            to,
            upstream,
            dialect,
            exchange.headers,
            stream=exchange.stream,
            passthrough=surface.auth == "passthrough",
            framing=framing,
        )
        return to, first

    async def _open(
        self,
        exchange: Exchange,
        upstream: Upstream,
        timeouts: Timeouts,
        to: Addressed,
        pieces: Pieces,
        upload: Upload | None = None,
        *,
        upgrade: bool = False,
    ) -> tuple[Connection, Attempt]:
        """Send the request until an answer begins: a second time only where the connection was dead."""
        total = timeouts.total
        left = None if total is None else exchange.received + total - self._clock()
        message = "The answer did not begin in the time that this route allows in all."
        if left is not None and left <= 0:
            raise ProxyError(UPSTREAM_TIMEOUT, message)
        try:
            async with asyncio.timeout(left):
                return await self._send(exchange, upstream, timeouts, to, pieces, upload, upgrade)
        except TimeoutError:
            exchange.attempts[-1].error = UPSTREAM_TIMEOUT.code
            raise ProxyError(UPSTREAM_TIMEOUT, message) from None

    async def _send(
        self,
        exchange: Exchange,
        upstream: Upstream,
        timeouts: Timeouts,
        to: Addressed,
        pieces: Pieces,
        upload: Upload | None,
        upgrade: bool,
    ) -> tuple[Connection, Attempt]:
        fresh = upload is not None or upgrade  # what is sent as it comes cannot be sent again
        while True:
            started = self._clock()
            attempt = exchange.begin(upstream, started)
            try:
                connection = await self._transport.open(
                    upstream.name,
                    to.base.origin,
                    pieces,
                    timeouts,
                    attempt,
                    upload,
                    fresh=fresh,
                    upgrade=upgrade,
                )
            except UpstreamFailure as failure:
                attempt.error = failure.kind.code
                if fresh or not failure.again:
                    raise
                fresh = True
            except ProxyError as error:
                attempt.error = error.kind.code
                raise
            else:
                return connection, attempt
            finally:
                attempt.ended = self._clock()
                exchange.waited += attempt.ended - started

    def _judge(
        self,
        exchange: Exchange,
        surface: Surface,
        to: Addressed,
        connection: Connection,
        attempt: Attempt,
    ) -> None:
        """Refuse an answer that must not be relayed, whatever it says."""
        status = connection.status
        error = None
        if status == 401 and surface.auth != "passthrough":
            # Not the caller's key is meant but ours, and the body may quote it.
            error = ProxyError(UPSTREAM_AUTH, "The upstream refused the proxy's credential.")
            if to.credential is not None:
                to.credential.secret.refused()
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
        timeouts: Timeouts,
        to: Addressed,
        connection: Connection,
        attempt: Attempt,
        inbound: Inbound,
    ) -> bool:
        relay = Relay(
            exchange,
            attempt,
            connection,
            inbound,
            timeouts,
            self._clock,
            keep_alive=inbound.keep_alive and inbound.complete(),
        )
        await self._pass(relay, to, exchange, connection, attempt)
        return relay.keep_alive

    async def _pass(
        self,
        relay: Relay | Tunnel,
        to: Addressed,
        exchange: Exchange,
        connection: Connection,
        attempt: Attempt,
    ) -> None:
        self._relays.add(relay)
        try:
            await relay.run()
        finally:
            self._relays.discard(relay)
            attempt.ended = self._clock()
            self._transport.release(attempt.upstream, to.base.origin, connection)


def _presented(exchange: Exchange, surface: Surface) -> Iterator[bytes]:
    """Yield whatever *exchange* presents as a key, where *surface* accepts one."""
    for name, value in exchange.headers:
        name = name.lower()
        if name in surface.accept:
            yield _token(value) if name == b"authorization" else value
    if exchange.dialect is REALTIME and b"authorization" in surface.accept:
        yield from tokens_of(exchange.headers)
    native = exchange.dialect is GEMINI or shape_of(exchange.path) == "gemini"
    if native and b"x-goog-api-key" in surface.accept:
        yield from keys_in(exchange.query)


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


def _may_use(exchange: Exchange, surface: Surface, upstream: Upstream | None) -> Upstream:
    """Return *upstream*, if *exchange* may go there whatever the model: it does not say any."""
    key, dialect = exchange.key, exchange.dialect
    assert dialect is not None
    if surface.routes is not None:
        raise ProxyError(NOT_FOUND, "There is nothing at this path.")
    if key is not None and key.models is not None:
        message = f'The key "{key.name}" is for some models only, and this request names none.'
        raise ProxyError(MODEL_NOT_ALLOWED, message)
    if upstream is None:
        raise ProxyError(NOT_FOUND, "There is no such upstream.")
    if surface.auth == "passthrough" and not upstream.passthrough:
        message = "This path does not take a caller's own credential."
        raise ProxyError(MODEL_NOT_ALLOWED, message)
    if dialect is MODELS and not upstream.speaks(dialect):
        message = f'The upstream "{upstream.name}" has no list of models.'
        raise ProxyError(ENDPOINT_NOT_SUPPORTED, message)
    return upstream


def not_supported(model: str, upstream: Upstream, dialect: Dialect) -> str:
    """Say that the *upstream* behind *model* does not speak *dialect*, and what it does."""
    spoken = ", ".join(upstream.spoken or ())
    return (
        f'The upstream "{upstream.name}" of the model "{model}" does not speak '
        f'"{dialect.name}". It speaks {spoken}.'
    )


def _find(exchange: Exchange, body: bytes) -> Found:
    """Find the model where *exchange*'s dialect says it: in the body, the path, or the query."""
    dialect, suffix = exchange.dialect, exchange.suffix
    assert dialect is not None
    try:
        if dialect.carries == "path":
            return Found(model_in_path(suffix), 0, 0, streams(suffix))
        if dialect.carries == "query":
            return Found(model_in_query(exchange.query), 0, 0, stream=False)
        boundary = boundary_of(find(exchange.headers, b"content-type") or b"")
        return find_model(body) if boundary is None else find_in_form(body, boundary)
    except BodyError as error:
        raise _refusal(error) from None


def _refusal(error: BodyError) -> ProxyError:
    kind = INVALID_MODEL if error.field else INVALID_JSON
    message = error.message[0].upper() + error.message[1:] + "."
    return ProxyError(kind, message, param=error.field or None)
