"""Step 5: who may come in, how much of us each may take, and what is told at the end.

`Admission.admit` stands around every road. The `Gate` bounds the whole process: how many exchanges, and how
many bytes of request bodies, are held at once. Further limits (of a key, of a route) are a `Limit`
each, in a list: such a one may refuse before the body is read, by who asks; and after the match, by
where it goes; it may let wait for either, and hears at the end what came of it.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Protocol, cast

from proxy.errors import DRAINING, OVERLOADED, ProxyError
from proxy.exchange import Exchange

_RETRY = (("Retry-After", "1"),)


class Limit(Protocol):
    """One limit. To wait for what it returns may last: a client that leaves meanwhile cancels that."""

    def enter(self, exchange: Exchange) -> Awaitable[None] | None:
        """Let *exchange* in, whose key is known, but not its body. Raises `ProxyError`; what was not let in
        is not settled.
        """

    def reserve(self, exchange: Exchange) -> Awaitable[None] | None:
        """Let *exchange*, whose route is known, go on. Raises `ProxyError`."""

    def settle(self, exchange: Exchange) -> None:
        """Take note that *exchange*, which was let in, is over, with all that it says of what was used."""


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

    def check(self, count: int) -> None:
        """Raise `ProxyError` if there is no room for *count* more bytes.

        What is only announced takes no room: a head costs its sender nothing.
        """
        if self.held + count > self.max_held:
            message = "The proxy holds as many bytes of requests as it may."
            raise ProxyError(OVERLOADED, message, headers=_RETRY, close=True)


class _Nothing:
    """What is awaited where there is nothing to wait for: a coroutine costs more, even one of Python's own
    iterators does.
    """

    __await__ = ().__iter__


_NOTHING = cast(Awaitable[None], _Nothing())


class Admitted:
    """One *exchange* that is let in, as long as it stands in `async with`, and what it holds of us."""

    __slots__ = ("_entered", "_gate", "_held", "_inside", "_limits", "exchange")

    def __init__(self, gate: Gate, limits: Sequence[Limit], exchange: Exchange) -> None:
        self._gate = gate
        self._limits = limits
        self._entered = 0  # so many of the limits have let it in
        self._held = 0
        self._inside = False
        self.exchange = exchange

    def __aenter__(self) -> Awaitable[None]:
        if self._limits:
            return self._enter()
        self._gate.enter()
        self._inside = True
        return _NOTHING

    def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None]:
        # Nothing here waits, so no cancellation can come between.
        if self._inside:
            self._gate.leave()
        if self._held:
            self.drop()
        if self._entered:
            self._settle()
        return _NOTHING

    def hold(self, count: int) -> None:
        """Make room for *count* more bytes of a body. Raises `ProxyError` where there is none."""
        self._gate.check(count)
        self._gate.held += count
        self._held += count

    def check(self, count: int) -> None:
        """Raise `ProxyError` if there is no room for *count* more bytes."""
        self._gate.check(count)

    def drop(self) -> None:
        """Give back the room of all bytes: the body is let go."""
        self._gate.held -= self._held
        self._held = 0

    def reserve(self) -> Awaitable[None]:
        """Go on, now that it is known where to, as soon as all limits allow. Raises `ProxyError`.

        Who waits is not in flight, and comes back in by the gate; the bytes of a body are held meanwhile.
        """
        return self._reserve() if self._limits else _NOTHING

    async def _reserve(self) -> None:
        for limit in self._limits:
            waits = limit.reserve(self.exchange)
            if waits is not None:
                self._gate.leave()
                self._inside = False
                await waits
                self._gate.enter()
                self._inside = True

    async def _enter(self) -> None:
        try:
            for limit in self._limits:
                waits = limit.enter(self.exchange)
                if waits is not None:
                    await waits
                self._entered += 1
            self._gate.enter()  # at last: who waits is not in flight
            self._inside = True
        except BaseException:
            self._settle()
            raise

    def _settle(self) -> None:
        for limit in self._limits[: self._entered]:
            limit.settle(self.exchange)
        self._entered = 0


class Admission:
    """Lets exchanges in, through *gate* and past each of *limits*."""

    def __init__(self, gate: Gate, limits: Sequence[Limit] = ()) -> None:
        self.gate = gate
        self.limits = limits

    def admit(self, exchange: Exchange) -> Admitted:
        """Return what *exchange* stands in, with `async with`, from when it is known who asks until nothing
        more is done for it.
        """
        return Admitted(self.gate, self.limits, exchange)
