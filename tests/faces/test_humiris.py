"""Humiris: two headers, of which the second chooses the model; errors with names of their own."""

import ast
from typing import Any

import orjson
import pytest

from tests.faces.face import WITH_CURL, WITH_NODE, Face, node, python, sh
from tests.faces.files import shipped, surface
from tests.faces.model import EVENTS, OWN, PLAIN
from tests.harness.client import Answer, Pair, chat
from tests.harness.upstream import DONE

SITE = "https://moai-service-app.humiris.ai"
COMPLETIONS = "/api/v1/chat/completions"
MODEL = "Humiris/humiris-moai"

BODY = """{
  "messages": [
    {
      "role": "user",
      "content": "Say this is a test."
    }
  ],
  "model": "Humiris/humiris-moai"
}"""
JAVASCRIPT = """const fetch = require("node-fetch");

const apikey = "your-api-key";
const mixTuningId = "your-mix-tuning-id";

async function sendChatCompletion() {
  const response = await fetch(
    "https://moai-service-app.humiris.ai/api/v1/chat/completions",
    {
      method: "POST",
      headers: {
        "Content-Type": "application/json",
        apikey: apikey,
        mixTuningId: mixTuningId,
      },
      body: JSON.stringify({
        messages: [
          {
            role: "user",
            content: "Say this is a test.",
          },
        ],
        model: "Humiris/humiris-moai",
      }),
    }
  );

  if (!response.ok) {
    const error = await response.json();
    console.error("Error:", error);
    return;
  }

  const data = await response.json();
  console.log("Response:", data);
}

sendChatCompletion();"""
PYTHON = """import requests

url = "https://moai-service-app.humiris.ai/api/v1/chat/completions"
headers = {
    "Content-Type": "application/json",
    "apikey": "your-api-key",
    "mixTuningId": "your-mix-tuning-id"
}
payload = {
    "messages": [
        {
            "role": "user",
            "content": "Say this is a test."
        }
    ],
    "model": "Humiris/humiris-moai"
}

response = requests.post(url, json=payload, headers=headers)

if response.status_code == 200:
    print("Response:", response.json())
else:
    print("Error:", response.status_code, response.json())"""
SNIPPETS = (BODY, JAVASCRIPT, PYTHON)

NOTHING_TO_TEST = (
    "Authentication Headers",
    "Endpoint: Chat Completions URL",
    "Description",
    "Headers HeaderTypeRequiredDescription",
    "Body",
    "Request Body Example",
    "FielsTypeRequiredDescription",
    "Response",
    "Error Status CodeErrorDescription",
    "Integration Examples",
)
"""Headings."""


def mixes(face: Face) -> list[str]:
    """Return the ids of the mixes that the file has."""
    data = shipped("all" if face.file == "all" else "humiris")
    return list(data["routes"][MODEL]["to"])


def signed(face: Face, mix: str | None) -> list[Pair]:
    headers: list[Pair] = [(b"apikey", face.key.encode())]
    return headers if mix is None else [*headers, (b"mixTuningId", mix.encode())]


def ask(face: Face, mix: str | None, *more: Pair, **fields: Any) -> Answer:
    return face.call(COMPLETIONS, chat(MODEL, **fields), [*signed(face, mix), *more])


def example(face: Face, code: str, key: str | None = None, mix: str | None = None) -> str:
    """Return an example of the page with this address, and a key and a mix that there are."""
    code = face.here(code, SITE)
    assert "your-api-key" in code
    code = code.replace("your-api-key", face.key if key is None else key)
    return code.replace("your-mix-tuning-id", mixes(face)[0] if mix is None else mix)


def test_file() -> None:
    """The file is the one that the table describes."""
    table = surface("humiris", "humiris")
    assert table["base_paths"] == ["/api/v1"]
    assert table["accept"] == ["apikey"]
    assert table["errors"] == {"401": "Unauthorized"}
    assert table["echo_model"] is True
    assert table.get("auth", "keys") == "keys"


@pytest.mark.row("keys", "bytes")
def test_two_headers(face: Face) -> None:
    """“Two headers are required for authentication:” with both an answer comes, with one none."""
    assert ask(face, mixes(face)[0]).status == 200
    assert ask(face, None).status == 400
    mix_alone = [(b"mixTuningId", mixes(face)[0].encode())]
    assert face.call(COMPLETIONS, chat(MODEL), mix_alone).status == 401


@pytest.mark.row("keys", "bytes")
def test_apikey(face: Face) -> None:
    """“1. apikey Description: Your unique API key to access the endpoint. This key is specific to your organization or project and can be found in your Humiris dashboard Here.” However the header's name is written; a junk Bearer beside it does no harm; the key in any other place is none."""
    mix = (b"mixTuningId", mixes(face)[0].encode())
    key = face.key.encode()
    for headers in (
        [(b"apikey", key), mix],
        [(b"ApiKey", key), mix],
        [(b"apikey", key), (b"Authorization", b"Bearer junk"), mix],
        [(b"Authorization", b"Bearer "), (b"apikey", key), mix],
    ):
        face.model.stands_behind("humiris")
        assert face.call(COMPLETIONS, chat(MODEL), headers).status == 200
        assert b"junk" not in face.arrived().head
    for headers in ([(b"Authorization", b"Bearer " + key), mix], [(b"x-api-key", key), mix]):
        assert face.call(COMPLETIONS, chat(MODEL), headers).status == 401


