"""How each figure is got: a load, and what the loaded process used meanwhile."""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import orjson

from tests.bench.load import CannotMeasure, Run, Streams, Wrk, body, first_events, nominal
from tests.bench.processes import Child
from tests.bench.subjects import MODEL, Command, Place, Subject

CONNECTIONS = 64
IDLE_STREAMS = 500
_PATH = "/v1/chat/completions"
_NEAR = 0.8
"""From so much of what upstream and load can do alone on, they are what is measured."""
_DEAR = 0.004
"""Of requests that cost so many seconds of CPU, a run lasts longer and has fewer connections."""
_FEW = 8
_IDLE_SECONDS = 0.02
"""Who uses no more CPU than this in 0.2 s has nothing to do."""


class Limited(CannotMeasure):
    """The upstream or the load was the limit."""


@dataclass
class Upstream:
    """The canned upstream, and what it and the load can do alone, by the kind of load."""

    child: Child
    port: int
    safe: int
    ca: Path
    limits: dict[str, float] = field(default_factory=dict)


@dataclass
class Running:
    """A subject that runs."""

    subject: Subject
    command: Command
    child: Child
    port: int

    def request(self, method: str, path: str, seconds: float = 5.0) -> int:
        """Send one request by hand; return the status of its answer, 0 if there is none."""
        sent = body(MODEL, stream=False) if method == "POST" else b""
        head = "".join(f"{k}: {v}\r\n" for k, v in self.command.headers.items())
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n{head}Connection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n\r\n"
        )
        try:
            with socket.create_connection(("127.0.0.1", self.port), seconds) as sock:
                sock.settimeout(seconds)
                sock.sendall(request.encode() + sent)
                answer = sock.recv(4096)
        except OSError:
            return 0
        return int(answer[9:12]) if answer[:7] == b"HTTP/1." else 0


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def start(
    subject: Subject, place: Place, core: int, seconds: float = 90.0
) -> tuple[Running, float]:
    """Start *subject*; return it, and the seconds from exec to its first answer."""
    command = subject.command(place)
    begun = monotonic()
    child = Child(command.argv, place.directory, core, command.env)
    running = Running(subject, command, child, place.port)
    ask = ("GET", subject.health) if subject.health else ("POST", _PATH)
    while (status := running.request(*ask)) != 200:
        if child.status is not None or monotonic() > begun + seconds:
            child.end()
            raise CannotMeasure(f"did not start ({status or 'no answer'}): {child.complaint()}")
        sleep(0.001)
    ready = monotonic() - begun
    if running.request("POST", _PATH) != 200:
        child.end()
        raise CannotMeasure(f"does not relay: {child.complaint()}")
    return running, ready


@dataclass
class Bench:
    """All that a measure needs."""

    upstream: Upstream
    wrk: Wrk
    seconds: float

    def cost(
        self, running: Running, sent: bytes, connections: int = CONNECTIONS
    ) -> tuple[float, Run]:
        """Return the seconds of CPU that each request *sent* costs, and the run."""
        url = f"http://127.0.0.1:{running.port}{_PATH}"
        headers, seconds = running.command.headers, self.seconds
        before = running.child.cpu()
        warm = self.wrk.run(url, sent, headers, connections, max(0.2, seconds / 4))
        dear = (running.child.cpu() - before) / max(1, warm.requests)
        if dear > _DEAR:  # what was begun and not finished must not weigh
            connections, seconds = min(connections, _FEW), seconds * 3
            self.quiet(running)
        before = running.child.cpu()
        run = self.wrk.run(url, sent, headers, connections, seconds)
        used = running.child.cpu() - before
        if run.requests < 2 * connections:
            raise CannotMeasure(f"{run.requests} requests were answered within {seconds:.1f} s")
        return used / run.requests, run

    def quiet(self, running: Running, seconds: float = 10.0) -> None:
        """Wait until *running* has done what it was asked before."""
        used, over = -1.0, monotonic() + seconds
        while (now := running.child.cpu()) - used > _IDLE_SECONDS and monotonic() < over:
            used = now
            sleep(0.2)

    def limit(self, kind: str, safe: bool, sent: bytes) -> float:
        """Return how many requests a second upstream and load do alone."""
        name = f"{kind}{'-tls' * safe}"
        if name not in self.upstream.limits:
            run = self.direct(sent, CONNECTIONS, safe=safe)
            self.upstream.limits[name] = run.rate
        return self.upstream.limits[name]

    def direct(self, sent: bytes, connections: int, *, safe: bool = False) -> Run:
        """Load the upstream itself."""
        scheme, port = ("https", self.upstream.safe) if safe else ("http", self.upstream.port)
        url = f"{scheme}://127.0.0.1:{port}{_PATH}"
        return self.wrk.run(url, sent, {}, connections, max(0.3, self.seconds))


