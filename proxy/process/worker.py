"""One of several workers: serves what its supervisor hands over, and does what it says.

It listens nowhere and reads no routes file. Signals are its supervisor's business, since a service
manager sends them to every process at once; where there is no supervisor any more, it drains.
"""

import asyncio
import faulthandler
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from proxy.client.listening import CannotListen
from proxy.config import ConfigError, Snapshot, Source
from proxy.endpoints.status import merged
from proxy.process import lifecycle
from proxy.process.channel import Channel, Gone, NoAnswer
from proxy.process.handover import Doors
from proxy.server import Running, serve
from proxy.upstream.transport import in_thread

DEAF = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
STACKS = signal.SIGUSR1
"""Has a worker write to stderr what each of its threads is doing, though its loop hangs."""
STATUS_SECONDS = 2.0
"""Wait this long for the status of all: more than the supervisor takes, even where one of them hangs."""

Make = Callable[[Source], Snapshot]


@dataclass(frozen=True)
class Seat:
    """Which worker this is, the descriptors that lead to its supervisor, for words (*channel*) and for
    connections (*doors*), and the *soft_limit* that there was of descriptors.
    """

    number: int
    channel: int
    doors: int
    soft_limit: int

    @classmethod
    def of(cls, text: str) -> "Seat":
        """Read what `str` has written."""
        return cls(*map(int, text.split(":")))

    def __str__(self) -> str:
        return f"{self.number}:{self.channel}:{self.doors}:{self.soft_limit}"


def run(seat: Seat, make: Make) -> None:
    """Serve what *make* makes of what the supervisor has read, until it says to stop."""
    faulthandler.register(STACKS)
    with suppress(Gone):  # before it began
        lifecycle.turn(_Worker(seat, make).run())


class _Worker:
    def __init__(self, seat: Seat, make: Make) -> None:
        self._seat = seat
        self._make = make
        self._stop, self._drain, self._now = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in DEAF:
            loop.add_signal_handler(number, _ignore)
        words = socket.socket(fileno=self._seat.channel)
        self._channel = channel = await Channel.open(words, self._answer)
        try:
            source = _source(await channel.ask("source"))
            snapshot = await in_thread(lambda: self._make(source))
            self._doors = Doors(loop, socket.socket(fileno=self._seat.doors))
            async with serve(
                snapshot,
                listen=self._doors.listen,
                everywhere=self._everywhere,
                soft_limit=self._seat.soft_limit,
            ) as it:
                self._running = it
                it.log.events = it.log.events.bind(worker=self._seat.number)
                loop.set_exception_handler(lambda _, context: lifecycle.note(it.log, context))
                lifecycle.tune_gc()
                self._doors.open()
                await channel.ask("ready", it.fits)
                await lifecycle.unless(channel.gone, self._stop.wait())
                self._doors.shut()
                await lifecycle.unless(self._now, self._leave(it))
        finally:
            await channel.close()

    async def _leave(self, running: Running) -> None:
        """Leave in order: hand on what others can have, if there are others; let the rest finish."""
        running.log.events.info("draining", inflight=running.gate.inflight)
        drain = running.snapshot.settings.drain
        try:
            if not self._is_alone():
                handing = running.hand_on(self._doors.give, drain)
                await lifecycle.unless(self._drain, lifecycle.unless(self._channel.gone, handing))
                drain = drain if self._is_alone() else 0.0
            await running.drain(drain)
        finally:
            self._doors.close()

    def _is_alone(self) -> bool:
        """Return whether all leave, or nobody is there who would know of others."""
        return self._drain.is_set() or self._channel.gone.is_set()

    async def _everywhere(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the status of all workers; its own, if nobody can tell."""
        try:
            told = await self._channel.ask("status", facts, STATUS_SECONDS)
        except (Gone, NoAnswer, TimeoutError):
            return facts
        dropped = told["log_lines_dropped"]
        return merged(facts, told["workers"], told["uptime_seconds"], dropped)

    async def _answer(self, name: str, value: Any) -> Any:
        """Do what the supervisor says."""
        match name:
            case "alive":
                return True
            case "status":
                return self._running.facts()
            case "reload":
                self._doors.take_all()  # those who have come to an address that may be left now
                return await self._reload(_source(value))
            case "leave":
                self._running.gate.leaving = True
            case "hand_on":
                self._stop.set()
            case "drain":
                self._drain.set()
                self._stop.set()
            case "end":
                self._stop.set()
                self._now.set()
            case _:
                raise ValueError(name)
        return None

    async def _reload(self, source: Source) -> list[str]:
        """Serve what *source* says; return what stands against it."""
        try:
            await self._running.apply(await in_thread(lambda: self._make(source)))
        except ConfigError as error:
            return [str(problem) for problem in error.problems]
        except CannotListen as error:
            return [str(error)]
        return []


def _source(told: dict[str, Any]) -> Source:
    return Source(told["content"].encode(), told["variables"], told["keyed"])


def _ignore() -> None:
    """Do nothing: not `SIG_IGN`, which commands that are run for a credential would inherit."""
