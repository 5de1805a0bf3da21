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
from proxy.shapes import Said, gathered, meaning, said

PARTIAL_BYTES = 1024 * 1024
"""Keep this much of an unfinished event to look for its marker; of a longer one, the beginning."""

BOM = b"\xef\xbb\xbf"
"""May begin a stream; in the middle of one it is a part of whatever it stands before."""
_ODD = BOM[:1] + b"\r\n"
"""Begins what is not, or not only, an event."""

# An event ends with an empty line. Atomic, so that CRLF is never taken for two line ends.
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)+")
TAIL = 3
"""Keep this many bytes, which may hold the beginning of an empty line."""

_SPEECH = {
    Ending.NONE: (),
    Ending.CHAT: (b"[DONE]",),
    Ending.DONE: (b"[DONE]",),
    Ending.MESSAGES: (b"message_stop",),
    Ending.RESPONSES: (b"response.completed", b"response.incomplete", b"response.failed"),
}
"""What ends a stream: data of this text, or an event that is called so, by its field `event` or, as some
vendors and all SDKs have it, by the `type` in its data. Each is found by its text, which is many times
faster than looking at every line.
"""
_NAME_ENDS = re.compile(rb"[ \t]*+(?:[\r\n]|$)")
_FINISH = re.compile(rb'"finish_reason"[ \t]*:[ \t]*"')
_SECOND, _SECOND_SPACED = b'"index":1', b'"index": 1'
"""What a chunk has in it that speaks for another choice than the first (or for a second tool): where there
are several, the second is among them. Both are found in less time than an expression; some vendors
write one chunk in this way, and another in that.
"""
_NO_CHOICE: set[int] = set()
_FIRST_CHOICE = {0}
"""Spare each stream sets of its own, as long as there is one choice: nobody adds to these."""
_DATA = re.compile(rb"(?:^|[\r\n])data: ?([^\r\n]*)")
_APART = re.compile(rb"(?:^|[\r\n])error: ?([^\r\n]*)")
"""An error in a field of its own, which the standard does not know: GPUStack's."""

_ERROR = re.compile(
    rb"(?:^|[\r\n])(?:event: ?error[ \t]*(?:[\r\n]|$)|error:)"
    rb'|(?<!\\)"error"[ \t]*:(?![ \t]*null)|(?<!\\)"(?:object|type)"[ \t]*:[ \t]*"error"'
)
"""What an event has in it by which an upstream says, inside a 200, that it has failed."""
_NAMED = re.compile(rb"(?:^|[\r\n])event: ?error[ \t]*(?:[\r\n]|$)")
_FIELD = re.compile(rb"(?:^|[\r\n])(?:data|event|error)(?:[:\r\n]|$)")
"""What an event has in it that is more than comments."""


class _Choice(msgspec.Struct):
    finish_reason: str | None = None
    index: int | None = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None


class _Typed(msgspec.Struct):
    type: str = ""


_CHUNK = msgspec.json.Decoder(_Chunk)
_TYPED = msgspec.json.Decoder(_Typed)


