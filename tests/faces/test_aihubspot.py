"""AIHubSpot: everything that OpenAI has, behind a key of its own."""

import orjson
import pytest

from tests.faces.face import WITH_CURL, WITH_NODE, Face, node, python, sh
from tests.faces.files import surface
from tests.faces.model import EVENTS, OWN, PLAIN, STORY, own, refuses
from tests.harness.client import chat
from tests.harness.upstream import DONE

SITE = "https://api.aihubspot.app"
COMPLETIONS = "/v1/chat/completions"

PYTHON = """from openai import OpenAI
client = OpenAI(
    api_key="AH_SMKRPA_YOUR_KEY",
    base_url="https://api.aihubspot.app/v1",
)
response = client.chat.completions.create(
    model="claude-3-5-sonnet",
    messages=[{"role": "user", "content": "Hello"}],
)
print(response.choices[0].message.content)"""
NODE = """import OpenAI from 'openai';
const client = new OpenAI({
  apiKey: process.env.AH_API_KEY,
  baseURL: 'https://api.aihubspot.app/v1',
});
const response = await client.chat.completions.create({
  model: 'claude-3-5-sonnet',
  messages: [{ role: 'user', content: 'Hello' }],
});
console.log(response.choices[0].message.content);"""
CURL = r"""curl https://api.aihubspot.app/v1/chat/completions \
-H "Authorization: Bearer $AH_API_KEY" \
-H "Content-Type: application/json" \
-d '{"model":"claude-3-5-sonnet","messages":[{"role":"user","content":"Hello"}]}'"""
PYTHON_STREAM = """with client.chat.completions.create(
    model="gpt-4o",
    messages=[{"role": "user", "content": "Tell me a story"}],
    stream=True,
) as stream:
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)"""
NODE_STREAM = """const stream = await client.chat.completions.create({
  model: 'gpt-4o',
  messages: [{ role: 'user', content: 'Tell me a story' }],
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? '');
}"""
SNIPPETS = (PYTHON, NODE, CURL, PYTHON_STREAM, NODE_STREAM)

NOTHING_TO_TEST = (
    "Chat Completions",
    "Endpoint",
    "Request body | Parameter | Type | Required | Description | |---|---|---|---|",
    "Example",
    "Streaming",
)
"""Headings."""


def test_file() -> None:
    """The file is the one that the table describes."""
    table = surface("aihubspot", "aihubspot")
    assert table["base_paths"] == ["/v1"]
    assert table.get("auth", "keys") == "keys"
    assert table.get("models", "list") == "list"
    assert table.get("endpoints", "all") == "all"


@pytest.mark.row(("chat", "model strings"), "bytes")
@pytest.mark.parametrize("name", ["gpt-4o", "claude-3-5-sonnet"])
def test_models(face: Face, name: str) -> None:
    """“Generate text responses from any supported model using the OpenAI-compatible chat completions endpoint.”"""
    got = face.call(COMPLETIONS, chat(name), bearer=True)
    assert (got.status, got.body) == (200, own(PLAIN["aihubspot"]))
    assert face.arrived().target.endswith("/chat/completions")


@pytest.mark.row("surface", "bytes")
def test_endpoint(face: Face) -> None:
    """“POST https://api.aihubspot.app/v1/chat/completions” whatever name the site has in front."""
    host = b"api.aihubspot.app"
    assert face.call(COMPLETIONS, chat("gpt-4o"), bearer=True, host=host).status == 200
    assert face.call(COMPLETIONS, bearer=True, host=host).status == 405
    assert face.call("/chat/completions", chat("gpt-4o"), bearer=True).status == 404


COMPATIBLE = """
from openai import OpenAI
client = OpenAI(base_url="{origin}/v1", api_key="{key}")
names = [model.id for model in client.models.list()]
print("gpt-4o" in names, "claude-3-5-sonnet" in names, client.models.retrieve("gpt-4o").id)
print(client.chat.completions.with_raw_response.create(
    model="gpt-4o", messages=[{{"role": "user", "content": "Hello"}}]
).headers["x-trunkline-id"][:4])
"""


