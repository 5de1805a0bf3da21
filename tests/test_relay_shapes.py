"""What an answer is, whatever its label says: a plain one that is called a stream, a stream of several
choices, one that is none of the usual; and what becomes of it.
"""

import asyncio
import itertools

import pytest

from tests.harness.client import Client, Pair, call, chat, request
from tests.harness.proxy import serving
from tests.harness.upstream import (
    CHUNKED,
    DONE,
    JSON,
    SSE,
    Upstream,
    answer,
    chunk,
    event,
    head,
    raw,
    stream,
)
from tests.test_relay_endings import COMMENT, KEEPALIVE, SILENCE, parts, to

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
LABELLED = b'{"object":"chat.completion","model":"up/m","choices":[{"finish_reason":null}]}'


# A plain answer that is called a stream


@pytest.mark.parametrize("code", [200, 201, 404, 500])
@pytest.mark.parametrize(
    "body", [LABELLED, b" \r\n\n" + LABELLED, b"\xef\xbb\xbf" + LABELLED, b'[{"error":{}}]']
)
async def test_json_that_is_called_a_stream(upstream: Upstream, body: bytes, code: int) -> None:
    """JSON is byte for byte what it was, and finished, whatever its label says."""
    crumbs = [body[n : n + 1] for n in range(4)]
    framings = {
        CHAT: answer(code, body, [SSE]),
        MESSAGES: stream(*crumbs, body[4:], headers=[SSE], status=code),
        RESPONSES: raw(head(code, [SSE]) + body),
    }
    outcomes = {200: "ok", 201: "ok", 404: "client_error", 500: "upstream_error"}
    async with serving(to(upstream, "retry = { attempts = 1 }")) as proxy:
        for count, (path, step) in enumerate(framings.items(), 1):
            upstream.will(step)
            got = await call(proxy.port, chat(), path)
            assert (got.status, got.body, got.whole) == (code, body, True)
            record = await proxy.record(count)
            assert (record["stream"], record["outcome"]) == (False, outcomes[code])


async def test_json_that_is_called_a_stream_and_cut(upstream: Upstream) -> None:
    """It breaks off as a plain answer does: nothing is added, and the transfer is unfinished."""
    upstream.will(stream(LABELLED[:20], end="cut"))
    async with serving(to(upstream)) as proxy:
        got = await call(proxy.port, chat())
        assert (got.body, got.whole) == (LABELLED[:20], False)
        assert (await proxy.record())["outcome"] == "upstream_cut"


async def test_no_comment_into_json(upstream: Upstream) -> None:
    """No comment goes into it, not even before its first byte, unless a stream was asked for."""
    slow = parts(
        head(200, [SSE, CHUNKED]),
        SILENCE,
        chunk(b"\n"),
        SILENCE,
        chunk(LABELLED[:9]),
        SILENCE,
        chunk(LABELLED[9:]) + b"0\r\n\r\n",
    )
    upstream.will(slow)
    async with serving(to(upstream, KEEPALIVE)) as proxy:
        got = await call(proxy.port, chat())
        assert (got.body, got.whole) == (b"\n" + LABELLED, True)
        asked = await call(proxy.port, chat(stream=True))
        assert asked.body.startswith(COMMENT)
        assert asked.body.endswith(LABELLED)


@pytest.mark.parametrize("cuts", [[], [1, 2, 9]])
async def test_echo_into_json_that_is_called_a_stream(upstream: Upstream, cuts: list[int]) -> None:
    """The name that was asked for is put into it as into any plain answer."""
    body = b"\n\n" + LABELLED
    places = [0, *cuts, len(body)]
    pieces = [body[a:b] for a, b in itertools.pairwise(places)]
    upstream.will(stream(*pieces))
    async with serving(to(upstream) + "[server]\necho_model = true\n") as proxy:
        got = await call(proxy.port, chat("mine"))
        assert (got.body, got.whole) == (body.replace(b'"up/m"', b'"mine"'), True)


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
async def test_a_length_that_was_met_is_no_cut(upstream: Upstream, path: str) -> None:
    """A stream that is as long as it said is whole, also without its marker, or in the middle of an event."""
    async with serving(to(upstream)) as proxy:
        for count, body in enumerate((event(b"{}"), b"data: {}", b""), 1):
            upstream.will(answer(200, body, [SSE]))
            got = await call(proxy.port, chat(stream=True), path)
            assert (got.body, got.whole) == (body, True)
            assert (await proxy.record(count))["outcome"] == "ok"
        upstream.will(raw(head(200, [SSE, (b"Content-Length", b"99")]) + event(b"{}")))
        got = await call(proxy.port, chat(stream=True), path)
        assert not got.whole
        assert (await proxy.record(4))["outcome"] == "upstream_cut"


# Streams, however they are announced


