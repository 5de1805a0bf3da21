"""Whatever the file, it loads or is refused with a reason."""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.config import ConfigError
from proxy.config.problems import dotted
from tests.config.files import FULL, Node, changed, file_of, nodes, read

NAMES = sorted(
    {key for path, _ in nodes(FULL) for key in path if isinstance(key, str)}
    | {"fallback", "api_key", "x", "x/*", "sandbox", "\x00", "a b", "ü"}
)
SCALARS = (
    st.none().map(lambda _: "x")
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.dates()
    | st.datetimes()
    | st.sampled_from([v for _, v in nodes(FULL) if isinstance(v, str)])
    | st.sampled_from(
        ["*", "a*", "x", "${HOME}", "${X:-y}", "${file:/nowhere}", "${", "$$", "none"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
KEYS = st.sampled_from(NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
PLACES = [path for path, _ in nodes(FULL)]
QUICK = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])


@cache
def _parents() -> list[Node]:
    return [(), *(path for path, value in nodes(FULL) if isinstance(value, dict))]


def loads_or_refuses(toml: str | bytes) -> None:
    try:
        read(toml, {"HOME": "CANARY-of-the-environment"})
    except ConfigError as error:
        assert error.problems
        assert "CANARY" not in str(error)


@QUICK
@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree(tree: dict[str, Any]) -> None:
    """Whatever tables a file holds, it loads or is refused, quickly, and nothing else happens."""
    loads_or_refuses(file_of(tree))


@QUICK
@given(st.lists(st.tuples(st.sampled_from(PLACES), TREES), min_size=1, max_size=4))
def test_any_replaced_value(changes: list[tuple[Node, Any]]) -> None:
    """A valid file of which any values are replaced by anything loads or is refused."""
    tree: Any = FULL
    for path, value in changes:
        try:
            tree = changed(tree, path, value)
        except (KeyError, IndexError, TypeError):
            continue  # the place is gone with an earlier change
    loads_or_refuses(file_of(tree))


@QUICK
@given(st.data())
def test_any_added_key(data: st.DataObject) -> None:
    """A valid file to which any key is added anywhere loads or is refused."""
    parent = data.draw(st.sampled_from(_parents()))
    tree = changed(FULL, (*parent, data.draw(KEYS)), data.draw(TREES))
    loads_or_refuses(file_of(tree))


@pytest.mark.parametrize("path", PLACES, ids=dotted)
def test_any_left_out_key(path: Node) -> None:
    """A valid file of which any key is left out loads or is refused."""
    tree: Any = deepcopy(FULL)
    inner = tree
    for part in path[:-1]:
        inner = inner[part]
    del inner[path[-1]]
    loads_or_refuses(file_of(tree))


@QUICK
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes(content: bytes) -> None:
    """Whatever bytes a file holds, it is refused or loads."""
    loads_or_refuses(content)


@QUICK
@given(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3))
def test_any_damage(at: int, put: bytes, cut: int) -> None:
    """A valid file with any few bytes changed is refused or loads."""
    content = file_of(FULL).encode()
    at %= len(content)
    loads_or_refuses(content[:at] + put + content[at + cut :])
