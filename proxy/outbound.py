"""What goes upstream: the target and the head of a request, exactly as they will be written.

The request half of the published edit list stands here. The hot path sends what `head` returns,
`explain` shows it. Nothing in a request but its path below the base path, its query and its model
reaches the target, and nothing at all reaches the host.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from proxy.credentials import Credential
from proxy.dialects import REALTIME, Azure, Dialect
from proxy.headers import (
    NO_NAMES,
    PROTOCOL,
    PROTOCOL_TOKEN,
    Headers,
    Names,
    Pair,
    find,
    folded,
    lines,
    outbound,
)
from proxy.model.target import deployment_path, is_dated, without_version
from proxy.routes import Base, Origin, Upstream

_ACCEPT_ENCODING = b"accept-encoding"
_IDENTITY: Pair = (b"Accept-Encoding", b"identity")
_UNREADABLE = frozenset({b"br", b"zstd"})
"""Ask for none of these content codings where an answer must be read, to see what it says."""


@dataclass(slots=True)
class Addressed:
    """Where a request goes: *base*, and the *target* of its request line."""

    base: Base
    target: str


@dataclass(frozen=True, slots=True)
class Written:
    """The *begun* head of a request, less its framing, and where it goes: true for the *suffix*, the *query* and
    the names to *strip* that it was written for.
    """

    suffix: str
    query: str
    strip: Names
    to: Addressed
    begun: bytes


def address(
    upstream: Upstream, dialect: Dialect, suffix: str, query: str, base: Base | None = None
) -> Addressed:
    """Return where a request for *suffix* (the path below the base path) of *dialect* goes: below *base*,
    where that has been found out.
    """
    base = base or upstream.base_of(dialect, suffix)
    target = f"{base.path}/{suffix}?{query}" if query else f"{base.path}/{suffix}"
    return Addressed(base, target)


def from_azure(
    upstream: Upstream,
    azure: Azure,
    dialect: Dialect,
    suffix: str,
    query: str,
    sent: str | None,
) -> tuple[Base | None, str, str]:
    """Return the base, where it is not the usual one, the path below it and the query of a request that
    came in Azure's way and goes to *upstream*, which is to answer as the model *sent*.

    Where that is Azure itself, it goes in the same way; elsewhere it is one like any other. Raises
    `BodyError`.
    """
    if upstream.dated is not None and not azure.dated:
        return None, suffix, query
    if upstream.dated is None or dialect is REALTIME or not is_dated(query):
        return None, suffix, without_version(query)
    if azure.deployment is not None and sent is not None:
        suffix = deployment_path(suffix, sent)
    return upstream.dated, suffix, query


@dataclass(frozen=True, slots=True, eq=False)
class Signature:
    """What is added to the head of a request, as *lines*, and what of the client's has to go: *drop*,
    and with *tokens* the keys among its subprotocols. *keep* goes up though it is an edge's. *defaults* are
    added where it sent none. It holds as long as the credential is of this *version*.
    """

    version: int
    lines: bytes = field(repr=False)
    drop: frozenset[bytes]
    defaults: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    passthrough: bool
    tokens: bool
    keep: frozenset[bytes] = frozenset()


def sign(
    upstream: Upstream,
    credential: Credential | None,
    dialect: Dialect,
    *,
    stream: bool,
    passthrough: bool,
    hidden: bytes | None = None,
) -> Signature:
    """Return what a request of *dialect* is signed with: the same for all, until the credential changes.

    *hidden* names, in lower case, a header of the client's that does not go there.
    """
    pairs = list(upstream.headers)
    if stream:
        pairs = [pair for pair in pairs if pair[0].lower() != _ACCEPT_ENCODING]
        pairs.append(_IDENTITY)
    version = 0
    if credential is not None and not passthrough:
        version = credential.secret.version
        pairs.append(credential.line(dialect.name))
    drop = frozenset([folded(name) for name, _ in pairs])
    defaults = [
        (name.lower(), lines([(name, value)]))
        for name, value in upstream.defaults.get(dialect.name, ())
        if folded(name) not in drop
    ]
    return Signature(
        version=version,
        lines=lines(pairs),
        drop=drop if hidden is None else drop | {folded(hidden)},
        defaults=tuple(defaults),
        passthrough=passthrough,
        tokens=not passthrough,
        keep=frozenset(map(folded, upstream.forward)),
    )


def head(
    method: str,
    to: Addressed,
    signature: Signature,
    client: Headers,
    strip: Names = NO_NAMES,
) -> bytes:
    """Write the head of the request: copy the *client*'s headers, *strip*, then sign.

    What is missing are the lines that say where the request ends, or what it turns into, and the
    empty one.
    """
    kept = outbound(
        client,
        drop=signature.drop,
        strip=strip,
        keep=signature.keep,
        passthrough=signature.passthrough,
    )
    kept = _readable(kept)
    if signature.tokens and PROTOCOL in client.first:
        kept = _without_token(kept)
    added = signature.lines
    for name, line in signature.defaults:
        if find(kept, name) is None:
            added += line
    target, hop = to.target, b""
    origin = to.base.origin
    if origin.proxy is not None and origin.scheme == "http":
        target = f"http://{origin.authority}{target}"  # RFC 9112 section 3.2.2
        hop = proxy_authorization(origin).encode("ascii")
    first = f"{method} {target} HTTP/1.1\r\nHost: {origin.authority}\r\n"
    return first.encode("utf-8", "surrogateescape") + hop + lines(kept) + added


def _readable(pairs: list[Pair]) -> list[Pair]:
    """Return *pairs* less the content codings that cannot be unpacked here, as what an error says has to be
    understood. Where none other is accepted, none is asked for.
    """
    offered = [value for name, value in pairs if name.lower() == _ACCEPT_ENCODING]
    if _UNREADABLE.isdisjoint(map(_coding, b",".join(offered).split(b","))):
        return pairs
    less = [
        (name, _less(value) if name.lower() == _ACCEPT_ENCODING else value) for name, value in pairs
    ]
    kept = [pair for pair in less if pair[1] or pair[0].lower() != _ACCEPT_ENCODING]
    return kept if find(kept, _ACCEPT_ENCODING) is not None else [*kept, _IDENTITY]


def _less(offered: bytes) -> bytes:
    readable = [one for one in offered.split(b",") if _coding(one) not in _UNREADABLE]
    return b",".join(readable).strip()


def _coding(offered: bytes) -> bytes:
    return offered.partition(b";")[0].strip().lower()


def length(count: int) -> bytes:
    """Return the framing of a body of *count* bytes."""
    return b"Content-Length: %d\r\n" % count


CHUNKED = b"Transfer-Encoding: chunked\r\n"
"""Frames a body whose length only its end will tell."""
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
"""Asks for a WebSocket (RFC 6455 section 4.1)."""


def proxy_authorization(origin: Origin) -> str:
    """Return the header line for the user and password in the URL of *origin*'s proxy, or nothing."""
    parts = urlsplit(origin.proxy or "")
    if not parts.username:
        return ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Proxy-Authorization: Basic {b64encode(pair.encode()).decode()}\r\n"


def _without_token(pairs: list[Pair]) -> list[Pair]:
    """Return *pairs* less every key that is offered as a subprotocol: ours goes into a header."""
    kept = []
    for name, value in pairs:
        if name.lower() == PROTOCOL and PROTOCOL_TOKEN in value:
            offered = [protocol.strip() for protocol in value.split(b",")]
            value = b", ".join([one for one in offered if not one.startswith(PROTOCOL_TOKEN)])
            if not value:
                continue
        kept.append((name, value))
    return kept
