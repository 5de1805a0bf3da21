"""The one owner of retries: what follows a failure, row by row, how long it waits, and when it stops."""

from collections.abc import Sequence
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Fault
from proxy.routes import Base, Origin, Retry, Target, Upstream
from proxy.upstream.balance import Choice, Scores
from proxy.upstream.retry import NOT_PERMITTED, RULES, TOO_LONG, Failed, Go, Stop, Trip, rule_of

Reason = Fault | int

BROKEN = [500, 502, 504, *range(520, 525)]
BUSY = [408, 503, 529]
UNREACHED = [525, 526, 530]
FINAL = [200, 201, 204, 301, 302, 307, 400, 403, 404, 405, 407, 409, 410, 413, 415, 418, 422, 424]
FINAL += [425, 451, 499, 501, 505, 507, 519, 527, 531, 599]
LOTS = Retry(attempts=20)


def place(name: str, *, billed: bool = True, retry: Retry = LOTS) -> Choice:
    """Return the only choice of a target of its own."""
    origin = Origin("http", f"{name.lower()}.test", 80)
    target = Target(Upstream(name, Base(origin, ""), billed=billed), "m", retry=retry)
    return Scores().choices(target)[0]


def places(names: str, *, free: str = "", retry: Retry = LOTS) -> list[Choice]:
    """Return a choice for each of *names*; to be asked by those that are *free* costs nothing."""
    return [place(name, billed=name not in free, retry=retry) for name in names]


class Journey:
    """A trip over *choices*, from the first of them on; *left* is what remains of its deadline."""

    def __init__(
        self,
        choices: Sequence[Choice],
        policy: Retry = LOTS,
        *,
        left: float = inf,
        resent: bool = False,
        chance: float = 0.0,
    ) -> None:
        self.choices = choices
        self.trip = Trip(policy, left, resent=resent, chance=lambda: chance)
        self.tried = [choices[0]]
        self.step: Go | Stop[str] = Go(choices[0])

    @property
    def went(self) -> Go:
        """Return how the trip went on."""
        assert isinstance(self.step, Go)
        return self.step

    def fails(self, reason: Reason, **said: Any) -> str:
        """Let the last attempt fail; return the name of where the next one goes, empty if there is none: what
        is final is no failure.
        """
        here = self.tried[-1]
        rule = rule_of(reason, here.target.retry.also)
        if rule is None:
            self.trip.close()
            return ""
        left = (one for one in self.choices if one not in self.tried)
        other = next((one for one in left if one.health.load.may_retry()), None)
        result = f"{reason} of {here.target.upstream.name}"
        self.step = self.trip.after(Failed(here, reason, rule, result, **said), other, 0.0)
        if isinstance(self.step, Stop):
            assert self.step.result is result
            return ""
        self.tried.append(self.step.choice)
        return self.step.choice.target.upstream.name

    @property
    def road(self) -> str:
        return "".join(choice.target.upstream.name for choice in self.tried)

    def close(self) -> None:
        """Give up the trip, which must leave no place in any budget taken."""
        self.trip.close()
        assert [choice.health.load.retrying for choice in self.choices] == [0] * len(self.choices)


def road(reason: Reason, names: str = "A", policy: Retry = LOTS, **how: Any) -> str:
    """Return where the attempts go, if each fails for *reason*: `AAB` is A, A again, then B."""
    said = {key: how.pop(key) for key in ("after", "hint") if key in how}
    journey = Journey(places(names, free=how.pop("free", ""), retry=policy), policy, **how)
    while journey.fails(reason, **said):
        pass
    journey.close()
    return journey.road


# The table

