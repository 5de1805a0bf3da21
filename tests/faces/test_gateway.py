"""The gateway on port 18888: no key, on this machine only, with hooks and a status."""

import orjson
import pytest

from tests.faces.face import WITH_CURL, WITH_NODE, Face, node, python, sh
from tests.faces.files import listens, shipped, surface
from tests.faces.model import EVENTS, OWN, PLAIN
from tests.harness.client import Pair, chat
from tests.harness.upstream import DONE

SITE = "http://localhost:18888"
COMPLETIONS = "/v1/chat/completions"

BODY = """{
  "model": "qwen/qwen-turbo",
  "messages": [
    { "role": "system", "content": "You are a helpful assistant." },
    { "role": "user", "content": "Hello!" }
  ],
  "stream": false,
  "temperature": 0.7,
  "max_tokens": 2048
}"""
CURL = r"""curl -N http://localhost:18888/v1/chat/completions \
  -H "Content-Type: application/json" \
  -d '{"model": "default", "messages": [{"role": "user", "content": "Hello"}], "stream": true}'"""
MESSAGE = """{
  "text": "message content",
  "from": "user-id",
  "action": "chat"
}"""
PYTHON = """from openai import OpenAI

client = OpenAI(
    base_url="http://localhost:18888/v1",
    api_key="not-needed",
)

response = client.chat.completions.create(
    model="default",
    messages=[{"role": "user", "content": "Hello!"}],
)
print(response.choices[0].message.content)"""
NODE = """import OpenAI from 'openai';

const client = new OpenAI({
  baseURL: 'http://localhost:18888/v1',
  apiKey: 'not-needed',
});

const response = await client.chat.completions.create({
  model: 'default',
  messages: [{ role: 'user', content: 'Hello!' }],
});"""
SNIPPETS = (BODY, CURL, MESSAGE, PYTHON, NODE)

NOTHING_TO_TEST = (
    "Skip to content",
    "REST API",
    "Endpoints",
    "POST /v1/chat/completions",
    "Request: json",
    "Streaming (SSE):",
    "bash",
    "GET /v1/models",
    "GET /health",
    "GET /status",
    "POST /hooks/:name",
    "Using with OpenAI SDK python",
    "typescript",
    "Released under MIT / Apache-2.0 License",
)
"""Headings, which the sentences below them repeat, and what the page is written in."""


def hook_of(face: Face) -> tuple[str, list[Pair]]:
    """Return the path of a hook of the file, and what opens it."""
    hooks = shipped("all" if face.file == "all" else "gateway")["hooks"]
    name = next(iter(hooks))
    secret = hooks[name].get("secret")
    if secret is None:
        return f"/hooks/{name}", []
    value = "secret-of-" + secret.removeprefix("${").removesuffix("}")
    return f"/hooks/{name}", [(b"Authorization", b"Bearer " + value.encode())]


def test_file() -> None:
    """The file is the one that the table describes."""
    table = surface("gateway", "gateway")
    assert listens(table) == ["127.0.0.1:18888", "[::1]:18888"]
    assert table.get("auth", "none") == "none"
    assert table["echo_model"] is True


@pytest.mark.row("surface", "bytes")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_loopback(face: Face, address: str) -> None:
    """It listens on “localhost:18888”, which is both addresses, and answers to no foreign page."""
    assert face.call("/health", address=address).status == 200
    assert face.call(COMPLETIONS, chat("default"), address=address).status == 200
    for kwargs in ({"host": b"evil.example"}, {"headers": [(b"Origin", b"https://evil.example")]}):
        got = face.call(COMPLETIONS, chat("default"), address=address, **kwargs)
        assert (got.status, got.code) == (403, "origin_not_allowed")


@pytest.mark.row(("chat", "models"), "OpenAI Python")
def test_rest(face: Face) -> None:
    """“OpenAI-compatible REST API for chat completions and model listing.”"""
    listing = (
        PYTHON.partition("response")[0] + "print([model.id for model in client.models.list()])"
    )
    assert "qwen/qwen-turbo" in python(face.here(listing, SITE))


@pytest.mark.row(("chat", "model strings"), "OpenAI Python")
@pytest.mark.parametrize("name", ["qwen/qwen-turbo", "openai/gpt-4o", "default"])
def test_compatible(face: Face, name: str) -> None:
    """“Create a chat completion. Compatible with OpenAI SDK.”"""
    code = face.here(PYTHON, SITE).replace('model="default"', f'model="{name}"')
    assert python(code + "\nprint(response.model)") == f"Hello! How can I help you?\n{name}\n"


@pytest.mark.row(("chat", "answers", "model strings"), "bytes")
def test_plain(face: Face) -> None:
    """“Response: json { "id": "chatcmpl-xxx", "object": "chat.completion", "created": 1234567890, "model": "qwen/qwen-turbo", "choices": [ { "index": 0, "message": { "role": "assistant", "content": "Hello! How can I help you?" }, "finish_reason": "stop" } ], "usage": { "prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30 } }” to the request that is shown, byte for byte, with the name that was asked for."""
    got = face.call(COMPLETIONS, BODY.encode(), [(b"Content-Type", b"application/json")])
    assert (got.status, got.body) == (200, PLAIN["gateway"])
    assert OWN.encode() not in got.body
    assert face.asked() == {**orjson.loads(BODY), "model": "qwen-turbo"}
    sent, _, rest = BODY.encode().partition(b'"qwen/qwen-turbo"')
    assert face.arrived().body == sent + b'"qwen-turbo"' + rest


