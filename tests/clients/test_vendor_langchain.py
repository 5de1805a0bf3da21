"""LangChain's OpenAI and Anthropic models at a vendor, and at the proxy in front of it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import openai
import orjson
import pytest

from tests.clients.answers import ARGUMENTS, SAID, TOOL, VECTOR
from tests.clients.front import Access, Front
from tests.clients.sdks import drain
from tests.clients.vendor import SECRETS, Vendor

Case = Callable[[SimpleNamespace, Access], Awaitable[Any]]
ASKED = "How is the weather in Oslo?"
SCHEMA = {
    "title": TOOL,
    "description": "The weather",
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}


@pytest.fixture(scope="module")
def langchain() -> Iterator[SimpleNamespace]:
    """LangChain's packages, imported only where they are wanted: that takes seconds."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LANGSMITH_TRACING", "false")
        environment.setenv("LANGCHAIN_TRACING_V2", "false")
        import langchain_anthropic.chat_models
        import langchain_core.messages
        import langchain_openai

        # It keeps one HTTP client for all, whatever loop that began on: here each test has its own.
        for name in ("_get_default_httpx_client", "_get_default_async_httpx_client"):
            kept = getattr(langchain_anthropic.chat_models, name)
            environment.setattr(langchain_anthropic.chat_models, name, kept.__wrapped__)
        yield SimpleNamespace(
            Chat=langchain_openai.ChatOpenAI,
            Embeddings=langchain_openai.OpenAIEmbeddings,
            Claude=langchain_anthropic.ChatAnthropic,
            ToolMessage=langchain_core.messages.ToolMessage,
            HumanMessage=langchain_core.messages.HumanMessage,
        )


@asynccontextmanager
async def openai_at(make: Any, at: Access, **options: Any) -> AsyncIterator[Any]:
    """Make one of LangChain's models for OpenAI."""
    async with openai.DefaultAsyncHttpxClient(verify=False) as other:
        with openai.DefaultHttpxClient(verify=False) as http:
            yield make(
                base_url=f"{at.url}/v1",
                api_key=at.keys["oai"],
                max_retries=0,
                http_client=http,
                http_async_client=other,
                **options,
            )


@asynccontextmanager
async def gpt(langchain: SimpleNamespace, at: Access, **options: Any) -> AsyncIterator[Any]:
    async with openai_at(langchain.Chat, at, model="gpt-4o", **options) as model:
        yield model


@asynccontextmanager
async def claude(langchain: SimpleNamespace, at: Access) -> AsyncIterator[Any]:
    model = langchain.Claude(
        model="claude-sonnet-5", base_url=at.url, api_key=at.keys["claude"], max_retries=0
    )
    with model._client:
        async with model._async_client:
            yield model


async def asked(model: Any) -> Any:
    """Ask *model* in the four usual ways."""
    whole = model.invoke(ASKED), await model.ainvoke(ASKED)
    parts = list(model.stream(ASKED)), await drain(model.astream(ASKED))
    texts = [reply.text for reply in whole] + ["".join(part.text for part in all) for all in parts]
    assert texts == [SAID] * 4
    return [reply.usage_metadata for reply in whole], [len(all) for all in parts]


async def tooled(langchain: SimpleNamespace, model: Any) -> None:
    """Make the whole round: a tool is called, and what it says goes back."""
    bound = model.bind_tools([SCHEMA])
    reply = await bound.ainvoke(ASKED)
    (called,) = reply.tool_calls
    assert (called["name"], called["args"]) == (TOOL, orjson.loads(ARGUMENTS))
    streamed = None
    for part in bound.stream(ASKED):
        streamed = part if streamed is None else streamed + part
    assert streamed is not None
    assert [call["args"] for call in streamed.tool_calls] == [orjson.loads(ARGUMENTS)]
    result = langchain.ToolMessage("rain", tool_call_id=called["id"])
    last = await bound.ainvoke([langchain.HumanMessage(ASKED), reply, result])
    assert last.text == SAID


async def openai_chat(langchain: SimpleNamespace, at: Access) -> Any:
    async with gpt(langchain, at) as model:
        return await asked(model)


async def openai_usage(langchain: SimpleNamespace, at: Access) -> Any:
    async with gpt(langchain, at, stream_usage=True) as model:
        parts = await drain(model.astream(ASKED))
    (usage,) = [part.usage_metadata for part in parts if part.usage_metadata]
    assert usage["total_tokens"] == 12


async def openai_tools(langchain: SimpleNamespace, at: Access) -> Any:
    async with gpt(langchain, at) as model:
        await tooled(langchain, model)


async def openai_responses(langchain: SimpleNamespace, at: Access) -> Any:
    async with gpt(langchain, at, use_responses_api=True) as model:
        return await asked(model)


async def openai_responses_tools(langchain: SimpleNamespace, at: Access) -> Any:
    async with gpt(langchain, at, use_responses_api=True) as model:
        await tooled(langchain, model)


async def openai_embeddings(langchain: SimpleNamespace, at: Access) -> Any:
    """Texts go up as they are: to count their tokens first, a file would have to be downloaded."""
    options = {"model": "text-embedding-3-small", "check_embedding_ctx_length": False}
    async with openai_at(langchain.Embeddings, at, **options) as model:
        assert model.embed_documents(["a", "b"]) == [VECTOR, VECTOR]
        assert await model.aembed_query("a") == VECTOR


async def anthropic_chat(langchain: SimpleNamespace, at: Access) -> Any:
    async with claude(langchain, at) as model:
        return await asked(model)


async def anthropic_tools(langchain: SimpleNamespace, at: Access) -> Any:
    async with claude(langchain, at) as model:
        await tooled(langchain, model)


async def anthropic_tokens(langchain: SimpleNamespace, at: Access) -> Any:
    async with claude(langchain, at) as model:
        assert model.get_num_tokens_from_messages([langchain.HumanMessage(ASKED)]) == 9


CASES = (
    openai_chat, openai_usage, openai_tools, openai_responses, openai_responses_tools,
    openai_embeddings, anthropic_chat, anthropic_tools, anthropic_tokens,
)  # fmt: skip
LANGCHAIN = pytest.mark.parametrize("call", CASES, ids=[call.__name__ for call in CASES])


@LANGCHAIN
async def test_direct(call: Case, langchain: SimpleNamespace, vendor: Vendor) -> None:
    """The vendor answers LangChain as OpenAI and Anthropic do."""
    await call(langchain, Access(vendor.origin, SECRETS))


@LANGCHAIN
async def test_proxied(call: Case, langchain: SimpleNamespace, front: Front) -> None:
    """LangChain and the vendor see each other through the proxy as they do without it."""
    await front.same(lambda at: call(langchain, at))