@pytest.mark.row(("models", "chat"), "OpenAI Python")
def test_compatible(face: Face) -> None:
    """“Fully OpenAI-compatible. Use the OpenAI SDK by setting base_url to https://api.aihubspot.app/v1.”"""
    code = COMPATIBLE.format(origin=face.origin, key=face.key)
    assert python(code) == "True True gpt-4o\nreq_\n"


@pytest.mark.row("keys", "bytes")
def test_keys(face: Face) -> None:
    """A key begins with “AH_SMKRPA_”, and is asked for everywhere, though not to see that somebody is there."""
    assert face.key.startswith("AH_SMKRPA_")
    for key in (b"", b"Bearer AH_SMKRPA_YOUR_KEY", b"Bearer not-needed"):
        got = face.call(COMPLETIONS, chat("gpt-4o"), [(b"Authorization", key)] if key else [])
        assert (got.status, got.code) == (401, "invalid_api_key")
        assert face.call("/v1/models").status == 401
    assert face.call("/v1/ping").status == 200
    assert face.model.requests == []


@pytest.mark.row("model strings", "bytes")
@pytest.mark.parametrize("name", ["gpt-4o", "claude-3-5-sonnet"])
def test_model(face: Face, name: str) -> None:
    """“model | string | Yes | Model ID (e.g. gpt-4o, claude-3-5-sonnet) |” What is not a string, or missing, or unknown, is told."""
    got = face.call(COMPLETIONS, chat(name), bearer=True)
    assert got.status == 200
    for wrong, status, code in (
        (chat(None), 400, "invalid_model"),
        (chat(name).replace(b'"model":"', b'"model":5,"x":"'), 400, "invalid_model"),
        (chat(name + "-unknown"), 404, "model_not_found"),
    ):
        got = face.call(COMPLETIONS, wrong, bearer=True)
        assert (got.status, got.code) == (status, code)
        assert got.json()["error"]["param"] == "model"


@pytest.mark.row("chat", "bytes")
def test_messages(face: Face) -> None:
    """“messages | array | Yes | Array of message objects |” They pass as they are; that they are missing is for the vendor to say."""
    face.model.special = refuses(400, "missing_required_parameter")
    got = face.call(COMPLETIONS, b'{"model":"gpt-4o"}', bearer=True)
    assert (got.status, got.code) == (400, "missing_required_parameter")
    face.model.stands_behind("aihubspot")
    parts = [{"role": "user", "content": [{"type": "text", "text": "☃"}, {"type": "new"}]}]
    body = orjson.dumps({"model": "gpt-4o", "messages": parts})
    assert face.call(COMPLETIONS, body, bearer=True).status == 200
    assert face.asked()["messages"] == parts


@pytest.mark.row("answers", "bytes")
def test_stream_parameter(face: Face) -> None:
    """“stream | boolean | No | Enable SSE streaming (default: false) |”."""
    for fields in (b"", b'"stream": false,'):
        body = b'{"model":"gpt-4o",' + fields + b'"messages":[]}'
        got = face.call(COMPLETIONS, body, bearer=True)
        assert got.value(b"content-type") == b"application/json"
    got = face.call(COMPLETIONS, chat("gpt-4o", stream=True), bearer=True)
    assert got.value(b"content-type") == b"text/event-stream"
    assert got.body == b"".join(EVENTS["aihubspot"]) + DONE


@pytest.mark.row("chat", "bytes")
@pytest.mark.parametrize("number", [b"0", b"2", b"0.70000000000000000001", b"1e0"])
def test_numbers(face: Face, number: bytes) -> None:
    """“max_tokens | integer | No | Maximum tokens to generate | temperature | number | No | Sampling temperature 0–2 |” Numbers pass as they were written."""
    fields = b'"max_tokens":256, "temperature": ' + number
    body = b'{"model":"gpt-4o",' + fields + b',"messages":[]}'
    assert face.call(COMPLETIONS, body, bearer=True).status == 200
    assert fields in face.arrived().body


@pytest.mark.row(("chat", "keys", "model strings"), "OpenAI Python")
def test_python(face: Face) -> None:
    """The example in Python prints what the model said."""
    assert python(face.here(PYTHON, SITE, "AH_SMKRPA_YOUR_KEY")) == "Hello!\n"
    assert face.asked()["model"] != OWN


