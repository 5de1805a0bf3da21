"""Where `model` stands in a body, and what is left of the body when another takes its place."""

import json
import time
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.model import body as scanner
from proxy.model.body import BodyError, Found, splice

# JSON text as clients really write it: any spacing, any escapes, numbers of any size, duplicate
# keys, halves of emoji. Texts, not objects: what must survive is the writing.


def find_model(body: bytes) -> Found:
    """Find it in *body*, which is the same whether it came whole or in pieces."""
    try:
        found = scanner.find_model(body)
    except BodyError as error:
        with pytest.raises(BodyError) as again:
            scanner.find_model(bytearray(body))
        assert again.value.message == error.message
        raise
    assert scanner.find_model(bytearray(body)) == found
    return found


SPACE = st.text(" \t\r\n", max_size=3)
NUMBERS = st.sampled_from(
    ["0", "-0", "1e5", "1E+5", "-2.50", "1.0", "123456789012345678901234567890", "3." + "1" * 40]
) | st.integers(-(10**30), 10**30).map(str)
ESCAPES = st.sampled_from(
    [r"\n", r"\"", r"\\", r"\/", r"\u0000", r"\u0065", r"\uD83D\uDE00", r"\ud800", r"\udc00x"]
)
PLAIN = st.text(
    st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["Cc"]), max_size=8
)
LOOKALIKES = st.sampled_from(
    [r"\"model\":\"m\"", r"{\"model\": \"m\"}", "model", r"x\"model", "data: [DONE]", r"\\"]
)
STRINGS = st.lists(PLAIN | ESCAPES | LOOKALIKES, max_size=4).map(
    lambda parts: f'"{"".join(parts)}"'
)
SCALARS = NUMBERS | STRINGS | st.sampled_from(["true", "false", "null"])
INNER = STRINGS | st.sampled_from(['"messages"', '"stream"', '"Model"', '"model "', '"mode"'])
NAMES = INNER.filter(lambda name: json.loads(name).casefold() not in ("model", "stream"))


def _members(pairs: list[tuple[str, str]], spaces: list[str]) -> str:
    text = ""
    for index, (name, value) in enumerate(pairs):
        a, b, c, d = (spaces * 4)[index % len(spaces) :][:4]
        text += ("," if index else "") + a + name + b + ":" + c + value + d
    return "{" + (text or spaces[0]) + "}"


def _objects(names: st.SearchStrategy[str], values: st.SearchStrategy[str]) -> Any:
    pairs = st.lists(st.tuples(names, values), max_size=4)
    return st.builds(_members, pairs, st.lists(SPACE, min_size=1, max_size=5))


VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.builds(lambda items, s: f"[{s}{f'{s},{s}'.join(items)}{s}]", st.lists(inner), SPACE)
        | _objects(INNER | st.just('"model"'), inner)  # look-alikes below the top level
    ),
    max_leaves=8,
)
OTHERS = st.tuples(NAMES, VALUES)
MODEL_KEYS = st.sampled_from(['"model"', r'"mod\u0065l"', r'"\u006Dodel"', r'"\u006d\u006fdel"'])
MODELS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, str, bytes]:
    """Draw a body with one model, that model, and its literal."""
    others = draw(st.lists(OTHERS, max_size=4))
    model = draw(MODELS)
    literal = json.dumps(model, ensure_ascii=draw(st.booleans()))
    pairs = list(others)
    pairs.insert(draw(st.integers(0, len(others))), (draw(MODEL_KEYS), literal))
    spaces = draw(st.lists(SPACE, min_size=1, max_size=5))
    text = draw(SPACE) + _members(pairs, spaces) + draw(SPACE)
    return text.encode(), model, literal.encode()


def spliced(body: bytes, model: str) -> bytes:
    return b"".join(splice(body, find_model(body), model))


