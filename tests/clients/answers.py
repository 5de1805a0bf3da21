"""What vendors answer, in the fields and the order of their own: bodies, and events of streams."""

from collections.abc import Iterable
from itertools import count
from typing import Any

import orjson

WORDS = ("One ", "two ", "three.")
SAID = "".join(WORDS)
TOOL = "weather"
ARGUMENTS = '{"city":"Oslo"}'
_HALVES = (ARGUMENTS[:5], ARGUMENTS[5:])
VECTOR = [0.5, -0.25, 1.0]
SPEECH = b"ID3\x04\x00\r\n\r\n\x00\xff\xfb\x90" + bytes(range(256)) * 64
PIXEL = "iVBORw0KGgo="
HEARD = "Two words."

Json = dict[str, Any]


def event(data: Any, name: str | None = None, end: bytes = b"\n") -> bytes:
    """Write one event of a stream."""
    body = data if isinstance(data, bytes) else orjson.dumps(data)
    first = b"event: " + name.encode() + end if name else b""
    return first + b"data: " + body + end + end


def named(events: Iterable[Json]) -> list[bytes]:
    """Write *events*, each under the name that its `type` says."""
    return [event(data, data["type"]) for data in events]


# Chat


def chat(model: str, tools: bool) -> Json:
    message: Json = {"role": "assistant", "content": SAID, "refusal": None, "annotations": []}
    if tools:
        call = {"name": TOOL, "arguments": ARGUMENTS}
        message["content"] = None
        message["tool_calls"] = [{"id": "call_1", "type": "function", "function": call}]
    reason = "tool_calls" if tools else "stop"
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1790000000,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": _CHAT_USAGE,
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def chat_stream(model: str, tools: bool, usage: bool) -> list[bytes]:
    deltas: list[Json] = [{"role": "assistant", "content": None if tools else "", "refusal": None}]
    if tools:
        call = {"index": 0, "id": "call_1", "type": "function"}
        deltas.append({"tool_calls": [{**call, "function": {"name": TOOL, "arguments": ""}}]})
        calls = ({"index": 0, "function": {"arguments": half}} for half in _HALVES)
        deltas += [{"tool_calls": [call]} for call in calls]
    else:
        deltas += [{"content": word} for word in WORDS]
    reasons: list[str | None] = [None] * len(deltas) + ["tool_calls" if tools else "stop"]
    about = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": model,
        "system_fingerprint": "fp_1",
    }
    more = {"usage": None} if usage else {}
    chunks: list[Json] = []
    for delta, reason in zip([*deltas, {}], reasons, strict=True):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunks.append({**about, "choices": [choice], **more})
    if usage:
        chunks.append({**about, "choices": [], "usage": _CHAT_USAGE})
    return [*map(event, chunks), event(b"[DONE]")]


_CHAT_USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def completion(model: str, text: str = SAID) -> Json:
    return {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1790000000,
        "model": model,
        "choices": [{"text": text, "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
    }


def completion_stream(model: str) -> list[bytes]:
    return [*(event(completion(model, word)) for word in WORDS), event(b"[DONE]")]


# Responses


def response(model: str, tools: bool, status: str = "completed") -> Json:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1790000000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": [_item(tools)] if status == "completed" else [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": _RESPONSE_USAGE if status == "completed" else None,
        "user": None,
        "metadata": {},
    }


def response_stream(model: str, tools: bool) -> list[bytes]:
    started = response(model, tools, "in_progress")
    at = {"item_id": _item(tools)["id"], "output_index": 0}
    part = {**at, "content_index": 0}
    text = {"type": "output_text", "annotations": [], "logprobs": []}
    middle: list[Json]
    if tools:
        opened = {**_item(True), "status": "in_progress", "arguments": ""}
        delta, done = (
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
        )
        middle = [{"type": delta, **at, "delta": half} for half in _HALVES]
        middle.append({"type": done, **at, "arguments": ARGUMENTS})
    else:
        opened = {**_item(False), "status": "in_progress", "content": []}
        delta = "response.output_text.delta"
        middle = [
            {"type": "response.content_part.added", **part, "part": {**text, "text": ""}},
            *({"type": delta, **part, "delta": word, "logprobs": []} for word in WORDS),
            {"type": "response.output_text.done", **part, "text": SAID, "logprobs": []},
            {"type": "response.content_part.done", **part, "part": {**text, "text": SAID}},
        ]
    events: list[Json] = [
        {"type": "response.created", "response": started},
        {"type": "response.in_progress", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": opened},
        *middle,
        {"type": "response.output_item.done", "output_index": 0, "item": _item(tools)},
        {"type": "response.completed", "response": response(model, tools)},
    ]
    number = count()
    return named({**data, "sequence_number": next(number)} for data in events)


def _item(tools: bool) -> Json:
    if tools:
        call = {"name": TOOL, "arguments": ARGUMENTS, "call_id": "call_1"}
        return {"id": "fc_1", "type": "function_call", "status": "completed", **call}
    text = {"type": "output_text", "annotations": [], "logprobs": [], "text": SAID}
    about = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant"}
    return {**about, "content": [text]}


_RESPONSE_USAGE = {
    "input_tokens": 9,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 12,
}


# Messages


def message(model: str, tools: bool) -> Json:
    text: Json = {"type": "text", "text": SAID}
    block = {"type": "tool_use", "id": "toolu_1", "name": TOOL, "input": orjson.loads(ARGUMENTS)}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block] if tools else [text],
        "stop_reason": "tool_use" if tools else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 9, "output_tokens": 3, "service_tier": "standard"},
    }


