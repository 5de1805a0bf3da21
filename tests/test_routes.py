"""Routes: which one a model string means, what its upstream is asked for, and what is suggested."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import dialects
from proxy.config import load
from proxy.dialects import Dialect
from proxy.patterns import Pattern
from proxy.routes import Base, Group, Origin, Route, RouteTable, Target, Unrouted, Upstream
from tests.harness.client import call, chat
from tests.harness.proxy import serving
from tests.harness.upstream import Upstream as Scripted
from tests.harness.upstream import answer

Read = Callable[[str], RouteTable]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return what reads the lines of `[routes]`."""

    def table(lines: str) -> RouteTable:
        file = tmp_path / "routes.toml"
        file.write_text(f"[routes]\n{lines}\n")
        return load(file, {}).routes

    return table


def everything(_: str) -> bool:
    return True


UPSTREAM = Upstream("up", Base(Origin("http", "localhost", 80), ""))
GROUPS = (Group((Target(UPSTREAM),)),)


def routes(*names: str, listed: tuple[str, ...] = ()) -> RouteTable:
    return RouteTable(Route(name, Pattern.parse(name), GROUPS, listed=listed) for name in names)


def sent(table: RouteTable, model: str) -> tuple[str, str]:
    """Return the upstream that *model* leads to, and what it is asked for there."""
    route = table.match(model)
    assert route is not None
    return route.first.upstream.name, route.model_sent(route.first, model)


# Match


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("claude-opus", "claude-opus"),
        ("claude-opus-4", "claude-opus-*"),
        ("claude-sonnet", "claude-*"),
        ("claude-", "claude-*"),
        ("claude", "*"),
        ("Claude-opus", "*"),
        ("qwen/turbo", "qwen/*"),
        ("qwen/", "qwen/*"),
        ("qwen", "*"),
        ("qwen/turbo/x", "qwen/*"),
        ("xqwen/turbo", "*"),
        ("", "*"),
    ],
)
def test_exact_before_longest_prefix(model: str, route: str) -> None:
    """The exact name wins, else the longest prefix; case counts and the slash is part of the name."""
    table = routes("*", "claude-*", "claude-opus-*", "claude-opus", "qwen/*")
    found = table.match(model)
    assert found is not None
    assert found.name == route


@pytest.mark.parametrize("model", ["", "gpt", "GPT-4o", "gpt-4o ", "openai/gpt-4o", "claude", "*"])
def test_no_match(model: str) -> None:
    """What no name and no prefix fits leads nowhere."""
    assert routes("gpt-4o", "claude-*").match(model) is None


def test_order_does_not_matter() -> None:
    """Which route wins does not depend on the order of the file."""
    names = ("a*", "ab*", "abc*", "abc", "*")
    for order in (names, names[::-1]):
        assert [
            str(found) for found in map(_name(routes(*order)), ("abc", "abcd", "abx", "z"))
        ] == [
            "abc",
            "abc*",
            "ab*",
            "*",
        ]


def _name(table: RouteTable) -> Callable[[str], str | None]:
    def match(model: str) -> str | None:
        route = table.match(model)
        return route.name if route else None

    return match


@given(
    st.lists(st.text("ab/*-", min_size=1, max_size=4), unique=True, max_size=12),
    st.text("ab/-", max_size=6),
)
def test_match_is_the_first_candidate(names: list[str], model: str) -> None:
    """`match` finds what a look at every route would: the first of all candidates."""
    table = routes(*(name for name in names if "*" not in name[:-1]))
    candidates = table.candidates(model)
    assert table.match(model) is (candidates[0] if candidates else None)
    assert all(route.pattern.matches(model) for route in candidates)
    assert [route for route in table.routes if route.pattern.matches(model)] == sorted(
        candidates, key=table.routes.index
    )


# The model sent


