"""Hooks: what is posted, what the model is asked, what comes back, and each way in which it can fail."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import hooks
from proxy.config import ConfigError, load
from proxy.endpoints import hooks as endpoint
from proxy.errors import ProxyError
from proxy.hooks import Message
from tests.harness.client import Client, Pair, call, request
from tests.harness.hooks import (
    BEARER,
    OTHER,
    SAID,
    SECRET,
    SYSTEM,
    TEAM,
    delta,
    events,
    hooked,
    left,
    post,
    refused,
    routes,
    said,
)
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    close,
    event,
    head,
    raw,
    stream,
)


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Proxy]:
    async with hooked(upstream) as running:
        yield running


# What is asked


async def test_chat(proxy: Proxy, upstream: Upstream) -> None:
    """A message becomes a chat of the hook's route: the system's words, the text, and who it is from."""
    got = await post(proxy, said(**{"from": "ops-7", "action": "chat"}), "alerts")
    assert got.status == 200
    (asked,) = upstream.requests
    assert asked.line == b"POST /v1/chat/completions HTTP/1.1"
    assert orjson.loads(asked.body) == {
        "model": "real",
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": "The disk is full."},
        ],
        "user": "ops-7",
    }


@pytest.mark.parametrize("more", [{}, {"from": None}, {"action": "chat"}, {"unknown": [{}]}])
async def test_text_alone(proxy: Proxy, upstream: Upstream, more: dict[str, Any]) -> None:
    """The text is all a message needs; without `from` no user is named, and what else there is is ignored."""
    assert (await post(proxy, said(**more))).status == 200
    assert orjson.loads(upstream.requests[0].body) == {
        "model": "real",
        "messages": [{"role": "user", "content": "The disk is full."}],
    }


async def test_answer(proxy: Proxy) -> None:
    """What the model said comes back as `text`, with the hook's name and our id, which the headers have too."""
    async with await Client.connect(proxy.port) as client:
        for _ in range(2):  # the connection can be used again
            await client.send(request(said(), "/hooks/free"))
            got = await client.answer()
            assert got.status == 200
            assert got.value(b"content-type") == b"application/json"
            identity = (got.value(b"x-trunkline-id") or b"").decode()
            assert identity.startswith("req_")
            assert got.json() == {"text": "All is well.", "hook": "free", "id": identity}


@pytest.mark.parametrize("content", [None, "", "two\nlines ☃"])
async def test_content(proxy: Proxy, upstream: Upstream, content: str | None) -> None:
    """A model that says nothing is an empty text, and what it says is not changed."""
    upstream.will(answer(body=orjson.dumps({"choices": [{"message": {"content": content}}]})))
    assert (await post(proxy)).json()["text"] == (content or "")


async def test_no_memory(proxy: Proxy, upstream: Upstream) -> None:
    """A second message from the same sender knows nothing of the first."""
    for text in ("first", "second"):
        await post(proxy, said(text, **{"from": "ops-7"}))
    last = orjson.loads(upstream.requests[1].body)
    assert last["messages"] == [{"role": "user", "content": "second"}]


async def test_nothing_of_the_caller(proxy: Proxy, upstream: Upstream) -> None:
    """No header and no query of the caller goes upstream, and the credential is the operator's."""
    headers: list[Pair] = [
        *BEARER,
        (b"User-Agent", b"CANARY"),
        (b"X-Github-Event", b"CANARY"),
        (b"Cookie", b"CANARY"),
        (b"x-stainless-retry-count", b"1"),
        (b"Accept-Encoding", b"gzip"),
        (b"Content-Type", b"text/CANARY"),
    ]
    await call(proxy.port, said(), "/hooks/alerts?CANARY=1", headers)
    (asked,) = upstream.requests
    assert b"CANARY" not in asked.head + asked.body
    names = sorted(name.lower() for name, _ in asked.headers)
    assert names == [b"authorization", b"content-length", b"content-type", b"host"]
    assert asked.value(b"authorization") == b"Bearer sk-upstream-secret"
    assert asked.value(b"content-type") == b"application/json"


