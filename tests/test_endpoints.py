"""What a caller may look up: the list of models, one of them, and whether the proxy is up."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from anthropic import AsyncAnthropic
from anthropic import NotFoundError as AnthropicNotFound
from anthropic.types import ModelInfo
from google import genai
from openai import AsyncOpenAI, NotFoundError
from openai.types import Model

from tests.harness.client import Answer, Client, Pair, call, request
from tests.harness.proxy import Proxy, serving
from tests.test_errors import INVALID, assert_authored

NAMES = ["default", "gpt-4o", "claude-old", "qwen/qwen-turbo", "qwen/qwen-max", "org/team/model"]
TEAM, NARROW = "sk-team-0123456789", "sk-narrow-0123456789"

ROUTES = """
[upstreams.up]
base_url = "http://127.0.0.1:1/v1"
credential = "sk-upstream-secret"
[routes]
"default" = "up/x"
"gpt-4o" = "up/gpt-4o"
"claude-old" = "gpt-4o"
"claude-*" = { upstream = "up" }
"qwen/*" = { upstream = "up", list = ["qwen/qwen-turbo", "qwen/qwen-max"] }
"org/team/model" = { upstream = "up" }
"""
KEYS = f"""
[keys]
team = "{TEAM}"
narrow = {{ secret = "{NARROW}", models = ["gpt-4o", "qwen/*", "absent"] }}
"""


def key(text: str) -> list[Pair]:
    return [(b"x-api-key", text.encode())]


@pytest.fixture
async def listing() -> AsyncIterator[Proxy]:
    """A proxy with routes of every kind, and keys."""
    async with serving(ROUTES + KEYS) as running:
        yield running


async def get(proxy: Proxy, path: str, headers: list[Pair] | None = None, **kwargs: Any) -> Answer:
    """Ask for *path* with the team's key, or with *headers*."""
    return await call(
        proxy.port, b"", path, key(TEAM) if headers is None else headers, "GET", **kwargs
    )


# The list

UNKNOWN = (
    "capabilities", "deprecated_at", "line", "max_input_tokens", "max_tokens", "retires_at",
)  # fmt: skip
"""What Anthropic says of a model beside what we know."""


async def test_list(listing: Proxy) -> None:
    """One list carries the fields of both families of SDK, in the order of the file."""
    got = await get(listing, "/v1/models")
    assert got.status == 200
    assert got.value(b"content-type") == b"application/json"
    listed = got.json()
    data = listed.pop("data")
    assert listed == {
        "object": "list",
        "has_more": False,
        "first_id": "default",
        "last_id": "org/team/model",
    }
    assert [entry["id"] for entry in data] == NAMES
    owners = [entry["owned_by"] for entry in data]
    assert owners == ["up", "up", "up", "qwen", "qwen", "org"]
    for entry in data:
        assert set(entry) == {
            "id",
            "object",
            "created",
            "owned_by",
            "type",
            "display_name",
            "created_at",
            "lifecycle",
            *UNKNOWN,
        }
        assert [entry[name] for name in UNKNOWN] == [None] * len(UNKNOWN)
        assert entry["object"] == entry["type"] == "model"
        assert entry["display_name"] == entry["id"]
        assert isinstance(entry["created"], int)


async def test_list_is_our_own(listing: Proxy) -> None:
    """The answer has an id and a length like every other, and nobody was called for it."""
    size = 0
    async with await Client.connect(listing.port) as client:
        for _ in range(2):
            await client.send(
                request(path="/v1/models?limit=1000", method="GET", headers=key(TEAM))
            )
            got = await client.answer()
            size = len(got.body)
            names = [name for name, _ in got.headers]
            assert names == [
                b"Content-Type",
                b"Content-Length",
                b"x-trunkline-id",
                b"x-request-id",
                b"request-id",
            ]
    record = await listing.record(2)
    assert (record["status"], record["outcome"], record["key"]) == (200, "ok", "team")
    assert (record["attempts"], record["upstream"]) == ([], None)
    assert record["bytes_out"] == size


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/models", "/models"])
async def test_list_below_every_base_path(listing: Proxy, path: str) -> None:
    """The list is found below every base path of the surface."""
    assert len((await get(listing, path)).json()["data"]) == len(NAMES)


async def test_list_names_each_model_once() -> None:
    """A name that a route and a pattern's `list` both show is shown once."""
    toml = ROUTES + '"qwen/qwen-max" = "up/other"\n'
    async with serving(toml) as proxy:
        data = (await get(proxy, "/v1/models", [])).json()["data"]
        names = [entry["id"] for entry in data]
        assert sorted(names) == sorted(set(NAMES))


