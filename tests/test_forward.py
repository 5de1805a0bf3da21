"""Who may ask, for what, and what becomes of the credentials on both sides."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from tests.harness.client import Client, Pair, call, chat, request
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import DONE, Upstream, answer, event, stream
from tests.test_errors import BEARER, INVALID, assert_authored

SECRET = b"sk-team-0123456789"
KEY: Pair = (b"Authorization", b"Bearer " + SECRET)
OURS = b"Bearer sk-upstream-secret"


def routes(upstream: Upstream, server: str = "", keys: str = "", up: str = "") -> str:
    """Return a routes file with an upstream that has a credential, and a dormant vendor."""
    return f"""
        [server]
        {server}
        [upstreams.up]
        base_url = "{upstream.url}"
        credential = "sk-upstream-secret"
        {up}
        [routes]
        "default" = "up/the-default"
        "alias" = "default"
        "up/*" = {{ upstream = "up" }}
        "m" = "up/m"
        "dormant" = "openai/gpt-4o"
        {keys}
        """


def day(offset: int) -> str:
    """Return the day that is *offset* days from today, in UTC, as TOML writes it."""
    return (datetime.now(UTC) + timedelta(days=offset)).date().isoformat()


def keys() -> str:
    """Return a table with keys of every kind."""
    return f"""
[keys]
team = "{SECRET.decode()}"
hashed = {{ hash = "sha256:{sha256(b"sk-hashed-0123456789").hexdigest()}" }}
today = {{ secret = "sk-today-0123456789", expires = {day(0)} }}
yesterday = {{ secret = "sk-yesterday-0123456789", expires = {day(-1)} }}
narrow = {{ secret = "sk-narrow-0123456789", models = ["default", "up/*"] }}
"""


@pytest.fixture
async def keyed(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy with keys of every kind."""
    async with serving(routes(upstream, keys=keys())) as running:
        yield running


# Keys


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ((b"Authorization", b"Bearer " + SECRET), "team"),
        ((b"authorization", b"bearer " + SECRET), "team"),
        ((b"AUTHORIZATION", b"BEARER " + SECRET), "team"),
        ((b"Authorization", b"Bearer   " + SECRET), "team"),
        ((b"Authorization", b"Bearer " + SECRET + b" \t"), "team"),
        ((b"X-API-Key", SECRET), "team"),
        ((b"x-api-key", SECRET), "team"),
        ((b"api-key", SECRET), "team"),
        ((b"apikey", SECRET), "team"),
        ((b"ApiKey", SECRET), "team"),
        ((b"x-goog-api-key", SECRET), "team"),
        ((b"X-Goog-Api-Key", SECRET), "team"),
        ((b"x-api-key", b"sk-hashed-0123456789"), "hashed"),
        ((b"x-api-key", b"sk-today-0123456789"), "today"),
    ],
)
async def test_key(keyed: Proxy, upstream: Upstream, header: Pair, name: str) -> None:
    """A key may come in any of the headers that clients use, and the log knows it by its name."""
    assert (await call(keyed.port, chat(), headers=[header])).status == 200
    assert upstream.requests[0].values(b"authorization") == [OURS]
    assert SECRET not in upstream.requests[0].head
    assert (await keyed.record())["key"] == name


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"Authorization", b"")],
        [(b"Authorization", b"Bearer")],
        [(b"Authorization", b"Bearer ")],
        [(b"Authorization", b"Basic " + SECRET)],
        [(b"Authorization", b"Bearer\t" + SECRET)],
        [(b"Authorization", b"Bearer Bearer " + SECRET)],
        [(b"Authorization", b'Bearer "' + SECRET + b'"')],
        [(b"Authorization", b"Bearer " + SECRET[:-1])],
        [(b"Authorization", b"Bearer " + SECRET + b"0")],
        [(b"Authorization", b"Bearer " + SECRET.upper())],
        [(b"Authorization", b"Bearer sk-\xc3\xa9\xff")],
        [(b"Authorization", b"Bearer " + b"x" * 31_000)],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"Bearer " + SECRET)],
        [(b"x-api-key", b"team")],
        [(b"x-api-key", sha256(b"sk-hashed-0123456789").hexdigest().encode())],
        [(b"x-goog-api-key", b"Bearer " + SECRET)],
        [(b"Proxy-Authorization", b"Bearer " + SECRET)],
        [(b"Cookie", b"key=" + SECRET)],
        [(b"x-api-key", b"sk-yesterday-0123456789")],
    ],
)
async def test_no_key(keyed: Proxy, upstream: Upstream, headers: list[Pair]) -> None:
    """Everything that is not exactly a key, in a header that may hold one, is refused, kindly."""
    async with await Client.connect(keyed.port) as client:
        await client.send(request(chat(), headers=headers))
        got = await client.answer()
        kind = "authentication_error"
        assert_authored(got, 401, kind, "invalid_api_key", headers=BEARER)
        assert b"0123456789" not in got.raw
        await client.send(request(chat(), headers=[KEY]))
        assert (await client.answer()).status == 200
    assert len(upstream.requests) == 1


