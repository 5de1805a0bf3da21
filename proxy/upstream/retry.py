"""Whether a failed attempt is followed by another one, and where: the one owner of retries.

The table of design section 8 stands here as `RULES`. A `Trip` is made for an exchange when a first attempt
has failed; it is handed how each one `Failed`, and says what follows: `Go`, or `Stop`. It asks nobody and
waits for nothing. How long to wait are tenacity's policies.
"""

import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_base, wait_exponential, wait_none

from proxy.errors import Fault, ProxyError
from proxy.routes import Retry
from proxy.upstream.balance import Choice
from proxy.upstream.breaker import Load

A = TypeVar("A")

QUICK_SECONDS = 2.0
"""Ask the same place again after a 429 that asks for a wait of up to this."""
LONGEST_WAIT_SECONDS = 10.0
"""Wait no longer than this, however long another answer asks: the caller is told, and can wait itself."""
TOO_LONG = 1400
"""Stands for a 400 that says the context is too long, in the place of its status."""
NOT_PERMITTED = 1403
"""Stands for an error that says what our credential may not do, though it may do other things."""


_AT_ONCE = wait_none()


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: how often the *same* place may be asked again, after a *wait* with full
    jitter; whether the *next* one may be (`free`: only where nothing
    can be billed twice; `5xx`: only if `failover_5xx`), and whether it is *preferred* to the same.

    *sibling*: it is the credential's matter, so that another one at the same upstream counts as
    next. *fault*: it counts for the breaker. *billed*: the upstream may have done the work.
    """

    same: int = 0
    wait: wait_base = _AT_ONCE
    next: str = "no"
    preferred: bool = False
    sibling: bool = False
    fault: bool = False
    billed: bool = False


_UNAVAILABLE = Rule(same=1, wait=wait_exponential(0.5), next="yes", preferred=True)
_BROKEN = Rule(next="5xx", billed=True)
_NOT_THERE = Rule(next="yes")
RULES: dict[Fault | int, Rule] = {
    Fault.UNSENT: Rule(same=2, wait=wait_exponential(0.1), next="yes", preferred=True, fault=True),
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


@dataclass(frozen=True, slots=True, eq=False)
class Failed(Generic[A]):
    """How an attempt at *choice* failed, for a *reason* whose row is *rule*. Its *result* is an error; or an
    answer, which is the caller's if nothing better comes.

    *after* is how long the answer asks to wait, in seconds; *hint* its `x-should-retry`. Where it had *begun*
    as a good one, it may have been billed, whatever it came to.
    """

    choice: Choice
    reason: Fault | int
    rule: Rule
    result: A | ProxyError
    after: float | None = None
    hint: bool | None = None
    begun: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Go:
    """Make another attempt: at *choice*, after *wait* seconds, with *fresh* on a new connection."""

    choice: Choice
    wait: float = 0.0
    fresh: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Stop(Generic[A]):
    """Make no other attempt: the *result* of the last one, an answer or an error, is the caller's."""

    result: A | ProxyError


class Trip:
    """The attempts of one exchange.

    `attempts` of the *policy* bounds the tries at one place, and all those together that may have been
    billed; to go on to another place, where nothing can be billed twice, only the *deadline* over all
    attempts and waits does, in loop time. A *resent* request is one that its SDK sends again already:
    status answers are then not asked for again at the same upstream.
    """

    def __init__(
        self,
        policy: Retry,
        deadline: float,
        *,
        resent: bool,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._deadline = deadline
        self._resent = resent
        self._chance = chance
        self._tries: dict[Choice, RetryCallState] = {}
        self._billed = 0  # so many tries may have been, so far
        self._failed_over = False
        self._reserved: Load | None = None

    def after(self, failed: Failed[A], other: Choice | None, now: float) -> Go | Stop[A]:
        """Return what follows when an attempt has *failed*: the same place again, the best *other* one, where
        there is one, or nothing.
        """
        self.close()
        self._billed += failed.rule.billed or failed.begun
        go = None
        if self._billed < self._policy.attempts:
            go = self._go(failed, other)
        if go is None or go.wait >= self._deadline - now:
            return Stop(failed.result)
        if go.choice.target.upstream is failed.choice.target.upstream:
            self._reserved = go.choice.health.load
            self._reserved.retrying += 1
        return go

    def close(self) -> None:
        """Give back what is taken of an upstream's budget of retries, if anything is."""
        if self._reserved is not None:
            self._reserved.retrying -= 1
            self._reserved = None

    def _go(self, failed: Failed[A], other: Choice | None) -> Go | None:
        here, rule = failed.choice, failed.rule
        wait = self._same_again(failed)
        if other is not None and (rule.preferred or wait is None) and self._may_move(failed):
            self._failed_over |= rule.next == "5xx"
            same_upstream = other.target.upstream is here.target.upstream
            return Go(other, fresh=same_upstream and failed.reason in _ON_A_FRESH_ONE)
        if wait is None:
            return None
        self._tries[here].prepare_for_next_attempt()
        return Go(here, wait, failed.reason in _ON_A_FRESH_ONE)

    def _same_again(self, failed: Failed[A]) -> float | None:
        """Return after how many seconds the same place may be asked again, None if it may not."""
        rule, policy, health = failed.rule, self._policy, failed.choice.health
        most = min(rule.same, policy.attempts - 1)
        if not most:
            return None
        first = RetryCallState(AsyncRetrying(), None, (), {})
        tries = self._tries.setdefault(failed.choice, first)
        if tries.attempt_number > most:
            return None
        if not health.load.may_retry() or (failed.reason is Fault.STALE and not policy.stale):
            return None
        if isinstance(failed.reason, int) and not self._may_ask_again(failed):
            return None
        return max(self._chance() * rule.wait(tries), failed.after or 0.0)

    def _may_ask_again(self, failed: Failed[A]) -> bool:
        """Return whether an answer lets the same place be asked again: it does not ask for too long a wait."""
        if self._resent or failed.hint is False:
            return False
        if failed.reason == 429:
            return failed.after is not None and failed.after <= QUICK_SECONDS
        return failed.after is None or failed.after <= LONGEST_WAIT_SECONDS

    def _may_move(self, failed: Failed[A]) -> bool:
        """Return whether it may go on elsewhere."""
        policy, rule = self._policy, failed.rule
        if not policy.next or rule.next == "no":
            return False
        if failed.hint is False and rule.billed and failed.reason not in range(400, 500):
            return False  # it says so of work that it may have done
        if rule.next == "free":
            return policy.ambiguous or not failed.choice.target.upstream.billed
        return rule.next == "yes" or (policy.failover_5xx and not self._failed_over)
