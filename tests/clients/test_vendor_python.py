"""OpenAI's and Anthropic's SDKs for Python at a vendor, and at the proxy in front of it: only the address and the key differ."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anthropic
import openai
import orjson
import pytest

from tests.clients.answers import ARGUMENTS, HEARD, PIXEL, SAID, SPEECH, TOOL, VECTOR
from tests.clients.front import Access, Front
from tests.clients.sdks import drain, entered, settle, text_of
from tests.clients.team import KEY
from tests.clients.vendor import SECRETS, Vendor

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}:DeprecationWarning")
    for message in (
        "^deprecated$",  # what OpenAI's SDK says of its translations
        r"connect\(\) must be used as a context manager",  # which its realtime client does not do
    )
]

Case = Callable[[Any], Awaitable[Any]]

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
}
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather in Oslo?"}]
CHAT: dict[str, Any] = {"model": "gpt-4o", "messages": ASKED}
FUNCTION = {"type": "function", "function": {"name": TOOL, "parameters": SCHEMA}}
MESSAGE: dict[str, Any] = {"model": "claude-sonnet-5", "max_tokens": 64, "messages": ASKED}
ANTHROPIC_TOOL = {"name": TOOL, "description": "The weather", "input_schema": SCHEMA}
AUDIO = ("speech.wav", b"RIFF\r\n--\x00\xff" + bytes(range(256)) * 300, "audio/wav")
IMAGE = ("in.png", b"\x89PNG\r\n\x1a\n" + bytes(500), "image/png")
LINES = b'{"custom_id":"1"}\n' * 2000


def cases(*functions: Case) -> pytest.MarkDecorator:
    """Run a test for each of these calls, under their names."""
    return pytest.mark.parametrize(
        "call", functions, ids=[function.__name__.strip("_") for function in functions]
    )


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of an SDK's two clients."""
    value: str = request.param
    return value


# OpenAI

# HTTP clients of the SDK's own kind, but without certificates: those take longer than the test.
_OPENAI: dict[str, Any] = {
    "sync": (openai.OpenAI, openai.DefaultHttpxClient),
    "async": (openai.AsyncOpenAI, openai.DefaultAsyncHttpxClient),
}
_ANTHROPIC: dict[str, Any] = {
    "sync": (anthropic.Anthropic, anthropic.DefaultHttpxClient),
    "async": (anthropic.AsyncAnthropic, anthropic.DefaultAsyncHttpxClient),
}


@asynccontextmanager
async def openai_at(kind: str, at: Access) -> AsyncIterator[Any]:
    """Make an OpenAI client."""
    make, http = _OPENAI[kind]
    async with entered(
        make(
            base_url=f"{at.url}/v1",
            api_key=at.keys["oai"],
            max_retries=0,
            http_client=http(verify=False),
        )
    ) as client:
        yield client


async def chat(client: Any) -> Any:
    reply = await settle(client.chat.completions.create(**CHAT))
    assert (reply.model, reply.usage.total_tokens) == ("gpt-4o", 12)
    assert reply.choices[0].message.content == SAID


async def chat_stream(client: Any) -> Any:
    options = {"include_usage": True}
    chunks = await drain(
        await settle(client.chat.completions.create(**CHAT, stream=True, stream_options=options))
    )
    assert (text_of(chunks), chunks[-1].usage.total_tokens) == (SAID, 12)
    return chunks


async def chat_tools(client: Any) -> Any:
    """The whole round: a tool is called, and what it says goes back."""
    reply = await settle(client.chat.completions.create(**CHAT, tools=[FUNCTION]))
    said = reply.choices[0].message
    (called,) = said.tool_calls
    assert (called.function.name, called.function.arguments) == (TOOL, ARGUMENTS)
    result = {"role": "tool", "tool_call_id": called.id, "content": "rain"}
    messages = [*ASKED, said, result]
    asked = {"model": "gpt-4o", "messages": messages, "tools": [FUNCTION]}
    reply = await settle(client.chat.completions.create(**asked))
    assert reply.choices[0].message.content == SAID


async def chat_tools_stream(client: Any) -> Any:
    async with entered(client.chat.completions.stream(**CHAT, tools=[FUNCTION])) as events:
        await drain(events)
        whole = await settle(events.get_final_completion())
    (called,) = whole.choices[0].message.tool_calls
    assert (called.function.name, called.function.arguments) == (TOOL, ARGUMENTS)


