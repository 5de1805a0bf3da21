"""What a surface says of its clients holds on the wire: names, cors, proxies in front, TLS, and the
header that chooses a route.
"""

import asyncio
import contextlib
import gzip
import itertools
import signal
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme
from anthropic import AsyncAnthropic
from anthropic import DefaultAsyncHttpxClient as AnthropicHttpxClient
from openai import (
    AsyncOpenAI,
    AuthenticationError,
    BadRequestError,
    DefaultAsyncHttpxClient,
    NotFoundError,
)

from proxy.client import listening
from proxy.client.listening import CannotListen
from proxy.config import load
from tests.harness.client import Answer, Client, Pair, call, chat, request
from tests.harness.proxy import process, serving
from tests.harness.upstream import (
    DONE,
    JSON,
    SSE,
    Conn,
    Received,
    Upstream,
    answer,
    chunk,
    event,
    head,
    raw,
    stream,
)
from tests.test_relay import in_parts
from tests.test_transparency import Given, Message, header_differences

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
FINISH = event(b'{"model":"theirs","choices":[{"delta":{},"finish_reason":"stop"}]}')
PLAIN = b'{"id":"c1", "model" : "theirs","choices":[{"message":{"model":"theirs"}}]}'
KEY = "tk-the-team-key"
BEARER: Pair = (b"Authorization", b"Bearer " + KEY.encode())
KEYS = f'[keys]\nteam = "{KEY}"\n'


def facing(upstream: Upstream, surface: str = "", more: str = "") -> str:
    """Return a file with one *surface*: `asked` leads to the upstream as `theirs`, all else as it is."""
    return f"""
[server]
{surface}
[upstreams.up]
base_url = "{upstream.url}"
credential = "sk-upstream-secret"
[routes]
asked = "up/theirs"
default = "up/theirs"
"*" = {{ upstream = "up", model = "*" }}
{more}
"""


# The names of errors


async def test_error_names(upstream: Upstream) -> None:
    """An error of a status that has a name here says it, beside all that it says anyway; others do not."""
    named = 'errors = { 401 = "Unauthorized", 405 = "No.Way-1" }\nroutes = ["asked"]'
    async with serving(facing(upstream, named, KEYS)) as proxy:
        got = await call(proxy.port, chat())
        assert got.status == 401
        assert set(got.json()) == {"error"}
        error = got.json()["error"]
        assert (error.pop("name"), error.pop("code")) == ("Unauthorized", "invalid_api_key")
        assert set(error) == {"message", "type", "param"}
        assert got.value(b"www-authenticate") == b"Bearer"
        got = await call(proxy.port, b"", CHAT, method="GET")
        assert (got.status, got.json()["error"]["name"]) == (405, "No.Way-1")
        got = await call(proxy.port, chat("absent"), headers=[BEARER])
        assert (got.status, "name" in got.json()["error"]) == (404, False)
        await proxy.record(3)
        assert [one["error"] for one in proxy.records()] == [
            "invalid_api_key", "method_not_allowed", "model_not_found",
        ]  # fmt: skip


async def test_error_names_of_anthropic(upstream: Upstream) -> None:
    """Anthropic's form of an error has names of its own, and gets no other one."""
    async with serving(facing(upstream, 'errors = { 401 = "Unauthorized" }', KEYS)) as proxy:
        got = await call(proxy.port, chat(), MESSAGES)
        assert got.status == 401
        assert set(got.json()["error"]) == {"type", "message"}
        assert got.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 503])
async def test_the_upstreams_errors_have_no_names(upstream: Upstream, status: int) -> None:
    """What an upstream says of its own error is relayed as it came, whatever this surface calls it."""
    body = b'{"error":{"message":"no","model":"theirs"},"model":"theirs"}'
    upstream.will(answer(status, body))
    names = f'errors = {{ {status} = "Ours" }}\necho_model = true'
    async with serving(facing(upstream, names, "[defaults]\nretry={attempts=1}")) as proxy:
        got = await call(proxy.port, chat("asked"))
        assert (got.status, got.body) == (status, body)
        assert got.value(b"content-length") == b"%d" % len(body)


async def test_our_errors_about_the_upstream_have_names(upstream: Upstream) -> None:
    """An error that we author about an upstream is one of ours, and has its name."""
    upstream.will(answer(401, b'{"error":"sk-upstream-secret"}'))
    async with serving(facing(upstream, 'errors = { 502 = "BadGateway" }')) as proxy:
        got = await call(proxy.port, chat("asked"))
        error = got.json()["error"]
        assert (got.status, error["code"], error["name"]) == (502, "upstream_auth", "BadGateway")


async def test_error_names_in_an_sdk(upstream: Upstream) -> None:
    """The SDK raises what it would raise without the name."""
    async with serving(facing(upstream, 'errors = { 401 = "Unauthorized" }', KEYS)) as proxy:
        async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="wrong") as client:
            with pytest.raises(AuthenticationError) as caught:
                await client.models.list()
        assert caught.value.code == "invalid_api_key"
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["name"] == "Unauthorized"


@pytest.mark.parametrize(
    "path",
    ["/docs", "/docs/api", "/docs/openapi.json", "/openapi.json", "/docs/llm.json", "/llms.txt"],
)
async def test_no_docs(path: str, upstream: Upstream) -> None:
    """Where there are no docs, their paths are like any other that is not there."""
    async with serving(facing(upstream, "docs = false")) as proxy:
        got, other = [await call(proxy.port, b"", p, method="GET") for p in (path, "/nothing")]
        assert (got.status, got.code) == (404, "not_found")
        assert _but_for_id(got) == _but_for_id(other)


def _but_for_id(got: Answer) -> bytes:
    return got.raw.replace(got.value(b"x-trunkline-id") or b"?", b"")


# Pages of other origins

ORIGIN = b"https://app.example.com"
FROM_APP: Pair = (b"Origin", ORIGIN)
CORS = f'cors = ["{ORIGIN.decode()}", "http://localhost:3000", "chrome-extension://abcdefgh", "app://x.y"]'
FOREIGN = [
    b"https://evil.example", b"http://app.example.com", b"https://app.example.com:443",
    b"https://app.example.com.evil.example", b"https://APP.example.com", b"null", b"",
    b"https://app.example.com/", b"https://app.example.co", b"\xff", b"chrome-extension://abcdefg", b"app://x.yz",
]  # fmt: skip


