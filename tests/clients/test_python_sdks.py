"""The OpenAI and Anthropic SDKs for Python, sync and async, through the proxy."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import openai
import pytest

from tests.clients.sdks import drain, entered, first, settle, text_of, trunkline_id
from tests.clients.team import CHAT_EVENT, ECHO, HELLO, KEY, MESSAGE_EVENT, SAID, settled
from tests.harness.proxy import Proxy
from tests.harness.upstream import Upstream, stream

MESSAGE = {**HELLO, "max_tokens": 64}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


# OpenAI

# An HTTP client of the SDK's own kind, but without certificates: to load them for each test takes
# longer than the test.
_OPENAI: dict[str, Any] = {
    "sync": (openai.OpenAI, openai.DefaultHttpxClient),
    "async": (openai.AsyncOpenAI, openai.DefaultAsyncHttpxClient),
}
_ANTHROPIC: dict[str, Any] = {
    "sync": (anthropic.Anthropic, anthropic.DefaultHttpxClient),
    "async": (anthropic.AsyncAnthropic, anthropic.DefaultAsyncHttpxClient),
}


@asynccontextmanager
async def openai_at(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """Make an OpenAI client of *kind*, sync or async, that never retries unless told to."""
    make, http = _OPENAI[kind]
    given = {"api_key": KEY, "max_retries": 0, **options}
    client = make(base_url=f"{url}/v1", http_client=http(verify=False), **given)
    yield client
    await settle(client.close())


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of an SDK's two clients."""
    value: str = request.param
    return value


@pytest.fixture
async def oai(kind: str, team: Proxy) -> AsyncIterator[Any]:
    """The team's OpenAI client."""
    async with openai_at(kind, team.url) as client:
        yield client


async def test_chat(oai: Any, team: Proxy) -> None:
    """A chat is answered, and its line in the log names the key, the route and the model sent."""
    raw = await settle(oai.chat.completions.with_raw_response.create(**HELLO))
    reply = await settle(raw.parse())
    assert reply.choices[0].message.content == SAID
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    record = await settled(team, trunkline_id(raw))
    assert (record["outcome"], record["status"], record["stream"]) == ("ok", 200, False)
    assert (record["key"], record["route"], record["upstream"]) == ("team", "sandbox/*", "sandbox")
    assert (record["model"], record["upstream_model"]) == (ECHO, "echo")


async def test_default_model(oai: Any) -> None:
    """The model `default` leads where the file says."""
    reply = await settle(oai.chat.completions.create(**{**HELLO, "model": "default"}))
    assert reply.choices[0].message.content == SAID


async def test_chat_stream(oai: Any, team: Proxy) -> None:
    """A streamed chat arrives word by word, ends with its reason, and carries no usage unasked."""
    events = await settle(oai.chat.completions.create(**HELLO, stream=True))
    chunks = await drain(events)
    assert text_of(chunks) == SAID
    assert len(chunks) == 7  # the role, five words, the reason
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 6 + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    record = await settled(team, trunkline_id(events.response))
    assert (record["outcome"], record["stream"], record["error"]) == ("ok", True, None)


async def test_chat_stream_with_usage(oai: Any) -> None:
    """Usage arrives in a last chunk without choices where the caller asks for it."""
    options = {"include_usage": True}
    chunks = await drain(
        await settle(oai.chat.completions.create(**HELLO, stream=True, stream_options=options))
    )
    assert text_of(chunks) == SAID
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5


async def test_chat_stream_helper(oai: Any) -> None:
    """The SDK's own gatherer of a stream ends with the whole completion."""
    async with entered(oai.chat.completions.stream(**HELLO)) as events:
        kinds = [event.type for event in await drain(events)]
        whole = await settle(events.get_final_completion())
    assert whole.choices[0].message.content == SAID
    assert kinds[-1] == "content.done"


async def test_left_early(oai: Any, team: Proxy) -> None:
    """Leaving a `with` block after the first chunk of a long answer ends it; the next call works."""
    asked = {**HELLO, "model": "sandbox/slow", "stream": True}
    async with entered(await settle(oai.chat.completions.create(**asked))) as events:
        chunk = await first(events)
    assert chunk.choices[0].delta.role == "assistant"
    record = await settled(team, trunkline_id(events.response))
    assert (record["outcome"], record["error"]) == ("client_gone", "client_gone")
    reply = await settle(oai.chat.completions.create(**HELLO))
    assert reply.choices[0].message.content == SAID


