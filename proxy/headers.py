"""Which headers pass, in both directions: the header half of the published edit list.

Everything works on raw pairs as they stood on the wire, so that order, case and duplicates
survive. There is no allow-list: what is not named here passes. The order of work is always
copy, strip, sign: a `Connection` header of the client's can therefore never name away what we add
(RFC 9110 section 7.6.1; CVE-2021-33197 is that mistake).
"""

from collections.abc import Iterable

Pair = tuple[bytes, bytes]
"""A header as it stood on the wire: name and value."""


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
"""RFC 9110 section 7.6.1, and the names that older software still sends."""

CLIENT_CREDENTIALS = frozenset(
    {b"authorization", b"x-api-key", b"api-key", b"apikey", b"x-goog-api-key"}
)
"""Where clients put keys. On a passthrough surface these pass; everywhere else none of them does."""

_REQUEST_DROPPED = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"forwarded",
    b"http2-settings",
    b"via",
    b"cookie",
}
_REQUEST_DROPPED_KEYS = _REQUEST_DROPPED | CLIENT_CREDENTIALS
_RESPONSE_DROPPED = HOP_BY_HOP | {b"set-cookie", b"alt-svc"}


def outbound(
    client: Iterable[Pair], *, drop: frozenset[bytes], passthrough: bool = False
) -> list[Pair]:
    """Return the client's headers that go upstream, in their order.

    *drop* names (lower case) what will be replaced: headers the upstream's table sets, and
    `accept-encoding` on a stream. With *passthrough* the client's own credentials stay.
    """
    if not isinstance(client, Headers):
        client = Headers(client)
    removed = _REQUEST_DROPPED if passthrough else _REQUEST_DROPPED_KEYS
    if not drop <= removed:
        removed |= drop
    if b"connection" in client.first:
        removed |= _nominated(client)
    return [
        pair
        for name, pair in zip(client.names, client, strict=True)
        if name not in removed and not name.startswith(b"x-forwarded-")
    ]


def inbound(upstream: Iterable[Pair], *, drop: frozenset[bytes] = frozenset()) -> list[Pair]:
    """Return the upstream's headers that go to the client, in their order."""
    if not isinstance(upstream, Headers):
        upstream = Headers(upstream)
    removed = _RESPONSE_DROPPED | drop if drop else _RESPONSE_DROPPED
    if b"connection" in upstream.first:
        removed |= _nominated(upstream)
    return [
        pair for name, pair in zip(upstream.names, upstream, strict=True) if name not in removed
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
    return b"".join([b"%b: %b\r\n" % pair for pair in pairs])