async def test_expectation(proxy: Proxy) -> None:
    """A body that is announced with `Expect: 100-continue` is asked for, and taken."""
    async with await Client.connect(proxy.port) as client:
        whole = request(said(), "/hooks/free", [(b"Expect", b"100-continue")])
        head_part, _, body = whole.partition(b"\r\n\r\n")
        await client.send(head_part + b"\r\n\r\n")
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(body)
        assert (await client.answer()).status == 200


# Who may


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"Authorization", b"")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", b"Bearer wrong")],
        [(b"Authorization", SECRET.encode())],
        [(b"Authorization", f"Basic {SECRET}".encode())],
        [(b"Authorization", f"Bearer {OTHER}".encode())],
        [(b"Authorization", f"Bearer {SECRET}x".encode())],
        [(b"x-api-key", SECRET.encode())],
        [(b"Authorization", b"Bearer \xff\xfe")],
    ],
)
async def test_wrong_secret(proxy: Proxy, upstream: Upstream, headers: list[Pair]) -> None:
    """A hook with a secret answers nobody who does not present it as a Bearer token, and says so."""
    got = await post(proxy, name="alerts", headers=headers)
    refused(got, 401, "invalid_api_key")
    assert got.value(b"www-authenticate") == b"Bearer"
    assert "secret" in got.json()["error"]["message"]
    assert upstream.requests == []
    assert (await proxy.record())["outcome"] == "refused"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_right_secret(proxy: Proxy, scheme: str) -> None:
    """The secret opens its hook, however the scheme is written."""
    headers = [(b"Authorization", f"{scheme} {SECRET}".encode())]
    assert (await post(proxy, name="alerts", headers=headers)).status == 200


async def test_secret_before_body(proxy: Proxy) -> None:
    """A wrong secret is told before the body is looked at."""
    got = await post(proxy, b"not json", "alerts", headers=[])
    assert got.status == 401


@pytest.mark.parametrize("name", ["nope", "", "Alerts", "alerts/", "alerts/x", "alert%73", "free?"])
async def test_unknown_hook(proxy: Proxy, name: str) -> None:
    """A hook that there is not, by its exact name, is not found, whoever asks."""
    if name == "free?":  # a query is no part of the name
        assert (await post(proxy, name=name)).status == 200
        return
    got = await post(proxy, name=name, headers=BEARER)
    refused(got, 404, "not_found")
    assert "hook" in got.json()["error"]["message"]


@pytest.mark.parametrize(
    "headers", [[(b"Host", b"evil.example")], [(b"Origin", b"http://evil.example")]]
)
async def test_foreign_page(proxy: Proxy, upstream: Upstream, headers: list[Pair]) -> None:
    """A web page cannot make a browser post to a hook that wants no secret."""
    host = None if headers[0][0] == b"Host" else b"localhost"
    got = await post(proxy, headers=headers, host=host)
    refused(got, 403, "origin_not_allowed")
    assert upstream.requests == []


SURFACES = """
[[surface]]
name = "open"
listen = "127.0.0.1:0"
auth = "none"
[[surface]]
name = "team"
listen = "[::1]:0"
auth = "keys"
[[surface]]
name = "chat"
listen = "127.0.0.2:0"
auth = "none"
endpoints = ["chat/completions"]
[[surface]]
name = "narrow"
listen = "127.0.0.3:0"
auth = "none"
endpoints = ["hooks"]
[keys]
team = "sk-team-0123456789"
"""


