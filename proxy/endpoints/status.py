"""`GET /status`, and `/status/events` as a stream of it: how we are, and what we are doing.

Channels are upstreams with their state, sessions exchanges in flight. Nothing of it is secret: no
address, no key but by its name, no text of anybody's; and who may ask for some models only sees what
concerns those.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from proxy import __version__
from proxy.client.answers import author, respond
from proxy.client.edge import Request
from proxy.client.frame import Endpoint
from proxy.config import Snapshot
from proxy.exchange import Exchange
from proxy.forward import Forward
from proxy.keys import Key
from proxy.routes import Upstream
from proxy.sight import Sight
from proxy.surfaces import Surface
from proxy.upstream.balance import Scores
from proxy.upstream.breaker import FAILURE_SECONDS, Health

EVERY_SECONDS = 1.0

Facts = dict[str, Any]
Everywhere = Callable[[Facts], Awaitable[Facts]]
"""Returns how all workers are, where one of them knows its own *facts*."""
_WORSE = ("ready", "resting", "failing", "open", "unknown", "dormant")
"""States, from good to bad."""


class Status:
    """What `/status` says: of *snapshot*, since *started*, with the *scores* and the *sessions*, what
    connections are *doing*, and how many lines of the log are *lost*.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        scores: Scores,
        sessions: Iterable[Exchange],
        started: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
        lost: Callable[[], int] = lambda: 0,
        doing: Callable[[], Mapping[str, Counter[str]]] = dict,
    ) -> None:
        self._lost = lost
        self._doing = doing
        self._snapshot = snapshot
        self._scores = scores
        self._sessions = sessions
        self._started = started
        self._clock = clock
        self._wall = wall

    def sight(self, surface: Surface, key: Key | None) -> Sight:
        """Return what is shown to whom asks with *key* on *surface*."""
        return Sight(surface, key, self._snapshot.routes)

    def told(self, asking: Exchange | None = None) -> Facts:
        """Return it as JSON has it, to *asking*, which is no session, and sees all."""
        return shown(self.facts(asking), Sight())

    def facts(self, asking: Exchange | None = None) -> Facts:
        """Return what there is to tell to *asking*, in full."""
        now, snapshot, doing = self._clock(), self._snapshot, self._doing()
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
            "connected_channels": 0,  # counted when it is known who asks: `shown`
            "active_sessions": len(sessions),
            "log_lines_dropped": self._lost(),
            "channels": [
                self._channel(one, now, doing.get(one.name, {}))
                for one in snapshot.upstreams.values()
            ],
            "sessions": sessions,
        }

    def _channel(self, upstream: Upstream, now: float, doing: Mapping[str, int]) -> Facts:
        healths = self._scores.of(upstream)
        known = [health.latency for health in healths if health.latency]
        failures = _sum(health.failures.lately(now) for health in healths)
        succeeded = max(health.good for health in healths) > now - FAILURE_SECONDS
        states = _states(upstream, healths, now)
        return {
            "name": upstream.name,
            "state": _channel_state(upstream, states, failing=bool(failures) and not succeeded),
            "in_flight": healths[0].load.active,
            "connections": dict(doing),
            "error_rate": _totals(health.answers(now) for health in healths),
            "first_byte_ms": round(min(known) * 1000, 1) if known else None,
            "failures": failures,
            "last_error": self._last_error(healths, now),
            "credentials": [
                {"source": one.secret.source, "state": state}
                for one, state in zip(upstream.credentials, states, strict=False)
            ],
        }

    def _last_error(self, healths: Iterable[Health], now: float) -> Facts | None:
        last = max((health.failures for health in healths), key=lambda failures: failures.at)
        return {"code": last.code, "at": self._time(last.at, now)} if last.code else None

    def _time(self, moment: float, now: float) -> str:
        """Return the *moment* of our clock, which says *now*, as others write it."""
        at = self._wall() - timedelta(seconds=now - moment)
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _session(self, exchange: Exchange, now: float) -> Facts:
        attempt = exchange.attempts[-1] if exchange.attempts else None
        return {
            "id": exchange.id,
            "surface": exchange.surface,
            "key": exchange.key.name if exchange.key else None,
            "model": exchange.model,
            "route": exchange.route.name if exchange.route else None,
            "upstream": exchange.upstream.name if exchange.upstream else None,
            "phase": attempt.phase if attempt else "reading",
            "age_seconds": round(now - exchange.received, 3),
            "bytes_in": exchange.bytes_in,
            "bytes_out": exchange.bytes_out,
        }


def _states(upstream: Upstream, healths: Iterable[Health], now: float) -> list[str]:
    """Say how each credential of *upstream* does; how it does itself, where it has none."""
    have = [one.secret.known for one in upstream.credentials] or [True]
    return [_state(*one, now) for one in zip(healths, have, strict=True)]


def _state(health: Health, known: bool, now: float) -> str:
    """Say how a credential does that has the score *health*; nothing can be said of one that has no value
    yet, which is not *known*.
    """
    if not known:
        return "unknown"
    if health.is_open(now):
        return "open"
    if health.resting(now):
        return "resting"
    failing = health.failures.lately(now) and health.good <= now - FAILURE_SECONDS
    return "failing" if failing else "ready"


