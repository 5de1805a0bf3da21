"""Azure's form of OpenAI's SDK through the proxy, whatever the model's upstream; and the SDKs of clouds whose
paths are not served here.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from anthropic import AnthropicVertex, NotFoundError
from openai import AsyncAzureOpenAI, AsyncOpenAI, PermissionDeniedError

from tests.harness.client import call, chat
from tests.harness.proxy import Proxy, serving
from tests.harness.upstream import DONE, Upstream, answer, event, stream

KEY = "tl-azure-0123456789"
NARROW = "tl-narrow-0123456789"
VERSION = "2024-10-21"
CHAT = b'{"id":"c","object":"chat.completion","created":1,"model":"x","choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},"finish_reason":"stop"}]}'
RESPONSE = b'{"id":"r","object":"response","created_at":1,"model":"x","status":"completed","output":[],"parallel_tool_calls":false,"tool_choice":"auto","tools":[]}'
SAID: Any = [{"role": "user", "content": "Hello"}]


def routes(upstream: Upstream) -> str:
    return f"""
[keys]
team = "{KEY}"
narrow = {{ secret = "{NARROW}", models = ["mine"] }}
[upstreams.up]
base_url = "{upstream.url}"
credential = "sk-upstream-secret"
[upstreams.azure]
base_url = "http://{upstream.authority}/openai/v1"
credential = {{ header = "api-key", secret = "azure-secret" }}
[routes]
"mine" = {{ upstream = "up", model = "real" }}
"same" = {{ upstream = "up" }}
"groq/m" = {{ upstream = "up", model = "slashed" }}
"dep" = {{ upstream = "azure", model = "their dep" }}
[unrouted]
"files" = "azure"
"batches" = "up"
"""


@pytest.fixture
async def proxy(upstream: Upstream) -> AsyncIterator[Proxy]:
    async with serving(routes(upstream)) as running:
        yield running


def client(proxy: Proxy, key: str = KEY, **options: Any) -> AsyncAzureOpenAI:
    return AsyncAzureOpenAI(
        azure_endpoint=proxy.url, api_version=VERSION, api_key=key, max_retries=0, **options
    )


@pytest.mark.parametrize("model", ["mine", "same", "groq/m"])
@pytest.mark.parametrize("deployment", [False, True])
async def test_to_others(proxy: Proxy, upstream: Upstream, model: str, deployment: bool) -> None:
    """The deployment in the path is the model; the request goes on as any chat does, without Azure's version."""
    upstream.will(answer(body=CHAT))
    options = {"azure_deployment": model} if deployment else {}
    async with client(proxy, **options) as azure:
        got = await azure.chat.completions.create(
            model="another" if deployment else model, messages=SAID
        )
    assert got.choices[0].message.content
    (seen,) = upstream.requests
    sent = {"mine": "real", "same": "same", "groq/m": "slashed"}[model]
    assert seen.target == "/v1/chat/completions"
    assert orjson.loads(seen.body)["model"] == sent
    assert seen.value(b"authorization") == b"Bearer sk-upstream-secret"
    assert seen.value(b"api-key") is None
    record = await proxy.record()
    assert (record["model"], record["upstream_model"], record["key"]) == (model, sent, "team")


@pytest.mark.parametrize("deployment", [False, True])
async def test_to_azure(proxy: Proxy, upstream: Upstream, deployment: bool) -> None:
    """To Azure it goes in Azure's way, the model that is sent in its path, with the version as it came."""
    upstream.will(stream(event(b'{"choices":[{"delta":{"content":"Hi"},"index":0}]}'), DONE))
    options = {"azure_deployment": "dep"} if deployment else {}
    async with client(proxy, **options) as azure:
        got = await azure.chat.completions.create(model="dep", messages=SAID, stream=True)
        assert [one.choices[0].delta.content async for one in got] == ["Hi"]
    (seen,) = upstream.requests
    path = "/openai/deployments/their%20dep/chat/completions"
    assert seen.target == f"{path}?api-version={VERSION}"
    assert orjson.loads(seen.body)["model"] == "their dep"
    assert seen.values(b"api-key") == [b"azure-secret"]


@pytest.mark.parametrize("deployment", [False, True])
@pytest.mark.parametrize(
    ("model", "target", "sent"),
    [
        ("mine", "/v1/responses", "real"),
        ("dep", f"/openai/responses?api-version={VERSION}", "their dep"),
    ],
)
async def test_responses(
    proxy: Proxy, upstream: Upstream, model: str, target: str, sent: str, deployment: bool
) -> None:
    """`/openai/responses` carries its model in the body, as responses do, and in both forms of the client."""
    upstream.will(answer(body=RESPONSE))
    options = {"azure_deployment": "same"} if deployment else {}
    async with client(proxy, **options) as azure:
        await azure.responses.create(model=model, input="Hello")
    (seen,) = upstream.requests
    assert (seen.target, orjson.loads(seen.body)["model"]) == (target, sent)


@pytest.mark.parametrize("query", [{}, {"api-version": "preview"}])
@pytest.mark.parametrize(
    ("model", "target"), [("mine", "/v1/chat/completions"), ("dep", "/openai/v1/chat/completions")]
)
async def test_v1(
    proxy: Proxy, upstream: Upstream, model: str, target: str, query: dict[str, str]
) -> None:
    """`/openai/v1/…` is Azure's later form: as `/v1/…`, and its version goes to Azure alone."""
    upstream.will(answer(body=CHAT))
    base_url = f"{proxy.url}/openai/v1/"
    async with AsyncOpenAI(base_url=base_url, api_key=KEY, default_query=query) as later:
        await later.chat.completions.create(model=model, messages=SAID)
    (seen,) = upstream.requests
    kept = "?api-version=preview" if query and model == "dep" else ""
    assert seen.target == target + kept


