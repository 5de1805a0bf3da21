"""`GET /status`, and `/status/events` as a stream of it: how we are, and what we are doing.

Channels are upstreams with their state, sessions exchanges in flight. Nothing of it is secret: no
address, no key, no text of anybody's.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import orjson

from proxy import __version__
from proxy.answers import author, respond
from proxy.balance import Scores
from proxy.breaker import Health
from proxy.config import Snapshot
from proxy.edge import Request
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.frame import Endpoint
from proxy.routes import Upstream
from proxy.surfaces import Surface

EVERY_SECONDS = 1.0

Facts = dict[str, Any]
Shows = Callable[[str], bool]
Everywhere = Callable[[Facts], Awaitable[Facts]]
"""Returns how all workers are, where one of them knows its own *facts*."""
_WORSE = ("ready", "resting", "open", "dormant")


class Status:
    """What `/status` says: of *snapshot*, since *started*, with the *scores* and the *sessions*."""

    def __init__(
        self,
        snapshot: Snapshot,
        scores: Scores,
        sessions: Iterable[Exchange],
        started: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._scores = scores
        self._sessions = sessions
        self._started = started
        self._clock = clock

    def told(self, asking: Exchange | None = None, shows: Shows = lambda _: True) -> Facts:
        """Return it as JSON has it, to *asking*, which is no session; with the names of the routes that
        it *shows*.
        """
        return shown(self.facts(asking), shows)

    def facts(self, asking: Exchange | None = None) -> Facts:
        """Return what there is to tell to *asking*, in full."""
        now, snapshot = self._clock(), self._snapshot
        others = [exchange for exchange in self._sessions if exchange is not asking]
        sessions = [self._session(exchange, now) for exchange in others]
        return {
            "status": "ok",
            "version": __version__,
            "uptime_seconds": round(now - self._started, 3),
            "snapshot": {
                "digest": snapshot.digest[:12],
                "loaded": snapshot.loaded.isoformat(timespec="seconds").replace("+00:00", "Z"),
                "routes": len(snapshot.routes.routes),
            },
            "connected_channels": sum(
                upstream.lacks(passthrough=False) is None
                for upstream in snapshot.upstreams.values()
            ),
            "active_sessions": len(sessions),
            "channels": [self._channel(one, now) for one in snapshot.upstreams.values()],
            "sessions": sessions,
        }

    def _channel(self, upstream: Upstream, now: float) -> Facts:
        healths = self._scores.of(upstream)
        answers = [health.answers(now) for health in healths]
        known = [health.latency for health in healths if health.latency]
        return {
            "name": upstream.name,
            "state": _state(upstream, healths, now),
            "in_flight": healths[0].load.active,
            "error_rate": [sum(good for good, _ in answers), sum(bad for _, bad in answers)],
            "first_byte_ms": round(min(known) * 1000, 1) if known else None,
        }

    def _session(self, exchange: Exchange, now: float) -> Facts:
        attempt = exchange.attempts[-1] if exchange.attempts else None
        return {
            "id": exchange.id,
            "surface": exchange.surface,
            "route": exchange.route.name if exchange.route else None,
            "upstream": exchange.upstream.name if exchange.upstream else None,
            "phase": attempt.phase if attempt else "reading",
            "age_seconds": round(now - exchange.received, 3),
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
        }


def _state(upstream: Upstream, healths: list[Health], now: float) -> str:
    """Say whether *upstream* works: dormant, open (its breaker), resting, or ready."""
    if upstream.lacks(passthrough=False) is not None:
        return "dormant"
    if any(health.ready(now) for health in healths):
        return "ready"
    return "open" if any(health.open_until > now for health in healths) else "resting"


def shown(facts: Facts, shows: Shows) -> Facts:
    """Return *facts* as they are told to whom the names of the routes are shown that it *shows*."""
    return facts | {
        "channels": [one | {"error_rate": _rate(*one["error_rate"])} for one in facts["channels"]],
        "sessions": [
            one | {"route": one["route"] if one["route"] and shows(one["route"]) else None}
            for one in facts["sessions"]
        ],
    }


def _rate(good: int, bad: int) -> float:
    return round(bad / (good + bad), 3) if good + bad else 0.0


def merged(asked: Facts, workers: list[Facts], uptime: float) -> Facts:
    """Return how all *workers* are: each with its `facts`, None if it does not say. What all have in
    common is taken from *asked*.
    """
    told = [worker["facts"] for worker in workers if worker["facts"] is not None]
    by_name: dict[str, list[Facts]] = {one["name"]: [] for one in asked["channels"]}
    for facts in told:
        for one in facts["channels"]:
            by_name.setdefault(one["name"], []).append(one)
    sessions = [
        one | {"worker": worker["worker"]}
        for worker in workers
        for one in (worker["facts"] or {"sessions": []})["sessions"]
    ]
    return asked | {
        "uptime_seconds": round(uptime, 3),
        "active_sessions": len(sessions),
        "channels": [_together(channels) for channels in by_name.values() if channels],
        "sessions": sessions,
        "workers": [
            {name: value for name, value in worker.items() if name != "facts"} for worker in workers
        ],
    }


def _together(channels: list[Facts]) -> Facts:
    known = [one["first_byte_ms"] for one in channels if one["first_byte_ms"] is not None]
    rates = [one["error_rate"] for one in channels]
    return {
        "name": channels[0]["name"],
        "state": max((one["state"] for one in channels), key=_WORSE.index),
        "in_flight": sum(one["in_flight"] for one in channels),
        "error_rate": [sum(good for good, _ in rates), sum(bad for _, bad in rates)],
        "first_byte_ms": min(known, default=None),
    }


def endpoint(
    forward: Forward, surface: Surface, status: Status, everywhere: Everywhere | None = None
) -> Endpoint:
    """Return what answers with the status, once: of this process, or of all of them *everywhere*."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        shows = _shown(exchange, forward, surface)
        facts = status.facts(exchange)
        if everywhere is not None:
            facts = await everywhere(facts)
        return respond(exchange, request, orjson.dumps(shown(facts, shows)))

    return Endpoint(("GET", "HEAD"), handle)


def events(
    forward: Forward, surface: Surface, status: Status, everywhere: Everywhere | None = None
) -> Endpoint:
    """Return what answers with the status, each second anew, until the client leaves."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        shows = _shown(exchange, forward, surface)
        async with author(exchange, request) as stream:
            while True:
                facts = status.facts(exchange)
                if everywhere is not None:
                    facts = await everywhere(facts)
                await stream.send(orjson.dumps(shown(facts, shows)).decode())
                await asyncio.sleep(EVERY_SECONDS)
        return False

    return Endpoint(("GET",), handle)


def _shown(exchange: Exchange, forward: Forward, surface: Surface) -> Shows:
    """Identify who asks; return what says whether they may see the name of a route."""
    key = exchange.key = forward.identify(exchange, surface)
    return lambda name: surface.shows(name) and (key is None or key.may_ask(name))
