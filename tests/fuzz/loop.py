"""An event loop on which waiting takes no time.

What is written to a unix socket is there to be read at once. So when none is ready, nothing more
happens before the next timer rings: the clock jumps there.
"""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

BEGINNING = 1_000.0
DEADLOCK_SECONDS = 10.0
"""Real seconds, after which a loop without timers that nothing wakes is stuck for good."""


class _Selector(selectors.DefaultSelector):
    """Waits for what is there already; *skip* is told how much of the rest need not be waited for."""

    def __init__(self, skip: Callable[[float], None]) -> None:
        super().__init__()
        self._skip = skip

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            ready = super().select(DEADLOCK_SECONDS)
            if not ready:
                raise RuntimeError("nothing is ready, and no timer is set")
            return ready
        ready = super().select(0)
        if not ready and timeout > 0:
            self._skip(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose `time` is its own. What is raised in its callbacks is kept in *errors*."""

    def __init__(self) -> None:
        self._now = BEGINNING
        self.errors: list[dict[str, Any]] = []
        super().__init__(_Selector(self._skip))
        self.set_debug(
            False
        )  # to note where each callback comes from takes longer than all the rest
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def time(self) -> float:
        return self._now

    def _skip(self, seconds: float) -> None:
        self._now += seconds