Measured = dict[str, float]


def plain(bench: Bench, running: Running) -> Measured:
    """Plain requests, 64 at a time."""
    sent = body(MODEL, stream=False)
    limit = bench.limit("plain", running.subject.safe, sent)
    before = running.child.cpus()
    cost, run = bench.cost(running, sent)
    _not_limited(run.rate, limit, "requests")
    found = {"plain64": cost * 1e6, "rate64": run.rate}
    after = running.child.cpus()
    each: list[float] = sorted((used - before.get(pid, 0.0) for pid, used in after.items()))
    if len(each) > 2:
        found["share"] = 100 * each[-1] / (sum(each) or 1.0)
    return found


def single(bench: Bench, running: Running) -> Measured:
    """One connection: what the way through adds, and what it costs then."""
    sent = body(MODEL, stream=False)
    direct = bench.direct(sent, 1, safe=running.subject.safe)
    cost, run = bench.cost(running, sent, 1)
    asked = body(MODEL, stream=True)
    some = bench.seconds / 2
    through = first_events(running.port, asked, running.command.headers, some)
    found = {
        "plain1": cost * 1e6,
        "added_p50": run.p50_us - direct.p50_us,
        "added_p99": run.p99_us - direct.p99_us,
    }
    if not running.subject.safe:
        alone = first_events(bench.upstream.port, asked, {}, some)
        found["first"] = (through - alone) * 1e6
    return found


def streams(kind: str) -> Callable[[Bench, Running], Measured]:
    """Return the measure of streams of this *kind*, whose events come without a pause."""

    def measure(bench: Bench, running: Running) -> Measured:
        sent = body(MODEL, kind, stream=True)
        limit = bench.limit(kind, running.subject.safe, sent)
        cost, run = bench.cost(running, sent)
        if kind not in SLOW_UPSTREAM:
            _not_limited(run.rate, limit, "streams")
        return {kind: cost * 1e6}

    return measure


def paced(number: int) -> Callable[[Bench, Running], Measured]:
    """Return the measure of *number* paced streams."""

    def measure(bench: Bench, running: Running) -> Measured:
        name = f"paced{number}"
        if name not in bench.upstream.limits:
            rate, _ = asyncio.run(_paced(bench.upstream.port, {}, number, bench.seconds, None))
            bench.upstream.limits[name] = rate
        if bench.upstream.limits[name] < 0.9 * nominal(number):
            raise Limited(f"{number} paced streams are more than upstream and client can do")
        headers = running.command.headers
        rate, cost = asyncio.run(_paced(running.port, headers, number, bench.seconds, running))
        bench.quiet(running)  # all of them leave, and their upstream's side too
        if rate < 0.9 * nominal(number):
            busy = cost * rate
            told = f"{rate:.0f} events/s came of {nominal(number):.0f}"
            if busy < 0.8:
                raise Limited(f"{told}, and the proxy was only {busy:.0%} busy")
            raise CannotMeasure(f"could not keep the pace: {told}")
        return {name: cost * 1e6}

    return measure


