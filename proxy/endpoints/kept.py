"""What is kept at a vendor (files, batches, finished answers): it carries no model, and goes by path."""

from collections.abc import Awaitable

from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.routes import Upstream
from proxy.surfaces import Surface

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def endpoint(forward: Forward, surface: Surface, upstream: Upstream) -> Endpoint:
    """Return what answers from *upstream*."""

    def handle(exchange: Exchange, request: Request) -> Awaitable[bool]:
        if request.head.websocket:
            return forward.converse(exchange, surface, request, upstream)
        return forward.carry(exchange, surface, request, upstream)

    return Endpoint(METHODS, handle, upgrades=True)