@pytest.mark.parametrize(
    ("surface", "hook", "status"),
    [
        ("open", "free", 200),
        ("open", "alerts", 200),
        ("team", "free", 404),
        ("team", "alerts", 200),
        ("chat", "free", 404),
        ("chat", "alerts", 404),
        ("narrow", "free", 200),
        ("narrow", "alerts", 200),
    ],
)
async def test_surfaces(upstream: Upstream, surface: str, hook: str, status: int) -> None:
    """A hook is reached on surfaces whose `endpoints` have hooks; without a secret, on open ones only."""
    upstream.will(answer(body=SAID))
    async with serving(routes(upstream, SURFACES), listen=None) as proxy:
        assert proxy.running is not None
        (address,) = proxy.running.addresses[surface]
        headers = [*BEARER, (b"x-api-key", TEAM.encode())]
        async with await Client.connect(address.port, address.host) as client:
            await client.send(request(said(), f"/hooks/{hook}", headers))
            got = await client.answer()
    assert got.status == status
    if status == 404:
        refused(got, 404, "not_found")


async def test_own_secret_is_enough(upstream: Upstream) -> None:
    """On a surface with keys, the secret of a hook opens that hook; a key of the surface does not."""
    upstream.will(answer(body=SAID))
    toml = routes(upstream, f'[keys]\nteam = "{TEAM}"').replace('[hooks.free]\nroute = "m"', "")
    async with serving(toml) as proxy:
        assert (await post(proxy, name="alerts")).status == 200
        key = [(b"Authorization", f"Bearer {TEAM}".encode())]
        assert (await post(proxy, name="alerts", headers=key)).status == 401


# What is wrong with a message


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        (b"", None, "JSON object"),
        (b"not json", None, "JSON object"),
        (b'{"text": "x"', None, "JSON object"),
        (b'{"text": "x"} trailing', None, "JSON object"),
        (b'{"text": "\xff"}', None, "JSON object"),
        (b'{"text": "\\ud800"}', None, "JSON object"),
        (b"null", None, "`object`, got `null`"),
        (b"[]", None, "`object`, got `array`"),
        (b"5", None, "`object`, got `int`"),
        (b'"text"', None, "`object`, got `str`"),
        (b"{}", "text", "`text`"),
        (b'{"from": "x"}', "text", "`text`"),
        (b'{"Text": "x"}', "text", "`text`"),
        (said(None), "text", "got `null`"),
        (said(5), "text", "got `int`"),
        (said(True), "text", "got `bool`"),
        (said(["x"]), "text", "got `array`"),
        (said({"x": 1}), "text", "got `object`"),
        (said(""), "text", "no text"),
        (said(" \n\t"), "text", "no text"),
        (said(**{"from": 5}), "from", "got `int`"),
        (said(**{"from": ["x"]}), "from", "got `array`"),
        (said(action="delete"), "action", '"chat"'),
        (said(action=""), "action", '"chat"'),
        (said(action=None), "action", "got `null`"),
        (said(action=1), "action", "got `int`"),
        (said(stream="yes"), "stream", "got `str`"),
        (said(stream=None), "stream", "got `null`"),
        (said(stream=1), "stream", "got `int`"),
    ],
)
async def test_wrong_message(
    proxy: Proxy, upstream: Upstream, body: bytes, param: str | None, told: str
) -> None:
    """What is wrong with a message is told, with the field that is at fault, and nobody is asked."""
    got = await post(proxy, body)
    refused(got, 400, "invalid_json")
    error = got.json()["error"]
    assert told in error["message"]
    assert error["param"] == param
    assert upstream.requests == []
    record = await proxy.record()
    assert (record["outcome"], record["attempts"]) == ("client_error", [])


async def test_deep_message(proxy: Proxy) -> None:
    """JSON that is nested deeper than anybody reads is refused, and stops nothing."""
    got = await post(proxy, b'{"text": "x", "y": ' + b"[" * 200_000 + b"]" * 200_000 + b"}")
    refused(got, 400, "invalid_json")
    assert (await post(proxy)).status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_method(proxy: Proxy, method: str) -> None:
    """A hook takes POST, and says so of any other method."""
    got = await call(proxy.port, b"", "/hooks/free", method=method)
    assert got.status == 405
    assert got.value(b"allow") == b"POST"
    if method != "HEAD":
        refused(got, 405, "method_not_allowed")


