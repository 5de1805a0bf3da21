"""The sandbox, spoken to in bare HTTP over the sockets it hands out."""

import asyncio
import base64
import contextlib
import importlib
import logging
import math
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop
from orjson import dumps, loads
from pydantic import TypeAdapter

from proxy.upstream.sandbox import BEHAVIOURS, Sandbox

CHAT = "/v1/chat/completions"
SAID = {"messages": [{"role": "user", "content": "one two"}]}
ASKS: dict[str, dict[str, Any]] = {
    CHAT: SAID,
    "/v1/completions": {"prompt": "one two"},
    "/v1/embeddings": {"input": "one two"},
    "/v1/responses": {"input": "one two"},
    "/v1/messages": SAID,
    "/v1/messages/count_tokens": SAID,
    "/v1/moderations": {"input": "one two"},
    "/v1/rerank": {"query": "two", "documents": ["one", "two"]},
}
STREAMS = [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"]


@dataclass
class Answer:
    """One answer as it was on the wire; *complete* if its body came to a proper end."""

    status: int
    headers: dict[str, str]
    chunks: list[bytes]
    complete: bool

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return loads(self.body)

    @property
    def data(self) -> list[Any]:
        """Return the events' data; every chunk has to be one event."""
        assert all(chunk.endswith(b"\n\n") and chunk.count(b"\n\n") == 1 for chunk in self.chunks)
        payloads = [chunk.rpartition(b"data: ")[2].strip() for chunk in self.chunks]
        return [each.decode() if each == b"[DONE]" else loads(each) for each in payloads]


class Client:
    """As much of an HTTP client as it takes to see what is really sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, sandbox: Sandbox) -> "Client":
        return cls(*await asyncio.open_connection(sock=await sandbox.connect(), limit=2**24))

    async def send(self, method: str, path: str, body: bytes) -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: sandbox\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = (line.partition(": ") for line in head[1:-2])
        return int(head[0].split()[1]), {name.lower(): value for name, _, value in fields}

    async def chunk(self) -> bytes:
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def call(self, path: str, body: dict[str, Any] | bytes, **more: Any) -> Answer:
        """POST *body*: bytes as they are, or an object with *more* in it."""
        await self.send("POST", path, body if isinstance(body, bytes) else dumps({**body, **more}))
        return await self.answer()

    async def answer(self) -> Answer:
        status, headers = await self.head()
        chunks: list[bytes] = []
        try:
            if "content-length" in headers:
                chunks.append(await self.reader.readexactly(int(headers["content-length"])))
            else:
                while chunk := await self.chunk():
                    chunks.append(chunk)
        except asyncio.IncompleteReadError as cut:
            return Answer(status, headers, [*chunks, cut.partial], complete=False)
        return Answer(status, headers, chunks, complete=True)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox()
    yield sandbox
    await sandbox.close()


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[Client]:
    client = await Client.of(sandbox)
    yield client
    await client.close()


async def gone(before: set[asyncio.Task[Any]]) -> bool:
    """Return whether, within two seconds, no task is left that was not there *before*."""
    for _ in range(200):
        if asyncio.all_tasks() <= before:
            return True
        await asyncio.sleep(0.01)
    return False


# What it answers.


async def test_chat(client: Client) -> None:
    """A chat completion repeats what the user said last, and counts words as tokens."""
    turns = [{"role": "user", "content": "a b c"}, {"role": "assistant", "content": "d"}]
    answer = (await client.call(CHAT, {"model": "any/name", "messages": turns})).json

    assert answer["model"] == "any/name"
    assert answer["created"] == 1_750_000_000
    assert answer["choices"][0]["message"]["content"] == "You said: a b c"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}


async def test_chat_stream(client: Client) -> None:
    """A streamed chat is a role, a chunk for each word, a reason and the end, each by itself."""
    answer = await client.call(CHAT, SAID, stream=True)
    *chunks, done = answer.data
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.complete
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == ["You ", "said: ", "one ", "two"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 5 + ["stop"]
    assert done == "[DONE]"


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
async def test_usage_in_a_stream(client: Client, path: str) -> None:
    """Usage is streamed to those who ask for it, in a chunk of its own without choices."""
    options = {"include_usage": True}
    answer = await client.call(path, ASKS[path], stream=True, stream_options=options)

    assert answer.data[-2]["choices"] == []
    assert answer.data[-2]["usage"]["completion_tokens"] == 4
    assert all("usage" not in chunk for chunk in answer.data[:-2])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
async def test_tool_call(client: Client, choice: Any) -> None:
    """Who insists on a tool gets a call of it, whole or streamed."""
    ask = {**SAID, "tool_choice": choice, "tools": [{"function": {"name": "look"}}]}
    whole = (await client.call(CHAT, ask)).json["choices"][0]
    chunks = (await client.call(CHAT, ask, stream=True)).data

    assert whole["message"]["tool_calls"][0]["function"] == {"name": "look", "arguments": "{}"}
    assert whole["finish_reason"] == "tool_calls"
    assert chunks[1]["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "look"
    assert chunks[2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_completion(client: Client) -> None:
    """A text completion says the same whole and streamed."""
    whole = await client.call("/v1/completions", {"prompt": "one two"})
    stream = await client.call("/v1/completions", {"prompt": ["zero", "one two"]}, stream=True)

    assert whole.json["choices"][0]["text"] == "You said: one two"
    assert "".join(chunk["choices"][0]["text"] for chunk in stream.data[:-1]) == "You said: one two"


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        ("", "Hello from the Trunkline sandbox."),
        ("  é 😀\n", "You said:   é 😀\n"),
        ([{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}], "You said: a\nb"),
        ([{"type": "tool_result"}], "Hello from the Trunkline sandbox."),
        (7, "Hello from the Trunkline sandbox."),
    ],
)
async def test_reply(client: Client, content: Any, reply: str) -> None:
    """The reply repeats the text of the last user turn, to the letter, streamed or not."""
    ask = {"messages": [{"role": "user", "content": content}]}
    whole = await client.call(CHAT, ask)
    stream = await client.call(CHAT, ask, stream=True)
    words = (chunk["choices"][0]["delta"].get("content", "") for chunk in stream.data[:-1])

    assert whole.json["choices"][0]["message"]["content"] == reply
    assert "".join(words) == reply


async def test_embeddings(client: Client) -> None:
    """Embeddings are unit vectors, equal for equal inputs, in either encoding and any length."""
    plain = (await client.call("/v1/embeddings", {"input": ["a", "b", "a"]})).json["data"]
    a, b, again = (each["embedding"] for each in plain)
    coded = await client.call("/v1/embeddings", {"input": "a"}, encoding_format="base64")
    decoded = struct.unpack("<8f", base64.b64decode(coded.json["data"][0]["embedding"]))
    longer = await client.call("/v1/embeddings", {"input": [1, 2, 3]}, dimensions=256)

    assert len(a) == 8
    assert math.hypot(*a) == pytest.approx(1)
    assert a == again != b
    assert decoded == pytest.approx(a)
    assert [len(each["embedding"]) for each in longer.json["data"]] == [256]


async def test_responses_stream(client: Client) -> None:
    """A streamed response names and numbers its events and needs no [DONE]."""
    answer = await client.call("/v1/responses", {"input": "hi"}, stream=True)
    kinds = [event["type"].removeprefix("response.") for event in answer.data]

    assert kinds[:3] == ["created", "output_item.added", "content_part.added"]
    assert kinds[3:6] == ["output_text.delta"] * 3
    assert kinds[6:] == [
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["sequence_number"] for event in answer.data] == list(range(10))
    assert answer.data[-1]["response"] == (await client.call("/v1/responses", {"input": "hi"})).json
    assert answer.chunks[0].startswith(b"event: response.created\ndata: {")


async def test_messages_stream(client: Client) -> None:
    """A streamed message has Anthropic's events in Anthropic's order."""
    answer = await client.call("/v1/messages", SAID, stream=True)

    assert [event["type"] for event in answer.data] == [
        "message_start",
        "content_block_start",
        "ping",
        *["content_block_delta"] * 4,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert answer.data[-2]["usage"] == {"output_tokens": 4}
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == "req_sandbox"


async def test_small_endpoints(client: Client) -> None:
    """Tokens are counted, nothing is flagged, and documents are ranked by the query's words."""
    counted = await client.call("/v1/messages/count_tokens", SAID)
    moderated = await client.call("/v1/moderations", {"input": ["a", "b"]})
    ranked = await client.call("/v1/rerank", ASKS["/v1/rerank"])
    first = await client.call("/v1/rerank", ASKS["/v1/rerank"], top_n=1)

    assert counted.json == {"input_tokens": 2}
    assert [result["flagged"] for result in moderated.json["results"]] == [False, False]
    assert ranked.json["results"] == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 0, "relevance_score": 0.0},
    ]
    assert first.json["results"] == ranked.json["results"][:1]


