"""What can go wrong, whose fault it is, and the words in which a caller learns of it.

Every error that Trunkline itself authors is a `ProxyError` of one of the kinds below, and
`render` is the only place where one becomes bytes. Nothing here may ever hold a secret, an
upstream's address, a class name or a stack: messages go to strangers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Kind:
    """One row of the error table: what every error of this kind has in common.

    *close* says that the client's connection cannot be used again; *retry* is what
    `x-should-retry` truthfully tells an SDK, where it would otherwise guess wrongly.
    """

    status: int
    type: str
    code: str
    outcome: Outcome
    close: bool = False
    retry: bool | None = None


# The caller's doing.
INVALID_KEY = Kind(401, "authentication_error", "invalid_api_key", "refused", retry=False)
MODEL_NOT_ALLOWED = Kind(403, "permission_error", "model_not_allowed", "refused")
ORIGIN_NOT_ALLOWED = Kind(403, "permission_error", "origin_not_allowed", "refused")
NOT_FOUND = Kind(404, "invalid_request_error", "not_found", "client_error")
MODEL_NOT_FOUND = Kind(404, "invalid_request_error", "model_not_found", "client_error")
ENDPOINT_NOT_SUPPORTED = Kind(
    404, "invalid_request_error", "endpoint_not_supported", "client_error"
)
METHOD_NOT_ALLOWED = Kind(405, "invalid_request_error", "method_not_allowed", "client_error")
HEADER_MISSING = Kind(400, "invalid_request_error", "missing_header", "client_error")
HEADER_UNKNOWN = Kind(404, "invalid_request_error", "unknown_header", "client_error")
"""Of a route by header, which says what these two are called."""
INVALID_JSON = Kind(400, "invalid_request_error", "invalid_json", "client_error")
INVALID_MODEL = Kind(400, "invalid_request_error", "invalid_model", "client_error")
BAD_REQUEST = Kind(400, "invalid_request_error", "bad_request", "client_error", close=True)
UNSUPPORTED_ENCODING = Kind(415, "invalid_request_error", "unsupported_encoding", "client_error")
EXPECTATION_FAILED = Kind(417, "invalid_request_error", "expectation_failed", "client_error")
URI_TOO_LONG = Kind(414, "invalid_request_error", "uri_too_long", "client_error", close=True)
UPGRADE_REQUIRED = Kind(426, "invalid_request_error", "upgrade_required", "client_error")
REQUEST_TIMEOUT = Kind(
    408, "invalid_request_error", "request_timeout", "client_error", close=True, retry=False
)
REQUEST_TOO_LARGE = Kind(
    413, "invalid_request_error", "request_too_large", "client_error", close=True
)
HEADERS_TOO_LARGE = Kind(
    431, "invalid_request_error", "headers_too_large", "client_error", close=True
)

# Ours.
INTERNAL = Kind(500, "server_error", "internal_error", "upstream_error")
OVERLOADED = Kind(503, "server_error", "overloaded", "refused")
DRAINING = Kind(503, "server_error", "draining", "refused", close=True)
SHUTDOWN = Kind(503, "server_error", "proxy_shutdown", "shutdown", close=True)

# The upstream's, or its operator's.
NOT_CONFIGURED = Kind(503, "upstream_error", "not_configured", "upstream_error")
HOOK_FAILED = Kind(502, "upstream_error", "upstream_failed", "upstream_error")
UPSTREAM_UNAVAILABLE = Kind(503, "upstream_error", "upstream_unavailable", "upstream_error")
UPSTREAM_DNS = Kind(502, "upstream_error", "upstream_dns", "upstream_error")
UPSTREAM_CONNECT = Kind(502, "upstream_error", "upstream_connect", "upstream_error")
UPSTREAM_TLS = Kind(502, "upstream_error", "upstream_tls", "upstream_error")
UPSTREAM_DISCONNECTED = Kind(502, "upstream_error", "upstream_disconnected", "upstream_error")
UPSTREAM_PROTOCOL = Kind(502, "upstream_error", "upstream_protocol", "upstream_error", retry=False)
UPSTREAM_AUTH = Kind(502, "upstream_error", "upstream_auth", "upstream_error", retry=False)
UPSTREAM_TIMEOUT = Kind(504, "timeout_error", "upstream_timeout", "timeout", retry=False)

# After the first byte: only ever seen as the last event of a stream, or in the log.
STREAM_DISCONNECTED = Kind(502, "upstream_error", "upstream_disconnected", "upstream_cut")
STREAM_INCOMPLETE = Kind(502, "upstream_error", "upstream_incomplete", "upstream_cut")
STREAM_IDLE = Kind(504, "timeout_error", "upstream_idle_timeout", "timeout")
STREAM_TIMEOUT = Kind(504, "timeout_error", "upstream_timeout", "timeout")
STREAM_ERROR = Kind(200, "upstream_error", "upstream_error_event", "upstream_error")
"""Only ever in the log: the upstream said, inside a 200, that it has failed."""
CLIENT_GONE = Kind(499, "client_closed", "client_gone", "client_gone")
CLIENT_STALLED = Kind(499, "client_closed", "client_stalled", "timeout")

GRAVE = frozenset(
    [
        kind.code
        for kind in tuple(globals().values())
        if isinstance(kind, Kind) and kind.status >= 500
    ]
)
"""The codes of what is not the caller's doing: an operator should hear of it."""


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
    lines = [
        f"HTTP/1.1 {kind.status} {_reason(kind.status)}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        f"x-trunkline-id: {request_id}",
        f"x-request-id: {request_id}",
        f"request-id: {request_id}",
    ]
    lines += [f"{name}: {value}" for name, value in error.headers]
    if kind.status == 401:
        lines.append("WWW-Authenticate: Bearer")
    if error.retry is not None:
        lines.append(f"x-should-retry: {'true' if error.retry else 'false'}")
    if error.close:
        lines.append("Connection: close")
    head = "\r\n".join(lines).encode("ascii") + b"\r\n"
    head += b"".join([b"%b: %b\r\n" % pair for pair in added]) + b"\r\n"
    return head + content if body else head


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
