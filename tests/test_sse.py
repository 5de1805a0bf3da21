"""What is known of a stream that goes by, however it is written and however it is split."""

import itertools
import json
import re
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.dialects import Ending
from proxy.sse import PARTIAL_BYTES, Tap, begins, first_error, has_event, status_of

# The oracle is a plain reading of WHATWG HTML section 9.2.6, of the whole stream at once.

Event = tuple[bytes, bytes]


def parse(stream: bytes) -> tuple[list[Event], bool]:
    """Return the events of *stream*, type and data, and whether it ends between two of them."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    rest = lines.pop()
    between = not rest and (not lines or lines[-1] == b"")
    events: list[Event] = []
    kind = b""
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data or kind:
                events.append((kind, b"\n".join(data)))
            kind, data = b"", []
            continue
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            kind = value
        elif name == b"data":
            data.append(value)
    return events, between


def facts(ending: Ending, stream: bytes) -> tuple[bool, bool, bool]:
    """Return what a tap is to know after *stream*: between, finished, over."""
    events, between = parse(stream)
    over = False
    going_on: set[int] = set()
    reasons: set[int] = set()
    for kind, data in events:
        if over:
            break
        if ending is Ending.MESSAGES:
            over = b"message_stop" in (kind, _type(data))
        elif ending is Ending.RESPONSES:
            over = any(b"response." + how in (kind, _type(data)) for how in HOWS)
        else:
            over = data == b"[DONE]"
            if ending is Ending.CHAT and not over:
                _note_reasons(data, going_on, reasons)
    return between, (bool(reasons) and not going_on) or over, over


HOWS = (b"completed", b"incomplete", b"failed")


def _type(data: bytes) -> bytes | None:
    try:
        said = json.loads(data)["type"]
    except (ValueError, KeyError, TypeError):
        return None
    return said.encode() if isinstance(said, str) else None


def _note_reasons(data: bytes, going_on: set[int], reasons: set[int]) -> None:
    try:
        choices = [
            (choice.get("index", 0), choice.get("finish_reason"))
            for choice in json.loads(data)["choices"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    for index, reason in choices:
        if reason:
            reasons.add(index)
            going_on.discard(index)
        elif index not in reasons:
            going_on.add(index)


def tapped(ending: Ending, pieces: Iterable[bytes]) -> tuple[bool, bool, bool]:
    """Return what a tap knows after *pieces*."""
    tap = Tap(ending)
    for piece in pieces:
        tap.feed(piece)
    return tap.between, tap.finished, tap.over


def split(stream: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    places = sorted({cut % (len(stream) or 1) for cut in cuts} | {0, len(stream)})
    return (stream[a:b] for a, b in itertools.pairwise(places) if a != b)


def _chunk(*reasons: str | None, content: str = "hi") -> bytes:
    choices = [
        {"index": index, "delta": {"content": content}, "finish_reason": reason}
        for index, reason in enumerate(reasons)
    ]
    return json.dumps({"id": "x", "choices": choices}).encode()


def _one(index: int, reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": {}, "finish_reason": reason}
    return json.dumps({"choices": [choice]}).encode()


CONTENTS = st.sampled_from(
    [
        '"finish_reason":"stop"',
        '{"choices":[{"finish_reason":"stop"}]}',
        "data: [DONE]",
        "\n\ndata: [DONE]\n\n",
        "event: message_stop\n\n",
        "\r\n\r\n",
        "é😀",
        "\u2028\u0085",
    ]
)
DATA = st.one_of(
    st.builds(_chunk, st.none() | st.sampled_from(["stop", "length", ""]), content=CONTENTS),
    st.builds(_chunk, st.none() | st.just("stop"), st.none() | st.just("stop")),
    st.sampled_from(
        [
            b"[DONE]",
            b"",
            b"not json",
            b"[DONE",
            b'{"choices":[],"usage":{"total_tokens":1}}',
            b'{"choices":null}',
            b'{"choices":[{"delta":{"finish_reason":"stop"}}]}',
            b'{"finish_reason":"stop"}',
            b'{"x":{"choices":[{"finish_reason":"stop"}]},"choices":[{"finish_reason":null}]}',
            b'{"choices":[{"finish_reason" : "stop"}]}',
            b'{"type":"message_stop"}',
            b'{ "x": "response.completed", "type" : "response.completed" }',
            b'{"item":{"type":"response.failed"},"type":"response.failed.not"}',
            b'{"choices":[{"index":1,"delta":{}}]}',
            b'{"choices":[{"index": 1, "finish_reason": "stop"}]}',
            b'{"choices":[{"index":0,"delta":{}}],"usage":{}}',
            b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1}]}}]}',
            b'{"choices":[{"index":1,"finish_reason":null},{"index":0,"finish_reason":"stop"}]}',
        ]
    ),
)
TYPES = st.sampled_from(
    [b"", b"message_stop", b"ping", b"response.completed", b"response.failed", b"response.created"]
)
LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])
COMMENTS = st.sampled_from(
    [
        b"\xef\xbb\xbfdata: [DONE]",
        b"\xef\xbb\xbfevent: message_stop",
        b": ping",
        b":",
        b":data: [DONE]",
        b"id: 1",
        b"retry: 10",
        b"datax: y",
    ]
)


@st.composite
def events(draw: st.DrawFn) -> list[bytes]:
    """Draw the lines of one event, the empty one included."""
    lines = draw(st.lists(COMMENTS, max_size=2))
    kind = draw(TYPES)
    space = draw(st.sampled_from([b"", b" "]))
    if kind:
        lines.append(b"event:" + space + kind)
    lines.append(b"data:" + space + draw(DATA))
    lines += draw(st.lists(COMMENTS, max_size=1))
    return [*lines, b"", *draw(st.lists(st.just(b""), max_size=2))]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Draw a stream, perhaps one that breaks off."""
    lines = [line for event in draw(st.lists(events(), max_size=5)) for line in event]
    one = draw(st.none() | LINE_ENDS)
    stream = b""
    for line in lines:
        end = one or draw(LINE_ENDS)
        if stream.endswith(b"\r") and not line and end == b"\n":
            end = b"\r"  # else the two would be one line end, and two events one
        stream += line + end
    if draw(st.booleans()):
        stream = stream[: draw(st.integers(0, len(stream)))]
    begun = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    return begun + (b":\n" if stream.startswith(b"\xef") else b"") + stream