def message_stream(model: str, tools: bool) -> list[bytes]:
    whole = message(model, tools)
    started = {**whole, "content": [], "stop_reason": None}
    deltas: list[Json]
    if tools:
        block = {**whole["content"][0], "input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": half} for half in _HALVES]
    else:
        block = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": word} for word in WORDS]
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    return named(
        [
            {"type": "message_start", "message": started},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "ping"},
            *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 3}},
            {"type": "message_stop"},
        ]
    )


# Gemini


def gemini(model: str, tools: bool, text: str = SAID, last: bool = True) -> Json:
    call = {"functionCall": {"id": "call_1", "name": TOOL, "args": orjson.loads(ARGUMENTS)}}
    content = {"parts": [call if tools else {"text": text}], "role": "model"}
    candidate: Json = {"content": content, "index": 0}
    if last:
        candidate["finishReason"] = "STOP"
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 3, "totalTokenCount": 12}
    about = {"usageMetadata": usage, "modelVersion": model, "responseId": "r1"}
    return {"candidates": [candidate], **about}


def gemini_stream(model: str, tools: bool) -> list[bytes]:
    """Google's events end in CRLF, and nothing marks the last one."""
    words = WORDS[:1] if tools else WORDS
    pieces = (gemini(model, tools, word, word is words[-1]) for word in words)
    return [event(piece, end=b"\r\n") for piece in pieces]


# All the rest


def file(name: str, size: int) -> Json:
    return {
        "id": "file-1",
        "object": "file",
        "bytes": size,
        "created_at": 1790000000,
        "filename": name,
        "purpose": "batch",
        "status": "processed",
    }


def batch(status: str, endpoint: str = "/v1/chat/completions") -> Json:
    return {
        "id": "batch_1",
        "object": "batch",
        "endpoint": endpoint,
        "input_file_id": "file-1",
        "completion_window": "24h",
        "status": status,
        "created_at": 1790000000,
    }


def page(*items: Json) -> Json:
    ends = {"first_id": items[0]["id"], "last_id": items[-1]["id"]}
    return {"object": "list", "data": list(items), **ends, "has_more": False}


def embeddings(model: str, inputs: int, packed: bytes | None) -> Json:
    """Return a vector for each of the *inputs*, *packed* for those who ask for base64."""
    vector = packed.decode() if packed is not None else VECTOR
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(inputs)]
    usage = {"prompt_tokens": 4, "total_tokens": 4}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def transcription_stream() -> list[bytes]:
    deltas = [{"type": "transcript.text.delta", "delta": half} for half in ("Two ", "words.")]
    done = {"type": "transcript.text.done", "text": HEARD}
    return [*map(event, [*deltas, done]), event(b"[DONE]")]


def images() -> Json:
    return {"created": 1790000000, "data": [{"b64_json": PIXEL}], "output_format": "png"}


def moderation(model: str) -> Json:
    result = {"flagged": False, "categories": {}, "category_scores": {}}
    return {
        "id": "modr-1",
        "model": model,
        "results": [{**result, "category_applied_input_types": {}}],
    }


def realtime_session(model: str) -> Json:
    session = {"type": "realtime", "object": "realtime.session", "id": "sess_1", "model": model}
    return {"type": "session.created", "event_id": "event_1", "session": session}


def realtime_response() -> list[Json]:
    at = {"response_id": "resp_1", "item_id": "item_1", "output_index": 0, "content_index": 0}
    body = {"object": "realtime.response", "id": "resp_1", "output": []}
    deltas = [{"type": "response.output_text.delta", **at, "delta": word} for word in WORDS]
    events: list[Json] = [
        {"type": "response.created", "response": {**body, "status": "in_progress"}},
        *deltas,
        {"type": "response.output_text.done", **at, "text": SAID},
        {"type": "response.done", "response": {**body, "status": "completed"}},
    ]
    return [{**data, "event_id": f"event_{number}"} for number, data in enumerate(events, 2)]
