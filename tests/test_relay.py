"""What passes through the relay, and how an answer ends."""

from tests.harness.client import call, chat
from tests.harness.proxy import Proxy
from tests.harness.upstream import DONE, Upstream, answer, event, stream


async def test_plain_answer(proxy: Proxy, upstream: Upstream) -> None:
    """A plain answer arrives byte for byte, and one line says so."""
    upstream.will(answer(201, b'{"a":1}', reason=b"Made It"))
    got = await call(proxy.port, chat())
    assert got.head.startswith(b"HTTP/1.1 201 Made It\r\n")
    assert got.body == b'{"a":1}'
    record = await proxy.record()
    assert record["outcome"] == "ok"
    assert upstream.requests[0].body == chat()
    assert upstream.requests[0].value(b"authorization") == b"Bearer sk-upstream-secret"


async def test_stream(proxy: Proxy, upstream: Upstream) -> None:
    """A stream arrives event by event, and ends where the upstream ended it."""
    upstream.will(stream(event(b'{"x":1}'), event(b'{"x":2}'), DONE, pause=0.02))
    got = await call(proxy.port, chat(stream=True))
    assert got.chunks == [event(b'{"x":1}'), event(b'{"x":2}'), DONE]
    assert got.whole
    assert upstream.requests[0].value(b"accept-encoding") == b"identity"