@pytest.mark.parametrize(
    ("lines", "asked", "upstream", "model"),
    [
        ('"gpt-4o" = "openai/gpt-4o"', "gpt-4o", "openai", "gpt-4o"),
        ('"old" = "anthropic/claude-sonnet-4-5"', "old", "anthropic", "claude-sonnet-4-5"),
        ('"m" = "openrouter/openai/gpt-4o"', "m", "openrouter", "openai/gpt-4o"),
        ('"claude-*" = { upstream = "anthropic" }', "claude-x", "anthropic", "claude-x"),
        ('"openai/*" = { upstream = "openai" }', "openai/gpt-4o", "openai", "gpt-4o"),
        ('"openai/*" = { upstream = "openai" }', "openai/openai/x", "openai", "openai/x"),
        ('"openai/x" = { upstream = "openai" }', "openai/x", "openai", "x"),
        ('"*" = { upstream = "openai" }', "groq/x", "openai", "groq/x"),
        ('"*" = { upstream = "openai" }', "openai/x", "openai", "openai/x"),
        ('"*" = { upstream = "openrouter" }', "openrouter/auto", "openrouter", "openrouter/auto"),
        ('"open*" = { upstream = "openai" }', "openai/x", "openai", "openai/x"),
        ('"openai/g*" = { upstream = "openai" }', "openai/gpt", "openai", "gpt"),
        ('"groq/compound" = "groq/groq/compound"', "groq/compound", "groq", "groq/compound"),
        ('"*" = { upstream = "openai" }', "OpenAI/x", "openai", "OpenAI/x"),
        ('"*" = { upstream = "openai" }', "openai", "openai", "openai"),
        ('"*" = { upstream = "openai", model = "*" }', "openai/x", "openai", "openai/x"),
        ('"qwen/*" = { upstream = "groq", model = "*" }', "qwen/turbo", "groq", "turbo"),
        ('"q/*" = { upstream = "groq", model = "Qwen/*-it" }', "q/7b", "groq", "Qwen/7b-it"),
        ('"q/*" = { upstream = "groq", model = "*" }', "q/a*b", "groq", "a*b"),
        ('"q/*" = { upstream = "groq", model = "fixed" }', "q/7b", "groq", "fixed"),
        ('"gpt-*" = "openai/gpt-*"', "gpt-4o", "openai", "gpt-4o"),
        ('"gpt-*" = "openai/gpt-4o"', "gpt-3", "openai", "gpt-4o"),
        ('"x" = { upstream = "openai", model = "y" }', "x", "openai", "y"),
        ('"x" = { upstream = "openai", model = "openai/y" }', "x", "openai", "openai/y"),
        ('"c/*" = { base_url = "http://h/v1", model = "*" }', "c/m", "c/*", "m"),
        ('"c/*" = { base_url = "http://h/v1" }', "c/m", "c/*", "c/m"),
    ],
)
def test_model_sent(read: Read, lines: str, asked: str, upstream: str, model: str) -> None:
    """The upstream gets `model`, its `*` filled, else what was asked less its own name, cut once, where
    the route's own pattern begins with it.
    """
    assert sent(read(lines), asked) == (upstream, model)


@pytest.mark.parametrize(
    ("lines", "via"),
    [
        ('a = "b"\nb = "openai/m"', ("b",)),
        ('b = "openai/m"\na = "b"', ("b",)),
        ('a = "b"\nb = "c"\nc = "openai/m"', ("b", "c")),
        ('c = "openai/m"\nb = "c"\na = "b"', ("b", "c")),
        ('a = "b/c"\n"b/c" = "openai/m"', ("b/c",)),
        ('a = "openai/x"\n"openai/x" = "openai/m"', ("openai/x",)),
        ('"a" = "openai/m"', ()),
        ('a = "b"\nb = { upstream = "openai", model = "m" }', ("b",)),
        ('a = "m"\nm = { upstream = "openai" }', ("m",)),
        ('a = "openai/m"\n"openai/m" = { upstream = "openai" }', ("openai/m",)),
    ],
)
def test_aliases(read: Read, lines: str, via: tuple[str, ...]) -> None:
    """A string names a route, if there is one of that name, else an upstream and its model."""
    table = read(lines)
    assert sent(table, "a") == ("openai", "m")
    route = table.match("a")
    assert route is not None
    assert route.via == via


def test_route_before_upstream(read: Read) -> None:
    """Where a string is a route's name and an `upstream/model` too, the route is meant."""
    table = read('a = "openai/x"\n"openai/x" = "groq/y"')
    assert sent(table, "a") == ("groq", "y")
    assert sent(table, "openai/x") == ("groq", "y")


def test_own_name_is_no_circle(read: Read) -> None:
    """A route may be called what its upstream and model are called."""
    assert sent(read('"openai/gpt-4o" = "openai/gpt-4o"'), "openai/gpt-4o") == ("openai", "gpt-4o")


