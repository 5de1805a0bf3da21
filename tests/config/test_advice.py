"""What works, and may not be what is meant."""

import pytest

from tests.config.files import notes


@pytest.mark.parametrize(
    ("routes", "path", "words"),
    [
        ('"*" = { upstream = "openai" }', 'routes."*"', '"openai/*" = { upstream = "openai" }'),
        ('"open*" = { upstream = "openai" }', 'routes."open*"', "as it is"),
        ('"groq/*" = { upstream = "groq" }', 'routes."groq/*"', '"groq/compound" = "groq/groq/compound"'),
        ('"groq/compound" = { upstream = "groq" }', 'routes."groq/compound"', "groq/groq/compound"),
        ('"*" = { upstream = "openrouter" }', None, ""),
        ('"openrouter/*" = { upstream = "openrouter" }', 'routes."openrouter/*"', "openrouter/auto"),
        ('"openrouter/*" = { upstream = "openrouter", model = "*" }', None, ""),
        ('"openai/*" = { upstream = "openai" }', None, ""),
        ('"gpt-*" = { upstream = "openai" }', None, ""),
        ('"openai" = { upstream = "openai" }', None, ""),
        ('"x" = "groq/compound"', None, ""),
    ],
)  # fmt: skip
def test_own_names(routes: str, path: str | None, words: str) -> None:
    """It is noted where an upstream's own name is not cut off as before, and where it should not be."""
    found = notes(f'[server]\nauth = "none"\n[routes]\n{routes}')
    assert [*found] == ([] if path is None else [path])
    assert words in "".join(found.values())


OURSELVES = [
    ("127.0.0.1:8080", "http://127.0.0.1:8080/v1", True),
    ("127.0.0.1:8080", "http://localhost:8080/v1", True),
    ("127.0.0.1:8080", "https://LOCALHOST:8080/v1", True),
    ("localhost:8080", "http://[::1]:8080/v1", True),
    ("0.0.0.0:8080", "http://127.0.0.1:8080/v1", True),
    ("[::]:8080", "http://localhost:8080/v1", True),
    ("10.0.0.5:80", "http://10.0.0.5/v1", True),
    ("10.0.0.5:9", "https://llm.example.com/v1", True),
    ("127.0.0.1:8080", "http://127.0.0.2:8080/v1", False),
    ("127.0.0.1:8080", "http://127.0.0.1:8081/v1", False),
    ("127.0.0.1:8080", "http://10.0.0.5:8080/v1", False),
    ("127.0.0.1:0", "http://127.0.0.1:8080/v1", False),
    ("unix:/run/x", "http://127.0.0.1:8080/v1", False),
    ("10.0.0.5:9", "https://api.example.com/v1", False),
]


@pytest.mark.parametrize(("listen", "url", "found"), OURSELVES)
@pytest.mark.parametrize("how", ["base_url", "paths", "inline", "unrouted"])
def test_an_upstream_that_is_ourselves(listen: str, url: str, found: bool, how: str) -> None:
    """An upstream at an address of this proxy itself is noted, as nothing else would see the loop."""
    other = "http://other.example/v1"
    base, paths = (other, f'paths = {{ "messages" = "{url}" }}') if how == "paths" else (url, "")
    route = f'm = {{ base_url = "{url}" }}' if how == "inline" else 'm = "up/m"'
    if how == "unrouted":
        route = f'm = {{ base_url = "{other}" }}\n[unrouted]\n"files" = "up"'
    toml = f"""
[server]
listen = "{listen}"
open = true
hosts = ["LLM.example.com"]
[upstreams.up]
base_url = "{base}"
{paths}
[routes]
{route}
"""
    told = notes(toml)
    assert any("max_inflight" in message for message in told.values()) == found
