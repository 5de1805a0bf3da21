"""The wire forms that endpoints speak: their paths, their error bodies, how their streams end."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from proxy.errors import Shape


class Ending(StrEnum):
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
    """One wire form: its *name* in config, logs and docs, and what Trunkline must know of it.

    *carries* is where a request says its model. A *conversation* is one of the big forms, that a
    vendor either speaks or does not: what a preset says of them holds even where it is inferred.
    """

    name: str
    shape: Shape
    ending: Ending = Ending.NONE
    carries: Literal["body", "path", "query"] = "body"
    conversation: bool = False


CHAT = Dialect("chat", "openai", Ending.CHAT, conversation=True)
COMPLETIONS = Dialect("completions", "openai", Ending.CHAT)
FIM = Dialect("fim", "openai", Ending.CHAT)
EMBEDDINGS = Dialect("embeddings", "openai")
RESPONSES = Dialect("responses", "responses", Ending.RESPONSES, conversation=True)
MESSAGES = Dialect("messages", "anthropic", Ending.MESSAGES, conversation=True)
COUNT_TOKENS = Dialect("count_tokens", "anthropic")
MODERATIONS = Dialect("moderations", "openai")
RERANK = Dialect("rerank", "openai")
IMAGES = Dialect("images", "openai")
AUDIO = Dialect("audio", "openai")
VIDEOS = Dialect("videos", "openai")
REALTIME = Dialect("realtime", "openai", carries="query")
GEMINI = Dialect("gemini", "gemini", carries="path", conversation=True)
MODELS = Dialect("models", "openai")
FILES = Dialect("files", "openai")
"""What carries no model: files, batches, and all that is kept at the vendor."""

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        CHAT, RESPONSES, MESSAGES, COUNT_TOKENS, COMPLETIONS, FIM, EMBEDDINGS, RERANK, MODERATIONS,
        IMAGES, AUDIO, VIDEOS, REALTIME, GEMINI, MODELS, FILES,
    )
}  # fmt: skip

ENDPOINTS: dict[str, Dialect] = {
    "chat/completions": CHAT,
    "completions": COMPLETIONS,
    "fim/completions": FIM,
    "embeddings": EMBEDDINGS,
    "responses": RESPONSES,
    "responses/compact": RESPONSES,
    "responses/input_tokens": RESPONSES,
    "messages": MESSAGES,
    "messages/count_tokens": COUNT_TOKENS,
    "moderations": MODERATIONS,
    "rerank": RERANK,
    "images/generations": IMAGES,
    "images/edits": IMAGES,
    "images/variations": IMAGES,
    "audio/speech": AUDIO,
    "audio/transcriptions": AUDIO,
    "audio/translations": AUDIO,
    "videos": VIDEOS,
    "realtime": REALTIME,
}
"""The endpoints that carry a model, by their path below a base path."""

_GOOGLES = re.compile(
    r"/v1(?:alpha|beta)[0-9]*(?:/|$)|/v1internal[:/]|/publishers/|:[a-z]+[A-Z][A-Za-z]+$|:predict$"
)
"""What Google's own paths look like: theirs are versions such as `v1beta`, and verbs behind a colon."""
_NATIVE = re.compile(r"models/(.+):([A-Za-z]+)")
_DEPLOYED = re.compile(rf"deployments/(.+?)/({'|'.join(sorted(ENDPOINTS, key=len, reverse=True))})")
_FOREIGN = (
    (
        re.compile(r".*/model/.+/(?:invoke|converse)(?:-with-response-stream|-stream)?"),
        "This is a path of Amazon Bedrock's own SDKs, which this proxy does not serve: use the class "
        "`Anthropic`, not `AnthropicBedrock`, with this proxy's address as its `base_url`, or `OpenAI` "
        "with `/v1` behind that.",
    ),
    (
        re.compile(r".*/publishers/[^/]+/models/.+:[A-Za-z]+"),
        "This is a path of Vertex AI's own SDKs, which this proxy does not serve: use the class "
        "`Anthropic`, not `AnthropicVertex`, or `genai.Client` without `vertexai`, with this proxy's "
        "address as its base URL, or `OpenAI` with `/v1` behind that.",
    ),
)
"""Forms that a vendor's SDK alone speaks, and what to say to it."""


@dataclass(frozen=True, slots=True)
class Azure:
    """How Azure's SDKs ask: below `/openai/v1`, or, *dated*, below `/openai` and with an `api-version`;
    there the path may name the *deployment*, as it is written, which is the model.
    """

    dated: bool
    deployment: str | None = None


def find(path: str) -> Dialect | None:
    """Return the dialect of *path* (below the base path, without query), if it carries a model."""
    return ENDPOINTS.get(path) or (GEMINI if _NATIVE.fullmatch(path) else None)


def deployed(path: str) -> tuple[str, str] | None:
    """Return the deployment that *path* (below `/openai/`) names, as it is written, and the endpoint."""
    match = _DEPLOYED.fullmatch(path)
    return None if match is None else (match[1], match[2])


def foreign(path: str) -> str | None:
    """Return what to say to an SDK of a vendor's own that calls *path*, where nothing is."""
    return next((message for form, message in _FOREIGN if form.fullmatch(path)), None)


def native(path: str) -> tuple[str, str]:
    """Return the model, as it is written, and the verb of a Gemini-native *path*:
    `models/gemini-2.5-pro:generateContent`.
    """
    match = _NATIVE.fullmatch(path)
    assert match is not None  # else `find` had not found it
    return match[1], match[2]


def family(path: str) -> Dialect:
    """Return the dialect that *path*, which carries no model, belongs to: `responses/resp_1` is a
    matter of responses, and whatever else is kept at a vendor one of files.
    """
    while path:
        if path in ENDPOINTS:
            return ENDPOINTS[path]
        if path == "models":
            return MODELS
        path = path.rpartition("/")[0]
    return FILES


def shape_of(path: str) -> Shape:
    """Return the error shape that whoever called *path* expects, known or not."""
    if "/messages" in path or "/publishers/anthropic/" in path:
        return "anthropic"
    return "gemini" if _GOOGLES.search(path) is not None and "/openai" not in path else "openai"
