"""The load: wrk for requests, a client of our own for paced streams.

Neither may be what is measured: `Wrk.run` says how much came back, and the caller knows how much
there can be. What a client sends is made here once, for every proxy the same.
"""

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import cast

import orjson

from tests.bench.canned import BEAT_SECONDS

_SECONDS_TO_OPEN = 30.0

_LUA = """
wrk.method = "POST"
%s
local file = io.open("%s", "rb")
wrk.body = file:read("*a")
file:close()
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%%d,"microseconds":%%d,"lost":%%d,"refused":%%d,"p50":%%d,"p99":%%d}\\n',
    summary.requests, summary.duration, errors.connect + errors.read + errors.write + errors.timeout,
    errors.status, latency:percentile(50), latency:percentile(99)))
end
"""


class CannotMeasure(Exception):
    """There is no figure, and this is why."""


def body(model: str, text: str = "hello there, how do you do today?", *, stream: bool) -> bytes:
    """Return a chat request of about 150 bytes for *model*."""
    told = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "temperature": 0.7,
        "stream": stream,
        "user": "somebody",
    }
    return orjson.dumps(told)


@dataclass(frozen=True)
class Run:
    """What came of one load: of *requests*, so many were *lost* or *refused*."""

    requests: int
    seconds: float
    lost: int
    refused: int
    p50_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


class Wrk:
    """Loads one URL after the other with wrk, one thread."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        found = shutil.which("wrk")
        if found is None:
            raise CannotMeasure("wrk is not installed: `apt-get install wrk` (Debian, Ubuntu)")
        self._wrk = found

    def run(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        connections: int,
        seconds: float,
        *,
        status: bool = True,
    ) -> Run:
        """Send *body* over and over; unless *status* is false, an answer that is no 2xx is an error."""
        file, script = self._directory / "body", self._directory / "load.lua"
        file.write_bytes(body)
        lines = [
            f'wrk.headers["{name}"] = "{value}"'
            for name, value in {**headers, "Content-Type": "application/json"}.items()
        ]
        script.write_text(_LUA % ("\n".join(lines), file))
        # wrk knows whole seconds only: it is ended by a signal, on which it reports.
        longest = f"-d{int(seconds) + 2}"
        command = [self._wrk, "-t1", f"-c{connections}", longest, "--timeout", "60s"]
        with subprocess.Popen(
            [*command, "-s", str(script), url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            except BaseException:
                process.kill()
                raise
            out, _ = process.communicate(timeout=30)
        try:
            told = orjson.loads(out[out.rindex(b'{"requests"') :])
        except ValueError as error:
            raise CannotMeasure(f"wrk said: {out.decode(errors='replace')[-300:]}") from error
        ran = Run(
            told["requests"],
            told["microseconds"] / 1e6,
            told["lost"],
            told["refused"],
            told["p50"],
            told["p99"],
        )
        if ran.lost or (status and ran.refused):
            raise CannotMeasure(
                f"of {ran.requests} requests {ran.lost} were lost, {ran.refused} refused"
            )
        return ran


class Streams:
    """Clients that hold a stream each, and count what comes."""

    def __init__(self) -> None:
        self.events = 0
        self.begun = 0
        self.lost = 0
        self._clients: list[Client] = []

    async def open(
        self,
        port: int,
        body: bytes,
        headers: Mapping[str, str],
        number: int,
    ) -> None:
        """Open *number* streams, and wait until each has brought an event."""
        loop = asyncio.get_running_loop()
        request = post(port, body, headers)
        for at in range(number):
            client = Client(self, request)
            self._clients.append(client)
            await loop.create_connection(client.itself, "127.0.0.1", port)
            if at % 10 == 9:
                await asyncio.sleep(0.004)
        over = loop.time() + _SECONDS_TO_OPEN
        while self.begun < len(self._clients) and not self.lost and loop.time() < over:
            await asyncio.sleep(0.02)
        if self.begun < len(self._clients):
            told = {bytes(c.first.partition(b"\r\n")[0]) for c in self._clients if c.first}
            said = b", ".join(sorted(told - {b"HTTP/1.1 200 OK"})).decode(errors="replace")
            raise CannotMeasure(
                f"{self.begun} of {len(self._clients)} streams began, {self.lost} were lost"
                + (f": {said}" if said else "")
            )

    async def count(self, seconds: float) -> tuple[int, float]:
        """Return how many events come within *seconds*, and how many seconds those were."""
        loop = asyncio.get_running_loop()
        events, begun = self.events, loop.time()
        await asyncio.sleep(seconds)
        if self.lost:
            raise CannotMeasure(f"{self.lost} streams were cut")
        return self.events - events, loop.time() - begun

    def close(self) -> None:
        """Leave them all."""
        for client in self._clients:
            client.leave()
        self._clients.clear()


class Client(asyncio.Protocol):
    """One stream."""

    def __init__(self, streams: Streams, request: bytes) -> None:
        self._streams = streams
        self._request = request
        self._transport: asyncio.Transport | None = None
        self._begun = False
        self.first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        events = data.count(b"data: ")
        self._streams.events += events
        if not self._begun:
            self.first += data[:500]
            if events:
                self._begun = True
                self._streams.begun += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._streams.lost += 1

    def itself(self) -> "Client":
        """Return the protocol that is wanted for a connection."""
        return self

    def leave(self) -> None:
        """Break the connection off."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


def first_events(port: int, body: bytes, headers: Mapping[str, str], seconds: float) -> float:
    """Ask for one stream after the other for a while; return the median of the seconds until the first
    event of each has come.
    """
    request = post(port, body, headers)
    waited = []
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        over = monotonic() + seconds
        while monotonic() < over:
            begun = perf_counter()
            sock.sendall(request)
            came = b""
            while b"data: " not in came:
                came += _some(sock)
            waited.append(perf_counter() - begun)
            while not came.endswith(b"\r\n0\r\n\r\n"):
                came = came[-7:] + _some(sock)
    return median(waited)


def _some(sock: socket.socket) -> bytes:
    data = sock.recv(262_144)
    if not data:
        raise CannotMeasure("the connection was closed after a stream")
    return data


def post(port: int, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a request, written out."""
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{head}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def nominal(streams: int) -> float:
    """Return how many events a second *streams* paced streams bring."""
    return streams / BEAT_SECONDS