async def completions(client: Any) -> Any:
    asked = {"model": "gpt-3.5-turbo-instruct", "prompt": "Say"}
    assert (await settle(client.completions.create(**asked))).choices[0].text == SAID
    chunks = await drain(await settle(client.completions.create(**asked, stream=True)))
    assert "".join(chunk.choices[0].text for chunk in chunks) == SAID


async def embeddings(client: Any) -> Any:
    """The SDK asks for base64 unless told otherwise, and unpacks it."""
    model = "text-embedding-3-small"
    packed = await settle(client.embeddings.create(model=model, input=["a", "b"]))
    asked = {"model": model, "input": "a", "encoding_format": "float", "dimensions": 3}
    plain = await settle(client.embeddings.create(**asked))
    assert [item.embedding for item in packed.data] == [VECTOR, VECTOR]
    assert plain.data[0].embedding == VECTOR


async def responses(client: Any) -> Any:
    reply = await settle(client.responses.create(model="gpt-4o", input="Hello"))
    assert reply.output_text == SAID
    return reply


async def responses_stream(client: Any) -> Any:
    async with entered(client.responses.stream(model="gpt-4o", input="Hello")) as events:
        types = [event.type for event in await drain(events)]
        whole = await settle(events.get_final_response())
    assert whole.output_text == SAID
    assert types[-1] == "response.completed"
    return types


async def responses_tools(client: Any) -> Any:
    tool = {"type": "function", "name": TOOL, "parameters": SCHEMA, "strict": True}
    asked: dict[str, Any] = {"model": "gpt-4o", "tools": [tool]}
    reply = await settle(client.responses.create(**asked, input="Hello"))
    (called,) = reply.output
    assert (called.name, called.arguments) == (TOOL, ARGUMENTS)
    result = {"type": "function_call_output", "call_id": called.call_id, "output": "rain"}
    more = {**asked, "input": [result], "previous_response_id": reply.id}
    assert (await settle(client.responses.create(**more))).output_text == SAID


async def responses_kept(client: Any) -> Any:
    """What is kept at the vendor is read, listed, cancelled and deleted by its id."""
    kept = await settle(
        client.responses.retrieve("resp_1", include=["reasoning.encrypted_content"])
    )
    items = [item.id async for item in _all(client.responses.input_items.list("resp_1", limit=5))]
    cancelled = await settle(client.responses.cancel("resp_1"))
    await settle(client.responses.delete("resp_1"))
    assert (kept.output_text, items, cancelled.status) == (SAID, ["msg_0"], "cancelled")


async def moderations(client: Any) -> Any:
    asked = {"model": "omni-moderation-latest", "input": "x"}
    assert not (await settle(client.moderations.create(**asked))).results[0].flagged


async def rerank(client: Any) -> Any:
    """The SDK has no name for this one, and posts it all the same."""
    body = {"model": "rerank-v3.5", "query": "q", "documents": ["a", "b"]}
    reply = await settle(client.post("/rerank", body=body, cast_to=object))
    assert [item["index"] for item in reply["results"]] == [0, 1]


async def files(client: Any) -> Any:
    """A file goes up, is listed, comes back as it was, and is deleted."""
    sent = ("requests.jsonl", LINES)
    kept = await settle(client.files.create(file=sent, purpose="batch"))
    assert kept.bytes == len(LINES)
    listed = [item.id async for item in _all(client.files.list(purpose="batch", limit=10))]
    assert listed == [kept.id]
    assert (await settle(client.files.retrieve(kept.id))).filename == "requests.jsonl"
    back = await settle(client.files.content(kept.id))
    assert back.content == LINES
    assert (await settle(client.files.delete(kept.id))).deleted


async def batches(client: Any) -> Any:
    made = await settle(
        client.batches.create(
            input_file_id="file-1", endpoint="/v1/chat/completions", completion_window="24h"
        )
    )
    seen = await settle(client.batches.retrieve(made.id))
    listed = [item.id async for item in _all(client.batches.list(limit=3))]
    cancelled = await settle(client.batches.cancel(made.id))
    states = [made.status, seen.status, cancelled.status]
    assert (states, listed) == (["validating", "in_progress", "cancelling"], ["batch_1"])


