"""What there is to find: `/docs`, `/docs/api`, `/openapi.json`, `/docs/llm.json`, `/llms.txt`, and where that
is, at `/`.

All of it is made from the live routes and the table of endpoints, so that it cannot drift. None of it
asks for a key; who presents one is shown the models that it may ask for, and nobody else is.
"""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import orjson

from proxy import __version__, pages
from proxy.client.answers import respond
from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.config import Snapshot
from proxy.describe import openapi
from proxy.describe.directory import ANSWERED, TOLD
from proxy.describe.openapi import ABOUT, View
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.keys import Key
from proxy.surfaces import Surface

METHODS = ("GET", "HEAD")
_SAFE = ((b"X-Content-Type-Options", b"nosniff"), (b"Referrer-Policy", b"no-referrer"))

Describe = Callable[[View], bytes]
"""Makes one document of what a caller may see."""


def endpoints(forward: Forward, surface: Surface, snapshot: Snapshot) -> dict[str, Endpoint]:
    """Return what answers at the paths of the documentation of *surface*."""

    def told(describe: Describe, content_type: str = "application/json") -> Endpoint:
        @lru_cache(maxsize=16)
        def cached(key: Key | None, refusal: str | None) -> bytes:
            return describe(View(surface, snapshot, key, refusal))

        async def handle(exchange: Exchange, request: Request) -> bool:
            refusal = None
            try:
                exchange.key = forward.identify(exchange, surface)
            except ProxyError as error:  # no key, or no good one: a stranger may read on
                refusal = error.message
            body = cached(exchange.key, refusal)
            exchange.added += ((b"Cache-Control", b"no-store"), *_SAFE)
            return respond(exchange, request, body, content_type)

        return Endpoint(METHODS, handle)

    shown = {
        "/openapi.json": told(lambda view: _json(openapi.document(view, "."))),
        "/docs/openapi.json": told(lambda view: _json(openapi.document(view, ".."))),
        "/docs/llm.json": told(lambda view: _json(_summary(view))),
        "/llms.txt": told(lambda view: _index(view).encode(), "text/plain; charset=utf-8"),
    }
    return shown | {
        "/docs": _page("docs.html", "."),
        "/docs/": _page("docs.html", ".."),
        "/docs/api": _page("explorer.html", ".."),
        "/docs/api/": _page("explorer.html", "../.."),
    }


def root(surface: Surface) -> Endpoint:
    """Return what answers at a base path: that somebody is there, and where *surface* documents itself,
    relative to the path that was asked for.
    """

    async def handle(exchange: Exchange, request: Request) -> bool:
        told = {"status": "ok"}
        if surface.docs:
            up = "../" * (exchange.path.count("/") - 1) or "./"
            told |= {"docs": f"{up}docs", "openapi": f"{up}openapi.json", "llms": f"{up}llms.txt"}
        return respond(exchange, request, _json(told))

    return Endpoint(METHODS, handle, always_open=True)


@cache  # for every surface and every reload the same
def _page(name: str, root: str) -> Endpoint:
    page = pages.load(name)
    body = page.at(root)
    headers = (
        (b"Cache-Control", b"no-cache"),
        (b"Content-Security-Policy", page.policy.encode()),
        *_SAFE,
    )

    async def handle(exchange: Exchange, request: Request) -> bool:
        exchange.added += headers
        return respond(exchange, request, body, "text/html; charset=utf-8")

    return Endpoint(METHODS, handle)


def _json(value: Any) -> bytes:
    return orjson.dumps(value)


def _summary(view: View) -> dict[str, Any]:
    """Return `/docs/llm.json`. Addresses are relative to it; paths begin where *root* leads."""
    return {
        "name": "Trunkline",
        "version": __version__,
        "about": ABOUT,
        "root": "..",
        "base_url": f"..{view.base}",
        **openapi.summary(view, ".."),
        "endpoints": [
            {
                "id": operation["operationId"],
                "method": method.upper(),
                "path": path,
                "summary": operation["summary"],
                "dialect": operation.get("x-dialect"),
                "tag": operation["tags"][0],
            }
            for path, methods in openapi.document(view, "..")["paths"].items()
            for method, operation in methods.items()
        ],
        "streaming": {
            "ask": '"stream": true in the body, where an endpoint can',
            "format": "text/event-stream",
            "cut": "a stream without its last event (`[DONE]`, `message_stop`, "
            "`response.completed`) is not whole; its last event says why",
        },
        "errors": [
            {
                "status": kind.status if code in ANSWERED else None,
                "code": code,
                "meaning": kind.meaning,
                "remedy": kind.remedy,
            }
            for code, kind in TOLD.items()
        ],
        "docs": {
            "openapi": "openapi.json",
            "explorer": "api",
            "people": "../docs",
            "index": "../llms.txt",
        },
    }


def _index(view: View) -> str:
    """Return `/llms.txt` (llmstxt.org)."""
    auth = openapi.summary(view, "")["auth"]
    base = (view.base or "/").removeprefix("/")
    key = "No key is asked for."
    if auth["required"]:
        key = "Present your key as " + " or ".join(f"`{form}`" for form in auth["forms"]) + "."
    lines = [
        "# Trunkline",
        "",
        f"> {ABOUT}",
        "",
        f"The base URL for OpenAI's SDKs is `{base}`, relative to this file. {key}",
    ]
    if view.models:
        names = ", ".join(_verbatim(name) for name in view.models)
        lines += ["", f"The models you may ask for: {names}."]
    elif view.refusal is not None and view.surface.models == "list":
        lines += ["", "Ask for this file with a key, and it names the models."]
    lines += [
        "",
        "## Documentation",
        "",
        "- [Summary for programs](docs/llm.json): base URLs, forms of the key, endpoints, errors",
        "- [OpenAPI 3.1](openapi.json): every endpoint, with examples",
        "",
        "## Optional",
        "",
        "- [For people](docs): how to point a client here",
        "- [Explorer](docs/api): try an endpoint in the browser",
        "",
    ]
    return "\n".join(lines)


def _verbatim(name: str) -> str:
    """Return *name* as Markdown shows it unread, whatever it holds."""
    if "`" not in name:
        return f"`{name}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", name))))
    return f"{fence} {name} {fence}"
