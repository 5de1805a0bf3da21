"""How an upstream has been doing lately, by credential: who rests, whose breaker is open, how busy it is.

Nothing here decides where a request goes, or waits: it keeps the score. All times are loop time, in
seconds.
"""

import math
from dataclasses import dataclass, field

from proxy.errors import CLIENT_STALLED, Outcome

FAULTS = 5
"""Open a breaker after this many failures of ours in a row: connect, TLS, first byte late, protocol, cut."""
ANSWERS = 20
"""Open it, too, where half of at least this many answers in the window are 5xx."""
WINDOW_SECONDS = 10
"""Forget answers that are older than this."""
OPEN_SECONDS = 30.0
"""Keep a breaker open this long the first time, and twice as long each time that a probe fails."""
LONGEST_OPEN_SECONDS = 300.0
"""Keep none open for longer than this."""
SUCCESSES = 2
"""Close a breaker that had been open after this many good answers to probes in a row."""
REST_SECONDS = 60.0
"""Let a credential rest no longer than this, however long the upstream asks for."""
REFUSED_SECONDS = 1.0
"""Ask the only upstream of a route not again for this long after it refused a connection."""
LATENCY_WEIGHT = 0.2
"""Let each answer move the latency this part of the way to its own."""
FAILURE_SECONDS = 60
"""Count a failure for this long, for whoever looks."""
FAILURES: frozenset[Outcome] = frozenset({"upstream_error", "upstream_cut", "timeout"})
"""Outcomes that are an upstream's failure, as the log says them."""


