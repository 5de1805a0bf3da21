"""AiHummer: one endpoint behind a personal key, and pages about it."""

import asyncio
import os
import re
from typing import Any

import orjson
import pytest

from tests.faces.face import WITH_CURL, WITH_NODE, Face, node, python, sh
from tests.faces.files import listens, port_of, shipped, surface
from tests.faces.model import EVENTS, OWN, PLAIN
from tests.harness.client import Answer, chat
from tests.harness.upstream import DONE

SITE = "https://your-aihummer.example"
KEY = "ah-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
COMPLETIONS = "/v1/chat/completions"

BASIC = r"""curl https://your-aihummer.example/v1/chat/completions \
-H "Authorization: Bearer ah-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" \
-H "Content-Type: application/json" \
-d '{
"model": "default",
"messages": [
{ "role": "system", "content": "You are a helpful assistant." },
{ "role": "user", "content": "Summarise our refund policy in two sentences." }
],
"temperature": 0.3
}'"""
STREAMED = r"""curl -N https://your-aihummer.example/v1/chat/completions \
-H "Authorization: Bearer ah-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" \
-H "Content-Type: application/json" \
-d '{
"model": "default",
"stream": true,
"messages": [
{ "role": "user", "content": "Write a one-line greeting." }
]
}'"""
HEAD = """POST /v1/chat/completions HTTP/1.1
Host: your-aihummer.example
Authorization: Bearer ah-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
Content-Type: application/json
"""
SPECIFICATION = "curl https://your-aihummer.example/openapi.json"
PING = "curl https://your-aihummer.example/v1/ping"
TIME = "curl https://your-aihummer.example/v1/time"
SNIPPETS = (BASIC, STREAMED, HEAD, SPECIFICATION, PING, TIME)

NOTHING_TO_TEST = (
    "Chat Completions API",
    "Authentication",
    "[!TIP]",
    "A basic request",
    "A non-streaming response follows",  # goes on with what is tested
    "Streaming responses (SSE)",
    "[!WARNING]",
    "Discovery & schema surfaces",
    "| Path | What it serves | |---|---|",
    "# Fetch the OpenAPI spec",
    "System endpoints",
    "| Method & path | Purpose | |---|---|",
    "Where to next - Drive AiHummer from your own apps and automations: Inbound & integration triggers. - Pairing, SSO federation and protocol surfaces: Webhooks, SCIM & pairing. - Tune what the agent can do: Tools catalog.",
)
"""Headings, and what leads to other pages."""


def hello(face: Face, **fields: Any) -> Answer:
    return face.call(COMPLETIONS, chat("default", **fields), bearer=True)


def test_file() -> None:
    """The file is the one that the table describes."""
    table = surface("aihummer", "aihummer")
    assert table["base_paths"] == ["/v1"]
    assert table["accept"] == ["authorization"]
    assert table["models"] == "hidden"
    assert table["endpoints"] == ["chat/completions"]
    assert table["echo_model"] is True
    assert table.get("docs", True) is True
    assert table.get("auth", "keys") == "keys"


@pytest.mark.row("surface", "bytes")
def test_single_endpoint(face: Face) -> None:
    """“AiHummer exposes a single OpenAI-compatible HTTP endpoint for text turns: POST /v1/chat/completions.”"""
    assert hello(face).status == 200
    others = ("completions", "responses", "messages", "rerank", "images/generations", "files")
    for path in (*(f"/v1/{one}" for one in others), "/chat/completions", f"/api{COMPLETIONS}"):
        got = face.call(path, chat("default"), bearer=True)
        assert got.status == 404, path
        assert "nothing at this path" in got.json()["error"]["message"]
    wrong = face.call(COMPLETIONS, bearer=True)
    assert (wrong.status, wrong.value(b"allow")) == (405, b"POST")
    assert len(face.model.requests) == 1


SDK = """
from openai import OpenAI
client = OpenAI(base_url="{origin}/v1", api_key="{key}")
answer = client.chat.completions.create(
    model="default", messages=[{{"role": "user", "content": "Hello"}}]
)
print(answer.choices[0].message.content, answer.model)
for chunk in client.chat.completions.create(
    model="default", messages=[{{"role": "user", "content": "Hello"}}], stream=True
):
    print(chunk.choices[0].delta.content, chunk.choices[0].finish_reason)
"""
NODE_SDK = """
import OpenAI from 'openai';
const client = new OpenAI({{ baseURL: '{origin}/v1', apiKey: '{key}' }});
const ask = {{ model: 'default', messages: [{{ role: 'user', content: 'Hello' }}] }};
const answer = await client.chat.completions.create(ask);
console.log(answer.choices[0].message.content, answer.model);
for await (const chunk of await client.chat.completions.create({{ ...ask, stream: true }}))
  console.log(chunk.choices[0].delta.content ?? 'None', chunk.choices[0].finish_reason ?? 'None');
"""
SAID = "Refunds are issued within 14 days... default\nNone None\nHello None\n! stop\n"