def cors_of(got: Answer) -> dict[bytes, bytes]:
    """Return the headers of an answer that speak to a browser, each of which must stand there once."""
    pairs = [(name.lower(), value) for name, value in got.headers]
    found = [(name, value) for name, value in pairs if name.startswith(b"access-control-")]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize(
    "origin", [ORIGIN, b"http://localhost:3000", b"chrome-extension://abcdefgh", b"app://x.y"]
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/files", "/nothing", "/health"])
async def test_preflight(upstream: Upstream, origin: bytes, path: str) -> None:
    """A browser that asks whether a page may call is told so before any key, and nobody else is asked."""
    wanted = b"authorization, content-type, x-stainless-lang"
    async with serving(facing(upstream, CORS, KEYS + '[unrouted]\n"*" = "up"')) as proxy:
        asking = [
            (b"origin", origin),
            (b"access-control-request-method", b"POST"),
            (b"access-control-request-headers", wanted),
        ]
        got = await call(proxy.port, b"", path, asking, "OPTIONS", length=False)
        assert got.status in (200, 204)
        assert got.body == b""
        told = cors_of(got)
        assert told[b"access-control-allow-origin"] == origin
        assert told[b"access-control-allow-headers"] == wanted
        assert b"POST" in told[b"access-control-allow-methods"].split(b", ")
        assert int(told[b"access-control-max-age"]) > 0
        assert b"access-control-allow-credentials" not in told
        assert b"Origin" in got.values(b"vary")
        record = await proxy.record()
        assert (record["outcome"], record["attempts"]) == ("ok", [])
    assert upstream.connections == []


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("keys", [KEYS, ""])
async def test_preflight_of_others(upstream: Upstream, origin: bytes, keys: str) -> None:
    """A page of another origin is not let in, however alike it looks, and is told no other one's name."""
    async with serving(facing(upstream, CORS, keys)) as proxy:
        asking = [(b"Origin", origin), (b"Access-Control-Request-Method", b"POST")]
        got = await call(proxy.port, b"", CHAT, asking, "OPTIONS", length=False)
        assert got.status == (405 if keys else 403)
        assert cors_of(got) == {}
        assert b"app.example.com" not in got.raw
    assert upstream.connections == []


VENDORS: list[Pair] = [
    (b"Access-Control-Allow-Origin", b"*"),
    (b"access-control-allow-credentials", b"true"),
    (b"ACCESS-CONTROL-EXPOSE-HEADERS", b"x-theirs"),
    (b"Access-Control-Allow-Methods", b"TRACE"),
    (b"Vary", b"Accept-Encoding"),
]


@pytest.mark.parametrize("kind", ["plain", "stream", "error"])
async def test_cors_of_relayed_answers(upstream: Upstream, kind: str) -> None:
    """A page that is let in can read what was relayed; what the vendor said to its own pages is gone."""
    upstream.will(
        {
            "plain": answer(200, PLAIN, [JSON, *VENDORS]),
            "stream": stream(FINISH, DONE, headers=[SSE, *VENDORS]),
            "error": answer(400, b'{"error":{}}', [JSON, *VENDORS]),
        }[kind]
    )
    async with serving(facing(upstream, CORS, KEYS)) as proxy:
        got = await call(proxy.port, chat(stream=kind == "stream"), headers=[BEARER, FROM_APP])
        told = cors_of(got)
        assert set(told) == {b"access-control-allow-origin", b"access-control-expose-headers"}
        assert told[b"access-control-allow-origin"] == ORIGIN
        exposed = told[b"access-control-expose-headers"].split(b", ")
        assert {b"*", b"x-trunkline-id", b"x-should-retry", b"retry-after-ms"} < {*exposed}
        assert got.values(b"vary") == [b"Accept-Encoding", b"Origin"]
        assert got.whole
        assert got.status == (400 if kind == "error" else 200)


@pytest.mark.parametrize("origin", [None, *FOREIGN])
async def test_cors_of_others(upstream: Upstream, origin: bytes | None) -> None:
    """Whoever is not let in gets no such header, not even the vendor's own, and the answer all the same."""
    upstream.will(answer(200, PLAIN, [JSON, *VENDORS]))
    async with serving(facing(upstream, CORS, KEYS)) as proxy:
        headers = [BEARER] if origin is None else [BEARER, (b"Origin", origin)]
        got = await call(proxy.port, chat(), headers=headers)
        assert (got.status, got.body) == (200, PLAIN)
        assert cors_of(got) == {}
        assert b"Accept-Encoding" in got.values(b"vary")


async def test_no_cors(upstream: Upstream) -> None:
    """A surface that says nothing about pages changes nothing about what vendors say to them."""
    upstream.will(answer(200, PLAIN, [JSON, *VENDORS]))
    async with serving(facing(upstream, "", KEYS)) as proxy:
        got = await call(proxy.port, chat(), headers=[BEARER, FROM_APP])
        assert [pair for pair in got.headers if pair in VENDORS] == VENDORS
        got = await call(proxy.port, b"", CHAT, [FROM_APP], "OPTIONS", length=False)
        assert (got.status, cors_of(got)) == (405, {})


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        (CHAT, "POST", [], 401),
        (CHAT, "POST", [BEARER], 400),
        (CHAT, "GET", [BEARER], 405),
        ("/nothing", "GET", [BEARER], 404),
        ("/v1/models", "GET", [BEARER], 200),
        ("/v1/models", "HEAD", [BEARER], 200),
        ("/health", "GET", [], 200),
        ("/readyz", "GET", [], 200),
        ("/v1/ping", "GET", [], 200),
        ("/v1/time", "GET", [], 200),
    ],
)
async def test_cors_of_our_own_answers(
    upstream: Upstream, path: str, method: str, headers: list[Pair], status: int
) -> None:
    """A page can read what we author, errors above all; others get it without a word about pages."""
    async with serving(facing(upstream, CORS, KEYS)) as proxy:
        got = await call(proxy.port, b"", path, [*headers, FROM_APP], method=method)
        assert got.status == status
        assert cors_of(got)[b"access-control-allow-origin"] == ORIGIN
        foreign = (b"Origin", b"https://evil.example")
        got = await call(proxy.port, b"", path, [*headers, foreign], method=method)
        assert (got.status, cors_of(got)) == (status, {})


async def test_cors_of_a_broken_answer(upstream: Upstream) -> None:
    """A page also learns of an upstream that gave no answer."""
    upstream.will(raw(b""))
    async with serving(facing(upstream, CORS, "[defaults]\nretry={attempts=1}")) as proxy:
        got = await call(proxy.port, chat(), headers=[FROM_APP])
        assert (got.status, got.code) == (502, "upstream_disconnected")
        assert cors_of(got)[b"access-control-allow-origin"] == ORIGIN


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (ORIGIN, b"localhost", 200),
        (b"http://localhost:3000", b"127.0.0.1", 200),
        (b"http://localhost:9", b"localhost", 200),  # the operator's own machine
        (None, b"localhost", 200),
        (ORIGIN, b"app.example.com", 403),  # a name that was rebound to this machine
        (None, b"evil.example", 403),
        *((origin, b"localhost", 403) for origin in FOREIGN if origin != b""),
    ],
)
async def test_open_surface(
    upstream: Upstream, origin: bytes | None, host: bytes, status: int
) -> None:
    """Where no key is asked for, a page calls if it is in `cors`, or this machine's; others get 403."""
    async with serving(facing(upstream, CORS)) as proxy:
        headers = [] if origin is None else [(b"Origin", origin)]
        got = await call(proxy.port, chat(), headers=headers, host=host)
        assert got.status == status
        if status == 403:
            assert got.code == "origin_not_allowed"
        let_in = origin in (ORIGIN, b"http://localhost:3000")
        assert cors_of(got).get(b"access-control-allow-origin") == (origin if let_in else None)
        assert len(upstream.requests) == (status == 200)


async def test_an_open_surface_without_cors(upstream: Upstream) -> None:
    """Of a page that nobody named, nothing reaches an upstream."""
    async with serving(facing(upstream)) as proxy:
        got = await call(proxy.port, chat(), headers=[FROM_APP])
        assert (got.status, got.code) == (403, "origin_not_allowed")
    assert upstream.connections == []


# Proxies in front


def forwarded(*lines: bytes) -> list[Pair]:
    return [(b"X-Forwarded-For", line) for line in lines]


PRIVATE = '["127.0.0.0/8", "10.0.0.0/8", "2001:db8::/32"]'


