"""The head of a relayed answer, byte for byte; `test_transparency` has every edit, at the wire."""

import pytest

from proxy.client.relayed import head
from proxy.exchange import Exchange
from proxy.headers import Headers, Pair

JSON: Pair = (b"Content-Type", b"application/json")
LENGTH: Pair = (b"Content-Length", b"2")
IDS = b"x-trunkline-id: req_1\r\nx-request-id: req_1\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CLOSE = b"Connection: close\r\n"


def written(
    *headers: Pair,
    status: int = 200,
    reason: bytes = b"OK",
    stream: bool = False,
    reframe: bool = False,
    keep_alive: bool = True,
    http10: bool = False,
) -> tuple[bytes, bool, bool]:
    """Return what `head` makes of an answer with *headers*."""
    exchange = Exchange("req_1", "main", "POST", "/", "", Headers(), http10, None, 0.0)
    return head(
        exchange,
        status,
        reason,
        Headers(headers),
        stream=stream,
        reframe=reframe,
        keep_alive=keep_alive,
    )


def test_as_it_came() -> None:
    """A head goes on as it came, with our id behind it."""
    text, chunked, keep_alive = written(JSON, LENGTH, (b"X-Two", b"a"), (b"x-two", b"b"))
    lines = b"Content-Type: application/json\r\nContent-Length: 2\r\nX-Two: a\r\nx-two: b\r\n"
    assert text == b"HTTP/1.1 200 OK\r\n" + lines + IDS + b"\r\n"
    assert (chunked, keep_alive) == (False, True)


@pytest.mark.parametrize(
    ("headers", "status", "reframe", "http10", "framing", "framed"),
    [
        ([LENGTH], 200, False, False, b"Content-Length: 2\r\n", (False, True)),
        ([LENGTH], 200, True, False, CHUNKED, (True, True)),
        ([], 200, False, False, CHUNKED, (True, True)),
        ([], 200, False, True, CLOSE, (False, False)),
        ([LENGTH], 200, True, True, CLOSE, (False, False)),
        ([], 204, False, False, b"", (False, True)),
        ([], 304, True, False, b"", (False, True)),
        ([(b"Connection", b"content-length"), LENGTH], 200, False, False, CHUNKED, (True, True)),
    ],
)
def test_framing(
    headers: list[Pair],
    status: int,
    reframe: bool,
    http10: bool,
    framing: bytes,
    framed: tuple[bool, bool],
) -> None:
    """A body whose length is not known, or may change, goes out in chunks; to who knows none, until the close."""
    text, *rest = written(*headers, status=status, reframe=reframe, http10=http10)
    assert text.replace(IDS, b"").partition(b"\r\n")[2] == framing + b"\r\n"
    assert tuple(rest) == framed


def test_stream() -> None:
    """A stream says that it is not to be buffered, nor kept, where its vendor says nothing of that."""
    text, *_ = written(JSON, stream=True)
    assert b"\r\nX-Accel-Buffering: no\r\nCache-Control: no-cache\r\n" in text
    text, *_ = written((b"cache-control", b"private"), (b"X-Accel-Buffering", b"yes"), stream=True)
    assert text.lower().count(b"cache-control") == text.lower().count(b"x-accel-buffering") == 1


def test_their_id() -> None:
    """The vendor's own id stays, and is noted; ours stands beside it."""
    text, *_ = written(LENGTH, (b"x-request-id", b"theirs"))
    assert b"\r\nx-request-id: theirs\r\nx-trunkline-id: req_1\r\n\r\n" in text
