"""Where the attempts of an exchange may go: what will do, in which order, and what is left after a failure."""

from collections.abc import Sequence
from typing import Any

import pytest

from proxy import dialects
from proxy.credentials import Credential, Secret
from proxy.errors import NOT_CONFIGURED, UPSTREAM_CONNECT, UPSTREAM_UNAVAILABLE, Fault, ProxyError
from proxy.exchange import Exchange
from proxy.headers import Headers, Pair
from proxy.patterns import Pattern
from proxy.routes import Base, Group, Origin, Route, Target, Upstream
from proxy.upstream.asked import Asked
from proxy.upstream.balance import Choice, Scores
from proxy.upstream.places import Places
from proxy.upstream.retry import NOT_PERMITTED, TOO_LONG, Failed, rule_of

NOW = 1000.0


def upstream(name: str, credentials: int = 1, **more: Any) -> Upstream:
    secrets = [Secret(f"sk-{name}-{at}", f"{name}{at}") for at in range(credentials)]
    base = Base(Origin("http", f"{name}.test", 80), "")
    return Upstream(name, base, tuple(Credential(one) for one in secrets), **more)


def target(upstream: Upstream, model: str = "m") -> Target:
    return Target(upstream, model)


class Asking:
    """A request to *groups* of targets, and the scores of all of them."""

    def __init__(self, *groups: Sequence[Target], passthrough: bool = False, **more: Any) -> None:
        headers: tuple[Pair, ...] = more.pop("headers", ())
        exchange = Exchange("x", "default", "POST", "/", "", Headers(headers), False, None, 0.0)
        exchange.dialect = dialects.CHAT
        all_groups = tuple(Group(tuple(one), **more) for one in groups)
        route = Route("m", Pattern.parse("m"), all_groups)
        self.scores = Scores()
        asked = Asked(exchange, all_groups, passthrough, route, "m")
        self.places = Places(asked, self.scores, lambda: 0.5)
        self.last: Choice | None = None

    def begin(self) -> str:
        self.last = self.places.first(NOW)
        return name(self.last)

    def fails(self, reason: Fault | int) -> str:
        """Let the last attempt fail; return where to go instead, empty if nowhere."""
        assert self.last is not None
        rule = rule_of(reason, (reason,) if isinstance(reason, int) else ())
        assert rule is not None
        self.last = self.places.other(Failed(self.last, reason, rule, "answer"), NOW)
        return "" if self.last is None else name(self.last)


def name(choice: Choice) -> str:
    """Return which target, and which of its credentials, *choice* is: `a0`, with its model if it is another."""
    model = "" if choice.target.model == "m" else f"/{choice.target.model}"
    return (choice.credential.secret.source if choice.credential else "") + model


def test_the_only_one() -> None:
    """Where there is but one place, it is the first."""
    assert Asking([target(upstream("a"))]).begin() == "a0"


def test_ordered() -> None:
    """Targets are tried in their order, group after group; what is against one is said of it."""
    a, b = upstream("a"), upstream("b", spoken=("messages",))
    c = upstream("c", missing="C_KEY")
    asking = Asking([target(a), target(b)], [target(c)])
    places = asking.places
    assert [one.upstream.name for one in places.ordered()] == ["a", "b", "c"]
    assert [places.bar(one) for one in places.ordered()] == [None, "dialect", "dormant"]


def test_passthrough() -> None:
    """A caller's own credential is for the first target's upstream alone, whatever that lacks of ours."""
    a = upstream("a", 2, missing="A_KEY")
    asking = Asking([target(a), target(upstream("b"))], passthrough=True)
    assert [one.upstream.name for one in asking.places.ordered()] == ["a"]
    assert asking.places.bar(target(a)) is None
    assert (asking.begin(), asking.fails(503)) == ("a0", "")


def test_credentials_take_turns() -> None:
    """Of an upstream's credentials the one comes first that was used longest ago."""
    asking = Asking([target(upstream("a", 3))])
    first, second, third = asking.scores.choices(asking.places.ordered()[0])
    first.health.used, second.health.used, third.health.used = 3.0, 1.0, 2.0
    assert [name(one) for one in asking.places.choices(first.target)] == ["a1", "a2", "a0"]


def test_who_rests_is_passed_over() -> None:
    """The first attempt goes to what neither rests nor has its breaker open."""
    asking = Asking([target(upstream("a")), target(upstream("b", 2))])
    a, b = asking.places.ordered()
    asking.scores.choices(a)[0].health.rest(NOW, 10.0)
    asking.scores.choices(b)[0].health.open_until = NOW + 10
    assert asking.begin() == "b1"