CHECKED = [Ending.CHAT, Ending.DONE, Ending.MESSAGES, Ending.RESPONSES]


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(CHECKED), streams(), st.lists(st.integers(0, 2000), max_size=12))
@example(Ending.CHAT, b"data: x\r\n\r\n", [10])
@example(Ending.CHAT, b"data: x\n\n\n", [9])
@example(Ending.CHAT, b"\ndata: x\n\n", [1])
@example(Ending.CHAT, b"\xef\xbb\xbfdata: [DONE]\n\n", [])
@example(Ending.MESSAGES, b"\xef\xbb\xbfevent: message_stop\n\n", [])
def test_any_split(ending: Ending, stream: bytes, cuts: list[int]) -> None:
    """However a stream is split, what is known of it at the end is what its events say."""
    assert tapped(ending, split(stream, cuts)) == facts(ending, stream)


MIXED = (
    b'data:{"choices":[{"index":0,"delta":{}}]}\n\n'
    b'data: {"choices": [{"index": 0, "delta": {}}, {"index": 1, "delta": {}}]}\n\n'
    b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
)


@settings(deadline=None)
@given(st.sampled_from(CHECKED), streams())
@example(Ending.CHAT, MIXED)
def test_byte_by_byte(ending: Ending, stream: bytes) -> None:
    """At no byte of a stream is more or less known than what has passed by then says."""
    tap = Tap(ending)
    for index in range(len(stream)):
        tap.feed(stream[index : index + 1])
        between, finished, over = facts(ending, stream[: index + 1])
        assert (tap.finished, tap.over) == (finished, over)
        assert tap.between == between


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize(
    ("ending", "lines"),
    [
        (Ending.CHAT, [b"data: [DONE]", b""]),
        (Ending.CHAT, [b"data:[DONE]", b""]),
        (Ending.CHAT, [b": done", b"data: [DONE]", b""]),
        (Ending.DONE, [b"data: {}", b"", b"data: [DONE]", b""]),
        (Ending.MESSAGES, [b"event: message_stop", b'data: {"type":"message_stop"}', b""]),
        (Ending.MESSAGES, [b"data: {}", b"event:message_stop", b""]),
        (Ending.RESPONSES, [b"event: response.completed", b"data: {}", b""]),
        (Ending.RESPONSES, [b"event: response.incomplete", b"data: {}", b""]),
        (Ending.RESPONSES, [b"event: response.failed", b"data: {}", b""]),
        (Ending.RESPONSES, [b'data: {"type":"response.completed"}', b""]),
        (Ending.RESPONSES, [b'data:{"response":{}, "type" : "response.incomplete"}', b""]),
        (Ending.RESPONSES, [b'data: {"type":', b'data: "response.failed"}', b""]),
        (Ending.MESSAGES, [b'data: {"type": "message_stop"}', b""]),
    ],
)
def test_markers(ending: Ending, lines: list[bytes], end: bytes) -> None:
    """Each dialect's marker is seen wherever the stream is cut in two, and nothing follows it."""
    stream = b"data: {}" + end * 2 + b"".join(line + end for line in lines)
    for cut in range(1, len(stream)):
        assert tapped(ending, [stream[:cut], stream[cut:]]) == (True, True, True)


