"""Watch an event stream go by, without touching a byte of it (sans I/O).

`Tap.feed` is given every piece of the body as it passes and keeps two facts: whether the stream
stands between two events, so that something may be said there, and whether its terminal marker
was seen, without which an end is a cut. Line ends may be LF, CRLF or CR, mixed, and split
anywhere (WHATWG HTML section 9.2.6).
"""

import re

import msgspec

from proxy.dialects import Ending

HELD_BYTES = 64 * 1024
"""How much of an unfinished event is kept to look for its marker; of a longer one, the beginning."""

# An event ends with an empty line. Atomic, so that CRLF is never taken for two line ends.
_BLANK = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)+")
_TAIL = 3  # bytes that may hold the beginning of a blank line

_DONE = re.compile(rb"(?:^|[\r\n])data: ?\[DONE\]")
_MARKERS = {
    Ending.CHAT: _DONE,
    Ending.DONE: _DONE,
    Ending.MESSAGES: re.compile(rb"(?:^|[\r\n])event: ?message_stop[ \t]*(?:[\r\n]|$)"),
    Ending.RESPONSES: re.compile(
        rb"(?:^|[\r\n])event: ?response\.(?:completed|incomplete|failed)[ \t]*(?:[\r\n]|$)"
    ),
}
_FINISH = re.compile(rb'"finish_reason"[ \t]*:[ \t]*"')
_DATA = re.compile(rb"(?:^|[\r\n])data: ?([^\r\n]*)")


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

    __slots__ = ("_ending", "_held", "_overflow", "between", "finished", "over")

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._held = b""
        self._overflow = b""
        self.between = True
        self.finished = False
        self.over = False

    @property
    def checked(self) -> bool:
        """Return whether an end without the terminal marker is a cut."""
        return self._ending is not Ending.NONE

    def feed(self, data: bytes) -> None:
        """Take note of *data*, the next piece of the body, which is never empty."""
        if self._overflow:
            data = self._skip(data)
        held = self._held + data if self._held else data
        if held.endswith(b"\n\n"):  # nearly always: whole events, written by themselves
            complete, self._held = held, b""
        else:
            cut = 0
            for blank in _BLANK.finditer(held):
                cut = blank.end()
            complete, self._held = held[:cut], held[cut:]
        self.between = not self._held and not self._overflow
        if complete and not self.over:
            self._look(complete)
        if len(self._held) > HELD_BYTES:
            if not self.over:
                self._look(self._held[:HELD_BYTES])
            self._overflow = self._held[-_TAIL:]
            self._held = b""

    def _skip(self, data: bytes) -> bytes:
        """Pass over the rest of an event too long to hold; return what follows it in *data*."""
        joined = self._overflow + data
        blank = _BLANK.search(joined)
        if blank is None:
            self._overflow = joined[-_TAIL:]
            return b""
        self._overflow = b""
        return joined[blank.end() :]

    def _look(self, events: bytes) -> None:
        """Look for the terminal marker in *events*."""
        ending = self._ending
        if ending is Ending.NONE:
            return
        self.over = _MARKERS[ending].search(events) is not None
        if self.over:
            self.finished = True
        elif ending is Ending.CHAT and (self.finished or _FINISH.search(events)):
            self._look_for_reasons(events)

    def _look_for_reasons(self, events: bytes) -> None:
        """Take note of which choices finish and which go on: with several, one ends before another."""
        for data in _DATA.finditer(events):
            try:
                choices = _CHUNK.decode(data[1]).choices
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if choices:
                self.finished = all(choice.finish_reason for choice in choices)
