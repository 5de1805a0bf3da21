"""The request that is written for one choice: where to, under which name, framed how."""

from typing import Any

import pytest

from proxy import dialects
from proxy.credentials import Credential, Secret
from proxy.dialects import Dialect
from proxy.errors import ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers, Pair
from proxy.model.body import find_model
from proxy.outbound import CHUNKED, WEBSOCKET
from proxy.patterns import Pattern
from proxy.routes import Base, Group, Origin, Route, Switch, Target, Upstream
from proxy.upstream.asked import Asked
from proxy.upstream.balance import Choice, Scores

BASE = Base(Origin("http", "up.test", 80), "/v1")


def asked(
    *headers: Pair,
    dialect: Dialect = dialects.CHAT,
    suffix: str = "chat/completions",
    query: str = "",
    **what: Any,
) -> Asked:
    """Return what is asked for in an exchange that has come as far as to be sent."""
    exchange = Exchange("x", "default", "POST", "/", query, Headers(headers), False, None, 0.0)
    exchange.dialect, exchange.suffix = dialect, suffix
    return Asked(exchange, (), passthrough=what.pop("passthrough", False), **what)


def routed(model: str | None, upstream: Upstream | None = None, **how: Any) -> tuple[Route, Choice]:
    """Return a route of the name `m`, and the choice of its only target, which calls it *model*."""
    target = Target(upstream or Upstream("up", BASE), model)
    route = Route("m", Pattern.parse("m"), (Group((target,)),), **how)
    return route, Scores().choices(target)[0]


def written(asked: Asked, choice: Choice) -> tuple[str, bytes, bytes]:
    """Return the request line, the other lines, and the body of what is written."""
    _, pieces = asked.write(choice)
    head, _, body = b"".join(map(bytes, pieces)).partition(b"\r\n\r\n")
    first, _, lines = head.partition(b"\r\n")
    return first.decode(), lines, body


def test_not_a_byte_changes() -> None:
    """A body whose model keeps its name goes up as it came, as one piece."""
    body = b'{ "model" : "m" , "n":1e400}'
    route, choice = routed(None)
    what = asked(route=route, name="m", found=find_model(body), body=body)
    to, pieces = what.write(choice)
    assert pieces[1] is body
    assert to.target == "/v1/chat/completions"
    assert b"Content-Length: %d\r\n" % len(body) in bytes(pieces[0])
    assert what.exchange.model_sent == "m"


def test_another_name_in_a_body() -> None:
    """The target's name for the model is spliced in, and the length is that of what is sent."""
    body = b'{"model":"m","n":1}'
    route, choice = routed("longer")
    first, lines, sent = written(
        asked(route=route, name="m", found=find_model(body), body=body), choice
    )
    assert (first, sent) == ("POST /v1/chat/completions HTTP/1.1", b'{"model":"longer","n":1}')
    assert b"Content-Length: 24" in lines


def test_no_model_named() -> None:
    """Where the request names no model, none is put in."""
    body = b'{"n":1}'
    route, choice = routed("longer")
    what = asked(route=route, name=None, found=find_model(body), body=body)
    assert written(what, choice)[2] == body
    assert what.exchange.model_sent is None


@pytest.mark.parametrize(
    ("dialect", "suffix", "query", "first"),
    [
        (dialects.GEMINI, "models/m:go", "alt=sse", "POST /v1/models/other:go?alt=sse HTTP/1.1"),
        (
            dialects.REALTIME,
            "realtime",
            "model=m&a=b",
            "POST /v1/realtime?model=other&a=b HTTP/1.1",
        ),
    ],
    ids=["path", "query"],
)
def test_another_name_elsewhere(dialect: Dialect, suffix: str, query: str, first: str) -> None:
    """Where the path or the query says the model, it is renamed there; a WebSocket has no length."""
    route, choice = routed("other")
    found = find_model(b'{"model":"m"}')
    what = asked(dialect=dialect, suffix=suffix, query=query, route=route, name="m", found=found)
    line, lines, body = written(what, choice)
    assert (line, body) == (first, b"")
    assert (WEBSOCKET.strip() in lines) is (dialect is dialects.REALTIME)


def test_a_name_that_does_not_fit() -> None:
    """A model's name that no path can hold is the caller's to hear of."""
    route, choice = routed("a/../b")
    found = find_model(b'{"model":"m"}')
    what = asked(dialect=dialects.GEMINI, suffix="models/m:go", route=route, name="m", found=found)
    with pytest.raises(ProxyError) as caught:
        what.write(choice)
    assert caught.value.kind.status == 400


def test_what_carries_no_model() -> None:
    """What carries no model goes up with the framing that it came in, and nothing of its body is there yet."""
    what = asked(dialect=dialects.FILES, suffix="files", framing=CHUNKED)
    first, lines, body = written(what, routed(None)[1])
    assert (first, body) == ("POST /v1/files HTTP/1.1", b"")
    assert CHUNKED.strip() in lines


@pytest.mark.parametrize("forward", [frozenset(), frozenset([b"x-team"])])
def test_the_header_that_chose(forward: frozenset[bytes]) -> None:
    """The header by which a route was chosen stays here, if its upstream does not ask for it."""
    upstream = Upstream("up", BASE, forward=forward)
    route, choice = routed(None, upstream, switch=Switch("X-Team", "missing", "unknown", {}))
    body = b'{"model":"m"}'
    what = asked((b"X-Team", b"a"), route=route, name="m", found=find_model(body), body=body)
    assert (b"X-Team: a" in written(what, choice)[1]) is bool(forward)


def test_a_head_is_written_once() -> None:
    """What was written for a head is known when it comes again, but not where its query is another."""
    upstream = Upstream("up", BASE, (Credential(Secret("sk-ours", "KEY")),))
    body = b'{"model":"m"}'
    route, choice = routed(None, upstream)
    what = asked(route=route, name="m", found=find_model(body), body=body)
    once, again = what.write(choice), what.write(choice)
    assert once[0] is again[0]
    assert once[1] == again[1]
    what.exchange.query = "a=b"
    assert what.write(choice)[0].target == "/v1/chat/completions?a=b"
