"""Every error that Trunkline authors: status, names, headers, body, and what becomes of the connection."""

import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from proxy import errors
from proxy.errors import GRAVE, KINDS, Kind, printable
from proxy.upstream import asked
from tests.conftest import routes_to
from tests.harness.client import Answer, Client, Pair, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import (
    SSE,
    Step,
    Upstream,
    answer,
    close,
    event,
    hang,
    raw,
    reset,
    stream,
)

TEAM: Pair = (b"Authorization", b"Bearer sk-team-0123456789")
NARROW: Pair = (b"Authorization", b"Bearer sk-narrow-0123456789")
OLD: Pair = (b"Authorization", b"Bearer sk-old-0123456789")
WRONG: Pair = (b"Authorization", b"Bearer sk-wrong-0123456789")

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
ANTHROPIC = {
    "authentication_error": "authentication_error",
    "permission_error": "permission_error",
    "invalid_request_error": "invalid_request_error",
    "server_error": "api_error",
    "upstream_error": "api_error",
    "timeout_error": "api_error",
}
"""Anthropic's names for our types, where the status does not have one of its own."""
ANTHROPIC_BY_STATUS = {404: "not_found_error", 413: "request_too_large"}

OUTCOMES = {
    "authentication_error": "refused",
    "permission_error": "refused",
    "invalid_request_error": "client_error",
    "upstream_error": "upstream_error",
    "timeout_error": "timeout",
}

_ID = re.compile(rb"req_[0-9a-f]{20,40}")


def assert_authored(
    got: Answer,
    status: int,
    kind: str,
    code: str,
    *,
    headers: dict[bytes, bytes] | None = None,
    param: str | None = None,
    closes: bool = False,
    anthropic: bool = False,
) -> None:
    """Hold *got* against a row of the table of errors: all of that, and nothing else."""
    expected = {
        b"Content-Type": b"application/json",
        b"Content-Length": b"%d" % len(got.body),
        **(headers or {}),
    }
    if closes:
        expected[b"Connection"] = b"close"
    identity = got.value(b"x-trunkline-id")
    assert identity is not None
    assert _ID.fullmatch(identity)
    for name in (b"x-trunkline-id", b"x-request-id", b"request-id"):
        expected[name] = identity
    assert got.status == status, got.raw
    assert dict(got.headers) == expected
    assert len(got.headers) == len(expected)
    assert got.whole
    body = got.json()
    if anthropic:
        expected_type = ANTHROPIC_BY_STATUS.get(status) or ANTHROPIC[kind]
        message = body["error"]["message"]
        assert body == {
            "type": "error",
            "error": {"type": expected_type, "message": message},
            "request_id": identity.decode(),
        }
    else:
        message = body["error"]["message"]
        assert body == {"error": {"message": message, "type": kind, "param": param, "code": code}}
    assert message.isprintable()
    assert message


@dataclass(frozen=True)
class Row:
    """One row: what is sent, what the upstream does about it, and what must come back."""

    name: str
    status: int
    kind: str
    code: str
    send: dict[str, Any] = field(default_factory=dict)
    step: Callable[[], Step] | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    param: str | None = None
    closes: bool = False

    def bytes(self, path: str) -> bytes:
        options = {"body": chat(), "headers": [TEAM], "path": path, **self.send}
        return request(**options)


NO_RETRY = {b"x-should-retry": b"false"}
BEARER = {b"WWW-Authenticate": b"Bearer", **NO_RETRY}
INVALID = "invalid_request_error"

