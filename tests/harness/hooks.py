"""A proxy with hooks, what is posted to them, and what comes back."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from tests.harness.client import Answer, Pair, call
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import JSON, Step, Upstream, answer, event, head, raw

SECRET = "hook-secret-CANARY-1"
OTHER = "hook-secret-CANARY-2"
TEAM = "sk-team-0123456789"
SYSTEM = "You are the on-call assistant."
BEARER: list[Pair] = [(b"Authorization", f"Bearer {SECRET}".encode())]
SAID = orjson.dumps({"choices": [{"index": 0, "message": {"content": "All is well."}}]})


def routes(upstream: Upstream, more: str = "", up: str = "") -> str:
    """Write a routes file with a hook that has a secret, `alerts`, and one that has none, `free`."""
    return f"""
[upstreams.up]
base_url = "{upstream.url}"
credential = "sk-upstream-secret"
{up}
[routes]
"m" = {{ upstream = "up", model = "real" }}
[hooks.alerts]
route = "m"
system = "{SYSTEM}"
secret = "{SECRET}"
[hooks.other]
route = "m"
secret = "{OTHER}"
[hooks.free]
route = "m"
{more}
"""


@asynccontextmanager
async def hooked(upstream: Upstream) -> AsyncIterator[Proxy]:
    """Run a proxy with hooks whose one surface asks for no key, on loopback; *upstream* says that all is well."""
    upstream.will(answer(body=SAID))
    async with serving(routes(upstream, up='timeout = { idle = "200ms" }')) as running:
        yield running


def said(text: Any = "The disk is full.", **fields: Any) -> bytes:
    """Write what is posted to a hook."""
    return orjson.dumps({"text": text, **fields})


def delta(text: str | None, finish: str | None = None) -> bytes:
    """Write the event of a chat that says *text*."""
    content = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": content, "finish_reason": finish}
    return event(orjson.dumps({"choices": [choice]}))


async def post(
    proxy: Proxy, body: bytes | None = None, name: str = "free", **kwargs: Any
) -> Answer:
    """Post *body* to the hook *name*; to `alerts`, with its secret."""
    kwargs.setdefault("headers", BEARER if name == "alerts" else [])
    return await call(proxy.port, said() if body is None else body, f"/hooks/{name}", **kwargs)


def refused(got: Answer, status: int, code: str) -> None:
    """Hold *got* against what every error of ours is: JSON, whole, with our id, and no more to say."""
    assert (got.status, got.code) == (status, code), got.raw
    assert got.value(b"content-type") == b"application/json"
    assert got.whole
    assert got.value(b"x-trunkline-id") == got.value(b"x-request-id") == got.value(b"request-id")
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}


async def left(upstream: Upstream, seconds: float = 2.0) -> None:
    """Wait until the proxy has left the last connection to *upstream*."""
    async with asyncio.timeout(seconds):
        await upstream.connections[-1].gone.wait()


def events(answer: Answer) -> list[tuple[str, Any]]:
    """Read the events of a stream: each is its name, and its data as JSON. It has LF only, no `id`."""
    assert b"\r" not in answer.body
    assert answer.body.endswith(b"\n\n")
    found = []
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        match = re.fullmatch(r"(?:event: ([a-z]+)\n)?data: (.*)", block)
        assert match is not None, block
        found.append((match[1] or "message", orjson.loads(match[2])))
    return found


def half(body: bytes, *, then: str = "close") -> Step:
    """Answer half of *body*, then break off."""
    return raw(head(200, [JSON, (b"Content-Length", b"%d" % len(body))]) + body[:10], then=then)