@pytest.mark.parametrize(
    "coding", [b"none", b"identity", b"None", b"", b" identity , none", b"IDENTITY"]
)
@pytest.mark.parametrize("code", [200, 201])
async def test_what_can_be_read_is_checked(upstream: Upstream, coding: bytes, code: int) -> None:
    """A stream of any good status, in a coding that is none, ends with its marker or is cut."""
    headers: list[Pair] = [SSE, (b"Content-Encoding", coding)]
    async with serving(to(upstream)) as proxy:
        upstream.will(stream(event(b"{}"), headers=headers, status=code))
        got = await call(proxy.port, chat(stream=True))
        assert (got.status, got.whole) == (code, False)
        assert b"upstream_incomplete" in got.body
        upstream.will(stream(event(b"{}"), DONE, headers=headers, status=code))
        got = await call(proxy.port, chat(stream=True))
        assert (got.body, got.whole) == (event(b"{}") + DONE, True)


UNNAMED = {
    RESPONSES: (
        event(b'{"type":"response.created","response":{"error":null}}'),
        event(b'{"type":"response.completed","response":{"error":null}}'),
    ),
    MESSAGES: (event(b'{"type":"message_start"}'), event(b'{"type":"message_stop"}')),
}


@pytest.mark.parametrize("path", UNNAMED)
async def test_events_without_names(path: str) -> None:
    """A stream whose events say in their data alone what they are is whole, and no failure."""
    pieces = UNNAMED[path]
    async with Upstream() as a, Upstream() as b:
        a.will(stream(*pieces))
        toml = f'[upstreams.b]\nbase_url = "{b.url}"\n' + to(a, 'fallback = ["b/m"]')
        async with serving(toml) as proxy:
            for count in range(1, 8):
                got = await call(proxy.port, chat(stream=True), path)
                assert (got.body, got.whole) == (b"".join(pieces), True)
                assert (await proxy.record(count))["outcome"] == "ok"
    assert (len(a.requests), b.requests) == (7, [])


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([event(b'{"value":"a"}'), event(b'{"value":"b"}')], True),
        ([event(b'{"value":"a"}'), event(b'{"choices":[]}')], False),
        ([event(b'{"choices":[]}'), event(b'{"value":"a"}')], False),
        ([event(b'{"choices":null}')], False),
        ([event(b"{}")], False),
        ([event(b"a")], False),
        ([b": a comment\n\n"], False),
        ([], False),
    ],
)
async def test_a_form_of_the_vendors_own(
    upstream: Upstream, pieces: list[bytes], whole: bool
) -> None:
    """Where no event is a chunk of a chat, nobody knows how it ends: an end in good order is one, and a cut
    is still a cut.
    """
    async with serving(to(upstream)) as proxy:
        upstream.will(stream(*pieces, pause=0.01))
        got = await call(proxy.port, chat(stream=True), "/v1/completions")
        assert got.whole is whole
        assert (got.body == b"".join(pieces)) is whole
        upstream.will(stream(*pieces, pause=0.01, end="cut"))
        got = await call(proxy.port, chat(stream=True), "/v1/completions")
        assert not got.whole


def choice(index: int, reason: str = "null", field: str = "delta") -> bytes:
    text = '{"choices":[{"index":%d,"%s":{},"finish_reason":%s}]}' % (index, field, reason)  # noqa: UP031
    return event(text.encode())


STOP = '"stop"'


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([choice(0), choice(1), choice(0, STOP)], False),
        ([choice(1), choice(0), choice(0, STOP)], False),
        ([choice(0), choice(1), choice(2), choice(0, STOP), choice(1, STOP)], False),
        ([choice(0) + choice(1) + choice(0, STOP)], False),
        ([choice(0), choice(0, STOP), choice(1)], False),
        ([choice(0), choice(1), choice(0, STOP), choice(1, STOP)], True),
        ([choice(0), choice(1), choice(1, STOP), choice(0), choice(0, STOP)], True),
        ([choice(0), choice(0, STOP), event(b'{"choices":[{"index":0}],"usage":{}}')], True),
        ([choice(0), choice(0, STOP), choice(0)], True),
    ],
)
async def test_several_choices(
    upstream: Upstream, pieces: list[bytes], whole: bool, path: str
) -> None:
    """A stream of several choices has finished when each that was seen has, and a finished one stays so."""
    async with serving(to(upstream)) as proxy:
        for count, end in enumerate(("clean", "cut", "reset"), 1):
            upstream.will(stream(*pieces, end=end, pause=0.01))
            got = await call(proxy.port, chat(stream=True, n=3), path)
            assert got.whole is whole
            assert got.body.startswith(b"".join(pieces))
            assert (b'"error"' in got.body) is not whole
            record = await proxy.record(count)
            assert record["outcome"] == ("ok" if whole else "upstream_cut")


# What counts against an upstream