@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_tools(oai: Any, streamed: bool) -> None:
    """A tool is offered, and its call comes back, whole or in a stream."""
    asked = {**HELLO, "tools": [TOOL], "tool_choice": "required", "stream": streamed}
    reply = await settle(oai.chat.completions.create(**asked))
    if streamed:
        chunks = await drain(reply)
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
    else:
        calls, reason = reply.choices[0].message.tool_calls, reply.choices[0].finish_reason
    assert [(call.function.name, call.function.arguments) for call in calls] == [("weather", "{}")]
    assert reason == "tool_calls"


async def test_embeddings(oai: Any) -> None:
    """Embeddings are the same numbers in base64, which the SDK asks for by itself, and in JSON."""
    asked = {"model": ECHO, "input": ["one", "two"]}
    packed = await settle(oai.embeddings.create(**asked))
    plain = await settle(oai.embeddings.create(**asked, encoding_format="float"))
    assert [item.index for item in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert len(one.embedding) == 8
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)


async def test_completions(oai: Any) -> None:
    """The old completions are answered, plain and streamed."""
    asked = {"model": ECHO, "prompt": "one two"}
    reply = await settle(oai.completions.create(**asked))
    assert reply.choices[0].text == "You said: one two"
    chunks = await drain(await settle(oai.completions.create(**asked, stream=True)))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "You said: one two"
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_responses(oai: Any) -> None:
    """A response is answered, plain, streamed, and through the SDK's gatherer of a stream."""
    asked = {"model": ECHO, "input": "one two"}
    reply = await settle(oai.responses.create(**asked))
    assert reply.output_text == "You said: one two"
    events = await drain(await settle(oai.responses.create(**asked, stream=True)))
    words = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(words) == "You said: one two"
    assert events[-1].type == "response.completed"
    async with entered(oai.responses.stream(**asked)) as gathered:
        await drain(gathered)
        whole = await settle(gathered.get_final_response())
    assert whole.output_text == "You said: one two"


async def test_moderations(oai: Any) -> None:
    """A moderation is answered."""
    reply = await settle(oai.moderations.create(model=ECHO, input="one two"))
    assert [result.flagged for result in reply.results] == [False]


async def test_models(oai: Any) -> None:
    """The models are listed, and one is found by its name, slash and all."""
    listed = [model.id for model in await drain(oai.models.list())]
    assert {"default", ECHO, "sandbox/slow"} <= set(listed)
    model = await settle(oai.models.retrieve(ECHO))
    assert (model.id, model.object, model.owned_by) == (ECHO, "model", "sandbox")
    assert model.created > 1_700_000_000
    with pytest.raises(openai.NotFoundError) as caught:
        await settle(oai.models.retrieve("no/such"))
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "The API key is not valid."),
        ({"extra_headers": {"Authorization": openai.Omit()}}, "No API key was given."),
    ],
    ids=["wrong", "none"],
)
async def test_key(kind: str, team: Proxy, extra: dict[str, Any], message: str) -> None:
    """A wrong key and a missing one are authentication errors, and say which of the two."""
    async with openai_at(kind, team.url, api_key="tl-another") as client:
        with pytest.raises(openai.AuthenticationError, match=message) as caught:
            await settle(client.chat.completions.create(**HELLO, **extra))
    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "authentication_error"
    assert caught.value.request_id == trunkline_id(caught.value.response)
    record = await settled(team, trunkline_id(caught.value.response))
    assert (record["outcome"], record["status"], record["attempts"]) == ("refused", 401, [])


async def test_unknown_model(oai: Any, team: Proxy) -> None:
    """A model that no route matches is not found, and near names that are there are named."""
    with pytest.raises(openai.NotFoundError) as caught:
        await settle(oai.chat.completions.create(**{**HELLO, "model": "defautl"}))
    body: Any = caught.value.body
    assert body["message"] == (
        'No route leads to the model "defautl". Did you mean "default"? See GET /v1/models.'
    )
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    record = await settled(team, trunkline_id(caught.value.response))
    assert (record["outcome"], record["error"]) == ("client_error", "model_not_found")


async def test_dormant_route(oai: Any) -> None:
    """A vendor whose variable is not set is unavailable, and the variable is named."""
    with pytest.raises(openai.InternalServerError, match="OPENAI_API_KEY") as caught:
        await settle(oai.chat.completions.create(**{**HELLO, "model": "gpt-4o"}))
    assert (caught.value.status_code, caught.value.code) == (503, "not_configured")


