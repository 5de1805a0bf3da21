"""The head of a relayed answer, exactly as it will be written: the response half of the published edit list."""

from proxy.exchange import Exchange
from proxy.headers import Headers, inbound, lines
from proxy.upstream.arrival import BODILESS

_LENGTH = b"content-length"
_ONLY_LENGTH = frozenset({_LENGTH})
_NOTHING: frozenset[bytes] = frozenset()
_CORS = b"access-control-"


def head(
    exchange: Exchange,
    status: int,
    reason: bytes,
    headers: Headers,
    *,
    stream: bool,
    reframe: bool,
    keep_alive: bool,
) -> tuple[bytes, bool, bool]:
    """Write the head of an answer to *exchange*, whose upstream says *status*, *reason* and *headers*; with *reframe*
    the body may become longer than it says.

    Returns the head with its empty line, whether the body goes out in chunks, and whether the client's
    connection may be used again, as *keep_alive* would have it.
    """
    pairs = inbound(headers, drop=_ONLY_LENGTH if reframe else _NOTHING)
    # Of those looked at below only a Connection header can have named one away, but for the length.
    there = headers if b"connection" not in headers.first else Headers(pairs)
    identity = exchange.id.encode("ascii")
    theirs = there.first.get(b"x-request-id") or there.first.get(b"request-id")
    exchange.upstream_request_id = theirs.decode("latin-1") if theirs else None
    pairs.append((b"x-trunkline-id", identity))
    if b"x-request-id" not in there.first:
        pairs.append((b"x-request-id", identity))
    if stream and b"x-accel-buffering" not in there.first:
        pairs.append((b"X-Accel-Buffering", b"no"))
    if stream and b"cache-control" not in there.first:
        pairs.append((b"Cache-Control", b"no-cache"))
    chunked = False
    if (reframe or _LENGTH not in there.first) and status not in BODILESS:
        chunked = not exchange.http10
        if chunked:
            pairs.append((b"Transfer-Encoding", b"chunked"))
        else:
            keep_alive = False
    if exchange.cors:  # who may read it is this surface's to say, and not the vendor's
        pairs = [pair for pair in pairs if not pair[0].lower().startswith(_CORS)]
    pairs += exchange.added
    if not keep_alive:
        pairs.append((b"Connection", b"close"))
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, reason, lines(pairs)), chunked, keep_alive
