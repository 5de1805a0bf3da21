"""Questions and answers between two processes, over a socket: each a line of JSON, in any order."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from typing import Any

import orjson

LINE_BYTES = 2**28
"""Close a channel over a line that is longer than this: ten thousand sessions and more."""

Answer = Callable[[str, Any], Awaitable[Any]]
"""Answers a question, which has a name and a value. What it raises, the other side is told."""


class Gone(Exception):
    """The other side is there no longer."""


class NoAnswer(Exception):
    """The other side could not answer; the message says why."""


class Channel:
    """One side, which has the other's questions *answer*ed. *gone* is set when there is no other side."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer
    ) -> None:
        self.gone = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._answer = answer
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._listening = asyncio.get_running_loop().create_task(self._listen())

    @classmethod
    async def open(cls, sock: socket.socket, answer: Answer) -> "Channel":
        """Return the side that has *sock*."""
        return cls(*await asyncio.open_unix_connection(sock=sock, limit=LINE_BYTES), answer)

    async def ask(self, name: str, value: Any = None, seconds: float | None = None) -> Any:
        """Return the answer to a question. Raises `Gone`, `NoAnswer`, and `TimeoutError` after *seconds*."""
        if self.gone.is_set():
            raise Gone
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send({"ask": name, "number": number, "value": value})
        try:
            async with asyncio.timeout(seconds):
                return await asked
        finally:
            del self._asked[number]

    async def close(self) -> None:
        """Hang up."""
        self._listening.cancel()
        await asyncio.gather(self._listening, *self._answering, return_exceptions=True)

    def _send(self, line: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(line) + b"\n")

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            with suppress(ConnectionError):
                while line := await self._reader.readline():
                    got = orjson.loads(line)
                    if "ask" in got:
                        task = loop.create_task(self._reply(got))  # `close` waits for it
                        self._answering.add(task)
                        task.add_done_callback(self._answering.discard)
                    else:
                        self._deliver(got)
        finally:
            self.gone.set()
            for task in self._answering:
                task.cancel()
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(Gone())
            self._writer.transport.abort()

    async def _reply(self, got: dict[str, Any]) -> None:
        try:
            value = await self._answer(got["ask"], got["value"])
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side waits
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._send({"number": got["number"], "failed": said})
        else:
            self._send({"number": got["number"], "value": value})

    def _deliver(self, got: dict[str, Any]) -> None:
        asked = self._asked.get(got["number"])
        if asked is None or asked.done():
            return  # nobody waits any more
        if "failed" in got:
            asked.set_exception(NoAnswer(got["failed"]))
        else:
            asked.set_result(got["value"])