@pytest.mark.parametrize(
    ("model", "error", "status"),
    [
        ("400", openai.BadRequestError, 400),
        ("403", openai.PermissionDeniedError, 403),
        ("404", openai.NotFoundError, 404),
        ("422", openai.UnprocessableEntityError, 422),
        ("429", openai.RateLimitError, 429),
        ("500", openai.InternalServerError, 500),
        ("503", openai.InternalServerError, 503),
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_upstream_error(
    oai: Any, model: str, error: type[openai.APIStatusError], status: int, streamed: bool
) -> None:
    """What an upstream refuses is refused in its own words, whether a stream was asked for or not."""
    asked = {**HELLO, "model": f"sandbox/{model}", "stream": streamed}
    with pytest.raises(error, match=f"An error {model} from the sandbox") as caught:
        await settle(oai.chat.completions.create(**asked))
    assert caught.value.status_code == status
    assert caught.value.request_id == "req_sandbox"  # the vendor's own, where it has one
    hint = {"429": "1", "503": "1"}.get(model)
    assert caught.value.response.headers.get("retry-after") == hint


async def test_upstream_refuses_credential(oai: Any) -> None:
    """An upstream that refuses our credential is a bad gateway, not the caller's wrong key."""
    with pytest.raises(openai.InternalServerError) as caught:
        await settle(oai.chat.completions.create(**{**HELLO, "model": "sandbox/401"}))
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_auth")


async def test_upstream_page(oai: Any) -> None:
    """A load balancer's page of HTML is an error to the SDK, not an answer."""
    with pytest.raises(openai.InternalServerError) as caught:
        await settle(oai.chat.completions.create(**{**HELLO, "model": "sandbox/html"}))
    assert "<title>502 Bad Gateway</title>" in caught.value.response.text


async def test_error_event(oai: Any) -> None:
    """An error event that an upstream sends in a stream is raised."""
    asked = {**HELLO, "model": "sandbox/error-event", "stream": True}
    events = await settle(oai.chat.completions.create(**asked))
    with pytest.raises(openai.APIError, match="An error 500 from the sandbox"):
        await drain(events)


BREAKS = [
    ("sandbox/incomplete", "upstream_incomplete", "upstream_cut"),
    ("stalling", "upstream_idle_timeout", "timeout"),
]


async def ask_openai(client: Any, endpoint: str, model: str) -> Any:
    """Ask *model* for a stream at *endpoint*."""
    create = {
        "chat": client.chat.completions.create,
        "completions": client.completions.create,
        "responses": client.responses.create,
    }[endpoint]
    words = {
        "chat": {"messages": HELLO["messages"]},
        "completions": {"prompt": "one two"},
        "responses": {"input": "one two"},
    }[endpoint]
    return await settle(create(model=model, stream=True, **words))


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize(("model", "code", "outcome"), BREAKS)
async def test_broken_stream(
    oai: Any, team: Proxy, endpoint: str, model: str, code: str, outcome: str
) -> None:
    """A stream that ends too soon or falls silent raises our error, however much of it had come."""
    events = await ask_openai(oai, endpoint, model)
    came: list[Any] = []
    with pytest.raises(openai.APIError) as caught:
        await drain(events, came)
    assert caught.value.code == code
    assert len(came) >= 3
    assert {chunk.choices[0].finish_reason for chunk in came} == {None}
    record = await settled(team, trunkline_id(events.response))
    assert (record["outcome"], record["error"], record["status"]) == (outcome, code, 200)


@pytest.mark.parametrize(("model", "code", "outcome"), BREAKS)
async def test_broken_response(oai: Any, team: Proxy, model: str, code: str, outcome: str) -> None:
    """A response's stream that breaks says why in an error event, and then fails as a connection."""
    events = await ask_openai(oai, "responses", model)
    came: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        await drain(events, came)
    assert (came[-1].type, came[-1].code) == ("error", code)
    record = await settled(team, trunkline_id(events.response))
    assert (record["outcome"], record["error"]) == (outcome, code)


@pytest.mark.parametrize("endpoint", ["chat", "completions", "responses"])
async def test_cut_inside_an_event(oai: Any, team: Proxy, endpoint: str) -> None:
    """A stream cut in the middle of an event raises, and what had come whole before is all there is."""
    events = await ask_openai(oai, endpoint, "sandbox/cut")
    came: list[Any] = []
    with pytest.raises(openai.APIConnectionError):
        await drain(events, came)
    assert len(came) == 3
    record = await settled(team, trunkline_id(events.response))
    assert (record["outcome"], record["error"]) == ("upstream_cut", "upstream_disconnected")


@pytest.mark.parametrize("model", ["sandbox/cut", "stalling"])
async def test_broken_plain_answer(oai: Any, model: str) -> None:
    """A plain answer that breaks off or falls silent is a failed connection, not half an answer."""
    with pytest.raises(openai.APIConnectionError):
        await settle(oai.chat.completions.create(**{**HELLO, "model": model}))


async def test_client_times_out(oai: Any, team: Proxy) -> None:
    """A client that gives up waiting gets its own timeout, and the log says that it left."""
    before = len(by_model(team, "sandbox/hang"))
    asked = {**HELLO, "model": "sandbox/hang", "timeout": 0.3}
    asked["extra_headers"] = {"x-stainless-read-timeout": openai.Omit()}
    with pytest.raises(openai.APITimeoutError):
        await settle(oai.chat.completions.create(**asked))
    async with asyncio.timeout(5):
        while len(records := by_model(team, "sandbox/hang")) == before:
            await asyncio.sleep(0.02)
    assert len(records) == before + 1
    assert (records[-1]["outcome"], records[-1]["error"]) == ("client_gone", "client_gone")
    assert records[-1]["attempts"][0]["error"] == "client_gone"


async def test_client_says_how_long_it_waits(oai: Any, team: Proxy) -> None:
    """A client that says how long it will wait has an answer of ours before it gives up."""
    before = len(by_model(team, "sandbox/hang"))
    asked = {**HELLO, "model": "sandbox/hang", "timeout": 3}
    with pytest.raises(openai.InternalServerError) as caught:
        await settle(oai.chat.completions.create(**asked))
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    record = await settled(team, trunkline_id(caught.value.response))
    assert (record["outcome"], record["error"]) == ("timeout", "upstream_timeout")
    assert 1500 < record["total_ms"] < 2900
    assert len(by_model(team, "sandbox/hang")) == before + 1


def by_model(proxy: Proxy, model: str) -> list[dict[str, Any]]:
    """Return the records of those who asked for *model*."""
    return [record for record in proxy.records() if record["model"] == model]


async def test_proxy_times_out(kind: str, team: Proxy) -> None:
    """What may be billed already is not asked again: a client that retries is told not to."""
    before = len(by_model(team, "impatient"))
    async with openai_at(kind, team.url, max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await settle(client.chat.completions.create(**{**HELLO, "model": "impatient"}))
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    await settled(team, trunkline_id(caught.value.response))
    assert len(by_model(team, "impatient")) == before + 1


# Anthropic


@asynccontextmanager
async def anthropic_at(kind: str, url: str, **options: Any) -> AsyncIterator[Any]:
    """Make an Anthropic client of *kind*, sync or async, that never retries."""
    make, http = _ANTHROPIC[kind]
    given = options or {"api_key": KEY}
    client = make(base_url=url, max_retries=0, http_client=http(verify=False), **given)
    yield client
    await settle(client.close())


@pytest.fixture
async def claude(kind: str, team: Proxy) -> AsyncIterator[Any]:
    """The team's Anthropic client."""
    async with anthropic_at(kind, team.url) as client:
        yield client


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": KEY},
        {"auth_token": KEY},
        {
            "auth_token": "left-over",
            "default_headers": {"x-api-key": KEY},
        },
        {
            "api_key": "unused",
            "default_headers": {"x-api-key": KEY, "Authorization": anthropic.Omit()},
        },
    ],
    ids=["api_key", "auth_token", "x-api-key beside a junk token", "x-api-key alone"],
)
async def test_messages(kind: str, team: Proxy, options: dict[str, Any]) -> None:
    """A message is answered at a base URL without /v1, in whichever header its SDK puts the key."""
    async with anthropic_at(kind, team.url, **options) as client:
        raw = await settle(client.messages.with_raw_response.create(**MESSAGE))
        reply = await settle(raw.parse())
    assert reply.content[0].text == SAID
    assert (reply.stop_reason, reply.usage.output_tokens) == ("end_turn", 5)
    record = await settled(team, trunkline_id(raw))
    assert (record["outcome"], record["key"], record["path"]) == ("ok", "team", "/v1/messages")


async def test_messages_stream(claude: Any, team: Proxy) -> None:
    """A streamed message arrives event by event and ends with message_stop."""
    events = await settle(claude.messages.create(**MESSAGE, stream=True))
    came = await drain(events)
    deltas = [event.delta.text for event in came if event.type == "content_block_delta"]
    assert "".join(deltas) == SAID
    assert len(deltas) == 5
    assert came[-1].type == "message_stop"
    record = await settled(team, trunkline_id(events.response))
    assert (record["outcome"], record["stream"]) == ("ok", True)


async def test_messages_stream_helper(claude: Any) -> None:
    """The SDK's own gatherer of a stream ends with the whole message."""
    async with entered(claude.messages.stream(**MESSAGE)) as events:
        words = await drain(events.text_stream)
        whole = await settle(events.get_final_message())
    assert "".join(words) == whole.content[0].text == SAID
    assert whole.stop_reason == "end_turn"


async def test_messages_left_early(claude: Any, team: Proxy) -> None:
    """Leaving the `with` block of a message's stream ends it."""
    asked = {**MESSAGE, "model": "sandbox/slow"}
    async with entered(claude.messages.stream(**asked)) as events:
        event = await first(events)
        response = events.response
    assert event.type == "message_start"
    record = await settled(team, trunkline_id(response))
    assert record["outcome"] == "client_gone"


async def test_count_tokens(claude: Any) -> None:
    """Tokens are counted."""
    counted = await settle(claude.messages.count_tokens(**HELLO))
    assert counted.input_tokens == 3


async def test_anthropic_models(claude: Any) -> None:
    """The list of models is one that Anthropic's SDK pages through, too."""
    page = await settle(claude.models.list(limit=1000))
    models = {model.id: model for model in await drain(page)}
    assert {"default", ECHO} <= set(models)
    assert models[ECHO].type == "model"
    assert models[ECHO].display_name == ECHO
    assert models[ECHO].created_at.year >= 2025
    assert (await settle(claude.models.retrieve(ECHO))).id == ECHO


async def test_anthropic_key(kind: str, team: Proxy) -> None:
    """A wrong key is Anthropic's authentication error, in Anthropic's body."""
    async with anthropic_at(kind, team.url, api_key="tl-another") as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await settle(client.messages.create(**MESSAGE))
    own_id = trunkline_id(caught.value.response)
    error = {"type": "authentication_error", "message": "The API key is not valid."}
    assert caught.value.body == {"type": "error", "error": error, "request_id": own_id}
    assert caught.value.request_id == own_id


async def test_anthropic_unknown_model(claude: Any) -> None:
    """A model that no route matches is Anthropic's not_found_error."""
    with pytest.raises(anthropic.NotFoundError, match="No route leads to the model") as caught:
        await settle(claude.messages.create(**{**MESSAGE, "model": "no/such"}))
    body: Any = caught.value.body
    assert body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("model", "error", "kind_of_error"),
    [
        ("400", anthropic.BadRequestError, "invalid_request_error"),
        ("403", anthropic.PermissionDeniedError, "permission_error"),
        ("404", anthropic.NotFoundError, "not_found_error"),
        ("429", anthropic.RateLimitError, "rate_limit_error"),
        ("500", anthropic.InternalServerError, "api_error"),
        ("529", anthropic.APIStatusError, "overloaded_error"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["plain", "stream"])
async def test_anthropic_upstream_error(
    claude: Any,
    model: str,
    error: type[anthropic.APIStatusError],
    kind_of_error: str,
    streamed: bool,
) -> None:
    """What an upstream refuses is refused in its own words, in Anthropic's classes."""
    asked = {**MESSAGE, "model": f"sandbox/{model}", "stream": streamed}
    with pytest.raises(error, match=f"An error {model} from the sandbox") as caught:
        await settle(claude.messages.create(**asked))
    body: Any = caught.value.body
    assert (caught.value.status_code, body["error"]["type"]) == (int(model), kind_of_error)
    assert caught.value.request_id == "req_sandbox"


async def drain_message(claude: Any, model: str, helper: bool, into: list[Any]) -> None:
    """Take a message's stream, the bare one or the SDK's *helper*."""
    asked = {**MESSAGE, "model": model}
    if helper:
        async with entered(claude.messages.stream(**asked)) as events:
            await drain(events, into)
    else:
        await drain(await settle(claude.messages.create(**asked, stream=True)), into)


@pytest.mark.parametrize("helper", [False, True], ids=["create", "stream"])
@pytest.mark.parametrize(("model", "code", "outcome"), BREAKS)
async def test_anthropic_broken_stream(
    claude: Any, team: Proxy, helper: bool, model: str, code: str, outcome: str
) -> None:
    """A message's stream that ends too soon or falls silent raises our error in Anthropic's body."""
    came: list[Any] = []
    with pytest.raises(anthropic.APIStatusError) as caught:
        await drain_message(claude, model, helper, came)
    body: Any = caught.value.body
    assert body["error"]["type"] == "api_error"
    assert came[0].type == "message_start"
    assert "message_stop" not in [event.type for event in came]
    record = await settled(team, body["request_id"])
    assert (record["outcome"], record["error"]) == (outcome, code)


@pytest.mark.parametrize("helper", [False, True], ids=["create", "stream"])
async def test_anthropic_cut_inside_an_event(claude: Any, helper: bool) -> None:
    """A message's stream cut in the middle of an event raises, and has not ended."""
    came: list[Any] = []
    with pytest.raises(Exception, match="peer closed connection"):
        await drain_message(claude, "sandbox/cut", helper, came)
    assert [event.type for event in came] == ["message_start", "content_block_start"]


async def test_anthropic_broken_plain_answer(claude: Any) -> None:
    """A plain message that breaks off is a failed connection, not half an answer."""
    with pytest.raises(anthropic.APIConnectionError):
        await settle(claude.messages.create(**{**MESSAGE, "model": "sandbox/cut"}))


# The upstream's side of a client that leaves


def leave_openai(url: str) -> None:
    """Take one chunk and leave."""
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        ) as events,
    ):
        assert next(events).choices[0].delta.content == "word"


