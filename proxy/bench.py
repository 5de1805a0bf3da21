"""What the way through the proxy adds at somebody's own upstream: two ways to one model, in turn.

It opens one connection each way and sends one request at a time, so what it finds is latency, not
throughput. It must never average the two ways apart: upstreams drift, so each pair stands together.
"""

import http.client
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median, quantiles
from time import perf_counter
from urllib.parse import urlsplit

import orjson

SECONDS = 120.0
_SAID = "Count from one to twenty, in words."
_ENOUGH = 100
"""Say a 99th percentile from this many values on."""


class CannotMeasure(Exception):
    """The upstream, or the way to it, did not answer as it must."""


@dataclass
class Way:
    """One way to the model: below the base URL *url*, with these headers."""

    url: str
    headers: Mapping[str, str]
    plain: list[float] = field(default_factory=list)
    """The seconds until each plain answer was there."""
    first: list[float] = field(default_factory=list)
    """The seconds until the first bytes of each stream were."""
    gaps: list[float] = field(default_factory=list)
    """The seconds between what came of streams."""

    def __post_init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, body: bytes, clock: Callable[[], float], *, stream: bool, count: bool) -> None:
        """Send one request, and remember how long it took if it is to *count*."""
        try:
            seconds = list(self._pieces(body, clock))
        except (OSError, http.client.HTTPException) as error:
            self.close()
            said = str(error) or type(error).__name__
            raise CannotMeasure(f"{self.url}: {said}") from error
        if not count:
            return
        if stream:
            self.first.append(seconds[0])
            self.gaps += [later - at for at, later in pairwise(seconds[:-1])]
        else:
            self.plain.append(seconds[-1])

    def _pieces(self, body: bytes, clock: Callable[[], float]) -> Iterator[float]:
        """Yield after how many seconds each piece of the answer came."""
        kept = self._connection is not None
        begun = clock()
        try:
            answer = self._asked(body)
        except ConnectionError:
            if not kept:
                raise
            self.close()  # the upstream keeps it no longer than the other way has just taken
            begun = clock()
            answer = self._asked(body)
        if answer.status != http.client.OK:
            told = " ".join(answer.read(1000).decode(errors="replace").split())
            raise CannotMeasure(f"{self.url} answered {answer.status}: {told[:300]}")
        while answer.read1(65536):
            yield clock() - begun
        answer.read()  # else a body of known length is not held to be over
        yield clock() - begun

    def _asked(self, body: bytes) -> http.client.HTTPResponse:
        parts = urlsplit(self.url)
        if self._connection is None:
            self._connection = _connect(parts.scheme, parts.netloc)
        path = f"{parts.path.rstrip('/')}/chat/completions"
        self._connection.request("POST", path, body, dict(self.headers))
        return self._connection.getresponse()


def _connect(scheme: str, place: str) -> http.client.HTTPConnection:
    if scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(place, timeout=SECONDS, context=context)
    return http.client.HTTPConnection(place, timeout=SECONDS)


def measure(
    direct: Way,
    through: Way,
    model: str,
    requests: int,
    max_tokens: int,
    clock: Callable[[], float] = perf_counter,
) -> None:
    """Ask both ways in turn, *requests* times for a plain answer and as often for a stream."""
    for number in range(-1, requests):  # the first of each opens connections, and does not count
        for stream in (False, True):
            asked = {"model": model, "max_tokens": max_tokens, "stream": stream}
            body = orjson.dumps({**asked, "messages": [{"role": "user", "content": _SAID}]})
            for way in (direct, through) if number % 2 else (through, direct):
                way.ask(body, clock, stream=stream, count=number >= 0)


@dataclass(frozen=True)
class Row:
    """One line of what was found, in milliseconds; what is *added* is the median of all pairs."""

    title: str
    direct: float
    through: float
    added: float


def rows(direct: Way, through: Way) -> Iterator[Row]:
    """Yield what was found."""
    kinds = (
        ("plain answer", direct.plain, through.plain),
        ("first bytes of a stream", direct.first, through.first),
        ("between bytes of a stream", direct.gaps, through.gaps),
    )
    for title, one, other in kinds:
        if not one or not other:
            continue
        if title.startswith("between"):
            added = median(other) - median(one)  # no two streams are cut into the same pieces
        else:
            added = median(b - a for a, b in zip(one, other, strict=True))
        yield Row(f"{title}, p50", 1e3 * median(one), 1e3 * median(other), 1e3 * added)
        name, (high, higher) = _high(one, other)
        yield Row(f"{title}, {name}", 1e3 * high, 1e3 * higher, 1e3 * (higher - high))


def _high(one: list[float], other: list[float]) -> tuple[str, tuple[float, float]]:
    if min(len(one), len(other)) < _ENOUGH:
        return "slowest", (max(one), max(other))
    return "p99", (quantiles(one, n=100)[98], quantiles(other, n=100)[98])


def spread(values: list[float]) -> float:
    """Return how far the middle half of *values* lies apart, in milliseconds."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4)
    return 1e3 * (high - low)
