"""Whether a failed attempt is followed by another one, and where: the one owner of retries.

The table of design section 8 stands here as `RULES`. A `Trip` is made for each exchange and knows
what has been tried; tenacity drives it, entered only after a first failure, and it is over before
the first byte of an answer is relayed, because only what opens an answer runs inside it.
"""

import random
from collections.abc import Awaitable, Callable, Collection, Iterator
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
NOT_PERMITTED = 1403
"""Stands for an error that says what our credential may not do, though it may do other things."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: how often the *same* upstream may be asked again, after a wait with full
    jitter from *base* seconds, doubling; whether the *next* one may be (`free`: only where nothing
    can be billed twice; `5xx`: only if `failover_5xx`), and whether it is *preferred* to the same.

    *sibling*: it is the credential's matter, so that another one at the same upstream counts as
    next. *fault*: it counts for the breaker. *billed*: the upstream may have done the work.
    """

    same: int = 0
    base: float = 0.0
    next: str = "no"
    preferred: bool = False
    sibling: bool = False
    fault: bool = False
    billed: bool = False


_UNAVAILABLE = Rule(same=1, base=0.5, next="yes", preferred=True)
_BROKEN = Rule(next="5xx", billed=True)
_NOT_THERE = Rule(next="yes")
RULES: dict[Fault | int, Rule] = {
    Fault.UNSENT: Rule(same=2, base=0.1, next="yes", preferred=True, fault=True),
    Fault.NOWHERE: Rule(next="yes", fault=True),
    Fault.CERTIFICATE: Rule(next="yes", fault=True),
    Fault.DEAD: Rule(same=1, next="yes"),
    Fault.STALE: Rule(same=1, billed=True),
    Fault.AMBIGUOUS: Rule(next="free", fault=True, billed=True),
    Fault.LATE: Rule(next="free", fault=True, billed=True),
    Fault.MALFORMED: Rule(fault=True, billed=True),
    401: Rule(next="yes", sibling=True),
    402: Rule(next="yes", sibling=True),
    408: _UNAVAILABLE,
    429: Rule(same=1, next="yes", preferred=True, sibling=True),
    503: _UNAVAILABLE,
    529: _UNAVAILABLE,
    TOO_LONG: Rule(next="yes"),
    NOT_PERMITTED: Rule(next="yes", sibling=True),
    **dict.fromkeys((500, 502, 504, *range(520, 525)), _BROKEN),
    **dict.fromkeys((525, 526, 530), _NOT_THERE),  # what stands in front has not reached it
}
"""What may follow, by fault, or by the status of an answer. What is not here is final, but for what the
operator wishes to lead on (`retry.also`).
"""
_WISHED = Rule(next="yes", billed=True)
_UNTOUCHED = {404, 405, 410, 413, 415}
"""What an upstream answers that has not what is asked for, or does not take it: it has done nothing."""
_ON_A_FRESH_ONE = {Fault.DEAD, Fault.STALE, 408}
"""What the connection may be to blame for: another one that was kept could fare no better."""


def rule_of(reason: Fault | int, also: Collection[int]) -> Rule | None:
    """Return the row for *reason*, where the operator wishes that the statuses *also* lead on; None where it
    is final.
    """
    rule = RULES.get(reason)
    if reason not in also or (rule is not None and rule.next == "yes"):
        return rule
    return _NOT_THERE if reason in _UNTOUCHED else _WISHED


class Failed(Exception):
    """An attempt at *choice* failed: with a *fault* and an *error*, or with an answer of *status*.

    *after* is how long the answer asks to wait, in seconds; *hint* its `x-should-retry`. Where it had *begun*
    as a good one, it may have been billed, whatever it came to.
    """

    def __init__(
        self,
        choice: Choice,
        reason: Fault | int,
        *,
        error: ProxyError | None = None,
        after: float | None = None,
        hint: bool | None = None,
        begun: bool = False,
    ) -> None:
        super().__init__(str(reason))
        self.choice = choice
        self.reason = reason
        self.error = error
        self.after = after
        self.hint = hint
        self.begun = begun


class Trip:
    """The attempts of one exchange. *others* yields choices that have not been tried, best first,
    each time it is asked anew.

    `attempts` of the *policy* bounds the tries at one place, and all those together that may have been
    billed; to go on to another place, where nothing can be billed twice, only *seconds_left* does: what
    remains of the deadline over all attempts and waits. A *resent* request is one that its SDK sends
    again already: status answers are then not asked for again at the same upstream.
    """

    def __init__(
        self,
        policy: Retry,
        others: Callable[["Trip", Choice, Rule], Iterator[Choice]],
        seconds_left: Callable[[], float],
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
        self._billed = 0  # so many tries may have been, so far
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
        rule = rule_of(failed.reason, failed.choice.target.retry.also)
        if rule is None:
            return False
        self._billed += rule.billed or failed.begun
        if self._billed >= self._policy.attempts:
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
        if self.choice is None or self.wait >= self._seconds_left():
            return False
        if self.choice.target.upstream is failed.choice.target.upstream:
            self.fresh = failed.reason in _ON_A_FRESH_ONE
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
        if done >= min(rule.same, self._policy.attempts - 1):
            return None
        if failed.reason is Fault.STALE and not self._policy.stale:
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
        if rule.next == "no" or not policy.next:
            return None
        if failed.hint is False and rule.billed and failed.reason not in range(400, 500):
            return None  # it says so of work that it may have done
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
