"""What an answer says that it used, read as its bytes pass: in any pieces, plain or packed, of any size."""

import gzip
import json
import zlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import AUDIO, CHAT, COUNT_TOKENS, FILES, GEMINI, Dialect
from proxy.exchange import Exchange
from proxy.headers import Headers
from proxy.members import END_BYTES
from proxy.tally import BATCH_BYTES, FREE_BYTES, Tally, tally_of
from proxy.usage import Counts, Usage
from proxy.wire.coding import Unpacker


def tally(
    pieces: Iterable[bytes], dialect: str = "chat", *, whole: bool = True, coding: str | None = None
) -> Usage:
    """Return what is told by an answer of *dialect* that comes in *pieces*."""
    tap = Tally(dialect, None if coding is None else Unpacker(coding, FREE_BYTES))
    for piece in pieces:
        tap.feed(piece)
    return tap.usage(whole=whole)


def events(*data: Any, spaced: bool = False, line: bytes = b"\n") -> bytes:
    """Return a stream of *data*: texts as they are, an object with a `type` under its name, others as JSON."""
    made = b""
    for one in data:
        text = one if isinstance(one, str) else dumped(one, spaced=spaced)
        if isinstance(one, dict) and "type" in one:
            made += b"event: %b%b" % (one["type"].encode(), line)
        made += b"data: %b%b%b" % (text.encode(), line, line)
    return made


def dumped(tree: Any, *, spaced: bool = False) -> str:
    """Return *tree* as JSON."""
    return json.dumps(tree, separators=(", ", ": ") if spaced else (",", ":"))


