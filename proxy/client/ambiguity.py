"""Heads that the parser lets through, and two readers could take for two things: they are refused."""

from collections.abc import Container

from proxy.client.heads import Head
from proxy.errors import BAD_REQUEST, ProxyError
from proxy.exchange import Exchange
from proxy.surfaces import host_name, is_unsafe


def check(exchange: Exchange, head: Head, known: Container[tuple[str, str]] = ()) -> None:
    """Refuse *exchange*, whose *head* can be read in two ways; leave of an absolute target what is a path.
    Of the methods and paths that are *known*, the path was looked at before. Raises `ProxyError`.
    """
    host = _host(exchange)
    _check_framing(exchange, head)
    if not exchange.path.startswith("/"):
        exchange.path = _path_of(exchange, host)
    looked_at = (exchange.method, exchange.path) in known
    if (not looked_at and is_unsafe(exchange.path)) or "#" in head.message.path:
        raise ProxyError(BAD_REQUEST, "The request's path is not valid.")


def _host(exchange: Exchange) -> str | None:
    """Return the Host of *exchange*, None where HTTP/1.0 leaves it out (RFC 9112 section 3.2)."""
    said = exchange.headers.first.get(b"host")
    if said is None and exchange.http10:
        return None
    host = "" if said is None else said.decode("latin-1")
    if host_name(host) is None:
        raise ProxyError(BAD_REQUEST, "The Host header is not valid.")
    return host


def _check_framing(exchange: Exchange, head: Head) -> None:
    """Refuse what does not say as everybody reads it where its body ends (RFC 9112 section 6)."""
    if head.message.version not in ((1, 1), (1, 0)):
        raise ProxyError(BAD_REQUEST, "The request is not HTTP/1.1.")
    if head.method == "CONNECT":
        raise ProxyError(BAD_REQUEST, "CONNECT is not supported.")
    if exchange.http10 and head.chunked:
        raise ProxyError(BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding.")
    coding = exchange.headers.first.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise ProxyError(BAD_REQUEST, "The only transfer coding is chunked.")


def _path_of(exchange: Exchange, host: str | None) -> str:
    """Return the path in the absolute target of *exchange*, which is for *host* (RFC 9112 section 3.2.2)."""
    scheme, slashes, rest = exchange.path.partition("://")
    authority, slash, path = rest.partition("/")
    exchange.path = ""  # it may hold a password, and goes into the log
    ours = host is not None and authority.lower() == host.lower()
    if scheme.lower() not in ("http", "https") or not slashes or not ours:
        raise ProxyError(BAD_REQUEST, "The request's target is not valid here.")
    return slash + path
