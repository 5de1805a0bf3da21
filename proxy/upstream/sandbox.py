"""The built-in upstream `sandbox`: a small model server inside the process.

It lets a fresh install answer, and a client's error handling be tried, without a key, a network or
a bill: the model's name says how it behaves. The proxy reaches it over a real socket pair, through
the relay that serves every upstream, so what a client sees here it sees elsewhere.

It must never know the proxy, open a port, call out, log, remember one request in the next, or
answer the same request in two ways.
"""

import asyncio
import base64
import functools
import hashlib
import itertools
import logging
import math
import re
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import orjson
from aiohttp import web

BEHAVIOURS: Mapping[str, str] = {
    "echo": "repeats what you said; so does any name that is not in this list",
    "slow": "waits 250 ms before each event, 2 s before a plain answer",
    "long": "answers 500 words",
    "reasoning": "thinks before it speaks: `reasoning_content` comes first (chat)",
    "hang": "never answers",
    "stall": "sends three events, or half of a plain answer, then nothing more",
    "cut": "sends three events and a half, or half of a plain answer, then drops the connection",
    "incomplete": "ends a stream in good order, but without its terminal marker",
    "error-event": "answers 200 with a stream whose first event is an error; a plain request, 500",
    "html": "answers 502 with a page of HTML, as a load balancer would",
    "401": "refuses the credential",
    "404": "knows no such model",
    "429": "limits your rate, with `Retry-After: 1`",
    "500": "fails; any other number from 400 to 599 answers that status, too",
    "503": "is unavailable, with `Retry-After: 1`",
    "529": "is overloaded",
}
"""What each model does, by its name."""

Json = dict[str, Any]

_CREATED = 1_750_000_000
_REQUEST_ID = "req_sandbox"
_THOUGHT = "They said something. I shall repeat it."
_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>502 Bad Gateway</body></html>\n"


