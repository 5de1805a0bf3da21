"""Where else to go: fallbacks, targets, policies."""

import pytest

from tests.config.files import place, read, route_of, told

PLACES_TO_GO = """
[upstreams.corp]
base_url = "http://h/v1"
[routes]
default = "openai/gpt"
alias = "default"
asked = { upstream = "corp" }
"q/*" = { upstream = "corp", model = "*" }
safe = { upstream = "corp", model = "big", fallback = ["openai/gpt", "groq/llama"] }
fast = { targets = ["groq/llama", { to = "cerebras/llama", weight = 3 }], policy = "weighted" }
safe-alias = "safe"
"""


def test_an_alias_of_what_a_pattern_matches() -> None:
    """Who names a model that only a pattern matches is told what to write: where it leads, under the name that
    is sent there; but not what a variable holds, nor a place that stands in the route itself.
    """
    routes = """
"gpt-*" = { upstream = "openai", model = "prefix-*" }
"gpt-4*" = { upstream = "corp" }
"own-*" = { base_url = "http://own/v1" }
"""
    cases = {
        "gpt-3": '"openai/prefix-3"',
        "gpt-4o": '"corp/gpt-4o"',
        "own-a": "`base_url`",
        "own-*": "`base_url`",
        "${GPT}": '"openai/MODEL"',
    }
    for to, word in cases.items():
        problems = told(f'{PLACES_TO_GO}{routes}m = "{to}"', {"GPT": "gpt-CANARY"})
        assert list(problems) == ["routes.m"]
        assert word in problems["routes.m"]
        assert "CANARY" not in problems["routes.m"]
    for text in ('m = "fst"\n"*" = "openai/*"', 'm = "opnai/gpt"\n"*" = "openai/*"'):
        assert "did you mean" in told(PLACES_TO_GO + text)["routes.m"]
    assert list(told('[routes]\n"a*" = "abc"')) == ['routes."a*"']


def groups(line: str, model: str = "m") -> list[list[str]]:
    """Return where a route written as *line* leads, among `PLACES_TO_GO`."""
    route = route_of(PLACES_TO_GO + line, model)
    return [[place(route, one, model) for one in group.targets] for group in route.groups]


