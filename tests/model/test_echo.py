"""The name that was asked for is put back into an answer, and nothing else of it changes."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.model import echo
from proxy.model.echo import Echo

ASKED = 'the "asked" näme/1'
NAMED = '"the \\"asked\\" näme/1"'.encode()
BOM = b"\xef\xbb\xbf"


def fed(data: bytes, cuts: Sequence[int] = (), *, stream: bool, model: str = ASKED) -> bytes:
    """Return what becomes of *data* when it comes in pieces that end at *cuts*."""
    one = Echo(model, stream=stream)
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return b"".join([one.feed(data[a:b]) for a, b in pairwise(places)]) + one.rest()


def both_ways(data: bytes, *, stream: bool) -> bytes:
    """Return what becomes of *data*, whole and byte by byte, which must be the same."""
    whole = fed(data, stream=stream)
    assert fed(data, range(len(data)), stream=stream) == whole
    return whole


# JSON texts, and what becomes of each

MEMBERS = [
    '"id":"chatcmpl-1"',
    '"created" : 1750000000',
    '"choices":[{"index":0,"delta":{"content":"h\\u00e9\\ud83d\\ude00\\/"},"model":"inner"}]',
    '"response":{"model":"nested","a":[{"model":"again"}]}',
    '"n":123456789012345678901234567890.1234567890123456789',
    '"z":-0.0e+1',
    '"lone":"\\ud800"',
    '"raw":"é😀"',
    '"a":"\\"model\\":\\"x\\""',
    '"Model":"M"',
    '"models":"m"',
    '"":null',
    '"usage":{"prompt_tokens":0}',
]
SPACES = st.sampled_from(["", " ", "  ", "\t"])
VALUES = st.sampled_from(
    ['"up/stream-1"', '""', '"a\\"b\\\\"', '"\\u0061\\n"', '"é😀"', '"{\\"model\\":1}"']
)
LEFT_ALONE = [
    b"",
    b"{}",
    b"[DONE]",
    b'[{"model":"up"}]',
    b'"model"',
    b'{"model":5}',
    b'{"model":null}',
    b'{"model":{"model":"up"}}',
    b'{"model":["up"]}',
    b'{"model":"up","model":"down"}',
    b'{"model":"up","x":1,"model":"up"}',
    b'{"model":"up"',
    b'{"model":"up"}}',
    b'{"model":"up"} x',
    b'{"model":"u\xffp"}',
    b'{"model":"\\ud83d"}',
    b'{"model":"up",}',
    b"{'model':'up'}",
    b'{"x":{"model":"up"}}',
    b'{"x":[{"model":"up"}],"Model":"up"}',
    b'{"delta":"\\"model\\":\\"up\\""}',
    b'{"models":"up"}',
    b"<html>model</html>",
    b'{"error":{"message":"no such model"}}',
]
"""Texts that have no top-level `model` which could be told, or are none."""


@dataclass(frozen=True)
class Change:
    """A text, and what it is *after*."""

    before: bytes
    after: bytes


@st.composite
def objects(draw: st.DrawFn) -> Change:
    """Draw a JSON object with one top-level `model`, and the same one with our name in it."""
    members = draw(st.lists(st.sampled_from(MEMBERS), max_size=4, unique=True))
    value = draw(VALUES)
    at = draw(st.integers(0, len(members)))
    space = draw(SPACES)
    members.insert(at, f'"model"{space}:{draw(SPACES)}\0')
    text = "{" + space + (draw(SPACES) + "," + space).join(members) + space + "}" + draw(SPACES)
    before, after = text.encode("utf-8").split(b"\0")
    return Change(before + value.encode() + after, before + NAMED + after)


TEXTS = objects() | st.sampled_from(LEFT_ALONE).map(lambda text: Change(text, text))


@given(text=TEXTS, cuts=st.lists(st.integers(0, 400), max_size=6))
def test_plain_answer(text: Change, cuts: list[int]) -> None:
    """Of a plain answer the value of its top-level `model` changes and nothing else, however it comes."""
    assert fed(text.before, cuts, stream=False) == text.after


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_left_alone(text: bytes) -> None:
    """What is no object, or says no model or two of them, passes as it is: plain, and as an event."""
    assert both_ways(text, stream=False) == text
    for data in (b"data: " + text + b"\n\n", b"data:" + text + b"\r\n\r\n"):
        assert both_ways(data, stream=True) == data


@given(text=objects())
def test_it_is_the_same_answer(text: Change) -> None:
    """An answer with another model in it says of all else, read as JSON, what it said before."""
    before = json.loads(text.before)
    after = json.loads(fed(text.before, stream=False))
    assert after == before | {"model": ASKED}
    assert list(after) == list(before)


# Streams


@st.composite
def lines_of(draw: st.DrawFn) -> Change:
    """Draw one line of an event, without its end."""
    kind = draw(st.integers(0, 3))
    if kind:
        text = draw(TEXTS)
        prefix = draw(st.sampled_from([b"data: ", b"data:", b"data:  ", b"data: \t"]))
        return Change(prefix + text.before, prefix + text.after)
    other = draw(
        st.sampled_from(
            [b": comment", b":", b': {"model":"up"}', b"event: message_start", b"id: 7", b"retry: 1",
             b"data", b'event: {"model":"up"}', b'"model"', b'xdata: {"model":"up"}', b"data: \xff",
             b'Data: {"model":"up"}', b'data : {"model":"up"}']
        )
    )  # fmt: skip
    return Change(other, other)


@st.composite
def streams(draw: st.DrawFn) -> Change:
    """Draw an event stream. A lone CR is never followed by LF, which would make it another thing."""
    ends = draw(st.sampled_from([[b"\n"], [b"\r\n"], [b"\r"], [b"\n", b"\r\n"], [b"\r\n", b"\r"]]))
    end = st.sampled_from(ends)
    start = draw(st.sampled_from([b"", b"", BOM, b"\n" if b"\n" in ends else b"\r\n"]))
    before, after = [start], [start]
    for _ in range(draw(st.integers(0, 4))):
        for line in draw(st.lists(lines_of(), min_size=1, max_size=3)):
            closing = draw(end)
            before.append(line.before + closing)
            after.append(line.after + closing)
        blanks = b"".join(draw(st.lists(end, min_size=1, max_size=3)))
        before.append(blanks)
        after.append(blanks)
    rest = draw(st.sampled_from([b"", b"", b'data: {"model":"up"}', b"data: {", b": c\n"[:3]]))
    return Change(b"".join([*before, rest]), b"".join([*after, rest]))


@given(stream=streams(), cuts=st.lists(st.integers(0, 1500), max_size=8))
def test_stream(stream: Change, cuts: list[int]) -> None:
    """Of each whole event the value of a top-level `model` changes; order, spacing, escapes, line ends,
    comments and what is no JSON survive, and an event without an end passes as it is.
    """
    assert fed(stream.before, cuts, stream=True) == stream.after


PIECES = st.sampled_from(
    [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", BOM, b'data: {"model":"up"}', b'data: {"model":',
     BOM + b'data: {"model":"up"}\n\n', b'data: {"model":"up"}\n\n', b'data: {"model":"up"}\r\r',
     b'"up"}', b"data: x", b": c", b'"model"', b"event: a", b"data:", b"x", b'{"model":"up"}']
)  # fmt: skip


@settings(max_examples=400)
@given(
    parts=st.lists(PIECES, max_size=14),
    cuts=st.lists(st.integers(0, 150), max_size=14),
    stream=st.booleans(),
    limit=st.sampled_from([8, 20, 33, 40, 60, 2**20]),
)
def test_pieces_do_not_matter(
    parts: list[bytes], cuts: list[int], stream: bool, limit: int
) -> None:
    """However a body is cut into pieces, the same comes out: whatever it is, and whatever its length."""
    data = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(echo, "EVENT_BYTES", limit)
        patch.setattr(echo, "PLAIN_BYTES", limit)
        whole = fed(data, stream=stream)
        assert fed(data, cuts, stream=stream) == whole
        assert fed(data, range(len(data)), stream=stream) == whole


@given(data=st.binary(max_size=60), stream=st.booleans())
def test_any_bytes(data: bytes, stream: bool) -> None:
    """Bytes that mean nothing pass as they are."""
    assert both_ways(data, stream=stream) == data


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\r\n\n", b"\n\r\n", b"\n\r"])
def test_an_event_is_not_held(blank: bytes) -> None:
    """An event passes when its empty line is there, and does not wait for the next one."""
    one = Echo(ASKED, stream=True)
    for n in range(3):
        text = b'data: {"model":"up","n":%d}' % n
        assert one.feed(text) == b""
        assert one.feed(blank) == text.replace(b'"up"', NAMED) + blank
    assert one.rest() == b""


def test_several_lines() -> None:
    """Each `data` line that is an object of its own gets the name; one spread over two lines does not."""
    before = (
        b'event: x\ndata: {"model":"a"}\ndata: {"model":"b"}\n\ndata: {"model":\ndata: "c"}\n\n'
    )
    after = before.replace(b'"a"', NAMED).replace(b'"b"', NAMED)
    assert both_ways(before, stream=True) == after


def test_bom_is_of_the_stream() -> None:
    """A byte order mark may stand before the first line; anywhere else it is part of a name unknown."""
    text = BOM + b'data: {"model":"a"}\n\n'
    named = BOM + b'data: {"model":' + NAMED + b"}\n\n"
    assert both_ways(text, stream=True) == named
    assert both_ways(text + text, stream=True) == named + text


@pytest.mark.parametrize("cut", range(0, 44, 3))
def test_cut(cut: int) -> None:
    """Of an answer that breaks off, all that came passes, and half an object is not touched."""
    text = b'{"id":"x","model":"up","choices":[{"a":1}]}'
    assert fed(text[:cut], [7, 20], stream=False) == text[:cut]
    event = b"data: " + text
    assert fed(event[:cut], [7, 20], stream=True) == event[:cut]


# What is too long


def long_text(size: int) -> bytes:
    """Return an object of *size* bytes with a model at its beginning."""
    start, end = b'{"model":"up","x":"', b'"}'
    return start + b"y" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize("piece", [1000, 65_536, 2**23])
@pytest.mark.parametrize("over", [False, True])
def test_long_answer(piece: int, over: bool) -> None:
    """A plain answer of up to 4 MiB gets the name; a longer one passes as it is, and is not held."""
    text = long_text(echo.PLAIN_BYTES + over)
    expected = text if over else text.replace(b'"up"', NAMED, 1)
    assert fed(text, range(0, len(text), piece), stream=False) == expected
    one = Echo(ASKED, stream=False)
    assert one.feed(text) == (text if over else b"")
    assert one.feed(b" ") == (b" " if over else text + b" ")


@pytest.mark.parametrize("piece", [1000, 65_536, 2**23])
@pytest.mark.parametrize("over", [False, True])
def test_long_event(piece: int, over: bool) -> None:
    """The same holds of an event and 1 MiB, whatever comes before it and behind it."""
    short = b'data: {"model":"up"}\n\n'
    event = b"data: " + long_text(echo.EVENT_BYTES - 6 + over) + b"\n\n"
    data = short + event + short + short
    named = short.replace(b'"up"', NAMED)
    middle = event if over else event.replace(b'"up"', NAMED, 1)
    expected = named + middle + named + named
    assert fed(data, range(0, len(data), piece), stream=True) == expected


def test_little_is_held() -> None:
    """Of an event without an end no more is held than one that may still get the name."""
    one = Echo(ASKED, stream=True)
    passed = came = 0
    for _ in range(40):
        came += 65_536
        passed += len(one.feed(b"data: {" + b"y" * 65_529))
        assert came - passed <= echo.EVENT_BYTES + 65_536
    assert came - passed <= 8
    assert passed + len(one.rest()) == came


@pytest.mark.parametrize(
    "data",
    [
        b'data: {"model":"up","x":"' + b"y" * 900_000,
        b"\r" * 300_000,
        b"data: {" + b'"a":{"model":"x"},' * 30_000 + b'"model":"up"}\n\n',
        b'data: {"model":"up"}\n' * 20_000 + b"\n",
        (b'data: {"a":' + b"[" * 30_000 + b'"model"\n') * 10 + b"\n",
        b"data: {" * 100_000 + b'"model"\n\n',
    ],
    ids=["long", "blank", "look-alikes", "lines", "deep", "open"],
)
def test_cost(data: bytes) -> None:
    """The work grows with the bytes that pass, whatever they are."""
    started = process_time()
    one = Echo(ASKED, stream=True)
    passed = b"".join(one.feed(data[at : at + 1000]) for at in range(0, len(data), 1000))
    passed += one.rest()
    assert process_time() - started < 3
    assert re.sub(re.escape(NAMED), b'"up"', passed) == data


@pytest.mark.parametrize("model", ["m", "", "a/b", 'q"\\', "é😀", "\x00\n\x7f", "x" * 5000])
def test_any_name(model: str) -> None:
    """Whatever was asked for is put in as JSON writes it."""
    text = b'{"a":1, "model" : "up" }'
    named = fed(text, stream=False, model=model)
    assert json.loads(named) == {"a": 1, "model": model}
    assert named.startswith(b'{"a":1, "model" : "')
    assert named.endswith(b'" }')
    event = fed(b"data: " + text + b"\n\n", stream=True, model=model)
    assert event == b"data: " + named + b"\n\n"
