"""The life of the process: start, wait to be told, leave in order.

On the first SIGTERM or SIGINT nothing new is taken and what is running may finish; on the second
everything ends at once.
"""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import uvloop
from aiohttp.http_parser import HttpRequestParser

from proxy import __version__
from proxy.config import Snapshot
from proxy.server import CannotListen, Running, serve

AIOHTTP_FLOOR = (3, 14, 5)


class CannotStart(Exception):
    """The process cannot serve; the message says why, in one line."""


def run(snapshot: Snapshot, ready: Callable[[Running], None]) -> None:
    """Serve *snapshot* until a signal says to stop; tell *ready* when it begins.

    Raises `CannotStart`.
    """
    _check_parser()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(snapshot, ready))
    except CannotListen as error:
        raise CannotStart(str(error)) from None


async def _run(snapshot: Snapshot, ready: Callable[[Running], None]) -> None:
    loop = asyncio.get_running_loop()
    stop, now = asyncio.Event(), asyncio.Event()

    beginning = asyncio.current_task()

    def signalled() -> None:
        (now if stop.is_set() else stop).set()
        if beginning is not None:
            beginning.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    try:
        async with serve(snapshot) as running:
            beginning = None
            await _serve(snapshot, running, ready, stop, now)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise


async def _serve(
    snapshot: Snapshot,
    running: Running,
    ready: Callable[[Running], None],
    stop: asyncio.Event,
    now: asyncio.Event,
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: _note(running, context))
    ready(running)
    _announce(running)
    await stop.wait()
    running.log.events.info("draining", inflight=running.gate.inflight)
    drain = loop.create_task(running.drain(snapshot.settings.drain))
    second = loop.create_task(now.wait())
    await asyncio.wait({drain, second}, return_when=asyncio.FIRST_COMPLETED)
    for task in (drain, second):
        task.cancel()
    await asyncio.gather(drain, second, return_exceptions=True)
    running.log.events.info("stopped")


def _note(running: Running, context: dict[str, Any]) -> None:
    """Log what went wrong where nobody waited for it; asyncio would print it on stderr."""
    running.log.events.error(
        "loop_error", error=context.get("message"), exc_info=context.get("exception")
    )


def _announce(running: Running) -> None:
    snapshot = running.snapshot
    running.log.events.info(
        "ready",
        version=__version__,
        file=snapshot.file,
        digest=snapshot.digest[:12],
        listen=[str(a) for addresses in running.addresses.values() for a in addresses],
        routes=len(snapshot.routes.routes),
        keys=len(snapshot.keys),
    )


def _check_parser() -> None:
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