def members(text: bytes) -> list[tuple[str, Any]]:
    """Parse *text* and keep every member, also of the same name, and every number as it is written."""
    parsed: list[tuple[str, Any]] = json.loads(
        text, object_pairs_hook=list, parse_int=str, parse_float=str
    )
    return parsed


@settings(deadline=None)
@given(bodies(), MODELS)
def test_only_the_model_changes(drawn: tuple[bytes, str, bytes], new: str) -> None:
    """The model in a body is replaced, and not one byte outside its value is another."""
    body, model, literal = drawn
    found = find_model(body)
    assert found.model == model
    assert body[found.start : found.end] == literal
    after = spliced(body, new)
    assert after == body[: found.start] + orjson.dumps(new) + body[found.end :]
    expected = [(name, new if name == "model" else value) for name, value in members(body)]
    assert members(after) == expected


@settings(deadline=None)
@given(st.lists(OTHERS, max_size=4), st.lists(SPACE, min_size=1, max_size=5), SPACE, MODELS)
def test_a_missing_model_is_inserted(
    others: list[tuple[str, str]], spaces: list[str], space: str, new: str
) -> None:
    """A model is put before the first member where there is none, and all else stays."""
    body = (space + _members(others, spaces)).encode()
    found = find_model(body)
    assert found.model is None
    assert found.start == found.end
    after = spliced(body, new)
    assert after.startswith(body[: found.start])
    assert after.endswith(body[found.end :])
    assert members(after) == [("model", new), *members(body)]


@settings(deadline=None)
@given(bodies(), MODEL_KEYS, VALUES, st.data())
def test_two_models(drawn: tuple[bytes, str, bytes], key: str, value: str, data: Any) -> None:
    """A second top-level `model`, however it is written and wherever it stands, is refused."""
    body = drawn[0].decode().strip()
    first = data.draw(st.booleans())
    text = f"{{{key}:{value},{body[1:]}" if first else f"{body[:-1]},{key}:{value}}}"
    with pytest.raises(BodyError) as refused:
        find_model(text.encode())
    assert refused.value.field == "model"


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text('{}[]",:model\\ue01 ', max_size=40).map(str.encode))
@example(b'{"model"')
@example(b'{"model":"m"}}')
def test_any_bytes(body: bytes) -> None:
    """Whatever a body is, it is found in order or refused, and what is found is what a parser finds."""
    try:
        found = find_model(body)
    except BodyError:
        return
    parsed = json.loads(body.decode("utf-8", "replace"))
    assert isinstance(parsed, dict)
    assert (parsed.get("model") or None) == found.model