@WITH_NODE
@pytest.mark.row(("chat", "keys", "model strings"), "OpenAI Node")
def test_node(face: Face) -> None:
    """The example in JavaScript prints what the model said."""
    assert node(face.here(NODE, SITE), AH_API_KEY=face.key) == ("Hello!\n", "")


@WITH_CURL
@pytest.mark.row(("chat", "keys", "model strings", "answers"), "curl")
def test_curl(face: Face) -> None:
    """The example for the shell prints the vendor's answer, byte for byte."""
    assert sh(face.here(CURL, SITE), AH_API_KEY=face.key) == own(PLAIN["aihubspot"])


@pytest.mark.row("answers", "OpenAI Python")
def test_python_stream(face: Face) -> None:
    """The example of a stream in Python prints the story."""
    code = face.here(PYTHON, SITE, "AH_SMKRPA_YOUR_KEY").partition("response =")[0]
    assert python(code + PYTHON_STREAM) == "".join(STORY)


@pytest.mark.row("answers", "OpenAI Python")
def test_leaves_early(face: Face) -> None:
    """Whoever leaves the `with … as stream` early stops the vendor too."""
    face.model.special = face.model.until_left
    code = face.here(PYTHON, SITE, "AH_SMKRPA_YOUR_KEY").partition("response =")[0]
    early = PYTHON_STREAM + "\n        if chunk.choices[0].delta.content:\n            break"
    assert python(code + early) == STORY[0]
    assert face.model.left.wait(5)


@WITH_NODE
@pytest.mark.row("answers", "OpenAI Node")
def test_node_stream(face: Face) -> None:
    """The example of a stream in JavaScript prints the story."""
    code = face.here(NODE, SITE).partition("const response")[0]
    assert node(code + NODE_STREAM, AH_API_KEY=face.key) == ("".join(STORY), "")


UNCHANGED = """
from openai import OpenAI
client = OpenAI()
answer = client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "x"}])
print(answer.choices[0].message.content)
print(client.embeddings.create(model="gpt-4o", input="x").data[0].embedding)
"""


@pytest.mark.row("surface", "OpenAI Python")
def test_drop_in(face: Face, monkeypatch: pytest.MonkeyPatch) -> None:
    """“Drop-in replacement for the OpenAI API. Any library or framework that works with OpenAI works here — just change base_url.” A program that is not changed at all works too, and so does another endpoint."""
    monkeypatch.setenv("OPENAI_BASE_URL", f"{face.origin}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", face.key)
    assert python(UNCHANGED) == "Hello!\n[0.5, 0.25]\n"


@pytest.mark.row("models", "bytes")
def test_list(face: Face) -> None:
    """The models are listed, to those who have a key."""
    listed = [one["id"] for one in face.call("/v1/models", bearer=True).json()["data"]]
    assert {"gpt-4o", "claude-3-5-sonnet"} <= set(listed)
    if face.file == "all":
        assert not {one for one in listed if "umiris" in one or one == "default"}
    assert face.model.requests == []


ERRORS = """
import openai
from openai import OpenAI
client = OpenAI(base_url="{origin}/v1", api_key="{key}", max_retries=0)
for make in (
    lambda: client.chat.completions.create(model="gpt-none", messages=[]),
    lambda: client.with_options(api_key="AH_x").chat.completions.create(model="gpt-4o", messages=[]),
    lambda: client.chat.completions.create(model="gpt-4o", messages=[]),
):
    try:
        make()
    except openai.APIStatusError as error:
        print(type(error).__name__, error.status_code, error.code, error.type)
"""


@pytest.mark.row("errors", "OpenAI Python")
def test_errors(face: Face) -> None:
    """Errors, ours and the vendor's, are of the SDK's own classes."""
    face.model.special = refuses(400, "context_length_exceeded")
    said = python(ERRORS.format(origin=face.origin, key=face.key))
    assert said.splitlines() == [
        "NotFoundError 404 model_not_found invalid_request_error",
        "AuthenticationError 401 invalid_api_key authentication_error",
        "BadRequestError 400 context_length_exceeded invalid_request_error",
    ]