@pytest.mark.row("model strings", "bytes")
def test_mix(face: Face) -> None:
    """“2. mixTuningId Description: The unique identifier for your MixTuning configuration (Mix Model).” Each leads where the file says; the case of its name does not matter, that of its value does; and it goes no further."""
    ids = mixes(face)
    assert len(ids) > 1
    sent = set()
    for mix in ids:
        for name in (b"mixTuningId", b"mixtuningid", b"MIXTUNINGID"):
            face.model.stands_behind("humiris")
            headers = [*signed(face, None), (name, mix.encode())]
            assert face.call(COMPLETIONS, chat(MODEL), headers).status == 200
            arrived = face.arrived()
            assert arrived.value(b"mixtuningid") is None
            sent.add((face.asked()["model"], mix))
        assert ask(face, mix.upper() if mix.upper() != mix else mix.lower()).status == 404
    assert len(sent) == len({model for model, _ in sent}) == len(ids)


@WITH_CURL
@pytest.mark.row(("surface", "chat"), "curl")
def test_base_url(face: Face) -> None:
    """“Base URL : https://moai-service-app.humiris.ai/api/v1 POST /chat/completions” and nowhere else."""
    command = f"curl -s {SITE}/api/v1/chat/completions -H 'apikey: $KEY' -H 'mixTuningId: $MIX' "
    command += f"-H 'Content-Type: application/json' -d '{BODY}'"
    command = face.here(command, SITE).replace("$KEY", face.key).replace("$MIX", mixes(face)[0])
    assert sh(command) == PLAIN["humiris"]
    for path in ("/v1/chat/completions", "/chat/completions"):
        assert face.call(path, chat(MODEL), signed(face, mixes(face)[0])).status == 404


STREAMED = """
from openai import OpenAI
client = OpenAI(
    base_url="{origin}/api/v1", api_key="junk",
    default_headers={{"apikey": "{key}", "mixTuningId": "{mix}"}},
)
for chunk in client.chat.completions.create(model="{model}", messages=[], stream=True):
    print(chunk.choices[0].delta.content or "", end="")
"""


@pytest.mark.row(("chat", "keys", "answers"), "OpenAI Python")
def test_similar(face: Face) -> None:
    """“Use this endpoint to send a chat completion request. This is similar to OpenAI’s chat/completions endpoint, with added functionality for custom tuning.” OpenAI's SDK takes it for one, though its Bearer is junk."""
    mix = mixes(face)[0]
    code = STREAMED.format(origin=face.origin, key=face.key, mix=mix, model=MODEL)
    assert python(code) == "This is a test."
    assert b"junk" not in face.arrived().head


@pytest.mark.row("keys", "bytes")
def test_header_table(face: Face) -> None:
    """“apikeystringYesYour API key. mixTuningIdstringYesThe MixTuning ID for personalized AI responses.” Both are strings that are there: empty ones are missing."""
    mix = mixes(face)[0].encode()
    key = face.key.encode()
    empty_key: list[Pair] = [(b"apikey", b""), (b"mixTuningId", mix)]
    assert face.call(COMPLETIONS, chat(MODEL), empty_key).status == 401
    empty_mix: list[Pair] = [(b"apikey", key), (b"mixTuningId", b"")]
    assert face.call(COMPLETIONS, chat(MODEL), empty_mix).status == 400


@pytest.mark.row("chat", "bytes")
def test_body(face: Face) -> None:
    """“The request body follows OpenAI’s chat/completions format.” The one that is shown arrives as it is, but for the model."""
    got = face.call(COMPLETIONS, BODY.encode(), signed(face, mixes(face)[0]))
    assert got.status == 200
    before, _, after = BODY.encode().partition(b'"Humiris/humiris-moai"')
    sent = face.arrived().body
    assert sent.startswith(before)
    assert sent.endswith(after)


@pytest.mark.row("chat", "bytes")
def test_fields(face: Face) -> None:
    """“messagesstringYesArray of message objects, each with role and content. modelstringYesThe model to use. Example: Humiris/humiris-moai”; another model is not found, by whichever mix."""
    face.call(COMPLETIONS, BODY.encode(), signed(face, mixes(face)[0]))
    assert face.asked()["messages"] == orjson.loads(BODY)["messages"]
    for model in ("humiris-moai", "Humiris/other", "humiris/humiris-moai"):
        got = face.call(COMPLETIONS, chat(model), signed(face, mixes(face)[0]))
        assert (got.status, got.code) == (404, "model_not_found")