@pytest.mark.row(("chat", "keys", "answers"), "OpenAI Python")
def test_python_sdk(face: Face) -> None:
    """“Any client or SDK that already speaks the OpenAI Chat Completions format can talk to AiHummer by changing the base URL and the API key — no AiHummer-specific code is required.”"""
    assert python(SDK.format(origin=face.origin, key=face.key)) == SAID


@WITH_NODE
@pytest.mark.row(("chat", "keys", "answers"), "OpenAI Node")
def test_node_sdk(face: Face) -> None:
    """“Any client or SDK that already speaks the OpenAI Chat Completions format can talk to AiHummer by changing the base URL and the API key”, in Node too."""
    assert node(NODE_SDK.format(origin=face.origin, key=face.key)) == (SAID, "")


@pytest.mark.row("keys", "bytes")
def test_bearer(face: Face) -> None:
    """“Requests are authenticated with a personal API key as a Bearer token.” Nowhere else, and with no other."""
    key = face.key.encode()
    for headers in (
        [],
        [(b"Authorization", b"Bearer ah-" + b"x" * 32)],
        [(b"x-api-key", key)],
        [(b"apikey", key)],
        [(b"Authorization", b"Bearer not-needed")],
    ):
        got = face.call(COMPLETIONS, chat("default"), headers)
        assert (got.status, got.code) == (401, "invalid_api_key")
        assert got.value(b"www-authenticate") == b"Bearer"
    assert face.model.requests == []
    assert hello(face).status == 200
    face.arrived()


@pytest.mark.row("keys", "bytes")
def test_keys(face: Face) -> None:
    """“AiHummer keys are prefixed with ah- and are issued from the web admin UI.” `keys new` stands in for that."""
    assert re.fullmatch(r"ah-[A-Za-z0-9]{32}", face.key)  # made by `keys new --prefix ah-`
    assert hello(face).status == 200


