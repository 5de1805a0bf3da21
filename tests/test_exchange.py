"""The record: one line for every request, with the same keys, which says what happened."""

import asyncio
import gzip
import re
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from proxy.exchange import Attempt, Ids, Phase
from tests.harness.client import Client, Pair, call, chat, request
from tests.harness.proxy import process, serving
from tests.harness.upstream import (
    DONE,
    JSON,
    Step,
    Upstream,
    answer,
    close,
    event,
    hang,
    stream,
)

KEYS = [
    "ts", "level", "event", "request_id", "trace_id", "key", "surface", "route", "upstream",
    "model", "upstream_model", "method", "path", "status", "stream", "outcome", "attempts",
    "first_byte_ms", "total_ms", "overhead_us", "bytes_in", "bytes_out", "tokens_in", "tokens_out",
    "tokens_cached", "cost_usd", "finish_reason", "upstream_request_id", "client_ip", "error",
]  # fmt: skip
ATTEMPT_KEYS = [
    "upstream", "model", "credential", "phase", "status", "error", "reason", "vendor_code",
    "vendor_type", "ms", "maybe_billed",
]  # fmt: skip
LATER = ["trace_id", "tokens_in", "tokens_out", "tokens_cached", "cost_usd", "finish_reason"]

SECRET = "sk-team-0123456789"
KEY: list[Pair] = [(b"Authorization", f"Bearer {SECRET}".encode())]


def routes(upstream: Upstream) -> str:
    """Return a routes file with every kind of name in it."""
    return f"""
        [server]
        name = "apps"
        [upstreams.up]
        base_url = "{upstream.url}"
        timeout = {{ first_byte = "200ms", idle = "200ms" }}
        [routes]
        "fast" = "up/slow-model"
        "up/*" = {{ upstream = "up" }}
        "patient" = {{ upstream = "up", timeout = {{ first_byte = "none" }} }}
        [keys]
        team = "{SECRET}"
        """


def assert_form(record: dict[str, Any]) -> None:
    """Hold *record* against what every record has: its keys in their order, and their types."""
    assert list(record) == KEYS
    for attempt in record["attempts"]:
        assert list(attempt) == ATTEMPT_KEYS
        assert attempt["ms"] >= 0
        assert isinstance(attempt["maybe_billed"], bool)
    assert re.fullmatch(r"req_[0-9a-f]{20,40}", record["request_id"])
    assert abs(datetime.now(UTC) - datetime.fromisoformat(record["ts"])) < timedelta(minutes=1)
    assert record["ts"].endswith("Z")
    assert record["event"] == "exchange"
    ours = (record["error"] or "").startswith(("upstream_", "proxy_shutdown"))
    assert record["level"] == ("warning" if ours else "info")
    assert isinstance(record["overhead_us"], int)
    assert 0 <= record["overhead_us"] <= record["total_ms"] * 1000 + 1
    if record["first_byte_ms"] is not None:
        assert 0 <= record["first_byte_ms"] <= record["total_ms"]
    for name in LATER:
        assert record[name] is None


async def test_ok(upstream: Upstream) -> None:
    """A finished exchange leaves what was asked, what was sent, who answered, and how long it took."""
    body = b'{"id":"x"}'
    upstream.will(answer(201, body, [JSON, (b"X-Request-Id", b"theirs-1")]))
    async with serving(routes(upstream)) as proxy:
        got = await call(proxy.port, chat("fast"), "/v1/chat/completions?a=b", KEY)
        record = await proxy.record()
    assert_form(record)
    (attempt,) = record["attempts"]
    assert attempt.pop("ms") <= record["total_ms"]
    assert attempt == {
        "upstream": "up",
        "model": "slow-model",
        "credential": None,
        "phase": "streaming",
        "status": 201,
        "error": None,
        "reason": None,
        "vendor_code": None,
        "vendor_type": None,
        "maybe_billed": False,
    }
    varying = ["ts", "attempts", "first_byte_ms", "total_ms", "overhead_us", "request_id", *LATER]
    assert record["request_id"].encode() == got.value(b"x-trunkline-id")
    assert {name: value for name, value in record.items() if name not in varying} == {
        "level": "info",
        "event": "exchange",
        "key": "team",
        "surface": "apps",
        "route": "fast",
        "upstream": "up",
        "model": "fast",
        "upstream_model": "slow-model",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 201,
        "stream": False,
        "outcome": "ok",
        "bytes_in": len(chat("fast")),
        "bytes_out": len(body),
        "upstream_request_id": "theirs-1",
        "client_ip": "127.0.0.1",
        "error": None,
    }


