"""What is known of every endpoint, and which of our errors may come there: the words and tables that
`openapi` makes its documents from. Nothing here knows a caller.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from proxy import errors
from proxy.config import Snapshot
from proxy.errors import Kind, Step
from proxy.surfaces import Surface

# What may go wrong, by where it does


def _at(*steps: Step) -> tuple[Kind, ...]:
    return tuple(kind for kind in errors.KINDS if kind.step in steps)


HEAD = _at("head")
UPSTREAM = _at("upstream")
MODEL = _at("model", "upstream")
BODY = _at("body", "model", "upstream")
KEPT = (errors.NOT_FOUND, errors.MODEL_NOT_ALLOWED, errors.ENDPOINT_NOT_SUPPORTED, *UPSTREAM)
HOOK = (errors.NOT_FOUND, errors.ENDPOINT_NOT_SUPPORTED, *_at("body", "upstream", "hook"))

ANSWERED: Mapping[str, Kind] = {
    kind.code: kind for kind in errors.KINDS if kind.step not in ("stream", "log")
}
"""Our own errors that are told with their status, by code."""
TOLD: Mapping[str, Kind] = {
    **ANSWERED,
    **{kind.code: kind for kind in _at("stream") if kind.code not in ANSWERED},
}
"""All that a caller may be told of: some only as a stream's last event."""


# What carries a model


@dataclass(frozen=True, slots=True)
class Call:
    """What an endpoint that carries a model takes: *example*, less the model, of which *required* are
    the fields it cannot do without. *files* are the fields of a form that hold files.
    """

    summary: str
    required: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    streams: bool = False
    files: tuple[str, ...] = ()
    tag: str = "Text"
    answer: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


_HELLO = {"role": "user", "content": "Say hello in one short sentence."}
_ANTHROPIC = {"anthropic-version": "2023-06-01"}
_TURN = {"contents": [{"role": "user", "parts": [{"text": _HELLO["content"]}]}]}

CALLS: Mapping[str, Call] = {
    "chat/completions": Call(
        "Chat completions",
        ("messages",),
        {"messages": [_HELLO], "stream": True},
        streams=True,
    ),
    "responses": Call(
        "Responses", ("input",), {"input": _HELLO["content"], "stream": True}, streams=True
    ),
    "messages": Call(
        "Messages",
        ("messages", "max_tokens"),
        {"max_tokens": 512, "messages": [_HELLO], "stream": True},
        streams=True,
        headers=_ANTHROPIC,
    ),
    "completions": Call(
        "Completions",
        ("prompt",),
        {"prompt": "Once upon a time", "max_tokens": 64, "stream": True},
        streams=True,
    ),
    "fim/completions": Call(
        "Fill in the middle",
        ("prompt",),
        {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 32},
        streams=True,
    ),
    "messages/count_tokens": Call(
        "Count the tokens of a message", ("messages",), {"messages": [_HELLO]}, headers=_ANTHROPIC
    ),
    "responses/input_tokens": Call("Count the tokens of a response", (), {"input": "Hello"}),
    "responses/compact": Call("Compact a conversation", (), {"input": [_HELLO]}),
    "embeddings": Call("Embeddings", ("input",), {"input": "one two three"}, tag="Vectors"),
    "rerank": Call(
        "Rerank documents",
        ("documents",),
        {"query": "two", "documents": ["one", "two", "three"]},
        tag="Vectors",
    ),
    "moderations": Call("Moderations", ("input",), {"input": "one two three"}, tag="Vectors"),
    "images/generations": Call(
        "Generate images", ("prompt",), {"prompt": "A lighthouse at dusk"}, tag="Images"
    ),
    "images/edits": Call("Edit images", (), {"prompt": "At dawn"}, files=("image",), tag="Images"),
    "images/variations": Call("Vary images", files=("image",), tag="Images"),
    "videos": Call("Generate videos", ("prompt",), {"prompt": "Waves at dusk"}, tag="Images"),
    "audio/speech": Call(
        "Speech from text",
        ("input",),
        {"input": _HELLO["content"], "voice": "alloy"},
        tag="Audio",
        answer="audio/mpeg",
    ),
    "audio/transcriptions": Call("Text from speech", files=("file",), tag="Audio"),
    "audio/translations": Call("English text from speech", files=("file",), tag="Audio"),
    "gemini:generateContent": Call("Generate content", ("contents",), _TURN, tag="Gemini"),
    "gemini:streamGenerateContent": Call(
        "Stream content", ("contents",), _TURN, streams=True, tag="Gemini"
    ),
    "gemini:countTokens": Call("Count tokens", (), _TURN, tag="Gemini"),
    "gemini:embedContent": Call(
        "Embed content", ("content",), {"content": {"parts": [{"text": "one two"}]}}, tag="Gemini"
    ),
}


# What is our own


def _always(surface: Surface, snapshot: Snapshot) -> bool:
    return True


def _hooked(surface: Surface, snapshot: Snapshot) -> bool:
    return bool(snapshot.hooks) and surface.serves("hooks")


