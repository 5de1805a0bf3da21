"""Find members of a JSON text of any size of which only both ends were kept (sans I/O).

What stands between is never parsed. That a member is one of the outermost object is not found by
counting brackets, among which strings may stand: an end from a member on, with the opening put
before it again, is a whole text where that is so, and none where it is not. The same holds of a
beginning up to a member, with the closing put behind.
"""

from collections import deque
from collections.abc import Iterator

END_BYTES = 64 * 1024
"""So much is kept of either end."""
TRIES = 8
"""So many places of a name are tried at most, of each end."""


_EMPTY: deque[bytes] = deque(maxlen=0)


class Ends:
    """Both ends of what is added, all of it where that is no more than the two."""

    __slots__ = ("_cut", "_head", "_left", "_size", "_tail")

    def __init__(self) -> None:
        self._head: list[bytes] = []
        self._left = END_BYTES  # room for the head
        self._tail: deque[bytes] = _EMPTY  # until there is one
        self._size = 0  # of the tail
        self._cut = False

    def add(self, data: bytes) -> None:
        """Add *data* behind what there is."""
        if self._left:
            part = data if len(data) <= self._left else data[: self._left]
            self._head.append(part)
            self._left -= len(part)
            data = data[len(part) :]
        if data:
            if len(data) > END_BYTES:
                data = data[-END_BYTES:]
                self._cut = True
            if not self._size:
                self._tail = deque()
            self._tail.append(data)
            self._size += len(data)
            while self._size - len(self._tail[0]) >= END_BYTES:
                self._size -= len(self._tail.popleft())
                self._cut = True

    def whole(self) -> bytes | None:
        """Return all that was added, None where something between was not kept."""
        return None if self._cut else b"".join([*self._head, *self._tail])

    @property
    def head(self) -> bytes:
        """Return the beginning."""
        return b"".join(self._head)

    @property
    def tail(self) -> bytes:
        """Return the end of what is longer than its beginning."""
        return b"".join(self._tail)[-END_BYTES:]


def endings(tail: bytes, name: bytes, openings: tuple[bytes, ...]) -> Iterator[bytes]:
    """Yield what may be a whole text, of the end of one: from each place of the member *name* on, the last one
    first, behind each of the *openings*.
    """
    quoted = b'"%b"' % name
    at = tail.rfind(quoted)
    for _ in range(TRIES):
        if at < 0:
            return
        if tail[at - 1 : at] != b"\\":
            rest = tail[at:]
            for opening in openings:
                yield opening + rest
        at = tail.rfind(quoted, 0, at)


def beginnings(head: bytes, name: bytes, closing: bytes) -> Iterator[bytes]:
    """Yield what may be a whole text, of the beginning of one: up to each end of an object behind the
    first place of the member *name*, with the *closing* behind.
    """
    end = head.find(b'"%b"' % name)
    if end < 0:
        return
    for _ in range(TRIES):
        end = head.find(b"}", end) + 1
        if not end:
            return
        yield head[:end] + closing