async def test_empty_list() -> None:
    """A list of nothing is a list."""
    async with serving('[routes]\n"*" = { base_url = "http://127.0.0.1:1" }') as proxy:
        got = (await get(proxy, "/v1/models", [])).json()
        assert (got["data"], got["first_id"], got["last_id"]) == ([], None, None)


async def test_list_shows_what_the_key_may_ask(listing: Proxy) -> None:
    """A key sees the models that it may ask for, and no others."""
    data = (await get(listing, "/v1/models", key(NARROW))).json()["data"]
    assert [entry["id"] for entry in data] == ["gpt-4o", "qwen/qwen-turbo", "qwen/qwen-max"]


async def test_list_shows_what_the_surface_shows() -> None:
    """A surface lists the models that can be called there, and no others."""
    toml = '[server]\nroutes = ["default", "org/*"]\n' + ROUTES + KEYS
    async with serving(toml) as proxy:
        data = (await get(proxy, "/v1/models")).json()["data"]
        assert [entry["id"] for entry in data] == ["default", "org/team/model"]
        assert (await get(proxy, "/v1/models/gpt-4o")).status == 404
        data = (await get(proxy, "/v1/models", key(NARROW))).json()["data"]
        assert data == []


@pytest.mark.parametrize("headers", [[], key("sk-wrong")])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o", "/v1/models/absent"])
async def test_list_wants_a_key(listing: Proxy, path: str, headers: list[Pair]) -> None:
    """Without a key nobody learns what there is."""
    got = await get(listing, path, headers)
    assert (got.status, got.code) == (401, "invalid_api_key")
    assert b"gpt-4o" not in got.body


# One model


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("gpt-4o", "gpt-4o"),
        ("org/team/model", "org/team/model"),
        ("org%2Fteam%2fmodel", "org/team/model"),
        ("org/team%2Fmodel", "org/team/model"),
        ("qwen/qwen-turbo", "qwen/qwen-turbo"),
        ("qwen%2Fqwen-turbo?x=1", "qwen/qwen-turbo"),
        ("claude-new", "claude-new"),
        ("%67pt-4o", "gpt-4o"),
    ],
)
async def test_one_model(listing: Proxy, path: str, name: str) -> None:
    """A model is found by its name, slashes as they are or encoded, listed or only matched."""
    got = await get(listing, f"/v1/models/{path}")
    assert got.status == 200
    entry = got.json()
    listed = (await get(listing, "/v1/models")).json()["data"]
    assert entry["id"] == name
    assert name not in NAMES or entry in listed


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")  # Google's SDK's own
async def test_strict_sdks(listing: Proxy) -> None:
    """What we author of a model holds against the models of today's SDKs, each field of which is looked at:
    what a vendor requires from its next version on fails here.
    """
    seen = []
    oai = AsyncOpenAI(
        base_url=f"{listing.url}/v1", api_key=TEAM, _strict_response_validation=True, max_retries=0
    )
    claude = AsyncAnthropic(
        base_url=listing.url, api_key=TEAM, _strict_response_validation=True, max_retries=0
    )
    async with oai, claude:
        for models in (oai.models, claude.models, claude.beta.models):
            seen.append([model.id async for model in models.list()])
            one = await models.retrieve("gpt-4o")
            seen.append([one.id])
            assert type(one).model_validate(one.model_dump(), strict=True) == one
            required = {
                name for name, field in type(one).model_fields.items() if field.is_required()
            }
            assert required <= one.model_fields_set
        assert (await claude.models.retrieve("gpt-4o")).lifecycle == "active"
    google = genai.Client(api_key=TEAM, http_options={"base_url": listing.url}).aio
    seen.append([(model.name or "")[7:] async for model in await google.models.list()])
    got = await google.models.get(model="gpt-4o")
    seen.append([(got.name or "")[7:]])
    await google.aclose()
    assert seen == [NAMES, ["gpt-4o"]] * 4


async def test_every_field_of_anthropics(listing: Proxy) -> None:
    """Anthropic says every field of a model, if only that it is null; so do we, without inventing one."""
    entry = (await get(listing, "/v1/models/gpt-4o")).json()
    assert {*ModelInfo.model_fields} <= {*entry}
    ModelInfo.model_validate_json(orjson.dumps(entry), strict=True)
    Model.model_validate_json(orjson.dumps(entry), strict=True)


