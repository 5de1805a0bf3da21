"""Watch an event stream go by, without touching a byte of it (sans I/O).

`Tap.feed` is given every piece of the body as it passes and keeps two facts: whether the stream
stands between two events, so that something may be said there, and whether its terminal marker
was seen, without which an end is a cut. Line ends may be LF, CRLF or CR, mixed, and split
anywhere (WHATWG HTML section 9.2.6).
"""

import re

import msgspec

from proxy.dialects import Ending

HELD_BYTES = 1024 * 1024
"""How much of an unfinished event is kept to look for its marker; of a longer one, the beginning."""

# An event ends with an empty line. Atomic, so that CRLF is never taken for two line ends.
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)+")
_TAIL = 3  # bytes that may hold the beginning of a blank line

_DONE = re.compile(rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])data: ?\[DONE\]")
_MARKERS = {
    Ending.CHAT: _DONE,
    Ending.DONE: _DONE,
    Ending.MESSAGES: re.compile(
        rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])event: ?message_stop[ \t]*(?:[\r\n]|$)"
    ),
    Ending.RESPONSES: re.compile(
        rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])event: ?response\.(?:completed|incomplete|failed)[ \t]*(?:[\r\n]|$)"
    ),
}
_FINISH = re.compile(rb'"finish_reason"[ \t]*:[ \t]*"')
_DATA = re.compile(rb"(?:^(?:\xef\xbb\xbf)?|[\r\n])data: ?([^\r\n]*)")


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
    there was none yet.
    """

    __slots__ = ("_ending", "_held", "_size", "_tail", "between", "finished", "over")

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._held: list[bytes] = []  # the beginning of the event that is arriving
        self._size = 0
        self._tail = b""  # its last bytes, which may begin a blank line
        self.between = True
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
        end = 0
        window = self._tail + data
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
            self.finished = _DONE.search(b"".join(self._held)) is not None
        return self.finished

    def _hold(self, data: bytes, window: bytes) -> None:
        """Keep *data* of an event that is not complete, as far as there is room for it."""
        self.between = False
        self._tail = window[-_TAIL:]
        if self._size < HELD_BYTES:
            self._held.append(data[: HELD_BYTES - self._size])
            self._size += len(data)

    def _look(self, events: bytes) -> None:
        """Look for the terminal marker in *events*."""
        ending = self._ending
        if ending is Ending.NONE or self.over:
            return
        self.over = _MARKERS[ending].search(events) is not None
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
