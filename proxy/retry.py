"""Whether a failed attempt is followed by another one, and where: the one owner of retries.

The table of design section 8 stands here as `RULES`. A `Trip` is made for each exchange and knows
what has been tried; tenacity drives it, entered only after a first failure, and it is over before
the first byte of an answer is relayed, because only what opens an answer runs inside it.
"""

import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from proxy.balance import Choice
from proxy.breaker import Load
from proxy.errors import Fault, ProxyError
from proxy.routes import Retry

T = TypeVar("T")

QUICK_SECONDS = 2.0
"""A 429 that asks for a wait up to this long is asked again where it came from."""
PATIENCE_SECONDS = 10.0
"""No answer that asks for a longer wait is waited for: the caller is told, and can wait itself."""
CREDENTIAL_REST_SECONDS = 60.0
"""How long a credential rests that the upstream refused."""
TOO_LONG = 1400
"""Stands for a 400 that says the context is too long, in the place of its status."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: how often the *same* upstream may be asked again, after a wait with full
    jitter from *base* seconds, doubling; whether the *next* one may be (`free`: only where nothing
    can be billed twice; `5xx`: only if `failover_5xx`), and whether it is *preferred* to the same.

    *sibling*: it is the credential's matter, so that another one at the same upstream counts as
    next. *fault*: it counts for the breaker.
    """

    same: int = 0
    base: float = 0.0
    next: str = "no"
    preferred: bool = False
    sibling: bool = False
    fault: bool = False


_UNAVAILABLE = Rule(same=1, base=0.5, next="yes", preferred=True)
_BROKEN = Rule(next="5xx")
RULES: dict[Fault | int, Rule] = {
    Fault.UNSENT: Rule(same=2, base=0.1, next="yes", preferred=True, fault=True),
    Fault.NOWHERE: Rule(next="yes", fault=True),
    Fault.CERTIFICATE: Rule(next="yes", fault=True),
    Fault.DEAD: Rule(same=1, next="yes"),
    Fault.STALE: Rule(same=1),
    Fault.AMBIGUOUS: Rule(next="free", fault=True),
    Fault.LATE: Rule(next="free", fault=True),
    Fault.MALFORMED: Rule(fault=True),
    401: Rule(next="yes", sibling=True),
    408: _UNAVAILABLE,
    429: Rule(same=1, next="yes", preferred=True, sibling=True),
    503: _UNAVAILABLE,
    529: _UNAVAILABLE,
    TOO_LONG: Rule(next="yes"),
    **dict.fromkeys((500, 502, 504, *range(520, 525)), _BROKEN),
}
"""What may follow, by fault, or by the status of an answer. What is not here is final."""


class Failed(Exception):
    """An attempt at *choice* failed: with a *fault* and an *error*, or with an answer of *status*.

    *after* is how long the answer asks to wait, in seconds; *hint* its `x-should-retry`.
    """

    def __init__(
        self,
        choice: Choice,
        reason: Fault | int,
        *,
        error: ProxyError | None = None,
        after: float | None = None,
        hint: bool | None = None,
    ) -> None:
        super().__init__(str(reason))
        self.choice = choice
        self.reason = reason
        self.error = error
        self.after = after
        self.hint = hint


class Trip:
    """The attempts of one exchange. *others* yields choices that have not been tried, best first,
    each time it is asked anew.

    *seconds_left* is what remains of the deadline over all attempts and waits. A *resent* request
    is one that its SDK sends again already: status answers are then not asked for again at the
    same upstream.
    """

    def __init__(
        self,
        policy: Retry,
        others: Callable[["Trip", Choice, Rule], Iterator[Choice]],
        seconds_left: Callable[[], float | None],
        *,
        resent: bool,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._others = others
        self._seconds_left = seconds_left
        self._resent = resent
        self._chance = chance
        self._same: dict[Choice, int] = {}
        self._failed_over = False
        self._reserved: Load | None = None
        self.tried: list[Choice] = []
        self.fresh = False
        self.choice: Choice | None = None
        self.wait = 0.0

    def goes_on(self, failed: Failed) -> bool:
        """Decide, after *failed*, whether there is another attempt; *choice*, *wait* and *fresh* then
        say where, after how many seconds, and whether on a new connection.
        """
        self.close()
        self.choice, self.wait, self.fresh = None, 0.0, False
        rule = RULES.get(failed.reason)
        if rule is None or len(self.tried) >= self._policy.attempts:
            return False
        same = self._same_again(failed, rule)
        other = None
        if rule.preferred or same is None:
            other = self._next(failed, rule)
        if other is not None:
            self.choice = other
        elif same is not None:
            self.choice = failed.choice
            self._same[failed.choice] = self._same.get(failed.choice, 0) + 1
            self.wait = same
            self.fresh = failed.reason in (Fault.DEAD, Fault.STALE)
        left = self._seconds_left()
        if self.choice is None or (left is not None and self.wait >= left):
            return False
        if self.choice.target.upstream is failed.choice.target.upstream:
            self._reserved = self.choice.health.load
            self._reserved.retrying += 1
        return True

    def close(self) -> None:
        """Give back the place in the retry budget that is held, if one is."""
        if self._reserved is not None:
            self._reserved.retrying -= 1
            self._reserved = None

    def _same_again(self, failed: Failed, rule: Rule) -> float | None:
        """Return after how many seconds the same upstream may be asked again, None if it may not."""
        done = self._same.get(failed.choice, 0)
        if done >= rule.same or (failed.reason is Fault.STALE and not self._policy.stale):
            return None
        if not failed.choice.health.load.may_retry():
            return None
        if isinstance(failed.reason, int):
            if self._resent or failed.hint is False:
                return None
            limit = QUICK_SECONDS if failed.reason == 429 else PATIENCE_SECONDS
            if failed.after is None and failed.reason == 429:
                return None
            if failed.after is not None and failed.after > limit:
                return None
        jitter: float = self._chance() * rule.base * 2**done
        return max(jitter, failed.after or 0.0)

    def _next(self, failed: Failed, rule: Rule) -> Choice | None:
        """Return the choice to go on with, if it may go on elsewhere, and there is one."""
        policy, upstream = self._policy, failed.choice.target.upstream
        if rule.next == "no":
            return None
        if rule.next == "free" and upstream.billed and not policy.ambiguous:
            return None
        if rule.next == "5xx" and (self._failed_over or not policy.failover_5xx):
            return None
        choice = next(self._others(self, failed.choice, rule), None)
        if choice is not None and rule.next == "5xx":
            self._failed_over = True
        return choice


async def again(trip: Trip, failed: Failed, attempt: Callable[[Choice], Awaitable[T]]) -> T:
    """Make further attempts after *failed*, for as long as *trip* goes on. Raises the last `Failed`."""
    first: Failed | None = failed

    async def turn() -> T:
        nonlocal first
        if first is not None:
            try:
                raise first
            finally:
                first = None
        assert trip.choice is not None
        return await attempt(trip.choice)

    def wait(state: RetryCallState) -> float:
        return trip.wait

    def goes_on(error: BaseException) -> bool:
        return isinstance(error, Failed) and trip.goes_on(error)

    retrying = AsyncRetrying(retry=retry_if_exception(goes_on), wait=wait, reraise=True)
    try:
        return await retrying(turn)
    finally:
        retrying.iter_state.reset()  # else it holds itself, and with it a body
