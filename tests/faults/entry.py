"""B: who may ask, where it goes, and what of the heads passes."""

import asyncio

import orjson

from tests.faults.case import case
from tests.faults.house import At
from tests.faults.places import Spot
from tests.harness.client import Pair, request
from tests.harness.upstream import JSON, answer

OK = b'{"ok":true}'
KEYS: dict[str, tuple[list[Pair], int]] = {
    "none": ([], 401),
    "empty": ([(b"Authorization", b"")], 401),
    "Bearer": ([(b"Authorization", b"Bearer")], 401),
    "Basic": ([(b"Authorization", b"Basic <KEY>")], 401),
    "wrong": ([(b"Authorization", b"Bearer <KEY>x")], 401),
    "prefix": ([(b"Authorization", b"Bearer sk-cl-")], 401),
    "very long": ([(b"Authorization", b"Bearer " + b"x" * 20_000)], 401),
    "lower case": ([(b"Authorization", b"bearer <KEY>")], 200),
    "x-api-key": ([(b"x-api-key", b"<KEY>")], 200),
    "a wrong one beside it": ([(b"x-api-key", b"junk"), (b"Authorization", b"Bearer <KEY>")], 200),
    "two": ([(b"Authorization", b"Bearer junk"), (b"Authorization", b"Bearer junk")], 401),
}


@case("B01", forms=KEYS)
async def keys(at: At, what: tuple[list[Pair], int]) -> None:
    """Any accepted header with a valid key is enough; without one it is 401, and nothing is sent."""
    at.lines += 1
    caller = await at.connect()
    headers = [(name, value.replace(b"<KEY>", at.house.key.encode())) for name, value in what[0]]
    await caller.send(request(at.body(), headers=headers))
    got = await caller.answer()
    assert got.status == what[1]
    if got.status == 401:
        assert got.value(b"www-authenticate") == b"Bearer"
        assert at["A"].heard == []


@case("B04")
async def destination(at: At) -> None:
    """Nothing in a request moves its destination."""
    evil = "http://evil.example"
    headers = [
        (b"X-Forwarded-Host", b"evil.example"),
        (b"X-Original-URL", b"/admin"),
        (b"X-Rewrite-URL", b"/admin"),
        (b"X-HTTP-Method-Override", b"DELETE"),
        (b"x-upstream", b"trap"),
        (b"x-portkey-custom-host", evil.encode()),
    ]
    body = at.body(api_base=evil, base_url=evil, user_config={"base_url": evil}, api_key="x")
    path = f"/v1/chat/completions?api_base={evil}&base_url={evil}"
    assert (await at.call(body, headers, path=path)).body == OK
    (heard,) = at["A"].heard
    assert heard.request.line.startswith(b"POST /v1/chat/completions?")
    assert heard.request.body == body
    assert at.house.places["trap"].heard == []


@case("B05", spots={name: Spot() for name in "ABCD"}, routes="\n".join(f'"@{n}" = {{ upstream = "@-{n}" }}' for n in "ABCD"))  # fmt: skip
async def own_keys(at: At) -> None:
    """Each upstream sees its own credential, its own Host, its own path, and nobody else's."""
    calls = [at.call(model=f"B05{name}") for name in "ABCD" for _ in range(10)]
    await asyncio.gather(*calls)
    for place in at.places.values():
        assert len(place.heard) == 10
        for heard in place.heard:
            assert heard.request.value(b"authorization") == b"Bearer " + place.secrets[0].encode()
            assert heard.request.value(b"host") == place.authority.encode()


@case("B06")
async def callers_credentials(at: At) -> None:
    """No credential of the caller's goes up, wherever it stands."""
    names = (b"x-api-key", b"api-key", b"apikey", b"x-goog-api-key")
    headers = [(name, at.house.key.encode()) for name in names]
    headers.append((b"Cookie", b"session=" + at.house.key.encode()))
    path = f"/v1/chat/completions?key={at.house.key}"
    assert (
        await at.call(headers=headers, path=path)
    ).body == OK  # the rest is checked of every case
    seen = at["A"].heard[0].request
    assert all(seen.value(name) is None for name in (*names, b"cookie"))