TABLE: list[tuple[Reason, str, str]] = [
    (Fault.UNSENT, "AAA", "ABCCC"),
    (Fault.NOWHERE, "A", "ABC"),
    (Fault.CERTIFICATE, "A", "ABC"),
    (Fault.DEAD, "AA", "AABBCC"),
    (Fault.STALE, "AA", "AA"),
    (Fault.AMBIGUOUS, "A", "A"),
    (Fault.LATE, "A", "A"),
    (Fault.MALFORMED, "A", "A"),
    (401, "A", "ABC"),
    (402, "A", "ABC"),
    (429, "A", "ABC"),
    (TOO_LONG, "A", "ABC"),
    (NOT_PERMITTED, "A", "ABC"),
    *((status, "A", "ABC") for status in UNREACHED),
    *((status, "AA", "ABCC") for status in BUSY),
    *((status, "A", "AB") for status in BROKEN),
    *((status, "A", "A") for status in FINAL),
]


@pytest.mark.parametrize(("reason", "alone", "among"), TABLE, ids=str)
def test_the_table(reason: Reason, alone: str, among: str) -> None:
    """Each failure is followed by what its row says: at the only upstream, and where two others exist."""
    assert road(reason) == alone
    assert road(reason, "ABC") == among


def test_the_table_is_complete() -> None:
    """Every fault has a row, and so have just the statuses that the table names."""
    assert set(RULES) == {
        *Fault,
        401,
        402,
        429,
        TOO_LONG,
        NOT_PERMITTED,
        *BUSY,
        *BROKEN,
        *UNREACHED,
    }
    assert set(RULES) <= {reason for reason, _, _ in TABLE}


def test_what_counts_for_the_breaker() -> None:
    """Failures of ours count for the breaker, but for a connection that had been idle; statuses do not."""
    counting = {reason for reason, row in RULES.items() if row.fault}
    assert counting == {*Fault} - {Fault.DEAD, Fault.STALE}


@pytest.mark.parametrize("reason", RULES, ids=str)
def test_whose_matter_it_is(reason: Reason) -> None:
    """After 401, 402, 429 and what a credential may not do another one of the same upstream will do."""
    assert RULES[reason].sibling is (reason in (401, 402, 429, NOT_PERMITTED))


def test_what_may_have_been_billed() -> None:
    """What was sent whole and not refused for nothing may have been billed, and so may the upstream's own
    faults.
    """
    billed = {reason for reason, row in RULES.items() if row.billed}
    assert billed == {Fault.STALE, Fault.AMBIGUOUS, Fault.LATE, Fault.MALFORMED, *BROKEN}


@pytest.mark.parametrize(
    ("reason", "free", "policy", "expected"),
    [
        (Fault.AMBIGUOUS, "", LOTS, "A"),
        (Fault.AMBIGUOUS, "A", LOTS, "AB"),
        (Fault.AMBIGUOUS, "AB", LOTS, "ABC"),
        (Fault.AMBIGUOUS, "BC", LOTS, "A"),
        (Fault.LATE, "A", LOTS, "AB"),
        (Fault.LATE, "ABC", LOTS, "ABC"),
        (Fault.AMBIGUOUS, "", Retry(attempts=20, ambiguous=True), "ABC"),
        (Fault.LATE, "", Retry(attempts=20, ambiguous=True), "ABC"),
        (Fault.MALFORMED, "ABC", Retry(attempts=20, ambiguous=True), "A"),
        (Fault.STALE, "ABC", Retry(attempts=20, ambiguous=True), "AA"),
    ],
)
def test_what_may_be_billed_twice(reason: Fault, free: str, policy: Retry, expected: str) -> None:
    """What was sent whole is asked elsewhere only if *its* upstream is free, or the operator allows it."""
    assert road(reason, "ABC", policy, free=free) == expected
    assert road(reason, "A", policy, free=free) == ("AA" if reason is Fault.STALE else "A")


def test_stale_off() -> None:
    """With `stale = false` what went out on a used connection is not repeated; what was not whole, is."""
    policy = Retry(attempts=20, stale=False)
    assert road(Fault.STALE, "ABC", policy) == "A"
    assert road(Fault.DEAD, "A", policy) == "AA"