ROWS = [
    # The caller's doing.
    Row("no key", 401, "authentication_error", "invalid_api_key", {"headers": []}, headers=BEARER),
    Row(
        "key", 401, "authentication_error", "invalid_api_key", {"headers": [WRONG]}, headers=BEARER
    ),
    Row("old", 401, "authentication_error", "invalid_api_key", {"headers": [OLD]}, headers=BEARER),
    Row(
        "not allowed",
        403,
        "permission_error",
        "model_not_allowed",
        {"headers": [NARROW], "body": chat("tls")},
        param="model",
    ),
    Row("unknown model", 404, INVALID, "model_not_found", {"body": chat("x")}, param="model"),
    Row("GET", 405, INVALID, "method_not_allowed", {"method": "GET"}, headers={b"Allow": b"POST"}),
    Row("PUT", 405, INVALID, "method_not_allowed", {"method": "PUT"}, headers={b"Allow": b"POST"}),
    Row("not JSON", 400, INVALID, "invalid_json", {"body": b"model=m"}),
    Row("empty body", 400, INVALID, "invalid_json", {"body": b""}),
    Row("cut JSON", 400, INVALID, "invalid_json", {"body": chat()[:-1]}),
    Row("trailing", 400, INVALID, "invalid_json", {"body": chat() + b"{}"}),
    Row("not an object", 400, INVALID, "invalid_json", {"body": b"[]"}),
    Row("deep", 400, INVALID, "invalid_json", {"body": b'{"a":' + b"[" * 30_000}),
    Row("number", 400, INVALID, "invalid_model", {"body": b'{"model":1}'}, param="model"),
    Row("null", 400, INVALID, "invalid_model", {"body": b'{"model":null}'}, param="model"),
    Row("none", 400, INVALID, "invalid_model", {"body": b"{}"}, param="model"),
    Row(
        "two models",
        400,
        INVALID,
        "invalid_model",
        {"body": b'{"model":"m","model":"m"}'},
        param="model",
    ),
    Row(
        "two models, one escaped",
        400,
        INVALID,
        "invalid_model",
        {"body": b'{"model":"m","mod\\u0065l":"m"}'},
        param="model",
    ),
    Row("malformed", 400, INVALID, "bad_request", {"host": b"x/?"}, closes=True),
    Row(
        "encoded",
        415,
        INVALID,
        "unsupported_encoding",
        {"headers": [TEAM, (b"Content-Encoding", b"br")]},
        headers={b"Accept-Encoding": b"gzip, deflate, zstd"},
    ),
    Row(
        "expectation",
        417,
        INVALID,
        "expectation_failed",
        {"headers": [TEAM, (b"Expect", b"a miracle")]},
    ),
    Row(
        "too large",
        413,
        INVALID,
        "request_too_large",
        {"body": chat(text="x" * 65536)},
        closes=True,
    ),
    # The upstream's doing, or its operator's.
    Row("DNS", 502, "upstream_error", "upstream_dns", {"body": chat("lost")}),
    Row("refused", 502, "upstream_error", "upstream_connect", {"body": chat("refusing")}),
    Row("TLS", 502, "upstream_error", "upstream_tls", {"body": chat("tls")}),
    Row("closed", 502, "upstream_error", "upstream_disconnected", {}, close, NO_RETRY),
    Row("reset", 502, "upstream_error", "upstream_disconnected", {}, reset, NO_RETRY),
    Row(
        "half a head",
        502,
        "upstream_error",
        "upstream_disconnected",
        {},
        lambda: raw(b"HTTP/1.1 200 OK\r\nX-Upstr"),
        NO_RETRY,
    ),
    Row(
        "only 1xx",
        502,
        "upstream_error",
        "upstream_protocol",
        {},
        lambda: raw(b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        NO_RETRY,
    ),
    Row(
        "not HTTP",
        502,
        "upstream_error",
        "upstream_protocol",
        {},
        lambda: raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        NO_RETRY,
    ),
    Row(
        "101",
        502,
        "upstream_error",
        "upstream_protocol",
        {},
        lambda: raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", then="hang"),
        NO_RETRY,
    ),
    Row(
        "redirect",
        502,
        "upstream_error",
        "upstream_protocol",
        {},
        lambda: answer(307, b"", [(b"Location", b"http://127.0.0.1:1/v1/chat/completions")]),
        NO_RETRY,
    ),
    Row(
        "our credential",
        502,
        "upstream_error",
        "upstream_auth",
        {},
        lambda: answer(401, b'{"error":"wrong key sk-upstream-secret"}'),
        NO_RETRY,
    ),
    Row("late", 504, "timeout_error", "upstream_timeout", {}, hang, NO_RETRY),
]


@contextmanager
def deaf() -> Iterator[int]:
    """A port on which nobody listens, for as long as the context lasts."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def unknown_authority() -> ssl.SSLContext:
    """Make the context of a server whose certificate nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
async def failing(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy on which every row of the table can be had."""
    async with Upstream(tls=unknown_authority()) as tls:
        with deaf() as port:
            toml = f"""
                [server]
                max_body = "64KiB"
                [upstreams.up]
                base_url = "{upstream.url}"
                credential = "sk-upstream-secret"
                timeout = {{ first_byte = "200ms" }}
                [routes]
                "m" = "up/m"
                "lost" = {{ base_url = "http://nowhere.invalid/v1" }}
                "refusing" = {{ base_url = "http://127.0.0.1:{port}/v1" }}
                "tls" = {{ base_url = "{tls.url}" }}
                "dormant" = "openai/gpt-4o"
                [keys]
                team = "sk-team-0123456789"
                narrow = {{ secret = "sk-narrow-0123456789", models = ["m"] }}
                old = {{ secret = "sk-old-0123456789", expires = 2020-01-01 }}
                """
            async with serving(toml) as proxy:
                yield proxy
        tls.errors.clear()  # of its handshakes


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_row(failing: Proxy, upstream: Upstream, row: Row, path: str) -> None:
    """An error is told in its caller's dialect, and the connection is closed only where it must be."""
    if row.step is not None:
        upstream.will(row.step())
    async with await Client.connect(failing.port) as client:
        await client.send(row.bytes(path))
        got = await client.answer()
        assert_authored(
            got,
            row.status,
            row.kind,
            row.code,
            headers=row.headers,
            param=row.param,
            closes=row.closes,
            anthropic=path == MESSAGES,
        )
        for secret in (b"sk-", b"127.0.0.1", b"nowhere", b"Traceback", b"Error("):
            assert secret not in got.body
        if row.closes:
            assert await client.closed() == b""
        else:
            upstream.will(answer())
            await client.send(request(chat(), headers=[TEAM]))
            assert (await client.answer()).status == 200


async def test_rows_are_logged(failing: Proxy, upstream: Upstream) -> None:
    """Every error leaves one line, which says the same as the answer did, and whose doing it was."""
    for row in ROWS:
        if row.step is not None:
            upstream.will(row.step())
        async with await Client.connect(failing.port) as client:
            await client.send(row.bytes(CHAT))
            await client.answer()
    await failing.record(len(ROWS))
    logged = [(r["status"], r["error"], r["outcome"]) for r in failing.records()]
    assert logged == [(row.status, row.code, OUTCOMES[row.kind]) for row in ROWS]


async def test_dormant_route(failing: Proxy) -> None:
    """A route whose variable is not set says which one that is."""
    async with await Client.connect(failing.port) as client:
        await client.send(request(chat("dormant"), headers=[TEAM]))
        got = await client.answer()
        assert_authored(got, 503, "upstream_error", "not_configured")
        assert "OPENAI_API_KEY" in got.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "anthropic"),
    [
        ("/.env", False),
        ("/v2/chat/completions", False),
        ("/v1/chat/completions/", False),
        ("/v1/Chat/Completions", False),
        ("/v1/chat%2Fcompletions", False),
        ("/v1/files", False),
        ("/health/", False),
        ("/v1/messages/batches", True),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_unknown_path(failing: Proxy, path: str, anthropic: bool, method: str) -> None:
    """What is not an endpoint is not found, whatever the method, without a key and without a body."""
    async with await Client.connect(failing.port) as client:
        for _ in range(2):
            await client.send(request(path=path, method=method))
            got = await client.answer()
            assert_authored(got, 404, INVALID, "not_found", anthropic=anthropic)


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        (CHAT, "GET", b"POST"),
        (CHAT, "OPTIONS", b"POST"),
        ("/v1/models", "POST", b"GET, HEAD"),
        ("/v1/models/m", "DELETE", b"GET, HEAD"),
        ("/health", "POST", b"GET, HEAD"),
    ],
)
async def test_method_comes_before_key_and_body(
    failing: Proxy, path: str, method: str, allow: bytes
) -> None:
    """A wrong method is told at once: without a key, and before a body that has not come yet."""
    async with await Client.connect(failing.port) as client:
        await client.send(
            request(path=path, method=method, headers=[(b"Content-Length", b"9")], length=False)
        )
        got = await client.answer(seconds=2)
        assert_authored(got, 405, INVALID, "method_not_allowed", headers={b"Allow": allow})
        await client.send(b"123456789" + request(path="/health", method="GET"))
        assert (await client.answer()).body == b'{"status":"ok"}'


