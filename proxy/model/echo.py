"""Put the name that was asked for back into an answer's top-level `model` (sans I/O).

The bytes around it stay what they are: the value is cut out and another one is put in its place, in
a plain answer, and in each event that has one.
"""

import re

from proxy.model.body import BodyError, find_in_answer, splice
from proxy.sse import TAIL, ends

PLAIN_BYTES = 4 * 1024 * 1024
"""Keep a plain answer up to this size until it is complete, but for blank lines before it; a longer one
passes as it is.
"""
EVENT_BYTES = 1024 * 1024
"""Keep an event up to this size."""

_DATA = re.compile(rb"(?:^|(?<=[\r\n]))data:[ \t]*+(\{[^\r\n]*)")
_USUAL = b"data: {"  # all that most events have before their only line goes on
_BOM = b"\xef\xbb\xbf"  # may begin a stream, and nothing else


class Echo:
    """One answer in which *model* is to stand; *stream* says that it is an event stream."""

    __slots__ = ("_begun", "_kept", "_model", "_passing", "_searched", "_stream")

    def __init__(self, model: str, *, stream: bool) -> None:
        self._model = model
        self._stream = stream
        self._kept = bytearray()
        self._searched = 0
        self._begun = False  # an event has passed
        self._passing = False  # what comes now is too long to be kept

    def feed(self, data: bytes) -> bytes:
        """Take the next *data* of the answer; return what may pass now."""
        if self._passing and not self._stream:
            return data
        if not self._stream and not self._kept:  # blank lines say that somebody is still at work
            begun = data.lstrip(b" \t\r\n")
            self._kept += begun
            blank = data[: len(data) - len(begun)]
            return blank + self._pass_long()
        self._kept += data
        return self._events() if self._stream else self._pass_long()

    def _pass_long(self) -> bytes:
        """Return what is kept of a plain answer, if that is too much."""
        if len(self._kept) <= PLAIN_BYTES:
            return b""
        self._passing = True
        return self._take(len(self._kept))

    def rest(self) -> bytes:
        """Return what was kept, at the end of the answer, or where it broke off."""
        whole = self._take(len(self._kept))
        return whole if self._stream or not whole else self._named(whole)

    def _events(self) -> bytes:
        """Return the whole events that are there, each with the name put in."""
        passed = []
        begin = 0
        kept = bytes(self._kept)
        for end in ends(kept, self._searched):
            passed.append(self._event(kept[begin:end]))
            begin = end
        del self._kept[:begin]
        if self._passing or _is_long(self._kept):
            self._passing = True
            passed.append(self._take(max(0, len(self._kept) - TAIL)))
        self._searched = max(0, len(self._kept) - TAIL)
        return b"".join(passed)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._kept[:count])
        del self._kept[:count]
        return taken

    def _event(self, event: bytes) -> bytes:
        first, passing = not self._begun, self._passing
        self._begun, self._passing = True, False
        if passing or b'"model"' not in event or _is_long(event):
            return event
        if event.startswith(_USUAL) and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
            at = len(_USUAL) - 1
            return event[:at] + self._named(event[at:-2]) + b"\n\n"
        if first and event.startswith(_BOM):
            return _BOM + _DATA.sub(self._line, event[len(_BOM) :])
        return _DATA.sub(self._line, event)

    def _line(self, line: re.Match[bytes]) -> bytes:
        before = line[0][: line.start(1) - line.start(0)]
        return before + self._named(line[1])

    def _named(self, text: bytes) -> bytes:
        """Return the JSON *text* with our name in it; as it is, where it is none or has none."""
        try:
            found = find_in_answer(text)
        except BodyError:
            return text
        if found.model is None:
            return text
        return b"".join(splice(text, found, self._model))


def _is_long(event: bytes | bytearray) -> bool:
    """Return whether *event* is too long to be kept. The line ends around it do not count: where they
    are cut is chance.
    """
    return len(event) > EVENT_BYTES and len(event.strip(b"\r\n")) > EVENT_BYTES
