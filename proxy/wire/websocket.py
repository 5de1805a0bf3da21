"""Watch the frames of a WebSocket go by, without touching a byte of them (sans I/O)."""

_CLOSE = 0x8


class Frames:
    """What is known of one direction of a WebSocket (RFC 6455 section 5.2).

    *closed*: a Close frame has begun, after which this side says nothing more. *between*: the last
    byte ended a frame, or there was none yet.
    """

    __slots__ = ("_head", "_left", "closed")

    def __init__(self) -> None:
        self._head = bytearray()
        self._left = 0  # bytes of the present frame's payload that have not passed
        self.closed = False

    @property
    def between(self) -> bool:
        """Return whether something may be said here that is a frame of its own."""
        return not self._left and not self._head

    def feed(self, data: bytes) -> None:
        """Take note of *data*, the next bytes that pass."""
        at, end = 0, len(data)
        head = self._head
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            head.append(data[at])
            at += 1
            if len(head) >= 2 and len(head) == _head_length(head[1]):
                self.closed = self.closed or head[0] & 0x0F == _CLOSE
                self._left = _payload_length(head)
                head.clear()


def _head_length(second: int) -> int:
    """Return how long a frame's head is, of which *second* is the second byte."""
    length = second & 0x7F
    more = 8 if length == 127 else 2 if length == 126 else 0
    return 2 + more + (4 if second & 0x80 else 0)


def _payload_length(head: bytearray) -> int:
    length = head[1] & 0x7F
    if length == 126:
        return int.from_bytes(head[2:4], "big")
    if length == 127:
        return int.from_bytes(head[2:10], "big")
    return length
