"""Signals that come before anybody is there to heed them, and would end the process by default."""

import signal
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