async def test_key_in_the_query_is_none(keyed: Proxy, upstream: Upstream) -> None:
    """A key in the URL does not count: URLs are written down everywhere."""
    path = f"/v1/chat/completions?key={SECRET.decode()}"
    assert (await call(keyed.port, chat(), path)).status == 401
    assert (await keyed.record())["path"] == "/v1/chat/completions"
    assert SECRET not in keyed.log.read_bytes()
    assert upstream.requests == []


async def test_where_a_key_belongs(keyed: Proxy) -> None:
    """Who brings no key is told every place where one may be put."""
    message = (await call(keyed.port, chat())).json()["error"]["message"]
    for place in ("Authorization: Bearer", "x-api-key", "api-key", "apikey", "x-goog-api-key"):
        assert place in message


@pytest.mark.parametrize(
    "other",
    [
        (b"Authorization", b"Bearer not-needed"),
        (b"Authorization", b"Basic dTpw"),
        (b"x-api-key", b"dummy"),
        (b"apikey", b"sk-yesterday-0123456789"),
        (b"apikey", b"\xff"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
async def test_any_valid_key_wins(
    keyed: Proxy, upstream: Upstream, other: Pair, first: bool
) -> None:
    """A second credential, sent out of habit, does no harm on either side of the valid key."""
    valid: Pair = (b"api-key", SECRET)
    headers = [other, valid] if first else [valid, other]
    assert (await call(keyed.port, chat(), headers=headers)).status == 200
    assert upstream.requests[0].values(b"authorization") == [OURS]
    for name in (b"api-key", b"apikey", b"x-api-key"):
        assert upstream.requests[0].values(name) == []


async def test_two_headers_of_one_name(keyed: Proxy) -> None:
    """The same header twice is as good as two headers."""
    junk: Pair = (b"Authorization", b"Bearer junk")
    for headers in ([junk, KEY], [KEY, junk]):
        assert (await call(keyed.port, chat(), headers=headers)).status == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [((b"apikey", SECRET), 200), (KEY, 401), ((b"x-api-key", SECRET), 401)],
)
async def test_accept(upstream: Upstream, header: Pair, status: int) -> None:
    """A surface that accepts one header does not look into the others, and still strips them."""
    async with serving(routes(upstream, 'accept = ["apikey"]', keys())) as proxy:
        got = await call(proxy.port, chat(), headers=[header])
        assert got.status == status
        if status == 401:
            assert "apikey" in got.json()["error"]["message"]
        junk: list[Pair] = [(b"Authorization", b"Bearer junk"), (b"x-api-key", b"junk")]
        headers: list[Pair] = [*junk, (b"apikey", SECRET)]
        assert (await call(proxy.port, chat(), headers=headers)).status == 200
        assert upstream.requests[-1].values(b"authorization") == [OURS]
        assert b"junk" not in upstream.requests[-1].head


# What of the client's goes up

CREDENTIALS: list[Pair] = [
    (b"Authorization", b"Bearer canary-1"),
    (b"x-api-key", b"canary-2"),
    (b"API-Key", b"canary-3"),
    (b"apikey", b"canary-4"),
    (b"x-goog-api-key", b"canary-5"),
    (b"Proxy-Authorization", b"Basic canary-6"),
    (b"Cookie", b"session=canary-7"),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses/compact"])
async def test_no_credential_of_the_client_goes_up(
    keyed: Proxy, upstream: Upstream, path: str
) -> None:
    """Upstreams see our credential, and none of the client's, in whatever header it came."""
    headers = [*CREDENTIALS, (b"x-api-key", SECRET)]
    assert (await call(keyed.port, chat(), path, headers)).status == 200
    seen = upstream.requests[0]
    assert b"canary" not in seen.head
    assert SECRET not in seen.head
    assert seen.values(b"authorization") == [OURS]


async def test_our_credential_cannot_be_nominated_away(keyed: Proxy, upstream: Upstream) -> None:
    """A `Connection` header of the client's says nothing about the headers that we add."""
    hop: Pair = (b"Connection", b"authorization, host, content-length, x-drop")
    headers = [KEY, (b"Connection", b""), hop, (b"x-drop", b"1"), (b"x-keep", b"1")]
    assert (await call(keyed.port, chat(), headers=headers)).status == 200
    seen = upstream.requests[0]
    assert seen.values(b"authorization") == [OURS]
    assert seen.values(b"host") == [upstream.authority.encode()]
    assert seen.body == chat()
    assert seen.values(b"x-drop") == []
    assert seen.values(b"x-keep") == [b"1"]


@pytest.mark.parametrize("headers", [[], [(b"Authorization", b"Bearer not-needed")], CREDENTIALS])
async def test_open_surface(upstream: Upstream, headers: list[Pair]) -> None:
    """Where no key is asked for, any is accepted and none goes up: SDKs insist on sending one."""
    async with serving(routes(upstream)) as proxy:
        assert (await call(proxy.port, chat(), headers=headers)).status == 200
        record = await proxy.record()
    assert upstream.requests[0].values(b"authorization") == [OURS]
    assert b"canary" not in upstream.requests[0].head
    assert b"not-needed" not in upstream.requests[0].head
    assert record["key"] is None


TEAM = SECRET.decode()


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ("", ""),
        (f"?key={TEAM}", ""),
        (f"?a=%41+b&key={TEAM}&c=;d", "?a=%41+b&c=;d"),
        (f"?key={TEAM}&key={TEAM}&a", "?a"),
        (f"?key={TEAM.replace('-', '%2D')}&a=1", "?a=1"),
        (f"?k%65y={TEAM}&a=1", "?a=1"),
        ("?key=another&api-version=2024-10-21", "?key=another&api-version=2024-10-21"),
        (f"?notkey={TEAM}x", f"?notkey={TEAM}x"),
        ("?a=1&&b=%zz&=&c", "?a=1&&b=%zz&=&c"),
        ("?url=http://x/?y", "?url=http://x/?y"),
    ],
)
async def test_query(keyed: Proxy, upstream: Upstream, query: str, sent: str) -> None:
    """A query goes up as it came, less a `key` that holds a key of ours."""
    path = f"/v1/chat/completions{query}"
    assert (await call(keyed.port, chat(), path, [KEY])).status == 200
    assert upstream.requests[0].target == f"/v1/chat/completions{sent}"


# Passthrough

CALLER: list[Pair] = [
    (b"authorization", b"Bearer sk-the-callers-own"),
    (b"X-Api-Key", b"sk-the-callers-other"),
]


@pytest.fixture
async def passing(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy that passes its callers' own credentials on, where the upstream may have them."""
    toml = f"""
        [server]
        auth = "passthrough"
        [upstreams.up]
        base_url = "{upstream.url}"
        credential = "sk-upstream-secret"
        passthrough = true
        [upstreams.closed]
        base_url = "{upstream.url}"
        credential = "sk-upstream-secret"
        [upstreams.openai]
        base_url = "{upstream.url}"
        passthrough = true
        [routes]
        "m" = "up/m"
        "closed" = "closed/m"
        "unset" = "openai/gpt-4o"
        """
    async with serving(toml) as running:
        yield running


@pytest.mark.parametrize("model", ["m", "unset"])
async def test_passthrough(passing: Proxy, upstream: Upstream, model: str) -> None:
    """The caller's own credential goes up as it came, in place of ours; cookies never do."""
    cookie: Pair = (b"Cookie", b"session=canary")
    path = "/v1/chat/completions?key=sk-the-callers-third"
    got = await call(passing.port, chat(model), path, [*CALLER, cookie])
    assert got.status == 200
    seen = upstream.requests[0]
    assert [pair for pair in seen.headers if pair in CALLER] == CALLER
    assert seen.target == path
    assert b"sk-upstream-secret" not in seen.head
    assert b"canary" not in seen.head
    record = await passing.record()
    assert record["key"] is None
    assert b"sk-the-callers" not in passing.log.read_bytes()


async def test_passthrough_without_a_credential(passing: Proxy, upstream: Upstream) -> None:
    """A caller without a credential gets none of ours: the upstream will say what it thinks."""
    assert (await call(passing.port, chat())).status == 200
    assert b"sk-" not in upstream.requests[0].head


async def test_passthrough_refusal_is_the_upstreams(passing: Proxy, upstream: Upstream) -> None:
    """A 401 is meant for the caller's own credential, and so is relayed as it came."""
    body = b'{"error":{"message":"Incorrect API key provided: sk-the-***"}}'
    challenge: Pair = (b"WWW-Authenticate", b'Bearer realm="upstream"')
    upstream.will(answer(401, body, [challenge], b"Unauthorized, Really"))
    got = await call(passing.port, chat(), headers=CALLER)
    assert got.head.startswith(b"HTTP/1.1 401 Unauthorized, Really\r\n")
    assert got.body == body
    assert got.values(b"www-authenticate") == [challenge[1]]
    record = await passing.record()
    assert (record["status"], record["outcome"]) == (401, "upstream_error")


async def test_passthrough_where_it_is_not_wanted(passing: Proxy, upstream: Upstream) -> None:
    """No upstream gets a caller's credential that was not said to take one, nor is ours lent."""
    got = await call(passing.port, chat("closed"), headers=CALLER)
    assert_authored(got, 403, "permission_error", "model_not_allowed", param="model")
    assert upstream.requests == []


# Models


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("m", "m"),
        ("alias", "the-default"),
        ("up/a/b", "a/b"),
        ("up/up/x", "up/x"),
        (None, "the-default"),
    ],
)
async def test_model(keyed: Proxy, upstream: Upstream, asked: str | None, sent: str) -> None:
    """A name leads where the file says; without one, `default` is meant."""
    assert (await call(keyed.port, chat(asked, temperature=1), headers=[KEY])).status == 200
    head, _, rest = upstream.requests[0].body.partition(b",")
    assert head == b'{"model":"%b"' % sent.encode()
    assert rest == chat(None, temperature=1)[1:]
    record = await keyed.record()
    assert (record["model"], record["upstream_model"]) == (asked or "default", sent)


