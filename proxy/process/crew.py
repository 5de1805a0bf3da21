"""The workers that there are to be: one is started for each seat, and another one when it ends, hangs, or is to
be replaced; each serves what all serve before a connection is dealt out to it.
"""

import asyncio
import socket
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from proxy.children import Children
from proxy.config import Snapshot, Source
from proxy.process.channel import Channel, Gone, NoAnswer
from proxy.process.handover import Dealer
from proxy.process.lifecycle import CannotStart, unless
from proxy.process.polling import Child, ended, status, tell, told
from proxy.process.worker import STACKS, Make, Seat
from proxy.sinks import Log
from proxy.upstream.transport import in_thread
from proxy.wire.descriptors import Descriptors

READY_SECONDS = 30.0
"""Give up a worker that is not ready after this long."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SOUND_SECONDS = 60.0
"""Replace a worker at once that dies after at least this long."""
ASKED_SECONDS = 10.0
"""Ask a worker this often whether it is there, where it may take any time to say so."""
STACKS_SECONDS = 0.5
"""Give a worker that hangs this long to say where."""
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


@dataclass(eq=False)
class _Post:
    """One seat: the *child* that has it, and the *pause* before the next one begins there."""

    child: Child | None = None
    pause: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def lengthen(self) -> float:
        """Return the pause that is due now; the next one is longer."""
        pause = self.pause
        self.pause = min(max(2 * pause, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        return pause


class Crew:
    """The *children*, as many as there are to be by *plan*; all serve *snapshot*, made of *source*. *dealer*
    hands connections to them.
    """

    def __init__(self, plan: Plan, source: Source, snapshot: Snapshot, log: Log) -> None:
        self.children: set[Child] = set()
        self.snapshot = snapshot
        self._source = source
        self._plan = plan
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._processes = Children()
        self._posts = [_Post() for _ in range(plan.count)]
        self._descriptors = Descriptors(log.events.warning)
        self._descriptors.fitting(snapshot.settings.max_inflight)
        self.dealer = Dealer(self._loop, self._descriptors)
        self._tasks: set[asyncio.Task[object]] = set()

    @property
    def serving(self) -> list[Child]:
        """Return those to whom connections are dealt out."""
        return [child for child in self.children if child.recipient.serves]

    @property
    def patience(self) -> float | None:
        """Return how long one that leaves may take to finish what it has."""
        drain = self.snapshot.settings.drain
        return None if drain is None else drain + END_SECONDS

    async def begin(self) -> None:
        """Have each seat taken. Raises `CannotStart`."""
        self._processes.look_after(self._loop)
        starting = [self._start(seat) for seat in range(len(self._posts))]
        for error in filter(None, await asyncio.gather(*starting, return_exceptions=True)):
            raise error

    async def cease(self) -> None:
        """Replace nobody any more, and break off whatever else there is to `do`."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def do(self, what: Coroutine[Any, Any, object]) -> None:
        """Do *what* beside all else, until we `cease`."""
        task = self._loop.create_task(what)  # `cease` waits for it
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # One begins

    async def _start(self, seat: int) -> None:
        """Have another worker take *seat*, once it is ready. Raises `CannotStart`."""
        words, their_words = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        doors, their_doors = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        there = Seat(seat, their_words.fileno(), their_doors.fileno(), self._descriptors.before)
        child = Child(seat, self._loop.time(), self.dealer.recipient(doors))
        words.setblocking(False)
        child.channel = await Channel.open(words, partial(self._answer, child))
        with their_words, their_doors:
            try:
                child.process = await self._spawn(there)
            except BaseException:
                self.dealer.dismiss(child.recipient)
                await child.channel.close()
                raise
        self.children.add(child)
        child.watching = self._loop.create_task(self._watch(child))
        child.watching.add_done_callback(lambda _: child.gone.set())
        try:
            await self._wait_for(child)
        except BaseException:
            await child.kill()
            raise
        self._posts[seat].child = child
        self._log.events.info("worker_started", worker=seat, pid=child.process.pid)
        self.dealer.admit(child.recipient)
        self.do(self._succeed_at_its_end(child))

    async def _spawn(self, seat: Seat) -> subprocess.Popen[bytes]:
        """Start the process that takes *seat*: off the loop, which it would hold up."""
        command = (*self._plan.command, "--seat", str(seat))
        fds = (seat.channel, seat.doors)
        start = partial(self._processes.start, command, stdin=subprocess.DEVNULL, pass_fds=fds)
        spawning = self._loop.create_task(in_thread(start))
        try:
            return await asyncio.shield(spawning)
        except asyncio.CancelledError:
            process = await spawning
            process.kill()
            await in_thread(process.wait)
            self._processes.done(process)
            raise

    async def _wait_for(self, child: Child) -> None:
        """Wait until *child* is ready, and serves what the others serve. Raises `CannotStart`."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await unless(child.gone, child.ready.wait())
        except TimeoutError:
            why = f"worker {child.number} was not ready in {READY_SECONDS:.0f} s"
            raise CannotStart(why) from None
        while not child.gone.is_set() and child.source is not self._source:  # a reload came between
            problems, _ = await child.serve(self._source)
            if problems:
                raise CannotStart(f"worker {child.number}: {'; '.join(problems)}")
        if child.gone.is_set():
            raise CannotStart(f"worker {child.number} ended before it was ready")

    async def _watch(self, child: Child) -> None:
        """Wait until *child* has ended; deal out what it has not taken."""
        await in_thread(child.process.wait)
        self._processes.done(child.process)
        self.children.discard(child)
        self.dealer.dismiss(child.recipient)
        await child.channel.close()

    async def _answer(self, child: Child, name: str, facts: Any) -> Any:
        """Answer what *child* asks."""
        match name:
            case "source":
                child.source = self._source
                return told(self._source)
            case "status":
                return {
                    "uptime_seconds": self._loop.time() - self._started,
                    "log_lines_dropped": self._log.dropped,
                    "workers": await status(self.children, len(self._posts), child, facts),
                }
            case _:  # "ready"
                child.fits = facts
                child.ready.set()
                return None

    # Another one takes its seat

    async def _succeed_at_its_end(self, child: Child) -> None:
        """See to it that another worker takes the seat of *child* when it has ended."""
        await self._outlast(child)
        seat = child.number
        post = self._posts[seat]
        async with post.lock:
            if post.child is not child:
                return  # it was replaced
            pid, end = child.process.pid, child.process.returncode
            self._log.events.error("worker_ended", worker=seat, pid=pid, status=end)
            if self._loop.time() - child.born > SOUND_SECONDS:
                post.pause = 0.0
            while post.child is child:
                await asyncio.sleep(post.lengthen())
                await self._try(seat)

    async def _outlast(self, child: Child) -> None:
        """Wait until *child* has ended. One that hangs is ended, since nobody else would do it.

        Two questions in a row must stay without an answer: where the whole machine has stood still, the
        first one does, whatever the worker.
        """
        unanswered = 0
        while not child.gone.is_set():
            seconds = self.snapshot.settings.worker_timeout
            try:
                await child.channel.ask("alive", None, None if seconds is None else seconds / 2)
                unanswered = 0
            except TimeoutError:
                unanswered += 1
            except (Gone, NoAnswer):
                pass  # it is about to end
            if unanswered == 2:
                pid = child.process.pid
                self._log.events.error("worker_hangs", worker=child.number, pid=pid)
                child.process.send_signal(STACKS)
                await asyncio.sleep(STACKS_SECONDS)
                await child.kill()
            await ended([child], ASKED_SECONDS if seconds is None else seconds / 4)

    async def _try(self, seat: int) -> bool:
        """Start a worker for *seat*; return whether there is one now."""
        try:
            await self._start(seat)
        except (CannotStart, OSError, RuntimeError) as error:  # the last one: no more threads
            self._log.events.error("worker_failed", worker=seat, error=str(error))
            return False
        return True

    async def replace(self) -> None:
        """Replace the workers, one after the other: each leaves when another one stands in its place."""
        for post in self._posts:
            assert post.child is not None  # all have begun
            if not await self._succeed(post.child):
                return
        self._log.events.info("replaced", workers=len(self._posts))

    async def _succeed(self, old: Child, *, anyway: bool = False) -> bool:
        """Have another worker take the seat of *old*, which leaves then, or *anyway*; return whether there is
        one.
        """
        post = self._posts[old.number]
        async with post.lock:
            taken = post.child is not old or await self._try(old.number)
        if taken or anyway:
            await self._retire(old)
        return taken

    async def _retire(self, child: Child) -> None:
        """Have *child* hand on what others can have, finish the rest, and leave."""
        child.leave()
        await tell([child], "hand_on", self._log)
        await ended([child], self.patience)
        await child.kill()

    # Another file

    async def serve(self, source: Source, snapshot: Snapshot) -> list[str]:
        """Have all workers serve *snapshot*, made of *source*; return what the first that answers has against
        it. Who of the others cannot, or does not answer, leaves for another one that begins with it.
        """
        before, self._source = self._source, source
        agreed = False
        while behind := [one for one in self.serving if one.source is not source]:
            child = behind[0]
            problems, answered = await child.serve(source)
            if problems and answered and not agreed:
                self._source = before
                return problems
            if problems:
                why = "; ".join(problems)
                self._log.events.error("worker_failed", worker=child.number, error=why)
                child.leave()
                self.do(self._succeed(child, anyway=True))
            agreed = agreed or answered
        self.snapshot = snapshot
        return []