@WITH_CURL
@pytest.mark.row(("chat", "answers", "keys", "model strings"), "curl")
def test_stream(face: Face) -> None:
    """“Set "stream": true to receive Server-Sent Events:” “data: {"id":"chatcmpl-xxx","choices":[{"delta":{"content":"Hello"},"index":0}]} data: {"id":"chatcmpl-xxx","choices":[{"delta":{"content":"!"},"index":0}]} data: [DONE]”: chunks without an `object` or a `finish_reason` pass as they are."""
    assert sh(face.here(CURL, SITE)) == b"".join(EVENTS["gateway"]) + DONE


STREAMED = """
stream = client.chat.completions.create(
    model="default", messages=[{"role": "user", "content": "Hello"}], stream=True
)
print("".join(chunk.choices[0].delta.content for chunk in stream))
"""


@pytest.mark.row("answers", "OpenAI Python")
def test_stream_python(face: Face) -> None:
    """The SDK reads such a stream to its end, without an error."""
    assert python(face.here(PYTHON, SITE).partition("response")[0] + STREAMED) == "Hello!\n"


@pytest.mark.row("models", "bytes")
def test_models(face: Face) -> None:
    """“List available models. Response: json { "object": "list", "data": [ { "id": "qwen/qwen-turbo", "object": "model", "owned_by": "qwen" }, { "id": "openai/gpt-4o", "object": "model", "owned_by": "openai" } ] }” Each is owned by what stands before its slash, else by its upstream."""
    listed = face.call("/v1/models").json()
    assert listed["object"] == "list"
    owners = {one["id"]: one["owned_by"] for one in listed["data"]}
    assert owners["qwen/qwen-turbo"] == "qwen"
    assert owners["openai/gpt-4o"] == "openai"
    assert owners["default"]
    assert {one["object"] for one in listed["data"]} == {"model"}
    assert face.model.requests == []


@pytest.mark.row("system", "bytes")
def test_health(face: Face) -> None:
    """“Health check endpoint. Response: json { "status": "ok" }”."""
    assert orjson.loads(face.call("/health").body) == {"status": "ok"}
    assert face.call("/health", host=b"anything.example").status == 200


@pytest.mark.row("system", "bytes")
def test_status(face: Face) -> None:
    """“Gateway status with uptime, connected channels, and active sessions.”"""
    told = face.call("/status").json()
    assert told["uptime_seconds"] > 0
    assert told["connected_channels"] == len(told["channels"]) > 0
    assert {one["state"] for one in told["channels"]} == {"ready"}
    assert told["active_sessions"] == len(told["sessions"]) == 0
    assert face.model.authority.encode() not in face.call("/status").body


@pytest.mark.row("hooks", "bytes")
def test_hook(face: Face) -> None:
    """“Webhook ingress for custom integrations.” The message that is shown becomes a chat, from whom it says."""
    path, headers = hook_of(face)
    got = face.call(path, MESSAGE.encode(), headers)
    assert got.status == 200
    assert got.json()["text"] == "Hello! How can I help you?"
    asked = face.asked()
    assert asked["messages"][-1] == {"role": "user", "content": "message content"}
    assert asked["user"] == "user-id"
    face.model.stands_behind("gateway")
    streamed = MESSAGE.replace('"chat"', '"chat",\n  "stream": true')
    got = face.call(path, streamed.encode(), headers)
    assert got.body.startswith(b'data: {"text":"Hello"}\n\ndata: {"text":"!"}\n\nevent: done\n')


@pytest.mark.row("hooks", "bytes")
def test_hook_errors(face: Face) -> None:
    """A hook that there is not, an action that there is not, and what is no JSON are told as such."""
    path, headers = hook_of(face)
    assert face.call("/hooks/nope", MESSAGE.encode(), headers).status == 404
    assert face.call(path, b"text", headers).status == 400
    wrong = face.call(path, MESSAGE.replace("chat", "delete").encode(), headers)
    assert (wrong.status, wrong.json()["error"]["param"]) == (400, "action")
    assert face.model.requests == []


@pytest.mark.row(("chat", "keys", "model strings"), "OpenAI Python")
def test_python(face: Face) -> None:
    """The example in Python prints what the model said; its key, which is not needed, goes nowhere."""
    assert python(face.here(PYTHON, SITE)) == "Hello! How can I help you?\n"
    face.arrived()


@WITH_NODE
@pytest.mark.row(("chat", "keys", "model strings", "answers"), "OpenAI Node")
def test_node(face: Face) -> None:
    """The example in TypeScript has what the model said, under the name that was asked for."""
    code = face.here(NODE, SITE)
    code += "\nconsole.log(response.choices[0].message.content, response.model);"
    code += "\nfor await (const chunk of await client.chat.completions.create({ model: 'default',"
    code += " messages: [], stream: true })) console.log(chunk.choices[0].delta.content);"
    assert node(code) == ("Hello! How can I help you? default\nHello\n!\n", "")


@pytest.mark.row("errors", "bytes")
def test_errors(face: Face) -> None:
    """Errors are as OpenAI's are."""
    got = face.call(COMPLETIONS, chat("nope"))
    assert (got.status, got.code) == (404, "model_not_found")
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
