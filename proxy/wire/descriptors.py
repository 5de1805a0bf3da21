"""Descriptors: how many this process may have open, how many exchanges fit into that, and what gives way
when they run short.

A new descriptor has the lowest number that is free (POSIX), so its number says how many are open, at
least: nobody has to count, and what a library or a command has open counts as well.
"""

import errno
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress

RESERVE = 64
"""Keep this many free of exchanges: for files, commands, and whoever has to be sent away."""
IDLE = 16 * 1024
"""Ask for room for this many connections on which nothing is asked."""
FURTHER = 1024
MOST = 2**20
BATCH = 32
"""Have this many idle connections give way at a time; they are closed a moment later."""
MOMENT_SECONDS = 0.05
HARDLY = 8
"""Blame a lack of descriptors for what failed while no more than this many are free."""
EVERY_SECONDS = 1.0
"""Tell the log of a lack no more often than this."""

_LACK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

Giver = Callable[[int], int]
"""Closes up to so many connections that are idle, who has been so for longest first; returns how many."""


class Descriptors:
    """Those of this process. *tell* is told, as an event of the log, that they have run out.

    *before* is the soft limit as it was before anybody has raised it, for those whom we start:
    programs that use `select` must not get a descriptor above 1023.
    """

    def __init__(
        self,
        tell: Callable[..., object],
        before: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = _soft()
        self.before = before or self.limit
        self.givers: list[Giver] = []
        self._tell = tell
        self._clock = clock
        self._ours: int | None = None
        self._given = 0
        self._given_at = 0.0
        self._missed = 0
        self._told_at = -EVERY_SECONDS

    def fitting(self, max_inflight: int) -> int:
        """Raise the soft limit to what *max_inflight* exchanges take, if it may be; return how many fit:
        each takes two, beside what was open when this was asked for the first time.
        """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = min(2 * max_inflight + IDLE + FURTHER, MOST)
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with suppress(OSError, ValueError):  # some systems have another bound of their own
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        self.limit = _soft()
        if self._ours is None:
            self._ours = _open()
        return max(1, (self.limit - self._ours - RESERVE) // 2)

    def is_short(self, descriptor: int) -> bool:
        """Return whether *descriptor*, a new one, is of the reserve."""
        if descriptor < self.limit - RESERVE:
            self._given = 0  # who has given way is closed by now
            return False
        return True

    def is_scarce(self, descriptor: int) -> bool:
        """Return whether with *descriptor*, a new one, half of the reserve is in use."""
        return descriptor >= self.limit - RESERVE // 2

    def make_room(self) -> bool:
        """Have connections give way that are idle; return whether there will be room for one more."""
        now = self._clock()
        if self._given == 0 or now - self._given_at > MOMENT_SECONDS:
            self._given = next((count for give in self.givers if (count := give(BATCH))), 0)
            self._given_at = now
        if self._given == 0:
            return False
        self._given -= 1
        return True

    def lacked(self, error: BaseException) -> bool:
        """Return whether it was for want of descriptors, or the like, that *error* was raised."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in _LACK:
                return True
            cause = cause.__cause__
        return self._has_hardly_any()

    def miss(self, why: str) -> None:
        """Take note that somebody was sent away, or has to wait, because of *why*."""
        self._missed += 1
        now = self._clock()
        if now - self._told_at >= EVERY_SECONDS:
            self._tell("out_of_descriptors", limit=self.limit, count=self._missed, reason=why)
            self._missed, self._told_at = 0, now

    def restore(self, process: int) -> None:
        """Give *process*, which we have started, the soft limit that we had ourselves."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError, AttributeError):  # it has ended; or only Linux can
            resource.prlimit(process, resource.RLIMIT_NOFILE, (self.before, hard))

    def _has_hardly_any(self) -> bool:
        try:
            probe = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return True
        os.close(probe)
        return probe >= self.limit - HARDLY


def _soft() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else soft


def _open() -> int:
    """Return how many descriptors are open."""
    for place in ("/proc/self/fd", "/dev/fd"):
        with suppress(OSError):
            found = os.listdir(place)  # noqa: PTH208 - a count, and no files
            return len(found) - 1  # but for the one that has just looked
    return RESERVE