@given(st.binary() | st.text().map(str.encode) | st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["text", "from", "action", "stream", "x"]), inner
    ),
).map(orjson.dumps))  # fmt: skip
def test_any_body(body: bytes) -> None:
    """Whatever is posted is a message, or a 400 that holds nothing of what was posted but its types."""
    try:
        message = hooks.read(body)
    except ProxyError as error:
        assert error.kind.status == 400
        assert len(error.message) < 200
    else:
        assert message.text.strip()
        assert message.action == "chat"


@given(st.text(min_size=1), st.none() | st.text(), st.none() | st.text(), st.booleans())
def test_any_message(text: str, sender: str | None, system: str | None, streamed: bool) -> None:
    """A message becomes a chat with the same words, whatever they are."""
    hook = hooks.Hook("h", "m", None, system)  # type: ignore[arg-type]  # it does not look at the route
    chat = orjson.loads(hook.chat(Message(text, sender, stream=streamed)))
    system_part = [] if system is None else [{"role": "system", "content": system}]
    assert chat.pop("messages") == [*system_part, {"role": "user", "content": text}]
    assert chat.pop("user", None) == sender
    assert chat.pop("stream", False) is streamed
    assert chat == {"model": "m"}


# Streams


async def test_stream(proxy: Proxy, upstream: Upstream) -> None:
    """A streamed answer is events of ours: what is added to the text, then `done` with our id."""
    upstream.will(
        stream(
            event(b'{"choices":[{"index":0,"delta":{"role":"assistant"}}]}'),
            b": a comment\n\n",
            delta("All "),
            delta(""),
            delta("is\nwell ☃"),
            delta(None, "stop"),
            event(b'{"choices":[],"usage":{"total_tokens":3}}'),
            DONE,
        )
    )
    got = await post(proxy, said(stream=True))
    assert got.status == 200
    assert got.whole
    assert events(got) == [
        ("message", {"text": "All "}),
        ("message", {"text": "is\nwell ☃"}),
        ("done", {"id": (got.value(b"x-trunkline-id") or b"").decode()}),
    ]
    assert orjson.loads(upstream.requests[0].body)["stream"] is True
    assert upstream.requests[0].value(b"accept-encoding") == b"identity"


async def test_stream_head(proxy: Proxy, upstream: Upstream) -> None:
    """A stream of ours has what keeps proxies from holding it, our id, and no word of who made it."""
    upstream.will(stream(delta("x"), delta(None, "stop"), DONE))
    got = await post(proxy, said(stream=True))
    assert got.value(b"content-type") == b"text/event-stream"
    assert got.value(b"cache-control") == b"no-cache"
    assert got.value(b"x-accel-buffering") == b"no"
    identity = got.value(b"x-trunkline-id")
    assert identity == got.value(b"x-request-id") == got.value(b"request-id")
    for name in (b"server", b"date"):
        assert got.value(name) is None, got.head


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_stream_in_any_pieces(
    proxy: Proxy, upstream: Upstream, end: bytes, size: int
) -> None:
    """However the upstream cuts its bytes, and ends its lines, the text is the same."""
    whole = (delta("All ") + delta("is ☃") + delta(None, "stop") + DONE).replace(b"\n\n", end)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    upstream.will(stream(*pieces))
    told = events(await post(proxy, said(stream=True)))
    assert [data.get("text") for _, data in told] == ["All ", "is ☃", None]


