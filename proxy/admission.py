"""Who may come in: how many exchanges, and how many bytes of request bodies, are held at once."""

import asyncio

from proxy.errors import DRAINING, OVERLOADED, ProxyError

_RETRY = (("Retry-After", "1"),)


class Gate:
    """The process-wide bound. What was let in must be let out again, exactly once.

    *inflight* and *held* are the present numbers; *empty* is set while nothing is in flight;
    *leaving* says to balancers that they should look elsewhere, *draining* closes the gate for good.
    """

    def __init__(self, max_inflight: int, max_held: int) -> None:
        self.max_inflight = max_inflight
        self.max_held = max_held
        self.inflight = 0
        self.held = 0
        self.leaving = False
        self.draining = False
        self.empty = asyncio.Event()
        self.empty.set()

    def enter(self) -> None:
        """Let an exchange in. Raises `ProxyError` where there is no room, or no time left."""
        if self.draining:
            raise ProxyError(DRAINING, "The proxy is shutting down.", headers=_RETRY)
        if self.inflight >= self.max_inflight:
            raise ProxyError(OVERLOADED, "The proxy is at its limit of requests.", headers=_RETRY)
        if self.inflight == 0:
            self.empty.clear()
        self.inflight += 1

    def leave(self) -> None:
        """Let an exchange out that was let in."""
        self.inflight -= 1
        if self.inflight == 0:
            self.empty.set()

    def hold(self, count: int) -> None:
        """Make room for *count* more bytes of a body. Raises `ProxyError` where there is none."""
        self.check(count)
        self.held += count

    def check(self, count: int) -> None:
        """Raise `ProxyError` if there is no room for *count* more bytes.

        What is only announced takes no room: a head costs its sender nothing.
        """
        if self.held + count > self.max_held:
            message = "The proxy holds as many bytes of requests as it may."
            raise ProxyError(OVERLOADED, message, headers=_RETRY, close=True)

    def drop(self, count: int) -> None:
        """Give back the room of *count* bytes."""
        self.held -= count