async def test_stream(upstream: Upstream) -> None:
    """Of a stream the first byte and the last are timed, and its data counted without our framing."""
    upstream.will(stream(event(b"{}"), DONE, pause=0.1))
    async with serving(routes(upstream)) as proxy:
        await call(proxy.port, chat("up/m", stream=True), headers=KEY)
        record = await proxy.record()
    assert_form(record)
    assert record["stream"] is True
    assert record["bytes_out"] == len(event(b"{}") + DONE)
    assert record["total_ms"] >= 100
    assert record["first_byte_ms"] < 100
    assert record["overhead_us"] < 100_000
    assert (record["route"], record["upstream_model"]) == ("up/*", "m")


async def test_waiting_is_not_overhead(upstream: Upstream) -> None:
    """The time that the upstream or the client took is not counted as ours."""

    async def step(conn: Any, seen: Any) -> None:
        await asyncio.sleep(0.15)
        await answer()(conn, seen)

    upstream.will(step)
    sent = request(chat("fast"), headers=KEY)
    async with serving(routes(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(sent[:-1])
        await asyncio.sleep(0.15)
        await client.send(sent[-1:])
        await client.answer()
        record = await proxy.record()
    assert record["total_ms"] >= 300
    assert record["attempts"][0]["ms"] >= 150
    assert record["overhead_us"] < 100_000


async def test_waits_between_attempts_are_not_overhead() -> None:
    """A wait before another attempt is nobody's work: neither ours, nor that of the attempt before it."""
    async with Upstream() as up:
        up.will(answer(503, b"{}", [JSON, (b"retry-after-ms", b"300")]), answer())
        async with serving(routes(up)) as proxy:
            got = await call(proxy.port, chat("fast"), headers=KEY)
            record = await proxy.record()
    assert got.status == 200
    first, second = record["attempts"]
    assert record["total_ms"] >= 300
    assert first["ms"] < 150
    assert second["ms"] < 150
    assert record["overhead_us"] < 100_000


@pytest.mark.parametrize("first", [b'data: {"error":{"code":503}}\n\n', b"data: {}\n\n"])
async def test_peeking_is_not_overhead(first: bytes) -> None:
    """To wait for the first event of a stream, at which we peek, is to wait for the upstream; where another
    one is asked then, the attempt was over when its answer had begun.
    """
    late = [*(first[at : at + 1] for at in range(3)), first[3:]]
    async with Upstream() as up, Upstream() as other:
        up.will(stream(*late, DONE, pause=0.1))
        other.will(stream(DONE))
        file = f"""
            [upstreams]
            up = {{ base_url = "{up.url}" }}
            other = {{ base_url = "{other.url}" }}
            [routes.m]
            upstream = "up"
            fallback = ["other/m"]
            peek = true
            """
        async with serving(file) as proxy:
            await call(proxy.port, chat("m", stream=True))
            record = await proxy.record()
    assert record["first_byte_ms"] >= 250
    assert record["overhead_us"] < 100_000
    if b"error" in first:
        assert len(record["attempts"]) == 2
        assert all(attempt["ms"] < 150 for attempt in record["attempts"])


CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "refused": (
        answer(),
        {"headers": []},
        {"outcome": "refused", "status": 401, "error": "invalid_api_key", "key": None, "phase": None},
    ),
    "unknown path": (
        answer(),
        {"path": "/.env", "method": "GET"},
        {"outcome": "client_error", "status": 404, "error": "not_found", "path": "/.env", "key": None},
    ),
    "unknown model": (
        answer(),
        {"body": chat("x")},
        {"outcome": "client_error", "status": 404, "error": "model_not_found", "model": "x", "route": None},
    ),
    "upstream's 400": (
        answer(400),
        {},
        {"outcome": "client_error", "status": 400, "error": None, "phase": "streaming"},
    ),
    "upstream's 429": (
        answer(429),
        {},
        {"outcome": "upstream_error", "status": 429, "error": None, "phase": "streaming"},
    ),
    "upstream's 500": (
        answer(500),
        {},
        {"outcome": "upstream_error", "status": 500, "error": None, "phase": "streaming"},
    ),
    "our credential": (
        answer(401),
        {},
        {"outcome": "upstream_error", "status": 502, "error": "upstream_auth", "phase": "answered", "billed": False},
    ),
    "closed": (
        close(),
        {},
        {"outcome": "upstream_error", "status": 502, "error": "upstream_disconnected", "phase": "sent", "billed": True},
    ),
    "late": (
        hang(),
        {},
        {"outcome": "timeout", "status": 504, "error": "upstream_timeout", "phase": "sent", "billed": True},
    ),
    "cut": (
        stream(event(b"{}"), end="cut"),
        {},
        {"outcome": "upstream_cut", "status": 200, "error": "upstream_disconnected", "phase": "streaming", "billed": True},
    ),
    "incomplete": (
        stream(event(b"{}")),
        {},
        {"outcome": "upstream_cut", "status": 200, "error": "upstream_incomplete", "phase": "streaming", "billed": True},
    ),
    "silent": (
        stream(event(b"{}"), end="hang"),
        {},
        {"outcome": "timeout", "status": 200, "error": "upstream_idle_timeout", "phase": "streaming", "billed": True},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("step", "send", "expected"), CASES.values(), ids=list(CASES))
async def test_outcomes(
    upstream: Upstream, step: Any, send: dict[str, Any], expected: dict[str, Any]
) -> None:
    """A record says how an exchange ended, how far its attempt got, and whether it may be billed."""
    upstream.will(step)
    async with serving(routes(upstream)) as proxy:
        await call(proxy.port, **{"body": chat("fast", stream=True), "headers": KEY, **send})
        record = await proxy.record()
    assert_form(record)
    expected = dict(expected)
    phase, billed = expected.pop("phase", None), expected.pop("billed", False)
    assert {name: record[name] for name in expected} == expected
    if phase is None:
        assert record["attempts"] == []
        assert record["upstream"] is None
    else:
        (attempt,) = record["attempts"]
        assert (attempt["phase"], attempt["maybe_billed"]) == (phase, billed)
        assert attempt["error"] == record["error"]


@pytest.mark.parametrize("where", ["wait", "stream"])
async def test_client_gone(upstream: Upstream, where: str) -> None:
    """A client that left is named as the reason, with how far it had got."""
    upstream.will(hang() if where == "wait" else stream(event(b"{}"), end="hang"))
    toml = routes(upstream).replace("200ms", "30s")
    async with serving(toml) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat("patient", stream=True), headers=KEY))
            async with asyncio.timeout(5):
                if where == "stream":
                    await client.reader.readuntil(b"{}\n\n")
                while not upstream.requests:
                    await asyncio.sleep(0.005)
        record = await proxy.record()
    assert_form(record)
    assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
    (attempt,) = record["attempts"]
    assert (attempt["error"], attempt["maybe_billed"]) == ("client_gone", True)
    if where == "wait":
        assert (record["status"], record["first_byte_ms"]) == (499, None)
        assert attempt["phase"] == "sent"
    else:
        assert (record["status"], record["bytes_out"]) == (200, len(event(b"{}")))
        assert attempt["phase"] == "streaming"