async def test_stream_at_once(proxy: Proxy, upstream: Upstream) -> None:
    """What the model says is passed on when it is said, not when all is said."""
    seen = asyncio.Event()

    async def in_turn(conn: Conn, received: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]) + chunk(delta("first")))
        await seen.wait()
        await conn.send(chunk(delta("second", "stop")) + chunk(DONE) + b"0\r\n\r\n")

    upstream.will(in_turn)
    async with await Client.connect(proxy.port) as client:
        await client.send(request(said(stream=True), "/hooks/free"))
        async with asyncio.timeout(5):
            assert b'data: {"text":"first"}' in await client.reader.readuntil(b'first"}\n\n')
        seen.set()
        async with asyncio.timeout(5):
            assert b"second" in await client.reader.readuntil(b"event: done")


async def test_stream_http10(proxy: Proxy, upstream: Upstream) -> None:
    """A client of HTTP/1.0 gets the stream too, ended by the end of its connection."""
    upstream.will(stream(delta("x", "stop"), DONE))
    got = await post(proxy, said(stream=True), version="1.0")
    assert got.value(b"transfer-encoding") is None
    assert [name for name, _ in events(got)] == ["message", "done"]


@pytest.mark.parametrize(
    ("step", "status", "code"),
    [
        (answer(429), 502, "upstream_failed"),
        (answer(500), 502, "upstream_failed"),
        (answer(401), 502, "upstream_auth"),
        (close(), 502, "upstream_disconnected"),
        (raw(head(200, [SSE, CHUNKED])), 502, "upstream_disconnected"),
        (raw(head(200, [SSE, CHUNKED]), then="hang"), 504, "upstream_idle_timeout"),
    ],
)
async def test_stream_fails_early(
    proxy: Proxy, upstream: Upstream, step: Step, status: int, code: str
) -> None:
    """What fails before the first byte of a stream is told with a status."""
    upstream.will(step)
    refused(await post(proxy, said(stream=True)), status, code)
    assert (await proxy.record())["error"] == code


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (stream(delta("All "), end="cut"), "upstream_disconnected"),
        (stream(delta("All "), end="reset"), "upstream_disconnected"),
        (stream(delta("All "), end="hang"), "upstream_idle_timeout"),
        (stream(delta("All ")), "upstream_incomplete"),
        (stream(delta("All "), event(b'{"error":{"message":"CANARY"}}')), "upstream_error_event"),
    ],
)
async def test_stream_fails_late(proxy: Proxy, upstream: Upstream, step: Step, code: str) -> None:
    """What fails later is told in the last event, there is no `done`, and the log has it."""
    upstream.will(step)
    got = await post(proxy, said(stream=True))
    first, *rest = events(got)
    assert first == ("message", {"text": "All "})
    assert [(name, data["error"]["code"]) for name, data in rest] == [("error", code)]
    assert rest[0][1]["error"]["message"]
    assert b"CANARY" not in got.body
    record = await proxy.record()
    assert (record["status"], record["error"], record["stream"]) == (200, code, True)
    assert record["outcome"] != "ok"


@pytest.mark.parametrize(
    "step",
    [
        answer(body=SAID),
        answer(body=b"<html>", headers=[(b"Content-Type", b"text/html")]),
        answer(body=b'{"error":{"message":"x"}}'),
    ],
)
async def test_no_stream_upstream(proxy: Proxy, upstream: Upstream, step: Step) -> None:
    """An upstream that does not stream what it was asked to stream never looks like one that said nothing."""
    upstream.will(step)
    got = await post(proxy, said(stream=True))
    if got.status == 200:
        texts = [data["text"] for name, data in events(got) if name == "message"]
        name, data = events(got)[-1]
        assert (name, texts) == ("done", ["All is well."]) or name == "error", got.body
        assert name == "done" or data["error"]["code"]
    else:
        assert got.code in ("upstream_failed", "upstream_incomplete")