@pytest.mark.parametrize(
    ("body", "model", "literal"),
    [
        (b'{"model":"m","a":1}', "m", b'"m"'),
        (b'{"a":1,"model":"m"}', "m", b'"m"'),
        (b'\r\n{\t"model"\n:\r"m" }\n', "m", b'"m"'),
        (b'{"a":{"model":"m"},"b":[{"model":"m"}],"model":"m"}', "m", b'"m"'),
        (b'{"model":"m","a":{"model":"m"}}', "m", b'"m"'),
        (rb'{"a":"\"model\":\"m\"","model":"m"}', "m", b'"m"'),
        (rb'{"a":"{\"model\": \"m\"}","model":"m"}', "m", b'"m"'),
        (rb'{"x\"model":"m","model":"m"}', "m", b'"m"'),
        (rb'{"x\"model":"m","mod\u0065l":"m"}', "m", b'"m"'),
        (rb'{"model":"m","x\"model":"m"}', "m", b'"m"'),
        (rb'{"\\":{"model":"m"},"model":"m"}', "m", b'"m"'),
        (b'{"model":"model"}', "model", b'"model"'),
        (b'{"a":"model","model":"a"}', "a", b'"a"'),
        (rb'{"mod\u0065l":"m"}', "m", b'"m"'),
        (rb'{"model":"\u006d"}', "m", rb'"\u006d"'),
        (rb'{"model":"a\/b"}', "a/b", rb'"a\/b"'),
        (rb'{"model":"a\nb"}', "a\nb", rb'"a\nb"'),
        (rb'{"model":"a\u0000b"}', "a\0b", rb'"a\u0000b"'),
        ('{"model":"\u202eabc"}'.encode(), "\u202eabc", '"\u202eabc"'.encode()),
        (rb'{"model":"\ud83d\ude00","a":"\ud83d"}', "\U0001f600", rb'"\ud83d\ude00"'),
        (b'{"model":""}', None, b'""'),
        (b'{"model":null}', None, b"null"),
        (b'{"a":null,"model" : null}', None, b"null"),
        (rb'{"mod\u0065l":null,"a":{"model":null}}', None, b"null"),
        (b'{"model":" "}', " ", b'" "'),
        (b'{"model":"' + b"x" * 2**20 + b'"}', "x" * 2**20, b'"' + b"x" * 2**20 + b'"'),
        (b'{"a":{"Model":"x","MODEL":"y"},"model ":"z","model":"m"}', "m", b'"m"'),
        (b'{"a":1e999,"b":-0,"c":12345678901234567890123,"model":"m"}', "m", b'"m"'),
        (b'{"a":1,"a":2,"a":3,"model":"m"}', "m", b'"m"'),
    ],
)
def test_places(body: bytes, model: str, literal: bytes) -> None:
    """The top-level model is found among everything that looks like it."""
    found = find_model(body)
    assert (found.model, body[found.start : found.end]) == (model, literal)
    assert spliced(body, "new") == body[: found.start] + b'"new"' + body[found.end :]


@pytest.mark.parametrize(
    ("body", "after"),
    [
        (b"{}", b'{"model":"new"}'),
        (b" {\n}\n", b' {\n"model":"new"}\n'),
        (b'{ "a":1}', b'{ "model":"new","a":1}'),
        (b'{"a":{"model":"m"}}', b'{"model":"new","a":{"model":"m"}}'),
        (rb'{"a":"\ud800"}', rb'{"model":"new","a":"\ud800"}'),
    ],
)
def test_insertion(body: bytes, after: bytes) -> None:
    """A missing model is written before the first member, with a comma only where one follows."""
    assert spliced(body, "new") == after


@pytest.mark.parametrize("value", [b"1", b"1.5", b"true", b"[]", b"{}", b'["m"]'])
@pytest.mark.parametrize("key", [b'"model"', rb'"mod\u0065l"'])
def test_model_is_not_a_string(key: bytes, value: bytes) -> None:
    """A model that is anything but a string is refused, and the error names the field."""
    for body in (b"{%b:%b}", b'{"a":%%b,%b:%b}'.replace(b"%%b", b'{"model":1}')):
        with pytest.raises(BodyError) as refused:
            find_model(body % (key, value))
        assert refused.value.field == "model"


def test_model_is_half_an_emoji() -> None:
    """A model that is not Unicode text is refused: no route can have that name."""
    with pytest.raises(BodyError) as refused:
        find_model(rb'{"model":"\ud83d"}')
    assert refused.value.field == "model"


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"}", b"null", b"1", b'"model"', b"[]", b'[{"model":"m"}]', b"model=m",
        b'{"model":"m"', b'{"model":"m",}', b'{"model":"m"} x', b'{"model":"m"}{"model":"m"}',
        b'{"model" "m"}', b"{'model':'m'}", b'{model:"m"}', b'{"model":"m","a":NaN}',
        b'{"model":"m","a":Infinity}', b'{"model":"m","a":-Infinity}', b'{"model":"m","a":01}',
        b'{"model":"m","a":1.}', b'{"model":"m","a":.5}', b'{"model":"m","a":+1}',
        b'{"model":"m","a":tru}', b'{"model":"m","a":"\n"}', b'{"model":"m","a":"\0"}',
        rb'{"model":"m","a":"\x41"}', rb'{"model":"m","a":"\u12"}', b'{"model":"m"} // comment',
        b'\xef\xbb\xbf{"model":"m"}', '{"model":"m"}'.encode("utf-16"), b"\0{}", b'{"model":"m"}\0',
    ],
)  # fmt: skip
def test_not_a_json_object(body: bytes) -> None:
    """What is not one JSON object is refused as a whole."""
    with pytest.raises(BodyError) as refused:
        find_model(body)
    assert refused.value.field == ""


