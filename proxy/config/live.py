"""Secrets that change while we run: read anew when their file changes, asked for anew when it is time.

Files are looked at and commands run in threads of their own, off the loop. What is not good is not
taken: the last good value stays, and the log says why, without a word of what was read.
"""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.children import Children
from proxy.config.reading import Unset
from proxy.credentials import LiveSecret, is_presentable

POLL_SECONDS = 1.0
"""Look at a file this often: at its time, number and size, which works where nothing notifies."""
COMMAND_SECONDS = 30.0
OUTPUT_BYTES = 64 * 1024
"""Read this much of what a command prints: no header holds more."""
RETRY_SECONDS = 10.0

Tell = Callable[[str, "Live", str], None]
"""Is told what happened, to which secret, and why."""


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """A *secret* of an *upstream*, and how it is *read* (which raises `Unset`): when one of *files*
    changes, else as what the *command* prints, every *refresh* seconds.
    """

    secret: LiveSecret
    upstream: str = ""
    read: Callable[[], str] | None = None
    files: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    refresh: float | None = None


class Refresher:
    """Keeps all of *lives* fresh from `start` to `close`; *tell* is called from other threads, and so is
    *started*, with the number of each process that runs a command. Commands are *children* of this
    process.
    """

    def __init__(
        self,
        lives: Iterable[Live],
        tell: Tell,
        children: Children | None = None,
        started: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._lives = tuple(lives)
        self._tell = tell
        self._processes = children or Children()
        self._started = started
        self._untried = {
            live for live in self._lives if live.read is None and not live.secret.known
        }
        self._closing = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._starting = threading.Lock()

    def start(self) -> None:
        """Begin: one thread looks after all files, and one after each command."""
        files = [live for live in self._lives if live.read is not None]
        if files:
            self._spawn(lambda: self._follow_files(files))
        for live in self._lives:
            if live.read is None:
                self._spawn(lambda live=live: self._follow_command(live))  # type: ignore[misc]

    @property
    def tried(self) -> bool:
        """Return whether every command has run once."""
        return not self._untried

    def hand_on(self, lives: Iterable[Live]) -> None:
        """Give the values that we have to those of *lives* that are asked for in the same way."""
        known = {live.command: live.secret for live in self._lives if live.command}
        for live in lives:
            if live.command in known and not live.secret.known:
                live.secret.replace(known[live.command].reveal())

    def close(self) -> None:
        """End; a command that runs is killed."""
        self._closing.set()
        for live in self._lives:
            live.secret.stale.set()
        with self._starting:  # what is just being started is killed as well
            for child in tuple(self._children):
                _kill(child)

    def _spawn(self, run: Callable[[], None]) -> None:
        threading.Thread(target=run, name="credentials", daemon=True).start()

    def _follow_files(self, lives: list[Live]) -> None:
        seen: dict[Live, object] = {}
        while True:
            for live in lives:
                stamps = [_stamp(file) for file in live.files]
                if seen.get(live) != stamps:
                    seen[live] = stamps
                    assert live.read is not None
                    self._take(live, live.read)
            if self._closing.wait(POLL_SECONDS):
                return

    def _follow_command(self, live: Live) -> None:
        while not self._closing.is_set():
            good = self._take(live, lambda: self._run(live.command))
            self._untried.discard(live)
            live.secret.stale.clear()
            if self._closing.wait(min(RETRY_SECONDS, live.refresh or RETRY_SECONDS)):
                return
            if good:
                left = None if live.refresh is None else max(0.0, live.refresh - RETRY_SECONDS)
                live.secret.stale.wait(left)

    def _take(self, live: Live, read: Callable[[], str]) -> bool:
        """Take a new value, if it is a good one; return whether it is."""
        try:
            text = read()
            if not is_presentable(text):
                raise Unset("it is empty, or has a character that no header can hold")
        except Unset as unset:
            if not self._closing.is_set():
                self._tell("credential_kept", live, str(unset))
            return False
        if text != live.secret.reveal():
            known = live.secret.known
            live.secret.replace(text)
            self._tell("credential_changed", live, "" if known else "first value")
        return True

    def _run(self, command: tuple[str, ...]) -> str:
        """Return what *command* prints. Raises `Unset`, which quotes nothing that it printed."""
        name = Path(command[0]).name
        with self._starting:
            if self._closing.is_set():
                raise Unset(f"the command {name} is not run any more")
            try:
                child = self._processes.start(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # so that it can be killed with all that it has started
                )
            except (OSError, ValueError) as error:
                reason = (getattr(error, "strerror", None) or type(error).__name__).lower()
                raise Unset(f"the command {name} cannot be run: {reason}") from None
            self._children.add(child)
        self._started(child.pid)
        try:
            with child:
                try:
                    output = _output(child, COMMAND_SECONDS)
                except subprocess.TimeoutExpired:
                    raise Unset(
                        f"the command {name} took over {COMMAND_SECONDS:g} seconds"
                    ) from None
                finally:
                    if child.returncode is None:
                        _kill(child)
        finally:
            self._children.discard(child)
            self._processes.done(child)
        if len(output) > OUTPUT_BYTES:
            raise Unset(f"the command {name} printed more than a credential can be")
        if child.returncode != 0:
            raise Unset(f"the command {name} failed with status {child.returncode}")
        try:
            return output.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise Unset(f"the command {name} did not print UTF-8 text") from None


def _output(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return what *child* prints until it ends, or until it is too much. Raises `TimeoutExpired`."""
    assert child.stdout is not None
    deadline = time.monotonic() + seconds
    output = b""
    ready = select.poll()
    ready.register(child.stdout, select.POLLIN)
    while len(output) <= OUTPUT_BYTES:
        left = deadline - time.monotonic()
        if left <= 0 or not ready.poll(left * 1000):
            raise subprocess.TimeoutExpired(child.args, seconds)
        piece = os.read(child.stdout.fileno(), OUTPUT_BYTES)
        if not piece:
            child.wait(max(0.0, deadline - time.monotonic()))
            break
        output += piece
    return output


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill *child* and what it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _stamp(file: str) -> object:
    """Return what differs when *file* was written anew, or replaced."""
    with suppress(OSError, ValueError):
        stat = Path(file).stat()
        return stat.st_mtime_ns, stat.st_ino, stat.st_size, stat.st_dev
    return None
