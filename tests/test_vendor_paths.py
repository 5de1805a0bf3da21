"""What the vendors' own SDKs call: every path, form and habit reaches the right place, or is refused
in words.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from tests.harness.client import Answer, Pair, call, chat
from tests.harness.proxy import Proxy, process, serving
from tests.harness.upstream import Upstream, answer, event, stream
from tests.test_errors import INVALID, assert_authored

KEY = "sk-team-0123456789"
TEAM: Pair = (b"x-goog-api-key", KEY.encode())
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
KEYS = f"""
    [keys]
    team = "{KEY}"
    narrow = {{ secret = "sk-narrow-0123456789", models = ["gemini-*"] }}
    """


def routes(upstream: Upstream, server: str = "") -> str:
    """Return a routes file with vendors of several kinds, all of them at *upstream*."""
    at = f"http://{upstream.authority}"
    return f"""
        [server]
        {server}
        [upstreams.google]
        base_url = "{at}/v1beta/openai"
        credential = "sk-google-secret"
        forms = {{ gemini = "x-goog-api-key" }}
        paths = {{ gemini = "{at}/v1beta" }}
        speaks = ["chat", "embeddings", "gemini", "models"]
        [upstreams.plain]
        base_url = "{at}/plain"
        credential = "sk-plain-secret"
        [upstreams.both]
        base_url = "{at}/openai/v1"
        credential = "sk-both-secret"
        forms = {{ messages = "x-api-key", count_tokens = "x-api-key" }}
        paths = {{ messages = "{at}/anthropic/v1", "responses/compact" = "{at}/compact" }}
        speaks = ["chat", "messages", "count_tokens", "responses"]
        [upstreams.both.defaults]
        messages = {{ anthropic-version = "2023-06-01" }}
        [upstreams.chatty]
        base_url = "{at}/chatty"
        speaks = ["chat", "embeddings"]
        [upstreams.groq]
        base_url = "{at}/groq"
        credential = "sk-groq-secret"
        [routes]
        "default" = "plain/the-default"
        "gemini-*" = {{ upstream = "google" }}
        "flash" = "google/gemini-2.5-flash"
        "org/*" = {{ upstream = "google", model = "*" }}
        "plain/*" = {{ upstream = "plain" }}
        "both" = "both/its own"
        "chatty" = "chatty/m"
        "groq" = "groq/m"
        "qwen/*" = {{ upstream = "plain", list = ["qwen-turbo"] }}
        "whisper" = "plain/whisper-1"
        "gpt-image-1" = {{ upstream = "plain" }}
        """


@pytest.fixture
async def vendors(upstream: Upstream) -> AsyncIterator[Proxy]:
    """A proxy without keys in front of all vendors."""
    async with serving(routes(upstream)) as running:
        yield running


@pytest.fixture
async def keyed(upstream: Upstream) -> AsyncIterator[Proxy]:
    """The same, with keys."""
    async with serving(routes(upstream) + KEYS) as running:
        yield running


# Gemini's own paths

CONTENT = b'{"model":"models/x","model":1, "contents" : [{"parts":[{"text":"\\u00e9"}]}]'
"""A body that nobody here has to understand: it is not even JSON."""


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1beta/models/gemini-2.5-pro:generateContent", "/v1beta/models/gemini-2.5-pro:generateContent"),
        ("/v1beta/models/gemini-2.5-pro:countTokens?a=%20", "/v1beta/models/gemini-2.5-pro:countTokens?a=%20"),
        ("/v1beta/models/gemini-e:embedContent", "/v1beta/models/gemini-e:embedContent"),
        ("/v1alpha/models/gemini-x:generateContent", "/v1beta/models/gemini-x:generateContent"),
        ("/v1/models/gemini-x:generateContent", "/v1beta/models/gemini-x:generateContent"),
        ("/api/v1beta/models/gemini-x:generateContent", "/v1beta/models/gemini-x:generateContent"),
        ("//v1beta//models/gemini-x:generateContent", "/v1beta/models/gemini-x:generateContent"),
        # another name is put in its place
        ("/v1beta/models/flash:generateContent", "/v1beta/models/gemini-2.5-flash:generateContent"),
        ("/v1beta/models/%66lash:countTokens?x", "/v1beta/models/gemini-2.5-flash:countTokens?x"),
        ("/v1beta/models/org/x:generateContent", "/v1beta/models/x:generateContent"),
        ("/v1beta/models/org%2Fa%2fb:generateContent", "/v1beta/models/a/b:generateContent"),
        ("/v1beta/models/org/a%20b%25:generateContent", "/v1beta/models/a%20b%25:generateContent"),
        ("/v1beta/models/org/%C3%A9%3F%23:generateContent", "/v1beta/models/%C3%A9%3F%23:generateContent"),
        ("/v1beta/models/org/a:b:generateContent", "/v1beta/models/a:b:generateContent"),
        # the same name stays as it was written
        ("/v1beta/models/gemini%2D2.5:generateContent", "/v1beta/models/gemini%2D2.5:generateContent"),
        ("/v1beta/models/gemini-a%2fb:generateContent", "/v1beta/models/gemini-a%2fb:generateContent"),
        ("/v1beta/models/gemini-a/b:generateContent", "/v1beta/models/gemini-a/b:generateContent"),
        # no base of its own
        ("/v1beta/models/plain/x:generateContent", "/plain/models/x:generateContent"),
    ],
)  # fmt: skip
async def test_gemini_target(vendors: Proxy, upstream: Upstream, path: str, target: str) -> None:
    """The model is found in the path, matched like any, and changed there or not at all."""
    got = await call(vendors.port, CONTENT, path)
    assert got.status == 200
    (seen,) = upstream.requests
    assert seen.line == f"POST {target} HTTP/1.1".encode()
    assert seen.body == CONTENT
    assert (await vendors.record())["outcome"] == "ok"


async def test_gemini_log(vendors: Proxy) -> None:
    """The log says which model was asked for and which was sent, decoded."""
    await call(vendors.port, CONTENT, "/v1beta/models/org%2Fa%20b:streamGenerateContent")
    record = await vendors.record()
    assert (record["model"], record["upstream_model"]) == ("org/a b", "a b")
    assert (record["route"], record["upstream"]) == ("org/*", "google")


@pytest.mark.parametrize("query", ["?alt=sse", "", "?key=theirs&alt=sse"])
async def test_gemini_stream(vendors: Proxy, upstream: Upstream, query: str) -> None:
    """A stream is asked for by its verb, and passes as it comes: it has no end that can be known."""
    events = event(b'{"candidates":[]}').replace(b"\n", b"\r\n") * 2
    upstream.will(stream(events))
    path = f"/v1beta/models/gemini-x:streamGenerateContent{query}"
    got = await call(vendors.port, CONTENT, path, [(b"Accept-Encoding", b"gzip")])
    assert (got.whole, got.body) == (True, events)
    (seen,) = upstream.requests
    assert seen.target == path
    assert seen.values(b"accept-encoding") == [b"identity"]
    record = await vendors.record()
    assert (record["stream"], record["outcome"]) == (True, "ok")


@pytest.mark.parametrize(
    ("path", "header"),
    [
        ("", (b"x-goog-api-key", KEY.encode())),
        ("", (b"Authorization", b"Bearer " + KEY.encode())),
        (f"?key={KEY}", (b"x-other", b"1")),
        (f"?alt=sse&key={KEY}&x=%41", (b"x-other", b"1")),
        (f"?key={KEY}", (b"x-goog-api-key", b"junk")),
    ],
)
async def test_gemini_key(keyed: Proxy, upstream: Upstream, path: str, header: Pair) -> None:
    """A key may come where Google's clients put theirs, also in the query, and goes no further."""
    target = "/v1beta/models/gemini-x:generateContent"
    got = await call(keyed.port, CONTENT, target + path, [header])
    assert got.status == 200
    (seen,) = upstream.requests
    assert KEY.encode() not in seen.head
    assert seen.values(b"x-goog-api-key") == [b"sk-google-secret"]
    assert seen.values(b"authorization") == []
    assert seen.target == target + ("?alt=sse&x=%41" if "&" in path else "")
    assert KEY.encode() not in keyed.log.read_bytes()
    assert (await keyed.record())["key"] == "team"


