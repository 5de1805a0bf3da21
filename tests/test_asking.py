"""What a hook asks of a model: how much is read, and each way in which it can fail upstream."""

import asyncio
import gzip
from collections.abc import AsyncIterator

import orjson
import pytest

from proxy.asking import MESSAGE_BYTES
from proxy.endpoints import hooks as endpoint
from tests.harness.hooks import (
    SAID,
    delta,
    events,
    half,
    hooked,
    left,
    post,
    refused,
    routes,
    said,
)
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import (
    CHUNKED,
    JSON,
    SSE,
    Conn,
    Received,
    Step,
    Upstream,
    answer,
    chunk,
    close,
    hang,
    head,
    raw,
    reset,
    stream,
)


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Proxy]:
    async with hooked(upstream) as running:
        yield running


async def test_too_big(proxy: Proxy) -> None:
    """A message over the limit is refused with that limit, before it is read."""
    room = MESSAGE_BYTES - len(said(""))
    assert (await post(proxy, said("x" * room))).status == 200
    got = await post(proxy, said("x" * (room + 1)))
    refused(got, 413, "request_too_large")
    assert str(MESSAGE_BYTES) in got.json()["error"]["message"]


async def test_compressed(proxy: Proxy, upstream: Upstream) -> None:
    """A packed message is unpacked, within the limit, or refused as such, as everywhere."""
    packed = [(b"Content-Encoding", b"gzip")]
    assert (await post(proxy, gzip.compress(said()), headers=packed)).status == 200
    assert b"The disk is full." in upstream.requests[0].body
    got = await post(proxy, gzip.compress(said("x" * MESSAGE_BYTES)), headers=packed)
    refused(got, 413, "request_too_large")
    refused(await post(proxy, said(), headers=packed), 400, "bad_request")
    got = await post(proxy, said(), headers=[(b"Content-Encoding", b"br")])
    refused(got, 415, "unsupported_encoding")
    assert len(upstream.requests) == 1


# What is wrong upstream, in a plain answer


@pytest.mark.parametrize(
    ("step", "status", "code", "told"),
    [
        (answer(429, b'{"error":{"message":"CANARY"}}'), 502, "upstream_failed", "429"),
        (answer(500, b"CANARY"), 502, "upstream_failed", "500"),
        (answer(400, b"CANARY"), 502, "upstream_failed", "400"),
        (answer(404, b"CANARY"), 502, "upstream_failed", "404"),
        (answer(204, b""), 502, "upstream_failed", "204"),
        (answer(401, b"CANARY"), 502, "upstream_auth", "credential"),
        (answer(302, b"CANARY", [(b"Location", b"/x")]), 502, "upstream_protocol", "redirected"),
        (answer(200, b"<html>CANARY"), 502, "upstream_failed", "no chat completion"),
        (answer(200, b""), 502, "upstream_failed", "no chat completion"),
        (answer(200, b"[]"), 502, "upstream_failed", "no chat completion"),
        (answer(200, b'{"choices":[]}'), 502, "upstream_failed", "no chat completion"),
        (answer(200, b'{"choices":null}'), 502, "upstream_failed", "no chat completion"),
        (answer(200, b'{"choices":[{}]}'), 502, "upstream_failed", "no chat completion"),
        (answer(200, b'{"error":{"message":"CANARY"}}'), 502, "upstream_failed", "no chat compl"),
        (answer(200, b"[" * 100_000), 502, "upstream_failed", "no chat completion"),
        (close(), 502, "upstream_disconnected", "closed"),
        (reset(), 502, "upstream_disconnected", "closed"),
        (half(SAID), 502, "upstream_disconnected", "before its answer was complete"),
        (half(SAID, then="reset"), 502, "upstream_disconnected", "before its answer was complete"),
        (half(SAID, then="hang"), 504, "upstream_idle_timeout", "silent"),
        (raw(b"SSH-2.0-x\r\n\r\n"), 502, "upstream_protocol", "not HTTP"),
    ],
)
async def test_upstream_fails(
    proxy: Proxy, upstream: Upstream, step: Step, status: int, code: str, told: str
) -> None:
    """What went wrong upstream is told as what it is, without a word of what the upstream said."""
    upstream.will(step)
    got = await post(proxy)
    refused(got, status, code)
    assert told in got.json()["error"]["message"]
    assert b"CANARY" not in got.raw
    record = await proxy.record()
    assert (record["status"], record["error"], record["route"]) == (status, code, "m")
    assert record["outcome"] in ("upstream_error", "upstream_cut", "timeout")


