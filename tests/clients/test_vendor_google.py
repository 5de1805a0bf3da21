"""Google's SDK for Python at a vendor, and at the proxy in front of it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import orjson
import pytest

from tests.clients.answers import ARGUMENTS, SAID, TOOL, VECTOR
from tests.clients.front import Access, Front
from tests.clients.sdks import drain, settle
from tests.clients.team import KEY
from tests.clients.vendor import SECRETS, Vendor

pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession:DeprecationWarning"  # of the SDK's own
)
Case = Callable[[Any], Awaitable[Any]]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.fixture(scope="module")
def genai() -> ModuleType:
    """Google's package, imported only where it is wanted: that takes a second."""
    import google.genai

    return google.genai


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the SDK's two clients."""
    value: str = request.param
    return value


@asynccontextmanager
async def google_at(genai: Any, kind: str, at: Access) -> AsyncIterator[Any]:
    """Make a Google client: the sync one, or the async one within it."""
    options = genai.types.HttpOptions(base_url=at.url)
    client = genai.Client(api_key=at.keys["google"], http_options=options)
    try:
        yield client if kind == "sync" else client.aio
    finally:
        await client.aio.aclose()
        client.close()


GEMINI = "gemini-2.5-flash"


async def generate(client: Any) -> Any:
    reply = await settle(client.models.generate_content(model=GEMINI, contents="Hello"))
    assert (reply.text, reply.model_version) == (SAID, GEMINI)


async def generate_stream(client: Any) -> Any:
    pieces = await drain(
        await settle(client.models.generate_content_stream(model=GEMINI, contents="Hello"))
    )
    assert "".join(piece.text for piece in pieces) == SAID
    assert len(pieces) == 3


async def generate_tools(client: Any) -> Any:
    declared = {"name": TOOL, "description": "The weather", "parameters_json_schema": SCHEMA}
    config = {"tools": [{"function_declarations": [declared]}], "temperature": 0}
    asked = {"model": GEMINI, "contents": "Hello", "config": config}
    reply = await settle(client.models.generate_content(**asked))
    (called,) = reply.function_calls
    assert (called.name, called.args) == (TOOL, orjson.loads(ARGUMENTS))


async def chat(client: Any) -> Any:
    talk = client.chats.create(model=GEMINI)
    replies = [await settle(talk.send_message(said)) for said in ("Hello", "And?")]
    assert [reply.text for reply in replies] == [SAID, SAID]


async def count_tokens(client: Any) -> Any:
    counted = await settle(client.models.count_tokens(model=GEMINI, contents="Hello"))
    assert counted.total_tokens == 9


async def embed(client: Any) -> Any:
    asked = {"model": "gemini-embedding-001", "contents": ["a", "b"]}
    reply = await settle(client.models.embed_content(**asked))
    assert [item.values for item in reply.embeddings] == [VECTOR, VECTOR]


CASES = (generate, generate_stream, generate_tools, chat, count_tokens, embed)
GOOGLE = pytest.mark.parametrize("call", CASES, ids=[call.__name__ for call in CASES])


@GOOGLE
async def test_direct(call: Case, kind: str, genai: ModuleType, vendor: Vendor) -> None:
    """The vendor answers Google's SDK as Google does."""
    async with google_at(genai, kind, Access(vendor.origin, SECRETS)) as client:
        await call(client)


@GOOGLE
async def test_proxied(call: Case, kind: str, genai: ModuleType, front: Front) -> None:
    """Google's SDK and the vendor see each other through the proxy as they do without it."""

    async def made(at: Access) -> Any:
        async with google_at(genai, kind, at) as client:
            return await call(client)

    await front.same(made)


async def test_renamed(genai: ModuleType, front: Front) -> None:
    """Under another name than the vendor's, which stands in the path, nothing else differs."""

    async def generated(at: Access) -> Any:
        async with google_at(genai, "sync", at) as client:
            model = GEMINI if at == front.direct else "my-gemini"
            return client.models.generate_content(model=model, contents="Hello").text

    assert await front.same(generated) == SAID


@pytest.mark.parametrize(
    ("model", "key", "status", "name", "outcome"),
    [
        (GEMINI, "tl-another", 401, "UNAUTHENTICATED", "refused"),
        ("no-such-model", KEY, 404, "NOT_FOUND", "client_error"),
    ],
)
async def test_refused(
    genai: ModuleType, front: Front, model: str, key: str, status: int, name: str, outcome: str
) -> None:
    """What the proxy refuses is refused in the words that the SDK reads."""
    front.vendor.take()
    async with google_at(genai, "sync", Access(front.proxy.url, {"google": key})) as client:
        with pytest.raises(genai.errors.ClientError) as refused:
            client.models.generate_content(model=model, contents="Hello")
    assert (refused.value.code, refused.value.status) == (status, name)
    (record,) = await front.records(1)
    assert (record["outcome"], record["status"]) == (outcome, status)
    assert front.vendor.take() == []