def test_order_of_the_file(read: Read) -> None:
    """Routes are listed in the order of the file, aliases before what they mean included."""
    table = read('a = "c"\nb = "a"\nc = "openai/m"\n"d*" = { upstream = "openai" }')
    assert [route.name for route in table.routes] == ["a", "b", "c", "d*"]


def test_alias_of_a_pattern(read: Read) -> None:
    """A pattern may be an alias of a name, and then every name that fits means that one."""
    table = read('"old-*" = "new"\nnew = "openai/m"')
    assert sent(table, "old-1") == sent(table, "old-*") == ("openai", "m")


def test_alias_inherits_timeouts(read: Read) -> None:
    """An alias is the route it means: with its timeouts, but without its list of names."""
    table = read('a = "b"\nb = { upstream = "openai", timeout = { idle = "7s" }, list = ["b"] }')
    route = table.match("a")
    assert route is not None
    assert route.first.timeouts.idle == 7
    assert table.names(route) == ("a",)


# Where an upstream is


@pytest.mark.parametrize(
    ("origin", "authority"),
    [
        (Origin("https", "api.x.ai", 443), "api.x.ai"),
        (Origin("http", "api.x.ai", 80), "api.x.ai"),
        (Origin("http", "api.x.ai", 443), "api.x.ai:443"),
        (Origin("https", "api.x.ai", 80), "api.x.ai:80"),
        (Origin("http", "gpu", 8000), "gpu:8000"),
        (Origin("http", "::1", 80), "[::1]"),
        (Origin("https", "fd00::1", 8443), "[fd00::1]:8443"),
    ],
)
def test_authority(origin: Origin, authority: str) -> None:
    """The Host header holds a port only where it is not the scheme's own, and brackets around IPv6."""
    assert origin.authority == authority
    assert Base(origin, "/v1").url("x/y") == f"{origin.scheme}://{authority}/v1/x/y"


@pytest.mark.parametrize(
    ("dialect", "suffix", "path"),
    [
        (dialects.CHAT, "chat/completions", "/v1"),
        (dialects.MESSAGES, "messages", "/m"),
        (dialects.MESSAGES, "messages/batches", "/m"),
        (dialects.COUNT_TOKENS, "messages/count_tokens", "/count"),
        (dialects.FILES, "messagesx", "/v1"),
        (dialects.RESPONSES, "responses/compact", "/r"),
        (dialects.GEMINI, "models/gemini-2.5-pro:generateContent", "/g"),
        (dialects.GEMINI, "models/messages:generateContent", "/g"),
        (dialects.MODELS, "models/gemini-2.5-pro", "/list"),
        (dialects.FILES, "gemini", "/g"),
    ],
)
def test_base_of(dialect: Dialect, suffix: str, path: str) -> None:
    """A path goes below the longest entry of `paths` that it lies under, else below the base; Gemini's
    own paths go by the name `gemini`.
    """
    origin = Origin("http", "h", 80)
    paths = [
        ("messages/count_tokens", "/count"), ("responses", "/r"), ("messages", "/m"),
        ("gemini", "/g"), ("models", "/list"),
    ]  # fmt: skip
    upstream = Upstream(
        "up", Base(origin, "/v1"), paths=tuple((p, Base(origin, to)) for p, to in paths)
    )
    assert upstream.base_of(dialect, suffix).path == path


# What an upstream speaks, and lacks


@pytest.mark.parametrize(
    ("spoken", "inferred", "refused"),
    [
        (None, False, set()),
        (None, True, set()),
        (("chat", "models"), False, set(dialects.DIALECTS) - {"chat", "models"}),
        (("chat", "models"), True, {"responses", "messages", "gemini"}),
        ((), False, set(dialects.DIALECTS)),
        ((), True, {"chat", "responses", "messages", "gemini"}),
    ],
)
def test_speaks(spoken: tuple[str, ...] | None, inferred: bool, refused: set[str]) -> None:
    """An upstream speaks what its list says, and where that is inferred, the small dialects too; one
    without a list speaks all of them.
    """
    upstream = Upstream("up", UPSTREAM.base, spoken=spoken, inferred=inferred)
    silent = {name for name, dialect in dialects.DIALECTS.items() if not upstream.speaks(dialect)}
    assert silent == refused


