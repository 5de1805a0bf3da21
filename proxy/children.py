"""The processes that this one has started, and those that were left to it.

The first process of a container inherits whatever loses its parent there, and has to take note of its
end, or it stays in the table of processes for ever. What somebody of ours waits for must be left to
him: he would be told that it had ended well.
"""

import asyncio
import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

REAP_SECONDS = 1.0


class Children:
    """The processes that one process has started and waits for by itself, from `start` to `done`."""

    def __init__(self) -> None:
        self._own: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()  # they are started and waited for in threads

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
        """Start *command*; see `subprocess.Popen`, also for what is raised."""
        with self._lock:  # until it is known, nobody may take note of its end
            child = subprocess.Popen(command, **options)  # noqa: S603 - of the operator, or ourselves; no shell
            self._own.add(child)
        return child

    def done(self, child: "subprocess.Popen[bytes]") -> None:
        """Take note that *child* was waited for."""
        with self._lock:
            self._own.discard(child)

    def look_after(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reap, from now on, what was left to this process, if it is the first one."""
        if os.getpid() == 1:
            self._look(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._lock.acquire(blocking=False):  # else one is just being started: next time
            try:
                self._reap()
            finally:
                self._lock.release()
        loop.call_later(REAP_SECONDS, self._look, loop)

    def _reap(self) -> None:
        own = {child.pid for child in self._own}
        with suppress(ChildProcessError):  # there is none at all
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in own:
                    return  # who waits for it will see it soon; then come the others
                os.waitpid(ended.si_pid, os.WNOHANG)