@pytest.mark.parametrize(
    ("trusted", "lines", "address"),
    [
        ("[]", [b"203.0.113.7"], "127.0.0.1"),
        ('["10.0.0.0/8"]', [b"203.0.113.7"], "127.0.0.1"),
        ('["10.0.0.0/8"]', [b"10.0.0.1"], "127.0.0.1"),
        ('["::1"]', [b"203.0.113.7"], "127.0.0.1"),
        (PRIVATE, [], "127.0.0.1"),
        (PRIVATE, [b""], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7"], "203.0.113.7"),
        (PRIVATE, [b" 203.0.113.7\t"], "203.0.113.7"),
        (PRIVATE, [b"1.1.1.1, 203.0.113.7"], "203.0.113.7"),
        (PRIVATE, [b"10.0.0.9, 203.0.113.7"], "203.0.113.7"),
        (PRIVATE, [b"1.1.1.1, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (PRIVATE, [b"1.1.1.1,203.0.113.7,10.0.0.3,10.0.0.2"], "203.0.113.7"),
        (PRIVATE, [b"203.0.113.7", b"10.0.0.2"], "203.0.113.7"),
        (PRIVATE, [b"203.0.113.7, 10.0.0.3", b"10.0.0.2"], "203.0.113.7"),
        (PRIVATE, [b"10.0.0.2", b"203.0.113.7"], "203.0.113.7"),
        (PRIVATE, [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (PRIVATE, [b"2001:db8::5, 10.0.0.2"], "2001:db8::5"),
        (PRIVATE, [b"2a00::7, 2001:db8::5"], "2a00::7"),
        (PRIVATE, [b"::ffff:10.0.0.9"], "10.0.0.9"),
        (PRIVATE, [b"203.0.113.7, ::ffff:10.0.0.9"], "203.0.113.7"),
        (PRIVATE, [b"::FFFF:203.0.113.7"], "203.0.113.7"),
        ('["::ffff:127.0.0.0/104", "::ffff:10.0.0.2"]', [b"203.0.113.7, 10.0.0.2"], "203.0.113.7"),
        (PRIVATE, [b"203.0.113.7:49152"], "203.0.113.7"),
        (PRIVATE, [b"203.0.113.7:49152, 10.0.0.2:80"], "203.0.113.7"),
        (PRIVATE, [b"[2a00::7]"], "2a00::7"),
        (PRIVATE, [b"[2A00:0::7]:443, [2001:db8::5]:8443, [::ffff:10.0.0.2]:1"], "2a00::7"),
        (PRIVATE, [b"[203.0.113.7]:1"], "203.0.113.7"),
        (PRIVATE, [b"203.0.113.7:"], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7:x"], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7:123456"], "127.0.0.1"),
        (PRIVATE, [b"[2a00::7"], "127.0.0.1"),
        (PRIVATE, [b"2a00::7]:1"], "127.0.0.1"),
        (PRIVATE, [b"[]:1"], "127.0.0.1"),
        (PRIVATE, [b"[unknown]:1"], "127.0.0.1"),
        (PRIVATE, [b"fe80::1%eth0"], "127.0.0.1"),
        (PRIVATE, [b"[" * 8000], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7, junk"], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7, "], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7, unknown, 10.0.0.2"], "10.0.0.2"),
        (PRIVATE, [b"203.0.113.7, 10.0.0.2, 300.1.1.1"], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7, \xff\xfe, 10.0.0.2"], "10.0.0.2"),
        (PRIVATE, [b'"203.0.113.7"'], "127.0.0.1"),
        (PRIVATE, [b'{"a":1}'], "127.0.0.1"),
        (PRIVATE, [b"203.0.113.7 10.0.0.2"], "127.0.0.1"),
        (PRIVATE, [b"," * 8000], "127.0.0.1"),
        (PRIVATE, [b"10.0.0.2," * 1600 + b"10.0.0.2"], "10.0.0.2"),
        ('["0.0.0.0/0"]', [b"8.8.8.8, 9.9.9.9"], "8.8.8.8"),
    ],
    ids=itertools.count(),
)
async def test_client_address(
    upstream: Upstream, trusted: str, lines: list[bytes], address: str
) -> None:
    """The client is the last one named whom no proxy of ours is; who is none himself names nobody, and
    what is no address ends the chain.
    """
    async with serving(facing(upstream, f"trusted_proxies = {trusted}")) as proxy:
        headers = [(b"X-Real-Ip", b"6.6.6.6"), (b"Forwarded", b"for=6.6.6.6"), *forwarded(*lines)]
        assert (await call(proxy.port, chat(), headers=headers)).status == 200
        assert (await proxy.record())["client_ip"] == address
    assert upstream.requests[0].values(b"x-forwarded-for") == []


@pytest.mark.parametrize(
    ("trusted", "address"), [('["::1"]', "203.0.113.7"), ('["127.0.0.1"]', "::1"), ("[]", "::1")]
)
async def test_client_address_over_ipv6(upstream: Upstream, trusted: str, address: str) -> None:
    """A proxy in front may be one that speaks IPv6."""
    toml = facing(upstream, f"trusted_proxies = {trusted}")
    async with serving(toml, listen="[::1]:0") as proxy:
        async with await Client.connect(proxy.port, "::1") as client:
            await client.send(request(chat(), headers=forwarded(b"1.1.1.1, 203.0.113.7")))
            assert (await client.answer()).status == 200
        assert (await proxy.record())["client_ip"] == address


@pytest.mark.parametrize(("trusted", "address"), [("[]", None), ('["10.0.0.0/8"]', "203.0.113.7")])
async def test_client_address_behind_a_unix_socket(
    upstream: Upstream, tmp_path: Path, trusted: str, address: str | None
) -> None:
    """Who can reach a unix socket is a proxy of ours, where there are any."""
    path = tmp_path / "s"
    toml = facing(upstream, f"trusted_proxies = {trusted}")
    async with serving(toml, listen=f"unix:{path}") as proxy:
        reader, writer = await asyncio.open_unix_connection(path)
        async with Client(reader, writer) as client:
            await client.send(request(chat(), headers=forwarded(b"203.0.113.7, 10.0.0.2")))
            assert (await client.answer()).status == 200
        assert (await proxy.record())["client_ip"] == address


async def test_the_address_of_a_refused_client(upstream: Upstream) -> None:
    """Who was refused is told by the same rule."""
    toml = facing(upstream, 'trusted_proxies = "127.0.0.1"', KEYS)
    async with serving(toml) as proxy:
        await call(proxy.port, chat(), headers=forwarded(b"203.0.113.7"))
        assert (await proxy.record())["client_ip"] == "203.0.113.7"


# TLS


@dataclass(frozen=True)
class Secure:
    """A certificate for a surface to show, and a client's context that takes it."""

    directory: Path
    ca: trustme.CA
    context: ssl.SSLContext

    @property
    def keys(self) -> str:
        return f'tls = {{ certificate = "{self.directory}/crt", key = "{self.directory}/key" }}'

    def issue(self) -> None:
        """Write a new certificate, and its key, to where the old one is."""
        made = self.ca.issue_cert("localhost", "127.0.0.1")
        made.private_key_pem.write_to_path(str(self.directory / "key"))
        made.cert_chain_pems[0].write_to_path(str(self.directory / "crt"))


@pytest.fixture
def secure(tmp_path: Path) -> Secure:
    ca = trustme.CA()
    context = ssl.create_default_context()
    ca.configure_trust(context)
    made = Secure(tmp_path, ca, context)
    made.issue()
    return made


@asynccontextmanager
async def connected(
    port: int, context: ssl.SSLContext, limit: int = 2**24
) -> AsyncIterator[Client]:
    """Connect by TLS."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost", limit=limit
    )
    async with Client(reader, writer) as client:
        yield client


async def test_tls(upstream: Upstream, secure: Secure) -> None:
    """A surface with a certificate answers by TLS, request after request on one connection."""
    async with serving(facing(upstream, secure.keys)) as proxy:
        async with connected(proxy.port, secure.context) as client:
            for n in range(3):
                await client.send(request(chat(text=str(n))))
                got = await client.answer()
                assert (got.status, got.body) == (200, b'{"ok":true}')
            await client.send(request(chat(text="a")) + request(chat(text="b")))
            assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        record = await proxy.record(5)
        assert (record["client_ip"], record["outcome"]) == ("127.0.0.1", "ok")
    assert [one.body for one in upstream.requests[3:]] == [chat(text="a"), chat(text="b")]


@pytest.mark.parametrize("body", [2**20, 5 * 2**20])
async def test_tls_with_large_bodies(upstream: Upstream, secure: Secure, body: int) -> None:
    """Large bodies pass whole, both ways."""
    large = b'{"x":"' + b"y" * body + b'"}'
    upstream.will(answer(200, large))
    async with (
        serving(facing(upstream, secure.keys)) as proxy,
        connected(proxy.port, secure.context) as client,
    ):
        sent = chat(text="z" * body)
        await client.send(request(sent))
        assert (await client.answer()).body == large
    assert upstream.requests[0].body == sent


async def test_tls_with_sdks(upstream: Upstream, secure: Secure) -> None:
    """SDKs call by `https:` once they trust who signed."""
    toml = facing(upstream, secure.keys, KEYS + '[routes.echo]\nupstream = "sandbox"\n')
    async with (
        serving(toml) as proxy,
        DefaultAsyncHttpxClient(verify=secure.context) as first,
        AnthropicHttpxClient(verify=secure.context) as second,
    ):
        url = f"https://localhost:{proxy.port}"
        openai = AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=first, max_retries=0)
        said = [{"role": "user", "content": "hello there"}]
        messages: Any = said
        whole = await openai.chat.completions.create(model="echo", messages=messages)
        assert "hello there" in (whole.choices[0].message.content or "")
        pieces = [
            piece.choices[0].delta.content or ""
            async for piece in await openai.chat.completions.create(
                model="echo", messages=messages, stream=True
            )
            if piece.choices
        ]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len(pieces) > 1
        anthropic = AsyncAnthropic(base_url=url, api_key=KEY, http_client=second, max_retries=0)
        async with anthropic.messages.stream(
            model="echo", max_tokens=50, messages=messages
        ) as events:
            assert "hello there" in await events.get_final_text()


async def test_tls_stream_arrives_as_it_comes(upstream: Upstream, secure: Secure) -> None:
    """An event is with the client before the next one has left the upstream."""
    first, second = asyncio.Event(), asyncio.Event()
    opening = head(200, [SSE, (b"Transfer-Encoding", b"chunked")])
    upstream.will(
        in_parts(
            opening + chunk(event(b'{"n":1}')), first,
            chunk(event(b'{"n":2}')), second, chunk(FINISH + DONE) + b"0\r\n\r\n",
        )
    )  # fmt: skip
    async with (
        serving(facing(upstream, secure.keys)) as proxy,
        connected(proxy.port, secure.context) as client,
        asyncio.timeout(10),
    ):
        await client.send(request(chat(stream=True)))
        await client.reader.readuntil(b'{"n":1}\n\n')
        first.set()
        await client.reader.readuntil(b'{"n":2}\n\n')
        second.set()
        await client.reader.readuntil(b"0\r\n\r\n")


async def test_tls_cut_stream(upstream: Upstream, secure: Secure) -> None:
    """A cut stream says so and stays unfinished, as without TLS."""
    upstream.will(stream(event(b'{"n":1}'), end="reset"))
    async with serving(facing(upstream, secure.keys)) as proxy:
        async with connected(proxy.port, secure.context) as client:
            await client.send(request(chat(stream=True)))
            got = await client.answer()
            assert not got.whole
            assert b'"upstream_disconnected"' in got.body
        assert (await proxy.record())["outcome"] == "upstream_cut"


async def test_tls_client_that_leaves(upstream: Upstream, secure: Secure) -> None:
    """When a client leaves, the upstream's work is stopped within a second."""
    upstream.will(stream(event(b'{"n":1}'), end="hang"))
    async with serving(facing(upstream, secure.keys)) as proxy:
        async with connected(proxy.port, secure.context) as client:
            await client.send(request(chat(stream=True)))
            await client.reader.readuntil(b'{"n":1}\n\n')
        async with asyncio.timeout(2):
            await upstream.connections[0].gone.wait()
        assert (await proxy.record())["outcome"] == "client_gone"


async def test_tls_backpressure(upstream: Upstream, secure: Secure) -> None:
    """A client that does not read stops the upstream, and gets every byte when it goes on."""
    pieces, size = 400, 65_536
    sent = 0

    async def flood(conn: Conn, request: Received) -> None:
        nonlocal sent
        await conn.send(head(200, [(b"Content-Length", b"%d" % (pieces * size))]))
        for _ in range(pieces):
            await conn.send(b"x" * size)
            sent += 1

    upstream.will(flood)
    async with serving(facing(upstream, secure.keys)) as proxy:
        async with connected(proxy.port, secure.context, limit=size) as client:
            await client.send(request(chat()))
            async with asyncio.timeout(20):
                before = -1
                while sent != before or not sent:
                    before = sent
                    await asyncio.sleep(0.3)
            assert 0 < sent < pieces // 2
            async with asyncio.timeout(20):
                await client.reader.readuntil(b"\r\n\r\n")
                for _ in range(pieces):
                    assert await client.reader.readexactly(size) == b"x" * size
        record = await proxy.record()
        assert (record["outcome"], record["bytes_out"]) == ("ok", pieces * size)


async def test_tls_websocket(upstream: Upstream, secure: Secure) -> None:
    """A WebSocket passes through TLS, both ways."""

    async def echo(conn: Conn, request: Received) -> None:
        await conn.send(b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        while data := await conn.reader.read(100):
            await conn.send(data)
        conn.keep = False

    upstream.will(echo)
    upgrade = [
        (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Version", b"13"), (b"Sec-WebSocket-Key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ]  # fmt: skip
    async with (
        serving(facing(upstream, secure.keys)) as proxy,
        connected(proxy.port, secure.context) as client,
        asyncio.timeout(10),
    ):
        await client.send(request(b"", "/v1/realtime?model=asked", upgrade, "GET", length=False))
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
        for frame in (b"\x81\x85abcdefghi", b"\x82\x80abcd"):
            await client.send(frame)
            assert await client.reader.readexactly(len(frame)) == frame
    assert upstream.requests[0].target == "/v1/realtime?model=theirs"


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["h2", "http/1.1"], "http/1.1"), (["http/1.1"], "http/1.1"), (["h2"], None), ([], None)],
)
async def test_alpn(
    upstream: Upstream, secure: Secure, offered: list[str], chosen: str | None
) -> None:
    """Who offers several protocols is told that HTTP/1.1 is spoken."""
    if offered:
        secure.context.set_alpn_protocols(offered)
    async with (
        serving(facing(upstream, secure.keys)) as proxy,
        connected(proxy.port, secure.context) as client,
    ):
        tls = client.writer.get_extra_info("ssl_object")
        assert tls.selected_alpn_protocol() == chosen
        assert tls.version() in ("TLSv1.2", "TLSv1.3")


HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(32)
NO_HANDSHAKES = [
    request(chat()),
    b"GET / HTTP/1.0\r\n\r\n",
    b"\x00" * 500,
    b"\xff" * 20_000,
    HELLO,
    HELLO + b"\xff" * 500,
    b"\x16\x03\x01\xff\xff" + b"a" * 70_000,
    b"\x15\x03\x03\x00\x02\x02\x28",
    b"",
]


@pytest.mark.parametrize("leave", ["close", "reset", "wait"])
async def test_no_handshake(upstream: Upstream, secure: Secure, leave: str) -> None:
    """What is no handshake, plain HTTP above all, is closed without an answer, a record or a trace, and
    does no harm to anybody else.
    """
    async with process(facing(upstream, secure.keys)) as proxy:
        for data in NO_HANDSHAKES:
            async with await Client.connect(proxy.port) as client:
                with contextlib.suppress(ConnectionError):
                    await client.send(data)
                    if leave == "reset":
                        continue
                    client.writer.write_eof()
                    if leave == "wait":
                        assert not (await client.closed(10)).startswith(b"HTTP")
        async with connected(proxy.port, secure.context) as good:
            await good.send(request(chat()))
            assert (await good.answer()).status == 200
        await proxy.record(1)
    assert len(upstream.requests) == 1


async def test_no_trust(upstream: Upstream, secure: Secure) -> None:
    """A client that does not take the certificate leaves, and that is all."""
    async with process(facing(upstream, secure.keys)) as proxy:
        for _ in range(3):
            with pytest.raises(ssl.SSLCertVerificationError):
                async with connected(proxy.port, ssl.create_default_context()):
                    pass
        async with connected(proxy.port, secure.context) as good:
            await good.send(request(chat()))
            assert (await good.answer()).status == 200
        await proxy.record(1)


async def test_slow_handshake(upstream: Upstream, secure: Secure) -> None:
    """A handshake that does not get on keeps nobody waiting, not even a proxy that is to leave."""
    async with process(facing(upstream, secure.keys)) as proxy, contextlib.AsyncExitStack() as slow:
        for data in (b"", b"\x16", HELLO) * 5:
            one = await slow.enter_async_context(await Client.connect(proxy.port))
            await one.send(data)
        async with connected(proxy.port, secure.context) as good:
            await good.send(request(chat()))
            assert (await good.answer()).status == 200
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            await proxy.process.wait()


async def test_handshake_that_takes_too_long(
    upstream: Upstream, secure: Secure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handshake may take as long as the head of a request: then the connection is closed."""
    monkeypatch.setattr(listening, "HEAD_SECONDS", 0.5, raising=False)
    async with (
        serving(facing(upstream, secure.keys)) as proxy,
        await Client.connect(proxy.port) as client,
    ):
        await client.send(HELLO)
        assert await client.closed(12) == b""


async def certificate(port: int, context: ssl.SSLContext) -> bytes:
    async with connected(port, context) as client:
        shown = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        assert isinstance(shown, bytes)
        return shown


async def test_renewed_certificate(upstream: Upstream, secure: Secure, tmp_path: Path) -> None:
    """A reload shows the certificate that is in the files by then: without a restart, and without harm to
    the connections there are.
    """
    file = tmp_path / "routes.toml"
    file.write_text(facing(upstream, secure.keys))
    async with serving(file.read_text()) as proxy, connected(proxy.port, secure.context) as old:
        before = await certificate(proxy.port, secure.context)
        secure.issue()
        assert await certificate(proxy.port, secure.context) == before
        assert proxy.running is not None
        await proxy.running.apply(load(file, {}, listen="127.0.0.1:0"))
        assert await certificate(proxy.port, secure.context) != before
        await old.send(request(chat()))
        assert (await old.answer()).status == 200


@pytest.mark.parametrize("before", [True, False])
async def test_tls_is_not_dropped_in_silence(
    upstream: Upstream, secure: Secure, tmp_path: Path, before: bool
) -> None:
    """A reload that would turn TLS on or off on an address that stays is refused: it takes a restart."""
    plain, tls = facing(upstream), facing(upstream, secure.keys)
    file = tmp_path / "routes.toml"
    file.write_text(plain if before else tls)
    async with serving(tls if before else plain) as proxy:
        assert proxy.running is not None
        held = proxy.running.snapshot
        with pytest.raises(CannotListen, match="TLS"):
            await proxy.running.apply(load(file, {}, listen="127.0.0.1:0"))
        assert proxy.running.snapshot is held
        if before:
            await certificate(proxy.port, secure.context)
        else:
            assert (await call(proxy.port, chat())).status == 200


async def test_tls_beside_none(upstream: Upstream, secure: Secure, tmp_path: Path) -> None:
    """Each surface has a certificate of its own, or none."""
    path = tmp_path / "s"
    toml = facing(upstream).replace(
        "[server]",
        f'[[surface]]\nname = "tls"\n{secure.keys}\n'
        f'[[surface]]\nname = "plain"\nlisten = "unix:{path}"',
    )
    async with serving(toml) as proxy:
        await certificate(proxy.port, secure.context)
        reader, writer = await asyncio.open_unix_connection(path)
        async with Client(reader, writer) as client:
            await client.send(request(chat()))
            assert (await client.answer()).status == 200


# The name that was asked for

ECHO = "echo_model = true"
NAMED = PLAIN.replace(b'"theirs"', b'"asked"', 1)


async def test_echo(upstream: Upstream) -> None:
    """A plain answer says the name that was asked for, at its top level only, and else what it said."""
    odd = [JSON, (b"x-a", b"1"), (b"X-A", b"1"), (b"x-request-id", b"up-1"), (b"ETag", b'"x"')]
    upstream.will(answer(200, PLAIN, odd))
    async with serving(facing(upstream, ECHO)) as proxy:
        got = await call(proxy.port, chat("asked"))
        assert (got.status, got.body, got.whole) == (200, NAMED, True)
        assert got.headers[: len(odd)] == odd
        assert got.value(b"content-length") in (None, b"%d" % len(NAMED))
        record = await proxy.record()
        assert (record["model"], record["upstream_model"]) == ("asked", "theirs")
        assert record["outcome"] == "ok"
    assert orjson.loads(upstream.requests[0].body)["model"] == "theirs"


@pytest.mark.parametrize(
    ("asked", "name"),
    [("asked", "asked"), (None, "default"), ("theirs", "theirs"), ('a "q"/ü\\', 'a "q"/ü\\')],
)
async def test_echo_of_any_name(upstream: Upstream, asked: str | None, name: str) -> None:
    """The name is the one in the request, or `default` where it had none, whatever a pattern made of it."""
    upstream.will(answer(200, PLAIN))
    async with serving(facing(upstream, ECHO)) as proxy:
        got = await call(proxy.port, chat(asked))
        assert got.json() == orjson.loads(PLAIN) | {"model": name}


async def test_no_echo(upstream: Upstream) -> None:
    """A surface that does not ask for it has the upstream's own word, length and all."""
    upstream.will(answer(200, PLAIN), stream(FINISH, DONE))
    async with serving(facing(upstream)) as proxy:
        got = await call(proxy.port, chat("asked"))
        assert (got.body, got.value(b"content-length")) == (PLAIN, b"%d" % len(PLAIN))
        got = await call(proxy.port, chat("asked", stream=True))
        assert got.body == FINISH + DONE


async def test_echo_on_a_kept_connection(upstream: Upstream) -> None:
    """One connection carries answers with other names in them, one after the other."""
    upstream.will(answer(200, PLAIN), stream(FINISH, DONE), answer(200, PLAIN), answer(404, PLAIN))
    async with serving(facing(upstream, ECHO)) as proxy:
        async with await Client.connect(proxy.port) as client:
            bodies = []
            for model, streams in (("asked", False), ("b", True), ("c", False), ("asked", False)):
                await client.send(request(chat(model, stream=streams)))
                got = await client.answer()
                assert got.whole
                bodies.append(got.body)
        theirs = b'"theirs"'
        assert bodies == [
            NAMED, (FINISH + DONE).replace(theirs, b'"b"'), PLAIN.replace(theirs, b'"c"', 1), PLAIN,
        ]  # fmt: skip
    assert len(upstream.connections) == 1


STREAM = (
    b': hi\r\n\r\ndata: {"id":1,"model":"theirs"}\n\nevent: x\ndata: {"model" : "theirs", "n":1.0}\r\n'
    b'id: 5\r\n\r\ndata: {"choices":[{"delta":{"content":"\\"model\\":\\"theirs\\""}}]}\n\n'
    b'data: not json "model":"theirs"\n\n' + FINISH + DONE
)
STREAM_NAMED = (
    STREAM.replace(b'"id":1,"model":"theirs"', b'"id":1,"model":"asked"')
    .replace(b'"model" : "theirs"', b'"model" : "asked"')
    .replace(FINISH, FINISH.replace(b"theirs", b"asked"))
)


@pytest.mark.parametrize("size", [1, 7, 50, 10_000])
async def test_echo_in_a_stream(upstream: Upstream, size: int) -> None:
    """Each event that has a model at its top level has the name in it, however the bytes come."""
    upstream.will(stream(*(STREAM[at : at + size] for at in range(0, len(STREAM), size))))
    async with serving(facing(upstream, ECHO)) as proxy:
        got = await call(proxy.port, chat("asked", stream=True))
        assert (got.body, got.whole) == (STREAM_NAMED, True)
        assert (await proxy.record())["outcome"] == "ok"


async def test_echo_holds_no_event_back(upstream: Upstream) -> None:
    """An event is with the client before the next one has left the upstream."""
    gates = [asyncio.Event(), asyncio.Event()]
    opening = head(200, [SSE, (b"Transfer-Encoding", b"chunked")])
    one = event(b'{"model":"theirs"}')
    upstream.will(
        in_parts(
            opening + chunk(one), gates[0], chunk(one), gates[1],
            chunk(FINISH + DONE) + b"0\r\n\r\n",
        )
    )  # fmt: skip
    async with (
        serving(facing(upstream, ECHO)) as proxy,
        await Client.connect(proxy.port) as client,
        asyncio.timeout(10),
    ):
        await client.send(request(chat("asked", stream=True)))
        for gate in gates:
            await client.reader.readuntil(b'data: {"model":"asked"}\n\n')
            gate.set()
        await client.reader.readuntil(b"0\r\n\r\n")


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"deflate, gzip"])
@pytest.mark.parametrize("kind", [JSON, SSE])
async def test_echo_of_an_encoded_answer(upstream: Upstream, coding: bytes, kind: Pair) -> None:
    """An answer that comes encoded all the same passes as it is: nothing is unpacked."""
    body = gzip.compress(PLAIN)
    headers = [kind, (b"Content-Encoding", coding)]
    upstream.will(answer(200, body, headers))
    async with serving(facing(upstream, ECHO)) as proxy:
        got = await call(proxy.port, chat("asked"), headers=[(b"Accept-Encoding", b"gzip")])
        assert got.body == body
        assert got.value(b"content-length") == b"%d" % len(body)


async def test_echo_asks_for_plain_answers(upstream: Upstream) -> None:
    """Where a name is to be put in, the upstream is asked not to encode: every SDK offers gzip, and most
    vendors take it. Elsewhere the client's offer goes up as it is.
    """
    offer = (b"Accept-Encoding", b"gzip, deflate")
    for surface, sent in ((ECHO, [b"identity"]), ("", [offer[1]])):
        async with serving(facing(upstream, surface)) as proxy:
            await call(proxy.port, chat("asked"), headers=[offer])
        assert upstream.requests[-1].values(b"accept-encoding") == sent


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (400, JSON, PLAIN),
        (429, JSON, PLAIN),
        (500, JSON, PLAIN),
        (202, JSON, PLAIN),
        (200, (b"Content-Type", b"text/plain"), PLAIN),
        (200, (b"Content-Type", b"application/x-ndjson"), PLAIN),
        (200, (b"X-None", b"1"), PLAIN),
        (200, JSON, b'{"model":"theirs","model":"theirs"}'),
        (200, JSON, b'{"a":{"model":"theirs"}}'),
        (200, JSON, b'[{"model":"theirs"}]'),
        (200, JSON, b"not json"),
        (200, JSON, b'{"model":"theirs"'),
        (200, JSON, b""),
        (200, JSON, b'{"model":"theirs","x":"' + b"y" * 4_300_000 + b'"}'),
    ],
    ids=itertools.count(),
)
async def test_echo_leaves_alone(upstream: Upstream, status: int, kind: Pair, body: bytes) -> None:
    """Errors, other types, and what has no top-level model that could be told pass byte for byte."""
    upstream.will(answer(status, body, [kind]))
    more = "[defaults]\nretry = { attempts = 1 }"
    async with serving(facing(upstream, ECHO, more)) as proxy:
        got = await call(proxy.port, chat("asked"))
        assert (got.status, got.body, got.whole) == (status, body, True)


@pytest.mark.parametrize("kind", [b"application/json; charset=utf-8", b"Application/JSON"])
async def test_echo_in_json_of_any_spelling(upstream: Upstream, kind: bytes) -> None:
    """The type of an answer may have parameters, and be in any case."""
    upstream.will(answer(200, PLAIN, [(b"Content-Type", kind), (b"Content-Encoding", b"identity")]))
    async with serving(facing(upstream, ECHO)) as proxy:
        assert (await call(proxy.port, chat("asked"))).body == NAMED


@pytest.mark.parametrize("streams", [False, True])
async def test_echo_for_http_1_0(upstream: Upstream, streams: bool) -> None:
    """A client of HTTP/1.0 gets it too, and the end of the connection for its length."""
    upstream.will(stream(STREAM) if streams else answer(200, PLAIN))
    async with serving(facing(upstream, ECHO)) as proxy:
        got = await call(proxy.port, chat("asked", stream=streams), version="1.0")
        assert got.body == (STREAM_NAMED if streams else NAMED)
        assert got.value(b"transfer-encoding") is None


async def test_echo_beside_keepalive_comments(upstream: Upstream) -> None:
    """Comments that fill a silence stand between events, never inside one that is held."""
    more = asyncio.Event()
    opening = head(200, [SSE, (b"Transfer-Encoding", b"chunked")])
    upstream.will(
        in_parts(
            opening + chunk(event(b'{"model":"theirs"}')), more, chunk(b'data: {"model":'),
            chunk(b'"theirs"}\n\n'), chunk(FINISH + DONE) + b"0\r\n\r\n",
        )
    )  # fmt: skip
    toml = facing(upstream, ECHO).replace(
        'asked = "up/theirs"', 'asked = { upstream = "up", model = "theirs", keepalive = "50ms" }'
    )
    async with (
        serving(toml) as proxy,
        await Client.connect(proxy.port) as client,
        asyncio.timeout(10),
    ):
        await client.send(request(chat("asked", stream=True)))
        first = await client.reader.readuntil(b": keepalive\n")
        assert b'data: {"model":"asked"}\n\n' in first
        more.set()
        rest = await client.reader.readuntil(b"0\r\n\r\n")
        assert b'data: {"model":"asked"}\n\n' in rest
        assert b"theirs" not in rest


@pytest.mark.parametrize("end", ["cut", "reset"])
async def test_echo_of_a_cut_stream(upstream: Upstream, end: str) -> None:
    """What is held when a stream breaks passes as it is, and is left open there; nothing looks finished."""
    half = b'data: {"model":"theirs","x":'
    upstream.will(stream(event(b'{"model":"theirs"}'), half, end=end))
    async with serving(facing(upstream, ECHO)) as proxy:
        got = await call(proxy.port, chat("asked", stream=True))
        assert not got.whole
        assert got.body == event(b'{"model":"asked"}') + half
        assert (await proxy.record())["outcome"] == "upstream_cut"


async def test_echo_of_a_stream_that_falls_silent(upstream: Upstream) -> None:
    """The same holds of one that says no more."""
    half = b'data: {"model":"theirs"}\n'
    upstream.will(stream(half, end="hang"))
    toml = facing(upstream, ECHO, '[defaults]\ntimeout = { idle = "200ms" }')
    async with serving(toml) as proxy:
        got = await call(proxy.port, chat("asked", stream=True))
        assert not got.whole
        assert got.body == half
        assert (await proxy.record())["error"] == "upstream_idle_timeout"


@pytest.mark.parametrize("cut", [0, 1, 20, len(PLAIN) - 1])
async def test_echo_of_a_cut_answer(upstream: Upstream, cut: int) -> None:
    """Of a plain answer that breaks off, what came passes as it is and the transfer stays unfinished."""
    length = (b"Content-Length", b"%d" % len(PLAIN))
    upstream.will(raw(head(200, [JSON, length]) + PLAIN[:cut]))
    async with serving(facing(upstream, ECHO)) as proxy:
        got = await call(proxy.port, chat("asked"))
        assert not got.whole
        assert got.body == PLAIN[:cut]
        assert (await proxy.record())["outcome"] == "upstream_cut"


async def test_echo_for_a_client_that_leaves(upstream: Upstream) -> None:
    """A client that leaves while its answer is held ends the upstream's work all the same."""
    length = (b"Content-Length", b"%d" % len(PLAIN))
    upstream.will(raw(head(200, [JSON, length]) + PLAIN[:20], then="hang"))
    async with serving(facing(upstream, ECHO)) as proxy:
        async with await Client.connect(proxy.port) as client:
            await client.send(request(chat("asked")))
            await client.reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(2):
            await upstream.connections[0].gone.wait()
        assert (await proxy.record())["outcome"] == "client_gone"


ANTHROPIC = b'{"type":"message","model":"theirs","content":[],"stop_reason":"end_turn"}'
ANTHROPIC_STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"model":"theirs"}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSE = b'{"object":"response","model":"theirs","output":[]}'
RESPONSE_STREAM = (
    b'event: response.created\ndata: {"type":"response.created","response":{"model":"theirs"}}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"model":"theirs"}}\n\n'
)


