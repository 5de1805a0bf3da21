"""The table that says where paths go that no route has."""

from typing import Any

import pytest

from proxy import dialects
from proxy.config.problems import dotted
from tests.config.files import ROUTES, file_of, read, told


@pytest.mark.parametrize(
    "prefix",
    [
        "", "/", "/files", "files/", "//", "a//b", "files*", "files/*", "**", "*/x",
        ".", "..", "../x", "a/../b", "a/./b", "%2e%2e", "a/%2E./b", "a\\b", "a%5cb", "a b", "a\tb",
        "a\nb", "a\x00", "a\x7f", "a%00b", "files?x", "files#x", "files?",
    ],
)  # fmt: skip
def test_bad_unrouted_paths(prefix: str) -> None:
    """A path of [unrouted] is one below a base path, and could mean no other place."""
    problems = told(file_of({"routes": {"m": "openai/x"}, "unrouted": {prefix: "openai"}}))
    assert list(problems) == [dotted(("unrouted", prefix))]
    assert 'such as "files"' in problems[dotted(("unrouted", prefix))]


@pytest.mark.parametrize("prefix", sorted({*dialects.ENDPOINTS} - {"chat/completions", "messages", "realtime", "responses", "videos"}))  # fmt: skip
def test_unrouted_endpoints(prefix: str) -> None:
    """An endpoint that carries a model, and below which nothing is kept, is a matter of [routes]."""
    problems = told(file_of({"routes": {"m": "openai/x"}, "unrouted": {prefix: "openai"}}))
    assert "carries a model" in problems[dotted(("unrouted", prefix))]


@pytest.mark.parametrize(
    "prefix",
    [
        "files", "batches", "fine_tuning", "fine_tuning/jobs", "vector_stores", "*", "responses",
        "chat/completions", "messages", "messages/batches", "videos", "realtime", "realtime/sessions",
        "a.b", "...", "models", "a%2Fb", "ü",
    ],
)  # fmt: skip
def test_unrouted_paths(prefix: str) -> None:
    """What is kept at a vendor may be named, below the endpoints that made it too."""
    table = read(file_of({"routes": {"m": "sandbox/x"}, "unrouted": {prefix: "openai"}})).unrouted
    assert {path: upstream.name for path, upstream in table.upstreams.items()} == {prefix: "openai"}
    assert set(table.names()) == {"openai"}


@pytest.mark.parametrize(
    ("to", "hint"),
    [
        ("opnai", '; did you mean "openai"?'),
        ("gpus", '; did you mean "gpu"?'),
        ("OpenAI", '; did you mean "openai"?'),
        ("q0q0", ""),
        ("", ""),
        ("m", ""),
        ("${TO}", ""),
    ],
)
def test_unrouted_to_nowhere(to: str, hint: str) -> None:
    """A path of [unrouted] leads to an upstream that exists; the nearest one is suggested."""
    tree = {
        "upstreams": {"gpu": {"base_url": "http://h/v1"}},
        "routes": {"m": "sandbox/x"},
        "unrouted": {"files": to},
    }
    problems = told(file_of(tree), {"TO": "opnai" if to.startswith("$") else ""})
    assert problems == {"unrouted.files": f'there is no upstream "{to}"{hint}'}


def test_unrouted_needs_no_route() -> None:
    """An upstream that only [unrouted] names is made, with its preset, and may be dormant."""
    snapshot = read('[routes]\nm = "sandbox/x"\n[unrouted]\nfiles = "mistral"\n')
    assert snapshot.upstreams["mistral"].missing == "MISTRAL_API_KEY"


@pytest.mark.parametrize("value", [5, True, ["openai"], {"upstream": "openai"}])
def test_unrouted_types(value: Any) -> None:
    """Where a path leads is an upstream's name, and nothing else yet."""
    tree = {"routes": {"m": "openai/x"}, "unrouted": {"files": value}}
    assert list(told(file_of(tree))) == ["unrouted.files"]


@pytest.mark.parametrize(
    ("prefix", "fits"),
    [
        ("files", True),
        ("files/content", False),
        ("fine_tuning", True),
        ("fine_tuning/jobs", True),
        ("file", False),
        ("gemini", True),
        ("models", True),
        ("responses", True),
        ("audio", True),
        ("audi", False),
        ("*", False),
    ],
)
def test_paths_of_what_is_unrouted(prefix: str, fits: bool) -> None:
    """A path of [unrouted] may live on another base too, as may Gemini's own and the list of models."""
    tree: dict[str, Any] = {
        "upstreams": {"openai": {"paths": {prefix: "http://h/v1"}}},
        "routes": {"m": "openai/y"},
        "unrouted": {"files": "openai", "fine_tuning/jobs": "openai", "*": "openai"},
    }
    if fits:
        paths = read(file_of(tree)).upstreams["openai"].paths
        assert [path for path, _ in paths] == [prefix]
    else:
        assert list(told(file_of(tree))) == [dotted(("upstreams", "openai", "paths", prefix))]


@pytest.mark.parametrize(
    ("endpoint", "fits"),
    [
        ("files", True),
        ("fine_tuning/jobs", True),
        ("fine_tuning", False),
        ("file", False),
        ("gemini", True),
        ("responses", True),
        ("images/edits", True),
        ("images", False),
        ("batches", False),
        ("models/x:generateContent", False),
        ("*", False),
    ],
)
def test_endpoints(endpoint: str, fits: bool) -> None:
    """A surface's endpoints are those that carry a model, Gemini's own by that name, and the paths of
    [unrouted].
    """
    tree: dict[str, Any] = {
        "server": {"endpoints": ["messages", endpoint]},
        "routes": {"m": "openai/y"},
        "unrouted": {"files": "openai", "fine_tuning/jobs": "openai", "*": "openai"},
    }
    if fits:
        assert read(file_of(tree)).surfaces[0].endpoints == frozenset({"messages", endpoint})
    else:
        assert list(told(file_of(tree))) == ["server.endpoints[1]"]


def test_accept_what_google_sends() -> None:
    """Google's header may be among those that hold a key, alone too; by default all are."""
    toml = f'[server]\naccept = ["x-goog-api-key"]\n[keys]\nk = "tk-0123456789abcdef"\n{ROUTES}'
    assert read(toml).surfaces[0].accept == (b"x-goog-api-key",)
    assert set(read(ROUTES).surfaces[0].accept) == {
        b"authorization", b"x-api-key", b"api-key", b"apikey", b"x-goog-api-key",
    }  # fmt: skip