def _channel_state(upstream: Upstream, states: list[str], *, failing: bool) -> str:
    """Say how *upstream* does, whose credentials are in *states*: as well as the best of them lets it,
    and *failing* where of all of them none has succeeded lately, and one has failed.
    """
    if upstream.lacks(passthrough=False) is not None:
        return "dormant"
    if "ready" in states or "failing" in states:
        return "failing" if failing else "ready"
    return next(state for state in ("open", "resting", "unknown") if state in states)


def shown(facts: Facts, sight: Sight) -> Facts:
    """Return *facts* as they are told in the *sight* of who asks."""
    channels = [one for one in facts["channels"] if sight.sees(one["name"])]
    return facts | {
        "connected_channels": sum(one["state"] != "dormant" for one in channels),
        "channels": [one | {"error_rate": _rate(*one["error_rate"])} for one in channels],
        "sessions": [
            one
            | {
                "key": one["key"] if sight.names(one["key"]) else None,
                "model": one["model"] if sight.shows(one["model"]) else None,
                "route": one["route"] if sight.shows(one["route"]) else None,
                "upstream": one["upstream"] if sight.sees(one["upstream"]) else None,
            }
            for one in facts["sessions"]
        ],
    }


def _rate(good: int, bad: int) -> float:
    return round(bad / (good + bad), 3) if good + bad else 0.0


def merged(asked: Facts, workers: list[Facts], uptime: float, dropped: int = 0) -> Facts:
    """Return how all *workers* are: each with its `facts`, None if it does not say. What all have in
    common is taken from *asked*; of their supervisor's log *dropped* lines are lost.
    """
    told = _column(workers, "facts")
    sessions = [
        one | {"worker": worker["worker"]}
        for worker in workers
        for one in (worker["facts"] or {"sessions": []})["sessions"]
    ]
    return asked | {
        "uptime_seconds": round(uptime, 3),
        "active_sessions": len(sessions),
        "log_lines_dropped": dropped + sum(_column(told, "log_lines_dropped")),
        "channels": _channels(asked, told),
        "sessions": sessions,
        "workers": [
            {name: value for name, value in worker.items() if name != "facts"} for worker in workers
        ],
    }


def _channels(asked: Facts, told: list[Facts]) -> list[Facts]:
    by_name: dict[str, list[Facts]] = {one["name"]: [] for one in asked["channels"]}
    for facts in told:
        for one in facts["channels"]:
            by_name.setdefault(one["name"], []).append(one)
    return [_together(channels) for channels in by_name.values() if channels]


def _together(channels: list[Facts]) -> Facts:
    errors = _column(channels, "last_error")
    return {
        "name": channels[0]["name"],
        "state": _worst(_column(channels, "state")),
        "in_flight": sum(_column(channels, "in_flight")),
        "connections": _sum(_column(channels, "connections")),
        "error_rate": _totals(_column(channels, "error_rate")),
        "first_byte_ms": min(_column(channels, "first_byte_ms"), default=None),
        "failures": _sum(_column(channels, "failures")),
        "last_error": max(errors, key=lambda error: str(error["at"]), default=None),
        "credentials": [
            {"source": alike[0]["source"], "state": _worst(_column(alike, "state"))}
            for alike in zip(*_column(channels, "credentials"), strict=False)
        ],
    }


def _column(rows: Iterable[Facts], name: str) -> list[Any]:
    """Return what the *rows* have under *name*, where they have anything."""
    return [row[name] for row in rows if row[name] is not None]


def _totals(pairs: Iterable[Iterable[int]]) -> list[int]:
    return [*map(sum, zip(*pairs, strict=True))]


def _sum(counts: Iterable[Mapping[Any, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()))


def _worst(states: Iterable[str]) -> str:
    return max(states, key=_WORSE.index)


def endpoint(
    forward: Forward, surface: Surface, status: Status, everywhere: Everywhere | None = None
) -> Endpoint:
    """Return what answers with the status, once: of this process, or of all of them *everywhere*."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        sight = _view(exchange, forward, surface, status)
        facts = status.facts(exchange)
        if everywhere is not None:
            facts = await everywhere(facts)
        return respond(exchange, request, orjson.dumps(shown(facts, sight)))

    return Endpoint(("GET", "HEAD"), handle)


def events(
    forward: Forward, surface: Surface, status: Status, everywhere: Everywhere | None = None
) -> Endpoint:
    """Return what answers with the status, each second anew, until the client leaves."""

    async def handle(exchange: Exchange, request: Request) -> bool:
        sight = _view(exchange, forward, surface, status)
        async with author(exchange, request) as stream:
            while True:
                facts = status.facts(exchange)
                if everywhere is not None:
                    facts = await everywhere(facts)
                await stream.send(orjson.dumps(shown(facts, sight)).decode())
                await asyncio.sleep(EVERY_SECONDS)
        return False

    return Endpoint(("GET",), handle)


def _view(exchange: Exchange, forward: Forward, surface: Surface, status: Status) -> Sight:
    """Identify who asks; return what is shown to them."""
    key = exchange.key = forward.identify(exchange, surface)
    return status.sight(surface, key)
