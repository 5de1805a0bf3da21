"""Where the attempts of one exchange may go: which targets will do, in which order, and with which of their
credentials.

Who tells of a request before it is sent asks the same: `Places.ordered` for all targets in their order,
`bar` for what is against one of them, `choices` for its credentials in the order in which they are
tried, `is_known` for whether one of those has a value yet.
"""

from collections.abc import Callable
from typing import Any, Literal

from proxy.errors import (
    NOT_CONFIGURED,
    UPSTREAM_CONNECT,
    UPSTREAM_UNAVAILABLE,
    Fault,
    ProxyError,
)
from proxy.routes import Group, Target, Upstream
from proxy.upstream.asked import Asked
from proxy.upstream.balance import Choice, Scores, order
from proxy.upstream.breaker import Health
from proxy.upstream.retry import Failed

Bar = Literal["dialect", "dormant"]
"""What is against a target: it does not speak the dialect, or lacks a variable."""


class Places:
    """Where the attempts at what is *asked* may go; what has failed is not gone to again."""

    __slots__ = ("_chance", "_fit", "_scores", "_spent", "_tried", "asked")

    def __init__(self, asked: Asked, scores: Scores, chance: Callable[[], float]) -> None:
        self.asked = asked
        self._scores = scores
        self._chance = chance
        self._fit: list[Target] | None = None
        self._spent: list[Target | Upstream] = []
        self._tried: list[tuple[Health, str | None]] = []

    def ordered(self) -> list[Target]:
        """Return every target, in the order in which to try them. Of those that are weighted it is drawn anew
        each time.
        """
        asked, targets = self.asked, []
        if asked.passthrough:  # the caller's own credential is for one upstream only
            return [*asked.groups[0].targets[:1]]
        for group in asked.groups:
            targets += order(group, self._scores, self._stick(group), self._chance)
        return targets

    def bar(self, target: Target) -> Bar | None:
        """Return what is against *target*, None if it will do."""
        asked, upstream = self.asked, target.upstream
        if asked.route is not None and not upstream.speaks(asked.dialect):
            return "dialect"
        return "dormant" if upstream.lacks(passthrough=asked.passthrough) is not None else None

    def choices(self, target: Target) -> list[Choice]:
        """Return the choices that *target* offers, the credential that was used longest ago first."""
        choices = self._scores.choices(target)
        if len(choices) == 1 or self.asked.passthrough:
            return [choices[0]]
        return sorted(choices, key=lambda choice: choice.health.used)

    def is_known(self, choice: Choice) -> bool:
        """Return whether the credential of *choice* has a value, or none is needed."""
        return choice.credential is None or self.asked.passthrough or choice.credential.secret.known

    def first(self, now: float) -> Choice:
        """Return where the first attempt goes. Raises `ProxyError` where there is nowhere to go."""
        groups = self.asked.groups
        if len(groups) == 1 and len(groups[0].targets) == 1:
            # That it speaks the dialect, and is configured, was seen when the route was matched.
            choices = self._scores.choices(groups[0].targets[0])
            if len(choices) == 1 and self.is_known(choices[0]) and choices[0].health.ready(now):
                return choices[0]
        return self._best(now)

    def other(self, failed: Failed[Any], now: float) -> Choice | None:
        """Return where to go instead, now that an attempt has *failed*: the best place that was not tried, None
        where there is none.
        """
        here, rule = failed.choice.target, failed.rule
        self._tried.append(self._place_of(failed.choice))
        if not rule.same and not rule.sibling:
            self._spent.append(here.upstream if isinstance(failed.reason, Fault) else here)
        left = [
            choice
            for target in self._fitting()
            if self._is_better(target, failed)
            for choice in self.choices(target)
            if self._is_left(choice)
        ]
        return next((choice for choice in left if choice.health.ready(now)), None)

    def has_other(self, choice: Choice) -> bool:
        """Return whether there is anywhere to go while *choice* rests."""
        return len(self._fitting()) > 1 or len(self._scores.choices(choice.target)) > 1

    def _best(self, now: float) -> Choice:
        choices = [choice for target in self._fitting() for choice in self.choices(target)]
        known = [choice for choice in choices if self.is_known(choice)]
        if not known:
            source = choices[0].credential.secret.source if choices[0].credential else ""
            message = f"It is not configured yet: {source} has not given a credential."
            raise ProxyError(NOT_CONFIGURED, message, headers=(("Retry-After", "2"),))
        ready = (choice for choice in known if choice.health.ready(now))
        return next(ready, None) or _though_resting(known, now)

    def _fitting(self) -> list[Target]:
        """Return the targets that will do, in the order in which to try them."""
        if self._fit is None:
            self._fit = [target for target in self.ordered() if self.bar(target) is None]
        return self._fit

    def _stick(self, group: Group) -> bytes | None:
        if group.sticky is None:
            return None
        return self.asked.exchange.headers.first.get(group.sticky)

    def _is_better(self, target: Target, failed: Failed[Any]) -> bool:
        """Return whether *target* may fare better than where it has *failed*."""
        here = failed.choice.target
        if target in self._spent or target.upstream in self._spent:
            return False  # nor may it be asked by way of another, which has failed meanwhile
        if target.upstream is here.upstream and isinstance(failed.reason, Fault):
            return False
        return target is not here or failed.rule.sibling

    def _is_left(self, choice: Choice) -> bool:
        return self.is_known(choice) and self._place_of(choice) not in self._tried

    def _place_of(self, choice: Choice) -> tuple[Health, str | None]:
        """Return what *choice* has in common with all that lead to the same place: a credential at an
        upstream, and the model that is asked for there.
        """
        route = self.asked.route
        model = None if route is None else route.model_sent(choice.target, self.asked.name)
        return choice.health, model


def _though_resting(known: list[Choice], now: float) -> Choice:
    """Return which of *known*, all of which rest, is asked all the same. Raises `ProxyError` if none is."""
    last = min(known, key=lambda choice: choice.health.failed)
    if len({choice.target.upstream for choice in known}) == 1:
        if last.health.refused_until > now and last.health.open_until > now:
            message = "The upstream could not be reached: it refused the connection."
            raise ProxyError(UPSTREAM_CONNECT, message, headers=(("Retry-After", "1"),))
        return last  # a route's only upstream is never blacked out
    if not last.health.probing:
        return last
    rest = min(choice.health.ready_at() for choice in known) - now
    wait = (("Retry-After", str(max(1, round(rest)))),)
    message = "Every upstream of this model is resting after failures."
    raise ProxyError(UPSTREAM_UNAVAILABLE, message, headers=wait)