async def test_gemini_key_where_it_is_not_accepted(upstream: Upstream) -> None:
    """A surface that does not accept Google's header takes no key from the query either."""
    async with serving(routes(upstream, 'accept = ["authorization"]') + KEYS) as proxy:
        path = f"/v1beta/models/gemini-x:generateContent?key={KEY}"
        got = await call(proxy.port, CONTENT, path, [TEAM])
        assert got.status == 401
    assert upstream.connections == []


GEMINI_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    502: "UNAVAILABLE",
}


@pytest.mark.parametrize(
    ("path", "options", "status", "code"),
    [
        ("models/none:generateContent", {}, 404, "model_not_found"),
        ("models/chatty:generateContent", {}, 404, "endpoint_not_supported"),
        ("models/flash:generateContent", {"headers": [(b"x-api-key", b"sk-narrow-0123456789")]}, 403, "model_not_allowed"),
        ("models/flash:generateContent", {"headers": []}, 401, "invalid_api_key"),
        ("models/flash:generateContent", {"method": "PUT"}, 405, "method_not_allowed"),
        ("models/%FF:generateContent", {}, 400, "invalid_model"),
        ("models/flash:generateContent", {"headers": [TEAM, (b"Content-Encoding", b"br")]}, 415, "unsupported_encoding"),
        ("models/../x:generateContent", {}, 400, "bad_request"),
        ("models/flash:generateContent?key=sk-wrong", {"headers": []}, 401, "invalid_api_key"),
        ("models/flash:generateContent", {}, 502, "upstream_auth"),
        ("models/none", {"method": "GET"}, 404, "model_not_found"),
        ("files", {}, 404, "not_found"),
    ],
)  # fmt: skip
async def test_gemini_errors(
    keyed: Proxy, upstream: Upstream, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    """An error on Gemini's own paths is one as Google writes them."""
    upstream.will(answer(401))
    options = {"headers": [TEAM], **options}
    body = b"" if options.get("method") == "GET" else CONTENT
    got = await call(keyed.port, body, f"/v1beta/{path}", **options)
    assert got.status == status
    assert got.value(b"content-type") == b"application/json"
    error = got.json()["error"]
    message = error.pop("message")
    assert message
    assert error == {
        "code": status,
        "status": GEMINI_STATUS[status],
        "details": [
            {
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": code,
                "domain": "trunkline",
            }
        ],
    }
    assert KEY not in message
    record = await keyed.record()
    assert (record["status"], record["error"]) == (status, code)


@pytest.mark.parametrize("form", ["header", "query"])
async def test_gemini_models(keyed: Proxy, upstream: Upstream, form: str) -> None:
    """The list of models, and one of them, are Google's in form below `/v1beta`."""
    query, headers = ("", [TEAM]) if form == "header" else (f"?key={KEY}&pageSize=50", [])
    got = await call(keyed.port, b"", f"/v1beta/models{query}", headers, "GET")
    assert got.status == 200
    listed = got.json()
    assert set(listed) == {"models"}
    names = [model["name"] for model in listed["models"]]
    assert names[:2] == ["models/default", "models/flash"]
    assert "models/qwen/qwen-turbo" in names
    for name in ("models/flash", "models/qwen%2Fqwen-turbo", "models/gemini-9"):
        got = await call(keyed.port, b"", f"/v1beta/{name}{query}", headers, "GET")
        assert got.json()["name"] == name.replace("%2F", "/")
    assert upstream.connections == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/g/v1beta/models/flash:generateContent", 200),
        ("/g/v1/models/flash:generateContent", 200),
        ("/h/v1beta/models/flash:generateContent", 200),
        ("/v1beta/models/flash:generateContent", 404),
        ("/g/v1beta/v1beta/models/flash:generateContent", 404),
        ("/x/g/v1beta/models/flash:generateContent", 404),
    ],
)
async def test_gemini_below_own_bases(upstream: Upstream, path: str, status: int) -> None:
    """Below base paths of one's own, Gemini's paths stand beside `/v1`."""
    async with serving(routes(upstream, 'base_paths = ["/g/v1", "/h"]')) as proxy:
        assert (await call(proxy.port, CONTENT, path)).status == status
    assert len(upstream.requests) == (status == 200)


