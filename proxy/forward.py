"""The hot path: identify → read → match → admit → open → relay. Read this file to know what Trunkline does.

`Forward.handle` is the road of one exchange, in order, in plain calls. It begins when the head has
been read (`edge`) and ends before the settling (`frame`): whatever is raised here is told to
the caller there, and whatever happened is written to the log there. `carry` is the same road for
what carries no model, and whose body is never held; `converse` for a WebSocket.
"""

import asyncio
import time
from collections.abc import Callable

from proxy.admission import Admission, Admitted
from proxy.config import Snapshot
from proxy.dialects import family
from proxy.errors import NOT_FOUND, ProxyError
from proxy.exchange import Exchange
from proxy.identify import identify
from proxy.keys import Key
from proxy.matching import Matcher, asked_for, find
from proxy.model.target import by_model, names_no_model
from proxy.outbound import CHUNKED, WEBSOCKET, length
from proxy.relay import Relay
from proxy.routes import Upstream
from proxy.surfaces import Surface
from proxy.tunnel import Tunnel
from proxy.unnamed import Unnamed
from proxy.upstream.asked import Asked
from proxy.upstream.connection import Upload
from proxy.upstream.opening import Opened, Opener
from proxy.wire.coding import Unpacker, unpacker_of
from proxy.wire.ports import Inbound

LARGE_BYTES = 256 * 1024
"""Let others go first where a body is longer: to find the model in it takes so long that they would notice."""


class Forward:
    """Carries exchanges to upstreams, for as long as one *snapshot* holds."""

    def __init__(
        self,
        snapshot: Snapshot,
        opener: Opener,
        admission: Admission,
        relays: "set[Relay | Tunnel]",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._opener = opener
        self._admission = admission
        self._relays = relays
        self._clock = clock
        self._matcher = Matcher(snapshot)

    async def handle(self, exchange: Exchange, surface: Surface, inbound: Inbound) -> bool:
        """Answer *exchange* from an upstream of its route.

        Returns whether the client's connection may be used again. Raises `ProxyError` for all that
        goes wrong before the first byte of an answer.
        """
        exchange.key = identify(exchange, surface, self._snapshot.keys)
        unpacker = None
        if b"content-encoding" in exchange.headers.first:
            unpacker = unpacker_of(exchange.headers)
        if unpacker is not None:
            exchange.headers = exchange.headers.without(b"content-encoding")
        admitted = self._admission.admit(exchange)
        async with admitted:
            opened = await self._ask(exchange, surface, inbound, unpacker, admitted)
            return await self._pass(self._relay(exchange, opened, inbound), opened, exchange)

    async def _ask(
        self,
        exchange: Exchange,
        surface: Surface,
        inbound: Inbound,
        unpacker: Unpacker | None,
        admitted: Admitted,
    ) -> Opened:
        """Read, match and open. The body is let go when this returns, before the answer passes."""
        limit = self._snapshot.settings.max_body
        body = await inbound.read(exchange, limit, admitted, unpacker)
        try:
            exchange.read = self._clock()
            if len(body) > LARGE_BYTES:
                await asyncio.sleep(0)  # what others have written goes out before we take our time
            found = find(exchange, body)
            exchange.stream = found.stream
            asked = found.model if exchange.azure is None else asked_for(exchange, found)
            matched = self._matcher.match(exchange, surface, asked)
            exchange.echo = matched.name if surface.echo_model else None
            await admitted.reserve()
            return await self._opener.open(
                Asked(
                    exchange,
                    matched.groups,
                    surface.auth == "passthrough",
                    matched.route,
                    matched.name,
                    found,
                    body,
                    strip=surface.strip,
                )
            )
        finally:
            admitted.drop()

    async def carry(
        self, exchange: Exchange, surface: Surface, inbound: Inbound, upstream: Upstream | None
    ) -> bool:
        """Answer *exchange*, which carries no model, from *upstream*; its body is passed on as it
        comes, whatever its size and form. Returns and raises what `handle` does.
        """
        exchange.dialect = family(exchange.suffix)
        exchange.key = identify(exchange, surface, self._snapshot.keys)
        groups = self._matcher.unrouted(exchange, surface, upstream)
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
        admitted = self._admission.admit(exchange)
        async with admitted:
            exchange.read = self._clock()
            await admitted.reserve()
            asked = Asked(
                exchange, groups, passthrough, framing=framing, upload=upload, strip=surface.strip
            )
            opened = await self._opener.open(asked)
            return await self._pass(self._relay(exchange, opened, inbound), opened, exchange)

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
        exchange.key = identify(exchange, surface, self._snapshot.keys)
        admitted = self._admission.admit(exchange)
        async with admitted:
            asked = self._meant(exchange, surface, upstream, names_model=names_model)
            await admitted.reserve()
            opened = await self._opener.open(asked)
            if opened.connection.status != 101:
                return await self._pass(self._relay(exchange, opened, inbound), opened, exchange)
            timeouts = opened.choice.target.timeouts
            tunnel = Tunnel(
                exchange, opened.attempt, opened.connection, inbound, timeouts, self._clock
            )
            return await self._pass(tunnel, opened, exchange)

    def _meant(
        self,
        exchange: Exchange,
        surface: Surface,
        upstream: Upstream | None,
        *,
        names_model: bool,
    ) -> Asked:
        """Match the beginning of a WebSocket, in which a model may be named. Raises `ProxyError`."""
        passthrough = surface.auth == "passthrough"
        found = find(exchange, b"") if names_model else None
        if upstream is not None and (found is None or found.model is None):
            groups = self._matcher.unrouted(exchange, surface, upstream)
            return Asked(
                exchange, groups, passthrough, framing=WEBSOCKET, upgrade=True, strip=surface.strip
            )
        assert found is not None
        if found.model is None and names_no_model(exchange.query):
            message = "A session of this kind goes by path, and no upstream is named for it."
            raise ProxyError(NOT_FOUND, message)
        matched = self._matcher.match(exchange, surface, found.model)
        return Asked(
            exchange,
            matched.groups,
            passthrough,
            matched.route,
            matched.name,
            found,
            upgrade=True,
            strip=surface.strip,
        )

    def identify(self, exchange: Exchange, surface: Surface) -> Key | None:
        """Return the key that *exchange* presents, None where *surface* asks for none. Raises `ProxyError`."""
        return identify(exchange, surface, self._snapshot.keys)

    # Relay

    def _relay(self, exchange: Exchange, opened: Opened, inbound: Inbound) -> Relay:
        route = exchange.route
        return Relay(
            exchange,
            opened.attempt,
            opened.connection,
            inbound,
            opened.choice.target.timeouts,
            self._clock,
            keep_alive=inbound.keep_alive and inbound.complete(),
            comment_after=None if route is None else route.comment_after,
            echo=exchange.echo,
            taps=(Unnamed(exchange),) if route is not None and exchange.model is None else (),
        )

    async def _pass(self, relay: Relay | Tunnel, opened: Opened, exchange: Exchange) -> bool:
        """Pass the answer on; return whether the client's connection may be used again."""
        self._relays.add(relay)
        try:
            await relay.run()
        finally:
            self._relays.discard(relay)
            opened.attempt.ended = self._clock()
            self._opener.done(opened, exchange.outcome, exchange.error)
        return relay.keep_alive