async def test_stream_event_too_long(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that does not end is held up to a bound, and then told as too long."""
    monkeypatch.setattr(endpoint, "ANSWER_BYTES", 100_000)

    async def endless(conn: Conn, received: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]) + chunk(delta("x")) + chunk(b"data: "))
        for _ in range(40):
            await conn.send(chunk(b"x" * 10_000))
        await conn.left(30)

    upstream.will(endless)
    async with asyncio.timeout(10):
        got = await post(proxy, said(stream=True))
    assert events(got)[-1][0] == "error"
    await left(upstream)


@pytest.mark.parametrize("end", ["hang", "cut", "reset"])
async def test_stream_is_over(proxy: Proxy, upstream: Upstream, end: str) -> None:
    """What an upstream does after `[DONE]` is its own business: the answer was complete."""
    upstream.will(stream(delta("x", "stop"), DONE, end=end))
    got = await post(proxy, said(stream=True))
    assert [name for name, _ in events(got)] == ["message", "done"]
    record = await proxy.record()
    assert (record["outcome"], record["attempts"][0]["error"]) == ("ok", None)


# Leaving, and not keeping up


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_client_leaves(proxy: Proxy, upstream: Upstream, streamed: bool, begun: bool) -> None:
    """A client that leaves, before or within the answer, closes the upstream within a second."""
    asked = asyncio.Event()

    async def wait(conn: Conn, received: Received) -> None:
        if begun:
            body = delta("first") if streamed else SAID[:10]
            await conn.send(head(200, [SSE if streamed else JSON, CHUNKED]) + chunk(body))
        asked.set()
        await conn.left(30)

    upstream.will(wait)
    async with serving(routes(upstream)) as patient:
        async with await Client.connect(patient.port) as client:
            await client.send(request(said(stream=streamed), "/hooks/free"))
            async with asyncio.timeout(5):
                await asked.wait()
                if begun and streamed:
                    await client.reader.readuntil(b'first"}\n\n')
        await left(upstream)
        record = await patient.record()
        assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
        assert patient.running is not None
        assert patient.running.gate.inflight == 0


async def test_client_leaves_silently(upstream: Upstream) -> None:
    """A client that leaves in the middle of a stream leaves no trace on stderr, and one line in the log."""
    upstream.will(stream(delta("first"), end="hang"))
    async with process(routes(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(said(stream=True), "/hooks/free"))
            async with asyncio.timeout(5):
                await client.reader.readuntil(b'first"}\n\n')
        await left(upstream)
        assert (await proxy.record())["outcome"] == "client_gone"


def transport_of(client: Client) -> asyncio.Transport:
    return cast(asyncio.Transport, client.writer.transport)


class Flood:
    """A stream of *count* events, 10 kB each, that counts those it could *send*."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.sent = 0

    async def __call__(self, conn: Conn, received: Received) -> None:
        await conn.send(head(200, [SSE, CHUNKED]))
        for _ in range(self.count):
            await conn.send(chunk(delta("x" * 10_000)))
            self.sent += 1
        await conn.send(chunk(delta(None, "stop")) + chunk(DONE) + b"0\r\n\r\n")


async def held_up(flood: Flood) -> int:
    """Wait until *flood* is sent no further; return how far it got."""
    async with asyncio.timeout(10):
        while True:
            before = flood.sent
            await asyncio.sleep(0.25)
            if flood.sent == before > 0:
                return before


async def test_slow_client(upstream: Upstream) -> None:
    """A client that does not read stops the upstream; when it reads, all comes, though it took its time."""
    flood = Flood(4000)
    upstream.will(flood)
    async with serving(routes(upstream, up='timeout = { idle = "200ms" }')) as proxy:
        async with await Client.connect(proxy.port) as client:
            transport_of(client).pause_reading()
            await client.send(request(said(stream=True), "/hooks/free"))
            assert await held_up(flood) < 2500  # what lies between are kernels and buffers
            transport_of(client).resume_reading()
            came = await client.closed(20)
        assert came.count(b'data: {"text":') == 4000
        assert came.endswith(b"\n\n\r\n0\r\n\r\n")
        assert (await proxy.record())["outcome"] == "ok"


async def test_slow_client_leaves(upstream: Upstream) -> None:
    """A client that leaves without having read closes the upstream all the same."""
    flood = Flood(4000)
    upstream.will(flood)
    async with serving(routes(upstream)) as proxy:
        async with await Client.connect(proxy.port) as client:
            transport_of(client).pause_reading()
            await client.send(request(said(stream=True), "/hooks/free"))
            await held_up(flood)
        await left(upstream)
        assert (await proxy.record())["outcome"] == "client_gone"
        assert proxy.running is not None
        assert proxy.running.gate.inflight == 0


async def test_stalled_client(upstream: Upstream) -> None:
    """A client that takes nothing for the route's `write` is let go, as one that stalled."""
    upstream.will(Flood(4000))
    async with serving(routes(upstream, up='timeout = { write = "300ms" }')) as proxy:
        async with await Client.connect(proxy.port) as client:
            transport_of(client).pause_reading()
            await client.send(request(said(stream=True), "/hooks/free"))
            record = await proxy.record(seconds=10)
            await left(upstream)
        assert (record["outcome"], record["error"]) == ("timeout", "client_stalled")
        assert [line["event"] for line in proxy.lines()] == ["exchange"]


async def test_shutdown(upstream: Upstream) -> None:
    """A stream that is still running when the drain is over is told so in its last event."""
    upstream.will(stream(delta("first"), end="hang"))
    toml = '[server]\ndrain = "100ms"\n' + routes(upstream)
    async with process(toml) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(said(stream=True), "/hooks/free"))
            async with asyncio.timeout(5):
                await client.reader.readuntil(b'first"}\n\n')
            assert proxy.process is not None
            proxy.process.terminate()
            rest = await client.closed(10)
        assert await proxy.process.wait() == 0
        assert (await proxy.record())["outcome"] == "shutdown"
    assert b"event: error" in rest
    assert b"proxy_shutdown" in rest
    assert b"done" not in rest


