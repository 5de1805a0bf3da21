"""The life of the process: start, wait to be told, leave in order.

On the first SIGTERM or SIGINT nothing new is taken and what is running may finish; on the second
everything ends at once. SIGHUP reads the file anew.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import uvloop
from aiohttp.http_parser import HttpRequestParser

from proxy import __version__
from proxy.config import ConfigError, Snapshot, takes_restart
from proxy.process.control import answering
from proxy.process.signals import Orders
from proxy.server import CannotListen, Running, serve
from proxy.sinks import Log
from proxy.surfaces import Address
from proxy.upstream.transport import in_thread

AIOHTTP_FLOOR = (3, 14, 5)
T = TypeVar("T")

READ_SECONDS = 20.0
"""Give up a reload that takes longer than this to read the file, and all that it names."""
GARBAGE = (5_000, 20, 50)
"""Look for cycles after this many new objects, and rounds: a request makes hardly any."""


class CannotStart(Exception):
    """The process cannot serve; the message says why, in one line."""


Ready = Callable[[Address], None]
"""Is told the first address that is listened on, once it is."""
Reload = Callable[[bool], Snapshot]
"""Reads the file anew, and is told whether keys were in force before. Raises `ConfigError`."""


def run(snapshot: Snapshot, reload: Reload, ready: Ready) -> None:
    """Serve *snapshot* until a signal says to stop; tell *ready* when it begins.

    SIGHUP asks *reload* for another one. Raises `CannotStart`.
    """
    check_parser()
    turn(_run(snapshot, reload, ready))


def turn(main: Coroutine[Any, Any, None]) -> None:
    """Run *main* to its end, on a loop of its own. Raises `CannotStart`."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except CannotListen as error:
        raise CannotStart(str(error)) from None


async def _run(snapshot: Snapshot, reload: Reload, ready: Ready) -> None:
    loop = asyncio.get_running_loop()
    beginning = asyncio.current_task()

    def stopped() -> None:
        if beginning is not None:
            beginning.cancel()

    orders = Orders(loop, stopped)
    try:
        async with serve(snapshot) as running:
            beginning = None
            file = Path(snapshot.file)
            async with answering(file, partial(_answer, running), running.log.events.warning):
                ready(running.addresses[snapshot.surfaces[0].name][0])
                await _serve(running, reload, orders)
    except asyncio.CancelledError:
        if not orders.stop.is_set():
            raise


async def _serve(running: Running, reload: Reload, orders: Orders) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: note(running.log, context))
    loop.add_signal_handler(signal.SIGUSR2, _not_replaced, running.log)
    running.children.look_after(loop)
    _announce(running, fits=running.fits)
    tune_gc()
    again = partial(_reload, running, reload, running.snapshot)
    reloading = loop.create_task(whenever(orders.again, again))
    await orders.stop.wait()
    reloading.cancel()
    await asyncio.gather(reloading, return_exceptions=True)
    running.log.events.info("draining", inflight=running.gate.inflight)
    await unless(orders.now, _leave(running))
    running.log.events.info("stopped")


async def _answer(running: Running, name: str, value: Any) -> Any:
    """Answer a question of the control socket. That it is answered says that the loop turns."""
    del value
    match name:
        case "health":
            leaving = running.gate.leaving or running.gate.draining
            return health("leaving" if leaving else "ok", _addresses(running))
        case _:
            raise ValueError(f'there is no question "{name}"')


def health(status: str, addresses: Iterable[Address]) -> dict[str, Any]:
    """Return what `trunkline health` is told: `ok`, `leaving` (its last answers are on their way), or
    what it is instead; and where we listen.
    """
    return {
        "status": status,
        "version": __version__,
        "pid": os.getpid(),
        "listen": [str(address) for address in addresses],
    }


def _addresses(running: Running) -> list[Address]:
    return [a for addresses in running.addresses.values() for a in addresses]