async def test_models_of_a_key(proxy: Proxy, upstream: Upstream) -> None:
    """A key with a `models` list is held to the path's deployment, whatever the body says."""
    upstream.will(answer(body=CHAT))
    async with client(proxy, NARROW) as azure:
        await azure.chat.completions.create(model="mine", messages=SAID)
        with pytest.raises(PermissionDeniedError):
            await azure.chat.completions.create(model="same", messages=SAID)
    async with client(proxy, NARROW, azure_deployment="same") as azure:
        with pytest.raises(PermissionDeniedError):
            await azure.chat.completions.create(model="mine", messages=SAID)
    assert [orjson.loads(seen.body)["model"] for seen in upstream.requests] == ["real"]


@pytest.mark.parametrize(
    ("path", "status", "target", "model"),
    [
        ("/openai/deployments/mine/chat/completions", 200, "/v1/chat/completions", "real"),
        ("/openai/deployments/mine/embeddings?api-version=1", 200, "/v1/embeddings", "real"),
        ("/openai/deployments/mine/completions?a=1&api%2Dversion=1", 200, "/v1/completions?a=1", "real"),
        ("/openai/deployments/groq%2Fm/chat/completions", 200, "/v1/chat/completions", "slashed"),
        ("//openai//deployments/mine//chat/completions", 200, "/v1/chat/completions", "real"),
        ("/api/openai/deployments/mine/chat/completions", 200, "/v1/chat/completions", "real"),
        ("/openai/deployments/dep/chat/completions", 200, "/openai/v1/chat/completions", "their dep"),
        ("/openai/deployments/none/chat/completions", 404, "", ""),
        ("/openai/deployments/%FF/chat/completions", 400, "", ""),
        ("/openai/deployments/../chat/completions", 400, "", ""),
        ("/openai/deployments//chat/completions", 404, "", ""),
        ("/openai/deployments/mine/nothing", 404, "", ""),
        ("/v1beta/openai/deployments/mine/chat/completions", 404, "", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", ["none", "another"])
async def test_paths(
    proxy: Proxy, upstream: Upstream, path: str, status: int, target: str, model: str, body: str
) -> None:
    """Whatever stands in the body, if anything, is replaced; what is no deployment's path is none."""
    upstream.will(answer(body=CHAT))
    sent = chat(None if body == "none" else body)
    got = await call(proxy.port, sent, path, [(b"api-key", KEY.encode())])
    assert got.status == status, got.raw
    if status == 200:
        (seen,) = upstream.requests
        assert (seen.target, orjson.loads(seen.body)["model"]) == (target, model)
    else:
        assert upstream.requests == []


async def test_without_a_model(proxy: Proxy, upstream: Upstream) -> None:
    """What carries no model goes by path there too, in Azure's way to Azure."""
    headers = [(b"api-key", KEY.encode())]
    for path, target in (
        (f"/openai/files/f1?api-version={VERSION}", f"/openai/files/f1?api-version={VERSION}"),
        (f"/openai/batches?api-version={VERSION}&a=1", "/v1/batches?a=1"),
        ("/openai/v1/files/f1", "/openai/v1/files/f1"),
    ):
        got = await call(proxy.port, path=path, headers=headers, method="GET")
        assert (got.status, upstream.requests[-1].target) == (200, target)
    got = await call(proxy.port, path="/openai/models?api-version=1", headers=headers, method="GET")
    assert {one["id"] for one in got.json()["data"]} == {"mine", "same", "groq/m", "dep"}


async def test_other_clouds(proxy: Proxy, upstream: Upstream) -> None:
    """The SDKs of Bedrock and Vertex are told which class to use, and with which base URL."""
    vertex = AnthropicVertex(
        project_id="p", region="r", access_token="t", base_url=f"{proxy.url}/v1"
    )
    with pytest.raises(NotFoundError) as caught:
        await asyncio.to_thread(vertex.messages.create, model="mine", max_tokens=5, messages=SAID)
    assert "`Anthropic`, not `AnthropicVertex`" in str(caught.value)
    for path, word in (
        ("/model/m/invoke", "`Anthropic`, not `AnthropicBedrock`"),
        ("/model/a%3Ab/invoke-with-response-stream", "`base_url`"),
        ("/v1/model/a%3Ab/converse-stream", "`OpenAI`"),
        ("/model/a/b/converse", "`/v1`"),
        ("/v1/projects/p/locations/l/publishers/anthropic/models/m:streamRawPredict", "base URL"),
        (
            "/v1beta1/projects/p/locations/l/publishers/google/models/m:generateContent",
            "`genai.Client`",
        ),
    ):
        got = await call(proxy.port, b"{}", path, [(b"x-api-key", KEY.encode())])
        assert got.status == 404
        assert word.encode() in got.body, path
    got = await call(proxy.port, b"{}", "/model/m/train", [(b"x-api-key", KEY.encode())])
    assert b"Bedrock" not in got.body
    assert upstream.requests == []