@dataclass(slots=True, eq=False)
class Load:
    """How much an upstream is doing for us: attempts *active*, and those of them that are retries."""

    active: int = 0
    retrying: int = 0

    def may_retry(self) -> bool:
        """Return whether one more retry is within the budget: 20 % of what is active, or 3."""
        return self.retrying < max(3, self.active // 5)


@dataclass(slots=True, eq=False)
class Failures:
    """What failed in the last minute, by outcome; and of the last failure that there was, its *code*, and
    when it was (*at*). Only for people to look at: nothing goes by it.
    """

    code: str | None = None
    at: float = -math.inf
    _counts: dict[tuple[int, Outcome], int] = field(default_factory=dict)

    def count(self, now: float, outcome: Outcome, code: str) -> None:
        """Take note of one failure."""
        self.code, self.at = code, now
        slot = int(now), outcome
        self._counts[slot] = self._counts.get(slot, 0) + 1
        if len(self._counts) > 2 * FAILURE_SECONDS * len(FAILURES):
            self._counts = {
                slot: number for slot, number in self._counts.items() if self._counts_at(slot, now)
            }

    def lately(self, now: float) -> dict[Outcome, int]:
        """Return how many failures there were in the minute that ends *now*."""
        found: dict[Outcome, int] = {}
        for slot, number in self._counts.items():
            if self._counts_at(slot, now):
                found[slot[1]] = found.get(slot[1], 0) + number
        return found

    @staticmethod
    def _counts_at(slot: tuple[int, Outcome], now: float) -> bool:
        return slot[0] > now - FAILURE_SECONDS


@dataclass(slots=True, eq=False)
class Health:
    """The score of one credential at one upstream.

    *open_until* and *resting_until* are when its breaker and its rest end, *limited_until* when a rest
    would that is not taken, since there is nowhere else to go; *failed* is when it failed last, *good*
    when an answer last ended well; *latency* how long it took to begin an answer, lately, in seconds.
    """

    load: Load = field(default_factory=Load)
    faults: int = 0
    opened: int = 0
    open_until: float = 0.0
    resting_until: float = 0.0
    limited_until: float = 0.0
    refused_until: float = 0.0
    failed: float = 0.0
    latency: float = 0.0
    used: float = 0.0
    good: float = -math.inf
    failures: Failures = field(default_factory=Failures)
    _successes: int = 0
    _probes: int = 0
    _probe: int = 0
    _second: int = 0
    _good: list[int] = field(default_factory=lambda: [0] * WINDOW_SECONDS)
    _bad: list[int] = field(default_factory=lambda: [0] * WINDOW_SECONDS)

    def ready(self, now: float) -> bool:
        """Return whether an attempt may be made: it neither rests nor is its breaker open, but for
        one probe when its time is over.
        """
        if self.resting_until > now or self.open_until > now:
            return False
        return not (self.opened and self._probe)

    @property
    def probing(self) -> bool:
        """Return whether somebody tries, at this moment, though it rests or its breaker was open."""
        return self._probe > 0

    def ready_at(self) -> float:
        """Return when an attempt may be made again."""
        return max(self.resting_until, self.open_until)

    def begin(self, now: float) -> int:
        """An attempt begins. Return which probe it is, 0 if it is none: one is made though it rests,
        or since its breaker opened. What comes of the attempt is told together with this.
        """
        self.used = now
        self.load.active += 1
        if not self.opened and self.resting_until <= now:
            return 0
        self._probes += 1
        self._probe = self._probes
        return self._probe

    def end(self, probe: int) -> None:
        """An attempt is over, whatever came of it."""
        self.load.active -= 1
        self._probed(probe)

    def answered(self, now: float, status: int, seconds: float, probe: int) -> None:
        """An answer of *status* has begun, after *seconds*."""
        bad = status >= 500
        self._probed(probe)
        self._count(now, bad)
        if bad:
            self.failed = now
            self._successes = 0
            if self.opened or self._mostly_bad():
                self._open(now)
            return
        if status < 400:  # to refuse is quick
            self.latency += LATENCY_WEIGHT * (seconds - self.latency) if self.latency else seconds

    def ended(self, now: float, outcome: Outcome | None, code: str | None, status: int) -> None:
        """An answer is over, with *outcome*, and the *code* of an error; without one, with its *status*."""
        if outcome is None or outcome not in FAILURES or code == CLIENT_STALLED.code:
            self.good = now
        else:
            self.failures.count(now, outcome, code or str(status))

    def succeeded(self, probe: int) -> None:
        """An answer, not a 5xx, has come to its end."""
        self.faults = 0
        if self.opened and probe:  # what was on its way when it opened says nothing new
            self._successes += 1
            if self._successes >= SUCCESSES:
                self.opened = self._successes = 0

    def fault(self, now: float, *, refused: bool = False) -> None:
        """An attempt failed on its way, or broke off."""
        self.failed = now
        self.faults += 1
        self._successes = 0
        if refused:
            self.refused_until = now + REFUSED_SECONDS
        if self.opened or self.faults >= FAULTS:
            self._open(now)

    def rest(self, now: float, seconds: float) -> None:
        """Let it rest for *seconds*."""
        self.failed = now
        self.resting_until = max(self.resting_until, now + min(seconds, REST_SECONDS))

    def limit(self, now: float, seconds: float) -> None:
        """Take note that it should rest for *seconds*, though it will be asked all the same."""
        self.limited_until = max(self.limited_until, now + min(seconds, REST_SECONDS))

    def resting(self, now: float) -> bool:
        """Return whether it rests, or should, and has not done well since it was told so."""
        limited = self.limited_until > now and self.good < self.failures.at
        return limited or self.resting_until > now

    def is_open(self, now: float) -> bool:
        """Return whether its breaker is open, but perhaps for a probe that is under way."""
        return self.open_until > now or bool(self.opened and self._probe)

    def _probed(self, probe: int) -> None:
        if probe == self._probe:  # else a later one is under way
            self._probe = 0

    def answers(self, now: float) -> tuple[int, int]:
        """Return how many answers were good, and how many 5xx, in the window that ends *now*."""
        if now - self._second > WINDOW_SECONDS:
            return 0, 0
        return sum(self._good), sum(self._bad)

    def _open(self, now: float) -> None:
        if self.open_until > now:
            return  # what was on its way when it opened says nothing new
        seconds = min(OPEN_SECONDS * 2**self.opened, LONGEST_OPEN_SECONDS)
        self.opened = min(self.opened + 1, 8)
        self.open_until = now + seconds

    def _count(self, now: float, bad: bool) -> None:
        second = int(now)
        if second > self._second:
            for passed in range(self._second + 1, min(second, self._second + WINDOW_SECONDS) + 1):
                self._good[passed % WINDOW_SECONDS] = self._bad[passed % WINDOW_SECONDS] = 0
            self._second = second
        (self._bad if bad else self._good)[second % WINDOW_SECONDS] += 1

    def _mostly_bad(self) -> bool:
        good, bad = sum(self._good), sum(self._bad)
        return good + bad >= ANSWERS and bad * 2 >= good + bad