@pytest.mark.parametrize(
    ("unplaced", "missing", "passthrough", "lacking"),
    [
        (None, None, False, None),
        (None, "KEY", False, "KEY"),
        (None, "KEY", True, None),
        ("HOST", "KEY", False, "HOST"),
        ("HOST", "KEY", True, "HOST"),
    ],
)
def test_lacks(
    unplaced: str | None, missing: str | None, passthrough: bool, lacking: str | None
) -> None:
    """What a URL lacks is lacking whoever calls; a credential is not where the caller brings one."""
    upstream = Upstream("up", UPSTREAM.base, unplaced=unplaced, missing=missing)
    assert upstream.lacks(passthrough=passthrough) == lacking


# What carries no model


def unrouted(*prefixes: str) -> Unrouted:
    return Unrouted({prefix: Upstream(prefix, UPSTREAM.base) for prefix in prefixes})


@pytest.mark.parametrize(
    ("base", "suffix", "prefix"),
    [
        ("/v1", "files", "files"),
        ("", "files", "files"),
        ("/v1", "files/", "files"),
        ("/v1", "files/f-1/content", "files"),
        ("/v1", "files/f-1%2Fx", "files"),
        ("/v1", "files/a", "files/a"),
        ("/v1", "files/a/b", "files/a"),
        ("/v1", "files/ab", "files"),
        ("/v1", "filesx", "*"),
        ("/v1", "files%2Fx", "*"),
        ("/v1", "Files", "*"),
        ("/v1", "*", "*"),
        ("/v1", "*/x", "*"),
        ("/v1", "x/files", "*"),
        ("/v1", "", None),
        ("", "filesx", None),
        ("", ".env", None),
        ("", "*", None),
        ("", "", None),
    ],
)
def test_unrouted(base: str, suffix: str, prefix: str | None) -> None:
    """The longest prefix that ends at a slash says where a path goes, else `*`: that one only below a
    base path, so that a scan for `/.env` leads nowhere.
    """
    found = unrouted("*", "files", "files/a").match(base, suffix)
    assert (found.name if found else None) == prefix


def test_unrouted_without_anything() -> None:
    """Without a `*`, what no prefix fits leads nowhere."""
    table = unrouted("files")
    assert table.match("/v1", "batches") is None
    assert table.match("/v1", "*") is None
    assert unrouted().match("/v1", "files") is None


@given(st.text("ab/*", max_size=8), st.sampled_from(["", "/v1"]))
def test_unrouted_is_by_segments(suffix: str, base: str) -> None:
    """Whatever the path, its upstream is that of one of its beginnings, cut at a slash."""
    found = unrouted("a", "a/b", "b").match(base, suffix)
    fitting = [p for p in ("a", "a/b", "b") if f"{suffix}/".startswith(f"{p}/")]
    assert (found.name if found else None) == (max(fitting, key=len) if fitting else None)


async def test_sandbox_is_no_host_name() -> None:
    """An upstream on a host that happens to be called `sandbox` is not the built-in sandbox."""
    toml = '[upstreams.mine]\nbase_url = "http://sandbox:9/v1"\n[routes]\nm = "mine/echo"'
    async with serving(toml) as proxy:
        got = await call(proxy.port, chat())
        assert got.status == 502
        assert got.code in ("upstream_dns", "upstream_connect")


# Missing model


async def test_missing_model_is_default(upstream: Scripted) -> None:
    """A request without a model asks for the route `default`."""
    toml = f'[routes]\ndefault = {{ base_url = "{upstream.url}", model = "real" }}'
    async with serving(toml) as proxy:
        got = await call(proxy.port, chat(None))
        assert got.status == 200
        assert b'"model":"real"' in upstream.requests[0].body
        assert (await proxy.record())["model"] == "default"


@pytest.mark.parametrize("lines", ['other = "sandbox/echo"', 'Default = "sandbox/echo"'])
async def test_missing_model_without_default(lines: str) -> None:
    """Without a route `default`, a request without a model is refused with 400."""
    async with serving(f"[routes]\n{lines}") as proxy:
        got = await call(proxy.port, chat(None))
        assert got.status == 400
        assert got.code == "invalid_model"
        assert got.json()["error"]["param"] == "model"


SILENT = [
    b'{"messages":[]}',
    b'{"model":null,"messages":[]}',
    b'{"messages":[],"model" : ""}',
    b"{}",
]


