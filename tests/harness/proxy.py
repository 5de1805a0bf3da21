"""The proxy under test: inside this process through the same `serve()` as production, or as one of
its own, with every warning an error.
"""

import asyncio
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from proxy.config import load
from proxy.server import Running, serve

LOOK_SECONDS = 0.005
"""How often the log is looked at for a line that is waited for."""
LATE_SECONDS = 0.06
"""How late a line still belongs to what had been counted: an exchange that leaves two does so at once."""
EXACT_SECONDS = 0.002
"""How exactly a line tells when its exchange began."""


@dataclass
class Proxy:
    """A proxy that serves *file*: where, and what it has logged."""

    port: int
    log: Path
    file: Path
    running: Running | None = None
    process: asyncio.subprocess.Process | None = None
    stderr: Path | None = None
    _lines: list[dict[str, Any]] = field(default_factory=list)
    _read: int = 0
    _counted: list[tuple[int, int, float]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self) -> list[dict[str, Any]]:
        """Return what is in the log so far."""
        with self.log.open("rb") as log:
            log.seek(self._read)
            new = log.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        self._lines += [orjson.loads(line) for line in new.splitlines()]
        return [*self._lines]

    def records(self) -> list[dict[str, Any]]:
        """Return the lines of finished exchanges."""
        return [line for line in self.lines() if line["event"] == "exchange"]

    async def record(
        self, count: int = 1, seconds: float = 20.0, *, under_way: int = 0
    ) -> dict[str, Any]:
        """Wait for exactly *count* exchanges in the log; return the last one's line. Of those which are
        *under_way* yet, each may leave its line next.

        That there were no more of them is looked at once the proxy has ended, see `settled`: so nobody
        has to wait for a line that should not come.
        """
        await _until(lambda: len(self.records()) >= count, seconds)
        records = self.records()
        assert len(records) == count, records
        self._counted.append((count, under_way, time.time()))
        return records[-1]

    def settled(self) -> None:
        """Make sure that of what had begun when `record` counted, nothing more ended just after."""
        for count, under_way, at in self._counted:
            late = [line for line in self.records()[count:] if _belongs(line, at)]
            assert len(late) <= under_way, f"more than {count} exchanges: {late}"

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Return the lines that are called one of *names*."""
        return [line for line in self.lines() if line["event"] in names]

    async def event(self, *names: str, count: int = 1, seconds: float = 10.0) -> dict[str, Any]:
        """Wait for at least *count* lines that are called one of *names*; return the last one."""
        await _until(lambda: len(self.events(*names)) >= count, seconds)
        return self.events(*names)[-1]

    def tell(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.send_signal(number)

    def write(self, toml: str) -> None:
        """Put *toml* in the place of the file, in one step."""
        draft = self.file.with_suffix(".new")
        draft.write_text(toml)
        draft.replace(self.file)

    async def reload(self, toml: str | None = None) -> dict[str, Any]:
        """Have the process read its file anew, or *toml* in its place; return the line that says what
        became of it: `reloaded`, or `reload_failed`.
        """
        if toml is not None:
            self.write(toml)
        outcomes = ("reloaded", "reload_failed")
        known = len(self.events(*outcomes))
        self.tell(signal.SIGHUP)
        return await self.event(*outcomes, count=known + 1, seconds=20)


async def _until(holds: Callable[[], bool], seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(LOOK_SECONDS)


def _belongs(line: dict[str, Any], counted: float) -> bool:
    """Return whether the exchange of *line* had begun when it was *counted*, and ended just after."""
    ended = datetime.fromisoformat(line["ts"]).timestamp()
    begun = ended - line["total_ms"] / 1000
    return begun < counted - EXACT_SECONDS and ended < counted + LATE_SECONDS


def _config(directory: str, toml: str) -> Path:
    file = Path(directory, "routes.toml")
    file.write_text(toml)
    return file


_SLOW = re.compile(r"Executing <.* took [0-9.]+ seconds$")


@asynccontextmanager
async def serving(
    toml: str, env: Mapping[str, str] | None = None, listen: str | None = "127.0.0.1:0"
) -> AsyncIterator[Proxy]:
    """Serve the configuration *toml* in this process, on a port of its own."""
    with tempfile.TemporaryDirectory() as directory:
        file = _config(directory, toml)
        snapshot = load(file, env or {}, listen=listen)
        log = Path(directory, "log")
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            async with serve(snapshot, fd) as running:
                first = next(iter(running.addresses.values()))[0]
                proxy = Proxy(first.port, log, file, running)
                yield proxy
        finally:
            os.close(fd)
        proxy.settled()


@asynccontextmanager
async def process(
    toml: str,
    env: Mapping[str, str] | None = None,
    *,
    listen: str | None = "127.0.0.1:0",
    python: tuple[str, ...] = ("-X", "dev", "-W", "error"),
    further: tuple[str, ...] = (),
    check: bool = True,
) -> AsyncIterator[Proxy]:
    """Serve *toml* in a process of its own; at its end, it must leave in order and silently.

    *further* are arguments of the verb.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = _config(directory, toml)
        log, errors = Path(directory, "log"), Path(directory, "errors")
        arguments = [*python, "-m", "proxy", "serve", "-c", str(file), *further]
        if listen is not None:
            arguments += ["--listen", listen]
        with log.open("wb") as out, errors.open("wb") as err:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdout=out,
                stderr=err,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path.cwd()), **(env or {})},
            )
        proxy = Proxy(0, log, file, process=child, stderr=errors)
        try:
            ready = await _ready(proxy, errors)
            port = ready["listen"][0].rpartition(":")[2]
            proxy.port = int(port) if port.isdigit() else 0
            yield proxy
        finally:
            if child.returncode is None:
                child.send_signal(signal.SIGTERM)
                try:
                    async with asyncio.timeout(15):
                        await child.wait()
                except TimeoutError:
                    child.kill()
                    await child.wait()
        if check:
            assert complaints(errors) == "", complaints(errors)
            assert child.returncode == 0
        proxy.settled()


def complaints(errors: Path) -> str:
    """Return what was written to *errors*, but for what asyncio says where the machine is slow."""
    return told(errors.read_text())


def told(errors: str) -> str:
    """Return *errors* but for what asyncio says where the machine is slow."""
    return "".join(line for line in errors.splitlines(keepends=True) if not _SLOW.match(line))


async def _ready(proxy: Proxy, errors: Path) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            assert proxy.process is not None
            if proxy.process.returncode is not None:
                raise AssertionError(errors.read_text())
            for event in proxy.events("ready"):
                return event
            await asyncio.sleep(LOOK_SECONDS)
