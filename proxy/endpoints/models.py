"""`GET /v1/models` and `/v1/models/{id}`: what this caller may ask for. Calls nobody, but for
`?upstream=NAME`, which asks that vendor for its own list.

One list serves both families of SDK: every entry carries the fields of OpenAI's and of
Anthropic's, which do not contradict each other. Google's have one of their own, at a path that is
theirs, or where the client says that it is.
"""

from typing import Any
from urllib.parse import unquote

import orjson

from proxy.client.answers import respond
from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.config import Snapshot
from proxy.dialects import GEMINI, shape_of
from proxy.errors import MODEL_NOT_FOUND, ProxyError, printable
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.keys import Key
from proxy.routes import Route
from proxy.sight import Sight
from proxy.surfaces import Surface

_GOOGLES = b"x-goog-api-client"
"""What Google's SDKs say of themselves, also at `/v1/models`, where others ask too."""
_UNKNOWN = dict.fromkeys(
    ("capabilities", "deprecated_at", "line", "max_input_tokens", "max_tokens", "retires_at")
)
"""What Anthropic says of each model, if only that it is null. We know none of it."""


def endpoint(forward: Forward, surface: Surface, snapshot: Snapshot) -> Endpoint:
    """Return what answers with the list of models, or with one of them."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        native = shape_of(exchange.path) == "gemini" or _GOOGLES in exchange.headers.first
        if native:
            exchange.dialect = GEMINI
        exchange.key = forward.identify(exchange, surface)
        vendor = _vendor(exchange.query)
        if vendor is not None and exchange.method == "GET":
            name, exchange.query = vendor
            return await forward.carry(exchange, surface, request, snapshot.upstreams.get(name))
        if exchange.suffix == "models":
            listed = _native_list(exchange.key) if native else _list(exchange.key)
            return respond(exchange, request, orjson.dumps(listed))
        model = unquote(exchange.suffix.removeprefix("models/"))
        exchange.model = printable(model)
        sight = Sight(surface, exchange.key, snapshot.routes)
        route = snapshot.routes.match(model) if sight.shows(model) else None
        if route is None:
            message = f'There is no model "{printable(model)}".'
            raise ProxyError(MODEL_NOT_FOUND, message, param="model")
        entry = _native_entry(model) if native else _entry(model, route)
        return respond(exchange, request, orjson.dumps(entry))

    def _native_list(key: Key | None) -> dict[str, Any]:
        names = Sight(surface, key, snapshot.routes).models()
        return {"models": [_native_entry(name) for name in names]}

    def _native_entry(model: str) -> dict[str, Any]:
        return {"name": f"models/{model}", "displayName": model}

    def _list(key: Key | None) -> dict[str, Any]:
        models = Sight(surface, key, snapshot.routes).models()
        entries = [_entry(name, route) for name, route in models.items()]
        return {
            "object": "list",
            "data": entries,
            "has_more": False,
            "first_id": entries[0]["id"] if entries else None,
            "last_id": entries[-1]["id"] if entries else None,
        }

    def _entry(model: str, route: Route) -> dict[str, Any]:
        owner, slash, _ = model.partition("/")
        return {
            "id": model,
            "object": "model",
            "created": int(snapshot.loaded.timestamp()),
            "owned_by": owner if slash else route.first.upstream.name,
            "type": "model",
            "display_name": model,
            "created_at": snapshot.loaded.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycle": "active",
            **_UNKNOWN,
        }

    return Endpoint(("GET", "HEAD"), handle)


def _vendor(query: str) -> tuple[str, str] | None:
    """Return the upstream that *query* names, if it names one, and the rest of the query."""
    parts = query.split("&")
    for index, part in enumerate(parts):
        if part.startswith("upstream="):
            name = unquote(part.removeprefix("upstream="))
            return name, "&".join(parts[:index] + parts[index + 1 :])
    return None
