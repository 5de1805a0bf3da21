"""`GET /health`: this process is up. Calls nobody, tells nothing, always open."""

from proxy.edge import Request, respond
from proxy.exchange import Exchange
from proxy.frame import Endpoint


def endpoint() -> Endpoint:
    """Return what answers a health check."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        return respond(exchange, request, b'{"status":"ok"}')

    return Endpoint(("GET", "HEAD"), handle, always_open=True)