async def test_models(client: Client) -> None:
    """The list of models is the list of behaviours."""
    await client.send("GET", "/v1/models", b"")
    models = (await client.answer()).json

    assert [model["id"] for model in models["data"]] == list(BEHAVIOURS)


def test_page() -> None:
    """The page in the docs lists each behaviour in the words of the code."""
    page = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    rows = [f"| `sandbox/{name}` | {description} |" for name, description in BEHAVIOURS.items()]

    assert [line for line in page.splitlines() if line.startswith("| `")] == rows


@pytest.mark.parametrize(
    ("path", "module", "name"),
    [
        (CHAT, "openai.types.chat", "ChatCompletion"),
        ("/v1/completions", "openai.types", "Completion"),
        ("/v1/embeddings", "openai.types", "CreateEmbeddingResponse"),
        ("/v1/responses", "openai.types.responses", "Response"),
        ("/v1/moderations", "openai.types", "ModerationCreateResponse"),
        ("/v1/messages", "anthropic.types", "Message"),
        ("/v1/messages/count_tokens", "anthropic.types", "MessageTokensCount"),
    ],
)
async def test_official_types(client: Client, path: str, module: str, name: str) -> None:
    """What the vendors' own SDKs declare as the answer's type is what is answered."""
    getattr(importlib.import_module(module), name).model_validate(
        (await client.call(path, ASKS[path])).json
    )


