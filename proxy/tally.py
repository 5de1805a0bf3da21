"""What an answer says that it used, read from its bytes as they pass: a tap, which holds nothing up (sans I/O).

A stream costs two searches a piece: of what passes only the few events are kept that say something, and
they are read when the answer is over. Of a plain answer its two ends are kept, unpacked where it comes packed.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, get_type_hints

import msgspec

from proxy import sse
from proxy.errors import ProxyError, is_good, printable
from proxy.exchange import Exchange
from proxy.headers import Headers, has_model, is_plain
from proxy.members import Ends, beginnings, endings
from proxy.usage import Counts, Usage, cost_of, counted, others_of, tools_of
from proxy.wire.coding import Unpacker

LOOKED_AT = 64
"""By so much of its beginning it is seen whether an answer is a stream; white space may come before."""
BATCH_BYTES = 8 * 1024
"""Events are searched when there are so many: that is several times faster than one by one."""
KEPT = 4
"""So many of the last events are kept that have usage in them: some vendors repeat it, in parts."""

FREE_BYTES = 128 * 1024 * 1024
"""So much is unpacked of an answer, however little it is packed: zeros of an embedding are packed to a thousandth."""

_DIALECTS = frozenset(
    {
        "chat", "completions", "fim", "embeddings", "responses", "messages", "rerank", "moderations",
        "images", "audio", "gemini",
    }
)  # fmt: skip
"""Whose answers say what they used."""
_COHERE = "/v2/chat"
"""Cohere's own form, which goes by path, has no dialect here."""
_PACKED = {b"gzip": "gzip", b"x-gzip": "gzip", b"deflate": "deflate"}

_BLANKS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_ENDS = (b"\n\n", b"\r\n\r\n")
_LINE_ENDS = (b"", b"\r", b"\n")
_REASONS = (b'eason":"', b'eason": "')
"""How the reason for an end begins: finish_reason, stop_reason, and Google's."""
_NONE = (b":null", b": null")
_MODEL = re.compile(rb'"(?:model|modelVersion)"\s*:\s*"[^"\\]*"')
_OPENINGS = (b"{", b'{"response":{', b"[{")
"""What may stand around a member that tells: nothing more, an event of Responses, a list of Gemini's."""
Tree = dict[str, Any]


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    finishReason: str | None = None
    usage: Tree | None = None


class _Inner(msgspec.Struct, gc=False):
    """What may tell something in an answer, or inside an event."""

    usage: Tree | None = None
    model: str | None = None
    service_tier: str | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None
    status: str | None = None
    incomplete_details: Tree | None = None


class _Told(_Inner, gc=False):
    """What may tell something in an answer or an event."""

    usageMetadata: Tree | None = None
    meta: Tree | None = None
    timings: Tree | None = None
    message: _Inner | str | None = None
    response: _Inner | str | None = None
    delta: _Inner | str | None = None
    x_groq: _Inner | None = None
    choices: list[_Choice] = []
    candidates: list[_Choice] = []
    modelVersion: str | None = None