@pytest.mark.parametrize(
    ("path", "plain", "streamed"),
    [
        (MESSAGES, ANTHROPIC, ANTHROPIC_STREAM),
        (RESPONSES, RESPONSE, RESPONSE_STREAM),
        ("/v1/completions", b'{"model":"theirs"}', b'data: {"model":"theirs"}\n\n' + DONE),
        ("/v1/embeddings", b'{"data":[],"model":"theirs"}', None),
    ],
)
async def test_echo_in_every_dialect(
    upstream: Upstream, path: str, plain: bytes, streamed: bytes | None
) -> None:
    """In every dialect it is the top level that says the name; what is nested is the vendor's own."""
    async with serving(facing(upstream, ECHO)) as proxy:
        upstream.will(answer(200, plain))
        got = await call(proxy.port, chat("asked"), path)
        assert got.json() == orjson.loads(plain) | {"model": "asked"}
        if streamed is not None:
            upstream.will(stream(streamed))
            got = await call(proxy.port, chat("asked", stream=True), path)
            assert got.body == streamed.replace(b'{"model":"theirs"}\n', b'{"model":"asked"}\n')
            assert got.whole


async def test_echo_of_what_goes_by_path(upstream: Upstream) -> None:
    """What carries no model asked for none, so that none is put into its answer."""
    upstream.will(answer(200, PLAIN))
    async with serving(facing(upstream, ECHO, '[unrouted]\nfiles = "up"')) as proxy:
        got = await call(proxy.port, b"", "/v1/files", method="GET")
        assert got.body == PLAIN