@case("B07")
async def forwarded(at: At) -> None:
    """What a stranger says of where it comes from goes no further, and is not what the log says."""
    names = (b"X-Forwarded-For", b"X-Forwarded-Proto", b"Forwarded", b"Via")
    assert (await at.call(headers=[(name, b"6.6.6.6") for name in names])).body == OK
    assert b"6.6.6.6" not in at["A"].heard[0].request.head
    assert (await at.record())["client_ip"] == "127.0.0.1"


@case("B08")
async def answers_headers(at: At) -> None:
    """Hints, limits and ids pass; what is for one hop, sets cookies or leads elsewhere does not."""
    passing = [
        (b"openai-organization", b"o"),
        (b"x-ratelimit-remaining-requests", b"7"),
        (b"Retry-After", b"3"),
        (b"retry-after-ms", b"3000"),
        (b"x-should-retry", b"false"),
        (b"x-request-id", b"theirs"),
        (b"Server", b"vendor"),
        (b"Strict-Transport-Security", b"max-age=1"),
    ]
    stopped = [
        (b"Set-Cookie", b"a=b"),
        (b"Alt-Svc", b'h3=":443"'),
        (b"Connection", b"x-hop"),
        (b"X-Hop", b"1"),
        (b"Keep-Alive", b"timeout=5"),
    ]
    at["A"].will(answer(headers=[JSON, *passing, *stopped]))
    got = await at.call()
    assert [pair for pair in got.headers if pair in passing] == passing
    assert not set(got.headers) & set(stopped)
    assert (await at.record())["upstream_request_id"] == "theirs"


@case(
    "B09",
    forms={
        path: path
        for path in ("/v1/models", "/health", "/livez", "/status", "/metrics", "/", "/v1")
    },
)
async def strangers(at: At, path: str) -> None:
    """Without a key there is nothing to learn: no key, URL, path, version or environment."""
    caller = await at.connect()
    await caller.send(request(path=path, method="GET"))
    got = await caller.answer()
    if path in ("/health", "/livez"):
        assert got.body == b'{"status":"ok"}'
    elif path in ("/", "/v1"):
        assert got.status == 200
    else:
        at.lines += 1
        assert got.status in (401, 404, 405)
    for never in (b"127.0.0.1", b"B09", b"routes.toml", b"python", b"aiohttp"):
        assert never not in got.raw.lower()


QUERIES = ("a=1&a=2", "a=%20+%2B", "a;b=c", "=&&", "x=http://evil.example/?y")


@case("B10", forms={query: query for query in QUERIES})
async def queries(at: At, query: str) -> None:
    """A query goes up as it was written."""
    assert (await at.call(path=f"/v1/chat/completions?{query}")).body == OK
    assert at["A"].heard[0].request.target == f"/v1/chat/completions?{query}"


@case("B12")
async def cookies(at: At) -> None:
    """What an upstream sets at one caller is not sent by the next."""
    at["A"].will(answer(headers=[JSON, (b"Set-Cookie", b"a=b"), (b"ETag", b'"x"')]))
    for _ in range(3):
        assert (await at.call()).body == OK
    for heard in at["A"].heard:
        assert heard.request.value(b"cookie") is None
        assert heard.request.value(b"if-none-match") is None


@case(
    "B02",
    forms={
        "messages": "/v1/messages",
        "responses": "/v1/responses",
        "chat": "/v1/chat/completions",
    },
)
async def shapes(at: At, path: str) -> None:
    """An error has the shape of the path that was called."""
    body = orjson.dumps({"model": "nobody", "messages": []})
    got = await at.call(body, path=path)
    assert got.status == 404
    assert ("request_id" in got.json()) == (path == "/v1/messages")