class Tap:
    """What is known of one event stream so far.

    *finished*: an end now would be an end, because the marker of its *ending* was seen. *over*:
    nothing can follow any more. The two differ where a choice's `finish_reason` is all there is:
    usage, `[DONE]` or another choice may still come. *between*: the last byte ended an event, or
    there was none yet; *quiet*: and no line feed can still belong to it. *spoke*: an event passed
    that was none of failure. *failed*: one said that the upstream has failed, which is an end too.
    """

    __slots__ = (
        "_begun",
        "_ending",
        "_foreign",
        "_going_on",
        "_partial",
        "_reasons",
        "_several",
        "_size",
        "_tail",
        "_usual",
        "_words",
        "between",
        "failed",
        "finished",
        "over",
        "quiet",
        "spoke",
    )

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._words = _SPEECH[ending]
        self._begun: bytes | None = b""  # what came of a BOM, until it is known whether it is one
        self._usual = False  # between events, with nothing to be seen to but the next ones
        self._partial: list[bytes] = []  # the beginning of the event that is arriving
        self._size = 0
        self._tail = b""  # its last bytes, which may begin a blank line
        self._foreign: bool | None = (
            None  # no event was a chunk of a chat, though some were objects
        )
        self._several = False  # there are other choices than the first
        self._going_on = _NO_CHOICE  # choices that were seen, and have not finished
        self._reasons = _NO_CHOICE  # those that have
        self.between = True
        self.quiet = True
        self.spoke = False
        self.failed = False
        self.finished = False
        self.over = False

    @property
    def checked(self) -> bool:
        """Return whether an end without the terminal marker is a cut."""
        return self._ending is not Ending.NONE

    @property
    def foreign(self) -> bool:
        """Return whether what passed is in a form of the vendor's own, whose marker nobody knows."""
        return self._foreign is True

    def feed(self, data: bytes) -> None:
        """Take note of *data*, the next piece of the body."""
        if self._usual and data.endswith(b"\n\n"):  # nearly always: whole events, by themselves
            self._look(data)
            return
        if data:
            self._take(data)

    def closes(self) -> bool:
        """Return whether an end here is an end; `[DONE]` needs no empty line behind it for that."""
        if not self.finished and self._ending in (Ending.CHAT, Ending.DONE):
            self.finished = _is_marked(b"".join(self._partial), Ending.DONE)
        return self.finished or self.failed

    def _take(self, data: bytes) -> None:
        """Do what `feed` does with whatever it is."""
        if self.between and data.endswith(b"\n\n") and data[0] not in _ODD:
            self._begun = None
            self._look(data)
            self.quiet, self._usual = True, self.spoke
            return
        last = data[-1:]
        if self._begun is not None:
            data = self._begin(data)
        if self.between:
            data = data.lstrip(b"\r\n")  # more empty lines end nothing
        if data:
            self._split(data)
        self.quiet = self.between and last != b"\r"
        self._usual = self.quiet and self.spoke

    def _begin(self, data: bytes) -> bytes:
        """Take the first *data* of all; return it without its BOM."""
        data = (self._begun or b"") + data
        if len(data) < len(BOM) and BOM.startswith(data):
            self._begun = data
            self.between = False
            return b""
        self._begun = None
        self.between = True
        return data.removeprefix(BOM)

    def _split(self, data: bytes) -> None:
        """Look at what *data* ends of the events, and hold what it begins."""
        window = self._tail + data
        found = window.rfind(b"\n\n")
        end = found + 2 if found >= 0 else 0
        if b"\r" in window:
            for blank in _BLANK.finditer(window):
                end = blank.end()
        if end:
            cut = end - len(self._tail)
            self._look(b"".join([*self._partial, data[:cut]]))
            self._partial, self._size, self._tail = [], 0, b""
            data = data[cut:]
            self.between = True
            window = data = data.lstrip(b"\r\n")
        if data:
            self._keep(data, window)

    def _keep(self, data: bytes, window: bytes) -> None:
        """Keep *data* of an event that is not complete, as far as there is room for it."""
        self.between = False
        self._tail = window[-TAIL:]
        if self._size < PARTIAL_BYTES:
            self._partial.append(data[: PARTIAL_BYTES - self._size])
            self._size += len(data)

    def _look(self, events: bytes) -> None:
        """Look for the terminal marker in *events*."""
        ending = self._ending
        if events.rfind(b"error") >= 0 and _ERROR.search(events):  # half the time of `in`
            self._look_for_failure(events)
        if not self.spoke and not self.failed:
            self.spoke = _FIELD.search(events) is not None
        if self.over:
            return
        for words in self._words:
            if events.rfind(words) >= 0 and _is_marked(events, ending):
                self.over = self.finished = True
                return
        if ending is not Ending.CHAT:
            return
        if (
            self._several
            or self._reasons
            or _FINISH.search(events)
            or events.rfind(_SECOND) >= 0
            or events.rfind(_SECOND_SPACED) >= 0
        ):
            self._look_for_reasons(events)
        elif not self._going_on:
            self._look_for_reasons(events, first=True)

    def _look_for_failure(self, events: bytes) -> None:
        """Take note of whether one of *events* says that all has failed, and of what was said before."""
        if self.failed:
            return
        for event in _events(events):
            if _failure(event) is not None:
                self.failed = True
                return
            self.spoke = True

    def _look_for_reasons(self, events: bytes, *, first: bool = False) -> None:
        """Take note of which choices finish and which go on: with several, one ends before another, and
        of those that were seen the last one ends the stream. One that has finished stays so. Where it
        is but the *first* choice that is wanted, the first chunk that has one is looked at.
        """
        begin = 0
        for end in ends(events):
            data = b"\n".join(_DATA.findall(events[begin:end]))
            begin = end
            choices = self._choices(data)
            for choice in choices:
                self._note(choice.index or 0, ended=bool(choice.finish_reason))
            if first and choices:
                if events.rfind(_SECOND) < 0 and events.rfind(_SECOND_SPACED) < 0:
                    break
                first = False
        self.finished = bool(self._reasons) and not self._going_on

    def _choices(self, data: bytes) -> list[_Choice]:
        """Return the choices of the chunk in *data*, and take note of whether it is one."""
        try:
            choices = _CHUNK.decode(data).choices
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []
        if choices is not None:
            self._foreign = False
        elif self._foreign is None and data.strip(b" \t{}") and b'"choices"' not in data:
            self._foreign = True
        return choices or []

    def _note(self, index: int, *, ended: bool) -> None:
        """Take note that the choice of this *index* goes on, or has *ended*."""
        if index == 0 and not self._several:  # nearly always
            ended = ended or bool(self._reasons)
            self._reasons = _FIRST_CHOICE if ended else _NO_CHOICE
            self._going_on = _NO_CHOICE if ended else _FIRST_CHOICE
            return
        if not self._several:
            self._several = True
            self._reasons, self._going_on = set(self._reasons), set(self._going_on)
        if ended:
            self._reasons.add(index)
            self._going_on.discard(index)
        elif index not in self._reasons:
            self._going_on.add(index)