@pytest.mark.parametrize(
    "model", ["M", "m ", " ", "up", "alias/x", "../m", "__proto__", "m\0", "m" * 10**6]
)
async def test_unknown_model(keyed: Proxy, upstream: Upstream, model: str) -> None:
    """A name that is not exactly a route's leads nowhere, and is shown only as far as it is safe."""
    got = await call(keyed.port, chat(model), headers=[KEY])
    assert_authored(got, 404, INVALID, "model_not_found", param="model")
    assert len(got.body) < 1000
    assert upstream.requests == []
    assert len((await keyed.record())["model"]) <= 128


@pytest.mark.parametrize(
    ("model", "status"),
    [("default", 200), (None, 200), ("up/x", 200), ("m", 403), ("alias", 403), ("x", 404)],
)
async def test_key_with_models(keyed: Proxy, model: str | None, status: int) -> None:
    """What a key may ask for is decided by the name that is asked for."""
    got = await call(keyed.port, chat(model), headers=[(b"x-api-key", b"sk-narrow-0123456789")])
    assert got.status == status


@pytest.mark.parametrize(
    ("model", "status"), [("up/x", 200), ("m", 404), ("default", 404), (None, 400)]
)
async def test_surface_with_routes(upstream: Upstream, model: str | None, status: int) -> None:
    """What a surface does not show cannot be called there, and does not exist there."""
    async with serving(routes(upstream, 'routes = ["up/*"]')) as proxy:
        got = await call(proxy.port, chat(model))
        assert got.status == status
        if status == 404:
            assert "did you mean" not in got.json()["error"]["message"].lower()


