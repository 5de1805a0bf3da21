"""Say a thing once for an SDK's two clients, the sync one and the async one."""

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


async def settle(value: Any) -> Any:
    """Return *value*, after waiting for it where the client is the async one."""
    return await value if inspect.isawaitable(value) else value


async def drain(events: Any, into: list[Any] | None = None) -> list[Any]:
    """Take all *events* of a stream; *into* keeps what came before an error."""
    taken = [] if into is None else into
    if hasattr(events, "__aiter__"):
        async for event in events:
            taken.append(event)
    else:
        taken.extend(events)
    return taken


async def first(events: Any) -> Any:
    """Take the first of *events*."""
    return await anext(events) if hasattr(events, "__anext__") else next(events)


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """Enter *manager*, with `with` or `async with`."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


def trunkline_id(response: Any) -> str:
    """Return our id from the *response* of any SDK."""
    value: str = response.headers["x-trunkline-id"]
    return value


def text_of(chunks: list[Any]) -> str:
    """Return what the chunks of a chat say together."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