@pytest.mark.parametrize(
    ("path", "module", "name"),
    [
        (CHAT, "openai.types.chat", "ChatCompletionChunk"),
        ("/v1/responses", "openai.types.responses", "ResponseStreamEvent"),
        ("/v1/messages", "anthropic.types", "RawMessageStreamEvent"),
    ],
)
async def test_official_event_types(client: Client, path: str, module: str, name: str) -> None:
    """Every event is of a type that the vendor's own SDK declares."""
    event = TypeAdapter(getattr(importlib.import_module(module), name))
    answer = await client.call(path, ASKS[path], stream=True)
    for data in answer.data:
        if data not in ("[DONE]", {"type": "ping"}):  # which SDKs take off the stream themselves
            event.validate_python(data)


async def test_determinism(client: Client) -> None:
    """The same request has the same answer, byte for byte."""
    for path, ask in ASKS.items():
        for stream in (False, True):
            first = await client.call(path, ask, stream=stream)
            again = await client.call(path, ask, stream=stream)

            assert first.body == again.body


# What it refuses.


@pytest.mark.parametrize("path", ASKS)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"{}", b'{"messages": []}'])
async def test_bad_body(client: Client, path: str, body: bytes) -> None:
    """A body that is not JSON, or lacks what the endpoint needs, is a 400 in its dialect."""
    answer = await client.call(path, body)

    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert ("request_id" in answer.json) == path.startswith("/v1/messages")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["a"] * 2049}),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}),
        ("/v1/embeddings", {"input": "a", "dimensions": 10**9}),
        ("/v1/embeddings", b'{"input":' + b"[" * 500 + b"]" * 500 + b"}"),
        (CHAT, b'{"messages":[' + b"[]," * 1_000_000 + b"[]]}"),
    ],
)
async def test_costly_body(client: Client, path: str, body: Any) -> None:
    """What would cost too much to answer is a 400."""
    assert (await client.call(path, body)).status == 400


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/files"), ("GET", CHAT), ("GET", "/")])
async def test_unknown_path(client: Client, method: str, path: str) -> None:
    """An unknown path is a 404 in the shape of OpenAI's errors."""
    await client.send(method, path, b"")
    answer = await client.answer()

    assert answer.status == 404
    assert answer.json["error"].keys() == {"message", "type", "param", "code"}