@pytest.mark.parametrize(
    ("ending", "event"),
    [
        (Ending.CHAT, b"data: [DONE"),
        (Ending.CHAT, b'data: "data: [DONE]"'),
        (Ending.CHAT, b"data: x [DONE]"),
        (Ending.CHAT, b": [DONE]"),
        (Ending.CHAT, b": data: [DONE]"),
        (Ending.CHAT, b"event: message_stop\ndata: {}"),
        (Ending.CHAT, b"data: " + _chunk(None, content='"finish_reason":"stop"')),
        (Ending.CHAT, b'data: {"choices":[{"delta":{"finish_reason":"stop"}}]}'),
        (Ending.CHAT, b'data: {"finish_reason":"stop"}'),
        (
            Ending.CHAT,
            b'data: {"choices":[{"finish_reason":"stop"},{"index":1,"finish_reason":null}]}',
        ),
        (Ending.CHAT, b'data: {"choices":[{"finish_reason":""}]}'),
        (Ending.CHAT, b'data: {"choices":[{"finish_reason":"stop"'),
        (Ending.DONE, b"data: " + _chunk("stop")),
        (Ending.MESSAGES, b"event: message_stopped\ndata: {}"),
        (Ending.MESSAGES, b'data: {"delta":{"type":"message_stop"},"type":"x"}'),
        (Ending.MESSAGES, b'data: {"text":"\\"type\\":\\"message_stop\\"","x":"message_stop"}'),
        (Ending.MESSAGES, b'data: {"type":"message_stop"'),
        (Ending.MESSAGES, b"data: [DONE]"),
        (Ending.RESPONSES, b'data: {"item":{"type":"response.completed"},"type":"x"}'),
        (Ending.RESPONSES, b': {"type":"response.completed"}'),
        (Ending.RESPONSES, b"event: response.created\ndata: {}"),
        (Ending.RESPONSES, b"event: response.completed.not\ndata: {}"),
        (Ending.NONE, b"data: [DONE]"),
        (Ending.NONE, b"data: " + _chunk("stop")),
    ],
)
def test_not_a_marker(ending: Ending, event: bytes) -> None:
    """What only looks like a marker finishes nothing."""
    assert tapped(ending, [event + b"\n\n"]) == (True, False, False)


@pytest.mark.parametrize(
    ("chunks", "finished"),
    [
        ([_chunk("stop")], True),
        ([_chunk("length", "stop")], True),
        ([_chunk("stop", None)], False),
        ([_chunk("stop"), b'{"choices":[],"usage":{}}'], True),
        ([_chunk("stop"), b'{"choices":[{"index":1,"delta":{}}]}'], False),
        ([_chunk("stop"), _chunk(None)], True),
        ([_chunk(None, None), _chunk("stop")], False),
        ([_chunk(None), _one(1), _one(0, "stop")], False),
        ([_one(0), _one(1), _one(2), _one(0, "stop"), _one(1, "stop")], False),
        ([_one(1), _one(0), _one(3), _one(0, "stop"), _one(1, "stop")], False),
        ([_one(3), _one(0), _one(0, "stop")], False),
        ([_one(3), _one(0), _one(0, "stop"), _one(3, "length")], True),
        ([_one(1), _one(1, "stop"), b'{"choices":[],"usage":{}}'], True),
        ([_one(1), _one(1, "stop"), _one(0)], False),
        ([_chunk("stop"), b"[nonsense"], True),
        ([b'{"choices":[{"message":{"content":"all at once"},"finish_reason":"stop"}]}'], True),
    ],
)
def test_finish_reasons(chunks: list[bytes], finished: bool) -> None:
    """A chat has finished when every choice that was seen has a reason, which it keeps, until another
    one goes on.
    """
    stream = b"".join(b"data: " + chunk + b"\n\n" for chunk in chunks)
    assert tapped(Ending.CHAT, [stream]) == (True, finished, False)
    assert tapped(Ending.CHAT, split(stream, range(0, 2000, 7))) == (True, finished, False)