def test_all_rest() -> None:
    """Where all rest, the one that failed longest ago is tried; where somebody tries already, it is refused."""
    asking = Asking([target(upstream("a")), target(upstream("b"))])
    a, b = (asking.scores.choices(one)[0].health for one in asking.places.ordered())
    a.rest(NOW - 1, 30.0)
    b.rest(NOW, 7.0)
    assert asking.begin() == "a0"
    a.begin(NOW)
    with pytest.raises(ProxyError) as caught:
        asking.begin()
    assert caught.value.kind is UPSTREAM_UNAVAILABLE
    assert caught.value.headers == (("Retry-After", "7"),)


def test_the_only_upstream_is_never_dark() -> None:
    """A route's only upstream is asked however it does, but for a moment after it refused a connection."""
    asking = Asking([target(upstream("a"))])
    health = asking.scores.choices(asking.places.ordered()[0])[0].health
    for _ in range(5):
        health.fault(NOW - 5)
    assert asking.begin() == "a0"
    health.fault(NOW, refused=True)
    with pytest.raises(ProxyError) as caught:
        asking.begin()
    assert caught.value.kind is UPSTREAM_CONNECT


def test_no_credential_yet() -> None:
    """Where no credential has a value, that is said, and by which name it is waited for."""

    class Unknown(Secret):
        known = False

    base = Base(Origin("http", "a.test", 80), "")
    late = Upstream("a", base, (Credential(Unknown("sk-late", "LATE")),))
    with pytest.raises(ProxyError, match="LATE has not given a credential") as caught:
        Asking([target(late)]).begin()
    assert caught.value.kind is NOT_CONFIGURED
    asking = Asking([target(late), target(upstream("b"))])
    assert asking.begin() == "b0"


def test_sticky() -> None:
    """What a sticky header says chooses among those that are weighted, and not chance."""
    found = set()
    for value in range(20):
        headers = ((b"X-Session", b"%d" % value),)
        group = [target(upstream("a")), target(upstream("b"))]
        roads = {
            Asking(group, headers=headers, policy="weighted", sticky=b"x-session").begin()
            for _ in range(3)
        }
        assert len(roads) == 1
        found |= roads
    assert found == {"a0", "b0"}


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Fault.UNSENT, ["c0", "a1", ""]),
        (Fault.DEAD, ["c0", "a1", ""]),
        (Fault.NOWHERE, ["c0", ""]),
        (Fault.AMBIGUOUS, ["c0", ""]),
        (Fault.LATE, ["c0", ""]),
        (401, ["a1", "a0/other", "a1/other", "c0", ""]),
        (402, ["a1", "a0/other", "a1/other", "c0", ""]),
        (429, ["a1", "a0/other", "a1/other", "c0", ""]),
        (NOT_PERMITTED, ["a1", "a0/other", "a1/other", "c0", ""]),
        (TOO_LONG, ["a0/other", "c0", ""]),
        (500, ["a0/other", "c0", ""]),
        (404, ["a0/other", "c0", ""]),
        (503, ["a0/other", "a1", "a1/other", "c0", ""]),
    ],
    ids=str,
)
def test_what_is_left(reason: Fault | int, expected: list[str]) -> None:
    """After what came to no answer the next one is another upstream; after an error another model there will do,
    and another credential where it was the credential's matter. No place is gone to twice, and none of
    a target, or an upstream, that failed for good.
    """
    a = upstream("a", 2)
    asking = Asking([target(a), target(a, "other")], [target(upstream("c"))])
    assert asking.begin() == "a0"
    assert [asking.fails(reason) for _ in expected] == expected


def test_by_another_way() -> None:
    """What has failed for good is not asked by way of another target that leads to the same place."""
    a, b = upstream("a"), upstream("b")
    asking = Asking([target(a), target(b)], [target(a)])
    assert [asking.begin(), asking.fails(503), asking.fails(503)] == ["a0", "b0", ""]
    asking = Asking([target(a), target(b)], [target(a, "other")])
    roads = [asking.begin(), asking.fails(Fault.NOWHERE), asking.fails(503)]
    assert roads == ["a0", "b0", ""]


def test_what_rests_is_not_gone_to() -> None:
    """Who rests is passed over on the way forward, too, and counts as somewhere to go all the same."""
    asking = Asking([target(upstream("a")), target(upstream("b"))])
    b = asking.scores.choices(asking.places.ordered()[1])[0]
    assert asking.begin() == "a0"
    first = asking.last
    assert first is not None
    b.health.rest(NOW, 10.0)
    assert asking.fails(503) == ""
    assert asking.places.has_other(first)
    assert not Asking([target(upstream("a"))]).places.has_other(first)
