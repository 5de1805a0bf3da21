"""The workers, each as a `Child` of its supervisor, and what they are asked and told: no answer is waited for
longer than its question says, and what one does not answer never holds up the others.
"""

import asyncio
import subprocess
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from proxy.config import Source
from proxy.process.channel import Channel, Gone, NoAnswer
from proxy.process.handover import Recipient
from proxy.sinks import Log

ANSWER_SECONDS = 1.0
"""Wait this long for a worker that is asked how it is, or told what to do."""
RELOAD_SECONDS = 60.0
"""Wait this long for a worker to serve another file."""
SILENT = (Gone, NoAnswer, TimeoutError)
"""What is raised where a worker does not answer."""


@dataclass(eq=False)
class Child:
    """The worker on seat *number*, from its supervisor's side. It serves what was made of *source*, and has
    descriptors for so many exchanges as *fits*.
    """

    number: int
    born: float
    recipient: Recipient
    channel: Channel = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    watching: asyncio.Task[None] | None = None
    source: Source | None = None
    fits: int = 0
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: bool = False

    def leave(self) -> None:
        """Have no more connections dealt out to it: it is about to end."""
        self.leaving, self.recipient.serves = True, False

    async def kill(self) -> None:
        """End it now, if it is still there."""
        if not self.gone.is_set():
            self.process.kill()
            await self.gone.wait()

    async def serve(self, source: Source) -> tuple[list[str], bool]:
        """Have it serve *source*; return what stands against that, and whether it was the worker who said so."""
        try:
            problems: list[str] = await self.channel.ask("reload", told(source), RELOAD_SECONDS)
        except TimeoutError:
            return [f"took no other file within {RELOAD_SECONDS:.0f} s"], False
        except Gone:
            return ["ended"], False
        except NoAnswer as error:
            return [str(error)], False
        if not problems:
            self.source = source
        return problems, True

    async def says(self, question: str) -> Any:
        """Return what it answers to the *question*, None where it does not in time."""
        with suppress(*SILENT):
            return await self.channel.ask(question, None, ANSWER_SECONDS)

    async def facts(self) -> Any:
        """Return what its status is made of, None where it does not say."""
        return None if self.state({}) == "starting" else await self.says("status")

    def state(self, facts: dict[str, Any] | None) -> str:
        """Say how it is, where it has told *facts*, or nothing."""
        if not self.recipient.serves and not self.leaving:
            return "starting"
        if facts is None:
            return "silent"
        return "leaving" if self.leaving else "ready"


def told(source: Source) -> dict[str, Any]:
    """Return *source* as a worker is told it."""
    return {
        "content": source.content.decode(),
        "variables": dict(source.variables),
        "keyed": source.keyed,
    }


async def tell(children: Iterable[Child], what: str, log: Log) -> None:
    """Say to all of *children* *what* to do; who does not listen is not waited for."""

    async def say(child: Child) -> None:
        try:
            await child.channel.ask(what, None, ANSWER_SECONDS)
        except SILENT as error:
            why = type(error).__name__
            log.events.warning("worker_silent", worker=child.number, told=what, error=why)

    await asyncio.gather(*map(say, children))


async def ended(children: Iterable[Child], seconds: float | None) -> None:
    """Wait until all of *children* have ended, for *seconds* at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(child.gone.wait() for child in children))


async def status(
    children: Collection[Child], count: int, asking: Child, own: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return how all *children* are, of whom *asking* has told its *own* facts, and which of *count* seats
    are vacant.
    """
    others = [child for child in children if child is not asking]
    told = dict(zip(others, await asyncio.gather(*map(Child.facts, others)), strict=True))
    told[asking] = own
    now = asyncio.get_running_loop().time()
    workers: list[dict[str, Any]] = [
        {
            "worker": child.number,
            "pid": child.process.pid,
            "state": child.state(facts),
            "uptime_seconds": round(now - child.born, 3),
            "connections": child.recipient.connections,
            "facts": facts,
        }
        for child, facts in sorted(told.items(), key=lambda one: one[0].born)
    ]
    nobody = {"pid": None, "state": "ended", "uptime_seconds": 0.0, "connections": 0, "facts": None}
    vacant = {*range(count)} - {child.number for child in told}
    workers += [{"worker": seat, **nobody} for seat in vacant]
    return sorted(workers, key=lambda one: one["worker"])