def tune_gc() -> None:
    """Have cycles looked for less often, and not among what is here by now: it stays."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)


def _not_replaced(log: Log) -> None:
    log.events.warning("not_replaced", reason="there is one process, and no worker to replace")


async def unless(event: asyncio.Event, doing: Coroutine[Any, Any, object]) -> None:
    """Wait until *doing* is done, or broken off since *event* is set."""
    loop = asyncio.get_running_loop()
    tasks = (loop.create_task(doing), loop.create_task(event.wait()))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not tasks[0].cancelled():
        tasks[0].result()


async def _leave(running: Running) -> None:
    """Leave in order: say so to balancers, wait until they look elsewhere, then drain."""
    settings = running.snapshot.settings
    running.gate.leaving = True
    await asyncio.sleep(settings.lame_duck)
    await running.drain(settings.drain)


async def whenever(event: asyncio.Event, do: Callable[[], Awaitable[None]]) -> None:
    """Clear *event*, and *do* something, whenever it is set."""
    while True:
        await event.wait()
        event.clear()
        await do()


async def _reload(running: Running, reload: Reload, begun: Snapshot) -> None:
    """Read the file anew; one that cannot be used changes nothing."""
    try:
        await running.apply(await in_time(partial(reload, running.snapshot.keyed)))
    except Exception as error:  # noqa: BLE001 - whatever it is, what has served so far goes on
        report(running.log, error)
    else:
        _announce(running, "reloaded", takes_restart=takes_restart(begun, running.snapshot))


async def in_time(read: Callable[[], T]) -> T:
    """Return what *read* returns, from a thread; where it hangs, that thread is left alone with it.
    Raises `CannotStart`, and what *read* raises.
    """
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await in_thread(read)
    except TimeoutError:
        raise CannotStart(f"the file was not read within {READ_SECONDS:g} s") from None


def report(log: Log, error: Exception) -> None:
    """Log that a reload came to nothing, by *error*."""
    if isinstance(error, ConfigError):
        problems = [str(problem) for problem in error.problems]
        log.events.error("reload_failed", file=error.file, problems=problems)
    elif isinstance(error, CannotListen | CannotStart):
        log.events.error("reload_failed", problems=[str(error)])
    else:
        log.events.error("reload_failed", exc_info=error)


def note(log: Log, context: dict[str, Any]) -> None:
    """Log what went wrong where nobody waited for it; asyncio would print it on stderr."""
    log.events.error("loop_error", error=context.get("message"), exc_info=context.get("exception"))


def _announce(running: Running, event: str = "ready", **further: object) -> None:
    announce(running.log, running.snapshot, _addresses(running), event, **further)


def announce(
    log: Log, snapshot: Snapshot, addresses: Iterable[Address], event: str, **further: object
) -> None:
    """Log that *snapshot* is served from now on, at *addresses*."""
    log.events.info(
        event,
        version=__version__,
        file=snapshot.file,
        digest=snapshot.digest[:12],
        listen=[str(address) for address in addresses],
        routes=len(snapshot.routes.routes),
        keys=snapshot.keys_in_force(datetime.now(UTC)),
        **further,
    )
    if snapshot.closed:
        reason = "keys were in force before, and the file has none: none is valid now"
        log.events.warning("closed", surfaces=[*snapshot.closed], reason=reason)


def check_parser() -> None:
    """Refuse to start on a parser that is known to let two requests through as one.

    aiohttp falls back to pure Python without a word when its extension is missing, and that parser
    accepts what the other refuses.
    """
    version = tuple(int(part) for part in aiohttp.__version__.split(".")[:3] if part.isdigit())
    if version < AIOHTTP_FLOOR:
        floor = ".".join(map(str, AIOHTTP_FLOOR))
        raise CannotStart(f"aiohttp {aiohttp.__version__} is too old; at least {floor} is needed")
    if not HttpRequestParser.__module__.endswith("_http_parser"):
        raise CannotStart("aiohttp runs without its C parser (is AIOHTTP_NO_EXTENSIONS set?)")