def test_finish_in_several_data_lines() -> None:
    """A chunk that is written over several lines of data counts like any other."""
    stream = b'data: {"choices":\ndata: [{"finish_reason": "stop"}]}\n\n'
    assert tapped(Ending.CHAT, [stream]) == (True, True, False)


@pytest.mark.parametrize("stream", [b"", b"\n", b"\r\n", b"\n\n\n", b"data: x\n\n", b": c\r\r"])
def test_between(stream: bytes) -> None:
    """Between two events is where the last line was empty, or where nothing has come yet."""
    tap = Tap(Ending.CHAT)
    assert tap.between
    for index in range(len(stream)):
        tap.feed(stream[index : index + 1])
    assert tap.between
    tap.feed(b"d")
    assert not tap.between


def test_checked() -> None:
    """Only a stream whose marker is known can be found wanting."""
    assert [ending for ending in Ending if not Tap(ending).checked] == [Ending.NONE]


SIZES = [PARTIAL_BYTES - 1, PARTIAL_BYTES, PARTIAL_BYTES + 1, 2**20]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1448, 65536, 2**30])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_long_events(size: int, piece: int, end: bytes) -> None:
    """An event too long to hold is passed over, and what follows it is seen."""
    stream = b"data: " + b"x" * size + end * 2
    assert tapped(Ending.CHAT, split(stream, range(0, len(stream), piece))) == (True, False, False)
    longer = stream + b"data: [DONE]" + end * 2
    assert tapped(Ending.CHAT, split(longer, range(0, len(longer), piece))) == (True, True, True)


@pytest.mark.parametrize("piece", [1448, 2**30])
def test_finish_at_the_end_of_a_large_event(piece: int) -> None:
    """A whole answer in one chunk has finished, as long as it can be held until its end."""
    stream = b"data: " + _chunk("stop", content="x" * (PARTIAL_BYTES - 2000)) + b"\n\n"
    assert tapped(Ending.CHAT, split(stream, range(0, len(stream), piece))) == (True, True, False)


def test_inside_a_long_event() -> None:
    """In the middle of an event too long to hold, one is not between two events."""
    tap = Tap(Ending.CHAT)
    for _ in range(4):
        tap.feed(b"data: " + b"x" * PARTIAL_BYTES)
        assert not tap.between
    tap.feed(b"\n")
    assert not tap.between
    tap.feed(b"\n")
    assert tap.between


def _cpu(ending: Ending, stream: bytes, piece: int) -> float:
    pieces = list(split(stream, range(0, len(stream), piece)))
    before = time.process_time()
    tapped(ending, pieces)
    return time.process_time() - before


