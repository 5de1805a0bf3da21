"""Which of several targets comes first, and whose score a choice is."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.credentials import Credential, LiveSecret, Secret
from proxy.routes import Base, Group, Origin, Policy, Target, Upstream
from proxy.upstream.balance import Scores, order
from proxy.upstream.breaker import Health

NOW = 50_000.0


def upstream(name: str, *secrets: Secret, host: str = "", path: str = "/v1") -> Upstream:
    base = Base(Origin("http", host or f"{name}.test", 80), path)
    return Upstream(name, base, tuple(Credential(secret) for secret in secrets))


def targets(*weights: float) -> list[Target]:
    """Return a target for each of *weights*, called `a`, `b`, and so on."""
    return [Target(upstream(chr(97 + at)), "m", one) for at, one in enumerate(weights)]


def names(ordered: Sequence[Target]) -> str:
    return "".join(target.upstream.name for target in ordered)


def never() -> float:
    raise AssertionError("chance has no part in this")


def ordered(
    group: Sequence[Target],
    policy: Policy,
    scores: Scores | None = None,
    stick: bytes | None = None,
    chance: Callable[[], float] = never,
) -> str:
    """Return the names of the targets of *group*, in the order of *policy*."""
    found = order(Group(tuple(group), policy, b"x-session"), scores or Scores(), stick, chance)
    assert Counter(found) == Counter(group)
    return names(found)


# Ordered


@pytest.mark.parametrize("stick", [None, b"value"])
def test_ordered(stick: bytes | None) -> None:
    """`ordered` is the order of the file, whatever the weights, the load, or the latency."""
    group, scores = targets(1, 5, 2), Scores()
    busy(scores, group[0], 7, latency=3)
    assert ordered(group, "ordered", scores, stick) == "abc"


@pytest.mark.parametrize("policy", ["ordered", "weighted", "least-busy", "fastest"])
def test_one_target(policy: Policy) -> None:
    """Where there is one target, there is nothing to choose."""
    assert ordered(targets(0.5), policy) == "a"


# Weighted

WEIGHTS = [(1, 1), (3, 1), (1, 2, 5), (0.25, 0.75), (1, 1, 1, 1, 1), (100, 1)]
DRAWS = 6_000


def fits(seen: Counter[str], weights: dict[str, float]) -> None:
    """Check that *seen* is what chance would make of *weights*: within five standard deviations."""
    total, draws = sum(weights.values()), seen.total()
    for name, weight in weights.items():
        share = weight / total
        allowed = 5 * (share * (1 - share) / draws) ** 0.5
        assert abs(seen[name] / draws - share) <= allowed, (name, seen)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weighted(weights: tuple[float, ...]) -> None:
    """Each target comes first as often as its weight says."""
    group, chance = targets(*weights), Random(4).random
    seen = Counter(ordered(group, "weighted", chance=chance)[0] for _ in range(DRAWS))
    fits(seen, {target.upstream.name: target.weight for target in group})


def test_weighted_among_the_rest() -> None:
    """Who comes second is decided by the weights of those that did not come first."""
    group, chance = targets(1, 2, 5), Random(4).random
    roads = [ordered(group, "weighted", chance=chance) for _ in range(3 * DRAWS)]
    fits(Counter(road[1] for road in roads if road[0] == "a"), {"b": 2, "c": 5})
    fits(Counter(road[1] for road in roads if road[0] == "c"), {"a": 1, "b": 2})


@pytest.mark.parametrize("least", [0.0, 5e-324, 0.5, 1 - 2**-53])
def test_weighted_by_any_chance(least: float) -> None:
    """The ends of chance are numbers like others."""
    assert sorted(ordered(targets(1, 2, 3), "weighted", chance=lambda: least)) == ["a", "b", "c"]


# Sticky

VALUES = [f"session-{number}".encode() for number in range(DRAWS)]
STICKS = st.binary(max_size=64)


def firsts(group: Sequence[Target]) -> dict[bytes, str]:
    """Return which target of *group* comes first for each of many values."""
    return {value: ordered(group, "weighted", stick=value)[0] for value in VALUES}


@given(STICKS, st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.randoms())
def test_sticky(stick: bytes, weights: list[float], random: Random) -> None:
    """The same value leads the same way: after a restart, a reload, and in whatever order the file is."""
    group = targets(*weights)
    road = ordered(group, "weighted", stick=stick)
    again = targets(*weights)
    random.shuffle(again)
    assert ordered(again, "weighted", Scores(), stick) == road


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sticky_values_are_spread(weights: tuple[float, ...]) -> None:
    """Different values are spread over the targets as the weights say."""
    group = targets(*weights)
    fits(Counter(firsts(group).values()), {target.upstream.name: target.weight for target in group})


@given(STICKS, st.lists(st.floats(0.01, 100), min_size=2, max_size=6), st.data())
def test_a_target_that_leaves(stick: bytes, weights: list[float], data: st.DataObject) -> None:
    """If a target leaves, the others keep the order they had: only its own values move."""
    group = targets(*weights)
    gone = data.draw(st.sampled_from(group))
    left = [target for target in group if target is not gone]
    road = ordered(group, "weighted", stick=stick)
    assert ordered(left, "weighted", stick=stick) == road.replace(gone.upstream.name, "")


def test_only_its_values_move() -> None:
    """If a target leaves, what belonged to it is spread over the others by weight; nothing else moves."""
    group = targets(1, 2, 3)
    before, after = firsts(group), firsts(group[:2])
    assert all(after[value] == before[value] for value in VALUES if before[value] != "c")
    fits(Counter(after[value] for value in VALUES if before[value] == "c"), {"a": 1, "b": 2})


def test_more_weight_only_draws() -> None:
    """A target that gets more weight takes values from the others; between those nothing moves."""
    before, after = firsts(targets(1, 1, 1)), firsts(targets(1, 1, 2))
    moved = {(before[value], after[value]) for value in VALUES if before[value] != after[value]}
    assert moved == {("a", "c"), ("b", "c")}


def test_models_of_one_upstream() -> None:
    """Two models at one upstream are two targets, which share the values."""
    one = upstream("a")
    group = [Target(one, "small"), Target(one, "large")]
    seen = Counter(
        order(Group(tuple(group), "weighted"), Scores(), value, never)[0].model for value in VALUES
    )
    assert abs(seen["small"] - seen["large"]) < 0.1 * DRAWS


def test_without_a_value() -> None:
    """A request without the header goes where chance sends it, one with an empty value always the same way."""
    group, chance = targets(1, 1), Random(4).random
    assert len({ordered(group, "weighted", chance=chance) for _ in range(50)}) == 2
    assert len({ordered(group, "weighted", stick=b"") for _ in range(50)}) == 1


# Least busy, and fastest


def busy(scores: Scores, target: Target, active: int, *, latency: float = 0.0) -> None:
    """Let *active* attempts be under way at *target*, after one that took *latency* to begin."""
    for choice in scores.choices(target):
        if latency:
            probe = choice.health.begin(NOW)
            choice.health.answered(NOW, 200, latency, probe)
            choice.health.end(probe)
    for _ in range(active):
        scores.choices(target)[-1].health.begin(NOW)


@pytest.mark.parametrize(
    ("active", "weights", "road"),
    [
        ((0, 0, 0), (1, 1, 1), "abc"),
        ((1, 0, 2), (1, 1, 1), "bac"),
        ((2, 2, 1), (1, 1, 1), "cab"),
        ((2, 2, 1), (4, 1, 1), "acb"),
        ((0, 3, 4), (1, 1, 2), "acb"),
    ],
)
def test_least_busy(active: tuple[int, ...], weights: tuple[float, ...], road: str) -> None:
    """The one with the least in flight comes first, for its weight; among equals, in the file's order."""
    group, scores = targets(*weights), Scores()
    for target, number in zip(group, active, strict=True):
        busy(scores, target, number)
    assert ordered(group, "least-busy", scores) == road