@pytest.mark.parametrize("status", BROKEN)
def test_failover_5xx_off(status: int) -> None:
    """With `failover_5xx = false` an upstream's own fault is final."""
    assert road(status, "ABC", Retry(failover_5xx=False)) == "A"
    assert road(503, "AB", Retry(failover_5xx=False)) == "ABB"


def test_failover_5xx_is_once() -> None:
    """A fault of an upstream's own moves on once, whatever other failures lie between."""
    journey = Journey(places("ABCD"))
    assert [journey.fails(reason) for reason in (500, 503, 502)] == ["B", "C", ""]


def test_failover_5xx_is_not_used_up_by_nobody() -> None:
    """Where there was nobody to move on to, moving on is not used up."""
    choices = places("AB")
    choices[1].health.load.retrying = 3
    journey = Journey(choices)
    assert journey.fails(500) == ""
    choices[1].health.load.retrying = 0
    assert journey.fails(500) == "B"


@pytest.mark.parametrize("status", [*BUSY, 429])
@pytest.mark.parametrize("how", [{"hint": False}, {"resent": True}], ids=["hint", "resent"])
def test_who_asks_not_to_be_asked(status: int, how: dict[str, Any]) -> None:
    """`x-should-retry: false`, and an SDK that asks again itself, keep the same upstream from being asked."""
    assert road(status, "A", after=1.0, **how) == "A"
    assert road(status, "ABC", after=1.0, **how) == "ABC"


@pytest.mark.parametrize("reason", [Fault.UNSENT, Fault.DEAD, Fault.STALE], ids=str)
def test_resent_is_about_answers(reason: Fault) -> None:
    """That the SDK asks again does not matter where there was no answer."""
    assert road(reason, resent=True) == road(reason)


@pytest.mark.parametrize("reason", [*BROKEN, 401, TOO_LONG, *FINAL])
def test_a_hint_allows_nothing(reason: int) -> None:
    """`x-should-retry: true` is what it was without it: no row gets more."""
    assert road(reason, "ABC", hint=True) == road(reason, "ABC")
    assert road(reason, hint=True) == "A"


# How long an answer asks to wait


@pytest.mark.parametrize(
    ("after", "expected"),
    [(None, "A"), (0.0, "AA"), (1, "AA"), (2, "AA"), (2.001, "A"), (3, "A"), (10, "A"), (11, "A")],
)
def test_429_asks_to_wait(after: float | None, expected: str) -> None:
    """A 429 is asked again once where it came from if it says how long, and that is at most 2 s."""
    assert road(429, after=after) == expected
    assert road(429, "AB", after=after) == ("AB" if expected == "A" else "ABB")


@pytest.mark.parametrize(
    ("after", "expected"),
    [(None, "AA"), (0.0, "AA"), (1, "AA"), (3, "AA"), (10, "AA"), (10.001, "A"), (3600, "A")],
)
@pytest.mark.parametrize("status", BUSY)
def test_503_asks_to_wait(status: int, after: float | None, expected: str) -> None:
    """A 408, 503 or 529 is asked again once where it came from, if it does not ask for more than 10 s."""
    assert road(status, after=after) == expected
    assert road(status, "AB", after=after) == ("AB" if expected == "A" else "ABB")


@pytest.mark.parametrize("chance", [0.0, 0.25, 0.999])
@pytest.mark.parametrize(
    ("reason", "after", "base", "floor"),
    [
        (Fault.UNSENT, None, 0.1, 0.0),
        (Fault.DEAD, None, 0.0, 0.0),
        (Fault.STALE, None, 0.0, 0.0),
        (429, 1.5, 0.0, 1.5),
        (408, None, 0.5, 0.0),
        (503, None, 0.5, 0.0),
        (503, 0.3, 0.5, 0.3),
        (529, 7.0, 0.5, 7.0),
    ],
)
def test_waits(
    reason: Reason, after: float | None, base: float, floor: float, chance: float
) -> None:
    """The same upstream is asked after a wait with full jitter, and not before the time it asked for."""
    journey = Journey(places("A"), chance=chance)
    assert journey.fails(reason, after=after) == "A"
    assert journey.went.wait == pytest.approx(max(base * chance, floor))
    if journey.fails(reason, after=after):
        assert journey.went.wait == pytest.approx(2 * base * chance)


