"""Pages in a browser: how one of an origin that the file names may call us, and no other gets in."""

from proxy.errors import ORIGIN_NOT_ALLOWED, ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers, Pair
from proxy.surfaces import Surface

EXPOSED = (
    b"*, x-trunkline-id, x-request-id, request-id, retry-after, retry-after-ms, x-should-retry"
)
"""Let a page read these of an answer: all of it. A page's SDK that cannot see `x-should-retry` asks again
for what may have been billed. Who does not know the `*` (WHATWG Fetch section 4.9) takes the names.
"""


def allowing(origin: bytes, headers: Headers) -> tuple[Pair, ...]:
    """Return the headers of an answer that let a page of *origin*, which asks with *headers*, call us and
    read the answer.
    """
    wanted = headers.first.get(b"access-control-request-headers")
    added: list[Pair] = [
        (b"Access-Control-Allow-Origin", origin),
        (b"Vary", b"Origin"),
        (b"Access-Control-Expose-Headers", EXPOSED),
    ]
    if b"access-control-request-method" in headers.first:
        added += [
            (b"Access-Control-Allow-Methods", b"GET, POST, PUT, PATCH, DELETE"),
            (b"Access-Control-Max-Age", b"600"),
        ]
    if wanted is not None:
        added.append((b"Access-Control-Allow-Headers", wanted))
    return tuple(added)


def check_origin(exchange: Exchange, surface: Surface, sockname: object) -> None:
    """Refuse what a web page could make a browser send to *surface*, which asks for no key, at the address
    *sockname*. Raises `ProxyError`.
    """
    address = sockname[0] if isinstance(sockname, tuple) else ""
    host = exchange.headers.first.get(b"host", b"").decode("latin-1")
    origin = exchange.headers.first.get(b"origin", b"").decode("latin-1")
    names = [host] if host else []
    if b"origin" in exchange.headers.first and origin not in surface.cors:
        names.append(origin.partition("://")[2])
    if not all(surface.admits_host(name, address) for name in names):
        message = "This proxy asks for no key, and answers only to its own names."
        raise ProxyError(ORIGIN_NOT_ALLOWED, message)
