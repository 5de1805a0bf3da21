"""What an answer is taken for; what comes of that is tried at the wire, in `test_opening`."""

import asyncio
import gzip
import socket
import time
from typing import Any

import pytest

from proxy import dialects
from proxy.exchange import Attempt, Exchange
from proxy.headers import Headers
from proxy.patterns import Pattern
from proxy.routes import Route, Timeouts
from proxy.upstream.asked import Asked
from proxy.upstream.connection import Connection, Upload
from proxy.upstream.retry import NOT_PERMITTED, TOO_LONG
from proxy.upstream.verdict import PEEK_SECONDS, Verdict, is_doubtful, judge
from proxy.wire.outbox import Outbox
from tests.harness.upstream import JSON, SSE, Pair, event, head

LONG = b'{"error":{"message":"m","code":"context_length_exceeded"}}'
REFUSED = b'{"error":{"message":"m","type":"t","code":"invalid_api_key"}}'
WORDS = b'{"error":{"message":"Incorrect API key provided"}}'
LIMITED = event(b'{"error":{"message":"m","code":"rate_limit_exceeded"}}')


def asked(
    body: bytes = b"", *, routed: bool = True, passthrough: bool = False, **route: Any
) -> Asked:
    exchange = Exchange("x", "default", "POST", "/", "", Headers(), False, None, 0.0)
    exchange.dialect = dialects.CHAT
    found = Route("m", Pattern.parse("m"), (), **route) if routed else None
    return Asked(exchange, (), passthrough, found, "m", body=body)


async def judged(
    what: Asked, status: int, body: bytes, *headers: Pair, whole: bool = True
) -> tuple[Verdict, Attempt]:
    """Have an answer arrive over a socket, and judge it."""
    loop, attempt = asyncio.get_running_loop(), Attempt("up", 0.0)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    _, connection = await loop.create_connection(
        lambda: Connection(loop, loop.time, Outbox(loop)), sock=ours
    )
    length = len(body) if whole else len(body) + 1
    answer = head(status, [*headers, (b"Content-Length", b"%d" % length)]) + body
    with theirs:
        loop.call_later(0.01, theirs.send, answer)
        await connection.ask([b"x"], Timeouts(), attempt)
        try:
            return await judge(what, connection, attempt, loop.time), attempt
        finally:
            connection.close()


@pytest.mark.parametrize(
    ("status", "peek", "expected"),
    [
        (200, False, False),
        (200, True, True),
        (304, False, False),
        (400, False, True),
        (503, False, True),
    ],
)
def test_what_is_doubtful(status: int, peek: bool, expected: bool) -> None:
    """Errors are judged; good answers pass without a look, but where the route says so."""
    assert is_doubtful(asked(peek=peek), status) is expected


def test_without_a_route() -> None:
    """What carries no model has no route that could ask for a look."""
    assert not is_doubtful(asked(routed=False), 200)
    assert is_doubtful(asked(routed=False), 404)


@pytest.mark.parametrize("coding", [b"", b"gzip"])
@pytest.mark.parametrize(
    ("status", "body", "route", "expected"),
    [
        (400, REFUSED, {}, 401),
        (403, REFUSED, {}, 401),
        (404, REFUSED, {}, 404),
        (429, REFUSED, {}, 429),
        (503, REFUSED, {}, 503),
        (400, LONG, {}, 400),
        (400, LONG, {"on_context_length": True}, TOO_LONG),
        (403, b'{"error":{"code":"permission_denied"}}', {}, NOT_PERMITTED),
        (403, b'{"error":{"code":"insufficient_quota"}}', {}, 402),
        (403, b"<html>", {}, 403),
        (401, b"", {}, 401),
    ],
)
async def test_what_an_error_stands_for(
    status: int, body: bytes, route: dict[str, Any], expected: int, coding: bytes
) -> None:
    """An error stands for what its vendor means by it, packed or not, where its status leaves that open."""
    headers = [JSON, *([(b"Content-Encoding", coding)] if coding else [])]
    sent = gzip.compress(body) if coding else body
    verdict, _ = await judged(asked(**route), status, sent, *headers)
    assert verdict == Verdict(expected)


async def test_what_a_vendor_calls_it() -> None:
    """The vendor's code and type are noted, also of what is not looked at for its meaning."""
    for through in (False, True):
        verdict, attempt = await judged(asked(passthrough=through), 400, REFUSED, JSON)
        assert (attempt.vendor_code, attempt.vendor_type) == ("invalid_api_key", "t")
        assert verdict == Verdict(400 if through else 401)


@pytest.mark.parametrize(
    ("body", "request_body", "expected"),
    [
        (WORDS, b'{"model":"m"}', Verdict(401)),
        (WORDS, b'{"Incorrect API key":1}', Verdict(401, hearsay=True)),
        (REFUSED, b'{"Incorrect API key":"invalid_api_key"}', Verdict(401)),
    ],
)
async def test_hearsay(body: bytes, request_body: bytes, expected: Verdict) -> None:
    """What the caller may have put into a message is hearsay; a vendor's code is not."""
    assert (await judged(asked(request_body), 400, body, JSON))[0] == expected


async def test_an_upload_was_not_seen() -> None:
    """Of what went up unseen the caller may have put any words into a message."""

    async def read() -> bytes:
        return b""

    what = asked(routed=False)
    what.upload = Upload(read, chunked=False)
    assert (await judged(what, 400, WORDS, JSON))[0] == Verdict(401, hearsay=True)
    assert (await judged(what, 400, REFUSED, JSON))[0] == Verdict(401)


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (LIMITED, [SSE], 429),
        (event(b'{"choices":[]}'), [SSE], 200),
        (LIMITED, [JSON], 200),
        (LIMITED, [SSE, (b"Content-Encoding", b"br")], 200),
    ],
)
async def test_a_stream_that_begins_with_an_error(
    body: bytes, headers: list[Pair], expected: int
) -> None:
    """A stream whose first event is an error stands for that, where it can be read."""
    assert (await judged(asked(peek=True), 200, body, *headers))[0] == Verdict(expected)


@pytest.mark.parametrize(("status", "waits"), [(400, True), (404, False)])
async def test_how_long_it_is_waited_for(status: int, waits: bool) -> None:
    """A body that may mean something is waited for briefly, any other is not; that is no overhead of ours."""
    what, before = asked(), time.monotonic()
    await judged(what, status, b'{"error":', JSON, whole=False)
    took = time.monotonic() - before
    assert (took >= PEEK_SECONDS) is waits
    assert (what.exchange.waited >= PEEK_SECONDS - 0.01) is waits
