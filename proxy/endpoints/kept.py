"""What is kept at a vendor (files, batches, finished answers): it carries no model, and goes by path."""

from proxy.edge import Request
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.frame import Endpoint
from proxy.routes import Upstream
from proxy.surfaces import Surface

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def endpoint(forward: Forward, surface: Surface, upstream: Upstream) -> Endpoint:
    """Return what answers from *upstream*."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        return await forward.carry(exchange, surface, request, upstream)

    return Endpoint(METHODS, handle)