async def leave_openai_async(url: str) -> None:
    """Take one chunk and leave."""
    async with (
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
        await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hello"}], stream=True
        ) as events,
    ):
        assert (await anext(events)).choices[0].delta.content == "word"


def leave_anthropic(url: str) -> None:
    """Take one event and leave."""
    with (
        anthropic.Anthropic(base_url=url, api_key="any", max_retries=0) as client,
        client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "Hello"}]
        ) as events,
    ):
        assert next(events).type == "message_start"


async def leave_anthropic_async(url: str) -> None:
    """Take one event and leave."""
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client,
        client.messages.stream(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "Hello"}]
        ) as events,
    ):
        assert (await anext(events)).type == "message_start"


@pytest.mark.parametrize("end", ["cut", "reset"])
async def test_cut_between_events(proxy: Proxy, upstream: Upstream, kind: str, end: str) -> None:
    """A stream cut between two events raises our error, with what had come before passed on."""
    upstream.will(stream(CHAT_EVENT, CHAT_EVENT, end=end))
    came: list[Any] = []

    async def ask() -> None:
        async with openai_at(kind, proxy.url) as client:
            await drain(await ask_openai(client, "chat", "m"), came)

    with pytest.raises(openai.APIError) as caught:
        await (ask() if kind == "async" else asyncio.to_thread(asyncio.run, ask()))
    assert caught.value.code == "upstream_disconnected"
    assert text_of(came) == "wordword"
    assert (await proxy.record())["outcome"] == "upstream_cut"


@pytest.mark.parametrize(
    ("leave", "event"),
    [
        (leave_openai, CHAT_EVENT),
        (leave_openai_async, CHAT_EVENT),
        (leave_anthropic, MESSAGE_EVENT),
        (leave_anthropic_async, MESSAGE_EVENT),
    ],
)
async def test_leaving_closes_upstream(
    proxy: Proxy, upstream: Upstream, leave: Any, event: bytes
) -> None:
    """A stream that its client leaves is closed at the upstream within a second, which stops its work."""
    upstream.will(stream(event, end="hang"))
    if inspect.iscoroutinefunction(leave):
        await leave(proxy.url)
    else:
        await asyncio.to_thread(leave, proxy.url)
    async with asyncio.timeout(1):
        await upstream.connections[0].gone.wait()
    record = await proxy.record()
    assert (record["outcome"], record["status"], record["error"]) == (
        "client_gone",
        200,
        "client_gone",
    )
    assert len(upstream.requests) == 1
