"""What browsers are told, and what pages cannot make them send; on the wire, `test_faces_surfaces` has it."""

from dataclasses import replace

import pytest

from proxy.client.browsers import EXPOSED, allowing, check_origin
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.surfaces import Address, Surface
from tests.harness.client import Pair

PAGE = b"https://app.example.com"
SURFACE = Surface("main", (Address("127.0.0.1", 8080),), ("",), "none")


def test_allowing() -> None:
    """A page that calls is told that it may read the answer, and only one that asks before, what it may send."""
    calls = allowing(PAGE, Headers([(b"Origin", PAGE)]))
    assert calls == (
        (b"Access-Control-Allow-Origin", PAGE),
        (b"Vary", b"Origin"),
        (b"Access-Control-Expose-Headers", EXPOSED),
    )
    asks = Headers(
        [
            (b"Access-Control-Request-Method", b"POST"),
            (b"Access-Control-Request-Headers", b"authorization, x-own"),
        ]
    )
    told = dict(allowing(PAGE, asks))
    assert dict(calls).items() <= told.items()
    assert b"POST" in told[b"Access-Control-Allow-Methods"]
    assert told[b"Access-Control-Allow-Headers"] == b"authorization, x-own"


@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ([], True),
        ([(b"Host", b"localhost:8080")], True),
        ([(b"Host", b"10.0.0.5")], True),
        ([(b"Host", b"rebound.example")], False),
        ([(b"Host", b"localhost"), (b"Origin", b"http://localhost:3000")], True),
        ([(b"Host", b"localhost"), (b"Origin", b"https://evil.example")], False),
        ([(b"Host", b"localhost"), (b"Origin", b"null")], False),
        ([(b"Host", b"localhost"), (b"Origin", b"")], False),
        ([(b"Host", b"localhost"), (b"Origin", PAGE)], True),
        ([(b"Host", b"rebound.example"), (b"Origin", PAGE)], False),
    ],
)
def test_check_origin(headers: list[Pair], admitted: bool) -> None:
    """Where no key is asked for, both Host and Origin must be names of ours, or a page's that may call."""
    exchange = Exchange("req_1", "main", "POST", "/", "", Headers(headers), False, None, 0.0)
    surface = replace(SURFACE, cors=frozenset({PAGE.decode()}))
    refused = False
    try:
        check_origin(exchange, surface, ("10.0.0.5", 8080))
    except ProxyError as error:
        refused = error.kind.code == "origin_not_allowed"
    assert refused is not admitted