@pytest.mark.parametrize("body", SILENT)
@pytest.mark.parametrize("more", ["", '\ndef = "sandbox/echo"', '\n"def*" = "sandbox/echo"'])
async def test_missing_model_stays_missing(upstream: Scripted, body: bytes, more: str) -> None:
    """Without a route `default`, a request that names no model goes where any name goes, as it came: no
    model is put in.
    """
    toml = f'[routes]\n"*" = {{ base_url = "{upstream.url}", model = "*" }}{more}'
    async with serving(toml) as proxy:
        assert (await call(proxy.port, body)).status == 200
        assert (await call(proxy.port, body)).status == 200
        record = await proxy.record(2)
        assert (record["upstream_model"], record["route"]) == (None, "*")
    assert [received.body for received in upstream.requests] == [body, body]


@pytest.mark.parametrize(
    ("answered", "model"),
    [
        (b'{"id":"x","model":"their-own","choices":[]}', "their-own"),
        (b'{"id":"x","message":{"model" : "their\xc3\xa9"}}', "theiré"),
        (b'{"text":"\\"model\\":\\"x\\""}', None),
        (b'{"model":5}', None),
        (b'{"text":"' + b"x" * 20_000 + b'","model":"late"}', None),
        (b'{"text":"' + b"x" * 9_000 + b'","model":"n"}', "n"),
    ],
)
async def test_model_that_the_answer_names(
    upstream: Scripted, answered: bytes, model: str | None
) -> None:
    """The log has the model that the upstream took for a request that named none, if it says so early."""
    upstream.will(answer(body=answered))
    toml = f'[routes]\n"*" = {{ base_url = "{upstream.url}" }}'
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat(None))).body == answered
        assert (await proxy.record())["model"] == model


@pytest.mark.parametrize("body", SILENT)
async def test_no_model_in_other_words(upstream: Scripted, body: bytes) -> None:
    """`null` and an empty text are no model: `default` is meant, and stands in their place."""
    toml = f'[routes]\ndefault = {{ base_url = "{upstream.url}", model = "real" }}\n"*" = "sandbox/echo"'
    async with serving(toml) as proxy:
        assert (await call(proxy.port, body)).status == 200
        assert (await proxy.record())["model"] == "default"
    sent = orjson.loads(upstream.requests[0].body)
    assert sent == {**orjson.loads(body), "model": "real"}
    assert upstream.requests[0].body.count(b'"model"') == 1


KEYS = """
[keys]
whole = "sk-whole-0123456789"
any = { secret = "sk-any-0123456789", models = ["m", "*"] }
some = { secret = "sk-some-0123456789", models = ["m", "default"] }
"""


@pytest.mark.parametrize("body", SILENT)
@pytest.mark.parametrize(
    ("routes", "key", "status"),
    [
        ("", "whole", 200),
        ("", "any", 200),
        ("", "some", 403),
        ('routes = ["m", "*"]', "whole", 200),
        ('routes = ["m", "*"]', "some", 403),
        ('routes = ["m", "default"]', "whole", 404),
    ],
)
async def test_who_need_not_name_a_model(
    upstream: Scripted, body: bytes, routes: str, key: str, status: int
) -> None:
    """Who may not ask for every model must name one: nobody could look at which one the upstream takes."""
    toml = f'[server]\n{routes}\n[routes]\n"*" = {{ base_url = "{upstream.url}" }}\n{KEYS}'
    bearer = [(b"Authorization", f"Bearer sk-{key}-0123456789".encode())]
    async with serving(toml) as proxy:
        got = await call(proxy.port, body, headers=bearer)
    assert got.status == status
    assert len(upstream.requests) == (status == 200)
    if status != 200:
        assert got.code == {403: "model_not_allowed", 404: "model_not_found"}[status]


async def test_hidden_default() -> None:
    """A surface that does not show `default` has none."""
    toml = '[server]\nroutes = ["m"]\n[routes]\ndefault = "sandbox/echo"\nm = "sandbox/echo"'
    async with serving(toml) as proxy:
        assert (await call(proxy.port, chat(None))).status == 400


# Suggestions


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("gpt-4", "gpt-4o"),
        ("gtp-4o", "gpt-4o"),
        ("GPT-4O", "gpt-4o"),
        ("claude-sonnet", "claude-sonnet-4-5"),
        ("openai/gpt-4o", "gpt-4o"),
        ("qwen-turbo", "qwen/qwen-turbo"),
    ],
)
def test_nearest(asked: str, nearest: str) -> None:
    """A name that is nearly right finds the one that was meant, by its beginning or its end."""
    table = routes("gpt-4o", "claude-sonnet-4-5", "qwen/qwen-turbo", "mistral-large")
    near = table.nearest(asked, everything)
    assert near[0] == nearest
    assert len(near) <= 3


