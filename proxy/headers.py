"""Which headers pass, in both directions: the header half of the published edit list.

Everything works on raw pairs as they stood on the wire, so that order, case and duplicates
survive. There is no allow-list: what is not named here passes. The order of work is always
copy, strip, sign: a `Connection` header of the client's can therefore never name away what we add
(RFC 9110 section 7.6.1; CVE-2021-33197 is that mistake).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from proxy.shapes import PLAIN

Pair = tuple[bytes, bytes]
"""A header as it stood on the wire: name and value."""

PROTOCOL = b"sec-websocket-protocol"
PROTOCOL_TOKEN = b"openai-insecure-api-key."
"""Begins the key that a browser offers as a subprotocol of a WebSocket."""
MEDIA_TYPE_BYTES = 128
"""Keep a Content-Type of up to this length: an upstream may say anything."""


def folded(name: bytes) -> bytes:
    """Return *name* as those read it who cannot tell `_` from `-` (RFC 3875 section 4.1.18): a
    `Transfer_Encoding` or an `X_Api_Key` is the real one to them.
    """
    return name.lower().replace(b"_", b"-")


@dataclass(frozen=True, slots=True)
class Names:
    """Names of headers, and *beginnings* of names, all `folded`."""

    exact: frozenset[bytes] = frozenset()
    beginnings: tuple[bytes, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> "Names":
        """Read *texts*, of which each is a name, or the beginning of some and a `*`."""
        names = [folded(text.encode("utf-8", "replace")) for text in texts]
        return cls(
            frozenset([name for name in names if not name.endswith(b"*")]),
            tuple([name[:-1] for name in names if name.endswith(b"*")]),
        )


NO_NAMES = Names()


class Headers(tuple[Pair, ...]):
    """The headers of one message, as they stood on the wire. *names* are theirs in lower case, *first*
    is the value of the first header of each name.
    """

    names: list[bytes]
    first: dict[bytes, bytes]

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        names: list[bytes] = []
        first: dict[bytes, bytes] = {}
        for name, value in self:
            name = name.lower()
            names.append(name)
            first.setdefault(name, value)
        self.names, self.first = names, first

    def every(self, name: bytes) -> list[bytes]:
        """Return the values of all headers called *name* (lower case)."""
        if name not in self.first:
            return []
        return [pair[1] for other, pair in zip(self.names, self, strict=True) if other == name]

    def without(self, name: bytes) -> "Headers":
        """Return these less all that are called *name* (lower case)."""
        return Headers(
            [pair for other, pair in zip(self.names, self, strict=True) if other != name]
        )


HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Pass on no header of RFC 9110 section 7.6.1, nor those that older software still sends."""

CLIENT_CREDENTIALS = frozenset(
    {b"authorization", b"x-api-key", b"api-key", b"apikey", b"x-goog-api-key"}
)
"""Take these off, in which clients put keys, everywhere but on a passthrough surface."""

EDGE = Names.parse(
    [
        "X-Forwarded-*", "Forwarded", "Via", "X-Original-*", "X-Real-IP", "X-Remote-*", "Remote-*",
        "Client-IP", "X-Client-IP", "True-Client-IP", "X-Cluster-Client-IP", "X-Request-Start",
        "Client-Cert*", "X-Client-Cert*", "SSL-Client-*", "X-SSL-*",
        "CF-*", "CDN-Loop", "Akamai-*", "X-Akamai-*", "Fastly-*", "X-Varnish", "Incap-*",
        "X-Azure-*", "X-FD-HealthProbe", "X-ARR-*", "X-AppGW-*", "Disguised-Host",
        "X-MS-Client-Principal*", "X-MS-Token-*",
        "X-Amzn-Trace-Id", "X-Amzn-OIDC-*", "X-Amzn-MTLS-*", "X-Amzn-TLS-*", "X-Amz-CF-Id",
        "CloudFront-*",
        "X-Cloud-Trace-Context", "X-AppEngine-*", "X-Goog-IAP-*", "X-Goog-Authenticated-User-*",
        "Fly-*", "DO-Connecting-IP", "X-NF-*", "X-Railway-*", "X-Vercel-Id", "X-Vercel-IP-*",
        "X-Vercel-Forwarded-For", "X-Vercel-Proxied-For",
        "X-Envoy-*", "X-Auth-Request-*", "X-Authentik-*", "X-Pomerium-*", "X-Consumer-*",
        "X-Credential-Identifier", "X-Anonymous-Consumer", "Tailscale-*",
    ]
)  # fmt: skip
"""Take these off, which those in front of us (edges, balancers, sidecars, whoever logs people in) say of
their visitor. They are for us: a vendor behind an edge of its own may refuse them, and they say who our
people are.
"""