@pytest.mark.row("chat", "bytes")
def test_shown_head(face: Face) -> None:
    """“POST /v1/chat/completions HTTP/1.1 Host: your-aihummer.example Authorization: Bearer ah-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx Content-Type: application/json”: this head, and a body, are a request."""
    body = chat("default")
    lines = HEAD.replace(KEY, face.key).replace("\n", "\r\n")
    got = face.send(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert got.status == 200


@pytest.mark.row("surface", "bytes")
def test_port(face: Face) -> None:
    """“The base URL is your gateway address. In a default install the gateway listens on :8765, so a local call goes tohttp://localhost:8765/v1/chat/completions.”"""
    name = "all" if face.file == "all" else "aihummer"
    assert 8765 in [port_of(one) for one in listens(surface(name, "aihummer"))]
    got = face.call(COMPLETIONS, chat("default"), bearer=True, host=b"localhost:8765")
    assert got.status == 200


@pytest.mark.row("surface", "bytes")
def test_behind_a_proxy(face: Face) -> None:
    """“In production you terminate TLS at a reverse proxy in front of the gateway.” What that one adds does no harm, and goes no further."""
    added = [
        (b"X-Forwarded-For", b"203.0.113.7"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"your-aihummer.example"),
        (b"Forwarded", b"for=203.0.113.7;proto=https"),
        (b"Via", b"1.1 front"),
    ]
    host = b"your-aihummer.example"
    got = face.call(COMPLETIONS, chat("default"), added, bearer=True, host=host)
    assert got.status == 200
    sent = face.arrived().head.lower()
    assert b"forwarded" not in sent
    assert b"203.0.113.7" not in sent
    assert b"via" not in sent


@pytest.mark.row("model strings", "bytes")
def test_model_selects(face: Face) -> None:
    """“Send a JSON body with messages, exactly as you would to OpenAI. The model field selects the model (or agent) configured on your instance.”"""
    name = "all" if face.file == "all" else "aihummer"
    visible = surface(name, "aihummer").get("routes")
    routes = [one for one in shipped(name)["routes"] if visible is None or one in visible]
    assert routes == ["default"] if face.file == "all" else ["default", "refunds"]
    sent = set()
    for model in routes:
        face.model.stands_behind("aihummer")
        got = face.call(COMPLETIONS, chat(model, new_field={"x": 1.0}), bearer=True)
        assert got.status == 200
        assert got.json()["model"] == model
        sent.add(face.asked().pop("model"))
        assert face.asked()["new_field"] == {"x": 1.0}
    assert len(sent) == len(routes)
    got = face.call(COMPLETIONS, chat("gpt-5-unknown"), bearer=True)
    assert (got.status, got.code) == (404, "model_not_found")


@WITH_CURL
@pytest.mark.row(("chat", "keys", "answers", "model strings"), "curl")
def test_plain(face: Face) -> None:
    """“the familiar Chat Completions shape: { "id": "chatcmpl-...", "object": "chat.completion", "created": 1750000000, "model": "default", "choices": [ { "index": 0, "message": { "role": "assistant", "content": "Refunds are issued within 14 days..." }, "finish_reason": "stop" } ], "usage": { "prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0 } }”: byte for byte, with usage zeros, and the name that was asked for."""
    said = sh(face.here(BASIC, SITE, KEY))
    assert said == PLAIN["aihummer"]
    assert OWN.encode() not in said
    asked = face.asked()
    asked.pop("model")
    body = orjson.loads(BASIC.partition("-d '")[2].removesuffix("'"))
    body.pop("model")
    assert asked == body


@WITH_CURL
@pytest.mark.row(("chat", "keys", "answers"), "curl")
def test_stream(face: Face) -> None:
    """“Set "stream": true to receive the answer incrementally as Server-Sent Events. Each event carries a chat.completion.chunk delta, and the stream terminates with a final data: [DONE] line.”"""
    said = sh(face.here(STREAMED, SITE, KEY))
    assert said == b"".join(EVENTS["aihummer"]) + DONE
    *events, last = said.removesuffix(b"\n\n").split(b"\n\n")
    assert last == b"data: [DONE]"
    chunks = [orjson.loads(one.removeprefix(b"data: ")) for one in events]
    assert {one["object"] for one in chunks} == {"chat.completion.chunk"}
    assert all("delta" in one["choices"][0] for one in chunks)


@pytest.mark.row("answers", "bytes")
def test_event_stream(face: Face) -> None:
    """“The response is a text/event-stream: data: {"id":"chatcmpl-...","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant"}}]} data: {"id":"chatcmpl-...","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hello"}}]} data: {"id":"chatcmpl-...","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"stop"}]} data: [DONE]”: with the content and the reason in one chunk."""
    got = hello(face, stream=True)
    assert got.value(b"content-type") == b"text/event-stream"
    assert got.whole
    assert got.body == b"".join(EVENTS["aihummer"]) + DONE


@WITH_CURL
@pytest.mark.row("answers", "curl")
async def test_incrementally(face: Face) -> None:
    """“receive the answer incrementally”: each event is seen before the next one is sent."""
    face.model.special = face.model.one_by_one
    curl = await asyncio.create_subprocess_exec(
        "sh",
        "-c",
        face.here(STREAMED, SITE, KEY),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"]},
    )
    assert curl.stdout is not None
    async with asyncio.timeout(15):
        async for line in curl.stdout:
            if line == b"\n":
                face.model.seen.set()
        assert await curl.wait() == 0


@pytest.mark.row("models", "bytes")
def test_only_endpoint(face: Face) -> None:
    """“/v1/chat/completionsis the only endpoint on the OpenAI-compatible surface. AiHummer does not expose/v1/modelsand does not expose/v1/embeddings — embeddings are an internal subsystem and are not reachable over HTTP. Do not rely on those routes; they return 404.” With and without a key, and told like a path that nobody ever heard of."""
    nothing = face.call("/v1/nothing", bearer=True)
    assert (nothing.status, nothing.code) == (404, "not_found")
    for path in ("/v1/models", "/v1/models/default", "/v1/embeddings"):
        for bearer in (True, False):
            for body in (b"", chat("default")):
                got = face.call(path, body, bearer=bearer)
                assert (got.status, got.body) == (404, nothing.body), path
                names = [name for name, _ in got.headers]
                assert names == [name for name, _ in nothing.headers]
    assert face.model.requests == []


PAGES = {
    "/docs": "text/html",
    "/docs/api": "text/html",
    "/docs/openapi.json": "application/json",
    "/openapi.json": "application/json",
    "/docs/llm.json": "application/json",
    "/llms.txt": "text/plain",
}


@pytest.mark.row("docs", "bytes")
@pytest.mark.parametrize("path", PAGES)
def test_discovery(face: Face, path: str) -> None:
    """“While there is no /v1/models listing, AiHummer ships several discovery surfaces so humans and tools can explore the API:” each of them is there, without a key, and gives away no vendor."""
    got = face.call(path)
    assert got.status == 200
    kind = (got.value(b"content-type") or b"").decode().partition(";")[0]
    assert kind == PAGES[path]
    assert face.model.requests == []
    assert b"secret-of-" not in got.body
    assert face.model.authority.encode() not in got.body


@pytest.mark.row("docs", "bytes")
def test_docs(face: Face) -> None:
    """“GET /docs | Human-readable documentation entry point”: it leads to what else there is."""
    text = face.call("/docs").body.decode()
    assert text.lower().lstrip().startswith("<!doctype html>")
    assert "chat/completions" in text
    assert "api" in re.findall(r'href="[^"]*?([a-z]+)"', text)


@pytest.mark.row("docs", "bytes")
def test_explorer(face: Face) -> None:
    """“GET /docs/api | Interactive API Explorer”: a page with fields and a button, and nothing from elsewhere."""
    got = face.call("/docs/api")
    text = got.body.decode()
    assert "<button" in text
    assert "<textarea" in text
    assert re.findall(r'(?:src|href)="(?:https?:)?//', text) == []
    policy = (got.value(b"content-security-policy") or b"").decode()
    assert "default-src 'none'" in policy or "default-src 'self'" in policy


@pytest.mark.row("docs", "bytes")
def test_openapi(face: Face) -> None:
    """“GET /docs/openapi.json | OpenAPI 3.x specification”: of the endpoints of this surface, and no other."""
    told = face.call("/docs/openapi.json").json()
    assert re.fullmatch(r"3\.[01]\.\d", told["openapi"])
    text = orjson.dumps(told["paths"]).decode()
    assert COMPLETIONS.removeprefix("/v1") in text
    for absent in ("/embeddings", "/v1/models", "/messages", "/hooks"):
        assert absent not in text, absent


@WITH_CURL
@pytest.mark.row("docs", "curl")
def test_openapi_alias(face: Face) -> None:
    """“GET /openapi.json | OpenAPI 3.x specification (root alias)”: the same, but for where the server is from there."""
    root = orjson.loads(sh(face.here(SPECIFICATION, SITE)))
    docs = face.call("/docs/openapi.json").json()
    for told in (root, docs):
        assert told.pop("servers") != []
        told.get("x-trunkline", {}).pop("base_urls", None)
    assert root == docs


@pytest.mark.row("docs", "bytes")
def test_llm(face: Face) -> None:
    """“GET /docs/llm.json | Machine-readable API summary for LLM tooling”."""
    got = face.call("/docs/llm.json")
    assert isinstance(got.json(), dict)
    assert COMPLETIONS in got.body.decode()


@pytest.mark.row("docs", "bytes")
def test_llms(face: Face) -> None:
    """“GET /llms.txt | llms.txt index for LLM agents”: Markdown that begins with a title, and links."""
    text = face.call("/llms.txt").body.decode()
    assert text.startswith("# ")
    assert re.search(r"^- \[[^\]]+\]\([^)]*openapi\.json\)", text, re.MULTILINE)


@WITH_CURL
@pytest.mark.row("system", "curl")
def test_system(face: Face) -> None:
    """“Two lightweight, unauthenticated system endpoints help with liveness and clock checks:” neither asks anybody."""
    assert orjson.loads(sh(face.here(PING, SITE)))["status"] == "ok"
    assert orjson.loads(sh(face.here(TIME, SITE)))["epoch"] > 1_750_000_000
    assert face.model.requests == []


@pytest.mark.row("system", "bytes")
def test_ping(face: Face) -> None:
    """“GET /v1/ping | Returns a simple liveness response”, whatever key and name it is asked with."""
    headers = [(b"Authorization", b"Bearer wrong")]
    got = face.call("/v1/ping", headers=headers, host=b"your-aihummer.example")
    assert (got.status, got.body) == (200, b'{"status":"ok"}')


@pytest.mark.row("system", "bytes")
def test_time(face: Face) -> None:
    """“GET /v1/time | Returns the gateway’s current server time”."""
    told = face.call("/v1/time").json()
    assert told["time"].endswith("Z")
    assert abs(told["epoch_ms"] / 1000 - told["epoch"]) <= 1


@pytest.mark.row("errors", "bytes")
def test_errors(face: Face) -> None:
    """Errors are as OpenAI's are, whoever made them: its SDKs know the classes."""
    for got in (
        face.call(COMPLETIONS, chat("default")),
        face.call(COMPLETIONS, b"not json", bearer=True),
        face.call("/v1/models"),
    ):
        assert set(got.json()["error"]) == {"message", "type", "param", "code"}