@pytest.mark.parametrize(
    "send",
    [
        {"body": chat("x")},
        {"body": chat("dormant")},
        {"body": b"not JSON"},
        {"body": b"", "headers": [WRONG, (b"Content-Encoding", b"br")]},
        {"path": "/v1/models", "method": "GET"},
        {"path": "/v1/models/x", "method": "GET"},
        {"path": "/v1/responses/compact", "body": b"{}"},
    ],
)
async def test_key_comes_before_model(failing: Proxy, send: dict[str, Any]) -> None:
    """Without a valid key nothing is said about models, bodies or what is configured."""
    async with await Client.connect(failing.port) as client:
        await client.send(request(**send))
        got = await client.answer()
        kind = "authentication_error"
        assert_authored(got, 401, kind, "invalid_api_key", headers=BEARER)
        assert b"dormant" not in got.body


async def test_suggestion_is_what_the_caller_may_see(failing: Proxy) -> None:
    """Nearest names are suggested to a caller out of those that its own key may use."""
    async with await Client.connect(failing.port) as client:
        await client.send(request(chat("refusin"), headers=[TEAM]))
        assert '"refusing"' in (await client.answer()).json()["error"]["message"]
        await client.send(request(chat("refusin"), headers=[NARROW]))
        assert "refusing" not in (await client.answer()).json()["error"]["message"]


