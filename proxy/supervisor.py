"""Several workers on the same addresses, under one process that accepts for all of them.

It hands each connection to the next worker in turn, and keeps it until that one says that it has it:
what a worker that dies has not taken goes to another one. It reads the file and checks it; all
workers serve what it has read. It never looks into a connection.
"""

import asyncio
import signal
import socket
import subprocess
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from proxy.channel import Channel, Failed, Gone
from proxy.children import Children
from proxy.config import Snapshot, Source, takes_restart
from proxy.control import answering
from proxy.descriptors import Descriptors
from proxy.handover import Dealer, Recipient, release
from proxy.lifecycle import (
    CannotStart,
    Ready,
    announce,
    check_parser,
    health,
    in_time,
    note,
    report,
    unless,
)
from proxy.listening import CannotListen
from proxy.server import open_log
from proxy.signals import came
from proxy.sinks import Log
from proxy.surfaces import Address
from proxy.transport import in_thread
from proxy.worker import STACKS, Make, Seat

READY_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SOUND_SECONDS = 60.0
"""Replace a worker at once that dies after at least this long."""
STATUS_SECONDS = 1.0
ASKED_SECONDS = 10.0
"""Ask a worker this often whether it is there, where it may take any time to say so."""
STACKS_SECONDS = 0.5
"""Give a worker that hangs this long to say where."""
RELOAD_SECONDS = 60.0
END_SECONDS = 3.0
"""Give a worker that is told to end at once this long."""


@dataclass(frozen=True)
class Plan:
    """How many workers there are to be, the *command* that starts one, how the file is *read*, and what
    it *make*s.
    """

    count: int
    command: tuple[str, ...]
    read: Callable[[], Source]
    make: Make


def run(plan: Plan, source: Source, snapshot: Snapshot, ready: Ready) -> None:
    """Serve *snapshot*, made of *source*, until a signal says to stop; tell *ready* when it begins.

    SIGTERM and SIGINT end it in order, a second one at once; SIGHUP reads the file anew, SIGUSR2
    replaces every worker. Raises `CannotStart`.
    """
    check_parser()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(plan, source, snapshot, ready))
    except CannotListen as error:
        raise CannotStart(str(error)) from None


async def _run(plan: Plan, source: Source, snapshot: Snapshot, ready: Ready) -> None:
    loop = asyncio.get_running_loop()
    log, writer = open_log(snapshot, 1, shared=True)
    loop.set_exception_handler(lambda _, context: note(log, context))
    supervisor = _Supervisor(plan, source, snapshot, log)
    try:
        await supervisor.run(ready)
    finally:
        await supervisor.close()
        writer.close()


@dataclass(eq=False)
class _Child:
    """The worker on seat *number*, from its supervisor's side. It serves what was made of *source*."""

    number: int
    born: float
    recipient: Recipient
    channel: Channel = field(init=False)
    process: subprocess.Popen[bytes] = field(init=False)
    watching: asyncio.Task[None] | None = None
    source: Source | None = None
    fits: int = 0
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: bool = False