MISTAKES = {
    "a text": event(
        b'{"error":"inputs tokens + max_new_tokens must be <= 8","error_type":"validation"}'
    ),
    "a list": event(b'[{"error":{"code":400,"message":"x"}}]'),
    "a field": b'error: {"error":{"message":"x","type":"invalid_request_error"}}\n\n',
    "no marker": event(b'{"choices":[]}'),
}


@pytest.mark.parametrize("peek", ["", "peek = true"])
@pytest.mark.parametrize("form", MISTAKES)
async def test_what_does_not_open_the_breaker(form: str, peek: str) -> None:
    """Neither what a caller did wrong, said in a stream, nor an end in good order without a marker, is an
    upstream's failure.
    """
    async with Upstream() as a, Upstream() as b:
        a.will(stream(MISTAKES[form]))
        toml = f'[upstreams.b]\nbase_url = "{b.url}"\n' + to(a, 'fallback = ["b/m"]', peek)
        async with serving(toml) as proxy:
            for _ in range(12):
                got = await call(proxy.port, chat(stream=True))
                assert got.body.startswith(MISTAKES[form])
                assert got.whole is (form != "no marker")
    assert (len(a.requests), b.requests) == (12, [])


async def test_cuts_open_the_breaker() -> None:
    """Streams that are cut still do."""
    async with Upstream() as a, Upstream() as b:
        a.will(stream(event(b"{}"), end="cut"))
        toml = f'[upstreams.b]\nbase_url = "{b.url}"\n' + to(a, 'fallback = ["b/m"]')
        async with serving(toml) as proxy:
            for _ in range(7):
                await call(proxy.port, chat(stream=True))
    assert (len(a.requests), len(b.requests)) == (5, 2)


async def test_peek_at_a_dead_credential(upstream: Upstream) -> None:
    """Where the first event is looked at, one that refuses our credential is no caller's to see."""
    upstream.will(stream(event(b'{"error":{"message":"API key not valid: sk-x","code":400}}')))
    async with serving(to(upstream, "peek = true")) as proxy:
        got = await call(proxy.port, chat(stream=True))
        assert (got.status, got.code) == (502, "upstream_auth")
        assert b"sk-x" not in got.raw


# Half an event


HALF = event(b'{"model":"up/m","choices":[]}') + b'data: {"model":"up/m","cho'


@pytest.mark.parametrize(
    ("path", "end"), [(CHAT, "clean"), (CHAT, "reset"), (MESSAGES, "cut"), (RESPONSES, "cut")]
)
async def test_half_an_event(upstream: Upstream, path: str, end: str) -> None:
    """A stream that is cut in the middle of an event is left open there: not a byte is added."""
    upstream.will(stream(HALF, end=end))
    async with serving(to(upstream)) as proxy:
        got = await call(proxy.port, chat(stream=True), path)
        assert (got.body, got.whole) == (HALF, False)
        record = await proxy.record()
    assert record["outcome"] == "upstream_cut"
    assert record["attempts"][0]["maybe_billed"] is True


async def test_half_an_event_for_http_1_0(upstream: Upstream) -> None:
    """A client that cannot see an unfinished transfer is told all the same, behind an empty line."""
    upstream.will(stream(HALF, end="cut"))
    async with (
        serving(to(upstream)) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(chat(stream=True), version="1.0"))
        _, _, body = (await client.closed(5)).partition(b"\r\n\r\n")
    assert body.startswith(HALF + b'\n\ndata: {"error":')
    assert body.endswith(b"}\n\n")


@pytest.mark.parametrize("end", ["clean", "cut"])
async def test_half_an_event_with_another_name(upstream: Upstream, end: str) -> None:
    """What is held of an event, to put a name into it, is written as it came before it is left open."""
    upstream.will(stream(HALF[:-3], HALF[-3:], end=end, pause=0.05))
    async with serving(to(upstream) + "[server]\necho_model = true\n") as proxy:
        got = await call(proxy.port, chat("mine", stream=True))
    first, half = HALF[: HALF.index(b"\n\n") + 2], HALF[HALF.index(b"\n\n") + 2 :]
    assert (got.body, got.whole) == (first.replace(b"up/m", b"mine") + half, False)


async def test_heartbeats_of_a_plain_answer(upstream: Upstream) -> None:
    """Blank lines by which an upstream says that it is at work are not held back with the answer."""
    go = asyncio.Event()
    upstream.will(
        parts(
            head(200, [JSON, CHUNKED]) + chunk(b"\n"),
            0.05,
            chunk(b"\r\n"),
            go,
            chunk(b"\n" + LABELLED) + b"0\r\n\r\n",
        )
    )
    async with (
        serving(to(upstream) + "[server]\necho_model = true\n") as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await client.send(request(chat("mine")))
        async with asyncio.timeout(5):
            await client.reader.readuntil(b"\r\n\r\n1\r\n\n\r\n2\r\n\r\n\r\n")
        go.set()
        rest = await client.reader.readuntil(b"0\r\n\r\n")
    assert LABELLED.replace(b"up/m", b"mine") in rest