# The connection.


async def test_keep_alive(client: Client) -> None:
    """One connection serves one request after another, whatever their answers."""
    for model in ["echo", "429", "html", "incomplete", "error-event"]:
        for stream in (False, True):
            assert (await client.call(CHAT, SAID, model=model, stream=stream)).complete
    assert (await client.call("/v1/nowhere", b"x")).complete
    assert (await client.call(CHAT, b"{")).complete
    assert (await client.call(CHAT, SAID)).status == 200


async def test_large_body(client: Client) -> None:
    """A body of 5 MiB is read whole and repeated whole."""
    text = "x" * 5 * 2**20
    answer = await client.call(CHAT, {"messages": [{"role": "user", "content": text}]})

    assert answer.json["choices"][0]["message"]["content"] == f"You said: {text}"


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_both_loops(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """It serves and closes on either loop, busy or not, may be closed twice, and leaves no task."""

    async def main() -> None:
        sandbox = Sandbox()
        await sandbox.close()
        idle, busy, cut = [await Client.of(sandbox) for _ in range(3)]
        assert (await idle.call(CHAT, SAID)).status == 200
        assert (await cut.call(CHAT, SAID, model="cut", stream=True)).chunks[3]
        await busy.send("POST", CHAT, dumps({**SAID, "model": "stall", "stream": True}))
        await busy.head()
        await sandbox.close()
        await sandbox.close()
        assert await idle.reader.read() == b""
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for client in (idle, busy, cut):
            await client.close()

    run(main())


# How it misbehaves.


async def test_slow(client: Client) -> None:
    """`slow` takes 250 ms to each event, and 2 s to a plain answer."""
    clock = asyncio.get_running_loop().time
    start = clock()
    stream = await client.call(CHAT, SAID, model="slow", stream=True)
    middle = clock()
    plain = await client.call("/v1/embeddings", {"input": "a"}, model="slow")

    assert 0.25 * len(stream.chunks) <= middle - start < 0.25 * len(stream.chunks) + 1
    assert 2 <= clock() - middle < 3
    assert stream.complete
    assert plain.complete


@pytest.mark.parametrize("path", STREAMS)
async def test_long(client: Client, path: str) -> None:
    """`long` answers 500 words, each an event of its own."""
    ordinary = await client.call(path, ASKS[path], stream=True)
    answer = await client.call(path, ASKS[path], model="long", stream=True)

    assert len(answer.data) - len(ordinary.data) == 500 - 4


async def test_reasoning(client: Client) -> None:
    """`reasoning` thinks first, in `reasoning_content`, and then speaks."""
    stream = await client.call(CHAT, SAID, model="reasoning", stream=True)
    plain = await client.call(CHAT, SAID, model="reasoning")
    fields = [next(iter(chunk["choices"][0]["delta"]), "") for chunk in stream.data[1:-2]]

    assert fields == ["reasoning_content"] * 7 + ["content"] * 4
    assert plain.json["choices"][0]["message"]["reasoning_content"]


@pytest.mark.parametrize("stream", [False, True])
async def test_hang(sandbox: Sandbox, stream: bool) -> None:
    """`hang` says nothing for as long as the client stays, and leaves no task when it has gone."""
    before = asyncio.all_tasks()
    client = await Client.of(sandbox)
    await client.send("POST", CHAT, dumps({**SAID, "model": "hang", "stream": stream}))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.reader.read(1)
    assert asyncio.all_tasks() > before
    await client.close()

    assert await gone(before)


async def test_stall(sandbox: Sandbox) -> None:
    """`stall` sends three events, then nothing; when the client leaves, no task stays behind."""
    before = asyncio.all_tasks()
    client = await Client.of(sandbox)
    await client.send("POST", CHAT, dumps({**SAID, "model": "stall", "stream": True}))
    await client.head()
    for _ in range(3):
        assert (await client.chunk()).endswith(b"\n\n")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client.reader.read(1)
    await client.close()

    assert await gone(before)


@pytest.mark.parametrize("path", STREAMS)
async def test_cut_stream(client: Client, path: str) -> None:
    """`cut` drops the connection in the middle of the fourth event: no last chunk, no end."""
    answer = await client.call(path, ASKS[path], model="cut", stream=True)

    assert not answer.complete
    assert [chunk.endswith(b"\n\n") for chunk in answer.chunks] == [True, True, True, False, False]
    assert answer.chunks[4] == b""
    assert b"data: {" in answer.chunks[3]


@pytest.mark.parametrize("path", ASKS)
async def test_cut_plain(client: Client, path: str) -> None:
    """`cut` drops the connection when half of what Content-Length promised is out."""
    answer = await client.call(path, ASKS[path], model="cut")

    assert not answer.complete
    assert len(answer.body) == int(answer.headers["content-length"]) // 2


@pytest.mark.parametrize(
    ("path", "markers"),
    [
        (CHAT, [b"[DONE]", b'"finish_reason":"']),
        ("/v1/completions", [b"[DONE]", b'"finish_reason":"']),
        ("/v1/responses", [b"completed"]),
        ("/v1/messages", [b"message_stop", b"end_turn"]),
    ],
)
async def test_incomplete(client: Client, path: str, markers: list[bytes]) -> None:
    """`incomplete` ends the transfer in good order, but nothing says that the answer ended."""
    whole = await client.call(path, ASKS[path], stream=True)
    answer = await client.call(path, ASKS[path], model="incomplete", stream=True)

    assert answer.complete
    assert all(marker in whole.body for marker in markers)
    assert not any(marker in answer.body for marker in markers)
    assert b"two" in answer.chunks[-1]


async def test_error_event(client: Client) -> None:
    """`error-event` answers 200, and then the only event is an error in the endpoint's dialect."""
    ask = {**ASKS["/v1/responses"], **ASKS["/v1/completions"], **SAID, "model": "error-event"}
    events = {path: await client.call(path, ask, stream=True) for path in STREAMS}

    assert all(answer.status == 200 and answer.complete for answer in events.values())
    assert events[CHAT].data[0]["error"]["type"] == "server_error"
    assert events["/v1/responses"].data[0]["type"] == "error"
    assert events["/v1/responses"].data[0]["sequence_number"] == 0
    assert events["/v1/messages"].data[0]["error"]["type"] == "api_error"
    assert events["/v1/messages"].chunks[0].startswith(b"event: error\ndata: {")
    assert (await client.call(CHAT, ask)).status == 500


async def test_html(client: Client) -> None:
    """`html` answers as a load balancer does whose servers are gone."""
    answer = await client.call(CHAT, SAID, model="html")

    assert answer.status == 502
    assert answer.headers["content-type"] == "text/html"
    assert answer.body.startswith(b"<html>")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 404, 418, 429, 500, 503, 529, 599])