@pytest.mark.parametrize("named", [True, False])
async def test_gemini_is_an_endpoint(upstream: Upstream, named: bool) -> None:
    """A surface that has some endpoints only has Gemini's paths where it says `gemini`."""
    endpoints = '["gemini"]' if named else '["chat/completions"]'
    async with serving(routes(upstream, f"endpoints = {endpoints}")) as proxy:
        got = await call(proxy.port, CONTENT, "/v1beta/models/flash:generateContent")
        assert (got.status == 200) is named
        assert (await call(proxy.port, chat("flash"))).status == (404 if named else 200)
    assert len(upstream.requests) == 1


# One route, several dialects


@pytest.mark.parametrize(
    ("path", "target", "header", "version"),
    [
        ("chat/completions", "/openai/v1/chat/completions", b"authorization", []),
        ("responses", "/openai/v1/responses", b"authorization", []),
        ("messages", "/anthropic/v1/messages", b"x-api-key", [b"2023-06-01"]),
        ("messages?beta=true", "/anthropic/v1/messages?beta=true", b"x-api-key", [b"2023-06-01"]),
        ("messages/count_tokens", "/anthropic/v1/messages/count_tokens", b"x-api-key", []),
        ("responses/compact", "/compact/responses/compact", b"authorization", []),
    ],
)
async def test_one_route(
    vendors: Proxy, upstream: Upstream, path: str, target: str, header: bytes, version: list[bytes]
) -> None:
    """A route speaks every dialect of its vendor: each at its own base, with its own credential."""
    assert (await call(vendors.port, chat("both"), f"/v1/{path}")).status == 200
    (seen,) = upstream.requests
    assert seen.target == target
    secret = b"sk-both-secret"
    assert seen.values(header) == [secret if header == b"x-api-key" else b"Bearer " + secret]
    other = b"authorization" if header == b"x-api-key" else b"x-api-key"
    assert seen.values(other) == []
    assert seen.values(b"anthropic-version") == version
    assert seen.body == chat("its own")


