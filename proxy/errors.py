"""What can go wrong, whose fault it is, and the words in which a caller learns of it.

Every error that Trunkline itself authors is a `ProxyError` of one of the kinds below, and
`render` is the only place where one becomes bytes. Nothing here may ever hold a secret, an
upstream's address, a class name or a stack: messages go to strangers.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from http import HTTPStatus
from typing import Literal

import orjson

Shape = Literal["openai", "anthropic", "responses", "gemini"]
"""The error body a caller's SDK parses; `responses` differs from `openai` only inside a stream."""

Outcome = Literal[
    "ok",
    "client_error",
    "refused",
    "upstream_error",
    "upstream_cut",
    "client_gone",
    "timeout",
    "shutdown",
]
"""How an exchange ended, as the log line says it."""


Step = Literal["head", "key", "path", "body", "model", "upstream", "hook", "stream", "log"]
"""How far a request has come that fails so; `stream`: its status is out; `log`: no caller is told."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table: all that errors of this kind have in common.

    *fault* is whose it is. *meaning* and *remedy* are for whoever called: what happened, and what to do.
    *close* says that the client's connection cannot be used again; *retry* is what
    `x-should-retry` truthfully tells an SDK, where it would otherwise guess wrongly.
    """

    status: int
    type: str
    code: str
    outcome: Outcome
    fault: Literal["caller", "proxy", "operator", "upstream"]
    step: Step
    meaning: str
    remedy: str
    close: bool = False
    retry: bool | None = None


# The table. Who adds a row has added it to the documents that we serve; `scripts/docs` to the page.
# fmt: off

INVALID_JSON = Kind(400, "invalid_request_error", "invalid_json", "client_error", "caller", "body",
    "The body is not a JSON object, or not a form that every reader reads alike.",
    "Mend the body.")
INVALID_MODEL = Kind(400, "invalid_request_error", "invalid_model", "client_error", "caller", "model",
    "The model is missing with no default one, is not a string, or stands there twice.",
    "Send one `model`.")
BAD_REQUEST = Kind(400, "invalid_request_error", "bad_request", "client_error", "caller", "head",
    "What came is not HTTP/1.1 that every reader reads alike.",
    "See the message; the connection is closed.", close=True)
INVALID_KEY = Kind(401, "authentication_error", "invalid_api_key", "refused", "caller", "key",
    "There is no key, or a wrong or an expired one.",
    "Present a key that the operator of this proxy has given you.", retry=False)
MODEL_NOT_ALLOWED = Kind(403, "permission_error", "model_not_allowed", "refused", "caller", "model",
    "The key is not for this model.",
    "Ask for another model, or ask the operator to widen the key.")
ORIGIN_NOT_ALLOWED = Kind(403, "permission_error", "origin_not_allowed", "refused", "caller", "key",
    "This proxy asks for no key, and answers only to its own names.",
    "Call it by its own address, or ask the operator to add this name to `hosts`.")
NOT_FOUND = Kind(404, "invalid_request_error", "not_found", "client_error", "caller", "path",
    "There is nothing at this path.",
    "Check the base URL: it ends in `/v1` for OpenAI's SDKs, and not for Anthropic's.")
MODEL_NOT_FOUND = Kind(404, "invalid_request_error", "model_not_found", "client_error", "caller", "model",
    "No route leads to this model.",
    "Check the name; the message says which ones are near.")
HEADER_MISSING = Kind(400, "invalid_request_error", "missing_header", "client_error", "caller", "model",
    "A header that says where this model leads is missing.",
    "Send the header that the message names.")
HEADER_UNKNOWN = Kind(404, "invalid_request_error", "unknown_header", "client_error", "caller", "model",
    "A header that says where this model leads has a value that leads nowhere.",
    "Check the value; upper and lower case count.")
"""Of a route by header, which says what these two are called."""
ENDPOINT_NOT_SUPPORTED = Kind(404, "invalid_request_error", "endpoint_not_supported", "client_error", "caller", "model",
    "Whoever serves this model does not speak what is spoken at this path.",
    "Use a path that the message names, or another model.")
METHOD_NOT_ALLOWED = Kind(405, "invalid_request_error", "method_not_allowed", "client_error", "caller", "path",
    "The path takes another method.",
    "See `Allow`.")