_TOLD = msgspec.json.Decoder(_Told)
_SEVERAL = msgspec.json.Decoder(list[_Told])
_RAW = msgspec.json.Decoder(msgspec.Raw)
_RAWS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_TYPES = get_type_hints(_Told)
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Tally:
    """Reads along one answer of *dialect*; *unpacker* is for one that comes packed, and where *readable* is
    false, nothing can be had of it.
    """

    __slots__ = (
        "_before",
        "_dialect",
        "_first",
        "_held",
        "_kept",
        "_last",
        "_lost",
        "_readable",
        "_recent",
        "_size",
        "_stream",
        "_unpacker",
        "_usual",
    )

    def __init__(
        self, dialect: str, unpacker: Unpacker | None = None, *, readable: bool = True
    ) -> None:
        self._dialect = dialect
        self._unpacker = unpacker
        self._readable = readable
        self._stream: bool | None = None  # not known yet
        self._usual = False  # a stream that comes as it is, and stands between two events
        self._held = Ends()  # a plain answer, or of a stream the event that is arriving
        self._last = b""  # its last bytes, which may begin an empty line
        self._recent: list[bytes] = []  # events that have not been searched
        self._size = 0
        self._before = b""  # those that were searched last
        self._first = b""  # the first event that says something
        self._kept: deque[bytes] = deque(maxlen=KEPT)
        self._lost = False  # there was an event that could not be read

    def feed(self, data: bytes) -> None:
        """Take note of *data*, the next piece."""
        if self._usual and data.endswith(_ENDS):  # nearly always: whole events, by themselves
            self._recent.append(data)
            self._size += len(data)
            if self._size > BATCH_BYTES:
                self._search()
        elif self._readable:
            self._take(data)

    def usage(self, *, whole: bool) -> Usage:
        """Return what the answer has said, now that it is over, *whole* or broken off."""
        reading = _Reading(self._dialect)
        read = self._readable
        if self._stream:
            if rest := self._held.whole():
                self._recent.append(rest + b"\n\n")
            self._search()
            begun = self._dialect == "messages"  # there the first event has counts, too
            last = self._end()
            for event in (*([self._first] if begun else []), *self._kept):
                reading.take_event(event)
            if last not in self._kept:
                reading.take_event(last)
            if reading.model is None and not begun:
                reading.take_event(self._first)
            read = read and not (self._lost and not reading.told)
        elif (text := self._held.whole()) is not None:
            read = read and (not text or reading.take(text))
        else:
            for text in (*_whole_up_to(self._held.head), *_whole_from(self._held.tail)):
                reading.take(text)
            read = read and bool(reading.told)
        return reading.usage(partial=not whole, unread=whole and not read)

    # Inside

    def _take(self, data: bytes) -> None:
        """Do what `feed` does with whatever it is."""
        if self._unpacker is None:
            self._add(data)
            return
        try:
            for piece in self._unpacker.feed(data):
                self._add(piece)
        except ProxyError:
            self._readable = False

    def _add(self, data: bytes) -> None:
        """Take *data*, unpacked."""
        if self._stream is None:
            if before := self._held.head:
                data, self._held = before + data, Ends()
            self._stream = sse.begins(data if len(data) < LOOKED_AT else data[:LOOKED_AT])
            if self._stream is not None and data.startswith(sse.BOM):
                data = data[len(sse.BOM) :]
        if self._stream:
            self._split(data)
        else:
            self._held.add(data)

    def _split(self, data: bytes) -> None:
        """Look at what *data* ends of the events of a stream, and hold what it begins."""
        window = self._last + data
        begun = self._held.whole()
        if begun is None and (end := next(sse.ends(window), 0)):  # a long event is over
            self._held.add(data[: end - len(self._last)])
            self._keep_ends()
            begun, self._held, self._last = b"", Ends(), b""
            data = window = window[end:]
        end = _last_end(window)
        if end and begun is not None:
            cut = end - len(self._last)
            self._recent.append(begun + data[:cut] if begun else data[:cut])
            self._size += cut + len(begun)
            if self._size > BATCH_BYTES:
                self._search()
            self._held = Ends()
            data = window = data[cut:]
        if data:
            self._held.add(data)
        self._last = window[-sse.TAIL :]
        self._usual = not data and self._unpacker is None

    def _keep_ends(self) -> None:
        """Keep what an event says that is too long to be kept."""
        text = next(_whole_from(self._held.tail), None)
        if text is None:
            self._lost = True
        else:
            self._kept.append(b"data: %b\n\n" % text)

    def _search(self) -> None:
        """Keep what the events say that have come since it was last searched for."""
        if not self._recent:
            return
        events = b"".join(self._recent)
        self._before = (
            (self._before + events)[-2 * BATCH_BYTES :] if len(events) < BATCH_BYTES else events
        )
        self._recent, self._size = [], 0
        if not self._first:
            self._first = _first_of(events)
        at = events.rfind(b'usage"')
        if at >= 0 and events.startswith(_NONE, at + 6):  # as OpenAI has it in all but the last
            at = max(events.rfind(b'usage":{'), events.rfind(b'usage": {'))
        if at < 0 and self._dialect == "gemini":
            at = events.rfind(b'usageMetadata"')
        if at >= 0:
            self._kept.append(_around(events, at))

    def _end(self) -> bytes:
        """Return the event that says why the stream has ended, nothing where none does."""
        for reason in _REASONS:
            at = self._before.rfind(reason)
            if at >= 0:
                return _around(self._before, at)
        return b""


def _first_of(events: bytes) -> bytes:
    """Return the first of *events* that has an object in it: it may be the only one that names the model."""
    begin = 0
    for end in sse.ends(events):
        event = events[begin:end]
        begin = end
        if b"{" in event:
            return event
    return b""


def _around(events: bytes, at: int) -> bytes:
    """Return the event, of *events*, that *at* is in."""
    blanks = _BLANKS if b"\r" in events else _BLANKS[:1]
    found = (events.rfind(blank, 0, at) for blank in blanks)
    begin = max(found) + 1  # the rest of the line ends changes nothing
    nexts = [end for blank in blanks if (end := events.find(blank, at)) >= 0]
    return events[begin : min(nexts, default=len(events))] + b"\n\n"


def _last_end(window: bytes) -> int:
    """Return where the last event of *window* ends that ends there, 0 where none does."""
    if b"\r" not in window:
        return window.rfind(b"\n\n") + 2 if b"\n\n" in window else 0
    return max(sse.ends(window), default=0)


def _whole_from(tail: bytes) -> Iterator[bytes]:
    """Yield a text with each member that tells something at the *tail* of one."""
    tail = tail.rstrip()
    for name in (b"model", b"usage", b"usageMetadata", b"modelVersion"):
        for text in endings(tail, name, _OPENINGS):
            if _is_whole(text):
                yield text
                break


def _whole_up_to(head: bytes) -> Iterator[bytes]:
    """Yield a text with each member that tells something at the *head* of one."""
    model = _MODEL.search(head)
    if model is not None and _is_whole(text := head[: model.end()] + b"}"):
        yield text
    for name in (b"usage", b"usageMetadata"):
        for text in beginnings(head, name, b"}"):
            if _is_whole(text):
                yield text
                break