@pytest.mark.parametrize(
    ("step", "code"),
    [
        (half(SAID), "upstream_disconnected"),
        (half(SAID, then="hang"), "upstream_idle_timeout"),
        (stream(delta("All "), end="cut"), "upstream_disconnected"),
        (stream(delta("All "), end="hang"), "upstream_idle_timeout"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_broken_attempt(
    proxy: Proxy, upstream: Upstream, step: Step, code: str, streamed: bool
) -> None:
    """An answer that broke off stands in the log as what it is: an attempt that failed, maybe billed,
    and one more fault of its upstream.
    """
    upstream.will(step)
    await post(proxy, said(stream=streamed))
    (attempt,) = (await proxy.record())["attempts"]
    assert (attempt["status"], attempt["error"]) == (200, code)
    assert attempt["maybe_billed"] is True
    assert proxy.running is not None
    scores = proxy.running._opener.scores
    (health,) = scores.of(proxy.running.snapshot.upstreams["up"])
    assert (health.faults, health.load.active) == (1, 0)


async def test_late(upstream: Upstream) -> None:
    """An upstream that does not begin to answer in the route's time is told as late, and is not asked again."""
    upstream.will(hang())
    async with serving(routes(upstream, up='timeout = { first_byte = "100ms" }')) as proxy:
        got = await post(proxy)
    refused(got, 504, "upstream_timeout")
    assert got.value(b"x-should-retry") == b"false"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_too_slow(upstream: Upstream, streamed: bool) -> None:
    """The time that a route allows in all holds for hooks too, though the upstream goes on and on."""

    async def drip(conn: Conn, received: Received) -> None:
        await conn.send(head(200, [SSE if streamed else JSON, CHUNKED]))
        while True:
            await conn.send(chunk(delta("x") if streamed else b" "))
            await asyncio.sleep(0.05)

    upstream.will(drip)
    async with serving(routes(upstream, up='timeout = { total = "400ms" }')) as proxy:
        got = await post(proxy, said(stream=streamed), seconds=5)
        if streamed:
            assert events(got)[-1][1]["error"]["code"] == "upstream_timeout"
        else:
            refused(got, 504, "upstream_timeout")
        await left(upstream)


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_long(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    """An answer is held up to a bound; a longer one is refused, and its upstream is stopped."""
    monkeypatch.setattr(endpoint, "ANSWER_BYTES", len(SAID))
    assert (await post(proxy)).json()["text"] == "All is well."
    over = SAID + b" "
    if chunked:
        upstream.will(stream(over, end="hang", headers=[JSON]))
    else:
        upstream.will(raw(head(200, [JSON, (b"Content-Length", b"999999")]) + over, then="hang"))
    got = await post(proxy)
    refused(got, 502, "upstream_failed")
    assert "too long" in got.json()["error"]["message"]
    await left(upstream)


async def test_fallback(upstream: Upstream) -> None:
    """A hook's route has its fallbacks, and the log says what became of each attempt."""
    async with Upstream() as second:
        second.will(answer(body=SAID))
        upstream.will(answer(500))
        toml = routes(upstream).replace(
            'model = "real" }', 'model = "real", fallback = ["two/backup"] }'
        )
        async with serving(toml + f'[upstreams.two]\nbase_url = "{second.url}"') as proxy:
            assert (await post(proxy)).json()["text"] == "All is well."
            record = await proxy.record()
        assert orjson.loads(second.requests[0].body)["model"] == "backup"
        assert [attempt["status"] for attempt in record["attempts"]] == [500, 200]
        assert record["outcome"] == "ok"


async def test_dormant() -> None:
    """A hook on a route whose variable is not set says which."""
    toml = '[routes]\n"m" = "openai/gpt-4o"\n[hooks.free]\nroute = "m"\n'
    async with serving(toml) as proxy:
        got = await post(proxy)
    refused(got, 503, "not_configured")
    assert "OPENAI_API_KEY" in got.json()["error"]["message"]


async def test_no_chat(upstream: Upstream) -> None:
    """A hook on a route whose upstream does not speak chat says so."""
    async with serving(routes(upstream, up='speaks = ["messages"]')) as proxy:
        got = await post(proxy)
    refused(got, 404, "endpoint_not_supported")
    assert upstream.requests == []
