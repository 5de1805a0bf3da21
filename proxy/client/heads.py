"""Request heads, and those among them that have come before.

A client sends the same head with each of its requests, but for the number in its Content-Length. A
head that the parser has read once is known by its bytes: when it comes again, nothing of it has to
be parsed, or found out, a second time. Only equality counts here. What is not equal, or not read
in one piece together with its whole body, is for the parser.
"""

import re

from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11

from proxy.cache import Cache
from proxy.exchange import LEARNT_BYTES, Learnt
from proxy.headers import Headers

HEADS_BYTES = 6 * 2**20
"""Keep this much of what is known of heads with a body at one address, and as much again of those without."""
KNOWN_BYTES = 4 * 1024
"""Keep a head of up to this length."""
COPIES, FIELD_BYTES = 3, 500
"""Count a head that is kept this many times, and for each of its headers this much besides."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*+([0-9]{1,12})\r\n", re.IGNORECASE)


class Head:
    """The head of a request, which may be that of many requests: all but the length of their bodies.

    *last*: no other request may follow on the connection. *websocket*: it asks for one, among what else
    it would change to. *learnt* is what was found out about it, by those who did, for the next time;
    they answer for its being true then.
    """

    __slots__ = (
        "chunked",
        "headers",
        "http10",
        "last",
        "learnt",
        "message",
        "method",
        "path",
        "query",
        "websocket",
    )

    def __init__(self, message: RawRequestMessage) -> None:
        self.message = message
        self.method = message.method
        self.path, _, self.query = message.path.partition("?")
        self.headers = Headers(message.raw_headers)
        self.http10 = message.version < HttpVersion11
        self.chunked = bool(message.chunked)
        # HTTP/1.0 knows no Upgrade, nor does who does not name it in Connection (RFC 9110 section 7.8).
        upgrades = bool(message.upgrade)
        offered = self.headers.every(b"upgrade") if upgrades and not self.http10 else []
        self.websocket = b"websocket" in _tokens(offered)
        # After a chunked request, aiohttp's parser makes its last trailer a header of the next
        # request on the connection (3.14.5), so there must be no next one. Nor is there one behind an
        # Upgrade, taken or not: somebody in front may read what follows otherwise than we do.
        self.last = message.should_close or self.chunked or upgrades or self.http10
        self.learnt = Learnt()


def _tokens(values: list[bytes]) -> list[bytes]:
    """Return the items of a header that is a list, written in *values*, in lower case."""
    return [one.strip(b" \t").lower() for value in values for one in value.split(b",")]


class Heads:
    """The heads of one address that are known."""

    def __init__(self) -> None:
        self._known: Cache[bytes, Head] = Cache(HEADS_BYTES)
        self._bare: Cache[bytes, Head] = Cache(HEADS_BYTES)  # those without a Content-Length

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """Return the head and the body that *data* is, where it is one whole request with a known head."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return None
        said = _LENGTH.search(data, 0, end)
        if said is None:
            head = self._bare.get(data) if end == len(data) else None
            return None if head is None else (head, b"")
        if end + int(said[1]) != len(data):
            return None
        head = self._known.get(data[: said.start(1)] + data[said.end(1) : end])
        return None if head is None else (head, data[end:])

    def learn(self, data: bytes, message: RawRequestMessage) -> tuple[Head, int | None]:
        """Return the head that *message* was parsed from, at the beginning of *data*, and how many bytes
        it has with its body, None where that cannot be told.
        """
        head = Head(message)
        end = data.find(b"\r\n\r\n") + 4
        # A line for each header, and the first and the last one: else it is not what was parsed.
        whole = data.startswith(b"%b " % message.method.encode("ascii")) and end >= 4
        if head.last or not whole or data.count(b"\n", 0, end) != len(head.headers) + 2:
            return head, None
        said = _LENGTH.search(data, 0, end)
        lengths = head.headers.every(b"content-length")
        if lengths != ([] if said is None else [said[1]]):
            return head, None
        known, key = self._bare, data[:end]
        if said is not None:
            known, key = self._known, data[: said.start(1)] + data[said.end(1) : end]
            end += int(said[1])
        if len(key) > KNOWN_BYTES:
            return head, end
        before = known.get(key)
        if before is not None:
            return before, end
        known.keep(key, head, COPIES * len(key) + FIELD_BYTES * len(head.headers) + LEARNT_BYTES)
        return head, end

    def forget(self) -> None:
        """Know none of them any more: what was learnt of them is not taken for true after a reload, but would
        keep an old snapshot, with its secrets, in memory.
        """
        self._known.clear()
        self._bare.clear()