def test_least_busy_counts_every_credential() -> None:
    """What is in flight at an upstream is so whichever credential it was sent with."""
    two = Target(upstream("a", Secret("k1", "K1"), Secret("k2", "K2")), "m")
    group, scores = [two, *targets(1, 1)[1:]], Scores()
    busy(scores, two, 1)
    assert ordered(group, "least-busy", scores) == "ba"
    scores.choices(two)[-1].health.end(0)
    assert ordered(group, "least-busy", scores) == "ab"


@pytest.mark.parametrize(
    ("latencies", "road"),
    [
        ((0, 0, 0), "abc"),
        ((0.3, 0.1, 0.2), "bca"),
        ((0.3, 0, 0.2), "bca"),
        ((0.001, 0.002, 0), "cab"),
        ((0.5, 0.5, 0.5), "abc"),
    ],
)
def test_fastest(latencies: tuple[float, ...], road: str) -> None:
    """The one that took least to begin comes first; before it, one that nobody has tried."""
    group, scores = targets(1, 9, 1), Scores()
    for target, latency in zip(group, latencies, strict=True):
        busy(scores, target, 0, latency=latency)
    assert ordered(group, "fastest", scores) == road


def test_fastest_by_its_best_credential() -> None:
    """An upstream is as fast as the credential that it is fastest with, and untried while one of them is."""
    two, scores = Target(upstream("a", Secret("k1", "K1"), Secret("k2", "K2")), "m"), Scores()
    group = [*targets(1, 1)[1:], two]
    busy(scores, group[0], 0, latency=0.2)
    for choice, latency in zip(scores.choices(two), (0.9, 0.1), strict=True):
        assert ordered(group, "fastest", scores) == "ab"
        probe = choice.health.begin(NOW)
        choice.health.answered(NOW, 200, latency, probe)
    assert ordered(group, "fastest", scores) == "ab"