def chunk(text: str | None = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chunk of a chat."""
    delta = {} if text is None else {"content": text}
    return {
        "model": "m-1",
        "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        **more,
    }


USED_UP = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
TELLS = Usage(counts=Counts(input=9, output=2), finish_reason="stop", model="m-1")
CHATS = {
    "asked for": events(chunk("a", usage=None), chunk(None, "stop", usage=None), {"model": "m-1", "choices": [], "usage": USED_UP}, "[DONE]"),
    "spaced": events(chunk("a"), chunk(None, "stop", usage=USED_UP), "[DONE]", spaced=True),
    "half spaced": events(chunk("a"), chunk(None, "stop")) + events({"model": "m-1", "choices": [], "usage": USED_UP}, spaced=True),
    "carriage returns": events(chunk("a"), chunk(None, "stop", usage=USED_UP), line=b"\r\n"),
    "old returns": events(chunk("a"), chunk(None, "stop", usage=USED_UP), line=b"\r"),
    "comments": b": wait\n\n\xef" [:8] + events(chunk("a")) + b": on\n\n" + events(chunk(None, "stop", usage=USED_UP)),
    "mark": b"\xef\xbb\xbf" + events(chunk(None, "stop", usage=USED_UP)),
    "repeated": events(*(chunk("a", usage={"prompt_tokens": 9, "completion_tokens": n, "total_tokens": 9 + n}) for n in (0, 1)), chunk(None, "stop", usage=USED_UP), "[DONE]"),
    "null first": events(chunk("a", usage={"prompt_tokens": 9, "completion_tokens": None, "total_tokens": None}), chunk(None, "stop", usage=USED_UP)),
    "null last": events(chunk("a"), chunk(None, "stop", usage=USED_UP), chunk(usage=None)),
    "of Groq": events(chunk("a"), chunk(None, "stop", x_groq={"id": "r", "usage": USED_UP}), "[DONE]"),
    "in the choice": events(chunk("a"), {"model": "m-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USED_UP}]}, "[DONE]"),
    "nested too": events(chunk("a"), chunk(None, "stop", usage=USED_UP, inner={"usage": {"prompt_tokens": 77}})),
    "no name first": events({"model": "", "choices": [], "usage": None}, chunk("a"), chunk(None, "stop", usage=USED_UP)),
    "no end": events(chunk("a"), chunk(None, "stop", usage=USED_UP))[:-2],
    "said": events(chunk('"usage":{"prompt_tokens":1}'), chunk(None, "stop", usage=USED_UP), chunk('"usage":{}')),
    "two lines": b'id: data:\ndata: {"model":"m-1","usage":%b,\ndata:"choices":[{"finish_reason":"stop"}]}\n\n' % dumped(USED_UP).encode(),
    "two old lines": b'data:{"model":"m-1","usage":%b,\rdata: "choices":[{"finish_reason":"stop"}]}\r\r' % dumped(USED_UP).encode(),
    "strange": events(chunk("a"), "{", "7", chunk(None, "stop", usage=USED_UP, message=7, delta=[1], service_tier={}), '{"usage":7}'),
}  # fmt: skip
"""Streams that all say the same."""


@pytest.mark.parametrize("name", CHATS)
def test_chat(name: str) -> None:
    """Wherever a vendor's chat says what it used, it is found there: at once, by events, byte by byte."""
    body = CHATS[name]
    assert tally([body]) == TELLS
    assert tally(event + b"\n\n" for event in body.split(b"\n\n")) == TELLS
    assert tally(body[at : at + 1] for at in range(len(body))) == TELLS


OTHERS: dict[str, tuple[str, bytes, Usage]] = {
    "messages": (
        "messages",
        events(
            {"type": "message_start", "message": {"model": "c", "stop_reason": None, "usage": {"input_tokens": 3, "cache_creation_input_tokens": 30, "cache_read_input_tokens": 7, "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20}, "output_tokens": 1, "service_tier": "standard"}}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12, "server_tool_use": {"web_search_requests": 2}}},
            {"type": "message_stop"},
        ),
        Usage(counts=Counts(input=3, cache_read=7, cache_write=10, cache_write_1h=20, output=12), finish_reason="end_turn", model="c", service_tier="standard", tools={"web_search_requests": 2}),
    ),
    "corrected": (
        "messages",
        events(
            {"type": "message_start", "message": {"model": "c", "usage": {"input_tokens": 0, "output_tokens": 0}}},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"input_tokens": 40, "output_tokens": 12}},
        ),
        Usage(counts=Counts(input=40, output=12), finish_reason="tool_use", model="c"),
    ),
    "responses": (
        "responses",
        events(
            {"type": "response.created", "response": {"model": "r", "status": "in_progress", "service_tier": "auto", "usage": None, "tool_usage": {"web_search": {"num_requests": 0}}}},
            {"type": "response.output_text.delta", "delta": "hi"},
            {"type": "response.completed", "response": {"model": "r", "status": "completed", "service_tier": "default", "usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11}}},
        ),
        Usage(counts=Counts(input=5, output=6), finish_reason="completed", model="r", service_tier="default"),
    ),
    "incomplete": (
        "responses",
        events({"type": "response.incomplete", "response": {"model": "r", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "usage": {"input_tokens": 5, "output_tokens": 6}}}),
        Usage(counts=Counts(input=5, output=6), finish_reason="max_output_tokens", model="r"),
    ),
    "gemini": (
        "gemini",
        events(
            {"candidates": [{"content": {}}], "usageMetadata": {"trafficType": "T"}, "modelVersion": "g"},
            {"candidates": [{"content": {}}], "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}, "modelVersion": "g"},
            {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 3, "totalTokenCount": 10, "serviceTier": "flex"}, "modelVersion": "g"},
            spaced=True, line=b"\r\n",
        ),
        Usage(counts=Counts(input=5, output=2, reasoning=3), finish_reason="STOP", model="g", service_tier="flex"),
    ),
    "gemini's list": (
        "gemini",
        dumped([{"usageMetadata": {"promptTokenCount": 5}, "modelVersion": "g"}, {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2}}]).encode(),
        Usage(counts=Counts(input=5, output=2), finish_reason="STOP", model="g"),
    ),
    "cohere": (
        "chat",
        events(
            {"type": "message-start", "id": "x", "delta": {"message": {"role": "assistant"}}},
            {"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": {"billed_units": {"input_tokens": 1, "output_tokens": 2}, "tokens": {"input_tokens": 99, "output_tokens": 2}}}},
        ),
        Usage(counts=Counts(input=1, output=2), finish_reason="COMPLETE"),
    ),
    "transcription": (
        "audio",
        events({"type": "transcript.text.delta", "delta": "hi"}, {"type": "transcript.text.done", "text": "hi", "usage": {"type": "tokens", "input_tokens": 9, "input_token_details": {"text_tokens": 0, "audio_tokens": 9}, "output_tokens": 2, "total_tokens": 11}}),
        Usage(counts=Counts(input=0, audio_in=9, output=2)),
    ),
    "images": (
        "images",
        events({"type": "image_generation.completed", "b64_json": "A" * 4000, "usage": {"input_tokens": 9, "output_tokens": 100, "total_tokens": 109}}),
        Usage(counts=Counts(input=9, output=0, image_out=100)),
    ),
    "llama.cpp": (
        "chat",
        events(chunk("a"), chunk(None, "stop", usage=USED_UP, timings={"cache_n": 4, "prompt_n": 5})),
        Usage(counts=Counts(input=5, cache_read=4, output=2), finish_reason="stop", model="m-1"),
    ),
    "perplexity": (
        "chat",
        events(*(chunk("a", "stop" if cost else None, usage={**USED_UP, "cost": {"total_cost": cost}}) for cost in (0, 0, 0.005))),
        Usage(counts=Counts(input=9, output=2), finish_reason="stop", model="m-1", cost=Decimal("0.005")),
    ),
    "rerank": (
        "rerank",
        dumped({"results": [], "meta": {"billed_units": {"search_units": 2}}}).encode(),
        Usage(tools={"search_units": 2}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_others(name: str) -> None:
    """So it is in every other form."""
    dialect, body, used = OTHERS[name]
    assert tally([body], dialect) == used
    assert tally((body[at : at + 1] for at in range(len(body))), dialect) == used
    packed = gzip.compress(body)
    pieces = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    assert tally(pieces, dialect, coding="gzip") == used


@given(st.sampled_from(sorted(CHATS)), st.lists(st.integers(1, 40)))
def test_cuts(name: str, sizes: list[int]) -> None:
    """No way to cut a stream changes what it says."""
    body, pieces = CHATS[name], []
    for size in sizes:
        pieces.append(body[:size])
        body = body[size:]
    assert tally([*pieces, body]) == TELLS


def test_long_stream() -> None:
    """What was said long ago is not lost in what follows, and what was not said is None."""
    many = [events(chunk(f"{n}", usage=None)) for n in range(2 * BATCH_BYTES // 50)]
    used = events(chunk(None, "stop", usage=USED_UP))
    assert tally([*many, used, events("[DONE]")]) == TELLS
    assert tally([*many, used, *many]).counts == TELLS.counts
    assert tally(many) == Usage(model="m-1")


def test_left_early() -> None:
    """Who left early leaves what was seen, and it is marked."""
    _, body, _ = OTHERS["messages"]
    begun = tally([body[: body.index(b"event: message_delta")]], "messages", whole=False)
    assert begun.partial
    assert begun.counts == Counts(
        input=3, cache_read=7, cache_write=10, cache_write_1h=20, output=1
    )
    assert tally([CHATS["repeated"][:300]], whole=False).counts.input == 9
    assert tally([], whole=False) == Usage(partial=True)
    assert tally([b'{"usage":{"prompt_to'], whole=False) == Usage(partial=True)


@pytest.mark.parametrize("place", ["first", "last"])
def test_long_event(place: str) -> None:
    """An event too long to be kept is read at its end, as a long answer is."""
    usage = {"input_tokens": 5, "output_tokens": 6}
    long = {"output": ["A" * 3 * END_BYTES]}
    inside = {"usage": usage, **long} if place == "first" else {**long, "usage": usage}
    body = events(
        {"type": "response.created", "response": {"model": "r"}},
        {"type": "response.completed", "response": inside, "sequence_number": 9},
        {"type": "other"},
    )
    got = tally((body[at : at + 1448] for at in range(0, len(body), 1448)), "responses")
    found = place == "last"
    assert got.counts == (Counts(input=5, output=6) if found else Counts())
    assert (got.unread, got.model) == (not found, "r")


FLOATS = "[" + ",".join(["-0.0123456"] * 100_000) + "]"
PLAINS = {
    "short": dumped(chunk("a", "stop", usage=USED_UP)),
    "indented": json.dumps(chunk("a", "stop", usage=USED_UP), indent=2),
    "usage last": f'{{"object":"list","data":[{{"embedding":{FLOATS}}}],"model":"m-1","usage":{dumped(USED_UP)}}}',
    "usage first": f'{{"usage":{dumped(USED_UP)},"model":"m-1","data":[{{"embedding":{FLOATS}}}]}}',
    "both ends": f'{{"model":"m-1","data":[{FLOATS}],"usage": {dumped(USED_UP)}}}\n',
    "nested behind": f'{{"model":"m-1","usage":{dumped(USED_UP)},"data":[{FLOATS},{{"usage":{{"prompt_tokens":7}}}}]}}',
    "nested before": f'{{"model":"m-1","data":[{{"usage":{{"prompt_tokens":7}}}},{FLOATS}],"usage":{dumped(USED_UP)}}}',
}  # fmt: skip


@pytest.mark.parametrize("coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("name", PLAINS)
def test_plain(name: str, coding: str | None) -> None:
    """A plain answer of any size is read at its ends, packed or not; only what is its own counts."""
    body = PLAINS[name].encode()
    if coding is not None:
        body = gzip.compress(body) if coding == "gzip" else zlib.compress(body)
    for size in (len(body), 65536, 1448):
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        got = tally(pieces, coding=coding)
        assert (got.counts, got.model, got.unread) == (TELLS.counts, "m-1", False)


@pytest.mark.parametrize(
    ("body", "coding"),
    [
        (b"{", None),
        (b"no json", None),
        (b"", None),
        ((f'{{"data":[{FLOATS}]}}').encode(), None),
        ((f'{{"data":[{FLOATS},{{"usage":{{"prompt_tokens":7}}}}]}}').encode(), None),
        (b"no gzip", "gzip"),
        (gzip.compress(b'{"a":"b"}', mtime=0)[:-12], "gzip"),
    ],
)
def test_unread(body: bytes, coding: str | None) -> None:
    """What cannot be read says so, and nothing is guessed."""
    assert tally([body], coding=coding).counts == Counts()
    assert tally([body], coding=coding).unread is (body not in (b"no json", b""))


def test_bomb() -> None:
    """What unpacks to more than may be unpacked is left alone."""
    tap = Tally("chat", Unpacker("gzip", 1000))
    tap.feed(gzip.compress(b'{"usage":' + b" " * 100_000 + b"{}}"))
    assert tap.usage(whole=True) == Usage(unread=True)


@pytest.mark.parametrize("told", ["null", "7", '"x"', "[]", "{}", '{"prompt_tokens":-1}'])
def test_nothing(told: str) -> None:
    """An answer that does not say what it used was read all the same; what it should not hold breaks nothing."""
    body = f'{{"model":"m-1","choices":[{{"finish_reason":"stop"}}],"usage":{told}}}'
    assert tally([body.encode()]) == Usage(finish_reason="stop", model="m-1")
    bad = f'{{"model":7,"choices":{{}},"candidates":[7],"usage":{told},"delta":[],"x_groq":1}}'
    assert tally([bad.encode()]).counts == Counts()


JSON = (b"Content-Type", b"application/json; charset=utf-8")


@pytest.mark.parametrize(
    ("dialect", "path", "method", "status", "headers", "reads"),
    [
        (CHAT, "/v1/chat/completions", "POST", 200, [JSON], True),
        (GEMINI, "/", "POST", 200, [(b"Content-Type", b"text/event-stream")], True),
        (AUDIO, "/", "POST", 200, [(b"Content-Type", b"audio/mpeg")], False),
        (AUDIO, "/", "POST", 200, [], False),
        (CHAT, "/", "POST", 429, [JSON], False),
        (CHAT, "/", "GET", 200, [JSON], False),
        (COUNT_TOKENS, "/", "POST", 200, [JSON], False),
        (None, "/", "POST", 200, [JSON], False),
        (FILES, "/v2/chat", "POST", 200, [JSON], True),
        (FILES, "/v1/files", "POST", 200, [JSON], False),
    ],
)
def test_where(
    dialect: Dialect | None,
    path: str,
    method: str,
    status: int,
    headers: list[tuple[bytes, bytes]],
    reads: bool,
) -> None:
    """What was executed is read along, where anything of use may be in it; what is fetched was counted before."""
    exchange = Exchange("req_1", "main", method, path, "", Headers(), False, None, 0.0)
    exchange.dialect = dialect
    by_path = dialect is None or dialect is FILES
    assert (tally_of(exchange, by_path, status, Headers(headers)) is not None) is reads


def test_codings() -> None:
    """An answer in another coding than gzip and deflate is complete, and unread."""
    exchange = Exchange("req_1", "main", "POST", "/", "", Headers(), False, None, 0.0)
    exchange.dialect = CHAT
    for coding, unread in (("gzip", False), ("deflate", False), ("x-gzip", False), ("br", True)):
        headers = Headers([JSON, (b"Content-Encoding", coding.encode())])
        tap = tally_of(exchange, False, 200, headers)
        assert tap is not None
        body = PLAINS["short"].encode()
        tap.feed(zlib.compress(body) if coding == "deflate" else gzip.compress(body))
        assert tap.usage(whole=True).unread is unread
        assert (tap.usage(whole=True).counts == TELLS.counts) is not unread