@pytest.mark.parametrize("body", [b'{"model":"\xff"}', b'{"model":"m\xc3"}'])
def test_model_is_not_utf8(body: bytes) -> None:
    """A model that is not UTF-8 is refused."""
    with pytest.raises(BodyError):
        find_model(body)


UTF8 = [
    b'{"a":"\xff","model":"m"}',
    b'{"\xff":1,"mod\\u0065l":"m"}',
    b'{"model":"m","mod\xffel":"forbidden"}',
    b'{"model":"m","a":"\xc3"}',
    b'{"model":"m","a":"\xc0\x80"}',
    b'{"model":"m","a":"\xed\xa0\x80"}',
    b'{"model":"m","a":"\xf4\x90\x80\x80"}',
    b'{"model":"m","a":"' + b"x" * 200_000 + b'\xff"}',
    b'{"model":"m","a":"\xff' + "日".encode() * 200_000 + b'"}',
    b'{"model":"m","a":"' + "日".encode() * 21_839 + b'\xe6\x97"}',
]


@pytest.mark.parametrize("body", UTF8)
def test_invalid_utf8_elsewhere(body: bytes) -> None:
    """A body that is not UTF-8 is refused, wherever that is: readers differ in what they make of it."""
    with pytest.raises(BodyError) as refused:
        find_model(body)
    assert (refused.value.field, "UTF-8" in refused.value.message) == ("", True)


@pytest.mark.parametrize(
    "text", ["é", "日", "😀", "日" * 21_839, "x" * 65_520 + "日" * 9, "é" * 200_001]
)
def test_valid_utf8(text: str) -> None:
    """Text of any script and length passes, wherever the pieces end in which it is looked at."""
    for shift in range(4):
        body = f'{{"a":"{"x" * shift}{text}","model":"m"}}'.encode()
        assert find_model(body).model == "m"