def test_fastest_follows() -> None:
    """A target that has become slow goes down, and its latency follows what it does lately."""
    group, scores = targets(1, 1), Scores()
    busy(scores, group[0], 0, latency=0.1)
    busy(scores, group[1], 0, latency=0.5)
    roads = []
    for _ in range(6):
        roads.append(ordered(group, "fastest", scores))
        busy(scores, group[0], 0, latency=1.5)
    assert roads[0] == "ab"
    assert roads[-1] == "ba"
    assert sum(one != other for one, other in pairwise(roads)) == 1


# Scores


def health(scores: Scores, one: Upstream) -> Health:
    """Return the score of *one*, which has at most one credential."""
    (choice,) = scores.choices(Target(one, "m"))
    assert scores.of(one) == [choice.health]
    return choice.health


def test_a_choice_for_each_credential() -> None:
    """A target offers its upstream's credentials in their order, each with a score of its own, or none."""
    scores = Scores()
    one = upstream("a", Secret("k1", "K1"), Secret("k2", "K2"))
    first, second = scores.choices(Target(one, "m"))
    assert (first.credential, second.credential) == one.credentials
    assert first.health is not second.health
    assert first.health.load is second.health.load
    assert scores.of(one) == [first.health, second.health]
    (open_to_all,) = scores.choices(Target(upstream("b"), "m"))
    assert open_to_all.credential is None
    assert open_to_all.health.load is not first.health.load


def test_choices_are_kept() -> None:
    """A target offers the same choices each time, so that what was tried is known."""
    scores, target = Scores(), targets(1)[0]
    assert scores.choices(target) is scores.choices(target)


def test_targets_share_the_score() -> None:
    """Two targets at one upstream are two choices with one score: it is the credential that rests."""
    scores, one = Scores(), upstream("a", Secret("k", "K"))
    (small,), (large,) = (scores.choices(Target(one, model)) for model in ("small", "large"))
    assert small is not large
    assert small.health is large.health


def test_a_score_outlives_its_file() -> None:
    """A new reading of the file finds the score of what it has not changed."""
    scores = Scores()
    before = health(scores, upstream("a", Secret("k", "K")))
    before.rest(NOW, 30)
    after = health(scores, upstream("a", Secret("k", "K")))
    assert after is before
    assert health(scores, upstream("b")) is health(scores, upstream("b"))


@pytest.mark.parametrize(
    ("changed", "same_load"),
    [
        (upstream("other", Secret("k", "K"), host="a.test"), False),
        (upstream("a", Secret("k", "K"), host="elsewhere"), False),
        (upstream("a", Secret("k", "K"), path="/v2"), False),
        (upstream("a", Secret("another", "K")), True),
        (upstream("a", Secret("k", "ANOTHER")), True),
        (upstream("a"), True),
    ],
    ids=["name", "host", "path", "secret", "source", "none"],
)
def test_what_is_changed_begins_anew(changed: Upstream, same_load: bool) -> None:
    """Another name, base or secret has a score of its own; the load is that of the name and base."""
    scores = Scores()
    before = health(scores, upstream("a", Secret("k", "K")))
    after = health(scores, changed)
    assert after is not before
    assert (after.load is before.load) is same_load


def test_a_live_secret_keeps_its_score() -> None:
    """A credential that changes while we run is the same one, and a new reading of the file finds it."""
    scores, secret = Scores(), LiveSecret("", "the command vault")
    before = health(scores, upstream("a", secret))
    secret.replace("first")
    assert health(scores, upstream("a", secret)) is before
    secret.replace("second")
    assert health(scores, upstream("a", LiveSecret("third", "the command vault"))) is before
    assert health(scores, upstream("a", LiveSecret("", "the command pass"))) is not before


def test_a_target_that_no_route_leads_to_is_forgotten() -> None:
    """Targets of an old file are let go; what their upstream did is not."""
    scores, old = Scores(), targets(1)[0]
    before = health(scores, old.upstream)
    busy(scores, old, 1)
    scores.keep([])
    assert not scores._choices.keys() & {old}
    assert health(scores, upstream("a")) is before
    assert before.load.active == 1


def test_what_was_tried_is_known_after_a_reload() -> None:
    """An exchange that began with an old file meets the same choices: none that it tried is a new one."""
    scores, target = Scores(), Target(upstream("a", Secret("k", "K")), "m")
    tried = [*scores.choices(target)]
    scores.keep([])
    assert all(choice in tried for choice in scores.choices(target))
