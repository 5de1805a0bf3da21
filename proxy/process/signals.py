"""What signals say, and those that come before anybody is there to heed them, which would end the process."""

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

EARLY = (signal.SIGHUP, signal.SIGUSR2)
"""Have the file read anew, and the workers replaced, once we serve."""


class Early:
    """What is done about signals while we start: they are noted, and nothing else."""

    def __init__(self) -> None:
        self.came: set[int] = set()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came.add(number)


def be_patient() -> None:
    """Let no signal but those that mean it end this process, from now on.

    Not by ignoring them: a command that is run for a credential would inherit that.
    """
    early = Early()
    for number in EARLY:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, early)


def came(number: int) -> bool:
    """Return whether the signal *number* has come while we were starting."""
    handler = signal.getsignal(number)
    return isinstance(handler, Early) and number in handler.came


class Orders:
    """What signals say to a process that serves: to *stop* (then *stopped* is called), and a second time, *now*;
    to read the file *again*; to *renew* the workers.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stopped: Callable[[], object] = lambda: None
    ) -> None:
        self.stop, self.now, self.again, self.renew = (asyncio.Event() for _ in range(4))
        self._stopped = stopped
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        if came(signal.SIGHUP):
            self.again.set()
        loop.add_signal_handler(signal.SIGHUP, self.again.set)
        loop.add_signal_handler(signal.SIGUSR2, self.renew.set)

    def _end(self) -> None:
        (self.now if self.stop.is_set() else self.stop).set()
        self._stopped()
