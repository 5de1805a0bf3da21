"""Which clocks an answer runs against before it begins, and which of them cuts first.

`bounds` are those clocks as values, of one target and one head: who tells of a request before it is sent
prints them. The road has them in loop time: `clocks_of` for each attempt, `deadline_of` once one has
failed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Literal

from proxy.exchange import Exchange
from proxy.routes import Target, Timeouts
from proxy.upstream.hints import patience

SENDING = b"x-stainless-timeout"
"""Says for how many seconds an SDK waits, from before it sends."""
READING = b"x-stainless-read-timeout"
"""Says for how many it waits from when it has sent all."""


@dataclass(frozen=True, slots=True)
class Bound:
    """One clock: an answer must have begun *seconds* after the head or the body of the request came in, or
    after all was sent to the upstream. *name* is the timeout's, or the header's that asks for it.
    """

    name: str
    seconds: float
    since: Literal["head", "body", "sent"]


def bounds(timeouts: Timeouts, told: Mapping[bytes, bytes]) -> list[Bound]:
    """Return what bounds the wait for an answer: a target's *timeouts*, and what an SDK has *told*, in headers
    by their names in lower case.
    """
    clocks: tuple[tuple[str, float | None, Literal["head", "body", "sent"]], ...] = (
        ("first_byte", timeouts.first_byte, "sent"),
        ("total", timeouts.total, "head"),
        (READING.decode(), patience(told.get(READING)), "body"),
        (SENDING.decode(), patience(told.get(SENDING)), "head"),
    )
    return [Bound(name, seconds, since) for name, seconds, since in clocks if seconds is not None]


@dataclass(frozen=True, slots=True)
class Clocks:
    """*until* when, in loop time, an answer must have begun, and for how many seconds from when all was
    sent there is *patience*, where only the end of an upload tells when that is.
    """

    until: float = inf
    patience: float | None = None


_NONE = Clocks()


def clocks_of(exchange: Exchange, target: Target, *, upload: bool) -> Clocks:
    """Return the clocks of *exchange*, first asked of *target*, but for `first_byte`, which runs anew for
    each attempt.
    """
    told, timeouts = exchange.headers.first, target.timeouts
    if timeouts.total is None and READING not in told and SENDING not in told:  # as mostly
        return _NONE
    until, waits = inf, None
    for bound in bounds(timeouts, told):
        if bound.since == "head":
            until = min(until, exchange.received + bound.seconds)
        elif bound.since == "body" and upload:
            waits = bound.seconds
        elif bound.since == "body":
            until = min(until, _asked_at(exchange) + bound.seconds)
    return Clocks(until, waits)


def deadline_of(exchange: Exchange, target: Target, clocks: Clocks) -> float:
    """Return after when, in loop time, no further attempt of *exchange*, first asked of *target*, is begun."""
    seconds = target.retry.deadline
    return clocks.until if seconds is None else min(clocks.until, _asked_at(exchange) + seconds)


def _asked_at(exchange: Exchange) -> float:
    return exchange.received if exchange.read is None else exchange.read