RELAYED = [304, 400, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 520, 529]


@pytest.mark.parametrize("status", RELAYED)
async def test_relayed(upstream: Upstream, status: int) -> None:
    """Any other error is the upstream's own: status, reason, headers and body pass as they came."""
    page = b"" if status == 304 else b"<html>\r\nno\xff</html>"
    headers = [
        (b"retry-AFTER", b"7"),
        (b"x-should-retry", b"true"),
        (b"Content-Type", b"text/html"),
    ]

    async def step(conn: Any, seen: Any) -> None:
        lines = [b"HTTP/1.1 %d It Says" % status] + [b"%b: %b" % pair for pair in headers]
        if page:
            lines.append(b"Content-Length: %d" % len(page))
        await conn.send(b"\r\n".join(lines) + b"\r\n\r\n" + page)

    upstream.will(step)
    once = routes_to(upstream, "retry = { attempts = 1 }")
    async with serving(once) as proxy, await Client.connect(proxy.port) as client:
        for _ in range(2):
            await client.send(request(chat()))
            got = await client.answer()
            assert got.head.startswith(b"HTTP/1.1 %d It Says\r\n" % status)
            assert got.body == page
            length = [(b"Content-Length", b"%d" % len(page))] if page else []
            assert got.headers[: 3 + len(length)] == headers + length
            ours = dict(got.headers[3 + len(length) :])
            assert set(ours) == {b"x-trunkline-id", b"x-request-id"}
    assert len(upstream.requests) == 2


BROKEN = [
    (CHAT, b'data: {"error":', "upstream_error"),
    (MESSAGES, b"event: error\ndata: ", "api_error"),
    ("/v1/responses", b"event: error\ndata: ", None),
]