@pytest.mark.parametrize("peek", ["true", "false"])
async def test_echo_after_a_fallback(upstream: Upstream, peek: str) -> None:
    """Whoever answers, under whatever name: the client reads the one it asked for."""
    async with Upstream() as second:
        upstream.will(answer(503, b'{"model":"theirs"}'))
        second.will(stream(event(b'{"model":"another"}'), FINISH, DONE))
        toml = facing(upstream, ECHO, f'[upstreams.b]\nbase_url = "{second.url}"').replace(
            'asked = "up/theirs"',
            'asked = { upstream = "up", model = "theirs", fallback = ["b/another"], '
            f"peek = {peek}, retry = {{ attempts = 2 }} }}",
        )
        async with serving(toml) as proxy:
            got = await call(proxy.port, chat("asked", stream=True))
            assert got.body.startswith(event(b'{"model":"asked"}'))
            assert b"another" not in got.body
            assert b"theirs" not in got.body


async def test_echo_of_one_surface_only(upstream: Upstream, tmp_path: Path) -> None:
    """Of two surfaces that share a route, each puts in what it says itself."""
    path = tmp_path / "s"
    upstream.will(answer(200, PLAIN))
    toml = facing(upstream).replace(
        "[server]",
        f'[[surface]]\nname = "a"\n{ECHO}\n[[surface]]\nname = "b"\nlisten = "unix:{path}"',
    )
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat("asked"))).body == NAMED
        reader, writer = await asyncio.open_unix_connection(path)
        async with Client(reader, writer) as client:
            await client.send(request(chat("asked")))
            assert (await client.answer()).body == PLAIN
        assert {record["surface"] for record in (await proxy.record(2), *proxy.records())} == {
            "a",
            "b",
        }


