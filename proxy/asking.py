"""Requests of our own: what a hook says is read, a model is asked, and its answer read in turn."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from proxy.admission import Admission, Admitted
from proxy.errors import HOOK_FAILED, STREAM_DISCONNECTED, STREAM_IDLE, ProxyError
from proxy.exchange import Exchange
from proxy.model.body import Body, find_model
from proxy.reader import Reader
from proxy.routes import Route, check_able
from proxy.upstream.asked import Asked
from proxy.upstream.opening import Opened, Opener
from proxy.wire.coding import unpacker_of
from proxy.wire.ports import Inbound

MESSAGE_BYTES = 1024 * 1024
"""Refuse a hook's message that is longer than this."""


class Asking:
    """Asks models by way of *opener*, as `Forward` does for clients, under the same *admission*."""

    def __init__(
        self, opener: Opener, admission: Admission, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._opener = opener
        self._admission = admission
        self._clock = clock

    def admit(self, exchange: Exchange) -> Admitted:
        """Return what *exchange* stands in, with `async with`, while it is read and asked for."""
        return self._admission.admit(exchange)

    async def read(self, admitted: Admitted, inbound: Inbound) -> Body:
        """Return the whole body of what is *admitted*, which is small, and for us. Raises `ProxyError`."""
        exchange = admitted.exchange
        unpacker = unpacker_of(exchange.headers)
        body = await inbound.read(exchange, MESSAGE_BYTES, admitted, unpacker)
        admitted.drop()
        return body

    async def ask(
        self, admitted: Admitted, route: Route, name: str, body: bytes
    ) -> AsyncGenerator[bytes, None]:
        """Yield the answer of *route*, asked for as *name*, to the chat *body*, which is ours. Raises
        `ProxyError`.
        """
        exchange = admitted.exchange
        exchange.route = route
        exchange.model = name
        targets = [target for group in route.groups for target in group.targets]
        check_able(targets, exchange.dialect, name, passthrough=False)
        exchange.read = self._clock()
        await admitted.reserve()
        asked = Asked(exchange, route.groups, False, route, name, find_model(body), body)
        opened = await self._opener.open(asked)
        try:
            async with aclosing(self._pieces(exchange, opened)) as pieces:
                async for piece in pieces:
                    yield piece
        except ProxyError as error:
            opened.attempt.error = exchange.error = error.kind.code
            exchange.outcome = error.kind.outcome
            opened.attempt.broken = error.kind in (STREAM_DISCONNECTED, STREAM_IDLE)
            raise
        finally:
            opened.attempt.ended = self._clock()
            self._opener.done(opened, exchange.outcome, exchange.error)

    async def _pieces(self, exchange: Exchange, opened: Opened) -> AsyncGenerator[bytes, None]:
        if opened.connection.status != 200:
            message = f"The upstream answered {opened.connection.status}."
            raise ProxyError(HOOK_FAILED, message)
        opened.attempt.phase = "streaming"
        timeouts = opened.choice.target.timeouts
        left = None
        if timeouts.total is not None:
            left = exchange.received + timeouts.total - self._clock()
        reader = Reader(opened.connection, timeouts.idle, left)
        async with aclosing(reader.pieces()) as pieces:
            async for piece in pieces:
                yield piece
