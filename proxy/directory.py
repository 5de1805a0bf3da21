"""What is known of every endpoint, and what each of our errors means: the words and tables that
`openapi` makes its documents from. Nothing here knows a caller.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from proxy import errors
from proxy.config import Snapshot
from proxy.errors import Kind
from proxy.surfaces import Surface

# What may go wrong, by where it does

HEAD = (
    errors.BAD_REQUEST,
    errors.REQUEST_TIMEOUT,
    errors.URI_TOO_LONG,
    errors.EXPECTATION_FAILED,
    errors.HEADERS_TOO_LARGE,
    errors.INTERNAL,
    errors.DRAINING,
    errors.SHUTDOWN,
)
UPSTREAM = (
    errors.OVERLOADED,
    errors.NOT_CONFIGURED,
    errors.UPSTREAM_UNAVAILABLE,
    errors.UPSTREAM_DNS,
    errors.UPSTREAM_CONNECT,
    errors.UPSTREAM_TLS,
    errors.UPSTREAM_DISCONNECTED,
    errors.UPSTREAM_PROTOCOL,
    errors.UPSTREAM_AUTH,
    errors.UPSTREAM_TIMEOUT,
)
MODEL = (
    errors.INVALID_MODEL,
    errors.MODEL_NOT_ALLOWED,
    errors.MODEL_NOT_FOUND,
    errors.ENDPOINT_NOT_SUPPORTED,
    errors.HEADER_MISSING,
    errors.HEADER_UNKNOWN,
    *UPSTREAM,
)
BODY = (errors.INVALID_JSON, errors.REQUEST_TOO_LARGE, errors.UNSUPPORTED_ENCODING, *MODEL)
KEPT = (errors.NOT_FOUND, errors.MODEL_NOT_ALLOWED, errors.ENDPOINT_NOT_SUPPORTED, *UPSTREAM)
HOOK = (
    errors.NOT_FOUND,
    errors.INVALID_JSON,
    errors.REQUEST_TOO_LARGE,
    errors.UNSUPPORTED_ENCODING,
    errors.ENDPOINT_NOT_SUPPORTED,
    errors.HOOK_FAILED,
    *UPSTREAM,
)

KINDS: Mapping[int, tuple[Kind, ...]] = {
    status: tuple(
        kind
        for kind in dict.fromkeys((*HEAD, *BODY, *KEPT, *HOOK, errors.ORIGIN_NOT_ALLOWED))
        if kind.status == status
    )
    for status in (400, 403, 404, 408, 413, 414, 415, 417, 431, 500, 502, 503, 504)
} | {
    401: (errors.INVALID_KEY,),
    405: (errors.METHOD_NOT_ALLOWED,),
    426: (errors.UPGRADE_REQUIRED,),
}
"""Our own errors by status."""

MEANINGS: Mapping[str, tuple[str, str]] = {
    "invalid_json": (
        "The body is not a JSON object, or not a form that every reader reads alike.",
        "Mend the body.",
    ),
    "invalid_model": (
        "The model is missing with no default one, is not a string, or stands there twice.",
        "Send one `model`.",
    ),
    "bad_request": (
        "What came is not HTTP/1.1 that every reader reads alike.",
        "See the message; the connection is closed.",
    ),
    "invalid_api_key": (
        "There is no key, or a wrong or an expired one.",
        "Present a key that the operator of this proxy has given you.",
    ),
    "model_not_allowed": (
        "The key is not for this model.",
        "Ask for another model, or ask the operator to widen the key.",
    ),
    "origin_not_allowed": (
        "This proxy asks for no key, and answers only to its own names.",
        "Call it by its own address, or ask the operator to add this name to `hosts`.",
    ),
    "not_found": (
        "There is nothing at this path.",
        "Check the base URL: it ends in `/v1` for OpenAI's SDKs, and not for Anthropic's.",
    ),
    "model_not_found": (
        "No route leads to this model.",
        "Check the name; the message says which ones are near.",
    ),
    "missing_header": (
        "A header that says where this model leads is missing.",
        "Send the header that the message names.",
    ),
    "unknown_header": (
        "A header that says where this model leads has a value that leads nowhere.",
        "Check the value; upper and lower case count.",
    ),
    "endpoint_not_supported": (
        "Whoever serves this model does not speak what is spoken at this path.",
        "Use a path that the message names, or another model.",
    ),
    "method_not_allowed": ("The path takes another method.", "See `Allow`."),
    "request_timeout": ("The request did not arrive in time.", "Send it again."),
    "request_too_large": ("The body is over the limit.", "Send less."),
    "uri_too_long": ("The request's target is too long.", "Send a shorter one."),
    "headers_too_large": ("The request's head is too large.", "Send fewer or shorter headers."),
    "unsupported_encoding": (
        "The request's body is packed in a way that is not read here.",
        "Send it plain, or in a coding that `Accept-Encoding` names.",
    ),
    "expectation_failed": ("`Expect` says what nobody here can do.", "Send no such `Expect`."),
    "upgrade_required": (
        "This path takes a WebSocket, or takes none.",
        "Connect one, or send a POST; `Upgrade` says which.",
    ),
    "internal_error": (
        "Something went wrong inside the proxy.",
        "Tell the operator, with the request's id.",
    ),
    "overloaded": ("The proxy has as much to do as it may.", "Come back after `Retry-After`."),
    "draining": ("The proxy is shutting down.", "Come back after `Retry-After`."),
    "proxy_shutdown": ("The proxy was shut down meanwhile.", "Send it again."),
    "not_configured": (
        "The operator has not yet set what this model needs.",
        "Tell the operator which variable the message names.",
    ),
    "upstream_unavailable": (
        "Whoever serves the model rests after failures.",
        "Come back after `Retry-After`.",
    ),
    "upstream_dns": ("Whoever serves the model could not be found.", "Try again later."),
    "upstream_connect": ("Whoever serves the model could not be reached.", "Try again later."),
    "upstream_tls": (
        "Whoever serves the model could not prove to be who is meant.",
        "Tell the operator.",
    ),
    "upstream_disconnected": (
        "Whoever serves the model broke off.",
        "Try again; where the answer says `x-should-retry: false` it may have been billed.",
    ),
    "upstream_protocol": ("What came from upstream is no answer.", "Tell the operator."),
    "upstream_auth": (
        "The upstream refused the proxy's own credential; yours is fine.",
        "Tell the operator.",
    ),
    "upstream_failed": (
        "What the hook asks gave no answer of use.",
        "Try again later, or tell the operator.",
    ),
    "upstream_timeout": (
        "No answer began in time.",
        "Try again, knowing that it may have been billed.",
    ),
    "upstream_incomplete": (
        "The stream ended without the marker that ends it.",
        "Take what came for a part, and try again.",
    ),
    "upstream_idle_timeout": (
        "The stream fell silent for too long.",
        "Take what came for a part, and try again.",
    ),
}
"""What each of our codes means, and what to do, in words for whoever called."""


# What carries a model


@dataclass(frozen=True, slots=True)
class Form:
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

FORMS: Mapping[str, Form] = {
    "chat/completions": Form(
        "Chat completions",
        ("messages",),
        {"messages": [_HELLO], "stream": True},
        streams=True,
    ),
    "responses": Form(
        "Responses", ("input",), {"input": _HELLO["content"], "stream": True}, streams=True
    ),
    "messages": Form(
        "Messages",
        ("messages", "max_tokens"),
        {"max_tokens": 512, "messages": [_HELLO], "stream": True},
        streams=True,
        headers=_ANTHROPIC,
    ),
    "completions": Form(
        "Completions",
        ("prompt",),
        {"prompt": "Once upon a time", "max_tokens": 64, "stream": True},
        streams=True,
    ),
    "fim/completions": Form(
        "Fill in the middle",
        ("prompt",),
        {"prompt": "def add(a, b):\n    return ", "suffix": "\n", "max_tokens": 32},
        streams=True,
    ),
    "messages/count_tokens": Form(
        "Count the tokens of a message", ("messages",), {"messages": [_HELLO]}, headers=_ANTHROPIC
    ),
    "responses/input_tokens": Form("Count the tokens of a response", (), {"input": "Hello"}),
    "responses/compact": Form("Compact a conversation", (), {"input": [_HELLO]}),
    "embeddings": Form("Embeddings", ("input",), {"input": "one two three"}, tag="Vectors"),
    "rerank": Form(
        "Rerank documents",
        ("documents",),
        {"query": "two", "documents": ["one", "two", "three"]},
        tag="Vectors",
    ),
    "moderations": Form("Moderations", ("input",), {"input": "one two three"}, tag="Vectors"),
    "images/generations": Form(
        "Generate images", ("prompt",), {"prompt": "A lighthouse at dusk"}, tag="Images"
    ),
    "images/edits": Form("Edit images", (), {"prompt": "At dawn"}, files=("image",), tag="Images"),
    "images/variations": Form("Vary images", files=("image",), tag="Images"),
    "videos": Form("Generate videos", ("prompt",), {"prompt": "Waves at dusk"}, tag="Images"),
    "audio/speech": Form(
        "Speech from text",
        ("input",),
        {"input": _HELLO["content"], "voice": "alloy"},
        tag="Audio",
        answer="audio/mpeg",
    ),
    "audio/transcriptions": Form("Text from speech", files=("file",), tag="Audio"),
    "audio/translations": Form("English text from speech", files=("file",), tag="Audio"),
    "gemini:generateContent": Form("Generate content", ("contents",), _TURN, tag="Gemini"),
    "gemini:streamGenerateContent": Form(
        "Stream content", ("contents",), _TURN, streams=True, tag="Gemini"
    ),
    "gemini:countTokens": Form("Count tokens", (), _TURN, tag="Gemini"),
    "gemini:embedContent": Form(
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
    error_rate="number",
    failures="object",
    credentials="array",
)
_CHANNEL["properties"] |= {
    "state": {
        "type": "string",
        "enum": ["ready", "failing", "resting", "open", "dormant", "unknown"],
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