async def test_echo_in_the_sandbox() -> None:
    """The built-in upstream is one like any other."""
    toml = f'[server]\n{ECHO}\n[routes]\n"my name" = "sandbox/echo"\n'
    async with (
        serving(toml) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="not-needed") as client,
    ):
        messages: Any = [{"role": "user", "content": "one two"}]
        whole = await client.chat.completions.create(model="my name", messages=messages)
        assert whole.model == "my name"
        events = await client.chat.completions.create(
            model="my name", messages=messages, stream=True
        )
        assert {piece.model async for piece in events} == {"my name"}


# A header that chooses the route

MIX: Pair = (b"mixTuningId", b"mix-fast")


def mixing(upstream: Upstream, surface: str = "", more: str = "", up: str = "") -> str:
    """Return a file whose model `moai` goes where the header `mixTuningId` says."""
    return f"""
[server]
{surface}
[upstreams.up]
base_url = "{upstream.url}"
credential = "sk-upstream-secret"
{up}
[routes]
plain = "up/plain"
alias = "moai"
[routes.moai]
header = "mixTuningId"
missing = "BadRequest"
unknown = "MixTuningNotFound"
[routes.moai.to]
mix-fast = "up/fast"
mix-deep = "up/deep"
"a b/~" = "up/odd"
{more}
"""