@pytest.mark.parametrize(
    ("fallback", "after"),
    [
        ('"groq/x"', [["groq/x"]]),
        ('["groq/x"]', [["groq/x"]]),
        ('["groq/x", "corp/y/z"]', [["groq/x"], ["corp/y/z"]]),
        ("[]", []),
        ('"default"', [["openai/gpt"]]),
        ('"alias"', [["openai/gpt"]]),
        ('"asked"', [["corp/asked"]]),
        ('"safe"', [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        ('"safe-alias"', [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        ('["fast", "default"]', [["groq/llama", "cerebras/llama"], ["openai/gpt"]]),
        ('"q/x"', None),
    ],
)
def test_fallback(fallback: str, after: list[list[str]] | None) -> None:
    """A route falls back to places and to other routes, whose own fallbacks go along, in the order
    in which they stand there.
    """
    line = f'm = {{ upstream = "corp", model = "own", fallback = {fallback} }}'
    if after is None:
        assert list(told(PLACES_TO_GO + line)) == ["routes.m.fallback"]
    else:
        assert groups(line) == [["corp/own"], *after]


@pytest.mark.parametrize(
    ("line", "asked", "expected"),
    [
        ('m = "safe"', "m", [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        ('m = "fast"', "m", [["groq/llama", "cerebras/llama"]]),
        ('m = "asked"', "m", [["corp/asked"]]),
        ('"m-*" = "safe-alias"', "m-1", [["corp/big"], ["openai/gpt"], ["groq/llama"]]),
        (
            '"m-*" = { upstream = "corp", model = "*", fallback = ["openai/gpt-*", "default"] }',
            "m-4",
            [["corp/4"], ["openai/gpt-4"], ["openai/gpt"]],
        ),
        (
            '"m-*" = { targets = ["corp/*", "openai/gpt-*"], fallback = "groq/*" }',
            "m-4",
            [["corp/4", "openai/gpt-4"], ["groq/4"]],
        ),
        ('"m-*" = { upstream = "corp", fallback = "default" }', "m-4", [["corp/m-4"], ["openai/gpt"]]),
        ('m = { base_url = "http://own/v1", fallback = "default" }', "m", [["m/m"], ["openai/gpt"]]),
        (
            '"groq/x" = { upstream = "corp", fallback = "groq/x" }',
            "groq/x",
            [["corp/groq/x"], ["groq/x"]],
        ),
        ('"groq/x" = { targets = ["groq/x", "corp/x"] }', "groq/x", [["groq/x", "corp/x"]]),
    ],
)  # fmt: skip
def test_names_along_a_chain(line: str, asked: str, expected: list[list[str]]) -> None:
    """Each place is asked for the model that is written for it: an alias carries its route's places
    along, a `*` is filled in at each, and where none is written it is the name asked for. A route
    that is called what its upstream and model are called leads there.
    """
    assert groups(line, asked) == expected


@pytest.mark.parametrize(
    ("lines", "path", "way"),
    [
        ('m = { upstream = "corp", fallback = "m" }', "m.fallback", ""),
        ('m = { upstream = "corp", fallback = ["groq/x", "m"] }', "m.fallback[1]", ""),
        ('m = { upstream = "corp", fallback = "n" }\nn = "m"', "m", "m → n → m"),
        (
            'm = { upstream = "corp", fallback = "n" }\nn = { upstream = "corp", fallback = ["m"] }',
            "m",
            "m → n → m",
        ),
        ('m = { targets = ["n", "groq/x"] }\nn = { targets = ["m"] }', "m", "m → n → m"),
        ('m = { targets = ["groq/x"], fallback = "n" }\nn = "o"\no = { targets = ["m"] }', "m", "m → n → o → m"),
        ('m = { targets = ["m", "groq/x"] }', "m", "m → m"),
        ('m = "n"\nn = { upstream = "corp", fallback = ["o"] }\no = "n"', "n", "n → o → n"),
    ],
)  # fmt: skip
def test_circles_through_fallbacks(lines: str, path: str, way: str) -> None:
    """A chain that leads back to where it began, however it goes on there, is told once, with the
    way round.
    """
    problems = told(PLACES_TO_GO + lines)
    assert list(problems) == [f"routes.{path}"]
    assert problems[f"routes.{path}"].removesuffix(f": {way}") == "leads back to itself"


WAYS = ['upstream = "corp", fallback = "{}"', 'upstream = "corp", model = "x", fallback = ["groq/x", "{}"]', 'targets = ["groq/x", "{}"]', 'targets = [{{ to = "{}" }}, "groq/x"]']  # fmt: skip
PLACE = ["fallback", "fallback[1]", "targets[1]", "targets[0].to"]


@pytest.mark.parametrize(("way", "at"), [*zip(WAYS, PLACE, strict=True)], ids=PLACE)
@pytest.mark.parametrize(
    ("to", "word"),
    [
        ("fst", 'did you mean "fast"?'),
        ("Default", 'did you mean "default"?'),
        ("opnai/gpt", 'did you mean "openai/gpt"?'),
        ("q0q0q0", "is neither a route nor `upstream/model`"),
        ("", "is neither a route nor `upstream/model`"),
        ("/", "is neither a route nor `upstream/model`"),
        ("openai", "is neither a route nor `upstream/model`"),
        ("openai/", "is neither a route nor `upstream/model`"),
        ("/gpt", "is neither a route nor `upstream/model`"),
        ("q/x", '"q/x" has no line of its own: only "q/*" matches it; write "corp/x"'),
        ("q/*", '"q/*" is a pattern; write "corp/MODEL", the place itself'),
        ("openai/*", "`*` in a model"),
        ("${TO}", '"${TO}" is neither a route nor `upstream/model`'),
    ],
)
def test_places_that_do_not_exist(way: str, at: str, to: str, word: str) -> None:
    """Wherever a place is named it exists, and is one place; the nearest name is suggested, unless
    a variable wrote it.
    """
    lines = f"m = {{ {way.format(to)} }}"
    problems = told(PLACES_TO_GO + lines, {"TO": "opnai/gpt"} if "$" in to else {})
    assert list(problems) == [f"routes.m.{at}"]
    assert word in problems[f"routes.m.{at}"]
    assert "${" not in to or problems[f"routes.m.{at}"].endswith("`upstream/model`")


def test_a_mistake_at_the_end_of_a_chain_is_told_there() -> None:
    """Who falls back to a route that is wrong is not told of it too."""
    toml = """
[routes]
a = { upstream = "openai", fallback = ["b", "c"] }
b = { upstream = "openai", fallback = ["nowhere/x"] }
c = { targets = ["d"] }
d = { upstream = 5 }
e = "a"
"""
    assert list(told(toml)) == ["routes.d.upstream", "routes.b.fallback[0]"]


@pytest.mark.parametrize(
    ("line", "path", "word"),
    [
        ('upstream = "corp", fallback = 5', "fallback", "list"),
        ('upstream = "corp", fallback = true', "fallback", "list"),
        ('upstream = "corp", fallback = { to = "x" }', "fallback", "list"),
        ('upstream = "corp", fallback = ["groq/x", 5]', "fallback[1]", "text"),
        ('upstream = "corp", fallback = [["groq/x"]]', "fallback[0]", "text"),
        ('upstream = "corp", fallbacks = ["groq/x"]', "fallbacks", 'did you mean "fallback"?'),
        ('targets = "groq/x"', "targets", "list"),
        ('targets = { to = "groq/x" }', "targets", "list"),
        ("targets = [5]", "targets[0]", "table"),
        ('targets = ["groq/x", ["groq/x"]]', "targets[1]", "table"),
        ('targets = ["groq/x", {}]', "targets[1].to", "is missing"),
        ("targets = [{ weight = 3 }]", "targets[0].to", "is missing"),
        ("targets = [{ to = 5 }]", "targets[0].to", "text"),
        ('targets = [{ to = "groq/x", weigth = 3 }]', "targets[0].weigth", 'did you mean "weight"?'),
        ('targets = [{ to = "groq/x", model = "x" }]', "targets[0].model", "unknown key"),
        ("targets = []", "", "needs an `upstream`, a `base_url` or `targets`"),
        ('targets = ["groq/x"], upstream = "corp"', "", "more than one of"),
        ('targets = ["groq/x"], base_url = "http://h"', "", "more than one of"),
        ('upstream = "corp", base_url = "http://h"', "", "more than one of"),
        ('targets = ["groq/x"], model = "x"', "model", "belongs into each of the `targets`"),
        ('targets = ["groq/x", "fast"]', "targets[1]", "is a route with several targets"),
        ('targets = [{ to = "safe" }]', "targets[0].to", "is a route with several targets"),
        ('targets = ["groq/x", "safe-alias"]', "targets[1]", "is a route with several targets"),
        ('targets = ["groq/x", "corp/y"], policy = "weigthed"', "policy", 'did you mean "weighted"?'),
        ('targets = ["groq/x", "corp/y"], policy = "least_busy"', "policy", 'did you mean "least-busy"?'),
        ('targets = ["groq/x", "corp/y"], policy = ""', "policy", "must be"),
        ('targets = ["groq/x", "corp/y"], policy = ["ordered"]', "policy", "must be"),
        ('upstream = "corp", policy = "ordered"', "policy", "there are none"),
        ('upstream = "corp", fallback = "groq/x", policy = "fastest"', "policy", "there are none"),
        ('upstream = "corp", sticky = "x-session-id"', "sticky", "there are none"),
        ('targets = ["groq/x", "corp/y"], sticky = "x-id"', "sticky", 'goes with `policy = "weighted"`'),
        ('targets = ["groq/x"], policy = "fastest", sticky = "x-id"', "sticky", 'goes with `policy = "weighted"`'),
        ('targets = ["groq/x"], policy = "weighted", sticky = ""', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = "a b"', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = "ü"', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = "x:"', "sticky", "is not the name of a header"),
        ('targets = ["groq/x"], policy = "weighted", sticky = ["x"]', "sticky", "text"),
        ('targets = ["groq/x"], credential = "sk-1"', "credential", "belongs to the upstream"),
        ('targets = ["groq/x"], headers = { a = "b" }', "headers", "belongs to the upstream"),
        ('targets = ["groq/x"], billed = false', "billed", "belongs to the upstream"),
        ('upstream = "corp", on_context_length = 1', "on_context_length", "boolean"),
        ('upstream = "corp", peek = "yes"', "peek", "boolean"),
        ('upstream = "corp", keepalive = 15', "keepalive", "duration"),
        ('upstream = "corp", keepalive = "0s"', "keepalive", "duration"),
        ('upstream = "corp", keepalive = true', "keepalive", "duration"),
    ],
)  # fmt: skip
def test_bad_ways_on(line: str, path: str, word: str) -> None:
    """What a route says of where else it leads, and how, is well formed and means something."""
    problems = told(f"{PLACES_TO_GO}m = {{ {line} }}")
    expected = f"routes.m.{path}" if path else "routes.m"
    assert list(problems) == [expected]
    assert word in problems[expected]


@pytest.mark.parametrize(
    "weight", ["-1", "-0.5", "inf", "-inf", "nan", "1000001", '"3"', "true", "[1]"]
)
def test_bad_weights(weight: str) -> None:
    """A weight is a number within reason, and not below 0."""
    lines = f'm = {{ targets = ["groq/x", {{ to = "corp/y", weight = {weight} }}], policy = "weighted" }}'
    assert list(told(PLACES_TO_GO + lines)) == ["routes.m.targets[1].weight"]


@pytest.mark.parametrize("policy", ["ordered", "weighted", "least-busy", "fastest"])
@pytest.mark.parametrize("weight", ["0", "0.0"])
def test_no_weight(weight: str, policy: str) -> None:
    """A target of weight 0 is none of those that are asked, by whatever policy; what it says is checked all
    the same, and one at least has some weight.
    """
    lines = 'm = {{ targets = ["groq/x", {{ to = "{}", weight = {} }}], policy = "{}" }}'
    (group,) = route_of(PLACES_TO_GO + lines.format("corp/y", weight, policy)).groups
    assert [one.upstream.name for one in group.targets] == ["groq"]
    assert [one.upstream.name for one in group.idle] == ["corp"]
    assert list(told(PLACES_TO_GO + lines.format("nowhere/y", weight, policy))) == [
        "routes.m.targets[1].to"
    ]
    none = f'm = {{ targets = [{{ to = "corp/y", weight = {weight} }}] }}'
    assert list(told(PLACES_TO_GO + none)) == ["routes.m.targets"]


@pytest.mark.parametrize("weight", [1, 3, 0.001, 2.5, 1_000_000])
@pytest.mark.parametrize("policy", ["ordered", "weighted", "least-busy", "fastest"])
def test_weights(weight: float, policy: str) -> None:
    """A target weighs 1 unless it says otherwise, and every policy may be named."""
    toml = f'm = {{ targets = ["groq/x", {{ to = "corp/y", weight = {weight} }}], policy = "{policy}" }}'
    (group,) = route_of(PLACES_TO_GO + toml).groups
    assert ([one.weight for one in group.targets], group.policy) == ([1, weight], policy)
    assert group.sticky is None


def test_targets_are_ordered_unless_said() -> None:
    """Without a policy, targets are tried in the order of the file; so is every fallback."""
    route = route_of(PLACES_TO_GO + 'm = { targets = ["groq/x", "corp/y"], fallback = "fast" }')
    assert [group.policy for group in route.groups] == ["ordered", "weighted"]


@pytest.mark.parametrize("sticky", ["x-session-id", "X-Session-ID", "user-agent", "x_y.z"])
def test_sticky(sticky: str) -> None:
    """The header that keeps a caller at one target is found whatever its case."""
    toml = f'm = {{ targets = ["groq/x", "corp/y"], policy = "weighted", sticky = "{sticky}" }}'
    assert route_of(PLACES_TO_GO + toml).groups[0].sticky == sticky.lower().encode()


def test_one_place_of_a_route_as_a_target() -> None:
    """A target may be a route that leads to one place, and is that place, with what the route says of it."""
    toml = """
[upstreams.corp]
base_url = "http://h/v1"
[routes]
slow = { upstream = "corp", model = "big", timeout = { first_byte = "9s" }, retry = { attempts = 1 } }
m = { targets = ["openai/x", { to = "slow", weight = 2 }], timeout = { first_byte = "3s" } }
"""
    first, second = route_of(toml).groups[0].targets
    assert (first.timeouts.first_byte, first.retry.attempts, first.weight) == (3, 3, 1)
    assert (second.timeouts.first_byte, second.retry.attempts, second.weight) == (9, 1, 2)


SWITCHES = "on_context_length = true, peek = true, keepalive = '7s'"


@pytest.mark.parametrize("alias", ["a", "b", "c-1"])
def test_alias_is_the_route_it_means(alias: str) -> None:
    """An alias does all that its route does: it leads to the same places, in the same way."""
    toml = f"""
[defaults]
keepalive = "20s"
[routes]
m = {{ targets = ["groq/x", "openai/y"], policy = "weighted", sticky = "x-id", {SWITCHES}, fallback = "sandbox/echo", retry = {{ attempts = 2 }} }}
a = "m"
b = "a"
"c-*" = "b"
"""
    table = read(toml).routes
    route, other = table.match("m"), table.match(alias)
    assert route is not None
    assert other is not None
    for ours, theirs in zip(other.groups, route.groups, strict=True):
        assert (ours.policy, ours.sticky) == (theirs.policy, theirs.sticky)
        for one, same in zip(ours.targets, theirs.targets, strict=True):
            assert place(other, one, alias) == place(route, same)
            assert (one.upstream, one.weight, one.retry) == (same.upstream, same.weight, same.retry)
    switches = [(one.on_context_length, one.peek, one.comment_after) for one in (route, other)]
    assert switches == [(True, True, 7)] * 2


def test_fallback_brings_no_switches() -> None:
    """What a route does of its own is not done by those that fall back to it."""
    toml = f'[routes]\nn = {{ upstream = "openai", {SWITCHES} }}\nm = {{ upstream = "groq", fallback = "n" }}'
    route = route_of(toml)
    assert (route.on_context_length, route.peek, route.comment_after) == (False, False, None)


@pytest.mark.parametrize(
    ("defaults", "route", "seconds"),
    [
        ("", "", None),
        ("", 'keepalive = "5s"', 5),
        ("", 'keepalive = "none"', None),
        ('keepalive = "15s"', "", 15),
        ('keepalive = "15s"', 'keepalive = "250ms"', 0.25),
        ('keepalive = "15s"', 'keepalive = "none"', None),
        ('keepalive = "none"', "", None),
    ],
)
def test_keepalive(defaults: str, route: str, seconds: float | None) -> None:
    """A silent stream gets comments where the defaults say so, unless the route says otherwise."""
    toml = f'[defaults]\n{defaults}\n[routes.m]\nupstream = "openai"\n{route}\n'
    assert route_of(toml).comment_after == seconds