class _Supervisor:
    def __init__(self, plan: Plan, source: Source, snapshot: Snapshot, log: Log) -> None:
        self._plan = plan
        self._source = source
        self._snapshot = self._begun = snapshot
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._processes = Children()
        self._children: set[_Child] = set()
        self._seats: dict[int, _Child] = {}
        self._locks = [asyncio.Lock() for _ in range(plan.count)]
        self._pauses = [0.0] * plan.count  # before the next worker begins there
        self._descriptors = Descriptors(log.events.warning)
        self._descriptors.fitting(snapshot.settings.max_inflight)
        self._dealer = Dealer(self._loop, self._descriptors)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False

    async def run(self, ready: Ready) -> None:
        """Serve until a signal says to stop."""
        stop, now, again, renew = (asyncio.Event() for _ in range(4))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, lambda: (now if stop.is_set() else stop).set())
        if came(signal.SIGHUP):
            again.set()
        self._loop.add_signal_handler(signal.SIGHUP, again.set)
        self._loop.add_signal_handler(signal.SIGUSR2, renew.set)
        self._processes.look_after(self._loop)
        await unless(stop, self._begin())
        if stop.is_set():
            return
        file = Path(self._snapshot.file)
        async with answering(file, self._answer_control, self._log.events.warning):
            await self._serve(ready, stop, now, again, renew)

    async def _serve(
        self,
        ready: Ready,
        stop: asyncio.Event,
        now: asyncio.Event,
        again: asyncio.Event,
        renew: asyncio.Event,
    ) -> None:
        """Do what signals say, until one says to stop; then leave in order."""
        fits = sum(child.fits for child in self._seats.values())
        self._announce("ready", workers=self._plan.count, fits=fits)
        ready(self._dealer.address(_addresses(self._snapshot)[0]))
        self._do(self._whenever(again, self._reload))
        self._do(self._whenever(renew, self._replace))
        await stop.wait()
        self._log.events.info("draining", workers=len(self._children))
        await self._cancel()
        await unless(now, self._leave())
        await self._end()
        self._log.events.info("stopped")

    async def close(self) -> None:
        """Leave nothing and nobody behind."""
        await self._cancel()
        await self._end()
        self._dealer.close()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(what)  # `_cancel` waits for it
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _cancel(self) -> None:
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _whenever(self, event: asyncio.Event, do: Callable[[], Awaitable[None]]) -> None:
        while True:
            await event.wait()
            event.clear()
            await do()

    # Workers

    async def _begin(self) -> None:
        self._dealer.add(self._dealer.bind(_addresses(self._snapshot)))
        starting = [self._start(seat) for seat in range(self._plan.count)]
        begun = await asyncio.gather(*starting, return_exceptions=True)
        for error in begun:
            if isinstance(error, BaseException):
                raise error

    async def _start(self, seat: int) -> None:
        """Have another worker take *seat*, once it is ready. Raises `CannotStart`."""
        pairs = [
            socket.socketpair(socket.AF_UNIX, kind)
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
        ]
        (words, their_words), (doors, their_doors) = pairs
        limit = self._descriptors.before
        there = Seat(seat, their_words.fileno(), their_doors.fileno(), limit)
        child = _Child(seat, self._loop.time(), self._dealer.recipient(doors))
        words.setblocking(False)
        child.channel = await Channel.open(words, partial(self._answer, child))
        try:
            child.process = await self._spawn(there)
        except BaseException:
            self._dealer.dismiss(child.recipient)
            await child.channel.close()
            raise
        finally:
            their_words.close()
            their_doors.close()
        self._children.add(child)
        child.watching = self._loop.create_task(self._watch(child))
        child.watching.add_done_callback(lambda _: child.gone.set())
        try:
            await self._settle(child)
        except BaseException:
            await self._kill(child)
            raise
        self._seats[seat] = child
        self._log.events.info("worker_started", worker=seat, pid=child.process.pid)
        self._dealer.admit(child.recipient)
        self._do(self._keep(child))

    async def _spawn(self, seat: Seat) -> subprocess.Popen[bytes]:
        """Start the process that takes *seat*: off the loop, which it would hold up."""
        command = (*self._plan.command, "--seat", str(seat))
        fds = (seat.channel, seat.doors)

        def spawn() -> subprocess.Popen[bytes]:
            return self._processes.start(command, stdin=subprocess.DEVNULL, pass_fds=fds)

        spawning = self._loop.create_task(in_thread(spawn))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            process = await spawning
            process.kill()
            await in_thread(process.wait)
            self._processes.done(process)
            raise

    async def _settle(self, child: _Child) -> None:
        """Wait until *child* is ready, and serves what the others serve. Raises `CannotStart`."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await unless(child.gone, _until(child.settled))
        except TimeoutError:
            why = f"worker {child.number} was not ready in {READY_SECONDS:.0f} s"
            raise CannotStart(why) from None
        while not child.gone.is_set() and child.source is not self._source:  # a reload came between
            try:
                problems = await self._pass_on(child)
            except (Gone, Failed, TimeoutError) as error:
                problems = [_why(error)]
            if problems:
                raise CannotStart(f"worker {child.number}: {'; '.join(problems)}")
        if child.gone.is_set():
            raise CannotStart(f"worker {child.number} ended before it was ready")

    async def _watch(self, child: _Child) -> None:
        """Wait until *child* has ended; deal out what it has not taken."""
        await in_thread(child.process.wait)
        self._processes.done(child.process)
        self._children.discard(child)
        self._dealer.dismiss(child.recipient)
        await child.channel.close()

    async def _keep(self, child: _Child) -> None:
        """See to it that another worker takes the seat of *child* when it has ended."""
        await self._outlast(child)
        seat = child.number
        async with self._locks[seat]:
            if self._seats[seat] is not child:
                return  # it was replaced
            status = child.process.returncode
            self._log.events.error(
                "worker_ended", worker=seat, pid=child.process.pid, status=status
            )
            if self._loop.time() - child.born > SOUND_SECONDS:
                self._pauses[seat] = 0.0
            while self._seats[seat] is child:
                pause = self._pauses[seat]
                self._pauses[seat] = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
                await asyncio.sleep(pause)
                await self._try(seat)

    async def _outlast(self, child: _Child) -> None:
        """Wait until *child* has ended. One that hangs is ended, since nobody else would do it.

        Two questions in a row must stay without an answer: where the whole machine has stood still, the
        first one does, whatever the worker.
        """
        unanswered = 0
        while not child.gone.is_set():
            seconds = self._snapshot.settings.worker_timeout
            try:
                await child.channel.ask("alive", None, None if seconds is None else seconds / 2)
                unanswered = 0
            except TimeoutError:
                unanswered += 1
            except (Gone, Failed):
                pass  # it is about to end
            if unanswered == 2:
                pid = child.process.pid
                self._log.events.error("worker_hangs", worker=child.number, pid=pid)
                child.process.send_signal(STACKS)
                await asyncio.sleep(STACKS_SECONDS)
                await self._kill(child)
            with suppress(TimeoutError):
                async with asyncio.timeout(ASKED_SECONDS if seconds is None else seconds / 4):
                    await child.gone.wait()

    async def _try(self, seat: int) -> bool:
        """Start a worker for *seat*; return whether there is one now."""
        try:
            await self._start(seat)
        except (CannotStart, OSError, RuntimeError) as error:  # the last one: no more threads
            self._log.events.error("worker_failed", worker=seat, error=str(error))
            return False
        return True

    async def _replace(self) -> None:
        """Replace the workers, one after the other: each leaves when another one stands in its place."""
        for seat in range(self._plan.count):
            if not await self._succeed(self._seats[seat]):
                return
        self._log.events.info("replaced", workers=self._plan.count)

    async def _succeed(self, old: _Child) -> bool:
        """Have another worker take the seat of *old*, which leaves then; return whether there is one."""
        async with self._locks[old.number]:
            taken = self._seats[old.number] is not old or await self._try(old.number)
        if taken:
            await self._retire(old)
        return taken

    async def _retire(self, child: _Child) -> None:
        """Have *child* hand on what others can have, finish the rest, and leave."""
        child.leaving = True
        child.recipient.serves = False
        drain = self._snapshot.settings.drain
        patience = None if drain is None else drain + END_SECONDS
        await self._tell(child, "hand_on")
        try:
            async with asyncio.timeout(patience):
                await child.gone.wait()
        except TimeoutError:
            await self._kill(child)

    async def _kill(self, child: _Child) -> None:
        if not child.gone.is_set():
            child.process.kill()
            await child.gone.wait()

    async def _tell(self, child: _Child, what: str, value: Any = None) -> None:
        """Say *what* to do; who does not listen is not waited for."""
        try:
            await child.channel.ask(what, value, STATUS_SECONDS)
        except (Gone, Failed, TimeoutError) as error:
            why = type(error).__name__
            self._log.events.warning("worker_silent", worker=child.number, told=what, error=why)

    async def _tell_all(self, what: str, value: Any = None) -> None:
        await asyncio.gather(*(self._tell(child, what, value) for child in [*self._children]))

    # What the workers ask

    async def _answer(self, child: _Child, name: str, facts: Any) -> Any:
        if name == "source":
            child.source = self._source
            return _told(self._source)
        if name == "status":
            return await self._status(child, facts)
        child.fits = facts
        child.settled.set()  # "ready"
        return None

    async def _status(self, asking: _Child, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the status of all workers, where *asking* has told its own."""
        children = sorted(self._children, key=lambda child: (child.number, child.born))
        told = await asyncio.gather(
            *(_returned(facts) if child is asking else self._facts(child) for child in children)
        )
        workers: list[dict[str, Any]] = [
            {
                "worker": child.number,
                "pid": child.process.pid,
                "state": self._state(child, facts),
                "uptime_seconds": round(self._loop.time() - child.born, 3),
                "connections": child.recipient.connections,
                "facts": facts,
            }
            for child, facts in zip(children, told, strict=True)
        ]
        nobody = {"pid": None, "state": "ended", "uptime_seconds": 0.0, "connections": 0}
        vacant = {*range(self._plan.count)} - {child.number for child in children}
        workers += [{"worker": seat, **nobody, "facts": None} for seat in vacant]
        workers.sort(key=lambda one: one["worker"])
        return {
            "uptime_seconds": self._loop.time() - self._started,
            "log_lines_dropped": self._log.dropped,
            "workers": workers,
        }

    async def _facts(self, child: _Child) -> dict[str, Any] | None:
        if self._state(child, {}) == "starting":
            return None
        try:
            facts: dict[str, Any] = await child.channel.ask("status", None, STATUS_SECONDS)
        except (Gone, Failed, TimeoutError):
            return None
        return facts

    def _state(self, child: _Child, facts: dict[str, Any] | None) -> str:
        if not child.recipient.serves and not child.leaving:
            return "starting"
        if facts is None:
            return "silent"
        return "leaving" if child.leaving else "ready"

    # What commands ask

    async def _answer_control(self, name: str, value: Any) -> Any:
        """Answer a question of the control socket: we are as well as the worker that is best."""
        del value
        match name:
            case "health":
                serving = [child for child in self._children if child.recipient.serves]
                alive = await asyncio.gather(*map(self._alive, serving or self._children))
                status = "leaving" if self._leaving else "ok"
                return health(status if any(alive) else "no worker answers", self._listening())
            case _:
                raise ValueError(f'there is no question "{name}"')

    async def _alive(self, child: _Child) -> bool:
        try:
            await child.channel.ask("alive", None, STATUS_SECONDS)
        except (Gone, Failed, TimeoutError):
            return False
        return True

    # Another file

    async def _reload(self) -> None:
        """Read the file anew, and have all workers serve it; one that cannot be used changes nothing."""
        try:
            source, snapshot = await in_time(self._read)
            opened = self._dealer.bind(_addresses(snapshot))
        except Exception as error:  # noqa: BLE001 - whatever it is, what has served so far goes on
            report(self._log, error)
            return
        dropped = self._dealer.remove(_addresses(snapshot))
        problems = await self._pass_to_all(source)
        if problems:
            self._log.events.error("reload_failed", file=snapshot.file, problems=problems)
            opened, dropped = dropped, opened
        else:
            self._snapshot = snapshot
        self._dealer.add(opened)
        release(dropped)
        if not problems:
            restart = takes_restart(self._begun, snapshot)
            self._announce("reloaded", workers=self._plan.count, takes_restart=restart)

    def _read(self) -> tuple[Source, Snapshot]:
        source = replace(self._plan.read(), keyed=self._snapshot.keyed)
        return source, self._plan.make(source)

    async def _pass_to_all(self, source: Source) -> list[str]:
        """Have all workers serve *source*; return what the first that answers has against it. Who of the
        others cannot, or does not answer, leaves for another one that begins with it.
        """
        before, self._source = self._source, source
        agreed = False
        while behind := [one for one in self._serving() if one.source is not source]:
            child, silent = behind[0], False
            try:
                problems = await self._pass_on(child)
            except (Gone, Failed, TimeoutError) as error:
                problems, silent = [_why(error)], True
            if problems and not silent and not agreed:
                self._source = before
                return problems
            if problems:
                why = "; ".join(problems)
                self._log.events.error("worker_failed", worker=child.number, error=why)
                child.recipient.serves, child.leaving = False, True
                self._do(self._give_up(child))
            agreed = agreed or not silent
        return []

    async def _pass_on(self, child: _Child) -> list[str]:
        """Have *child* serve what all serve; return what it has against it. Raises like `Channel.ask`."""
        source = self._source
        told = _told(source)
        problems: list[str] = await child.channel.ask("reload", told, RELOAD_SECONDS)
        if not problems:
            child.source = source
        return problems

    async def _give_up(self, child: _Child) -> None:
        """Have *child*, which serves another file than the others, leave, with or without a successor."""
        if not await self._succeed(child):
            await self._retire(child)

    def _serving(self) -> list[_Child]:
        return [child for child in self._children if child.recipient.serves]

    # Leaving

    async def _leave(self) -> None:
        """Say so to balancers, wait until they look elsewhere, let nobody in any more, then drain."""
        self._leaving = True
        await self._tell_all("leave")
        await asyncio.sleep(self._snapshot.settings.lame_duck)
        self._dealer.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(STATUS_SECONDS):
                while not self._dealer.idle:  # noqa: ASYNC110 - a moment at most
                    await asyncio.sleep(0.01)
        await self._tell_all("drain")
        drain = self._snapshot.settings.drain
        with suppress(TimeoutError):  # then they are ended
            async with asyncio.timeout(None if drain is None else drain + END_SECONDS):
                await self._all_gone()

    async def _end(self) -> None:
        """End the workers that are there as yet, now."""
        if self._children:
            await self._tell_all("end")
        try:
            async with asyncio.timeout(END_SECONDS):
                await self._all_gone()
        except TimeoutError:
            await asyncio.gather(*(self._kill(child) for child in [*self._children]))

    async def _all_gone(self) -> None:
        await asyncio.gather(*(child.gone.wait() for child in [*self._children]))

    def _announce(self, event: str, **further: object) -> None:
        announce(self._log, self._snapshot, self._listening(), event, **further)

    def _listening(self) -> list[Address]:
        """Return where we listen, or did before we began to leave."""
        addresses = _addresses(self._snapshot)
        return addresses if self._leaving else [self._dealer.address(one) for one in addresses]


def _addresses(snapshot: Snapshot) -> list[Address]:
    return [address for surface in snapshot.surfaces for address in surface.listen]


def _why(error: Exception) -> str:
    """Say why a worker could not be given another file."""
    if isinstance(error, TimeoutError):
        return f"took no other file within {RELOAD_SECONDS:.0f} s"
    return "ended" if isinstance(error, Gone) else str(error)


def _told(source: Source) -> dict[str, Any]:
    return {
        "content": source.content.decode(),
        "variables": dict(source.variables),
        "keyed": source.keyed,
    }


async def _returned(value: Any) -> Any:
    return value


async def _until(event: asyncio.Event) -> None:
    await event.wait()