@pytest.mark.parametrize("path", ASKS)
async def test_status(client: Client, path: str, status: int, stream: bool) -> None:
    """A number for a model is answered with that status, in the endpoint's dialect."""
    answer = await client.call(path, ASKS[path], model=str(status), stream=stream)

    assert answer.status == status
    assert answer.json["error"]["message"]
    assert (answer.json.get("type") == "error") == path.startswith("/v1/messages")
    assert answer.headers.get("retry-after") == ("1" if status in {429, 503} else None)
    assert ("x-ratelimit-remaining-requests" in answer.headers) == (status == 429)


@pytest.mark.parametrize("model", ["399", "600", "4290", "٤٢٩", "echo", "gpt-4o", ""])
async def test_any_other_name(client: Client, model: str) -> None:
    """Any other name is an echo."""
    answer = await client.call(CHAT, SAID, model=model)

    assert answer.status == 200
    assert answer.json["model"] == model


async def test_silence_of_the_log(sandbox: Sandbox, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing it does is worth a line in the log, and no client leaving early is."""
    caplog.set_level(logging.INFO)
    for model in BEHAVIOURS:
        for stream in (False, True):
            client = await Client.of(sandbox)
            await client.send("POST", CHAT, dumps({**SAID, "model": model, "stream": stream}))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await client.reader.read(200)
            await client.close()
    garbage = await Client.of(sandbox)
    garbage.writer.write(b"\x16\x03 nonsense\r\n\r\n")
    assert b" 400 " in await garbage.reader.read()
    await garbage.close()
    await sandbox.close()

    assert caplog.records == []