class Sandbox:
    """The server, reached not through a port but through the sockets that `connect` hands out."""

    def __init__(self) -> None:
        self._server: web.Server | None = None

    async def connect(self) -> socket.socket:
        """Open a connection and return the caller's end of it, non-blocking and not yet wrapped."""
        loop = asyncio.get_running_loop()
        if self._server is None:
            self._server = _server(loop)
        ours, theirs = socket.socketpair()
        try:
            ours.setblocking(False)
            theirs.setblocking(False)
            await loop.connect_accepted_socket(self._server, ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return theirs

    async def close(self) -> None:
        """Drop every connection, whatever it is doing."""
        server, self._server = self._server, None
        if server is None:
            return
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await server.shutdown(timeout=1)  # aborted, they end at once; 0 would mean for ever


class _Ask(NamedTuple):
    """What a request asks for: its *body*, and what every dialect makes of it."""

    body: Json
    model: str
    given: list[Any]  # the messages, the inputs, the documents
    text: str  # of the reply
    tokens_in: int
    tokens_out: int


class _Endpoint(NamedTuple):
    """One path: the field it cannot do without, what it answers, and its stream, if it has one."""

    needs: str
    answer: Callable[[_Ask], Json]
    stream: Callable[[_Ask], Iterator[bytes]] | None = None


def _server(loop: asyncio.AbstractEventLoop) -> web.Server:
    return web.Server(
        _serve,
        request_factory=functools.partial(web.BaseRequest, loop=loop, client_max_size=0),
        handler_cancellation=True,
        access_log=None,
        # Faults are its trade, not news; and no tree of loggers is changed for it.
        logger=logging.Logger("sandbox", logging.CRITICAL + 1),  # noqa: LOG001
        tcp_keepalive=False,
    )


async def _serve(request: web.BaseRequest) -> web.StreamResponse:
    raw = await request.read()
    if (request.method, request.path) == ("GET", "/v1/models"):
        return _json(request, 200, _models())
    endpoint = _ENDPOINTS.get(request.path)
    if endpoint is None or request.method != "POST":
        return _error(request, 404, f"There is no {request.method} {request.path} here.")
    try:
        ask = _read(raw, endpoint.needs)
        stream = endpoint.stream if ask.body.get("stream") is True else None
        answer = stream(ask) if stream else orjson.dumps(endpoint.answer(ask))
    except (ValueError, orjson.JSONEncodeError) as problem:  # the latter: nested too deep
        return _error(request, 400, str(problem))
    return await _behave(request, ask.model, answer)


async def _behave(
    request: web.BaseRequest, model: str, answer: bytes | Iterator[bytes]
) -> web.StreamResponse:
    """Give *answer*, or whatever else *model* does."""
    if re.fullmatch("[45][0-9][0-9]", model):
        return _error(request, int(model))
    if model == "html":
        return web.Response(status=502, body=_PAGE, headers=_headers(request, "text/html"))
    if model == "hang":
        await _silence()
    if isinstance(answer, bytes):
        return await _plain(request, model, answer)
    return await _stream(request, model, answer)


def _read(raw: bytes, needs: str) -> _Ask:
    """Understand a body, or raise ValueError saying what is wrong with it."""
    if raw.count(b"[") + raw.count(b"{") > 1_000_000:  # parsed, 64 MiB of `[],` stop the process
        raise ValueError("The body has too many parts.")
    body = orjson.loads(raw)
    if not isinstance(body, dict):
        raise ValueError("The body is not a JSON object.")  # noqa: TRY004 - one error for all
    given = _given(body, needs)
    turns = [_turn(item) for item in given]
    said = next((text for role, text in reversed(turns) if role == "user"), "")
    model = body.get("model")
    model = model if isinstance(model, str) else "echo"
    text = _reply(model, said)
    return _Ask(body, model, given, text, sum(_tokens(text) for _, text in turns), _tokens(text))


def _given(body: Json, needs: str) -> list[Any]:
    given = body.get(needs)
    if not isinstance(given, str | list) or given == []:
        raise ValueError(f"'{needs}' is missing or empty, or not what it should be.")
    given = given if isinstance(given, list) else [given]
    if len(given) > 2048:  # as OpenAI has it; here it bounds what an answer can cost
        raise ValueError(f"'{needs}' has more than 2048 items.")
    return given


def _turn(item: Any) -> tuple[Any, str]:
    """Return who speaks, and what they say; whatever is not a message is the user's."""
    if isinstance(item, dict) and "content" in item:
        return item.get("role"), _text(item["content"])
    return "user", _text(item)


def _text(content: Any) -> str:
    """Return *content* if it is text, else the text of its parts."""
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))


def _reply(model: str, said: str) -> str:
    if model == "long":
        return " ".join(f"word{number}" for number in range(1, 501))
    return f"You said: {said}" if said else "Hello from the Trunkline sandbox."


def _tokens(text: str) -> int:
    """Count what stands between spaces: cheap, however long the text."""
    return text.count(" ") + 1 if text else 0


def _words(text: str) -> Iterator[str]:
    """Yield the words of *text*, each with the spaces behind it: joined, they are the text."""
    return (word[0] for word in re.finditer("[^ ]+ *", text))


# How an answer is sent, or fails to be.


class _Torn(web.StreamResponse):
    """An answer that breaks off where it stands: its body never ends, its connection does."""

    async def write_eof(self, data: bytes = b"") -> None:
        self.force_close()