def sent(upstream: Upstream) -> str:
    """Return the model that the last request asked the upstream for."""
    name: str = orjson.loads(upstream.requests[-1].body)["model"]
    return name


@pytest.mark.parametrize("name", [b"mixTuningId", b"mixtuningid", b"MIXTUNINGID", b"MixTuningID"])
@pytest.mark.parametrize(
    ("value", "model"), [(b"mix-fast", "fast"), (b"mix-deep", "deep"), (b"a b/~", "odd")]
)
async def test_header_chooses(upstream: Upstream, name: bytes, value: bytes, model: str) -> None:
    """The value of the header says where a model leads; the case of its name does not matter."""
    async with serving(mixing(upstream)) as proxy:
        got = await call(proxy.port, chat("moai"), headers=[(name, value)])
        assert got.status == 200
        assert sent(upstream) == model
        record = await proxy.record()
        assert (record["route"], record["model"], record["upstream"]) == ("moai", "moai", "up")
        assert (record["upstream_model"], record["outcome"]) == (model, "ok")


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES, "/v1/embeddings"])
async def test_header_chooses_in_every_dialect(upstream: Upstream, path: str) -> None:
    """It is the same for every dialect, streams included."""
    async with serving(mixing(upstream)) as proxy:
        for streams in (False, True):
            got = await call(proxy.port, chat("moai", stream=streams), path, [MIX])
            assert got.status == 200
            assert sent(upstream) == "fast"


MISSING: list[list[Pair]] = [
    [],
    [(b"mixTuningId", b"")],
    [(b"mixTuningId", b"  \t ")],
    [(b"mix-TuningId", b"mix-fast")],
    [(b"X-mixTuningId", b"mix-fast")],
    [(b"Cookie", b"mixTuningId=mix-fast")],
]
UNKNOWN: list[list[Pair]] = [
    [(b"mixTuningId", value)]
    for value in (
        b"Mix-Fast", b"MIX-FAST", b"mix-fast,", b"mix-fast, mix-deep", b"mix-fas", b"mix-fastt",
        b"mix*", b"*", b'"mix-fast"', b"up/fast", b"\xff\xfe", "ü".encode(), b"a" * 5000,
        b"</script>", b"mix-fast;q=1", b"mix%2Dfast", b"__class__", b"0",
    )
]  # fmt: skip
UNKNOWN += [
    [MIX, (b"mixTuningId", b"mix-deep")],
    [MIX, (b"MIXTUNINGID", b"")],
    [(b"mixTuningId", b"nope"), MIX],
]


@pytest.mark.parametrize("headers", MISSING, ids=itertools.count())
async def test_header_missing(upstream: Upstream, headers: list[Pair]) -> None:
    """Without the header, or with nothing in it, a request is wrong: 400, by the name the file gives it."""
    async with serving(mixing(upstream)) as proxy:
        got = await call(proxy.port, chat("moai"), headers=headers)
        assert (got.status, got.code) == (400, "BadRequest")
        error = got.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "mixTuningId")
        assert "mixTuningId" in error["message"]
        record = await proxy.record()
        assert (record["status"], record["error"]) == (400, "BadRequest")
        assert (record["outcome"], record["route"], record["model"]) == (
            "client_error", "moai", "moai",
        )  # fmt: skip
        assert (record["attempts"], record["upstream"], record["upstream_model"]) == (
            [], None, None,
        )  # fmt: skip
    assert upstream.connections == []


@pytest.mark.parametrize("headers", UNKNOWN, ids=itertools.count())
async def test_header_unknown(upstream: Upstream, headers: list[Pair]) -> None:
    """A value that nobody wrote down leads nowhere: 404, and no upstream hears of it. Its case matters, and
    two lines that say two things say nothing.
    """
    async with serving(mixing(upstream)) as proxy:
        got = await call(proxy.port, chat("moai"), headers=headers)
        assert (got.status, got.code) == (404, "MixTuningNotFound")
        error = got.json()["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", "mixTuningId")
        assert len(error["message"]) < 300
        assert "mix-deep" not in error["message"].replace("mix-fast, mix-deep", "")
        record = await proxy.record()
        assert (record["status"], record["error"]) == (404, "MixTuningNotFound")
        assert (record["outcome"], record["attempts"]) == ("client_error", [])
    assert upstream.connections == []


async def test_header_said_twice_alike(upstream: Upstream) -> None:
    """Two lines that say the same say one thing."""
    async with serving(mixing(upstream)) as proxy:
        got = await call(proxy.port, chat("moai"), headers=[MIX, (b"MIXTUNINGID", b"mix-fast")])
        assert got.status == 200
    assert upstream.requests[0].values(b"mixtuningid") == []


async def test_header_codes_unless_said(upstream: Upstream) -> None:
    """Where the file gives them no names, the two errors have ones of their own."""
    toml = mixing(upstream).replace('missing = "BadRequest"\nunknown = "MixTuningNotFound"\n', "")
    async with serving(toml) as proxy:
        got = await call(proxy.port, chat("moai"))
        assert (got.status, got.code) == (400, "missing_header")
        got = await call(proxy.port, chat("moai"), headers=[(b"mixTuningId", b"x")])
        assert (got.status, got.code) == (404, "unknown_header")


async def test_header_errors_have_a_surfaces_names(upstream: Upstream) -> None:
    """The name that a surface has for a status stands beside the route's code."""
    surface = 'errors = { 400 = "Bad", 404 = "Gone" }'
    async with serving(mixing(upstream, surface)) as proxy:
        got = await call(proxy.port, chat("moai"))
        error = got.json()["error"]
        assert (error["code"], error["name"]) == ("BadRequest", "Bad")
        got = await call(proxy.port, chat("moai"), MESSAGES, [(b"mixTuningId", b"x")])
        assert got.status == 404
        assert got.json()["error"]["type"] == "not_found_error"


async def test_order_of_refusals(upstream: Upstream) -> None:
    """First who asks (401), then what for (404, 403), then the header: missing (400), unknown (404)."""
    narrow = '[keys]\nteam = "tk-team"\nnarrow = { secret = "tk-narrow", models = ["plain"] }\n'
    names = 'errors = { 401 = "Unauthorized" }\naccept = ["apikey"]'
    team, few, unknown = (b"apikey", b"tk-team"), (b"apikey", b"tk-narrow"), (b"mixTuningId", b"x")
    async with serving(mixing(upstream, names, narrow)) as proxy:
        for model, headers, status, code in (
            ("moai", [], 401, "invalid_api_key"),
            ("moai", [unknown], 401, "invalid_api_key"),
            ("moai", [MIX], 401, "invalid_api_key"),
            ("moai", [MIX, (b"apikey", b"junk")], 401, "invalid_api_key"),
            ("moai", [MIX, (b"Authorization", b"Bearer tk-team")], 401, "invalid_api_key"),
            ("absent", [team], 404, "model_not_found"),
            ("moai", [few], 403, "model_not_allowed"),
            ("moai", [few, unknown], 403, "model_not_allowed"),
            ("moai", [team], 400, "BadRequest"),
            ("moai", [team, unknown], 404, "MixTuningNotFound"),
        ):
            got = await call(proxy.port, chat(model), headers=headers)
            assert (got.status, got.code) == (status, code), (model, headers)
            assert got.json()["error"].get("name") == ("Unauthorized" if status == 401 else None)
        assert upstream.connections == []
        junk = (b"Authorization", b"Bearer junk")
        assert (await call(proxy.port, chat("moai"), headers=[junk, MIX, team])).status == 200


async def test_header_errors_in_an_sdk(upstream: Upstream) -> None:
    """The SDK raises the classes that go with the statuses, with the codes of the file."""
    async with (
        serving(mixing(upstream)) as proxy,
        AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="x", max_retries=0) as client,
    ):
        messages: Any = [{"role": "user", "content": "x"}]
        with pytest.raises(BadRequestError) as missing:
            await client.chat.completions.create(model="moai", messages=messages)
        assert missing.value.code == "BadRequest"
        with pytest.raises(NotFoundError) as unknown:
            await client.chat.completions.create(
                model="moai", messages=messages, extra_headers={"mixTuningId": "nope"}
            )
        assert (unknown.value.code, unknown.value.param) == ("MixTuningNotFound", "mixTuningId")


@pytest.mark.parametrize("name", [b"mixTuningId", b"MIXTUNINGID"])
async def test_the_header_stays_here(upstream: Upstream, name: bytes) -> None:
    """What chose the route is nobody else's business; what looks like it is not it, and passes."""
    others = [(b"mixTuningIds", b"1"), (b"X-mixTuningId", b"mix-fast")]
    async with serving(mixing(upstream)) as proxy:
        await call(proxy.port, chat("moai"), headers=[(name, b"mix-fast"), *others])
    assert upstream.requests[0].values(b"mixtuningid") == []
    assert [pair for pair in upstream.requests[0].headers if pair in others] == others


