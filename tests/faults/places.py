"""Places that a route may lead to: scripted upstreams that write down all they hear and say, and ports
where there is none.
"""

import asyncio
import secrets
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic

from tests.harness.upstream import Conn, Received, Upstream


@dataclass(frozen=True)
class Spot:
    """What stands at a place: an `http` upstream, a `tls` one with *tls*, nobody (`closed`), nobody that
    answers (`deaf`), `bare` bytes by *serve*, or whatever *url* leads to. *extra* goes into the
    upstream's table; *name* is the host that stands in its URL, if not its address.
    """

    kind: str = "http"
    extra: str = ""
    url: str = ""
    name: str = ""
    host: str = "127.0.0.1"
    tls: Callable[[], ssl.SSLContext] | None = None
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object] | None = None
    credentials: int = 1


@dataclass
class Heard:
    """One request, whole, and what was said to it, by when. It costs from *begun* until *over*."""

    request: Received
    conn: "Witness"
    begun: float
    said: bytearray = field(default_factory=bytearray)
    over: float | None = None


@dataclass
class Witness(Conn):
    """A connection that writes down what is sent on it."""

    heard: Heard | None = None

    async def send(self, data: bytes) -> None:
        await super().send(data)
        if self.heard is not None:
            self.heard.said += data


class Place(Upstream):
    """A scripted upstream with secrets of its own. *begun* are the connections made to it; *bytes_in*
    all that ever came in on them; *busy* how many requests it is working on, and is paid for.
    """

    def __init__(self, spot: Spot) -> None:
        self.spot = spot
        super().__init__(spot.tls() if spot.tls else None, spot.host)
        self.secrets = [f"sk-up-{secrets.token_hex(16)}" for _ in range(spot.credentials)]
        self.heard: list[Heard] = []
        self.busy = 0
        self.open = 0
        self.reset_all()

    def reset_all(self) -> None:
        """Forget what was heard; keep what is open."""
        self.heard = []
        self.requests = []
        self.errors = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        conn = Witness(len(self.connections), reader, writer)
        self.connections.append(conn)
        self.open += 1
        try:
            while conn.keep:
                request = await self._read(conn)
                if request is None:
                    break
                await self._answer(conn, request)
        except (ConnectionError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            self.open -= 1
            conn.gone.set()
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, conn: Witness, request: Received) -> None:
        heard = conn.heard = Heard(request, conn, monotonic())
        self.requests.append(request)
        self.heard.append(heard)
        step = self._script[min(self._taken, len(self._script) - 1)]
        self._taken += 1
        self.busy += 1
        try:
            await step(conn, request)
        finally:
            self.busy -= 1
            heard.over = monotonic()

    async def idle(self, seconds: float = 5.0) -> None:
        """Wait until nothing is being worked on: each answer has been given, or left."""
        async with asyncio.timeout(seconds):
            while self.busy:
                await asyncio.sleep(0.005)

    @property
    def sends(self) -> int:
        """Return how many whole requests came."""
        return len(self.heard)


class Nobody:
    """A port on which nobody listens, or nobody answers (*deaf*), for as long as the context lasts."""

    def __init__(self, *, deaf: bool) -> None:
        self._deaf = deaf
        self._fillers: list[socket.socket] = []

    def __enter__(self) -> int:
        self._sock = socket.socket()
        self._sock.bind(("127.0.0.1", 0))
        port: int = self._sock.getsockname()[1]
        if self._deaf:
            self._sock.listen(0)
            for _ in range(4):  # fill the backlog: what comes then is not even refused
                filler = socket.socket()
                filler.setblocking(False)
                with suppress(BlockingIOError):
                    filler.connect(("127.0.0.1", port))
                self._fillers.append(filler)
        return port

    def __exit__(self, *_: object) -> None:
        for sock in (self._sock, *self._fillers):
            sock.close()
