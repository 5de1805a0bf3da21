"""Dialects along a chain of places."""

import pytest

from tests.config.files import route_of, told, toml_of


def speaking(**spoken: list[str] | None) -> str:
    """Return upstreams that speak so."""
    return "".join(
        f'[upstreams.{name}]\nbase_url = "http://{name}/v1"\n'
        + ("" if dialects_ is None else f"speaks = {toml_of(dialects_)}\n")
        for name, dialects_ in spoken.items()
    )


CHAINS = [
    'm = { upstream = "a", fallback = ["b/x", "c/x"] }',
    'm = { targets = ["a/x", "b/x"], fallback = "c/x" }',
    'm = { targets = ["a/x", "n", "c/x"] }\nn = "b/x"',
    'm = { upstream = "a", fallback = "n" }\nn = { upstream = "b", fallback = "c/x" }',
]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize(
    ("a", "b", "c", "good"),
    [
        (["chat"], ["chat"], ["chat"], True),
        (["chat"], ["chat", "messages"], ["messages", "chat"], True),
        (["chat"], None, ["chat"], True),
        (None, ["messages"], None, True),
        (["chat"], None, ["messages"], False),
        (["chat", "models"], ["messages", "models"], None, False),
        (["chat", "models", "files"], ["embeddings", "models", "files"], ["chat"], False),
    ],
)
def test_dialects_in_common(
    chain: str, a: list[str] | None, b: list[str] | None, c: list[str] | None, good: bool
) -> None:
    """All places of a chain share a dialect that carries a model, as far as it is known what they speak."""
    toml = f"{speaking(a=a, b=b, c=c)}[routes]\n{chain}\n"
    if good:
        assert route_of(toml).groups
        return
    problems = told(toml)
    assert set(problems) <= {"routes.m", "routes.n"}
    assert all("no dialect in common" in message for message in problems.values())


def test_dialects_that_are_inferred() -> None:
    """What is merely inferred of a vendor is no reason to refuse a chain."""
    assert route_of('[routes]\nm = { upstream = "humiris", fallback = "anthropic/x" }').groups


@pytest.mark.parametrize("line", ['m = "mute/x"', 'm = { upstream = "mute", model = "x" }'])
def test_one_place_shares_with_nobody(line: str) -> None:
    """One place alone may speak nothing that carries a model, however its route is written."""
    assert route_of(f"{speaking(mute=[])}[routes]\n{line}\n").groups
