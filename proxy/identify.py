"""Who asks: the keys that a request presents, wherever its client puts them, and whose they are."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

from proxy.dialects import GEMINI, shape_of
from proxy.errors import INVALID_KEY, ProxyError
from proxy.exchange import QUERY_CHARS, Exchange, Identified
from proxy.headers import PROTOCOL, PROTOCOL_TOKEN, Pair
from proxy.keys import Key, KeyRing
from proxy.surfaces import Surface

_SHOWN = {b"authorization": "`Authorization: Bearer …`"}


def identify(exchange: Exchange, surface: Surface, keys: KeyRing) -> Key | None:
    """Return which of *keys* presents *exchange*, None where *surface* asks for none. Raises `ProxyError`.

    Any accepted header that holds a valid key is enough: clients send a second one out of habit.
    """
    if surface.auth != "keys":
        return None
    known = exchange.learnt.identified
    if known is not None and known.keys is keys and known.query == exchange.query:
        exchange.query = known.rest
        return known.key
    given = False
    for presented in _presented(exchange, surface):
        key = keys.find(presented)
        if key is None:
            given = True
        elif key.expires is not None and key.expired(datetime.now(UTC)):
            exchange.expired = key.name
        else:
            _accept(exchange, key, keys)
            return key
    raise ProxyError(INVALID_KEY, _refusal(exchange, surface, given=given))


def _accept(exchange: Exchange, key: Key, keys: KeyRing) -> None:
    """Take *key* out of the query of *exchange*, and remember whose its head is."""
    query = exchange.query
    if query:
        exchange.query = without_keys(query, keys)
    if key.expires is None and len(query) <= QUERY_CHARS:
        exchange.learnt.identified = Identified(keys, query, exchange.query, key)


def _refusal(exchange: Exchange, surface: Surface, *, given: bool) -> str:
    """Say why nobody is let in, where a key that is not ours was *given*, or none."""
    if exchange.expired is not None:
        return f'The key "{exchange.expired}" has expired.'
    if given:
        return "The API key is not valid."
    wanted = " or ".join(_SHOWN.get(name, name.decode()) for name in surface.accept)
    return f"No API key was given. Send one as {wanted}."


def _presented(exchange: Exchange, surface: Surface) -> Iterator[bytes]:
    """Yield whatever *exchange* presents as a key, where *surface* accepts one."""
    headers = exchange.headers
    for index, name in enumerate(headers.names):
        if name in surface.accept:
            value = headers[index][1]
            yield _token(value) if name == b"authorization" else value
    if PROTOCOL in headers.first and b"authorization" in surface.accept:
        yield from tokens_of(headers)
    native = exchange.dialect is GEMINI or shape_of(exchange.path) == "gemini"
    if native and b"x-goog-api-key" in surface.accept:
        yield from keys_in(exchange.query)


def _token(value: bytes) -> bytes:
    """Return the credentials of an `Authorization` header (RFC 9110 section 11.4), if Bearer."""
    if value.startswith(b"Bearer "):
        return value[7:].strip()
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else value


def tokens_of(pairs: Iterable[Pair]) -> Iterator[bytes]:
    """Yield each key that a browser offers as a subprotocol of a WebSocket, for want of headers."""
    offered = b",".join([value for name, value in pairs if name.lower() == PROTOCOL])
    for protocol in offered.split(b","):
        name = protocol.strip()
        if name.startswith(PROTOCOL_TOKEN):
            yield name.removeprefix(PROTOCOL_TOKEN)


def keys_in(query: str) -> Iterator[bytes]:
    """Yield each `key` parameter of *query*, where Google's clients may put theirs."""
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if unquote_to_bytes(name) == b"key":
            yield unquote_to_bytes(value)


def without_keys(query: str, keys: KeyRing) -> str:
    """Return *query* less the `key` parameters that hold a key of ours, untouched otherwise."""
    return "&".join(part for part in query.split("&") if not _is_key(part, keys))


def _is_key(parameter: str, keys: KeyRing) -> bool:
    name, _, value = parameter.partition("=")
    return unquote_to_bytes(name) == b"key" and keys.find(unquote_to_bytes(value)) is not None