@pytest.mark.parametrize("forward", ['["mixTuningId"]', '"MIXTUNINGID"', '["x-b", "mixtuningid"]'])
async def test_the_header_goes_on(upstream: Upstream, forward: str) -> None:
    """An upstream that asks for it gets it as it came."""
    async with serving(mixing(upstream, up=f"forward = {forward}")) as proxy:
        await call(proxy.port, chat("moai"), headers=[(b"MixTuningID", b"mix-fast")])
    assert (b"MixTuningID", b"mix-fast") in upstream.requests[0].headers


async def test_the_header_of_another_route(upstream: Upstream) -> None:
    """Where it chooses nothing it is a header like any other, and passes."""
    async with serving(mixing(upstream)) as proxy:
        assert (await call(proxy.port, chat("plain"), headers=[MIX])).status == 200
    assert MIX in upstream.requests[0].headers


async def test_fallback_behind_a_value(upstream: Upstream) -> None:
    """Behind a value stands all that a route may be; each upstream has its own word on the header."""
    async with Upstream() as second:
        upstream.will(answer(503, b"{}"))
        more = f"""
mix-both = "both"
[routes.both]
upstream = "up"
model = "first"
fallback = ["b/second"]
retry = {{ attempts = 2 }}
[upstreams.b]
base_url = "{second.url}"
forward = ["mixTuningId"]
"""
        async with serving(mixing(upstream, more=more)) as proxy:
            both = (b"mixTuningId", b"mix-both")
            got = await call(proxy.port, chat("moai"), headers=[both])
            assert got.status == 200
            record = await proxy.record()
            assert [one["upstream"] for one in record["attempts"]] == ["up", "b"]
            assert (record["route"], record["upstream_model"]) == ("moai", "second")
        assert (sent(upstream), sent(second)) == ("first", "second")
        assert upstream.requests[0].values(b"mixtuningid") == []
        assert second.requests[0].values(b"mixtuningid") == [b"mix-both"]


async def test_a_value_that_fails_leads_to_no_other_value(upstream: Upstream) -> None:
    """Where one value leads is no fallback for another."""
    upstream.will(answer(503, b"{}"))
    async with serving(mixing(upstream, more="[defaults]\nretry = { attempts = 3 }")) as proxy:
        got = await call(proxy.port, chat("moai"), headers=[MIX])
        assert got.status == 503
    assert {orjson.loads(one.body)["model"] for one in upstream.requests} == {"fast"}


async def test_header_and_passthrough(upstream: Upstream) -> None:
    """On a surface that passes callers' credentials on, the header chooses all the same."""
    toml = mixing(upstream, 'auth = "passthrough"', up="passthrough = true")
    async with serving(toml) as proxy:
        own = (b"Authorization", b"Bearer sk-callers-own")
        assert (await call(proxy.port, chat("moai"), headers=[own])).code == "BadRequest"
        got = await call(proxy.port, chat("moai"), headers=[own, (b"mixTuningId", b"mix-deep")])
        assert got.status == 200
    assert sent(upstream) == "deep"
    assert upstream.requests[0].value(b"authorization") == b"Bearer sk-callers-own"
    assert upstream.requests[0].values(b"mixtuningid") == []


async def test_header_by_another_name(upstream: Upstream) -> None:
    """An alias of the route asks for the header too, and hides it too."""
    async with serving(mixing(upstream)) as proxy:
        got = await call(proxy.port, chat("alias"))
        assert (got.status, got.code) == (400, "BadRequest")
        got = await call(proxy.port, chat("alias"), headers=[(b"mixTuningId", b"mix-deep")])
        assert got.status == 200
    assert [orjson.loads(one.body)["model"] for one in upstream.requests] == ["deep"]
    assert upstream.requests[0].values(b"mixtuningid") == []


async def test_dormant_value(upstream: Upstream) -> None:
    """A value whose vendor has no credential yet says so; the others work."""
    async with serving(mixing(upstream, more='mix-far = "openai/gpt-4o"')) as proxy:
        got = await call(proxy.port, chat("moai"), headers=[(b"mixTuningId", b"mix-far")])
        assert (got.status, got.code) == (503, "not_configured")
        assert "OPENAI_API_KEY" in got.json()["error"]["message"]
        assert (await call(proxy.port, chat("moai"), headers=[MIX])).status == 200


async def test_value_that_does_not_speak(upstream: Upstream) -> None:
    """What counts is what the chosen place speaks, not what others behind the header do."""
    more = f"""
mix-old = "old/x"
[upstreams.old]
base_url = "{upstream.url}"
speaks = ["completions"]
"""
    async with serving(mixing(upstream, more=more)) as proxy:
        got = await call(proxy.port, chat("moai"), headers=[(b"mixTuningId", b"mix-old")])
        assert (got.status, got.code) == (404, "endpoint_not_supported")
        assert (await call(proxy.port, chat("moai"), headers=[MIX])).status == 200
    assert len(upstream.requests) == 1


async def test_header_of_a_pattern(upstream: Upstream) -> None:
    """A pattern may be chosen among by header too, and its `*` goes where the place says."""
    more = '[routes."h/*"]\nheader = "x-mix"\nto = { a = "up/a-*", b = "up/b" }\n'
    async with serving(mixing(upstream, more=more)) as proxy:
        for value, model in ((b"a", "a-one"), (b"b", "b")):
            await call(proxy.port, chat("h/one"), headers=[(b"X-Mix", value)])
            assert sent(upstream) == model


async def test_switched_route_is_listed_once(upstream: Upstream) -> None:
    """`/v1/models` shows the route, and none of the values behind it."""
    async with serving(mixing(upstream)) as proxy:
        got = await call(proxy.port, b"", "/v1/models", method="GET")
        assert [one["id"] for one in got.json()["data"]] == ["plain", "alias", "moai"]
        assert b"mix-" not in got.body


# Nothing else changes

ODD: list[Pair] = [
    (b"X-MiXed", b"a"), (b"X-Twice", b"1"), (b"Accept", b"b"), (b"X-Twice", b"1"),
    (b"mixTuningIds", b"\xe9"), (b"Cache-Control", b"no-store"), (b"Access-Control", b"1"),
]  # fmt: skip


def given(facts: Sequence[str], **named: list[Pair]) -> Given:
    return Given({"always", "unless the surface says passthrough", *facts}, named)


@pytest.mark.parametrize("streams", [False, True])
async def test_the_edits_are_those_of_the_page(upstream: Upstream, streams: bool) -> None:
    """With all of this on, what changes is what docs/edits.md lists: no other header, no other byte."""
    body = STREAM if streams else PLAIN
    reply = [*ODD, *VENDORS, SSE if streams else JSON]
    lines = [*reply, (b"Content-Length", b"%d" % len(body))]
    upstream.will(raw(head(200, lines) + body, then="keep"))
    toml = mixing(upstream, f"{ECHO}\n{CORS}", KEYS)
    text = b'{ "n":1.0,\r\n"model" : "moai","stream":%s }' % (b"true" if streams else b"false")
    asked = request(text, headers=[*ODD, BEARER, MIX, FROM_APP])
    async with serving(toml) as proxy, await Client.connect(proxy.port) as client:
        await client.send(asked)
        got = await client.answer()
    before = Message(asked.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", text)
    seen = upstream.requests[0]
    credential = [(b"Authorization", b"Bearer sk-upstream-secret")]
    upwards = given(
        [
            "where it goes by model", "where the route sends another name",
            "where a header chooses the route",
            "where a stream is asked for"
            if streams
            else "where none is, and the surface says echo_model",
        ]
    )  # fmt: skip
    upwards.named = {
        "<the upstream's credential>": credential,
        "<the header that chooses the route>": [(b"mixTuningId", b"")],
    }
    upwards.values = {
        "Host": upstream.authority.encode(), "Content-Length": b"%d" % len(seen.body),
    }  # fmt: skip
    after = Message(seen.head, seen.body)
    assert list(header_differences("Requests", before, after, upwards)) == []
    assert seen.body == text.replace(b'"moai"', b'"fast"')
    downwards = given(
        [
            "where a body comes without Content-Length", "where the surface says echo_model",
            "where the surface has cors", "where cors has the page's origin",
            *(["on a stream", "on a checked stream"] if streams else []),
        ]
    )  # fmt: skip
    downwards.values = {"Access-Control-Allow-Origin": ORIGIN}
    old = Message(head(200, lines), body)
    new = Message(got.head, got.body)
    assert list(header_differences("Answers", old, new, downwards)) == []
    named = STREAM_NAMED if streams else NAMED
    assert got.body == named.replace(b'"asked"', b'"moai"')
