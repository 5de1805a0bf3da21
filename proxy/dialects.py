"""The wire forms that endpoints speak: their paths, their error bodies, how their streams end."""

from dataclasses import dataclass
from enum import Enum

from proxy.errors import Shape


class Ending(Enum):
    """What must be seen before the end of a stream counts as its end."""

    NONE = "none"
    """Nothing: an end is an end."""
    CHAT = "chat"
    """`[DONE]`, or a `finish_reason` in every choice that is still talking."""
    DONE = "done"
    """`[DONE]` and nothing else, for upstreams that are known to send it (`terminal = "done"`)."""
    MESSAGES = "messages"
    """An event `message_stop`."""
    RESPONSES = "responses"
    """An event `response.completed`, `response.incomplete` or `response.failed`."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One wire form: its *name* in config, logs and docs, and what Trunkline must know of it."""

    name: str
    shape: Shape
    ending: Ending = Ending.NONE


CHAT = Dialect("chat", "openai", Ending.CHAT)
COMPLETIONS = Dialect("completions", "openai", Ending.CHAT)
EMBEDDINGS = Dialect("embeddings", "openai")
RESPONSES = Dialect("responses", "responses", Ending.RESPONSES)
MESSAGES = Dialect("messages", "anthropic", Ending.MESSAGES)
COUNT_TOKENS = Dialect("count_tokens", "anthropic")
MODERATIONS = Dialect("moderations", "openai")
RERANK = Dialect("rerank", "openai")

ENDPOINTS: dict[str, Dialect] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "embeddings": EMBEDDINGS,
    "responses": RESPONSES,
    "messages": MESSAGES,
    "messages/count_tokens": COUNT_TOKENS,
    "moderations": MODERATIONS,
    "rerank": RERANK,
}
"""The endpoints that carry a model, by their path below a base path."""

BELOW: dict[str, Dialect] = {"responses/": RESPONSES}
"""Endpoints whose further paths (`responses/compact`) speak the same dialect."""


def find(path: str) -> Dialect | None:
    """Return the dialect of *path* (below the base path, without query), if it is a known one."""
    dialect = ENDPOINTS.get(path)
    if dialect is None:
        for prefix, below in BELOW.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return below
    return dialect


def shape_of(path: str) -> Shape:
    """Return the error shape that whoever called *path* expects, known or not."""
    return "anthropic" if "/messages" in path else "openai"