_REQUEST_DROPPED = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"http2-settings",
    b"cookie",
}
_REQUEST_DROPPED_KEYS = _REQUEST_DROPPED | CLIENT_CREDENTIALS
_REQUEST_REMOVED = _REQUEST_DROPPED | EDGE.exact
_REQUEST_REMOVED_KEYS = _REQUEST_DROPPED_KEYS | EDGE.exact
_STARTS = {
    start: tuple(one for one in EDGE.beginnings if one.startswith(start))
    for start in {one[:3] for one in EDGE.beginnings}
}
"""The beginnings of `EDGE` by their own first bytes: hardly a name has to be held against any."""
_RESPONSE_DROPPED = HOP_BY_HOP | {b"set-cookie", b"alt-svc"}


def outbound(
    client: Headers,
    *,
    drop: frozenset[bytes],
    strip: Names = NO_NAMES,
    keep: frozenset[bytes] = frozenset(),
    passthrough: bool = False,
) -> list[Pair]:
    """Return the client's headers that go upstream, in their order.

    *drop* names (`folded`) what will be replaced: headers the upstream's table sets, and
    `accept-encoding` on a stream. *strip* is what stays here beside what an `EDGE` says, *keep* what of
    both goes up all the same. With *passthrough* the client's own credentials stay.
    """
    removed = _removed(client, drop, strip.exact, keep, passthrough=passthrough)
    names = client.names
    if b"_" in b"".join(names):
        names = [folded(name) for name in names]
    near, beginnings = _STARTS.get, strip.beginnings
    return [
        pair
        for name, pair in zip(names, client, strict=True)
        if name not in removed
        and (
            not (
                ((starts := near(name[:3])) and name.startswith(starts))
                or (beginnings and name.startswith(beginnings))
            )
            or name in keep
        )
    ]


def _removed(
    client: Headers,
    drop: frozenset[bytes],
    strip: frozenset[bytes],
    keep: frozenset[bytes],
    *,
    passthrough: bool,
) -> frozenset[bytes]:
    """Return the names (`folded`) that never go upstream, of those that are known whole."""
    removed = _REQUEST_REMOVED if passthrough else _REQUEST_REMOVED_KEYS
    if keep or strip:
        always = _REQUEST_DROPPED if passthrough else _REQUEST_DROPPED_KEYS
        removed = ((removed | strip) - keep) | always
    if not drop <= removed:
        removed |= drop
    if b"connection" in client.first:
        removed |= {folded(name) for name in _nominated(client)}
    return removed


def inbound(upstream: Headers, *, drop: frozenset[bytes] = frozenset()) -> list[Pair]:
    """Return the upstream's headers that go to the client, in their order."""
    removed = _RESPONSE_DROPPED | drop if drop else _RESPONSE_DROPPED
    if b"connection" in upstream.first:
        removed |= _nominated(upstream)
    return [
        pair for name, pair in zip(upstream.names, upstream, strict=False) if name not in removed
    ]


def _nominated(headers: Headers) -> frozenset[bytes]:
    """Return the names that any `Connection` line declares to be for this hop only."""
    lines = headers.every(b"connection")
    return frozenset([token.strip().lower() for line in lines for token in line.split(b",")])


def find(pairs: Iterable[Pair], name: bytes) -> bytes | None:
    """Return the value of the first header called *name* (lower case), if there is one."""
    for key, value in pairs:
        if key.lower() == name:
            return value
    return None


def lines(pairs: Iterable[Pair]) -> bytes:
    """Write *pairs* as header lines, exactly as they came."""
    return b"\r\n".join([*map(b": ".join, pairs), b""])


# What a body is


def is_stream(headers: Headers) -> bool:
    """Return whether *headers* announce a stream of events."""
    return _kind(headers) == b"text/event-stream"


def has_model(headers: Headers) -> bool:
    """Return whether *headers* announce what may have a `model` in it."""
    return _kind(headers) in (b"application/json", b"text/event-stream")


def _kind(headers: Headers) -> bytes:
    """Return the media type that *headers* announce, in lower case."""
    value = headers.first.get(b"content-type", b"")
    return _media_type(value) if len(value) <= MEDIA_TYPE_BYTES else _as_media_type(value)


def _as_media_type(value: bytes) -> bytes:
    return value.partition(b";")[0].strip().lower()


_media_type = lru_cache(maxsize=256)(_as_media_type)


def is_plain(headers: Headers) -> bool:
    """Return whether what *headers* announce can be read as it is."""
    codings = headers.first.get(b"content-encoding")
    if codings is None:  # nearly always
        return True
    return all(coding.strip().lower() in PLAIN for coding in codings.split(b","))