@pytest.mark.parametrize(
    ("model", "path", "spoken"),
    [
        ("chatty", MESSAGES, "chat, embeddings"),
        ("chatty", "/v1/messages/count_tokens?beta=true", "chat, embeddings"),
        ("chatty", "/v1/responses", "chat, embeddings"),
        ("chatty", "/v1/moderations", "chat, embeddings"),
        ("both", "/v1/embeddings", "chat, messages, count_tokens, responses"),
        ("flash", "/v1/responses/compact", "chat, embeddings, gemini, models"),
        ("groq", MESSAGES, "chat, responses, audio, models, files"),
    ],
)
async def test_not_spoken(
    vendors: Proxy, upstream: Upstream, model: str, path: str, spoken: str
) -> None:
    """What a vendor is known not to speak is refused in the caller's dialect, naming what it speaks."""
    got = await call(vendors.port, chat(model), path)
    anthropic = path.startswith(MESSAGES)
    assert_authored(got, 404, INVALID, "endpoint_not_supported", anthropic=anthropic)
    message = got.json()["error"]["message"]
    assert f'"{model}"' in message
    assert spoken in message
    assert upstream.connections == []
    assert (await vendors.record())["error"] == "endpoint_not_supported"


@pytest.mark.parametrize(
    ("model", "path"),
    [("groq", "/v1/moderations"), ("groq", "/v1/rerank"), ("plain/x", MESSAGES), ("plain/x", "/v1/fim/completions")],
)  # fmt: skip
async def test_not_known(vendors: Proxy, upstream: Upstream, model: str, path: str) -> None:
    """Where nothing is known, or what is known is inferred and the form a small one, the vendor decides."""
    upstream.will(answer(404, b'{"theirs":1}'))
    got = await call(vendors.port, chat(model), path)
    assert (got.status, got.body) == (404, b'{"theirs":1}')


# Habits


@pytest.mark.parametrize("headers", [[], [TEAM], [(b"x-api-key", b"junk")]])
@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/api/v1", "/api/v1/"])
async def test_head_probe(keyed: Proxy, path: str, headers: list[Pair]) -> None:
    """A HEAD at a base path tells that somebody is there, and nothing else; a GET where the docs are."""
    got = await call(keyed.port, b"", path, headers, method="HEAD")
    assert (got.status, got.body) == (200, b"")
    told = await call(keyed.port, b"", path, headers, method="GET")
    assert (told.status, told.json()["status"]) == (200, "ok")
    assert got.value(b"content-length") == b"%d" % len(told.body)
    for name, wanted in (("docs", "/docs"), ("openapi", "/openapi.json"), ("llms", "/llms.txt")):
        where = urljoin(path, told.json()[name])
        assert where == wanted
        assert (await call(keyed.port, b"", where, headers, method="GET")).status == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert (await call(keyed.port, b"", path, headers, method)).status == 404


