"""What a caller may see."""

import pytest

from proxy.keys import Key
from proxy.patterns import Pattern
from proxy.routes import RouteTable
from proxy.sight import Sight
from proxy.surfaces import Address, Surface
from tests.config.files import read

FILE = """
[server]
auth = "keys"
%s
[keys]
team = { secret = "tk-0123456789-0123456789", models = ["a*", "openai/*"] }
[upstreams.one]
base_url = "http://127.0.0.1:1/v1"
[upstreams.two]
base_url = "http://127.0.0.1:2/v1"
[routes]
a = "one/x"
ab = "two/x"
b = "two/x"
"""


def sight_of(routes: str = "", *, whole: bool = False) -> Sight:
    """Return what the key `team` sees on the one surface, which shows *routes* only; with *whole* who has none."""
    snapshot = read(FILE % routes)
    (key,) = snapshot.keys
    return Sight(snapshot.surfaces[0], None if whole else key, snapshot.routes)


@pytest.mark.parametrize(
    ("routes", "models", "upstreams"),
    [("", ["a", "ab"], {"one", "two"}), ('routes = ["a", "b"]', ["a"], {"one"})],
)
def test_models(routes: str, models: list[str], upstreams: set[str]) -> None:
    """Seen is what both the surface shows and the key may ask for, and the upstreams that this leads to."""
    sight = sight_of(routes)
    assert [*sight.models()] == models
    assert {name for name in ("one", "two", "three", None) if sight.sees(name)} == upstreams
    assert [name for name in ("a", "ab", "b", None) if sight.shows(name)] == models
    assert not sight.whole


def test_whole() -> None:
    """Who is kept from nothing sees every upstream, be there a route to it or not."""
    sight = sight_of(whole=True)
    assert sight.whole
    assert sight.sees("three")
    assert [*sight.models()] == ["a", "ab", "b"]


@pytest.mark.parametrize(
    ("listen", "key", "named"),
    [
        ("127.0.0.1", None, True),
        ("0.0.0.0", None, False),
        ("0.0.0.0", Key("all", b""), True),
        ("127.0.0.1", Key("some", b"", (Pattern("", True),)), False),
        ("0.0.0.0", Key("other", b"", ()), True),
    ],
)
def test_who_is_named(listen: str, key: Key | None, named: bool) -> None:
    """The names of others' keys are for who sees all, and holds a key or sits at this machine."""
    surface = Surface("s", (Address(listen, 1),), ("/v1",), "none" if key is None else "keys")
    assert Sight(surface, key, RouteTable(())).names("other") is named