async def transcription(client: Any) -> Any:
    heard = await settle(client.audio.transcriptions.create(model="whisper-1", file=AUDIO))
    asked = {"model": "whisper-1", "file": AUDIO, "response_format": "text", "language": "en"}
    text = await settle(client.audio.transcriptions.create(**asked))
    assert (heard.text, text) == (HEARD, HEARD)


async def transcription_stream(client: Any) -> Any:
    asked = {"model": "gpt-4o-transcribe", "file": AUDIO, "stream": True}
    events = await drain(await settle(client.audio.transcriptions.create(**asked)))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == HEARD


async def translation(client: Any) -> Any:
    heard = await settle(client.audio.translations.create(model="whisper-1", file=AUDIO))
    assert heard.text == HEARD


async def speech(client: Any) -> Any:
    asked: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "Hello"}
    spoken = await settle(client.audio.speech.create(**asked))
    assert spoken.content == SPEECH
    async with entered(client.audio.speech.with_streaming_response.create(**asked)) as reply:
        pieces = await drain(reply.iter_bytes())
    assert b"".join(pieces) == SPEECH


async def images(client: Any) -> Any:
    asked: dict[str, Any] = {"model": "gpt-image-1", "prompt": "A cat"}
    made = await settle(client.images.generate(**asked, size="1024x1024"))
    edited = await settle(client.images.edit(**asked, image=IMAGE, mask=IMAGE))
    both = await settle(client.images.edit(**asked, image=[IMAGE, IMAGE]))
    assert [reply.data[0].b64_json for reply in (made, edited, both)] == [PIXEL] * 3


async def realtime(client: Any) -> Any:
    async with entered(client.realtime.connect(model="gpt-realtime")) as connection:
        created = await settle(connection.recv())
        await settle(connection.session.update(session={"type": "realtime", "instructions": "x"}))
        updated = await settle(connection.recv())
        await settle(connection.response.create())
        events = [await settle(connection.recv()) for _ in range(6)]
    assert (created.type, created.session.model) == ("session.created", "gpt-realtime")
    assert updated.type == "session.update"  # the vendor says again what it does not know
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert ("".join(deltas), events[-1].type) == (SAID, "response.done")


async def _all(listed: Any) -> AsyncIterator[Any]:
    """Page through a list of either client."""
    for item in await drain(listed):
        yield item


OPENAI = cases(
    chat, chat_stream, chat_tools, chat_tools_stream, completions, embeddings, responses,
    responses_stream, responses_tools, responses_kept, moderations, rerank, files, batches,
    transcription, transcription_stream, translation, speech, images, realtime,
)  # fmt: skip


@OPENAI
async def test_openai_direct(call: Case, kind: str, vendor: Vendor) -> None:
    """The vendor answers OpenAI's SDK as OpenAI does."""
    async with openai_at(kind, Access(vendor.origin, SECRETS)) as client:
        await call(client)


@OPENAI
async def test_openai_proxied(call: Case, kind: str, front: Front) -> None:
    """OpenAI's SDK and the vendor see each other through the proxy as they do without it."""

    async def made(at: Access) -> Any:
        async with openai_at(kind, at) as client:
            return await call(client)

    await front.same(made)


# Anthropic


@asynccontextmanager
async def anthropic_at(kind: str, at: Access) -> AsyncIterator[Any]:
    """Make an Anthropic client."""
    make, http = _ANTHROPIC[kind]
    async with entered(
        make(
            base_url=at.url,
            api_key=at.keys["claude"],
            max_retries=0,
            http_client=http(verify=False),
        )
    ) as client:
        yield client


async def message(client: Any) -> Any:
    reply = await settle(client.messages.create(**MESSAGE))
    assert (reply.content[0].text, reply.model) == (SAID, "claude-sonnet-5")
    return reply


async def message_events(client: Any) -> Any:
    events = await drain(await settle(client.messages.create(**MESSAGE, stream=True)))
    words = [event.delta.text for event in events if event.type == "content_block_delta"]
    assert ("".join(words), events[-1].type) == (SAID, "message_stop")
    return events


async def message_stream(client: Any) -> Any:
    async with entered(client.messages.stream(**MESSAGE)) as events:
        words = await drain(events.text_stream)
        whole = await settle(events.get_final_message())
    assert "".join(words) == whole.content[0].text == SAID