def test_utf8_is_checked_in_pieces() -> None:
    """An 11 MB body is not there a second time while it is looked at."""
    body = '{{"a":"{}","model":"m"}}'.format("é" * 5_500_000).encode()
    tracemalloc.start()
    try:
        scanner.find_model(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


FOLDED = [
    "Model", "MODEL", "modeL", "mODEl", "Stream", "STREAM", "ſtream", "ſTREAM", "ﬅream", "ﬆREAM",
]  # fmt: skip


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize(
    "value", ['"forbidden"', "1", "0", "-7", "true", "null", "1.0", "[{}]", "{}"]
)
@pytest.mark.parametrize("escaped", [False, True])
def test_folded_names(name: str, value: str, escaped: bool) -> None:
    """A name that only a reader who folds case takes for `model` or `stream` is refused, alone or beside
    the real one, and the refusal says how to write it; deeper down it is nobody's business.
    """
    written = "".join(f"\\u{ord(one):04x}" for one in name) if escaped else name
    wanted = name.casefold()
    for text in (
        f'{{"{written}":{value}}}',
        f'{{"model":"m","{written}":{value},"messages":[]}}',
        f'{{"messages":[],"{written}" : {value},"model":"m","stream":true}}',
    ):
        with pytest.raises(BodyError) as refused:
            find_model(text.encode())
        assert refused.value.field == name
        assert f'write "{wanted}" in lower case' in refused.value.message
        assert refused.value.told().kind.code == "invalid_model"
    inside = f'{{"tools":[{{"{written}":{value}}}],"a":{{"{written}":{value}}},"model":"m"}}'
    assert find_model(inside.encode()).model == "m"


def test_every_folded_name() -> None:
    """There is no character that folds to a letter of ours but those that are known, so no name either."""
    for name in ("model", "stream"):
        parts = {name[at:end] for at in range(len(name)) for end in range(at + 1, len(name) + 1)}
        known = {one for one in map(chr, range(0x110000)) if one.casefold() in parts}
        names = {""}
        for _ in name:
            names |= {
                one + more
                for one in names
                for more in known
                if name.startswith((one + more).casefold())
            }
        spelled = {one for one in names if one.casefold() == name}
        assert spelled == {one for one in scanner._spellings() if one.casefold() == name}
    assert len(scanner._FOLDED) == 158


@pytest.mark.parametrize(
    "text",
    [
        '{"stream":false,"model":"m","stream":true}',
        '{"stream":true,"stream":true}',
        '{"stream":{"stream":1},"model":"m","stream":true}',
        r'{"str\u0065am":false,"model":"m","stream":true}',
        r'{"stream":true,"model":"m","a":{"stream":1},"str\u0065am":false}',
        r'{"str\u0065am":true,"model":"m","\u0073tream":true}',
        '{"model":null,"model":null}',
        '{"model":null,"model":"m"}',
        '{"model":"m","model":""}',
    ],
)
def test_said_twice(text: str) -> None:
    """What is said twice may be read as either: it is refused by its name."""
    with pytest.raises(BodyError) as refused:
        find_model(text.encode())
    assert refused.value.field == ("stream" if "stream" in text or "str" in text else "model")
    assert "two" in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        '{"a":{"stream":false},"model":"m","stream":true}',
        '{"stream":true,"model":"m","tools":[{"stream":1},{"stream":2}]}',
        r'{"stream":true,"model":"m","a":"\u00e9 \"stream\": \u0061"}',
        r'{"str\u0065am":true,"model":"m","a":{"stream":false}}',
        r'{"a":"\ud800","stream":true,"model":"m","stre\ud800m":1}',
    ],
)
def test_said_once(text: str) -> None:
    """What is said once at the top counts, whatever stands deeper down."""
    found = find_model(text.encode())
    assert (found.model, found.stream) == ("m", True)


@pytest.mark.parametrize("depth", [200_000, 10**6])
@pytest.mark.parametrize(
    "form",
    [
        lambda n: b"[" * n,
        lambda n: b'{"a":' * n,
        lambda n: b'{"model":"m","a":' + b"[" * n + b"]" * n + b"}",
        lambda n: b'{"a":' + b"[" * n + b"]" * n + b',"model":"m"}',
        lambda n: b'{"a":' + b"[" * n + b"]" * n + b',"mod\\u0065l":"m"}',
        lambda n: b'{"model":' + b"[" * n + b"]" * n + b"}",
        lambda n: b'{"a":"\\ud800","b":' + b'{"model":' * n + b'"m"' + b"}" * n + b"}",
    ],
)
def test_deep_nesting(form: Any, depth: int) -> None:
    """A body nested beyond all reason is refused like any other that cannot be read."""
    with pytest.raises(BodyError):
        find_model(form(depth))


@pytest.mark.parametrize("depth", range(900, 1000, 9))
def test_depth_is_judged_once(depth: int) -> None:
    """At the very edge of what can be read, a body is still either found or refused."""
    for body in (
        b'{"model":"m","a":' + b"[" * depth + b"]" * depth + b"}",
        b'{"a":' + b"[" * depth + b"]" * depth + b',"model":"m"}',
        b'{"a":"\\ud800","model":"m","b":' + b"[" * depth + b"]" * depth + b"}",
    ):
        try:
            assert find_model(body).model == "m"
        except BodyError as error:
            assert error.field == ""


