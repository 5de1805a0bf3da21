"""Which of several targets, and which of an upstream's credentials, an attempt goes to."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

from proxy.credentials import Credential
from proxy.dialects import Dialect
from proxy.outbound import Signature, sign
from proxy.routes import Group, Target, Upstream
from proxy.upstream.breaker import Health, Load


@dataclass(frozen=True, slots=True)
class Choice:
    """Where an attempt goes: a *target*, one of its upstream's credentials, and the score of it.

    Two are the same where these are: an exchange may outlive the file that it began with.
    """

    target: Target
    credential: Credential | None
    health: Health
    _signed: dict[tuple[object, ...], Signature] = field(
        default_factory=dict, compare=False, repr=False
    )

    def signature(
        self, dialect: Dialect, *, stream: bool, passthrough: bool, hidden: bytes | None
    ) -> Signature:
        """Return what a request that goes here is signed with; see `outbound.sign`."""
        key = (dialect.name, stream, passthrough, hidden)
        known = self._signed.get(key)
        version = self.credential.secret.version if self.credential and not passthrough else 0
        if known is None or known.version != version:
            known = self._signed[key] = sign(
                self.target.upstream,
                self.credential,
                dialect,
                stream=stream,
                passthrough=passthrough,
                hidden=hidden,
            )
        return known


class Scores:
    """The health of every credential at every upstream, for as long as the process lives.

    Known by the names of things, so that a new reading of the file finds the score of what it has
    not changed.
    """

    def __init__(self) -> None:
        self._healths: dict[tuple[str, object, object], Health] = {}
        self._loads: dict[tuple[str, object], Load] = {}
        self._choices: dict[Target, tuple[Choice, ...]] = {}

    def choices(self, target: Target) -> tuple[Choice, ...]:
        """Return the choices that *target* offers: one for each credential."""
        found = self._choices.get(target)
        if found is None:
            credentials: tuple[Credential | None, ...] = target.upstream.credentials or (None,)
            found = tuple(
                Choice(target, one, self._health(target.upstream, one)) for one in credentials
            )
            self._choices[target] = found
        return found

    def keep(self, targets: Iterable[Target]) -> None:
        """Forget the choices, though not the scores, of all but *targets*."""
        kept = set(targets)
        self._choices = {one: found for one, found in self._choices.items() if one in kept}

    def of(self, upstream: Upstream) -> list[Health]:
        """Return the scores of *upstream*, one for each credential."""
        return [self._health(upstream, one) for one in upstream.credentials or (None,)]

    def _health(self, upstream: Upstream, credential: Credential | None) -> Health:
        where = (upstream.name, upstream.base)
        load = self._loads.setdefault(where, Load())
        identity = credential.secret.identity() if credential else None
        return self._healths.setdefault((*where, identity), Health(load))


def order(
    group: Group,
    scores: Scores,
    stick: bytes | None,
    chance: Callable[[], float],
) -> list[Target]:
    """Return the targets of *group*, the one to try first first.

    *stick* is the value of its sticky header, None where the request has none; *chance* returns a
    number from 0 to below 1.
    """
    targets = group.targets
    if len(targets) == 1:
        return [*targets]
    if group.policy == "weighted":
        # The one whose exponential draw, divided by its weight, is least: each target comes first
        # as often as its weight says, and drawing by hash moves only what belonged to one that left.
        draws: Mapping[Target, float] = {
            target: _draw(chance() if stick is None else _hash(stick, target)) / target.weight
            for target in targets
        }
        return sorted(targets, key=lambda target: draws[target])
    if group.policy == "least-busy":
        return sorted(targets, key=lambda target: _busy(target, scores) / target.weight)
    if group.policy == "fastest":
        return sorted(targets, key=lambda target: _latency(target, scores))
    return [*targets]


def _draw(uniform: float) -> float:
    return -math.log(1.0 - uniform)


def _hash(value: bytes, target: Target) -> float:
    name = f"{target.upstream.name}/{target.model}".encode("utf-8", "surrogateescape")
    digest = blake2b(value + b"\0" + name, digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _busy(target: Target, scores: Scores) -> int:
    return scores.choices(target)[0].health.load.active


def _latency(target: Target, scores: Scores) -> float:
    """Return how long *target* takes to begin; one that nobody has tried comes first, and one that
    has only ever failed last.
    """
    return min(
        math.inf if choice.health.failed and not choice.health.latency else choice.health.latency
        for choice in scores.choices(target)
    )
