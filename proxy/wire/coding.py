"""Unpack a request body that comes in a content coding (RFC 9110 section 8.4), within bounds (sans I/O).

The model is found in the plain text of a body and put into it there, so what comes packed goes up
plain. A small packed body can be a huge plain one, and whoever sends it may want just that: nothing
here ever holds more than one piece of it.
"""

import re
import sys
import zlib
from collections.abc import Iterator
from typing import Protocol

from proxy.errors import BAD_REQUEST, REQUEST_TOO_LARGE, UNSUPPORTED_ENCODING, ProxyError
from proxy.headers import Headers

PIECE_BYTES = 64 * 1024
"""Unpack this much of a body in one step."""
FREE_BYTES = 1024 * 1024
"""Unpack this much even of very little."""
RATIO = 100
"""Unpack beyond that this many times the packed bytes: text is packed to a fifth, seldom to a twentieth."""
WINDOW_LOG = 23
"""Let zstd look back this far, 8 MiB, as RFC 9659 has it."""

_CODINGS = "gzip, deflate, zstd"
_KNOWN = {b"gzip": "gzip", b"x-gzip": "gzip", b"deflate": "deflate", b"zstd": "zstd"}
_SEPARATOR = re.compile(rb"[ \t]*,[ \t]*")


class _Inflater(Protocol):
    """One stream of a coding. *eof*: it is over, and *unused_data* is what came behind it."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Return the next bytes, with *data* as more of the stream; what it leaves over is kept."""


class _Zlib:
    """A stream of zlib's, which keeps for later what it was given too much of, as others do."""

    def __init__(self, window: int) -> None:
        self._inner = zlib.decompressobj(window)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _Deflate:
    """`deflate` is zlib's form (RFC 9110 section 8.4.1.2), and, of some senders, the bare stream."""

    def __init__(self) -> None:
        self._inner: _Zlib | None = None
        self._begun = b""

    @property
    def eof(self) -> bool:
        return self._inner is not None and self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return b"" if self._inner is None else self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if self._inner is None:
            self._begun += data
            if len(self._begun) < 2:
                return b""
            first, second = self._begun[:2]
            headed = first & 0x0F == 8 and first >> 4 <= 7 and (first << 8 | second) % 31 == 0
            self._inner = _Zlib(zlib.MAX_WBITS if headed else -zlib.MAX_WBITS)
            data, self._begun = self._begun, b""
        return self._inner.decompress(data, max_length)


class Unpacker:
    """Unpacks one body in *coding*: it is `feed` to it as it comes, and then at its `end`. It may be *free* bytes,
    however little it is packed.
    """

    def __init__(self, coding: str, free: int = FREE_BYTES) -> None:
        self._coding = coding
        self._free = free
        self._errors: tuple[type[Exception], ...] = (zlib.error,)
        self._inflater: _Inflater
        if coding == "gzip":
            self._inflater = _Zlib(16 + zlib.MAX_WBITS)
        elif coding == "deflate":
            self._inflater = _Deflate()
        else:
            self._inflater, error = _zstd()
            self._errors = (error,)
        self._packed = 0
        self._plain = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* unpacks to, in pieces. Raises `ProxyError`."""
        inflater = self._inflater
        self._packed += len(data)
        while not inflater.eof:
            try:
                piece = inflater.decompress(data, PIECE_BYTES)
            except self._errors:
                raise self._broken("is not valid") from None
            data = b""
            if not piece:
                break
            self._plain += len(piece)
            if self._plain > max(self._free, RATIO * self._packed):
                message = f"The request's body unpacks to over {RATIO} times its size."
                raise ProxyError(REQUEST_TOO_LARGE, message)
            yield piece
        if data or inflater.unused_data:
            raise self._broken("goes on behind its end as")

    def end(self) -> None:
        """Say that no more comes. Raises `ProxyError` where the body is not whole."""
        if not self._inflater.eof:
            raise self._broken("is cut short as")

    def _broken(self, what: str) -> ProxyError:
        return ProxyError(BAD_REQUEST, f"The request's body {what} {self._coding}.")


def unpacker_of(headers: Headers) -> Unpacker | None:
    """Return what unpacks the body behind *headers*, None where it is plain. Raises `ProxyError` for
    what cannot be read here: another coding, or several on top of each other.
    """
    if b"content-encoding" not in headers.first:
        return None
    told = b",".join(headers.every(b"content-encoding")).strip(b" \t").lower()
    codings = [one for one in _SEPARATOR.split(told) if one not in (b"", b"identity")]
    if not codings:
        return None
    if len(codings) == 1:
        coding = _KNOWN.get(codings[0])
        if coding is not None:
            return Unpacker(coding)
    raise _unsupported(f"A request's body is read plain, or in one of {_CODINGS}, once.")


def _zstd() -> tuple[_Inflater, type[Exception]]:
    """Return a new stream of zstd, and what it raises. Loaded here: few will ever need it."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        message = (
            "A request's body in zstd cannot be read here: install Trunkline with its extra "
            "`zstd`, or send the body in gzip, or plain."
        )
        raise _unsupported(message) from None
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    return zstd.ZstdDecompressor(options=options), zstd.ZstdError


def _unsupported(message: str) -> ProxyError:
    """Refuse a coding, and say which ones would do (RFC 9110 section 15.5.16)."""
    return ProxyError(UNSUPPORTED_ENCODING, message, headers=(("Accept-Encoding", _CODINGS),))
