"""What a model string with a `*` at its end stands for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.patterns import Pattern

MATCHES = [
    ("gpt-4o", "gpt-4o"),
    ("claude-*", "claude-"),
    ("claude-*", "claude-sonnet-4-5"),
    ("qwen/*", "qwen/qwen-turbo"),
    ("qwen/*", "qwen/qwen/turbo"),
    ("*", ""),
    ("*", "whatever/it is"),
    ("日本/*", "日本/語"),
]
MISSES = [
    ("gpt-4o", "gpt-4o-mini"),
    ("gpt-4o", "GPT-4o"),
    ("gpt-4o", ""),
    ("claude-*", "Claude-sonnet"),
    ("claude-*", "claude"),
    ("qwen/*", "qwen-turbo"),
    ("qwen/*", "openai/qwen/x"),
    ("a.c", "abc"),
]


@pytest.mark.parametrize(("pattern", "model"), MATCHES)
def test_matches(pattern: str, model: str) -> None:
    """A name means itself; with a `*` at its end, all that begins with what precedes the `*`."""
    assert Pattern.parse(pattern).matches(model)


@pytest.mark.parametrize(("pattern", "model"), MISSES)
def test_misses(pattern: str, model: str) -> None:
    """Case counts, the slash is part of the name, and nothing in a pattern but `*` is special."""
    assert not Pattern.parse(pattern).matches(model)


@given(st.text())
def test_round_trip(text: str) -> None:
    """A pattern is shown as it is written, and always matches the text before its `*`."""
    pattern = Pattern.parse(text)
    assert str(pattern) == text
    assert pattern.matches(text.removesuffix("*"))


@given(st.text(), st.text())
def test_prefix(literal: str, rest: str) -> None:
    """What follows the prefix does not matter."""
    assert Pattern.parse(literal + "*").matches(literal + rest)


SMALL = st.text("ab", max_size=3)


@given(SMALL, st.booleans(), SMALL, st.booleans(), st.text("ab", max_size=5))
def test_meet(one: str, wide: bool, other: str, wider: bool, name: str) -> None:
    """What two patterns both match, their meeting matches, and nothing else."""
    first, second = Pattern(one, wide), Pattern(other, wider)
    both = first.meet(second)
    matched = both is not None and both.matches(name)
    assert matched == (first.matches(name) and second.matches(name))
    assert both == second.meet(first)