@pytest.mark.parametrize("asked", ["zzzzzz", "", "*", "\x00", "日本語", "\udcff"])
def test_nothing_near(asked: str) -> None:
    """What resembles no name gets no suggestion."""
    assert routes("gpt-4o", "claude-sonnet").nearest(asked, everything) == []


def test_patterns_are_not_suggested() -> None:
    """Suggestions are names that can be asked for: a pattern's `list`, never the pattern."""
    table = routes("qwen/*", listed=("qwen/turbo",))
    assert table.nearest("qwen/turb", everything) == ["qwen/turbo"]
    assert table.nearest("qwen/*", everything) in ([], ["qwen/turbo"])


def test_only_visible_suggestions() -> None:
    """A name that the caller may not see is never suggested, however near it is."""
    table = routes("secret-model-1", "secret-model-2", "public-model-1")
    near = table.nearest("secret-model", lambda name: name.startswith("public"))
    assert near in ([], ["public-model-1"])


async def test_suggestions_over_the_wire() -> None:
    """A 404 suggests what the key and the surface both allow, and names nothing else."""
    toml = """
[server]
routes = ["seen-*"]
[keys.k]
secret = "key"
models = ["seen-a1", "hidden-a1"]
[routes]
seen-a1 = "sandbox/echo"
seen-a2 = "sandbox/echo"
hidden-a1 = "sandbox/echo"
"""
    headers = [(b"Authorization", b"Bearer key")]
    async with serving(toml) as proxy:
        got = await call(proxy.port, chat("seen-a"), headers=headers)
        assert got.status == 404
        assert got.code == "model_not_found"
        assert b"seen-a1" in got.body
        assert b"seen-a2" not in got.body
        got = await call(proxy.port, chat("hidden-a"), headers=headers)
        assert b"hidden-a1" not in got.body


# Ten thousand


@pytest.fixture(scope="module")
def many() -> RouteTable:
    """Ten thousand routes, half of them patterns, with long common beginnings and endings."""
    names = [f"vendor-{n % 50}/family-{n // 50}/model-{n}-instruct" for n in range(5000)]
    return routes(*names, *(f"{name[:-9]}*" for name in names))


@pytest.mark.parametrize(
    "model",
    [
        "vendor-7/family-14/model-707-instruct",
        "vendor-7/family-14/model-707-x",
        "vendor-7/family-14/model-707",
        "vendor-7/family-14/modle-707-instruct",
        "vendor-7",
        "x" * 100_000,
        "vendor-7/family-14/" * 10_000,
        "-instruct",
    ],
    ids=lambda model: model[:40],
)
def test_ten_thousand_are_quick(many: RouteTable, model: str) -> None:
    """Among ten thousand routes, a match and a suggestion take no noticeable time."""
    for work in (many.match, lambda name: many.nearest(name, everything)):
        best = min(_timed(work, model) for _ in range(5))
        assert best < 0.02


def _timed(work: Callable[[str], object], model: str) -> float:
    started = perf_counter()
    work(model)
    return perf_counter() - started


def test_ten_thousand_suggest(many: RouteTable) -> None:
    """Among ten thousand routes, a slip of the hand still finds the name that was meant."""
    near = many.nearest("vendor-7/family-14/model-707-instrct", everything)
    assert near[0] == "vendor-7/family-14/model-707-instruct"


# What a set of patterns reaches

SHORT = st.text("ab", max_size=2)
WRITTEN = st.builds(lambda text, wide: text + "*" * wide, SHORT, st.booleans())
NAMES = [
    a + b + c + d for a in ("", *"abc") for b in ("", *"abc") for c in ("", *"abc") for d in "abc"
] + [""]


@given(st.lists(WRITTEN, unique=True, max_size=6), st.lists(WRITTEN, max_size=3))
def test_reached(names: list[str], wanted: list[str]) -> None:
    """A route is reached where some name that the patterns match leads to it, and not where another one
    takes all of those.
    """
    table, patterns = routes(*names), [Pattern.parse(text) for text in wanted]
    led = {table.match(name) for name in NAMES if any(one.matches(name) for one in patterns)}
    assert table.reached(patterns) == {route for route in led if route is not None}