def _is_whole(text: bytes) -> bool:
    with suppress(*_ERRORS):
        _RAW.decode(text)
        return True
    return False


class _Reading:
    """What was read so far: *told*, the vendor's usage object, of whose repeated numbers the last ones count."""

    __slots__ = ("_dialect", "_reason", "_tier", "model", "told")

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._reason: str | None = None
        self.model: str | None = None
        self._tier: str | None = None
        self.told: Tree = {}

    def take_event(self, event: bytes) -> None:
        """Take what an *event* says."""
        begin = event.find(b"data:")
        end = event.find(b"\n", begin)
        alone = begin >= 0 and event.find(b"data:", end) < 0
        if alone and event[begin - 1 : begin] in _LINE_ENDS and self.take(event[begin + 5 : end]):
            return  # nearly always
        for data in sse.data_of(event)[0]:
            self.take(data)

    def take(self, text: bytes) -> bool:
        """Take what the answer or event *text* says; return whether it could be read."""
        try:
            one = _TOLD.decode(text)
        except _ERRORS:
            with suppress(*_ERRORS):
                for one in _otherwise(text):
                    self._add(one)
                return True
            return False
        self._add(one)
        return True

    def usage(self, *, partial: bool, unread: bool) -> Usage:
        """Return what it all comes to."""
        told = self.told
        reason, model, tier = self._reason, self.model, self._tier
        counts, conflict = counted(told, self._dialect) if told else (Counts(), False)
        if told and tier is None:
            named = told.get("service_tier") or told.get("serviceTier")
            tier = named if isinstance(named, str) else None
        return Usage(
            counts=counts,
            finish_reason=None if reason is None else printable(reason),
            model=None if model is None else printable(model),
            service_tier=None if tier is None else printable(tier),
            cost=cost_of(told) if told else None,
            tools=tools_of(told) if told else {},
            others=others_of(told, self._dialect) if "iterations" in told else (),
            conflict=conflict,
            partial=partial,
            unread=unread,
        )

    def _add(self, one: _Told) -> None:
        for inner in (one.message, one.response, one.delta, one.x_groq):
            if isinstance(inner, _Inner):
                self._add_inner(inner)
        if one.choices:
            self._reason = one.choices[0].finish_reason or self._reason
            self._add_usage(one.choices[-1].usage)  # Moonshot's
        if one.candidates:
            self._reason = one.candidates[0].finishReason or self._reason
        self.model = one.modelVersion or self.model
        self._add_usage(one.usageMetadata)
        self._add_inner(one)
        if one.meta is not None and isinstance(billed := one.meta.get("billed_units"), dict):
            self.told["billed_units"] = billed  # Cohere's, of a ranking
        if one.timings is not None and "cache_n" in one.timings:  # llama.cpp's
            self.told.setdefault("cached_tokens", one.timings["cache_n"])

    def _add_inner(self, one: _Inner) -> None:
        self.model = one.model or self.model
        self._tier = one.service_tier or self._tier
        self._reason = one.stop_reason or one.finish_reason or self._reason
        if self._dialect == "responses":
            why = one.incomplete_details.get("reason") if one.incomplete_details else None
            self._reason = (why if isinstance(why, str) else one.status) or self._reason
        self._add_usage(one.usage)

    def _add_usage(self, usage: Tree | None) -> None:
        if usage is None:
            return
        if None in usage.values():
            usage = {name: value for name, value in usage.items() if value is not None}
        if self.told:
            self.told.update(usage)
        else:
            self.told = usage


def _otherwise(text: bytes) -> Iterable[_Told]:
    """Return what *text* says that is a list, as Gemini's is where nobody asked for events, or has something in
    it that is not as it should be, which then is as if it were not there.
    """
    with suppress(msgspec.ValidationError):
        return _SEVERAL.decode(text)
    told = _Told()
    for name, raw in _RAWS.decode(text).items():
        if name in _TYPES:
            with suppress(*_ERRORS):
                setattr(told, name, msgspec.json.decode(raw, type=_TYPES[name]))
    return [told]


def tally_of(exchange: Exchange, by_path: bool, status: int, headers: Headers) -> Tally | None:
    """Return what reads along the answer of *status* and *headers* to *exchange*, None where nothing of use
    can be said in it: what is fetched, as by path nearly all is, was counted when it was made.
    """
    if exchange.method != "POST" or not is_good(status) or not has_model(headers):
        return None
    dialect = exchange.dialect.name if exchange.dialect is not None else ""
    if by_path:
        dialect = "chat" if exchange.path.endswith(_COHERE) else ""
    if dialect not in _DIALECTS:
        return None
    if is_plain(headers):
        return Tally(dialect)
    coding = headers.first[b"content-encoding"].strip().lower()
    if coding in _PACKED:
        return Tally(dialect, Unpacker(_PACKED[coding], FREE_BYTES))
    return Tally(dialect, readable=False)
