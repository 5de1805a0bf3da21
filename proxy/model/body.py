"""Find `model` and `stream` in a JSON body, and put another model in the place of one.

The body is never rebuilt: `find_model` says where the value of the top-level `model` stands in the
original bytes, `splice` cuts there. Order, spacing, escapes, big numbers and fields nobody has
heard of yet survive because nobody touches them. No object is built for what is skipped: msgspec
checks the whole text in C and hands back the two members that matter. Whoever reads it next may
fold case, as most readers in Go do: names that only such a reader takes for these two are refused.
"""

import re
from codecs import utf_8_decode
from collections import deque
from collections.abc import Iterator
from itertools import islice, product
from typing import Annotated, Any, TypedDict, TypeVar

import msgspec
import orjson

from proxy.errors import INVALID_JSON, INVALID_MODEL, ProxyError

Body = bytes | bytearray
"""A request body: the latter where it came in pieces."""
Piece = bytes | bytearray | memoryview
COPIED_BYTES = 16 * 1024
"""Copy a body that is shorter than this, which costs less than a view of it."""


class BodyError(ValueError):
    """The body cannot be routed; *field* names the part at fault, or is empty for the whole."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field

    def told(self) -> ProxyError:
        """Return it as the caller is told."""
        kind = INVALID_MODEL if self.field else INVALID_JSON
        message = self.message[0].upper() + self.message[1:] + "."
        return ProxyError(kind, message, param=self.field or None)


class Found(msgspec.Struct):
    """What routing needs of a body.

    *model* is the asked-for name, None where the body has none, or says `null` or nothing. Another one
    goes between *start* and *end*, with *before* and *after* around it: in the place of its value, or
    where it is to be inserted. *stream* is whether the caller asked for one. In a *form* the value
    stands as it is, in JSON as a string.
    """

    model: str | None
    start: int
    end: int
    stream: bool
    before: bytes = b""
    after: bytes = b""
    form: bool = False


Parsed = TypeVar("Parsed")
_Members = dict[str, msgspec.Raw]
"""The members that are asked for and there, by name; of two of the same name the last."""


def meant(name: str) -> str | None:
    """Return which of `model` and `stream` a reader that folds case takes *name* for, if one."""
    folded = name.casefold()
    return folded if folded in ("model", "stream") else None


def in_lower_case(name: str) -> BodyError:
    """Return the refusal of *name*, which is `meant` and is not it."""
    said = meant(name)
    return BodyError(f'"{name}" could be taken for "{said}"; write "{said}" in lower case', name)


def _spellings() -> Iterator[str]:
    """Yield every name that is `meant`: `ſ` folds to `s`, and two ligatures to `st`."""
    for first, rest in (("", "model"), ("", "stream"), ("ﬅ", "ream"), ("ﬆ", "ream")):
        for letters in product(*({"s": "sSſ"}.get(one, one + one.upper()) for one in rest)):
            yield first + "".join(letters)


_Nothing = Annotated[int, msgspec.Meta(ge=1, le=0)]
"""What no value is: a member of this type fails as soon as it is there, before it is read."""
_MEMBERS = {"model": msgspec.Raw, "stream": msgspec.Raw}
_FOLDED = [name for name in _spellings() if name not in _MEMBERS]
_typed: Any = TypedDict
_Decoder = msgspec.json.Decoder[_Members]
_PLAIN: _Decoder = msgspec.json.Decoder(_typed("_Plain", _MEMBERS, total=False))
# A dictionary costs half of what a struct with so many fields does, but knows no names beyond ASCII.
_ASCII = {name: _Nothing for name in _FOLDED if name.isascii()}
_REQUEST: _Decoder = msgspec.json.Decoder(_typed("_Request", {**_MEMBERS, **_ASCII}, total=False))
_RARE = [name for name in _FOLDED if not name.isascii()]
_BEYOND = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Beyond",
        [(f"rare_{index}", _Nothing, 0) for index in range(len(_RARE))],
        rename={f"rare_{index}": name for index, name in enumerate(_RARE)},
    )
)
_NAME = msgspec.json.Decoder(str)
_TEXT: msgspec.json.Decoder[str | None] = msgspec.json.Decoder(str | None)

_OPEN = re.compile(rb"[ \t\r\n]*+\{[ \t\r\n]*+")
_QUOTED = {"model": b'"model"', "stream": b'"stream"'}
# A quote behind a backslash stands inside a string; every other place `_locate` can tell.
_PLACES = {
    name: re.compile(rb"(?<!\\)%b[ \t\r\n]*+:[ \t\r\n]*+" % quoted)
    for name, quoted in _QUOTED.items()
}
# Possessive, so that no input makes it backtrack.
_KEY = re.compile(rb'[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_REFUSED = re.compile(r"`\$\.(.+)`$")
_NEXT = re.compile(rb"[ \t\r\n]*+([,}])")
# One step of a walk through nested values: a string, a bracket, or all that is neither.
_STEP = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]|[^"\[\]{}]++', re.DOTALL)
_SCALAR = re.compile(rb"[^,}\]\s]++")
# Escaped surrogates without a partner are legal JSON text (RFC 8259 section 8.2) and real clients
# send them, when they cut an emoji in half; msgspec refuses them.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
# `ſ`, and the ligatures.
_LIGATURE = re.compile(rb"\\u(?:017[fF]|[fF][bB]0[56])")
# No other escape makes a letter of ours.
_LETTER = re.compile(rb"\\u00[4-7]")
_CANDIDATES = 4
"""Look at this many places from either end for a member, before the body is walked through."""
_WALK_BYTES = 4 * 1024 * 1024
"""Walk through no body that is longer."""
_TEXT_BYTES = 64 * 1024
"""Decode this much of a text at a time: a whole body would be there twice."""


def find_model(body: Body) -> Found:
    """Find the top-level `model` and `stream` of the JSON object *body*.

    Raises `BodyError` if *body* is not a JSON object in UTF-8, if `model` is not a string, or if one
    of the two stands there twice, in whatever case: an upstream might obey the other one.
    """
    escaped = 92 in body and b"\\u" in body  # one byte alone is found much faster
    if not body.isascii():
        _check_text(body)
        if _has(body, b"\xc5\xbf") or _has(body, b"\xef\xac"):
            _parse(body, _BEYOND)
    if escaped and _LIGATURE.search(body):
        _parse(body, _BEYOND)
    found = _find(body, _REQUEST, escaped=escaped)
    found.model = found.model or None  # an empty one is none
    return found


def find_in_answer(body: Body) -> Found:
    """Do what `find_model` does in an answer, which nobody takes for two things who asked for it."""
    return _find(body, _PLAIN, escaped=b"\\u" in body)


def _find(body: Body, decoder: _Decoder, *, escaped: bool) -> Found:
    # *text* differs from *body* only where a lone surrogate was masked, at the same length, so
    # that every offset found in one holds in the other.
    text, head = _parse(body, decoder)
    plain = not escaped or _LETTER.search(text) is None
    streamed, literal = head.get("stream"), head.get("model")
    stream = False
    if streamed is not None:
        said = bytes(streamed)
        stream = said == b"true"
        if not plain or text.count(_QUOTED["stream"]) != 1:
            _locate(text, "stream", said, plain=plain)
    if literal is None:
        opening = _OPEN.match(text)
        assert opening is not None  # msgspec has parsed it as an object
        at = opening.end()
        after = b"" if text[at : at + 1] == b"}" else b","
        return Found(None, at, at, stream, b'"model":', after)
    start, end = _locate(text, "model", bytes(literal), plain=plain)
    try:
        model = _TEXT.decode(body[start:end])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BodyError("`model` must be a string", "model") from None
    return Found(model, start, end, stream)


def splice(body: Body, found: Found, model: str) -> list[Piece]:
    """Return *body* with *model* in place of what *found* found, as pieces to write in order.

    Those of a large one are views: 20 MB are not copied to change twelve bytes of them.
    """
    value = model.encode("utf-8") if found.form else orjson.dumps(model)
    whole = body if len(body) < COPIED_BYTES else memoryview(body)
    return [whole[: found.start], found.before + value + found.after, whole[found.end :]]


def _has(text: Body, pair: bytes) -> bool:
    """Return whether the two bytes of *pair* stand in *text*: one alone is found much faster."""
    return pair[0] in text and pair in text


def _check_text(body: Body) -> None:
    """Refuse what is not UTF-8 (RFC 8259 section 8.1): readers differ in what they make of it."""
    with memoryview(body) as view:
        at = 0
        while at < len(view):
            with view[at : at + _TEXT_BYTES] as piece:
                try:
                    at += utf_8_decode(piece, "strict", at + len(piece) == len(view))[1]
                except UnicodeDecodeError:
                    break
        whole = at == len(view)
    if not whole:
        raise BodyError("the body is not UTF-8 text")


def _parse(body: Body, decoder: msgspec.json.Decoder[Parsed]) -> tuple[Body, Parsed]:
    try:
        return body, decoder.decode(body)
    except msgspec.ValidationError as error:
        place = _REFUSED.search(str(error))
        if place is not None:
            raise in_lower_case(place[1]) from None
        raise BodyError("the body must be a JSON object") from None
    except RecursionError:
        raise BodyError("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        masked = _SURROGATE.sub(rb"\\u0030", body)
        if masked == body:
            reason = str(error).removeprefix("JSON is malformed: ")
            raise BodyError(f"the body is not valid JSON: {reason}") from None
    return _parse(masked, decoder)


def _locate(text: Body, name: str, literal: bytes, *, plain: bool) -> tuple[int, int]:
    """Return where the value *literal* of the top-level *name* stands in *text*; *plain*: no letter of it
    is written with an escape.

    `"model":` may stand anywhere, in messages and in tools; a place is the top level's own if the
    text before it closes to a valid object with one more member. That member, and the text after
    it, must then be free of another `model`.
    """
    only = text.find(_QUOTED[name]) if plain else -1
    if only >= 0 and text.find(_QUOTED[name], only + 1) < 0:  # it must be the top level's own
        place = _PLACES[name].match(text, only)
        if place is not None:
            return place.end(), place.end() + len(literal)
    places = (m for m in _PLACES[name].finditer(text) if text.startswith(literal, m.end()))
    first = list(islice(places, _CANDIDATES))
    for place in (*first, *deque(places, _CANDIDATES)):  # at either end is where people put it
        try:
            before = _PLAIN.decode(text[: place.start()] + b'"":0}')
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        end = place.end() + len(literal)
        follow = _NEXT.match(text, end)
        if follow is None:  # `1` where `12` stands
            continue
        after = {} if follow[1] == b"}" else _PLAIN.decode(b"{" + text[follow.end() :])
        if name in before or name in after:
            raise _twice(name)
        return place.end(), end
    if len(text) > _WALK_BYTES:
        raise BodyError(f"`{name}` cannot be told from its look-alikes; put it first", name)
    return _walk(text, name)


def _twice(name: str) -> BodyError:
    return BodyError(f"the body has two `{name}` fields", name)


def _walk(text: Body, name: str) -> tuple[int, int]:
    """Do what `_locate` does member by member, for a key written with escapes or a crowd of
    look-alikes: slower, but linear whatever stands there.
    """
    opening = _OPEN.match(text)
    assert opening is not None
    position = opening.end()
    found: tuple[int, int] | None = None
    while True:
        key = _KEY.match(text, position)
        assert key is not None
        end = _skip(text, key.end())
        if _says(key[1], name):
            if found is not None:
                raise _twice(name)
            found = key.end(), end
        follow = _NEXT.match(text, end)
        assert follow is not None
        if follow[1] == b"}":
            assert found is not None
            return found
        position = follow.end()


def _says(literal: bytes, name: str) -> bool:
    try:
        return _NAME.decode(literal) == name
    except UnicodeDecodeError:
        return False


def _skip(text: Body, start: int) -> int:
    """Return where the value that begins at *start* ends, by counting brackets."""
    first = text[start : start + 1]
    if first not in (b"{", b"["):
        value = (_STEP if first == b'"' else _SCALAR).match(text, start)
        assert value is not None
        return value.end()
    depth = 0
    for step in _STEP.finditer(text, start):
        token = text[step.start() : step.start() + 1]
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return step.end()
    raise AssertionError("msgspec has parsed the whole text")