async def test_root_without_docs() -> None:
    """Where a surface does not document itself, its root says that it is there, and no more."""
    async with serving('[server]\ndocs = false\n[routes]\nm = "sandbox/echo"') as proxy:
        got = await call(proxy.port, b"", "/", method="GET")
    assert (got.status, got.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("bases", "told"),
    [
        ("", 'The base paths are "/v1" and "/api/v1".'),
        ('base_paths = ["/llm/v1"]', 'The base path is "/llm/v1".'),
        ('base_paths = [""]', "The endpoints stand at the root, as in /chat/completions."),
    ],
)
async def test_not_found_names_the_base_paths(bases: str, told: str) -> None:
    """Who comes to no place is told where the places are."""
    async with serving(f'[server]\n{bases}\n[routes]\nm = "sandbox/echo"') as proxy:
        got = await call(proxy.port, b"", "/v2/chat", method="GET")
    assert (got.status, got.code) == (404, "not_found")
    assert got.json()["error"]["message"] == f"There is nothing at this path. {told}"


@pytest.mark.parametrize("path", ["/v1/models/", "/api/v1/models/", "/models/", "/v1beta/models/"])
async def test_list_with_a_slash(keyed: Proxy, path: str) -> None:
    """A slash behind `models` still asks for the list."""
    got = await call(keyed.port, b"", path, [TEAM], method="GET")
    same = await call(keyed.port, b"", path.removesuffix("/"), [TEAM], method="GET")
    assert (got.status, got.body) == (200, same.body)


async def test_vendors_list_with_a_slash(vendors: Proxy, upstream: Upstream) -> None:
    """Nor does the slash go up, where a vendor is asked for its list."""
    upstream.will(answer(200, b"{}"))
    assert (await call(vendors.port, b"", "/v1/models/?upstream=groq", method="GET")).status == 200
    assert upstream.requests[-1].target.endswith("/models")


@pytest.mark.parametrize("path", ["/v2", "/x", "/v1/x", "/.env", "/v1/chat", "/health/x"])
async def test_head_elsewhere(keyed: Proxy, path: str) -> None:
    """Elsewhere there is nothing."""
    assert (await call(keyed.port, b"", path, [TEAM], method="HEAD")).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "/v1/chat/completions",
        "/api/v1/chat/completions",
        "/v1/v1/chat/completions",
        "/v1/v1/v1/chat/completions",
        "/api/v1/v1/chat/completions",
        "//v1//chat/completions",
        "/v1//chat//completions",
        "//chat/completions",
        "/v1//v1/chat/completions",
        "///api//v1///v1//chat////completions",
    ],
)
async def test_joined_by_hand(keyed: Proxy, upstream: Upstream, path: str) -> None:
    """What people's base URLs make of a path leads where it was meant to."""
    got = await call(keyed.port, chat("plain/x"), f"{path}?a=//b", [TEAM])
    assert got.status == 200
    assert upstream.requests[0].target == "/plain/chat/completions?a=//b"


@pytest.mark.parametrize(
    "path",
    ["/v1/chat/completions/", "/v1/Chat/Completions", "/v1/api/v1/chat/completions", "/v2/v1/chat/completions"],
)  # fmt: skip
async def test_not_guessed(keyed: Proxy, upstream: Upstream, path: str) -> None:
    """What could be meant otherwise is not guessed at."""
    assert (await call(keyed.port, chat("plain/x"), path, [TEAM])).status == 404
    assert upstream.connections == []