# The log


async def test_record(proxy: Proxy, upstream: Upstream) -> None:
    """One line tells what was posted where, what it led to, and how many bytes went both ways."""
    got = await post(proxy, name="alerts")
    record = await proxy.record()
    expected = {
        "request_id": (got.value(b"x-trunkline-id") or b"").decode(),
        "surface": "main",
        "route": "m",
        "upstream": "up",
        "model": "m",
        "upstream_model": "real",
        "method": "POST",
        "path": "/hooks/alerts",
        "status": 200,
        "stream": False,
        "outcome": "ok",
        "error": None,
        "bytes_in": len(said()),
        "bytes_out": len(got.body),
    }
    assert {name: record[name] for name in expected} == expected
    (attempt,) = record["attempts"]
    assert (attempt["upstream"], attempt["status"], attempt["error"]) == ("up", 200, None)
    assert attempt["maybe_billed"] is False


async def test_record_of_a_stream(proxy: Proxy, upstream: Upstream) -> None:
    """The line of a stream says so, when its first byte came, and how many bytes it was."""
    upstream.will(stream(delta("x", "stop"), DONE))
    got = await post(proxy, said(stream=True))
    record = await proxy.record()
    assert (record["stream"], record["outcome"], record["status"]) == (True, "ok", 200)
    assert record["first_byte_ms"] > 0
    assert record["bytes_out"] == len(got.body)


async def test_nothing_is_logged_of_what_was_said(upstream: Upstream) -> None:
    """Neither a secret, right or wrong, nor a word of what was said stands in the log, at any level."""
    async with process(routes(upstream, '[log]\nlevel = "debug"')) as proxy:
        words = said("CANARY", **{"from": "CANARY", "action": "chat"})
        upstream.will(answer(body=SAID.replace(b"All is well.", b"CANARY")), answer(500, b"CANARY"))
        wrong = [(b"Authorization", b"Bearer CANARY")]
        for body, headers in (
            (words, BEARER),
            (words, BEARER),
            (words, wrong),
            (b"CANARY", BEARER),
        ):
            await post(proxy, body, "alerts", headers=headers)
        await post(proxy, said(action="CANARY"), "alerts")
        await proxy.record(5)
        assert b"CANARY" not in proxy.log.read_bytes()