@pytest.mark.row("answers", "bytes")
def test_answer(face: Face) -> None:
    """“{ "id": "chatcmpl-12345", "object": "chat.completion", "created": 1698000000, "model": "Humiris/humiris-moai", "choices": [ { "message": { "role": "assistant", "content": "This is a test." }, "finish_reason": "stop", "stop_reason": "\\n" } ], "usage": { "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12 } }”: choices without an index, with a `stop_reason`, byte for byte, under the name that was asked for."""
    got = ask(face, mixes(face)[-1])
    assert got.body == PLAIN["humiris"]
    assert got.json()["model"] == MODEL
    assert got.json()["choices"][0]["stop_reason"] == "\n"
    assert "index" not in got.json()["choices"][0]
    streamed = ask(face, mixes(face)[0], stream=True)
    named = [one.replace(OWN.encode(), MODEL.encode()) for one in EVENTS["humiris"]]
    assert streamed.body == b"".join(named) + DONE


def error(got: Answer) -> dict[str, object]:
    """Return the error of *got*, which is JSON, whoever asks and however."""
    assert got.value(b"content-type") == b"application/json"
    found: dict[str, object] = got.json()["error"]
    assert {"message", "type", "param", "code"} <= set(found)
    return found


@pytest.mark.row("errors", "bytes")
def test_missing(face: Face) -> None:
    """“400BadRequestThe mixTuningId header is missing.”"""
    got = ask(face, None)
    told = error(got)
    assert (got.status, told["code"], told["param"]) == (400, "BadRequest", "mixTuningId")
    assert told["message"] == "The header mixTuningId is missing."


@pytest.mark.row("errors", "bytes")
def test_unknown(face: Face) -> None:
    """“404MixTuningNotFoundThe provided mixTuningId does not exist.” It is told without the names of others."""
    got = ask(face, "mix-nobody-has")
    told = error(got)
    assert (got.status, told["code"], told["param"]) == (404, "MixTuningNotFound", "mixTuningId")
    assert not any(mix in got.body.decode() for mix in mixes(face))
    twice = ask(face, mixes(face)[0], (b"mixTuningId", b"mix-nobody-has"))
    assert twice.status in (400, 404)
    assert face.model.requests == []


@pytest.mark.row("errors", "bytes")
def test_unauthorized(face: Face) -> None:
    """“401UnauthorizedInvalid or missing apikey.” That comes first, then the missing header, then the unknown one."""
    for key in ([], [(b"apikey", b"wrong")]):
        for mix in ([], [(b"mixTuningId", b"mix-nobody-has")]):
            got = face.call(COMPLETIONS, chat(MODEL), [*key, *mix])
            told = error(got)
            assert (got.status, told["name"], told["code"]) == (
                401,
                "Unauthorized",
                "invalid_api_key",
            )
    assert face.model.requests == []


@WITH_NODE
@pytest.mark.row(("chat", "keys", "model strings", "answers"), "node-fetch")
def test_javascript(face: Face) -> None:
    """“JavaScript Here’s how to integrate the API using the fetch method in JavaScript:” the example prints the answer."""
    out, errors = node(example(face, JAVASCRIPT), module=False)
    assert errors == ""
    assert out.startswith("Response: {")
    assert "model: 'Humiris/humiris-moai'" in out


@WITH_NODE
@pytest.mark.row(("chat", "keys", "model strings", "answers"), "fetch")
def test_fetch(face: Face) -> None:
    """The same with the `fetch` that Node has by itself."""
    code = example(face, JAVASCRIPT).replace('const fetch = require("node-fetch");', "")
    out, errors = node(code, module=False)
    assert errors == ""
    assert "content: 'This is a test.'" in out or "[Object]" in out


@WITH_NODE
@pytest.mark.row("errors", "fetch")
@pytest.mark.parametrize(
    ("key", "mix", "name"),
    [("wrong", "x", "Unauthorized"), (None, "", "BadRequest"), (None, "x", "MixTuningNotFound")],
)
def test_fetch_errors(face: Face, key: str | None, mix: str, name: str) -> None:
    """The example prints the error by its name, since its body is JSON always."""
    code = example(face, JAVASCRIPT, key, mix)
    code = code.replace('const fetch = require("node-fetch");', "")
    out, errors = node(code, module=False)
    assert out == ""
    assert errors.startswith("Error: {")
    assert f"'{name}'" in errors


@pytest.mark.row(("chat", "keys", "model strings", "answers"), "requests")
def test_python(face: Face) -> None:
    """“Python Here’s how to integrate the API using the request method in Python:” the example prints the answer."""
    title, _, said = python(example(face, PYTHON)).partition(" ")
    assert title == "Response:"
    assert ast.literal_eval(said) == orjson.loads(PLAIN["humiris"])


@pytest.mark.row("errors", "requests")
@pytest.mark.parametrize(
    ("key", "mix", "status", "name"),
    [
        ("wrong", "x", "401", "Unauthorized"),
        (None, "", "400", "BadRequest"),
        (None, "x", "404", "MixTuningNotFound"),
    ],
)
def test_python_errors(face: Face, key: str | None, mix: str, status: str, name: str) -> None:
    """The example prints the status, and the error by its name."""
    title, told, said = python(example(face, PYTHON, key, mix)).split(" ", 2)
    assert (title, told) == ("Error:", status)
    assert name in ast.literal_eval(said)["error"].values()