@dataclass(frozen=True, slots=True)
class Fixed:
    """An endpoint of our own: *path* is whole, or begins with `{base}`. *answer* is the schema of what
    it answers as *media*, *takes* that of the body it wants, as in *example*.

    It may ask for a key or for a secret of its own, or show more to who holds a key (`told`). Most
    are answered to the proxy's own names alone, one that is *open* to any. *kinds* are the errors
    beside those that any path may give, *statuses* its other answers; it is *here* on some surfaces.
    """

    path: str
    summary: str
    answer: Mapping[str, Any]
    media: str = "application/json"
    method: str = "get"
    takes: Mapping[str, Any] | None = None
    example: Mapping[str, Any] | None = None
    asks: Literal["nothing", "told", "key", "secret"] = "nothing"
    open: bool = False
    streams: bool = False
    tag: str = "Discovery"
    kinds: tuple[Kind, ...] = ()
    statuses: Mapping[int, str] = field(default_factory=dict)
    here: Callable[[Surface, Snapshot], bool] = _always


def fields(**types: str) -> dict[str, Any]:
    """Return the schema of an object that has fields of these *types*, and may have others."""
    properties = {name: {"type": type_} for name, type_ in types.items()}
    return {"type": "object", "required": [*types], "properties": properties}


_UP = fields(status="string")
_NOW = fields(time="string", epoch="integer", epoch_ms="integer")
_OPENAPI = fields(openapi="string", paths="object")
_MESSAGE = fields(text="string")
_CHANNEL = fields(
    name="string",
    state="string",
    in_flight="integer",
    connections="object",
    error_rate="number",
    failures="object",
    credentials="array",
)
_CHANNEL["properties"] |= {
    "state": {
        "type": "string",
        "enum": ["ready", "failing", "resting", "open", "dormant", "unknown"],
    },
    "connections": {
        "type": "object",
        "description": "How many are `idle`, or how far their answers have come: `head`, `body`, …",
        "additionalProperties": {"type": "integer"},
    },
    "first_byte_ms": {"type": ["number", "null"]},
    "failures": {
        "type": "object",
        "description": "How many failed in the last minute, by outcome.",
        "additionalProperties": {"type": "integer"},
    },
    "last_error": {
        "type": ["object", "null"],
        "required": ["code", "at"],
        "properties": {"code": {"type": "string"}, "at": {"type": "string", "format": "date-time"}},
    },
    "credentials": {"type": "array", "items": fields(source="string", state="string")},
}
_SESSION = fields(id="string", surface="string", phase="string", age_seconds="number")
_SESSION["properties"] |= {
    name: {"type": ["string", "null"]} for name in ("key", "model", "route", "upstream")
} | {name: {"type": "integer"} for name in ("bytes_in", "bytes_out")}
_STATUS = fields(
    status="string",
    version="string",
    uptime_seconds="number",
    snapshot="object",
    connected_channels="integer",
    active_sessions="integer",
    channels="array",
    sessions="array",
)
_STATUS["properties"] |= {
    "channels": {"type": "array", "items": _CHANNEL},
    "sessions": {"type": "array", "items": _SESSION},
}
_PAGE = {"type": "string"}

FIXED: tuple[Fixed, ...] = (
    Fixed("/health", "Whether the process is up", _UP, open=True, tag="System"),
    Fixed("/livez", "Whether it is up, as Kubernetes asks", _UP, open=True, tag="System"),
    Fixed(
        "/readyz",
        "Whether requests should be sent here",
        _UP,
        open=True,
        tag="System",
        statuses={503: "The proxy is about to leave."},
    ),
    Fixed("{base}/ping", "Whether anybody is there", _UP, open=True, tag="System"),
    Fixed("{base}/time", "What time it is there", _NOW, open=True, tag="System"),
    Fixed("/status", "How the proxy is, and what it is doing", _STATUS, asks="key", tag="System"),
    Fixed(
        "/status/events",
        "The status, each second anew",
        {},
        "text/event-stream",
        asks="key",
        tag="System",
    ),
    Fixed(
        "/hooks/{name}",
        "Post a message to a hook",
        _MESSAGE,
        method="post",
        takes=_MESSAGE,
        example={"text": "Say hello in one short sentence.", "action": "chat", "stream": False},
        asks="secret",
        streams=True,
        tag="Hooks",
        kinds=HOOK,
        here=_hooked,
    ),
    Fixed("/docs", "The documentation, for people", _PAGE, "text/html"),
    Fixed("/docs/api", "The explorer, for people", _PAGE, "text/html"),
    Fixed("/openapi.json", "This document", _OPENAPI, asks="told"),
    Fixed("/docs/openapi.json", "This document once more", _OPENAPI, asks="told"),
    Fixed(
        "/docs/llm.json",
        "The same in short, for programs",
        fields(name="string", base_url="string"),
        asks="told",
    ),
    Fixed("/llms.txt", "The same in short, for models", _PAGE, "text/plain", asks="told"),
)
"""Whatever answers at a path of its own: one row each."""
