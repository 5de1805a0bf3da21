"""Find `model` and `stream` in a JSON body, and put another model in the place of one.

The body is never rebuilt: `find_model` says where the value of the top-level `model` stands in the
original bytes, `splice` cuts there. Order, spacing, escapes, big numbers and fields nobody has
heard of yet survive because nobody touches them. No object is built for what is skipped: msgspec
checks the whole text in C and hands back the two members that matter.
"""

import re
from collections import deque
from dataclasses import dataclass
from itertools import islice

import msgspec
import orjson

from proxy.errors import INVALID_JSON, INVALID_MODEL, ProxyError

Body = bytes | bytearray
"""A request body: the latter where it came in pieces."""
Piece = bytes | bytearray | memoryview
COPIED_BYTES = 16 * 1024
"""Shorter bodies are copied sooner than looked at through a view."""


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


@dataclass(slots=True)
class Found:
    """What routing needs of a body.

    *model* is the asked-for name, None where the body has none. Another one goes between *start* and
    *end*, with *before* and *after* around it: in the place of its value, or where it is to be
    inserted. *stream* is whether the caller asked for one. In a *form* the value stands as it is, in
    JSON as a string.
    """

    model: str | None
    start: int
    end: int
    stream: bool
    before: bytes = b""
    after: bytes = b""
    form: bool = False


class _Head(msgspec.Struct):
    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_HEAD = msgspec.json.Decoder(_Head)
_NAME = msgspec.json.Decoder(str)

_OPEN = re.compile(rb"[ \t\r\n]*+\{[ \t\r\n]*+")
_QUOTED = b'"model"'
# A quote behind a backslash stands inside a string; every other place `_locate` can tell.
_MODEL = re.compile(rb'(?<!\\)"model"[ \t\r\n]*+:[ \t\r\n]*+')
# Possessive, so that no input makes it backtrack.
_KEY = re.compile(rb'[ \t\r\n]*+("[^"\\]*+(?:\\.[^"\\]*+)*+")[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_NEXT = re.compile(rb"[ \t\r\n]*+([,}])")
# One step of a walk through nested values: a string, a bracket, or all that is neither.
_STEP = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[{]|[\]}]|[^"\[\]{}]++', re.DOTALL)
_SCALAR = re.compile(rb"[^,}\]\s]++")
# Escaped surrogates without a partner are legal JSON text (RFC 8259 section 8.2) and real clients
# send them, when they cut an emoji in half; msgspec refuses them.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_CANDIDATES = 4
_WALK_BYTES = 4 * 1024 * 1024


def find_model(body: Body) -> Found:
    """Find the top-level `model` and `stream` of the JSON object *body*.

    Raises `BodyError` if *body* is not a JSON object, if `model` is not a string, or if it stands
    there twice: an upstream might obey the other one.
    """
    # *text* differs from *body* only where a lone surrogate was masked, at the same length, so
    # that every offset found in one holds in the other.
    text, head = _parse(body)
    stream = head.stream is not msgspec.UNSET and bytes(head.stream) == b"true"
    if head.model is msgspec.UNSET:
        opening = _OPEN.match(text)
        assert opening is not None  # msgspec has parsed it as an object
        at = opening.end()
        after = b"" if text[at : at + 1] == b"}" else b","
        return Found(None, at, at, stream, b'"model":', after)
    start, end = _locate(text, bytes(head.model))
    try:
        model = _NAME.decode(body[start:end])
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


def _parse(body: Body) -> tuple[Body, _Head]:
    try:
        return body, _HEAD.decode(body)
    except msgspec.ValidationError:
        raise BodyError("the body must be a JSON object") from None
    except RecursionError:
        raise BodyError("the body is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        masked = _SURROGATE.sub(rb"\\u0041", body)
        if masked == body:
            reason = str(error).removeprefix("JSON is malformed: ")
            raise BodyError(f"the body is not valid JSON: {reason}") from None
    return _parse(masked)


def _locate(text: Body, literal: bytes) -> tuple[int, int]:
    """Return where the value *literal* of the top-level `model` stands in *text*.

    `"model":` may stand anywhere, in messages and in tools; a place is the top level's own if the
    text before it closes to a valid object with one more member. That member, and the text after
    it, must then be free of another `model`.
    """
    only = text.find(_QUOTED)
    lone = only >= 0 and text.find(_QUOTED, only + 1) < 0
    if lone and (b"\\" not in text or b"\\u" not in text):  # the first is found much faster
        # No other escape makes a letter, so the only `"model"` there is must be the top level's own.
        place = _MODEL.match(text, only)
        if place is not None:
            return place.end(), place.end() + len(literal)
    places = (m for m in _MODEL.finditer(text) if text.startswith(literal, m.end()))
    first = list(islice(places, _CANDIDATES))
    for place in (*first, *deque(places, _CANDIDATES)):  # at either end is where people put it
        try:
            before = _HEAD.decode(text[: place.start()] + b'"":0}')
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        end = place.end() + len(literal)
        follow = _NEXT.match(text, end)
        if follow is None:  # `1` where `12` stands
            continue
        after = _Head() if follow[1] == b"}" else _HEAD.decode(b"{" + text[follow.end() :])
        if before.model is not msgspec.UNSET or after.model is not msgspec.UNSET:
            raise BodyError("the body has two `model` fields", "model")
        return place.end(), end
    if len(text) > _WALK_BYTES:
        raise BodyError("`model` cannot be told from its look-alikes; put it first", "model")
    return _walk(text)


def _walk(text: Body) -> tuple[int, int]:
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
        if _is_model(key[1]):
            if found is not None:
                raise BodyError("the body has two `model` fields", "model")
            found = key.end(), end
        follow = _NEXT.match(text, end)
        assert follow is not None
        if follow[1] == b"}":
            assert found is not None
            return found
        position = follow.end()


def _is_model(literal: bytes) -> bool:
    try:
        return _NAME.decode(literal) == "model"
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
