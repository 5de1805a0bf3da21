"""Several workers on the same addresses, under one process that accepts for all of them.

It hands each connection to the next worker in turn, and keeps it until that one says that it has it:
what a worker that dies has not taken goes to another one. It reads the file and checks it; all
workers serve what it has read. It never looks into a connection.
"""

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy.config import Snapshot, Source, takes_restart
from proxy.process import lifecycle
from proxy.process.control import answering
from proxy.process.crew import END_SECONDS, Crew, Plan
from proxy.process.handover import release
from proxy.process.lifecycle import Ready, unless, whenever
from proxy.process.polling import Child, ended, tell
from proxy.process.signals import Orders
from proxy.server import open_log
from proxy.sinks import Log
from proxy.surfaces import Address

__all__ = ["Plan", "run"]

DEALT_SECONDS = 1.0
"""Wait this long for those who have just connected to be let in, before all workers drain."""


def run(plan: Plan, source: Source, snapshot: Snapshot, ready: Ready) -> None:
    """Serve *snapshot*, made of *source*, until a signal says to stop; tell *ready* when it begins.

    SIGTERM and SIGINT end it in order, a second one at once; SIGHUP reads the file anew, SIGUSR2
    replaces every worker. Raises `CannotStart`.
    """
    lifecycle.check_parser()
    lifecycle.turn(_run(plan, source, snapshot, ready))


async def _run(plan: Plan, source: Source, snapshot: Snapshot, ready: Ready) -> None:
    loop = asyncio.get_running_loop()
    log, writer = open_log(snapshot, 1, shared=True)
    loop.set_exception_handler(lambda _, context: lifecycle.note(log, context))
    supervisor = _Supervisor(plan, source, snapshot, log)
    try:
        await supervisor.run(ready)
    finally:
        await supervisor.close()
        writer.close()


class _Supervisor:
    def __init__(self, plan: Plan, source: Source, snapshot: Snapshot, log: Log) -> None:
        self._plan = plan
        self._begun = snapshot
        self._log = log
        self._crew = Crew(plan, source, snapshot, log)
        self._dealer = self._crew.dealer
        self._leaving = False

    async def run(self, ready: Ready) -> None:
        """Serve until a signal says to stop."""
        orders = Orders(asyncio.get_running_loop())
        self._dealer.add(self._dealer.bind(_addresses(self._begun)))
        await unless(orders.stop, self._crew.begin())
        if orders.stop.is_set():
            return
        file = Path(self._begun.file)
        async with answering(file, self._answer_control, self._log.events.warning):
            await self._serve(ready, orders)

    async def _serve(self, ready: Ready, orders: Orders) -> None:
        """Do what signals say, until one says to stop; then leave in order."""
        crew = self._crew
        self._announce("ready", fits=sum(child.fits for child in crew.serving))
        ready(self._dealer.address(_addresses(crew.snapshot)[0]))
        crew.do(whenever(orders.again, self._reload))
        crew.do(whenever(orders.renew, crew.replace))
        await orders.stop.wait()
        self._log.events.info("draining", workers=len(crew.children))
        await crew.cease()
        await unless(orders.now, self._leave())
        await self._end()
        self._log.events.info("stopped")

    async def close(self) -> None:
        """Leave nothing and nobody behind."""
        await self._crew.cease()
        await self._end()
        self._dealer.close()

    async def _answer_control(self, name: str, value: Any) -> Any:
        """Answer a question of the control socket: we are as well as the worker that is best."""
        del value
        match name:
            case "health":
                asked = self._crew.serving or self._crew.children
                alive = any(await asyncio.gather(*(child.says("alive") for child in asked)))
                status = "leaving" if self._leaving else "ok"
                return lifecycle.health(status if alive else "no worker answers", self._listening())
            case _:
                raise ValueError(f'there is no question "{name}"')

    # Another file

    async def _reload(self) -> None:
        """Read the file anew, and have all workers serve it; one that cannot be used changes nothing."""
        try:
            source, snapshot = await lifecycle.in_time(self._read)
            opened = self._dealer.bind(_addresses(snapshot))
        except Exception as error:  # noqa: BLE001 - whatever it is, what has served so far goes on
            lifecycle.report(self._log, error)
            return
        dropped = self._dealer.remove(_addresses(snapshot))
        problems = await self._crew.serve(source, snapshot)
        if problems:
            self._log.events.error("reload_failed", file=snapshot.file, problems=problems)
            opened, dropped = dropped, opened
        self._dealer.add(opened)
        release(dropped)
        if not problems:
            self._announce("reloaded", takes_restart=takes_restart(self._begun, snapshot))

    def _read(self) -> tuple[Source, Snapshot]:
        source = replace(self._plan.read(), keyed=self._crew.snapshot.keyed)
        return source, self._plan.make(source)

    # Leaving

    async def _leave(self) -> None:
        """Say so to balancers, wait until they look elsewhere, let nobody in any more, then drain."""
        crew = self._crew
        self._leaving = True
        await tell(crew.children, "leave", self._log)
        await asyncio.sleep(crew.snapshot.settings.lame_duck)
        self._dealer.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(DEALT_SECONDS):
                while not self._dealer.idle:  # noqa: ASYNC110 - a moment at most
                    await asyncio.sleep(0.01)
        await tell(crew.children, "drain", self._log)
        await ended(crew.children, crew.patience)  # then they are ended

    async def _end(self) -> None:
        """End the workers that are there as yet, now."""
        children = [*self._crew.children]
        await tell(children, "end", self._log)
        await ended(children, END_SECONDS)
        await asyncio.gather(*map(Child.kill, children))

    def _announce(self, event: str, **further: object) -> None:
        snapshot, workers = self._crew.snapshot, self._plan.count
        lifecycle.announce(
            self._log, snapshot, self._listening(), event, workers=workers, **further
        )

    def _listening(self) -> list[Address]:
        """Return where we listen, or did before we began to leave."""
        addresses = _addresses(self._crew.snapshot)
        return addresses if self._leaving else [self._dealer.address(one) for one in addresses]


def _addresses(snapshot: Snapshot) -> list[Address]:
    return [address for surface in snapshot.surfaces for address in surface.listen]
