"""`GET /health`, `/livez`, `/readyz`: this process is up, and takes requests. Calls nobody, tells
nothing, always open.
"""

from http import HTTPStatus

from proxy.admission import Gate
from proxy.client.answers import respond
from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.exchange import Exchange


def endpoint() -> Endpoint:
    """Return what answers a health check."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        return respond(exchange, request, b'{"status":"ok"}')

    return Endpoint(("GET", "HEAD"), handle, always_open=True)


def readiness(gate: Gate) -> Endpoint:
    """Return what tells a balancer whether to send requests here: not when we are about to leave."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        if gate.leaving or gate.draining:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return respond(exchange, request, b'{"status":"leaving"}', status=status)
        return respond(exchange, request, b'{"status":"ok"}')

    return Endpoint(("GET", "HEAD"), handle, always_open=True)