SHAPES: dict[str, Any] = {
    "one line": lambda n: b"data: " + b"x" * n,
    "many lines": lambda n: b"data: x\n" * (n // 8),
    "line ends": lambda n: b"\n" * n,
    "carriage returns": lambda n: b"\r" * n,
    "events": lambda n: (b"data: " + _chunk(None) + b"\n\n") * (n // 90),
    "finishes": lambda n: b'data: {"choices":[{"finish_reason":"x"}]}\n\n' * (n // 43),
    "finish look-alikes": lambda n: b"data: " + b'"finish_reason":"' * (n // 17) + b"\n\n",
}


@pytest.mark.parametrize("piece", [1448, 65536, 2**30])
@pytest.mark.parametrize("shape", SHAPES)
def test_time_is_linear(shape: str, piece: int) -> None:
    """A stream costs a little for every byte of it, whatever those bytes are."""
    assert _cpu(Ending.CHAT, SHAPES[shape](2**20), piece) < 1.0


@pytest.mark.parametrize("piece", [1448, 65536, 2**30])
def test_a_line_of_twenty_megabytes(piece: int) -> None:
    """A line of 20 MiB takes no longer, byte for byte, than a short one."""
    assert _cpu(Ending.CHAT, SHAPES["one line"](20 * 2**20), piece) < 3.0


@pytest.mark.parametrize("piece", [1, 16])
def test_a_dribbled_event(piece: int) -> None:
    """An event that comes in crumbs is not searched anew for every crumb."""
    assert _cpu(Ending.CHAT, SHAPES["one line"](60_000), piece) < 1.5


def test_memory_is_bounded() -> None:
    """Of a line that does not end, no more is kept than is looked at."""
    pieces = [b"data: " + b"x" * 8000] * 512
    tap = Tap(Ending.CHAT)
    tracemalloc.start()
    try:
        for piece in pieces:
            tap.feed(piece)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2 * PARTIAL_BYTES


# What an upstream says of its own failure


def fails(stream: bytes) -> bool:
    """Return whether an event of *stream* says that the whole answer has failed."""
    return any(kind == b"error" or _says_so(data) for kind, data in parse(stream)[0])


def _says_so(data: bytes) -> bool:
    try:
        said = json.loads(data)
    except ValueError:
        return False
    for one in said if isinstance(said, list) else [said]:
        if isinstance(one, dict):
            response = one.get("response")
            inner = response.get("error") if isinstance(response, dict) else None
            if any(error or error == {} for error in (one.get("error"), inner)):
                return True
            if "error" in (one.get("object"), one.get("type")):
                return True
    return False


SAID = st.sampled_from(
    [
        b'{"error":{"message":"x","code":500}}',
        b'{ "error" :\t{} }',
        b'{"id":"x","choices":[{"finish_reason":"error"}],"error":{"code":"server_error"}}',
        b'{"object":"error","message":"x","code":404}',
        b'{"message":"x","object" : "error"}',
        b'{"response":{"id":"r","error":{"code":"server_error"}}}',
        b'{"response":{"error":null}}',
        b'{"error":null}',
        b'{"error":"x","error_type":"validation"}',
        b'{"error":""}',
        b'{"error":false}',
        b'[{"error":{"code":400}}]',
        b'[{"choices":[]},{"error":"x"}]',
        b'{"type":"error","code":"x"}',
        b'{"delta":{"type":"error"}}',
        b'{"error":[{}]}',
        b'{"item":{"type":"mcp_call","error":{"type":"x"}}}',
        b'{"choices":[{"delta":{"content":"{\\"error\\":{}}"}}]}',
        b'{"choices":[{"delta":{"content":"event: error"}}]}',
        b'{"parts":[{"object":"error"}]}',
        b'["error", {"error":{}}]',
        b'{"error":{',
        b"error",
    ]
)


@st.composite
def speaking(draw: st.DrawFn) -> bytes:
    """Draw a stream some of whose events speak of errors."""
    lines: list[bytes] = []
    for _ in range(draw(st.integers(0, 4))):
        lines += draw(st.lists(st.sampled_from([b": event: error", b"id: error"]), max_size=1))
        lines += draw(st.sampled_from([[], [], [b"event: error"], [b"event:error"], [b"event: x"]]))
        lines += [b"data: " + draw(SAID | DATA), b""]
    end = draw(LINE_ENDS)
    stream = b"".join(line + end for line in lines)
    return stream[: draw(st.integers(0, len(stream)))] if draw(st.booleans()) else stream


@settings(deadline=None)
@given(
    st.sampled_from([*CHECKED, Ending.NONE]), speaking(), st.lists(st.integers(0, 500), max_size=8)
)
@example(Ending.CHAT, b"\xef\xbb\xbfevent: error\n\n", [])
@example(Ending.MESSAGES, b"data: [DONE]\n\nevent: error\ndata: {}\n\n", [20])
@example(Ending.RESPONSES, b'data: {"error":\ndata: {}}\n\n', [18])
@example(Ending.CHAT, b'data: {"error":{}}', [])
def test_failed(ending: Ending, stream: bytes, cuts: list[int]) -> None:
    """However a stream is split, it has failed if an event says so of the whole, and else not."""
    tap = Tap(ending)
    for piece in split(stream, cuts):
        tap.feed(piece)
    assert tap.failed is fails(stream)
    if tap.failed:
        assert tap.closes()


@pytest.mark.parametrize(
    ("body", "whole"),
    [
        (b"", False),
        (b"data: x", False),
        (b"data: x\n", False),
        (b"data: x\r\n", False),
        (b"data: x\n\n", True),
        (b"data: x\r\n\r\n", True),
        (b"data: x\r\r", True),
        (b"event: x\n\n", True),
        (b"\xef\xbb\xbfdata: x\n\n", True),
        (b"\n\n", False),
        (b": a comment\n\n", False),
        (b": a comment\n\ndata: x\n", False),
        (b": a comment\n\ndata: x\n\n", True),
        (b": data: x\n\n", False),
        (b"\n\n\n\ndata: x\n\n", True),
    ],
)
def test_has_event(body: bytes, whole: bool) -> None:
    """A stream has begun with an event once there is a whole one; a comment is none."""
    assert has_event(body) is whole


STANDS_FOR: dict[bytes, int | None] = {
    b'data: {"error":{"message":"x","code":503}}': 503,
    b'data: {"error":{"message":"x","code":"429"}}': 429,
    b'data:{"error":{"code":null,"type":"server_error"}}': 500,
    b'data: {"error":{"code":"rate_limit_exceeded"}}': 429,
    b'data: {"error":{"code":"insufficient_quota","type":"insufficient_quota"}}': 429,
    b'data: {"error":{"status":"RESOURCE_EXHAUSTED"}}': 429,
    b'data: {"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}': 429,
    b'data: {"error":{"code":400,"type":"BadRequestError"}}': 400,
    b'data: {"error":{"type":"invalid_request_error","code":"invalid_value"}}': 400,
    b'data: {"error":{"code":1305,"message":"x"}}': 500,
    b'data: {"error":{"code":12345,"message":"status 503"}}': 500,
    b'data: {"error":{"code":{"odd":1},"message":"x"}}': 500,
    b'data: {"error":{}}': 500,
    b'data: {"object":"error","type":"NotFoundError","code":404}': 404,
    b'data: {"object":"error","code":500}': 500,
    b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error"}}': 529,
    b'event: error\ndata: {"type":"error","error":{"type":"api_error"}}': 500,
    b'event: error\ndata: {"type":"error","error":{"type":"rate_limit_error"}}': 429,
    b'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error"}}': 400,
    b'event: error\ndata: {"type":"error","error":{"type":"not_found_error"}}': 400,
    b'event: error\ndata: {"type":"error","code":"rate_limit_exceeded","message":"x"}': 429,
    b'event: error\ndata: {"type":"error","code":"server_is_overloaded"}': 529,
    b"event: error\ndata: not JSON": 500,
    b"event: error": 500,
    b'event: response.failed\ndata: {"response":{"error":{"code":"server_error"}}}': 500,
    b'event: response.failed\ndata: {"response":{"error":{"code":"rate_limit_exceeded"}}}': 429,
    b': processing\n\n: processing\n\ndata: {"error":{"code":502}}': 502,
    b'\n\ndata: {"error":{"code":502}}': 502,
    b'\xef\xbb\xbfdata: {"error":{"code":502}}': 502,
    b'id: 1\nretry: 10\ndata: {"error":\ndata: {"code":502}}': 502,
    b'data: {"choices":[]}\n\ndata: {"error":{"code":502}}': None,
    b'data: {"choices":[],"error":null}': None,
    b'data: {"item":{"error":{"code":502}}}': None,
    b"data: [DONE]": None,
    b": only a comment": None,
    b'data: {"error":"Input validation error: x","error_type":"validation"}': 400,
    b'data: {"error":"prompt is too long: 9 > 8"}': 400,
    b'data: {"error":"busy"}': 500,
    b'data: [{"error":{"code":503}}]': 503,
    b'data: {"type":"error","code":"rate_limit_exceeded"}': 429,
    b'error: {"detail":"x","error":{"code":503}}': 503,
    b"error: out of memory": 500,
    b'\xef\xbb\xbferror: {"error":{"code":503}}': 503,
    b"": None,
}


def error_in(body: bytes) -> int | None:
    """Return the status that stands for the error which is the first event of *body*, if it is one."""
    error = first_error(body)
    return None if error is None else status_of(error)


@pytest.mark.parametrize("events_", STANDS_FOR)
def test_error_in(events_: bytes) -> None:
    """A stream whose first event is an error stands for its code, or for what its words come to."""
    for end in (b"\n", b"\r\n", b"\r"):
        stream = events_.replace(b"\n", end) + end * 2
        assert error_in(stream) == STANDS_FOR[events_]
        assert error_in(stream + b"data: more" + end * 2) == STANDS_FOR[events_]


@pytest.mark.parametrize(
    "event",
    [b'error: {"error":{"message":"x"}}', b"error:x", b"event: error", b'data: {"error":"x"}'],
)
def test_what_was_said_before(event: bytes) -> None:
    """An error that is all that is said is told from one that comes behind something."""
    for comment in (b"", b": processing\n\n", b"\xef\xbb\xbf\n\n"):
        alone, behind, together = Tap(Ending.CHAT), Tap(Ending.CHAT), Tap(Ending.CHAT)
        for piece in (comment, event + b"\n\n", DONE_EVENT):
            alone.feed(piece)
        for piece in (comment, DATA_EVENT, event + b"\n\n"):
            behind.feed(piece)
        together.feed(comment + DATA_EVENT + event + b"\n\n")
        taps = (alone, behind, together)
        assert [(tap.failed, tap.spoke) for tap in taps] == [
            (True, False),
            (True, True),
            (True, True),
        ]


DATA_EVENT, DONE_EVENT = b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"


@pytest.mark.parametrize("cut", range(1, 12))
def test_bom(cut: int) -> None:
    """A BOM begins a stream, in as many pieces as it likes; in the middle of one it hides what it stands
    before, wherever the pieces break.
    """
    first, later = b"\xef\xbb\xbfdata: [DONE]\n\n", b"data: x\n\n\xef\xbb\xbfdata: [DONE]\n\n"
    assert tapped(Ending.CHAT, [first[:cut], first[cut:]]) == (True, True, True)
    assert tapped(Ending.CHAT, [later[:cut], later[cut:]]) == (True, False, False)
    assert error_in(b'data: x\n\n\xef\xbb\xbfdata: {"error":{}}\n\n') is None


@pytest.mark.parametrize(
    ("body", "is_stream"),
    [
        (b"", None),
        (b"\xef\xbb", None),
        (b"\xef\xbb\xbf", None),
        (b" \r\n\t", None),
        (b"\xef\xbb\xbf\n", None),
        (b"{", False),
        (b"[", False),
        (b'\xef\xbb\xbf\n {"', False),
        (b"d", True),
        (b":", True),
        (b"\xef\xbb\xbfd", True),
        (b"\n\ndata: {", True),
        (b"\xef{", True),
    ],
)
def test_begins(body: bytes, is_stream: bool | None) -> None:
    """What begins with a brace or a bracket is no stream; white space and a BOM say nothing yet."""
    assert begins(body) is is_stream
    assert has_event(body) is (is_stream is False)


@pytest.mark.parametrize(
    ("pieces", "quiet"),
    [
        ([b"data: x\r\n\r"], False),
        ([b"data: x\r\n\r", b"\n"], True),
        ([b"data: x\r\n\r", b"data: y\n\n"], True),
        ([b"data: x\r\r"], False),
        ([b"data: x\n\n"], True),
        ([b"data: x\n"], False),
        ([b"\r"], False),
        ([], True),
    ],
)
def test_quiet(pieces: list[bytes], quiet: bool) -> None:
    """Between the two halves of a CRLF nothing can be said, though the event has ended."""
    tap = Tap(Ending.CHAT)
    for piece in pieces:
        tap.feed(piece)
    assert tap.quiet is quiet


def test_error_in_what_is_not_whole() -> None:
    """An event that has not ended says nothing yet."""
    whole = b'event: error\ndata: {"error":{"code":503}}\n\n'
    assert [error_in(whole[:length]) for length in range(len(whole))] == [None] * len(whole)
    assert error_in(whole) == 503


def test_error_in_anything() -> None:
    """Whatever stands in a first event, it is looked at without a stumble, and soon."""
    deep = b'data: {"error":' + b"[" * 60_000 + b"\n\n"
    before = time.perf_counter()
    assert error_in(b"event: error\n" + deep) == 500
    assert error_in(deep) is None
    assert error_in(b'data: {"error":{"code":"\xff\xfe"}}\n\n') is None
    assert error_in(b"data: " + b'"error":{' * 7000 + b"\n\n") is None
    assert time.perf_counter() - before < 1
