"""Which clocks an answer runs against, and what the road makes of them: moments in loop time."""

from math import inf

import pytest

from proxy.exchange import Exchange
from proxy.headers import Headers, Pair
from proxy.routes import Base, Origin, Retry, Target, Timeouts, Upstream
from proxy.upstream.clocks import Bound, Clocks, bounds, clocks_of, deadline_of

SENDING, READING = b"X-Stainless-Timeout", b"X-Stainless-Read-Timeout"


def exchange(*headers: Pair, read: float | None = 103.0) -> Exchange:
    """Return an exchange whose head came in at 100 s, and its body at *read*."""
    exchange = Exchange("x", "default", "POST", "/", "", Headers(headers), False, None, 100.0)
    exchange.read = read
    return exchange


def target(total: float | None = None, deadline: float | None = None) -> Target:
    upstream = Upstream("up", Base(Origin("http", "up.test", 80), ""))
    return Target(upstream, timeouts=Timeouts(total=total), retry=Retry(deadline=deadline))


def test_bounds() -> None:
    """Each bound says who asks for it, for how many seconds, and from when they count."""
    told = {b"x-stainless-timeout": b"100", b"x-stainless-read-timeout": b"10"}
    assert bounds(Timeouts(first_byte=20.0, total=30.0), told) == [
        Bound("first_byte", 20.0, "sent"),
        Bound("total", 30.0, "head"),
        Bound("x-stainless-read-timeout", 9.5, "body"),
        Bound("x-stainless-timeout", 99.0, "head"),
    ]


@pytest.mark.parametrize("told", [{}, {b"x-stainless-timeout": b"never"}])
def test_no_bounds(told: dict[bytes, bytes]) -> None:
    """What is not set, or makes no sense, bounds nothing."""
    assert bounds(Timeouts(first_byte=None), told) == []


@pytest.mark.parametrize(
    ("headers", "total", "upload", "expected"),
    [
        ((), None, False, Clocks()),
        ((), 20.0, False, Clocks(120.0)),
        ((), 20.0, True, Clocks(120.0)),
        (((SENDING, b"10"),), None, False, Clocks(109.5)),
        (((SENDING, b"10"),), 4.0, False, Clocks(104.0)),
        (((SENDING, b"10"),), 40.0, True, Clocks(109.5)),
        (((READING, b"10"),), None, False, Clocks(112.5)),
        (((READING, b"10"),), None, True, Clocks(inf, 9.5)),
        (((READING, b"10"), (SENDING, b"10")), None, False, Clocks(109.5)),
        (((READING, b"10"), (SENDING, b"10")), 5.0, True, Clocks(105.0, 9.5)),
        (((READING, b"nan"), (SENDING, b"0")), None, False, Clocks()),
    ],
)
def test_clocks(
    headers: tuple[Pair, ...], total: float | None, upload: bool, expected: Clocks
) -> None:
    """`total` and an SDK's whole patience count from the head, its patience in reading from the body, or from
    the end of an upload, which nobody knows yet; `first_byte` is of each attempt by itself.
    """
    assert clocks_of(exchange(*headers), target(total), upload=upload) == expected


def test_a_body_that_was_not_read() -> None:
    """Where no body is read, all counts from the head."""
    asked = exchange((READING, b"10"), read=None)
    assert clocks_of(asked, target(), upload=False) == Clocks(109.5)


@pytest.mark.parametrize(
    ("deadline", "clocks", "expected"),
    [
        (None, Clocks(), inf),
        (None, Clocks(104.0), 104.0),
        (5.0, Clocks(), 108.0),
        (5.0, Clocks(104.0), 104.0),
        (0.0, Clocks(104.0), 103.0),
    ],
)
def test_deadline(deadline: float | None, clocks: Clocks, expected: float) -> None:
    """Nothing is begun after the route's deadline, which counts from the body, nor when no answer could."""
    tried = target(deadline=deadline)
    assert deadline_of(exchange(), tried, clocks) == expected