REQUEST_TIMEOUT = Kind(408, "invalid_request_error", "request_timeout", "client_error", "caller", "head",
    "The request did not arrive in time.",
    "Send it again.", close=True, retry=False)
REQUEST_TOO_LARGE = Kind(413, "invalid_request_error", "request_too_large", "client_error", "caller", "body",
    "The body is over the limit.",
    "Send less.", close=True)
URI_TOO_LONG = Kind(414, "invalid_request_error", "uri_too_long", "client_error", "caller", "head",
    "The request's target is too long.",
    "Send a shorter one.", close=True)
HEADERS_TOO_LARGE = Kind(431, "invalid_request_error", "headers_too_large", "client_error", "caller", "head",
    "The request's head is too large.",
    "Send fewer or shorter headers.", close=True)
UNSUPPORTED_ENCODING = Kind(415, "invalid_request_error", "unsupported_encoding", "client_error", "caller", "body",
    "The request's body is packed in a way that is not read here.",
    "Send it plain, or in a coding that `Accept-Encoding` names.")
EXPECTATION_FAILED = Kind(417, "invalid_request_error", "expectation_failed", "client_error", "caller", "head",
    "`Expect` says what nobody here can do.",
    "Send no such `Expect`.")
UPGRADE_REQUIRED = Kind(426, "invalid_request_error", "upgrade_required", "client_error", "caller", "path",
    "This path takes a WebSocket, or takes none.",
    "Connect one, or send a POST; `Upgrade` says which.")

INTERNAL = Kind(500, "server_error", "internal_error", "upstream_error", "proxy", "head",
    "Something went wrong inside the proxy.",
    "Tell the operator, with the request's id.")
OVERLOADED = Kind(503, "server_error", "overloaded", "refused", "proxy", "upstream",
    "The proxy has as much to do as it may.",
    "Come back after `Retry-After`.")
DRAINING = Kind(503, "server_error", "draining", "refused", "proxy", "head",
    "The proxy is shutting down.",
    "Come back after `Retry-After`.", close=True)
SHUTDOWN = Kind(503, "server_error", "proxy_shutdown", "shutdown", "proxy", "head",
    "The proxy was shut down meanwhile.",
    "Send it again.", close=True)

NOT_CONFIGURED = Kind(503, "upstream_error", "not_configured", "upstream_error", "operator", "upstream",
    "The operator has not yet set what this model needs.",
    "Tell the operator which variable the message names.")
UPSTREAM_UNAVAILABLE = Kind(503, "upstream_error", "upstream_unavailable", "upstream_error", "upstream", "upstream",
    "Whoever serves the model rests after failures.",
    "Come back after `Retry-After`.")
UPSTREAM_DNS = Kind(502, "upstream_error", "upstream_dns", "upstream_error", "upstream", "upstream",
    "Whoever serves the model could not be found.",
    "Try again later.")
UPSTREAM_CONNECT = Kind(502, "upstream_error", "upstream_connect", "upstream_error", "upstream", "upstream",
    "Whoever serves the model could not be reached.",
    "Try again later.")
UPSTREAM_TLS = Kind(502, "upstream_error", "upstream_tls", "upstream_error", "upstream", "upstream",
    "Whoever serves the model could not prove to be who is meant.",
    "Tell the operator.")
UPSTREAM_DISCONNECTED = Kind(502, "upstream_error", "upstream_disconnected", "upstream_error", "upstream", "upstream",
    "Whoever serves the model broke off.",
    "Try again; where the answer says `x-should-retry: false` it may have been billed.")
UPSTREAM_PROTOCOL = Kind(502, "upstream_error", "upstream_protocol", "upstream_error", "upstream", "upstream",
    "What came from upstream is no answer.",
    "Tell the operator.", retry=False)
UPSTREAM_AUTH = Kind(502, "upstream_error", "upstream_auth", "upstream_error", "operator", "upstream",
    "The upstream refused the proxy's own credential; yours is fine.",
    "Tell the operator.", retry=False)
HOOK_FAILED = Kind(502, "upstream_error", "upstream_failed", "upstream_error", "upstream", "hook",
    "What the hook asks gave no answer of use.",
    "Try again later, or tell the operator.")
UPSTREAM_TIMEOUT = Kind(504, "timeout_error", "upstream_timeout", "timeout", "upstream", "upstream",
    "No answer began in time.",
    "Try again, knowing that it may have been billed.", retry=False)

