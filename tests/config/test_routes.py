"""Routes: names, patterns, aliases, models."""

import gc
from time import process_time
from typing import Any

import pytest

from proxy.config.problems import dotted
from tests.config.files import file_of, place, read, route_of, told


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ('a = "a"', "a"),
        ('a = "b"\nb = "a"', "a"),
        ('a = "b"\nb = "c"\nc = "b"', "b"),
        ('"x/y" = "z"\nz = "x/y"', '"x/y"'),
    ],
)
def test_circles(lines: str, path: str) -> None:
    """Aliases that lead back to where they began are told once, with the way round."""
    problems = told(f"[routes]\n{lines}")
    assert list(problems) == [f"routes.{path}"]
    assert "leads back to itself" in problems[f"routes.{path}"]


@pytest.mark.parametrize(
    ("lines", "path"),
    [
        ('a = "nowhere/x"', "a"),
        ('a = "nowhere"', "a"),
        ('a = ""', "a"),
        ('a = "/"', "a"),
        ('a = "openai"', "a"),
        ('a = "openai/"', "a"),
        ('a = "/gpt"', "a"),
        ('a = "OpenAI/gpt"', "a"),
        ('a = { upstream = "nowhere" }', "a.upstream"),
        ('a = { upstream = "" }', "a.upstream"),
        ('a = { upstream = "openai/x" }', "a.upstream"),
        ("a = {}", "a"),
        ('a = { model = "x" }', "a"),
        ('a = { upstream = "openai", base_url = "http://h" }', "a"),
        ('a = { upstream = "openai", model = "" }', "a.model"),
        ('a = { upstream = "openai", credential = "x" }', "a.credential"),
        ('a = { upstream = "openai", headers = { x = "y" } }', "a.headers"),
        ('a = { upstream = "openai", preset = "azure" }', "a.preset"),
        ('a = { upstream = "openai", billed = false }', "a.billed"),
        ('a = { upstream = "openai", speaks = "all" }', "a.speaks"),
        ('a = { upstream = "azure", vars = { resource = "x" } }', "a.vars"),
        ('a = { preset = "openai" }', "a"),
        ('a = "b*"\n"b*" = "openai/x"', "a"),
    ],
)
def test_routes_to_nowhere(lines: str, path: str) -> None:
    """A route that leads to no place that exists is an error."""
    assert list(told(f"[routes]\n{lines}")) == [f"routes.{path}"]


@pytest.mark.parametrize("lines", ["", "[routes]", "[server]", "# nothing"])
def test_no_routes(lines: str) -> None:
    """A file without a route is a mistake."""
    assert list(told(lines)) == ["routes"]


@pytest.mark.parametrize(
    "name", ["a*b", "**", "*a", "a**", "a*/b*", "", "a\nb", "a\x00", "a\x1b[31m"]
)
def test_bad_route_names(name: str) -> None:
    """A route's name is a model string of printable characters, and only its end may be a `*`."""
    assert list(told(file_of({"routes": {name: "openai/x"}}))) == [dotted(("routes", name))]


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"routes": {"a": "openai/*"}}, "routes.a"),
        ({"routes": {"a": {"upstream": "openai", "model": "x*"}}}, "routes.a.model"),
        ({"routes": {"a*": {"upstream": "openai", "model": "*/*"}}}, 'routes."a*".model'),
        ({"keys": {"k": {"secret": "x", "models": ["ok*", "a*b"]}}}, "keys.k.models[1]"),
        ({"keys": {"k": {"secret": "x", "models": ["**"]}}}, "keys.k.models[0]"),
        ({"server": {"routes": ["*/x"]}}, "server.routes[0]"),
        ({"routes": {"q/*": {"upstream": "openai", "list": ["q/*"]}}}, 'routes."q/*".list[0]'),
    ],
)
def test_star_in_the_wrong_place(tree: dict[str, Any], path: str) -> None:
    """A `*` stands at the end of a pattern, or once in the model of one; elsewhere it is a mistake."""
    problems = told(file_of({"routes": {"m": "openai/x"}, **tree}))
    assert list(problems) in ([path], [path.removesuffix(".model")])
    assert "*" in next(iter(problems.values()))


@pytest.mark.parametrize("name", ["a/b", "", "a\nb", "/"])
def test_bad_upstream_names(name: str) -> None:
    """An upstream's name is printable and without a slash, or no route could name it."""
    tree = {"upstreams": {name: {"base_url": "http://h"}}, "routes": {"m": "openai/x"}}
    assert list(told(file_of(tree))) == [dotted(("upstreams", name))]


@pytest.mark.parametrize("order", [1, -1], ids=["downwards", "upwards"])
def test_long_chain_of_aliases(order: int) -> None:
    """A chain of up to 50 routes is followed to its end; a longer one is a mistake, however it is
    written down, and however long.
    """

    def chain(count: int) -> str:
        lines = [f'a{n} = "a{n + 1}"' for n in range(count - 1)] + [f'a{count - 1} = "openai/x"']
        return "[routes]\n" + "\n".join(lines[::order])

    route = route_of(chain(50), "a0")
    assert (place(route, route.first), len(route.via)) == ("openai/x", 49)
    for count in (52, 3000):
        assert all("50" in message for message in told(chain(count)).values())


def test_ten_thousand_routes_load() -> None:
    """A file of ten thousand routes is read within a second or two."""
    lines = "".join(f'"vendor/model-{n}" = "openai/model-{n}"\n' for n in range(10_000))
    assert len(read(f"[routes]\n{lines}").routes.routes) == 10_000


@pytest.mark.parametrize("line", [
    'm{n} = {{ upstream = "openai", fallback = ["groq/a", "default"] }}',
    'm{n} = {{ targets = ["openai/a", {{ to = "default", weight = 2 }}], policy = "weighted" }}',
    'm{n} = "default"',
    'm{n} = {{ base_url = "http://h/v1", credential = ["a{n}", "b{n}"], retry = {{ attempts = 2 }} }}',
])  # fmt: skip
def test_many_routes_cost_what_few_cost(line: str) -> None:
    """Where each of many routes names several places, four times as many take about four times as long."""

    def seconds(count: int) -> float:
        lines = "\n".join(line.format(n=n) for n in range(count))
        gc.collect()
        gc.disable()  # one look at all that a long run of tests holds takes longer than the file
        try:
            started = process_time()
            assert (
                len(read(f'[routes]\ndefault = "openai/x"\n{lines}\n').routes.routes) == count + 1
            )
            return process_time() - started
        finally:
            gc.enable()

    few, many = (min(seconds(count) for _ in range(3)) for count in (400, 1600))
    assert many < 14 * few  # sixteen would be the square


def test_many_mistakes_are_quick() -> None:
    """One mistake made in a thousand lines is told a thousand times, without thinking long each time."""
    lines = "".join(f'"vendor/model-{n}" = "opneai/model-{n}"\n' for n in range(1000))
    assert len(told(f"[routes]\n{lines}")) == 1000


def test_no_key_stands_for_a_short_route() -> None:
    """A route that is a table names its upstream by a key of this page, and by no other."""
    assert told('[routes.m]\n"\\u0000" = "openai/x"\nupstream = "openai"')