@pytest.mark.parametrize(
    "path",
    ["absent", "GPT-4o", "gpt-4o/", "gpt-4o%20", "gpt-4o%0a", "%FF", "a" * 5_000],
)
async def test_no_such_model(listing: Proxy, path: str) -> None:
    """A name that is not a model's is not found, and shown only as far as it is safe."""
    async with await Client.connect(listing.port) as client:
        await client.send(request(path=f"/v1/models/{path}", method="GET", headers=key(TEAM)))
        got = await client.answer()
        assert_authored(got, 404, INVALID, "model_not_found", param="model")
        assert len(got.body) < 600


async def test_one_model_that_is_not_mine(listing: Proxy) -> None:
    """A model that a key may not ask for is for that key the same as one that does not exist."""
    mine = await get(listing, "/v1/models/gpt-4o", key(NARROW))
    assert mine.status == 200
    other = await get(listing, "/v1/models/default", key(NARROW))
    absent = await get(listing, "/v1/models/nothing", key(NARROW))
    assert other.status == absent.status == 404
    assert other.body.replace(b"default", b"nothing") == absent.body


# Hidden


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt-4o", "/v1/models/absent"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_hidden_models(path: str, method: str) -> None:
    """Where models are hidden, their paths answer as any unknown path does, byte for byte but for
    the id, with a key and without.
    """
    async with serving('[server]\nmodels = "hidden"\n' + ROUTES + KEYS) as proxy:
        answers = []
        for target in (path, "/v1/nothing"):
            for headers in (key(TEAM), []):
                got = await call(proxy.port, b"", target, headers, method)
                identity = got.value(b"x-trunkline-id")
                assert identity is not None
                answers.append(got.raw.replace(identity, b""))
        assert answers[0].startswith(b"HTTP/1.1 404 ")
        assert len(set(answers)) == 1


async def test_hidden_models_can_be_asked_for() -> None:
    """Where models are hidden an unknown one is refused without naming any other."""
    async with serving('[server]\nmodels = "hidden"\n' + ROUTES) as proxy:
        got = await call(proxy.port, b'{"model":"gpt-4"}')
        assert (got.status, got.code) == (404, "model_not_found")
        assert b"gpt-4o" not in got.body
        assert b"/v1/models" not in got.body


# The SDKs


async def test_openai_sdk(listing: Proxy) -> None:
    """OpenAI's SDK lists the models and finds one of them, slash and all."""
    async with AsyncOpenAI(base_url=f"{listing.url}/v1", api_key=TEAM, max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == NAMES
        model = await client.models.retrieve("org/team/model")
        assert (model.id, model.owned_by, model.object) == ("org/team/model", "org", "model")
        with pytest.raises(NotFoundError) as caught:
            await client.models.retrieve("absent")
        assert caught.value.code == "model_not_found"
        assert caught.value.request_id


async def test_anthropic_sdk(listing: Proxy) -> None:
    """Anthropic's SDK lists the models to the end and finds one of them."""
    async with AsyncAnthropic(base_url=listing.url, api_key=TEAM, max_retries=0) as client:
        models = [model async for model in client.models.list(limit=2)]
        assert [model.id for model in models] == NAMES
        assert models[0].created_at.tzinfo is not None
        model = await client.models.retrieve("gpt-4o")
        assert (model.id, model.type, model.display_name) == ("gpt-4o", "model", "gpt-4o")
        with pytest.raises(AnthropicNotFound):
            await client.models.retrieve("absent")


# Health


@pytest.mark.parametrize("host", [b"localhost", b"evil.example", b"10.1.2.3:8080"])
@pytest.mark.parametrize("toml", [ROUTES, ROUTES + KEYS], ids=["open", "keyed"])
async def test_health(toml: str, host: bytes) -> None:
    """A health check gets exactly one answer, whoever asks and however, and leaves no line."""
    async with serving(toml) as proxy:
        got = await get(proxy, "/health", [], host=host)
        assert (got.status, got.body) == (200, b'{"status":"ok"}')
        assert got.value(b"content-type") == b"application/json"
        assert (await get(proxy, "/health?x=1", [], host=host)).body == b'{"status":"ok"}'
        await get(proxy, "/nowhere", [])
        assert (await proxy.record())["path"] == "/nowhere"


async def test_health_at_debug_level() -> None:
    """At debug level a health check does leave a line, of that level."""
    async with serving(ROUTES + '[log]\nlevel = "debug"') as proxy:
        await get(proxy, "/health", [])
        record = await proxy.record()
        assert (record["level"], record["path"], record["status"]) == ("debug", "/health", 200)
        assert (record["outcome"], record["error"]) == ("ok", None)