@pytest.mark.parametrize(("path", "prefix", "kind"), BROKEN, ids=["chat", "messages", "responses"])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("cut", "upstream_disconnected"),
        ("clean", "upstream_incomplete"),
        ("hang", "upstream_idle_timeout"),
    ],
)
async def test_after_the_first_byte(
    upstream: Upstream, path: str, prefix: bytes, kind: str | None, end: str, code: str
) -> None:
    """A stream that breaks ends in an event that its SDK parses, and is left unfinished."""
    upstream.will(stream(event(b'{"choices":[]}'), headers=[SSE], end=end))
    toml = f"""
        [routes."*"]
        base_url = "{upstream.url}"
        timeout = {{ idle = "150ms" }}
        """
    async with serving(toml) as proxy, await Client.connect(proxy.port) as client:
        await client.send(request(chat(stream=True), path=path))
        got = await client.answer()
        last = got.chunks[-1]
        assert last.startswith(prefix)
        assert last.endswith(b"\n\n")
        told = orjson.loads(last.partition(b"data: ")[2])
        identity = got.value(b"x-trunkline-id")
        assert identity is not None
        if path == CHAT:
            assert told["error"]["code"] == code
            assert told["error"]["type"] == ("timeout_error" if end == "hang" else kind)
        elif path == MESSAGES:
            message = told["error"]["message"]
            error = {"type": kind, "message": message}
            assert told == {"type": "error", "error": error, "request_id": identity.decode()}
        else:
            assert told == {
                "type": "error",
                "code": code,
                "message": told["message"],
                "param": None,
            }
        assert b"[DONE]" not in got.body
        assert not got.whole
        record = await proxy.record()
        assert record["status"] == 200
        assert record["error"] == code


async def test_internal_error(
    failing: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own fault is a 500 that says nothing; the traceback is in the log, under the same id."""

    def fault(*_: object) -> None:
        raise ZeroDivisionError("the reason")

    monkeypatch.setattr(asked, "address", fault)
    async with await Client.connect(failing.port) as client:
        await client.send(request(chat(), headers=[TEAM]))
        got = await client.answer()
        assert_authored(got, 500, "server_error", "internal_error", closes=True)
        assert b"reason" not in got.body
        assert await client.closed() == b""
    record = await failing.record()
    assert (record["status"], record["error"]) == (500, "internal_error")
    told = next(line for line in failing.lines() if line["event"] == "internal_error")
    assert told["request_id"] == record["request_id"]
    assert "ZeroDivisionError: the reason" in told["exception"]
    assert upstream.requests == []


async def test_ids_are_unique(failing: Proxy) -> None:
    """No two answers have the same id."""
    async with await Client.connect(failing.port) as client:
        await client.send(request(path="/nowhere", method="GET") * 50)
        answers = [await client.answer() for _ in range(50)]
    assert len({got.value(b"x-trunkline-id") for got in answers}) == 50


@given(st.text())
def test_printable(text: str) -> None:
    """A stranger's text is shown on one line, as valid Unicode, and never at length."""
    shown = printable(text)
    shown.encode()
    assert shown.isprintable()
    assert len(shown) <= 128
    assert shown == text or not (text.isprintable() and len(text) <= 128)


def test_table() -> None:
    """Each kind has one row in the table, and each code one meaning, in words that a stranger may read."""
    assert {value for value in vars(errors).values() if isinstance(value, Kind)} == {*KINDS}
    meanings = {kind.code: (kind.meaning, kind.remedy) for kind in KINDS}
    for kind in KINDS:
        assert meanings[kind.code] == (kind.meaning, kind.remedy)
        for text in meanings[kind.code]:
            assert re.fullmatch(r"[A-Z`][ -~]{5,90}[.]", text), kind.code
        assert kind.code in GRAVE or kind.fault == "caller" or kind.step == "log"
    answered = [kind.code for kind in KINDS if kind.step not in ("stream", "log")]
    assert len(answered) == len({*answered})
