"""Watch an event stream go by, without touching a byte of it (sans I/O).

`Tap.feed` is given every piece of the body as it passes and keeps two facts: whether the stream
stands between two events, so that something may be said there, and whether its terminal marker
was seen, without which an end is a cut. Line ends may be LF, CRLF or CR, mixed, and split
anywhere (WHATWG HTML section 9.2.6).
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import msgspec

from proxy.dialects import Ending

HELD_BYTES = 1024 * 1024
"""How much of an unfinished event is kept to look for its marker; of a longer one, the beginning."""

# An event ends with an empty line. Atomic, so that CRLF is never taken for two line ends.
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)+")
TAIL = 3
"""So many bytes may hold the beginning of an empty line."""

_DONE = ((b"data:", b"[DONE]", re.compile(b"")),)
_NAME_ENDS = re.compile(rb"[ \t]*+(?:[\r\n]|$)")
_MARKERS = {
    Ending.CHAT: _DONE,
    Ending.DONE: _DONE,
    Ending.MESSAGES: ((b"event:", b"message_stop", _NAME_ENDS),),
    Ending.RESPONSES: tuple(
        (b"event:", b"response." + how, _NAME_ENDS)
        for how in (b"completed", b"incomplete", b"failed")
    ),
}
"""The field, how its value begins, and what must follow. Each is found by its value, which is many
times faster than looking at every line.
"""
_FINISH = re.compile(rb'"finish_reason"[ \t]*:[ \t]*"')
_DATA = re.compile(rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])data: ?([^\r\n]*)")


_ERROR = re.compile(
    rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])event: ?error[ \t]*(?:[\r\n]|$)"
    rb'|(?<!\\)"error"[ \t]*:(?![ \t]*null)|(?<!\\)"object"[ \t]*:[ \t]*"error"'
)
"""What an event has in it by which an upstream says, inside a 200, that it has failed."""
_NAMED = re.compile(rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])event: ?error[ \t]*(?:[\r\n]|$)")
_FIELD = re.compile(rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])(?:data|event)(?:[:\r\n]|$)")
"""What an event has in it that is more than comments."""


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_CHUNK = msgspec.json.Decoder(_Chunk)


class Tap:
    """What is known of one event stream so far.

    *finished*: an end now would be an end, because the marker of its *ending* was seen. *over*:
    nothing can follow any more. The two differ where a choice's `finish_reason` is all there is:
    usage, `[DONE]` or another choice may still come. *between*: the last byte ended an event, or
    there was none yet. *failed*: an event said that the upstream has failed, which is an end too.
    """

    __slots__ = ("_ending", "_held", "_size", "_tail", "between", "failed", "finished", "over")

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._held: list[bytes] = []  # the beginning of the event that is arriving
        self._size = 0
        self._tail = b""  # its last bytes, which may begin a blank line
        self.between = True
        self.failed = False
        self.finished = False
        self.over = False

    @property
    def checked(self) -> bool:
        """Return whether an end without the terminal marker is a cut."""
        return self._ending is not Ending.NONE

    def feed(self, data: bytes) -> None:
        """Take note of *data*, the next piece of the body."""
        if self.between:
            if data.endswith(b"\n\n"):  # nearly always: whole events, written by themselves
                self._look(data)
                return
            data = data.lstrip(b"\r\n")  # more empty lines end nothing
            if not data:
                return
        window = self._tail + data
        found = window.rfind(b"\n\n")
        end = found + 2 if found >= 0 else 0
        if b"\r" in window:
            for blank in _BLANK.finditer(window):
                end = blank.end()
        if end:
            cut = end - len(self._tail)
            self._look(b"".join([*self._held, data[:cut]]))
            self._held, self._size, self._tail = [], 0, b""
            data = data[cut:]
            self.between = True
            window = data = data.lstrip(b"\r\n")
        if data:
            self._hold(data, window)

    def closes(self) -> bool:
        """Return whether an end here is an end; `[DONE]` needs no empty line behind it for that."""
        if not self.finished and self._ending in (Ending.CHAT, Ending.DONE):
            self.finished = _is_marked(b"".join(self._held), Ending.DONE)
        return self.finished or self.failed

    def _hold(self, data: bytes, window: bytes) -> None:
        """Keep *data* of an event that is not complete, as far as there is room for it."""
        self.between = False
        self._tail = window[-TAIL:]
        if self._size < HELD_BYTES:
            self._held.append(data[: HELD_BYTES - self._size])
            self._size += len(data)

    def _look(self, events: bytes) -> None:
        """Look for the terminal marker in *events*."""
        ending = self._ending
        if events.rfind(b"error") >= 0 and _ERROR.search(events):  # half the time of `in`
            self.failed = self.failed or any(_failure(one) is not None for one in _events(events))
        if ending is Ending.NONE or self.over:
            return
        self.over = _is_marked(events, ending)
        if self.over:
            self.finished = True
        elif ending is Ending.CHAT and (self.finished or _FINISH.search(events)):
            self._look_for_reasons(events)

    def _look_for_reasons(self, events: bytes) -> None:
        """Take note of which choices finish and which go on: with several, one ends before another."""
        for event in _BLANK.split(events):
            try:
                choices = _CHUNK.decode(b"\n".join(_DATA.findall(event))).choices
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if choices:
                self.finished = all(choice.finish_reason for choice in choices)


def _is_marked(events: bytes, ending: Ending) -> bool:
    """Return whether a line of *events* is the marker of *ending*."""
    for field, value, follows in _MARKERS[ending]:
        at = events.rfind(value)  # from the end, where it stands if anywhere
        while at >= 0:
            begin = at - len(field) - (events[at - 1 : at] == b" ")
            first = begin == 0 or (begin == 3 and events.startswith(b"\xef\xbb\xbf"))
            if (
                begin >= 0
                and events.startswith(field, begin)
                and (first or events[begin - 1] in b"\r\n")
                and follows.match(events, at + len(value))
            ):
                return True
            at = events.rfind(value, 0, at)
    return False


def ends(body: bytes, start: int = 0) -> Iterator[int]:
    """Yield where each event in *body* ends, of those whose empty line stands behind *start*."""
    if b"\r" in body:
        for blank in _BLANK.finditer(body, start):
            yield blank.end()
        return
    at = body.find(b"\n\n", start)  # many times faster
    while at >= 0:
        end = at + 2
        while body.startswith(b"\n", end):
            end += 1
        yield end
        at = body.find(b"\n\n", end)


def data_of(body: bytes) -> tuple[list[bytes], bytes]:
    """Return the data of every whole event in *body*, and what is left behind the last one."""
    begin = 0
    found = []
    for end in ends(body):
        found.append(b"\n".join(_DATA.findall(body[begin:end])))
        begin = end
    return found, body[begin:]


def has_event(body: bytes) -> bool:
    """Return whether *body*, the beginning of a stream, holds a whole event; comments are none."""
    return next(_events(body), None) is not None


def error_in(body: bytes) -> int | None:
    """Return the status that stands for the error which is the first event of *body*, None where the
    first event is none.
    """
    event = next(_events(body), None)
    if event is None or not _ERROR.search(event):
        return None
    said = _failure(event)
    if said is None:
        return None
    words = " ".join(str(said.get(name) or "") for name in ("code", "type", "status")).lower()
    number = re.search(r"(?<![0-9])[45][0-9]{2}(?![0-9])", words)
    if number is not None:
        return int(number[0])
    if any(word in words for word in ("rate_limit", "quota", "resource_exhausted")):
        return 429
    if "overloaded" in words:
        return 529
    return 400 if any(word in words for word in _CALLERS) else 500


_CALLERS = ("invalid", "not_found", "permission", "authentication", "context_length", "too_large")
"""What stands in an error that nobody else would answer otherwise."""


def _events(body: bytes) -> Iterator[bytes]:
    """Yield each whole event of *body*."""
    begin = 0
    for end in ends(body):
        event = body[begin:end]
        begin = end
        if _FIELD.search(event):
            yield event


def _failure(event: bytes) -> dict[str, Any] | None:
    """Return what *event* says of the failure of its upstream, None where it says of none: it is the
    whole that has failed, not some part of it, such as the call of a tool.
    """
    said: Any = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = msgspec.json.decode(b"\n".join(_DATA.findall(event)))
    if not isinstance(said, dict):
        return {} if _NAMED.search(event) else None
    response = said.get("response")
    for one in (said, response if isinstance(response, dict) else {}):
        if isinstance(one.get("error"), dict):
            return dict(one["error"])
    if said.get("object") == "error" or _NAMED.search(event):
        return said
    return None
