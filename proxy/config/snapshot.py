"""A snapshot: everything read from `routes.toml`, frozen, swapped whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from proxy.config.live import Live
from proxy.config.problems import Problem
from proxy.hooks import Hook
from proxy.keys import KeyRing
from proxy.routes import RouteTable, Timeouts, Unrouted, Upstream
from proxy.surfaces import Surface


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for the process. Sizes in bytes, times in seconds; no *workers* means one per core, and
    a worker that says nothing for *worker_timeout* is ended. A peer that is not heard of for *peer_timeout* is
    taken for gone.
    """

    max_body: int
    max_inflight: int
    max_held: int
    drain: float | None
    lame_duck: float
    keepalive_idle: float
    workers: int | None
    worker_timeout: float | None
    peer_timeout: float | None
    log_format: str
    log_level: str


LASTING = {"workers": "server.workers", "log_format": "log.format", "log_level": "log.level"}
"""What a process has from its start to its end, and what it is called in the file."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One reading of *file*.

    *unrouted* says which upstream serves a path that carries no model; *live* are the secrets that
    change; *notes* are what `check` says besides. *keyed* says that keys are, or were in this process,
    in force; *closed* are the surfaces that ask for keys for that reason alone.
    """

    file: str
    digest: str
    loaded: datetime
    settings: Settings
    surfaces: tuple[Surface, ...]
    upstreams: Mapping[str, Upstream]
    routes: RouteTable
    keys: KeyRing
    unrouted: Unrouted
    hooks: Mapping[str, Hook]
    live: tuple[Live, ...] = ()
    notes: tuple[Problem, ...] = ()
    keyed: bool = False
    closed: tuple[str, ...] = ()

    def keys_in_force(self, now: datetime) -> int:
        """Return how many keys open something *now*."""
        if all(surface.auth != "keys" for surface in self.surfaces):
            return 0
        return sum(not key.expired(now) for key in self.keys)

    def writes(self) -> dict[str, float | None]:
        """Return the longest `write` that may hold at each upstream, by its name, None for ever."""
        found: dict[str, float | None] = {}
        places = [(one, one.timeouts) for one in self.upstreams.values()]
        for route in self.routes.routes:
            places += [(target.upstream, target.timeouts) for target in route.targets()]
        for upstream, timeouts in places:
            write = found.get(upstream.name, 0.0)
            if write is not None:
                write = None if timeouts.write is None else max(write, timeouts.write)
            found[upstream.name] = write
        return found


def takes_restart(begun: Snapshot, now: Snapshot) -> list[str]:
    """Return what a process that has *begun* with one file cannot make true of the one that it serves
    *now*, as the file calls it.
    """
    before, after = begun.settings, now.settings
    return [
        name for field, name in LASTING.items() if getattr(before, field) != getattr(after, field)
    ]


TIMEOUT_NAMES = tuple(Timeouts.__dataclass_fields__)