STREAM_DISCONNECTED = replace(UPSTREAM_DISCONNECTED, outcome="upstream_cut", step="stream")
STREAM_INCOMPLETE = Kind(502, "upstream_error", "upstream_incomplete", "upstream_cut", "upstream", "stream",
    "The stream ended without the marker that ends it.",
    "Take what came for a part, and try again.")
STREAM_IDLE = Kind(504, "timeout_error", "upstream_idle_timeout", "timeout", "upstream", "stream",
    "The stream fell silent for too long.",
    "Take what came for a part, and try again.")
STREAM_TIMEOUT = replace(UPSTREAM_TIMEOUT, step="stream", retry=None)
STREAM_ERROR = Kind(200, "upstream_error", "upstream_error_event", "upstream_error", "upstream", "log",
    "The upstream said, inside a 200, that it has failed.",
    "See what it said: it was passed on.")
CLIENT_GONE = Kind(499, "client_closed", "client_gone", "client_gone", "caller", "log",
    "The client left before its answer was whole.",
    "Give it more time, if it was not meant to.")
CLIENT_STALLED = Kind(499, "client_closed", "client_stalled", "timeout", "caller", "log",
    "The client took nothing of its answer for too long.",
    "Read faster, or have `timeout.write` raised.")

# fmt: on
KINDS = tuple(kind for kind in tuple(globals().values()) if isinstance(kind, Kind))
"""The table's rows, in its order."""
GRAVE = frozenset(kind.code for kind in KINDS if kind.status >= 500)
"""Log an exchange with one of these codes as a warning: they are not the caller's doing."""


class ProxyError(Exception):
    """An error of *kind*, told to the caller as *message*.

    *param* names the request field at fault. *retry* overrides the kind's hint, for a request
    that may have been billed. *headers* are added to the answer (`Allow`, `Retry-After`).
    *close* forces the client's connection shut where the kind alone would not.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        retry: bool | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.retry = kind.retry if retry is None else retry
        self.headers = headers
        self.close = close or kind.close


class Fault(Enum):
    """How an attempt came to no answer: what decides whether another one may be made, and where."""

    UNSENT = "unsent"
    """Nothing was sent: refused, unreachable, a name server busy, a handshake broken off."""
    NOWHERE = "nowhere"
    """Nothing was sent, and nothing will be: no such host, or an upstream that takes no byte."""
    CERTIFICATE = "certificate"
    """Nothing was sent: who answers is not who is meant."""
    DEAD = "dead"
    """The connection died while part of the request was unsent."""
    STALE = "stale"
    """A used connection died just as the request went out, which was therefore hardly read."""
    AMBIGUOUS = "ambiguous"
    """The whole request was sent, and the connection died without an answer."""
    LATE = "late"
    """The whole request was sent, and no answer began in time."""
    MALFORMED = "malformed"
    """What came is no answer."""

    @property
    def unsent(self) -> bool:
        """Return whether nothing was sent."""
        return self in (Fault.UNSENT, Fault.NOWHERE, Fault.CERTIFICATE)


class UpstreamFailure(ProxyError):
    """An attempt that got no answer, because of a *fault*. *reason* is for the operator alone: where,
    and what the machine says of it.
    """

    def __init__(
        self, kind: Kind, message: str, fault: Fault, *, reason: str | None = None
    ) -> None:
        billed = fault in (Fault.AMBIGUOUS, Fault.LATE, Fault.STALE, Fault.MALFORMED)
        super().__init__(kind, message, retry=False if billed else None)
        self.fault = fault
        self.reason = reason


_ANTHROPIC_BY_STATUS = {404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}
_ANTHROPIC_BY_TYPE = {
    "server_error": "api_error",
    "upstream_error": "api_error",
    "timeout_error": "api_error",
}
_GEMINI_BY_STATUS = {
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""google.rpc.Code, by status."""


IDS = ("x-trunkline-id", "x-request-id", "request-id")
"""Name an answer of our own, and what was asked, as each of the vendors' SDKs looks for it."""


