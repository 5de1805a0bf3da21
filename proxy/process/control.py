"""The control socket: where a process that serves answers questions of the same user on the same machine.

Its address follows from the routes file's path alone, so that nothing has to be configured, read or
written to find it, whatever has become of the file. One line of JSON in, `{"ask": NAME, "value": …}`;
one out, `{"value": …}` or `{"failed": WHY}`. Of two processes that serve one file the later one is asked.
"""

import asyncio
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

LINE_BYTES = 2**20
"""Close over a question that is longer than this."""
SECONDS = 5.0
"""Wait this long for who asks to say what."""
GIVEN_WAY_SECONDS = 2.0
"""Wait this long for another process to give way."""
AGAIN_SECONDS = 1.0
"""Look this often, without the address, whether the other process still has it."""

Answer = Callable[[str, Any], Awaitable[Any]]
"""Answers a question, which has a name and a value. What it raises, who asks is told."""
Tell = Callable[..., object]
"""Is told, as an event of the log with its facts, what an operator should hear of."""

_GIVE_WAY = "give_way"


class Nobody(Exception):
    """No process of ours serves the file, as far as can be known."""


class NoAnswer(Exception):
    """The process could not answer; the message says why."""


def address_of(file: Path, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the address of the control socket of whoever serves *file* as our user; None where this
    system has no place for one.

    On Linux it is abstract: it needs no directory that can be written, and ends with its process.
    """
    digest = sha256(os.fsencode(os.path.abspath(file))).hexdigest()  # noqa: PTH100 - of links, as written
    name = f"trunkline-{os.geteuid()}-{digest}"
    if sys.platform == "linux":
        return "\0" + name
    runtime = environ.get("XDG_RUNTIME_DIR")
    return str(Path(runtime, name)) if runtime else None


def ask(address: str | None, name: str, value: Any = None, *, seconds: float) -> Any:
    """Return what the process at *address* answers to the question *name*, within *seconds*. Raises
    `Nobody`, `NoAnswer`, and `OSError` where it is there and does not answer.
    """
    if address is None:
        raise Nobody
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect(address)
        except TimeoutError:
            raise
        except OSError:
            raise Nobody from None
        if not _is_ours(sock):
            raise Nobody
        sock.sendall(orjson.dumps({"ask": name, "value": value}) + b"\n")
        with sock.makefile("rb") as answer:
            line = answer.readline()
    try:
        told = orjson.loads(line)
    except ValueError:
        raise ConnectionResetError("it broke off") from None
    if "failed" in told:
        raise NoAnswer(told["failed"])
    return told["value"]


@asynccontextmanager
async def answering(file: Path, answer: Answer, tell: Tell) -> AsyncIterator[None]:
    """Have *answer* answer who asks about *file*, for as long as the context lasts.

    Where that cannot be, *tell* hears of it; all else goes on.
    """
    address = address_of(file)
    control = None if address is None else _Control(address, answer)
    try:
        if control is not None and not await control.begin():
            reason = "another process has its address, and does not give way"
            tell("control_unavailable", reason=reason)
        yield
    finally:
        if control is not None:
            await control.close()


class _Control:
    def __init__(self, address: str, answer: Answer) -> None:
        self._address = address
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()

    async def begin(self) -> bool:
        """Take the address, from another process if need be; return whether we have it."""
        deadline = self._loop.time() + GIVEN_WAY_SECONDS
        asked = False
        while not await self._listen():
            if not asked:
                asked = True
                with suppress(Nobody, NoAnswer, OSError):
                    seconds = GIVEN_WAY_SECONDS
                    await asyncio.to_thread(ask, self._address, _GIVE_WAY, seconds=seconds)
            elif self._loop.time() > deadline:
                self._waiting = self._loop.create_task(self._come_back())  # `close` waits for it
                return False
            await asyncio.sleep(0.01)
        return True

    async def close(self) -> None:
        """Answer no longer."""
        tasks = [*self._answering, *([self._waiting] if self._waiting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._server is not None:
            self._hang_up(self._server)

    async def _listen(self) -> bool:
        """Listen at the address; return whether nobody else does."""
        try:
            sock = _bound(self._address)
        except OSError:
            return False
        try:
            self._server = await asyncio.start_unix_server(
                self._asked, sock=sock, limit=LINE_BYTES, backlog=16
            )
        except OSError:
            sock.close()
            return False
        return True

    def _hang_up(self, server: asyncio.Server) -> None:
        server.close()
        self._server = None

    def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._reply(reader, writer))  # `close` waits for it
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one question of our own user."""
        try:
            if _is_ours(writer.get_extra_info("socket")):
                async with asyncio.timeout(SECONDS):
                    line = await reader.readline()
                writer.write(orjson.dumps(await self._told(line)) + b"\n")
                await writer.drain()
        except (TimeoutError, OSError, ValueError):  # the last one: a line that is too long
            pass
        finally:
            writer.close()

    async def _told(self, line: bytes) -> dict[str, Any]:
        try:
            asked = orjson.loads(line)
            name, value = asked["ask"], asked.get("value")
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"failed": "that is no question"}
        if name == _GIVE_WAY:
            self._give_way()
            return {"value": None}
        try:
            return {"value": await self._answer(name, value)}
        except Exception as error:  # noqa: BLE001 - whatever it is, who asks waits
            return {"failed": str(error) or type(error).__name__}

    def _give_way(self) -> None:
        """Leave the address to another process, until that has ended."""
        if self._server is not None:
            self._hang_up(self._server)
            self._waiting = self._loop.create_task(self._come_back())  # `close` waits for it

    async def _come_back(self) -> None:
        await asyncio.sleep(AGAIN_SECONDS)
        while not await self._listen():  # noqa: ASYNC110 - of another process, which does not tell
            await asyncio.sleep(AGAIN_SECONDS)


def _bound(address: str) -> socket.socket:
    """Return a socket bound to *address*; a file of before is replaced: its process is asked no more."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if address.startswith("\0"):
            sock.bind(address)
        else:
            Path(address).unlink(missing_ok=True)
            sock.bind(address)
            Path(address).chmod(0o600)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_ours(sock: socket.socket) -> bool:
    """Return whether who is at the other end of *sock* is a process that we see, of our own user.

    An abstract address is anybody's who comes first, and all containers' that share a network. Where
    the system does not tell, the directory of the socket is what keeps others out.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return True
    told = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", told)
    return bool(pid) and uid == os.geteuid()