# The file


def told(tmp_path: Path, toml: str, env: dict[str, str] | None = None) -> str:
    """Load *toml* with a route in front; return what is wrong with it."""
    file = tmp_path / "routes.toml"
    file.write_text(f'[upstreams.up]\nbase_url = "http://127.0.0.1:1/v1"\n{toml}')
    try:
        load(file, env or {})
    except ConfigError as error:
        return str(error)
    return ""


ROUTE = '[routes]\n"m" = "up/x"\n"p/*" = { upstream = "up" }\n"h" = { header = "x-h", to = { a = "m" } }\n'


@pytest.mark.parametrize(
    "toml",
    [
        '[hooks.a]\nroute = "m"',
        '[hooks.a-B_9]\nroute = "m"\nsystem = "x"\nsecret = "s"',
        '[hooks.a]\nroute = "p/anything"\nsecret = "${SECRET}"',
        '[keys]\nk = "x"\n[hooks.a]\nroute = "m"\nsecret = "s"',
    ],
)
def test_good_file(tmp_path: Path, toml: str) -> None:
    """A hook needs a name and a route; and a secret, where no surface is open on loopback."""
    assert told(tmp_path, ROUTE + toml, {"SECRET": "s"}) == ""


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ('[hooks.a]\nsecret = "s"', "hooks.a.route: is missing"),
        ('[hooks.a]\nroute = "nope"', 'hooks.a.route: no route leads to "nope"'),
        ('[hooks.a]\nroute = "h"', "hooks.a.route: is a route by header"),
        ("[hooks.a]\nroute = 5", "hooks.a.route: must be text"),
        ('[hooks.a]\nroute = "m"\nsecret = "${NOT_SET}"', "hooks.a.secret"),
        ('[hooks.a]\nroute = "m"\nsecret = ""', "hooks.a.secret"),
        ('[hooks.a]\nroute = "m"\naction = "chat"', "hooks.a.action: unknown key"),
        ('[hooks.a]\nroute = "m"\nsytem = "x"', "system"),
        ('[hooks."a/b"]\nroute = "m"', "letters, digits"),
        ('[hooks.""]\nroute = "m"', "letters, digits"),
        ('[hooks."ä"]\nroute = "m"', "letters, digits"),
        ('[keys]\nk = "x"\n[hooks.a]\nroute = "m"', "hooks.a: needs a `secret`"),
        (
            '[server]\nlisten = "0.0.0.0:1"\nauth = "none"\nopen = true\n[hooks.a]\nroute = "m"',
            "hooks.a: needs a `secret`",
        ),
    ],
)
def test_bad_file(tmp_path: Path, toml: str, problem: str) -> None:
    """What is wrong with a hook is told by its place in the file."""
    assert problem in told(tmp_path, ROUTE + toml)


def test_bad_file_tells_no_secret(tmp_path: Path) -> None:
    """No problem quotes a secret."""
    bad = '[hooks.a]\nroute = "nope"\nsecret = "${SECRET}"\nextra = 1'
    assert "CANARY" not in told(tmp_path, ROUTE + bad, {"SECRET": "CANARY"})


def test_repr(tmp_path: Path) -> None:
    """A hook, however it is printed, does not show its secret."""
    file = tmp_path / "routes.toml"
    file.write_text('[routes]\n"m" = "sandbox/echo"\n[hooks.a]\nroute = "m"\nsecret = "CANARY"')
    assert "CANARY" not in repr(load(file, {}).hooks)