def render(
    error: ProxyError,
    shape: Shape,
    request_id: str,
    *,
    body: bool = True,
    name: str | None = None,
    added: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """Write *error* as a whole HTTP/1.1 answer in the caller's *shape*.

    A *name* is what the clients of a surface know it by, beside its type and code; *added* are
    further headers.

    With *body* false (an answer to HEAD, RFC 9110 section 9.3.2) only the head is written, and
    it says what the body's length would have been.
    """
    kind = error.kind
    content = _content(error, shape, request_id, name)
    told = [*error.headers]
    if kind.status == 401:
        told.append(("WWW-Authenticate", "Bearer"))
    if error.retry is not None:
        told.append(("x-should-retry", "true" if error.retry else "false"))
    head = head_of_ours(kind.status, len(content), request_id, told, added, close=error.close)
    return head + content if body else head


def head_of_ours(
    status: int,
    length: int,
    request_id: str,
    told: Iterable[tuple[str, str]] = (),
    added: Iterable[tuple[bytes, bytes]] = (),
    *,
    content_type: str = "application/json",
    close: bool,
) -> bytes:
    """Write the head, with its empty line, of an answer of our own whose body has *length* bytes; *told* and
    *added* are further headers.
    """
    pairs = [("Content-Type", content_type), ("Content-Length", str(length))]
    pairs += [(name, request_id) for name in IDS]
    pairs += told
    if close:
        pairs.append(("Connection", "close"))
    first = f"HTTP/1.1 {status} {_reason(status)}\r\n"
    head = first + "".join([f"{name}: {value}\r\n" for name, value in pairs])
    return head.encode("ascii") + b"".join([b"%b: %b\r\n" % pair for pair in added]) + b"\r\n"


def render_event(error: ProxyError, shape: Shape, request_id: str) -> bytes:
    """Write *error* as the last event of a stream whose status is already out."""
    if shape == "anthropic":
        return b"event: error\ndata: " + _anthropic(error, request_id) + b"\n\n"
    if shape == "responses":
        event = {
            "type": "error",
            "code": error.kind.code,
            "message": error.message,
            "param": error.param,
        }
        return b"event: error\ndata: " + orjson.dumps(event) + b"\n\n"
    return b"data: " + _content(error, shape, request_id) + b"\n\n"


def _content(error: ProxyError, shape: Shape, request_id: str, name: str | None = None) -> bytes:
    if shape == "anthropic":
        return _anthropic(error, request_id)
    return _gemini(error) if shape == "gemini" else _openai(error, name)


def _openai(error: ProxyError, name: str | None) -> bytes:
    told = {
        "message": error.message,
        "type": error.kind.type,
        "param": error.param,
        "code": error.kind.code,
    }
    return orjson.dumps({"error": told if name is None else {**told, "name": name}})


def _anthropic(error: ProxyError, request_id: str) -> bytes:
    kind = error.kind
    name = _ANTHROPIC_BY_STATUS.get(kind.status) or _ANTHROPIC_BY_TYPE.get(kind.type, kind.type)
    return orjson.dumps(
        {
            "type": "error",
            "error": {"type": name, "message": error.message},
            "request_id": request_id,
        }
    )


def _gemini(error: ProxyError) -> bytes:
    kind = error.kind
    reason = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": kind.code,
        "domain": "trunkline",
    }
    return orjson.dumps(
        {
            "error": {
                "code": kind.status,
                "message": error.message,
                "status": _GEMINI_BY_STATUS.get(kind.status, "INVALID_ARGUMENT"),
                "details": [reason],
            }
        }
    )


def _reason(status: int) -> str:
    return "Content Too Large" if status == 413 else HTTPStatus(status).phrase


def printable(text: str, limit: int = 128) -> str:
    """Make a stranger's *text* safe to show: one line, valid Unicode, at most *limit* characters."""
    if len(text) <= limit and text.isprintable():
        return text
    clean = text[: limit + 1].encode("utf-8", "backslashreplace").decode("utf-8")
    clean = "".join(
        ch if ch.isprintable() else ch.encode("unicode_escape").decode() for ch in clean
    )
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def is_good(status: int) -> bool:
    """Return whether *status* is that of an answer that is what was asked for."""
    return 200 <= status < 300


def outcome_of(status: int) -> Outcome:
    """Say how an exchange ended whose answer, of *status*, was the upstream's own."""
    if status < 400:
        return "ok"
    theirs = status >= 500 or status in (401, 402, 403, 408, 429)
    return "upstream_error" if theirs else "client_error"