async def test_shutdown(upstream: Upstream) -> None:
    """An exchange that our leaving has ended says so, and so does the answer that it got."""
    upstream.will(stream(event(b"{}"), end="hang"), hang())
    toml = "[server]\ndrain = '200ms'\n" + routes(upstream).replace("[server]", "")
    toml = toml.replace('200ms" }', '30s" }').replace('idle = "200ms"', 'idle = "30s"')
    async with process(toml) as proxy:
        async with (
            await Client.connect(proxy.port) as streaming,
            await Client.connect(proxy.port) as waiting,
        ):
            await streaming.send(request(chat("patient", stream=True), headers=KEY))
            await streaming.reader.readuntil(b"{}\n\n")
            await waiting.send(request(chat("patient"), headers=KEY))
            async with asyncio.timeout(5):
                while len(upstream.requests) < 2:
                    await asyncio.sleep(0.005)
            assert proxy.process is not None
            proxy.process.terminate()
            got = await waiting.answer()
            assert (got.status, got.code) == (503, "proxy_shutdown")
            last = await streaming.closed()
            assert b'"code":"proxy_shutdown"' in last
            assert not last.endswith(b"0\r\n\r\n")
            await proxy.process.wait()
        records = proxy.records()
        assert len(records) == 2
        for record in records:
            assert_form(record)
            assert (record["outcome"], record["error"]) == ("shutdown", "proxy_shutdown")