async def test_destination_is_the_files_alone(keyed: Proxy, upstream: Upstream) -> None:
    """Nothing in a request can lead it anywhere else."""
    async with Upstream() as other:
        wishes = dict.fromkeys(("api_base", "base_url", "endpoint", "url"), other.url)
        names = (b"x-upstream", b"x-portkey-custom-host", b"x-forwarded-host", b"x-original-url")
        headers = [KEY, *((name, other.url.encode()) for name in names)]
        path = f"/v1/chat/completions?api_base={other.url}"
        got = await call(keyed.port, chat(**wishes), path, headers, host=other.authority.encode())
        assert got.status == 200
        assert other.connections == []
    assert upstream.requests[0].body == chat(**wishes)


async def test_reused_connection_keeps_nothing(keyed: Proxy, upstream: Upstream) -> None:
    """Two callers on one upstream connection do not hear of each other."""
    upstream.will(
        answer(headers=[(b"Set-Cookie", b"__cf=first"), (b"X-A", b"1")]),
        stream(event(b"{}"), DONE),
        answer(),
    )
    for headers in ([KEY, (b"x-first", b"1")], [KEY], [KEY]):
        got = await call(keyed.port, chat(), headers=headers)
        assert got.values(b"set-cookie") == []
    assert len(upstream.connections) == 1
    for seen in upstream.requests[1:]:
        assert seen.values(b"cookie") == []
        assert seen.values(b"x-first") == []
