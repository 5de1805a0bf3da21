"""The endpoints that carry a model: all of them are forwarded."""

from proxy.edge import Request
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.frame import Endpoint
from proxy.surfaces import Surface


def endpoint(forward: Forward, surface: Surface) -> Endpoint:
    """Return what answers a chat, a completion, an embedding, and so on."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        return await forward.handle(exchange, surface, request)

    return Endpoint(("POST",), handle)


def realtime(forward: Forward, surface: Surface) -> Endpoint:
    """Return what answers a WebSocket."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        return await forward.converse(exchange, surface, request)

    return Endpoint(("GET",), handle, upgrades=True)
