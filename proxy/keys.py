"""Keys: what clients present to us, who they are, and which models they may ask for."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from hashlib import sha256
from hmac import compare_digest

from proxy.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Key:
    """One client's key: its *name* (never its text), the *digest* of it, and its rights.

    *models* are patterns over the name asked for, None for all; the key ends with the day
    *expires* (UTC).
    """

    name: str
    digest: bytes
    models: tuple[Pattern, ...] | None = None
    expires: date | None = None

    def may_ask(self, model: str) -> bool:
        """Return whether this key may ask for *model*."""
        return self.models is None or any(pattern.matches(model) for pattern in self.models)

    def may_ask_anything(self) -> bool:
        """Return whether no model is kept from this key, so that it need not name one."""
        return self.models is None or any(pattern.anything for pattern in self.models)

    def expired(self, now: datetime) -> bool:
        """Return whether the key's last day is over at *now*."""
        return self.expires is not None and now.astimezone(UTC).date() > self.expires


class KeyRing:
    """All keys of a snapshot, found by digest: ten thousand cost what one does."""

    __slots__ = ("_by_digest", "_by_text")

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._by_digest = {key.digest: key for key in keys}
        self._by_text: dict[bytes, Key] = {}  # those that were presented already

    def __len__(self) -> int:
        return len(self._by_digest)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_digest.values())

    def find(self, presented: bytes) -> Key | None:
        """Return the key whose text is *presented*.

        The text is hashed before anything looks at it (by a dictionary with its own secret, where it
        is known already), so the time taken says nothing about it.
        """
        known = self._by_text.get(presented)
        if known is not None:
            return known
        digest = sha256(presented).digest()
        key = self._by_digest.get(digest)
        if key is None or not compare_digest(key.digest, digest):
            return None
        self._by_text[presented] = key
        return key
