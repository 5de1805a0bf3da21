"""The endpoints that carry a model: all of them are forwarded."""

from collections.abc import Awaitable

from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.routes import Upstream
from proxy.surfaces import Surface


def endpoint(forward: Forward, surface: Surface) -> Endpoint:
    """Return what answers a chat, a completion, an embedding, and so on."""

    def handle(exchange: Exchange, request: Request) -> Awaitable[bool]:
        return forward.handle(exchange, surface, request)

    return Endpoint(("POST",), handle)


def realtime(forward: Forward, surface: Surface, upstream: Upstream | None) -> Endpoint:
    """Return what answers a WebSocket, by its model, and by its path, from *upstream*, if it has none."""

    def handle(exchange: Exchange, request: Request) -> Awaitable[bool]:
        return forward.converse(exchange, surface, request, upstream)

    return Endpoint(("GET",), handle, upgrades=True, plain=False)