@pytest.mark.parametrize("after", [None, 1.0, 3600.0])
@pytest.mark.parametrize("reason", [Fault.UNSENT, *BUSY, 429, 401, *BROKEN], ids=str)
def test_elsewhere_there_is_no_wait(reason: Reason, after: float | None) -> None:
    """Who has somewhere else to go goes there at once, however long the answer asks to wait."""
    journey = Journey(places("AB"), left=5.0, chance=0.9)
    assert journey.fails(reason, after=after) == "B"
    assert journey.went.wait == 0


@pytest.mark.parametrize("reason", RULES, ids=str)
def test_a_fresh_connection(reason: Reason) -> None:
    """Only what a connection may be to blame for asks for a new one, at the same upstream."""
    journey = Journey(places("AB"))
    while came := journey.fails(reason, after=1.0):
        same = journey.tried[-2] is journey.tried[-1]
        assert journey.went.fresh is (same and reason in (Fault.DEAD, Fault.STALE, 408)), came


# Limits


@pytest.mark.parametrize(
    ("reason", "attempts", "expected"),
    [
        (Fault.UNSENT, 1, "ABCDE"),
        (Fault.UNSENT, 2, "ABCDEE"),
        (Fault.UNSENT, 3, "ABCDEEE"),
        (Fault.UNSENT, 9, "ABCDEEE"),
        (Fault.DEAD, 1, "ABCDE"),
        (Fault.DEAD, 2, "AABBCCDDEE"),
        (Fault.NOWHERE, 1, "ABCDE"),
        (401, 1, "ABCDE"),
        (429, 1, "ABCDE"),
        (TOO_LONG, 1, "ABCDE"),
        (503, 1, "ABCDE"),
        (503, 2, "ABCDEE"),
        (526, 3, "ABCDE"),
        (Fault.STALE, 1, "A"),
        (Fault.STALE, 2, "AA"),
        (500, 1, "A"),
        (500, 2, "AB"),
        (500, 9, "AB"),
    ],
    ids=str,
)
def test_attempts(reason: Reason, attempts: int, expected: str) -> None:
    """`attempts` bounds the tries at one place, and those that may have been billed; never how many places
    are asked that refuse for nothing.
    """
    assert road(reason, "ABCDE", Retry(attempts=attempts)) == expected


@pytest.mark.parametrize("attempts", [1, 2, 3, 5])
@pytest.mark.parametrize("how", [{"ambiguous": True}, {"free": "ABCDE"}], ids=str)
@pytest.mark.parametrize("reason", [Fault.LATE, Fault.AMBIGUOUS], ids=str)
def test_attempts_bound_what_may_be_billed(
    reason: Fault, how: dict[str, Any], attempts: int
) -> None:
    """However the operator allows it, no more than `attempts` places are asked that may do the work."""
    policy = Retry(attempts=attempts, ambiguous="ambiguous" in how)
    assert road(reason, "ABCDE", policy, free=how.get("free", "")) == "ABCDE"[:attempts]


@pytest.mark.parametrize("reason", [429, 503, 401])
def test_an_answer_that_had_begun(reason: int) -> None:
    """An error inside a 200 may have been billed, whatever its code: such places are `attempts` at most."""
    journey = Journey(places("ABCDE"), Retry(attempts=3))
    while journey.fails(reason, begun=True):
        pass
    assert journey.road == "ABC"


def test_next_off() -> None:
    """With `next = false` no other place is asked, whatever happens; the same one is as before."""
    for reason, alone, _ in TABLE:
        assert road(reason, "ABC", Retry(attempts=20, next=False)) == alone, reason