async def message_tools(client: Any) -> Any:
    reply = await settle(client.messages.create(**MESSAGE, tools=[ANTHROPIC_TOOL]))
    (called,) = reply.content
    assert (called.name, called.input) == (TOOL, orjson.loads(ARGUMENTS))
    result = {"type": "tool_result", "tool_use_id": called.id, "content": "rain"}
    messages = [
        *ASKED,
        {"role": "assistant", "content": reply.content},
        {"role": "user", "content": [result]},
    ]
    asked = {**MESSAGE, "messages": messages, "tools": [ANTHROPIC_TOOL]}
    assert (await settle(client.messages.create(**asked))).content[0].text == SAID


async def message_tools_stream(client: Any) -> Any:
    async with entered(client.messages.stream(**MESSAGE, tools=[ANTHROPIC_TOOL])) as events:
        whole = await settle(events.get_final_message())
    assert whole.content[0].input == orjson.loads(ARGUMENTS)


async def message_beta(client: Any) -> Any:
    """Beta calls say so in the query, and which in a header."""
    betas = ["context-1m-2025-08-07", "files-api-2025-04-14"]
    reply = await settle(client.beta.messages.create(**MESSAGE, betas=betas))
    assert reply.content[0].text == SAID


async def count_tokens(client: Any) -> Any:
    asked = {"model": "claude-sonnet-5", "messages": ASKED}
    assert (await settle(client.messages.count_tokens(**asked))).input_tokens == 9


ANTHROPIC = cases(
    message, message_events, message_stream, message_tools, message_tools_stream, message_beta,
    count_tokens,
)  # fmt: skip


@ANTHROPIC
async def test_anthropic_direct(call: Case, kind: str, vendor: Vendor) -> None:
    """The vendor answers Anthropic's SDK as Anthropic does."""
    async with anthropic_at(kind, Access(vendor.origin, SECRETS)) as client:
        await call(client)


@ANTHROPIC
async def test_anthropic_proxied(call: Case, kind: str, front: Front) -> None:
    """Anthropic's SDK and the vendor see each other through the proxy as they do without it."""

    async def made(at: Access) -> Any:
        async with anthropic_at(kind, at) as client:
            return await call(client)

    await front.same(made)


# What is not quite the same


async def chat_as(model: str, at: Access) -> Any:
    async with openai_at("sync", at) as client:
        return client.chat.completions.create(**{**CHAT, "model": model})


async def heard_as(model: str, at: Access) -> Any:
    async with openai_at("sync", at) as client:
        return client.audio.transcriptions.create(model=model, file=AUDIO, language="en")


async def message_as(model: str, at: Access) -> Any:
    async with anthropic_at("sync", at) as client:
        return client.messages.create(**{**MESSAGE, "model": model})


@pytest.mark.parametrize(
    ("call", "model", "name"),
    [
        (chat_as, "gpt-4o", "my-model"),
        (heard_as, "whisper-1", "my-whisper"),
        (message_as, "claude-sonnet-5", "my-claude"),
    ],
)
async def test_renamed(
    front: Front, call: Callable[[str, Access], Awaitable[Any]], model: str, name: str
) -> None:
    """Under another name than the vendor's, in JSON or in a form, nothing else differs."""
    await front.same(partial(call, model), partial(call, name))


async def test_vendors_list(front: Front) -> None:
    """The list of models is the vendor's own where the caller asks for that vendor's."""

    async def listed(at: Access, **options: Any) -> list[Any]:
        async with openai_at("sync", at) as client:
            return [item.id for item in client.models.list(**options)]

    query = {"upstream": "oai"}
    assert await front.same(listed, partial(listed, extra_query=query)) == ["gpt-4o"]


@pytest.mark.parametrize(
    ("model", "key", "status", "code", "outcome"),
    [
        ("whisper-1", "tl-another", 401, "invalid_api_key", "refused"),
        ("no-such-model", KEY, 404, "model_not_found", "client_error"),
    ],
)
async def test_refused(
    front: Front, model: str, key: str, status: int, code: str, outcome: str
) -> None:
    """A form is refused as any other request is: the vendor never sees it."""
    front.vendor.take()
    with pytest.raises(openai.APIStatusError) as refused:
        await heard_as(model, Access(front.proxy.url, {"oai": key}))
    assert (refused.value.status_code, refused.value.code) == (status, code)
    (record,) = await front.records(1)
    assert (record["outcome"], record["status"]) == (outcome, status)
    assert front.vendor.take() == []
