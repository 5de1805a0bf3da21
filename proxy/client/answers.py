"""Answers of our own, whole or as a stream of events."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import orjson
from aiohttp import web
from aiohttp_sse import EventSourceResponse

from proxy.client.edge import Request
from proxy.errors import CLIENT_STALLED, IDS, SHUTDOWN, ProxyError, head_of_ours
from proxy.exchange import Exchange

STALL_SECONDS = 60.0
"""Let a client go that takes nothing of a stream of ours for this long."""


def respond(
    exchange: Exchange,
    request: Request,
    body: bytes,
    content_type: str = "application/json",
    status: HTTPStatus = HTTPStatus.OK,
) -> bool:
    """Write an answer of our own; return whether the connection may be used again."""
    keep_alive = request.keep_alive and not request.waiting
    exchange.status = status.value
    exchange.outcome = "ok"
    head = head_of_ours(
        status.value,
        len(body),
        exchange.id,
        added=exchange.added,
        content_type=content_type,
        close=not keep_alive,
    )
    if request.transport is not None:
        whole = head if exchange.method == "HEAD" else head + body
        exchange.bytes_out = len(whole) - len(head)
        request.transport.write(whole)
    return keep_alive


class Events(EventSourceResponse):
    """A stream of events of our own, as the answer of *exchange*; a client that takes nothing of it for
    *patience* seconds is let go.
    """

    def __init__(self, exchange: Exchange, patience: float | None) -> None:
        headers = dict.fromkeys(IDS, exchange.id)
        headers |= {name.decode(): value.decode("latin-1") for name, value in exchange.added}
        super().__init__(sep="\n", headers=headers, allow_all_methods=True, send_timeout=patience)
        self.headers["Connection"] = "close"  # which is what comes of it
        self._exchange = exchange

    async def fail(self, error: ProxyError) -> None:
        """Say in a last event what went wrong."""
        self._exchange.error, self._exchange.outcome = error.kind.code, error.kind.outcome
        told = {"error": {"message": error.message, "code": error.kind.code}}
        await self.send(orjson.dumps(told).decode(), event="error")

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await super().write(data)
        self._exchange.bytes_out += len(data)

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        for name in ("Server", "Date"):  # as in every other answer of ours
            self.headers.popall(name, None)

    def _set_tcp_user_timeout(self, request: web.BaseRequest) -> None:
        """Do nothing: the kernel would reset before we could say why."""

    def _abort_transport(self) -> None:
        self._exchange.error = CLIENT_STALLED.code
        self._exchange.outcome = CLIENT_STALLED.outcome
        super()._abort_transport()


@asynccontextmanager
async def author(
    exchange: Exchange,
    request: Request,
    patience: float | None = STALL_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Events]:
    """Begin a stream of events of our own; what is `send`t to it goes to the client."""
    exchange.status = HTTPStatus.OK.value
    exchange.outcome = "ok"
    exchange.stream = True
    events = Events(exchange, patience)
    await events.prepare(request.plain())
    exchange.relayed = clock()
    try:
        async with events:
            try:
                yield events
            except asyncio.CancelledError:
                if request.transport is not None and request.leaving:
                    await events.fail(ProxyError(SHUTDOWN, "The proxy is shutting down."))
                raise
            if exchange.error is None:
                await events.write_eof()
    except (ConnectionResetError, TimeoutError):
        raise asyncio.CancelledError from None  # which is on its way: the client is gone