@pytest.mark.parametrize("also", [(), (404,), (404, 410, 424, 403, 418, 501, 599)], ids=str)
@pytest.mark.parametrize("status", [404, 410, 403, 424, 418, 501, 599])
def test_also(status: int, also: tuple[int, ...]) -> None:
    """What the operator names leads on; as often as there are `attempts`, but where nothing can be billed."""
    expected = "A"
    if status in also:
        expected = "ABCDE" if status in (404, 410) else "ABC"
    assert road(status, "ABCDE", Retry(also=also)) == expected
    assert road(status, "A", Retry(also=also)) == "A"


@pytest.mark.parametrize("status", [*RULES, *FINAL], ids=str)
def test_also_takes_nothing_away(status: Reason) -> None:
    """To name a status that leads on anyway changes nothing, but that 500 leads on more than once."""
    if isinstance(status, Fault) or status not in RULES:
        return
    named, unnamed = (road(status, "ABCDE", Retry(also=one)) for one in ((status,), ()))
    assert named == ("ABC" if status in BROKEN else unnamed)


def test_also_is_of_who_answers() -> None:
    """A status leads on where the place that answers so says it, not where the first one does."""
    a, b = place("A"), place("B", retry=Retry(also=(404,)))
    journey = Journey([a, b, place("C")])
    assert [journey.fails(503), journey.fails(404), journey.fails(404)] == ["B", "C", ""]


@pytest.mark.parametrize("status", [*BROKEN, 501, 599])
def test_an_upstream_that_says_no(status: int) -> None:
    """An upstream's own `x-should-retry: false` on a 5xx is believed: nobody else is asked."""
    policy = Retry(also=(501, 599))
    assert road(status, "AB", policy, hint=False) == "A"
    assert road(status, "AB", policy, hint=True) == "AB"


def test_it_says_no_of_itself() -> None:
    """What it refuses for nothing another one may do all the same, and so with what the operator names."""
    assert road(503, "AB", hint=False) == "AB"
    assert road(424, "AB", Retry(also=(424,)), hint=False) == "AB"


@pytest.mark.parametrize(
    ("left", "goes"), [(inf, "A"), (2.0, "A"), (1.5, ""), (1.0, ""), (0.0, ""), (-1.0, "")]
)
def test_a_deadline_shorter_than_the_wait(left: float, goes: str) -> None:
    """A wait that the deadline would cut is not begun."""
    journey = Journey(places("A"), left=left)
    assert journey.fails(503, after=1.5) == goes
    journey.close()


@pytest.mark.parametrize(("left", "goes"), [(0.001, "B"), (0.0, ""), (-1.0, "")])
def test_a_deadline_and_somewhere_else(left: float, goes: str) -> None:
    """Somewhere else is gone to at once, for as long as there is any time."""
    journey = Journey(places("AB"), left=left)
    assert journey.fails(503, after=1.5) == goes
    journey.close()


@pytest.mark.parametrize("reason", [Fault.UNSENT, Fault.DEAD, Fault.STALE, *BUSY, 429], ids=str)
def test_a_budget_that_is_used_up(reason: Reason) -> None:
    """An upstream with too many retries in flight is not asked again; another one is."""
    choices = places("AB")
    choices[0].health.load.retrying = 3
    journey = Journey(choices)
    assert journey.fails(reason, after=1.0) == ("" if reason is Fault.STALE else "B")
    journey.trip.close()
    assert choices[0].health.load.retrying == 3


def test_the_budget_is_held_by_who_goes_on() -> None:
    """Asking again where it came from holds a place there, until it has failed or the trip is over;
    going on elsewhere holds none.
    """
    choices = places("AB")
    journey = Journey(choices)

    def held() -> list[int]:
        return [choice.health.load.retrying for choice in choices]

    assert (journey.fails(503), held()) == ("B", [0, 0])
    assert (journey.fails(503), held()) == ("B", [0, 1])
    assert (journey.fails(503), held()) == ("", [0, 0])
    assert (journey.fails(Fault.DEAD), held()) == ("", [0, 0])
    again_from = Journey(choices)
    assert (again_from.fails(Fault.DEAD), held()) == ("A", [1, 0])
    again_from.trip.close()
    again_from.trip.close()
    assert held() == [0, 0]