async def test_one_line_each(upstream: Upstream) -> None:
    """However many requests, of whatever kind, on however many connections: as many lines as
    answers, under the same ids.
    """
    told = []
    async with serving(routes(upstream)) as proxy:
        for number in range(5):
            async with await Client.connect(proxy.port) as client:
                sent = request(chat("fast"), headers=KEY) + request(path="/x", method="GET")
                await client.send(sent * number)
                told += [await client.answer() for _ in range(2 * number)]
                await client.send(b"nonsense\r\n\r\n")
                told.append(await client.answer())
        await proxy.record(25)
        for answered, record in zip(told, proxy.records(), strict=True):
            assert_form(record)
            assert answered.status == record["status"]
            assert answered.value(b"x-trunkline-id") == record["request_id"].encode()


async def test_unix_socket_has_no_address(upstream: Upstream) -> None:
    """Over a unix socket nobody has an address."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory, "s"))
        async with serving(routes(upstream), listen=f"unix:{path}") as proxy:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(request(path="/nowhere", method="GET"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")
            writer.transport.abort()
            assert (await proxy.record())["client_ip"] is None


def test_maybe_billed() -> None:
    """An attempt may be billed if it was sent and its answer did not arrive whole."""
    phases: list[Phase] = ["unsent", "sent", "answered", "streaming"]
    errors = [None, "upstream_disconnected"]
    told = [
        Attempt("up", 0.0, phase=phase, error=error).maybe_billed
        for phase in phases
        for error in errors
    ]
    assert told == [False, False, False, True, False, False, False, True]


def test_ids() -> None:
    """Ids of one maker sort in the order they were made, and those of two makers differ."""
    first, second = Ids(), Ids()
    made = [first() for _ in range(1_000)]
    assert made == sorted(made)
    assert len({*made, *(second() for _ in range(1_000))}) == 2_000
    assert {len(identity) for identity in made} == {30}


# What an operator looks for

TWO_CREDENTIALS = """
    [upstreams.first]
    base_url = "{url}"
    credential = ["${{FIRST_KEY}}", "sk-second-0123456789"]
    [upstreams.last]
    base_url = "{url}"
    credential = "${{LAST_KEY}}"
    [routes]
    m = {{ upstream = "first", model = "one", fallback = "last/two" }}
    [keys]
    team = "{key}"
    gone = {{ secret = "sk-gone-0123456789ab", expires = 2020-01-01 }}
    """
VARIABLES = {"FIRST_KEY": "sk-first-0123456789", "LAST_KEY": "sk-last-0123456789"}


async def test_attempts_say_what_with(upstream: Upstream) -> None:
    """Each attempt names the model that was sent, and where its credential comes from, never its text."""
    refused = answer(401, b"{}")
    upstream.will(refused, refused, answer())
    toml = TWO_CREDENTIALS.format(url=upstream.url, key=SECRET)
    async with serving(toml, VARIABLES) as proxy:
        assert (await call(proxy.port, chat("m"), headers=KEY)).status == 200
        record = await proxy.record()
        assert "0123456789" not in proxy.log.read_text()
    told = [(one["upstream"], one["model"], one["credential"]) for one in record["attempts"]]
    assert told == [
        ("first", "one", "FIRST_KEY"),
        ("first", "one", "upstreams.first.credential[1]"),
        ("last", "two", "LAST_KEY"),
    ]


async def test_no_credential_of_ours(upstream: Upstream) -> None:
    """An attempt with a credential of the caller's, or with none, or that carries no model, says so."""
    toml = f"""
        [server]
        auth = "passthrough"
        [upstreams.up]
        base_url = "{upstream.url}"
        credential = "sk-ours-0123456789"
        passthrough = true
        [routes]
        m = "up/m"
        [unrouted]
        files = "up"
        """
    upstream.will(answer())
    async with serving(toml) as proxy:
        await call(proxy.port, chat("m"), headers=KEY)
        await call(proxy.port, path="/v1/files", method="GET", headers=KEY)
        await proxy.record(2)
        told = [record["attempts"][0] for record in proxy.records()]
    assert [(one["model"], one["credential"]) for one in told] == [("m", None), (None, None)]


