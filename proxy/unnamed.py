"""Which model answered where the request named none: a tap on the answer, for the log."""

import re

from proxy.errors import printable
from proxy.exchange import Exchange

SEEN_BYTES = 16 * 1024
"""Look through this much of an answer for its model."""

_MODEL = re.compile(rb'(?<!\\)"model"[ \t\r\n]*+:[ \t\r\n]*+"([^"\\]{1,256})"')


class Unnamed:
    """Notes in *exchange* the model that its answer names."""

    __slots__ = ("_exchange", "_seen")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._seen: bytes | None = b""

    def feed(self, data: bytes) -> None:
        """Look for the model in what has passed, until it is found, or not to be expected any more."""
        if self._seen is None:
            return
        self._seen += data[: SEEN_BYTES - len(self._seen)]
        found = _MODEL.search(self._seen)
        if found is not None:
            self._exchange.model = printable(found[1].decode("utf-8", "replace"))
        if found is not None or len(self._seen) == SEEN_BYTES:
            self._seen = None