async def _paced(
    port: int, headers: Mapping[str, str], number: int, seconds: float, running: Running | None
) -> tuple[float, float]:
    """Return the events a second, and what each cost *running*."""
    streams = Streams()
    try:
        await streams.open(port, body(MODEL, "paced", stream=True), headers, number)
        await streams.count(max(0.2, seconds / 4))
        before = running.child.cpu() if running else 0.0
        events, passed = await streams.count(seconds)
        used = running.child.cpu() - before if running else 0.0
    finally:
        streams.close()
    return events / passed, used / max(1, events)


def idle(bench: Bench, running: Running) -> Measured:
    """What it holds that has just begun."""
    del bench
    return {"rss_idle": running.child.resident()}


def opened(bench: Bench, running: Running) -> Measured:
    """What an open stream holds that brings nothing."""
    found = asyncio.run(_opened(running))
    bench.quiet(running)
    return found


async def _opened(running: Running) -> Measured:
    sent = body(MODEL, "idle", stream=True)
    streams = Streams()
    try:
        await streams.open(running.port, sent, running.command.headers, 20)
        await asyncio.sleep(0.2)
        few = running.child.resident()
        await streams.open(running.port, sent, running.command.headers, IDLE_STREAMS)
        await asyncio.sleep(0.2)
        many = running.child.resident()
    finally:
        streams.close()
    return {"rss_stream": (many - few) * 1000 / IDLE_STREAMS}


def loaded(bench: Bench, running: Running) -> Measured:
    """What it holds after all the rest."""
    del bench
    return {"rss_loaded": running.child.resident()}


def unknown(bench: Bench, running: Running) -> Measured:
    """A model that no route knows: the nearest names are looked for."""
    url = f"http://127.0.0.1:{running.port}{_PATH}"
    sent = body("othr-77/qwen", stream=False)
    run = bench.wrk.run(url, sent, running.command.headers, 1, bench.seconds, status=False)
    if run.refused != run.requests or not run.requests:
        raise CannotMeasure("an unknown model was not refused")
    return {"unknown": run.p50_us}


def shapes(size: int) -> dict[str, bytes]:
    """Return bodies of *size* bytes in three shapes, `model` last."""
    message = b'{"role":"user","content":"' + b"x" * 70 + b'"}'
    number = b"-0.123,"
    inside = {
        "string": b'{"messages":[{"role":"user","content":"' + b"x" * size + b'"}]',
        "messages": b'{"messages":[' + b",".join([message] * (size // len(message))) + b"]",
        "numbers": b'{"input":[' + number * (size // len(number)) + b"0]",
    }
    last = orjson.dumps({"model": MODEL})[1:]
    return {name: text + b"," + last for name, text in inside.items()}


def bodies(bench: Bench, running: Running) -> Measured:
    """Large bodies, whose model is renamed."""
    found = {}
    for name, sent in shapes(1_000_000).items():
        cost, _ = bench.cost(running, sent, 1)
        found[name] = cost * 1e3
    large = shapes(20_000_000)["messages"]
    cost, _ = bench.cost(running, large, 1)
    return {**found, "large": cost * 1e3 / 20}


MEASURES: Mapping[str, Callable[[Bench, Running], Measured]] = {
    "idle": idle,
    "opened": opened,
    "plain": plain,
    "single": single,
    "stream": streams("stream"),
    "pieces": streams("pieces"),
    "burst": streams("burst"),
    "paced100": paced(100),
    "paced500": paced(500),
    "unknown": unknown,
    "bodies": bodies,
    "loaded": loaded,
}
"""Each measure, in the order in which they are taken."""
FRESH = frozenset({"idle", "opened"})
"""What is taken once, of processes that have done nothing else."""
SLOW_UPSTREAM = frozenset({"pieces", "burst"})
"""Where the upstream is the limit of a fast proxy by what the measure is: the CPU is counted all the same."""
OURS = frozenset({"unknown", "bodies"})
"""What only Trunkline is asked."""


def _not_limited(rate: float, limit: float, what: str) -> None:
    if rate > _NEAR * limit:
        raise Limited(
            f"{rate:.0f} {what}/s came through, {limit:.0f} is all that upstream and load can do: "
            "a figure would tell about them"
        )