STEPS = st.lists(
    st.tuples(
        st.sampled_from([*RULES, 200, 404, 418, 424, 501]),
        st.none() | st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0, 10.0, 11.0]),
        st.sampled_from([None, True, False]),
        st.booleans(),
    ),
    min_size=20,
    max_size=20,
)
POLICIES = st.builds(
    Retry,
    attempts=st.integers(1, 8),
    next=st.booleans(),
    also=st.sets(st.sampled_from([404, 418, 424, 500, 501])).map(tuple),
    stale=st.booleans(),
    failover_5xx=st.booleans(),
    ambiguous=st.booleans(),
)


@given(
    STEPS,
    POLICIES,
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.just(inf) | st.floats(0, 12),
    st.booleans(),
    st.floats(0, 1, exclude_max=True),
)
def test_any_journey(
    steps: list[tuple[Reason, float | None, bool | None, bool]],
    policy: Retry,
    billed: list[bool],
    left: float,
    resent: bool,
    chance: float,
) -> None:
    """Whatever fails: waits are short, each place is asked once on the way forward, no more than `attempts`
    tries may have been billed, and what was not free is not asked twice but where that is allowed.
    """
    choices = [place(f"{at}", billed=one, retry=policy) for at, one in enumerate(billed)]
    journey = Journey(choices, policy, left=left, resent=resent, chance=chance)
    moved_by_5xx, bills = 0, 0
    for reason, after, hint, inside in steps:
        here, before = journey.tried[-1], [*journey.tried]
        inside = inside and isinstance(reason, int)  # of a 200
        said = {"after": after, "hint": hint, "begun": inside} if isinstance(reason, int) else {}
        bills += inside or may_be_billed(reason)
        if not journey.fails(reason, **said):
            break
        there = journey.tried[-1]
        assert reason in RULES or reason in policy.also
        assert bills < policy.attempts  # so that another one may be billed
        assert there is here or (there not in before and policy.next)
        assert journey.tried.count(there) <= policy.attempts
        assert 0 <= journey.went.wait <= 10
        assert journey.went.wait < left
        assert there is here or journey.went.wait == 0
        if reason in (Fault.AMBIGUOUS, Fault.LATE):
            assert policy.ambiguous or not here.target.upstream.billed
            assert there is not here
        if reason is Fault.STALE:
            assert policy.stale
            assert there is here
        if isinstance(reason, int) and there is here:
            assert not resent
            assert hint is not False
            assert reason in (429, *BUSY)
            assert journey.went.wait >= (after or 0)
        if reason in BROKEN and reason not in policy.also:
            moved_by_5xx += 1
        if isinstance(reason, int) and reason >= 500 and may_be_billed(reason):
            assert hint is not False
        held = int(there.target.upstream is here.target.upstream)
        assert sum({id(one.health.load): one.health.load.retrying for one in choices}.values()) == (
            held
        )
        assert there.health.load.retrying == held
    assert moved_by_5xx <= policy.failover_5xx
    assert all(journey.tried.count(choice) <= 3 for choice in choices)
    journey.close()


def may_be_billed(reason: Reason) -> bool:
    """Return whether the upstream may have done the work: the request went out whole, and it did not say
    at once that it would not do it.
    """
    if isinstance(reason, Fault):
        return reason in (Fault.STALE, Fault.AMBIGUOUS, Fault.LATE, Fault.MALFORMED)
    free = (401, 402, 404, 405, 408, 410, 413, 415, 429, 503, 529)
    return reason not in (*free, TOO_LONG, NOT_PERMITTED, *UNREACHED)
