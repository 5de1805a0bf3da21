"""What was found out before and may be asked again: bounded in bytes, since it is strangers who fill it."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

ENTRY_BYTES = 256
"""Count this for an entry beside what is in it."""


class Cache(dict[K, V]):
    """Values by key, of *limit* bytes together at most: the oldest give way to the next one.

    It is asked as any dictionary is, at no further cost, and filled by `keep` alone.
    """

    __slots__ = ("_limit", "_sizes", "_total")

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._total = 0
        self._sizes: dict[K, int] = {}

    @property
    def total(self) -> int:
        """Return how many bytes are kept."""
        return self._total

    def keep(self, key: K, value: V, size: int) -> None:
        """Keep *value*, of *size* bytes together with its *key*; not where that alone is too much."""
        self.drop(key)
        size += ENTRY_BYTES
        if size > self._limit:
            return
        while self._total + size > self._limit:
            self.drop(next(iter(self)))
        self[key] = value
        self._sizes[key] = size
        self._total += size

    def drop(self, key: K) -> None:
        """Keep what is known as *key* no longer."""
        if self.pop(key, None) is not None:
            self._total -= self._sizes.pop(key)

    def clear(self) -> None:
        super().clear()
        self._sizes.clear()
        self._total = 0