async def test_expired_key(upstream: Upstream) -> None:
    """Of a key whose time is over the log says the name, though its request is nobody's."""
    toml = TWO_CREDENTIALS.format(url=upstream.url, key=SECRET)
    async with serving(toml, VARIABLES) as proxy:
        header = (b"x-api-key", b"sk-gone-0123456789ab")
        got = await call(proxy.port, chat("m"), headers=[header])
        record = await proxy.record()
    assert (got.status, record["key"], record["error"]) == (401, "gone", "invalid_api_key")


@pytest.mark.parametrize(
    ("step", "level"),
    [
        (answer(), "info"),
        (answer(400), "info"),
        (answer(500), "info"),  # which is the upstream's own, and passed on
        (answer(404), "info"),
        (close(), "warning"),
        (hang(), "warning"),
        (answer(401), "warning"),
        (stream(event(b"{}"), end="cut"), "warning"),
        (stream(event(b"{}"), end="hang"), "warning"),
    ],
    ids=["ok", "400", "500", "404", "closed", "late", "our credential", "cut", "silent"],
)
async def test_level(upstream: Upstream, step: Step, level: str) -> None:
    """What we answer with 5xx, or end a stream with, is a warning; what passes, and what callers do, is none."""
    upstream.will(step)
    async with serving(routes(upstream)) as proxy:
        await call(proxy.port, chat("fast"), headers=KEY)
        await call(proxy.port, b"{", headers=KEY)
        await call(proxy.port, path="/livez", method="GET")
        await proxy.record(2)
        assert [record["level"] for record in proxy.records()] == [level, "info"]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/v1/chat/completions"])
async def test_bytes_of_our_own(upstream: Upstream, path: str, method: str) -> None:
    """What we answer ourselves counts as it went out: an error too, and nothing of what HEAD leaves out."""
    async with serving(routes(upstream)) as proxy:
        got = await call(proxy.port, path=path, method=method, headers=KEY)
        record = await proxy.record()
    assert record["bytes_out"] == len(got.body)
    assert (len(got.body) > 0) is (method == "GET")


async def test_bytes_that_are_put_in(upstream: Upstream) -> None:
    """What is put into an answer counts, as does what another name makes of it: all that the client has."""
    upstream.will(stream(event(b'{"model":"slow-model","choices":[]}'), end="cut"))
    toml = routes(upstream).replace('name = "apps"', "echo_model = true")
    async with serving(toml) as proxy:
        got = await call(proxy.port, chat("fast", stream=True), headers=KEY)
        record = await proxy.record()
    assert b'"model":"fast"' in got.body
    assert b"upstream_" in got.body  # our own last event
    assert record["bytes_out"] == len(got.body)


ERROR = b'{"error":{"message":"canary %d","type":"invalid_request_error","code":"too_odd","param":null}}'


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422, 429])
@pytest.mark.parametrize("coding", ["plain", "gzip"])
async def test_what_the_vendor_calls_it(upstream: Upstream, status: int, coding: str) -> None:
    """Of a vendor's 4xx the log has code and type, also where it is passed on unread, and not its message."""
    body, headers = ERROR % status, [JSON]
    if coding == "gzip":
        body, headers = gzip.compress(body), [JSON, (b"Content-Encoding", b"gzip")]
    upstream.will(answer(status, body, headers))
    async with serving(routes(upstream)) as proxy:
        got = await call(proxy.port, chat("fast"), headers=KEY)
        record = await proxy.record()
        assert "canary" not in proxy.log.read_text()
    assert (got.status, got.body) == (status, body)
    told = [(one["vendor_code"], one["vendor_type"]) for one in record["attempts"]]
    assert told == [("too_odd", "invalid_request_error")] * len(told)
    assert told


async def test_a_vendor_that_is_slow_to_say(upstream: Upstream) -> None:
    """A 4xx whose body comes late is not waited for beyond what it was held for before."""
    upstream.will(stream(ERROR % 404, status=404, headers=[JSON], end="hang"))
    async with serving(routes(upstream)) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat("fast"), headers=KEY))
        await client.reader.readuntil(b"\r\n\r\n")
