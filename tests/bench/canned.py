"""The canned upstream: it costs as little as Python can, so that it is not what is measured.

What a request asks for stands in its body: `"stream":true` for a stream, all events in one write;
with `pieces` in it, in writes of ten, with `burst`, in one each, without a pause; with `paced`, one event each 20 ms; with `idle`,
one event and no end. All else gets one JSON answer. It must never be used to learn what a client sent: it hardly looks.
"""

import argparse
import asyncio
import os
import re
import ssl
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import cast

import uvloop

EVENTS = 103
"""Of a stream: those with a word, the one that says `stop`, and `[DONE]`."""
BEAT_SECONDS = 0.02
"""Between two events of a paced stream: 50 a second."""
_SLOTS = 20
_EVENT_BYTES = 210
_LENGTH = re.compile(rb"ontent-[Ll]ength: ?(\d+)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: ?chunked", re.IGNORECASE)


def _padded(before: bytes, after: bytes, size: int) -> bytes:
    return before + b"x" * (size - len(before) - len(after)) + after


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_ANSWER = _padded(
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1750000000,"model":"m","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"',
    b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}',
    520,
)
PLAIN = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"x-request-id: req_canned\r\n\r\n%b" % (len(_ANSWER), _ANSWER)
)
_CHUNK_OF = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1750000000,"model":"m",'
    b'"choices":[{"index":0,"delta":'
)
EVENT = _chunk(
    _padded(_CHUNK_OF + b'{"content":"', b'"},"finish_reason":null}]}\n\n', _EVENT_BYTES)
)
_LAST = (
    _chunk(_CHUNK_OF + b'{},"finish_reason":"stop"}]}\n\n')
    + _chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"x-request-id: req_canned\r\n\r\n"
)
AT_ONCE = _HEAD + EVENT * (EVENTS - 2) + _LAST
PIECES = (_HEAD + EVENT, *[EVENT * 10] * ((EVENTS - 3) // 10), _LAST)
BURST = (_HEAD, *[EVENT] * (EVENTS - 2), _LAST)
"""The same again. So many writes cost the upstream more than they cost a fast proxy."""


class Pace:
    """Writes one event to each paced stream, one part of them after the other."""

    def __init__(self) -> None:
        self._slots: list[set[asyncio.Transport]] = [set() for _ in range(_SLOTS)]
        self._next = 0

    def add(self, transport: asyncio.Transport) -> int:
        """Begin with *transport*; return its slot."""
        self._next = (self._next + 1) % _SLOTS
        self._slots[self._next].add(transport)
        return self._next

    def remove(self, transport: asyncio.Transport, slot: int) -> None:
        """Be done with *transport*."""
        self._slots[slot].discard(transport)

    async def run(self) -> None:
        """Keep the beat for good; a beat that was missed is made up for."""
        due = monotonic()
        while True:
            for slot in self._slots:
                for transport in tuple(slot):
                    transport.write(EVENT)
                due = max(due + BEAT_SECONDS / _SLOTS, monotonic() - BEAT_SECONDS)
                await asyncio.sleep(max(0.0, due - monotonic()))


class Canned(asyncio.Protocol):
    """One connection. Pipelined requests are not expected, split ones are."""

    def __init__(self, pace: Pace, think: float) -> None:
        self._pace = pace
        self._think = think
        self._head = b""
        self._left = 0
        self._large = False
        self._slot: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._slot is not None:
            self._pace.remove(self._transport, self._slot)

    def data_received(self, data: bytes) -> None:
        if self._large:  # a large body is counted, not kept
            self._left -= len(data)
            if self._left <= 0:
                self._large = False
                self._answer(b"")
            return
        if self._head:
            data = self._head + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._head = data
            return
        length = _LENGTH.search(data, 0, end)
        if length is None and _CHUNKED.search(data, 0, end + 2):
            whole = data.endswith(b"0\r\n\r\n")
        else:
            self._left = end + 4 + (int(length[1]) if length else 0) - len(data)
            whole = self._left <= 0
            self._large = not whole and self._left > 65_536
        self._head = b"" if whole or self._large else data
        if whole:
            self._answer(data[end:])

    def _answer(self, body: bytes) -> None:
        if self._think:
            asyncio.get_running_loop().call_later(self._think, self._write, body)
        else:
            self._write(body)

    def _write(self, body: bytes) -> None:
        write = self._transport.write
        if b'"stream":true' not in body and b'"stream": true' not in body:
            write(PLAIN)
        elif b"paced" in body:
            write(_HEAD)
            self._slot = self._pace.add(self._transport)
        elif b"idle" in body:
            write(_HEAD + EVENT)
        elif b"burst" in body:
            self._each(BURST)
        elif b"pieces" in body:
            self._each(PIECES)
        else:
            write(AT_ONCE)

    def _each(self, pieces: tuple[bytes, ...]) -> None:
        """Give each piece to the kernel by itself: the loop would collect them, as it does with TLS."""
        if self._transport.get_extra_info("ssl_object") is not None:
            for piece in pieces:
                self._transport.write(piece)
            return
        number = self._transport.get_extra_info("socket").fileno()
        for at, piece in enumerate(pieces):
            try:
                sent = os.write(number, piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                return
            if sent < len(piece):
                self._transport.write(piece[sent:] + b"".join(pieces[at + 1 :]))
                return


async def _serve(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    pace = Pace()
    make = partial(Canned, pace, options.think)
    plain = await loop.create_server(make, "127.0.0.1", 0, backlog=4096)
    ports = [plain.sockets[0].getsockname()[1]]
    if options.certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.certificate)
        safe = await loop.create_server(make, "127.0.0.1", 0, backlog=4096, ssl=context)
        ports.append(safe.sockets[0].getsockname()[1])
    print(*ports, flush=True)
    await pace.run()


def main() -> None:
    """Serve until killed; print the port, and that of TLS if there is a certificate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--certificate", help="serve TLS too, with this file (key and chain)")
    parser.add_argument("--think", type=float, default=0.0, help="seconds before each answer")
    with suppress(KeyboardInterrupt):
        uvloop.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