async def _plain(request: web.BaseRequest, model: str, answer: bytes) -> web.StreamResponse:
    if model == "error-event":
        return _error(request, 500)
    if model == "slow":
        await asyncio.sleep(2)
    headers = _headers(request, "application/json")
    if model not in {"cut", "stall"}:
        return web.Response(body=answer, headers=headers)
    half = _Torn(headers=headers)
    half.content_length = len(answer)
    await half.prepare(request)
    await half.write(answer[: len(answer) // 2])
    if model == "stall":
        await _silence()
    return half


async def _stream(
    request: web.BaseRequest, model: str, events: Iterator[bytes]
) -> web.StreamResponse:
    headers = _headers(request, "text/event-stream; charset=utf-8")
    stream = (_Torn if model == "cut" else web.StreamResponse)(headers=headers)
    await stream.prepare(request)
    if model == "error-event":
        events = iter([_error_event(request)])
    for number, event in enumerate(events):
        if model == "stall" and number == 3:
            await _silence()
        if model == "cut" and number == 3:
            await stream.write(event[: len(event) // 2])
            break
        await asyncio.sleep(0.25 if model == "slow" else 0)  # 0, too, gives others their turn
        await stream.write(event)
    return stream


async def _silence() -> None:
    """Wait for the client to leave, which cancels whoever waits here."""
    await asyncio.Event().wait()


def _event(data: Json) -> bytes:
    """Frame one event; one that has a type is named after it."""
    name = f"event: {data['type']}\n" if "type" in data else ""
    return b"%bdata: %b\n\n" % (name.encode(), orjson.dumps(data))


def _json(request: web.BaseRequest, status: int, body: Json) -> web.Response:
    headers = _headers(request, "application/json") | _HINTS.get(status, {})
    return web.Response(status=status, body=orjson.dumps(body), headers=headers)


def _headers(request: web.BaseRequest, content_type: str) -> dict[str, str]:
    headers = {"Content-Type": content_type, "Server": "sandbox", "x-request-id": _REQUEST_ID}
    if _is_anthropic(request):
        headers["request-id"] = _REQUEST_ID
    return headers


def _is_anthropic(request: web.BaseRequest) -> bool:
    return request.path.startswith("/v1/messages")


# What goes wrong, in either vendor's words.

_ERRORS: Mapping[int, tuple[str, str, str | None]] = {
    400: ("invalid_request_error", "invalid_request_error", None),
    401: ("invalid_request_error", "authentication_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_error", None),
    404: ("invalid_request_error", "not_found_error", "model_not_found"),
    429: ("requests", "rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", "api_error", None),
    529: ("server_error", "overloaded_error", None),
}
"""By status: OpenAI's type, Anthropic's type, OpenAI's code. 400 and 500 stand for the rest."""

_HINTS: Mapping[int, dict[str, str]] = {
    429: {
        "Retry-After": "1",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1s",
    },
    503: {"Retry-After": "1"},
}


def _error(request: web.BaseRequest, status: int, message: str = "") -> web.Response:
    return _json(request, status, _error_body(request, status, message))


def _error_event(request: web.BaseRequest) -> bytes:
    body = _error_body(request, 500)
    if request.path == "/v1/responses":
        body = {**body["error"], "type": "error", "sequence_number": 0}
    return _event(body)


def _error_body(request: web.BaseRequest, status: int, message: str = "") -> Json:
    openai, anthropic, code = _ERRORS.get(status, _ERRORS[400 if status < 500 else 500])
    text = message or f"An error {status} from the sandbox, as the model's name asks."
    if _is_anthropic(request):
        error = {"type": anthropic, "message": text}
        return {"type": "error", "error": error, "request_id": _REQUEST_ID}
    code = None if message else code  # the table's codes speak of keys, models and rates
    return {"error": {"message": text, "type": openai, "param": None, "code": code}}


# What the endpoints answer.


def _models() -> Json:
    model = {"object": "model", "created": _CREATED, "owned_by": "sandbox"}
    return {"object": "list", "data": [{"id": name, **model} for name in BEHAVIOURS]}


def _chat(ask: _Ask) -> Json:
    message, reason = _message(ask)
    return _whole(ask, "chat.completion", {"message": message}, reason)


def _chat_stream(ask: _Ask) -> Iterator[bytes]:
    message, reason = _message(ask)
    choices = ({"delta": delta} for delta in _deltas(message))
    return _chunks(ask, "chat.completion.chunk", choices, {"delta": {}}, reason)


def _completion(ask: _Ask) -> Json:
    return _whole(ask, "text_completion", {"text": ask.text}, "stop")


def _completion_stream(ask: _Ask) -> Iterator[bytes]:
    choices = ({"text": word} for word in _words(ask.text))
    return _chunks(ask, "text_completion", choices, {"text": ""}, "stop")


def _whole(ask: _Ask, kind: str, choice: Json, reason: str) -> Json:
    usage = {"prompt_tokens": ask.tokens_in, "completion_tokens": ask.tokens_out}
    usage["total_tokens"] = sum(usage.values())
    return {**_chunk(ask, kind, choice, reason), "usage": usage}


def _chunks(
    ask: _Ask, kind: str, choices: Iterable[Json], last: Json, reason: str
) -> Iterator[bytes]:
    for choice in choices:
        yield _event(_chunk(ask, kind, choice, None))
    if ask.model == "incomplete":
        return
    yield _event(_chunk(ask, kind, last, reason))
    options = ask.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage") is True:
        yield _event({**_whole(ask, kind, last, reason), "choices": []})
    yield b"data: [DONE]\n\n"


def _chunk(ask: _Ask, kind: str, choice: Json, reason: str | None) -> Json:
    return {
        "id": "cmpl-sandbox" if kind == "text_completion" else "chatcmpl-sandbox",
        "object": kind,
        "created": _CREATED,
        "model": ask.model,
        "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": reason}],
    }


def _message(ask: _Ask) -> tuple[Json, str]:
    """Return what the assistant says, or calls if the caller insists, and why it ends there."""
    match ask.body:
        case {"tools": [_, *_], "tool_choice": {"function": {"name": str(name)}}}:
            pass
        case {"tools": [{"function": {"name": str(name)}}, *_], "tool_choice": "required"}:
            pass
        case _:
            thought = {"reasoning_content": _THOUGHT} if ask.model == "reasoning" else {}
            return {"role": "assistant", **thought, "content": ask.text}, "stop"
    function = {"name": name, "arguments": "{}"}
    call = {"id": "call_sandbox", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"


def _deltas(message: Json) -> Iterator[Json]:
    yield {"role": "assistant", "content": ""}
    for field in ("reasoning_content", "content"):
        for word in _words(message.get(field) or ""):
            yield {field: word}
    for call in message.get("tool_calls", ()):
        yield {"tool_calls": [{"index": 0, **call}]}


def _response(ask: _Ask) -> Json:
    return {
        "id": "resp_sandbox",
        "object": "response",
        "created_at": _CREATED,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": ask.model,
        "output": [_item("completed", [_part(ask.text)])],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": ask.tokens_in,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": ask.tokens_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": ask.tokens_in + ask.tokens_out,
        },
    }


def _response_stream(ask: _Ask) -> Iterator[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return _event({"type": f"response.{kind}", "sequence_number": next(numbers), **fields})

    numbers = itertools.count()
    whole = _response(ask)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    part = {"item_id": "msg_sandbox", "output_index": 0, "content_index": 0}
    yield event("created", response=begun)
    yield event("output_item.added", output_index=0, item=_item("in_progress", []))
    yield event("content_part.added", **part, part=_part(""))
    for word in _words(ask.text):
        yield event("output_text.delta", **part, delta=word, logprobs=[])
    if ask.model == "incomplete":
        return
    yield event("output_text.done", **part, text=ask.text, logprobs=[])
    yield event("content_part.done", **part, part=_part(ask.text))
    yield event("output_item.done", output_index=0, item=whole["output"][0])
    yield event("completed", response=whole)


def _item(status: str, content: list[Json]) -> Json:
    item = {"id": "msg_sandbox", "type": "message", "role": "assistant"}
    return {**item, "status": status, "content": content}


def _part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": []}


def _anthropic(ask: _Ask) -> Json:
    return {
        "id": "msg_sandbox",
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [{"type": "text", "text": ask.text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": ask.tokens_in, "output_tokens": ask.tokens_out},
    }


def _anthropic_stream(ask: _Ask) -> Iterator[bytes]:
    usage = {"input_tokens": ask.tokens_in, "output_tokens": 1}
    begun = {**_anthropic(ask), "content": [], "stop_reason": None, "usage": usage}
    block = {"type": "text", "text": ""}
    yield _event({"type": "message_start", "message": begun})
    yield _event({"type": "content_block_start", "index": 0, "content_block": block})
    yield _event({"type": "ping"})
    for word in _words(ask.text):
        delta = {"type": "text_delta", "text": word}
        yield _event({"type": "content_block_delta", "index": 0, "delta": delta})
    if ask.model == "incomplete":
        return
    yield _event({"type": "content_block_stop", "index": 0})
    stop = {"stop_reason": "end_turn", "stop_sequence": None}
    usage = {"output_tokens": ask.tokens_out}
    yield _event({"type": "message_delta", "delta": stop, "usage": usage})
    yield _event({"type": "message_stop"})


def _count_tokens(ask: _Ask) -> Json:
    return {"input_tokens": ask.tokens_in}


def _embeddings(ask: _Ask) -> Json:
    inputs, size = _inputs(ask.given), ask.body.get("dimensions", 8)
    if not isinstance(size, int) or not 1 <= size * len(inputs) <= 1_000_000:
        raise ValueError("'dimensions' is not a number above 0, or too large.")
    encode = _base64 if ask.body.get("encoding_format") == "base64" else list
    vectors = [encode(_vector(item, size)) for item in inputs]
    data = [
        {"object": "embedding", "index": index, "embedding": vector}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": ask.tokens_in, "total_tokens": ask.tokens_in}
    return {"object": "list", "data": data, "model": ask.model, "usage": usage}


def _inputs(given: list[Any]) -> list[Any]:
    """Return the inputs in *given*, which may also be one: its tokens, or its parts."""
    return given if isinstance(given[0], str | list) else [given]


def _vector(item: Any, size: int) -> list[float]:
    """Return a unit vector that depends on *item* and *size* alone."""
    values = [byte - 127.5 for byte in hashlib.shake_256(orjson.dumps(item)).digest(size)]
    length = math.hypot(*values)
    return [value / length for value in values]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _moderations(ask: _Ask) -> Json:
    result = {
        "flagged": False,
        "categories": dict.fromkeys(_HARMS, False),
        "category_scores": dict.fromkeys(_HARMS, 0.0),
        "category_applied_input_types": {harm: ["text"] for harm in _HARMS},
    }
    results = [result for _ in _inputs(ask.given)]
    return {"id": "modr-sandbox", "model": ask.model, "results": results}


def _rerank(ask: _Ask) -> Json:
    """Rank the documents by the share of the query's words that they hold."""
    query = _bag(ask.body.get("query"))
    scores = [len(query & _bag(each)) / (len(query) or 1) for each in ask.given]
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    results.sort(key=lambda result: -result["relevance_score"])
    top = ask.body.get("top_n")
    results = results[: top if isinstance(top, int) else None]
    return {"id": "rerank-sandbox", "model": ask.model, "results": results}


def _bag(document: Any) -> set[str]:
    return set(_text(document)[:10_000].lower().split())


_HARMS = (
    *("harassment", "hate", "illicit", "self-harm", "sexual", "violence"),
    *("harassment/threatening", "hate/threatening", "illicit/violent", "violence/graphic"),
    *("self-harm/instructions", "self-harm/intent", "sexual/minors"),
)

_ENDPOINTS: Mapping[str, _Endpoint] = {
    "/v1/chat/completions": _Endpoint("messages", _chat, _chat_stream),
    "/v1/completions": _Endpoint("prompt", _completion, _completion_stream),
    "/v1/embeddings": _Endpoint("input", _embeddings),
    "/v1/responses": _Endpoint("input", _response, _response_stream),
    "/v1/messages": _Endpoint("messages", _anthropic, _anthropic_stream),
    "/v1/messages/count_tokens": _Endpoint("messages", _count_tokens),
    "/v1/moderations": _Endpoint("input", _moderations),
    "/v1/rerank": _Endpoint("documents", _rerank),
}
