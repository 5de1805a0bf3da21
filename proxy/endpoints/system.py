"""`GET /v1/ping` and `/v1/time`: is anybody there, and what time is it there. Always open."""

from collections.abc import Callable
from datetime import UTC, datetime

import orjson

from proxy.client.answers import respond
from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.exchange import Exchange

METHODS = ("GET", "HEAD")


def ping() -> Endpoint:
    """Return what answers a ping."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        return respond(exchange, request, b'{"status":"ok"}')

    return Endpoint(METHODS, handle, always_open=True)


def time(now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Endpoint:
    """Return what tells the time: UTC, as ISO 8601 writes it and in seconds since 1970."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        moment = now()
        told = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "epoch": int(moment.timestamp()),
            "epoch_ms": int(moment.timestamp() * 1000),
        }
        return respond(exchange, request, orjson.dumps(told))

    return Endpoint(METHODS, handle, always_open=True)