HABITS: list[Pair] = [
    (b"anthropic-version", b"2099-01-01"),
    (b"anthropic-beta", b"a,b"),
    (b"Anthropic-Beta", b"c"),
    (b"anthropic-dangerous-direct-browser-access", b"true"),
    (b"OpenAI-Organization", b"org-1"),
    (b"OpenAI-Project", b"proj-1"),
    (b"OpenAI-Beta", b"assistants=v2"),
    (b"X-Stainless-Retry-Count", b"0"),
    (b"x-stainless-read-timeout", b"600"),
    (b"x-app", b"cli"),
    (b"x-goog-api-client", b"google-genai-sdk/1.0 gl-python/3.11"),
    (b"x-goog-user-project", b"p"),
    (b"session_id", b"019a"),
    (b"Idempotency-Key", b"k"),
    (b"HTTP-Referer", b"https://app.example"),
    (b"X-Title", b"App"),
]


@pytest.mark.parametrize(
    "path", [CHAT, f"{MESSAGES}?beta=true", "/v1beta/models/flash:generateContent", "/v1/files"]
)
async def test_headers_of_sdks(upstream: Upstream, path: str) -> None:
    """The headers of the SDKs pass, in order and case, and win over a preset's defaults."""
    toml = routes(upstream) + '[unrouted]\n"files" = "plain"\n' + KEYS
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat("both"), path, [TEAM, *HABITS])).status == 200
    (seen,) = upstream.requests
    names = {name.lower() for name, _ in HABITS}
    assert [pair for pair in seen.headers if pair[0].lower() in names] == HABITS


async def test_model_with_a_slash(keyed: Proxy) -> None:
    """An id with an encoded slash is the id with the slash."""
    for path in ("qwen%2Fqwen-turbo", "qwen/qwen-turbo"):
        got = await call(keyed.port, b"", f"/v1/models/{path}", [TEAM], "GET")
        assert (got.status, got.json()["id"]) == (200, "qwen/qwen-turbo")


# Forms

FILE = (
    bytes(range(256)) * 200
    + b'\r\n--not-it\r\nContent-Disposition: form-data; name="model"\r\n\r\nx'
)


def part(name: str, value: bytes, more: str = "") -> bytes:
    return (
        f'--b0undary\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode()
        + value
        + b"\r\n"
    )


def upload(value: bytes = FILE) -> bytes:
    return part("file", value, '; filename="a \\"b\\".mp3"\r\nContent-Type: audio/mpeg')


END = b"--b0undary--\r\n"
FORM: Pair = (b"Content-Type", b"multipart/form-data; boundary=b0undary")


async def post(proxy: Proxy, body: bytes, path: str = "/v1/audio/transcriptions") -> Answer:
    return await call(proxy.port, body, path, [FORM, (b"Accept-Encoding", b"br")])


@pytest.mark.parametrize("path", ["audio/transcriptions", "audio/translations", "images/edits", "images/variations", "videos"])  # fmt: skip
@pytest.mark.parametrize("place", ["first", "last", "between"])
async def test_form(vendors: Proxy, upstream: Upstream, place: str, path: str) -> None:
    """The model is changed where it stands in the form, and not a byte around it."""
    before = b"" if place == "first" else upload()
    after = upload() if place == "first" else part("response_format", b"json")
    after = b"" if place == "last" else after
    got = await post(vendors, before + part("model", b"whisper") + after + END, f"/v1/{path}")
    assert got.status == 200
    (seen,) = upstream.requests
    assert seen.target == f"/plain/{path}"
    assert seen.body == before + part("model", b"whisper-1") + after + END
    assert seen.values(b"content-type") == [FORM[1]]
    assert seen.values(b"content-length") == [b"%d" % len(seen.body)]
    record = await vendors.record()
    assert (record["model"], record["upstream_model"]) == ("whisper", "whisper-1")


async def test_form_of_the_same_name(vendors: Proxy, upstream: Upstream) -> None:
    """Where the name stays, every byte does, also before the first part and after the last."""
    body = b"preamble\r\n" + upload() + part("model", b"gpt-image-1") + END + b"epilogue\r\n"
    assert (await post(vendors, body, "/v1/images/edits")).status == 200
    assert upstream.requests[0].body == body