@pytest.mark.parametrize(
    ("members", "stream"),
    [
        (b'"stream":true', True),
        (b'"stream" :\n true ', True),
        (b'"stream":false', False),
        (b'"stream":"true"', False),
        (b'"stream":1', False),
        (b'"stream":null', False),
        (b'"a":{"stream":true}', False),
        (b'"stream":true,"a":"\\ud800"', True),
    ],
)
def test_stream(members: bytes, stream: bool) -> None:
    """A stream is asked for by a top-level `true`, and by nothing else."""
    assert find_model(b'{"model":"m",' + members + b"}").stream is stream
    assert find_model(b"{" + members + b"}").stream is stream


@pytest.mark.parametrize("surrogate", [b"\\ud800", b"\\uDFFF", b"\\udc00\\ud800", b"\\uD83Dx"])
def test_lone_surrogates(surrogate: bytes) -> None:
    """Half an emoji anywhere in a body is legal JSON text, and passes as it was written."""
    for body in (
        b'{"a":"' + surrogate + b'","model":"m"}',
        b'{"' + surrogate + b'":1,"model":"m","b":{"model":"m"}}',
        b'{"' + surrogate + b'":"\\\\ud800","mod\\u0065l":"m"}',
    ):
        assert find_model(body).model == "m"
        assert surrogate in spliced(body, "new")


SHAPES = {
    "one long string": lambda n: b'{"a":"' + b"A" * n + b'","model":"m"}',
    "many numbers": lambda n: b'{"model":"m","a":[' + b"0.12345," * (n // 8) + b"0]}",
    "many messages": lambda n: (
        b'{"a":[' + rb'{"role":"user","content":"\"hi\" \u00e9"},' * (n // 41) + b'0],"model":"m"}'
    ),
}
CROWDS = {
    "look-alikes before": lambda n: (
        b'{"a":[' + b'{"model":"m"},' * (n // 14) + b'0],"model":"m","b":1}'
    ),
    "escaped key": lambda n: b'{"a":[' + b'{"a":[1]},' * (n // 10) + b'0],"mod\\u0065l":"m","b":1}',
    "members": lambda n: b"{" + b'"a":"b",' * (n // 8) + b'"mod\\u0065l":"m","b":1}',
    "lone surrogates": lambda n: b'{"a":"' + b"\\ud800" * (n // 6) + b'","model":"m","b":1}',
    "quotes": lambda n: b'{"a":"' + b'\\"model\\":' * (n // 10) + b'","model":"m","b":1}',
}


def _cpu(body: bytes) -> tuple[Found, float]:
    before = time.process_time()
    found = find_model(body)
    return found, time.process_time() - before


@pytest.mark.parametrize("shape", SHAPES)
def test_big_bodies(shape: str) -> None:
    """A megabyte takes a few milliseconds, and twenty take twenty times that."""
    for megabytes, seconds in ((1, 0.1), (20, 1.0)):
        body = SHAPES[shape](megabytes * 10**6)
        found, spent = _cpu(body)
        assert body[found.start : found.end] == b'"m"'
        assert spent < seconds


@pytest.mark.parametrize("shape", CROWDS)
def test_crowds(shape: str) -> None:
    """What only the slow way can read is read right, in time that grows as the body does."""
    small, large = (CROWDS[shape](n) for n in (150_000, 1_500_000))
    _, one = _cpu(small)
    found, ten = _cpu(large)
    assert large[found.start : found.end] == b'"m"'
    assert large[found.end :] == b',"b":1}'
    assert ten < max(0.2, 40 * one)


def test_splice_copies_nothing() -> None:
    """A spliced body is given as pieces of the original, not as a copy of it."""
    body = SHAPES["one long string"](10**6)
    found = find_model(body)
    pieces = splice(body, found, "new")
    views = [piece for piece in pieces if isinstance(piece, memoryview)]
    assert [view.obj is body for view in views] == [True, True]
    assert b"".join(pieces) == body[: found.start] + b'"new"' + body[found.end :]