def _is_marked(events: bytes, ending: Ending) -> bool:
    """Return whether one of *events* is the marker of *ending*."""
    field = b"data:" if ending in (Ending.CHAT, Ending.DONE) else b"event:"
    for words in _SPEECH[ending]:
        at = events.rfind(words)  # from the end, where it stands if anywhere
        while at >= 0:
            if _marks(events, at, words, field):
                return True
            at = events.rfind(words, 0, at)
    return False


def _marks(events: bytes, at: int, words: bytes, field: bytes) -> bool:
    """Return whether *words*, which stand *at*, are what *field* says, or the `type` of the data of an event."""
    begin = at - len(field) - (events[at - 1 : at] == b" ")
    if begin < 0 or not events.startswith(field, begin):
        return field == b"event:" and _has_type(events, at, words)
    if begin > 0 and events[begin - 1] not in b"\r\n":
        return False
    return field == b"data:" or _NAME_ENDS.match(events, at + len(words)) is not None


def _has_type(events: bytes, at: int, words: bytes) -> bool:
    """Return whether the event in which *words* stand, *at*, has them for the `type` of its data."""
    if events[at - 1 : at] != b'"' or events[at + len(words) : at + len(words) + 1] != b'"':
        return False
    begin = 0
    for end in ends(events):
        if end > at:
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                data = b"\n".join(_DATA.findall(events[begin:end]))
                return _TYPED.decode(data).type.encode() == words
            return False
        begin = end
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


def begins(body: bytes) -> bool | None:
    """Return whether what begins with *body* is a stream at all, whatever its label says: no line of
    one begins with a brace or a bracket, as JSON does. None where that is not to be seen yet.
    """
    if len(body) < len(BOM) and BOM.startswith(body):
        return None
    first = body.removeprefix(BOM).lstrip()[:1]
    return first not in (b"{", b"[") if first else None


def has_event(body: bytes) -> bool:
    """Return whether *body*, the beginning of a stream, holds a whole event, comments being none; or
    whether none will come, because it is no stream.
    """
    return begins(body) is False or next(_events(body.removeprefix(BOM)), None) is not None


def first_error(body: bytes) -> Said | None:
    """Return what the error says which is the first event of *body*, None where the first event is none."""
    event = next(_events(body.removeprefix(BOM)), None)
    return None if event is None or not _ERROR.search(event) else _failure(event)


def status_of(error: Said) -> int:
    """Return the status that stands for *error*."""
    words = " ".join(error.codes)
    number = re.search(r"(?<![0-9])[45][0-9]{2}(?![0-9])", words)
    if number is not None:
        return int(number[0])
    if any(word in words for word in ("rate_limit", "quota", "resource_exhausted")):
        return 429
    if "overloaded" in words:
        return 529
    callers = any(word in words for word in _CALLERS) or meaning(400, error) is not None
    return 400 if callers else 500


_CALLERS = (
    "invalid",
    "validation",
    "not_found",
    "permission",
    "authentication",
    "context_length",
    "too_large",
)
"""Blames the caller: nobody else would answer an error with one of these words otherwise."""


def _events(body: bytes) -> Iterator[bytes]:
    """Yield each whole event of *body*."""
    begin = 0
    for end in ends(body):
        event = body[begin:end]
        begin = end
        if _FIELD.search(event):
            yield event


def _failure(event: bytes) -> Said | None:
    """Return what *event* says of the failure of its upstream, None where it says of none: it is the
    whole that has failed, not some part of it, such as the call of a tool.
    """
    apart = _APART.findall(event)
    if apart:
        return said(b"\n".join(apart))
    tree: Any = None
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        tree = msgspec.json.decode(b"\n".join(_DATA.findall(event)))
    for one in tree if isinstance(tree, list) else [tree]:
        error = _error_of(one) if isinstance(one, dict) else None
        if error is not None:
            return gathered(error)
    return gathered(tree) if _NAMED.search(event) else None


def _error_of(data: dict[str, Any]) -> dict[str, Any] | None:
    """Return what in *data* says that its upstream has failed, None where nothing does."""
    response = data.get("response")
    for place in (data, response if isinstance(response, dict) else {}):
        error = place.get("error")
        if isinstance(error, dict):
            return error
        if error:
            return place
    return data if "error" in (data.get("object"), data.get("type")) else None