async def test_form_without_a_model(vendors: Proxy, upstream: Upstream) -> None:
    """Without a model the default is meant, and is put before the first part."""
    rest = upload() + part("language", b"de") + END
    assert (await post(vendors, rest)).status == 200
    assert upstream.requests[0].body == part("model", b"the-default") + rest
    assert (await vendors.record())["model"] == "default"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (part("model", b"whisper") * 2 + END, "invalid_model", "model"),
        (
            part("model", b"whisper") + upload() + part("model", b"x") + END,
            "invalid_model",
            "model",
        ),
        (part("model", b"\xff") + END, "invalid_model", "model"),
        (part("model", b"whisper", '; filename="m"') + END, "invalid_model", "model"),
        (part("model", b"whisper") + upload(), "invalid_json", None),
        (part("model", b"whisper")[:-1] + END, "invalid_json", None),
        (b"", "invalid_json", None),
        (b'{"model":"whisper"}', "invalid_json", None),
    ],
    ids=["twice", "twice apart", "not text", "a file", "no end", "bad line", "empty", "JSON"],
)
async def test_bad_form(
    vendors: Proxy, upstream: Upstream, body: bytes, code: str, param: str | None
) -> None:
    """A form that is none, or whose model could be taken for another, is refused."""
    got = await post(vendors, body)
    assert_authored(got, 400, INVALID, code, param=param)
    assert upstream.connections == []


async def test_form_asks_for_a_stream(vendors: Proxy, upstream: Upstream) -> None:
    """A form may ask for a stream, which is then asked for plain and relayed as one."""
    events = event(b'{"type":"transcript.text.delta"}') + event(b'{"type":"transcript.text.done"}')
    upstream.will(stream(events))
    got = await post(vendors, upload() + part("stream", b"true") + part("model", b"whisper") + END)
    assert (got.whole, got.body) == (True, events)
    assert got.values(b"x-accel-buffering") == [b"no"]
    assert upstream.requests[0].values(b"accept-encoding") == [b"identity"]
    assert (await vendors.record())["stream"] is True


def _cpu_seconds(proxy: Proxy) -> float:
    assert proxy.process is not None
    fields = Path(f"/proc/{proxy.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("filling", [b"x", b"\r\n--b0undar", b"\r\n--b0undaryx", b"\n\r\n--"])
async def test_large_form(upstream: Upstream, filling: bytes) -> None:
    """A form of 25 MB costs five times what one of 5 MB does, whatever the file looks like."""

    async def cost(proxy: Proxy, size: int, count: int) -> float:
        before, value = _cpu_seconds(proxy), filling * (size // len(filling))
        for _ in range(count):
            got = await post(proxy, upload(value) + part("model", b"whisper") + END)
            assert got.status in (200, 400)
            if got.status == 200:
                assert (
                    upstream.requests[-1].body == upload(value) + part("model", b"whisper-1") + END
                )
        upstream.requests.clear()
        return _cpu_seconds(proxy) - before

    async with process(routes(upstream), python=("-W", "error")) as proxy:
        small = await cost(proxy, 5_000_000, 5)
        large = await cost(proxy, 25_000_000, 1)
        assert large < 2 * small + 0.3
        assert large < 3


# Answers that are not JSON


async def test_speech(vendors: Proxy, upstream: Upstream) -> None:
    """Sound comes down byte for byte, in chunks or with a length."""
    sound = bytes(range(256)) * 1000
    kind: Pair = (b"Content-Type", b"audio/mpeg")
    upstream.will(answer(200, sound, [kind]), stream(sound[:1000], sound[1000:], headers=[kind]))
    for _ in range(2):
        got = await call(
            vendors.port, b'{"model":"plain/tts","input":"\\u00e9"}', "/v1/audio/speech"
        )
        assert (got.status, got.whole, got.body) == (200, True, sound)
        assert got.values(b"content-type") == [b"audio/mpeg"]
    assert upstream.requests[0].body == b'{"model":"tts","input":"\\u00e9"}'


async def test_images(vendors: Proxy, upstream: Upstream) -> None:
    """An image is asked for in JSON, and its answer passes however large."""
    image = b'{"created":1,"data":[{"b64_json":"' + b"A" * 3_000_000 + b'"}]}'
    upstream.will(answer(200, image))
    body = b'{"prompt":"x","n":1 , "model":"gpt-image-1"}'
    got = await call(vendors.port, body, "/v1/images/generations")
    assert (got.whole, got.body) == (True, image)
    (seen,) = upstream.requests
    assert (seen.target, seen.body) == ("/plain/images/generations", body)
