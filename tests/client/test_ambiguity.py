"""What is refused because two readers could take it for two things; on the wire, `test_smuggling` has it."""

import pytest
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion, HttpVersion10, HttpVersion11
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from proxy.client import ambiguity
from proxy.client.heads import Head
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from tests.harness.client import Pair

HOST: Pair = (b"Host", b"proxy.example:8080")
CHUNKED: Pair = (b"Transfer-Encoding", b"chunked")
PATH = "/v1/chat/completions"


def checked(
    *headers: Pair,
    path: str = PATH,
    method: str = "POST",
    version: HttpVersion = HttpVersion11,
    known: bool = False,
) -> str:
    """Return the path that is left of a request with *headers*. Raises `ProxyError`."""
    chunked = CHUNKED in headers
    none = CIMultiDictProxy(CIMultiDict[str]())
    message = RawRequestMessage(
        method, path, version, none, headers, False, None, False, chunked, URL()
    )
    head = Head(message)
    exchange = Exchange(
        "req_1", "main", method, head.path, head.query, head.headers, head.http10, None, 0.0
    )
    try:
        ambiguity.check(exchange, head, {(method, head.path)} if known else ())
    except ProxyError:
        assert "secret" not in exchange.path
        raise
    return exchange.path


@pytest.mark.parametrize(
    ("path", "left"),
    [
        (PATH, PATH),
        ("http://proxy.example:8080" + PATH, PATH),
        ("HTTPS://PROXY.example:8080/", "/"),
        ("http://proxy.example:8080", ""),
        ("/a?b=http://c", "/a"),
    ],
)
def test_one_reading(path: str, left: str) -> None:
    """What all read as the same is let through; of an absolute target for us, its path is left."""
    assert checked(HOST, path=path) == left
    assert checked(HOST, CHUNKED, path=path) == left


def test_without_host() -> None:
    """HTTP/1.0 need not say a Host, HTTP/1.1 must."""
    assert checked(version=HttpVersion10) == PATH
    with pytest.raises(ProxyError, match="Host"):
        checked()


@pytest.mark.parametrize(
    ("why", "headers", "how"),
    [
        ("Host", [(b"Host", b"")], {}),
        ("Host", [(b"Host", b"a b")], {}),
        ("Host", [(b"Host", b"user@proxy.example")], {"version": HttpVersion10}),
        ("HTTP/1.1", [HOST], {"version": HttpVersion(2, 0)}),
        ("CONNECT", [HOST], {"method": "CONNECT", "path": "proxy.example:8080"}),
        ("HTTP/1.0", [HOST, CHUNKED], {"version": HttpVersion10}),
        ("coding", [HOST, (b"Transfer-Encoding", b"gzip, chunked")], {}),
        ("target", [HOST], {"path": "*"}),
        ("target", [HOST], {"path": "ftp://proxy.example:8080/"}),
        ("target", [HOST], {"path": "http://other.example/"}),
        ("target", [HOST], {"path": "http://me:secret@proxy.example:8080/"}),
        ("target", [], {"path": "http://proxy.example/", "version": HttpVersion10}),
        ("path", [HOST], {"path": "/v1/../admin"}),
        ("path", [HOST], {"path": "/v1/%2e%2e/admin"}),
        ("path", [HOST], {"path": "/v1#x"}),
        ("path", [HOST], {"path": "/v1#x", "known": True}),
    ],
)
def test_two_readings(why: str, headers: list[Pair], how: dict[str, object]) -> None:
    """What two could read as two things is refused, and a password in it is not kept."""
    with pytest.raises(ProxyError, match=why) as caught:
        checked(*headers, **how)  # type: ignore[arg-type] # one of the above
    assert caught.value.kind.status == 400
