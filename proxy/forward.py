"""The hot path: identify → read → match → open → relay. Read this file to know what Trunkline does.

`Forward.handle` is the road of one exchange, in order, in plain calls. It begins when the head has
been read (`edge`) and ends before the settling (`frame`): whatever is raised here is told to
the caller there, and whatever happened is written to the log there. `carry` is the same road for
what carries no model, and whose body is never held; `converse` for a WebSocket.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from sys import getsizeof

from proxy.admission import Gate
from proxy.body import Body, BodyError, Found, find_model
from proxy.cache import Cache
from proxy.coding import Unpacker, unpacker_of
from proxy.config import Snapshot
from proxy.connection import Upload
from proxy.dialects import GEMINI, MODELS, family, shape_of
from proxy.errors import (
    ENDPOINT_NOT_SUPPORTED,
    INVALID_KEY,
    INVALID_MODEL,
    MODEL_NOT_ALLOWED,
    MODEL_NOT_FOUND,
    NOT_FOUND,
    ProxyError,
    printable,
)
from proxy.exchange import Exchange
from proxy.form import boundary_of
from proxy.form import find_model as find_in_form
from proxy.keys import Key
from proxy.opening import Asked, Opened, Opener
from proxy.outbound import CHUNKED, WEBSOCKET, keys_in, length, tokens_of, without_keys
from proxy.ports import Inbound
from proxy.relay import Relay, Unnamed
from proxy.routes import Group, Route, Target, Upstream, check_able
from proxy.surfaces import Surface
from proxy.target import (
    by_model,
    model_in_deployment,
    model_in_path,
    model_in_query,
    names_no_model,
    streams,
    without_model,
)
from proxy.tunnel import Tunnel

LARGE_BYTES = 256 * 1024
"""To find the model in a longer body takes so long that others would notice."""
MATCHED_BYTES = 1024 * 1024
"""So much of models is known by heart."""
MATCHED_CHARS = 256
"""How long the name of a model may be to be kept: a body's worth of it is a model's name too."""


_Matched = tuple[str | None, str | None, Upstream, Route, str | None]
"""The model as it is shown, as it is sent first, where to, by which route, and by what name there."""


class Forward:
    """Carries exchanges to upstreams, for as long as one *snapshot* holds."""

    def __init__(
        self,
        snapshot: Snapshot,
        opener: Opener,
        gate: Gate,
        relays: "set[Relay | Tunnel]",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._opener = opener
        self._gate = gate
        self._relays = relays
        self._clock = clock
        self._matched: Cache[tuple[str | None, str, str], _Matched] = Cache(MATCHED_BYTES)
        self._whole: dict[Upstream, Target] = {}  # what carries no model goes to an upstream whole

    async def handle(self, exchange: Exchange, surface: Surface, inbound: Inbound) -> bool:
        """Answer *exchange* from an upstream of its route.

        Returns whether the client's connection may be used again. Raises `ProxyError` for all that
        goes wrong before the first byte of an answer.
        """
        exchange.key = self.identify(exchange, surface)
        unpacker = None
        if b"content-encoding" in exchange.headers.first:
            unpacker = unpacker_of(exchange.headers)
        if unpacker is not None:
            exchange.headers = exchange.headers.without(b"content-encoding")
        self._gate.enter()
        try:
            opened = await self._ask(exchange, surface, inbound, unpacker)
            return await self._relay(exchange, opened, inbound)
        finally:
            self._gate.leave()

    async def _ask(
        self, exchange: Exchange, surface: Surface, inbound: Inbound, unpacker: Unpacker | None
    ) -> Opened:
        """Read, match and open. The body is let go when this returns, before the answer passes."""
        limit = self._snapshot.settings.max_body
        body = await inbound.read(exchange, limit, self._gate, unpacker)
        try:
            exchange.read = self._clock()
            if len(body) > LARGE_BYTES:
                await asyncio.sleep(0)  # what others have written goes out before we take our time
            found = _find(exchange, body)
            exchange.stream = found.stream
            asked = found.model if exchange.azure is None else _asked(exchange, found)
            route, groups, name = self._match(exchange, surface, asked)
            exchange.echo = name if surface.echo_model else None
            passthrough = surface.auth == "passthrough"
            return await self._opener.open(
                Asked(exchange, groups, passthrough, route, name, found, body, strip=surface.strip)
            )
        finally:
            self._gate.drop(len(body))

    async def carry(
        self, exchange: Exchange, surface: Surface, inbound: Inbound, upstream: Upstream | None
    ) -> bool:
        """Answer *exchange*, which carries no model, from *upstream*; its body is passed on as it
        comes, whatever its size and form. Returns and raises what `handle` does.
        """
        exchange.dialect = family(exchange.suffix)
        exchange.key = self.identify(exchange, surface)
        groups = self._by_path(exchange, surface, upstream)
        exchange.stream = "stream=true" in exchange.query.split("&")
        passthrough = surface.auth == "passthrough"
        size = inbound.length
        upload, framing = None, b""
        if size is None:
            framing = CHUNKED
        elif b"content-length" in exchange.headers.first:
            framing = length(size)  # else a GET says nothing of a body that it does not have
        if size != 0:
            upload = Upload(lambda: inbound.receive(exchange), chunked=size is None)
        self._gate.enter()
        try:
            exchange.read = self._clock()
            asked = Asked(
                exchange, groups, passthrough, framing=framing, upload=upload, strip=surface.strip
            )
            return await self._relay(exchange, await self._opener.open(asked), inbound)
        finally:
            self._gate.leave()

    async def converse(
        self, exchange: Exchange, surface: Surface, inbound: Inbound, upstream: Upstream | None
    ) -> bool:
        """Answer *exchange*, the beginning of a WebSocket, from an upstream of its route; from *upstream*,
        where its path carries no model, or it names none. Returns and raises what `handle` does.
        """
        names_model = exchange.dialect is not None
        if exchange.azure is not None:
            exchange.query = by_model(exchange.query)
        exchange.dialect = exchange.dialect or family(exchange.suffix)
        exchange.key = self.identify(exchange, surface)
        self._gate.enter()
        try:
            found = _find(exchange, b"") if names_model else None
            opened = await self._opener.open(self._meant(exchange, surface, found, upstream))
            if opened.connection.status != 101:
                return await self._relay(exchange, opened, inbound)
            timeouts = opened.choice.target.timeouts
            await self._pass(
                Tunnel(exchange, opened.attempt, opened.connection, inbound, timeouts, self._clock),
                opened,
                exchange,
            )
            return False
        finally:
            self._gate.leave()

    def _meant(
        self,
        exchange: Exchange,
        surface: Surface,
        found: Found | None,
        upstream: Upstream | None,
    ) -> Asked:
        """Match the beginning of a WebSocket in which a model may be *found*. Raises `ProxyError`."""
        passthrough = surface.auth == "passthrough"
        if upstream is not None and (found is None or found.model is None):
            groups = self._by_path(exchange, surface, upstream)
            return Asked(
                exchange, groups, passthrough, framing=WEBSOCKET, upgrade=True, strip=surface.strip
            )
        assert found is not None
        if found.model is None and names_no_model(exchange.query):
            message = "A session of this kind goes by path, and no upstream is named for it."
            raise ProxyError(NOT_FOUND, message)
        route, groups, name = self._match(exchange, surface, found.model)
        return Asked(
            exchange, groups, passthrough, route, name, found, upgrade=True, strip=surface.strip
        )

    def _by_path(
        self, exchange: Exchange, surface: Surface, upstream: Upstream | None
    ) -> tuple[Group, ...]:
        """Return where *exchange*, which carries no model, goes: to *upstream*. Raises `ProxyError`."""
        upstream = exchange.upstream = _may_use(exchange, surface, upstream)
        whole = Target(upstream, timeouts=upstream.timeouts, retry=upstream.retry)
        target = self._whole.setdefault(upstream, whole)
        passthrough = surface.auth == "passthrough"
        check_able((target,), None, upstream.name, passthrough=passthrough)
        return (Group((target,)),)

    # Identify

    def identify(self, exchange: Exchange, surface: Surface) -> Key | None:
        """Return the key that *exchange* presents, None where the surface asks for none.

        Any accepted header that holds a valid key is enough: clients send a second one out of habit.
        """
        if surface.auth != "keys":
            return None
        keys = self._snapshot.keys
        learnt: tuple[str, str, Key] | None = exchange.learnt.get(keys)
        if learnt is not None and learnt[0] == exchange.query:
            exchange.query = learnt[1]
            return learnt[2]
        refusal: str | None = None
        for presented in _presented(exchange, surface):
            key = keys.find(presented)
            if key is None:
                refusal = refusal or "The API key is not valid."
            elif key.expires is not None and key.expired(datetime.now(UTC)):
                refusal = f'The key "{key.name}" has expired.'
                exchange.expired = key.name
            else:
                query = exchange.query
                if query:
                    exchange.query = without_keys(query, keys)
                if key.expires is None:
                    exchange.learnt.keep(keys, (query, exchange.query, key), 2 * len(query))
                return key
        if refusal is None:
            wanted = " or ".join(_SHOWN.get(name, name.decode()) for name in surface.accept)
            refusal = f"No API key was given. Send one as {wanted}."
        raise ProxyError(INVALID_KEY, refusal)

    # Match

    def _match(
        self, exchange: Exchange, surface: Surface, asked: str | None
    ) -> tuple[Route, tuple[Group, ...], str | None]:
        """Find the route of the model *asked* for, where it leads, and as what: by `default` where none is
        asked for, by no name where there is no such route. Pin it to *exchange*.
        """
        dialect, key = exchange.dialect, exchange.key
        assert dialect is not None
        place = asked, surface.name, dialect.name
        matched = self._matched.get(place)
        if matched is not None and (key is None or key.models is None):
            exchange.model, exchange.model_sent, exchange.upstream, route, name = matched
            exchange.route = route
            return route, route.groups, name
        route, groups = self._find_route(exchange, surface, asked)
        model, sent, upstream = exchange.model, exchange.model_sent, exchange.upstream
        assert upstream is not None
        name = _name_of(route, asked)
        short = asked is None or len(asked) <= MATCHED_CHARS
        if route.switch is None and short:
            size = getsizeof(asked) + getsizeof(model) + getsizeof(sent)
            self._matched.keep(place, (model, sent, upstream, route, name), size)
        return route, groups, name

    def _find_route(
        self, exchange: Exchange, surface: Surface, asked: str | None
    ) -> tuple[Route, tuple[Group, ...]]:
        """Do what `_match` does, for what was not matched before."""
        if asked is None:
            route = self._unnamed(exchange, surface)
        else:
            route = self._named(exchange, surface, asked)
        shown, asked = exchange.model or route.name, _name_of(route, asked)
        exchange.route = route
        switch = route.switch
        groups = route.groups if switch is None else switch.choose(exchange.headers)
        targets: Sequence[Target] = groups[0].targets
        if len(groups) > 1:
            targets = [target for group in groups for target in group.targets]
        upstream, dialect = targets[0].upstream, exchange.dialect
        assert dialect is not None
        exchange.upstream = upstream
        exchange.model_sent = route.model_sent(targets[0], asked)
        if surface.auth == "passthrough":
            targets = targets[:1]
            if not upstream.passthrough:
                message = f'The model "{shown}" does not take a caller\'s own credential.'
                raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        check_able(targets, dialect, shown, passthrough=surface.auth == "passthrough")
        return route, groups

    def _named(self, exchange: Exchange, surface: Surface, asked: str) -> Route:
        key = exchange.key
        shown = exchange.model = printable(asked)
        route = self._snapshot.routes.match(asked) if surface.shows(asked) else None
        if route is None:
            raise ProxyError(MODEL_NOT_FOUND, self._not_found(asked, surface, key), param="model")
        if key is not None and not key.may_ask(asked):
            message = f'The key "{key.name}" may not use the model "{shown}".'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
        return route

    def _unnamed(self, exchange: Exchange, surface: Surface) -> Route:
        """Return the route of a request that names no model: where none need be named, if not `default`,
        since nobody can look at which one the upstream takes.
        """
        key, route = exchange.key, self._snapshot.routes.unnamed()
        if route is not None and not route.pattern.prefix and surface.shows(route.name):
            return self._named(exchange, surface, route.name)
        if route is None or not route.pattern.prefix:
            message = "The request names no model, and there is no default one."
            raise ProxyError(INVALID_MODEL, message, param="model")
        if not surface.shows_anything():
            message = "The request names no model, and not every model is here."
            raise ProxyError(MODEL_NOT_FOUND, message, param="model")
        if key is not None and not key.may_ask_anything():
            message = f'The request names no model, and the key "{key.name}" may not use every one.'
            raise ProxyError(MODEL_NOT_ALLOWED, message, param="model")
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

    # Relay

    async def _relay(self, exchange: Exchange, opened: Opened, inbound: Inbound) -> bool:
        route = exchange.route
        relay = Relay(
            exchange,
            opened.attempt,
            opened.connection,
            inbound,
            opened.choice.target.timeouts,
            self._clock,
            keep_alive=inbound.keep_alive and inbound.complete(),
            keepalive=None if route is None else route.keepalive,
            echo=exchange.echo,
            taps=(Unnamed(exchange),) if route is not None and exchange.model is None else (),
        )
        await self._pass(relay, opened, exchange)
        return relay.keep_alive

    async def _pass(self, relay: Relay | Tunnel, opened: Opened, exchange: Exchange) -> None:
        self._relays.add(relay)
        try:
            await relay.run()
        finally:
            self._relays.discard(relay)
            opened.attempt.ended = self._clock()
            self._opener.done(opened, exchange.outcome, exchange.error)


def _presented(exchange: Exchange, surface: Surface) -> Iterator[bytes]:
    """Yield whatever *exchange* presents as a key, where *surface* accepts one."""
    headers = exchange.headers
    for index, name in enumerate(headers.names):
        if name in surface.accept:
            value = headers[index][1]
            yield _token(value) if name == b"authorization" else value
    if b"sec-websocket-protocol" in headers.first and b"authorization" in surface.accept:
        yield from tokens_of(headers)
    native = exchange.dialect is GEMINI or shape_of(exchange.path) == "gemini"
    if native and b"x-goog-api-key" in surface.accept:
        yield from keys_in(exchange.query)


_SHOWN = {b"authorization": "`Authorization: Bearer …`"}


def _token(value: bytes) -> bytes:
    """Return the credentials of an `Authorization` header (RFC 9110 section 11.4), if Bearer."""
    if value.startswith(b"Bearer "):
        return value[7:].strip()
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else value


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


def _name_of(route: Route, asked: str | None) -> str | None:
    """Return the model that is asked for where *route* leads: `default`, or none, where *asked* is none."""
    return None if asked is None and route.pattern.prefix else asked or route.name


def _asked(exchange: Exchange, found: Found) -> str | None:
    """Return the model asked for: what was *found*, but for Azure's paths, which say it themselves. Raises
    `BodyError`.
    """
    azure = exchange.azure
    if azure is None or azure.deployment is None:
        return found.model
    return model_in_deployment(azure.deployment)


def _find(exchange: Exchange, body: Body) -> Found:
    """Find the model where *exchange*'s dialect says it: in the body, the path, or the query."""
    dialect, suffix = exchange.dialect, exchange.suffix
    assert dialect is not None
    try:
        if dialect.carries == "path":
            return Found(model_in_path(suffix), 0, 0, streams(suffix))
        if dialect.carries == "query":
            return Found(model_in_query(exchange.query), 0, 0, stream=False)
        boundary = boundary_of(exchange.headers.first.get(b"content-type", b""))
        found = find_model(body) if boundary is None else find_in_form(body, boundary)
        if exchange.query or exchange.azure is not None:
            exchange.query = without_model(exchange.query, _asked(exchange, found))
        return found
    except BodyError as error:
        raise error.told() from None
